//! Any bytes as a message of the keeper, or to it: what is understood is sent and understood again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tentpole::runtime::keeper::protocol::{FromKeeper, LONGEST, ToKeeper};

fuzz_target!(|bytes: &[u8]| {
    if let Some(message) = ToKeeper::decode(bytes) {
        let sent = message.encode();
        assert!(sent.len() <= LONGEST && sent.len() <= bytes.len());
        assert_eq!(ToKeeper::decode(&sent), Some(message));
    }
    if let Some(message) = FromKeeper::decode(bytes) {
        let sent = message.encode();
        assert!(sent.len() <= LONGEST && sent.len() <= bytes.len());
        assert_eq!(FromKeeper::decode(&sent), Some(message));
    }
});
