//! Any text as a command, and as everything else that is split into words or has substitutions: lines of `KEY VALUE`, where
//! the value is what TOML quotes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;
use tentpole::plan::{Plan, examine};
use tentpole::unit::read_text;
use tentpole_fuzz::Machine;

const KEYS: [(&str, &str); 12] = [
    ("c", "cmd"),
    ("a", "args"),
    ("x", "executable"),
    ("s", "shell_args"),
    ("w", "working_dir"),
    ("e", "env.A"),
    ("E", "env.B"),
    ("f", "env_file"),
    ("v", "virtualenv"),
    ("i", "stdin.file"),
    ("o", "stdout.file"),
    ("r", "stderr.file"),
];

fuzz_target!(|input: &str| {
    let mut text = String::from(
        "[socket.a]\nlisten = 8000\n[socket.b]\nlisten = '/run/b'\n[watcher.w]\nsockets = ['a', 'b']\nnumprocesses = 2\n",
    );
    let mut is_shell = false;
    for line in input.split('\n') {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        is_shell |= key == "sh";
        if let Some((_, key)) = KEYS.iter().find(|(short, _)| *short == key) {
            // JSON's quoting is TOML's, but for one character.
            let value = serde_json::Value::from(value)
                .to_string()
                .replace('\x7f', "\\u007f");
            writeln!(text, "{key} = {value}").expect("a String takes anything");
        }
    }
    if is_shell {
        text.push_str("shell = true\n");
    }
    let loaded = read_text(Path::new("/etc/tentpole/fuzz.toml"), &text);
    let examined = examine(loaded, &Machine);
    for finding in &examined.findings {
        let _ = examined.sources.render(finding).to_string();
    }
    let Some(plan) = examined.plan else { return };
    let json = serde_json::to_vec(&plan).expect("a plan is of plain values");
    let again: Plan = serde_json::from_slice(&json).expect("it is read back");
    assert_eq!(again, plan);
    let no_file = |_: &Path| Err(ErrorKind::NotFound.into());
    let workers = |plan: &Plan| plan.workers(&Machine, &no_file).collect::<Vec<_>>();
    assert_eq!(workers(&plan), workers(&again));
    for worker in workers(&plan).into_iter().flatten() {
        let all = worker
            .argv
            .iter()
            .chain(worker.env.values())
            .chain(&worker.executable);
        assert!(all.into_iter().all(|text| !text.contains('\0')));
        assert!(!worker.argv.is_empty() && !worker.executable.is_empty());
    }
});
