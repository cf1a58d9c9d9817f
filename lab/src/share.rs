//! The folder that host and guests share over 9p: settings, programs, commands, logs.

use crate::{Error, Options, options::node_name};
use std::{
    fmt::Write as _,
    fs::{self, File, Permissions},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const GUEST_SCRIPT: &str = include_str!("../guest/guest.sh");

/// Makes the folder that the guests will see as /lab. `slurm` is the guests' Debian suite.
pub(crate) fn fill(share: &Path, options: &Options, suite: &str) -> Result<(), Error> {
    let folder = |name: &str, mode| {
        let path = share.join(name);
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        // Explicit, for the user's umask may be anything.
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(Error::file("open up", &path))?;
        Ok::<PathBuf, Error>(path)
    };
    folder("", 0o755)?;
    let conf = folder("conf", 0o755)?;
    folder("log", 0o755)?;
    folder("cmd", 0o755)?;
    // Jobs of ordinary users leave their results here. Not sticky: see `Step::empty_folder`.
    folder("out", 0o777)?;
    for number in 1..=options.nodes {
        folder(&format!("cmd/{}", node_name(number)), 0o755)?;
    }
    let bin = folder("bin", 0o755)?;
    for program in &options.programs {
        let name = program.file_name().unwrap_or_default();
        copy(program, &bin.join(name), 0o755)?;
    }
    if let Some(plugin) = &options.plugin {
        copy(plugin, &conf.join("spank_roce.so"), 0o755)?;
    }

    let write = |name: &str, text: &str, mode| {
        let path = conf.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(Error::file("open up", &path))
    };
    write("guest.sh", options.guest_script.as_deref().unwrap_or(GUEST_SCRIPT), 0o755)?;
    write("settings", &format!("nodes={}\n", options.nodes), 0o644)?;
    write("hosts", &hosts(options), 0o644)?;
    write("slurm.conf", &slurm_conf(options), 0o644)?;
    // No cgroup is needed here. Slurm 20.11 doesn't ask for one, 22.05 can only be kept from asking systemd for it.
    match suite {
        "bullseye" => {}
        "bookworm" => write("cgroup.conf", "IgnoreSystemd=yes\n", 0o644)?,
        _ => write("cgroup.conf", "CgroupPlugin=disabled\n", 0o644)?,
    }
    write("plugstack.conf", &plugstack(options), 0o644)?;
    if let Some(text) = &options.roce_toml {
        write("roce.toml", text, 0o644)?;
    }
    write("munge.key", &munge_key()?, 0o600)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), Error> {
    fs::copy(from, to).map_err(Error::file("copy", from))?;
    fs::set_permissions(to, Permissions::from_mode(mode)).map_err(Error::file("open up", to))
}

fn plugstack(options: &Options) -> String {
    match &options.plugstack {
        Some(text) => text.clone(),
        None if options.plugin.is_some() => "required spank_roce.so\n".into(),
        None => String::new(),
    }
}

fn hosts(options: &Options) -> String {
    let mut text = String::from("127.0.0.1 localhost\n");
    for number in 1..=options.nodes {
        let _ = writeln!(text, "10.0.0.{number} {}", node_name(number));
    }
    text
}

/// A key of printable characters: munge takes any bytes.
fn munge_key() -> Result<String, Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 128];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(Error::file("read", path))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn slurm_conf(options: &Options) -> String {
    let sockets = options.numa_nodes;
    let cores = options.cpus_per_numa_node;
    let cpus = options.cpus();
    let last = options.nodes;
    let mut settings: Vec<(String, String)> = [
        ("ClusterName", "lab"),
        ("SlurmctldHost", "vm1(10.0.0.1)"),
        // Jobs run as an ordinary user; only the daemons are root's.
        ("SlurmUser", "root"),
        ("SlurmdUser", "root"),
        ("AuthType", "auth/munge"),
        ("StateSaveLocation", "/tmp/state"),
        ("SlurmdSpoolDir", "/tmp/spool"),
        ("SlurmctldPidFile", "/tmp/slurmctld.pid"),
        ("SlurmdPidFile", "/tmp/slurmd.pid"),
        ("SlurmctldLogFile", "/lab/log/slurmctld.log"),
        ("SlurmdLogFile", "/lab/log/slurmd.%n.log"),
        ("ProctrackType", "proctrack/linuxproc"),
        ("TaskPlugin", "task/affinity"),
        ("SelectType", "select/cons_tres"),
        ("SelectTypeParameters", "CR_Core"),
        ("SchedulerParameters", "batch_sched_delay=0,sched_min_interval=0"),
        ("ReturnToService", "2"),
        ("CompleteWait", "0"),
        ("KillWait", "5"),
        // Emulated nodes on a busy machine are slow, not dead.
        ("MessageTimeout", "60"),
        ("SlurmdTimeout", "300"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    for (key, value) in &options.slurm_conf {
        settings.retain(|(known, _)| !known.eq_ignore_ascii_case(key));
        settings.push((key.clone(), value.clone()));
    }
    let mut text = String::new();
    for (key, value) in settings {
        let _ = writeln!(text, "{key}={value}");
    }
    let _ = writeln!(
        text,
        "NodeName=vm[1-{last}] CPUs={cpus} Sockets={sockets} CoresPerSocket={cores} State=UNKNOWN"
    );
    text.push_str("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_slurm_conf_is_replaced_not_repeated() {
        let options =
            Options { slurm_conf: vec![("taskplugin".into(), "task/none".into())], ..Options::new("x") };
        let text = slurm_conf(&options);
        assert!(text.contains("taskplugin=task/none\n") && !text.contains("task/affinity"), "{text}");
    }

    #[test]
    fn plugstack_requires_the_plugin_where_there_is_one() {
        let with = Options { plugin: Some("p.so".into()), ..Options::new("x") };
        assert_eq!(plugstack(&with), "required spank_roce.so\n");
        assert_eq!(plugstack(&Options::new("x")), "");
        let own = Options { plugstack: Some("optional spank_roce.so sysfs=/x\n".into()), ..with };
        assert_eq!(plugstack(&own), "optional spank_roce.so sysfs=/x\n");
    }
}
