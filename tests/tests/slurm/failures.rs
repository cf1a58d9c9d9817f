//! What only the node can know: it ends the task, with one line, and the node stays in service.

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{batch, expect, srun, wide};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_node_without_rdma_says_so_and_which_option_asked", no_rdma),
    ("on_failure_warn_runs_the_task_as_it_is", warn),
    ("a_nic_or_gid_that_the_node_lacks_ends_the_task", unknown_nic),
    ("a_tree_that_cannot_be_read_ends_the_task", no_tree),
    ("a_broken_site_file_stops_only_steps_that_ask", broken_site),
    ("a_failing_job_of_sbatch_does_not_drain_the_node", sbatch),
    ("what_is_broken_on_the_node_alone_stops_only_steps_that_ask", broken_node),
    ("a_submit_host_without_the_plugin_can_ask_by_variable", no_plugin_at_submission),
    ("bytes_that_srun_never_checked_are_parsed_strictly", forged),
    ("whatever_the_node_lacks_ends_the_task_or_warns_as_the_site_says", policy),
];

const NO_PORT: &str = "spank_roce: n1: task 0: --roce-tc=3: this node has no RoCE port: \
    /sys/class/infiniband does not exist: no RDMA driver is loaded";

fn no_rdma(cluster: &Cluster) -> Result<()> {
    // The machine's own /sys has RDMA on some developers' machines, an empty tree has none anywhere.
    let tree = sysfs::without_rdma(cluster, "no-rdma")?;
    cluster.with_plugin(&tree)?;
    let proof = cluster.work("ran");
    let ran = srun(["--roce-tc=3", "touch", &proof.display().to_string()]).run(cluster)?;
    ran.failed_with(NO_PORT)?;
    ensure!(!proof.exists(), "the task ran: {ran}");
    let ran = srun(["--overcommit", "-n3", "--roce-tc=3", "true"]).run(cluster)?;
    let lines = ran.own_lines();
    ensure!(ran.status != 0 && lines.len() == 3, "not one line for each of three tasks: {ran}");
    cluster.expect_idle()
}

fn warn(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::without_rdma(cluster, "no-rdma")?;
    cluster.with_site("[policy]\non_failure = \"warn\"\n", &tree)?;
    let look = "env; grep Cpus_allowed_list /proc/self/status";
    let ran = wide(["-n1", "--cpu-bind=none", "--roce-tc=3", "bash", "-c", look]);
    let ran = ran.run(cluster)?;
    ran.said(
        &NO_PORT
            .replace("task 0: ", "task 0: warning: ")
            .replace("no RDMA driver is loaded", "no RDMA driver is loaded; running without RoCE placement"),
    )?;
    ensure!(ran.status == 0 && ran.stdout.contains("Cpus_allowed_list:\t0-1"), "{ran}");
    ensure!(!ran.stdout.lines().any(|line| line.starts_with("ROCE_")), "not untouched: {ran}");
    // A bad value is no failure of the node's.
    srun(["--roce-tc=9", "true"]).run(cluster)?.failed_with("srun: error: spank_roce: --roce-tc=9: ...")?;
    cluster.expect_idle()
}

fn unknown_nic(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    srun(["--roce-nics=mlx5_9", "true"]).run(cluster)?.failed_with(
        "spank_roce: n1: task 0: --roce-nics=mlx5_9: this node has no such NIC; allowed here: mlx5_0, mlx5_1",
    )?;
    srun(["--roce-gid=10.9.0.0/16", "true"]).run(cluster)?.failed_with(
        "spank_roce: n1: task 0: --roce-gid=10.9.0.0/16: no RoCE port of this node can be used...",
    )?;
    srun(["--roce-nics=3", "true"])
        .run(cluster)?
        .failed_with("spank_roce: n1: task 0: --roce-nics=3: this node has 2 usable RoCE ports...")?;
    cluster.expect_idle()
}

fn no_tree(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin("sysfs=/nowhere")?;
    srun(["--roce-tc=3", "true"])
        .run(cluster)?
        .failed_with("spank_roce: n1: task 0: --roce-tc=3: can't read /nowhere/sys/...")?;
    srun(["true"]).run(cluster)?.succeeded()?;
    cluster.expect_idle()
}

fn broken_site(cluster: &Cluster) -> Result<()> {
    let site = cluster.path("roce.toml");
    let site = site.display();
    let unplaced = "this step runs without RoCE placement";
    cluster.with_site("[policy]\nactivat = \"always\"\n", "")?;
    let said = format!("srun: error: spank_roce: {site} line 2: ...");
    srun(["--roce-tc=3", "true"]).run(cluster)?.failed_with(&said)?;
    for options in [["--"].as_slice(), &["--roce=off"]] {
        let ran = srun(options.iter().copied()).args(["true"]).run(cluster)?;
        ran.said(&said)?;
        ensure!(ran.status == 0 && ran.own_lines()[0].ends_with(unplaced), "{options:?}: {ran}");
    }
    cluster.with_plugin("config=/nowhere/roce.toml")?;
    srun(["--roce-tc=3", "true"]).run(cluster)?.failed_with(
        "srun: error: spank_roce: can't read the site file /nowhere/roce.toml that plugstack.conf names: ...",
    )?;
    cluster.expect_idle()
}

fn broken_node(cluster: &Cluster) -> Result<()> {
    let site = cluster.path("roce.toml");
    cluster.with_site("nonsense\n", "")?;
    let broken_site = format!("spank_roce: n1: task 0: {} line 1: ...", site.display());
    for (arguments, line) in [
        ("confg=/x", "spank_roce: n1: task 0: plugstack.conf: unknown argument \"confg=/x\": ..."),
        (&format!("config={}", site.display()), &broken_site),
        ("config=/nowhere", "spank_roce: n1: task 0: can't read the site file /nowhere ..."),
    ] {
        cluster.with_plugin(arguments)?;
        cluster.with_client_plugin("")?;
        srun(["--roce-tc=3", "true"]).run(cluster)?.failed_with(line)?;
        srun(["true"]).run(cluster)?.succeeded()?;
        srun(["--roce=off", "true"]).run(cluster)?.succeeded()?;
        let (ended_well, said) = batch(cluster, ["--wrap", "srun --roce-tc=3 true"])?;
        ensure!(!ended_well, "{said}");
        cluster.expect_idle()?;
    }
    Ok(())
}

fn no_plugin_at_submission(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    cluster.without_client_plugin()?;
    let ran = srun(["-n1", "env"]).env("SLURM_ROCE_TC", "3").run(cluster)?.succeeded()?;
    expect(&ran.variables(), "ROCE_DSCP", "26")?;
    // Nobody but the node has judged these.
    srun(["true"])
        .env("SLURM_ROCE_TC", "9")
        .run(cluster)?
        .failed_with("spank_roce: n1: task 0: --roce-tc=9: ...")?;
    srun(["true"])
        .env("SLURM_ROCE_TC", "3")
        .env("SLURM_ROCE_DSCP", "46")
        .run(cluster)?
        .failed_with("spank_roce: n1: task 0: --roce-tc=3: excludes --roce-dscp=46...")?;
    cluster.expect_idle()
}

fn sbatch(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::without_rdma(cluster, "no-rdma")?;
    cluster.with_plugin(&tree)?;
    let (ended_well, said) = batch(cluster, ["--roce-tc=3", "--wrap", "srun true"])?;
    ensure!(!ended_well && said.lines().filter(|line| *line == NO_PORT).count() == 1, "{said}");
    cluster.expect_idle()
}

fn forged(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    // Slurm calls an option's callback on the node for such a variable, whatever its value is.
    let forged = "_SLURM_SPANK_OPTION_spank_roce_roce_tc";
    for value in ["9", "", "3 ", "%n%n%s", "\u{1b}[2J", "9999999999999999999999", "../../etc/passwd"] {
        let ran = srun(["true"]).env(forged, value).run(cluster)?;
        ran.failed_with("spank_roce: n1: task 0: --roce-tc=...")?;
        ensure!(!ran.stderr.contains('\u{1b}'), "an escape reached the terminal: {ran:?}");
    }
    cluster.expect_idle()
}

/// The table of failures: on the node, under srun and in a job, with both policies. The task must never run
/// unplaced without a word, nor end well without having run, nor may the node be drained.
fn policy(cluster: &Cluster) -> Result<()> {
    let two_nics = sysfs::two_nics(cluster, "two-nics")?;
    let cases = [
        ("no tree", "sysfs=/nowhere".to_owned(), "--roce-tc=3", "--roce-tc=3: can't read /nowhere/sys/"),
        (
            "no RDMA",
            sysfs::without_rdma(cluster, "no-rdma")?,
            "--roce-tc=3",
            "--roce-tc=3: this node has no RoCE",
        ),
        (
            "no such NIC",
            two_nics.clone(),
            "--roce-nics=mlx5_9",
            "--roce-nics=mlx5_9: this node has no such NIC",
        ),
        ("no such GID", two_nics.clone(), "--roce-gid=ipv6", "--roce-gid=ipv6: no RoCE port of this node"),
        ("too few NICs", two_nics, "--roce-nics=3", "--roce-nics=3: this node has 2 usable RoCE ports"),
    ];
    let proof = cluster.work("policy-ran");
    let touch = format!("echo placed=$ROCE_DEVICES > {}", proof.display());
    for (name, arguments, option, error) in &cases {
        for (on_failure, runs) in [("fail", false), ("warn", true)] {
            cluster.with_site(&format!("[policy]\non_failure = \"{on_failure}\"\n"), arguments)?;
            let line = format!("spank_roce: n1: task 0: {}{error}...", if runs { "warning: " } else { "" });
            let is_right = |ended_well: bool, said: &str| {
                // The one that ran says that it was not placed.
                let ran = std::fs::read_to_string(&proof).ok();
                let _ = std::fs::remove_file(&proof);
                let own: Vec<&str> = said.lines().filter(|line| line.contains("spank_roce: n1")).collect();
                let is_said = own.len() == 1 && own[0].starts_with(line.trim_end_matches("..."));
                let expected = runs.then(|| "placed=\n".to_owned());
                ensure!(
                    ended_well == runs && ran == expected && is_said,
                    "{name}, {on_failure}: ended well: {ended_well}, ran: {ran:?}, said: {said}"
                );
                cluster.expect_idle()
            };
            let ran = srun(["-n1", option, "bash", "-c", &touch]).run(cluster)?;
            is_right(ran.status == 0, &ran.own_lines().join("\n"))?;
            let script = format!("srun {option} bash -c '{touch}'");
            let (ended_well, said) = batch(cluster, ["--wrap", &script])?;
            is_right(ended_well, &said)?;
        }
    }
    Ok(())
}
