//! Packets from one process to another through memory that both have mapped.
//!
//! A ring is a power of two of cache lines. A packet takes one line or several in a row: in the first its stamp, its header
//! and the first 32 bytes of its payload, then the rest of the payload. The stamp says where in the ring's history the packet
//! is, and its length; storing it publishes the packet. So a small packet moves one cache line from core to core, and who
//! waits for it looks at that line only. How far the reader has come, it tells seldom, in a line of its own.
//!
//! The bytes of a long payload lie where stamps have been and will be. They could look like the stamp for which the reader
//! waits. So the writer clears the stamp of the line behind a packet before it publishes the packet, if payload was there.
//!
//! The other process is believed nothing that could lead outside of the ring: a reader checks every length, a writer how
//! far the reader says that it has come.
#![expect(unsafe_code, reason = "memory that another process writes")]

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::transport::Header;

/// Bytes in a line.
pub(super) const LINE: usize = 64;
const HEADER: usize = 8;
const PAYLOAD: usize = HEADER + size_of::<Header>();
/// Payload for which one line is enough.
const SMALL: usize = LINE - PAYLOAD;
/// In every stamp, so that none is zero as a cleared one is.
const VALID: u32 = 1 << 31;

const _: () = assert!(PAYLOAD == 32 && HEADER.is_multiple_of(align_of::<Header>()));

/// The most bytes of payload in one packet, so that four of them fit into a ring of so many lines.
pub(super) const fn most(lines: u32) -> usize {
    (lines as usize / 4 - 1) * LINE - PAYLOAD
}

/// Where a ring is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) lines: *mut u8,
    /// A power of two, at least 8.
    pub(super) count: u32,
    /// The position up to which the reader has taken everything.
    pub(super) taken: *const AtomicU32,
}

/// What is in the ring can't have been written by this code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Garbage {
    #[error("a packet of {0} bytes")]
    Length(usize),
    #[error("{taken} lines taken of {written} that were written")]
    Taken { taken: u32, written: u32 },
}

impl Place {
    fn stamp(&self, position: u32) -> &AtomicU64 {
        // SAFETY: by the promise given to `Writer::new` or `Reader::new` there are `count` lines at `lines`, aligned to 64
        // bytes, and `offset` is the start of one of them. The eight bytes there are accessed otherwise only as payload, which
        // happens before or after all atomic accesses to them: see `Writer::try_push`.
        unsafe { &*self.lines.add(self.offset(position)).cast::<AtomicU64>() }
    }

    fn taken(&self) -> &AtomicU32 {
        // SAFETY: by the promise given to `Writer::new` or `Reader::new`; it's never accessed otherwise.
        unsafe { &*self.taken }
    }

    const fn offset(&self, position: u32) -> usize {
        (position & (self.count - 1)) as usize * LINE
    }

    const fn bytes(&self) -> usize {
        self.count as usize * LINE
    }
}

/// The stamp of a packet at a position.
const fn stamp(position: u32, length: u32) -> u64 {
    ((length | VALID) as u64) << 32 | position as u64
}

/// How many lines a packet takes.
const fn lines(length: usize) -> u32 {
    (PAYLOAD + length).div_ceil(LINE) as u32
}

/// Positions count lines from the ring's start on, and wrap.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    /// Where the next packet begins.
    position: u32,
    /// What the reader last told.
    taken: u32,
    /// Lines where payload has been since they last had a stamp.
    covered: Box<[bool]>,
}

impl Writer {
    /// A ring's writer.
    ///
    /// # Safety
    /// `count` lines, aligned to 64 bytes, and the word `taken` must stay mapped as long as the writer is used, be zero at
    /// the start, and be accessed by this writer and one [`Reader`] only.
    pub(super) unsafe fn new(place: Place) -> Self {
        Self { place, position: 0, taken: 0, covered: vec![false; place.count as usize].into() }
    }

    /// As if so many lines had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32) -> Self {
        self.place.taken().store(position, Ordering::Relaxed);
        Self { position, taken: position, ..self }
    }

    /// Writes a packet if there is room. The payload must be no longer than [`most`].
    #[inline]
    pub(super) fn try_push(&mut self, header: &Header, payload: &[u8]) -> Result<bool, Garbage> {
        let place = self.place;
        assert!(payload.len() <= most(place.count), "a packet of {} bytes", payload.len());
        let end = self.position.wrapping_add(lines(payload.len()));
        // The line at the end must be free too: its stamp is perhaps cleared.
        if end.wrapping_sub(self.taken) >= place.count && !self.room(end)? {
            return Ok(false);
        }
        let start = place.offset(self.position);
        // SAFETY: the lines from `start` on have been given back by the reader, whose reads of them happened before that
        // (release by the reader, acquire in `room`), or were never used. It will not touch them but for the first one's stamp
        // before that is stored below. They are within the ring: `end` is at most `count` behind what was taken, and
        // where they pass the ring's end they go on at its start. A peer that breaks the rules can garble the packet only.
        unsafe {
            place.lines.add(start + HEADER).cast::<Header>().write(*header);
            let to = place.lines.add(start + PAYLOAD);
            if payload.len() <= SMALL {
                ptr::copy_nonoverlapping(payload.as_ptr(), to, payload.len());
            } else {
                let first = payload.len().min(place.bytes() - start - PAYLOAD);
                ptr::copy_nonoverlapping(payload.as_ptr(), to, first);
                ptr::copy_nonoverlapping(payload.as_ptr().add(first), place.lines, payload.len() - first);
            }
        }
        let mut line = self.position.wrapping_add(1);
        while line != end {
            self.covered[(line & (place.count - 1)) as usize] = true;
            line = line.wrapping_add(1);
        }
        let behind = &mut self.covered[(end & (place.count - 1)) as usize];
        if *behind {
            *behind = false;
            place.stamp(end).store(0, Ordering::Relaxed);
        }
        place.stamp(self.position).store(stamp(self.position, payload.len() as u32), Ordering::Release);
        self.position = end;
        Ok(true)
    }

    /// Looks how far the reader has come, and whether that makes room up to the line at `end`.
    #[cold]
    fn room(&mut self, end: u32) -> Result<bool, Garbage> {
        let taken = self.place.taken().load(Ordering::Acquire);
        let (taken_since, written) = (taken.wrapping_sub(self.taken), self.position.wrapping_sub(self.taken));
        if taken_since > written {
            return Err(Garbage::Taken { taken: taken_since, written });
        }
        self.taken = taken;
        Ok(end.wrapping_sub(taken) < self.place.count)
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    place: Place,
    /// Where the next packet begins.
    position: u32,
    /// What the writer was last told.
    told: u32,
}

impl Reader {
    /// A ring's reader.
    ///
    /// # Safety
    /// As for [`Writer::new`], with one writer.
    pub(super) unsafe fn new(place: Place) -> Self {
        Self { place, position: 0, told: 0 }
    }

    /// As if so many lines had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32) -> Self {
        Self { position, told: position, ..self }
    }

    /// Takes a packet if there is one, and copies its payload to the start of `buffer`, which must have room for at least
    /// [`most`] bytes. The payload's length is at most that.
    #[inline]
    pub(super) fn pop(&mut self, buffer: &mut [u8]) -> Result<Option<(Header, usize)>, Garbage> {
        let place = self.place;
        let stamp = place.stamp(self.position).load(Ordering::Acquire);
        let length = (stamp >> 32) as u32;
        if stamp as u32 != self.position || length & VALID == 0 {
            return Ok(None);
        }
        let length = (length & !VALID) as usize;
        let most = most(place.count);
        if length > most {
            return Err(Garbage::Length(length));
        }
        assert!(buffer.len() >= most, "a buffer of {} bytes", buffer.len());
        let start = place.offset(self.position);
        // SAFETY: the packet's lines are within the ring, as its length is at most `most`; the copy goes on at the ring's start
        // where it comes to the end. The writer's stores to them happened before that of the stamp, and it writes to them
        // again only after they have been given back. A peer that breaks the rules can garble the bytes only, which are
        // copied and nothing but bytes: any are valid in `Header` and in the buffer.
        let header = unsafe {
            let from = place.lines.add(start + PAYLOAD);
            if length <= SMALL {
                // Always all of it: a copy of known length is two instructions.
                ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), SMALL);
            } else {
                let first = length.min(place.bytes() - start - PAYLOAD);
                ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), first);
                ptr::copy_nonoverlapping(place.lines, buffer.as_mut_ptr().add(first), length - first);
            }
            place.lines.add(start + HEADER).cast::<Header>().read()
        };
        self.position = self.position.wrapping_add(lines(length));
        if self.position.wrapping_sub(self.told) >= place.count / 4 {
            self.told = self.position;
            place.taken().store(self.position, Ordering::Release);
        }
        Ok(Some((header, length)))
    }
}

#[cfg(test)]
mod tests;
