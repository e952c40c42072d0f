//! Another program in the manager's place: the same process, with everything that it has.

mod support;

use serde_json::{Value, json};
use std::io::BufReader;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::lives::open_descriptors;
use support::load::Load;
use support::{
    DEADLINE, Manager, ask, environment, freeze, is_alive, kill, poll, receive, send,
    uninterrupted, wait_until_dead,
};

const WEB: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    [watcher.web]
    cmd = "PROBE serve $(circus.socket.web)"
    numprocesses = 2
    "#;

/// A manager that was started from a file of its own, which a test may replace.
fn spawn_own(units: &str, change: impl FnOnce(&mut Command)) -> Manager {
    let manager = Manager::spawn_with(units, |command| {
        let units = PathBuf::from(command.get_args().last().expect("a unit file"));
        let program = units.with_file_name("tentpole");
        std::fs::copy(command.get_program(), &program).expect("copy the program");
        let mut own = Command::new(program);
        own.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => own.env(name, value),
                None => own.env_remove(name),
            };
        }
        let log = std::fs::OpenOptions::new()
            .append(true)
            .open(units.with_file_name("log"))
            .expect("open the log");
        own.stdin(std::process::Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        *command = own;
        change(command);
    });
    manager.wait_for_notice("READY=1");
    manager
}

/// Puts another program in the place of the manager's.
fn install(manager: &Manager, script: &str) {
    let new = manager.path("new");
    std::fs::write(&new, script).expect("write a script");
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("make it executable");
    std::fs::rename(new, manager.path("tentpole")).expect("put it in place");
}

fn install_own(manager: &Manager) {
    let new = manager.path("new");
    std::fs::copy(env!("CARGO_BIN_EXE_tentpole"), &new).expect("copy the program");
    std::fs::rename(new, manager.path("tentpole")).expect("put it in place");
}

/// What `tentpole upgrade` says where it must fail; nothing has changed then.
fn refused(manager: &Manager) -> String {
    let before = (manager.snapshot(), manager.manager_pid_of_status());
    let output = manager.cli(&["upgrade"]);
    let text = String::from_utf8(output.stderr).expect("is UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", manager.log());
    assert_eq!(
        text.trim_end().lines().count(),
        1,
        "one line says why: {text}"
    );
    assert_eq!(
        (manager.snapshot(), manager.manager_pid_of_status()),
        before
    );
    text
}

trait Status {
    fn manager_pid_of_status(&self) -> i64;
}

impl Status for Manager {
    fn manager_pid_of_status(&self) -> i64 {
        self.status()["manager"]["pid"].as_i64().expect("a pid")
    }
}

/// The program that a process runs.
fn exe(pid: i32) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/exe")).expect("a link");
    link.to_string_lossy().into_owned()
}

#[test]
fn everything_is_the_same_but_the_program() {
    let mut manager = spawn_own(WEB, |_| {});
    let before = manager.snapshot();
    let status = manager.status();
    let pid = manager.manager_pid();
    install_own(&manager);
    assert!(exe(pid).ends_with("(deleted)"), "{}", exe(pid));
    let said = manager.ok(&["upgrade"]);
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    assert_eq!(exe(pid), manager.path("tentpole").to_string_lossy());
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    assert_eq!(manager.status(), status);
    ask(&manager.address("web"), "pid");
    // It still supervises.
    kill(before.pids("web")[0], libc::SIGKILL);
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 1 && web["ready"] == 2
    });
    assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
}

#[test]
fn what_changes_in_the_turn_of_an_upgrade_outlives_the_manager_too() {
    let other = "[socket.other]\nlisten = \"127.0.0.1:0\"\n[watcher.other]\ncmd = \"PROBE serve $(circus.socket.other)\"\n";
    for script in ["", "#!/bin/sh\nexit 1\n"] {
        let manager = spawn_own(WEB, |_| {});
        if !script.is_empty() {
            install(&manager, script);
        }
        manager.write(&format!("{WEB}{other}"));
        let pid = manager.manager_pid();
        freeze(pid);
        kill(pid, libc::SIGHUP);
        kill(pid, libc::SIGUSR2);
        kill(pid, libc::SIGCONT);
        manager.wait_for_state("other", "running");
        let what = if script.is_empty() {
            "upgraded"
        } else {
            "upgrade"
        };
        manager.wait_for_log(what);
        install_own(&manager);
        let before = (manager.snapshot(), manager.address("other"));
        manager.crash();
        assert_eq!((manager.snapshot(), manager.address("other")), before);
        assert_eq!(ask(&before.1, "pid"), manager.pids("other")[0].to_string());
    }
}

#[test]
fn a_signal_to_the_started_process_upgrades_too() {
    let manager = spawn_own(WEB, |_| {});
    let before = manager.snapshot();
    let pid = manager.manager_pid();
    install_own(&manager);
    manager.signal(libc::SIGUSR2);
    let upgraded = poll(|| (!exe(pid).ends_with("(deleted)")).then_some(()));
    assert!(upgraded.is_some(), "{}", manager.log());
    assert_eq!(manager.snapshot(), before);
}

#[test]
fn without_a_keeper_it_is_the_started_process_that_goes_on() {
    let mut manager = spawn_own(WEB, |command| {
        command.arg("--no-keeper");
    });
    let before = manager.snapshot();
    install_own(&manager);
    for _ in 0..3 {
        manager.ok(&["upgrade"]);
        assert_eq!(manager.manager_pid_of_status(), i64::from(manager.pid()));
        assert_eq!(manager.snapshot(), before, "{}", manager.log());
    }
    assert!(!exe(manager.pid()).ends_with("(deleted)"));
    kill(before.pids("web")[0], libc::SIGKILL);
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 1 && web["ready"] == 2
    });
    assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
}

#[test]
fn a_command_that_is_under_way_is_answered_by_the_new_program() {
    let manager = Manager::start(
        r#"
        [watcher.slow]
        cmd = "PROBE do ignore 15 , append DIR/up x , sleep"
        graceful_timeout = "1500ms"
        [watcher.other]
        cmd = "PROBE do await DIR/go , notify READY=1 , sleep"
        type = "notify"
        autostart = false
        "#,
    );
    manager.wait_for_lines("up", 1);
    let mut stop = manager.connect();
    send(
        &mut stop,
        &json!({"method": "io.tentpole.Manager.Stop", "parameters": {"names": ["slow"]}}),
    );
    // One that wants to know how far it is, and one that has asked more than it was answered yet.
    let mut start = manager.connect();
    send(
        &mut start,
        &json!({"method": "io.tentpole.Manager.Start", "parameters": {"names": ["other"]}, "more": true}),
    );
    send(
        &mut start,
        &json!({"method": "io.tentpole.Manager.Status", "parameters": {}}),
    );
    manager.wait_for_state("slow", "stopping");
    manager.wait_for_state("other", "starting");
    manager.ok(&["upgrade"]);
    assert_eq!(manager.watcher("slow")["state"], "stopping");
    manager.touch("go");
    let mut start = BufReader::new(start);
    let answer = loop {
        let answer = receive(&mut start).unwrap_or_else(|| panic!("no answer\n{}", manager.log()));
        if answer["continues"] != json!(true) {
            break answer;
        }
    };
    assert_eq!(answer["error"], Value::Null, "{answer}");
    let status = receive(&mut start).expect("the second answer");
    assert_eq!(
        status["parameters"]["manager"]["state"], "running",
        "{status}"
    );
    let answer = receive(&mut BufReader::new(stop)).expect("an answer");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    assert_eq!(manager.watcher("slow")["state"], "stopped");
}

#[test]
fn half_a_question_is_answered_when_it_is_whole() {
    use std::io::Write;
    let manager = Manager::start(WEB);
    let mut client = manager.connect();
    let question = json!({"method": "io.tentpole.Manager.Status", "parameters": {}}).to_string();
    let (head, tail) = question.split_at(20);
    client.write_all(head.as_bytes()).expect("send");
    manager.status();
    manager.ok(&["upgrade"]);
    client.write_all(tail.as_bytes()).expect("send");
    client.write_all(&[0]).expect("send");
    let answer = receive(&mut BufReader::new(client)).expect("an answer");
    assert_eq!(answer["parameters"]["watchers"][0]["ready"], 2);
}

#[test]
fn deadlines_and_counters_go_on_where_they_were() {
    let manager = Manager::start(
        r#"
        [watcher.stubborn]
        cmd = "PROBE do ignore 15 , append DIR/up x , sleep"
        graceful_timeout = "1s"
        [watcher.crashing]
        cmd = "PROBE do append DIR/runs x , exit 3"
        restart_delay = "900ms"
        restart_max_delay = "900ms"
        [watcher.web]
        cmd = "PROBE sleep"
        [watcher.hangs]
        cmd = "PROBE sleep"
        type = "notify"
        start_timeout = "1500ms"
        max_retry = 0
        autostart = false
        "#,
    );
    manager.wait_for_lines("up", 1);
    kill(manager.pids("web")[0], libc::SIGKILL);
    manager.wait_for("web", "was restarted", |web| {
        web["restarts"] == 1 && web["ready"] == 1
    });
    manager.ok(&["reload", "web"]);
    assert_eq!(manager.watcher("web")["workers"][0]["generation"], 3);
    manager.ok(&["start", "--no-wait", "hangs"]);
    let pid = manager.pids("stubborn")[0];
    manager.ok(&["stop", "--no-wait", "stubborn"]);
    let begun = Instant::now();
    manager.wait_for_state("crashing", "backoff");
    let before = manager.watcher("web");
    // None of them begins anew: each upgrade would put them off, and they would never come.
    while begun.elapsed() < Duration::from_millis(1700) {
        manager.ok(&["upgrade"]);
    }
    manager.wait_for_state("stubborn", "stopped");
    assert!(!is_alive(pid));
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    manager.wait_for_state("hangs", "failed");
    manager.wait_for_lines("runs", 3);
    assert!(manager.watcher("crashing")["restarts"].as_u64() >= Some(1));
    assert_eq!(manager.watcher("web"), before);
}

#[test]
fn notifications_of_the_moment_are_not_lost() {
    let manager = Manager::start(
        r#"
        [watcher.dog]
        cmd = "PROBE do notify READY=1 , repeat 10 WATCHDOG=1"
        type = "notify"
        watchdog = "500ms"
        [watcher.talks]
        cmd = "PROBE do notify READY=1 , await DIR/go , notify STATUS=said , sleep"
        type = "notify"
        "#,
    );
    let before = manager.snapshot();
    manager.touch("go");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        manager.ok(&["upgrade"]);
    }
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    manager.wait_for("talks", "said it", |talks| {
        talks["workers"][0]["status"] == "said"
    });
}

#[test]
fn in_the_middle_of_a_reload_it_goes_on_and_is_answered() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE do notify READY=1 , serve $(circus.socket.web)"
        type = "notify"
        ready_delay = "150ms"
        numprocesses = 4
        "#,
    );
    let before = manager.snapshot();
    let mut reload = manager.connect();
    send(
        &mut reload,
        &json!({"method": "io.tentpole.Manager.Reload", "parameters": {"names": ["web"]}}),
    );
    manager.wait_for_state("web", "reloading");
    for _ in 0..3 {
        manager.ok(&["upgrade"]);
    }
    let answer = receive(&mut BufReader::new(reload)).expect("an answer");
    assert_eq!(answer["error"], Value::Null, "{answer}\n{}", manager.log());
    let after = manager.snapshot();
    assert_eq!(after.listeners, before.listeners);
    assert_eq!(after.restarts["web"], 0);
    for (old, new) in before.workers["web"].iter().zip(&after.workers["web"]) {
        assert_eq!((new.wid, new.generation), (old.wid, 2));
    }
}

#[test]
fn a_worker_that_ends_in_the_moment_is_restarted() {
    let manager = Manager::start(&format!(
        "{WEB}restart_delay = \"1ms\"\nrestart_max_delay = \"1ms\"\n"
    ));
    for round in 1..=10 {
        let pid = manager.pids("web")[0];
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2 * round));
            kill(pid, libc::SIGKILL);
        });
        manager.ok(&["upgrade"]);
        killer.join().expect("no panic");
        manager.wait_for("web", "was made whole", |web| {
            web["restarts"] == round && web["ready"] == 2
        });
        wait_until_dead(pid);
    }
}

#[test]
fn units_are_read_from_where_they_were() {
    let manager = Manager::start(WEB);
    manager.ok(&["upgrade"]);
    let said = manager.apply(&WEB.replace("numprocesses = 2", "numprocesses = 3"));
    assert!(said.contains("watcher.web"), "{said}");
    assert_eq!(manager.watcher("web")["ready"], 3);
}

#[test]
fn a_new_program_that_is_missing_is_refused() {
    let manager = spawn_own(WEB, |_| {});
    std::fs::remove_file(manager.path("tentpole")).expect("remove it");
    let text = refused(&manager);
    assert!(
        text.contains("No such file")
            && text.contains(manager.path("tentpole").to_str().expect("is UTF-8")),
        "{text}"
    );
    install_own(&manager);
    manager.ok(&["upgrade"]);
}

#[test]
fn a_new_program_that_is_not_executable_is_refused() {
    let manager = spawn_own(WEB, |_| {});
    install_own(&manager);
    std::fs::set_permissions(manager.path("tentpole"), PermissionsExt::from_mode(0o644))
        .expect("chmod");
    let text = refused(&manager);
    assert!(text.contains("Permission denied"), "{text}");
}

#[test]
fn a_folder_or_a_text_in_its_place_is_refused() {
    let manager = spawn_own(WEB, |_| {});
    std::fs::remove_file(manager.path("tentpole")).expect("remove it");
    std::fs::create_dir(manager.path("tentpole")).expect("make a folder");
    let text = refused(&manager);
    assert!(text.contains("tentpole"), "{text}");
    std::fs::remove_dir(manager.path("tentpole")).expect("remove it");
    install(&manager, "");
    let text = refused(&manager);
    assert!(text.contains("Exec format error"), "{text}");
    // A part of it: an installation that is under way.
    let whole = std::fs::read(env!("CARGO_BIN_EXE_tentpole")).expect("read it");
    std::fs::write(manager.path("tentpole"), &whole[..20_000]).expect("write a part");
    refused(&manager);
}

#[test]
fn a_program_that_is_another_one_is_refused() {
    let manager = spawn_own(WEB, |_| {});
    // This one exits with 0, but says nothing of a state.
    install(&manager, "#!/bin/sh\nexec /bin/true\n");
    let text = refused(&manager);
    assert!(text.contains("another program"), "{text}");
    install(&manager, "#!/bin/sh\nexec /bin/false\n");
    let text = refused(&manager);
    assert!(text.contains("exited with code 1"), "{text}");
    install(
        &manager,
        "#!/bin/sh\nhead -c 100000 /dev/urandom >&2; exit 1\n",
    );
    let text = refused(&manager);
    assert!(text.len() < 5000 && !text.contains('\u{1b}'), "{text:?}");
    install(
        &manager,
        "#!/bin/sh\necho 'usage: something else' >&2\nexit 2\n",
    );
    let text = refused(&manager);
    assert!(
        text.contains("usage: something else") && text.contains("code 2"),
        "{text}"
    );
    install(&manager, "#!/bin/sh\nkill -SEGV $$\n");
    let text = refused(&manager);
    assert!(text.contains("signal 11"), "{text}");
}

#[test]
fn a_program_that_hangs_is_given_up_and_nothing_waits_for_it() {
    let manager = spawn_own(WEB, |_| {});
    install(
        &manager,
        "#!/bin/sh\necho still here >&2\nexec sleep 1000\n",
    );
    let control = manager.path("control");
    let begun = Instant::now();
    let upgrade = std::thread::spawn(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tentpole"));
        support::bounded(command.arg("--control").arg(control).arg("upgrade"))
    });
    manager.wait_for_log("is asked whether it can go on");
    // The manager goes on with its work.
    let old = manager.pids("web")[0];
    kill(old, libc::SIGKILL);
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 1 && web["ready"] == 2
    });
    // Another one is told.
    let second = manager.cli(&["upgrade"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another upgrade"));
    let output = upgrade.join().expect("no panic");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("10s"), "{text}");
    assert!(
        begun.elapsed() < Duration::from_secs(18),
        "{:?}",
        begun.elapsed()
    );
    // And an upgrade works afterwards.
    install_own(&manager);
    manager.ok(&["upgrade"]);
}

#[test]
fn a_program_that_says_yes_and_then_panics_costs_nothing() {
    let manager = spawn_own(WEB, |_| {});
    let before = manager.snapshot();
    let real = env!("CARGO_BIN_EXE_tentpole");
    install(
        &manager,
        &format!("#!/bin/sh\n[ \"$1\" = probe-state ] && exec {real} \"$@\"\nkill -ABRT $$\n"),
    );
    let pid = manager.manager_pid();
    let output = manager.cli(&["upgrade"]);
    // Its manager is dead, and the keeper goes on with the image that it has.
    assert_eq!(output.status.code(), Some(1));
    let back = poll(|| {
        let output = manager.cli(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["manager"]["pid"] != pid).then_some(())
    });
    assert!(back.is_some(), "{}", manager.log());
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
}

#[test]
fn a_signal_that_comes_to_nothing_is_logged() {
    let manager = spawn_own(WEB, |_| {});
    let before = manager.snapshot();
    install(&manager, "#!/bin/sh\necho too old for this >&2\nexit 2\n");
    manager.signal(libc::SIGUSR2);
    manager.wait_for_log("too old for this");
    assert_eq!(manager.snapshot(), before);
}

#[test]
fn neither_descriptors_nor_environment_grow() {
    let manager = Manager::start(WEB);
    manager.ok(&["upgrade"]);
    let state = |manager: &Manager| {
        let pid = manager.manager_pid();
        let fds = (open_descriptors(manager.pid()), open_descriptors(pid));
        let mut env = environment(pid);
        // The numbers of two descriptors.
        env.remove("TENTPOLE_UPGRADE");
        env.remove("TENTPOLE_KEEPER");
        (fds, env)
    };
    manager.status();
    let before = state(&manager);
    for _ in 0..50 {
        manager.ok(&["upgrade"]);
    }
    // A connection of a command that has its answer may still be open.
    let no_more = poll(|| {
        let (fds, env) = state(&manager);
        (fds.0 <= before.0.0 && fds.1 <= before.0.1 && env == before.1).then_some(())
    });
    assert!(
        no_more.is_some(),
        "{:?}, not {:?}",
        state(&manager).0,
        before.0
    );
    // A worker finds nothing of it either.
    let pid = manager.pids("web")[0];
    kill(pid, libc::SIGKILL);
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 1 && web["ready"] == 2
    });
    let env = environment(manager.pids("web")[0]);
    let names: Vec<&String> = env
        .keys()
        .filter(|name| name.starts_with("TENTPOLE_"))
        .filter(|name| *name != "TENTPOLE_CONTROL")
        .collect();
    assert_eq!(
        names,
        ["TENTPOLE_GENERATION", "TENTPOLE_WATCHER", "TENTPOLE_WID"]
    );
    support::assert_fds(manager.pids("web")[1], &[0, 1, 2, 3]);
}

#[test]
fn many_workers_and_sockets_come_along() {
    const COUNT: usize = 300;
    let mut units = String::new();
    for number in 0..COUNT {
        units.push_str(&format!(
            "[socket.s{number}]\nlisten = \"DIR/s{number}.sock\"\n\
             [watcher.w{number}]\ncmd = \"PROBE sleep\"\nsockets = [\"s{number}\"]\n"
        ));
    }
    let mut manager = Manager::start(&units);
    let before = manager.snapshot();
    manager.ok(&["upgrade"]);
    assert_eq!(manager.snapshot(), before);
    manager.ok(&["upgrade"]);
    manager.crash();
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    assert_eq!(manager.stop().code(), Some(0));
    manager.wait_until_childless();
    for number in 0..COUNT {
        assert!(!manager.path(&format!("s{number}.sock")).exists());
    }
}

#[test]
fn clients_of_the_workers_do_not_notice() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        blocking = false
        [watcher.web]
        cmd = "PROBE count $(circus.socket.web)"
        type = "notify"
        numprocesses = 2
        "#,
    );
    let before = manager.snapshot();
    let address = manager.address("web");
    let load = Load::start(&[&address], 3);
    for round in 0..10 {
        load.now(format!("upgrade {round}"));
        manager.ok(&["upgrade"]);
    }
    assert_eq!(manager.snapshot(), before);
    let report = load.finish();
    assert!(report.tally.requests > 10, "{report:?}");
}

#[test]
fn what_a_parent_is_told_goes_on() {
    let mut manager = Manager::spawn_with(WEB, |command| {
        command.env("WATCHDOG_USEC", "400000");
    });
    manager.wait_for_notice("READY=1");
    manager.ok(&["upgrade"]);
    // Those before the upgrade are out of the way.
    while manager.next_notice(Duration::from_millis(1)).is_some() {}
    manager.wait_for_notice("WATCHDOG=1");
    assert_eq!(manager.stop().code(), Some(0));
    manager.wait_for_notice("STOPPING=1");
}

#[test]
fn shards_that_take_datagrams_and_what_waits_in_them_live_on() {
    let units = r#"
        [socket.udp]
        listen = "127.0.0.1:0"
        type = "dgram"
        so_reuseport = true
        [watcher.udp]
        cmd = "PROBE echo $(circus.socket.udp)"
        numprocesses = 4
        "#;
    let next_manager = |kind: &str, manager: &Manager| match kind {
        "upgrade" => drop(manager.ok(&["upgrade"])),
        _ => drop(manager.crash()),
    };
    for kind in ["upgrade", "crash"] {
        let manager = Manager::start(units);
        let address = manager.address("udp");
        let send_all = || -> Vec<UdpSocket> {
            let client = || {
                let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
                client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
                client.send_to(b"hello", &address).expect("send");
                client
            };
            (0..60).map(|_| client()).collect()
        };
        let all_answered = |clients: Vec<UdpSocket>| {
            for client in clients {
                let answer = uninterrupted(|| client.recv(&mut [0; 64]));
                answer.unwrap_or_else(|error| panic!("{kind}: {error}"));
            }
        };
        next_manager(kind, &manager);
        all_answered(send_all());
        manager.ok(&["stop", "udp"]);
        let waiting = send_all();
        next_manager(kind, &manager);
        manager.ok(&["scale", "udp", "2"]);
        manager.ok(&["start", "udp"]);
        all_answered(waiting);
        assert_eq!(manager.address("udp"), address, "{kind}");
        manager.wait_for("udp", "has two workers", |udp| {
            udp["workers"].as_array().is_some_and(|it| it.len() == 2)
        });
        next_manager(kind, &manager);
        all_answered(send_all());
        manager.ok(&["scale", "udp", "4"]);
        all_answered(send_all());
    }
}
