//! Heterogeneous jobs, whose components Slurm gives one value of an option; and steps whose nodes differ.

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::{BOTH, Cluster, SECOND};
use crate::run::program;
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("an_option_of_one_component_is_refused", refused),
    ("the_same_option_for_all_components_reaches_all", alike),
    ("each_node_of_a_step_is_planned_by_its_own_facts", nodes_that_differ),
];

/// Both nodes have two NICs.
fn with_two_nics(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    cluster.with_second_plugin(&tree)
}

const SAY: &str = "echo $SLURM_PROCID ${ROCE_PRIORITY:-none}";

fn refused(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let proof = cluster.work("component-ran");
    let touch = ["touch".to_owned(), proof.display().to_string()];
    let touch: Vec<&str> = touch.iter().map(String::as_str).collect();
    let typed = |first: &[&str], second: &[&str]| {
        let line = [&["-p", BOTH], first, &touch, &[":", "-p", BOTH], second, &touch].concat();
        program("srun").unprivileged().args(line).run(cluster)
    };
    typed(&["--roce-tc=3"], &["--roce-tc=4"])?.failed_with(
        "srun: error: spank_roce: --roce-tc=3 and --roce-tc=4: Slurm can't keep options of the components of a \
         heterogeneous job apart; give the same to all, or start each with an srun of its own",
    )?;
    // Slurm would give it to the first one too.
    typed(&[], &["--roce-nics=mlx5_1"])?
        .failed_with("srun: error: spank_roce: no --roce-nics and --roce-nics=mlx5_1: ...")?;
    typed(&["--roce-tc=3"], &[])?
        .failed_with("srun: error: spank_roce: --roce-tc=3 and no --roce-tc: ...")?;
    ensure!(!proof.exists(), "a component ran");
    let sbatch = ["-p", BOTH, "--roce-tc=3", ":", "-p", BOTH, "--roce-tc=4", "--wrap", "true"];
    program("sbatch")
        .unprivileged()
        .args(sbatch)
        .run(cluster)?
        .failed_with("sbatch: error: spank_roce: --roce-tc=3 and --roce-tc=4: ...")?;
    cluster.expect_both_idle()
}

fn alike(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let both = ["srun", "--roce-tc=3", "bash", "-c", SAY, ":", "--roce-tc=3", "bash", "-c", SAY];
    let groups = ["srun", "--het-group=0,1", "--roce-tc=3", "bash", "-c", SAY];
    let second = ["srun", "--het-group=1", "--roce-tc=4", "bash", "-c", SAY];
    for (step, expected) in
        [(both.as_slice(), "0 3\n1 3\n"), (groups.as_slice(), "0 3\n1 3\n"), (second.as_slice(), "0 4\n")]
    {
        let job = ["--quiet", "-p", BOTH, "-n1", ":", "-p", BOTH, "-n1"];
        let ran = program("salloc").unprivileged().args(job).args(step.iter().copied());
        let ran = ran.run(cluster)?.succeeded()?;
        let mut lines: Vec<&str> = ran.stdout.lines().collect();
        lines.sort_unstable();
        ensure!(lines.iter().map(|line| format!("{line}\n")).collect::<String>() == expected, "{ran}");
    }
    cluster.expect_both_idle()
}

fn nodes_that_differ(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    // As the other node's, but its NICs are the other way round.
    cluster.with_second_plugin(&sysfs::with_gpus(cluster, "with-gpus")?)?;
    let say = "echo $SLURMD_NODENAME $ROCE_DEVICES $ROCE_GIDS $ROCE_DSCP";
    let step = ["-p", BOTH, "-N2", "-n2", "--roce-tc=3", "bash", "-c", say];
    let ran = program("srun").unprivileged().args(step).run(cluster)?.succeeded()?;
    let mut lines: Vec<&str> = ran.stdout.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["n1 mlx5_0:1 ::ffff:10.0.0.7 26", "n2 mlx5_0:1 ::ffff:10.1.0.7 26"], "{ran}");
    // What one node lacks fails there, with its name.
    cluster.with_second_plugin(&sysfs::without_rdma(cluster, "no-rdma")?)?;
    let step = ["-p", BOTH, "-N2", "-n2", "--roce-tc=3", "true"];
    let ran = program("srun").unprivileged().args(step).run(cluster)?;
    ran.failed_with(&format!("spank_roce: {SECOND}: task 1: --roce-tc=3: this node has no RoCE port: ..."))?;
    cluster.expect_both_idle()
}
