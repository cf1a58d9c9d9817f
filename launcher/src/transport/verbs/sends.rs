//! Sends packets to peers, each copied into a slot.

use std::collections::VecDeque;

use bytemuck::Zeroable;
use roce_verbs::Told;

use super::credits::{ALL, SPARE};
use super::link::{Link, State};
use super::mend::Failure;
use super::transfers::Transfers;
use super::{HEAD, Head, Verbs};
use crate::error::chain;
use crate::transport::Header;

/// Notes what became of what this rank had a NIC do.
pub(super) fn note(
    peer: u32,
    link: &mut Link,
    told: Told<'_>,
    transfers: &mut Transfers,
    got: &mut VecDeque<(u32, Vec<u8>)>,
    failed: &mut VecDeque<(u32, Failure)>,
) {
    match told {
        Told::Sent(count) => link.have_arrived(count),
        Told::Put(count) => link.puts_have_arrived(count),
        Told::Got(slot) => got.extend(link.gets.arrived(slot)),
        Told::Moved(_) => transfers.arrived(peer),
        Told::Failed(error) => failed.push_back((peer, error.into())),
        // That is what others did.
        Told::Packet(_) => {}
    }
}

impl Verbs {
    /// Gives places back where half of all are due.
    pub(super) fn give_back(&mut self) {
        for peer in std::mem::take(&mut self.due) {
            match self.send(peer, &Header::zeroed(), &[], true) {
                Ok(true) => {}
                Ok(false) => _ = self.due.insert(peer),
                Err(error) => self.failed.push_back((peer, Failure::of_connection(chain(&error)))),
            }
        }
    }

    /// Sends a packet on a connection that stands, if there is room.
    #[inline]
    pub(super) fn send(
        &mut self,
        peer: u32,
        header: &Header,
        payload: &[u8],
        gives_only: bool,
    ) -> roce_verbs::Result<bool> {
        match self.send_now(peer, header, payload, gives_only) {
            Ok(false) => self.send_with_room(peer, header, payload, gives_only),
            other => other,
        }
    }

    /// The same once more, if slots are free after a look: what has arrived is not looked at before a slot is needed.
    #[cold]
    pub(super) fn send_with_room(
        &mut self,
        peer: u32,
        header: &Header,
        payload: &[u8],
        gives_only: bool,
    ) -> roce_verbs::Result<bool> {
        Ok(self.find_room(peer)? && self.send_now(peer, header, payload, gives_only)?)
    }

    /// Takes back the slots of what has arrived. Whether there was any.
    #[cold]
    pub(super) fn find_room(&mut self, peer: u32) -> roce_verbs::Result<bool> {
        let Some(Some(link)) = self.links.get(peer as usize) else { return Ok(false) };
        let port = link.port;
        let Self { queues, peers, links, failed, transfers, got, .. } = self;
        let count = queues[port].poll_sent(&mut |number, told| {
            let Some(peer) = peers[port].get(&number).copied() else { return };
            let Some(Some(link)) = links.get_mut(peer as usize) else { return };
            note(peer, link, told, transfers, got, failed);
        })?;
        Ok(count > 0)
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "two callers, of which the first is the way of short messages")]
    pub(super) fn send_now(
        &mut self,
        peer: u32,
        header: &Header,
        payload: &[u8],
        gives_only: bool,
    ) -> roce_verbs::Result<bool> {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return Ok(false) };
        let link: &mut Link = link;
        let State::Up(pair) = &link.state else { return Ok(false) };
        let most = if gives_only { ALL + SPARE } else { ALL };
        if link.under_way.len() >= usize::from(most) || (!gives_only && !link.credits.any()) {
            return Ok(false);
        }
        let given = link.credits.give();
        let number = link.sent as u32;
        let head = Head { given, is_only_that: u16::from(gives_only), number, header: *header };
        match self.queues[link.port].send::<HEAD>(pair, bytemuck::cast_ref(&head), payload) {
            Ok(Some(slot)) => {
                link.sent += 1;
                link.under_way.push_back(slot);
                if !gives_only {
                    link.credits.spend();
                    link.last = link.sent;
                }
                Ok(true)
            }
            other => {
                link.credits.keep(given);
                other.map(|_| false)
            }
        }
    }
}
