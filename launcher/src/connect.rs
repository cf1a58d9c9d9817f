//! Brings up queue pairs between ranks that name each other: decide, make, tell, connect, confirm.

use std::collections::BTreeSet;
use std::sync::Arc;

use roce_verbs::{CompletionQueue, Connection, Depth, Mtu, QueuePair as VerbsPair};

use crate::agree::agree;
use crate::card::{Card, EndCard};
use crate::endpoint::Now;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::queue_pair::{Ends, QueuePair};
use crate::rail;

/// Outstanding RDMA reads per queue pair: more than a blocking program uses, less than any NIC's limit matters.
pub(crate) const MOST_READS: u8 = 16;
/// Packet numbers have 24 bits.
pub(crate) const PSN_MASK: u32 = 0x00ff_ffff;

/// A queue pair that was made and waits for its peer's.
struct Prepared {
    nic: usize,
    peer_nic: usize,
    now: Now,
    psn: u32,
    pair: VerbsPair,
}

pub(crate) fn connect(job: &mut Job, peers: &[u32], depth: Depth) -> Result<Vec<QueuePair>> {
    let prepared = prepare_all(job, peers, depth);
    let (prepared, told) = job.exchange(|exchange| agree(exchange, prepared))?;
    let connected: Result<Vec<QueuePair>> =
        peers.iter().zip(prepared).map(|(&peer, end)| bring_up(job, peer, end, &told)).collect();
    // Nobody sends before every queue pair can receive.
    let (pairs, _) = job.exchange(|exchange| agree(exchange, connected.map(|pairs| (pairs, ()))))?;
    Ok(pairs)
}

fn prepare_all(job: &Job, peers: &[u32], depth: Depth) -> Result<(Vec<Prepared>, Vec<EndCard>)> {
    check_peers(job, peers)?;
    if !peers.is_empty() {
        job.require_nics()?;
    }
    let prepared: Vec<Prepared> =
        peers.iter().map(|&peer| prepare(job, peer, depth)).collect::<Result<_>>()?;
    let cards = peers.iter().zip(&prepared).map(|(&peer, end)| end_card(job, peer, end)).collect();
    Ok((prepared, cards))
}

fn check_peers(job: &Job, peers: &[u32]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for &peer in peers {
        let problem = if peer >= job.size() {
            format!("ranks are 0 to {}", job.size() - 1)
        } else if peer == job.rank() {
            "that is itself".to_owned()
        } else if !seen.insert(peer) {
            "it was named twice".to_owned()
        } else {
            continue;
        };
        return Err(Error::BadPeer { rank: job.rank(), peer, problem });
    }
    Ok(())
}

fn prepare(job: &Job, peer: u32, depth: Depth) -> Result<Prepared> {
    let (ours, theirs) = (job.card(job.rank()), job.card(peer));
    let (nic, peer_nic) = choose_nics(job, peer, ours, theirs)?;
    if ours.class() != theirs.class() {
        return Err(Error::ClassesDiffer {
            rank: job.rank(),
            ours: ours.class(),
            peer,
            node: job.node_of(peer).to_owned(),
            theirs: theirs.class(),
        });
    }
    let endpoint = job.endpoint(nic);
    let now = endpoint.now()?;
    let make = || {
        let entries = depth.send as usize + depth.receive as usize;
        let completions = CompletionQueue::create(endpoint.domain.context(), entries)?;
        let pair = VerbsPair::create(&endpoint.domain, &completions, depth)?;
        pair.initialize(endpoint.nic.port.port)?;
        Ok(pair)
    };
    let pair = make().map_err(|source| {
        let ends = ends(job, peer, nic, peer_nic);
        Error::Connect { from: ends.from, to: ends.to, source: Box::new(source) }
    })?;
    Ok(Prepared { nic, peer_nic, now, psn: random_psn()?, pair })
}

fn choose_nics(job: &Job, peer: u32, ours: &Card, theirs: &Card) -> Result<(usize, usize)> {
    let rank = job.rank();
    rail::choose_from(rank, &ours.rails(), peer, &theirs.rails()).ok_or_else(|| Error::NoSharedRail {
        rank,
        peer,
        ours: format!("{}: {}", job.node_of(rank), ours.describe()),
        theirs: format!("{}: {}", job.node_of(peer), theirs.describe()),
    })
}

fn end_card(job: &Job, peer: u32, end: &Prepared) -> EndCard {
    let limits = job.endpoint(end.nic).limits;
    EndCard {
        peer,
        nic: end.nic,
        qp_number: end.pair.number(),
        psn: end.psn,
        mtu: end.now.mtu.bytes(),
        initiator_depth: limits.max_initiator_depth.min(MOST_READS),
        responder_depth: limits.max_responder_depth.min(MOST_READS),
    }
}

fn bring_up(job: &Job, peer: u32, end: Prepared, told: &[Vec<EndCard>]) -> Result<QueuePair> {
    let endpoint = job.endpoint(end.nic);
    let bad = |problem: &str| Error::BadPeer { rank: job.rank(), peer, problem: problem.to_owned() };
    let theirs = told.get(peer as usize).into_iter().flatten().find(|theirs| theirs.peer == job.rank());
    let theirs = theirs.ok_or_else(|| {
        bad(&format!("it (on {}) did not name rank {} among its peers", job.node_of(peer), job.rank()))
    })?;
    if theirs.nic != end.peer_nic {
        return Err(bad("it chose another rail; do all ranks run the same build?"));
    }
    let their_mtu = Mtu::from_bytes(theirs.mtu).ok_or_else(|| bad("its MTU is none that RoCE has"))?;
    let mine = end_card(job, peer, &end);
    let remote_gid = job.card(peer).nics[end.peer_nic].gid();
    let assignment = job.require_nics()?;
    let connection = Connection {
        port: endpoint.nic.port.port,
        local_gid_index: end.now.gid_index,
        remote_gid,
        remote_qp_number: theirs.qp_number,
        local_psn: end.psn,
        remote_psn: theirs.psn & PSN_MASK,
        path_mtu: end.now.mtu.min(their_mtu),
        traffic_class: assignment.traffic_class,
        service_level: assignment.service_level,
        initiator_depth: mine.initiator_depth.min(theirs.responder_depth),
        responder_depth: mine.responder_depth.min(theirs.initiator_depth),
    };
    let ends = ends(job, peer, end.nic, end.peer_nic);
    match end.pair.connect(&connection) {
        Ok(readback) => Ok(QueuePair::new(end.pair, ends, Arc::clone(endpoint), connection, readback)),
        Err(source) => Err(Error::Connect { from: ends.from, to: ends.to, source: Box::new(source) }),
    }
}

fn ends(job: &Job, peer: u32, nic: usize, peer_nic: usize) -> Ends {
    let named =
        |rank: u32, nic: usize| format!("rank {rank} ({} {})", job.node_of(rank), job.card(rank).nics[nic]);
    Ends {
        peer,
        peer_node: job.node_of(peer).to_owned(),
        from: named(job.rank(), nic),
        to: named(peer, peer_nic),
    }
}

pub(crate) fn random_psn() -> Result<u32> {
    let random = getrandom::u32().map_err(|error| Error::Random { reason: error.to_string() })?;
    Ok(random & PSN_MASK)
}
