//! The tables of all files in the layout that the BPF programs walk: pages, rows and rules ([`tracer_ebpf::unwind`]).

use std::ops::Range;

use hashbrown::HashMap;
use thiserror::Error;
use tracer_ebpf::unwind::{MAX_RULES, PAGE_BITS, PAGES_PER_SHARD, ROWS_PER_SHARD, kind, page, row, rule};

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

/// All tables. Grows only: what was placed stays where it is.
#[derive(Debug)]
pub struct Packed {
    pages: Vec<u64>,
    /// Row 0 says that there is no rule, so that a page entry of zeroes, as maps have before they are written, does too.
    rows: Vec<u32>,
    rules: Vec<u64>,
    /// Index of each rule.
    ids: HashMap<u64, u32>,
    /// How much of each [`Packed::changed`] has told.
    told: Lengths,
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

/// How long each of the arrays is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lengths {
    pages: usize,
    rows: usize,
    rules: usize,
}

impl Default for Packed {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            rows: vec![row(0, 0)],
            rules: vec![NONE],
            ids: HashMap::from_iter([(NONE, 0)]),
            told: Lengths::default(),
        }
    }
}

impl Packed {
    /// Adds a table.
    ///
    /// # Errors
    /// There is no room for it; then nothing was added.
    pub fn add(&mut self, table: &Table) -> Result<Placed, Full> {
        let before = self.lengths();
        let placed = self.place(table);
        if placed.is_err() {
            self.pages.truncate(before.pages);
            self.rows.truncate(before.rows);
            for rule in self.rules.drain(before.rules..) {
                self.ids.remove(&rule);
            }
        }
        placed
    }

    /// What has changed since this was last called.
    pub fn changed(&mut self) -> Changes {
        let (told, now) = (self.told, self.lengths());
        self.told = now;
        Changes {
            rules: (told.rules < now.rules).then(|| filled(&self.rules, MAX_RULES)),
            rows: shards(&self.rows, told.rows, ROWS_PER_SHARD),
            pages: shards(&self.pages, told.pages, PAGES_PER_SHARD),
        }
    }

    /// The rule that holds at an address of the file whose table was placed there, found as the BPF programs do it.
    pub fn rule_at(&self, placed: &Placed, address: u64) -> u64 {
        self.find(placed, address).unwrap_or(NONE)
    }

    /// Bytes that the tables take in the kernel, unused parts of shards left out; as much again is kept here.
    pub fn size(&self) -> usize {
        size_of_val(&*self.pages) + size_of_val(&*self.rows) + size_of_val(&*self.rules)
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

    fn lengths(&self) -> Lengths {
        Lengths { pages: self.pages.len(), rows: self.rows.len(), rules: self.rules.len() }
    }

    fn place(&mut self, table: &Table) -> Result<Placed, Full> {
        let mut rest = table.rows();
        let first_page = u32::try_from(self.pages.len()).map_err(|_| Full::Pages)?;
        let (Some((first, _)), Some((last, _))) = (rest.first(), rest.last()) else {
            return Ok(Placed { first_page, pages: 0, base: 0 });
        };
        let pages: Range<u64> = first >> PAGE_BITS..(last >> PAGE_BITS) + 1;
        let count = pages.end - pages.start;
        if count > (MAX_PAGES - self.pages.len()) as u64 {
            return Err(Full::Pages);
        }
        let placed = Placed { first_page, pages: count as u32, base: pages.start << PAGE_BITS };
        let mut in_page = Vec::with_capacity(1 << PAGE_BITS);
        // Index of the rule that holds so far.
        let mut current = 0;
        for page in pages {
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
            self.push_page(&in_page)?;
        }
        Ok(placed)
    }

    /// Adds a page's rows, of which there is at least one, and its entry.
    fn push_page(&mut self, rows: &[u32]) -> Result<(), Full> {
        let first = match rows {
            // No rule, as row 0 says.
            [0] => 0,
            // Long functions and gaps: the page before has the very same row, and no other.
            [only] if self.rows.last() == Some(only) => self.rows.len() - 1,
            _ => self.push_rows(rows)?,
        };
        self.pages.push(page(first as u32, rows.len() as u32));
        Ok(())
    }

    /// Adds rows, all in one shard.
    fn push_rows(&mut self, rows: &[u32]) -> Result<usize, Full> {
        let mut first = self.rows.len();
        if first % ROWS_PER_SHARD + rows.len() > ROWS_PER_SHARD {
            first = first.next_multiple_of(ROWS_PER_SHARD);
        }
        if first + rows.len() > MAX_ROWS {
            return Err(Full::Rows);
        }
        self.rows.resize(first, 0);
        self.rows.extend_from_slice(rows);
        Ok(first)
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

/// Shards that hold values from index `from` on.
fn shards<T: Copy + Default>(values: &[T], from: usize, length: usize) -> Vec<(u32, Vec<T>)> {
    if from >= values.len() {
        return Vec::new();
    }
    let first = from / length;
    let changed = values.chunks(length).enumerate().skip(first);
    changed.map(|(shard, values)| (shard as u32, filled(values, length))).collect()
}

#[cfg(test)]
mod tests;
