//! Who comes, what each connection says, and how it ends.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Connection, Leader, MOST_STRANGERS, READ, Role, SAME_BUILD, step};
use crate::bootstrap::MOST_BYTES;
use crate::core::{FaultKind, Link};
use crate::handshake::{self, Listener};
use crate::local;
use crate::message::{BetweenLeaders, FromMember, OVERHEAD};
use crate::stream::{Found, Stream};

impl Leader {
    pub(super) fn add(&mut self, stream: Stream, role: Role) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let flags = EpollFlags::EPOLLIN;
        // Without it the connection would be forgotten; then the other end sees it close.
        if self.epoll.add(&stream, EpollEvent::new(flags, id)).is_ok() {
            self.connections.insert(id, Connection { stream, role, asks: false });
        }
        id
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Role> {
        for strangers in &mut self.strangers {
            strangers.remove(&id);
        }
        // Closing takes it out of the epoll set.
        self.connections.remove(&id).map(|connection| connection.role)
    }

    /// A stranger comes; too many are not kept.
    pub(super) fn add_stranger(&mut self, stream: Stream, role: Role, kind: usize) {
        // Of this node's own ranks many may come at the same time.
        let most = self.most_strangers + if kind == 0 { self.layout.local_size() as usize } else { 0 };
        if self.strangers[kind].len() >= most
            && let Some((&oldest, _)) = self.strangers[kind].first_key_value()
        {
            self.refused += 1;
            self.remove(oldest);
        }
        let now = self.now();
        let id = self.add(stream, role);
        self.strangers[kind].insert(id, now);
    }

    pub(super) fn accept_local(&mut self) {
        for _ in 0..MOST_STRANGERS {
            match self.local.as_ref().map(UnixListener::accept) {
                None => return,
                Some(Ok((stream, _))) => {
                    if let Ok(process) = local::trust(&stream) {
                        self.add_stranger(Stream::new(stream.into()), Role::Local(process), 0);
                    }
                }
                Some(Err(error)) if self.may_accept_after(&error) => {}
                Some(Err(_)) => return,
            }
        }
    }

    pub(super) fn accept_network(&mut self) {
        for _ in 0..MOST_STRANGERS {
            match self.network.as_ref().map(TcpListener::accept) {
                None => return,
                Some(Ok((stream, _))) => {
                    if stream.set_nodelay(true).is_ok() {
                        self.add_stranger(Stream::new(stream.into()), Role::Network(None), 1);
                    }
                }
                Some(Err(error)) if self.may_accept_after(&error) => {}
                Some(Err(_)) => return,
            }
        }
    }

    /// Whether the next caller can be taken. Where there are no more descriptors, the oldest stranger is turned away for it.
    pub(super) fn may_accept_after(&mut self, error: &std::io::Error) -> bool {
        let full = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
        );
        if !full {
            // Or the caller has gone already.
            return error.kind() != ErrorKind::WouldBlock;
        }
        let oldest = self.strangers.iter().filter_map(|kind| kind.first_key_value()).min();
        if let Some((&oldest, _)) = oldest {
            self.turn_away(oldest);
            return true;
        }
        let text = format!("its leader can't take another connection: {error}; raise its limits (ulimit -n)");
        self.core.give_up(self.fault(FaultKind::Lost, text));
        // Otherwise whoever waits there keeps this thread busy.
        (self.local, self.network) = (None, None);
        false
    }

    /// Something happened on a connection.
    pub(super) fn serve(&mut self, id: u64, events: EpollFlags, buffer: &mut [u8]) {
        if events.contains(EpollFlags::EPOLLOUT) && !self.flush(id) {
            return;
        }
        while self.read(id, buffer) {}
    }

    /// Reads once. Whether to read on: somebody has just proven who he is, and may have said more.
    pub(super) fn read(&mut self, id: u64, buffer: &mut [u8]) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let most = match &connection.role {
            // Of a stranger no more is kept than it has to say.
            Role::Local(_) => local::HELLO,
            Role::Network(None) => handshake::HELLO,
            Role::Network(Some(_)) => handshake::LAST,
            Role::Calling { .. } => handshake::ANSWER,
            Role::Member { .. } | Role::Peer { .. } => READ,
        };
        let most = most.saturating_sub(if most < READ { connection.stream.inbox().len() } else { 0 });
        match connection.stream.read(&mut buffer[..most]) {
            Found::Nothing => return false,
            Found::End(why) => {
                self.closed(id, &why);
                return false;
            }
            Found::Bytes(_) => self.listen_to(id),
        }
        let role = self.connections.get(&id).map(|connection| &connection.role);
        most < READ && matches!(role, Some(Role::Member { .. } | Role::Peer { .. }))
    }

    /// Takes what has come whole.
    pub(super) fn listen_to(&mut self, id: u64) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let went_on = match &mut connection.role {
                Role::Local(process) => match connection.stream.inbox().take() {
                    Some(hello) => {
                        let process = *process;
                        self.admit_member(id, process, &hello)
                    }
                    None => false,
                },
                Role::Network(listener @ None) => match connection.stream.inbox().take() {
                    Some(hello) => {
                        let nonce = handshake::nonce();
                        let (node, rank, step) =
                            (self.identity.node_index, self.identity.rank, step(&self.identity));
                        let new = nonce.and_then(|nonce| Listener::new(step, node, rank, nonce, &hello));
                        let answer = new.as_ref().map(|new| new.answer(&self.secret));
                        *listener = new.map(Box::new);
                        match answer {
                            Some(answer) => self.send(id, &answer),
                            None => self.turn_away(id),
                        }
                        false
                    }
                    None => false,
                },
                Role::Network(Some(listener)) => match connection.stream.inbox().take() {
                    Some(last) => {
                        let keys = listener.check(&self.secret, &last);
                        let call = listener.call();
                        self.admit_caller(id, call, keys)
                    }
                    None => false,
                },
                Role::Calling { round, caller } => match connection.stream.inbox().take() {
                    Some(answer) => {
                        let (round, checked) = (*round, caller.check(&self.secret, &answer));
                        self.found(id, round, checked)
                    }
                    None => false,
                },
                Role::Member { local, .. } => {
                    let local = *local;
                    match connection.stream.inbox().frame(MOST_BYTES + OVERHEAD, 0) {
                        Ok(None) => false,
                        Ok(Some(payload)) => self.hear_member(local, &payload),
                        Err(length) => {
                            connection.stream.deafen();
                            self.core.local_failed(local, &format!("it sent {length} bytes at once"));
                            false
                        }
                    }
                }
                Role::Peer { link, keys, heard, unconfirmed, .. } => {
                    let link = *link;
                    *heard = self.start.elapsed();
                    let most = (self.identity.size as usize + self.identity.nodes.len())
                        .saturating_mul(MOST_BYTES + 16)
                        .saturating_add(OVERHEAD);
                    match connection.stream.inbox().frame(most, crate::frame::TAG) {
                        Ok(None) => false,
                        Ok(Some(frame)) => {
                            let opened = frame
                                .split_last_chunk()
                                .filter(|(payload, tag)| keys.receive.open(payload, tag));
                            let message = opened.map(|(payload, _)| BetweenLeaders::decode(payload));
                            if message.is_none() {
                                connection.stream.deafen();
                            } else if let Some(rank) = unconfirmed.take() {
                                self.early.remove(&link);
                                // It is told but once, for whoever is found ends the search.
                                let _ = self.core.peer_joined(link, rank);
                            }
                            self.hear_peer(link, message)
                        }
                        Err(length) => {
                            connection.stream.deafen();
                            let why = format!("a frame of {length} bytes is longer than the {most} allowed");
                            self.core.peer_failed(link, &why);
                            false
                        }
                    }
                }
            };
            if !went_on {
                return;
            }
        }
    }

    pub(super) fn hear_member(&mut self, local: u32, payload: &[u8]) -> bool {
        let now = self.now();
        match FromMember::decode(payload) {
            Ok(message) => self.core.local_message(now, local, message),
            Err(what) => {
                self.core
                    .local_failed(local, &format!("its message could not be read: {what}; {SAME_BUILD}"));
            }
        }
        true
    }

    pub(super) fn hear_peer(
        &mut self,
        link: Link,
        message: Option<Result<BetweenLeaders, &'static str>>,
    ) -> bool {
        let now = self.now();
        match message {
            Some(Ok(message)) => self.core.peer_message(now, link, message),
            Some(Err(what)) => {
                self.core.peer_failed(link, &format!("its message could not be read: {what}; {SAME_BUILD}"));
            }
            None => {
                let why = "a frame is not authentic: it was changed, repeated or made up on the way";
                self.core.peer_failed(link, why);
                return false;
            }
        }
        true
    }

    /// A connection is over.
    pub(super) fn closed(&mut self, id: u64, why: &str) {
        match self.remove(id) {
            None | Some(Role::Local(_)) => {}
            Some(Role::Network(_)) => self.refused += 1,
            Some(Role::Member { local, .. }) => self.core.local_closed(local, why),
            Some(Role::Peer { link, unconfirmed: Some(_), .. }) => {
                self.peers.remove(&link);
                self.counters.connections_made -= 1;
                let now = self.now();
                self.searches[link.round].again(now);
                self.search(now, link.round);
            }
            Some(Role::Peer { link, .. }) => self.core.peer_closed(link, why),
            Some(Role::Calling { round, .. }) => {
                let now = self.now();
                self.searches[round].failed(id, false, why.trim_start_matches("the connection broke: "));
                self.search(now, round);
            }
        }
    }

    pub(super) fn turn_away(&mut self, id: u64) {
        self.refused += 1;
        self.remove(id);
    }
}
