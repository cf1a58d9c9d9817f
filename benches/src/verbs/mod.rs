//! How fast messages and RDMA writes over verbs are: ours, perftest, Open MPI over UCX and libfabric's fi_pingpong, in turns, over one
//! soft-RoCE device of one guest. Where the machine has no KVM that is an emulated one, which makes the kernel's part much of each
//! message: so the instructions that the library itself needs are counted too.

mod callgrind;
mod docs;
mod guest;
mod lines;
mod measured;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use roce_lab::Interrupt;

use self::guest::Guest;
use self::measured::{Measured, Player};
use crate::machine;
use crate::report::Report;

/// Nanoseconds of one.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Laps {
    median: f64,
    mean: f64,
}

/// Bytes of messages.
const SIZES: [usize; 7] = [8, 64, 512, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
/// Those whose bandwidth is measured.
const LONG: [usize; 2] = [64 << 10, 1 << 20];

/// A few tenths of a second of each by emulation.
fn times(size: usize) -> u32 {
    match size {
        0..8192 => 2000,
        8192..131_072 => 500,
        131_072..524_288 => 100,
        _ => 40,
    }
}

/// How many messages a stream has.
fn stream_times(size: usize) -> u32 {
    if size < 131_072 { 500 } else { 60 }
}

/// Runs of one of perftest's programs until it has found out how fast the processor's counter is.
const TRIES: u32 = 5;

/// Messages of each size that libfabric's reliable datagrams are measured with.
const DATAGRAMS: u32 = 200;

/// Sends and receives that callgrind counts.
const COUNTED: u32 = 200;

/// Measures in so many rounds; with `docs`, writes the page and the plots below that folder.
pub(crate) fn run(rounds: usize, target: &Path, docs: Option<&Path>) -> Result<Report> {
    ensure!(rounds > 0, "--rounds=0: at least one round is needed");
    let interrupt = Interrupt::on_signals()?;
    let guest = Guest::boot(&target.join("lab"), &target.join("bench/verbs"), &interrupt)?;
    let setting = format!("{}; on {}; {rounds} rounds", guest.describe()?, machine::describe());
    println!("{setting}");
    let mut measured = Measured::default();
    for round in 0..rounds {
        for size in SIZES {
            latencies(&guest, &mut measured, round, size)?;
        }
        for size in LONG {
            bandwidths(&guest, &mut measured, round, size)?;
        }
        means(&guest, &mut measured, round)?;
        let first = guest.run("ours first 8 1")?;
        measured.keep("first", 8, Player::Ours, lines::number(&first, "first")?);
        measured.keep("answered", 8, Player::Ours, lines::number(&first, "answered")?);
        let bare = guest.run("pipes; ours bare 8 1")?;
        measured.keep("first", 8, Player::Bare, lines::number(&bare, "bare")?);
        measured.keep("end", 8, Player::Bare, lines::number(&bare, "end")?);
        println!("round {} of {rounds}", round + 1);
    }
    let count = |case: &str| {
        let counted = callgrind::read(&guest.run(&format!("count {case} {COUNTED}"))?)?;
        anyhow::Ok(counted.own_of_each(COUNTED))
    };
    measured.count(count("count")?, count("count-bare")?);
    guest.shut_down()?;
    if let Some(docs) = docs {
        docs::write(docs, &measured, &setting)?;
    }
    Ok(Report { name: "messages-verbs", cases: measured.cases() })
}

/// Ours between perftest's two, which take the first turn by turns.
fn latencies(guest: &Guest, measured: &mut Measured, round: usize, size: usize) -> Result<()> {
    let times = times(size);
    let ours = |names: [&'static str; 2], measured: &mut Measured| {
        let cases = names.map(|name| format!("{name} {size} {times}")).join(" ");
        let text = guest.run(&format!("ours {cases}"))?;
        lines::over_verbs(&text, 4 * u64::from(times))?;
        for name in names {
            measured.keep(name, size, Player::Ours, lines::ours(&text, name, size)?.median);
        }
        anyhow::Ok(())
    };
    let perftest = |name: &'static str, program: &str, measured: &mut Measured| {
        for _ in 0..TRIES {
            let text = guest.run(&format!("perftest {program} {size} {times}"))?;
            lines::over_verbs(&text, 2 * u64::from(times))?;
            if let Some(median) = lines::perftest_latency(&text)? {
                measured.keep(name, size, Player::Perftest, median);
                return Ok(());
            }
        }
        bail!("{program} gave no latency of {size} bytes in {TRIES} runs")
    };
    let sends = ["message", "pair-send"];
    let writes = ["put", "pair-write"];
    if round.is_multiple_of(2) {
        ours(sends, measured)?;
        perftest("send", "ib_send_lat", measured)?;
        ours(writes, measured)?;
        perftest("write", "ib_write_lat", measured)
    } else {
        perftest("send", "ib_send_lat", measured)?;
        ours(sends, measured)?;
        perftest("write", "ib_write_lat", measured)?;
        ours(writes, measured)
    }
}

fn bandwidths(guest: &Guest, measured: &mut Measured, round: usize, size: usize) -> Result<()> {
    let times = stream_times(size);
    let ours = |measured: &mut Measured| {
        for name in ["stream", "pair-send-stream", "pair-write-stream"] {
            let text = guest.run(&format!("ours {name} {size} {times}"))?;
            lines::over_verbs(&text, u64::from(times))?;
            let ns = lines::ours(&text, name, size)?.mean;
            measured.keep(name, size, Player::Ours, measured::rate(size, ns));
        }
        anyhow::Ok(())
    };
    let perftest = |measured: &mut Measured| {
        for (name, program) in [("send-stream", "ib_send_bw"), ("write-stream", "ib_write_bw")] {
            let text = guest.run(&format!("perftest {program} {size} {times}"))?;
            lines::over_verbs(&text, u64::from(times))?;
            measured.keep(name, size, Player::Perftest, lines::perftest_bandwidth(&text)?);
        }
        anyhow::Ok(())
    };
    if round.is_multiple_of(2) {
        ours(measured)?;
        perftest(measured)
    } else {
        perftest(measured)?;
        ours(measured)
    }
}

/// Means, for peers that tell only these; ours take the first turn and the last by turns.
fn means(guest: &Guest, measured: &mut Measured, round: usize) -> Result<()> {
    if round.is_multiple_of(2) {
        our_means(guest, measured)?;
        others_means(guest, measured)
    } else {
        others_means(guest, measured)?;
        our_means(guest, measured)
    }
}

/// Messages of all sizes.
fn messages() -> u64 {
    SIZES.map(|size| 2 * u64::from(times(size))).iter().sum()
}

fn our_means(guest: &Guest, measured: &mut Measured) -> Result<()> {
    let cases = SIZES.map(|size| format!("message {size} {0} pair-send {size} {0}", times(size)));
    let text = guest.run(&format!("ours {}", cases.join(" ")))?;
    lines::over_verbs(&text, 2 * messages())?;
    for size in SIZES {
        measured.keep("mean", size, Player::Ours, lines::ours(&text, "message", size)?.mean);
        measured.keep("pair-mean", size, Player::Ours, lines::ours(&text, "pair-send", size)?.mean);
    }
    Ok(())
}

/// Open MPI and libfabric's reliable datagrams have all sizes in one run, its connected endpoints each in one.
fn others_means(guest: &Guest, measured: &mut Measured) -> Result<()> {
    let cases = SIZES.map(|size| format!("latency {size} 1 {}", times(size)));
    let text = guest.run(&format!("open_mpi {}", cases.join(" ")))?;
    lines::over_verbs(&text, messages())?;
    for size in SIZES {
        let ns = lines::number(&text, &format!("latency/{size}"))?;
        measured.keep("mean", size, Player::OpenMpi, ns);
    }
    let text = guest.run(&format!("pingpong_datagrams {DATAGRAMS}"))?;
    lines::over_verbs(&text, 2 * u64::from(DATAGRAMS) * SIZES.len() as u64)?;
    for size in SIZES {
        measured.keep("mean", size, Player::Datagrams, lines::pingpong(&text, size)?);
    }
    for size in SIZES {
        let text = guest.run(&format!("pingpong {size} {}", times(size)))?;
        lines::over_verbs(&text, 2 * u64::from(times(size)))?;
        measured.keep("mean", size, Player::Endpoints, lines::pingpong(&text, size)?);
    }
    Ok(())
}
