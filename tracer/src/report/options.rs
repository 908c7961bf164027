//! What a report can be asked for: its form, its amounts, what it puts together.

use std::{path::Path, str::FromStr};

use crate::profile::Values;

/// A form that a report can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people, in a terminal.
    Text,
    /// Folded stacks, for flame graph tools.
    Folded,
    /// A flame graph.
    Svg,
    /// For `go tool pprof` and its kin; gzipped.
    Pprof,
    /// The saved form: everything that the profile holds.
    Json,
}

impl Format {
    pub(super) const ALL: [Self; 5] = [Self::Text, Self::Folded, Self::Svg, Self::Pprof, Self::Json];

    /// Names of all formats, as [`FromStr`] takes them.
    pub fn names() -> [&'static str; 5] {
        Self::ALL.map(Self::name)
    }

    /// Name of the format, as [`FromStr`] takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Folded => "folded",
            Self::Svg => "svg",
            Self::Pprof => "pprof",
            Self::Json => "json",
        }
    }

    /// The format that the suffix of a file name asks for, in either case; `None` when the suffix is none of them.
    pub fn from_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.as_encoded_bytes();
        Self::ALL.into_iter().find(|format| {
            let suffix = format.suffix().as_bytes();
            let dot = name.len().checked_sub(suffix.len() + 1).filter(|dot| *dot > 0);
            dot.is_some_and(|dot| name[dot] == b'.' && name[dot + 1..].eq_ignore_ascii_case(suffix))
        })
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Pprof => "pb.gz",
            Self::Folded | Self::Svg | Self::Json => self.name(),
        }
    }
}

impl FromStr for Format {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let format = Self::ALL.into_iter().find(|format| format.name() == name);
        format.ok_or_else(|| UnknownName::new("format", name, &Self::names()))
    }
}

/// The amount that stacks are ranked and drawn by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Outstanding bytes.
    Bytes,
    /// Outstanding blocks.
    Count,
    /// Bytes that programs have mapped themselves, beside their heaps.
    Mapped,
}

impl Value {
    const ALL: [Self; 3] = [Self::Bytes, Self::Count, Self::Mapped];

    /// Names of all values, as [`FromStr`] takes them.
    pub fn names() -> [&'static str; 3] {
        Self::ALL.map(Self::name)
    }

    /// Name of the value, as [`FromStr`] takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::Mapped => "mapped",
        }
    }

    /// The unit that it is counted in.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Bytes | Self::Mapped => "bytes",
            Self::Count => "blocks",
        }
    }

    /// That of a heap, which has no mapped bytes: stacks are ranked by their bytes then.
    pub(super) fn of(self, values: &Values) -> u64 {
        match self {
            Self::Bytes | Self::Mapped => values.outstanding_bytes,
            Self::Count => values.outstanding_blocks,
        }
    }
}

/// What processes are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Those of one program.
    Program,
    /// None: each is told apart.
    Process,
    /// Those of one cgroup.
    Cgroup,
    /// Those of one container.
    Container,
}

impl By {
    /// Its name, as the command line and saved profiles have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Process => "process",
            Self::Cgroup => "cgroup",
            Self::Container => "container",
        }
    }
}

impl FromStr for Value {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let value = Self::ALL.into_iter().find(|value| value.name() == name);
        value.ok_or_else(|| UnknownName::new("value", name, &Self::names()))
    }
}

/// What a report is asked to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most stacks that the text report lists.
    pub top: usize,
    /// The amount that stacks are ranked by (text) or drawn by (folded, SVG). Goroutines are always counted.
    pub value: Value,
    /// What processes are put together by.
    pub by: By,
}

/// A name that stands for no [`Format`] or no [`Value`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {name:?}: use one of {allowed}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    allowed: String,
}

impl UnknownName {
    fn new(what: &'static str, name: &str, allowed: &[&str]) -> Self {
        Self { what, name: name.to_owned(), allowed: allowed.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_formats_are_two_ways_to_say_the_same() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(Format::from_path(Path::new(&format!("/tmp/a.b.{}", format.suffix()))), Some(format));
        }
        for value in Value::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        assert_eq!(Format::names(), ["text", "folded", "svg", "pprof", "json"]);
        assert_eq!(Value::names(), ["bytes", "count", "mapped"]);
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        let message = "pdf\u{1b}".parse::<Format>().unwrap_err().to_string();
        assert_eq!(message, r#"unknown format "pdf\u{1b}": use one of text, folded, svg, pprof, json"#);
        let message = "words".parse::<Value>().unwrap_err().to_string();
        assert_eq!(message, r#"unknown value "words": use one of bytes, count, mapped"#);
    }

    #[test]
    fn only_a_known_suffix_chooses_a_format() {
        for (path, format) in [
            ("x.SVG", Some(Format::Svg)),
            ("x.Txt", Some(Format::Text)),
            ("dir.json/x.folded", Some(Format::Folded)),
            ("x.pb.gz", Some(Format::Pprof)),
            ("x.y.Pb.GZ", Some(Format::Pprof)),
            ("x.text", None),
            ("x.svg.gz", None),
            ("x.pb", None),
            ("x.gz", None),
            ("xpb.gz", None),
            ("pb.gz", None),
            (".pb.gz", None),
            ("dir.json/x", None),
            ("svg", None),
            (".svg", None),
            ("-", None),
        ] {
            assert_eq!(Format::from_path(Path::new(path)), format, "{path}");
        }
    }
}
