//! How packets get from one rank to another: within a node over shared memory, between nodes over connections of the NICs, or TCP.
//!
//! A transport carries packets of at most [`Transport::most`] bytes of payload, whole and in the order in which they were
//! sent to a peer. What packets mean is the engine's business ([`crate::messages`]).

pub(crate) mod header;
pub(crate) mod payload;
pub(crate) mod shared_memory;
pub(crate) mod tcp;
mod transports;
pub(crate) mod verbs;

use crate::messages::{Lent, LentMut};

pub(crate) use header::{Header, Kind, Place};
pub(crate) use payload::Payload;
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

/// What [`Transport::look_for`] has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Nothing has come.
    Nothing,
    /// A packet that was taken.
    Taken,
    /// [`Transport::poll`] is what helps: a packet was left, or one peer can't be looked at alone.
    Poll,
}

pub(crate) trait Transport {
    /// Messages up to so many bytes fit into one packet to every peer.
    const SHORT: usize = 0;

    /// The most bytes of payload in one packet to this peer.
    fn most(&self, peer: u32) -> usize;

    /// The longest message to this peer that is sent without asking, in as many packets as it takes; `waits` says
    /// that its sender does nothing but wait.
    fn unasked(&self, peer: u32, _waits: bool) -> usize {
        self.most(peer)
    }

    /// How many bytes of a message of this length are best in one packet; at most [`most`](Self::most).
    fn piece(&self, peer: u32, _length: usize) -> usize {
        self.most(peer)
    }

    /// Sends a packet, or says that there is no room for it now. When it returns, the bytes have been copied.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken>;

    /// Sends a packet of at most [`SHORT`](Self::SHORT) bytes, if that is possible at once. If not, [`try_send`](Self::try_send) says
    /// why.
    #[inline]
    fn send_short(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        self.try_send(peer, header, payload) == Ok(true)
    }

    /// Gives the packets that have come, at most a few from each peer, with the rank that sent them. Whether there was any.
    ///
    /// # Errors
    /// If a peer can't be reached any more; what it sent before has been given.
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken>;

    /// Looks for the next packet of one peer alone, so many times as long as nothing has come. `take` says whether it has taken it; else it
    /// stays the next one.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    fn look_for(
        &mut self,
        _peer: u32,
        _looks: u32,
        _take: &mut impl FnMut(&Header, Payload<'_>) -> bool,
    ) -> Result<Look, Broken> {
        Ok(Look::Poll)
    }

    /// How a peer may read a message that is offered to it. The peer may until the operation's offer is withdrawn, and the engine
    /// withdraws it before it forgets the operation.
    fn offer(&mut self, _peer: u32, _operation: u32, memory: &Lent) -> Place {
        Place::plain(memory.address())
    }

    /// Ends an operation's offer, if there is one. Where the peer is not done with it, it must not be able to read the memory from here on.
    fn withdraw(&mut self, _operation: u32, _is_done: bool) {}

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
