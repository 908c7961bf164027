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

/// The numbers of these processes and of those that have started them, and so on.
pub(super) fn with_ancestors(images: impl IntoIterator<Item = u32>, processes: &[Process]) -> HashSet<u32> {
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
