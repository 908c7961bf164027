//! Frames in the lines that people read.

use std::io::{self, Write};

use super::{
    escape::{shorten, visible},
    name,
};
use crate::profile::{Frame, Frames};

/// Most characters of one name or path.
pub(super) const LONGEST_NAME: usize = 400;

/// Columns that a line with a frame and its place may take before the place moves to a line of its own.
pub(super) const COLUMNS: usize = 100;

/// Writes a stack, leaf first.
pub(super) fn write_stack(frames: &Frames, out: &mut impl Write) -> io::Result<()> {
    for frame in frames.iter().rev() {
        write_frame(frame, out)?;
    }
    if frames.iter().next().is_none() {
        writeln!(out, "      [no stack]")?;
    }
    Ok(())
}

/// Writes a frame, and where its code is.
pub(super) fn write_frame(frame: &Frame, out: &mut impl Write) -> io::Result<()> {
    let mut line = shorten(name::frame(frame), LONGEST_NAME).into_owned();
    if frame.inlined {
        line.push_str(" (inlined)");
    }
    let Some(place) = place(frame) else { return writeln!(out, "      {line}") };
    if 6 + line.chars().count() + 2 + place.chars().count() <= COLUMNS {
        writeln!(out, "      {line}  {place}")
    } else {
        writeln!(out, "      {line}\n          {place}")
    }
}

/// Where a frame's code is: `file:line`, else the module. `None` when the frame's name says it already.
pub(super) fn place(frame: &Frame) -> Option<String> {
    frame.function.as_ref()?;
    let short = |text| shorten(text, LONGEST_NAME);
    match (frame.file.as_deref(), frame.line) {
        (Some(file), Some(line)) => Some(format!("{}:{line}", short(visible(file)))),
        (Some(file), None) => Some(short(visible(file)).into_owned()),
        (None, _) => name::module(frame).map(|module| format!("[{}]", short(module))),
    }
}
