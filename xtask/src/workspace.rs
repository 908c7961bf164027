//! Where things are: the repository, cargo's target directory, what the builds leave there.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cargo_metadata::MetadataCommand;

/// Places of this checkout.
pub(crate) struct Workspace {
    /// Folder of the virtual manifest.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever environment or configuration put it.
    pub(crate) target: PathBuf,
    /// Where cargo keeps build scripts' output; the same as `target` unless configured otherwise.
    build: PathBuf,
}

impl Workspace {
    /// Asks cargo, which knows its own configuration best.
    pub(crate) fn load() -> Result<Self> {
        let metadata = MetadataCommand::new().no_deps().exec().context("cannot ask cargo about the workspace")?;
        let target = metadata.target_directory.into_std_path_buf();
        Ok(Self {
            root: metadata.workspace_root.into_std_path_buf(),
            build: metadata.build_directory.map_or_else(|| target.clone(), Into::into),
            target,
        })
    }

    /// Folder in which cargo builds the BPF programs, and in which tracer's build script looks for them. It looks beside its own
    /// output, hence `build`.
    pub(crate) fn bpf_target(&self) -> PathBuf {
        self.build.join("bpf")
    }

    /// The release build of the tracer.
    pub(crate) fn tracer(&self) -> PathBuf {
        self.target.join("release/tracer")
    }
}
