#![no_main]

use tar::{EntryType, Header};

// A line is an entry: its kind, its name, a space, its content or target. So the checksums are
// always right and the search is for what the entries do together.
libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut archive = tar::Builder::new(Vec::new());
    for line in text.lines().take(64) {
        let Some(kind) = line.bytes().next() else { continue };
        let kind = match kind {
            b'l' => EntryType::Symlink,
            b'h' => EntryType::Link,
            b'd' => EntryType::Directory,
            b'p' => EntryType::Fifo,
            b'L' => EntryType::GNULongName,
            b'x' => EntryType::XHeader,
            _ => EntryType::Regular,
        };
        let rest = line.get(1..).unwrap_or_default();
        let (name, content) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut header = Header::new_gnu();
        copy(&mut header.as_old_mut().name, name);
        header.set_entry_type(kind);
        let content = if kind.is_symlink() || kind.is_hard_link() {
            copy(&mut header.as_old_mut().linkname, content);
            ""
        } else {
            content
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        if archive.append(&header, content.as_bytes()).is_err() {
            return;
        }
    }
    if let Ok(bytes) = archive.into_inner() {
        roce_node::fuzzing::archive(&bytes);
    }
});

fn copy(field: &mut [u8; 100], text: &str) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}
