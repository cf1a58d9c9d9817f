//! The side that hands the secret out.

use std::io::Write as _;
use std::net::{Shutdown, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use zeroize::Zeroizing;

use super::library::Munge;
use crate::discovery::Identity;
use crate::secret::Secret;
use crate::tcp;

/// A credential is made anew after so long: munge's own default is that it can be opened for 5 minutes, by clocks that may
/// differ.
const FRESH: Duration = Duration::from_secs(60);
/// A moment where there are too many open files, or the like.
const TROUBLE: Duration = Duration::from_millis(10);

/// Hands a credential to whoever calls, until it is dropped.
///
/// Nothing is read from callers, and nobody is waited for, so strangers cost a moment each and no memory: what they are
/// given they can't open.
pub(crate) struct Giver {
    /// Shut, it ends the thread.
    end: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// Nobody is handed anything any more when this is over.
impl Drop for Giver {
    fn drop(&mut self) {
        let _ = self.end.shutdown(Shutdown::Both);
        // A panic there was printed there.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Giver {
    pub(super) fn start(
        munge: Munge,
        identity: &Identity,
        secret: &Secret,
        ports: &RangeInclusive<u16>,
    ) -> Result<Self, String> {
        let payload = super::payload(identity, secret);
        let credential = munge.seal(&payload)?;
        let ports = super::meeting_ports(identity, ports);
        let listener = tcp::listen(&ports).map_err(|error| {
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            format!("no port among {ports} is free to hand it out at: {error}")
        })?;
        let (end, ended) = UnixStream::pair().map_err(|error| error.to_string())?;
        let thread = thread::Builder::new()
            .name("roce-munge".to_owned())
            .spawn(move || {
                // Signals are the program's business: its own threads take them.
                let _ = SigSet::all().thread_set_mask();
                give(&munge, &payload, credential, &listener, &ended);
            })
            .map_err(|error| format!("no thread to hand it out in: {error}"))?;
        Ok(Self { end, thread: Some(thread) })
    }
}

fn give(
    munge: &Munge,
    payload: &Zeroizing<Vec<u8>>,
    mut credential: String,
    listener: &TcpListener,
    ended: &UnixStream,
) {
    let mut made = Instant::now();
    loop {
        let mut wait =
            [PollFd::new(ended.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        // Interrupted is as good as woken.
        let _ = poll(&mut wait, PollTimeout::NONE);
        let [is_ended, is_called] = wait.map(|one| one.any().unwrap_or(false));
        if is_ended {
            return;
        }
        if !is_called {
            continue;
        }
        if made.elapsed() >= FRESH {
            // Where munge is away the old one may do still.
            if let Ok(fresh) = munge.seal(payload) {
                credential = fresh;
            }
            made = Instant::now();
        }
        match listener.accept() {
            Ok((mut stream, _)) => {
                // It fits into a socket's buffer, so it is sent at once, or the caller is gone.
                let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(credential.as_bytes()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => thread::sleep(TROUBLE),
        }
    }
}
