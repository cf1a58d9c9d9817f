//! Packets from one process to another through memory that both have mapped.
//!
//! A ring is 64 slots of two cache lines, one for each packet: its stamp, its header, and its payload if that has at most 96 bytes. A
//! longer payload is in a second ring beside it, of bytes. The stamp says where in the ring's history the packet is, and its length;
//! storing it publishes the packet. So a small packet moves one cache line from core to core. How far the reader has come, it tells
//! seldom, in a line of its own.
//!
//! Two ranks that answer each other need one slot each way, and what both have just used is the fastest. So each packet also says how
//! far its writer has read the ring of the other way, and who hears so that all has been read starts again at the first slot. A reader
//! looks at the next slot and at the first one; the stamp says which it is.
//!
//! The slots are few, so that they stay in a core's first cache: with 512 of them a small packet took a fifth longer. A long payload
//! is never where stamps are, so nothing that a program sends can look like one.
//!
//! The other process is believed nothing that could lead outside of the ring: a reader checks every length, a writer how
//! far the reader says that it has come.
#![expect(unsafe_code, reason = "memory that another process writes")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::copy::{Copied, Copier, Costs, Measured, Way};
use crate::transport::{Header, Payload, Take, payload};

/// Bytes in a cache line.
pub(super) const LINE: usize = 64;
/// And in a slot: processors fetch lines in pairs, and with its neighbour a line would be taken from its writer that nobody has asked for yet.
pub(super) const SLOT: usize = 2 * LINE;
const HEADER: usize = 8;
const PAYLOAD: usize = HEADER + size_of::<Packed>();
/// Payload that a slot has room for.
const SMALL: usize = SLOT - PAYLOAD;
/// In every stamp, so that none is zero as a cleared one is.
const VALID: u32 = 1 << 31;
/// In the stamp of a packet whose payload was written around the caches.
const AROUND: u32 = 1 << 30;
/// In the stamp of a packet whose payload's copies are measured.
const MEASURED: u32 = 1 << 29;

const _: () = assert!(PAYLOAD == 32 && HEADER.is_multiple_of(align_of::<Packed>()));

/// A [`Header`] in a slot.
#[derive(Clone, Copy)]
#[repr(C)]
struct Packed {
    /// How far the writer has read what comes the other way.
    read: u32,
    context: u32,
    tag: u32,
    operation: u32,
    /// The kind in the lowest byte, and the length.
    kind_and_length: u64,
}

/// Bits of a packed header's kind.
const KIND: u32 = 8;

impl Packed {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn header(self) -> Header {
        let Self { context, tag, operation, kind_and_length, .. } = self;
        let kind = u32::from(kind_and_length as u8);
        Header { kind, context, tag, operation, length: kind_and_length >> KIND }
    }
}

/// Slots of a ring.
pub(super) const SLOTS: u32 = 64;
/// After so many packets none starts at the first slot for two laps: so no slot keeps a stamp until its position comes again.
const ERA: u32 = 1 << 30;
/// A reader of many packets has the slot so many places further come.
const AHEAD: u32 = 4;

/// The most bytes of payload in one packet, so that at least four of them fit into a ring of so many bytes: while the reader
/// copies one, the writer copies the next.
pub(super) const fn most(bytes: u32) -> usize {
    if bytes < 32 << 10 { bytes as usize / 4 } else { 8 << 10 }
}

/// Where a ring is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// [`SLOTS`] of them.
    pub(super) slots: *mut u8,
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
    /// For messages that both copy. What it says is not the ring's business.
    meeting: AtomicU64,
}

const _: () = assert!(size_of::<Told>() == LINE);

impl Told {
    pub(super) fn meeting(&self) -> &AtomicU64 {
        &self.meeting
    }
}

/// What became of the look for a short packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Short {
    Taken,
    /// None has come, or one that is not taken here.
    Nothing,
    /// One that is not all in its slot has come.
    Long,
}

/// What a reader knows that is of use to the writer of the ring the other way.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct OtherWay {
    /// How far it has read: to be told.
    read: u32,
    /// How far the peer had read when it sent what was read last, if that is news: later it could be a position that comes again.
    heard: Option<u32>,
}

/// What is in the ring can't have been written by this code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Garbage {
    #[error("a packet of {0} bytes")]
    Length(usize),
    #[error("{taken} slots taken of {written} that were written")]
    Taken { taken: u32, written: u32 },
}

impl Place {
    fn slot(&self, slot: u32) -> *mut u8 {
        // SAFETY: by the promise given to `Writer::new` or `Reader::new` there are `SLOTS` slots.
        unsafe { self.slots.add((slot % SLOTS) as usize * SLOT) }
    }

    fn stamp(&self, slot: u32) -> &AtomicU64 {
        // SAFETY: a slot is there, aligned, as long as `self` is used by an end; its first eight bytes are accessed as an
        // atomic word only.
        unsafe { &*self.slot(slot).cast::<AtomicU64>() }
    }

    /// Where long payloads go on after those up to a position, where a packet starts at the first slot: at the start.
    fn start(&self, payload: u32) -> u32 {
        payload.wrapping_add(self.bytes - 1) & !(self.bytes - 1)
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

/// How many bytes a payload takes beside the slots: whole cache lines, so that nobody writes where another reads.
const fn beside(length: usize) -> u32 {
    if length <= SMALL { 0 } else { length.next_multiple_of(LINE) as u32 }
}

/// Positions count packets, or bytes of long payloads, from the ring's start on. They wrap.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    /// The next packet's, in the ring's history.
    position: u32,
    /// Its slot, if it does not start at the first one.
    slot: u32,
    /// The next long payload's place.
    payload: u32,
    /// How far the reader is known to have read, and how far in long payloads that is.
    taken: u32,
    payload_taken: u32,
    /// For each of the last packets, where the long payloads up to its packet end.
    ends: [u32; SLOTS as usize],
    copier: Copier,
}

impl Writer {
    /// A ring's writer.
    ///
    /// # Safety
    /// The slots and the room for payload, both aligned to 64 bytes, and what `told` points to must stay mapped as long as the
    /// writer is used, be zero at the start, and be accessed by this writer and one [`Reader`] only.
    pub(super) unsafe fn new(place: Place) -> Self {
        let (ends, copier) = ([0; SLOTS as usize], Copier::new());
        Self { place, position: 0, slot: 0, payload: 0, taken: 0, payload_taken: 0, ends, copier }
    }

    /// As if so many slots and bytes had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32, payload: u32) -> Self {
        self.place.taken().store(position, Ordering::Relaxed);
        Self { position, slot: position, taken: position, payload, payload_taken: payload, ..self }
    }

    /// Starts at the first slot where all has been read.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn start(&mut self, way: OtherWay) {
        let is_all_read = way.heard == Some(self.position);
        if is_all_read && !self.slot.is_multiple_of(SLOTS) && self.position % ERA >= 2 * SLOTS {
            self.slot = 0;
            self.taken = self.position;
            self.payload = self.place.start(self.payload);
            self.payload_taken = self.payload;
        }
    }

    /// Writes a packet if there is room. The payload must be no longer than [`most`].
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a header that is passed on goes through memory")]
    pub(super) fn try_push(
        &mut self,
        way: OtherWay,
        header: &Header,
        payload: &[u8],
    ) -> Result<bool, Garbage> {
        self.start(way);
        if payload.len() > SMALL {
            return self.push_long(way.read, *header, payload);
        }
        // A short packet fits where there is a slot.
        if !self.has_slot() && !self.room(self.payload)? {
            return Ok(false);
        }
        self.write_short(way.read, header, payload);
        Ok(true)
    }

    /// Writes a packet that fits into a slot, if there is one. Whether it did.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn push_short(&mut self, way: OtherWay, header: &Header, payload: &[u8]) -> bool {
        if payload.len() > SMALL {
            return false;
        }
        self.start(way);
        let fits = self.has_slot() || self.room(self.payload) == Ok(true);
        if fits {
            self.write_short(way.read, header, payload);
        }
        fits
    }

    /// Is there a slot, as far as is known?
    #[inline]
    fn has_slot(&self) -> bool {
        self.position.wrapping_sub(self.taken) < SLOTS
    }

    /// Writes a packet into the next slot, which has room for it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn write_short(&mut self, read: u32, header: &Header, payload: &[u8]) {
        let (at, length) = (self.slot, payload.len().min(SMALL));
        let slot = self.place.slot(at);
        // SAFETY: there is a slot, as the callers have seen, and it has room for the payload.
        unsafe {
            write_header(slot, read, header);
            payload::copy(payload.as_ptr(), slot.add(PAYLOAD), length);
        }
        self.publish(at, length as u32, self.payload);
    }

    #[inline(never)]
    fn push_long(&mut self, read: u32, header: Header, payload: &[u8]) -> Result<bool, Garbage> {
        assert!(payload.len() <= most(self.place.bytes), "a packet of {} bytes", payload.len());
        let end = self.payload.wrapping_add(beside(payload.len()));
        if !self.fits(end) && !self.room(end)? {
            return Ok(false);
        }
        let Copied { way, is_measured } = self.write_beside(payload);
        let flags = if way == Way::Around { AROUND } else { 0 } | if is_measured { MEASURED } else { 0 };
        // SAFETY: there is a slot, as was just seen.
        unsafe { write_header(self.place.slot(self.slot), read, &header) };
        self.publish(self.slot, payload.len() as u32 | flags, end);
        Ok(true)
    }

    /// Gives the next slot to the reader, with the length of its payload; long payloads end there.
    #[inline]
    fn publish(&mut self, slot: u32, length: u32, end: u32) {
        let position = self.position;
        self.place.stamp(slot).store(stamp(position, length), Ordering::Release);
        self.ends[(position % SLOTS) as usize] = end;
        self.position = position.wrapping_add(1);
        self.slot = slot.wrapping_add(1);
        self.payload = end;
    }

    /// Writes a payload for which a slot has no room.
    fn write_beside(&mut self, payload: &[u8]) -> Copied {
        let place = self.place;
        let costs = &place.told().costs;
        let (begin, first) = place.split(self.payload, payload.len());
        let (first, rest) = payload.split_at(first);
        // SAFETY: the room has been given back, as the slot in `try_push`. All is within the ring: `split` never leads behind its
        // end, and a payload is at most a quarter of it; payloads begin at whole cache lines. A peer that breaks the rules can garble
        // the packet only.
        unsafe {
            if !rest.is_empty() {
                self.copier.copy(rest, place.payload, costs);
            }
            self.copier.copy(first, place.payload.add(begin), costs)
        }
    }

    /// Whether a packet with so much payload fits. If so it does until the next one is written.
    pub(super) fn has_room(&mut self, way: OtherWay, length: usize) -> Result<bool, Garbage> {
        self.start(way);
        let end = self.payload.wrapping_add(beside(length));
        Ok(self.fits(end) || self.room(end)?)
    }

    /// What writer and reader say to each other about messages that both copy.
    pub(super) fn meeting(&self) -> &AtomicU64 {
        self.place.told().meeting()
    }

    /// Whether payload is better written in long pieces.
    pub(super) fn is_far(&self) -> bool {
        self.copier.is_around()
    }

    /// Whether there is a free slot, and room for payload up to `end`.
    fn fits(&self, end: u32) -> bool {
        self.position.wrapping_sub(self.taken) < SLOTS
            && end.wrapping_sub(self.payload_taken) <= self.place.bytes
    }

    /// Looks how far the reader has come, and whether that is enough.
    #[cold]
    fn room(&mut self, end: u32) -> Result<bool, Garbage> {
        let told = self.place.taken().load(Ordering::Acquire);
        let (taken, written) = (told.wrapping_sub(self.taken), self.position.wrapping_sub(self.taken));
        // What packets say can be newer.
        let is_news = 0 < taken && taken < 1 << 31;
        if is_news && taken > written {
            return Err(Garbage::Taken { taken, written });
        }
        if is_news {
            self.taken = told;
            self.payload_taken = self.ends[(told.wrapping_sub(1) % SLOTS) as usize];
        }
        Ok(self.fits(end))
    }
}

/// Writes a packet's header to its slot, and how far the ring of the other way has been read.
///
/// # Safety
/// The slot must be free: given back by the reader, whose reads of it happened before that (release by the reader, acquire in
/// `room` or where the packet was found that said so), or never used. The reader will not touch it, but for its stamp, before that
/// is stored in `publish`.
#[inline]
unsafe fn write_header(slot: *mut u8, read: u32, header: &Header) {
    // Field by field, as it was made: what was stored in parts can't be loaded as a whole before it has left the processor's queue.
    let Header { kind, context, tag, operation, length } = *header;
    // SAFETY: by the caller's promise.
    unsafe {
        let to = slot.add(HEADER).cast::<Packed>();
        (&raw mut (*to).read).write(read);
        (&raw mut (*to).context).write(context);
        (&raw mut (*to).tag).write(tag);
        (&raw mut (*to).operation).write(operation);
        (&raw mut (*to).kind_and_length).write(length << KIND | u64::from(kind));
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    place: Place,
    /// The next packet's, in the ring's history.
    position: u32,
    /// Its slot, if it does not start at the first one.
    slot: u32,
    /// How far the writer had read what goes the other way, until that was asked for.
    heard: Option<u32>,
    /// The next long payload's place.
    payload: u32,
    /// What the writer was last told, and how far in long payloads that is.
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
        let (found, measured) = (false, Measured::default());
        Self {
            place,
            position: 0,
            slot: 0,
            heard: None,
            payload: 0,
            told: 0,
            payload_told: 0,
            found,
            measured,
        }
    }

    /// As if so many slots and bytes had gone through the ring.
    #[cfg(test)]
    fn from(self, position: u32, payload: u32) -> Self {
        Self { position, slot: position, told: position, payload, payload_told: payload, ..self }
    }

    /// For the next packet the other way.
    #[inline]
    pub(super) fn other_way(&mut self) -> OtherWay {
        OtherWay { read: self.position, heard: self.heard.take() }
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

    /// Looks for the next packet, so many times, and lets `take` take it if it is all in its slot.
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

    /// Lets `take` take the next packet, which is there and all in its slot. Whether it has.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn take_short(&mut self, length: u32, take: &mut impl Take) -> bool {
        let slot = self.place.slot(self.slot);
        // SAFETY: as in `pop_long`.
        let (packed, payload) = unsafe {
            let packed = slot.add(HEADER).cast::<Packed>().read();
            (packed, Payload::new((slot.add(PAYLOAD), length as usize), (slot, 0)))
        };
        let taken = take.take(&packed.header(), payload);
        if taken {
            self.heard = Some(packed.read);
            self.go_on();
            if self.position.wrapping_sub(self.told) >= SLOTS / 4 {
                self.tell();
            }
        }
        taken
    }

    /// Looks so many times whether the next packet is there; its stamp's length.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn look(&mut self, looks: u32) -> Option<u32> {
        let stamp = match self.glance() {
            Some(stamp) => {
                // The writer is ahead: its slots can come while this one is taken. A slot that it has not written yet would be taken
                // from it.
                if self.found {
                    prefetch(self.place.slot(self.slot.wrapping_add(AHEAD)));
                }
                stamp
            }
            None => {
                self.found = false;
                self.wait(looks)?
            }
        };
        self.found = true;
        Some((stamp >> 32) as u32 & !VALID)
    }

    /// Looks again, so many times with the look before it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn wait(&mut self, looks: u32) -> Option<u64> {
        for _ in 1..looks {
            // Without a pause between them the looks take the slot from its writer: far cores need half more time so.
            std::hint::spin_loop();
            if let Some(stamp) = self.glance() {
                return Some(stamp);
            }
        }
        None
    }

    /// The next packet's stamp, if it is there: in the next slot or in the first one.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn glance(&mut self) -> Option<u64> {
        let is_next = |stamp: u64| stamp as u32 == self.position && stamp >> 63 == 1;
        let stamp = self.place.stamp(self.slot).load(Ordering::Acquire);
        if is_next(stamp) {
            return Some(stamp);
        }
        let stamp = self.place.stamp(0).load(Ordering::Acquire);
        if is_next(stamp) {
            // It may have come since it was not in the next slot, which is the first one.
            if self.slot.is_multiple_of(SLOTS) {
                return Some(stamp);
            }
            self.slot = 0;
            // The writer knows that all before is free.
            self.payload = self.place.start(self.payload);
            self.payload_told = self.payload;
            return Some(stamp);
        }
        None
    }

    /// Goes on to the next packet.
    #[inline]
    fn go_on(&mut self) {
        self.position = self.position.wrapping_add(1);
        self.slot = self.slot.wrapping_add(1);
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
        let slot = place.slot(self.slot);
        // SAFETY: `split` never leads behind the ring's end, and the length is at most a quarter of it. The writer's stores to
        // the slot and the payload happened before that of the stamp, and it writes there again only after they have been given
        // back, in `tell` or by a packet that says `position`. A peer that breaks the rules can garble the bytes only, which are
        // copied and nothing but bytes: any are valid in `Packed` and in what a payload is copied to.
        let (packed, payload) = unsafe {
            let packed = slot.add(HEADER).cast::<Packed>().read();
            let (begin, first) = place.split(self.payload, length);
            (packed, Payload::new((place.payload.add(begin), first), (place.payload, length - first)))
        };
        if !self.measured.measure(copied, length, || take.take(&packed.header(), payload)) {
            return Ok(Some(false));
        }
        self.heard = Some(packed.read);
        self.go_on();
        self.payload = self.payload.wrapping_add(beside(length));
        if self.position.wrapping_sub(self.told) >= SLOTS / 4
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

/// Has the processor get a cache line, without waiting for it.
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
