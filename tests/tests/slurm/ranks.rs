//! Ranks that find each other by what Slurm gives a step, with the plugin and without it.
//!
//! The ranks are this program, started as `slurm be-a-rank`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use roce_bootstrap::{Bootstrap, Options};

use crate::cluster::{BOTH, Cluster};
use crate::run::{Program, Ran, srun};
use crate::sysfs;
use crate::{CannotBeHad, Test};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("ranks_meet_by_the_plugins_secret", with_plugin),
    ("ranks_meet_by_a_secret_over_pmi2_without_the_plugin", pmi2),
    ("ranks_meet_by_a_secret_over_pmix_without_the_plugin", pmix),
    ("ranks_meet_by_a_secret_of_munge_without_anything_else", munge),
    ("ranks_meet_whatever_the_layout_is", layouts),
    ("ranks_of_a_heterogeneous_step_meet", heterogeneous),
    ("ranks_that_start_seconds_apart_meet", seconds_apart),
    ("ranks_without_any_secret_are_told_the_ways_out", no_secret),
];

/// A rank and its node.
type Placed<'a> = (u32, &'a str);

/// Both nodes are this machine, whatever their names are.
const ADDRESSES: &str = "n[1-2]=127.0.0.1";

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

/// Ranks on one node.
fn meet(cluster: &Cluster, options: &[&str]) -> Result<()> {
    let words = ["-N1", "-n4"].into_iter().chain(options.iter().copied());
    let expected = [(0, "n1"), (1, "n1"), (2, "n1"), (3, "n1")];
    meets(cluster, srun(words).env("ROCE_MUNGE_SOCKET", "/nonesuch"), &[], &expected)
}

/// Ranks on both nodes, which nobody's name service knows.
fn on_both<'a>(words: impl IntoIterator<Item = &'a str>) -> Program {
    srun(["-p", BOTH].into_iter().chain(words)).env("ROCE_NODE_ADDRS", ADDRESSES)
}

/// The ranks that the program starts with these words before their own meet, each on its node.
fn meets(cluster: &Cluster, program: Program, before: &[&str], expected: &[Placed<'_>]) -> Result<()> {
    let this = this_program(cluster)?;
    let words = ["--overcommit"].iter().chain(before).copied().chain([this.as_str(), "be-a-rank"]);
    all_met(&program.args(words).run(cluster)?.succeeded()?, expected)?;
    cluster.expect_both_idle()
}

fn all_met(ran: &Ran, expected: &[Placed<'_>]) -> Result<()> {
    let met: BTreeSet<&str> = ran.stdout.lines().collect();
    let all: Vec<u32> = expected.iter().map(|(rank, _)| *rank).collect();
    let line = |(rank, node): &Placed<'_>| format!("rank {rank} met {all:?} on {node}, secret left: false");
    let expected: Vec<String> = expected.iter().map(line).collect();
    ensure!(met == expected.iter().map(String::as_str).collect(), "{ran}");
    Ok(())
}

const FOUR: [Placed<'_>; 4] = [(0, "n1"), (1, "n1"), (2, "n2"), (3, "n2")];

fn with_plugin(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    for mpi in ["--mpi=none", "--mpi=pmi2"] {
        meet(cluster, &["--roce-tc=3", mpi])?;
    }
    // What the site says of the nodes' addresses reaches the ranks.
    let site = cluster.work("site.toml");
    std::fs::write(&site, format!("[bootstrap]\naddresses = [\"{ADDRESSES}\"]\n"))?;
    let arguments = format!("{tree} config={}", site.display());
    cluster.with_plugin(&arguments)?;
    cluster.with_second_plugin(&arguments)?;
    let program = srun(["-p", BOTH, "-N2", "-n4", "--distribution=block", "--roce-tc=3", "--mpi=none"]);
    meets(cluster, program, &[], &FOUR)
}

fn pmi2(cluster: &Cluster) -> Result<()> {
    cluster.without_plugins()?;
    meet(cluster, &["--mpi=pmi2"])?;
    meets(cluster, on_both(["-N2", "-n4", "--distribution=block", "--mpi=pmi2"]), &[], &FOUR)
}

fn munge_socket(cluster: &Cluster) -> String {
    cluster.path("munge.socket").display().to_string()
}

fn munge(cluster: &Cluster) -> Result<()> {
    cluster.without_plugins()?;
    let program = on_both(["-N2", "-n4", "--distribution=block", "--mpi=none"]);
    meets(cluster, program.env("ROCE_MUNGE_SOCKET", &munge_socket(cluster)), &[], &FOUR)
}

/// Uneven, one on each node, and those whose rank 0 is not on the first node; the last has a hostfile, which `srun` wants.
fn layouts(cluster: &Cluster) -> Result<()> {
    cluster.without_plugins()?;
    let hosts = cluster.work("hosts");
    std::fs::write(&hosts, "n2\nn1\nn2\n")?;
    let hosts = hosts.display().to_string();
    let socket = munge_socket(cluster);
    for mpi in ["--mpi=none", "--mpi=pmi2"] {
        let layouts: [(&[&str], &[Placed<'_>]); 4] = [
            (&["-N2", "-n3", "--distribution=block"], &[(0, "n1"), (1, "n1"), (2, "n2")]),
            (&["-N2", "-n2"], &[(0, "n1"), (1, "n2")]),
            (
                &["-N2", "-n5", "--distribution=cyclic"],
                &[(0, "n1"), (1, "n2"), (2, "n1"), (3, "n2"), (4, "n1")],
            ),
            (&["-n3", "--distribution=arbitrary"], &[(0, "n2"), (1, "n1"), (2, "n2")]),
        ];
        for (words, expected) in layouts {
            let program = on_both([mpi]).args(words.iter().copied()).env("ROCE_MUNGE_SOCKET", &socket);
            let program = if words.contains(&"--distribution=arbitrary") {
                program.env("SLURM_HOSTFILE", &hosts)
            } else {
                program
            };
            meets(cluster, program, &[], expected)?;
        }
    }
    Ok(())
}

/// Late are the first rank, the leader of a node, and one among others.
fn seconds_apart(cluster: &Cluster) -> Result<()> {
    cluster.without_plugins()?;
    for late in ["0", "2", "3"] {
        let wait = format!("[ $SLURM_PROCID = {late} ] && sleep 2.5; exec \"$@\"");
        let program = on_both(["-N2", "-n4", "--distribution=block", "--mpi=none"]);
        let program = program.env("ROCE_MUNGE_SOCKET", &munge_socket(cluster));
        meets(cluster, program, &["sh", "-c", &wait, "sh"], &FOUR)?;
    }
    Ok(())
}

fn heterogeneous(cluster: &Cluster) -> Result<()> {
    cluster.without_plugins()?;
    let this = this_program(cluster)?;
    for mpi in ["--mpi=none", "--mpi=pmi2"] {
        let own = [mpi, "--overcommit", this.as_str(), "be-a-rank"];
        let line = [&["-p", BOTH, "-w", "n1", "-n1"][..], &own, &[":", "-p", BOTH, "-w", "n2", "-n2"], &own]
            .concat();
        let program = srun(line).env("ROCE_NODE_ADDRS", ADDRESSES);
        let ran = program.env("ROCE_MUNGE_SOCKET", &munge_socket(cluster)).run(cluster)?.succeeded()?;
        all_met(&ran, &[(0, "n1"), (1, "n2"), (2, "n2")])?;
    }
    cluster.expect_both_idle()
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
    let line = ["-n2", "--mpi=none", &program, "be-a-rank"];
    let ran = srun(line).env("ROCE_MUNGE_SOCKET", "/nonesuch").run(cluster)?;
    ensure!(!ran.stdout.contains("met"), "ranks met without a secret: {ran}");
    for way in
        ["SLURM_ROCE_SECRET is not set", "/nonesuch", "spank_roce", "srun --mpi=pmi2", "openssl rand -hex 32"]
    {
        ensure!(ran.stderr.contains(way), "{way}: {ran}");
    }
    cluster.expect_idle()
}
