//! Any text as a unit file. Every finding points into the text, the same text always says the same, and a plan is the same
//! plan after it was written down.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::ErrorKind;
use std::path::Path;
use tentpole::plan::{Plan, diff, examine};
use tentpole::unit::{Place, Severity, Units, read_text};
use tentpole_fuzz::Machine;

fuzz_target!(|text: &str| {
    let read = || read_text(Path::new("/etc/tentpole/fuzz.toml"), text);
    let loaded = read();
    assert_eq!(loaded.units, read().units);
    let json = serde_json::to_vec(&loaded.units).expect("units are plain values");
    let units: Units = serde_json::from_slice(&json).expect("they are read back");
    assert_eq!(units, loaded.units);

    let examined = examine(loaded, &Machine);
    let mut is_refused = false;
    for finding in &examined.findings {
        let Place { file, start, end } = finding.place;
        let is_inside = file == 0 && start <= end && end as usize <= text.len();
        assert!(is_inside || finding.place == Place::NOWHERE, "{finding:?}");
        let shown = examined.sources.render(finding).to_string();
        assert!(
            !shown.contains(|c: char| c.is_control() && c != '\n'),
            "{shown:?}"
        );
        is_refused |= finding.severity == Severity::Error;
    }
    assert_eq!(is_refused, examined.plan.is_none());
    let Some(plan) = examined.plan else { return };
    let json = serde_json::to_vec(&plan).expect("a plan is of plain values");
    let again: Plan = serde_json::from_slice(&json).expect("it is read back");
    assert_eq!(again, plan);
    assert_eq!(diff(&plan, &again), []);
    let nothing = Plan::default();
    let count = plan.sockets.len() + plan.watchers.len();
    assert!(diff(&nothing, &plan).len() >= count && diff(&plan, &nothing).len() >= count);
    let no_file = |_: &Path| Err(ErrorKind::NotFound.into());
    for worker in plan.workers(&Machine, &no_file).take(100) {
        check(worker);
    }
});

fn check(worker: Result<tentpole::plan::PlannedWorker, String>) {
    match worker {
        Ok(worker) => assert!(!worker.argv.is_empty() && !worker.executable.is_empty()),
        Err(why) => assert!(!why.is_empty()),
    }
}
