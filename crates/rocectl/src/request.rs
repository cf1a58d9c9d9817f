//! What was asked for: srun's options and variables, judged against the site file.

use std::path::Path;

use anyhow::Context as _;
use roce_plan::{LinkLayers, Options, Request, RoceOption, Site, Source};

use crate::Usage;
use crate::cli::{LinkLayerArg, RoceArgs, SiteArgs};

/// Where the site file is unless the command line says otherwise.
const SITE_FILE: &str = "/etc/slurm/roce.toml";

/// The site file, or the defaults where there is none.
///
/// Whoever names a file may read whatever is theirs: nothing here is done with another's rights. But the file that
/// the plugin reads is worth a warning where the plugin would refuse it.
pub(crate) fn site(arguments: &SiteArgs) -> anyhow::Result<Site> {
    let path = arguments.site.as_deref().unwrap_or(Path::new(SITE_FILE));
    if arguments.site.is_none() {
        if !path.exists() {
            return Ok(Site::default());
        }
        if let Err(error) = roce_trust::check_file(path)
            && error.io_kind().is_none()
        {
            crate::complain("warning: ", &format!("the plugin refuses the site file: {error}"));
        }
    }
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read the site file {name}"))?;
    Ok(Site::parse(&text, &name)?)
}

/// The request; `None` when it is `SLURM_ROCE=off`. Without any option it is what `--roce=on` asks
/// for: somebody who runs `command` wants that.
pub(crate) fn request(
    command: &str,
    roce: &RoceArgs,
    arguments: &SiteArgs,
    site: &Site,
    unknown_facts: roce_plan::UnknownFacts,
) -> anyhow::Result<Option<Request>> {
    let mut options = Options::default();
    for option in RoceOption::ALL {
        // A value that is no text can't be allowed either; shown lossily, it is refused.
        if let Some(value) = std::env::var_os(option.variable()) {
            options.set(option, &value.to_string_lossy(), Source::Variable);
        }
        if let Some(value) = typed(roce, option) {
            options.set(option, value, Source::CommandLine);
        }
    }
    let nothing_asked = options.is_empty();
    if nothing_asked {
        options.set(RoceOption::Mode, "on", Source::CommandLine);
    }
    let request = options.request(site).map_err(|error| Usage(error.to_string()))?;
    Ok(request.map(|mut request| {
        if nothing_asked {
            request.asked_by = vec![command.to_owned()];
        }
        settle(&mut request, arguments, unknown_facts);
        request
    }))
}

/// What the options don't say: which ports count, and what an unknown fact means.
pub(crate) fn settle(request: &mut Request, arguments: &SiteArgs, unknown_facts: roce_plan::UnknownFacts) {
    request.unknown_facts = unknown_facts;
    request.link_layers = match arguments.link_layer {
        LinkLayerArg::Roce => LinkLayers::RoceOnly,
        LinkLayerArg::Any => LinkLayers::Any,
    };
}

fn typed(roce: &RoceArgs, option: RoceOption) -> Option<&str> {
    match option {
        RoceOption::Mode => None,
        RoceOption::Tc => roce.roce_tc.as_deref(),
        RoceOption::Dscp => roce.roce_dscp.as_deref(),
        RoceOption::Tclass => roce.roce_tclass.as_deref(),
        RoceOption::Nics => roce.roce_nics.as_deref(),
        RoceOption::Place => roce.roce_place.as_deref(),
        RoceOption::Gid => roce.roce_gid.as_deref(),
        RoceOption::Bind => roce.roce_bind.as_deref(),
    }
}
