//! One watcher: which sockets it passes, whom it runs as, and its texts taken apart.

mod judge;
#[cfg(test)]
mod tests;
mod texts;
mod variables;
mod world;

pub(super) use world::{World, fold_manager_env};

use super::substitute::{Template, TextOption};
use super::{Host, Identity, identity};
use crate::unit::{self, At, Doubt, Finding, Findings, Place, Sources};
use judge::find_contradictions;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use variables::Sees;

/// The texts of a watcher that are not literal, and its command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Templates {
    /// argv, each word ended.
    pub(super) argv: Template,
    /// Options with substitutions; the unit has the others.
    pub(super) options: Box<[(TextOption, Template)]>,
    /// Values with substitutions, by their index in the unit's `env`.
    pub(super) env: Box<[(u32, Template)]>,
}

/// What is settled of one watcher. Sockets are indices into the units' sockets.
pub(super) struct Settled {
    pub(super) sockets: Vec<usize>,
    pub(super) listens: Vec<usize>,
    pub(super) identity: Option<Identity>,
    pub(super) templates: Templates,
}

/// Settles `watcher`. What comes back is of use only if no error was added to `findings`.
pub(super) fn settle(
    watcher: &unit::Watcher,
    world: &World<'_>,
    host: &dyn Host,
    findings: &mut Findings,
) -> Settled {
    let doubt = world.doubts.of(watcher.name.place);
    let identity = identity::of_watcher(watcher, doubt, host, findings);
    // The loader has told of them where it had to tell of another mistake.
    if doubt.is_none() {
        find_contradictions(watcher, findings);
    }
    let mut compiler = Compiler::new(watcher, world, identity.as_ref().ok(), findings);
    compiler.list_sockets();
    let templates = compiler.compile();
    compiler.judge_sockets();
    compiler.judge_places(&templates, host);
    let Compiler {
        passed,
        stdin_socket,
        ..
    } = compiler;
    let mut listens = passed.clone();
    listens.extend(stdin_socket.filter(|index| !passed.contains(index)));
    Settled {
        sockets: passed,
        listens,
        identity: identity.unwrap_or(None),
        templates,
    }
}

/// Takes the texts of one watcher apart.
struct Compiler<'a, 'f> {
    unit: &'a unit::Watcher,
    world: &'a World<'a>,
    /// `None` where it could not be found, which is reported.
    identity: Option<&'a Option<Identity>>,
    findings: &'f mut Findings,
    /// Sockets in fd order.
    passed: Vec<usize>,
    /// Where each of them is in `passed`; empty where they are all there, and in order.
    positions: HashMap<usize, u32>,
    stdin_socket: Option<usize>,
    /// Whether a reference to a socket passes it.
    collects: bool,
    /// Whether any text refers to a socket.
    refers: bool,
    /// Whether a socket that is named is not there.
    lacks_socket: bool,
    /// What is not known of the unit.
    doubt: Option<&'a Doubt>,
    /// How much of the value that is being taken apart has been looked through for its substitutions; more than there is
    /// where one was not found, since it is not written as the words have it.
    cursor: usize,
    /// Where in that value the substitution stands that is being looked at, and its length; nothing where it was not found.
    substitution: (usize, usize),
}

/// A text, and how it is spoken of.
struct Text<'a> {
    text: &'a str,
    key: &'a str,
    /// Where the value stands that this is of, and that.
    place: Place,
    whole: &'a str,
    sees: Sees,
}

impl<'a, 'f> Compiler<'a, 'f> {
    fn new(
        unit: &'a unit::Watcher,
        world: &'a World<'a>,
        identity: Option<&'a Option<Identity>>,
        findings: &'f mut Findings,
    ) -> Self {
        Compiler {
            unit,
            world,
            identity,
            findings,
            passed: Vec::new(),
            positions: HashMap::new(),
            stdin_socket: None,
            collects: unit.sockets.is_none() && !unit.use_sockets,
            refers: false,
            lacks_socket: false,
            doubt: world.doubts.of(unit.name.place),
            cursor: 0,
            substitution: (0, 0),
        }
    }

    /// Whether the value of any of these keys is not known.
    fn is_unsure_of(&self, keys: &[&str]) -> bool {
        self.doubt.is_some_and(|doubt| doubt.is_about(keys))
    }

    /// The sockets that the unit names outside of substitutions.
    fn list_sockets(&mut self) {
        let unit = self.unit;
        if let Some(name) = &unit.stdin_socket {
            self.stdin_socket = self.find_socket(name, "stdin_socket");
        }
        if unit.use_sockets {
            self.passed = (0..self.world.sockets.len()).collect();
            return;
        }
        for name in unit.sockets.iter().flatten() {
            if let Some(index) = self.find_socket(name, "sockets")
                && !self.pass(index)
            {
                self.error(
                    name.place,
                    format!("socket `{}` is in `sockets` twice", name.value),
                );
            }
        }
    }

    fn find_socket(&mut self, name: &At<String>, key: &str) -> Option<usize> {
        let found = self.world.socket(&name.value);
        self.lacks_socket |= found.is_none();
        if found.is_none() && !self.world.doubts.may_be_named(&name.value) {
            let hint = self.world.socket_hint(&name.value);
            self.error(
                name.place,
                format!("unknown socket `{}` in `{key}`{hint}", name.value),
            );
        }
        found
    }

    /// Adds a socket to those that are passed, unless it is there.
    fn pass(&mut self, index: usize) -> bool {
        if self.position(index).is_some() {
            return false;
        }
        self.positions.insert(index, index32(self.passed.len()));
        self.passed.push(index);
        true
    }

    /// Where a socket is in `passed`.
    fn position(&self, index: usize) -> Option<u32> {
        match self.unit.use_sockets {
            true => Some(index32(index)),
            false => self.positions.get(&index).copied(),
        }
    }

    /// An error at the substitution in `text` that is being looked at.
    fn refuse(&mut self, text: &Text<'_>, message: String) {
        let place = match self.substitution {
            (_, 0) => text.place,
            (offset, length) => place_within(
                text.place,
                offset,
                length,
                self.world.sources,
                self.findings,
            ),
        };
        self.error(place, format!("{message} (in `{}`)", text.key));
    }

    fn error(&mut self, place: Place, message: String) {
        let message = format!("watcher `{}`: {message}", self.unit.name.value);
        self.findings.push(Finding::error(place, message));
    }

    fn warning(&mut self, place: Place, message: String) {
        let message = format!("watcher `{}`: {message}", self.unit.name.value);
        self.findings.push(Finding::warning(place, message));
    }
}

/// Where a part of the value at `place` stands.
fn place_within(
    place: Place,
    offset: usize,
    length: usize,
    sources: &Sources,
    findings: &Findings,
) -> Place {
    let start = place.start.saturating_add(index32(offset));
    let earliest = Place { start, ..place };
    // Of what is not kept it need not be known more closely.
    match findings.is_beyond(earliest) {
        true => earliest,
        false => sources.within(place, offset, length),
    }
}

/// `name` without `prefix`, which may be in any case.
fn strip_prefix<'t>(name: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Files are counted in 32 bits, so nothing that is counted in one is larger.
fn index32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
