//! Why BPF programs could not be loaded, in words.

use aya::programs::ProgramError;

use super::{kernel_types::VMLINUX, refusal};

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// This binary was built without the BPF object.
    #[error("this build of tracer has no BPF programs in it: build it with `cargo xtask build`")]
    NoObject,
    /// The kernel or aya refused.
    #[error("cannot load the BPF programs: {}", refusal::explain(.0))]
    Refused(aya::EbpfError),
    /// A program or map is not in the object, or has another type: the object is of another version.
    #[error("the BPF object does not fit this binary ({0}): build both with `cargo xtask build`")]
    Mismatch(String),
    /// A map could not be opened.
    #[error("cannot use a BPF map: {}", refusal::explain(.0))]
    Map(aya::maps::MapError),
    /// Memory of a map could not be shared.
    #[error("cannot share the memory of a BPF map: {}", refusal::explain(.0))]
    Memory(std::io::Error),
    /// The kernel does not say where it keeps what the programs read.
    #[error("{VMLINUX} does not tell where the kernel keeps the mappings of processes: it needs CONFIG_DEBUG_INFO_BTF")]
    NoTypes,
    /// A program was refused.
    #[error("the kernel refused the BPF program {0}: {1}")]
    Program(String, String),
}

// Their causes are in the words already: as sources they would be told twice.
impl From<aya::EbpfError> for LoadError {
    fn from(error: aya::EbpfError) -> Self {
        Self::Refused(error)
    }
}

impl From<aya::maps::MapError> for LoadError {
    fn from(error: aya::maps::MapError) -> Self {
        Self::Map(error)
    }
}

impl LoadError {
    /// A refused program. Of the verifier's log, which may be a megabyte, the end says why.
    pub(super) fn refused(name: &str, error: &ProgramError) -> Self {
        let ProgramError::LoadError { io_error, verifier_log } = error else {
            return Self::Program(name.to_owned(), refusal::explain(error));
        };
        let log = verifier_log.to_string();
        tracing::debug!("{log}");
        // Only these are the verifier's own.
        if !matches!(io_error.raw_os_error(), Some(libc::EACCES | libc::EINVAL | libc::E2BIG)) || log.is_empty() {
            return Self::Program(name.to_owned(), refusal::explain(io_error));
        }
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        Self::Program(
            name.to_owned(),
            format!("{io_error}; its verifier says: {}", lines[lines.len().saturating_sub(6)..].join(" | ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_that_ran_out_are_told_as_that() {
        let error = ProgramError::IOError(std::io::Error::from_raw_os_error(libc::EMFILE));
        let words = LoadError::refused("a program", &error).to_string();
        assert!(words.contains("descriptors"), "{words}");
    }
}
