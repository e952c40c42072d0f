//! What would run, for `tentpole plan`.

use super::{Host, Invocation, Moment, Plan, Sink, Source, Variable, Watcher, inheritable};
use crate::unit::{self, Gather};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One worker as it would be started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedWorker {
    /// Its watcher.
    pub watcher: String,
    /// Its number.
    pub wid: u32,
    /// argv.
    pub argv: Vec<String>,
    /// What is exec'd: a path, or the paths that are tried in turn.
    pub executable: Vec<String>,
    /// Its sockets, fd 0 among them where it is one.
    pub fds: Vec<PlannedFd>,
    /// Its environment. What only the moment knows is in angle brackets, such as `<pid>`.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` is the manager's.
    pub working_dir: Option<String>,
    /// `null`, `socket` or a path.
    pub stdin: String,
    /// `inherit`, `null` or a path.
    pub stdout: String,
    /// `inherit`, `null` or a path.
    pub stderr: String,
    /// The user's name, where it runs as another user that has one.
    pub user: Option<String>,
    /// User id; `None` is the manager's.
    pub uid: Option<u32>,
    /// Group id; `None` is the manager's.
    pub gid: Option<u32>,
    /// Supplementary groups; `None` are the manager's.
    pub groups: Option<Vec<u32>>,
}

/// A socket of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedFd {
    /// Its number in the worker.
    pub fd: u32,
    /// The socket unit.
    pub socket: String,
    /// Its name in LISTEN_FDNAMES, where it is in there.
    pub name: Option<String>,
}

impl Plan {
    /// Every worker that would be started, in order of start, or why it could not be. `read` reads an `env_file`.
    ///
    /// An iterator, since a hundred thousand of one watcher need not be in memory together.
    pub fn workers<'a>(
        &'a self,
        host: &dyn Host,
        read: &'a dyn Fn(&Path) -> io::Result<String>,
    ) -> impl Iterator<Item = Result<PlannedWorker, String>> + use<'a> {
        let environment = inheritable(&host.environment());
        let all = self.watchers.iter().flat_map(|watcher| {
            (1..=watcher.unit.numprocesses.value).map(move |wid| (watcher, wid))
        });
        all.map(move |(watcher, wid)| self.worker(watcher, wid, &environment, read))
    }

    fn worker(
        &self,
        watcher: &Watcher,
        wid: u32,
        environment: &[Variable],
        read: &dyn Fn(&Path) -> io::Result<String>,
    ) -> Result<PlannedWorker, String> {
        let text = match watcher.env_file(wid) {
            None => None,
            Some((path, may_be_missing)) => match read(&path) {
                Ok(text) => Some(text),
                Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(format!(
                        "watcher `{}`: `env_file` `{}` can't be read: {}",
                        watcher.name(),
                        path.display(),
                        unit::reason(&error)
                    ));
                }
            },
        };
        let invocation = watcher.invocation(&Moment {
            generation: 1,
            wid,
            environment,
            manager_env: &self.manager.env,
            env_file: text.as_deref(),
            unbound: &[],
        })?;
        Ok(shown(watcher, wid, invocation))
    }
}

fn shown(watcher: &Watcher, wid: u32, invocation: Invocation) -> PlannedWorker {
    let mut env: BTreeMap<String, String> = invocation
        .env
        .iter()
        .map(|entry| {
            let entry = text(OsStr::from_bytes(entry.to_bytes()));
            // A name has one byte at least, which may be anything.
            let equals = entry.char_indices().skip(1).find(|(_, c)| *c == '=');
            let (name, value) = entry.split_at(equals.map_or(entry.len(), |(at, _)| at));
            (name.into(), value.strip_prefix('=').unwrap_or(value).into())
        })
        .gather();
    for (wanted, name, value) in [
        (invocation.listen_pid, "LISTEN_PID", "<pid>"),
        (invocation.listen_pid, "LISTEN_PIDFDID", "<pidfd inode>"),
        (invocation.watchdog_pid, "WATCHDOG_PID", "<pid>"),
        (invocation.notify, "NOTIFY_SOCKET", "<notify socket>"),
    ] {
        if wanted {
            env.insert(name.into(), value.into());
        }
    }
    let stdin = match &invocation.stdin {
        Source::Socket(name) => Some(PlannedFd {
            fd: 0,
            socket: name.clone(),
            name: None,
        }),
        Source::Null | Source::File(_) => None,
    };
    let passed = (3..).zip(&watcher.sockets).map(|(fd, socket)| PlannedFd {
        fd,
        socket: socket.name.clone(),
        name: invocation.listen_pid.then(|| socket.fd_name.clone()),
    });
    let identity = watcher.identity.as_ref();
    PlannedWorker {
        watcher: watcher.name().into(),
        wid,
        argv: invocation.argv.iter().map(|word| text(word)).collect(),
        executable: invocation
            .candidates
            .iter()
            .map(|path| text(path))
            .collect(),
        fds: stdin.into_iter().chain(passed).collect(),
        env,
        working_dir: invocation.working_dir.map(|path| text(path.as_os_str())),
        stdin: match invocation.stdin {
            Source::Null => "null".into(),
            Source::Socket(_) => "socket".into(),
            Source::File(path) => text(path.as_os_str()),
        },
        stdout: sink(&invocation.stdout),
        stderr: sink(&invocation.stderr),
        user: identity.and_then(|id| Some(id.user.as_ref()?.name.clone())),
        uid: identity.and_then(|id| id.uid),
        gid: identity.and_then(|id| id.gid),
        groups: identity.and_then(|id| id.groups.clone()),
    }
}

fn sink(sink: &Sink) -> String {
    match sink {
        Sink::Inherit => "inherit".into(),
        Sink::Null => "null".into(),
        Sink::File(path) => text(path.as_os_str()),
    }
}

fn text(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::unit::{At, WatcherKind};

    fn missing(_: &Path) -> io::Result<String> {
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }

    #[test]
    fn every_worker_is_shown_with_placeholders_for_what_is_not_known_yet() {
        let mut made = watcher("web", "x $(circus.socket.a) $(circus.wid)");
        made.numprocesses = At::nowhere(2);
        made.kind = WatcherKind::Notify;
        made.stdin_socket = Some(at("b").into());
        let plan = planned(units([socket("a"), socket("b")], [made]));
        let workers: Vec<_> = plan
            .workers(&Machine::new(), &missing)
            .map(|worker| worker.expect("a worker"))
            .collect();
        assert_eq!(workers.len(), 2);
        assert_eq!(workers[1].argv, ["x", "3", "2"]);
        let fd = |fd, socket: &str, name: Option<&str>| PlannedFd {
            fd,
            socket: socket.into(),
            name: name.map(str::to_string),
        };
        assert_eq!(workers[0].fds, [fd(0, "b", None), fd(3, "a", Some("a"))]);
        let env = &workers[0].env;
        assert_eq!(env["LISTEN_PID"], "<pid>");
        assert_eq!(env["NOTIFY_SOCKET"], "<notify socket>");
        assert_eq!(env["LISTEN_FDS"], "1");
        assert!(!env.contains_key("WATCHDOG_PID"));
        let json = serde_json::to_value(&workers[0]).expect("plain data");
        assert_eq!(json["fds"][1]["socket"], "a");
        assert_eq!(json["stdin"], "socket");
    }

    #[test]
    fn env_files_are_read_and_a_missing_one_is_that_workers_error() {
        let mut made = watcher("web", "x $(circus.env.A)");
        made.env_file = Some(at("$(circus.wid).env").into());
        made.numprocesses = At::nowhere(2);
        let plan = planned(units([], [made]));
        let read = |path: &Path| match path.to_str() {
            Some("/etc/units/1.env") => Ok("A=one".to_string()),
            _ => missing(path),
        };
        let workers: Vec<_> = plan.workers(&Machine::new(), &read).collect();
        assert_eq!(workers[0].as_ref().expect("a worker").argv, ["x", "one"]);
        let why = workers[1].as_ref().expect_err("no file");
        assert_eq!(
            why,
            "watcher `web`: `env_file` `/etc/units/2.env` can't be read: No such file or directory"
        );
    }

    #[test]
    fn a_file_that_may_be_missing_may_not_be_unreadable() {
        let mut made = watcher("web", "x");
        made.env_file = Some(at("-env").into());
        let plan = planned(units([], [made]));
        let first = |read: &dyn Fn(&Path) -> io::Result<String>| {
            plan.workers(&Machine::new(), read)
                .next()
                .expect("one")
                .is_ok()
        };
        assert!(first(&missing));
        assert!(!first(&|_| Err(io::ErrorKind::PermissionDenied.into())));
    }
}
