//! Files that decide something for root: read only if nobody but root can have written them.
//!
//! The file must be a regular one that belongs to root and that neither group nor others may write. So must
//! every folder on its path, for whoever may write to a folder can put another file there; a folder with the
//! sticky bit (/tmp) will do, for there nobody can replace what belongs to root. A symbolic link on the path is
//! followed if it belongs to root.
//!
//! The path is walked one component at a time, each opened below the one before and judged by its descriptor,
//! and the text comes from the very descriptor that was judged: nothing can be exchanged in between.
//!
//! Access control lists need no look of their own: an entry that lets somebody write shows in the mode's group
//! bits, which are the list's mask.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::libc::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISVTX};
use nix::sys::stat::{FileStat, Mode, fstat};

/// As many as the kernel follows on one path.
const MOST_LINKS: usize = 40;

/// Writable by group or others.
const WRITABLE: u32 = 0o022;

/// A file or folder that root can't rely on, or that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refuses.
    #[error("{error}")]
    Io {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Somebody else may have written it.
    #[error("{} {what}: run `{mend} {}`", path.display(), path.display())]
    Untrusted {
        /// The file, folder or link.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The command that mends it, without its last argument.
        mend: &'static str,
    },
    /// No regular file, or a folder that is none.
    #[error("{} is {what}", path.display())]
    Kind {
        /// What was found.
        path: PathBuf,
        /// What it is or isn't.
        what: &'static str,
    },
    /// Longer than it may be.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many it may have.
        limit: u64,
    },
}

impl Error {
    /// What the system said, if it was the system that refused.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { error, .. } => Some(error.kind()),
            _ => None,
        }
    }
}

/// The text of a file of at most `limit` bytes.
///
/// # Errors
/// If anybody but root could have written it, if it is no regular file, is too long or no UTF-8, or can't be
/// read.
///
/// ```
/// let error = roce_trust::read("/dev/null".as_ref(), 1024).unwrap_err();
/// assert_eq!(error.to_string(), "/dev/null is not a regular file");
/// ```
pub fn read(path: &Path, limit: u64) -> Result<String, Error> {
    Walker::new().read(path, limit)
}

/// Would [`read`] refuse the file for what it is, whoever asks?
///
/// # Errors
/// As those of [`read`], but for what only its content shows.
pub fn check_file(path: &Path) -> Result<(), Error> {
    let walker = Walker::new();
    let found = walker.walk(path)?;
    is_regular(&found.stat, &found.path)?;
    walker.judge(&found.stat, &found.path)
}

/// Is this a folder that nobody but root may write to, or with the sticky bit?
///
/// # Errors
/// If it isn't, or is no folder.
pub fn check_folder(path: &Path) -> Result<(), Error> {
    let found = Walker::new().walk(path)?;
    if found.stat.st_mode & S_IFMT == S_IFDIR {
        return Ok(());
    }
    Err(Error::Kind { path: found.path, what: "not a folder" })
}

/// Where a path leads.
struct Found {
    /// The folder that it is in, and its name there.
    folder: OwnedFd,
    name: OsString,
    /// Its path without links.
    path: PathBuf,
    stat: FileStat,
}

/// Walks a path; `owner` is who is trusted beside root: nobody but in unit tests.
struct Walker {
    owner: u32,
}

impl Walker {
    fn new() -> Self {
        Self { owner: 0 }
    }

    fn read(&self, path: &Path, limit: u64) -> Result<String, Error> {
        let found = self.walk(path)?;
        // Before it is opened: to open a device may do something.
        is_regular(&found.stat, &found.path)?;
        let failed = |error: io::Error| Error::Io { path: found.path.clone(), error };
        // Not to wait for the writer of a pipe that took its place.
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = openat(&found.folder, found.name.as_os_str(), flags, Mode::empty());
        let file = file.map_err(|error| failed(error.into()))?;
        let stat = fstat(&file).map_err(|error| failed(error.into()))?;
        is_regular(&stat, &found.path)?;
        self.judge(&stat, &found.path)?;
        let mut bytes = Vec::new();
        File::from(file).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { path: found.path, limit });
        }
        String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Follows the path to its end, whose folders and links are all good then; so is a folder at the end.
    fn walk(&self, path: &Path) -> Result<Found, Error> {
        let opened = |path: &Path, error: Errno| Error::Io { path: path.to_owned(), error: error.into() };
        if !path.is_absolute() {
            return Err(opened(path, Errno::EINVAL));
        }
        let place = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let root = || {
            let root = open("/", place | OFlag::O_DIRECTORY, Mode::empty());
            root.map_err(|error| opened(Path::new("/"), error))
        };
        let mut folder = root()?;
        let mut here = PathBuf::from("/");
        self.judge(&fstat(&folder).map_err(|error| opened(&here, error))?, &here)?;
        let mut rest: VecDeque<OsString> = components(path).collect();
        let mut links = 0;
        loop {
            // Only for "/" itself nothing is left.
            let name = rest.pop_front().unwrap_or_else(|| ".".into());
            let path = joined(&here, &name);
            let fd = openat(&folder, name.as_os_str(), place | OFlag::O_NOFOLLOW, Mode::empty());
            let fd = fd.map_err(|error| opened(&path, error))?;
            let stat = fstat(&fd).map_err(|error| opened(&path, error))?;
            if stat.st_mode & S_IFMT == S_IFLNK {
                self.judge(&stat, &path)?;
                links += 1;
                if links > MOST_LINKS {
                    return Err(opened(&path, Errno::ELOOP));
                }
                let target = readlinkat(&folder, name.as_os_str()).map_err(|error| opened(&path, error))?;
                let target = PathBuf::from(target);
                if target.is_absolute() {
                    (folder, here) = (root()?, PathBuf::from("/"));
                }
                components(&target).rev().for_each(|name| rest.push_front(name));
                continue;
            }
            let is_folder = stat.st_mode & S_IFMT == S_IFDIR;
            if is_folder {
                self.judge(&stat, &path)?;
            }
            if rest.is_empty() {
                return Ok(Found { folder, name, path, stat });
            }
            if !is_folder {
                return Err(opened(&path, Errno::ENOTDIR));
            }
            (folder, here) = (fd, path);
        }
    }

    /// Can nobody but root have put something there?
    fn judge(&self, stat: &FileStat, path: &Path) -> Result<(), Error> {
        let kind = stat.st_mode & S_IFMT;
        let untrusted = |what, mend| Err(Error::Untrusted { path: path.to_owned(), what, mend });
        if stat.st_uid != 0 && stat.st_uid != self.owner {
            let mend = if kind == S_IFLNK { "chown -h root" } else { "chown root" };
            return untrusted(format!("belongs to user {}, not to root", stat.st_uid), mend);
        }
        // Whoever may write to a sticky folder still can't remove or rename what belongs to root. A link has no
        // mode of its own.
        let is_sticky = kind == S_IFDIR && stat.st_mode & S_ISVTX != 0;
        if stat.st_mode & WRITABLE != 0 && !is_sticky && kind != S_IFLNK {
            let what = format!("can be written by others than root (mode {:04o})", stat.st_mode & 0o7777);
            return untrusted(what, "chmod go-w");
        }
        Ok(())
    }
}

fn is_regular(stat: &FileStat, path: &Path) -> Result<(), Error> {
    if stat.st_mode & S_IFMT == S_IFREG {
        return Ok(());
    }
    Err(Error::Kind { path: path.to_owned(), what: "not a regular file" })
}

/// The names of a path, `..` too: what it means is the kernel's to say, and where it leads is judged again.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// The path of `name` in a folder, for messages.
fn joined(folder: &Path, name: &OsString) -> PathBuf {
    match name.to_str() {
        Some(".") => folder.to_owned(),
        Some("..") => folder.parent().unwrap_or(folder).to_owned(),
        _ => folder.join(name),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A folder of the tests' own user, who is trusted here as root is elsewhere.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            fs::create_dir(place.path("a")).unwrap();
            fs::write(place.path("a/file"), "text").unwrap();
            place.mode("a/file", 0o644);
            place.mode("a", 0o755);
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn mode(&self, name: &str, mode: u32) {
            fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        }

        fn read(&self, name: &str) -> Result<String, String> {
            let walker = Walker { owner: nix::unistd::geteuid().as_raw() };
            let text = walker.read(&self.path(name), 4);
            text.map_err(|error| error.to_string().replace(&format!("{}/", self.path("").display()), ""))
                .map_err(|error| error.replace(&self.path("").display().to_string(), ""))
        }
    }

    #[test]
    fn a_file_that_only_root_can_write_is_read() {
        let place = Place::new();
        assert_eq!(place.read("a/file").unwrap(), "text");
        for mode in [0o600, 0o444, 0o755] {
            place.mode("a/file", mode);
            assert_eq!(place.read("a/file").unwrap(), "text", "{mode:o}");
        }
    }

    #[test]
    fn a_file_or_folder_that_others_can_write_is_refused_with_what_mends_it() {
        let place = Place::new();
        for mode in [0o664, 0o646] {
            place.mode("a/file", mode);
            let said = format!(
                "a/file can be written by others than root (mode {mode:04o}): run `chmod go-w a/file`"
            );
            assert_eq!(place.read("a/file").unwrap_err(), said);
        }
        place.mode("a/file", 0o644);
        for mode in [0o775, 0o757] {
            place.mode("a", mode);
            let said = format!("a can be written by others than root (mode {mode:04o}): run `chmod go-w a`");
            assert_eq!(place.read("a/file").unwrap_err(), said);
        }
        // In a sticky folder nobody can replace a file of root's.
        place.mode("a", 0o1777);
        assert_eq!(place.read("a/file").unwrap(), "text");
        place.mode("a/file", 0o666);
        assert!(place.read("a/file").is_err());
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused() {
        let place = Place::new();
        if !nix::unistd::geteuid().is_root() {
            // Only root can give files away; then the tests' own files are somebody else's.
            let error = read(&place.path("a/file"), 4).unwrap_err().to_string();
            assert!(error.contains("not to root: run `chown root "), "{error}");
            return;
        }
        for name in ["a/file", "a"] {
            std::os::unix::fs::chown(place.path(name), Some(65534), None).unwrap();
            let said = format!("{name} belongs to user 65534, not to root: run `chown root {name}`");
            assert_eq!(place.read("a/file").unwrap_err(), said);
            std::os::unix::fs::chown(place.path(name), Some(0), None).unwrap();
        }
        symlink("a", place.path("link")).unwrap();
        assert_eq!(place.read("link/file").unwrap(), "text");
        std::os::unix::fs::lchown(place.path("link"), Some(65534), None).unwrap();
        let said = "link belongs to user 65534, not to root: run `chown -h root link`";
        assert_eq!(place.read("link/file").unwrap_err(), said);
    }

    #[test]
    fn links_are_followed_and_what_they_lead_to_is_judged() {
        let place = Place::new();
        symlink("../a/./file", place.path("a/relative")).unwrap();
        symlink(place.path("a/relative"), place.path("absolute")).unwrap();
        assert_eq!(place.read("absolute").unwrap(), "text");
        fs::create_dir(place.path("open")).unwrap();
        symlink("../a/file", place.path("open/link")).unwrap();
        place.mode("open", 0o777);
        symlink("open/link", place.path("to-open")).unwrap();
        assert!(place.read("to-open").unwrap_err().starts_with("open can be written"));
        symlink("loop", place.path("loop")).unwrap();
        assert!(place.read("loop").unwrap_err().contains("symbolic links"));
    }

    #[test]
    fn what_is_no_file_or_too_long_is_refused_and_a_pipe_does_not_stop_the_reader() {
        let place = Place::new();
        assert_eq!(place.read("a").unwrap_err(), "a is not a regular file");
        nix::unistd::mkfifo(&place.path("pipe"), Mode::S_IRUSR).unwrap();
        assert_eq!(place.read("pipe").unwrap_err(), "pipe is not a regular file");
        fs::write(place.path("a/file"), "12345").unwrap();
        assert_eq!(place.read("a/file").unwrap_err(), "a/file has more than 4 bytes");
        fs::write(place.path("a/file"), [0xff]).unwrap();
        assert!(place.read("a/file").unwrap_err().contains("utf-8"));
        assert!(place.read("a/file/x").unwrap_err().contains("Not a directory"));
        let missing = read("/nowhere/x".as_ref(), 4).unwrap_err();
        assert_eq!(missing.io_kind(), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn a_folder_is_judged_as_those_on_a_path_are() {
        assert!(check_folder("/".as_ref()).is_ok());
        assert!(check_folder("/proc".as_ref()).is_ok());
        assert_eq!(
            check_folder("/proc/version".as_ref()).unwrap_err().to_string(),
            "/proc/version is not a folder"
        );
    }
}
