//! A service in Rust: vectors, boxes, hash maps, strings, threads that hand them on and drop them. The truth is by the
//! function that allocated, which is somewhere on the stack; a global allocator keeps count.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    collections::{BTreeMap, HashMap},
    hint::black_box,
    io::Read as _,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

/// What keeps the memory, as `rust_allocators` has it.
#[cfg(feature = "mimalloc")]
use mimalloc::MiMalloc as Keeper;
#[cfg(feature = "rpmalloc")]
use rpmalloc::RpMalloc as Keeper;
#[cfg(feature = "snmalloc")]
use snmalloc_rs::SnMalloc as Keeper;
#[cfg(not(any(feature = "jemalloc", feature = "mimalloc", feature = "rpmalloc", feature = "snmalloc")))]
use std::alloc::System as Keeper;
#[cfg(feature = "jemalloc")]
use tikv_jemallocator::Jemalloc as Keeper;

const HOLDERS: [&str; 7] =
    ["hold_vectors", "hold_boxes", "hold_hash_map", "hold_strings", "hold_tree", "hold_from_thread", "hold_zeroed"];

thread_local! {
    /// 1 + index of the holder that the thread works for; 0 when nobody counts.
    static HOLDER: Cell<usize> = const { Cell::new(0) };
}

const SLOTS: usize = 1 << 16;

/// Who holds which block: open addressing over addresses, guarded by a spin lock.
struct Counting {
    busy: AtomicBool,
    addresses: [AtomicUsize; SLOTS],
    holders: [AtomicUsize; SLOTS],
    bytes: [AtomicUsize; HOLDERS.len() + 1],
    blocks: [AtomicUsize; HOLDERS.len() + 1],
}

#[global_allocator]
static COUNTING: Counting = Counting {
    busy: AtomicBool::new(false),
    addresses: [const { AtomicUsize::new(0) }; SLOTS],
    holders: [const { AtomicUsize::new(0) }; SLOTS],
    bytes: [const { AtomicUsize::new(0) }; HOLDERS.len() + 1],
    blocks: [const { AtomicUsize::new(0) }; HOLDERS.len() + 1],
};

/// Address of a slot that was used and is free again.
const GONE: usize = 1;

impl Counting {
    fn slot(address: usize) -> impl Iterator<Item = usize> {
        let start = (address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (0..SLOTS).map(move |step| (start + step) % SLOTS)
    }

    fn locked<T>(&self, f: impl FnOnce() -> T) -> T {
        while self.busy.swap(true, std::sync::atomic::Ordering::Acquire) {
            std::hint::spin_loop();
        }
        let result = f();
        self.busy.store(false, std::sync::atomic::Ordering::Release);
        result
    }

    fn begin(&self, block: *mut u8, size: usize) {
        let holder = HOLDER.get();
        if block.is_null() || holder == 0 {
            return;
        }
        self.locked(|| {
            let free = |slot: &usize| self.addresses[*slot].load(Relaxed) <= GONE;
            let slot = Self::slot(block as usize).find(free).unwrap();
            self.addresses[slot].store(block as usize, Relaxed);
            self.holders[slot].store(holder, Relaxed);
        });
        self.bytes[holder].fetch_add(size, Relaxed);
        self.blocks[holder].fetch_add(1, Relaxed);
    }

    fn end(&self, block: *mut u8, size: usize) {
        let holder = self.locked(|| {
            for slot in Self::slot(block as usize) {
                match self.addresses[slot].load(Relaxed) {
                    0 => return 0,
                    address if address == block as usize => {
                        self.addresses[slot].store(GONE, Relaxed);
                        return self.holders[slot].load(Relaxed);
                    }
                    _ => {}
                }
            }
            0
        });
        if holder > 0 {
            self.bytes[holder].fetch_sub(size, Relaxed);
            self.blocks[holder].fetch_sub(1, Relaxed);
        }
    }
}

// SAFETY: all is left to the system's allocator; the counts touch no block.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the system's allocator keeps what the trait demands.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { Keeper.alloc(layout) };
        self.begin(block, layout.size());
        block
    }

    // SAFETY: the system's allocator keeps what the trait demands.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { Keeper.alloc_zeroed(layout) };
        self.begin(block, layout.size());
        block
    }

    // SAFETY: as above.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.end(block, layout.size());
        // SAFETY: the caller's promise.
        unsafe { Keeper.dealloc(block, layout) }
    }

    // SAFETY: as above.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.end(block, layout.size());
        // SAFETY: the caller's promise.
        let moved = unsafe { Keeper.realloc(block, layout, size) };
        self.begin(moved, size);
        moved
    }
}

/// Works for a holder. Inlined: else the holder may end in a jump to this, and would not be on the stack.
#[inline(always)]
fn count_as<T>(name: &str, f: impl FnOnce() -> T) -> T {
    let holder = 1 + HOLDERS.iter().position(|holder| *holder == name).unwrap();
    let before = HOLDER.replace(holder);
    let result = f();
    HOLDER.set(before);
    result
}

#[inline(never)]
fn hold_vectors() -> Vec<Vec<u64>> {
    count_as("hold_vectors", || black_box((0..200).map(|n| (0..n).collect::<Vec<u64>>()).filter(|v| v.len() % 3 > 0).collect()))
}

#[inline(never)]
fn hold_boxes() -> Vec<Box<dyn Fn(u64) -> u64 + Send>> {
    count_as("hold_boxes", || {
        let mut boxes: Vec<Box<dyn Fn(u64) -> u64 + Send>> = Vec::new();
        for n in 0..500u64 {
            let wide = [n; 16];
            boxes.push(Box::new(move |i| wide[i as usize % 16] + n));
        }
        boxes.truncate(300);
        black_box(boxes)
    })
}

#[inline(never)]
fn hold_hash_map() -> HashMap<String, Vec<u8>> {
    count_as("hold_hash_map", || {
        let mut map = HashMap::new();
        for n in 0..1000 {
            map.insert(format!("key {n}"), vec![1; n]);
        }
        map.retain(|key, _| key.len() % 2 == 0);
        black_box(map)
    })
}

#[inline(never)]
fn hold_strings() -> Vec<String> {
    count_as("hold_strings", || {
        let mut strings: Vec<String> = (0..300).map(|n| "text ".repeat(n)).collect();
        strings.iter_mut().for_each(String::shrink_to_fit);
        strings.iter_mut().step_by(2).for_each(|text| text.push_str(" and more"));
        black_box(strings)
    })
}

#[inline(never)]
fn hold_tree() -> BTreeMap<u64, [u64; 4]> {
    count_as("hold_tree", || {
        let mut tree: BTreeMap<u64, [u64; 4]> = (0..3000).map(|n| (n * 7919 % 10007, [n; 4])).collect();
        tree.retain(|key, _| key % 3 > 0);
        black_box(tree)
    })
}

#[inline(never)]
fn hold_zeroed() -> Vec<Vec<u8>> {
    count_as("hold_zeroed", || black_box((1..50).map(|n| vec![0; n * 1000]).collect()))
}

/// Made on one thread, dropped in part by another.
#[inline(never)]
fn hold_from_thread(send: &mpsc::SyncSender<Vec<u32>>) {
    count_as("hold_from_thread", || {
        for n in 1..2000 {
            let vector = black_box(vec![n; n as usize % 100 + 1]);
            // The channel's own memory is made when it is.
            send.send(vector).unwrap();
        }
    });
}

fn truth() {
    HOLDER.set(0);
    for (index, name) in HOLDERS.iter().enumerate() {
        let load = |counts: &[AtomicUsize]| counts[index + 1].load(Relaxed);
        println!("truth {name} {} {}", load(&COUNTING.bytes), load(&COUNTING.blocks));
    }
    println!("ready");
}

fn main() {
    println!("waiting");
    let mut command = [0; 6];
    std::io::stdin().read_exact(&mut command).unwrap();

    let all = (hold_vectors(), hold_boxes(), hold_hash_map(), hold_strings(), hold_tree(), hold_zeroed());
    let (send, receive) = mpsc::sync_channel(64);
    let sender = thread::spawn(move || hold_from_thread(&send));
    let mut kept = Vec::with_capacity(1000);
    for (index, vector) in receive.iter().enumerate() {
        if index % 4 == 0 {
            kept.push(vector);
        }
    }
    sender.join().unwrap();
    truth();
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    drop(black_box((all, kept)));
}
