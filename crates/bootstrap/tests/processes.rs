//! Ranks as processes, on several pretended nodes of this machine: what only a process can do, as to die or to be stopped.

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Ranks, loopback, task};
use nix::sys::signal::Signal;
use roce_bootstrap::{Bootstrap, Options};

/// One rank, started by the other tests.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let Some(task) = task() else { return };
    // All begin when the gate opens, so that nobody's start counts.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let second = Duration::from_secs(1);
    let card = vec![7; 64];
    let options = Options { stopped: 2 * second, silence: 3 * second, card, ..Options::default() };
    let joined = Bootstrap::init(&options);
    if task == "stay" || task == "go" {
        println!("\nerror {}", joined.map(|_| ()).unwrap_err());
        if task == "stay" {
            std::thread::sleep(Duration::from_secs(2));
        }
        return;
    }
    let mut ranks = joined.unwrap();
    assert!((0..ranks.size()).all(|rank| ranks.card_of(rank).unwrap().len() == 64));
    match task.as_str() {
        "chat" => {
            println!("\nmet");
            for _ in 0..10 {
                ranks.all_gather(&vec![1; 1 << 20]).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            ranks.leave().unwrap();
            println!("\ndone");
        }
        "wait" => {
            println!("\nmet");
            if ranks.rank().is_multiple_of(2) {
                println!("\nerror {}", ranks.barrier().unwrap_err());
            } else {
                loop {
                    if let Some(event) = ranks.poll_event() {
                        println!("\nevent {event:?}");
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        other => panic!("{other}"),
    }
}

/// Ends or stops one rank, and gives what the others said, and after how long the last of them.
fn strike(victim: usize, signal: Signal) -> (Vec<String>, Duration) {
    let mut ranks = Ranks::start(&loopback(&[2, 3, 2]), "wait");
    ranks.open();
    for rank in 0..7 {
        ranks.line(rank, &["met"]);
    }
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    ranks.signal(victim, signal);
    let told = (0..7).filter(|rank| *rank != victim).map(|rank| ranks.line(rank, &["error", "event"]));
    (told.collect(), start.elapsed())
}

#[test]
fn the_death_of_any_rank_is_told_to_all() {
    for victim in 0..7 {
        let (told, time) = strike(victim, Signal::SIGKILL);
        let node = [1, 1, 2, 2, 2, 3, 3][victim];
        for told in told {
            let error = format!("rank {victim} (127.0.0.{node}) is lost:");
            let event = format!("Lost {{ rank: Some({victim}), node: \"127.0.0.{node}\"");
            assert!(told.starts_with(&error) || told.starts_with(&event), "{told}");
        }
        assert!(time < Duration::from_secs(2), "{victim}: {time:?}");
    }
}

/// Its node is not left to wait until the join's end.
#[test]
fn a_rank_that_starts_after_another_has_died_is_told_of_it() {
    let mut ranks = Ranks::start(&loopback(&[2, 1]), "stay");
    for rank in [0, 1] {
        // One after the other: the first leads, and lives.
        ranks.processes[rank].close();
        std::thread::sleep(Duration::from_millis(200));
    }
    ranks.signal(1, Signal::SIGKILL);
    let told = ranks.line(0, &["error"]);
    assert!(told.starts_with("rank 1 (127.0.0.1) is lost"), "{told}");
    std::thread::sleep(Duration::from_millis(200));
    ranks.processes[2].close();
    let start = Instant::now();
    let told = ranks.line(2, &["error"]);
    assert!(told.starts_with("rank 1 (127.0.0.1) is lost"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// A moment later, and though the leader's process ends as soon as it knows. As when ranks join at the same time on a busy machine.
#[test]
fn a_rank_that_comes_just_after_another_has_died_is_told_by_a_leader_that_does_not_stay() {
    let mut ranks = Ranks::start(&loopback(&[2, 1]), "go");
    for rank in [0, 2] {
        ranks.processes[rank].close();
    }
    std::thread::sleep(Duration::from_millis(200));
    ranks.signal(2, Signal::SIGKILL);
    std::thread::sleep(Duration::from_millis(20));
    ranks.processes[1].close();
    let start = Instant::now();
    for rank in [1, 0] {
        let told = ranks.line(rank, &["error"]);
        assert!(told.starts_with("rank 2 (127.0.0.2) is lost"), "rank {rank}: {told}");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Only those who are waited for: whoever computes may be stopped. Here even ranks wait in a barrier for the odd ones.
#[test]
fn a_stopped_rank_that_others_wait_for_is_named() {
    // Rank 3 is no leader, or it is: then its neighbours no longer hear from it.
    let mut ranks = Ranks::start(&loopback(&[2, 2]), "wait");
    ranks.open();
    for rank in 0..4 {
        ranks.line(rank, &["met"]);
    }
    ranks.signal(3, Signal::SIGSTOP);
    for rank in [0, 1, 2] {
        // An odd rank does not wait, so it can only hear of it from its leader.
        let told = ranks.line(rank, &["error", "event"]);
        assert!(told.contains("127.0.0.2") && (told.contains("stopped") || told.contains("heard")), "{told}");
    }
}

/// Stops some of four ranks on as many nodes for a while; then all go on as if nothing had been.
fn pause(stopped: &[usize], time: Duration) {
    let mut ranks = Ranks::start(&loopback(&[1, 1, 2]), "chat");
    ranks.open();
    for rank in 0..4 {
        ranks.line(rank, &["met"]);
    }
    let signal = |signal| {
        for rank in stopped {
            ranks.signal(*rank, signal);
        }
    };
    signal(Signal::SIGSTOP);
    std::thread::sleep(time);
    signal(Signal::SIGCONT);
    for rank in 0..4 {
        ranks.line(rank, &["done"]);
    }
}

/// As Slurm does with `scontrol suspend`, for longer than one rank alone may be stopped.
#[test]
fn a_job_that_is_suspended_as_a_whole_goes_on() {
    pause(&[0, 1, 2, 3], Duration::from_secs(5));
}

/// Its kernel's buffers are full for longer than a kernel may be silent.
#[test]
fn a_leader_that_does_not_read_for_a_while_is_not_lost() {
    pause(&[1], Duration::from_millis(1900));
}
