//! The thread that makes a rank's connections, so that a rank that computes answers too. It also hears what happens to ports.
//!
//! It is on no packet's way: it sleeps until a datagram comes, the rank wishes something, the device tells something, or something must be
//! said again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use roce_bootstrap::Secret;
use roce_types::Gid;
use roce_verbs::{Connection, Mtu, PacketPair};

use super::desk::{Desk, News, Wish};
use super::handshake::{End, Handshake, Todo, Word};
use super::lanes::Peer;
use super::port::{ADDRESSES, Port};
use super::words::{self, Way};
use crate::connect::{MOST_READS, PSN_MASK, random_psn};
use crate::error::chain;

/// How often datagrams are looked for again before something else has its turn.
const TURNS: u32 = 8;

/// A port that was away for a moment has its address and its route back one after the other, and its events come later: so long it is tried to
/// connect again where there was a connection before, as often as this. Nothing else is done meanwhile.
const SETTLING: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a rank gets at most to take a packet that came early.
const HEAD_START: Duration = Duration::from_millis(1);

/// How a peer is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// The port here.
    pub(super) port: usize,
    pub(super) gid: Gid,
    /// Of its datagrams' queue pair.
    pub(super) number: u32,
    pub(super) key: u32,
}

/// A peer that there is, or will be, a connection to, over one of the rails.
struct Acquaintance {
    /// The connection's number.
    era: u32,
    handshake: Handshake,
    /// What its end was connected as, once it is, and the packets that the peer has received over connections before this one.
    connected: Option<(Box<Connection>, u64)>,
    /// Until it is ready.
    pair: Option<PacketPair>,
    /// Why the last datagram could not be sent.
    trouble: Option<String>,
}

/// Which connection the rank wants.
enum Wanted {
    /// The first, with the first packet or without.
    First(Vec<u8>),
    /// Another one, after those over which so many packets came.
    Next(u64),
}

pub(super) struct Service {
    rank: u32,
    secret: Secret,
    desk: Arc<Desk>,
    ports: Vec<Port>,
    /// By rank, and by the rails that both have.
    routes: Vec<Vec<Route>>,
    peers: BTreeMap<Peer, Acquaintance>,
    /// Those that something must perhaps be said to again.
    unsettled: BTreeSet<Peer>,
    /// Those that the rank wants a connection to, once the port can be used.
    wanted: BTreeMap<Peer, Wanted>,
    /// Peers whose addresses are looked up while there is nothing else to do, the last one first.
    unknown: Vec<Route>,
    /// The desk's bell, when this thread slept last.
    has_rung: bool,
}

impl Service {
    /// # Errors
    /// If the operating system gives no thread.
    pub(super) fn start(
        rank: u32,
        secret: Secret,
        desk: Arc<Desk>,
        ports: Vec<Port>,
        routes: Vec<Vec<Route>>,
    ) -> std::io::Result<JoinHandle<()>> {
        let (peers, unsettled, wanted) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let unknown = first_addresses(rank, &routes, ports.len());
        let has_rung = false;
        let mut service =
            Self { rank, secret, desk, ports, routes, peers, unsettled, wanted, unknown, has_rung };
        // Signals are for the program's threads: the new thread inherits that none comes to it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let started = std::thread::Builder::new().name("roce-verbs".to_owned()).spawn(move || service.run());
        before.thread_set_mask()?;
        started
    }

    fn run(&mut self) {
        self.rehearse();
        loop {
            let now = Instant::now();
            // First, for a message may wait for what is wished.
            for wish in self.desk.take_wishes() {
                match wish {
                    Wish::Open { peer, early } => _ = self.wanted.insert(peer, Wanted::First(early)),
                    Wish::Again { peer, received } => {
                        if let Some(port) = self.port_of(peer) {
                            port.suspect(now);
                        }
                        self.wanted.insert(peer, Wanted::Next(received));
                    }
                    Wish::End { peer, why } => self.end(peer, why, now),
                    Wish::Heard(peer) => {
                        let todo = self.peers.get_mut(&peer).map(|peer| peer.handshake.hear_data());
                        self.act(peer, todo.unwrap_or_default());
                    }
                    Wish::Stop => return,
                }
            }
            self.ask_all(now);
            self.hear_all(now);
            for number in 0..self.ports.len() {
                let happened = self.ports[number].look(now);
                for (pair, why) in happened.failed {
                    let why = format!("its queue pair failed ({why})");
                    self.desk.tell(News::PairLost { port: number, number: pair, why });
                }
                if let Some(why) = happened.lost {
                    self.desk.tell(News::PortLost { port: number, why });
                }
                if happened.is_back {
                    self.refuse_all(number);
                }
            }
            // Again, for a port may just have come back.
            self.ask_all(now);
            for peer in self.unsettled.clone() {
                let todo = self.peers.get_mut(&peer).map(|peer| peer.handshake.tick(now));
                self.act(peer, todo.unwrap_or_default());
            }
            if !self.look_up_one() {
                self.sleep();
            }
        }
    }

    /// Makes for each port what a connection needs of it, and says a word to itself, which nobody takes notice of: what is done for
    /// the first time takes several times as long, and should not be a peer's first message.
    fn rehearse(&mut self) {
        let way = Way { from: self.rank, to: self.rank, lane: 0, era: 0 };
        let bytes = words::write(&self.secret, way, &Word::Hello(Vec::new()));
        for (number, port) in self.ports.iter_mut().enumerate() {
            port.rehearse(number, &bytes);
        }
    }

    /// Looks up one peer's address, if there is one to be looked up. Where one can't be reached none is looked up before it is needed: the
    /// kernel waits a second for an answer, and so do peers that want a connection meanwhile.
    fn look_up_one(&mut self) -> bool {
        let Some(route) = self.unknown.pop() else { return false };
        if self.ports[route.port].look_up(&route).is_err() {
            self.unknown.clear();
        }
        true
    }

    /// Until there is something to do.
    fn sleep(&mut self) {
        // Not as soon as it has rung: a message may have waited for what was wished.
        if self.has_rung {
            self.desk.hush();
            self.has_rung = false;
            if self.desk.has_wishes() {
                return;
            }
        }
        let said_again = self.unsettled.iter().filter_map(|peer| self.peers.get(peer)?.handshake.due());
        let due = said_again.chain(self.ports.iter().filter_map(Port::due)).min();
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
        // Rounded up, so as not to come too early again and again.
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let bell = PollFd::new(self.desk.bell(), PollFlags::POLLIN);
        let of_ports = self.ports.iter().flat_map(Port::descriptors);
        let of_ports = of_ports.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let mut all: Vec<PollFd> = std::iter::once(bell).chain(of_ports).collect();
        // An error here is an interruption, or too little memory: looking again is right.
        let _ = poll(&mut all, timeout);
        self.has_rung = all.first().and_then(PollFd::any) == Some(true);
    }

    /// Until none comes, for the next one is often here when one has been answered; but something else may be due too.
    fn hear_all(&mut self, now: Instant) {
        for turn in 0..=TURNS {
            let mut any = false;
            for number in 0..self.ports.len() {
                for datagram in self.ports[number].hear(turn == TURNS) {
                    any = true;
                    self.hear(&datagram, now);
                }
            }
            if !any {
                return;
            }
        }
    }

    /// For all that the rank wants.
    fn ask_all(&mut self, now: Instant) {
        for (peer, wanted) in std::mem::take(&mut self.wanted) {
            self.ask(peer, wanted, now);
        }
    }

    /// The rank wants a connection, the first or the next.
    fn ask(&mut self, peer: Peer, wanted: Wanted, now: Instant) {
        let era = match self.peers.get(&peer) {
            None => 0,
            // The peer has asked already.
            Some(_) if matches!(wanted, Wanted::First(_)) => return,
            // The rank has been told, or will be.
            Some(acquaintance) if acquaintance.handshake.refusal().is_some() => return,
            Some(acquaintance) => acquaintance.era + 1,
        };
        let Some(port) = self.port_of(peer) else { return };
        if port.now().is_err() || port.is_lost() {
            // Who is told that a port is lost loses all its peers.
            port.wait_for(now);
            self.wanted.insert(peer, wanted);
            return;
        }
        let received = match wanted {
            // The peer makes its end meanwhile.
            Wanted::First(early) => {
                _ = self.send(peer, era, &Word::Hello(early));
                self.desk.tell(News::Greeted);
                0
            }
            // Its rank has to take the old one down first.
            Wanted::Next(received) => received,
        };
        match self.make_end(peer, era, received) {
            Ok((end, pair)) => {
                let (handshake, todo) = Handshake::ask(self.rank, peer.rank, end, now);
                self.meet(peer, era, handshake, Some(pair), todo);
            }
            Err(why) => {
                let (handshake, todo) = Handshake::refuse(self.rank, peer.rank, why, now);
                self.meet(peer, era, handshake, None, todo);
            }
        }
    }

    /// The rank wants no connection to a peer any more.
    fn end(&mut self, peer: Peer, why: String, now: Instant) {
        self.wanted.remove(&peer);
        match self.peers.get_mut(&peer) {
            Some(acquaintance) => {
                let todo = acquaintance.handshake.end(why);
                self.act(peer, todo);
                if let Some(acquaintance) = self.peers.get_mut(&peer) {
                    acquaintance.pair = None;
                }
            }
            None => {
                let (handshake, _) = Handshake::refuse(self.rank, peer.rank, why, now);
                self.meet(peer, 0, handshake, None, Todo::default());
            }
        }
    }

    /// A port that was lost can be used again. Peers may not know yet that their connections are over.
    fn refuse_all(&mut self, port: usize) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            if self.route(peer).is_some_and(|route| route.port == port)
                && let Some(acquaintance) = self.peers.get(&peer)
                && let Some(word) = acquaintance.handshake.refusal()
            {
                self.say(peer, acquaintance.era, &word);
            }
        }
    }

    /// A datagram came, from whoever.
    fn hear(&mut self, datagram: &[u8], now: Instant) {
        let Some((Way { from: rank, to, lane, era }, word)) = words::read(&self.secret, datagram) else {
            return;
        };
        let from = Peer { rank, lane };
        // While the port can't be used nothing can be answered, and all is said again.
        if to != self.rank || self.port_of(from).is_none_or(|port| port.now().is_err()) {
            return;
        }
        match (self.peers.get_mut(&from), word) {
            (Some(peer), word) if peer.era == era => {
                let todo = peer.handshake.hear(&word, now);
                self.act(from, todo);
            }
            (Some(peer), Word::Request(_)) if peer.era < era => self.asked_again(from, era),
            (None, Word::Request(theirs)) if era == 0 => match self.make_end(from, 0, 0) {
                Ok((end, pair)) => {
                    let (handshake, todo) = Handshake::answer(self.rank, rank, end, theirs, now);
                    self.meet(from, 0, handshake, Some(pair), todo);
                }
                Err(why) => {
                    let (handshake, todo) = Handshake::refuse(self.rank, rank, why, now);
                    self.meet(from, 0, handshake, None, todo);
                }
            },
            (None, Word::Hello(early)) if era == 0 => self.greeted(from, early, now),
            // Of a connection that is over.
            _ => {}
        }
    }

    /// A peer that nothing was known of will ask for a connection, and may have sent its first packet before. That is told at once: to make an
    /// end takes longer than the packet's way.
    fn greeted(&mut self, peer: Peer, early: Vec<u8>, now: Instant) {
        let received = u64::from(!early.is_empty());
        if received > 0 {
            self.desk.tell_early(peer.rank, early);
            // Perhaps the rank has this thread's CPU, and would get it when the end is made.
            self.desk.wait_for_delivery(HEAD_START);
        }
        match self.make_end(peer, 0, received) {
            Ok((end, pair)) => {
                let handshake = Handshake::expect(self.rank, peer.rank, end, now);
                self.meet(peer, 0, handshake, Some(pair), Todo::default());
            }
            Err(why) => {
                let (handshake, todo) = Handshake::refuse(self.rank, peer.rank, why, now);
                self.meet(peer, 0, handshake, None, todo);
            }
        }
    }

    /// A peer wants another connection: its end of the one that stands here is no more. The rank has to take its own down first, for only
    /// then it knows what has come.
    fn asked_again(&mut self, peer: Peer, era: u32) {
        let Some(acquaintance) = self.peers.get_mut(&peer) else { return };
        if let Some(word) = acquaintance.handshake.refusal() {
            return self.say(peer, era, &word);
        }
        // It has connected, or it would not know of the one that it wants no more.
        let todo = acquaintance.handshake.hear_data();
        self.act(peer, todo);
        self.desk.tell(News::Asked { peer, era });
        self.say(peer, era, &Word::Later);
    }

    fn meet(&mut self, peer: Peer, era: u32, handshake: Handshake, pair: Option<PacketPair>, todo: Todo) {
        self.peers.insert(peer, Acquaintance { era, handshake, connected: None, pair, trouble: None });
        self.act(peer, todo);
    }

    fn port_of(&mut self, peer: Peer) -> Option<&mut Port> {
        let port = self.route(peer)?.port;
        self.ports.get_mut(port)
    }

    fn route(&self, peer: Peer) -> Option<&Route> {
        self.routes.get(peer.rank as usize)?.get(usize::from(peer.lane))
    }

    fn make_end(&mut self, peer: Peer, era: u32, received: u64) -> Result<(End, PacketPair), String> {
        let port_number = self.route(peer).ok_or("there is no way to it")?.port;
        let port = &mut self.ports[port_number];
        let now = port.now()?;
        let named = |error: roce_verbs::Error| {
            format!("no queue pair on {}: {}", port.endpoint.nic.port, chain(&error))
        };
        let number = port.endpoint.nic.port.port;
        // No packets come over further ones, so they bring no slots for them.
        let packets = &port.packets;
        let pair = match (peer.lane, era) {
            (0, 0) => packets.pair(number),
            (0, _) => packets.pair_again(number),
            _ => packets.end(number),
        };
        let pair = pair.map_err(named)?;
        port.prepare_later();
        let limits = port.endpoint.limits;
        let end = End {
            qp_number: pair.number(),
            psn: random_psn().map_err(|error| chain(&error))?,
            mtu: now.mtu.bytes(),
            initiator_depth: limits.max_initiator_depth.min(MOST_READS),
            responder_depth: limits.max_responder_depth.min(MOST_READS),
            received,
        };
        self.desk.enter(port_number, pair.number(), peer.rank);
        Ok((end, pair))
    }

    fn act(&mut self, peer: Peer, mut todo: Todo) {
        if let Some(theirs) = todo.connect
            && let Err(why) = self.connect(peer, theirs)
            && let Some(acquaintance) = self.peers.get_mut(&peer)
        {
            todo = acquaintance.handshake.give_up(why);
        }
        // A message may wait for it.
        if todo.is_ready
            && let Some(acquaintance) = self.peers.get_mut(&peer)
            && let (Some(pair), Some((asked, received))) =
                (acquaintance.pair.take(), acquaintance.connected.take())
        {
            self.desk.tell(News::Ready { peer, pair, received, asked });
        }
        if let Some(word) = &todo.say
            && let Some(acquaintance) = self.peers.get(&peer)
        {
            self.say(peer, acquaintance.era, word);
        }
        let Some(acquaintance) = self.peers.get_mut(&peer) else { return };
        if let Some(why) = todo.failed {
            acquaintance.pair = None;
            let why = match acquaintance.trouble.take() {
                Some(trouble) => format!("{why}; the last was not sent: {trouble}"),
                None => why,
            };
            self.desk.tell(News::Failed { peer, why });
        }
        if acquaintance.handshake.due().is_some() {
            self.unsettled.insert(peer);
        } else {
            self.unsettled.remove(&peer);
        }
    }

    fn connect(&mut self, peer: Peer, theirs: End) -> Result<(), String> {
        let route = self.route(peer).ok_or("there is no way to it")?.clone();
        let port = &mut self.ports[route.port];
        let mut now = port.now()?;
        let their_mtu = Mtu::from_bytes(theirs.mtu).ok_or("its MTU is none that RoCE has")?;
        let acquaintance = self.peers.get(&peer);
        let (pair, mine, era) = acquaintance
            .and_then(|peer| Some((peer.pair.as_ref()?, peer.handshake.mine(), peer.era)))
            .ok_or("its queue pair is gone")?;
        let end = Instant::now() + SETTLING;
        let connection = loop {
            let connection = Connection {
                port: port.endpoint.nic.port.port,
                local_gid_index: now.gid_index,
                remote_gid: route.gid,
                remote_qp_number: theirs.qp_number,
                local_psn: mine.psn,
                remote_psn: theirs.psn & PSN_MASK,
                path_mtu: now.mtu.min(their_mtu),
                traffic_class: port.class().traffic_class,
                service_level: port.class().service_level,
                initiator_depth: mine.initiator_depth.min(theirs.responder_depth),
                responder_depth: mine.responder_depth.min(theirs.initiator_depth),
            };
            match pair.connect(&connection) {
                Ok(()) => break connection,
                Err(_) if era > 0 && Instant::now() < end => std::thread::sleep(LOOK_AGAIN),
                Err(error) => {
                    let port = &port.endpoint.nic.port;
                    return Err(format!("no connection from {port} to {}: {}", route.gid, chain(&error)));
                }
            }
            now = port.endpoint.now().unwrap_or(now);
        };
        if let Some(acquaintance) = self.peers.get_mut(&peer) {
            acquaintance.connected = Some((Box::new(connection), theirs.received));
        }
        Ok(())
    }

    fn say(&mut self, peer: Peer, era: u32, word: &Word) {
        let trouble = self.send(peer, era, word).err();
        if let Some(acquaintance) = self.peers.get_mut(&peer) {
            acquaintance.trouble = trouble;
        }
    }

    fn send(&mut self, peer: Peer, era: u32, word: &Word) -> Result<(), String> {
        let Peer { rank: to, lane } = peer;
        let bytes = words::write(&self.secret, Way { from: self.rank, to, lane, era }, word);
        let route = self.routes.get(to as usize).and_then(|routes| routes.get(usize::from(lane)));
        let Some(route) = route else { return Ok(()) };
        self.ports[route.port].send(route, &bytes)
    }
}

/// One route to each place that ranks are reached at, as many for each port as it keeps addresses: those of the ranks that follow this one, the
/// nearest last.
fn first_addresses(rank: u32, routes: &[Vec<Route>], ports: usize) -> Vec<Route> {
    let mut seen = vec![BTreeSet::new(); ports];
    let mut is_first = |route: &&Route| {
        let seen = &mut seen[route.port];
        seen.len() < ADDRESSES && seen.insert(route.gid)
    };
    let (before, after) = routes.split_at((rank as usize).min(routes.len()));
    let mut first: Vec<_> =
        after.iter().chain(before).flatten().filter(|route| is_first(route)).cloned().collect();
    first.reverse();
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_up_of_those_that_follow_once_each_and_not_too_many() {
        let route = |rank: u32, port: usize| {
            let mut gid = Gid::default();
            // Two ranks of a node have one.
            gid.0[12..].copy_from_slice(&(rank / 2).to_be_bytes());
            Route { port, gid, number: rank, key: 0 }
        };
        let of = |rank: u32, size: u32| {
            let routes: Vec<Vec<Route>> =
                (0..size)
                    .map(|other| {
                        if other / 2 == rank / 2 {
                            Vec::new()
                        } else {
                            vec![route(other, 0), route(other, 1)]
                        }
                    })
                    .collect();
            let first = first_addresses(rank, &routes, 2);
            first.iter().rev().map(|route| (route.number, route.port)).collect::<Vec<_>>()
        };
        assert_eq!(of(2, 6), [(4, 0), (4, 1), (0, 0), (0, 1)]);
        assert_eq!(of(5, 6), [(0, 0), (0, 1), (2, 0), (2, 1)]);
        let many = of(9, 1000);
        assert_eq!((many.len(), many[0], many[1]), (2 * ADDRESSES, (10, 0), (10, 1)));
    }
}
