//! What would run, for `tentpole plan`.

use super::{Host, Invocation, Moment, Plan, Sink, Source, Watcher};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
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
    ) -> impl Iterator<Item = Result<PlannedWorker, String>> + 'a {
        let environment = host.environment();
        let all = self.watchers.iter().flat_map(|watcher| {
            (1..=watcher.unit.numprocesses.value).map(move |wid| (watcher, wid))
        });
        all.map(move |(watcher, wid)| self.worker(watcher, wid, &environment, read))
    }

    fn worker(
        &self,
        watcher: &Watcher,
        wid: u32,
        environment: &[(OsString, OsString)],
        read: &dyn Fn(&Path) -> io::Result<String>,
    ) -> Result<PlannedWorker, String> {
        let text = match watcher.env_file(wid) {
            None => None,
            Some((path, may_be_missing)) => match read(&path) {
                Ok(text) => Some(text),
                Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(format!(
                        "watcher `{}`: `env_file` `{}` can't be read: {error}",
                        watcher.name(),
                        path.display()
                    ));
                }
            },
        };
        let invocation = watcher.invocation(&Moment {
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
        .map(|(name, value)| (text(name), text(value)))
        .collect();
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
