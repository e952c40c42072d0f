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

    /// The socket without which no worker can be started, if it is one that is not bound: one whose number they are told,
    /// their stdin, or any where none of theirs is bound. Others that are not bound are left out of what they get.
    pub fn lacks(&self, is_bound: impl Fn(&str) -> bool) -> Option<&str> {
        let templates = &self.templates;
        let options = templates.options.iter().map(|(_, template)| template);
        let env = templates.env.iter().map(|(_, template)| template);
        let told = std::iter::once(&templates.argv).chain(options).chain(env);
        let told = told.flat_map(|template| template.sockets());
        let told = told.filter_map(|index| self.sockets.get(index as usize));
        let stdin = self
            .unit
            .stdin_socket
            .iter()
            .map(|name| name.value.as_str());
        let mut needed = stdin.chain(told.map(|socket| socket.name.as_str()));
        let mut all = self.listens.iter().map(|name| name.as_str());
        needed.find(|name| !is_bound(name)).or_else(|| {
            let has_one = all.clone().any(&is_bound);
            all.next().filter(|_| !has_one)
        })
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
        let mut set =
            |name: &'static str, value: OsString| environment.set(OsStr::new(name), value);
        set("TENTPOLE_WATCHER", self.name().into());
        set("TENTPOLE_WID", moment.wid.to_string().into());
        let generation = moment.generation.to_string();
        set("TENTPOLE_GENERATION", generation.into());
        if listen_pid {
            let names: Vec<&str> = fds.iter().map(|socket| socket.fd_name.as_str()).collect();
            set("LISTEN_FDS", fds.len().to_string().into());
            set("LISTEN_FDNAMES", names.join(":").into());
        }
        if let Some(interval) = unit.watchdog {
            set("WATCHDOG_USEC", interval.as_micros().to_string().into());
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
            env: filling.environment.into_assignments()?,
        })
    }

    /// The environment but for what is said of this one worker. Later wins: the manager's own, the user's, `[manager] env`,
    /// `env`, `env_file`, `virtualenv`.
    fn fill_environment<'a>(
        &'a self,
        filling: &mut Filling<'a>,
        moment: &Moment<'a>,
    ) -> Result<(), String> {
        let unit = &self.unit;
        filling.environment = Environment::new(unit.copy_env, moment.environment);
        let environment = &mut filling.environment;
        if let Some(user) = self.identity.as_ref().and_then(|id| id.user.as_ref()) {
            for (name, value) in [
                ("USER", &user.name),
                ("LOGNAME", &user.name),
                ("HOME", &user.home),
                ("SHELL", &user.shell),
            ] {
                environment.set(OsStr::new(name), OsStr::new(value));
            }
        }
        for (name, value) in moment.manager_env {
            environment.set(OsStr::new(name), OsStr::new(&value.value));
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
            environment.set(OsString::from(name), OsString::from(value));
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
                None => Cow::Borrowed(OsStr::new(&value.value)),
                Some((_, template)) => template
                    .word(filling)
                    .map_err(|why| format!("`{name}` in its `env`: {why}"))?
                    .into(),
            };
            filling.environment.set(OsStr::new(name), value);
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
            environment.set(OsStr::new("PATH"), path);
            environment.set(OsStr::new("VIRTUAL_ENV"), folder.into_os_string());
            environment.remove("PYTHONHOME");
        }
        Ok(())
    }
}

/// The paths to try for `command`, as execvp(3) does.
fn candidates(command: &OsStr, environment: &Environment<'_>) -> Vec<OsString> {
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
    environment: Environment<'a>,
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
        // Components leave out each `.`.
        Ok(text.map(|text| self.watcher.unit.folder.join(text).components().collect()))
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Host, Plan, inheritable};
    use super::*;
    use crate::unit::{self, At, Principal, Words};
    use proptest::prelude::*;
    use std::time::Duration;

    /// A plan of one watcher with the sockets a, b and c.
    fn one(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Plan {
        let mut made = watcher("web", cmd);
        change(&mut made);
        planned(units([socket("a"), socket("b"), socket("c")], [made]))
    }

    /// What worker 2 is exec'd with; `change` may alter the moment.
    fn fill(plan: &Plan, file: Option<&str>, unbound: &[&str]) -> Result<Invocation, String> {
        let unbound: Vec<String> = unbound.iter().map(|name| name.to_string()).collect();
        plan.watchers[0].invocation(&Moment {
            wid: 2,
            generation: 3,
            environment: &inheritable(&Machine::new().environment()),
            manager_env: &plan.manager.env,
            env_file: file,
            unbound: &unbound,
        })
    }

    fn invoked(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Invocation {
        fill(&one(cmd, change), None, &[]).expect("an invocation")
    }

    fn argv(cmd: &str, change: impl FnOnce(&mut unit::Watcher)) -> Vec<String> {
        let argv = invoked(cmd, change).argv.into_iter();
        argv.map(|word| word.into_string().expect("UTF-8"))
            .collect()
    }

    fn variable(invocation: &Invocation, name: &str) -> Option<String> {
        let values = invocation
            .env
            .iter()
            .map(|entry| entry.to_string_lossy().into_owned());
        let mut found = values.filter_map(|entry| {
            let (known, value) = entry.split_once('=').expect("an assignment");
            (known == name).then(|| value.to_owned())
        });
        let value = found.next();
        assert_eq!(found.next(), None, "{name} is there twice");
        value
    }

    fn list(words: &[&str]) -> At<Words> {
        At::nowhere(Words::List(words.iter().map(|w| at(w)).collect()))
    }

    fn text(text: &str) -> At<Words> {
        At::nowhere(Words::Text(text.into()))
    }

    fn sockets(names: &[&str]) -> Option<Vec<At<String>>> {
        Some(names.iter().map(|name| at(name)).collect())
    }

    #[test]
    fn the_example_of_circus_gets_its_fd() {
        assert_eq!(
            argv(
                "chaussette --fd $(circus.sockets.b) --backend meinheld mycool.app",
                |_| ()
            ),
            [
                "chaussette",
                "--fd",
                "3",
                "--backend",
                "meinheld",
                "mycool.app"
            ]
        );
    }

    #[test]
    fn fds_are_counted_in_order_of_the_list() {
        let made = invoked(
            "x $(circus.socket.A) ((circus.sockets.c)):$(circus.wid)",
            |w| {
                w.sockets = sockets(&["c", "b", "a"]);
            },
        );
        assert_eq!(made.argv, ["x", "5", "3:2"]);
        assert_eq!(made.fds, ["c", "b", "a"]);
        assert_eq!(variable(&made, "LISTEN_FDS").as_deref(), Some("3"));
        assert_eq!(variable(&made, "LISTEN_FDNAMES").as_deref(), Some("c:b:a"));
        assert!(made.listen_pid);
    }

    #[test]
    fn text_is_split_as_a_shell_splits_it_and_a_list_is_taken_as_it_is() {
        assert_eq!(
            argv(
                r#"x 'a b' "c $(circus.wid)" d\ e --n=$(circus.name)"#,
                |w| {
                    w.args = Some(list(&["f g", "'h'"]).into());
                }
            ),
            ["x", "a b", "c 2", "d e", "--n=web", "f g", "'h'"]
        );
        assert_eq!(
            argv("", |w| {
                w.cmd = list(&["x", "a  b", "", "$(circus.numprocesses)"]);
                w.args = Some(text("c 'd e'").into());
            }),
            ["x", "a  b", "", "1", "c", "d e"]
        );
    }

    #[test]
    fn a_value_never_becomes_two_words() {
        assert_eq!(
            argv("x $(circus.env.A) b", |w| w.env =
                env(&[("A", "1 '2' \"3")])),
            ["x", "1 '2' \"3", "b"]
        );
        assert_eq!(
            argv("x $(circus.env.A) b", |w| w.env = env(&[("A", "")])),
            ["x", "", "b"]
        );
    }

    #[test]
    fn an_unbound_socket_is_left_out_and_later_fds_move_up() {
        let plan = one("x $(circus.socket.c)", |w| {
            w.sockets = sockets(&["a", "b", "c"])
        });
        let made = fill(&plan, None, &["b"]).expect("an invocation");
        assert_eq!(made.argv, ["x", "4"]);
        assert_eq!(made.fds, ["a", "c"]);
        assert_eq!(variable(&made, "LISTEN_FDS").as_deref(), Some("2"));
        assert_eq!(variable(&made, "LISTEN_FDNAMES").as_deref(), Some("a:c"));
        let none = one("x", |w| w.sockets = sockets(&["a"]));
        let none = fill(&none, None, &["a"]).expect("an invocation");
        assert!(!none.listen_pid);
        assert_eq!(variable(&none, "LISTEN_FDS"), None);
        let why = fill(&plan, None, &["c"]).expect_err("its fd is named");
        assert_eq!(
            why,
            "watcher `web`: its command: socket `c` is not bound yet: it is `optional`, and will be tried again"
        );
    }

    #[test]
    fn a_worker_lacks_what_it_is_told_and_what_it_can_do_nothing_without() {
        let lacks = |plan: &Plan, unbound: &[&str]| {
            let lacking = plan.watchers[0].lacks(|name| !unbound.contains(&name));
            lacking.map(str::to_owned)
        };
        let both = |w: &mut unit::Watcher| w.sockets = sockets(&["a", "b"]);
        let plan = one("x", both);
        assert_eq!(lacks(&plan, &[]), None);
        assert_eq!(lacks(&plan, &["a"]), None, "it has another");
        assert_eq!(lacks(&plan, &["a", "b"]).as_deref(), Some("a"));
        let plan = one("x $(circus.socket.b)", both);
        assert_eq!(lacks(&plan, &["a"]), None);
        assert_eq!(lacks(&plan, &["b"]).as_deref(), Some("b"));
        let plan = one("x $(circus.socket.a)", |w| {
            w.stdin_socket = Some(at("b").into())
        });
        assert_eq!(lacks(&plan, &["b"]).as_deref(), Some("b"));
        assert_eq!(lacks(&one("x", |_| ()), &["a"]), None, "it needs none");
    }

    #[test]
    fn a_stdin_socket_is_fd_0_and_alone_sets_no_listen_fds() {
        let plan = one("x $(circus.socket.a)", |w| {
            w.stdin_socket = Some(at("a").into())
        });
        let made = fill(&plan, None, &[]).expect("an invocation");
        assert_eq!(made.argv, ["x", "0"]);
        assert_eq!(made.stdin, Source::Socket("a".into()));
        assert!(made.fds.is_empty() && !made.listen_pid);
        assert!(fill(&plan, None, &["a"]).is_err());
        let listed = invoked("x $(circus.socket.a)", |w| {
            w.stdin_socket = Some(at("a").into());
            w.sockets = sockets(&["b", "a"]);
        });
        assert_eq!(listed.argv, ["x", "4"]);
        assert_eq!(listed.fds, ["b", "a"]);
    }

    #[test]
    fn listen_fds_false_passes_the_sockets_without_a_word() {
        let made = invoked("x $(circus.socket.a)", |w| w.listen_fds = false);
        assert_eq!(made.fds, ["a"]);
        assert!(!made.listen_pid);
        assert_eq!(variable(&made, "LISTEN_FDS"), None);
        assert_eq!(variable(&made, "LISTEN_FDNAMES"), None);
    }

    #[test]
    fn a_shell_gets_the_text_as_it_is_and_lists_in_quotes() {
        assert_eq!(
            argv(
                "exec x --fd $(circus.socket.a) | cat > \"$HOME/y\"\n",
                |w| {
                    w.shell = true;
                    w.args = Some(list(&["it's", "$(circus.wid) $X", "a"]).into());
                    w.shell_args = Some(text("one 'two three'").into());
                }
            ),
            [
                "/bin/sh",
                "-c",
                "exec x --fd 3 | cat > \"$HOME/y\" 'it'\\''s' '2 $X' 'a'",
                "one",
                "two three"
            ]
        );
        assert_eq!(
            argv("echo a", |w| {
                w.shell = true;
                w.args = Some(text("; echo b").into());
            })[2],
            "echo a ; echo b"
        );
    }

    #[test]
    fn values_in_a_shell_text_are_quoted_for_where_they_stand() {
        let shown = |cmd: &str, value: &str| {
            let plan = one(cmd, |w| {
                w.shell = true;
                w.env = env(&[("A", value)]);
            });
            fill(&plan, None, &[]).map(|made| made.argv[2].to_string_lossy().into_owned())
        };
        let nasty = "a'b $(rm) \"c`";
        assert_eq!(
            shown("echo $(circus.env.A)", "plain").as_deref(),
            Ok("echo plain")
        );
        assert_eq!(
            shown("echo $(circus.env.A)", nasty).as_deref(),
            Ok("echo 'a'\\''b $(rm) \"c`'")
        );
        assert_eq!(
            shown("echo \"$(circus.env.A)\"", nasty).as_deref(),
            Ok("echo \"a'b \\$(rm) \\\"c\\`\"")
        );
        assert_eq!(
            shown("echo '$(circus.env.A)'", nasty).as_deref(),
            Ok("echo 'a'\\''b $(rm) \"c`'")
        );
        assert_eq!(
            shown("echo \"$(cat $(circus.env.A))\"", "plain").as_deref(),
            Ok("echo \"$(cat plain)\"")
        );
        let why = shown("echo \"$(cat $(circus.env.A))\"", nasty).expect_err("not quotable");
        assert!(why.contains("use the shell's own `\"$A\"`"), "{why}");
    }

    #[test]
    fn the_executable_replaces_what_is_run_and_not_its_name() {
        let made = invoked("gunicorn app", |w| {
            w.executable = Some(at("./bin/$(circus.name)").into())
        });
        assert_eq!(made.argv, ["gunicorn", "app"]);
        assert_eq!(made.candidates, ["./bin/web"]);
        let shell = invoked("x", |w| {
            w.shell = true;
            w.executable = Some(at("/bin/bash").into());
        });
        assert_eq!(shell.argv, ["/bin/sh", "-c", "x"]);
        assert_eq!(shell.candidates, ["/bin/bash"]);
    }

    #[test]
    fn a_bare_name_is_looked_up_in_the_workers_path() {
        let path = |path: &str| invoked("x", |w| w.env = env(&[("PATH", path)])).candidates;
        assert_eq!(invoked("x", |_| ()).candidates, ["/usr/bin/x", "/bin/x"]);
        assert_eq!(path("/a::b:"), ["/a/x", "./x", "b/x", "./x"]);
        assert_eq!(path(""), ["./x"]);
        assert_eq!(invoked("/bin/x", |_| ()).candidates, ["/bin/x"]);
        assert_eq!(invoked("bin/x", |_| ()).candidates, ["bin/x"]);
        let bare = invoked("x", |w| w.copy_env = false);
        assert_eq!(bare.candidates.len(), 6);
        let why = fill(
            &one("$(circus.env.A)", |w| w.env = env(&[("A", "")])),
            None,
            &[],
        );
        assert_eq!(
            why.expect_err("no command"),
            "watcher `web`: the first word of its command is empty"
        );
    }

    #[test]
    fn relative_paths_start_at_the_units_folder() {
        let made = invoked("x", |w| {
            w.working_dir = Some(at("srv/$(circus.name)").into());
            w.stdin = unit::Stdin::File(at("in"));
            w.stdout = Output::File(at("/var/log/$(circus.wid).log"));
            w.stderr = Output::File(at("$(circus.working_dir)/err"));
        });
        assert_eq!(made.working_dir, Some("/etc/units/srv/web".into()));
        assert_eq!(made.stdin, Source::File("/etc/units/in".into()));
        assert_eq!(made.stdout, Sink::File("/var/log/2.log".into()));
        assert_eq!(made.stderr, Sink::File("/etc/units/srv/web/err".into()));
        let default = invoked("x", |w| w.stderr = Output::Null);
        assert_eq!(default.working_dir, None);
        assert_eq!(
            (default.stdin, default.stdout, default.stderr),
            (Source::Null, Sink::Inherit, Sink::Null)
        );
    }

    #[test]
    fn the_environment_is_layered_and_later_wins() {
        let mut made = watcher("web", "x");
        made.user = Some(At::nowhere(Principal::Name("deploy".into())).into());
        made.env = env(&[
            ("A", "unit"),
            ("B", "unit"),
            ("C", "$(circus.env.C)+unit"),
            ("D", "$(circus.env.A)+$(circus.env.E)"),
        ]);
        made.env_file = Some(at("./env").into());
        let mut all = units([], [made]);
        all.manager.env = env(&[
            ("A", "manager"),
            ("C", "manager"),
            ("HOME", "/m"),
            ("LANG", "de"),
        ]);
        let plan = planned(all);
        let (path, may_be_missing) = plan.watchers[0].env_file(1).expect("there is one");
        assert_eq!(path.as_os_str(), "/etc/units/env", "as it is spoken of");
        assert!(!may_be_missing);
        let made = fill(&plan, Some("B=file\nE='of file'\n"), &[]).expect("an invocation");
        let names = |wanted: &str| variable(&made, wanted);
        for (name, value) in [
            ("A", "unit"),
            ("B", "file"),
            ("C", "manager+unit"),
            ("D", "unit+of file"),
            ("E", "of file"),
            ("HOME", "/m"),
            ("USER", "deploy"),
            ("LOGNAME", "deploy"),
            ("SHELL", "/bin/sh"),
            ("PATH", "/usr/bin:/bin"),
            ("LANG", "de"),
            ("TENTPOLE_WATCHER", "web"),
            ("TENTPOLE_WID", "2"),
            ("TENTPOLE_GENERATION", "3"),
        ] {
            assert_eq!(names(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(made.env.len(), 14);
        let order: Vec<&str> = made
            .env
            .iter()
            .filter_map(|entry| entry.to_str().ok()?.split('=').next())
            .collect();
        assert_eq!(order[..3], ["LANG", "PATH", "HOME"]);
        assert!(order[3..].is_sorted());
    }

    #[test]
    fn an_env_file_that_is_missing_or_wrong_is_an_error_unless_it_may_be_missing() {
        let plan = one("x", |w| w.env_file = Some(at("env").into()));
        let why = |file| fill(&plan, file, &[]).expect_err("no environment");
        assert_eq!(why(None), "watcher `web`: its `env_file` could not be read");
        assert_eq!(
            why(Some("A=1\nB")),
            "watcher `web`: its `env_file`, line 2: `B` is not KEY=VALUE; a comment starts with `#`"
        );
        let may = one("x", |w| w.env_file = Some(at("-env").into()));
        assert!(fill(&may, None, &[]).is_ok());
        let unknown = one("x $(circus.env.A)", |w| w.env_file = Some(at("env").into()));
        assert_eq!(
            fill(&unknown, Some(""), &[]).expect_err("no A"),
            "watcher `web`: its command: `$(circus.env.A)` is not in the worker's environment"
        );
    }

    #[test]
    fn a_virtualenv_leads_the_path() {
        let made = invoked("x", |w| {
            w.virtualenv = Some(at("venv").into());
            w.env = env(&[("PYTHONHOME", "/p"), ("PATH", "/b")]);
        });
        assert_eq!(
            variable(&made, "PATH").as_deref(),
            Some("/etc/units/venv/bin:/b")
        );
        assert_eq!(
            variable(&made, "VIRTUAL_ENV").as_deref(),
            Some("/etc/units/venv")
        );
        assert_eq!(variable(&made, "PYTHONHOME"), None);
        assert_eq!(made.candidates[0], "/etc/units/venv/bin/x");
    }

    #[test]
    fn notify_and_watchdog_are_told_of() {
        let plain = invoked("x", |_| ());
        assert!(!plain.notify && !plain.watchdog_pid);
        assert!(invoked("x", |w| w.kind = WatcherKind::Notify).notify);
        let watched = invoked("x", |w| w.watchdog = Some(Duration::from_millis(1500)));
        assert!(watched.notify && watched.watchdog_pid);
        assert_eq!(
            variable(&watched, "WATCHDOG_USEC").as_deref(),
            Some("1500000")
        );
    }

    #[test]
    fn bytes_that_are_no_text_pass_through() {
        let plan = one("x $(circus.env.RAW)", |w| {
            w.env_file = Some(at("-e").into())
        });
        let mut own = Machine::new().environment();
        own.push(("RAW".into(), OsString::from_vec(vec![0xff, b' ', 0xfe])));
        let made = plan.watchers[0].invocation(&Moment {
            wid: 1,
            generation: 1,
            environment: &inheritable(&own),
            manager_env: &[],
            env_file: None,
            unbound: &[],
        });
        assert_eq!(
            made.expect("an invocation").argv[1].as_bytes(),
            [0xff, b' ', 0xfe]
        );
    }

    #[test]
    fn a_plan_comes_back_from_json_as_it_was() {
        let plan = one("x $(circus.socket.a) $(circus.env.A)", |w| {
            w.env = env(&[("A", "$(circus.name)")]);
            w.stdout = Output::File(at("$(circus.working_dir)/$(circus.wid)"));
            w.working_dir = Some(at("$(circus.env.HOME)").into());
        });
        let json = serde_json::to_string(&plan).expect("plain data");
        let back: Plan = serde_json::from_str(&json).expect("what was written");
        assert_eq!(back, plan);
        assert_eq!(fill(&back, None, &[]), fill(&plan, None, &[]));
    }

    #[test]
    fn a_plan_without_templates_is_no_panic() {
        let mut plan = one("x $(circus.socket.a)", |_| ());
        let mut bare = Watcher::clone(&plan.watchers[0]);
        bare.sockets.clear();
        plan.watchers = vec![bare.clone().into()];
        assert!(fill(&plan, None, &[]).is_err());
        bare.templates = super::super::Templates::default();
        plan.watchers = vec![bare.into()];
        assert!(fill(&plan, None, &[]).is_err());
    }

    proptest! {
        #[test]
        fn no_value_changes_the_number_of_words(
            value in "[^\0]{0,30}",
            before in "([a-z]{1,3} ){0,3}",
            quoted: bool,
        ) {
            let word = if quoted { "\"a $(circus.env.A)\"" } else { "$(circus.env.A)" };
            let cmd = format!("x {before}{word} $(circus.wid)");
            let plan = one(&cmd, |w| w.env = env(&[("A", &value.replace("circus", "c"))]));
            let made = fill(&plan, None, &[]).expect("an invocation");
            let template = shell_words::split(&cmd).expect("a command");
            prop_assert_eq!(made.argv.len(), template.len());
        }

        /// The real shell is the judge.
        #[test]
        fn a_shell_reads_an_inserted_value_as_one_word(
            value in "[ -~\n\t]{0,12}",
            (before, after) in prop::sample::select(vec![("", ""), ("\"", "\""), ("'", "'"), ("\"${X}", "\""), ("$(true)", "")]),
        ) {
            let value = value.replace("circus", "c");
            let cmd = format!("printf '%s|' {before}$(circus.env.A){after} end");
            let plan = one(&cmd, |w| {
                w.shell = true;
                w.env = env(&[("A", &value)]);
            });
            let made = fill(&plan, None, &[]).expect("an invocation");
            #[allow(clippy::disallowed_methods)] // A test asks the real shell.
            let output = std::process::Command::new(&made.argv[0])
                .args(&made.argv[1..])
                .env_remove("X")
                .output()
                .expect("a shell");
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{value}|end|"));
        }
    }
}
