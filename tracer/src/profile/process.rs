//! The processes of a profile.

use std::{sync::Arc, time::Duration};

use super::{heaps::SeenHeap, memory::Memory};

/// One process that was traced.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Process id, as seen from the tracer's pid namespace. Another process may have had it before.
    pub pid: u32,
    /// Number of its address space: no other process of the trace has it.
    pub image: u32,
    /// The numbers that it had before, as other programs.
    pub earlier_images: Vec<u32>,
    /// Name of the process (`/proc/PID/comm`), as the process chose it: hostile text.
    pub comm: String,
    /// Path of the executable, as the process sees it: hostile text.
    pub exe: String,
    /// Language of the executable.
    pub language: Language,
    /// Its heaps, and how each was seen.
    pub heaps: Vec<SeenHeap>,
    /// What the kernel says of its memory; `None` when that could not be read.
    pub memory: Option<Memory>,
    /// Who started it, where that was traced, too.
    pub parent: Option<Parent>,
    /// Where it was when it was found.
    pub place: Place,
    /// When it was started, since tracing began; `None` when it ran before.
    pub started: Option<Duration>,
    /// How it ended; `None` when it was alive at the end.
    pub ended: Option<End>,
    /// How many processes it stands for: itself, or itself and others of its program and place that have ended, too. Those are counted as
    /// one, and what was recorded of them is told of it.
    pub count: u64,
    /// How far what is told of it can be trusted, as far as that is known of it alone.
    pub quality: ProcessQuality,
}

impl Process {
    /// One of which no more than this is known.
    pub fn new(pid: u32, comm: String, exe: String, language: Language) -> Self {
        Self {
            pid,
            image: 0,
            earlier_images: Vec::new(),
            comm,
            exe,
            language,
            heaps: Vec::new(),
            memory: None,
            parent: None,
            place: Place::default(),
            started: None,
            ended: None,
            count: 1,
            quality: ProcessQuality::default(),
        }
    }
}

/// The process that started another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub pid: u32,
    /// The number of its address space.
    pub image: u32,
}

/// Where the kernel counts a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Path of the cgroup by which its memory is counted; `None` when it could not be read. Hostile text.
    pub cgroup: Option<Arc<str>>,
    /// The container that it is in, if it is in one that is known as such.
    pub container: Option<Arc<Container>>,
}

/// A container, as far as cgroups and the files of its runtime tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    /// Its runtime; empty where that is not told. Hostile text.
    pub runtime: String,
    /// Its id: 64 hexadecimal digits, of LXC a name. Hostile text.
    pub id: String,
    /// What people call it, where the runtime's files tell. Hostile text.
    pub name: Option<String>,
}

/// How far what is told of one process can be trusted. What was lost is known of all together only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessQuality {
    /// Whether no allocation of it was seen.
    pub silent: bool,
    /// How often it ran unseen.
    pub unseen_spans: u64,
    /// Stacks that hold something and were cut before the root.
    pub truncated_stacks: u64,
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When it was, since tracing began.
    pub after: Duration,
    /// Number of the signal that ended it, if one did that is known.
    pub signal: Option<u8>,
}

/// Language that an executable is written in, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// C, or nothing that says otherwise.
    C,
    /// C++.
    Cpp,
    /// Rust.
    Rust,
    /// Go.
    Go,
}

impl Language {
    /// The language's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::C => "C",
            Self::Cpp => "C++",
            Self::Rust => "Rust",
            Self::Go => "Go",
        }
    }
}
