//! Ranks that join over loopback, in one process: what goes right, and everything that may stand in the way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use roce_bootstrap::{Bootstrap, Error, Event, Identity, Launch, Node, Options, Secret};

/// Each test is a step of its own, so that no two meet.
static STEP: AtomicU32 = AtomicU32::new(0);
/// And has ports of its own where it must know them.
static PORT: AtomicU16 = AtomicU16::new(20_000);

fn step(size: u32) -> (u32, u32) {
    (STEP.fetch_add(1, Ordering::Relaxed), size)
}

/// All ranks on one node.
fn identity(step: (u32, u32), rank: u32) -> Identity {
    place(step.0, &[("here", step.1)], rank)
}

/// Two ranks on as many nodes, which are all this machine.
fn apart(step: (u32, u32), rank: u32) -> Identity {
    place(step.0, &[("127.0.0.1", 1), ("127.0.0.1", 1)], rank)
}

/// A rank where the ranks are dealt to the nodes in blocks.
fn place(step: u32, nodes: &[(&str, u32)], rank: u32) -> Identity {
    let launch = Launch::Slurm { job: std::process::id(), step };
    let size = nodes.iter().map(|node| node.1).sum();
    let (mut node_index, mut local_rank) = (0, rank);
    while local_rank >= nodes[node_index].1 {
        local_rank -= nodes[node_index].1;
        node_index += 1;
    }
    let nodes = nodes.iter().map(|(name, tasks)| Node { name: (*name).to_owned(), tasks: *tasks }).collect();
    let node_index = u32::try_from(node_index).unwrap();
    Identity { rank, size, local_rank, node_index, nodes, launch }
}

fn options() -> Options {
    let second = Duration::from_secs(1);
    Options { join: 20 * second, collective: 20 * second, handshake: 5 * second, ..Options::default() }
}

fn secret() -> Secret {
    Secret::new([7; 32])
}

/// So many free ports, as the range of candidates; the first of them.
fn some_ports(options: &mut Options, count: u16) -> u16 {
    loop {
        let first = PORT.fetch_add(count, Ordering::Relaxed);
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            options.ports = first..=first + count - 1;
            return first;
        }
    }
}

/// Runs every rank in a thread of its own, and gives what each returned.
fn run<T: Send>(step: (u32, u32), rank: impl Fn(Identity) -> T + Sync) -> Vec<T> {
    run_as(step, identity, rank)
}

/// The same where `place` says where the ranks are.
fn run_as<T: Send>(
    step: (u32, u32),
    place: impl Fn((u32, u32), u32) -> Identity + Sync,
    rank: impl Fn(Identity) -> T + Sync,
) -> Vec<T> {
    let (place, rank) = (&place, &rank);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..step.1).map(|i| scope.spawn(move || rank(place(step, i)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn join_and_gather(identity: Identity, options: &Options) -> Result<Vec<Vec<u8>>, Error> {
    let (rank, size) = (identity.rank, identity.size);
    let mut joined = Bootstrap::join(identity, Some(&secret()), options)?;
    joined.barrier()?;
    let all = joined.all_gather(&vec![u8::try_from(rank).unwrap(); rank as usize])?;
    assert_eq!(joined.broadcast(size - 1, &rank.to_be_bytes())?, (size - 1).to_be_bytes());
    joined.barrier()?;
    Ok(all.iter().map(<[u8]>::to_vec).collect())
}

fn assert_all_gathered(results: Vec<Result<Vec<Vec<u8>>, Error>>) {
    let expected: Vec<Vec<u8>> = (0..results.len()).map(|i| vec![u8::try_from(i).unwrap(); i]).collect();
    for result in results {
        assert_eq!(result.unwrap(), expected);
    }
}

#[test]
fn four_and_sixteen_ranks_gather_each_others_bytes() {
    for size in [2, 4, 16] {
        assert_all_gathered(run(step(size), |identity| join_and_gather(identity, &options())));
    }
}

#[test]
fn ranks_of_several_nodes_gather_each_others_bytes() {
    for counts in [&[1, 1][..], &[2, 2], &[1, 3, 2], &[1; 5], &[4, 1, 1, 3, 2, 1, 2], &[1; 9]] {
        let nodes: Vec<_> = counts.iter().map(|count| ("127.0.0.1", *count)).collect();
        let place = |step: (u32, u32), rank| place(step.0, &nodes, rank);
        assert_all_gathered(run_as(step(counts.iter().sum()), place, |identity| {
            join_and_gather(identity, &options())
        }));
    }
}

#[test]
fn nodes_are_found_by_name_too() {
    let place = |step: (u32, u32), rank| place(step.0, &[("localhost", 2), ("localhost", 1)], rank);
    assert_all_gathered(run_as(step(3), place, |identity| join_and_gather(identity, &options())));
}

#[test]
fn places_and_cards_are_known_after_joining() {
    let place = |step: (u32, u32), rank| place(step.0, &[("127.0.0.1", 1), ("::1", 2)], rank);
    run_as(step(3), place, |identity| {
        let card = format!("card of {}", identity.rank).into_bytes();
        let rank = identity.rank;
        let joined = Bootstrap::join(identity, Some(&secret()), &Options { card, ..options() }).unwrap();
        assert_eq!((joined.node_of(0), joined.node_of(2), joined.node_of(3)), ("127.0.0.1", "::1", "?"));
        assert_eq!(joined.members().map(|member| member.local_rank).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(joined.local_ranks().collect::<Vec<_>>(), if rank == 0 { vec![0] } else { vec![1, 2] });
        assert_eq!(joined.card_of(2).unwrap(), b"card of 2");
        assert!(joined.card_of(3).is_none());
    });
}

#[test]
fn connections_and_rounds_are_logarithmic() {
    let nodes = [("127.0.0.1", 1); 9];
    let place = |step: (u32, u32), rank| place(step.0, &nodes, rank);
    run_as(step(9), place, |identity| {
        let mut joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
        joined.barrier().unwrap();
        let counters = joined.counters();
        assert_eq!((counters.rounds, counters.connections_made, counters.connections_accepted), (8, 4, 4));
    });
}

#[test]
fn one_rank_alone_needs_neither_secret_nor_network() {
    let mut alone = Bootstrap::join(Identity::alone("here"), None, &options()).unwrap();
    assert_eq!(&alone.all_gather(b"x").unwrap()[0], b"x");
    alone.barrier().unwrap();
}

#[test]
fn several_ranks_without_a_secret_are_told_how_to_get_one() {
    let Err(error) = Bootstrap::join(identity(step(2), 1), None, &options()) else { panic!() };
    assert!(error.to_string().contains("export SLURM_ROCE_SECRET="), "{error}");
}

#[test]
fn ranks_may_start_seconds_apart_in_any_order() {
    assert_all_gathered(run(step(4), |identity| {
        thread::sleep(Duration::from_millis(400 * u64::from((identity.rank + 3) % 4)));
        join_and_gather(identity, &options())
    }));
}

#[test]
fn a_rank_that_never_comes_is_named_to_those_who_came() {
    let short = Options { join: Duration::from_secs(2), ..options() };
    let results = run(step(4), |identity| (identity.rank != 2).then(|| join_and_gather(identity, &short)));
    for result in results.into_iter().flatten() {
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("rank 2 (here) did not join within 2.0s"), "{error}");
    }
}

#[test]
fn a_node_that_never_comes_is_named_with_what_was_tried() {
    let short = Options { join: Duration::from_secs(1), ..options() };
    let start = Instant::now();
    let error = join_and_gather(apart(step(2), 1), &short).unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(error.starts_with("the ranks on 127.0.0.1 did not join within"), "{error}");
    assert!(error.contains("tried 127.0.0.1 ports") && error.contains(": refused"), "{error}");
}

#[test]
fn a_node_without_a_name_is_an_error_that_says_so() {
    let short = Options { join: Duration::from_secs(1), ..options() };
    let error = join_and_gather(place(step(2).0, &[("127.0.0.1", 1), ("nowhere.invalid", 1)], 0), &short);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("the ranks on nowhere.invalid") && error.contains("its name has no address"),
        "{error}"
    );
}

#[test]
fn a_rank_with_another_secret_does_not_get_in_and_the_others_learn_who_is_missing() {
    let mut short = Options { join: Duration::from_secs(2), ..options() };
    some_ports(&mut short, 2); // with another secret they would not even find the ports
    let results = run_as(step(2), apart, |identity| {
        let secret = if identity.rank == 1 { Secret::new([8; 32]) } else { secret() };
        Bootstrap::join(identity, Some(&secret), &short).map(|_| ()).unwrap_err().to_string()
    });
    for error in results {
        assert!(error.contains("the ranks on 127.0.0.1 did not join"), "{error}");
        assert!(error.contains("does not know this step's secret"), "{error}");
    }
}

/// Calls `port` again and again with what `bytes` says, until the join is over.
fn harass(port: u16, bytes: &[u8], keep_open: bool, until: Instant) {
    let mut kept = Vec::new();
    while Instant::now() < until {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        // The listener may hang up at any moment: that is what is being tested.
        let _ = stream.write_all(bytes);
        if keep_open && kept.len() < 50 {
            kept.push(stream);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn strangers_with_garbage_or_in_silence_do_not_hinder_the_join() {
    let garbage: Vec<u8> = (0..4096u32).map(|i| (i * 37 % 251) as u8).collect();
    let hello_of_rank_1 =
        [&b"roce-x02"[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], &[5; 32], &[6; 32]].concat();
    for (bytes, keep_open) in
        [(garbage, false), (Vec::new(), true), (hello_of_rank_1, true), (vec![0xff; 64], true)]
    {
        let mut options = options();
        let port = some_ports(&mut options, 2);
        thread::scope(|scope| {
            let until = Instant::now() + Duration::from_secs(2);
            let bytes = &bytes;
            for port in [port, port + 1] {
                scope.spawn(move || harass(port, bytes, keep_open, until));
            }
            thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            let place = |step: (u32, u32), rank| place(step.0, &[("127.0.0.1", 2); 2], rank);
            assert_all_gathered(run_as(step(4), place, |identity| {
                thread::sleep(Duration::from_millis(u64::from(identity.rank) * 200));
                join_and_gather(identity, &options)
            }));
            assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        });
    }
}

/// A listener of somebody else on the first candidates: one that says nothing, one that answers nonsense.
#[test]
fn ports_in_use_by_others_are_passed_over() {
    let mut options = options();
    let first = some_ports(&mut options, 4);
    let silent = TcpListener::bind(("127.0.0.1", first)).unwrap();
    let babbling = TcpListener::bind(("127.0.0.1", first + 1)).unwrap();
    thread::spawn(move || {
        for stream in babbling.incoming() {
            let _ = stream.unwrap().write_all(&[0x55; 512]);
        }
    });
    assert_all_gathered(run_as(step(2), apart, |identity| join_and_gather(identity, &options)));
    drop(silent);
}

#[test]
fn all_candidate_ports_in_use_is_an_error_that_lists_them() {
    let mut options = options();
    let port = some_ports(&mut options, 1);
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = join_and_gather(apart(step(2), 0), &options).unwrap_err().to_string();
    assert!(error.contains(&format!("found no free port among {port}")), "{error}");
}

/// Stands between rank 1 and rank 0 and changes what `change` says to the frames of one direction.
fn tamper(from: u16, to: u16, change: impl Fn(&mut Vec<u8>) + Send + 'static) {
    let listener = TcpListener::bind(("127.0.0.1", from)).unwrap();
    thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        let mut root = loop {
            match TcpStream::connect(("127.0.0.1", to)) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        let (mut back_from, mut back_to) = (root.try_clone().unwrap(), caller.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let mut sent = 0;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = caller.read(&mut buffer) {
            let (handshake, frames) = buffer[..count].split_at(HANDSHAKE.saturating_sub(sent).min(count));
            let mut frames = frames.to_vec();
            if !frames.is_empty() {
                change(&mut frames);
            }
            sent += count;
            if root.write_all(&[handshake, &frames].concat()).is_err() {
                return;
            }
        }
    });
}

/// Bytes that rank 1 sends before its first frame: hello and proof.
const HANDSHAKE: usize = 52 + 32;

fn with_tampering(change: impl Fn(&mut Vec<u8>) + Send + 'static) -> [String; 2] {
    let (mut for_root, mut for_leaf) = (options(), options());
    // Rank 1 finds the stranger on the first port and takes the second; rank 0 comes later and takes the third.
    let from = some_ports(&mut for_root, 3);
    for_leaf.ports = from..=from + 1;
    for_root.ports = from + 1..=from + 2;
    tamper(from, from + 2, change);
    let results = run_as(step(2), apart, |identity| {
        if identity.rank == 0 {
            thread::sleep(Duration::from_millis(300));
        }
        let options = if identity.rank == 0 { &for_root } else { &for_leaf };
        join_and_gather(identity, options).unwrap_err().to_string()
    });
    results.try_into().unwrap()
}

#[test]
fn a_changed_frame_is_noticed_and_ends_the_exchange_for_both() {
    for error in with_tampering(|bytes| *bytes.last_mut().unwrap() ^= 1) {
        assert!(error.contains("rank 1 (127.0.0.1) is lost: a frame is not authentic"), "{error}");
    }
}

#[test]
fn a_repeated_frame_is_noticed() {
    for error in with_tampering(|bytes| bytes.extend(bytes.clone())) {
        assert!(error.contains("is not authentic"), "{error}");
    }
}

#[test]
fn a_huge_length_is_refused_without_waiting_for_it() {
    let start = Instant::now();
    let [root, _] = with_tampering(|bytes| bytes[..4].fill(0xff));
    assert!(root.contains("4294967295 bytes is longer than"), "{root}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_rank_that_gives_up_tells_all_why() {
    let place = |step: (u32, u32), rank| place(step.0, &[("127.0.0.1", 2); 3], rank);
    // Who has not returned from joining yet would hear of it there.
    let all_have_joined = std::sync::Barrier::new(6);
    run_as(step(6), place, |identity| {
        let rank = identity.rank;
        let joined = Bootstrap::join(identity, Some(&secret()), &options());
        all_have_joined.wait();
        let mut joined = joined.unwrap();
        if rank == 3 {
            return joined.abort("no more disk space");
        }
        let start = Instant::now();
        if rank == 5 {
            let event = loop {
                match joined.poll_event() {
                    Some(event) => break event,
                    None => thread::sleep(Duration::from_millis(1)),
                }
                assert!(start.elapsed() < Duration::from_secs(5));
            };
            let reason = "no more disk space".to_owned();
            assert_eq!(event, Event::Aborted { rank: Some(3), node: "127.0.0.1".to_owned(), reason });
        } else {
            let error = joined.all_gather(b"x").unwrap_err().to_string();
            assert_eq!(error, "rank 3 (127.0.0.1) gave up: no more disk space");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert!(joined.barrier().unwrap_err().to_string().contains("an earlier exchange failed"));
        assert_eq!(joined.poll_event(), None);
    });
}

#[test]
fn a_rank_that_panics_is_noticed() {
    let results = run(step(2), |identity| {
        let rank = identity.rank;
        let mut joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
        if rank == 1 {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _joined = joined;
                std::panic::resume_unwind(Box::new("on purpose"));
            }));
            assert!(panicked.is_err());
            return String::new();
        }
        joined.barrier().unwrap_err().to_string()
    });
    assert_eq!(results[0], "rank 1 (here) gave up: it panicked");
}

#[test]
fn a_rank_that_leaves_while_others_go_on_is_named() {
    for nodes in [&[("127.0.0.1", 4)][..], &[("127.0.0.1", 1); 4]] {
        let place = |step: (u32, u32), rank| place(step.0, nodes, rank);
        let results = run_as(step(4), place, |identity| {
            let rank = identity.rank;
            let mut joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
            if rank == 2 {
                return String::new(); // and leaves
            }
            joined.all_gather(b"x").unwrap_err().to_string()
        });
        for (_, error) in results.iter().enumerate().filter(|(rank, _)| *rank != 2) {
            assert!(error.contains("at leave number 1") && error.contains("all_gather number 1"), "{error}");
        }
    }
}

#[test]
fn ranks_may_leave_seconds_apart() {
    let place = |step: (u32, u32), rank| place(step.0, &[("127.0.0.1", 2); 2], rank);
    run_as(step(4), place, |identity| {
        let rank = identity.rank;
        let joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
        thread::sleep(Duration::from_millis(u64::from(rank) * 300));
        joined.leave().unwrap();
    });
}

#[test]
fn ranks_that_call_different_collectives_get_an_error() {
    for nodes in [&[("127.0.0.1", 2)][..], &[("127.0.0.1", 1); 2]] {
        let place = |step: (u32, u32), rank| place(step.0, nodes, rank);
        for error in run_as(step(2), place, |identity| {
            let rank = identity.rank;
            let mut joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
            let result = if rank == 0 { joined.barrier() } else { joined.all_gather(b"x").map(|_| ()) };
            result.unwrap_err().to_string()
        }) {
            assert!(error.contains("same collectives in the same order"), "{error}");
        }
    }
}

#[test]
fn a_part_that_is_too_long_is_refused_before_it_is_sent() {
    let mut alone = Bootstrap::join(Identity::alone("here"), None, &options()).unwrap();
    assert!(matches!(alone.all_gather(&vec![0; (1 << 20) + 1]), Err(Error::TooLong { .. })));
    assert_eq!(alone.all_gather(&vec![0; 1 << 20]).unwrap()[0].len(), 1 << 20);
}
