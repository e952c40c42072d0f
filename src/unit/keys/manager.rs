//! The keys of `[manager]`.

use super::super::address::unix_path;
use super::super::field::{Field, Vocabulary};
use super::super::path::FilePath;
use super::super::{Address, Findings, LogFormat, LogLevel, Manager};
use super::{Key, Reading, Slot, Table};

keys! {
    MANAGER: Manager = |m, f| {
        "control" => control_path(f) => m.control;
        "control_group" => f.principal() => m.control_group;
        "control_mode" => f.mode(0o7777) => m.control_mode;
        "warmup_delay" => f.duration() => m.warmup_delay;
        "shutdown_timeout" => f.timeout() => m.shutdown_timeout;
        "log_level" => f.word(LOG_LEVELS) => m.log_level;
        "log_format" => f.word(LOG_FORMATS) => m.log_format;
        "check_delay" => needless(f) => ();
        "env" => f.environment() => m.env;
    }
    unbuilt:
        "endpoint", "pubsub_endpoint", "stats_endpoint", "metrics";
}

const LOG_LEVELS: Vocabulary<LogLevel> = &[
    ("error", Some(LogLevel::Error)),
    ("warn", Some(LogLevel::Warn)),
    ("warning", Some(LogLevel::Warn)),
    ("info", Some(LogLevel::Info)),
    ("debug", Some(LogLevel::Debug)),
    ("trace", Some(LogLevel::Trace)),
];

const LOG_FORMATS: Vocabulary<LogFormat> = &[
    ("text", Some(LogFormat::Text)),
    ("json", Some(LogFormat::Json)),
];

/// The `[manager]` table.
pub fn manager(table: &Table<'_>, findings: &mut Findings) -> Reading<Manager> {
    let before = findings.errors();
    let mut manager = Manager::default();
    let doubt = table.read(MANAGER, &mut manager, findings);
    Reading::new(manager, doubt, table, findings.errors() > before)
}

fn control_path(field: &mut Field<'_, '_>) -> Option<FilePath> {
    let text = field.filled_text()?;
    if text.starts_with('@') {
        field.refuse(
            "must be a path: an abstract socket has no file whose mode could keep others out",
        );
        return None;
    }
    match unix_path(&text, field.folder) {
        Ok(Address::Path(path)) => Some(path.into()),
        Ok(_) => None,
        Err(why) => {
            field.refuse(why);
            None
        }
    }
}

fn needless(field: &mut Field<'_, '_>) -> Option<()> {
    // Circus takes -1 for "no timer", so a number is not looked at.
    if !field.is_number() {
        field.duration()?;
    }
    field.warn("is needless: nothing is polled");
    Some(())
}
