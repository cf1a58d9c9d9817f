//! Holds the ranks of a step until the last one's clock has stopped. There are many more ranks than CPUs: what the first ones do
//! after the exchange (check, report, end) would take the CPUs from those that are still at it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A FIFO that every rank could write to and nobody does: whoever reads from it gets the end when the last rank has closed its
/// writing end. Nobody polls, and a rank that dies holds up nobody.
pub(crate) struct Gate {
    reading: File,
    writing: File,
}

impl Gate {
    /// Before the clock starts, and so before any rank's clock can stop.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let context = || path.display().to_string();
        // Without this flag opening would wait for who writes, and opening to write for who reads.
        let reading = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let reading = reading.with_context(context)?;
        let writing = File::options().write(true).open(path).with_context(context)?;
        fcntl(&reading, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(Self { reading, writing })
    }

    /// This rank's clock has stopped: waits for all others'.
    pub(crate) fn pass(mut self) -> Result<()> {
        drop(self.writing);
        loop {
            match self.reading.read(&mut [0]) {
                Ok(count) => {
                    ensure!(count == 0, "somebody has written to the gate");
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => bail!("waiting for the other ranks: {error}"),
            }
        }
    }
}
