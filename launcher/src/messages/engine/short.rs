//! The way of short messages that are waited for: one for ranks that reach each other by NIC and one for those of a node, each with nothing
//! that another transport needs.

use super::Engine;
use crate::messages::matching::{Context, Wanted};
use crate::transport::shared_memory::Short;
use crate::transport::{Header, Look, Payload, Take, Transports};

impl Engine<Transports> {
    /// The way of short messages to a rank of this node, whose place is known, as [`send_soon`](Self::send_soon).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    pub(crate) fn send_near(&mut self, context: Context, place: u32, tag: u32, bytes: &[u8]) -> bool {
        if !self.nothing_is_left() {
            return false;
        }
        let header = Header::eager(context, tag, bytes.len());
        self.transport.shared().is_some_and(|shared| shared.send_now(place, &header, bytes))
    }

    /// The way of short messages from such a rank, as [`receive_by_nic`](Self::receive_by_nic).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    pub(crate) fn receive_near(
        &mut self,
        context: Context,
        place: u32,
        tag: u32,
        room: &mut [u8],
        looks: u32,
    ) -> Option<usize> {
        if !self.may_receive(context, |transport| transport.shared().map(|shared| shared.rank_at(place))) {
            return None;
        }
        let mut message = Message::new(context, Some(tag), room);
        match self.transport.shared()?.look_at(place, looks, &mut message) {
            Short::Taken => Some(message.taken.1),
            Short::Nothing => None,
            Short::Long => self.receive_beside(context, place, tag, message.room),
        }
    }

    /// The same for a packet that has come and is not all in its slot. Inlined it would have the message in memory.
    #[inline(never)]
    fn receive_beside(&mut self, context: Context, place: u32, tag: u32, room: &mut [u8]) -> Option<usize> {
        let source = self.transport.shared()?.rank_at(place);
        let wanted = Wanted { source: Some(source), tag: Some(tag) };
        self.receive_soon(context, wanted, room, 1).map(|received| received.length)
    }

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

    /// Looks for a slot for a message that was not sent so for want of one alone. Whether there is any now.
    pub(crate) fn find_slot(&mut self, peer: u32, length: usize) -> bool {
        self.may_send(length) && self.transport.verbs().is_some_and(|verbs| verbs.find_slot(peer, false))
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
        if !self.may_receive(context, |_| Some(peer)) {
            return None;
        }
        let mut message = Message::new(context, Some(tag), room);
        match self.transport.verbs()?.look_at(peer, looks, &mut message) {
            Look::Taken => Some(message.taken.1),
            Look::Nothing | Look::Poll => None,
        }
    }
}

/// Takes a whole message, which is in one packet, to where a program wants it.
pub(super) struct Message<'a> {
    pub(super) context: Context,
    pub(super) tag: Option<u32>,
    pub(super) room: &'a mut [u8],
    /// Its tag and its length.
    pub(super) taken: (u32, usize),
}

impl<'a> Message<'a> {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn new(context: Context, tag: Option<u32>, room: &'a mut [u8]) -> Self {
        Self { context, tag, room, taken: (0, 0) }
    }
}

impl Take for Message<'_> {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    fn take(&mut self, header: &Header, payload: Payload<'_>) -> bool {
        let fits = header.is_whole(self.context, self.tag, payload.len());
        let Some(to) = self.room.get_mut(..payload.len()).filter(|_| fits) else { return false };
        payload.copy_to(to);
        self.taken = (header.tag, payload.len());
        true
    }
}
