//! Supervision: how many workers there are, when they are ready, and what follows when they end.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::{DEADLINE, Manager, ask, bounded, command, folder, kill, start_time, write_units};

fn numbers(lines: &[String]) -> Vec<u64> {
    let number = |line: &String| line.parse().expect("a number");
    lines.iter().map(number).collect()
}

fn gaps(times: &[u64]) -> Vec<u64> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn workers(watcher: &Value) -> &Vec<Value> {
    watcher["workers"].as_array().expect("workers")
}

fn column(watcher: &Value, field: &str) -> Vec<i64> {
    let number = |worker: &Value| worker[field].as_i64().expect("a number");
    workers(watcher).iter().map(number).collect()
}

/// How many workers.
mod numbers_of_workers {
    use super::*;

    #[test]
    fn as_many_workers_run_as_numprocesses_says_with_wids_from_1() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/wids %w , sleep"
            numprocesses = 3
            "#,
        );
        let watcher = manager.watcher("web");
        assert_eq!(column(&watcher, "wid"), [1, 2, 3]);
        assert_eq!(column(&watcher, "generation"), [1, 1, 1]);
        assert_eq!(watcher["wanted"], 3);
        assert_eq!(watcher["ready"], 3);
        assert_eq!(watcher["restarts"], 0);
        let mut wids = manager.wait_for_lines("wids", 3);
        wids.sort();
        assert_eq!(wids, ["1", "2", "3"]);
        let mut pids = column(&watcher, "pid");
        pids.dedup();
        assert_eq!(pids.len(), 3);
    }

    #[test]
    fn numprocesses_of_0_is_a_watcher_that_runs_without_workers() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            numprocesses = 0
            "#,
        );
        assert!(workers(&manager.watcher("web")).is_empty());
        manager.ok(&["scale", "web", "1"]);
        assert_eq!(manager.pids("web").len(), 1);
    }

    #[test]
    fn a_singleton_never_has_two_workers() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            singleton = true
            "#,
        );
        let output = manager.cli(&["scale", "web", "+1"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("singleton"));
        assert_eq!(manager.watcher("web")["wanted"], 1);
        assert_eq!(manager.pids("web").len(), 1);
    }

    #[test]
    fn a_singleton_of_two_is_refused_at_once() {
        let dir = folder();
        let units = write_units(
            dir.path(),
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            singleton = true
            numprocesses = 2
            "#,
        );
        let output = bounded(command(dir.path()).arg("run").arg(units));
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("singleton"));
    }

    #[test]
    fn warmup_delay_lies_between_the_starts_of_workers() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            numprocesses = 4
            warmup_delay = 0.15
            "#,
        );
        let starts: Vec<u64> = manager.pids("web").into_iter().map(start_time).collect();
        for gap in gaps(&starts) {
            // Half of it: what the kernel takes to make the one before is in it.
            assert!(gap >= 7, "hundredths of a second: {starts:?}");
        }
    }

    #[test]
    fn the_managers_warmup_delay_lies_between_watchers_not_between_workers() {
        let manager = Manager::start(
            r#"
            [manager]
            warmup_delay = "200ms"
            [watcher.a]
            cmd = "PROBE sleep"
            numprocesses = 8
            [watcher.b]
            cmd = "PROBE sleep"
            [watcher.c]
            cmd = "PROBE sleep"
            "#,
        );
        let start = |name: &str| start_time(manager.pids(name)[0]);
        // Half of it: what the kernel takes to make the one before is in it.
        assert!(start("b") - start("a") >= 10);
        assert!(start("c") - start("b") >= 10);
        let of_a: Vec<u64> = manager.pids("a").into_iter().map(start_time).collect();
        assert!(
            of_a[7] - of_a[0] < 7 * 10,
            "workers are not slowed down: {of_a:?}"
        );
    }
}

/// When a worker is ready.
mod readiness {
    use super::*;

    #[test]
    fn a_worker_of_type_exec_is_ready_when_it_is_executed() {
        let manager = Manager::start("[watcher.web]\ncmd = 'PROBE sleep'\ntype = 'exec'");
        assert_eq!(manager.watcher("web")["state"], "running");
        assert_eq!(workers(&manager.watcher("web"))[0]["state"], "ready");
    }

    #[test]
    fn a_worker_of_type_notify_is_ready_when_it_says_so() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/begun %p , await DIR/go , notify READY=1 , sleep"
            type = "notify"
            "#,
        );
        manager.wait_for_lines("begun", 1);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "starting");
        assert_eq!(watcher["ready"], 0);
        assert_eq!(workers(&watcher)[0]["state"], "starting");
        manager.touch("go");
        manager.wait_for_notice("READY=1");
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "running");
        assert_eq!(watcher["ready"], 1);
        assert_eq!(workers(&watcher)[0]["state"], "ready");
    }

    #[test]
    fn ready_messages_do_not_count_for_type_exec_and_exec_not_for_notify() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do sleep"
            [watcher.slow]
            cmd = "PROBE sleep"
            type = "notify"
            autostart = false
            "#,
        );
        assert_eq!(manager.watcher("web")["state"], "running");
        manager.ok(&["start", "slow", "--no-wait"]);
        manager.wait_for("slow", "got a worker", |watcher| {
            workers(watcher).len() == 1
        });
        assert_eq!(manager.watcher("slow")["state"], "starting");
        assert_eq!(manager.watcher("slow")["ready"], 0);
    }

    #[test]
    fn a_oneshot_is_done_when_it_exits_with_0_and_does_not_run_again() {
        let manager = Manager::spawn(
            r#"
            [watcher.setup]
            cmd = "PROBE do append DIR/runs %p , await DIR/go"
            type = "oneshot"
            "#,
        );
        manager.wait_for_lines("runs", 1);
        assert_eq!(manager.watcher("setup")["state"], "starting");
        manager.touch("go");
        manager.wait_for_notice("READY=1");
        let watcher = manager.watcher("setup");
        assert_eq!(watcher["state"], "stopped");
        assert_eq!(watcher["error"], Value::Null);
        assert_eq!(watcher["restarts"], 0);
        assert_eq!(manager.lines("runs").len(), 1);
        // It can be asked for once more.
        manager.ok(&["start", "setup"]);
        assert_eq!(manager.lines("runs").len(), 2);
    }

    #[test]
    fn a_oneshot_that_fails_is_tried_again_until_it_succeeds() {
        let manager = Manager::start(
            r#"
            [watcher.setup]
            cmd = "PROBE do append DIR/runs %p , once DIR/first { exit 1 } , once DIR/second { raise 9 }"
            type = "oneshot"
            restart_delay = 0.01
            "#,
        );
        assert_eq!(manager.lines("runs").len(), 3);
        assert_eq!(manager.watcher("setup")["state"], "stopped");
    }

    #[test]
    fn what_is_after_a_oneshot_starts_when_it_is_done() {
        let manager = Manager::spawn(
            r#"
            [watcher.setup]
            cmd = "PROBE do append DIR/order setup , await DIR/go , append DIR/order done"
            type = "oneshot"
            [watcher.web]
            cmd = "PROBE do append DIR/order web , sleep"
            requires = ["setup"]
            "#,
        );
        manager.wait_for_lines("order", 1);
        assert!(manager.pids("web").is_empty());
        manager.touch("go");
        manager.wait_for_notice("READY=1");
        assert_eq!(manager.wait_for_lines("order", 3), ["setup", "done", "web"]);
    }

    #[test]
    fn ready_delay_is_waited_for_after_exec_and_after_the_message() {
        let manager = Manager::start(
            r#"
            [watcher.exec]
            cmd = "PROBE sleep"
            ready_delay = 0.3
            [watcher.notify]
            cmd = "PROBE notify READY=1"
            type = "notify"
            ready_delay = 0.3
            [watcher.last]
            cmd = "PROBE sleep"
            after = ["exec", "notify"]
            "#,
        );
        let start = |name: &str| start_time(manager.pids(name)[0]);
        assert!(start("last") - start("exec") >= 29);
        assert!(start("last") - start("notify") >= 29);
    }

    #[test]
    fn a_death_within_ready_delay_is_a_failed_start() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %p , delay 20 , exit 3"
            ready_delay = 15
            max_retry = 2
            restart_delay = 0.01
            "#,
        );
        let watcher = manager.wait_for_state("web", "failed");
        assert!(
            text(&watcher["error"]).contains("exited with code 3"),
            "{watcher:#}"
        );
        assert_eq!(manager.lines("starts").len(), 2);
    }

    #[test]
    fn a_worker_that_is_never_ready_is_stopped_and_counted_and_status_says_why() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/pids %p , sleep"
            type = "notify"
            start_timeout = "200ms"
            restart_delay = 0.01
            max_retry = 2
            "#,
        );
        let watcher = manager.wait_for_state("web", "failed");
        assert!(
            text(&watcher["error"]).contains("start_timeout"),
            "{watcher:#}"
        );
        assert!(text(&watcher["error"]).contains("max_retry"), "{watcher:#}");
        assert_eq!(manager.lines("pids").len(), 2);
        manager.wait_until_childless();
    }

    #[test]
    fn a_start_that_takes_too_long_fails_the_command_with_the_reason() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            type = "notify"
            autostart = false
            start_timeout = 0.1
            max_retry = 1
            "#,
        );
        let output = manager.cli(&["start", "web"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("start_timeout"), "{stderr}");
    }

    #[test]
    fn extend_timeout_keeps_a_slow_start_alive() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do notify EXTEND_TIMEOUT_USEC=15000000 , delay 900 , notify READY=1 , sleep"
            type = "notify"
            start_timeout = 0.5
            "#,
        );
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "running");
        assert_eq!(column(&watcher, "generation"), [1]);
    }

    #[test]
    fn an_extension_that_is_over_is_over() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do notify EXTEND_TIMEOUT_USEC=300000 , sleep"
            type = "notify"
            start_timeout = 0.2
            max_retry = 1
            "#,
        );
        let watcher = manager.wait_for_state("web", "failed");
        assert!(
            text(&watcher["error"]).contains("start_timeout"),
            "{watcher:#}"
        );
    }
}

/// The watchdog.
mod watchdog {
    use super::*;

    #[test]
    fn a_worker_that_feeds_its_watchdog_lives() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append-env DIR/env WATCHDOG_USEC WATCHDOG_PID , append DIR/env %p , repeat 100 WATCHDOG=1"
            watchdog = 2
            [watcher.clock]
            cmd = "PROBE do delay 3000"
            type = "oneshot"
            "#,
        );
        // By now its watchdog would have run out.
        let watcher = manager.watcher("web");
        assert_eq!(column(&watcher, "generation"), [1]);
        assert_eq!(watcher["error"], Value::Null);
        let env = manager.lines("env");
        assert_eq!(env[0], "WATCHDOG_USEC=2000000");
        assert_eq!(env[1], format!("WATCHDOG_PID={}", env[2]));
    }

    #[test]
    fn a_worker_that_does_not_feed_its_watchdog_is_aborted_and_replaced() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/pids %p , sleep"
            watchdog = 0.3
            rlimits = { core = 0 }
            "#,
        );
        let before = manager.pids("web");
        let watcher = manager.wait_for("web", "restarted", |watcher| watcher["restarts"] == 1);
        assert_ne!(manager.pids("web"), before);
        assert!(
            text(&watcher["error"]).contains("WATCHDOG=1"),
            "{watcher:#}"
        );
        support::wait_until_dead(before[0]);
    }

    #[test]
    fn the_watchdogs_signal_can_be_chosen() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do block 12 , append DIR/pids %p , until 12 , append DIR/signals USR2"
            watchdog = 0.4
            watchdog_signal = "USR2"
            "#,
        );
        assert_eq!(manager.wait_for_lines("signals", 1), ["USR2"]);
    }

    #[test]
    fn a_worker_that_ignores_the_watchdogs_signal_is_killed() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do once DIR/first { ignore 6 , repeat 10000 WATCHDOG=1 } , sleep"
            watchdog = 0.2
            graceful_timeout = 0.2
            "#,
        );
        manager.wait_for("web", "was replaced", |watcher| {
            column(watcher, "generation").first() >= Some(&2)
        });
    }
}

/// What follows the end of a worker.
mod restarts {
    use super::*;

    /// Each policy with each end of a worker: whether there is another one, and the state if not.
    #[test]
    fn the_policies_of_restart() {
        let ends = [
            ("ok", "exit 0"),
            ("bad", "exit 1"),
            ("kill", "raise 9"),
            ("term", "raise 15"),
        ];
        let mut units = String::new();
        for policy in ["always", "on-failure", "never"] {
            for (end, steps) in ends {
                units.push_str(&format!(
                    "[watcher.{policy}-{end}]\ncmd = 'PROBE do once DIR/{policy}-{end} {{ await DIR/go , {steps} }} , sleep'\n\
                     restart = '{policy}'\nrlimits = {{ core = 0 }}\n"
                ));
            }
        }
        let manager = Manager::start(&units);
        manager.touch("go");
        for (name, again) in [
            ("always-ok", true),
            ("always-bad", true),
            ("always-kill", true),
            ("always-term", true),
            ("on-failure-ok", false),
            ("on-failure-bad", true),
            ("on-failure-kill", true),
            ("on-failure-term", false),
            ("never-ok", false),
            ("never-bad", false),
            ("never-kill", false),
            ("never-term", false),
        ] {
            if again {
                let watcher = manager.wait_for(name, "was restarted", |watcher| {
                    watcher["state"] == "running" && watcher["restarts"] == 1
                });
                assert_eq!(column(&watcher, "generation"), [2], "{name}");
                assert_eq!(column(&watcher, "wid"), [1], "{name}");
            } else {
                let failed = name == "never-bad" || name == "never-kill";
                let state = if failed { "failed" } else { "stopped" };
                let watcher = manager.wait_for_state(name, state);
                assert!(workers(&watcher).is_empty(), "{name}");
                assert_eq!(watcher["restarts"], 0, "{name}");
                assert!(watcher["error"].is_string(), "{watcher:#}");
            }
        }
        let error = manager.watcher("never-kill")["error"].clone();
        assert!(text(&error).contains("signal 9 (KILL)"), "{error}");
        let error = manager.watcher("never-bad")["error"].clone();
        assert!(text(&error).contains("code 1"), "{error}");
    }

    #[test]
    fn respawn_false_is_the_same_as_never() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do await DIR/go"
            respawn = false
            "#,
        );
        manager.touch("go");
        manager.wait_for_state("web", "stopped");
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_next_ones_wait_longer_and_longer() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , exit 5"
            restart_delay = 0.3
            "#,
        );
        let watcher = manager.wait_for_state("web", "backoff");
        assert!(
            text(&watcher["error"]).contains("exited with code 5"),
            "{watcher:#}"
        );
        assert!(
            text(&watcher["error"]).contains("next try in"),
            "{watcher:#}"
        );
        let gaps = gaps(&numbers(&manager.wait_for_lines("starts", 5)));
        assert!(gaps[1] >= 300, "{gaps:?}");
        assert!(gaps[2] >= 600, "{gaps:?}");
        assert!(gaps[3] >= 1200, "{gaps:?}");
        assert!(gaps[0] < 1200, "{gaps:?}");
    }

    #[test]
    fn restart_max_delay_is_the_longest() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , exit 5"
            restart_delay = 0.1
            restart_max_delay = 0.2
            "#,
        );
        // Without it these would take more than 25 seconds.
        manager.wait_for_lines("starts", 10);
    }

    #[test]
    fn the_shortest_restart_delay_does_not_spin() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , exit 5"
            restart_delay = "1ms"
            restart_max_delay = "1ms"
            "#,
        );
        let times = numbers(&manager.wait_for_lines("starts", 20));
        assert!(times[19] - times[0] >= 18 * 10, "{times:?}");
    }

    #[test]
    fn a_command_that_is_not_there_fails_with_the_step_and_the_reason() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "/nonexistent/program --flag"
            max_retry = 3
            restart_delay = 0.01
            "#,
        );
        let watcher = manager.wait_for_state("web", "failed");
        let error = text(&watcher["error"]);
        assert!(error.contains("exec /nonexistent/program"), "{error}");
        assert!(error.contains("No such file or directory"), "{error}");
        assert!(error.contains("3 failed starts (`max_retry`)"), "{error}");
        assert_eq!(watcher["restarts"], 0, "no worker ever lived");
        manager.wait_for_notice("READY=1");
    }

    #[test]
    fn max_retry_counts_failed_starts_in_a_row_only() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , once DIR/1 { exit 1 } , once DIR/2 { notify READY=1 , barrier , exit 1 } , once DIR/3 { exit 1 } , notify READY=1 , sleep"
            type = "notify"
            max_retry = 2
            restart_delay = 0.01
            "#,
        );
        manager.wait_for_lines("starts", 4);
        manager.wait_for_state("web", "running");
    }

    #[test]
    fn a_failed_watcher_can_be_started_again() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do unless DIR/good { exit 1 } , notify READY=1 , sleep"
            type = "notify"
            max_retry = 1
            "#,
        );
        manager.wait_for_state("web", "failed");
        let output = manager.cli(&["start", "web"]);
        assert_eq!(output.status.code(), Some(1));
        manager.touch("good");
        manager.ok(&["start", "web"]);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["state"], "running");
        assert_eq!(watcher["error"], Value::Null);
    }

    #[test]
    fn a_worker_that_lived_for_restart_reset_starts_over() {
        let manager = Manager::spawn(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , delay 400 , exit 1"
            restart_reset = 0.2
            restart_delay = 10
            "#,
        );
        // A backoff would be 10 seconds and more.
        let gaps = gaps(&numbers(&manager.wait_for_lines("starts", 4)));
        assert!(gaps.iter().all(|gap| *gap < 9000), "{gaps:?}");
    }

    #[test]
    fn every_worker_killed_at_once_is_replaced_at_once_under_its_wid() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            numprocesses = 12
            restart_delay = 10
            "#,
        );
        let before = manager.pids("web");
        for pid in &before {
            kill(*pid, libc::SIGKILL);
        }
        let watcher = manager.wait_for("web", "was whole again", |watcher| {
            watcher["restarts"] == 12 && watcher["ready"] == 12
        });
        assert_eq!(column(&watcher, "wid"), (1..=12).collect::<Vec<i64>>());
        assert_eq!(column(&watcher, "generation"), [2; 12]);
        let after = manager.pids("web");
        assert!(before.iter().all(|pid| !after.contains(pid)));
        assert_eq!(watcher["state"], "running");
    }

    #[test]
    fn a_command_restart_counts_no_restarts_but_generations() {
        let manager = Manager::start("[watcher.web]\ncmd = 'PROBE sleep'\nnumprocesses = 2");
        let before = manager.pids("web");
        manager.ok(&["restart", "web"]);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["restarts"], 0);
        assert_eq!(column(&watcher, "generation"), [2, 2]);
        let after = manager.pids("web");
        assert!(before.iter().all(|pid| !after.contains(pid)));
    }

    #[test]
    fn a_worker_that_ends_at_once_never_costs_the_port() {
        let manager = Manager::spawn(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , unless DIR/good { exit 1 } , serve $(circus.socket.web)"
            restart_delay = 0.01
            restart_max_delay = 0.3
            "#,
        );
        let address = manager.address("web");
        manager.wait_for_lines("starts", 4);
        // This client waits in the queue of a service that only ever crashes.
        let asking = {
            let address = address.clone();
            std::thread::spawn(move || ask(&address, "env TENTPOLE_WID"))
        };
        let queued = support::poll(|| {
            (manager.socket("web")["queue"] == 1).then_some(manager.lines("starts").len())
        });
        let count = queued.expect("the client is queued");
        manager.wait_for_lines("starts", count + 2);
        assert_eq!(manager.socket("web")["state"], "listening");
        manager.touch("good");
        assert_eq!(asking.join().expect("an answer"), "1");
        assert_eq!(manager.address("web"), address);
    }

    #[test]
    fn a_command_that_can_never_run_leaves_the_port_open_and_others_alone() {
        let manager = Manager::spawn(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            [watcher.web]
            cmd = "DIR/missing"
            sockets = ["web"]
            [watcher.other]
            cmd = "PROBE sleep"
            "#,
        );
        manager.wait_for_state("web", "backoff");
        assert_eq!(manager.watcher("other")["state"], "running");
        let address = manager.address("web");
        let asking = std::thread::spawn(move || ask(&address, "pid"));
        std::os::unix::fs::symlink("/bin/sh", manager.path("unrelated")).expect("a link");
        let script = format!("#!/bin/sh\nexec {} serve 3\n", support::probe());
        std::fs::write(manager.path("new"), script).expect("write");
        std::fs::set_permissions(
            manager.path("new"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("chmod");
        std::fs::rename(manager.path("new"), manager.path("missing")).expect("rename");
        let pid = asking.join().expect("an answer");
        assert_eq!(pid, manager.pids("web")[0].to_string());
    }
}

/// Watchers that decide over the manager.
mod critical {
    use super::*;

    fn exit_code_of(watcher: &str) -> Option<i32> {
        let mut manager = Manager::spawn(&format!(
            "[watcher.other]\ncmd = 'PROBE sleep'\n[watcher.main]\ncritical = true\nrlimits = {{ core = 0 }}\n{watcher}"
        ));
        let code = manager.wait().code();
        manager.wait_until_childless();
        code
    }

    #[test]
    fn its_exit_code_is_the_managers() {
        assert_eq!(
            exit_code_of("cmd = 'PROBE exit 7'\nrestart = 'never'"),
            Some(7)
        );
        assert_eq!(
            exit_code_of("cmd = 'PROBE exit 0'\nrestart = 'never'"),
            Some(0)
        );
    }

    #[test]
    fn its_signal_is_128_and_the_signal() {
        assert_eq!(
            exit_code_of("cmd = 'PROBE do raise 9'\nrestart = 'never'"),
            Some(137)
        );
        assert_eq!(
            exit_code_of("cmd = 'PROBE do raise 15'\nrestart = 'never'"),
            Some(143)
        );
    }

    #[test]
    fn what_is_not_found_is_127_and_what_cannot_be_executed_126() {
        assert_eq!(
            exit_code_of("cmd = '/nonexistent'\nrestart = 'never'"),
            Some(127)
        );
        assert_eq!(
            exit_code_of("cmd = '/etc/hostname'\nrestart = 'never'"),
            Some(126)
        );
    }

    #[test]
    fn a_oneshot_ends_the_manager_when_it_ends() {
        assert_eq!(
            exit_code_of("cmd = 'PROBE do exit 0'\ntype = 'oneshot'"),
            Some(0)
        );
        assert_eq!(
            exit_code_of("cmd = 'PROBE do exit 4'\ntype = 'oneshot'\nrestart = 'never'"),
            Some(4)
        );
    }

    #[test]
    fn one_that_is_given_up_ends_the_manager_with_its_last_code() {
        assert_eq!(
            exit_code_of(
                "cmd = 'PROBE exit 9'\ntype = 'notify'\nmax_retry = 2\nrestart_delay = 0.01"
            ),
            Some(9)
        );
    }

    #[test]
    fn one_that_is_restarted_does_not_end_the_manager() {
        let manager = Manager::start(
            r#"
            [watcher.main]
            cmd = "PROBE do once DIR/first { exit 3 } , sleep"
            critical = true
            "#,
        );
        manager.wait_for("main", "was restarted", |watcher| watcher["restarts"] == 1);
        assert_eq!(manager.watcher("main")["state"], "running");
    }

    #[test]
    fn stopping_it_by_command_does_not_end_the_manager() {
        let manager = Manager::start(
            "[watcher.main]\ncmd = 'PROBE sleep'\ncritical = true\nrestart = 'never'",
        );
        manager.ok(&["stop", "main"]);
        assert_eq!(manager.watcher("main")["state"], "stopped");
        manager.ok(&["start", "main"]);
        assert_eq!(manager.watcher("main")["state"], "running");
    }
}

/// The order of starts.
mod order {
    use super::*;

    #[test]
    fn higher_priority_starts_first() {
        let manager = Manager::start(
            r#"
            [manager]
            warmup_delay = 0.1
            [watcher.a]
            cmd = "PROBE sleep"
            [watcher.b]
            cmd = "PROBE sleep"
            priority = 10
            [watcher.c]
            cmd = "PROBE sleep"
            priority = 5
            [watcher.d]
            cmd = "PROBE sleep"
            priority = -1
            "#,
        );
        let mut names = ["a", "b", "c", "d"];
        names.sort_by_key(|name| start_time(manager.pids(name)[0]));
        assert_eq!(names, ["b", "c", "a", "d"]);
    }

    #[test]
    fn after_waits_until_every_worker_is_ready() {
        let manager = Manager::spawn(
            r#"
            [watcher.db]
            cmd = "PROBE do append DIR/order db , await DIR/go-$(circus.wid) , append DIR/order ready , notify READY=1 , sleep"
            type = "notify"
            numprocesses = 2
            [watcher.web]
            cmd = "PROBE do append DIR/order web , sleep"
            after = ["db"]
            priority = 100
            "#,
        );
        manager.wait_for_lines("order", 2);
        manager.touch("go-1");
        manager.wait_for("db", "had one ready", |watcher| watcher["ready"] == 1);
        let web = manager.watcher("web");
        assert_eq!(web["state"], "starting");
        assert!(workers(&web).is_empty());
        manager.touch("go-2");
        manager.wait_for_notice("READY=1");
        assert_eq!(
            manager.wait_for_lines("order", 5),
            ["db", "db", "ready", "ready", "web"]
        );
    }

    #[test]
    fn requires_fails_with_what_it_requires_and_after_does_not() {
        let manager = Manager::spawn(
            r#"
            [watcher.db]
            cmd = "PROBE exit 1"
            type = "notify"
            max_retry = 1
            [watcher.web]
            cmd = "PROBE do append DIR/started web , sleep"
            requires = ["db"]
            [watcher.front]
            cmd = "PROBE do append DIR/started front , sleep"
            requires = ["web"]
            [watcher.other]
            cmd = "PROBE do append DIR/started other , sleep"
            after = ["db"]
            "#,
        );
        manager.wait_for_notice("READY=1");
        assert_eq!(manager.wait_for_lines("started", 1), ["other"]);
        let status = manager.status();
        let error = |name: &str| {
            let watcher = support::find(&status["watchers"], name);
            assert_eq!(watcher["state"], "failed", "{watcher:#}");
            text(&watcher["error"]).to_owned()
        };
        assert!(error("web").contains("`db`"), "{}", error("web"));
        assert!(error("front").contains("`web`"), "{}", error("front"));
        assert_eq!(manager.watcher("other")["state"], "running");
    }

    #[test]
    fn what_runs_and_requires_what_fails_is_stopped() {
        let manager = Manager::start(
            r#"
            [watcher.db]
            cmd = "PROBE do await DIR/go , exit 1"
            restart = "never"
            [watcher.web]
            cmd = "PROBE sleep"
            requires = ["db"]
            "#,
        );
        assert_eq!(manager.watcher("web")["state"], "running");
        manager.touch("go");
        manager.wait_for_state("web", "failed");
        manager.wait_until_childless();
    }

    #[test]
    fn starting_what_requires_something_starts_that_too() {
        let manager = Manager::start(
            r#"
            [watcher.db]
            cmd = "PROBE do append DIR/order db , notify READY=1 , sleep"
            type = "notify"
            autostart = false
            [watcher.web]
            cmd = "PROBE do append DIR/order web , sleep"
            requires = ["db"]
            autostart = false
            "#,
        );
        manager.ok(&["start", "web"]);
        assert_eq!(manager.wait_for_lines("order", 2), ["db", "web"]);
        // And stopping what it requires stops it first.
        manager.ok(&["stop", "db"]);
        assert_eq!(manager.watcher("web")["state"], "stopped");
        manager.wait_until_childless();
    }

    #[test]
    fn without_autostart_a_watcher_waits_for_a_command() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE sleep"
            autostart = false
            "#,
        );
        assert_eq!(manager.watcher("web")["state"], "stopped");
        assert!(manager.pids("web").is_empty());
        manager.ok(&["start", "web"]);
        assert_eq!(manager.watcher("web")["state"], "running");
    }
}

/// Watchers that traffic starts.
mod on_demand {
    use super::*;

    const UNITS: &str = r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE do append DIR/starts %p , serve $(circus.socket.web)"
        on_demand = true
    "#;

    #[test]
    fn the_first_connection_starts_it_and_an_end_with_0_arms_it_again() {
        let manager = Manager::start(UNITS);
        assert_eq!(manager.watcher("web")["state"], "waiting");
        assert_eq!(manager.socket("web")["state"], "armed");
        let address = manager.address("web");
        let first = ask(&address, "pid");
        assert_eq!(manager.watcher("web")["state"], "running");
        assert_eq!(manager.socket("web")["state"], "listening");
        assert_eq!(ask(&address, "exit 0"), "");
        manager.wait_for_state("web", "waiting");
        manager.wait_for_socket("web", "armed");
        let second = ask(&address, "pid");
        assert_ne!(first, second);
        let watcher = manager.watcher("web");
        assert_eq!(watcher["restarts"], 0);
        assert_eq!(watcher["error"], Value::Null);
        assert_eq!(manager.lines("starts"), [first, second]);
    }

    #[test]
    fn a_worker_that_fails_is_restarted_without_traffic() {
        let manager = Manager::start(UNITS);
        let address = manager.address("web");
        let first = ask(&address, "pid");
        ask(&address, "exit 1");
        manager.wait_for("web", "was restarted", |watcher| {
            watcher["restarts"] == 1 && watcher["state"] == "running"
        });
        assert_ne!(ask(&address, "pid"), first);
    }

    #[test]
    fn a_connection_that_came_while_it_was_stopped_is_answered_after_the_start() {
        let manager = Manager::start(UNITS);
        let address = manager.address("web");
        manager.ok(&["stop", "web"]);
        assert_eq!(manager.watcher("web")["state"], "stopped");
        assert_eq!(manager.socket("web")["state"], "listening");
        let asking = std::thread::spawn({
            let address = address.clone();
            move || ask(&address, "env TENTPOLE_WATCHER")
        });
        support::poll(|| (manager.socket("web")["queue"] == 1).then_some(()))
            .expect("the client is queued");
        assert!(manager.lines("starts").is_empty());
        manager.ok(&["start", "web"]);
        assert_eq!(asking.join().expect("an answer"), "web");
    }

    #[test]
    fn start_starts_it_without_traffic() {
        let manager = Manager::start(UNITS);
        manager.ok(&["start", "web"]);
        assert_eq!(manager.watcher("web")["state"], "running");
        assert_eq!(manager.socket("web")["state"], "listening");
        assert_eq!(manager.pids("web").len(), 1);
    }

    #[test]
    fn two_watchers_on_one_socket_are_both_started() {
        let manager = Manager::start(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            [watcher.a]
            cmd = "PROBE serve $(circus.socket.web)"
            on_demand = true
            [watcher.b]
            cmd = "PROBE serve $(circus.socket.web)"
            on_demand = true
            "#,
        );
        ask(&manager.address("web"), "pid");
        manager.wait_for_state("a", "running");
        manager.wait_for_state("b", "running");
    }

    #[test]
    fn one_that_never_accepts_pauses_its_socket_and_recovers_by_itself() {
        let manager = Manager::start(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            trigger_limit = { burst = 3, interval = "600ms" }
            [watcher.web]
            cmd = "PROBE do append DIR/starts %t , unless DIR/good { exit 0 } , serve $(circus.socket.web)"
            on_demand = true
            "#,
        );
        let address = manager.address("web");
        let asking = std::thread::spawn(move || ask(&address, "env TENTPOLE_WID"));
        let socket = manager.wait_for_socket("web", "paused");
        assert!(
            text(&socket["error"]).contains("trigger_limit"),
            "{socket:#}"
        );
        let starts = numbers(&manager.wait_for_lines("starts", 7));
        // Never more than the burst within one interval.
        assert!(starts[3] - starts[0] >= 550, "{starts:?}");
        assert!(starts[6] - starts[3] >= 550, "{starts:?}");
        manager.touch("good");
        assert_eq!(asking.join().expect("an answer"), "1");
    }

    #[test]
    fn a_restart_of_one_that_waits_starts_nothing_and_says_done() {
        let manager = Manager::start(UNITS);
        manager.ok(&["restart", "web"]);
        assert_eq!(manager.watcher("web")["state"], "waiting");
        assert!(manager.lines("starts").is_empty());
    }

    #[test]
    fn scaled_while_it_waits_it_starts_as_many() {
        let manager = Manager::start(UNITS);
        manager.ok(&["scale", "web", "3"]);
        assert_eq!(manager.watcher("web")["state"], "waiting");
        ask(&manager.address("web"), "pid");
        manager.wait_for("web", "had 3 workers", |watcher| watcher["ready"] == 3);
    }
}

#[test]
fn scale_gives_the_smallest_free_wids_and_takes_the_highest() {
    let manager = Manager::start("[watcher.web]\ncmd = 'PROBE sleep'\nnumprocesses = 2");
    let first = manager.pids("web");
    manager.ok(&["scale", "web", "4"]);
    assert_eq!(column(&manager.watcher("web"), "wid"), [1, 2, 3, 4]);
    let four = manager.pids("web");
    assert_eq!(four[..2], first[..]);
    manager.ok(&["scale", "web", "-3"]);
    assert_eq!(column(&manager.watcher("web"), "wid"), [1]);
    assert_eq!(manager.pids("web")[0], first[0]);
    assert!(four[1..].iter().all(|pid| !support::is_alive(*pid)));
    assert_eq!(manager.watcher("web")["restarts"], 0);
    manager.ok(&["scale", "web", "+1"]);
    assert_eq!(column(&manager.watcher("web"), "wid"), [1, 2]);
    assert_eq!(manager.watcher("web")["wanted"], 2);
}

#[test]
fn a_new_worker_is_there_within_a_moment_of_the_death_of_the_old() {
    let manager = Manager::start("[watcher.web]\ncmd = 'PROBE sleep'\nrestart_reset = 0.01");
    let mut pid = manager.pids("web")[0];
    let mut fastest = DEADLINE;
    for round in 1..=5 {
        let before = std::time::Instant::now();
        kill(pid, libc::SIGKILL);
        let watcher = manager.wait_for("web", "was restarted", |watcher| {
            watcher["restarts"] == json!(round) && watcher["ready"] == 1
        });
        fastest = fastest.min(before.elapsed());
        pid = column(&watcher, "pid")[0] as i32;
        // It has to live for `restart_reset`.
        manager.wait_for("web", "was forgiven", |watcher| {
            watcher["error"] == Value::Null
        });
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}
