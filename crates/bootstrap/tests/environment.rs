//! After joining nobody finds the secret in the environment: not a child, not `/proc/PID/environ`.
//!
//! A program of its own without the test harness, which has several threads whatever it is told.

use std::fs;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use roce_bootstrap::{Error, Secret};

const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Only this test's own children have it: how many threads to be.
const THREADS: &str = "TEST_SECRET_THREADS";

fn main() {
    match std::env::var(THREADS).as_deref() {
        Ok("1") => child(true),
        Ok(_) => {
            // One that waits until the other is done.
            let (done, wait) = mpsc::channel::<()>();
            thread::spawn(move || wait.recv());
            child(false);
            drop(done);
        }
        Err(_) => {
            for (threads, name) in [
                ("1", "the_only_thread_unsets_the_variable"),
                ("2", "beside_other_threads_the_variable_stays_but_empty"),
            ] {
                let this = std::env::current_exe().unwrap();
                let child =
                    Command::new(this).env("SLURM_ROCE_SECRET", SECRET).env(THREADS, threads).status();
                assert!(child.unwrap().success(), "{name}");
                println!("test {name} ... ok");
            }
        }
    }
}

fn child(alone: bool) {
    let found = |environ: &[u8]| environ.windows(64).any(|window| window == SECRET.as_bytes());
    assert!(found(&fs::read("/proc/self/environ").unwrap()), "it was there");

    let secret = Secret::take_from_environment().unwrap().unwrap();
    assert_eq!(*secret.to_hex(), SECRET);
    assert!(!found(&fs::read("/proc/self/environ").unwrap()), "it is overwritten");
    let left = if alone { None } else { Some("".into()) };
    assert_eq!(std::env::var_os("SLURM_ROCE_SECRET"), left);
    let inherited = Command::new("env").output().unwrap().stdout;
    assert!(!found(&inherited) && !inherited.is_empty(), "no child has it");
    assert_eq!(String::from_utf8_lossy(&inherited).contains("SLURM_ROCE_SECRET"), !alone);
    assert!(matches!(Secret::take_from_environment(), Err(Error::SecretTaken)), "there is no second time");
}
