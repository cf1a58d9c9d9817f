//! What a task gets on a node that has what was asked.

use anyhow::{Context, Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{batch, expect, program, srun, wide};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_task_finds_its_nic_and_class_in_its_environment", environment),
    ("each_task_gets_the_nic_of_its_numa_node", nearest),
    ("many_tasks_alike_get_what_each_would_have_worked_out_by_itself", alike),
    ("cpus_are_narrowed_to_the_nics_numa_node_and_never_widened", cpus),
    ("memory_is_bound_unless_the_user_chose", memory),
    ("memlock_is_raised_though_the_submitting_shell_has_64_kib", memlock),
    ("verbose_says_one_line_per_task_on_its_stderr", verbose),
    ("variables_that_the_user_set_are_kept_unless_the_site_overwrites", users_variables),
    ("the_secret_is_fresh_and_the_same_for_all_tasks", secret),
    ("root_and_users_are_served_alike", root),
    ("a_site_can_activate_every_step", always),
];

fn with_two_nics(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)
}

fn environment(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let ran = wide(["-n1", "--cpu-bind=map_cpu:1", "--roce-tc=3", "env"]).run(cluster)?.succeeded()?;
    let variables = ran.variables();
    for (name, value) in [
        ("ROCE_DEVICES", "mlx5_1:1"),
        ("ROCE_NETDEVS", "eth1"),
        ("ROCE_GIDS", "::ffff:10.0.1.7"),
        ("ROCE_GID_INDEXES", "1"),
        ("ROCE_RAILS", "1"),
        ("ROCE_PRIORITY", "3"),
        ("ROCE_DSCP", "26"),
        ("ROCE_TRAFFIC_CLASS", "106"),
        ("ROCE_CPUS", "1"),
        ("ROCE_NUMA_NODES", "1"),
        ("UCX_NET_DEVICES", "mlx5_1:1"),
        ("UCX_IB_TRAFFIC_CLASS", "106"),
        ("NCCL_IB_HCA", "=mlx5_0:1,mlx5_1:1"),
        ("NCCL_IB_TC", "106"),
        ("FI_VERBS_DEVICE_NAME", "mlx5_1"),
    ] {
        expect(&variables, name, value)?;
    }
    cluster.expect_idle()
}

/// One line per task: rank, device, CPUs.
const WHERE: &str =
    "echo $SLURM_PROCID $ROCE_DEVICES $(awk '/Cpus_allowed_list/ {print $2}' /proc/self/status)";

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn nearest(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let ran = srun(["-n2", "--roce-tc=3", "bash", "-c", WHERE]).run(cluster)?.succeeded()?;
    ensure!(sorted(&ran.stdout) == ["0 mlx5_0:1 0", "1 mlx5_1:1 1"], "{ran}");
    // Four tasks on wide masks: the NICs are shared out, and each task goes to its NIC.
    let ran = wide(["-n4", "--overcommit", "--cpu-bind=none", "--roce-tc=3", "bash", "-c", WHERE]);
    let ran = ran.run(cluster)?.succeeded()?;
    let counts = [" mlx5_0:1 0", " mlx5_1:1 1"]
        .map(|end| ran.stdout.lines().filter(|line| line.ends_with(end)).count());
    ensure!(counts == [2, 2], "{ran}");
    let ran = srun(["-n2", "--roce-nics=all", "bash", "-c", WHERE]).run(cluster)?.succeeded()?;
    ensure!(sorted(&ran.stdout) == ["0 mlx5_0:1,mlx5_1:1 0", "1 mlx5_1:1,mlx5_0:1 1"], "{ran}");
    cluster.expect_idle()
}

/// All that the plan decides for a task: CPUs, memory, limit, variables; as a digest, for srun cuts long lines up.
const ALL_OF_IT: &str = "{ grep Cpus_allowed: /proc/self/status; awk '{print $2}' /proc/self/numa_maps | sort -u; \
     ulimit -Sl; env | grep -E '^(ROCE|UCX|NCCL|FI|OMPI|MV2|MVP|NVSHMEM|ROCSHMEM|GLOO|MC|HCCL)_' | sort; } | md5sum \
     | sed \"s/-/$SLURM_PROCID $ROCE_DEVICES/\"";

fn alike(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let look = |options: &[&str]| {
        let many = ["-n20", "--overcommit", "--cpu-bind=none", "--roce-tc=3"];
        let ran = wide(many.iter().chain(options).copied()).args(["bash", "-c", ALL_OF_IT]);
        let ran = ran.run(cluster)?;
        ensure!(ran.status == 0, "{ran}");
        Ok(ran.stdout)
    };
    // slurmstepd works it out for ten tasks at once; where they are to tell about it, each does for itself.
    let (together, alone) = (look(&[])?, look(&["--roce=verbose"])?);
    ensure!(sorted(&together) == sorted(&alone), "{together}\nis not\n{alone}");
    let on = |nic: &str| together.lines().filter(|line| line.ends_with(nic)).count();
    ensure!((on("mlx5_0:1"), on("mlx5_1:1")) == (10, 10), "{together}");
    // What the user has set counts for all of them.
    let count = "test $UCX_NET_DEVICES = mine && echo mine";
    let ran = wide(["-n20", "--overcommit", "--cpu-bind=none", "--roce-tc=3", "bash", "-c", count]);
    let ran = ran.env("UCX_NET_DEVICES", "mine").run(cluster)?.succeeded()?;
    ensure!(ran.stdout.lines().filter(|line| *line == "mine").count() == 20, "{ran}");
    cluster.expect_idle()
}

fn cpus(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let run = |options: &[&str]| {
        wide(options.iter().copied())
            .args(["bash", "-c", WHERE])
            .run(cluster)?
            .succeeded()
            .map(|ran| ran.stdout)
    };
    let unbound = ["-n1", "--cpu-bind=none"];
    ensure!(
        run(&unbound)?.split_whitespace().eq(["0", "0-1"]),
        "the mask is not wide without the plugin's doing"
    );
    let far = [unbound.as_slice(), &["--roce-nics=mlx5_1"]].concat();
    ensure!(run(&far)? == "0 mlx5_1:1 1\n", "not narrowed");
    ensure!(run(&[far.as_slice(), &["--roce-bind=none"]].concat())? == "0 mlx5_1:1 0-1\n", "narrowed");
    // Both CPUs were promised to the task.
    let promised = ["-n1", "-c2", "--roce-nics=mlx5_1"];
    ensure!(run(&promised)? == "0 mlx5_1:1 0-1\n", "narrowed below --cpus-per-task");
    // Slurm bound it to the other NUMA node.
    let elsewhere = ["-n1", "--cpu-bind=map_cpu:0", "--roce-nics=mlx5_1"];
    ensure!(run(&elsewhere)? == "0 mlx5_1:1 0\n", "moved to CPUs that Slurm did not give");
    wide(["-n1", "--cpu-bind=map_cpu:0", "--roce-nics=mlx5_1", "--roce-bind=numa", "true"])
        .run(cluster)?
        .failed_with("spank_roce: n1: task 0: --roce-bind=numa: ...")?;
    cluster.expect_idle()
}

fn memory(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let policy = |options: &[&str]| {
        let look = "awk '{print $2}' /proc/self/numa_maps | sort -u";
        let ran = srun(options.iter().copied()).args(["--roce-nics=mlx5_0", "bash", "-c", look]);
        ran.run(cluster)?.succeeded().map(|ran| ran.stdout.trim().to_owned())
    };
    // NUMA node 0 is the one that every machine has.
    let own = ["-n1", "--cpu-bind=map_cpu:0"];
    let found = policy(&own)?;
    ensure!(found == "prefer:0", "{found}");
    let found = policy(&[own.as_slice(), &["--roce-bind=numa"]].concat())?;
    ensure!(found == "bind:0", "{found}");
    let found = policy(&[own.as_slice(), &["--roce-bind=none"]].concat())?;
    ensure!(found == "default", "{found}");
    // Chosen by the user, so kept.
    let chosen = ["--mem-bind=prefer,map_mem:0", "--roce-bind=numa"];
    let found = policy(&[own.as_slice(), &chosen].concat())?;
    ensure!(found.starts_with("prefer"), "{found}");
    cluster.expect_idle()
}

fn memlock(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let run = |options: &[&str]| {
        let limit = srun(options.iter().copied()).args(["bash", "-c", "ulimit -Sl"]).memlock_kib(64);
        limit.run(cluster)?.succeeded()
    };
    let without = run(&["--roce=off"])?;
    ensure!(without.stdout == "64\n", "the shell's limit did not reach the task: {without}");
    let with = run(&["--roce-tc=3"])?;
    let hint = with.stderr.lines().filter(|line| line.contains("the memlock limit is")).count();
    if may_raise_limits()? {
        ensure!(with.stdout == "unlimited\n" && hint == 0, "{with}");
    } else {
        // As far as the hard limit allows, and the task is told.
        let hard = program("bash").args(["-c", "ulimit -Hl"]).run(cluster)?.stdout;
        ensure!(with.stdout == hard && hint == 1, "should be {hard}: {with}");
    }
    cluster.with_site("[limits]\nmemlock = 131072\n", &sysfs::two_nics(cluster, "two-nics")?)?;
    let site = run(&["--roce-tc=3"])?;
    ensure!(site.stdout == "128\n", "{site}");
    cluster.with_site("[limits]\nmemlock = \"keep\"\n", &sysfs::two_nics(cluster, "two-nics")?)?;
    let kept = run(&["--roce-tc=3"])?;
    ensure!(kept.stdout == "64\n", "{kept}");
    cluster.expect_idle()
}

/// Has root here the right to raise hard limits? Some sandboxes take it away.
fn may_raise_limits() -> Result<bool> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(mask.trim(), 16)? & CAP_SYS_RESOURCE != 0)
}

fn verbose(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let ran = srun(["-n2", "--roce-tc=3", "--roce=verbose", "true"]).run(cluster)?;
    let mut lines = ran.own_lines();
    lines.retain(|line| !line.contains("memory policy kept"));
    lines.sort_unstable();
    ensure!(ran.status == 0 && lines.len() == 2, "{ran}");
    for (rank, line) in lines.iter().enumerate() {
        let start = format!("spank_roce: n1: task {rank}: mlx5_{rank}:1 (eth{rank}, ");
        ensure!(line.starts_with(&start) && line.contains("traffic class 106"), "{ran}");
    }
    cluster.expect_idle()
}

fn users_variables(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    let run = || {
        srun(["-n1", "--roce-tc=3", "env"])
            .env("UCX_NET_DEVICES", "mlx5_7:1")
            .env("ROCE_DSCP", "0")
            .run(cluster)
    };
    let ran = run()?.succeeded()?;
    expect(&ran.variables(), "UCX_NET_DEVICES", "mlx5_7:1")?;
    expect(&ran.variables(), "UCX_IB_TRAFFIC_CLASS", "106")?;
    // Ours, so nobody else's word counts.
    expect(&ran.variables(), "ROCE_DSCP", "26")?;
    cluster.with_site("[exports]\noverwrite = true\n", &tree)?;
    let ran = run()?.succeeded()?;
    expect(&ran.variables(), "UCX_NET_DEVICES", "mlx5_0:1")?;
    cluster.expect_idle()
}

fn secret(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let run = || {
        let ran = srun(["-n2", "--roce-tc=3", "bash", "-c", "echo $SLURM_ROCE_SECRET"])
            .run(cluster)?
            .succeeded()?;
        let lines: Vec<&str> = ran.stdout.lines().collect();
        ensure!(lines.len() == 2 && lines[0] == lines[1] && lines[0].len() == 64, "{ran}");
        Ok(lines[0].to_owned())
    };
    ensure!(run()? != run()?, "two steps have one secret");
    cluster.expect_idle()
}

fn root(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let root = program("srun").args(["-n1", "--roce-tc=3", "bash", "-c", "id -u; echo $ROCE_DEVICES"]);
    let root = root.run(cluster)?.succeeded()?;
    ensure!(root.stdout == "0\nmlx5_0:1\n", "{root}");
    let user =
        srun(["-n1", "--roce-tc=3", "bash", "-c", "id -u; echo $ROCE_DEVICES"]).run(cluster)?.succeeded()?;
    ensure!(user.stdout == "65534\nmlx5_0:1\n", "{user}");
    cluster.expect_idle()
}

fn always(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_site("[policy]\nactivate = \"always\"\nclass = \"3\"\n", &tree)?;
    let ran = srun(["-n1", "env"]).run(cluster)?.succeeded()?;
    expect(&ran.variables(), "ROCE_DEVICES", "mlx5_0:1")?;
    expect(&ran.variables(), "ROCE_DSCP", "26")?;
    ensure!(ran.variables().contains_key("SLURM_ROCE_SECRET"), "{ran}");
    let ran = srun(["-n1", "--roce=off", "env"]).run(cluster)?.succeeded()?;
    ensure!(!ran.variables().keys().any(|name| name.starts_with("ROCE_")), "{ran}");
    // The batch script itself is left alone; its steps are not.
    let (_, said) = batch(cluster, ["--wrap", "env | grep -c ^ROCE_; srun env | grep ^ROCE_DEVICES"])?;
    ensure!(said == "0\nROCE_DEVICES=mlx5_0:1\n", "{said}");
    cluster.expect_idle()
}
