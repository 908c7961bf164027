//! Each kind of code that the analysis must know, and each trap.

use tracer_ebpf::exit::{Exit, Frame, Outcome, Place};

use super::{Analysis, ExitSite, Exits, Image, Known, Pointer, Tells, Unproven, exits};
use crate::{
    probe::family::Shape,
    unwind::{Frames, Sections},
};

/// Where the function is that is looked at.
const START: u64 = 0x1000;
/// A function that returns; one of the allocator's own; a stub for what the pointer at 0x2000 goes to, which is memset.
const OTHER: u64 = 0x1080;
const FAMILY: u64 = 0x1090;
const MEMSET: u64 = 0x10a0;
/// A function that never returns.
const ABORT: u64 = 0x10b0;

const RAX: Place = Place::Register { register: 0, displacement: 0 };
const RBX: Place = Place::Register { register: 3, displacement: 0 };
const RDI: Place = Place::Register { register: 7, displacement: 0 };

/// Code in pieces: bytes, and calls or jumps to an address.
enum Part<'a> {
    Code(&'a [u8]),
    Call(u64),
    Jump(u64),
}

use Part::{Call, Code, Jump};

fn assemble(parts: &[Part<'_>]) -> Vec<u8> {
    let mut text = Vec::new();
    let near = |text: &mut Vec<u8>, opcode: u8, target: u64| {
        text.push(opcode);
        let next = START + text.len() as u64 + 4;
        text.extend((target.wrapping_sub(next) as u32).to_le_bytes());
    };
    for part in parts {
        match part {
            Code(bytes) => text.extend(*bytes),
            Call(target) => near(&mut text, 0xe8, *target),
            Jump(target) => near(&mut text, 0xe9, *target),
        }
    }
    for (address, bytes) in [
        (OTHER, &[0xc3][..]),
        (FAMILY, &[0xc3]),
        (MEMSET, &[0xff, 0x25, 0x5a, 0x0f, 0, 0]),
        (ABORT, &[0x0f, 0x0b]),
        (0x10c0, &[]),
    ] {
        text.resize((address - START) as usize, 0xcc);
        text.extend(bytes);
    }
    text
}

/// What `f` makes of an analysis of the function whose entry is probed `entry` bytes behind its start.
fn analysed<T>(entry: u64, parts: &[Part<'_>], f: impl FnOnce(&mut Analysis<'_>) -> T) -> T {
    let text = assemble(parts);
    let code = |address: u64| text.get(usize::try_from(address.checked_sub(START)?).ok()?..);
    let (entries, frames) = ([START + entry, FAMILY], Frames::of(&Sections::default()));
    f(&mut Analysis::new(Image {
        code: &code,
        pointer: &|slot| if slot == 0x2000 { Pointer::Known(Known::ReturnsFirst) } else { Pointer::Elsewhere },
        known: &|_| None,
        family: &[START, FAMILY],
        entries: &entries,
        frames: &frames,
    }))
}

fn exits_of(entry: u64, shape: Shape, parts: &[Part<'_>]) -> Exits {
    analysed(entry, parts, |analysis| exits(analysis, START + entry, shape))
}

/// Sites as bytes behind the start, frame, outcome, and whether they are emulated.
fn check(what: &str, shape: Shape, parts: &[Part<'_>], expected: &[(u64, u32, Outcome, bool)]) {
    check_from(0, what, shape, parts, expected);
}

fn check_from(entry: u64, what: &str, shape: Shape, parts: &[Part<'_>], expected: &[(u64, u32, Outcome, bool)]) {
    let site = |(at, offset, outcome, emulated): &(u64, u32, Outcome, bool)| ExitSite {
        address: START + at,
        exit: Exit { frame: Frame { from_frame_pointer: false, offset: *offset }, outcome: *outcome },
        emulated: *emulated,
    };
    let Exits::Proven(sites, tells) = exits_of(entry, shape, parts) else { panic!("{what}: not proven") };
    assert_eq!(sites, expected.iter().map(site).collect::<Vec<ExitSite>>(), "{what}");
    assert_eq!(tells == Tells::Returned, !shape.stores(), "{what}");
}

fn branch(condition: u8, taken: Place, not_taken: Place) -> Outcome {
    Outcome::Branch { condition, taken, not_taken }
}

const NULL: Place = Place::Constant(0);
const PUSH_RBX: &[u8] = &[0x53];
const TEST_RAX: &[u8] = &[0x48, 0x85, 0xc0];
const POP_RET: &[u8] = &[0x5b, 0xc3];

#[test]
fn a_jump_knows_what_is_on_its_two_ways() {
    let code = [
        Code(PUSH_RBX),
        Call(OTHER),
        Code(TEST_RAX),
        Code(&[0x74, 2]),
        Code(POP_RET),
        Code(&[0x31, 0xc0]),
        Code(POP_RET),
    ];
    check("je to xor eax,eax", Shape::Malloc, &code, &[(9, 16, branch(4, NULL, RAX), true)]);
}

#[test]
fn a_way_that_never_returns_needs_no_outcome() {
    let code = [Code(PUSH_RBX), Call(OTHER), Code(TEST_RAX), Code(&[0x75, 5]), Call(ABORT), Code(POP_RET)];
    check("jne over abort", Shape::Malloc, &code, &[(9, 16, Outcome::One(RAX), true)]);
}

#[test]
fn the_way_back_of_a_loop_is_none() {
    // mov ecx,9; dec ecx; jne to the dec.
    let code = [Code(PUSH_RBX), Call(OTHER), Code(&[0xb9, 9, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc]), Code(POP_RET)];
    check("a loop", Shape::Malloc, &code, &[(13, 16, branch(5, Place::Unknown, RAX), true)]);
}

#[test]
fn what_ends_in_memset_returns_its_argument() {
    let code = [Code(PUSH_RBX), Call(OTHER), Code(&[0x48, 0x89, 0xc7, 0x5b]), Jump(MEMSET)];
    check("mov rdi,rax; pop; jmp memset", Shape::Calloc, &code, &[(10, 8, Outcome::One(RDI), true)]);
    let code = [Code(PUSH_RBX), Call(OTHER), Code(&[0x48, 0x89, 0xc7]), Call(MEMSET), Code(POP_RET)];
    check("mov rdi,rax; call memset; pop; ret", Shape::Calloc, &code, &[(9, 16, Outcome::One(RDI), true)]);
}

/// posix_memalign, as most compilers make it: `between` stands between the jump and the store, which is `store`, `behind` after that,
/// before `mov eax,0` as `returned`, and `failed` says what is returned if there is no block.
struct PosixMemalign<'a> {
    between: &'a [u8],
    store: &'a [u8],
    behind: &'a [u8],
    failed: &'a [u8],
}

/// mov [rbx],rax; xor eax,eax; mov eax,12
const STORE: &[u8] = &[0x48, 0x89, 0x03];
const XOR_EAX: &[u8] = &[0x31, 0xc0];
const MOV_EAX_12: &[u8] = &[0xb8, 12, 0, 0, 0];
const PLAIN: PosixMemalign<'_> = PosixMemalign { between: &[], store: STORE, behind: XOR_EAX, failed: MOV_EAX_12 };

impl PosixMemalign<'_> {
    fn exits(&self) -> Exits {
        let parts = [
            // push rbx; mov rbx,rdi
            Code(PUSH_RBX),
            Code(&[0x48, 0x89, 0xfb]),
            Call(OTHER),
            Code(TEST_RAX),
            Code(&[0x74, (self.between.len() + self.store.len() + self.behind.len() + 2) as u8]),
            Code(self.between),
            Code(self.store),
            Code(self.behind),
            Code(POP_RET),
            Code(self.failed),
            Code(POP_RET),
        ];
        exits_of(0, Shape::PosixMemalign, &parts)
    }
}

fn stored(sites: &[(u64, u32, Outcome)]) -> Exits {
    let site = |(at, offset, outcome): &(u64, u32, Outcome)| ExitSite {
        address: START + at,
        exit: Exit { frame: Frame { from_frame_pointer: false, offset: *offset }, outcome: *outcome },
        emulated: true,
    };
    Exits::Proven(sites.iter().map(site).collect(), Tells::Stored)
}

#[test]
fn a_block_that_is_stored_is_seen_at_the_jump_before() {
    let rcx = Place::Register { register: 1, displacement: 0 };
    assert_eq!(PLAIN.exits(), stored(&[(12, 16, branch(4, NULL, RAX))]));
    // And then mov [rbx],rcx.
    let behind = &[0x48, 0x89, 0x0b, 0x31, 0xc0];
    assert_eq!(PosixMemalign { behind, ..PLAIN }.exits(), stored(&[(12, 16, branch(4, NULL, rcx))]));
}

#[test]
fn both_ways_may_end_in_the_same_code_behind_the_store() {
    // As glibc has it: push rbx; mov rbx,rdi; call; mov rdx,rax; mov eax,12; test rdx,rdx; je to the pop; mov [rbx],rdx; xor eax,eax.
    let rdx = Place::Register { register: 2, displacement: 0 };
    let parts = [
        Code(PUSH_RBX),
        Code(&[0x48, 0x89, 0xfb]),
        Call(OTHER),
        Code(&[0x48, 0x89, 0xc2]),
        Code(MOV_EAX_12),
        Code(&[0x48, 0x85, 0xd2]),
        Code(&[0x74, 5]),
        Code(&[0x48, 0x89, 0x13]),
        Code(XOR_EAX),
        Code(POP_RET),
    ];
    assert_eq!(exits_of(0, Shape::PosixMemalign, &parts), stored(&[(20, 16, branch(4, NULL, rdx))]));
}

#[test]
fn code_behind_the_store_is_no_exit() {
    // push rbx; mov rbx,rdi; test rsi,rsi; mov r12d,12; je to the end; call; test rax,rax; je to the end; mov [rbx],rax; xor r12d,r12d; end:
    // mov eax,r12d; pop; ret. The end is passed by calls that have stored their block, so the first jump has to be seen.
    let parts = [
        Code(PUSH_RBX),
        Code(&[0x48, 0x89, 0xfb]),
        Code(&[0x48, 0x85, 0xf6]),
        Code(&[0x41, 0xbc, 12, 0, 0, 0]),
        Code(&[0x74, 16]),
        Call(OTHER),
        Code(TEST_RAX),
        Code(&[0x74, 6]),
        Code(STORE),
        Code(&[0x45, 0x31, 0xe4]),
        Code(&[0x44, 0x89, 0xe0]),
        Code(POP_RET),
    ];
    let sites = [(13, 16, branch(4, NULL, Place::Unknown)), (23, 16, branch(4, NULL, RAX))];
    assert_eq!(exits_of(0, Shape::PosixMemalign, &parts), stored(&sites));
}

#[test]
fn a_block_that_may_not_be_the_one_that_is_stored_counts_once_it_is() {
    for (what, code) in [
        ("failure is a number that is not known: mov eax,[rcx]", PosixMemalign { failed: &[0x8b, 0x01], ..PLAIN }),
        ("failure may be told as success: xor eax,eax", PosixMemalign { failed: XOR_EAX, ..PLAIN }),
        ("success may be told as failure: mov eax,12", PosixMemalign { behind: MOV_EAX_12, ..PLAIN }),
        ("what it points to is another: mov rbx,rcx", PosixMemalign { between: &[0x48, 0x89, 0xcb], ..PLAIN }),
        (
            "on one way it is another: test ecx,ecx; je over; mov rbx,rcx",
            PosixMemalign { between: &[0x85, 0xc9, 0x74, 3, 0x48, 0x89, 0xcb], ..PLAIN },
        ),
        ("it is not kept by calls: mov [rdi],rax", PosixMemalign { store: &[0x48, 0x89, 0x07], ..PLAIN }),
        ("something else is stored: mov [rcx],rdx", PosixMemalign { behind: &[0x48, 0x89, 0x11, 0x31, 0xc0], ..PLAIN }),
        ("it is another register's: mov rax,[rcx]", PosixMemalign { between: &[0x48, 0x8b, 0x01], ..PLAIN }),
        ("it is stored elsewhere: mov [rbx+8],rax", PosixMemalign { store: &[0x48, 0x89, 0x43, 8], ..PLAIN }),
        ("nobody knows where: mov [rbx+rcx],rax", PosixMemalign { store: &[0x48, 0x89, 0x04, 0x0b], ..PLAIN }),
        ("in another segment: mov fs:[rbx],rax", PosixMemalign { store: &[0x64, 0x48, 0x89, 0x03], ..PLAIN }),
        ("it is half of it: mov [rbx],eax", PosixMemalign { store: &[0x89, 0x03], ..PLAIN }),
    ] {
        let exits = code.exits();
        assert!(!exits.tell_stored(), "{what}: {exits:?}");
    }
    let status = PosixMemalign { behind: &[0x48, 0x89, 0x11, 0x31, 0xc0], ..PLAIN }.exits();
    let Exits::Proven(sites, Tells::Status) = status else { panic!("{status:?}") };
    let outcomes: Vec<Outcome> = sites.iter().map(|site| site.exit.outcome).collect();
    assert_eq!(outcomes, [Outcome::One(RAX), Outcome::One(Place::Constant(12))]);
}

#[test]
fn what_is_handed_out_is_told_in_code_of_its_own() {
    let site = ExitSite {
        address: START,
        exit: Exit { frame: Frame { from_frame_pointer: false, offset: 8 }, outcome: Outcome::One(NULL) },
        emulated: true,
    };
    for (passed, tells, agree) in [
        (Tells::Returned, Tells::Stored, false),
        (Tells::Status, Tells::Stored, false),
        (Tells::Stored, Tells::Stored, true),
        (Tells::Returned, Tells::Status, true),
        (Tells::Stored, Tells::Status, false),
        (Tells::Status, Tells::Returned, false),
    ] {
        let agreed = analysed(0, &[Code(PUSH_RBX), Code(POP_RET)], |analysis| {
            let graph = analysis.graph(START).unwrap();
            // Also where another function passes it in between.
            analysis.passes(&graph, passed);
            analysis.passes(&graph, tells);
            analysis.agree(&graph, tells, &[site])
        });
        assert_eq!(agreed.is_ok(), agree, "a site that tells what is {tells:?}, passed by what is {passed:?}");
    }
    let passing = analysed(0, &[Code(PUSH_RBX), Code(POP_RET)], |analysis| {
        let graph = analysis.graph(START).unwrap();
        analysis.agree(&graph, Tells::Stored, &[site]).unwrap();
        analysis.agree(&graph, Tells::Status, &[])
    });
    assert_eq!(passing, Err(Unproven::Shared(START)));
}

#[test]
fn an_entry_is_no_exit() {
    let code = [Code(&[0x48, 0x85, 0xff, 0x74, 6]), Call(OTHER), Code(&[0xc3, 0x31, 0xc0, 0xc3])];
    let expected = [(10, 8, Outcome::One(RAX), false), (11, 8, Outcome::One(NULL), false)];
    check_from(3, "test rdi,rdi; je", Shape::Malloc, &code, &expected);
}

#[test]
fn a_slot_on_the_stack_is_the_functions_own() {
    let spill = [0x48, 0x89, 0x44, 0x24, 8];
    let end = [0x48, 0x8b, 0x44, 0x24, 8, 0x48, 0x83, 0xc4, 16, 0x5b, 0xc3];
    let code = [Code(PUSH_RBX), Code(&[0x48, 0x83, 0xec, 16]), Call(OTHER), Code(&spill), Call(OTHER), Code(&end)];
    check("spilled over a call", Shape::Malloc, &code, &[(15, 32, Outcome::One(Place::Stack(8)), true)]);
    // lea rdi,[rsp+8] before the call.
    let code = [
        Code(PUSH_RBX),
        Code(&[0x48, 0x83, 0xec, 16]),
        Call(OTHER),
        Code(&spill),
        Code(&[0x48, 0x8d, 0x7c, 0x24, 8]),
        Call(OTHER),
        Code(&end),
    ];
    check("its address is given away", Shape::Malloc, &code, &[(35, 8, Outcome::One(RAX), false)]);
}

#[test]
fn no_outcome_before_a_further_call_of_the_family() {
    let code = |callee| {
        [Code(PUSH_RBX), Call(OTHER), Code(&[0x48, 0x89, 0xc3]), Call(callee), Code(&[0x48, 0x89, 0xd8]), Code(POP_RET)]
    };
    check("other", Shape::Malloc, &code(OTHER), &[(9, 16, Outcome::One(RBX), true)]);
    check("family", Shape::Malloc, &code(FAMILY), &[(18, 8, Outcome::One(RAX), false)]);
}

#[test]
fn a_choice_between_two_is_not_known_before() {
    // cmovb rax,rbx
    let code = [Code(PUSH_RBX), Call(OTHER), Code(&[0x90, 0x48, 0x0f, 0x42, 0xc3]), Code(POP_RET)];
    check("cmov", Shape::Malloc, &code, &[(12, 8, Outcome::One(RAX), false)]);
}

#[test]
fn a_block_behind_its_header() {
    // call; nop; lea rax,[rax+16]
    let code = [Code(PUSH_RBX), Call(OTHER), Code(&[0x90, 0x48, 0x8d, 0x40, 0x10]), Code(POP_RET)];
    let place = Place::Register { register: 0, displacement: 16 };
    check("lea", Shape::Malloc, &code, &[(6, 16, Outcome::One(place), true)]);
    // Half of the register: add eax,16
    let code = [Code(PUSH_RBX), Call(OTHER), Code(&[0x90, 0x83, 0xc0, 0x10]), Code(POP_RET)];
    check("add eax", Shape::Malloc, &code, &[(11, 8, Outcome::One(RAX), false)]);
}

#[test]
fn what_cannot_be_proven_says_why() {
    for (what, code, why) in [
        ("jmp rax", &[Code(PUSH_RBX), Code(&[0x5b, 0xff, 0xe0])][..], Unproven::ComputedJump(START + 2)),
        (
            "jmp through a pointer to elsewhere",
            &[Code(PUSH_RBX), Code(&[0x5b, 0xff, 0x25, 0, 0, 0, 0])],
            Unproven::Leaves(START + 2),
        ),
        (
            "a return thunk",
            &[
                Code(PUSH_RBX),
                Code(&[0x5b, 0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9]),
                Code(&[0x48, 0x8d, 0x64, 0x24, 0x08, 0xc3]),
            ],
            Unproven::ComputedJump(START + 2),
        ),
        ("no instruction", &[Code(PUSH_RBX), Code(&[0x06])], Unproven::Unreadable(START + 1)),
        ("out of the file", &[Code(PUSH_RBX), Jump(0x9000)], Unproven::Unreadable(0x9000)),
        ("ret of something else", &[Code(PUSH_RBX), Code(&[0xc3])], Unproven::Frame(START + 1)),
    ] {
        assert_eq!(exits_of(0, Shape::Malloc, code), Exits::Unproven(why), "{what}");
    }
}

#[test]
fn much_code_is_bounded() {
    let text = [0x90].repeat(100_000);
    let code = |address: u64| text.get(usize::try_from(address).ok()?..);
    let frames = Frames::of(&Sections::default());
    let mut analysis = Analysis::new(Image {
        code: &code,
        pointer: &|_| Pointer::Elsewhere,
        known: &|_| None,
        family: &[0],
        entries: &[0],
        frames: &frames,
    });
    assert_eq!(exits(&mut analysis, 0, Shape::Malloc), Exits::Unproven(Unproven::TooLong));
}
