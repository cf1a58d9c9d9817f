//! Options from the job, from variables, from the command line, and steps within steps.

use anyhow::{Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{batch, expect, program, srun};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_step_inherits_the_jobs_options", inherits),
    ("what_is_typed_at_the_step_displaces_what_the_job_asked", displaces),
    ("what_is_typed_at_sbatch_displaces_the_scripts_own", script),
    ("salloc_hands_its_options_on", salloc),
    ("a_variable_works_and_an_option_displaces_it", variables),
    ("options_survive_a_closed_environment", export_none),
    ("a_step_within_a_step_gets_the_outer_ones_request", nested),
    ("off_silences_what_was_inherited", off),
];

/// What a step says about its class; nothing if it was not placed.
const SAY: &str = "echo $1 dscp=$ROCE_DSCP asked=$SLURM_ROCE_TC/$SLURM_ROCE_DSCP ucx=$UCX_NET_DEVICES";

/// A job's script runs steps with `$say`, and this gives what they said.
fn job(cluster: &Cluster, directives: &str, options: &[&str], script: &str) -> Result<String> {
    with_two_nics(cluster)?;
    let say = cluster.work("say");
    std::fs::write(&say, SAY)?;
    let file = cluster.work("job.sh");
    let text = format!("#!/bin/bash\n{directives}\nsay='/bin/bash {}'\n{script}\n", say.display());
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    let (ended_well, said) = batch(cluster, options.iter().copied().chain([file.as_str()]))?;
    ensure!(ended_well, "{said}");
    cluster.expect_idle()?;
    // srun says when it waits for the resources of the step before.
    Ok(said.lines().filter(|line| !line.starts_with("srun: ")).map(|line| format!("{line}\n")).collect())
}

fn with_two_nics(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)
}

fn inherits(cluster: &Cluster) -> Result<()> {
    let said = job(cluster, "#SBATCH --roce-tc=3", &[], "env | grep ^ROCE_; srun $say inner")?;
    ensure!(said == "inner dscp=26 asked=3/ ucx=mlx5_0:1\n", "{said}");
    Ok(())
}

fn displaces(cluster: &Cluster) -> Result<()> {
    let script = "srun --roce-dscp=46 $say dscp; srun --roce-tc=5 $say tc; srun $say plain";
    let said = job(cluster, "#SBATCH --roce-tc=3", &[], script)?;
    let expected = "dscp dscp=46 asked=/46 ucx=mlx5_0:1\n\
                    tc dscp=40 asked=5/ ucx=mlx5_0:1\n\
                    plain dscp=26 asked=3/ ucx=mlx5_0:1\n";
    ensure!(said == expected, "{said}");
    Ok(())
}

fn script(cluster: &Cluster) -> Result<()> {
    let said = job(cluster, "#SBATCH --roce-tc=3", &["--roce-dscp=46"], "srun $say inner")?;
    ensure!(said == "inner dscp=46 asked=/46 ucx=mlx5_0:1\n", "{said}");
    let said = job(cluster, "#SBATCH --roce-tc=3", &["--roce-tc=5"], "srun $say inner")?;
    ensure!(said == "inner dscp=40 asked=5/ ucx=mlx5_0:1\n", "{said}");
    Ok(())
}

fn salloc(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let ran =
        program("salloc").unprivileged().args(["--roce-tc=3", "srun", "env"]).run(cluster)?.succeeded()?;
    expect(&ran.variables(), "ROCE_DSCP", "26")?;
    let ran = program("salloc").unprivileged().args(["--roce-tc=3", "srun", "--roce-dscp=46", "env"]);
    let ran = ran.run(cluster)?.succeeded()?;
    expect(&ran.variables(), "ROCE_DSCP", "46")?;
    cluster.expect_idle()
}

fn variables(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    let ran = srun(["-n1", "env"]).env("SLURM_ROCE_TC", "5").run(cluster)?.succeeded()?;
    expect(&ran.variables(), "ROCE_DSCP", "40")?;
    for option in ["--roce-tc=3", "--roce-dscp=26"] {
        let ran = srun(["-n1", option, "env"]).env("SLURM_ROCE_TC", "5").run(cluster)?.succeeded()?;
        expect(&ran.variables(), "ROCE_DSCP", "26")?;
    }
    let ran = srun(["-n1", "--roce-dscp=26", "env"]).env("SLURM_ROCE_TC", "5").run(cluster)?.succeeded()?;
    ensure!(!ran.variables().contains_key("SLURM_ROCE_TC"), "the displaced variable is still there: {ran}");
    // Read where the job is submitted, as the option would be.
    let said = job(cluster, "#SBATCH --roce-nics=all", &[], "export SLURM_ROCE_TC=5; srun $say inner")?;
    ensure!(said == "inner dscp=40 asked=5/ ucx=mlx5_0:1,mlx5_1:1\n", "{said}");
    Ok(())
}

fn export_none(cluster: &Cluster) -> Result<()> {
    with_two_nics(cluster)?;
    for export in ["--export=NONE", "--export=NIL", "--export=PATH"] {
        let ran = srun(["-n1", export, "--roce-tc=3", "/usr/bin/env"]).env("SLURM_ROCE_DSCP", "46");
        let ran = ran.run(cluster)?.succeeded()?;
        expect(&ran.variables(), "ROCE_DSCP", "26")?;
        ensure!(ran.variables().contains_key("SLURM_ROCE_SECRET"), "{export}: {ran}");
    }
    let said = job(cluster, "#SBATCH --roce-tc=3", &["--export=NONE"], "srun $say inner")?;
    ensure!(said == "inner dscp=26 asked=3/ ucx=mlx5_0:1\n", "{said}");
    cluster.expect_idle()
}

fn nested(cluster: &Cluster) -> Result<()> {
    let script = "srun --overlap --roce-dscp=46 srun --overlap $say inner\n\
        srun --overlap --roce-nics=mlx5_1 srun --overlap --roce-nics=all $say wider\n\
        srun --overlap bash -c \"UCX_NET_DEVICES=mlx5_9:1 srun --overlap $say own\"";
    let said = job(cluster, "#SBATCH --roce-tc=3", &[], script)?;
    // What the outer step exported is not mistaken for the user's own.
    let expected = "inner dscp=46 asked=/46 ucx=mlx5_0:1\n\
                    wider dscp=26 asked=3/ ucx=mlx5_0:1,mlx5_1:1\n\
                    own dscp=26 asked=3/ ucx=mlx5_9:1\n";
    ensure!(said == expected, "{said}");
    Ok(())
}

fn off(cluster: &Cluster) -> Result<()> {
    let script =
        "srun --roce=off $say off; srun --roce=off bash -c 'echo ${SLURM_ROCE_SECRET:-none}'; srun $say on";
    let said = job(cluster, "#SBATCH --roce-tc=3", &[], script)?;
    let expected = "off dscp= asked=/ ucx=\nnone\non dscp=26 asked=3/ ucx=mlx5_0:1\n";
    ensure!(said == expected, "{said}");
    Ok(())
}
