//! Any text as option values and site files: an answer or a one-line error, never a panic. The long
//! form is `cargo xtask soak fuzz`.

use proptest::prelude::*;
use roce_plan::{Options, RoceOption, Site, Source};

/// Pieces of valid and nearly valid values, strung together.
fn value() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("3"),
        Just("64"),
        Just("af31"),
        Just("mlx5_0"),
        Just(","),
        Just(":1"),
        Just("10.1.0.0/16"),
        Just("auto"),
        Just("ipv4"),
        Just("-"),
        Just("bulk"),
        Just("off"),
        Just("verbose"),
        Just("\n"),
        Just("\u{0}"),
        Just("ä"),
    ];
    prop_oneof![prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat()), any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn what_srun_settles_the_node_reads_as_the_same(
        given in prop::collection::vec((0_usize..8, value(), 0_usize..3), 0..5),
    ) {
        let site = Site::parse("[classes.bulk]\npriority = 3", "roce.toml").unwrap();
        let sources = [Source::Variable, Source::Inherited, Source::CommandLine];
        let mut options = Options::default();
        for (option, value, source) in &given {
            options.set(RoceOption::ALL[*option], value, sources[*source]);
        }
        match options.request(&site) {
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "{error}"),
            Ok(request) => {
                let mut settled = Options::default();
                for (option, (_, value)) in RoceOption::ALL.into_iter().zip(options.variables()) {
                    if let Some(value) = value {
                        settled.set(option, &value, Source::CommandLine);
                    }
                }
                let mut again = settled.request(&site).unwrap();
                if let (Some(again), Some(request)) = (&mut again, &request) {
                    again.asked_by.clone_from(&request.asked_by);
                }
                prop_assert_eq!(again, request);
            }
        }
    }

    #[test]
    fn a_damaged_site_file_is_a_one_line_error_or_a_site(at in 0_usize..3000, length in 0_usize..20, with in value()) {
        let example = include_str!("../../../spank-plugin/roce.toml.example").replace("\n#", "\n");
        let mut text: Vec<char> = example.chars().collect();
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, with.chars());
        if let Err(error) = Site::parse(&text.into_iter().collect::<String>(), "roce.toml") {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
