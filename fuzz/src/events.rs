//! Records of the ring buffer, and the heap that they make.

use tracer::{
    event::{Allocation, Event, Image, Origin, parse},
    heap::Heap,
};

use crate::input::take;

/// Stacks that the heap keeps.
const MAX_STACKS: usize = 8;
/// Times are the kernel's, not the target's: below this.
const MAX_TIME: u64 = 1 << 60;

/// The input is records, each after a byte with its length. One that is none stands for a lost free, or for the
/// end of an image.
pub fn run(mut data: &[u8]) {
    let mut heap = Heap::new(MAX_STACKS);
    let mut images = Vec::new();
    while let Some((length, rest)) = data.split_first() {
        let (record, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        match parse(record) {
            Ok((origin, event)) => {
                images.push(origin.image);
                heap.apply(origin, of_image(origin, event));
            }
            Err(_) => {
                let ([image, what], rest) = take(record);
                let image = Image(image.into());
                let (addr, rest) = take(rest);
                let time = u64::from_le_bytes(take(rest).0) % MAX_TIME;
                match what % 8 {
                    0 => heap.forget(image),
                    1 => heap.end(image, time, 0),
                    _ => heap.apply_lost_free(image, u64::from_le_bytes(addr), time),
                }
            }
        }
    }
    images.sort_unstable();
    images.dedup();
    check(&mut heap, images.len());
}

/// As the BPF programs send it: no two images share a stack id.
fn of_image(origin: Origin, event: Event<'_>) -> Event<'_> {
    let own = |id: u64| ((id % 16) << 40) | u64::from(origin.image.0);
    let block = |block: Allocation| Allocation { stack: own(block.stack), time: block.time % MAX_TIME, ..block };
    match event {
        Event::Alloc(new) => Event::Alloc(block(new)),
        Event::ReallocDone(new) => Event::ReallocDone(block(new)),
        Event::Stack { id, frames, end } => Event::Stack { id: own(id), frames, end },
        other => other,
    }
}

/// The books agree with the blocks.
fn check(heap: &mut Heap, images: usize) {
    assert!(heap.stacks().len() <= MAX_STACKS + images);
    for usage in heap.view().usage_at(|_| MAX_TIME, 0) {
        let values = usage.values;
        assert_eq!(values.allocated_blocks, values.freed_blocks + values.outstanding_blocks);
        assert!(usage.uncertain_bytes <= values.outstanding_bytes);
        // A target's own allocator may give more than there is; then sums end at the largest number.
        if values.allocated_bytes < u64::MAX {
            assert_eq!(values.outstanding_bytes, heap.values(usage.stack).outstanding_bytes);
            assert!(values.outstanding_bytes <= values.allocated_bytes);
        }
    }
}
