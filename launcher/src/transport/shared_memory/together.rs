//! Long messages that both ranks copy at the same time. The receiver has the kernel read the sender's memory, from the first byte on; the
//! sender, while it waits and has nothing else to do, sends pieces through its ring, from the last byte on. They meet somewhere, wherever
//! that is: a sender that computes gives nothing, and nobody waits for it.
//!
//! Whose a piece is, says one word beside the ring, where each takes what it copies next. The sender takes only what its ring has room for, so
//! nothing that it has taken has to wait for its next call. One message of each sender at a time is read so; the others wait their turn.
//! Each such meeting has a number: what still comes of one that was given up is nobody's.
#![expect(unsafe_code, reason = "uses memory that programs have lent to operations")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::messages::Lent;
use crate::transport::{Header, Payload};

/// Kinds of packets beside the engine's, which never sees these: the meeting `context` begins, about the receiver's `operation`.
const BEGIN: u32 = 128;
/// The piece `length` of the meeting `context`.
const PIECE: u32 = 129;

/// Bytes that a receiver takes at once: each call of the kernel takes a moment too.
const AT_ONCE: usize = 128 << 10;
/// Bits of a number of pieces.
const COUNT: u32 = 24;
/// The most pieces of a message.
const MOST: u32 = (1 << COUNT) - 1;

/// Is it for this file?
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the way of a short message")]
pub(super) fn is_of_meeting(header: &Header) -> bool {
    header.kind >= BEGIN
}

/// How many pieces of a message were taken, from either end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Taken {
    /// Of the meeting; 0 where there is none.
    number: u16,
    first: u32,
    last: u32,
}

impl Taken {
    fn of(word: u64) -> Self {
        let count = |shift: u32| (word >> shift) as u32 & MOST;
        Self { number: (word >> (2 * COUNT)) as u16, first: count(COUNT), last: count(0) }
    }

    fn word(self) -> u64 {
        u64::from(self.number) << (2 * COUNT) | u64::from(self.first) << COUNT | u64::from(self.last)
    }

    /// How many are left of so many.
    fn left(self, count: u32) -> u32 {
        count.saturating_sub(self.first + self.last)
    }
}

/// Takes pieces of a meeting if any of so many are left. What was taken before.
fn take(word: &AtomicU64, number: u16, count: u32, more: impl Fn(Taken) -> Taken) -> Result<Taken, Taken> {
    let next = |word: u64| {
        let taken = Taken::of(word);
        (taken.number == number && taken.left(count) > 0).then(|| more(taken).word())
    };
    word.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).map(Taken::of).map_err(Taken::of)
}

/// A message in pieces.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    bytes: usize,
    /// Of each but the last, which may have fewer.
    piece: usize,
    count: u32,
}

impl Pieces {
    /// `None` for more pieces than are counted.
    fn new(bytes: usize, piece: usize) -> Option<Self> {
        let count = u32::try_from(bytes.div_ceil(piece)).ok()?;
        (count <= MOST).then_some(Self { bytes, piece, count })
    }

    fn begin(&self, piece: u32) -> usize {
        self.bytes.min(piece as usize * self.piece)
    }
}

/// A message of a peer, for an operation of this rank.
#[derive(Debug)]
struct Reading {
    operation: u32,
    /// The sender's operation, and where it has the message.
    theirs: u32,
    address: u64,
    to: *mut u8,
    pieces: Pieces,
    /// Its meeting, once it has begun; then how many pieces this rank has read, and how many have come.
    number: Option<u16>,
    read: u32,
    come: u32,
}

impl Reading {
    /// The memory for some pieces.
    fn room(&mut self, begin: u32, end: u32) -> &mut [u8] {
        let (begin, end) = (self.pieces.begin(begin), self.pieces.begin(end));
        // SAFETY: the pieces are those of memory that was lent to the operation, which the engine leaves alone until the message is there or the
        // operation is abandoned (`Transport::fetch`); then this is gone. The borrow is the only one made of it at a time.
        unsafe { std::slice::from_raw_parts_mut(self.to.add(begin), end - begin) }
    }
}

/// A message of this rank's, which it helps to copy.
#[derive(Debug)]
struct Helping {
    place: usize,
    operation: u32,
    number: u16,
    pieces: Pieces,
    given: u32,
}

/// What this rank has to do with such messages. Peers have their places among the node's ranks.
#[derive(Debug)]
pub(super) struct Together {
    /// Bytes of a piece, on all of the node's ranks.
    piece: usize,
    /// By sender, in their order: only the first of each may have begun.
    readings: BTreeMap<usize, VecDeque<Reading>>,
    /// Operations whose message is there.
    finished: VecDeque<u32>,
    /// The last meeting that this rank has begun.
    last: u16,
    /// What peers may read, by operation.
    offered: BTreeMap<u32, (usize, Lent)>,
    helping: VecDeque<Helping>,
}

/// Something that no rank writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("about a message that both copy")]
pub(super) struct Nonsense;

impl Together {
    pub(super) fn new(piece: usize) -> Self {
        Self {
            piece,
            readings: BTreeMap::new(),
            finished: VecDeque::new(),
            last: 0,
            offered: BTreeMap::new(),
            helping: VecDeque::new(),
        }
    }
}

/// As a receiver.
impl Together {
    /// Wants a peer's message, of its operation at this address of its memory, for an operation of this rank with memory for all of it. Whether
    /// that is possible.
    pub(super) fn want(
        &mut self,
        place: usize,
        (theirs, address): (u32, u64),
        (operation, memory): (u32, &mut [u8]),
    ) -> bool {
        let Some(pieces) = Pieces::new(memory.len(), self.piece) else { return false };
        let to = memory.as_mut_ptr();
        let reading = Reading { operation, theirs, address, to, pieces, number: None, read: 0, come: 0 };
        self.readings.entry(place).or_default().push_back(reading);
        true
    }

    /// Whose message is to be begun.
    #[inline]
    pub(super) fn next_to_begin(&self) -> Option<usize> {
        let is_next = |queue: &VecDeque<Reading>| queue.front().is_some_and(|first| first.number.is_none());
        self.readings.iter().find(|(_, queue)| is_next(queue)).map(|(place, _)| *place)
    }

    /// Begins a peer's next message, if none has begun: with what the peer is to be told.
    pub(super) fn begin(&mut self, place: usize, word: &AtomicU64) -> Option<Header> {
        let reading = self.readings.get_mut(&place)?.front_mut()?;
        if reading.number.is_some() {
            return None;
        }
        self.last = self.last.checked_add(1).unwrap_or(1);
        reading.number = Some(self.last);
        word.store(Taken { number: self.last, first: 0, last: 0 }.word(), Ordering::Release);
        let context = u32::from(self.last);
        Some(Header { kind: BEGIN, context, tag: 0, operation: reading.theirs, length: 0 })
    }

    /// Takes the next pieces of a peer's message that has begun: where they are there, and where they go to here, to be read at once.
    /// `None` if all are taken.
    pub(super) fn take_first(
        &mut self,
        place: usize,
        word: &AtomicU64,
    ) -> Result<Option<(u64, &mut [u8])>, Nonsense> {
        let Some(reading) = self.begun(place) else { return Ok(None) };
        let (Some(number), Pieces { count, piece, .. }) = (reading.number, reading.pieces) else {
            return Ok(None);
        };
        let most = (AT_ONCE / piece).max(1) as u32;
        // Half of what is left at the end, so that the sender gets some too.
        let more = |taken: Taken| taken.left(count).div_ceil(2).min(most);
        match take(word, number, count, |taken| Taken { first: taken.first + more(taken), ..taken }) {
            Ok(taken) if taken.first == reading.read => {
                reading.read += more(taken);
                let end = reading.read;
                let address = reading.address.wrapping_add(reading.pieces.begin(taken.first) as u64);
                Ok(Some((address, reading.room(taken.first, end))))
            }
            Err(Taken { number: other, first, last }) if other == number && first + last == count => Ok(None),
            Ok(_) | Err(_) => Err(Nonsense),
        }
    }

    /// Does a message that has begun still lack something?
    pub(super) fn is_under_way(&mut self, place: usize) -> bool {
        self.begun(place).is_some()
    }

    fn begun(&mut self, place: usize) -> Option<&mut Reading> {
        self.readings.get_mut(&place)?.front_mut().filter(|reading| reading.number.is_some())
    }

    /// Ends a peer's message, if all of it is there.
    pub(super) fn end(&mut self, place: usize) {
        let Some(queue) = self.readings.get_mut(&place) else { return };
        let is_over = |first: &&Reading| first.read + first.come >= first.pieces.count;
        if let Some(reading) = queue.front().filter(is_over) {
            self.finished.push_back(reading.operation);
            queue.pop_front();
        }
        if queue.is_empty() {
            self.readings.remove(&place);
        }
    }

    /// An operation whose message is there.
    pub(super) fn take_finished(&mut self) -> Option<u32> {
        self.finished.pop_front()
    }

    /// Is this one's message there? It is not told again.
    pub(super) fn has_finished(&mut self, operation: u32) -> bool {
        let is_last = self.finished.back() == Some(&operation);
        is_last && self.finished.pop_back().is_some()
    }

    /// From here on nothing touches an operation's memory.
    pub(super) fn abandon(&mut self, operation: u32) {
        self.finished.retain(|finished| *finished != operation);
        self.readings.retain(|_, queue| {
            queue.retain(|reading| reading.operation != operation);
            !queue.is_empty()
        });
    }

    /// Nothing more is wanted from a peer, nor given to it.
    pub(super) fn forget(&mut self, place: usize) {
        self.readings.remove(&place);
        self.helping.retain(|helping| helping.place != place);
    }

    fn take_piece(&mut self, place: usize, header: &Header, payload: Payload<'_>) -> Result<(), Nonsense> {
        // Of a meeting that was given up, else.
        let is_it = |reading: &&mut Reading| reading.number.map(u32::from) == Some(header.context);
        let Some(reading) = self.begun(place).filter(is_it) else { return Ok(()) };
        let next = reading.pieces.count.checked_sub(reading.come + 1);
        let Some(next) = next.filter(|next| u64::from(*next) == header.length) else { return Err(Nonsense) };
        let room = reading.room(next, next + 1);
        if room.len() != payload.len() {
            return Err(Nonsense);
        }
        payload.copy_to(room);
        reading.come += 1;
        self.end(place);
        Ok(())
    }
}

/// As a sender.
impl Together {
    /// Lets a peer read an operation's memory.
    pub(super) fn offer(&mut self, place: usize, operation: u32, memory: Lent) {
        self.offered.insert(operation, (place, memory));
    }

    /// From here on nothing reads an operation's memory.
    pub(super) fn withdraw(&mut self, operation: u32) {
        self.offered.remove(&operation);
        self.helping.retain(|helping| helping.operation != operation);
    }

    /// Whom this rank can help.
    #[inline]
    pub(super) fn next_to_help(&self) -> Option<usize> {
        self.helping.front().map(|helping| helping.place)
    }

    /// Takes the next piece of the message that this rank helps with: what is to be sent at once. `None` if all are taken; then it helps with the
    /// next message.
    pub(super) fn take_last(&mut self, word: &AtomicU64) -> Option<(Header, &[u8])> {
        let helping = self.helping.front_mut()?;
        let (number, count) = (helping.number, helping.pieces.count);
        let taken = take(word, number, count, |taken| Taken { last: taken.last + 1, ..taken });
        let memory = self.offered.get(&helping.operation).filter(|_| taken.is_ok());
        let Some((_, memory)) = memory else {
            self.helping.pop_front();
            return None;
        };
        helping.given += 1;
        let piece = count.checked_sub(helping.given)?;
        let bytes = memory.bytes().get(helping.pieces.begin(piece)..helping.pieces.begin(piece + 1))?;
        let (context, length) = (u32::from(number), u64::from(piece));
        Some((Header { kind: PIECE, context, tag: 0, operation: 0, length }, bytes))
    }

    /// A receiver has begun.
    fn help(&mut self, place: usize, header: &Header) -> Result<(), Nonsense> {
        let &Header { context, operation, .. } = header;
        // It has been given up, else.
        let Some((_, memory)) = self.offered.get(&operation).filter(|(to, _)| *to == place) else {
            return Ok(());
        };
        let number = u16::try_from(context).map_err(|_| Nonsense)?;
        let pieces = Pieces::new(memory.bytes().len(), self.piece).ok_or(Nonsense)?;
        self.helping.push_back(Helping { place, operation, number, pieces, given: 0 });
        Ok(())
    }
}

impl Together {
    /// A packet from a peer for which [`is_of_meeting`] holds.
    pub(super) fn take(
        &mut self,
        place: usize,
        header: &Header,
        payload: Payload<'_>,
    ) -> Result<(), Nonsense> {
        match header.kind {
            BEGIN => self.help(place, header),
            PIECE => self.take_piece(place, header, payload),
            _ => Err(Nonsense),
        }
    }
}

#[cfg(test)]
mod tests;
