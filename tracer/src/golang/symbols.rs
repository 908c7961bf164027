//! Addresses of calls in Go code to frames: the function, the functions inlined into it, files and lines. Like the runtime's
//! own tracebacks (`tracebackPCs`), without the wrappers that the compiler makes for methods.

use std::{ops::Deref, sync::Arc};

use hashbrown::HashMap;

use super::{Runtime, pclntab::LogicalFrame};
use crate::{
    files::elf::code,
    profile::{Frame, Frames, Module},
};

/// What every goroutine but the first returns to: says nothing.
const GOEXIT: &str = "runtime.goexit";
/// A wrapper that calls one of these is where the panic came from, and stays.
const PANICS: [&str; 3] = ["runtime.gopanic", "runtime.sigpanic", "runtime.panicwrap"];
/// First version of Go that writes whole names of generic functions to its own profiles.
const SYMBOLS: u32 = 21;
/// Most text of all names together, bytes. What comes later keeps its address only.
const MAX_TEXT: usize = 256 << 20;
/// What a frame without a name says of itself.
const UNNAMED: &str = "?";

/// Names addresses, each once.
pub struct Symbols<R> {
    /// Runtimes of the process, each with the path of its file; the first is the one that C code beside Go is named by.
    modules: Vec<(R, String)>,
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
        Self { modules: vec![(runtime, module.to_owned())], known: HashMap::new(), text: 0, shift: 0 }
    }

    /// Its tables may be read for as long as one report takes.
    pub fn allow_a_look(&self) {
        self.modules.iter().for_each(|(runtime, _)| runtime.executable.tables.allow_a_look());
    }

    /// Names addresses of another runtime or plugin of the process, too.
    pub fn add(&mut self, runtime: R, module: &str) {
        self.modules.push((runtime, module.to_owned()));
        // Some of them may have had no name.
        self.known.clear();
    }

    /// The same for stacks of return addresses: the offsets of frames are behind the calls that they are looked up by.
    pub fn of_returns(runtime: R, module: &str) -> Self {
        Self { shift: 1, ..Self::new(runtime, module) }
    }

    /// The executable, or the files of several runtimes, as reports describe them.
    pub fn described(&self) -> impl Iterator<Item = Module> {
        self.modules.iter().map(|(runtime, path)| {
            let executable = &runtime.executable;
            Module { path: path.clone(), build_id: executable.build_id.clone(), code: code(&executable.segments) }
        })
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

    /// Address in the process of what is at an offset of a file, of which device and inode are known, if that is Go code of one
    /// of the runtimes.
    pub fn address(&self, inode: (u64, u64), offset: u64) -> Option<u64> {
        let of_file = self.modules.iter().filter(|(runtime, _)| runtime.executable.inode == Some(inode));
        let mut addresses = of_file.filter_map(|(runtime, _)| {
            let address = runtime.executable.address(offset)?.wrapping_add(runtime.bias);
            runtime.text_offset(address).map(|_| address)
        });
        addresses.next()
    }

    /// The runtime whose file an address lies in, and the path of that; the first where it is none.
    fn module_of(&self, address: u64) -> (&Runtime, &str) {
        let in_go = |(runtime, _): &&(R, String)| runtime.text_offset(address).is_some();
        let in_file =
            |(runtime, _): &&(R, String)| runtime.executable.file_offset(address.wrapping_sub(runtime.bias)).is_some();
        let modules = || self.modules.iter();
        let (runtime, path) = modules().find(in_go).or_else(|| modules().find(in_file)).unwrap_or(&self.modules[0]);
        (runtime, path)
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
        let (runtime, path) = self.module_of(call);
        let executable = &runtime.executable;
        let linked = call.wrapping_sub(runtime.bias);
        let bare = match executable.file_offset(linked) {
            Some(offset) => Frame { module: Some(path.to_owned()), offset: offset + self.shift, ..Frame::default() },
            None => Frame { offset: call.wrapping_add(self.shift), ..Frame::default() },
        };
        let mut frames = Vec::new();
        let in_full = executable.version.minor.is_none_or(|minor| minor >= SYMBOLS);
        let logical = if self.text < MAX_TEXT { logical(runtime, call) } else { Vec::new() };
        for logical in logical {
            let elided = logical.id == executable.layout.wrapper && !keep_wrappers;
            keep_wrappers = PANICS.contains(&&*logical.function);
            if !elided {
                let LogicalFrame { function, symbol, file, line, inlined, .. } = logical;
                let symbol = symbol.filter(|_| in_full);
                let function = Some(function).filter(|function| function != UNNAMED);
                frames.push(Frame { function, symbol, file, line, inlined, ..bare.clone() });
            }
        }
        if frames.is_empty() && (self.text >= MAX_TEXT || runtime.text_offset(call).is_none()) {
            frames.push(bare);
        }
        frames.reverse();
        if let Some(first) = frames.first_mut() {
            // What it was inlined into may have been elided.
            first.inlined = false;
        }
        (frames.into(), keep_wrappers)
    }
}

/// The functions at an address, innermost first.
fn logical(runtime: &Runtime, call: u64) -> Vec<LogicalFrame> {
    let executable = &runtime.executable;
    let tables = &executable.tables;
    let found = runtime.text_offset(call).and_then(|offset| Some((tables.function(offset)?, offset)));
    let Some((function, offset)) = found else { return Vec::new() };
    tables.frames(function, offset, &executable.layout.inlined_call, |offset, buffer| {
        runtime.read_function_data(offset, buffer)
    })
}
