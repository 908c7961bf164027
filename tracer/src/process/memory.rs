//! Reading a process's memory. Never writing: the file is opened for reading only.

use std::{fs::File, io, os::unix::fs::FileExt};

/// The memory of one process, by address.
pub struct Memory(File);

impl Memory {
    /// Opens the memory of process `pid`.
    ///
    /// # Errors
    /// No such process, or no right to read it (needs CAP_SYS_PTRACE for other users' processes).
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/mem")).map(Self)
    }

    /// Fills `buffer` from `addr` on.
    ///
    /// # Errors
    /// Not mapped, or the process is gone.
    pub fn read(&self, addr: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, addr)
    }

    /// The 64-bit word at `addr`.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn word(&self, addr: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}
