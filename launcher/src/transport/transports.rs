//! The way to each rank of the job.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;

use roce_bootstrap::Bootstrap;
use roce_verbs::Keep;
use serde::{Deserialize, Serialize};

use crate::card::{Card, NicCard};
use crate::endpoint::Endpoint;
use crate::messages::{Lent, LentMut};
use crate::rail;
use crate::transport::header::LANES;
use crate::transport::shared_memory::{self, SharedMemory};
use crate::transport::tcp::{self, Listening, Peers, Place, Tcp};
use crate::transport::verbs::{self, Class, Rail, Verbs};
use crate::transport::{
    Broken, Fetched, Header, Look, Payload, Place as Offered, Shown, Take, There, Transport,
};
use crate::windows::Memory;

/// What the secrets of messages are derived for.
const OVER_TCP: &[u8] = b"messages over TCP";
const OVER_VERBS: &[u8] = b"messages over verbs";

/// Which transports a program may use (`ROCE_TRANSPORTS`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    pub(crate) shared: bool,
    pub(crate) verbs: bool,
    pub(crate) tcp: bool,
}

/// How other ranks reach this one.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cards {
    shared_memory: Option<shared_memory::Card>,
    verbs: Option<verbs::Card>,
    /// Why there are no connections of NICs, where the rank has some.
    no_verbs: Option<String>,
    tcp: Option<tcp::Card>,
}

/// This rank's NICs for messages.
#[derive(Clone, Copy)]
pub(crate) struct Nics<'a> {
    pub(crate) endpoints: &'a [Arc<Endpoint>],
    /// Of what it sends.
    pub(crate) class: Class,
    /// Whether registrations are kept.
    pub(crate) keep: Keep,
    /// Whether long messages go over all rails that both ranks have.
    pub(crate) stripes: bool,
}

/// A rank that can be reached, and does not know yet how the others are.
pub(crate) struct Prepared {
    shared: Option<SharedMemory>,
    verbs: Option<verbs::Opened>,
    no_verbs: Option<String>,
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
    Verbs,
    /// In words: `TCP`, with the reason where the rank has NICs.
    Tcp(String),
    /// None, and why.
    None(&'static str),
}

/// Whose code is the way of short messages to and from a rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShortWay {
    Nic,
    /// Shared memory, with the rank's place among the node's.
    Node(u32),
    /// Any transport's, by the way of all messages.
    Other,
}

/// All transports of a rank.
pub(crate) struct Transports {
    shared: Option<SharedMemory>,
    verbs: Option<Box<Verbs>>,
    tcp: Option<Tcp>,
    /// By rank.
    ways: Vec<Way>,
}

impl Prepared {
    /// For this rank of the exchange. `ports` are those where the site lets ranks listen, `nics` this rank's own.
    ///
    /// # Errors
    /// If the operating system gives no memory, or no port.
    pub(crate) fn new(
        exchange: &Bootstrap,
        wanted: Wanted,
        ports: Option<&RangeInclusive<u16>>,
        nics: Option<Nics<'_>>,
    ) -> Result<Self, String> {
        let local_ranks: Vec<u32> = exchange.local_ranks().collect();
        let local_count = u32::try_from(local_ranks.len()).unwrap_or(u32::MAX);
        let shared = (wanted.shared && local_ranks.len() > 1)
            .then(|| SharedMemory::new(exchange.rank(), local_ranks))
            .transpose()?;
        // Those that shared memory doesn't reach.
        let others = exchange.size() - if shared.is_some() { local_count } else { 1 };
        let nics =
            nics.filter(|_| wanted.verbs && others > 0 && exchange.derive_secret(OVER_VERBS).is_some());
        let verbs = nics.map(|nics| {
            let Nics { endpoints, class, keep, stripes } = nics;
            verbs::Opened::new(endpoints, class, keep, stripes, others)
        });
        // Messages go over TCP then, and say why.
        let (verbs, no_verbs) = match verbs.transpose() {
            Ok(verbs) => (verbs, None),
            Err(why) => (None, Some(why)),
        };
        let listening = (wanted.tcp && others > 0).then(|| Listening::start(ports)).transpose();
        let listening = listening.map_err(|error| match ports {
            Some(ports) => {
                format!("no port to listen on among {} to {}: {error}", ports.start(), ports.end())
            }
            None => format!("no port to listen on: {error}"),
        })?;
        Ok(Self { shared, verbs, no_verbs, listening })
    }

    pub(crate) fn cards(&self) -> Cards {
        Cards {
            shared_memory: self.shared.as_ref().map(SharedMemory::card),
            verbs: self.verbs.as_ref().map(verbs::Opened::card),
            no_verbs: self.no_verbs.clone(),
            tcp: self.listening.as_ref().map(Listening::card),
        }
    }

    /// With every rank's cards.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub(crate) fn meet(self, exchange: &Bootstrap, cards: &[Card]) -> io::Result<Transports> {
        let (rank, here) = (exchange.rank(), exchange.identity().node_index);
        let node = |rank| exchange.member(rank).map_or(u32::MAX, |member| member.node_index);
        let ports = cards.iter().map(|card| card.transports.tcp.as_ref().map_or(0, |card| card.port));
        let places = (0..).zip(ports).map(|(rank, port)| Place { node: node(rank), port }).collect();
        let tcp = match (self.listening, exchange.derive_secret(OVER_TCP)) {
            (Some(listening), Some(secret)) => {
                let nodes = exchange.identity().nodes.iter().map(|node| node.name.clone()).collect();
                let peers = Peers { rank, places, nodes, addresses: exchange.node_addresses() };
                Some(Tcp::new(listening, secret, peers)?)
            }
            _ => None,
        };
        let own = &cards[rank as usize];
        let mut rails = vec![Vec::new(); cards.len()];
        let mut ways = Vec::new();
        for (peer, card) in (0..).zip(cards) {
            let theirs = &card.transports;
            ways.push(match &theirs.shared_memory {
                _ if peer == rank => Way::Own,
                Some(card) if node(peer) == here && self.shared.is_some() => Way::SharedLater(card.clone()),
                _ => match shared_rails(rank, own, peer, card) {
                    Ok(shared) => {
                        rails[peer as usize] = shared;
                        Way::Verbs
                    }
                    Err(why) if tcp.is_some() && theirs.tcp.is_some() => {
                        Way::Tcp(why.map_or("TCP".to_owned(), |why| format!("TCP ({why})")))
                    }
                    Err(_) => Way::None("no transport reaches it; see ROCE_TRANSPORTS"),
                },
            });
        }
        let verbs = match (self.verbs, exchange.derive_secret(OVER_VERBS)) {
            (Some(opened), Some(secret)) if rails.iter().any(|rails| !rails.is_empty()) => {
                Some(Box::new(opened.meet(rank, secret, &rails)?))
            }
            _ => None,
        };
        Ok(Transports { shared: self.shared, verbs, tcp, ways })
    }
}

/// The rails that two ranks share, at least one, that of packets first; else why connections of NICs are not their way, or nothing where nobody would expect them.
fn shared_rails(rank: u32, ours: &Card, peer: u32, theirs: &Card) -> Result<Vec<Rail>, Option<String>> {
    let whose = |which: u32| if which == rank { "this rank" } else { "that rank" };
    for (which, card) in [(rank, ours), (peer, theirs)] {
        if let Some(why) = &card.transports.no_verbs {
            return Err(Some(format!("no verbs on {}: {why}", whose(which))));
        }
    }
    let (Some(our_ports), Some(their_ports)) = (&ours.transports.verbs, &theirs.transports.verbs) else {
        // Without NICs, or without the wish for them.
        let one_has = ours.transports.verbs.is_some() || theirs.transports.verbs.is_some();
        let without = if ours.transports.verbs.is_none() { rank } else { peer };
        return Err(one_has.then(|| format!("{} has no RoCE port, or does not want it", whose(without))));
    };
    if ours.class() != theirs.class() {
        return Err(Some(format!("that rank has {}, this one {}", theirs.class(), ours.class())));
    }
    let mut pairs = rail::all_from(rank, &ours.rails(), peer, &theirs.rails());
    if pairs.is_empty() {
        return Err(Some("no rail has a port of both".to_owned()));
    }
    pairs.truncate(if our_ports.stripes && their_ports.stripes { LANES } else { 1 });
    let rail = |(port, their_port): (usize, usize)| {
        let gid = theirs.nics.get(their_port).map(NicCard::gid)?;
        let card = *their_ports.ports.get(their_port)?;
        (port < our_ports.ports.len()).then_some(Rail { port, their_port, card, gid })
    };
    let others = || Some("it told of other ports than it has; do all ranks run the same build?".to_owned());
    pairs.into_iter().map(rail).collect::<Option<_>>().ok_or_else(others)
}

impl Transports {
    /// How messages go to a rank.
    pub(crate) fn describe(&self, peer: u32) -> String {
        let words = match (self.ways.get(peer as usize), &self.verbs) {
            (Some(Way::Verbs), Some(verbs)) => return verbs.describe(peer),
            (Some(Way::Own), _) => "itself",
            (Some(Way::SharedLater(_) | Way::Shared), _) => "shared memory",
            (Some(Way::Tcp(words)), _) => words,
            (Some(Way::Verbs | Way::None(_)) | None, _) => "no way",
        };
        words.to_owned()
    }

    /// How many connections of NICs there are.
    pub(crate) fn queue_pairs(&self) -> usize {
        self.verbs.as_ref().map_or(0, |verbs| verbs.pairs())
    }

    /// How often memory was registered for long messages over NICs.
    pub(crate) fn registrations(&self) -> u64 {
        self.verbs.as_ref().map_or(0, |verbs| verbs.registrations())
    }

    /// What connections of NICs are busy with, in words for errors; nothing where they are idle.
    pub(crate) fn under_way(&self) -> String {
        self.verbs.as_ref().map_or_else(String::new, |verbs| verbs.under_way())
    }

    /// Begins to connect to a peer, where the transport has connections of NICs. Whether packets can go there now.
    ///
    /// # Errors
    /// If the peer can't be reached.
    pub(crate) fn open(&mut self, peer: u32) -> Result<bool, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.verbs) {
            (Some(Way::SharedLater(card)), Some(shared), _) => {
                shared.connect(peer, card)?;
                self.ways[peer as usize] = Way::Shared;
                Ok(true)
            }
            (Some(Way::Verbs), _, Some(verbs)) => verbs.open(peer),
            _ => Ok(true),
        }
    }

    /// By rank. That does not change.
    pub(crate) fn short_ways(&self) -> Box<[ShortWay]> {
        let way = |(rank, way): (u32, &Way)| match way {
            Way::Verbs => ShortWay::Nic,
            Way::Shared | Way::SharedLater(_) => {
                let place = self.shared.as_ref().and_then(|shared| shared.place_of(rank));
                place.and_then(|place| place.try_into().ok()).map_or(ShortWay::Other, ShortWay::Node)
            }
            Way::Own | Way::Tcp(_) | Way::None(_) => ShortWay::Other,
        };
        (0..).zip(&self.ways).map(way).collect()
    }

    /// For who knows that a rank is reached through shared memory, as [`verbs`](Self::verbs).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn shared(&mut self) -> Option<&mut SharedMemory> {
        self.shared.as_mut()
    }

    /// For who knows that a rank is reached by NIC, and has no time to look for its way.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(crate) fn verbs(&mut self) -> Option<&mut Verbs> {
        self.verbs.as_deref_mut()
    }

    #[inline(never)]
    fn look_by_nic(&mut self, peer: u32, looks: u32, take: &mut impl Take) -> Look {
        match &mut self.verbs {
            Some(verbs) => verbs.look_at(peer, looks, take),
            None => Look::Poll,
        }
    }

    /// Inlined it would lengthen the way of short messages within a node.
    #[inline(never)]
    fn send_short_otherwise(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        self.try_send(peer, header, payload) == Ok(true)
    }

    fn try_send_otherwise(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.tcp) {
            (Some(Way::Tcp(_)), _, Some(tcp)) => tcp.try_send(peer, header, payload),
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
        match (self.ways.get(peer as usize), &self.shared, &self.tcp, &self.verbs) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared), ..) => shared.most(peer),
            (Some(Way::Verbs), _, _, Some(verbs)) => verbs.most(peer),
            (Some(Way::Tcp(_)), _, Some(tcp), _) => tcp.most(peer),
            _ => 0,
        }
    }

    #[inline]
    fn unasked(&self, peer: u32, waits: bool) -> usize {
        match (self.ways.get(peer as usize), &self.shared, &self.tcp, &self.verbs) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared), ..) => shared.unasked(peer, waits),
            (Some(Way::Verbs), _, _, Some(verbs)) => verbs.unasked(peer, waits),
            (Some(Way::Tcp(_)), _, Some(tcp), _) => tcp.unasked(peer, waits),
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

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    fn look_for(&mut self, peer: u32, looks: u32, take: &mut impl Take) -> Result<Look, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared) {
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared)) => shared.look_for(peer, looks, take),
            // A call: inlined it would lengthen the way within a node.
            (Some(Way::Verbs), _) => Ok(self.look_by_nic(peer, looks, take)),
            _ => Ok(Look::Poll),
        }
    }

    #[inline]
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.verbs) {
            (Some(Way::Shared), Some(shared), _) => return shared.try_send(peer, header, payload),
            (Some(Way::Verbs), _, Some(verbs)) => return verbs.try_send(peer, header, payload),
            _ => {}
        }
        self.try_send_otherwise(peer, header, payload)
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as look_for")]
    fn send_short(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        match (self.ways.get(peer as usize), &mut self.shared) {
            (Some(Way::Shared), Some(shared)) => shared.send_short(peer, header, payload),
            _ => self.send_short_otherwise(peer, header, payload),
        }
    }

    #[inline]
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken> {
        let by_memory = self.shared.as_mut().map_or(Ok(false), |shared| shared.poll(deliver))?;
        let by_nic = self.verbs.as_mut().map_or(Ok(false), |verbs| verbs.poll(deliver))?;
        let by_network = self.tcp.as_mut().map_or(Ok(false), |tcp| tcp.poll(deliver))?;
        Ok(by_memory || by_nic || by_network)
    }

    fn offer(&mut self, peer: u32, operation: u32, memory: &Lent) -> Offered {
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.verbs) {
            (Some(Way::Verbs), _, Some(verbs)) => verbs.offer(peer, operation, memory),
            (Some(Way::Shared | Way::SharedLater(_)), Some(shared), _) => {
                shared.offer(peer, operation, memory)
            }
            _ => Offered::plain(memory.address()),
        }
    }

    fn withdraw(&mut self, operation: u32, is_done: bool) {
        if let Some(shared) = &mut self.shared {
            shared.withdraw(operation, is_done);
        }
        if let Some(verbs) = &mut self.verbs {
            verbs.withdraw(operation, is_done);
        }
    }

    fn fetch(
        &mut self,
        peer: u32,
        offer: (u32, Offered),
        memory: &mut LentMut,
        length: usize,
        operation: u32,
    ) -> Result<Fetched, Broken> {
        self.open(peer)?;
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.verbs) {
            (Some(Way::Verbs), _, Some(verbs)) => verbs.fetch(peer, offer, memory, length, operation),
            (Some(Way::Shared), Some(shared), _) => shared.fetch(peer, offer, memory, length, operation),
            _ => Ok(Fetched::Impossible),
        }
    }

    fn take_fetched(&mut self) -> Option<u32> {
        let here = self.shared.as_mut().and_then(Transport::take_fetched);
        here.or_else(|| self.verbs.as_mut()?.take_fetched())
    }

    fn abandon(&mut self, operation: u32) {
        if let Some(shared) = &mut self.shared {
            shared.abandon(operation);
        }
        if let Some(verbs) = &mut self.verbs {
            verbs.abandon(operation);
        }
    }

    fn show(&mut self, context: u32, memory: &Rc<Memory>) -> Option<Shown> {
        self.verbs.as_mut()?.show(context, memory)
    }

    fn hide(&mut self, context: u32) {
        if let Some(verbs) = &mut self.verbs {
            verbs.hide(context);
        }
    }

    fn there(&self, peer: u32, shown: &Shown) -> Option<There> {
        match (self.ways.get(peer as usize), &self.verbs) {
            (Some(Way::Verbs), Some(verbs)) => verbs.there(peer, shown),
            _ => None,
        }
    }

    fn try_put(&mut self, peer: u32, there: There, bytes: &[u8]) -> Result<usize, Broken> {
        self.verbs.as_mut().map_or(Ok(0), |verbs| verbs.try_put(peer, there, bytes))
    }

    fn write(&mut self, peer: u32, there: There, memory: &Lent, operation: u32) -> Result<bool, Broken> {
        self.verbs.as_mut().map_or(Ok(false), |verbs| verbs.write(peer, there, memory, operation))
    }

    fn try_get(&mut self, peer: u32, there: There, length: usize, question: u32) -> Result<bool, Broken> {
        self.verbs.as_mut().map_or(Ok(false), |verbs| verbs.try_get(peer, there, length, question))
    }

    fn take_got(&mut self) -> Option<(u32, Vec<u8>)> {
        self.verbs.as_mut()?.take_got()
    }

    fn read(
        &mut self,
        peer: u32,
        there: There,
        memory: &mut LentMut,
        operation: u32,
    ) -> Result<bool, Broken> {
        self.verbs.as_mut().map_or(Ok(false), |verbs| verbs.read(peer, there, memory, operation))
    }

    fn has_put(&self, peer: u32) -> bool {
        self.verbs.as_ref().is_none_or(|verbs| verbs.has_put(peer))
    }

    fn forget(&mut self, peer: u32, why: &str) {
        match (self.ways.get(peer as usize), &mut self.shared, &mut self.verbs) {
            (Some(Way::Verbs), _, Some(verbs)) => verbs.forget(peer, why),
            (Some(Way::Shared), Some(shared), _) => shared.forget(peer, why),
            _ => {}
        }
    }
}
