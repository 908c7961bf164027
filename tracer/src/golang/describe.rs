//! Describing the runtime of a Go version, from a program that one of its toolchains built with symbols and DWARF: how
//! `layouts.json` comes about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use anyhow::{Context as _, Result, bail};

pub use super::layout::Description;
use super::{
    dwarf,
    executable::{Executable, VARIABLES, wait_reasons},
    layout::Layout,
    mentions::{self, MAX_CODE},
};
use crate::files::elf::{Bytes, Elf};

/// Functions whose mentions of one variable are kept, if there are as many.
const MAX_VOTERS: usize = 12;

/// Describes the runtime of an executable.
///
/// # Errors
/// Not a Go program, or without symbols or DWARF.
pub fn describe(file: File) -> Result<Description> {
    let again = file.try_clone()?;
    let bytes = Bytes::new(&again);
    let elf = Elf::parse(&bytes).context("not an ELF file")?;
    let found = dwarf::find(&elf).context("no DWARF")?;
    let segments = elf.segments();
    let wait_reasons = wait_reasons(&again, &elf, &segments).context("no words for what goroutines wait for")?;
    let wrapper = found.wrapper.context("no funcID of wrappers")?;
    Layout::new(&found.structures, wrapper, wait_reasons.clone()).map_err(|missing| anyhow::anyhow!("no {missing}"))?;
    let variables: Vec<_> = VARIABLES.into_iter().zip(elf.symbols(VARIABLES)).collect();
    let variables: Option<Vec<(&str, u64, u64)>> =
        variables.into_iter().map(|(name, place)| place.map(|(at, size)| (name, at, size))).collect();
    let variables = variables.context("no symbols for the runtime's variables")?;
    let [Some((text, _))] = elf.symbols(["runtime.text"]) else { bail!("no symbol for the begin of the code") };
    let executable = Executable::open(file)?;
    let mut learned = Vec::new();
    let mut voters: BTreeMap<String, usize> = BTreeMap::new();
    for (name, function, size) in executable.tables.functions() {
        if name.starts_with("runtime.") && size <= MAX_CODE {
            let address = text + u64::from(function.entry);
            let mut code = vec![0; size as usize];
            executable.read(address, &mut code).with_context(|| format!("{name} is not in the file"))?;
            // All that one function mentions, or nothing: it must be as it was known, as a whole.
            let mentions = mentions::learn(&name, &code, address, &variables);
            let named: BTreeSet<&String> = mentions.iter().map(|mention| &mention.variable).collect();
            if named.iter().any(|variable| voters.get(*variable).is_none_or(|count| *count < MAX_VOTERS)) {
                named.iter().for_each(|variable| *voters.entry((*variable).clone()).or_default() += 1);
                learned.extend(mentions);
            }
        }
    }
    let version = executable.version.to_string();
    Ok(Description { version, structures: found.structures, wrapper, wait_reasons, mentions: learned })
}
