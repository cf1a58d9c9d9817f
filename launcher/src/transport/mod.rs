//! How packets get from one rank to another: within a node over shared memory, between nodes over connections of the NICs, or TCP.
//!
//! A transport carries packets of at most [`Transport::most`] bytes of payload, whole and in the order in which they were
//! sent to a peer. What packets mean is the engine's business ([`crate::messages`]).

pub(crate) mod header;
pub(crate) mod shared_memory;
pub(crate) mod tcp;
mod transports;
pub(crate) mod verbs;

use crate::messages::{Lent, LentMut};

pub(crate) use header::{Header, Kind, Place};
pub(crate) use transports::{Cards, Prepared, Transports, Wanted};
pub(crate) use verbs::Class;

/// Why a peer can't be reached any more, in words that go behind "rank 3 (vm2): ".
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Broken {
    pub(crate) peer: u32,
    pub(crate) why: String,
}

/// What became of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fetched {
    /// It is over.
    Done,
    Started,
    /// The peer has to send the message.
    Impossible,
}

pub(crate) trait Transport {
    /// The most bytes of payload in one packet to this peer.
    fn most(&self, peer: u32) -> usize;

    /// Sends a packet, or says that there is no room for it now. When it returns, the bytes have been copied.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken>;

    /// Gives the packets that have come, at most a few from each peer, with the rank that sent them. Whether there was any.
    ///
    /// # Errors
    /// If a peer can't be reached any more; what it sent before has been given.
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, &[u8])) -> Result<bool, Broken>;

    /// How a peer may read a message that is offered to it. The peer may until the operation's offer is withdrawn, and the engine
    /// withdraws it before it forgets the operation.
    fn offer(&mut self, _peer: u32, _operation: u32, memory: &Lent) -> Place {
        Place::plain(memory.address())
    }

    /// Ends an operation's offer, if there is one.
    fn withdraw(&mut self, _operation: u32) {}

    /// Reads memory of a peer to the first `length` bytes of the operation's, all of it or nothing. What was started is told by
    /// [`take_fetched`](Self::take_fetched); until then, or until it is abandoned, nobody may touch the operation's memory.
    ///
    /// # Errors
    /// If the peer can't be reached any more; nothing touches the memory then.
    fn fetch(
        &mut self,
        _peer: u32,
        _place: Place,
        _memory: &mut LentMut,
        _length: usize,
        _operation: u32,
    ) -> Result<Fetched, Broken> {
        Ok(Fetched::Impossible)
    }

    /// An operation whose fetch is over since it was started.
    fn take_fetched(&mut self) -> Option<u32> {
        None
    }

    /// Gives up a fetch that was started: when this returns, nothing touches the operation's memory any more.
    fn abandon(&mut self, _operation: u32) {}

    /// A peer is taken for lost: nothing touches memory that concerns it any more.
    fn forget(&mut self, _peer: u32, _why: &str) {}
}
