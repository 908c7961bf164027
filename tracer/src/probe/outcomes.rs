//! How the outcomes of calls are seen, for each function of an allocator: in the way that is cheapest among those that cannot
//! harm the process.
//!
//! The kernel's own way, a return probe, puts the address of a trampoline into the return slot. A thread that goes on on another
//! stack inside of the allocator (a fiber, a signal handler) can make the kernel lose what was there, which ends the
//! process; and whatever walks stacks in the process itself ends at the trampoline.

use std::fmt;

use tracer_ebpf::{
    cost,
    entry::{self, at_once},
    exit::{Exit, Frame, Outcome, Place},
};

use super::{
    exits::Exits,
    family::{Arguments, Shape},
    resolve::Function,
    risks::Risk,
};

/// A way to see the outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At instructions that the kernel emulates and that every call passes: nothing in the process is changed.
    Exits,
    /// At its `ret` instructions, which the kernel steps over: the same, but dear.
    Returns,
    /// By return probes of which the entry decides: only where the kernel cannot lose the return address.
    Session,
    /// By return probes.
    Link,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exits => "at instructions that every call passes",
            Self::Returns => "at its return instructions",
            Self::Session => "by return probes that its entry decides about",
            Self::Link => "by return probes",
        })
    }
}

/// What there is to choose from.
pub struct Means<'a> {
    /// The way that was asked for by name.
    pub asked: Option<Way>,
    /// Whether the kernel has return probes of which the entry decides.
    pub sessions: bool,
    /// Whether most calls are not to be seen to their end.
    pub samples: bool,
    /// What in the process return probes could harm. Found out when it is first asked for.
    pub risk: &'a dyn Fn() -> Option<Risk>,
}

/// How the calls of a function are seen to their end, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The way.
    pub way: Way,
    /// The reason, as a clause that follows "because"; empty where none is needed.
    pub because: String,
}

/// Where programs go: offset in the file (bytes) and cookie of each place.
pub type Places = Vec<(u64, u64)>;

/// The programs to attach, those that see the end of calls first, with the places of each.
pub struct Plan {
    /// Name of each program and its places.
    pub programs: Vec<(&'static str, Places)>,
    /// For each function that allocates, its name and how its calls are seen to their end.
    pub choices: Vec<(String, Choice)>,
}

/// Plans the probes of an allocator.
///
/// `first` is the number of the first function; the others have the next ones.
pub fn plan(functions: &[Function], first: u16, means: &Means<'_>) -> Plan {
    let (mut links, mut exits, mut sessions) = (Places::new(), Places::new(), Places::new());
    let (mut enters, mut frees, mut second_frees) = (Places::new(), Places::new(), Places::new());
    let (mut ends_of_heaps, mut choices) = (Places::new(), Vec::new());
    for (index, function) in functions.iter().enumerate() {
        let entry = |told| (function.file_offset, cost::cookie(told, function.emulated));
        match function.shape {
            Shape::Free => frees.push(entry(0)),
            Shape::FreeInHeap => second_frees.push(entry(0)),
            Shape::EndHeap => ends_of_heaps.push(entry(at_once::ALWAYS)),
            Shape::EndNamedHeap => ends_of_heaps.push(entry(at_once::NAMED)),
            Shape::EndNumberedHeap => ends_of_heaps.push(entry(at_once::NUMBERED)),
            _ => {}
        }
        if function.shape.frees() {
            continue;
        }
        let choice = choose(function, means);
        let number = first.wrapping_add(index as u16);
        let mut told = told_of(function.shape) | u64::from(number) << entry::FUNCTION;
        if matches!(choice.way, Way::Exits | Way::Returns) {
            told |= entry::AT_INSTRUCTIONS;
        }
        if choice.way == Way::Exits && function.exits.as_ref().is_some_and(Exits::tell_stored) {
            // The block itself, as a function that returns it.
            told &= !(entry::STORED | entry::ARGUMENT << entry::BLOCK);
        }
        if may_vanish(function, choice.way) {
            told |= entry::MAY_VANISH;
        }
        let place = entry(told);
        match choice.way {
            Way::Exits => exits.extend(exit_cookies(function)),
            Way::Returns => exits.extend(function.returns.offsets.iter().map(|offset| (*offset, at_ret()))),
            Way::Session => sessions.push(place),
            Way::Link => links.push((function.file_offset, 0)),
        }
        if choice.way != Way::Session {
            enters.push(place);
        }
        choices.push((function.name.clone(), choice));
    }
    let mut programs = vec![
        ("leave", links),
        ("leave_at_exit", exits),
        ("session", sessions),
        ("enter", enters),
        ("enter_free", frees),
        ("enter_free_second", second_frees),
        ("enter_at_once", ends_of_heaps),
    ];
    for (_, places) in &mut programs {
        // Functions that end in the same code share its exits.
        places.sort_unstable();
        places.dedup();
    }
    programs.retain(|(_, places)| !places.is_empty());
    Plan { programs, choices }
}

/// The way for one function.
fn choose(function: &Function, means: &Means<'_>) -> Choice {
    let choice = |way, because: &str| Choice { way, because: because.to_owned() };
    let exits = function.exits.as_ref().filter(|exits| exits.sites().len() == function.exit_places.len());
    let (proven, cheap) = exits.map_or((false, false), |exits| (!exits.sites().is_empty(), exits.are_cheap()));
    let throws = function.shape.throws();
    match means.asked {
        Some(Way::Exits) if proven => return choice(Way::Exits, "it was asked for"),
        Some(Way::Session) if means.sessions && !throws => return choice(Way::Session, "it was asked for"),
        Some(Way::Returns) if function.returns.complete => return choice(Way::Returns, "it was asked for"),
        Some(Way::Link) if !throws => return choice(Way::Link, "it was asked for"),
        // As if nothing had been asked for.
        _ => {}
    }
    // At instructions every call costs as much as one that is recorded.
    let declines = means.samples && means.sessions && !throws && (means.risk)().is_none();
    if declines {
        return choice(Way::Session, "most calls are not recorded, and their returns are left alone");
    }
    if proven && cheap {
        return choice(Way::Exits, "");
    }
    let why = match &function.exits {
        Some(Exits::Unproven(why)) => why.to_string(),
        _ if proven => "it ends at instructions that the kernel steps over".to_owned(),
        _ => "no instruction that the kernel emulates knows the result".to_owned(),
    };
    let choice = |way, and: &str| Choice { way, because: format!("{why}; {and}") };
    let at_instructions =
        if proven { Some(Way::Exits) } else { Some(Way::Returns).filter(|_| function.returns.complete) };
    if throws {
        return choice(at_instructions.unwrap_or(Way::Returns), "an exception must not meet a return probe");
    }
    match (at_instructions, (means.risk)()) {
        (Some(way), Some(risk)) => choice(way, &risk.to_string()),
        _ if means.sessions => choice(Way::Session, "the entry lets the kernel take only what it cannot lose"),
        (None, Some(risk)) => choice(Way::Link, &format!("{risk}, but not all of its returns were found")),
        (_, None) => choice(Way::Link, "nothing in the process is known to be at risk"),
    }
}

/// Whether a call that is not seen to its end has allocated nothing: one that may throw, if each of its returns is seen.
fn may_vanish(function: &Function, way: Way) -> bool {
    function.shape.throws() && (way != Way::Returns || function.returns.complete)
}

/// Where the outcomes of a function are known, and the cookie of each place.
fn exit_cookies(function: &Function) -> impl Iterator<Item = (u64, u64)> {
    let sites = function.exits.iter().flat_map(Exits::sites);
    function.exit_places.iter().zip(sites).map(|((offset, told), site)| (*offset, cost::cookie(*told, site.emulated)))
}

/// The cookie of a `ret` instruction, which the kernel steps: the result is in the register of results, the return address on top of
/// the stack.
fn at_ret() -> u64 {
    let frame = Frame { from_frame_pointer: false, offset: 8 };
    let outcome = Outcome::One(Place::Register { register: 0, displacement: 0 });
    cost::cookie(Exit { frame, outcome }.pack().unwrap_or_default(), false)
}

/// What the program at the entry of a function that allocates is told of its arguments and its result.
fn told_of(shape: Shape) -> u64 {
    let Arguments { block, count, size, string, most } = shape.arguments();
    let size = if string == 0 { u64::from(size) } else { entry::MEASURED };
    let bounded = if most == 0 { 0 } else { entry::BOUNDED };
    let count = if count == 0 { entry::ONE } else { u64::from(count) };
    let stored = if shape.stores() { entry::STORED } else { 0 };
    let in_place = if shape == Shape::Resize { entry::IN_PLACE } else { 0 };
    let words = u64::from(matches!(shape, Shape::MallocWords | Shape::MallocWordsInHeap)) << entry::WORDS;
    let copied = u64::from(string) << entry::STRING | bounded;
    size << entry::SIZE | count << entry::COUNT | u64::from(block) << entry::BLOCK | stored | copied | in_place | words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{
        exits::{ExitSite, Tells, Unproven},
        returns::Returns,
    };

    /// A function with an exit whose result is in a register, if it has one; the kernel emulates the instruction if `cheap`.
    fn function(shape: Shape, exit: Option<bool>, complete: bool) -> Function {
        let outcome = Outcome::One(Place::Register { register: 0, displacement: 0 });
        let told = Exit { frame: Frame { from_frame_pointer: false, offset: 8 }, outcome };
        let site = |emulated| ExitSite { address: 0x1010, exit: told, emulated };
        Function {
            name: "f".to_owned(),
            shape,
            file_offset: 0x1000,
            emulated: true,
            exits: Some(
                exit.map_or(Exits::Unproven(Unproven::TooLong), |cheap| {
                    Exits::Proven(vec![site(cheap)], Tells::Returned)
                }),
            ),
            exit_places: exit.iter().filter_map(|_| Some((0x1010, told.pack()?))).collect(),
            returns: Returns { addresses: vec![0x1020], offsets: vec![0x1020], complete },
        }
    }

    fn way(function: &Function, asked: Option<Way>, sessions: bool, risk: Option<Risk>) -> Way {
        choose(function, &Means { asked, sessions, samples: false, risk: &|| risk.clone() }).way
    }

    #[test]
    fn the_cheapest_way_without_harm_is_taken() {
        let (cheap, dear) = (function(Shape::Malloc, Some(true), true), function(Shape::Malloc, Some(false), true));
        let (unproven, unknown) = (function(Shape::Malloc, None, true), function(Shape::Malloc, None, false));
        let new = function(Shape::New, None, false);
        let risk = Some(Risk::Sanitizer);
        for (what, function, asked, sessions, risk, expected) in [
            ("cheap exits come first", &cheap, None, true, None, Way::Exits),
            ("whatever there is to lose", &cheap, None, false, risk.clone(), Way::Exits),
            ("dear ones do not, without a risk", &dear, None, true, None, Way::Session),
            ("on an old kernel neither", &dear, None, false, None, Way::Link),
            ("they do with a risk", &dear, None, true, risk.clone(), Way::Exits),
            ("then returns, if all are known", &unproven, None, true, risk.clone(), Way::Returns),
            ("and sessions if not", &unknown, None, true, risk.clone(), Way::Session),
            ("links come last", &unknown, None, false, risk, Way::Link),
            ("no exception meets a return probe", &new, None, true, None, Way::Returns),
            ("not even when it is asked for", &new, Some(Way::Link), true, None, Way::Returns),
            ("what is asked for is done", &cheap, Some(Way::Link), true, None, Way::Link),
            ("if it can be", &cheap, Some(Way::Session), false, None, Way::Exits),
            ("returns that are not all known cannot", &unknown, Some(Way::Returns), false, None, Way::Link),
        ] {
            assert_eq!(way(function, asked, sessions, risk), expected, "{what}");
        }
    }

    #[test]
    fn where_most_calls_are_left_out_their_returns_are_left_alone() {
        let (cheap, new) = (function(Shape::Malloc, Some(true), true), function(Shape::New, Some(true), true));
        for (function, sessions, risk, expected) in [
            (&cheap, true, None, Way::Session),
            (&cheap, false, None, Way::Exits),
            (&cheap, true, Some(Risk::Sanitizer), Way::Exits),
            (&new, true, None, Way::Exits),
        ] {
            let means = Means { asked: None, sessions, samples: true, risk: &|| risk.clone() };
            assert_eq!(choose(function, &means).way, expected, "{:?}, {sessions}, {risk:?}", function.shape);
        }
    }

    #[test]
    fn what_may_return_unseen_does_not_vanish() {
        let means = Means { asked: None, sessions: true, samples: false, risk: &|| None };
        for (exit, complete, expected) in [(None, false, false), (None, true, true), (Some(true), false, true)] {
            let plan = plan(&[function(Shape::New, exit, complete)], 0, &means);
            let (_, places) = plan.programs.iter().find(|(name, _)| *name == "enter").unwrap();
            assert_eq!(places[0].1 & entry::MAY_VANISH != 0, expected, "exit {exit:?}, all returns {complete}");
        }
    }

    #[test]
    fn dear_instructions_are_told_as_such() {
        let dear = |shape, exit| Function { emulated: false, ..function(shape, exit, true) };
        let functions = [dear(Shape::Free, None), dear(Shape::EndNamedHeap, None), dear(Shape::Malloc, Some(false))];
        let stepped = |asked, program| {
            let means = Means { asked, sessions: true, samples: false, risk: &|| None };
            let plan = plan(&functions, 0, &means);
            let places = plan.programs.iter().find(|(name, _)| *name == program).map(|(_, places)| places.clone());
            places.unwrap().iter().map(|(_, cookie)| cost::stepped(*cookie)).sum::<u64>()
        };
        for (asked, program) in [
            (Way::Exits, "enter"),
            (Way::Exits, "leave_at_exit"),
            (Way::Returns, "leave_at_exit"),
            (Way::Session, "session"),
            (Way::Session, "enter_free"),
            (Way::Session, "enter_at_once"),
        ] {
            assert_eq!(stepped(Some(asked), program), 1, "{asked:?}, {program}");
        }
        assert_eq!(stepped(Some(Way::Link), "leave"), 0, "what is no instruction is none that is stepped");
    }

    #[test]
    fn a_block_that_is_told_before_it_is_stored_is_not_read() {
        let mut stores = function(Shape::PosixMemalign, Some(true), true);
        for tells in [Tells::Status, Tells::Stored] {
            let sites = stores.exits.as_ref().unwrap().sites().to_vec();
            stores.exits = Some(Exits::Proven(sites, tells));
            for asked in [Way::Exits, Way::Returns] {
                let means = Means { asked: Some(asked), sessions: true, samples: false, risk: &|| None };
                let plan = plan(std::slice::from_ref(&stores), 0, &means);
                let (_, places) = plan.programs.iter().find(|(name, _)| *name == "enter").unwrap();
                let read = places[0].1 & (entry::STORED | entry::ARGUMENT << entry::BLOCK) != 0;
                assert_eq!(read, tells == Tells::Status || asked == Way::Returns, "{tells:?}, {asked:?}");
            }
        }
    }

    #[test]
    fn programs_go_where_they_are_to_go() {
        let functions = [function(Shape::Free, None, true), function(Shape::Malloc, Some(true), true)];
        let plan = plan(&functions, 7, &Means { asked: None, sessions: true, samples: false, risk: &|| None });
        let exit = functions[1].exit_places[0];
        let entered = 1 | entry::ONE << entry::COUNT | entry::AT_INSTRUCTIONS | 8 << entry::FUNCTION;
        let expected =
            [("leave_at_exit", vec![exit]), ("enter", vec![(0x1000, entered)]), ("enter_free", vec![(0x1000, 0)])];
        assert_eq!(plan.programs, expected);
    }
}
