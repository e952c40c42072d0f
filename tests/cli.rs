//! The command line: exit codes, what goes to which stream, and how it finds the manager.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::{Manager, bounded, command, folder, needs_program, poll, write_units};

const WEB: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    [watcher.web]
    cmd = "PROBE serve $(circus.socket.web)"
    [watcher.worker]
    cmd = "PROBE sleep"
    [watcher.manual]
    cmd = "PROBE sleep"
    autostart = false
"#;

/// Of a run: exit code, stdout, stderr.
fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("is UTF-8");
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// It must fail with this code and one line on stderr, which is the answer.
#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let (status, stdout, stderr) = parts(output);
    assert_eq!(status, Some(code), "{stdout}{stderr}");
    assert_eq!(stdout, "");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.ends_with('\n'), "{stderr}");
    stderr
}

/// What each command exits with.
mod exit_codes {
    use super::*;

    #[test]
    fn done_is_0_and_says_nothing_that_was_not_asked_for() {
        let mut manager = Manager::start(WEB);
        for (args, stdout) in [
            (&["start", "manual"][..], ""),
            (&["start", "manual"], ""),
            (&["scale", "worker", "3"], ""),
            (&["scale", "worker", "+1"], ""),
            (&["scale", "worker", "-2"], ""),
            (&["restart", "web", "worker"], ""),
            (&["stop", "manual"], ""),
            (&["stop", "manual"], ""),
            (
                &["stop", "web"],
                "socket `web` stays open; clients wait in its queue\n",
            ),
            (&["start", "--all"], ""),
            (&["signal", "worker", "CONT"], "sent to 2 workers\n"),
            (
                &["signal", "worker", "SIGCONT", "--wid", "2", "--children"],
                "sent to 1 worker\n",
            ),
            (&["restart", "--all", "--no-wait"], ""),
            (&["shutdown"], ""),
        ] {
            let (code, out, err) = parts(&manager.cli(args));
            assert_eq!(
                (code, out.as_str(), err.as_str()),
                (Some(0), stdout, ""),
                "{args:?}"
            );
        }
        assert!(manager.wait().success());
    }

    #[test]
    fn failed_is_1_with_the_reason() {
        let manager = Manager::start(
            r#"
            [watcher.bad]
            cmd = "/nonexistent/program"
            autostart = false
            max_retry = 1
            [watcher.one]
            cmd = "PROBE sleep"
            singleton = true
            "#,
        );
        let line = fails(&manager.cli(&["start", "bad"]), 1);
        assert!(line.contains("`bad`"), "{line}");
        assert!(line.contains("No such file or directory"), "{line}");
        let line = fails(&manager.cli(&["scale", "one", "2"]), 1);
        assert!(line.contains("singleton"), "{line}");
        let line = fails(&manager.cli(&["signal", "bad", "HUP"]), 1);
        assert!(line.contains("no running worker"), "{line}");
        let line = fails(&manager.cli(&["signal", "one", "HUP", "--wid", "7"]), 1);
        assert!(line.contains("worker 7"), "{line}");
        let line = fails(&manager.cli(&["signal", "one", "BOGUS"]), 1);
        assert!(line.contains("BOGUS"), "{line}");
    }

    #[test]
    fn wrong_usage_is_2() {
        let dir = folder();
        for args in [
            &[][..],
            &["nonsense"],
            &["start"],
            &["start", "web", "--all"],
            &["start", "--bogus", "web"],
            &["scale", "web"],
            &["scale", "web", "many"],
            &["scale", "web", "++1"],
            &["signal", "web"],
            &["signal", "web", "HUP", "--wid", "0"],
            &["status", "--yaml"],
            &["--control"],
            &["shutdown", "now"],
            &["reload"],
            &["reload", "web", "--all"],
            &["apply", "web"],
            &["apply", "--detailed-exitcode"],
            &["plan", "--detailed-exitcode", "web.toml"],
            &["upgrade", "now"],
        ] {
            let (code, stdout, stderr) = parts(&bounded(command(dir.path()).args(args)));
            assert_eq!(code, Some(2), "{args:?}");
            assert_eq!(stdout, "", "{args:?}");
            assert!(!stderr.is_empty(), "{args:?}");
        }
    }

    #[test]
    fn no_manager_is_3() {
        let dir = folder();
        let control = dir.path().join("control");
        let refused = |args: &[&str]| {
            let line = fails(&bounded(command(dir.path()).args(args)), 3);
            assert!(line.contains(control.to_str().expect("is UTF-8")), "{line}");
        };
        let all: [&[&str]; 13] = [
            &["status"],
            &["status", "--json"],
            &["start", "web"],
            &["stop", "--all"],
            &["restart", "web", "--no-wait"],
            &["scale", "web", "1"],
            &["signal", "web", "HUP"],
            &["shutdown"],
            &["reload", "web"],
            &["apply"],
            &["apply", "--dry-run", "--detailed-exitcode"],
            &["plan", "--detailed-exitcode"],
            &["upgrade"],
        ];
        all.into_iter().for_each(refused);
        // A socket file that nobody listens at, and one that is not a socket.
        drop(std::os::unix::net::UnixListener::bind(&control).expect("bind"));
        refused(&["status"]);
        std::fs::remove_file(&control).expect("remove");
        std::fs::write(&control, "").expect("write");
        refused(&["status"]);
    }

    #[test]
    fn a_plan_without_a_manager_is_that_of_the_search_path_and_says_so() {
        let dir = folder();
        let (code, _, stderr) = parts(&bounded(command(dir.path()).arg("plan")));
        // What is on the search path is the machine's own.
        assert!(matches!(code, Some(0 | 1)), "{stderr}");
        let first = stderr.lines().next().expect("a line");
        assert!(first.contains("no manager is listening"), "{first}");
        assert!(first.contains("`tentpole run` would start"), "{first}");
    }

    #[test]
    fn what_would_change_is_2_if_that_is_asked_for() {
        let manager = Manager::start(WEB);
        let changed = WEB.replace("autostart = false", "autostart = false\nnice = 1");
        let dry = &["apply", "--dry-run", "--detailed-exitcode"][..];
        let plan = &["plan", "--detailed-exitcode"][..];
        for args in [dry, plan] {
            let (code, stdout, stderr) = parts(&manager.cli(args));
            assert_eq!(
                (code, stdout.as_str(), stderr.as_str()),
                (Some(0), "nothing would change\n", "")
            );
        }
        write_units(manager.dir.path(), &changed);
        let line = "watcher.manual  reload  nice\n";
        for (args, exit) in [(dry, 2), (plan, 2), (&["plan"], 0), (&["apply"], 0)] {
            let (code, stdout, stderr) = parts(&manager.cli(args));
            assert_eq!(
                (code, stdout.as_str(), stderr.as_str()),
                (Some(exit), line, ""),
                "{args:?}"
            );
        }
        assert_eq!(manager.cli(dry).status.code(), Some(0));
    }

    #[test]
    fn units_with_mistakes_are_1_and_each_mistake_is_shown() {
        let manager = Manager::start(WEB);
        let wrong = WEB
            .replace("autostart", "autostrt")
            .replace("listen", "listn");
        write_units(manager.dir.path(), &wrong);
        for args in [
            &["apply"][..],
            &["apply", "--dry-run", "--detailed-exitcode", "--json"],
            &["plan"],
        ] {
            let (code, stdout, stderr) = parts(&manager.cli(args));
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
            for meant in ["did you mean `autostart`?", "did you mean `listen`?"] {
                assert!(stderr.contains(meant), "{stderr}");
            }
            let last = stderr.lines().last().expect("a line");
            assert!(last.contains("nothing was changed"), "{stderr}");
        }
        assert_eq!(manager.watcher("web")["state"], "running");
    }

    #[test]
    fn an_unknown_unit_is_4_and_the_nearest_one_is_named() {
        let manager = Manager::start(WEB);
        for args in [
            &["status", "wev"][..],
            &["status", "--json", "wev"],
            &["start", "wev"],
            &["start", "worker", "wev"],
            &["stop", "wev", "--no-wait"],
            &["restart", "web", "wev"],
            &["scale", "wev", "1"],
            &["signal", "wev", "HUP"],
        ] {
            let line = fails(&manager.cli(args), 4);
            assert!(line.contains("`wev`"), "{line}");
            assert!(line.contains("`web`"), "{line}");
        }
        assert_eq!(manager.watcher("web")["workers"][0]["generation"], 1);
    }

    #[test]
    fn a_stop_or_start_that_another_took_over_is_1() {
        let manager = Manager::start(
            "[watcher.slow]\ncmd = 'PROBE sleep'\ntype = 'notify'\nautostart = false",
        );
        let starting = command(manager.dir.path())
            .args(["start", "slow"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        manager.wait_for_state("slow", "starting");
        manager.ok(&["stop", "slow"]);
        let output = starting.wait_with_output().expect("wait");
        let line = fails(&output, 1);
        assert!(line.contains("`stop`"), "{line}");
    }

    #[test]
    fn a_manager_that_dies_meanwhile_is_1() {
        let manager = Manager::start(
            "[watcher.slow]\ncmd = 'PROBE sleep'\ntype = 'notify'\nautostart = false",
        );
        let starting = command(manager.dir.path())
            .args(["start", "slow"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        manager.wait_for_state("slow", "starting");
        support::kill(manager.manager_pid(), libc::SIGKILL);
        let output = starting.wait_with_output().expect("wait");
        fails(&output, 1);
        // The next one goes on with the start, for whoever asks it.
        manager.wait_for_state("slow", "starting");
    }
}

/// How the manager is found.
mod control {
    use super::*;

    #[test]
    fn the_control_socket_goes_before_or_after_the_command_and_before_the_environment() {
        let manager = Manager::start(WEB);
        let control = manager.path("control");
        let control = control.to_str().expect("is UTF-8");
        let equals = format!("--control={control}");
        for args in [
            &["--control", control, "status"][..],
            &["status", "--control", control],
            &["status", "web", &equals],
            &[&equals, "scale", "web", "+0"],
            &["scale", "web", "-0", "--control", control],
        ] {
            let output = bounded(
                command(Path::new("/nonexistent"))
                    .env("TENTPOLE_CONTROL", "/nonexistent/control")
                    .args(args),
            );
            assert!(output.status.success(), "{args:?} {output:?}");
        }
        let other = manager.cli(&["status", "--control", "/nonexistent/control"]);
        assert_eq!(other.status.code(), Some(3));
    }

    #[test]
    fn the_manager_takes_its_control_socket_from_option_environment_and_file_in_this_order() {
        let dir = folder();
        let control = dir.path().join("from-file");
        let units = write_units(
            dir.path(),
            "[manager]\ncontrol = 'from-file'\n[watcher.a]\ncmd = 'PROBE sleep'",
        );
        for (option, environment, place) in [
            (None, None, "from-file"),
            (None, Some("from-env"), "from-env"),
            (Some("from-option"), Some("from-env"), "from-option"),
        ] {
            let mut command = command(dir.path());
            command.arg("run").arg(&units).current_dir(dir.path());
            command.stderr(Stdio::null()).env_remove("TENTPOLE_CONTROL");
            if let Some(name) = option {
                command.arg("--control").arg(dir.path().join(name));
            }
            if let Some(name) = environment {
                command.env("TENTPOLE_CONTROL", dir.path().join(name));
            }
            let mut child = command.spawn().expect("start");
            let found = poll(|| {
                let output = bounded(
                    support::command(dir.path())
                        .args(["status", "--json", "--control"])
                        .arg(dir.path().join(place)),
                );
                output.status.success().then_some(())
            });
            support::kill(child.id() as i32, libc::SIGTERM);
            child.wait().expect("wait");
            assert!(found.is_some(), "{place}");
            assert!(!dir.path().join(place).exists(), "{place}");
        }
        assert!(!control.exists());
    }

    #[test]
    fn something_else_that_listens_there_is_1_and_named() {
        let dir = folder();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("control"));
        let listener = listener.expect("bind");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut buffer = [0; 1000];
            let _ = std::io::Read::read(&mut stream, &mut buffer);
            let _ = std::io::Write::write_all(&mut stream, b"220 mail ready\r\n\0");
        });
        let line = fails(&bounded(command(dir.path()).arg("status")), 1);
        assert!(line.contains("no manager"), "{line}");
        thread.join().expect("join");
    }
}

/// What is printed.
mod output {
    use super::*;

    #[test]
    fn status_shows_sockets_watchers_workers_and_reasons() {
        let manager = Manager::start(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            [watcher.web]
            cmd = "PROBE serve $(circus.socket.web)"
            [watcher.bad]
            cmd = "/nonexistent/program"
            max_retry = 1
            "#,
        );
        let text = manager.ok(&["status"]);
        for part in [
            &manager.manager_pid().to_string(),
            &manager.address("web"),
            &manager.pids("web")[0].to_string(),
            "listening",
            "running",
            "failed",
            "exec /nonexistent/program: No such file or directory",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        // No colors where nobody looks.
        assert!(!text.contains('\x1b'), "{text:?}");
        let text = manager.ok(&["status", "web"]);
        assert!(!text.contains("bad"), "{text}");
    }

    #[test]
    fn json_is_one_line() {
        let manager = Manager::start(WEB);
        let text = manager.ok(&["status", "--json"]);
        assert_eq!(text.lines().count(), 1);
        let status: Value = serde_json::from_str(&text).expect("is JSON");
        assert_eq!(status["watchers"].as_array().map(Vec::len), Some(3));
        let text = manager.ok(&["status", "--json", "worker"]);
        let status: Value = serde_json::from_str(&text).expect("is JSON");
        assert_eq!(status["watchers"].as_array().map(Vec::len), Some(1));
        assert_eq!(status["sockets"].as_array().map(Vec::len), Some(0));
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_error() {
        let mut units = String::new();
        for number in 0..500 {
            units.push_str(&format!(
                "[watcher.watcher-with-a-long-name-{number}]\ncmd = 'PROBE sleep'\nautostart = false\n"
            ));
        }
        let manager = Manager::start(&units);
        for args in ["status", "status --json", "--help", "help scale"] {
            let script = format!(
                "{{ '{}' {args}; echo $? >&2; }} | head -c 10 >/dev/null",
                env!("CARGO_BIN_EXE_tentpole")
            );
            let output = bounded(
                Command::new("sh")
                    .args(["-c", &script])
                    .env("TENTPOLE_CONTROL", manager.path("control")),
            );
            assert_eq!(String::from_utf8_lossy(&output.stderr), "0\n", "{args}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let manager = Manager::start(WEB);
        let output = bounded(
            Command::new("sh")
                .args([
                    "-c",
                    "\"$0\" status > /dev/full",
                    env!("CARGO_BIN_EXE_tentpole"),
                ])
                .env("TENTPOLE_CONTROL", manager.path("control")),
        );
        let line = fails(&output, 1);
        assert!(line.contains("No space left"), "{line}");
    }

    #[test]
    fn help_names_every_command_that_is_built() {
        let dir = folder();
        let (code, help, stderr) = parts(&bounded(command(dir.path()).arg("--help")));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        for name in [
            "run", "check", "plan", "status", "start", "stop", "restart", "reload", "apply",
            "scale", "signal", "upgrade", "shutdown",
        ] {
            assert!(
                help.lines().any(|line| line.trim_start().starts_with(name)),
                "{name} in:\n{help}"
            );
            let (code, own, stderr) = parts(&bounded(command(dir.path()).args([name, "--help"])));
            assert_eq!((code, stderr.as_str()), (Some(0), ""), "{name}");
            assert!(own.contains("Usage:"), "{own}");
            assert!(own.contains("--control"), "{own}");
        }
        let (code, version, _) = parts(&bounded(command(dir.path()).arg("--version")));
        assert_eq!(code, Some(0));
        assert_eq!(version, format!("tentpole {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn what_is_not_built_yet_says_so() {
        let manager = Manager::start(WEB);
        for name in [
            "pause",
            "resume",
            "logs",
            "events",
            "top",
            "metrics",
            "convert",
            "activate",
            "completions",
            "man",
        ] {
            let line = fails(&manager.cli(&[name, "web"]), 1);
            assert!(line.contains("not built yet"), "{line}");
        }
    }

    #[test]
    fn errors_go_to_stderr_though_it_is_closed() {
        let dir = folder();
        let output = bounded(
            Command::new("sh")
                .args(["-c", "\"$0\" status 2>&-", env!("CARGO_BIN_EXE_tentpole")])
                .env("TENTPOLE_CONTROL", dir.path().join("control")),
        );
        assert_eq!(parts(&output), (Some(3), String::new(), String::new()));
    }
}

/// Commands that wait, and those that do not.
mod waiting {
    use super::*;

    const SLOW: &str = r#"
        [watcher.slow]
        cmd = "PROBE do await DIR/go , notify READY=1 , sleep"
        type = "notify"
        autostart = false
        numprocesses = 2
    "#;

    #[test]
    fn start_returns_when_every_worker_is_ready() {
        let manager = Manager::start(SLOW);
        let mut starting = command(manager.dir.path())
            .args(["start", "slow"])
            .spawn()
            .expect("start");
        manager.wait_for("slow", "had its workers", |watcher| {
            watcher["workers"].as_array().map(Vec::len) == Some(2)
        });
        assert!(starting.try_wait().expect("wait").is_none());
        manager.touch("go");
        assert!(starting.wait().expect("wait").success());
        assert_eq!(manager.watcher("slow")["ready"], 2);
    }

    #[test]
    fn no_wait_returns_at_once() {
        let manager = Manager::start(SLOW);
        manager.ok(&["start", "slow", "--no-wait"]);
        assert_eq!(manager.watcher("slow")["ready"], 0);
        manager.ok(&["scale", "--no-wait", "slow", "3"]);
        manager.ok(&["restart", "slow", "--no-wait"]);
        manager.touch("go");
        manager.wait_for("slow", "was up", |watcher| watcher["ready"] == 3);
    }

    #[test]
    fn all_means_every_watcher_but_for_start_those_that_start_by_themselves() {
        let manager = Manager::start(WEB);
        manager.ok(&["stop", "--all"]);
        let states = |status: Value| -> Vec<String> {
            let watchers = status["watchers"].as_array().expect("watchers").clone();
            let text = |watcher: Value| watcher["state"].as_str().unwrap_or("").to_owned();
            watchers.into_iter().map(text).collect()
        };
        assert_eq!(states(manager.status()), ["stopped"; 3]);
        manager.ok(&["start", "--all"]);
        // In order of name: manual, web, worker.
        assert_eq!(states(manager.status()), ["stopped", "running", "running"]);
    }

    #[test]
    fn a_client_that_is_interrupted_ends_and_the_manager_goes_on() {
        let manager = Manager::start(SLOW);
        let mut starting = command(manager.dir.path())
            .args(["start", "slow"])
            .spawn()
            .expect("start");
        manager.wait_for_state("slow", "starting");
        support::kill(starting.id() as i32, libc::SIGINT);
        let status = starting.wait().expect("wait");
        assert!(!status.success());
        manager.touch("go");
        manager.wait_for_state("slow", "running");
    }

    /// Runs a command of the CLI on a terminal of its own; the answer is all that it showed.
    fn on_a_terminal(manager: &Manager, args: &str, meanwhile: impl FnOnce()) -> Option<String> {
        if !needs_program("script") {
            return None;
        }
        let typed = format!("{} {args}", env!("CARGO_BIN_EXE_tentpole"));
        let child = Command::new("script")
            .args(["-qec", &typed, "/dev/null"])
            .env("TENTPOLE_CONTROL", manager.path("control"))
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start script");
        meanwhile();
        let output = child.wait_with_output().expect("wait");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{shown:?}");
        Some(shown)
    }

    #[test]
    fn on_a_terminal_progress_is_shown_and_gone_in_the_end() {
        let manager = Manager::start(SLOW);
        let shown = on_a_terminal(&manager, "start slow", || {
            manager.wait_for_state("slow", "starting");
            manager.touch("go");
        });
        let Some(shown) = shown else { return };
        assert!(shown.contains("slow"), "{shown:?}");
        assert!(
            shown.trim_end_matches('\n').ends_with("\r\x1b[K"),
            "{shown:?}"
        );
        assert!(!shown.trim().is_empty());
    }

    #[test]
    fn on_a_terminal_status_has_colors_and_elsewhere_not() {
        let manager = Manager::start(WEB);
        let Some(shown) = on_a_terminal(&manager, "status", || {}) else {
            return;
        };
        assert!(shown.contains("\x1b["), "{shown:?}");
        assert!(!manager.ok(&["status"]).contains("\x1b["));
    }

    #[test]
    fn away_from_a_terminal_a_command_that_waits_shows_no_progress() {
        let manager = Manager::start(SLOW);
        let starting = command(manager.dir.path())
            .args(["start", "slow"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        manager.wait_for_state("slow", "starting");
        manager.touch("go");
        let output = starting.wait_with_output().expect("wait");
        assert_eq!(parts(&output), (Some(0), String::new(), String::new()));
    }
}

/// `run` itself.
mod run {
    use super::*;

    #[test]
    fn mistakes_in_units_are_shown_with_place_and_caret_and_nothing_starts() {
        let dir = folder();
        let units = write_units(
            dir.path(),
            "[watcher.web]\ncmd = 'PROBE sleep'\nnumproceses = 2\nrestart = 'sometimes'\n",
        );
        let (code, stdout, stderr) = parts(&bounded(command(dir.path()).arg("run").arg(&units)));
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        assert!(stderr.contains("units.toml:3:1"), "{stderr}");
        assert!(stderr.contains("units.toml:4:11"), "{stderr}");
        assert!(stderr.contains("`numprocesses`"), "{stderr}");
        assert!(stderr.lines().any(|line| line.contains("^^^")), "{stderr}");
        assert!(!stderr.contains("\\n"), "{stderr}");
        assert!(!dir.path().join("control").exists());
    }

    #[test]
    fn a_file_that_is_not_there_is_1() {
        let dir = folder();
        for path in ["missing.toml", "missing/"] {
            let output = bounded(command(dir.path()).arg("run").arg(dir.path().join(path)));
            let (code, _, stderr) = parts(&output);
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains("missing"), "{stderr}");
        }
    }

    #[test]
    fn the_manager_without_units_runs_and_says_that_it_does_nothing() {
        let mut manager = Manager::start("# none yet\n");
        assert!(manager.ok(&["status"]).contains("no units"));
        manager.wait_for_log("no units");
        assert!(manager.stop().success());
    }

    /// Units with a warning: nobody has the socket.
    const WARNED: &str =
        "[socket.spare]\nlisten = '127.0.0.1:0'\n[watcher.web]\ncmd = 'PROBE sleep'\n";

    /// Has a manager say all that it, and its keeper, say in their lives.
    fn live(manager: &mut Manager, units: &str) {
        let reload = |units: &str, text: &str| {
            support::write_units(manager.dir.path(), units);
            let pid = manager.status()["manager"]["pid"].as_i64().expect("a pid");
            support::kill(pid as i32, libc::SIGHUP);
            if !text.is_empty() {
                manager.wait_for_log(text);
            }
        };
        reload("[watcher.web]\ncmnd = 'x'\n", "did you mean `cmd`?");
        reload(units, "");
        let pid = manager.status()["manager"]["pid"].as_i64().expect("a pid");
        support::kill(pid as i32, libc::SIGKILL);
        let is_new = || (manager.status()["manager"]["pid"] != pid).then_some(());
        support::poll(is_new).expect("a new manager");
        manager.stop();
    }

    #[test]
    fn the_log_can_be_json() {
        let units = format!("[manager]\nlog_format = 'json'\n{WARNED}");
        let mut manager = Manager::start(&units);
        live(&mut manager, &units);
        let log = manager.log();
        for text in ["warning: ", "did you mean", "signal HUP", "\"keeper\""] {
            assert!(log.contains(text), "no {text} in {log}");
        }
        for line in log.lines() {
            let entry: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            assert!(entry.is_object(), "{line}");
        }
    }

    #[test]
    fn log_level_silences() {
        let units = format!("[manager]\nlog_level = 'error'\n{WARNED}");
        let mut manager = Manager::start(&units);
        manager.stop();
        assert_eq!(manager.log(), "");
    }

    #[test]
    fn a_finding_in_the_log_is_several_lines_with_its_caret_under_the_mistake() {
        let mut manager = Manager::start(WARNED);
        live(&mut manager, WARNED);
        let log = manager.log();
        let after = |text: &str| {
            let lines = log.lines().skip_while(|line| !line.contains(text));
            lines.take(3).map(str::to_owned).collect::<Vec<_>>()
        };
        for (text, level) in [("warning: ", "warn"), ("did you mean", "error")] {
            let lines = after(text);
            assert_eq!(lines.len(), 3, "{log}");
            for line in &lines {
                assert!(line.contains(&format!(" {level} ")), "{line}");
            }
            let mark = if level == "warn" { "[socket" } else { "cmnd" };
            let [column, caret] = [(1, mark), (2, "^")].map(|(line, text)| lines[line].find(text));
            assert!(column.is_some());
            assert_eq!(column, caret, "{lines:#?}");
        }
    }
}
