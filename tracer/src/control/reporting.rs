//! What reports are made of: everything that is known of the trace at a moment.

use std::time::Duration;

use anyhow::Result;

use super::{MAX_NOTES, Session, ended::doubt, go::go_memory, known::Doubt, notes::Notes};
use crate::{
    attach::{Attached, probes::Scope},
    clock::monotonic,
    collector::{Request, View},
    coverage::Had,
    files::opener,
    present::{GoTrace, MappedFacts, Trace},
    profile::{Filters, Process},
    writer::Material,
};

impl Session {
    /// Of a short report.
    pub(super) fn interval(&mut self) -> Result<Material> {
        // Before the collector is asked, so that it knows the stacks of all samples.
        let go = &self.go;
        self.coverage.look(|pid, regions| go_memory(go, pid, regions), false);
        let go = self.go_traces(false);
        self.look_at_cost(usize::MAX);
        let view = self.ask(|reply| Request::View { min_age: self.config.min_age, reply })?;
        Ok(self.material(view, go))
    }

    /// Of the last report: recording ends here.
    pub(super) fn last(&mut self) -> Result<Material> {
        self.goroutines.finish();
        let untraced = self.untraced();
        let go = &self.go;
        self.coverage.look(|pid, regions| go_memory(go, pid, regions), true);
        self.ask(|reply| Request::Stop { reply })?;
        self.look_at_cost(usize::MAX);
        // Nobody will be there any more to put their sums together.
        self.ended.keep_apart();
        self.learn_of_ends();
        let view = self.ask(|reply| Request::Finish { min_age: self.config.min_age, reply })?;
        self.learn_of_ended_programs();
        self.learn_of_missed(untraced);
        // After the collector has passed the last samples on.
        let go = self.go_traces(true);
        Ok(self.material(view, go))
    }

    /// Reads what memory all processes have as recording begins.
    pub(super) fn read_memory(&mut self) {
        for attached in &self.attached {
            self.coverage.begin(attached.pid(), attached.image(), Had::All);
        }
    }

    /// What is known of mapped memory besides what was recorded of it.
    fn mapped_facts(&self) -> MappedFacts {
        let mut facts = MappedFacts::default();
        for attached in &self.attached {
            if let Some(resident) = self.coverage.resident(attached.image()) {
                facts.resident.insert(attached.image(), resident.usable.clone());
                facts.reserved.insert(attached.image(), resident.reserved.clone());
            }
            let probed = attached.probed().into_iter().map(str::to_owned).collect();
            facts.allocators.insert(attached.image(), probed);
        }
        facts
    }

    fn material(&mut self, view: View, go: Vec<GoTrace>) -> Material {
        let mut notes: Vec<String> = self.notes.all().collect();
        let mut of_heaps = Notes::most(MAX_NOTES);
        of_heaps.extend(go.iter().map(|go| go.note.clone()));
        notes.extend(of_heaps.all());
        if self.interruptions > 0 {
            notes.push(
                "the first thread of the process ended while it was traced; the probes were moved to another thread, \
                 and frees of that moment may be missing"
                    .to_owned(),
            );
        }
        let filters = Filters { min_age: self.config.min_age, sizes: self.config.sizes, younger: None };
        let filtered = filters.leaves_out_sizes();
        if filtered {
            notes.push(told_of_filter(self.config.sample.is_some()));
        }
        for attached in self.processes() {
            notes.extend(attached.life().notes());
        }
        let mut heard = None;
        let unheard = |attached: &&Attached| match doubt(attached, &self.known, &self.probes) {
            Doubt::None => false,
            Doubt::IfSilent => !heard.get_or_insert_with(|| view.heard()).contains(&attached.image()),
            Doubt::Certain => true,
        };
        let unheard = self.processes().filter(unheard).count() as u64 + view.unheard();
        notes.extend(self.note_on_late_ones(unheard));
        notes.extend(self.unseen_heaps.all());
        notes.extend(self.goroutines.notes());
        notes.extend(opener::notes());
        let cost = self.meter.cost();
        // What tracer does when nothing is recorded any more is no part of it.
        let since = Duration::from_nanos(monotonic().saturating_sub(view.at()));
        let duration = self.clock.elapsed().saturating_sub(since);
        let (times_away, told) = self.told_of_budget(cost, duration);
        notes.extend(told);
        let mut processes: Vec<Process> = self.processes().map(Attached::target).collect();
        for (process, attached) in processes.iter_mut().zip(self.attached.iter().chain(self.ended.apart())) {
            let go =
                go.iter().filter(|go| go.image == attached.image()).map(GoTrace::held).fold(0, u64::saturating_add);
            if !(attached.life().came_later() && attached.is_over()) {
                process.memory = self.coverage.memory(attached.image(), go, &attached.probed());
            }
        }
        processes.extend(self.ended.together());
        let mapped = self.mapped_facts();
        for memory in processes.iter_mut().filter_map(|process| process.memory.as_mut()).filter(|_| filtered) {
            // What is filtered out cannot be told from what is not seen.
            (memory.unexplained, memory.is_partial, memory.reasons) = (0, true, Vec::new());
        }
        if times_away > 0 {
            // What was allocated then is reason enough.
            processes
                .iter_mut()
                .filter_map(|process| process.memory.as_mut())
                .for_each(|memory| memory.reasons.clear());
        }
        // Where they had probes, what they did is counted.
        let undecided = if self.probes.scope() == Scope::Process { self.over_too_soon } else { 0 };
        let in_processes = processes.iter().map(|process| process.quality.unseen_spans).sum::<u64>();
        let trace = Trace {
            cost,
            sample: self.config.sample,
            started: self.started,
            duration,
            processes,
            selected: self.selected,
            filters,
            unseen_spans: unheard + self.found_late + self.missed.len() as u64 + undecided + in_processes + times_away,
            unseen_heaps: self.unseen_heaps.len(),
            mapped,
            notes,
        };
        let (goroutines, goroutine_growth) = (self.goroutines.groups(), self.goroutines.per_second());
        Material { trace, view, go, goroutines, goroutine_growth }
    }
}

/// What the reader should know where sizes are left out. `sampled`: ends of what is not recorded are not looked for.
fn told_of_filter(sampled: bool) -> String {
    let frees = if sampled { "" } else { "frees of blocks outside it count as unmatched, and " };
    format!("a size filter is on: {frees}whether growth of memory is explained is not known")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_counts_frees_of_what_was_not_sampled() {
        assert!(
            told_of_filter(false).contains("on: frees of blocks outside it count as unmatched, and whether growth")
        );
        assert_eq!(told_of_filter(true), "a size filter is on: whether growth of memory is explained is not known");
    }
}
