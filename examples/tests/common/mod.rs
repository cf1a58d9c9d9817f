//! Runs a program as a job of several ranks, on nodes that are all this machine.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Starts a rank of the program for each place on nodes of so many ranks, expects all of them to succeed, and gives what rank 0
/// printed.
pub(crate) fn run(program: &str, arguments: &[&str], nodes: &[u32]) -> String {
    static STEP: AtomicU32 = AtomicU32::new(0);
    let step = STEP.fetch_add(1, Ordering::Relaxed);
    let size: u32 = nodes.iter().sum();
    let names = (1..=nodes.len()).map(|node| format!("127.0.0.{node}")).collect::<Vec<_>>().join(",");
    let counts = nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let places =
        nodes.iter().enumerate().flat_map(|(node, count)| (0..*count).map(move |local| (node, local)));
    let ranks: Vec<_> = places
        .enumerate()
        .map(|(rank, (node, local))| {
            let mut command = Command::new(program);
            command.args(arguments).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
            command
                .env("SLURM_JOB_ID", std::process::id().to_string())
                .env("SLURM_STEP_ID", step.to_string())
                .env("SLURM_PROCID", rank.to_string())
                .env("SLURM_LOCALID", local.to_string())
                .env("SLURM_NODEID", node.to_string())
                .env("SLURM_NTASKS", size.to_string())
                .env("SLURM_STEP_NODELIST", &names)
                .env("SLURM_STEP_TASKS_PER_NODE", &counts)
                .env("SLURM_ROCE_SECRET", "6b".repeat(32));
            command.spawn().unwrap()
        })
        .collect();
    let outputs: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{program} on {nodes:?}: {outputs:?}");
    String::from_utf8(outputs[0].stdout.clone()).unwrap()
}
