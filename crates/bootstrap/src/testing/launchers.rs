//! What launchers say.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::discovery::{Discovery, Identity};
use crate::pmi::{self, PmiVariables};
use crate::pmix;
use crate::secret::Secret;

/// Bytes as all that a PMI launcher says to rank `rank` of `size`. Who the rank is then, and the secret that it has.
#[must_use]
pub fn hear_pmi(
    rank: u32,
    size: u32,
    identity: Option<Identity>,
    bytes: &[u8],
) -> Option<(Identity, Secret)> {
    let (ours, mut theirs) = UnixStream::pair().ok()?;
    theirs.write_all(bytes).ok()?;
    theirs.shutdown(Shutdown::Write).ok()?;
    let pmi = PmiVariables { rank, size, fd: Some(6), job: "7.0".to_owned() };
    let deadline = Instant::now() + Duration::from_secs(10);
    pmi::introduce_by(ours, &pmi, identity, deadline).ok()
}

/// Any environment. Who this process is, `None` where the launcher would have to be asked.
///
/// # Errors
/// As [`Identity::discover`].
pub fn hear_variables(variable: &dyn Fn(&str) -> Option<String>) -> crate::Result<Option<Identity>> {
    Discovery::read(variable, "here").map(|found| found.identity)
}

/// What a PMIx launcher says of the nodes and their ranks.
///
/// # Errors
/// Where they do not have every rank once.
pub fn hear_pmix(nodes: Vec<(String, Vec<u32>)>, rank: u32, size: u32) -> Result<Identity, String> {
    pmix::arrange(nodes, rank, size)
}
