//! Images that have ended and are told as one.

use super::{Collector, Merging};

impl Collector {
    /// Makes images one that are to be told as one, as soon as their blocks are gone.
    pub(super) fn merge(&mut self) {
        let Self { merging, heap, mapped, images, places, history, go, unheard, .. } = self;
        let (mut emptied, mut freed) = (Vec::new(), Vec::new());
        merging.retain(|Merging { from, into, is_unheard, is_unseen }| {
            if !from.iter().all(|image| heap.has_ended(*image)) {
                return true;
            }
            let is_silent = || !from.iter().any(|image| heap.has_allocated(*image));
            *unheard += u64::from(*is_unseen || *is_unheard && is_silent());
            for image in from.iter().filter(|image| *image != into) {
                // As long as it is known which stacks they are.
                mapped.merge(*image, *into, |stack| match stack {
                    Some(stack) => heap.counterpart(stack, *into),
                    None => heap.stand_in(*into),
                });
                let merged = heap.merge(*image, *into);
                emptied.extend(merged.0);
                freed.extend(merged.1);
                go.retain(|(of, _), _| of != image);
                images.merged(*image);
            }
            false
        });
        history.forget(emptied.iter().chain(&freed).map(|stack| stack.index()));
        if !freed.is_empty() {
            places.trails.forget(&freed);
        }
    }
}
