//! Whole jobs of simulated leaders, their messages delivered in any order that connections allow.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { join: Duration::from_secs(60), collective: Duration::from_secs(300) };

/// What waits to be delivered, in order per queue.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Queue {
    Member {
        node: usize,
        local: u32,
    },
    /// From a node to the one behind it, and back, for one round.
    Forth {
        node: usize,
        round: usize,
    },
    Back {
        node: usize,
        round: usize,
    },
}

#[derive(Clone, Debug)]
enum Item {
    Join(u32),
    Say(FromMember),
    Die,
    Meet(u32),
    Tell(BetweenLeaders),
}

/// What one rank has got.
#[derive(Clone, Default, Debug)]
struct Got {
    tables: Vec<Option<Vec<u8>>>,
    fault: Option<Fault>,
}

struct Job {
    cores: Vec<Core>,
    counts: Vec<u32>,
    first: Vec<u32>,
    queues: BTreeMap<Queue, VecDeque<Item>>,
    got: Vec<Got>,
    /// Collectives that each rank has still to begin.
    script: Vec<Operation>,
    sent: usize,
    dead: Option<u32>,
}

fn part_of(rank: u32, number: u64) -> Vec<u8> {
    vec![u8::try_from(rank % 251).unwrap(); (rank as usize + usize::try_from(number).unwrap()) % 5]
}

impl Job {
    fn new(counts: &[u32], script: &[Operation]) -> Self {
        let size: u32 = counts.iter().sum();
        let names: std::sync::Arc<[String]> = (0..counts.len()).map(|node| format!("n{node}")).collect();
        let mut first = vec![0];
        first.extend(counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }));
        let core = |(node, count): (usize, &u32)| {
            Core::new(Layout::new(u32::try_from(node).unwrap(), names.clone(), *count, size), LIMITS)
        };
        let cores: Vec<Core> = counts.iter().enumerate().map(core).collect();
        let mut job = Self {
            cores,
            counts: counts.to_vec(),
            first,
            queues: BTreeMap::new(),
            got: vec![Got::default(); size as usize],
            script: script.to_vec(),
            sent: 0,
            dead: None,
        };
        for (node, count) in counts.iter().enumerate() {
            for local in 0..*count {
                let rank = job.first[node] + local;
                job.push(Queue::Member { node, local }, Item::Join(rank));
                job.begin(node, local, 0);
            }
            for round in 0..job.cores[node].layout.rounds() {
                let behind = job.behind(node, round);
                let (caller, callee) = (job.first[node], job.first[behind]);
                job.push(Queue::Forth { node, round }, Item::Meet(caller));
                job.push(Queue::Back { node: behind, round }, Item::Meet(callee));
            }
        }
        job
    }

    fn behind(&self, node: usize, round: usize) -> usize {
        self.cores[node].layout.neighbour(Link { way: Way::Behind, round }) as usize
    }

    fn before(&self, node: usize, round: usize) -> usize {
        self.cores[node].layout.neighbour(Link { way: Way::Before, round }) as usize
    }

    fn push(&mut self, queue: Queue, item: Item) {
        self.queues.entry(queue).or_default().push_back(item);
    }

    /// A rank begins its next collective, or leaves after the last.
    fn begin(&mut self, node: usize, local: u32, number: usize) {
        let rank = self.first[node] + local;
        let number64 = number as u64;
        let message = match self.script.get(number) {
            None => FromMember::Bye,
            Some(&operation) => {
                let gives = match operation {
                    Operation::AllGather => true,
                    Operation::Broadcast { root } => root == rank,
                    Operation::Barrier | Operation::Leave => false,
                };
                let bytes = if gives { part_of(rank, number64) } else { Vec::new() };
                FromMember::Part { operation, number: number64, bytes }
            }
        };
        self.push(Queue::Member { node, local }, Item::Say(message));
    }

    /// Delivers the next of the queue that `choice` names; false when nothing is left.
    fn deliver(&mut self, choice: usize) -> bool {
        let ready: Vec<Queue> = self
            .queues
            .iter()
            .filter(|(_, items)| !items.is_empty())
            .map(|(queue, _)| queue.clone())
            .collect();
        let Some(queue) = ready.get(choice % ready.len().max(1)).cloned() else { return false };
        let item = self.queues.get_mut(&queue).unwrap().pop_front().unwrap();
        let now = Duration::ZERO;
        let (node, link) = match queue {
            Queue::Member { node, local } => {
                let core = &mut self.cores[node];
                match item {
                    Item::Join(rank) => core.local_joined(local, rank).unwrap(),
                    Item::Say(message) => core.local_message(now, local, message),
                    Item::Die => core.local_closed(local, "died"),
                    Item::Meet(_) | Item::Tell(_) => unreachable!(),
                }
                return self.collect(node);
            }
            Queue::Forth { node, round } => (self.behind(node, round), Link { way: Way::Before, round }),
            Queue::Back { node, round } => (self.before(node, round), Link { way: Way::Behind, round }),
        };
        match item {
            Item::Meet(rank) => self.cores[node].peer_joined(link, rank).unwrap(),
            Item::Tell(message) => self.cores[node].peer_message(now, link, message),
            Item::Join(_) | Item::Say(_) | Item::Die => unreachable!(),
        }
        self.collect(node)
    }

    fn collect(&mut self, node: usize) -> bool {
        while let Some(output) = self.cores[node].output() {
            match output {
                Output::Send { link, message } => self.tell(node, link, message),
                Output::Deliver { number, table } => {
                    for local in 0..self.counts[node] {
                        let got = &mut self.got[(self.first[node] + local) as usize];
                        assert_eq!(got.tables.len() as u64, number);
                        got.tables.push(table.clone());
                        if self.dead != Some(self.first[node] + local) {
                            self.begin(node, local, usize::try_from(number).unwrap() + 1);
                        }
                    }
                }
                Output::Fail { fault, except } => {
                    for local in 0..self.counts[node] {
                        let rank = (self.first[node] + local) as usize;
                        assert!(self.got[rank].fault.replace(fault.clone()).is_none(), "told twice");
                    }
                    for round in 0..self.cores[node].layout.rounds() {
                        for link in [Link { way: Way::Before, round }, Link { way: Way::Behind, round }] {
                            if Some(link) != except && self.cores[node].neighbour_ref(link).rank.is_some() {
                                self.tell(node, link, BetweenLeaders::Fault(fault.clone()));
                            }
                        }
                    }
                }
                Output::Finished => {}
            }
        }
        true
    }

    fn tell(&mut self, node: usize, link: Link, message: BetweenLeaders) {
        self.sent += usize::from(matches!(message, BetweenLeaders::Gathered { .. }));
        let queue = match link.way {
            Way::Behind => Queue::Forth { node, round: link.round },
            Way::Before => Queue::Back { node, round: link.round },
        };
        self.push(queue, Item::Tell(message));
    }

    fn expected(&self, number: usize) -> Option<Vec<u8>> {
        let size: u32 = self.counts.iter().sum();
        let parts = |ranks: std::ops::Range<u32>| {
            let parts: Vec<Vec<u8>> = ranks.map(|rank| part_of(rank, number as u64)).collect();
            crate::table::encode(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        match self.script[number] {
            Operation::AllGather => Some(parts(0..size)),
            Operation::Broadcast { root } => Some(parts(root..root + 1)),
            Operation::Barrier | Operation::Leave => None,
        }
    }
}

fn counts() -> impl Strategy<Value = Vec<u32>> {
    let most = if cfg!(miri) { 6 } else { 34 };
    proptest::collection::vec(1u32..4, 1..most)
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 4 } else { 128 };
    ProptestConfig { failure_persistence: None, cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn everyone_gets_everything_in_logarithmic_rounds_and_can_leave(
        counts in counts(),
        operations in proptest::collection::vec(0u8..3, 0..4),
        seed in any::<u64>(),
    ) {
        let size: u32 = counts.iter().sum();
        let operation = |code: u8| match code {
            0 => Operation::AllGather,
            1 => Operation::Barrier,
            _ => Operation::Broadcast { root: u32::try_from(seed % u64::from(size)).unwrap() },
        };
        let script: Vec<Operation> = operations.into_iter().map(operation).collect();
        let mut job = Job::new(&counts, &script);
        let mut random = Random(seed);
        while job.deliver(random.next()) {}
        for (rank, got) in job.got.iter().enumerate() {
            prop_assert!(got.fault.is_none(), "rank {}: {:?}", rank, got.fault);
            prop_assert_eq!(got.tables.len(), script.len());
            for (number, table) in got.tables.iter().enumerate() {
                prop_assert_eq!(table, &job.expected(number));
            }
        }
        prop_assert!(job.cores.iter().all(Core::finished));
        let rounds = counts.len().next_power_of_two().trailing_zeros() as usize;
        prop_assert_eq!(job.sent, counts.len() * rounds * (script.len() + 1));
    }

    #[test]
    fn a_rank_that_dies_is_named_to_everyone_the_same(
        counts in counts(), seed in any::<u64>(), moment in 0usize..400, victim in any::<proptest::sample::Index>(),
    ) {
        let size: u32 = counts.iter().sum();
        let victim = u32::try_from(victim.index(size as usize)).unwrap();
        let mut job = Job::new(&counts, &[Operation::AllGather, Operation::Barrier, Operation::AllGather]);
        let mut random = Random(seed);
        for _ in 0..moment {
            job.deliver(random.next());
        }
        let node = job.first.iter().rposition(|first| *first <= victim).unwrap();
        let local = victim - job.first[node];
        job.dead = Some(victim);
        // What it said before may still be on its way; its end comes after that.
        job.push(Queue::Member { node, local }, Item::Die);
        while job.deliver(random.next()) {}
        let left = job.cores.iter().all(Core::finished);
        for (rank, got) in job.got.iter().enumerate() {
            match &got.fault {
                Some(fault) => prop_assert_eq!((fault.kind, fault.rank, fault.node as usize), (FaultKind::Lost, Some(victim), node)),
                None => prop_assert!(left, "rank {} waits for ever", rank),
            }
        }
    }
}

/// A small generator, the same for Miri.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap()
    }
}

#[test]
fn whoever_is_overdue_is_named() {
    let names: std::sync::Arc<[String]> = vec!["a".to_owned(), "b".to_owned()].into();
    let mut core = Core::new(Layout::new(0, names, 2, 3), LIMITS);
    let part = |number| FromMember::Part { operation: Operation::AllGather, number, bytes: Vec::new() };
    core.local_joined(1, 1).unwrap();
    core.local_message(Duration::ZERO, 1, part(0));
    let mut late = core.clone();
    late.tick(LIMITS.join, |_| None);
    let text = &late.fault().unwrap().text;
    assert!(text.starts_with("1 of the 2 ranks on a (local ranks 0) did not join within 60.0s"), "{text}");
    core.local_joined(0, 0).unwrap();
    core.local_message(Duration::ZERO, 0, part(0));
    core.tick(LIMITS.join, |_| None);
    assert!(core.fault().is_none(), "others may know better");
    core.tick(LIMITS.join + GRACE, |_| Some("tried everything".to_owned()));
    let text = &core.fault().unwrap().text;
    assert!(text.starts_with("the ranks on b did not join within 62.0s; tried everything;"), "{text}");
}

#[test]
fn a_neighbour_that_breaks_the_rules_is_lost() {
    let names: std::sync::Arc<[String]> = vec!["a".to_owned(), "b".to_owned()].into();
    let link = Link { way: Way::Before, round: 0 };
    let gathered = |number, bytes: &[u8]| BetweenLeaders::Gathered {
        operation: Operation::AllGather,
        number,
        bytes: bytes.to_vec(),
    };
    for (message, what) in [
        (gathered(1, &[0; 4]), "out of turn"),
        (gathered(0, &[0, 0, 0, 9]), "cut off"),
        (gathered(0, &[0; 5]), "too long"),
    ] {
        let mut core = Core::new(Layout::new(0, names.clone(), 1, 2), LIMITS);
        core.local_joined(0, 0).unwrap();
        core.peer_joined(link, 1).unwrap();
        let operation = Operation::AllGather;
        core.local_message(Duration::ZERO, 0, FromMember::Part { operation, number: 0, bytes: Vec::new() });
        core.peer_message(Duration::ZERO, link, message);
        let fault = core.fault().unwrap();
        assert_eq!((fault.kind, fault.rank, fault.node), (FaultKind::Lost, Some(1), 1));
        assert!(fault.text.contains(what), "{}", fault.text);
    }
}
