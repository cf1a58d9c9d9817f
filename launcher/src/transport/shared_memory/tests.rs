//! Ranks as processes and threads.
#![expect(unsafe_code, reason = "lends memory to transports")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

const TASK: &str = "ROCE_TEST_SHARED_MEMORY";
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a message that is offered.
const OFFERED: usize = (2 << 20) + 5;

/// A rank of the tests: another process, which speaks through its standard input and output.
struct Rank {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Rank {
    fn start(task: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "transport::shared_memory::tests::rank", "--ignored", "--nocapture"])
            .env(TASK, task)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// What it says about something.
    fn told(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it ended before it told its {word}");
            if let Some(told) = line.trim().strip_prefix(word) {
                return told.trim().to_owned();
            }
        }
    }

    fn card(&mut self) -> Card {
        serde_json::from_str(&self.told("card")).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell(word: &str, what: &str) {
    println!("\n{word} {what}");
}

fn card_text(transport: &SharedMemory) -> String {
    serde_json::to_string(&transport.card()).unwrap()
}

fn header(operation: u32) -> Header {
    Header { kind: 1, context: 0, tag: 0, operation, length: 0 }
}

/// The same numbers on both sides.
fn length(seed: u32, number: u32, most: usize) -> usize {
    let mixed = u64::from(number ^ seed.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let most = if number.is_multiple_of(5) { most } else { 40 };
    mixed as usize % (most + 1)
}

fn bytes(number: u32, length: usize) -> Vec<u8> {
    (0..length).map(|index| (number as usize + index * 7) as u8).collect()
}

fn until<T>(mut step: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        for _ in 0..1000 {
            if let Some(done) = step() {
                return done;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
        assert!(start.elapsed() < PATIENCE, "nothing happened for {PATIENCE:?}");
    }
}

/// Sends `count` packets to each of `peers` while it receives as many from each, and checks all.
fn exchange(transport: &mut SharedMemory, me: u32, peers: &[u32], count: u32) {
    let most = transport.most(0);
    let mut sent = vec![0; peers.len()];
    let mut received = vec![0; peers.len()];
    until(|| {
        for (peer, sent) in peers.iter().zip(&mut sent) {
            while *sent < count {
                let bytes = bytes(*sent, length(me, *sent, most));
                if !transport.try_send(*peer, &header(*sent), &bytes).unwrap() {
                    break;
                }
                *sent += 1;
            }
        }
        let mut deliver = |from: u32, header: &Header, payload: Payload<'_>| {
            let index = peers.iter().position(|peer| *peer == from).unwrap();
            let number = received[index];
            assert_eq!(header.operation, number);
            assert_eq!(payload.to_vec(), bytes(number, length(from, number, most)));
            received[index] += 1;
        };
        transport.poll(&mut deliver).unwrap();
        (sent.iter().chain(&received).all(|done| *done == count)).then_some(())
    });
}

/// One rank, started by the other tests.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let mut lines = std::io::stdin().lines();
    let mut next = move || lines.next().unwrap().unwrap();
    let me = words[1].parse().unwrap();
    let ranks: Vec<u32> = words[2].split(',').map(|rank| rank.parse().unwrap()).collect();
    let mut transport = SharedMemory::new(me, ranks.clone()).unwrap();
    tell("card", &card_text(&transport));
    let cards: Vec<Card> = serde_json::from_str(&next()).unwrap();
    for (rank, card) in ranks.iter().zip(&cards) {
        transport.connect(*rank, card).unwrap();
    }
    match words[0] {
        "exchange" => {
            exchange(&mut transport, me, &ranks, 4000);
            tell("done", "");
        }
        "flood" => {
            let mut sent = 0;
            while transport.try_send(ranks[0], &header(sent), &[9; 100]).unwrap() {
                sent += 1;
            }
            tell("sent", &sent.to_string());
            next();
        }
        "memory" => {
            let bytes = bytes(3, 1 << 20);
            tell("address", &(bytes.as_ptr() as u64).to_string());
            next();
        }
        "offer" => {
            let (address, offered) = (vec![1_u8; OFFERED], vec![2; OFFERED]);
            // SAFETY: it stays there, and nobody writes to it.
            transport.offer(ranks[0], 7, &unsafe { Lent::new(&offered) });
            tell("address", &(address.as_ptr() as u64).to_string());
            until(|| {
                let mut is_over = false;
                transport.poll(&mut |_, header, _| is_over = header.operation == u32::MAX).unwrap();
                is_over.then_some(())
            });
            tell("done", "");
        }
        "echo" => loop {
            let (mut back, mut copy) = (None, [0; 1 << 13]);
            while back.is_none() {
                transport
                    .poll(&mut |_, header, payload| {
                        payload.copy_to(&mut copy[..payload.len()]);
                        back = Some((*header, payload.len()));
                    })
                    .unwrap();
            }
            let (header, length) = back.unwrap();
            assert!(transport.try_send(ranks[0], &header, &copy[..length]).unwrap());
            if header.operation == u32::MAX {
                // Nothing that spins, while the other side measures something else.
                next();
            }
        },
        other => panic!("{other}"),
    }
}

/// Starts a rank 8 which knows this one as 3, and connects both.
fn pair(task: &str) -> (SharedMemory, Rank) {
    let mut transport = SharedMemory::new(3, vec![3, 8]).unwrap();
    let mut rank = Rank::start(&format!("{task} 8 3,8"));
    let card = rank.card();
    rank.say(&serde_json::to_string(&[transport.card(), card.clone()]).unwrap());
    transport.connect(8, &card).unwrap();
    (transport, rank)
}

#[test]
fn every_rank_sends_to_every_other_and_itself() {
    let names = ["0", "1", "5"];
    let mut ranks = names.map(|name| Rank::start(&format!("exchange {name} {}", names.join(","))));
    let cards: Vec<Card> = ranks.iter_mut().map(Rank::card).collect();
    for rank in &mut ranks {
        rank.say(&serde_json::to_string(&cards).unwrap());
    }
    for rank in &mut ranks {
        rank.told("done");
    }
}

#[test]
fn what_a_dead_rank_sent_still_comes_and_nobody_waits_for_it() {
    let (mut transport, mut rank) = pair("flood");
    let sent: u32 = rank.told("sent").parse().unwrap();
    assert_eq!(sent, 64);
    rank.kill();
    let mut received = 0;
    while transport
        .poll(&mut |from, header, payload| {
            assert_eq!((from, header.operation, payload.to_vec()), (8, received, vec![9; 100]));
            received += 1;
        })
        .unwrap()
    {}
    assert_eq!(received, sent);
    let sent = (0..10_000).take_while(|number| transport.try_send(8, &header(*number), &[]).unwrap()).count();
    assert_eq!(sent, 64);
}

#[test]
fn a_long_message_has_room_whether_its_sender_waits_or_not() {
    let (mut transport, _rank) = pair("memory");
    let length = transport.unasked(8, false);
    assert_eq!((length, transport.unasked(8, true)), (UNASKED, UNASKED));
    let piece = vec![1; transport.most(8)];
    for number in 0..length / piece.len() {
        assert!(transport.try_send(8, &header(number as u32), &piece).unwrap(), "{number}");
    }
}

/// Fetches what a rank 8 has at an address, for operation 5.
fn fetch(transport: &mut SharedMemory, theirs: u32, address: u64, to: &mut [u8]) -> Result<Fetched, Broken> {
    let length = to.len();
    // SAFETY: the tests keep it until all is there.
    let mut memory = unsafe { LentMut::new(to) };
    transport.fetch(8, (theirs, Place::plain(address)), &mut memory, length, 5)
}

#[test]
fn a_peers_memory_is_read_until_it_dies() {
    let (mut transport, mut rank) = pair("memory");
    let address = rank.told("address").parse().unwrap();
    let mut to = vec![0; 1 << 20];
    if let Err(reason) = transport.readable(8) {
        assert!(reason.contains("forbids"), "{reason}");
        assert_eq!(fetch(&mut transport, 0, address, &mut to), Ok(Fetched::Impossible));
        return;
    }
    // It does nothing, so all of it is read at once.
    assert_eq!(fetch(&mut transport, 0, address, &mut to), Ok(Fetched::Done));
    assert_eq!(to, bytes(3, 1 << 20));
    assert_eq!(fetch(&mut transport, 0, address, &mut []), Ok(Fetched::Done));
    let broken = fetch(&mut transport, 0, 64, &mut to).unwrap_err();
    assert!(broken.why.contains("bytes of its memory at 0x40"), "{}", broken.why);
    transport.forget(8, "");
    rank.kill();
    let broken = fetch(&mut transport, 0, address, &mut to).unwrap_err();
    assert_eq!(broken.peer, 8);
    assert!(broken.why.ends_with("its process has ended"), "{}", broken.why);
}

/// Its sender waits, and so copies a part itself: that it has other bytes at the address than in what it has offered, shows which.
#[test]
fn a_sender_that_waits_copies_the_end_of_a_long_message() {
    let (mut transport, mut rank) = pair("offer");
    let address = rank.told("address").parse().unwrap();
    if transport.readable(8).is_err() {
        // It is sent in pieces then, by the engine.
        assert_eq!(fetch(&mut transport, 7, address, &mut [0; 8]), Ok(Fetched::Impossible));
        return;
    }
    until(|| {
        let mut to = vec![0; OFFERED];
        if fetch(&mut transport, 7, address, &mut to).unwrap() == Fetched::Started {
            until(|| {
                transport.poll(&mut |_, _, _| panic!("the engine is told of it")).unwrap();
                transport.take_fetched()
            });
        }
        let read = to.iter().take_while(|byte| **byte == 1).count();
        assert!(to[read..].iter().all(|byte| *byte == 2), "{read}");
        (0 < read && read < OFFERED).then_some(())
    });
    assert!(transport.try_send(8, &header(u32::MAX), &[]).unwrap());
    rank.told("done");
}

#[test]
fn a_word_of_a_meeting_that_was_overwritten_breaks_it() {
    let (mut transport, mut rank) = pair("memory");
    let address = rank.told("address").parse().unwrap();
    let mut to = vec![0; 1 << 20];
    let place = transport.place_of(8).unwrap();
    assert!(transport.together.want(place, (0, address), (5, &mut to)));
    transport.together.begin(place, transport.inbox.meeting(place)).unwrap();
    transport.inbox.meeting(place).store(u64::MAX, Ordering::Relaxed);
    let broken = transport.read_begun(place).unwrap_err();
    assert!(broken.peer == 8 && broken.why.contains("no rank wrote"), "{broken:?}");
}

/// Who looks for a message alone leaves it to the poll what is not for the engine.
#[test]
fn what_is_about_a_message_that_both_copy_is_no_message() {
    let [mut one, mut two] = [1, 2].map(|rank| SharedMemory::new(rank, vec![1, 2]).unwrap());
    one.connect(2, &two.card()).unwrap();
    two.poll(&mut |_, _, _| panic!("nothing was sent")).unwrap();
    let (offered, mut to) = (vec![7; 100], vec![0; 100]);
    let place = one.place_of(2).unwrap();
    assert!(one.together.want(place, (0, offered.as_ptr() as u64), (5, &mut to)));
    one.read_next(place).unwrap();
    assert!(one.together.has_finished(5) && to == offered);
    let mut take = |_: &Header, _: Payload<'_>| panic!("the engine is told of it");
    assert_eq!(two.look_for(1, 1, &mut take).unwrap(), Look::Poll);
    assert!(two.poll(&mut |_, _, _| panic!("the engine is told of it")).unwrap());
    assert_eq!(two.look_for(1, 1, &mut take).unwrap(), Look::Nothing);
}

#[test]
fn whoever_is_not_there_can_not_be_connected() {
    let (mut transport, mut rank) = pair("memory");
    let card = transport.card();
    rank.kill();
    let mut peer = SharedMemory::new(4, vec![3, 4]).unwrap();
    let mut refused = |card: &Card| peer.connect(3, card).unwrap_err().why;
    let of_another = SharedMemory::new(5, vec![5, 6]).unwrap().card();
    assert!(refused(&of_another).contains("its inbox cannot be shared: "), "{}", refused(&of_another));
    assert!(refused(&of_another).contains("No such file"), "{}", refused(&of_another));
    let longer = SharedMemory::new(5, (0..32).collect()).unwrap();
    assert!(refused(&longer.card()).contains("same build"), "{}", refused(&longer.card()));
    assert!(transport.connect(7, &card).unwrap_err().why.contains("another node"));
    assert!(transport.try_send(3, &header(0), &[]).unwrap_err().why.contains("not been opened"));
}

#[test]
fn a_ring_that_holds_nonsense_is_left_and_the_others_go_on() {
    let mut one = SharedMemory::new(1, vec![1, 2, 3]).unwrap();
    let mut two = SharedMemory::new(2, vec![1, 2, 3]).unwrap();
    let mut three = SharedMemory::new(3, vec![1, 2, 3]).unwrap();
    two.connect(1, &one.card()).unwrap();
    three.connect(1, &one.card()).unwrap();
    two.try_send(1, &header(0), &[1]).unwrap();
    let file = std::fs::File::options().write(true).open(one.inbox.card().to_string()).unwrap();
    // The first stamp of rank 2's ring: a length that can't be.
    let ring = one.inbox.ring_offset(1);
    std::os::unix::fs::FileExt::write_all_at(&file, &(u64::MAX << 32).to_ne_bytes(), ring).unwrap();
    let broken = one.poll(&mut |_, _, _| panic!("nothing to deliver")).unwrap_err();
    assert_eq!(broken.peer, 2);
    assert!(broken.why.contains("536870911 bytes"), "{}", broken.why);
    three.try_send(1, &header(7), &[5]).unwrap();
    let mut got = Vec::new();
    assert!(
        one.poll(&mut |from, header, payload| got.push((from, header.operation, payload.to_vec()))).unwrap()
    );
    assert_eq!(got, [(3, 7, vec![5])]);
}

#[test]
fn inboxes_of_many_ranks_stay_small() {
    assert_eq!(Layout::new(2).payload, 256 << 10);
    assert_eq!(Layout::new(16).payload, 128 << 10);
    assert_eq!(Layout::new(64).payload, 32 << 10);
    assert_eq!(Layout::new(256).payload, 8 << 10);
    assert_eq!(Layout::new(4096).payload, 4 << 10);
    // Places of which each lies in another word of the bits.
    let ranks: Vec<u32> = (100..300).collect();
    let mut first = SharedMemory::new(100, ranks.clone()).unwrap();
    for rank in [101, 164, 299] {
        let mut peer = SharedMemory::new(rank, ranks.clone()).unwrap();
        peer.connect(100, &first.card()).unwrap();
        peer.try_send(100, &header(rank), &[]).unwrap();
    }
    let mut got = Vec::new();
    first.poll(&mut |from, header, _| got.push((from, header.operation))).unwrap();
    assert_eq!(got, [(101, 101), (164, 164), (299, 299)]);
}

/// Half round trips of a cache line that two threads hand to each other, in ns.
fn bare(rounds: u32) -> f64 {
    #[repr(align(128))]
    struct Apart(AtomicU32);
    let (there, back) = (&Apart(AtomicU32::new(0)), &Apart(AtomicU32::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 1..=rounds {
                while there.0.load(Ordering::Acquire) != round {
                    std::hint::spin_loop();
                }
                back.0.store(round, Ordering::Release);
            }
        });
        let start = Instant::now();
        for round in 1..=rounds {
            there.0.store(round, Ordering::Release);
            while back.0.load(Ordering::Acquire) != round {
                std::hint::spin_loop();
            }
        }
        start.elapsed().as_nanos() as f64 / f64::from(rounds) / 2.0
    })
}

/// Half round trips of a message, in ns.
fn round_trips(transport: &mut SharedMemory, bytes: &[u8], rounds: u32) -> f64 {
    let start = Instant::now();
    for round in 0..rounds {
        assert!(transport.try_send(8, &header(round), bytes).unwrap());
        let mut back = false;
        while !back {
            transport.poll(&mut |_, header, _| back = header.operation == round).unwrap();
        }
    }
    start.elapsed().as_nanos() as f64 / f64::from(rounds) / 2.0
}

/// `cargo test --release -p roce-launcher --lib shared_memory::tests::latency -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn latency() {
    let (mut transport, mut rank) = pair("echo");
    for size in [0, 8, 32, 64, 256, 1024, 4096, transport.most(8)] {
        let payload = vec![1; size];
        let mut measure = || {
            let ours = round_trips(&mut transport, &payload, 20_000);
            transport.try_send(8, &header(u32::MAX), &[]).unwrap();
            until(|| transport.poll(&mut |_, _, _| ()).unwrap().then_some(()));
            let bare = bare(20_000);
            rank.say("go on");
            (ours, bare)
        };
        let mut pairs: Vec<(f64, f64)> = (0..11).map(|_| measure()).collect();
        pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (ours, bare) = pairs[pairs.len() / 2];
        let (least, greatest) = (pairs[0], pairs[pairs.len() - 1]);
        let (least, greatest) = (least.0 / least.1, greatest.0 / greatest.1);
        println!(
            "{size:5} B: {ours:7.1} ns, a bare line {bare:5.1} ns: {:.2} times ({least:.2} to {greatest:.2})",
            ours / bare
        );
    }
}
