//! A node's addresses by its name, in bounded time: `getaddrinfo(3)` has no deadline of its own.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The addresses of `name`, or why there are none.
pub(crate) fn addresses(name: &str, deadline: Instant) -> Result<Vec<IpAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let wanted = name.to_owned();
    // Where the resolver hangs, this thread outlives the call: it holds nothing but the name.
    thread::Builder::new()
        .name("resolve".to_owned())
        .spawn(move || {
            let found = (wanted.as_str(), 0).to_socket_addrs();
            // Nobody listens any more after the deadline.
            let _ = sender.send(found.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>()));
        })
        .map_err(|error| format!("no thread to ask in: {error}"))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    match receiver.recv_timeout(left) {
        Ok(Ok(found)) if found.is_empty() => Err("the name has no address".to_owned()),
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the resolver did not answer within {left:.1?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_own_name_and_nonsense_has_none() {
        let deadline = Instant::now() + Duration::from_secs(10);
        assert_eq!(addresses("127.0.0.1", deadline).unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(addresses("no such name", deadline).is_err());
    }
}
