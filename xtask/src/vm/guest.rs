//! What is in a guest: a shell, the tracer, the tests, their programs, and what all of them load, at the same paths as here.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::archive::Archive;
use crate::{command, workspace::Workspace};

/// How much more patient tests are. An emulated processor is about ten times as slow as a real one.
const SLOWNESS: u32 = 8;

/// Begins the last line of what the guest says.
pub(super) const STATUS: &str = "exit status of the tests:";

/// The guest's first process. The tests' output goes to the second serial port.
const INIT: &str = r#"#!/usr/bin/busybox sh
# Names that are taken stay.
/usr/bin/busybox --install -s /usr/bin 2>/dev/null
export PATH=/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
ip link set lo up
sh /tests >/dev/ttyS1 2>&1
echo "STATUS $?" >/dev/ttyS1
poweroff -f
"#;

/// What tests launch, of this machine: busybox's are static and stripped, so that nothing in them can be traced.
const LAUNCHED: &[&str] = &["/usr/bin/env", "/usr/bin/setpriv", "/usr/bin/sh", "/usr/bin/sleep", "/usr/bin/true"];

/// What tests preload, by the beginnings of names of files beside the C library.
const ALLOCATORS: &[&str] = &["libjemalloc.so.", "libtcmalloc_minimal.so.", "libtcmalloc.so.", "libmimalloc.so."];

/// Where debug files are, by build id.
const DEBUG_FILES: &str = "/usr/lib/debug/.build-id";

/// What the guest gets.
pub(super) struct Contents<'a> {
    pub(super) busybox: &'a Path,
    /// The executable of the integration tests, its programs, and its arguments.
    pub(super) tests: &'a Path,
    pub(super) programs: &'a [PathBuf],
    pub(super) arguments: &'a [&'a OsStr],
}

impl Contents<'_> {
    /// Writes the archive.
    pub(super) fn write(&self, workspace: &Workspace, file: &Path) -> Result<()> {
        let mut archive = Archive::default();
        for folder in ["/dev", "/proc", "/root", "/sys", "/tmp", "/usr", "/usr/bin"] {
            archive.folder(folder);
        }
        archive.renamed("/usr/bin/busybox", self.busybox);
        archive.script("/init", &INIT.replace("STATUS", STATUS));
        archive.script("/tests", &self.script(workspace));
        // The tests name their programs by a path through this folder, and look at the sources.
        archive.add(&workspace.root.join("tracer"))?;
        archive.add_files(&workspace.root.join("tests/programs"))?;
        for path in ["/bin", "/lib", "/etc/passwd"] {
            archive.add(Path::new(path))?;
        }

        let tracer = workspace.tracer();
        let mut loaded: BTreeSet<PathBuf> = BTreeSet::from([tracer, self.tests.to_owned()]);
        loaded.extend(self.programs.iter().cloned());
        loaded.extend(LAUNCHED.iter().map(PathBuf::from));
        loaded.extend(allocators()?);
        for file in &loaded.clone() {
            loaded.extend(libraries(file)?);
        }
        for file in &loaded {
            archive.add(file)?;
            if let Some(debug_file) = debug_file(file)? {
                archive.add(&debug_file)?;
            }
        }

        let create = || format!("cannot write {}", file.display());
        let mut to = BufWriter::new(File::create(file).with_context(create)?);
        archive.write(&mut to)?;
        to.flush().with_context(create)
    }

    /// Runs the tests as cargo does: in the folder of their package.
    fn script(&self, workspace: &Workspace) -> String {
        let words = [self.tests.as_os_str()].into_iter().chain(self.arguments.iter().copied());
        let words: Vec<String> = words.map(quoted).collect();
        let folder = quoted(workspace.root.join("tracer").as_os_str());
        format!("cd {folder}\nexport TRACER_TEST_SLOWNESS={SLOWNESS}\nexec {}\n", words.join(" "))
    }
}

fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

fn allocators() -> Result<Vec<PathBuf>> {
    let folder = Path::new("/usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH));
    let mut found = Vec::new();
    for file in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        let file = file?;
        let name = file.file_name();
        if ALLOCATORS.iter().any(|allocator| name.to_string_lossy().starts_with(allocator)) {
            found.push(file.path());
        }
    }
    Ok(found)
}

/// What the dynamic loader maps for a file, itself included.
fn libraries(file: &Path) -> Result<Vec<PathBuf>> {
    Ok(paths(&command::output(command::program("ldd").arg(file))?))
}

/// The file that has the names of the C library's own functions, where such files are installed.
fn debug_file(file: &Path) -> Result<Option<PathBuf>> {
    let notes = command::output(command::program("readelf").arg("--notes").arg(file))?;
    let path = build_id(&notes).and_then(|id| {
        let (folder, rest) = id.split_at_checked(2)?;
        Some(Path::new(DEBUG_FILES).join(folder).join(format!("{rest}.debug")))
    });
    Ok(path.filter(|path| path.exists()))
}

/// Absolute paths in what ldd prints.
fn paths(ldd: &str) -> Vec<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(|word| word.trim_end_matches(':').into()).collect()
}

fn build_id(notes: &str) -> Option<&str> {
    notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_among_the_libraries() {
        let ldd = "\tlinux-vdso.so.1 (0x7ff)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f4)\n\t/lib64/ld.so (0x7f5)\n";
        assert_eq!(paths(ldd), [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld.so")]);
        assert!(paths("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn a_build_id_is_found_in_the_notes() {
        let notes = "Displaying notes found in: .note.gnu.build-id\n    Build ID: 93ac61ec\n";
        assert_eq!(build_id(notes), Some("93ac61ec"));
        assert_eq!(build_id(""), None);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted(OsStr::new("a b's")), r"'a b'\''s'");
    }
}
