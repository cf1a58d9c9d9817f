//! What was started, what waits, and what is on its way.

use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Context, Label, Wanted};
use crate::transport::{Broken, Header, Place};

/// A send, receive, put or get that was started.
pub(crate) type Operation = u32;

/// What a receive got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    pub(crate) label: Label,
    /// Bytes of the message.
    pub(crate) length: usize,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The message is longer than the receive's memory. It is gone.
    TooLong(Received),
    /// The peer can't be reached any more.
    Broken(Broken),
}

pub(crate) type Outcome = Result<Option<Received>, Failure>;

#[derive(Debug)]
pub(super) struct State {
    pub(super) what: What,
    pub(super) outcome: Option<Outcome>,
}

#[derive(Debug)]
pub(super) enum What {
    Send {
        peer: u32,
        memory: Lent,
        /// May the peer read it where it is?
        offered: bool,
    },
    Receive {
        context: Context,
        wanted: Wanted,
        memory: LentMut,
        got: Option<Progress>,
    },
    /// A long put or get, which the transport carries out.
    Move {
        peer: u32,
    },
    /// A receive that was cancelled while pieces came.
    Discard {
        progress: Progress,
    },
}

/// How much of a message has come in pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) message: Received,
    pub(super) come: usize,
}

/// A message that no receive was there for.
#[derive(Debug)]
pub(super) enum Waiting {
    Whole(Vec<u8>),
    /// A message in several packets, among `Core::kept`.
    Pieces(usize),
    Offered(Offer),
}

/// A message that is there to be fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) length: usize,
    pub(super) operation: Operation,
    pub(super) place: Place,
    /// Its sender does nothing but wait for it.
    pub(super) waiting: bool,
}

/// A message in several packets that no receive was there for; whole when it has as many bytes.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) length: usize,
    pub(super) bytes: Vec<u8>,
}

/// Where the pieces go that a peer sends of a message unasked.
#[derive(Debug)]
pub(super) enum Coming {
    /// A receive's memory.
    Operation(Operation),
    /// Among `Core::kept`.
    Kept(usize),
    /// The receive has failed.
    Nobody(Progress),
}

/// What is to be sent to a peer, in this order.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A packet that nobody waits for.
    Packet(Header, Vec<u8>),
    /// A message that is sent unasked, and how much of it was.
    Message { header: Header, operation: Operation, sent: usize },
    /// A message in pieces, to the peer's receive `to`; so much was sent.
    Pieces { operation: Operation, to: u32, sent: usize },
}

/// An offered message that a receive takes.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) operation: Operation,
    pub(super) message: Received,
    pub(super) offer: Offer,
}

/// A message that the transport is reading for a receive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) message: Received,
    pub(super) theirs: Operation,
}
