//! A terminal that is drawn on again and again, and whose keys are read as they are pressed. It is left as it was, however tracer ends
//! (killed by SIGKILL, it is not: `stty sane`).

use std::{
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    thread,
};

use rustix::{
    process::getpgrp,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr},
};

use crate::last_will::Clause;

/// Hides the cursor, and cuts lines at the right edge.
const BEGIN: &str = "\x1b[?25l\x1b[?7l";
/// The reverse.
const END: &str = "\x1b[?7h\x1b[?25h";

/// The terminal of the standard output; its keys, where it is that of the standard input too.
pub(super) struct Screen {
    /// Its modes, to be restored.
    modes: Option<Termios>,
    /// Does so when tracer has to end at once.
    _clause: Clause,
}

impl Screen {
    /// Takes the terminal; `pressed` is called with each key, and with `None` when there will be no more.
    pub(super) fn open(pressed: impl Fn(Option<u8>) + Send + 'static) -> Self {
        let modes = own_modes();
        let will = modes.clone();
        let clause = Clause::new(move || restore(will.as_ref()));
        let screen = Self { modes, _clause: clause };
        screen.take_keys();
        if screen.modes.is_some() {
            let read = move || {
                let mut key = [0];
                while io::stdin().read(&mut key).is_ok_and(|read| read > 0) {
                    pressed(Some(key[0]));
                }
                pressed(None);
            };
            // Without keys, Ctrl-C ends it.
            drop(thread::Builder::new().name("keys".to_owned()).spawn(read));
        }
        screen
    }

    /// Has keys come without Enter, and not shown; also again, after a shell has had the terminal in between.
    fn take_keys(&self) {
        if let (Some(modes), true) = (&self.modes, is_foreground()) {
            let mut raw = modes.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
    }

    /// Shows these lines in place of what was there.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        self.take_keys();
        let mut text = format!("{BEGIN}\x1b[H");
        let shown = lines.iter().take(height()).map(String::as_str);
        text.push_str(&shown.collect::<Vec<_>>().join("\x1b[K\n"));
        // To the end of the line and of the screen.
        text.push_str("\x1b[K\x1b[J");
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore(self.modes.as_ref());
    }
}

/// Lines that the terminal has.
pub(super) fn height() -> usize {
    tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 0).unwrap_or(24)
}

/// The modes of the terminal at the standard input, if it is ours now.
fn own_modes() -> Option<Termios> {
    if is_foreground() { tcgetattr(io::stdin()).ok() } else { None }
}

/// Whether who changes or reads the terminal is not stopped for it.
fn is_foreground() -> bool {
    tcgetpgrp(io::stdin().as_fd()).is_ok_and(|group| group == getpgrp())
}

fn restore(modes: Option<&Termios>) {
    let mut out = io::stdout().lock();
    // The terminal may be gone.
    let _ = out.write_all(format!("{END}\n").as_bytes()).and_then(|()| out.flush());
    if let (Some(modes), true) = (modes, is_foreground()) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
    }
}
