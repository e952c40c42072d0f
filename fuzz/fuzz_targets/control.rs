//! Any bytes on the control socket, and as the answers of a manager. The first byte says how long the pieces are in which
//! they come, which makes no difference; what was understood is understood again when it is sent on.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tentpole::control::wire::{Answer, Decoder, ReplyDecoder, encode, encode_call};

fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else {
        return;
    };
    let piece = usize::from(*piece).max(1);

    let requests = requests(bytes, bytes.len().max(1));
    assert_eq!(requests, self::requests(bytes, piece));
    for request in requests.into_iter().flatten() {
        let Ok(call) = &request.call else { continue };
        let mut sent = Vec::new();
        encode_call(call, request.more, request.oneway, &mut sent);
        assert_eq!(self::requests(&sent, sent.len()), [Ok(request)]);
    }

    let answers = answers(bytes, bytes.len().max(1));
    assert_eq!(answers, self::answers(bytes, piece));
    for answer in answers.into_iter().flatten() {
        let Answer { reply, continues } = &answer;
        let mut sent = Vec::new();
        encode(reply, *continues, &mut sent);
        assert_eq!(self::answers(&sent, sent.len()), [Ok(answer)]);
    }
});

/// What a manager hears, each malformed message without its reason: that has places in it.
fn requests(bytes: &[u8], piece: usize) -> Vec<Result<tentpole::control::call::Request, ()>> {
    let mut decoder = Decoder::new();
    let mut heard = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        while let Some(request) = decoder.next() {
            heard.push(request.map_err(drop));
        }
    }
    assert!(
        heard.iter().rev().skip(1).all(Result::is_ok),
        "it goes on after what is malformed"
    );
    heard
}

/// What a client hears.
fn answers(bytes: &[u8], piece: usize) -> Vec<Result<Answer, ()>> {
    let mut decoder = ReplyDecoder::new();
    let mut heard = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        while let Some(answer) = decoder.next() {
            heard.push(answer.map_err(drop));
        }
    }
    assert!(
        heard.iter().rev().skip(1).all(Result::is_ok),
        "it goes on after what is malformed"
    );
    heard
}
