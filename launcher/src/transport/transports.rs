//! The way to each rank of the job.

use std::io;
use std::ops::RangeInclusive;

use roce_bootstrap::Bootstrap;
use serde::{Deserialize, Serialize};

use crate::transport::shared_memory::{self, SharedMemory};
use crate::transport::tcp::{self, Listening, Peers, Place, Tcp};
use crate::transport::{Broken, Header, Look, Payload, Transport};

/// What the secret of messages over TCP is derived for.
const PURPOSE: &[u8] = b"messages over TCP";

/// How other ranks reach this one.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cards {
    shared_memory: Option<shared_memory::Card>,
    tcp: Option<tcp::Card>,
}

/// A rank that can be reached, and does not know yet how the others are.
pub(crate) struct Prepared {
    shared: Option<SharedMemory>,
    listening: Option<Listening>,
}

/// The way to one rank.
#[derive(Clone, Debug)]
enum Way {
    /// It is this one.
    Own,
    /// Shared memory, not opened before it is needed.
    SharedLater(shared_memory::Card),
    Shared,
    Tcp,
    /// None, and why.
    None(&'static str),
}

/// All transports of a rank.
pub(crate) struct Transports {
    shared: Option<SharedMemory>,
    tcp: Option<Tcp>,
    /// By rank.
    ways: Vec<Way>,
}

impl Prepared {
    /// For this rank of the exchange. `ports` are those where the site lets ranks listen.
    ///
    /// # Errors
    /// If the operating system gives no memory, or no port.
    pub(crate) fn new(exchange: &Bootstrap, ports: Option<&RangeInclusive<u16>>) -> Result<Self, String> {
        let local_ranks: Vec<u32> = exchange.local_ranks().collect();
        let shared =
            (local_ranks.len() > 1).then(|| SharedMemory::new(exchange.rank(), local_ranks)).transpose()?;
        let has_others = exchange.identity().nodes.len() > 1;
        let listening = has_others.then(|| Listening::start(ports)).transpose();
        let listening = listening.map_err(|error| match ports {
            Some(ports) => {
                format!("no port to listen on among {} to {}: {error}", ports.start(), ports.end())
            }
            None => format!("no port to listen on: {error}"),
        })?;
        Ok(Self { shared, listening })
    }

    pub(crate) fn cards(&self) -> Cards {
        Cards {
            shared_memory: self.shared.as_ref().map(SharedMemory::card),
            tcp: self.listening.as_ref().map(Listening::card),
        }
    }

    /// With every rank's cards.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub(crate) fn meet(self, exchange: &Bootstrap, cards: Vec<Cards>) -> io::Result<Transports> {
        let (rank, here) = (exchange.rank(), exchange.identity().node_index);
        let node = |rank| exchange.member(rank).map_or(u32::MAX, |member| member.node_index);
        let ports = cards.iter().map(|cards| cards.tcp.as_ref().map_or(0, |card| card.port));
        let places = (0..).zip(ports).map(|(rank, port)| Place { node: node(rank), port }).collect();
        let tcp = match (self.listening, exchange.derive_secret(PURPOSE)) {
            (Some(listening), Some(secret)) => {
                let nodes = exchange.identity().nodes.iter().map(|node| node.name.clone()).collect();
                let peers = Peers { rank, places, nodes, addresses: exchange.node_addresses() };
                Some(Tcp::new(listening, secret, peers)?)
            }
            _ => None,
        };
        let way = |(peer, cards): (u32, Cards)| match cards.shared_memory {
            _ if peer == rank => Way::Own,
            Some(card) if node(peer) == here => Way::SharedLater(card),
            _ if tcp.is_some() && cards.tcp.is_some() => Way::Tcp,
            _ => Way::None("it listens nowhere"),
        };
        let ways = (0..).zip(cards).map(way).collect();
        Ok(Transports { shared: self.shared, tcp, ways })
    }
}

impl Transports {
    /// How messages go to a rank.
    pub(crate) fn describe(&self, peer: u32) -> &str {
        match self.ways.get(peer as usize) {
            Some(Way::Own) => "itself",
            Some(Way::SharedLater(_) | Way::Shared) => "shared memory",
            Some(Way::Tcp) => "TCP",
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

impl Transports {
    fn try_send_otherwise(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.tcp) {
            (Some(Way::Shared), Some(shared), _) => shared.try_send(peer, header, payload),
            (Some(Way::Tcp), _, Some(tcp)) => tcp.try_send(peer, header, payload),
            (Some(Way::SharedLater(_)), Some(_), _) => {
                self.open(peer)?;
                self.try_send(peer, header, payload)
            }
            (Some(Way::None(why)), ..) => Err(Broken { peer, why: (*why).to_owned() }),
            _ => Err(Broken { peer, why: "there is no way to it".to_owned() }),
        }
    }
}

impl Transport for Transports {
    const SHORT: usize = 1 << 10;

    #[inline]
    fn most(&self, peer: u32) -> usize {
        match (self.ways.get(peer as usize), &self.shared, &self.tcp) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared), _) => shared.most(peer),
            (Some(Way::Tcp), _, Some(tcp)) => tcp.most(peer),
            _ => 0,
        }
    }

    #[inline]
    fn unasked(&self, peer: u32) -> usize {
        match (self.ways.get(peer as usize), &self.shared, &self.tcp) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared), _) => shared.unasked(peer),
            (Some(Way::Tcp), _, Some(tcp)) => tcp.unasked(peer),
            _ => 0,
        }
    }

    #[inline]
    fn piece(&self, peer: u32, length: usize) -> usize {
        match (self.ways.get(peer as usize), &self.shared) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared)) => shared.piece(peer, length),
            _ => self.most(peer),
        }
    }

    #[inline]
    fn look_at(
        &mut self,
        peer: u32,
        take: &mut impl FnMut(&Header, Payload<'_>) -> bool,
    ) -> Result<Look, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared)) => shared.look_at(peer, take),
            _ => Ok(Look::Poll),
        }
    }

    #[inline]
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        if let (Some(Way::Shared), Some(shared)) = (self.ways.get(peer as usize), &mut self.shared) {
            return shared.try_send(peer, header, payload);
        }
        self.try_send_otherwise(peer, header, payload)
    }

    #[inline]
    fn send_short(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        match (self.ways.get(peer as usize), &mut self.shared) {
            (Some(Way::Shared), Some(shared)) => shared.send_short(peer, header, payload),
            _ => self.try_send(peer, header, payload) == Ok(true),
        }
    }

    #[inline]
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken> {
        let by_memory = self.shared.as_mut().map_or(Ok(false), |shared| shared.poll(deliver))?;
        let by_network = self.tcp.as_mut().map_or(Ok(false), |tcp| tcp.poll(deliver))?;
        Ok(by_memory || by_network)
    }

    fn fetch(&mut self, peer: u32, address: u64, into: &mut [u8]) -> Result<bool, Broken> {
        self.open(peer)?;
        let shared =
            self.shared.as_mut().filter(|_| matches!(self.ways.get(peer as usize), Some(Way::Shared)));
        let Some(shared) = shared else { return Ok(false) };
        if shared.readable(peer).is_err() {
            return Ok(false);
        }
        shared.fetch(peer, address, into).map(|()| true)
    }
}
