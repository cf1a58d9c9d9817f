//! The way to each rank of the job.

use serde::{Deserialize, Serialize};

use crate::transport::shared_memory::{self, SharedMemory};
use crate::transport::{Broken, Header, Transport};

/// How other ranks reach this one.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cards {
    shared_memory: Option<shared_memory::Card>,
}

/// The way to one rank.
#[derive(Debug)]
enum Way {
    /// It is this one.
    Own,
    /// Shared memory, not opened before it is needed.
    SharedLater(shared_memory::Card),
    Shared,
    /// None, and why.
    None(String),
}

/// All transports of a rank.
#[derive(Debug)]
pub(crate) struct Transports {
    shared: Option<SharedMemory>,
    /// By rank.
    ways: Vec<Way>,
}

impl Transports {
    /// For a rank, and the ranks of its node, itself among them.
    ///
    /// # Errors
    /// If the operating system gives no memory.
    pub(crate) fn new(rank: u32, local_ranks: Vec<u32>) -> Result<Self, String> {
        let shared = (local_ranks.len() > 1).then(|| SharedMemory::new(rank, local_ranks)).transpose()?;
        Ok(Self { shared, ways: Vec::new() })
    }

    pub(crate) fn cards(&self) -> Cards {
        Cards { shared_memory: self.shared.as_ref().map(SharedMemory::card) }
    }

    /// Finds the way to each rank, of which this rank is one. `local` says which are on its node.
    pub(crate) fn meet(&mut self, rank: u32, cards: Vec<Cards>, local: impl Fn(u32) -> bool) {
        let way = |(peer, cards): (u32, Cards)| match cards.shared_memory {
            _ if peer == rank => Way::Own,
            Some(card) if local(peer) => Way::SharedLater(card),
            _ => Way::None("it is on another node".to_owned()),
        };
        self.ways = (0..).zip(cards).map(way).collect();
    }

    /// How messages go to a rank.
    pub(crate) fn describe(&self, peer: u32) -> &str {
        match self.ways.get(peer as usize) {
            Some(Way::Own) => "itself",
            Some(Way::SharedLater(_) | Way::Shared) => "shared memory",
            Some(Way::None(_)) | None => "no way",
        }
    }

    fn open(&mut self, peer: u32) -> Result<(), Broken> {
        if let (Some(Way::SharedLater(card)), Some(shared)) = (self.ways.get(peer as usize), &mut self.shared)
        {
            shared.connect(peer, card)?;
            self.ways[peer as usize] = Way::Shared;
        }
        Ok(())
    }
}

impl Transport for Transports {
    fn most(&self, peer: u32) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.most(peer))
    }

    #[inline]
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared) {
            (Some(Way::Shared), Some(shared)) => shared.try_send(peer, header, payload),
            (Some(Way::SharedLater(_)), Some(_)) => {
                self.open(peer)?;
                self.try_send(peer, header, payload)
            }
            (Some(Way::None(why)), _) => Err(Broken { peer, why: why.clone() }),
            _ => Err(Broken { peer, why: "there is no way to it".to_owned() }),
        }
    }

    #[inline]
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, &[u8])) -> Result<bool, Broken> {
        self.shared.as_mut().map_or(Ok(false), |shared| shared.poll(deliver))
    }

    fn fetch(&mut self, peer: u32, address: u64, into: &mut [u8]) -> Result<bool, Broken> {
        self.open(peer)?;
        let Some(shared) = &mut self.shared else { return Ok(false) };
        if shared.readable(peer).is_err() {
            return Ok(false);
        }
        shared.fetch(peer, address, into).map(|()| true)
    }
}
