//! A Slurm that came out after the plugin.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSymbol};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{program, srun};

pub(crate) const TESTS: &[(&str, Test)] =
    &[("a_release_that_the_plugin_does_not_know_refuses_to_load_it", unknown_release)];

/// `slurm_api_version()` of no release so far.
const UNKNOWN: u32 = 99 << 16;

fn unknown_release(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin("")?;
    let library = library(cluster)?;
    let bytes = std::fs::read(&library).with_context(|| library.display().to_string())?;
    let place = |name: &str, bytes: &[u8]| {
        let path = cluster.path(name);
        std::fs::write(&path, bytes)?;
        Ok::<_, anyhow::Error>(format!("LD_PRELOAD={}", path.display()))
    };
    let same = place("same-slurm.so", &bytes)?;
    let unknown = place("unknown-slurm.so", &with_version(bytes, UNKNOWN)?)?;

    // The library of this release in place of itself: that by itself changes nothing.
    program("env").args([same.as_str(), "srun", "-n1", "true"]).unprivileged().run(cluster)?.succeeded()?;
    let path = cluster.path("spank_roce.so").display().to_string();
    for command in ["srun", "sbatch", "salloc"] {
        let arguments = [unknown.as_str(), command, "-n1", "--roce-tc=3", "true"];
        let ran = program("env").args(arguments).unprivileged().run(cluster)?;
        if !cluster.is_before(22, 5) {
            // Slurm's own words, and its own end: no signal, and nothing of the plugin's has run.
            let reason = ran.stderr.lines().find(|line| line.contains(&path) && line.contains("ncompatible"));
            ensure!(ran.status == 1 && reason.is_some() && ran.own_lines().is_empty(), "{ran}");
        } else {
            // Before 22.05 Slurm doesn't look at a SPANK plugin's version: it has to say so itself.
            let line = format!(
                "{command}: error: spank_roce: plugstack.conf: this plugin is for Slurm 20.11 to 26.05, and this is ..."
            );
            ran.failed_with(&line)?;
        }
    }
    // Back with the release that it knows.
    srun(["true"]).run(cluster)?.succeeded()?;
    cluster.expect_idle()
}

/// The library that srun gets `slurm_api_version` from, which is where the plugin finds it.
fn library(cluster: &Cluster) -> Result<PathBuf> {
    let ran = program("bash").args(["-c", "ldd \"$(type -P srun)\""]).run(cluster)?.succeeded()?;
    let path = ran.stdout.lines().find_map(|line| {
        let (name, path) = line.trim().split_once(" => ")?;
        name.starts_with("libslurm").then(|| path.split(" (").next().unwrap_or(path))
    });
    path.map(PathBuf::from).with_context(|| format!("srun uses no libslurm: {ran}"))
}

/// The library with another version: the first instructions of `slurm_api_version` return that.
fn with_version(mut bytes: Vec<u8>, version: u32) -> Result<Vec<u8>> {
    let code = match std::env::consts::ARCH {
        // mov eax, version; ret
        "x86_64" => [&[0xb8][..], &version.to_le_bytes(), &[0xc3]].concat(),
        // movz w0, version >> 16, lsl 16; ret
        "aarch64" => {
            let load = 0x52a0_0000 | (version >> 16) << 5;
            [load.to_le_bytes(), 0xd65f_03c0_u32.to_le_bytes()].concat()
        }
        other => bail!("no machine code for {other} here"),
    };
    let offset = {
        let elf = ElfFile64::<object::Endianness>::parse(&*bytes)?;
        let symbol = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok("slurm_api_version"));
        let address = symbol.context("libslurm has no slurm_api_version")?.address();
        let endian = elf.endian();
        let segments = elf.elf_program_headers().iter();
        let offset = segments
            .map(|segment| (segment.p_vaddr(endian), segment.p_offset(endian), segment.p_filesz(endian)));
        let mut offset = offset.filter(|(start, _, size)| (*start..start + size).contains(&address));
        let (start, offset, _) = offset.next().context("slurm_api_version is in no segment")?;
        usize::try_from(address - start + offset)?
    };
    let place = bytes.get_mut(offset..offset + code.len()).context("slurm_api_version is beyond the file")?;
    place.copy_from_slice(&code);
    Ok(bytes)
}
