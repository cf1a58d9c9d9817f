//! Finding one neighbour: its candidate ports in turn, beside each other where one is silent, and again until it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A candidate that is silent for so long is left to itself, and the next is tried beside it.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two rounds; in between, an eighth of the time that the search has taken.
const PAUSE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// The search for one neighbour.
pub struct Search {
    ports: Vec<u16>,
    addresses: Vec<IpAddr>,
    /// Why there are no addresses.
    problem: Option<String>,
    /// How many of the ports this round tries: one more in each, since the first is nearly always the one.
    width: usize,
    /// The next candidate in this round.
    next: usize,
    state: State,
    live: BTreeMap<u64, SocketAddr>,
    tried: BTreeMap<SocketAddr, (bool, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing to do until there are addresses.
    Nameless,
    /// Between rounds.
    Pausing(Duration),
    Trying,
    /// For the newest candidate's answer.
    Waiting(u64, Duration),
    Found,
}

impl Search {
    /// For one of these ports, once there are addresses.
    pub fn new(ports: Vec<u16>) -> Self {
        let (addresses, live, tried) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { ports, addresses, problem: None, width: 0, next: 0, state: State::Nameless, live, tried }
    }

    /// The name has these addresses, or none for now.
    pub fn resolved(&mut self, addresses: Result<Vec<IpAddr>, String>) {
        match addresses {
            Ok(addresses) => {
                self.addresses = addresses;
                if self.state == State::Nameless {
                    self.state = State::Pausing(Duration::ZERO);
                }
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// When there is something to do, unless an answer comes before.
    pub fn wake(&self) -> Option<Duration> {
        match self.state {
            State::Nameless | State::Found => None,
            State::Pausing(until) | State::Waiting(_, until) => Some(until),
            State::Trying => Some(Duration::ZERO),
        }
    }

    /// Whom to call now.
    pub fn next(&mut self, now: Duration) -> Option<SocketAddr> {
        loop {
            match self.state {
                State::Nameless | State::Found => return None,
                State::Pausing(until) | State::Waiting(_, until) if now < until => return None,
                State::Pausing(_) => {
                    self.width = (self.width + 1).min(self.ports.len());
                    self.next = 0;
                    self.state = State::Trying;
                }
                State::Waiting(..) => self.state = State::Trying,
                State::Trying => {
                    let Some(target) = self.candidate() else {
                        let [least, most] = PAUSE;
                        self.state = State::Pausing(now + (now / 8).clamp(least, most));
                        return None;
                    };
                    self.next += 1;
                    if !self.live.values().any(|live| *live == target) {
                        return Some(target);
                    }
                }
            }
        }
    }

    fn candidate(&self) -> Option<SocketAddr> {
        let port = self.next / self.addresses.len().max(1);
        let port = *self.ports[..self.width].get(port)?;
        Some(SocketAddr::new(*self.addresses.get(self.next % self.addresses.len())?, port))
    }

    /// A call is on its way, by this number.
    pub fn calling(&mut self, now: Duration, id: u64, target: SocketAddr) {
        self.live.insert(id, target);
        self.state = State::Waiting(id, now + PATIENCE);
    }

    /// It came to nothing; `stranger` if somebody answered who does not know the secret.
    pub fn failed(&mut self, id: u64, stranger: bool, why: &str) {
        if let Some(target) = self.live.remove(&id) {
            self.note(target, stranger, why);
        }
        if matches!(self.state, State::Waiting(newest, _) if newest == id) {
            self.state = State::Trying;
        }
    }

    /// Keeps a candidate's last answer, but a failed proof rather than the refusals after it: it tells more.
    pub(crate) fn note(&mut self, target: SocketAddr, stranger: bool, why: &str) {
        let kept = self.tried.entry(target).or_default();
        if stranger || !kept.0 {
            *kept = (stranger, why.to_owned());
        }
    }

    /// This one is it; the other calls are no longer needed.
    pub fn found(&mut self, id: u64) -> BTreeSet<u64> {
        self.state = State::Found;
        self.live.remove(&id);
        std::mem::take(&mut self.live).into_keys().collect()
    }

    /// Whoever was found has hung up.
    pub(crate) fn again(&mut self, now: Duration) {
        self.state = State::Pausing(now + PAUSE[0]);
    }

    /// What was tried, with the ports of each answer, so that 16 refused ports read as one.
    pub(crate) fn summary(&self) -> String {
        if self.addresses.is_empty() {
            let problem = self.problem.as_deref().unwrap_or("the resolver has not answered");
            return format!("its name has no address: {problem}; check DNS or /etc/hosts");
        }
        let silent = self.live.values().map(|target| (target, "no answer"));
        let answers = self.tried.iter().map(|(target, (_, answer))| (target, answer.as_str()));
        let mut by_answer: BTreeMap<(IpAddr, &str), BTreeSet<u16>> = BTreeMap::new();
        for (target, answer) in answers.chain(silent) {
            by_answer.entry((target.ip(), answer)).or_default().insert(target.port());
        }
        let one = |((address, answer), ports): (&(IpAddr, &str), &BTreeSet<u16>)| {
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            format!("{address} ports {ports}: {answer}")
        };
        format!("tried {}", by_answer.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn search() -> Search {
        let mut search = Search::new(vec![1, 2, 3]);
        search.resolved(Ok(vec!["10.0.0.1".parse().unwrap()]));
        search
    }

    #[test]
    fn refused_candidates_are_tried_again_and_more_of_them_each_time() {
        let mut search = search();
        let mut ports = Vec::new();
        for id in 0..60 {
            if let Some(target) = search.next(MS * id) {
                ports.push(target.port());
                search.calling(MS * id, u64::from(id), target);
                search.failed(u64::from(id), false, "refused");
            }
        }
        assert_eq!(ports[..9], [1, 1, 2, 1, 2, 3, 1, 2, 3]);
        assert_eq!(search.summary(), "tried 10.0.0.1 ports 1,2,3: refused");
    }

    #[test]
    fn a_silent_candidate_is_passed_over_and_kept() {
        let mut search = search();
        search.width = 2;
        let first = search.next(MS).unwrap();
        search.calling(MS, 7, first);
        assert_eq!(search.next(MS * 50), None);
        let second = search.next(MS * 51).unwrap();
        assert_eq!((first.port(), second.port()), (1, 2));
        search.calling(MS * 51, 8, second);
        assert_eq!(search.found(7), BTreeSet::from([8]));
        assert_eq!((search.next(MS * 500), search.wake()), (None, None));
    }
}
