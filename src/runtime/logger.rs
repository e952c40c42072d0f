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
        line.truncate(LONGEST_LINE);
        if line.last() != Some(&b'\n') {
            line.pop();
            line.push(b'\n');
        }
        // Where else should it be told that stderr is gone?
        let _ = stderr.lock().write_all(&line);
    }

    fn flush(&self) {}
}

impl Logger {
    fn format_line(&self, line: &mut Vec<u8>, level: Level, unit: &str, text: &str) {
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

/// The priority of syslog(3) that journald wants, see sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
