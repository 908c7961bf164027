//! What the containers of processes are called.

use std::{path::Path, sync::Arc};

use hashbrown::HashMap;

use crate::{
    profile::{Container, Process},
    select::names::Names,
};

/// Containers that have been met, with their names.
#[derive(Default)]
pub(super) struct ContainerNames(HashMap<String, Arc<Container>>);

impl ContainerNames {
    /// Names the containers that processes are in. The files of runtimes are read when there is one that has not been met.
    pub(super) fn name(&mut self, processes: &mut [Process]) {
        self.name_by(processes, || Names::read(Path::new("/")));
    }

    fn name_by(&mut self, processes: &mut [Process], read: impl Fn() -> Names) {
        let mut names = None;
        for container in processes.iter_mut().filter_map(|process| process.place.container.as_mut()) {
            let named = self.0.entry(container.id.clone()).or_insert_with(|| {
                let names = names.get_or_insert_with(&read);
                let name = names.of_container(&container.id).map(str::to_owned);
                Arc::new(Container { name, ..Container::clone(container) })
            });
            *container = Arc::clone(named);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::profile::{Language, Place};

    #[test]
    fn files_of_runtimes_are_read_once_for_what_is_new() {
        let reads = Cell::new(0);
        let read = || {
            reads.set(reads.get() + 1);
            Names::of([("a".to_owned(), "web".to_owned())], [])
        };
        let inside = |id: Option<&str>| {
            let of = |id: &str| Container { runtime: String::new(), id: id.to_owned(), name: None };
            let place = Place { cgroup: None, container: id.map(of).map(Arc::new) };
            Process { place, ..Process::new(1, String::new(), String::new(), Language::C) }
        };
        let mut names = ContainerNames::default();
        names.name_by(&mut [inside(None)], read);
        assert_eq!(reads.get(), 0);
        for _ in 0..2 {
            let mut processes = [inside(Some("a")), inside(None), inside(Some("b")), inside(Some("a"))];
            names.name_by(&mut processes, read);
            let named = processes.map(|process| process.place.container.and_then(|known| known.name.clone()));
            assert_eq!(named, [Some("web".to_owned()), None, None, Some("web".to_owned())]);
        }
        assert_eq!(reads.get(), 1);
    }
}
