//! Runs a command in a throw-away copy of a Debian suite: `cargo run -p roce-lab --example suite -- forky srun --version`.
//! Files that are named before `--` are put into its folder /opt/roce:
//! `... --example suite -- trixie target/debian/x.deb -- apt-get install -y /opt/roce/x.deb`.

use roce_lab::{Interrupt, Process, Suite};
use std::{path::PathBuf, time::Duration};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let interrupt = Interrupt::on_signals()?;
    let mut words = std::env::args().skip(1);
    let name = words.next().ok_or("which suite?")?;
    let words: Vec<String> = words.collect();
    let (files, command) = match words.iter().position(|word| word == "--") {
        Some(end) => (&words[..end], &words[end + 1..]),
        None => (&words[..0], words.as_slice()),
    };
    let suite = Suite::ensure("target/lab".as_ref(), &name, &interrupt)?;
    let inside = |file: &String| {
        let path = PathBuf::from(file);
        let name = path.file_name().map(|name| format!("/opt/roce/{}", name.display()));
        (path, name.unwrap_or_default())
    };
    let files: Vec<(PathBuf, String)> = files.iter().map(inside).collect();
    let files = files.iter().map(|(path, inside)| (path.as_path(), inside.as_str()));
    let status = Process::spawn(suite.command(files, Duration::from_secs(600), command))?.wait(&interrupt)?;
    std::process::exit(status.code().unwrap_or(1))
}
