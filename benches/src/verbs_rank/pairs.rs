//! Sends and RDMA writes on a queue pair of the library, for who wants verbs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use roce_launcher::{Buffer, Job, QueuePair, RemoteWindow, VerbsWindow, WorkId};
use roce_verbs::Depth;

use crate::clock::{Laps, laps};
use crate::messages::window;

const PATIENCE: Duration = Duration::from_secs(60);

/// How many receives a stream's receiver has posted: more than there are sends under way, else a send finds none and is told to come
/// again. No more than that, for each has a buffer of its own, and perftest's have one together.
fn receives(size: usize) -> u32 {
    2 * window(size)
}

fn connect(job: &mut Job) -> Result<QueuePair> {
    let peer = 1 - job.rank();
    let depth = Depth { send: 17, receive: 64 };
    job.connect_with(&[peer], depth)?.pop().context("no queue pair")
}

/// Half of the time that a send and its answer take.
pub(crate) fn send(job: &mut Job, size: usize, times: u32) -> Result<Laps> {
    let mut pair = connect(job)?;
    let mut next = pair.post_receive(pair.buffer(size)?)?;
    let mut after = pair.post_receive(pair.buffer(size)?)?;
    let mut free = Some(pair.buffer(size)?);
    job.barrier()?;
    let rank = job.rank();
    // In perftest's order: a receive is posted again before the answer is sent, and a send has completed before the next receive is
    // waited for.
    let mut send = |pair: &mut QueuePair| {
        let sending = pair.post_send(free.take().context("no buffer")?, size)?;
        free = Some(pair.wait(sending, PATIENCE)?.buffer);
        anyhow::Ok(())
    };
    let mut receive = |pair: &mut QueuePair| {
        let received = pair.wait(next, PATIENCE)?;
        (next, after) = (after, pair.post_receive(received.buffer)?);
        anyhow::Ok(())
    };
    let laps = laps(times, |_| {
        if rank == 0 {
            send(&mut pair)?;
            receive(&mut pair)
        } else {
            receive(&mut pair)?;
            send(&mut pair)
        }
    })?;
    job.barrier()?;
    Ok(laps.half())
}

/// Each rank's window, as the other reaches it.
fn open(job: &mut Job, pair: &QueuePair, size: usize) -> Result<(VerbsWindow, RemoteWindow)> {
    let window = pair.window(size)?;
    let all = job.all_gather(&window.remote().to_bytes())?;
    let theirs = all[1 - job.rank() as usize].as_slice().try_into()?;
    Ok((window, RemoteWindow::from_bytes(theirs)))
}

/// Half of the time until a rank sees what the other wrote when it saw what this one had written.
pub(crate) fn write(job: &mut Job, size: usize, times: u32) -> Result<Laps> {
    let mut pair = connect(job)?;
    let (window, theirs) = open(job, &pair, size)?;
    let mut free = Some(pair.buffer(size)?);
    job.barrier()?;
    let rank = job.rank();
    let see = |number: u8| {
        let mut last = [0];
        while last != [number] {
            window.read(size - 1, &mut last)?;
        }
        anyhow::Ok(())
    };
    let laps = laps(times, |turn| {
        let number = (turn % 255 + 1) as u8;
        let mut buffer = free.take().context("no buffer")?;
        buffer.as_mut_slice()[size - 1] = number;
        if rank == 1 {
            see(number)?;
        }
        free = Some(pair.write(buffer, size, theirs, 0, PATIENCE)?);
        if rank == 0 {
            see(number)?;
        }
        Ok(())
    })?;
    job.barrier()?;
    Ok(laps.half())
}

/// Has so many operations under way, each new one with the buffer of the eldest.
fn keep_going(
    pair: &mut QueuePair,
    free: Vec<Buffer>,
    times: u32,
    mut post: impl FnMut(&QueuePair, Buffer) -> Result<WorkId>,
) -> Result<Vec<Buffer>> {
    let (mut under_way, mut free) = (VecDeque::new(), free);
    for _ in 0..times {
        let buffer = match free.pop() {
            Some(buffer) => buffer,
            None => pair.wait(under_way.pop_front().context("nothing under way")?, PATIENCE)?.buffer,
        };
        under_way.push_back(post(pair, buffer)?);
    }
    for id in under_way {
        free.push(pair.wait(id, PATIENCE)?.buffer);
    }
    Ok(free)
}

fn buffers(pair: &QueuePair, size: usize, count: u32) -> Result<Vec<Buffer>> {
    (0..count).map(|_| Ok(pair.buffer(size)?)).collect()
}

/// The time of a send in a stream of them.
pub(crate) fn send_stream(job: &mut Job, size: usize, times: u32) -> Result<Laps> {
    let mut pair = connect(job)?;
    if job.rank() == 0 {
        let mut free = buffers(&pair, size, window(size))?;
        return each(job, size, times, |count| {
            let post = |pair: &QueuePair, buffer| Ok(pair.post_send(buffer, size)?);
            free = keep_going(&mut pair, std::mem::take(&mut free), count, post)?;
            Ok(())
        });
    }
    let mut posted = VecDeque::new();
    for buffer in buffers(&pair, size, receives(size))? {
        posted.push_back(pair.post_receive(buffer)?);
    }
    each(job, size, times, |count| {
        for _ in 0..count {
            let received = pair.wait(posted.pop_front().context("no receive")?, PATIENCE)?;
            posted.push_back(pair.post_receive(received.buffer)?);
        }
        Ok(())
    })
}

/// The time of an RDMA write in a stream of them.
pub(crate) fn write_stream(job: &mut Job, size: usize, times: u32) -> Result<Laps> {
    let mut pair = connect(job)?;
    let (_window, theirs) = open(job, &pair, size)?;
    let rank = job.rank();
    let mut free = buffers(&pair, size, window(size))?;
    each(job, size, times, |count| {
        if rank == 0 {
            let post = |pair: &QueuePair, buffer| Ok(pair.post_write(buffer, size, theirs, 0)?);
            free = keep_going(&mut pair, std::mem::take(&mut free), count, post)?;
        }
        Ok(())
    })
}

/// The time of one of so many that a rank does together, after fewer of them. The barrier before them is not part of it.
fn each(job: &mut Job, size: usize, times: u32, mut act: impl FnMut(u32) -> Result<()>) -> Result<Laps> {
    job.barrier()?;
    act(window(size).min(times))?;
    job.barrier()?;
    let start = Instant::now();
    act(times)?;
    let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(times);
    job.barrier()?;
    Ok(Laps { median: each, mean: each })
}
