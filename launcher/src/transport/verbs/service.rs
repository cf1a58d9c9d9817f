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
use roce_verbs::{Address, Connection, Mtu, PacketPair};

use super::desk::{Desk, News, Wish};
use super::handshake::{End, Handshake, Todo, Word};
use super::port::Port;
use super::words::{self, Way};
use crate::connect::{MOST_READS, PSN_MASK, random_psn};
use crate::error::chain;

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

/// A peer that there is, or will be, a connection to.
struct Acquaintance {
    handshake: Handshake,
    /// Until it is ready.
    pair: Option<PacketPair>,
    address: Option<Address>,
    /// Why the last datagram could not be sent.
    trouble: Option<String>,
}

pub(super) struct Service {
    rank: u32,
    secret: Secret,
    desk: Arc<Desk>,
    ports: Vec<Port>,
    /// By rank.
    routes: Vec<Option<Route>>,
    peers: BTreeMap<u32, Acquaintance>,
    /// Those that something must perhaps be said to again.
    unsettled: BTreeSet<u32>,
}

impl Service {
    /// # Errors
    /// If the operating system gives no thread.
    pub(super) fn start(
        rank: u32,
        secret: Secret,
        desk: Arc<Desk>,
        ports: Vec<Port>,
        routes: Vec<Option<Route>>,
    ) -> std::io::Result<JoinHandle<()>> {
        let (peers, unsettled) = (BTreeMap::new(), BTreeSet::new());
        let mut service = Self { rank, secret, desk, ports, routes, peers, unsettled };
        // Signals are for the program's threads: the new thread inherits that none comes to it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let started = std::thread::Builder::new().name("roce-verbs".to_owned()).spawn(move || service.run());
        before.thread_set_mask()?;
        started
    }

    fn run(&mut self) {
        loop {
            let now = Instant::now();
            for number in 0..self.ports.len() {
                for datagram in self.ports[number].hear() {
                    self.hear(&datagram, now);
                }
                let (failed, lost) = self.ports[number].look(now);
                for (pair, why) in failed {
                    let why = format!("its queue pair failed ({why})");
                    self.desk.tell(News::PairLost { port: number, number: pair, why });
                }
                if let Some(why) = lost {
                    self.desk.tell(News::PortLost { port: number, why });
                }
            }
            for wish in self.desk.take_wishes() {
                match wish {
                    Wish::Open(peer) => self.ask(peer, now),
                    Wish::Heard(peer) => {
                        let todo = self.peers.get_mut(&peer).map(|peer| peer.handshake.hear_data());
                        self.act(peer, todo.unwrap_or_default());
                    }
                    Wish::Stop => return,
                }
            }
            for peer in self.unsettled.clone() {
                let todo = self.peers.get_mut(&peer).map(|peer| peer.handshake.tick(now));
                self.act(peer, todo.unwrap_or_default());
            }
            self.sleep();
        }
    }

    /// Until there is something to do.
    fn sleep(&self) {
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
    }

    /// The rank wants a connection.
    fn ask(&mut self, peer: u32, now: Instant) {
        if self.peers.contains_key(&peer) {
            return;
        }
        match self.make_end(peer) {
            Ok((end, pair)) => {
                let (handshake, todo) = Handshake::ask(self.rank, peer, end, now);
                self.meet(peer, handshake, Some(pair), todo);
            }
            Err(why) => {
                let (handshake, todo) = Handshake::refuse(self.rank, peer, why, now);
                self.meet(peer, handshake, None, Todo { say: None, ..todo });
            }
        }
    }

    /// A datagram came, from whoever.
    fn hear(&mut self, datagram: &[u8], now: Instant) {
        let Some((Way { from, to }, word)) = words::read(&self.secret, datagram) else { return };
        if to != self.rank || self.route(from).is_none() {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            let todo = peer.handshake.hear(&word, now);
            return self.act(from, todo);
        }
        let Word::Request(theirs) = word else { return };
        match self.make_end(from) {
            Ok((end, pair)) => {
                let (handshake, todo) = Handshake::answer(self.rank, from, end, theirs, now);
                self.meet(from, handshake, Some(pair), todo);
            }
            Err(why) => {
                let (handshake, todo) = Handshake::refuse(self.rank, from, why, now);
                self.meet(from, handshake, None, todo);
            }
        }
    }

    fn meet(&mut self, peer: u32, handshake: Handshake, pair: Option<PacketPair>, todo: Todo) {
        self.peers.insert(peer, Acquaintance { handshake, pair, address: None, trouble: None });
        self.act(peer, todo);
    }

    fn route(&self, peer: u32) -> Option<&Route> {
        self.routes.get(peer as usize)?.as_ref()
    }

    fn make_end(&mut self, peer: u32) -> Result<(End, PacketPair), String> {
        let port_number = self.route(peer).ok_or("there is no way to it")?.port;
        let port = &mut self.ports[port_number];
        let now = port.now()?;
        let named = |error: roce_verbs::Error| {
            format!("no queue pair on {}: {}", port.endpoint.nic.port, chain(&error))
        };
        let pair = port.packets.pair(port.endpoint.nic.port.port).map_err(named)?;
        let limits = port.endpoint.limits;
        let end = End {
            qp_number: pair.number(),
            psn: random_psn().map_err(|error| chain(&error))?,
            mtu: now.mtu.bytes(),
            initiator_depth: limits.max_initiator_depth.min(MOST_READS),
            responder_depth: limits.max_responder_depth.min(MOST_READS),
        };
        self.desk.enter(port_number, pair.number(), peer);
        Ok((end, pair))
    }

    fn act(&mut self, peer: u32, mut todo: Todo) {
        if let Some(theirs) = todo.connect
            && let Err(why) = self.connect(peer, theirs)
            && let Some(acquaintance) = self.peers.get_mut(&peer)
        {
            todo = acquaintance.handshake.give_up(why);
        }
        if let Some(word) = &todo.say {
            self.say(peer, word);
        }
        let Some(acquaintance) = self.peers.get_mut(&peer) else { return };
        if let Some(why) = todo.failed {
            (acquaintance.pair, acquaintance.address) = (None, None);
            let why = match acquaintance.trouble.take() {
                Some(trouble) => format!("{why}; the last was not sent: {trouble}"),
                None => why,
            };
            self.desk.tell(News::Failed { peer, why });
        } else if todo.is_ready
            && let Some(pair) = acquaintance.pair.take()
        {
            acquaintance.address = None;
            self.desk.tell(News::Ready { peer, pair });
        }
        if acquaintance.handshake.due().is_some() {
            self.unsettled.insert(peer);
        } else {
            self.unsettled.remove(&peer);
        }
    }

    fn connect(&mut self, peer: u32, theirs: End) -> Result<(), String> {
        let route = self.route(peer).ok_or("there is no way to it")?.clone();
        let port = &mut self.ports[route.port];
        let now = port.now()?;
        let their_mtu = Mtu::from_bytes(theirs.mtu).ok_or("its MTU is none that RoCE has")?;
        let acquaintance = self.peers.get(&peer);
        let (pair, mine) = acquaintance
            .and_then(|peer| Some((peer.pair.as_ref()?, peer.handshake.mine())))
            .ok_or("its queue pair is gone")?;
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
        let named = |error| {
            format!("no connection from {} to {}: {}", port.endpoint.nic.port, route.gid, chain(&error))
        };
        pair.connect(&connection).map(drop).map_err(named)
    }

    fn say(&mut self, peer: u32, word: &Word) {
        let bytes = words::write(&self.secret, Way { from: self.rank, to: peer }, word);
        let Some(Some(route)) = self.routes.get(peer as usize) else { return };
        let port = &mut self.ports[route.port];
        let Some(acquaintance) = self.peers.get_mut(&peer) else { return };
        if acquaintance.address.is_none() {
            acquaintance.address = match port.address(route) {
                Ok(address) => Some(address),
                Err(why) => return acquaintance.trouble = Some(why),
            };
        }
        if let Some(address) = &acquaintance.address {
            acquaintance.trouble = port.send(address, route, &bytes).err();
        }
    }
}
