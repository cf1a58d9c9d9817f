//! The handshake: both ends prove that they know the step's secret, and agree on keys for their frames.
//!
//! ```text
//! caller   -> listener   magic, rank, caller's nonce
//! listener -> caller     listener's nonce, proof as "listener"
//! caller   -> listener   proof as "caller"
//! listener -> caller     proof as "welcome": now the caller counts as joined
//! ```
//! A proof is HMAC(secret, role, job, step, size, rank, both nonces): a fresh nonce of its own on each side makes a
//! recorded proof useless, the role makes a reflected one useless.

use std::time::Instant;

use subtle::ConstantTimeEq;

use crate::channel::Wire;
use crate::error::{Error, Result};
use crate::frame::Direction;
use crate::secret::{Secret, authenticate};

/// Tells our protocol, and its version, from whatever else may call.
const MAGIC: &[u8; 8] = b"roce-x01";
const NONCE: usize = 32;
const PROOF: usize = 32;
const HELLO: usize = MAGIC.len() + 4 + NONCE;

/// The step that both ends must belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) job: u32,
    pub(crate) step: u32,
    pub(crate) size: u32,
}

/// Everything that both ends must agree on.
struct Transcript {
    step: Step,
    rank: u32,
    caller: [u8; NONCE],
    listener: [u8; NONCE],
}

impl Transcript {
    fn derive(&self, secret: &Secret, label: &str) -> [u8; PROOF] {
        let numbers =
            [self.step.job, self.step.step, self.step.size, self.rank].map(u32::to_be_bytes).concat();
        authenticate(secret.bytes(), &[MAGIC, label.as_bytes(), &numbers, &self.caller, &self.listener])
    }

    fn check(&self, secret: &Secret, label: &str, proof: &[u8; PROOF]) -> Result<()> {
        let authentic = bool::from(self.derive(secret, label).ct_eq(proof));
        if authentic { Ok(()) } else { Err(Error::NotAuthentic) }
    }

    fn to_listener(&self, secret: &Secret) -> Direction {
        Direction::new(self.derive(secret, "key caller to listener"))
    }

    fn to_caller(&self, secret: &Secret) -> Direction {
        Direction::new(self.derive(secret, "key listener to caller"))
    }
}

/// The two directions of a proven connection, as one end sees them.
pub(crate) struct Keys {
    pub(crate) send: Direction,
    pub(crate) receive: Direction,
}

/// The caller's side. Until the listener has proven itself the wait ends at `attempt`; after that, this is rank 0,
/// and its welcome is waited for until `deadline`.
pub(crate) fn call(
    wire: &mut Wire,
    secret: &Secret,
    step: Step,
    rank: u32,
    attempt: Instant,
    deadline: Instant,
) -> Result<Keys> {
    let caller = nonce()?;
    let hello = [&MAGIC[..], &rank.to_be_bytes(), &caller].concat();
    wire.write(&hello, attempt).map_err(broken)?;
    let mut answer = [0; NONCE + PROOF];
    wire.read(&mut answer, attempt).map_err(broken)?;
    let (&listener, proof) = answer.split_first_chunk().ok_or(Error::NotAuthentic)?;
    let transcript = Transcript { step, rank, caller, listener };
    transcript.check(secret, "listener", proof.try_into().map_err(|_| Error::NotAuthentic)?)?;
    wire.write(&transcript.derive(secret, "caller"), deadline).map_err(broken)?;
    let mut welcome = [0; PROOF];
    wire.read(&mut welcome, deadline).map_err(broken)?;
    transcript.check(secret, "welcome", &welcome)?;
    Ok(Keys { send: transcript.to_listener(secret), receive: transcript.to_caller(secret) })
}

/// The listener's side: which rank called, if it proved it.
pub(crate) fn answer(wire: &mut Wire, secret: &Secret, step: Step, deadline: Instant) -> Result<(u32, Keys)> {
    let mut hello = [0; HELLO];
    wire.read(&mut hello, deadline).map_err(broken)?;
    let rest = hello.strip_prefix(MAGIC).ok_or(Error::NotAuthentic)?;
    let (&rank, rest) = rest.split_first_chunk().ok_or(Error::NotAuthentic)?;
    let (&caller, _) = rest.split_first_chunk().ok_or(Error::NotAuthentic)?;
    let rank = u32::from_be_bytes(rank);
    if !(1..step.size).contains(&rank) {
        return Err(Error::NotAuthentic);
    }
    let listener = nonce()?;
    let transcript = Transcript { step, rank, caller, listener };
    let reply = [listener, transcript.derive(secret, "listener")].concat();
    wire.write(&reply, deadline).map_err(broken)?;
    let mut proof = [0; PROOF];
    wire.read(&mut proof, deadline).map_err(broken)?;
    transcript.check(secret, "caller", &proof)?;
    wire.write(&transcript.derive(secret, "welcome"), deadline).map_err(broken)?;
    Ok((rank, Keys { send: transcript.to_caller(secret), receive: transcript.to_listener(secret) }))
}

fn nonce() -> Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|error| Error::Random(error.to_string()))?;
    Ok(nonce)
}

fn broken(source: std::io::Error) -> Error {
    Error::Socket { what: "the handshake", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript() -> Transcript {
        Transcript { step: Step { job: 7, step: 0, size: 4 }, rank: 2, caller: [1; 32], listener: [2; 32] }
    }

    #[test]
    fn a_proof_is_for_one_role_job_step_size_rank_and_pair_of_nonces() {
        let secret = Secret::new([9; 32]);
        let proof = transcript().derive(&secret, "caller");
        assert!(transcript().check(&secret, "caller", &proof).is_ok());
        assert!(transcript().check(&secret, "listener", &proof).is_err(), "reflected");
        assert!(transcript().check(&Secret::new([8; 32]), "caller", &proof).is_err(), "wrong secret");
        let changes: [fn(&mut Transcript); 6] = [
            |t| t.step.job = 8,
            |t| t.step.step = 1,
            |t| t.step.size = 5,
            |t| t.rank = 3,
            |t| t.caller = [3; 32],
            |t| t.listener = [3; 32],
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = transcript();
            change(&mut other);
            assert!(other.check(&secret, "caller", &proof).is_err(), "change {i}");
        }
    }

    #[test]
    fn each_direction_has_its_own_key() {
        let secret = Secret::new([9; 32]);
        let frame = transcript().to_caller(&secret).seal(b"x").unwrap();
        assert_ne!(frame, transcript().to_listener(&secret).seal(b"x").unwrap());
    }
}
