//! A receiver and a sender without a ring or a kernel between them.

use proptest::prelude::*;

use super::*;

const PIECE_BYTES: usize = 4;
const RECEIVER: usize = 0;
const SENDER: usize = 1;
/// Steps after which all is there.
const REST: usize = if cfg!(miri) { 400 } else { 2000 };

/// Both, what the sender has sent that has not come yet, and the sender's messages by its operations.
struct Pair {
    receiver: Together,
    sender: Together,
    word: AtomicU64,
    way: VecDeque<(Header, Vec<u8>)>,
    messages: Vec<Vec<u8>>,
}

impl Pair {
    /// With messages of so many bytes, all offered.
    fn new(lengths: &[usize]) -> Self {
        let mut sender = Together::new(PIECE_BYTES);
        let message = |(number, length): (u8, &usize)| {
            (0..*length).map(|at| (at as u8).wrapping_mul(7).wrapping_add(number)).collect()
        };
        let messages: Vec<Vec<u8>> = (1..).zip(lengths).map(message).collect();
        for (operation, message) in (0..).zip(&messages) {
            // SAFETY: the messages stay as they are as long as the pair.
            sender.offer(RECEIVER, operation, unsafe { Lent::new(message) });
        }
        let (receiver, word, way) = (Together::new(PIECE_BYTES), AtomicU64::new(0), VecDeque::new());
        Self { receiver, sender, word, way, messages }
    }

    /// Wants the sender's message of an operation for one of the receiver.
    fn want(&mut self, theirs: u32, operation: u32, memory: &mut [u8]) {
        let address = self.messages[theirs as usize].as_ptr() as u64;
        assert!(self.receiver.want(SENDER, (theirs, address), (operation, memory)));
    }

    fn begin(&mut self) {
        if let Some(header) = self.receiver.begin(SENDER, &self.word) {
            assert!(is_of_meeting(&header));
            self.sender.take(RECEIVER, &header, [][..].into()).unwrap();
        }
    }

    /// Reads the next pieces from the first byte on. Whether there were any.
    fn read(&mut self) -> bool {
        let Ok(Some((address, to))) = self.receiver.take_first(SENDER, &self.word) else { return false };
        let is_in = |message: &&Vec<u8>| {
            let begin = message.as_ptr() as u64;
            (begin..begin + message.len() as u64).contains(&address)
        };
        let message = self.messages.iter().find(is_in).unwrap();
        let begin = (address - message.as_ptr() as u64) as usize;
        to.copy_from_slice(&message[begin..begin + to.len()]);
        self.receiver.end(SENDER);
        true
    }

    /// Sends the next piece from the last byte on.
    fn help(&mut self) {
        if self.sender.next_to_help().is_some()
            && let Some((header, bytes)) = self.sender.take_last(&self.word)
        {
            self.way.push_back((header, bytes.to_vec()));
        }
    }

    fn deliver(&mut self) -> Result<(), Nonsense> {
        let Some((header, bytes)) = self.way.pop_front() else { return Ok(()) };
        self.receiver.take(SENDER, &header, bytes.as_slice().into())
    }
}

#[test]
fn the_two_meet_and_nothing_is_read_twice() {
    let mut pair = Pair::new(&[4 * 20 + 1]);
    let mut memory = vec![0; 81];
    pair.want(0, 9, &mut memory);
    assert_eq!(pair.receiver.next_to_begin(), Some(SENDER));
    pair.begin();
    (0..11).for_each(|_| pair.help());
    // The last one has one byte.
    let lengths: Vec<usize> = pair.way.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!((lengths[0], &lengths[1..]), (1, &[4; 10][..]));
    // The receiver reads half of what is left, and half of that.
    let address = pair.messages[0].as_ptr() as u64;
    let (first, to) = pair.receiver.take_first(SENDER, &pair.word).unwrap().unwrap();
    assert_eq!((first - address, to.len()), (0, 20));
    let (second, to) = pair.receiver.take_first(SENDER, &pair.word).unwrap().unwrap();
    assert_eq!((second - address, to.len()), (20, 12));
    (0..5).for_each(|_| pair.help());
    assert_eq!(pair.way.len(), 13);
    assert_eq!((pair.receiver.take_first(SENDER, &pair.word), pair.sender.next_to_help()), (Ok(None), None));
    assert_eq!(pair.receiver.take_finished(), None);
    (0..12).for_each(|_| pair.deliver().unwrap());
    assert!(pair.receiver.is_under_way(SENDER) && pair.receiver.take_finished().is_none());
    pair.deliver().unwrap();
    assert!(!pair.receiver.is_under_way(SENDER));
    assert_eq!(pair.receiver.take_finished(), Some(9));
    assert_eq!(memory[32..], pair.messages[0][32..]);
}

#[test]
fn a_sender_that_does_nothing_is_not_waited_for() {
    let mut pair = Pair::new(&[1000]);
    let mut memory = vec![0; 1000];
    pair.want(0, 9, &mut memory);
    pair.begin();
    while pair.read() {}
    assert!(pair.receiver.has_finished(9) && !pair.receiver.has_finished(9));
    assert_eq!(memory, pair.messages[0]);
    pair.help();
    assert!(pair.way.is_empty());
}

#[test]
fn what_comes_of_a_message_that_was_given_up_is_nobodys() {
    let mut pair = Pair::new(&[400, 400]);
    let (mut given_up, mut memory) = (vec![0; 400], vec![0; 400]);
    pair.want(0, 1, &mut given_up);
    pair.want(1, 2, &mut memory);
    pair.begin();
    (0..3).for_each(|_| pair.help());
    pair.deliver().unwrap();
    pair.receiver.abandon(1);
    given_up.fill(0xEE);
    pair.begin();
    // It still takes pieces of the first one for what it is.
    (0..3).for_each(|_| pair.help());
    (0..6).for_each(|_| pair.deliver().unwrap());
    while pair.read() {}
    (0..6).for_each(|_| pair.deliver().unwrap());
    assert_eq!(pair.receiver.take_finished(), Some(2));
    assert!(memory == pair.messages[1] && given_up == [0xEE; 400]);
}

#[test]
fn a_message_that_was_withdrawn_is_not_read_any_more() {
    let mut pair = Pair::new(&[400]);
    let mut memory = vec![0; 400];
    pair.want(0, 1, &mut memory);
    pair.begin();
    pair.sender.withdraw(0);
    assert_eq!(pair.sender.next_to_help(), None);
    pair.help();
    assert!(pair.way.is_empty() && pair.sender.next_to_help().is_none());
    // Nor for a peer that it was not offered to, nor later.
    let late = Header { kind: BEGIN, context: 1, tag: 0, operation: 0, length: 0 };
    pair.sender.take(RECEIVER, &late, [][..].into()).unwrap();
    let mut other = Pair::new(&[400]);
    other.sender.take(SENDER, &late, [][..].into()).unwrap();
    assert_eq!((pair.sender.next_to_help(), other.sender.next_to_help()), (None, None));
}

#[test]
fn what_no_rank_sends_is_refused() {
    let mut pair = Pair::new(&[400]);
    let mut memory = vec![0; 400];
    pair.want(0, 1, &mut memory);
    pair.begin();
    pair.help();
    let (header, bytes) = pair.way.pop_front().unwrap();
    let mut take = |header: Header, bytes: &[u8]| pair.receiver.take(SENDER, &header, bytes.into());
    // Another piece than the next one, of another length, of another kind.
    assert_eq!(take(Header { length: 98, ..header }, &bytes), Err(Nonsense));
    assert_eq!(take(Header { length: 100, ..header }, &bytes), Err(Nonsense));
    assert_eq!(take(header, &bytes[1..]), Err(Nonsense));
    assert_eq!(take(Header { kind: PIECE + 1, ..header }, &bytes), Err(Nonsense));
    // More than there is, another meeting.
    for taken in [Taken { number: 1, first: 99, last: 2 }, Taken { number: 2, first: 0, last: 0 }] {
        pair.word.store(taken.word(), Ordering::Relaxed);
        assert_eq!(pair.receiver.take_first(SENDER, &pair.word), Err(Nonsense));
    }
    // Pieces that this rank has not taken.
    pair.word.store(Taken { number: 1, first: 8, last: 0 }.word(), Ordering::Relaxed);
    assert_eq!(pair.receiver.take_first(SENDER, &pair.word), Err(Nonsense));
    let begin = Header { kind: BEGIN, context: 1 << 16, tag: 0, operation: 0, length: 0 };
    assert_eq!(pair.sender.take(RECEIVER, &begin, [][..].into()), Err(Nonsense));
}

#[test]
fn more_pieces_than_are_counted_are_not_wanted() {
    assert!(Pieces::new(MOST as usize * 4, 4).is_some() && Pieces::new(MOST as usize * 4 + 1, 4).is_none());
    let most = Taken { number: u16::MAX, first: MOST, last: MOST };
    assert_eq!(Taken::of(most.word()), most);
    assert_eq!(most.left(MOST), 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    Read,
    Help,
    Deliver,
    Abandon(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Begin),
        2 => Just(Step::Read),
        8 => Just(Step::Help),
        8 => Just(Step::Deliver),
        1 => (0u32..6).prop_map(Step::Abandon),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 300 }))]

    /// Whoever comes when: messages are there in their order, whole, and what was given up is not touched.
    #[test]
    fn messages_come_whole_and_in_their_order(
        lengths in proptest::collection::vec(1usize..300, 1..if cfg!(miri) { 2 } else { 6 }),
        steps in proptest::collection::vec(step(), 0..400),
    ) {
        let mut pair = Pair::new(&lengths);
        let mut memories: Vec<Vec<u8>> = lengths.iter().map(|length| vec![0; *length]).collect();
        for (operation, memory) in (0..).zip(&mut memories) {
            pair.want(operation, operation, memory);
        }
        let mut awaited: VecDeque<u32> = (0..lengths.len() as u32).collect();
        let rest = (0..REST).map(|at| [Step::Begin, Step::Read, Step::Help, Step::Deliver][at % 4]);
        for step in steps.into_iter().chain(rest) {
            match step {
                Step::Begin => pair.begin(),
                Step::Read => _ = pair.read(),
                Step::Help => pair.help(),
                Step::Deliver => prop_assert_eq!(pair.deliver(), Ok(())),
                Step::Abandon(operation) if awaited.contains(&operation) => {
                    pair.receiver.abandon(operation);
                    awaited.retain(|other| *other != operation);
                    memories[operation as usize].fill(0xEE);
                }
                Step::Abandon(_) => {}
            }
            while let Some(operation) = pair.receiver.take_finished() {
                prop_assert_eq!(awaited.pop_front(), Some(operation));
                prop_assert_eq!(&memories[operation as usize], &pair.messages[operation as usize]);
                memories[operation as usize].fill(0xEE);
                pair.sender.withdraw(operation);
            }
        }
        prop_assert!(awaited.is_empty());
        prop_assert!(memories.iter().flatten().all(|byte| *byte == 0xEE));
    }
}
