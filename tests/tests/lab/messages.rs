//! Messages between nodes over the NICs: the example `heat`, and the launcher's own tests of messages, run by ranks in the guests.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, must_run, number, results, told},
};
use libtest_mimic::Failed;
use roce_lab::{
    Cluster, Options, Output,
    wire::{Direction, Packet, Table},
};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "messages::of_every_example_go_over_verbs_in_the_class_asked_for", run: examples },
    Control { name: "messages::are_as_the_model_says_over_verbs", run: as_the_model_says },
    Control { name: "messages::have_a_queue_pair_for_each_rank_spoken_to_and_none_before", run: on_demand },
    Control { name: "messages::that_are_long_go_over_all_rails_that_both_ranks_have", run: striped },
    Control { name: "messages::from_memory_that_is_mapped_anew_are_what_is_there_now", run: memory },
    Control { name: "messages::go_over_what_roce_transports_says", run: transports },
];

const SRUN: &str = "srun -N2 --ntasks-per-node=2 --mpi=none --roce-tc=3 --roce-nics=all";
const HEAT: &str = "/lab/bin/heat 62";

/// Runs a script and gives the RoCE packets that it caused too.
pub(crate) fn captured(cluster: &Cluster, script: &str) -> Result<(Output, Vec<Packet>), Failed> {
    let mark = cluster.captures().mark();
    let output = must_run(cluster, script)?;
    Ok((output, cluster.captures().packets_since(&mark)?))
}

/// A task of one of the launcher's tests, on four ranks.
pub(crate) fn task(cluster: &Cluster, test: &str, task: &str, variables: &str) -> Result<(), Failed> {
    let program = format!("/lab/bin/{test} rank --exact --ignored --nocapture --test-threads=1");
    must_run(cluster, &format!("ROCE_TEST_TASK={task} {variables} {SRUN} {program}")).map(drop)
}

/// Small problems, whose results the programs check themselves, and what rank 0 says at the end.
const EXAMPLES: [(&str, &[&str]); 5] = [
    (
        "heat 62 60",
        &[
            "60 steps on 4 ranks",
            "rank 1: shared memory; ranks 2-3: verbs (rxe0:1, long messages also rxe1:1)",
        ],
    ),
    ("conjugate_gradient --points 12", &["1728 unknowns on 4 ranks"]),
    ("nbody --bodies 200 --steps 5", &["200 bodies, 5 steps on 4 ranks"]),
    ("sort --keys 50000", &["50000 keys on 4 ranks"]),
    ("parameter_server --samples 2000 --servers 2", &["16 parameters on 2 of 4 ranks"]),
];

fn examples(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    for (program, results) in EXAMPLES {
        let script = format!("{SRUN} /lab/bin/{program}");
        let (output, packets) = captured(&cluster, &script)?;
        let failed = |what: &str| {
            let told = told(&script, &output).message().unwrap_or_default().to_owned();
            format!("{what}\n{}\n{told}", Table::of(&packets))
        };
        ensure(results.iter().all(|result| output.stdout.contains(result)), || failed("no result"))?;
        in_class(&packets).map_err(|what| failed(&what))?;
    }
    all_idle(&cluster)
}

/// Every packet, of connections and before them, has the class of the step and its rail's addresses, and both nodes send.
pub(crate) fn in_class(packets: &[Packet]) -> Result<(), String> {
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
    task(&cluster, "windows", "alone", "ROCE_TEST_FOLDER=/lab/out")?;
    let packets = cluster.captures().packets_since(&before)?;
    // RC send, RC RDMA read request, and RC RDMA write, in one packet and the first of several.
    for opcode in [4, 12, 10, 6] {
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

/// RDMA reads over both rails, each in the class of the step; and over one where that is not wanted.
fn striped(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let srun = SRUN.replace("-node=2", "-node=1");
    let program = "/lab/bin/messages rank --exact --ignored --nocapture --test-threads=1";
    for (pairs, way, variables) in [
        (2, "verbs (rxe0:1, long messages also rxe1:1)", ""),
        (1, "verbs (rxe0:1)", "ROCE_STRIPING=off"),
        // What is said on any of the ranks counts for both.
        (1, "verbs (rxe0:1)", "ROCE_TEST_OFF_ON=1"),
    ] {
        let off = "[ \"$SLURM_PROCID\" != \"$ROCE_TEST_OFF_ON\" ] || export ROCE_STRIPING=off";
        let script = format!(
            "ROCE_TEST_TASK=striped ROCE_TEST_QUEUE_PAIRS={pairs} {variables} {srun} bash -c '{off}; exec {program}'"
        );
        let (output, packets) = captured(&cluster, &script)?;
        let failed = |what: &str| {
            let told = told(&script, &output).message().unwrap_or_default().to_owned();
            format!("{what}\n{}\n{told}", Table::of(&packets))
        };
        ensure(output.stdout.matches(&format!(": {way}")).count() == 2, || failed("another way"))?;
        in_class(&packets).map_err(|what| failed(&what))?;
        // RDMA read responses, first to only: each carries up to an MTU. Over each rail, to each node.
        let answers = |rail: usize, to: &str| {
            let is_one = |packet: &&Packet| {
                packet.rail == rail
                    && packet.to == to
                    && packet.direction == Direction::Sent
                    && packet.transport.is_some_and(|header| (13..=16).contains(&header.opcode))
            };
            packets.iter().filter(is_one).count()
        };
        for node in ["vm1", "vm2"] {
            let (first, further) = (answers(0, node), answers(1, node));
            // The first long message may go over the first rail alone.
            let is_right = if pairs == 2 { first > 1000 && further > first / 4 } else { further == 0 };
            ensure(is_right, || {
                failed(&format!("to {node}: {first} answers over rail 0, {further} over rail 1"))
            })?;
        }
    }
    all_idle(&cluster)
}

fn memory(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    task(&cluster, "messages", "memory", "")?;
    // To send from and to receive to: once each where registrations are kept, else each time.
    task(&cluster, "messages", "kept", "ROCE_TEST_REGISTRATIONS=2")?;
    task(&cluster, "messages", "kept", "ROCE_TEST_REGISTRATIONS=200 ROCE_REGISTRATION_CACHE=off")?;
    // Locked memory is for connections first.
    let program = "/lab/bin/messages rank --exact --ignored --nocapture --test-threads=1";
    let srun = SRUN.replace("--roce-nics=all", "--roce-nics=rxe1");
    must_run(&cluster, &format!("ROCE_TEST_TASK=crowded {srun} bash -c 'ulimit -l 960; exec {program}'"))?;
    // Windows of 4 MB that can't be locked: the owners put, and nobody's NIC writes.
    let (program, srun) = (program.replace("messages", "windows"), srun.replace("-node=2", "-node=1"));
    let long = "ROCE_TEST_TASK=long ROCE_TEST_MOST=500000";
    let (_, packets) = captured(&cluster, &format!("{long} {srun} bash -c 'ulimit -l 960; exec {program}'"))?;
    // The first window of that test has 80 KB, which can be locked: 20 packets each way.
    let writes = packets
        .iter()
        .filter(|packet| packet.transport.is_some_and(|header| (6..=11).contains(&header.opcode)));
    let writes = writes.count();
    ensure((1..200).contains(&writes), || {
        format!("{writes} RDMA writes, to memory that can't be locked\n{}", Table::of(&packets))
    })?;
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

/// `cargo xtask soak verbs`: as many random cases as `SOAK_CASES` says, as `cargo xtask soak messages` plays over shared memory and TCP, on 2 to 8
/// ranks in turns. All ranks are in one guest, and over its device reach each other, also those of one node: what two guests send each other is
/// captured, and 100,000 cases are some 60 GB.
pub(crate) fn soak() -> Option<Control> {
    std::env::var_os(CASES).map(|_| Control { name: "soak::verbs", run: many_cases })
}

const CASES: &str = "SOAK_CASES";
/// Each number of ranks has its turn in so many.
const TURN: u64 = 5000;
/// Many times what they take by emulation.
const LONG: Duration = Duration::from_secs(3600);

fn many_cases(lab: &Lab) -> Result<(), Failed> {
    let cases = number(CASES).unwrap_or(100_000);
    let seed = number("SOAK_SEED").unwrap_or_else(|| std::process::id().into());
    let options = Options {
        nodes: 1,
        rails: 1,
        numa_nodes: 1,
        cpus_per_numa_node: 2,
        // The clock's watchdog would take a busy host for a wrong clock after a while, and patch the running kernel for another: emulated, that
        // panics.
        kernel_arguments: "tsc=reliable".to_owned(),
        lifetime: Duration::from_secs(24 * 3600),
        programs: vec![roce_tests::artifact("ROCE_MESSAGES", "messages")?],
        ..Options::new(results("soak"))
    };
    let cluster = Cluster::boot(&lab.root()?, options, lab.interrupt())?;
    println!("{cases} cases, SOAK_SEED={seed}");
    let mut played = 0;
    while played < cases {
        let here = TURN.min(cases - played);
        let seed = seed.wrapping_add(played);
        let script = format!(
            "ulimit -l unlimited\n\
             export SOAK_CASES={here} SOAK_SEED={seed}\n\
             export ROCE_TRANSPORTS=verbs ROCE_DEVICES=rxe0:1 ROCE_GIDS=::ffff:10.0.0.1\n\
             /lab/bin/messages soak --exact --ignored --nocapture"
        );
        let output = cluster.run_as_root("vm1", &script, LONG)?;
        ensure(output.success(), || told(&script, &output).message().unwrap_or_default().to_owned())?;
        played += here;
        println!("{played} of {cases}: {here} of seed {seed}");
    }
    Ok(cluster.shut_down()?)
}
