//! What every manager begins with, however it begins, and why it may not.

use crate::plan;
use crate::sys::signals::SignalFd;
use crate::sys::spawn::Spawner;
use crate::unit::Search;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What every manager needs, however it begins.
pub struct Base {
    pub signals: SignalFd,
    /// The environment that workers may get.
    pub environment: Vec<plan::Variable>,
    pub spawner: Spawner,
    /// The limit of open descriptors before it was raised.
    pub nofile: Option<(u64, u64)>,
    pub search: Search,
    pub program: Option<PathBuf>,
    /// How often the parent wants to hear of us.
    pub watchdog: Option<Duration>,
    /// See [`Home::is_sole`](super::record::Home::is_sole).
    pub is_sole: bool,
}

/// Why the manager did not start. As text: everything that is wrong, a line or more each.
#[derive(Debug)]
pub enum StartError {
    /// The unit files are wrong: the findings, as a user reads them.
    Units(Vec<String>),
    /// Sockets can't be bound.
    Sockets(Vec<String>),
    /// Something else, named.
    Other(String),
    /// A signal came that ends it.
    Stopped,
    /// What another manager has left could not be taken over, or the loop has failed: the workers run, and what there is of
    /// them is still kept by whoever keeps it. Another try may go better, if by another binary.
    Again(String),
}

impl StartError {
    /// The same error, in going on where another manager has ended.
    pub fn again(self) -> StartError {
        StartError::Again(self.to_string())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = match self {
            StartError::Units(lines) | StartError::Sockets(lines) => lines,
            StartError::Other(text) | StartError::Again(text) => return f.write_str(text),
            StartError::Stopped => return f.write_str("stopped before anything was started"),
        };
        for line in lines {
            writeln!(f, "{}", line.trim_end())?;
        }
        let count = lines.len();
        write!(
            f,
            "{count} error{}; nothing was started",
            if count == 1 { "" } else { "s" }
        )
    }
}

impl std::error::Error for StartError {}

/// What could not be done, as the reason.
pub fn failed(what: &str, error: &io::Error) -> StartError {
    StartError::Other(format!("{what}: {error}"))
}
