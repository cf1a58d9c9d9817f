//! Ranks of roce-launcher meet between two nodes, whoever starts them: the example `who`, whose rank 0 prints where all are.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, must_run, told, without_plugin},
};
use libtest_mimic::Failed;
use roce_lab::Cluster;

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "ranks::meet_under_srun_by_the_plugins_secret", run: under_the_plugin },
    Control { name: "ranks::meet_under_srun_by_munge_without_the_plugin", run: by_munge },
    Control { name: "ranks::meet_under_srun_by_pmi2_without_the_plugin", run: by_pmi2 },
    Control { name: "ranks::meet_under_mpirun_by_pmix_without_the_plugin", run: under_mpirun },
    Control { name: "ranks::meet_over_ipv6_and_on_a_named_network", run: elsewhere },
];

const WHO: &str = "/lab/bin/who";

fn under_the_plugin(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    meet(&cluster, &format!("srun -N2 -n3 --mpi=none --roce-tc=3 {WHO}"), &["vm1", "vm1", "vm2"])
}

fn by_munge(lab: &Lab) -> Result<(), Failed> {
    alone(lab, &[&format!("srun -N2 -n3 --mpi=none {WHO}")], &["vm1", "vm1", "vm2"])
}

fn by_pmi2(lab: &Lab) -> Result<(), Failed> {
    alone(lab, &[&format!("srun -N2 -n3 --mpi=pmi2 {WHO}")], &["vm1", "vm1", "vm2"])
}

/// Within an allocation, where mpirun starts its daemons by srun.
fn under_mpirun(lab: &Lab) -> Result<(), Failed> {
    let mpirun = format!("salloc -Q -N2 --ntasks-per-node=2 mpirun {WHO}");
    alone(lab, &[&mpirun], &["vm1", "vm1", "vm2", "vm2"])
}

/// Names say IPv4 on the first rail; the user's word sends ranks to IPv6 addresses, or to a subnet.
fn elsewhere(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    for (number, node) in (1..).zip(cluster.nodes()) {
        let script = format!("ip -6 addr replace fd00:1::{number}/64 dev rail1 nodad");
        let output = cluster.run_as_root(node, &script, TIMEOUT)?;
        ensure(output.success(), || told(&script, &output).message().unwrap_or_default().to_owned())?;
    }
    let srun =
        |addresses: &str| format!("ROCE_NODE_ADDRS={addresses} srun -N2 -n2 --mpi=none --roce-tc=3 {WHO}");
    for addresses in ["vm1=fd00:1::1,vm2=fd00:1::2", "vm[1-2]=10.0.1.[1-2]", "10.0.0.0/24", "rail0"] {
        meet(&cluster, &srun(addresses), &["vm1", "vm2"])?;
    }
    all_idle(&cluster)
}

fn alone(lab: &Lab, commands: &[&str], nodes: &[&str]) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    without_plugin(&cluster, || commands.iter().try_for_each(|command| meet(&cluster, command, nodes)))
}

/// The command must print every rank with its node, in order.
fn meet(cluster: &Cluster, command: &str, nodes: &[&str]) -> Result<(), Failed> {
    let output = must_run(cluster, command)?;
    let without_process = |line: &str| line.split(" process ").next().unwrap_or_default().to_owned();
    let met: Vec<String> = output.stdout.lines().map(without_process).collect();
    let size = nodes.len();
    let expected: Vec<String> =
        (0..).zip(nodes).map(|(rank, node): (u32, _)| format!("rank {rank} of {size}: {node}")).collect();
    ensure(met == expected, || told(command, &output).message().unwrap_or_default().to_owned())?;
    all_idle(cluster)
}
