//! Where a window's memory comes from. Ranks of one node map each other's: it is a [memory file](crate::memory_file), which the
//! others open while all of them wait for each other, and which lives as long as one of them has it mapped.
#![expect(unsafe_code, reason = "memory that other processes write")]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use memmap2::MmapRaw;
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;

use super::words;
use crate::memory_file::{self, Card};

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
        is_there(bytes)?;
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
        is_there(bytes)?;
        let length = length_of_file(bytes)?;
        let (file, card) = memory_file::create("roce-launcher-window", length)?;
        // Memory that is not there is an error now, and not a signal at the first access. It's near the CPU that this runs on.
        let size = i64::try_from(length).map_err(io::Error::other)?;
        while let Err(errno) = posix_fallocate(&file, 0, size) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        Ok((Self::map(&file, bytes)?, file, card))
    }

    /// That of another rank of the node, which has so many bytes.
    ///
    /// # Errors
    /// If it can't be opened, or is not what the card says.
    pub(super) fn open(card: &Card, bytes: usize) -> io::Result<Self> {
        Self::map(&memory_file::open(card, length_of_file(bytes)?)?, bytes)
    }

    fn map(file: &File, bytes: usize) -> io::Result<Self> {
        Ok(Self::Shared { map: MmapRaw::map_raw(file)?, words: words::count(bytes) })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
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

/// Says where a node has less memory than is asked for. The kernel would not: it looks for processes to end instead.
fn is_there(bytes: usize) -> io::Result<()> {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_kib(&text));
    match kib {
        Some(kib) if bytes as u64 / 1024 > kib => {
            let problem = format!("the node has {} MiB left", kib / 1024);
            Err(io::Error::new(io::ErrorKind::OutOfMemory, problem))
        }
        _ => Ok(()),
    }
}

/// What proc_meminfo(5) has since Linux 3.14.
fn available_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
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
    fn more_memory_than_there_is_is_an_error() {
        for bytes in [usize::MAX, 1 << 50] {
            for error in [Memory::shared(bytes).map(|_| ()).unwrap_err(), Memory::own(bytes).unwrap_err()] {
                let text = error.to_string();
                assert!(text.starts_with("the node has ") && text.ends_with(" MiB left"), "{text}");
            }
        }
        assert_eq!(available_kib("MemFree:  1 kB\nMemAvailable:    1234 kB\n"), Some(1234));
        assert_eq!(available_kib("MemFree:  1 kB\n"), None);
    }
}
