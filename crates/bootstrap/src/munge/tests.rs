//! With a munged of the test's own.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::discovery::{Launch, Node};

/// A munged with a key of its own.
struct Daemon {
    folder: TempDir,
    munged: Child,
}

impl Daemon {
    /// `None` where munge is not installed.
    fn start() -> Option<Self> {
        if !Path::new("/usr/sbin/munged").exists() {
            assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "munged is not installed");
            println!("skipped: munged is not installed (apt-get install munge)");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut key = [0; 128];
        getrandom::fill(&mut key).unwrap();
        fs::write(at("key-file"), key).unwrap();
        let closed =
            |name: &str, mode| fs::set_permissions(name, std::os::unix::fs::PermissionsExt::from_mode(mode));
        closed(&at("key-file"), 0o400).unwrap();
        closed(&at(""), 0o755).unwrap();
        let munged = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "/usr/sbin/munged", "--foreground", "--force"])
            .args(
                ["key-file", "socket", "pid-file", "log-file", "seed-file"]
                    .map(|name| format!("--{name}={}", at(name))),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let socket = folder.path().join("socket");
        let daemon = Self { folder, munged };
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "munged does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Some(daemon)
    }

    fn socket(&self) -> String {
        self.folder.path().join("socket").display().to_string()
    }

    fn munge(&self) -> Munge {
        Munge::load(Some(&self.socket())).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.munged.kill();
        let _ = self.munged.wait();
    }
}

/// Rank 1 or 0 of two, one on each node.
fn identity(rank: u32, job: u32) -> Identity {
    let nodes = ["127.0.0.1", "127.0.0.2"].map(|name| Node { name: name.to_owned(), tasks: 1 });
    let launch = Launch::Slurm { job, step: 0 };
    Identity { rank, size: 2, local_rank: 0, node_index: rank, nodes: nodes.into(), launch }
}

/// Another for each test, since ports depend on it.
fn job() -> u32 {
    getrandom::u32().unwrap()
}

const PORTS: RangeInclusive<u16> = 20_000..=32_000;

fn fetched(daemon: &Daemon, job: u32, limit: Duration) -> Result<Secret, String> {
    ask(&daemon.munge(), &identity(1, job), NodeAddresses::default(), &PORTS, Instant::now() + limit)
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn every_rank_gets_the_secret_also_when_the_giver_comes_late() {
    let Some(daemon) = Daemon::start() else { return };
    let (secret, job) = (Secret::random().unwrap(), job());
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..8).map(|_| scope.spawn(|| fetched(&daemon, job, LIMIT))).collect();
        thread::sleep(Duration::from_millis(300));
        let giver = Giver::start(daemon.munge(), &identity(0, job), &secret, &PORTS).unwrap();
        for rank in ranks {
            assert_eq!(rank.join().unwrap().unwrap().bytes(), secret.bytes());
        }
        // Again on the same node, where munge has seen the credential.
        assert_eq!(fetched(&daemon, job, LIMIT).unwrap().bytes(), secret.bytes());
        drop(giver);
    });
    let error = fetched(&daemon, job, Duration::from_millis(300)).unwrap_err();
    assert!(error.contains("127.0.0.1 did not hand one out within") && error.contains("refused"), "{error}");
}

/// Hands this out at the first of the ports.
fn impostor(job: u32, says: Vec<u8>) -> TcpListener {
    let port = meeting_ports(&identity(0, job), &PORTS)[0];
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let calls = listener.try_clone().unwrap();
    thread::spawn(move || {
        for call in calls.incoming() {
            let Ok(mut call) = call else { return };
            let _ = call.write_all(&says);
        }
    });
    listener
}

#[test]
fn who_answers_with_anything_else_is_passed_by() {
    let Some(daemon) = Daemon::start() else { return };
    let own = daemon.munge();
    let other_key = Daemon::start().unwrap();
    let payload = |job| payload(&identity(0, job), &Secret::random().unwrap());
    let this = job();
    let wrong = [
        ("munge_decode: ", b"MUNGE:nonsense:".to_vec()),
        ("No credential specified", Vec::new()),
        ("it sends no credential", vec![0; 5000]),
        ("is of another step", own.seal(&payload(this.wrapping_add(1))).unwrap().into()),
        ("is of another step", own.seal(b"").unwrap().into()),
        ("Invalid credential", other_key.munge().seal(&payload(this)).unwrap().into()),
    ];
    for (says, answer) in wrong {
        let listener = impostor(this, answer);
        let error = fetched(&daemon, this, Duration::from_millis(600)).unwrap_err();
        assert!(error.contains(says), "{says}: {error}");
        // Nor does it keep the ranks from the true one.
        let secret = Secret::random().unwrap();
        let _giver = Giver::start(daemon.munge(), &identity(0, this), &secret, &PORTS).unwrap();
        assert_eq!(fetched(&daemon, this, LIMIT).unwrap().bytes(), secret.bytes());
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&listener),
            nix::sys::socket::Shutdown::Both,
        )
        .unwrap();
    }
}

#[test]
fn another_user_can_neither_open_nor_give() {
    let Some(daemon) = Daemon::start() else { return };
    if !geteuid().is_root() {
        assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "only root can be another user");
        println!("skipped: only root can be another user");
        return;
    }
    let as_nobody = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", program, "--socket", &daemon.socket()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let told = |mut command: Command, input: &[u8]| {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    };
    let job = job();
    let secret = Secret::random().unwrap();
    let credential = daemon.munge().seal(&payload(&identity(0, job), &secret)).unwrap();
    let opened = told(as_nobody("unmunge"), credential.as_bytes());
    let printed = String::from_utf8_lossy(&opened.stderr).into_owned();
    assert!(!opened.status.success() && printed.contains("Unauthorized"), "{opened:?}");

    let forged = told(as_nobody("munge"), &payload(&identity(0, job), &Secret::random().unwrap()));
    let forged = forged.stdout.trim_ascii_end().to_vec();
    assert!(forged.starts_with(b"MUNGE:"), "{forged:?}");
    let _listener = impostor(job, forged);
    let error = fetched(&daemon, job, Duration::from_millis(600)).unwrap_err();
    assert!(error.ends_with("what it handed out is user 65534's, not user 0's"), "{error}");
    let _giver = Giver::start(daemon.munge(), &identity(0, job), &secret, &PORTS).unwrap();
    assert_eq!(fetched(&daemon, job, LIMIT).unwrap().bytes(), secret.bytes());
}

#[test]
fn a_munge_that_is_not_there_is_an_error_with_its_socket() {
    if Daemon::start().is_none() {
        return;
    }
    let munge = Munge::load(Some("/nonesuch/socket")).unwrap();
    let error = munge.seal(b"x").unwrap_err();
    assert!(error.contains("munge_encode: ") && error.contains("/nonesuch/socket"), "{error}");
}
