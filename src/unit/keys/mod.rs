//! Every key that a unit file may have: one line each, with how its value is read and where it goes, in the file of its table.
//!
//! A key of the design that is not built yet has its line too, so that it is refused as such.

use super::document::{self, Value};
use super::doubt::Doubt;
use super::field::{Field, Label};
use super::nearest::nearest;
use super::value::clipped;
use super::{At, Finding, Findings, Place};
use std::path::Path;

/// A kind of table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub(super) enum Kind {
    Manager,
    Socket,
    Watcher,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Manager, Kind::Socket, Kind::Watcher];

    /// As it is written in a header.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Manager => "manager",
            Kind::Socket => "socket",
            Kind::Watcher => "watcher",
        }
    }

    /// The names of its keys.
    pub fn keys(self) -> Box<dyn Iterator<Item = &'static str>> {
        match self {
            Kind::Manager => Box::new(MANAGER.iter().map(|key| key.name)),
            Kind::Socket => Box::new(SOCKET.iter().map(|key| key.name)),
            Kind::Watcher => Box::new(WATCHER.iter().map(|key| key.name)),
        }
    }

    /// Whether a key of it is built.
    fn is_built(self, key: &str) -> bool {
        fn of<D>(keys: &[Key<D>], name: &str) -> bool {
            keys.iter()
                .any(|key| key.name == name && key.read.is_some())
        }
        match self {
            Kind::Manager => of(MANAGER, key),
            Kind::Socket => of(SOCKET, key),
            Kind::Watcher => of(WATCHER, key),
        }
    }

    /// The keys that `key` stands instead of: a drop-in that has it takes them away.
    pub fn replaced_by(self, key: &str) -> &'static [&'static str] {
        fn of<D>(keys: &[Key<D>], name: &str) -> &'static [&'static str] {
            keys.iter()
                .find(|key| key.name == name)
                .map_or(&[], |key| key.instead_of)
        }
        match self {
            Kind::Manager => of(MANAGER, key),
            Kind::Socket => of(SOCKET, key),
            Kind::Watcher => of(WATCHER, key),
        }
    }
}

/// A key, and how its value gets into the draft `D`.
pub(super) struct Key<D: 'static> {
    name: &'static str,
    /// `None` is a key that is not built yet.
    read: Option<Read<D>>,
    instead_of: &'static [&'static str],
}

type Read<D> = fn(&mut D, &mut Field<'_, '_>);

/// `KEY => READER => WHERE IT GOES;`, then the keys that are not built yet.
macro_rules! keys {
    (
        $table:ident: $draft:ty = |$d:ident, $f:ident| {
            $($name:literal $(instead of [$($other:literal),*])? => $value:expr => $slot:expr;)*
        }
        unbuilt: $($unbuilt:literal),*;
    ) => {
        pub(super) const $table: &[Key<$draft>] = &[
            $(Key {
                name: $name,
                read: Some(|$d, $f| {
                    // Not every key has a place in the draft.
                    let _ = &$d;
                    if let Some(value) = $value {
                        $slot.fill(value, $f.place);
                    }
                }),
                instead_of: &[$($($other),*)?],
            },)*
            $(Key { name: $unbuilt, read: None, instead_of: &[] },)*
        ];
    };
}

mod manager;
mod socket;
#[cfg(test)]
mod tests;
mod watcher;

use manager::MANAGER;
pub(super) use manager::manager;
use socket::SOCKET;
pub(super) use socket::socket;
use watcher::WATCHER;
pub(super) use watcher::watcher;

/// Where a value goes: alone or with its place, certain or optional.
trait Slot<T> {
    fn fill(&mut self, value: T, place: Place);
}

impl<T> Slot<T> for T {
    fn fill(&mut self, value: T, _place: Place) {
        *self = value;
    }
}

impl<T> Slot<T> for Option<T> {
    fn fill(&mut self, value: T, _place: Place) {
        *self = Some(value);
    }
}

impl<T> Slot<T> for At<T> {
    fn fill(&mut self, value: T, place: Place) {
        *self = At { value, place };
    }
}

/// What few units have, in few bytes for the others.
impl<T> Slot<T> for Option<Box<At<T>>> {
    fn fill(&mut self, value: T, place: Place) {
        *self = Some(Box::new(At { value, place }));
    }
}

impl<T> Slot<T> for Option<At<T>> {
    fn fill(&mut self, value: T, place: Place) {
        *self = Some(At { value, place });
    }
}

/// What others (systemd, supervisord, Docker) call our keys, in lower case, and what one table calls another's.
const FOREIGN: &[(&str, &str)] = &[
    ("uid", "user"),
    ("gid", "group"),
    ("command", "cmd"),
    ("exec", "cmd"),
    ("exec_start", "cmd"),
    ("execstart", "cmd"),
    ("run", "cmd"),
    ("entrypoint", "cmd"),
    ("arguments", "args"),
    ("environment", "env"),
    ("environment_file", "env_file"),
    ("environmentfile", "env_file"),
    ("cwd", "working_dir"),
    ("chdir", "working_dir"),
    ("directory", "working_dir"),
    ("working_directory", "working_dir"),
    ("workingdirectory", "working_dir"),
    ("workers", "numprocesses"),
    ("processes", "numprocesses"),
    ("numprocs", "numprocesses"),
    ("instances", "numprocesses"),
    ("replicas", "numprocesses"),
    ("kill_signal", "stop_signal"),
    ("killsignal", "stop_signal"),
    ("stopsignal", "stop_signal"),
    ("stop_timeout", "graceful_timeout"),
    ("timeout_stop_sec", "graceful_timeout"),
    ("timeoutstopsec", "graceful_timeout"),
    ("stopwaitsecs", "graceful_timeout"),
    ("timeout_start_sec", "start_timeout"),
    ("timeoutstartsec", "start_timeout"),
    ("startsecs", "ready_delay"),
    ("restart_sec", "restart_delay"),
    ("restartsec", "restart_delay"),
    ("autorestart", "restart"),
    ("startretries", "max_retry"),
    ("watchdog_sec", "watchdog"),
    ("watchdogsec", "watchdog"),
    ("socket", "sockets"),
    ("listen_stream", "listen"),
    ("listenstream", "listen"),
    ("listen_datagram", "listen"),
    ("listendatagram", "listen"),
    ("address", "listen"),
    ("bind", "listen"),
    ("addr", "listen"),
    ("socket_mode", "mode"),
    ("socketmode", "mode"),
    ("socket_user", "user"),
    ("socketuser", "user"),
    ("socket_group", "group"),
    ("socketgroup", "group"),
    ("reuse_port", "so_reuseport"),
    ("reuseport", "so_reuseport"),
    ("bind_to_device", "interface"),
    ("bindtodevice", "interface"),
    ("file_descriptor_name", "fd_name"),
    ("filedescriptorname", "fd_name"),
    ("loglevel", "log_level"),
    ("close_child_stdin", "stdin"),
    ("close_child_stdout", "stdout"),
    ("close_child_stderr", "stderr"),
    ("stdout_stream", "stdout"),
    ("stderr_stream", "stderr"),
    ("stdout_logfile", "stdout"),
    ("stderr_logfile", "stderr"),
];

/// A `[manager]`, `[socket.NAME]` or `[watcher.NAME]` table, with its drop-ins laid over it.
pub(super) struct Table<'v> {
    pub kind: Kind,
    /// Empty for the manager.
    pub name: &'v str,
    /// Where its header stands.
    pub header: Place,
    /// Folder of the main file.
    pub folder: &'v Path,
    /// Its keys, each once.
    pub entries: Vec<Entry<'v>>,
    /// Syntax errors may have cost it some of its keys.
    pub is_partial: bool,
}

/// A key of a table and its value.
pub(super) struct Entry<'v> {
    pub key: &'v str,
    pub key_place: Place,
    pub value: Value<'v>,
    pub place: Place,
    /// Tables of the same key that this one is laid over, the lowest first.
    pub under: Vec<document::Table<'v>>,
}

impl<'v> Table<'v> {
    fn label(&self) -> Label<'v> {
        Label {
            kind: self.kind.name(),
            name: self.name,
        }
    }

    /// Where the value of `key` stands, if it was written.
    fn place(&self, key: &str) -> Option<Place> {
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.place)
    }

    /// Where `key` stands, if it was written.
    fn key_place(&self, key: &str) -> Option<Place> {
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.key_place)
    }

    /// Reads each key into `draft`; the answer is which of them have a mistake.
    fn read<D>(&self, keys: &[Key<D>], draft: &mut D, findings: &mut Findings) -> Doubt {
        if self.is_partial {
            self.read_into(keys, draft, findings);
            return Doubt::of_everything();
        }
        self.read_into(keys, draft, findings)
    }

    fn read_into<D>(&self, keys: &[Key<D>], draft: &mut D, findings: &mut Findings) -> Doubt {
        let mut doubt = Doubt::default();
        let with_its_kin =
            |key: &Key<D>| [key.name].into_iter().chain(key.instead_of.iter().copied());
        for entry in &self.entries {
            let Some(key) = keys.iter().find(|key| key.name == entry.key) else {
                if findings.is_beyond(entry.key_place) {
                    // What it was meant to be is not looked for.
                    doubt = Doubt::of_everything();
                    findings.error_with(entry.key_place, String::new);
                    continue;
                }
                let meant = self.meant(entry.key);
                let key = keys.iter().find(|key| Some(key.name) == meant);
                doubt.add(key.into_iter().flat_map(with_its_kin));
                findings.push(self.unknown(entry, meant));
                continue;
            };
            let before = findings.errors();
            let Some(read) = key.read else {
                let message = format!("key `{}` is not built yet", key.name);
                findings.push(Finding::error(entry.key_place, message));
                continue;
            };
            let value = (entry.value, entry.place);
            let mut field = Field::new(
                value,
                &entry.under,
                entry.key,
                self.label(),
                self.folder,
                findings,
            );
            read(draft, &mut field);
            if findings.errors() > before {
                doubt.add(with_its_kin(key));
            }
        }
        doubt
    }

    /// The key of this kind of table that `key`, which is none, was meant to be.
    fn meant(&self, key: &str) -> Option<&'static str> {
        if let Some(meant) = self.foreign(key) {
            return Some(meant);
        }
        if home_of(key, Some(self.kind)).is_some() || key.starts_with("rlimit_") {
            return None;
        }
        nearest(key, self.kind.keys())
    }

    /// What to say of a key that this kind of table does not have.
    fn unknown(&self, entry: &Entry<'_>, meant: Option<&str>) -> Finding {
        let (kind, key) = (self.kind.name(), clipped(entry.key));
        let is_table = matches!(entry.value, Value::Table(_));
        let hint = if let Some(meant) = meant {
            match self.kind.is_built(meant) {
                true => format!("; did you mean `{meant}`?"),
                false => format!("; `{meant}` is not built yet"),
            }
        } else if let Some(home) = home_of(entry.key, Some(self.kind)) {
            format!("; it belongs in {home}")
        } else if let Some(resource) = entry.key.strip_prefix("rlimit_") {
            format!("; write `rlimits = {{ {} = ... }}`", clipped(resource))
        } else if is_table && !self.name.is_empty() && !entry.key.is_empty() {
            // `[socket.web.example]`: TOML takes each dot for a table in a table.
            let full = clipped(&format!("{}.{}", self.name, entry.key));
            format!("; a name with a dot needs quotes: `[{kind}.\"{full}\"]`")
        } else {
            String::new()
        };
        let message = format!("unknown key `{key}` in `[{kind}]`{hint}");
        Finding::error(entry.key_place, message)
    }

    /// Our name for what another program calls `key`.
    fn foreign(&self, key: &str) -> Option<&'static str> {
        let lower = key.to_ascii_lowercase().replace('-', "_");
        let (_, ours) = FOREIGN
            .iter()
            .find(|(theirs, ours)| *theirs == lower && self.kind.keys().any(|key| key == *ours))?;
        Some(ours)
    }
}

/// The tables that have `key`, other than `not`, in backticks.
pub(super) fn home_of(key: &str, not: Option<Kind>) -> Option<String> {
    let homes: Vec<String> = Kind::ALL
        .into_iter()
        .filter(|kind| Some(*kind) != not && kind.keys().any(|known| known == key))
        .map(header_of)
        .collect();
    (!homes.is_empty()).then(|| homes.join(" or "))
}

/// How the header of a table of this kind is written.
pub(super) fn header_of(kind: Kind) -> String {
    match kind {
        Kind::Manager => "`[manager]`".to_string(),
        kind => format!("`[{}.NAME]`", kind.name()),
    }
}

/// A table, as far as it could be read.
pub(super) struct Reading<T> {
    pub unit: T,
    /// What is not known of it, if it has a mistake.
    pub doubt: Option<Doubt>,
}

impl<T> Reading<T> {
    /// Of a table that has errors, or that has none.
    fn new(unit: T, doubt: Doubt, table: &Table<'_>, has_error: bool) -> Self {
        let is_good = !table.is_partial && !has_error;
        Reading {
            unit,
            doubt: (!is_good).then_some(doubt),
        }
    }
}
