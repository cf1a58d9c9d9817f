//! What a node's leader does, without sockets, threads or a clock: messages and times go in, messages come out.
//!
//! A leader gathers the parts of its local ranks. When all are there, leaders exchange what they hold in
//! ceil(log2 nodes) rounds (Bruck's all-gather): in round k leader i sends to leader i + 2^k everything that it has
//! gathered so far, and takes the same from leader i - 2^k, so that what it holds doubles. Then every local rank gets the
//! result. Barrier, broadcast and leaving are all-gathers of less.
//!
//! The first fault ends the exchange: it is told to all neighbours but the one who told it, and to all local ranks. Whatever
//! comes after it changes nothing.

mod fault;
mod gather;
mod layout;
mod parts;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use fault::{Fault, FaultKind};
use gather::Gather;
pub use layout::{Layout, Link, Way};
pub use parts::{Bytes, HEADS, Parts};

use crate::message::{BetweenLeaders, FromMember, Operation};
use crate::ranks::list_ranks;

/// A leader that has all its local parts waits this much longer for others', so that whoever knows the missing rank's
/// name tells it first.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long a leader waits before it says who is missing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the first collective, counted from the leader's start.
    pub join: Duration,
    /// For every other, counted from its first part.
    pub collective: Duration,
}

/// What the leader's sockets have to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output<M = Vec<u8>, T = Vec<u8>> {
    /// To one neighbour.
    Send {
        /// Over which of the connections.
        link: Link,
        /// What.
        message: BetweenLeaders<M>,
    },
    /// The result of a collective, to every local rank.
    Deliver {
        /// The collective's number.
        number: u64,
        /// Its table (`crate::table`); none for a barrier.
        table: Option<T>,
    },
    /// The fault that ended the exchange, to every local rank and all neighbours.
    Fail {
        /// What happened.
        fault: Fault,
        /// Who told it, and so knows it.
        except: Option<Link>,
    },
    /// All ranks of the job have left: nothing more will come.
    Finished,
}

/// One of the leader's ranks.
#[derive(Clone, Default, Debug)]
struct Local<T> {
    rank: Option<u32>,
    left: bool,
    part: Option<T>,
}

impl<T> Local<T> {
    fn awaited(&self) -> bool {
        self.part.is_none() && !self.left
    }
}

/// The connections of one round: the neighbour before this node, who calls, and the one behind, who is called.
#[derive(Clone, Default, Debug)]
struct Round<M> {
    before: Neighbour,
    behind: Neighbour,
    /// What the neighbour before sent and was not used yet: at most one collective ahead.
    early: VecDeque<(Operation, u64, M)>,
    /// The number of its next message.
    next: u64,
    /// What the neighbour before sent last was that its node leaves.
    left: bool,
    /// What the one behind was sent last was that this node leaves.
    leaving: bool,
}

#[derive(Clone, Default, Debug)]
struct Neighbour {
    /// The leader's rank, once connected.
    rank: Option<u32>,
}

/// The state of one node's leader.
#[derive(Clone, Debug)]
pub struct Core<P: Parts = Bytes> {
    layout: Layout,
    limits: Limits,
    locals: Vec<Local<P::Part>>,
    rounds: Vec<Round<P::Message>>,
    /// The number of the collective that ends next.
    number: u64,
    gather: Gather<P>,
    fault: Option<Fault>,
    finished: bool,
    outputs: VecDeque<Output<P::Message, P::Table>>,
}

impl Core {
    /// A leader that has met nobody yet, not even its own rank.
    #[must_use]
    pub fn new(layout: Layout, limits: Limits) -> Self {
        Self::gathering(layout, limits)
    }
}

impl<P: Parts> Core<P> {
    /// The same, that gathers something else than bytes.
    #[must_use]
    pub fn gathering(layout: Layout, limits: Limits) -> Self {
        let locals = vec![Local::default(); layout.local_size() as usize];
        let rounds = vec![Round::default(); layout.rounds()];
        let mut gather = Gather::default();
        gather.begin(Duration::ZERO);
        let (fault, outputs) = (None, VecDeque::new());
        Self { layout, limits, locals, rounds, number: 0, gather, fault, finished: false, outputs }
    }

    /// The next thing to do.
    pub fn output(&mut self) -> Option<Output<P::Message, P::Table>> {
        self.outputs.pop_front()
    }

    /// Why the exchange failed.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Whether all ranks have left.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// How many collectives have ended.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// A local rank has come.
    ///
    /// # Errors
    /// It can't be one of this node's, or somebody came in its place before.
    pub fn local_joined(&mut self, local: u32, rank: u32) -> Result<(), &'static str> {
        let free = self.locals.get(local as usize).is_some_and(|local| local.rank.is_none());
        let taken = self.locals.iter().any(|local| local.rank == Some(rank));
        if !free || taken || rank >= self.layout.size() {
            return Err("there is no place for it, or another process has taken it");
        }
        self.locals[local as usize].rank = Some(rank);
        Ok(())
    }

    /// A local rank said something.
    pub fn local_message(&mut self, now: Duration, local: u32, message: FromMember<P::Part>) {
        let Some(state) = self.locals.get_mut(local as usize) else { return };
        let Some(rank) = state.rank.filter(|_| self.fault.is_none() && !self.finished) else { return };
        match message {
            FromMember::Abort { reason } => self.fail(FaultKind::Aborted, Some(rank), reason),
            FromMember::Bye => state.left = true,
            FromMember::Part { number, .. }
                if number != self.number || state.part.is_some() || state.left =>
            {
                let text = format!("it sent a part of collective {number} out of turn");
                self.fail(FaultKind::Lost, Some(rank), text);
            }
            FromMember::Part { operation, bytes, .. } => {
                state.part = Some(bytes);
                self.gather.begin(now);
                match self.gather.operation {
                    Some(ours) if ours != operation => self.out_of_step(rank, operation, ours),
                    _ => self.gather.operation = Some(operation),
                }
                self.gather.came += 1;
            }
        }
        self.advance(now);
    }

    /// A local rank's connection has ended.
    pub fn local_closed(&mut self, local: u32, why: &str) {
        let Some(local) = self.locals.get(local as usize) else { return };
        if local.rank.is_some() && !local.left {
            self.fail(FaultKind::Lost, local.rank, why.to_owned());
        }
    }

    /// A neighbour has proven who it is; `rank` leads there.
    ///
    /// # Errors
    /// That neighbour was there before.
    pub fn peer_joined(&mut self, link: Link, rank: u32) -> Result<(), &'static str> {
        let neighbour = self.neighbour(link);
        if neighbour.rank.is_some() {
            return Err("it was connected before");
        }
        neighbour.rank = Some(rank);
        if let Some(fault) = self.fault.clone() {
            let message = BetweenLeaders::Fault(fault);
            self.outputs.push_back(Output::Send { link, message });
        }
        Ok(())
    }

    /// A neighbour said something.
    pub fn peer_message(&mut self, now: Duration, link: Link, message: BetweenLeaders<P::Message>) {
        if self.fault.is_some() || self.finished {
            return;
        }
        match message {
            BetweenLeaders::Heartbeat => {}
            BetweenLeaders::Fault(fault) => self.fail_with(fault, Some(link)),
            BetweenLeaders::Gathered { operation, number, bytes } => {
                let last = self.number + 1;
                let round = &mut self.rounds[link.round];
                if link.way == Way::Behind || number != round.next || number > last {
                    return self.peer_failed(link, &format!("it sent collective {number} out of turn"));
                }
                round.next += 1;
                round.left = operation == Operation::Leave;
                round.early.push_back((operation, number, bytes));
                if number == self.number {
                    self.gather.begin(now);
                }
                self.advance(now);
            }
        }
    }

    /// A neighbour's connection has ended.
    pub fn peer_closed(&mut self, link: Link, why: &str) {
        let round = &self.rounds[link.round];
        let clean = match link.way {
            Way::Before => round.left,
            // It needs nothing more from this node when it has the last message, and closes when it needs nothing more.
            Way::Behind => round.leaving,
        };
        if !clean && !self.finished {
            self.peer_failed(link, why);
        }
    }

    /// A neighbour broke the rules, or is gone.
    pub fn peer_failed(&mut self, link: Link, why: &str) {
        let node = self.layout.neighbour(link);
        let fault =
            Fault { kind: FaultKind::Lost, rank: self.neighbour(link).rank, node, text: why.to_owned() };
        self.fail_with(fault, None);
    }

    /// This node's leader itself can't go on.
    pub fn give_up(&mut self, fault: Fault) {
        self.fail_with(fault, None);
    }

    /// A local rank is there but does nothing.
    pub fn local_failed(&mut self, local: u32, why: &str) {
        let rank = self.locals.get(local as usize).and_then(|local| local.rank);
        self.fail(FaultKind::Lost, rank, why.to_owned());
    }

    /// Local ranks that the current collective waits for.
    pub fn awaited(&self) -> impl Iterator<Item = u32> {
        let waiting = self.gather.since.is_some() && !self.gather.complete && self.fault.is_none();
        let locals = (0..).zip(&self.locals).filter(move |(_, local)| waiting && local.awaited());
        locals.map(|(number, _)| number)
    }

    /// When [`tick`](Self::tick) has something to say, unless something comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let since = self.gather.since.filter(|_| self.fault.is_none() && !self.finished)?;
        let limit = if self.number == 0 { self.limits.join } else { self.limits.collective };
        let leaving = self.gather.operation == Some(Operation::Leave);
        let grace = if self.is_missing_locals() { Duration::ZERO } else { GRACE };
        // Who has left may wait for the others as long as these compute.
        (!leaving).then(|| since + limit + grace)
    }

    /// Time has passed: is somebody overdue?
    pub fn tick(&mut self, now: Duration, note: impl Fn(Link) -> Option<String>) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let waited = now.saturating_sub(self.gather.since.unwrap_or_default());
        let what = self.what();
        let tail = "did they start, and did they fail before?";
        if let Some(who) = self.missing() {
            let text = format!("{who} did not {what} within {waited:.1?}; {tail}");
            return self.fail(FaultKind::Missing, None, text);
        }
        // Local ranks are all there, so some round waits for the node before it.
        let round = self.gather.round.min(self.rounds.len().saturating_sub(1));
        let unmet = (0..self.rounds.len()).find_map(|round| {
            let links = [Link { way: Way::Behind, round }, Link { way: Way::Before, round }];
            links.into_iter().find(|link| self.neighbour_ref(*link).rank.is_none())
        });
        let link = unmet.unwrap_or(Link { way: Way::Before, round });
        let node = self.layout.neighbour(link);
        let name = self.layout.node_name(node);
        let note = note(link).map(|note| format!("; {note}")).unwrap_or_default();
        let text = format!("the ranks on {name} did not {what} within {waited:.1?}{note}; {tail}");
        self.fail_with(Fault { kind: FaultKind::Missing, rank: None, node, text }, None);
    }

    /// What the ranks should do now.
    fn what(&self) -> String {
        match self.gather.operation {
            _ if self.number == 0 => "join".to_owned(),
            Some(operation) => format!("reach the {operation}"),
            None => format!("reach collective {}", self.number),
        }
    }

    /// Whether a local rank's part has not come.
    fn is_missing_locals(&self) -> bool {
        !self.gather.complete && self.locals.iter().any(Local::awaited)
    }

    /// The local ranks whose part has not come, in words.
    fn missing(&self) -> Option<String> {
        if !self.is_missing_locals() {
            return None;
        }
        let waiting = || (0..).zip(&self.locals).filter(|(_, local)| local.awaited());
        let name = self.layout.node_name(self.layout.node());
        if self.layout.nodes() == 1 {
            // Then it is known who is not here, also before they come.
            let here: Vec<u32> = self
                .locals
                .iter()
                .filter(|local| local.part.is_some())
                .filter_map(|local| local.rank)
                .collect();
            let missing = (0..self.layout.size()).filter(|rank| !here.contains(rank));
            return Some(list_ranks(missing.map(|rank| (rank, Some(name)))));
        }
        if waiting().all(|(_, local)| local.rank.is_some()) {
            return Some(list_ranks(waiting().filter_map(|(_, local)| Some((local.rank?, Some(name))))));
        }
        let locals = waiting().map(|(number, _)| number.to_string()).take(8).collect::<Vec<_>>().join(", ");
        let (count, all) = (waiting().count(), self.locals.len());
        Some(format!("{count} of the {all} ranks on {name} (local ranks {locals})"))
    }

    fn neighbour(&mut self, link: Link) -> &mut Neighbour {
        let round = &mut self.rounds[link.round];
        if link.way == Way::Before { &mut round.before } else { &mut round.behind }
    }

    fn neighbour_ref(&self, link: Link) -> &Neighbour {
        let round = &self.rounds[link.round];
        if link.way == Way::Before { &round.before } else { &round.behind }
    }

    /// A fault of this node.
    fn fail(&mut self, kind: FaultKind, rank: Option<u32>, text: String) {
        self.fail_with(Fault { kind, rank, node: self.layout.node(), text }, None);
    }

    fn fail_with(&mut self, fault: Fault, except: Option<Link>) {
        if self.fault.is_none() && !self.finished {
            self.fault = Some(fault.clone());
            self.outputs.push_back(Output::Fail { fault, except });
        }
    }

    fn out_of_step(&mut self, rank: u32, theirs: Operation, ours: Operation) {
        let number = self.number;
        let text = format!("is at {theirs} number {number} while others are at {ours} number {number}");
        self.fail(FaultKind::OutOfStep, Some(rank), text);
    }

    /// Does what can be done now.
    fn advance(&mut self, now: Duration) {
        while self.fault.is_none() && !self.finished && self.step(now) {}
    }

    /// Whether something was done.
    fn step(&mut self, now: Duration) -> bool {
        if let Some(leaver) = self.locals.iter().find(|local| local.left) {
            match (self.gather.operation, leaver.rank) {
                (Some(ours), Some(rank)) if ours != Operation::Leave => {
                    self.out_of_step(rank, Operation::Leave, ours);
                    return false;
                }
                _ => {}
            }
            if self.gather.operation.is_none() && self.locals.iter().all(|local| local.left) {
                self.gather.begin(now);
                self.gather.operation = Some(Operation::Leave);
                self.gather.came = self.locals.len();
            }
        }
        let Some(operation) = self.gather.operation else { return false };
        if let Some((round, theirs)) = self.other_operation(operation) {
            let rank = self.rounds[round].before.rank;
            let (number, node) = (self.number, self.layout.neighbour(Link { way: Way::Before, round }));
            let text =
                format!("is at {theirs} number {number} while others are at {operation} number {number}");
            self.fail_with(Fault { kind: FaultKind::OutOfStep, rank, node, text }, None);
            return false;
        }
        if !self.gather.complete {
            if self.gather.came < self.locals.len() {
                return false;
            }
            let locals = self.locals.iter_mut();
            let parts = locals.filter_map(|local| Some((local.rank?, local.part.take()?)));
            // Nobody looks at what others give.
            let wanted = parts.filter(|(rank, _)| match operation {
                Operation::AllGather => true,
                Operation::Broadcast { root } => root == *rank,
                Operation::Barrier | Operation::Leave => false,
            });
            let wanted = wanted.collect();
            self.gather.hold_own(wanted);
            self.send_round(operation, 0);
            return true;
        }
        let round = self.gather.round;
        if round == self.rounds.len() {
            self.end(now, operation);
            return true;
        }
        let early = &mut self.rounds[round].early;
        if early.front().is_none_or(|early| early.1 != self.number) {
            return false;
        }
        let Some((_, _, bytes)) = early.pop_front() else { return false };
        if let Err(what) = self.gather.hold_others(bytes, self.layout.nodes_in_round(round)) {
            self.peer_failed(Link { way: Way::Before, round }, what);
            return false;
        }
        self.send_round(operation, round + 1);
        true
    }

    /// A node that does something else than this one.
    fn other_operation(&self, ours: Operation) -> Option<(usize, Operation)> {
        let firsts =
            self.rounds.iter().enumerate().filter_map(|(round, state)| Some((round, state.early.front()?)));
        let mut differing = firsts.filter(|(_, early)| early.1 == self.number && early.0 != ours);
        differing.next().map(|(round, early)| (round, early.0))
    }

    fn send_round(&mut self, operation: Operation, round: usize) {
        if round < self.rounds.len() {
            let bytes = self.gather.parts.held(self.layout.nodes_in_round(round));
            let message = BetweenLeaders::Gathered { operation, number: self.number, bytes };
            self.rounds[round].leaving = operation == Operation::Leave;
            self.outputs.push_back(Output::Send { link: Link { way: Way::Behind, round }, message });
        }
    }

    /// Everything is here.
    fn end(&mut self, now: Duration, operation: Operation) {
        let number = self.number;
        let table = match operation {
            Operation::Leave => {
                self.finished = true;
                self.outputs.push_back(Output::Finished);
                return;
            }
            Operation::Barrier => Ok(None),
            Operation::Broadcast { root } => self.gather.parts.table(root..root + 1).map(Some),
            Operation::AllGather => self.gather.parts.table(0..self.layout.size()).map(Some),
        };
        match table {
            Err(text) => self.fail(FaultKind::OutOfStep, None, text),
            Ok(table) => self.outputs.push_back(Output::Deliver { number, table }),
        }
        self.number += 1;
        self.gather = Gather::default();
        // Others may be further.
        if self.rounds.iter().any(|round| round.early.front().is_some_and(|early| early.1 == self.number)) {
            self.gather.begin(now);
        }
    }
}
