//! Every kind of step that Slurm starts, and every binding of CPUs that it may have done before.

use anyhow::{Context, Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{batch, program, srun, wide};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("each_step_of_a_job_array_is_placed", array),
    ("steps_that_overlap_are_placed_each_for_itself", overlap),
    ("each_program_of_multi_prog_is_placed", multi_prog),
    ("an_interactive_step_is_left_alone_and_its_steps_are_not", interactive),
    ("no_cpu_binding_of_slurms_is_widened_or_narrowed_below_the_promise", bindings),
    ("many_tasks_on_few_cpus_share_the_nics_evenly", many),
    ("many_tasks_have_the_variables_that_one_has", same_variables),
];

fn with_two_nics(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn array(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let output = cluster.work("array");
    let wrap = format!("srun bash -c 'echo $ROCE_DSCP > {}.$SLURM_ARRAY_TASK_ID'", output.display());
    let job = ["--array=0-2%1", "--roce-tc=3", "--wrap", &wrap];
    let (ended_well, said) = batch(cluster, job)?;
    ensure!(ended_well, "{said}");
    let start = std::time::Instant::now();
    for task in 0..3 {
        let file = format!("{}.{task}", output.display());
        let mut found = std::fs::read_to_string(&file);
        while found.is_err() && start.elapsed().as_secs() < 30 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            found = std::fs::read_to_string(&file);
        }
        ensure!(found.with_context(|| file.clone())? == "26\n", "{file}");
    }
    cluster.expect_idle()
}

fn overlap(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let script = "srun --overlap -n1 --roce-nics=mlx5_1 bash -c 'echo $ROCE_DEVICES $ROCE_DSCP; sleep 1' & \
                  srun --overlap -n1 bash -c 'echo $ROCE_DEVICES $ROCE_DSCP'; wait";
    let (ended_well, said) = batch(cluster, ["-n2", "--roce-tc=3", "--wrap", script])?;
    ensure!(ended_well && sorted(&said) == ["mlx5_0:1 26", "mlx5_1:1 26"], "{said}");
    cluster.expect_idle()
}

fn multi_prog(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let file = cluster.work("multi.conf");
    std::fs::write(&file, "0 bash -c 'echo first $ROCE_DEVICES'\n1 bash -c 'echo second $ROCE_DEVICES'\n")?;
    let line = ["-n2", "--roce-tc=3", "--multi-prog", &file.display().to_string()].map(str::to_owned);
    let ran = srun(line.iter().map(String::as_str)).run(cluster)?.succeeded()?;
    ensure!(sorted(&ran.stdout) == ["first mlx5_0:1", "second mlx5_1:1"], "{ran}");
    cluster.expect_idle()
}

fn interactive(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    // The cluster starts salloc's shell on the node (LaunchParameters=use_interactive_step). It reads its
    // commands from a file, for there is no terminal.
    let script = cluster.work("interactive.sh");
    std::fs::write(&script, "env | grep -c ^ROCE_\nsrun -n1 bash -c 'echo $ROCE_DSCP'\nexit\n")?;
    let line = format!("SHELL=/bin/bash salloc --quiet -n1 --roce-tc=3 < {}", script.display());
    let ran = program("bash").unprivileged().args(["-c", &line]).run(cluster)?.succeeded()?;
    ensure!(ran.stdout == "0\n26\n", "{ran}");
    cluster.expect_idle()
}

/// One line per task: rank, CPUs, device.
const WHERE: &str =
    "echo $SLURM_PROCID $(awk '/Cpus_allowed_list/ {print $2}' /proc/self/status) $ROCE_DEVICES";

fn bindings(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let run = |options: &[&str], roce: &[&str]| {
        let line = [options, roce, &["bash", "-c", WHERE]].concat();
        Ok::<_, anyhow::Error>(wide(line).run(cluster)?.succeeded()?.stdout)
    };
    let cases: [&[&str]; 15] = [
        &["-n2", "--cpu-bind=none"],
        &["-n2", "--cpu-bind=rank"],
        &["-n2", "--cpu-bind=map_cpu:1,0"],
        &["-n2", "--cpu-bind=mask_cpu:0x3,0x2"],
        &["-n2", "--cpu-bind=rank_ldom"],
        &["-n2", "--cpu-bind=map_ldom:0,0"],
        &["-n2", "--cpu-bind=sockets"],
        &["-n2", "--cpu-bind=cores"],
        &["-n2", "--cpu-bind=threads"],
        &["-n2", "--cpu-bind=ldoms"],
        &["-n1", "-c2", "--cpu-bind=none"],
        &["-n1", "-c2", "--cpu-bind=cores"],
        &["-n1", "-c1", "--exact"],
        &["-n4", "--overcommit", "--cpu-bind=none"],
        &["-n3", "--overcommit", "--cpu-bind=rank"],
    ];
    let cpus = |line: &str| -> Result<Vec<usize>> {
        let list = line.split(' ').nth(1).context("no CPUs")?;
        Ok((0..2).filter(|cpu| list.split(['-', ',']).any(|text| text == cpu.to_string())).collect())
    };
    for options in cases {
        let (plain, placed) = (run(options, &[])?, run(options, &["--roce-tc=3"])?);
        let (before, after) = (sorted(&plain), sorted(&placed));
        ensure!(before.len() == after.len(), "{options:?}: {plain}{placed}");
        let promised = if options.contains(&"-c2") { 2 } else { 1 };
        for (before, after) in before.iter().zip(&after) {
            let (had, has) = (cpus(before)?, cpus(after)?);
            let is_kept = has.iter().all(|cpu| had.contains(cpu)) && has.len() >= promised.min(had.len());
            ensure!(is_kept, "{options:?}: {before} became {after}");
            // CPU n is on the NUMA node of NIC n: what was narrowed lies at the NIC.
            let nic = after.split(' ').nth(2).unwrap_or_default();
            if has.len() < had.len() {
                ensure!(has.iter().all(|cpu| nic == format!("mlx5_{cpu}:1")), "{options:?}: {after}");
            }
        }
    }
    // Slurm's own line stays what it was.
    let ran = wide(["-n1", "--cpu-bind=verbose,map_cpu:1", "--roce-tc=3", "true"]).run(cluster)?;
    ensure!(ran.status == 0 && ran.stderr.contains("mask 0x2 set"), "{ran}");
    cluster.expect_idle()
}

fn many(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let ran = wide(["-n64", "--overcommit", "--cpu-bind=none", "--roce-tc=3", "bash", "-c", WHERE]);
    let ran = ran.run(cluster)?.succeeded()?;
    let count = |end: &str| ran.stdout.lines().filter(|line| line.ends_with(end)).count();
    ensure!((count(" 0 mlx5_0:1"), count(" 1 mlx5_1:1")) == (32, 32), "{ran}");
    cluster.expect_idle()
}

/// From some number of tasks on, room for the variables is made before the fork: nobody may notice.
fn same_variables(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let run = |tasks: &str| {
        let set = "UCX_NET_DEVICES=mine NCCL_IB_TC= FI_VERBS_IFACE=\u{e9}";
        let line = ["-n1", "--overcommit", "--cpu-bind=map_cpu:1", "--roce-tc=3", tasks, "bash", "-c"];
        let look = "[ $SLURM_LOCALID != 0 ] || env | grep -v ^SLURM";
        let mut step = wide(line).args([look]);
        for (name, value) in set.split(' ').filter_map(|entry| entry.split_once('=')) {
            step = step.env(name, value);
        }
        let ran = step.run(cluster)?.succeeded()?;
        let mut lines: Vec<String> = ran.stdout.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        Ok::<_, anyhow::Error>(lines)
    };
    let (one, many) = (run("-n1")?, run("-n8")?);
    ensure!(one == many, "{one:#?} became {many:#?}");
    ensure!(one.contains(&"ROCE_DEVICES=mlx5_1:1".to_owned()), "{one:#?}");
    // Where the plan fails and the site says so, all goes on as without it.
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_site("[policy]\non_failure = \"warn\"\n", &tree)?;
    let refused = ["-n8", "--overcommit", "--cpu-bind=map_cpu:0", "--roce-nics=mlx5_1", "--roce-bind=numa"];
    let ran = wide(refused).args(["bash", "-c", "env | grep -E '^(ROCE_|UCX_|NCCL_|FI_)'; true"]);
    let ran = ran.env("UCX_NET_DEVICES", "mine").env("ROCE_DSCP", "7").run(cluster)?;
    ensure!(ran.status == 0 && ran.own_lines().len() == 8, "not one warning per task: {ran}");
    ensure!(sorted(&ran.stdout) == [["ROCE_DSCP=7"; 8], ["UCX_NET_DEVICES=mine"; 8]].concat(), "{ran}");
    cluster.expect_idle()
}
