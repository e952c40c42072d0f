//! The table of modules in `src/lib.rs`, held against the code: no module imports what it may not.

use std::path::{Path, PathBuf};

/// What each module may import.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("unit", &[]),
    ("plan", &["unit"]),
    ("supervise", &["plan", "unit"]),
    ("control", &["supervise"]),
    ("sys", &[]),
    ("runtime", &["unit", "plan", "supervise", "control", "sys"]),
    ("cli", &["unit", "plan", "supervise", "control", "runtime"]),
];

/// What must not stand in modules without I/O: clocks, threads, processes, files.
const IMPURE: [&str; 6] = [
    "Instant::now",
    "SystemTime::now",
    "thread::spawn",
    "process::Command",
    "std::fs",
    "std::env",
];

/// Modules without I/O. `unit` is not among them: it reads files, in `load.rs` alone.
const PURE: [&str; 3] = ["plan", "supervise", "control"];

fn sources(module: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(module);
    let mut sources = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("list a folder of src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("read a source");
                sources.push((path, text));
            }
        }
    }
    assert!(!sources.is_empty(), "no sources of {module}");
    sources
}

/// The code of a file without its tests, which stand last.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests")
        .map_or(text, |tests| &text[..tests])
}

fn modules_named(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("crate::").map(|(at, prefix)| {
        let rest = &text[at + prefix.len()..];
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn modules_import_only_what_the_table_allows() {
    for (module, allowed) in ALLOWED {
        for (path, text) in sources(module) {
            for named in modules_named(without_tests(&text)) {
                let known = ALLOWED.iter().any(|(other, _)| *other == named);
                assert!(
                    !known || named == module || allowed.contains(&named),
                    "{}: `{module}` may not import `{named}`",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn modules_without_io_touch_no_clock_thread_process_or_file() {
    for module in PURE {
        for (path, text) in sources(module) {
            for word in IMPURE {
                assert!(
                    !without_tests(&text).contains(word),
                    "{}: `{word}` in a module without I/O",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn unsafe_lives_in_sys_and_each_block_says_why_it_is_sound() {
    for (module, _) in ALLOWED {
        for (path, text) in sources(module) {
            let lines: Vec<&str> = text.lines().collect();
            for (number, line) in lines.iter().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                if !code.contains("unsafe {")
                    && !code.contains("unsafe fn")
                    && !code.contains("unsafe impl")
                {
                    continue;
                }
                assert_eq!(
                    module,
                    "sys",
                    "{}:{}: unsafe outside of `sys`",
                    path.display(),
                    number + 1
                );
                let argued = lines[number.saturating_sub(9)..=number]
                    .iter()
                    .any(|line| line.to_lowercase().contains("safety"));
                assert!(
                    argued,
                    "{}:{}: no SAFETY comment",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}
