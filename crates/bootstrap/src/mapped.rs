//! A sealed memory file, mapped.
#![expect(unsafe_code, reason = "memory that a file backs is only as constant as the file")]

use std::io;
use std::os::fd::OwnedFd;

use memmap2::Mmap;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// Its bytes.
#[derive(Debug)]
pub(crate) struct Mapped(Mmap);

impl Mapped {
    /// Maps a file that has at least `seals`, which must be those against writing and shrinking.
    pub(crate) fn new(file: &OwnedFd, seals: SealFlag) -> io::Result<Self> {
        let needed = seals | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK;
        let has = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
        if !has.contains(needed) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the table is not sealed"));
        }
        // SAFETY: the file's seals say that no process can write to it or shrink it from now on, and seals can't be
        // removed. So the bytes stay what they are, and no access goes beyond the file's end.
        let mapped = unsafe { Mmap::map(file) }?;
        Ok(Self(mapped))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
