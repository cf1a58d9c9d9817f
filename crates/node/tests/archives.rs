//! Archives of strangers: nothing gets out of the folder that they are unpacked to.

use std::path::Path;

use roce_node::read_bytes;
use tar::EntryType;

/// Kind, name, and content or target.
type Entry = (EntryType, &'static str, &'static str);

/// An archive of entries whose names and links nobody has checked.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, rest) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let mut content: &[u8] = b"";
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_old_mut().linkname[..rest.len()].copy_from_slice(rest.as_bytes());
        } else {
            content = rest.as_bytes();
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

const CPUS: Entry = (EntryType::Regular, "node/sys/devices/system/cpu/online", "0-1\n");

fn told(more: &[Entry]) -> String {
    let mut entries = vec![CPUS];
    entries.extend(more);
    match read_bytes(Path::new("stranger.tar"), &archive(&entries)) {
        Ok(node) => format!("a node with cpus {}", node.cpus),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_leads_out_of_the_tree_is_refused() {
    use EntryType::{Block, Fifo, Link, Regular, Symlink};
    let cases: &[(&str, &[Entry])] = &[
        ("nothing wrong", &[]),
        ("a path that goes up", &[(Regular, "node/sys/../../../evil", "x")]),
        ("an absolute path", &[(Regular, "/sys/evil", "x")]),
        ("an absolute link", &[(Symlink, "node/sys/evil", "/etc/passwd")]),
        ("a link that goes up too far", &[(Symlink, "node/sys/evil", "../../etc")]),
        ("a link that goes up to the root", &[(Symlink, "node/sys/evil", "..")]),
        (
            "a link by way of another",
            &[(Symlink, "node/sys/a/b/c/up", "../../.."), (Symlink, "node/sys/evil", "a/b/c/up/../../etc")],
        ),
        ("two links in a ring", &[(Symlink, "node/sys/a", "b"), (Symlink, "node/sys/b", "a")]),
        ("a file through a link", &[(Symlink, "node/sys/a", "b"), (Regular, "node/sys/a/file", "x")]),
        ("a link in place of a file", &[(Regular, "node/sys/a", "x"), (Symlink, "node/sys/a", "b")]),
        ("a file in place of a folder", &[(Regular, "node/sys/devices", "x")]),
        ("a hard link", &[(Link, "node/sys/evil", "/etc/passwd")]),
        ("a pipe", &[(Fifo, "node/sys/evil", "")]),
        ("a device", &[(Block, "node/sys/evil", "")]),
        ("a second tree", &[(Regular, "other/sys/file", "x")]),
        (
            "a link to nothing, as a driver's",
            &[(Symlink, "node/sys/devices/driver", "../bus/pci/drivers/mlx5_core")],
        ),
    ];
    let lines: Vec<String> =
        cases.iter().map(|(name, more)| format!("{name}:\n    {}", told(more))).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn an_error_inside_of_an_archive_names_the_archive_and_the_file() {
    let bytes = archive(&[(EntryType::Regular, "sys/devices/system/cpu/online", "many\n")]);
    let error = read_bytes(Path::new("node17.tar"), &bytes).unwrap_err().to_string();
    assert_eq!(error, "node17.tar: sys/devices/system/cpu/online: \"many\" is not a CPU list such as 0-3,8");
    let bytes = archive(&[(EntryType::Regular, "proc/cpuinfo", "x")]);
    let error = read_bytes(Path::new("node17.tar"), &bytes).unwrap_err().to_string();
    assert_eq!(
        error,
        "node17.tar: no sys folder in it: this is no captured tree; an archive by rocectl capture can be read"
    );
}

#[test]
fn facts_that_make_no_sense_are_an_error() {
    let told = told(&[(EntryType::Regular, "node/roce-capture.toml", "format = 1\nqos = 3\n")]);
    assert_eq!(
        told,
        "stranger.tar: roce-capture.toml: line 2: invalid type: integer `3`, expected a map: write the capture \
         anew, or take this file away to go without its facts"
    );
}

#[test]
fn an_archive_of_zeros_ends_soon() {
    // 300 MB of zeros in a file of the archive, 300 KB compressed.
    let mut bytes = archive(&[CPUS]);
    bytes.truncate(1024);
    let mut header = tar::Header::new_gnu();
    header.set_path("node/sys/large").unwrap();
    header.set_size(300 * 1024 * 1024);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &bytes).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 300 * 1024 * 1024), &mut gzip).unwrap();
    let error = read_bytes(Path::new("bomb.tar.gz"), &gzip.finish().unwrap()).unwrap_err().to_string();
    assert_eq!(
        error,
        "bomb.tar.gz: more than 64 MB of files: this is no captured tree; an archive by rocectl capture can be read"
    );
}
