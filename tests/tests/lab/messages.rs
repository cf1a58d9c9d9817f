//! Messages between nodes over the NICs: the example `heat`, and the launcher's own tests of messages, run by ranks in the guests.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, must_run, told},
};
use libtest_mimic::Failed;
use roce_lab::{
    Cluster, Output,
    wire::{Direction, Packet, Table},
};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "messages::heat_goes_over_both_nics_in_the_class_asked_for", run: heat },
    Control { name: "messages::are_as_the_model_says_over_verbs", run: as_the_model_says },
    Control { name: "messages::have_a_queue_pair_for_each_rank_spoken_to_and_none_before", run: on_demand },
    Control { name: "messages::to_a_rank_that_died_are_an_error_with_its_name_and_node", run: death },
    Control { name: "messages::go_over_what_roce_transports_says", run: transports },
    Control { name: "messages::over_a_port_that_is_down_are_an_error_that_says_so", run: port_down },
];

const SRUN: &str = "srun -N2 --ntasks-per-node=2 --mpi=none --roce-tc=3 --roce-nics=all";
const HEAT: &str = "/lab/bin/heat 62";

/// Runs a script and gives the RoCE packets that it caused too.
fn captured(cluster: &Cluster, script: &str) -> Result<(Output, Vec<Packet>), Failed> {
    let mark = cluster.captures().mark();
    let output = must_run(cluster, script)?;
    Ok((output, cluster.captures().packets_since(&mark)?))
}

/// A task of one of the launcher's tests, on four ranks.
fn task(cluster: &Cluster, test: &str, task: &str, variables: &str) -> Result<(), Failed> {
    let program = format!("/lab/bin/{test} rank --exact --ignored --nocapture --test-threads=1");
    must_run(cluster, &format!("ROCE_TEST_TASK={task} {variables} {SRUN} {program}")).map(drop)
}

fn heat(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let script = format!("{SRUN} {HEAT} 60");
    let (output, packets) = captured(&cluster, &script)?;
    let failed = |what: &str| {
        let told = told(&script, &output).message().unwrap_or_default().to_owned();
        format!("{what}\n{}\n{told}", Table::of(&packets))
    };
    ensure(output.stdout.contains("rank 1: shared memory; ranks 2-3: verbs (rxe0:1)"), || {
        failed("not over verbs")
    })?;
    ensure(output.stdout.contains("60 steps on 4 ranks"), || failed("no result"))?;
    in_class(&packets).map_err(|what| failed(&what))?;
    all_idle(&cluster)
}

/// Every packet, of connections and before them, has the class of the step and its rail's addresses, and both nodes send.
fn in_class(packets: &[Packet]) -> Result<(), String> {
    let sent: Vec<&Packet> = packets.iter().filter(|packet| packet.direction == Direction::Sent).collect();
    let nodes: BTreeSet<&str> = sent.iter().map(|packet| packet.from.as_str()).collect();
    if nodes != BTreeSet::from(["vm1", "vm2"]) {
        return Err(format!("only {nodes:?} sent"));
    }
    let address = |packet: &Packet, node: &str| {
        let rail = u8::try_from(packet.rail).unwrap_or(u8::MAX);
        Some(IpAddr::V4(Ipv4Addr::new(10, 0, rail, node.strip_prefix("vm")?.parse().ok()?)))
    };
    let is_right = |packet: &&Packet| {
        packet.dscp == 26
            && Some(packet.source) == address(packet, &packet.from)
            && Some(packet.destination) == address(packet, &packet.to)
    };
    match packets.iter().find(|packet| !is_right(packet)) {
        Some(wrong) => Err(format!("of another class or address: {wrong:?}")),
        None => Ok(()),
    }
}

fn as_the_model_says(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let before = cluster.captures().mark();
    task(&cluster, "messages", "cases", "ROCE_TEST_CASES=10")?;
    task(&cluster, "messages", "pairs", "ROCE_TEST_MOST=100000")?;
    task(&cluster, "collectives", "collectives", "ROCE_TEST_MOST=5000")?;
    task(&cluster, "windows", "cases", "")?;
    task(&cluster, "windows", "long", "ROCE_TEST_MOST=10000")?;
    let packets = cluster.captures().packets_since(&before)?;
    // RC send, and RC RDMA read request.
    for opcode in [4, 12] {
        let any = packets.iter().any(|packet| packet.transport.is_some_and(|header| header.opcode == opcode));
        ensure(any, || format!("no packet with opcode {opcode}\n{}", Table::of(&packets)))?;
    }
    in_class(&packets)?;
    all_idle(&cluster)
}

fn on_demand(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    task(&cluster, "messages", "connections", "ROCE_TEST_QUEUE_PAIRS=2")?;
    task(&cluster, "messages", "connections", "ROCE_TEST_QUEUE_PAIRS=3 ROCE_TRANSPORTS=verbs")?;
    all_idle(&cluster)
}

fn death(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    task(&cluster, "messages", "death", "")?;
    all_idle(&cluster)
}

fn transports(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let script = format!("ROCE_TRANSPORTS=tcp,shared {SRUN} {HEAT} 20");
    let (output, packets) = captured(&cluster, &script)?;
    ensure(output.stdout.contains("rank 1: shared memory; ranks 2-3: TCP"), || {
        told(&script, &output).message().unwrap_or_default().to_owned()
    })?;
    ensure(packets.is_empty(), || format!("RoCE packets:\n{}", Table::of(&packets)))?;
    // With a NIC each, ranks of different rails have none in common.
    let script = format!("srun -N2 --ntasks-per-node=2 --mpi=none --roce-tc=3 {HEAT} 20");
    let output = must_run(&cluster, &script)?;
    let expected = "rank 2: verbs (rxe0:1); rank 3: TCP (no rail has a port of both)";
    ensure(output.stdout.contains(expected), || {
        told(&script, &output).message().unwrap_or_default().to_owned()
    })?;
    let script = format!("ROCE_TRANSPORTS=rdma {SRUN} {HEAT} 20");
    let output = cluster.run("vm1", &script, TIMEOUT)?;
    ensure(!output.success() && output.stderr.contains("there is no transport \"rdma\""), || {
        told(&script, &output).message().unwrap_or_default().to_owned()
    })?;
    all_idle(&cluster)
}

/// The rail of all packets goes down on one node while ranks send.
fn port_down(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let step =
        "srun -N2 --ntasks-per-node=1 --mpi=none --roce-tc=3 --roce-nics=rxe1 /lab/bin/heat 62 1000000";
    let script = format!("{step} & step=$!; sleep 4; touch /lab/out/heat-runs; wait $step");
    let output = std::thread::scope(|scope| {
        let ranks = scope.spawn(|| cluster.run("vm1", &script, TIMEOUT));
        let down = "until [ -e /lab/out/heat-runs ]; do sleep 0.1; done; rm /lab/out/heat-runs; ip link set rail1 down";
        let down = cluster.run_as_root("vm2", down, TIMEOUT);
        (ranks.join(), down)
    });
    let up = cluster.run_as_root("vm2", "ip link set rail1 up; sleep 2; rdma link", TIMEOUT)?;
    let (Ok(ranks), down) = output else { return Err("a thread panicked".into()) };
    let (ranks, down) = (ranks?, down?);
    let told_all = || {
        [&ranks, &down, &up]
            .map(|output| told(&script, output).message().unwrap_or_default().to_owned())
            .concat()
    };
    ensure(!ranks.success() && ranks.stderr.contains("is not active"), told_all)?;
    all_idle(&cluster)
}
