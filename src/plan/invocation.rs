//! What one worker is exec'd with: the templates of its watcher, filled in.

use super::environment::{DEFAULT_PATH, Environment, parse_env_file};
use super::substitute::{Scene, TextOption};
use super::{Invocation, Moment, Sink, Source, Watcher, option};
use crate::unit::{Output, Stdin, WatcherKind};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

impl Watcher {
    /// Path of the `env_file` of worker `wid`, and whether it may be missing.
    ///
    /// An fd in the path is the one that the socket has when all sockets are bound.
    pub fn env_file(&self, wid: u32) -> Option<(PathBuf, bool)> {
        let may_be_missing = self.unit.env_file.as_ref()?.value.starts_with('-');
        let filling = Filling::new(self, wid, &[]);
        // Nothing in it can fail but an unbound socket, and here none is.
        let path = filling.path(TextOption::EnvFile).ok()??;
        Some((path, may_be_missing))
    }

    /// What worker `wid` is exec'd with, or why it can't be (a substituted socket is not bound, a bad line in `env_file`).
    pub fn invocation(&self, moment: &Moment<'_>) -> Result<Invocation, String> {
        self.fill_in(moment)
            .map_err(|why| format!("watcher `{}`: {why}", self.name()))
    }

    fn fill_in(&self, moment: &Moment<'_>) -> Result<Invocation, String> {
        let unit = &self.unit;
        let mut filling = Filling::new(self, moment.wid, moment.unbound);
        let fds: Vec<_> = self
            .sockets
            .iter()
            .zip(&filling.numbers)
            .filter(|(_, number)| number.is_some())
            .map(|(socket, _)| socket)
            .collect();
        let listen_pid = unit.listen_fds && !fds.is_empty();

        self.fill_environment(&mut filling, moment)?;
        let environment = &mut filling.environment;
        environment.set("TENTPOLE_WATCHER", self.name());
        environment.set("TENTPOLE_WID", moment.wid.to_string());
        if listen_pid {
            let names: Vec<&str> = fds.iter().map(|socket| socket.fd_name.as_str()).collect();
            environment.set("LISTEN_FDS", fds.len().to_string());
            environment.set("LISTEN_FDNAMES", names.join(":"));
        }
        if let Some(interval) = unit.watchdog {
            environment.set("WATCHDOG_USEC", interval.as_micros().to_string());
        }

        let argv = self
            .templates
            .argv
            .words(&filling)
            .map_err(|why| format!("its command: {why}"))?;
        let executable = filling.text(TextOption::Executable)?;
        let command = executable.as_ref().or(argv.first());
        let candidates = command.map_or(Vec::new(), |command| {
            candidates(command, &filling.environment)
        });
        if candidates.is_empty() {
            return Err("the first word of its command is empty".into());
        }
        Ok(Invocation {
            candidates,
            stdin: filling.source()?,
            stdout: filling.sink(TextOption::Stdout, &unit.stdout)?,
            stderr: filling.sink(TextOption::Stderr, &unit.stderr)?,
            working_dir: filling.path(TextOption::WorkingDir)?,
            argv,
            fds: fds.iter().map(|socket| socket.name.clone()).collect(),
            listen_pid,
            notify: unit.kind == WatcherKind::Notify || unit.watchdog.is_some(),
            watchdog_pid: unit.watchdog.is_some(),
            env: filling.environment.into_entries(),
        })
    }

    /// The environment but for what is said of this one worker. Later wins: the manager's own, the user's, `[manager] env`,
    /// `env`, `env_file`, `virtualenv`.
    fn fill_environment(
        &self,
        filling: &mut Filling<'_>,
        moment: &Moment<'_>,
    ) -> Result<(), String> {
        let unit = &self.unit;
        filling.environment = Environment::new(unit.copy_env, moment.environment);
        let environment = &mut filling.environment;
        if let Some(user) = self.identity.as_ref().and_then(|id| id.user.as_ref()) {
            environment.set("USER", &user.name);
            environment.set("LOGNAME", &user.name);
            environment.set("HOME", &user.home);
            environment.set("SHELL", &user.shell);
        }
        for (name, value) in moment.manager_env {
            environment.set(name, &value.value);
        }
        let from_file = match (&unit.env_file, moment.env_file) {
            (None, _) => Vec::new(),
            (Some(_), Some(text)) => {
                parse_env_file(text).map_err(|why| format!("its `env_file`, {why}"))?
            }
            (Some(path), None) if path.value.starts_with('-') => Vec::new(),
            (Some(_), None) => return Err("its `env_file` could not be read".into()),
        };
        for (name, value) in &from_file {
            environment.set(name, value);
        }
        // The file wins over `env`, yet `env` may refer to what the file sets.
        let in_file: HashSet<&str> = from_file.iter().map(|(name, _)| name.as_str()).collect();
        let mut templates = self.templates.env.iter().peekable();
        for (index, (name, value)) in unit.env.iter().enumerate() {
            let template = templates.next_if(|(at, _)| *at as usize == index);
            if in_file.contains(name.as_str()) {
                continue;
            }
            let value = match template {
                None => OsString::from(&value.value),
                Some((_, template)) => template
                    .word(filling)
                    .map_err(|why| format!("`{name}` in its `env`: {why}"))?,
            };
            filling.environment.set(name, value);
        }
        if let Some(folder) = filling.path(TextOption::Virtualenv)? {
            let environment = &mut filling.environment;
            let mut path = folder.join("bin").into_os_string();
            path.push(":");
            path.push(
                environment
                    .value("PATH")
                    .unwrap_or(OsStr::new(DEFAULT_PATH)),
            );
            environment.set("PATH", path);
            environment.set("VIRTUAL_ENV", folder);
            environment.remove("PYTHONHOME");
        }
        Ok(())
    }
}

/// The paths to try for `command`, as execvp(3) does.
fn candidates(command: &OsStr, environment: &Environment) -> Vec<OsString> {
    if command.is_empty() {
        return Vec::new();
    }
    if command.as_bytes().contains(&b'/') {
        return vec![command.to_os_string()];
    }
    let path = environment
        .value("PATH")
        .unwrap_or(OsStr::new(DEFAULT_PATH));
    path.as_bytes()
        .split(|byte| *byte == b':')
        .map(|folder| {
            let folder = if folder.is_empty() { b"." } else { folder };
            let mut candidate = Vec::with_capacity(folder.len() + 1 + command.len());
            candidate.extend_from_slice(folder);
            candidate.push(b'/');
            candidate.extend_from_slice(command.as_bytes());
            OsString::from_vec(candidate)
        })
        .collect()
}

/// The watcher's templates being filled in for one worker.
struct Filling<'a> {
    watcher: &'a Watcher,
    wid: u32,
    /// The fd of each socket; `None` for those that are not bound.
    numbers: Vec<Option<u32>>,
    stdin_is_unbound: bool,
    environment: Environment,
    /// How deep options refer to options. A plan bounds it, but a plan may come out of a file.
    depth: Cell<usize>,
}

impl<'a> Filling<'a> {
    fn new(watcher: &'a Watcher, wid: u32, unbound: &[String]) -> Self {
        let unbound: HashSet<&str> = unbound.iter().map(String::as_str).collect();
        let mut next = 3;
        let numbers = watcher
            .sockets
            .iter()
            .map(|socket| {
                let bound = !unbound.contains(socket.name.as_str());
                let number = bound.then_some(next);
                next += u32::from(bound);
                number
            })
            .collect();
        let stdin = watcher.unit.stdin_socket.as_ref();
        Filling {
            watcher,
            wid,
            numbers,
            stdin_is_unbound: stdin.is_some_and(|name| unbound.contains(name.value.as_str())),
            environment: Environment::new(true, &[]),
            depth: Cell::new(0),
        }
    }

    /// The value of an option as it stands there.
    fn text(&self, option: TextOption) -> Result<Option<OsString>, String> {
        let Some(literal) = option::text(&self.watcher.unit, option) else {
            return Ok(None);
        };
        let templates = &self.watcher.templates.options;
        let template = templates.iter().find(|(known, _)| *known == option);
        let Some((_, template)) = template else {
            return Ok(Some(literal.into()));
        };
        if self.depth.get() > TextOption::ALL.len() {
            return Err(format!("`{}` refers to itself", option.key()));
        }
        self.depth.set(self.depth.get() + 1);
        let word = template.word(self);
        self.depth.set(self.depth.get() - 1);
        word.map(Some)
            .map_err(|why| format!("its `{}`: {why}", option.key()))
    }

    /// The value of an option that is a path; relative ones start at the unit's folder.
    fn path(&self, option: TextOption) -> Result<Option<PathBuf>, String> {
        let text = self.text(option)?;
        if text.as_ref().is_some_and(|text| text.is_empty()) {
            return Err(format!("its `{}` is empty", option.key()));
        }
        Ok(text.map(|text| self.watcher.unit.folder.join(text)))
    }

    fn source(&self) -> Result<Source, String> {
        if let Some(socket) = &self.watcher.unit.stdin_socket {
            self.stdin()?;
            return Ok(Source::Socket(socket.value.clone()));
        }
        match &self.watcher.unit.stdin {
            Stdin::Null => Ok(Source::Null),
            Stdin::File(_) => {
                let path = self.path(TextOption::Stdin)?;
                Ok(path.map_or(Source::Null, Source::File))
            }
        }
    }

    fn sink(&self, option: TextOption, output: &Output) -> Result<Sink, String> {
        match output {
            Output::Inherit => Ok(Sink::Inherit),
            Output::Null => Ok(Sink::Null),
            Output::File(_) => Ok(self.path(option)?.map_or(Sink::Null, Sink::File)),
        }
    }
}

impl Scene for Filling<'_> {
    fn wid(&self) -> u32 {
        self.wid
    }

    fn socket(&self, index: usize) -> Result<u32, String> {
        let number = self.numbers.get(index).copied().flatten();
        number.ok_or_else(|| match self.watcher.sockets.get(index) {
            Some(socket) => not_bound(&socket.name),
            None => format!("there is no socket {index}"),
        })
    }

    fn stdin(&self) -> Result<(), String> {
        match &self.watcher.unit.stdin_socket {
            Some(socket) if self.stdin_is_unbound => Err(not_bound(&socket.value)),
            _ => Ok(()),
        }
    }

    fn variable(&self, name: &str) -> Result<Cow<'_, OsStr>, String> {
        let value = self.environment.value_in_any_case(name);
        value
            .map(Cow::Borrowed)
            .ok_or_else(|| format!("`$(circus.env.{name})` is not in the worker's environment"))
    }

    fn option(&self, option: TextOption) -> Result<OsString, String> {
        let value = match option {
            TextOption::Executable => self.text(option)?,
            TextOption::WorkingDir
            | TextOption::EnvFile
            | TextOption::Virtualenv
            | TextOption::Stdin
            | TextOption::Stdout
            | TextOption::Stderr => self.path(option)?.map(PathBuf::into_os_string),
        };
        Ok(value.unwrap_or_default())
    }
}

fn not_bound(name: &str) -> String {
    format!("socket `{name}` is not bound yet: it is `optional`, and will be tried again")
}
