//! What is right by itself in a watcher, and wrong or useless together.

use super::super::environment::{self, shorten};
use super::super::substitute::{Template, TextOption};
use super::super::{Host, option};
use super::{Compiler, Templates};
use crate::unit::{self, At, Finding, Findings, NotifyAccess, Place, Stdin, WatcherKind, Words};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

/// The keys that can name a socket.
const SOCKET_KEYS: [&str; 8] = [
    "args",
    "cmd",
    "env",
    "executable",
    "shell_args",
    "sockets",
    "stdin_socket",
    "use_sockets",
];

/// Options that are right each by itself and wrong together.
pub(super) fn find_contradictions(watcher: &unit::Watcher, findings: &mut Findings) {
    let name = &watcher.name.value;
    let mut refuse = |place: Place, what: &str| {
        findings.push(Finding::error(place, format!("watcher `{name}`: {what}")));
    };
    let own_place = watcher.name.place;
    if let (Some(sockets), true) = (&watcher.sockets, watcher.use_sockets) {
        refuse(
            sockets.first().map_or(own_place, |at| at.place),
            "`sockets` passes those it lists and `use_sockets` all of them; keep one of the two",
        );
    }
    if let (Some(socket), Stdin::File(_)) = (&watcher.stdin_socket, &watcher.stdin) {
        refuse(
            socket.place,
            "fd 0 can't be both `stdin_socket` and the file of `stdin`; keep one of the two",
        );
    }
    if watcher.notify_access == NotifyAccess::None {
        if watcher.kind == WatcherKind::Notify {
            refuse(
                own_place,
                "`type = \"notify\"` waits for READY=1, which `notify_access = \"none\"` ignores",
            );
        }
        if watcher.watchdog.is_some() {
            refuse(
                own_place,
                "`watchdog` waits for WATCHDOG=1, which `notify_access = \"none\"` ignores",
            );
        }
    }
    if watcher.singleton && watcher.numprocesses.value > 1 {
        refuse(
            watcher.numprocesses.place,
            "`singleton = true` allows no more than one worker in `numprocesses`",
        );
    }
    for (key, value) in &watcher.env {
        if let Some(why) = environment::refusal(key) {
            refuse(
                value.place,
                &format!("`{}` can't be set in `env`: {why}", shorten(key)),
            );
        }
    }
    let mut warn = |place: Place, what: &str| {
        findings.push(Finding::warning(place, format!("watcher `{name}`: {what}")));
    };
    if watcher.restart_delay > watcher.restart_max_delay {
        warn(
            own_place,
            "`restart_delay` is longer than `restart_max_delay`, which caps it",
        );
    }
    if watcher
        .start_timeout
        .is_some_and(|limit| watcher.ready_delay >= limit)
    {
        warn(
            own_place,
            "no worker can be ready before `start_timeout`, which is not longer than `ready_delay`",
        );
    }
}

impl Compiler<'_, '_> {
    /// Errors for options that refer to themselves, or to each other so often that filling them in would never end.
    pub(super) fn find_circles(
        &mut self,
        argv: &Template,
        options: &[(TextOption, Template)],
        env: &[(u32, Template)],
    ) {
        const MOST: usize = 10_000;
        // A bit for each that an option leads to.
        let mut reach = [0u8; TextOption::ALL.len()];
        for (option, template) in options {
            for other in template.options() {
                reach[*option as usize] |= 1 << other as usize;
            }
        }
        for by in 0..reach.len() {
            for from in 0..reach.len() {
                if reach[from] & (1 << by) != 0 {
                    reach[from] |= reach[by];
                }
            }
        }
        let mut told = Vec::new();
        for (option, _) in options {
            let reached = reach[*option as usize];
            // Those of one circle lead to the same.
            if reached & (1 << *option as usize) == 0 || told.contains(&reached) {
                continue;
            }
            told.push(reached);
            let place = option::written(self.unit, *option).map(|value| value.place);
            let key = option.key();
            self.error(
                place.unwrap_or(self.unit.name.place),
                format!("`{key}` refers to itself, or to an option that refers back to it"),
            );
        }
        if !told.is_empty() {
            return;
        }
        let mut costs = Costs {
            options,
            known: [None; TextOption::ALL.len()],
        };
        let all = env.iter().map(|(_, template)| template);
        let all = all.chain(options.iter().map(|(_, template)| template));
        for template in all.chain([argv]) {
            let cost = template
                .options()
                .map(|option| costs.of(option))
                .fold(0, usize::saturating_add);
            if cost > MOST {
                let place = self.unit.name.place;
                self.error(
                    place,
                    format!("its options refer to each other in more than {MOST} places"),
                );
                return;
            }
        }
    }

    /// What is to be said of the sockets once all of them are known.
    pub(super) fn judge_sockets(&mut self) {
        let unit = self.unit;
        let place = match unit.sockets.as_ref().and_then(|names| names.first()) {
            Some(first) => first.place,
            None => unit.name.place,
        };
        let passes = !self.passed.is_empty();
        let is_unsure = self.lacks_socket || self.is_unsure_of(&SOCKET_KEYS);
        if unit.on_demand.value && !passes && self.stdin_socket.is_none() && !is_unsure {
            self.error(
                unit.on_demand.place,
                "`on_demand` waits for traffic, but the watcher has no socket; name one in `sockets`".into(),
            );
        }
        if passes && !unit.listen_fds && !self.refers {
            self.warning(
                place,
                "nothing tells the worker of its sockets: `listen_fds` is false, and no `$(circus.socket.NAME)` names one"
                    .into(),
            );
        }
        if passes && unit.listen_fds && unit.shell && !has_exec(&unit.cmd.value) {
            self.warning(
                unit.cmd.place,
                "LISTEN_PID will be the shell's, so a program that the shell starts does not take the sockets; start it \
                 with `exec`"
                    .into(),
            );
        }
        let world = self.world;
        let is_renamed = |index: &usize| world.sockets[*index].fd_name.is_some();
        // The names of units differ.
        if !unit.listen_fds || !self.passed.iter().any(is_renamed) {
            return;
        }
        let mut names: HashMap<&str, usize> = HashMap::new();
        for (position, &index) in self.passed.clone().iter().enumerate() {
            let socket = &self.world.sockets[index];
            let fd_name = socket.fd_name.as_ref().unwrap_or(&socket.name.value);
            if let Some(other) = names.insert(fd_name, index) {
                let listed = unit.sockets.as_ref().and_then(|names| names.get(position));
                self.warning(
                    listed.map_or(unit.name.place, |at| at.place),
                    format!(
                        "sockets `{}` and `{}` are both called `{fd_name}` in LISTEN_FDNAMES",
                        self.world.sockets[other].name.value, socket.name.value
                    ),
                );
            }
        }
    }

    /// What may be meant so, and mostly is not: it fails in the worker, where nothing tells of the cause.
    pub(super) fn judge_places(&mut self, templates: &Templates, host: &dyn Host) {
        let unit = self.unit;
        let is_filled = |option| templates.options.iter().any(|(known, _)| *known == option);
        let path = |option| {
            let text = option::text(unit, option).filter(|text| !text.is_empty())?;
            let place = option::written(unit, option)?.place;
            let path: PathBuf = unit.folder.join(text).components().collect();
            // What is filled in may differ from worker to worker.
            (!is_filled(option)).then_some((place, path))
        };
        if let Some((place, path)) = path(TextOption::Virtualenv)
            && !host.has_folder(&path)
        {
            let message = format!("`virtualenv`: there is no folder {} now", path.display());
            self.warning(place, message);
        }
        if let Some((place, path)) = path(TextOption::EnvFile)
            && let Some(fault) = self.fault_of_env_file(host.env_file(&path))
        {
            self.warning(place, format!("`env_file` {} {fault}", path.display()));
        }
        let nofile = unit
            .rlimits
            .iter()
            .find(|(it, _)| *it == unit::Resource::Nofile);
        let (count, soft) = (self.passed.len(), nofile.and_then(|(_, limit)| limit.soft));
        if let Some(soft) = soft.filter(|soft| *soft <= count as u64 + 3) {
            let message = format!(
                "{count} sockets and its output leave nothing of the {soft} files that `nofile` in `rlimits` lets it open"
            );
            self.warning(unit.name.place, message);
        }
    }

    /// Why workers could not be started with an `env_file` as it is now, if it can be told: it may become another until then.
    fn fault_of_env_file(&self, read: io::Result<String>) -> Option<String> {
        let may_be_missing = |file: &At<String>| file.value.starts_with('-');
        match read {
            Ok(text) => {
                let read = environment::parse_env_file(&text);
                read.err().map(|why| format!("can't be read, {why}"))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound if self.unit.env_file.as_deref().is_some_and(may_be_missing) => None,
                io::ErrorKind::NotFound => Some(
                    "is not there now, and without it no worker can be started; a `-` before the path allows it to be missing"
                        .into(),
                ),
                // It is the manager that has to read it, and that may be somebody else.
                io::ErrorKind::PermissionDenied => None,
                _ => Some(format!("can't be read: {}", unit::reason(&error))),
            },
        }
    }
}

/// How many parts it takes to fill in an option, with all that it refers to; none of them is in a circle.
struct Costs<'a> {
    options: &'a [(TextOption, Template)],
    known: [Option<usize>; TextOption::ALL.len()],
}

impl Costs<'_> {
    fn of(&mut self, option: TextOption) -> usize {
        if let Some(cost) = self.known[option as usize] {
            return cost;
        }
        let options = self.options;
        let mut cost = 1usize;
        if let Some((_, template)) = options.iter().find(|(known, _)| *known == option) {
            cost = template.part_count();
            for other in template.options() {
                cost = cost.saturating_add(self.of(other));
            }
        }
        self.known[option as usize] = Some(cost);
        cost
    }
}

/// Whether the shell is asked to become the program.
fn has_exec(words: &Words) -> bool {
    let in_text = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .any(|word| word == "exec")
    };
    match words {
        Words::Text(text) => in_text(text),
        Words::List(list) => list.iter().any(|word| in_text(&word.value)),
    }
}
