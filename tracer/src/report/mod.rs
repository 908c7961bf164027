//! Reports: a [`Profile`] in, one format out. One file per format; none of them knows where the profile comes from.
//!
//! All names in a profile come from the target and are hostile: formats that people or other programs read as lines or
//! markup take them through `escape`.

mod escape;
mod filters;
mod flamegraph;
mod folded;
mod frames;
mod goroutines;
mod groups;
mod head;
mod index;
mod json;
mod mapped;
mod merge;
mod name;
mod numbers;
mod options;
mod pprof;
mod sampling;
mod stacks;
mod text;
mod words;

#[cfg(test)]
mod fixture;

pub use escape::{shorten, visible};
pub use head::LISTED;
pub use numbers::{count, duration, number, size};
pub use options::{By, Format, Options, UnknownName, Value};

use std::io::{self, BufWriter, Write};

use crate::profile::{Kind, Profile};

/// Writes `profile` in one format.
///
/// # Errors
/// Whatever `out` fails with; `InvalidData` when the profile has a start time that no calendar knows.
pub fn write(format: Format, profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    match format {
        Format::Text if profile.kind == Kind::Goroutines => goroutines::write(profile, options, &mut out)?,
        Format::Text => text::write(profile, options, &mut out)?,
        Format::Folded => folded::write(profile, options, &mut out)?,
        Format::Svg => flamegraph::write(profile, options, &mut out)?,
        Format::Pprof => pprof::write(profile, options, &mut out)?,
        Format::Json => json::write(profile, options.by, &mut out)?,
    }
    out.flush()
}

/// Writes the short report that is printed while tracing goes on.
///
/// # Errors
/// As for [`write`].
pub fn write_interval(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    text::write_interval(profile, options, &mut out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_fails_fails_the_report() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for format in Format::ALL {
            let error = write(format, &fixture::profile(), &fixture::OPTIONS, &mut Full).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{}", format.name());
        }
    }
}
