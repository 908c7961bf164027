//! The machine the tests run on: rights, packages, ports, probes in memory, and turns for those that need it whole.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Fails with a clear message where the kernel would not let us trace.
#[track_caller]
pub(crate) fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test attaches probes: run it as root (cargo xtask test)");
}

/// How many times slower than a real machine this one is, by the variable that `cargo xtask test --vm` sets in its guests:
/// whoever waits is that much more patient, and what is done several times is done less often.
pub(crate) fn slowness() -> u32 {
    let factor = env::var("TRACER_TEST_SLOWNESS").ok();
    factor.map_or(1, |factor| factor.parse().unwrap_or_else(|_| panic!("TRACER_TEST_SLOWNESS={factor}: no number")))
}

static WHOLE_MACHINE: Mutex<()> = Mutex::new(());

/// A turn for tests under full load: two of them at a time would measure each other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has left nothing behind.
    WHOLE_MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

static RETURNS: Mutex<()> = Mutex::new(());

/// A turn for tests that probe returns of the C library, and for those that count on seeing all outcomes beside them: such probes of
/// one process take the return addresses of all that are traced and have the same file.
pub(crate) fn taking_returns() -> MutexGuard<'static, ()> {
    RETURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An allocator of Debian's that programs are run with by LD_PRELOAD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preloaded {
    pub(crate) file: &'static str,
    package: &'static str,
}

/// Those that the tests know.
pub(crate) const ALLOCATORS: [Preloaded; 3] = [
    Preloaded { file: "libjemalloc.so.2", package: "libjemalloc2" },
    Preloaded { file: "libtcmalloc_minimal.so.4", package: "libtcmalloc-minimal4" },
    Preloaded { file: "libmimalloc.so.2.0", package: "libmimalloc2.0" },
];

/// One that has a profiler, besides.
const PROFILING: Preloaded = Preloaded { file: "libtcmalloc.so.4", package: "libgoogle-perftools4" };

/// One whose functions of the C library's names call those of another file.
const PROXY: Preloaded = Preloaded { file: "libtbbmalloc_proxy.so.2", package: "libtbbmalloc2" };

/// Path of the allocator whose file name contains `name`.
pub(crate) fn preloadable(name: &str) -> String {
    let known = ALLOCATORS.iter().chain([&PROFILING, &PROXY]).find(|allocator| allocator.file.contains(name)).unwrap();
    let path = Path::new("/usr/lib/x86_64-linux-gnu").join(known.file);
    assert!(path.exists(), "{} is missing: apt-get install {}", path.display(), known.package);
    path.to_string_lossy().into_owned()
}

/// Path of an installed program; fails naming the package.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    let found = ["/usr/bin", "/usr/sbin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}"))
}

/// Copies a program, by a process of its own: whoever forks in another thread while this one has the copy open for writing hands that
/// on to a child, and nobody can run it ("Text file busy") until the child has become another program.
#[track_caller]
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--").args([from, to]).status().unwrap();
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}

/// Arguments for setpriv: a user who is nobody.
pub(crate) const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// The same, with these capabilities and no others.
pub(crate) fn with_capabilities(capabilities: &[&str]) -> Vec<String> {
    let set = capabilities.iter().fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    let user = NOBODY.into_iter().chain(["--no-new-privs"]).map(str::to_owned);
    let sets = ["--bounding-set", "--inh-caps", "--ambient-caps"].map(|option| format!("{option}={set}"));
    user.chain(sets).collect()
}

/// A copy of the tracer that every user may run, and its folder.
#[track_caller]
pub(crate) fn copy_for_all(tracer: &Path) -> (TempDir, PathBuf) {
    let folder = scratch();
    let copy = folder.path().join("tracer");
    copy_program(tracer, &copy);
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    (folder, copy)
}

/// A folder that every user may enter.
pub(crate) fn scratch() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Says why something is not tested here.
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
pub(crate) fn skipped(what: &str, why: &str) {
    println!("skipped: {what}: {why}");
}

/// A TCP port on which nobody listens.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let patience = Duration::from_secs(30) * slowness();
    let deadline = Instant::now() + patience;
    while !so() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// How many bytes of the code that process `pid` has mapped from files named like `file` differ from those files: probes.
pub(crate) fn probed_bytes(pid: u32, file: &str) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut different = 0;
    for line in maps.lines().filter(|line| line.contains(file) && line.contains(" r-xp ")) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        let mapped = read_up_to(&memory, hex(start), (hex(end) - hex(start)) as usize);
        let on_disk = fs::File::open(fields[5]).unwrap();
        let original = read_up_to(&on_disk, hex(fields[2]), mapped.len());
        different += mapped.iter().zip(&original).filter(|(mapped, original)| mapped != original).count();
    }
    different
}

fn read_up_to(file: &fs::File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) | Err(_) => break,
            Ok(count) => done += count,
        }
    }
    bytes.truncate(done);
    bytes
}

/// Does `work` again and again, in so many threads, as long as `look` takes.
pub(crate) fn while_busy(threads: usize, work: impl Fn() + Sync, look: impl FnOnce()) {
    /// Says so also when a test fails.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    work();
                }
            });
        }
        let _over = Over(&over);
        look();
    });
}
