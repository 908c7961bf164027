//! What the processes that are shown are: executable, language, allocator, and what of their memory can be traced. Their files are
//! read, which may take time, by a thread of its own; what has been found is kept.

use std::{
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};

use super::reading::Id;
use crate::{
    attach,
    files::{opener, root},
    go,
    process::status::{self, NotTraceable},
    profile::{Language, Runtime},
    space::address_space::AddressSpace,
    symbolize,
};

/// What a process is.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Path of its executable: hostile text. `None` without the right to know it.
    pub exe: Option<String>,
    /// What its executable is written in, as far as is known.
    pub language: Option<Language>,
    /// What it takes memory from: hostile text, as it may be the name of a file.
    pub allocator: Option<String>,
    /// What can be traced.
    pub tracing: Tracing,
}

/// What of the memory of a process can be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracing {
    /// Every allocation.
    Exact,
    /// Every allocation by `malloc`; this runtime has memory besides.
    Partly(Runtime),
    /// The heap of a Go program, by samples.
    GoSampled,
    /// Nothing: it has no allocator that is known.
    NoAllocator,
    /// Nothing: it is no 64-bit program.
    Not64Bit,
    /// Not known without more rights.
    Forbidden,
    /// Not known: its files or its runtime cannot be read.
    Unreadable,
    /// Not known yet.
    Pending,
    /// Nothing: it has ended.
    Ended,
}

impl Description {
    /// Of a process of which nothing is known.
    fn unknown(tracing: Tracing) -> Self {
        Self { exe: None, language: None, allocator: None, tracing }
    }
}

/// A process and the program that it runs.
type Key = (Id, Option<String>);

/// The thread that finds out, and what it has found.
pub struct Describer {
    wanted: mpsc::Sender<Key>,
    found: mpsc::Receiver<(Key, Description)>,
    /// `None`: asked for.
    known: HashMap<Key, Option<Description>>,
}

impl Describer {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start() -> io::Result<Self> {
        let (wanted, asked) = mpsc::channel::<Key>();
        let (tell, found) = mpsc::channel();
        let job = move || {
            for (id, exe) in asked {
                opener::renew_patience();
                let description = describe(id, exe.clone());
                if tell.send(((id, exe), description)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("describer".to_owned()).spawn(job)?;
        Ok(Self { wanted, found, known: HashMap::new() })
    }

    /// What these processes are, as far as that is found out until `deadline`; the rest is pending. All others are forgotten.
    pub fn descriptions(&mut self, ids: &[Id], deadline: Instant) -> Vec<Description> {
        let keys: Vec<Key> = ids.iter().map(|id| (*id, status::executable(id.pid))).collect();
        for key in &keys {
            if !self.known.contains_key(key) && self.wanted.send(key.clone()).is_ok() {
                self.known.insert(key.clone(), None);
            }
        }
        let wanted: HashSet<&Key> = keys.iter().collect();
        self.known.retain(|key, known| known.is_none() || wanted.contains(key));
        let mut pending = wanted;
        pending.retain(|key| self.known.get(*key).is_some_and(Option::is_none));
        while !pending.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((key, description)) = self.found.recv_timeout(left) else { break };
            pending.remove(&key);
            self.known.insert(key, Some(description));
        }
        let description = |key: &Key| self.known.get(key).cloned().flatten();
        keys.iter()
            .map(|key| {
                description(key)
                    .unwrap_or_else(|| Description { exe: key.1.clone(), ..Description::unknown(Tracing::Pending) })
            })
            .collect()
    }
}

fn describe(id: Id, exe: Option<String>) -> Description {
    let found = look(id, exe);
    match status::check(id.pid) {
        Err(NotTraceable::NoSuchProcess(_) | NotTraceable::Zombie(..)) => Description::unknown(Tracing::Ended),
        Ok(now) if now.start_time != id.start_time => Description::unknown(Tracing::Ended),
        _ => found,
    }
}

fn look(Id { pid, .. }: Id, exe: Option<String>) -> Description {
    let nothing = |tracing| Description { exe: exe.clone(), ..Description::unknown(tracing) };
    match status::check(pid) {
        Ok(_) => {}
        Err(NotTraceable::Not64Bit(..)) => return nothing(Tracing::Not64Bit),
        Err(NotTraceable::Forbidden { .. }) => return nothing(Tracing::Forbidden),
        Err(_) => return nothing(Tracing::Unreadable),
    }
    let mut space = AddressSpace::new(pid);
    if let Err(error) = space.refresh() {
        let forbidden = error.kind() == io::ErrorKind::PermissionDenied;
        return nothing(if forbidden { Tracing::Forbidden } else { Tracing::Unreadable });
    }
    let executable = root::executable(pid).ok();
    let of_executable =
        |module: &crate::files::module::Module| executable.as_ref().is_some_and(|file| module.is_file(file));
    let own = space.executable_files().map(|(module, _)| module).find(|module| of_executable(module));
    let language = own.as_ref().filter(|module| module.file().is_some()).map(|module| symbolize::language(module));
    let runtime = space.executable_files().find_map(|(module, _)| Runtime::of_file(module.path()));
    let readable = own.is_some_and(|module| module.file().is_some());
    let found = attach::allocators(pid).ok().flatten();
    let allocator = found.as_ref().and_then(|found| found.files().first()).map(|first| match first.functions.name {
        Some(name) => name.to_owned(),
        None if of_executable(&first.module) => "its own".to_owned(),
        None => allocator_name(first.module.path()).to_owned(),
    });
    let tracing = match (language, &allocator, runtime) {
        (Some(Language::Go), ..) => match go::process::open(pid) {
            Ok(_) => Tracing::GoSampled,
            Err(_) => Tracing::Unreadable,
        },
        (_, Some(_), Some(runtime)) => Tracing::Partly(runtime),
        (_, Some(_), None) => Tracing::Exact,
        (_, None, _) if !readable => Tracing::Unreadable,
        (_, None, _) => Tracing::NoAllocator,
    };
    let allocator = if tracing == Tracing::GoSampled { Some("Go".to_owned()) } else { allocator };
    Description { exe, language, allocator, tracing }
}

/// What people call the allocator in a file; the file's name where it is not known.
fn allocator_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    const NAMES: [(&str, &str); 9] = [
        ("libc.so", "glibc"),
        ("libc-", "glibc"),
        ("ld-musl", "musl"),
        ("libc.musl", "musl"),
        ("libjemalloc", "jemalloc"),
        ("libtcmalloc", "tcmalloc"),
        ("libmimalloc", "mimalloc"),
        ("libasan", "sanitizer"),
        ("libtsan", "sanitizer"),
    ];
    NAMES.iter().find(|(start, _)| file.starts_with(start)).map_or(file, |(_, name)| name)
}

/// Longest time that a look at the files of one process takes, and then some.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocators_have_names() {
        for (path, name) in [
            ("/lib/x86_64-linux-gnu/libc.so.6", "glibc"),
            ("/lib/ld-musl-x86_64.so.1", "musl"),
            ("/usr/lib/libjemalloc.so.2", "jemalloc"),
            ("/srv/libown.so", "libown.so"),
            ("", ""),
        ] {
            assert_eq!(allocator_name(path), name);
        }
    }

    #[test]
    fn a_process_is_described_once_and_a_reused_id_is_not_it() {
        let pid = std::process::id();
        let start_time = status::check(pid).unwrap().start_time;
        let ids = [Id { pid, start_time }, Id { pid, start_time: start_time + 1 }];
        let mut describer = Describer::start().unwrap();
        let found = describer.descriptions(&ids, Instant::now() + PATIENCE);
        assert_eq!((found[0].language, found[0].tracing), (Some(Language::Rust), Tracing::Exact));
        assert_eq!(found[0].allocator.as_deref(), Some("glibc"));
        assert_eq!(found[1].tracing, Tracing::Ended);
        assert_eq!(describer.descriptions(&ids, Instant::now())[0], found[0], "kept");
    }
}
