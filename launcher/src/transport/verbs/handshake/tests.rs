use proptest::prelude::*;

use super::*;

/// A rank as the service drives it.
struct Side {
    rank: u32,
    handshake: Option<Handshake>,
    connected: Vec<End>,
    is_ready: bool,
    failed: Option<String>,
    /// What came with hellos and was taken.
    early: Vec<Vec<u8>>,
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
        let (connected, early) = (Vec::new(), Vec::new());
        Self { rank, handshake: None, connected, is_ready: false, failed: None, early }
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
        [Word::Hello(vec![self.rank as u8])].into_iter().chain(self.act(todo)).collect()
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
            (None, Word::Hello(early)) => {
                self.early.push(early.clone());
                let mine = End { received: 1, ..end(self.rank) };
                self.handshake = Some(Handshake::expect(self.rank, 1 - self.rank, mine, now));
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
    /// was ready before the other side was connected. The packet that a hello brings comes once: with it, or over the connection, if the
    /// other side's end says that it has received none.
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
            let other = &sides[1 - side.rank as usize];
            let received = other.early.len() as u64;
            prop_assert!(received <= 1 && other.early.iter().all(|early| *early == [side.rank as u8]));
            prop_assert_eq!(&side.connected, &[End { received, ..end(other.rank) }]);
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
    assert_eq!(expecting.hear(&Word::Hello(vec![1]), now), Todo::default());
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
fn an_acknowledgement_is_kept_back_a_moment_where_nobody_waits_for_it_and_said_once() {
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

    // A packet went before the connection, and its receiver may wait to answer it.
    let (mut asking, _) = Handshake::ask(0, 1, end(0), now);
    let received = End { received: 1, ..end(1) };
    let said = asking.hear(&Word::Reply(received), now);
    assert_eq!((said.connect, said.say, said.is_ready), (Some(received), Some(Word::Acknowledgement), true));
    assert_eq!(asking.due(), None);
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
