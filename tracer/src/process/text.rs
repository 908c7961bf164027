//! Reading what the kernel says of a process: short texts, made anew whenever one is read.

use std::{
    fs::File,
    io::{self, Read as _},
};

/// What most of them fit into: who reads in smaller pieces calls the kernel for each.
const USUAL: usize = 4096;

/// All that such a file says, up to `most` bytes.
///
/// # Errors
/// The process has ended, or no right to look at it.
pub fn read(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL);
    // Its size is told to be 0: it is not asked for.
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_or_as_much_as_is_wanted() {
        let own = |name: &str| File::open(format!("/proc/self/{name}")).unwrap();
        let all = read(own("maps"), u64::MAX).unwrap();
        assert!(all.len() > USUAL && all.ends_with(b"\n"), "{}", all.len());
        assert_eq!(read(own("comm"), 3).unwrap().len(), 3);
    }
}
