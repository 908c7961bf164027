//! Embeds the BPF object that `cargo xtask build-ebpf` made, or an empty stub when there is none.
//!
//! With the stub, checks, clippy and unit tests need no BPF toolchain; a tracer with it says that it has no programs.
//! The object is `TRACER_BPF_OBJECT` when that is set, else `bpf/tracer-bpf.o` in cargo's target directory. It comes
//! to the crate as `tracer-bpf.o` in `OUT_DIR`.

use std::{
    env,
    error::Error,
    fs,
    fs::File,
    path::{Path, PathBuf},
    time::SystemTime,
};

const CHOSEN: &str = "TRACER_BPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    let object = match env::var_os(CHOSEN) {
        Some(chosen) => PathBuf::from(chosen),
        None => {
            let object = default_object(&out)?;
            if !object.exists() {
                leave_placeholder(&object);
            }
            object
        }
    };
    println!("cargo::rerun-if-env-changed={CHOSEN}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", object.display());

    let contents = match fs::read(&object) {
        Ok(contents) => contents,
        Err(_) if env::var_os(CHOSEN).is_none() => Vec::new(),
        Err(error) => return Err(format!("cannot read {} from {CHOSEN}: {error}", object.display()).into()),
    };
    fs::write(out.join("tracer-bpf.o"), contents)?;
    Ok(())
}

/// `OUT_DIR` is TARGET-DIRECTORY/[TRIPLE/]PROFILE/build/..., so the target directory is found wherever it was put.
fn default_object(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let triple = env::var_os("TARGET").unwrap_or_default();
    let mut above_profile = out
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "build"))
        .and_then(|build| build.parent()?.parent())
        .ok_or("OUT_DIR is not in a target directory")?;
    if above_profile.file_name() == Some(&triple) {
        above_profile = above_profile.parent().unwrap_or(above_profile);
    }
    Ok(above_profile.join("bpf/tracer-bpf.o"))
}

/// Cargo runs a build script every time when a file that it watches is not there. An empty file that looks old is
/// watched instead, and the object that replaces it is noticed. Without it builds are only slower, so errors are no
/// matter.
fn leave_placeholder(object: &Path) {
    if let Some(folder) = object.parent() {
        let _ = fs::create_dir_all(folder);
    }
    if let Ok(file) = File::create_new(object) {
        let _ = file.set_modified(SystemTime::UNIX_EPOCH);
    }
}
