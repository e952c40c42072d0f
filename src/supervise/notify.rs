//! What a worker may tell the manager: the datagrams of sd_notify(3).

use std::time::Duration;

/// Longest datagram that is looked at, as in systemd (PIPE_BUF).
pub const MAX_DATAGRAM: usize = 4096;

/// One datagram, taken apart. Tags that are not known are ignored, as the protocol asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `READY=1`.
    pub ready: bool,
    /// `RELOADING=1`.
    pub reloading: bool,
    /// `STOPPING=1`.
    pub stopping: bool,
    /// `STATUS=`; the empty text clears it, and so does one that is not UTF-8.
    pub status: Option<String>,
    /// `ERRNO=`.
    pub errno: Option<i32>,
    /// `MAINPID=`, as the sender claims it.
    pub main_pid: Option<i32>,
    /// `EXTEND_TIMEOUT_USEC=`.
    pub extend_timeout: Option<Duration>,
    /// `WATCHDOG=1` or `WATCHDOG=trigger`.
    pub watchdog: Option<Watchdog>,
    /// `WATCHDOG_USEC=`.
    pub watchdog_interval: Option<Duration>,
    /// `BARRIER=1`: the sender waits until the fd that came along is closed.
    pub barrier: bool,
    /// `FDSTORE=1`.
    pub fd_store: bool,
}

/// What `WATCHDOG=` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// The worker is alive.
    Alive,
    /// The worker asks to be treated as if the watchdog had run out.
    Trigger,
}

/// Why a datagram is dropped whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Longer than [`MAX_DATAGRAM`].
    TooLong,
    /// A NUL byte before its end.
    EmbeddedNul,
}

/// Takes a datagram apart, by the rules that systemd's manager applies to its own.
pub fn parse(datagram: &[u8]) -> Result<Message, Reject> {
    if datagram.len() > MAX_DATAGRAM {
        return Err(Reject::TooLong);
    }
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        return Err(Reject::EmbeddedNul);
    }
    let mut message = Message::default();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        apply(&mut message, &line[..equals], &line[equals + 1..]);
    }
    if message.barrier {
        // A barrier stands alone: systemd processes nothing else in such a message.
        return Ok(Message {
            barrier: true,
            ..Message::default()
        });
    }
    Ok(message)
}

fn apply(message: &mut Message, tag: &[u8], value: &[u8]) {
    match tag {
        b"READY" => message.ready |= value == b"1",
        b"RELOADING" => message.reloading |= value == b"1",
        b"STOPPING" => message.stopping |= value == b"1",
        b"STATUS" => message.status = Some(std::str::from_utf8(value).unwrap_or("").to_owned()),
        b"ERRNO" => message.errno = number(value).filter(|errno| *errno > 0).or(message.errno),
        b"MAINPID" => message.main_pid = number(value).or(message.main_pid),
        b"EXTEND_TIMEOUT_USEC" => {
            message.extend_timeout = microseconds(value).or(message.extend_timeout)
        }
        b"WATCHDOG" if value == b"1" => message.watchdog = Some(Watchdog::Alive),
        b"WATCHDOG" if value == b"trigger" => message.watchdog = Some(Watchdog::Trigger),
        b"WATCHDOG_USEC" => {
            message.watchdog_interval = microseconds(value).or(message.watchdog_interval)
        }
        b"BARRIER" => message.barrier |= value == b"1",
        b"FDSTORE" => message.fd_store |= value == b"1",
        _ => {}
    }
}

fn number(value: &[u8]) -> Option<i32> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Zero and what overflows are no time to wait for.
fn microseconds(value: &[u8]) -> Option<Duration> {
    let number: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number > 0).then(|| Duration::from_micros(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_tag_is_read() {
        let message = parse(
            b"READY=1\nSTATUS=up\nERRNO=2\nMAINPID=42\nEXTEND_TIMEOUT_USEC=1500000\nWATCHDOG=1\nWATCHDOG_USEC=5\nX=y\0",
        )
        .expect("is well formed");
        assert!(message.ready);
        assert_eq!(message.status.as_deref(), Some("up"));
        assert_eq!(message.errno, Some(2));
        assert_eq!(message.main_pid, Some(42));
        assert_eq!(message.extend_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(message.watchdog, Some(Watchdog::Alive));
        assert_eq!(message.watchdog_interval, Some(Duration::from_micros(5)));
    }

    #[test]
    fn a_status_that_is_not_utf8_clears_the_text() {
        assert_eq!(
            parse(b"STATUS=\xff")
                .expect("is well formed")
                .status
                .as_deref(),
            Some("")
        );
    }

    #[test]
    fn a_barrier_stands_alone() {
        let message = parse(b"READY=1\nBARRIER=1").expect("is well formed");
        assert!(message.barrier && !message.ready);
    }

    #[test]
    fn long_datagrams_and_embedded_nuls_are_dropped_whole() {
        assert_eq!(parse(&[b'a'; MAX_DATAGRAM + 1]), Err(Reject::TooLong));
        assert_eq!(parse(b"READY=1\0\nSTATUS=x"), Err(Reject::EmbeddedNul));
    }

    #[test]
    fn a_bad_value_leaves_what_stood_there() {
        let message = parse(b"ERRNO=5\nERRNO=x\nMAINPID=\nREADY=yes\nEXTEND_TIMEOUT_USEC=-1")
            .expect("is well formed");
        assert_eq!(
            message,
            Message {
                errno: Some(5),
                ..Message::default()
            }
        );
    }

    proptest! {
        #[test]
        fn no_datagram_panics(datagram in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = parse(&datagram);
        }
    }
}
