//! What would be probed of a process: functions, the instruction of each, what a hit costs, and how outcomes are seen.

use std::{cell::OnceCell, os::unix::fs::FileExt as _};

use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};

use crate::{
    attach::{self, Allocator, Returns, altered::altered, probes},
    doctor::line::{Line, Need},
    files::module::Module,
    probe::{
        outcomes::{self, Choice, Means, Way},
        resolve::{Function, cost},
    },
    report::visible,
};

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// A function that would be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Path of its file, as the process sees it: hostile text.
    pub file: String,
    /// Its name.
    pub function: String,
    /// Offset of the probed instruction in the file, bytes.
    pub offset: u64,
    /// The instruction, as assemblers write it; empty where it cannot be read.
    pub instruction: String,
    /// Whether the kernel emulates it: a hit on another one costs a single step besides.
    pub cheap: bool,
    /// How the outcomes of its calls are seen; `None` where it allocates nothing.
    pub outcome: Option<Choice>,
}

/// The allocators of a process, in lines, and the functions of all.
pub(super) fn examine(pid: u32, sessions: bool, has_go_heap: bool) -> (Vec<Line>, Vec<Probed>) {
    let line = || Line::new("allocator", Need::Required, "recording allocations");
    let found = match attach::allocators(pid) {
        Ok(Some(found)) => found,
        Ok(None) if has_go_heap => return (vec![line().not_needed("none but that of Go")], Vec::new()),
        Ok(None) => {
            let found = "no malloc in its executable or its libraries: statically linked and stripped, or an allocator of its own";
            let advice =
                "keep the table of symbols (build it without -s, do not strip it), or name its functions (--symbol)";
            return (vec![line().missing(found, advice)], Vec::new());
        }
        Err(error) => {
            return (vec![line().missing(format!("{error:#}"), "run tracer as root (sudo)")], Vec::new());
        }
    };
    let all: Vec<(Line, Vec<Probed>)> = found.files().iter().map(|allocator| one(pid, allocator, sessions)).collect();
    let (mut lines, functions): (Vec<Line>, Vec<Vec<Probed>>) = all.into_iter().unzip();
    let others = || Line::new("allocators", Need::ForCompleteness, "recording all that is allocated");
    lines.extend(found.unseen().iter().map(|what| others().degraded(what.clone(), "")));
    for allocator in found.files() {
        let (altered, path) = (altered_names(pid, allocator), visible(allocator.module.path()));
        if !altered.is_empty() {
            let what = format!("runs code of its own in the place of {altered} of {path}: not probed");
            lines.push(others().degraded(what, "leave hooks out that patch the code of allocators"));
        }
    }
    (lines, functions.into_iter().flatten().collect())
}

/// Names of functions that have other code in the process than in the file.
fn altered_names(pid: u32, allocator: &Allocator) -> String {
    let functions = &allocator.functions.functions;
    let mut altered: Vec<usize> = altered(pid, &allocator.module, functions).iter().map(|one| one.function).collect();
    altered.sort_unstable();
    altered.dedup();
    let names: Vec<&str> = altered.iter().filter_map(|at| Some(functions.get(*at)?.name.as_str())).collect();
    names.join(", ")
}

fn one(pid: u32, allocator: &Allocator, sessions: bool) -> (Line, Vec<Probed>) {
    let (module, functions) = (&allocator.module, &allocator.functions);
    let found = OnceCell::new();
    let risk = || found.get_or_init(|| probes::risk(pid, allocator, Returns::default())).clone();
    let means = Means { asked: None, sessions, samples: false, risk: &risk };
    let mut choices = outcomes::plan(&functions.functions, 0, &means).choices.into_iter().peekable();
    let probed = |function: &Function| Probed {
        file: module.path().to_owned(),
        function: function.name.clone(),
        offset: function.file_offset,
        instruction: instruction(module, function.file_offset).unwrap_or_default(),
        cheap: function.emulated,
        outcome: choices.next_if(|(name, _)| *name == function.name).map(|(_, choice)| choice),
    };
    let probed: Vec<Probed> = functions.functions.iter().map(probed).collect();
    let name = functions.allocator();
    let dear = probed.iter().filter(|probed| is_dear(probed)).count();
    let cost = if dear == 0 { "all cheap".to_owned() } else { format!("{dear} dear") };
    let line = Line::new(module.path(), Need::Required, "recording allocations")
        .works(format!("{name}, {} functions, {cost}", probed.len()))
        .with_details(probed.iter().map(words).collect());
    (line, probed)
}

fn is_dear(probed: &Probed) -> bool {
    // Exits that are cheap need no reason.
    let steps = |outcome: &Choice| match outcome.way {
        Way::Returns => true,
        Way::Exits => !outcome.because.is_empty(),
        Way::Session | Way::Link => false,
    };
    !probed.cheap || probed.outcome.as_ref().is_some_and(steps)
}

fn words(probed: &Probed) -> String {
    let Probed { function, offset, instruction, cheap, outcome, .. } = probed;
    let cost = cost(*cheap);
    let outcome = outcome.as_ref().map_or_else(String::new, |Choice { way, because }| {
        let because = if because.is_empty() { String::new() } else { format!(", because {because}") };
        format!("; outcomes {way}{because}")
    });
    format!("{function} at {offset:#x}: {instruction} ({cost}){outcome}")
}

/// The instruction at an offset of a file; places that it refers to are offsets, too.
fn instruction(module: &Module, offset: u64) -> Option<String> {
    let mut bytes = [0; LONGEST];
    let length = module.file()?.read_at(&mut bytes, offset).ok()?;
    let instruction = Decoder::with_ip(64, &bytes[..length], offset, DecoderOptions::NONE).decode();
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    (!instruction.is_invalid()).then_some(text)
}
