//! RDMA reads of windows, as [puts](super::puts) write them: short ones come into slots and are copied from there, so a get that nobody waits
//! for any more touches no memory of the program's.
//!
//! With soft-RoCE a read counts once a small one behind it is over too ([`super::transfers`] says why).

use std::collections::VecDeque;

use super::Verbs;
use super::link::State;
use crate::transport::{Broken, There};

/// Gets of a connection at the same time. Each may take a request more than its slot says.
pub(super) const GETS: u16 = 4;

/// Bytes that a window waits for, which it knows by a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Get {
    question: u32,
    from: (u64, u32),
    length: usize,
}

/// Those of one peer, in their order.
#[derive(Debug, Default)]
pub(super) struct Gets {
    wanted: VecDeque<Get>,
    under_way: VecDeque<Get>,
    /// How many were over.
    over: u64,
}

impl Gets {
    fn all(&self) -> usize {
        self.wanted.len() + self.under_way.len()
    }

    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// How many were over so far.
    pub(super) fn over(&self) -> u64 {
        self.over
    }

    /// The eldest is over, and this is what its slot holds. The question and its answer.
    pub(super) fn arrived(&mut self, slot: &[u8]) -> Option<(u32, Vec<u8>)> {
        let get = self.under_way.pop_front()?;
        self.over += 1;
        Some((get.question, slot.get(..get.length)?.to_vec()))
    }

    /// The connection was taken down: what is not complete begins again with the next one.
    pub(super) fn begin_anew(&mut self) {
        while let Some(get) = self.under_way.pop_back() {
            self.wanted.push_front(get);
        }
    }

    /// The same where there is no next one.
    pub(super) fn forget(&mut self) {
        self.begin_anew();
        self.wanted.clear();
    }
}

impl Verbs {
    /// As [`try_get`](crate::transport::Transport::try_get) says.
    pub(super) fn get(
        &mut self,
        peer: u32,
        there: There,
        length: usize,
        question: u32,
    ) -> Result<bool, Broken> {
        if !self.open(peer)? {
            return Ok(false);
        }
        let Some(Some(link)) = self.links.get_mut(peer as usize) else { return Ok(false) };
        if link.gets.all() >= usize::from(GETS) {
            return Ok(false);
        }
        link.gets.wanted.push_back(Get { question, from: there.place(), length });
        self.pump_gets(peer);
        Ok(true)
    }

    /// Posts gets of a peer that there is room for.
    pub(super) fn pump_gets(&mut self, peer: u32) {
        self.getting.remove(&peer);
        match self.post_gets(peer) {
            Ok(true) => {}
            Ok(false) => _ = self.getting.insert(peer),
            Err(error) => self.has_failed(peer, &error),
        }
    }

    /// Whether nothing is left to be posted now.
    fn post_gets(&mut self, peer: u32) -> roce_verbs::Result<bool> {
        loop {
            let Some(Some(link)) = self.links.get_mut(peer as usize) else { return Ok(true) };
            let (State::Up(pair), Some(get)) = (&link.state, link.gets.wanted.front().copied()) else {
                // Without a connection, the next one has them posted.
                return Ok(true);
            };
            let is_soft = self.endpoints[link.port].limits.is_soft;
            if !self.queues[link.port].get(pair, get.length, get.from, is_soft)? {
                return Ok(false);
            }
            link.gets.wanted.pop_front();
            link.gets.under_way.push_back(get);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(numbers: impl IntoIterator<Item = u32>) -> VecDeque<Get> {
        numbers.into_iter().map(|question| Get { question, from: (0, 0), length: 2 }).collect()
    }

    #[test]
    fn what_came_is_given_with_its_question_and_no_more_than_was_asked_for() {
        let mut gets = Gets { wanted: wanted([8]), ..Gets::default() };
        gets.under_way.extend(wanted([7]));
        assert_eq!((gets.all(), gets.under_way()), (2, 1));
        assert_eq!(gets.arrived(&[1, 2, 3]), Some((7, vec![1, 2])));
        assert_eq!(gets.arrived(&[1, 2, 3]), None);
        assert_eq!((gets.all(), gets.under_way(), gets.over()), (1, 0, 1));
    }

    #[test]
    fn another_connection_begins_with_the_eldest() {
        let mut gets = Gets { wanted: wanted([3]), ..Gets::default() };
        gets.under_way.extend(wanted([1, 2]));
        gets.begin_anew();
        let order: Vec<u32> = gets.wanted.iter().map(|get| get.question).collect();
        assert_eq!((order, gets.under_way()), (vec![1, 2, 3], 0));
        gets.forget();
        assert_eq!(gets.all(), 0);
    }
}
