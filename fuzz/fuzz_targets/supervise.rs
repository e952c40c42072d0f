//! Anything that may happen to a manager, in any order, and now and then what can't. What is recorded of it is always enough
//! to go on from, and at the end everything ends.

#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use tentpole::supervise::{Event, Key};
use tentpole_fuzz::Runtime;

fuzz_target!(|input: &[u8]| {
    let _ = run(&mut Unstructured::new(input));
});

fn run(any: &mut Unstructured) -> Result<()> {
    let is_wild = any.ratio(1, 4)?;
    let mut runtime = Runtime::new(any)?;
    runtime.handle(Event::Begin);
    while !any.is_empty() && !runtime.is_over {
        if is_wild && any.ratio(1, 4)? {
            runtime.misstep(any)?;
        } else {
            runtime.step(any)?;
        }
    }
    if runtime.is_over {
        return Ok(());
    }
    let mut restored = Runtime::restored(runtime.kept()).expect("what was recorded can be read");
    let (again, all) = (texts(&mut restored), texts(&mut runtime));
    for (before, now) in all.iter().zip(&again) {
        assert_eq!(now, before);
    }
    assert_eq!(again.len(), all.len());
    let now = runtime.now;
    let view = |runtime: &Runtime| format!("{:?}", runtime.supervisor.view(now));
    assert_eq!(view(&restored), view(&runtime));
    restored.now = now;
    restored.resume(false);
    restored.wait();
    if !is_wild {
        runtime.end();
    }
    Ok(())
}

/// The records, but for the manager's own, which promises more numbers of processes each time, and those of slots in which
/// nothing has happened, which need none.
fn texts(runtime: &mut Runtime) -> Vec<String> {
    const UNTOUCHED: &str = r#"{"generation":0,"attempt":0,"bereaved":false,"ended_badly":null,"main":"Vacant","beside":null}"#;
    let records = runtime.records().into_iter();
    let text = |(key, value): (Key, Vec<u8>)| {
        let value = String::from_utf8(value).expect("records are text");
        let is_needed = key != Key::Manager && value != UNTOUCHED;
        is_needed.then(|| format!("{key} {value}"))
    };
    records.filter_map(text).collect()
}
