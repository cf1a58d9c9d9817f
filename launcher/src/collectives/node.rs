//! Memory that the ranks of one node share for the collectives of one communicator: a [memory file](crate::memory_file), made by
//! their leader and mapped by the others.
//!
//! ```text
//! 0     for each rank its cells, and the words that say how far it is
//! ...   for each rank two halves of room for data, used in turn
//! ```
//!
//! A rank writes to its own places only, and the others read them. A cell says of which round it is, what its rank calls in that
//! round, and carries a short payload: who waits for eight bytes waits for one cache line. A longer payload is in the half beside.
//! When a rank may write to a place again, is [`super::nodes`]' business.
#![expect(unsafe_code, reason = "memory that other processes write")]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use crate::memory_file::{self, Card};
use crate::transport::payload;

/// Two cache lines, which processors like to fetch together.
const LINE: usize = 128;
/// Lines of a rank: two cells up, two down, how far it is, the CPUs that it may use.
const LINES: usize = 8;
const FINISHED: usize = 4;
const PROGRESS: usize = 5;
const CPUS: usize = 6;

/// Words of a cell: the round, the signature, the length, the payload.
const ROUND: usize = 0;
const SIGNATURE: usize = 1;
const LENGTH: usize = 2;
const PAYLOAD: usize = 3;
/// The longest payload that fits into a cell's cache line.
pub(super) const SHORT: usize = 40;
/// Words for CPUs: of so many times 64.
const CPU_WORDS: usize = LINE / 8 - 1;

/// From whom to whom a cell is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// What a rank gives to a round.
    Up = 0,
    /// What a rank has made for the others.
    Down = 2,
}

/// What a cell of a round says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Posted {
    pub(super) signature: u64,
    pub(super) length: usize,
}

#[derive(Debug)]
pub(crate) struct Memory {
    map: MmapRaw,
    ranks: usize,
    half: usize,
    /// The others open it through this process.
    _file: Option<File>,
}

/// Room of a half: all halves together are at most 4 MiB, or little room each.
pub(super) const fn half(ranks: usize) -> usize {
    let mut half = 256 << 10;
    while half > 8 << 10 && 2 * ranks * half > 4 << 20 {
        half /= 2;
    }
    half
}

const fn bytes(ranks: usize) -> usize {
    (ranks * LINES * LINE).next_multiple_of(4096) + ranks * 2 * half(ranks)
}

impl Memory {
    /// For so many ranks, by their leader.
    pub(crate) fn create(ranks: usize) -> io::Result<(Self, Card)> {
        let (file, card) = memory_file::create("roce-launcher-collectives", bytes(ranks) as u64)?;
        let map = Self::map(&file, ranks)?;
        Ok((Self { _file: Some(file), ..map }, card))
    }

    /// The memory that another rank of the node made for so many.
    pub(crate) fn open(ranks: usize, card: &Card) -> io::Result<Self> {
        Self::map(&memory_file::open(card, bytes(ranks) as u64)?, ranks)
    }

    fn map(file: &File, ranks: usize) -> io::Result<Self> {
        Ok(Self { map: MmapRaw::map_raw(file)?, ranks, half: half(ranks), _file: None })
    }

    /// How many bytes of data a rank has room for, twice.
    pub(super) fn half(&self) -> usize {
        self.half
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset < self.ranks * LINES * LINE && offset.is_multiple_of(8));
        // SAFETY: that is within the map, which begins at a page and can't become shorter, as it is sealed; and what lies there
        // is accessed as atomic words only, by all processes.
        unsafe { &*self.map.as_mut_ptr().add(offset).cast::<AtomicU64>() }
    }

    fn line(&self, rank: usize, line: usize, word: usize) -> &AtomicU64 {
        assert!(rank < self.ranks && line < LINES && word < LINE / 8);
        self.word((rank * LINES + line) * LINE + word * 8)
    }

    /// The round up to which a rank has finished everything.
    pub(super) fn finished(&self, rank: usize) -> &AtomicU64 {
        self.line(rank, FINISHED, 0)
    }

    /// How far a rank is in a round of many pieces.
    pub(super) fn progress(&self, rank: usize) -> &AtomicU64 {
        self.line(rank, PROGRESS, 0)
    }

    /// Which CPUs a rank may use, a bit each; told once.
    pub(super) fn tell_cpus(&self, rank: usize, cpus: impl Iterator<Item = usize>) {
        for cpu in cpus.filter(|cpu| *cpu < CPU_WORDS * 64) {
            self.line(rank, CPUS, 1 + cpu / 64).fetch_or(1 << (cpu % 64), Ordering::Relaxed);
        }
        self.line(rank, CPUS, 0).store(1, Ordering::Release);
    }

    /// How many CPUs the ranks may use together, when all have told.
    pub(super) fn cpus(&self) -> Option<usize> {
        let told = |rank| self.line(rank, CPUS, 0).load(Ordering::Acquire) == 1;
        (0..self.ranks).all(told).then(|| {
            let of_word = |word| {
                let bits = (0..self.ranks).map(|rank| self.line(rank, CPUS, word).load(Ordering::Relaxed));
                bits.fold(0, |all, bits| all | bits).count_ones() as usize
            };
            (1..=CPU_WORDS).map(of_word).sum()
        })
    }

    /// Writes a rank's cell for a round, and its half where the payload is long.
    pub(super) fn post(&self, rank: usize, way: Way, round: u64, signature: u64, payload: &[u8]) {
        let line = way as usize + (round % 2) as usize;
        if payload.len() <= SHORT {
            for (word, bytes) in payload.chunks(8).enumerate() {
                let mut whole = [0; 8];
                whole[..bytes.len()].copy_from_slice(bytes);
                self.line(rank, line, PAYLOAD + word).store(u64::from_ne_bytes(whole), Ordering::Relaxed);
            }
        } else {
            self.write(rank, round, 0, payload);
        }
        self.line(rank, line, SIGNATURE).store(signature, Ordering::Relaxed);
        self.line(rank, line, LENGTH).store(payload.len() as u64, Ordering::Relaxed);
        self.line(rank, line, ROUND).store(round, Ordering::Release);
    }

    /// A rank's cell, if it is that of this round.
    #[inline]
    pub(super) fn posted(&self, rank: usize, way: Way, round: u64) -> Option<Posted> {
        let line = way as usize + (round % 2) as usize;
        (self.line(rank, line, ROUND).load(Ordering::Acquire) == round).then(|| Posted {
            signature: self.line(rank, line, SIGNATURE).load(Ordering::Relaxed),
            length: usize::try_from(self.line(rank, line, LENGTH).load(Ordering::Relaxed))
                .unwrap_or(usize::MAX),
        })
    }

    /// Copies the start of what was [`posted`](Self::posted).
    pub(super) fn take(&self, rank: usize, way: Way, round: u64, into: &mut [u8]) {
        if into.len() > SHORT {
            return self.read(rank, round, 0, into);
        }
        let line = way as usize + (round % 2) as usize;
        for (word, bytes) in into.chunks_mut(8).enumerate() {
            let whole = self.line(rank, line, PAYLOAD + word).load(Ordering::Relaxed).to_ne_bytes();
            bytes.copy_from_slice(&whole[..bytes.len()]);
        }
    }

    /// Where so many bytes of a rank's half are; even and odd turns have different ones.
    fn room(&self, rank: usize, turn: u64, offset: usize, length: usize) -> *mut u8 {
        assert!(rank < self.ranks && offset <= self.half && length <= self.half - offset);
        let halves = (self.ranks * LINES * LINE).next_multiple_of(4096);
        // SAFETY: the map has two halves for each of the ranks there.
        unsafe { self.map.as_mut_ptr().add(halves + (2 * rank + (turn % 2) as usize) * self.half + offset) }
    }

    /// Writes to a rank's half.
    pub(super) fn write(&self, rank: usize, turn: u64, offset: usize, data: &[u8]) {
        // SAFETY: `room` has as many bytes, outside of all memory of Rust's. The ranks agree by words in which turn who reads or
        // writes (release and acquire), so nobody reads it now; one that breaks the rules gets garbled bytes.
        unsafe {
            payload::copy(data.as_ptr(), self.room(rank, turn, offset, data.len()), data.len());
        }
    }

    /// Reads from a rank's half.
    pub(super) fn read(&self, rank: usize, turn: u64, offset: usize, into: &mut [u8]) {
        // SAFETY: as for `write`: nobody writes there now. What is copied is nothing but bytes.
        unsafe {
            payload::copy(self.room(rank, turn, offset, into.len()), into.as_mut_ptr(), into.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rank_posts_the_others_take() {
        let (leader, card) = Memory::create(3).unwrap();
        let other = Memory::open(3, &card).unwrap();
        for length in [0, 1, 8, SHORT, SHORT + 1, half(3)] {
            let data: Vec<u8> = (0..length).map(|place| place as u8).collect();
            for (round, way) in [(1, Way::Up), (2, Way::Down), (5, Way::Up)] {
                other.post(1, way, round, 77, &data);
                assert_eq!(leader.posted(1, way, round), Some(Posted { signature: 77, length }));
                assert_eq!(leader.posted(1, way, round + 2), None);
                assert_eq!(leader.posted(2, way, round), None);
                let mut taken = vec![0xff; length];
                leader.take(1, way, round, &mut taken);
                assert_eq!(taken, data);
            }
        }
        assert_eq!(leader.cpus(), None);
        (0..3).for_each(|rank| leader.tell_cpus(rank, [1, 64, 90 + rank, 1 << 20].into_iter()));
        assert_eq!(other.cpus(), Some(5));
    }
}
