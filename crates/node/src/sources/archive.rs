//! Unpacks a tar of a sysfs tree, which may be a stranger's: nothing is written outside of a new
//! temporary folder, no link leads out of it, and its size is bounded.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use super::SourceError;
use crate::facts;

/// A tree that `hwloc-gather-topology` takes of a large machine is about 100 MB.
const MAX_STREAM: u64 = 256 * 1024 * 1024;
/// Of those files that are unpacked.
const MAX_UNPACKED: u64 = 64 * 1024 * 1024;
const MAX_ENTRIES: usize = 500_000;
/// As the kernel: more links than this on one way are a ring.
const MAX_LINKS: usize = 40;
/// Of all links together; real ones are walked in about fifteen steps each.
const MAX_STEPS: usize = 10_000_000;

/// Folders that other tools capture and no fact is read from. They are most of a tree.
const NOT_READ: [&str; 18] = [
    "LNXSYSTM:00",
    "block",
    "cache",
    "counters",
    "cpufreq",
    "cpuidle",
    "dmi",
    "hugepages",
    "hw_counters",
    "infiniband_mad",
    "infiniband_srp",
    "infiniband_verbs",
    "msi_irqs",
    "pkeys",
    "power",
    "queues",
    "statistics",
    "thermal_throttle",
];

/// Unpacks the `sys` of the tree, and the facts that a capture keeps beside it. `path` is named in
/// errors. The folder is removed when the result is dropped.
pub(crate) fn unpack(path: &Path, stream: impl Read) -> Result<TempDir, SourceError> {
    let io = |source| SourceError::Io { operation: "unpack", path: path.to_owned(), source };
    let bad = |problem: String| SourceError::Archive { path: path.to_owned(), problem };
    let folder = folder().map_err(io)?;
    let mut archive = tar::Archive::new(Capped { stream, left: MAX_STREAM });
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut top: Option<PathBuf> = None;
    let mut unpacked = 0;
    for (count, entry) in archive.entries().map_err(io)?.enumerate() {
        let mut entry = entry.map_err(io)?;
        if count >= MAX_ENTRIES {
            return Err(bad(format!("more than {MAX_ENTRIES} entries: this is no captured tree")));
        }
        let name = entry.path().map_err(io)?.into_owned();
        let shown = shown(&name);
        let plain = plain(&name).ok_or_else(|| bad(format!("entry {shown} leads out of the tree")))?;
        let Some((above, inside)) = split(&plain) else { continue };
        if *top.get_or_insert_with(|| above.clone()) != above {
            return Err(bad(format!("more than one tree in it: {shown} is of a second one")));
        }
        if is_not_read(&inside) {
            continue;
        }
        let target = folder.path().join(&inside);
        match entry.header().entry_type() {
            tar::EntryType::Directory => fs::create_dir_all(&target).map_err(io)?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent).map_err(io)?;
                }
                let mut file = fs::File::create(&target).map_err(io)?;
                let limit = MAX_UNPACKED + 1 - unpacked;
                unpacked += std::io::copy(&mut entry.by_ref().take(limit), &mut file).map_err(io)?;
                if unpacked > MAX_UNPACKED {
                    let megabytes = MAX_UNPACKED / 1024 / 1024;
                    return Err(bad(format!("more than {megabytes} MB of files: this is no captured tree")));
                }
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name().map_err(io)?;
                let target = target.ok_or_else(|| bad(format!("link {shown} leads nowhere")))?;
                links.insert(inside, target.into_owned());
            }
            _ => return Err(bad(format!("entry {shown} is neither a file, a folder nor a symbolic link"))),
        }
    }
    if top.is_none() {
        return Err(bad("no sys folder in it: this is no captured tree".into()));
    }
    // The links come last, so that no file was written through one.
    let mut steps = 0;
    for (link, target) in &links {
        if !stays_inside(link, &links, &mut steps) {
            let (link, target) = (shown(link), shown(target));
            return Err(bad(format!("link {link} -> {target} leads out of the tree, or nowhere")));
        }
        let place = folder.path().join(link);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(io)?;
        }
        symlink(target, place).map_err(|source| {
            if source.kind() == std::io::ErrorKind::AlreadyExists {
                bad(format!("{} is a link and something else too", shown(link)))
            } else {
                io(source)
            }
        })?;
    }
    Ok(folder)
}

/// A new folder that only we can enter: in memory where nothing says otherwise, because a tree is
/// thousands of tiny files.
fn folder() -> std::io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("roce-node-");
    let memory = Path::new("/dev/shm");
    if std::env::var_os("TMPDIR").is_none() && memory.is_dir() {
        builder.tempdir_in(memory).or_else(|_| builder.tempdir())
    } else {
        builder.tempdir()
    }
}

/// A path for an error message.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(200).flat_map(char::escape_default).collect()
}

/// The path without `.` parts; `None` if it is absolute or goes up.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// Cuts `TOP/sys/...` into `TOP` and `sys/...`; the top folder may be missing. `None` for what
/// isn't needed: `/proc` and `/dev` of other tools' captures.
fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let wanted = |path: &Path| path.starts_with("sys") || path == Path::new(facts::FILE);
    if wanted(path) {
        return Some((PathBuf::new(), path.to_owned()));
    }
    let mut parts = path.iter();
    let top = PathBuf::from(parts.next()?);
    let below = parts.as_path();
    wanted(below).then(|| (top, below.to_owned()))
}

/// Is no fact read from here? `memory10` below a NUMA node is a block of memory.
fn is_not_read(path: &Path) -> bool {
    path.iter().any(|part| {
        let Some(part) = part.to_str() else { return true };
        let block = part.strip_prefix("memory").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
        NOT_READ.contains(&part) || block
    })
}

/// Does a link lead to a place within the tree, by way of whatever other links? A link to what
/// isn't in the archive is fine: a driver's folder, say, where only the name counts.
fn stays_inside(link: &Path, links: &BTreeMap<PathBuf, PathBuf>, steps: &mut usize) -> bool {
    // What is still to be walked, the next part last.
    let mut ahead: Vec<PathBuf> = link.iter().rev().map(PathBuf::from).collect();
    let mut here = PathBuf::new();
    let mut followed = 0;
    while let Some(part) = ahead.pop() {
        *steps += 1;
        if *steps > MAX_STEPS {
            return false;
        }
        match part.components().next() {
            None | Some(Component::CurDir) => continue,
            Some(Component::ParentDir) => {
                if !here.pop() {
                    return false;
                }
                continue;
            }
            Some(Component::Normal(part)) => here.push(part),
            Some(_) => return false,
        }
        let Some(target) = links.get(&here) else { continue };
        followed += 1;
        if followed > MAX_LINKS || target.as_os_str().len() > 4096 {
            return false;
        }
        here.pop();
        ahead.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
    }
    // Only `sys` is unpacked, so what leads to the root leads out of it.
    !here.as_os_str().is_empty()
}

/// A stream that fails, rather than ends, where it is too long.
struct Capped<R> {
    stream: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let megabytes = MAX_STREAM / 1024 / 1024;
            std::io::Error::other(format!("unpacks to more than {megabytes} MB: this is no captured tree"))
        })?;
        Ok(read)
    }
}
