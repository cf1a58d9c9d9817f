//! How long it takes until every rank has 64 bytes of every other one: our exchange and its peers, in turns, on a Slurm of
//! eight nodes on this machine.
//!
//! The figure of a step is the time from the last rank's start to the last rank's end, so what Slurm needs to start the
//! ranks one after the other counts for nobody.

mod docs;
mod step;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use roce_cluster::{Cluster, prerequisites, run::program};

use crate::machine;
use crate::report::{Case, Report, median, spread};

/// Slurm nodes on this machine.
const NODES: usize = 8;

/// Steps of each peer before anything is timed: they load files into the page cache.
const WARM_UP: usize = 1;

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
    variables: &'static [(&'static str, &'static str)],
}

const OURS: Peer = Peer { name: "roce-bootstrap", word: "ours", mpi: "none", variables: &[] };

const PEERS: [Peer; 3] = [
    Peer { name: "PMI2", word: "pmi2", mpi: "pmi2", variables: &[] },
    Peer { name: "PMIx", word: "pmix", mpi: "pmix", variables: &[] },
    Peer {
        name: "MPI_Init (Open MPI)",
        word: "mpi",
        mpi: "pmix",
        // Its shared memory files bear the host's name, which is the same on all nodes here: they would overwrite each
        // other. So it has one transport less to set up.
        variables: &[("OMPI_MCA_pml", "ob1"), ("OMPI_MCA_btl", "self,tcp")],
    },
];

/// Milliseconds of each round at one number of ranks; the peers in their order.
struct Measured {
    ranks: usize,
    ours: Vec<f64>,
    /// The most that any node needed in any of our steps.
    rounds: u32,
    connections: u32,
    theirs: [Result<Vec<f64>, String>; PEERS.len()],
}

/// Measures with so many rounds at each number of ranks; with `docs`, writes the page and the plot below that folder.
pub(crate) fn run(rounds: usize, ranks: &[usize], docs: Option<&Path>) -> Result<Report> {
    ensure!(rounds > 0, "--rounds=0: at least one round is needed");
    if let Some(bad) = ranks.iter().find(|ranks| **ranks == 0 || *ranks % NODES != 0) {
        bail!("--ranks={bad}: they are spread over {NODES} nodes, so a multiple of {NODES} is needed");
    }
    prerequisites::check_slurm()?;
    let cluster = Cluster::start_many(NODES)?;
    let slurm = program("slurmd").args(["-V"]).run(&cluster)?.stdout.trim().to_owned();
    let setting = format!("{}; {slurm}, {NODES} slurmds; {rounds} rounds", machine::describe());
    println!("{setting}");
    let mut all = Vec::new();
    for ranks in ranks {
        let measured = measure(&cluster, *ranks, rounds)?;
        print(&measured);
        all.push(measured);
    }
    if let Some(docs) = docs {
        docs::write(docs, &all, &setting)?;
    }
    Ok(Report { name: "bootstrap", cases: all.into_iter().flat_map(cases).collect() })
}

/// All peers in turns. A peer that fails is left out from there on, with its reason; ours must not fail, nor what it has
/// promised to be faster than.
fn measure(cluster: &Cluster, ranks: usize, rounds: usize) -> Result<Measured> {
    let mut measured = Measured {
        ranks,
        ours: Vec::new(),
        rounds: 0,
        connections: 0,
        theirs: [const { Ok(Vec::new()) }; PEERS.len()],
    };
    let all = 1 + PEERS.len();
    for round in 0..rounds + WARM_UP {
        // Another one begins in each round, so that none always profits from what went before.
        for at in (0..all).map(|turn| (turn + round) % all) {
            let timed = round >= WARM_UP;
            let Some(peer) = at.checked_sub(1) else {
                let step = step::run(cluster, &OURS, ranks)?;
                measured.ours.extend(timed.then_some(step.ms));
                ensure!(step.rounds > 0 && step.connections > 0, "ours counted neither rounds nor connections");
                measured.rounds = measured.rounds.max(step.rounds);
                measured.connections = measured.connections.max(step.connections);
                continue;
            };
            let Ok(times) = &mut measured.theirs[peer] else { continue };
            match step::run(cluster, &PEERS[peer], ranks) {
                Ok(step) => times.extend(timed.then_some(step.ms)),
                Err(error) if ranks == PROMISED.0 && peer == 0 => {
                    return Err(error).with_context(|| format!("{} at {ranks} ranks", PEERS[peer].name));
                }
                Err(error) => measured.theirs[peer] = Err(format!("{error:#}")),
            }
        }
    }
    Ok(measured)
}

fn print(measured: &Measured) {
    let show = |name: &str, times: &[f64]| {
        let (least, most) = spread(times);
        format!("{name} {:.1} ms ({least:.1}-{most:.1})", median(times))
    };
    let mut shown = vec![show(OURS.name, &measured.ours)];
    for (peer, times) in PEERS.iter().zip(&measured.theirs) {
        shown.push(match times {
            Ok(times) => show(peer.name, times),
            Err(reason) => format!("{} not measured: {reason}", peer.name),
        });
    }
    println!("{} ranks: {}", measured.ranks, shown.join(", "));
}

fn cases(measured: Measured) -> Vec<Case> {
    let Measured { ranks, ours, rounds, connections, theirs } = measured;
    // Counted, not measured, and so compared with what theory allows.
    let most = NODES.next_power_of_two().ilog2();
    let counted = |what: &str, unit, ours: u32, limit: u32| {
        let (ours, limit) = (vec![f64::from(ours)], vec![f64::from(limit)]);
        let (name, peer) = (format!("{what} of a node, {ranks} ranks"), format!("limit for {NODES} nodes"));
        Case::less_is_better(&name, &peer, unit, ours, limit, Some(1.0))
    };
    let counted = [
        counted("rounds", "rounds", rounds, most),
        counted("connections", "connections", connections, 2 * most),
    ];
    let measured = PEERS.iter().enumerate().zip(theirs).filter_map(|(peer, times)| Some((peer, times.ok()?)));
    let case = |((number, peer), times): ((usize, &Peer), _)| {
        let goal = if number == 0 && ranks == PROMISED.0 { PROMISED.1 } else { 1.0 };
        let name = format!("everyone's 64 bytes, {ranks} ranks");
        Case::less_is_better(&name, peer.name, "ms", ours.clone(), times, Some(goal))
    };
    measured.map(case).chain(counted).collect()
}
