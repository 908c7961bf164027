//! What processes have mapped themselves, with names, and told from what allocators have mapped.

use std::cmp::Reverse;

use hashbrown::{HashMap, HashSet};

use super::{names::Names, processes::ByImage};
use crate::{
    collector::MappedSnapshot,
    event::Image,
    mapped::Owner,
    profile::{Frame, Frames, MappedStack, MappedValues, Mappings, Process},
};

/// What is known of mapped memory besides what was recorded of it.
#[derive(Default)]
pub struct MappedFacts {
    /// How many bytes are resident, by image and by whom; an image is missing if that is not known.
    pub resident: HashMap<Image, HashMap<Owner, u64>>,
    /// The same of what is only reserved.
    pub reserved: HashMap<Image, HashMap<Owner, u64>>,
    /// Paths of the files whose allocators are recorded.
    pub allocators: HashMap<Image, Vec<String>>,
}

/// The stacks that have mapped something, those first that have most in memory. `of_go`: images whose Go heap is told of. What ended processes had mapped is
/// nobody's any more where `others_live`.
pub(super) fn mappings(
    snapshots: Vec<MappedSnapshot>,
    facts: &MappedFacts,
    (names, processes): (&Names, &[Process]),
    of_go: &HashSet<u32>,
    others_live: bool,
) -> Mappings {
    let by_image = ByImage::new(processes);
    let stack = |snapshot: MappedSnapshot| {
        let MappedSnapshot { pid, image, owner, mut values, oldest, trail, .. } = snapshot;
        let frames = names.of_trail(owner.stack, &trail);
        let allocators = facts.allocators.get(&image).map(Vec::as_slice).unwrap_or_default();
        let by_allocator =
            owner.by_allocator || is_in_allocator(&frames, allocators) || of_go.contains(&image.0) && is_in_go(&frames);
        let of = |all: &HashMap<Owner, u64>| all.get(&owner).copied().unwrap_or(0);
        values.reserved_resident_bytes = facts.reserved.get(&image).map_or(0, of);
        let resident = facts.resident.get(&image).map(|all| of(all).saturating_add(values.reserved_resident_bytes));
        let process = by_image.place(image).map(|place| &processes[place]);
        if others_live && process.is_some_and(|process| process.ended.is_some()) {
            (values.bytes, values.ranges, values.reserved_bytes, values.reserved_resident_bytes) = (0, 0, 0, 0);
        }
        let (pid, image) = process.map_or((pid, image.0), |process| (process.pid, process.image));
        MappedStack { pid, image, kind: owner.kind, by_allocator, frames, values, resident, oldest }
    };
    let mut stacks: Vec<MappedStack> = snapshots.into_iter().map(stack).collect();
    stacks.sort_by_key(|stack| {
        let MappedValues { bytes, mapped_bytes, reserved_bytes, .. } = stack.values;
        (Reverse((stack.memory(), bytes, mapped_bytes, reserved_bytes)), stack.image)
    });
    Mappings { stacks }
}

/// Whether the kernel was called by an allocator's library in no call of the program's: by a thread of its own, or when it frees. A C
/// library has more in it than that.
fn is_in_allocator(frames: &Frames, allocators: &[String]) -> bool {
    let is_library = |path: &&String| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.contains(".so") && !["libc.", "libc-", "ld-"].iter().any(|of_c| name.starts_with(of_c))
    };
    // The C library's own function comes first, if the allocator uses that.
    let mut modules = frames.iter().rev().map(|frame| frame.module.as_deref()).take(2);
    modules.any(|module| allocators.iter().filter(is_library).any(|path| Some(path.as_str()) == module))
}

/// Whether Go's runtime has mapped it for its heap and its books: by the functions that it has for that (runtime/mem.go).
fn is_in_go(frames: &Frames) -> bool {
    let is_memory = |frame: &Frame| {
        let function = frame.function.as_deref().unwrap_or_default();
        ["runtime.sysReserve", "runtime.sysAlloc", "runtime.sysMap"].iter().any(|begin| function.starts_with(begin))
    };
    frames.iter().any(is_memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(leaf_first: &[(&str, &str)]) -> Frames {
        let frame = |(function, module): &(&str, &str)| Frame {
            function: Some((*function).to_owned()),
            module: Some((*module).to_owned()),
            ..Frame::default()
        };
        leaf_first.iter().rev().map(frame).collect::<Vec<_>>().into()
    }

    #[test]
    fn libraries_of_allocators_are_told_from_the_c_library() {
        let allocators = ["/usr/lib/libjemalloc.so.2", "/usr/lib/libc.so.6", "/usr/bin/server"].map(str::to_owned);
        for (stack, expected) in [
            (&[("mmap", "/usr/lib/libc.so.6"), ("extent_alloc", "/usr/lib/libjemalloc.so.2")][..], true),
            (&[("raw", "/usr/lib/libjemalloc.so.2"), ("main", "/usr/bin/server")], true),
            (&[("mmap", "/usr/lib/libc.so.6"), ("pthread_create", "/usr/lib/libc.so.6")], false),
            (&[("mmap", "/usr/lib/libc.so.6"), ("main", "/usr/bin/server")], false),
            (&[("mmap", "/usr/lib/libc.so.6"), ("f", "/x.so"), ("background", "/usr/lib/libjemalloc.so.2")], false),
        ] {
            assert_eq!(is_in_allocator(&frames(stack), &allocators), expected, "{stack:?}");
        }
    }

    #[test]
    fn what_gos_runtime_maps_is_known_by_its_functions() {
        let runtime = [("runtime.mmap", "/go"), ("runtime.sysReserveOS", "/go"), ("runtime.mallocgc", "/go")];
        assert!(is_in_go(&frames(&runtime)));
        assert!(!is_in_go(&frames(&[("syscall.mmap", "/go"), ("main.buffer", "/go")])));
    }
}
