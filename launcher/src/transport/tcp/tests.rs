//! Whole jobs in one process, over loopback.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::messages::engine::{Engine, Received};
use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Label, Wanted};

const LIMIT: Duration = Duration::from_secs(30);

fn secret() -> Secret {
    Secret::new([7; 32])
}

/// Ranks on as many nodes, all of them this machine. Who has another secret is a stranger.
fn endpoints(secrets: &[Secret]) -> Vec<Tcp> {
    let listening: Vec<_> = secrets.iter().map(|_| Listening::start(None).unwrap()).collect();
    let ports: Vec<u16> = listening.iter().map(|one| one.card().port).collect();
    let peers = |rank| Peers {
        rank,
        places: (0..).zip(&ports).map(|(node, port)| Place { node, port: *port }).collect(),
        nodes: ports.iter().map(|_| "127.0.0.1".to_owned()).collect(),
        addresses: NodeAddresses::default(),
    };
    let all = (0..).zip(listening).zip(secrets);
    all.map(|((rank, one), secret)| Tcp::new(one, secret.clone(), peers(rank)).unwrap()).collect()
}

fn pair() -> [Tcp; 2] {
    endpoints(&[secret(), secret()]).try_into().ok().unwrap()
}

fn header(number: u32) -> Header {
    Header { kind: 1, context: 0, tag: 0, operation: number, length: 0 }
}

fn payload(number: u32, length: usize) -> Vec<u8> {
    (0..length).map(|place| (number as usize * 7 + place) as u8).collect()
}

/// What a rank got: who sent it, its number, its bytes.
type Got = Vec<(u32, u32, Vec<u8>)>;

fn poll(tcp: &mut Tcp, got: &mut Got) -> Result<bool, Broken> {
    tcp.poll(&mut |peer, header, payload| got.push((peer, header.operation, payload.to_vec())))
}

/// Polls all until it is so.
fn until(all: &mut [Tcp], got: &mut [Got], mut is_so: impl FnMut(&[Tcp], &[Got]) -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so(all, got) {
        assert!(Instant::now() < end, "{:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
        for (tcp, got) in all.iter_mut().zip(&mut *got) {
            poll(tcp, got).unwrap();
        }
    }
}

/// Sends from one of them; all are polled until it can go out.
fn send(all: &mut [Tcp], got: &mut [Got], (from, to): (usize, u32), number: u32, bytes: &[u8]) {
    let end = Instant::now() + LIMIT;
    while !all[from].try_send(to, &header(number), bytes).unwrap() {
        assert!(Instant::now() < end);
        for (tcp, got) in all.iter_mut().zip(&mut *got) {
            poll(tcp, got).unwrap();
        }
    }
}

/// Polls one until it is told that a peer is gone.
fn until_broken(tcp: &mut Tcp, got: &mut Got) -> Broken {
    let end = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < end);
        if let Err(broken) = poll(tcp, got) {
            return broken;
        }
    }
}

/// What the kernel does to a process that is killed: everything is closed, nothing is said.
fn kill(mut tcp: Tcp) {
    tcp.links.clear();
    tcp.calling.clear();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is sent when, and whoever calls whom first: all arrives, whole, in the order of its sender.
    #[test]
    fn packets_arrive_whole_and_in_order(
        count in prop_oneof![Just(2u32), Just(4)],
        steps in proptest::collection::vec((0u32..4, 1u32..4, prop_oneof![0usize..100, 0usize..=MOST], 0u8..3), 1..60),
    ) {
        let mut all = endpoints(&vec![secret(); count as usize]);
        let mut got = vec![Got::new(); count as usize];
        let mut sent = vec![Got::new(); count as usize];
        for (number, (from, to, length, polls)) in (0..).zip(steps) {
            let from = from % count;
            let to = (from + 1 + to % (count - 1)) % count;
            let bytes = payload(number, length);
            while !all[from as usize].try_send(to, &header(number), &bytes).unwrap() {
                for (tcp, got) in all.iter_mut().zip(&mut got) { poll(tcp, got).unwrap(); }
            }
            sent[to as usize].push((from, number, bytes));
            for _ in 0..polls {
                let rank = number as usize % all.len();
                poll(&mut all[rank], &mut got[rank]).unwrap();
            }
        }
        until(&mut all, &mut got, |_, got| got.iter().zip(&sent).all(|(got, sent)| got.len() >= sent.len()));
        for (got, sent) in got.iter().zip(&sent) {
            for peer in 0..count {
                let of_peer = |all: &Got| all.iter().filter(|one| one.0 == peer).cloned().collect::<Vec<_>>();
                prop_assert!(of_peer(got) == of_peer(sent));
            }
        }
    }

    /// With the engine on top: messages of one packet and of many, in both directions at once.
    #[test]
    fn messages_arrive_whole_and_in_order(
        count in prop_oneof![Just(2u32), Just(4)],
        messages in proptest::collection::vec((0u32..4, 1u32..4, 0u32..2, prop_oneof![0usize..100, 0usize..300_000]), 1..16),
        receives_first: bool,
    ) {
        let mut engines: Vec<_> = (0..).zip(endpoints(&vec![secret(); count as usize])).map(|(rank, tcp)| Engine::new(rank, tcp)).collect();
        let messages: Vec<(u32, u32, u32, Vec<u8>)> = (0..).zip(messages).map(|(number, (from, to, tag, length))| {
            let from = from % count;
            (from, (from + 1 + to % (count - 1)) % count, tag, payload(number, length))
        }).collect();
        let mut memory: Vec<Vec<u8>> = messages.iter().map(|message| vec![0; message.3.len()]).collect();
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for round in [receives_first, !receives_first] {
            for ((from, to, tag, bytes), memory) in messages.iter().zip(&mut memory) {
                if round {
                    let wanted = Wanted { source: Some(*from), tag: Some(*tag) };
                    receives.push(engines[*to as usize].receive(0, wanted, lend_mut(memory)));
                } else {
                    sends.extend(engines[*from as usize].send(0, *to, *tag, lend(bytes), false).unwrap().map(|send| (*from, send)));
                }
            }
        }
        let end = Instant::now() + LIMIT;
        while !messages.iter().zip(&receives).all(|((_, to, ..), receive)| engines[*to as usize].is_over(*receive))
            || !sends.iter().all(|(from, send)| engines[*from as usize].is_over(*send)) {
            prop_assert!(Instant::now() < end);
            engines.iter_mut().for_each(|engine| _ = engine.progress());
        }
        for (((source, to, tag, bytes), receive), memory) in messages.iter().zip(receives).zip(memory) {
            let expected = Received { label: Label { source: *source, tag: *tag }, length: bytes.len() };
            prop_assert_eq!(engines[*to as usize].take_outcome(receive), Some(Ok(Some(expected))));
            prop_assert!(memory == *bytes);
        }
    }
}

#[expect(unsafe_code, reason = "the test keeps its memory as long as the engines")]
fn lend(bytes: &[u8]) -> Lent {
    // SAFETY: as the reason says.
    unsafe { Lent::new(bytes) }
}

#[expect(unsafe_code, reason = "the test keeps its memory as long as the engines")]
fn lend_mut(bytes: &mut [u8]) -> LentMut {
    // SAFETY: as the reason says.
    unsafe { LentMut::new(bytes) }
}

#[test]
fn two_that_call_each_other_at_once_keep_one_connection_and_every_packet() {
    let mut yielded = 0;
    for round in 0u32..1000 {
        let mut all = pair();
        let mut got = vec![Got::new(); 2];
        let mut order = round;
        let mut sent = [0; 2];
        for attempt in 0..3 {
            for rank in [round & 1, 1 - (round & 1)] {
                let number = &mut sent[rank as usize];
                if all[rank as usize].try_send(1 - rank, &header(*number), &payload(*number, 10)).unwrap() {
                    *number += 1;
                }
                // Any interleaving of the first steps.
                if attempt > 0 || order & 4 == 0 {
                    let one = (order >> 1 & 1) as usize;
                    poll(&mut all[one], &mut got[one]).unwrap();
                    all[one].quiet = None;
                }
                order = order.rotate_right(3);
            }
        }
        yielded +=
            usize::from(all.iter().all(|one| matches!(one.links[..], [Some(_), None] | [None, Some(_)])));
        for (rank, sent) in sent.into_iter().enumerate() {
            for number in sent..3 {
                send(&mut all, &mut got, (rank, 1 - rank as u32), number, &payload(number, 10));
            }
        }
        until(&mut all, &mut got, |_, got| got.iter().all(|got| got.len() >= 3));
        for (rank, got) in (0..).zip(&got) {
            let sent: Got = (0..3).map(|number| (1 - rank, number, payload(number, 10))).collect();
            assert_eq!(*got, sent, "round {round}");
        }
        until(&mut all, &mut got, |all, _| all.iter().all(|one| one.strangers.is_empty()));
        for one in &all {
            assert_eq!((one.connected, one.calling.len()), (1, 0));
        }
        // Who closes alone waits for an acknowledgement that the kernel there puts off for 40 ms.
        thread::scope(|scope| all.into_iter().for_each(|one| drop(scope.spawn(|| drop(one)))));
    }
    assert_eq!(yielded, 1000);
}

#[test]
fn who_cannot_prove_to_be_a_rank_is_refused_and_the_others_go_on() {
    let mut all = endpoints(&[secret(), secret(), Secret::new([8; 32])]);
    let mut got = vec![Got::new(); 3];
    let mut garbage = TcpStream::connect(("127.0.0.1", all[1].shared.places[1].port)).unwrap();
    garbage.write_all(&[0x55; 4096]).unwrap();
    let mut silent = TcpStream::connect(("127.0.0.1", all[1].shared.places[1].port)).unwrap();
    // It calls; nothing is sent before the call is answered.
    assert!(!all[2].try_send(1, &header(0), b"stranger").unwrap());
    let stranger = all.remove(2);
    let mut theirs = got.remove(2);
    let mut stranger = stranger;
    let end = Instant::now() + LIMIT;
    let broken = loop {
        assert!(Instant::now() < end);
        if let Err(broken) = poll(&mut stranger, &mut theirs) {
            break broken;
        }
        for (tcp, got) in all.iter_mut().zip(&mut got) {
            poll(tcp, got).unwrap();
        }
    };
    let port = all[0].shared.places[1].port;
    let why = format!("127.0.0.1:{port}: whoever listens there can't prove to be that rank of this job");
    assert_eq!(broken, Broken { peer: 1, why });
    send(&mut all, &mut got, (0, 1), 1, b"friend");
    until(&mut all, &mut got, |_, got| !got[1].is_empty());
    assert_eq!(got[1], [(0, 1, b"friend".to_vec())]);
    assert!(theirs.is_empty());
    // The one that sent garbage was hung up on; the one that says nothing has time.
    garbage.set_read_timeout(Some(LIMIT)).unwrap();
    assert!(matches!(garbage.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(all[1].strangers.len(), 1);
    all[1].turn_away_the_late(Instant::now() + STRANGER);
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
}

/// A caller that has not the secret, but does all else right, never gets a connection.
#[test]
fn a_callers_proof_is_looked_at() {
    let [mut one, other] = pair();
    let caller = handshake_caller(&other);
    let mut socket = TcpStream::connect(("127.0.0.1", one.shared.places[0].port)).unwrap();
    socket.write_all(&caller.hello()).unwrap();
    let mut got = Got::new();
    let end = Instant::now() + LIMIT;
    while one.strangers.values().all(|stranger| !stranger.is_answered()) {
        assert!(Instant::now() < end);
        poll(&mut one, &mut got).unwrap();
    }
    let mut answer = [0; roce_bootstrap::handshake::ANSWER];
    socket.read_exact(&mut answer).unwrap();
    let mut proof = caller.check(&secret(), &answer).unwrap().1;
    proof[31] ^= 1;
    socket.write_all(&proof).unwrap();
    while !one.strangers.is_empty() {
        assert!(Instant::now() < end);
        poll(&mut one, &mut got).unwrap();
    }
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    assert!(one.links.iter().all(Option::is_none));
}

fn handshake_caller(rank_1: &Tcp) -> roce_bootstrap::handshake::Caller {
    roce_bootstrap::handshake::Caller::new(rank_1.shared.call(1, 0), [3; 32])
}

#[test]
fn strangers_are_bounded_in_number() {
    let [one, two] = pair();
    let mut all = [one, two];
    let mut got = vec![Got::new(); 2];
    let port = all[0].shared.places[0].port;
    let mut crowd = Vec::new();
    for _ in 0..MOST_STRANGERS + 50 {
        crowd.push(TcpStream::connect(("127.0.0.1", port)).unwrap());
        all[0].quiet = None;
        poll(&mut all[0], &mut got[0]).unwrap();
        assert!(all[0].strangers.len() <= MOST_STRANGERS);
    }
    assert_eq!(all[0].strangers.len(), MOST_STRANGERS);
    assert_eq!(crowd[0].read(&mut [0]).unwrap(), 0);
    send(&mut all, &mut got, (1, 0), 5, b"x");
    until(&mut all, &mut got, |_, got| !got[0].is_empty());
}

#[test]
fn what_a_killed_peer_sent_comes_before_its_end_is_told_once() {
    for unread in [false, true] {
        let mut all = pair();
        let mut got = vec![Got::new(); 2];
        send(&mut all, &mut got, (0, 1), 0, b"first");
        until(&mut all, &mut got, |_, got| !got[1].is_empty());
        if unread {
            // It is killed before it reads this, and so its kernel resets the connection.
            all[1].try_send(0, &header(9), b"never read").unwrap();
        }
        let [killed, mut left] = all;
        let mut killed = killed;
        for number in 1..=5 {
            assert!(killed.try_send(1, &header(number), &payload(number, 20_000)).unwrap());
        }
        kill(killed);
        if unread {
            // This rank notices while it sends.
            while left.try_send(0, &header(10), b"in vain").unwrap() {}
        }
        got[1].clear();
        let broken = until_broken(&mut left, &mut got[1]);
        let sent: Got = (1..=5).map(|number| (0, number, payload(number, 20_000))).collect();
        assert!(got[1] == sent, "{unread}: {}", got[1].len());
        let why = if unread { "the connection broke: " } else { "it closed the connection: it has ended" };
        assert!(broken.peer == 0 && broken.why.starts_with(why), "{broken:?}");
        left.quiet = None;
        assert_eq!(poll(&mut left, &mut got[1]), Ok(false));
        assert_eq!(left.try_send(0, &header(11), b""), Err(broken));
    }
}

#[test]
fn a_packet_that_makes_no_sense_costs_the_connection() {
    let mut all = pair();
    let mut got = vec![Got::new(); 2];
    send(&mut all, &mut got, (0, 1), 0, b"first");
    until(&mut all, &mut got, |_, got| !got[1].is_empty());
    let Some(Link::Up(connection)) = all[0].links[1].as_deref() else { panic!() };
    let socket = connection.as_fd().try_clone_to_owned().unwrap();
    TcpStream::from(socket).write_all(&[0xff; 64]).unwrap();
    let broken = until_broken(&mut all[1], &mut got[1]);
    assert!(broken.why.starts_with("it sent a packet of 4294967295 bytes"), "{broken:?}");
}

#[test]
fn dropping_sends_what_was_accepted() {
    let mut all = pair();
    let mut got = vec![Got::new(); 2];
    send(&mut all, &mut got, (0, 1), 0, b"hello");
    until(&mut all, &mut got, |_, got| !got[1].is_empty());
    got[1].clear();
    assert!(all[1].try_send(0, &header(0), b"unread").unwrap());
    let [mut goes, mut stays] = all;
    // More than a socket holds.
    let mut accepted = 0;
    while goes.try_send(1, &header(accepted), &payload(accepted, MOST)).unwrap() {
        accepted += 1;
        assert!(accepted < 200, "it all fits");
    }
    assert!(goes.is_sending());
    let dropping = thread::spawn(move || drop(goes));
    let broken = until_broken(&mut stays, &mut got[1]);
    dropping.join().unwrap();
    assert!(broken.why.starts_with("it closed the connection: it has ended"), "{broken:?}");
    let sent: Got = (0..accepted).map(|number| (0, number, payload(number, MOST))).collect();
    assert!(got[1] == sent, "{} of {accepted}", got[1].len());
}

#[test]
fn a_peer_that_is_not_there_is_an_error_with_what_was_tried() {
    let [one, other] = pair();
    drop(other);
    let mut one = one;
    one.try_send(1, &header(0), b"x").unwrap();
    let broken = until_broken(&mut one, &mut Got::new());
    let port = one.shared.places[1].port;
    assert_eq!(broken, Broken { peer: 1, why: format!("127.0.0.1:{port}: Connection refused") });
    let nobody = one.try_send(2, &header(0), b"x").unwrap_err();
    assert_eq!(nobody.why, "there is no such rank");
}

#[test]
fn a_site_may_say_which_ports() {
    let taken = Listening::start(None).unwrap();
    let port = taken.card().port;
    let error = Listening::start(Some(&(port..=port))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let range = port..=port.saturating_add(50);
    let other = Listening::start(Some(&range)).unwrap().card().port;
    assert!(range.contains(&other) && other != port);
}
