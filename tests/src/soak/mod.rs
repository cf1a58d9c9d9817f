//! Steps in a real Slurm on this machine, each with a fault at a random moment. Whatever happens: the node stays
//! in service, a step that fails says why, none ends well without having run, and nothing is left behind.

mod fault;
pub mod leftovers;
mod table;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use roce_cluster::Cluster;
use roce_cluster::run::{Ran, srun};

use fault::{Fault, Field};
use leftovers::Leftovers;
use table::{End, Table};

/// Runs that many steps, prints a table of how they ended, and gives the rules that were broken.
///
/// # Errors
/// If the cluster itself can't be used.
pub fn run(cluster: &Cluster, plugin: &Path, steps: u64, seed: u64) -> Result<Vec<String>> {
    let field = Field::new(cluster, plugin)?;
    let mut seeds = Rng::with_seed(seed);
    let mut table = Table::default();
    let mut broken = Vec::new();
    // What the first step makes is Slurm's own.
    let first = play(&field, &mut seeds, Fault::None, 2)?;
    ensure!(end(&first, Fault::None, 2) == Ok(End::Well), "a step without a fault fails: {first}");
    let before = Leftovers::now(cluster)?;
    // Is a class node-wide because its slurmstepd was killed? The next step puts it back.
    let mut is_stuck = false;
    for number in 1..=steps {
        // A step's own, for how often it asks depends on what it meets.
        let mut rng = seeds.fork();
        let fault = Fault::ALL[rng.usize(..Fault::ALL.len())];
        let tasks = 1 + usize::from(rng.u8(..4) == 0);
        let ran = play(&field, &mut rng, fault, tasks)?;
        match end(&ran, fault, tasks) {
            Ok(end) => {
                is_stuck = fault == Fault::StepdKilled || is_stuck && end != End::Well;
                table.count(fault, end);
            }
            Err(rule) => {
                table.count(fault, End::Broken);
                broken.push(format!("step {number}, {}: {rule}: {ran}", fault.name()));
            }
        }
        let settled = settle(cluster).and_then(|()| before.compare(cluster));
        let settled = settled.and_then(|()| if is_stuck { Ok(()) } else { field.expect_put_back() });
        if let Err(error) = settled {
            broken.push(format!("after step {number}, {}: {error:#}", fault.name()));
            // A node that is lost stays lost.
            if !cluster.node_state()?.contains("idle") {
                break;
            }
        }
        if number % 100 == 0 {
            println!("{number} steps, {} rules broken", broken.len());
        }
    }
    let last = play(&field, &mut seeds, Fault::None, 2)?;
    if end(&last, Fault::None, 2) != Ok(End::Well) {
        broken.push(format!("a step without a fault fails at the end: {last}"));
    }
    settle(cluster)?;
    field.expect_put_back()?;
    print!("{table}");
    Ok(broken)
}

/// Starts the step, does to it what the fault is, waits for its end, and mends what was broken.
fn play(field: &Field<'_>, rng: &mut Rng, fault: Fault, tasks: usize) -> Result<Ran> {
    // Long enough to be met where the fault is a signal.
    let seconds = if fault.is_signal() { "0.3" } else { "0" };
    let count = format!("-n{tasks}");
    let task = ["/bin/sh", "-c", "echo device=$ROCE_DEVICES; exec sleep $1", "soak", seconds];
    let running = srun([count.as_str(), "--exclusive", "--roce-tc=3"]).args(task).start(field.cluster)?;
    let undo = field.meet(fault, rng, running.id());
    let ran = running.wait()?;
    field.mend(undo?)?;
    Ok(ran)
}

/// How the step ended, or the rule that it broke.
fn end(ran: &Ran, fault: Fault, tasks: usize) -> Result<End, &'static str> {
    let placed = ran.stdout.lines().filter(|line| line.starts_with("device=mlx5_")).count();
    let unplaced = ran.stdout.lines().filter(|line| *line == "device=").count();
    let own = ran.own_lines().len();
    if unplaced > 0 {
        return Err("a task ran without the NIC that was asked for");
    }
    if ran.status == 124 || ran.status == 137 && !fault.is_signal() {
        return Err("it hangs");
    }
    match ran.status {
        // Without slurmstepd nobody tells srun how the tasks ended; it takes that for 0, and complains.
        0 if fault == Fault::StepdKilled && ran.stderr.contains("srun: error: ") => Ok(End::SlurmsLine),
        0 if placed == tasks && own == 0 => Ok(End::Well),
        0 => Err("it ended well, and not every task has run"),
        _ if own > tasks => Err("it complains more than once for a task"),
        _ if own > 0 => Ok(End::OwnLine),
        // Interrupted before it has a job, srun says nothing: whoever did it knows.
        _ if fault == Fault::Interrupted && ran.stderr.is_empty() => Ok(End::SlurmsLine),
        // Only what a signal ended may leave the reason to Slurm.
        _ if fault.is_signal() && ran.stderr.contains("srun: ") => Ok(End::SlurmsLine),
        _ => Err("it failed and does not say why"),
    }
}

/// Waits until the node is idle and the step's last process gone.
fn settle(cluster: &Cluster) -> Result<()> {
    cluster.expect_idle()?;
    let start = Instant::now();
    loop {
        let left = cluster.step_processes();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(10), "processes are left: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
