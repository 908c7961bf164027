//! Every arrow of the life of a process.

use super::*;

/// Milliseconds after the beginning.
fn at(milliseconds: u64) -> Now {
    thread_local! {
        static BEGIN: Instant = Instant::now();
    }
    let instant = BEGIN.with(|begin| *begin) + Duration::from_millis(milliseconds);
    Now { instant, clock: milliseconds * 1_000_000 }
}

const NS: u64 = 1_000_000;

fn allocator(probed: bool, covered: bool) -> Event {
    Event::Looked(Look::Allocator { probed, covered, own_memory: Some(4096) })
}

fn exec(milliseconds: u64) -> Event {
    Event::Execed { time: milliseconds * NS, probes_lost: false, known: false }
}

const NOTHING: Event = Event::Looked(Look::Nothing { loaded: false, is_static: false });
const NEVER: Event = Event::Looked(Look::Nothing { loaded: true, is_static: false });
const IN_FORCE: Event = Event::Probed(Probing::InForce);

/// Events with their times, and what each leads to.
type Table<'a> = &'a [(u64, Event, &'a [Action])];

fn run(life: &mut Life, table: Table) {
    for (index, (time, event, actions)) in table.iter().enumerate() {
        assert_eq!(life.handle(event.clone(), at(*time)), *actions, "row {index}: {event:?}");
    }
}

#[test]
fn an_exec_with_the_same_allocator_misses_nothing() {
    let mut life = Life::recorded(7);
    run(
        &mut life,
        &[
            (0, Event::Tick, &[]),
            (10, exec(10), &[Action::Look]),
            // Somebody looks already.
            (11, Event::Tick, &[]),
            (12, NOTHING, &[]),
            (12, Event::Tick, &[]),
            (14, Event::Tick, &[Action::Look]),
            (15, allocator(true, false), &[Action::Enable]),
            // Looked at again until the loader must be done.
            (16, Event::Tick, &[]),
            (115, Event::Tick, &[Action::Look]),
            (116, allocator(true, false), &[]),
            (600, Event::Tick, &[Action::Look]),
            (601, allocator(true, false), &[]),
        ],
    );
    assert!(life.is_settled() && life.unseen_spans() == 0);
    assert_eq!(life.next(), None);
}

#[test]
fn an_exec_with_another_allocator_tells_what_was_missed() {
    let mut life = Life::recorded(7);
    run(
        &mut life,
        &[
            (10, exec(10), &[Action::Look]),
            (30, allocator(false, false), &[Action::Probe]),
            (45, IN_FORCE, &[Action::Enable]),
        ],
    );
    assert_eq!(life.unseen_spans(), 1);
    let note = life.notes().next().unwrap();
    assert!(note.contains("the first 35 ms") && note.contains("4 KiB"), "{note}");
    // It is told once, when the search is over.
    run(&mut life, &[(700, Event::Tick, &[Action::Look]), (701, allocator(true, false), &[])]);
    assert_eq!((life.unseen_spans(), life.notes().count(), life.news().len(), life.news().len()), (1, 1, 1, 0));
}

#[test]
fn probes_on_the_file_have_been_there_all_the_time() {
    let mut life = Life::recorded(7);
    run(
        &mut life,
        &[
            (10, exec(10), &[Action::Look]),
            (30, allocator(false, true), &[Action::Probe]),
            (31, IN_FORCE, &[Action::Enable]),
        ],
    );
    assert_eq!(life.unseen_spans(), 0);
}

#[test]
fn a_program_without_an_allocator_is_told_when_none_will_come() {
    for (last, event) in [(600, NEVER), (10_100, NOTHING)] {
        let mut life = Life::recorded(7);
        run(&mut life, &[(10, exec(10), &[Action::Look]), (20, NEVER, &[])]);
        assert_eq!(life.unseen_spans(), 0, "its loader may be at work");
        run(&mut life, &[(last, Event::Tick, &[Action::Look]), (last + 1, event, &[])]);
        assert!(life.notes().next().unwrap().contains("without a malloc"), "{last}");
        // It may become one with an allocator.
        run(&mut life, &[(last + 2, Event::Tick, &[]), (last + 3, exec(last + 3), &[Action::Look])]);
    }
}

#[test]
fn a_foreign_program_is_told_at_once() {
    let mut life = Life::recorded(7);
    run(&mut life, &[(1, exec(1), &[Action::Look]), (2, Event::Looked(Look::Foreign("a 32-bit program".into())), &[])]);
    assert!(life.notes().next().unwrap().contains("process 7 became a 32-bit program"));
    // What it forks is as it is.
    let child = life.forked(8, 3 * NS, true, at(3));
    assert_eq!((child.next(), child.notes().count()), (None, 0));
}

#[test]
fn an_end_is_the_end() {
    let mut life = Life::recorded(7);
    run(
        &mut life,
        &[
            (1, exec(1), &[Action::Look]),
            (2, Event::Exited(Duration::from_millis(2)), &[]),
            (3, allocator(false, false), &[]),
            (4, exec(4), &[]),
        ],
    );
    assert!(life.was_not_looked_at() && life.ended() == Some(Duration::from_millis(2)));
    let mut life = Life::recorded(7);
    run(&mut life, &[(2, Event::Exited(Duration::from_millis(2)), &[])]);
    assert!(!life.was_not_looked_at());
}

#[test]
fn a_fork_has_the_probes_of_its_parent_or_waits_for_its_own() {
    let parent = Life::recorded(7);
    let same = parent.forked(8, 0, false, at(0));
    assert!(same.is_settled() && same.came_later() && !same.is_paused());
    assert_eq!(same.late(5 * NS), None);
    let mut own = parent.forked(8, 0, true, at(1));
    assert_eq!(own.late(5 * NS), Some(Duration::from_millis(5)), "so far");
    run(
        &mut own,
        &[
            (1, Event::Tick, &[Action::Probe]),
            (2, Event::Tick, &[]),
            (9, IN_FORCE, &[Action::Resume]),
            (9, Event::Recorded(10 * NS), &[]),
        ],
    );
    assert_eq!((own.late(50 * NS), own.unseen_spans(), own.is_settled()), (Some(Duration::from_millis(10)), 0, true));
}

#[test]
fn one_that_ends_before_it_has_probes_was_not_looked_at() {
    for probing in [Probing::Gone, Probing::InForce] {
        let mut own = Life::recorded(7).forked(8, 0, true, at(1));
        own.handle(Event::Tick, at(1));
        own.handle(Event::Probed(probing), at(2));
        own.handle(Event::Exited(Duration::from_millis(3)), at(3));
        assert!(own.was_not_looked_at(), "{probing:?}");
    }
    let mut own = Life::recorded(7).forked(8, 0, true, at(1));
    run(&mut own, &[(1, Event::Tick, &[Action::Probe]), (2, Event::Probed(Probing::Refused), &[])]);
    assert!(own.notes().next().unwrap().contains("could not be probed"));
}

#[test]
fn an_exec_before_it_has_probes_needs_them_all_the_same() {
    let mut own = Life::recorded(7).forked(8, 0, true, at(1));
    run(
        &mut own,
        &[
            (1, Event::Tick, &[Action::Probe]),
            (2, Event::Probed(Probing::Gone), &[]),
            (3, exec(3), &[Action::Look]),
            // The file has probes of its parent's: not of its own.
            (4, allocator(true, false), &[Action::Probe]),
            (9, IN_FORCE, &[Action::Enable]),
            (9, Event::Recorded(11 * NS), &[]),
        ],
    );
    // From its fork on, and told there, not as a span of its own.
    assert_eq!((own.late(50 * NS), own.unseen_spans()), (Some(Duration::from_millis(11)), 0));
}

#[test]
fn a_newcomer_is_looked_at_at_once() {
    for paused in [false, true] {
        let mut life = Life::newcomer(9, 0, paused, false, at(1));
        run(&mut life, &[(1, Event::Tick, &[Action::Look]), (2, allocator(false, !paused), &[Action::Probe])]);
        run(&mut life, &[(3, IN_FORCE, &[Action::Enable]), (3, Event::Recorded(4 * NS), &[])]);
        assert_eq!(life.late(50 * NS).is_some(), paused);
        assert_eq!(life.unseen_spans(), 0);
    }
}

#[test]
fn probes_that_are_refused_are_tried_again_and_given_up() {
    let mut life = Life::recorded(7);
    run(
        &mut life,
        &[
            (1, exec(1), &[Action::Look]),
            (2, allocator(false, false), &[Action::Probe]),
            (3, Event::Probed(Probing::Refused), &[]),
            (600, Event::Tick, &[Action::Look]),
            (601, allocator(false, false), &[Action::Probe]),
            (602, Event::Probed(Probing::Refused), &[]),
        ],
    );
    assert!(life.notes().next().unwrap().contains("could not be probed") && life.next().is_none());
}

#[test]
fn a_static_program_without_an_allocator_is_told_at_once_unless_it_has_another_heap() {
    let mut life = Life::recorded(7);
    let nothing = Event::Looked(Look::Nothing { loaded: true, is_static: true });
    run(&mut life, &[(10, exec(10), &[Action::Look]), (11, nothing, &[])]);
    assert_eq!(life.unseen_spans(), 1);
    let mut life = Life::recorded(7);
    let other = Event::Looked(Look::OtherHeap);
    run(&mut life, &[(10, exec(10), &[Action::Look]), (11, other.clone(), &[Action::Enable])]);
    run(&mut life, &[(700, Event::Tick, &[Action::Look]), (701, other, &[])]);
    assert_eq!((life.unseen_spans(), life.is_settled()), (0, true));
}

#[test]
fn a_program_that_is_known_needs_no_look_when_it_is_over_soon() {
    let again = |probes_lost| Event::Execed { time: 10 * NS, probes_lost, known: true };
    let mut life = Life::recorded(7);
    run(&mut life, &[(10, again(false), &[]), (20, Event::Tick, &[])]);
    let mut ended = life.clone();
    run(&mut ended, &[(25, Event::Exited(Duration::from_millis(25)), &[])]);
    assert!(!ended.was_not_looked_at());
    // Something else may be preloaded this time.
    run(&mut life, &[(30, Event::Tick, &[Action::Look]), (31, allocator(false, false), &[Action::Probe])]);
    // Where the probes went, and where it has to have its own, that helps nothing.
    run(&mut Life::recorded(7), &[(10, again(true), &[Action::Look])]);
    run(&mut Life::newcomer(9, 0, true, true, at(1)), &[(1, Event::Tick, &[Action::Look])]);
}
