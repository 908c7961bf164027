//! Clients that ask a server over loopback for as long as a measurement lasts, and count the answers.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that is kept. Room for answers is kept too: probes on the C library's allocator are then not the client's to pay.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
    body: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), line: String::new(), body: Vec::new() })
    }

    /// One request of HTTP/1.1, and its answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(request)?;
        self.read_line()?;
        ensure!(self.line.contains(" 200 "), "an answer that is none: {}", self.line.trim_end());
        let mut length = None;
        while self.line != "\r\n" {
            self.read_line()?;
            length =
                self.line.strip_prefix("Content-Length: ").and_then(|length| length.trim().parse().ok()).or(length);
        }
        self.body.resize(length.context("an answer of no length")?, 0);
        Ok(self.stream.read_exact(&mut self.body)?)
    }

    fn read_line(&mut self) -> Result<()> {
        self.line.clear();
        ensure!(self.stream.read_line(&mut self.line)? > 0, "the server has closed a connection");
        Ok(())
    }
}

/// Answers a second to so many clients. Each begins with what `begin` gives it, and asks again and again; all must be answered.
pub(crate) fn rate<A>(clients: usize, time: Duration, begin: impl Fn() -> Result<A> + Sync) -> Result<f64>
where
    A: FnMut() -> Result<()>,
{
    let start = Instant::now();
    let client = || -> Result<u64> {
        let mut ask = begin()?;
        let mut answered = 0;
        while start.elapsed() < time {
            ask()?;
            answered += 1;
        }
        Ok(answered)
    };
    let answered: Result<u64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let answered = clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client has panicked"))?);
        answered.sum()
    });
    Ok(answered? as f64 / start.elapsed().as_secs_f64())
}
