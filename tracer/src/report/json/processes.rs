//! Processes and groups of them, saved.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{
    super::{
        groups::{Group, Key, MemorySum},
        options::By,
        words,
    },
    saved::Saved,
};
use crate::profile::{Container, Memory, Process, ProcessQuality, Reason, SeenHeap};

impl Serialize for Saved<'_, Process> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let process = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &process.pid)?;
        object.serialize_entry("image", &process.image)?;
        object.serialize_entry("comm", &process.comm)?;
        object.serialize_entry("exe", &process.exe)?;
        object.serialize_entry("language", process.language.name())?;
        object.serialize_entry("cgroup", &process.place.cgroup.as_deref())?;
        object.serialize_entry("container", &process.place.container.as_deref().map(Saved))?;
        object.serialize_entry("heaps", &Saved(&*process.heaps))?;
        object.serialize_entry("memory", &process.memory.as_ref().map(Saved))?;
        object.serialize_entry("parent_pid", &process.parent.map(|parent| parent.pid))?;
        object.serialize_entry("parent_image", &process.parent.map(|parent| parent.image))?;
        object.serialize_entry("started_after_seconds", &process.started.map(|started| started.as_secs_f64()))?;
        object.serialize_entry("ended_after_seconds", &process.ended.map(|end| end.after.as_secs_f64()))?;
        object.serialize_entry("ended_by_signal", &process.ended.and_then(|end| end.signal))?;
        if process.count > 1 {
            object.serialize_entry("stands_for", &process.count)?;
        }
        object.serialize_entry("quality", &Saved(&process.quality))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Container> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Container { runtime, id, name } = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("runtime", &Some(runtime).filter(|runtime| !runtime.is_empty()))?;
        object.serialize_entry("id", id)?;
        object.serialize_entry("name", name)?;
        object.end()
    }
}

impl Serialize for Saved<'_, ProcessQuality> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ProcessQuality { silent, unseen_spans, truncated_stacks, uncertain_bytes } = *self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("silent", &silent)?;
        object.serialize_entry("unseen_spans", &unseen_spans)?;
        object.serialize_entry("truncated_stacks", &truncated_stacks)?;
        object.serialize_entry("uncertain_bytes", &uncertain_bytes)?;
        object.end()
    }
}

/// Processes that are put together, and what they are together.
pub(super) struct Groups<'a>(pub(super) By, pub(super) &'a [Group<'a>]);

impl Serialize for Groups<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.iter().map(|group| (self.0, group)).map(OneGroup))
    }
}

struct OneGroup<'a>((By, &'a Group<'a>));

impl Serialize for OneGroup<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (by, group) = self.0;
        let Process { comm, exe, place, .. } = group.first;
        // Of the first one it may not be known.
        let exe = if let Key::Program(program) = group.key { program.exe() } else { exe };
        let mut object = serializer.serialize_map(None)?;
        match by {
            By::Program | By::Process => {
                object.serialize_entry("comm", comm)?;
                object.serialize_entry("exe", exe)?;
            }
            By::Cgroup => object.serialize_entry("cgroup", &place.cgroup.as_deref())?,
            By::Container => {
                object.serialize_entry("container", &place.container.as_deref().map(Saved))?;
                // What is in no container is told from what nobody knows.
                object.serialize_entry("known", &(group.key != Key::UnknownContainer))?;
            }
        }
        object.serialize_entry("programs", &group.programs.len())?;
        object.serialize_entry("live_processes", &group.live)?;
        object.serialize_entry("ended_processes", &group.ended)?;
        object.serialize_entry("images", &group.images)?;
        object.serialize_entry("totals", &Saved(&group.values))?;
        object.serialize_entry("at_end_bytes", &group.at_end.0)?;
        object.serialize_entry("at_end_blocks", &group.at_end.1)?;
        object.serialize_entry("memory", &Saved(&group.memory))?;
        object.end()
    }
}

impl Serialize for Saved<'_, MemorySum> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let MemorySum { processes, unread, anonymous, grew, file, shared } = *self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("processes", &processes)?;
        object.serialize_entry("unread_processes", &unread)?;
        object.serialize_entry("anonymous", &anonymous)?;
        object.serialize_entry("grew", &grew)?;
        object.serialize_entry("file", &file)?;
        object.serialize_entry("shared", &shared)?;
        object.end()
    }
}

impl Serialize for Saved<'_, SeenHeap> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("kind", self.0.heap.name())?;
        if let Some(library) = self.0.heap.library() {
            object.serialize_entry("library", library)?;
        }
        object.serialize_entry("mode", words::mode(self.0.mode))?;
        object.serialize_entry("sampling", &self.0.sampling.as_ref().map(Saved))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Memory> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let memory = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("anonymous_begin", &memory.anonymous_begin)?;
        object.serialize_entry("anonymous_end", &memory.anonymous_end)?;
        object.serialize_entry("file", &memory.file)?;
        object.serialize_entry("shared", &memory.shared)?;
        object.serialize_entry("grew", &memory.grew())?;
        object.serialize_entry("recorded", &memory.recorded)?;
        object.serialize_entry("fresh", &memory.fresh)?;
        object.serialize_entry("unexplained", &(!memory.is_partial).then_some(memory.unexplained))?;
        object.serialize_entry("mapped_by_stacks", &(!memory.is_partial).then_some(memory.by_stacks))?;
        object.serialize_entry("explained", &(!memory.is_partial).then(|| memory.is_explained()))?;
        object.serialize_entry("goroutine_stacks", &memory.goroutine_stacks)?;
        object.serialize_entry("reasons", &Saved(&*memory.reasons))?;
        object.serialize_entry("as_of_seconds", &memory.as_of.map(|at| at.as_secs_f64()))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Reason> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        match self.0 {
            Reason::Grown(area, bytes) => {
                object.serialize_entry("kind", area.name())?;
                object.serialize_entry("bytes", bytes)?;
            }
            Reason::UntoldInGo(bytes) => {
                object.serialize_entry("kind", "go_untold")?;
                object.serialize_entry("bytes", bytes)?;
            }
            Reason::Allocator(name, file) => {
                object.serialize_entry("kind", "allocator")?;
                object.serialize_entry("name", name)?;
                object.serialize_entry("file", file)?;
            }
            Reason::Shadow(name, file) => {
                object.serialize_entry("kind", "shadow")?;
                object.serialize_entry("name", name)?;
                object.serialize_entry("file", file)?;
            }
            Reason::Runtime(runtime) => {
                object.serialize_entry("kind", "runtime")?;
                object.serialize_entry("name", runtime.name())?;
            }
            Reason::Children(number) => {
                object.serialize_entry("kind", "children")?;
                object.serialize_entry("number", number)?;
            }
        }
        object.serialize_entry("words", &words::reason(self.0))?;
        object.end()
    }
}
