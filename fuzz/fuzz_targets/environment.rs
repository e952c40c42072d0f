//! Any text as the file that `env_file` names: refused with its line, or an environment that can be exec'd with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use tentpole_fuzz::{Machine, plan};

const UNITS: &str = r#"
[watcher.w]
cmd = "w $(circus.env.A) $(circus.env.path)"
env_file = "env"
env = { B = "$A", D = "$(circus.env.C)" }
"#;

fuzz_target!(|text: &str| {
    let plan = plan(UNITS);
    let read = |_: &Path| Ok(text.to_owned());
    for worker in plan.workers(&Machine, &read) {
        match worker {
            Ok(worker) => {
                assert_eq!(worker.argv.len(), 3);
                for (name, value) in &worker.env {
                    assert!(!name.is_empty() && !name.contains('\0') && !value.contains('\0'));
                }
            }
            Err(why) => assert!(!why.is_empty()),
        }
    }
});
