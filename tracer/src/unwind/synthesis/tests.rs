//! Functions of a few instructions, and the rules that they prove.

use tracer_ebpf::unwind::{fp, kind, rule};

use super::{Undescribed, synthesize};

/// Where the code is.
const CODE: u64 = 0x1000;

const NONE: u64 = rule(kind::NONE, 0, 0, 0);
const STOP: u64 = rule(kind::STOP, 0, 0, 0);

/// By the stack pointer; the frame pointer is in its register.
const fn sp(offset: i32) -> u64 {
    rule(kind::SP, fp::SAME, 0, offset)
}

/// By the stack pointer; the frame pointer was saved.
const fn saved(offset: i32, at: i16) -> u64 {
    rule(kind::SP, fp::AT_CFA, at, offset)
}

/// By the frame pointer.
const STANDARD: u64 = rule(kind::FP, fp::AT_CFA, -16, 16);

fn rules(code: &[u8], functions: &[u64], entry: u64) -> Vec<(u64, u64)> {
    let loaded = |address: u64| code.get(usize::try_from(address.checked_sub(CODE)?).ok()?..);
    let synthesized = synthesize(&Undescribed {
        code: vec![(CODE, code)],
        loaded: &loaded,
        functions: functions.to_vec(),
        pointers: Vec::new(),
        no_return: Vec::new(),
        entry: entry..u64::MAX,
        has_caller: &|_| false,
        is_fixed: false,
    });
    synthesized.rows.iter().map(|(address, rule)| (address.wrapping_sub(CODE), *rule)).collect()
}

/// The rules of one function.
#[track_caller]
fn check(code: &[u8], expected: &[(u64, u64)]) {
    assert_eq!(rules(code, &[CODE], 0), expected);
}

#[test]
fn frames_are_made_and_left() {
    // push rbx; sub rsp, 16; call rax; add rsp, 16; pop rbx; ret
    check(
        &[0x53, 0x48, 0x83, 0xec, 0x10, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x10, 0x5b, 0xc3],
        &[(0, sp(8)), (1, sp(16)), (5, sp(32)), (11, sp(16)), (12, sp(8)), (13, NONE)],
    );
    // push rbp; mov rbp, rsp; sub rsp, rax; call rax; leave; ret
    check(
        &[0x55, 0x48, 0x89, 0xe5, 0x48, 0x29, 0xc4, 0xff, 0xd0, 0xc9, 0xc3],
        &[(0, sp(8)), (1, saved(16, -16)), (4, STANDARD), (10, sp(8)), (11, NONE)],
    );
    // push rbx; push rbp; mov ebp, 0; call rax; pop rbp; pop rbx; ret: the register is used for something else.
    check(
        &[0x53, 0x55, 0xbd, 0, 0, 0, 0, 0xff, 0xd0, 0x5d, 0x5b, 0xc3],
        &[(0, sp(8)), (1, sp(16)), (2, saved(24, -24)), (10, sp(16)), (11, sp(8)), (12, NONE)],
    );
    // lea r10, [rsp + 8]; and rsp, -16; push [r10 - 8]; push rbp; mov rbp, rsp; call rax; pop rbp; lea rsp, [r10 - 8]; ret
    // What r10 holds is not known behind the call, so nothing proves the end; what comes before it stands.
    let realigned = [
        0x4c, 0x8d, 0x54, 0x24, 0x08, 0x48, 0x83, 0xe4, 0xf0, 0x41, 0xff, 0x72, 0xf8, 0x55, 0x48, 0x89, 0xe5, 0xff,
        0xd0, 0x5d, 0x49, 0x8d, 0x62, 0xf8, 0xc3,
    ];
    check(&realigned, &[(0, sp(8)), (9, NONE)]);
}

#[test]
fn what_does_not_agree_has_no_rule() {
    // push rbx; ret
    check(&[0x53, 0xc3], &[]);
    // test eax, eax; je +1; push rbx; nop; ret: two ways with different frames.
    check(&[0x85, 0xc0, 0x74, 0x01, 0x53, 0x90, 0xc3], &[]);
    // mov ebp, 0; ret: the caller's frame pointer is gone.
    check(&[0xbd, 0, 0, 0, 0, 0xc3], &[]);
    // mov [rsp], rax; ret: another return address.
    check(&[0x48, 0x89, 0x04, 0x24, 0xc3], &[]);
    // mov [rip], rsp; mov rsp, rax; call rax; mov rsp, [rip]; ret: the stack pointer is kept where nobody can tell.
    let kept = [0x48, 0x89, 0x25, 0, 0, 0, 0, 0x48, 0x89, 0xc4, 0xff, 0xd0, 0x48, 0x8b, 0x25, 0, 0, 0, 0, 0xc3];
    check(&kept, &[(0, sp(8)), (10, NONE)]);
    // An instruction that is none.
    check(&[0x06], &[]);
}

/// push rbx; (here is another symbol:) call rax; pop rbx; ret: who takes that for a function has it end above where it began.
#[test]
fn a_symbol_within_a_function_proves_nothing() {
    assert_eq!(rules(&[0x53, 0xff, 0xd0, 0x5b, 0xc3], &[CODE, CODE + 1], 0), []);
}

#[test]
fn ways_meet_and_return() {
    // push rbx; test eax, eax; je +2; call rax; pop rbx; ret
    check(&[0x53, 0x85, 0xc0, 0x74, 0x02, 0xff, 0xd0, 0x5b, 0xc3], &[(0, sp(8)), (1, sp(16)), (8, sp(8)), (9, NONE)]);
    // A loop: push rbx; call rax; jmp -4
    check(&[0x53, 0xff, 0xd0, 0xeb, 0xfc], &[(0, sp(8)), (1, sp(16)), (5, NONE)]);
}

/// push rbp; mov rbp, rsp; and rsp, -16; call rax; leave; pop rcx; ...: how much is taken off the stack a register says.
#[test]
fn functions_may_take_arguments_off_the_stack() {
    let begin = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xf0, 0xff, 0xd0, 0xc9, 0x59];
    let check = |end: &[u8], returns: bool| {
        let code = [&begin[..], end].concat();
        let expected = [(0, sp(8)), (1, saved(16, -16)), (4, STANDARD), (11, sp(8)), (12, NONE)];
        assert_eq!(rules(&code, &[CODE], 0), if returns { &expected[..] } else { &[] }, "{end:x?}");
    };
    // lea rsp, [r15 + 8]; push rcx; ret
    check(&[0x49, 0x8d, 0x67, 0x08, 0x51, 0xc3], true);
    // add rsp, rdx; push rcx; mov eax, edi; jmp rsi: another function returns in its place.
    check(&[0x48, 0x01, 0xd4, 0x51, 0x89, 0xf8, 0xff, 0xe6], true);
    // add rsp, 16; jmp rcx
    check(&[0x48, 0x83, 0xc4, 0x10, 0xff, 0xe1], true);
    // add rsp, rdx; push rdx; ret: to elsewhere.
    check(&[0x48, 0x01, 0xd4, 0x52, 0xc3], false);
    // add rsp, rdx; push rcx; push rdx; ret
    check(&[0x48, 0x01, 0xd4, 0x51, 0x52, 0xc3], false);
    // add rsp, 16; jmp rdx
    check(&[0x48, 0x83, 0xc4, 0x10, 0xff, 0xe2], false);
    // xor ebp, ebp; add rsp, 16; jmp rcx: the caller's frame pointer is gone.
    check(&[0x31, 0xed, 0x48, 0x83, 0xc4, 0x10, 0xff, 0xe1], false);
    // mov ecx, ecx; add rsp, 16; jmp rcx: a part of the address.
    check(&[0x89, 0xc9, 0x48, 0x83, 0xc4, 0x10, 0xff, 0xe1], false);
}

/// push [rsp]; mov [rsp + 8], rax; jmp +0x12: the function there is given one argument more, on the stack.
#[test]
fn functions_may_go_on_in_others_with_more_arguments() {
    let mut code = vec![0xff, 0x34, 0x24, 0x48, 0x89, 0x44, 0x24, 0x08, 0xeb, 0x06];
    code.resize(16, 0x90);
    code.extend([0xc2, 0x08, 0x00]);
    let functions = [CODE, CODE + 16];
    assert_eq!(rules(&code, &functions, 0)[..3], [(0, sp(8)), (3, sp(16)), (8, NONE)]);
    // mov [rsp], rax: the address that it returns to is no longer there.
    code[7] = 0;
    assert_eq!(rules(&code, &functions, 0)[0].0, 16);
}

/// pop rax; push rdi; push rax; push rbp; mov rbp, rsp; call rdx; leave; pop rcx; add rsp, 8; push rcx; ret
#[test]
fn return_addresses_are_followed_below_arguments() {
    let puts = [0x58, 0x57, 0x50, 0x55, 0x48, 0x89, 0xe5, 0xff, 0xd2, 0xc9, 0x59, 0x48, 0x83, 0xc4, 0x08, 0x51, 0xc3];
    // Where the caller's stack pointer was nothing tells: that is enough where it is not needed.
    assert_eq!(rules(&puts, &[CODE], 0), [(0, sp(8)), (1, NONE), (16, sp(8)), (17, NONE)]);
    let mut code = puts.to_vec();
    // ret 8, three times
    code.extend([0xc2, 8, 0, 0xc2, 8, 0, 0xc2, 8, 0]);
    let functions = [0, 17, 20, 23].map(|at| CODE + at);
    let expected = [(0, sp(8)), (1, NONE), (3, sp(8)), (4, saved(16, -16)), (7, STANDARD), (10, sp(8)), (11, NONE)];
    assert_eq!(rules(&code, &functions, 0)[..7], expected);
    // push rsi; it does not return to where it was called from.
    code[2] = 0x56;
    assert_eq!(rules(&code, &functions, 0)[0].0, 17);
}

/// push rbp; mov rbp, rsp; test eax, eax; jne +9; (here:) mov rbp, [rbp]; add rsp, 32; jmp +8 (a `ret`); sub rsp, rax; jmp here
#[test]
fn what_did_not_agree_before_all_ways_were_known_may_agree() {
    let mut code = vec![0x55, 0x48, 0x89, 0xe5, 0x85, 0xc0, 0x75, 0x0a];
    code.extend([0x48, 0x8b, 0x6d, 0x00, 0x48, 0x83, 0xc4, 0x20, 0xeb, 0x05]);
    code.extend([0x48, 0x29, 0xc4, 0xeb, 0xf1]);
    let other = CODE + code.len() as u64;
    code.push(0xc3);
    assert_eq!(rules(&code, &[CODE, other], 0)[..2], [(0, sp(8)), (1, saved(16, -16))]);
}

/// Code that is only jumped at and leaves by jumps, as GHC makes it: what lies on the stack where it begins nothing tells.
#[test]
fn code_that_only_jumps_has_no_caller() {
    // sub rsp, 8; call rax; add rsp, 8
    let calls = [0x48, 0x83, 0xec, 0x08, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08];
    let own = [(0, sp(8)), (4, sp(16)), (10, sp(8))];
    let check = |code: &[u8], functions: &[u64], has_caller: bool| {
        let rows = rules(code, functions, 0);
        let first: &[(u64, u64)] = if has_caller { &own } else { &[] };
        assert_eq!(
            rows.iter().filter(|row| row.0 <= 10 && row.1 != NONE).copied().collect::<Vec<_>>(),
            first,
            "{code:x?}"
        );
    };
    let with = |end: &[u8]| [&calls[..], end].concat();
    // jmp rcx; jmp [rbp]
    check(&with(&[0xff, 0xe1]), &[CODE], false);
    check(&with(&[0xff, 0x65, 0x00]), &[CODE], false);
    // ret; je +0 (ret); jmp rcx
    check(&with(&[0xc3]), &[CODE], true);
    check(&with(&[0x74, 0x02, 0xff, 0xe1, 0xc3]), &[CODE], true);
    // jmp +14, to where another function returns (add eax, ebx; ret), or goes on by a jump, too (jmp rcx).
    let goes_on = |other: &[u8]| {
        let mut code = with(&[0xeb, 0x14]);
        code.resize(32, 0x90);
        [&code[..], other].concat()
    };
    check(&goes_on(&[0x01, 0xd8, 0xc3]), &[CODE, CODE + 32], true);
    check(&goes_on(&[0x01, 0xd8, 0xff, 0xe1]), &[CODE, CODE + 32], false);
    // That other one is called by a third one: call -9; ret
    check(&goes_on(&[0x01, 0xd8, 0xff, 0xe1, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xc3]), &[CODE, CODE + 32, CODE + 36], true);
    // It is called itself: call -0x25; ret
    let mut called = with(&[0xff, 0xe1]);
    called.resize(32, 0x90);
    called.extend([0xe8, 0xdb, 0xff, 0xff, 0xff, 0xc3]);
    check(&called, &[CODE, CODE + 32], true);
}

/// By the ABI a function leaves some registers to its caller as they were: who saves them has one.
#[test]
fn code_that_saves_registers_has_a_caller() {
    // push rbx; mov rbx, rdi; call rax; mov rdi, rbx; pop rbx; jmp rcx
    let saves = [0x53, 0x48, 0x89, 0xfb, 0xff, 0xd0, 0x48, 0x89, 0xdf, 0x5b, 0xff, 0xe1];
    assert_eq!(rules(&saves, &[CODE], 0), [(0, sp(8)), (1, sp(16)), (10, sp(8)), (12, NONE)]);
    // pop rdi: what it leaves in rbx is not the caller's.
    let mut code = saves;
    code[9] = 0x5f;
    assert_eq!(rules(&code, &[CODE], 0), []);
    // mov ebx, 1 before the jump, which leads to code that is described, or not.
    let calls = [0x48, 0x83, 0xec, 0x08, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08];
    let described = |code: &[u8], is_described: bool| {
        let undescribed = Undescribed {
            code: vec![(CODE, code)],
            loaded: &|_| None,
            functions: vec![CODE],
            pointers: Vec::new(),
            no_return: Vec::new(),
            entry: 0..0,
            has_caller: &|_| is_described,
            is_fixed: false,
        };
        synthesize(&undescribed).functions == 1
    };
    let jumps = [&calls[..], &[0xe9, 0, 1, 0, 0]].concat();
    let changes = [&calls[..], &[0xbb, 1, 0, 0, 0, 0xe9, 0, 1, 0, 0]].concat();
    assert_eq!([described(&jumps, true), described(&jumps, false), described(&changes, true)], [true, false, false]);
}

/// As V8's builtins: registers are nobody's, but the frame is one of a chain.
#[test]
fn code_that_makes_a_frame_has_a_caller() {
    // push rbp; mov rbp, rsp; mov r12, rdi; call rax; pop rbp; jmp rcx
    let frame = [0x55, 0x48, 0x89, 0xe5, 0x49, 0x89, 0xfc, 0xff, 0xd0, 0x5d, 0xff, 0xe1];
    assert_eq!(rules(&frame, &[CODE], 0).first(), Some(&(0, sp(8))));
    // mov rbp, rdi in the place of mov rbp, rsp: it is only saved.
    let mut saves = frame;
    saves[3] = 0xfd;
    assert_eq!(rules(&saves, &[CODE], 0), []);
}

/// sub rsp, 8; test eax, eax; je +6; mov [rsp], rbp; mov ebp, eax; call rax; ...: whether it was saved is not known where ways meet.
#[test]
fn what_only_one_way_says_does_not_hold() {
    check(
        &[
            0x48, 0x83, 0xec, 0x08, 0x85, 0xc0, 0x74, 0x06, 0x48, 0x89, 0x2c, 0x24, 0x89, 0xc5, 0xff, 0xd0, 0x48, 0x83,
            0xc4, 0x08, 0xc3,
        ],
        &[(0, sp(8)), (4, sp(16)), (12, saved(16, -16)), (14, NONE)],
    );
}

/// push rbx; call rax; (loop:) call rcx; jmp loop: a server, which never returns.
#[test]
fn loops_without_end_behind_a_call_are_parts_of_the_function() {
    check(&[0x53, 0xff, 0xd0, 0xff, 0xd1, 0xeb, 0xfc], &[(0, sp(8)), (1, sp(16)), (7, NONE)]);
}

/// sub rsp, 8; call +0x17 (which traps); and behind it another function, which nothing calls: push rbx; ...
#[test]
fn what_follows_a_call_that_does_not_return_is_no_part_of_the_function() {
    let mut code = vec![0x48, 0x83, 0xec, 0x08, 0xe8, 0x17, 0, 0, 0];
    code.resize(16, 0x90);
    code.extend([0x53, 0xff, 0xd0, 0x5b, 0xc3]);
    code.resize(32, 0x90);
    // ud2
    code.extend([0x0f, 0x0b]);
    let rules = rules(&code, &[CODE], 0);
    let at = |address: u64| rules[..rules.partition_point(|row| row.0 <= address)].last().map_or(NONE, |row| row.1);
    assert_eq!([at(0), at(4), at(16), at(17), at(20)], [sp(8), sp(16), sp(8), sp(16), sp(8)], "{rules:x?}");
}

#[test]
fn the_program_begins_without_a_caller() {
    // xor ebp, ebp; mov rdi, rsp; and rsp, -16; call rax; hlt
    let start = [0x31, 0xed, 0x48, 0x89, 0xe7, 0x48, 0x83, 0xe4, 0xf0, 0xff, 0xd0, 0xf4];
    assert_eq!(rules(&start, &[], CODE), [(0, STOP), (11, NONE)]);
    // Any function, from where it says so.
    assert_eq!(rules(&start, &[CODE], 0), [(0, sp(8)), (2, STOP), (11, NONE)]);
    // mov rax, rbp; xor ebp, ebp; call rcx; it keeps a copy.
    let copy = [0x48, 0x89, 0xe8, 0x31, 0xed, 0xff, 0xd1, 0xc3];
    assert!(rules(&copy, &[CODE], 0).iter().all(|row| row.1 != STOP));
}

#[test]
fn jumps_by_tables_are_followed() {
    // push rbx; cmp edi, 1; ja +0x10 (pop); lea rax, [rip + 0x10]; movsxd rdi, [rax + rdi*4]; add rdi, rax; jmp rdi; pop rbx; ret; table
    let mut code = vec![0x53, 0x83, 0xff, 0x01, 0x77, 0x10];
    code.extend([0x48, 0x8d, 0x05, 0x0e, 0, 0, 0]);
    code.extend([0x48, 0x63, 0x3c, 0xb8, 0x48, 0x01, 0xc7, 0xff, 0xe7]);
    code.extend([0x5b, 0xc3, 0xff, 0xd0, 0x5b]);
    // At 0x1b: ret. The table begins at 0x1b, so it is put behind.
    let table = code.len() as u64;
    assert_eq!(table, 0x1b);
    // Its entries: to the `pop`, and to the `call` behind it.
    code.extend((0x16i32 - 0x1b).to_le_bytes());
    code.extend((0x18i32 - 0x1b).to_le_bytes());
    let rules = rules(&code, &[CODE], 0);
    let at = |address: u64| rules[..rules.partition_point(|row| row.0 <= address)].last().map_or(NONE, |row| row.1);
    assert_eq!([at(0x16), at(0x17)], [sp(16), sp(8)], "{rules:x?}");
}

#[test]
fn code_of_any_kind_takes_bounded_work() {
    // Jumps that lead everywhere, and nothing else.
    let code: Vec<u8> = (0..1 << 16u32).flat_map(|at| [0x74, (at * 7) as u8]).collect();
    rules(&code, &(0..1 << 10).map(|at| CODE + 128 * at).collect::<Vec<_>>(), CODE);
    // Addresses at the end of all.
    let loaded = |_| None;
    let undescribed = Undescribed {
        code: vec![(u64::MAX - 4, &[0x53, 0xff, 0xd0, 0x5b][..]), (0, &[0xc3])],
        loaded: &loaded,
        functions: vec![u64::MAX - 4, 0, 7],
        pointers: vec![u64::MAX],
        no_return: Vec::new(),
        entry: u64::MAX..u64::MAX,
        has_caller: &|_| true,
        is_fixed: true,
    };
    assert!(synthesize(&undescribed).rows.is_sorted_by(|a, b| a.0 < b.0));
}
