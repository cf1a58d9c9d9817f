//! Other nodes' leaders: whom to call, and who may come in.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::resolver::Resolver;
use super::{Connection, Leader, NETWORK, RESOLVED, Role, describe, step};
use crate::calls::Search;
use crate::core::{Fault, FaultKind, Link, Way};
use crate::handshake::{self, Call, Caller, Keys};
use crate::message::BetweenLeaders;
use crate::stream::Stream;
use crate::tcp;

impl Leader {
    pub(super) fn meet_neighbours(&mut self) {
        let (node, name) = (self.identity.node_index, self.identity.node_name().to_owned());
        let ports = self.ports(node);
        match tcp::listen(&ports) {
            Ok(listener) => {
                let added = self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, NETWORK));
                if added.is_ok() {
                    self.network = Some(listener);
                }
            }
            Err(error) => {
                let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                let text = format!(
                    "{name} found no free port among {ports}: every one is in use, or the range is not allowed there ({error})"
                );
                // The neighbours are not told: there is no way to.
                self.core.give_up(Fault { kind: FaultKind::Missing, rank: None, node, text });
                return;
            }
        }
        let Ok((bell, ring)) = UnixStream::pair() else { return };
        if bell.set_nonblocking(true).is_err()
            || self.epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, RESOLVED)).is_err()
        {
            return;
        }
        let (sender, answers) = mpsc::channel();
        let resolver = Resolver { answers, sender, bell, ring };
        for round in 0..self.layout.rounds() {
            let node = self.layout.neighbour(Link { way: Way::Behind, round });
            let name = self.layout.node_name(node).to_owned();
            let mut search = Search::new(self.ports(node));
            match self.addresses.known(&name) {
                Some(addresses) => search.resolved(Ok(addresses)),
                None => resolver.ask(round, name, self.addresses.clone()),
            }
            self.searches.push(search);
        }
        self.resolver = Some(resolver);
        let now = self.now();
        for round in 0..self.searches.len() {
            self.search(now, round);
        }
    }

    pub(super) fn ports(&self, node: u32) -> Vec<u16> {
        let (job, step) = self.identity.job_and_step();
        self.secret.candidate_ports(job, step, node, &self.options.ports)
    }

    pub(super) fn take_addresses(&mut self) {
        let Some(resolver) = &mut self.resolver else { return };
        let mut bytes = [0; 64];
        let _ = std::io::Read::read(&mut resolver.bell, &mut bytes);
        let answers: Vec<_> = resolver.answers.try_iter().collect();
        let now = self.now();
        for (round, addresses) in answers {
            self.searches[round].resolved(addresses);
            self.search(now, round);
        }
    }

    /// Calls whom the search for a round's neighbour names.
    pub(super) fn search(&mut self, now: Duration, round: usize) {
        if self.core.fault().is_some() {
            return;
        }
        while let Some(target) = self.searches[round].next(now) {
            match self.call(round, target) {
                Ok(id) => {
                    self.searches[round].calling(now, id, target);
                    self.flush(id);
                }
                Err(why) => self.searches[round].note(target, false, &why),
            }
        }
    }

    pub(super) fn call(&mut self, round: usize, target: SocketAddr) -> Result<u64, String> {
        let nonce = handshake::nonce().ok_or("no random bytes from the operating system")?;
        let socket = tcp::call(target).map_err(|error| describe(&error))?;
        let caller = Caller::new(
            Call {
                step: step(&self.identity),
                caller_node: self.identity.node_index,
                listener_node: self.layout.neighbour(Link { way: Way::Behind, round }),
                round: u32::try_from(round).unwrap_or(u32::MAX),
                caller_rank: self.identity.rank,
            },
            nonce,
        );
        let mut stream = Stream::new(socket);
        stream.queue(Rc::from(&caller.hello()[..]), None);
        Ok(self.add(stream, Role::Calling { round, caller: Box::new(caller) }))
    }

    /// The one called has answered.
    pub(super) fn found(
        &mut self,
        id: u64,
        round: usize,
        checked: Option<(u32, [u8; handshake::LAST], Keys)>,
    ) -> bool {
        let itself =
            self.connections.get(&id).is_some_and(|found| tcp::is_connected_to_itself(&found.stream));
        let Some((rank, last, keys)) = checked.filter(|_| !itself) else {
            self.remove(id);
            let now = self.now();
            let why = "whoever answered does not know this step's secret";
            self.searches[round].failed(id, !itself, why);
            self.search(now, round);
            return false;
        };
        for other in self.searches[round].found(id) {
            self.remove(other);
        }
        self.queue(id, Rc::from(&last[..]), None);
        self.counters.connections_made += 1;
        self.join_peer(id, Link { way: Way::Behind, round }, rank, keys)
    }

    /// A caller has proven itself, or not.
    pub(super) fn admit_caller(&mut self, id: u64, call: Call, keys: Option<Keys>) -> bool {
        let round = call.round as usize;
        let link = Link { way: Way::Before, round };
        let known = round < self.layout.rounds() && self.layout.neighbour(link) == call.caller_node;
        let Some(keys) = keys.filter(|_| known && !self.peers.contains_key(&link)) else {
            self.turn_away(id);
            return false;
        };
        self.counters.connections_accepted += 1;
        self.strangers[1].remove(&id);
        self.join_peer(id, link, call.caller_rank, keys)
    }

    pub(super) fn join_peer(&mut self, id: u64, link: Link, rank: u32, keys: Keys) -> bool {
        let heard = self.now();
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        // The kernel's own patience would be a quarter of an hour. Heartbeats see to the rest.
        let _ = tcp::limit_silence(&connection.stream, self.options.silence);
        let unconfirmed = (link.way == Way::Behind).then_some(rank);
        connection.role = Role::Peer { link, keys: Box::new(keys), heard, unconfirmed, unacknowledged: None };
        self.peers.insert(link, id);
        if unconfirmed.is_none() {
            if self.core.peer_joined(link, rank).is_err() {
                self.remove(id);
                return false;
            }
            // So that the caller knows that it was let in.
            self.send_peer(link, &BetweenLeaders::Heartbeat);
        }
        for message in self.early.remove(&link).unwrap_or_default() {
            self.send_peer(link, &message);
        }
        if self.peers.len() == 2 * self.layout.rounds() {
            // Everybody is here.
            self.network = None;
            self.resolver = None;
            let strangers: Vec<u64> = self.strangers[1].keys().copied().collect();
            for id in strangers {
                self.remove(id);
            }
        }
        self.flush(id)
    }

    pub(super) fn send_peer(&mut self, link: Link, message: &BetweenLeaders) {
        let Some(&id) = self.peers.get(&link) else {
            self.early.entry(link).or_default().push(message.clone());
            return;
        };
        let Some(Connection { role: Role::Peer { keys, unconfirmed, .. }, .. }) =
            self.connections.get_mut(&id)
        else {
            return;
        };
        if unconfirmed.is_some() && *message != BetweenLeaders::Heartbeat {
            self.early.entry(link).or_default().push(message.clone());
        }
        match keys.send.seal(&message.encode()) {
            Some(frame) => {
                self.counters.messages += 1;
                self.counters.bytes += frame.len() as u64;
                self.queue(id, frame.into(), None);
                self.flush(id);
            }
            None => self.core.peer_failed(link, "what it should get is longer than 4 GiB"),
        }
    }
}
