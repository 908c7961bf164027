//! A file as the rules see it: Rust code apart from comments and literals, and which lines are unit tests.

use std::ops::Range;

/// One text file of the repository.
pub(super) struct Source {
    /// Path from the root, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    /// The text with all but code blanked; lines and columns are kept. Empty unless it is Rust.
    pub(super) code: String,
    /// The text with all but comments blanked. Empty unless it is Rust.
    pub(super) comments: String,
    /// Lines, from 0, of modules and items under `#[cfg(test)]`.
    tests: Vec<Range<usize>>,
}

impl Source {
    pub(super) fn new(path: String, text: String) -> Self {
        let (code, comments) = if path.ends_with(".rs") { split(&text) } else { Default::default() };
        let tests = test_lines(&code);
        Self { path, text, code, comments, tests }
    }

    /// Whether the line, from 0, belongs to unit tests. Files that are test modules as a whole are known by their name.
    pub(super) fn in_tests(&self, line: usize) -> bool {
        let name = self.path.split_once("/src/").map_or("", |(_, inside)| inside);
        let whole_file = ["tests.rs", "fixture.rs"].iter().any(|end| name.ends_with(end)) || name.contains("/tests/");
        whole_file || self.tests.iter().any(|lines| lines.contains(&line))
    }
}

/// What a stretch of Rust text is.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Code,
    Comment,
    Literal,
}

/// Code alone and comments alone, each as long as the text.
fn split(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::with_capacity(text.len()), String::with_capacity(text.len()));
    let mut rest = text;
    let mut before = String::new();
    while !rest.is_empty() {
        let (part, length) = next_part(rest, &before);
        let (piece, after) = rest.split_at(length);
        let blank: String = piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.push_str(if part == Part::Code { piece } else { &blank });
        comments.push_str(if part == Part::Comment { piece } else { &blank });
        before = if part == Part::Code { code.chars().rev().take(16).collect() } else { String::new() };
        rest = after;
    }
    (code, comments)
}

/// What the text starts with and its length in bytes. `before` is the code in front of it, backwards.
fn next_part(text: &str, before: &str) -> (Part, usize) {
    let line = text.find('\n').unwrap_or(text.len());
    match text.as_bytes() {
        [b'/', b'/', ..] => (Part::Comment, line),
        [b'/', b'*', ..] => (Part::Comment, block_comment(text)),
        [b'"', ..] => (Part::Literal, string(text, before)),
        [b'\'', ..] => match character(text) {
            Some(length) => (Part::Literal, length),
            None => (Part::Code, 1), // a lifetime
        },
        _ => (Part::Code, text.chars().next().map_or(1, char::len_utf8)),
    }
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match text.as_bytes().get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    text.len()
}

/// `before` tells whether it is raw: r"..", br#".."#.
fn string(text: &str, before: &str) -> usize {
    let hashes = before.chars().take_while(|c| *c == '#').count();
    let mut prefix = before.chars().skip(hashes);
    let raw = prefix.next() == Some('r') && prefix.find(|c| !"bc".contains(*c)).is_none_or(|c| !is_word(c));
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return text[1..].find(&end).map_or(text.len(), |at| 1 + at + end.len());
    }
    quoted(text, '"')
}

fn character(text: &str) -> Option<usize> {
    let mut chars = text[1..].chars();
    let first = chars.next()?;
    if first == '\\' {
        return Some(quoted(text, '\''));
    }
    (chars.next() == Some('\'')).then_some(2 + first.len_utf8())
}

/// Length of a literal that ends at the next such quote without a backslash.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Lines from each `#[cfg(test)]` to the end of the braces that follow, or to the semicolon before them.
fn test_lines(code: &str) -> Vec<Range<usize>> {
    let line_of = |at: usize| code[..at].matches('\n').count();
    code.match_indices("#[cfg(test)]").map(|(start, _)| line_of(start)..line_of(item_end(code, start)) + 1).collect()
}

fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return start + at,
            '}' => depth -= 1,
            ';' if depth == 0 => return start + at,
            _ => {}
        }
    }
    code.len()
}

/// Whether a character can be part of an identifier.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        for (text, code, comments) in [
            ("a // b", "a", "// b"),
            ("a /* b /* c */ d */ e", "a  e", "/* b /* c */ d */"),
            ("f(\"x // y\", 'z')", "f(, )", ""),
            (r#"f("\"unsafe", '\'', b'"', q)"#, "f(, , b, q)", ""),
            ("r#\"a \" b\"# c", "r# c", ""),
            ("let s: &'a str = r\"\\\"; g", "let s: &'a str = r; g", ""),
            ("bar\"\\\" x\" y", "bar y", ""),
        ] {
            let (found_code, found_comments) = split(text);
            assert_eq!(found_code.len(), text.len(), "{text}");
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeeze(&found_code), squeeze(code), "{text}");
            assert_eq!(squeeze(&found_comments), squeeze(comments), "{text}");
        }
    }

    #[test]
    fn unit_tests_are_found() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nx";
        let source = Source::new("a.rs".into(), text.into());
        let lines: Vec<usize> = (0..10).filter(|line| source.in_tests(*line)).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 7, 8]);
    }
}
