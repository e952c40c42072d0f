//! sd_notify, both ways: what workers may tell the manager, and what the manager tells its own parent.

mod support;

use serde_json::Value;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};
use support::{
    DEADLINE, Manager, is_alive, kill, needs_program, needs_root, poll, uninterrupted,
    wait_until_dead,
};

fn worker(watcher: &Value) -> &Value {
    &watcher["workers"][0]
}

/// Sends a notification as somebody who is no worker.
fn send_as_stranger(name: &str, text: &[u8]) {
    let socket = UnixDatagram::unbound().expect("a socket");
    let name = name.strip_prefix('@').expect("an abstract name");
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    socket.send_to_addr(text, &address).expect("send");
}

/// The NOTIFY_SOCKET that a worker has written down with `append-env`.
fn notify_socket(manager: &Manager) -> String {
    let line = manager.wait_for_lines("env", 1).remove(0);
    line.strip_prefix("NOTIFY_SOCKET=")
        .unwrap_or_else(|| panic!("it has no NOTIFY_SOCKET: {line}"))
        .to_owned()
}

/// Workers towards the manager.
mod from_workers {
    use super::*;

    #[test]
    fn status_is_shown_and_cleared() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify 'READY=1;STATUS=serving 5 clients' , await DIR/clear , notify STATUS= , barrier , append DIR/done x , sleep"
            type = "notify"
            "#,
        );
        assert_eq!(
            worker(&manager.watcher("web"))["status"],
            "serving 5 clients"
        );
        assert!(manager.ok(&["status"]).contains("serving 5 clients"));
        manager.touch("clear");
        manager.wait_for_lines("done", 1);
        assert_eq!(worker(&manager.watcher("web"))["status"], Value::Null);
    }

    #[test]
    fn a_status_that_is_not_utf8_clears_the_text() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify STATUS=good , notify-bytes READY=1;STATUS=bad ff41 , sleep"
            type = "notify"
            "#,
        );
        assert_eq!(worker(&manager.watcher("web"))["status"], Value::Null);
    }

    #[test]
    fn what_a_worker_says_of_itself_cannot_draw_on_the_terminal() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify-bytes READY=1;STATUS=evil 1b5b324a0d , sleep"
            type = "notify"
            "#,
        );
        let shown = manager.ok(&["status"]);
        assert!(shown.contains("evil"), "{shown}");
        assert!(!shown.contains(['\x1b', '\r']), "{shown:?}");
        let status = manager.ok(&["status", "--json"]);
        let status: Value = serde_json::from_str(&status).expect("is JSON");
        assert_eq!(
            status["watchers"][0]["workers"][0]["status"],
            "evil\x1b[2J\r"
        );
    }

    #[test]
    fn a_datagram_of_4096_bytes_counts_and_a_longer_one_is_dropped_whole() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify-padded 4096 READY=1;STATUS=whole , barrier , notify-padded 4097 STATUS=long , notify-padded 20000 STATUS=longer , barrier , append DIR/done x , sleep"
            type = "notify"
            "#,
        );
        manager.wait_for_lines("done", 1);
        assert_eq!(worker(&manager.watcher("web"))["status"], "whole");
        manager.wait_for_log("longer than 4096 bytes");
    }

    #[test]
    fn a_datagram_with_a_nul_in_it_is_dropped_whole() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify STATUS=good , notify-bytes STATUS=bad 000a41 , notify READY=1 , sleep"
            type = "notify"
            "#,
        );
        assert_eq!(worker(&manager.watcher("web"))["status"], "good");
    }

    #[test]
    fn one_nul_at_the_end_is_taken_as_such() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify-bytes READY=1;STATUS=good 00 , sleep"
            type = "notify"
            "#,
        );
        assert_eq!(worker(&manager.watcher("web"))["status"], "good");
    }

    #[test]
    fn a_worker_that_says_stopping_is_shown_so_and_has_its_graceful_timeout() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do once DIR/first { notify READY=1 , await DIR/go , notify STOPPING=1 , sleep } , notify READY=1 , sleep"
            type = "notify"
            graceful_timeout = 1
            "#,
        );
        manager.touch("go");
        manager.wait_for("web", "had a stopping worker", |watcher| {
            worker(watcher)["state"] == "stopping"
        });
        // It does not end by itself, so it is ended, and replaced as `restart` says.
        manager.wait_for("web", "had a second worker", |watcher| {
            worker(watcher)["generation"] == 2 && worker(watcher)["state"] == "ready"
        });
    }

    #[test]
    fn a_worker_that_says_stopping_and_exits_with_0_is_no_failure() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify READY=1 , await DIR/go , notify STOPPING=1 , exit 0"
            type = "notify"
            restart = "on-failure"
            "#,
        );
        manager.touch("go");
        let watcher = manager.wait_for_state("web", "stopped");
        let shown = "worker 1 exited with code 0; it is not restarted";
        assert_eq!(
            (&watcher["error"], &watcher["restarts"]),
            (&shown.into(), &0.into())
        );
    }

    #[test]
    fn the_errno_of_a_worker_is_part_of_the_reason() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify READY=1 , await DIR/go , notify ERRNO=28 , exit 1"
            type = "notify"
            restart = "never"
            "#,
        );
        manager.touch("go");
        let watcher = manager.wait_for_state("web", "failed");
        let error = watcher["error"].as_str().expect("a reason");
        assert!(error.contains("ERRNO=28"), "{error}");
        assert!(error.contains("code 1"), "{error}");
    }

    #[test]
    fn watchdog_trigger_is_as_if_the_watchdog_had_run_out() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do once DIR/first { notify READY=1 , await DIR/go , notify WATCHDOG=trigger , sleep } , notify READY=1 , sleep"
            type = "notify"
            rlimits = { core = 0 }
            "#,
        );
        let before = manager.pids("web")[0];
        manager.touch("go");
        let watcher = manager.wait_for("web", "was restarted", |watcher| {
            watcher["restarts"] == 1 && watcher["ready"] == 1
        });
        let error = watcher["error"].as_str().expect("a reason");
        assert!(error.contains("WATCHDOG=trigger"), "{error}");
        wait_until_dead(before);
    }

    #[test]
    fn watchdog_usec_changes_the_interval() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do once DIR/first { notify READY=1;WATCHDOG_USEC=200000 , sleep } , notify READY=1 , sleep"
            type = "notify"
            watchdog = 3600
            rlimits = { core = 0 }
            "#,
        );
        manager.wait_for("web", "was restarted", |watcher| watcher["restarts"] == 1);
    }

    #[test]
    fn a_barrier_is_passed_when_everything_before_it_counts() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify READY=1 , await DIR/go , notify STATUS=after , barrier , append DIR/done x , sleep"
            type = "notify"
            "#,
        );
        manager.touch("go");
        manager.wait_for_lines("done", 1);
        assert_eq!(worker(&manager.watcher("web"))["status"], "after");
    }

    #[test]
    fn systemd_notify_is_understood() {
        if !needs_program("systemd-notify") {
            return;
        }
        // It sends from a child of the shell, and waits by a barrier.
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = ["sh", "-c", "systemd-notify --ready --status='by the tool' && echo ok > DIR/done; exec sleep 1000"]
            type = "notify"
            notify_access = "all"
            "#,
        );
        manager.wait_for_lines("done", 1);
        assert_eq!(worker(&manager.watcher("web"))["status"], "by the tool");
    }

    #[test]
    fn descriptors_that_come_along_are_not_kept() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify READY=1 , await DIR/go , notify-fd FDSTORE=1;FDNAME=x /etc/hostname , notify-fd FDSTORE=1 /etc/hostname , notify-fd STATUS=x /etc/hostname , notify-fd NOTHING /etc/hostname , barrier , append DIR/done x , sleep"
            type = "notify"
            "#,
        );
        let count = || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", manager.pid()));
            fds.expect("list descriptors").count()
        };
        let before = count();
        manager.touch("go");
        manager.wait_for_lines("done", 1);
        assert_eq!(count(), before);
    }

    #[test]
    fn the_last_word_of_a_worker_that_exits_at_once_counts() {
        // Were READY=1 lost, these would be failed starts, and the watcher given up.
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts x , notify READY=1 , exit 1"
            type = "notify"
            max_retry = 1
            restart_delay = 0.01
            restart_max_delay = 0.02
            "#,
        );
        manager.wait_for_lines("starts", 30);
        assert_ne!(manager.watcher("web")["state"], "failed");
    }

    #[test]
    fn workers_that_need_no_notification_socket_get_none() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append-env DIR/env NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID , sleep"
            "#,
        );
        // The manager itself has one, which is not theirs.
        assert_eq!(
            manager.wait_for_lines("env", 3),
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]
        );
    }
}

/// Who may tell what.
mod access {
    use super::*;

    const CHILD: &str = r#"
        [watcher.web]
        cmd = "PROBE do child { notify 'READY=1;STATUS=of a child' , barrier , append DIR/said x , sleep } , sleep"
        type = "notify"
    "#;

    #[test]
    fn a_child_is_not_heard_where_only_the_main_process_may_speak() {
        let manager = Manager::spawn(CHILD);
        manager.wait_for_lines("said", 1);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "starting");
        assert_eq!(worker(&watcher)["status"], Value::Null);
        manager.wait_for_log("notify_access");
    }

    #[test]
    fn a_child_is_heard_where_all_may_speak() {
        let manager = Manager::start(&format!("{CHILD}\nnotify_access = 'all'"));
        assert_eq!(worker(&manager.watcher("web"))["status"], "of a child");
    }

    #[test]
    fn a_daemonized_descendant_is_heard_too_where_all_may_speak() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do child { child { notify READY=1 , sleep } , sleep } , sleep"
            type = "notify"
            notify_access = "all"
            "#,
        );
        assert_eq!(manager.watcher("web")["state"], "running");
    }

    #[test]
    fn where_nobody_may_speak_there_is_no_socket_to_speak_to() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append-env DIR/env NOTIFY_SOCKET , sleep"
            notify_access = "none"
            "#,
        );
        assert_eq!(manager.wait_for_lines("env", 1), ["NOTIFY_SOCKET"]);
    }

    #[test]
    fn a_stranger_is_not_heard() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append-env DIR/env NOTIFY_SOCKET , await DIR/go , notify STATUS=mine , barrier , append DIR/said x , sleep"
            type = "notify"
            notify_access = "all"
            "#,
        );
        let name = notify_socket(&manager);
        send_as_stranger(&name, b"READY=1\nSTATUS=forged\nMAINPID=1");
        for _ in 0..300 {
            send_as_stranger(&name, &[b'x'; 5000]);
        }
        manager.touch("go");
        manager.wait_for_lines("said", 1);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "starting");
        assert_eq!(worker(&watcher)["status"], "mine");
    }

    #[test]
    fn another_user_is_not_heard() {
        if !needs_root() || !needs_program("setpriv") {
            return;
        }
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append-env DIR/env NOTIFY_SOCKET , await DIR/go , notify STATUS=mine , barrier , append DIR/said x , sleep"
            type = "notify"
            notify_access = "all"
            "#,
        );
        let name = notify_socket(&manager);
        let script = "import os, socket, sys\n\
            s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
            s.sendto(b'READY=1\\nSTATUS=forged', '\\0' + sys.argv[1])";
        let output = support::bounded(
            std::process::Command::new("setpriv")
                .args([
                    "--reuid",
                    "65534",
                    "--clear-groups",
                    "/usr/bin/python3",
                    "-c",
                ])
                .args([script, &name[1..]]),
        );
        assert!(output.status.success(), "{output:?}");
        manager.touch("go");
        manager.wait_for_lines("said", 1);
        assert_eq!(manager.watcher("web")["state"], "starting");
        assert_eq!(worker(&manager.watcher("web"))["status"], "mine");
    }

    #[test]
    fn one_worker_cannot_speak_for_another() {
        let manager = Manager::spawn(
            r#"
            [watcher.quiet]
            cmd = "PROBE do append DIR/quiet x , sleep"
            type = "notify"
            notify_access = "all"
            [watcher.loud]
            cmd = "PROBE notify READY=1;STATUS=loud"
            type = "notify"
            notify_access = "all"
            "#,
        );
        manager.wait_for_state("loud", "running");
        assert_eq!(manager.watcher("quiet")["state"], "starting");
        assert_eq!(worker(&manager.watcher("quiet"))["status"], Value::Null);
    }
}

/// MAINPID=.
mod main_process {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process that has nothing to do with the manager.
    struct Stranger(Child);

    impl Stranger {
        fn new() -> Stranger {
            let mut command = Command::new(support::probe());
            command.arg("sleep").stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Stranger(command.spawn().expect("start"))
        }
    }

    impl Drop for Stranger {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_manager_follows_a_worker_to_its_child_and_restarts_when_that_ends() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/first %p , main-child { append DIR/main %p , sleep } , sleep"
            type = "notify"
            "#,
        );
        let first: i32 = manager.wait_for_lines("first", 1)[0].parse().unwrap();
        let main: i32 = manager.wait_for_lines("main", 1)[0].parse().unwrap();
        manager.wait_for("web", "had the child as its main process", |watcher| {
            worker(watcher)["pid"] == main
        });
        assert!(is_alive(first));
        kill(main, libc::SIGKILL);
        manager.wait_for("web", "was restarted", |watcher| {
            watcher["restarts"] == 1 && watcher["ready"] == 1
        });
        // What it left behind is ended too.
        wait_until_dead(first);
        wait_until_dead(main);
    }

    #[test]
    fn a_main_process_in_a_session_of_its_own_is_stopped() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do main-child { session , append DIR/main %p , sleep } , barrier , exit 0"
            type = "notify"
            "#,
        );
        for count in 1..4 {
            let main: i32 = manager.wait_for_lines("main", count)[count - 1]
                .parse()
                .unwrap();
            manager.wait_for("web", "is followed", |web| worker(web)["pid"] == main);
            match count {
                1 => manager.ok(&["reload", "web"]),
                2 => manager.ok(&["restart", "web"]),
                _ => manager.ok(&["stop", "web"]),
            };
            assert!(!is_alive(main), "round {count}");
        }
    }

    #[test]
    fn a_parent_that_hands_over_to_its_child_may_end() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/first %p , main-child { append DIR/main %p , sleep } , barrier , exit 0"
            type = "notify"
            "#,
        );
        let first: i32 = manager.wait_for_lines("first", 1)[0].parse().unwrap();
        let main: i32 = manager.wait_for_lines("main", 1)[0].parse().unwrap();
        wait_until_dead(first);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "running");
        assert_eq!(worker(&watcher)["pid"], main);
        manager.ok(&["stop", "web"]);
        assert!(!is_alive(main));
        manager.ok(&["start", "web"]);
        // How one ends that was not our child from the start is known, too, once it is ours.
        let first: i32 = manager.wait_for_lines("first", 2)[1].parse().unwrap();
        let main: i32 = manager.wait_for_lines("main", 2)[1].parse().unwrap();
        wait_until_dead(first);
        kill(main, libc::SIGKILL);
        let watcher = manager.wait_for("web", "was restarted", |watcher| watcher["restarts"] == 1);
        let error = watcher["error"].as_str().expect("a reason");
        assert!(error.contains("signal 9"), "{error}");
    }

    #[test]
    fn how_it_ended_is_known_though_its_parent_lives_and_reaps_it() {
        let manager = Manager::start(
            r#"
            [watcher.badly]
            cmd = "PROBE do main-awaited { await DIR/end , exit 3 } , sleep"
            type = "notify"
            numprocesses = 8
            restart = "never"
            [watcher.well]
            cmd = "PROBE do main-awaited { await DIR/end , exit 0 } , sleep"
            type = "notify"
            numprocesses = 8
            restart = "on-failure"
            [watcher.unreaped]
            cmd = "PROBE do main-child { await DIR/end , exit 0 } , sleep"
            type = "notify"
            restart = "on-failure"
            "#,
        );
        manager.touch("end");
        manager.wait_for_state("badly", "failed");
        for name in ["well", "unreaped"] {
            let watcher = manager.wait_for_state(name, "stopped");
            assert_eq!(watcher["restarts"], 0);
        }
        let log = manager.log();
        assert_eq!(log.matches("exited with code 3").count(), 9, "{log}");
        assert!(!log.contains("nobody could tell"), "{log}");
    }

    #[test]
    fn how_it_ended_is_known_to_the_next_manager_too() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do main-child { await DIR/end , exit 0 } , barrier , exit 0"
            type = "notify"
            restart = "on-failure"
            "#,
        );
        manager.crash();
        manager.touch("end");
        let watcher = manager.wait_for_state("web", "stopped");
        assert_eq!(watcher["restarts"], 0, "{}", manager.log());
    }

    #[test]
    fn pid_1_the_manager_and_strangers_are_refused() {
        let stranger = Stranger::new();
        let units = format!(
            r#"
            [watcher.web]
            cmd = "PROBE do notify READY=1 , await DIR/manager , notify MAINPID=1 , notify MAINPID=0 , notify MAINPID=-1 , notify MAINPID={} , barrier , append DIR/web %p , sleep"
            type = "notify"
            user = "nobody"
            [watcher.root]
            cmd = ["sh", "-c", "PROBE do notify MAINPID=1 , notify MAINPID=$PPID , notify MAINPID=999999999 , barrier , append DIR/root %p , sleep"]
            watchdog = 3600
            notify_access = "all"
            [watcher.keeper]
            cmd = "PROBE do notify MAINPID=%k , barrier , append DIR/keeper %p , sleep"
            watchdog = 3600
            "#,
            stranger.0.id()
        );
        let manager = if needs_root() {
            Manager::spawn(&units)
        } else {
            Manager::spawn(&units.replace("user = \"nobody\"", ""))
        };
        std::fs::set_permissions(
            manager.dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .expect("chmod");
        manager.wait_for_notice("READY=1");
        let root = manager.pids("root");
        let pids = manager.pids("web");
        manager.touch("manager");
        manager.wait_for_lines("root", 1);
        assert_eq!(manager.wait_for_lines("web", 1), [pids[0].to_string()]);
        assert_eq!(manager.pids("web"), pids);
        assert_eq!(manager.pids("root"), root);
        let own = manager.wait_for_lines("keeper", 1);
        assert_eq!(manager.pids("keeper")[0].to_string(), own[0]);
        manager.wait_for_log("MAINPID=1 is refused");
        // A stop reaches the worker and nobody else.
        manager.ok(&["stop", "--all"]);
        assert!(is_alive(manager.pid()));
        assert!(is_alive(stranger.0.id() as i32));
    }
}

/// The manager towards its own parent.
mod to_the_parent {
    use super::*;

    /// Everything that comes until a message has this line.
    fn until(manager: &Manager, line: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let Some(notice) = manager.next_notice(DEADLINE) else {
                panic!("no {line}; seen {seen:?}\n{}", manager.log());
            };
            let found = notice.lines().any(|other| other == line);
            seen.push(notice);
            if found {
                return seen;
            }
        }
    }

    fn has(notices: &[String], tag: &str) -> bool {
        let mut lines = notices.iter().flat_map(|notice| notice.lines());
        lines.any(|line| line.starts_with(tag))
    }

    #[test]
    fn ready_comes_only_when_every_autostart_watcher_is_up() {
        let manager = Manager::spawn(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            [watcher.fast]
            cmd = "PROBE sleep"
            [watcher.slow]
            cmd = "PROBE do append DIR/begun x , await DIR/go , notify READY=1 , sleep"
            type = "notify"
            [watcher.demand]
            cmd = "PROBE serve $(circus.socket.web)"
            on_demand = true
            [watcher.manual]
            cmd = "PROBE sleep"
            autostart = false
            "#,
        );
        manager.wait_for_lines("begun", 1);
        manager.wait_for_state("fast", "running");
        manager.wait_for_state("demand", "waiting");
        assert_eq!(manager.status()["manager"]["state"], "starting");
        let mut early = Vec::new();
        while let Some(notice) = manager.next_notice(Duration::from_millis(1)) {
            early.push(notice);
        }
        assert!(!has(&early, "READY="), "{early:?}");
        assert!(has(&early, "EXTEND_TIMEOUT_USEC="), "{early:?}");
        assert!(has(&early, "STATUS="), "{early:?}");
        manager.touch("go");
        until(&manager, "READY=1");
        assert_eq!(manager.status()["manager"]["state"], "running");
        assert_eq!(manager.watcher("slow")["state"], "running");
    }

    #[test]
    fn a_watcher_that_has_failed_for_good_does_not_hold_up_ready() {
        let manager = Manager::spawn(
            r#"
            [watcher.bad]
            cmd = "/nonexistent"
            max_retry = 1
            [watcher.good]
            cmd = "PROBE sleep"
            "#,
        );
        until(&manager, "READY=1");
        assert_eq!(manager.watcher("bad")["state"], "failed");
    }

    #[test]
    fn the_status_line_says_how_many_watchers_are_in_which_state() {
        let manager = Manager::spawn(
            r#"
            [watcher.a]
            cmd = "PROBE sleep"
            [watcher.b]
            cmd = "PROBE sleep"
            "#,
        );
        until(&manager, "STATUS=2 of 2 watchers running");
        manager.ok(&["stop", "a"]);
        until(&manager, "STATUS=1 of 2 watchers running");
    }

    #[test]
    fn stopping_is_said_first_and_once() {
        let mut manager = Manager::start("[watcher.a]\ncmd = 'PROBE sleep'");
        manager.signal(libc::SIGTERM);
        until(&manager, "STOPPING=1");
        assert!(manager.wait().success());
        while let Some(notice) = manager.next_notice(Duration::from_millis(1)) {
            assert!(
                !notice.contains("STOPPING=1") && !notice.contains("READY=1"),
                "{notice}"
            );
        }
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time() {
        let manager = Manager::spawn_with("[watcher.a]\ncmd = 'PROBE sleep'", |command| {
            command.env("WATCHDOG_USEC", "400000");
        });
        let begin = Instant::now();
        for _ in 0..6 {
            until(&manager, "WATCHDOG=1");
        }
        let time = begin.elapsed();
        assert!(time >= Duration::from_millis(900), "{time:?}");
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_fed() {
        let manager = Manager::spawn_with("[watcher.a]\ncmd = 'PROBE sleep'", |command| {
            command
                .env("WATCHDOG_USEC", "20000")
                .env("WATCHDOG_PID", "1");
        });
        until(&manager, "READY=1");
        // Fifty times its interval at least: each answer takes a turn of the loop.
        let begin = Instant::now();
        poll(|| {
            manager.status();
            (begin.elapsed() > Duration::from_millis(500)).then_some(())
        });
        while let Some(notice) = manager.next_notice(Duration::from_millis(1)) {
            assert!(!notice.contains("WATCHDOG=1"), "{notice}");
        }
    }

    #[test]
    fn a_parent_that_never_reads_does_not_hold_up_the_manager() {
        let mut manager = Manager::spawn_with("[watcher.a]\ncmd = 'PROBE sleep'", |command| {
            command.env("WATCHDOG_USEC", "4000");
        });
        manager.wait_for_state("a", "running");
        // The queue of a datagram socket holds a few messages (net.unix.max_dgram_qlen), and nobody takes them.
        for _ in 0..30 {
            manager.ok(&["stop", "a"]);
            manager.ok(&["start", "a"]);
        }
        assert_eq!(manager.watcher("a")["state"], "running");
        assert!(manager.stop().success());
    }

    #[test]
    fn what_had_no_room_in_the_parents_queue_comes_later() {
        let manager = Manager::spawn_with(
            r#"
            [watcher.a]
            cmd = "PROBE do await DIR/go , notify READY=1 , sleep"
            type = "notify"
            "#,
            |command| {
                command.env("WATCHDOG_USEC", "4000");
            },
        );
        // The watchdog fills the queue; then the manager is ready.
        poll(|| {
            let queued = support::poll_for(Duration::from_millis(100), || None::<()>);
            queued.is_none().then_some(())
        });
        manager.touch("go");
        manager.wait_for_state("a", "running");
        until(&manager, "READY=1");
    }

    #[test]
    fn a_parent_that_is_gone_or_was_never_there_does_not_matter() {
        for name in [
            "/nonexistent/notify",
            "@tentpole-nobody-listens",
            "",
            "nonsense",
        ] {
            let mut manager = Manager::spawn_with("[watcher.a]\ncmd = 'PROBE sleep'", |command| {
                command.env("NOTIFY_SOCKET", name);
            });
            manager.wait_for_state("a", "running");
            assert!(manager.stop().success(), "{name}");
        }
        let mut manager = Manager::start("[watcher.a]\ncmd = 'PROBE sleep'");
        std::fs::remove_file(manager.path("notify")).expect("remove");
        manager.ok(&["stop", "a"]);
        assert!(manager.stop().success());
    }

    #[test]
    fn an_abstract_notify_socket_is_reached_too() {
        let name = format!("tentpole-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let socket = UnixDatagram::bind_addr(&address).expect("bind");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let _manager = Manager::spawn_with("[watcher.a]\ncmd = 'PROBE sleep'", |command| {
            command.env("NOTIFY_SOCKET", format!("@{name}"));
        });
        let mut buffer = [0; 4096];
        loop {
            let count = uninterrupted(|| socket.recv(&mut buffer)).expect("READY=1 in time");
            if buffer[..count].starts_with(b"READY=1") {
                return;
            }
        }
    }
}
