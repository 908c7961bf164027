//! Files by what the kernel knows them by, for what BPF programs have met and no process has mapped any more.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _},
        unix::ffi::OsStringExt as _,
    },
    path::PathBuf,
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use tracer_ebpf::unwind::FileKey;

/// File systems that lie on a block device, as the kernel reads it itself, and whose handles are inode and generation.
const FILE_SYSTEMS: [&str; 4] = ["ext2", "ext3", "ext4", "xfs"];
/// Of the kernel's `enum fid_type` (include/linux/exportfs.h): inode and generation, 32 bits each.
const INODE_AND_GENERATION: i32 = 1;

/// The kernel's `struct file_handle` with room for that.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    inode: u32,
    generation: u32,
}

/// Major and minor number of the device that a file is on.
pub fn device_of(key: &FileKey) -> (u32, u32) {
    (key.device >> 20, key.device & 0xf_ffff)
}

/// Opens a regular file for reading, whether or not it has a name.
///
/// # Errors
/// It is on no file system that is mounted here and can be asked so, it is gone, or CAP_DAC_READ_SEARCH is missing.
pub fn open_by_key(key: &FileKey) -> io::Result<File> {
    let inode = u32::try_from(key.inode).map_err(io::Error::other)?;
    let device = device_of(key);
    let mounts = fs::read("/proc/self/mountinfo")?;
    let on_device = mounts.split(|byte| *byte == b'\n').filter_map(|line| mount_point(line, device));
    let mount = on_device.filter_map(|path| open_mount(path, device).ok()).next().ok_or(io::ErrorKind::NotFound)?;
    let bytes = (size_of::<Handle>() - std::mem::offset_of!(Handle, inode)) as u32;
    let mut handle = Handle { bytes, kind: INODE_AND_GENERATION, inode, generation: key.generation };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the handle lives during the call, and its bytes are as many as it says.
    let opened = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else knows.
    let file = unsafe { File::from_raw_fd(opened) };
    // Opening anything else may have effects, or wait.
    if file.metadata()?.is_file() { again(file.as_fd()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The path of a line of mountinfo (proc_pid_mountinfo(5)), if it is of a device, and of a kind that can be asked.
fn mount_point(line: &[u8], (major, minor): (u32, u32)) -> Option<PathBuf> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = words.nth(2)?;
    let path = words.nth(1)?;
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    let is_it = device == format!("{major}:{minor}").as_bytes();
    (is_it && FILE_SYSTEMS.iter().any(|name| name.as_bytes() == kind)).then(|| unescaped(path).into())
}

/// A word of mountinfo, where `\040` stands for a space.
fn unescaped(word: &[u8]) -> std::ffi::OsString {
    let (mut text, mut rest) = (Vec::with_capacity(word.len()), word);
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.filter(|_| first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        text.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(text)
}

/// Opens a mount point if what is on the device is what is seen there: nobody else is asked anything.
fn open_mount(path: PathBuf, device: (u32, u32)) -> io::Result<File> {
    let at = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&at, "", flags, StatxFlags::TYPE)?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let is_harmless = kind.is_dir() || kind.is_file();
    if !is_harmless || (stat.stx_dev_major, stat.stx_dev_minor) != device {
        return Err(io::ErrorKind::NotFound.into());
    }
    again(at.as_fd())
}

fn again(path: BorrowedFd<'_>) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", path.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read() {
        let line = br"36 35 8:1 / /mnt/a\040b rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue";
        assert_eq!(mount_point(line, (8, 1)), Some("/mnt/a b".into()));
        assert_eq!(mount_point(line, (8, 2)), None);
        assert_eq!(mount_point(b"36 35 8:1 / /mnt rw - nfs4 server:/ rw", (8, 1)), None, "it may not answer");
        assert_eq!(mount_point(b"36 35 8:1 / /mnt rw", (8, 1)), None);
        assert_eq!(mount_point(b"", (8, 1)), None);
        assert_eq!(unescaped(br"a\04"), r"a\04");
    }
}
