//! Stopping: gracefully, then by force, in order, and until nothing is left.

mod support;

use std::time::{Duration, Instant};
use support::{DEADLINE, Manager, is_alive, kill, poll, poll_for, send, wait_until_dead};

fn pid_in(manager: &Manager, file: &str) -> i32 {
    manager.wait_for_lines(file, 1)[0].parse().expect("a pid")
}

/// One watcher.
mod a_watcher {
    use super::*;

    #[test]
    fn stop_signal_is_what_the_worker_gets() {
        let manager = Manager::start(
            r#"
            [watcher.term]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/got TERM"
            type = "notify"
            [watcher.quit]
            cmd = "PROBE do block 3 , notify READY=1 , until 3 , append DIR/got QUIT"
            type = "notify"
            stop_signal = "QUIT"
            [watcher.number]
            cmd = "PROBE do block 12 , notify READY=1 , until 12 , append DIR/got USR2"
            type = "notify"
            stop_signal = 12
            "#,
        );
        manager.ok(&["stop", "--all"]);
        let mut got = manager.lines("got");
        got.sort();
        assert_eq!(got, ["QUIT", "TERM", "USR2"]);
    }

    #[test]
    fn what_does_not_end_within_graceful_timeout_is_killed_with_its_whole_group() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do ignore 15 , child { ignore 15 , child { ignore 15 , append DIR/grandchild %p , sleep } , sleep } , await DIR/grandchild , notify READY=1 , sleep"
            type = "notify"
            graceful_timeout = 0.3
            "#,
        );
        assert_eq!(manager.offspring().len(), 3);
        let begin = Instant::now();
        manager.ok(&["stop", "web"]);
        assert!(begin.elapsed() >= Duration::from_millis(300));
        // Not a moment later: when the command returns.
        assert_eq!(manager.offspring(), [0; 0]);
        assert_eq!(manager.watcher("web")["state"], "stopped");
    }

    #[test]
    fn a_worker_that_takes_its_time_has_its_graceful_timeout() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/got TERM , await DIR/finish , append DIR/got end"
            type = "notify"
            graceful_timeout = 20
            "#,
        );
        manager.ok(&["stop", "web", "--no-wait"]);
        manager.wait_for_lines("got", 1);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "stopping");
        assert_eq!(watcher["workers"][0]["state"], "stopping");
        manager.touch("finish");
        manager.wait_for_state("web", "stopped");
        assert_eq!(manager.lines("got"), ["TERM", "end"]);
    }

    #[test]
    fn without_stop_children_the_worker_alone_gets_the_signal_and_its_children_end_with_it() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do child { block 15 , append DIR/child %p , until 15 , append DIR/got child } , await DIR/child , block 15 , notify READY=1 , until 15 , append DIR/got main , await DIR/finish"
            type = "notify"
            graceful_timeout = 20
            "#,
        );
        let child = pid_in(&manager, "child");
        manager.ok(&["stop", "web", "--no-wait"]);
        manager.wait_for_lines("got", 1);
        assert!(is_alive(child));
        assert_eq!(manager.lines("got"), ["main"]);
        manager.touch("finish");
        manager.wait_for_state("web", "stopped");
        manager.wait_until_childless();
    }

    #[test]
    fn with_stop_children_the_whole_group_gets_the_signal() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do child { block 15 , append DIR/child %p , until 15 , append DIR/got child } , await DIR/child , block 15 , notify READY=1 , until 15 , append DIR/got main , await DIR/finish"
            type = "notify"
            graceful_timeout = 20
            stop_children = true
            "#,
        );
        manager.ok(&["stop", "web", "--no-wait"]);
        let mut got = manager.wait_for_lines("got", 2);
        got.sort();
        assert_eq!(got, ["child", "main"]);
        manager.touch("finish");
        manager.wait_for_state("web", "stopped");
    }

    #[test]
    fn a_child_that_outlives_its_worker_is_ended_before_stop_returns() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do child { ignore 15 , append DIR/child %p , sleep } , await DIR/child , notify READY=1 , sleep"
            type = "notify"
            graceful_timeout = 0.5
            "#,
        );
        let child = pid_in(&manager, "child");
        manager.ok(&["stop", "web"]);
        assert!(!is_alive(child));
        assert_eq!(manager.offspring(), [0; 0]);
    }

    #[test]
    fn a_stray_in_a_session_of_its_own_is_found_and_ended() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do daemon { ignore 15 , ignore 1 , append DIR/stray %p , sleep } , await DIR/stray , notify READY=1 , sleep"
            type = "notify"
            graceful_timeout = 0.3
            [watcher.other]
            cmd = "PROBE do daemon { append DIR/innocent %p , sleep } , await DIR/innocent , notify READY=1 , sleep"
            type = "notify"
            "#,
        );
        let stray = pid_in(&manager, "stray");
        let innocent = pid_in(&manager, "innocent");
        manager.ok(&["stop", "web"]);
        assert!(!is_alive(stray));
        assert!(is_alive(innocent), "another watcher's stray");
        manager.ok(&["stop", "other"]);
        assert_eq!(manager.offspring(), [0; 0]);
    }

    #[test]
    fn a_stray_that_shows_no_environment_is_ended_with_the_last_that_could_have_made_it() {
        let manager = Manager::start(
            r#"
            [watcher.other]
            cmd = "PROBE do bare-daemon { append DIR/innocent %p , sleep } , await DIR/innocent , notify READY=1 , sleep"
            type = "notify"
            after = ["web"]
            [watcher.web]
            cmd = "PROBE do bare-daemon { ignore 15 , append DIR/stray %p , sleep } , await DIR/stray , delay 50 , notify READY=1 , sleep"
            type = "notify"
            # The kernel tells when a process has started in hundredths of a second.
            ready_delay = 0.05
            "#,
        );
        let stray = pid_in(&manager, "stray");
        let innocent = pid_in(&manager, "innocent");
        manager.ok(&["stop", "web"]);
        assert!(!is_alive(stray));
        assert!(is_alive(innocent), "it may be of one that runs");
        manager.ok(&["stop", "other"]);
        assert!(!is_alive(innocent));
    }

    #[test]
    fn what_a_killed_worker_left_behind_is_ended_though_it_shows_no_environment() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do bare-daemon { append DIR/stray %p , sleep } , await DIR/stray , delay 50 , append DIR/main %p , sleep"
            "#,
        );
        let stray = pid_in(&manager, "stray");
        kill(pid_in(&manager, "main"), libc::SIGKILL);
        wait_until_dead(stray);
        let next: i32 = manager.wait_for_lines("stray", 2)[1]
            .parse()
            .expect("a pid");
        assert!(is_alive(next));
    }

    #[test]
    fn what_descends_from_a_worker_at_its_stop_is_ended_whatever_it_shows() {
        let manager = Manager::start(
            r#"
            [watcher.other]
            cmd = "PROBE sleep"
            [watcher.web]
            cmd = "PROBE do bare-child { ignore 15 , append DIR/child %p , sleep } , await DIR/child , notify READY=1 , sleep"
            type = "notify"
            after = ["other"]
            "#,
        );
        // So far another could have made it.
        let child = pid_in(&manager, "child");
        manager.ok(&["stop", "web"]);
        assert!(!is_alive(child));
        assert_eq!(manager.offspring().len(), 1);
    }

    #[test]
    fn strays_of_strays_are_found_too() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do daemon { ignore 15 , daemon { ignore 15 , append DIR/inner %p , sleep } , child { ignore 15 , sleep } , append DIR/outer %p , sleep } , await DIR/outer , await DIR/inner , notify READY=1 , sleep"
            type = "notify"
            graceful_timeout = 0.3
            "#,
        );
        assert_eq!(manager.offspring().len(), 4);
        manager.ok(&["stop", "web"]);
        assert_eq!(manager.offspring(), [0; 0]);
    }

    #[test]
    fn what_a_killed_worker_left_behind_is_ended_and_nothing_of_the_next_one() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/main %p , child { ignore 15 , append DIR/child %p , sleep } , daemon { ignore 15 , append DIR/stray %p , sleep } , sleep"
            restart_reset = "1ms"
            "#,
        );
        let pid = |file: &str, round: usize| -> i32 {
            let lines = manager.wait_for_lines(file, round + 1);
            lines[round].parse().expect("a pid")
        };
        for round in 0..15 {
            let pids = ["child", "stray", "main"].map(|file| pid(file, round));
            assert!(
                pids.into_iter().all(is_alive),
                "one of round {round} was ended with those before it\n{}",
                manager.log()
            );
            kill(pids[2], libc::SIGKILL);
            for pid in pids {
                wait_until_dead(pid);
            }
        }
        let last = ["child", "stray", "main"].map(|file| pid(file, 15));
        // The process in the middle of a daemon's making may take a moment to end.
        let only_the_last = || {
            let left = manager.offspring();
            (left.len() == 3 && last.iter().all(|pid| left.contains(pid))).then_some(())
        };
        poll(only_the_last)
            .unwrap_or_else(|| panic!("{last:?} {:?}\n{}", manager.offspring(), manager.log()));
    }

    #[test]
    fn a_worker_that_is_suspended_can_be_stopped() {
        let manager = Manager::start("[watcher.web]\ncmd = 'PROBE sleep'\ngraceful_timeout = 60");
        let pid = manager.pids("web")[0];
        kill(pid, libc::SIGSTOP);
        poll(|| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.contains(") T ").then_some(())
        })
        .expect("it is suspended");
        manager.ok(&["stop", "web"]);
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_suspended_worker_that_ignores_term_is_killed() {
        let manager = Manager::start(
            "[watcher.web]\ncmd = 'PROBE do ignore 15 , notify READY=1 , sleep'\ntype = 'notify'\ngraceful_timeout = 0.2",
        );
        kill(manager.pids("web")[0], libc::SIGSTOP);
        manager.ok(&["stop", "web"]);
        assert_eq!(manager.offspring(), [0; 0]);
    }

    #[test]
    fn what_was_killed_stopping_leaves_no_error_and_no_restart() {
        let manager = Manager::start(
            "[watcher.web]\ncmd = 'PROBE do ignore 15 , notify READY=1 , sleep'\ntype = 'notify'\ngraceful_timeout = 0.1",
        );
        manager.ok(&["stop", "web"]);
        manager.ok(&["start", "web"]);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["restarts"], 0);
        assert_eq!(watcher["error"], serde_json::Value::Null);
    }

    #[test]
    fn a_watcher_that_is_still_starting_can_be_stopped() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            type = "notify"
            autostart = false
            numprocesses = 5
            warmup_delay = 30
            "#,
        );
        manager.ok(&["start", "web", "--no-wait"]);
        manager.wait_for("web", "had a worker", |watcher| {
            watcher["workers"].as_array().map(Vec::len) == Some(1)
        });
        manager.ok(&["stop", "web"]);
        assert_eq!(manager.watcher("web")["state"], "stopped");
        assert_eq!(manager.offspring(), [0; 0]);
    }

    #[test]
    fn a_watcher_in_backoff_can_be_stopped() {
        let manager = Manager::spawn(
            "[watcher.web]\ncmd = 'PROBE exit 1'\nrestart_delay = 60\nrestart_max_delay = 60",
        );
        manager.wait_for_state("web", "backoff");
        manager.ok(&["stop", "web"]);
        assert_eq!(manager.watcher("web")["state"], "stopped");
    }

    #[test]
    fn stopping_what_is_required_stops_what_requires_it_first() {
        let manager = Manager::start(
            r#"
            [watcher.db]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/order db"
            type = "notify"
            [watcher.web]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/order web-begins , delay 200 , append DIR/order web-ends"
            type = "notify"
            requires = ["db"]
            "#,
        );
        manager.ok(&["stop", "db"]);
        assert_eq!(manager.lines("order"), ["web-begins", "web-ends", "db"]);
    }
}

/// The manager.
mod the_manager {
    use super::*;

    const LEVELS: &str = r#"
        [watcher.db]
        cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/order db"
        type = "notify"
        [watcher.app]
        cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/order app-begins , delay 200 , append DIR/order app-ends"
        type = "notify"
        after = ["db"]
        [watcher.web]
        cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/order web-begins , delay 200 , append DIR/order web-ends"
        type = "notify"
        after = ["app"]
    "#;

    #[test]
    fn a_signal_stops_one_level_after_the_other_in_reverse_order() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let mut manager = Manager::start(LEVELS);
            manager.signal(signal);
            assert!(manager.wait().success());
            assert_eq!(
                manager.lines("order"),
                ["web-begins", "web-ends", "app-begins", "app-ends", "db"]
            );
            assert_eq!(manager.offspring(), [0; 0]);
            assert!(!manager.path("control").exists());
        }
    }

    #[test]
    fn stop_and_restart_of_all_go_in_order_too() {
        let manager = Manager::start(LEVELS);
        manager.ok(&["stop", "--all"]);
        let down = ["web-begins", "web-ends", "app-begins", "app-ends", "db"];
        assert_eq!(manager.lines("order"), down);
        manager.ok(&["start", "--all"]);
        manager.ok(&["restart", "--all"]);
        assert_eq!(manager.lines("order"), [down, down].concat());
        manager.wait_for("web", "runs again", |web| web["state"] == "running");
    }

    #[test]
    fn at_the_end_nothing_is_left_however_it_hides() {
        for alone in [false, true] {
            let mut manager = Manager::spawn_with(
                r#"
                [watcher.other]
                cmd = "PROBE sleep"
                [watcher.web]
                cmd = "PROBE do bare-daemon { ignore 15 , append DIR/stray %p , bare-daemon { append DIR/inner %p , sleep } , sleep } , await DIR/inner , notify READY=1 , sleep"
                type = "notify"
                after = ["other"]
                "#,
                |command| {
                    if alone {
                        command.arg("--no-keeper");
                    }
                },
            );
            manager.wait_for_notice("READY=1");
            let strays = ["stray", "inner"].map(|file| pid_in(&manager, file));
            manager.ok(&["stop", "web"]);
            // Either watcher may have made them.
            assert!(strays.into_iter().all(is_alive));
            assert!(manager.stop().success());
            assert!(!strays.into_iter().any(is_alive), "{}", manager.log());
        }
    }

    #[test]
    fn who_was_there_before_the_manager_lives_on() {
        let script = "sleep 1000 & echo $! > \"${3%/*}/before\"; exec \"$@\"";
        let mut manager = support::spawn_by_script(
            "[watcher.web]\ncmd = 'PROBE do bare-daemon { append DIR/stray %p , sleep } , sleep'",
            script,
            |_| {},
        );
        manager.wait_for_notice("READY=1");
        let before = pid_in(&manager, "before");
        let stray = pid_in(&manager, "stray");
        manager.ok(&["stop", "web"]);
        assert!(manager.stop().success());
        assert!(is_alive(before));
        // The manager can't know whose that was.
        assert!(is_alive(stray));
        for pid in [before, stray] {
            kill(pid, libc::SIGKILL);
        }
    }

    #[test]
    fn shutdown_is_the_same_and_returns_when_all_is_over() {
        let mut manager = Manager::start(LEVELS);
        manager.ok(&["shutdown"]);
        assert_eq!(
            manager.lines("order"),
            ["web-begins", "web-ends", "app-begins", "app-ends", "db"]
        );
        assert_eq!(manager.offspring(), [0; 0]);
        assert!(manager.wait().success());
    }

    #[test]
    fn shutdown_without_wait_returns_at_once() {
        let mut manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/got TERM , await DIR/finish"
            type = "notify"
            "#,
        );
        manager.ok(&["shutdown", "--no-wait"]);
        manager.wait_for_lines("got", 1);
        assert_eq!(manager.status()["manager"]["state"], "stopping");
        let output = manager.cli(&["start", "web"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("shutting down"), "{stderr}");
        manager.touch("finish");
        assert!(manager.wait().success());
    }

    #[test]
    fn a_second_signal_kills() {
        let mut manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do block 15 , child { ignore 15 , sleep } , daemon { ignore 15 , append DIR/stray %p , sleep } , await DIR/stray , notify READY=1 , until 15 , append DIR/got TERM , sleep"
            type = "notify"
            graceful_timeout = 600
            "#,
        );
        manager.signal(libc::SIGTERM);
        manager.wait_for_lines("got", 1);
        assert!(is_alive(manager.pid()));
        manager.signal(libc::SIGTERM);
        manager.wait();
        assert_eq!(manager.offspring(), [0; 0]);
    }

    /// `killall tentpole`, Ctrl-C in a terminal, the end of a system.
    #[test]
    fn one_signal_to_the_keeper_and_the_manager_is_no_second_one() {
        let mut manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/got TERM , await DIR/finish , append DIR/got ended"
            type = "notify"
            "#,
        );
        let heard = |count| {
            let heard = || manager.log().matches("got signal TERM").count() == count;
            let heard = poll(|| heard().then_some(()));
            heard.unwrap_or_else(|| panic!("not heard\n{}", manager.log()));
        };
        kill(manager.manager_pid(), libc::SIGTERM);
        heard(1);
        kill(manager.pid(), libc::SIGTERM);
        heard(2);
        manager.touch("finish");
        assert!(manager.wait().success());
        assert_eq!(manager.lines("got"), ["TERM", "ended"]);
    }

    #[test]
    fn shutdown_timeout_forces_the_end() {
        let mut manager = Manager::start(
            r#"
            [manager]
            shutdown_timeout = 0.3
            [watcher.web]
            cmd = "PROBE do ignore 15 , child { ignore 15 , sleep } , notify READY=1 , sleep"
            type = "notify"
            graceful_timeout = 600
            "#,
        );
        let begin = Instant::now();
        manager.stop();
        assert!(begin.elapsed() >= Duration::from_millis(300));
        assert_eq!(manager.offspring(), [0; 0]);
    }

    #[test]
    fn its_output_says_what_it_did() {
        let mut manager = Manager::start("[watcher.web]\ncmd = 'PROBE sleep'");
        manager.stop();
        let log = manager.log();
        assert!(log.contains("watcher.web: stopped"), "{log}");
    }

    #[test]
    fn clients_that_wait_for_a_stop_are_answered_before_the_end() {
        let mut manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do block 15 , notify READY=1 , until 15 , append DIR/got TERM , await DIR/finish"
            type = "notify"
            [watcher.never]
            cmd = "PROBE sleep"
            type = "notify"
            autostart = false
            "#,
        );
        let call = |method: &str, name: &str| {
            let mut stream = manager.connect();
            send(
                &mut stream,
                &serde_json::json!({"method": format!("io.tentpole.Manager.{method}"), "parameters": {"names": [name]}}),
            );
            std::io::BufReader::new(stream)
        };
        let mut starting = call("Start", "never");
        manager.wait_for_state("never", "starting");
        let mut stopping = call("Stop", "web");
        manager.wait_for_lines("got", 1);
        manager.signal(libc::SIGTERM);
        manager.touch("finish");
        let reply = support::receive(&mut stopping).expect("an answer");
        assert_eq!(reply["error"], serde_json::Value::Null, "{reply}");
        let reply = support::receive(&mut starting).expect("an answer");
        assert_eq!(
            reply["error"], "io.tentpole.Manager.ShuttingDown",
            "{reply}"
        );
        assert!(manager.wait().success());
    }

    #[test]
    fn at_any_moment_of_the_start_a_signal_ends_everything() {
        let mut units = String::from("[manager]\nwarmup_delay = '3ms'\n");
        for number in 0..30 {
            units.push_str(&format!(
                "[watcher.w{number}]\ncmd = 'PROBE do child {{ ignore 15 , sleep }} , delay 30 , notify READY=1 , sleep'\n\
                 type = 'notify'\nnumprocesses = 2\nwarmup_delay = '5ms'\ngraceful_timeout = 0.5\n"
            ));
            if number % 3 == 2 {
                units.push_str(&format!("after = ['w{}']\n", number - 1));
            }
        }
        let mut seed = u64::from(std::process::id()) | 1;
        for round in 0..12u64 {
            let mut manager = Manager::spawn(&units);
            // A xorshift: what matters is that every run hits other moments.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let delay = Duration::from_micros(seed % (30_000 * (round + 1)));
            poll_for(delay, || None::<()>);
            let begin = Instant::now();
            manager.signal(libc::SIGTERM);
            let status = manager.wait();
            // A signal that comes before the program itself has begun ends it as it ends any other.
            let early = std::os::unix::process::ExitStatusExt::signal(&status) == Some(15)
                && manager.log().is_empty();
            assert!(
                status.success() || early,
                "after {delay:?}: {status:?}\n{}",
                manager.log()
            );
            assert_eq!(manager.offspring(), [0; 0], "after {delay:?}");
            assert!(begin.elapsed() < DEADLINE, "after {delay:?}");
            assert!(!manager.path("control").exists(), "after {delay:?}");
        }
    }
}
