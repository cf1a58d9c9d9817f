//! `soak-steps STEPS [SEED]`: steps in a real Slurm with random faults. See `roce_tests::soak`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use roce_cluster::{Cluster, prerequisites};
use roce_tests::soak;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse::<u64>().with_context(|| format!("{text} is no number"));
    let (steps, seed) = match &arguments[..] {
        [steps] => (number(steps)?, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
        [steps, seed] => (number(steps)?, number(seed)?),
        _ => bail!("usage: soak-steps STEPS [SEED] (cargo xtask soak steps does it)"),
    };
    let given = prerequisites::check()?;
    let bytes = std::fs::read(&given).with_context(|| given.display().to_string())?;
    // Before the first thread, for only a process of one may leave its namespaces.
    soak::leftovers::hide()?;
    // It may have been in a folder that is hidden now.
    let plugin = Path::new("/tmp/spank_roce.so");
    std::fs::write(plugin, bytes)?;
    println!("{steps} steps, --seed {seed}");
    let cluster = Cluster::start(plugin)?;
    let broken = soak::run(&cluster, plugin, steps, seed)?;
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for rule in &broken {
        println!("BROKEN: {rule}");
    }
    println!(
        "{} rules broken; to repeat it: cargo xtask soak steps --steps {steps} --seed {seed}",
        broken.len()
    );
    Ok(ExitCode::FAILURE)
}
