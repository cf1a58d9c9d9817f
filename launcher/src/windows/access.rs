//! Access to another node's memory: what is asked, piece by piece, while there is room, and the answers.
//!
//! Each of these is looked at again and again ([`World::wait_until`](crate::messages::World)) until it says that it's over.

use std::collections::VecDeque;

use super::remote::{self, Question};
use super::words::Change;
use crate::messages::engine::{Engine, Failure};
use crate::messages::matching::Context;
use crate::transport::{Header, Kind, There, Transport};

/// Questions that are on their way for one get.
const AHEAD: usize = 8;

/// Where the memory is: whose, and in which window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) context: Context,
    /// A rank of the job.
    pub(super) peer: u32,
    /// In bytes.
    pub(super) at: usize,
}

impl Place {
    fn header(self, kind: Kind, tag: u32, operation: u32, further: usize) -> Header {
        let Self { context, at, .. } = self;
        Header { kind: kind as u32, context, tag, operation, length: (at + further) as u64 }
    }
}

/// Bytes that go there, or numbers that are added. They have been copied when it's over, not carried out.
#[derive(Debug)]
pub(super) struct Put<'a> {
    pub(super) place: Place,
    pub(super) kind: Kind,
    pub(super) bytes: &'a [u8],
    pub(super) sent: usize,
}

impl Put<'_> {
    pub(super) fn look<T: Transport>(&mut self, engine: &mut Engine<T>) -> Option<Result<(), Failure>> {
        let peer = self.place.peer;
        // Numbers of eight bytes stay whole.
        let most = (engine.most(peer) & !7).max(8);
        while self.sent < self.bytes.len() {
            let end = self.bytes.len().min(self.sent + most);
            let header = self.place.header(self.kind, 0, 0, self.sent);
            match engine.send_now(peer, &header, &self.bytes[self.sent..end]) {
                Ok(true) => engine.windows().sent(peer),
                Ok(false) => return None,
                Err(failure) => return Some(Err(failure)),
            }
            self.sent = end;
        }
        Some(Ok(()))
    }
}

/// Bytes that a NIC writes there. They have been copied when it's over.
#[derive(Debug)]
pub(super) struct PutByNic<'a> {
    /// A rank of the job.
    pub(super) peer: u32,
    pub(super) there: There,
    /// Those that are left.
    pub(super) bytes: &'a [u8],
}

impl PutByNic<'_> {
    pub(super) fn look<T: Transport>(&mut self, engine: &mut Engine<T>) -> Option<Result<(), Failure>> {
        while !self.bytes.is_empty() {
            match engine.try_put(self.peer, self.there, self.bytes) {
                Ok(0) => return None,
                Ok(count) => (self.there, self.bytes) = (self.there.further(count), &self.bytes[count..]),
                Err(failure) => return Some(Err(failure)),
            }
        }
        Some(Ok(()))
    }
}

/// Bytes that come from there.
#[derive(Debug)]
pub(super) struct Get<'a> {
    place: Place,
    /// Where a NIC can read it.
    there: Option<There>,
    into: &'a mut [u8],
    /// The bytes up to here have been asked for.
    asked: usize,
    /// The bytes up to here have come.
    come: usize,
    /// For the bytes between.
    questions: VecDeque<Question>,
}

impl<'a> Get<'a> {
    pub(super) fn new(place: Place, there: Option<There>, into: &'a mut [u8]) -> Self {
        Self { place, there, into, asked: 0, come: 0, questions: VecDeque::with_capacity(AHEAD) }
    }

    pub(super) fn look<T: Transport>(&mut self, engine: &mut Engine<T>) -> Option<Result<(), Failure>> {
        let peer = self.place.peer;
        while let Some(question) = self.questions.front() {
            let Some(bytes) = engine.windows().answer(*question) else { break };
            self.questions.pop_front();
            self.into[self.come..self.come + bytes.len()].copy_from_slice(&bytes);
            self.come += bytes.len();
        }
        if self.come == self.into.len() {
            return Some(Ok(()));
        }
        let most = engine.most(peer).clamp(1, remote::MOST);
        while self.asked < self.into.len() && self.questions.len() < AHEAD {
            let bytes = most.min(self.into.len() - self.asked);
            let question = engine.windows().ask(peer, bytes);
            // At most `remote::MOST`.
            let header = self.place.header(Kind::Get, bytes as u32, question, self.asked);
            let asked = match self.there {
                Some(there) => engine.try_get(peer, there.further(self.asked), bytes, question),
                None => engine.send_now(peer, &header, &[]),
            };
            match asked {
                Ok(true) => {}
                Ok(false) => {
                    engine.windows().forget(question);
                    break;
                }
                Err(failure) => {
                    engine.windows().forget(question);
                    return Some(Err(failure));
                }
            }
            self.questions.push_back(question);
            self.asked += bytes;
        }
        engine.broken(peer).map(Err)
    }

    /// It is given up.
    pub(super) fn forget<T: Transport>(self, engine: &mut Engine<T>) {
        self.questions.into_iter().for_each(|question| engine.windows().forget(question));
    }
}

/// A change that gives what was there before.
#[derive(Debug)]
pub(super) struct Ask {
    place: Place,
    change: Change,
    question: Option<Question>,
}

impl Ask {
    pub(super) fn new(place: Place, change: Change) -> Self {
        Self { place, change, question: None }
    }

    pub(super) fn look<T: Transport>(&mut self, engine: &mut Engine<T>) -> Option<Result<u64, Failure>> {
        let peer = self.place.peer;
        if let Some(question) = self.question {
            let answer = engine.windows().answer(question);
            let old = answer.and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
            return old.map(Ok).or_else(|| engine.broken(peer).map(Err));
        }
        let question = engine.windows().ask(peer, 8);
        let (tag, payload) = remote::packed(self.change);
        let header = self.place.header(Kind::Atomic, tag, question, 0);
        match engine.send_now(peer, &header, bytemuck::bytes_of(&payload)) {
            Ok(true) => self.question = Some(question),
            Ok(false) => engine.windows().forget(question),
            Err(failure) => {
                engine.windows().forget(question);
                return Some(Err(failure));
            }
        }
        None
    }

    /// It is given up.
    pub(super) fn forget<T: Transport>(self, engine: &mut Engine<T>) {
        self.question.into_iter().for_each(|question| engine.windows().forget(question));
    }
}

/// Whether a peer has carried out all that it was sent, and has all that was put to it.
pub(super) fn all_done<T: Transport>(engine: &mut Engine<T>, peer: u32) -> Option<Result<(), Failure>> {
    if let Some(broken) = engine.broken(peer) {
        return Some(Err(broken));
    }
    (engine.has_put(peer) && engine.windows().all_done(peer)).then_some(Ok(()))
}
