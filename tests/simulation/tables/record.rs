//! A new manager that goes on from the records of another.

use super::*;
use std::collections::BTreeMap;
use tentpole::supervise::{Key, Settings, SocketId, Supervisor, WatcherId};
use tentpole::unit::LogLevel;

fn records(run: &mut Scenario) -> BTreeMap<Key, Vec<u8>> {
    let mut all = BTreeMap::new();
    let written = run.supervisor.record_all(&mut |key, content| {
        all.extend(content.map(|content| (key, content)));
    });
    written.expect("it can be written");
    all
}

fn refusal(records: BTreeMap<Key, Vec<u8>>) -> String {
    let settings = Settings {
        log_level: LogLevel::Error,
        parent: false,
    };
    match Supervisor::restore(records, settings) {
        Ok(_) => panic!("it was restored"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_new_manager_goes_on_as_if_nothing_had_happened() {
    let mut run = running("restart_delay = 1");
    run.exits("a/1", CODE_1);
    run.spawned("a/1");
    run.exits("a/1", CODE_1);
    assert_eq!(run.state("a"), "backoff");
    run.after(0.5);
    assert_eq!(run.succeeded(true), NOTHING);
    assert_eq!(run.after(0.499), NOTHING);
    assert_eq!(run.after(0.001), ["spawn a/1"]);
}

#[test]
fn what_was_asked_for_and_not_answered_is_asked_for_again() {
    let text = socket("")
        + "[socket.o]\nlisten = \"127.0.0.1:81\"\noptional = true\n"
        + &watcher("a", "numprocesses = 4")
        + &watcher("b", "sockets = [\"s\", \"o\"]\non_demand = true");
    let mut run = Scenario::with_unbound(&text, &["o"]);
    run.begin();
    run.all_spawned(&["a/1", "a/2", "a/3"]);
    assert_eq!(run.after(0.1), ["bind o"]);
    run.command(scale("a", Amount::To(3)));
    run.terminate();
    run.exits("a/1", TERM);
    run.terminate();
    let words = run.succeeded(true);
    assert_eq!(
        words,
        ["kill leftovers of a/1", "kill a/2", "kill a/3"],
        "nothing is bound or started at the end; a/4 is not made"
    );

    let mut run = Scenario::with_unbound(&text, &["o"]);
    run.begin();
    run.after(0.1);
    assert_eq!(
        run.succeeded(false),
        [
            "bind o",
            "watch s",
            "spawn a/1 again",
            "spawn a/2 again",
            "spawn a/3 again",
            "spawn a/4 again"
        ]
    );
}

#[test]
fn a_spawn_that_was_cancelled_is_none_for_a_new_manager() {
    let mut run = Scenario::of(&watcher("a", ""));
    run.begin();
    run.stop(&["a"]);
    assert_eq!(
        run.succeeded(true),
        ["answer 1: done", "tell the parent: ready"]
    );
}

#[test]
fn who_waits_is_answered_by_a_new_image_and_gone_after_a_crash() {
    let mut run = running("");
    run.stop(&["a"]);
    run.succeeded(true);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "answer 1: done"]);

    let mut run = running("");
    run.stop(&["a"]);
    run.succeeded(false);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1"]);
    assert_eq!(run.state("a"), "stopped");
}

#[test]
fn a_reload_goes_on_and_may_still_go_back() {
    let of = |number| format!("[watcher.a]\ncmd = \"program {number}\"\nnumprocesses = 2\n");
    let mut run = Scenario::of(&of(1));
    run.begin();
    run.all_spawned(&["a/1", "a/2"]);
    run.apply(&of(2));
    run.proved("a/1'");
    run.succeeded(false);
    assert_eq!(run.ends("a/1"), ["kill leftovers of a/1", "spawn a/2'"]);
    run.succeeded(false);
    assert!(run.apply(&of(3))[0].contains("another apply is under way"));
    assert_eq!(run.spawn_failed("a/2'"), ["spawn a/1"]);
    run.succeeded(false);
    run.proved("a/1");
    assert_eq!(
        run.ends("a/1'"),
        ["kill leftovers of a/1'", "tell the parent: ready"],
        "nobody waits for the answer"
    );
    assert!(run.is_as(&of(1)));
}

#[test]
fn a_reload_by_signal_keeps_its_deadline() {
    let mut run = running("reload = \"HUP\"\ntype = \"notify\"\nstart_timeout = 5");
    run.says_ready("a/1");
    run.reload(&["a"]);
    run.after(2.0);
    run.succeeded(true);
    assert_eq!(run.after(2.999), NOTHING);
    assert!(run.after(0.001)[0].contains("failed"));
}

#[test]
fn no_process_number_is_used_twice_however_many_managers_there_were() {
    // The rules see it.
    let mut run = running("");
    for _ in 0..3 {
        run.succeeded(false);
        run.succeeded(false);
        run.restart(&["a"]);
        run.ends("a/1");
        run.spawned("a/1");
    }
}

#[test]
fn process_numbers_are_recorded_ahead_of_their_use() {
    let mut run = running("restart_delay = 0.01\nrestart_max_delay = 0.01");
    for _ in 0..1100 {
        run.exits("a/1", KILLED);
        run.after(0.01);
        run.spawned("a/1");
    }
    run.succeeded(false);
    run.exits("a/1", KILLED);
    assert_eq!(run.after(0.01), ["spawn a/1"], "by a new number");
}

#[test]
fn a_manager_that_was_killed_before_it_began_begins() {
    let mut run = Scenario::of(&watcher("a", ""));
    assert_eq!(run.succeeded(false), ["spawn a/1"]);
}

#[test]
fn records_that_do_not_belong_together_are_refused() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]");
    let mut run = Scenario::of(&text);
    run.begin();
    run.spawned("a/1");
    let all = records(&mut run);
    let without = |key: Key| {
        let mut some = all.clone();
        assert!(some.remove(&key).is_some(), "{key} is there");
        refusal(some)
    };
    let a = WatcherId(0);
    assert_eq!(without(Key::Manager), "there is no record of the manager");
    assert_eq!(
        without(Key::Edition(a, 0)),
        "there is no record `edition.0.0`"
    );
    assert_eq!(
        without(Key::Socket(SocketId(0))),
        "there is no record `socket.0`"
    );
    assert_eq!(
        without(Key::Watcher(a)),
        "record `slot.0.1` is of no watcher"
    );
    let lost = altered(
        &all,
        Key::Watcher(a),
        "\"rank\":0",
        "\"rank\":0,\"dependencies\":[[9,true]]",
    );
    assert_eq!(refusal(lost), "there is no record `watcher.9`");
    let mut twice = all.clone();
    twice.insert(Key::Slot(a, 2), all[&Key::Slot(a, 1)].clone());
    assert!(refusal(twice).contains("has process 1, and so has another"));
    for key in all.keys() {
        let mut half = all.clone();
        half.insert(*key, all[key][..all[key].len() / 2].to_vec());
        let refusal = refusal(half);
        assert!(
            refusal.starts_with(&format!("record `{key}` can't be read: ")),
            "{refusal}"
        );
    }
}

#[test]
fn the_key_of_a_record_is_read_as_it_is_written() {
    let (watcher, socket) = (WatcherId(3), SocketId(4));
    for key in [
        Key::Manager,
        Key::Socket(socket),
        Key::Watcher(watcher),
        Key::Edition(watcher, 7),
        Key::Slot(watcher, 12),
    ] {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    for text in [
        "",
        "slot",
        "slot.1",
        "slot.1.x",
        "slot.1.2.3",
        "manager.1",
        "other.1",
    ] {
        assert_eq!(text.parse::<Key>(), Err(()), "{text}");
    }
}

#[test]
fn what_a_watcher_that_was_left_out_was_after_may_be_forgotten_before_it_ends() {
    let units = watcher("c", "") + &watcher("a", "") + &watcher("b", "after = [\"a\"]");
    let mut run = Scenario::of(&units);
    run.begin();
    for slot in ["a/1", "c/1", "b/1"] {
        run.spawned(slot);
    }
    let words = run.apply(&watcher("c", ""));
    assert!(words.contains(&"TERM to b/1".to_owned()), "{words:?}");
    run.ends("a/1");
    run.succeeded(false);
    assert_eq!(run.exits("b/1", TERM), ["kill leftovers of b/1"]);
    assert_eq!(run.gone("b/1"), ["tell the parent: ready"]);
}

/// `all`, in whose record `key` the text `from` is `to`.
fn altered(all: &BTreeMap<Key, Vec<u8>>, key: Key, from: &str, to: &str) -> BTreeMap<Key, Vec<u8>> {
    let text = String::from_utf8(all[&key].clone()).expect("records are text");
    assert!(text.contains(from), "{from} is not in {text}");
    let mut all = all.clone();
    all.insert(key, text.replacen(from, to, 1).into());
    all
}

#[test]
fn records_of_more_workers_than_there_can_be_are_refused_before_there_is_room_made_for_them() {
    let all = records(&mut running("numprocesses = 2"));
    let a = WatcherId(0);
    for wid in [100_001, u32::MAX] {
        let mut many = all.clone();
        many.insert(Key::Slot(a, wid), all[&Key::Slot(a, 2)].clone());
        assert_eq!(
            refusal(many),
            format!("record `slot.0.{wid}` is of a worker beyond the 100000 that there can be")
        );
    }
    let many = altered(
        &all,
        Key::Watcher(a),
        "\"wanted\":2",
        "\"wanted\":4294967295",
    );
    assert_eq!(
        refusal(many),
        "record `watcher.0` wants 4294967295 workers; there can be 100000"
    );
}

#[test]
fn records_with_numbers_that_would_be_given_a_second_time_are_refused() {
    let text = socket("") + &watcher("a", "sockets = [\"s\"]");
    let mut run = Scenario::of(&text);
    run.begin();
    run.spawned("a/1");
    let all = records(&mut run);
    for (from, to, key) in [
        ("\"next_socket\":1", "\"next_socket\":0", "socket.0"),
        ("\"next_watcher\":1", "\"next_watcher\":0", "watcher.0"),
        ("\"next_proc\":1024", "\"next_proc\":1", "slot.0.1"),
    ] {
        assert_eq!(
            refusal(altered(&all, Key::Manager, from, to)),
            format!("record `{key}` has a number that the record `manager` has not given yet")
        );
    }
}
