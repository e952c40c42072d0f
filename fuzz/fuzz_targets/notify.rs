//! Any bytes as sd_notify datagrams (byte 0x1e ends one), to a manager of workers of every type. The first byte of each says
//! which worker sends it, whether its main process does, and whether time passes first.

#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use tentpole::supervise::{Event, notify};
use tentpole_fuzz::Runtime;

fuzz_target!(|input: &[u8]| {
    let Some((first, datagrams)) = input.split_first() else {
        return;
    };
    let choice = [*first, first >> 4, first >> 2];
    let Ok(mut runtime) = Runtime::new(&mut Unstructured::new(&choice)) else {
        return;
    };
    runtime.handle(Event::Begin);
    for datagram in datagrams.split(|byte| *byte == 0x1e) {
        let Some((how, datagram)) = datagram.split_first() else {
            continue;
        };
        if how & 0x40 != 0 {
            runtime.wait();
        }
        let running = runtime.spawn_all();
        let Some(proc) = running
            .get(usize::from(how & 0xf) % running.len().max(1))
            .copied()
        else {
            continue;
        };
        match notify::parse(datagram) {
            Ok(message) => {
                assert!(datagram.len() <= notify::MAX_DATAGRAM);
                runtime.notified(proc, how & 0x20 != 0, message);
            }
            Err(notify::Reject::TooLong) => assert!(datagram.len() > notify::MAX_DATAGRAM),
            Err(notify::Reject::EmbeddedNul) => assert!(datagram.contains(&0)),
        }
    }
    runtime.spawn_all();
    runtime.end();
});
