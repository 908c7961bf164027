//! What could not be recorded: how much, and the blocks that lost frees would have ended.

use tracer_ebpf::BlockKey;

use super::{Collector, Notice};
use crate::{clock::monotonic, event::Image};

impl Collector {
    /// Reads the loss counters; when frees were lost, ends the blocks that they would have ended.
    pub(super) fn account_for_loss(&mut self) {
        let loss = match self.events.loss() {
            Ok(loss) => loss,
            Err(error) => return tracing::error!("cannot read the loss counters: {error}"),
        };
        if loss == self.loss {
            return;
        }
        let frees_lost = loss.frees != self.loss.frees;
        if loss.processes != self.loss.processes {
            let (_, mut intake, _) = self.intake();
            intake.recover_all();
            intake.notices.into_iter().for_each(&self.notify);
        }
        if loss.frees_unrecorded != self.loss.frees_unrecorded {
            self.heap.frees_lost_without_trace(loss.frees_unrecorded_time);
        }
        tracing::debug!(?loss, "events were lost");
        if loss.returns_declined != self.loss.returns_declined {
            (self.notify)(Notice::ReturnDeclined);
        }
        self.loss = loss;
        if frees_lost {
            self.end_lost_frees();
        }
    }

    pub(super) fn end_lost_frees(&mut self) {
        let mut frees: Vec<(BlockKey, u64)> = Vec::new();
        if let Err(error) = self.events.take_lost_frees(&mut frees) {
            tracing::error!("cannot read the set of lost frees: {error}; all blocks up to now are uncertain");
            self.heap.frees_lost_without_trace(monotonic());
        }
        // Whatever was recorded before those frees is in the ring buffer by now.
        self.take_in_all();
        frees.sort_unstable_by_key(|(_, time)| *time);
        for (free, time) in frees {
            self.heap.apply_lost_free(Image(free.image), free.addr, time);
        }
    }
}
