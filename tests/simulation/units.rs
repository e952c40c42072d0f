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

/// One to six watchers and up to four sockets.
pub fn random_text(random: &mut Random) -> String {
    let mut text = String::new();
    write_manager(&mut text, random);
    let sockets = ["s", "t", "u", "v"];
    let sockets = &sockets[..random.below(5) as usize];
    for (index, name) in sockets.iter().enumerate() {
        write_socket(&mut text, random, name, index);
    }
    let names = ["a", "b", "c", "d", "e", "f"];
    let names = &names[..1 + random.below(6) as usize];
    for index in 0..names.len() {
        write_watcher(&mut text, random, names, index, sockets);
    }
    text
}

fn write_manager(text: &mut String, random: &mut Random) {
    text.push_str("[manager]\n");
    if random.chance(25) {
        line(text, "warmup_delay", random.pick(&["0.1", "0.7", "3"]));
    }
    if random.chance(60) {
        let timeouts = ["0", "0.5", "3", "10", "40", "\"infinity\""];
        line(text, "shutdown_timeout", random.pick(&timeouts));
    }
}

fn write_socket(text: &mut String, random: &mut Random, name: &str, index: usize) {
    let _ = writeln!(
        text,
        "[socket.{name}]\nlisten = \"127.0.0.1:{}\"",
        8000 + index
    );
    if random.chance(50) {
        line(text, "so_reuseport", "true");
    }
    if random.chance(40) {
        line(text, "optional", "true");
    }
    if random.chance(60) {
        let burst = random.pick(&[0, 1, 1, 2, 2, 3, 5]);
        let interval = random.pick(&["0", "0.2", "1", "1", "4", "20"]);
        let limit = format!("{{ burst = {burst}, interval = {interval} }}");
        line(text, "trigger_limit", &limit);
    }
}

fn write_watcher(
    text: &mut String,
    random: &mut Random,
    names: &[&str],
    index: usize,
    sockets: &[&str],
) {
    let _ = writeln!(text, "[watcher.{}]\ncmd = \"program\"", names[index]);
    let mut numprocesses = random.pick(&[0, 1, 1, 1, 2, 2, 3, 4]);
    if random.chance(10) {
        line(text, "singleton", "true");
        numprocesses = numprocesses.min(1);
    }
    line(text, "numprocesses", &numprocesses.to_string());

    let kind = random.pick(&["exec", "exec", "notify", "notify", "oneshot"]);
    line(text, "type", &format!("\"{kind}\""));
    let mut any = |percent: u64, key: &str, values: &[&str]| {
        let is_written = random.chance(percent);
        if is_written {
            line(text, key, random.pick(values));
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
    let restarts = match kind {
        "oneshot" => ["\"on-failure\"", "\"never\""].as_slice(),
        _ => &["\"always\"", "\"on-failure\"", "\"never\""],
    };
    any(60, "restart", restarts);

    let mut own: Vec<&str> = Vec::new();
    for socket in sockets {
        if random.chance(40) {
            own.push(socket);
        }
    }
    if !own.is_empty() {
        line(text, "sockets", &format!("{own:?}"));
        if random.chance(60) {
            line(text, "on_demand", "true");
        }
    }
    // Only on those before it: so no cycle is ever written.
    for key in ["after", "requires"] {
        let mut others: Vec<&str> = Vec::new();
        for other in &names[..index] {
            if random.chance(22) {
                others.push(other);
            }
        }
        if !others.is_empty() {
            line(text, key, &format!("{others:?}"));
        }
    }
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key} = {value}");
}
