//! What nobody but the administrators may decide, and what root must never do for a user: a test for each line of
//! docs/threat-model.md that only a real Slurm can show.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Test;
use crate::cluster::Cluster;
use crate::run::{Program, USER, batch, expect, program, srun, wide};
use crate::sysfs;
use crate::trace::{Deeds, trace};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_site_file_that_others_can_write_is_refused_with_what_mends_it", untrusted_site),
    ("traced_as_root_the_plugin_starts_nothing_makes_nothing_and_opens_no_path_of_the_users", traced_as_root),
    ("every_variable_set_by_the_job_changes_nothing_that_the_admin_decided", every_variable),
    ("a_forbidden_priority_is_refused_however_it_is_asked_for", forbidden_priority),
    ("no_option_widens_the_cpus_that_slurm_gave", cpus),
    ("formats_in_option_values_are_only_text", formats),
    ("the_secret_is_seen_by_its_user_alone", secret),
];

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

    // Nodes read it as root, so that one which users can't read does there; but srun reads it too.
    mode(&site, 0o600)?;
    cluster.with_client_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    srun(["--roce-tc=3", "true"]).run(cluster)?.succeeded()?;
    let late = "spank_roce: n1: task 0: --roce-tc=5: it has priority 5, ...";
    srun(["--roce-tc=5", "true"]).run(cluster)?.failed_with(late)?;

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

/// A folder of the user's, in which nothing may ever be looked for.
const BAIT: &str = "/home/bait";

/// Every place where a program might look for something to load, run, read or write, and paths in our own names.
const BAITS: &[&str] = &[
    "HOME",
    "TMPDIR",
    "PWD",
    "PATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "ROCE_CONFIG",
    "ROCE_DEVICES",
    "ROCE_EXPORTED",
    "SLURM_ROCE_CONFIG",
    "SLURM_ROCE_SYSFS",
    "SLURM_ROCE_SECRET",
    "UCX_NET_DEVICES",
    "NCCL_TOPO_FILE",
    "HWLOC_XMLFILE",
    "RUST_BACKTRACE",
];

fn traced_as_root(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    let baited = |arguments: &[&str]| {
        let step = srun(["-n1"]).args(arguments.iter().copied()).args(["--export=ALL", "/bin/true"]);
        // PATH is for srun's own sake in front.
        BAITS.iter().fold(step, |step, name| step.env(name, BAIT)).env("PATH", &format!("/usr/bin:{BAIT}"))
    };
    // The first step after a while reads what later ones find in memory.
    cluster.without_plugin()?;
    baited(&[]).run(cluster)?.succeeded()?;
    let without = trace(cluster, || baited(&[]).run(cluster)?.succeeded().map(drop))?;
    cluster.with_site("[policy]\nallowed_priorities = [3]\n", &tree)?;
    let options = ["--roce-tc=3", "--roce-nics=all"];
    let with = trace(cluster, || baited(&options).run(cluster)?.succeeded().map(drop))?;
    harmless(cluster, &without, &with)?;
    ensure!(with.opened.iter().any(|path| path.contains("/two-nics/sys/class/infiniband")), "{with:?}");

    // Values that are paths, which srun would never have let through.
    cluster.without_client_plugin()?;
    let forged = |step: Program, name: &&str| {
        step.env(&format!("_SLURM_SPANK_OPTION_spank_roce_roce_{name}"), &format!("{BAIT}/{name}"))
    };
    let forged = ["tc", "dscp", "tclass", "nics", "place", "gid", "bind"].iter().fold(baited(&[]), forged);
    cluster.with_plugin(&format!("config={} {tree}", cluster.path("roce.toml").display()))?;
    cluster.without_client_plugin()?;
    let refused = trace(cluster, || {
        let ran = forged.run(cluster)?;
        ensure!(ran.status != 0, "{ran}");
        Ok(())
    })?;
    // This one has no task.
    let task = refused.programs.len();
    let without = Deeds { programs: without.programs[..task.min(1)].to_vec(), ..without };
    harmless(cluster, &without, &refused)
}

/// Compared with a step without the plugin: only more files were read, all of them the plugin's to read.
fn harmless(cluster: &Cluster, without: &Deeds, with: &Deeds) -> Result<()> {
    ensure!(with.programs == without.programs, "programs: {:?}, not {:?}", with.programs, without.programs);
    let threads = with.threads_before_the_fork;
    ensure!(threads == without.threads_before_the_fork, "threads before the fork: {threads} in {with:?}");
    ensure!(with.children == without.children, "children: {} of {}", with.children, without.children);
    let changed: Vec<_> = with.changed.difference(&without.changed).collect();
    ensure!(changed.is_empty(), "made or removed: {changed:?}");
    let folder = cluster.path("").display().to_string().replace(|c: char| c.is_ascii_digit(), "#");
    let folder = folder.trim_end_matches('/').replace("##", "#").replace("##", "#").replace("##", "#");
    // Each folder of the path is opened on its way to the site file.
    let way = ["/".to_owned(), "/tmp".to_owned(), folder.clone()];
    let own = [
        format!("{folder}/spank_roce.so"),
        format!("{folder}/roce.toml"),
        format!("{folder}/two-nics/"),
        format!("{folder}/no-rdma/"),
        "/proc/".to_owned(),
        // What the dynamic linker finds for the plugin's own needs.
        "/etc/ld.so.cache".to_owned(),
        "/lib/".to_owned(),
        "/usr/lib/".to_owned(),
        // Rust's thread-independent start-up and netlink's answers.
        "/sys/".to_owned(),
    ];
    let is_own = |path: &&String| {
        way.iter().any(|folder| path.trim_end_matches('/') == folder.trim_end_matches('/'))
            || own.iter().any(|start| path.starts_with(start.as_str()))
    };
    let strange: Vec<_> = with.opened.difference(&without.opened).filter(|path| !is_own(path)).collect();
    ensure!(strange.is_empty(), "opened: {strange:?}");
    // Slurm itself makes the user's TMPDIR, as the user.
    let bait: Vec<_> = with.opened.difference(&without.opened).filter(|path| path.contains(BAIT)).collect();
    ensure!(bait.is_empty(), "looked for in the user's folder: {bait:?}");
    Ok(())
}

/// The site's decisions that the next two tests try to get round.
const STRICT: &str = "[policy]\nallowed_priorities = [3]\n[classes.bulk]\npriority = 3\n[classes.gold]\npriority = 6\n\
    [nics]\nexclude = [\"mlx5_1\"]\n[limits]\nmemlock = 131072\n[exports]\nlibraries = [\"ucx\"]\noverwrite = true\n";

/// What the job says of itself, all of it wrong.
const LIES: &[(&str, &str)] = &[
    ("ROCE_DEVICES", "mlx5_1:1"),
    ("ROCE_NETDEVS", "eth1"),
    ("ROCE_GIDS", "::ffff:10.0.1.7"),
    ("ROCE_GID_INDEXES", "0"),
    ("ROCE_RAILS", "1"),
    ("ROCE_PRIORITY", "6"),
    ("ROCE_DSCP", "48"),
    ("ROCE_TRAFFIC_CLASS", "194"),
    ("ROCE_CPUS", "0-1"),
    ("ROCE_NUMA_NODES", "0-1"),
    ("ROCE_BOOTSTRAP_PORTS", "1-65535"),
    ("ROCE_EXPORTED", "ROCE_DEVICES,UCX_NET_DEVICES"),
    ("ROCE_ON_FAILURE", "warn"),
    ("ROCE_MEMLOCK", "unlimited"),
    ("SLURM_ROCE_ON_FAILURE", "warn"),
    ("SLURM_ROCE_ALLOWED_PRIORITIES", "0,1,2,3,4,5,6,7"),
    ("SLURM_ROCE_MEMLOCK", "unlimited"),
    ("SLURM_ROCE_SECRET", "4141414141414141414141414141414141414141414141414141414141414141"),
    ("SLURM_RLIMIT_MEMLOCK", "1073741824"),
    ("UCX_NET_DEVICES", "mlx5_1:1"),
    ("UCX_IB_TRAFFIC_CLASS", "194"),
    ("UCX_IB_SL", "6"),
];

fn lying(step: Program) -> Program {
    LIES.iter().fold(step, |step, (name, value)| step.env(name, value))
}

fn every_variable(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_site(STRICT, &tree)?;
    let look =
        "env; echo memlock=$(ulimit -Sl); awk '/Cpus_allowed_list/ {print \"cpus=\" $2}' /proc/self/status";
    // At the submission, exported to the step alone, and set by a task around a step of its own.
    let exported: Vec<String> = LIES.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let exported = format!(
        "--export=ALL,{}",
        exported
            .join(",")
            .replace("0,1,2,3,4,5,6,7", "7")
            .replace("ROCE_DEVICES,UCX_NET_DEVICES", "UCX_NET_DEVICES",)
    );
    let assigned: String = LIES.iter().map(|(name, value)| format!("export {name}={value}; ")).collect();
    let quoted = look.replace('\'', "'\\''");
    let inner = format!("{assigned} srun --overlap -n1 --roce-tc=3 bash -c '{quoted}'");
    let ways = [
        lying(srun(["-n1", "--roce-tc=3", "bash", "-c", look])),
        srun(["-n1", exported.as_str(), "--roce-tc=3", "bash", "-c", look]),
        lying(srun(["-n1", "--propagate=MEMLOCK", "--roce-tc=bulk", "bash", "-c", look])),
        srun(["-n1", "--roce-tc=3", "bash", "-c", inner.as_str()]),
    ];
    for way in ways {
        let ran = way.run(cluster)?.succeeded()?;
        let variables = ran.variables();
        for (name, value) in [
            ("ROCE_DEVICES", "mlx5_0:1"),
            ("ROCE_NETDEVS", "eth0"),
            ("ROCE_GIDS", "::ffff:10.0.0.7"),
            ("ROCE_PRIORITY", "3"),
            ("ROCE_DSCP", "26"),
            ("ROCE_TRAFFIC_CLASS", "106"),
            ("ROCE_CPUS", "0"),
            ("UCX_NET_DEVICES", "mlx5_0:1"),
            ("UCX_IB_TRAFFIC_CLASS", "106"),
            ("UCX_IB_SL", "3"),
            ("memlock", "128"),
            ("cpus", "0"),
        ] {
            expect(&variables, name, value).with_context(|| ran.to_string())?;
        }
        let secret = variables.get("SLURM_ROCE_SECRET").copied().unwrap_or_default();
        ensure!(secret.len() == 64 && !secret.starts_with("4141"), "the job chose the secret: {ran}");
        // What it sets for itself it has, and nobody reads it.
    }
    // A NIC that is not for jobs, by whatever name, and no leniency that the site didn't grant.
    for nics in ["mlx5_1", "mlx5_1:1", "eth1", "0000:11:00.0"] {
        let ran = lying(srun(["-n1", &format!("--roce-nics={nics}"), "true"])).run(cluster)?;
        ran.failed_with(&format!(
            "spank_roce: n1: task 0: --roce-nics={nics}: {nics} can't be used: excluded..."
        ))?;
    }
    cluster.expect_idle()
}

fn forbidden_priority(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_site(STRICT, &tree)?;
    let asked = [("tc", "6"), ("tc", "gold"), ("dscp", "48"), ("dscp", "cs6"), ("tclass", "194")];
    let why = "it has priority 6, and ";
    for (option, value) in asked {
        let line = format!("--roce-{option}={value}: {why}...");
        let typed = format!("--roce-{option}={value}");
        let variable = format!("SLURM_ROCE_{}", option.to_uppercase());
        let exported = format!("--export=ALL,{variable}={value}");
        let early = format!("srun: error: spank_roce: {line}");
        let late = format!("spank_roce: n1: task 0: {line}");
        // Judged where it is typed, in both ways of typing it.
        srun(["-n1", typed.as_str(), "true"]).run(cluster)?.failed_with(&early)?;
        let by_variable = format!("srun: error: spank_roce: {variable}={value}: {why}...");
        srun(["-n1", "true"]).env(&variable, value).run(cluster)?.failed_with(&by_variable)?;
        // Only the node sees these.
        srun(["-n1", exported.as_str(), "true"]).run(cluster)?.failed_with(&late)?;
        let forged = format!("_SLURM_SPANK_OPTION_spank_roce_roce_{option}");
        srun(["-n1", "true"]).env(&forged, value).run(cluster)?.failed_with(&late)?;
        let inherited = format!("SLURM_SPANK_{forged}");
        let ran = srun(["-n1", "true"]).env(&inherited, value).run(cluster)?;
        ensure!(ran.status != 0 && ran.stderr.contains(why), "{ran}");
        let inner = format!("srun --overlap -n1 --export=ALL,{variable}={value} true");
        let ran = srun(["-n1", "bash", "-c", inner.as_str()]).run(cluster)?;
        ensure!(ran.status != 0 && ran.stderr.contains(&late[..late.len() - 3]), "{ran}");
        // Behind a request that srun has settled, an option of the job's own making counts for nothing.
        let script = format!("{forged}={value} srun --roce-nics=all env | grep ^ROCE_");
        let (ended_well, said) = batch(cluster, ["--wrap", &script])?;
        ensure!(ended_well && said.contains("ROCE_DEVICES=") && !said.contains("ROCE_PRIORITY="), "{said}");
    }
    // A site that lets nobody choose has its own say all the same.
    cluster.without_client_plugin()?;
    for (option, value) in asked {
        let variable = format!("SLURM_ROCE_{}", option.to_uppercase());
        let ran = srun(["-n1", "true"]).env(&variable, value).run(cluster)?;
        ran.failed_with(&format!("spank_roce: n1: task 0: --roce-{option}={value}: {why}..."))?;
    }
    cluster.expect_idle()
}

fn cpus(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    let look = "awk '/Cpus_allowed_list/ {print $2}' /proc/self/status";
    let options: &[&[&str]] = &[
        &["--roce-nics=all"],
        &["--roce-nics=mlx5_1"],
        &["--roce-nics=mlx5_1", "--roce-bind=none"],
        &["--roce-nics=mlx5_0", "--roce-bind=numa"],
        &["--roce-nics=2", "--roce-place=rail"],
        &["--roce-tc=3", "--roce-place=round-robin"],
        &["--roce-tc=3", "--roce-place=block", "--roce=verbose"],
    ];
    for options in options {
        let step = wide(["-n1", "--cpu-bind=map_cpu:0"]).args(options.iter().copied());
        let ran = lying(step.args(["bash", "-c", look])).run(cluster)?;
        ensure!(ran.status == 0 && ran.stdout == "0\n", "{options:?}: {ran}");
    }
    cluster.expect_idle()
}

fn formats(cluster: &Cluster) -> Result<()> {
    let tree = sysfs::two_nics(cluster, "two-nics")?;
    cluster.with_plugin(&tree)?;
    let hostile = "%n%s%999999999x%p";
    for option in ["tc", "dscp", "tclass", "nics", "place", "gid", "bind"] {
        let typed = format!("--roce-{option}={hostile}");
        let early = format!("srun: error: spank_roce: {typed}: ...");
        srun(["-n1", typed.as_str(), "true"]).run(cluster)?.failed_with(&early)?;
        let forged = format!("_SLURM_SPANK_OPTION_spank_roce_roce_{option}");
        let late = format!("spank_roce: n1: task 0: {typed}: ...");
        srun(["-n1", "true"]).env(&forged, hostile).run(cluster)?.failed_with(&late)?;
    }
    // What slurmd logs and no task says: a text of the admin's with all of it in.
    let site = cluster.path("%n%s%999999999x.toml");
    fs::write(&site, "nonsense\n")?;
    cluster.with_plugin(&format!("config={} {tree}", site.display()))?;
    cluster.with_client_plugin(&tree)?;
    srun(["true"]).run(cluster)?.succeeded()?;
    cluster.expect_idle()?;
    let log = fs::read_to_string(cluster.path("slurmd.log"))?;
    ensure!(log.contains("/%n%s%999999999x.toml line 1: "), "not in the log as it is: {}", cluster.logs());
    Ok(())
}

fn secret(cluster: &Cluster) -> Result<()> {
    cluster.with_plugin(&sysfs::two_nics(cluster, "two-nics")?)?;
    let (file, go) = (cluster.work("seen"), cluster.work("go"));
    let _ = (fs::remove_file(&file), fs::remove_file(&go));
    let script = format!(
        "umask 077; echo $$ $SLURM_ROCE_SECRET $SLURM_JOB_ID > {0}.new; mv {0}.new {0}; \
         until [ -e {1} ]; do sleep 0.05; done; rm {0}",
        file.display(),
        go.display()
    );
    let (ran, seen) = std::thread::scope(|scope| -> Result<_> {
        let step = scope.spawn(|| srun(["-n1", "--roce-tc=3", "bash", "-c", &script]).run(cluster));
        let start = Instant::now();
        while !file.exists() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let seen = look_for_the_secret(cluster, &file);
        fs::write(&go, "")?;
        let ran = step.join().map_err(|_| anyhow::anyhow!("the step's thread panicked"))??;
        Ok((ran.succeeded()?, seen?))
    })?;
    let text = format!("{}{}", ran.stdout, ran.stderr);
    ensure!(!text.contains(&seen), "srun said it: {ran}");
    cluster.expect_idle()?;
    // Logs and what the daemons keep, now that all of it is written.
    let found = containing(&cluster.path(""), &seen)?;
    ensure!(found.is_empty(), "the secret is in {found:?}");
    Ok(())
}

/// Gives the secret of the running step.
fn look_for_the_secret(cluster: &Cluster, file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)?;
    let [pid, secret, job] = text.split_whitespace().collect::<Vec<_>>()[..] else {
        anyhow::bail!("the step told {text:?}");
    };
    ensure!(secret.len() == 64, "{text}");
    let read = |user: &str| {
        let cat = format!("cat /proc/{pid}/environ | tr '\\0' '\\n' | grep -c ^SLURM_ROCE_SECRET={secret}");
        let ids = ["--reuid", user, "--regid", user, "--clear-groups", "--", "bash", "-c", &cat];
        let output = Command::new("setpriv").args(ids).output()?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    ensure!(read(USER)? == "1", "its own user can't read the environment, so the next line shows nothing");
    ensure!(read("65533")? == "0", "another user can read the environment");
    for process in fs::read_dir("/proc")?.flatten() {
        // One that has ended meanwhile has no command line.
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        ensure!(
            !String::from_utf8_lossy(&line).contains(secret),
            "a command line: {}",
            process.path().display()
        );
    }
    for show in
        [&["-d", "show", "job", job][..], &["show", "step", job], &["listpids", job], &["show", "config"]]
    {
        let ran = program("scontrol").args(show.iter().copied()).run(cluster)?;
        ensure!(!ran.stdout.contains(secret), "{ran}");
    }
    // Its own user's file is the step's own doing.
    let found = containing(&cluster.path(""), secret)?;
    ensure!(found == [file], "the secret is in {found:?}");
    Ok(secret.to_owned())
}

/// The files below a folder that have this text in them.
fn containing(folder: &Path, text: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (path, kind) =
            (entry.as_ref().map(fs::DirEntry::path), entry.as_ref().map(fs::DirEntry::file_type));
        let (Ok(path), Ok(Ok(kind))) = (path, kind) else { continue };
        if kind.is_dir() {
            found.extend(containing(&path, text)?);
        } else if kind.is_file() {
            // A file may be gone by now.
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
