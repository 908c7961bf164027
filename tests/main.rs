//! Tests of the tracer as its users run it: the binary, on real processes, against programs that know the truth.
//!
//! Most of them attach probes and need root; `cargo xtask test` brings the programs and libraries that they use. Themes:
//! exact numbers ([`exactness`], [`allocators`], [`several`], [`languages`], [`processes`], [`children`], [`containers`]), harm that is not done ([`returns`]), launched commands, loss, real servers,
//! refusals and hostile targets, formats, what kernels take; the heap of Go programs, also next to that of C, their
//! goroutines, and leaks of these; what grows, and what does not ([`growth`]); samples and their error ([`sampling`]); what tracing costs, and keeping to a bound ([`overhead`]); what `tracer doctor` says ([`doctor`]); rights without root ([`privileges`]).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod allocators;
mod altered;
mod children;
mod containers;
mod coverage;
mod doctor;
mod exactness;
mod exits;
mod formats;
mod go_both;
mod go_heap;
mod go_leaks;
mod go_libraries;
mod goroutines;
mod growth;
mod harness;
mod hostile;
mod kernels;
mod languages;
mod launch;
mod launcher;
mod live_stacks;
mod loss;
mod mapped;
mod no_tables;
mod outputs;
mod overhead;
mod privileges;
mod processes;
mod refusals;
mod returns;
mod sampling;
mod selection;
mod services;
mod several;
mod silence;
mod stacks;
mod storm;
mod top;
mod unnamed;
