//! What the first message to a peer takes, beside the bare cost of a queue pair: made, and brought to RTS. Before that message there
//! must be no queue pair, and one after it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use roce_launcher::Job;
use roce_verbs::{CompletionQueue, Connection, Context, Depth, ProtectionDomain, QueuePair};

const TAG: u32 = 5;
/// As often is the bare cost taken, and as many entries does a queue have.
const TIMES: u32 = 20;

/// A clock that all processes of a machine share.
fn now() -> Result<u64> {
    Ok(u64::try_from(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos())?)
}

/// Prints `first NANOSECONDS` and `bare NANOSECONDS`, the median of some.
pub(crate) fn first(job: &mut Job) -> Result<()> {
    ensure!(job.queue_pairs() == 0, "{} queue pairs before the first message", job.queue_pairs());
    let world = job.world();
    job.barrier()?;
    if job.rank() == 1 {
        let mut sent = [0_u64];
        world.receive(0, TAG, &mut sent)?;
        let took = now()? - sent[0];
        println!("first {took}");
        world.send(0, TAG, &[0_u64])?;
    } else {
        // The other one waits by now.
        std::thread::sleep(Duration::from_millis(200));
        world.send(1, TAG, &[now()?])?;
        world.receive(1, TAG, &mut [0_u64])?;
        ensure!(job.queue_pairs() == 1, "{} queue pairs after a message to one rank", job.queue_pairs());
        println!("bare {}", bare(job)?);
    }
    Ok(())
}

/// Nanoseconds of one end: each is connected to itself, as no end knows who is at the other one before packets flow.
fn bare(job: &Job) -> Result<u128> {
    let assignment = job.require_nics()?;
    let nic = assignment.nics.first().context("no NIC")?;
    let domain = ProtectionDomain::create(&Context::open(&nic.port.device)?)?;
    let table = roce_verbs::read_gid_table(Path::new(roce_verbs::INFINIBAND), &nic.port)?;
    let row = roce_verbs::find_roce_v2(&table, &nic.port, nic.gid)?;
    let completions = CompletionQueue::create(domain.context(), TIMES as usize * 32)?;
    let state = domain.context().port(nic.port.port)?;
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let start = Instant::now();
        let pair = QueuePair::create(&domain, &completions, Depth { send: 16, receive: 16 })?;
        pair.initialize(nic.port.port)?;
        pair.connect(&Connection {
            port: nic.port.port,
            local_gid_index: row,
            remote_gid: nic.gid,
            remote_qp_number: pair.number(),
            local_psn: 1,
            remote_psn: 1,
            path_mtu: state.active_mtu,
            traffic_class: assignment.traffic_class,
            service_level: assignment.service_level,
            initiator_depth: 16,
            responder_depth: 16,
        })?;
        took.push(start.elapsed().as_nanos());
        pair.close()?;
    }
    took.sort_unstable();
    took.get(took.len() / 2).copied().context("none")
}
