//! Tasks with GPUs, on the node that has some: which these are is known inside each task only.

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::{BOTH, Cluster, SECOND};
use crate::run::{Program, program, srun};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_task_gets_the_nic_nearest_to_its_gpu", nearest),
    ("tasks_without_gpus_on_a_node_with_gpus_are_planned_together", without),
    ("a_gpu_that_cannot_be_told_does_not_count_and_verbose_says_so", unknown),
];

/// A step on the node with GPUs: two near each of its NICs.
fn step(cluster: &Cluster, options: &[&str]) -> Result<Program> {
    cluster.with_second_plugin(&sysfs::with_gpus(cluster, "with-gpus")?)?;
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    Ok(srun(["-p", BOTH, "-w", SECOND]).args(options.iter().copied()))
}

const SAY: &str = "echo $SLURM_PROCID ${CUDA_VISIBLE_DEVICES:-none} $ROCE_DEVICES";

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn nearest(cluster: &Cluster) -> Result<()> {
    // Slurm before 21.08 lets each task see all GPUs of the step unless it is told which is whose.
    let two = ["-n2", "--gpus-per-task=1", "--gpu-bind=map_gpu:0,1", "--roce-tc=3", "bash", "-c", SAY];
    let ran = step(cluster, &two)?.run(cluster)?.succeeded()?;
    // By its CPU the second task would be nearer to the other NIC.
    ensure!(sorted(&ran.stdout) == ["0 0 mlx5_0:1", "1 1 mlx5_0:1"], "{ran}");
    // More tasks than CPUs: every release takes that of a step, 20.11 not of a job with GPUs.
    let job = ["--quiet", "-p", BOTH, "-w", SECOND, "-n2", "--gres=gpu:4", "srun", "--gres=gpu:4"];
    let four = ["-n4", "--overcommit", "--gpu-bind=map_gpu:0,1,2,3", "--roce-tc=3", "bash", "-c", SAY];
    let ran = program("salloc").unprivileged().args(job).args(four).run(cluster)?.succeeded()?;
    let expected = ["0 0 mlx5_0:1", "1 1 mlx5_0:1", "2 2 mlx5_1:1", "3 3 mlx5_1:1"];
    ensure!(sorted(&ran.stdout) == expected, "{ran}");
    cluster.expect_both_idle()
}

fn without(cluster: &Cluster) -> Result<()> {
    let ran = step(cluster, &["-n2", "--roce-tc=3", "bash", "-c", SAY])?.run(cluster)?.succeeded()?;
    ensure!(sorted(&ran.stdout) == ["0 none mlx5_0:1", "1 none mlx5_1:1"], "{ran}");
    // More than there are CPUs, all with the same mask: they share the NICs evenly.
    let job = ["--quiet", "-p", BOTH, "-w", SECOND, "-n2", "srun", "-n16", "--overcommit"];
    let many = ["--cpu-bind=none", "--roce-bind=none", "--roce-tc=3", "bash", "-c", "echo $ROCE_DEVICES"];
    let ran = program("salloc").unprivileged().args(job).args(many).run(cluster)?.succeeded()?;
    let counts = ["mlx5_0:1", "mlx5_1:1"].map(|nic| ran.stdout.lines().filter(|line| *line == nic).count());
    ensure!(counts == [8, 8], "{ran}");
    cluster.expect_both_idle()
}

fn unknown(cluster: &Cluster) -> Result<()> {
    // A node whose GPUs Slurm doesn't know: there the variable is the user's own.
    cluster.with_plugin(&sysfs::with_gpus(cluster, "with-gpus")?)?;
    let run = |gpu: &str| {
        let line = ["-n1", "--roce=verbose", "bash", "-c", SAY];
        srun(line).env("CUDA_VISIBLE_DEVICES", gpu).run(cluster)
    };
    let ran = run("3")?;
    ensure!(ran.status == 0 && ran.stdout == "0 3 mlx5_1:1\n", "{ran}");
    let ran = run("MIG-12ab")?;
    let said = ran.own_lines();
    let note = "CUDA_VISIBLE_DEVICES: \"MIG-12ab\" can't be told to be a GPU of this node; it does not count for the NIC";
    ensure!(ran.status == 0 && said.len() == 2 && said[1].ends_with(note), "{ran}");
    ensure!(ran.stdout == "0 MIG-12ab mlx5_0:1\n", "{ran}");
    cluster.expect_idle()
}
