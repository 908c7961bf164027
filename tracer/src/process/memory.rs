//! Reading a process's memory: the file is opened for reading only, and the system call reads. [`WritableWord`] is the
//! exception, for the one thing that a user may ask to be changed.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::unix::fs::FileExt,
};

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};

use super::stat::shown_by;

/// The memory of one process, by address.
pub struct Memory(File);

impl Memory {
    /// Opens the memory of process `pid`.
    ///
    /// # Errors
    /// No such process, or no right to read it (needs CAP_SYS_PTRACE for other users' processes).
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{}/mem", shown_by(pid))).map(Self)
    }

    /// That of an open `/proc/PID/mem`.
    pub fn of(file: File) -> Self {
        Self(file)
    }

    /// Fills `buffer` from `addr` on.
    ///
    /// # Errors
    /// Not mapped, or the process is gone.
    pub fn read(&self, addr: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, addr)
    }

    /// The 64-bit word at `addr`.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn word(&self, addr: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// A part of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
}

/// Most spans in one system call: the kernel's UIO_MAXIOV.
const MAX_SPANS: usize = 1024;

/// Reads many small parts of a process's memory, which takes a hundredth of the system calls: `spans` one behind the other
/// into `buffer`, which is as long as all of them. Tells of each whether it could be read; the bytes of others mean nothing.
///
/// # Errors
/// No such process, or no right to read it (needs CAP_SYS_PTRACE for other users' processes).
pub fn read_spans(process: u32, spans: &[Span], mut buffer: &mut [u8]) -> io::Result<Vec<bool>> {
    let mut pid = raw(process)?;
    let mut readable = Vec::with_capacity(spans.len());
    while readable.len() < spans.len() {
        let batch = &spans[readable.len()..spans.len().min(readable.len() + MAX_SPANS)];
        let remote: Vec<RemoteIoVec> =
            batch.iter().map(|span| RemoteIoVec { base: span.addr as usize, len: span.len }).collect();
        let whole: usize = batch.iter().map(|span| span.len).sum();
        let mut read = match process_vm_readv(pid, &mut [IoSliceMut::new(&mut buffer[..whole])], &remote) {
            Ok(read) => read,
            Err(Errno::EFAULT) => 0,
            // Its first thread may have ended.
            Err(Errno::ESRCH) if pid != raw(shown_by(process))? => {
                pid = raw(shown_by(process))?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // The call ends at the first part that it cannot read.
        let done = batch
            .iter()
            .take_while(|span| {
                span.len <= read && {
                    read -= span.len;
                    true
                }
            })
            .count();
        let settled = if done < batch.len() { done + 1 } else { done };
        readable.extend((0..settled).map(|index| index < done));
        buffer = &mut buffer[batch[..settled].iter().map(|span| span.len).sum()..];
    }
    Ok(readable)
}

fn raw(pid: u32) -> io::Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::ESRCH)?))
}

/// A 64-bit word of a process's memory that may be changed, for the one thing that a user may ask for by name. It is one of the address space
/// that the process has now: what else it becomes, and who has its id later, is not touched.
pub struct WritableWord {
    pid: u32,
    /// Of that address space: nothing can be read any more when it is gone.
    memory: Memory,
    addr: u64,
}

impl WritableWord {
    /// That at `addr` in the memory of process `pid`.
    ///
    /// # Errors
    /// No such process, or no right to read its memory (needs CAP_SYS_PTRACE for other users' processes).
    pub fn open(pid: u32, addr: u64) -> io::Result<Self> {
        Ok(Self { pid, memory: Memory::open(pid)?, addr })
    }

    /// What it is.
    ///
    /// # Errors
    /// That address space is no more, or the word is not mapped.
    pub fn get(&self) -> io::Result<u64> {
        self.memory.word(self.addr)
    }

    /// Sets it.
    ///
    /// # Errors
    /// That address space is no more, no right to change it, or the word is not mapped for writing.
    pub fn set(&self, value: u64) -> io::Result<()> {
        // By the file itself it would be written even where the process may not.
        self.memory.word(self.addr)?;
        let pid = raw(shown_by(self.pid))?;
        let remote = [RemoteIoVec { base: self.addr as usize, len: 8 }];
        match process_vm_writev(pid, &[IoSlice::new(&value.to_ne_bytes())], &remote)? {
            8 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Sets it if it is `expected`: whether it was. What the process sets it to between the look and the write is lost: no system call
    /// does both at once.
    ///
    /// # Errors
    /// As for [`WritableWord::set`].
    pub fn replace(&self, expected: u64, value: u64) -> io::Result<bool> {
        let is_expected = self.get()? == expected;
        if is_expected {
            self.set(value)?;
        }
        Ok(is_expected)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write as _,
        process::{Command, Stdio},
        thread,
    };

    use super::*;

    #[test]
    fn what_cannot_be_read_keeps_nothing_else_from_being_read() {
        let text = *b"some bytes of this process";
        let at = text.as_ptr() as u64;
        let good = |offset: u64, len| Span { addr: at + offset, len };
        let bad = Span { addr: 8, len: 3 };
        let mut spans = vec![bad, good(5, 5), bad, bad, good(0, 4), Span { addr: u64::MAX - 1, len: 1 }];
        spans.extend([good(11, 1); 3000]);
        spans.push(bad);
        let mut buffer = vec![0; spans.iter().map(|span| span.len).sum()];
        let readable = read_spans(std::process::id(), &spans, &mut buffer).unwrap();
        assert_eq!(readable[..6], [false, true, false, false, true, false]);
        assert!(readable[6..3006].iter().all(|readable| *readable) && !readable[3006]);
        assert_eq!((&buffer[3..8], &buffer[14..18]), (&b"bytes"[..], &b"some"[..]));
        assert!(buffer[19..3019].iter().all(|byte| *byte == b'o'));
        assert!(read_spans(std::process::id(), &[], &mut []).unwrap().is_empty());
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Process ids end below 2^22.
        assert!(read_spans(1 << 22, &[Span { addr: 0, len: 1 }], &mut [0]).is_err());
        assert!(read_spans(u32::MAX, &[Span { addr: 0, len: 1 }], &mut [0]).is_err());
    }

    #[test]
    fn a_word_of_an_address_space_that_is_no_more_is_not_changed() {
        let mut child =
            Command::new("sh").args(["-c", "read a; exec sleep 1000"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let is = |name: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == name;
        while !is("sh") {
            thread::yield_now();
        }
        // Of its stack, which both programs have.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let end = maps.lines().find(|line| line.ends_with("[stack]")).unwrap().split(['-', ' ']).nth(1).unwrap();
        let addr = u64::from_str_radix(end, 16).unwrap() - 8;
        let word = WritableWord::open(pid, addr).unwrap();
        word.set(0).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        while !is("sleep") {
            thread::yield_now();
        }
        assert!(word.set(0).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
