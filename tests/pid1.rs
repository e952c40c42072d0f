//! The manager as PID 1 of a namespace, where much may be missing, and as a subreaper elsewhere.

mod support;

use std::process::{Command, Stdio};
use support::{DEADLINE, Manager, is_alive, kill, needs_program, needs_root, poll};

/// Whether there can be a PID 1 here at all.
fn can_unshare() -> bool {
    needs_root() && needs_program("unshare") && {
        let tried = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "true"])
            .stderr(Stdio::null())
            .status();
        let can = tried.is_ok_and(|status| status.success());
        if !can {
            eprintln!("skipped: namespaces can't be made here");
        }
        can
    }
}

/// Starts a manager as PID 1 of its own pid and mount namespace, after `prepare` (a shell script) has run there.
fn spawn(units: &str, prepare: &str) -> Manager {
    Manager::spawn_with(units, |command| {
        let mut script = format!("set -e; {prepare}; exec");
        for word in std::iter::once(command.get_program()).chain(command.get_args()) {
            script.push_str(&format!(" '{}'", word.to_str().expect("is UTF-8")));
        }
        let environment: Vec<_> = command
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
            .collect();
        let output = std::fs::OpenOptions::new()
            .append(true)
            .open(log_of(command))
            .expect("open the log");
        let mut other = Command::new("unshare");
        other
            .args([
                "--pid",
                "--mount",
                "--fork",
                "--kill-child=KILL",
                "sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("share the log"))
            .stderr(output);
        for (name, value) in environment {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        *command = other;
    })
}

/// The log stands beside the unit file, which is the last argument.
fn log_of(command: &Command) -> std::path::PathBuf {
    let units = command.get_args().last().expect("a unit file");
    std::path::Path::new(units).with_file_name("log")
}

/// The pid, seen from here, of the manager: the only child of unshare.
fn manager_pid(manager: &Manager) -> i32 {
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", manager.pid());
        let text = std::fs::read_to_string(path).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    poll(children).expect("unshare has a child")
}

/// SIGTERM to the manager itself, which unshare would not pass on.
fn stop(manager: &mut Manager) -> Option<i32> {
    kill(manager_pid(manager), libc::SIGTERM);
    manager.wait().code()
}

const PROC: &str = "mount -t proc proc /proc";

#[test]
fn as_pid_1_it_starts_answers_and_stops() {
    if !can_unshare() {
        return;
    }
    let mut manager = spawn(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        "#,
        PROC,
    );
    manager.wait_for_notice("READY=1");
    // The keeper is.
    assert_ne!(manager.status()["manager"]["pid"], 1);
    let pid = support::ask(&manager.address("web"), "pid");
    let shown = &manager.watcher("web")["workers"][0]["pid"];
    assert_eq!(shown.to_string(), pid);
    assert_eq!(stop(&mut manager), Some(0));
    assert_eq!(manager.offspring(), [0; 0]);
}

#[test]
fn as_pid_1_it_reaps_every_orphan() {
    if !can_unshare() {
        return;
    }
    let mut script = String::from("for i in 1 2 3 4 5 6 7 8 9 10; do ");
    script.push_str("(for j in 1 2 3 4 5 6 7 8 9 10; do (exit 3) & done) & ");
    script.push_str("done; wait; echo x > DIR/done; exec sleep 1000");
    let mut manager = spawn(
        &format!("[watcher.web]\ncmd = ['sh', '-c', '{script}']"),
        PROC,
    );
    manager.wait_for_lines("done", 1);
    let pid = manager_pid(&manager);
    let zombies = || {
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().count()
    };
    poll(|| (zombies() == 1).then_some(())).unwrap_or_else(|| panic!("{} children", zombies()));
    assert_eq!(stop(&mut manager), Some(0));
}

#[test]
fn as_pid_1_no_signal_is_lost_from_the_first_moment() {
    if !can_unshare() {
        return;
    }
    // A command that waits for an answer shows what is done before it is known what the command is.
    let dir = support::folder();
    let path = dir.path().join("control");
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let mut unshare = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child=KILL"])
        .args([env!("CARGO_BIN_EXE_tentpole"), "--control"])
        .args([path.as_os_str(), "status".as_ref()])
        .spawn()
        .expect("start it");
    let pid = unshare.id();
    let blocked = poll(|| {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(path).ok()?;
        let child = text.split_whitespace().next()?.parse().ok()?;
        let mask = support::process_status(child, "SigBlk");
        let mask = u64::from_str_radix(&mask, 16).expect("a mask");
        (mask & (1 << (libc::SIGTERM - 1)) != 0).then_some(())
    });
    let _ = unshare.kill();
    let _ = unshare.wait();
    assert!(blocked.is_some());
}

#[test]
fn as_pid_1_it_exits_with_the_code_of_its_critical_watcher() {
    if !can_unshare() {
        return;
    }
    for (cmd, code) in [("PROBE exit 7", 7), ("PROBE do raise 9", 137)] {
        let mut manager = spawn(
            &format!("[watcher.main]\ncmd = '{cmd}'\nrestart = 'never'\ncritical = true"),
            PROC,
        );
        assert_eq!(manager.wait().code(), Some(code), "{}", manager.log());
    }
}

#[test]
fn as_pid_1_a_stray_is_ended_with_its_worker() {
    if !can_unshare() {
        return;
    }
    let mut manager = spawn(
        r#"
        [watcher.web]
        cmd = "PROBE do daemon { ignore 15 , append DIR/stray %p , sleep } , await DIR/stray , notify READY=1 , sleep"
        type = "notify"
        graceful_timeout = 0.3
        "#,
        PROC,
    );
    manager.wait_for_notice("READY=1");
    assert_eq!(manager.offspring().len(), 2, "worker, stray");
    manager.ok(&["stop", "web"]);
    assert_eq!(manager.offspring(), [0; 0]);
    assert_eq!(stop(&mut manager), Some(0));
}

const PLAIN: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    [watcher.web]
    cmd = "PROBE serve $(circus.socket.web)"
    graceful_timeout = 1
    [watcher.notify]
    cmd = "PROBE do child { ignore 15 , sleep } , notify READY=1 , sleep"
    type = "notify"
    graceful_timeout = 0.3
"#;

/// Starts `PLAIN` in a place that `prepare` makes poor, and looks whether all of it works.
fn works_in(prepare: &str) {
    let mut manager = spawn(PLAIN, prepare);
    manager.wait_for_notice("READY=1");
    let address = manager.address("web");
    let first = support::ask(&address, "pid");
    support::ask(&address, "exit 1");
    manager.wait_for("web", "was restarted", |watcher| {
        watcher["restarts"] == 1 && watcher["ready"] == 1
    });
    assert_ne!(support::ask(&address, "pid"), first);
    manager.ok(&["restart", "notify"]);
    assert_eq!(stop(&mut manager), Some(0), "{}", manager.log());
    assert_eq!(manager.offspring(), [0; 0]);
}

#[test]
fn it_works_without_proc() {
    if can_unshare() {
        works_in("mount -t tmpfs none /proc");
    }
}

#[test]
fn the_default_unit_serves_without_proc() {
    if !can_unshare() {
        return;
    }
    // It names /proc/self/exe.
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/units/hello.toml");
    let unit = std::fs::read_to_string(file).expect("read the unit");
    let unit = unit.replace("127.0.0.1:8000", "127.0.0.1:0");
    let mut manager = spawn(&unit, "mount -t tmpfs none /proc");
    manager.wait_for_notice("READY=1");
    let watcher = manager.watcher("hello");
    assert_eq!(watcher["ready"], 2, "{}", manager.log());
    assert_eq!(stop(&mut manager), Some(0), "{}", manager.log());
}

#[test]
fn it_works_without_passwd_and_group() {
    if can_unshare() {
        works_in(&format!(
            "{PROC}; mount -t tmpfs none /etc; test ! -e /etc/passwd"
        ));
    }
}

#[test]
fn it_works_without_dev_null() {
    if can_unshare() {
        // The shell's own redirections are over by then.
        works_in(&format!(
            "{PROC}; mount -t tmpfs none /dev; test ! -e /dev/null"
        ));
    }
}

#[test]
fn it_works_on_a_root_that_cannot_be_written() {
    if can_unshare() {
        // The folder of the test is a mount of its own, and stays writable.
        works_in(&format!(
            "{PROC}; d=${{TENTPOLE_CONTROL%/control}}; mount --bind $d $d; mount --bind / /; mount -o remount,bind,ro /; \
             ! echo x 2>/dev/null > /written"
        ));
    }
}

#[test]
fn without_a_place_for_its_control_socket_it_runs_without() {
    if !can_unshare() {
        return;
    }
    let mut manager = spawn(
        "[watcher.web]\ncmd = 'PROBE sleep'",
        &format!("{PROC}; unset TENTPOLE_CONTROL; mount -t tmpfs -o ro none /run"),
    );
    manager.wait_for_notice("READY=1");
    manager.wait_for_log("no control socket");
    manager.wait_for_log("say with `--control PATH` or TENTPOLE_CONTROL where it can be");
    assert_eq!(stop(&mut manager), Some(0));
}

#[test]
fn elsewhere_it_is_a_subreaper_so_that_orphans_come_to_it() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do daemon { append DIR/stray %p , sleep } , await DIR/stray , notify READY=1 , sleep"
        type = "notify"
        "#,
    );
    let stray: i32 = manager.wait_for_lines("stray", 1)[0].parse().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{stray}/stat")).expect("is alive");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let parent: i32 = rest.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(parent, manager.manager_pid());
    // One that ends by itself leaves no zombie.
    kill(stray, libc::SIGKILL);
    let gone = poll(|| (!std::path::Path::new(&format!("/proc/{stray}")).exists()).then_some(()));
    gone.unwrap_or_else(|| panic!("a zombie is left after {DEADLINE:?}"));
    assert!(is_alive(manager.pids("web")[0]));
}
