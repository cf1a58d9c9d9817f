#![no_main]

use roce_plan::{Options, RoceOption, Site, Source};

// The first byte of each line chooses an option and a source, the rest is its value: what users may
// type, and what a job may forge on its way to the node.
libfuzzer_sys::fuzz_target!(|text: &str| {
    let site =
        Site::parse("[classes.bulk]\npriority = 3\ndscp = 30\n[policy]\nallowed_priorities = [0, 3]", "");
    let site = site.unwrap_or_default();
    let sources = [Source::Variable, Source::Inherited, Source::CommandLine];
    let (mut judged, mut last) = (Options::default(), Options::default());
    for line in text.split('\n') {
        let Some(first) = line.bytes().next().filter(u8::is_ascii) else { continue };
        let option = RoceOption::ALL[usize::from(first) % RoceOption::ALL.len()];
        judged.set(option, &line[1..], sources[usize::from(first) / 8 % sources.len()]);
        last.set_last(option, &line[1..]);
    }
    for options in [judged, last] {
        // What srun settled, the node must read as the same.
        if let Ok(Some(request)) = options.request(&site) {
            let mut settled = Options::default();
            for (variable, value) in options.variables() {
                let option = RoceOption::ALL.into_iter().find(|option| option.variable() == variable);
                if let (Some(option), Some(value)) = (option, value) {
                    settled.set(option, &value, Source::CommandLine);
                }
            }
            let mut again = settled.request(&site).unwrap().unwrap();
            again.asked_by.clone_from(&request.asked_by);
            assert_eq!(again, request);
        } else if let Err(error) = options.request(&site) {
            assert!(!error.to_string().contains('\n'), "an error is one line");
        }
    }
});
