//! How two ranks come to know each other's ends of a connection, over datagrams that may be lost, repeated and overtaken.
//!
//! ```text
//! asking   -> answering   hello, perhaps with the first packet; both make their ends
//! asking   -> answering   request, with its end
//! answering: connects its end
//! answering -> asking     reply, with its end
//! asking: connects its end, and may send
//! asking   -> answering   what it sends, or an acknowledgement; answering may send
//! ```
//! The hello spares time and nothing else: who has heard none makes its end when it hears the request, and who has heard no request for
//! a while after it asks itself. A packet that comes with it is taken by who hears of the asking side for the first time, whose end then
//! says that it has received one; else it goes over the connection, as all that the other side has not received.
//!
//! Each side has one end for a peer, whoever begins. Where both ask at once the request of the lower rank counts: the lower rank takes
//! no notice of the other's, and the higher one answers. What is not answered is said again; the answering side may also send when
//! anything has come over the connection, for then the other side has connected.
//!
//! Where a connection failed, another handshake makes the next one, each with a number of its own (an *era*). The ends then say how
//! many packets have come over all before. A side whose rank has not taken its old end down yet says *later* to a request.
//!
//! Nothing here does I/O or knows a clock.

use std::time::{Duration, Instant};

/// How long the first answer is waited for; then twice as long each time.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);
/// How often something is said, after which the peer counts as not answering: about 17 s.
const MOST: u32 = 12;

/// How long who asked keeps the acknowledgement back: what it wants to send says the same, and should not wait for a datagram.
const COURTESY: Duration = Duration::from_millis(3);

/// One side's end of a connection, as the other needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) qp_number: u32,
    /// The number of the first packet that it will send.
    pub(super) psn: u32,
    /// The port's active MTU in bytes.
    pub(super) mtu: u32,
    /// RDMA reads it may have outstanding.
    pub(super) initiator_depth: u8,
    /// RDMA reads it answers at once.
    pub(super) responder_depth: u8,
    /// Packets that have come from the other side, over connections before this one or with its hello.
    pub(super) received: u64,
}

/// What is said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// The speaker makes its end now, and will ask with it. With the first packet that it sends, or without.
    Hello(Vec<u8>),
    Request(End),
    Reply(End),
    Acknowledgement,
    /// The rank has to do something before it can answer a request.
    Later,
    /// There will be no connection, and why.
    Refusal(String),
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Todo {
    /// Connect this side's end to that one.
    pub(super) connect: Option<End>,
    pub(super) say: Option<Word>,
    /// From here on this side may send.
    pub(super) is_ready: bool,
    /// There will be no connection, and why.
    pub(super) failed: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// The peer has said that it will ask.
    Expecting,
    Asking,
    Answering,
    Open,
    Failed(String),
}

#[derive(Debug)]
pub(super) struct Handshake {
    is_lower: bool,
    mine: End,
    state: State,
    /// How often this side has said what it waits for an answer to.
    said: u32,
    due: Instant,
    /// The peer is to be told that this side has connected.
    owes: bool,
}

impl End {
    /// Of a side that has none.
    pub(super) fn none() -> Self {
        Self { qp_number: 0, psn: 0, mtu: 0, initiator_depth: 0, responder_depth: 0, received: 0 }
    }
}

impl Todo {
    fn say(word: Word) -> Self {
        Self { say: Some(word), ..Self::default() }
    }
}

impl Handshake {
    /// This side wants a connection to a peer that has not asked for one.
    pub(super) fn ask(rank: u32, peer: u32, mine: End, now: Instant) -> (Self, Todo) {
        let (state, due, owes) = (State::Asking, now + FIRST, false);
        let handshake = Self { is_lower: rank < peer, mine, state, said: 1, due, owes };
        (handshake, Todo::say(Word::Request(mine)))
    }

    /// A peer asks this side, which has not asked it.
    pub(super) fn answer(rank: u32, peer: u32, mine: End, theirs: End, now: Instant) -> (Self, Todo) {
        let (mut handshake, _) = Self::ask(rank, peer, mine, now);
        let todo = handshake.answer_to(theirs, now);
        (handshake, todo)
    }

    /// A peer will ask this side, which has not asked it.
    pub(super) fn expect(rank: u32, peer: u32, mine: End, now: Instant) -> Self {
        let (handshake, _) = Self::ask(rank, peer, mine, now);
        Self { state: State::Expecting, said: 0, ..handshake }
    }

    /// A peer asks, and there can't be a connection.
    pub(super) fn refuse(rank: u32, peer: u32, why: String, now: Instant) -> (Self, Todo) {
        let (mut handshake, _) = Self::ask(rank, peer, End::none(), now);
        let todo = handshake.give_up(why);
        (handshake, todo)
    }

    fn answer_to(&mut self, theirs: End, now: Instant) -> Todo {
        self.state = State::Answering;
        (self.said, self.due) = (1, now + FIRST);
        Todo { connect: Some(theirs), ..Todo::say(Word::Reply(self.mine)) }
    }

    /// The peer said something.
    pub(super) fn hear(&mut self, word: &Word, now: Instant) -> Todo {
        match (&self.state, word) {
            (State::Expecting, Word::Request(theirs)) => self.answer_to(*theirs, now),
            (State::Asking, Word::Request(theirs)) if !self.is_lower => self.answer_to(*theirs, now),
            (State::Asking, Word::Reply(theirs)) => {
                // Who has received something has perhaps an answer that waits.
                let owes = theirs.received == 0;
                (self.state, self.owes, self.due) = (State::Open, owes, now + COURTESY);
                let say = (!owes).then_some(Word::Acknowledgement);
                Todo { connect: Some(*theirs), say, is_ready: true, failed: None }
            }
            // It is there, and asked again as long as it says so.
            (State::Asking, Word::Later) => {
                self.said = 1;
                Todo::default()
            }
            // It has not heard the answer.
            (State::Answering, Word::Request(_)) => Todo::say(Word::Reply(self.mine)),
            (State::Answering, Word::Acknowledgement) => self.open(),
            (State::Open, Word::Reply(_)) => self.acknowledge(),
            (State::Expecting | State::Asking | State::Answering, Word::Refusal(why)) => {
                self.state = State::Failed(why.clone());
                Todo { failed: Some(format!("it refused a connection: {why}")), ..Todo::default() }
            }
            (State::Open, Word::Refusal(why)) => {
                self.state = State::Failed(why.clone());
                Todo { failed: Some(format!("it gave the connection up: {why}")), ..Todo::default() }
            }
            (State::Failed(why), Word::Request(_) | Word::Reply(_)) => Todo::say(Word::Refusal(why.clone())),
            _ => Todo::default(),
        }
    }

    /// Something came over the connection.
    pub(super) fn hear_data(&mut self) -> Todo {
        if self.state == State::Answering { self.open() } else { Todo::default() }
    }

    fn acknowledge(&mut self) -> Todo {
        self.owes = false;
        Todo::say(Word::Acknowledgement)
    }

    fn open(&mut self) -> Todo {
        self.state = State::Open;
        Todo { is_ready: true, ..Todo::default() }
    }

    /// There is no connection for this side any more, if there was one.
    pub(super) fn end(&mut self, why: String) -> Todo {
        if self.refusal().is_some() { Todo::default() } else { Todo { failed: None, ..self.give_up(why) } }
    }

    /// Why there is no connection, and will be none.
    pub(super) fn refusal(&self) -> Option<Word> {
        match &self.state {
            State::Failed(why) => Some(Word::Refusal(why.clone())),
            _ => None,
        }
    }

    /// This side's end can't be connected.
    pub(super) fn give_up(&mut self, why: String) -> Todo {
        self.state = State::Failed(why.clone());
        Todo { failed: Some(why.clone()), ..Todo::say(Word::Refusal(why)) }
    }

    /// This side's end.
    pub(super) fn mine(&self) -> End {
        self.mine
    }

    /// When something is to be said, if the peer says nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = match self.state {
            State::Expecting | State::Asking | State::Answering => true,
            State::Open => self.owes,
            State::Failed(_) => false,
        };
        waits.then_some(self.due)
    }

    /// The time has come, or not.
    pub(super) fn tick(&mut self, now: Instant) -> Todo {
        if self.due().is_none_or(|due| now < due) {
            return Todo::default();
        }
        if self.state == State::Open {
            return self.acknowledge();
        }
        if self.said == MOST {
            return self.give_up(format!("no answer to {MOST} datagrams that ask for a connection"));
        }
        self.due = now + FIRST.saturating_mul(1 << self.said.min(16)).min(LONGEST);
        self.said += 1;
        if self.state == State::Expecting {
            self.state = State::Asking;
        }
        Todo::say(match self.state {
            State::Asking => Word::Request(self.mine),
            _ => Word::Reply(self.mine),
        })
    }
}

#[cfg(test)]
mod tests;
