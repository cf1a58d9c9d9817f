//! What callgrind counts: one send and one receive of eight bytes, again and again, each in a function of its own that switches
//! counting on and off. Between them both ranks pause until what was sent has come, so no look at a queue is in vain.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::Result;
use roce_launcher::{Communicator, Job};

const TAG: u32 = 4;
/// Many times what a packet takes.
const PAUSE: Duration = Duration::from_millis(10);

/// A pipe to each rank, made by who starts them.
pub(crate) fn pipe(rank: u32) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).open(format!("/run/roce-bench.{rank}"))?)
}

pub(crate) fn count(job: &mut Job, times: u32) -> Result<()> {
    let (mut mine, mut theirs) = (pipe(job.rank())?, pipe(1 - job.rank())?);
    let world = job.world();
    let peer = 1 - job.rank();
    let mut data = [1_u8; 8];
    // The first ones connect, and find slots.
    for _ in 0..20 {
        world.send(peer, TAG, &data)?;
        world.receive(peer, TAG, &mut data)?;
    }
    for _ in 0..times {
        counted_send(&world, peer, &data)?;
        theirs.write_all(&[0])?;
        mine.read_exact(&mut [0])?;
        std::thread::sleep(PAUSE);
        counted_receive(&world, peer, &mut data)?;
        // Nor does the next message come before this one was received.
        theirs.write_all(&[0])?;
        mine.read_exact(&mut [0])?;
    }
    Ok(())
}

#[inline(never)]
fn counted_send(world: &Communicator, peer: u32, data: &[u8]) -> Result<()> {
    Ok(world.send(peer, TAG, data)?)
}

#[inline(never)]
fn counted_receive(world: &Communicator, peer: u32, data: &mut [u8]) -> Result<()> {
    world.receive(peer, TAG, data)?;
    Ok(())
}
