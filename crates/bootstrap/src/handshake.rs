//! The handshake of two leaders, and of two ranks that send each other messages: both prove that they know the step's secret, and agree on keys for their frames.
//!
//! ```text
//! caller   -> listener   magic, caller's node, round, rank and nonce
//! listener -> caller     listener's rank and nonce, proof as "listener"
//! caller   -> listener   proof as "caller", and frames right behind it
//! ```
//! A proof is HMAC(secret, role, job, step, size, both nodes, round, both ranks, both nonces): a fresh nonce of its own on each side
//! makes a recorded proof useless, the role makes a reflected one useless, and whoever listens for another node or
//! another job can't give the right one.

use subtle::ConstantTimeEq;

use crate::frame::Direction;
use crate::secret::{Secret, authenticate};

/// Tells our protocol, and its version, from whatever else may call.
const MAGIC: &[u8; 8] = b"roce-x02";
const NONCE: usize = 32;
const PROOF: usize = 32;
/// What a caller says first.
pub const HELLO: usize = MAGIC.len() + 12 + NONCE;
/// What a listener answers.
pub const ANSWER: usize = 4 + NONCE + PROOF;
/// What the caller says then.
pub const LAST: usize = PROOF;

/// The step that both ends must belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The job's number.
    pub job: u32,
    /// The step's.
    pub step: u32,
    /// How many ranks.
    pub size: u32,
    /// On how many nodes.
    pub nodes: u32,
}

/// A connection as both ends must see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The step of both.
    pub step: Step,
    /// The caller's node.
    pub caller_node: u32,
    /// The node of the listener.
    pub listener_node: u32,
    /// What the call is for.
    pub round: u32,
    /// Who calls.
    pub caller_rank: u32,
}

struct Transcript {
    call: Call,
    listener_rank: u32,
    caller: [u8; NONCE],
    listener: [u8; NONCE],
}

impl Transcript {
    fn derive(&self, secret: &Secret, label: &str) -> [u8; PROOF] {
        let Call { step, caller_node, listener_node, round, caller_rank } = self.call;
        let of_step = [step.job, step.step, step.size, step.nodes];
        let of_call = [caller_node, listener_node, round, caller_rank];
        let numbers = [of_step, of_call].concat().into_iter().flat_map(u32::to_be_bytes).collect::<Vec<_>>();
        let rank = self.listener_rank.to_be_bytes();
        authenticate(
            secret.bytes(),
            &[MAGIC, label.as_bytes(), &numbers, &rank, &self.caller, &self.listener],
        )
    }

    fn is_proof(&self, secret: &Secret, label: &str, proof: &[u8]) -> bool {
        bool::from(self.derive(secret, label).ct_eq(proof))
    }

    fn keys(&self, secret: &Secret) -> [Direction; 2] {
        ["key caller to listener", "key listener to caller"]
            .map(|label| Direction::new(self.derive(secret, label)))
    }
}

/// The two directions of a proven connection, as one end sees them.
pub struct Keys {
    pub(crate) send: Direction,
    pub(crate) receive: Direction,
}

/// The caller's side.
pub struct Caller {
    call: Call,
    nonce: [u8; NONCE],
}

impl Caller {
    /// For a call with a fresh [`nonce`].
    #[must_use]
    pub fn new(call: Call, nonce: [u8; NONCE]) -> Self {
        Self { call, nonce }
    }

    /// What to send first.
    pub fn hello(&self) -> [u8; HELLO] {
        let mut hello = [0; HELLO];
        hello[..8].copy_from_slice(MAGIC);
        hello[8..12].copy_from_slice(&self.call.caller_node.to_be_bytes());
        hello[12..16].copy_from_slice(&self.call.round.to_be_bytes());
        hello[16..20].copy_from_slice(&self.call.caller_rank.to_be_bytes());
        hello[20..].copy_from_slice(&self.nonce);
        hello
    }

    /// The listener's rank, what to send then, and the keys; `None` if the listener is a stranger.
    pub fn check(&self, secret: &Secret, answer: &[u8; ANSWER]) -> Option<(u32, [u8; LAST], Keys)> {
        let (&rank, rest) = answer.split_first_chunk()?;
        let (&listener, proof) = rest.split_first_chunk()?;
        let listener_rank = u32::from_be_bytes(rank);
        let transcript = Transcript { call: self.call, listener_rank, caller: self.nonce, listener };
        if !transcript.is_proof(secret, "listener", proof) {
            return None;
        }
        let [send, receive] = transcript.keys(secret);
        Some((listener_rank, transcript.derive(secret, "caller"), Keys { send, receive }))
    }
}

#[cfg(feature = "testing")]
impl Caller {
    /// What a caller would send to this answer who believes anything.
    pub(crate) fn last_words(&self, secret: &Secret, answer: &[u8; ANSWER]) -> [u8; LAST] {
        let (mut rank, mut listener) = ([0; 4], [0; NONCE]);
        rank.copy_from_slice(&answer[..4]);
        listener.copy_from_slice(&answer[4..4 + NONCE]);
        let listener_rank = u32::from_be_bytes(rank);
        Transcript { call: self.call, listener_rank, caller: self.nonce, listener }.derive(secret, "caller")
    }
}

/// The listener's side, once a caller has said who it wants to be.
pub struct Listener {
    transcript: Transcript,
}

impl Listener {
    /// Reads a hello for the listener on `node`; `None` if it can't be one.
    pub fn new(step: Step, node: u32, rank: u32, nonce: [u8; NONCE], hello: &[u8; HELLO]) -> Option<Self> {
        let rest = hello.strip_prefix(MAGIC)?;
        let (&caller_node, rest) = rest.split_first_chunk()?;
        let (&round, rest) = rest.split_first_chunk()?;
        let (&caller_rank, rest) = rest.split_first_chunk()?;
        let (&caller, _) = rest.split_first_chunk()?;
        let [caller_node, round, caller_rank] = [caller_node, round, caller_rank].map(u32::from_be_bytes);
        let call = Call { step, caller_node, listener_node: node, round, caller_rank };
        Some(Self { transcript: Transcript { call, listener_rank: rank, caller, listener: nonce } })
    }

    /// Who calls, if it is true.
    pub fn call(&self) -> Call {
        self.transcript.call
    }

    /// What to answer.
    pub fn answer(&self, secret: &Secret) -> [u8; ANSWER] {
        let mut answer = [0; ANSWER];
        answer[..4].copy_from_slice(&self.transcript.listener_rank.to_be_bytes());
        answer[4..4 + NONCE].copy_from_slice(&self.transcript.listener);
        answer[4 + NONCE..].copy_from_slice(&self.transcript.derive(secret, "listener"));
        answer
    }

    /// The keys; `None` if the caller is a stranger.
    pub fn check(&self, secret: &Secret, last: &[u8; LAST]) -> Option<Keys> {
        if !self.transcript.is_proof(secret, "caller", last) {
            return None;
        }
        let [receive, send] = self.transcript.keys(secret);
        Some(Keys { send, receive })
    }
}

/// Random bytes for one handshake.
pub fn nonce() -> Option<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).ok()?;
    Some(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step { job: 7, step: 0, size: 4, nodes: 2 };
    const CALL: Call = Call { step: STEP, caller_node: 0, listener_node: 1, round: 0, caller_rank: 2 };

    fn transcript() -> Transcript {
        Transcript { call: CALL, listener_rank: 3, caller: [1; 32], listener: [2; 32] }
    }

    #[test]
    fn both_ends_agree_on_keys() {
        let secret = Secret::new([9; 32]);
        let caller = Caller::new(CALL, [1; 32]);
        let listener = Listener::new(STEP, 1, 3, [2; 32], &caller.hello()).unwrap();
        assert_eq!(listener.call(), CALL);
        let (rank, last, mut keys) = caller.check(&secret, &listener.answer(&secret)).unwrap();
        let mut theirs = listener.check(&secret, &last).unwrap();
        assert_eq!(rank, 3);
        let frame = keys.send.seal(b"x").unwrap();
        let (tag, _) = frame[5..].split_first_chunk().unwrap();
        assert!(theirs.receive.open(b"x", tag));
        assert!(!keys.receive.open(b"x", tag), "it came back to its sender");
    }

    #[test]
    fn strangers_prove_nothing() {
        let secret = Secret::new([9; 32]);
        let caller = Caller::new(CALL, [1; 32]);
        let listener = Listener::new(STEP, 1, 3, [2; 32], &caller.hello()).unwrap();
        let answer = listener.answer(&secret);
        assert!(caller.check(&Secret::new([8; 32]), &answer).is_none(), "another secret");
        for place in 0..ANSWER {
            let mut changed = answer;
            changed[place] ^= 1;
            assert!(caller.check(&secret, &changed).is_none(), "byte {place}");
        }
        let other = Listener::new(STEP, 2, 3, [2; 32], &caller.hello()).unwrap();
        assert!(caller.check(&secret, &other.answer(&secret)).is_none(), "another node's listener");
        let (_, last, _) = caller.check(&secret, &answer).unwrap();
        let later = Listener::new(STEP, 1, 3, [4; 32], &caller.hello()).unwrap();
        assert!(later.check(&secret, &last).is_none(), "a proof of an earlier call");
        let reflected = *answer[36..].first_chunk().unwrap();
        assert!(listener.check(&secret, &reflected).is_none(), "its own proof");
        let mut hello = caller.hello();
        hello[0] ^= 1;
        assert!(Listener::new(STEP, 1, 3, [2; 32], &hello).is_none());
    }

    #[test]
    fn a_proof_is_for_everything_that_both_must_agree_on() {
        let secret = Secret::new([9; 32]);
        let proof = transcript().derive(&secret, "caller");
        let changes: [fn(&mut Transcript); 11] = [
            |t| t.call.step.job = 8,
            |t| t.call.step.step = 1,
            |t| t.call.step.size = 5,
            |t| t.call.step.nodes = 5,
            |t| t.call.caller_node = 5,
            |t| t.call.listener_node = 5,
            |t| t.call.round = 5,
            |t| t.call.caller_rank = 5,
            |t| t.listener_rank = 5,
            |t| t.caller = [3; 32],
            |t| t.listener = [3; 32],
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = transcript();
            change(&mut other);
            assert!(!other.is_proof(&secret, "caller", &proof), "change {i}");
        }
        assert!(!transcript().is_proof(&secret, "listener", &proof));
    }
}
