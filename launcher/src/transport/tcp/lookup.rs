//! Addresses of nodes. Where the resolver must be asked a thread waits for it, since no call of a rank's may.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use roce_bootstrap::NodeAddresses;

pub(super) type Addresses = Result<Vec<IpAddr>, String>;

enum State {
    Asked(Receiver<Addresses>),
    Known(Addresses),
}

pub(super) struct Lookup {
    how: NodeAddresses,
    /// By the node's name.
    nodes: BTreeMap<String, State>,
}

impl Lookup {
    pub(super) fn new(how: NodeAddresses) -> Self {
        Self { how, nodes: BTreeMap::new() }
    }

    /// A node's addresses, `None` while the resolver has not answered.
    pub(super) fn of(&mut self, node: &str) -> Option<Addresses> {
        if !self.nodes.contains_key(node) {
            let state = self.ask(node);
            self.nodes.insert(node.to_owned(), state);
        }
        let state = self.nodes.get_mut(node)?;
        if let State::Asked(answer) = state {
            let answer = match answer.try_recv() {
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => Err("the resolver did not answer".to_owned()),
                Ok(answer) => answer,
            };
            *state = State::Known(answer);
        }
        match state {
            State::Known(answer) => Some(answer.clone()),
            State::Asked(_) => None,
        }
    }

    fn ask(&self, node: &str) -> State {
        if let Some(known) = self.how.known(node) {
            return State::Known(Ok(known));
        }
        let (sender, answer) = channel();
        let (how, name) = (self.how.clone(), node.to_owned());
        let asking = thread::Builder::new().name("roce-resolve".to_owned()).spawn(move || {
            // Nobody hears it where the rank has ended meanwhile.
            let _ = sender.send(how.of(&name));
        });
        match asking {
            Ok(_) => State::Asked(answer),
            Err(error) => State::Known(Err(format!("no thread to ask the resolver: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn names_are_looked_up_beside_and_once() {
        let mut lookup = Lookup::new("n1=10.0.0.1,n2=localhost".parse().unwrap());
        assert_eq!(lookup.of("n1"), Some(Ok(vec!["10.0.0.1".parse().unwrap()])));
        let end = Instant::now() + Duration::from_secs(20);
        let found = loop {
            match lookup.of("n2") {
                Some(found) => break found.unwrap(),
                None => assert!(Instant::now() < end),
            }
        };
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        assert_eq!(lookup.of("n2"), Some(Ok(found)));
    }
}
