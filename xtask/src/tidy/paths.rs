//! The paths that a Rust file imports or names, in full: `use std::{fs, io::Write}` names `std::fs` and `std::io::Write`.
//!
//! Not a compiler: it follows imports and `crate`, `self` and `super`, not re-exports or macros. That is enough to
//! notice who knows whom.

use std::{collections::HashMap, iter::Peekable, vec};

use super::source::is_word;

/// A path and where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedPath {
    /// Line, from 0.
    pub(super) line: usize,
    /// Such as `["std", "fs"]`; the last is `*` for a glob import.
    pub(super) segments: Vec<String>,
}

type Tokens<'a> = Peekable<vec::IntoIter<(usize, &'a str)>>;

/// What a file names.
pub(super) struct Named {
    /// Every import, and every path of two or more segments.
    pub(super) paths: Vec<NamedPath>,
    /// What each imported name stands for.
    pub(super) imports: HashMap<String, Vec<String>>,
}

/// What a file names. `code` has no comments and literals.
pub(super) fn named(file: &str, code: &str) -> Named {
    let mut module = module_of(file);
    let mut depth = 0_usize;
    // Modules in the file that have not ended, by the depth of braces around each.
    let mut inner: Vec<usize> = Vec::new();
    let mut imports = Imports { found: Vec::new(), names: HashMap::new() };
    let mut inline = Vec::new();
    let mut tokens = tokens(code).into_iter().peekable();
    while let Some((line, token)) = tokens.next() {
        if token == "use" {
            imports.read_tree(&mut tokens, &[], &module);
        } else if token == "{" {
            depth += 1;
        } else if token == "}" {
            depth = depth.saturating_sub(1);
            if inner.pop_if(|outside| *outside == depth).is_some() {
                module.pop();
            }
        } else if token == "mod" {
            let name = tokens.next().map(|(_, name)| name.to_owned());
            if tokens.next_if(|(_, token)| *token == "{").is_some() {
                module.extend(name);
                inner.push(depth);
                depth += 1;
            }
        } else if token.starts_with(is_word) {
            let segments = rest_of_path(token, &mut tokens);
            if segments.len() > 1 {
                inline.push((NamedPath { line, segments }, module.clone()));
            }
        }
    }
    for (mut path, module) in inline {
        path.segments = match imports.names.get(&path.segments[0]) {
            Some(imported) => imported.iter().chain(&path.segments[1..]).cloned().collect(),
            None => absolute(&path.segments, &module),
        };
        imports.found.push(path);
    }
    Named { paths: imports.found, imports: imports.names }
}

struct Imports {
    found: Vec<NamedPath>,
    /// What a name in this file stands for.
    names: HashMap<String, Vec<String>>,
}

impl Imports {
    /// Reads one tree of a `use`, from after `use`, `{` or `,`.
    fn read_tree(&mut self, tokens: &mut Tokens<'_>, prefix: &[String], module: &[String]) {
        let mut segments = prefix.to_vec();
        while let Some((line, token)) = tokens.next() {
            match token {
                "::" => {}
                "{" => {
                    while tokens.peek().is_some_and(|(_, token)| *token != "}") {
                        self.read_tree(tokens, &segments, module);
                        tokens.next_if(|(_, token)| *token == ",");
                    }
                    tokens.next();
                    return;
                }
                "self" if !segments.is_empty() => {}
                word if word.starts_with(is_word) || word == "*" => segments.push(word.to_owned()),
                _ => return, // no import: `use<'a>` in a bound
            }
            if tokens.next_if(|(_, token)| *token == "as").is_some() {
                let alias = tokens.next().map(|(_, alias)| alias.to_owned());
                return self.add(line, alias, absolute(&segments, module));
            }
            if tokens.peek().is_none_or(|(_, token)| [";", ",", "}"].contains(token)) {
                let name = segments.last().cloned();
                return self.add(line, name, absolute(&segments, module));
            }
        }
    }

    fn add(&mut self, line: usize, name: Option<String>, segments: Vec<String>) {
        if let Some(name) = name {
            self.names.insert(name, segments.clone());
        }
        self.found.push(NamedPath { line, segments });
    }
}

fn rest_of_path(first: &str, tokens: &mut Tokens<'_>) -> Vec<String> {
    let mut segments = vec![first.to_owned()];
    while tokens.next_if(|(_, token)| *token == "::").is_some() {
        match tokens.next_if(|(_, token)| token.starts_with(is_word)) {
            Some((_, word)) => segments.push(word.to_owned()),
            None => break, // generic arguments
        }
    }
    segments
}

/// Words, `::`, and every other character by itself, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (line, mut rest) in code.lines().enumerate() {
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, after) = rest.split_at(length);
            if !first.is_whitespace() {
                tokens.push((line, token));
            }
            rest = after;
        }
    }
    tokens
}

/// `tracer/src/a/b.rs` is module `a::b` of its crate, as is `tests/a/b.rs`.
pub(super) fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("src/").map(|(_, inside)| inside).or_else(|| file.strip_prefix("tests/"));
    let inside = inside.unwrap_or(file);
    let name = inside.strip_suffix(".rs").unwrap_or(inside);
    let segments = name.split('/').map(str::to_owned);
    segments.filter(|segment| !["lib", "main", "mod"].contains(&segment.as_str())).collect()
}

/// Resolves `self` and `super` at the front.
fn absolute(segments: &[String], module: &[String]) -> Vec<String> {
    let supers = segments.iter().take_while(|segment| *segment == "super").count();
    let own = segments.first().is_some_and(|first| first == "self");
    if supers == 0 && !own {
        return segments.to_vec();
    }
    let kept = &module[..module.len().saturating_sub(supers)];
    let rest = &segments[supers + usize::from(own)..];
    ["crate".to_owned()].iter().chain(kept).chain(rest).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(code: &str) -> Vec<String> {
        named("tracer/src/heap/stacks.rs", code).paths.into_iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn imports_and_paths_are_given_in_full() {
        for (code, paths) in [
            ("use std::fs;", &["std::fs"][..]),
            ("use std::{fs, io::{self, Write}};", &["std::fs", "std::io", "std::io::Write"]),
            ("pub(crate) use aya as other; other::load()", &["aya", "aya::load"]),
            ("use std::time; time::Instant::now()", &["std::time", "std::time::Instant::now"]),
            ("use crate::*;", &["crate::*"]),
            ("use super::super::bpf::Loader;", &["crate::bpf::Loader"]),
            ("fn f() -> impl Iterator + use<'a> { g() }", &[]),
            ("::std::thread::spawn::<F>(x)", &["std::thread::spawn"]),
            ("use a::{b, c,};\nd::e", &["a::b", "a::c", "d::e"]),
            ("mod m { fn f() { super::g() } } super::h()", &["crate::heap::stacks::g", "crate::heap::h"]),
        ] {
            assert_eq!(names(code), paths, "{code}");
        }
    }

    #[test]
    fn lines_are_right() {
        let paths = named("a.rs", "use a::{\n    b,\n    c,\n};\nd::e();").paths;
        assert_eq!(paths.iter().map(|path| path.line).collect::<Vec<_>>(), [1, 2, 4]);
    }

    #[test]
    fn files_are_modules() {
        assert_eq!(module_of("tracer/src/report/text.rs"), ["report", "text"]);
        assert!(module_of("tracer/src/lib.rs").is_empty());
    }
}
