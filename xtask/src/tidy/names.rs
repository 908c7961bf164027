//! Names of tests and of files in documents: each must be that of a test, or a pattern that some test fits, and of a file or a
//! folder that is there.

use super::{
    paths::module_of,
    source::{Source, is_word},
};

/// Documents that name tests and files.
const DOCUMENTS: [&str; 2] = ["ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Names in documents that no test fits, and no file: path, line from 1, and name.
pub(super) fn unknown_names(sources: &[Source]) -> Vec<(&str, usize, &str)> {
    let tests: Vec<Vec<String>> = sources.iter().flat_map(functions).collect();
    let is_test = |pattern: &[&str]| tests.iter().any(|test| fits(pattern, test));
    let mut unknown = Vec::new();
    for source in sources.iter().filter(|source| DOCUMENTS.contains(&source.path.as_str())) {
        for (line, text) in source.text.lines().enumerate() {
            for name in text.split('`').skip(1).step_by(2) {
                let is_known = if names_a_test(name, sources) {
                    is_test(&name.split("::").collect::<Vec<_>>())
                } else {
                    !names_a_file(name) || is_file(name, sources)
                };
                if !is_known {
                    unknown.push((source.path.as_str(), line + 1, name));
                }
            }
        }
    }
    unknown
}

/// Whether it is meant to be the name of a test: of a unit test by a module `tests`, of others by a file of theirs.
fn names_a_test(name: &str, sources: &[Source]) -> bool {
    let Some((first, rest)) = name.split_once("::") else { return false };
    let is_path = name.chars().all(|c| is_word(c) || ":*".contains(c));
    let has_file = || {
        let is_file = |path: &str| path == format!("tests/{first}.rs") || path == format!("tests/{first}/mod.rs");
        sources.iter().any(|source| is_file(&source.path))
    };
    is_path && !rest.is_empty() && (rest.split("::").any(|segment| segment == "tests") || has_file())
}

/// Whether it is meant to be the path of a Rust file, or of a folder, from wherever the text is about.
fn names_a_file(name: &str) -> bool {
    name.chars().all(|c| is_word(c) || "/.-".contains(c)) && (name.ends_with(".rs") || name.ends_with('/'))
}

fn is_file(name: &str, sources: &[Source]) -> bool {
    let inside = format!("/{name}");
    let has = |path: &str| if name.ends_with('/') { path.contains(&inside) } else { path.ends_with(&inside) };
    sources.iter().any(|source| has(&format!("/{}", source.path)))
}

/// The full names of all functions of a file that are tests, or stand beside them.
fn functions(source: &Source) -> Vec<Vec<String>> {
    let is_of_tests = source.path.starts_with("tests/");
    let mut found = Vec::new();
    for (line, code) in source.code.lines().enumerate().filter(|(line, _)| is_of_tests || source.in_tests(*line)) {
        let Some((_, after)) = code.split_once("fn ").filter(|(before, _)| !before.ends_with(is_word)) else {
            continue;
        };
        let mut name = module_of(&source.path);
        if !is_of_tests && !name.iter().any(|segment| segment == "tests") && source.in_tests(line) {
            name.push("tests".to_owned());
        }
        name.push(after.chars().take_while(|c| is_word(*c)).collect());
        found.push(name);
    }
    found
}

/// Whether a name fits a pattern: segment by segment, where `*` stands for any end of one.
fn fits(pattern: &[&str], name: &[String]) -> bool {
    let fits = |pattern: &str, segment: &str| match pattern.strip_suffix('*') {
        Some(begin) => segment.starts_with(begin),
        None => segment == pattern,
    };
    pattern.len() == name.len() && pattern.iter().zip(name).all(|(pattern, segment)| fits(pattern, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(document: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source::new(path.to_owned(), text.to_owned());
        let sources = [
            source("tests/loss.rs", "#[test]\nfn a_loss_is_told() {}"),
            source("tests/services/mod.rs", "mod nginx;"),
            source("tests/services/nginx.rs", "fn stacks_of_nginx() {}"),
            source("tracer/src/heap/mod.rs", "fn a_loss() {}\n#[cfg(test)]\nmod tests {\n    fn agrees() {}\n}"),
            source("tracer/src/heap/history/tests.rs", "fn grows() {}"),
            source("CONTRIBUTING.md", document),
        ];
        unknown_names(&sources).into_iter().map(|(_, line, name)| format!("{name}:{line}")).collect()
    }

    #[test]
    fn names_of_tests_are_known() {
        let good = "`loss::a_loss_*`, `services::*::stacks_of_*`, `heap::tests::agrees`\n`heap::history::tests::*`";
        assert_eq!(unknown(good), [""; 0]);
        assert_eq!(unknown("`loss::a_loss_is`\n`loss::told`"), ["loss::a_loss_is:1", "loss::told:2"]);
        assert_eq!(
            unknown("`heap::tests::grows`, `heap::tests::a_loss`"),
            ["heap::tests::grows:1", "heap::tests::a_loss:1"]
        );
        assert_eq!(unknown("`services::*`"), ["services::*:1"], "a file, no test");
    }

    #[test]
    fn names_of_files_are_known() {
        assert_eq!(unknown("`heap/mod.rs`, `tracer/src/heap/`, `mod.rs`, `target/vm`, `a.toml`"), [""; 0]);
        assert_eq!(unknown("`eap/mod.rs`, `src/heaps/`"), ["eap/mod.rs:1", "src/heaps/:1"]);
    }

    #[test]
    fn what_is_no_name_of_a_test_is_left_alone() {
        assert_eq!(unknown("`Quality::gaps`, `alloc::enter`, loss::no, `loss::`, `tests/loss.rs`"), [""; 0]);
    }
}
