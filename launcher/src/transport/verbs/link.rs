//! A rank's view of one peer.

use roce_verbs::PacketPair;

use super::credits::Credits;
use super::{HEAD, Head};
use crate::transport::Header;

#[derive(Debug)]
pub(super) enum State {
    /// Nothing was ever sent, and nothing has come.
    None,
    Opening,
    Up(PacketPair),
    Broken(String),
}

#[derive(Debug)]
pub(super) struct Link {
    /// The port here.
    pub(super) port: usize,
    pub(super) state: State,
    pub(super) credits: Credits,
    /// Packets sent, and how many of them the peer's device has.
    pub(super) sent: u64,
    pub(super) arrived: u64,
    /// Of those sent, the last that was more than places given back.
    pub(super) last: u64,
}

impl Link {
    pub(super) fn new(port: usize) -> Self {
        Self { port, state: State::None, credits: Credits::new(), sent: 0, arrived: 0, last: 0 }
    }

    pub(super) fn under_way(&self) -> u64 {
        self.sent - self.arrived
    }

    /// Is there something on its way that the peer may wait for?
    pub(super) fn is_sending(&self) -> bool {
        self.arrived < self.last
    }

    /// Takes a packet apart; `None` for one that only gives places back.
    ///
    /// # Errors
    /// If no rank of this build sends that.
    #[inline]
    pub(super) fn hear<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>, &'static str> {
        const NONSENSE: &str = "it sent something that makes no sense; do all ranks run the same build?";
        let (head, payload) = bytes.split_at_checked(HEAD).ok_or(NONSENSE)?;
        let head: Head = bytemuck::pod_read_unaligned(head);
        if !self.credits.earn(head.given) {
            return Err(NONSENSE);
        }
        if head.is_only_that != 0 {
            return Ok(None);
        }
        if !self.credits.empty() {
            return Err(NONSENSE);
        }
        Ok(Some((head.header, payload)))
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn packet(given: u32, is_only_that: u32) -> Vec<u8> {
        let head = Head { given, is_only_that, header: Header::zeroed() };
        [bytemuck::bytes_of(&head), b"payload"].concat()
    }

    #[test]
    fn a_packet_is_taken_apart_and_counted() {
        let mut link = Link::new(0);
        assert_eq!(link.hear(&packet(0, 0)).unwrap().unwrap().1, b"payload");
        assert_eq!(link.hear(&packet(0, 1)).unwrap(), None);
        assert_eq!(link.credits.give(), 1);
    }

    #[test]
    fn what_no_rank_sends_is_an_error() {
        assert!(Link::new(0).hear(&packet(0, 0)[..20]).is_err());
        assert!(Link::new(0).hear(&packet(1, 0)).is_err());
    }
}
