//! The first packet to a peer, if it is short: it goes with the datagram that makes the peer begin with its end of the connection, and is
//! there long before that.
//!
//! It counts as sent when the peer's end says so, which counts the packets that it has received; until then the engine tries it again and again,
//! as any packet for which there is no room yet, and then sends it over the connection if it has not arrived. So who sends has nothing left to do
//! when its send is over, though it may not call the library for long.

use std::collections::VecDeque;
use std::time::Instant;

use super::head::{LONG_BYTES, Packed};
use super::link::{Link, State};
use super::mend::Failure;
use super::words::MOST_EARLY;
use super::{Verbs, WAY_FREE};
use crate::transport::{Header, Payload};

impl Verbs {
    /// Sends the first packet to a peer, which nothing came from either, ahead of the connection that it has made. Whether it did: it must be
    /// short.
    #[cold]
    pub(super) fn send_early(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return false };
        if !matches!(link.state, State::None) || LONG_BYTES + payload.len() > MOST_EARLY {
            return false;
        }
        let packet = first(header, payload);
        link.early = Some(packet.clone());
        self.begin(peer, packet);
        true
    }

    /// Is this packet the one that went before the connection, and is there? Once.
    #[inline]
    pub(super) fn went_early(&mut self, peer: u32, header: &Header, payload: &[u8]) -> bool {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return false };
        match link.early.take() {
            None => false,
            // Else its send was given up meanwhile, and this is another one.
            Some(packet) => link.sent == 1 && packet == first(header, payload),
        }
    }

    /// The first packet of a peer came before its connection, unless it has been found before this news. Whether it was something to deliver.
    pub(super) fn hear_early(
        &mut self,
        peer: u32,
        deliver: &mut impl FnMut(u32, &Header, Payload<'_>),
    ) -> bool {
        let Self { desk, links, failed, .. } = self;
        let Some(packet) = desk.take_early(peer) else { return false };
        let came = match links.get_mut(peer as usize) {
            Some(Some(link)) if !matches!(link.state, State::Broken(_)) => {
                if matches!(link.state, State::None) {
                    link.state = State::Opening;
                }
                hear(peer, link, &packet, failed, deliver);
                true
            }
            _ => false,
        };
        desk.has_delivered();
        if came {
            // The service thread makes this side's end now, and an answer waits for that.
            self.connecting = Some(Instant::now() + WAY_FREE);
        }
        came
    }
}

/// The first packet to a peer, as it travels.
fn first(header: &Header, payload: &[u8]) -> Vec<u8> {
    let head = Packed::new(0, 0, Some(header), payload.len());
    [head.bytes(), payload].concat()
}

/// Takes a first packet that came early. One place alone is no reason to give it back at once.
pub(super) fn hear(
    peer: u32,
    link: &mut Link,
    packet: &[u8],
    failed: &mut VecDeque<(u32, Failure)>,
    deliver: &mut impl FnMut(u32, &Header, Payload<'_>),
) {
    match link.hear(packet) {
        Ok(Some((header, payload))) => deliver(peer, &header, payload.into()),
        Ok(None) => {}
        Err(why) => failed.push_back((peer, Failure::of_peer(why))),
    }
}
