//! The named rules, each as a schedule that a reader can follow. Every event in them is held against
//! [`crate::rules::Rules`] too.

mod apply;
mod record;
mod reload;

use crate::scenario::Scenario;
use std::time::Duration;
use tentpole::supervise::notify::{Message, Watchdog};
use tentpole::supervise::{
    Amount, Command, Event, Exit, Pid, RequestId, Sender, SocketState, WorkerState,
};
use tentpole::unit::Signal;

const CODE_0: Exit = Exit::Code(0);
const CODE_1: Exit = Exit::Code(1);
const TERM: Exit = Exit::Signal(Signal(15));
const KILLED: Exit = Exit::Signal(Signal(9));
const NOTHING: [&str; 0] = [];

/// `[watcher.NAME]` with these further lines.
fn watcher(name: &str, lines: &str) -> String {
    format!("[watcher.{name}]\ncmd = \"program\"\n{lines}\n")
}

/// `[socket.s]` with these further lines.
fn socket(lines: &str) -> String {
    format!("[socket.s]\nlisten = \"127.0.0.1:8000\"\n{lines}\n")
}

/// One watcher `a`, begun, and its workers spawned.
fn running(lines: &str) -> Scenario {
    run_of(&watcher("a", lines))
}

/// Of these units, what starts by itself has been spawned.
fn run_of(text: &str) -> Scenario {
    let mut run = Scenario::of(text);
    let mut words = run.begin();
    while let Some(word) = words.pop() {
        if let Some(slot) = word.strip_prefix("spawn ") {
            words.extend(run.spawned(slot));
        }
    }
    run
}

fn scale(name: &str, to: Amount) -> Command {
    let name = name.to_owned();
    Command::Scale { name, to }
}

fn message(change: impl FnOnce(&mut Message)) -> Message {
    let mut message = Message::default();
    change(&mut message);
    message
}

fn extend(seconds: f64) -> Message {
    message(|it| it.extend_timeout = Some(Duration::from_secs_f64(seconds)))
}

fn fed() -> Message {
    message(|it| it.watchdog = Some(Watchdog::Alive))
}

// Restart and backoff.

#[test]
fn the_first_restart_is_at_once_and_each_further_one_waits_twice_as_long() {
    let mut run = running("restart_delay = 0.1\nrestart_max_delay = 0.3");
    for (wait, before) in [
        (0.0, 0.0),
        (0.1, 0.099),
        (0.2, 0.199),
        (0.3, 0.299),
        (0.3, 0.299),
    ] {
        let mut words = run.exits("a/1", CODE_1);
        assert_eq!(words.remove(0), "kill leftovers of a/1");
        if wait > 0.0 {
            assert_eq!(words, NOTHING);
            assert_eq!(run.state("a"), "backoff");
            assert_eq!(run.after(before), NOTHING);
            words = run.after(wait - before);
        }
        assert_eq!(words, ["spawn a/1"], "after {wait} s");
        run.spawned("a/1");
    }
    assert_eq!(run.watcher("a").restarts, 5);
    assert_eq!(run.watcher("a").workers[0].generation, 6);
}

#[test]
fn a_worker_that_was_ready_for_restart_reset_starts_the_backoff_over() {
    let mut run = running("restart_reset = 5");
    run.exits("a/1", CODE_1);
    run.spawned("a/1");
    run.exits("a/1", CODE_1);
    assert_eq!(run.after(0.1), ["spawn a/1"]);
    run.spawned("a/1");
    run.after(4.999);
    assert_eq!(run.exits("a/1", CODE_1), ["kill leftovers of a/1"]);
    assert_eq!(run.after(0.2), ["spawn a/1"]);
    run.spawned("a/1");
    run.after(5.0);
    assert_eq!(
        run.exits("a/1", CODE_1),
        ["kill leftovers of a/1", "spawn a/1"]
    );
}

#[test]
fn restart_says_what_follows_which_end() {
    let [hup, int, pipe, abrt] = [1, 2, 13, 6].map(|signal| Exit::Signal(Signal(signal)));
    let clean: &[Exit] = &[CODE_0, TERM, hup, int, pipe];
    let failed: &[Exit] = &[CODE_1, KILLED, abrt, Exit::Unknown];
    for (policy, after_clean, after_failed) in [
        ("always", true, true),
        ("on-failure", false, true),
        ("never", false, false),
    ] {
        for (ends, again) in [(clean, after_clean), (failed, after_failed)] {
            for end in ends.iter().copied() {
                let mut run = running(&format!("restart = \"{policy}\""));
                let spawns = run.exits("a/1", end).contains(&"spawn a/1".to_owned());
                assert_eq!(spawns, again, "{policy} and {end}");
                if !again {
                    let state = if end.is_clean() { "stopped" } else { "failed" };
                    assert_eq!(run.state("a"), state, "{policy} and {end}");
                }
            }
        }
    }
}

#[test]
fn a_clean_end_before_it_was_ready_is_a_failure() {
    let mut run = running("type = \"notify\"\nrestart = \"on-failure\"");
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "spawn a/1"]
    );
}

#[test]
fn a_oneshot_is_done_when_it_exits_0_and_is_tried_again_otherwise() {
    let mut run = running("type = \"oneshot\"");
    assert_eq!(
        run.exits("a/1", TERM),
        ["kill leftovers of a/1", "spawn a/1"],
        "even a clean signal is not code 0"
    );
    run.spawned("a/1");
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "tell the parent: ready"]
    );
    assert_eq!(run.state("a"), "stopped");
    assert_eq!(run.supervisor.next_deadline(), None);
}

#[test]
fn max_retry_counts_failed_starts_in_a_row() {
    let mut run = Scenario::of(&watcher("a", "max_retry = 3\nrestart_max_delay = 0.1"));
    run.begin();
    assert_eq!(run.spawn_failed("a/1"), ["spawn a/1"]);
    assert_eq!(run.spawn_failed("a/1"), NOTHING);
    assert_eq!(run.after(0.1), ["spawn a/1"]);
    // One that was ready ends the row.
    run.spawned("a/1");
    run.exits("a/1", CODE_1);
    assert_eq!(run.after(0.1), ["spawn a/1"]);
    for _ in 0..2 {
        assert_eq!(run.spawn_failed("a/1"), NOTHING);
        assert_eq!(run.after(0.1), ["spawn a/1"]);
    }
    assert_eq!(run.spawn_failed("a/1"), NOTHING);
    assert_eq!(run.state("a"), "failed");
    assert_eq!(run.supervisor.next_deadline(), None);
    let error = run.watcher("a").error.expect("a failed watcher says why");
    assert!(
        error.contains("No such file") && error.contains("3 failed starts"),
        "{error}"
    );
}

#[test]
fn restarts_counts_the_deaths_that_were_made_good_and_nothing_else() {
    let mut run = running("");
    run.exits("a/1", CODE_1);
    assert_eq!(run.watcher("a").restarts, 0, "nothing has taken its place");
    run.spawn_failed("a/1");
    run.after(0.1);
    run.spawned("a/1");
    assert_eq!(run.watcher("a").restarts, 1);
    run.restart(&["a"]);
    run.exits("a/1", TERM);
    run.gone("a/1");
    run.spawned("a/1");
    run.command(scale("a", Amount::By(1)));
    run.spawned("a/2");
    assert_eq!(run.watcher("a").restarts, 1);
}

#[test]
fn backoff_is_shown_with_its_reason_and_its_end() {
    let mut run = running("restart_delay = 2");
    run.exits("a/1", CODE_1);
    run.spawned("a/1");
    run.says("a/1", message(|it| it.errno = Some(28)));
    run.exits("a/1", Exit::Code(3));
    run.after(0.5);
    assert_eq!(run.state("a"), "backoff");
    assert_eq!(
        run.watcher("a").error.as_deref(),
        Some("worker 1 exited with code 3, ERRNO=28; next try in 1.5 s")
    );
    assert_eq!(run.start(&["a"]), ["spawn a/1"], "who asks does not wait");
    assert_eq!(run.spawned("a/1"), ["answer 1: done"]);
    assert!(run.watcher("a").error.is_some());
    run.after(10.0);
    assert_eq!(run.watcher("a").error, None, "it has proved itself");
}

#[test]
fn how_a_worker_ended_that_is_not_restarted_is_shown() {
    for (policy, end, text) in [
        (
            "never",
            CODE_0,
            "worker 1 exited with code 0; it is not restarted",
        ),
        (
            "on-failure",
            TERM,
            "worker 1 was killed by signal 15 (TERM); it is not restarted",
        ),
    ] {
        let mut run = running(&format!("restart = \"{policy}\""));
        run.exits("a/1", end);
        assert_eq!(run.state("a"), "stopped");
        assert_eq!(run.watcher("a").error.as_deref(), Some(text));
        run.start(&["a"]);
        assert_eq!(run.watcher("a").error, None);
    }
    let mut run = running("type = \"oneshot\"");
    run.exits("a/1", CODE_0);
    assert_eq!(run.watcher("a").error, None, "it has done its job");
}

// Becoming ready.

#[test]
fn a_worker_that_never_becomes_ready_is_stopped_and_counts_as_failed_start() {
    let mut run = running("type = \"notify\"\nstart_timeout = 2\nmax_retry = 1");
    assert_eq!(run.after(1.999), NOTHING);
    assert_eq!(run.after(0.001), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(run.watcher("a").workers[0].state, WorkerState::Stopping);
    assert_eq!(run.exits("a/1", CODE_0), ["kill leftovers of a/1"]);
    assert_eq!(run.gone("a/1"), ["tell the parent: ready"]);
    assert_eq!(run.state("a"), "failed");
    let error = run.watcher("a").error.expect("a failed watcher says why");
    assert!(error.contains("start_timeout"), "{error}");
}

#[test]
fn extend_timeout_moves_the_deadline_and_never_back() {
    let mut run = running("type = \"notify\"\nstart_timeout = 2\ngraceful_timeout = 1");
    run.after(1.0);
    run.says("a/1", extend(3.0));
    run.says("a/1", extend(0.5));
    assert_eq!(run.after(2.999), NOTHING);
    assert_eq!(run.after(0.001), ["TERM to a/1", "CONT to a/1"]);
    run.says("a/1", extend(5.0));
    assert_eq!(run.after(4.999), NOTHING);
    assert_eq!(run.after(0.001), ["kill a/1"]);
}

#[test]
fn ready_delay_must_pass_before_a_worker_is_ready() {
    let mut run = running("ready_delay = 1");
    assert_eq!(run.state("a"), "starting");
    assert_eq!(run.after(0.999), NOTHING);
    assert_eq!(run.after(0.001), ["tell the parent: ready"]);
    assert_eq!(run.state("a"), "running");
}

#[test]
fn a_notification_of_another_process_is_ignored_unless_notify_access_says_so() {
    let ready = || message(|it| it.ready = true);
    let other = Sender::Other(Pid(7));
    let mut run = running("type = \"notify\"");
    run.notifies("a/1", other, ready());
    assert_eq!(run.state("a"), "starting");
    assert!(run.log.iter().any(|line| line.contains("pid 7")));
    run.notifies("a/1", Sender::Main, ready());
    assert_eq!(run.state("a"), "running");

    let mut run = running("type = \"notify\"\nnotify_access = \"all\"");
    run.notifies("a/1", other, ready());
    assert_eq!(run.state("a"), "running");

    let mut run = running("notify_access = \"none\"");
    run.says("a/1", message(|it| it.status = Some("busy".into())));
    assert_eq!(run.watcher("a").workers[0].status, None);
}

#[test]
fn a_worker_does_not_fill_the_log_by_what_it_says() {
    let mut run = running("numprocesses = 2");
    run.log.clear();
    for slot in ["a/1", "a/1", "a/2", "a/1"] {
        assert_eq!(run.misspeaks(slot), NOTHING);
        run.after(3.0);
    }
    run.notifies("a/1", Sender::Other(Pid(7)), Message::default());
    run.misspeaks("a/1");
    let told = |slot: &str| {
        let lines = run.log.iter().filter(|line| line.contains(slot));
        lines.cloned().collect::<Vec<_>>()
    };
    let first = told("worker 1:");
    assert_eq!(first.len(), 2, "{first:?}");
    assert!(
        first[0].ends_with("worker 1: is not understood"),
        "{first:?}"
    );
    assert!(first[1].contains("not the main process"), "{first:?}");
    assert!(
        first[1].ends_with("; 2 more like this were left out"),
        "{first:?}"
    );
    assert_eq!(told("worker 2:").len(), 1);
}

#[test]
fn stopping_outweighs_ready_in_the_same_message() {
    let mut run = running("type = \"notify\"\ngraceful_timeout = 3");
    let both = message(|it| (it.ready, it.stopping) = (true, true));
    assert_eq!(run.says("a/1", both), NOTHING, "no signal: it stops itself");
    assert_eq!(run.watcher("a").workers[0].state, WorkerState::Stopping);
    assert_eq!(run.after(2.999), NOTHING);
    assert_eq!(run.after(0.001), ["kill a/1"]);
}

#[test]
fn the_status_text_is_shown_until_it_is_cleared() {
    let mut run = running("");
    run.says("a/1", message(|it| it.status = Some("3 of 7".into())));
    assert_eq!(run.watcher("a").workers[0].status, Some("3 of 7"));
    run.says("a/1", message(|it| it.ready = true));
    assert_eq!(run.watcher("a").workers[0].status, Some("3 of 7"));
    run.says("a/1", message(|it| it.status = Some(String::new())));
    assert_eq!(run.watcher("a").workers[0].status, None);
}

#[test]
fn the_main_process_may_hand_over_to_another() {
    let mut run = running("");
    let hand_over = || message(|it| it.main_pid = Some(4242));
    assert_eq!(run.says("a/1", hand_over()), ["follow a/1 to 4242"]);
    assert_eq!(run.watcher("a").workers[0].pid, Pid(4242));
    assert_eq!(run.says("a/1", hand_over()), NOTHING);
}

#[test]
fn a_worker_that_reloads_is_shown_so_until_it_is_ready() {
    let mut run = running("");
    run.says("a/1", message(|it| it.reloading = true));
    assert_eq!(run.watcher("a").workers[0].state, WorkerState::Reloading);
    run.says_ready("a/1");
    assert_eq!(run.watcher("a").workers[0].state, WorkerState::Ready);
}

// The watchdog.

#[test]
fn a_worker_that_does_not_feed_the_watchdog_is_aborted_and_restarted() {
    let mut run = running("watchdog = 1\ngraceful_timeout = 2");
    run.after(0.9);
    run.says("a/1", fed());
    assert_eq!(run.after(0.999), NOTHING);
    assert_eq!(run.after(0.001), ["ABRT to a/1", "CONT to a/1"]);
    run.says("a/1", fed());
    assert_eq!(run.after(2.0), ["kill a/1"], "it is too late to feed it");
    run.exits("a/1", KILLED);
    assert_eq!(run.gone("a/1"), ["spawn a/1"]);
    let error = run
        .watcher("a")
        .error
        .expect("a restarted watcher says why");
    assert!(error.contains("WATCHDOG=1"), "{error}");
}

#[test]
fn the_watchdog_watches_from_the_time_the_worker_is_ready() {
    let mut run = running("type = \"notify\"\nwatchdog = 1\nstart_timeout = 10");
    assert_eq!(run.after(5.0), NOTHING);
    run.says_ready("a/1");
    assert_eq!(run.after(0.999), NOTHING);
    assert_eq!(run.after(0.001), ["ABRT to a/1", "CONT to a/1"]);
}

#[test]
fn a_worker_may_ask_for_another_watchdog_interval_or_for_its_end() {
    let mut run = running("watchdog = 1");
    run.says(
        "a/1",
        message(|it| it.watchdog_interval = Some(Duration::from_secs(4))),
    );
    assert_eq!(run.after(3.999), NOTHING);
    let trigger = message(|it| it.watchdog = Some(Watchdog::Trigger));
    assert_eq!(run.says("a/1", trigger), ["ABRT to a/1", "CONT to a/1"]);
}

// Stopping.

#[test]
fn stop_waits_for_leftovers() {
    let mut run = running("");
    assert_eq!(run.stop(&["a"]), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(run.state("a"), "stopping");
    assert_eq!(run.exits("a/1", TERM), ["kill leftovers of a/1"]);
    assert_eq!(run.state("a"), "stopping");
    assert_eq!(run.gone("a/1"), ["answer 1: done"]);
    assert_eq!(run.state("a"), "stopped");
}

#[test]
fn kill_comes_when_graceful_timeout_is_over() {
    let mut run = running("graceful_timeout = 2\nstop_signal = \"INT\"");
    assert_eq!(run.stop(&["a"]), ["INT to a/1", "CONT to a/1"]);
    assert_eq!(run.after(1.999), NOTHING);
    assert_eq!(run.after(0.001), ["kill a/1"]);
    assert_eq!(run.after(1000.0), NOTHING);
    run.exits("a/1", KILLED);
    assert_eq!(run.gone("a/1"), ["answer 1: done"]);

    let mut run = running("graceful_timeout = \"infinity\"");
    run.stop(&["a"]);
    assert_eq!(run.after(100_000.0), NOTHING);

    let mut run = running("graceful_timeout = 0");
    let mut words = run.stop(&["a"]);
    words.extend(run.after(0.0));
    assert_eq!(words, ["TERM to a/1", "CONT to a/1", "kill a/1"]);

    let mut run = running("stop_signal = \"KILL\"");
    assert_eq!(run.stop(&["a"]), ["KILL to a/1"]);
}

#[test]
fn with_stop_children_the_others_have_as_long_as_the_main_process() {
    let mut run = running("graceful_timeout = 2\nstop_children = true");
    assert_eq!(
        run.stop(&["a"]),
        ["TERM to group of a/1", "CONT to group of a/1"]
    );
    run.after(0.5);
    assert_eq!(run.exits("a/1", TERM), ["await leftovers of a/1"]);
    assert_eq!(run.after(1.499), NOTHING);
    assert_eq!(run.after(0.001), ["kill leftovers of a/1"]);
    assert_eq!(run.gone("a/1"), ["answer 1: done"]);
}

#[test]
fn a_spawn_that_is_not_wanted_any_more_is_cancelled() {
    let mut run = Scenario::of(&watcher("a", ""));
    run.begin();
    assert_eq!(run.stop(&["a"]), ["cancel a/1"]);
    assert_eq!(
        run.spawn_cancelled("a/1"),
        ["answer 1: done", "tell the parent: ready"]
    );

    run.start(&["a"]);
    assert_eq!(
        run.stop(&["a"]),
        ["cancel a/1", "answer 2: a superseded by stop"]
    );
    assert_eq!(run.spawned("a/1"), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "answer 3: done"]);
}

#[test]
fn a_stop_goes_in_reverse_order_and_a_start_in_order() {
    let text = watcher("db", "")
        + &watcher("app", "requires = [\"db\"]")
        + &watcher("web", "after = [\"app\"]");
    let mut run = Scenario::of(&text);
    assert_eq!(run.begin(), ["spawn db/1"]);
    assert_eq!(run.spawned("db/1"), ["spawn app/1"]);
    assert_eq!(run.spawned("app/1"), ["spawn web/1"]);
    assert_eq!(run.spawned("web/1"), ["tell the parent: ready"]);

    // What requires it stops too; what is only after it goes on.
    assert_eq!(run.stop(&["db"]), ["TERM to app/1", "CONT to app/1"]);
    assert_eq!(
        run.ends("app/1"),
        ["kill leftovers of app/1", "TERM to db/1", "CONT to db/1"]
    );
    assert_eq!(
        run.ends("db/1"),
        ["kill leftovers of db/1", "answer 1: done"]
    );
    assert_eq!(run.state("web"), "running");

    // To start it brings what it requires.
    assert_eq!(run.start(&["app"]), ["spawn db/1"]);
    assert_eq!(run.spawned("db/1"), ["spawn app/1"]);
    assert_eq!(run.spawned("app/1"), ["answer 2: done"]);

    assert_eq!(
        run.terminate(),
        [
            "tell the parent: stopping",
            "TERM to web/1",
            "CONT to web/1"
        ]
    );
    assert_eq!(
        run.ends("web/1"),
        ["kill leftovers of web/1", "TERM to app/1", "CONT to app/1"]
    );
    assert_eq!(
        run.ends("app/1"),
        ["kill leftovers of app/1", "TERM to db/1", "CONT to db/1"]
    );
    assert_eq!(run.ends("db/1"), ["kill leftovers of db/1", "finish 0"]);
}

#[test]
fn those_that_one_stop_names_end_by_level_and_hold_up_nobody_else() {
    let text = watcher("high", "priority = 10")
        + &watcher("low", "")
        + &watcher("other", "priority = 10")
        + &watcher("lower", "priority = -1");
    let mut run = run_of(&text);
    assert_eq!(
        run.stop(&["high", "low"]),
        ["TERM to low/1", "CONT to low/1"]
    );
    assert_eq!(run.state("high"), "stopping");
    assert_eq!(run.stop(&["other"]), ["TERM to other/1", "CONT to other/1"]);
    assert_eq!(run.stop(&["lower"]), ["TERM to lower/1", "CONT to lower/1"]);
    assert_eq!(
        run.ends("low/1"),
        [
            "kill leftovers of low/1",
            "TERM to high/1",
            "CONT to high/1"
        ]
    );

    // One that is wanted again is out of the order.
    let mut run = run_of(&text);
    assert_eq!(
        run.stop(&["high", "low"]),
        ["TERM to low/1", "CONT to low/1"]
    );
    run.start(&["low"]);
    assert_eq!(run.state("high"), "stopping");
    assert!(run.stop(&[]).contains(&"TERM to lower/1".to_owned()));
}

#[test]
fn a_restart_of_watchers_that_depend_on_each_other_goes_down_and_up_in_order() {
    let text = watcher("db", "type = \"notify\"")
        + &watcher("app", "requires = [\"db\"]")
        + &watcher("web", "");
    let mut run = Scenario::of(&text);
    run.begin();
    for slot in ["db/1", "web/1"] {
        run.spawned(slot);
    }
    run.says_ready("db/1");
    run.spawned("app/1");
    let words = run.restart(&[]);
    assert_eq!(
        words,
        [
            "TERM to web/1",
            "CONT to web/1",
            "TERM to app/1",
            "CONT to app/1"
        ]
    );
    assert_eq!(
        run.ends("web/1"),
        ["kill leftovers of web/1", "spawn web/1"]
    );
    run.spawned("web/1");
    assert_eq!(
        run.ends("app/1"),
        ["kill leftovers of app/1", "TERM to db/1", "CONT to db/1"]
    );
    assert_eq!(run.ends("db/1"), ["kill leftovers of db/1", "spawn db/1"]);
    assert_eq!(run.state("app"), "starting");
    run.spawned("db/1");
    assert_eq!(run.says_ready("db/1"), ["spawn app/1"]);
    assert_eq!(run.spawned("app/1"), ["answer 1: done"]);
    assert_eq!(run.watcher("app").restarts, 0);

    // Who stops it in the middle is obeyed.
    run.restart(&["db", "app"]);
    let words = run.stop(&["db"]);
    assert!(
        words.contains(&"answer 2: app superseded by stop".to_owned()),
        "{words:?}"
    );
    run.ends("app/1");
    run.ends("db/1");
    assert_eq!(run.state("db"), "stopped");
}

#[test]
fn a_start_fills_up_what_has_ended_and_is_not_restarted() {
    let mut run = running("restart = \"never\"\nnumprocesses = 2");
    run.ends("a/2");
    assert_eq!(run.state("a"), "running");
    assert_eq!(run.start(&["a"]), ["spawn a/2"]);
    assert_eq!(run.spawned("a/2"), ["answer 1: done"]);
    assert_eq!(run.start(&["a"]), ["answer 2: done"]);

    let mut run = running("type = \"oneshot\"\nnumprocesses = 2");
    run.ends("a/2");
    assert_eq!(run.start(&["a"]), NOTHING, "it is done");
}

#[test]
fn a_scaling_is_overtaken_by_a_removal() {
    let mut run = running("type = \"notify\"");
    run.says_ready("a/1");
    assert_eq!(run.command(scale("a", Amount::To(2))), ["spawn a/2"]);
    let words = run.apply(&watcher("b", ""));
    assert!(
        words.contains(&"answer 1: a superseded by stop".to_owned()),
        "{words:?}"
    );
}

#[test]
fn a_second_sigterm_kills() {
    let mut run = running("numprocesses = 2");
    run.terminate();
    run.exits("a/2", TERM);
    assert_eq!(run.terminate(), ["kill a/1"], "a/2 has ended already");
    assert_eq!(run.terminate(), NOTHING);
    run.exits("a/1", KILLED);
    run.gone("a/2");
    assert_eq!(run.gone("a/1"), ["finish 0"]);
}

#[test]
fn one_signal_to_the_manager_and_its_keeper_is_no_second_one() {
    for is_direct_first in [true, false] {
        let signals = [Scenario::terminate, Scenario::terminate_forwarded];
        let [first, other] = match is_direct_first {
            true => signals,
            false => [signals[1], signals[0]],
        };
        let mut run = running("");
        first(&mut run);
        run.succeeded(false);
        assert_eq!(other(&mut run), NOTHING);
        run.succeeded(true);
        assert_eq!(first(&mut run), ["kill a/1"]);
    }
}

#[test]
fn a_signal_during_a_stop_that_no_signal_began_is_the_first() {
    let mut run = running("");
    run.command(Command::Shutdown);
    assert_eq!(run.terminate(), NOTHING);
    assert_eq!(run.terminate(), ["kill a/1"]);

    let mut run =
        Scenario::of(&(watcher("a", "") + &watcher("b", "critical = true\nrestart = \"never\"")));
    run.begin();
    run.spawned("a/1");
    run.spawned("b/1");
    run.exits("b/1", Exit::Code(7));
    assert_eq!(run.terminate(), NOTHING);
    assert_eq!(run.terminate_forwarded(), NOTHING);
    assert_eq!(run.terminate(), ["kill a/1"]);
}

#[test]
fn shutdown_timeout_forces_the_stop_and_what_can_not_be_killed_is_left_behind() {
    let text = "[manager]\nshutdown_timeout = 5\n".to_owned() + &watcher("a", "");
    let mut run = Scenario::of(&text);
    run.begin();
    run.spawned("a/1");
    run.command(Command::Shutdown);
    assert_eq!(run.after(4.999), NOTHING);
    assert_eq!(run.after(0.001), ["kill a/1"]);
    assert_eq!(run.after(9.999), NOTHING);
    assert_eq!(run.after(0.001), ["answer 1: done", "finish 0"]);
}

#[test]
fn shutdown_refuses_what_would_start_something() {
    let mut run = running("");
    run.terminate();
    assert_eq!(run.start(&["a"]), ["answer 1: shutting down"]);
    assert_eq!(run.restart(&["a"]), ["answer 2: shutting down"]);
    let up = scale("a", Amount::To(4));
    assert_eq!(run.command(up), ["answer 3: shutting down"]);
    assert_eq!(run.stop(&["a"]), NOTHING);
    assert_eq!(
        run.ends("a/1"),
        ["kill leftovers of a/1", "answer 4: done", "finish 0"]
    );
}

// Order.

#[test]
fn what_requires_a_failed_watcher_fails_with_it() {
    let text = watcher("db", "max_retry = 1\ntype = \"notify\"")
        + &watcher("app", "requires = [\"db\"]")
        + &watcher("web", "after = [\"db\"]");
    let mut run = Scenario::of(&text);
    run.begin();
    run.spawned("db/1");
    assert_eq!(
        run.exits("db/1", CODE_1),
        ["kill leftovers of db/1", "spawn web/1"]
    );
    assert_eq!(run.state("db"), "failed");
    assert_eq!(run.state("app"), "failed");
    let error = run.watcher("app").error.expect("a failed watcher says why");
    assert!(error.contains("`db`"), "{error}");
}

#[test]
fn priority_is_the_order_where_nothing_else_is() {
    let text = "[manager]\nwarmup_delay = 1\n".to_owned()
        + &watcher("a", "")
        + &watcher("b", "priority = 1")
        + &watcher("c", "priority = 2");
    let mut run = Scenario::of(&text);
    assert_eq!(run.begin(), ["spawn c/1"]);
    assert_eq!(run.after(0.999), NOTHING);
    assert_eq!(run.after(0.001), ["spawn b/1"]);
    assert_eq!(run.after(1.0), ["spawn a/1"]);
}

#[test]
fn warmup_delay_keeps_the_spawns_of_a_watcher_apart() {
    let mut run = Scenario::of(&watcher("a", "numprocesses = 3\nwarmup_delay = 0.5"));
    assert_eq!(run.begin(), ["spawn a/1"]);
    run.spawned("a/1");
    assert_eq!(
        run.exits("a/1", CODE_1),
        ["kill leftovers of a/1"],
        "its restart too"
    );
    assert_eq!(run.after(0.499), NOTHING);
    assert_eq!(run.after(0.001), ["spawn a/1"]);
    assert_eq!(run.after(0.5), ["spawn a/2"]);
    assert_eq!(run.after(0.5), ["spawn a/3"]);
}

#[test]
fn the_parent_hears_ready_once_and_only_when_nothing_is_starting() {
    let text = watcher("a", "restart_delay = 1") + &watcher("b", "type = \"notify\"");
    let mut run = Scenario::of(&text);
    run.begin();
    run.spawned("b/1");
    run.spawn_failed("a/1");
    run.spawn_failed("a/1");
    assert_eq!(run.state("a"), "backoff");
    assert_eq!(run.says_ready("b/1"), NOTHING);
    run.after(1.0);
    assert_eq!(run.spawned("a/1"), ["tell the parent: ready"]);
    run.exits("a/1", CODE_1);
    assert_eq!(run.spawned("a/1"), NOTHING);
}

// The end of the manager by a watcher.

#[test]
fn a_critical_watcher_decides_with_which_code_the_manager_ends() {
    for (end, code) in [(CODE_0, 0), (Exit::Code(3), 3), (TERM, 143), (KILLED, 137)] {
        let text = watcher("a", "critical = true\nrestart = \"never\"") + &watcher("b", "");
        let mut run = Scenario::of(&text);
        run.begin();
        run.all_spawned(&["a/1", "b/1"]);
        assert_eq!(
            run.exits("a/1", end),
            [
                "kill leftovers of a/1",
                "tell the parent: stopping",
                "TERM to b/1",
                "CONT to b/1"
            ]
        );
        run.exits("b/1", TERM);
        assert_eq!(run.gone("b/1"), [format!("finish {code}")]);
    }
    let mut run = Scenario::of(&watcher("a", "critical = true\nmax_retry = 1"));
    run.begin();
    assert_eq!(
        run.spawn_failed("a/1"),
        ["tell the parent: stopping", "finish 127"]
    );
}

#[test]
fn of_several_critical_workers_the_first_that_fails_for_good_decides() {
    let lines = "critical = true\nrestart = \"never\"\nnumprocesses = 2";
    let mut run = running(lines);
    assert_eq!(
        run.exits("a/1", Exit::Code(5)),
        [
            "kill leftovers of a/1",
            "TERM to a/2",
            "CONT to a/2",
            "tell the parent: stopping"
        ]
    );
    run.exits("a/2", CODE_0);
    assert_eq!(run.gone("a/2"), ["finish 5"]);
    // While they end well there is nothing to decide.
    let mut run = running(lines);
    assert_eq!(run.exits("a/2", CODE_0), ["kill leftovers of a/2"]);
    assert_eq!(
        run.exits("a/1", CODE_0),
        [
            "kill leftovers of a/1",
            "tell the parent: stopping",
            "finish 0"
        ]
    );
}

#[test]
fn a_critical_watcher_that_is_restarted_does_not_end_the_manager() {
    let mut run = running("critical = true");
    assert_eq!(
        run.exits("a/1", KILLED),
        ["kill leftovers of a/1", "spawn a/1"]
    );
}

// Sockets.

#[test]
fn socket_is_watched_again_after_the_program_exits() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]\non_demand = true");
    let mut run = Scenario::of(&text);
    assert_eq!(run.begin(), ["watch s", "tell the parent: ready"]);
    assert_eq!(run.state("a"), "waiting");
    assert_eq!(run.view().sockets[0].state, SocketState::Armed);
    assert_eq!(run.traffic("s"), ["unwatch s", "spawn a/1"]);
    run.spawned("a/1");
    assert_eq!(run.view().sockets[0].state, SocketState::Listening);
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "watch s"]
    );
    assert_eq!(run.state("a"), "waiting");
    // A failure is no reason to wait for traffic.
    run.traffic("s");
    run.spawned("a/1");
    assert_eq!(
        run.exits("a/1", CODE_1),
        ["kill leftovers of a/1", "spawn a/1"]
    );
}

#[test]
fn workers_that_leave_their_clients_waiting_are_told_of() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]\non_demand = true");
    let mut run = Scenario::of(&text);
    run.begin();
    run.after(5.0);
    for times in 0..4 {
        assert_eq!(run.traffic("s"), ["unwatch s", "spawn a/1"]);
        assert_eq!(run.watcher("a").error.is_some(), times >= 3);
        run.spawned("a/1");
        run.ends("a/1");
    }
    assert_eq!(run.state("a"), "waiting");
    let text = "worker 1 exited with code 0 while clients wait on socket `s`, 3 times in a row";
    assert_eq!(run.watcher("a").error.as_deref(), Some(text));
    let told = |run: &Scenario| {
        let lines = run.log.iter().filter(|line| line.contains("in a row"));
        lines.count()
    };
    run.traffic("s");
    run.spawned("a/1");
    assert_eq!(told(&run), 1, "{:?}", run.log);
    // One that stays makes up for them.
    run.after(10.0);
    assert_eq!(run.watcher("a").error, None);
    run.ends("a/1");
    run.traffic("s");
    assert_eq!(run.watcher("a").error, None);
    run.spawned("a/1");
    run.ends("a/1");
    // And so does traffic that takes its time.
    run.after(0.1);
    run.traffic("s");
    assert_eq!(run.watcher("a").error, None);
}

#[test]
fn trigger_limit_pauses_and_recovers_by_itself() {
    let text = socket("trigger_limit = { burst = 2, interval = 10 }")
        + &watcher("a", "sockets = [\"s\"]\non_demand = true");
    let mut run = Scenario::of(&text);
    run.begin();
    for _ in 0..2 {
        assert_eq!(run.traffic("s"), ["unwatch s", "spawn a/1"]);
        run.spawned("a/1");
        run.after(1.0);
        run.ends("a/1");
    }
    assert_eq!(run.traffic("s"), ["unwatch s"]);
    assert_eq!(run.view().sockets[0].state, SocketState::Paused);
    assert!(run.log.iter().any(|line| line.contains("trigger_limit")));
    assert_eq!(run.after(7.999), NOTHING);
    assert_eq!(run.after(0.001), ["watch s"], "10 s after the first");
    assert_eq!(run.traffic("s"), ["unwatch s", "spawn a/1"]);
}

#[test]
fn traffic_on_a_socket_of_several_starts_all_that_wait() {
    let demand = "sockets = [\"s\"]\non_demand = true";
    let text = socket("") + &watcher("a", demand) + &watcher("b", demand);
    let mut run = Scenario::of(&text);
    run.begin();
    assert_eq!(run.traffic("s"), ["unwatch s", "spawn a/1", "spawn b/1"]);
    run.all_spawned(&["a/1", "b/1"]);
    assert_eq!(
        run.exits("b/1", CODE_0),
        ["kill leftovers of b/1", "watch s"],
        "one that waits is enough"
    );
    assert_eq!(run.traffic("s"), ["unwatch s", "spawn b/1"]);
}

#[test]
fn a_worker_that_ends_well_is_started_by_traffic_though_others_go_on() {
    let lines = "sockets = [\"s\"]\non_demand = true\nnumprocesses = 2";
    let text = socket("trigger_limit = { burst = 2, interval = 10 }") + &watcher("a", lines);
    let mut run = Scenario::of(&text);
    run.begin();
    run.traffic("s");
    run.all_spawned(&["a/1", "a/2"]);
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "watch s"]
    );
    assert_eq!(run.state("a"), "running");
    assert_eq!(run.traffic("s"), ["spawn a/1", "unwatch s"]);
    run.spawned("a/1");
    assert_eq!(run.watcher("a").restarts, 0);
    // The limit is one for all starts by traffic.
    run.exits("a/1", CODE_0);
    assert_eq!(run.traffic("s"), ["unwatch s"]);
    assert_eq!(run.after(10.0), ["watch s"]);
    assert_eq!(
        run.stop(&["a"]),
        ["TERM to a/2", "CONT to a/2", "unwatch s"]
    );
}

#[test]
fn traffic_in_the_shard_of_a_worker_that_ended_well_starts_it() {
    let lines = "sockets = [\"s\"]\non_demand = true\nnumprocesses = 3";
    let mut run = Scenario::of(&(socket("so_reuseport = true") + &watcher("a", lines)));
    run.begin();
    run.traffic("s");
    run.all_spawned(&["a/1", "a/2", "a/3"]);
    assert_eq!(
        run.exits("a/3", CODE_0),
        ["kill leftovers of a/3", "watch s/3"]
    );
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "watch s/1 s/3"]
    );
    assert_eq!(
        run.traffic("s"),
        ["spawn a/1", "spawn a/3", "unwatch s"],
        "which of them it is in is not known"
    );
    run.all_spawned(&["a/1", "a/3"]);
    run.exits("a/1", CODE_0);
    run.exits("a/2", CODE_0);
    assert_eq!(
        run.exits("a/3", CODE_0),
        ["kill leftovers of a/3", "watch s"]
    );
    assert_eq!(run.state("a"), "waiting");
}

#[test]
fn the_shard_of_a_worker_that_ended_for_good_gets_no_clients_while_others_live() {
    let lines = "sockets = [\"s\"]\nrestart = \"never\"\nnumprocesses = 3";
    let mut run = Scenario::of(&(socket("so_reuseport = true") + &watcher("a", lines)));
    run.begin();
    run.all_spawned(&["a/1", "a/2", "a/3"]);
    assert_eq!(
        run.exits("a/2", CODE_0),
        ["kill leftovers of a/2", "close shard s/2"]
    );
    // Who waits in it waits for the next start, ...
    assert_eq!(run.shard_owed("s", 2), NOTHING);
    // ... and the first is never closed.
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "shut shard s/1"]
    );
    assert_eq!(
        run.exits("a/3", CODE_0),
        ["kill leftovers of a/3", "open shard s/1"]
    );
    assert_eq!(run.state("a"), "stopped");
    assert_eq!(
        run.start(&["a"]),
        ["spawn a/1", "spawn a/2", "spawn a/3", "open shard s/2"]
    );
}

#[test]
fn stopped_is_not_waiting_and_start_means_now() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]\non_demand = true");
    let mut run = Scenario::of(&text);
    run.begin();
    assert_eq!(
        run.stop(&["a"]),
        [
            "answer 1: done: socket `s` stays open; clients wait in its queue",
            "unwatch s"
        ]
    );
    assert_eq!(run.traffic("s"), NOTHING);
    assert_eq!(run.start(&["a"]), ["spawn a/1"]);
    assert_eq!(run.spawned("a/1"), ["answer 2: done"]);
}

#[test]
fn a_socket_that_is_bound_late_is_passed_to_new_workers() {
    let other = "[socket.t]\nlisten = \"127.0.0.1:8001\"\n";
    let text = socket("optional = true") + other + &watcher("a", "sockets = [\"s\", \"t\"]");
    let mut run = Scenario::with_unbound(&text, &["s"]);
    assert_eq!(run.begin(), ["spawn a/1"]);
    run.spawned("a/1");
    assert_eq!(run.view().sockets[0].state, SocketState::Failed);
    assert_eq!(run.after(0.1), ["bind s"]);
    let socket = run.socket("s");
    for delay in [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0] {
        let error = "bind: still no such address".to_owned();
        run.event(Event::BindFailed { socket, error });
        assert_eq!(
            run.view().sockets[0].error,
            Some("bind: still no such address")
        );
        assert_eq!(run.after(delay - 0.001), NOTHING);
        assert_eq!(run.after(0.001), ["bind s"]);
    }
    let words = run.event(Event::Bound { socket });
    assert_eq!(words, ["spawn a/1'"], "with the socket this time");
    assert_eq!(run.proved("a/1'"), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1"]);
    assert_eq!(run.state("a"), "running");
}

#[test]
fn a_watcher_that_can_do_nothing_without_a_socket_waits_for_it() {
    let other = "[socket.t]\nlisten = \"127.0.0.1:8001\"\n";
    let told = "[watcher.a]\ncmd = \"program $(circus.socket.s)\"\nsockets = [\"s\", \"t\"]\nmax_retry = 1\n";
    let only = watcher("a", "sockets = [\"s\"]\nmax_retry = 1");
    for units in [only.as_str(), &format!("{other}{told}")] {
        let text = socket("optional = true") + units;
        let mut run = Scenario::with_unbound(&text, &["s"]);
        // Nobody is kept waiting for it.
        assert_eq!(run.begin(), ["tell the parent: ready"]);
        assert_eq!(run.state("a"), "waiting");
        assert_eq!(
            run.watcher("a").error.as_deref(),
            Some("socket `s` is not bound: bind: no such address")
        );
        assert_eq!(
            run.start(&["a"]),
            ["answer 1: done: watcher `a` waits: socket `s` is not bound: bind: no such address"]
        );
        run.succeeded(true);
        assert_eq!(run.state("a"), "waiting");
        run.stop(&["a"]);
        assert_eq!(run.state("a"), "stopped");
        run.start(&["a"]);
        run.after(0.1);
        let socket = run.socket("s");
        assert_eq!(run.event(Event::Bound { socket }), ["spawn a/1"]);
        run.spawned("a/1");
        assert_eq!(run.state("a"), "running");
        assert_eq!(run.watcher("a").error, None);
    }
}

#[test]
fn a_watcher_says_whom_it_waits_for_until_they_are_ready() {
    let slow = "ready_delay = 2";
    let text = [
        watcher("db", slow),
        watcher("cache", slow),
        watcher("job", "autostart = false"),
        watcher("app", "after = [\"db\", \"cache\", \"job\"]"),
    ];
    let mut run = Scenario::of(&text.concat());
    run.begin();
    let waits_for = |run: &mut Scenario| {
        let view = run.watcher("app");
        let names: Vec<String> = view.waits_for.iter().map(|it| it.to_string()).collect();
        (names, view.error)
    };
    let both = vec!["cache".to_string(), "db".to_string()];
    assert_eq!(waits_for(&mut run), (both, None));
    run.spawned("db/1");
    run.after(2.0);
    assert_eq!(waits_for(&mut run), (vec!["cache".to_string()], None));
    run.spawned("cache/1");
    run.after(2.0);
    assert_eq!(waits_for(&mut run), (vec![], None));
}

// Commands.

#[test]
fn start_reports_the_first_failure_and_the_manager_goes_on_trying() {
    let mut run = Scenario::of(&watcher("a", "autostart = false"));
    run.begin();
    run.start(&["a"]);
    let words = run.spawn_failed("a/1");
    let [spawn, answer] = words.as_slice() else {
        panic!("{words:?}");
    };
    assert_eq!(spawn, "spawn a/1");
    assert!(
        answer.starts_with("answer 1: failed: watcher `a`: worker 1 could not be started: exec"),
        "{answer}"
    );
    assert!(answer.ends_with("the manager goes on trying"), "{answer}");
    assert_eq!(run.spawned("a/1"), NOTHING);
    assert_eq!(run.state("a"), "running");
}

#[test]
fn start_says_what_has_become_of_a_failure_while_it_waited_for_others() {
    let of = |max_retry: u32| {
        let fails = watcher("a", &format!("autostart = false\nmax_retry = {max_retry}"));
        let slow = watcher("b", "autostart = false\nready_delay = 2");
        let mut run = Scenario::of(&format!("{fails}{slow}"));
        run.begin();
        run.start(&["a", "b"]);
        run.spawned("b/1");
        run
    };
    let mut run = of(2);
    run.spawn_failed("a/1");
    run.spawn_failed("a/1");
    assert_eq!(run.state("a"), "failed");
    let words = run.after(2.0);
    assert!(
        words[0].ends_with(
            "given up after 2 failed starts (`max_retry`); `tentpole start a` tries again"
        ),
        "{words:?}"
    );

    let mut run = of(3);
    run.spawn_failed("a/1");
    run.spawned("a/1");
    let words = run.after(2.0);
    assert!(
        words[0].ends_with("No such file or directory; it is `running` by now"),
        "{words:?}"
    );

    let mut run = of(3);
    run.spawn_failed("a/1");
    run.spawn_failed("a/1");
    let words = run.after(2.0);
    assert!(
        words.iter().any(|it| it.starts_with("answer 1: failed")
            && it.ends_with("goes on trying, for up to 3 failed starts in a row (`max_retry`)")),
        "{words:?}"
    );
}

#[test]
fn start_is_done_when_all_are_ready() {
    let mut run = Scenario::of(&watcher(
        "a",
        "type = \"notify\"\nnumprocesses = 2\nautostart = false",
    ));
    run.begin();
    assert_eq!(run.start(&["a"]), ["spawn a/1", "spawn a/2"]);
    run.all_spawned(&["a/1", "a/2"]);
    assert_eq!(run.says_ready("a/2"), NOTHING);
    assert_eq!(run.says_ready("a/1"), ["answer 1: done"]);
    assert_eq!(run.start(&["a"]), ["answer 2: done"]);
    assert_eq!(
        run.progress.last().map(String::as_str),
        Some("2: a running 2/2")
    );
    assert!(run.progress.contains(&"1: a starting 1/2".to_owned()));
}

#[test]
fn restart_replaces_every_worker() {
    let mut run = running("numprocesses = 2");
    assert_eq!(
        run.restart(&["a"]),
        ["TERM to a/1", "CONT to a/1", "TERM to a/2", "CONT to a/2"]
    );
    assert_eq!(run.ends("a/2"), ["kill leftovers of a/2", "spawn a/2"]);
    assert_eq!(run.spawned("a/2"), NOTHING);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "spawn a/1"]);
    assert_eq!(run.spawned("a/1"), ["answer 1: done"]);
}

#[test]
fn a_restart_is_running_again_when_all_of_its_workers_are_ready() {
    let mut run = running("numprocesses = 3\nwarmup_delay = 0.4");
    for slot in ["a/2", "a/3"] {
        assert_eq!(run.state("a"), "starting");
        run.after(0.4);
        run.spawned(slot);
    }
    assert_eq!(run.state("a"), "running");
    run.restart(&["a"]);
    assert_eq!(run.state("a"), "starting", "they are asked to end");
    run.ends("a/1");
    run.ends("a/2");
    run.ends("a/3");
    for slot in ["a/1", "a/2", "a/3"] {
        assert_eq!(run.state("a"), "starting", "{slot} is missing");
        run.after(0.4);
        run.spawned(slot);
    }
    assert_eq!(run.state("a"), "running");
    let ended: Vec<&str> = (run.progress.iter())
        .filter_map(|line| line.strip_prefix("1: a running "))
        .collect();
    assert_eq!(ended, ["3/3"], "{:?}", run.progress);
}

#[test]
fn a_scale_up_is_running_again_when_all_of_its_workers_are_ready() {
    let mut run = running("type = \"notify\"");
    run.says_ready("a/1");
    assert_eq!(run.state("a"), "running");
    run.command(scale("a", Amount::To(3)));
    run.all_spawned(&["a/2", "a/3"]);
    run.says_ready("a/3");
    assert_eq!(run.state("a"), "starting");
    // One that fails has never been ready.
    run.exits("a/2", CODE_1);
    run.spawned("a/2");
    run.exits("a/2", CODE_1);
    assert_eq!(run.state("a"), "backoff");
    run.after(0.1);
    run.spawned("a/2");
    run.says_ready("a/2");
    assert_eq!(run.state("a"), "running");
    run.command(scale("a", Amount::To(1)));
    assert_eq!(run.state("a"), "running", "those that stay are ready");
}

#[test]
fn a_watcher_is_running_while_one_of_its_workers_is_replaced_after_a_death() {
    let mut run = running("type = \"notify\"\nnumprocesses = 2");
    run.says_ready("a/1");
    run.says_ready("a/2");
    run.exits("a/1", CODE_1);
    assert_eq!(run.state("a"), "running", "the other serves");
    assert_eq!(run.watcher("a").ready, 1);
    run.spawned("a/1");
    run.exits("a/1", CODE_1);
    assert_eq!(run.state("a"), "running", "in backoff too");
    run.exits("a/2", CODE_1);
    assert_eq!(run.state("a"), "starting", "nobody serves");
}

#[test]
fn a_command_with_an_unknown_name_does_nothing() {
    let mut run = running("");
    assert_eq!(run.stop(&["a", "b"]), ["answer 1: no watcher b"]);
    assert_eq!(run.state("a"), "running");
}

#[test]
fn a_command_for_a_socket_names_its_watchers_and_does_nothing() {
    let text = socket("")
        + &watcher("a", "sockets = [\"s\"]")
        + &watcher("b", "sockets = [\"s\"]\npriority = 1");
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    assert_eq!(
        run.stop(&["a", "s"]),
        ["answer 1: s is the socket of b a"],
        "in start order"
    );
    assert_eq!(run.state("a"), "running");
}

#[test]
fn clients_are_said_to_wait_only_where_no_other_watcher_serves_the_socket() {
    let text = socket("")
        + &watcher("a", "sockets = [\"s\"]")
        + &watcher("b", "sockets = [\"s\"]\nautostart = false");
    let mut run = Scenario::of(&text);
    run.begin();
    run.spawned("a/1");
    run.start(&["b"]);
    run.spawned("b/1");
    run.stop(&["a"]);
    let words = run.ends("a/1");
    assert_eq!(words.last().map(String::as_str), Some("answer 2: done"));
    run.stop(&["b"]);
    let words = run.ends("b/1");
    assert_eq!(
        words.last().map(String::as_str),
        Some("answer 3: done: socket `s` stays open; clients wait in its queue")
    );
}

#[test]
fn who_went_away_is_not_answered() {
    let mut run = running("");
    run.stop(&["a"]);
    let request = RequestId(1);
    assert_eq!(run.event(Event::Abandoned { request }), NOTHING);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1"]);
    assert_eq!(run.state("a"), "stopped", "the stop goes on");
}

#[test]
fn scale_adds_and_takes_away_from_the_end() {
    let mut run = running("numprocesses = 2");
    assert_eq!(run.command(scale("a", Amount::By(1))), ["spawn a/3"]);
    assert_eq!(run.spawned("a/3"), ["answer 1: done"]);
    assert_eq!(
        run.command(scale("a", Amount::To(1))),
        ["TERM to a/3", "CONT to a/3", "TERM to a/2", "CONT to a/2"]
    );
    assert_eq!(run.ends("a/3"), ["kill leftovers of a/3"]);
    assert_eq!(run.ends("a/2"), ["kill leftovers of a/2", "answer 2: done"]);
    assert_eq!(run.watcher("a").workers.len(), 1);
    assert_eq!(
        run.command(scale("a", Amount::By(-7))),
        ["TERM to a/1", "CONT to a/1"]
    );
    assert_eq!(run.watcher("a").wanted, 0);
}

#[test]
fn a_wid_that_comes_back_goes_on_counting_its_workers() {
    let mut run = running("numprocesses = 3");
    run.exits("a/3", CODE_1);
    run.spawned("a/3");
    let generations = |run: &Scenario| -> Vec<u64> {
        let workers = &run.watcher("a").workers;
        workers.iter().map(|worker| worker.generation).collect()
    };
    assert_eq!(generations(&run), [1, 1, 2]);
    run.command(scale("a", Amount::To(1)));
    run.ends("a/3");
    run.ends("a/2");
    // Another manager knows of it too.
    run.succeeded(false);
    run.command(scale("a", Amount::To(4)));
    run.all_spawned(&["a/2", "a/3", "a/4"]);
    assert_eq!(generations(&run), [1, 2, 3, 1]);
}

#[test]
fn scaling_a_watcher_that_waits_for_its_turn_is_done_when_it_runs() {
    let text = "[manager]\nwarmup_delay = 1\n".to_owned() + &watcher("a", "") + &watcher("b", "");
    let mut run = Scenario::of(&text);
    run.begin();
    assert_eq!(run.command(scale("b", Amount::To(2))), NOTHING);
    assert_eq!(run.after(1.0), ["spawn b/1", "spawn b/2"]);
    assert_eq!(run.spawned("b/1"), NOTHING);
    assert_eq!(run.spawned("b/2"), ["answer 1: done"]);
}

#[test]
fn a_singleton_is_not_scaled_up() {
    let mut run = running("singleton = true");
    let words = run.command(scale("a", Amount::To(2)));
    assert!(words[0].starts_with("answer 1: refused: "), "{words:?}");
    assert_eq!(run.watcher("a").wanted, 1);
}

#[test]
fn a_shard_is_emptied_before_its_worker_goes() {
    let lines = "sockets = [\"s\"]\nnumprocesses = 2\ngraceful_timeout = 4";
    let text = socket("so_reuseport = true") + &watcher("a", lines);
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "a/2"]);
    let down = || scale("a", Amount::To(1));
    assert_eq!(run.command(down()), ["drain a/2"]);
    assert_eq!(run.drained("a/2"), ["TERM to a/2", "CONT to a/2"]);
    assert_eq!(
        run.ends("a/2"),
        ["kill leftovers of a/2", "answer 1: done", "close shard s/2"]
    );
    assert_eq!(run.shard_closed("s", 2), NOTHING);
    assert_eq!(run.command(scale("a", Amount::To(2))), ["spawn a/2"]);
    run.spawned("a/2");
    assert_eq!(run.command(down()), ["drain a/2"]);
    assert_eq!(run.after(3.999), NOTHING);
    assert_eq!(run.after(0.001), ["TERM to a/2", "CONT to a/2"]);
    assert_eq!(run.after(4.0), ["kill a/2"]);
}

#[test]
fn a_shard_with_clients_gets_another_worker_until_they_are_served() {
    let lines = "sockets = [\"s\"]\nnumprocesses = 2\nrestart_delay = 1";
    let text = socket("so_reuseport = true") + &watcher("a", lines);
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "a/2"]);
    run.command(scale("a", Amount::To(1)));
    run.exits("a/2", Exit::Signal(Signal(9)));
    assert_eq!(run.gone("a/2"), ["answer 1: done", "close shard s/2"]);
    assert_eq!(run.shard_owed("s", 2), ["spawn a/2"]);
    assert_eq!(run.spawned("a/2"), ["drain a/2"]);
    assert_eq!(run.state("a"), "running");
    // It does not serve them either: the next one comes after a while.
    run.after(30.0);
    assert_eq!(
        run.ends("a/2"),
        ["kill leftovers of a/2", "close shard s/2"]
    );
    assert_eq!(run.shard_owed("s", 2), NOTHING);
    assert_eq!(run.after(0.999), NOTHING);
    assert_eq!(run.after(0.001), ["spawn a/2"]);
    run.spawned("a/2");
    assert_eq!(run.drained("a/2"), ["TERM to a/2", "CONT to a/2"]);
    assert_eq!(
        run.ends("a/2"),
        ["kill leftovers of a/2", "close shard s/2"]
    );
    assert_eq!(run.shard_closed("s", 2), NOTHING);
    // If it is wanted again, what waits in it is served anyhow.
    run.command(scale("a", Amount::To(2)));
    run.spawned("a/2");
    run.command(scale("a", Amount::To(1)));
    assert_eq!(run.command(scale("a", Amount::To(2))), ["open shard s/2"]);
}

#[test]
fn what_waits_in_the_shards_of_a_stopped_watcher_is_served_when_it_starts() {
    let lines = "sockets = [\"s\"]\nnumprocesses = 3";
    let text = socket("so_reuseport = true") + &watcher("a", lines);
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "a/2", "a/3"]);
    run.stop(&["a"]);
    for slot in ["a/1", "a/2", "a/3"] {
        run.ends(slot);
    }
    assert_eq!(
        run.command(scale("a", Amount::To(1))),
        ["answer 2: done", "close shard s/2", "close shard s/3"]
    );
    run.shard_closed("s", 2);
    assert_eq!(run.shard_owed("s", 3), NOTHING);
    assert_eq!(run.start(&["a"]), ["spawn a/1", "spawn a/3"]);
    // The command does not wait for the worker that nobody has asked for.
    assert_eq!(run.spawned("a/1"), ["answer 3: done"]);
    assert_eq!(run.spawned("a/3"), ["drain a/3"]);
    assert_eq!(run.drained("a/3"), ["TERM to a/3", "CONT to a/3"]);
    assert_eq!(
        run.ends("a/3"),
        ["kill leftovers of a/3", "close shard s/3"]
    );
}

#[test]
fn watchers_that_share_a_socket_share_its_shards() {
    let lines = |count: u32| format!("sockets = [\"s\"]\nnumprocesses = {count}");
    let text = socket("so_reuseport = true") + &watcher("a", &lines(3)) + &watcher("b", &lines(2));
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "a/2", "a/3", "b/1", "b/2"]);
    assert_eq!(
        run.command(scale("a", Amount::To(1))),
        ["drain a/3", "TERM to a/2", "CONT to a/2"]
    );
    run.ends("a/2");
    run.exits("a/3", Exit::Signal(Signal(9)));
    assert_eq!(run.gone("a/3"), ["answer 1: done", "close shard s/3"]);
    run.stop(&["a"]);
    run.ends("a/1");
    // Whoever is up serves what the other has left.
    assert_eq!(run.shard_owed("s", 3), ["spawn b/3"]);
    assert_eq!(run.spawned("b/3"), ["drain b/3"]);
}

#[test]
fn a_signal_reaches_those_that_are_meant() {
    let mut run = running("numprocesses = 2");
    let mut signal = |wid, children| {
        run.command(Command::Signal {
            name: "a".into(),
            signal: Signal(1),
            wid,
            children,
        })
    };
    assert_eq!(
        signal(None, false),
        [
            "HUP to a/1",
            "HUP to a/2",
            "answer 1: done: sent to 2 workers"
        ]
    );
    assert_eq!(
        signal(Some(2), true),
        ["HUP to group of a/2", "answer 2: done: sent to 1 worker"]
    );
    assert_eq!(
        signal(Some(3), false),
        ["answer 3: refused: watcher `a` has no running worker 3"]
    );
}

// What the random schedules have found.

#[test]
fn a_worker_that_ends_during_the_shutdown_is_not_replaced() {
    let mut run = Scenario::of(&(watcher("a", "") + &watcher("b", "after = [\"a\"]")));
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    run.terminate();
    assert_eq!(run.exits("a/1", CODE_1), ["kill leftovers of a/1"]);
    assert_eq!(run.gone("a/1"), NOTHING);
    assert_eq!(run.ends("b/1"), ["kill leftovers of b/1", "finish 0"]);
}

#[test]
fn shutdown_keeps_its_order_when_something_that_others_require_does_not_run() {
    let text = watcher("a", "restart_delay = 60\nrestart_max_delay = 60")
        + &watcher("b", "requires = [\"a\"]")
        + &watcher("c", "after = [\"b\"]");
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "b/1", "c/1"]);
    run.exits("a/1", CODE_1);
    run.spawn_failed("a/1");
    assert_eq!(run.state("a"), "backoff");
    assert_eq!(
        run.terminate(),
        ["tell the parent: stopping", "TERM to c/1", "CONT to c/1"]
    );
}

#[test]
fn stop_during_the_shutdown_waits_for_its_turn() {
    let mut run = Scenario::of(&(watcher("a", "") + &watcher("b", "priority = -1")));
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    run.terminate();
    assert_eq!(run.stop(&["a"]), NOTHING);
    assert_eq!(
        run.ends("b/1"),
        ["kill leftovers of b/1", "TERM to a/1", "CONT to a/1"]
    );
    assert_eq!(
        run.ends("a/1"),
        ["kill leftovers of a/1", "answer 1: done", "finish 0"]
    );
}

#[test]
fn a_process_that_comes_after_the_stop_was_forced_is_killed() {
    let mut run = Scenario::of(&watcher("a", ""));
    run.begin();
    assert_eq!(run.terminate(), ["tell the parent: stopping", "cancel a/1"]);
    run.terminate();
    assert_eq!(run.spawned("a/1"), ["kill a/1"]);
}

#[test]
fn stop_waits_for_the_leftovers_of_a_worker_that_ended_before_its_turn() {
    let mut run = Scenario::of(&(watcher("a", "") + &watcher("b", "requires = [\"a\"]")));
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    assert_eq!(run.stop(&["a"]), ["TERM to b/1", "CONT to b/1"]);
    assert_eq!(run.exits("a/1", CODE_1), ["kill leftovers of a/1"]);
    assert_eq!(run.ends("b/1"), ["kill leftovers of b/1"]);
    assert_eq!(run.gone("a/1"), ["answer 1: done"]);
}

#[test]
fn without_a_graceful_timeout_the_others_are_waited_for_too() {
    let mut run = running("graceful_timeout = \"infinity\"\nstop_children = true");
    run.stop(&["a"]);
    assert_eq!(run.exits("a/1", TERM), ["await leftovers of a/1"]);
    assert_eq!(run.after(100_000.0), NOTHING);
    run.terminate();
    assert_eq!(run.terminate(), ["kill leftovers of a/1"]);
}

#[test]
fn what_is_left_of_a_worker_can_not_speak_for_it() {
    let mut run = running("notify_access = \"all\"");
    run.stop(&["a"]);
    run.exits("a/1", TERM);
    let claim = message(|it| (it.main_pid, it.status) = (Some(9), Some("alive".into())));
    assert_eq!(run.notifies("a/1", Sender::Other(Pid(9)), claim), NOTHING);
    assert_eq!(run.watcher("a").workers[0].status, None);
}

#[test]
fn a_killed_worker_is_stopping_since_then() {
    let mut run = Scenario::of(&(watcher("a", "") + &watcher("b", "after = [\"a\"]")));
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    run.after(5.0);
    run.terminate();
    assert_eq!(run.terminate(), ["kill a/1", "kill b/1"]);
    run.after(1.0);
    let stopping_since = run.watcher("a").workers[0].since;
    assert_eq!(run.now - stopping_since, Duration::from_secs(1));
}

#[test]
fn a_watcher_whose_last_worker_is_scaled_away_has_run_out() {
    let lines = "sockets = [\"s\"]\non_demand = true\nnumprocesses = 2";
    let mut run = Scenario::of(&(socket("") + &watcher("a", lines)));
    run.begin();
    run.traffic("s");
    run.all_spawned(&["a/1", "a/2"]);
    run.ends("a/1");
    run.command(scale("a", Amount::To(1)));
    assert_eq!(run.ends("a/2"), ["kill leftovers of a/2", "answer 1: done"]);
    assert_eq!(run.state("a"), "waiting");

    let mut run = running("restart = \"never\"\nnumprocesses = 2");
    run.ends("a/1");
    run.command(scale("a", Amount::To(1)));
    run.ends("a/2");
    assert_eq!(run.state("a"), "stopped");
}

#[test]
fn a_worker_that_ended_for_good_stays_so_when_others_are_added() {
    let mut run = running("restart = \"never\"\nnumprocesses = 2");
    run.ends("a/1");
    assert_eq!(run.command(scale("a", Amount::By(1))), ["spawn a/3"]);
    run.spawned("a/3");
    assert_eq!(run.watcher("a").ready, 2);
}

#[test]
fn a_shard_is_opened_when_its_worker_is_made() {
    // Until then there is nothing to close.
    for lines in ["autostart = false", "on_demand = true"] {
        let lines = format!("sockets = [\"s\"]\nnumprocesses = 3\n{lines}");
        let mut run = Scenario::of(&(socket("so_reuseport = true") + &watcher("a", &lines)));
        run.begin();
        let down = scale("a", Amount::To(1));
        assert_eq!(run.command(down), ["answer 1: done"]);
    }
    // A start that takes its time keeps clients from those that come later.
    let lines = "sockets = [\"s\"]\nnumprocesses = 2\nwarmup_delay = 60";
    let mut run = Scenario::of(&(socket("so_reuseport = true") + &watcher("a", lines)));
    assert_eq!(run.begin(), ["spawn a/1"]);
    run.spawned("a/1");
    assert_eq!(run.after(60.0), ["spawn a/2"]);
    run.spawned("a/2");
    run.stop(&["a"]);
    run.ends("a/1");
    run.ends("a/2");
    run.after(60.0);
    assert_eq!(run.start(&["a"]), ["spawn a/1", "shut shard s/2"]);
    run.spawned("a/1");
    assert_eq!(run.after(60.0), ["spawn a/2", "open shard s/2"]);
}

/// `a` has two workers and runs, `b` has three on the same socket.
fn two_on_shards(lines: &str) -> String {
    let own = |count: u32| format!("sockets = [\"s\"]\nnumprocesses = {count}\n");
    socket("so_reuseport = true") + &watcher("a", &own(2)) + &watcher("b", &(own(3) + lines))
}

#[test]
fn shards_of_a_watcher_that_is_stopped_get_no_clients_while_another_is_up() {
    let mut run = Scenario::of(&two_on_shards(""));
    run.begin();
    run.all_spawned(&["a/1", "a/2", "b/1", "b/2", "b/3"]);
    assert_eq!(
        run.stop(&["b"]),
        [
            "TERM to b/1",
            "CONT to b/1",
            "TERM to b/2",
            "CONT to b/2",
            "drain b/3"
        ]
    );
    run.ends("b/1");
    run.ends("b/2");
    // It did not serve them all.
    run.exits("b/3", Exit::Signal(Signal(9)));
    assert_eq!(run.gone("b/3"), ["answer 1: done", "close shard s/3"]);
    assert_eq!(run.shard_owed("s", 3), ["spawn a/3"]);
    assert_eq!(run.spawned("a/3"), ["drain a/3"]);
    // Where nobody is up they wait for a start.
    run.stop(&["a"]);
    for slot in ["a/1", "a/2", "a/3"] {
        run.ends(slot);
    }
    assert_eq!(
        run.start(&["b"]),
        ["spawn b/1", "spawn b/2", "spawn b/3", "open shard s/3"]
    );
}

#[test]
fn shards_of_a_watcher_that_fails_or_ends_get_no_clients_while_another_is_up() {
    // It is given up, ...
    let mut run = Scenario::of(&two_on_shards("max_retry = 1"));
    run.begin();
    run.all_spawned(&["a/1", "a/2", "b/1"]);
    run.spawn_failed("b/2");
    assert_eq!(run.state("b"), "stopping");
    assert_eq!(run.spawn_cancelled("b/3"), ["close shard s/3"]);
    assert_eq!(run.shard_owed("s", 3), ["spawn a/3"]);

    // ... its job is done, ...
    let mut run = Scenario::of(&two_on_shards("type = \"oneshot\""));
    run.begin();
    run.all_spawned(&["a/1", "a/2", "b/1", "b/2", "b/3"]);
    run.exits("b/1", Exit::Code(0));
    run.exits("b/2", Exit::Code(0));
    assert_eq!(
        run.exits("b/3", Exit::Code(0)),
        [
            "kill leftovers of b/3",
            "close shard s/3",
            "tell the parent: ready"
        ]
    );
    assert_eq!(run.state("b"), "stopped");

    // ... or it waits for another, which some day may be ready.
    let text = two_on_shards("after = [\"c\"]") + &watcher("c", "type = \"notify\"");
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "a/2", "c/1"]);
    run.says_ready("c/1");
    run.all_spawned(&["b/1", "b/2", "b/3"]);
    run.stop(&["b", "c"]);
    run.drained("b/3");
    for slot in ["b/1", "b/2", "b/3"] {
        run.ends(slot);
    }
    run.ends("c/1");
    run.shard_owed("s", 3);
    assert_eq!(run.start(&["b", "c"]), ["spawn c/1"]);
    run.spawned("a/3");
    run.drained("a/3");
    assert_eq!(
        run.ends("a/3"),
        ["kill leftovers of a/3", "close shard s/3"]
    );
}

#[test]
fn shards_of_a_watcher_that_traffic_starts_stay() {
    let mut run = Scenario::of(&two_on_shards("on_demand = true"));
    run.begin();
    run.all_spawned(&["a/1", "a/2"]);
    run.traffic("s");
    run.all_spawned(&["b/1", "b/2", "b/3"]);
    for slot in ["b/1", "b/2"] {
        run.exits(slot, Exit::Code(0));
    }
    assert_eq!(
        run.exits("b/3", Exit::Code(0)),
        ["kill leftovers of b/3", "watch s"]
    );
}

#[test]
fn of_several_critical_watchers_the_cause_decides_on_the_code() {
    let text = watcher("a", "critical = true\nmax_retry = 1")
        + &watcher("b", "critical = true\nrequires = [\"a\"]");
    let mut run = Scenario::of(&text);
    run.begin();
    assert_eq!(
        run.spawn_failed("a/1"),
        ["tell the parent: stopping", "finish 127"]
    );
}

#[test]
fn start_says_that_the_worker_failed_even_if_the_watcher_only_waits_again() {
    let lines = "sockets = [\"s\"]\non_demand = true\nrestart = \"never\"\ntype = \"notify\"";
    let mut run = Scenario::of(&(socket("") + &watcher("a", lines)));
    run.begin();
    run.start(&["a"]);
    let words = run.spawn_failed("a/1");
    assert_eq!(run.state("a"), "waiting");
    let answer = words.first().expect("there is an answer");
    assert!(
        answer.starts_with("answer 1: failed: watcher `a`: "),
        "{answer}"
    );
}

#[test]
fn what_waits_for_its_start_waits_on_if_what_it_is_after_is_not_ready_any_more() {
    let text = "[manager]\nwarmup_delay = 1\n".to_owned()
        + &socket("")
        + &watcher("a", "sockets = [\"s\"]\non_demand = true\npriority = 1")
        + &watcher("b", "priority = 1")
        + &watcher("c", "after = [\"a\"]");
    let mut run = Scenario::of(&text);
    assert_eq!(run.begin(), ["watch s", "spawn b/1"]);
    assert_eq!(run.traffic("s"), ["unwatch s"]);
    assert_eq!(run.after(1.0), ["spawn a/1"]);
    assert_eq!(run.after(5.0), NOTHING, "a is not ready");
    assert_eq!(run.spawned("a/1"), ["spawn c/1"]);
}

#[test]
fn a_stop_that_waited_for_another_goes_on_when_that_is_started_again() {
    let mut run = Scenario::of(&(watcher("a", "") + &watcher("b", "after = [\"a\"]")));
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    assert_eq!(run.stop(&[]), ["TERM to b/1", "CONT to b/1"]);
    let words = run.start(&["b"]);
    assert!(words.contains(&"TERM to a/1".to_owned()), "{words:?}");
}

#[test]
fn a_oneshot_that_succeeds_ends_the_row_of_failed_starts() {
    let lines = "type = \"oneshot\"\nnumprocesses = 2\nmax_retry = 2";
    let mut run = running(lines);
    run.exits("a/1", CODE_1);
    run.ends("a/2");
    run.spawned("a/1");
    assert_eq!(run.exits("a/1", CODE_1), ["kill leftovers of a/1"]);
    assert_eq!(run.state("a"), "backoff");
}

#[test]
fn a_manager_that_is_told_to_end_before_it_begins_does_not_begin() {
    let mut run = Scenario::of(&watcher("a", ""));
    assert_eq!(run.terminate(), ["tell the parent: stopping", "finish 0"]);
    let mut effects = Vec::new();
    run.supervisor.handle(run.now, Event::Begin, &mut effects);
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn nothing_is_due_when_nothing_is_to_come() {
    let text = "[manager]\nwarmup_delay = 5\n".to_owned()
        + &watcher("a", "numprocesses = 2\nwarmup_delay = 5")
        + &watcher("b", "");
    let mut run = Scenario::of(&text);
    run.begin();
    assert!(run.supervisor.next_deadline().is_some());
    run.spawned("a/1");
    run.stop(&[]);
    run.ends("a/1");
    // It was due for its delay only, and is not wanted any more.
    assert_eq!(
        run.stop(&["b"]).last().map(String::as_str),
        Some("answer 2: done")
    );
    run.after(0.0);
    let late = run.supervisor.next_deadline().map(|at| at - run.now);
    assert!(
        late.is_none_or(|late| late > Duration::from_secs(20)),
        "{late:?}"
    );
}

#[test]
fn nothing_is_bound_while_the_manager_ends() {
    let other = "[socket.t]\nlisten = \"127.0.0.1:8001\"\n";
    let text = socket("optional = true") + other + &watcher("a", "sockets = [\"s\", \"t\"]");
    let mut run = Scenario::with_unbound(&text, &["s"]);
    run.begin();
    run.spawned("a/1");
    run.terminate();
    assert_eq!(run.after(20.0), NOTHING);
}

#[test]
fn backoff_keeps_its_reason_whatever_happens_to_another_worker() {
    let mut run =
        running("numprocesses = 2\nrestart_delay = 60\nrestart_max_delay = 60\nrestart_reset = 1");
    run.exits("a/1", CODE_1);
    run.spawn_failed("a/1");
    run.exits("a/2", Exit::Code(7));
    run.spawned("a/2");
    run.after(0.5);
    // What is wrong now goes before what was, even if that is newer.
    for (wait, left) in [(0.0, "59.5 s"), (2.5, "57 s")] {
        run.after(wait);
        let error = run.watcher("a").error.expect("worker 1 is in backoff");
        assert!(
            error.starts_with("worker 1 could not be started"),
            "{error}"
        );
        assert!(error.ends_with(&format!("next try in {left}")), "{error}");
    }
}
