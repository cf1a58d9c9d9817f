//! Ranks that join over loopback, in one process: what goes right, and everything that may stand in the way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use roce_bootstrap::{Bootstrap, Error, Identity, Launch, Node, Options, Secret};

/// Each test is a step of its own, so that no two meet.
static STEP: AtomicU32 = AtomicU32::new(0);
/// And has ports of its own where it must know them.
static PORT: AtomicU16 = AtomicU16::new(20_000);

fn step(size: u32) -> (u32, u32) {
    (STEP.fetch_add(1, Ordering::Relaxed), size)
}

fn identity((step, size): (u32, u32), rank: u32) -> Identity {
    let nodes = vec![Node { name: "here".to_owned(), tasks: size }];
    Identity {
        rank,
        size,
        local_rank: rank,
        node_index: 0,
        nodes,
        launch: Launch::Slurm { job: std::process::id(), step },
    }
}

fn options() -> Options {
    let second = Duration::from_secs(1);
    Options { join: 20 * second, collective: 20 * second, handshake: 5 * second, ..Options::default() }
}

fn secret() -> Secret {
    Secret::new([7; 32])
}

/// One free port, as the range of candidates.
fn one_port(options: &mut Options) -> u16 {
    loop {
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            options.ports = port..=port;
            return port;
        }
    }
}

/// Runs every rank in a thread of its own, and gives what each returned.
fn run<T: Send>(step: (u32, u32), rank: impl Fn(Identity) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..step.1)
            .map(|i| {
                scope.spawn({
                    let rank = &rank;
                    move || rank(identity(step, i))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn join_and_gather(identity: Identity, options: &Options) -> Result<Vec<Vec<u8>>, Error> {
    let rank = identity.rank;
    let mut joined = Bootstrap::join(identity, Some(&secret()), options)?;
    joined.barrier()?;
    let all = joined.all_gather(&vec![u8::try_from(rank).unwrap(); rank as usize])?;
    joined.barrier()?;
    Ok(all)
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
fn members_are_known_after_joining() {
    for members in run(step(3), |identity| {
        let joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
        assert_eq!(joined.node_of(2), "here");
        joined.members().to_vec()
    }) {
        assert_eq!(members.iter().map(|member| member.local_rank).collect::<Vec<_>>(), [0, 1, 2]);
    }
}

#[test]
fn one_rank_alone_needs_neither_secret_nor_network() {
    let mut alone = Bootstrap::join(Identity::alone("here"), None, &options()).unwrap();
    assert_eq!(alone.all_gather(b"x").unwrap(), [b"x"]);
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
fn a_rank_that_never_comes_is_named_to_rank_0_and_to_those_who_came() {
    let step = step(4);
    let short = Options { join: Duration::from_secs(2), ..options() };
    let results = run(step, |identity| (identity.rank != 2).then(|| join_and_gather(identity, &short)));
    let errors: Vec<String> =
        results.into_iter().flatten().map(|result| result.unwrap_err().to_string()).collect();
    assert!(errors[0].starts_with("rank 2 did not join within 2.0s"), "{}", errors[0]);
    for error in &errors[1..] {
        assert!(error.contains("rank 2 did not join"), "{error}");
    }
}

#[test]
fn a_rank_without_rank_0_gives_up_in_time_and_says_what_it_tried() {
    let short = Options { join: Duration::from_secs(1), ..options() };
    let start = Instant::now();
    let error = join_and_gather(identity(step(2), 1), &short).unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(error.contains("rank 1 could not reach rank 0 on here") && error.contains("refused"), "{error}");
}

#[test]
fn a_rank_with_another_secret_does_not_get_in_and_the_others_learn_who_is_missing() {
    let mut short = Options { join: Duration::from_secs(2), ..options() };
    one_port(&mut short); // with another secret it would not even find the port
    let results = run(step(3), |identity| {
        let secret = if identity.rank == 1 { Secret::new([8; 32]) } else { secret() };
        Bootstrap::join(identity, Some(&secret), &short).map(|_| ()).unwrap_err().to_string()
    });
    assert!(results[0].starts_with("rank 1 did not join"), "{}", results[0]);
    assert!(results[0].contains("did not prove that"), "{}", results[0]);
    assert!(results[1].contains("does not know this step's secret"), "{}", results[1]);
    assert!(results[2].contains("rank 1 did not join"), "{}", results[2]);
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
    let hello_of_rank_1 = [&b"roce-x01"[..], &1u32.to_be_bytes(), &[5; 32], &[6; 32]].concat();
    for (bytes, keep_open) in
        [(garbage, false), (Vec::new(), true), (hello_of_rank_1, true), (vec![0xff; 64], true)]
    {
        let mut options = options();
        let port = one_port(&mut options);
        let step = step(4);
        thread::scope(|scope| {
            let until = Instant::now() + Duration::from_secs(2);
            let bytes = &bytes;
            scope.spawn(move || harass(port, bytes, keep_open, until));
            thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            assert_all_gathered(run(step, |identity| {
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
    let first = loop {
        let first = one_port(&mut options);
        if (first..first + 3).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            break first;
        }
    };
    PORT.fetch_add(3, Ordering::Relaxed);
    options.ports = first..=first + 2;
    let silent = TcpListener::bind(("127.0.0.1", first)).unwrap();
    let babbling = TcpListener::bind(("127.0.0.1", first + 1)).unwrap();
    thread::spawn(move || {
        for stream in babbling.incoming() {
            let _ = stream.unwrap().write_all(&[0x55; 512]);
        }
    });
    assert_all_gathered(run(step(4), |identity| join_and_gather(identity, &options)));
    drop(silent);
}

#[test]
fn all_candidate_ports_in_use_is_an_error_that_lists_them() {
    let mut options = options();
    let port = one_port(&mut options);
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = join_and_gather(identity(step(2), 0), &options).unwrap_err().to_string();
    assert!(error.contains(&format!("found no free port among {port}")), "{error}");
}

/// Stands between rank 1 and rank 0 and changes what `change` says to the bytes of one direction.
fn tamper(from: u16, to: u16, change: impl Fn(usize, &mut Vec<u8>) + Send + 'static) {
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
            let mut bytes = buffer[..count].to_vec();
            change(sent, &mut bytes);
            sent += count;
            if root.write_all(&bytes).is_err() {
                return;
            }
        }
    });
}

/// Bytes that rank 1 sends before its first frame: hello and proof.
const HANDSHAKE: usize = 44 + 32;

fn with_tampering(change: impl Fn(usize, &mut Vec<u8>) + Send + 'static) -> [String; 2] {
    let (mut for_root, mut for_leaf) = (options(), options());
    for_root.join = Duration::from_secs(3);
    for_leaf.join = Duration::from_secs(3);
    let (to, from) = (one_port(&mut for_root), one_port(&mut for_leaf));
    tamper(from, to, change);
    let results = run(step(2), |identity| {
        let options = if identity.rank == 0 { &for_root } else { &for_leaf };
        join_and_gather(identity, options).unwrap_err().to_string()
    });
    results.try_into().unwrap()
}

#[test]
fn a_changed_frame_is_noticed_and_ends_the_exchange_for_both() {
    let [root, leaf] = with_tampering(|sent, bytes| {
        if sent >= HANDSHAKE
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
        }
    });
    assert!(root.contains("a frame from rank 1") && root.contains("is not authentic"), "{root}");
    assert!(leaf.contains("is not authentic"), "{leaf}");
}

#[test]
fn a_repeated_frame_is_noticed() {
    let [root, leaf] = with_tampering(|sent, bytes| {
        if sent >= HANDSHAKE {
            let again = bytes.clone();
            bytes.extend(again);
        }
    });
    assert!(root.contains("is not authentic"), "{root}");
    assert!(leaf.contains("is not authentic"), "{leaf}");
}

#[test]
fn a_huge_length_is_refused_without_waiting_for_it() {
    let start = Instant::now();
    let [root, _] = with_tampering(|sent, bytes| {
        if sent >= HANDSHAKE {
            bytes.splice(..4, [0xff; 4]);
        }
    });
    assert!(root.contains("4294967295 bytes is longer than"), "{root}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_rank_that_ends_early_is_noticed_at_once_and_told_to_all() {
    let start = Instant::now();
    let results = run(step(4), |identity| {
        let rank = identity.rank;
        let mut joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
        if rank == 2 {
            return String::new(); // and its connection closes
        }
        if rank == 3 {
            thread::sleep(Duration::from_millis(500));
        }
        let error = joined.all_gather(b"x").unwrap_err().to_string();
        assert!(joined.barrier().unwrap_err().to_string().contains("an earlier exchange failed"));
        error
    });
    for (rank, error) in results.iter().enumerate().filter(|(rank, _)| *rank != 2) {
        assert!(error.contains("rank 2 (here)"), "rank {rank}: {error}");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn ranks_that_call_different_collectives_get_an_error() {
    let results = run(step(2), |identity| {
        let rank = identity.rank;
        let mut joined = Bootstrap::join(identity, Some(&secret()), &options()).unwrap();
        let result = if rank == 0 { joined.barrier() } else { joined.all_gather(b"x").map(|_| ()) };
        result.unwrap_err().to_string()
    });
    for error in results {
        assert!(error.contains("same collectives in the same order"), "{error}");
    }
}

#[test]
fn a_part_that_is_too_long_is_refused_before_it_is_sent() {
    let mut alone = Bootstrap::join(Identity::alone("here"), None, &options()).unwrap();
    assert!(matches!(alone.all_gather(&vec![0; (1 << 20) + 1]), Err(Error::TooLong { .. })));
    assert_eq!(alone.all_gather(&vec![0; 1 << 20]).unwrap()[0].len(), 1 << 20);
}
