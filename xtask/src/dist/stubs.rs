//! Takes libpthread.so.0 and libdl.so.2 out of what the plugin says it needs.
//!
//! Until glibc 2.34 their functions were in files of their own, so what is linked for 2.28 names these files. Since 2.34
//! they are empty stubs, and finding and mapping them took half of the plugin's load time, in srun and again in
//! slurmstepd. Where they are real, every program of Slurm has them already. So the few functions that are from there
//! become functions of whoever has them: the two files, and the versions of theirs, are taken out of the dynamic section.
//!
//! Formats: the System V gABI's dynamic section, and the symbol versioning of the Linux Standard Base (10.7).

use anyhow::{Context, Result, ensure};
use object::{
    LittleEndian as LE, Object, ObjectSection,
    elf::{DT_NEEDED, DT_VERNEED, DT_VERNEEDNUM},
    read::elf::ElfFile64,
};
use std::{collections::BTreeSet, ops::Range};

/// The files.
pub(crate) const STUBS: [&str; 2] = ["libdl.so.2", "libpthread.so.0"];

/// What is the same in every file: sizes and positions in `Elf64_Shdr`, `Elf64_Dyn`, `Elf64_Verneed`, `Elf64_Vernaux`.
const SECTION_HEADER: usize = 64;
const SECTION_ADDRESS: usize = 16;
const SECTION_OFFSET: usize = 24;
const SECTION_SIZE: usize = 32;
const SECTION_INFO: usize = 44;
const DYN: usize = 16;
const VERNEED_COUNT: usize = 2;
const VERNEED_FILE: usize = 4;
const VERNEED_AUX: usize = 8;
const VERNEED_NEXT: usize = 12;
const VERNAUX_OTHER: usize = 6;
const VERNAUX_NEXT: usize = 12;
/// The version index of a symbol that is anybody's.
const VER_NDX_GLOBAL: u16 = 1;
/// The bit beside the index.
const VERSYM_HIDDEN: u16 = 0x8000;

/// The file without them.
pub(crate) fn drop_stubs(bytes: &mut [u8]) -> Result<()> {
    let section = |bytes: &[u8], name: &str| -> Result<Range<usize>> {
        let elf = ElfFile64::<LE>::parse(bytes)?;
        let section = elf.section_by_name(name).with_context(|| format!("it has no section {name}"))?;
        let (start, size) = section.file_range().with_context(|| format!("{name} is not in the file"))?;
        Ok(usize::try_from(start)?..usize::try_from(start + size)?)
    };
    let strings = section(bytes, ".dynstr")?.start;
    let is_stub = |bytes: &[u8], name: usize| {
        let name = bytes[strings + name..].split(|byte| *byte == 0).next().unwrap_or_default();
        STUBS.iter().any(|stub| stub.as_bytes() == name)
    };

    // The versions of each file are a chain: the stubs' links are left out of it.
    let (mut dropped, mut kept) = (BTreeSet::new(), 0);
    let versions = section(bytes, ".gnu.version_r")?.start;
    let (mut at, mut before, mut first) = (versions, None, versions);
    loop {
        let next = word(bytes, at + VERNEED_NEXT);
        if is_stub(bytes, word(bytes, at + VERNEED_FILE)) {
            match before {
                None => first = at + next,
                Some(before) => {
                    let link = if next == 0 { 0 } else { word(bytes, before + VERNEED_NEXT) + next };
                    put(bytes, before + VERNEED_NEXT, &u32::try_from(link)?.to_le_bytes());
                }
            }
            let mut version = at + word(bytes, at + VERNEED_AUX);
            for _ in 0..half(bytes, at + VERNEED_COUNT) {
                dropped.insert(half(bytes, version + VERNAUX_OTHER));
                version += word(bytes, version + VERNAUX_NEXT);
            }
        } else {
            before = Some(at);
            kept += 1_u64;
        }
        if next == 0 {
            break;
        }
        at += next;
    }

    ensure!(kept > 0, "it needs no versions but those of the stubs");
    let moved = (first - versions) as u64;

    // What tools read of it.
    let elf = ElfFile64::<LE>::parse(&*bytes)?;
    let index = elf.section_by_name(".gnu.version_r").context("it has no section .gnu.version_r")?.index().0;
    let headers = usize::try_from(elf.elf_header().e_shoff.get(LE))?;
    let header = headers + index * SECTION_HEADER;
    put(bytes, header + SECTION_INFO, &u32::try_from(kept)?.to_le_bytes());
    for at in [SECTION_ADDRESS, SECTION_OFFSET].map(|field| header + field) {
        put(bytes, at, &(long(bytes, at) + moved).to_le_bytes());
    }
    let size = header + SECTION_SIZE;
    put(bytes, size, &(long(bytes, size) - moved).to_le_bytes());

    // Their functions are from wherever they are found.
    for at in section(bytes, ".gnu.version")?.step_by(2) {
        if dropped.contains(&(half(bytes, at) & !VERSYM_HIDDEN)) {
            put(bytes, at, &VER_NDX_GLOBAL.to_le_bytes());
        }
    }

    // And nobody needs the files.
    let dynamic = section(bytes, ".dynamic")?;
    ensure!(dynamic.len().is_multiple_of(DYN), ".dynamic has half an entry");
    let mut entries = Vec::with_capacity(dynamic.len());
    for at in dynamic.clone().step_by(DYN) {
        let tag = i64::try_from(long(bytes, at))?;
        if tag == DT_NEEDED.0 && is_stub(bytes, usize::try_from(long(bytes, at + 8))?) {
            continue;
        }
        entries.extend_from_slice(&bytes[at..at + 8]);
        let value = match tag {
            tag if tag == DT_VERNEEDNUM.0 => kept,
            tag if tag == DT_VERNEED.0 => long(bytes, at + 8) + moved,
            _ => long(bytes, at + 8),
        };
        entries.extend_from_slice(&value.to_le_bytes());
    }
    // DT_NULL, which ends the section.
    entries.resize(dynamic.len(), 0);
    put(bytes, dynamic.start, &entries);
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A 32-bit number, as it is used here: to count bytes.
fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(half(bytes, at)) | usize::from(half(bytes, at + 2)) << 16
}

fn long(bytes: &[u8], at: usize) -> u64 {
    word(bytes, at) as u64 | (word(bytes, at + 4) as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{ImportFlags, Object};
    use std::{fs, process::Command};

    /// A library that takes `of_stub` and a function of the C library from files with versions, as on an old glibc.
    fn library() -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
        write("versions", "GLIBC_2.2.5 { global: *; };");
        write("dl.c", "void *of_stub(const char *a) { return 0; }");
        write(
            "main.c",
            "char *getenv(const char *); void *of_stub(const char *);\n\
               void *find(void) { return of_stub(getenv(\"X\")); }",
        );
        let compile = |arguments: &[&str]| {
            let status = Command::new("cc").args(arguments).current_dir(folder.path()).status();
            assert!(status.is_ok_and(|status| status.success()), "cc {arguments:?}");
        };
        let soname = "-Wl,-soname,libdl.so.2,--version-script,versions";
        compile(&["-shared", "-fPIC", "-nostdlib", soname, "dl.c", "-o", "libdl.so.2"]);
        compile(&["-shared", "-fPIC", "-w", "main.c", "./libdl.so.2", "-o", "main.so"]);
        fs::read(folder.path().join("main.so")).expect("the library")
    }

    /// The files it needs, and each function with its version.
    fn needs(bytes: &[u8]) -> (Vec<String>, Vec<(String, Option<String>)>) {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let elf = ElfFile64::<LE>::parse(bytes).expect("an ELF file");
        let dynamic = elf.elf_dynamic_table().expect("a dynamic section");
        let needed = dynamic.iter().filter(|entry| entry.tag == DT_NEEDED);
        let needed = needed.map(|entry| text(dynamic.string(entry).expect("a name"))).collect();
        let imports = elf.imports().expect("imports").map(|import| {
            let import = import.expect("an import");
            let ImportFlags::Elf { version, .. } = import.flags() else { panic!("no ELF import") };
            (text(import.name().name().unwrap_or_default()), version.map(text))
        });
        (needed, imports.filter(|(name, _)| ["of_stub", "getenv"].contains(&name.as_str())).collect())
    }

    #[test]
    fn a_stub_is_needed_no_more_and_its_functions_are_anybodys() {
        let mut bytes = library();
        let (needed, _) = needs(&bytes);
        assert!(needed.contains(&"libdl.so.2".to_owned()), "{needed:?}");
        drop_stubs(&mut bytes).expect("a library with its libraries in order");
        let (needed, functions) = needs(&bytes);
        assert_eq!(needed, ["libc.so.6"]);
        let version = |name: &str| {
            functions.iter().find(|(known, _)| known == name).and_then(|(_, version)| version.clone())
        };
        assert_eq!(version("getenv").as_deref(), Some("GLIBC_2.2.5"));
        assert_eq!(version("of_stub"), None);
    }
}
