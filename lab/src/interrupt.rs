//! The one flag that every wait of the lab looks at, so that Ctrl-C ends a run in order.

use crate::Error;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Tells a wait to give up. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that SIGINT, SIGTERM and SIGQUIT set. The second signal ends the process at once, in case that the orderly
    /// end hangs; guests still die then, for the kernel kills them with their parent.
    ///
    /// # Errors
    /// [`Error::Start`] if the handlers can't be installed.
    pub fn on_signals() -> Result<Self, Error> {
        use signal_hook::{consts::TERM_SIGNALS, flag};
        let interrupt = Self::default();
        for &signal in TERM_SIGNALS {
            // Order matters: the shutdown looks at the flag before this very signal sets it.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupt.0))
                .and_then(|_| flag::register(signal, Arc::clone(&interrupt.0)))
                .map_err(|source| Error::Start { program: "the signal handler".into(), source })?;
        }
        Ok(interrupt)
    }

    /// Sets the flag, as a signal would.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// For use between two steps of a longer work.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the flag is set.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_raised() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Sleeps, but no longer than until the flag is set.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the flag is set.
    pub fn sleep(&self, duration: Duration) -> Result<(), Error> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_ends_a_sleep_of_another_clone() {
        let interrupt = Interrupt::default();
        interrupt.clone().raise();
        let start = Instant::now();
        assert!(matches!(interrupt.sleep(Duration::from_secs(60)), Err(Error::Interrupted)));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
