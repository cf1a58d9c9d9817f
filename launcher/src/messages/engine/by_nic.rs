//! The way of short messages that are waited for, between ranks that reach each other by NIC: with nothing that another transport needs.

use super::Engine;
use crate::messages::matching::Context;
use crate::transport::verbs::Take;
use crate::transport::{Header, Look, Transports};

impl Engine<Transports> {
    /// The way of short messages to a peer that is reached by NIC, as [`send_soon`](Self::send_soon).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    pub(crate) fn send_by_nic(&mut self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> bool {
        if !self.may_send(bytes.len()) {
            return false;
        }
        let header = Header::eager(context, tag, bytes.len());
        self.transport.verbs().is_some_and(|verbs| verbs.send_now(peer, &header, bytes, false))
    }

    /// Looks for room for another message to a peer that is reached by NIC. Whether there is any now.
    pub(crate) fn find_room(&mut self, peer: u32) -> bool {
        self.transport.verbs().is_some_and(|verbs| verbs.find_room(peer))
    }

    /// The way of short messages from a peer that is reached by NIC, as [`receive_soon`](Self::receive_soon), but for any tags. The message's
    /// length.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    pub(crate) fn receive_by_nic(
        &mut self,
        context: Context,
        peer: u32,
        tag: u32,
        room: &mut [u8],
        looks: u32,
    ) -> Option<usize> {
        if !self.may_receive(context, peer) {
            return None;
        }
        let mut message = Message { context, tag, room, length: 0 };
        match self.transport.verbs()?.look_at(peer, looks, &mut message) {
            Look::Taken => Some(message.length),
            Look::Nothing | Look::Poll => None,
        }
    }
}

/// Takes a whole message, which is in one packet, to where a program wants it.
struct Message<'a> {
    context: Context,
    tag: u32,
    room: &'a mut [u8],
    length: usize,
}

impl Take for Message<'_> {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn take(&mut self, header: &Header, payload: &[u8]) -> bool {
        let Some(to) = self.room.get_mut(..payload.len()) else { return false };
        if !header.is_whole(self.context, Some(self.tag), payload.len()) {
            return false;
        }
        copy(payload, to);
        self.length = payload.len();
        true
    }
}

/// Copies to as many bytes. Short ones are not worth a call.
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the way of a short message")]
fn copy(from: &[u8], to: &mut [u8]) {
    if let (8..=16, Some(first), Some(last)) = (from.len(), from.first_chunk::<8>(), from.last_chunk::<8>())
        && let Some((to_first, _)) = to.split_first_chunk_mut::<8>()
    {
        *to_first = *first;
        if let Some((_, to_last)) = to.split_last_chunk_mut::<8>() {
            *to_last = *last;
        }
        return;
    }
    to.copy_from_slice(from);
}
