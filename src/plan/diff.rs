//! What changes from one plan to the next, and which keys are the reason.
//!
//! A plan differs where a file was written anew, and also where the world moved under it: the id behind a user's name, the
//! list of all sockets, `[manager] env`. Both are told by the key that a user would look at.

use super::substitute::TextOption;
use super::{Identity, Plan, Socket, Templates, Watcher, option};
use crate::unit::{self, Address, Name};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::rc::Rc;

/// What is done to one unit, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The unit.
    pub unit: Unit,
    /// What is done to it.
    pub action: Action,
    /// The keys that differ, as a unit file has them, sorted; none of what is added or removed.
    pub keys: Vec<String>,
}

/// Which unit; shown as it is written in a header: `manager`, `socket.web`, `watcher.web`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Unit {
    Manager,
    Socket(Name),
    Watcher(Name),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Manager => f.write_str("manager"),
            Unit::Socket(name) => write!(f, "socket.{name}"),
            Unit::Watcher(name) => write!(f, "watcher.{name}"),
        }
    }
}

/// What is done to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Add,
    /// It is there no more.
    Remove,
    /// A watcher of which nothing but `numprocesses` differs.
    Scale,
    /// A watcher whose workers are replaced.
    Reload,
    /// A socket that needs another one of the kernel.
    Rebind,
    /// What can be changed in place: the manager, or a socket that keeps its descriptor.
    Set,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Scale => "scale",
            Action::Reload => "reload",
            Action::Rebind => "rebind",
            Action::Set => "set",
        })
    }
}

/// What has to be done so that what `old` describes becomes what `new` describes. A unit that stays as it is does not
/// appear, and each other one appears once.
///
/// The order is that in which it can be done: sockets that are added or changed, by name; the manager; watchers that are
/// added or changed, in the order in which `new` starts them; then what is removed, watchers in the order in which `old`
/// stops them, sockets last.
pub fn diff(old: &Plan, new: &Plan) -> Vec<Change> {
    // Taken apart whole, so that a part that is added can't be forgotten.
    let Plan {
        manager: _,
        control_gid: _,
        sockets,
        watchers,
    } = new;
    let old_sockets = by_name(&old.sockets, |socket| socket.name());
    let old_watchers = by_name(&old.watchers, |watcher| watcher.name());
    let new_sockets = by_name(sockets, |socket| socket.name());
    let new_watchers = by_name(watchers, |watcher| watcher.name());

    let mut changes = Vec::new();
    let mut rebound = HashSet::new();
    for socket in sockets {
        let name = || Unit::Socket(socket.name().to_string());
        let change = match old_sockets.get(socket.name()) {
            None => Some(whole(name(), Action::Add)),
            Some(old) => changed_socket(old, socket).map(|(action, keys)| Change {
                unit: name(),
                action,
                keys,
            }),
        };
        if change
            .as_ref()
            .is_some_and(|it| it.action == Action::Rebind)
        {
            rebound.insert(socket.name());
        }
        changes.extend(change);
    }
    let manager = changed_manager(old, new);
    if !manager.is_empty() {
        changes.push(Change {
            unit: Unit::Manager,
            action: Action::Set,
            keys: manager,
        });
    }
    let has_other_env = old.manager.env != new.manager.env;
    for watcher in watchers {
        let name = || Unit::Watcher(watcher.name().to_string());
        let Some(old) = old_watchers.get(watcher.name()) else {
            changes.push(whole(name(), Action::Add));
            continue;
        };
        let around = Surroundings {
            has_other_env,
            rebound: &rebound,
        };
        changes.extend(
            changed_watcher(old, watcher, &around).map(|(action, keys)| Change {
                unit: name(),
                action,
                keys,
            }),
        );
    }
    // A stop goes the other way round than a start.
    for watcher in old.watchers.iter().rev() {
        if !new_watchers.contains_key(watcher.name()) {
            let unit = Unit::Watcher(watcher.name().to_string());
            changes.push(whole(unit, Action::Remove));
        }
    }
    for socket in &old.sockets {
        if !new_sockets.contains_key(socket.name()) {
            let unit = Unit::Socket(socket.name().to_string());
            changes.push(whole(unit, Action::Remove));
        }
    }
    changes
}

fn by_name<T>(units: &[Rc<T>], name: fn(&T) -> &str) -> HashMap<&str, &T> {
    units.iter().map(|unit| (name(unit), &**unit)).collect()
}

/// A unit that comes or goes.
fn whole(unit: Unit, action: Action) -> Change {
    let keys = Vec::new();
    Change { unit, action, keys }
}

/// What of the rest of the plan reaches into every watcher.
struct Surroundings<'p> {
    /// `[manager] env` differs.
    has_other_env: bool,
    /// Sockets that the kernel has another one for.
    rebound: &'p HashSet<&'p str>,
}

/// Keys that differ, each once and in order.
#[derive(Default)]
struct Keys(BTreeSet<&'static str>);

impl Keys {
    fn add(&mut self, key: &'static str) {
        self.0.insert(key);
    }

    /// Adds `key` for something that differs though nobody may have written it: unless one of `causes` differs, from which it
    /// follows.
    fn add_unless(&mut self, key: &'static str, causes: &[&'static str]) {
        if !causes.iter().any(|cause| self.0.contains(cause)) {
            self.add(key);
        }
    }

    fn into_names(self) -> Vec<String> {
        self.0.into_iter().map(str::to_string).collect()
    }
}

/// `FIELD => KEY` for each field of a unit, then the fields that are no keys: makes the function that says which keys of two units differ.
macro_rules! fields {
    (
        $differing:ident, $all:ident: $type:path {
            $($field:ident => $key:literal,)*
            ; $($other:ident),*
        }
    ) => {
        fn $differing(old: &$type, new: &$type) -> Keys {
            // Taken apart whole: a field that is added to the unit and not to its table here does not compile.
            let $type { $($field: _,)* $($other: _,)* } = new;
            let mut keys = Keys::default();
            $(if old.$field != new.$field {
                keys.add($key);
            })*
            keys
        }

        #[cfg(test)]
        const $all: &[&str] = &[$($key),*];
    };
}

fields! {
    manager_keys, MANAGER_KEYS: unit::Manager {
        control => "control",
        control_group => "control_group",
        control_mode => "control_mode",
        warmup_delay => "warmup_delay",
        shutdown_timeout => "shutdown_timeout",
        log_level => "log_level",
        log_format => "log_format",
        env => "env",
        ;
    }
}

fields! {
    socket_keys, SOCKET_KEYS: unit::Socket {
        // However it was spelled: `listen`, or `host`, `port` and `path`.
        address => "listen",
        kind => "type",
        family => "family",
        backlog => "backlog",
        interface => "interface",
        so_reuseport => "so_reuseport",
        blocking => "blocking",
        umask => "umask",
        user => "user",
        group => "group",
        mode => "mode",
        directory_mode => "directory_mode",
        replace => "replace",
        optional => "optional",
        remove_on_stop => "remove_on_stop",
        fd_name => "fd_name",
        inherit => "inherit",
        trigger_limit => "trigger_limit",
        ; name
    }
}

fields! {
    watcher_keys, WATCHER_KEYS: unit::Watcher {
        cmd => "cmd",
        args => "args",
        executable => "executable",
        shell => "shell",
        shell_args => "shell_args",
        sockets => "sockets",
        use_sockets => "use_sockets",
        listen_fds => "listen_fds",
        stdin => "stdin",
        stdin_socket => "stdin_socket",
        numprocesses => "numprocesses",
        singleton => "singleton",
        kind => "type",
        warmup_delay => "warmup_delay",
        ready_delay => "ready_delay",
        start_timeout => "start_timeout",
        watchdog => "watchdog",
        watchdog_signal => "watchdog_signal",
        notify_access => "notify_access",
        autostart => "autostart",
        on_demand => "on_demand",
        restart => "restart",
        restart_delay => "restart_delay",
        restart_max_delay => "restart_max_delay",
        restart_reset => "restart_reset",
        max_retry => "max_retry",
        stop_signal => "stop_signal",
        graceful_timeout => "graceful_timeout",
        stop_children => "stop_children",
        reload => "reload",
        reload_surge => "reload_surge",
        max_age => "max_age",
        max_age_variance => "max_age_variance",
        critical => "critical",
        priority => "priority",
        after => "after",
        requires => "requires",
        user => "user",
        group => "group",
        supplementary_groups => "supplementary_groups",
        umask => "umask",
        working_dir => "working_dir",
        nice => "nice",
        oom_score_adj => "oom_score_adj",
        cpu_affinity => "cpu_affinity",
        rlimits => "rlimits",
        env => "env",
        env_file => "env_file",
        copy_env => "copy_env",
        virtualenv => "virtualenv",
        stdout => "stdout",
        stderr => "stderr",
        // The folder is where relative paths start: it is told by the keys that have one.
        ; name, folder
    }
}

/// The keys of `[manager]` that differ.
fn changed_manager(old: &Plan, new: &Plan) -> Vec<String> {
    let mut keys = manager_keys(&old.manager, &new.manager);
    if old.control_gid != new.control_gid {
        keys.add("control_group");
    }
    keys.into_names()
}

/// What is done to a socket, if anything, and the keys that differ.
fn changed_socket(old: &Socket, new: &Socket) -> Option<(Action, Vec<String>)> {
    let Socket { unit, uid, gid } = new;
    let mut keys = socket_keys(&old.unit, unit);
    if old.uid != *uid {
        keys.add("user");
    }
    if old.gid != *gid {
        // Without a `group` it is the user's.
        let key = unit.group.as_ref().map_or("user", |_| "group");
        keys.add_unless(key, &["user", "group"]);
    }
    let makes_another = |key: &&'static str| match *key {
        "listen" | "type" | "so_reuseport" => true,
        // Of any other address it says what the address says already.
        "family" => matches!(unit.address.value, Address::Port(_) | Address::Host(..)),
        _ => false,
    };
    let action = match keys.0.iter().any(makes_another) {
        _ if keys.0.is_empty() => return None,
        true => Action::Rebind,
        false => Action::Set,
    };
    Some((action, keys.into_names()))
}

/// What is done to a watcher, if anything, and the keys that differ.
fn changed_watcher(
    old: &Watcher,
    new: &Watcher,
    around: &Surroundings<'_>,
) -> Option<(Action, Vec<String>)> {
    let Watcher {
        unit,
        sockets: _,
        listens,
        // It follows from all watchers, and no worker knows of it.
        level: _,
        identity: _,
        templates: _,
    } = new;
    let mut keys = watcher_keys(&old.unit, unit);
    add_moved_paths(old, new, &mut keys);
    add_identity(old, new, &mut keys);
    // Before sockets and texts, which may refer to it.
    if around.has_other_env {
        keys.add("env");
    }
    add_sockets(old, new, &mut keys);
    add_texts(old, new, &mut keys);
    if listens
        .iter()
        .any(|name| around.rebound.contains(name.as_str()))
    {
        keys.add("sockets");
    }
    let action = match keys.0.iter().copied().collect::<Vec<_>>()[..] {
        [] => return None,
        ["numprocesses"] => Action::Scale,
        _ => Action::Reload,
    };
    Some((action, keys.into_names()))
}

/// The paths that are others though their text is the same, since the file stands in another folder.
fn add_moved_paths(old: &Watcher, new: &Watcher, keys: &mut Keys) {
    if old.unit.folder == new.unit.folder {
        return;
    }
    for path in TextOption::ALL {
        match path {
            // It starts at the working directory.
            TextOption::Executable => continue,
            TextOption::WorkingDir
            | TextOption::EnvFile
            | TextOption::Virtualenv
            | TextOption::Stdin
            | TextOption::Stdout
            | TextOption::Stderr => {}
        }
        // What begins with a substitution is relative for all that is known here.
        if option::text(&new.unit, path).is_some_and(|text| !text.starts_with('/')) {
            keys.add(path.key());
        }
    }
}

/// Ids that are others though the names are the same.
fn add_identity(old: &Watcher, new: &Watcher, keys: &mut Keys) {
    let written = ["user", "group", "supplementary_groups"];
    if old.identity == new.identity || written.iter().any(|key| keys.0.contains(key)) {
        return;
    }
    let (Some(old), Some(now)) = (&old.identity, &new.identity) else {
        // With the same keys both have one or neither has; but a plan may come out of a file.
        return keys.add("user");
    };
    let Identity {
        user,
        uid,
        gid,
        groups,
    } = now;
    if old.user != *user || old.uid != *uid {
        keys.add("user");
    }
    if old.gid != *gid {
        keys.add(new.unit.group.as_ref().map_or("user", |_| "group"));
    }
    if old.groups != *groups {
        match new.unit.supplementary_groups {
            Some(_) => keys.add("supplementary_groups"),
            // They are the user's, with the worker's own group among them.
            None => keys.add_unless("user", &["group"]),
        }
    }
}

/// Sockets that are others though the keys are the same.
fn add_sockets(old: &Watcher, new: &Watcher, keys: &mut Keys) {
    // Without a list they are collected from texts.
    const CAUSES: &[&str] = &[
        "sockets",
        "use_sockets",
        "stdin_socket",
        "cmd",
        "args",
        "executable",
        "shell",
        "shell_args",
        "env",
    ];
    let names = |watcher: &Watcher| -> Vec<Name> {
        let sockets = watcher.sockets.iter();
        sockets.map(|socket| socket.name.clone()).collect()
    };
    if names(old) != names(new) || old.listens != new.listens {
        let key = if new.unit.use_sockets {
            "use_sockets"
        } else {
            "sockets"
        };
        keys.add_unless(key, CAUSES);
    } else if old.sockets != new.sockets && new.unit.listen_fds {
        // The same ones under another `fd_name`, which stands in LISTEN_FDNAMES.
        keys.add("sockets");
    }
}

/// Texts that are others once they are taken apart, though they are written the same.
fn add_texts(old: &Watcher, new: &Watcher, keys: &mut Keys) {
    // `$(circus.OPTION)` may stand for any other key, which then is named as the reason. The number of workers is not
    // enough: with it alone, nobody would see why workers are replaced.
    if old.templates == new.templates || keys.0.iter().any(|key| *key != "numprocesses") {
        return;
    }
    let Templates { argv, options, env } = &new.templates;
    if old.templates.argv != *argv {
        keys.add("cmd");
    }
    if old.templates.env != *env {
        keys.add("env");
    }
    for option in TextOption::ALL {
        let of = |(known, _): &&(TextOption, _)| *known == option;
        if old.templates.options.iter().find(of) != options.iter().find(of) {
            keys.add(option.key());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Machine;
    use super::super::{Host, User, plan};
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::path::Path;

    /// The plan of a unit file's text, in the folder `/u`.
    fn planned(text: &str) -> Plan {
        planned_on(text, "/u", &Machine::new())
    }

    fn planned_on(text: &str, folder: &str, host: &dyn Host) -> Plan {
        let loaded = unit::read_text(&Path::new(folder).join("t.toml"), text);
        let shown: Vec<String> = loaded
            .findings
            .iter()
            .map(|finding| loaded.sources.render(finding).to_string())
            .collect();
        let (plan, findings) = plan(loaded.units, host);
        plan.unwrap_or_else(|| panic!("{text}\n{shown:?} {findings:?}"))
    }

    /// A change in a line: `watcher.w reload cmd, env`.
    fn line(change: &Change) -> String {
        let line = format!(
            "{} {} {}",
            change.unit,
            change.action,
            change.keys.join(", ")
        );
        line.trim_end().to_string()
    }

    fn between(old: &Plan, new: &Plan) -> Vec<String> {
        diff(old, new).iter().map(line).collect()
    }

    fn told(old: &str, new: &str) -> Vec<String> {
        between(&planned(old), &planned(new))
    }

    const SOCKET: &str = "[socket.s]\npath = \"/run/s\"\n";
    const PORT: &str = "[socket.s]\nlisten = \"127.0.0.1:80\"\n";
    const WATCHER: &str =
        "[socket.s]\nlisten = 1\n[watcher.v]\ncmd = \"v\"\n[watcher.w]\ncmd = \"w\"\n";

    /// Each key of a socket: a line, the unit it is added to, and what is done.
    const OF_SOCKET: &[(&str, &str, &str, Action)] = &[
        ("type", "type = \"dgram\"", SOCKET, Action::Rebind),
        ("so_reuseport", "so_reuseport = true", PORT, Action::Rebind),
        (
            "family",
            "family = \"inet\"",
            "[socket.s]\nlisten = 80\n",
            Action::Rebind,
        ),
        (
            "family",
            "family = \"inet\"",
            "[socket.s]\nport = 80\n",
            Action::Rebind,
        ),
        // It says what the address says.
        ("family", "family = \"inet\"", PORT, Action::Set),
        ("family", "family = \"unix\"", SOCKET, Action::Set),
        ("backlog", "backlog = 5", SOCKET, Action::Set),
        ("interface", "interface = \"lo\"", PORT, Action::Set),
        ("blocking", "blocking = false", SOCKET, Action::Set),
        ("umask", "umask = \"077\"", SOCKET, Action::Set),
        ("user", "user = 0", SOCKET, Action::Set),
        ("group", "group = 33", SOCKET, Action::Set),
        ("mode", "mode = \"0600\"", SOCKET, Action::Set),
        (
            "directory_mode",
            "directory_mode = \"0700\"",
            SOCKET,
            Action::Set,
        ),
        ("replace", "replace = false", SOCKET, Action::Set),
        ("optional", "optional = true", SOCKET, Action::Set),
        (
            "remove_on_stop",
            "remove_on_stop = false",
            SOCKET,
            Action::Set,
        ),
        ("fd_name", "fd_name = \"x\"", SOCKET, Action::Set),
        ("inherit", "inherit = \"never\"", SOCKET, Action::Set),
        (
            "trigger_limit",
            "trigger_limit = {burst = 1}",
            SOCKET,
            Action::Set,
        ),
    ];

    /// Each key of a watcher that is not as it is by default.
    const OF_WATCHER: &[(&str, &str)] = &[
        ("args", "\"a\""),
        ("executable", "\"/x\""),
        ("shell", "true"),
        ("shell_args", "\"a\""),
        ("sockets", "[\"s\"]"),
        ("use_sockets", "true"),
        ("listen_fds", "false"),
        ("stdin", "\"./x\""),
        ("stdin_socket", "\"s\""),
        ("numprocesses", "2"),
        ("singleton", "true"),
        ("type", "\"notify\""),
        ("warmup_delay", "1"),
        ("ready_delay", "1"),
        ("start_timeout", "1"),
        ("watchdog", "1"),
        ("watchdog_signal", "9"),
        ("notify_access", "\"all\""),
        ("autostart", "false"),
        ("restart", "\"never\""),
        ("restart_delay", "1"),
        ("restart_max_delay", "60"),
        ("restart_reset", "1"),
        ("max_retry", "1"),
        ("stop_signal", "2"),
        ("graceful_timeout", "1"),
        ("stop_children", "true"),
        ("reload", "\"HUP\""),
        ("reload_surge", "2"),
        ("max_age", "60"),
        ("max_age_variance", "1"),
        ("critical", "true"),
        ("priority", "1"),
        ("after", "[\"v\"]"),
        ("requires", "[\"v\"]"),
        ("user", "\"deploy\""),
        ("group", "33"),
        ("supplementary_groups", "[33]"),
        ("umask", "\"077\""),
        ("working_dir", "\"/tmp\""),
        ("nice", "1"),
        ("oom_score_adj", "1"),
        ("cpu_affinity", "[0]"),
        ("rlimits", "{ nofile = 64 }"),
        ("env", "{ A = 1 }"),
        ("env_file", "\"/x\""),
        ("copy_env", "false"),
        ("virtualenv", "\"/x\""),
        ("stdout", "\"null\""),
        ("stderr", "{ file = \"/x\" }"),
    ];

    const OF_MANAGER: &[(&str, &str)] = &[
        ("control", "\"/run/c\""),
        ("control_group", "33"),
        ("control_mode", "\"0660\""),
        ("warmup_delay", "1"),
        ("shutdown_timeout", "1"),
        ("log_level", "\"debug\""),
        ("log_format", "\"json\""),
    ];

    #[test]
    fn every_key_of_a_socket_is_told_by_its_name() {
        for (key, line, base, action) in OF_SOCKET {
            let wanted = [format!("socket.s {action} {key}")];
            let other = format!("{base}{line}\n");
            assert_eq!(told(base, &other), wanted, "{line}");
            assert_eq!(told(&other, base), wanted, "without {line}");
        }
        let tried: HashSet<&str> = OF_SOCKET.iter().map(|(key, ..)| *key).collect();
        let left = SOCKET_KEYS.iter().filter(|key| !tried.contains(**key));
        // It can't be left out; it has a test of its own.
        assert_eq!(left.collect::<Vec<_>>(), [&"listen"]);
    }

    #[test]
    fn another_address_is_another_socket_however_it_is_spelled() {
        let wanted = ["socket.s rebind listen"];
        assert_eq!(
            told(PORT, "[socket.s]\nlisten = \"127.0.0.1:81\"\n"),
            wanted
        );
        assert_eq!(told(PORT, SOCKET), wanted);
        assert_eq!(
            told(PORT, "[socket.s]\nhost = \"127.0.0.1\"\nport = 80\n"),
            [""; 0]
        );
    }

    #[test]
    fn every_key_of_a_watcher_is_told_by_its_name() {
        for (key, value) in OF_WATCHER {
            let action = match *key {
                "numprocesses" => "scale",
                _ => "reload",
            };
            let wanted = [format!("watcher.w {action} {key}")];
            let other = format!("{WATCHER}{key} = {value}\n");
            assert_eq!(told(WATCHER, &other), wanted, "{key}");
            assert_eq!(told(&other, WATCHER), wanted, "without {key}");
        }
        let tried: HashSet<&str> = OF_WATCHER.iter().map(|(key, _)| *key).collect();
        let left = WATCHER_KEYS.iter().filter(|key| !tried.contains(**key));
        // They need another one beside them, and are below.
        assert_eq!(left.collect::<Vec<_>>(), [&"cmd", &"on_demand"]);
        let other = WATCHER.replace("\"w\"", "[\"w\"]");
        assert_eq!(told(WATCHER, &other), ["watcher.w reload cmd"]);
        let base = format!("{WATCHER}use_sockets = true\n");
        assert_eq!(
            told(&base, &format!("{base}on_demand = true\n")),
            ["watcher.w reload on_demand"]
        );
    }

    #[test]
    fn keys_that_are_spelled_another_way_are_told_by_the_one_name() {
        for (line, key) in [
            ("uid = 0", "user"),
            ("gid = 33", "group"),
            ("respawn = false", "restart"),
            ("send_hup = true", "reload"),
        ] {
            let other = format!("{WATCHER}{line}\n");
            assert_eq!(told(WATCHER, &other), [format!("watcher.w reload {key}")]);
        }
    }

    #[test]
    fn every_key_of_the_manager_is_told_by_its_name() {
        for (key, value) in OF_MANAGER {
            let other = format!("[manager]\n{key} = {value}\n");
            assert_eq!(told("", &other), [format!("manager set {key}")], "{key}");
        }
        let tried: HashSet<&str> = OF_MANAGER.iter().map(|(key, _)| *key).collect();
        let left = MANAGER_KEYS.iter().filter(|key| !tried.contains(**key));
        assert_eq!(left.collect::<Vec<_>>(), [&"env"]);
        // It is every worker's.
        assert_eq!(
            told(WATCHER, &format!("[manager]\nenv.A = 1\n{WATCHER}")),
            [
                "manager set env",
                "watcher.v reload env",
                "watcher.w reload env"
            ]
        );
    }

    #[test]
    fn every_key_that_is_told_is_one_that_a_unit_file_may_have() {
        for (header, keys) in [
            ("[manager]", MANAGER_KEYS),
            ("[socket.x]", SOCKET_KEYS),
            ("[watcher.x]", WATCHER_KEYS),
        ] {
            for key in keys {
                // A date is wrong for every key, and the complaint says whether the key is known.
                let text = format!("{header}\n{key} = 2020-01-01\n");
                let loaded = unit::read_text(Path::new("/u/t.toml"), &text);
                let all = loaded.findings.iter().map(|finding| &finding.message);
                let all: Vec<&String> = all.collect();
                assert!(
                    all.iter().any(|it| it.contains(&format!("`{key}` of"))),
                    "{all:?}"
                );
                assert!(!all.iter().any(|it| it.contains("unknown key")), "{all:?}");
            }
        }
    }

    #[test]
    fn the_number_of_workers_scales_only_if_nothing_else_differs() {
        let with = |lines: &str| format!("{WATCHER}{lines}\n");
        assert_eq!(
            told(&with("numprocesses = 3"), &with("numprocesses = 5")),
            ["watcher.w scale numprocesses"]
        );
        assert_eq!(
            told(&with("numprocesses = 3"), &with("nice = 1")),
            ["watcher.w reload nice, numprocesses"]
        );
        // Those that run were told another number.
        let cmd = |count| {
            format!("[watcher.w]\ncmd = \"w $(circus.numprocesses)\"\nnumprocesses = {count}\n")
        };
        assert_eq!(
            told(&cmd(1), &cmd(2)),
            ["watcher.w reload cmd, numprocesses"]
        );
        let env = |count| {
            format!(
                "[watcher.w]\ncmd = \"w\"\nstdout.file = \"$(circus.numprocesses)\"\n\
                 env.N = \"$(circus.numprocesses)\"\nnumprocesses = {count}\n"
            )
        };
        assert_eq!(
            told(&env(1), &env(2)),
            ["watcher.w reload env, numprocesses, stdout"]
        );
    }

    #[test]
    fn a_watcher_follows_what_becomes_of_its_sockets() {
        let units = |socket: &str, keys: &str| {
            format!("[socket.a]\nlisten = 1\n{socket}\n[watcher.w]\ncmd = \"w\"\n{keys}\n")
        };
        let users = [
            "sockets = [\"b\"]",
            "use_sockets = true",
            "stdin_socket = \"b\"",
            "args = \"$(circus.socket.b)\"",
        ];
        for keys in users {
            let old = units("[socket.b]\nlisten = 2", keys);
            let told = |socket: &str| told(&old, &units(socket, keys));
            assert_eq!(
                told("[socket.b]\nlisten = 3"),
                ["socket.b rebind listen", "watcher.w reload sockets"],
                "{keys}"
            );
            assert_eq!(
                told("[socket.b]\nlisten = 2\nbacklog = 7"),
                ["socket.b set backlog"],
                "{keys}"
            );
        }
        // It stands in LISTEN_FDNAMES.
        let old = units("[socket.b]\nlisten = 2", "use_sockets = true");
        let new = units(
            "[socket.b]\nlisten = 2\nfd_name = \"x\"",
            "use_sockets = true",
        );
        assert_eq!(
            told(&old, &new),
            ["socket.b set fd_name", "watcher.w reload sockets"]
        );
        let untold = |socket: &str| units(socket, "use_sockets = true\nlisten_fds = false");
        let (old_untold, new_untold) = (
            untold("[socket.b]\nlisten = 2"),
            untold("[socket.b]\nlisten = 2\nfd_name = \"x\""),
        );
        assert_eq!(told(&old_untold, &new_untold), ["socket.b set fd_name"]);
        let new = units("", "use_sockets = true");
        assert_eq!(
            told(&old, &new),
            ["watcher.w reload use_sockets", "socket.b remove"]
        );
        // What refers to a socket is the reason, not the list that follows from it.
        assert_eq!(
            told(&units("", ""), &units("", "args = \"$(circus.socket.a)\"")),
            ["watcher.w reload args"]
        );
        let order = |list: &str| {
            let keys = format!("args = \"$(circus.socket.a)\"\nsockets = {list}");
            units("[socket.b]\nlisten = 2", &keys)
        };
        assert_eq!(
            told(&order("[\"a\", \"b\"]"), &order("[\"b\", \"a\"]")),
            ["watcher.w reload sockets"]
        );
        // Its workers have nothing of a socket that they do not use.
        let old = units("[socket.b]\nlisten = 2", "sockets = [\"a\"]");
        let new = units("[socket.b]\nlisten = 3", "sockets = [\"a\"]");
        assert_eq!(told(&old, &new), ["socket.b rebind listen"]);
    }

    #[test]
    fn a_start_level_is_no_reason() {
        let first = "[watcher.a]\ncmd = \"a\"\n";
        let second = "[watcher.b]\ncmd = \"b\"\nafter = [\"a\"]\n";
        let (old, new) = (
            planned(&format!("{first}{second}")),
            planned(&format!(
                "{first}after = [\"c\"]\n{second}[watcher.c]\ncmd = \"c\"\n"
            )),
        );
        let level = |plan: &Plan| {
            let b = plan.watchers.iter().find(|it| it.name() == "b");
            b.map(|it| it.level)
        };
        assert_ne!(level(&old), level(&new));
        assert_eq!(
            between(&old, &new),
            ["watcher.c add", "watcher.a reload after"]
        );
    }

    #[test]
    fn a_file_in_another_folder_matters_to_relative_paths_alone() {
        let moved = |keys: &str| {
            let text = format!("[watcher.w]\ncmd = \"w\"\n{keys}\n");
            let host = &Machine::new();
            between(
                &planned_on(&text, "/u", host),
                &planned_on(&text, "/v", host),
            )
        };
        assert_eq!(moved(""), [""; 0]);
        assert_eq!(
            moved(
                "working_dir = \"/a\"\nenv_file = \"-/b\"\nexecutable = \"./x\"\nstdout.file = \"/c$(circus.wid)\""
            ),
            [""; 0]
        );
        assert_eq!(
            moved(
                "working_dir = \"a\"\nenv_file = \"-b\"\nstdout.file = \"/c\"\nstderr.file = \"d\""
            ),
            ["watcher.w reload env_file, stderr, working_dir"]
        );
        assert_eq!(
            moved("stdin = \"./in\"\nvirtualenv = \"$(circus.name)\""),
            ["watcher.w reload stdin, virtualenv"]
        );
        let socket = "[socket.s]\npath = \"s\"\n";
        let host = &Machine::new();
        assert_eq!(
            between(
                &planned_on(socket, "/u", host),
                &planned_on(socket, "/v", host)
            ),
            ["socket.s rebind listen"]
        );
    }

    /// A machine on which the ids of deploy and www have moved.
    struct Moved(Machine);

    impl Host for Moved {
        fn user_by_name(&self, name: &str) -> Option<User> {
            let mut user = self.0.user_by_name(name)?;
            if name == "deploy" {
                (user.uid, user.gid) = (1001, 1001);
            }
            Some(user)
        }
        fn user_by_id(&self, uid: u32) -> Option<User> {
            self.0.user_by_id(uid)
        }
        fn group_by_name(&self, name: &str) -> Option<u32> {
            match name {
                "www" => Some(34),
                _ => self.0.group_by_name(name),
            }
        }
        fn groups_of(&self, user: &str, gid: u32) -> Vec<u32> {
            self.0.groups_of(user, gid)
        }
        fn environment(&self) -> Vec<(OsString, OsString)> {
            self.0.environment()
        }
        fn is_root(&self) -> bool {
            true
        }
    }

    #[test]
    fn ids_that_moved_behind_their_names_are_told_by_the_names() {
        let moved = |text: &str| {
            let new = planned_on(text, "/u", &Moved(Machine::new()));
            between(&planned(text), &new)
        };
        let watcher = |keys: &str| moved(&format!("[watcher.w]\ncmd = \"w\"\n{keys}\n"));
        assert_eq!(watcher("user = \"root\""), [""; 0]);
        assert_eq!(watcher("user = \"deploy\""), ["watcher.w reload user"]);
        assert_eq!(watcher("group = \"www\""), ["watcher.w reload group"]);
        assert_eq!(
            watcher("user = \"root\"\ngroup = \"www\""),
            ["watcher.w reload group"]
        );
        assert_eq!(
            watcher("supplementary_groups = [\"www\"]"),
            ["watcher.w reload supplementary_groups"]
        );
        let socket = |keys: &str| moved(&format!("[socket.s]\npath = \"/s\"\n{keys}\n"));
        assert_eq!(socket("user = \"root\""), [""; 0]);
        assert_eq!(socket("user = \"deploy\""), ["socket.s set user"]);
        assert_eq!(socket("group = \"www\""), ["socket.s set group"]);
        assert_eq!(
            moved("[manager]\ncontrol_group = \"www\""),
            ["manager set control_group"]
        );
    }

    #[test]
    fn the_manager_s_environment_that_is_filled_in_is_a_reason() {
        let with = |value: &str| {
            let mut machine = Machine::new();
            machine.environment.push(("X".into(), value.into()));
            let text = "[watcher.w]\ncmd = \"w\"\nenv_file = \"/$(circus.env.X)\"\n";
            planned_on(text, "/u", &machine)
        };
        assert_eq!(
            between(&with("a"), &with("b")),
            ["watcher.w reload env_file"]
        );
    }

    #[test]
    fn changes_stand_in_the_order_in_which_they_can_be_made() {
        let old = "[manager]\nlog_level = \"warn\"\n\
                   [socket.b]\nlisten = 1\n[socket.d]\nlisten = 2\n[socket.z]\nlisten = 3\n\
                   [watcher.keep]\ncmd = \"k\"\nuse_sockets = false\n\
                   [watcher.slow]\ncmd = \"s\"\n\
                   [watcher.x]\ncmd = \"x\"\n[watcher.y]\ncmd = \"y\"\nafter = [\"x\"]\n";
        let new = "[socket.a]\nlisten = 5\n[socket.b]\nlisten = 1\nbacklog = 1\n[socket.d]\nlisten = 6\n\
                   [watcher.keep]\ncmd = \"k\"\nnumprocesses = 4\n\
                   [watcher.slow]\ncmd = \"s\"\nafter = [\"late\"]\n\
                   [watcher.late]\ncmd = \"l\"\nafter = [\"keep\"]\n";
        assert_eq!(
            told(old, new),
            [
                "socket.a add",
                "socket.b set backlog",
                "socket.d rebind listen",
                "manager set log_level",
                "watcher.keep scale numprocesses",
                "watcher.late add",
                "watcher.slow reload after",
                "watcher.y remove",
                "watcher.x remove",
                "socket.z remove",
            ]
        );
        assert_eq!(told("", ""), [""; 0]);
    }

    /// A unit file of some units, each of which has some keys.
    fn unit_file() -> impl Strategy<Value = String> {
        let keys =
            |count: usize| proptest::sample::subsequence((0..count).collect::<Vec<_>>(), 0..4);
        let socket = proptest::option::weighted(
            0.8,
            (0..2u8, keys(OF_SOCKET.len())).prop_map(|(kind, keys)| {
                let base = [PORT, SOCKET][usize::from(kind)];
                let lines = keys.into_iter().map(|key| &OF_SOCKET[key]);
                let mut seen = HashSet::new();
                let lines: Vec<&str> = lines
                    .filter(|(key, _, fits, _)| *fits == base && seen.insert(*key))
                    .map(|(_, line, ..)| *line)
                    .collect();
                let base = base.split_once('\n').map_or("", |(_, rest)| rest);
                format!("{base}{}\n", lines.join("\n"))
            }),
        );
        let watcher = proptest::option::weighted(
            0.8,
            (0..3u8, keys(OF_WATCHER.len())).prop_map(|(cmd, keys)| {
                let mut text = format!("cmd = \"{cmd}\"\n");
                for (key, value) in keys.into_iter().map(|key| &OF_WATCHER[key]) {
                    // Those need other units, or contradict each other.
                    let needs = [
                        "sockets",
                        "stdin_socket",
                        "stdin",
                        "after",
                        "requires",
                        "singleton",
                    ];
                    if !needs.contains(key) {
                        text.push_str(&format!("{key} = {value}\n"));
                    }
                }
                text
            }),
        );
        let level = proptest::option::of(Just("[manager]\nlog_level = \"debug\"\n"));
        let sockets = proptest::collection::vec(socket, 3);
        let watchers = proptest::collection::vec(watcher, 3);
        (level, sockets, watchers).prop_map(|(level, sockets, watchers)| {
            let mut text = level.unwrap_or_default().to_string();
            for (index, keys) in sockets.iter().enumerate() {
                if let Some(keys) = keys {
                    // No two on one address.
                    let keys = keys
                        .replace(":80\"", &format!(":{}\"", 80 + index))
                        .replace("/run/s", &format!("/run/s{index}"));
                    text.push_str(&format!("[socket.s{index}]\n{keys}"));
                }
            }
            for (index, keys) in watchers.iter().enumerate() {
                if let Some(keys) = keys {
                    text.push_str(&format!("[watcher.w{index}]\n{keys}"));
                }
            }
            text
        })
    }

    /// What of a plan is a reason for anything.
    fn essence(plan: &Plan) -> (Plan, Vec<Watcher>) {
        let mut rest = plan.clone();
        let mut watchers: Vec<Watcher> = rest
            .watchers
            .drain(..)
            .map(|watcher| Watcher {
                level: 0,
                ..(*watcher).clone()
            })
            .collect();
        watchers.sort_by(|a, b| a.name().cmp(b.name()));
        (rest, watchers)
    }

    proptest! {
        #[test]
        fn plans_differ_exactly_where_a_change_is_told(old in unit_file(), new in unit_file()) {
            let (old, new) = (planned(&old), planned(&new));
            prop_assert_eq!(diff(&old, &old), []);
            let changes = diff(&old, &new);
            prop_assert_eq!(changes.is_empty(), essence(&old) == essence(&new));

            let names = |plan: &Plan| -> HashSet<Unit> {
                let sockets = plan.sockets.iter().map(|it| Unit::Socket(it.name().into()));
                let watchers = plan.watchers.iter().map(|it| Unit::Watcher(it.name().into()));
                sockets.chain(watchers).chain([Unit::Manager]).collect()
            };
            let (before, after) = (names(&old), names(&new));
            let mut seen = HashSet::new();
            for change in &changes {
                prop_assert!(seen.insert(&change.unit), "{} is told twice", change.unit);
                prop_assert!(change.keys.is_sorted());
                let whole = matches!(change.action, Action::Add | Action::Remove);
                prop_assert_eq!(change.keys.is_empty(), whole);
                let is_there = (before.contains(&change.unit), after.contains(&change.unit));
                prop_assert_eq!(is_there, match change.action {
                    Action::Add => (false, true),
                    Action::Remove => (true, false),
                    Action::Scale | Action::Reload | Action::Rebind | Action::Set => (true, true),
                });
            }
            for unit in before.symmetric_difference(&after) {
                prop_assert!(seen.contains(unit), "{unit} is not told");
            }

            // The way back leads over the same units.
            let back: HashSet<Unit> = diff(&new, &old).into_iter().map(|change| change.unit).collect();
            prop_assert_eq!(back.iter().collect::<HashSet<_>>(), seen);
        }
    }
}
