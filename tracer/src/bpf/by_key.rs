//! Files by what the kernel knows them by, for what BPF programs have met and no process has mapped any more.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _},
    path::PathBuf,
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use tracer_ebpf::unwind::FileKey;

use crate::{
    files::opener::reopen_path,
    process::mounts::{Mount, mounts},
    space::maps,
};

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
    let file = find(key)?;
    // Opening anything else may have effects, or wait.
    if file.metadata()?.is_file() { File::open(reopen_path(&file)) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The path of a file, as [`path_of`] tells it. Nothing is opened.
///
/// # Errors
/// As [`open_by_key`].
pub fn path_by_key(key: &FileKey) -> io::Result<Option<PathBuf>> {
    Ok(path_of(&find(key)?))
}

/// The path of an open file, in this root directory, if the kernel has a name for it at hand: without its mark of what was removed.
pub fn path_of(file: &File) -> Option<PathBuf> {
    let link = fs::read_link(reopen_path(file)).ok()?;
    let path = PathBuf::from(maps::unmarked(link.to_str()?));
    // Without a name it says `/`.
    path.file_name().is_some().then_some(path)
}

/// The file, as one that can only be asked.
fn find(key: &FileKey) -> io::Result<File> {
    let inode = u32::try_from(key.inode).map_err(io::Error::other)?;
    let device = device_of(key);
    let text = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo")?).into_owned();
    let mount = mount_points(&text, device).find_map(|path| open_mount(&path, device).ok());
    let mount = mount.ok_or(io::ErrorKind::NotFound)?;
    let bytes = (size_of::<Handle>() - std::mem::offset_of!(Handle, inode)) as u32;
    let mut handle = Handle { bytes, kind: INODE_AND_GENERATION, inode, generation: key.generation };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the handle lives during the call, and its bytes are as many as it says.
    let opened = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { File::from_raw_fd(opened) })
}

/// Where a device is mounted, if its file system can be asked.
fn mount_points(mountinfo: &str, device: (u32, u32)) -> impl Iterator<Item = String> {
    let can_be_asked = move |mount: &Mount<'_>| mount.device == device && FILE_SYSTEMS.contains(&mount.kind);
    mounts(mountinfo).filter(can_be_asked).map(|mount| mount.at)
}

/// Opens a mount point if what is on the device is what is seen there: nobody else is asked anything.
fn open_mount(path: &str, device: (u32, u32)) -> io::Result<File> {
    let at = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&at, "", flags, StatxFlags::TYPE)?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let is_harmless = kind.is_dir() || kind.is_file();
    if !is_harmless || (stat.stx_dev_major, stat.stx_dev_minor) != device {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(reopen_path(&at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_asked_is() {
        let all = |line: &str, device| mount_points(line, device).collect::<Vec<String>>();
        let line = r"36 35 8:1 / /mnt/a\040b rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue";
        assert_eq!(all(line, (8, 1)), ["/mnt/a b"]);
        assert!(all(line, (8, 2)).is_empty());
        assert!(all("36 35 8:1 / /mnt rw - nfs4 server:/ rw", (8, 1)).is_empty(), "it may not answer");
        assert!(all("36 35 8:1 / /mnt rw", (8, 1)).is_empty());
        assert!(all("", (8, 1)).is_empty());
    }
}
