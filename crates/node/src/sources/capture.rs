use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use roce_types::Gid;

use super::SourceError;
use super::anonymise::Anonymiser;
use crate::facts::{self, Facts};
use crate::tree::{Touched, Tree};
use crate::{Node, read_tree};

/// The folder in the archive; not the host's name.
const TOP: &str = "roce-capture";
/// As the kernel: more links than this on one way are a ring.
const MAX_LINKS: usize = 40;

/// What a capture has written.
#[derive(Debug)]
pub struct Captured {
    /// The node as it was read, nothing in it replaced. Its problems are not in the capture.
    pub node: Node,
    /// How many files are in the archive.
    pub files: usize,
}

/// Writes what [`read`](crate::read) reads below `root` into a tar, compressed where the name of
/// `out` ends in `.gz` or `.tgz`, that [`read_any`](crate::read_any) reads back: a few hundred small
/// files. Addresses and DCB facts of the live machine, which are not in its files, are kept beside
/// them in `roce-capture.toml`.
///
/// No hostname, serial number or MAC is in it. Unless `raw`, GUIDs, IP addresses and GIDs are
/// replaced, each wherever it appears by the same other one; subnets stay subnets, and an address
/// stays private, link-local, IPv4-mapped or global. Names of devices and interfaces and PCI
/// addresses stay.
///
/// # Errors
/// When the node can't be read, or the archive can't be written.
pub fn capture(root: &Path, out: &Path, raw: bool) -> Result<Captured, SourceError> {
    let tree = Tree::tracing(root);
    let node = read_tree(&tree)?;
    let anonymiser = (!raw).then(Anonymiser::new);
    let entries = entries(root, tree.into_trace(), anonymiser.as_ref())?;
    let facts = facts_text(&node, anonymiser.as_ref()).map_err(|error| SourceError::Io {
        operation: "write",
        path: out.to_owned(),
        source: io::Error::other(error),
    })?;
    let files = 1 + entries.values().filter(|entry| matches!(entry, Entry::File(_))).count();
    let error = |source| SourceError::Io { operation: "write", path: out.to_owned(), source };
    let file = std::fs::File::create(out).map_err(error)?;
    let compressed = matches!(out.extension().and_then(|name| name.to_str()), Some("gz" | "tgz"));
    if compressed {
        let stream = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        let stream = write_tar(stream, &entries, &facts).map_err(error)?;
        stream.finish().and_then(|mut file| file.flush()).map_err(error)?;
    } else {
        write_tar(file, &entries, &facts).and_then(|mut file| file.flush()).map_err(error)?;
    }
    Ok(Captured { node, files })
}

fn facts_text(node: &Node, anonymiser: Option<&Anonymiser>) -> Result<String, toml::ser::Error> {
    let mut facts = Facts::of(node, anonymiser.is_some());
    if let Some(anonymiser) = anonymiser {
        for address in facts.addresses.values_mut().flatten() {
            *address = anonymiser.ip(*address);
        }
    }
    facts.to_text()
}

enum Entry {
    Folder,
    Link(PathBuf),
    File(String),
}

/// What goes into the archive: everything that was looked at, each where it really is, and the
/// links on the way there.
fn entries(
    root: &Path,
    trace: BTreeMap<String, Touched>,
    anonymiser: Option<&Anonymiser>,
) -> Result<BTreeMap<PathBuf, Entry>, SourceError> {
    let mut entries = BTreeMap::new();
    for (path, touched) in trace {
        // The facts are written anew.
        if path == facts::FILE {
            continue;
        }
        let follow = touched != Touched::Link;
        let Some(place) = walk(root, Path::new(&path), follow, &mut entries)? else { continue };
        if let Touched::File(text) = touched {
            let text = match anonymiser {
                Some(anonymiser) => replaced(anonymiser, Path::new(&path), text),
                None => text,
            };
            entries.insert(place, Entry::File(text));
        }
    }
    Ok(entries)
}

/// Notes the folders and links on the way to `path` and returns where it really is; `None` if that
/// is outside of the tree or isn't there any more.
fn walk(
    root: &Path,
    path: &Path,
    follow: bool,
    entries: &mut BTreeMap<PathBuf, Entry>,
) -> Result<Option<PathBuf>, SourceError> {
    // What is still to be walked, the next part last.
    let mut ahead: Vec<PathBuf> = path.iter().rev().map(PathBuf::from).collect();
    let mut here = PathBuf::new();
    let mut followed = 0;
    while let Some(part) = ahead.pop() {
        match part.components().next() {
            Some(Component::Normal(part)) => here.push(part),
            Some(Component::ParentDir) if here.pop() => continue,
            Some(Component::CurDir) | None => continue,
            Some(_) => return Ok(None),
        }
        let full = root.join(&here);
        let error = |source| SourceError::Io { operation: "read", path: full.clone(), source };
        let metadata = match std::fs::symlink_metadata(&full) {
            Ok(metadata) => metadata,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(source)),
        };
        if metadata.is_symlink() {
            let target = std::fs::read_link(&full).map_err(error)?;
            // Such a link would be refused when the capture is read.
            followed += 1;
            if target.is_absolute() || followed > MAX_LINKS {
                return Ok(None);
            }
            entries.insert(here.clone(), Entry::Link(target.clone()));
            if ahead.is_empty() && !follow {
                return Ok(Some(here));
            }
            here.pop();
            ahead.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
        } else if metadata.is_dir() {
            entries.entry(here.clone()).or_insert(Entry::Folder);
        }
    }
    Ok(Some(here))
}

/// The content of the files that identify a machine: `sys_image_guid` and `gids/N`. What is there
/// but isn't understood isn't kept.
fn replaced(anonymiser: &Anonymiser, path: &Path, text: String) -> String {
    let name = path.file_name();
    let folder = path.parent().and_then(Path::file_name);
    let unreadable = || "unreadable\n".to_owned();
    if name.is_some_and(|name| name == "sys_image_guid") {
        return anonymiser.guid(text.trim()).map_or_else(unreadable, |guid| guid + "\n");
    }
    if folder.is_some_and(|folder| folder == "gids") {
        let gid = text.trim().parse::<Gid>();
        return gid.map_or_else(|_| unreadable(), |gid| long(anonymiser.gid(gid)));
    }
    text
}

/// As sysfs writes a GID: eight groups of four digits.
fn long(gid: Gid) -> String {
    gid.to_ipv6().segments().map(|group| format!("{group:04x}")).join(":") + "\n"
}

fn write_tar<W: Write>(stream: W, entries: &BTreeMap<PathBuf, Entry>, facts: &str) -> io::Result<W> {
    let mut archive = tar::Builder::new(stream);
    append(&mut archive, Path::new(""), &Entry::Folder)?;
    append(&mut archive, Path::new(facts::FILE), &Entry::File(facts.to_owned()))?;
    // Sorted by path, so that a folder comes before what is in it.
    for (path, entry) in entries {
        append(&mut archive, path, entry)?;
    }
    archive.into_inner()
}

/// The same bytes for the same tree: no times, no owners.
fn append<W: Write>(archive: &mut tar::Builder<W>, path: &Path, entry: &Entry) -> io::Result<()> {
    let path = Path::new(TOP).join(path);
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match entry {
        Entry::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            archive.append_data(&mut header, path, io::empty())
        }
        Entry::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            archive.append_link(&mut header, path, target)
        }
        Entry::File(text) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            archive.append_data(&mut header, path, text.as_bytes())
        }
    }
}
