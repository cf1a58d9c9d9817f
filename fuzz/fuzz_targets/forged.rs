#![no_main]

use roce_plan::{ClassRequest, Options, RoceOption, Site};

// Each line is an option as it reaches a node: the first byte says which one, and whether it comes in its variable or
// by Slurm's `_SLURM_SPANK_OPTION_...`; the rest is its value, of any bytes.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let site =
        Site::parse("[classes.bulk]\npriority = 3\ndscp = 30\n[policy]\nallowed_priorities = [0, 3]", "");
    let site = site.unwrap_or_default();
    let (mut variables, mut delivered) = (Vec::new(), Vec::new());
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((first, value)) = line.split_first() else { continue };
        let option = RoceOption::ALL[usize::from(*first) % RoceOption::ALL.len()];
        let side = if first & 8 == 0 { &mut variables } else { &mut delivered };
        side.push((option, value));
    }
    let options = Options::on_node(variables, delivered);
    match options.and_then(|options| options.request(&site)) {
        // What the site forbids, no bytes can ask for.
        Ok(Some(request)) => match request.class {
            Some(ClassRequest::Priority(priority) | ClassRequest::Named { priority, .. }) => {
                assert!([0, 3].contains(&priority.get()), "priority {}", priority.get());
            }
            _ => {}
        },
        Ok(None) => {}
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains(char::is_control), "an error is one line for a terminal: {error:?}");
            assert!(error.len() < 2_000, "an error is short: {} bytes", error.len());
        }
    }
});
