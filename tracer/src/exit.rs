//! Exit statuses: documented once, printed in `--help`.

use std::process::ExitCode;

/// How a run of tracer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Traced, and the report is complete.
    Complete,
    /// Nothing was traced, or the report could not be written.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// Traced, but more was lost than can be overlooked.
    Incomplete,
    /// With `-- CMD`: how the command ended.
    Child(u8),
}

/// What makes the status 3: in words, what `Quality::gaps` has a share for.
const INCOMPLETE: [&str; 9] = [
    "no allocation was seen at all",
    "more than 20 % and 8 MiB of new memory is not explained by what was recorded",
    "a process ran unseen for a time",
    "a process that a traced one started was not followed",
    "more than 0.1 % of the events were lost, or found no room",
    "more than 0.1 % of the bytes are uncertain, or of stacks that are not known",
    "a Go heap was not seen, or not in full",
    "no garbage collection tells what of a Go heap is left",
    "more than 5 % of the samples of a Go heap or 25 % of its collections could not be followed",
];

/// What `--help` says.
pub fn help() -> String {
    let incomplete = INCOMPLETE.join("\n     - ");
    format!(
        "\
Exit status:
  0  traced, and the report is complete
  1  nothing was traced, or a report could not be written
  2  the command line makes no sense
  3  traced, but too much is missing:
     - {incomplete}
     (with --strict: the report is not complete in any way)
  With `-- CMD`, the status of CMD, or 128 + the signal that killed it; 1, 2 and 3 as above
  when CMD itself ended with 0, or was never started; 128 + the signal that made tracer leave
  it running."
    )
}

/// What the help of `goroutines` says.
pub const GOROUTINES_HELP: &str = "\
Exit status:
  0  read, and reported
  1  not a Go process, or one that cannot be read; or a report could not be written
  2  the command line makes no sense";

/// What the help of `top` says.
pub const TOP_HELP: &str = "\
Exit status:
  0  shown
  1  processes cannot be seen, or nothing can be written
  2  the command line makes no sense";

/// What the help of `doctor` says.
pub const DOCTOR_HELP: &str = "\
Exit status:
  0  tracing will work
  1  it will not
  2  the command line makes no sense
  3  it will work, but not see everything: the last lines say why";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Complete => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Incomplete => 3,
            Exit::Child(status) => status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_all_that_the_help_has() {
        let readme = include_str!("../../README.md");
        let row = readme.lines().find(|line| line.starts_with("| 3 |")).unwrap_or_default();
        let causes = INCOMPLETE.join("; ");
        assert!(row.contains(&causes), "{row} has not: {causes}");
        assert!(INCOMPLETE.iter().all(|cause| help().contains(cause)));
    }
}
