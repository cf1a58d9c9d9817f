//! The way of short messages that are waited for. Whatever stands in it, the ordinary way finds again.
//!
//! Each is one call from the engine, with a result in a register; what is called on the way is inlined. All instructions that are not the
//! device's are here and in [`PacketQueue`](roce_verbs::PacketQueue).

use roce_verbs::{Polled, Told};

use super::Verbs;
use super::link::{Link, NONSENSE, State};
use super::mend::Failure;
use crate::error::chain;
use crate::transport::{Header, Look, Payload};

impl Verbs {
    /// Looks for the next packet of one peer alone, as [`Transport::look_for`](crate::transport::Transport::look_for) says. Each look
    /// polls a few times.
    #[inline(never)]
    pub(crate) fn look_at(
        &mut self,
        peer: u32,
        looks: u32,
        take: &mut impl FnMut(&Header, Payload<'_>) -> bool,
    ) -> Look {
        // Together, and so by one branch.
        let is_idle = self.broken.is_empty()
            & self.due.is_empty()
            & self.failed.is_empty()
            & self.transfers.is_empty()
            & self.unchecked.is_empty();
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return Look::Poll };
        let link: &mut Link = link;
        let Link { port, state: State::Up(pair), .. } = link else { return Look::Poll };
        let Some(queue) = self.queues.get_mut(*port) else { return Look::Poll };
        if !is_idle {
            return Look::Poll;
        }
        let number = pair.number();
        let (mut left, mut taken, mut makes_sense) = (looks, false, true);
        let goes_on = || {
            let goes_on = left > 0 && !self.desk.has_news();
            left = left.wrapping_sub(1);
            goes_on
        };
        let polled = queue.poll_for(goes_on, |from, told| {
            let Told::Packet(bytes) = told else { return false };
            let Some((head, payload)) = Link::split(bytes) else { return false };
            taken = from == number
                && head.is_only_that == 0
                && link.is_next(&head)
                && take(&head.header, payload.into());
            if taken {
                makes_sense = link.count_next(&head);
            }
            taken
        });
        match polled {
            Ok(Polled::Taken) => {}
            Ok(Polled::Nothing) => return Look::Nothing,
            // The program has its message, but the device not the place.
            Err(error) if taken => self.failed.push_back((peer, Failure::of_connection(chain(&error)))),
            // Who polls is told the same again.
            Ok(Polled::Left) | Err(_) => return Look::Poll,
        }
        if link.credits.is_due() {
            self.due.insert(peer);
        }
        if !makes_sense {
            self.failed.push_back((peer, Failure::of_peer(NONSENSE)));
        }
        Look::Taken
    }

    /// Sends a packet, if that is possible at once.
    #[inline(never)]
    pub(crate) fn send_at_once(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        self.send(peer, header, payload, false)
    }
}
