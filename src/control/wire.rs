//! Varlink's framing and envelopes: bytes to calls and replies, and back.
//!
//! A message is one JSON object and a NUL byte. What a peer sends is kept only up to a limit, looked at once, and the
//! first message that is none ends the connection: after it nobody can say where the next one starts.

use super::call::{Call, Failure, Reply, Request};
use super::document::{ChangeDocument, ManagerStatus, SocketStatus, Status, WatcherStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;

/// Longest message of a client, in bytes, without its NUL.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Longest message of a manager that a client takes, in bytes, without its NUL.
pub const MAX_REPLY: usize = 64 * 1024 * 1024;

/// Turns what a client sends into requests, however it is cut into pieces.
///
/// A caller that answers one request after the other reads from the client only while [`Decoder::has_room`], so at most
/// [`MAX_MESSAGE`] and one read are kept of each client.
#[derive(Debug)]
pub struct Decoder {
    frames: Frames,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder for a new connection.
    pub fn new() -> Self {
        Decoder {
            frames: Frames::new(MAX_MESSAGE),
        }
    }

    /// Takes the next bytes that came. After a [`Malformed`] they are dropped.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.frames.feed(bytes);
    }

    /// What has come of messages that are not complete.
    pub fn unread(&self) -> &[u8] {
        self.frames.unread()
    }

    /// Whether it is worth reading more before the requests that are already here have been taken.
    pub fn has_room(&self) -> bool {
        self.frames.buffered() <= MAX_MESSAGE
    }

    /// Whether a message has begun and its end has not come: an end of file now means that a part of it is lost.
    pub fn is_amid_message(&self) -> bool {
        self.frames.buffered() > 0
    }

    /// The next request. After [`Malformed`] there is never another one: say why, with [`Failure::from`], and close.
    #[allow(clippy::should_implement_trait)] // It is no iterator: after None more may come.
    pub fn next(&mut self) -> Option<Result<Request, Malformed>> {
        let request = self.frames.next(read_request)?;
        if request.is_err() {
            self.frames.poison();
        }
        Some(request)
    }
}

/// Turns what a manager sends into answers.
#[derive(Debug)]
pub struct ReplyDecoder {
    frames: Frames,
}

/// One message of a manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub reply: Result<Reply, Failure>,
    /// More answers to the same call follow.
    pub continues: bool,
}

impl Default for ReplyDecoder {
    fn default() -> Self {
        ReplyDecoder::new()
    }
}

impl ReplyDecoder {
    /// A decoder for a new connection.
    pub fn new() -> Self {
        ReplyDecoder {
            frames: Frames::new(MAX_REPLY),
        }
    }

    /// Takes the next bytes that came. After a [`Malformed`] they are dropped.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.frames.feed(bytes);
    }

    /// The next answer. After [`Malformed`] there is never another one.
    #[allow(clippy::should_implement_trait)] // It is no iterator: after None more may come.
    pub fn next(&mut self) -> Option<Result<Answer, Malformed>> {
        let answer = self.frames.next(read_answer)?;
        if answer.is_err() {
            self.frames.poison();
        }
        Some(answer)
    }
}

/// Why a message is none. The connection can't go on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It is longer than this many bytes.
    TooLong(usize),
    /// It is not UTF-8.
    NotUtf8,
    /// It is not JSON, or JSON that is nested too deeply.
    NotJson(String),
    /// It is JSON, and not the object that it should be.
    NotAMessage(String),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::TooLong(limit) => write!(f, "a message is longer than {limit} bytes"),
            Malformed::NotUtf8 => f.write_str("a message is not UTF-8"),
            Malformed::NotJson(reason) => write!(f, "a message is not JSON: {reason}"),
            Malformed::NotAMessage(reason) => write!(f, "a message is not Varlink: {reason}"),
        }
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Failure::Malformed {
            reason: malformed.to_string(),
        }
    }
}

/// Appends `reply` as one message to `out`. `continues` says that more replies to the same call follow; an error is
/// always the last one. A call with `oneway` gets no reply at all: that is the caller's to heed.
pub fn encode(reply: &Result<Reply, Failure>, continues: bool, out: &mut Vec<u8>) {
    match reply {
        Ok(Reply::Status(status)) => append(&Outgoing::reply(status, continues), out),
        Ok(Reply::Done { message: None }) => append(&Outgoing::reply(&json!({}), continues), out),
        Ok(Reply::Done {
            message: Some(message),
        }) => {
            append(
                &Outgoing::reply(&json!({ "message": message }), continues),
                out,
            );
        }
        Ok(Reply::Changes { changes, message }) => {
            let reply = Changes { changes, message };
            append(&Outgoing::reply(&reply, continues), out);
        }
        Ok(Reply::Progress {
            text,
            unit,
            done,
            wanted,
        }) => {
            let progress = json!({ "text": text, "unit": unit, "done": done, "wanted": wanted });
            append(
                &Outgoing::reply(&json!({ "progress": progress }), continues),
                out,
            );
        }
        Ok(Reply::Info {
            vendor,
            product,
            version,
            url,
            interfaces,
        }) => {
            let info = json!({
                "vendor": vendor, "product": product, "version": version, "url": url, "interfaces": interfaces,
            });
            append(&Outgoing::reply(&info, continues), out);
        }
        Ok(Reply::Description(text)) => append(
            &Outgoing::reply(&json!({ "description": text }), continues),
            out,
        ),
        Err(failure) => append(&Outgoing::error(failure.error(), &details(failure)), out),
    }
}

/// Appends `call` as one message to `out`. `more` takes progress replies, `oneway` takes none.
pub fn encode_call(call: &Call, more: bool, oneway: bool, out: &mut Vec<u8>) {
    let message = Outgoing {
        method: Some(call.method()),
        error: None,
        parameters: &call.parameters(),
        continues: false,
        more,
        oneway,
    };
    append(&message, out);
}

/// The parameters of an error. Those of our own interface carry the sentence for people as well.
fn details(failure: &Failure) -> Value {
    let message = failure.to_string();
    match failure {
        Failure::NoSuchUnit { name, nearest } => {
            json!({ "name": name, "nearest": nearest, "message": message })
        }
        Failure::IsSocket { name, watchers } => {
            json!({ "name": name, "nearest": null, "socket_of": watchers, "message": message })
        }
        Failure::Refused { reason }
        | Failure::Failed { reason }
        | Failure::Malformed { reason } => {
            json!({ "message": reason })
        }
        Failure::InvalidUnits { findings } => {
            json!({ "findings": findings, "message": message })
        }
        Failure::ShuttingDown => json!({ "message": message }),
        Failure::Superseded { by } => json!({ "by": by, "message": message }),
        Failure::InterfaceNotFound { interface } => json!({ "interface": interface }),
        Failure::MethodNotFound { method } | Failure::MethodNotImplemented { method } => {
            json!({ "method": method })
        }
        Failure::InvalidParameter { parameter } => json!({ "parameter": parameter }),
        Failure::PermissionDenied | Failure::ExpectedMore => json!({}),
    }
}

/// The parameters of [`Reply::Changes`].
#[derive(Serialize)]
struct Changes<'a> {
    changes: &'a [ChangeDocument],
    #[serde(skip_serializing_if = "Option::is_none")]
    message: &'a Option<String>,
}

/// The envelope of both directions.
#[derive(Serialize)]
struct Outgoing<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    parameters: &'a P,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    continues: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    oneway: bool,
}

impl<'a, P> Outgoing<'a, P> {
    fn reply(parameters: &'a P, continues: bool) -> Self {
        Outgoing {
            method: None,
            error: None,
            parameters,
            continues,
            more: false,
            oneway: false,
        }
    }

    fn error(error: &'static str, parameters: &'a P) -> Self {
        Outgoing {
            error: Some(error),
            ..Outgoing::reply(parameters, false)
        }
    }
}

fn append<P: Serialize>(message: &Outgoing<'_, P>, out: &mut Vec<u8>) {
    // Writing to a Vec can't fail, and neither can structs and maps whose keys are text. JSON text has no raw NUL.
    serde_json::to_writer(&mut *out, message).expect("a message of plain values is JSON");
    out.push(0);
}

/// The envelope of a call. Fields that Varlink may get later are ignored.
#[derive(Deserialize)]
struct IncomingCall {
    method: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
    #[serde(default)]
    more: Option<bool>,
    #[serde(default)]
    oneway: Option<bool>,
    #[serde(default)]
    upgrade: Option<bool>,
}

fn read_request(bytes: &[u8]) -> Result<Request, Malformed> {
    let IncomingCall {
        method,
        parameters,
        more,
        oneway,
        upgrade,
    } = read_object(bytes)?;
    let method = method.ok_or_else(|| Malformed::NotAMessage("it has no `method`".into()))?;
    let call = match upgrade {
        // The connection would be another protocol's from here on, and there is none.
        Some(true) => Err(Failure::InvalidParameter {
            parameter: "upgrade".into(),
        }),
        Some(false) | None => Call::read(&method, parameters),
    };
    let oneway = oneway.unwrap_or(false);
    Ok(Request {
        call,
        more: more.unwrap_or(false) && !oneway,
        oneway,
    })
}

/// The envelope of a reply.
#[derive(Deserialize)]
struct IncomingReply {
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(default)]
    continues: Option<bool>,
    #[serde(default)]
    error: Option<String>,
}

/// The fields of all replies and errors: which of them are there tells the reply.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    manager: Option<ManagerStatus>,
    sockets: Option<Vec<SocketStatus>>,
    watchers: Option<Vec<WatcherStatus>>,
    changes: Option<Vec<ChangeDocument>>,
    findings: Option<Vec<String>>,
    message: Option<String>,
    progress: Option<Progress>,
    vendor: Option<String>,
    product: Option<String>,
    version: Option<String>,
    url: Option<String>,
    interfaces: Option<Vec<String>>,
    description: Option<String>,
    name: Option<String>,
    nearest: Option<String>,
    socket_of: Option<Vec<String>>,
    by: Option<String>,
    interface: Option<String>,
    method: Option<String>,
    parameter: Option<String>,
}

#[derive(Deserialize)]
struct Progress {
    text: String,
    unit: String,
    done: u32,
    wanted: u32,
}

fn read_answer(bytes: &[u8]) -> Result<Answer, Malformed> {
    let IncomingReply {
        parameters,
        continues,
        error,
    } = read_object(bytes)?;
    let parameters = parameters.unwrap_or_default();
    match error {
        Some(error) => Ok(Answer {
            reply: Err(parameters.into_failure(&error)),
            continues: false,
        }),
        None => Ok(Answer {
            reply: Ok(parameters.into_reply()?),
            continues: continues.unwrap_or(false),
        }),
    }
}

impl Parameters {
    fn into_reply(self) -> Result<Reply, Malformed> {
        if let Some(manager) = self.manager {
            let (Some(sockets), Some(watchers)) = (self.sockets, self.watchers) else {
                return Err(Malformed::NotAMessage(
                    "a status without `sockets` or `watchers`".into(),
                ));
            };
            return Ok(Reply::Status(Box::new(Status {
                manager,
                sockets,
                watchers,
            })));
        }
        if let Some(Progress {
            text,
            unit,
            done,
            wanted,
        }) = self.progress
        {
            return Ok(Reply::Progress {
                text,
                unit,
                done,
                wanted,
            });
        }
        if let Some(changes) = self.changes {
            let message = self.message;
            return Ok(Reply::Changes { changes, message });
        }
        if let Some(description) = self.description {
            return Ok(Reply::Description(description));
        }
        if let Some(interfaces) = self.interfaces {
            return Ok(Reply::Info {
                vendor: self.vendor.unwrap_or_default(),
                product: self.product.unwrap_or_default(),
                version: self.version.unwrap_or_default(),
                url: self.url.unwrap_or_default(),
                interfaces,
            });
        }
        Ok(Reply::Done {
            message: self.message,
        })
    }

    /// An error that this version does not know is a [`Failure::Failed`] that gives its name or its message.
    fn into_failure(self, error: &str) -> Failure {
        let named = |value: Option<String>| value.unwrap_or_default();
        let reason = |message: Option<String>| {
            message.unwrap_or_else(|| format!("the manager answered `{error}`"))
        };
        match error {
            "io.tentpole.Manager.NoSuchUnit" => match self.socket_of {
                Some(watchers) => Failure::IsSocket {
                    name: named(self.name),
                    watchers,
                },
                None => Failure::NoSuchUnit {
                    name: named(self.name),
                    nearest: self.nearest,
                },
            },
            "io.tentpole.Manager.Refused" => Failure::Refused {
                reason: reason(self.message),
            },
            "io.tentpole.Manager.InvalidUnits" => Failure::InvalidUnits {
                findings: self.findings.unwrap_or_default(),
            },
            "io.tentpole.Manager.ShuttingDown" => Failure::ShuttingDown,
            "io.tentpole.Manager.Superseded" => Failure::Superseded { by: named(self.by) },
            "io.tentpole.Manager.Malformed" => Failure::Malformed {
                reason: reason(self.message),
            },
            "org.varlink.service.PermissionDenied" => Failure::PermissionDenied,
            "org.varlink.service.InterfaceNotFound" => Failure::InterfaceNotFound {
                interface: named(self.interface),
            },
            "org.varlink.service.MethodNotFound" => Failure::MethodNotFound {
                method: named(self.method),
            },
            "org.varlink.service.MethodNotImplemented" => Failure::MethodNotImplemented {
                method: named(self.method),
            },
            "org.varlink.service.InvalidParameter" => Failure::InvalidParameter {
                parameter: named(self.parameter),
            },
            "org.varlink.service.ExpectedMore" => Failure::ExpectedMore,
            _ => Failure::Failed {
                reason: reason(self.message),
            },
        }
    }
}

fn read_object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8)?;
    // serde would read a struct from an array as well.
    if text.trim_ascii_start().starts_with('[') {
        return Err(Malformed::NotAMessage(
            "it is an array, not an object".into(),
        ));
    }
    // By the reader that records are read with, so that there is one.
    serde_json::from_slice(bytes).map_err(|error| {
        if error.is_data() {
            Malformed::NotAMessage(error.to_string())
        } else {
            Malformed::NotJson(error.to_string())
        }
    })
}

/// Cuts a stream at its NUL bytes. Each byte is looked for a NUL once, and moved a bounded number of times.
#[derive(Debug)]
struct Frames {
    buffer: Vec<u8>,
    /// Where the next message starts.
    start: usize,
    /// Up to here there is no NUL from `start` on.
    scanned: usize,
    limit: usize,
    poisoned: bool,
}

impl Frames {
    /// An idle connection keeps no more memory than this.
    const KEPT: usize = 4096;

    fn new(limit: usize) -> Self {
        Frames {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            limit,
            poisoned: false,
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        if self.poisoned {
            return;
        }
        // Only when at least half is behind us, so that what is moved was paid for by what was consumed.
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Hands the next whole message to `read`.
    fn next<T>(
        &mut self,
        read: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Option<Result<T, Malformed>> {
        if self.poisoned {
            return None;
        }
        let end = self.buffer[self.scanned..]
            .iter()
            .position(|byte| *byte == 0);
        let Some(end) = end.map(|offset| self.scanned + offset) else {
            self.scanned = self.buffer.len();
            return (self.buffered() > self.limit).then_some(Err(Malformed::TooLong(self.limit)));
        };
        if end - self.start > self.limit {
            return Some(Err(Malformed::TooLong(self.limit)));
        }
        let message = read(&self.buffer[self.start..end]);
        self.start = end + 1;
        self.scanned = self.start;
        if self.start == self.buffer.len() {
            self.start = 0;
            self.scanned = 0;
            self.buffer.clear();
            if self.buffer.capacity() > Self::KEPT {
                self.buffer = Vec::new();
            }
        }
        Some(message)
    }

    /// Gives up: nothing is kept from here on.
    fn poison(&mut self) {
        *self = Frames {
            poisoned: true,
            ..Frames::new(self.limit)
        };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::call::{Amount, INTERFACE};
    use super::super::document::{
        Action, SocketState, Timestamp, WatcherState, WorkerState, WorkerStatus, example,
    };
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    fn requests(bytes: &[u8]) -> Vec<Result<Request, Malformed>> {
        let mut decoder = Decoder::new();
        decoder.feed(bytes);
        std::iter::from_fn(|| decoder.next()).collect()
    }

    #[track_caller]
    fn malformed(message: &str) -> Malformed {
        let mut bytes = message.as_bytes().to_vec();
        bytes.push(0);
        match requests(&bytes).as_slice() {
            [Err(malformed)] => malformed.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_as_a_foreign_client_writes_it_is_read() {
        let text = b" {\"method\" : \"io.tentpole.Manager.Status\", \"parameters\":{},\"vendor.extension\":1}\n\0";
        assert_eq!(
            requests(text),
            [Ok(Request {
                call: Ok(Call::Status { names: vec![] }),
                more: false,
                oneway: false
            })]
        );
    }

    #[test]
    fn pipelined_calls_come_out_in_order() {
        let mut bytes = Vec::new();
        for wait in [true, false, true] {
            encode_call(&Call::Shutdown { wait }, wait, false, &mut bytes);
        }
        let calls: Vec<_> = requests(&bytes)
            .into_iter()
            .map(|request| request.unwrap())
            .collect();
        let wants: Vec<_> = [true, false, true]
            .map(|wait| Request {
                call: Ok(Call::Shutdown { wait }),
                more: wait,
                oneway: false,
            })
            .into();
        assert_eq!(calls, wants);
    }

    #[test]
    fn a_call_that_wants_no_reply_never_wants_several() {
        let text = br#"{"method":"org.varlink.service.GetInfo","oneway":true,"more":true}"#;
        let request = requests(&[text.as_slice(), b"\0"].concat())
            .remove(0)
            .unwrap();
        assert_eq!((request.more, request.oneway), (false, true));
    }

    #[test]
    fn an_upgrade_to_another_protocol_is_refused() {
        let text = br#"{"method":"org.varlink.service.GetInfo","upgrade":true}"#;
        let request = requests(&[text.as_slice(), b"\0"].concat())
            .remove(0)
            .unwrap();
        assert_eq!(
            request.call,
            Err(Failure::InvalidParameter {
                parameter: "upgrade".into()
            })
        );
    }

    #[test]
    fn what_is_no_message_says_what_it_is() {
        assert!(matches!(malformed(""), Malformed::NotJson(_)));
        assert!(matches!(
            malformed("GET / HTTP/1.1\r\n"),
            Malformed::NotJson(_)
        ));
        assert!(matches!(
            malformed(r#"{"method":"a.b""#),
            Malformed::NotJson(_)
        ));
        assert!(matches!(
            malformed(r#"{"method":"a.b"} {}"#),
            Malformed::NotJson(_)
        ));
        for text in [
            "{}",
            "7",
            r#""text""#,
            "null",
            r#"{"method":null}"#,
            r#"{"method":7}"#,
            r#"{"parameters":{}}"#,
            r#"["io.tentpole.Manager.Status"]"#,
            r#" ["io.tentpole.Manager.Status", {}]"#,
            r#"{"method":"a.b","more":"yes"}"#,
            r#"{"method":"a.b","method":"a.c"}"#,
        ] {
            assert!(
                matches!(malformed(text), Malformed::NotAMessage(_)),
                "{text}"
            );
        }
        assert_eq!(
            requests(b"{\"method\":\"\xff.b\"}\0"),
            [Err(Malformed::NotUtf8)]
        );
    }

    #[test]
    fn deeply_nested_json_is_refused_without_a_stack_overflow() {
        let depth = MAX_MESSAGE / 2 - 100;
        let text = format!(
            r#"{{"method":"a.b","parameters":{}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        );
        assert!(text.len() <= MAX_MESSAGE);
        let Malformed::NotJson(reason) = malformed(&text) else {
            panic!("it was read");
        };
        assert!(reason.contains("recursion"), "{reason}");
    }

    #[test]
    fn nothing_comes_after_a_malformed_message() {
        let mut decoder = Decoder::new();
        decoder.feed(b"nonsense\0");
        encode_call(&Call::GetInfo, false, false, &mut decoder.frames.buffer);
        assert!(matches!(decoder.next(), Some(Err(Malformed::NotJson(_)))));
        decoder.feed(b"{\"method\":\"org.varlink.service.GetInfo\"}\0");
        assert_eq!(decoder.next(), None);
        assert_eq!(decoder.frames.buffer.capacity(), 0);
    }

    #[test]
    fn a_message_may_be_as_long_as_the_limit_and_not_longer() {
        let message = |length: usize| {
            let head = r#"{"method":"io.tentpole.Manager.Status","pad":""#;
            let mut text =
                format!("{head}{}\"}}", "x".repeat(length - head.len() - 2)).into_bytes();
            assert_eq!(text.len(), length);
            text.push(0);
            text
        };
        assert!(matches!(
            requests(&message(MAX_MESSAGE)).as_slice(),
            [Ok(_)]
        ));
        let too_long = [Err(Malformed::TooLong(MAX_MESSAGE))];
        assert_eq!(requests(&message(MAX_MESSAGE + 1)), too_long);
        // The same without its end: it must not be waited for.
        assert_eq!(
            requests(&message(MAX_MESSAGE + 1)[..=MAX_MESSAGE]),
            too_long
        );
        assert_eq!(requests(&message(MAX_MESSAGE + 1)[..MAX_MESSAGE]), []);
    }

    #[test]
    fn a_flood_without_an_end_is_looked_at_once() {
        let mut decoder = Decoder::new();
        for fed in 1..=MAX_MESSAGE {
            decoder.feed(b"x");
            assert!(decoder.has_room());
            assert_eq!(decoder.next(), None);
            assert_eq!(decoder.frames.scanned, fed);
        }
        decoder.feed(b"x");
        assert!(!decoder.has_room());
        assert_eq!(decoder.next(), Some(Err(Malformed::TooLong(MAX_MESSAGE))));
    }

    #[test]
    fn calls_that_pile_up_are_moved_only_when_half_are_taken() {
        let mut call = Vec::new();
        encode_call(&Call::GetInfo, false, false, &mut call);
        let mut decoder = Decoder::new();
        decoder.feed(&call.repeat(100));
        decoder.next().unwrap().unwrap();
        decoder.feed(&call);
        assert_eq!(
            decoder.frames.start,
            call.len(),
            "one of a hundred was moved for"
        );
        for _ in 0..60 {
            decoder.next().unwrap().unwrap();
        }
        decoder.feed(&call);
        assert_eq!(decoder.frames.start, 0);
        assert_eq!(std::iter::from_fn(|| decoder.next()).count(), 41);
    }

    #[test]
    fn an_idle_connection_keeps_no_large_buffer() {
        let mut decoder = Decoder::new();
        let name = "x".repeat(MAX_MESSAGE / 2);
        let mut bytes = Vec::new();
        encode_call(
            &Call::Status { names: vec![name] },
            false,
            false,
            &mut bytes,
        );
        decoder.feed(&bytes);
        assert!(decoder.is_amid_message());
        assert!(decoder.next().unwrap().is_ok());
        assert!(!decoder.is_amid_message());
        assert!(decoder.frames.buffer.capacity() <= Frames::KEPT);
    }

    #[test]
    fn replies_look_as_varlink_wants_them() {
        let text = |reply: Result<Reply, Failure>, continues| {
            let mut out = Vec::new();
            encode(&reply, continues, &mut out);
            assert_eq!(out.pop(), Some(0));
            String::from_utf8(out).unwrap()
        };
        let progress = Reply::Progress {
            text: "1 of 2".into(),
            unit: "web".into(),
            done: 1,
            wanted: 2,
        };
        assert_eq!(
            text(Ok(Reply::Done { message: None }), false),
            r#"{"parameters":{}}"#
        );
        assert_eq!(
            text(Ok(progress), true),
            r#"{"parameters":{"progress":{"done":1,"text":"1 of 2","unit":"web","wanted":2}},"continues":true}"#
        );
        assert_eq!(
            text(
                Err(Failure::NoSuchUnit {
                    name: "wev".into(),
                    nearest: Some("web".into())
                }),
                true
            ),
            concat!(
                r#"{"error":"io.tentpole.Manager.NoSuchUnit","#,
                r#""parameters":{"message":"no such unit `wev`; did you mean `web`?","name":"wev","nearest":"web"}}"#
            )
        );
        let changes = |message: Option<&str>| Reply::Changes {
            changes: vec![ChangeDocument {
                unit: "watcher.web".into(),
                action: Action::Reload,
                keys: vec!["cmd".into()],
            }],
            message: message.map(str::to_owned),
        };
        assert_eq!(
            text(Ok(changes(None)), false),
            r#"{"parameters":{"changes":[{"unit":"watcher.web","action":"reload","keys":["cmd"]}]}}"#
        );
        assert!(
            text(Ok(changes(Some("so it is"))), false).ends_with(r#"],"message":"so it is"}}"#)
        );
        let wrong = text(
            Err(Failure::invalid_units(["t.toml:1:1: no".into()])),
            false,
        );
        assert!(
            wrong.starts_with(
                r#"{"error":"io.tentpole.Manager.InvalidUnits","parameters":{"findings":["t.toml:1:1: no"],"message":"the unit"#
            ),
            "{wrong}"
        );
        assert!(
            text(Ok(Reply::Status(Box::new(example()))), false)
                .starts_with(r#"{"parameters":{"manager":{"pid":1,"#)
        );
    }

    #[test]
    fn an_error_of_a_newer_manager_is_a_failure_with_its_message() {
        let answer = |text: &str| {
            let mut decoder = ReplyDecoder::new();
            decoder.feed(text.as_bytes());
            decoder.feed(b"\0");
            decoder
                .next()
                .unwrap()
                .unwrap()
                .reply
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            answer(
                r#"{"error":"io.tentpole.Manager.Tired","parameters":{"message":"come back later"}}"#
            ),
            "come back later"
        );
        assert_eq!(
            answer(r#"{"error":"io.tentpole.Manager.Tired"}"#),
            "the manager answered `io.tentpole.Manager.Tired`"
        );
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just("web".to_owned()), any::<String>()]
    }

    /// A status with random text in it; what is not text is covered by the document's own tests.
    fn status() -> impl Strategy<Value = Status> {
        (
            text(),
            text(),
            option::of(text()),
            option::of(text()),
            any::<u32>(),
            any::<bool>(),
        )
            .prop_map(|(name, address, error, said, number, odd)| {
                let mut status = example();
                status.sockets[0].name = name.clone();
                status.sockets[0].address = address;
                status.sockets[0].error = error.clone();
                status.sockets[0].queue = odd.then_some(number);
                status.sockets[0].state = if odd {
                    SocketState::Paused
                } else {
                    SocketState::Armed
                };
                status.watchers[0].name = name;
                status.watchers[0].error = error;
                status.watchers[0].restarts = u64::from(number) << 20;
                status.watchers[0].waits_for = said.iter().cloned().collect();
                status.watchers[0].state = if odd {
                    WatcherState::Backoff
                } else {
                    WatcherState::Waiting
                };
                status.watchers[0].workers.push(WorkerStatus {
                    wid: number,
                    pid: odd.then_some(number),
                    state: if odd {
                        WorkerState::Reloading
                    } else {
                        WorkerState::Stopping
                    },
                    since: Timestamp::from(
                        SystemTime::UNIX_EPOCH + Duration::from_secs(number.into()),
                    ),
                    status: said,
                    generation: number.into(),
                });
                status
            })
    }

    pub(in super::super) fn calls() -> impl Strategy<Value = Call> {
        let which = || {
            prop_oneof![
                vec(text(), 1..4).prop_map(|names| (names, false)),
                Just((Vec::new(), true))
            ]
        };
        let amount = prop_oneof![
            any::<u32>().prop_map(Amount::To),
            any::<i32>().prop_map(Amount::By)
        ];
        prop_oneof![
            vec(text(), 0..4).prop_map(|names| Call::Status { names }),
            (which(), any::<bool>()).prop_map(|((names, all), wait)| Call::Start {
                names,
                all,
                wait
            }),
            (which(), any::<bool>()).prop_map(|((names, all), wait)| Call::Stop {
                names,
                all,
                wait
            }),
            (which(), any::<bool>()).prop_map(|((names, all), wait)| Call::Restart {
                names,
                all,
                wait
            }),
            (text(), amount, any::<bool>()).prop_map(|(name, to, wait)| Call::Scale {
                name,
                to,
                wait
            }),
            (text(), text(), option::of(1u32..), any::<bool>()).prop_map(
                |(name, signal, wid, children)| {
                    Call::Signal {
                        name,
                        signal,
                        wid,
                        children,
                    }
                }
            ),
            (which(), any::<bool>()).prop_map(|((names, all), wait)| Call::Reload {
                names,
                all,
                wait
            }),
            (any::<bool>(), any::<bool>())
                .prop_map(|(dry_run, wait)| Call::Apply { dry_run, wait }),
            Just(Call::Plan),
            any::<bool>().prop_map(|wait| Call::Upgrade { wait }),
            any::<bool>().prop_map(|wait| Call::Shutdown { wait }),
            Just(Call::GetInfo),
            text().prop_map(|interface| Call::GetInterfaceDescription { interface }),
        ]
    }

    fn change() -> impl Strategy<Value = ChangeDocument> {
        use Action as A;
        let actions = [A::Add, A::Remove, A::Scale, A::Reload, A::Rebind, A::Set];
        let action = proptest::sample::select(actions.to_vec());
        (text(), action, vec(text(), 0..4)).prop_map(|(unit, action, keys)| ChangeDocument {
            unit,
            action,
            keys,
        })
    }

    pub(in super::super) fn replies() -> impl Strategy<Value = Result<Reply, Failure>> {
        let good = prop_oneof![
            status().prop_map(|status| Reply::Status(Box::new(status))),
            option::of(text()).prop_map(|message| Reply::Done { message }),
            (vec(change(), 0..4), option::of(text()))
                .prop_map(|(changes, message)| Reply::Changes { changes, message }),
            (text(), text(), any::<u32>(), any::<u32>()).prop_map(|(text, unit, done, wanted)| {
                Reply::Progress {
                    text,
                    unit,
                    done,
                    wanted,
                }
            }),
            Just(Reply::info()),
            text().prop_map(Reply::Description),
        ];
        let bad = prop_oneof![
            (text(), option::of(text()))
                .prop_map(|(name, nearest)| Failure::NoSuchUnit { name, nearest }),
            (text(), vec(text(), 0..4))
                .prop_map(|(name, watchers)| Failure::IsSocket { name, watchers }),
            text().prop_map(|reason| Failure::Refused { reason }),
            text().prop_map(|reason| Failure::Failed { reason }),
            vec(text(), 0..4).prop_map(Failure::invalid_units),
            Just(Failure::ShuttingDown),
            text().prop_map(|by| Failure::Superseded { by }),
            text().prop_map(|reason| Failure::Malformed { reason }),
            Just(Failure::PermissionDenied),
            text().prop_map(|interface| Failure::InterfaceNotFound { interface }),
            text().prop_map(|method| Failure::MethodNotFound { method }),
            text().prop_map(|method| Failure::MethodNotImplemented { method }),
            text().prop_map(|parameter| Failure::InvalidParameter { parameter }),
            Just(Failure::ExpectedMore),
        ];
        prop_oneof![good.prop_map(Ok), bad.prop_map(Err)]
    }

    /// Bytes that look like messages often enough to get past the first check.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            vec(any::<u8>(), 0..20),
            Just(b"\0".to_vec()),
            Just(b"{\"method\":\"".to_vec()),
            Just(format!("{INTERFACE}.Scale").into_bytes()),
            Just(b"\",\"parameters\":{".to_vec()),
            Just(b"\"name\":\"x\",\"by\":-1".to_vec()),
            Just(b"\"manager\":null,\"message\":\"".to_vec()),
            Just(b"}}\0".to_vec()),
        ];
        vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_never_gives_two_errors(chunks in vec(noise(), 0..6)) {
            let mut server = Decoder::new();
            let mut client = ReplyDecoder::new();
            let (mut bad_calls, mut bad_answers) = (0, 0);
            for chunk in chunks {
                server.feed(&chunk);
                client.feed(&chunk);
                while let Some(request) = server.next() {
                    prop_assert_eq!(bad_calls, 0);
                    bad_calls += usize::from(request.is_err());
                }
                while let Some(answer) = client.next() {
                    prop_assert_eq!(bad_answers, 0);
                    bad_answers += usize::from(answer.is_err());
                }
            }
        }

        #[test]
        fn a_call_is_read_as_it_was_written(sent in vec((calls(), any::<bool>(), any::<bool>()), 1..5), cut in 1usize..50) {
            let mut bytes = Vec::new();
            for (call, more, oneway) in &sent {
                encode_call(call, *more, *oneway, &mut bytes);
            }
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                got.extend(std::iter::from_fn(|| decoder.next()));
            }
            let want: Vec<_> = sent
                .into_iter()
                .map(|(call, more, oneway)| Ok(Request { call: Ok(call), more: more && !oneway, oneway }))
                .collect();
            prop_assert_eq!(got, want);
            prop_assert!(!decoder.is_amid_message());
        }

        #[test]
        fn an_answer_is_read_as_it_was_written(sent in vec((replies(), any::<bool>()), 1..5), cut in 1usize..50) {
            let mut bytes = Vec::new();
            for (reply, continues) in &sent {
                encode(reply, *continues, &mut bytes);
            }
            let mut decoder = ReplyDecoder::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                got.extend(std::iter::from_fn(|| decoder.next()));
            }
            let want: Vec<_> = sent
                .into_iter()
                .map(|(reply, continues)| Ok(Answer { continues: continues && reply.is_ok(), reply }))
                .collect();
            prop_assert_eq!(got, want);
        }
    }
}
