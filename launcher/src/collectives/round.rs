//! One collective of a communicator, and those of its ranks that send each other messages in it.
//!
//! Messages of a round have a tag of their own, made of the round's number and of what the rank wants: the collective, its root,
//! its length. So ranks that want different things don't take each other's messages for their own; who waits sees that a message
//! of this round has another tag, and fails with words instead of waiting for ever (`messages/watch.rs`).

use std::rc::Rc;

use bytemuck::Pod;

use crate::collectives::barrier;
use crate::error::{Error, Result};
use crate::messages::{Call, Communicator, Source, TOGETHER, Tag, Watch, tag};

pub(super) struct Round<'a> {
    pub(super) communicator: &'a Communicator,
    pub(super) what: &'static str,
    pub(super) context: u32,
    pub(super) tag: u32,
    /// Counted from 1 for each communicator.
    pub(super) number: u64,
    pub(super) signature: u64,
}

impl Communicator {
    /// Runs this rank's part of a collective. Every call of a collective must come here once, also one that can't be right: the
    /// others are told then.
    pub(super) fn collective<R>(&self, call: Call, act: impl FnOnce(&Round<'_>) -> Result<R>) -> Result<R> {
        let (number, signature, context) = (self.rounds.get(), call.signature(), self.context + 1);
        let tag = tag(number, signature);
        let round = Round { communicator: self, what: call.what, context, tag, number, signature };
        let watched = self.world.enter(Watch::new(self, call, context, tag));
        let root = call.root.map(|root| self.job_rank(call.what, root)).transpose();
        let mut result = root.and_then(|_| act(&round));
        if number.is_multiple_of(TOGETHER) && result.is_ok() {
            result = result.and_then(|done| barrier::dissemination(&round.everyone()).map(|()| done));
        }
        watched.end(result)
    }
}

impl<'a> Round<'a> {
    /// All ranks.
    pub(super) fn everyone(&'a self) -> Team<'a> {
        Team { round: self, ranks: None, rank: self.communicator.rank(), size: self.communicator.size() }
    }

    /// Those ranks of the communicator, of which this one has the place `rank`.
    pub(super) fn team(&'a self, ranks: Rc<[u32]>, rank: usize) -> Team<'a> {
        let size = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
        Team { round: self, ranks: Some(ranks), rank: u32::try_from(rank).unwrap_or(u32::MAX), size }
    }
}

/// Ranks that send each other messages in a round, counted from 0.
pub(super) struct Team<'a> {
    pub(super) round: &'a Round<'a>,
    /// As ranks of the communicator; `None` is all.
    ranks: Option<Rc<[u32]>>,
    rank: u32,
    size: u32,
}

impl Team<'_> {
    pub(super) fn rank(&self) -> u32 {
        self.rank
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// As a rank of the communicator.
    pub(super) fn member(&self, rank: u32) -> u32 {
        self.ranks.as_ref().map_or(rank, |ranks| ranks[rank as usize])
    }

    pub(super) fn send<T: Pod>(&self, to: u32, data: &[T]) -> Result<()> {
        let round = self.round;
        round.communicator.send_in(round.context, self.member(to), round.tag, data)
    }

    /// Receives exactly so many elements.
    pub(super) fn receive<T: Pod>(&self, from: u32, data: &mut [T]) -> Result<()> {
        let (round, from) = (self.round, self.member(from));
        let (source, tag) = (Source::from(from), Tag::from(round.tag));
        let status = round.communicator.receive_in(round.context, source, tag, data)?;
        self.expect(from, status.length, data.len())
    }

    /// Receives as much as comes.
    pub(super) fn receive_vec<T: Pod>(&self, from: u32) -> Result<Vec<T>> {
        let (round, from) = (self.round, self.member(from));
        let (source, tag) = (Source::from(from), Tag::from(round.tag));
        round.communicator.receive_vec_in(round.context, source, tag).map(|(data, _)| data)
    }

    pub(super) fn exchange<T: Pod>(&self, to: u32, data: &[T], from: u32, room: &mut [T]) -> Result<()> {
        let (round, from) = (self.round, self.member(from));
        let expected = room.len();
        let status = round.communicator.send_receive_in(
            round.context,
            (self.member(to), round.tag, data),
            (Source::from(from), Tag::from(round.tag), room),
        )?;
        self.expect(from, status.length, expected)
    }

    fn expect(&self, from: u32, got: usize, expected: usize) -> Result<()> {
        if got == expected {
            return Ok(());
        }
        let problem = format!(
            "rank {from} of the communicator gave {got} elements where rank {} expects {expected}; every rank must give as many",
            self.round.communicator.rank()
        );
        Err(Error::Lengths { what: self.round.what, problem })
    }

    /// A rank so many places further, around the end.
    pub(super) fn after(&self, distance: u32) -> u32 {
        (self.rank + distance % self.size) % self.size
    }

    pub(super) fn before(&self, distance: u32) -> u32 {
        (self.rank + self.size - distance % self.size) % self.size
    }
}
