//! What is judged where a job is submitted, and steps that ask for nothing.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{Ran, batch, program, srun, wide};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("options_are_in_the_help_of_srun_sbatch_and_salloc", help),
    ("bad_input_ends_the_command_with_one_line_and_launches_nothing", bad_input),
    ("bad_input_ends_sbatch_at_submission", bad_input_sbatch),
    ("class_names_are_those_of_the_site", class_names),
    ("a_step_without_options_is_as_without_the_plugin", untouched),
    ("a_batch_script_without_options_is_as_without_the_plugin", untouched_batch),
    ("an_argument_of_plugstack_that_is_unknown_is_named", unknown_argument),
];

fn help(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin("")?;
    for command in ["srun", "sbatch", "salloc"] {
        let help = program(command).args(["--help"]).unprivileged().run(cluster)?.succeeded()?;
        for option in ["", "-tc", "-dscp", "-tclass", "-nics", "-place", "-gid", "-bind"] {
            let line = format!("--roce{option}=");
            ensure!(help.stdout.contains(&line), "{line} is not in the help: {help}");
        }
    }
    Ok(())
}

/// Options, variables, and the plugin's line without the name of the command in front.
type BadInput = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

const BAD_INPUT: &[BadInput] = &[
    (&["--roce-tc=9"], &[], "--roce-tc=9: allowed is a priority 0-7..."),
    (&["--roce-tc="], &[], "--roce-tc=: ..."),
    (&["--roce-tc=-1"], &[], "--roce-tc=-1: ..."),
    (&["--roce-tc=bulk"], &[], "--roce-tc=bulk: ..."),
    (&["--roce-dscp=64"], &[], "--roce-dscp=64: allowed is 0-63..."),
    (&["--roce-tclass=256"], &[], "--roce-tclass=256: ..."),
    (&["--roce-tc=3", "--roce-dscp=26"], &[], "--roce-tc=3: excludes --roce-dscp=26..."),
    (&["--roce-nics=0"], &[], "--roce-nics=0: ..."),
    (&["--roce-place=near"], &[], "--roce-place=near: ..."),
    (&["--roce-gid=10.0.0.0/33"], &[], "--roce-gid=10.0.0.0/33: ..."),
    (&["--roce-bind=cores"], &[], "--roce-bind=cores: ..."),
    (&["--roce=yes"], &[], "--roce=yes: allowed is on, off or verbose..."),
    (&["--roce-tc=3\nx%s%n"], &[], "--roce-tc=3\\nx%s%n: ..."),
    (&[], &[("SLURM_ROCE_TC", "9")], "SLURM_ROCE_TC=9: allowed is a priority 0-7..."),
    (&[], &[("SLURM_ROCE", "maybe")], "SLURM_ROCE=maybe: ..."),
    (&["--roce-nics=2"], &[("SLURM_ROCE_DSCP", "af99")], "SLURM_ROCE_DSCP=af99: ..."),
];

fn bad_input(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin("")?;
    for (options, variables, line) in BAD_INPUT {
        let proof = cluster.work("launched");
        let mut command = srun(options.iter().copied()).args(["touch", &proof.display().to_string()]);
        for (name, value) in *variables {
            command = command.env(name, value);
        }
        command.run(cluster)?.failed_with(&format!("srun: error: spank_roce: {line}"))?;
        ensure!(!proof.exists(), "{options:?} {variables:?}: something was launched");
    }
    cluster.expect_idle()
}

fn bad_input_sbatch(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin("")?;
    for (options, variables, line) in BAD_INPUT {
        let mut command =
            program("sbatch").unprivileged().args(options.iter().copied()).args(["--wrap", "true"]);
        for (name, value) in *variables {
            command = command.env(name, value);
        }
        command.run(cluster)?.failed_with(&format!("sbatch: error: spank_roce: {line}"))?;
    }
    let script = cluster.work("bad.sh");
    std::fs::write(&script, "#!/bin/bash\n#SBATCH --roce-tc=9\n")?;
    let submitted =
        program("sbatch").unprivileged().args([script.display().to_string().as_str()]).run(cluster)?;
    submitted.failed_with("sbatch: error: spank_roce: --roce-tc=9...")?;
    let queue = program("squeue").args(["-h"]).run(cluster)?.succeeded()?;
    ensure!(queue.stdout.is_empty(), "a job was submitted: {queue}");
    cluster.expect_idle()
}

fn class_names(cluster: &Cluster) -> Result<()> {
    cluster.with_site("[classes.bulk]\npriority = 4\n", "")?;
    srun(["--roce-tc=bluk", "true"])
        .run(cluster)?
        .failed_with("srun: error: spank_roce: --roce-tc=bluk: ...")?;
    // Known here, so judged by the node: it has no RoCE port.
    srun(["--roce-tc=bulk", "true"])
        .run(cluster)?
        .failed_with("spank_roce: n1: task 0: --roce-tc=bulk: this node has no RoCE port...")?;
    cluster.expect_idle()
}

/// Variables whose values differ from step to step anyway.
const PER_STEP: [&str; 13] = [
    "SLURM_JOB_ID",
    // From 25.11 on, a second name of the job.
    "SLURM_JOB_SLUID",
    "SLURM_JOBID",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_TASK_PID",
    "SLURM_GTIDS_PID",
    "SLURM_SRUN_COMM_PORT",
    "SLURM_STEP_LAUNCHER_PORT",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
    "TMPDIR",
    "_",
];

/// Everything about a task that the plugin could have changed.
const LOOK: &str = "env; \
    awk '/allowed/ {print \"status \" $1 \"=\" $2}' /proc/self/status; \
    prlimit --raw --noheadings | awk '{print \"limit \" $1 \"=\" $(NF-2) $(NF-1)}'; \
    echo policy=$(awk '{print $2}' /proc/self/numa_maps | sort -u)";

fn facts(ran: &Ran) -> BTreeMap<&str, &str> {
    let mut facts = ran.variables();
    facts.retain(|name, _| !PER_STEP.contains(name));
    facts
}

fn untouched(cluster: &Cluster) -> Result<()> {
    let look =
        || wide(["-n1", "--cpu-bind=none", "bash", "-c", LOOK]).memlock_kib(64).run(cluster)?.succeeded();
    cluster.without_plugin()?;
    let without = look()?;
    cluster.with_plugin("")?;
    let with = look()?;
    ensure!(without.stdout.contains("status Cpus_allowed_list:=0-1"), "nothing was looked at: {without}");
    ensure!(without.stderr == with.stderr, "said something: {with}");
    let (without, with) = (facts(&without), facts(&with));
    ensure!(without == with, "without the plugin {without:#?}\nwith it {with:#?}");
    cluster.expect_idle()
}

fn untouched_batch(cluster: &Cluster) -> Result<()> {
    let look = || {
        let script = format!("{LOOK}; srun bash -c '{}'", LOOK.replace('\'', "'\\''"));
        let (ended_well, said) = batch(cluster, ["--wrap", &script])?;
        ensure!(ended_well, "{said}");
        let is_per_step = |line: &str| line.split_once('=').is_some_and(|(name, _)| PER_STEP.contains(&name));
        let mut lines: Vec<String> =
            said.lines().filter(|line| !is_per_step(line)).map(str::to_owned).collect();
        lines.sort_unstable();
        Ok(lines)
    };
    cluster.without_plugin()?;
    let without = look()?;
    cluster.with_plugin("")?;
    let with = look()?;
    let seen = without.iter().filter(|line| line.starts_with("status Cpus_allowed_list")).count();
    ensure!(seen == 2, "script and step were not looked at: {without:#?}");
    ensure!(without == with, "without the plugin {without:#?}\nwith it {with:#?}");
    cluster.expect_idle()
}

fn unknown_argument(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin("confg=/etc/roce.toml")?;
    srun(["true"]).run(cluster)?.failed_with(
        "srun: error: spank_roce: plugstack.conf: unknown argument \"confg=/etc/roce.toml\": \
         allowed are config=PATH and sysfs=DIR",
    )?;
    cluster.expect_idle()
}
