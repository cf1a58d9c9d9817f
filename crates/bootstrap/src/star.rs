//! The shape of the exchange: rank 0 in the middle, one connection to every other rank.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::authentication::{self, Step};
use crate::bootstrap::Options;
use crate::channel::{Channel, Wire};
use crate::discovery::Identity;
use crate::error::{Error, Result};

use crate::secret::Secret;

/// Callers whose proof is awaited at the same time; more are turned away and may try again.
const MOST_HANDSHAKES: usize = 512;
/// Pause of the accept loop when nobody calls.
const ACCEPT_PAUSE: Duration = Duration::from_millis(1);
/// How long a caller waits for a candidate port to prove itself in the first round; doubled in each round.
const FIRST_ATTEMPT: Duration = Duration::from_millis(500);
/// Pauses between a caller's rounds.
const ROUND_PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_millis(200);

/// One rank's connections.
pub(crate) enum Star {
    /// Rank 0: ranks 1, 2, ... in order.
    Root(Vec<Channel>),
    /// Any other rank: rank 0.
    Leaf(Box<Channel>),
}

impl Star {
    /// Meets the other ranks, at the latest at `deadline`.
    pub(crate) fn join(
        identity: &Identity,
        secret: &Secret,
        options: &Options,
        deadline: Instant,
    ) -> Result<Self> {
        if identity.rank == 0 {
            let listener = listen(identity, secret, options)?;
            collect(&listener, identity, secret, options, deadline).map(Self::Root)
        } else {
            call(identity, secret, options, deadline).map(|channel| Self::Leaf(Box::new(channel)))
        }
    }
}

fn step_of(identity: &Identity) -> Step {
    let (job, step) = identity.job_and_step();
    Step { job, step, size: identity.size }
}

/// Binds the first candidate port that is free: on every address, or on loopback where all ranks are on one node.
fn listen(identity: &Identity, secret: &Secret, options: &Options) -> Result<TcpListener> {
    let (job, step) = identity.job_and_step();
    let ports = secret.candidate_ports(job, step, &options.ports);
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for &port in &ports {
        let bound = if identity.nodes.len() == 1 {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        } else {
            // An IPv6 socket takes IPv4 callers too (unless net.ipv6.bindv6only is set); where IPv6 is off, IPv4.
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.kind() {
                ErrorKind::AddrInUse => Err(error),
                _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
            })
        };
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    Err(Error::Listen { node: identity.node_name().to_owned(), ports, source: last })
}

/// Takes calls until every rank has proven itself. Each caller has a thread of its own until then, so a silent
/// stranger delays nobody.
fn collect(
    listener: &TcpListener,
    identity: &Identity,
    secret: &Secret,
    options: &Options,
    deadline: Instant,
) -> Result<Vec<Channel>> {
    let start = Instant::now();
    listener.set_nonblocking(true).map_err(|source| Error::Socket { what: "listening", source })?;
    let (sender, receiver) = mpsc::channel::<Result<Channel>>();
    let busy = Arc::new(AtomicUsize::new(0));
    let mut joined: Vec<Option<Channel>> = (1..identity.size).map(|_| None).collect();
    let mut refused = 0;
    loop {
        for outcome in receiver.try_iter() {
            match outcome {
                // A rank that calls twice gave up its first call.
                Ok(channel) => {
                    let place = channel.rank() as usize - 1;
                    joined[place] = Some(channel);
                }
                Err(_) => refused += 1,
            }
        }
        if joined.iter().all(Option::is_some) {
            return Ok(joined.into_iter().flatten().collect());
        }
        if Instant::now() >= deadline {
            let error = not_joined(&joined, start, refused);
            let reason = error.to_string();
            crate::bootstrap::abort(joined.iter_mut().flatten(), &reason);
            return Err(error);
        }
        match listener.accept() {
            Ok((stream, _)) if busy.load(Ordering::Relaxed) < MOST_HANDSHAKES => {
                let (sender, secret, busy) = (sender.clone(), secret.clone(), Arc::clone(&busy));
                let (step, limit) = (step_of(identity), deadline.min(Instant::now() + options.handshake));
                busy.fetch_add(1, Ordering::Relaxed);
                let counted = Arc::clone(&busy);
                let spawned = thread::Builder::new().name("handshake".to_owned()).spawn(move || {
                    let outcome = welcome(stream, &secret, step, limit);
                    busy.fetch_sub(1, Ordering::Relaxed);
                    // Nobody listens any more once every rank has joined.
                    let _ = sender.send(outcome);
                });
                if spawned.is_err() {
                    // The connection is closed; the caller tries again.
                    counted.fetch_sub(1, Ordering::Relaxed);
                }
            }
            // Turned away, or gone before we looked.
            Ok(_) => {}
            Err(_) => thread::sleep(ACCEPT_PAUSE),
        }
    }
}

fn welcome(stream: TcpStream, secret: &Secret, step: Step, deadline: Instant) -> Result<Channel> {
    let mut wire = Wire::new(stream).map_err(|source| Error::Socket { what: "taking a call", source })?;
    let (rank, keys) = authentication::answer(&mut wire, secret, step, deadline)?;
    Ok(Channel::new(wire, keys, rank, "?"))
}

fn not_joined(joined: &[Option<Channel>], start: Instant, refused: usize) -> Error {
    let missing = (1..).zip(joined).filter(|(_, channel)| channel.is_none()).map(|(rank, _)| (rank, None));
    let refused = match refused {
        0 => String::new(),
        1 => ", and 1 caller did not prove that it knows this step's secret".to_owned(),
        many => format!(", and {many} callers did not prove that they know this step's secret"),
    };
    Error::Missing {
        ranks: crate::bootstrap::list_ranks(missing),
        what: "join",
        waited: start.elapsed(),
        refused,
    }
}

/// Calls rank 0: every candidate port in turn, again and again.
fn call(identity: &Identity, secret: &Secret, options: &Options, deadline: Instant) -> Result<Channel> {
    let start = Instant::now();
    let rank = identity.rank;
    let root = if identity.nodes.len() == 1 { "127.0.0.1" } else { identity.root_name() };
    let (job, step) = identity.job_and_step();
    let ports = secret.candidate_ports(job, step, &options.ports);
    let addresses = options.addresses()?;
    let mut tried = Tried::new();
    let mut attempt = FIRST_ATTEMPT;
    let mut pause = *ROUND_PAUSE.start();
    loop {
        let node = identity.root_name().to_owned();
        // Asked anew in each round: a name may become known while nodes boot.
        let found = addresses.of(root, deadline);
        if let Ok(addresses) = &found {
            for &port in &ports {
                for &address in addresses {
                    let target = SocketAddr::new(address, port);
                    match call_one(target, identity, secret, attempt.min(options.handshake), deadline) {
                        Ok(channel) => return Ok(channel),
                        Err(error) => note(&mut tried, target, &error),
                    }
                }
            }
        }
        if Instant::now() + pause >= deadline {
            return Err(match found {
                Err(reason) => Error::Resolve { rank, node, reason },
                Ok(_) => Error::NoRoot { rank, node, waited: start.elapsed(), tried: summary(&tried) },
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(*ROUND_PAUSE.end());
        attempt = attempt.saturating_mul(2);
    }
}

fn call_one(
    target: SocketAddr,
    identity: &Identity,
    secret: &Secret,
    attempt: Duration,
    deadline: Instant,
) -> Result<Channel> {
    let connecting = |source| Error::Socket { what: "connecting", source };
    let until = deadline.min(Instant::now() + attempt);
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(connecting(ErrorKind::TimedOut.into()));
    }
    let stream = TcpStream::connect_timeout(&target, left).map_err(connecting)?;
    // On loopback, calling a free port can connect a socket to itself when the kernel gives it that very port.
    if stream.local_addr().map_err(connecting)? == target {
        return Err(connecting(ErrorKind::ConnectionRefused.into()));
    }
    let mut wire = Wire::new(stream).map_err(connecting)?;
    let keys = authentication::call(&mut wire, secret, step_of(identity), identity.rank, until, deadline)?;
    Ok(Channel::new(wire, keys, 0, identity.root_name()))
}

/// What each candidate answered, and whether that was somebody who did not prove himself.
type Tried = BTreeMap<SocketAddr, (bool, String)>;

/// Keeps a candidate's last answer, but a failed proof rather than the refusals after it: it tells more.
fn note(tried: &mut Tried, target: SocketAddr, error: &Error) {
    let answer = match error {
        Error::Socket { source, .. } => (false, source.to_string()),
        other => (true, other.to_string()),
    };
    let kept = tried.entry(target).or_insert_with(|| answer.clone());
    if answer.0 || !kept.0 {
        *kept = answer;
    }
}

/// The answers with the ports that gave them, so that 16 refused ports read as one.
fn summary(tried: &Tried) -> String {
    let mut by_answer: BTreeMap<(IpAddr, &str), Vec<String>> = BTreeMap::new();
    for (target, (_, answer)) in tried {
        by_answer.entry((target.ip(), answer)).or_default().push(target.port().to_string());
    }
    let one = |((address, answer), ports): (&(IpAddr, &str), &Vec<String>)| {
        format!("{address} ports {}: {answer}", ports.join(","))
    };
    by_answer.iter().map(one).collect::<Vec<_>>().join("; ")
}
