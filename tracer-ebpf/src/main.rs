//! The BPF object of the product: its [`programs`].
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unreachable_pub, reason = "a program, not a library; entry points are exported by name")]

mod alloc;
mod approach;
mod arguments;
mod at_once;
mod branchless;
mod cached;
mod costs;
mod emit;
mod epochs;
mod frames;
mod go;
mod inflight;
mod kernel;
mod loaded;
mod mappings;
mod memo;
mod numbers;
mod process;
mod programs;
mod queue;
mod registers;
mod remapped;
mod remappings;
mod rests;
mod returns;
mod rules;
mod samples;
mod sampling;
mod sharers;
mod spacing;
mod stack;
mod strings;
mod thread;
mod walk;
mod window;
