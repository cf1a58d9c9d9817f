//! What nobody but the administrators may decide, and what root must never do for a user: a test for each line of
//! docs/threat-model.md that only a real Slurm can show.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{USER, srun};
use crate::sysfs;

pub(crate) const TESTS: &[(&str, Test)] =
    &[("a_site_file_that_others_can_write_is_refused_with_what_mends_it", untrusted_site)];

fn mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

/// What the client says, then what the node says with a client that reads no site file.
fn refused(cluster: &Cluster, site: &Path, why: &str) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    let arguments = format!("config={} {tree}", site.display());
    cluster.with_plugin(&arguments)?;
    let early = format!("srun: error: spank_roce: the site file is refused: {why}");
    srun(["--roce-tc=3", "true"]).run(cluster)?.failed_with(&early)?;
    cluster.with_client_plugin(&tree)?;
    let line = format!("spank_roce: n1: task 0: the site file is refused: {why}");
    srun(["--roce-tc=3", "true"]).run(cluster)?.failed_with(&line)?;
    // Who asks for nothing runs.
    srun(["true"]).run(cluster)?.succeeded()?;
    cluster.expect_idle()
}

fn untrusted_site(cluster: &Cluster) -> Result<()> {
    let user = USER.parse::<u32>()?;
    let folder = cluster.path("site");
    fs::create_dir(&folder)?;
    mode(&folder, 0o755)?;
    let site = folder.join("roce.toml");
    fs::write(&site, "[policy]\nallowed_priorities = [3]\n")?;
    mode(&site, 0o644)?;
    let shown = site.display();
    // As it should be, so that what follows is refused for what it says.
    cluster.with_plugin(&format!("config={shown} {}", sysfs::two_nics(cluster, "two-nics")?))?;
    srun(["--roce-tc=3", "true"]).run(cluster)?.succeeded()?;

    mode(&site, 0o664)?;
    let why = "can be written by others than root (mode 0664): run `chmod go-w";
    refused(cluster, &site, &format!("{shown} {why} {shown}`"))?;
    mode(&site, 0o644)?;

    chown(&site, Some(user), None)?;
    let why = format!("belongs to user {USER}, not to root: run `chown root {shown}`");
    refused(cluster, &site, &format!("{shown} {why}"))?;
    chown(&site, Some(0), None)?;

    mode(&folder, 0o777)?;
    let in_folder = folder.display();
    let why = format!("can be written by others than root (mode 0777): run `chmod go-w {in_folder}`");
    refused(cluster, &site, &format!("{in_folder} {why}"))?;
    mode(&folder, 0o755)?;

    let link = cluster.path("link.toml");
    symlink(&site, &link)?;
    lchown(&link, Some(user), None)?;
    let shown = link.display();
    let why = format!("belongs to user {USER}, not to root: run `chown -h root {shown}`");
    refused(cluster, &link, &format!("{shown} {why}"))?;

    refused(cluster, &folder, &format!("{in_folder} is not a regular file"))?;
    fs::write(&site, "#".repeat((1 << 20) + 1))?;
    refused(cluster, &site, &format!("{} has more than 1048576 bytes", site.display()))?;
    Ok(fs::remove_dir_all(&folder)?)
}
