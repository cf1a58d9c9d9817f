//! The class as that of all rdma_cm connections of the node: when it is set, and that it never stays. Plain files
//! stand in for configfs below the tree that `sysfs=` names.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{Program, program, srun};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("the_class_is_node_wide_during_a_step_that_has_the_node_and_only_then", during),
    ("without_the_whole_node_or_the_sites_word_nothing_is_node_wide", withheld),
    ("a_killed_slurmstepds_class_is_put_back_by_the_next_step", next_step),
    ("a_killed_slurmstepds_class_is_put_back_by_rocectl_restore", rocectl_restore),
    ("steps_of_one_job_share_a_class_and_leave_another_ones_alone", steps_of_one_job),
    ("a_class_that_cannot_be_node_wide_is_a_warning", no_configfs),
];

const SITE: &str = "[policy]\nnode_wide = true\n";
const NAME: &str = "node-wide";

/// A machine of its own, for the files are written to, with a class on the second NIC already.
fn machine(cluster: &Cluster) -> Result<String> {
    let tree = sysfs::two_nics(cluster, NAME)?;
    // What a test that failed has left.
    let _ = fs::remove_file(record(cluster));
    for (file, value) in files(cluster).into_iter().zip(["0\n", "8\n"]) {
        fs::create_dir_all(file.parent().context("no parent")?)?;
        fs::write(file, value)?;
    }
    Ok(tree)
}

fn files(cluster: &Cluster) -> [PathBuf; 2] {
    [0, 1].map(|nic| {
        let file = format!("sys/kernel/config/rdma_cm/mlx5_{nic}/ports/1/default_roce_tos");
        cluster.path(NAME).join(file)
    })
}

fn record(cluster: &Cluster) -> PathBuf {
    cluster.path(NAME).join("run/roce-launch/node-wide.toml")
}

/// The shell's command that shows both values in a line.
fn look(cluster: &Cluster) -> String {
    format!("cat {} | xargs", files(cluster).map(|file| file.display().to_string()).join(" "))
}

fn values(cluster: &Cluster) -> Result<String> {
    let values = files(cluster).map(fs::read_to_string);
    let [first, second] = values;
    Ok(format!("{} {}", first?.trim(), second?.trim()))
}

/// srun is back before slurmstepd has ended.
fn wait_for(cluster: &Cluster, what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < Duration::from_secs(20), "{what}: not so in time: {}", cluster.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn expect_put_back(cluster: &Cluster) -> Result<()> {
    wait_for(cluster, "both classes as they were", || Ok(values(cluster)? == "0 8"))?;
    wait_for(cluster, "no record left", || Ok(!record(cluster).exists()))
}

/// A step that has the node to itself.
fn alone<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Program {
    srun(["--exclusive", "-n1"]).args(arguments)
}

fn during(cluster: &Cluster) -> Result<()> {
    let tree = machine(cluster)?;
    cluster.with_site(SITE, &tree)?;
    let look = look(cluster);
    let ran = alone(["--roce-tc=3", "bash", "-c", &look]).run(cluster)?.succeeded()?;
    ensure!(ran.stdout == "106 106\n", "{ran}");
    expect_put_back(cluster)?;
    let ran = alone(["--roce-tc=3", "--roce=verbose", "true"]).run(cluster)?;
    let said = "task 0: traffic class 106 is node-wide on mlx5_0:1,mlx5_1:1";
    ensure!(ran.status == 0 && ran.stderr.contains(said), "{ran}");
    expect_put_back(cluster)?;
    // Only on NICs that are for jobs, and by a step that fails too.
    cluster.with_site(&format!("{SITE}[nics]\nexclude = [\"mlx5_1\"]\n"), &tree)?;
    let ran = alone(["--roce-dscp=46", "bash", "-c", &format!("{look}; exit 3")]).run(cluster)?;
    ensure!(ran.stdout == "186 8\n" && ran.status == 3, "{ran}");
    expect_put_back(cluster)?;
    cluster.expect_idle()
}

fn withheld(cluster: &Cluster) -> Result<()> {
    let tree = machine(cluster)?;
    let look = look(cluster);
    let unchanged = |step: Program| -> Result<()> {
        let ran = step.args(["bash", "-c", &look]).run(cluster)?.succeeded()?;
        ensure!(ran.stdout == "0 8\n" && !record(cluster).exists(), "{ran}");
        Ok(())
    };
    cluster.with_site("", &tree)?;
    unchanged(alone(["--roce-tc=3"]))?;
    cluster.with_site(SITE, &tree)?;
    unchanged(srun(["-n1", "--roce-tc=3"]))?;
    unchanged(alone(["--roce-nics=all"]))?;
    unchanged(alone(["--roce=off"]))?;
    unchanged(alone([]))?;
    // Whatever its environment says it has.
    let forged = ["SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_ON_NODE", "SLURM_JOB_NUM_NODES"];
    let step = srun(["-n1", "--roce-tc=3", "--overcommit", "--oversubscribe", "--overlap"]);
    unchanged(forged.iter().fold(step, |step, name| step.env(name, "2")))?;
    let ran = srun(["-n1", "--roce-tc=3", "--roce=verbose", "true"]).run(cluster)?;
    let said = "the class is not node-wide: the job has 1 of the node's 2 CPUs (ask for --exclusive)";
    ensure!(ran.status == 0 && ran.stderr.contains(said), "{ran}");
    // A class that the site forbids, asked for where nobody judges it before the node does.
    cluster.with_site(&format!("{SITE}allowed_priorities = [3]\n"), &tree)?;
    cluster.without_client_plugin()?;
    for name in ["SLURM_ROCE_TC", "_SLURM_SPANK_OPTION_spank_roce_roce_tc"] {
        let ran = alone(["true"]).env(name, "5").run(cluster)?;
        ran.failed_with("spank_roce: n1: task 0: --roce-tc=5: it has priority 5, ...")?;
        ensure!(values(cluster)? == "0 8" && !record(cluster).exists(), "{name}: {ran}");
    }
    cluster.expect_idle()
}

/// A step whose slurmstepd is killed while its class is node-wide; its own process is gone too then.
fn kill_a_step(cluster: &Cluster) -> Result<()> {
    let file = cluster.work("pid");
    let _ = fs::remove_file(&file);
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 60", file.display());
    std::thread::scope(|scope| -> Result<()> {
        let step = scope.spawn(|| alone(["--roce-tc=3", "bash", "-c", &script]).run(cluster));
        wait_for(cluster, "the step runs", || Ok(file.exists() && values(cluster)? == "106 106"))?;
        let text = fs::read_to_string(record(cluster))?;
        let stepd = text.lines().find_map(|line| line.strip_prefix("pid = ")).context("no pid")?;
        let job = text.lines().find_map(|line| line.strip_prefix("step = \"")).context("no step")?;
        let job = job.split('.').next().context("no job")?.to_owned();
        for pid in [stepd, fs::read_to_string(&file)?.trim()] {
            kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
        }
        program("scancel").args([job.as_str()]).run(cluster)?;
        // What srun makes of a slurmstepd that is gone is Slurm's business.
        step.join().map_err(|_| anyhow::anyhow!("the step's thread panicked"))?.map(drop)
    })?;
    ensure!(values(cluster)? == "106 106" && record(cluster).exists(), "nothing was left behind");
    cluster.expect_idle()
}

fn next_step(cluster: &Cluster) -> Result<()> {
    let tree = machine(cluster)?;
    cluster.with_site(SITE, &tree)?;
    kill_a_step(cluster)?;
    // Even one that has nothing to do with it, and with the key taken away again.
    cluster.with_site("", &tree)?;
    let ran = srun(["-n1", "bash", "-c", &look(cluster)]).run(cluster)?.succeeded()?;
    ensure!(ran.stdout == "0 8\n" && !record(cluster).exists(), "{ran}");
    cluster.expect_idle()
}

fn rocectl(cluster: &Cluster, arguments: &[&str]) -> Result<crate::run::Ran> {
    let path = roce_tests::artifact("ROCE_ROCECTL", "rocectl").map_err(anyhow::Error::msg)?;
    let root = format!("--sysfs={}", cluster.path(NAME).display());
    let arguments = ["restore", &root].into_iter().chain(arguments.iter().copied());
    program(&path.display().to_string()).args(arguments).run(cluster)
}

fn rocectl_restore(cluster: &Cluster) -> Result<()> {
    let tree = machine(cluster)?;
    cluster.with_site(SITE, &tree)?;
    kill_a_step(cluster)?;
    let ran = rocectl(cluster, &[])?.succeeded()?;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    ensure!(
        lines.len() == 2
            && lines[0].starts_with("mlx5_0:1: default traffic class 106 of step ")
            && lines[1].ends_with(" is 8 again"),
        "{ran}"
    );
    ensure!(values(cluster)? == "0 8" && !record(cluster).exists(), "{ran}");
    ensure!(rocectl(cluster, &[])?.succeeded()?.stdout == "nothing to restore\n", "restored twice");
    Ok(())
}

fn steps_of_one_job(cluster: &Cluster) -> Result<()> {
    let tree = machine(cluster)?;
    cluster.with_site(SITE, &tree)?;
    // The first step ends when it is told to.
    let (started, go) = (cluster.work("started"), cluster.work("go"));
    let _ = (fs::remove_file(&started), fs::remove_file(&go));
    let (started, go) = (started.display(), go.display());
    let look = look(cluster);
    let long = format!("touch {started}; until [ -e {go} ]; do sleep 0.05; done");
    let script = format!(
        "srun --overlap -n1 --roce-tc=3 bash -c '{long}' & until [ -e {started} ]; do sleep 0.05; done\n\
         srun --overlap -n1 --roce-tc=5 bash -c '{look}; echo $ROCE_TRAFFIC_CLASS'\n\
         {look}\n\
         srun --overlap -n1 --roce-tc=3 bash -c 'touch {go}; while [ -e {go} ]; do sleep 0.05; done; {look}' &\n\
         wait %1; sleep 0.5; {look}; rm {go}; wait"
    );
    let ran = program("salloc").args(["--quiet", "--exclusive", "bash", "-c", &script]).unprivileged();
    let ran = std::thread::scope(|scope| -> Result<_> {
        let ran = scope.spawn(|| ran.run(cluster));
        let text = || fs::read_to_string(record(cluster)).unwrap_or_default();
        wait_for(cluster, "a record", || Ok(text().contains("pid = ")))?;
        let refused = rocectl(cluster, &[])?;
        ensure!(
            refused.status == 1 && refused.stderr.contains("still needs the class"),
            "restored below a running step: {refused}"
        );
        ran.join().map_err(|_| anyhow::anyhow!("the job's thread panicked"))?
    })?;
    ensure!(ran.status == 0, "{ran}");
    // The one with another class has it in its own exports; the second with the same one outlives the first.
    ensure!(ran.stdout == "106 106\n162\n106 106\n106 106\n106 106\n", "{ran}");
    let warning = "task 0: warning: the class is not node-wide: step ";
    let lines: Vec<&str> = ran.own_lines();
    ensure!(lines.len() == 1 && lines[0].contains(warning), "{ran}");
    expect_put_back(cluster)?;
    cluster.expect_idle()
}

fn no_configfs(cluster: &Cluster) -> Result<()> {
    cluster.with_site(SITE, &sysfs::two_nics(cluster, "two-nics")?)?;
    let ran = alone(["--roce-tc=3", "bash", "-c", "echo $ROCE_TRAFFIC_CLASS"]).run(cluster)?;
    let folder = cluster.path("two-nics/sys/kernel/config/rdma_cm");
    ran.said(&format!(
        "spank_roce: n1: task 0: warning: the class is not node-wide: {} does not exist: load ...",
        folder.display()
    ))?;
    ensure!(ran.status == 0 && ran.stdout == "106\n", "{ran}");
    cluster.expect_idle()
}
