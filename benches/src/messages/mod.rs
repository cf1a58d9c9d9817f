//! How fast messages are within a node: ours, Open MPI and MPICH in turns, over their shared memory, on this machine; and a bare
//! cache line that two threads hand to each other, which is what the hardware needs at least.
//!
//! All play the same program, each in its own library's words: `messages_rank/main.rs` and `peer.c`.

mod docs;
mod measured;
mod player;

use std::path::Path;

use anyhow::{Result, ensure};

pub(crate) use self::docs::{show, size};
pub(crate) use self::measured::bytes;

use self::measured::Measured;
use self::player::{Built, Player};
use crate::machine;
use crate::report::Report;

/// What is measured: bytes of a message, and how often.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Case {
    what: What,
    ranks: u32,
    size: usize,
    /// Messages in a row of a stream.
    window: usize,
    times: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    /// Half of a round trip.
    Latency,
    /// A message in a stream of them.
    Stream,
    AllReduce,
    Barrier,
}

impl What {
    /// In the arguments and the lines of the ranks.
    const fn word(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Stream => "stream",
            Self::AllReduce => "all_reduce",
            Self::Barrier => "barrier",
        }
    }
}

/// Bytes of messages.
const SIZES: [usize; 9] = [8, 64, 512, 2 << 10, 8 << 10, 64 << 10, 512 << 10, 1 << 20, 4 << 20];

/// Of all_reduce.
const REDUCED: [usize; 2] = [8, 1 << 20];

/// What a processor's core does in the same time at least: 1.5 times the bare line is what was promised.
const PROMISED: f64 = 1.0 / 1.5;

/// A few tens of milliseconds of each, so that what runs beside it comes and goes within a round.
fn cases() -> Vec<Vec<Case>> {
    let times = |size: usize| match size {
        0..1024 => 20_000,
        1024..32_768 => 5_000,
        32_768..262_144 => 1_000,
        262_144..2_097_152 => 150,
        _ => 40,
    };
    // In a stream so many at once that there is always a next one, and at most 16 MiB.
    let window = |size: usize| ((2 << 20) / size).clamp(4, 64);
    let pairs = |what, size| {
        let window = if what == What::Stream { window(size) } else { 1 };
        let times = (times(size) / u32::try_from(window).unwrap_or(1)).max(8);
        Case { what, ranks: 2, size, window, times }
    };
    let collectives = |ranks: u32| {
        // Where ranks share a CPU, the kernel has to switch between them: MPICH's take milliseconds.
        let share = if ranks > 2 { 200 } else { 1 };
        let all_reduce = REDUCED.map(|size| Case {
            what: What::AllReduce,
            ranks,
            size,
            window: 1,
            times: if size > 1024 { 80 / share.min(10) } else { 10_000 / share },
        });
        let barrier = Case { what: What::Barrier, ranks, size: 0, window: 1, times: 10_000 / share };
        [barrier].into_iter().chain(all_reduce).collect()
    };
    vec![
        SIZES.map(|size| pairs(What::Latency, size)).into(),
        SIZES.map(|size| pairs(What::Stream, size)).into(),
        collectives(2),
        collectives(8),
    ]
}

/// Measures in so many rounds; with `docs`, writes the page and the plots below that folder.
pub(crate) fn run(rounds: usize, docs: Option<&Path>) -> Result<Report> {
    ensure!(rounds > 0, "--rounds=0: at least one round is needed");
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "two ranks need two CPUs to themselves, and this machine has {cpus}");
    let built = Built::new()?;
    let setting = format!(
        "{}; {}; {}; {rounds} rounds",
        machine::describe(),
        built.version(Player::OpenMpi)?,
        built.version(Player::Mpich)?
    );
    println!("{setting}");
    let mut measured = Measured::default();
    for round in 0..rounds {
        for group in cases() {
            // Another one begins in each round, so that none always profits from what went before.
            for turn in 0..Player::ALL.len() {
                let player = Player::ALL[(turn + round) % Player::ALL.len()];
                measured.keep(player, built.play(player, &group)?);
                if player == Player::Ours && group[0].what == What::Latency {
                    measured.keep_line(built.line()?);
                }
            }
        }
        println!("round {} of {rounds}", round + 1);
    }
    if let Some(docs) = docs {
        docs::write(docs, &measured, &setting)?;
    }
    Ok(Report { name: "messages", cases: measured.cases() })
}
