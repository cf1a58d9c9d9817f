//! Ranks of a PMIx launcher: `mpirun` and `prterun` of Open MPI, and `srun --mpi=pmix`. The launcher's library
//! (libpmix) tells rank, size and nodes, and carries rank 0's fresh secret to the others.

mod library;
#[cfg(test)]
mod tests;
mod variables;

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::discovery::{Identity, Launch, Node};
use crate::error::{Error, Result};
use crate::secret::Secret;
use library::Session;

pub(crate) use variables::{MPIRUN_SIZE, PmixVariables, RANK};

/// The key of rank 0's secret.
const SECRET: &CStr = c"roce.secret";

/// Whether this process has been introduced: what rank 0 put once is there for good.
static DONE: AtomicBool = AtomicBool::new(false);

/// Asks the launcher for what the variables did not tell, and agrees with the other ranks on a fresh secret. Every rank
/// must call it; it returns when all have, or at the deadline.
///
/// `identity` is what the variables told, if they told it.
pub(crate) fn introduce(
    pmix: &PmixVariables,
    identity: Option<Identity>,
    deadline: Instant,
) -> Result<(Identity, Option<Secret>)> {
    let failed = |reason| failed(pmix, reason);
    if DONE.swap(true, Ordering::Relaxed) {
        return Err(failed(
            "this process has joined before; join once, and keep what that returned".to_owned(),
        ));
    }
    let rank = pmix.rank;
    let (sender, receiver) = mpsc::channel();
    // None of PMIx's calls that wait has a deadline that every launcher keeps.
    thread::Builder::new()
        .name("pmix".to_owned())
        .spawn(move || {
            // After the deadline nobody listens.
            let _ = sender.send(ask(rank, identity));
        })
        .map_err(|error| failed(format!("no thread to ask in: {error}")))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    match receiver.recv_timeout(left) {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(failed(format!("the others did not come within {left:.1?}; did every rank start?"))),
    }
}

pub(crate) fn failed(pmix: &PmixVariables, reason: String) -> Error {
    Error::Pmix { rank: pmix.rank, namespace: pmix.namespace.escape_debug().to_string(), reason }
}

fn ask(rank: u32, identity: Option<Identity>) -> Result<(Identity, Option<Secret>), String> {
    let session = Session::begin()?;
    if session.rank() != rank {
        return Err(format!("the launcher says rank {}, its variables say {rank}", session.rank()));
    }
    let size = session.size()?;
    let identity = match identity {
        Some(identity) if identity.size == size => identity,
        Some(Identity { size: told, .. }) => {
            return Err(format!("the launcher says {size} ranks, its variables say {told}"));
        }
        None => place(&session, rank, size)?,
    };
    if size == 1 {
        return Ok((identity, None));
    }
    let own = if rank == 0 { Some(Secret::random().map_err(|error| error.to_string())?) } else { None };
    if let Some(secret) = &own {
        session.put(SECRET, &secret.to_hex())?;
    }
    session.fence()?;
    if let Some(secret) = own {
        return Ok((identity, Some(secret)));
    }
    let digits = session
        .text_of(0, SECRET)
        .map_err(|error| format!("rank 0 gave no secret ({error}): do all ranks run the same program?"))?;
    let secret = Secret::from_hex(digits.as_bytes()).map_err(|_| "rank 0's secret is none".to_owned())?;
    Ok((identity, Some(secret)))
}

/// Where this rank and the others run.
fn place(session: &Session, rank: u32, size: u32) -> Result<Identity, String> {
    let mut nodes = Vec::new();
    for name in session.nodes()? {
        let ranks = session.ranks_on(&name)?;
        nodes.push((name, ranks));
    }
    arrange(nodes, rank, size)
}

/// From each node's ranks. Nodes are counted by their lowest rank, so that all ranks count alike, and rank 0 is on the
/// first.
pub(crate) fn arrange(mut nodes: Vec<(String, Vec<u32>)>, rank: u32, size: u32) -> Result<Identity, String> {
    nodes.retain(|(_, ranks)| !ranks.is_empty());
    for (_, ranks) in &mut nodes {
        ranks.sort_unstable();
    }
    nodes.sort_unstable_by_key(|(_, ranks)| ranks.first().copied());
    let mut all: Vec<u32> = nodes.iter().flat_map(|(_, ranks)| ranks.iter().copied()).collect();
    all.sort_unstable();
    if !all.iter().copied().eq(0..size) {
        return Err(format!(
            "the launcher's nodes have {} ranks in all, not 0 to {}",
            all.len(),
            size.max(1) - 1
        ));
    }
    let found = (0..).zip(&nodes).find_map(|(node_index, (_, ranks))| {
        let local_rank = ranks.binary_search(&rank).ok()?;
        Some((node_index, u32::try_from(local_rank).ok()?))
    });
    let (node_index, local_rank) = found.ok_or("this rank is on no node of the launcher's")?;
    let count = |ranks: Vec<u32>| u32::try_from(ranks.len()).unwrap_or(size);
    let nodes = nodes.into_iter().map(|(name, ranks)| Node { name, tasks: count(ranks) }).collect();
    Ok(Identity { rank, size, local_rank, node_index, nodes, launch: Launch::Pmix })
}
