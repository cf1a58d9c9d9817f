use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use roce_types::ParseError;

/// The longest file that is believed. The kernel's attributes fit a page; only lists of CPUs on the
/// largest machines are longer.
const MAX_FILE: usize = 256 * 1024;

/// A file or folder that could not be read, or says what makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The operation failed on this path.
    #[error("can't read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was read, its content is not what this file holds on Linux.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        source: ParseError,
    },
    /// The facts that a capture keeps beside its tree make no sense.
    #[error("{path}: {problem}: write the capture anew, or take this file away to go without its facts")]
    Facts {
        /// The file.
        path: PathBuf,
        /// What is wrong and in which line.
        problem: String,
    },
}

impl NodeError {
    /// The file or folder that the error is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Content { path, .. } | Self::Facts { path, .. } => path,
        }
    }
}

/// What a reader looked at, so that a capture holds exactly that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Its content, as it stood.
    File(String),
    /// Only where it points to.
    Link,
    /// That it is there.
    Presence,
}

/// A root folder with a `sys` in it, and strict ways to read it.
pub(crate) struct Tree {
    root: PathBuf,
    /// `sys/devices` below the root without links in it; `None` where there is none.
    devices: OnceCell<Option<PathBuf>>,
    /// By path relative to the root; `None` while nobody asks.
    trace: Option<RefCell<BTreeMap<String, Touched>>>,
}

impl Tree {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), devices: OnceCell::new(), trace: None }
    }

    /// A tree that remembers what is read from it.
    #[cfg(feature = "sources")]
    pub(crate) fn tracing(root: &Path) -> Self {
        Self { trace: Some(RefCell::default()), ..Self::new(root) }
    }

    /// What was read so far, by path relative to the root.
    #[cfg(feature = "sources")]
    pub(crate) fn into_trace(self) -> BTreeMap<String, Touched> {
        self.trace.map(RefCell::into_inner).unwrap_or_default()
    }

    fn touch(&self, relative: &str, touched: impl FnOnce() -> Touched) {
        let Some(trace) = &self.trace else { return };
        let touched = touched();
        let mut trace = trace.borrow_mut();
        // A content says more than a presence.
        let known = trace.get(relative).is_some_and(|known| *known != Touched::Presence);
        if !known {
            trace.insert(relative.to_owned(), touched);
        }
    }

    /// Is this the machine that we run on, not a captured tree?
    pub(crate) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub(crate) fn exists(&self, relative: &str) -> bool {
        let exists = self.path(relative).exists();
        if exists {
            self.touch(relative, || Touched::Presence);
        }
        exists
    }

    pub(crate) fn is_folder(&self, relative: &str) -> bool {
        let is_folder = self.path(relative).is_dir();
        if is_folder {
            self.touch(relative, || Touched::Presence);
        }
        is_folder
    }

    /// The names in a folder, sorted so that nothing depends on the order of directories; empty
    /// when the folder doesn't exist.
    pub(crate) fn list(&self, relative: &str) -> Result<Vec<String>, NodeError> {
        self.list_those(relative, |_| true)
    }

    /// As [`list`](Self::list), only the names that matter.
    pub(crate) fn list_those(
        &self,
        relative: &str,
        matters: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, NodeError> {
        let path = self.path(relative);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(NodeError::Io { path, source }),
        };
        self.touch(relative, || Touched::Presence);
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| NodeError::Io { path: path.clone(), source })?;
            // No name that matters to us is anything but ASCII.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if matters(&name) {
                self.touch(&format!("{relative}/{name}"), || Touched::Presence);
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The content without the white space around it.
    pub(crate) fn text(&self, relative: &str) -> Result<String, NodeError> {
        let path = self.path(relative);
        let text = read_capped(&path).map_err(|source| NodeError::Io { path, source })?;
        let trimmed = text.trim().to_owned();
        self.touch(relative, || Touched::File(text));
        Ok(trimmed)
    }

    /// The content, or `None` where the kernel says that there is none: the file is absent, or the
    /// driver answers `EINVAL` (empty GID rows do) or "not supported".
    pub(crate) fn optional_text(&self, relative: &str) -> Result<Option<String>, NodeError> {
        match self.text(relative) {
            Ok(text) => Ok(Some(text)),
            Err(NodeError::Io { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(nix::libc::ENOENT | nix::libc::EINVAL | nix::libc::EOPNOTSUPP)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The last part of what a link points to (`driver` -> `mlx5_core`), `None` where there is no
    /// such link.
    pub(crate) fn link_name(&self, relative: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(relative)).ok()?;
        self.touch(relative, || Touched::Link);
        Some(target.file_name()?.to_str()?.to_owned())
    }

    pub(crate) fn parse<T: FromStr<Err = ParseError>>(&self, relative: &str) -> Result<T, NodeError> {
        let text = self.text(relative)?;
        text.parse().map_err(|source| NodeError::Content { path: self.path(relative), source })
    }

    /// The folder of a device and those above it, nearest first and relative to the root: what
    /// `link` points to, then each parent below `sys/devices`. Empty when there is no such link (a
    /// virtual device) or it leads out of the tree.
    pub(crate) fn device_ancestry(&self, link: &str) -> Vec<PathBuf> {
        let top = self.devices.get_or_init(|| self.path("sys/devices").canonicalize().ok());
        let (Some(top), Ok(device)) = (top, self.path(link).canonicalize()) else {
            return Vec::new();
        };
        let Ok(below) = device.strip_prefix(top) else { return Vec::new() };
        self.touch(link, || Touched::Presence);
        let below = Path::new("sys/devices").join(below);
        below.ancestors().take_while(|path| *path != Path::new("sys/devices")).map(Into::into).collect()
    }
}

/// Reads a file that may belong to a stranger's tree: a pipe doesn't block, a long file doesn't
/// fill the memory. Thousands of files are read, so a short one takes no more than two reads.
fn read_capped(path: &Path) -> io::Result<String> {
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = match file.read(&mut piece) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..read]);
        if bytes.len() > MAX_FILE {
            let problem = format!("longer than {MAX_FILE} bytes, which no file of sysfs is");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text"))
}
