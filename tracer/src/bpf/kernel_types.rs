//! Where fields lie in the running kernel's structures: as much of BTF (Documentation/bpf/btf.rst) as that takes. aya-obj
//! reads it too, but does not tell.

use std::fs;

use tracer_ebpf::{ReturnInstances, TaskFields, unwind::KernelMappings};

pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of a type's head: name, info, size or type.
const HEAD: usize = 12;
/// Bytes of a member of a structure: name, type, offset in bits.
const MEMBER: usize = 12;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const PROTOTYPE: u32 = 13;
/// Structures without a name inside of one another, at most.
const NESTING: usize = 4;

/// Where the running kernel keeps things.
#[derive(Default)]
pub(super) struct Layouts {
    /// What its return probes have taken out of return slots; all 0 when it does not say.
    pub(super) return_instances: ReturnInstances,
    /// Where it keeps what it knows of processes; all 0 when it does not say.
    pub(super) task_fields: TaskFields,
    /// What it knows of mappings; `None` when it does not say.
    pub(super) mappings: Option<KernelMappings>,
    /// The tracepoints of the lock of mappings.
    pub(super) lock: Option<LockPoints>,
}

/// What the tracepoints of the lock of mappings (`mmap_lock_acquire_returned`, `mmap_lock_released`) tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LockPoints {
    /// Which argument says whether it is taken to write.
    pub(super) writes: u32,
    /// Whether others pay for them: page faults take the lock, too (before Linux 6.4), or the path of a cgroup is made each time
    /// (before Linux 6.14).
    pub(super) cost_others: bool,
}

impl Layouts {
    /// Those of the running kernel. Its types are read once: they are megabytes.
    pub(super) fn read() -> Self {
        let text = fs::read(VMLINUX).unwrap_or_default();
        let types = Types::parse(&text);
        let return_instances = types.as_ref().and_then(return_instances);
        if return_instances.is_none() {
            tracing::debug!("{VMLINUX} does not tell where return addresses are that probes have taken away");
        }
        let task_fields = types.as_ref().and_then(task_fields);
        if task_fields.is_none() {
            tracing::debug!("{VMLINUX} does not tell where it keeps what it knows of processes");
        }
        let mappings = types.as_ref().and_then(mappings);
        if mappings.is_some_and(|mappings| mappings.mm_tree == 0) {
            tracing::debug!(
                "mappings are not looked up while they change: the kernel's tree of them has another shape"
            );
        }
        Self {
            return_instances: return_instances.unwrap_or_default(),
            task_fields: task_fields.unwrap_or_default(),
            mappings,
            lock: types.as_ref().and_then(lock_points),
        }
    }
}

fn lock_points(types: &Types<'_>) -> Option<LockPoints> {
    // Behind what the program was registered with: the address space, before Linux 6.14 the path of its cgroup, and whether to write.
    let arguments = types.arguments("btf_trace_mmap_lock_released")?;
    let area = types.structure("vm_area_struct")?;
    let has_lock = ["vm_lock", "vm_lock_seq", "vm_refcnt"].iter().any(|member| types.offset(area, member).is_some());
    let writes = u32::try_from(arguments.checked_sub(2)?).ok()?;
    Some(LockPoints { writes, cost_others: !has_lock || writes > 1 }).filter(|points| (1..=2).contains(&points.writes))
}

fn return_instances(types: &Types<'_>) -> Option<ReturnInstances> {
    let instance = types.structure("return_instance")?;
    Some(ReturnInstances {
        utask: types.offset(types.structure("task_struct")?, "utask")?,
        first: types.offset(types.structure("uprobe_task")?, "return_instances")?,
        slot: types.offset(instance, "stack")?,
        original: types.offset(instance, "orig_ret_vaddr")?,
        next: types.offset(instance, "next")?,
    })
}

fn task_fields(types: &Types<'_>) -> Option<TaskFields> {
    let task = types.structure("task_struct")?;
    // 0, where one of several that lead to something is not known.
    let together = |fields: &[Option<u32>]| fields.iter().copied().collect::<Option<Vec<u32>>>().unwrap_or_default();
    let whose = together(&[types.offset(task, "cred"), types.member("cred", "euid")]);
    let pointer = size_of::<u64>() as u32;
    let of_memory = types.enumerator("memory_cgrp_id").and_then(|nth| nth.checked_mul(pointer));
    let of_memory = types.member("css_set", "subsys").zip(of_memory).and_then(|(all, own)| all.checked_add(own));
    let placed = together(&[
        types.offset(task, "cgroups"),
        of_memory,
        types.member("cgroup_subsys_state", "cgroup"),
        types.member("cgroup", "kn"),
        types.member("kernfs_node", "id"),
    ]);
    let nth = |of: &[u32], nth: usize| of.get(nth).copied().unwrap_or(0);
    Some(TaskFields {
        signal: types.offset(task, "signal")?,
        live: types.member("signal_struct", "live")?,
        signal_flags: types.member("signal_struct", "flags").unwrap_or(0),
        exit_code: types.offset(task, "exit_code")?,
        mm: types.offset(task, "mm")?,
        tgid: types.offset(task, "tgid")?,
        ran: types.within("task_struct", "se", "sched_entity", "sum_exec_runtime").unwrap_or(0),
        others_ran: types.member("signal_struct", "sum_sched_runtime").unwrap_or(0),
        cred: nth(&whose, 0),
        user: nth(&whose, 1),
        cgroups: nth(&placed, 0),
        of_memory: nth(&placed, 1),
        cgroup: nth(&placed, 2),
        node: nth(&placed, 3),
        node_number: nth(&placed, 4),
    })
}

fn mappings(types: &Types<'_>) -> Option<KernelMappings> {
    let at = |structure, member| types.member(structure, member);
    Some(KernelMappings {
        task_mm: at("task_struct", "mm")?,
        mm_xol_area: types.within("mm_struct", "uprobes_state", "uprobes_state", "xol_area")?,
        xol_address: at("xol_area", "vaddr")?,
        area_start: at("vm_area_struct", "vm_start")?,
        area_end: at("vm_area_struct", "vm_end")?,
        area_page: at("vm_area_struct", "vm_pgoff")?,
        area_flags: at("vm_area_struct", "vm_flags")?,
        area_operations: at("vm_area_struct", "vm_ops")?,
        area_file: at("vm_area_struct", "vm_file")?,
        area_mm: at("vm_area_struct", "vm_mm")?,
        file_inode: at("file", "f_inode")?,
        inode_number: at("inode", "i_ino")?,
        inode_generation: at("inode", "i_generation")?,
        inode_super: at("inode", "i_sb")?,
        super_device: at("super_block", "s_dev")?,
        super_magic: at("super_block", "s_magic").unwrap_or(0),
        mm_tree: types
            .within("mm_struct", "mm_mt", "maple_tree", "ma_root")
            .filter(|_| has_known_nodes(types))
            .unwrap_or(0),
        mm_changes: at("mm_struct", "mm_lock_seq").unwrap_or(0),
        mm_program: at("mm_struct", "exe_file").unwrap_or(0),
        mm_start_stack: at("mm_struct", "start_stack").unwrap_or(0),
        wanted_length: at("vm_unmapped_area_info", "length").unwrap_or(0),
        mm_break: at("mm_struct", "brk").unwrap_or(0),
        area_lock: at("vm_area_struct", "vm_lock_seq").unwrap_or(0),
        replaces_late: u32::from(types.structure("vma_munmap_struct").is_some()),
    })
}

/// Whether the nodes of trees of mappings are those that the BPF programs can read (`descend` there).
fn has_known_nodes(types: &Types<'_>) -> bool {
    [
        ("maple_range_64", "pivot", 8),
        ("maple_range_64", "slot", 128),
        ("maple_range_64", "meta", 248),
        ("maple_arange_64", "pivot", 8),
        ("maple_arange_64", "slot", 80),
        ("maple_arange_64", "meta", 240),
        ("maple_metadata", "end", 0),
    ]
    .into_iter()
    .all(|(node, member, expected)| {
        types.structure(node).and_then(|node| types.offset(node, member)).is_some_and(|offset| offset == expected)
    })
}

/// The types of a kernel.
struct Types<'a> {
    strings: &'a [u8],
    /// From each one's head on; type 1 is the first.
    types: Vec<&'a [u8]>,
}

impl<'a> Types<'a> {
    /// `None` when it is no BTF, or has types of unknown length.
    fn parse(text: &'a [u8]) -> Option<Self> {
        if text.first_chunk().map(|magic| u16::from_ne_bytes(*magic)) != Some(MAGIC) {
            return None;
        }
        let body = text.get(number(text, 4)? as usize..)?;
        let part = |at: usize| {
            let (start, size) = (number(text, at)? as usize, number(text, at + 4)? as usize);
            body.get(start..start.checked_add(size)?)
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            types.push(rest);
            let (kind, count) = kind(rest)?;
            rest = rest.get(HEAD + tail(kind, count)?..)?;
        }
        Some(Self { strings, types })
    }

    /// The structure of that name.
    fn structure(&self, name: &str) -> Option<&'a [u8]> {
        self.types.iter().copied().find(|head| {
            kind(head).is_some_and(|(kind, _)| kind == STRUCT)
                && number(head, 0).is_some_and(|at| self.is_named(at, name))
        })
    }

    /// How many arguments the functions take that a type of that name points to.
    fn arguments(&self, name: &str) -> Option<usize> {
        let definition = self.types.iter().copied().find(|head| {
            kind(head).is_some_and(|(kind, _)| kind == TYPEDEF)
                && number(head, 0).is_some_and(|at| self.is_named(at, name))
        })?;
        let behind = |head: &[u8]| self.types.get((number(head, 8)? as usize).checked_sub(1)?).copied();
        let prototype = behind(behind(definition)?)?;
        kind(prototype).filter(|(kind, _)| *kind == PROTOTYPE).map(|(_, count)| count)
    }

    /// The number of a name that an enumeration has.
    fn enumerator(&self, name: &str) -> Option<u32> {
        self.types.iter().copied().filter_map(|head| Some((head, kind(head)?))).find_map(|(head, (kind, count))| {
            let names = (kind == ENUM).then(|| head.get(HEAD..))??.chunks_exact(8).take(count);
            names.filter(|one| number(one, 0).is_some_and(|at| self.is_named(at, name))).find_map(|one| number(one, 4))
        })
    }

    /// Offset of a member of the structure of that name, bytes.
    fn member(&self, structure: &str, member: &str) -> Option<u32> {
        self.offset(self.structure(structure)?, member)
    }

    /// The same of a member of a structure, `inner`, that is itself a member.
    fn within(&self, structure: &str, member: &str, inner: &str, field: &str) -> Option<u32> {
        self.member(structure, member)?.checked_add(self.member(inner, field)?)
    }

    /// Offset of a member of a structure, bytes.
    fn offset(&self, structure: &[u8], member: &str) -> Option<u32> {
        self.offset_within(structure, member, NESTING)
    }

    fn offset_within(&self, structure: &[u8], name: &str, nesting: usize) -> Option<u32> {
        let (STRUCT | UNION, count) = kind(structure)? else { return None };
        // With bit fields in it, the upper byte is a width.
        let mask = if number(structure, 4)? >> 31 == 0 { u32::MAX } else { 0x00ff_ffff };
        structure.get(HEAD..)?.chunks_exact(MEMBER).take(count).find_map(|member| {
            let bytes = (number(member, 8)? & mask) / 8;
            let member_name = number(member, 0)?;
            if self.is_named(member_name, name) {
                return Some(bytes);
            }
            if !self.is_named(member_name, "") || nesting == 0 {
                return None;
            }
            let inner = self.types.get((number(member, 4)? as usize).checked_sub(1)?)?;
            bytes.checked_add(self.offset_within(inner, name, nesting - 1)?)
        })
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let found = self.strings.get(at as usize..).and_then(|text| text.get(..=name.len()));
        found.is_some_and(|found| found.split_last() == Some((&0, name.as_bytes())))
    }
}

/// Kind of a type and number of its members.
fn kind(head: &[u8]) -> Option<(u32, usize)> {
    let info = number(head, 4)?;
    Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
}

/// Bytes that follow the head of a type.
fn tail(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward declaration, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        STRUCT | UNION => MEMBER * count,
        // Enumeration, prototype of a function.
        ENUM | PROTOTYPE => 8 * count,
        // Section of data, enumeration of 64 bits.
        15 | 19 => 12 * count,
        _ => return None,
    })
}

fn number(text: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*text.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of a structure "outer" { int a; struct { int b; int c : 3; }; } with an unknown type's kind at the end, if any.
    fn outer(last: Option<u32>) -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0";
        let mut types: Vec<u32> = vec![0, 1 << 24, 4, 32];
        types.extend([0, 1 << 31 | STRUCT << 24 | 2, 8, 9, 1, 0, 11, 1, 3 << 24 | 32]);
        types.extend([1, STRUCT << 24 | 2, 16, 7, 1, 0, 0, 2, 64]);
        types.extend(last.map(|kind| [0, kind << 24, 0]).into_iter().flatten());
        let size = 4 * types.len() as u32;
        let head = [u32::from(MAGIC) | 1 << 16, 24, 0, size, size, strings.len() as u32];
        let words = head.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
        words.chain(*strings).collect()
    }

    fn offset(text: &[u8], structure: &str, member: &str) -> Option<u32> {
        let types = Types::parse(text)?;
        types.offset(types.structure(structure)?, member)
    }

    #[test]
    fn members_are_found_by_name_in_structures_without_one_too() {
        let text = outer(None);
        for (structure, member, expected) in [
            ("outer", "a", Some(0)),
            ("outer", "b", Some(8)),
            ("outer", "c", Some(12)),
            ("outer", "d", None),
            ("oute", "a", None),
            ("outer", "ou", None),
        ] {
            assert_eq!(offset(&text, structure, member), expected, "{structure}.{member}");
        }
        assert_eq!(offset(&outer(Some(18)), "outer", "b"), Some(8));
        assert_eq!(offset(&outer(Some(30)), "outer", "b"), None, "a kind of unknown length");
    }

    #[test]
    fn text_that_ends_or_is_wrong_anywhere_is_survived() {
        let text = outer(None);
        for end in 0..text.len() {
            assert_eq!(offset(&text[..end], "outer", "d"), None);
        }
        for at in 0..text.len() {
            let mut wrong = text.clone();
            for value in [0, 1, 0x7f, 0xff] {
                wrong[at] = value;
                // Whatever it says.
                let _ = offset(&wrong, "outer", "c");
            }
        }
    }

    #[test]
    fn the_running_kernel_says_where_mappings_are() {
        if !fs::exists(VMLINUX).unwrap() {
            return;
        }
        let at = Layouts::read().mappings.unwrap();
        assert_eq!(at.area_end, at.area_start + 8, "vm_start and vm_end are neighbours from 5.17 to 6.18: {at:?}");
        let pointers =
            [at.task_mm, at.mm_xol_area, at.area_file, at.area_mm, at.file_inode, at.inode_super, at.mm_tree];
        assert!(pointers.iter().all(|offset| offset % 8 == 0), "{at:?}");
        assert_ne!(at.wanted_length, 0);
    }

    #[test]
    fn the_running_kernel_says_what_the_lock_of_mappings_tells() {
        if !fs::exists(VMLINUX).unwrap() {
            return;
        }
        let lock = Layouts::read().lock.unwrap();
        assert!((1..=2).contains(&lock.writes), "{lock:?}");
        let text = fs::read(VMLINUX).unwrap();
        let types = Types::parse(&text).unwrap();
        assert_eq!(types.arguments("btf_trace_vm_unmapped_area"), Some(3), "the data, the address and what was wanted");
        assert_eq!((types.arguments("mm_struct"), types.arguments("no such type")), (None, None));
    }

    #[test]
    fn the_running_kernel_says_where_return_addresses_are() {
        if !fs::exists(VMLINUX).unwrap() {
            return;
        }
        let at = Layouts::read().return_instances;
        let all = [at.utask, at.first, at.slot, at.original, at.next];
        assert!(all.iter().all(|offset| *offset > 0 && offset % 8 == 0), "{at:?}");
        assert_eq!(at.original, at.slot + 8, "stack and orig_ret_vaddr are neighbours from 5.17 to 6.18: {at:?}");
    }
}
