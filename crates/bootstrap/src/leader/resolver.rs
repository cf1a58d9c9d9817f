//! Names are looked up in threads of their own: a resolver that hangs holds up nobody.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;

use crate::resolve::NodeAddresses;

pub(super) struct Resolver {
    pub(super) answers: mpsc::Receiver<(usize, Result<Vec<IpAddr>, String>)>,
    pub(super) sender: mpsc::Sender<(usize, Result<Vec<IpAddr>, String>)>,
    /// A byte comes for each answer.
    pub(super) bell: UnixStream,
    pub(super) ring: UnixStream,
}

impl Resolver {
    /// Asks for a name, as long as it takes: where the resolver hangs, it holds up one thread that has nothing but the name.
    pub(super) fn ask(&self, round: usize, name: String, addresses: NodeAddresses) {
        let sender = self.sender.clone();
        let Ok(ring) = self.ring.try_clone() else { return };
        // Where there is no thread to ask in, the search says that nobody answered.
        let _ = thread::Builder::new().name("roce-resolve".to_owned()).spawn(move || {
            let _ = SigSet::all().thread_set_mask();
            let mut pause = Duration::from_millis(100);
            loop {
                let found = addresses.of(&name);
                let done = found.is_ok();
                // After the join nobody listens any more.
                if sender.send((round, found)).is_err()
                    || std::io::Write::write(&mut &ring, &[0]).is_err()
                    || done
                {
                    return;
                }
                // A name may become known while nodes boot.
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        });
    }
}
