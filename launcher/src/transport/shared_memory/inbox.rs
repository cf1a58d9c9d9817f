//! Where the other ranks of a node put what is for one of them: a memory file without a name, with a ring for each of them.
//!
//! They map it through `/proc/PID/fd/N`. So there is nothing that could be left behind, however a rank ends, and what was sent
//! to a rank stays readable for it when the sender has gone. The file can't become shorter (it is sealed), so no access to it
//! can fail later.
//!
//! ```text
//! 0     a token                          written by the owner, before anybody is told of the inbox
//! 64    how many have connected          looked at by the owner, which then looks at the bits
//! 128   who has connected, a bit each
//! ...   for each rank a line: how far the owner has taken from its ring, and what that costs
//! ...   for each rank its ring
//! ```
#![expect(unsafe_code, reason = "memory that other processes write")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::ring::{LINE, LINES, Place, Reader, Told, Writer};

const TOKEN: usize = 0;
const CONNECTED: usize = 64;
const BITS: usize = 128;
/// A ring's lines; long payloads come behind them.
const RING: usize = LINES as usize * LINE;

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
        let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
        let length = file.metadata()?.len();
        if !seals.contains(SealFlag::F_SEAL_SHRINK) || length != layout.bytes() as u64 {
            let problem = format!(
                "it has {length} bytes and the seals {seals:?}, not {} bytes and F_SEAL_SHRINK; do all ranks run the same build?",
                layout.bytes()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
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

    fn token(&self) -> [u8; 16] {
        let words = [TOKEN, TOKEN + 8].map(|offset| self.word(offset).load(Ordering::Relaxed));
        bytemuck::cast(words)
    }

    fn ring(&self, rank: usize) -> Place {
        assert!(rank < self.layout.ranks);
        let told = self.at(self.layout.told(rank)).cast::<Told>();
        let ring = self.layout.ring(rank);
        Place { lines: self.at(ring), payload: self.at(ring + RING), bytes: self.layout.payload, told }
    }
}

/// A rank's own.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Memory,
    file: File,
    /// How many had connected when the bits were last looked at.
    seen: u64,
    /// Who had, a bit each.
    admitted: Vec<u64>,
    senders: Vec<(usize, Reader)>,
    /// Where among the senders each rank of the node is.
    places: Vec<Option<usize>>,
}

impl Inbox {
    pub(super) fn new(layout: Layout, token: [u8; 16]) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("roce-launcher-inbox", flags)?);
        file.set_len(layout.bytes() as u64)?;
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL),
        )?;
        let memory = Memory::new(&file, layout)?;
        let words: [u64; 2] = bytemuck::cast(token);
        memory.word(TOKEN).store(words[0], Ordering::Relaxed);
        memory.word(TOKEN + 8).store(words[1], Ordering::Relaxed);
        Ok(Self {
            memory,
            file,
            seen: 0,
            admitted: vec![0; layout.ranks.div_ceil(64)],
            senders: Vec::new(),
            places: vec![None; layout.ranks],
        })
    }

    /// The file's number in this process.
    pub(super) fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
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
                self.places[rank] = Some(self.senders.len());
                // SAFETY: the ring is within the map, which lives as long as the inbox and so as long as the reader. As
                // `admitted` says, the reader is the ring's only one. Its writer is the only one too, as a rank opens an inbox
                // once. A file's memory is zero at the start.
                self.senders.push((rank, unsafe { Reader::new(self.memory.ring(rank)) }));
            }
        }
    }

    /// How many rings there are to look at.
    #[inline]
    pub(super) fn senders(&self) -> usize {
        self.senders.len()
    }

    /// One of them, with the place of its rank among the node's.
    #[inline]
    pub(super) fn sender(&mut self, index: usize) -> (usize, &mut Reader) {
        let (rank, reader) = &mut self.senders[index];
        (*rank, reader)
    }

    /// The index of a rank of the node among them, if it has connected.
    #[inline]
    pub(super) fn index_of(&self, rank: usize) -> Option<usize> {
        self.places[rank]
    }

    /// Never again looks at one of them; another takes its index.
    pub(super) fn shut(&mut self, index: usize) {
        let (rank, _) = self.senders.swap_remove(index);
        self.places[rank] = None;
        if let Some((moved, _)) = self.senders.get(index) {
            self.places[*moved] = Some(index);
        }
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
    /// Maps the inbox of the rank that runs as `pid` and has it open as `descriptor`, for the rank with the place `rank`
    /// among the node's. To be called once for each peer.
    pub(super) fn open(
        layout: Layout,
        pid: i32,
        descriptor: i32,
        token: [u8; 16],
        rank: usize,
    ) -> io::Result<Self> {
        let wrong = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidData, problem.to_owned()));
        let path = format!("/proc/{pid}/fd/{descriptor}");
        // What is opened could be anything, if the number means another process here: opening it must have no effect.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        if !std::fs::metadata(&path)?.is_file() {
            return wrong("it is no file with memory");
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(&path)?;
        if file.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
            return wrong("it belongs to another user");
        }
        let memory = Memory::new(&file, layout)?;
        if memory.token() != token {
            return wrong("it is not that rank's inbox; does the rank run in another container?");
        }
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
