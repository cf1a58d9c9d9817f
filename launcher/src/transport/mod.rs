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

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::messages::{Lent, LentMut};
use crate::windows::Memory;

pub(crate) use header::{Header, Kind, Place};
pub(crate) use payload::Payload;
pub(crate) use transports::{Cards, Nics, Prepared, ShortWay, Transports, Wanted};
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

/// How a window's memory of a rank is seen by NICs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shown {
    address: u64,
    /// By the rank's port.
    keys: Vec<Option<u32>>,
}

/// Memory of a peer's window that this rank's NIC can read and write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct There {
    address: u64,
    key: u32,
}

impl Shown {
    pub(crate) fn new(address: u64, keys: Vec<Option<u32>>) -> Self {
        Self { address, keys }
    }

    /// For who comes in by this port.
    pub(crate) fn at_port(&self, port: usize) -> Option<There> {
        let key = self.keys.get(port).copied().flatten()?;
        Some(There { address: self.address, key })
    }
}

impl There {
    /// So many bytes further.
    pub(crate) fn further(self, bytes: usize) -> Self {
        Self { address: self.address.wrapping_add(bytes as u64), key: self.key }
    }

    /// Address and key.
    pub(crate) fn place(self) -> (u64, u32) {
        (self.address, self.key)
    }
}

/// Takes packets or not. What is to be inlined for sure is no closure, but has a type of its own.
pub(crate) trait Take {
    /// Whether it has taken it.
    fn take(&mut self, header: &Header, payload: Payload<'_>) -> bool;
}

impl<F: FnMut(&Header, Payload<'_>) -> bool> Take for F {
    #[inline]
    fn take(&mut self, header: &Header, payload: Payload<'_>) -> bool {
        self(header, payload)
    }
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
    fn look_for(&mut self, _peer: u32, _looks: u32, _take: &mut impl Take) -> Result<Look, Broken> {
        Ok(Look::Poll)
    }

    /// How a peer may read a message that is offered to it. The peer may until the operation's offer is withdrawn, and the engine
    /// withdraws it before it forgets the operation.
    fn offer(&mut self, _peer: u32, _operation: u32, memory: &Lent) -> Place {
        Place::plain(memory.address())
    }

    /// Ends an operation's offer, if there is one. Where the peer is not done with it, it must not be able to read the memory from here on.
    fn withdraw(&mut self, _operation: u32, _is_done: bool) {}

    /// Reads memory of a peer, which its operation has offered at this place, to the first `length` bytes of the operation's. What was started is told by
    /// [`take_fetched`](Self::take_fetched); until then, or until it is abandoned, nobody may touch the operation's memory.
    ///
    /// # Errors
    /// If the peer can't be reached any more; nothing touches the memory then.
    fn fetch(
        &mut self,
        _peer: u32,
        _offer: (u32, Place),
        _memory: &mut LentMut,
        _length: usize,
        _operation: u32,
    ) -> Result<Fetched, Broken> {
        Ok(Fetched::Impossible)
    }

    /// An operation whose fetch or write is over since it was started.
    fn take_fetched(&mut self) -> Option<u32> {
        None
    }

    /// Gives up a fetch or a write that was started: when this returns, nothing touches the operation's memory any more.
    fn abandon(&mut self, _operation: u32) {}

    /// Lets peers read and write memory of a window where they can, until it is hidden. `None` where none can.
    fn show(&mut self, _context: u32, _memory: &Rc<Memory>) -> Option<Shown> {
        None
    }

    /// Ends that.
    fn hide(&mut self, _context: u32) {}

    /// Where the memory is that a peer has shown, if this rank can get there.
    fn there(&self, _peer: u32, _shown: &Shown) -> Option<There> {
        None
    }

    /// Writes to memory of a peer. How many of the bytes were taken: they have been copied, and arrive by themselves.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn try_put(&mut self, _peer: u32, _there: There, _bytes: &[u8]) -> Result<usize, Broken> {
        Ok(0)
    }

    /// Starts to write an operation's memory to that of a peer, if it is long enough for that. Whether it was started; that it is over is told
    /// by [`take_fetched`](Self::take_fetched).
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn write(&mut self, _peer: u32, _there: There, _memory: &Lent, _operation: u32) -> Result<bool, Broken> {
        Ok(false)
    }

    /// Reads memory of a peer, if there is room for that: so many bytes, which [`take_got`](Self::take_got) gives with the question.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn try_get(&mut self, _peer: u32, _there: There, _length: usize, _question: u32) -> Result<bool, Broken> {
        Ok(false)
    }

    /// A question with its answer.
    fn take_got(&mut self) -> Option<(u32, Vec<u8>)> {
        None
    }

    /// Starts to read memory of a peer to an operation's, as [`write`](Self::write) writes it.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn read(
        &mut self,
        _peer: u32,
        _there: There,
        _memory: &mut LentMut,
        _operation: u32,
    ) -> Result<bool, Broken> {
        Ok(false)
    }

    /// Has all arrived that was put to a peer's memory?
    fn has_put(&self, _peer: u32) -> bool {
        true
    }

    /// A peer is taken for lost: nothing touches memory that concerns it any more.
    fn forget(&mut self, _peer: u32, _why: &str) {}
}
