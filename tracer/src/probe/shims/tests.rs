//! Shims in code that is made for it, and what is found behind them.

use super::*;
use crate::probe::allocators::known;

const MOVE_AROUND: &[u8] = &[0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xc6];
const READS_FIRST: &[u8] = &[0x48, 0x89, 0xf8, 0xc3];
const READS_SECOND: &[u8] = &[0x48, 0x89, 0xf0, 0xc3];
const RETURNS: &[u8] = &[0x31, 0xff, 0xc3];
/// Where functions begin: at multiples of this.
const APART: usize = 0x40;

/// Code that calls or jumps (`opcode`) to the function of this number, of one that has this number, and what comes before and behind.
fn passing(own: usize, before: &[u8], opcode: u8, to: usize, behind: &[u8]) -> Vec<u8> {
    let from = own * APART + before.len() + 5;
    let relative = i32::try_from(to * APART).unwrap() - i32::try_from(from).unwrap();
    [before, &[opcode], &relative.to_le_bytes(), behind].concat()
}

/// Shapes and places of what is probed behind these shims, and what is not seen. `functions` lie in a row; shims are the first ones, by
/// what they do, and `called` is which calls which, beside that.
fn found(shims: &[&str], functions: &[Vec<u8>], called: &[(usize, usize)]) -> (Vec<(Shape, usize)>, Vec<&'static str>) {
    found_beside(shims, functions, called, &[])
}

/// The same where some of the functions are another allocator's, by name.
fn found_beside(
    shims: &[&str],
    functions: &[Vec<u8>],
    called: &[(usize, usize)],
    others: &[(&str, usize)],
) -> (Vec<(Shape, usize)>, Vec<&'static str>) {
    let mut image = vec![0xcc; APART * functions.len()];
    for (function, place) in functions.iter().zip(image.chunks_mut(APART)) {
        place[..function.len()].copy_from_slice(function);
    }
    // What tests read is there until they end.
    let image: &[u8] = image.leak();
    let mangled = |does: &&str| format!("_RNvCsfLfy6EI15iL_7___rustc{}___rust_{does}", does.len() + 7);
    let others = others.iter().map(|(name, index)| ((*name).to_owned(), *index));
    let accepted: Vec<Candidate> = shims
        .iter()
        .map(mangled)
        .zip(0..)
        .chain(others)
        .map(|(name, index)| {
            let known = known(name.as_bytes()).unwrap();
            let (address, size) = (0x1000 + (index * APART) as u64, APART as u64);
            Candidate { name, known, address, size, is_exported: false, chooses: false }
        })
        .collect();
    let code = |address: u64| image.get(usize::try_from(address.checked_sub(0x1000)?).ok()?..);
    let address = |index: &usize| 0x1000 + (index * APART) as u64;
    let calls = |targets: &[u64]| {
        let called = called.iter().map(|(from, to)| (address(from), address(to)));
        Some(called.filter(|(_, to)| targets.contains(to)).collect())
    };
    let function = |address: u64| {
        let start = address - address % APART as u64;
        Some(start..start + APART as u64)
    };
    // The pointer at 0x2000 leads to what frees in another file.
    let pointer = |slot| (slot == 0x2000).then_some(Pointer::Allocator { frees: true });
    let behind = behind(&accepted, code, calls, function, pointer);
    let place = |address: u64| usize::try_from(address - 0x1000).unwrap() / APART;
    let functions = behind.functions.iter().map(|one| (one.known.shape, place(one.address))).collect();
    (functions, behind.unseen)
}

#[test]
fn what_others_call_around_shims_is_probed() {
    let functions = [
        passing(0, MOVE_AROUND, 0xe9, 3, &[]),
        passing(1, &[], 0xe9, 4, &[]),
        // Comes to the same as the first whatever it does.
        passing(2, &[0x53], 0xe8, 3, &[0x48, 0x85, 0xc0, 0x74, 0x00, 0x5b, 0xc3]),
        READS_SECOND.to_vec(),
        READS_FIRST.to_vec(),
    ];
    let shims = ["alloc", "dealloc", "alloc_zeroed"];
    assert_eq!(found(&shims, &functions, &[(9, 3), (9, 4)]), (vec![(Shape::Memalign, 3), (Shape::Free, 4)], vec![]));
    assert_eq!(found(&shims, &functions, &[]), (vec![], vec![]), "nobody goes around them");
    assert_eq!(found(&shims, &functions, &[(2, 3), (3, 4)]), (vec![], vec![]), "they call each other");
}

#[test]
fn an_argument_that_nobody_need_pass_is_told() {
    let functions =
        [passing(0, MOVE_AROUND, 0xe9, 2, &[]), passing(1, &[], 0xe9, 3, &[]), READS_SECOND.to_vec(), RETURNS.to_vec()];
    let expected = (vec![(Shape::Memalign, 2)], vec!["dealloc"]);
    assert_eq!(found(&["alloc", "dealloc"], &functions, &[(9, 2), (9, 3)]), expected);
}

#[test]
fn a_shim_that_has_the_allocator_in_it_is_told() {
    // Adds to a word of the file's.
    let adds = [&[0xb8, 0x10, 0, 0, 0][..], &[0xf0, 0x48, 0x0f, 0xc1, 0x05, 0, 1, 0, 0], &[0xc3]].concat();
    let functions = [adds, passing(1, &[], 0xe9, 2, &[]), READS_FIRST.to_vec()];
    assert_eq!(found(&["alloc", "dealloc"], &functions, &[]), (vec![], vec!["alloc"]));
}

#[test]
fn a_wrapper_is_told_by_what_it_calls() {
    // Adds to a word of the file's.
    let adds = &[0xf0, 0x48, 0x01, 0x3d, 0, 1, 0, 0][..];
    let own = [adds, &[0xc3]].concat();
    // Only where the size is not 0: test edi, edi; je over the jump.
    let unless = |rest: &[u8]| passing(1, &[0x85, 0xff, 0x74, 0x05], 0xe9, 3, rest);
    let malloc = passing(0, adds, 0xe9, 2, &[]);
    // jmp [rip + x] to the pointer at 0x2000.
    let elsewhere = [adds, &[0xff, 0x25], &(0x2000i32 - (0x1040 + 14)).to_le_bytes()].concat();
    let libc = [("malloc", 2), ("free", 3)];
    let shims = ["alloc", "dealloc"];
    for (what, free, expected) in [
        ("a wrapper", passing(1, adds, 0xe9, 3, &[]), vec![]),
        ("one of another file's", elsewhere, vec![]),
        ("a pool", own.clone(), vec!["dealloc"]),
        ("a pool of small ones", unless(&own), vec!["dealloc"]),
        ("an arena that frees nothing", unless(&[0xc3]), vec!["dealloc"]),
        (
            "a wrapper that asks whether it is of no bytes",
            passing(1, &[0x48, 0x85, 0xf6, 0x74, 0x05], 0xe9, 3, &[0xc3]),
            vec![],
        ),
        ("what frees by allocating", passing(1, adds, 0xe9, 2, &[]), vec!["dealloc"]),
    ] {
        let functions = [malloc.clone(), free, READS_FIRST.to_vec(), RETURNS.to_vec()];
        assert_eq!(found_beside(&shims, &functions, &[], &libc), (vec![], expected), "{what}");
    }
    for (what, first, expected) in
        [("a wrapper, dealloc inlined", malloc, vec![]), ("a pool, dealloc inlined", own, vec!["dealloc", "alloc"])]
    {
        let functions = [first, vec![0xc3], READS_FIRST.to_vec(), RETURNS.to_vec()];
        assert_eq!(found_beside(&shims[..1], &functions, &[], &libc), (vec![], expected), "{what}");
    }
}

#[test]
fn arguments_are_followed_through_calls_and_on_all_ways() {
    for (what, code, expected) in [
        ("test esi, esi; je; ret; mov rax, rdi", &[0x85, 0xf6, 0x74, 1, 0xc3, 0x48, 0x89, 0xf8, 0xc3][..], true),
        ("xor edi, edi; mov rax, rdi", &[0x31, 0xff, 0x48, 0x89, 0xf8, 0xc3], false),
        ("call +0, which is mov rax, rdi", &[0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xf8, 0xc3], true),
        ("call rax; mov rax, rdi", &[0xff, 0xd0, 0x48, 0x89, 0xf8, 0xc3], false),
        ("ret", &[0xc3], false),
    ] {
        let read = reads(0, Register::RDI, |address| code.get(usize::try_from(address).ok()?..));
        assert_eq!(read, expected, "{what}");
    }
}

#[test]
fn a_shim_may_call_where_it_could_jump() {
    for (before, behind, expected) in [
        // push rax; call; pop rcx; ret
        (&[0x50][..], &[0x59, 0xc3][..], Some(true)),
        // call; call: what comes before is not known to leave arguments as they are.
        (&[0x50, 0xe8, 0, 1, 0, 0], &[0x59, 0xc3], Some(false)),
        // call; mov rax, rbx; ret
        (&[0x50], &[0x48, 0x89, 0xd8, 0xc3], None),
        // mov rdi, [rip]; call; ret
        (&[0x48, 0x8b, 0x3d, 0, 0, 0, 0], &[0xc3], None),
    ] {
        let code = passing(0, before, 0xe8, 2, behind);
        let onward = onward(0, APART as u64, |_| Some(&code));
        assert_eq!(onward.map(|onward| onward.arguments.is_some()), expected, "{before:x?}");
    }
}
