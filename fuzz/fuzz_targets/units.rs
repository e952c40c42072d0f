//! Any text as a unit file: read, rendered and planned without a panic, and every finding points into the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::ffi::OsString;
use std::path::Path;
use tentpole::plan::{Host, User, plan};
use tentpole::unit::{Severity, read_text};

struct Nobody;

impl Host for Nobody {
    fn user_by_name(&self, _: &str) -> Option<User> {
        None
    }
    fn user_by_id(&self, _: u32) -> Option<User> {
        None
    }
    fn group_by_name(&self, _: &str) -> Option<u32> {
        None
    }
    fn groups_of(&self, _: &str, gid: u32) -> Vec<u32> {
        vec![gid]
    }
    fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), "/bin".into())]
    }
    fn is_root(&self) -> bool {
        true
    }
}

fuzz_target!(|text: &str| {
    let loaded = read_text(Path::new("fuzz.toml"), text);
    let refused = loaded.findings.iter().any(|finding| finding.severity == Severity::Error);
    for finding in &loaded.findings {
        let _ = loaded.sources.render(finding).to_string();
    }
    if refused {
        return;
    }
    let (plan, findings) = plan(loaded.units, &Nobody);
    for finding in &findings {
        let _ = loaded.sources.render(finding).to_string();
    }
    let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    for worker in plan.iter().flat_map(|plan| plan.workers(&Nobody, &read)).take(100) {
        let _ = worker;
    }
});
