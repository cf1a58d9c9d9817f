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

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::copy::{Copied, Copier, Costs, Measured, Way};
use crate::transport::{Header, Payload, Take, payload};

/// Bytes in a line.
pub(super) const LINE: usize = 64;
const HEADER: usize = 8;
const PAYLOAD: usize = HEADER + size_of::<Header>();
/// Payload for which one line is enough.
const SMALL: usize = LINE - PAYLOAD;
/// In every stamp, so that none is zero as a cleared one is.
const VALID: u32 = 1 << 31;
/// In the stamp of a packet whose payload was written around the caches.
const AROUND: u32 = 1 << 30;
/// In the stamp of a packet whose payload's copies are measured.
const MEASURED: u32 = 1 << 29;

const _: () = assert!(PAYLOAD == 32 && HEADER.is_multiple_of(align_of::<Header>()));

/// Lines of a ring.
pub(super) const LINES: u32 = 64;
/// A reader of many packets has the line so many places further come.
const AHEAD: u32 = 4;

/// The most bytes of payload in one packet, so that at least four of them fit into a ring of so many bytes: while the reader
/// copies one, the writer copies the next.
pub(super) const fn most(bytes: u32) -> usize {
    if bytes < 32 << 10 { bytes as usize / 4 } else { 8 << 10 }
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
    /// What the reader tells.
    pub(super) told: *const Told,
}

/// What a reader tells a writer, in a line of its own.
#[derive(Default, Debug)]
#[repr(C, align(64))]
pub(super) struct Told {
    /// The position up to which it has taken everything.
    taken: AtomicU32,
    costs: Costs,
}

const _: () = assert!(size_of::<Told>() == LINE);

/// What became of the look for a short packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Short {
    Taken,
    /// None has come, or one that is not taken here.
    Nothing,
    /// One that is not all in its line has come.
    Long,
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

    fn told(&self) -> &Told {
        // SAFETY: by the promise given to `Writer::new` or `Reader::new`; it's accessed as atomic words only.
        unsafe { &*self.told }
    }

    fn taken(&self) -> &AtomicU32 {
        &self.told().taken
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
    copier: Copier,
}

impl Writer {
    /// A ring's writer.
    ///
    /// # Safety
    /// The lines and the room for payload, both aligned to 64 bytes, and what `told` points to must stay mapped as long as the
    /// writer is used, be zero at the start, and be accessed by this writer and one [`Reader`] only.
    pub(super) unsafe fn new(place: Place) -> Self {
        let ends = [0; LINES as usize];
        Self { place, position: 0, payload: 0, taken: 0, payload_taken: 0, ends, copier: Copier::new() }
    }

    /// As if so many lines and bytes had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32, payload: u32) -> Self {
        self.place.taken().store(position, Ordering::Relaxed);
        Self { position, taken: position, payload, payload_taken: payload, ..self }
    }

    /// Writes a packet if there is room. The payload must be no longer than [`most`].
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a header that is passed on goes through memory")]
    pub(super) fn try_push(&mut self, header: &Header, payload: &[u8]) -> Result<bool, Garbage> {
        if payload.len() > SMALL {
            return self.push_long(*header, payload);
        }
        // A short packet fits where there is a line.
        if !self.has_line() && !self.room(self.payload)? {
            return Ok(false);
        }
        self.write_short(header, payload);
        Ok(true)
    }

    /// Writes a packet that fits into a line, if there is one. Whether it did.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn push_short(&mut self, header: &Header, payload: &[u8]) -> bool {
        let fits = payload.len() <= SMALL && (self.has_line() || self.room(self.payload) == Ok(true));
        if fits {
            self.write_short(header, payload);
        }
        fits
    }

    /// Is there a line, as far as is known?
    #[inline]
    fn has_line(&self) -> bool {
        self.position.wrapping_sub(self.taken) < LINES
    }

    /// Writes a packet into the next line, which has room for it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn write_short(&mut self, header: &Header, payload: &[u8]) {
        let (position, length) = (self.position, payload.len().min(SMALL));
        let line = self.place.line(position);
        // SAFETY: there is a line, as the callers have seen, and it has room for the payload.
        unsafe {
            write_header(line, header);
            payload::copy(payload.as_ptr(), line.add(PAYLOAD), length);
        }
        self.publish(position, length as u32, self.payload);
    }

    #[inline(never)]
    fn push_long(&mut self, header: Header, payload: &[u8]) -> Result<bool, Garbage> {
        assert!(payload.len() <= most(self.place.bytes), "a packet of {} bytes", payload.len());
        let end = self.payload.wrapping_add(beside(payload.len()));
        if !self.fits(end) && !self.room(end)? {
            return Ok(false);
        }
        let Copied { way, is_measured } = self.write_beside(payload);
        let flags = if way == Way::Around { AROUND } else { 0 } | if is_measured { MEASURED } else { 0 };
        // SAFETY: there is a line, as was just seen.
        unsafe { write_header(self.place.line(self.position), &header) };
        self.publish(self.position, payload.len() as u32 | flags, end);
        Ok(true)
    }

    /// Gives the next line, at `position`, to the reader, with the length of its payload; long payloads end there.
    #[inline]
    fn publish(&mut self, position: u32, length: u32, end: u32) {
        self.place.stamp(position).store(stamp(position, length), Ordering::Release);
        self.ends[(position % LINES) as usize] = end;
        self.position = position.wrapping_add(1);
        self.payload = end;
    }

    /// Writes a payload for which a line has no room.
    fn write_beside(&mut self, payload: &[u8]) -> Copied {
        let place = self.place;
        let costs = &place.told().costs;
        let (begin, first) = place.split(self.payload, payload.len());
        let (first, rest) = payload.split_at(first);
        // SAFETY: the room has been given back, as the line in `try_push`. All is within the ring: `split` never leads behind its
        // end, and a payload is at most a quarter of it; payloads begin at whole lines. A peer that breaks the rules can garble
        // the packet only.
        unsafe {
            if !rest.is_empty() {
                self.copier.copy(rest, place.payload, costs);
            }
            self.copier.copy(first, place.payload.add(begin), costs)
        }
    }

    /// Whether payload is better written in long pieces.
    pub(super) fn is_far(&self) -> bool {
        self.copier.is_around()
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

/// Writes a packet's header to its line.
///
/// # Safety
/// The line must be free: given back by the reader, whose reads of it happened before that (release by the reader, acquire in
/// `room`), or never used. The reader will not touch it, but for its stamp, before that is stored in `publish`.
#[inline]
unsafe fn write_header(line: *mut u8, header: &Header) {
    // Field by field, as it was made: what was stored in parts can't be loaded as a whole before it has left the processor's queue.
    let Header { kind, context, tag, operation, length } = *header;
    // SAFETY: by the caller's promise.
    unsafe {
        let to = line.add(HEADER).cast::<Header>();
        (&raw mut (*to).kind).write(kind);
        (&raw mut (*to).context).write(context);
        (&raw mut (*to).tag).write(tag);
        (&raw mut (*to).operation).write(operation);
        (&raw mut (*to).length).write(length);
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
    /// The last look has found a packet.
    found: bool,
    measured: Measured,
}

impl Reader {
    /// A ring's reader.
    ///
    /// # Safety
    /// As for [`Writer::new`], with one writer.
    pub(super) unsafe fn new(place: Place) -> Self {
        let measured = Measured::default();
        Self { place, position: 0, payload: 0, told: 0, payload_told: 0, found: false, measured }
    }

    /// As if so many lines and bytes had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32, payload: u32) -> Self {
        Self { position, told: position, payload, payload_told: payload, ..self }
    }

    /// Looks for the next packet, so many times; `take` says whether it has taken it, and so does the result. The payload's length is
    /// at most [`most`].
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn pop(&mut self, looks: u32, take: &mut impl Take) -> Result<Option<bool>, Garbage> {
        let Some(length) = self.look(looks) else { return Ok(None) };
        if length as usize > SMALL {
            return self.pop_long(length, take);
        }
        Ok(Some(self.take_short(length, take)))
    }

    /// Looks for the next packet, so many times, and lets `take` take it if it is all in its line.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn pop_short(&mut self, looks: u32, take: &mut impl Take) -> Short {
        match self.look(looks) {
            None => Short::Nothing,
            Some(length) if length as usize > SMALL => Short::Long,
            Some(length) if self.take_short(length, take) => Short::Taken,
            Some(_) => Short::Nothing,
        }
    }

    /// Lets `take` take the next packet, which is there and all in its line. Whether it has.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn take_short(&mut self, length: u32, take: &mut impl Take) -> bool {
        let line = self.place.line(self.position);
        // SAFETY: as in `pop_long`.
        let (header, payload) = unsafe {
            let header = line.add(HEADER).cast::<Header>().read();
            (header, Payload::new((line.add(PAYLOAD), length as usize), (line, 0)))
        };
        let taken = take.take(&header, payload);
        if taken {
            self.position = self.position.wrapping_add(1);
            if self.position.wrapping_sub(self.told) >= LINES / 4 {
                self.tell();
            }
        }
        taken
    }

    /// Looks so many times whether the next packet is there; its stamp's length.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn look(&mut self, looks: u32) -> Option<u32> {
        let stamp = self.place.stamp(self.position);
        let mut left = looks;
        let length = loop {
            let stamp = stamp.load(Ordering::Acquire);
            let length = (stamp >> 32) as u32;
            if stamp as u32 == self.position && length & VALID != 0 {
                break length & !VALID;
            }
            left = left.saturating_sub(1);
            if left == 0 {
                self.found = false;
                return None;
            }
            // Without a pause between them the looks take the line from its writer: far cores need half more time so.
            std::hint::spin_loop();
        };
        // The writer is ahead: its lines can come while this one is taken. A line that it has not written yet would be taken from it.
        if std::mem::replace(&mut self.found, true) && left == looks {
            prefetch(self.place.line(self.position.wrapping_add(AHEAD)));
        }
        Some(length)
    }

    #[inline(never)]
    fn pop_long(&mut self, length: u32, take: &mut impl Take) -> Result<Option<bool>, Garbage> {
        let place = self.place;
        let way = if length & AROUND == 0 { Way::Through } else { Way::Around };
        let copied = Copied { way, is_measured: length & MEASURED != 0 };
        let length = (length & !(AROUND | MEASURED)) as usize;
        if length > most(place.bytes) {
            return Err(Garbage::Length(length));
        }
        let line = place.line(self.position);
        // SAFETY: `split` never leads behind the ring's end, and the length is at most a quarter of it. The writer's stores to
        // the line and the payload happened before that of the stamp, and it writes there again only after they have been given
        // back, in `tell`. A peer that breaks the rules can garble the bytes only, which are copied and nothing but bytes: any are
        // valid in `Header` and in what a payload is copied to.
        let (header, payload) = unsafe {
            let header = line.add(HEADER).cast::<Header>().read();
            let (begin, first) = place.split(self.payload, length);
            (header, Payload::new((place.payload.add(begin), first), (place.payload, length - first)))
        };
        if !self.measured.measure(copied, length, || take.take(&header, payload)) {
            return Ok(Some(false));
        }
        self.position = self.position.wrapping_add(1);
        self.payload = self.payload.wrapping_add(beside(length));
        if self.position.wrapping_sub(self.told) >= LINES / 4
            || self.payload.wrapping_sub(self.payload_told) >= place.bytes / 4
        {
            self.tell();
        }
        Ok(Some(true))
    }

    /// Gives back what was taken.
    #[inline(never)]
    fn tell(&mut self) {
        (self.told, self.payload_told) = (self.position, self.payload);
        let told = self.place.told();
        self.measured.tell(&told.costs);
        told.taken.store(self.position, Ordering::Release);
    }
}

/// Has the processor get a line into its cache, without waiting for it.
#[inline]
fn prefetch(line: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every such processor has the instruction; it changes nothing, and does nothing where there is no memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = line;
}

#[cfg(test)]
mod tests;
