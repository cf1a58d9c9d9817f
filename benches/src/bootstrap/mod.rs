//! How long it takes until every rank has 64 bytes of every other one: our exchange and its peers, in turns, on a Slurm of
//! eight nodes on this machine.
//!
//! The figure of a step is the time from the last rank's start to the last rank's end, so what Slurm needs to start the
//! ranks one after the other counts for nobody.

mod docs;
mod measured;
mod step;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use roce_cluster::{Cluster, prerequisites, run::program};

use self::measured::{Measured, Theirs};
use self::step::Outcome;
use crate::machine;
use crate::report::{Report, median, spread};

/// Slurm nodes on this machine.
const NODES: usize = 8;

/// Steps of each peer before anything is timed: they load files into the page cache.
const WARM_UP: usize = 1;

/// So long a peer's steps at one number of ranks may take altogether; then no more of them are started. MPI_Init polls, and takes
/// from some seconds to minutes where there are many more ranks than CPUs.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much faster than PMI2 ours has to be at so many ranks.
const PROMISED: (usize, f64) = (256, 50.0);

/// A way to exchange 64 bytes.
struct Peer {
    /// For people.
    name: &'static str,
    /// What the program of the ranks calls it.
    word: &'static str,
    /// srun's `--mpi`.
    mpi: &'static str,
    /// Whether it has to be measured in all rounds, as it is what ours is promised to be faster than.
    must: bool,
    variables: &'static [(&'static str, &'static str)],
}

const OURS: Peer = Peer { name: "roce-bootstrap", word: "ours", mpi: "none", must: true, variables: &[] };

const PEERS: [Peer; 3] = [
    Peer { name: "PMI2", word: "pmi2", mpi: "pmi2", must: true, variables: &[] },
    Peer { name: "PMIx", word: "pmix", mpi: "pmix", must: false, variables: &[] },
    Peer {
        name: "MPI_Init (Open MPI)",
        word: "mpi",
        mpi: "pmix",
        must: false,
        // Its shared memory files bear the host's name, which is the same on all nodes here: they would overwrite each
        // other. So it has one transport less to set up.
        variables: &[
            ("OMPI_MCA_pml", "ob1"),
            ("OMPI_MCA_btl", "self,tcp"),
            // There are more ranks than CPUs, which Open MPI can't see from its place.
            ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ],
    },
];

/// Measures with so many rounds at each number of ranks, against all peers or those that `only` names; with `docs`, writes the page and the plot below that folder.
pub(crate) fn run(rounds: usize, ranks: &[usize], only: &[&str], docs: Option<&Path>) -> Result<Report> {
    ensure!(rounds > 0, "--rounds=0: at least one round is needed");
    if let Some(bad) = ranks.iter().find(|ranks| **ranks == 0 || *ranks % NODES != 0) {
        bail!("--ranks={bad}: they are spread over {NODES} nodes, so a multiple of {NODES} is needed");
    }
    if let Some(unknown) = only.iter().find(|word| !PEERS.iter().any(|peer| peer.word == **word)) {
        bail!("--peers={unknown}: there are {}", PEERS.map(|peer| peer.word).join(", "));
    }
    prerequisites::check_slurm()?;
    let cluster = Cluster::start_many(NODES)?;
    let slurm = program("slurmd").args(["-V"]).run(&cluster)?.stdout.trim().to_owned();
    let setting = format!("{}; {slurm}, {NODES} slurmds; {rounds} rounds", machine::describe());
    println!("{setting}");
    let mut all = Vec::new();
    for ranks in ranks {
        let measured = measure(&cluster, *ranks, rounds, only, &all)?;
        print(&measured);
        all.push(measured);
    }
    if let Some(docs) = docs {
        docs::write(docs, &all, &setting)?;
    }
    Ok(Report { name: "bootstrap", cases: all.iter().flat_map(Measured::cases).collect() })
}

/// All peers in turns. A peer that fails or has no end is left out from there on, with its reason; ours must not fail, nor what
/// it has promised to be faster than.
fn measure(
    cluster: &Cluster,
    ranks: usize,
    rounds: usize,
    only: &[&str],
    smaller: &[Measured],
) -> Result<Measured> {
    let mut measured = Measured::new(ranks);
    for (number, theirs) in measured.theirs.iter_mut().enumerate() {
        if !only.is_empty() && !only.contains(&PEERS[number].word) {
            theirs.stopped = Some("--peers leaves it out".to_owned());
            continue;
        }
        let endless = smaller.iter().find(|smaller| smaller.theirs[number].more_than.is_some());
        theirs.stopped = endless.map(|smaller| format!("it was not finished at {} ranks", smaller.ranks));
    }
    let all = 1 + PEERS.len();
    for round in 0..rounds + WARM_UP {
        // Another one begins in each round, so that none always profits from what went before.
        for at in (0..all).map(|turn| (turn + round) % all) {
            let timed = round >= WARM_UP;
            let Some(number) = at.checked_sub(1) else {
                let Outcome::Done(step) = step::run(cluster, &OURS, ranks)? else {
                    bail!("ours did not finish with {ranks} ranks");
                };
                ensure!(
                    step.rounds > 0 && step.connections > 0,
                    "ours counted neither rounds nor connections"
                );
                measured.keep(&step, timed);
                continue;
            };
            let (peer, theirs) = (&PEERS[number], &mut measured.theirs[number]);
            if theirs.goes_on((!peer.must).then_some(PATIENCE)) {
                let start = Instant::now();
                match step::run(cluster, peer, ranks) {
                    Ok(outcome) => theirs.keep(outcome, timed, start.elapsed()),
                    Err(error) if peer.must && ranks == PROMISED.0 => {
                        return Err(error).with_context(|| format!("{} at {ranks} ranks", peer.name));
                    }
                    Err(error) => theirs.stopped = Some(format!("{error:#}")),
                }
            }
        }
    }
    Ok(measured)
}

fn print(measured: &Measured) {
    println!("{} ranks: {} {}", measured.ranks, OURS.name, show(&measured.ours));
    for (peer, theirs) in PEERS.iter().zip(&measured.theirs) {
        let note = theirs.note().map(|note| format!(" [{note}]")).unwrap_or_default();
        println!("{} ranks: {} {}{note}", measured.ranks, peer.name, figure(theirs));
    }
}

/// Its milliseconds, for people.
fn figure(theirs: &Theirs) -> String {
    match theirs.more_than {
        _ if !theirs.times.is_empty() => show(&theirs.times),
        Some(bound) => format!("> {bound:.0}"),
        None => "not measured".to_owned(),
    }
}

fn show(times: &[f64]) -> String {
    let (least, most) = spread(times);
    format!("{:.1} ({least:.1}-{most:.1})", median(times))
}
