//! Packets from one process to another through memory that both have mapped.
//!
//! A ring is 64 cache lines, one for each packet: its stamp, its header, and its payload if that has at most 32 bytes. A longer
//! payload is in a second ring beside it, of bytes. The stamp says where in the ring's history the packet is, and its length;
//! storing it publishes the packet. So a small packet moves one cache line from core to core, and who waits for it looks at
//! that line only. How far the reader has come, it tells seldom, in a line of its own.
//!
//! The lines are few, so that they stay in a core's first cache: with 512 of them a small packet took a fifth longer. Payload
//! is never where stamps are, so nothing that a program sends can look like one.
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

/// Lines of a ring.
pub(super) const LINES: u32 = 64;

/// The most bytes of payload in one packet, so that four of them fit into a ring of so many bytes.
pub(super) const fn most(bytes: u32) -> usize {
    bytes as usize / 4
}

/// Where a ring is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// [`LINES`] of them.
    pub(super) lines: *mut u8,
    /// Where long payloads are.
    pub(super) payload: *mut u8,
    /// Room for long payloads: a power of two, at least 256.
    pub(super) bytes: u32,
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
    /// The line at a position.
    fn line(&self, position: u32) -> *mut u8 {
        // SAFETY: by the promise given to `Writer::new` or `Reader::new` there are `LINES` lines.
        unsafe { self.lines.add((position % LINES) as usize * LINE) }
    }

    fn stamp(&self, position: u32) -> &AtomicU64 {
        // SAFETY: a line is there, aligned, as long as `self` is used by an end; its first eight bytes are accessed as an
        // atomic word only.
        unsafe { &*self.line(position).cast::<AtomicU64>() }
    }

    fn taken(&self) -> &AtomicU32 {
        // SAFETY: by the promise given to `Writer::new` or `Reader::new`; it's accessed as an atomic word only.
        unsafe { &*self.taken }
    }

    /// Where a payload begins, and how much of it is there; the rest is at the start.
    fn split(&self, begin: u32, length: usize) -> (usize, usize) {
        let begin = (begin & (self.bytes - 1)) as usize;
        (begin, length.min(self.bytes as usize - begin))
    }
}

/// The stamp of a packet at a position.
const fn stamp(position: u32, length: u32) -> u64 {
    ((length | VALID) as u64) << 32 | position as u64
}

/// How many bytes a payload takes beside the lines: whole lines, so that nobody writes where another reads.
const fn beside(length: usize) -> u32 {
    if length <= SMALL { 0 } else { length.next_multiple_of(LINE) as u32 }
}

/// Positions count lines, or bytes of long payloads, from the ring's start on. They wrap.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    /// The next packet's line.
    position: u32,
    /// The next long payload's place.
    payload: u32,
    /// What the reader last told, in lines, and how far in long payloads that is.
    taken: u32,
    payload_taken: u32,
    /// For each line, where the long payloads up to its packet end.
    ends: [u32; LINES as usize],
}

impl Writer {
    /// A ring's writer.
    ///
    /// # Safety
    /// The lines and the room for payload, both aligned to 64 bytes, and the word `taken` must stay mapped as long as the
    /// writer is used, be zero at the start, and be accessed by this writer and one [`Reader`] only.
    pub(super) unsafe fn new(place: Place) -> Self {
        Self { place, position: 0, payload: 0, taken: 0, payload_taken: 0, ends: [0; LINES as usize] }
    }

    /// As if so many lines and bytes had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32, payload: u32) -> Self {
        self.place.taken().store(position, Ordering::Relaxed);
        Self { position, taken: position, payload, payload_taken: payload, ..self }
    }

    /// Writes a packet if there is room. The payload must be no longer than [`most`].
    #[inline]
    pub(super) fn try_push(&mut self, header: &Header, payload: &[u8]) -> Result<bool, Garbage> {
        let place = self.place;
        assert!(payload.len() <= most(place.bytes), "a packet of {} bytes", payload.len());
        let end = self.payload.wrapping_add(beside(payload.len()));
        if !self.fits(end) && !self.room(end)? {
            return Ok(false);
        }
        let line = place.line(self.position);
        // SAFETY: the line, and the room for payload up to `end`, have been given back by the reader, whose reads of them
        // happened before that (release by the reader, acquire in `room`), or were never used. It will not touch them, but for
        // the line's stamp, before that is stored below. All is within the ring: `split` never leads behind its end, and
        // a payload is at most a quarter of it. A peer that breaks the rules can garble the packet only.
        unsafe {
            line.add(HEADER).cast::<Header>().write(*header);
            if payload.len() <= SMALL {
                ptr::copy_nonoverlapping(payload.as_ptr(), line.add(PAYLOAD), payload.len());
            } else {
                let (begin, first) = place.split(self.payload, payload.len());
                ptr::copy_nonoverlapping(payload.as_ptr(), place.payload.add(begin), first);
                ptr::copy_nonoverlapping(payload.as_ptr().add(first), place.payload, payload.len() - first);
            }
        }
        place.stamp(self.position).store(stamp(self.position, payload.len() as u32), Ordering::Release);
        self.ends[(self.position % LINES) as usize] = end;
        self.position = self.position.wrapping_add(1);
        self.payload = end;
        Ok(true)
    }

    /// Whether there is a free line, and room for payload up to `end`.
    fn fits(&self, end: u32) -> bool {
        self.position.wrapping_sub(self.taken) < LINES
            && end.wrapping_sub(self.payload_taken) <= self.place.bytes
    }

    /// Looks how far the reader has come, and whether that is enough.
    #[cold]
    fn room(&mut self, end: u32) -> Result<bool, Garbage> {
        let told = self.place.taken().load(Ordering::Acquire);
        let (taken, written) = (told.wrapping_sub(self.taken), self.position.wrapping_sub(self.taken));
        if taken > written {
            return Err(Garbage::Taken { taken, written });
        }
        if taken > 0 {
            self.taken = told;
            self.payload_taken = self.ends[(told.wrapping_sub(1) % LINES) as usize];
        }
        Ok(self.fits(end))
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    place: Place,
    /// The next packet's line.
    position: u32,
    /// The next long payload's place.
    payload: u32,
    /// What the writer was last told, in lines, and how far in long payloads that is.
    told: u32,
    payload_told: u32,
}

impl Reader {
    /// A ring's reader.
    ///
    /// # Safety
    /// As for [`Writer::new`], with one writer.
    pub(super) unsafe fn new(place: Place) -> Self {
        Self { place, position: 0, payload: 0, told: 0, payload_told: 0 }
    }

    /// As if so many lines and bytes had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32, payload: u32) -> Self {
        Self { position, told: position, payload, payload_told: payload, ..self }
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
        let most = most(place.bytes);
        if length > most {
            return Err(Garbage::Length(length));
        }
        assert!(buffer.len() >= most, "a buffer of {} bytes", buffer.len());
        let line = place.line(self.position);
        // SAFETY: `split` never leads behind the ring's end, and the length is at most a quarter of it and no more than the
        // buffer has. The writer's stores to the line and the payload happened before that of the stamp, and it writes there
        // again only after they have been given back. A peer that breaks the rules can garble the bytes only, which are
        // copied and nothing but bytes: any are valid in `Header` and in the buffer.
        let header = unsafe {
            if length <= SMALL {
                // Always all of it: a copy of known length is two instructions.
                ptr::copy_nonoverlapping(line.add(PAYLOAD), buffer.as_mut_ptr(), SMALL);
            } else {
                let (begin, first) = place.split(self.payload, length);
                ptr::copy_nonoverlapping(place.payload.add(begin), buffer.as_mut_ptr(), first);
                ptr::copy_nonoverlapping(place.payload, buffer.as_mut_ptr().add(first), length - first);
            }
            line.add(HEADER).cast::<Header>().read()
        };
        self.position = self.position.wrapping_add(1);
        self.payload = self.payload.wrapping_add(beside(length));
        if self.position.wrapping_sub(self.told) >= LINES / 4
            || self.payload.wrapping_sub(self.payload_told) >= place.bytes / 4
        {
            (self.told, self.payload_told) = (self.position, self.payload);
            place.taken().store(self.position, Ordering::Release);
        }
        Ok(Some((header, length)))
    }
}

#[cfg(test)]
mod tests;
