//! What an examination comes to, as values: lines, each with a status, what it is needed for and what to do, and the verdict that
//! follows from all of them.

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was tried, and works.
    Works,
    /// It works in part, or another way has to do.
    Degraded,
    /// It does not work, or is not there.
    Missing,
    /// Whether it is there does not matter here.
    NotNeeded,
}

impl Status {
    /// Its word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
            Self::NotNeeded => "not needed",
        }
    }
}

/// How much hangs on something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing is traced without it.
    Required,
    /// Without it, or where it is degraded, a trace is not complete.
    ForCompleteness,
    /// Without it something costs more or is done in another way, and no number changes.
    Optional,
}

/// What a trace will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It will work, and what it tells can be complete.
    Complete,
    /// It will work, and not tell all.
    Incomplete,
    /// It will not work.
    Nothing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is; may hold names from outside.
    pub topic: String,
    /// How it is.
    pub status: Status,
    /// What was found: may hold hostile text.
    pub found: String,
    /// What it is needed for.
    pub needed_for: &'static str,
    /// What to do about it; empty where nothing is to be done.
    pub advice: String,
    /// More of what was found, one thing each: hostile text.
    pub details: Vec<String>,
    need: Need,
}

impl Line {
    /// Something of which nothing is known yet.
    pub fn new(topic: impl Into<String>, need: Need, needed_for: &'static str) -> Self {
        let (found, advice) = (String::new(), String::new());
        let details = Vec::new();
        Self { topic: topic.into(), status: Status::NotNeeded, found, needed_for, advice, details, need }
    }

    /// The same with more of what was found.
    pub fn with_details(self, details: Vec<String>) -> Self {
        Self { details, ..self }
    }

    /// It works.
    pub fn works(self, found: impl Into<String>) -> Self {
        Self { status: Status::Works, found: found.into(), ..self }
    }

    /// It works in part.
    pub fn degraded(self, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Degraded, found: found.into(), advice: advice.into(), ..self }
    }

    /// It does not work.
    pub fn missing(self, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Missing, found: found.into(), advice: advice.into(), ..self }
    }

    /// Nobody asks for it.
    pub fn not_needed(self, found: impl Into<String>) -> Self {
        Self { status: Status::NotNeeded, found: found.into(), ..self }
    }

    /// What it does to a trace.
    pub fn verdict(&self) -> Verdict {
        match (self.status, self.need) {
            (Status::Works | Status::NotNeeded, _) | (_, Need::Optional) => Verdict::Complete,
            (Status::Missing, Need::Required) => Verdict::Nothing,
            (Status::Missing | Status::Degraded, _) => Verdict::Incomplete,
        }
    }
}

/// Lines about one matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The matter.
    pub title: &'static str,
    /// The lines.
    pub lines: Vec<Line>,
}

/// The worst of these lines.
pub fn verdict(sections: &[Section]) -> Verdict {
    let lines = sections.iter().flat_map(|section| &section.lines);
    lines.map(Line::verdict).max().unwrap_or(Verdict::Complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_on_a_line_decides() {
        let line = |need| Line::new("a", need, "b");
        for (line, expected) in [
            (line(Need::Required).works("x"), Verdict::Complete),
            (line(Need::Required).not_needed("x"), Verdict::Complete),
            (line(Need::Required).degraded("x", "y"), Verdict::Incomplete),
            (line(Need::Required).missing("x", "y"), Verdict::Nothing),
            (line(Need::ForCompleteness).degraded("x", "y"), Verdict::Incomplete),
            (line(Need::ForCompleteness).missing("x", "y"), Verdict::Incomplete),
            (line(Need::Optional).degraded("x", "y"), Verdict::Complete),
            (line(Need::Optional).missing("x", "y"), Verdict::Complete),
        ] {
            assert_eq!(line.verdict(), expected, "{line:?}");
        }
        let section = |lines| Section { title: "t", lines };
        let worst = [
            section(vec![line(Need::Required).works("x"), line(Need::ForCompleteness).missing("x", "y")]),
            section(vec![line(Need::Optional).missing("x", "y")]),
        ];
        assert_eq!(verdict(&worst), Verdict::Incomplete);
        assert_eq!(verdict(&[]), Verdict::Complete);
    }
}
