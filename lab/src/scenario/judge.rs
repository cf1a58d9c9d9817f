//! Holds what a step left behind against what it should have left. Each check is one sentence with what was seen.

use super::{RankReport, StepResult};
use crate::wire::{Direction, Packet, Table};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What must hold.
    pub what: String,
    /// Whether it does.
    pub ok: bool,
    /// What was seen.
    pub seen: String,
}

/// How a step must turn out.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// The DSCP of every RoCEv2 packet.
    pub dscp: u8,
    /// The number of rails, all of which must carry traffic both ways.
    pub rails: usize,
    /// CPUs on each NUMA node; rail k is on NUMA node k modulo their number.
    pub cpus_per_numa_node: usize,
    /// NUMA nodes.
    pub numa_nodes: usize,
    /// Each task has exactly the NIC of its NUMA node. Otherwise each has one on every rail.
    pub one_nic_each: bool,
    /// Each rank exchanges with every rank of the other node. Otherwise with its partner alone.
    pub all_peers: bool,
    /// Whether the plugin places the tasks: NICs, CPUs, memory and memlock are judged.
    pub placed: bool,
}

impl Expectation {
    /// Step one of the demo: a NIC each, the one of the task's own NUMA node, and one partner.
    #[must_use]
    pub fn pairs(dscp: u8) -> Self {
        Self {
            dscp,
            rails: 2,
            cpus_per_numa_node: 1,
            numa_nodes: 2,
            one_nic_each: true,
            all_peers: false,
            placed: true,
        }
    }

    /// Step two of the demo: all NICs for each task, and all ranks of the other node.
    #[must_use]
    pub fn all_to_all(dscp: u8) -> Self {
        Self { one_nic_each: false, all_peers: true, ..Self::pairs(dscp) }
    }
}

/// Every check of a step with two nodes, `vm1` and `vm2`.
#[must_use]
pub fn judge(step: &StepResult, expected: &Expectation) -> Vec<Check> {
    let mut checks = vec![
        check("the command returns 0", step.output.success(), format!("it returned {}", step.output.status)),
        all_ranks_reported(&step.ranks),
    ];
    checks.extend(wire(&step.packets, expected));
    checks.push(payload(&step.ranks, expected));
    checks.push(rails_of_pairs(&step.ranks));
    if expected.placed {
        checks.push(nics(&step.ranks, expected));
        checks.push(equal(&step.ranks, "Cpus_allowed_list is the planned CPUs", |rank| {
            (rank.cpus_allowed.clone(), rank.planned_cpus.clone().unwrap_or_default())
        }));
        checks.push(equal(&step.ranks, "the memory policy is on the planned NUMA nodes", |rank| {
            (policy_nodes(&rank.memory_policy), rank.planned_numa_nodes.clone().unwrap_or_default())
        }));
        checks.push(equal(&step.ranks, "memlock is unlimited in every task", |rank| {
            (rank.memlock.clone(), "unlimited".into())
        }));
    }
    checks
}

fn check(what: impl Into<String>, ok: bool, seen: impl Into<String>) -> Check {
    Check { what: what.into(), ok, seen: seen.into() }
}

fn all_ranks_reported(ranks: &[RankReport]) -> Check {
    let seen: Vec<_> = ranks.iter().map(|rank| rank.rank).collect();
    let ok = !seen.is_empty()
        && ranks.iter().all(|rank| rank.size == seen.len())
        && seen.iter().copied().eq(0..seen.len());
    check("every rank wrote its report", ok, format!("ranks {}", list(&seen)))
}

fn wire(packets: &[Packet], expected: &Expectation) -> Vec<Check> {
    let dscp = expected.dscp;
    let wrong: BTreeMap<u8, u64> =
        packets.iter().filter(|packet| packet.dscp != dscp).fold(BTreeMap::new(), |mut counts, packet| {
            *counts.entry(packet.dscp).or_default() += 1;
            counts
        });
    let seen = if wrong.is_empty() {
        format!("{} captured, none with another", packets.len())
    } else {
        format!(
            "DSCP (packets): {}",
            list(&wrong.iter().map(|(dscp, count)| format!("{dscp} ({count})")).collect::<Vec<_>>())
        )
    };
    let every = check(
        format!("every RoCEv2 packet, data and acknowledgements, has DSCP {dscp}"),
        wrong.is_empty() && !packets.is_empty(),
        seen,
    );

    let table = Table::of(packets);
    let ways = (0..expected.rails).flat_map(|rail| [(rail, "vm1", "vm2"), (rail, "vm2", "vm1")]);
    let silent: Vec<_> = ways
        .clone()
        .filter(|(rail, from, to)| table.count(*rail, from, to) == 0)
        .map(|(rail, from, to)| format!("rail {rail} {from} -> {to}"))
        .collect();
    let seen = if silent.is_empty() { "none is silent".into() } else { format!("silent: {}", list(&silent)) };
    let carried = check("every rail carries traffic both ways", silent.is_empty(), seen);

    // A packet that one end's capture lacks would make the other checks weaker than they sound.
    let at = |direction| {
        let of_it = packets.iter().filter(move |packet| packet.direction == direction);
        of_it.fold(BTreeMap::<_, u64>::new(), |mut counts, packet| {
            *counts.entry((packet.rail, &packet.from, &packet.to)).or_default() += 1;
            counts
        })
    };
    let (sent, received) = (at(Direction::Sent), at(Direction::Received));
    let total = |counts: &BTreeMap<_, u64>| counts.values().sum::<u64>();
    let seen = format!("{} sent, {} received", total(&sent), total(&received));
    vec![every, carried, check("both ends' captures agree", sent == received, seen)]
}

fn payload(ranks: &[RankReport], expected: &Expectation) -> Check {
    let mut bad = Vec::new();
    let mut pairs = 0;
    for rank in ranks {
        let others = ranks.iter().filter(|other| other.node != rank.node).count();
        let wanted = if expected.all_peers { others } else { 1 };
        if rank.pairs.len() != wanted {
            bad.push(format!("rank {} has {} peers, not {wanted}", rank.rank, rank.pairs.len()));
        }
        for pair in &rank.pairs {
            pairs += 1;
            if !(pair.send_recv && pair.write && pair.read != Some(false) && pair.bytes > 0) {
                bad.push(format!("rank {} with rank {}", rank.rank, pair.peer));
            }
            if pair.peer_node == rank.node {
                bad.push(format!("rank {} has a peer on its own node", rank.rank));
            }
        }
    }
    let seen = if bad.is_empty() { format!("{pairs} exchanges") } else { list(&bad) };
    check("every byte arrived as it was sent", bad.is_empty() && pairs > 0, seen)
}

/// Both ends of a pair must tell of the same rail, and each of the GID that the other has.
fn rails_of_pairs(ranks: &[RankReport]) -> Check {
    let mut bad = Vec::new();
    let mut rails = BTreeSet::new();
    for rank in ranks {
        for pair in &rank.pairs {
            let other = ranks.iter().find(|other| other.rank == pair.peer);
            let mirror = other.and_then(|other| other.pairs.iter().find(|mirror| mirror.peer == rank.rank));
            let same = mirror.is_some_and(|mirror| {
                mirror.rail == pair.rail && mirror.gid == pair.peer_gid && mirror.peer_gid == pair.gid
            });
            if !same {
                bad.push(format!("rank {} with rank {}", rank.rank, pair.peer));
            }
            rails.extend(pair.rail);
        }
    }
    let seen = if bad.is_empty() { format!("rails {}", list(&Vec::from_iter(rails))) } else { list(&bad) };
    check("both ends of every pair name the same rail and GIDs", bad.is_empty(), seen)
}

fn nics(ranks: &[RankReport], expected: &Expectation) -> Check {
    let mut bad = Vec::new();
    let mut seen = Vec::new();
    for rank in ranks {
        let rails: Vec<_> = rank.nics.iter().filter_map(|nic| nic.rail).collect();
        seen.push(format!("rank {}: CPUs {} rail {}", rank.rank, rank.cpus_allowed, list(&rails)));
        // The task's CPUs as the kernel sees them, so that a wrong plan can't vouch for itself.
        let nodes = numa_nodes(&rank.cpus_allowed, expected.cpus_per_numa_node);
        let own = |rail: &usize| nodes.iter().all(|node| rail % expected.numa_nodes == *node);
        let right = match rails.as_slice() {
            [rail] if expected.one_nic_each => nodes.len() == 1 && own(rail),
            [] => false,
            // The best comes first: that of the task's own NUMA node.
            [first, ..] => {
                !expected.one_nic_each && rails.len() == expected.rails && (nodes.len() != 1 || own(first))
            }
        };
        if !right || rails.len() != rank.nics.len() {
            bad.push(rank.rank);
        }
    }
    let what = if expected.one_nic_each {
        "each task has the NIC of its own NUMA node, and no other"
    } else {
        "each task has a NIC on every rail, its own NUMA node's first"
    };
    check(what, bad.is_empty() && !ranks.is_empty(), list(&seen))
}

/// A check that two texts are equal for every rank, and not empty.
fn equal(ranks: &[RankReport], what: &str, texts: impl Fn(&RankReport) -> (String, String)) -> Check {
    let mut ok = !ranks.is_empty();
    let mut seen = Vec::new();
    for rank in ranks {
        let (is, should) = texts(rank);
        let same = is == should && !is.is_empty();
        ok &= same;
        seen.push(if same {
            format!("rank {}: {is}", rank.rank)
        } else {
            format!("rank {}: {is:?}, not {should:?}", rank.rank)
        });
    }
    check(what, ok, list(&seen))
}

/// The NUMA nodes of a list of CPUs (`0-1,3`), where each NUMA node has `per_node` CPUs in a row.
fn numa_nodes(cpus: &str, per_node: usize) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    cpus.split(',').filter_map(range).flatten().map(|cpu| cpu / per_node).collect()
}

/// The nodes of a policy as numa(7) prints it (`prefer:0`, `prefer (many):0-1`, `bind:1`); nothing if it names none.
fn policy_nodes(policy: &str) -> String {
    match policy.split_once(':') {
        Some((mode, nodes)) if mode.starts_with("prefer") || mode.starts_with("bind") => nodes.trim().into(),
        _ => String::new(),
    }
}

fn list(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
