//! The tables of all files in the layout that the BPF programs walk: pages, rows and rules ([`tracer_ebpf::unwind`]).

mod extents;

use std::{collections::BTreeSet, ops::Range};

use hashbrown::HashMap;
use thiserror::Error;
use tracer_ebpf::unwind::{MAX_RULES, PAGE_BITS, PAGES_PER_SHARD, ROWS_PER_SHARD, kind, page, row, rule};

use self::extents::Extents;
use super::table::Table;

/// Shards of page entries: for half a gigabyte of code.
pub const PAGE_SHARDS: usize = 16;
/// Shards of rows. Rows take up to a twelfth of the code's size.
pub const ROW_SHARDS: usize = 192;

const MAX_PAGES: usize = PAGE_SHARDS * PAGES_PER_SHARD;
const MAX_ROWS: usize = ROW_SHARDS * ROWS_PER_SHARD;
const NONE: u64 = rule(kind::NONE, 0, 0, 0);
/// Bits of a row that are the offset in its page.
const IN_PAGE: u32 = (1 << PAGE_BITS) - 1;

/// Most rows of a page: one for each byte of code.
const MAX_PAGE_ROWS: usize = 1 << PAGE_BITS;

/// All tables. What was placed stays where it is, until it is removed.
#[derive(Debug)]
pub struct Packed {
    pages: Vec<u64>,
    /// Row 0 says that there is no rule, so that a page entry of zeroes, as maps have before they are written, does too.
    rows: Vec<u32>,
    rules: Vec<u64>,
    /// Index of each rule.
    ids: HashMap<u64, u32>,
    free_pages: Extents,
    free_rows: Extents,
    /// Shards that have changed since [`Packed::changed`] has told, and how many rules it has.
    changed_pages: BTreeSet<usize>,
    changed_rows: BTreeSet<usize>,
    told_rules: usize,
}

/// A table that is being placed.
#[derive(Default)]
struct Placing {
    /// Where the next rows go.
    room: Range<usize>,
    /// The only row of the last page, and where it is.
    only: Option<(u32, usize)>,
    /// Rows that were placed.
    rows: Vec<Range<usize>>,
}

/// Where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index of its first page entry.
    pub first_page: u32,
    /// Number of its page entries; 0 for an empty table, which the BPF programs take for none at all.
    pub pages: u32,
    /// Address in the file that its first page begins at.
    pub base: u64,
}

/// Why a table was not placed. The others are not affected.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Full {
    /// No room for its pages.
    #[error("its code spans too many addresses: the table of pages is full")]
    Pages,
    /// No room for its rows.
    #[error("the table of unwinding rows is full")]
    Rows,
    /// No room for its rules.
    #[error("the table of unwinding rules is full")]
    Rules,
}

/// Shards that have changed, by index, filled up with zeroes. To be written in this order: a page entry makes rows
/// visible, and those rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// All rules.
    pub rules: Option<Vec<u64>>,
    /// Shards of rows.
    pub rows: Vec<(u32, Vec<u32>)>,
    /// Shards of page entries.
    pub pages: Vec<(u32, Vec<u64>)>,
}

impl Default for Packed {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            rows: vec![row(0, 0)],
            rules: vec![NONE],
            ids: HashMap::from_iter([(NONE, 0)]),
            free_pages: Extents::new(usize::MAX),
            free_rows: Extents::new(ROWS_PER_SHARD),
            changed_pages: BTreeSet::new(),
            changed_rows: BTreeSet::from([0]),
            told_rules: 0,
        }
    }
}

impl Packed {
    /// Adds a table.
    ///
    /// # Errors
    /// There is no room for it; then nothing was added.
    pub fn add(&mut self, table: &Table) -> Result<Placed, Full> {
        let rules = self.rules.len();
        let (Some((first, _)), Some((last, _))) = (table.rows().first(), table.rows().last()) else {
            return Ok(Placed { first_page: 0, pages: 0, base: 0 });
        };
        let addresses = first >> PAGE_BITS..(last >> PAGE_BITS) + 1;
        let pages = self.room_for_pages(addresses.end - addresses.start)?;
        let base = addresses.start << PAGE_BITS;
        let mut placing = Placing::default();
        let result = self.place(table, addresses.zip(pages.clone()), &mut placing);
        self.free_rows.give(placing.room);
        if let Err(full) = result {
            self.free(pages, placing.rows);
            for rule in self.rules.drain(rules..) {
                self.ids.remove(&rule);
            }
            return Err(full);
        }
        self.trim();
        Ok(Placed { first_page: pages.start as u32, pages: pages.len() as u32, base })
    }

    /// Removes a table that no BPF program looks into any more: its room is another one's then. Rules stay.
    pub fn remove(&mut self, placed: &Placed) {
        let pages = placed.first_page as usize..placed.first_page as usize + placed.pages as usize;
        let entries = self.pages.get(pages.clone()).unwrap_or_default();
        let rows = entries.iter().map(|entry| *entry as u32 as usize..*entry as u32 as usize + (*entry >> 32) as usize);
        // Row 0 is nobody's, and pages may share the one that they have.
        let mut rows: Vec<Range<usize>> = rows.filter(|rows| rows.start > 0).collect();
        rows.dedup();
        self.free(pages, rows);
    }

    /// What has changed since this was last called.
    pub fn changed(&mut self) -> Changes {
        let rules = (self.told_rules < self.rules.len()).then(|| filled(&self.rules, MAX_RULES));
        self.told_rules = self.rules.len();
        let rows = std::mem::take(&mut self.changed_rows);
        let pages = std::mem::take(&mut self.changed_pages);
        Changes {
            rules,
            rows: shards(&self.rows, rows, ROWS_PER_SHARD),
            pages: shards(&self.pages, pages, PAGES_PER_SHARD),
        }
    }

    fn free(&mut self, pages: Range<usize>, rows: Vec<Range<usize>>) {
        for rows in rows {
            self.free_rows.give(rows);
        }
        self.free_pages.give(pages);
        self.trim();
    }

    /// Gives up what is free at the ends.
    fn trim(&mut self) {
        while let Some(rows) = self.free_rows.take_last(self.rows.len()) {
            self.rows.truncate(rows.start);
        }
        if let Some(pages) = self.free_pages.take_last(self.pages.len()) {
            self.pages.truncate(pages.start);
        }
    }

    /// The rule that holds at an address of the file whose table was placed there, found as the BPF programs do it.
    pub fn rule_at(&self, placed: &Placed, address: u64) -> u64 {
        self.find(placed, address).unwrap_or(NONE)
    }

    /// Bytes that the tables take in the kernel, unused parts of shards left out; as much again is kept here.
    pub fn size(&self) -> usize {
        let (pages, rows) = (self.pages.len() - self.free_pages.sum(), self.rows.len() - self.free_rows.sum());
        pages * size_of::<u64>() + rows * size_of::<u32>() + size_of_val(&*self.rules)
    }

    fn find(&self, placed: &Placed, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(placed.base);
        let page = u32::try_from(offset >> PAGE_BITS).ok().filter(|page| *page < placed.pages)?;
        let entry = *self.pages.get(placed.first_page.checked_add(page)? as usize)?;
        let first = entry as u32 as usize;
        let rows = self.rows.get(first..first.checked_add((entry >> 32) as usize)?)?;
        let offset = offset as u32 & IN_PAGE;
        let after = rows.partition_point(|row| row & IN_PAGE <= offset);
        let row = rows.get(after.checked_sub(1)?)?;
        self.rules.get((row >> PAGE_BITS) as usize).copied()
    }

    /// Fills the pages of a table, each with the address of a page of code that it begins at.
    fn place(
        &mut self,
        table: &Table,
        pages: impl Iterator<Item = (u64, usize)>,
        placing: &mut Placing,
    ) -> Result<(), Full> {
        let mut rest = table.rows();
        let mut in_page = Vec::with_capacity(MAX_PAGE_ROWS);
        // Index of the rule that holds so far.
        let mut current = 0;
        for (page, index) in pages {
            in_page.clear();
            let end = rest.iter().position(|row| row.0 >> PAGE_BITS != page).unwrap_or(rest.len());
            let (here, after) = rest.split_at(end);
            if here.first().is_none_or(|row| row.0 & u64::from(IN_PAGE) != 0) {
                in_page.push(row(0, current));
            }
            for &(address, rule) in here {
                current = self.id(rule)?;
                in_page.push(row(address as u32, current));
            }
            rest = after;
            self.pages[index] = self.place_page(&in_page, placing)?;
            self.changed_pages.insert(index / PAGES_PER_SHARD);
        }
        Ok(())
    }

    /// The entry of a page with these rows, of which there is at least one.
    fn place_page(&mut self, rows: &[u32], placing: &mut Placing) -> Result<u64, Full> {
        let first = match (rows, placing.only) {
            // No rule, as row 0 says.
            ([0], _) => 0,
            // Long functions and gaps: the page before has the very same row, and no other.
            ([only], Some((row, at))) if row == *only => at,
            _ => self.place_rows(rows, placing)?,
        };
        placing.only = if let [only] = rows { Some((*only, first)) } else { None };
        Ok(page(first as u32, rows.len() as u32))
    }

    /// Places rows, all in one shard.
    fn place_rows(&mut self, rows: &[u32], placing: &mut Placing) -> Result<usize, Full> {
        if placing.room.len() < rows.len() {
            self.free_rows.give(std::mem::take(&mut placing.room));
            placing.room = match self.free_rows.take_whole(MAX_PAGE_ROWS) {
                Some(room) => room,
                None => self.more_rows(rows.len())?,
            };
        }
        let first = placing.room.start;
        placing.room.start += rows.len();
        self.rows[first..placing.room.start].copy_from_slice(rows);
        self.changed_rows.insert(first / ROWS_PER_SHARD);
        placing.rows.push(first..placing.room.start);
        Ok(first)
    }

    /// Room for at least so many rows at the end: as many as a page may have, unless the shard ends before.
    fn more_rows(&mut self, least: usize) -> Result<Range<usize>, Full> {
        let rest = self.rows.len()..(self.rows.len() + 1).next_multiple_of(ROWS_PER_SHARD);
        let first = if rest.len() < least { rest.end } else { rest.start };
        let end = (first + MAX_PAGE_ROWS).min((first + 1).next_multiple_of(ROWS_PER_SHARD));
        if end > MAX_ROWS {
            return Err(Full::Rows);
        }
        self.free_rows.give(rest.start..first);
        self.rows.resize(end, 0);
        Ok(first..end)
    }

    /// Room for so many pages in one piece.
    fn room_for_pages(&mut self, count: u64) -> Result<Range<usize>, Full> {
        let count = usize::try_from(count).ok().filter(|count| *count <= MAX_PAGES).ok_or(Full::Pages)?;
        if let Some(pages) = self.free_pages.take(count) {
            return Ok(pages);
        }
        let first = self.pages.len();
        if count > MAX_PAGES - first {
            return Err(Full::Pages);
        }
        self.pages.resize(first + count, 0);
        Ok(first..first + count)
    }

    /// Index of a rule.
    fn id(&mut self, rule: u64) -> Result<u32, Full> {
        if let Some(id) = self.ids.get(&rule) {
            return Ok(*id);
        }
        if self.rules.len() >= MAX_RULES {
            return Err(Full::Rules);
        }
        let id = self.rules.len() as u32;
        self.rules.push(rule);
        self.ids.insert(rule, id);
        Ok(id)
    }
}

/// Values, and zeroes up to a length.
fn filled<T: Copy + Default>(values: &[T], length: usize) -> Vec<T> {
    let mut filled = Vec::with_capacity(length);
    filled.extend_from_slice(values);
    filled.resize(length, T::default());
    filled
}

/// These shards, by their indexes.
fn shards<T: Copy + Default>(values: &[T], of: BTreeSet<usize>, length: usize) -> Vec<(u32, Vec<T>)> {
    let shard = |index: usize| {
        // What is free at the end was given up.
        let from = (index * length).min(values.len());
        (index as u32, filled(&values[from..values.len().min(from + length)], length))
    };
    of.into_iter().map(shard).collect()
}

#[cfg(test)]
mod tests;
