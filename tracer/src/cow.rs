//! What can be looked at as it was at one moment while it changes: copied on write, part by part.
//!
//! To share something costs as much as there are parts of it; whoever changes it afterwards copies the parts that are changed, each once,
//! and only as long as somebody looks at them. What nobody has looked at costs one comparison more than if it could not be shared.

use std::{
    mem,
    ops::{Index, IndexMut},
    sync::Arc,
};

/// Something that is copied as a whole.
#[derive(Debug, Default)]
pub struct Part<T> {
    /// Empty while it is shared.
    own: T,
    shared: Option<Arc<T>>,
}

impl<T: Clone + Default> Part<T> {
    /// It.
    #[inline]
    pub fn get(&self) -> &T {
        self.shared.as_deref().unwrap_or(&self.own)
    }

    /// It, to be changed.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        if self.shared.is_some() {
            self.take_back();
        }
        &mut self.own
    }

    /// It, and nothing of it stays.
    pub fn into_inner(self) -> T {
        self.shared.map_or(self.own, Arc::unwrap_or_clone)
    }

    /// It as it is now, whatever becomes of this.
    pub fn share(&mut self) -> Arc<T> {
        Arc::clone(self.shared.get_or_insert_with(|| Arc::new(mem::take(&mut self.own))))
    }

    #[cold]
    fn take_back(&mut self) {
        if let Some(shared) = self.shared.take() {
            self.own = Arc::unwrap_or_clone(shared);
        }
    }
}

impl<T> From<T> for Part<T> {
    fn from(own: T) -> Self {
        Self { own, shared: None }
    }
}

impl<T: Default> From<Arc<T>> for Part<T> {
    fn from(shared: Arc<T>) -> Self {
        Self { own: T::default(), shared: Some(shared) }
    }
}

/// Values by index that are copied in chunks.
#[derive(Debug)]
pub struct Chunks<T> {
    chunks: Vec<Part<Vec<T>>>,
    len: usize,
}

/// Values in a chunk.
const CHUNK: usize = 1 << 8;

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Chunks<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One of them.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK)?.get().get(index % CHUNK)
    }

    /// One of them, to be changed.
    #[inline]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / CHUNK)?.get_mut().get_mut(index % CHUNK)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.get())
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flat_map(|chunk| chunk.get_mut())
    }

    /// One more.
    pub fn push(&mut self, value: T) {
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.push(Part::from(Vec::new()));
        }
        if let Some(last) = self.chunks.last_mut() {
            last.get_mut().push(value);
            self.len += 1;
        }
    }

    /// All of them as they are now.
    pub fn share(&mut self) -> Self {
        Self { chunks: self.chunks.iter_mut().map(|chunk| chunk.share().into()).collect(), len: self.len }
    }
}

impl<T: Clone + Default> Chunks<T> {
    /// The one with this index; there are more by now, if there was none.
    #[inline]
    pub fn at(&mut self, index: usize) -> &mut T {
        while self.len <= index {
            self.push(T::default());
        }
        &mut self[index]
    }
}

impl<T: Clone> Index<usize> for Chunks<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        &self.chunks[index / CHUNK].get()[index % CHUNK]
    }
}

impl<T: Clone> IndexMut<usize> for Chunks<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / CHUNK].get_mut()[index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_stays_as_it_was() {
        let mut part = Part::from(vec![1, 2]);
        let before = part.share();
        part.get_mut().push(3);
        assert_eq!((part.get().as_slice(), before.as_slice()), (&[1, 2, 3][..], &[1, 2][..]));
        let mut values: Chunks<u64> = Chunks::default();
        (0..1_000).for_each(|value| values.push(value));
        let before = values.share();
        *values.at(5) = 77;
        values.get_mut(999).into_iter().for_each(|value| *value = 88);
        values.push(99);
        *values.at(1_300) = 100;
        assert_eq!((before.len(), before.iter().copied().collect::<Vec<_>>()), (1_000, (0..1_000).collect()));
        assert_eq!(before.get(1_000), None);
        let read = |values: &Chunks<u64>| [5, 6, 999, 1_000, 1_001, 1_300].map(|at| values.get(at).copied());
        assert_eq!(read(&values), [77, 6, 88, 99, 0, 100].map(Some));
        assert!(values.len() == 1_301 && values.get(1_301).is_none() && values.get_mut(1_301).is_none());
    }

    /// How many parts are copied is what whoever changes them pays.
    #[test]
    fn only_what_is_changed_while_it_is_shared_is_copied() {
        let mut values: Chunks<u64> = Chunks::default();
        *values.at(10 * CHUNK - 1) = 1;
        let places = |values: &Chunks<u64>| {
            (0..10).map(|nth| values.get(nth * CHUNK).map(std::ptr::from_ref)).collect::<Vec<_>>()
        };
        let first = places(&values);
        let shared = values.share();
        *values.at(3 * CHUNK) = 5;
        *values.at(3 * CHUNK + 1) = 5;
        let copied = |now: &[_]| first.iter().zip(now).filter(|(first, now)| first != now).count();
        assert_eq!((copied(&places(&shared)), copied(&places(&values))), (0, 1));
        drop(shared);
        values.iter_mut().for_each(|value| *value += 1);
        assert_eq!(copied(&places(&values)), 1, "nobody looks any more");
    }
}
