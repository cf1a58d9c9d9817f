use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use roce_types::ParseError;

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
}

/// A root folder with a `sys` in it, and strict ways to read it.
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Is this the machine that we run on, not a captured tree?
    pub(crate) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub(crate) fn exists(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    /// The names in a folder, sorted so that nothing depends on the order of directories; empty
    /// when the folder doesn't exist.
    pub(crate) fn list(&self, relative: &str) -> Result<Vec<String>, NodeError> {
        let path = self.path(relative);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(NodeError::Io { path, source }),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| NodeError::Io { path: path.clone(), source })?;
            // No name that matters to us is anything but ASCII.
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// The content without the white space around it.
    pub(crate) fn text(&self, relative: &str) -> Result<String, NodeError> {
        read_text(&self.path(relative))
    }

    /// The content, or `None` where the kernel says that there is none: the file is absent, or the
    /// driver answers `EINVAL` (empty GID rows do) or "not supported".
    pub(crate) fn optional_text(&self, relative: &str) -> Result<Option<String>, NodeError> {
        optional(self.text(relative))
    }

    pub(crate) fn parse<T: FromStr<Err = ParseError>>(&self, relative: &str) -> Result<T, NodeError> {
        let text = self.text(relative)?;
        text.parse().map_err(|source| NodeError::Content { path: self.path(relative), source })
    }

    /// The folder of a device and those above it, nearest first: what `link` points to, then each
    /// parent up to `sys/devices`. Empty when there is no such link (a virtual device) or it leads
    /// out of the tree.
    pub(crate) fn device_ancestry(&self, link: &str) -> Vec<PathBuf> {
        let (Ok(device), Ok(top)) = (self.path(link).canonicalize(), self.path("sys/devices").canonicalize())
        else {
            return Vec::new();
        };
        device.ancestors().take_while(|path| path.starts_with(&top) && *path != top).map(Into::into).collect()
    }
}

pub(crate) fn read_text(path: &Path) -> Result<String, NodeError> {
    let error = |source| NodeError::Io { path: path.to_owned(), source };
    Ok(std::fs::read_to_string(path).map_err(error)?.trim().to_owned())
}

pub(crate) fn optional(read: Result<String, NodeError>) -> Result<Option<String>, NodeError> {
    match read {
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
