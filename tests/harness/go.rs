//! Builds Go programs, each once, with the machine's toolchain or the one that `TRACER_TEST_GOROOT` names: `cargo xtask test
//! --go-matrix` sets it.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::build::put_in_place;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/programs/go");

/// As `go build` does it.
pub(crate) const STOCK: &[&str] = &[];

/// Path of a program, built with `flags` unless that has been done before. One like `NAME=VALUE` is set in the environment.
#[track_caller]
pub(crate) fn go_program(name: &str, flags: &[&str]) -> PathBuf {
    let sources = Path::new(SOURCES).join(name);
    let mut hasher = DefaultHasher::new();
    (flags, version()).hash(&mut hasher);
    let mut files: Vec<PathBuf> = fs::read_dir(&sources)
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort_unstable();
    for file in files {
        fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).hash(&mut hasher);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = folder.join(format!("{name}-{:016x}", hasher.finish()));
    if !program.exists() {
        let scratch = tempfile::tempdir_in(folder).unwrap();
        let part = scratch.path().join(name);
        let mut build = go();
        let (flags, environment): (Vec<&str>, Vec<&str>) = flags.iter().partition(|flag| flag.starts_with('-'));
        build.envs(environment.iter().filter_map(|variable| variable.split_once('=')));
        build.arg("build").args(flags).arg("-o").arg(&part).arg(".").current_dir(&sources);
        let output = build.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{build:?}: {}\n{said}", output.status);
        put_in_place(&part, &program);
    }
    program
}

/// A profile that makes the compiler inline the runtime's allocation; `None` when it takes none (up to Go 1.19).
pub(crate) fn hot_profile() -> Option<PathBuf> {
    if String::from_utf8_lossy(&version()).contains(" go1.19") {
        return None;
    }
    let hot = go_program("hot", &[]);
    let profile = hot.with_extension("profile");
    if !profile.exists() {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let part = scratch.path().join("profile");
        let output = Command::new(&hot).arg(&part).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        put_in_place(&part, &profile);
    }
    Some(profile)
}

fn version() -> Vec<u8> {
    let output = go().arg("version").output();
    output.unwrap_or_else(|error| panic!("cannot run go ({error}): `cargo xtask setup --tests` installs it")).stdout
}

/// The toolchain.
pub(super) fn go() -> Command {
    let mut go = match env::var_os("TRACER_TEST_GOROOT") {
        Some(root) => {
            let mut go = Command::new(Path::new(&root).join("bin/go"));
            go.env("GOROOT", root);
            go
        }
        None => Command::new("go"),
    };
    go.env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
    go
}
