//! What all watchers are checked against: the sockets, the environment, and what is not known of them.

use super::super::environment::{self, Environment, Variable, shorten};
use super::super::nearest::Hints;
use super::super::substitute::{Piece, Reference, pieces};
use super::{place_within, strip_prefix};
use crate::unit::{self, At, Doubts, Finding, Findings, Place, Sources};
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};

/// What all watchers are checked against.
pub struct World<'a> {
    /// In order of name.
    pub(super) sockets: &'a [Box<unit::Socket>],
    /// By name in lower case: made when the first reference needs it.
    by_any_case: OnceCell<HashMap<String, usize>>,
    pub(super) manager_env: &'a [(String, At<String>)],
    pub(super) own: &'a [Variable],
    /// Made when the first reference needs it.
    own_in_lower_case: OnceCell<HashSet<OsString>>,
    pub(super) doubts: &'a Doubts,
    pub(super) sources: &'a Sources,
    pub(super) hints: &'a Hints,
}

impl<'a> World<'a> {
    /// `sockets` are in order of name; `own` is the manager's own environment.
    pub fn new(
        sockets: &'a [Box<unit::Socket>],
        manager_env: &'a [(String, At<String>)],
        own: &'a [Variable],
        doubts: &'a Doubts,
        sources: &'a Sources,
        hints: &'a Hints,
    ) -> Self {
        World {
            sockets,
            by_any_case: OnceCell::new(),
            manager_env,
            own,
            own_in_lower_case: OnceCell::new(),
            doubts,
            sources,
            hints,
        }
    }

    /// The socket of exactly this name.
    pub(super) fn socket(&self, name: &str) -> Option<usize> {
        self.sockets
            .binary_search_by(|socket| socket.name.value.as_str().cmp(name))
            .ok()
    }

    /// The socket of this name, or of one that differs by case: substitutions take any case, as in Circus.
    pub(super) fn socket_in_any_case(&self, name: &str) -> Option<usize> {
        self.socket(name).or_else(|| {
            let by_any_case = self.by_any_case.get_or_init(|| {
                let names = self.sockets.iter().enumerate();
                names
                    .map(|(index, socket)| (socket.name.value.to_lowercase(), index))
                    .collect()
            });
            by_any_case.get(&name.to_lowercase()).copied()
        })
    }

    /// Whether the manager's own environment has this variable, in any case.
    pub(super) fn has_own_variable(&self, name: &str) -> bool {
        let own = self.own_in_lower_case.get_or_init(|| {
            let own = self.own.iter();
            own.map(|own| own.name().to_ascii_lowercase()).collect()
        });
        own.contains(&OsString::from(name.to_ascii_lowercase()))
    }

    /// The environment that a watcher starts from.
    pub(super) fn base(&self, copy: bool) -> Environment<'a> {
        let mut base = Environment::new(copy, self.own);
        for (name, value) in self.manager_env {
            base.set(OsStr::new(name), OsStr::new(&value.value));
        }
        base
    }

    pub(super) fn socket_hint(&self, name: &str) -> String {
        let names = self.sockets.iter().map(|socket| socket.name.value.as_str());
        self.hints.nearest(name, names)
    }
}

/// Fills `$(circus.env.X)` into the values of `[manager] env`, which are the same for all watchers.
pub fn fold_manager_env(
    env: &mut [(String, At<String>)],
    own: &[Variable],
    sources: &Sources,
    findings: &mut Findings,
) {
    let mut environment = Environment::new(true, own);
    for (key, value) in env {
        let mut filled = String::with_capacity(value.value.len());
        let refusal =
            |place: Place, what: String| Finding::error(place, format!("`[manager]`: {what}"));
        if let Some(why) = environment::refusal(key) {
            let what = format!("`{}` can't be set in `env`: {why}", shorten(key));
            findings.push(refusal(value.place, what));
            continue;
        }
        let mut offset = 0;
        for piece in pieces(&value.value) {
            let (written, found) = match piece {
                Piece::Text(text) => (text, Ok(text)),
                Piece::Unclosed(rest) => (rest, Err(format!("`{}` is not closed", shorten(rest)))),
                Piece::Reference(Reference { raw, name }) => {
                    let name = strip_prefix(name, "env.");
                    let found = name.map(|name| environment.value_in_any_case(name));
                    let found = match found.map(|found| found.map(OsStr::to_str)) {
                        Some(Some(Some(found))) => Ok(found),
                        Some(Some(None)) => Err(format!("`{}` is not UTF-8", shorten(raw))),
                        Some(None) => Err(format!(
                            "`{}` is neither in the manager's environment nor earlier in `env`",
                            shorten(raw)
                        )),
                        None => Err(format!(
                            "`{}` can't stand in `env`, which is the same for all watchers and knows `$(circus.env.NAME)` \
                             only; put it into the `env` of a watcher",
                            shorten(raw)
                        )),
                    };
                    (raw, found)
                }
            };
            match found {
                Ok(found) => filled.push_str(found),
                Err(what) => {
                    let place = place_within(value.place, offset, written.len(), sources, findings);
                    findings.push(refusal(place, what));
                }
            }
            offset += written.len();
        }
        if filled.contains('\0') {
            let what = format!("`{key}` in `env` has a NUL byte");
            findings.push(refusal(value.place, what));
        }
        environment.set(OsString::from(&*key), OsString::from(&filled));
        value.value = filled;
    }
}
