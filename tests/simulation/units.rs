//! Unit files to simulate, random ones among them.

use crate::random::Random;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;
use tentpole::plan::{self, Host, Plan, User};
use tentpole::unit::{self, Severity};

/// A machine without users.
struct Nobody;

impl Host for Nobody {
    fn user_by_name(&self, _: &str) -> Option<User> {
        None
    }
    fn user_by_id(&self, _: u32) -> Option<User> {
        None
    }
    fn group_by_name(&self, _: &str) -> Option<u32> {
        None
    }
    fn groups_of(&self, _: &str, gid: u32) -> Vec<u32> {
        vec![gid]
    }
    fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), "/usr/bin:/bin".into())]
    }
    fn is_root(&self) -> bool {
        true
    }
}

/// Reads and plans a unit file as the manager does.
pub fn plan_of(text: &str) -> Plan {
    let loaded = unit::read_text(Path::new("/etc/tentpole/units/simulated.toml"), text);
    let mut findings = loaded.findings;
    let (plan, more) = plan::plan(loaded.units, &Nobody);
    findings.extend(more);
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| &finding.message)
        .collect();
    match plan {
        Some(plan) if errors.is_empty() => plan,
        _ => panic!("the unit file is refused: {errors:?}\n{text}"),
    }
}

/// Unit files, taken apart so that others can be made of them.
#[derive(Clone)]
pub struct Units {
    manager: Table,
    sockets: Vec<(&'static str, Table)>,
    watchers: Vec<(&'static str, Table)>,
    /// Ports and programs that were used so far.
    used: u32,
}

/// Keys with their values, as they are written.
type Table = Vec<(&'static str, String)>;

const SOCKETS: [&str; 6] = ["s", "t", "u", "v", "w", "x"];
const WATCHERS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

impl Units {
    /// One to six watchers and up to four sockets.
    pub fn random(random: &mut Random) -> Units {
        let mut units = Units {
            manager: random_manager(random),
            sockets: Vec::new(),
            watchers: Vec::new(),
            used: 0,
        };
        for name in &SOCKETS[..random.below(5) as usize] {
            let socket = units.random_socket(random);
            units.sockets.push((name, socket));
        }
        for name in &WATCHERS[..1 + random.below(6) as usize] {
            let watcher = units.random_watcher(random, units.watchers.len());
            units.watchers.push((name, watcher));
        }
        units
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        write_table(&mut text, "manager", &self.manager);
        for (name, table) in &self.sockets {
            write_table(&mut text, &format!("socket.{name}"), table);
        }
        for (name, table) in &self.watchers {
            write_table(&mut text, &format!("watcher.{name}"), table);
        }
        text
    }

    /// Others that differ in a few things, or in none.
    pub fn changed(&self, random: &mut Random) -> Units {
        let mut units = self.clone();
        for _ in 0..random.pick(&[0, 1, 1, 1, 2, 3, 5]) {
            units.change(random);
        }
        // Else it is too rare, since much must come together for what it may do.
        if random.chance(25)
            && let Some((_, table)) =
                (units.sockets.iter_mut()).find(|(_, table)| value(table, "so_reuseport").is_some())
        {
            table.retain(|(key, _)| *key != "so_reuseport");
        }
        units
    }

    fn change(&mut self, random: &mut Random) {
        let socket = random.below(self.sockets.len().max(1) as u64) as usize;
        let watcher = random.below(self.watchers.len() as u64) as usize;
        match random.below(21) {
            0 => self.manager = random_manager(random),
            1 => {
                let is_free = |name: &&&str| self.sockets.iter().all(|(known, _)| known != *name);
                if let Some(name) = SOCKETS.iter().find(is_free) {
                    let table = self.random_socket(random);
                    self.sockets.push((name, table));
                }
            }
            2 if !self.sockets.is_empty() => {
                let (name, _) = self.sockets.remove(socket);
                for (_, table) in &mut self.watchers {
                    leave_out(table, "sockets", name);
                    if value(table, "sockets").is_none() {
                        table.retain(|(key, _)| *key != "on_demand");
                    }
                }
            }
            3 | 4 if !self.sockets.is_empty() => {
                let listen = self.next_address();
                set(&mut self.sockets[socket].1, "listen", listen);
            }
            5 if !self.sockets.is_empty() => {
                set(
                    &mut self.sockets[socket].1,
                    "backlog",
                    random.pick(&["5", "7"]).into(),
                );
            }
            6 if !self.sockets.is_empty() => {
                let listen = value(&self.sockets[socket].1, "listen").unwrap_or_default();
                self.sockets[socket].1 = self.random_socket(random);
                set(&mut self.sockets[socket].1, "listen", listen);
            }
            7 | 8 => {
                let is_free = |name: &&&str| self.watchers.iter().all(|(known, _)| known != *name);
                if let Some(name) = WATCHERS.iter().find(is_free) {
                    let table = self.random_watcher(random, self.watchers.len());
                    self.watchers.push((name, table));
                }
            }
            9 if self.watchers.len() > 1 => {
                let (name, _) = self.watchers.remove(watcher);
                for (_, table) in &mut self.watchers {
                    leave_out(table, "after", name);
                    leave_out(table, "requires", name);
                }
            }
            10 | 11 => {
                let table = &mut self.watchers[watcher].1;
                let most = if value(table, "singleton").is_some() {
                    2
                } else {
                    5
                };
                set(table, "numprocesses", random.below(most).to_string());
            }
            12 => self.watchers[watcher].1 = self.random_watcher(random, watcher),
            13 => {
                let table = &mut self.watchers[watcher].1;
                table.retain(|(key, _)| !["after", "requires"].contains(key));
                let others = names_of(&self.watchers[..watcher]);
                write_dependencies(&mut self.watchers[watcher].1, random, &others);
            }
            14 => {
                let priority = random.pick(&["-2", "0", "3"]);
                set(&mut self.watchers[watcher].1, "priority", priority.into());
            }
            // One with shards goes on without, or the other way round.
            20 if !self.sockets.is_empty() => {
                let table = &mut self.sockets[socket].1;
                match value(table, "so_reuseport") {
                    Some(_) => table.retain(|(key, _)| *key != "so_reuseport"),
                    None => set(table, "so_reuseport", "true".into()),
                }
            }
            15 => {
                let delay = random.pick(&["0", "0.3", "2"]);
                set(&mut self.watchers[watcher].1, "ready_delay", delay.into());
            }
            _ => {
                let command = self.next_command();
                set(&mut self.watchers[watcher].1, "cmd", command);
            }
        }
    }

    /// Never one that there was, so that a change of it is one.
    fn next_address(&mut self) -> String {
        self.used += 1;
        format!("\"127.0.0.1:{}\"", 8000 + self.used)
    }

    fn next_command(&mut self) -> String {
        self.used += 1;
        format!("\"program {}\"", self.used)
    }

    fn random_socket(&mut self, random: &mut Random) -> Table {
        let mut table = vec![("listen", self.next_address())];
        if random.chance(50) {
            set(&mut table, "so_reuseport", "true".into());
        }
        if random.chance(40) {
            set(&mut table, "optional", "true".into());
        }
        if random.chance(60) {
            let burst = random.pick(&[0, 1, 1, 2, 2, 3, 5]);
            let interval = random.pick(&["0", "0.2", "1", "1", "4", "20"]);
            let limit = format!("{{ burst = {burst}, interval = {interval} }}");
            set(&mut table, "trigger_limit", limit);
        }
        table
    }

    /// A watcher at this place, after some of those before it.
    fn random_watcher(&mut self, random: &mut Random, place: usize) -> Table {
        let mut table = vec![("cmd", self.next_command())];
        let mut numprocesses = random.pick(&[0, 1, 1, 1, 2, 2, 3, 4]);
        if random.chance(10) {
            set(&mut table, "singleton", "true".into());
            numprocesses = numprocesses.min(1);
        }
        set(&mut table, "numprocesses", numprocesses.to_string());
        write_life(&mut table, random);
        let mut own: Vec<&str> = Vec::new();
        for (name, _) in &self.sockets {
            if random.chance(40) {
                own.push(name);
            }
        }
        if !own.is_empty() {
            set(&mut table, "sockets", format!("{own:?}"));
            if random.chance(60) {
                set(&mut table, "on_demand", "true".into());
            }
        }
        let others = names_of(&self.watchers[..place.min(self.watchers.len())]);
        write_dependencies(&mut table, random, &others);
        table
    }
}

fn random_manager(random: &mut Random) -> Table {
    let mut table = Table::new();
    if random.chance(25) {
        set(
            &mut table,
            "warmup_delay",
            random.pick(&["0.1", "0.7", "3"]).into(),
        );
    }
    if random.chance(60) {
        let timeouts = ["0", "0.5", "3", "10", "40", "\"infinity\""];
        set(
            &mut table,
            "shutdown_timeout",
            random.pick(&timeouts).into(),
        );
    }
    table
}

fn write_life(table: &mut Table, random: &mut Random) {
    let kind = random.pick(&["exec", "exec", "notify", "notify", "oneshot"]);
    set(table, "type", format!("\"{kind}\""));
    let mut any = |percent: u64, key: &'static str, values: &[&str]| {
        let is_written = random.chance(percent);
        if is_written {
            set(table, key, random.pick(values).into());
        }
        is_written
    };
    any(20, "warmup_delay", &["0.03", "0.4", "2"]);
    any(25, "ready_delay", &["0.1", "0.6", "3"]);
    any(70, "start_timeout", &["0", "0.3", "1", "1", "4", "15"]);
    let listens = any(25, "watchdog", &["0.2", "1", "5"]) || kind == "notify";
    any(15, "watchdog_signal", &["\"KILL\"", "\"QUIT\"", "\"TERM\""]);
    any(10, "autostart", &["false"]);
    let nobody = if listens { "\"main\"" } else { "\"none\"" };
    any(40, "notify_access", &["\"all\"", "\"all\"", nobody]);
    any(50, "restart_delay", &["0.001", "0.02", "0.3", "1"]);
    any(50, "restart_max_delay", &["1", "1.5", "4", "20"]);
    any(60, "restart_reset", &["0.2", "1", "3"]);
    any(40, "max_retry", &["-1", "0", "1", "2", "3", "5"]);
    any(
        20,
        "stop_signal",
        &["\"INT\"", "\"QUIT\"", "\"KILL\"", "\"USR1\""],
    );
    any(
        85,
        "graceful_timeout",
        &["0", "0.1", "0.5", "2", "2", "8", "8", "\"infinity\""],
    );
    any(35, "stop_children", &["true"]);
    any(5, "critical", &["true"]);
    any(30, "priority", &["-1", "1", "2"]);
    any(28, "reload", &["\"HUP\"", "\"HUP\"", "\"rolling\""]);
    any(40, "reload_surge", &["1", "2", "2", "3", "9"]);
    if any(12, "max_age", &["0.02", "1", "4", "4", "15"]) {
        any(70, "max_age_variance", &["0", "0.5", "3"]);
    }
    let restarts = match kind {
        "oneshot" => ["\"on-failure\"", "\"never\""].as_slice(),
        _ => &["\"always\"", "\"on-failure\"", "\"never\""],
    };
    any(60, "restart", restarts);
}

/// Only on those before it: so no cycle is ever written.
fn write_dependencies(table: &mut Table, random: &mut Random, before: &[&str]) {
    for key in ["after", "requires"] {
        let mut others: Vec<&str> = Vec::new();
        for other in before {
            if random.chance(22) {
                others.push(other);
            }
        }
        if !others.is_empty() {
            set(table, key, format!("{others:?}"));
        }
    }
}

fn names_of(tables: &[(&'static str, Table)]) -> Vec<&'static str> {
    tables.iter().map(|(name, _)| *name).collect()
}

fn value(table: &Table, key: &str) -> Option<String> {
    let found = table.iter().find(|(known, _)| *known == key);
    found.map(|(_, value)| value.clone())
}

fn set(table: &mut Table, key: &'static str, value: String) {
    match table.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) => *known = value,
        None => table.push((key, value)),
    }
}

/// Takes a name out of a list, and the key out if nothing is left of it.
fn leave_out(table: &mut Table, key: &'static str, name: &str) {
    let Some(list) = value(table, key) else {
        return;
    };
    let quoted = format!("{name:?}");
    let names = list.trim_matches(['[', ']']).split(", ");
    let left: Vec<&str> = names.filter(|it| **it != *quoted).collect();
    match left.is_empty() {
        true => table.retain(|(known, _)| *known != key),
        false => set(table, key, format!("[{}]", left.join(", "))),
    }
}

fn write_table(text: &mut String, header: &str, table: &Table) {
    let _ = writeln!(text, "[{header}]");
    for (key, value) in table {
        let _ = writeln!(text, "{key} = {value}");
    }
}
