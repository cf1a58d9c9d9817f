//! RDMA writes into windows: memory of a window is shown to the NICs, and peers that know its keys put to it with no call of its owner's.
//!
//! Short puts are copied into slots, as packets are, and stay there until the peer's device has them: when a connection fails, they go over
//! the next one again. That changes nothing that anybody may rely on, for what was put is not said to be there before it has arrived.

#![expect(unsafe_code, reason = "registers memory that peers write to")]

use std::rc::Rc;

use roce_verbs::{Access, Movement, Registration};

use super::link::State;
use super::transfers::{Transfer, register_to_send};
use super::{REGISTERED, SLOT, Verbs};
use crate::messages::Lent;
use crate::transport::{Broken, Shown, There};
use crate::windows::Memory;

/// A window's memory, as the NICs see it.
#[derive(Debug)]
pub(super) struct Visible {
    // They end before the memory may.
    _registrations: Vec<Option<Registration>>,
    _memory: Rc<Memory>,
}

impl Verbs {
    /// As [`show`](crate::transport::Transport::show) says.
    pub(super) fn show_memory(&mut self, context: u32, memory: &Rc<Memory>) -> Option<Shown> {
        let registrations: Vec<_> = (0..self.queues.len()).map(|port| self.register(port, memory)).collect();
        let keys: Vec<_> =
            registrations.iter().map(|one| one.as_ref().map(Registration::remote_key)).collect();
        keys.iter().any(Option::is_some).then(|| {
            let visible = Visible { _registrations: registrations, _memory: Rc::clone(memory) };
            self.visible.insert(context, visible);
            Shown::new(memory.words().as_ptr().addr() as u64, keys)
        })
    }

    /// Nothing where no peer comes in by this port, or where the system refuses: then puts are messages.
    fn register(&self, port: usize, memory: &Memory) -> Option<Registration> {
        if !self.links.iter().flatten().any(|link| link.port == port) {
            return None;
        }
        let words = memory.words();
        let domain = &self.endpoints[port].domain;
        // SAFETY: the memory stays as it is as long as `Visible`, which has the registration, keeps it. It is atomic words, which are
        // accessed as such by whoever has it mapped.
        let registration = unsafe {
            Registration::new(domain, words.as_ptr().cast(), size_of_val(words), Access::PeersReadWrite)
        };
        registration.ok()
    }

    /// As [`try_put`](crate::transport::Transport::try_put) says.
    pub(super) fn put(&mut self, peer: u32, there: There, bytes: &[u8]) -> Result<usize, Broken> {
        if !self.open(peer)? {
            return Ok(0);
        }
        let bytes = &bytes[..bytes.len().min(SLOT)];
        loop {
            match self.put_now(peer, there, bytes) {
                Ok(true) => return Ok(bytes.len()),
                // What has arrived is not looked at before its slot is needed.
                Ok(false) if self.find_room(peer) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.has_failed(peer, &error);
                    return Ok(0);
                }
            }
        }
    }

    fn put_now(&mut self, peer: u32, there: There, bytes: &[u8]) -> roce_verbs::Result<bool> {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return Ok(false) };
        let State::Up(pair) = &link.state else { return Ok(false) };
        let is_put = self.queues[link.port].put(pair, bytes, there.place())?;
        link.put += u64::from(is_put);
        Ok(is_put)
    }

    /// As [`write`](crate::transport::Transport::write) says.
    pub(super) fn start_write(
        &mut self,
        peer: u32,
        there: There,
        memory: &Lent,
        operation: u32,
    ) -> Result<bool, Broken> {
        let length = memory.bytes().len();
        if length < REGISTERED || !self.open(peer)? {
            return Ok(false);
        }
        let Some(link) = self.link(peer) else { return Ok(false) };
        // Where no more memory may be locked, it goes in pieces.
        let Ok(registration) = register_to_send(&self.registrations[link.port], memory) else {
            return Ok(false);
        };
        let transfer = Transfer::new(peer, Movement::Write, registration, there.place());
        self.transfers.add(operation, transfer, length, false);
        self.pump_transfers();
        Ok(true)
    }
}
