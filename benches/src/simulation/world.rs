//! A job of many nodes: the state machines of all leaders, and what happens between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use roce_bootstrap::core::{Core, Layout, Limits, Link, Output, Way};
use roce_bootstrap::message::{BetweenLeaders, FromMember, Operation};
use roce_bootstrap::simulation::{FRAME, HANDSHAKE, Search, node_bytes, table_bytes};

use super::counted::{Part, Span};
use super::network::{Network, Nic, SLOWER};

/// What a leader's thread spends its time with, in nanoseconds. Those of bytes were measured on an AMD EPYC with SHA extensions,
/// in memory that the process had not touched before.
mod cost {
    /// One rank of its node: accepting it, reading its part.
    pub(super) const RANK_COMES: u64 = 10_000;
    /// Handing it the table.
    pub(super) const RANK_GETS: u64 = 5_000;
    /// One message of a handshake, and one of an exchange: system calls and the HMAC of a short message.
    pub(super) const HANDSHAKE: u64 = 25_000;
    pub(super) const MESSAGE: u64 = 10_000;
    /// A call that nobody took.
    pub(super) const REFUSED: u64 = 20_000;
    /// A byte that is sent, and one that is received: HMAC and copies.
    pub(super) const BYTE_SENT: f64 = 3.0;
    pub(super) const BYTE_RECEIVED: f64 = 2.5;
    /// A byte of the table, until it is in memory that the ranks can map.
    pub(super) const TABLE_BYTE: f64 = 2.0;
}

/// The one port that every simulated leader can have.
const PORT: u16 = 50_000;
/// `10.0.0.0`: node i has the address so much above.
const FIRST_ADDRESS: u32 = 10 << 24;

/// What is simulated.
pub(super) struct Job {
    pub(super) nodes: u32,
    pub(super) ranks: u32,
    /// Bytes that each rank tells the others.
    pub(super) card: usize,
}

/// What one node did.
#[derive(Clone, Default, Debug)]
pub(super) struct Node {
    pub(super) rounds: u32,
    pub(super) made: u32,
    pub(super) accepted: u32,
    pub(super) refused: u32,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// From the start of the job's last leader until its ranks know everyone, in nanoseconds.
    pub(super) time: u64,
}

/// Something that happens at a node, about the connection of a round.
#[derive(Clone, Copy)]
enum Event {
    /// Its ranks start.
    Start,
    /// It is time to call again.
    Search {
        round: usize,
    },
    /// A call was refused.
    Refused {
        round: usize,
        call: u64,
    },
    /// The three messages of a handshake.
    Hello {
        round: usize,
        call: u64,
    },
    Answer {
        round: usize,
        call: u64,
    },
    Last {
        round: usize,
    },
    /// The first byte of a message, and its last.
    Begins {
        round: usize,
        parts: Span,
    },
    Comes {
        round: usize,
        parts: Span,
    },
}

/// One node.
struct Leader {
    core: Core<Span>,
    layout: Layout,
    start: u64,
    slow: bool,
    /// Its thread has enough to do until then.
    busy: u64,
    nic: Nic,
    /// By round; none for whoever was found.
    searches: Vec<Option<Search>>,
    calls: u64,
    /// What waits until the neighbour is connected.
    early: Vec<Option<Span>>,
    /// When the handshake's last message is at the neighbour: what is sent after it comes after it.
    open: Vec<u64>,
    end: Option<u64>,
    node: Node,
}

struct World<'a> {
    job: &'a Job,
    network: &'a Network,
    random: Rng,
    leaders: Vec<Leader>,
    /// What lies ahead, by time. Events of one moment happen in the order in which they were planned.
    events: BTreeMap<u64, Vec<(u32, Event)>>,
}

/// Simulates the job until all ranks know everyone.
///
/// # Errors
/// If a leader finds something wrong, or waits for ever.
pub(super) fn run(job: &Job, network: &Network, seed: u64) -> Result<Vec<Node>> {
    let mut world = World::new(job, network, Rng::with_seed(seed));
    while let Some((time, events)) = world.events.pop_first() {
        for (node, event) in events {
            world.happen(time, node as usize, event)?;
        }
    }
    let last = world.leaders.iter().map(|leader| leader.start).max().unwrap_or(0);
    let nodes = world.leaders.into_iter().enumerate().map(|(number, leader)| {
        let end = leader.end.with_context(|| format!("node {number} waits for ever"))?;
        Ok(Node { time: end.saturating_sub(last), ..leader.node })
    });
    nodes.collect()
}

impl<'a> World<'a> {
    fn new(job: &'a Job, network: &'a Network, mut random: Rng) -> Self {
        let names: Arc<[String]> = (0..job.nodes).map(|node| format!("node{node}")).collect();
        let limit = Duration::from_secs(3600);
        let limits = Limits { join: limit, collective: limit };
        let leader = |node| {
            let layout = Layout::new(node, Arc::clone(&names), job.ranks, job.nodes * job.ranks);
            let rounds = layout.rounds();
            Leader {
                core: Core::gathering(layout.clone(), limits),
                layout,
                start: random.u64(0..=network.skew),
                slow: random.f64() < network.slow,
                busy: 0,
                nic: Nic::default(),
                searches: (0..rounds).map(|_| Some(Search::new(vec![PORT]))).collect(),
                calls: 0,
                early: vec![None; rounds],
                open: vec![0; rounds],
                end: None,
                node: Node::default(),
            }
        };
        let leaders: Vec<Leader> = (0..job.nodes).map(leader).collect();
        let mut world = Self { job, network, random, leaders, events: BTreeMap::new() };
        for node in 0..world.leaders.len() {
            world.plan(world.leaders[node].start, node, Event::Start);
        }
        world
    }

    fn plan(&mut self, time: u64, node: usize, event: Event) {
        let node = u32::try_from(node).unwrap_or(u32::MAX);
        self.events.entry(time).or_default().push((node, event));
    }

    /// A node's thread does something that takes so long. Gives when that is done.
    fn work(&mut self, time: u64, node: usize, cost: u64) -> u64 {
        let leader = &mut self.leaders[node];
        leader.busy = leader.busy.max(time) + if leader.slow { cost * SLOWER } else { cost };
        leader.busy
    }

    fn happen(&mut self, time: u64, node: usize, event: Event) -> Result<()> {
        match event {
            Event::Start => self.start(time, node)?,
            Event::Search { round } => self.search(time, node, round),
            Event::Refused { round, call } => {
                let now = self.work(time, node, cost::REFUSED);
                let leader = &mut self.leaders[node];
                leader.node.refused += 1;
                if let Some(search) = &mut leader.searches[round] {
                    search.failed(call, false, "refused");
                    self.search(now, node, round);
                }
            }
            Event::Hello { round, call } => {
                let [_, answer, _] = HANDSHAKE;
                let now = self.work(time, node, cost::HANDSHAKE);
                let there = self.short(now, node, answer);
                let caller = self.neighbour(node, Way::Before, round);
                self.plan(there, caller, Event::Answer { round, call });
            }
            Event::Answer { round, call } => {
                let [_, _, last] = HANDSHAKE;
                let now = self.work(time, node, cost::HANDSHAKE);
                let there = self.short(now, node, last);
                let behind = self.neighbour(node, Way::Behind, round);
                self.plan(there, behind, Event::Last { round });
                let leader = &mut self.leaders[node];
                leader.open[round] = there;
                leader.node.made += 1;
                if let Some(mut search) = leader.searches[round].take() {
                    search.found(call);
                }
                self.join(node, Way::Behind, round)?;
                if let Some(parts) = self.leaders[node].early[round].take() {
                    self.send(now, node, round, parts);
                }
            }
            Event::Last { round } => {
                self.work(time, node, cost::HANDSHAKE);
                self.leaders[node].node.accepted += 1;
                self.join(node, Way::Before, round)?;
            }
            Event::Begins { round, parts } => {
                let before = self.neighbour(node, Way::Before, round);
                let slow = self.leaders[node].slow || self.leaders[before].slow;
                let transfer = self.network.transfer(length(parts), slow);
                let there = self.leaders[node].nic.receive(time, transfer);
                self.plan(there, node, Event::Comes { round, parts });
            }
            Event::Comes { round, parts } => {
                let now = self.work(time, node, cost::MESSAGE + of_bytes(length(parts), cost::BYTE_RECEIVED));
                let leader = &mut self.leaders[node];
                leader.node.received += length(parts);
                let (operation, number) = (Operation::AllGather, 0);
                let message = BetweenLeaders::Gathered { operation, number, bytes: parts };
                let link = Link { way: Way::Before, round };
                leader.core.peer_message(Duration::from_nanos(now), link, message);
                self.do_outputs(node)?;
            }
        }
        Ok(())
    }

    /// The ranks come, the leader calls its neighbours.
    fn start(&mut self, time: u64, node: usize) -> Result<()> {
        for round in 0..self.leaders[node].searches.len() {
            let address = IpAddr::from(Ipv4Addr::from(
                FIRST_ADDRESS + self.leaders[node].layout.neighbour(Link { way: Way::Behind, round }),
            ));
            if let Some(search) = &mut self.leaders[node].searches[round] {
                search.resolved(Ok(vec![address]));
            }
            self.search(time, node, round);
        }
        let now = self.work(time, node, cost::RANK_COMES * u64::from(self.job.ranks));
        let Job { nodes, ranks, card } = *self.job;
        let leader = &mut self.leaders[node];
        let node_bytes = u32::try_from(node_bytes(ranks as usize, card))?;
        let part = Part { node: leader.layout.node(), nodes, node_bytes };
        for local in 0..ranks {
            let joined = leader.core.local_joined(local, part.node * ranks + local);
            joined.map_err(|what| anyhow::anyhow!("local rank {local} of node {node}: {what}"))?;
            let message = FromMember::Part { operation: Operation::AllGather, number: 0, bytes: part };
            leader.core.local_message(Duration::from_nanos(now), local, message);
        }
        self.do_outputs(node)
    }

    /// Calls whom the search names.
    fn search(&mut self, time: u64, node: usize, round: usize) {
        let mut now = time;
        let mut called = false;
        loop {
            let leader = &mut self.leaders[node];
            let Some(search) = &mut leader.searches[round] else { return };
            let Some(target) = search.next(Duration::from_nanos(now)) else {
                // While a call is on its way, its answer comes before anything else that there is to do.
                if let Some(wake) = search.wake().filter(|_| !called) {
                    // Rounded up, as the leader's timer.
                    let wake = u64::try_from(wake.as_nanos()).unwrap_or(u64::MAX).max(now) + 1_000_000;
                    self.plan(wake, node, Event::Search { round });
                }
                return;
            };
            let call = leader.calls;
            leader.calls += 1;
            search.calling(Duration::from_nanos(now), call, target);
            called = true;
            now = self.work(now, node, cost::HANDSHAKE);
            self.call(now, node, round, call, target);
        }
    }

    fn call(&mut self, now: u64, node: usize, round: usize, call: u64, target: SocketAddr) {
        let IpAddr::V4(address) = target.ip() else { return };
        let target = (u32::from(address) - FIRST_ADDRESS) as usize;
        let latency = self.network.latency;
        let there = now + latency + self.network.delay_of_syn(&mut self.random);
        if self.leaders[target].start > there {
            return self.plan(there + latency, node, Event::Refused { round, call });
        }
        let answered = there + latency + self.network.delay_of_syn(&mut self.random);
        let [hello, ..] = HANDSHAKE;
        let there = self.short(answered, node, hello);
        self.plan(there, target, Event::Hello { round, call });
    }

    /// When a short message is there, which finds room between the long ones.
    fn short(&mut self, now: u64, node: usize, bytes: usize) -> u64 {
        let bytes = bytes as u64;
        let leader = &mut self.leaders[node];
        leader.node.sent += bytes;
        let transfer = self.network.transfer(bytes, leader.slow);
        now + transfer + self.network.latency + self.network.delay(&mut self.random, bytes)
    }

    fn join(&mut self, node: usize, way: Way, round: usize) -> Result<()> {
        let link = Link { way, round };
        let rank = self.leaders[node].layout.neighbour(link) * self.job.ranks;
        let joined = self.leaders[node].core.peer_joined(link, rank);
        joined.map_err(|what| anyhow::anyhow!("neighbour {link:?} of node {node}: {what}"))?;
        self.do_outputs(node)
    }

    fn send(&mut self, now: u64, node: usize, round: usize, parts: Span) {
        let bytes = length(parts);
        let now = self.work(now, node, cost::MESSAGE + of_bytes(bytes, cost::BYTE_SENT));
        let leader = &mut self.leaders[node];
        leader.node.sent += bytes;
        let begins = leader.nic.send(now, self.network.transfer(bytes, leader.slow));
        let delay = self.network.delay(&mut self.random, bytes);
        let there = (begins + self.network.latency + delay).max(self.leaders[node].open[round]);
        let behind = self.neighbour(node, Way::Behind, round);
        self.plan(there, behind, Event::Begins { round, parts });
    }

    fn neighbour(&self, node: usize, way: Way, round: usize) -> usize {
        self.leaders[node].layout.neighbour(Link { way, round }) as usize
    }

    fn do_outputs(&mut self, node: usize) -> Result<()> {
        while let Some(output) = self.leaders[node].core.output() {
            match output {
                Output::Send { link, message: BetweenLeaders::Gathered { bytes, .. } } => {
                    let leader = &mut self.leaders[node];
                    leader.node.rounds += 1;
                    if leader.searches[link.round].is_some() {
                        leader.early[link.round] = Some(bytes);
                    } else {
                        let now = leader.busy;
                        self.send(now, node, link.round, bytes);
                    }
                }
                Output::Deliver { .. } => {
                    let ranks = self.job.ranks as usize;
                    let table = table_bytes(ranks * self.job.nodes as usize, self.job.card) as u64;
                    let cost = of_bytes(table, cost::TABLE_BYTE) + cost::RANK_GETS * ranks as u64;
                    let now = self.leaders[node].busy;
                    self.leaders[node].end = Some(self.work(now, node, cost));
                }
                Output::Fail { fault, .. } => bail!("node {node} hears of {fault:?}"),
                Output::Send { message, .. } => bail!("node {node} sends {message:?}"),
                Output::Finished => bail!("node {node} has left"),
            }
        }
        Ok(())
    }
}

/// Bytes of a message on its connection.
fn length(parts: Span) -> u64 {
    FRAME as u64 + parts.bytes()
}

/// Nanoseconds for so many bytes.
fn of_bytes(bytes: u64, each: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "ns"
    )]
    let time = (bytes as f64 * each) as u64;
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Network = Network { latency: 25_000, gbit_s: 25.0, loss: 0.0, slow: 0.0, skew: 0 };
    const ROUGH: Network = Network { loss: 0.01, slow: 0.1, skew: 100_000_000, ..CALM };

    /// Every leader needs what theory says.
    fn check(nodes: u32, ranks: u32, networks: &[Network]) {
        let job = Job { nodes, ranks, card: 64 };
        let rounds = nodes.next_power_of_two().ilog2();
        let messages = u64::from(nodes - 1) * node_bytes(ranks as usize, 64) as u64;
        let handshakes = u64::from(rounds) * HANDSHAKE.iter().map(|length| *length as u64).sum::<u64>();
        let sent = messages + u64::from(rounds) * FRAME as u64 + handshakes;
        for network in networks {
            let found = run(&job, network, 7).unwrap();
            assert_eq!(found.len(), nodes as usize);
            for node in found {
                assert_eq!(
                    (node.rounds, node.made, node.accepted),
                    (rounds, rounds, rounds),
                    "{nodes} nodes"
                );
                // Without loss; a refused caller says no hello.
                assert_eq!(node.sent, sent, "{nodes} nodes");
            }
        }
    }

    #[test]
    fn rounds_and_connections_are_logarithms_of_the_nodes() {
        for nodes in 1..=300 {
            check(nodes, 1 + nodes % 3, &[CALM, ROUGH]);
        }
        check(1_000, 1, &[CALM, ROUGH]);
        check(10_000, 1, &[CALM]);
    }

    #[test]
    fn and_so_they_are_of_100_000_nodes() {
        check(100_000, 1, &[CALM]);
    }

    #[test]
    fn the_same_seed_gives_the_same_world() {
        let job = Job { nodes: 50, ranks: 2, card: 64 };
        let times = |seed| run(&job, &ROUGH, seed).unwrap().iter().map(|node| node.time).collect::<Vec<_>>();
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }

    #[test]
    fn whatever_makes_the_network_worse_makes_the_exchange_slower() {
        let job = Job { nodes: 100, ranks: 64, card: 64 };
        let last =
            |network: &Network| run(&job, network, 3).unwrap().iter().map(|node| node.time).max().unwrap();
        let calm = last(&CALM);
        for worse in [
            Network { latency: 1_000_000, ..CALM },
            Network { gbit_s: 1.0, ..CALM },
            Network { loss: 0.01, ..CALM },
            Network { slow: 0.1, ..CALM },
            Network { skew: 100_000_000, ..CALM },
        ] {
            assert!(last(&worse) > calm, "{worse:?}");
        }
    }
}
