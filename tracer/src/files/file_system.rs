//! Kinds of file systems, by the numbers that statfs(2) tells: which make their files up, and which may not answer.

/// File systems of the kernel's own (include/uapi/linux/magic.h): what looks like a regular file there may wait for ever when
/// it is read (`/proc/kmsg`, `trace_pipe`), and reading may have effects.
const OF_THE_KERNEL: [u32; 18] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x5a3c_69f0, // apparmorfs
    0x4249_4e4d, // binfmt_misc
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
];

/// File systems whose files lie in memory or on a block device, as the kernel reads them itself: they answer, or fail.
const LOCAL: [u32; 23] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs, devtmpfs
    0x8584_58f6, // ramfs, rootfs
    0x9584_58f6, // hugetlbfs
    0xf2f5_2010, // F2FS
    0x794c_7630, // overlayfs, whose layers are not told
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // EROFS
    0x28cd_3d45, // cramfs
    0x7275,      // romfs
    0x9660,      // ISO 9660
    0x1501_3346, // UDF
    0x4d44,      // FAT
    0x2011_bab0, // exFAT
    0x7366_746e, // NTFS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
    0x5265_4973, // ReiserFS
    0x3153_464a, // JFS
    0x3434,      // NILFS
    0xf15f,      // eCryptfs
];

/// Names of those that may not answer.
const NAMES: [(u32, &str); 8] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0161_970b, "GPFS"),
];

/// Whether the kernel makes up what is in the files.
pub(super) fn is_of_the_kernel(kind: u32) -> bool {
    OF_THE_KERNEL.contains(&kind)
}

/// Whether a file there can always be read, or fails.
pub(super) fn is_local(kind: u32) -> bool {
    LOCAL.contains(&kind)
}

/// What people call it.
pub(super) fn name(kind: u32) -> String {
    let known = NAMES.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("of type {kind:#x}"), |(_, name)| (*name).to_owned())
}
