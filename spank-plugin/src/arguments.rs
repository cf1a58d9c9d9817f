//! The arguments of the plugin's line in plugstack.conf, and the site file that they name.

use std::ffi::{CStr, OsStr};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use roce_plan::{Site, SiteError};

/// Where the site file is looked for unless `config=` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/slurm/roce.toml";

/// No site has so much to say, in bytes.
const LONGEST_CONFIG: u64 = 1 << 20;

/// `required spank_roce.so [config=PATH] [sysfs=DIR]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The site file, if one was named; without a name the default may be absent.
    config: Option<PathBuf>,
    /// The root below which `sys/` is read.
    pub(crate) sysfs: PathBuf,
}

/// An argument in plugstack.conf that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("plugstack.conf: unknown argument \"{0}\": allowed are config=PATH and sysfs=DIR")]
    Unknown(String),
    // A relative path would be looked up in the directory that the user's job runs in.
    #[error("plugstack.conf: {name}={value} is not an absolute path")]
    Relative { name: &'static str, value: String },
    #[error("plugstack.conf: {0}= is given twice")]
    Twice(&'static str),
    // Since 22.05 Slurm itself refuses a plugin that doesn't know it.
    #[error("plugstack.conf: this plugin is for Slurm 20.11 to 26.05, and this is another one")]
    UnknownSlurm,
}

/// A site file that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("can't read the site file {} that plugstack.conf names: {error}", path.display())]
    Named { path: PathBuf, error: roce_trust::Error },
    #[error("can't read the site file {}: {error}", path.display())]
    Default { path: PathBuf, error: roce_trust::Error },
    // It names the file, or the folder that is at fault.
    #[error("the site file is refused: {0}")]
    Refused(roce_trust::Error),
    #[error(transparent)]
    Content(#[from] SiteError),
}

impl Arguments {
    pub(crate) fn parse(arguments: &[&CStr]) -> Result<Self, ArgumentError> {
        let (mut config, mut sysfs) = (None, None);
        for argument in arguments {
            let bytes = argument.to_bytes();
            let (slot, name, value) = if let Some(path) = bytes.strip_prefix(b"config=") {
                (&mut config, "config", path)
            } else if let Some(path) = bytes.strip_prefix(b"sysfs=") {
                (&mut sysfs, "sysfs", path)
            } else if cfg!(feature = "fault-injection") && bytes.starts_with(b"fault=") {
                continue;
            } else {
                return Err(ArgumentError::Unknown(argument.to_string_lossy().into_owned()));
            };
            let path = Path::new(OsStr::from_bytes(value));
            if !path.is_absolute() {
                return Err(ArgumentError::Relative { name, value: path.display().to_string() });
            }
            if slot.replace(path.to_owned()).is_some() {
                return Err(ArgumentError::Twice(name));
            }
        }
        Ok(Self { config, sysfs: sysfs.unwrap_or_else(|| PathBuf::from("/")) })
    }

    /// Reads the site file; the default one may be absent. One that anybody but root can have written is
    /// refused: it decides what a process of root's does. Where a job is submitted that is but early advice,
    /// for the node judges its own file.
    pub(crate) fn site(&self) -> Result<Site, ConfigError> {
        let path = self.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG)).to_owned();
        match (roce_trust::read(&path, LONGEST_CONFIG), &self.config) {
            (Ok(text), _) => Ok(Site::parse(&text, &path.display().to_string())?),
            (Err(error), None) if error.io_kind() == Some(ErrorKind::NotFound) => Ok(Site::default()),
            (Err(error), _) if error.io_kind().is_none() => Err(ConfigError::Refused(error)),
            (Err(error), None) => Err(ConfigError::Default { path, error }),
            (Err(error), Some(_)) => Err(ConfigError::Named { path, error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(arguments: &[&CStr]) -> String {
        Arguments::parse(arguments).unwrap_err().to_string()
    }

    #[test]
    fn both_arguments_are_read_and_both_may_be_left_out() {
        let none = Arguments::parse(&[]).unwrap();
        assert_eq!((none.config, none.sysfs), (None, PathBuf::from("/")));
        let both = Arguments::parse(&[c"sysfs=/a", c"config=/b"]).unwrap();
        assert_eq!((both.config, both.sysfs), (Some(PathBuf::from("/b")), PathBuf::from("/a")));
    }

    #[test]
    fn an_argument_that_cannot_be_used_is_named() {
        assert_eq!(
            error(&[c"confg=/a"]),
            "plugstack.conf: unknown argument \"confg=/a\": allowed are config=PATH and sysfs=DIR"
        );
        assert_eq!(error(&[c"config=a"]), "plugstack.conf: config=a is not an absolute path");
        assert_eq!(error(&[c"sysfs="]), "plugstack.conf: sysfs= is not an absolute path");
        assert_eq!(error(&[c"sysfs=/a", c"sysfs=/b"]), "plugstack.conf: sysfs= is given twice");
    }

    #[test]
    fn a_named_site_file_must_exist_and_is_named_when_it_does_not() {
        let arguments = Arguments::parse(&[c"config=/nowhere/roce.toml"]).unwrap();
        let error = arguments.site().unwrap_err().to_string();
        assert!(error.starts_with("can't read the site file /nowhere/roce.toml"), "{error}");
    }
}
