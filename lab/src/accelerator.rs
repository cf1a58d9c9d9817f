//! Whether guests run under KVM or by emulation.
//!
//! That /dev/kvm opens says little: where virtualisation is nested badly, a boot sector runs and a kernel dies or hangs.
//! So the guests' own kernel is booted under KVM once, without a disk, and has to reach the end of its initrd. The
//! verdict is kept until the host reboots or QEMU changes.

use crate::{
    Error, GuestRoot, Interrupt,
    process::{Process, tied},
    roots::fnv1a,
};
use std::{
    fmt::{self, Write as _},
    fs::{self, File},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long the probe may take. Where KVM works it takes two seconds.
const PROBE: Duration = Duration::from_secs(10);
/// What the initrd says when it finds no disk: the kernel, its initrd and its modules all ran.
const FAR_ENOUGH: &str = "LAB-EXIT no-root";

/// What runs the guests' processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processors.
    Kvm,
    /// QEMU's translator, some ten times slower.
    Emulation {
        /// Why not KVM.
        why: String,
    },
}

impl fmt::Display for Accelerator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => write!(out, "KVM"),
            Self::Emulation { why } => write!(out, "emulation ({why})"),
        }
    }
}

impl Accelerator {
    /// The best that works here.
    ///
    /// # Errors
    /// [`Error::Start`] without QEMU; [`Error::Interrupted`].
    pub fn choose(root: &GuestRoot, interrupt: &Interrupt) -> Result<Self, Error> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            return Ok(Self::Emulation { why: format!("/dev/kvm: {error}") });
        }
        let verdict_file =
            root.cache().join(format!("accelerator.{:016x}", fnv1a(circumstances(root)?.as_bytes())));
        if let Ok(text) = fs::read_to_string(&verdict_file) {
            return Ok(Self::from_verdict(text.trim()));
        }
        let verdict = Self::probe(root, interrupt)?;
        fs::write(&verdict_file, verdict.to_verdict()).map_err(Error::file("write", &verdict_file))?;
        Ok(verdict)
    }

    pub(crate) fn arguments(&self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Emulation { .. } => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    fn probe(root: &GuestRoot, interrupt: &Interrupt) -> Result<Self, Error> {
        let folder = tempfile::tempdir().map_err(Error::file("create", "a temporary folder"))?;
        let console = folder.path().join("console");
        let mut qemu = tied("qemu-system-x86_64");
        qemu.args([
            "-machine",
            "q35",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-smp",
            "2",
            "-m",
            "512M",
        ])
        .args(Self::Kvm.arguments())
        .arg("-kernel")
        .arg(root.kernel())
        .arg("-initrd")
        .arg(root.initrd())
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
        let start = Instant::now();
        let process = Process::spawn(qemu)?;
        loop {
            let ended = process.ended().is_some();
            let text = fs::read(&console).unwrap_or_default();
            if String::from_utf8_lossy(&text).contains(FAR_ENOUGH) {
                return Ok(Self::Kvm);
            }
            let seconds = start.elapsed().as_secs();
            if ended {
                return Ok(Self::Emulation { why: format!("a kernel under KVM died after {seconds} s") });
            }
            if start.elapsed() > PROBE {
                return Ok(Self::Emulation { why: format!("a kernel under KVM hung for {seconds} s") });
            }
            interrupt.sleep(Duration::from_millis(50))?;
        }
    }

    fn to_verdict(&self) -> String {
        match self {
            Self::Kvm => "kvm\n".into(),
            Self::Emulation { why } => format!("{why}\n"),
        }
    }

    fn from_verdict(text: &str) -> Self {
        if text == "kvm" { Self::Kvm } else { Self::Emulation { why: text.into() } }
    }
}

/// Everything that the verdict depends on.
fn circumstances(root: &GuestRoot) -> Result<String, Error> {
    let version = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .map_err(|source| Error::Start { program: "qemu-system-x86_64".into(), source })?;
    let mut text = String::from_utf8_lossy(&version.stdout).into_owned();
    for path in ["/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id"] {
        text += &fs::read_to_string(path).map_err(Error::file("read", path))?;
    }
    let _ = write!(text, "{}", root.kernel().display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_as_it_was_written() {
        for accelerator in
            [Accelerator::Kvm, Accelerator::Emulation { why: "a kernel under KVM hung for 10 s".into() }]
        {
            assert_eq!(Accelerator::from_verdict(accelerator.to_verdict().trim()), accelerator);
        }
    }
}
