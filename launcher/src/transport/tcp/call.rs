//! Calling a peer: address by address, and again where it hung up before it knew who called.
//!
//! After the handshake of [`roce_bootstrap::handshake`] the listener says in one byte whether the connection stays. The caller
//! sends no packet before. So a connection that does not stay never carried any.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{getsockopt, sockopt};
use roce_bootstrap::handshake::{self, ANSWER, Caller};
use roce_bootstrap::tcp;

use super::shared::{Ear, Shared, read, say};

/// The connection stays.
pub(super) const WELCOME: u8 = 1;
/// The listener's own call to the caller stays instead.
pub(super) const YIELD: u8 = 2;

/// How long an address may be silent. It is the kernel there that answers, also while the rank computes.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the peer's own call may take, before it is called again.
const PATIENCE: Duration = Duration::from_secs(5);
/// After the peer hung up: the first pause, which doubles each time, and how often it may.
const PAUSE: Duration = Duration::from_millis(10);
const MOST_CLOSED: u32 = 9;

pub(super) struct Call {
    peer: u32,
    /// Where it may be; empty until the resolver has answered.
    addresses: Vec<IpAddr>,
    /// The one that is tried.
    place: usize,
    state: State,
    attempt: u16,
    /// How often the peer hung up.
    closed: u32,
    problems: Vec<String>,
}

enum State {
    /// For the resolver.
    Resolving,
    Connecting {
        socket: OwnedFd,
        until: Instant,
    },
    /// For the peer's proof.
    Answer {
        socket: OwnedFd,
        caller: Caller,
        got: Vec<u8>,
    },
    /// For the peer's word that the connection stays.
    Verdict {
        socket: OwnedFd,
        got: Vec<u8>,
    },
    /// Until then nothing is to be done.
    Pausing(Instant),
}

pub(super) enum Outcome {
    Wait,
    Up(OwnedFd),
    /// The peer can't be reached.
    Failed(String),
}

/// Why an attempt came to nothing.
enum Miss {
    /// Not at this address.
    Address(String),
    /// The peer hung up: it had too many callers, or had waited too long for this one.
    Closed(Option<Errno>),
}

impl Call {
    pub(super) fn new(peer: u32) -> Self {
        let (addresses, problems) = (Vec::new(), Vec::new());
        Self { peer, addresses, place: 0, state: State::Resolving, attempt: 0, closed: 0, problems }
    }

    /// Does what time has come for.
    pub(super) fn advance(&mut self, shared: &mut Shared, now: Instant) -> Outcome {
        match &self.state {
            State::Resolving => {
                let node = shared.nodes.get(shared.node_of(self.peer) as usize).map_or("?", String::as_str);
                match shared.lookup.of(node) {
                    None => Outcome::Wait,
                    Some(Ok(addresses)) => {
                        self.addresses = addresses;
                        self.attempt(shared, now)
                    }
                    Some(Err(why)) => Outcome::Failed(format!("its node's name has no address: {why}")),
                }
            }
            State::Pausing(until) if now >= *until => self.attempt(shared, now),
            State::Connecting { until, .. } if now >= *until => {
                let why = format!("no answer within {SILENCE:?}");
                self.missed(Miss::Address(why), shared, now)
            }
            _ => Outcome::Wait,
        }
    }

    /// Something happened on the socket of an attempt.
    pub(super) fn hear(&mut self, attempt: u16, shared: &mut Shared, now: Instant) -> Outcome {
        if attempt != self.attempt {
            return Outcome::Wait;
        }
        match std::mem::replace(&mut self.state, State::Pausing(now)) {
            State::Connecting { socket, .. } => self.connected(socket, shared, now),
            State::Answer { socket, caller, mut got } => match read(&socket, &mut got, ANSWER) {
                Ok(true) => self.answered(socket, &caller, &got, shared, now),
                Ok(false) => self.wait(State::Answer { socket, caller, got }),
                Err(error) => self.missed(Miss::Closed(error), shared, now),
            },
            State::Verdict { socket, mut got } => match read(&socket, &mut got, 1) {
                Ok(true) if got[0] == WELCOME => Outcome::Up(socket),
                Ok(true) if got[0] == YIELD => self.wait(State::Pausing(now + PATIENCE)),
                Ok(true) => self.missed(Miss::Address("it answers nonsense".to_owned()), shared, now),
                Ok(false) => self.wait(State::Verdict { socket, got }),
                Err(error) => self.missed(Miss::Closed(error), shared, now),
            },
            state => self.wait(state),
        }
    }

    fn wait(&mut self, state: State) -> Outcome {
        self.state = state;
        Outcome::Wait
    }

    /// Begins to connect to the next address.
    fn attempt(&mut self, shared: &mut Shared, now: Instant) -> Outcome {
        let Some(&address) = self.addresses.get(self.place) else {
            let problem = if self.problems.is_empty() {
                "its node has no address".to_owned()
            } else {
                self.problems.join("; ")
            };
            return Outcome::Failed(problem);
        };
        let port = shared.places.get(self.peer as usize).map_or(0, |place| place.port);
        self.attempt = self.attempt.wrapping_add(1);
        let called = tcp::call(SocketAddr::new(address, port)).and_then(|socket| {
            let ear = Ear::Call(self.peer, self.attempt);
            shared.epoll.add(&socket, ear.event(EpollFlags::EPOLLOUT))?;
            Ok(socket)
        });
        match called {
            Ok(socket) => self.wait(State::Connecting { socket, until: now + SILENCE }),
            Err(error) => self.missed(Miss::Address(describe(&error)), shared, now),
        }
    }

    fn connected(&mut self, socket: OwnedFd, shared: &mut Shared, now: Instant) -> Outcome {
        let error = getsockopt(&socket, sockopt::SocketError).unwrap_or(0);
        if error != 0 {
            let error = std::io::Error::from_raw_os_error(error);
            return self.missed(Miss::Address(describe(&error)), shared, now);
        }
        if tcp::is_connected_to_itself(&socket) {
            return self.missed(Miss::Address("nobody listens there".to_owned()), shared, now);
        }
        let Some(nonce) = handshake::nonce() else {
            return Outcome::Failed("no random bytes from the operating system".to_owned());
        };
        let caller = Caller::new(shared.call(shared.rank, self.peer), nonce);
        let mut event = Ear::Call(self.peer, self.attempt).event(EpollFlags::EPOLLIN);
        let begun = say(&socket, &caller.hello())
            .and_then(|()| shared.epoll.modify(&socket, &mut event).map_err(Some));
        match begun {
            Ok(()) => self.wait(State::Answer { socket, caller, got: Vec::new() }),
            Err(error) => self.missed(Miss::Closed(error), shared, now),
        }
    }

    fn answered(
        &mut self,
        socket: OwnedFd,
        caller: &Caller,
        answer: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Outcome {
        let checked = answer.try_into().ok().and_then(|answer| caller.check(&shared.secret, answer));
        match checked {
            Some((rank, last, _)) if rank == self.peer => match say(&socket, &last) {
                Ok(()) => self.wait(State::Verdict { socket, got: Vec::new() }),
                Err(error) => self.missed(Miss::Closed(error), shared, now),
            },
            _ => {
                let why = "whoever listens there can't prove to be that rank of this job".to_owned();
                self.missed(Miss::Address(why), shared, now)
            }
        }
    }

    fn missed(&mut self, miss: Miss, shared: &mut Shared, now: Instant) -> Outcome {
        let place = shared.places.get(self.peer as usize).map_or(0, |place| place.port);
        let target = self.addresses.get(self.place).map(|address| SocketAddr::new(*address, place));
        let target = target.map_or_else(|| "?".to_owned(), |target| target.to_string());
        match miss {
            Miss::Address(why) => {
                self.problems.push(format!("{target}: {why}"));
                self.place += 1;
                self.attempt(shared, now)
            }
            Miss::Closed(_) if self.closed < MOST_CLOSED => {
                let pause = PAUSE * 2u32.saturating_pow(self.closed);
                self.closed += 1;
                self.wait(State::Pausing(now + pause))
            }
            Miss::Closed(error) => {
                let how = error.map_or("hung up", Errno::desc);
                Outcome::Failed(format!("{target}: it answered {} calls, and then: {how}", self.closed + 1))
            }
        }
    }
}

fn describe(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |error| Errno::from_raw(error).desc().to_owned())
}
