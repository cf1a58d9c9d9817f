//! Whoever called and has not proven yet to be a rank of this job.

use std::os::fd::OwnedFd;
use std::time::Instant;

use roce_bootstrap::handshake::{self, HELLO, LAST, Listener};

use super::shared::{Shared, read, say};

pub(super) struct Stranger {
    pub(super) socket: OwnedFd,
    /// When it came.
    pub(super) since: Instant,
    /// What was answered to its hello.
    listener: Option<Listener>,
    got: Vec<u8>,
}

pub(super) enum Outcome {
    Wait,
    Refused,
    /// It is this rank.
    Proven(u32),
}

impl Stranger {
    pub(super) fn new(socket: OwnedFd, since: Instant) -> Self {
        Self { socket, since, listener: None, got: Vec::new() }
    }

    /// Something has come from it. Never more of it is kept than it has to say.
    pub(super) fn hear(&mut self, shared: &Shared) -> Outcome {
        loop {
            let want = if self.listener.is_none() { HELLO } else { LAST };
            match read(&self.socket, &mut self.got, want) {
                Ok(true) => {}
                Ok(false) => return Outcome::Wait,
                Err(_) => return Outcome::Refused,
            }
            let got = std::mem::take(&mut self.got);
            match &self.listener {
                None => match self.answer(shared, &got) {
                    Some(listener) => self.listener = Some(listener),
                    None => return Outcome::Refused,
                },
                Some(listener) => {
                    let proof = got.as_slice().try_into().ok();
                    let proven = proof.and_then(|proof| listener.check(&shared.secret, proof));
                    let peer = listener.call().caller_rank;
                    return proven.map_or(Outcome::Refused, |_| Outcome::Proven(peer));
                }
            }
        }
    }

    fn answer(&self, shared: &Shared, hello: &[u8]) -> Option<Listener> {
        let nonce = handshake::nonce()?;
        let node = shared.node_of(shared.rank);
        let listener = Listener::new(shared.step(), node, shared.rank, nonce, hello.try_into().ok()?)?;
        let caller = listener.call().caller_rank;
        let is_another = caller != shared.rank && (caller as usize) < shared.places.len();
        if !is_another || listener.call() != shared.call(caller, shared.rank) {
            return None;
        }
        say(&self.socket, &listener.answer(&shared.secret)).ok()?;
        Some(listener)
    }
}

#[cfg(test)]
impl Stranger {
    pub(super) fn is_answered(&self) -> bool {
        self.listener.is_some()
    }
}
