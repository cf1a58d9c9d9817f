//! Progress with elapsed time: a spinner per running step on a terminal, plain lines elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often a log is told that a step is still running: a silent log looks like a hung one.
const REMIND: Duration = Duration::from_secs(20);

/// The steps of a command. Everything goes to standard error.
pub(crate) struct Progress {
    start: Instant,
    bars: Option<MultiProgress>,
}

/// A running step. Dropped without [`done`](Step::done), it has failed.
pub(crate) struct Step<'a> {
    progress: &'a Progress,
    what: String,
    start: Instant,
    bar: Option<ProgressBar>,
    reminder: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    finished: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), bars: stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Time since the command was started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Prints a line above the running steps.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{}", text.as_ref())),
            None => eprintln!("{}", text.as_ref()),
        }
    }

    /// Starts a step.
    pub(crate) fn step(&self, what: impl Into<String>) -> Step<'_> {
        let what = what.into();
        let mut step =
            Step { progress: self, what, start: Instant::now(), bar: None, reminder: None, finished: false };
        if let Some(bars) = &self.bars {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(step.what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            step.bar = Some(bar);
        } else {
            self.stamped(&format!("{} ...", step.what));
            step.reminder = Some(remind(self.start, step.what.clone()));
        }
        step
    }

    fn stamped(&self, text: &str) {
        self.line(stamped(self.start, text));
    }
}

impl Step<'_> {
    /// The step has succeeded; `note` is added to its line.
    pub(crate) fn done(mut self, note: &str) {
        self.finish("done", note);
    }

    fn finish(&mut self, verdict: &str, note: &str) {
        self.finished = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some((stop, thread)) = self.reminder.take() {
            drop(stop);
            // It prints lines and can't fail.
            let _ = thread.join();
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let note = if note.is_empty() { String::new() } else { format!(": {note}") };
        self.progress.stamped(&format!("{} {verdict} in {seconds:.1} s{note}", self.what));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.finish("FAILED", "");
        }
    }
}

fn stamped(start: Instant, text: &str) -> String {
    format!("[{:6.1} s] {text}", start.elapsed().as_secs_f64())
}

fn remind(start: Instant, what: String) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = mpsc::channel();
    let thread = thread::spawn(move || {
        while stopped.recv_timeout(REMIND) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{}", stamped(start, &format!("{what}: still running")));
        }
    });
    (stop, thread)
}
