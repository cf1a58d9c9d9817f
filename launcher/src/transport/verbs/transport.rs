//! What the engine asks of a way between ranks, as connections of NICs do it. Most is done elsewhere.

use std::rc::Rc;

use roce_verbs::Held;

use super::link::{Link, State};
use super::{MOST, REGISTERED, UNASKED, Verbs};
use crate::messages::{Lent, LentMut};
use crate::transport::{Broken, Fetched, Header, Payload, Place, Shown, There, Transport};
use crate::windows::Memory;

impl Transport for Verbs {
    #[inline]
    fn most(&self, _: u32) -> usize {
        MOST
    }

    #[inline]
    fn unasked(&self, _: u32, waits: bool) -> usize {
        if waits { UNASKED } else { MOST }
    }

    #[inline]
    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        let is_up = matches!(self.link(peer), Some(Link { state: State::Up(_), .. }));
        if !is_up && (self.send_early(peer, header, payload) || !self.open(peer)?) {
            return Ok(false);
        }
        if self.went_early(peer, header, payload) {
            return Ok(true);
        }
        Ok(self.send(peer, header, payload, false))
    }

    #[inline]
    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken> {
        if !self.unchecked.is_empty() {
            self.read_back();
        }
        let early = self.take_news(deliver);
        let came = (self.broken.is_empty() && self.poll_once(deliver)) || early;
        if !came {
            self.rest();
        }
        self.settle(deliver);
        if self.connecting.is_some() && !came {
            self.leave_cpu();
        }
        match self.broken.pop_front() {
            Some(broken) => Err(broken),
            None => Ok(came),
        }
    }

    fn offer(&mut self, peer: u32, operation: u32, memory: &Lent) -> Place {
        if memory.bytes().len() < REGISTERED {
            return Place::unreadable();
        }
        match self.offer_memory(peer, memory) {
            // Where no more memory may be locked, it is sent in pieces.
            None => Place::unreadable(),
            Some((place, registrations)) => {
                self.offers.insert(operation, (peer, registrations));
                place
            }
        }
    }

    fn withdraw(&mut self, operation: u32, is_done: bool) {
        if let Some((_, registrations)) = self.offers.remove(&operation)
            && is_done
        {
            registrations.into_iter().for_each(Held::give_back);
        }
    }

    fn fetch(
        &mut self,
        peer: u32,
        (_, place): (u32, Place),
        memory: &mut LentMut,
        length: usize,
        operation: u32,
    ) -> Result<Fetched, Broken> {
        self.start_read(peer, place, memory, length, operation)
    }

    fn take_fetched(&mut self) -> Option<u32> {
        self.transfers.take_finished()
    }

    fn abandon(&mut self, operation: u32) {
        self.end_transfer(operation);
    }

    fn show(&mut self, context: u32, memory: &Rc<Memory>) -> Option<Shown> {
        self.show_memory(context, memory)
    }

    fn hide(&mut self, context: u32) {
        self.visible.remove(&context);
    }

    fn there(&self, peer: u32, shown: &Shown) -> Option<There> {
        shown.at_port(self.link(peer)?.their_port)
    }

    fn try_put(&mut self, peer: u32, there: There, bytes: &[u8]) -> Result<usize, Broken> {
        self.put(peer, there, bytes)
    }

    fn write(&mut self, peer: u32, there: There, memory: &Lent, operation: u32) -> Result<bool, Broken> {
        self.start_write(peer, there, memory, operation)
    }

    fn try_get(&mut self, peer: u32, there: There, length: usize, question: u32) -> Result<bool, Broken> {
        self.get(peer, there, length, question)
    }

    fn take_got(&mut self) -> Option<(u32, Vec<u8>)> {
        self.got.pop_front()
    }

    fn read(
        &mut self,
        peer: u32,
        there: There,
        memory: &mut LentMut,
        operation: u32,
    ) -> Result<bool, Broken> {
        let length = memory.bytes().len();
        if length < REGISTERED {
            return Ok(false);
        }
        let (address, key) = there.place();
        let fetched = self.start_read(peer, Place::keyed(address, key), memory, length, operation)?;
        Ok(fetched == Fetched::Started)
    }

    fn has_put(&self, peer: u32) -> bool {
        self.link(peer).is_none_or(|link| link.puts() == 0)
    }

    fn forget(&mut self, peer: u32, why: &str) {
        let told = self.broken.len();
        self.lose(peer, why.to_owned());
        // Who calls knows.
        self.broken.truncate(told);
    }
}
