//! Addresses of calls in Go code to frames: the function, the functions inlined into it, files and lines. Like the runtime's
//! own tracebacks (`tracebackPCs`), without the wrappers that the compiler makes for methods.

use std::{ops::Deref, sync::Arc};

use hashbrown::HashMap;

use super::{Runtime, pclntab::LogicalFrame};
use crate::{
    process::elf::code,
    profile::{Frame, Frames, Module},
};

/// What every goroutine but the first returns to: says nothing.
const GOEXIT: &str = "runtime.goexit";
/// A wrapper that calls one of these is where the panic came from, and stays.
const PANICS: [&str; 3] = ["runtime.gopanic", "runtime.sigpanic", "runtime.panicwrap"];
/// Most text of all names together, bytes. What comes later keeps its address only.
const MAX_TEXT: usize = 256 << 20;
/// What a frame without a name says of itself.
const UNNAMED: &str = "?";

/// Names addresses, each once.
pub struct Symbols<R> {
    runtime: R,
    /// Path of the executable.
    module: String,
    /// By address, and whether wrappers stay at its leaf.
    known: HashMap<(u64, bool), Named>,
    /// Bytes of names, so far.
    text: usize,
    /// What is added to the offsets of frames.
    shift: u64,
}

/// The frames at an address, root first, and whether wrappers stay in its caller.
type Named = (Arc<[Frame]>, bool);

impl<R: Deref<Target = Runtime>> Symbols<R> {
    /// For a process whose executable is known to it as `module`.
    pub fn new(runtime: R, module: &str) -> Self {
        Self { runtime, module: module.to_owned(), known: HashMap::new(), text: 0, shift: 0 }
    }

    /// The same for stacks of return addresses: the offsets of frames are behind the calls that they are looked up by.
    pub fn of_returns(runtime: R, module: &str) -> Self {
        Self { shift: 1, ..Self::new(runtime, module) }
    }

    /// The executable, as reports describe it.
    pub fn described(&self) -> Module {
        let executable = &self.runtime.executable;
        Module { path: self.module.clone(), build_id: executable.build_id.clone(), code: code(&executable.segments) }
    }

    /// The frames of a stack. `calls` are addresses of calls, the leaf first.
    pub fn stack(&mut self, calls: &[u64]) -> Frames {
        let frames = self.frames(calls, false);
        // One that has not begun yet stands in the wrapper that will call its function.
        if frames.iter().next().is_some() { frames } else { self.frames(calls, true) }
    }

    fn frames(&mut self, calls: &[u64], keep_wrappers: bool) -> Frames {
        let mut stack = self.addresses(calls, keep_wrappers);
        stack.reverse();
        stack.into_iter().collect()
    }

    /// The frames of each address of a part of a stack, leaf first; those of which nothing is shown are left out. `calls` are
    /// addresses of calls, the leaf first.
    pub fn part(&mut self, calls: &[u64]) -> Vec<Arc<[Frame]>> {
        self.addresses(calls, false)
    }

    fn addresses(&mut self, calls: &[u64], mut keep_wrappers: bool) -> Vec<Arc<[Frame]>> {
        let mut stack: Vec<Arc<[Frame]>> = Vec::with_capacity(calls.len());
        for call in calls {
            let (frames, keep) = self.at(*call, keep_wrappers);
            keep_wrappers = keep;
            if !frames.is_empty() && !frames.iter().any(|frame| frame.function.as_deref() == Some(GOEXIT)) {
                stack.push(frames);
            }
        }
        stack
    }

    /// Whether there is Go code at an address.
    pub fn is_go(&self, address: u64) -> bool {
        self.runtime.text_offset(address).is_some()
    }

    /// The innermost frame at an address.
    pub fn innermost(&mut self, call: u64) -> Option<Frame> {
        self.at(call, true).0.last().cloned()
    }

    fn at(&mut self, call: u64, keep_wrappers: bool) -> Named {
        if let Some((frames, keep)) = self.known.get(&(call, keep_wrappers)) {
            return (Arc::clone(frames), *keep);
        }
        let named = self.look_up(call, keep_wrappers);
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.text += named.0.iter().map(|frame| length(&frame.function) + length(&frame.file)).sum::<usize>();
        self.known.insert((call, keep_wrappers), named.clone());
        named
    }

    fn look_up(&self, call: u64, mut keep_wrappers: bool) -> Named {
        let executable = &self.runtime.executable;
        let linked = call.wrapping_sub(self.runtime.bias);
        let bare = match executable.file_offset(linked) {
            Some(offset) => {
                Frame { module: Some(self.module.clone()), offset: offset + self.shift, ..Frame::default() }
            }
            None => Frame { offset: call.wrapping_add(self.shift), ..Frame::default() },
        };
        let mut frames = Vec::new();
        let logical = if self.text < MAX_TEXT { self.logical(call) } else { Vec::new() };
        for logical in logical {
            let elided = logical.id == executable.layout.wrapper && !keep_wrappers;
            keep_wrappers = PANICS.contains(&&*logical.function);
            if !elided {
                let LogicalFrame { function, file, line, inlined, .. } = logical;
                let function = Some(function).filter(|function| function != UNNAMED);
                frames.push(Frame { function, file, line, inlined, ..bare.clone() });
            }
        }
        if frames.is_empty() && (self.text >= MAX_TEXT || self.runtime.text_offset(call).is_none()) {
            frames.push(bare);
        }
        frames.reverse();
        if let Some(first) = frames.first_mut() {
            // What it was inlined into may have been elided.
            first.inlined = false;
        }
        (frames.into(), keep_wrappers)
    }

    /// Innermost first.
    fn logical(&self, call: u64) -> Vec<LogicalFrame> {
        let executable = &self.runtime.executable;
        let tables = &executable.tables;
        let found = self.runtime.text_offset(call).and_then(|offset| Some((tables.function(offset)?, offset)));
        let Some((function, offset)) = found else { return Vec::new() };
        tables.frames(function, offset, &executable.layout.inlined_call, |offset, buffer| {
            self.runtime.read_function_data(offset, buffer)
        })
    }
}
