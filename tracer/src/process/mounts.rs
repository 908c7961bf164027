//! The file systems that are mounted where a process sees them, by the text of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// What of the file system is seen there: a path in that.
    pub root: String,
    /// Where it is seen.
    pub at: String,
    /// Type of the file system.
    pub kind: &'a str,
    /// Options of the file system, with commas between.
    pub options: &'a str,
}

/// All that are in the text. Lines that make no sense are left out.
pub fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(mount)
}

/// ID PARENT DEVICE ROOT MOUNT_POINT OPTIONS TAGS... - TYPE SOURCE OPTIONS
fn mount(line: &str) -> Option<Mount<'_>> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (major, minor) = mount.next()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, at) = (unescaped(mount.next()?), unescaped(mount.next()?));
    let mut system = system.split(' ');
    let kind = system.next()?;
    Some(Mount { device, root, at, kind, options: system.nth(1)? })
}

/// A path with the octal escapes undone.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = "36 35 8:1 /a /mnt/a\\040b rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue\n\
                    36 35 8:1 / /mnt rw\n36 35 8 / /mnt rw - ext4 /dev/sda1 rw\n\nnonsense\n";
        let expected = Mount {
            device: (8, 1),
            root: "/a".to_owned(),
            at: "/mnt/a b".to_owned(),
            kind: "ext4",
            options: "rw,errors=continue",
        };
        assert_eq!(mounts(text).collect::<Vec<_>>(), [expected]);
        assert_eq!(unescaped(r"a\04"), r"a\04");
    }
}
