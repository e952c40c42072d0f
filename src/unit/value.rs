//! The small languages inside values: durations, sizes, signals, modes, limits.

use super::nearest::nearest;
use super::{Limit, Mode, Principal, Resource, Signal};
use std::time::Duration;

/// No duration is longer: deadlines far in the future must not overflow any clock.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The names of the units of time, and how many nanoseconds each has.
const TIME_UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("sec", 1_000_000_000),
    ("secs", 1_000_000_000),
    ("second", 1_000_000_000),
    ("seconds", 1_000_000_000),
    ("m", 60_000_000_000),
    ("min", 60_000_000_000),
    ("mins", 60_000_000_000),
    ("minute", 60_000_000_000),
    ("minutes", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("hr", 3_600_000_000_000),
    ("hour", 3_600_000_000_000),
    ("hours", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("day", 86_400_000_000_000),
    ("days", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
    ("week", 604_800_000_000_000),
    ("weeks", 604_800_000_000_000),
];

/// Reads a duration: seconds (`5`, `0.5`) or text (`250ms`, `1m30s`), at most 100 years.
///
/// The error is a sentence without its subject: "is not a duration; ...".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str =
        "write seconds such as `5` or `0.5`, or text such as `\"250ms\"` or `\"1m30s\"`";
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("is empty; {EXAMPLES}"));
    }
    if text.starts_with('-') {
        return Err("is negative; a duration is 0 or more".to_string());
    }
    let mut rest = text;
    let mut total: u128 = 0;
    let mut is_nonzero = false;
    while !rest.is_empty() {
        let whole = digits(rest);
        let after = &rest[whole.len()..];
        let fraction = after.strip_prefix('.').map_or("", digits);
        if whole.is_empty() || (after.starts_with('.') && fraction.is_empty()) {
            return Err(format!("is not a duration; {EXAMPLES}"));
        }
        let after = match fraction {
            "" => after,
            fraction => &after[1 + fraction.len()..],
        };
        let after = after.trim_start();
        let name_end = after
            .find(|c: char| c.is_ascii_digit() || c.is_whitespace())
            .unwrap_or(after.len());
        let (name, after) = after.split_at(name_end);
        let nanos = match TIME_UNITS.iter().find(|(known, _)| *known == name) {
            Some((_, nanos)) => u128::from(*nanos),
            // A number that is all of the text counts seconds.
            None if name.is_empty() && total == 0 && !is_nonzero && after.is_empty() => {
                1_000_000_000
            }
            None if name.is_empty() => {
                return Err(format!(
                    "has a number without a unit; write `{whole}s` or `{whole}ms`"
                ));
            }
            None => {
                let hint = match nearest(name, TIME_UNITS.iter().map(|(known, _)| *known)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "known are `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w`".to_string(),
                };
                return Err(format!("has the unknown unit `{}`; {hint}", clipped(name)));
            }
        };
        is_nonzero |= whole
            .bytes()
            .chain(fraction.bytes())
            .any(|digit| digit != b'0');
        // Nineteen digits of whole units fit a u128 with room to add up; more are far too long anyway.
        let amount = match whole.trim_start_matches('0') {
            "" => 0,
            digits if digits.len() > 19 => return Err(too_long()),
            digits => digits.parse::<u128>().map_err(|_| too_long())?,
        };
        // Even a week has fewer nanoseconds than these digits can tell apart.
        let fraction = &fraction[..fraction.len().min(18)];
        let part = match fraction {
            "" => 0,
            digits => {
                digits.parse::<u128>().map_err(|_| too_long())? * nanos
                    / 10u128.pow(digits.len() as u32)
            }
        };
        total = total.saturating_add(amount * nanos + part);
        if total > LONGEST.as_nanos() {
            return Err(too_long());
        }
        rest = after.trim_start();
    }
    if total == 0 && is_nonzero {
        return Err("is shorter than a nanosecond".to_string());
    }
    // Fits: LONGEST is 3.2e18 nanoseconds.
    Ok(Duration::from_nanos(total as u64))
}

/// A whole number of seconds.
pub(super) fn duration_of_seconds(seconds: u64) -> Result<Duration, String> {
    let duration = Duration::from_secs(seconds);
    match duration <= LONGEST {
        true => Ok(duration),
        false => Err(too_long()),
    }
}

/// Seconds as TOML writes a float, such as `1.5` or `2e-3`: read digit by digit, so it is exact.
pub(super) fn duration_of_float(text: &str) -> Result<Duration, String> {
    let unsigned = text.trim_start_matches(['+', '-']);
    let is_negative = text.starts_with('-');
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0');
    match significant {
        "nan" => return Err("is not a duration; `nan` is no number of seconds".to_string()),
        "" => return Ok(Duration::ZERO),
        _ if is_negative => return Err("is negative; a duration is 0 or more".to_string()),
        "inf" => return Err(too_long()),
        _ => {}
    }
    // One that is out of range is as good as the last in it.
    let exponent = match exponent.parse::<i32>() {
        Ok(exponent) => i64::from(exponent),
        Err(_) if exponent.starts_with('-') => i64::from(i32::MIN),
        Err(_) => i64::from(i32::MAX),
    };
    // How many of the digits count nanoseconds and more.
    let count = significant.len() as i64 - fraction.len() as i64 + exponent + 9;
    let count = usize::try_from(count).unwrap_or(0);
    if count > 19 {
        return Err(too_long());
    }
    let nanoseconds = format!("{significant:0<count$}");
    match nanoseconds[..count].parse::<u64>() {
        Ok(0) | Err(_) => Err("is shorter than a nanosecond".to_string()),
        Ok(nanoseconds) if u128::from(nanoseconds) > LONGEST.as_nanos() => Err(too_long()),
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
    }
}

fn too_long() -> String {
    "is longer than 100 years".to_string()
}

fn digits(text: &str) -> &str {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    &text[..end]
}

/// The signals that have names, with the first name of a number being its usual one; see signal(7).
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    #[cfg(any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "arm",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ))]
    ("STKFLT", libc::SIGSTKFLT),
];

/// The last signal number of Linux (MIPS aside).
const LAST_SIGNAL: i32 = 64;

/// Reads a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+2`, `RTMAX-1`, in any case.
///
/// The error is a sentence without its subject: "is not a signal; ...".
pub fn parse_signal(text: &str) -> Result<Signal, String> {
    let upper = text.trim().to_ascii_uppercase();
    if upper.is_empty() {
        return Err("is empty; write a signal such as `TERM`".to_string());
    }
    if upper.bytes().all(|byte| byte.is_ascii_digit()) {
        return signal_of_number(upper.parse().unwrap_or(i64::MAX));
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Ok(Signal(*number));
    }
    if let Some(signal) = parse_realtime(name) {
        return signal;
    }
    let known = SIGNALS
        .iter()
        .map(|(known, _)| *known)
        .chain(["RTMIN", "RTMAX"]);
    Err(match nearest(name, known) {
        Some(near) => format!("is not a signal; did you mean `{near}`?"),
        None => "is not a signal; write a name such as `TERM` or `HUP`, or a number".to_string(),
    })
}

/// `RTMIN`, `RTMIN+N`, `RTMAX`, `RTMAX-N`; `None` for anything else.
fn parse_realtime(name: &str) -> Option<Result<Signal, String>> {
    let (base, step) = if let Some(step) = name.strip_prefix("RTMIN") {
        (i64::from(libc::SIGRTMIN()), step)
    } else {
        (i64::from(libc::SIGRTMAX()), name.strip_prefix("RTMAX")?)
    };
    let step: i64 = match step.as_bytes() {
        [] => 0,
        [b'+' | b'-', digits @ ..]
            if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) =>
        {
            step.parse().unwrap_or(i64::from(i32::MAX))
        }
        _ => return None,
    };
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = base + step;
    Some(if (i64::from(first)..=i64::from(last)).contains(&number) {
        // In range, so it fits.
        Ok(Signal(number as i32))
    } else {
        Err(format!(
            "is no realtime signal; there are `RTMIN` to `RTMIN+{}`",
            last - first
        ))
    })
}

/// The signal of this number, 1 to 64.
pub(super) fn signal_of_number(number: i64) -> Result<Signal, String> {
    match i32::try_from(number) {
        Ok(number @ 1..=LAST_SIGNAL) => Ok(Signal(number)),
        _ => Err(format!(
            "is not a signal; numbers go from 1 to {LAST_SIGNAL}"
        )),
    }
}

/// The signal's name without `SIG`, such as `TERM` or `RTMIN+2`; its number where it has none.
pub fn signal_name(signal: Signal) -> String {
    let first = libc::SIGRTMIN();
    match SIGNALS.iter().find(|(_, number)| *number == signal.0) {
        Some((name, _)) => (*name).to_string(),
        None if signal.0 == first => "RTMIN".to_string(),
        None if (first..=libc::SIGRTMAX()).contains(&signal.0) => {
            format!("RTMIN+{}", signal.0 - first)
        }
        None => signal.0.to_string(),
    }
}

/// Reads an octal mode such as `0660` or `0o660`, at most `max`.
pub(super) fn parse_mode(text: &str, max: u32) -> Result<Mode, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit)) {
        return Err("is not octal; write it such as `\"0660\"`".to_string());
    }
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= max => Ok(Mode(mode)),
        _ => Err(format!("is too large; the most is `\"{max:04o}\"`")),
    }
}

/// The octal mode that a decimal number was probably meant to be: its own digits, or else its value.
pub(super) fn mode_meant(digits: &str, value: u64) -> u64 {
    u64::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .unwrap_or(value & 0o7777)
}

/// Reads a resource limit's number: plain, or with `K`, `M`, `G`, `T`, `P`, `E` (powers of 1024); `None` is infinity.
pub(super) fn parse_size(text: &str) -> Result<Option<u64>, String> {
    const EXAMPLES: &str = "write a number, a size such as `\"64M\"`, or `\"infinity\"`";
    let text = text.trim();
    if text == "infinity" {
        return Ok(None);
    }
    if matches!(
        text,
        "unlimited" | "inf" | "-1" | "none" | "Infinity" | "INFINITY"
    ) {
        return Err("is not a limit; write `\"infinity\"`".to_string());
    }
    let number = digits(text);
    if number.is_empty() {
        return Err(format!("is not a limit; {EXAMPLES}"));
    }
    let suffix = text[number.len()..].trim_start();
    let prefix = suffix
        .strip_suffix("iB")
        .or(suffix.strip_suffix('B'))
        .unwrap_or(suffix);
    let shift = match prefix {
        "" if !suffix.starts_with('i') => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => {
            return Err(format!(
                "has the unknown suffix `{}`; known are `K`, `M`, `G`, `T`, `P`, `E`",
                clipped(suffix)
            ));
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        // The kernel takes the largest number for infinity.
        .filter(|number| *number < u64::MAX)
        .map(Some)
        .ok_or_else(|| "is too large; write `\"infinity\"` for no limit".to_string())
}

/// Reads a limit: one size for both, or `soft:hard`.
pub(super) fn parse_limit(text: &str) -> Result<Limit, String> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    limit_of(parse_size(soft)?, parse_size(hard)?)
}

/// The limit of these two numbers, if the soft one is not above the hard one.
pub(super) fn limit_of(soft: Option<u64>, hard: Option<u64>) -> Result<Limit, String> {
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err("has a soft limit above its hard limit".to_string());
    }
    Ok(Limit { soft, hard })
}

/// The resources by name; see setrlimit(2).
pub(super) const RESOURCES: &[(&str, Resource)] = &[
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// Reads a user or group: a number, or a name that the database may have.
pub(super) fn parse_principal(text: &str) -> Result<Principal, String> {
    if text.is_empty() {
        return Err("is empty; write a name or a number".to_string());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return principal_of_number(text.parse().unwrap_or(i64::MAX));
    }
    if text.contains([':', '/', ','])
        || text.contains(char::is_whitespace)
        || text.contains(char::is_control)
    {
        return Err("is not a name; names have no blanks, `:`, `/` or `,`".to_string());
    }
    Ok(Principal::Name(text.to_string()))
}

/// The user or group of this id. The last number means "none" to the kernel.
pub(super) fn principal_of_number(number: i64) -> Result<Principal, String> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(Principal::Id(id)),
        _ => Err(format!("is not an id; ids go from 0 to {}", u32::MAX - 1)),
    }
}

/// A user's text as a message shows it: not more than a line's worth.
pub(super) fn clipped(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

/// The same as it is written in a unit file, for what has no line ends in it.
pub(super) fn in_quotes(text: &str) -> String {
    let quote = if text.contains(['"', '\\']) {
        '\''
    } else {
        '"'
    };
    format!("{quote}{}{quote}", clipped(text))
}

/// The words of `text`, as a POSIX shell splits it, or why there are none: what follows "cannot be split into words:".
pub(super) fn split_words(text: &str) -> Result<Vec<String>, String> {
    let words = shell_words::split(text).map_err(|why| why.to_string())?;
    // Behind a backslash that escapes nothing a newline is none, and changes the last word. The crate keeps the backslash.
    if text.ends_with('\\') && shell_words::split(&format!("{text}\n")).as_ref() != Ok(&words) {
        return Err("the `\\` at its end escapes nothing; write it twice, or leave it out".into());
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_text_with_units() {
        let ms = Duration::from_millis;
        for (text, wanted) in [
            ("5", ms(5000)),
            ("0", ms(0)),
            ("0.5", ms(500)),
            (" 7 ", ms(7000)),
            ("250ms", ms(250)),
            ("1m30s", ms(90_000)),
            ("1m 30s", ms(90_000)),
            ("1.5h", ms(5_400_000)),
            ("2 min", ms(120_000)),
            ("1d1w", ms(8 * 86_400_000)),
            ("3us", Duration::from_micros(3)),
            ("3\u{b5}s", Duration::from_micros(3)),
            ("0.1s", ms(100)),
            ("0s", ms(0)),
            ("36500d", LONGEST),
            ("1ns", Duration::from_nanos(1)),
            ("0.0000000001h", Duration::from_nanos(360)),
            ("00000000000000000000000000000000005", ms(5000)),
        ] {
            assert_eq!(parse_duration(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_says_why() {
        for (text, wanted) in [
            ("", "is empty"),
            ("  ", "is empty"),
            ("-1", "is negative"),
            ("-1s", "is negative"),
            (
                "soon",
                "is not a duration; write seconds such as `5` or `0.5`",
            ),
            ("1.", "is not a duration"),
            (".5", "is not a duration"),
            ("1e3", "has the unknown unit `e`"),
            ("1m30", "has a number without a unit; write `30s` or `30ms`"),
            ("5 10", "has a number without a unit; write `5s` or `5ms`"),
            ("0 1", "has a number without a unit"),
            ("5S", "has the unknown unit `S`; did you mean `s`?"),
            ("5parsecs", "has the unknown unit `parsecs`; known are"),
            ("5secnds", "did you mean `seconds`?"),
            ("inf", "is not a duration"),
            ("101years", "has the unknown unit `years`"),
            ("36501d", "is longer than 100 years"),
            (
                "99999999999999999999999999999999999999999s",
                "is longer than 100 years",
            ),
            ("9999999999999999999w", "is longer than 100 years"),
            ("0.0000000001", "is shorter than a nanosecond"),
            ("1s,2s", "has the unknown unit `s,`"),
        ] {
            let message = parse_duration(text).expect_err(text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }

    #[test]
    fn seconds_as_floats_are_exact_and_bounded() {
        for (text, nanoseconds) in [
            ("0.1", 100_000_000),
            ("+1.5", 1_500_000_000),
            ("-0.0", 0),
            ("0e9", 0),
            ("2e-3", 2_000_000),
            ("0.000000001", 1),
            ("1.0000000019", 1_000_000_001),
            ("12.5E1", 125_000_000_000),
            ("3e9", 3_000_000_000_000_000_000),
            ("0.00000000000000000000000000003e30", 30_000_000_000),
        ] {
            assert_eq!(
                duration_of_float(text),
                Ok(Duration::from_nanos(nanoseconds)),
                "{text}"
            );
        }
        for (text, wanted) in [
            ("-1.0", "is negative"),
            ("-inf", "is negative"),
            ("nan", "is no number"),
            ("-nan", "is no number"),
            ("inf", "100 years"),
            ("3.2e9", "100 years"),
            ("1e300", "100 years"),
            ("1e99999999999", "100 years"),
            ("1e-10", "a nanosecond"),
            ("1e-300", "a nanosecond"),
            ("1e-99999999999", "a nanosecond"),
        ] {
            let message = duration_of_float(text).expect_err(text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_float_is_the_number_that_it_is_read_as_elsewhere(
            whole in 0u32..4_000_000, fraction in "[0-9]{1,9}", exponent in -3i32..3,
        ) {
            let text = format!("{whole}.{fraction}e{exponent}");
            let near: f64 = text.parse().expect("a float");
            let ours = duration_of_float(&text).unwrap_or_default().as_secs_f64();
            proptest::prop_assert!((ours - near).abs() <= 2e-9 + near * 1e-12, "{text}: {ours}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("term", 15),
            (" Hup ", 1),
            ("15", 15),
            ("64", 64),
            ("KILL", 9),
            ("POLL", libc::SIGIO),
            ("RTMIN", libc::SIGRTMIN()),
            ("rtmin+2", libc::SIGRTMIN() + 2),
            ("SIGRTMAX-1", libc::SIGRTMAX() - 1),
        ] {
            assert_eq!(parse_signal(text), Ok(Signal(number)), "{text}");
        }
        for (text, wanted) in [
            ("", "is empty"),
            ("0", "numbers go from 1 to 64"),
            ("65", "numbers go from 1 to 64"),
            ("99999999999999999999", "numbers go from 1 to 64"),
            ("-1", "is not a signal"),
            ("TREM", "did you mean `TERM`?"),
            ("SIGHUPP", "did you mean `HUP`?"),
            ("RTMIN+99", "is no realtime signal"),
            ("RTMIN-1", "is no realtime signal"),
            ("RTMAX+1", "is no realtime signal"),
            ("RTMIN+99999999999999999999", "is no realtime signal"),
            ("RTMIN++1", "is not a signal"),
            ("graceful", "write a name such as `TERM`"),
        ] {
            let message = parse_signal(text).expect_err(text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }

    #[test]
    fn every_signal_is_read_back_by_its_name() {
        for number in 1..=LAST_SIGNAL {
            let signal = Signal(number);
            assert_eq!(parse_signal(&signal_name(signal)), Ok(signal), "{number}");
        }
        assert_eq!(signal_name(Signal(15)), "TERM");
        assert_eq!(signal_name(Signal(6)), "ABRT");
        assert_eq!(signal_name(Signal(libc::SIGRTMIN() + 2)), "RTMIN+2");
    }

    #[test]
    fn modes_are_octal() {
        for (text, mode) in [
            ("0660", 0o660),
            ("660", 0o660),
            ("0o660", 0o660),
            ("7777", 0o7777),
            ("0", 0),
        ] {
            assert_eq!(parse_mode(text, 0o7777), Ok(Mode(mode)), "{text}");
        }
        for text in [
            "",
            "0o",
            "8",
            "0x1",
            "-1",
            "+7",
            "10000",
            "77777777777777777",
            " 7",
            "rw",
        ] {
            assert!(parse_mode(text, 0o7777).is_err(), "{text}");
        }
        assert!(parse_mode("1000", 0o777).is_err());
        assert_eq!(mode_meant("660", 660), 0o660);
        assert_eq!(mode_meant("438", 438), 0o666);
    }

    #[test]
    fn limits_are_sizes_alone_or_in_pairs() {
        let both = |n| Limit { soft: n, hard: n };
        for (text, wanted) in [
            ("4096", both(Some(4096))),
            ("64M", both(Some(64 << 20))),
            ("64MB", both(Some(64 << 20))),
            ("64 MiB", both(Some(64 << 20))),
            ("1k", both(Some(1024))),
            ("infinity", both(None)),
            (
                "1024:infinity",
                Limit {
                    soft: Some(1024),
                    hard: None,
                },
            ),
            (
                "1K : 2K",
                Limit {
                    soft: Some(1024),
                    hard: Some(2048),
                },
            ),
        ] {
            assert_eq!(parse_limit(text), Ok(wanted), "{text}");
        }
        for (text, wanted) in [
            ("", "is not a limit"),
            ("unlimited", "write `\"infinity\"`"),
            ("2:1", "soft limit above its hard limit"),
            ("infinity:1", "soft limit above its hard limit"),
            ("1:2:3", "unknown suffix"),
            ("5m", "unknown suffix `m`"),
            ("5i", "unknown suffix"),
            ("5iB", "unknown suffix"),
            ("17E", "is too large"),
            ("18446744073709551615", "is too large"),
            ("99999999999999999999", "is too large"),
        ] {
            let message = parse_limit(text).expect_err(text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        assert_eq!(
            parse_principal("www-data"),
            Ok(Principal::Name("www-data".into()))
        );
        assert_eq!(parse_principal("1000"), Ok(Principal::Id(1000)));
        for bad in [
            "",
            "a b",
            "a:b",
            "4294967295",
            "99999999999999999999",
            "a/b",
            "a\nb",
        ] {
            assert!(parse_principal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_backslash_at_the_end_must_escape_something() {
        for text in ["x \\", "x\\", "\\", "x 'y'\\", "x \\\\\\"] {
            let why = split_words(text).expect_err(text);
            assert!(why.starts_with("the `\\` at its end"), "{why}");
        }
        for (text, last) in [
            ("x \\\\", "\\"),
            ("x '\\'", "\\"),
            ("x # \\", "x"),
            ("x\\ ", "x "),
            ("x \"\\\\\"", "\\"),
        ] {
            let words = split_words(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(words.last().map(String::as_str), Some(last), "{text}");
        }
    }
}
