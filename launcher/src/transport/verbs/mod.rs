//! Packets over reliable connections of the NICs (verbs RC), between ranks that have ports on one rail.
//!
//! There is no connection when the job starts. The first packet to a peer has the [`service`] thread make one, by a
//! [`handshake`] over datagrams, and goes [before](early) it where it is short; from then on the connection serves both directions. A packet is copied into a registered slot, and shown to its receiver where it
//! came to; [`credits`] see to it that there is always a place for it. A long message is read by its receiver from the sender's memory, which
//! both register, and find registered the next time; where the system allows no registration, it comes in pieces. The longest go over all [rails](lanes) that both have. What is [put](puts) into
//! a window goes by RDMA write, what is [got](gets) from one by RDMA read.
//!
//! When a connection fails, another one takes its place and goes on where it ended ([`mend`]), unless the port stays unusable for too long.
//! Then that is what the rank is told, and not what followed from it.

mod credits;
mod desk;
mod early;
mod gets;
mod handshake;
mod head;
mod lanes;
mod link;
mod mend;
mod parts;
mod port;
mod puts;
mod sends;
mod service;
mod short;
mod stall;
mod transfers;
mod transport;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use roce_bootstrap::Secret;
use roce_verbs::{Held, Keep, Kept, PacketPair, PacketQueue, PacketRoom, RegistrationCache, Told};
use serde::{Deserialize, Serialize};

use self::credits::{ALL, SPARE};
use self::desk::{Desk, News, Wish};
use self::head::LONG_BYTES;
use self::lanes::{Described, Peer};
use self::link::{Link, NONSENSE, State};
use self::mend::Failure;
pub(crate) use self::port::Class;
use self::port::Port;
use self::puts::Visible;
use self::sends::ASKED;
use self::service::{Route, Service};
use self::transfers::Transfers;
use super::{Broken, Header, Payload};
use crate::endpoint::Endpoint;
use crate::error::chain;

/// The bytes of a slot: 16 KiB and room for the head, so that messages of powers of two are cut evenly.
const SLOT: usize = 16384 + 64;
/// The most bytes of a packet's payload.
const MOST: usize = SLOT - LONG_BYTES;
/// Messages that are waited for go unasked up to this length: half of a connection's places hold it, and asking takes a round trip.
const UNASKED: usize = SLOT * ALL as usize / 2;
/// Slots of each connection for packets, puts and gets.
const SENDS: u16 = 8;
/// RDMA reads and long RDMA writes of a connection at the same time.
const TRANSFERS: u16 = 8;
/// Messages from this length on are read from the sender's memory: to register it costs more than to copy less.
const REGISTERED: usize = 32 * 1024;
/// How long a rank leaves its CPU to the thread that makes its connection, in naps of at most this length: to yield is not enough where both have
/// one CPU, for the kernel gives each its half then.
const WAY_FREE: Duration = Duration::from_millis(20);
const NAP: Duration = Duration::from_micros(200);
/// How long it sleeps at most until the first packet is on its way, for the same reason.
const GREETING: Duration = Duration::from_millis(2);
/// How long dropping may take to see what was sent arrive.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How other ranks reach this one: for each of its ports, where datagrams go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    pub(crate) ports: Vec<PortCard>,
    /// Do long messages go over all rails?
    pub(crate) stripes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortCard {
    number: u32,
    key: u32,
}

/// Which ports a pair of ranks uses on a rail that both have: this rank's, and the peer's with its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rail {
    pub(crate) port: usize,
    /// The peer's, among its own.
    pub(crate) their_port: usize,
    pub(crate) card: PortCard,
    pub(crate) gid: roce_types::Gid,
}

/// A rank whose ports are open, and that does not know the others yet.
pub(crate) struct Opened {
    endpoints: Vec<Arc<Endpoint>>,
    queues: Vec<PacketQueue>,
    registrations: Vec<RegistrationCache>,
    ports: Vec<Port>,
    card: Card,
}

impl Opened {
    /// With so many ranks that connections may be wanted to.
    ///
    /// # Errors
    /// Why there can't be connections on this rank's ports.
    pub(crate) fn new(
        endpoints: &[Arc<Endpoint>],
        class: Class,
        keep: Keep,
        mut stripes: bool,
        ranks: u32,
    ) -> Result<Self, String> {
        let (mut queues, mut ports, mut cards) = (Vec::new(), Vec::new(), Vec::new());
        // A rank that is reached over another port may have parts of long messages on this one.
        let transfers = if stripes && endpoints.len() > 1 { 2 * TRANSFERS } else { TRANSFERS };
        for endpoint in endpoints {
            // Keys from 2^31 are the kernel's.
            let key = getrandom::u32().map_err(|error| format!("no random bytes: {error}"))? >> 1;
            let limits = endpoint.limits;
            let mut room = PacketRoom {
                packet: SLOT,
                receives: ALL + SPARE,
                // A connection of soft-RoCE that fails may keep one.
                receives_again: if limits.is_soft { link::MOST } else { 0 },
                sends: SENDS,
                depth: SENDS + ASKED + TRANSFERS + gets::GETS,
                transfers,
                connections: 1,
            };
            let by_receives = limits.max_shared_receives / u32::from(room.all_receives());
            let by_entries = limits.max_cq_entries / u32::from(room.all_receives().max(room.ends()));
            room.connections = ranks.min(by_receives).min(by_entries).max(1);
            // Where a device has no room for all ranks, none is left for further connections.
            stripes &= room.connections == ranks;
            let mut open = || {
                let queue = PacketQueue::create(&endpoint.domain, room)?;
                let port = Port::open(endpoint, queue.packets(), class, key)?;
                cards.push(PortCard { number: port.number(), key });
                ports.push(port);
                queues.push(queue);
                Ok(())
            };
            open().map_err(|error: roce_verbs::Error| chain(&error))?;
        }
        let registrations =
            endpoints.iter().map(|endpoint| RegistrationCache::new(&endpoint.domain, keep)).collect();
        let endpoints = endpoints.to_vec();
        Ok(Self { endpoints, queues, registrations, ports, card: Card { ports: cards, stripes } })
    }

    pub(crate) fn card(&self) -> Card {
        self.card.clone()
    }

    /// With the rails to the ranks that are reached so, the one for packets first.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub(crate) fn meet(self, rank: u32, secret: Secret, rails: &[Vec<Rail>]) -> io::Result<Verbs> {
        let desk = Arc::new(Desk::new()?);
        let route = |rail: &Rail| Route {
            port: rail.port,
            gid: rail.gid,
            number: rail.card.number,
            key: rail.card.key,
        };
        let routes = rails.iter().map(|rails| rails.iter().map(route).collect()).collect();
        let service = Service::start(rank, secret, Arc::clone(&desk), self.ports, routes)?;
        Ok(Verbs {
            names: self.endpoints.iter().map(|endpoint| endpoint.nic.port.to_string()).collect(),
            peers: self.queues.iter().map(|_| BTreeMap::new()).collect(),
            links: rails.iter().map(|rails| Link::of_rails(rails).map(Box::new)).collect(),
            endpoints: self.endpoints,
            queues: self.queues,
            registrations: self.registrations,
            closed: 0,
            offers: BTreeMap::new(),
            transfers: Transfers::default(),
            visible: BTreeMap::new(),
            getting: BTreeSet::new(),
            got: VecDeque::new(),
            due: BTreeSet::new(),
            failed: VecDeque::new(),
            unchecked: Vec::new(),
            connecting: None,
            rests: 0,
            broken: VecDeque::new(),
            desk,
            service: Some(service),
        })
    }
}

pub(crate) struct Verbs {
    endpoints: Vec<Arc<Endpoint>>,
    /// For messages: `rxe0:1`, by port.
    names: Vec<String>,
    /// By port.
    queues: Vec<PacketQueue>,
    /// Of long messages, by port.
    registrations: Vec<RegistrationCache>,
    /// Whose is a connection, by port and number.
    peers: Vec<BTreeMap<u32, u32>>,
    /// By rank.
    links: Vec<Option<Box<Link>>>,
    /// Connections that were closed.
    closed: usize,
    /// Memory that peers may read, by operation, with the peer.
    offers: BTreeMap<u32, (u32, Vec<Held>)>,
    transfers: Transfers,
    /// Peers that there is more to be got from as soon as there are slots.
    getting: BTreeSet<u32>,
    /// What was got, by the question.
    got: VecDeque<(u32, Vec<u8>)>,
    /// This rank's memory of windows, by the window's context.
    visible: BTreeMap<u32, Visible>,
    /// Peers that places are to be given back to.
    due: BTreeSet<u32>,
    /// What failed, and is not dealt with yet.
    failed: VecDeque<(u32, Failure)>,
    /// Peers whose connections are to be read back, as soon as what waits for them is under way.
    unchecked: Vec<Peer>,
    /// Until when the service thread gets this thread's CPU where nothing comes: it has a connection to make, perhaps on the same one.
    connecting: Option<Instant>,
    /// Polls that found nothing.
    rests: u32,
    /// To be told.
    broken: VecDeque<Broken>,
    desk: Arc<Desk>,
    service: Option<JoinHandle<()>>,
}

impl Verbs {
    /// `verbs (rxe0:1)`
    pub(crate) fn describe(&self, peer: u32) -> String {
        let names = &self.names;
        self.link(peer).map_or_else(String::new, |link| Described { link, names }.to_string())
    }

    /// How many connections there are, with those that are just being made.
    pub(crate) fn pairs(&self) -> usize {
        let made = self.queues.iter().map(|queue| queue.packets().made()).sum::<usize>();
        let links = || self.links.iter().flatten();
        let known = links().filter(|link| matches!(link.state, State::Opening | State::Up(_))).count();
        let further = links().flat_map(|link| &link.further);
        (made - self.closed).max(known) + further.filter(|link| matches!(link.state, State::Up(_))).count()
    }

    /// How often memory was registered for long messages.
    pub(crate) fn registrations(&self) -> u64 {
        self.registrations.iter().map(RegistrationCache::made).sum()
    }

    /// Begins to connect to a peer, if that has not begun. Whether packets can be sent to it now.
    ///
    /// # Errors
    /// If it can't be reached.
    pub(crate) fn open(&mut self, peer: u32) -> Result<bool, Broken> {
        let none = || Broken { peer, why: "there is no port for it".to_owned() };
        let link = self.links.get_mut(peer as usize).and_then(Option::as_mut).ok_or_else(none)?;
        match &link.state {
            State::Up(_) => Ok(true),
            State::Opening => Ok(false),
            State::Broken(why) => Err(Broken { peer, why: why.clone() }),
            State::None => {
                self.begin(peer, Vec::new());
                Ok(false)
            }
        }
    }

    /// Has the service thread make the first connection to a peer, and send the first packet before it.
    fn begin(&mut self, peer: u32, early: Vec<u8>) {
        if let Some(link) = self.links.get_mut(peer as usize).and_then(Option::as_mut) {
            link.state = State::Opening;
        }
        self.desk.wish(Wish::Open { peer: Peer::first(peer), early });
        self.connecting = Some(Instant::now() + WAY_FREE);
        self.desk.wait_for_news(GREETING);
    }

    fn link(&self, peer: u32) -> Option<&Link> {
        self.links.get(peer as usize)?.as_deref()
    }

    /// Whether it was something to deliver.
    fn take_news(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> bool {
        let mut came = false;
        for news in self.desk.take_news() {
            match news {
                News::Early(peer) => came |= self.hear_early(peer, deliver),
                News::Greeted => {}
                News::Ready { peer, pair, received, asked } => self.go_on(peer, pair, received, asked),
                News::Asked { peer, era } => self.asked_again(peer, era),
                News::Failed { peer, why } => self.lose_over(peer, why),
                News::PortLost { port, why } => {
                    for peer in self.peers_at(port) {
                        self.lose_over(peer, why.clone());
                    }
                }
                News::PairLost { port, number, why } => {
                    if let Some(rank) = self.peers[port].get(&number).copied()
                        && let Some(lane) = self.link(rank).and_then(|link| link.lane_at(port))
                    {
                        self.failed.push_back((rank, Failure::of_connection(why).over(lane)));
                    }
                }
            }
        }
        came
    }

    /// All that are reached over a port.
    fn peers_at(&self, port: usize) -> Vec<Peer> {
        let lane = |link: &Option<Box<Link>>| link.as_ref()?.lane_at(port);
        let peers = (0..).zip(&self.links);
        peers.filter_map(|(rank, link)| Some(Peer { rank, lane: lane(link)? })).collect()
    }

    /// A connection does not work any more. With the first one the peer is lost.
    fn lose_over(&mut self, peer: Peer, why: String) {
        match peer.lane {
            0 => self.lose(peer.rank, why),
            _ => self.lose_lane(peer, why),
        }
    }

    /// A peer can't be reached any more: nothing of its connections is used from here on, and the rank is told.
    fn lose(&mut self, peer: u32, why: String) {
        let Some(link) = self.links.get_mut(peer as usize).and_then(Option::as_mut) else { return };
        let port = link.port;
        match std::mem::replace(&mut link.state, State::Broken(why.clone())) {
            State::Broken(first) => {
                link.state = State::Broken(first);
                return;
            }
            State::Up(pair) => {
                self.closed += 1;
                // What it used is its peer's loss.
                let _ = self.queues[port].close(pair);
            }
            State::Opening if link.era > 0 => self.closed += 1,
            State::None | State::Opening => {}
        }
        link.gets.forget();
        let further: Vec<_> = (1..).zip(&link.further).map(|(lane, _)| Peer { rank: peer, lane }).collect();
        self.desk.wish(Wish::End { peer: Peer::first(peer), why: why.clone() });
        further.into_iter().for_each(|peer| self.lose_lane(peer, why.clone()));
        self.offers.retain(|_, (other, _)| *other != peer);
        self.transfers.forget(peer);
        self.due.remove(&peer);
        self.getting.remove(&peer);
        self.broken.push_back(Broken { peer, why });
    }

    /// Takes what has come on a port, at most a batch, and says whether there was any; or all that came over a connection, which is taken
    /// down, and says what that had under way.
    fn poll_port(
        &mut self,
        port: usize,
        ending: Option<PacketPair>,
        deliver: &mut impl FnMut(u32, &Header, Payload<'_>),
    ) -> roce_verbs::Result<(bool, Option<Kept>)> {
        let Self { queues, peers, links, desk, due, failed, transfers, got, .. } = self;
        let peers = &mut peers[port];
        let mut tell = |number: u32, told: Told<'_>| {
            let rank = match peers.get(&number) {
                Some(rank) => *rank,
                None => {
                    // A peer's first packet may come before the news of its connection.
                    let Some(rank) = desk.peer(port, number) else { return };
                    peers.insert(number, rank);
                    rank
                }
            };
            let Some(link) = links.get_mut(rank as usize).and_then(Option::as_mut) else { return };
            let Some(lane) = link.lane_at(port) else { return };
            let Some(link) = link.lane_mut(lane) else { return };
            match told {
                Told::Packet(_) if lane > 0 => {
                    failed.push_back((rank, Failure::of_peer(NONSENSE).over(lane)));
                }
                Told::Packet(bytes) => {
                    if matches!(link.state, State::None | State::Opening) {
                        link.state = State::Opening;
                        desk.wish(Wish::Heard(Peer::first(rank)));
                        // Perhaps this comes before the news of that.
                        if let Some(first) = desk.take_early(rank) {
                            early::hear(rank, link, &first, failed, deliver);
                            desk.has_delivered();
                        }
                    }
                    match link.hear(bytes) {
                        Ok(Some((header, payload))) => {
                            if link.credits.is_due() {
                                due.insert(rank);
                            }
                            deliver(rank, &header, payload.into());
                        }
                        Ok(None) => {}
                        Err(why) => failed.push_back((rank, Failure::of_peer(why))),
                    }
                }
                told => sends::note(Peer { rank, lane }, link, told, transfers, got, failed),
            }
        };
        match ending {
            Some(pair) => queues[port].take_down(pair, &mut tell).map(|kept| (true, Some(kept))),
            None => queues[port].poll(&mut tell).map(|count| (count > 0, None)),
        }
    }

    /// Sleeps a moment while a connection is made.
    #[cold]
    fn leave_cpu(&mut self) {
        self.connecting = self.connecting.filter(|end| Instant::now() < *end);
        if self.connecting.is_some() {
            self.desk.wait_for_news(NAP);
        }
    }

    /// Does what a poll has found to be done.
    fn settle(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) {
        if !self.due.is_empty() {
            self.give_back();
        }
        self.pump_transfers();
        for peer in std::mem::take(&mut self.getting) {
            self.pump_gets(peer);
        }
        for registrations in &self.registrations {
            registrations.tidy();
        }
        while let Some((peer, failure)) = self.failed.pop_front() {
            self.mend(peer, &failure, deliver);
        }
    }

    fn poll_once(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> bool {
        let mut came = false;
        for port in 0..self.queues.len() {
            match self.poll_port(port, None, deliver) {
                Ok((any, _)) => came |= any,
                Err(error) => {
                    let why = chain(&error);
                    for peer in self.peers_at(port) {
                        if self.lane(peer).is_some_and(|link| matches!(link.state, State::Up(_))) {
                            self.lose_over(peer, why.clone());
                        }
                    }
                }
            }
        }
        came
    }
}

impl Drop for Verbs {
    /// Waits until the peers' devices have what was sent: what is on its way when a connection is closed is lost.
    fn drop(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        let is_sending = |links: &[Option<Box<Link>>]| {
            links.iter().flatten().any(|link| !matches!(link.state, State::Broken(_)) && link.is_sending())
        };
        while is_sending(&self.links) && Instant::now() < end {
            self.ask();
            self.take_news(&mut |_, _, _| {});
            if !self.poll_once(&mut |_, _, _| {}) {
                std::thread::yield_now();
            }
            // Nobody is told any more.
            self.settle(&mut |_, _, _| {});
            self.broken.clear();
        }
        self.desk.wish(Wish::Stop);
        if let Some(service) = self.service.take() {
            // It panics nowhere; if it did, the rank is at its end anyway.
            let _ = service.join();
        }
    }
}
