//! This node's ranks.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{Leader, Role, plain_frame};
use crate::core::{Fault, FaultKind};
use crate::local;
use crate::message::ToMember;

impl Leader {
    pub(super) fn admit_member(&mut self, id: u64, process: i32, hello: &[u8; local::HELLO]) -> bool {
        let Some((rank, local)) = local::check(&self.identity, &self.secret, hello) else {
            self.remove(id);
            return false;
        };
        if let Err(why) = self.core.local_joined(local, rank) {
            let node = self.identity.node_index;
            let text = format!("this process can't be rank {rank}: {why}");
            let fault = Fault { kind: FaultKind::Missing, rank: Some(rank), node, text };
            self.tell(id, &ToMember::Fault(fault), None);
            self.remove(id);
            return false;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        connection.role = Role::Member { local, process };
        self.members.insert(local, id);
        self.strangers[0].remove(&id);
        if self.core.fault().is_some() && id != self.own {
            self.tell_fault(id);
        }
        if self.members.len() == self.layout.local_size() as usize {
            self.local = None;
        }
        true
    }

    pub(super) fn tell(&mut self, id: u64, message: &ToMember, descriptor: Option<Rc<OwnedFd>>) {
        self.queue(id, plain_frame(&message.encode()), descriptor);
        self.flush(id);
    }

    fn tell_fault(&mut self, id: u64) {
        if let Some(fault) = self.core.fault().cloned() {
            self.tell(id, &ToMember::Fault(fault), None);
        }
    }

    /// A fault came: all other ranks of this node hear of it at once.
    pub(super) fn tell_others_of_fault(&mut self) {
        let others: Vec<u64> = self.members.values().copied().filter(|id| *id != self.own).collect();
        for id in others {
            self.tell_fault(id);
        }
    }

    /// This process's own rank hears of a fault last.
    pub(super) fn tell_own_rank_of_fault(&mut self) {
        let now = self.now();
        let held = self.hold_end().is_some_and(|end| now < end);
        let is_member = self.members.values().any(|id| *id == self.own);
        if self.core.fault().is_some() && !self.own_told && !held && is_member {
            self.own_told = true;
            self.tell_fault(self.own);
        }
    }

    pub(super) fn tell_all(&mut self, message: &ToMember, descriptor: Option<&Rc<OwnedFd>>) {
        let frame = plain_frame(&message.encode());
        let mut members: Vec<u64> = self.members.values().copied().collect();
        // This process's own rank last: the process may go on and end as soon as it has it.
        members.sort_by_key(|id| *id == self.own);
        for id in members {
            self.queue(id, Rc::clone(&frame), descriptor.cloned());
            self.flush(id);
        }
    }
}
