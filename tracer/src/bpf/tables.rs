//! The maps that hold unwinding tables: what [`crate::unwind`] has compiled, where the BPF programs find it.

use std::{io, os::fd::AsFd};

use aya::maps::MapData;
use tracer_ebpf::unwind::Mappings;

use super::sys;

/// The writing side of the unwinding tables. Belongs to one thread.
pub struct Tables {
    pub(super) pages: MapData,
    pub(super) rows: MapData,
    pub(super) rules: MapData,
    pub(super) mappings: MapData,
    pub(super) epoch: MapData,
    /// Changes of mappings so far.
    pub(super) changes: u64,
}

impl Tables {
    /// Replaces a shard of page entries ([`tracer_ebpf::unwind::PAGES_PER_SHARD`] of them).
    ///
    /// # Errors
    /// No such shard, or another number of entries.
    pub fn set_pages(&mut self, shard: u32, entries: &[u64]) -> io::Result<()> {
        set(&self.pages, shard, entries)
    }

    /// Replaces a shard of rows ([`tracer_ebpf::unwind::ROWS_PER_SHARD`] of them).
    ///
    /// # Errors
    /// No such shard, or another number of rows.
    pub fn set_rows(&mut self, shard: u32, rows: &[u32]) -> io::Result<()> {
        set(&self.rows, shard, rows)
    }

    /// Replaces the rules ([`tracer_ebpf::unwind::MAX_RULES`] of them).
    ///
    /// # Errors
    /// Another number of rules.
    pub fn set_rules(&mut self, rules: &[u64]) -> io::Result<()> {
        set(&self.rules, 0, rules)
    }

    /// Replaces the mappings of a process.
    ///
    /// # Errors
    /// The map is full: more than 4096 processes.
    pub fn set_mappings(&mut self, pid: u32, mappings: &Mappings) -> io::Result<()> {
        set(&self.mappings, pid, mappings)?;
        // After it: who sees the new count finds the new mappings.
        self.changes += 1;
        set(&self.epoch, 0, std::slice::from_ref(&self.changes))
    }
}

fn set<V: sys::MapValue + ?Sized>(map: &MapData, key: u32, value: &V) -> io::Result<()> {
    let value_size = map.info().map_err(io::Error::other)?.value_size();
    sys::update(map.fd().as_fd(), value_size, key, value)
}
