//! Records that were taken out of the buffer before anybody had time for them: the buffer is small, and who writes does not wait.

/// Most bytes of them: what is beyond stays in the buffer.
const MOST: usize = 256 << 20;

/// Records in the order in which they came.
#[derive(Default)]
pub(super) struct Aside {
    /// Each with its length before it.
    bytes: Vec<u8>,
    /// Where the next one begins that is to be given back.
    next: usize,
}

impl Aside {
    /// Whether there is room for no more.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= MOST
    }

    /// Puts a record behind all others.
    pub(super) fn push(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(&(record.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(record);
    }

    /// Takes the oldest record out.
    pub(super) fn pop(&mut self) -> Option<&[u8]> {
        if self.next == self.bytes.len() {
            // None is left: neither is their memory.
            *self = Self::default();
            return None;
        }
        let (length, rest) = self.bytes.get(self.next..)?.split_first_chunk()?;
        let record = rest.get(..u32::from_ne_bytes(*length) as usize)?;
        self.next += size_of_val(length) + record.len();
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_aside_comes_back_in_its_order() {
        let mut aside = Aside::default();
        assert_eq!(aside.pop(), None);
        aside.push(b"first");
        aside.push(b"");
        assert_eq!(aside.pop(), Some(&b"first"[..]));
        aside.push(&[7; 300]);
        assert_eq!((aside.pop().map(<[u8]>::len), aside.pop().map(<[u8]>::len)), (Some(0), Some(300)));
        assert_eq!(aside.pop(), None);
        assert_eq!(aside.bytes.capacity(), 0);
        aside.push(b"next");
        assert_eq!(aside.pop(), Some(&b"next"[..]));
        assert_eq!(aside.pop(), None);
        assert!(!aside.is_full());
    }
}
