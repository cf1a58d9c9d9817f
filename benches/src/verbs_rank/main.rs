//! One of the two ranks of `cargo xtask bench messages` over verbs: does what it is told, in the order of its arguments. Rank 0
//! prints a line for each case: `name/size median mean`, in nanoseconds; `count`, `first` and `bare` say what else.

mod bare;
mod clock;
mod count;
mod first;
mod messages;
mod pairs;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, alarm};
use roce_launcher::Job;

/// Seconds after which a rank ends, whatever it waits for.
const LIMIT: u32 = 120;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (cpu, cases) = arguments.split_first().context("usage: CPU [CASE BYTES TIMES]...")?;
    alarm::set(LIMIT);
    bind(cpu.parse()?)?;
    let mut job = Job::init()?;
    let peer = 1 - job.rank();
    // Else it would measure something else.
    let way = job.describe();
    ensure!(way.contains(&format!("rank {peer}: verbs (")), "not over verbs: {way}");
    for case in cases.chunks(3) {
        let [name, size, times] = case else { bail!("not three words: {case:?}") };
        let (size, times): (usize, u32) = (size.parse()?, times.parse()?);
        job.barrier()?;
        let laps = match name.as_str() {
            "message" => messages::latency(&job.world(), size, times)?,
            "stream" => messages::stream(&job.world(), size, times)?,
            "put" => messages::put(&job.world(), size, times)?,
            "pair-send" => pairs::send(&mut job, size, times)?,
            "pair-write" => pairs::write(&mut job, size, times)?,
            "pair-send-stream" => pairs::send_stream(&mut job, size, times)?,
            "pair-write-stream" => pairs::write_stream(&mut job, size, times)?,
            "count" => {
                count::count(&mut job, times)?;
                continue;
            }
            "count-bare" => {
                if job.rank() == 0 {
                    bare::count(&job, times)?;
                }
                continue;
            }
            "first" => {
                first::first(&mut job)?;
                continue;
            }
            "bare" => {
                first::bare(&mut job)?;
                continue;
            }
            other => bail!("no case {other:?}"),
        };
        if job.rank() == 0 {
            println!("{name}/{size} {:.1} {:.1}", laps.median, laps.mean);
        }
    }
    Ok(job.finalize()?)
}

/// Stays on one CPU from here on.
fn bind(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}
