//! Benchmarks, run by `cargo xtask bench NAME`. Each prints a table and leaves
//! `target/bench/NAME.json`.

mod bootstrap;
mod hooks;
mod machine;
mod memory;
mod messages;
mod page;
mod plan;
mod plot;
mod plugin;
mod report;
mod simulation;
mod stepd;
mod verbs;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["plan", output] => plan::run()?.finish(Path::new(output)),
        // What `plan` measures as a process.
        [plan::READ_ONCE, root] => {
            let node = roce_node::read(Path::new(root))?;
            println!("{} RDMA ports", node.ports.len());
            Ok(ExitCode::SUCCESS)
        }
        ["plugin", output, rounds, host] => {
            plugin::run(rounds.parse()?, Path::new(host))?.finish(Path::new(output))
        }
        ["bootstrap", output, rounds, ranks, only, ref docs @ ..] => {
            let ranks: Vec<usize> = ranks.split(',').map(str::parse).collect::<Result<_, _>>()?;
            let only: Vec<&str> = only.split(',').filter(|word| !word.is_empty()).collect();
            let docs = docs.first().map(Path::new);
            bootstrap::run(rounds.parse()?, &ranks, &only, docs)?.finish(Path::new(output))
        }
        ["messages", output, rounds, ref docs @ ..] => {
            messages::run(rounds.parse()?, docs.first().map(Path::new))?.finish(Path::new(output))
        }
        ["messages-verbs", output, rounds, target, ref docs @ ..] => {
            verbs::run(rounds.parse()?, Path::new(target), docs.first().map(Path::new))?
                .finish(Path::new(output))
        }
        ["simulate-bootstrap", output, seed, sizes, ref docs @ ..] => {
            let sizes: Vec<u32> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
            simulation::run(seed.parse()?, &sizes, Path::new(output), docs.first().map(Path::new))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!(
            "usage: roce-bench plan|plugin|bootstrap|messages|messages-verbs|simulate-bootstrap FILE.json ... (cargo xtask bench does it)"
        ),
    }
}
