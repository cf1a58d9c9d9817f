//! Ranks on several hosts: `ssh HOST rocectl run-on-host` for each, whose input tells it what to start.
//!
//! The first line is the secret, the second the [`Order`] as JSON; so no command line has either of them. Then come words:
//! `here` now and then, `signal N`. When the input ends, so do the ranks. The other end's last line on stderr is
//! [`LAST_WORD`], so that a connection that broke is told from a rank with ssh's exit code for that, 255.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use anyhow::{Context as _, bail};
use roce_bootstrap::{FOREIGN_VARIABLES, Node, Run, SECRET_VARIABLE, Secret, expand_hostlist};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::member::Member;
use super::{Event, SILENCE, start_ranks, wait};
use crate::Usage;
use crate::cli::RunArgs;

/// Variables that belong to a machine or a session there, not to the program that is run.
const OF_THE_MACHINE: &[&str] = &[
    "HOME", "HOSTNAME", "LOGNAME", "MAIL", "PWD", "OLDPWD", "SHELL", "SHLVL", "TMPDIR", "USER", "DISPLAY",
    "_",
];
const OF_A_SESSION: &[&str] = &["SSH_", "XDG_", "DBUS_", "WAYLAND_"];
/// No order is longer: Linux's own limit for arguments and environment is 2 MiB by default.
const LONGEST: u64 = 16 << 20;

/// What the other end says when it ends by itself. Nobody sees it.
pub(super) const LAST_WORD: &str = "\u{1e}rocectl ends\n";
/// For what is asked of ssh. Where `--ssh` says otherwise that counts: ssh takes an option's first value. Nobody is there
/// to be asked for a password; and a connection that is cut silently is noticed within 20 s.
const SSH_OPTIONS: [&str; 7] =
    ["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"];

/// What a host is to do.
#[derive(Serialize, Deserialize)]
struct Order {
    /// This program's: both ends must be of one build.
    version: String,
    /// Name and ranks of each node.
    nodes: Vec<(String, u32)>,
    /// Which of them the host is.
    node_index: u32,
    folder: String,
    command: Vec<String>,
    variables: Vec<(String, String)>,
    label: bool,
}

/// Starts the ranks on these hosts and waits for them.
pub(super) fn run(
    arguments: &RunArgs,
    hosts: &str,
    secret: &Secret,
    events: &Sender<Event>,
    received: &Receiver<Event>,
) -> anyhow::Result<ExitCode> {
    let nodes = distribute(hosts, arguments.ranks)?;
    let mut ssh = arguments.ssh.split_whitespace();
    let program = ssh.next().ok_or_else(|| Usage("--ssh names no command".to_owned()))?;
    let options: Vec<&str> = ssh.collect();
    let text = |words: &OsString, what: &str| {
        words.to_str().map(str::to_owned).with_context(|| format!("{what} {words:?} is no UTF-8 text"))
    };
    let rocectl = match &arguments.rocectl {
        Some(rocectl) => rocectl.clone(),
        None => text(&std::env::current_exe().context("where is this program?")?.into(), "the path")?,
    };
    let folder = text(&std::env::current_dir().context("which folder is this?")?.into(), "the folder")?;
    let command =
        arguments.command.iter().map(|word| text(word, "the argument")).collect::<Result<_, _>>()?;
    let mut order = Order {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nodes: nodes.iter().map(|node| (node.name.clone(), node.tasks)).collect(),
        node_index: 0,
        folder,
        command,
        variables: variables(),
        label: arguments.label,
    };
    let mut members: Vec<Member> = Vec::new();
    for (index, node) in (0..).zip(&nodes) {
        let mut start = Command::new(program);
        start.args(&options).args(SSH_OPTIONS).args(["--", &node.name]);
        start.arg(format!("exec {} run-on-host", quoted(&rocectl))).stdin(Stdio::piped());
        start.env_remove(SECRET_VARIABLE);
        let failed = || format!("can't start {program} to {}", node.name);
        let name = format!("host {}", node.name);
        let member = Member::start(index, name, start, String::new(), events).with_context(failed)?;
        order.node_index = index;
        // Where it has ended already, that is heard below.
        member.say(&secret.to_hex());
        member.say(&serde_json::to_string(&order)?);
        members.push(member);
    }
    Ok(ExitCode::from(wait::wait(&mut members, received, None)))
}

/// As even as can be, more on the first. Hosts without a rank are left out.
fn distribute(hosts: &str, ranks: u32) -> anyhow::Result<Vec<Node>> {
    let wrong = |why: &str| Usage(format!("--hosts {hosts}: {why}"));
    let names = expand_hostlist(hosts).ok_or_else(|| wrong("not a list of names such as a,b or n[1-8]"))?;
    if let Some(option) = names.iter().find(|name| name.starts_with('-')) {
        bail!(wrong(&format!("{option} is no host's name")));
    }
    let mut known = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !known.insert(*name)) {
        bail!(wrong(&format!("{twice} is there twice")));
    }
    let count = u32::try_from(names.len()).unwrap_or(u32::MAX).min(ranks);
    let tasks = |index| ranks / count + u32::from(index < ranks % count);
    Ok((0..count).zip(names).map(|(index, name)| Node { name, tasks: tasks(index) }).collect())
}

/// This process's environment, as far as it concerns the program.
fn variables() -> Vec<(String, String)> {
    let concerns = |name: &str| {
        name != SECRET_VARIABLE
            && !OF_THE_MACHINE.contains(&name)
            && !FOREIGN_VARIABLES.contains(&name)
            && !OF_A_SESSION.iter().any(|start| name.starts_with(start))
    };
    let text = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    text.filter(|(name, _)| concerns(name)).collect()
}

/// One word of a POSIX shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The other end: does what its input says.
pub(crate) fn on_host() -> anyhow::Result<ExitCode> {
    let done = obey();
    // Where nobody listens any more nobody misses it.
    let _ = io::stderr().lock().write_all(LAST_WORD.as_bytes());
    done
}

fn obey() -> anyhow::Result<ExitCode> {
    let (sender, events) = super::listen_to_signals()?;
    let mut input = io::BufReader::new(io::stdin());
    let mut line = || {
        let mut line = Zeroizing::new(String::new());
        let read = input.by_ref().take(LONGEST).read_line(&mut line);
        read.context("can't read what to do").map(|_| line)
    };
    let (digits, order) = (line()?, line()?);
    let secret = Secret::from_hex(digits.trim_end().as_bytes())
        .ok()
        .context("this is started by rocectl run --hosts, which tells it what to do")?;
    let order: Order = serde_json::from_str(&order).context("the other end is another version of rocectl")?;
    let own = env!("CARGO_PKG_VERSION");
    if order.version != own {
        bail!(
            "rocectl is {} at one end and {own} at the other: install the same, or say --rocectl FILE",
            order.version
        );
    }
    let nodes: Vec<Node> = order.nodes.into_iter().map(|(name, tasks)| Node { name, tasks }).collect();
    let name = nodes.get(order.node_index as usize).map_or("?", |node| node.name.as_str());
    std::env::set_current_dir(&order.folder)
        .with_context(|| format!("{name}: no folder {}", order.folder))?;

    let run = Run { nodes: &nodes, secret: &secret };
    let command: Vec<OsString> = order.command.into_iter().map(Into::into).collect();
    let mut ranks = start_ranks(&run, order.node_index, &command, &order.variables, order.label, &sender)?;
    thread::Builder::new()
        .spawn(move || {
            for word in input.lines() {
                let signal = |word: &str| word.strip_prefix("signal ")?.parse().ok();
                let event = match word {
                    Ok(word) => signal(&word).map_or(Event::Heard, Event::Signal),
                    Err(_) => break,
                };
                if sender.send(event).is_err() {
                    return;
                }
            }
            let _ = sender.send(Event::Lost);
        })
        .context("can't listen to the other end")?;
    Ok(ExitCode::from(wait::wait(&mut ranks, &events, Some(SILENCE))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_spread_evenly_over_the_hosts() {
        let spread = |hosts, ranks| {
            let nodes = distribute(hosts, ranks).unwrap();
            nodes.iter().map(|node| format!("{} {}", node.name, node.tasks)).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(spread("a,b", 4), "a 2, b 2");
        assert_eq!(spread("n[1-3]", 8), "n1 3, n2 3, n3 2");
        assert_eq!(spread("a,b,c", 2), "a 1, b 1");
        for (hosts, why) in
            [("a,,b", "not a list"), ("a,b,a", "a is there twice"), ("-oProxyCommand", "no host's name")]
        {
            let error = distribute(hosts, 4).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_path_is_one_word_of_the_shell() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }
}
