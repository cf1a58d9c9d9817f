//! The way of short messages that are waited for. Whatever stands in it, the ordinary way finds again.
//!
//! What is called on it is inlined in one function for each direction, of [`World`](crate::messages::World). All instructions that are not the
//! device's are there, and where communicators call them.

use roce_verbs::{EntryPlace, Found};

use super::Verbs;
use super::head::Head;
use super::link::{Link, NONSENSE, State};
use super::mend::Failure;
use crate::error::chain;
use crate::transport::{Look, Take};

impl Verbs {
    /// Looks for the next packet of one peer alone, as [`Transport::look_for`](crate::transport::Transport::look_for) says. Each look
    /// polls a few times.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "each call and each result in memory lengthens the way of a short message"
    )]
    pub(crate) fn look_at(&mut self, peer: u32, looks: u32, take: &mut impl Take) -> Look {
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
        let mut left = looks;
        let goes_on = || {
            let goes_on = left > 0 && !self.desk.has_news();
            left = left.wrapping_sub(1);
            goes_on
        };
        let mut place = EntryPlace::new();
        let came = match queue.look(goes_on, &mut place) {
            Ok(Found::Packet(came)) => came,
            Ok(Found::Nothing) => return Look::Nothing,
            // Who polls is told the same again.
            Ok(Found::Other) | Err(_) => return Look::Poll,
        };
        let Some((head, header, payload)) = Head::of_whole(came.bytes()) else {
            came.leave();
            return Look::Poll;
        };
        let is_taken = came.pair() == number && link.is_next(&head) && take.take(&header, payload.into());
        if !is_taken {
            came.leave();
            return Look::Poll;
        }
        let makes_sense = link.count_next(&head);
        let is_due = link.credits.is_due();
        let posted = came.take();
        if posted.is_err() | !makes_sense | is_due {
            self.after_taking(peer, posted, makes_sense, is_due);
        }
        Look::Taken
    }

    /// What is seldom to be done when a packet was taken.
    #[cold]
    #[inline(never)]
    fn after_taking(&mut self, peer: u32, posted: roce_verbs::Result<()>, makes_sense: bool, is_due: bool) {
        // The program has its message, if the device not the place.
        if let Err(error) = posted {
            self.failed.push_back((peer, Failure::of_connection(chain(&error))));
        }
        if !makes_sense {
            self.failed.push_back((peer, Failure::of_peer(NONSENSE)));
        }
        if is_due {
            self.due.insert(peer);
        }
    }
}
