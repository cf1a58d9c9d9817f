//! Packets over TCP, for nodes without RoCE, and for ranks that share no rail.
//!
//! Every rank listens on one port and tells the others which ([`Card`]). The first packet to a peer calls it; one connection
//! serves both directions from then on. Both ends prove to be these two ranks of this job (HMAC-SHA256 with a secret
//! derived from the step's, [`roce_bootstrap::handshake`]).
//!
//! # When two ranks call each other at once
//! The call of the lower one stays. A listener decides it when the caller has proven who it is: the lower rank, while it calls
//! itself, tells the caller to wait for its own call; the higher rank takes the lower one's call and drops its own. A caller
//! sends no packet before the listener has said that the connection stays. So both agree, and no packet is on the other one.
//!
//! # What is not protected
//! Packets carry no HMAC and are not encrypted, as in every MPI; the exchange's frames are authentic. SHA-256 of every byte, on
//! both ends, would cost more than the kernel's copies do. So who can change what is on the wire between two nodes (not merely
//! send there: TCP's sequence numbers are for that) can change messages. docs/decisions/014-messages-over-tcp.md
//!
//! # What waits for what
//! Nothing here waits, except for dropping it, which takes a few seconds at most: it sends what was accepted. Handshakes
//! go on only while both ranks are in calls of this library. That is why an answer has no deadline, and a caller who was turned away
//! because it took too long calls again. A node that falls silent is the exchange's business: it notices, and tells the engine.

mod call;
mod connection;
mod lookup;
mod packet;
mod shared;
mod stranger;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use roce_bootstrap::{NodeAddresses, Secret, tcp};
use serde::{Deserialize, Serialize};

use crate::transport::{Broken, Header, Payload, Transport};
use call::Call;
use connection::{Connection, Found};
use lookup::Lookup;
use packet::MOST;
pub(crate) use shared::Place;
use shared::{Ear, Shared, say};
use stranger::Stranger;

/// Strangers at the same time; for one more the oldest is turned away.
const MOST_STRANGERS: usize = 512;
/// How long a stranger may take to prove itself. It may be a rank that computes between its calls of this library; one that
/// takes still longer calls again.
const STRANGER: Duration = Duration::from_secs(300);
/// How often deadlines are looked at.
const TIMERS: Duration = Duration::from_millis(1);
/// Where nothing came the last time, the kernel is asked again after so long, connected or not: a system call each time would
/// slow down the other transports of a rank that spins.
const REST: [Duration; 2] = [Duration::from_micros(100), Duration::from_micros(2)];
/// How long dropping may take to send what was accepted.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Bytes per read: more than a packet.
const READ: usize = 4 * MOST;

/// What the others need to know of a rank.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    /// Where it listens, on every address of its node.
    pub(crate) port: u16,
}

/// A rank that can be called, and does not know the others yet.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: TcpListener,
    port: u16,
}

impl Listening {
    /// On a port of the site's range, which must be larger than a node has ranks, else on one that the kernel chooses.
    pub(crate) fn start(ports: Option<&RangeInclusive<u16>>) -> io::Result<Self> {
        let candidates: Vec<u16> = match ports {
            None => vec![0],
            // Ranks of one node begin at different places, so that they need not try all that are taken.
            Some(ports) => {
                let own = std::process::id() as usize;
                let all: Vec<u16> = ports.clone().collect();
                let first = own.checked_rem(all.len()).unwrap_or(0);
                [&all[first..], &all[..first]].concat()
            }
        };
        let listener = tcp::listen(&candidates)?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    pub(crate) fn card(&self) -> Card {
        Card { port: self.port }
    }
}

/// Who the others are.
#[derive(Debug)]
pub(crate) struct Peers {
    /// This rank.
    pub(crate) rank: u32,
    /// By rank, with the port of its card.
    pub(crate) places: Vec<Place>,
    /// The nodes' names.
    pub(crate) nodes: Vec<String>,
    /// Where nodes are reached.
    pub(crate) addresses: NodeAddresses,
}

pub(crate) struct Tcp {
    shared: Shared,
    listener: Option<TcpListener>,
    /// By rank. Most ranks talk to few.
    links: Vec<Option<Box<Link>>>,
    /// Ranks that are being called.
    calling: BTreeSet<u32>,
    /// How many are connected.
    connected: usize,
    strangers: BTreeMap<u32, Stranger>,
    next_stranger: u32,
    /// To be told.
    broken: VecDeque<Broken>,
    events: Vec<EpollEvent>,
    room: Vec<u8>,
    /// When the kernel was asked last, and had nothing.
    quiet: Option<Instant>,
    timers: Instant,
}

enum Link {
    Calling(Call),
    Up(Connection),
    Broken(String),
}

impl Tcp {
    /// `secret` is the step's, derived for this purpose: [`roce_bootstrap::Bootstrap::derive_secret`].
    pub(crate) fn new(listening: Listening, secret: Secret, peers: Peers) -> io::Result<Self> {
        let Peers { rank, places, nodes, addresses } = peers;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listening.listener, Ear::Listener.event(EpollFlags::EPOLLIN))?;
        Ok(Self {
            links: places.iter().map(|_| None).collect(),
            shared: Shared { rank, secret, places, nodes, lookup: Lookup::new(addresses), epoll },
            listener: Some(listening.listener),
            calling: BTreeSet::new(),
            connected: 0,
            strangers: BTreeMap::new(),
            next_stranger: 0,
            broken: VecDeque::new(),
            events: vec![EpollEvent::empty(); 64],
            room: vec![0; READ],
            quiet: None,
            timers: Instant::now(),
        })
    }

    // --- calls ---

    fn advance_calls(&mut self, now: Instant) {
        for peer in self.calling.iter().copied().collect::<Vec<_>>() {
            self.advance_call(peer, now);
        }
    }

    fn advance_call(&mut self, peer: u32, now: Instant) {
        if let Some(Some(Link::Calling(call))) = self.links.get_mut(peer as usize).map(Option::as_deref_mut) {
            let outcome = call.advance(&mut self.shared, now);
            self.take_call(peer, outcome);
        }
    }

    fn hear_call(&mut self, peer: u32, attempt: u16, now: Instant) {
        if let Some(Some(Link::Calling(call))) = self.links.get_mut(peer as usize).map(Option::as_deref_mut) {
            let outcome = call.hear(attempt, &mut self.shared, now);
            self.take_call(peer, outcome);
        }
    }

    fn take_call(&mut self, peer: u32, outcome: call::Outcome) {
        match outcome {
            call::Outcome::Wait => {}
            call::Outcome::Up(socket) => self.connect(peer, socket),
            call::Outcome::Failed(why) => self.lose(peer, why),
        }
    }

    /// The connection to a peer stands.
    fn connect(&mut self, peer: u32, socket: OwnedFd) {
        self.calling.remove(&peer);
        let Some(link) = self.links.get_mut(peer as usize) else { return };
        let mut event = Ear::Peer(peer).event(EpollFlags::EPOLLIN);
        if let Err(error) = self.shared.epoll.modify(&socket, &mut event) {
            return self.lose(peer, format!("its connection can't be watched: {}", error.desc()));
        }
        *link = Some(Box::new(Link::Up(Connection::new(socket))));
        self.connected += 1;
    }

    fn lose(&mut self, peer: u32, why: String) {
        self.calling.remove(&peer);
        let Some(link) = self.links.get_mut(peer as usize) else { return };
        if matches!(link.as_deref(), Some(Link::Up(_))) {
            self.connected -= 1;
        }
        *link = Some(Box::new(Link::Broken(why.clone())));
        self.broken.push_back(Broken { peer, why });
    }

    // --- callers ---

    fn accept(&mut self, now: Instant) {
        for _ in 0..MOST_STRANGERS {
            match self.listener.as_ref().map(TcpListener::accept) {
                None => return,
                Some(Ok((stream, _))) => {
                    let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
                    if ready.is_ok() {
                        self.add_stranger(stream.into(), now);
                    }
                }
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => return,
                Some(Err(error)) => {
                    let full = matches!(
                        error.raw_os_error().map(Errno::from_raw),
                        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
                    );
                    // Where there are no more descriptors the oldest stranger makes room, or the callers wait until one is closed.
                    if full && self.strangers.pop_first().is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn add_stranger(&mut self, socket: OwnedFd, now: Instant) {
        while self.strangers.len() >= MOST_STRANGERS {
            self.strangers.pop_first();
        }
        let number = self.next_stranger;
        self.next_stranger = self.next_stranger.wrapping_add(1);
        if self.shared.epoll.add(&socket, Ear::Stranger(number).event(EpollFlags::EPOLLIN)).is_ok() {
            self.strangers.insert(number, Stranger::new(socket, now));
        }
    }

    fn hear_stranger(&mut self, number: u32) {
        let Some(stranger) = self.strangers.get_mut(&number) else { return };
        let outcome = stranger.hear(&self.shared);
        if matches!(outcome, stranger::Outcome::Wait) {
            return;
        }
        if let (Some(Stranger { socket, .. }), stranger::Outcome::Proven(peer)) =
            (self.strangers.remove(&number), outcome)
        {
            self.welcome(peer, socket);
        }
    }

    /// A peer has proven itself: does its connection stay?
    fn welcome(&mut self, peer: u32, socket: OwnedFd) {
        let stays = match self.links.get(peer as usize).map(Option::as_deref) {
            Some(None) => true,
            Some(Some(Link::Calling(..))) => peer < self.shared.rank,
            // It has lost the connection that it had.
            Some(Some(Link::Up(_) | Link::Broken(_))) | None => return,
        };
        let word = if stays { call::WELCOME } else { call::YIELD };
        if say(&socket, &[word]).is_ok() && stays {
            self.connect(peer, socket);
        }
    }

    fn turn_away_the_late(&mut self, now: Instant) {
        self.strangers.retain(|_, stranger| now.saturating_duration_since(stranger.since) < STRANGER);
    }

    // --- packets ---

    fn hear_peer(
        &mut self,
        peer: u32,
        flags: EpollFlags,
        deliver: &mut impl FnMut(u32, &Header, &[u8]),
    ) -> bool {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.flush(peer);
        }
        let Some(Some(Link::Up(connection))) = self.links.get_mut(peer as usize).map(Option::as_deref_mut)
        else {
            return false;
        };
        if !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return false;
        }
        match connection.read(&mut self.room, |header, payload| deliver(peer, header, payload)) {
            Found::Packets => true,
            Found::Nothing => false,
            Found::End(why) => {
                self.lose(peer, why);
                true
            }
        }
    }

    /// Sends what waits for a peer; where some is left, the kernel says when it goes on.
    fn flush(&mut self, peer: u32) {
        if let Some(Some(Link::Up(connection))) = self.links.get_mut(peer as usize).map(Option::as_deref_mut)
        {
            connection.flush();
            watch(&self.shared.epoll, peer, connection);
        }
    }

    /// Asks the kernel what there is, and does it. Whether there was anything.
    fn look(&mut self, timeout: EpollTimeout, deliver: &mut impl FnMut(u32, &Header, &[u8])) -> bool {
        let mut events = std::mem::take(&mut self.events);
        // A signal is nothing, and nothing else can go wrong here.
        let count = self.shared.epoll.wait(&mut events, timeout).unwrap_or(0);
        let mut came = false;
        if count > 0 {
            let now = Instant::now();
            for event in &events[..count] {
                match Ear::of(event) {
                    Ear::Peer(peer) => came |= self.hear_peer(peer, event.events(), deliver),
                    Ear::Listener => self.accept(now),
                    Ear::Call(peer, attempt) => self.hear_call(peer, attempt, now),
                    Ear::Stranger(number) => self.hear_stranger(number),
                }
            }
        }
        self.events = events;
        came || count > 0
    }

    fn is_sending(&self) -> bool {
        !self.calling.is_empty() || self.connections().any(Connection::is_waiting)
    }

    fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.links.iter().filter_map(|link| match link.as_deref() {
            Some(Link::Up(connection)) => Some(connection),
            _ => None,
        })
    }
}

/// Tells the kernel what to look for.
fn watch(epoll: &Epoll, peer: u32, connection: &mut Connection) {
    let asks = connection.is_waiting();
    if asks != connection.asks {
        let out = if asks { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        let mut event = Ear::Peer(peer).event(EpollFlags::EPOLLIN | out);
        // It is there, and stays until it is closed; no memory is needed to change it.
        let _ = epoll.modify(connection.as_fd(), &mut event);
        connection.asks = asks;
    }
}

impl Transport for Tcp {
    fn most(&self, _: u32) -> usize {
        MOST
    }

    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        let Some(link) = self.links.get_mut(peer as usize) else {
            return Err(Broken { peer, why: "there is no such rank".to_owned() });
        };
        match link.as_deref_mut() {
            Some(Link::Up(connection)) => {
                let had_room = connection.send(header, payload);
                watch(&self.shared.epoll, peer, connection);
                Ok(had_room)
            }
            // Taken when it can go out: a rank that has sent may be gone for long, and nothing moves then.
            Some(Link::Calling(_)) => Ok(false),
            Some(Link::Broken(why)) => Err(Broken { peer, why: why.clone() }),
            None => {
                *link = Some(Box::new(Link::Calling(Call::new(peer))));
                self.calling.insert(peer);
                self.quiet = None;
                // A failure is told by `poll`.
                self.advance_call(peer, Instant::now());
                Ok(false)
            }
        }
    }

    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken> {
        if let Some(broken) = self.broken.pop_front() {
            return Err(broken);
        }
        let now = Instant::now();
        let rest = REST[usize::from(self.connected > 0 || !self.calling.is_empty())];
        if self.quiet.is_some_and(|quiet| now.saturating_duration_since(quiet) < rest) {
            return Ok(false);
        }
        let came = self.look(EpollTimeout::ZERO, &mut |peer, header: &Header, bytes: &[u8]| {
            deliver(peer, header, bytes.into());
        });
        self.quiet = (!came).then_some(now);
        // After the look: what has come in time counts, however late this rank looks.
        if now.saturating_duration_since(self.timers) >= TIMERS {
            self.timers = now;
            self.advance_calls(now);
            self.turn_away_the_late(now);
        }
        match self.broken.pop_front() {
            Some(broken) => Err(broken),
            None => Ok(came),
        }
    }
}

impl Drop for Tcp {
    /// Sends what was accepted, and waits until the peers' kernels have it: a connection that is closed while something unread
    /// has come on it is reset, and what was on its way is lost.
    fn drop(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        let tick = EpollTimeout::from(1u8);
        while self.is_sending() && Instant::now() < end {
            self.look(tick, &mut |_, _, _| {});
            self.advance_calls(Instant::now());
        }
        self.listener = None;
        self.connections().for_each(Connection::shut);
        while self.connections().any(|connection| !tcp::is_delivered(connection)) && Instant::now() < end {
            self.look(tick, &mut |_, _, _| {});
        }
    }
}

#[cfg(test)]
mod tests;
