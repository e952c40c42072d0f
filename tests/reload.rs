//! Rolling reload: the replacement first, and only then the end of the old one.

mod support;

use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::{
    DEADLINE, Manager, ask, environment, is_alive, kill, poll, receive, send, wait_until_dead,
};

/// Workers that are ready as soon as GO is there, whatever definition they are of.
const GATED: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    [watcher.web]
    cmd = "PROBE do append DIR/born '%p %w %t' , await DIR/go , notify READY=1 , append DIR/ready '%p %w %t' , serve $(circus.socket.web)"
    type = "notify"
    numprocesses = 3
    "#;

/// The numbers in the lines of a file.
fn rows(manager: &Manager, name: &str) -> Vec<Vec<i64>> {
    let lines = manager.lines(name);
    let numbers = |line: &String| {
        line.split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect()
    };
    lines.iter().map(numbers).collect()
}

/// Has the manager reload `web` without waiting; the answer comes over this connection.
fn begin_reload(manager: &Manager) -> BufReader<std::os::unix::net::UnixStream> {
    let mut stream = manager.connect();
    send(
        &mut stream,
        &json!({"method": "io.tentpole.Manager.Reload", "parameters": {"names": ["web"]}}),
    );
    BufReader::new(stream)
}

#[test]
fn the_replacement_is_ready_before_the_old_one_is_told_to_end() {
    let manager = Manager::spawn(GATED);
    manager.wait_for_lines("born", 3);
    manager.touch("go");
    manager.wait_for_state("web", "running");
    let before = manager.snapshot();
    std::fs::remove_file(manager.path("go")).expect("close the gate");
    let mut answer = begin_reload(&manager);
    manager.wait_for_lines("born", 4);
    let web = manager.watcher("web");
    assert_eq!(
        (&web["state"], &web["wanted"]),
        (&json!("reloading"), &json!(3))
    );
    // Beside the old one, which serves.
    assert!(before.pids("web").iter().all(|pid| is_alive(*pid)));
    ask(&manager.address("web"), "pid");
    // One at a time, however long it takes.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(manager.lines("born").len(), 4);
    assert!(before.pids("web").iter().all(|pid| is_alive(*pid)));
    manager.touch("go");
    let answer = receive(&mut answer).expect("an answer");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    let after = manager.snapshot();
    for (old, new) in before.workers["web"].iter().zip(&after.workers["web"]) {
        assert_eq!((new.wid, new.generation), (old.wid, old.generation + 1));
        assert_ne!(new.pid, old.pid);
        assert!(!is_alive(old.pid));
    }
    assert_eq!(after.listeners, before.listeners);
    assert_eq!(after.restarts["web"], 0);
    assert_eq!(manager.watcher("web")["error"], Value::Null);
}

#[test]
fn as_many_at_once_as_the_surge_allows() {
    for (surge, expected) in [(2, 2), (5, 3)] {
        let units = format!("{GATED}reload_surge = {surge}\n");
        let manager = Manager::spawn(&units);
        manager.touch("go");
        manager.wait_for_state("web", "running");
        std::fs::remove_file(manager.path("go")).expect("close the gate");
        let mut answer = begin_reload(&manager);
        manager.wait_for_lines("born", 3 + expected);
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(manager.lines("born").len(), 3 + expected, "surge {surge}");
        manager.touch("go");
        assert_eq!(
            receive(&mut answer).expect("an answer")["error"],
            Value::Null
        );
        assert_eq!(manager.lines("born").len(), 6);
    }
}

#[test]
fn a_ready_delay_is_the_time_in_which_it_may_still_fail() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do once DIR/first { sleep } , delay 150 , exit 5"
        ready_delay = "400ms"
        "#,
    );
    let before = manager.snapshot();
    let output = manager.cli(&["reload", "web"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains('5'), "{text}");
    assert_eq!(manager.snapshot(), before);
    assert_eq!(manager.watcher("web")["state"], "running");
}

#[test]
fn with_a_ready_delay_the_old_one_stays_as_long() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do append DIR/born '%p %w %t' , block 15 , until 15 , append DIR/ended '%p %w %t'"
        ready_delay = "300ms"
        "#,
    );
    manager.ok(&["reload", "web"]);
    let (born, ended) = (rows(&manager, "born"), rows(&manager, "ended"));
    assert_eq!((born.len(), ended.len()), (2, 1));
    assert_eq!(ended[0][0], born[0][0]);
    assert!(ended[0][2] - born[1][2] >= 290, "{born:?} {ended:?}");
}

/// A reload whose replacements fail: the command says why and exits with 1, and the old workers are untouched.
fn assert_refused_by_failure(units: &str, reason: &str) {
    let manager = Manager::start(units);
    let before = manager.snapshot();
    manager.touch("fail");
    let output = manager.cli(&["reload", "web"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", manager.log());
    assert!(text.contains(reason) && text.contains("web"), "{text}");
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    let web = manager.watcher("web");
    assert_eq!(web["state"], "running");
    let error = web["error"].as_str().expect("status keeps the reason");
    assert!(error.contains(reason), "{error}");
    let mut alive = manager.offspring();
    alive.retain(|pid| !before.pids("web").contains(pid) && *pid != manager.manager_pid());
    assert_eq!(alive, [0; 0], "{}", manager.log());
    // Once it can, it does, and the reason is gone.
    std::fs::remove_file(manager.path("fail")).expect("let it go on");
    manager.ok(&["reload", "web"]);
    assert_eq!(manager.watcher("web")["error"], Value::Null);
    assert!(
        manager
            .snapshot()
            .pids("web")
            .iter()
            .all(|pid| !before.pids("web").contains(pid))
    );
}

#[test]
fn a_replacement_that_exits_at_once_ends_the_reload() {
    assert_refused_by_failure(
        r#"
        [watcher.web]
        cmd = "PROBE do unless DIR/fail { notify READY=1 , sleep } , exit 7"
        type = "notify"
        numprocesses = 2
        "#,
        "7",
    );
}

#[test]
fn a_replacement_that_forks_away_ends_the_reload_and_is_not_left_behind() {
    // Nothing but its own end says so.
    assert_refused_by_failure(
        r#"
        [watcher.web]
        cmd = "PROBE do unless DIR/fail { sleep } , daemon { append DIR/away %p , sleep } , await DIR/away"
        ready_delay = "1s"
        "#,
        "exited with code 0",
    );
}

#[test]
fn a_replacement_that_is_never_ready_ends_the_reload() {
    assert_refused_by_failure(
        r#"
        [watcher.web]
        cmd = "PROBE do unless DIR/fail { notify READY=1 } , sleep"
        type = "notify"
        start_timeout = "500ms"
        numprocesses = 2
        "#,
        "ready",
    );
}

#[test]
fn a_replacement_that_is_killed_before_it_is_ready_ends_the_reload() {
    assert_refused_by_failure(
        r#"
        [watcher.web]
        cmd = "PROBE do unless DIR/fail { notify READY=1 , sleep } , raise 9"
        type = "notify"
        reload_surge = 2
        numprocesses = 2
        "#,
        "KILL",
    );
}

#[test]
fn a_replacement_that_cannot_be_executed_ends_the_reload() {
    let manager = Manager::start(
        "[watcher.web]\ncmd = \"DIR/program sleep\"\nnumprocesses = 2\nautostart = false\n",
    );
    std::os::unix::fs::symlink(support::probe(), manager.path("program")).expect("link");
    manager.ok(&["start", "web"]);
    let before = manager.snapshot();
    std::fs::remove_file(manager.path("program")).expect("remove it");
    let output = manager.cli(&["reload", "web"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("No such file"), "{text}");
    assert_eq!(manager.snapshot(), before);
    assert_eq!(manager.watcher("web")["state"], "running");
}

#[test]
fn a_failure_in_the_middle_takes_back_what_was_replaced() {
    let units = |mark: &str| {
        format!(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/born '{mark} %w' , notify READY=1 , sleep"
            type = "notify"
            numprocesses = 3
            "#
        )
    };
    let manager = Manager::start(&units("old"));
    let before = manager.snapshot();
    // Of the new definition the third worker fails.
    manager.write(
        r#"
        [watcher.web]
        cmd = "PROBE do append DIR/born 'new %w' , once DIR/one { notify READY=1 , sleep } , once DIR/two { notify READY=1 , sleep } , exit 9"
        type = "notify"
        numprocesses = 3
        "#,
    );
    let output = manager.cli(&["apply"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains('9'), "{text}");
    manager.wait_for_state("web", "running");
    let after = manager.snapshot();
    assert_eq!(after.workers["web"].len(), 3);
    for worker in &after.workers["web"] {
        let words = support::words(worker.pid).join(" ");
        assert!(words.contains("old %w"), "{words}\n{}", manager.log());
    }
    // The one that failed had not replaced anything.
    let kept = before.workers["web"]
        .iter()
        .filter(|worker| after.workers["web"].contains(worker));
    assert_eq!(kept.count(), 1);
    let error = manager.watcher("web")["error"].clone();
    assert!(
        error.as_str().is_some_and(|error| error.contains('9')),
        "{error}"
    );
}

#[test]
fn a_reload_of_what_does_not_run_is_refused() {
    let manager = Manager::start("[watcher.web]\ncmd = \"PROBE sleep\"\nautostart = false");
    let output = manager.cli(&["reload", "web"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("web") && text.contains("start"), "{text}");
    assert_eq!(manager.watcher("web")["state"], "stopped");
    assert_eq!(manager.cli(&["reload", "nothing"]).status.code(), Some(4));
}

#[test]
fn a_singleton_is_replaced_beside_itself_too() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do append DIR/born '%p %w %t' , block 15 , until 15 , append DIR/ended '%p %w %t'"
        singleton = true
        "#,
    );
    let pid = manager.pids("web")[0];
    let output = manager.cli(&["reload", "web"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!is_alive(pid));
    assert_eq!(manager.pids("web").len(), 1);
    assert_eq!(manager.watcher("web")["workers"][0]["generation"], 2);
}

#[test]
fn a_signal_is_sent_instead_where_that_is_asked_for() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do block 1 , append DIR/born %p , until 1 , append DIR/got '%p' , sleep"
        reload = "HUP"
        numprocesses = 2
        "#,
    );
    manager.wait_for_lines("born", 2);
    let before = manager.snapshot();
    manager.ok(&["reload", "web"]);
    let mut got: Vec<i32> = manager
        .wait_for_lines("got", 2)
        .iter()
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    got.sort_unstable();
    let mut pids = before.pids("web");
    pids.sort_unstable();
    assert_eq!(got, pids);
    assert_eq!(manager.snapshot(), before);
}

#[test]
fn with_notify_a_signal_s_reload_is_done_when_the_worker_says_so() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do block 1 , notify READY=1 , append DIR/up x , until 1 , notify RELOADING=1 , append DIR/reloading x , await DIR/go , notify READY=1 , sleep"
        type = "notify"
        reload = "HUP"
        "#,
    );
    manager.wait_for_lines("up", 1);
    let before = manager.snapshot();
    let mut answer = begin_reload(&manager);
    manager.wait_for_lines("reloading", 1);
    manager.wait_for("web", "reloads", |web| {
        web["state"] == "reloading" && web["workers"][0]["state"] == "reloading"
    });
    manager.touch("go");
    let answer = receive(&mut answer).expect("an answer");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    assert_eq!(manager.watcher("web")["state"], "running");
    assert_eq!(manager.snapshot(), before);
}

#[test]
fn with_notify_a_signal_that_nobody_answers_is_a_failed_reload() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do ignore 1 , notify READY=1 , sleep"
        type = "notify"
        reload = "HUP"
        start_timeout = "600ms"
        "#,
    );
    let before = manager.snapshot();
    let output = manager.cli(&["reload", "web"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(manager.snapshot(), before);
    assert_eq!(manager.watcher("web")["state"], "running");
}

#[test]
fn a_worker_of_max_age_is_replaced_while_it_serves() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do block 15 , append DIR/born '%p %w %t' , notify READY=1 , until 15 , append DIR/ended '%p %w %t'"
        type = "notify"
        max_age = "500ms"
        max_age_variance = 0
        "#,
    );
    manager.wait_for_lines("born", 3);
    let ended = {
        manager.wait_for_lines("ended", 2);
        rows(&manager, "ended")
    };
    let born = rows(&manager, "born");
    for (index, end) in ended.iter().enumerate().take(2) {
        assert_eq!(end[0], born[index][0]);
        assert!(end[2] >= born[index + 1][2], "{born:?} {ended:?}");
        let age = born[index + 1][2] - born[index][2];
        assert!((480..2500).contains(&age), "{age} ms: {born:?}");
    }
    assert_eq!(manager.watcher("web")["restarts"], 0);
}

#[test]
fn a_request_under_way_is_finished_by_the_old_worker() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        blocking = false
        [watcher.web]
        cmd = "PROBE count $(circus.socket.web)"
        type = "notify"
        "#,
    );
    let old = manager.pids("web")[0];
    let mut stream = TcpStream::connect(manager.address("web")).expect("connect");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("set a timeout");
    // Half a request: the worker has accepted it, and waits for the rest.
    stream.write_all(b"10\nhello").expect("ask");
    let accepted = poll(|| (threads(old) > 1).then_some(()));
    assert!(accepted.is_some());
    let mut answer = begin_reload(&manager);
    manager.wait_for("web", "has a new worker", |web| {
        let workers = web["workers"].as_array().expect("workers");
        workers
            .iter()
            .any(|worker| worker["generation"] == 2 && worker["state"] == "ready")
    });
    // New clients are the new worker's.
    let said = ask_count(&manager.address("web"));
    assert_ne!(said, old);
    assert!(is_alive(old));
    stream.write_all(b"world").expect("ask");
    let mut text = Vec::new();
    stream.read_to_end(&mut text).expect("an answer");
    let head = format!("10 {old} last\n");
    assert!(
        text.starts_with(head.as_bytes()),
        "{:?}",
        String::from_utf8_lossy(&text)
    );
    assert_eq!(text.len(), head.len() + 10);
    assert_eq!(
        receive(&mut answer).expect("an answer")["error"],
        Value::Null
    );
    wait_until_dead(old);
}

fn threads(pid: i32) -> usize {
    support::process_status(pid, "Threads")
        .parse()
        .expect("a number")
}

/// The pid of whoever answers an empty request.
fn ask_count(address: &str) -> i32 {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("set a timeout");
    stream.write_all(b"0\n").expect("ask");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("that was all");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.split(' ')
        .nth(1)
        .expect("a pid")
        .parse()
        .expect("a number")
}

#[test]
fn an_old_worker_that_does_not_end_is_killed_after_its_graceful_timeout() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do ignore 15 , append DIR/up x , sleep"
        graceful_timeout = "400ms"
        "#,
    );
    manager.wait_for_lines("up", 1);
    let old = manager.pids("web")[0];
    let begun = Instant::now();
    manager.ok(&["reload", "web"]);
    assert!(begun.elapsed() >= Duration::from_millis(390));
    assert!(!is_alive(old));
    assert_eq!(manager.watcher("web")["restarts"], 0);
}

#[test]
fn a_stop_in_the_middle_ends_both_workers_and_answers_both_commands() {
    let manager = Manager::spawn(GATED);
    manager.touch("go");
    manager.wait_for_state("web", "running");
    std::fs::remove_file(manager.path("go")).expect("close the gate");
    let mut reload = begin_reload(&manager);
    manager.wait_for_lines("born", 4);
    manager.ok(&["stop", "web"]);
    assert_eq!(manager.watcher("web")["state"], "stopped");
    let answer = receive(&mut reload).expect("an answer");
    assert_ne!(answer["error"], Value::Null, "{answer}");
    let left = poll(|| manager.offspring().is_empty().then_some(()));
    assert!(
        left.is_some(),
        "{:?}\n{}",
        manager.offspring(),
        manager.log()
    );
    // And it starts as ever.
    manager.touch("go");
    manager.ok(&["start", "web"]);
    assert_eq!(manager.pids("web").len(), 3);
}

#[test]
fn sigterm_in_the_middle_leaves_nothing() {
    for ignores in [false, true] {
        let mut manager = Manager::spawn(
            &GATED
                .replace(
                    "do append",
                    if ignores {
                        "do ignore 15 , append"
                    } else {
                        "do append"
                    },
                )
                .replace(
                    "numprocesses = 3",
                    "numprocesses = 3\ngraceful_timeout = \"300ms\"",
                ),
        );
        manager.touch("go");
        manager.wait_for_state("web", "running");
        std::fs::remove_file(manager.path("go")).expect("close the gate");
        manager.ok(&["reload", "--no-wait", "web"]);
        manager.wait_for_lines("born", 4);
        assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
        manager.wait_until_childless();
    }
}

#[test]
fn a_worker_that_dies_while_the_others_are_replaced_is_made_good() {
    let manager = Manager::spawn(GATED);
    manager.touch("go");
    manager.wait_for_state("web", "running");
    let before = manager.snapshot();
    std::fs::remove_file(manager.path("go")).expect("close the gate");
    let mut reload = begin_reload(&manager);
    manager.wait_for_lines("born", 4);
    // The last one: its turn has not come.
    kill(before.pids("web")[2], libc::SIGKILL);
    wait_until_dead(before.pids("web")[2]);
    manager.touch("go");
    receive(&mut reload).expect("an answer");
    manager.wait_for("web", "was whole", |web| {
        web["state"] == "running" && web["ready"] == 3
    });
    assert_eq!(manager.watcher("web")["restarts"], 1);
    let pids = manager.pids("web");
    assert!(
        pids.iter()
            .all(|pid| is_alive(*pid) && !before.pids("web").contains(pid))
    );
}

#[test]
fn a_scale_in_the_middle_ends_with_the_right_number() {
    let manager = Manager::spawn(GATED);
    manager.touch("go");
    manager.wait_for_state("web", "running");
    for wanted in ["1", "5"] {
        std::fs::remove_file(manager.path("go")).expect("close the gate");
        let born = manager.lines("born").len();
        let mut reload = begin_reload(&manager);
        manager.wait_for_lines("born", born + 1);
        manager.ok(&["scale", "--no-wait", "web", wanted]);
        manager.touch("go");
        receive(&mut reload).expect("an answer");
        let wanted: usize = wanted.parse().expect("a number");
        manager.wait_for("web", "has that many", |web| {
            web["state"] == "running"
                && web["workers"]
                    .as_array()
                    .is_some_and(|all| all.len() == wanted)
        });
        let left = poll(|| (manager.offspring().len() == wanted).then_some(()));
        assert!(
            left.is_some(),
            "{:?}\n{}",
            manager.offspring(),
            manager.log()
        );
    }
}

#[test]
fn a_reload_while_another_is_under_way_is_done_too() {
    let manager = Manager::spawn(GATED);
    manager.touch("go");
    manager.wait_for_state("web", "running");
    std::fs::remove_file(manager.path("go")).expect("close the gate");
    let mut first = begin_reload(&manager);
    manager.wait_for_lines("born", 4);
    let mut second = begin_reload(&manager);
    manager.touch("go");
    for answer in [&mut first, &mut second] {
        let answer = receive(answer).expect("an answer");
        // The second is refused, or done after the first; it is never forgotten.
        if answer["error"] != Value::Null {
            assert!(
                answer["parameters"]["reason"].as_str().is_some(),
                "{answer}"
            );
        }
    }
    manager.wait_for_state("web", "running");
    assert_eq!(manager.pids("web").len(), 3);
}

#[test]
fn all_of_them_are_reloaded_with_all() {
    let manager = Manager::start(
        r#"
        [watcher.a]
        cmd = "PROBE sleep"
        [watcher.b]
        cmd = "PROBE sleep"
        numprocesses = 2
        "#,
    );
    let before = manager.snapshot();
    manager.ok(&["reload", "--all"]);
    let after = manager.snapshot();
    for watcher in ["a", "b"] {
        let olds = before.pids(watcher);
        assert!(after.pids(watcher).iter().all(|pid| !olds.contains(pid)));
    }
}

#[test]
fn a_shard_is_handed_to_the_worker_that_takes_over() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        so_reuseport = true
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        numprocesses = 2
        "#,
    );
    let shard = |pid: i32| support::fd_target(pid, 3);
    let before: Vec<String> = manager.pids("web").into_iter().map(shard).collect();
    assert_ne!(before[0], before[1]);
    manager.ok(&["reload", "web"]);
    let after: Vec<String> = manager.pids("web").into_iter().map(shard).collect();
    assert_eq!(after, before);
}

#[test]
fn the_generation_is_told_to_the_worker() {
    let manager = Manager::start("[watcher.web]\ncmd = \"PROBE sleep\"");
    for generation in ["1", "2", "3"] {
        let pid = manager.pids("web")[0];
        assert_eq!(environment(pid)["TENTPOLE_GENERATION"], generation);
        manager.ok(&["reload", "web"]);
    }
}
