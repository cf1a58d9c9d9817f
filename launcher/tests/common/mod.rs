//! Jobs of real processes on this machine: the test program starts itself once per rank, with srun's variables.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a rank is to do, among its variables.
const TASK: &str = "ROCE_TEST_TASK";

/// Starts so many ranks of this program's test `rank` with a task, on nodes of so many ranks, and expects all to succeed within
/// a minute.
pub(crate) fn run(nodes: &[u32], task: &str) {
    run_with(nodes, task, &[]);
}

/// The same with more variables.
pub(crate) fn run_with(nodes: &[u32], task: &str, variables: &[(&str, &str)]) {
    static STEP: AtomicU32 = AtomicU32::new(0);
    let step = STEP.fetch_add(1, Ordering::Relaxed);
    let names = (1..=nodes.len()).map(|node| format!("127.0.0.{node}")).collect::<Vec<_>>().join(",");
    let tasks = nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut ranks: Vec<(u32, Child)> = Vec::new();
    for (node, count) in nodes.iter().enumerate() {
        for local in 0..*count {
            let rank = u32::try_from(ranks.len()).unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["rank", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
                .env(TASK, task)
                .env("SLURM_JOB_ID", std::process::id().to_string())
                .env("SLURM_STEP_ID", step.to_string())
                .env("SLURM_PROCID", rank.to_string())
                .env("SLURM_LOCALID", local.to_string())
                .env("SLURM_NODEID", node.to_string())
                .env("SLURM_NTASKS", nodes.iter().sum::<u32>().to_string())
                .env("SLURM_STEP_NODELIST", &names)
                .env("SLURM_STEP_TASKS_PER_NODE", &tasks)
                .env("SLURM_ROCE_SECRET", "5f".repeat(32))
                .envs(variables.iter().copied())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            ranks.push((rank, command.spawn().unwrap()));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut late = Vec::new();
    while ranks.iter_mut().any(|(_, child)| child.try_wait().unwrap().is_none()) {
        if Instant::now() > deadline {
            for (rank, child) in &mut ranks {
                if child.try_wait().unwrap().is_none() {
                    late.push(*rank);
                    child.kill().unwrap();
                }
            }
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut faults = String::new();
    for (rank, child) in ranks {
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            faults += &format!(
                "--- rank {rank} of {task}, {}\n{}\n",
                output.status,
                String::from_utf8_lossy(&text)
            );
        }
    }
    assert!(late.is_empty() && faults.is_empty(), "not over in time: {late:?}\n{faults}");
}

/// In a rank: its task.
pub(crate) fn task() -> String {
    std::env::var(TASK).expect("started by another test")
}

/// The lengths that a slow network can carry in the time of a test.
pub(crate) fn up_to_most<const COUNT: usize>(lengths: [usize; COUNT]) -> impl Iterator<Item = usize> {
    let most = std::env::var("ROCE_TEST_MOST").map_or(usize::MAX, |most| most.parse().unwrap());
    lengths.into_iter().filter(move |length| *length <= most)
}
