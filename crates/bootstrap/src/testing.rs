//! What fuzz targets and soaks need of the inside. With the feature `testing` alone, and no part of the API.

mod launchers;

use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Instant;

use crate::counters::Counters;
use crate::discovery::{Identity, Launch};
use crate::frame::{Direction, HEADER, TAG, payload_length};
use crate::handshake::{ANSWER, Call, Caller, HELLO, LAST, Listener, Step};
use crate::inbox::Inbox;
use crate::local::{self, Met};
use crate::message::{FromMember, ToMember};
use crate::secret::Secret;
use crate::stream::Stream;
use crate::table::{self, Gathered};

pub use launchers::{hear_pmi, hear_pmix, hear_variables};

const STEP: Step = Step { job: 7, step: 0, size: 4, nodes: 4 };
const NODE: u32 = 1;
const RANK: u32 = 2;

/// The ports that the leader of a node of a job's first step tries.
#[must_use]
pub fn candidate_ports(secret: &Secret, job: u32, node: u32, ports: &RangeInclusive<u16>) -> Vec<u16> {
    secret.candidate_ports(job, 0, node, ports)
}

/// What a caller says first: the leader of `node`, which calls another for `round`.
#[must_use]
pub fn hello(node: u32, round: u32, rank: u32, nonce: [u8; 32]) -> [u8; HELLO] {
    caller(STEP, node, 0, round, rank, nonce).hello()
}

/// What a caller of the first step of `job`, which is of `size` ranks on `nodes` nodes, says to an answer to its
/// [`hello`], whatever that is.
#[must_use]
pub fn last_words(
    secret: &Secret,
    (job, size, nodes): (u32, u32, u32),
    [caller_node, listener_node, round, rank]: [u32; 4],
    nonce: [u8; 32],
    answer: &[u8; ANSWER],
) -> [u8; LAST] {
    let step = Step { job, step: 0, size, nodes };
    caller(step, caller_node, listener_node, round, rank, nonce).last_words(secret, answer)
}

fn caller(
    step: Step,
    caller_node: u32,
    listener_node: u32,
    round: u32,
    rank: u32,
    nonce: [u8; 32],
) -> Caller {
    Caller::new(Call { step, caller_node, listener_node, round, caller_rank: rank }, nonce)
}

/// Bytes as a caller's hello and last words. Whether it was admitted, and whether it should be.
#[must_use]
pub fn hear_caller(secret: &Secret, bytes: &[u8]) -> (bool, bool) {
    let mut inbox = Inbox::default();
    inbox.add(bytes);
    let Some(hello) = inbox.take::<HELLO>() else { return (false, false) };
    let Some(listener) = Listener::new(STEP, NODE, RANK, [3; 32], &hello) else { return (false, false) };
    let Some(last) = inbox.take::<LAST>() else { return (false, false) };
    let call = listener.call();
    let nonce = *hello.last_chunk().unwrap_or(&[0; 32]);
    let right = Caller::new(call, nonce).last_words(secret, &listener.answer(secret));
    (listener.check(secret, &last).is_some(), last == right)
}

/// Bytes as a listener's answer. Whether it was believed, and whether it should be.
#[must_use]
pub fn hear_listener(secret: &Secret, bytes: &[u8]) -> (bool, bool) {
    let Some(answer) = bytes.first_chunk::<ANSWER>() else { return (false, false) };
    let caller = caller(STEP, 0, NODE, 0, 0, [4; 32]);
    let (Some(&rank), Some(&nonce)) = (answer.first_chunk(), answer[4..].first_chunk()) else {
        return (false, false);
    };
    let listener = Listener::new(STEP, NODE, u32::from_be_bytes(rank), nonce, &caller.hello());
    let right = listener.map(|listener| listener.answer(secret));
    (caller.check(secret, answer).is_some(), right.as_ref() == Some(answer))
}

/// Bytes as a rank's hello to its leader. Who it was taken for, and who says the same.
#[must_use]
pub fn hear_rank(secret: &Secret, bytes: &[u8]) -> (Option<(u32, u32)>, bool) {
    let Some(said) = bytes.first_chunk::<{ local::HELLO }>() else { return (None, false) };
    let mut here = Identity::alone("here");
    here.launch = Launch::Slurm { job: STEP.job, step: STEP.step };
    let found = local::check(&here, secret, said);
    let right = found.is_some_and(|(rank, local_rank)| {
        (here.rank, here.local_rank) = (rank, local_rank);
        local::hello(&here, secret) == *said
    });
    (found, right)
}

/// Bytes as they come over a connection, in pieces: the authentic frames among them, until one is not.
#[must_use]
pub fn hear_frames(key: [u8; 32], pieces: &[&[u8]], most: usize) -> Vec<Vec<u8>> {
    let (mut inbox, mut direction, mut frames) = (Inbox::default(), Direction::new(key), Vec::new());
    for piece in pieces {
        inbox.add(piece);
        loop {
            match inbox.frame(most, TAG) {
                Ok(None) => break,
                Err(_) => return frames,
                Ok(Some(frame)) => match frame.split_last_chunk() {
                    Some((payload, tag)) if direction.open(payload, tag) => frames.push(payload.to_vec()),
                    _ => return frames,
                },
            }
        }
        assert!(inbox.len() < HEADER + most + TAG, "a whole frame waits");
    }
    frames
}

/// The frames of some payloads.
#[must_use]
pub fn frames(key: [u8; 32], payloads: &[&[u8]]) -> Vec<u8> {
    let mut direction = Direction::new(key);
    payloads.iter().filter_map(|payload| direction.seal(payload)).flatten().collect()
}

/// Bytes as a collective's table, if they are one of `count` parts.
#[must_use]
pub fn read_table(bytes: Vec<u8>, count: usize) -> Option<Gathered> {
    Gathered::own(bytes, count).ok()
}

/// The leader of a node of many ranks, of which only one is there.
#[derive(Debug)]
pub struct SimulatedLeader {
    listener: UnixListener,
    identity: Identity,
    secret: Secret,
}

impl SimulatedLeader {
    /// Takes the place of the leader of a node, where all ranks of this identity's step are.
    ///
    /// # Errors
    /// Somebody else leads there.
    pub fn start(identity: &Identity, secret: &Secret) -> io::Result<Self> {
        match local::meet(identity, secret, Instant::now())? {
            Met::Leader(listener) => {
                Ok(Self { listener, identity: identity.clone(), secret: secret.clone() })
            }
            Met::Member(..) => Err(io::ErrorKind::AddrInUse.into()),
        }
    }

    /// Takes one rank in, whose first two collectives it answers for all ranks, as if these had given 64 bytes to the second. Maps the
    /// results as another rank would.
    ///
    /// # Errors
    /// The rank does something else.
    pub fn serve(&self) -> io::Result<(UnixStream, Vec<Gathered>)> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let (mut socket, _) = self.listener.accept()?;
        let mut hello = [0; local::HELLO];
        socket.read_exact(&mut hello)?;
        local::check(&self.identity, &self.secret, &hello).ok_or_else(bad)?;
        let mut results = Vec::new();
        for number in 0..2 {
            let mut header = [0; HEADER];
            socket.read_exact(&mut header)?;
            let mut payload = vec![0; payload_length(header, 1 << 16).map_err(|_| bad())?];
            socket.read_exact(&mut payload)?;
            let said = FromMember::decode(&payload).map_err(|_| bad())?;
            if !matches!(said, FromMember::Part { number: theirs, .. } if theirs == number) {
                return Err(bad());
            }
            let part = |rank: u32| match number {
                0 => [self.identity.node_index, rank].map(u32::to_be_bytes).concat(),
                _ => vec![rank.to_be_bytes()[3]; 64],
            };
            let parts: Vec<Vec<u8>> = (0..self.identity.size).map(part).collect();
            let file = table::seal(&table::encode(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))?;
            let result = Gathered::map(&file, parts.len())?;
            // A page that only one process has touched is counted as its own.
            std::hint::black_box(result.iter().flatten().map(|byte| u64::from(*byte)).sum::<u64>());
            results.push(result);
            let done =
                ToMember::Done { number, leader: 0, table: true, counters: Counters::default() }.encode();
            let length = u32::try_from(done.len()).map_err(|_| bad())?.to_be_bytes();
            let mut stream = Stream::new(socket.try_clone()?.into());
            stream.queue([&length[..], &done].concat().into(), Some(Rc::new(file)));
            stream.flush()?;
        }
        Ok((socket, results))
    }
}
