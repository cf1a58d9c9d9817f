//! Once through everything that a release of Slurm could do in another way. `cargo xtask test` runs this one in every
//! Debian suite; the other tests say the same in more detail.

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{batch, expect, program, srun, wide};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[("options_affinity_environment_inheritance_and_an_error", brief)];

fn brief(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    for command in ["srun", "sbatch", "salloc"] {
        let help = program(command).args(["--help"]).unprivileged().run(cluster)?.succeeded()?;
        ensure!(help.stdout.contains("--roce-tc="), "{command} doesn't know the option: {help}");
    }
    two_tasks(cluster)?;
    narrowed(cluster)?;
    job(cluster)?;
    errors(cluster)
}

/// Each task gets the NIC of the CPU that Slurm gave it.
fn two_tasks(cluster: &Cluster) -> Result<()> {
    let say = "echo $SLURM_PROCID $ROCE_DEVICES $ROCE_GIDS $ROCE_TRAFFIC_CLASS $UCX_NET_DEVICES \
               $(awk '/Cpus_allowed_list/ {print $2}' /proc/self/status)";
    let ran = srun(["-n2", "--roce-tc=3", "bash", "-c", say]).run(cluster)?.succeeded()?;
    let mut lines: Vec<&str> = ran.stdout.lines().collect();
    lines.sort_unstable();
    let expected = ["0 mlx5_0:1 ::ffff:10.0.0.7 106 mlx5_0:1 0", "1 mlx5_1:1 ::ffff:10.0.1.7 106 mlx5_1:1 1"];
    ensure!(lines == expected, "{ran}");
    Ok(())
}

/// What the plugin binds stays bound: Slurm doesn't overrule it later.
fn narrowed(cluster: &Cluster) -> Result<()> {
    let look = ["awk", "/Cpus_allowed_list/ {print $2}", "/proc/self/status"];
    let run = |options: &[&str]| {
        let ran = wide(["-n1", "--cpu-bind=none"]).args(options.iter().copied()).args(look).run(cluster)?;
        ran.succeeded().map(|ran| ran.stdout)
    };
    let (without, with) = (run(&[])?, run(&["--roce-nics=mlx5_1"])?);
    ensure!(without == "0-1\n" && with == "1\n", "without the plugin's doing {without}, with it {with}");
    Ok(())
}

/// A step within a job has the job's options, whatever environment it keeps, and its own come first.
fn job(cluster: &Cluster) -> Result<()> {
    let say = cluster.work("say");
    std::fs::write(&say, "echo $1 $ROCE_DSCP\n")?;
    let say = format!("/bin/bash {}", say.display());
    let script = format!(
        "echo script $ROCE_DSCP; srun {say} job; srun --roce-tc=5 {say} own; srun --roce=off {say} off"
    );
    for options in [&[][..], &["--export=NONE"]] {
        let submit = options.iter().copied().chain(["--roce-tc=3", "--wrap", script.as_str()]);
        let (ended_well, said) = batch(cluster, submit)?;
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("srun: ")).collect();
        ensure!(ended_well && lines == ["script", "job 26", "own 40", "off"], "{options:?}: {said}");
    }
    let ran = srun(["-n1", "--export=NONE", "--roce-tc=3", "/usr/bin/env"]).run(cluster)?.succeeded()?;
    expect(&ran.variables(), "ROCE_DSCP", "26")
}

/// One line, from where it is known, and the node stays in service.
fn errors(cluster: &Cluster) -> Result<()> {
    srun(["--roce-tc=9", "true"]).run(cluster)?.failed_with("srun: error: spank_roce: --roce-tc=9: ...")?;
    let line =
        "spank_roce: n1: task 0: --roce-nics=mlx5_9: this node has no such NIC; allowed here: mlx5_0, mlx5_1";
    srun(["--roce-nics=mlx5_9", "true"]).run(cluster)?.failed_with(line)?;
    let (ended_well, said) = batch(cluster, ["--roce-nics=mlx5_9", "--wrap", "srun true"])?;
    ensure!(!ended_well && said.lines().filter(|said| *said == line).count() == 1, "{said}");
    cluster.expect_idle()
}
