//! `rocectl env`: the variables of one task.

use std::collections::BTreeMap;

use crate::cli::{EnvArgs, Format};
use crate::step::Step;
use crate::{in_full, print};
use roce_plan::Change;

pub(crate) fn run(arguments: &EnvArgs) -> anyhow::Result<()> {
    let step = Step::of("env", &arguments.rank, &arguments.node, &arguments.site, &arguments.roce)?;
    let changes = match &step.planned {
        Some(planned) => match &planned.plan {
            Ok(plan) => step.changes(plan),
            Err(error) => anyhow::bail!(in_full(error)),
        },
        None => Vec::new(),
    };
    match arguments.format {
        Format::Sh => {
            let line = |(name, value): &Change| match value {
                Some(value) => format!("export {name}={}\n", quoted(value)),
                None => format!("unset {name}\n"),
            };
            print(&changes.iter().map(line).collect::<String>())
        }
        Format::Json => {
            let object: BTreeMap<String, Option<String>> = changes.into_iter().collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&object)?))
        }
    }
}

/// The text as one word of any shell of the Bourne family. Always quoted: zsh, for one, makes
/// something else of a bare `==mlx5_0:1`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in ["", "=mlx5_0:1", "it's", "'", "a b", "$HOME `id` \\ \"x\" ; rm", "two\nlines", "*"] {
            let script = format!("export X={}; printf %s \"$X\"", quoted(text));
            let out = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), text);
        }
    }
}
