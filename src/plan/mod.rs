//! Units to a complete, checked, ordered description of what to run.
//!
//! [`plan`] finds every mistake that needs more than one value to be seen (an unknown socket, a cycle in `after`, two
//! sockets on one address, a user that does not exist) and settles everything that can be settled before a worker is
//! spawned: which socket is which fd, what the words of a command are, in which order watchers start.
//! [`Watcher::invocation`] then says what one worker (a wid) is exec'd with.

#![deny(clippy::disallowed_methods)]

mod address;
mod diff;
mod environment;
mod identity;
mod invocation;
mod nearest;
mod option;
mod order;
mod preview;
mod settle;
mod substitute;
#[cfg(test)]
mod testing;

pub use diff::{Action, Change, Unit, diff};
pub use environment::{Variable, inheritable};
pub use preview::{PlannedFd, PlannedWorker};
pub use settle::Templates;

use crate::unit::{
    self, Arrange, Doubts, Finding, Findings, Limit, Mode, Name, Resource, Sources, Units,
};
use nearest::Hints;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::ffi::{CStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the machine says of users, groups and the manager's own environment. An argument, so that plans are pure.
pub trait Host {
    /// The user of this name.
    fn user_by_name(&self, name: &str) -> Option<User>;
    /// The user of this id.
    fn user_by_id(&self, uid: u32) -> Option<User>;
    /// The id of the group of this name.
    fn group_by_name(&self, name: &str) -> Option<u32>;
    /// The groups that `user` is in, `gid` among them.
    fn groups_of(&self, user: &str, gid: u32) -> Vec<u32>;
    /// The manager's own environment, without what was meant for the manager alone (LISTEN_*, NOTIFY_SOCKET, WATCHDOG_*).
    fn environment(&self) -> Vec<(OsString, OsString)>;
    /// The names of the users that are known here, for hints.
    fn user_names(&self) -> Vec<String> {
        Vec::new()
    }
    /// The names of the groups, likewise.
    fn group_names(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether the manager may change users.
    fn is_root(&self) -> bool;
    /// The user and the group that the manager is.
    fn own_ids(&self) -> (u32, u32) {
        (0, 0)
    }
    /// `path` without the symbolic links that are in it, as far as it exists.
    fn resolve(&self, path: &Path) -> PathBuf {
        path.to_path_buf()
    }

    /// Whether there is a folder at `path` now; true where that can't be told.
    fn has_folder(&self, _path: &Path) -> bool {
        true
    }

    /// The text of the `env_file` at `path` as it is now; an error where it can't be read, or is no text.
    fn env_file(&self, _path: &Path) -> io::Result<String> {
        Ok(String::new())
    }
}

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

/// Everything that is to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The `[manager]` table, the substitutions in its `env` filled in.
    pub manager: unit::Manager,
    /// Group of the control socket, looked up.
    pub control_gid: Option<u32>,
    /// Sockets, in order of name.
    pub sockets: Vec<Rc<Socket>>,
    /// Watchers in the order in which they start: by level, then higher priority, then name.
    pub watchers: Vec<Rc<Watcher>>,
}

/// A socket that is to be bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    /// As it was written.
    pub unit: Box<unit::Socket>,
    /// Owner of a unix socket's file, looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group of a unix socket's file, looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

impl Socket {
    /// The unit's name.
    pub fn name(&self) -> &str {
        &self.unit.name.value
    }

    /// The name in LISTEN_FDNAMES.
    pub fn fd_name(&self) -> &str {
        self.unit.fd_name.as_deref().unwrap_or(self.name())
    }
}

/// A watcher, with everything settled that does not depend on the single worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watcher {
    /// As it was written.
    pub unit: Box<unit::Watcher>,
    /// Sockets in fd order: the first is fd 3.
    pub sockets: Vec<PassedSocket>,
    /// The names of all sockets it touches, `stdin_socket` among them, each once.
    pub listens: Vec<Name>,
    /// Start level: 0 starts first; every watcher is above what it is `after`. A stop goes from the highest level down.
    pub level: u32,
    /// What the workers run as; `None` stays what the manager is.
    pub identity: Option<Identity>,
    /// Its texts with substitutions, taken apart.
    pub templates: Templates,
}

/// One of a watcher's sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassedSocket {
    /// The socket unit.
    pub name: Name,
    /// Its name in LISTEN_FDNAMES.
    pub fd_name: String,
}

/// User and groups of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user, where one was asked for: HOME, USER, LOGNAME and SHELL come from it.
    pub user: Option<User>,
    /// User id; `None` stays.
    pub uid: Option<u32>,
    /// Group id; `None` stays.
    pub gid: Option<u32>,
    /// Supplementary groups; `None` stays.
    pub groups: Option<Vec<u32>>,
}

/// What was read and what becomes of it.
#[derive(Debug)]
pub struct Examined {
    /// How many units were read without a mistake.
    pub units: usize,
    /// There is one only if no finding is an error.
    pub plan: Option<Plan>,
    /// All errors and warnings, in order of file and place; of very many in one file only the first.
    pub findings: Vec<Finding>,
    /// How many errors there are, whether they are among the findings or not.
    pub errors: usize,
    /// The same of warnings.
    pub warnings: usize,
    /// The texts the findings point into.
    pub sources: unit::Sources,
}

/// Plans what was loaded, and finds every mistake in one go: one hides no other, and what may only follow from one that
/// was reported is none.
pub fn examine(loaded: unit::Loaded, host: &dyn Host) -> Examined {
    let unit::Loaded {
        mut units,
        unfinished,
        doubts,
        mut findings,
        sources,
    } = loaded;
    let count = units.sockets.len() + units.watchers.len();
    let plan = if findings.errors() == 0 {
        let (plan, more) = plan_in_doubt(units, &doubts, &sources, host);
        findings.extend(more);
        plan
    } else {
        units.sockets.extend(unfinished.sockets);
        units.watchers.extend(unfinished.watchers);
        if doubts.of_manager().is_some() {
            units.manager = unfinished.manager;
        }
        let (_, mut more) = plan_in_doubt(units, &doubts, &sources, host);
        // What is only a warning may be due to what is missing.
        more.retain_errors();
        more.retain(|finding| !doubts.cover(finding));
        findings.extend(more);
        None
    };
    Examined {
        units: count,
        plan,
        errors: findings.errors(),
        warnings: findings.warnings(),
        findings: findings.finish(&sources),
        sources,
    }
}

/// Plans `units`. The findings hold every error and warning, in order of place; there is a plan only if none is an error.
///
/// Names that differ by case alone, and values that are wrong in themselves, are left to the loader.
pub fn plan(units: Units, host: &dyn Host) -> (Option<Plan>, Findings) {
    plan_in_doubt(units, &Doubts::default(), &Sources::default(), host)
}

/// The same of units of which not everything is known, and whose texts are.
fn plan_in_doubt(
    mut units: Units,
    doubts: &Doubts,
    sources: &Sources,
    host: &dyn Host,
) -> (Option<Plan>, Findings) {
    units.sort();
    let own = inheritable(&host.environment());
    let hints = Hints::new();
    let mut findings = Findings::default();

    settle::fold_manager_env(&mut units.manager.env, &own, sources, &mut findings);
    let control_group = units.manager.control_group.as_ref();
    let control_gid = control_group.and_then(|group| {
        let (key, owner) = ("control_group", "`[manager]`");
        identity::find_group(key, group, owner, host, &mut findings).ok()
    });
    let control = units.manager.control.as_ref();
    address::find_collisions(&units.sockets, control, doubts, host, &mut findings);
    find_bad_fd_names(&units.sockets, doubts, &mut findings);
    let owners: Vec<_> = units
        .sockets
        .iter()
        .map(|socket| identity::of_socket(socket, host, &mut findings))
        .collect();
    let levels = order::start_levels(&units.watchers, doubts, &hints, &mut findings);
    let world = settle::World::new(
        &units.sockets,
        &units.manager.env,
        &own,
        doubts,
        sources,
        &hints,
    );
    let settled: Vec<_> = units
        .watchers
        .iter()
        .map(|watcher| settle::settle(watcher, &world, host, &mut findings))
        .collect();
    find_unused(&units.sockets, &settled, &mut findings);

    findings.sort();
    let refused = findings.errors() > 0;
    let (false, Some(levels)) = (refused, levels) else {
        return (None, findings);
    };
    let mut sockets: Vec<Rc<Socket>> = units
        .sockets
        .into_iter()
        .zip(owners)
        .map(|(unit, (uid, gid))| Rc::new(Socket { unit, uid, gid }))
        .collect();
    let mut watchers: Vec<Rc<Watcher>> = units
        .watchers
        .into_iter()
        .zip(settled)
        .zip(levels)
        .map(|((unit, settled), level)| Rc::new(finished(unit, settled, level, &sockets)))
        .collect();
    // Collecting reuses the memory of what it consumes, which is a hundred times what the pointers need.
    sockets.shrink_to_fit();
    watchers.shrink_to_fit();
    watchers.arrange_by(|a, b| start_order(a).cmp(&start_order(b)));
    let plan = Plan {
        manager: units.manager,
        control_gid,
        sockets,
        watchers,
    };
    (Some(plan), findings)
}

/// What orders watchers by when they are started: the level, the priority, then the name.
fn start_order(watcher: &Watcher) -> (u32, Reverse<i32>, &str) {
    let priority = Reverse(watcher.unit.priority);
    (watcher.level, priority, watcher.name())
}

fn finished(
    mut unit: Box<unit::Watcher>,
    settled: settle::Settled,
    level: u32,
    sockets: &[Rc<Socket>],
) -> Watcher {
    let name = |index: &usize| sockets[*index].name().to_string();
    // A plan is kept for as long as the manager runs: nothing that grew while it was read stays larger than it is.
    unit.after.shrink_to_fit();
    unit.requires.shrink_to_fit();
    unit.env.shrink_to_fit();
    unit.rlimits.shrink_to_fit();
    Watcher {
        unit,
        sockets: settled
            .sockets
            .iter()
            .map(|index| PassedSocket {
                name: name(index),
                fd_name: sockets[*index].fd_name().to_string(),
            })
            .collect(),
        listens: settled.listens.iter().map(name).collect(),
        level,
        identity: settled.identity,
        templates: settled.templates,
    }
}

/// LISTEN_FDNAMES is one text of names with colons between them (sd_listen_fds(3)).
fn find_bad_fd_names(sockets: &[Box<unit::Socket>], doubts: &Doubts, findings: &mut Findings) {
    // The loader has looked at the others.
    let is_whole = |socket: &unit::Socket| doubts.of(socket.name.place).is_none();
    for socket in sockets.iter().filter(|socket| is_whole(socket)) {
        let name = &socket.name.value;
        let fd_name = socket.fd_name.as_ref().unwrap_or(name);
        if fd_name.contains(|c: char| c == ':' || c.is_control()) {
            findings.push(Finding::error(
                socket.name.place,
                format!(
                    "socket `{name}`: `{}` can't stand in LISTEN_FDNAMES, where a colon ends a name; give it an `fd_name` \
                     without one",
                    environment::shorten(fd_name)
                ),
            ));
        }
    }
}

fn find_unused(
    sockets: &[Box<unit::Socket>],
    settled: &[settle::Settled],
    findings: &mut Findings,
) {
    let mut used = vec![false; sockets.len()];
    for index in settled.iter().flat_map(|watcher| &watcher.listens) {
        used[*index] = true;
    }
    let unused: Vec<_> = (sockets.iter().zip(used).filter(|(_, used)| !used))
        .map(|(socket, _)| &socket.name)
        .collect();
    let text = match unused.as_slice() {
        [] => return,
        [socket] => format!(
            "socket `{}` is bound, but no watcher uses it: its clients would wait for ever",
            socket.value
        ),
        [first, rest @ ..] => format!(
            "socket `{}` and {} more are bound, but no watcher uses them: their clients would wait for ever",
            first.value,
            rest.len()
        ),
    };
    findings.push(Finding::warning(unused[0].place, text));
}

/// What one worker is exec'd with.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// Paths to try in turn, as execvp(3) does: each an absolute path, or relative to `working_dir`.
    pub candidates: Vec<OsString>,
    /// argv.
    pub argv: Vec<OsString>,
    /// The environment, without LISTEN_PID, LISTEN_PIDFDID and WATCHDOG_PID, whose values are known to the child only,
    /// and without NOTIFY_SOCKET, whose value is known to the runtime; everything else of "What a worker gets" is here.
    /// As `NAME=VALUE`.
    pub env: Vec<Rc<CStr>>,
    /// Sockets from fd 3 up.
    pub fds: Vec<Name>,
    /// Whether LISTEN_PID and LISTEN_PIDFDID are wanted.
    pub listen_pid: bool,
    /// Whether NOTIFY_SOCKET is wanted.
    pub notify: bool,
    /// Whether WATCHDOG_PID is wanted.
    pub watchdog_pid: bool,
    /// fd 0.
    pub stdin: Source,
    /// fd 1.
    pub stdout: Sink,
    /// fd 2.
    pub stderr: Sink,
    /// Working directory; `None` stays the manager's.
    pub working_dir: Option<PathBuf>,
}

/// fd 0 of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Source {
    Null,
    File(PathBuf),
    Socket(Name),
}

/// fd 1 or 2 of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sink {
    Inherit,
    Null,
    File(PathBuf),
}

/// What [`Watcher::invocation`] needs to know of the moment.
pub struct Moment<'a> {
    /// The worker's number.
    pub wid: u32,
    /// How many processes the worker has had, this one included.
    pub generation: u64,
    /// The manager's own environment, as [`Host::environment`] gives it and [`inheritable`] leaves it.
    pub environment: &'a [Variable],
    /// `[manager] env` as [`Plan::manager`] has it, its substitutions filled in.
    pub manager_env: &'a [(String, unit::At<String>)],
    /// Text of the `env_file`, where the watcher has one and it could be read.
    pub env_file: Option<&'a str>,
    /// Sockets that are not bound (they are `optional`): they are left out, and the fds behind them move up.
    pub unbound: &'a [Name],
}

impl Watcher {
    /// A watcher of nothing, for where one must stand until the real one is known.
    pub fn nothing() -> Watcher {
        Watcher {
            unit: Box::default(),
            sockets: Vec::new(),
            listens: Vec::new(),
            level: 0,
            identity: None,
            templates: Templates::default(),
        }
    }

    /// The unit's name.
    pub fn name(&self) -> &str {
        &self.unit.name.value
    }

    /// umask, nice and the rest that need no substitution, as the unit has them.
    pub fn limits(&self) -> (Option<Mode>, &[(Resource, Limit)]) {
        (self.unit.umask, &self.unit.rlimits)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::unit::{At, Place};

    #[test]
    fn watchers_stand_in_order_of_level_priority_and_name() {
        let mut last = watcher("a", "x");
        last.after = vec![at("d")];
        let mut eager = watcher("d", "x");
        eager.priority = 5;
        let mut waiting = watcher("c", "x");
        waiting.priority = 5;
        waiting.requires = vec![at("d")];
        let plan = planned(units([], [last, watcher("b", "x"), waiting, eager]));
        let order: Vec<_> = plan.watchers.iter().map(|w| (w.name(), w.level)).collect();
        assert_eq!(order, [("d", 0), ("c", 1), ("a", 2), ("b", 2)]);
    }

    #[test]
    fn findings_of_all_kinds_come_together_in_order_of_place() {
        let place = |start| Place {
            file: 0,
            start,
            end: start + 1,
        };
        let named = |name: &str, start| At {
            value: name.to_string(),
            place: place(start),
        };
        let mut first = watcher("a", "x");
        first.name.place = place(10);
        first.after = vec![named("b", 50)];
        first.sockets = Some(vec![named("nothing", 20)]);
        let mut second = watcher("b", "x");
        second.requires = vec![named("a", 40)];
        let mut unused = socket("s");
        unused.name.place = place(30);
        let (plan, findings) = plan(units([unused], [first, second]), &Machine::new());
        assert_eq!(plan, None);
        let starts: Vec<_> = findings.iter().map(|f| f.place.start).collect();
        assert_eq!(starts, [20, 30, 50]);
    }

    #[test]
    fn a_plan_holds_no_memory_of_the_units_it_was_made_of() {
        let sockets: Vec<_> = (0..100).map(|n| socket(&format!("s{n}"))).collect();
        let watchers: Vec<_> = (0..100).map(|n| watcher(&format!("w{n}"), "x")).collect();
        let plan = planned(units(sockets, watchers));
        assert!(plan.sockets.capacity() < 200);
        assert!(plan.watchers.capacity() < 200);
    }

    #[test]
    fn nothing_is_a_plan_too() {
        assert_eq!(planned(Units::default()), Plan::default());
    }

    #[test]
    fn a_simple_watcher_stays_small() {
        let plan = planned(units(
            [],
            [watcher("w", "python3 -m app --port $(circus.wid)")],
        ));
        let json = serde_json::to_string(&plan.watchers[0].templates).expect("plain data");
        assert!(json.len() < 300, "{json}");
        assert!(size_of::<Watcher>() <= 1400, "{}", size_of::<Watcher>());
    }
}
