//! Ranks that find each other by what Slurm gives a step, with the plugin and without it.
//!
//! The ranks are this program, started as `slurm be-a-rank`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use roce_bootstrap::{Bootstrap, Options};

use crate::cluster::Cluster;
use crate::run::srun;
use crate::sysfs;
use crate::{CannotBeHad, Test};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("ranks_meet_by_the_plugins_secret", with_plugin),
    ("ranks_meet_by_a_secret_over_pmi2_without_the_plugin", pmi2),
    ("ranks_meet_by_a_secret_over_pmix_without_the_plugin", pmix),
    ("ranks_without_any_secret_are_told_the_ways_out", no_secret),
];

/// What one rank does: nothing but meet the others.
pub(crate) fn rank() -> Result<()> {
    let mut ranks = Bootstrap::init(&Options::default())?;
    let rank = ranks.identity().rank;
    let all = ranks.all_gather(&[u8::try_from(rank)?])?.iter().flatten().copied().collect::<Vec<u8>>();
    let secret = std::env::var_os("SLURM_ROCE_SECRET");
    println!("rank {rank} met {all:?} on {}, secret left: {}", ranks.node_of(rank), secret.is_some());
    ranks.barrier()?;
    Ok(())
}

/// Where a user without rights can run this program.
fn this_program(cluster: &Cluster) -> Result<String> {
    let copy = cluster.work("rank-program");
    if !copy.exists() {
        std::fs::copy(std::env::current_exe()?, &copy)?;
    }
    Ok(copy.to_str().context("the folder of the tests has an odd name")?.to_owned())
}

fn meet(cluster: &Cluster, options: &[&str]) -> Result<()> {
    let program = this_program(cluster)?;
    let words = ["-N1", "-n4", "--overcommit"].into_iter().chain(options.iter().copied());
    let ran = srun(words.chain([program.as_str(), "be-a-rank"])).run(cluster)?.succeeded()?;
    let met: BTreeSet<&str> =
        ran.stdout.lines().filter_map(|line| line.split_once(" on ").map(|(met, _)| met)).collect();
    let expected = [0, 1, 2, 3].map(|rank| format!("rank {rank} met [0, 1, 2, 3]"));
    ensure!(met == expected.iter().map(String::as_str).collect(), "{ran}");
    ensure!(!ran.stdout.contains("secret left: true"), "{ran}");
    cluster.expect_idle()
}

fn with_plugin(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    for mpi in ["--mpi=none", "--mpi=pmi2"] {
        meet(cluster, &["--roce-tc=3", mpi])?;
    }
    Ok(())
}

fn pmi2(cluster: &Cluster) -> Result<()> {
    cluster.without_plugin()?;
    meet(cluster, &["--mpi=pmi2"])
}

/// Where Slurm has a plugin for it, as `srun --mpi=list` tells.
fn pmix(cluster: &Cluster) -> Result<()> {
    cluster.without_plugin()?;
    let listed = srun(["--mpi=list"]).run(cluster)?;
    let has_it = format!("{}{}", listed.stdout, listed.stderr).split_whitespace().any(|word| word == "pmix");
    // Debian builds Slurm without it from 26.05 on.
    if !has_it && !cluster.is_before(26, 0) {
        return Err(CannotBeHad("this Slurm has no plugin mpi/pmix").into());
    }
    ensure!(has_it, "this Slurm has no --mpi=pmix: {listed}");
    meet(cluster, &["--mpi=pmix"])
}

fn no_secret(cluster: &Cluster) -> Result<()> {
    cluster.without_plugin()?;
    let program = this_program(cluster)?;
    let ran = srun(["-n2", "--mpi=none", &program, "be-a-rank"]).run(cluster)?;
    ensure!(!ran.stdout.contains("met"), "ranks met without a secret: {ran}");
    for way in ["SLURM_ROCE_SECRET is not set", "spank_roce", "srun --mpi=pmi2", "openssl rand -hex 32"] {
        ensure!(ran.stderr.contains(way), "{way}: {ran}");
    }
    cluster.expect_idle()
}
