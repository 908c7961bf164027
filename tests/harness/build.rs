//! Compiles ground-truth programs, each once: the result is kept under a name that holds the hash of its sources and flags.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/programs");

/// A compiler with its flags.
#[derive(Clone, Copy, Hash)]
pub(super) struct Compiler {
    name: &'static str,
    flags: &'static [&'static str],
}

// Warnings are off: the programs do what compilers warn of, such as asking for more than there is.
pub(super) const C: Compiler = Compiler { name: "gcc", flags: &["-std=gnu17", "-O2", "-w", "-pthread"] };
/// With musl in the place of glibc.
pub(super) const MUSL: Compiler = Compiler { name: "musl-gcc", flags: C.flags };
pub(super) const CXX: Compiler = Compiler { name: "g++", flags: &["-std=c++20", "-O2", "-w", "-pthread"] };
pub(super) const RUST: Compiler =
    Compiler { name: "rustc", flags: &["--edition", "2024", "-O", "-C", "force-frame-pointers=yes", "-A", "warnings"] };

/// Builds the package in a folder of the programs, with a feature: its executable, which has its name.
#[track_caller]
pub(super) fn build_package(name: &str, feature: &str) -> PathBuf {
    // Each feature leaves its executable in the same place.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let manifest = Path::new(SOURCES).join(name).join("Cargo.toml");
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--quiet", "--features", feature, "--manifest-path"]);
    let output = build.arg(manifest).arg("--target-dir").arg(&folder).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run cargo ({error})"));
    assert!(output.status.success(), "{build:?}: {}", String::from_utf8_lossy(&output.stderr));
    let (built, program) = (folder.join("release").join(name), folder.join(feature));
    // What somebody runs already stays where it is.
    if fs::read(&program).ok() != fs::read(&built).ok() {
        fs::copy(built, folder.join(format!("{feature}.part"))).unwrap();
        fs::rename(folder.join(format!("{feature}.part")), &program).unwrap();
    }
    program
}

/// Has what was made be where it is looked for, as a whole: another test may be waiting for it. Where one was faster, what that has made stays:
/// somebody may run it already.
pub(super) fn put_in_place(made: &Path, place: &Path) {
    if let Err(error) = fs::hard_link(made, place) {
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{}: {error}", place.display());
    }
}

/// A program to be compiled.
pub(super) struct Source {
    /// What tests call it.
    pub(super) name: &'static str,
    pub(super) compiler: Compiler,
    /// Files in the folder of programs.
    pub(super) files: &'static [&'static str],
    pub(super) flags: &'static [&'static str],
}

impl Source {
    /// Compiles it, unless that has been done before.
    pub(super) fn build(&self) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let stem = Path::new(self.files[0]).file_stem().unwrap().to_string_lossy().into_owned();
        let program = folder.join(format!("{stem}-{:016x}", self.hash()));
        if !program.exists() {
            let scratch = tempfile::tempdir_in(folder).unwrap();
            let part = scratch.path().join(&stem);
            self.compile(&part);
            put_in_place(&part, &program);
        }
        program
    }

    fn compile(&self, program: &Path) {
        let Compiler { name, flags } = self.compiler;
        let sources = self.files.iter().map(|file| Path::new(SOURCES).join(file));
        let mut compile = Command::new(name);
        compile.args(flags).arg("-o").arg(program).args(sources).args(self.flags);
        let output = compile.output().unwrap_or_else(|error| panic!("cannot run {name} ({error}): is it installed?"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compile:?}: {}\n{said}", output.status);
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.compiler, self.flags).hash(&mut hasher);
        for file in self.files.iter().chain(&["truth.h"]) {
            let path = Path::new(SOURCES).join(file);
            let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (file, text).hash(&mut hasher);
        }
        hasher.finish()
    }
}
