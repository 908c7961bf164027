//! What a program will map when it has just begun: its executable, its loader, and the libraries that they name. Looked for in
//! the simplest way; what is missed is met later.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hashbrown::HashSet;
use tracer_ebpf::unwind::FileKey;

use crate::{
    bpf,
    event::Pid,
    files::{
        elf::{Bytes, Elf, needed::Needed},
        module::{Identity, Module},
        root::{self, ProcessDirectory, Root},
    },
};

/// Where loaders look for libraries (ld.so(8)), and where those of Debian are.
const FOLDERS: [&str; 7] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// With its path, and the root directory of its processes.
type Executable = (Arc<Module>, PathBuf, Option<Arc<Root>>);

/// Most files of a program.
const MAX_FILES: usize = 128;
/// Programs that are remembered.
const MAX_PROGRAMS: usize = 4096;

/// Gives all that is found to `tell`, unless the program is among those `seen`. `program`: what the kernel knows its file by.
pub(super) fn look(pid: Pid, program: &FileKey, seen: &mut HashSet<Identity>, mut tell: impl FnMut(Arc<Module>)) {
    if seen.len() >= MAX_PROGRAMS {
        seen.clear();
    }
    let identity = match root::executable(pid) {
        Ok(facts) => Identity::File { device: facts.device, inode: facts.inode },
        Err(_) => identity(program),
    };
    if seen.contains(&identity) {
        return;
    }
    let Some((executable, path, root)) = running(pid).or_else(|| ended(program)) else { return };
    seen.insert(identity);
    tell(Arc::clone(&executable));
    let Some(root) = root else { return };
    let mut names: HashSet<String> = HashSet::new();
    let mut todo = vec![(executable, path)];
    while let Some((module, path)) = todo.pop() {
        let needed = needed(&module);
        let origin = path.parent().map(Path::to_owned).unwrap_or_default();
        let interpreter = needed.interpreter.as_ref().filter(|name| names.insert((*name).clone()));
        let interpreter = interpreter.and_then(|path| open(&root, Path::new(path)));
        let libraries = needed.libraries.iter().filter(|name| names.len() < MAX_FILES && names.insert((*name).clone()));
        let libraries: Vec<String> = libraries.cloned().collect();
        let libraries = libraries.iter().filter_map(|name| library(&root, name, &needed.folders, &origin));
        for (module, path) in interpreter.into_iter().chain(libraries) {
            tell(Arc::clone(&module));
            todo.push((module, path));
        }
    }
}

/// The executable of a process that runs, with its path and the root directory that it is in.
fn running(pid: Pid) -> Option<Executable> {
    let process = ProcessDirectory::with_memory(pid).ok()?;
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let opened = process.executable(pid).ok()?;
    let root = process.root().ok().map(Arc::new);
    Some((Arc::new(Module::of_opened(&path.to_string_lossy(), opened, root.as_ref())), path, root))
}

/// The same of one that was over before it was looked at: where it has its name in this root directory, it is taken for one of here.
fn ended(program: &FileKey) -> Option<Executable> {
    let tried = bpf::open_by_key(program);
    let file =
        tried.inspect_err(|error| tracing::debug!(?program, "an ended program cannot be opened: {error}")).ok()?;
    let path = bpf::path_of(&file)?;
    let root = Root::own().ok().map(Arc::new);
    let here =
        root.as_ref().and_then(|root| open(root, &path)).filter(|(module, _)| *module.identity() == identity(program));
    if let Some((module, path)) = here {
        return Some((module, path, root));
    }
    Some((Arc::new(Module::of_file(&path.to_string_lossy(), file).ok()?), path, None))
}

fn identity(program: &FileKey) -> Identity {
    let (major, minor) = bpf::device_of(program);
    Identity::File { device: rustix::fs::makedev(major, minor), inode: program.inode }
}

fn needed(module: &Module) -> Needed {
    let Some(file) = module.file() else { return Needed::default() };
    Elf::parse(&Bytes::new(file)).map(|elf| elf.needed()).unwrap_or_default()
}

fn library(root: &Arc<Root>, name: &str, folders: &[String], origin: &Path) -> Option<(Arc<Module>, PathBuf)> {
    if name.contains('/') {
        return open(root, Path::new(name));
    }
    let origin = origin.to_string_lossy();
    let own = folders.iter().map(|folder| folder.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin));
    own.chain(FOLDERS.map(str::to_owned)).find_map(|folder| open(root, &Path::new(&folder).join(name)))
}

fn open(root: &Arc<Root>, path: &Path) -> Option<(Arc<Module>, PathBuf)> {
    let module = Module::of_opened(&path.to_string_lossy(), root.open(path).ok()?, Some(root));
    Some((Arc::new(module), path.to_owned()))
}
