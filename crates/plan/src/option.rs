//! The options of srun, sbatch and salloc with their variables, and how several sources of one
//! option are settled.

use std::collections::BTreeMap;

use crate::request::{self, Request};
use crate::site::{Activate, Site};

/// One option of ours: `--roce-tc=3` at srun is the same as `SLURM_ROCE_TC=3` in its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoceOption {
    /// `--roce`
    Mode,
    /// `--roce-tc`
    Tc,
    /// `--roce-dscp`
    Dscp,
    /// `--roce-tclass`
    Tclass,
    /// `--roce-nics`
    Nics,
    /// `--roce-place`
    Place,
    /// `--roce-gid`
    Gid,
    /// `--roce-bind`
    Bind,
}

impl RoceOption {
    /// Every option, in the order of the help text.
    pub const ALL: [Self; 8] =
        [Self::Mode, Self::Tc, Self::Dscp, Self::Tclass, Self::Nics, Self::Place, Self::Gid, Self::Bind];

    /// Without the dashes: `roce-tc`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mode => "roce",
            Self::Tc => "roce-tc",
            Self::Dscp => "roce-dscp",
            Self::Tclass => "roce-tclass",
            Self::Nics => "roce-nics",
            Self::Place => "roce-place",
            Self::Gid => "roce-gid",
            Self::Bind => "roce-bind",
        }
    }

    /// The variable of the same meaning: `SLURM_ROCE_TC`.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::Mode => "SLURM_ROCE",
            Self::Tc => "SLURM_ROCE_TC",
            Self::Dscp => "SLURM_ROCE_DSCP",
            Self::Tclass => "SLURM_ROCE_TCLASS",
            Self::Nics => "SLURM_ROCE_NICS",
            Self::Place => "SLURM_ROCE_PLACE",
            Self::Gid => "SLURM_ROCE_GID",
            Self::Bind => "SLURM_ROCE_BIND",
        }
    }

    /// What the help text calls its value: `CLASS`.
    #[must_use]
    pub fn argument(self) -> &'static str {
        match self {
            Self::Mode | Self::Bind => "MODE",
            Self::Tc => "CLASS",
            Self::Dscp => "DSCP",
            Self::Tclass => "BYTE",
            Self::Nics | Self::Gid => "SEL",
            Self::Place => "POLICY",
        }
    }

    /// One line for `srun --help`.
    #[must_use]
    pub fn usage(self) -> &'static str {
        match self {
            Self::Mode => "RoCE pinning: on, off, or verbose (a line per task on stderr)",
            Self::Tc => "RoCE traffic class: priority 0-7, or a class name of the site",
            Self::Dscp => "RoCE DSCP: 0-63, or a name such as af31, cs3, ef",
            Self::Tclass => "RoCE traffic class byte as sent, 0-255 (for experts)",
            Self::Nics => "RoCE NICs of each task: auto, all, a count, or names (mlx5_0,mlx5_3)",
            Self::Place => "which task gets which NIC: nearest, rail, round-robin, block",
            Self::Gid => "RoCE GID: auto, ipv4, ipv6, a subnet (10.1.0.0/16), or an index",
            Self::Bind => "bind a task's CPUs to its NIC's NUMA node: auto, numa, none",
        }
    }

    fn is_class(self) -> bool {
        matches!(self, Self::Tc | Self::Dscp | Self::Tclass)
    }
}

/// Where a value came from, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A `SLURM_ROCE_*` variable.
    Variable,
    /// An option of the job that this step is part of.
    Inherited,
    /// Typed at this very command.
    CommandLine,
}

/// The options as given, in text. [`request`](Self::request) judges them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    given: BTreeMap<RoceOption, Given>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    source: Source,
    value: String,
}

impl Options {
    /// Was no option given at all, by any source?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Notes one value. A weaker source never replaces a stronger one; within one source the last
    /// value wins. `--roce-tc`, `--roce-dscp` and `--roce-tclass` stand for the same thing, so one
    /// of them from a stronger source displaces the others too; two from the same source stay, for
    /// [`request`](Self::request) to refuse.
    pub fn set(&mut self, option: RoceOption, value: &str, source: Source) {
        let rivals = |other: RoceOption| other == option || (other.is_class() && option.is_class());
        if self.given.iter().any(|(other, given)| rivals(*other) && given.source > source) {
            return;
        }
        self.given.retain(|other, given| !(rivals(*other) && given.source < source));
        self.given.insert(option, Given { source, value: value.to_owned() });
    }

    /// Notes a value that replaces whatever was there, rivals among the class options included.
    /// For slurmstepd, which calls back without saying where a value came from, inherited ones
    /// first.
    pub fn set_last(&mut self, option: RoceOption, value: &str) {
        self.given.retain(|other, _| !(other.is_class() && option.is_class()));
        self.given.insert(option, Given { source: Source::CommandLine, value: value.to_owned() });
    }

    /// What is asked for, or `None` when the step is to be left alone: no option was given and the
    /// site doesn't say `activate = "always"`, or `--roce=off` and nothing stronger.
    ///
    /// # Errors
    /// When a value is not allowed, two class options contradict each other, or the site doesn't
    /// allow the priority. The error is one line for the user.
    pub fn request(&self, site: &Site) -> Result<Option<Request>, OptionError> {
        let mut request = Request::default();
        for (&option, given) in &self.given {
            request::apply(&mut request, option, &given.value, site)
                .map_err(|why| OptionError { given: self.written(option), why })?;
        }
        let classes: Vec<_> = self.given.keys().filter(|option| option.is_class()).collect();
        if let [first, second, ..] = classes[..] {
            let why = format!(
                "excludes {}: give one of --roce-tc, --roce-dscp and --roce-tclass",
                self.written(*second)
            );
            return Err(OptionError { given: self.written(*first), why });
        }
        request.asked_by = self.given.keys().map(|&option| self.written(option)).collect();
        if self.is_empty() && site.policy.activate == Activate::OnRequest || self.is_off() {
            return Ok(None);
        }
        if request.class.is_none()
            && let Some(class) = &site.policy.class
        {
            request.class = Some(site.class(class).map_err(|why| OptionError {
                given: format!("policy.class = \"{class}\" in {}", site.path),
                why,
            })?);
        }
        Ok(Some(request))
    }

    /// The `SLURM_ROCE_*` variables that say the same as these options, all eight: the value to
    /// set, or `None` to unset. They carry the request from srun to the nodes and to the steps
    /// that a task starts.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, Option<String>)> {
        let off = self.is_off();
        let value = |option: RoceOption| match option {
            RoceOption::Mode if off => Some("off".to_owned()),
            _ if off => None,
            // Something stronger was asked for than the `off` of a variable.
            RoceOption::Mode => self.given.get(&option).map(|given| match given.value.as_str() {
                "off" => "on".to_owned(),
                value => value.to_owned(),
            }),
            _ => self.given.get(&option).map(|given| given.value.clone()),
        };
        RoceOption::ALL.into_iter().map(|option| (option.variable(), value(option))).collect()
    }

    /// `--roce=off`, unless another option was given by a stronger source: `SLURM_ROCE=off` in a
    /// profile doesn't silence a `--roce-tc=3` that somebody typed.
    fn is_off(&self) -> bool {
        self.given.get(&RoceOption::Mode).is_some_and(|mode| {
            mode.value == "off" && self.given.values().all(|other| other.source <= mode.source)
        })
    }

    /// The option as its source wrote it: `--roce-tc=3` or `SLURM_ROCE_TC=3`.
    fn written(&self, option: RoceOption) -> String {
        let Some(given) = self.given.get(&option) else { return format!("--{}", option.name()) };
        let value: String = given.value.chars().take(64).flat_map(char::escape_debug).collect();
        match given.source {
            Source::Variable => format!("{}={value}", option.variable()),
            Source::Inherited => format!("--{}={value} (inherited from the job)", option.name()),
            Source::CommandLine => format!("--{}={value}", option.name()),
        }
    }
}

/// An option that can't be honoured, in one line: what was given, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given}: {why}")]
pub struct OptionError {
    /// The option as it was given: `--roce-tc=9`.
    pub given: String,
    /// What is wrong with it and what is allowed.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ClassRequest;
    use roce_types::{Dscp, Priority};

    fn options(given: &[(RoceOption, &str, Source)]) -> Options {
        let mut options = Options::default();
        for (option, value, source) in given {
            options.set(*option, value, *source);
        }
        options
    }

    fn class(options: &Options) -> Option<ClassRequest> {
        options.request(&Site::default()).unwrap().unwrap().class
    }

    const TC3: (RoceOption, &str, Source) = (RoceOption::Tc, "3", Source::Inherited);

    #[test]
    fn the_manual_page_has_every_option_and_variable() {
        let page = include_str!("../../../docs/man/spank_roce.8");
        for option in RoceOption::ALL {
            let entry =
                format!("--{}=\\fI{}\\fR \", \" {}\n", option.name(), option.argument(), option.variable());
            assert!(page.contains(&entry), "spank_roce(8) lacks {entry}");
        }
    }

    #[test]
    fn without_any_option_a_step_is_left_alone() {
        assert_eq!(Options::default().request(&Site::default()), Ok(None));
    }

    #[test]
    fn a_site_can_activate_every_step() {
        let site = Site::parse("[policy]\nactivate = \"always\"", "roce.toml").unwrap();
        assert_eq!(Options::default().request(&site), Ok(Some(Request::default())));
        assert_eq!(options(&[(RoceOption::Mode, "off", Source::CommandLine)]).request(&site), Ok(None));
    }

    #[test]
    fn the_command_line_beats_the_job_beats_the_variable_in_any_order_of_arrival() {
        let typed = (RoceOption::Tc, "5", Source::CommandLine);
        let variable = (RoceOption::Tc, "1", Source::Variable);
        for order in [[TC3, typed, variable], [typed, variable, TC3], [variable, TC3, typed]] {
            assert_eq!(class(&options(&order)), Priority::new(5).map(ClassRequest::Priority));
        }
    }

    #[test]
    fn a_typed_dscp_displaces_an_inherited_class() {
        let both = options(&[TC3, (RoceOption::Dscp, "46", Source::CommandLine)]);
        assert_eq!(class(&both), Dscp::new(46).map(ClassRequest::Dscp));
        let variables: BTreeMap<_, _> = both.variables().into_iter().collect();
        assert_eq!(variables["SLURM_ROCE_TC"], None);
        assert_eq!(variables["SLURM_ROCE_DSCP"].as_deref(), Some("46"));
    }

    #[test]
    fn two_class_options_from_one_source_are_refused() {
        let both = options(&[
            (RoceOption::Dscp, "46", Source::CommandLine),
            (RoceOption::Tc, "3", Source::CommandLine),
        ]);
        assert_eq!(
            both.request(&Site::default()).unwrap_err().to_string(),
            "--roce-tc=3: excludes --roce-dscp=46: give one of --roce-tc, --roce-dscp and --roce-tclass"
        );
    }

    #[test]
    fn on_the_node_the_last_class_wins() {
        let mut options = options(&[TC3]);
        options.set_last(RoceOption::Dscp, "46");
        assert_eq!(class(&options), Dscp::new(46).map(ClassRequest::Dscp));
    }

    #[test]
    fn off_wins_unless_something_stronger_was_asked() {
        let off = |source| (RoceOption::Mode, "off", source);
        let step = options(&[TC3, off(Source::CommandLine)]);
        assert_eq!(step.request(&Site::default()), Ok(None));
        let variables = step.variables();
        assert!(variables.contains(&("SLURM_ROCE", Some("off".to_owned()))));
        assert!(variables.contains(&("SLURM_ROCE_TC", None)));

        let typed = options(&[off(Source::Variable), (RoceOption::Tc, "3", Source::CommandLine)]);
        assert!(typed.request(&Site::default()).unwrap().is_some());
        assert!(typed.variables().contains(&("SLURM_ROCE", Some("on".to_owned()))));
    }

    #[test]
    fn an_error_names_the_variable_when_that_is_where_the_value_came_from() {
        let error =
            options(&[(RoceOption::Tc, "9\n", Source::Variable)]).request(&Site::default()).unwrap_err();
        assert!(error.to_string().starts_with("SLURM_ROCE_TC=9\\n: "), "{error}");
    }

    #[test]
    fn the_class_of_the_site_is_used_when_none_is_asked_for() {
        let site = "[policy]\nclass = \"bulk\"\n[classes.bulk]\npriority = 4";
        let site = Site::parse(site, "roce.toml").unwrap();
        let on = options(&[(RoceOption::Mode, "on", Source::CommandLine)]);
        let class = on.request(&site).unwrap().unwrap().class.unwrap();
        assert_eq!(class.priority(), Priority::new(4).unwrap());
    }
}
