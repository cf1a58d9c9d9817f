//! How packets get from one rank to another: within a node over shared memory, between nodes over TCP.
//!
//! A transport carries packets of at most [`Transport::most`] bytes of payload, whole and in the order in which they were
//! sent to a peer. What packets mean is the engine's business ([`crate::messages`]).

pub(crate) mod header;
pub(crate) mod payload;
pub(crate) mod shared_memory;
pub(crate) mod tcp;
mod transports;

pub(crate) use header::{Header, Kind};
pub(crate) use payload::Payload;
pub(crate) use transports::{Cards, Prepared, Transports};

/// Why a peer can't be reached any more, in words that go behind "rank 3 (vm2): ".
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Broken {
    pub(crate) peer: u32,
    pub(crate) why: String,
}

/// What [`Transport::look_at`] has found.
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

    /// The longest message to this peer that is sent without asking, in as many packets as it takes.
    fn unasked(&self, peer: u32) -> usize {
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

    /// Looks at the next packet of one peer alone. `take` says whether it has taken it; else it stays the next one.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    fn look_at(
        &mut self,
        _peer: u32,
        _take: &mut impl FnMut(&Header, Payload<'_>) -> bool,
    ) -> Result<Look, Broken> {
        Ok(Look::Poll)
    }

    /// Reads memory of a peer, all of `into` or nothing; `false` if that is not possible here, and the peer has to send it.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn fetch(&mut self, _peer: u32, _address: u64, _into: &mut [u8]) -> Result<bool, Broken> {
        Ok(false)
    }
}
