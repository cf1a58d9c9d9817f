//! A command in a guest: how it is handed over in the shared folder, and what comes back.

use crate::Error;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 and more: a signal's number on top.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From its hand-over to its end, as the host saw it.
    pub elapsed: Duration,
}

impl Output {
    /// Whether the exit code is zero.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// Who runs a command in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// uid 0.
    Root,
    /// uid 1000, named `user`.
    Ordinary,
}

/// A command's files in the shared folder.
pub(crate) struct Files {
    folder: PathBuf,
    number: usize,
}

impl Files {
    /// The files of the `number`th command of a guest, from 1.
    pub(crate) fn new(share: &Path, node: &str, number: usize) -> Self {
        Self { folder: share.join("cmd").join(node), number }
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.number))
    }

    /// Hands a script over. The guest finds it whole, for it appears by renaming.
    pub(crate) fn hand_over(
        &self,
        node: &str,
        script: &str,
        user: User,
        timeout: Duration,
    ) -> Result<(), Error> {
        let text = self.path("script");
        fs::write(&text, script).map_err(Error::file("write", &text))?;
        let draft = self.path("draft");
        let guests_path = format!("/lab/cmd/{node}/{}.script", self.number);
        fs::write(&draft, wrapper(&guests_path, user, timeout)).map_err(Error::file("write", &draft))?;
        fs::rename(&draft, self.path("sh")).map_err(Error::file("rename", &draft))
    }

    /// The exit code, once the command has ended.
    pub(crate) fn status(&self) -> Option<i32> {
        fs::read_to_string(self.path("status")).ok()?.trim().parse().ok()
    }

    /// What the command has printed so far, on standard output or standard error.
    pub(crate) fn printed(&self, kind: &str) -> Result<String, Error> {
        let path = self.path(kind);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// What the guest really runs: the script with the limits and the environment of somebody who has just logged in. 64
/// KiB of locked memory is what a login shell gets on a stock system, whatever slurmd itself may have.
fn wrapper(script: &str, user: User, timeout: Duration) -> String {
    let (become_user, name, home) = match user {
        User::Root => ("", "root", "/root"),
        User::Ordinary => ("setpriv --reuid=1000 --regid=1000 --clear-groups ", "user", "/home/user"),
    };
    let seconds = timeout.as_secs_f64();
    format!(
        "ulimit -l 64\ncd /tmp\nexec timeout --kill-after=2 {seconds} {become_user}env -i HOME={home} USER={name} \
         LOGNAME={name} SHELL=/bin/bash LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin bash {script}\n"
    )
}
