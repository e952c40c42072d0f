//! Any bytes as an sd_notify datagram.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tentpole::supervise::notify;

fuzz_target!(|datagram: &[u8]| {
    let _ = notify::parse(datagram);
});
