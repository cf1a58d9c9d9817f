//! A step as it should be, and what each way of going wrong does to it.

use super::*;
use crate::{
    Output,
    scenario::{Nic, Pair},
};
use std::time::Duration;

fn rank(rank: usize) -> RankReport {
    let (node, local) = (rank / 2, rank % 2);
    let gid = |node: usize| format!("::ffff:10.0.{local}.{}", node + 1);
    let nic = Nic { device: format!("rxe{local}"), port: 1, gid: gid(node), gid_index: 1, rail: Some(local) };
    let pair = Pair {
        peer: (rank + 2) % 4,
        peer_node: format!("vm{}", 2 - node),
        rail: Some(local),
        device: nic.device.clone(),
        gid: gid(node),
        peer_gid: gid(1 - node),
        path_mtu: 4096,
        bytes: 1 << 20,
        send_recv: true,
        write: true,
        read: Some(true),
        latency_us: None,
    };
    RankReport {
        rank,
        size: 4,
        node: format!("vm{}", node + 1),
        local_rank: local,
        nics: vec![nic],
        priority: Some(3),
        dscp: Some(26),
        traffic_class: Some(106),
        planned_cpus: Some(local.to_string()),
        planned_numa_nodes: Some(local.to_string()),
        cpus_allowed: local.to_string(),
        memory_policy: format!("prefer:{local}"),
        memlock: "unlimited".into(),
        pairs: vec![pair],
    }
}

fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for rail in 0..2 {
        for (from, to) in [("vm1", "vm2"), ("vm2", "vm1")] {
            for (node, direction) in [(from, Direction::Sent), (to, Direction::Received)] {
                packets.push(Packet {
                    node: node.into(),
                    rail,
                    direction,
                    from: from.into(),
                    to: to.into(),
                    time: Duration::ZERO,
                    source: [10, 0, 0, 1].into(),
                    destination: [10, 0, 0, 2].into(),
                    dscp: 26,
                    ecn: 2,
                    transport: None,
                });
            }
        }
    }
    packets
}

fn step() -> StepResult {
    let output = Output { status: 0, stdout: String::new(), stderr: String::new(), elapsed: Duration::ZERO };
    StepResult { command: "srun".into(), output, ranks: (0..4).map(rank).collect(), packets: packets() }
}

/// The checks that a spoiled step fails.
fn failed(spoil: impl FnOnce(&mut StepResult)) -> Vec<String> {
    let mut step = step();
    spoil(&mut step);
    judge(&step, &Expectation::pairs(26))
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| check.what)
        .collect()
}

fn fails_only(what: &str, spoil: impl FnOnce(&mut StepResult)) {
    let failed = failed(spoil);
    assert!(matches!(failed.as_slice(), [one] if one.contains(what)), "{failed:?}");
}

#[test]
fn a_step_as_it_should_be_passes_every_check() {
    assert_eq!(failed(|_| ()), Vec::<String>::new());
}

#[test]
fn each_fault_fails_its_own_check() {
    fails_only("returns 0", |step| step.output.status = 1);
    fails_only("Cpus_allowed_list", |step| step.ranks[1].planned_cpus = Some("0-1".into()));
    fails_only("memory policy", |step| step.ranks[1].memory_policy = "default".into());
    fails_only("memory policy", |step| step.ranks[1].memory_policy = "interleave:1".into());
    fails_only("memlock", |step| step.ranks[3].memlock = "65536".into());
    fails_only("every byte", |step| step.ranks[2].pairs[0].write = false);
    fails_only("the same rail", |step| step.ranks[2].pairs[0].rail = Some(1));
    fails_only("NIC of its own NUMA node", |step| step.ranks[2].nics[0].rail = Some(1));
    fails_only("captures agree", |step| {
        let last = step.packets.len() - 1;
        step.packets.push(step.packets[last].clone());
    });
}

#[test]
fn one_acknowledgement_of_another_class_is_enough_to_fail() {
    fails_only("has DSCP 26", |step| {
        for packet in step.packets.iter_mut().filter(|packet| packet.rail == 1 && packet.from == "vm2") {
            packet.dscp = 0;
        }
    });
}

#[test]
fn a_silent_rail_and_a_silent_wire_are_seen() {
    fails_only("both ways", |step| step.packets.retain(|packet| packet.rail == 0 || packet.from == "vm1"));
    assert_eq!(failed(|step| step.packets.clear()).len(), 2);
}

#[test]
fn a_rank_without_a_report_is_seen() {
    assert!(failed(|step| drop(step.ranks.pop())).contains(&"every rank wrote its report".to_owned()));
    assert!(!failed(|step| step.ranks.clear()).is_empty());
}

#[test]
fn numa_nodes_are_counted_from_cpu_lists() {
    assert_eq!(numa_nodes("0", 1), [0].into());
    assert_eq!(numa_nodes("0-1,6", 2), [0, 3].into());
    assert_eq!(numa_nodes("", 2), BTreeSet::new());
}
