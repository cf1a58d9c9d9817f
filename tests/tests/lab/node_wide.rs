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
use std::collections::BTreeSet;

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "node_wide::without_the_sites_word_an_unaware_program_is_unmarked", run: unmarked },
    Control { name: "node_wide::an_unaware_program_has_the_steps_class_in_both_directions", run: marked },
];

/// perftest over rdma_cm, which is not told of any class: the first task serves, the second asks.
const BANDWIDTH: &str = "if [ $SLURM_PROCID = 0 ]; then ib_write_bw -R -s 4096 -n 200; \
    else for i in $(seq 50); do ib_write_bw -R -s 4096 -n 200 10.0.0.1 && exit; sleep 0.2; done; exit 1; fi";

/// Every default of a guest; nothing if no device is shown.
const DEFAULTS: &str = "cat /sys/kernel/config/rdma_cm/*/ports/*/default_roce_tos 2> /dev/null; \
    ls /sys/kernel/config/rdma_cm /run/roce-launch 2> /dev/null";

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
    let after = on_all(&cluster, &format!("rm /etc/slurm/roce.toml; sleep 1; {DEFAULTS}; true"));
    let (packets, during) = result?;
    judge(&packets, 26)?;
    let expected = "vm1: 106 106 rxe0 rxe1\nvm2: 106 106 rxe0 rxe1";
    ensure(during == expected, || format!("the defaults during the step: {during}"))?;
    // The devices' folders were made for the step, so they are gone; the values with them, as a new look shows.
    ensure(after?.iter().all(|text| text.trim() == "/run/roce-launch:"), || "something was left".into())?;
    let look = "cd /sys/kernel/config/rdma_cm && mkdir rxe0 rxe1 && cat rxe?/ports/1/default_roce_tos | xargs; \
                rmdir rxe0 rxe1";
    let values = on_all(&cluster, look)?;
    ensure(values.iter().all(|text| text.trim() == "0 0"), || format!("not put back: {values:?}"))?;
    all_idle(&cluster)
}

/// What the step sent, and what the defaults were meanwhile.
fn step(cluster: &Cluster) -> Result<(Vec<Packet>, String), Failed> {
    let mark = cluster.captures().mark();
    let look = "echo $SLURMD_NODENAME: $(cat /sys/kernel/config/rdma_cm/*/ports/*/default_roce_tos 2> /dev/null) \
                $(ls /sys/kernel/config/rdma_cm) >> /lab/out/defaults";
    let script = format!(
        "rm -f /lab/out/defaults\n\
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
fn judge(packets: &[Packet], dscp: u8) -> Result<(), Failed> {
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
