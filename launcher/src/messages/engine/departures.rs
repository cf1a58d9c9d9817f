//! What goes to peers.

use std::collections::VecDeque;

use super::core::Core;
use super::operation::{Operation, Outgoing, State, What};
use crate::transport::{Broken, Header, Kind, Transport};

impl Core {
    /// Sends one packet of those for a peer. Whether that was possible.
    pub(super) fn send_next(&mut self, peer: u32, transport: &mut impl Transport) -> Result<bool, Broken> {
        let Some(first) = self.outgoing.get_mut(&peer).and_then(VecDeque::front_mut) else {
            self.outgoing.remove(&peer);
            return Ok(false);
        };
        let memory = |operation: Operation| match self.operations.get(operation as usize) {
            Some(State { what: What::Send { memory, .. }, .. }) => Some(memory.bytes()),
            _ => None,
        };
        let done = match first {
            Outgoing::Packet(header, payload) => {
                // Only a window's answer can be longer, where the peer's way to here is another one than the way there.
                let most = transport.most(peer);
                let (piece, rest) = payload.split_at(payload.len().min(most));
                if !transport.try_send(peer, header, piece)? {
                    return Ok(false);
                }
                if !rest.is_empty() {
                    header.length += most as u64;
                    payload.drain(..most);
                    return Ok(true);
                }
                None
            }
            Outgoing::Message { header, operation, sent } => {
                let before = *sent;
                let bytes = memory(*operation).unwrap_or_default();
                let piece = transport.piece(peer, bytes.len());
                if !send_unasked(transport, peer, header, bytes, piece, sent)? {
                    return Ok(*sent > before);
                }
                Some(*operation)
            }
            Outgoing::Pieces { operation, to, sent } => {
                let bytes = memory(*operation).unwrap_or_default();
                let (before, most) = (*sent, transport.most(peer));
                while *sent < bytes.len() {
                    let end = bytes.len().min(*sent + most);
                    let header = Header {
                        kind: Kind::Data as u32,
                        context: 0,
                        tag: 0,
                        operation: *to,
                        length: *sent as u64,
                    };
                    if !transport.try_send(peer, &header, &bytes[*sent..end])? {
                        return Ok(*sent > before);
                    }
                    *sent = end;
                }
                Some(*operation)
            }
        };
        if let Some(queue) = self.outgoing.get_mut(&peer) {
            queue.pop_front();
            if queue.is_empty() {
                self.outgoing.remove(&peer);
            }
        }
        if let Some(operation) = done {
            self.finish(operation, Ok(None));
        }
        Ok(true)
    }
}

/// Sends what is left of a message in pieces, as far as there is room. Whether that was all.
#[inline]
pub(super) fn send_unasked(
    transport: &mut impl Transport,
    peer: u32,
    header: &Header,
    bytes: &[u8],
    piece: usize,
    sent: &mut usize,
) -> Result<bool, Broken> {
    if bytes.len() <= piece {
        return transport.try_send(peer, header, bytes);
    }
    while *sent < bytes.len() {
        let end = bytes.len().min(*sent + piece);
        let more = Header { kind: Kind::More as u32, length: *sent as u64, ..*header };
        if !transport.try_send(peer, if *sent == 0 { header } else { &more }, &bytes[*sent..end])? {
            return Ok(false);
        }
        *sent = end;
    }
    Ok(true)
}

/// Takes a send back that is given up. What was begun must go on, for the peer takes the next packets for the rest: from a copy.
pub(super) fn withdraw(queue: &mut VecDeque<Outgoing>, operation: Operation, bytes: &[u8], most: usize) {
    let is_it = |outgoing: &Outgoing| match outgoing {
        Outgoing::Message { operation: other, .. } | Outgoing::Pieces { operation: other, .. } => {
            *other == operation
        }
        Outgoing::Packet(..) => false,
    };
    let Some(place) = queue.iter().position(is_it) else { return };
    if let Some(Outgoing::Message { header, sent, .. }) = queue.remove(place)
        && sent > 0
    {
        let pieces = bytes[sent..].chunks(most).scan(sent, |at, piece| {
            let header = Header { kind: Kind::More as u32, length: *at as u64, ..header };
            *at += piece.len();
            Some(Outgoing::Packet(header, piece.to_vec()))
        });
        for (number, packet) in pieces.enumerate() {
            queue.insert(place + number, packet);
        }
    }
}
