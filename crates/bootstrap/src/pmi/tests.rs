//! Both protocols against a launcher that is played here, which can also misbehave, and against MPICH's.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::Fields;
use super::*;

fn variables(rank: u32, size: u32) -> PmiVariables {
    PmiVariables { rank, size, fd: Some(6), job: "7.0".to_owned() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A launcher's side of one rank, until the rank is done.
struct Launcher {
    newest: u32,
    table: Arc<Mutex<HashMap<String, String>>>,
    fence: Arc<Barrier>,
    size: u32,
    rank: u32,
}

impl Launcher {
    fn serve(&self, stream: UnixStream) {
        let mut to = stream.try_clone().unwrap();
        let mut from = BufReader::new(stream);
        loop {
            let mut line = String::new();
            from.read_line(&mut line).unwrap();
            let asked = Fields::of_line(&line);
            if asked.get("pmi_version") == Some("2") {
                let rc = if self.newest == 2 { 0 } else { -1 };
                let newest = self.newest;
                writeln!(to, "cmd=response_to_init pmi_version={newest} pmi_subversion=0 rc={rc}").unwrap();
                if rc == 0 {
                    return self.serve_two(&mut from, &mut to);
                }
                continue;
            }
            let key = asked.get("key").unwrap_or_default();
            let answer = match asked.get("cmd").unwrap() {
                "init" => "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0".to_owned(),
                "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_0".to_owned(),
                "put" => {
                    assert_eq!(asked.get("kvsname"), Some("kvs_0"));
                    self.put(key, asked.get("value").unwrap());
                    "cmd=put_result rc=0 msg=success".to_owned()
                }
                "barrier_in" => {
                    self.fence.wait();
                    "cmd=barrier_out".to_owned()
                }
                "get" => match self.get(key) {
                    Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
                    None => "cmd=get_result rc=-1 msg=key_not_found".to_owned(),
                },
                "finalize" => return writeln!(to, "cmd=finalize_ack").unwrap(),
                other => panic!("{other}"),
            };
            writeln!(to, "{answer}").unwrap();
        }
    }

    fn serve_two(&self, from: &mut impl Read, to: &mut impl Write) {
        loop {
            let mut length = [0; 6];
            from.read_exact(&mut length).unwrap();
            let length = std::str::from_utf8(&length).unwrap().trim().parse().unwrap();
            let mut message = vec![0; length];
            from.read_exact(&mut message).unwrap();
            let message = String::from_utf8(message).unwrap();
            let asked = Fields::of_message(&message);
            let command = asked.get("cmd").unwrap();
            let value = match command {
                "fullinit" => {
                    assert_eq!(asked.get("pmijobid"), Some("7.0"));
                    format!("rank={};size={};appnum=0;", self.rank, self.size)
                }
                "kvs-put" => {
                    self.put(asked.get("key").unwrap(), asked.get("value").unwrap());
                    String::new()
                }
                "kvs-fence" => {
                    self.fence.wait();
                    String::new()
                }
                "kvs-get" | "info-getjobattr" => match self.get(asked.get("key").unwrap()) {
                    Some(value) => format!("flag=TRUE;value={value};"),
                    None => "flag=FALSE;".to_owned(),
                },
                "finalize" => String::new(),
                other => panic!("{other}"),
            };
            let answer = format!("cmd={command}-response;{value}rc=0;");
            write!(to, "{:6}{answer}", answer.len()).unwrap();
            if command == "finalize" {
                return;
            }
        }
    }

    fn put(&self, key: &str, value: &str) {
        let before = self.table.lock().unwrap().insert(key.to_owned(), value.to_owned());
        assert_eq!(before, None, "{key} was put twice");
    }

    fn get(&self, key: &str) -> Option<String> {
        self.table.lock().unwrap().get(key).cloned()
    }
}

/// What five ranks on two nodes learn from a launcher that speaks at most this version.
fn five_ranks(newest: u32, mapping: Option<&str>) -> Vec<Result<(Identity, Secret)>> {
    let table: HashMap<_, _> = mapping.iter().map(|text| (MAPPING.to_owned(), (*text).to_owned())).collect();
    let (table, fence) = (Arc::new(Mutex::new(table)), Arc::new(Barrier::new(5)));
    let ranks: Vec<_> = (0..5)
        .map(|rank| {
            let launcher =
                Launcher { newest, table: Arc::clone(&table), fence: Arc::clone(&fence), size: 5, rank };
            let (ours, theirs) = UnixStream::pair().unwrap();
            thread::spawn(move || {
                launcher.serve(theirs);
            });
            thread::spawn(move || {
                let pmi = variables(rank, 5);
                let mut session = begin(Wire::new(ours, pmi.clone(), soon()), &pmi)?;
                let host = ["left", "right"][rank as usize % 2];
                introduce_over(&mut *session, &pmi, None, host)
            })
        })
        .collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

#[test]
fn ranks_learn_the_secret_and_where_all_run_in_both_protocols() {
    for newest in [1, 2] {
        let ranks: Vec<_> =
            five_ranks(newest, Some("(vector,(0,2,1))")).into_iter().map(Result::unwrap).collect();
        for (rank, (identity, secret)) in (0..).zip(&ranks) {
            assert_eq!(secret.bytes(), ranks[0].1.bytes(), "PMI-{newest}");
            assert_eq!((identity.rank, identity.size, identity.launch), (rank, 5, Launch::Pmi));
            assert_eq!((identity.node_index, identity.local_rank), (rank % 2, rank / 2));
            let nodes: Vec<_> = identity.nodes.iter().map(|node| (node.name.as_str(), node.tasks)).collect();
            assert_eq!(nodes, [("left", 3), ("right", 2)]);
        }
    }
}

#[test]
fn a_launcher_that_does_not_say_where_ranks_run_is_told_as_that() {
    for (newest, mapping, says) in [
        (
            1,
            None,
            "the launcher refuses cmd=get kvsname=kvs_0 key=PMI_process_mapping: key_not_found (rc=-1)",
        ),
        (2, None, "the launcher has no value of PMI_process_mapping"),
        (2, Some("(nonsense)"), "PMI_process_mapping=(nonsense) does not say where 5 ranks run"),
    ] {
        for rank in five_ranks(newest, mapping) {
            let error = rank.unwrap_err().to_string();
            assert!(error.ends_with(&format!("(PMI_FD=6): {says}")), "{error}");
        }
    }
}

/// The error of a rank whose launcher answers the first request with this, and then nothing.
fn refused(answer: &'static [u8], stays: bool) -> String {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let pmi = variables(1, 2);
    let wire = Wire::new(ours, pmi.clone(), Instant::now() + Duration::from_millis(300));
    theirs.write_all(answer).unwrap();
    let held = if stays {
        Some(theirs)
    } else {
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        None
    };
    let error = begin(wire, &pmi).err().unwrap().to_string();
    drop(held);
    error
}

#[test]
fn no_answer_hangs_a_rank_or_fills_its_memory() {
    let two = b"cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0\n";
    let with = |more: &[u8]| -> &'static [u8] { [two, more].concat().leak() };
    for (answer, stays, says) in [
        (&b""[..], true, "the launcher did not answer in time; did every rank start?"),
        (b"", false, "the launcher has closed it"),
        (
            b"HTTP/1.1 400\n",
            true,
            "the launcher answers with something else where response_to_init was expected",
        ),
        (vec![b'x'; 100_000].leak(), true, "it sends more than 16384 bytes in one message"),
        (b"\xff\xfe\n", true, "it answers in no text"),
        (with(b"-00001"), true, "\"-00001\" is no length of a message"),
        (with(b"999999"), true, "\"999999\" is no length of a message"),
        (
            with(b"    56cmd=fullinit-response;rank=0;size=2;appnum=0;debug;rc=0;"),
            true,
            "the launcher says rank=0, its variables say 1",
        ),
        (
            with(b"    44cmd=fullinit-response;errmsg=not today;rc=7;"),
            true,
            "the launcher refuses fullinit: not today (rc=7)",
        ),
    ] {
        let error = refused(answer, stays);
        assert!(error.ends_with(says), "{error}");
    }
}

#[test]
fn a_number_that_is_no_open_socket_is_named() {
    for (fd, why) in [(999_999, "Bad file descriptor"), (u32::MAX, "Bad file descriptor")] {
        let pmi = PmiVariables { fd: Some(fd), ..variables(1, 2) };
        let error = introduce(&pmi, None, "here", soon()).unwrap_err().to_string();
        assert!(error.contains(&format!("(PMI_FD={fd}): it is no open socket ({why}")), "{error}");
    }
    let error = introduce(&PmiVariables { fd: None, ..variables(1, 2) }, None, "here", soon()).unwrap_err();
    assert!(error.to_string().contains("PMI_RANK=1 is set, but PMI_FD is not"), "{error}");
}

/// Which version a rank of the next test speaks.
const VERSION: &str = "TEST_PMI_VERSION";

#[test]
#[ignore = "the next test runs it under mpiexec.hydra"]
fn rank_under_hydra() {
    let Ok(version) = std::env::var(VERSION) else { return };
    let found = crate::discovery::Discovery::of_this_process().unwrap();
    let pmi = found.pmi.unwrap();
    let wire = Wire::open(pmi.clone(), soon()).unwrap();
    let mut session = if version == "1" { begin_old(wire) } else { begin(wire, &pmi) }.unwrap();
    let (identity, secret) = introduce_over(&mut *session, &pmi, found.identity, "here").unwrap();
    let nodes: Vec<_> = identity.nodes.iter().map(|node| (&node.name, node.tasks)).collect();
    println!("\nrank {} of {} on {nodes:?} has {}", identity.rank, identity.size, *secret.to_hex());
}

#[test]
fn ranks_of_mpiexec_hydra_have_one_secret_in_both_protocols() {
    for version in ["1", "2"] {
        let this = std::env::current_exe().unwrap();
        let mut hydra = Command::new("mpiexec.hydra");
        hydra.args(["-n", "4"]).arg(this).args(["--exact", "pmi::tests::rank_under_hydra"]);
        hydra.args(["--ignored", "--nocapture"]).env(VERSION, version);
        let output = match hydra.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "mpiexec.hydra is not installed");
                println!("skipped: mpiexec.hydra is not installed (apt-get install mpich)");
                return;
            }
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        let mut secrets = Vec::new();
        for rank in 0..4 {
            let start = format!("rank {rank} of 4 on [(\"here\", 4)] has ");
            // Before it there may be the beginning of another rank's line: hydra passes on what comes.
            let line = printed.split_once(&start).and_then(|(_, rest)| rest.lines().next());
            secrets.push(line.unwrap_or_else(|| panic!("{printed}")));
        }
        assert!(secrets.iter().all(|secret| *secret == secrets[0] && secret.len() == 64), "{printed}");
    }
}
