//! Addresses as locations, each once: the functions that are inlined there are lines of one location.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{
    super::{escape::visible, name},
    mappings::{Mappings, Place},
    message::{self, Function, Line, Location},
    strings::Strings,
};
use crate::profile::{Frame, Kind, Profile};

/// The function of a sample without frames.
const NO_STACK: &str = "[no stack]";

/// The locations so far.
pub(super) struct Locations<'a> {
    kind: Kind,
    mappings: Mappings<'a>,
    /// With what mappings tell of them; addresses are filled in at the end.
    locations: Vec<(Location, Option<Place>)>,
    by_frames: HashMap<&'a [Frame], u64>,
    /// The same by place in memory, which is looked up sooner: stacks share lists.
    by_list: HashMap<*const Frame, u64>,
    no_stack: Option<u64>,
    functions: Vec<Function>,
    /// By name and file.
    by_name: HashMap<(i64, i64), u64>,
}

impl<'a> Locations<'a> {
    pub(super) fn new(profile: &'a Profile) -> Self {
        Self {
            kind: profile.kind,
            mappings: Mappings::new(profile),
            locations: Vec::new(),
            by_frames: HashMap::new(),
            by_list: HashMap::new(),
            no_stack: None,
            functions: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// Id of the location of an address with at least one frame.
    pub(super) fn id(&mut self, frames: &'a Arc<[Frame]>, strings: &mut Strings) -> u64 {
        if let Some(id) = self.by_list.get(&frames.as_ptr()) {
            return *id;
        }
        let known = self.by_frames.get(&**frames).copied();
        let id = known.unwrap_or_else(|| self.add(frames, strings));
        self.by_frames.insert(frames, id);
        self.by_list.insert(frames.as_ptr(), id);
        id
    }

    /// Id of the location that stands for a stack without frames.
    pub(super) fn no_stack(&mut self, strings: &mut Strings) -> u64 {
        if let Some(id) = self.no_stack {
            return id;
        }
        let line = Line { function_id: self.function(NO_STACK, "", strings), line: 0 };
        let id = self.push(Location { line: vec![line], ..Location::default() }, None);
        *self.no_stack.insert(id)
    }

    fn add(&mut self, frames: &'a [Frame], strings: &mut Strings) -> u64 {
        let Some(first) = frames.first() else { return self.no_stack(strings) };
        let offset = self.kind.offset_of_call(first.offset);
        let module = first.module.as_deref().filter(|path| !path.is_empty());
        let place = module.and_then(|path| self.mappings.place(path, offset));
        // One of which only the place is known is left to pprof to name.
        let named = frames.iter().any(|frame| name::function(frame).is_some() || frame.file.is_some());
        let mut line = Vec::new();
        if named {
            line.extend(frames.iter().rev().map(|frame| self.line(frame, strings)));
            place.inspect(|place| self.mappings.note(*place, frames));
        }
        self.push(Location { address: offset, line, ..Location::default() }, place)
    }

    fn line(&mut self, frame: &Frame, strings: &mut Strings) -> Line {
        let file = frame.file.as_deref().map_or_else(Default::default, visible);
        let function_id = self.function(&name::symbol(frame), &file, strings);
        Line { function_id, line: frame.line.map_or(0, i64::from) }
    }

    fn function(&mut self, name: &str, file: &str, strings: &mut Strings) -> u64 {
        let (name, filename) = (strings.id(name), strings.id(file));
        let id = self.functions.len() as u64 + 1;
        let known = *self.by_name.entry((name, filename)).or_insert(id);
        if known == id {
            self.functions.push(Function { id, name, filename });
        }
        known
    }

    fn push(&mut self, location: Location, place: Option<Place>) -> u64 {
        let id = self.locations.len() as u64 + 1;
        self.locations.push((Location { id, ..location }, place));
        id
    }

    /// All messages.
    pub(super) fn finish(self, strings: &mut Strings) -> (Vec<message::Mapping>, Vec<Location>, Vec<Function>) {
        let (mappings, addresses) = self.mappings.finish(strings);
        let locations = self.locations.into_iter().map(|(mut location, place)| {
            if let Some(place) = place {
                (location.mapping_id, location.address) = addresses.of(place);
            }
            location
        });
        (mappings, locations.collect(), self.functions)
    }
}
