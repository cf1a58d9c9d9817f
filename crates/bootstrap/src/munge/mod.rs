//! A secret for ranks whose launcher brings none, by munge, which a cluster with Slurm has.
//!
//! The first rank of the first node makes a secret, seals it into a credential that only processes of its own user can
//! open, on any node with the cluster's munge key, and hands that to whoever calls. The others call, open it, and look
//! whether it is of their own user, and of their own job and step. docs/decisions/012-secret-by-munge.md says why so.

mod give;
mod library;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::discovery::Identity;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::resolve::NodeAddresses;
use crate::secret::Secret;
use crate::tcp;

pub(crate) use give::Giver;
use library::Munge;

/// Where munge listens, if not where its library looks.
pub(crate) const SOCKET_VARIABLE: &str = "ROCE_MUNGE_SOCKET";
/// What the payload begins with.
const PURPOSE: &[u8] = b"roce-launch secret 1";
/// With job, step, number of ranks and the secret.
const PAYLOAD: usize = PURPOSE.len() + 3 * 4 + 32;
/// No credential with such a payload is longer.
const LONGEST: u64 = 4096;
/// How long a candidate may take in the first round; doubled in each.
const FIRST_ATTEMPT: Duration = Duration::from_millis(200);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(3);
/// Between two rounds.
const PAUSE: RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(200);

/// Agrees on a secret with the other ranks of this step. Keep the giver until they have it, which is when all have joined.
pub(crate) fn introduce(
    identity: &Identity,
    options: &Options,
    deadline: Instant,
) -> Result<(Secret, Option<Giver>)> {
    let socket = std::env::var(SOCKET_VARIABLE).ok().filter(|path| !path.is_empty());
    let addresses = options.addresses()?;
    let failed = |reason| Error::Munge { node: identity.node_name().to_owned(), reason };
    let munge = Munge::load(socket.as_deref()).map_err(failed)?;
    if gives(identity) {
        let secret = Secret::random()?;
        let giver = Giver::start(munge, identity, &secret, &options.ports).map_err(failed)?;
        return Ok((secret, Some(giver)));
    }
    // Where munge does not work here there is no need to wait for somebody else's.
    munge.seal(b"").map_err(failed)?;
    let secret = ask(&munge, identity, addresses, &options.ports, deadline).map_err(failed)?;
    Ok((secret, None))
}

/// Every step has a first rank of the first node, and every rank knows where that is; rank 0 may be anywhere.
fn gives(identity: &Identity) -> bool {
    (identity.node_index, identity.local_rank) == (0, 0)
}

/// Where the secret is handed out. Anybody may know it.
fn meeting_ports(identity: &Identity, ports: &RangeInclusive<u16>) -> Vec<u16> {
    let (job, step) = identity.job_and_step();
    Secret::new([0; 32]).candidate_ports(job, step, 0, ports)
}

/// All but the secret.
fn context(identity: &Identity) -> Vec<u8> {
    let (job, step) = identity.job_and_step();
    [PURPOSE, &[job, step, identity.size].map(u32::to_be_bytes).concat()].concat()
}

fn payload(identity: &Identity, secret: &Secret) -> Zeroizing<Vec<u8>> {
    let mut payload = Zeroizing::new(Vec::with_capacity(PAYLOAD));
    payload.extend_from_slice(&context(identity));
    payload.extend_from_slice(secret.bytes());
    payload
}

/// Calls the giver until it answers.
fn ask(
    munge: &Munge,
    identity: &Identity,
    addresses: NodeAddresses,
    ports: &RangeInclusive<u16>,
    deadline: Instant,
) -> Result<Secret, String> {
    let node = identity.nodes.first().map_or("?", |node| node.name.as_str());
    let addresses = if identity.node_index == 0 {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        resolve(node, addresses, deadline)?
    };
    let ports = meeting_ports(identity, ports);
    let (mut attempt, mut pause) = (FIRST_ATTEMPT, *PAUSE.start());
    let start = Instant::now();
    // Anything else tells more than a refusal after it.
    let (mut said, mut refused) = (None, None);
    loop {
        for &port in &ports {
            for &address in &addresses {
                let target = SocketAddr::new(address, port);
                let until = deadline.min(Instant::now() + attempt);
                let reason = match fetch(target, until) {
                    Ok(credential) => match open(munge, identity, &credential) {
                        Ok(secret) => return Ok(secret),
                        Err(reason) => reason,
                    },
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                        refused = Some(format!("{target}: refused"));
                        continue;
                    }
                    // Perhaps only since the time is over.
                    Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
                        said.get_or_insert_with(|| format!("{target}: no answer"));
                        continue;
                    }
                    Err(error) => error.to_string(),
                };
                said = Some(format!("{target}: {reason}"));
            }
        }
        if Instant::now() + pause >= deadline {
            let last = said.or(refused).unwrap_or_default();
            let waited = start.elapsed();
            return Err(format!("{node} did not hand one out within {waited:.1?}; the last try was {last}"));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(*PAUSE.end());
        attempt = (attempt * 2).min(LONGEST_ATTEMPT);
    }
}

/// The resolver has no deadline of its own, so where it hangs a thread that holds nothing but the name outlives the call.
fn resolve(node: &str, addresses: NodeAddresses, deadline: Instant) -> Result<Vec<IpAddr>, String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let name = node.to_owned();
    thread::Builder::new()
        .name("roce-resolve".to_owned())
        .spawn(move || {
            let mut pause = *PAUSE.start();
            loop {
                let found = addresses.of(&name);
                let done = found.is_ok();
                // A name may become known while nodes boot.
                if sender.send(found).is_err() || done {
                    return;
                }
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_ATTEMPT);
            }
        })
        .map_err(|error| format!("no thread to ask for {node} in: {error}"))?;
    let mut why = "the resolver did not answer".to_owned();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(reason)) => why = reason,
            Err(_) => return Err(format!("no address of {node}, which hands it out: {why}")),
        }
    }
}

/// What somebody sends who is called.
fn fetch(target: SocketAddr, until: Instant) -> std::io::Result<CString> {
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(std::io::Error::from(ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let stream = TcpStream::connect_timeout(&target, left()?)?;
    if tcp::is_connected_to_itself(&stream) {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    let mut text = Vec::new();
    let mut bytes = [0; 512];
    let mut stream = stream.take(LONGEST);
    loop {
        stream.get_ref().set_read_timeout(Some(left()?))?;
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    CString::new(text).map_err(|_| std::io::Error::new(ErrorKind::InvalidData, "it sends no credential"))
}

/// The secret in a credential, if it is this user's and this step's.
fn open(munge: &Munge, identity: &Identity, credential: &CString) -> Result<Secret, String> {
    let opened = munge.open(credential)?;
    let own = geteuid().as_raw();
    if opened.uid != own {
        return Err(format!("what it handed out is user {}'s, not user {own}'s", opened.uid));
    }
    let secret = opened.payload.strip_prefix(context(identity).as_slice());
    let secret = secret.and_then(|secret| <[u8; 32]>::try_from(secret).ok().map(Zeroizing::new));
    secret
        .map(|secret| Secret::new(*secret))
        .ok_or_else(|| "what it handed out is of another step".to_owned())
}
