//! What the keeper and a manager say to each other: messages on a socket that keeps them whole.
//!
//! Byte 0 is the version of the sender's protocol, byte 1 the kind of the message, the rest belongs to the kind.
//! Numbers are little-endian; a list of names is their count in one byte, then each as its length in one byte and its bytes. The two need not be of one release (the
//! manager may have been upgraded, the keeper is as old as the service), so these rules hold for all time: the layout of
//! a kind never changes, though more may be appended to it; a new meaning is a new kind; and who receives a kind that it
//! does not know, or a message that makes no sense, ignores it.

use crate::sys::process::{Exit, Pid};
use crate::unit::{LogFormat, LogLevel};

/// The version of this protocol.
pub const VERSION: u8 = 1;

/// The longest name of a descriptor that is held, in bytes.
pub const LONGEST_NAME: usize = 100;

/// The most descriptors of one message. The kernel allows 253; more than some ten save little.
pub const MOST_AT_ONCE: usize = 64;

/// The longest text for the manager's parent, in bytes: that of sd_notify(3) with systemd.
pub const LONGEST_TEXT: usize = 4096;

/// The longest message, in bytes.
pub const LONGEST: usize = 2 + 8 + 1 + MOST_AT_ONCE * (1 + LONGEST_NAME);

/// From the manager to the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToKeeper<'a> {
    /// A new manager is there, and wants all that is held.
    Hello,
    /// It has received one part of that, and wants the next.
    More,
    /// It has taken over: signals reach it, its exit code counts, and it wants to know of exits.
    Adopted,
    /// The descriptors that come along are to be held by these names, in order, in place of any that were before.
    Hold(Vec<&'a str>),
    /// What is held by these names is to be closed.
    Release(Vec<&'a str>),
    /// To be said to the manager's parent, which listens to the process that it has started.
    Tell(&'a [u8]),
    /// What was told of this process was acted on: its number may be used again.
    Reap(Pid),
    /// It has read this signal, and is about to act on it.
    Heard(i32),
    /// What is logged from now on, and how.
    Log(LogLevel, LogFormat),
}

/// From the keeper to the manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromKeeper<'a> {
    /// The descriptors that come along are held by these names.
    Held {
        /// How many are to come in further parts.
        left: u32,
        /// The last signal to stop that an earlier manager has heard, if any: it may have had no time to act on it.
        stop: Option<i32>,
        /// The names, in the order of the descriptors.
        names: Vec<&'a str>,
    },
    /// A child of the keeper has ended, and stays a zombie until the answer [`ToKeeper::Reap`].
    Exited {
        /// Its number.
        pid: Pid,
        /// Its process group, if that could be told.
        group: Option<Pid>,
        /// How.
        exit: Exit,
    },
}

const HELLO: u8 = 1;
const MORE: u8 = 2;
const ADOPTED: u8 = 3;
const HOLD: u8 = 4;
const RELEASE: u8 = 5;
const TELL: u8 = 6;
const REAP: u8 = 7;
const HEARD: u8 = 8;
const LOG: u8 = 9;

/// A level is its place in here.
const LEVELS: [LogLevel; 5] = [
    LogLevel::Error,
    LogLevel::Warn,
    LogLevel::Info,
    LogLevel::Debug,
    LogLevel::Trace,
];

/// And so is a format.
const FORMATS: [LogFormat; 2] = [LogFormat::Text, LogFormat::Json];

const HELD: u8 = 1;
const EXITED: u8 = 2;

/// Where `one` stands in a list that holds all there are.
fn place<T: PartialEq>(all: &[T], one: &T) -> u8 {
    let place = all.iter().position(|other| other == one);
    place.unwrap_or(0) as u8
}

impl<'a> ToKeeper<'a> {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToKeeper::Hello => message(HELLO),
            ToKeeper::More => message(MORE),
            ToKeeper::Adopted => message(ADOPTED),
            ToKeeper::Hold(names) => with_names(message(HOLD), names),
            ToKeeper::Release(names) => with_names(message(RELEASE), names),
            ToKeeper::Tell(text) => {
                let mut bytes = message(TELL);
                bytes.extend_from_slice(text);
                bytes
            }
            ToKeeper::Reap(pid) => with_number(REAP, pid.as_raw()),
            ToKeeper::Heard(signal) => with_number(HEARD, *signal),
            ToKeeper::Log(level, format) => {
                let mut bytes = message(LOG);
                bytes.push(place(&LEVELS, level));
                bytes.push(place(&FORMATS, format));
                bytes
            }
        }
    }

    /// `None` for what is unknown or makes no sense.
    pub fn decode(bytes: &'a [u8]) -> Option<ToKeeper<'a>> {
        let (kind, mut rest) = opened(bytes)?;
        Some(match kind {
            HELLO => ToKeeper::Hello,
            MORE => ToKeeper::More,
            ADOPTED => ToKeeper::Adopted,
            HOLD => ToKeeper::Hold(names(rest)?),
            RELEASE => ToKeeper::Release(names(rest)?),
            TELL => ToKeeper::Tell(Some(rest).filter(|text| text.len() <= LONGEST_TEXT)?),
            REAP => ToKeeper::Reap(Pid::new(number(&mut rest)?)?),
            HEARD => ToKeeper::Heard(number(&mut rest)?),
            LOG => ToKeeper::Log(
                *LEVELS.get(usize::from(*rest.first()?))?,
                *FORMATS.get(usize::from(*rest.get(1)?))?,
            ),
            _ => return None,
        })
    }
}

impl<'a> FromKeeper<'a> {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            FromKeeper::Held { left, stop, names } => {
                let mut bytes = message(HELD);
                bytes.extend(left.to_le_bytes());
                bytes.extend(stop.unwrap_or(0).to_le_bytes());
                with_names(bytes, names)
            }
            FromKeeper::Exited { pid, group, exit } => {
                let mut bytes = with_number(EXITED, pid.as_raw());
                bytes.extend(group.map_or(0, Pid::as_raw).to_le_bytes());
                bytes.extend(status(*exit).to_le_bytes());
                bytes
            }
        }
    }

    /// `None` for what is unknown or makes no sense.
    pub fn decode(bytes: &'a [u8]) -> Option<FromKeeper<'a>> {
        let (kind, mut rest) = opened(bytes)?;
        match kind {
            HELD => Some(FromKeeper::Held {
                left: u32::try_from(number(&mut rest)?).ok()?,
                stop: number(&mut rest).map(|signal| Some(signal).filter(|signal| *signal > 0))?,
                names: names(rest)?,
            }),
            EXITED => Some(FromKeeper::Exited {
                pid: Pid::new(number(&mut rest)?)?,
                group: number(&mut rest).map(Pid::new)?,
                exit: exit(number(&mut rest)?),
            }),
            _ => None,
        }
    }
}

/// Whether something can be held by this name.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST_NAME
}

/// How a process ended, as wait(2) says it.
fn status(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => (code & 0xff) << 8,
        Exit::Signal { signal, core } => (signal & 0x7f) | (i32::from(core) << 7),
    }
}

fn exit(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code(status >> 8 & 0xff),
        signal => Exit::Signal {
            signal,
            core: status & 0x80 != 0,
        },
    }
}

fn message(kind: u8) -> Vec<u8> {
    vec![VERSION, kind]
}

fn with_number(kind: u8, number: i32) -> Vec<u8> {
    let mut bytes = message(kind);
    bytes.extend(number.to_le_bytes());
    bytes
}

fn opened(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let [_version, kind, rest @ ..] = bytes else {
        return None;
    };
    Some((*kind, rest))
}

fn number(bytes: &mut &[u8]) -> Option<i32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(i32::from_le_bytes(*number))
}

fn with_names(mut bytes: Vec<u8>, names: &[&str]) -> Vec<u8> {
    debug_assert!(names.len() <= MOST_AT_ONCE);
    bytes.push(names.len() as u8);
    for name in names {
        debug_assert!(is_name(name), "{name:?}");
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes
}

fn names(mut bytes: &[u8]) -> Option<Vec<&str>> {
    let (count, rest) = bytes.split_first()?;
    bytes = rest;
    let mut names = Vec::new();
    for _ in 0..*count {
        let (length, rest) = bytes.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        names.push(
            std::str::from_utf8(name)
                .ok()
                .filter(|name| is_name(name))?,
        );
        bytes = rest;
    }
    (names.len() <= MOST_AT_ONCE).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pid(number: i32) -> Pid {
        Pid::new(number).unwrap()
    }

    #[test]
    fn every_message_is_read_as_it_was_meant() {
        let longest = "n".repeat(LONGEST_NAME);
        let to = [
            ToKeeper::Hello,
            ToKeeper::More,
            ToKeeper::Adopted,
            ToKeeper::Hold(vec!["ledger", "s1.2.3", &longest]),
            ToKeeper::Hold(vec![&longest; MOST_AT_ONCE]),
            ToKeeper::Release(vec!["s1"]),
            ToKeeper::Tell(b"READY=1\n"),
            ToKeeper::Tell(&[b'x'; LONGEST_TEXT]),
            ToKeeper::Reap(pid(4242)),
            ToKeeper::Heard(15),
            ToKeeper::Log(LogLevel::Error, LogFormat::Text),
            ToKeeper::Log(LogLevel::Trace, LogFormat::Json),
        ];
        for message in to {
            let bytes = message.encode();
            assert!(bytes.len() <= LONGEST);
            assert_eq!(ToKeeper::decode(&bytes), Some(message));
        }
        let from = [
            FromKeeper::Held {
                left: 0,
                stop: None,
                names: vec![],
            },
            FromKeeper::Held {
                left: 7,
                stop: Some(15),
                names: vec![&longest; MOST_AT_ONCE],
            },
            FromKeeper::Exited {
                pid: pid(1),
                group: None,
                exit: Exit::Code(255),
            },
            FromKeeper::Exited {
                pid: pid(i32::MAX),
                group: Some(pid(9)),
                exit: Exit::Signal {
                    signal: 11,
                    core: true,
                },
            },
        ];
        for message in from {
            let bytes = message.encode();
            assert!(bytes.len() <= LONGEST);
            assert_eq!(FromKeeper::decode(&bytes), Some(message));
        }
    }

    #[test]
    fn what_a_later_version_appends_does_no_harm() {
        let mut bytes = ToKeeper::Reap(pid(7)).encode();
        bytes[0] = VERSION + 1;
        bytes.extend([1, 2, 3]);
        assert_eq!(ToKeeper::decode(&bytes), Some(ToKeeper::Reap(pid(7))));
        assert_eq!(ToKeeper::decode(&[VERSION + 1, 200, 1]), None);
        assert_eq!(FromKeeper::decode(&[VERSION + 1, 200, 1]), None);
    }

    #[test]
    fn what_makes_no_sense_is_ignored() {
        for bytes in [
            &b""[..],
            b"\x01",
            b"\x01\x04",
            b"\x01\x04\x01",
            b"\x01\x04\x01\x00",
            b"\x01\x04\x01\x05abc",
            b"\x01\x04\x01\x01\xff",
            b"\x01\x07\0\0\0\0",
            b"\x01\x09\0",
            b"\x01\x09\x05\0",
            b"\x01\x09\0\x02",
        ] {
            assert_eq!(ToKeeper::decode(bytes), None, "{bytes:?}");
        }
        let too_many = [
            &[VERSION, RELEASE, MOST_AT_ONCE as u8 + 1][..],
            &b"\x01a".repeat(MOST_AT_ONCE + 1),
        ]
        .concat();
        assert_eq!(ToKeeper::decode(&too_many), None);
        let too_long = [&[VERSION, TELL][..], &[b'x'; LONGEST_TEXT + 1]].concat();
        assert_eq!(ToKeeper::decode(&too_long), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..10) {
            let message = [&[VERSION, kind], &bytes[..]].concat();
            if let Some(read) = ToKeeper::decode(&message) {
                let bytes = read.encode();
                prop_assert_eq!(ToKeeper::decode(&bytes), Some(read));
            }
            if let Some(read) = FromKeeper::decode(&message) {
                let bytes = read.encode();
                prop_assert_eq!(FromKeeper::decode(&bytes), Some(read));
            }
        }
    }
}
