//! Options that can't be: srun fails, one line says why, nothing was launched, no node is drained.

use crate::{
    Control,
    lab::{Lab, TIMEOUT, all_idle, ensure, told},
};
use libtest_mimic::Failed;

pub(crate) const CONTROLS: &[Control] = &[
    Control {
        name: "refused::roce_tc_9",
        run: |lab| refused(lab, "--roce-tc=9", &["--roce-tc=9", "0-7", "--roce-dscp"]),
    },
    Control { name: "refused::roce_tc_empty", run: |lab| refused(lab, "--roce-tc=", &["--roce-tc=", "0-7"]) },
    Control {
        name: "refused::roce_dscp_64",
        run: |lab| refused(lab, "--roce-dscp=64", &["--roce-dscp=64", "0-63"]),
    },
    Control {
        name: "refused::roce_tc_and_roce_dscp_together",
        run: |lab| refused(lab, "--roce-tc=3 --roce-dscp=46", &["--roce-tc=3", "--roce-dscp=46"]),
    },
    // Only the node can know these: they fail in the task.
    Control {
        name: "refused::a_nic_that_the_node_lacks",
        run: |lab| refused(lab, "--roce-nics=nosuch0", &["--roce-nics=nosuch0", "vm1", "rxe0", "rxe1"]),
    },
    Control {
        name: "refused::a_gid_subnet_that_no_port_has",
        run: |lab| refused(lab, "--roce-gid=192.0.2.0/24", &["--roce-gid=192.0.2.0/24", "vm1", "10.0.0.1"]),
    },
];

fn refused(lab: &Lab, options: &str, words: &[&str]) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let mark = cluster.share().join("out/launched");
    let script = format!("rm -f /lab/out/launched; srun -N1 -n1 -w vm1 {options} touch /lab/out/launched");
    let output = cluster.run("vm1", &script, TIMEOUT)?;
    let told = || told(&script, &output).message().unwrap_or_default().to_owned();
    ensure(!output.success(), || format!("srun returned 0: {}", told()))?;
    ensure(!mark.exists(), || format!("the program was launched: {}", told()))?;
    // Slurm adds lines of its own.
    let ours: Vec<_> = output.stderr.lines().filter(|line| line.contains("spank_roce:")).collect();
    ensure(ours.len() == 1, || format!("{} lines of the plugin's, not one: {}", ours.len(), told()))?;
    let line = ours.concat();
    for word in words {
        ensure(line.contains(word), || format!("{word} is missing in: {line}"))?;
    }
    all_idle(&cluster)
}
