//! Where the other ranks of a node put what is for one of them: a [memory file](crate::memory_file), with a ring for each of them.
//! What was sent to a rank stays readable for it when the sender has gone.
//!
//! ```text
//! 0     how many have connected          looked at by the owner, which then looks at the bits
//! 64    who has connected, a bit each
//! ...   for each rank a line: how far the owner has taken from its ring, and what that costs
//! ...   for each rank its ring
//! ```
#![expect(unsafe_code, reason = "memory that other processes write")]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use super::ring::{LINE, OtherWay, Place, Reader, SLOT, SLOTS, Told, Writer};
use crate::memory_file::{self, Card};

const CONNECTED: usize = 0;
const BITS: usize = 64;
/// A ring's slots; long payloads come behind them.
const RING: usize = SLOTS as usize * SLOT;

/// Where things are in an inbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    ranks: usize,
    /// Room for long payloads in every ring.
    pub(super) payload: u32,
}

impl Layout {
    /// For a node with so many ranks of this job. Long payloads have 256 KiB from each rank, or less where all would be more
    /// than 2 MiB.
    pub(super) const fn new(ranks: usize) -> Self {
        let mut payload: u32 = 256 << 10;
        while payload > 4 << 10 && ranks * payload as usize > 2 << 20 {
            payload /= 2;
        }
        Self { ranks, payload }
    }

    const fn told(self, rank: usize) -> usize {
        BITS + (self.ranks.div_ceil(64) * 8).next_multiple_of(LINE) + rank * LINE
    }

    const fn ring(self, rank: usize) -> usize {
        self.told(self.ranks).next_multiple_of(4096) + rank * (RING + self.payload as usize)
    }

    const fn bytes(self) -> usize {
        self.ring(self.ranks)
    }
}

/// An inbox, mapped.
#[derive(Debug)]
struct Memory {
    map: MmapRaw,
    layout: Layout,
}

impl Memory {
    fn new(file: &File, layout: Layout) -> io::Result<Self> {
        Ok(Self { map: MmapRaw::map_raw(file)?, layout })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.layout.bytes() && offset.is_multiple_of(8));
        // SAFETY: the map has as many bytes as the layout says, and `offset` is less.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: `at` checks the place, a map begins at a page, and all processes access what lies before the rings as atomic
        // words only.
        unsafe { &*self.at(offset).cast::<AtomicU64>() }
    }

    fn told(&self, rank: usize) -> &Told {
        // SAFETY: as in `word`: all of a `Told` are atomic words.
        unsafe { &*self.at(self.layout.told(rank)).cast::<Told>() }
    }

    fn ring(&self, rank: usize) -> Place {
        assert!(rank < self.layout.ranks);
        let told: *const Told = self.told(rank);
        let ring = self.layout.ring(rank);
        Place { slots: self.at(ring), payload: self.at(ring + RING), bytes: self.layout.payload, told }
    }
}

/// A rank's own.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Memory,
    card: Card,
    /// The others open it through this process.
    _file: File,
    /// How many had connected when the bits were last looked at.
    seen: u64,
    /// Who had, a bit each.
    admitted: Vec<u64>,
    /// Those of them that are looked at.
    senders: Vec<usize>,
    /// By the rank's place in the node.
    readers: Vec<Option<Reader>>,
}

impl Inbox {
    pub(super) fn new(layout: Layout) -> io::Result<Self> {
        let (file, card) = memory_file::create("roce-launcher-inbox", layout.bytes() as u64)?;
        let memory = Memory::new(&file, layout)?;
        Ok(Self {
            memory,
            card,
            _file: file,
            seen: 0,
            admitted: vec![0; layout.ranks.div_ceil(64)],
            senders: Vec::new(),
            readers: (0..layout.ranks).map(|_| None).collect(),
        })
    }

    pub(super) fn card(&self) -> Card {
        self.card
    }

    /// Where a rank's ring begins in the file.
    #[cfg(test)]
    pub(super) fn ring_offset(&self, rank: usize) -> u64 {
        self.memory.layout.ring(rank) as u64
    }

    /// Whether [`Inbox::admit`] has something to do.
    #[inline]
    pub(super) fn knocked(&self) -> bool {
        self.memory.word(CONNECTED).load(Ordering::Acquire) != self.seen
    }

    /// Looks who has connected since.
    pub(super) fn admit(&mut self) {
        self.seen = self.memory.word(CONNECTED).load(Ordering::Acquire);
        for rank in 0..self.memory.layout.ranks {
            let (word, bit) = (rank / 64, 1 << (rank % 64));
            let here = self.memory.word(BITS + word * 8).load(Ordering::Acquire) & bit != 0;
            if here && self.admitted[word] & bit == 0 {
                self.admitted[word] |= bit;
                self.senders.push(rank);
                // SAFETY: the ring is within the map, which lives as long as the inbox and so as long as the reader. As
                // `admitted` says, the reader is the ring's only one. Its writer is the only one too, as a rank opens an inbox
                // once. A file's memory is zero at the start.
                self.readers[rank] = Some(unsafe { Reader::new(self.memory.ring(rank)) });
            }
        }
    }

    /// How many rings there are to look at.
    #[inline]
    pub(super) fn senders(&self) -> usize {
        self.senders.len()
    }

    /// Whose one of them is: its place among the node's ranks.
    #[inline]
    pub(super) fn sender(&self, index: usize) -> usize {
        self.senders[index]
    }

    /// The ring of a rank of the node, if it has connected.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn reader_of(&mut self, rank: usize) -> Option<&mut Reader> {
        self.readers.get_mut(rank)?.as_mut()
    }

    /// For the next packet to a rank of the node.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn other_way(&mut self, rank: usize) -> OtherWay {
        match self.readers.get_mut(rank) {
            Some(Some(reader)) => reader.other_way(),
            _ => OtherWay::default(),
        }
    }

    /// What a rank of the node and this one say to each other about messages that both copy.
    pub(super) fn meeting(&self, rank: usize) -> &AtomicU64 {
        self.memory.told(rank).meeting()
    }

    /// Never again looks at what a rank of the node sends.
    pub(super) fn shut(&mut self, rank: usize) {
        self.senders.retain(|sender| *sender != rank);
        self.readers[rank] = None;
    }
}

/// This rank's ring in a peer's inbox.
#[derive(Debug)]
pub(super) struct Outgoing {
    writer: Writer,
    /// Keeps the ring mapped.
    _memory: Memory,
}

impl Outgoing {
    /// Maps a peer's inbox, for the rank with the place `rank` among the node's. To be called once for each peer.
    pub(super) fn open(layout: Layout, card: &Card, rank: usize) -> io::Result<Self> {
        let file = memory_file::open(card, layout.bytes() as u64)?;
        let memory = Memory::new(&file, layout)?;
        // SAFETY: the ring is within the map, which is dropped after the writer. It's this rank's ring, which connects once.
        let writer = unsafe { Writer::new(memory.ring(rank)) };
        memory.word(BITS + rank / 64 * 8).fetch_or(1 << (rank % 64), Ordering::Release);
        memory.word(CONNECTED).fetch_add(1, Ordering::Release);
        Ok(Self { writer, _memory: memory })
    }

    pub(super) fn is_far(&self) -> bool {
        self.writer.is_far()
    }

    #[inline]
    pub(super) fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }
}
