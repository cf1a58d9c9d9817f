//! One rank of `cargo xtask bench bootstrap`: learns everyone's 64 bytes in the way that it is told, and appends lines to a
//! report: that it starts now; and its rank, when it started and when it knew, in nanoseconds of CLOCK_MONOTONIC; and, of ours, how many rounds and
//! connections its node needed.
//!
//! The clock starts directly before the first call of the library (which has been loaded before) and stops when
//! everyone's bytes are in this process. What they are is checked when all ranks' clocks have stopped, and the library is told to
//! end after the report, so neither is part of the time.

mod gate;
mod library;
mod mpi;
mod ours;
mod pmi2;
mod pmix;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use gate::Gate;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::alarm;

/// What each rank tells the others.
const LENGTH: usize = 64;

/// One way to learn everyone's bytes, its library loaded.
trait Exchange {
    /// From the library's first call until everyone's bytes are here.
    fn run(&mut self) -> Result<Known>;

    /// What this rank's node did over the network meanwhile, where it is counted.
    fn network(&self) -> Option<Network> {
        None
    }

    /// What a good program does at its end.
    fn end(self: Box<Self>) -> Result<()>;
}

/// What one node's leader needed to talk to the others.
struct Network {
    rounds: u64,
    connections: u64,
}

/// What a rank knows after the exchange.
struct Known {
    rank: usize,
    size: usize,
    /// Everyone's bytes, rank after rank; `None` where the library exchanges its own addresses only.
    bytes: Option<Vec<u8>>,
}

/// A rank's 64 bytes: text, since PMI2 carries no other.
fn bytes_of(rank: usize) -> [u8; LENGTH] {
    let mut bytes = [b'.'; LENGTH];
    let text = format!("bytes of rank {rank} ");
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [peer, folder, size, limit] = arguments.as_slice() else {
        bail!(
            "usage: roce-bench-rank ours|pmi2|pmix|mpi FOLDER RANKS SECONDS (cargo xtask bench bootstrap does it)"
        );
    };
    // It ends by SIGALRM after so long: nothing else would get through to a rank that polls, and whoever started it may have been
    // killed, and with it what would end the ranks.
    let limit = limit.parse().with_context(|| format!("{limit:?} seconds"))?;
    let size: usize = size.parse().with_context(|| format!("{size:?} ranks"))?;
    let mut exchange: Box<dyn Exchange> = match peer.as_str() {
        "ours" => Box::new(ours::Ours::new()),
        "pmi2" => Box::new(pmi2::Pmi2::load()?),
        "pmix" => Box::new(pmix::Pmix::load(size)?),
        "mpi" => Box::new(mpi::Mpi::load()?),
        _ => bail!("{peer:?} is none of ours, pmi2, pmix, mpi"),
    };
    let folder = Path::new(folder);
    let report = folder.join("report");
    let mut report =
        File::options().append(true).open(&report).with_context(|| report.display().to_string())?;
    let gate = Gate::open(&folder.join("gate"))?;
    alarm::set(limit);
    report.write_all(format!("start {}\n", now()?).as_bytes())?;
    let start = now()?;
    let known = exchange.run()?;
    let end = now()?;
    gate.pass()?;
    let Known { rank, size: found, bytes } = known;
    ensure!(found == size, "{peer} says that there are {found} ranks, not {size}");
    for (other, bytes) in bytes.iter().flat_map(|all| all.chunks(LENGTH)).enumerate() {
        ensure!(bytes == bytes_of(other), "rank {rank} got {bytes:?} as the bytes of rank {other}");
    }
    ensure!(bytes.is_none_or(|all| all.len() == LENGTH * found), "not everyone's bytes");
    // One write, so that the lines of all ranks stay whole.
    let counted = exchange.network().map(|network| format!(" {} {}", network.rounds, network.connections));
    report.write_all(format!("{rank} {start} {end}{}\n", counted.unwrap_or_default()).as_bytes())?;
    exchange.end()
}

/// Nanoseconds of the clock that all processes of this machine share.
fn now() -> Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}
