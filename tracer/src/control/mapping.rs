//! Whether what processes map themselves is recorded, and what to say if not.

use super::notes::Notes;
use crate::{
    bpf::{self, NoRemappings, Programs},
    config::MmapChoice,
};

/// Has it recorded, as it was asked for; whether it is.
pub(super) fn record(programs: &mut Programs, choice: MmapChoice, notes: &mut Notes) -> bool {
    if choice == MmapChoice::Off {
        return false;
    }
    match bpf::attach_remappings(programs, choice == MmapChoice::Always) {
        Ok(()) => true,
        Err(reason) => {
            if let NoRemappings::Refused(error) = &reason {
                tracing::debug!("{error}");
            }
            notes.extend([format!("memory that programs map themselves is not recorded: {reason}")]);
            false
        }
    }
}
