//! Writes files and links below a root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::MachineError;

/// The root under construction. All paths are relative to it.
pub(crate) struct Sysfs<'a> {
    root: &'a Path,
}

impl<'a> Sysfs<'a> {
    pub(crate) fn new(root: &'a Path) -> Self {
        Self { root }
    }

    pub(crate) fn folder(&self, path: &str) -> Result<(), MachineError> {
        let path = self.root.join(path);
        fs::create_dir_all(&path).map_err(|source| MachineError::Io { path, source })
    }

    /// A file with a line feed at its end, as the kernel writes it.
    pub(crate) fn file(&self, path: &str, content: impl std::fmt::Display) -> Result<(), MachineError> {
        let path = self.with_parent(path)?;
        fs::write(&path, format!("{content}\n")).map_err(|source| MachineError::Io { path, source })
    }

    /// A relative link to a path of the tree, as the kernel makes them.
    pub(crate) fn link(&self, path: &str, target: &str) -> Result<(), MachineError> {
        let from: Vec<&str> = path.split('/').collect();
        let to: Vec<&str> = target.split('/').collect();
        // The folder that the link is in, without its own name.
        let above = &from[..from.len() - 1];
        let common = above.iter().zip(&to).take_while(|(a, b)| a == b).count();
        let mut relative: Vec<&str> = vec![".."; above.len() - common];
        relative.extend(&to[common..]);
        let path = self.with_parent(path)?;
        symlink(relative.join("/"), &path).map_err(|source| MachineError::Io { path, source })
    }

    fn with_parent(&self, path: &str) -> Result<PathBuf, MachineError> {
        let path = self.root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|source| MachineError::Io { path: parent.to_owned(), source })?;
        }
        Ok(path)
    }
}
