//! Which part of a transfer goes over which of the connections to a peer.
//!
//! A transfer is cut into parts that a device takes at once. Each goes over the connection that has the fewest under way, so a fast rail takes more
//! than a slow one, and one that is down takes none. What was under way on a connection that failed begins again on any other.
//!
//! Where reads need a proof (soft-RoCE, [`super::transfers`] says why), a part has come when a small read behind it, on the same connection, is over
//! too.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use super::TRANSFERS;
use super::lanes::{Lanes, Peer};

/// The most bytes of a part: below every device's limit, and long enough for its overhead not to count.
pub(super) const PART: usize = 256 * 1024;

/// What is known of a transfer.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rank: u32,
    pub(super) length: usize,
    /// The connections that it may use.
    pub(super) lanes: Lanes,
    pub(super) needs_proof: bool,
}

#[derive(Debug)]
struct Progress {
    plan: Plan,
    /// Bytes that parts were begun of, from the start on.
    begun: usize,
    /// Parts that have to begin again: where, and how long.
    again: Vec<(usize, usize)>,
    /// Bytes that have come.
    come: usize,
}

/// What a connection is given to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) operation: u32,
    pub(super) peer: Peer,
    pub(super) begin: usize,
    /// 0 for the small read that proves those before it.
    pub(super) length: usize,
}

/// One that a connection has.
#[derive(Debug)]
struct Entry {
    /// `None` if it was given up, or has come.
    operation: Option<u32>,
    begin: usize,
    length: usize,
}

/// Those of one connection, in their order, which is the order in which they end.
#[derive(Debug, Default)]
struct Queue {
    /// The device has told that they are over, and that is to be proven.
    unproven: VecDeque<Entry>,
    under_way: VecDeque<Entry>,
    /// How many were over so far.
    over: u64,
}

impl Queue {
    /// Are there parts of this operation with no proof behind them?
    fn has_unproven(&self, operation: u32) -> bool {
        let all = self.unproven.iter().chain(&self.under_way).rev();
        all.take_while(|entry| entry.length > 0).any(|entry| entry.operation == Some(operation))
    }

    fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.unproven.iter_mut().chain(&mut self.under_way)
    }
}

#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By operation.
    all: BTreeMap<u32, Progress>,
    /// Those that something may have to be begun of, first come first.
    unbegun: VecDeque<u32>,
    queues: BTreeMap<Peer, Queue>,
}

impl Parts {
    pub(super) fn add(&mut self, operation: u32, plan: Plan) {
        self.all.insert(operation, Progress { plan, begun: 0, again: Vec::new(), come: 0 });
        self.unbegun.push_back(operation);
    }

    /// The next part, if there is one that may begin.
    pub(super) fn next(&self, is_up: impl Fn(Peer) -> bool) -> Option<Part> {
        self.unbegun.iter().find_map(|operation| self.next_of(*operation, &is_up))
    }

    fn next_of(&self, operation: u32, is_up: &impl Fn(Peer) -> bool) -> Option<Part> {
        let Progress { plan, begun, again, .. } = self.all.get(&operation)?;
        let peers = plan.lanes.iter().map(|lane| Peer { rank: plan.rank, lane });
        let free = peers
            .map(|peer| (self.under_way(peer), peer))
            .filter(|(under_way, peer)| *under_way < usize::from(TRANSFERS) && is_up(*peer));
        let place = match again.last() {
            Some(part) => Some(*part),
            None if *begun < plan.length => Some((*begun, (plan.length - *begun).min(PART))),
            None => None,
        };
        let Some((begin, length)) = place else {
            let unproven = |peer| self.queues.get(&peer).is_some_and(|queue| queue.has_unproven(operation));
            let (_, peer) = free.filter(|_| plan.needs_proof).find(|(_, peer)| unproven(*peer))?;
            return Some(Part { operation, peer, begin: 0, length: 0 });
        };
        let (_, peer) = free.min_by_key(|(under_way, _)| *under_way)?;
        Some(Part { operation, peer, begin, length })
    }

    /// The part that `next` gave is under way.
    pub(super) fn started(&mut self, part: Part) {
        let Part { operation, peer, begin, length } = part;
        let entry = Entry { operation: Some(operation), begin, length };
        self.queues.entry(peer).or_default().under_way.push_back(entry);
        let Some(progress) = self.all.get_mut(&operation) else { return };
        if length > 0 && progress.again.pop().is_none() {
            progress.begun += length;
        }
        if progress.again.is_empty() && progress.begun == progress.plan.length {
            let Plan { rank, lanes, needs_proof, .. } = progress.plan;
            let unproven = |lane| {
                self.queues.get(&Peer { rank, lane }).is_some_and(|queue| queue.has_unproven(operation))
            };
            if !needs_proof || !lanes.iter().any(unproven) {
                self.unbegun.retain(|other| *other != operation);
            }
        }
    }

    /// The eldest part of a connection is over. The operations that have come with it.
    pub(super) fn arrived(&mut self, peer: Peer) -> Vec<u32> {
        let Self { all, unbegun, queues } = self;
        let Some(queue) = queues.get_mut(&peer) else { return Vec::new() };
        let Some(entry) = queue.under_way.pop_front() else { return Vec::new() };
        queue.over += 1;
        let is_proof = entry.length == 0;
        let needs_proof = |operation: u32| all.get(&operation).is_some_and(|one| one.plan.needs_proof);
        if !is_proof && entry.operation.is_some_and(needs_proof) {
            queue.unproven.push_back(entry);
            return Vec::new();
        }
        let proven = if is_proof { std::mem::take(&mut queue.unproven) } else { VecDeque::from([entry]) };
        let mut finished = Vec::new();
        for Entry { operation, length, .. } in proven {
            let Some(operation) = operation else { continue };
            let Some(progress) = all.get_mut(&operation) else { continue };
            progress.come += length;
            if progress.come == progress.plan.length {
                all.remove(&operation);
                unbegun.retain(|other| *other != operation);
                finished.push(operation);
            }
        }
        finished
    }

    /// How many are under way on a connection.
    pub(super) fn under_way(&self, peer: Peer) -> usize {
        self.queues.get(&peer).map_or(0, |queue| queue.under_way.len())
    }

    /// How many were over so far.
    pub(super) fn over(&self, peer: Peer) -> u64 {
        self.queues.get(&peer).map_or(0, |queue| queue.over)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Begins no more parts of an operation. For each connection, how many of those under way have to end until none of the operation's is.
    pub(super) fn give_up(&mut self, operation: u32) -> Vec<(Peer, usize)> {
        self.unbegun.retain(|other| *other != operation);
        let last = |queue: &Queue| {
            queue.under_way.iter().rposition(|entry| entry.operation == Some(operation)).map(|last| last + 1)
        };
        self.queues.iter().filter_map(|(peer, queue)| Some((*peer, last(queue)?))).collect()
    }

    /// Parts of it that are over and were not told yet are nobody's.
    pub(super) fn remove(&mut self, operation: u32) {
        self.all.remove(&operation);
        self.unbegun.retain(|other| *other != operation);
        for entry in self.queues.values_mut().flat_map(Queue::entries_mut) {
            if entry.operation == Some(operation) {
                entry.operation = None;
            }
        }
    }

    /// A connection was taken down: what has not come over it begins again, over any that the operation may use.
    pub(super) fn begin_anew(&mut self, peer: Peer) {
        let Self { all, unbegun, queues } = self;
        let Some(queue) = queues.get_mut(&peer) else { return };
        for Entry { operation, begin, length } in queue.unproven.drain(..).chain(queue.under_way.drain(..)) {
            let Some(operation) = operation else { continue };
            let Some(progress) = all.get_mut(&operation) else { continue };
            if length > 0 {
                progress.again.push((begin, length));
            }
            if !unbegun.contains(&operation) {
                unbegun.push_back(operation);
            }
        }
    }

    /// Ends all of a rank's, whose connections are closed. The operations.
    pub(super) fn forget(&mut self, rank: u32) -> Vec<u32> {
        let all: RangeInclusive<Peer> = Peer { rank, lane: 0 }..=Peer { rank, lane: u8::MAX };
        for (_, queue) in self.queues.range_mut(all) {
            queue.unproven.clear();
            queue.under_way.clear();
        }
        let theirs = self.all.iter().filter(|(_, progress)| progress.plan.rank == rank);
        let theirs: Vec<u32> = theirs.map(|(operation, _)| *operation).collect();
        self.all.retain(|_, progress| progress.plan.rank != rank);
        self.unbegun.retain(|operation| !theirs.contains(operation));
        theirs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANK: u32 = 3;

    fn lane(lane: u8) -> Peer {
        Peer { rank: RANK, lane }
    }

    fn plan(parts: usize, lanes: u8, needs_proof: bool) -> Plan {
        let lanes = (0..lanes).fold(Lanes::default(), Lanes::with);
        Plan { rank: RANK, length: parts * PART, lanes, needs_proof }
    }

    /// Starts all that may begin.
    fn start(parts: &mut Parts, is_up: impl Fn(u8) -> bool) -> Vec<Part> {
        let mut started = Vec::new();
        while let Some(part) = parts.next(|peer| is_up(peer.lane)) {
            parts.started(part);
            started.push(part);
        }
        started
    }

    fn lanes_of(parts: &[Part]) -> Vec<u8> {
        parts.iter().map(|part| part.peer.lane).collect()
    }

    #[test]
    fn parts_take_turns_where_connections_are_alike_and_each_has_its_own_proof() {
        let mut parts = Parts::default();
        parts.add(7, plan(4, 2, true));
        let started = start(&mut parts, |_| true);
        assert_eq!(lanes_of(&started), [0, 1, 0, 1, 0, 1]);
        let places: Vec<_> = started.iter().map(|part| (part.begin / PART, part.length)).collect();
        assert_eq!(places, [(0, PART), (1, PART), (2, PART), (3, PART), (0, 0), (0, 0)]);
        // All of one connection, and its proof; of the other all but that.
        assert!((0..3).all(|_| parts.arrived(lane(1)).is_empty()));
        assert!((0..2).all(|_| parts.arrived(lane(0)).is_empty()));
        assert_eq!(parts.arrived(lane(0)), [7]);
        assert!(parts.is_empty() && start(&mut parts, |_| true).is_empty());
    }

    #[test]
    fn the_faster_connection_takes_more() {
        let mut parts = Parts::default();
        parts.add(7, plan(100, 2, false));
        assert_eq!(start(&mut parts, |_| true).len(), 2 * usize::from(TRANSFERS));
        for _ in 0..30 {
            parts.arrived(lane(1));
            assert_eq!(lanes_of(&start(&mut parts, |_| true)), [1]);
        }
        assert_eq!((parts.over(lane(0)), parts.over(lane(1))), (0, 30));
    }

    #[test]
    fn a_connection_that_is_not_up_takes_none_and_joins_in_when_it_is() {
        let mut parts = Parts::default();
        parts.add(7, plan(12, 2, true));
        let started = start(&mut parts, |lane| lane == 0);
        assert_eq!(lanes_of(&started), [0; TRANSFERS as usize]);
        assert_eq!(lanes_of(&start(&mut parts, |_| true)), [1; 5]);
        // An operation that may not use it does not.
        parts.add(8, plan(1, 1, true));
        assert!(start(&mut parts, |_| true).is_empty());
    }

    #[test]
    fn what_was_under_way_on_a_connection_that_failed_goes_over_the_others() {
        let mut parts = Parts::default();
        parts.add(7, plan(4, 2, true));
        assert_eq!(start(&mut parts, |_| true).len(), 6);
        // Both parts are said to be over, and nothing has proven it.
        assert!(parts.arrived(lane(1)).is_empty() && parts.arrived(lane(1)).is_empty());
        for _ in 0..3 {
            assert!(parts.arrived(lane(0)).is_empty());
        }
        parts.begin_anew(lane(1));
        let started = start(&mut parts, |lane| lane == 0);
        let mut places: Vec<_> = started.iter().map(|part| (part.begin / PART, part.length)).collect();
        places.sort_unstable();
        assert_eq!((lanes_of(&started), places), (vec![0; 3], vec![(0, 0), (1, PART), (3, PART)]));
        assert!(parts.arrived(lane(0)).is_empty() && parts.arrived(lane(0)).is_empty());
        assert_eq!(parts.arrived(lane(0)), [7]);
    }

    #[test]
    fn who_gives_up_is_told_what_to_wait_for_on_each_connection() {
        let mut parts = Parts::default();
        parts.add(7, plan(3, 2, false));
        parts.add(8, plan(2, 2, false));
        start(&mut parts, |_| true);
        // 7 on 0, 1, 0; 8 on 1, 0.
        assert_eq!(parts.give_up(7), [(lane(0), 2), (lane(1), 1)]);
        parts.arrived(lane(1));
        parts.remove(7);
        assert!(parts.give_up(7).is_empty());
        assert!(parts.arrived(lane(0)).is_empty() && parts.arrived(lane(0)).is_empty());
        assert!(parts.arrived(lane(1)).is_empty());
        assert_eq!(parts.arrived(lane(0)), [8]);
        assert!(parts.is_empty());
    }

    #[test]
    fn all_of_a_rank_that_is_lost_ends() {
        let mut parts = Parts::default();
        parts.add(7, plan(3, 2, true));
        parts.add(8, Plan { rank: RANK + 1, ..plan(1, 1, true) });
        start(&mut parts, |_| true);
        assert_eq!(parts.forget(RANK), [7]);
        assert_eq!((parts.under_way(lane(0)), parts.under_way(lane(1))), (0, 0));
        assert_eq!(parts.under_way(Peer { rank: RANK + 1, lane: 0 }), 2);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Add { parts: usize, lanes: u8 },
        Arrives(u8),
        Fails(u8),
        Up(u8, bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (1usize..20, 1u8..4).prop_map(|(parts, lanes)| Event::Add { parts, lanes }),
            12 => (0u8..3).prop_map(Event::Arrives),
            2 => (0u8..3).prop_map(Event::Fails),
            2 => (0u8..3, any::<bool>()).prop_map(|(lane, up)| Event::Up(lane, up)),
        ]
    }

    proptest! {
        /// Whatever connections do: an operation is over when each of its bytes has come over a connection and was proven there, and not before; and
        /// all are over once the first connection carries on.
        #[test]
        fn every_byte_is_proven_before_an_operation_is_over(needs_proof: bool, events in proptest::collection::vec(event(), 0..150)) {
            let mut parts = Parts::default();
            let mut up = [true; 3];
            // As the network sees it: by connection, what is under way, and what has come since the last proof.
            let mut ways: [VecDeque<Part>; 3] = Default::default();
            let mut come: [Vec<Part>; 3] = Default::default();
            // By operation, the parts that were proven.
            let mut proven: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
            let mut done = Vec::new();
            let mut next = 0;
            let end = (0..4000).map(|_| Event::Arrives(0));
            let after = events.into_iter().chain((0..3).flat_map(|lane| [Event::Up(lane, lane == 0), Event::Fails(lane)])).chain(end);
            for event in after {
                match event {
                    Event::Add { parts: count, lanes } => {
                        parts.add(next, plan(count, lanes, needs_proof));
                        proven.insert(next, vec![false; count]);
                        next += 1;
                    }
                    Event::Arrives(number) => {
                        let at = usize::from(number);
                        if let Some(part) = ways[at].pop_front() {
                            if part.length > 0 { come[at].push(part); }
                            if part.length == 0 || !needs_proof {
                                for part in come[at].drain(..) {
                                    let proven = proven.get_mut(&part.operation).unwrap();
                                    prop_assert!(!std::mem::replace(&mut proven[part.begin / PART], true), "twice");
                                }
                            }
                            let finished = parts.arrived(lane(number));
                            for operation in &finished {
                                prop_assert!(proven[operation].iter().all(|part| *part));
                            }
                            done.extend(finished);
                        }
                    }
                    Event::Fails(number) => {
                        ways[usize::from(number)].clear();
                        come[usize::from(number)].clear();
                        parts.begin_anew(lane(number));
                    }
                    Event::Up(number, is_up) => up[usize::from(number)] = is_up,
                }
                for part in start(&mut parts, |lane| up[usize::from(lane)]) {
                    ways[usize::from(part.peer.lane)].push_back(part);
                }
                for (number, way) in (0..).zip(&ways) {
                    prop_assert_eq!(way.len(), parts.under_way(lane(number)));
                    prop_assert!(way.len() <= usize::from(TRANSFERS));
                }
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..next).collect::<Vec<_>>());
            prop_assert!(parts.is_empty() && parts.unbegun.is_empty());
        }
    }
}
