//! Stacks as lists of names: what folded stacks and the flame graph are made of.
//!
//! A hundred thousand stacks share a few thousand names, so each name is made safe once and stacks are lists of numbers.

use std::{borrow::Cow, ops::Range};

use hashbrown::HashMap;

use super::{
    escape,
    groups::Key,
    index::Index,
    name,
    options::{By, Options, Value},
    words,
};
use crate::profile::{Frame, Frames, Heap, Kind, Mappings, Process, Profile};

/// The stacks of a profile that hold something, those of the same names merged, sorted by their names.
pub(super) struct Merged<'a> {
    names: Vec<Name<'a>>,
    elements: Vec<usize>,
    stacks: Vec<(Range<usize>, u64)>,
}

/// An element of a folded stack.
pub(super) struct Name<'a> {
    /// The name, without separators in it.
    pub(super) text: String,
    /// Module that a frame of this name lies in; the first in the alphabet when there are several.
    pub(super) module: Option<Cow<'a, str>>,
}

impl<'a> Merged<'a> {
    /// Merges the stacks of a profile. Names are cut to `longest` characters. The root is the name of the process, after that of its
    /// cgroup or container where those are told apart; with its id where processes are.
    pub(super) fn new(profile: &'a Profile, options: &Options, longest: usize) -> Self {
        let Options { value, by, .. } = *options;
        let mut names = Names { longest, ..Names::default() };
        let (mut elements, mut stacks) = (Vec::new(), Vec::new());
        // Side by side where there are both.
        let mut index = Index::new(profile);
        let heaps = index.has_several_heaps;
        for Amount { process, pid, heap, frames, amount } in amounts(profile, &mut index, value) {
            if amount > 0 {
                let start = elements.len();
                if let By::Cgroup | By::Container = by {
                    elements.push(names.of_group(process.map(|process| Key::of(process, &index, by))));
                }
                elements.push(names.of_process(process, pid, by));
                elements.extend(heap.filter(|_| heaps).map(|heap| names.of_heap(heap)));
                elements.extend(frames.iter().map(|frame| names.of_frame(frame)));
                stacks.push((start..elements.len(), amount));
            }
        }
        let names = names.sorted(&mut elements);
        stacks.sort_unstable_by(|a, b| elements[a.0.clone()].cmp(&elements[b.0.clone()]));
        stacks.dedup_by(|next, kept| {
            let same = elements[next.0.clone()] == elements[kept.0.clone()];
            if same {
                kept.1 = kept.1.saturating_add(next.1);
            }
            same
        });
        Self { names, elements, stacks }
    }

    /// The stacks, root first, and what each holds; a number stands for the name of that index in [`names`](Self::names).
    pub(super) fn stacks(&self) -> impl Iterator<Item = (&[usize], u64)> {
        self.stacks.iter().map(|(range, amount)| (&self.elements[range.clone()], *amount))
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> &[Name<'a>] {
        &self.names
    }

    /// The text of a stack as folded stacks have it.
    pub(super) fn line(&self, stack: &[usize]) -> String {
        let mut line = String::new();
        for (index, &element) in stack.iter().enumerate() {
            if index > 0 {
                line.push(';');
            }
            line.push_str(&self.names[element].text);
        }
        line
    }
}

/// What folded stacks and flame graphs show of one stack.
struct Amount<'a> {
    process: Option<&'a Process>,
    pid: u32,
    heap: Option<&'a Heap>,
    frames: &'a Frames,
    amount: u64,
}

fn amounts<'a>(profile: &'a Profile, index: &mut Index<'a>, value: Value) -> Vec<Amount<'a>> {
    match profile.kind {
        Kind::Heap if value == Value::Mapped => {
            let of = profile.mappings.iter().flat_map(Mappings::own).map(|stack| Amount {
                process: index.of_image(stack.image),
                pid: stack.pid,
                heap: None,
                frames: &stack.frames,
                amount: stack.values.bytes,
            });
            of.collect()
        }
        Kind::Heap => {
            let of = profile.stacks.iter().map(|entry| Amount {
                process: index.of_stack(entry),
                pid: entry.pid,
                heap: Some(&entry.heap),
                frames: &entry.frames,
                amount: value.of(&entry.values),
            });
            of.collect()
        }
        Kind::Goroutines => {
            let of = profile.goroutines.iter().map(|group| Amount {
                process: index.of_pid(group.pid),
                pid: group.pid,
                heap: None,
                frames: &group.frames,
                amount: group.count,
            });
            of.collect()
        }
    }
}

/// What amounts are counted in.
pub(super) fn unit(profile: &Profile, value: Value) -> &'static str {
    match profile.kind {
        Kind::Heap => value.unit(),
        Kind::Goroutines => "goroutines",
    }
}

/// Names in the order in which they are met.
#[derive(Default)]
struct Names<'a> {
    longest: usize,
    names: Vec<Name<'a>>,
    by_text: HashMap<String, usize>,
    by_frame: HashMap<&'a Frame, usize>,
    /// By the number of the address space, or the id where that is all that is known.
    by_process: HashMap<Result<u32, u32>, usize>,
    by_group: HashMap<Option<Key<'a>>, usize>,
}

impl<'a> Names<'a> {
    fn of_group(&mut self, key: Option<Key<'a>>) -> usize {
        if let Some(&known) = self.by_group.get(&key) {
            return known;
        }
        let text = key.and_then(|key| key.place()).unwrap_or(Cow::Borrowed("[unknown]"));
        let text = self.root(text);
        let index = self.of_text(text, None);
        self.by_group.insert(key, index);
        index
    }

    fn of_process(&mut self, process: Option<&'a Process>, pid: u32, by: By) -> usize {
        let key = process.map_or(Err(pid), |process| Ok(process.image));
        if let Some(&known) = self.by_process.get(&key) {
            return known;
        }
        let name = name::process(process, pid);
        let name = match process {
            Some(process) if by == By::Process && process.count > 1 => {
                Cow::Owned(format!("{name} ({} ended)", process.count))
            }
            _ if by == By::Process => Cow::Owned(format!("{name} ({pid})")),
            _ => name,
        };
        let text = self.root(name);
        let index = self.of_text(text, None);
        self.by_process.insert(key, index);
        index
    }

    /// A name as the first element of a line.
    fn root(&self, name: Cow<'_, str>) -> String {
        let mut text = self.element(name);
        if text.starts_with('#') {
            text.replace_range(..1, "_"); // the readers take a line that starts with # as a comment
        }
        text
    }

    fn of_heap(&mut self, heap: &Heap) -> usize {
        let text = self.element(format!("[{}]", words::heap(heap)).into());
        self.of_text(text, None)
    }

    fn of_frame(&mut self, frame: &'a Frame) -> usize {
        if let Some(&known) = self.by_frame.get(frame) {
            return known;
        }
        let text = self.element(name::frame(frame));
        let index = self.of_text(text, name::module(frame));
        self.by_frame.insert(frame, index);
        index
    }

    fn of_text(&mut self, text: String, module: Option<Cow<'a, str>>) -> usize {
        let Some(&known) = self.by_text.get(&text) else {
            let index = self.names.len();
            self.by_text.insert(text.clone(), index);
            self.names.push(Name { text, module });
            return index;
        };
        let first = &mut self.names[known].module;
        if module.is_some() && (first.is_none() || module < *first) {
            *first = module;
        }
        known
    }

    /// A name as an element of a line: no separator and no white space but the simple one, which is never at an end.
    fn element(&self, name: Cow<'_, str>) -> String {
        let name = escape::shorten(name, self.longest);
        let replace = |character: char| match character {
            ';' => ':',
            _ if character.is_whitespace() => ' ',
            _ => character,
        };
        let mut element: String = name.trim().chars().map(replace).collect();
        // A last word of digits would be read as the amount, and the line as a differential one.
        if let Some(space) = element.rfind(' ')
            && element[space + 1..].bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        {
            element.replace_range(space..=space, "_");
        }
        element
    }

    /// The names in the order of their texts; `elements` is changed to that order.
    fn sorted(self, elements: &mut [usize]) -> Vec<Name<'a>> {
        let mut names: Vec<_> = self.names.into_iter().enumerate().collect();
        names.sort_unstable_by(|a, b| a.1.text.cmp(&b.1.text));
        let mut ranks = vec![0; names.len()];
        for (rank, (index, _)) in names.iter().enumerate() {
            ranks[*index] = rank;
        }
        for element in elements {
            *element = ranks[*element];
        }
        names.into_iter().map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn elements_are_what_readers_take_as_one_name() {
        for (name, element) in [
            ("f", "f"),
            ("operator new[](unsigned long)", "operator new[](unsigned long)"),
            (" a;b\u{a0}c ", "a:b c"),
            ("call 5", "call_5"),
            ("call 5.", "call_5."),
            ("call 5x", "call 5x"),
            ("5", "5"),
        ] {
            assert_eq!(Names { longest: 100, ..Names::default() }.element(Cow::Borrowed(name)), element);
        }
        assert_eq!(Names { longest: 4, ..Names::default() }.element(Cow::Borrowed("abcdef")), "ab…f");
    }

    #[test]
    fn a_process_does_not_make_a_comment() {
        let mut profile = fixture::profile();
        profile.processes[0].comm = "#! sh".to_owned();
        let merged = Merged::new(&profile, &fixture::OPTIONS, 100);
        assert!(merged.stacks().all(|(stack, _)| merged.line(stack).starts_with("_! sh;")));
    }

    #[test]
    fn names_that_modules_share_belong_to_the_first() {
        let mut profile = fixture::profile();
        for module in ["/lib/b", "/lib/a", "/lib/c"] {
            let frame = fixture::frame("shared", module, None);
            profile.stacks.push(fixture::entry(&[&frame], (1, 1), (1, 1), 0));
        }
        let merged = Merged::new(&profile, &fixture::OPTIONS, 100);
        let shared = merged.names().iter().find(|name| name.text == "shared").unwrap();
        assert_eq!(shared.module.as_deref(), Some("a"));
        assert!(merged.names().is_sorted_by(|a, b| a.text < b.text));
    }
}
