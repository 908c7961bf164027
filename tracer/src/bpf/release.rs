//! The release of a kernel in numbers.

/// Major and minor number of a kernel's release (`6.1.0-44-cloud-amd64`); `None` when it has none.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
