//! Applies a rule to a file.

use std::fmt;

use super::{
    paths::{NamedPath, named},
    rules::{Check, Rule},
    source::{Source, is_word},
};

/// A place that breaks a rule.
pub(super) struct Violation<'a> {
    path: &'a str,
    /// From 0.
    line: usize,
    rule: &'a Rule,
    /// What was found there.
    found: String,
}

impl fmt::Display for Violation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, rule, found } = self;
        write!(f, "{path}:{}: {}: {found}: {}", line + 1, rule.name, rule.advice)
    }
}

/// All places of the file that break the rule.
pub(super) fn violations<'a>(source: &'a Source, rule: &'a Rule) -> Vec<Violation<'a>> {
    if !applies(rule, &source.path) {
        return Vec::new();
    }
    let found = match rule.check {
        Check::HeadComment => head_comment(&source.text),
        Check::MaxLines(most) => max_lines(&source.text, most),
        Check::Safety => unexplained_unsafe(source),
        Check::Words(words) => occurrences(&source.code, words),
        Check::Paths(paths) => forbidden_paths(source, paths),
        Check::Comments(words) => occurrences(&source.comments, words),
        Check::Text(words) => occurrences(&source.text, words),
        Check::HomePaths => home_paths(&source.text),
    };
    found.into_iter().map(|(line, found)| Violation { path: &source.path, line, rule, found }).collect()
}

fn applies(rule: &Rule, path: &str) -> bool {
    let matches = |pattern: &&str| match pattern.strip_prefix('*') {
        Some(suffix) => path.ends_with(suffix),
        None => path == *pattern || pattern.ends_with('/') && path.starts_with(*pattern),
    };
    rule.within.iter().any(matches) && !rule.except.iter().any(matches)
}

/// Lines, from 0, and what is wrong in them.
type Found = Vec<(usize, String)>;

fn head_comment(text: &str) -> Found {
    if text.starts_with("//!") { Vec::new() } else { vec![(0, "no head comment".to_owned())] }
}

fn max_lines(text: &str, most: usize) -> Found {
    let lines = text.lines().count();
    if lines > most { vec![(most, format!("{lines} lines"))] } else { Vec::new() }
}

fn occurrences(text: &str, words: &[&str]) -> Found {
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(number, line)| {
            words.iter().filter(|word| has_word(line, word)).map(move |word| (number, format!("`{word}`")))
        })
        .collect()
}

/// Whether the word is there, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let joined_before = word.starts_with(is_word) && line[..start].ends_with(is_word);
        let joined_after = word.ends_with(is_word) && line[start + word.len()..].starts_with(is_word);
        !joined_before && !joined_after
    })
}

fn forbidden_paths(source: &Source, forbidden: &[&str]) -> Found {
    let paths = named(&source.path, &source.code).paths.into_iter().filter(|path| !source.in_tests(path.line));
    paths
        .filter(|path| forbidden.iter().any(|forbidden| reaches(path, forbidden)))
        .map(|path| (path.line, format!("`{}`", path.segments.join("::"))))
        .collect()
}

/// Whether the path is the forbidden one, is below it, or is a glob over it.
fn reaches(path: &NamedPath, forbidden: &str) -> bool {
    let forbidden: Vec<&str> = forbidden.split("::").collect();
    match path.segments.split_last() {
        Some((last, above)) if last == "*" => forbidden.iter().zip(above).all(|(a, b)| a == b),
        _ => path.segments.len() >= forbidden.len() && forbidden.iter().zip(&path.segments).all(|(a, b)| a == b),
    }
}

fn unexplained_unsafe(source: &Source) -> Found {
    let code: Vec<&str> = source.code.lines().collect();
    let comments: Vec<&str> = source.comments.lines().collect();
    let explained = |line: usize, word: &str| {
        let above = (0..line).rev().take_while(|above| is_attached(code[*above], comments[*above]));
        above.chain([line]).any(|near| comments[near].contains(word))
    };
    let mut found = Vec::new();
    for (line, text) in code.iter().enumerate() {
        for (at, word) in text.match_indices("unsafe") {
            let after = text[at + word.len()..].trim_start();
            let (kind, wanted) = match after {
                _ if text[..at].ends_with(is_word) || after.starts_with(['(', '_']) => continue, // #[unsafe(...)]
                _ if after.starts_with("fn ") => ("unsafe fn", "# Safety"),
                _ if after.starts_with("trait ") => ("unsafe trait", "# Safety"),
                _ => ("unsafe", "SAFETY:"),
            };
            // What a method of a trait demands is said at the trait; why this one keeps it, at the method.
            if !(explained(line, wanted) || kind == "unsafe fn" && explained(line, "SAFETY:")) {
                found.push((line, format!("`{kind}` without an explanation")));
            }
        }
    }
    found
}

/// Whether a line leads to the next one: a comment, an attribute, or the begin of a statement that goes on.
fn is_attached(code: &str, comment: &str) -> bool {
    let code = code.trim();
    if code.is_empty() {
        return !comment.trim().is_empty();
    }
    code.starts_with("#[") || !code.ends_with([';', '{', '}', ','])
}

/// A home at the start of an absolute path; `/proc/PID/root/` is another thing.
fn home_paths(text: &str) -> Found {
    let is_home = |line: &str, start: usize, home: &str| {
        let before = line[..start].chars().next_back();
        let after = line[start + home.len()..].chars().next();
        before.is_none_or(|c| !is_word(c) && !"}/.>*])$".contains(c)) && after.is_some_and(|c| is_word(c) || c == '.')
    };
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for home in ["/root/", "/home/", "/Users/"] {
            if line.match_indices(home).any(|(start, _)| is_home(line, start, home)) {
                found.push((number, format!("a path in `{home}`")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::rules::RULES, *};

    /// Names of the rules that a file with this text breaks, with lines from 1.
    fn broken(path: &str, text: &str) -> Vec<String> {
        let source = Source::new(path.to_owned(), text.to_owned());
        let all = RULES.iter().flat_map(|rule| violations(&source, rule));
        all.map(|violation| format!("{}:{}", violation.rule.name, violation.line + 1)).collect()
    }

    #[track_caller]
    fn check(path: &str, line: &str, rules: &[&str]) {
        let expected: Vec<String> = rules.iter().map(|rule| format!("{rule}:2")).collect();
        assert_eq!(broken(path, &format!("//! Head.\n{line}\n")), expected, "{path}: {line}");
    }

    #[test]
    fn the_form_of_files() {
        assert_eq!(broken("tracer/src/a.rs", "fn a() {}\n"), ["head-comment:1"]);
        assert_eq!(broken("tests/a.rs", &format!("//! Head.\n{}", "\n".repeat(900))), ["file-length:501"]);
        check("README.md", "no head needed", &[]);
    }

    #[test]
    fn unsafe_code_has_its_places_and_reasons() {
        check("tracer/src/bpf/load.rs", "unsafe { f() }", &["safety-comment"]);
        check("tracer/src/bpf/load.rs", "unsafe { f() } // SAFETY: so", &[]);
        check("tracer-ebpf/src/emit.rs", "#[unsafe(no_mangle)]", &[]);
        check("tracer/src/heap/a.rs", "let a = 1; // unsafe { }", &[]);
        check("tracer/src/space/maps.rs", "unsafe { f() } // SAFETY: so", &["unsafe-place"]);
    }

    #[test]
    fn a_reason_is_found_above_the_statement() {
        let explained = [
            "// SAFETY: so\nlet a =\n    unsafe { f() };",
            "// SAFETY: so\n// and so\n#[inline]\nunsafe impl Send for A {}",
            "/// # Safety\n/// Be careful.\npub unsafe fn a() {}",
            "/// # Safety\n/// Be careful.\npub unsafe trait A {}",
            "    // SAFETY: as the trait demands\n    unsafe fn a() {}",
        ];
        for text in explained {
            assert!(broken("tracer-ebpf/src/a.rs", &format!("//! Head.\n{text}")).is_empty(), "{text}");
        }
        let other = "//! Head.\n// SAFETY: so\nlet a = 1;\nlet b = unsafe { f() };\n/// Doc.\nunsafe fn c() {}";
        assert_eq!(broken("tracer-ebpf/src/a.rs", other), ["safety-comment:4", "safety-comment:6"]);
    }

    #[test]
    fn modules_know_only_what_they_may() {
        check("tracer/src/heap/a.rs", "use std::{fs, sync::Arc};", &["pure-core"]);
        check("tracer/src/profile.rs", "use std::time::{Duration, SystemTime};", &[]);
        check("tracer/src/profile.rs", "use std::time::SystemTime; fn f() { SystemTime::now(); }", &["pure-core"]);
        check("tracer/src/heap.rs", "use crate::report::text;", &["core-imports"]);
        check("tracer/src/heap/a.rs", "use super::super::control::Input;", &["control-place", "core-imports"]);
        check("tracer/src/report/text.rs", "use crate::{heap::Heap, profile::Profile};", &["report-imports"]);
        check("tracer/src/report/text.rs", "use std::io::{self, Write};", &[]);
        check("tracer/src/report/text.rs", "use std::fs::File;", &["report-output"]);
        check("tracer/src/control.rs", "use aya::Ebpf;", &["aya-place"]);
        check("tracer/src/resolve/worker.rs", "use std::fs::File; fn f() { File::open(p) }", &["opening-place"]);
        check("tracer/src/files/root.rs", "use std::fs::File; fn f() { File::open(p) }", &[]);
        check("tracer/src/collector.rs", "use crate::control::Input;", &["control-place"]);
        check("tracer/src/bpf/load.rs", "use aya::Ebpf;", &[]);
        check("tracer/src/control.rs", "use clap::Parser;", &["clap-place"]);
        check("tracer/src/cli.rs", "use clap::Parser;", &[]);
        check("tracer/src/control.rs", "std::process::exit(1);", &["exit-place"]);
        check("tracer/src/main.rs", "std::process::exit(1);", &[]);
        check("tracer-ebpf/src/lib.rs", "use aya_ebpf::maps::Array;", &["abi-is-plain"]);
        check("tracer/src/heap/a.rs", "#[cfg(test)] mod tests { use std::fs; }", &[]);
        check("tracer/src/heap/a.rs", "use crate::*;", &["control-place", "core-imports"]);
    }

    #[test]
    fn libraries_print_nothing() {
        check("tracer/src/control.rs", "eprintln!();", &["printing"]);
        check("tracer/src/control.rs", "writeln!(out, \"println!\")", &[]);
        check("tracer/src/main.rs", "println!();", &[]);
    }

    #[test]
    fn nothing_is_left_unfinished() {
        check("tests/a.rs", "#[ignore]", &["unfinished"]);
        check("tests/a.rs", "#[ignore = \"needs two machines\"]", &[]);
        check("tracer/src/a.rs", concat!("// FIX", "ME: later"), &["unfinished-comment"]);
        check("tests/programs/a.c", concat!("/* TO", "DO */"), &["unfinished-text"]);
    }

    #[test]
    fn no_hosts_and_no_homes() {
        check("README.md", concat!("from crates", ".io"), &["registry-host"]);
        check("Cargo.lock", concat!("from crates", ".io"), &[]);
        check("README.md", concat!("in /ro", "ot/x"), &["home-path"]);
        check("tests/a.rs", concat!("\"/ho", "me/me/x\""), &["home-path"]);
        check("tracer/src/a.rs", "format!(\"/proc/{pid}/root/etc\")", &[]);
        check("tracer/src/a.rs", "// /proc/PID/root/etc", &[]);
    }
}
