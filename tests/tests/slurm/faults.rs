//! A plugin that is itself broken: built with a panic in each hook, in real Slurm.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::prerequisites::target;
use crate::run::{batch, srun};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[("a_panic_in_any_hook_ends_the_task_and_drains_nothing", panics)];

/// Where the hook runs: where the job is submitted, or on the node.
const HOOKS: [(&str, &str); 5] = [
    ("Init", "srun: error: spank_roce: internal error in Init, ..."),
    ("InitPostOpt", "srun: error: spank_roce: internal error in InitPostOpt, ..."),
    ("UserInit", "spank_roce: n1: task 0: internal error in UserInit, ..."),
    ("TaskPostFork", "spank_roce: n1: task 0: ..."),
    ("TaskInit", "spank_roce: n1: task 0: internal error in TaskInit, ..."),
];

fn panics(cluster: &Cluster) -> Result<()> {
    let released = cluster.path("released.so");
    std::fs::copy(cluster.path("spank_roce.so"), &released)?;
    cluster.install(&faulty()?)?;
    let result = HOOKS.iter().try_for_each(|(hook, line)| match *hook {
        "TaskPostFork" if cluster.is_before(22, 5) => panic_where_nothing_is_done(cluster, hook),
        _ => panic_in(cluster, hook, line),
    });
    let result = result.and_then(|()| panic_at_the_end(cluster));
    cluster.install(&released)?;
    result
}

fn panic_in(cluster: &Cluster, hook: &str, line: &str) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&format!("{tree} fault={hook}"))?;
    let proof = cluster.work(&format!("ran-{hook}"));
    let touch = ["touch".to_owned(), proof.display().to_string()];
    let touch = || touch.iter().map(String::as_str);
    // A variable, for in the first hook no option is known yet.
    let ran = srun(touch()).env("SLURM_ROCE_TC", "3").run(cluster)?;
    ran.failed_with(line).with_context(|| hook.to_owned())?;
    ensure!(!proof.exists(), "{hook}: the task ran all the same");
    // In a job, where Slurm would drain the node for most hooks.
    let script = format!("SLURM_ROCE_TC=3 srun {}", touch().collect::<Vec<_>>().join(" "));
    let (ended_well, said) = batch(cluster, ["--wrap", &script])?;
    ensure!(!ended_well && !proof.exists(), "{hook}: {said}");
    cluster.expect_idle().with_context(|| hook.to_owned())?;
    // Who did not ask is not bothered.
    srun(touch()).run(cluster)?.succeeded().with_context(|| hook.to_owned())?;
    ensure!(proof.exists(), "{hook}: the task without options did not run");
    cluster.expect_idle().with_context(|| hook.to_owned())
}

/// All is done by then, and what has to be put back is put back all the same.
fn panic_at_the_end(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "panic-at-the-end")?;
    let value = cluster.path("panic-at-the-end/sys/kernel/config/rdma_cm/mlx5_0/ports/1/default_roce_tos");
    std::fs::create_dir_all(value.parent().context("no parent")?)?;
    std::fs::write(&value, "0\n")?;
    let site = "[policy]\nnode_wide = true\n[nics]\ninclude = [\"mlx5_0\"]\n";
    cluster.with_site(site, &format!("{tree} fault=Exit"))?;
    let cat = value.display().to_string();
    let ran = srun(["--exclusive", "-n1", "--roce-tc=3", "cat", &cat]).run(cluster)?.succeeded()?;
    ensure!(ran.stdout == "106\n", "{ran}");
    cluster.expect_idle()?;
    let after = std::fs::read_to_string(&value)?;
    ensure!(after == "0\n", "not put back: {after}");
    Ok(())
}

/// Before 22.05 Slurm binds a task after task_post_fork, so there the tasks settle everything among themselves: that
/// slurmstepd's copy of the plugin is broken by then, takes nothing from them.
fn panic_where_nothing_is_done(cluster: &Cluster, hook: &str) -> Result<()> {
    cluster.with_plugin(&format!("{} fault={hook}", sysfs::two_nics(cluster, "two-nics")?))?;
    let ran = srun(["-n2", "--roce-tc=3", "bash", "-c", "echo $SLURM_PROCID $ROCE_DEVICES"]).run(cluster)?;
    let ran = ran.succeeded().with_context(|| hook.to_owned())?;
    let mut lines: Vec<&str> = ran.stdout.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["0 mlx5_0:1", "1 mlx5_1:1"], "{hook}: {ran}");
    let log = std::fs::read_to_string(cluster.path("slurmd.log"))?;
    ensure!(log.contains(&format!("internal error in {hook}, ")), "{hook}: no panic in slurmd's log");
    cluster.expect_idle().with_context(|| hook.to_owned())
}

/// The plugin with the feature that panics on demand: the file that `ROCE_PLUGIN_FAULTY` names, or where
/// `cargo xtask test` builds it.
fn faulty() -> Result<PathBuf> {
    let built = target().join("fault-injection/spank_roce.so");
    let path = std::env::var_os("ROCE_PLUGIN_FAULTY").map_or(built, PathBuf::from);
    ensure!(path.exists(), "{} does not exist; run `cargo xtask test --only slurm`", path.display());
    Ok(path)
}
