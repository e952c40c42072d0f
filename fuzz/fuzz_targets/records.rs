//! Any text as the state that a manager leaves behind: a line of `NAME CONTENT` for each record, then a line `--` and what
//! happens next. It is refused, or a manager goes on from it.

#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use std::io::ErrorKind;
use std::os::fd::IntoRawFd;
use std::path::Path;
use tentpole::runtime::{ledger::Ledger, probe};
use tentpole::supervise::Key;
use tentpole_fuzz::{Machine, Runtime};

fuzz_target!(|input: &[u8]| {
    let end = input.windows(4).position(|bytes| bytes == b"\n--\n");
    let (text, events) = input.split_at(end.unwrap_or(input.len()));
    let mut ledger = Ledger::create().expect("memory");
    let mut records = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let space = line
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or(line.len());
        let (name, content) = line.split_at(space);
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let content = content.strip_prefix(b" ").unwrap_or(content).to_vec();
        if let Ok(key) = name.parse::<Key>() {
            records.retain(|(other, _)| *other != key);
            records.push((key, content.clone()));
        }
        ledger.put(name, content);
    }
    ledger.commit().expect("memory");
    let fd = ledger.fd().try_clone_to_owned().expect("a descriptor");
    let is_taken_over = probe(fd.into_raw_fd()).is_ok();

    let mut runtime = match Runtime::restored(records) {
        Ok(runtime) => runtime,
        Err(why) => {
            assert!(!is_taken_over && !why.is_empty());
            return;
        }
    };
    let no_file = |_: &Path| Err(ErrorKind::NotFound.into());
    for worker in runtime
        .supervisor
        .plan()
        .workers(&Machine, &no_file)
        .take(50)
    {
        let _ = worker;
    }
    runtime.resume(events.len().is_multiple_of(2));
    let mut any = Unstructured::new(events.get(4..).unwrap_or_default());
    while !any.is_empty() && !runtime.is_over {
        if runtime.step(&mut any).is_err() {
            break;
        }
    }
    let _ = runtime.supervisor.view(runtime.now);
    if !runtime.is_over {
        let records = runtime.records();
        Runtime::restored(records).expect("what was recorded can be read");
    }
});
