//! `rocectl`: see, plan and apply RoCE pinning on a node.
//!
//! Each subcommand is one file; what they share is which node they look at (`source`), what was
//! asked for (`request`), which task is where (`layout`, `rank`, `step`) and how things look
//! (`table`, `picture`).

mod capture;
mod cli;
mod env;
mod exec;
mod layout;
mod manual;
mod picture;
mod plan;
mod plan_json;
mod rank;
mod request;
mod restore;
mod run;
mod show;
mod show_json;
mod source;
mod step;
mod survey;
mod table;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// A mistake on the command line, judged after clap had its say: exit code 2 instead of 1.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// As env(1) and the shells have it.
const COMMAND_NOT_FOUND: u8 = 127;
const COMMAND_NOT_EXECUTABLE: u8 = 126;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Show(arguments) => show::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Env(arguments) => env::run(&arguments),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Run(arguments) => match run::run(&arguments) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::RunOnHost => match run::on_host() {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::pages(folder.as_deref()),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    // Somebody who reads only the first lines of ours is not in error.
    if let Some(io) = error.downcast_ref::<io::Error>()
        && io.kind() == ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS;
    }
    complain("", &in_full(&error));
    if error.is::<Usage>() {
        return ExitCode::from(2);
    }
    match error.downcast_ref::<exec::NotStarted>() {
        Some(not_started) if not_started.source.kind() == ErrorKind::NotFound => {
            ExitCode::from(COMMAND_NOT_FOUND)
        }
        Some(_) => ExitCode::from(COMMAND_NOT_EXECUTABLE),
        None => ExitCode::FAILURE,
    }
}

/// The error with its causes. Some say their cause themselves; it is not said again.
pub(crate) fn in_full(error: &anyhow::Error) -> String {
    let mut full = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if full.is_empty() {
            full = cause;
        } else if !full.ends_with(&cause) {
            full += &format!(": {cause}");
        }
    }
    full
}

/// One line on stderr. What is not written there can't be told anywhere else, so failure is let be.
pub(crate) fn complain(kind: &str, message: &str) {
    let line = message.replace('\n', " ");
    let _ = writeln!(anstream::stderr(), "rocectl: {kind}{line}");
}

/// Writes to stdout, with colours only where somebody sees them (`NO_COLOR`, `CLICOLOR_FORCE`).
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
