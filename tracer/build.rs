//! Brings the BPF objects that `cargo xtask build-ebpf` made, or empty stubs when there are none.
//!
//! With the stubs, checks, clippy and unit tests need no BPF toolchain; a tracer with one says that it has no programs.
//! The object of the product is `TRACER_BPF_OBJECT` when that is set, else `bpf/tracer-bpf.o` in cargo's target directory. It
//! comes to the crate as `tracer-bpf.o` in `OUT_DIR`; beside it, for tests and benches, is `tracer-bpf-compared.o`.

use std::{
    env,
    error::Error,
    ffi::OsString,
    fs,
    fs::File,
    path::{Path, PathBuf},
    time::SystemTime,
};

const CHOSEN: &str = "TRACER_BPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    let folder = built_objects(&out)?;
    println!("cargo::rerun-if-env-changed={CHOSEN}");
    println!("cargo::rerun-if-changed=build.rs");
    bring("tracer-bpf.o", &folder, env::var_os(CHOSEN), &out)?;
    bring("tracer-bpf-compared.o", &folder, None, &out)
}

/// Brings the object that was chosen, or else that of this name in `folder`, if it is there.
fn bring(name: &str, folder: &Path, chosen: Option<OsString>, out: &Path) -> Result<(), Box<dyn Error>> {
    let object = chosen.as_ref().map_or_else(|| folder.join(name), PathBuf::from);
    if chosen.is_none() && !object.exists() {
        leave_placeholder(&object);
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let contents = match fs::read(&object) {
        Ok(contents) => contents,
        Err(_) if chosen.is_none() => Vec::new(),
        Err(error) => return Err(format!("cannot read {} from {CHOSEN}: {error}", object.display()).into()),
    };
    fs::write(out.join(name), contents)?;
    Ok(())
}

/// Where the objects are built. `OUT_DIR` is TARGET-DIRECTORY/[TRIPLE/]PROFILE/build/..., so the target directory is found wherever it was put.
fn built_objects(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let triple = env::var_os("TARGET").unwrap_or_default();
    let mut above_profile = out
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "build"))
        .and_then(|build| build.parent()?.parent())
        .ok_or("OUT_DIR is not in a target directory")?;
    if above_profile.file_name() == Some(&triple) {
        above_profile = above_profile.parent().unwrap_or(above_profile);
    }
    Ok(above_profile.join("bpf"))
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
