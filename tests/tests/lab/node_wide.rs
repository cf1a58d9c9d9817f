//! A program that knows nothing of traffic classes, on rdma_cm: what the wire carries is the node's default, which is
//! the step's class where the site says so.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, told},
};
use libtest_mimic::Failed;
use roce_lab::{
    Cluster,
    wire::{Packet, Table},
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "node_wide::without_the_sites_word_an_unaware_program_is_unmarked", run: unmarked },
    Control { name: "node_wide::an_unaware_program_has_the_steps_class_in_both_directions", run: marked },
    Control { name: "node_wide::a_job_with_a_part_of_the_node_is_told_so", run: part },
    Control { name: "node_wide::rocectl_restore_puts_back_what_a_killed_step_left", run: killed },
];

/// perftest over rdma_cm, which is not told of any class: the first task serves, the second asks. Not before the first
/// one listens, for a connection that is refused makes perftest crash; -F, for emulated clocks are too uneven for it.
const BANDWIDTH: &str = "cd /lab/out; run=\"ib_write_bw -R -F -s 4096 -n 200\"; \
    if [ $SLURM_PROCID = 0 ]; then $run & until rdma resource show cm_id | grep -q LISTEN; do sleep 0.2; done; \
    touch listening; wait $!; else until [ -e listening ]; do sleep 0.2; done; $run 10.0.0.1; fi";

/// The queue pair of every node's connection management.
const MANAGEMENT: u32 = 1;
/// Answers of a side without a class that are left out.
const MOST_ANSWERS: usize = 3;

fn unmarked(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let (packets, _) = step(&cluster)?;
    judge(&packets, 0)?;
    all_idle(&cluster)
}

fn marked(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    on_all(&cluster, "printf '[policy]\\nnode_wide = true\\n' > /etc/slurm/roce.toml")?;
    let result = step(&cluster);
    let after = on_all(
        &cluster,
        "rm /etc/slurm/roce.toml; sleep 1; find /sys/kernel/config/rdma_cm /run/roce-launch -mindepth 1",
    );
    let (packets, during) = result?;
    judge(&packets, 26)?;
    let expected = "vm1: 106 106 rxe0 rxe1\nvm2: 106 106 rxe0 rxe1";
    ensure(during == expected, || format!("the defaults during the step: {during}"))?;
    let after = after?;
    ensure(after.iter().all(String::is_empty), || format!("left behind: {after:?}"))?;
    // The devices' folders were made for the step, so they are gone; the kernel's values are not gone with them.
    let look = "cd /sys/kernel/config/rdma_cm && mkdir rxe0 rxe1 && cat rxe?/ports/1/default_roce_tos | xargs; \
                rmdir rxe0 rxe1";
    let values = on_all(&cluster, look)?;
    ensure(values.iter().all(|text| text.trim() == "0 0"), || format!("not put back: {values:?}"))?;
    all_idle(&cluster)
}

/// However many tasks it crowds there.
fn part(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    on_all(&cluster, "printf '[policy]\\nnode_wide = true\\n' > /etc/slurm/roce.toml")?;
    let script = "srun -w vm1 -N1 -n8 --overcommit --roce-tc=3 --roce=verbose ls /sys/kernel/config/rdma_cm";
    let output = cluster.run("vm1", script, TIMEOUT);
    on_all(&cluster, "rm /etc/slurm/roce.toml")?;
    let output = output?;
    let said = "the class is not node-wide: the job has 1 of the node's 2 CPUs (ask for --exclusive)";
    let ok = output.success() && output.stdout.is_empty() && output.stderr.matches(said).count() == 1;
    ensure(ok, || told(script, &output).message().unwrap_or_default().to_owned())?;
    all_idle(&cluster)
}

/// In a real configfs, where a device's folder has to be made first and goes away again.
fn killed(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let script = "printf '[policy]\nnode_wide = true\n' > /etc/slurm/roce.toml\n\
        cd /sys/kernel/config/rdma_cm\n\
        srun -w vm1 -N1 -n1 --exclusive --roce-tc=3 bash -c 'echo $$ > /run/task; exec sleep 80' 2> /run/srun.err &\n\
        until [ -s /run/task ]; do sleep 0.1; done\n\
        kill -9 $(sed -n 's/^pid = //p' /run/roce-launch/node-wide.toml) $(cat /run/task)\n\
        rm /etc/slurm/roce.toml /run/task\n\
        scancel --state=RUNNING\n\
        echo $(cat */ports/1/default_roce_tos)\n\
        /lab/bin/rocectl restore\n\
        echo left: $(ls . /run/roce-launch | grep -v :)\n\
        mkdir rxe0 rxe1; echo $(cat */ports/1/default_roce_tos); rmdir rxe0 rxe1";
    let output = cluster.run_as_root("vm1", script, TIMEOUT)?;
    let told = || told(script, &output).message().unwrap_or_default().to_owned();
    let lines: Vec<&str> = output.stdout.lines().collect();
    ensure(lines.len() == 5 && lines[0] == "106 106" && lines[3] == "left:" && lines[4] == "0 0", told)?;
    for (line, device) in lines[1..3].iter().zip(["rxe0", "rxe1"]) {
        let start = format!("{device}:1: default traffic class 106 of step ");
        ensure(line.starts_with(&start) && line.ends_with(" is 0 again"), told)?;
    }
    all_idle(&cluster)
}

/// What the step sent, and what the defaults were meanwhile.
fn step(cluster: &Cluster) -> Result<(Vec<Packet>, String), Failed> {
    let mark = cluster.captures().mark();
    let look = "echo $SLURMD_NODENAME: $(cat /sys/kernel/config/rdma_cm/*/ports/*/default_roce_tos 2> /dev/null) \
                $(ls /sys/kernel/config/rdma_cm) >> /lab/out/defaults";
    let script = format!(
        "rm -f /lab/out/defaults /lab/out/listening\n\
         srun -N2 -n2 --exclusive --roce-tc=3 bash -c '{look}; {BANDWIDTH}' || exit\n\
         sort /lab/out/defaults"
    );
    let output = cluster.run("vm1", &script, TIMEOUT)?;
    ensure(output.success(), || told(&script, &output).message().unwrap_or_default().to_owned())?;
    let packets = cluster.captures().packets_since(&mark)?;
    let lines: Vec<&str> = output.stdout.lines().filter(|line| line.starts_with("vm")).collect();
    Ok((packets, lines.join("\n")))
}

/// Everything that was sent, connection management too, has this class; and both sides sent something.
///
/// But for the kernel's answer to the end of a connection that it has forgotten already, as when both sides end theirs
/// at once: it answers with what it takes from the packet, and rxe takes no class from an IPv4 header. Who has no answer yet
/// asks again, so some such answers a side are left out; the rest of connection management must be there.
fn judge(packets: &[Packet], dscp: u8) -> Result<(), Failed> {
    let is_management = |packet: &Packet| {
        packet.transport.as_ref().is_some_and(|transport| transport.destination_qp == MANAGEMENT)
    };
    let mut answers: BTreeMap<_, usize> = BTreeMap::new();
    let mut is_answer = |packet: &Packet| {
        let may_be = dscp != 0 && packet.dscp == 0 && is_management(packet);
        let count = answers.entry(packet.from.clone()).or_default();
        *count += usize::from(may_be);
        may_be && *count <= MOST_ANSWERS
    };
    let packets: Vec<Packet> = packets.iter().filter(|packet| !is_answer(packet)).cloned().collect();
    let managing: BTreeSet<_> =
        packets.iter().filter(|packet| is_management(packet)).map(|packet| &packet.from).collect();
    ensure(managing.len() == 2, || "not two sides that manage their connection".to_owned())?;
    let packets = packets.as_slice();
    let table = Table::of(packets);
    let directions: BTreeSet<_> = packets.iter().map(|packet| (&packet.from, &packet.to)).collect();
    ensure(directions.len() == 2, || format!("not two directions:\n{table}"))?;
    ensure(table.dscps() == [dscp], || format!("not DSCP {dscp} alone:\n{table}"))
}

fn on_all(cluster: &Cluster, script: &str) -> Result<Vec<String>, Failed> {
    let output = |node| {
        let output = cluster.run_as_root(node, script, TIMEOUT)?;
        if output.success() { Ok(output.stdout) } else { Err(told(script, &output)) }
    };
    cluster.nodes().map(output).collect()
}
