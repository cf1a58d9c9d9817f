//! What a rank does with packets of windows: it carries out what others ask for, in its own memory, and takes their answers.
//!
//! It's the part of the engine that knows of windows. It does nothing by itself, and sends nothing: it says what is to be sent.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::memory::Memory;
use super::words::{self, Change};
use crate::messages::matching::Context;
use crate::transport::{Header, Kind};

/// The most bytes that one [`Kind::Get`] may ask for.
pub(super) const MOST: usize = 64 * 1024;

/// How [`Kind::Atomic`] says which change, in `tag`.
const ADD: u32 = 0;
const SWAP: u32 = 1;
const COMPARE_SWAP: u32 = 2;

/// A question to another rank. Numbers are not used again as long as an answer to an old one could come.
pub(super) type Question = u32;

/// What the engine knows of windows.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// This rank's memory in each.
    open: BTreeMap<Context, Open>,
    questions: BTreeMap<Question, Asked>,
    next: Question,
    peers: BTreeMap<u32, Counts>,
    /// Peers that are to hear how many of their packets were carried out.
    owing: Vec<u32>,
}

#[derive(Debug)]
struct Open {
    memory: Rc<Memory>,
    bytes: usize,
}

/// What was asked, and the answer.
#[derive(Debug)]
struct Asked {
    peer: u32,
    bytes: usize,
    /// As much of it as has come.
    answer: Vec<u8>,
}

/// Packets that are answered by [`Kind::Done`].
#[derive(Debug, Default)]
struct Counts {
    sent: u64,
    /// Of those, the ones that the peer has carried out.
    done: u64,
    /// Of the peer's, those that it has not been told of.
    owed: u64,
}

/// What is to be done about a packet.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// Nothing more.
    Done,
    /// This is to be sent to the peer.
    Answer(Header, Vec<u8>),
    /// No rank of the same build sends it.
    Nonsense,
}

impl Windows {
    /// From now on others may access this rank's memory.
    pub(super) fn open(&mut self, context: Context, memory: Rc<Memory>, bytes: usize) {
        self.open.insert(context, Open { memory, bytes });
    }

    /// From now on nobody may.
    pub(crate) fn close(&mut self, context: Context) {
        self.open.remove(&context);
    }

    /// A peer is gone.
    pub(crate) fn lose(&mut self, peer: u32) {
        self.peers.remove(&peer);
        self.owing.retain(|other| *other != peer);
    }

    // --- what this rank asks for ---

    /// Notes that a packet went to a peer, which will say when it's done.
    pub(super) fn sent(&mut self, peer: u32) {
        self.peers.entry(peer).or_default().sent += 1;
    }

    /// Has the peer carried out all that it was sent?
    pub(super) fn all_done(&self, peer: u32) -> bool {
        self.peers.get(&peer).is_none_or(|counts| counts.sent == counts.done)
    }

    /// A question that a peer will answer with so many bytes, at least one.
    pub(super) fn ask(&mut self, peer: u32, bytes: usize) -> Question {
        let question = self.next;
        self.next = self.next.wrapping_add(1);
        self.questions.insert(question, Asked { peer, bytes, answer: Vec::new() });
        question
    }

    /// The answer, once; then the question is forgotten.
    pub(super) fn answer(&mut self, question: Question) -> Option<Vec<u8>> {
        self.questions.get(&question).filter(|asked| asked.answer.len() == asked.bytes)?;
        self.questions.remove(&question).map(|asked| asked.answer)
    }

    /// The answer that a NIC has read, at once.
    pub(crate) fn got(&mut self, question: Question, bytes: Vec<u8>) {
        if let Some(asked) = self.questions.get_mut(&question).filter(|asked| asked.bytes == bytes.len()) {
            asked.answer = bytes;
        }
    }

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&mut self, question: Question) {
        self.questions.remove(&question);
    }

    // --- what others ask for ---

    /// What is to be said to a peer about what is done: the peer and the packet.
    #[inline]
    pub(crate) fn next_done(&self) -> Option<(u32, Header)> {
        let peer = *self.owing.last()?;
        let length = self.peers.get(&peer).map_or(0, |counts| counts.owed);
        Some((peer, Header { kind: Kind::Done as u32, context: 0, tag: 0, operation: 0, length }))
    }

    /// It was said, or can't be said now, and comes last then.
    pub(crate) fn said(&mut self, was_sent: bool) {
        let Some(peer) = self.owing.pop() else { return };
        if was_sent {
            self.peers.entry(peer).or_default().owed = 0;
        } else {
            self.owing.insert(0, peer);
        }
    }

    /// A packet of a kind that is the windows' business.
    pub(crate) fn take(&mut self, kind: Kind, peer: u32, header: &Header, payload: &[u8]) -> Taken {
        let taken = match kind {
            Kind::Put | Kind::Add => self.take_put(kind, peer, header, payload),
            Kind::Get => self.take_get(header),
            Kind::Atomic => self.take_atomic(header, payload),
            Kind::Answer => self.take_answer(peer, header, payload),
            Kind::Done => self.take_done(peer, header.length),
            _ => None,
        };
        taken.unwrap_or(Taken::Nonsense)
    }

    /// The memory that a packet names, and where in it.
    fn find(&self, header: &Header, bytes: usize) -> Option<(&Memory, usize)> {
        let open = self.open.get(&header.context)?;
        let at = usize::try_from(header.length).ok()?;
        (at.checked_add(bytes)? <= open.bytes).then_some((&*open.memory, at))
    }

    fn take_put(&mut self, kind: Kind, peer: u32, header: &Header, payload: &[u8]) -> Option<Taken> {
        let (memory, at) = self.find(header, payload.len())?;
        if kind == Kind::Put {
            words::write(memory.words(), at, payload);
        } else if at.is_multiple_of(8) && payload.len().is_multiple_of(8) {
            words::add(memory.words(), at, payload);
        } else {
            return None;
        }
        let owed = &mut self.peers.entry(peer).or_default().owed;
        *owed += 1;
        if *owed == 1 {
            self.owing.push(peer);
        }
        Some(Taken::Done)
    }

    fn take_get(&self, header: &Header) -> Option<Taken> {
        let bytes = usize::try_from(header.tag).ok().filter(|bytes| *bytes <= MOST)?;
        let (memory, at) = self.find(header, bytes)?;
        let mut payload = vec![0; bytes];
        words::read(memory.words(), at, &mut payload);
        Some(Taken::Answer(answer(header.operation), payload))
    }

    fn take_atomic(&self, header: &Header, payload: &[u8]) -> Option<Taken> {
        let (memory, at) = self.find(header, 8)?;
        let numbers: [u64; 2] = bytemuck::try_pod_read_unaligned(payload).ok()?;
        let change = change(header.tag, numbers).filter(|_| at.is_multiple_of(8))?;
        let old = words::apply(memory.words(), at, change);
        Some(Taken::Answer(answer(header.operation), old.to_ne_bytes().to_vec()))
    }

    fn take_answer(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Option<Taken> {
        // A question that nobody waits for any more is no fault of the peer's.
        let Some(asked) = self.questions.get_mut(&header.operation) else { return Some(Taken::Done) };
        let come = asked.answer.len();
        if asked.peer != peer || header.length != come as u64 || come + payload.len() > asked.bytes {
            return None;
        }
        asked.answer.extend_from_slice(payload);
        Some(Taken::Done)
    }

    fn take_done(&mut self, peer: u32, count: u64) -> Option<Taken> {
        let counts = self.peers.get_mut(&peer)?;
        counts.done = counts.done.checked_add(count).filter(|done| *done <= counts.sent)?;
        Some(Taken::Done)
    }
}

/// A change as a packet has it: `tag` and payload.
pub(super) fn packed(change: Change) -> (u32, [u64; 2]) {
    match change {
        Change::Add(number) => (ADD, [number, 0]),
        Change::Swap(new) => (SWAP, [new, 0]),
        Change::CompareSwap { expected, new } => (COMPARE_SWAP, [new, expected]),
    }
}

fn change(tag: u32, [first, second]: [u64; 2]) -> Option<Change> {
    match tag {
        ADD => Some(Change::Add(first)),
        SWAP => Some(Change::Swap(first)),
        COMPARE_SWAP => Some(Change::CompareSwap { expected: second, new: first }),
        _ => None,
    }
}

fn answer(question: Question) -> Header {
    Header { kind: Kind::Answer as u32, context: 0, tag: 0, operation: question, length: 0 }
}

#[cfg(test)]
mod tests;
