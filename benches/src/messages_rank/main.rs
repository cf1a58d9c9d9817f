//! One rank of `cargo xtask bench messages`: does what it is told, in the order of its arguments, and rank 0 prints a line for each
//! case: its name, and nanoseconds. `benches/src/messages/peer.c` does the same with an MPI.

mod line;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, alarm};
use roce_launcher::{Communicator, Job, Sum};

/// Seconds after which a rank ends, whatever it waits for.
const LIMIT: u32 = 120;

/// Tags.
const THERE: u32 = 1;
const STREAM: u32 = 2;
const ANSWER: u32 = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, times] = arguments.as_slice()
        && word == "line"
    {
        println!("line/8 {:.1}", line::half_round_trip(times.parse()?)?);
        return Ok(());
    }
    let (cpu, cases) = arguments.split_first().context("usage: CPU [CASE BYTES WINDOW TIMES]...")?;
    alarm::set(LIMIT);
    bind(cpu.parse()?)?;
    let job = Job::init()?;
    let world = job.world();
    for case in cases.chunks(4) {
        let [name, size, window, times] = case else { bail!("not four words: {case:?}") };
        let (size, window, times): (usize, usize, u32) = (size.parse()?, window.parse()?, times.parse()?);
        world.barrier()?;
        let ns = match name.as_str() {
            "latency" => latency(&world, size, times)?,
            "stream" => stream(&world, size, window, times)?,
            "all_reduce" => all_reduce(&world, size, times)?,
            "barrier" => timed(times, || Ok(world.barrier()?))?,
            other => bail!("no case {other:?}"),
        };
        if world.rank() == 0 {
            println!("{name}/{size} {ns:.1}");
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

/// Nanoseconds of one of so many, a tenth more of them before.
fn timed(times: u32, mut act: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..=times / 10 {
        act()?;
    }
    let start = Instant::now();
    for _ in 0..times {
        act()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(times))
}

/// Half of the time that a message and its answer take.
fn latency(world: &Communicator, size: usize, times: u32) -> Result<f64> {
    let mut data = vec![0_u8; size];
    let round_trip = timed(times, || {
        if world.rank() == 0 {
            world.send(1, THERE, &data)?;
            world.receive(1, THERE, &mut data)?;
        } else {
            world.receive(0, THERE, &mut data)?;
            world.send(0, THERE, &data)?;
        }
        Ok(())
    })?;
    Ok(round_trip / 2.0)
}

/// The time of a message in a stream: a window of them is started, waited for, and answered.
fn stream(world: &Communicator, size: usize, window: usize, times: u32) -> Result<f64> {
    let mut data = vec![0_u8; size * window];
    let ns = timed(times, || {
        if world.rank() == 0 {
            world.scope(|scope| data.chunks(size).try_for_each(|part| scope.send(1, STREAM, part)))?;
            world.receive(1, ANSWER, &mut [0_u8])?;
        } else {
            world.scope(|scope| {
                data.chunks_mut(size).try_for_each(|part| scope.receive(0, STREAM, part).map(|_| ()))
            })?;
            world.send(0, ANSWER, &[0_u8])?;
        }
        Ok(())
    })?;
    Ok(ns / window as f64)
}

fn all_reduce(world: &Communicator, size: usize, times: u32) -> Result<f64> {
    let mut data = vec![0.0_f64; size / size_of::<f64>()];
    timed(times, || Ok(world.all_reduce(&mut data, Sum)?))
}
