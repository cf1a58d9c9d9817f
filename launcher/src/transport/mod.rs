//! How packets get from one rank to another: within a node over shared memory, between nodes over TCP.
//!
//! A transport carries packets of at most [`Transport::most`] bytes of payload, whole and in the order in which they were
//! sent to a peer. What packets mean is the engine's business ([`crate::messages`]).

pub(crate) mod header;
pub(crate) mod shared_memory;
pub(crate) mod tcp;
mod transports;

pub(crate) use header::{Header, Kind};
pub(crate) use transports::{Cards, Prepared, Transports};

/// Why a peer can't be reached any more, in words that go behind "rank 3 (vm2): ".
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Broken {
    pub(crate) peer: u32,
    pub(crate) why: String,
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

    /// Reads memory of a peer, all of `into` or nothing; `false` if that is not possible here, and the peer has to send it.
    ///
    /// # Errors
    /// If the peer can't be reached any more.
    fn fetch(&mut self, _peer: u32, _address: u64, _into: &mut [u8]) -> Result<bool, Broken> {
        Ok(false)
    }
}
