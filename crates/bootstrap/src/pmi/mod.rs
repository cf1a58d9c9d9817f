//! The client's side of PMI-1 and PMI-2, as far as ranks need it to find each other: rank, size, where the ranks
//! run, and a table of keys and values through which rank 0 hands its fresh secret to the others.
//!
//! Spoken over the socket that the launcher left open (`PMI_FD`): `mpiexec.hydra` of MPICH and Intel MPI, and Slurm's
//! `--mpi=pmi2`. The session is closed when the ranks have what they need, since a launcher takes a process that ends in
//! the middle of one for a crash. So a program that speaks PMI itself, as every MPI library does, can't in the same process.

mod descriptor;
mod mapping;
mod one;
#[cfg(test)]
mod tests;
mod two;
mod variables;
mod wire;

use std::time::Instant;

use zeroize::Zeroizing;

use crate::discovery::{Identity, Launch, Node};
use crate::error::{Error, Result};
use crate::secret::Secret;

pub(crate) use variables::{PmiVariables, RANK, SIZE};
use wire::Wire;

/// The key of rank 0's secret.
const SECRET: &str = "roce-secret";
/// The launcher's own key that tells which rank runs on which node.
const MAPPING: &str = "PMI_process_mapping";

/// The table that a launcher keeps for its ranks. What one rank put, all can get after the next fence.
trait Session {
    fn put(&mut self, key: &str, value: &str) -> Result<()>;
    fn fence(&mut self) -> Result<()>;
    fn get(&mut self, key: &str) -> Result<Zeroizing<String>>;
    /// Where the ranks run, in the form that `mapping` reads.
    fn process_mapping(&mut self) -> Result<String>;
    /// Tells the launcher that this process may end without having crashed.
    fn finish(&mut self) -> Result<()>;
}

/// Asks the launcher for what the variables did not tell, and agrees with the other ranks on a fresh secret. Every rank
/// must call it; it returns when all have.
///
/// `identity` is what the variables told, if they told it; `host` is this node's name.
pub(crate) fn introduce(
    pmi: &PmiVariables,
    identity: Option<Identity>,
    host: &str,
    deadline: Instant,
) -> Result<(Identity, Secret)> {
    introduce_over(&mut *begin(Wire::open(pmi.clone(), deadline)?, pmi)?, pmi, identity, host)
}

/// The same over a socket that is at hand.
#[cfg(feature = "testing")]
pub(crate) fn introduce_by(
    socket: std::os::unix::net::UnixStream,
    pmi: &PmiVariables,
    identity: Option<Identity>,
    deadline: Instant,
) -> Result<(Identity, Secret)> {
    introduce_over(&mut *begin(Wire::new(socket, pmi.clone(), deadline), pmi)?, pmi, identity, "here")
}

fn introduce_over(
    session: &mut dyn Session,
    pmi: &PmiVariables,
    identity: Option<Identity>,
    host: &str,
) -> Result<(Identity, Secret)> {
    let layout = match &identity {
        Some(_) => None,
        None => {
            let text = session.process_mapping()?;
            Some(mapping::Layout::read(&text, pmi.size).ok_or_else(|| {
                failed(pmi, format!("{MAPPING}={text} does not say where {} ranks run", pmi.size))
            })?)
        }
    };
    let place = layout.as_ref().map(|layout| layout.place_of(pmi.rank));
    let name_of = |node: u32| format!("roce-node-{node}");

    let own = if pmi.rank == 0 { Some(Secret::random()?) } else { None };
    if let Some(secret) = &own {
        session.put(SECRET, &secret.to_hex())?;
    }
    // One name per node, not per rank.
    if let Some((node, 0)) = place {
        session.put(&name_of(node), host)?;
    }
    session.fence()?;
    let secret = match own {
        Some(secret) => secret,
        None => Secret::from_hex(session.get(SECRET)?.as_bytes()).map_err(|_| {
            failed(pmi, "rank 0 gave no secret: do all ranks run the same program?".to_owned())
        })?,
    };
    let identity = match (identity, layout, place) {
        (None, Some(layout), Some((node_index, local_rank))) => {
            let named = |(node, tasks)| Ok(Node { name: session.get(&name_of(node))?.to_string(), tasks });
            let nodes = (0..).zip(layout.tasks()).map(named).collect::<Result<_>>()?;
            Identity { rank: pmi.rank, size: pmi.size, local_rank, node_index, nodes, launch: Launch::Pmi }
        }
        (identity, ..) => {
            identity.ok_or_else(|| failed(pmi, "nothing says where this rank runs".to_owned()))?
        }
    };
    session.finish()?;
    Ok((identity, secret))
}

/// Offers the newer protocol first: a launcher that has only the older one refuses, and is asked again.
fn begin(mut wire: Wire, pmi: &PmiVariables) -> Result<Box<dyn Session>> {
    if wire.offers(2, 0)? {
        return Ok(Box::new(two::Two::begin(wire, pmi)?));
    }
    begin_old(wire)
}

fn begin_old(mut wire: Wire) -> Result<Box<dyn Session>> {
    if wire.offers(1, 1)? {
        return Ok(Box::new(one::One::begin(wire)?));
    }
    Err(wire.failed("the launcher speaks neither PMI-2 nor PMI-1".to_owned()))
}

pub(crate) fn failed(pmi: &PmiVariables, reason: String) -> Error {
    Error::Pmi { rank: pmi.rank, fd: pmi.fd.unwrap_or_default(), reason }
}
