#![no_main]

use roce_plan::Site;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(error) = Site::parse(text, "/etc/slurm/roce.toml") {
        assert!(!error.to_string().contains('\n'), "an error is one line: {error}");
    }
});
