//! The small languages inside values: durations, sizes, signals, modes, addresses.

use super::Signal;
use std::time::Duration;

/// Reads a duration: seconds (`5`, `0.5`) or text (`250ms`, `1m30s`).
pub fn parse_duration(_text: &str) -> Result<Duration, String> {
    Err("not built".into())
}

/// Reads a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+2`, in any case.
pub fn parse_signal(_text: &str) -> Result<Signal, String> {
    Err("not built".into())
}

/// The signal's name without `SIG`, such as `TERM`; its number where it has none.
pub fn signal_name(signal: Signal) -> String {
    signal.0.to_string()
}
