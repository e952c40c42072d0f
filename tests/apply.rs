//! Apply: what the units say now, all of it or nothing, and nothing that has not changed is touched.

mod support;

use serde_json::{Value, json};
use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use support::lives::listeners;
use support::load::Load;
use support::{
    Manager, ask, begin, environment, finish, freeze, is_alive, kill, poll, receive, send,
    wait_until_dead,
};

const UNITS: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    [socket.other]
    listen = "DIR/other.sock"
    [watcher.web]
    cmd = "PROBE serve $(circus.socket.web)"
    numprocesses = 2
    [watcher.other]
    cmd = "PROBE serve $(circus.socket.other)"
    "#;

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("an address").port()
}

/// What `apply --dry-run --json` says.
fn changes(manager: &Manager) -> Value {
    let text = manager.ok(&["apply", "--dry-run", "--json"]);
    assert_eq!(text.lines().count(), 1, "{text}");
    let document: Value = serde_json::from_str(&text).expect("is JSON");
    let plan: Value = serde_json::from_str(&manager.ok(&["plan", "--json"])).expect("is JSON");
    assert_eq!(plan, document, "plan says the same");
    document["changes"].clone()
}

/// An apply that must be refused with nothing changed; what it says.
fn refused(manager: &Manager, units: &str) -> String {
    let before = (manager.snapshot(), manager.status());
    let files = support::files(manager.dir.path());
    let output = manager.try_apply(units);
    let text = String::from_utf8(output.stderr).expect("is UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", manager.log());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!((manager.snapshot(), manager.status()), before, "{text}");
    assert_eq!(support::files(manager.dir.path()), files);
    text
}

#[test]
fn nothing_that_has_not_changed_is_touched() {
    let manager = Manager::start(UNITS);
    let before = manager.snapshot();
    assert_eq!(changes(&manager), json!([]));
    assert!(manager.ok(&["apply"]).contains("nothing"));
    assert_eq!(manager.snapshot(), before);
    // Other words for the same are no change.
    let other_words = UNITS
        .replace(
            "numprocesses = 2",
            "numprocesses = 2\ngraceful_timeout = \"30s\" # as ever",
        )
        .replace(
            "[watcher.other]",
            "\n\n[watcher.other]\nrestart = \"always\"",
        );
    manager.write(&other_words);
    assert_eq!(changes(&manager), json!([]));
    manager.apply(&UNITS.replace("[watcher.other]", "[watcher.other]\nenv = { A = \"1\" }"));
    let after = manager.snapshot();
    assert_eq!(after.workers["web"], before.workers["web"]);
    assert_eq!(after.listeners, before.listeners);
    assert_ne!(after.workers["other"], before.workers["other"]);
    assert_eq!(environment(after.pids("other")[0])["A"], "1");
}

#[test]
fn a_plan_names_each_unit_what_is_done_to_it_and_why() {
    let manager = Manager::start(&format!(
        "{UNITS}\n[socket.gone]\nlisten = \"DIR/gone.sock\"\n[watcher.gone]\ncmd = \"PROBE sleep\"\nsockets = [\"gone\"]\n[watcher.scaled]\ncmd = \"PROBE sleep\""
    ));
    let before = manager.snapshot();
    let port = free_port();
    manager.write(&format!(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        backlog = 7
        [socket.other]
        listen = "127.0.0.1:{port}"
        [socket.new]
        listen = "DIR/new.sock"
        [watcher.web]
        cmd = ["PROBE", "serve", "$(circus.socket.web)", "more"]
        numprocesses = 2
        env = {{ A = "1" }}
        [watcher.other]
        cmd = "PROBE serve $(circus.socket.other)"
        [watcher.scaled]
        cmd = "PROBE sleep"
        numprocesses = 3
        "#
    ));
    let all = changes(&manager);
    let of = |unit: &str| {
        let found = all
            .as_array()
            .expect("a list")
            .iter()
            .find(|change| change["unit"] == unit);
        found.map(|change| (change["action"].clone(), change["keys"].clone()))
    };
    let change = |action: &str, keys: Value| Some((json!(action), keys));
    assert_eq!(of("socket.web"), change("set", json!(["backlog"])));
    assert_eq!(of("socket.other"), change("rebind", json!(["listen"])));
    assert_eq!(of("socket.new"), change("add", json!([])));
    assert_eq!(of("socket.gone"), change("remove", json!([])));
    assert_eq!(of("watcher.gone"), change("remove", json!([])));
    assert_eq!(of("watcher.web"), change("reload", json!(["cmd", "env"])));
    assert_eq!(
        of("watcher.scaled"),
        change("scale", json!(["numprocesses"]))
    );
    // As text, for people.
    let text = manager.ok(&["apply", "--dry-run"]);
    let line = text.lines().find(|line| line.starts_with("watcher.web "));
    let words: Vec<&str> = line.expect("a line").split_whitespace().collect();
    assert_eq!(words, ["watcher.web", "reload", "cmd,", "env"]);
    // None of it has happened.
    assert_eq!(manager.snapshot(), before);
    assert!(!manager.path("new.sock").exists());
    for (args, code) in [
        (&["apply", "--dry-run", "--detailed-exitcode"][..], 2),
        (&["plan", "--detailed-exitcode"], 2),
        (&["apply", "--dry-run"], 0),
    ] {
        assert_eq!(manager.cli(args).status.code(), Some(code), "{args:?}");
    }
    let done: Value = serde_json::from_str(&manager.ok(&["apply", "--json"])).expect("is JSON");
    assert_eq!(done["changes"], all);
    assert_eq!(
        manager
            .cli(&["apply", "--dry-run", "--detailed-exitcode"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(changes(&manager), json!([]));
    let after = manager.snapshot();
    assert_eq!(after.listeners["web"], before.listeners["web"]);
    assert_eq!(after.workers["scaled"].len(), 3);
    assert_eq!(after.workers["scaled"][0], before.workers["scaled"][0]);
    assert!(!manager.path("other.sock").exists() && !manager.path("gone.sock").exists());
    assert!(!after.workers.contains_key("gone") && !after.listeners.contains_key("gone"));
    for pid in before.pids("gone") {
        assert!(!is_alive(pid));
    }
    ask(&format!("127.0.0.1:{port}"), "pid");
}

#[test]
fn a_mistake_changes_nothing_and_every_mistake_is_shown() {
    let manager = Manager::start(UNITS);
    let text = refused(
        &manager,
        "[watcher.web]\ncmd = \"PROBE serve $(circus.socket.nothing)\"\nnumproceses = 3\n[socket.web]\nlisten = \"127.0.0.1:99999\"\n",
    );
    for part in [
        "units.toml:",
        "nothing",
        "numproceses",
        "numprocesses",
        "99999",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = refused(&manager, "[watcher.web\ncmd = 3");
    assert!(text.contains("units.toml:1:"), "{text}");
    refused(&manager, "\u{0}\u{1}");
    // A dry run says it too.
    let output = manager.cli(&["apply", "--dry-run", "--detailed-exitcode"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn a_port_that_somebody_else_has_changes_nothing() {
    let manager = Manager::start(UNITS);
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("an address").port();
    let text = refused(
        &manager,
        &format!(
            "{UNITS}\n[socket.first]\nlisten = \"DIR/first.sock\"\n[socket.admin]\nlisten = \"127.0.0.1:{port}\"\n[watcher.more]\ncmd = \"PROBE sleep\"\nnumprocesses = 3"
        )
        .replace("numprocesses = 2", "numprocesses = 5"),
    );
    assert!(
        text.contains("admin") && text.contains(&port.to_string()),
        "{text}"
    );
    assert!(
        text.contains(&std::process::id().to_string()),
        "says who has it: {text}"
    );
    // A change of address to it neither.
    let text = refused(
        &manager,
        &UNITS.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")),
    );
    assert!(text.contains("`web`"), "{text}");
    // And once it is free, it is taken.
    drop(taken);
    manager.apply(&UNITS.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")));
    ask(&format!("127.0.0.1:{port}"), "pid");
}

#[test]
fn too_few_descriptors_in_the_middle_change_nothing() {
    let manager = support::spawn_by_script(UNITS, "ulimit -n 40; exec \"$@\"", |_| {});
    manager.wait_for_notice("READY=1");
    let mut units = UNITS.to_owned();
    for number in 0..60 {
        units.push_str(&format!(
            "[socket.s{number}]\nlisten = \"DIR/s{number}.sock\"\n"
        ));
    }
    let text = refused(&manager, &units);
    assert!(text.contains("open files"), "{text}");
    ask(&manager.address("web"), "pid");
    // It has recovered, and does what it can.
    manager.apply(&format!("{UNITS}\n[socket.one]\nlisten = \"DIR/one.sock\""));
    assert_eq!(manager.socket("one")["state"], "listening");
}

#[test]
fn numprocesses_alone_scales_and_the_rest_stays() {
    let manager = Manager::start(UNITS);
    let before = manager.snapshot();
    manager.apply(&UNITS.replace("numprocesses = 2", "numprocesses = 4"));
    let more = manager.snapshot();
    assert_eq!(more.workers["web"][..2], before.workers["web"][..]);
    assert_eq!(more.workers["web"].len(), 4);
    manager.apply(&UNITS.replace("numprocesses = 2", "numprocesses = 1"));
    let fewer = manager.snapshot();
    assert_eq!(fewer.workers["web"][..], before.workers["web"][..1]);
    assert_eq!(fewer.listeners, before.listeners);
    // A scale by hand outlives an apply of the same number ...
    manager.ok(&["scale", "web", "3"]);
    manager.apply(&UNITS.replace("numprocesses = 2", "numprocesses = 1\numask = \"0077\""));
    assert_eq!(manager.pids("web").len(), 3);
    // ... and is undone by one of another.
    manager.apply(UNITS);
    assert_eq!(manager.pids("web").len(), 2);
}

#[test]
fn a_reload_by_apply_uses_the_new_definition_of_everything() {
    let manager = Manager::start(UNITS);
    let before = manager.snapshot();
    manager.apply(&UNITS.replace(
        "numprocesses = 2",
        "numprocesses = 3\nenv = { A = \"1\" }\numask = \"0077\"",
    ));
    let after = manager.snapshot();
    assert_eq!(after.workers["web"].len(), 3);
    for worker in &after.workers["web"] {
        assert_eq!(environment(worker.pid)["A"], "1");
        assert_eq!(support::process_status(worker.pid, "Umask"), "0077");
    }
    assert_eq!(after.listeners, before.listeners);
    assert_eq!(after.restarts["web"], 0);
    for pid in before.pids("web") {
        assert!(!is_alive(pid));
    }
}

#[test]
fn sighup_applies() {
    let manager = Manager::start(UNITS);
    let before = manager.snapshot();
    manager.write(&UNITS.replace("numprocesses = 2", "numprocesses = 3"));
    manager.signal(libc::SIGHUP);
    manager.wait_for("web", "scaled", |web| web["ready"] == 3);
    assert_eq!(manager.snapshot().workers["other"], before.workers["other"]);
    // What is wrong is in the log, and nothing has changed.
    let before = manager.snapshot();
    manager.write("[watcher.web]\ncmdd = \"x\"");
    manager.signal(libc::SIGHUP);
    manager.wait_for_log("cmdd");
    assert_eq!(manager.snapshot(), before);
}

#[test]
fn the_parent_is_told_of_an_apply() {
    let manager = Manager::start(UNITS);
    while manager.next_notice(Duration::from_millis(1)).is_some() {}
    manager.apply(&UNITS.replace("numprocesses = 2", "numprocesses = 3"));
    let mut told = Vec::new();
    while let Some(text) = manager.next_notice(Duration::from_millis(300)) {
        told.extend(text.lines().map(str::to_owned).collect::<Vec<_>>());
    }
    let position = |line: &str| told.iter().position(|other| other.starts_with(line));
    let (reloading, ready) = (position("RELOADING=1"), position("READY=1"));
    assert!(reloading.is_some() && reloading < ready, "{told:?}");
    assert!(position("MONOTONIC_USEC=").is_some(), "{told:?}");
    // One that is refused leaves it at that.
    manager.try_apply("[watcher.web");
    let mut told = Vec::new();
    while let Some(text) = manager.next_notice(Duration::from_millis(200)) {
        told.push(text);
    }
    let reloading = told
        .iter()
        .filter(|text| text.contains("RELOADING=1"))
        .count();
    let ready = told.iter().filter(|text| text.contains("READY=1")).count();
    assert_eq!(reloading, ready, "{told:?}");
}

#[test]
fn a_watcher_that_fails_keeps_its_old_definition_until_the_next_apply() {
    let manager = Manager::start(UNITS);
    let before = manager.snapshot();
    let broken = UNITS
        .replace("PROBE serve $(circus.socket.other)", "PROBE exit 9")
        .replace(
            "[watcher.other]",
            "[watcher.new]\ncmd = \"PROBE sleep\"\n[watcher.other]\nready_delay = \"300ms\"",
        );
    let output = manager.try_apply(&broken);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", manager.log());
    assert!(text.contains("other") && text.contains('9'), "{text}");
    let after = manager.snapshot();
    assert_eq!(
        after.workers["other"],
        before.workers["other"],
        "{}",
        manager.log()
    );
    assert_eq!(after.workers["web"], before.workers["web"]);
    // The rest of it is done.
    assert_eq!(after.workers["new"].len(), 1);
    assert!(
        manager.watcher("other")["error"]
            .as_str()
            .is_some_and(|error| error.contains('9'))
    );
    // It runs by its old definition: also where it is started anew.
    support::kill(after.pids("other")[0], libc::SIGKILL);
    manager.wait_for("other", "was restarted", |other| {
        other["restarts"] == 1 && other["ready"] == 1
    });
    assert!(support::words(manager.pids("other")[0]).contains(&"serve".to_owned()));
    // The next apply tries again.
    assert_eq!(changes(&manager)[0]["unit"], "watcher.other");
    assert_eq!(manager.cli(&["apply"]).status.code(), Some(1));
    manager.apply(UNITS);
    assert_eq!(changes(&manager), json!([]));
    assert_eq!(manager.watcher("other")["state"], "running");
}

#[test]
fn a_changed_address_is_listened_on_before_the_old_one_is_left() {
    let (old, new) = (free_port(), free_port());
    let units = |port: u16| {
        format!(
            r#"
            [socket.web]
            listen = "127.0.0.1:{port}"
            blocking = false
            [watcher.web]
            cmd = "PROBE count $(circus.socket.web)"
            type = "notify"
            "#
        )
    };
    let manager = Manager::start(&units(old));
    let first = listeners(&format!("127.0.0.1:{old}"));
    let address = format!("127.0.0.1:{old}");
    let load = Load::start(&[&address], 1);
    load.now("before");
    // Clients of the old address have their answers; then it is gone.
    load.finish();
    manager.apply(&units(new));
    assert_eq!(manager.address("web"), format!("127.0.0.1:{new}"));
    assert_ne!(listeners(&format!("127.0.0.1:{new}")), first);
    assert!(listeners(&address).is_empty());
    TcpStream::connect(&address).expect_err("nobody listens there");
    let other = format!("127.0.0.1:{new}");
    let load = Load::start(&[&other], 1);
    load.now("after");
    std::thread::sleep(Duration::from_millis(100));
    assert!(load.finish().tally.requests > 0);
}

#[test]
fn a_unix_path_may_change_and_so_may_what_is_at_it() {
    let units = |listen: &str, kind: &str| {
        format!(
            "[socket.web]\nlisten = \"{listen}\"\ntype = \"{kind}\"\n[watcher.web]\ncmd = \"PROBE answer $(circus.socket.web)\"\n"
        )
    };
    let manager = Manager::start(&units("DIR/a.sock", "stream"));
    manager.apply(&units("DIR/b.sock", "stream"));
    assert!(!manager.path("a.sock").exists() && manager.path("b.sock").exists());
    answers(&manager, "b.sock", false);
    // The same path with another type: one socket takes the other's place.
    manager.apply(&units("DIR/b.sock", "seqpacket"));
    assert_eq!(manager.socket("web")["type"], "seqpacket");
    answers(&manager, "b.sock", true);
    manager.apply(&units("DIR/b.sock", "stream"));
    answers(&manager, "b.sock", false);
    // From a path to a port, and back.
    manager.apply(&units("127.0.0.1:0", "stream"));
    assert!(!manager.path("b.sock").exists());
    manager.apply(&units("DIR/b.sock", "stream"));
    answers(&manager, "b.sock", false);
}

/// Connects to a socket in the folder, and has an answer of the worker of `web`.
fn answers(manager: &Manager, name: &str, seqpacket: bool) {
    use socket2::{Domain, SockAddr, Socket, Type};
    use std::io::Read;
    let kind = if seqpacket {
        Type::SEQPACKET
    } else {
        Type::STREAM
    };
    let mut socket = Socket::new(Domain::UNIX, kind, None).expect("a socket");
    socket
        .set_read_timeout(Some(support::DEADLINE))
        .expect("set a timeout");
    let address = SockAddr::unix(manager.path(name)).expect("an address");
    socket
        .connect(&address)
        .unwrap_or_else(|error| panic!("{name}: {error}\n{}", manager.log()));
    let mut buffer = [0; 64];
    let length = support::uninterrupted(|| socket.read(&mut buffer)).expect("an answer");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert_eq!(text, manager.pids("web")[0].to_string());
}

#[test]
fn one_address_becomes_all_addresses_of_the_same_port() {
    let port = free_port();
    let units = |host: &str| {
        format!(
            "[socket.web]\nlisten = \"{host}:{port}\"\n[watcher.web]\ncmd = \"PROBE serve $(circus.socket.web)\"\n"
        )
    };
    let manager = Manager::start(&units("127.0.0.1"));
    for host in ["0.0.0.0", "127.0.0.1", "127.0.0.2"] {
        manager.apply(&units(host));
        assert_eq!(manager.address("web"), format!("{host}:{port}"));
        let reachable = if host == "0.0.0.0" { "127.0.0.1" } else { host };
        let pid = ask(&format!("{reachable}:{port}"), "pid");
        assert_eq!(pid, manager.pids("web")[0].to_string());
        assert_eq!(listeners(&format!("x:{port}")).len(), 1);
    }
}

#[test]
fn two_sockets_may_swap_their_addresses() {
    let (a, b) = (free_port(), free_port());
    let units = |one: &str, two: &str| {
        format!(
            r#"
            [socket.one]
            listen = "{one}"
            [socket.two]
            listen = "{two}"
            [watcher.one]
            cmd = "PROBE serve $(circus.socket.one)"
            [watcher.two]
            cmd = "PROBE serve $(circus.socket.two)"
            "#
        )
    };
    let (a, b) = (format!("127.0.0.1:{a}"), format!("127.0.0.1:{b}"));
    let manager = Manager::start(&units(&a, &b));
    let before = (listeners(&a), listeners(&b));
    manager.apply(&units(&b, &a));
    let pid = |name: &str| manager.pids(name)[0].to_string();
    assert_eq!(ask(&b, "pid"), pid("one"));
    assert_eq!(ask(&a, "pid"), pid("two"));
    // Who had connected to an address before is answered there.
    assert_eq!((listeners(&a), listeners(&b)), before);

    let paths = ["one.sock", "two.sock"].map(|name| manager.path(name).display().to_string());
    manager.apply(&units("DIR/one.sock", "DIR/two.sock"));
    let before = paths.each_ref().map(|path| listeners(path));
    manager.apply(&units("DIR/two.sock", "DIR/one.sock"));
    assert_eq!(paths.each_ref().map(|path| listeners(path)), before);
    // The files go with those who have them now.
    manager.apply(&units(&a, "DIR/one.sock"));
    assert!(manager.path("one.sock").exists() && !manager.path("two.sock").exists());
}

#[test]
fn a_socket_that_is_renamed_keeps_its_address_and_its_queue() {
    let port = free_port();
    let units = |name: &str, extra: &str| {
        format!(
            "[socket.{name}]\nlisten = \"127.0.0.1:{port}\"\n{extra}\n[watcher.web]\ncmd = \"PROBE serve $(circus.socket.{name})\"\n"
        )
    };
    let address = format!("127.0.0.1:{port}");
    for sharding in ["", "so_reuseport = true"] {
        let manager = Manager::start(&units("old", sharding));
        let before = listeners(&address);
        manager.ok(&["stop", "web"]);
        let waiting = support::begin(&address, "pid");
        manager.apply(&units("new", sharding));
        assert_eq!(manager.socket("new")["state"], "listening");
        manager.ok(&["start", "web"]);
        assert_eq!(support::finish(waiting), manager.pids("web")[0].to_string());
        // While it serves, and with other options.
        manager.apply(&units("newer", &format!("{sharding}\nbacklog = 77")));
        assert_eq!(listeners(&address), before);
        assert_eq!(manager.socket("newer")["queue_limit"], 77);
        ask(&address, "pid");
    }
}

#[test]
fn an_address_whose_change_has_failed_may_come_back() {
    let (old, new) = (free_port(), free_port());
    let units = |port: u16, cmd: &str| {
        format!(
            "[socket.web]\nlisten = \"127.0.0.1:{port}\"\n[watcher.web]\ncmd = \"PROBE {cmd} $(circus.socket.web)\"\n"
        )
    };
    let manager = Manager::start(&units(old, "serve"));
    let address = format!("127.0.0.1:{old}");
    let before = listeners(&address);
    for _ in 0..2 {
        let output = manager.try_apply(&units(new, "exit 7 ,"));
        assert_eq!(output.status.code(), Some(1), "{}", manager.log());
        ask(&address, "pid");
        // All of that port is another address again, beside what is kept of both.
        manager.apply(&units(old, "serve"));
        assert_eq!(listeners(&address), before);
        assert_eq!(manager.address("web"), address);
        assert_eq!(ask(&address, "pid"), manager.pids("web")[0].to_string());
        assert!(listeners(&format!("127.0.0.1:{new}")).is_empty());
    }
    let all = |port: u16| units(port, "serve").replace("127.0.0.1", "0.0.0.0");
    let output = manager.try_apply(&units(new, "exit 7 ,"));
    assert_eq!(output.status.code(), Some(1), "{}", manager.log());
    manager.apply(&all(old));
    assert_eq!(ask(&address, "pid"), manager.pids("web")[0].to_string());
}

#[test]
fn options_are_set_on_the_live_socket() {
    let units = |backlog: u32, mode: &str| {
        format!(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            backlog = {backlog}
            [socket.local]
            listen = "DIR/local.sock"
            mode = "{mode}"
            [watcher.web]
            cmd = "PROBE serve $(circus.socket.web)"
            [watcher.local]
            cmd = "PROBE serve $(circus.socket.local)"
            "#
        )
    };
    let manager = Manager::start(&units(100, "0666"));
    let before = manager.snapshot();
    assert_eq!(manager.socket("web")["queue_limit"], 100);
    manager.apply(&units(200, "0600"));
    assert_eq!(manager.socket("web")["queue_limit"], 200);
    let data = std::fs::metadata(manager.path("local.sock")).expect("a socket");
    assert_eq!(data.permissions().mode() & 0o777, 0o600);
    let after = manager.snapshot();
    assert_eq!(after.listeners, before.listeners);
    // What is set in place needs no new worker.
    assert_eq!(after.workers, before.workers);
}

#[test]
fn a_removed_socket_is_closed_after_its_workers_have_ended() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE do block 15 , append DIR/up x , until 15 , append DIR/told x , await DIR/go"
        sockets = ["web"]
        "#,
    );
    manager.wait_for_lines("up", 1);
    let address = manager.address("web");
    let pid = manager.pids("web")[0];
    manager.write("# nothing");
    manager.ok(&["apply", "--no-wait"]);
    manager.wait_for_lines("told", 1);
    // A client that comes now is not heard, and not refused as long as somebody has the socket.
    let place = address.parse().expect("an address");
    let late = TcpStream::connect_timeout(&place, Duration::from_millis(100));
    let late = late.expect_err("nobody would serve it");
    assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(manager.socket("web")["name"], "web");
    manager.touch("go");
    wait_until_dead(pid);
    let closed = poll(|| TcpStream::connect(&address).is_err().then_some(()));
    assert!(closed.is_some(), "{}", manager.log());
    let status = manager.status();
    assert_eq!(
        (&status["sockets"], &status["watchers"]),
        (&json!([]), &json!([]))
    );
}

#[test]
fn everything_may_be_deleted_and_come_back() {
    let mut manager = Manager::start(UNITS);
    for _ in 0..3 {
        manager.apply("# nothing");
        let status = manager.status();
        assert_eq!(
            (&status["sockets"], &status["watchers"]),
            (&json!([]), &json!([]))
        );
        let alone = poll(|| manager.offspring().is_empty().then_some(()));
        assert!(alone.is_some(), "{:?}", manager.offspring());
        assert!(!manager.path("other.sock").exists());
        manager.apply(UNITS);
        ask(&manager.address("web"), "pid");
    }
    // The file itself may be gone: that is a mistake, and not an empty plan.
    std::fs::remove_file(manager.path("units.toml")).expect("remove it");
    assert_eq!(manager.cli(&["apply"]).status.code(), Some(1));
    ask(&manager.address("web"), "pid");
    assert_eq!(manager.stop().code(), Some(0));
    manager.wait_until_childless();
}

#[test]
fn a_second_apply_is_told_that_there_is_one() {
    let manager = Manager::start("[watcher.web]\ncmd = \"PROBE sleep\"");
    let slow = "[watcher.web]\ncmd = \"PROBE do await DIR/go , notify READY=1 , sleep\"\ntype = \"notify\"";
    manager.write(slow);
    let mut first = manager.connect();
    send(
        &mut first,
        &json!({"method": "io.tentpole.Manager.Apply", "parameters": {}}),
    );
    manager.wait_for_state("web", "reloading");
    let second = manager.try_apply(&slow.replace("READY=1", "STATUS=x;READY=1"));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains("apply"), "{text}");
    manager.touch("go");
    let answer = receive(&mut BufReader::new(first)).expect("an answer");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    manager.ok(&["apply"]);
    assert_eq!(changes(&manager), json!([]));
}

#[test]
fn a_stop_and_a_sigterm_in_the_middle_end_it() {
    let slow = "[watcher.web]\ncmd = \"PROBE do append DIR/born x , await DIR/go , notify READY=1 , sleep\"\ntype = \"notify\"";
    let mut manager = Manager::start("[watcher.web]\ncmd = \"PROBE sleep\"");
    manager.write(slow);
    let mut apply = manager.connect();
    send(
        &mut apply,
        &json!({"method": "io.tentpole.Manager.Apply", "parameters": {}}),
    );
    manager.wait_for_lines("born", 1);
    manager.ok(&["stop", "web"]);
    let answer = receive(&mut BufReader::new(apply)).expect("an answer");
    assert!(answer.is_object(), "{answer}");
    assert_eq!(manager.watcher("web")["state"], "stopped");
    // And now with the new definition, whichever it has now.
    manager.touch("go");
    manager.ok(&["apply"]);
    manager.ok(&["start", "web"]);
    std::fs::remove_file(manager.path("go")).expect("close the gate");
    manager.write(&slow.replace("sleep", "ignore 1 , sleep"));
    let born = manager.lines("born").len();
    manager.ok(&["apply", "--no-wait"]);
    manager.wait_for_lines("born", born + 1);
    assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
}

#[test]
fn a_new_optional_socket_that_cannot_be_bound_yet_is_tried_again() {
    let manager = Manager::start(UNITS);
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("an address").port();
    manager.apply(&format!(
        "{UNITS}\n[socket.late]\nlisten = \"127.0.0.1:{port}\"\noptional = true\n[watcher.late]\ncmd = \"PROBE do append-env DIR/env LISTEN_FDNAMES , sleep\"\nsockets = [\"other\", \"late\"]"
    ));
    assert_eq!(manager.socket("late")["state"], "failed");
    assert_eq!(manager.wait_for_lines("env", 1), ["LISTEN_FDNAMES=other"]);
    drop(taken);
    manager.wait_for_socket("late", "listening");
    // Its watcher is reloaded, so that it has the socket.
    let lines = manager.wait_for_lines("env", 2);
    assert_eq!(lines[1], "LISTEN_FDNAMES=other:late");
    let late = manager.wait_for_state("late", "running");
    assert_eq!(late["workers"][0]["generation"], 2);
}

#[test]
fn an_optional_socket_that_moves_is_served_where_it_was_until_it_is_bound() {
    let units = |port: u16| {
        format!(
            "[socket.web]\nlisten = \"127.0.0.1:{port}\"\noptional = true\n[watcher.web]\ncmd = \"PROBE serve $(circus.socket.web)\""
        )
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("an address").port();
    let manager = Manager::start(&units(0));
    let before = (manager.address("web"), manager.pids("web"));
    let said = manager.apply(&units(port));
    assert!(said.contains("it stays as it was until then"), "{said}");
    assert_eq!(ask(&before.0, "pid"), before.1[0].to_string());
    drop(taken);
    manager.wait_for("web", "is another", |_| {
        let pids = manager.pids("web");
        pids.len() == 1 && pids != before.1
    });
    let address = format!("127.0.0.1:{port}");
    assert_eq!(ask(&address, "pid"), manager.pids("web")[0].to_string());
}

#[test]
fn a_socket_that_is_optional_no_more_must_be_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("an address").port();
    let units = |line: &str| {
        format!(
            "[socket.late]\nlisten = \"127.0.0.1:{port}\"\n{line}\n[watcher.late]\ncmd = \"PROBE serve $(circus.socket.late)\""
        )
    };
    let manager = Manager::start(&units("optional = true"));
    assert_eq!(manager.socket("late")["state"], "failed");
    let text = refused(&manager, &units(""));
    assert!(
        text.contains("socket `late`") && text.contains("in use"),
        "{text}"
    );
    assert!(text.contains("nothing was changed"), "{text}");
    drop(taken);
    manager.ok(&["apply"]);
    manager.wait_for_state("late", "running");
    assert_eq!(
        ask(&manager.address("late"), "pid"),
        manager.pids("late")[0].to_string()
    );
}

#[test]
fn the_file_of_a_unix_socket_is_as_a_new_one_would_be_and_that_of_another_is_left_alone() {
    use std::os::unix::fs::MetadataExt;
    let units = |lines: &str| format!("[socket.web]\nlisten = \"DIR/web\"\n{lines}");
    if !support::needs_root() {
        return;
    }
    let manager = Manager::start(&units("mode = \"0600\"\nuser = 12\ngroup = 34"));
    let path = manager.path("web");
    let access = || {
        let data = std::fs::symlink_metadata(&path).expect("the socket's file");
        (data.uid(), data.gid(), data.mode() & 0o777)
    };
    assert_eq!(access(), (12, 34, 0o600));
    manager.apply(&units("mode = \"0620\""));
    let own = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    assert_eq!(access(), (own.0, own.1, 0o620));

    std::fs::remove_file(&path).expect("remove");
    let _another = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let before = access();
    manager.apply(&units("mode = \"0666\"\nuser = 12"));
    assert_eq!(access(), before);
    let error = manager.socket("web")["error"].to_string();
    let reason = "somebody has put another file in its place";
    assert!(error.contains(reason), "{error}");
}

#[test]
fn an_owner_that_a_unix_socket_cannot_be_given_refuses_the_whole_change() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    let units = |one: &str, two: &str, name: &str| {
        format!(
            "[socket.one]\nlisten = \"DIR/one\"\n{one}\n[socket.{name}]\nlisten = \"DIR/two\"\n{two}\n[watcher.idle]\n\
             cmd = \"PROBE sleep\"\nsockets = [\"one\", \"{name}\"]\n"
        )
    };
    // In a place where there is nobody but root, not even root can give files to others.
    let be_alone = || {
        let own = unsafe { (libc::getuid(), libc::getgid()) };
        if unsafe { libc::unshare(libc::CLONE_NEWUSER) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {} 1", own.0))?;
        std::fs::write("/proc/self/gid_map", format!("0 {} 1", own.1))?;
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        Ok(())
    };
    let mut tried = Command::new("true");
    unsafe { tried.pre_exec(be_alone) };
    if !tried.status().is_ok_and(|status| status.success()) {
        return support::leave_out("user namespaces can't be made here");
    }
    let manager = Manager::spawn_with(&units("mode = \"0600\"", "", "two"), |command| {
        unsafe { command.pre_exec(be_alone) };
    });
    manager.wait_for_notice("READY=1");
    let path = manager.path("one");
    let mode = || {
        let data = std::fs::symlink_metadata(&path).expect("the socket's file");
        data.permissions().mode() & 0o777
    };
    let before = manager.snapshot();
    // Both where the socket stays what it is, and where another has it.
    for name in ["two", "other"] {
        let output = manager.try_apply(&units("mode = \"0640\"", "user = 12345", name));
        assert_eq!(output.status.code(), Some(1), "{}", manager.log());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let two = manager.path("two");
        for part in [
            &format!("socket `{name}` can't be what its unit says"),
            &format!("{} can't be given its owner", two.display()),
            "; take that out of the unit, or",
            "nothing was changed",
        ] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        assert_eq!(mode(), 0o600);
        assert!(manager.socket("two")["error"].is_null());
    }
    assert_eq!(manager.snapshot(), before);
    manager.apply(&units("mode = \"0640\"", "", "two"));
    assert_eq!(mode(), 0o640);
}

#[test]
fn a_stopped_watcher_stays_stopped_and_an_on_demand_one_waits() {
    let units = |mark: &str| {
        format!(
            r#"
            [socket.lazy]
            listen = "127.0.0.1:0"
            [watcher.lazy]
            cmd = "PROBE serve $(circus.socket.lazy)"
            on_demand = true
            env = {{ MARK = "{mark}" }}
            [watcher.off]
            cmd = "PROBE sleep"
            env = {{ MARK = "{mark}" }}
            [watcher.done]
            cmd = "PROBE do append DIR/runs {mark}"
            type = "oneshot"
            "#
        )
    };
    let manager = Manager::start(&units("one"));
    manager.ok(&["stop", "off"]);
    manager.wait_for_lines("runs", 1);
    let address = manager.address("lazy");
    manager.apply(&units("two"));
    assert_eq!(manager.watcher("off")["state"], "stopped");
    assert_eq!(manager.watcher("lazy")["state"], "waiting");
    assert_eq!(ask(&address, "env MARK"), "two");
    manager.ok(&["start", "off"]);
    assert_eq!(environment(manager.pids("off")[0])["MARK"], "two");
}

#[test]
fn sharding_may_begin_and_end_while_clients_come() {
    let units = |shared: bool| {
        format!(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            blocking = false
            so_reuseport = {shared}
            [watcher.web]
            cmd = "PROBE count $(circus.socket.web)"
            type = "notify"
            numprocesses = 2
            "#
        )
    };
    let manager = Manager::start(&units(false));
    let address = manager.address("web");
    let before = listeners(&address);
    let all = changes_after(&manager, &units(true));
    assert_eq!(all[0]["action"], "rebind");
    manager.ok(&["apply"]);
    // A port that the kernel has chosen is kept like any other.
    assert_eq!(manager.address("web"), address);
    assert_eq!(listeners(&address).len(), 2);
    manager.apply(&units(false));
    assert_eq!(manager.address("web"), address);
    assert_eq!(listeners(&address), before);
}

#[test]
fn clients_in_the_queues_of_a_stopped_watcher_are_served_by_those_that_are_left() {
    let units = |watchers: &[&str]| {
        let watcher = |name: &&str| {
            format!(
                r#"
                [watcher.{name}]
                cmd = "PROBE serve $(circus.socket.web)"
                numprocesses = {}
                "#,
                if *name == "small" { 1 } else { 3 }
            )
        };
        let socket = r#"
            [socket.web]
            listen = "127.0.0.1:0"
            so_reuseport = true
            "#;
        let watchers: String = watchers.iter().map(watcher).collect();
        format!("{socket}{watchers}")
    };
    let manager = Manager::start(&units(&["small", "big"]));
    let address = manager.address("web");
    manager.ok(&["stop", "small", "big"]);
    let ask_all = || -> Vec<TcpStream> { (0..30).map(|_| begin(&address, "pid")).collect() };
    // Who is removed takes no client along, ...
    let waiting = ask_all();
    manager.apply(&units(&["small"]));
    manager.ok(&["start", "small"]);
    for stream in waiting {
        assert_ne!(finish(stream), "");
    }
    let one = poll(|| (listeners(&address).len() == 1).then_some(()));
    assert!(one.is_some(), "{:?}", listeners(&address));
    // ... and neither does who gets another name.
    manager.apply(&units(&["big"]));
    assert_eq!(listeners(&address).len(), 3);
    manager.ok(&["stop", "big"]);
    let waiting = ask_all();
    manager.apply(&units(&["other"]));
    for stream in waiting {
        assert_ne!(finish(stream), "");
    }
    assert_eq!(listeners(&address).len(), 3);
}

#[test]
fn the_shard_that_a_worker_drains_is_its_own_after_sharding_has_begun() {
    let port = free_port();
    let units = |shared: bool| {
        format!(
            r#"
            [socket.web]
            listen = "127.0.0.1:{port}"
            so_reuseport = {shared}
            [watcher.web]
            cmd = "PROBE serve $(circus.socket.web)"
            numprocesses = 2
            "#
        )
    };
    let manager = Manager::start(&units(false));
    let address = manager.address("web");
    let before = listeners(&address);
    manager.apply(&units(true));
    let after = listeners(&address);
    assert!(
        after.contains(&before[0]),
        "it is one of the shards, with its queue"
    );
    assert_eq!(after.len(), 2);
    let pids = manager.pids("web");
    pids.iter().for_each(|pid| freeze(*pid));
    let waiting: Vec<TcpStream> = (0..40)
        .map(|_| begin(&address, "env TENTPOLE_WID"))
        .collect();
    manager.ok(&["scale", "web", "1", "--no-wait"]);
    let late: Vec<TcpStream> = (0..20)
        .map(|_| begin(&address, "env TENTPOLE_WID"))
        .collect();
    pids.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    let wids: Vec<String> = waiting.into_iter().map(finish).collect();
    assert!(wids.iter().any(|wid| wid == "2"), "{wids:?}");
    for stream in late {
        assert_eq!(finish(stream), "1");
    }
}

#[test]
fn a_socket_that_is_renamed_goes_on_with_all_of_its_shards() {
    let port = free_port();
    let units = |name: &str| {
        format!(
            r#"
            [socket.{name}]
            listen = "127.0.0.1:{port}"
            so_reuseport = true
            [watcher.web]
            cmd = "PROBE serve 3"
            sockets = ["{name}"]
            numprocesses = 3
            "#
        )
    };
    let manager = Manager::start(&units("old"));
    let address = manager.address("old");
    let before = listeners(&address);
    manager.apply(&units("new"));
    assert_eq!(listeners(&address), before);
    // The kernel chooses all of those that there are, and the one that comes.
    manager.ok(&["scale", "web", "4"]);
    let mut left: Vec<&str> = vec!["1", "2", "3", "4"];
    let all = poll(|| {
        let wid = ask(&address, "env TENTPOLE_WID");
        left.retain(|other| *other != wid);
        left.is_empty().then_some(())
    });
    assert!(all.is_some(), "{left:?} are never chosen");
}

#[test]
fn clients_that_wait_on_an_address_that_is_left_are_served() {
    let ports = [free_port(), free_port()];
    for sharding in ["", "so_reuseport = true"] {
        let units = |port: u16| {
            format!(
                r#"
                [socket.web]
                listen = "127.0.0.1:{port}"
                {sharding}
                [watcher.web]
                cmd = "PROBE serve $(circus.socket.web)"
                numprocesses = 2
                reload_surge = 2
                "#
            )
        };
        let manager = Manager::start(&units(ports[0]));
        let old = manager.address("web");
        let pids = manager.pids("web");
        pids.iter().for_each(|pid| freeze(*pid));
        let waiting: Vec<TcpStream> = (0..20).map(|_| begin(&old, "pid")).collect();
        manager.write(&units(ports[1]));
        manager.ok(&["apply", "--no-wait"]);
        // Those that stand still have been replaced, and have what waits still before them.
        let new = format!("127.0.0.1:{}", ports[1]);
        for _ in 0..10 {
            assert_ne!(ask(&new, "pid"), "");
        }
        manager.wait_for("web", "has replaced all", |web| web["ready"] == 2);
        pids.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
        for stream in waiting {
            assert_ne!(finish(stream), "", "{sharding}");
        }
        pids.iter().for_each(|pid| wait_until_dead(*pid));
        assert!(TcpStream::connect(&old).is_err());
    }
}

#[test]
fn clients_are_served_by_workers_that_an_apply_leaves_out() {
    let ports = [free_port(), free_port()];
    let socket =
        |port: u16, lines: &str| format!("[socket.web]\nlisten = \"127.0.0.1:{port}\"\n{lines}\n");
    let watcher = |name: &str, count: u32| {
        format!(
            "[watcher.{name}]\ncmd = \"PROBE serve 3\"\nsockets = [\"web\"]\nnumprocesses = {count}\n"
        )
    };
    let none = "[watcher.idle]\ncmd = \"PROBE sleep\"\n".to_owned();
    let sharded = "so_reuseport = true";
    let [old, new] = ports;
    let cases = [
        // Both are removed.
        (socket(old, "") + &watcher("a", 2), none.clone()),
        (socket(old, sharded) + &watcher("a", 3), none),
        // The watcher has another name, and its socket another address.
        (
            socket(old, sharded) + &watcher("a", 3),
            socket(new, sharded) + &watcher("b", 3),
        ),
        // The socket stays, with fewer shards.
        (
            socket(old, sharded) + &watcher("a", 3) + &watcher("b", 1),
            socket(old, sharded) + &watcher("b", 1),
        ),
        // One watcher shrinks while another grows.
        (
            socket(old, sharded) + &watcher("a", 3) + &watcher("b", 1),
            socket(old, "") + &watcher("a", 1) + &watcher("b", 3),
        ),
        (
            socket(old, sharded) + &watcher("a", 3) + &watcher("b", 1),
            socket(new, sharded) + &watcher("a", 1) + &watcher("b", 3),
        ),
    ];
    for (before, after) in cases {
        let manager = Manager::start(&before);
        let address = manager.address("web");
        let mut pids = manager.pids("a");
        if before.contains("watcher.b") {
            pids.extend(manager.pids("b"));
        }
        pids.iter().for_each(|pid| freeze(*pid));
        let waiting: Vec<TcpStream> = (0..30).map(|_| begin(&address, "pid")).collect();
        manager.write(&after);
        manager.ok(&["apply", "--no-wait"]);
        pids.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
        for stream in waiting {
            assert_ne!(finish(stream), "", "{before}\n{after}");
        }
    }
}

#[test]
fn an_apply_that_ends_sharding_while_a_stopped_watcher_drains_loses_nobody() {
    let port = free_port();
    let units = |shared: bool| {
        format!(
            r#"
            [socket.web]
            listen = "127.0.0.1:{port}"
            so_reuseport = {shared}
            [watcher.green]
            cmd = "PROBE serve $(circus.socket.web)"
            [watcher.blue]
            cmd = "PROBE serve $(circus.socket.web)"
            numprocesses = 3
            "#
        )
    };
    let manager = Manager::start(&units(true));
    let address = manager.address("web");
    let mut pids = manager.pids("blue");
    pids.extend(manager.pids("green"));
    pids.iter().for_each(|pid| freeze(*pid));
    let waiting: Vec<TcpStream> = (0..30).map(|_| begin(&address, "pid")).collect();
    manager.ok(&["stop", "blue", "--no-wait"]);
    manager.write(&units(false));
    manager.ok(&["apply", "--no-wait"]);
    pids.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    for stream in waiting {
        assert_ne!(finish(stream), "");
    }
    manager.wait_for_state("blue", "stopped");
    assert_eq!(ask(&address, "env TENTPOLE_WATCHER"), "green");
}

/// A socket with or without a queue for each worker, and the watcher that has it.
fn perhaps_sharded(port: u16, shared: bool, numprocesses: u32) -> String {
    format!(
        r#"
        [socket.web]
        listen = "127.0.0.1:{port}"
        so_reuseport = {shared}
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        numprocesses = {numprocesses}
        "#
    )
}

#[test]
fn clients_in_the_queues_of_a_stopped_watcher_are_served_though_sharding_ends() {
    for numprocesses in [1, 3] {
        let port = free_port();
        let manager = Manager::start(&perhaps_sharded(port, true, 3));
        let address = manager.address("web");
        manager.ok(&["stop", "web"]);
        let waiting: Vec<TcpStream> = (0..40).map(|_| begin(&address, "pid")).collect();
        manager.apply(&perhaps_sharded(port, false, numprocesses));
        // Whatever becomes of the manager.
        manager.ok(&["upgrade"]);
        // Who comes from now on waits where it is served first.
        let late: Vec<TcpStream> = (0..20).map(|_| begin(&address, "pid")).collect();
        manager.ok(&["start", "web"]);
        for stream in waiting.into_iter().chain(late) {
            assert_ne!(finish(stream), "");
        }
        let one = poll(|| (listeners(&address).len() == 1).then_some(()));
        assert!(one.is_some(), "{:?}", listeners(&address));
        manager.wait_for("web", "has those workers that it wants", |web| {
            let workers = web["workers"].as_array().map_or(0, Vec::len);
            web["state"] == "running" && workers == numprocesses as usize
        });
        assert_ne!(ask(&address, "pid"), "");
    }
}

#[test]
fn clients_are_served_though_sharding_ends_while_their_workers_do() {
    for how in [&["restart", "web", "--no-wait"][..], &[]] {
        let port = free_port();
        let manager = Manager::start(&perhaps_sharded(port, true, 3));
        let address = manager.address("web");
        let pids = manager.pids("web");
        pids.iter().for_each(|pid| freeze(*pid));
        let waiting: Vec<TcpStream> = (0..40).map(|_| begin(&address, "env MARK")).collect();
        if !how.is_empty() {
            manager.ok(how);
        }
        let units = perhaps_sharded(port, false, 3) + "env = { MARK = \"new\" }\n";
        manager.write(&units);
        manager.ok(&["apply", "--no-wait"]);
        // None of them has drained its queue then.
        pids.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
        for stream in waiting {
            finish(stream);
        }
        let one = poll(|| (listeners(&address).len() == 1).then_some(()));
        assert!(one.is_some(), "{:?}", listeners(&address));
        assert_eq!(ask(&address, "env MARK"), "new");
    }
}

fn changes_after(manager: &Manager, units: &str) -> Value {
    manager.write(units);
    changes(manager)
}

#[test]
fn an_environment_for_all_reloads_all() {
    let manager = Manager::start(UNITS);
    let before = manager.snapshot();
    manager.apply(&format!("[manager]\nenv = {{ ALL = \"1\" }}\n{UNITS}"));
    let after = manager.snapshot();
    for watcher in ["web", "other"] {
        for worker in &after.workers[watcher] {
            assert_eq!(environment(worker.pid)["ALL"], "1");
            assert!(!before.pids(watcher).contains(&worker.pid));
        }
    }
    assert_eq!(after.listeners, before.listeners);
}

#[test]
fn a_control_socket_that_stays_where_it_is_until_a_new_start_is_told_of() {
    let manager = Manager::start(UNITS);
    let other = format!("{UNITS}\n[manager]\ncontrol = \"DIR/elsewhere\"\n");
    manager.write(&other);
    let told = "the control socket stays where it is until the manager is started anew";
    let text = manager.ok(&["apply", "--dry-run"]);
    assert!(text.contains("manager  set  control"), "{text}");
    assert!(text.contains(told), "{text}");
    let output = manager.cli(&["plan", "--json"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains(told));
    let plan: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!(plan["changes"][0]["keys"], json!(["control"]));
    let text = manager.ok(&["apply"]);
    assert!(text.contains(told), "{text}");
    assert!(manager.log().contains(told), "{}", manager.log());
    manager.ok(&["status"]);
    assert!(!manager.path("elsewhere").exists());
}
