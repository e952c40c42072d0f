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
    let records = runtime.records();
    let mut restored = Runtime::restored(records.clone()).expect("what was recorded can be read");
    // The manager's own record promises more numbers of processes each time.
    let again = restored.records().into_iter().zip(records);
    for ((key, now), (_, before)) in again.filter(|((key, _), _)| *key != Key::Manager) {
        assert_eq!(
            String::from_utf8_lossy(&now),
            String::from_utf8_lossy(&before),
            "{key}"
        );
    }
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
