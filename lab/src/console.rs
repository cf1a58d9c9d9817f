//! What a guest says on its serial console: the lines that the host trusts, and the signs of a kernel that gave up.

use crate::process::tail;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

/// How many lines of a console an error shows.
const TAIL_LINES: usize = 25;

/// Reads a console that is being written.
#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    offset: u64,
    partial: String,
    /// PID 1 runs.
    pub booted: bool,
    /// Slurm is ready.
    pub ready: bool,
    /// What the guest's script returned.
    pub exit: Option<String>,
    /// The line with which its kernel gave up.
    pub panic: Option<String>,
}

impl Console {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, partial: String::new(), booted: false, ready: false, exit: None, panic: None }
    }

    /// Reads what is new. A file that isn't there yet has nothing new.
    pub(crate) fn read(&mut self) {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut bytes)
        });
        if read.is_ok() {
            self.offset += bytes.len() as u64;
            self.feed(&String::from_utf8_lossy(&bytes));
        }
    }

    /// The last lines, for an error.
    pub(crate) fn tail(&self) -> String {
        let text = tail(&self.path, TAIL_LINES);
        if text.is_empty() { "(it is empty)".into() } else { text }
    }

    fn feed(&mut self, text: &str) {
        self.partial.push_str(text);
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            self.line(line.trim());
        }
    }

    fn line(&mut self, line: &str) {
        // A kernel message may stand before a line of ours, without a line's end.
        let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.trim().to_owned());
        if after("LAB-BOOTED").is_some() {
            self.booted = true;
        } else if after("LAB-READY").is_some() {
            self.ready = true;
        } else if let Some(code) = after("LAB-EXIT") {
            self.exit = Some(code);
        } else if self.panic.is_none() {
            // A soft lockup is not among them: on a busy host an emulated CPU just waits.
            let signs = ["Kernel panic - ", "Oops: ", "BUG: unable to handle"];
            if let Some(from) = signs.iter().find_map(|sign| line.find(sign)) {
                self.panic = Some(line[from..].to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(chunks: &[&str]) -> Console {
        let mut console = Console::new(PathBuf::new());
        for chunk in chunks {
            console.feed(chunk);
        }
        console
    }

    #[test]
    fn lines_are_seen_although_they_arrive_in_pieces() {
        let console =
            console(&["[    1.0] x\r\nLAB-BO", "OTED 4.2 3.1\r\n", "LAB-READY", " 7\r\nLAB-EXIT 0\r\n"]);
        assert!(console.booted && console.ready && console.panic.is_none());
        assert_eq!(console.exit.as_deref(), Some("0"));
    }

    #[test]
    fn an_unfinished_line_is_no_verdict() {
        assert!(!console(&["LAB-BOOTED 4.2"]).booted);
    }

    #[test]
    fn a_panic_is_kept_without_its_time_stamp() {
        let console = console(&["[    2.5] Kernel panic - not syncing: VFS: Unable to mount root fs\n"]);
        assert_eq!(
            console.panic.as_deref(),
            Some("Kernel panic - not syncing: VFS: Unable to mount root fs")
        );
        assert!(!console.booted);
    }
}
