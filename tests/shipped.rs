//! What is shipped beside the program: every unit file is taken without a finding, and the default one serves.

mod support;

use std::path::{Path, PathBuf};
use support::{Manager, bounded, command, folder};

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The unit files of a folder.
fn unit_files(path: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(source(path))
        .expect("list a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no unit files in {path}");
    files
}

#[test]
fn every_shipped_unit_file_is_taken_without_a_finding() {
    let dir = folder();
    let files = ["units", "units/examples", "packaging/container/units"].map(unit_files);
    for file in files.iter().flatten() {
        for verb in [&["check", "--strict"][..], &["plan"][..]] {
            let output = bounded(command(dir.path()).args(verb).arg(file));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && stderr.is_empty(),
                "{verb:?} {}: {stderr}",
                file.display()
            );
        }
    }
}

#[test]
fn every_unit_in_the_documentation_is_taken_without_a_finding() {
    let dir = folder();
    let pages = [
        "README.md",
        "docs/howto.md",
        "docs/units.md",
        "docs/supervision.md",
    ];
    let mut count = 0;
    for page in pages {
        let text = std::fs::read_to_string(source(page)).expect("read a page");
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let unit = complete(block);
            let file = dir.path().join("units.toml");
            std::fs::write(&file, &unit).expect("write the units");
            let output = bounded(command(dir.path()).args(["check", "--strict"]).arg(&file));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{page}: {stderr}\nin:\n{unit}");
            count += 1;
        }
    }
    assert!(count > 0, "no units in the documentation");
}

/// A page does not repeat the socket for every watcher, nor the other way about: what a block needs and does not have.
fn complete(block: &str) -> String {
    let mut unit = block.to_owned();
    if !block.contains("[watcher.") {
        unit.push_str("\n[watcher.any]\ncmd = \"any\"\nuse_sockets = true\n");
    }
    for name in ["web", "php"] {
        let refers = [format!("$(circus.socket.{name})"), format!("\"{name}\"")];
        if refers.iter().any(|text| block.contains(text))
            && !block.contains(&format!("[socket.{name}]"))
        {
            unit.push_str(&format!("\n[socket.{name}]\nlisten = \"127.0.0.1:0\"\n"));
        }
    }
    unit
}

#[test]
fn every_key_of_the_unit_reader_is_in_the_reference() {
    let reader = std::fs::read_to_string(source("src/unit/keys.rs")).expect("read the source");
    let page = std::fs::read_to_string(source("docs/units.md")).expect("read the page");
    let tables = reader.split("keys! {").skip(1);
    let tables = tables.map(|table| table.split("\n}").next().unwrap_or_default());
    let mut count = 0;
    for table in tables {
        for line in table.lines() {
            // One key and how it is read, or a list of keys that are not built yet.
            let most = if line.contains("=>") { 1 } else { usize::MAX };
            for key in line.split('"').skip(1).step_by(2).take(most) {
                assert!(page.contains(&format!("`{key}`")), "`{key}` is missing");
                count += 1;
            }
        }
    }
    assert!(count > 100, "only {count} keys were found");
}

#[test]
fn the_default_unit_serves_with_nothing_but_tentpole() {
    let unit = std::fs::read_to_string(source("units/hello.toml")).expect("read the unit");
    assert!(unit.contains("127.0.0.1:8000"), "the README says 8000");
    let manager = Manager::start(&unit.replace("127.0.0.1:8000", "127.0.0.1:0"));
    let answer = support::ask(
        &manager.address("hello"),
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert!(answer.contains("hello from worker "), "{answer}");
}
