//! Stacks that wait: for which file and which mappings, and what becomes of them.

use tracer_ebpf::unwind::{fp, kind, rule};

use super::*;

const IMAGE: Image = Image(3);
const PID: Pid = 77;
/// Where the stack's memory begins.
const STACK: u64 = 0x7000;
/// CFA = stack pointer + 16: a word of its own, then the return address.
const CALLED: u64 = rule(kind::SP, fp::SAME, 0, 16);
const OUTERMOST: u64 = rule(kind::STOP, fp::SAME, 0, 0);

fn stack(index: u32) -> StackIndex {
    StackIndex::from_raw(index)
}

/// Two files: number 5 at 0x1000, from its second page on; number 6 at 0x9000. And generated code at 0x20000.
fn code() -> Vec<Code> {
    vec![
        Code { range: 0x1000..0x3000, offset: 0x1000, number: Some(5) },
        Code { range: 0x9000..0xa000, offset: 0, number: Some(6) },
        Code { range: 0x2_0000..0x2_1000, offset: 0, number: None },
    ]
}

/// A frame at 0x1100 that was called from `callers`, in parts as records bring it.
fn rest(changes: u64, callers: &[u64], room: &Room) -> Rest {
    let words: Vec<u64> = callers.iter().flat_map(|caller| [0, *caller]).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let registers = Registers { pc: 0x1100, sp: STACK, fp: 0, exact: false };
    let part = |start: usize, bytes| StackMemory { id: 1, registers, changes, start: STACK + start as u64, bytes };
    let (first, second) = bytes.split_at(bytes.len().min(8));
    let mut rest = Rest::new(&part(0, first), room);
    rest.add(&part(8, second));
    rest
}

/// What is read when so many changes were counted.
fn these(changes: u64, mappings: Vec<Code>) -> Found<Vec<Code>> {
    Found::These { changes, appeared: Vec::new(), mappings }
}

fn cut(rest: Rest) -> Cut {
    Cut { image: IMAGE, stack: stack(0), number: 5, rest, since: Instant::now(), is_second: false }
}

/// Both files are known: code beyond 0x200 of file 6 is the outermost.
fn known(number: u32, _: &Code, offset: u64) -> Rule {
    Rule::At(if number == 6 && offset >= 0x200 { OUTERMOST } else { CALLED })
}

fn unwound(cut: &Cut, rule: impl Fn(u32, &Code, u64) -> Rule) -> Result<(Vec<u64>, u32), u32> {
    unwound_by(cut, &Known { changes: 0, appeared: Vec::new(), code: code() }, rule)
}

fn unwound_by(cut: &Cut, known: &Known, rule: impl Fn(u32, &Code, u64) -> Rule) -> Result<(Vec<u64>, u32), u32> {
    match cut.unwind(known, rule) {
        Outcome::Done(places, end) => Ok((places, end)),
        Outcome::Wants(number) => Err(number),
    }
}

#[test]
fn frames_are_told_as_places_up_to_the_outermost() {
    let room = Room::default();
    let whole = cut(rest(0, &[0x2080, 0x9100, 0x9300], &room));
    let places = vec![place::in_file(5, 0x2080), place::in_file(6, 0x100), place::in_file(6, 0x300)];
    assert_eq!(unwound(&whole, known), Ok((places.clone(), end::ROOT)));
    let not_yet = |number: u32, code: &Code, at: u64| if number == 5 { known(number, code, at) } else { Rule::NotYet };
    assert_eq!(unwound(&whole, not_yet), Err(6), "it goes on in a file that is not known yet");
    assert_eq!(unwound(&whole, |_, _, _| Rule::Never), Ok((vec![], end::UNKNOWN_FILE)), "it cannot be read");
    // Of what is not there nothing is made up.
    let short = cut(rest(0, &[0x2080, 0x9100], &room));
    assert_eq!(unwound(&short, known), Ok((places[..2].to_vec(), end::BAD_MEMORY)));
    let mut long = cut(rest(0, &[0x2080, 0x9100], &room));
    long.rest.parts = REST_RECORDS;
    assert_eq!(unwound(&long, known), Ok((places[..2].to_vec(), end::LONG_REST)), "more of it was not sent");
    let below = |number: u32, code: &Code, at: u64| {
        if number == 6 { Rule::At(rule(kind::SP, fp::SAME, 0, -8)) } else { known(number, code, at) }
    };
    assert_eq!(unwound(&long, below), Ok((places[..2].to_vec(), end::BAD_MEMORY)), "it does not go up");
    let astray = cut(rest(0, &[0x2080, 0x5000], &room));
    assert_eq!(unwound(&astray, known), Ok((vec![places[0], place::at(0x5000)], end::NO_MAPPING)));
    let generated = cut(rest(0, &[0x2_0010], &room));
    assert_eq!(unwound(&generated, known), Ok((vec![place::at(0x2_0010)], end::NO_RULE)));
    let another = Cut { number: 9, ..cut(rest(0, &[0x2080], &room)) };
    assert_eq!(unwound(&another, known), Ok((vec![], end::UNKNOWN_FILE)), "another file is mapped there by now");
}

/// At a function's first instruction: what is named is the byte before a place.
#[test]
fn code_that_was_interrupted_is_told_as_what_was_about_to_run() {
    // The word at 40 + 8 * 16 is where.
    let mut words = [0; 12];
    words[10] = 0x9200;
    let interrupted = cut(rest(0, &words, &Room::default()));
    let rule = |number: u32, code: &Code, at: u64| match number {
        5 => Rule::At(rule(kind::SIGNAL, 0, 0, 0)),
        _ => known(number, code, at),
    };
    assert_eq!(unwound(&interrupted, rule), Ok((vec![place::in_file(6, 0x201)], end::ROOT)));
}

/// What a program has put at the begin of a stack is no frame of it.
#[test]
fn a_stack_that_was_made_ends_at_its_first_function() {
    let made = cut(rest(0, &[0x2080, 0x9300, 0x2080], &Room::default()));
    let rule = |number: u32, _: &Code, _: u64| match number {
        6 => Rule::At(rule(kind::MADE, 0, 0, 8)),
        _ => Rule::At(CALLED),
    };
    assert_eq!(unwound(&made, rule), Ok((vec![place::in_file(5, 0x2080)], end::ROOT)));
}

/// Of a moment before they were read are those that have not appeared since.
#[test]
fn what_has_appeared_since_was_not_there() {
    let stack = cut(rest(10, &[0x2080, 0x9100, 0x9300], &Room::default()));
    let new = |count, start, end| Appeared { count, start, end };
    let by = |changes, appeared: &[Appeared]| {
        unwound_by(&stack, &Known { changes, appeared: appeared.to_vec(), code: code() }, known).unwrap()
    };
    let (whole, end) = by(10, &[]);
    assert_eq!((whole.len(), end), (3, end::ROOT));
    let elsewhere = [new(12, 0xa000, 0xb000), new(11, 0x8000, 0x9000), new(10, 0, u64::MAX)];
    assert_eq!(by(12, &elsewhere), (whole.clone(), end::ROOT));
    let there = [elsewhere[0], new(11, 0x8000, 0x9001)];
    assert_eq!(by(12, &there), (vec![whole[0], place::at(0x9100)], end::UNKNOWN_FILE));
    assert_eq!(by(12, &[elsewhere[0], new(11, 0, u64::MAX)]), (vec![], end::UNKNOWN_FILE), "another program");
    assert_eq!(by(12, &elsewhere[..1]), (vec![], end::UNKNOWN_FILE), "one is overwritten already");
    let many: Vec<Appeared> = (11..=11 + MAX_APPEARED as u64).map(|count| new(count, 0xa000, 0xb000)).collect();
    assert_eq!(by(10 + many.len() as u64, &many), (vec![], end::UNKNOWN_FILE), "more than are known for sure");
}

#[test]
fn a_stack_that_never_ends_is_cut() {
    let deep = cut(rest(0, &vec![0x2080; 2 * MAX_FRAMES], &Room::default()));
    let (places, end) = unwound(&deep, known).unwrap();
    assert_eq!((places.len(), end), (MAX_FRAMES - 1, end::DEPTH));
}

/// What comes out next: which stack, and whether there are mappings to unwind it by.
fn next(rests: &mut Rests) -> Option<(StackIndex, bool)> {
    let (cut, code) = rests.next()?;
    rests.done(&cut);
    Some((cut.stack, code.is_some()))
}

#[test]
fn a_stack_waits_for_its_file_and_its_mappings() {
    let (mut rests, room) = (Rests::default(), Room::default());
    rests.add(IMAGE, PID, (5, false), stack(1), rest(10, &[], &room));
    rests.add(IMAGE, PID, (6, true), stack(2), rest(10, &[], &room));
    assert_eq!(rests.next_unread(), Some((IMAGE, PID)));
    assert_eq!((rests.next_unread(), next(&mut rests)), (None, None), "once; nothing can be unwound yet");
    rests.has_read(IMAGE, these(10, code()));
    assert_eq!((next(&mut rests), next(&mut rests)), (Some((stack(2), true)), None));
    assert!(!rests.is_empty());
    rests.known(5);
    assert_eq!(next(&mut rests), Some((stack(1), true)));
    assert!(rests.is_empty());
}

/// Nothing is unwound by mappings of an earlier moment.
#[test]
fn mappings_are_of_the_moment_or_later() {
    let (mut rests, room) = (Rests::default(), Room::default());
    for changes in [10, 11] {
        rests.add(IMAGE, PID, (5, true), stack(changes), rest(changes.into(), &[], &room));
    }
    rests.next_unread();
    rests.has_read(IMAGE, Found::Changed);
    assert_eq!(rests.next_unread(), Some((IMAGE, PID)), "they have changed while they were read");
    rests.has_read(IMAGE, these(11, code()));
    assert_eq!(next(&mut rests), Some((stack(10), true)));
    assert_eq!(next(&mut rests), Some((stack(11), true)));
    // Later ones, and earlier ones again.
    rests.add(IMAGE, PID, (5, true), stack(12), rest(12, &[], &room));
    assert_eq!((rests.next_unread(), next(&mut rests)), (Some((IMAGE, PID)), None));
    rests.has_read(IMAGE, these(12, code()));
    rests.add(IMAGE, PID, (5, true), stack(13), rest(11, &[], &room));
    assert_eq!((next(&mut rests), next(&mut rests)), (Some((stack(12), true)), Some((stack(13), true))));
    // Where nobody counts, nothing is known.
    let mut rests = Rests::default();
    rests.add(IMAGE, PID, (5, true), stack(1), rest(0, &[], &room));
    rests.has_read(IMAGE, Found::Nothing);
    assert_eq!(next(&mut rests), Some((stack(1), false)));
}

#[test]
fn what_changes_all_the_time_is_given_up() {
    let (mut rests, room) = (Rests::default(), Room::default());
    rests.add(IMAGE, PID, (5, true), stack(1), rest(0, &[], &room));
    let mut reads = 0;
    while rests.next_unread().is_some() {
        reads += 1;
        rests.has_read(IMAGE, Found::Changed);
    }
    assert_eq!(reads, u64::from(MAX_ATTEMPTS) + 1);
    assert_eq!(next(&mut rests), Some((stack(1), false)));
}

#[test]
fn a_process_that_is_gone_leaves_nothing_behind() {
    let (mut rests, room) = (Rests::default(), Room::default());
    rests.add(IMAGE, PID, (5, false), stack(1), rest(10, &[], &room));
    rests.has_read(IMAGE, these(10, code()));
    rests.ended(IMAGE);
    rests.known(5);
    assert_eq!(next(&mut rests), Some((stack(1), true)), "what was read of it is true still");
    assert!(rests.spaces.is_empty() && rests.waiting.is_empty());
    rests.add(IMAGE, PID, (5, true), stack(2), rest(10, &[], &room));
    rests.has_read(IMAGE, Found::Nothing);
    rests.ended(IMAGE);
    assert_eq!(next(&mut rests), Some((stack(2), false)));
    assert!(rests.spaces.is_empty());
}

#[test]
fn memory_is_given_back() {
    let room = Room::default();
    let rest = rest(0, &[1, 2, 3], &room);
    assert_eq!(room.given(), 0);
    drop(rest);
    // Two heads of records, and six words.
    assert_eq!(room.given(), 2 * size_of::<tracer_ebpf::StackRest>() as u64 + 48);
}

/// Its process is gone, and no other one will ever have the file.
#[test]
fn a_file_that_nobody_will_know_is_waited_for_a_while_only() {
    let (mut rests, room) = (Rests::default(), Room::default());
    rests.add(IMAGE, PID, (5, false), stack(1), rest(10, &[], &room));
    rests.add(Image(4), PID, (5, false), stack(2), rest(10, &[], &room));
    rests.has_read(IMAGE, Found::Nothing);
    let now = Instant::now();
    let mut given_up = |after: Duration| {
        let mut all = Vec::new();
        rests.give_up(now + after, |stack| all.push(stack));
        all
    };
    assert_eq!(given_up(Duration::ZERO), []);
    assert_eq!(given_up(LAST_PATIENCE), [stack(1)]);
    assert_eq!(given_up(PATIENCE), [stack(2)], "it lives, and a table may take long");
    assert!(rests.is_empty() && rests.waiting.is_empty());
}

/// A library is mapped as a whole, then piece by piece over that, which nobody counts everywhere.
#[test]
fn mappings_that_cannot_be_all_are_read_once_more() {
    let (mut rests, room) = (Rests::default(), Room::default());
    rests.add(IMAGE, PID, (5, true), stack(1), rest(10, &[], &room));
    assert!(rests.next_unread().is_some());
    rests.has_read(IMAGE, these(10, Vec::new()));
    let (cut, known) = rests.next().unwrap();
    let known = known.unwrap();
    assert_eq!(known.code.len(), 0);
    assert!(rests.again(cut, &known).is_none());
    assert!(rests.next_unread().is_some() && rests.next().is_none());
    rests.has_read(IMAGE, these(10, code()));
    let (cut, known) = rests.next().unwrap();
    let known = known.unwrap();
    assert_eq!(known.code.len(), 3);
    assert!(rests.again(cut, &known).is_some(), "not for ever");
}

/// They were gone when they were to be opened; but what is read of mappings may show what goes on.
#[test]
fn files_that_nobody_looks_for_are_given_up_at_the_end() {
    let (mut rests, room) = (Rests::default(), Room::default());
    rests.add(IMAGE, PID, (5, false), stack(1), rest(10, &[], &room));
    rests.add(Image(4), PID, (6, false), stack(2), rest(10, &[], &room));
    let given_up = |rests: &mut Rests| {
        let mut all = Vec::new();
        rests.give_up_on_files(|stack| all.push(stack));
        all.sort_unstable();
        all
    };
    assert_eq!(given_up(&mut rests), []);
    rests.has_read(IMAGE, these(10, code()));
    rests.has_read(Image(4), Found::Nothing);
    assert_eq!(given_up(&mut rests), [stack(1), stack(2)]);
    assert!(rests.is_empty());
}
