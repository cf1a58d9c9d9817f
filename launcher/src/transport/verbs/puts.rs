//! RDMA writes into windows: memory of a window is shown to the NICs, and peers that know its keys put to it with no call of its owner's.
//!
//! Short puts are copied into slots, as packets are, and stay there until the peer's device has them: when a connection fails, they go over
//! the next one again. That changes nothing that anybody may rely on, for what was put is not said to be there before it has arrived.

#![expect(unsafe_code, reason = "registers memory that peers write to")]

use std::rc::Rc;

use roce_verbs::{Access, Movement, PacketSlot, Registration};

use super::link::State;
use super::mend::Failure;
use super::transfers::{Transfer, register_to_send};
use super::{REGISTERED, SLOT, Verbs};
use crate::error::chain;
use crate::messages::Lent;
use crate::transport::{Broken, Shown, There};
use crate::windows::Memory;

/// Puts of a connection at the same time.
pub(super) const PUTS: u16 = 8;

/// A put that the peer's device may not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Put {
    pub(super) slot: PacketSlot,
    pub(super) to: (u64, u32),
}

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
        let mut put = self.put_now(peer, there, bytes);
        if let Ok(false) = put {
            // What has arrived is not looked at before its slot is needed.
            put = self.find_room(peer).and_then(|any| Ok(any && self.put_now(peer, there, bytes)?));
        }
        match put {
            Ok(true) => Ok(bytes.len()),
            Ok(false) => Ok(0),
            Err(error) => {
                // The next poll makes another connection.
                self.failed.push_back((peer, Failure::of_connection(chain(&error))));
                Ok(0)
            }
        }
    }

    fn put_now(&mut self, peer: u32, there: There, bytes: &[u8]) -> roce_verbs::Result<bool> {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return Ok(false) };
        let State::Up(pair) = &link.state else { return Ok(false) };
        if link.puts.len() >= usize::from(PUTS) {
            return Ok(false);
        }
        let to = there.place();
        let slot = self.queues[link.port].put(pair, bytes, to)?;
        link.puts.extend(slot.map(|slot| Put { slot, to }));
        Ok(slot.is_some())
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
        self.transfers
            .add(operation, Transfer::new(peer, Movement::Write, registration, there.place(), length));
        self.pump_transfers();
        Ok(true)
    }
}
