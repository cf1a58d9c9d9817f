//! What this machine must have before real Slurm can be started on it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// What is run, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 8] = [
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("srun", "slurm-client"),
    ("sbatch", "slurm-client"),
    ("salloc", "slurm-client"),
    ("munged", "munge"),
    ("setpriv", "util-linux"),
    ("strace", "strace"),
];

/// Gives the plugin's file if everything is there.
///
/// # Errors
/// What is missing, and what to do.
pub fn check() -> Result<PathBuf> {
    check_slurm()?;
    plugin()
}

/// Is everything there but the plugin?
///
/// # Errors
/// What is missing, and what to do.
pub fn check_slurm() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    for (program, package) in PROGRAMS {
        let found = folders.iter().any(|folder| folder.join(program).exists());
        ensure!(found, "{program} is not installed (apt-get install {package})");
    }
    ensure!(nix::unistd::geteuid().is_root(), "slurmd must be started by root");
    let cpus = std::thread::available_parallelism().context("can't count the CPUs")?;
    ensure!(cpus.get() >= 2, "two CPUs are needed to tell a narrowed task from one that is not");
    Ok(())
}

/// The plugin's file: that which `ROCE_PLUGIN` names, or the newer one that was built.
///
/// # Errors
/// If there is none.
pub fn plugin() -> Result<PathBuf> {
    if let Some(plugin) = std::env::var_os("ROCE_PLUGIN") {
        return std::path::absolute(plugin).context("ROCE_PLUGIN");
    }
    let built = ["release", "debug"].map(|profile| target().join(profile).join("libspank_roce.so"));
    let modified = |file: &PathBuf| std::fs::metadata(file).and_then(|file| file.modified()).ok();
    match built.into_iter().filter(|file| file.exists()).max_by_key(modified) {
        Some(plugin) => Ok(plugin),
        None => bail!("the plugin is not built (cargo build -p spank-roce)"),
    }
}

/// The workspace's target folder.
#[must_use]
pub fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    // It may not exist yet; the path says as much as the canonical one then.
    target.canonicalize().unwrap_or(target)
}

/// Is a skip a failure here?
pub fn is_required() -> bool {
    std::env::var("ROCE_REQUIRE").is_ok_and(|tiers| tiers.split(',').any(|tier| tier == "slurm"))
}
