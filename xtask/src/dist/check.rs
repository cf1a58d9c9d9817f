//! What a released plugin must hold to, looked up in the file itself.
//!
//! It is loaded into programs that others built: srun, sbatch, salloc, slurmd, slurmstepd of ten releases, with any glibc
//! since [`GLIBC`]. rustc links it so that every symbol is looked up at once: one that a host lacks ends the load.

use super::{stubs::STUBS, zigbuild::GLIBC};
use anyhow::{Context, Result, bail};
use object::{
    ImportFlags, Object,
    elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, PF_X, PT_GNU_STACK},
    read::elf::{ElfFile64, ProgramHeader},
};
use std::{collections::BTreeSet, fs, path::Path};

/// What Slurm looks up in a SPANK plugin, as far as this one has it. A hook that is not here is one that Slurm doesn't
/// call: the job hooks would cost every job a prolog and an epilog. Slurm runs `init` and `fini` of a plugin that has them.
const EXPORTS: [&str; 9] = [
    "plugin_name",
    "plugin_type",
    "plugin_version",
    "slurm_spank_exit",
    "slurm_spank_init",
    "slurm_spank_init_post_opt",
    "slurm_spank_task_init",
    "slurm_spank_task_post_fork",
    "slurm_spank_user_init",
];

/// Files of glibc: wherever a host program is, so are they.
const LIBRARIES: [&str; 7] = [
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

/// From glibc's stubs, which the plugin doesn't name: whoever loads it has them, see [`super::stubs`].
const ANYBODYS: [&str; 5] =
    ["dladdr", "dlsym", "pthread_rwlock_rdlock", "pthread_rwlock_unlock", "pthread_rwlock_wrlock"];

/// The source file that breaks the plugin on demand; each panic in it puts its path into the file.
const FAULT_INJECTION: &[u8] = b"spank-plugin/src/fault";

/// Fails with every reason why this file may not be released as the plugin.
pub(crate) fn plugin(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let mut faults = Vec::new();
    let elf = ElfFile64::<object::Endianness>::parse(&*bytes)
        .with_context(|| format!("{} is no ELF file", path.display()))?;
    host(&elf, true, &mut faults)?;
    exports(&elf, &mut faults)?;
    if breaks_on_demand(&bytes) {
        faults.push("it was built with the feature fault-injection".into());
    }
    refuse(path, &faults)
}

/// Whether a plugin was built with the feature that panics on demand.
pub(crate) fn breaks_on_demand(bytes: &[u8]) -> bool {
    bytes.windows(FAULT_INJECTION.len()).any(|window| window == FAULT_INJECTION)
}

/// Fails with every reason why this program would not run on a node whose glibc is [`GLIBC`].
pub(crate) fn program(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let mut faults = Vec::new();
    let elf = ElfFile64::<object::Endianness>::parse(&*bytes)
        .with_context(|| format!("{} is no ELF file", path.display()))?;
    host(&elf, false, &mut faults)?;
    refuse(path, &faults)
}

fn refuse(path: &Path, faults: &[String]) -> Result<()> {
    if !faults.is_empty() {
        bail!("{} may not be released:\n  {}", path.display(), faults.join("\n  "));
    }
    Ok(())
}

/// Only what Slurm looks up may be seen from outside.
fn exports(elf: &ElfFile64<'_>, faults: &mut Vec<String>) -> Result<()> {
    let mut found = BTreeSet::new();
    for export in elf.exports()? {
        found.insert(text(export?.name().name()));
    }
    let wanted: BTreeSet<String> = EXPORTS.iter().map(ToString::to_string).collect();
    faults.extend(
        found
            .difference(&wanted)
            .map(|name| format!("it exports {name}, which is not in EXPORTS of xtask/src/dist/check.rs")),
    );
    faults.extend(wanted.difference(&found).map(|name| format!("it exports no {name}")));
    Ok(())
}

/// What the machine and the program that loads it must have, and what would be a hole in a process that is root's.
fn host(elf: &ElfFile64<'_>, is_plugin: bool, faults: &mut Vec<String>) -> Result<()> {
    for import in elf.imports()? {
        let import = import?;
        let name = text(import.name().name());
        let ImportFlags::Elf { version, .. } = import.flags() else { continue };
        match version.map(|version| text(Some(version))) {
            Some(version) if glibc(&version).is_some_and(|version| version <= GLIBC) => {}
            Some(version) => {
                let (major, minor) = GLIBC;
                faults.push(format!("it needs {name}@{version}, and glibc {major}.{minor} has none"));
            }
            // Weak: absent is fine, the code looks before it calls.
            None if import.is_weak() => {}
            None if ANYBODYS.contains(&name.as_str()) => {}
            None => faults.push(format!("it needs {name}, which is not glibc's")),
        }
    }
    let dynamic = elf.elf_dynamic_table()?;
    for entry in &dynamic {
        match entry.tag {
            DT_NEEDED => {
                let library = text(Some(dynamic.string(entry)?));
                if !LIBRARIES.contains(&library.as_str()) {
                    faults.push(format!("it needs {library}, which a node may lack"));
                }
                if is_plugin && STUBS.contains(&library.as_str()) {
                    faults.push(format!(
                        "it needs {library}, which costs every load more than the plugin itself"
                    ));
                }
            }
            DT_RPATH | DT_RUNPATH => {
                faults.push(format!("it looks for libraries in {}", text(Some(dynamic.string(entry)?))));
            }
            _ => {}
        }
    }
    let endian = elf.endian();
    let stack = elf.elf_program_headers().iter().find(|header| header.p_type(endian) == PT_GNU_STACK);
    if stack.is_none_or(|stack| stack.p_flags(endian).contains(PF_X)) {
        faults.push("it asks for an executable stack".into());
    }
    Ok(())
}

/// A name, for people and comparisons.
fn text(name: Option<&[u8]>) -> String {
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

/// The number of `GLIBC_2.28`.
fn glibc(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests;
