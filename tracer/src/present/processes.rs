//! Which process an address space is of, and which process an id is of.

use hashbrown::{HashMap, HashSet};

use crate::{event::Image, profile::Process};

/// The processes of a trace by the numbers of their address spaces, those that they had as earlier programs too.
pub(super) struct ByImage(HashMap<u32, usize>);

impl ByImage {
    pub(super) fn new(processes: &[Process]) -> Self {
        let of_all = processes.iter().enumerate().flat_map(|(place, process)| {
            process.earlier_images.iter().chain([&process.image]).map(move |image| (*image, place))
        });
        Self(of_all.collect())
    }

    /// The place of the process in the list.
    pub(super) fn place(&self, image: Image) -> Option<usize> {
        self.0.get(&image.0).copied()
    }
}

/// How many processes are silent without an excuse. One that was started may have nothing to allocate, and so may one that only
/// starts others, and one of several that run one program: what is probed is heard of in the others.
pub(super) fn silent(processes: &[Process]) -> u64 {
    let loud = || processes.iter().filter(|process| !process.quality.silent);
    let related = with_ancestors(loud().map(|process| process.image), processes);
    let programs: HashSet<&str> = loud().map(|process| &*process.exe).filter(|exe| !exe.is_empty()).collect();
    let is_excused = |process: &Process| {
        process.parent.is_some() || related.contains(&process.image) || programs.contains(&*process.exe)
    };
    processes.iter().filter(|process| process.quality.silent && !is_excused(process)).count() as u64
}

/// The numbers of these processes and of those that have started them, and so on.
fn with_ancestors(images: impl IntoIterator<Item = u32>, processes: &[Process]) -> HashSet<u32> {
    let places = ByImage::new(processes);
    let mut all = HashSet::new();
    for image in images {
        let mut next = Some(image);
        while let Some(image) = next.filter(|image| all.insert(*image)) {
            let parent = places.place(Image(image)).and_then(|place| processes[place].parent);
            next =
                parent.map(|parent| places.place(Image(parent.image)).map_or(parent.image, |at| processes[at].image));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Language, Parent};

    fn process(image: u32, exe: &str, silent: bool) -> Process {
        let mut process = Process::new(7, String::new(), exe.to_owned(), Language::C);
        (process.image, process.quality.silent) = (image, silent);
        process
    }

    #[test]
    fn silence_needs_an_excuse() {
        let quiet = process(1, "/usr/bin/a", true);
        assert_eq!(silent(std::slice::from_ref(&quiet)), 1);
        assert_eq!(silent(&[quiet.clone(), process(2, "/usr/bin/b", false)]), 1);
        assert_eq!(silent(&[quiet.clone(), process(2, "/usr/bin/a", false)]), 0, "of the same program");
        assert_eq!(silent(&[quiet.clone(), process(2, "/usr/bin/a", true)]), 2);
        let unknown = |image, silent| process(image, "", silent);
        assert_eq!(silent(&[unknown(1, true), unknown(2, false)]), 1, "nobody knows whether it is the same program");
        let of = |parent: u32, child: Process| Process { parent: Some(Parent { pid: 7, image: parent }), ..child };
        assert_eq!(silent(&[quiet.clone(), of(1, process(2, "/usr/bin/b", false))]), 0, "it only starts others");
        assert_eq!(silent(&[quiet.clone(), of(1, process(2, "/usr/bin/b", true))]), 1, "which are silent, too");
        // As the program that it was before, it started another one.
        let changed = Process { image: 3, earlier_images: vec![1], ..quiet };
        assert_eq!(silent(&[changed, of(1, process(2, "/usr/bin/b", false))]), 0);
    }

    #[test]
    fn an_address_space_is_of_one_process_whatever_the_ids() {
        let changed = Process { earlier_images: vec![1, 2], ..process(3, "", false) };
        let by_image = ByImage::new(&[process(9, "", false), changed]);
        let places = [9, 1, 2, 3, 4].map(|image| by_image.place(Image(image)));
        assert_eq!(places, [Some(0), Some(1), Some(1), Some(1), None]);
    }
}
