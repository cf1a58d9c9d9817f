use std::io;
use std::path::PathBuf;

use crate::NodeError;

/// A source that could not be read, or a capture that could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A sysfs tree that can't be read.
    #[error(transparent)]
    Tree(#[from] NodeError),
    /// The tree in an archive that can't be read. The error's path is relative to the tree.
    #[error("{archive}: {source}")]
    ArchivedTree {
        /// The archive.
        archive: PathBuf,
        /// What is wrong in it.
        source: NodeError,
    },
    /// The operation failed on this path.
    #[error("can't {operation} {path}: {source}")]
    Io {
        /// `read`, `write`, `unpack`.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive has something in it that a captured tree doesn't have.
    #[error("{path}: {problem}; an archive by rocectl capture can be read")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What, and which entry.
        problem: String,
    },
    /// The XML makes no sense.
    #[error("{path}:{line}: {problem}; write the file anew with lstopo --of xml or NCCL_TOPO_DUMP_FILE")]
    Xml {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// Nothing that this crate can read.
    #[error(
        "{path}: {found}, expected the root of a sysfs tree, a tar of one (plain, gzip or bzip2), hwloc XML \
         or NCCL topology XML"
    )]
    Unknown {
        /// The file or folder.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
}
