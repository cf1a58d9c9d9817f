//! What the first message to a peer takes, beside what nobody can do without: a queue pair on either side, each made, told to the other
//! one, and brought to RTS. Either in a process that has done neither before. Before the message there must be no queue pair,
//! and one after it.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use roce_launcher::Job;
use roce_verbs::{CompletionQueue, Connection, Context, Depth, ProtectionDomain, QueuePair};

use crate::count::pipe;

const TAG: u32 = 5;

/// A clock that all processes of a machine share.
fn now() -> Result<u64> {
    Ok(u64::try_from(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos())?)
}

/// Prints `first NANOSECONDS`, on rank 1, and `answered NANOSECONDS` of the message with an answer of the same length, on rank 0.
pub(crate) fn first(job: &mut Job) -> Result<()> {
    ensure!(job.queue_pairs() == 0, "{} queue pairs before the first message", job.queue_pairs());
    let world = job.world();
    job.barrier()?;
    if job.rank() == 1 {
        let mut sent = [0_u64];
        world.receive(0, TAG, &mut sent)?;
        println!("first {}", now()? - sent[0]);
        world.send(0, TAG, &[0_u64])?;
    } else {
        // The other one waits by now.
        std::thread::sleep(Duration::from_millis(200));
        let begin = now()?;
        world.send(1, TAG, &[begin])?;
        world.receive(1, TAG, &mut [0_u64])?;
        println!("answered {}", now()? - begin);
        ensure!(job.queue_pairs() == 1, "{} queue pairs after a message to one rank", job.queue_pairs());
    }
    Ok(())
}

/// Prints `bare NANOSECONDS` and, of them, `end NANOSECONDS` of this rank's own end, on rank 0. They tell each other by pipes.
pub(crate) fn bare(job: &mut Job) -> Result<()> {
    let assignment = job.require_nics()?;
    let nic = assignment.nics.first().context("no NIC")?;
    let domain = ProtectionDomain::create(&Context::open(&nic.port.device)?)?;
    let table = roce_verbs::read_gid_table(Path::new(roce_verbs::INFINIBAND), &nic.port)?;
    let row = roce_verbs::find_roce_v2(&table, &nic.port, nic.gid)?;
    let completions = CompletionQueue::create(domain.context(), 64)?;
    let state = domain.context().port(nic.port.port)?;
    let (mut mine, mut theirs) = (pipe(job.rank())?, pipe(1 - job.rank())?);
    let mut number = [0; 4];
    if job.rank() == 1 {
        // The word to begin.
        mine.read_exact(&mut number)?;
    } else {
        std::thread::sleep(Duration::from_millis(200));
    }
    let start = Instant::now();
    if job.rank() == 0 {
        theirs.write_all(&number)?;
    }
    let pair = QueuePair::create(&domain, &completions, Depth { send: 16, receive: 16 })?;
    pair.initialize(nic.port.port)?;
    let made = start.elapsed();
    theirs.write_all(&pair.number().to_ne_bytes())?;
    mine.read_exact(&mut number)?;
    let told = Instant::now();
    pair.connect(&Connection {
        port: nic.port.port,
        local_gid_index: row,
        remote_gid: nic.gid,
        remote_qp_number: u32::from_ne_bytes(number),
        local_psn: 1,
        remote_psn: 1,
        path_mtu: state.active_mtu,
        traffic_class: assignment.traffic_class,
        service_level: assignment.service_level,
        initiator_depth: 16,
        responder_depth: 16,
    })?;
    let end = made + told.elapsed();
    // The other end is there too.
    theirs.write_all(&number)?;
    mine.read_exact(&mut number)?;
    if job.rank() == 0 {
        println!("bare {}\nend {}", start.elapsed().as_nanos(), end.as_nanos());
    }
    Ok(())
}
