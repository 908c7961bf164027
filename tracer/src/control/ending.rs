//! The end of a trace: probes are taken off, a command is waited for, and what the exit status is.

use std::time::Duration;

use super::Session;
use crate::{exit::Exit, launch, profile::quality::Quality};

/// How long a command may take to end after a second signal.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

impl Session {
    /// Has the probes taken off, beside the writing of the report: each allocation of tracer's own would go through them.
    pub(super) fn detach(&mut self) {
        for go in self.go.drain(..) {
            go.detach(&mut self.probes.programs);
        }
        for attached in self.attached.drain(..) {
            attached.detach(&mut self.probes);
        }
        self.probes.take_off();
    }

    pub(super) fn verdict(&self, quality: &Quality) -> Exit {
        let incomplete = quality.is_beyond_threshold() || (self.config.strict && !quality.complete());
        if incomplete { Exit::Incomplete } else { Exit::Complete }
    }

    /// With a command, its own status; it is waited for, even when tracing ended first. Only a signal that ended tracing
    /// while the command lives on (`signal`) ends that, too.
    pub(super) fn exit_status(&mut self, traced: Exit, signal: Option<i32>) -> Exit {
        let Some(launched) = &mut self.launched else { return traced };
        match (launched.wait(signal.map(|_| LAST_PATIENCE)), signal) {
            (Ok(Some(status)), _) => match launch::status(status) {
                0 => traced,
                status => Exit::Child(status),
            },
            (Ok(None), Some(signal)) => {
                let signal = u8::try_from(signal).unwrap_or(0);
                tracing::warn!("process {} runs on, untraced", launched.pid());
                Exit::Child(128 + signal)
            }
            _ => Exit::Failed,
        }
    }
}
