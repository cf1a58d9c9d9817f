//! How two ranks come to know each other's ends of a connection, over datagrams that may be lost, repeated and overtaken.
//!
//! ```text
//! asking   -> answering   hello; both make their ends
//! asking   -> answering   request, with its end
//! answering: connects its end
//! answering -> asking     reply, with its end
//! asking: connects its end, and may send
//! asking   -> answering   what it sends, or an acknowledgement; answering may send
//! ```
//! The hello spares time and nothing else: who has heard none makes its end when it hears the request, and who has heard no request for
//! a while after it asks itself.
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
    /// Packets that have come from the other side over connections before this one.
    pub(super) received: u64,
}

/// What is said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// The speaker makes its end now, and will ask with it.
    Hello,
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
                (self.state, self.owes, self.due) = (State::Open, true, now + COURTESY);
                Todo { connect: Some(*theirs), is_ready: true, ..Todo::default() }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A rank as the service drives it.
    struct Side {
        rank: u32,
        handshake: Option<Handshake>,
        connected: Vec<End>,
        is_ready: bool,
        failed: Option<String>,
    }

    fn end(rank: u32) -> End {
        End {
            qp_number: 100 + rank,
            psn: 7 * rank,
            mtu: 1024,
            initiator_depth: 16,
            responder_depth: 16,
            received: 0,
        }
    }

    impl Side {
        fn new(rank: u32) -> Self {
            Self { rank, handshake: None, connected: Vec::new(), is_ready: false, failed: None }
        }

        fn act(&mut self, todo: Todo) -> Option<Word> {
            self.connected.extend(todo.connect);
            self.is_ready |= todo.is_ready;
            self.failed = self.failed.take().or(todo.failed);
            assert!(!todo.is_ready || self.connected.len() == 1, "ready and not connected");
            todo.say
        }

        fn ask(&mut self, now: Instant) -> Vec<Word> {
            if self.handshake.is_some() {
                return Vec::new();
            }
            let (handshake, todo) = Handshake::ask(self.rank, 1 - self.rank, end(self.rank), now);
            self.handshake = Some(handshake);
            [Word::Hello].into_iter().chain(self.act(todo)).collect()
        }

        fn hear(&mut self, word: &Word, now: Instant) -> Option<Word> {
            let todo = match (&mut self.handshake, word) {
                (Some(handshake), word) => handshake.hear(word, now),
                (None, Word::Request(theirs)) => {
                    let (handshake, todo) =
                        Handshake::answer(self.rank, 1 - self.rank, end(self.rank), *theirs, now);
                    self.handshake = Some(handshake);
                    todo
                }
                (None, Word::Hello) => {
                    self.handshake = Some(Handshake::expect(self.rank, 1 - self.rank, end(self.rank), now));
                    Todo::default()
                }
                (None, _) => Todo::default(),
            };
            self.act(todo)
        }

        fn tick(&mut self, now: Instant) -> Option<Word> {
            let todo = self.handshake.as_mut()?.tick(now);
            self.act(todo)
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Ask(usize),
        /// Deliver a datagram that is on its way, and keep it for another time or not.
        Deliver(usize, usize, bool),
        Lose(usize, usize),
        Wait(u64),
        /// Something sent over the connection comes.
        Data(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => (0usize..2).prop_map(Event::Ask),
            5 => (0usize..2, any::<usize>(), any::<bool>()).prop_map(|(to, which, again)| Event::Deliver(to, which, again)),
            2 => (0usize..2, any::<usize>()).prop_map(|(to, which)| Event::Lose(to, which)),
            2 => (1u64..150).prop_map(Event::Wait),
            1 => (0usize..2).prop_map(Event::Data),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// Whatever the network did for a while: once it delivers, both sides are ready, each connected once, to the other's end; and nobody
        /// was ready before the other side was connected.
        #[test]
        fn both_sides_connect_once_whatever_the_network_does(events in proptest::collection::vec(event(), 0..30), first in 0usize..2) {
            let mut now = Instant::now();
            let mut sides = [Side::new(0), Side::new(1)];
            let mut ways: [Vec<Word>; 2] = Default::default();
            for event in events {
                let (from, word) = match event {
                    Event::Ask(side) => {
                        let words = sides[side].ask(now);
                        ways[1 - side].extend(words);
                        continue;
                    }
                    Event::Deliver(to, which, again) if !ways[to].is_empty() => {
                        let which = which % ways[to].len();
                        let word = if again { ways[to][which].clone() } else { ways[to].remove(which) };
                        (to, sides[to].hear(&word, now))
                    }
                    Event::Lose(to, which) if !ways[to].is_empty() => {
                        let which = which % ways[to].len();
                        ways[to].remove(which);
                        continue;
                    }
                    Event::Wait(time) => {
                        now += Duration::from_millis(time);
                        for side in 0..2 {
                            let word = sides[side].tick(now);
                            ways[1 - side].extend(word);
                        }
                        continue;
                    }
                    // Only who is ready sends.
                    Event::Data(to) if sides[1 - to].is_ready => {
                        let todo = sides[to].handshake.as_mut().map(Handshake::hear_data).unwrap_or_default();
                        (to, sides[to].act(todo))
                    }
                    _ => continue,
                };
                ways[1 - from].extend(word);
                for side in 0..2 {
                    prop_assert!(!sides[side].is_ready || sides[1 - side].connected.len() == 1);
                }
            }
            // They may have given up meanwhile, which is right where nothing comes for so long.
            if sides.iter().any(|side| side.failed.is_some()) { return Ok(()); }
            let words = sides[first].ask(now);
            ways[1 - first].extend(words);
            for _ in 0..40 {
                for to in 0..2 {
                    for word in std::mem::take(&mut ways[to]) {
                        let answer = sides[to].hear(&word, now);
                        ways[1 - to].extend(answer);
                    }
                    let word = sides[to].tick(now);
                    ways[1 - to].extend(word);
                }
                now += Duration::from_millis(100);
            }
            for side in &sides {
                prop_assert!(side.is_ready && side.failed.is_none());
                prop_assert_eq!(&side.connected, &[end(1 - side.rank)]);
            }
            prop_assert!(ways.iter().all(Vec::is_empty));
        }
    }

    #[test]
    fn silence_is_an_end_in_time_and_told_to_who_asks_later() {
        let mut now = Instant::now();
        let begin = now;
        let (mut asking, _) = Handshake::ask(0, 1, end(0), now);
        let failed = loop {
            now = asking.due().unwrap();
            let todo = asking.tick(now);
            if todo.failed.is_some() {
                break todo;
            }
            assert_eq!(todo.say, Some(Word::Request(end(0))));
        };
        assert!(now - begin < Duration::from_secs(20) && now - begin > Duration::from_secs(10));
        assert!(failed.failed.unwrap().contains("no answer"));
        assert_eq!(asking.due(), None);
        assert!(matches!(asking.hear(&Word::Request(end(1)), now).say, Some(Word::Refusal(_))));
    }

    #[test]
    fn who_has_heard_a_hello_answers_the_request_and_asks_itself_when_none_comes() {
        let now = Instant::now();
        let todo = Handshake::expect(0, 1, end(0), now).hear(&Word::Request(end(1)), now);
        assert_eq!((todo.connect, todo.say), (Some(end(1)), Some(Word::Reply(end(0)))));

        let mut expecting = Handshake::expect(1, 0, end(1), now);
        assert_eq!(expecting.hear(&Word::Hello, now), Todo::default());
        assert_eq!(expecting.tick(now), Todo::default());
        let later = expecting.due().unwrap();
        assert_eq!(expecting.tick(later).say, Some(Word::Request(end(1))));
        assert!(expecting.hear(&Word::Reply(end(0)), later).is_ready);

        // Whose end could not be made says so.
        let mut expecting = Handshake::expect(0, 1, end(0), now);
        let todo = expecting.hear(&Word::Refusal("no memory".to_owned()), now);
        assert_eq!(todo.failed.as_deref(), Some("it refused a connection: no memory"));
        assert_eq!(expecting.due(), None);
    }

    #[test]
    fn an_acknowledgement_is_kept_back_a_moment_and_said_once() {
        let now = Instant::now();
        let (mut asking, _) = Handshake::ask(0, 1, end(0), now);
        let todo = asking.hear(&Word::Reply(end(1)), now);
        assert_eq!((todo.connect, todo.say, todo.is_ready), (Some(end(1)), None, true));
        assert_eq!(asking.tick(now), Todo::default());
        let later = asking.due().unwrap();
        assert!(later < now + FIRST);
        assert_eq!(asking.tick(later), Todo::say(Word::Acknowledgement));
        assert_eq!((asking.due(), asking.tick(later + LONGEST)), (None, Todo::default()));
        // Where it was lost.
        assert_eq!(asking.hear(&Word::Reply(end(1)), later), Todo::say(Word::Acknowledgement));
    }

    /// A rank that computes answers late, however late.
    #[test]
    fn who_hears_later_asks_on() {
        let mut now = Instant::now();
        let (mut asking, _) = Handshake::ask(0, 1, end(0), now);
        for _ in 0..50 {
            now = asking.due().unwrap();
            assert_eq!(asking.tick(now).say, Some(Word::Request(end(0))));
            assert_eq!(asking.hear(&Word::Later, now), Todo::default());
        }
        assert!(asking.hear(&Word::Reply(end(1)), now).is_ready);
    }

    #[test]
    fn who_ends_it_refuses_from_then_on_and_the_other_hears_why() {
        let now = Instant::now();
        let (mut answering, _) = Handshake::answer(1, 0, end(1), end(0), now);
        let (mut asking, _) = Handshake::ask(0, 1, end(0), now);
        asking.hear(&Word::Reply(end(1)), now);
        let todo = asking.end("the port is down".to_owned());
        assert_eq!((todo.failed, &todo.say), (None, &Some(Word::Refusal("the port is down".to_owned()))));
        assert_eq!(asking.end("again".to_owned()), Todo::default());
        assert!(answering.hear_data().is_ready);
        let failed = answering.hear(&todo.say.unwrap(), now).failed.unwrap();
        assert_eq!(failed, "it gave the connection up: the port is down");
    }

    #[test]
    fn a_refusal_ends_it_with_the_others_words() {
        let now = Instant::now();
        let (mut asking, _) = Handshake::ask(1, 0, end(1), now);
        let todo = asking.hear(&Word::Refusal("no memory".to_owned()), now);
        assert_eq!(todo.failed.as_deref(), Some("it refused a connection: no memory"));
        assert_eq!(asking.hear(&Word::Reply(end(0)), now).connect, None);
    }
}
