//! Any text as the state that a manager leaves behind: a line of `NAME CONTENT` for each record, then a line `--` and what
//! happens next. It is refused, or a manager goes on from it.
//!
//! Every second change of the text leaves JSON what it is, and puts a part of a record in the place of another.

#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_mutator, fuzz_target, fuzzer_mutate};
use serde_json::{Value, json};
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

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random(u64::from(seed) | 1 << 32);
    let changed = std::str::from_utf8(&data[..size]).ok();
    let changed = changed.and_then(|text| exchange(text, &mut random));
    match changed.filter(|text| text.len() <= max_size && random.below(2) == 0) {
        Some(text) => {
            data[..text.len()].copy_from_slice(text.as_bytes());
            text.len()
        }
        None => fuzzer_mutate(data, size, max_size),
    }
});

/// A part of a record takes the place of another, or something plain does.
fn exchange(text: &str, random: &mut Random) -> Option<String> {
    let end = text.find("\n--\n").unwrap_or(text.len());
    let (records, rest) = text.split_at(end);
    let mut lines: Vec<String> = records.lines().map(str::to_owned).collect();
    let (to, from) = (random.below(lines.len()), random.below(lines.len()));
    let (name, content) = lines.get(to)?.split_once(' ')?;
    let mut record: Value = serde_json::from_str(content).ok()?;
    let part = match random.below(3) {
        0 => {
            let number = json!(random.below(5));
            let plain = [
                Value::Null,
                number.clone(),
                number,
                json!([]),
                json!(true),
                json!(""),
            ];
            plain[random.below(plain.len())].clone()
        }
        _ => {
            let other: Value = serde_json::from_str(lines[from].split_once(' ')?.1).ok()?;
            let parts = parts(&other, String::new());
            other.pointer(&parts[random.below(parts.len())])?.clone()
        }
    };
    let places = parts(&record, String::new());
    *record.pointer_mut(&places[random.below(places.len())])? = part;
    lines[to] = format!("{name} {record}");
    Some(lines.join("\n") + rest)
}

/// Where everything in a value is.
fn parts(value: &Value, at: String) -> Vec<String> {
    let inside: Vec<_> = match value {
        Value::Object(object) => object
            .iter()
            .flat_map(|(key, value)| parts(value, format!("{at}/{key}")))
            .collect(),
        Value::Array(array) => (0..)
            .zip(array)
            .flat_map(|(key, value): (usize, _)| parts(value, format!("{at}/{key}")))
            .collect(),
        _ => Vec::new(),
    };
    std::iter::once(at).chain(inside).collect()
}

/// Numbers that follow from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}
