//! Handing out what is known at one moment.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Collector, nanoseconds, snapshot::Snapshot, view::View};
use crate::clock::monotonic;

impl Collector {
    /// What is held now.
    pub(super) fn view(&mut self, min_age: Duration) -> View {
        self.keep_within_memory();
        let snapshot = Snapshot {
            // What is recorded no more grows no older.
            at: self.stopped.unwrap_or_else(monotonic),
            stacks: Vec::new(),
            go_stacks: Vec::new(),
            mapped: None,
            remappings: self.mapped.changes(),
            refused_remappings: self.mapped.refused(),
            counters: self.heap.counters(),
            folded: (0, 0),
            loss: self.loss,
            unknown_records: self.unknown_records,
            late: self.late,
            unheard: self.unheard,
            undecided_events: self.undecided_events,
            unwind_tables: self.unwind_tables.clone(),
        };
        let (go, begun) = (self.go.iter(), Instant::now());
        let view = View {
            snapshot,
            heap: self.heap.view(),
            mapped: self.records_mapped.then(|| self.mapped.share()),
            history: self.history.share(),
            images: self.images.known().clone(),
            places: self.places.share(),
            go: go.flat_map(|((image, _), process)| process.stacks.iter().map(|stack| (*image, *stack))).collect(),
            followed_age: self.min_age,
            min_age: nanoseconds(min_age),
            all_sizes: self.all_sizes,
            sample: self.sample,
            _looking: Arc::clone(&self.looking),
        };
        tracing::debug!(took = ?begun.elapsed(), "a view");
        view
    }
}
