//! What the reader of a report should know, told once each as it came; of very many the first.

use crate::report::count;

/// Notes.
pub(super) struct Notes {
    kept: Vec<String>,
    most: usize,
    /// How many more there were.
    more: u64,
}

impl Notes {
    /// None yet, of which so many will be kept.
    pub(super) fn most(most: usize) -> Self {
        Self { kept: Vec::new(), most, more: 0 }
    }

    /// One more.
    pub(super) fn push(&mut self, note: String) {
        if self.kept.len() < self.most {
            self.kept.push(note);
        } else {
            self.more += 1;
        }
    }

    /// How many there were.
    pub(super) fn len(&self) -> u64 {
        self.kept.len() as u64 + self.more
    }

    /// Those that were kept, and how many more there were.
    pub(super) fn all(&self) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| format!("{} like those", count(self.more, "more note")));
        self.kept.iter().cloned().chain(more)
    }
}

impl Extend<String> for Notes {
    fn extend<T: IntoIterator<Item = String>>(&mut self, notes: T) {
        notes.into_iter().for_each(|note| self.push(note));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_the_first_are_kept_and_the_others_counted() {
        let mut notes = Notes::most(2);
        notes.extend(["one", "two"].map(str::to_owned));
        assert_eq!((notes.all().collect::<Vec<_>>(), notes.len()), (vec!["one".to_owned(), "two".to_owned()], 2));
        notes.extend(["three", "four"].map(str::to_owned));
        assert_eq!((notes.all().last().unwrap(), notes.len()), ("2 more notes like those".to_owned(), 4));
    }
}
