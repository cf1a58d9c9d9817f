//! Sends packets to peers, each copied into a slot.

use std::collections::VecDeque;

use bytemuck::Zeroable;
use roce_verbs::Told;

use super::Verbs;
use super::head::{LONG_BYTES, Packed, SHORT_BYTES};
use super::lanes::Peer;
use super::link::{Link, State};
use super::mend::Failure;
use super::transfers::Transfers;
use crate::error::chain;
use crate::transport::Header;

/// Of short packets each of so many tells when it has arrived, with those before it: to hear of each takes as long as to send it. Its slot is
/// not used meanwhile.
const TELLS: u64 = 4;
/// Those from this length on tell all: what they take is not in being told.
const SHORT: usize = 1024;
/// A rank that waits asks after those of which it would not hear: once at a time.
pub(super) const ASKED: u16 = 1;

/// Notes what became of what this rank had a NIC do.
pub(super) fn note(
    peer: Peer,
    link: &mut Link,
    told: Told<'_>,
    transfers: &mut Transfers,
    got: &mut VecDeque<(u32, Vec<u8>)>,
    failed: &mut VecDeque<(u32, Failure)>,
) {
    match told {
        Told::Sent(count) => link.arrived += count as u64,
        Told::Put => link.puts_arrived += 1,
        Told::Got(slot) => got.extend(link.gets.arrived(slot)),
        Told::Moved(_) => transfers.arrived(peer),
        Told::Failed(error) => failed.push_back((peer.rank, Failure::from(error).over(peer.lane))),
        // That is what others did.
        Told::Packet(_) => {}
    }
}

impl Verbs {
    /// Gives places back where half of all are due.
    pub(super) fn give_back(&mut self) {
        for peer in std::mem::take(&mut self.due) {
            if !self.send(peer, &Header::zeroed(), &[], true) {
                self.due.insert(peer);
            }
        }
    }

    /// Sends a packet on a connection that stands, if there is room: once more after a look, for what has arrived is not looked at before a
    /// slot is needed. If the device refuses, the next poll makes another connection.
    pub(crate) fn send(&mut self, peer: u32, header: &Header, payload: &[u8], gives_only: bool) -> bool {
        self.send_now(peer, header, payload, gives_only)
            || self.find_slot(peer, gives_only) && self.send_now(peer, header, payload, gives_only)
    }

    /// The same without a look: nothing is called but the device.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "few callers, of which one is the way of short messages")]
    pub(crate) fn send_now(&mut self, peer: u32, header: &Header, payload: &[u8], gives_only: bool) -> bool {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return false };
        let link: &mut Link = link;
        let State::Up(pair) = &link.state else { return false };
        if !gives_only && !link.credits.any() {
            return false;
        }
        let Some(queue) = self.queues.get_mut(link.port) else { return false };
        let number = link.sent as u32;
        let given = link.credits.due();
        let head = Packed::new(number, given, (!gives_only).then_some(header), payload.len());
        let tells = link.sent % TELLS == TELLS - 1 || payload.len() > SHORT;
        let sent = match &head {
            Packed::Short(head) => queue.send::<SHORT_BYTES>(pair, bytemuck::cast_ref(head), payload, tells),
            Packed::Long(head) => queue.send::<LONG_BYTES>(pair, bytemuck::cast_ref(head), payload, tells),
        };
        match sent {
            Ok(true) => {
                link.sent += 1;
                link.credits.gave();
                if !gives_only {
                    link.credits.spend();
                    link.last = link.sent;
                }
                true
            }
            Ok(false) => false,
            Err(error) => {
                self.has_failed(peer, &error);
                false
            }
        }
    }

    /// The next poll makes another connection.
    #[cold]
    pub(super) fn has_failed(&mut self, peer: u32, error: &roce_verbs::Error) {
        self.failed.push_back((peer, Failure::of_connection(chain(error))));
    }

    /// Where a packet was not sent for want of a slot alone, takes back those of what has arrived. Whether there was any.
    #[cold]
    pub(crate) fn find_slot(&mut self, peer: u32, gives_only: bool) -> bool {
        let lacks_slot = |link: &Link| gives_only || link.credits.any();
        self.link(peer).is_some_and(lacks_slot) && self.find_room(peer)
    }

    /// Takes back the slots of what has arrived. Whether there was any.
    #[cold]
    pub(super) fn find_room(&mut self, peer: u32) -> bool {
        let Some(Some(link)) = self.links.get(peer as usize) else { return false };
        let (port, State::Up(pair)) = (link.port, &link.state) else { return false };
        let own = pair.number();
        let Self { queues, peers, links, failed, transfers, got, .. } = self;
        let found = queues[port].poll_sent(&mut |number, told| {
            // Nearly always.
            if let (Told::Sent(count), true, Some(Some(link))) =
                (&told, number == own, links.get_mut(peer as usize))
            {
                link.arrived += *count as u64;
                return;
            }
            let Some(rank) = peers[port].get(&number).copied() else { return };
            let Some(Some(link)) = links.get_mut(rank as usize) else { return };
            let Some(lane) = link.lane_at(port) else { return };
            let Some(link) = link.lane_mut(lane) else { return };
            note(Peer { rank, lane }, link, told, transfers, got, failed);
        });
        match found {
            Ok(count) => count > 0,
            Err(error) => {
                self.has_failed(peer, &error);
                false
            }
        }
    }

    /// Asks after packets that a peer's device has, but of which nobody would hear before others are sent.
    #[cold]
    pub(super) fn ask(&mut self) {
        for (peer, link) in (0..).zip(&mut self.links).filter_map(|(peer, link)| Some((peer, link.as_mut()?)))
        {
            // What was asked for last has not come yet.
            if link.asked > link.arrived {
                continue;
            }
            let State::Up(pair) = &link.state else { continue };
            match self.queues[link.port].ask(pair) {
                Ok(true) => link.asked = link.sent,
                Ok(false) => {}
                Err(error) => self.failed.push_back((peer, Failure::of_connection(chain(&error)))),
            }
        }
    }
}
