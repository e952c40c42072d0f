//! Other units than before.

use super::*;

/// The watcher `a`, with another command for another number.
fn a(number: u32, lines: &str) -> String {
    format!("[watcher.a]\ncmd = \"program {number}\"\n{lines}\n")
}

fn port(number: u32, lines: &str) -> String {
    format!("[socket.s]\nlisten = \"127.0.0.1:{number}\"\n{lines}\n")
}

#[test]
fn nothing_is_touched_where_nothing_has_changed() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]");
    let mut run = run_of(&text);
    assert_eq!(
        run.apply(&text),
        [
            "tell the parent: reloading",
            "tell the parent: ready",
            "answer 1: done: nothing has changed"
        ]
    );
}

#[test]
fn an_apply_that_confirms_what_was_scaled_by_hand_says_nothing_of_scaling() {
    let mut run = run_of(&watcher("a", "numprocesses = 1"));
    run.command(scale("a", Amount::To(2)));
    run.spawned("a/2");
    let text = watcher("a", "numprocesses = 2");
    assert_eq!(
        run.apply(&text),
        [
            "tell the parent: reloading",
            "answer 2: done",
            "tell the parent: ready"
        ]
    );
    let scaled: Vec<_> = (run.log.iter())
        .filter(|line| line.contains("scaled"))
        .collect();
    assert_eq!(scaled, ["watcher.a: scaled from 1 to 2"]);
}

#[test]
fn another_definition_replaces_the_workers() {
    let mut run = run_of(&a(1, ""));
    assert_eq!(
        run.apply(&a(2, "")),
        ["tell the parent: reloading", "spawn a/1'"]
    );
    assert_eq!(run.proved("a/1'"), ["TERM to a/1", "CONT to a/1"]);
    assert_eq!(
        run.ends("a/1"),
        [
            "kill leftovers of a/1",
            "answer 1: done",
            "tell the parent: ready"
        ]
    );
    assert!(run.is_as(&a(2, "")));
}

#[test]
fn a_replacement_that_fails_brings_back_what_was_replaced_already() {
    let (old, new) = (a(1, "numprocesses = 2"), a(2, "numprocesses = 2"));
    let mut run = run_of(&old);
    run.apply(&new);
    run.proved("a/1'");
    run.ends("a/1");
    assert_eq!(
        run.spawn_failed("a/2'"),
        ["spawn a/1"],
        "by the old definition"
    );
    assert_eq!(run.proved("a/1"), ["TERM to a/1'", "CONT to a/1'"]);
    let words = run.ends("a/1'");
    assert!(
        words[1].contains("failed: watcher `a`: the replacement of worker 2"),
        "{words:?}"
    );
    assert_eq!(words[2], "tell the parent: ready");
    assert!(run.is_as(&old), "until the next apply");
    assert_eq!(run.watcher("a").restarts, 0);
    run.apply(&new);
    assert_eq!(run.state("a"), "reloading");
}

#[test]
fn what_can_not_be_put_back_stays() {
    let (old, new) = (a(1, "numprocesses = 2"), a(2, "numprocesses = 2"));
    let mut run = run_of(&old);
    run.apply(&new);
    run.proved("a/1'");
    run.ends("a/1");
    run.spawn_failed("a/2'");
    let words = run.spawn_failed("a/1");
    assert!(
        words[0].contains("failed: watcher `a`: the replacement of worker 2"),
        "{words:?}"
    );
    assert_eq!(run.watcher("a").ready, 2);
    assert!(
        run.log
            .iter()
            .any(|line| line.contains("worker 1 could not be put back"))
    );
    assert!(run.is_as(&old));
}

#[test]
fn the_age_limit_of_a_new_definition_counts_for_its_first_workers() {
    let mut run = run_of(&a(1, ""));
    run.apply(&a(1, "max_age = 10\nmax_age_variance = 0"));
    run.proved("a/1'");
    run.ends("a/1");
    assert_eq!(run.after(9.999), NOTHING);
    assert_eq!(run.after(0.001), ["spawn a/1"]);
}

#[test]
fn the_age_limit_of_a_new_definition_does_not_count_for_the_workers_of_the_old() {
    let text = |number, age| {
        a(
            number,
            &format!("ready_delay = 1\nmax_age = {age}\nmax_age_variance = 0"),
        )
    };
    let mut run = run_of(&text(1, 20));
    run.apply(&text(2, 10));
    run.after(1.0);
    run.spawn_failed("a/1'");
    assert_eq!(run.after(19.999), NOTHING);
    assert_eq!(run.after(0.001), ["spawn a/1'"]);
}

#[test]
fn a_new_definition_waits_for_the_reload_under_way_and_is_not_forgotten() {
    let mut run = run_of(&a(1, ""));
    run.reload(&["a"]);
    assert_eq!(run.apply(&a(2, "")), ["tell the parent: reloading"]);
    assert!(run.is_as(&a(2, "")), "it is what will be");
    // One without a definition must not take its place.
    run.reload(&["a"]);
    run.proved("a/1'");
    run.ends("a/1");
    run.proved("a/1");
    run.ends("a/1'");
    assert_eq!(run.state("a"), "running");
    assert!(run.is_as(&a(2, "")));
}

#[test]
fn a_stop_in_the_middle_keeps_the_new_definition() {
    let mut run = run_of(&a(1, ""));
    run.apply(&a(2, ""));
    let words = run.stop(&["a"]);
    assert!(
        words.contains(&"answer 1: a superseded by stop".to_owned()),
        "{words:?}"
    );
    assert!(run.is_as(&a(2, "")));
}

#[test]
fn the_number_of_workers_alone_only_scales() {
    let mut run = run_of(&a(1, ""));
    assert_eq!(
        run.apply(&a(1, "numprocesses = 2")),
        ["tell the parent: reloading", "spawn a/2"]
    );
    assert_eq!(
        run.spawned("a/2"),
        ["answer 1: done", "tell the parent: ready"]
    );
}

#[test]
fn a_scaling_in_the_middle_of_a_reload_is_not_undone_by_its_end() {
    let mut run = run_of(&a(1, ""));
    run.reload(&["a"]);
    run.apply(&a(1, "numprocesses = 2"));
    assert!(run.is_as(&a(1, "numprocesses = 2")));
    run.all_proved(&["a/1'", "a/2"]);
    run.ends("a/1");
    assert!(run.is_as(&a(1, "numprocesses = 2")));
    assert_eq!(run.state("a"), "running");
}

#[test]
fn a_new_watcher_starts_and_one_that_is_left_out_is_stopped_and_forgotten() {
    let mut run = run_of(&watcher("a", ""));
    assert_eq!(
        run.apply(&watcher("b", "")),
        [
            "tell the parent: reloading",
            "TERM to a/1",
            "CONT to a/1",
            "spawn b/1"
        ]
    );
    assert_eq!(run.state("a"), "stopping");
    for words in [run.start(&["a"]), run.restart(&["a"])] {
        assert!(
            words[0].contains("refused: watcher `a` is in the units no more"),
            "{words:?}"
        );
    }
    assert_eq!(run.spawned("b/1"), NOTHING);
    assert_eq!(
        run.ends("a/1"),
        [
            "kill leftovers of a/1",
            "answer 1: done",
            "tell the parent: ready"
        ]
    );
    assert_eq!(run.view().watchers.len(), 1);
    assert_eq!(run.start(&["a"]), ["answer 4: no watcher a"]);
}

#[test]
fn what_is_removed_is_stopped_in_reverse_order() {
    let text = watcher("a", "") + &watcher("b", "after = [\"a\"]");
    let mut run = run_of(&text);
    assert_eq!(
        run.apply(""),
        ["tell the parent: reloading", "TERM to b/1", "CONT to b/1"]
    );
    assert_eq!(
        run.ends("b/1"),
        ["kill leftovers of b/1", "TERM to a/1", "CONT to a/1"]
    );
    run.ends("a/1");
    assert!(run.view().watchers.is_empty());
}

#[test]
fn a_second_apply_is_refused_until_the_first_is_done() {
    let mut run = run_of(&a(1, ""));
    run.apply(&a(2, ""));
    let words = run.apply(&a(3, ""));
    assert_eq!(
        words,
        ["answer 2: refused: another apply is under way; try again when it is done"]
    );
    // Whoever waits for it.
    let request = RequestId(1);
    run.event(Event::Abandoned { request });
    assert!(run.apply(&a(3, ""))[0].contains("refused"));
    run.proved("a/1'");
    assert_eq!(
        run.ends("a/1"),
        ["kill leftovers of a/1", "tell the parent: ready"]
    );
    assert_eq!(run.apply(&a(3, ""))[1], "spawn a/1");
}

#[test]
fn another_address_is_bound_before_and_left_after() {
    let of = |number| port(number, "") + &watcher("a", "sockets = [\"s\"]");
    let mut run = run_of(&of(80));
    assert_eq!(
        run.apply(&of(81)),
        ["tell the parent: reloading", "open s", "spawn a/1'"]
    );
    assert_eq!(run.view().sockets.len(), 2);
    run.proved("a/1'");
    assert_eq!(run.exits("a/1", TERM), ["kill leftovers of a/1"]);
    assert_eq!(
        run.gone("a/1"),
        ["answer 1: done", "tell the parent: ready", "close s"]
    );
    assert_eq!(run.view().sockets.len(), 1);
}

#[test]
fn an_address_that_the_new_workers_fail_on_is_not_left() {
    let of = |number| port(number, "") + &watcher("a", "sockets = [\"s\"]");
    let mut run = run_of(&of(80));
    run.apply(&of(81));
    run.spawn_failed("a/1'");
    assert_eq!(run.view().sockets.len(), 2, "what runs has it still");
    assert_eq!(run.watcher("a").ready, 1);
    assert!(!run.is_as(&of(81)), "though all units are written so");
    // The next attempt does not bind it again.
    let words = run.apply(&of(81));
    assert_eq!(words, ["tell the parent: reloading", "spawn a/1'"]);
    run.spawned("a/1'");
    run.ends("a/1");
    assert!(run.is_as(&of(81)));
}

#[test]
fn what_can_be_changed_in_place_keeps_its_socket() {
    let of = |lines| port(80, lines) + &watcher("a", "sockets = [\"s\"]");
    let mut run = run_of(&of(""));
    let before = run.view().sockets[0].id;
    assert_eq!(
        run.apply(&of("backlog = 7")),
        [
            "tell the parent: reloading",
            "change s",
            "tell the parent: ready",
            "answer 1: done"
        ]
    );
    assert_eq!(run.view().sockets[0].id, before);
}

#[test]
fn a_socket_that_nothing_has_is_closed_at_once() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]\non_demand = true");
    let mut run = run_of(&text);
    assert_eq!(
        run.apply(&watcher("a", "")),
        [
            "tell the parent: reloading",
            "unwatch s",
            "close s",
            "spawn a/1"
        ]
    );
}

#[test]
fn an_optional_socket_of_an_apply_is_bound_later_and_not_any_more_when_it_is_removed() {
    let bound = "[socket.t]\nlisten = \"127.0.0.1:99\"\n";
    let a = |sockets| bound.to_owned() + &watcher("a", sockets);
    let before = a("sockets = [\"t\"]");
    let of = |number| port(number, "optional = true") + &a("sockets = [\"t\", \"s\"]");
    let mut run = run_of(&before);
    assert_eq!(
        run.apply_with_unbound(&of(80), &["s"]),
        ["tell the parent: reloading", "open s", "spawn a/1'"]
    );
    assert_eq!(run.proved("a/1'"), ["bind s", "TERM to a/1", "CONT to a/1"]);
    run.ends("a/1");
    let socket = run.socket("s");
    let error = "bind: no such address".to_owned();
    run.event(Event::BindFailed {
        socket,
        error: error.clone(),
    });
    run.apply(&of(81));
    assert_eq!(
        run.after(100.0),
        NOTHING,
        "the old address is not wanted any more"
    );
    assert_eq!(run.event(Event::Bound { socket }), NOTHING);
    run.proved("a/1");
    run.ends("a/1'");
    assert_eq!(run.state("a"), "running", "nobody is reloaded for it");

    // Nor if it was being tried when it was removed.
    let mut run = run_of(&before);
    run.apply_with_unbound(&of(80), &["s"]);
    assert_eq!(run.proved("a/1'"), ["bind s", "TERM to a/1", "CONT to a/1"]);
    run.ends("a/1");
    let socket = run.socket("s");
    run.apply(&of(81));
    run.event(Event::BindFailed { socket, error });
    assert_eq!(run.after(100.0), NOTHING);
}

#[test]
fn what_can_not_do_without_a_socket_is_reloaded_when_that_is_bound() {
    let of = |number, cmd| {
        port(number, "optional = true") + &watcher("a", "sockets = [\"s\"]").replace("program", cmd)
    };
    let mut run = run_of(&of(80, "old"));
    // It serves the old address until the new one is there.
    assert_eq!(
        run.apply_with_unbound(&of(81, "new"), &["s"]),
        [
            "tell the parent: reloading",
            "open s",
            "answer 1: done: watcher `a` waits: socket `s` is not bound: bind: no such address; it stays as it was until then",
            "tell the parent: ready"
        ]
    );
    assert_eq!(run.state("a"), "running");
    let error = run.watcher("a").error.expect("it is told");
    assert!(error.starts_with("socket `s` is not bound: "), "{error}");
    assert_eq!(run.after(1.0), ["bind s"]);
    let socket = run.socket("s");
    assert_eq!(run.event(Event::Bound { socket }), ["spawn a/1'"]);
    assert_eq!(run.proved("a/1'"), ["drain a/1"]);
    assert_eq!(run.watcher("a").error, None);

    // A newer definition that needs none of it is not held up.
    let mut run = run_of(&of(80, "old"));
    run.apply_with_unbound(&of(81, "new"), &["s"]);
    let words = run.apply(&of(80, "newest"));
    assert!(words.contains(&"spawn a/1'".to_owned()), "{words:?}");
}

#[test]
fn a_restart_of_what_waits_for_a_socket_leaves_it_where_it_was() {
    let of = |number| port(number, "optional = true") + &watcher("a", "sockets = [\"s\"]");
    let mut run = run_of(&of(80));
    run.apply_with_unbound(&of(81), &["s"]);
    run.restart(&["a"]);
    let words = run.ends("a/1");
    assert!(words.contains(&"spawn a/1".to_owned()), "{words:?}");
    run.spawned("a/1");
    assert_eq!(run.state("a"), "running");
    run.after(1.0);
    let socket = run.socket("s");
    assert_eq!(run.event(Event::Bound { socket }), ["spawn a/1'"]);
}

#[test]
fn a_restart_in_order_of_what_waits_for_a_socket_uses_what_can_run() {
    let of = |number| {
        let of_b = "sockets = [\"s\"]\nafter = [\"a\"]";
        port(number, "optional = true") + &watcher("a", "") + &watcher("b", of_b)
    };
    let mut run = run_of(&of(80));
    run.apply_with_unbound(&of(81), &["s"]);
    run.restart(&["a", "b"]);
    run.ends("b/1");
    assert!(run.ends("a/1").contains(&"spawn a/1".to_owned()));
    // With the former address: nothing else can be had.
    let words = run.spawned("a/1");
    assert!(words.contains(&"spawn b/1".to_owned()), "{words:?}");
    let answer = "answer 2: done: watcher `b` waits: socket `s` is not bound: bind: no such address; it stays as it was until then";
    assert_eq!(run.spawned("b/1"), [answer]);
    run.after(1.0);
    let socket = run.socket("s");
    assert_eq!(run.event(Event::Bound { socket }), ["spawn b/1'"]);
}

#[test]
fn a_socket_that_is_bound_during_a_restart_in_order_is_had_by_what_is_started() {
    let of = |number| {
        let of_b = "sockets = [\"s\"]\nafter = [\"a\"]";
        port(number, "optional = true") + &watcher("a", "") + &watcher("b", of_b)
    };
    let mut run = run_of(&of(80));
    run.apply_with_unbound(&of(81), &["s"]);
    run.restart(&["a", "b"]);
    run.ends("b/1");
    let socket = run.socket("s");
    run.event(Event::Bound { socket });
    run.ends("a/1");
    // It has it from the start: nobody needs the former any more, and nothing is replaced.
    assert_eq!(run.spawned("a/1"), ["spawn b/1", "close s"]);
    let words = run.spawned("b/1");
    assert!(
        !words.iter().any(|word| word.starts_with("spawn")),
        "{words:?}"
    );
    assert_eq!(run.state("b"), "running");
}

#[test]
fn what_ended_well_and_waited_for_traffic_is_started_when_it_is_on_demand_no_more() {
    let of = |line: &str| {
        let lines = format!("sockets = [\"s\"]\nnumprocesses = 2\n{line}");
        port(80, "") + &watcher("a", &lines)
    };
    let mut run = run_of(&of("on_demand = true"));
    run.traffic("s");
    for slot in ["a/1", "a/2"] {
        run.spawned(slot);
    }
    run.ends("a/1");
    let words = run.apply(&of(""));
    assert!(words.contains(&"spawn a/1".to_owned()), "{words:?}");
}

#[test]
fn what_depends_on_each_other_may_be_forgotten_one_after_the_other() {
    let text = watcher("a", "autostart = false") + &watcher("b", "after = [\"a\"]");
    let mut run = run_of(&text);
    run.apply("");
    assert_eq!(run.view().watchers.len(), 1);
    run.ends("b/1");
    assert!(run.view().watchers.is_empty());
}

#[test]
fn a_socket_that_is_closed_takes_its_pause_along() {
    let text = port(80, "trigger_limit = { burst = 1, interval = 10 }")
        + &watcher("a", "sockets = [\"s\"]\non_demand = true");
    let mut run = run_of(&text);
    run.traffic("s");
    run.spawned("a/1");
    run.ends("a/1");
    run.traffic("s");
    assert_eq!(run.view().sockets[0].state, SocketState::Paused);
    run.apply(&watcher("a", ""));
    run.spawned("a/1");
    assert_eq!(run.supervisor.next_deadline(), None);
}

#[test]
fn a_watcher_that_had_failed_is_tried_again_with_what_it_is_now() {
    let mut run = Scenario::of(&a(1, "max_retry = 1"));
    run.begin();
    run.spawn_failed("a/1");
    assert_eq!(run.state("a"), "failed");
    run.apply(&a(2, "max_retry = 1"));
    assert_eq!(run.state("a"), "starting");
    run.spawned("a/1");
    // One that was stopped stays so.
    run.stop(&["a"]);
    run.ends("a/1");
    run.apply(&a(3, ""));
    assert_eq!(run.state("a"), "stopped");
    assert!(run.is_as(&a(3, "")));
}

#[test]
fn what_waits_for_its_turn_may_wait_for_others_than_before() {
    let text = |after: &str| watcher("a", "type = \"notify\"") + &watcher("b", after);
    let mut run = Scenario::of(&text("after = [\"a\"]"));
    assert_eq!(run.begin(), ["spawn a/1"]);
    assert_eq!(run.apply(&text("")), ["spawn b/1"]);

    let mut run = run_of(&(watcher("a", "") + &watcher("b", "after = [\"a\"]")));
    assert_eq!(run.stop(&[]), ["TERM to b/1", "CONT to b/1"]);
    let words = run.apply(&(watcher("a", "") + &watcher("b", "")));
    assert!(words.contains(&"TERM to a/1".to_owned()), "{words:?}");
}

#[test]
fn a_required_watcher_that_is_stopped_fails_what_waits_for_others_too() {
    let text = |requires: &str| {
        watcher("a", "type = \"notify\"")
            + &watcher("b", "autostart = false")
            + &watcher("c", requires)
    };
    let mut run = Scenario::of(&text("requires = [\"a\"]"));
    run.begin();
    run.apply(&text("requires = [\"a\", \"b\"]"));
    assert_eq!(run.state("c"), "failed");
}

#[test]
fn an_apply_while_it_starts_is_nothing_that_the_parent_is_told_of() {
    let mut run = Scenario::of(&a(1, "type = \"notify\""));
    run.begin();
    run.spawned("a/1");
    assert_eq!(run.apply(&a(2, "type = \"notify\"")), ["spawn a/1'"]);
    run.spawned("a/1'");
    assert_eq!(
        run.says_ready("a/1'"),
        ["TERM to a/1", "CONT to a/1", "tell the parent: ready"]
    );
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "answer 1: done"]);
}

#[test]
fn what_becomes_a_oneshot_is_run_once_and_what_was_one_starts() {
    let once = "type = \"oneshot\"";
    let mut run = run_of(&a(1, ""));
    assert_eq!(
        run.apply(&a(1, once)),
        ["tell the parent: reloading", "TERM to a/1", "CONT to a/1"]
    );
    run.ends("a/1");
    run.spawned("a/1");
    assert_eq!(
        run.exits("a/1", CODE_0),
        [
            "kill leftovers of a/1",
            "answer 1: done",
            "tell the parent: ready"
        ]
    );
    assert_eq!(run.state("a"), "stopped");

    // A reload under way does not bring back what it was.
    let mut run = run_of(&a(1, ""));
    run.reload(&["a"]);
    run.apply(&a(1, once));
    run.spawn_cancelled("a/1'");
    run.ends("a/1");
    assert!(run.is_as(&a(1, once)));

    let mut run = run_of(&a(1, once));
    run.apply(&a(1, ""));
    assert_eq!(
        run.exits("a/1", CODE_0),
        ["kill leftovers of a/1", "spawn a/1"]
    );
    run.spawned("a/1");
    assert_eq!(run.state("a"), "running");
}

#[test]
fn shards_of_a_socket_that_is_removed_are_closed_with_it() {
    let text =
        port(80, "so_reuseport = true") + &watcher("a", "sockets = [\"s\"]\nnumprocesses = 2");
    let mut run = run_of(&text);
    run.apply("");
    run.ends("a/1");
    let words = run.ends("a/2");
    assert_eq!(
        words[1..],
        ["answer 1: done", "tell the parent: ready", "close s"]
    );
}

/// A socket with or without shards, and a watcher that has it.
fn perhaps_sharded(shared: bool, count: u32) -> String {
    let lines = format!("sockets = [\"s\"]\nnumprocesses = {count}");
    port(80, &format!("so_reuseport = {shared}")) + &watcher("a", &lines)
}

#[test]
fn what_waits_in_shards_of_a_stopped_watcher_is_served_though_sharding_ends() {
    let mut run = run_of(&perhaps_sharded(true, 3));
    let former = run.socket("s");
    run.stop(&["a"]);
    for slot in ["a/1", "a/2", "a/3"] {
        run.ends(slot);
    }
    assert_eq!(
        run.apply(&perhaps_sharded(false, 2)),
        [
            "tell the parent: reloading",
            "open s",
            "tell the parent: ready",
            "answer 2: done",
            "close shard s/2",
            "close shard s/3"
        ]
    );
    for wid in [2, 3] {
        let socket = former;
        assert_eq!(run.event(Event::ShardOwed { socket, wid }), NOTHING);
    }
    // The second is served beside the worker that has its wid.
    let words = run.start(&["a"]);
    assert_eq!(
        words,
        [
            "spawn a/1",
            "spawn a/2",
            "move shard s/2 to 4",
            "spawn a/3",
            "spawn a/4"
        ]
    );
    run.all_spawned(&["a/1", "a/2"]);
    assert_eq!(run.state("a"), "running");
    assert_eq!(run.spawned("a/3"), ["drain a/3"]);
    assert_eq!(run.drained("a/3"), ["TERM to a/3", "CONT to a/3"]);
    let words = run.ends("a/3");
    assert_eq!(words, ["kill leftovers of a/3", "close shard s/3"]);
    let (socket, wid) = (former, 3);
    assert_eq!(run.event(Event::ShardClosed { socket, wid }), NOTHING);

    // Who ends before it has served them is followed by another, also where it is wanted for itself meanwhile.
    assert_eq!(run.spawned("a/4"), ["drain a/4"]);
    let words = run.ends("a/4");
    assert_eq!(words, ["kill leftovers of a/4", "close shard s/4"]);
    run.command(scale("a", Amount::To(4)));
    run.all_spawned(&["a/3", "a/4"]);
    let (socket, wid) = (former, 4);
    let words = run.event(Event::ShardOwed { socket, wid });
    assert_eq!(words, ["move shard s/4 to 5"]);
    run.after(60.0);
    assert_eq!(run.spawned("a/5"), ["drain a/5"]);
    run.drained("a/5");
    let words = run.ends("a/5");
    assert_eq!(words, ["kill leftovers of a/5", "close shard s/5"]);
    let (socket, wid) = (former, 5);
    assert_eq!(run.event(Event::ShardClosed { socket, wid }), ["close s"]);
}

#[test]
fn shards_stay_as_they_are_as_long_as_their_definition_may_come_back() {
    let text = |shared: bool, kind: &str| {
        let lines = format!("sockets = [\"s\"]\nnumprocesses = 2\ntype = \"{kind}\"");
        port(80, &format!("so_reuseport = {shared}")) + &watcher("a", &lines)
    };
    let mut run = run_of(&text(true, "exec"));
    run.apply(&text(false, "notify"));
    // Its queue has to wait for the end of the reload.
    let words = run.exits("a/2", CODE_1);
    assert!(
        !words.iter().any(|word| word.contains("shard")),
        "{words:?}"
    );
}

#[test]
fn the_shards_of_a_socket_that_goes_are_emptied_though_another_watcher_grows() {
    let text = |number: u32, a: u32, b: u32| {
        let lines = |count: u32| format!("sockets = [\"s\"]\nnumprocesses = {count}");
        port(number, "so_reuseport = true") + &watcher("a", &lines(a)) + &watcher("b", &lines(b))
    };
    let mut run = run_of(&text(80, 3, 1));
    let words = run.apply(&text(81, 1, 3));
    for drained in ["drain a/2", "drain a/3"] {
        assert!(words.iter().any(|word| word == drained), "{words:?}");
    }
    run.drained("a/2");
    // A scaling meanwhile does not cut them off.
    let words = run.command(scale("a", Amount::To(0)));
    assert!(words.iter().all(|word| !word.contains("a/3")), "{words:?}");
}

#[test]
fn the_last_worker_of_a_socket_that_goes_empties_it_when_its_watcher_is_scaled_to_none() {
    let text = |number: u32, count: u32| {
        let lines = format!("sockets = [\"s\"]\nnumprocesses = {count}");
        port(number, "") + &watcher("a", &lines)
    };
    let mut run = run_of(&text(80, 2));
    assert_eq!(
        run.apply(&text(81, 0))[1..5],
        ["open s", "TERM to a/2", "CONT to a/2", "drain a/1"]
    );
}

#[test]
fn the_last_worker_of_a_socket_that_is_removed_with_its_watchers_empties_it() {
    let lines = "sockets = [\"s\"]\nnumprocesses = 2";
    let text = port(80, "") + &watcher("a", lines) + &watcher("b", lines) + &watcher("c", "");
    let mut run = Scenario::of(&text);
    run.begin();
    // One that is not ready yet is stopped with the others, and serves nobody.
    run.all_spawned(&["a/1", "a/2", "b/1", "c/1"]);
    let words = run.apply(&watcher("c", ""));
    let drains: Vec<_> = (words.iter())
        .filter(|word| word.starts_with("drain"))
        .collect();
    assert_eq!(drains, ["drain b/1"], "{words:?}");
    run.spawn_cancelled("b/2");
    for slot in ["a/1", "a/2"] {
        run.ends(slot);
    }
    assert_eq!(run.drained("b/1"), ["TERM to b/1", "CONT to b/1"]);
    assert_eq!(
        run.ends("b/1"),
        [
            "kill leftovers of b/1",
            "answer 1: done",
            "close s",
            "tell the parent: ready"
        ]
    );
}

#[test]
fn shards_of_a_watcher_that_is_removed_are_emptied_and_the_others_are_kept() {
    let lines = |count: u32| format!("sockets = [\"s\"]\nnumprocesses = {count}");
    let others = port(80, "so_reuseport = true") + &watcher("b", &lines(1));
    let mut run = run_of(&(others.clone() + &watcher("a", &lines(2))));
    let words = run.apply(&others);
    assert!(words.iter().any(|word| word == "drain a/2"), "{words:?}");
    assert!(words.iter().any(|word| word == "TERM to a/1"), "{words:?}");

    // It has another name: the next that is called so has the shards.
    let named = |name: &str| port(80, "so_reuseport = true") + &watcher(name, &lines(2));
    let mut run = run_of(&named("a"));
    let words = run.apply(&named("b"));
    assert!(
        words.iter().all(|word| !word.contains("drain")),
        "{words:?}"
    );
}

#[test]
fn who_empties_what_goes_is_stopped_when_the_manager_ends() {
    let text = port(80, "") + &watcher("a", "sockets = [\"s\"]");
    let mut run = run_of(&text);
    let words = run.apply("");
    assert!(words.iter().any(|word| word == "drain a/1"), "{words:?}");
    let words = run.terminate();
    assert!(words.iter().any(|word| word == "TERM to a/1"), "{words:?}");
}

#[test]
fn the_manager_may_end_in_the_middle() {
    let mut run = run_of(&a(1, ""));
    run.apply(&a(2, ""));
    let words = run.terminate();
    assert_eq!(
        words.last().map(String::as_str),
        Some("answer 1: shutting down")
    );
    assert_eq!(run.apply(&a(3, "")), ["answer 2: shutting down"]);
    run.spawn_cancelled("a/1'");
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "finish 0"]);
}
