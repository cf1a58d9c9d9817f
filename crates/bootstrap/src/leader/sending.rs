//! What goes out.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Leader, Role, describe};
use crate::core::{Fault, FaultKind, Link, Output};
use crate::message::{BetweenLeaders, ToMember};
use crate::table;

impl Leader {
    pub(super) fn send(&mut self, id: u64, bytes: &[u8]) {
        self.queue(id, Rc::from(bytes), None);
        self.flush(id);
    }

    pub(super) fn queue(&mut self, id: u64, bytes: Rc<[u8]>, descriptor: Option<Rc<OwnedFd>>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stream.queue(bytes, descriptor);
        }
    }

    /// Sends what can be sent, and asks the kernel to say when there can be more. Whether the connection is still there.
    pub(super) fn flush(&mut self, id: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        if let Err(error) = connection.stream.flush() {
            // What the other end said before it closed may still be read, and says more than this error.
            if matches!(connection.role, Role::Member { .. } | Role::Peer { .. }) {
                return true;
            }
            self.closed(id, &describe(&error));
            return false;
        }
        let waits = connection.stream.is_waiting();
        if waits != connection.asks {
            connection.asks = waits;
            let flags = if waits { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            let _ = self.epoll.modify(&connection.stream, &mut EpollEvent::new(flags, id));
        }
        true
    }

    pub(super) fn do_outputs(&mut self) {
        while let Some(output) = self.core.output() {
            match output {
                Output::Send { link, message } => {
                    if matches!(message, BetweenLeaders::Gathered { .. }) {
                        self.counters.rounds += 1;
                    }
                    self.send_peer(link, &message);
                }
                Output::Deliver { number, table } => {
                    let leader = self.identity.rank;
                    let sealed = table.as_ref().map(|table| table::seal(table)).transpose();
                    match sealed {
                        Ok(file) => {
                            let file = file.map(Rc::new);
                            let (table, counters) = (file.is_some(), self.counters);
                            let done = ToMember::Done { number, leader, table, counters };
                            self.tell_all(&done, file.as_ref());
                        }
                        Err(error) => {
                            let text = format!("its leader could not make the table: {}", describe(&error));
                            self.core.give_up(self.fault(FaultKind::Lost, text));
                        }
                    }
                }
                Output::Fail { fault, except } => {
                    self.failed = self.now();
                    let links: Vec<Link> = self.peers.keys().copied().collect();
                    for link in links.into_iter().filter(|link| Some(*link) != except) {
                        self.send_peer(link, &BetweenLeaders::Fault(fault.clone()));
                    }
                    self.tell_others_of_fault();
                }
                Output::Finished => {}
            }
        }
        self.tell_own_rank_of_fault();
    }

    pub(super) fn fault(&self, kind: FaultKind, text: String) -> Fault {
        Fault { kind, rank: Some(self.identity.rank), node: self.identity.node_index, text }
    }
}
