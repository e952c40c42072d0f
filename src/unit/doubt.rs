//! What is not known of units that have mistakes, so that nothing is reported that only follows from a mistake.

use super::{Finding, Place};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The keys of one table whose values are not known: they have a mistake, or what was written for them has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Any key may be missing.
    everything: bool,
    keys: Vec<&'static str>,
}

impl Doubt {
    /// Of a table that may lack any of its keys.
    pub(super) fn of_everything() -> Self {
        Doubt {
            everything: true,
            keys: Vec::new(),
        }
    }

    /// Adds `keys`.
    pub(super) fn add(&mut self, keys: impl IntoIterator<Item = &'static str>) {
        self.keys.extend(keys);
    }

    /// Whether the value of any of `keys` is not known.
    pub fn is_about(&self, keys: &[&str]) -> bool {
        self.everything || keys.iter().any(|key| self.keys.contains(key))
    }
}

/// What is not known of all units.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Text could not be read, so there may be units of any name.
    pub(super) any_name: bool,
    /// Names of what may be units, in lower case.
    pub(super) names: HashSet<String>,
    /// The units that have a mistake, by their headers.
    pub(super) units: HashMap<Place, Doubt>,
    /// Of `[manager]`, if that has a mistake.
    pub(super) manager: Option<Doubt>,
    /// Where text can't be trusted, by file.
    pub(super) unsure: HashMap<u32, Unsure>,
}

impl Doubts {
    /// Whether a unit that is called `name` may be there, for all that is known.
    pub fn may_be_named(&self, name: &str) -> bool {
        self.any_name || (!self.names.is_empty() && self.names.contains(&name.to_lowercase()))
    }

    /// What is not known of the unit whose header stands at `place`; `None` of one without a mistake.
    pub fn of(&self, place: Place) -> Option<&Doubt> {
        self.units.get(&place)
    }

    /// The same of the `[manager]` table.
    pub fn of_manager(&self) -> Option<&Doubt> {
        self.manager.as_ref()
    }

    /// Whether what stands where `finding` points may have been meant otherwise.
    pub fn cover(&self, finding: &Finding) -> bool {
        let unsure = self.unsure.get(&finding.place.file);
        unsure.is_some_and(|unsure| unsure.covers(finding.place))
    }
}

/// Where the text of a file with mistakes of syntax can't be trusted.
#[derive(Debug)]
pub(super) struct Unsure {
    /// What comes from here on may stand in the wrong table.
    pub from: usize,
    /// The lines with a mistake of syntax.
    pub lines: Vec<Range<usize>>,
}

impl Unsure {
    pub fn covers(&self, place: Place) -> bool {
        let (start, end) = (place.start as usize, place.end as usize);
        let is_on = |line: &Range<usize>| start <= line.end && end >= line.start;
        start >= self.from || self.lines.iter().any(is_on)
    }
}
