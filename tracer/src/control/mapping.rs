//! Whether what processes map themselves is recorded, and what to say if not.

use anyhow::{Result, bail};

use super::notes::Notes;
use crate::{
    bpf::{self, NoRemappings, Programs},
    config::{Config, MmapChoice},
    report::Value,
};

/// Has it recorded, as `config` says; whether it is.
///
/// # Errors
/// It is what reports are to show, and cannot be recorded.
pub(super) fn record(programs: &mut Programs, config: &Config, notes: &mut Notes) -> Result<bool> {
    if config.mmap == MmapChoice::Off {
        return Ok(false);
    }
    match bpf::attach_remappings(programs, config.mmap == MmapChoice::Always) {
        Ok(()) => Ok(true),
        Err(reason) if config.value == Value::Mapped => {
            bail!(
                "--value mapped has nothing to show, for memory that programs map themselves is not recorded: {reason}"
            )
        }
        Err(reason) => {
            if let NoRemappings::Refused(error) = &reason {
                tracing::debug!("{error}");
            }
            notes.extend([format!("memory that programs map themselves is not recorded: {reason}")]);
            Ok(false)
        }
    }
}
