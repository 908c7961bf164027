//! Live Go processes: which runtimes they have, how their heaps are followed, what their goroutines do. What is read there is
//! understood by [`golang`](crate::golang).

pub mod goroutines;
pub mod watch;

pub mod heap;
pub mod process;
