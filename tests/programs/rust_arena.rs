//! A global allocator of the program's own, over nothing but memory of the kernel's: the compiler inlines what stands for it, and calls go
//! to its methods. With `--cfg forgets` it gives nothing back, and its method needs no argument for that. The truth is by the function
//! that allocated.

use std::{
    alloc::{GlobalAlloc, Layout},
    hint::black_box,
    io::Read as _,
    ptr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

// SAFETY: as the C library declares it.
unsafe extern "C" {
    fn mmap(addr: *mut u8, length: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
}

const ROOM: usize = 1 << 28;
const CLASSES: usize = 40;

/// Blocks of powers of two, and what was given back of each, one behind the other. One thread at a time.
struct Arena {
    next: AtomicUsize,
    free: [AtomicUsize; CLASSES],
}

#[global_allocator]
static ARENA: Arena = Arena { next: AtomicUsize::new(0), free: [const { AtomicUsize::new(0) }; CLASSES] };

fn class(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(16).next_power_of_two().trailing_zeros() as usize % CLASSES
}

// SAFETY: each block is given out to one, aligned as it is large.
unsafe impl GlobalAlloc for Arena {
    // SAFETY: as above.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(layout);
        let free = self.free[class].load(SeqCst);
        if free != 0 {
            // SAFETY: who gave it back has written there.
            self.free[class].store(unsafe { *(free as *const usize) }, SeqCst);
            return free as *mut u8;
        }
        if self.next.load(SeqCst) == 0 {
            // SAFETY: takes new memory.
            let room = unsafe { mmap(ptr::null_mut(), ROOM, 3, 0x22, -1, 0) };
            self.next.store(room as usize, SeqCst);
        }
        let size = 1 << class;
        let block = (self.next.load(SeqCst) + size - 1) & !(size - 1);
        self.next.store(block + size, SeqCst);
        block as *mut u8
    }

    // SAFETY: as above.
    #[cfg(not(forgets))]
    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let first = &self.free[class(layout)];
        // SAFETY: the block is nobody's.
        unsafe { *(block as *mut usize) = first.load(SeqCst) };
        first.store(block as usize, SeqCst);
    }

    // SAFETY: as above.
    #[cfg(forgets)]
    #[inline(never)]
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {
        self.next.fetch_add(0, SeqCst);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
fn hold_boxes() {
    for number in 0..50usize {
        let block = black_box(Box::new([number; 10]));
        if number % 2 == 0 {
            Box::leak(block);
        }
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
fn hold_zeroed() {
    for number in 0..50usize {
        let block = black_box(vec![0u8; 1000 + number]);
        if number % 2 == 0 {
            std::mem::forget(block);
        }
    }
}

/// They grow, and shrink to ten elements.
#[inline(never)]
#[unsafe(no_mangle)]
fn hold_grown() {
    for number in 0..50usize {
        let mut block: Vec<u64> = Vec::new();
        (0..100).for_each(|element| block.push(black_box(element)));
        block.truncate(10);
        block.shrink_to_fit();
        if number % 2 == 0 {
            std::mem::forget(black_box(block));
        }
    }
}

fn main() {
    println!("waiting");
    let mut command = [0; 6];
    std::io::stdin().read_exact(&mut command).unwrap();
    hold_boxes();
    hold_zeroed();
    hold_grown();
    let zeroed: usize = (0..50).step_by(2).map(|number| 1000 + number).sum();
    println!("truth hold_boxes 2000 25\ntruth hold_zeroed {zeroed} 25\ntruth hold_grown 2000 25\nready");
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
}
