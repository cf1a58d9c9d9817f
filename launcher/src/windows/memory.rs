//! Where a window's memory comes from. Ranks of one node map each other's: it is a memory file without a name, which the others
//! open as `/proc/PID/fd/N` while all of them wait for each other, and which lives as long as one of them has it mapped. So
//! there is nothing that could be left behind, and what a rank maps stays there when its owner ends.
#![expect(unsafe_code, reason = "memory that other processes write")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::AtomicU64;

use memmap2::MmapRaw;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, posix_fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::words;

/// How other ranks of a node find a rank's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Card {
    pid: i32,
    descriptor: i32,
    /// Which file it is, wherever it is opened.
    device: u64,
    inode: u64,
}

/// Words, all zero at first.
#[derive(Debug)]
pub(crate) enum Memory {
    /// For this process alone.
    Own(Box<[AtomicU64]>),
    /// Mapped by several processes.
    Shared { map: MmapRaw, words: usize },
}

impl Memory {
    /// For a rank that has its node for itself.
    ///
    /// # Errors
    /// If there is not so much memory.
    pub(super) fn own(bytes: usize) -> io::Result<Self> {
        let mut words = Vec::new();
        words.try_reserve_exact(words::count(bytes))?;
        words.extend((0..words::count(bytes)).map(|_| AtomicU64::new(0)));
        Ok(Self::Own(words.into()))
    }

    /// For a rank and others of its node; the file can be closed when they have opened it.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub(super) fn shared(bytes: usize) -> io::Result<(Self, File, Card)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("roce-launcher-window", flags)?);
        let length = length_of_file(bytes)?;
        file.set_len(length)?;
        // Memory that is not there is an error now, and not a signal at the first access. It's near the CPU that this runs on.
        let size = i64::try_from(length).map_err(io::Error::other)?;
        while let Err(errno) = posix_fallocate(&file, 0, size) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let about = file.metadata()?;
        let card = Card {
            pid: nix::unistd::Pid::this().as_raw(),
            descriptor: file.as_raw_fd(),
            device: about.dev(),
            inode: about.ino(),
        };
        Ok((Self::map(&file, bytes)?, file, card))
    }

    /// That of another rank of the node, which has so many bytes.
    ///
    /// # Errors
    /// If it can't be opened, or is not what the card says.
    pub(super) fn open(card: &Card, bytes: usize) -> io::Result<Self> {
        let path = format!("/proc/{}/fd/{}", card.pid, card.descriptor);
        let wrong =
            |problem: String| Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {problem}")));
        // What is opened could be anything, if the number means another process here: opening it must have no effect.
        let about = std::fs::metadata(&path)?;
        if !about.is_file() || (about.dev(), about.ino()) != (card.device, card.inode) {
            return wrong("it is not that rank's window; does the rank run in another container?".to_owned());
        }
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(&path)?;
        let about = file.metadata()?;
        let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        if (about.dev(), about.ino()) != (card.device, card.inode)
            || !seals.contains(SealFlag::F_SEAL_SHRINK)
            || about.len() != length_of_file(bytes)?
        {
            let length = about.len();
            return wrong(format!("it has {length} bytes and the seals {seals:?}, where {bytes} are told"));
        }
        Self::map(&file, bytes)
    }

    fn map(file: &File, bytes: usize) -> io::Result<Self> {
        Ok(Self::Shared { map: MmapRaw::map_raw(file)?, words: words::count(bytes) })
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Own(words) => words,
            // SAFETY: the map has at least so many words, from a page's beginning on; it stays as long as `self`; the file
            // can't become shorter, as its seal says. A word's bytes may be any. All processes access them as atomic words
            // only, by the functions of `words`.
            Self::Shared { map, words } => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), *words)
            },
        }
    }
}

/// Nothing can't be mapped, so a file has a word at least.
fn length_of_file(bytes: usize) -> io::Result<u64> {
    let words = words::count(bytes).max(1) as u64;
    words.checked_mul(size_of::<u64>() as u64).ok_or_else(|| io::Error::from(Errno::EFBIG))
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn who_opens_it_sees_the_same_memory_also_when_its_owner_has_gone() {
        for bytes in [0, 1, 8, 5000] {
            let (memory, file, card) = Memory::shared(bytes).unwrap();
            let other = Memory::open(&card, bytes).unwrap();
            drop(file);
            assert_eq!(other.words().len(), bytes.div_ceil(8));
            if let Some(last) = memory.words().last() {
                last.store(7, Ordering::Relaxed);
                drop(memory);
                assert_eq!(other.words().last().unwrap().load(Ordering::Relaxed), 7);
            }
        }
    }

    #[test]
    fn another_file_is_refused() {
        let (_memory, _file, card) = Memory::shared(100).unwrap();
        let (_another, another_file, another_card) = Memory::shared(100).unwrap();
        let wrong = Card { descriptor: another_file.as_raw_fd(), ..card };
        let error = Memory::open(&wrong, 100).unwrap_err().to_string();
        assert!(error.contains("is not that rank's window"), "{error}");
        let error = Memory::open(&another_card, 10_000).unwrap_err().to_string();
        assert!(error.contains("where 10000 are told"), "{error}");
        let (null, this) = (File::open("/dev/null").unwrap(), card.pid);
        let wrong = Card { descriptor: null.as_raw_fd(), pid: this, ..card };
        assert!(Memory::open(&wrong, 100).is_err());
    }

    #[test]
    fn more_memory_than_there_can_be_is_an_error() {
        assert!(Memory::shared(usize::MAX).is_err());
        assert!(Memory::own(usize::MAX).is_err());
    }
}
