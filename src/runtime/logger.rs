//! Log lines on stderr, as text or JSON.

use crate::sys::output;
use crate::unit::{LogFormat, LogLevel};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

/// A line longer than this could block a pipe that [`output::writable_now`] found writable (PIPE_BUF).
const LONGEST_LINE: usize = 4096;

struct Logger {
    /// Whether the format is JSON.
    json: AtomicBool,
    /// stderr is journald's: it wants priorities and has its own clock.
    journal: bool,
    /// Somebody reads stderr, and may be slow.
    has_reader: bool,
    /// Lines that nobody would have read: stderr was full.
    dropped: AtomicU64,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Begins to log. A second call has no effect but the level.
pub fn init(level: LogLevel, format: LogFormat) {
    let logger = Logger {
        json: AtomicBool::new(format == LogFormat::Json),
        journal: output::stderr_is_journal(),
        has_reader: output::has_reader(std::io::stderr()),
        dropped: AtomicU64::new(0),
    };
    // Only a test would have set one before; then that one stays.
    let logger = LOGGER.get_or_init(|| logger);
    let _ = log::set_logger(logger);
    set(level, format);
}

/// Logs this level and what is more important, in this format.
pub fn set(level: LogLevel, format: LogFormat) {
    if let Some(logger) = LOGGER.get() {
        let json = format == LogFormat::Json;
        logger.json.store(json, Ordering::Relaxed);
    }
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// What is logged now, and how.
pub fn settings() -> (LogLevel, LogFormat) {
    let level = match log::max_level() {
        LevelFilter::Off | LevelFilter::Error => LogLevel::Error,
        LevelFilter::Warn => LogLevel::Warn,
        LevelFilter::Info => LogLevel::Info,
        LevelFilter::Debug => LogLevel::Debug,
        LevelFilter::Trace => LogLevel::Trace,
    };
    let format = match is_json() {
        true => LogFormat::Json,
        false => LogFormat::Text,
    };
    (level, format)
}

fn is_json() -> bool {
    LOGGER
        .get()
        .is_some_and(|logger| logger.json.load(Ordering::Relaxed))
}

/// Logs a text of the manager that has several lines, such as a finding with its caret: one object in JSON, else a line for
/// each.
pub fn log_lines(level: Level, text: &str) {
    if is_json() {
        log::log!(target: "manager", level, "{text}");
        return;
    }
    for line in text.lines() {
        log::log!(target: "manager", level, "{line}");
    }
}

/// The logger's word for a level.
pub fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::Error,
        LogLevel::Warn => Level::Warn,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
        LogLevel::Trace => Level::Trace,
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let stderr = std::io::stderr();
        // A reader that has stopped reading must not stop the manager.
        if self.has_reader && !output::writable_now(&stderr) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut line = Vec::with_capacity(160);
        if dropped > 0 {
            let text = format!("{dropped} log lines were dropped, since stderr was full");
            self.format_line(&mut line, Level::Warn, "manager", &text);
        }
        self.format_line(
            &mut line,
            record.level(),
            record.target(),
            &record.args().to_string(),
        );
        // Where else should it be told that stderr is gone?
        let _ = stderr.lock().write_all(&line);
    }

    fn flush(&self) {}
}

impl Logger {
    /// Adds a line. If there would be more than [`LONGEST_LINE`] then, the message is cut, and not what is around it: a reader
    /// of JSON needs all of that.
    fn format_line(&self, line: &mut Vec<u8>, level: Level, unit: &str, text: &str) {
        let start = line.len();
        self.format_whole(line, level, unit, text);
        if line.len() > LONGEST_LINE {
            line.truncate(start);
            self.format_whole(line, level, unit, "");
            let room = LONGEST_LINE.saturating_sub(line.len());
            line.truncate(start);
            let size = match self.json.load(Ordering::Relaxed) {
                true => size_in_json,
                false => size_in_text,
            };
            self.format_whole(line, level, unit, &cut(text, room, size));
        }
    }

    fn format_whole(&self, line: &mut Vec<u8>, level: Level, unit: &str, text: &str) {
        let word = match level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        // Writing to memory can't fail.
        let _ = match self.json.load(Ordering::Relaxed) {
            true => {
                let object = serde_json::json!({
                    "time": now.to_string(), "level": word, "unit": unit, "message": text,
                });
                writeln!(line, "{object}")
            }
            false => {
                let text = text.replace(|c: char| c.is_control(), " ");
                if self.journal {
                    writeln!(line, "<{}>{unit}: {text}", priority(level))
                } else {
                    writeln!(line, "{now} {word:<5} {unit}: {text}")
                }
            }
        };
    }
}

/// What a message ends with that was cut.
const ELLIPSIS: &str = "\u{2026}";

/// As much of a message as takes `room` bytes in its line, where each character takes as many as `size` says.
fn cut(text: &str, room: usize, size: fn(char) -> usize) -> String {
    let mut length = 0;
    // Where there is still room for the ellipsis.
    let mut end = 0;
    for (place, c) in text.char_indices() {
        if length + ELLIPSIS.len() <= room {
            end = place;
        }
        length += size(c);
        if length > room {
            return format!("{}{ELLIPSIS}", &text[..end]);
        }
    }
    text.to_owned()
}

/// The bytes that a character takes in a string of JSON, as serde_json writes it.
fn size_in_json(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => c.len_utf8(),
    }
}

/// The same in a line of text, where a control character is a space.
fn size_in_text(c: char) -> usize {
    if c.is_control() { 1 } else { c.len_utf8() }
}

/// The priority of syslog(3) that journald wants, see sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger(json: bool) -> Logger {
        Logger {
            json: AtomicBool::new(json),
            journal: false,
            has_reader: false,
            dropped: AtomicU64::new(0),
        }
    }

    /// The lines of these messages, which end up in one write.
    fn lines(json: bool, texts: &[&str]) -> String {
        let mut lines = Vec::new();
        for text in texts {
            logger(json).format_line(&mut lines, Level::Info, "watcher.web", text);
        }
        String::from_utf8(lines).expect("is cut between characters")
    }

    #[test]
    fn a_long_message_is_cut_and_its_line_is_whole() {
        for piece in [
            "x",
            "\u{e9}",
            "\u{1f600}",
            "\"\\",
            "\u{1}\n",
            "a\u{85}\u{7f}",
        ] {
            for extra in ["", ".", "..", "..."] {
                let text = format!("{extra}{}", piece.repeat(LONGEST_LINE));
                let line = lines(true, &[&text]);
                assert!((LONGEST_LINE - 12..=LONGEST_LINE).contains(&line.len()));
                let object: serde_json::Value = serde_json::from_str(&line).expect("is JSON");
                assert_eq!(object["unit"], "watcher.web");
                let message = object["message"].as_str().expect("a message");
                let kept = message.strip_suffix(ELLIPSIS).expect("says that it is cut");
                assert!(text.starts_with(kept));

                let line = lines(false, &[&text]);
                assert!((LONGEST_LINE - 12..=LONGEST_LINE).contains(&line.len()));
                assert!(line.ends_with("\u{2026}\n"));
            }
        }
    }

    #[test]
    fn what_just_fits_is_not_cut() {
        for json in [true, false] {
            let room = LONGEST_LINE - lines(json, &[""]).len();
            let text = "x".repeat(room);
            let line = lines(json, &[&text]);
            assert_eq!(line.len(), LONGEST_LINE);
            assert!(line.contains(&text));
            let line = lines(json, &[&(text + "x")]);
            assert!(line.len() <= LONGEST_LINE && line.contains(ELLIPSIS));
        }
    }

    #[test]
    fn lines_that_are_written_together_share_the_room() {
        let long = "x".repeat(2 * LONGEST_LINE);
        let both = lines(true, &["lines were dropped", &long]);
        assert_eq!(both.len(), LONGEST_LINE);
        let objects = both.lines().map(serde_json::from_str::<serde_json::Value>);
        assert_eq!(objects.filter(Result::is_ok).count(), 2);
    }
}
