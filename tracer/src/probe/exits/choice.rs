//! As few instructions as see the outcome on every path.

use iced_x86::{ConditionCode, Mnemonic, OpKind};
use tracer_ebpf::exit::{Exit, Outcome, Place};

use super::{
    depth::{self, Depth},
    flow::Results,
    graph::{Flow, Graph, Node},
    image::Image,
    machine::number,
    proof::{ExitSite, Tells, Unproven},
    transfer::Lies,
};
use crate::probe::site::is_emulated;

/// What is known at an instruction, on the way that goes on from it or on either of two.
#[derive(Clone, Copy)]
struct Sees {
    taken: bool,
    not_taken: bool,
}

/// An instruction that may become a site. The order is that in which those that are not needed are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// It is not emulated, and calls that give out blocks pass it.
    Stepped,
    /// It knows the outcome on one of two ways only.
    OneWay,
    /// It is not emulated, but only calls that fail pass it.
    Failure,
    /// It is emulated and knows the outcome.
    Emulated,
}

struct Candidate {
    node: usize,
    exit: Exit,
    sees: Sees,
    worth: Worth,
}

struct Chooser<'a> {
    graph: &'a Graph,
    results: &'a Results,
    cycles: Vec<usize>,
    /// By instruction, what it sees if it is a site.
    sites: Vec<Option<Sees>>,
}

/// Chooses the sites of a graph.
pub(super) fn choose(
    image: &Image<'_>,
    graph: &Graph,
    depths: &[Depth],
    results: &Results,
) -> Result<Vec<ExitSite>, Unproven> {
    let mut chooser = Chooser { graph, results, cycles: graph.cycles(), sites: vec![None; graph.nodes.len()] };
    let mut candidates: Vec<Candidate> = (0..graph.nodes.len())
        .filter(|number| !image.entries.contains(&graph.nodes[*number].address) && !results.behind[*number])
        .filter_map(|number| chooser.candidate(image, number, depths[number]))
        .collect();
    for candidate in &candidates {
        chooser.sites[candidate.node] = Some(candidate.sees);
    }
    if let Some(missed) = chooser.missed() {
        return Err(missed);
    }
    // Late ones: what an allocator does between them and its return is the least.
    let last = chooser.last(&candidates);
    candidates.retain(|candidate| {
        let kept = last[candidate.node] || matches!(candidate.worth, Worth::Stepped | Worth::Failure);
        if !kept {
            chooser.sites[candidate.node] = None;
        }
        kept
    });
    let order = graph.in_order();
    candidates.sort_by_key(|candidate| (candidate.worth, order[candidate.node]));
    for candidate in &candidates {
        let sees = chooser.sites[candidate.node].take();
        if chooser.missed().is_some() {
            chooser.sites[candidate.node] = sees;
        }
    }
    candidates.retain(|candidate| chooser.sites[candidate.node].is_some());
    candidates.sort_by_key(|candidate| graph.nodes[candidate.node].address);
    let site = |candidate: Candidate| ExitSite {
        address: graph.nodes[candidate.node].address,
        exit: candidate.exit,
        emulated: matches!(candidate.worth, Worth::Emulated | Worth::OneWay),
    };
    Ok(candidates.into_iter().map(site).collect())
}

impl Chooser<'_> {
    /// What the instruction is good for; `None` if for nothing.
    fn candidate(&self, image: &Image<'_>, number: usize, depth: Depth) -> Option<Candidate> {
        let node = &self.graph.nodes[number];
        let step = node.step.as_ref()?;
        let (sees, outcome, worth) = match node.flow {
            Flow::Splits { taken, not_taken } if is_emulated(&step.instruction) => {
                self.branch(number, taken, not_taken, condition(step.instruction.condition_code())?)?
            }
            Flow::Splits { .. } => return None,
            _ => {
                let emulated = is_emulated(&step.instruction);
                if !emulated && !self.is_steppable(node, number) || self.is_in_cycle(number) {
                    return None;
                }
                let worth = match self.results.lies[number] {
                    _ if emulated => Worth::Emulated,
                    lies if self.fails(lies) => Worth::Failure,
                    _ => Worth::Stepped,
                };
                (Sees { taken: true, not_taken: true }, Outcome::One(self.place(number)?), worth)
            }
        };
        let exit = Exit { frame: depth::frame(node, depth, image.frames)?, outcome };
        exit.pack()?;
        Some(Candidate { node: number, exit, sees, worth })
    }

    /// What a conditional jump that is emulated knows.
    fn branch(&self, number: usize, taken: usize, not_taken: usize, condition: u8) -> Option<(Sees, Outcome, Worth)> {
        let nowhere = |to: usize| self.results.lies[to] == Lies::Nowhere;
        // Not on a way that comes back: it would be said again and again.
        let place = |to: usize| self.place(to).filter(|_| self.cycles[to] != self.cycles[number]);
        let (on_taken, on_not_taken) = (place(taken), place(not_taken));
        let outcome = match (on_taken, on_not_taken) {
            (None, None) => return None,
            (Some(one), Some(other)) if one == other => Outcome::One(one),
            (Some(one), None) if nowhere(not_taken) => Outcome::One(one),
            (None, Some(one)) if nowhere(taken) => Outcome::One(one),
            (one, other) => Outcome::Branch {
                condition,
                taken: one.unwrap_or(Place::Unknown),
                not_taken: other.unwrap_or(Place::Unknown),
            },
        };
        let sees = Sees {
            taken: on_taken.is_some() || nowhere(taken),
            not_taken: on_not_taken.is_some() || nowhere(not_taken),
        };
        let worth = if sees.taken && sees.not_taken { Worth::Emulated } else { Worth::OneWay };
        Some((sees, outcome, worth))
    }

    /// Where the result lies before an instruction, if the outcome may be said there.
    fn place(&self, at: usize) -> Option<Place> {
        let lies = self.results.lies[at];
        if !self.results.settled[at] || !(self.results.stored[at] || self.fails(lies)) {
            return None;
        }
        let small = |value: i64| i16::try_from(value).ok();
        match lies {
            Lies::Register(register, bytes) => {
                Some(Place::Register { register: number(register)?, displacement: small(bytes)? })
            }
            Lies::Number(value) => Some(Place::Constant(small(value)?)),
            Lies::Stack(at) => Some(Place::Stack(small(at)?)),
            Lies::Nowhere | Lies::Unknown => None,
        }
    }

    /// Whether a result that lies there means that there is no block.
    fn fails(&self, lies: Lies) -> bool {
        matches!(lies, Lies::Number(value) if (value != 0) == (self.results.tells == Tells::Status))
    }

    /// Whether an instruction that is not emulated is one that may be stepped at its own place: a return, or one that puts a
    /// failure's number into a register.
    fn is_steppable(&self, node: &Node, number: usize) -> bool {
        let Some(step) = &node.step else { return false };
        let i = &step.instruction;
        match node.flow {
            Flow::Returns => true,
            _ => {
                matches!(self.results.lies[number], Lies::Number(_))
                    && matches!(i.mnemonic(), Mnemonic::Xor | Mnemonic::Mov | Mnemonic::Pop)
                    && (0..i.op_count()).all(|operand| i.op_kind(operand) != OpKind::Memory)
            }
        }
    }

    fn is_in_cycle(&self, number: usize) -> bool {
        self.graph.nodes[number].flow.targets().any(|to| self.cycles[to] == self.cycles[number])
    }

    /// What goes on from an instruction without having been seen.
    fn unseen(&self, number: usize) -> impl Iterator<Item = usize> {
        let flow = self.graph.nodes[number].flow;
        let site = self.sites[number];
        let ways = match flow {
            Flow::Splits { taken, not_taken } => {
                let sees = site.unwrap_or(Sees { taken: false, not_taken: false });
                [Some(taken).filter(|_| !sees.taken), Some(not_taken).filter(|_| !sees.not_taken)]
            }
            Flow::Goes(to) => [Some(to).filter(|_| site.is_none()), None],
            _ => [None, None],
        };
        ways.into_iter().flatten().filter(|to| self.results.lies[*to] != Lies::Nowhere)
    }

    /// Whether a path that has not been seen may end at an instruction.
    fn ends_unseen(&self, number: usize) -> bool {
        let ends = matches!(
            self.graph.nodes[number].flow,
            Flow::Returns | Flow::ReturnsFirst | Flow::HandsOut(_) | Flow::Lost(_)
        );
        ends && self.sites[number].is_none()
    }

    /// Where a path ends that passes no site; `None` if there is none.
    fn missed(&self) -> Option<Unproven> {
        let mut seen = vec![false; self.graph.nodes.len()];
        seen[0] = true;
        let mut paths = vec![0];
        while let Some(number) = paths.pop() {
            if self.ends_unseen(number) {
                let node = &self.graph.nodes[number];
                return Some(match node.flow {
                    Flow::Lost(why) => why,
                    _ => Unproven::Unseen(node.address),
                });
            }
            paths.extend(self.unseen(number).filter(|to| !std::mem::replace(&mut seen[*to], true)));
        }
        None
    }

    /// By instruction, whether it is an emulated site behind which a path passes no further one.
    fn last(&mut self, candidates: &[Candidate]) -> Vec<bool> {
        let emulated = |worth| matches!(worth, Worth::Emulated | Worth::OneWay);
        let all = self.sites.clone();
        for candidate in candidates.iter().filter(|candidate| !emulated(candidate.worth)) {
            self.sites[candidate.node] = None;
        }
        // Backwards from the ends that are not seen.
        let mut open: Vec<bool> = (0..self.graph.nodes.len()).map(|number| self.ends_unseen(number)).collect();
        let mut paths: Vec<usize> = (0..open.len()).filter(|number| open[*number]).collect();
        while let Some(number) = paths.pop() {
            for before in &self.graph.before[number] {
                if !open[*before] && self.unseen(*before).any(|to| to == number) {
                    open[*before] = true;
                    paths.push(*before);
                }
            }
        }
        let is_last = |number: usize| match (self.graph.nodes[number].flow, self.sites[number]) {
            (_, None) => false,
            (Flow::Splits { taken, not_taken }, Some(sees)) => {
                sees.taken && open[taken] || sees.not_taken && open[not_taken]
            }
            (Flow::Goes(to), Some(_)) => open[to],
            _ => true,
        };
        let last = (0..open.len()).map(is_last).collect();
        self.sites = all;
        last
    }
}

/// A condition as the machine encodes it.
fn condition(code: ConditionCode) -> Option<u8> {
    Some(match code {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}
