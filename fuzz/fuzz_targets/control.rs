//! Any bytes on the control socket, in pieces of any size, and as the answers of a manager.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tentpole::control::wire::{Decoder, ReplyDecoder};

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (piece, bytes) = input;
    let (mut requests, mut replies) = (Decoder::new(), ReplyDecoder::new());
    for piece in bytes.chunks(usize::from(piece).max(1)) {
        requests.feed(piece);
        while let Some(Ok(_)) = requests.next() {}
        replies.feed(piece);
        while let Some(Ok(_)) = replies.next() {}
    }
});
