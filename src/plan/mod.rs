//! Units to a complete, checked, ordered description of what to run.
//!
//! [`plan`] finds every mistake that needs more than one value to be seen (an unknown socket, a cycle in `after`, two
//! sockets on one address, a user that does not exist) and settles everything that can be settled before a worker is
//! spawned: which socket is which fd, what the words of a command are, in which order watchers start.
//! [`Watcher::invocation`] then says what one worker (a wid) is exec'd with.

use crate::unit::{self, Finding, Limit, Mode, Name, Resource, Units};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;
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
    /// Whether the manager may change users.
    fn is_root(&self) -> bool;
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
    /// The `[manager]` table.
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
    pub unit: unit::Socket,
    /// Owner of a unix socket's file, looked up.
    pub uid: Option<u32>,
    /// Group of a unix socket's file, looked up.
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
    pub unit: unit::Watcher,
    /// Sockets in fd order: the first is fd 3.
    pub sockets: Vec<PassedSocket>,
    /// The names of all sockets it touches, `stdin_socket` among them, each once.
    pub listens: Vec<Name>,
    /// Start level: 0 starts first; every watcher is above what it is `after`. A stop goes from the highest level down.
    pub level: u32,
    /// What the workers run as; `None` stays what the manager is.
    pub identity: Option<Identity>,
    // The implementation adds its templates here.
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

/// Plans `units`. The findings hold every error and warning; there is a plan only if none is an error.
pub fn plan(units: Units, host: &dyn Host) -> (Option<Plan>, Vec<Finding>) {
    let _ = (units, host);
    (None, Vec::new())
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
    pub env: Vec<(OsString, OsString)>,
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
    /// The manager's own environment, as [`Host::environment`] gives it.
    pub environment: &'a [(OsString, OsString)],
    /// `[manager] env`.
    pub manager_env: &'a [(String, unit::At<String>)],
    /// Text of the `env_file`, where the watcher has one and it could be read.
    pub env_file: Option<&'a str>,
    /// Sockets that are not bound (they are `optional`): they are left out, and the fds behind them move up.
    pub unbound: &'a [Name],
}

impl Watcher {
    /// The unit's name.
    pub fn name(&self) -> &str {
        &self.unit.name.value
    }

    /// Path of the `env_file` of worker `wid`, and whether it may be missing.
    pub fn env_file(&self, wid: u32) -> Option<(PathBuf, bool)> {
        let _ = wid;
        None
    }

    /// What worker `wid` is exec'd with, or why it can't be (a substituted socket is not bound, a bad line in `env_file`).
    pub fn invocation(&self, moment: &Moment<'_>) -> Result<Invocation, String> {
        let _ = moment;
        Err("not built".into())
    }

    /// umask, nice and the rest that need no substitution, as the unit has them.
    pub fn limits(&self) -> (Option<Mode>, &[(Resource, Limit)]) {
        (self.unit.umask, &self.unit.rlimits)
    }
}
