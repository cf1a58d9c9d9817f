use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::{SourceError, archive, hwloc, nccl, xml};
use crate::{Node, NodeError, read};

/// The longest XML that is believed. A machine of 2,000 CPUs takes 5 MB.
const MAX_XML: u64 = 16 * 1024 * 1024;

/// Where the magic word of a tar is.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;

/// Reads the node that `path` describes, recognised by what it holds, not by its name:
///
/// - a folder: the root of a sysfs tree, or a folder with one such root in it;
/// - a tar of such a folder, plain or compressed by gzip or bzip2: what [`capture`](crate::capture)
///   writes and what hwloc's `hwloc-gather-topology` does;
/// - hwloc's XML, version 2 or 3 (`lstopo --of xml`). It tells no rates, no kinds and interfaces of
///   GIDs, no states of interfaces, and not which driver has a GPU;
/// - the topology XML of NCCL and RCCL (`NCCL_TOPO_DUMP_FILE`). It tells no GIDs, no packages, no
///   distances and no ports that aren't active.
///
/// What a source doesn't tell is `None` in the node, or the word `unknown`.
///
/// # Errors
/// When the file can't be read, is of another kind, or makes no sense; with the path, and the line
/// of XML.
///
/// ```no_run
/// let node = roce_node::read_any(std::path::Path::new("node17.xml"))?;
/// println!("{} RDMA ports", node.ports.len());
/// # Ok::<(), roce_node::SourceError>(())
/// ```
pub fn read_any(path: &Path) -> Result<Node, SourceError> {
    let error = |source| SourceError::Io { operation: "read", path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(error)?;
    if metadata.is_dir() {
        return read_folder(path);
    }
    if !metadata.is_file() {
        let found = "neither a file nor a folder".to_owned();
        return Err(SourceError::Unknown { path: path.to_owned(), found });
    }
    let file = File::open(path).map_err(error)?;
    read_stream(path, Box::new(file))
}

/// Reads what [`read_any`] reads from a file; `path` is only named in errors.
///
/// # Errors
/// As [`read_any`].
pub fn read_bytes(path: &Path, bytes: &[u8]) -> Result<Node, SourceError> {
    read_stream(path, Box::new(io::Cursor::new(bytes)))
}

fn read_folder(path: &Path) -> Result<Node, SourceError> {
    if path.join("sys").is_dir() {
        return Ok(read(path)?);
    }
    let error = |source| SourceError::Io { operation: "read", path: path.to_owned(), source };
    let mut roots = Vec::new();
    for entry in std::fs::read_dir(path).map_err(error)? {
        let below = entry.map_err(error)?.path();
        if below.join("sys").is_dir() {
            roots.push(below);
        }
    }
    match &roots[..] {
        [root] => Ok(read(root)?),
        [] => Err(SourceError::Unknown { path: path.to_owned(), found: "a folder without sys in it".into() }),
        _ => Err(SourceError::Unknown {
            path: path.to_owned(),
            found: "a folder with several trees in it: name one".into(),
        }),
    }
}

fn read_stream(path: &Path, stream: Box<dyn Read + '_>) -> Result<Node, SourceError> {
    let error = |source| SourceError::Io { operation: "read", path: path.to_owned(), source };
    let mut stream = buffered(stream);
    let plain: Box<dyn Read + '_> = match stream.fill_buf().map_err(error)? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
        _ => Box::new(stream),
    };
    // A first look at what is inside; the decompressor may give little at a time.
    let mut plain = plain;
    let mut head = Vec::new();
    plain.by_ref().take(512).read_to_end(&mut head).map_err(error)?;
    let plain = io::Cursor::new(head.clone()).chain(plain);
    if head.get(TAR_MAGIC) == Some(b"ustar") {
        return read_archive(path, plain);
    }
    let text_starts = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    match text_starts.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'<') => read_xml(path, plain),
        _ => Err(SourceError::Unknown { path: path.to_owned(), found: looks_like(&head).into() }),
    }
}

fn buffered<'a>(stream: Box<dyn Read + 'a>) -> BufReader<Box<dyn Read + 'a>> {
    BufReader::with_capacity(64 * 1024, stream)
}

/// What people try, so that they hear what to do.
fn looks_like(head: &[u8]) -> &'static str {
    match head {
        [] => "an empty file",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "compressed by xz (unpack it first)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "compressed by zstd (unpack it first)",
        [b'P', b'K', ..] => "a zip file (unpack it first)",
        _ => "a file of another kind",
    }
}

fn read_xml(path: &Path, stream: impl Read) -> Result<Node, SourceError> {
    let error = |source| SourceError::Io { operation: "read", path: path.to_owned(), source };
    let mut text = String::new();
    stream.take(MAX_XML + 1).read_to_string(&mut text).map_err(error)?;
    if text.len() as u64 > MAX_XML {
        let found = format!("XML of more than {} MB", MAX_XML / 1024 / 1024);
        return Err(SourceError::Unknown { path: path.to_owned(), found });
    }
    let problem = |xml::Problem { line, problem }| SourceError::Xml { path: path.to_owned(), line, problem };
    let root = xml::parse(&text).map_err(problem)?;
    match root.name.as_str() {
        "topology" => hwloc::read(&root).map_err(problem),
        "system" => nccl::read(&root).map_err(problem),
        "graphs" => Err(SourceError::Unknown {
            path: path.to_owned(),
            found: "NCCL's graphs (NCCL_GRAPH_DUMP_FILE), not its topology (NCCL_TOPO_DUMP_FILE)".into(),
        }),
        other => {
            let other: String = other.chars().take(40).flat_map(char::escape_default).collect();
            Err(SourceError::Unknown { path: path.to_owned(), found: format!("XML whose root is <{other}>") })
        }
    }
}

fn read_archive(path: &Path, stream: impl Read) -> Result<Node, SourceError> {
    let tree = archive::unpack(path, stream)?;
    // What is said of the unpacked files is said of the archive: they are gone afterwards.
    let shorten = |inside: &Path| inside.strip_prefix(tree.path()).unwrap_or(inside).to_owned();
    let mut node = read(tree.path()).map_err(|error| {
        let source = match error {
            NodeError::Io { path, source } => NodeError::Io { path: shorten(&path), source },
            NodeError::Content { path, source } => NodeError::Content { path: shorten(&path), source },
            NodeError::Facts { path, problem } => NodeError::Facts { path: shorten(&path), problem },
        };
        SourceError::ArchivedTree { archive: path.to_owned(), source }
    })?;
    let temporary = format!("{}/", tree.path().display());
    for problem in &mut node.problems {
        *problem = problem.replace(&temporary, "");
    }
    Ok(node)
}
