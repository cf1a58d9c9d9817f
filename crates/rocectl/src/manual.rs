//! Man pages and shell completions, made from the command line's own definition.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::print;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rocectl", &mut script);
    print(&String::from_utf8(script)?)
}

/// A page for the command and one for each subcommand.
pub(crate) fn pages(folder: Option<&Path>) -> anyhow::Result<()> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return print(&String::from_utf8(page)?);
    };
    let failed = || format!("can't write the man pages into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder).with_context(failed)
}
