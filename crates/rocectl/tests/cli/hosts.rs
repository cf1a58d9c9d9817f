//! `rocectl run --hosts`: ranks on several hosts, which an sshd of the test's own plays on addresses of loopback.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{stderr, stdout};
use crate::run::{is_running, ran, run, sorted, until};

const SSHD: &str = "/usr/sbin/sshd";
const HOSTS: &str = "127.0.0.[2-3]";

/// An sshd on 127.0.0.2 and 127.0.0.3 with keys and settings of its own, and what ssh needs to get in.
struct Hosts {
    folder: TempDir,
    sshd: Child,
}

impl Hosts {
    /// `None` where there is no sshd.
    fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() {
            assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "sshd is not installed");
            println!("skipped: sshd is not installed (apt-get install openssh-server)");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            let made = keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status().unwrap();
            assert!(made.success());
        }
        let port = free_port();
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.2\nListenAddress 127.0.0.3\nHostKey {}\nAuthorizedKeysFile {}\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
            at("host"),
            at("user.pub")
        );
        fs::write(at("sshd_config"), settings).unwrap();
        let settings = format!(
            "Port {port}\nIdentityFile {}\nIdentitiesOnly yes\nStrictHostKeyChecking no\nLogLevel ERROR\n\
             UserKnownHostsFile /dev/null\nGlobalKnownHostsFile /dev/null\n",
            at("user")
        );
        fs::write(at("ssh_config"), settings).unwrap();
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            // As the service makes it: an sshd of root wants an empty folder there.
            fs::create_dir_all("/run/sshd").unwrap();
            fs::set_permissions("/run/sshd", fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Whatever ends the test ends it.
        let mut sshd = Command::new("setpriv");
        sshd.args(["--pdeathsig", "KILL", SSHD, "-D", "-e", "-f", &at("sshd_config")]);
        let log = fs::File::create(at("log")).unwrap();
        let sshd = sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let log = at("log");
        let hosts = Self { folder, sshd };
        let listening = || fs::read_to_string(&log).unwrap().matches("Server listening on").count() == 2;
        until("sshd listens", listening);
        Some(hosts)
    }

    fn ssh(&self) -> String {
        format!("ssh -F {}", self.folder.path().join("ssh_config").display())
    }

    fn run(&self, words: &[&str]) -> Command {
        self.run_by(&self.ssh(), words)
    }

    fn run_by(&self, ssh: &str, words: &[&str]) -> Command {
        let mut command = run(&["--ssh", ssh, "--hosts", HOSTS]);
        command.args(words);
        command
    }

    fn ran(&self, words: &[&str]) -> Output {
        self.run(words).output().unwrap()
    }

    /// Ranks that sleep, one on each host.
    fn sleepers(&self) -> Sleepers {
        self.sleepers_by(&self.ssh())
    }

    fn sleepers_by(&self, ssh: &str) -> Sleepers {
        let folder = TempDir::new().unwrap();
        let script = format!(
            "trap 'echo interrupted > {0}/$ROCE_RANK.trap; exit' INT; sleep 600 & echo $! > {0}/$ROCE_RANK.child; \
             echo $SLURM_ROCE_SECRET > {0}/$ROCE_RANK.secret; echo $PPID > {0}/$ROCE_RANK.parent; echo $$ > {0}/$ROCE_RANK; wait",
            folder.path().display()
        );
        let rocectl = self.run_by(ssh, &["-n", "2", "sh", "-c", &script]).spawn().unwrap();
        let sleepers = Sleepers { folder, rocectl };
        until("the ranks have started", || sleepers.files().len() == 8);
        sleepers
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

struct Sleepers {
    folder: TempDir,
    rocectl: Child,
}

impl Sleepers {
    /// What the ranks have written, by the files' names.
    fn files(&self) -> Vec<(String, String)> {
        let read = |file: fs::DirEntry| {
            let text = fs::read_to_string(file.path()).unwrap();
            (file.file_name().into_string().unwrap(), text.trim().to_owned())
        };
        let files = fs::read_dir(self.folder.path()).unwrap().map(|file| read(file.unwrap()));
        files.filter(|(_, text)| !text.is_empty()).collect()
    }

    fn pid(&self, name: &str) -> Pid {
        let text = fs::read_to_string(self.folder.path().join(name)).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }

    /// The sshd that serves rank 1's host: the parent of its ranks' parent.
    fn session(&self) -> Pid {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid("1.parent"))).unwrap();
        let fields = stat.rsplit(") ").next().unwrap();
        Pid::from_raw(fields.split(' ').nth(1).unwrap().parse().unwrap())
    }

    /// How the run ended; every process of it ends, too.
    fn ends(self, within: Duration) -> Output {
        let pids: Vec<i32> = self.files().iter().filter_map(|(_, text)| text.parse().ok()).collect();
        assert_eq!(pids.len(), 6);
        let start = Instant::now();
        let output = self.rocectl.wait_with_output().unwrap();
        assert!(start.elapsed() < within, "{:?}", start.elapsed());
        until("every process has ended", || !pids.iter().any(|&pid| is_running(pid)));
        output
    }
}

/// Nobody else here listens on these addresses.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port()
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn ranks_of_two_hosts_meet_each_other() {
    let Some(hosts) = Hosts::start() else { return };
    let this = std::env::current_exe().unwrap();
    let this = this.to_str().unwrap();
    let output = hosts.ran(&["-n", "5", this, "--exact", "run::member", "--ignored", "--nocapture"]);
    assert!(output.status.success(), "{output:?}");
    for rank in 0..5 {
        let host = if rank < 3 { "127.0.0.2" } else { "127.0.0.3" };
        let line = format!("rank {rank} met [0, 1, 2, 3, 4] on {host}");
        assert!(sorted(&output).contains(&line), "{output:?}");
    }
}

#[test]
fn ranks_have_the_folder_and_the_environment_and_no_input() {
    let Some(hosts) = Hosts::start() else { return };
    let folder = TempDir::with_prefix("it's a folder").unwrap();
    let script =
        "echo $ROCE_RANK/$ROCE_SIZE $ROCE_LOCAL_RANK/$ROCE_LOCAL_SIZE \"$WORDS\" \"$TMPDIR\" \"$(pwd)\"; cat";
    let mut command = hosts.run(&["-n", "3", "--label", "sh", "-c", script]);
    // More than a pipe takes, too.
    command.current_dir(folder.path()).env("WORDS", "two  'words'").env("LONG", "x".repeat(100_000));
    let output = command.env("TMPDIR", "/here/only").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let line = |rank, local| format!("{rank}: {rank}/3 {local} two  'words'  {}", folder.path().display());
    assert_eq!(sorted(&output), [line(0, "0/2"), line(1, "1/2"), line(2, "0/1")]);
}

#[test]
fn the_secret_is_on_no_command_line_and_in_no_environment_but_the_ranks() {
    let Some(hosts) = Hosts::start() else { return };
    let sleepers = hosts.sleepers();
    let secrets = ["0.secret", "1.secret"].map(|name| fs::read(sleepers.folder.path().join(name)).unwrap());
    let secret = secrets[0].trim_ascii();
    assert!(secrets[0] == secrets[1] && secret.len() == 64, "{secrets:?}");
    let ranks = ["0", "0.child", "1", "1.child"].map(|name| sleepers.pid(name).to_string());
    for process in fs::read_dir("/proc").unwrap() {
        let process = process.unwrap().file_name().into_string().unwrap();
        let has_it = |file: &str| {
            let text = fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            text.windows(secret.len()).any(|window| window == secret)
        };
        assert!(!has_it("cmdline"), "{process}");
        assert_eq!(has_it("environ"), ranks.contains(&process), "{process}");
    }
    kill(Pid::from_raw(sleepers.rocectl.id().cast_signed()), Signal::SIGTERM).unwrap();
    sleepers.ends(SOON);
}

#[test]
fn the_first_failure_decides_on_every_host() {
    let Some(hosts) = Hosts::start() else { return };
    // ssh has 255 for its own failures.
    for (code, does) in [(7, "exit 7"), (255, "exit 255"), (137, "kill -KILL $$")] {
        let script = format!("[ $ROCE_RANK = 3 ] && {does}; trap '' TERM; sleep 600 & wait; wait");
        let start = Instant::now();
        let output = hosts.ran(&["-n", "4", "sh", "-c", &script]);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let how = if code == 137 {
            "was killed by SIGKILL".to_owned()
        } else {
            format!("failed with exit code {code}")
        };
        let line = format!("rocectl: rank 3 on 127.0.0.3 {how}; ending the others\n");
        assert_eq!(stderr(&output), line);
    }
}

#[test]
fn interrupting_reaches_the_ranks_of_every_host() {
    let Some(hosts) = Hosts::start() else { return };
    let sleepers = hosts.sleepers();
    kill(Pid::from_raw(sleepers.rocectl.id().cast_signed()), Signal::SIGINT).unwrap();
    let traps = ["0.trap", "1.trap"].map(|name| sleepers.folder.path().join(name));
    until("both ranks were interrupted", || traps.iter().all(|trap| trap.exists()));
    let output = sleepers.ends(SOON);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(130), ""));
}

#[test]
fn killing_rocectl_ends_the_ranks_of_every_host() {
    let Some(hosts) = Hosts::start() else { return };
    let mut sleepers = hosts.sleepers();
    sleepers.rocectl.kill().unwrap();
    sleepers.ends(SOON);
}

#[test]
fn a_host_that_is_lost_is_named_and_ends_the_run() {
    let Some(hosts) = Hosts::start() else { return };
    // The connection breaks, or rocectl is killed there: ssh says the same of both.
    let whom: [fn(&Sleepers) -> Pid; 2] = [Sleepers::session, |sleepers| sleepers.pid("1.parent")];
    for (case, whom) in whom.into_iter().enumerate() {
        let sleepers = hosts.sleepers();
        kill(whom(&sleepers), Signal::SIGKILL).unwrap();
        if case == 1 {
            // What a rank started is its own to end: nobody is left to do it for it.
            kill(sleepers.pid("1.child"), Signal::SIGKILL).unwrap();
        }
        let output = sleepers.ends(SOON);
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        let line = "rocectl: host 127.0.0.3 can't be reached, or the connection to it broke (ssh's exit code 255); \
                    ending the others\n";
        assert!(stderr(&output).ends_with(line), "{output:?}");
    }
}

#[test]
fn a_host_that_falls_silent_is_lost() {
    let Some(hosts) = Hosts::start() else { return };
    let ssh = format!("{} -o ServerAliveInterval=1 -o ServerAliveCountMax=1", hosts.ssh());
    let sleepers = hosts.sleepers_by(&ssh);
    let session = sleepers.session();
    kill(session, Signal::SIGSTOP).unwrap();
    until("rocectl tells", || !is_running(sleepers.pid("0").as_raw()));
    kill(session, Signal::SIGCONT).unwrap();
    let output = sleepers.ends(SOON);
    assert!(stderr(&output).contains("rocectl: host 127.0.0.3 can't be reached"), "{output:?}");
}

#[test]
fn a_host_that_can_not_be_reached_or_lacks_what_is_needed_is_named() {
    let Some(hosts) = Hosts::start() else { return };
    let refused = |words: &[&str], code: i32, says: &str| {
        let output = hosts.ran(words);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(code), ""), "{output:?}");
        assert!(stderr(&output).contains(says), "{says}: {output:?}");
    };
    refused(
        &["-n", "2", "--rocectl", "/nonesuch", "true"],
        127,
        "has no rocectl that can be run (exit code 127): install",
    );
    refused(&["-n", "2", "nonesuch"], 127, "rocectl: can't run nonesuch: No such file or directory");
    let words = ["--ssh", &hosts.ssh(), "--hosts", "127.0.0.[2,9]", "-n", "2", "sleep", "600"];
    let output = ran(&words);
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    assert!(stderr(&output).contains("rocectl: host 127.0.0.9 can't be reached"), "{output:?}");
    let output = ran(&["--ssh", "/nonesuch", "--hosts", "a", "-n", "2", "true"]);
    assert!(stderr(&output).starts_with("rocectl: can't start /nonesuch to a: No such file"), "{output:?}");
    assert_eq!(ran(&["--hosts", "a,a", "-n", "2", "true"]).status.code(), Some(2));
}
