//! A one-node Slurm with the plugin and two made-up NICs, for trying things by hand:
//! `cargo run -p roce-cluster --example by_hand -- srun --roce-tc=3 env`. `SLURM_CONF` and `PLUGSTACK` (the file that a
//! script may replace) are in the command's environment; the cluster ends with the command.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use roce_cluster::{Cluster, prerequisites, sysfs};

fn main() -> Result<ExitCode> {
    let cluster = Cluster::start(&prerequisites::check()?)?;
    cluster.with_plugin(&sysfs::two_nics(&cluster, "two-nics")?)?;
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("which command?")?;
    let status = Command::new(&program)
        .args(words)
        .env("SLURM_CONF", cluster.path("client.conf"))
        .env("PLUGSTACK", cluster.path("client-plugstack.conf"))
        .status()
        .with_context(|| program.display().to_string())?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
