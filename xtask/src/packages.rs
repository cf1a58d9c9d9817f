//! Makes sure that the Debian packages are there, or says which are needed.

use crate::progress::Progress;
use anyhow::{Result, bail};
use roce_lab::{
    Interrupt,
    packages::{Distribution, Need, authorise, install, missing},
};
use std::{fmt::Write as _, path::Path};

/// Installs what is missing for `need`. On another distribution than Debian 12 or 13 it names that and stops.
pub(crate) fn ensure(need: Need, progress: &Progress, interrupt: &Interrupt) -> Result<()> {
    let missing = missing(need);
    let distribution = Distribution::of_this_machine();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().fold(String::new(), |mut text, package| {
        // Writing into a string can't fail.
        let _ = write!(text, "\n  {:<18} {}", package.name, package.why);
        text
    });
    if !distribution.supported {
        bail!(
            "this is {}; here you install by yourself what Debian 12 and 13 have in these packages, and only there can \
             this go on:{list}",
            distribution.name
        );
    }
    progress.line(format!("Debian packages that are missing, and what for:{list}"));
    // sudo may ask for a password: before there is a spinner over its question.
    authorise()?;
    let step = progress.step(format!("installing {} Debian packages", missing.len()));
    let log = Path::new("target/packages.log");
    std::fs::create_dir_all("target")?;
    install(&missing, log, interrupt)?;
    step.done("");
    Ok(())
}
