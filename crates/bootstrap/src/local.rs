//! Where the ranks of one node meet: an abstract Unix socket, whose name only they can know before it is there.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use nix::unistd::getuid;
use subtle::ConstantTimeEq;

use crate::discovery::Identity;
use crate::secret::{Secret, authenticate};

/// A socket has its name for a moment before it listens.
const RETRY: Duration = Duration::from_micros(100);
const TOKEN: usize = 32;
/// What a rank says first.
pub(crate) const HELLO: usize = TOKEN + 8;

/// The first of a node's ranks leads it.
pub(crate) enum Met {
    /// This rank came first.
    Leader(UnixListener),
    /// Another leads; its process.
    Member(UnixStream, i32),
}

/// Takes the node's name, or calls whoever has it.
pub(crate) fn meet(identity: &Identity, secret: &Secret, deadline: Instant) -> io::Result<Met> {
    let name = SocketAddr::from_abstract_name(name(identity, secret))?;
    loop {
        match UnixListener::bind_addr(&name) {
            Ok(listener) => return Ok(Met::Leader(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
        match UnixStream::connect_addr(&name) {
            Ok(stream) => {
                let process = trust(&stream)?;
                return Ok(Met::Member(stream, process));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                thread::sleep(RETRY);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The process at the other end, which must be of this user.
pub(crate) fn trust(socket: &impl AsFd) -> io::Result<i32> {
    let other: UnixCredentials = getsockopt(socket, PeerCredentials)?;
    if other.uid() == getuid().as_raw() {
        return Ok(other.pid());
    }
    let who = format!("process {} of user {} is there in a rank's place", other.pid(), other.uid());
    Err(io::Error::new(ErrorKind::PermissionDenied, who))
}

fn name(identity: &Identity, secret: &Secret) -> String {
    let (job, step) = identity.job_and_step();
    let numbers = [job, step, identity.node_index, identity.size].map(u32::to_be_bytes).concat();
    let name = authenticate(secret.bytes(), &[b"local", &numbers]);
    let digits = name[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("roce-{digits}")
}

fn token(identity: &Identity, secret: &Secret, rank: u32, local_rank: u32) -> [u8; TOKEN] {
    let (job, step) = identity.job_and_step();
    let numbers = [job, step, identity.node_index, identity.size, rank, local_rank];
    authenticate(secret.bytes(), &[b"member", &numbers.map(u32::to_be_bytes).concat()])
}

/// What this rank says first.
pub(crate) fn hello(identity: &Identity, secret: &Secret) -> [u8; HELLO] {
    let mut hello = [0; HELLO];
    hello[..TOKEN].copy_from_slice(&token(identity, secret, identity.rank, identity.local_rank));
    hello[TOKEN..TOKEN + 4].copy_from_slice(&identity.rank.to_be_bytes());
    hello[TOKEN + 4..].copy_from_slice(&identity.local_rank.to_be_bytes());
    hello
}

/// Rank and local rank, if it knows the secret.
pub(crate) fn check(identity: &Identity, secret: &Secret, hello: &[u8; HELLO]) -> Option<(u32, u32)> {
    let (claimed, rest) = hello.split_first_chunk::<TOKEN>()?;
    let (&rank, rest) = rest.split_first_chunk()?;
    let (&local_rank, _) = rest.split_first_chunk()?;
    let (rank, local_rank) = (u32::from_be_bytes(rank), u32::from_be_bytes(local_rank));
    let authentic = bool::from(token(identity, secret, rank, local_rank).ct_eq(claimed));
    authentic.then_some((rank, local_rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_believed_only_what_it_can_prove() {
        let (secret, here) = (Secret::new([1; 32]), Identity::alone("here"));
        let said = hello(&here, &secret);
        assert_eq!(check(&here, &secret, &said), Some((0, 0)));
        assert_eq!(check(&here, &Secret::new([2; 32]), &said), None);
        for place in 0..HELLO {
            let mut changed = said;
            changed[place] ^= 1;
            assert_eq!(check(&here, &secret, &changed), None, "byte {place}");
        }
    }
}
