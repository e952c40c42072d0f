//! Reloads: rolling, by age, by signal.

use super::*;

/// The last of what is said, which is the answer.
fn answer(words: &[String]) -> &str {
    let found = words.iter().find(|word| word.starts_with("answer"));
    found.map_or("", String::as_str)
}

fn reloading() -> Message {
    message(|it| it.reloading = true)
}

#[test]
fn a_reload_replaces_one_worker_after_the_other_and_only_by_one_that_is_ready() {
    let mut run = running("type = \"notify\"\nnumprocesses = 2");
    run.says_ready("a/1");
    run.says_ready("a/2");
    assert_eq!(run.reload(&["a"]), ["spawn a/1'"]);
    assert_eq!(run.state("a"), "reloading");
    assert_eq!(run.spawned("a/1'"), NOTHING);
    assert_eq!(run.watcher("a").workers.len(), 3);
    assert_eq!(run.watcher("a").ready, 2);
    assert_eq!(run.says_ready("a/1'"), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(run.exits("a/1", TERM), ["kill leftovers of a/1"]);
    assert_eq!(run.gone("a/1"), ["spawn a/2'"]);
    run.spawned("a/2'");
    run.says_ready("a/2'");
    run.exits("a/2", TERM);
    assert_eq!(run.gone("a/2"), ["answer 1: done"]);
    assert_eq!(run.state("a"), "running");
    let shown = run.watcher("a");
    let generations: Vec<_> = shown.workers.iter().map(|it| it.generation).collect();
    assert_eq!(generations, [2, 2]);
    assert_eq!(shown.restarts, 0);
}

#[test]
fn reload_surge_says_how_many_are_replaced_at_once() {
    let mut run = running("numprocesses = 3\nreload_surge = 2");
    assert_eq!(run.reload(&["a"]), ["spawn a/1'", "spawn a/2'"]);
    run.all_proved(&["a/1'", "a/2'"]);
    assert_eq!(run.exits("a/2", TERM), ["kill leftovers of a/2"]);
    assert_eq!(run.gone("a/2"), ["spawn a/3'"], "room for the next");
}

#[test]
fn a_replacement_that_can_not_be_made_leaves_all_as_it_was() {
    let mut run = running("numprocesses = 2");
    run.reload(&["a"]);
    let words = run.spawn_failed("a/1'");
    let [answer] = words.as_slice() else {
        panic!("{words:?}");
    };
    assert!(
        answer.starts_with("answer 1: failed: watcher `a`: the replacement of worker 1 could not"),
        "{answer}"
    );
    assert!(answer.ends_with("it keeps what it had"), "{answer}");
    assert_eq!(run.state("a"), "running");
    assert_eq!(run.watcher("a").workers[0].generation, 1);
    let error = run.watcher("a").error.expect("a failed reload is shown");
    assert!(
        error.starts_with("reload: the replacement of worker 1"),
        "{error}"
    );
    // The next that goes well makes up for it.
    run.reload(&["a"]);
    run.proved("a/1'");
    run.ends("a/1");
    run.proved("a/2'");
    run.ends("a/2");
    assert_eq!(run.watcher("a").error, None);
    assert_eq!(run.watcher("a").restarts, 0);
}

#[test]
fn who_serves_is_not_stopped_for_a_program_that_fails_at_once() {
    let mut run = running("");
    run.reload(&["a"]);
    assert_eq!(run.spawned("a/1'"), NOTHING);
    assert_eq!(run.after(0.099), NOTHING);
    let words = run.ends("a/1'");
    assert!(answer(&words).contains("exited with code 0"), "{words:?}");
    assert_eq!(run.watcher("a").workers[0].generation, 1);

    // It may be asked to prove itself for longer, not for less.
    let mut run = running("ready_delay = 1");
    run.after(1.0);
    run.reload(&["a"]);
    assert_eq!(run.spawned("a/1'"), NOTHING);
    assert_eq!(run.after(0.999), NOTHING);
    assert_eq!(run.after(0.001), ["TERM to a/1", "CONT to a/1"]);

    // What says itself that it is ready is believed.
    let mut run = running("type = \"notify\"");
    run.says_ready("a/1");
    run.reload(&["a"]);
    run.spawned("a/1'");
    assert_eq!(run.says_ready("a/1'"), ["TERM to a/1", "CONT to a/1"]);
}

#[test]
fn a_replacement_that_is_late_is_stopped_and_so_are_the_others() {
    let lines = "type = \"notify\"\nnumprocesses = 2\nreload_surge = 2\nstart_timeout = 2";
    let mut run = running(lines);
    run.says_ready("a/1");
    run.says_ready("a/2");
    run.reload(&["a"]);
    run.spawned("a/1'");
    run.after(1.0);
    run.spawned("a/2'");
    assert_eq!(
        run.after(1.0),
        [
            "TERM to a/1'",
            "CONT to a/1'",
            "TERM to a/2'",
            "CONT to a/2'"
        ]
    );
    run.ends("a/1'");
    let words = run.ends("a/2'");
    assert!(
        answer(&words).contains("was not ready within 2s"),
        "{words:?}"
    );
    assert_eq!(run.watcher("a").ready, 2);
}

#[test]
fn a_replacement_that_says_that_it_stops_has_failed_if_it_was_not_ready() {
    let stops = || message(|it| it.stopping = true);
    let mut run = running("type = \"notify\"");
    run.says_ready("a/1");
    run.reload(&["a"]);
    run.spawned("a/1'");
    run.says("a/1'", stops());
    let words = run.ends("a/1'");
    assert!(
        answer(&words).contains("says that it is stopping"),
        "{words:?}"
    );

    // One that was ready may end for good reasons of its own.
    run.reload(&["a"]);
    run.spawned("a/1'");
    run.says_ready("a/1'");
    run.says("a/1'", stops());
    assert_eq!(run.ends("a/1'"), ["kill leftovers of a/1'", "spawn a/1'"]);
    run.spawned("a/1'");
    run.says_ready("a/1'");
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "answer 2: done"]);
}

#[test]
fn a_replacement_that_ends_badly_before_the_reload_is_over_ends_it() {
    let mut run = running("numprocesses = 2");
    run.reload(&["a"]);
    run.spawned("a/1'");
    run.ends("a/1");
    assert_eq!(
        run.exits("a/1'", CODE_1),
        ["kill leftovers of a/1'", "cancel a/2'", "spawn a/1"]
    );
    let words = run.spawn_cancelled("a/2'");
    assert!(answer(&words).contains("exited with code 1"), "{words:?}");
}

#[test]
fn a_singleton_is_stopped_first_and_started_then() {
    let mut run = running("singleton = true");
    assert_eq!(run.reload(&["a"]), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "spawn a/1"]);
    assert_eq!(run.spawned("a/1"), NOTHING);
    assert_eq!(run.after(0.1), ["answer 1: done"]);
    assert_eq!(run.watcher("a").restarts, 0);
}

#[test]
fn the_replacement_of_a_singleton_that_ends_at_once_brings_the_old_definition_back() {
    let mut run = running("singleton = true");
    run.apply(&watcher(
        "a",
        "singleton = true\nnumprocesses = 1\nnice = 1",
    ));
    run.ends("a/1");
    run.spawned("a/1");
    run.after(0.05);
    let words = run.exits("a/1", CODE_1);
    assert!(answer(&words).contains("failed"), "{words:?}");
    run.spawned("a/1");
    assert_eq!(run.state("a"), "running");
    assert_eq!(run.watcher("a").restarts, 0, "nobody has died that served");
    assert!(run.is_as(&watcher("a", "singleton = true")));
}

#[test]
fn a_replacement_that_takes_the_place_of_the_dead_has_to_stay_alive_too() {
    let mut run = running("");
    assert_eq!(run.reload(&["a"]), ["spawn a/1'"]);
    run.exits("a/1", CODE_1);
    assert_eq!(run.spawned("a/1'"), NOTHING);
    let words = run.exits("a/1'", CODE_1);
    assert!(answer(&words).contains("failed"), "{words:?}");
}

#[test]
fn a_reload_ends_every_backoff_at_once() {
    let mut run = running("numprocesses = 3\nrestart_delay = 60\nrestart_max_delay = 60");
    for slot in ["a/2", "a/3"] {
        run.exits(slot, CODE_1);
        run.spawn_failed(slot);
    }
    assert_eq!(run.reload(&["a"]), ["spawn a/1'", "spawn a/2", "spawn a/3"]);
}

#[test]
fn a_backoff_keeps_its_reason_when_a_reload_goes_well_after_one_that_did_not() {
    let lines = "numprocesses = 2\nmax_age = 10\nmax_age_variance = 0\nrestart_delay = 60\nrestart_max_delay = 60";
    let mut run = running(lines);
    run.after(5.0);
    run.exits("a/2", CODE_1);
    run.spawned("a/2");
    assert_eq!(run.after(5.0), ["spawn a/1'"]);
    run.exits("a/2", CODE_1);
    run.spawn_failed("a/1'");
    let shown = run.watcher("a").error.expect("the reload has failed");
    assert!(shown.starts_with("reload: "), "{shown}");
    assert_eq!(run.after(60.0), ["spawn a/1'", "spawn a/2"]);
    run.spawn_failed("a/2");
    run.proved("a/1'");
    run.ends("a/1");
    let shown = run.watcher("a").error.expect("worker 2 is in backoff");
    assert!(
        shown.starts_with("worker 2 could not be started"),
        "{shown}"
    );
}

#[test]
fn why_a_watcher_was_given_up_is_shown_even_if_a_reload_has_failed_too() {
    let lines = "type = \"notify\"\nmax_retry = 1\nnumprocesses = 2\nreload_surge = 2";
    let mut run = running(lines);
    run.says_ready("a/1");
    run.says_ready("a/2");
    run.reload(&["a"]);
    run.spawned("a/2'");
    run.spawn_failed("a/1'");
    run.exits("a/1", CODE_1);
    let words = run.spawn_failed("a/1");
    assert!(
        answer(&words).contains("the replacement of worker 1"),
        "{words:?}"
    );
    let shown = run.watcher("a").error.expect("a failed watcher says why");
    assert!(shown.contains("given up after 1 failed starts"), "{shown}");
}

#[test]
fn a_worker_that_dies_while_its_replacement_comes_is_followed_by_that() {
    let mut run = running("type = \"notify\"\nmax_retry = 1");
    run.says_ready("a/1");
    run.reload(&["a"]);
    assert_eq!(run.exits("a/1", CODE_1), ["kill leftovers of a/1"]);
    run.spawned("a/1'");
    assert_eq!(run.watcher("a").restarts, 1, "its death was made good");
    assert_eq!(run.says_ready("a/1'"), ["answer 1: done"]);
    assert_eq!(run.watcher("a").workers.len(), 1);
}

#[test]
fn a_worker_that_is_not_to_be_restarted_is_not_by_a_reload() {
    let mut run = running("restart = \"never\"\nnumprocesses = 2");
    run.reload(&["a"]);
    run.proved("a/1'");
    run.ends("a/1");
    assert_eq!(run.ends("a/2"), ["kill leftovers of a/2", "cancel a/2'"]);
    assert_eq!(run.spawn_cancelled("a/2'"), ["answer 1: done"]);
    assert_eq!(run.watcher("a").workers.len(), 1);
}

#[test]
fn a_worker_that_fails_while_its_replacement_becomes_ready_is_made_good_by_it() {
    let mut run = running("type = \"notify\"\nwatchdog = 1");
    run.says_ready("a/1");
    run.reload(&["a"]);
    run.spawned("a/1'");
    assert_eq!(run.after(1.0), ["ABRT to a/1", "CONT to a/1"]);
    assert_eq!(run.says_ready("a/1'"), NOTHING, "it ends already");
    assert_eq!(run.watcher("a").restarts, 1);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "answer 1: done"]);
}

#[test]
fn a_reload_during_a_reload_waits_for_its_end() {
    let mut run = running("");
    run.reload(&["a"]);
    assert_eq!(run.reload(&["a"]), NOTHING);
    assert_eq!(run.reload(&["a"]), NOTHING);
    run.proved("a/1'");
    assert_eq!(
        run.ends("a/1"),
        ["kill leftovers of a/1", "spawn a/1", "answer 1: done"]
    );
    run.proved("a/1");
    assert_eq!(
        run.ends("a/1'"),
        ["kill leftovers of a/1'", "answer 2: done", "answer 3: done"]
    );
}

#[test]
fn a_stop_ends_a_reload_and_a_restart_does_too() {
    let mut run = running("");
    run.reload(&["a"]);
    assert_eq!(
        run.stop(&["a"]),
        [
            "cancel a/1'",
            "TERM to a/1",
            "CONT to a/1",
            "answer 1: a superseded by stop"
        ]
    );
    run.spawn_cancelled("a/1'");
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "answer 2: done"]);

    let mut run = running("");
    run.reload(&["a"]);
    run.proved("a/1'");
    assert_eq!(
        run.restart(&["a"]),
        [
            "answer 1: a superseded by restart",
            "TERM to a/1'",
            "CONT to a/1'"
        ],
        "the old one is being stopped already"
    );
    run.ends("a/1");
    assert_eq!(run.ends("a/1'"), ["kill leftovers of a/1'", "spawn a/1"]);
    assert_eq!(run.spawned("a/1"), ["answer 2: done"]);
}

#[test]
fn a_reload_that_another_command_makes_needless_is_not_said_to_be_done() {
    let notify = "reload = \"HUP\"\ntype = \"notify\"";
    let mut run = running(notify);
    run.says_ready("a/1");
    run.reload(&["a"]);
    run.reload(&["a"]);
    let words = run.restart(&["a"]);
    assert_eq!(
        words[..2],
        [
            "answer 1: a superseded by restart",
            "answer 2: a superseded by restart"
        ],
        "by signal too, and both"
    );

    let mut run = running(notify);
    run.says_ready("a/1");
    run.reload(&["a"]);
    let words = run.apply(&watcher("a", "type = \"oneshot\""));
    assert!(
        words.contains(&"answer 1: a superseded by apply".to_owned()),
        "{words:?}"
    );

    let text = watcher("a", "") + &watcher("b", "");
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    run.reload(&["a", "b"]);
    assert!(!run.restart(&["b"]).concat().contains("answer"));
    run.proved("a/1'");
    assert_eq!(
        run.ends("a/1"),
        ["kill leftovers of a/1", "answer 1: b superseded by restart"],
        "when the other is done"
    );
}

#[test]
fn a_held_stop_ends_the_replacement_and_keeps_the_worker() {
    let mut run =
        Scenario::of(&(watcher("a", "type = \"notify\"") + &watcher("b", "after = [\"a\"]")));
    run.begin();
    run.spawned("a/1");
    run.says_ready("a/1");
    run.spawned("b/1");
    run.reload(&["a"]);
    run.spawned("a/1'");
    let words = run.terminate();
    assert!(words.contains(&"TERM to a/1'".to_owned()), "{words:?}");
    assert!(!words.contains(&"TERM to a/1".to_owned()), "{words:?}");
    assert_eq!(run.watcher("a").ready, 1);
}

#[test]
fn what_can_not_be_reloaded_is_refused_with_the_reason() {
    let mut run = running("type = \"oneshot\"");
    let words = run.reload(&["a"]);
    assert!(
        words[0].contains("refused: watcher `a` is a oneshot"),
        "{words:?}"
    );
    assert_eq!(
        run.reload(&[]),
        ["answer 2: done"],
        "there is none to reload"
    );

    let mut run = running("");
    run.stop(&["a"]);
    let words = run.reload(&["a"]);
    assert!(
        words[0].contains("refused: watcher `a` is stopping"),
        "{words:?}"
    );
    run.terminate();
    assert_eq!(run.reload(&["a"]), ["answer 3: shutting down"]);
}

#[test]
fn a_reload_of_what_waits_has_nothing_to_do_or_waits_for_its_turn() {
    let mut run =
        Scenario::of(&(socket("") + &watcher("a", "sockets = [\"s\"]\non_demand = true")));
    run.begin();
    assert_eq!(run.reload(&["a"]), ["answer 1: done"]);

    let text = "[manager]\nwarmup_delay = 1\n".to_owned() + &watcher("a", "") + &watcher("b", "");
    let mut run = Scenario::of(&text);
    run.begin();
    assert_eq!(run.reload(&["b"]), NOTHING);
    run.after(1.0);
    assert_eq!(run.spawned("b/1"), ["answer 1: done"]);
}

#[test]
fn the_parent_does_not_take_a_reload_for_the_end_of_the_start() {
    let mut run = running("type = \"notify\"");
    run.reload(&["a"]);
    assert_eq!(run.state("a"), "reloading");
    run.spawned("a/1'");
    assert_eq!(
        run.says_ready("a/1'"),
        ["TERM to a/1", "CONT to a/1", "tell the parent: ready"]
    );
}

#[test]
fn what_is_after_it_does_not_wait_for_the_end_of_reloads() {
    let mut run = Scenario::of(&(watcher("a", "") + &watcher("b", "after = [\"a\"]")));
    run.begin();
    run.reload(&["a"]);
    assert_eq!(run.spawned("a/1"), ["spawn a/1'", "spawn b/1"]);
}

// By age.

#[test]
fn a_worker_is_replaced_between_max_age_and_max_age_variance_more() {
    let mut run =
        running("numprocesses = 5\nmax_age = 100\nmax_age_variance = 50\nreload_surge = 9");
    assert_eq!(run.after(99.999), NOTHING);
    let mut ages = Vec::new();
    while ages.len() < 5 {
        let at = run.supervisor.next_deadline().expect("workers age");
        run.now = run.now.max(at);
        let spawns = run.event(Event::Tick).len();
        ages.extend(std::iter::repeat_n(run.now, spawns));
    }
    let first = *ages.first().expect("there are five");
    let last = *ages.last().expect("there are five");
    assert!(last - first <= Duration::from_secs(50));
    assert!(last - first >= Duration::from_secs(10), "they are spread");
    ages.dedup();
    assert_eq!(ages.len(), 5, "each has its own time");
}

#[test]
fn a_worker_that_is_too_old_and_can_not_be_replaced_is_tried_again_later() {
    let mut run = running("max_age = 10\nmax_age_variance = 0\nrestart_max_delay = 7");
    assert_eq!(run.after(10.0), ["spawn a/1'"]);
    run.spawn_failed("a/1'");
    assert_eq!(run.watcher("a").ready, 1);
    assert_eq!(run.after(6.999), NOTHING);
    assert_eq!(run.after(0.001), ["spawn a/1'"]);
    run.proved("a/1'");
    run.ends("a/1");
    assert_eq!(run.watcher("a").error, None);
}

#[test]
fn a_restart_elsewhere_is_none_of_the_replacements_for_age() {
    let mut run =
        running("type = \"notify\"\nnumprocesses = 2\nmax_age = 10\nmax_age_variance = 0");
    run.says_ready("a/1");
    run.after(5.0);
    run.says_ready("a/2");
    assert_eq!(run.after(5.0), ["spawn a/1'"]);
    run.spawned("a/1'");
    run.exits("a/2", CODE_1);
    run.spawned("a/2");
    run.exits("a/2", CODE_1);
    assert_eq!(
        run.state("a"),
        "reloading",
        "worker 1 goes on being replaced"
    );
    assert_eq!(run.says_ready("a/1'"), ["TERM to a/1", "CONT to a/1"]);
}

#[test]
fn a_worker_that_waits_for_its_stop_is_not_replaced_for_its_age() {
    let text =
        watcher("a", "max_age = 10\nmax_age_variance = 0") + &watcher("b", "after = [\"a\"]");
    let mut run = Scenario::of(&text);
    run.begin();
    run.all_spawned(&["a/1", "b/1"]);
    run.stop(&[]);
    assert_eq!(run.after(15.0), NOTHING);
    run.ends("b/1");
    run.ends("a/1");
    run.start(&["a"]);
    assert_eq!(run.state("a"), "starting");
}

// By signal.

#[test]
fn a_reload_by_signal_is_done_when_it_is_sent() {
    let mut run = running("reload = \"HUP\"\nnumprocesses = 2");
    assert_eq!(
        run.reload(&["a"]),
        ["HUP to a/1", "HUP to a/2", "answer 1: done"]
    );
    assert_eq!(run.state("a"), "running");
}

#[test]
fn a_worker_of_type_notify_tells_when_it_has_reloaded() {
    let mut run =
        running("reload = \"HUP\"\ntype = \"notify\"\nnumprocesses = 2\nstart_timeout = 5");
    run.says_ready("a/1");
    run.says_ready("a/2");
    assert_eq!(run.reload(&["a"]), ["HUP to a/1", "HUP to a/2"]);
    assert_eq!(run.state("a"), "reloading");
    run.says("a/1", reloading());
    assert_eq!(run.says_ready("a/2"), NOTHING, "it has not begun");
    run.says_ready("a/1");
    run.says("a/2", reloading());
    assert_eq!(run.says_ready("a/2"), ["answer 1: done"]);

    run.reload(&["a"]);
    run.says("a/1", reloading());
    run.says_ready("a/1");
    assert_eq!(run.after(4.999), NOTHING);
    let words = run.after(0.001);
    assert!(
        words[0]
            .contains("failed: watcher `a`: 1 worker has not said RELOADING=1 and then READY=1"),
        "{words:?}"
    );
    assert_eq!(run.state("a"), "running");
}

#[test]
fn a_worker_that_is_starting_gets_the_signal_when_it_is_ready() {
    let mut run =
        running("reload = \"HUP\"\ntype = \"notify\"\nnumprocesses = 2\nstart_timeout = 5");
    run.says_ready("a/1");
    run.after(3.0);
    assert_eq!(run.reload(&["a"]), ["HUP to a/1"]);
    run.says("a/1", reloading());
    assert_eq!(run.says_ready("a/1"), NOTHING, "the other has not done it");
    run.succeeded(true);
    assert_eq!(
        run.says_ready("a/2"),
        ["HUP to a/2", "tell the parent: ready"]
    );
    assert_eq!(run.after(4.9), NOTHING);
    run.says("a/2", reloading());
    assert_eq!(run.says_ready("a/2"), ["answer 1: done"]);

    let mut run = running("reload = \"HUP\"\nready_delay = 2");
    assert_eq!(run.reload(&["a"]), NOTHING);
    assert_eq!(
        run.after(2.0),
        ["HUP to a/1", "answer 1: done", "tell the parent: ready"]
    );
    run.exits("a/1", CODE_1);
    run.spawned("a/1");
    run.reload(&["a"]);
    let words = run.exits("a/1", CODE_1);
    assert!(
        answer(&words).contains("worker 1 exited with code 1"),
        "{words:?}"
    );
}

#[test]
fn a_worker_that_reloads_gets_the_time_that_it_asks_for() {
    let mut run =
        running("reload = \"HUP\"\ntype = \"notify\"\nnumprocesses = 2\nstart_timeout = 5");
    run.says_ready("a/1");
    run.says_ready("a/2");
    run.reload(&["a"]);
    run.says("a/1", reloading());
    run.says("a/1", extend(8.0));
    run.says("a/2", reloading());
    run.says_ready("a/2");
    run.says("a/2", extend(60.0));
    run.succeeded(true);
    assert_eq!(
        run.after(7.999),
        NOTHING,
        "who has done it asks for nothing"
    );
    assert!(run.after(0.001)[0].contains("1 worker has not said RELOADING=1 and then READY=1"));
}

#[test]
fn a_worker_that_does_not_answer_keeps_the_signal_from_nobody() {
    let mut run =
        running("reload = \"HUP\"\ntype = \"notify\"\nnumprocesses = 2\nstart_timeout = 5");
    run.says_ready("a/1");
    run.after(3.0);
    run.reload(&["a"]);
    run.says("a/2", extend(9.0));
    assert_eq!(run.after(5.0), NOTHING);
    assert_eq!(
        run.says_ready("a/2"),
        ["HUP to a/2", "tell the parent: ready"]
    );
    run.says("a/2", reloading());
    let words = run.says_ready("a/2");
    assert!(
        answer(&words).contains("1 worker has not said RELOADING=1 and then READY=1"),
        "{words:?}"
    );
}

#[test]
fn a_worker_that_ends_at_the_signal_has_not_reloaded_unless_it_was_stopped() {
    let mut run = running("reload = \"HUP\"\ntype = \"notify\"\nnumprocesses = 2");
    run.says_ready("a/1");
    run.says_ready("a/2");
    run.reload(&["a"]);
    run.command(scale("a", Amount::To(1)));
    run.ends("a/2");
    run.says("a/1", reloading());
    assert_eq!(run.says_ready("a/1"), ["answer 1: done"]);

    run.reload(&["a"]);
    let words = run.exits("a/1", Exit::Signal(Signal(1)));
    assert!(
        answer(&words).contains("worker 1 was killed by signal 1 (HUP)"),
        "{words:?}"
    );
}

#[test]
fn a_second_reload_by_signal_is_waited_for_by_both() {
    let mut run = running("reload = \"HUP\"\ntype = \"notify\"\nstart_timeout = 5");
    run.says_ready("a/1");
    run.reload(&["a"]);
    run.after(3.0);
    assert_eq!(run.reload(&["a"]), ["HUP to a/1"]);
    assert_eq!(run.after(3.0), NOTHING);
    run.says("a/1", reloading());
    assert_eq!(run.says_ready("a/1"), ["answer 1: done", "answer 2: done"]);
}
