//! Circles between the files of a crate: files that know one another, so that none can be read before the others.
//!
//! A file knows another when a path in it, outside of unit tests, leads there. A name that is only passed on (`pub use`) leads to
//! where it is defined, so a parent that declares and composes its children is none of theirs; one that defines what a child
//! needs, and needs the child, is.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
};

use super::{
    paths::{Named, module_of, named},
    source::Source,
};

/// How often a name may be passed on. More is a name that passes on itself.
const MOST_PASSES: usize = 8;

/// Files that know one another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Circle {
    /// How many there are.
    pub(super) files: usize,
    /// A way round, as short as there is from the first of them: paths, each with the line, from 1, that leads to the next.
    pub(super) way: Vec<(String, usize)>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, way } = self;
        let (path, line) = &way[0];
        let rest: Vec<String> = way[1..].iter().map(|(path, line)| format!("{path}:{line}")).collect();
        write!(
            f,
            "{path}:{line}: circle: {files} files know one another ({}): put what the inner ones need into a file of its own",
            rest.join(", ")
        )
    }
}

/// All circles among the files of each crate.
pub(super) fn circles(sources: &[Source]) -> Vec<Circle> {
    let mut crates: BTreeMap<&str, Vec<&Source>> = BTreeMap::new();
    for source in sources {
        if let Some(root) = crate_of(&source.path, sources) {
            crates.entry(root).or_default().push(source);
        }
    }
    crates.values().flat_map(|files| Crate::new(files).circles()).collect()
}

/// The folder of the crate that a file belongs to: the outermost that has a `lib.rs` or a `main.rs`.
fn crate_of<'a>(path: &'a str, sources: &[Source]) -> Option<&'a str> {
    let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
    let mut roots = folders.filter(|folder| {
        let is_root = |name: &str| sources.iter().any(|source| source.path.strip_prefix(folder) == Some(name));
        path.ends_with(".rs") && (is_root("/lib.rs") || is_root("/main.rs"))
    });
    roots.next()
}

struct Crate<'a> {
    files: Vec<File<'a>>,
    by_module: HashMap<Vec<String>, usize>,
}

struct File<'a> {
    source: &'a Source,
    module: Vec<String>,
    named: Named,
}

/// What a file knows: the line, from 0, of the first path that leads to a file.
type Known = BTreeMap<usize, usize>;

impl<'a> Crate<'a> {
    fn new(sources: &[&'a Source]) -> Self {
        let mut files = Vec::new();
        let mut by_module = HashMap::new();
        for source in sources {
            let module = module_of(&source.path);
            // Beside a lib.rs a main.rs is a crate of its own, and knows all without being known.
            if !source.path.ends_with("/main.rs") || !by_module.contains_key(&module) {
                by_module.insert(module.clone(), files.len());
            }
            files.push(File { source, named: named(&source.path, &source.code), module });
        }
        Self { files, by_module }
    }

    /// The file that defines what a path leads to, from the file `from`; `None` outside of the crate.
    fn leads_to(&self, from: usize, path: &[String], passes: usize) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let full = if first == "crate" {
            rest.to_vec()
        } else {
            let child = [self.files[from].module.as_slice(), path].concat();
            // A name of a module below this file, or that of another crate.
            self.by_module.contains_key(&child[..child.len() - rest.len()]).then_some(child)?
        };
        let (length, file) = (1..=full.len())
            .rev()
            .find_map(|length| Some((length, *self.by_module.get(&full[..length])?)))
            .or_else(|| Some((0, *self.by_module.get(&Vec::new())?)))?;
        let passed_on = full.get(length).and_then(|name| self.files[file].named.imports.get(name));
        match passed_on {
            Some(import) if passes < MOST_PASSES => {
                let path = [import, &full[length + 1..]].concat();
                // What comes from another crate is known from there, not from who passes it on.
                self.leads_to(file, &path, passes + 1)
            }
            _ => Some(file),
        }
    }

    fn known(&self, from: usize) -> Known {
        let file = &self.files[from];
        let mut known = Known::new();
        for path in file.named.paths.iter().filter(|path| !file.source.in_tests(path.line)) {
            if let Some(to) = self.leads_to(from, &path.segments, 0).filter(|to| *to != from) {
                known.entry(to).or_insert(path.line);
            }
        }
        known
    }

    fn circles(&self) -> Vec<Circle> {
        let known: Vec<Known> = (0..self.files.len()).map(|file| self.known(file)).collect();
        let mut seen = vec![false; self.files.len()];
        let mut circles = Vec::new();
        for start in 0..self.files.len() {
            let Some(way) = way_round(&known, start).filter(|_| !seen[start]) else { continue };
            let reached = reached(&known, start);
            let members: Vec<usize> =
                reached.into_iter().filter(|file| self::reached(&known, *file).contains(&start)).collect();
            members.iter().for_each(|file| seen[*file] = true);
            let step = |at: usize| {
                let (file, next) = (way[at], way[(at + 1) % way.len()]);
                (self.files[file].source.path.clone(), known[file][&next] + 1)
            };
            circles.push(Circle { files: members.len(), way: (0..way.len()).map(step).collect() });
        }
        circles
    }
}

/// All that can be reached from a file, itself only by a way round.
fn reached(known: &[Known], start: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    let mut next: Vec<usize> = known[start].keys().copied().collect();
    while let Some(file) = next.pop() {
        if !found.contains(&file) {
            found.push(file);
            next.extend(known[file].keys());
        }
    }
    found
}

/// The shortest way from a file back to it.
fn way_round(known: &[Known], start: usize) -> Option<Vec<usize>> {
    let mut came_from: HashMap<usize, usize> = HashMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(file) = next.pop_front() {
        for to in known[file].keys() {
            if *to == start {
                let mut way: Vec<usize> =
                    std::iter::successors(Some(file), |file| came_from.get(file).copied()).collect();
                way.reverse();
                return Some(way);
            }
            came_from.entry(*to).or_insert_with(|| {
                next.push_back(*to);
                file
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways round among files with these texts.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let source = |(path, text): &(&str, &str)| Source::new(format!("a/src/{path}"), (*text).to_owned());
        let sources: Vec<Source> = files.iter().map(source).collect();
        let named = |way: Vec<(String, usize)>| {
            let steps: Vec<String> = way.iter().map(|(path, line)| format!("{}:{line}", &path[6..])).collect();
            steps.join(" ")
        };
        circles(&sources).into_iter().map(|circle| named(circle.way)).collect()
    }

    #[test]
    fn files_that_know_one_another_are_found() {
        let files = [("lib.rs", "mod b; mod c;"), ("b.rs", "use crate::c::C;"), ("c.rs", "\nfn f() { crate::b::g() }")];
        assert_eq!(found(&files), ["b.rs:1 c.rs:2"]);
        assert_eq!(found(&files[..2]), [""; 0]);
        let long = [
            ("lib.rs", ""),
            ("b.rs", "use crate::c::C;"),
            ("c.rs", "use crate::d;"),
            ("d.rs", "use crate::{e, b::B};"),
            ("e.rs", "use crate::d::D;"),
        ];
        assert_eq!(found(&long), ["b.rs:1 c.rs:1 d.rs:1"], "one circle of four, told once");
        assert_eq!(circles(&long.map(|(path, text)| Source::new(format!("a/src/{path}"), text.into())))[0].files, 4);
    }

    #[test]
    fn a_parent_that_needs_a_child_and_has_what_the_child_needs_is_found() {
        let child = ("b/c.rs", "use super::B;");
        assert_eq!(found(&[("lib.rs", ""), ("b.rs", "mod c; use self::c::C; struct B;"), child]), ["b.rs:1 b/c.rs:1"]);
        assert_eq!(
            found(&[("lib.rs", ""), ("b/mod.rs", "mod c; fn f() { c::g() } struct B;"), child]),
            ["b/mod.rs:1 b/c.rs:1"]
        );
        assert_eq!(found(&[("lib.rs", ""), ("b.rs", "mod c; struct B;"), child]), [""; 0], "it only declares");
    }

    #[test]
    fn names_that_are_passed_on_lead_to_where_they_are_defined() {
        let files = [
            ("lib.rs", "pub mod b;"),
            ("b.rs", "mod c; mod d; pub use self::{c::C, d::D}; use e::F;"),
            ("b/c.rs", "use super::D; use crate::b::F;"),
        ];
        assert_eq!(found(&[&files[..], &[("b/d.rs", "")]].concat()), [""; 0]);
        assert_eq!(found(&[&files[..], &[("b/d.rs", "use super::C;")]].concat()), ["b/c.rs:1 b/d.rs:1"]);
    }

    #[test]
    fn unit_tests_and_other_crates_are_left_out() {
        let tests = "#[cfg(test)]\nmod tests { use crate::b::B; }";
        assert_eq!(found(&[("lib.rs", ""), ("b.rs", "use crate::c::C;"), ("c.rs", tests)]), [""; 0]);
        assert_eq!(found(&[("b.rs", "use crate::c::C;"), ("c.rs", "use crate::b::B;")]), [""; 0], "no crate");
        assert_eq!(found(&[("lib.rs", "mod b;"), ("b.rs", "use c::d;"), ("c.rs", "use crate::b;")]), [""; 0]);
    }
}
