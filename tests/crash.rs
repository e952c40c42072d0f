//! A manager that is killed: another one takes over the sockets and the workers, and goes on.

mod support;

use std::ffi::OsStr;
use std::io::{BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::lives::open_descriptors;
use support::load::Random;
use support::{
    DEADLINE, Manager, ask, begin, finish, freeze, is_alive, kill, needs_program, needs_root, poll,
    process_status, receive, send, wait_until_dead,
};

const WEB: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    [watcher.web]
    cmd = "PROBE serve $(circus.socket.web)"
    numprocesses = 2
    "#;

/// Kills the manager while its keeper stands still, and has something happen before there is another one.
fn crash_and_meanwhile(manager: &Manager, meanwhile: impl FnOnce()) -> i32 {
    let old = manager.manager_pid();
    freeze(manager.pid());
    kill(old, libc::SIGKILL);
    meanwhile();
    kill(manager.pid(), libc::SIGCONT);
    manager.wait_for_manager_after(old)
}

/// Units whose workers are many and slow enough for something to happen in the middle.
fn many(mark: &str, count: usize) -> String {
    format!(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        blocking = false
        [watcher.web]
        cmd = "PROBE count $(circus.socket.web) 10"
        type = "notify"
        numprocesses = {count}
        reload_surge = 2
        env = {{ MARK = "{mark}" }}
        "#
    )
}

/// What runs is what should: each wid once, and no process that `status` does not show.
fn assert_sane(manager: &Manager, wanted: usize) {
    let watcher = manager.wait_for("web", "had its workers", |web| {
        web["state"] == "running" && web["workers"].as_array().expect("workers").len() == wanted
    });
    let mut wids: Vec<u64> = watcher["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .map(|worker| worker["wid"].as_u64().expect("a wid"))
        .collect();
    wids.dedup();
    assert_eq!(wids, (1..=wanted as u64).collect::<Vec<_>>());
    let mut known = manager.pids("web");
    known.sort_unstable();
    let mut alive = Vec::new();
    let same = poll(|| {
        alive = manager.offspring();
        alive.sort_unstable();
        (alive == known).then_some(())
    });
    assert!(
        same.is_some(),
        "{alive:?} live, {known:?} are known\n{}\n{:#}",
        manager.log(),
        manager.watcher("web")
    );
}

#[test]
fn workers_and_listeners_are_the_same_as_before() {
    let mut manager = Manager::start(WEB);
    let before = manager.snapshot();
    let since = manager.status()["manager"]["since"].clone();
    let old = manager.manager_pid();
    assert_ne!(old, manager.pid(), "the started process is the keeper");
    assert_eq!(manager.status()["manager"]["pid"], old);
    let new = manager.crash();
    assert_ne!(new, old);
    assert_eq!(manager.manager_pid(), new);
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    assert_eq!(manager.status()["manager"]["since"], since);
    assert_eq!(manager.watcher("web")["state"], "running");
    assert_eq!(manager.socket("web")["state"], "listening");
    assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
}

#[test]
fn a_new_manager_is_there_within_a_tenth_of_a_second() {
    let manager = Manager::start(WEB);
    let mut times = Vec::new();
    for _ in 0..5 {
        // A keeper waits longer and longer for managers that do not live.
        std::thread::sleep(Duration::from_millis(120));
        let old = manager.manager_pid();
        let begun = Instant::now();
        kill(old, libc::SIGKILL);
        let answered = poll(|| {
            let mut stream = UnixStream::connect(manager.path("control")).ok()?;
            stream
                .set_read_timeout(Some(DEADLINE))
                .expect("set a timeout");
            let question =
                serde_json::json!({"method": "io.tentpole.Manager.Status", "parameters": {}});
            stream.write_all(question.to_string().as_bytes()).ok()?;
            stream.write_all(&[0]).ok()?;
            receive(&mut BufReader::new(stream))
        });
        times.push(begun.elapsed());
        assert!(answered.is_some(), "{}", manager.log());
    }
    times.sort_unstable();
    eprintln!("a new manager answers after {times:?}");
    // The machine may do something else now and then, but not each time.
    assert!(times[0] < Duration::from_millis(100), "{times:?}");
}

#[test]
fn a_worker_that_ends_later_is_restarted_and_its_exit_code_known() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.job]
        cmd = "PROBE do await DIR/end , exit 7"
        restart = "never"
        "#,
    );
    let first = manager.pids("web")[0];
    manager.crash();
    kill(first, libc::SIGKILL);
    let web = manager.wait_for("web", "was restarted", |web| {
        web["restarts"] == 1 && web["state"] == "running"
    });
    assert_ne!(web["workers"][0]["pid"], first);
    ask(&manager.address("web"), "pid");
    manager.touch("end");
    let job = manager.wait_for("job", "ended", |job| {
        job["workers"] == serde_json::json!([])
    });
    assert!(
        job["error"]
            .as_str()
            .is_some_and(|error| error.contains('7'))
            || manager.log().contains("code 7"),
        "{job:#}\n{}",
        manager.log()
    );
}

#[test]
fn a_worker_that_died_while_there_was_no_manager_is_restarted_and_counted() {
    let manager = Manager::start(WEB);
    let before = manager.snapshot();
    let pids = before.pids("web");
    crash_and_meanwhile(&manager, || kill(pids[0], libc::SIGKILL));
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 1 && web["ready"] == 2
    });
    let after = manager.snapshot();
    assert_eq!(after.listeners, before.listeners);
    assert_eq!(after.workers["web"][1], before.workers["web"][1]);
    assert_ne!(after.pids("web")[0], pids[0]);
    assert_eq!(after.workers["web"][0].wid, 1);
}

#[test]
fn all_workers_may_die_while_there_is_no_manager() {
    let manager = Manager::start(WEB);
    let before = manager.snapshot();
    crash_and_meanwhile(&manager, || {
        for pid in before.pids("web") {
            kill(pid, libc::SIGKILL);
        }
    });
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 2 && web["ready"] == 2
    });
    assert_eq!(manager.snapshot().listeners, before.listeners);
    ask(&manager.address("web"), "pid");
}

#[test]
fn a_job_that_has_done_its_work_while_there_was_no_manager_is_not_done_again() {
    let manager = Manager::start(
        r#"
        [watcher.job]
        type = "oneshot"
        cmd = "PROBE do append DIR/runs x , await DIR/end"
        "#
        .replace("[watcher.job]", "[watcher.job]\nautostart = false")
        .as_str(),
    );
    manager.ok(&["start", "--no-wait", "job"]);
    manager.wait_for_lines("runs", 1);
    let pid = manager.pids("job")[0];
    crash_and_meanwhile(&manager, || {
        manager.touch("end");
        wait_until_dead(pid);
    });
    manager.wait_for_state("job", "stopped");
    assert_eq!(manager.lines("runs").len(), 1);
}

#[test]
fn adopted_workers_are_still_listened_to() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do notify READY=1;STATUS=before , await DIR/go , notify STATUS=after , repeat 20 WATCHDOG=1"
        type = "notify"
        [watcher.dog]
        cmd = "PROBE do notify READY=1 , unless DIR/enough { repeat 20 WATCHDOG=1 } , sleep"
        type = "notify"
        watchdog = "400ms"
        "#,
    );
    let before = manager.snapshot();
    manager.crash();
    assert_eq!(manager.watcher("web")["workers"][0]["status"], "before");
    manager.touch("go");
    manager.wait_for("web", "said it", |web| {
        web["workers"][0]["status"] == "after"
    });
    // The watchdog is fed all the time.
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    // And bites when it is not.
    freeze(before.pids("dog")[0]);
    manager.wait_for("dog", "was replaced", |dog| dog["restarts"] == 1);
}

#[test]
fn a_worker_that_becomes_ready_after_the_crash_is_ready() {
    let manager = Manager::spawn(
        r#"
        [watcher.web]
        cmd = "PROBE do append DIR/up x , await DIR/go , notify READY=1 , sleep"
        type = "notify"
        [watcher.gap]
        cmd = "PROBE do append DIR/up x , await DIR/now , notify READY=1 , append DIR/said x , sleep"
        type = "notify"
        "#,
    );
    manager.wait_for_lines("up", 2);
    let web = manager.pids("web");
    crash_and_meanwhile(&manager, || {
        // Said to nobody: it waits in the socket.
        manager.touch("now");
        manager.wait_for_lines("said", 1);
    });
    manager.wait_for_state("gap", "running");
    assert_eq!(manager.watcher("web")["state"], "starting");
    manager.touch("go");
    manager.wait_for_state("web", "running");
    assert_eq!(manager.pids("web"), web);
    manager.wait_for_notice("READY=1");
}

#[test]
fn a_start_that_is_late_is_late_by_the_old_clock() {
    let manager = Manager::spawn(
        r#"
        [watcher.web]
        cmd = "PROBE do append DIR/up x , sleep"
        type = "notify"
        start_timeout = "1500ms"
        max_retry = 0
        "#,
    );
    manager.wait_for_lines("up", 1);
    let begun = Instant::now();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(200));
        manager.crash();
    }
    manager.wait_for_state("web", "failed");
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}\n{}",
        begun.elapsed(),
        manager.log()
    );
    assert_eq!(manager.lines("up").len(), 1);
}

#[test]
fn a_stop_after_a_crash_finds_what_workers_have_left_behind() {
    let mut manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do child { sleep } , child { ignore 15 , sleep } , daemon { append DIR/daemon %p , sleep } , append DIR/up x , sleep"
        [watcher.stays]
        cmd = "PROBE sleep"
        "#,
    );
    manager.wait_for_lines("up", 1);
    manager.wait_for_lines("daemon", 1);
    manager.crash();
    manager.ok(&["stop", "web"]);
    let mut left = Vec::new();
    let gone = poll(|| {
        left = manager.offspring();
        (left.len() == 1).then_some(())
    });
    assert!(gone.is_some(), "{left:?}\n{}", manager.log());
    assert_eq!(manager.stop().code(), Some(0));
    manager.wait_until_childless();
}

#[test]
fn what_a_dead_worker_left_behind_is_killed_by_the_next_manager() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do daemon { append DIR/daemon %p , sleep } , append DIR/up x , sleep"
        restart = "never"
        "#,
    );
    manager.wait_for_lines("up", 1);
    let stray: i32 = manager.wait_for_lines("daemon", 1)[0]
        .parse()
        .expect("a pid");
    let pid = manager.pids("web")[0];
    crash_and_meanwhile(&manager, || {
        kill(pid, libc::SIGKILL);
        wait_until_dead(pid);
    });
    wait_until_dead(stray);
    manager.wait_for_state("web", "failed");
}

#[test]
fn killed_in_the_middle_of_a_start_of_many_it_makes_no_worker_twice() {
    let mut random = Random::new("kill -9 in the middle of a start");
    for _ in 0..6 {
        let mut manager = Manager::spawn(&many("0", 30));
        manager.connect();
        std::thread::sleep(random.micros(80_000));
        kill(manager.manager_pid(), libc::SIGKILL);
        manager.wait_for_notice("READY=1");
        assert_sane(&manager, 30);
        assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
        manager.wait_until_childless();
    }
}

#[test]
fn killed_in_its_first_moments_it_comes_up_all_the_same() {
    let mut random = Random::new("kill -9 in the first moments");
    for _ in 0..10 {
        let mut manager = Manager::spawn(&many("0", 3));
        // The keeper must be there; before, it is the manager itself that dies.
        let first = manager.manager_pid();
        std::thread::sleep(random.micros(8_000));
        kill(first, libc::SIGKILL);
        manager.wait_for_notice("READY=1");
        assert_sane(&manager, 3);
        assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
        manager.wait_until_childless();
    }
}

#[test]
fn killed_in_the_middle_of_a_reload_it_ends_up_with_each_worker_once() {
    let mut random = Random::new("kill -9 in the middle of a reload");
    let manager = Manager::start(&many("0", 8));
    let listeners = manager.snapshot().listeners;
    for _ in 0..8 {
        manager.ok(&["reload", "--no-wait", "web"]);
        std::thread::sleep(random.micros(60_000));
        manager.crash();
        assert_sane(&manager, 8);
        assert_eq!(manager.snapshot().listeners, listeners);
    }
    // A reload works as ever.
    let before = manager.snapshot();
    manager.ok(&["reload", "web"]);
    let after = manager.snapshot();
    assert!(
        after
            .pids("web")
            .iter()
            .all(|pid| !before.pids("web").contains(pid))
    );
}

#[test]
fn killed_while_a_socket_has_two_names_it_keeps_the_one_kernel_socket() {
    let units = |name: &str| {
        format!(
            r#"
            [socket.{name}]
            listen = "DIR/web.sock"
            [watcher.web]
            cmd = "PROBE do append DIR/born x , await DIR/{name} , notify READY=1 , serve $(circus.socket.{name})"
            type = "notify"
            "#
        )
    };
    let manager = Manager::start(&units("old").replace("await DIR/old , ", ""));
    let path = manager.path("web.sock").display().to_string();
    let listeners = support::lives::listeners(&path);
    manager.write(&units("new"));
    manager.ok(&["apply", "--no-wait"]);
    manager.wait_for_lines("born", 2);
    manager.crash();
    manager.touch("new");
    let old = manager.pids("web");
    manager.wait_for("web", "was reloaded", |web| {
        web["state"] == "running" && web["workers"][0]["generation"] == 2
    });
    assert_eq!(old.len(), 2);
    assert_eq!(support::lives::listeners(&path), listeners);
    // The old name is gone, and has not taken the socket or its file along.
    manager.crash();
    assert_eq!(
        manager.status()["sockets"].as_array().map(Vec::len),
        Some(1)
    );
    UnixStream::connect(&path).expect("somebody listens");
}

#[test]
fn killed_in_the_middle_of_an_apply_it_ends_up_with_the_old_units_or_the_new() {
    let mut random = Random::new("kill -9 in the middle of an apply");
    let manager = Manager::start(&many("0", 4));
    let listeners = manager.snapshot().listeners;
    for round in 1..9 {
        let count = 4 + round % 3;
        manager.write(&many(&round.to_string(), count));
        manager.ok(&["apply", "--no-wait"]);
        std::thread::sleep(random.micros(40_000));
        manager.crash();
        assert_sane(
            &manager,
            manager.watcher("web")["wanted"].as_u64().expect("a number") as usize,
        );
        assert_eq!(manager.snapshot().listeners, listeners);
        // The next apply gets there in any case.
        manager.ok(&["apply"]);
        assert_sane(&manager, count);
        let mark = support::environment(manager.pids("web")[0]);
        assert_eq!(mark["MARK"], round.to_string());
    }
}

#[test]
fn killed_in_the_middle_of_a_stop_it_goes_on_stopping() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do ignore 15 , append DIR/up x , sleep"
        numprocesses = 3
        graceful_timeout = "500ms"
        "#,
    );
    manager.wait_for_lines("up", 3);
    let pids = manager.pids("web");
    manager.ok(&["stop", "--no-wait", "web"]);
    assert_eq!(manager.watcher("web")["state"], "stopping");
    manager.crash();
    manager.wait_for_state("web", "stopped");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    manager.ok(&["start", "web"]);
    manager.wait_for_lines("up", 6);
}

#[test]
fn killed_while_it_ends_it_ends() {
    let mut manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do ignore 15 , append DIR/up x , sleep"
        numprocesses = 3
        graceful_timeout = "1s"
        "#,
    );
    manager.wait_for_lines("up", 3);
    let begun = Instant::now();
    manager.signal(libc::SIGTERM);
    manager.wait_for_state("web", "stopping");
    kill(manager.manager_pid(), libc::SIGKILL);
    assert_eq!(manager.wait().code(), Some(0), "{}", manager.log());
    // As gracefully as it was asked to.
    assert!(
        begun.elapsed() >= Duration::from_millis(950),
        "{}",
        manager.log()
    );
    manager.wait_until_childless();
}

#[test]
fn a_stop_that_comes_while_there_is_no_manager_is_done_by_the_next() {
    let mut manager = Manager::start(WEB);
    let old = manager.manager_pid();
    freeze(manager.pid());
    kill(old, libc::SIGKILL);
    manager.signal(libc::SIGTERM);
    kill(manager.pid(), libc::SIGCONT);
    assert_eq!(manager.wait().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
    assert!(!manager.path("control").exists());
}

#[test]
fn backoff_and_failures_outlive_the_manager() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do append DIR/runs x , exit 3"
        restart_delay = "30s"
        [watcher.lost]
        cmd = "PROBE exit 4"
        max_retry = 1
        type = "notify"
        "#,
    );
    manager.wait_for_state("web", "backoff");
    manager.wait_for_state("lost", "failed");
    let runs = manager.lines("runs").len();
    let before = (manager.watcher("web"), manager.watcher("lost"));
    manager.crash();
    assert_eq!((manager.watcher("web"), manager.watcher("lost")), before);
    assert_eq!(manager.lines("runs").len(), runs);
    // A start ends the wait, as ever.
    manager.cli(&["start", "web"]);
    manager.wait_for_lines("runs", runs + 1);
}

#[test]
fn an_armed_socket_still_starts_its_watcher() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        on_demand = true
        "#,
    );
    let address = manager.address("web");
    assert_eq!(manager.socket("web")["state"], "armed");
    manager.crash();
    assert_eq!(manager.socket("web")["state"], "armed");
    assert_ne!(ask(&address, "pid"), "");
    assert_eq!(manager.watcher("web")["state"], "running");
}

#[test]
fn a_client_that_comes_while_there_is_no_manager_waits() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        on_demand = true
        "#,
    );
    let address = manager.address("web");
    let mut client = None;
    crash_and_meanwhile(&manager, || {
        let address = address.clone();
        let mut stream = std::net::TcpStream::connect(&address).expect("connect");
        writeln!(stream, "pid").expect("ask");
        client = Some(stream);
    });
    let mut answer = String::new();
    let mut client = client.expect("a client");
    client
        .set_read_timeout(Some(DEADLINE))
        .expect("set a timeout");
    std::io::Read::read_to_string(&mut client, &mut answer).expect("an answer");
    assert_eq!(answer.trim(), manager.pids("web")[0].to_string());
}

#[test]
fn a_command_whose_manager_dies_is_told_so() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do ignore 15 , append DIR/up x , sleep"
        graceful_timeout = "2s"
        "#,
    );
    manager.wait_for_lines("up", 1);
    let control = manager.path("control");
    let stop = std::thread::spawn(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tentpole"));
        command.arg("--control").arg(control).args(["stop", "web"]);
        support::bounded(&mut command)
    });
    manager.wait_for_state("web", "stopping");
    manager.crash();
    let output = stop.join().expect("no panic");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_manager_whose_keeper_is_killed_makes_another() {
    let slow = "[watcher.slow]\ncmd = 'PROBE sleep'\nstop_signal = 'URG'\ngraceful_timeout = 1\n";
    let manager = Manager::start(&format!("{WEB}{slow}"));
    let before = manager.snapshot();
    let (keeper, old) = (manager.pid(), manager.manager_pid());
    // A command that is under way goes on.
    let stop = std::thread::scope(|scope| {
        let stop = scope.spawn(|| manager.cli(&["stop", "slow"]));
        manager.wait_for_state("slow", "stopping");
        kill(keeper, libc::SIGKILL);
        stop.join().expect("no panic")
    });
    assert!(stop.status.success(), "{stop:?}");
    let new = manager.wait_for_manager_after(old);
    assert_eq!(
        process_status(new, "PPid"),
        old.to_string(),
        "the old one is the keeper"
    );
    assert_eq!(manager.snapshot().workers["web"], before.workers["web"]);
    assert_eq!(manager.snapshot().listeners, before.listeners);
    // Its exits are told by the keeper now.
    kill(before.pids("web")[0], libc::SIGKILL);
    manager.wait_for("web", "was made whole", |web| {
        web["restarts"] == 1 && web["ready"] == 2
    });
    ask(&manager.address("web"), "pid");
    // It does not spin on what is hung up, nor does the keeper.
    let busy = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        let (_, rest) = stat.rsplit_once(')').expect("a name");
        let times = rest.split_whitespace().skip(11).take(2);
        times
            .map(|time| time.parse::<u64>().expect("a number"))
            .sum::<u64>()
    };
    let begun = busy(new) + busy(old);
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        busy(new) + busy(old) - begun < 20,
        "they are busy with nothing"
    );
    // Signals to it are signals to the manager.
    kill(old, libc::SIGTERM);
    wait_until_dead(old);
    wait_until_dead(new);
    manager.wait_until_childless();
}

#[test]
fn keepers_and_managers_are_killed_in_turn_and_nothing_is_lost() {
    let manager = Manager::start(WEB);
    let before = manager.snapshot();
    let mut keeper = manager.pid();
    // Whoever is its parent.
    let current = |manager: &Manager| manager.wait_for_manager_after(0);
    for round in 0..6 {
        let old = current(&manager);
        let waiting = begin(&manager.address("web"), "pid");
        match round % 3 {
            0 | 1 => {
                kill(keeper, libc::SIGKILL);
                manager.wait_for_manager_after(old);
                keeper = old;
            }
            _ => {
                kill(old, libc::SIGKILL);
                manager.wait_for_manager_after(old);
            }
        }
        finish(waiting);
        assert_eq!(manager.snapshot(), before, "round {round}");
    }
    let upgraded = manager.ok(&["upgrade"]);
    assert!(upgraded.contains("upgraded"), "{upgraded}");
    assert_eq!(manager.snapshot(), before);
    // What the upgrade had been told is not passed on to the managers that the next keeper starts.
    let old = current(&manager);
    kill(keeper, libc::SIGKILL);
    manager.wait_for_manager_after(old);
    keeper = old;
    let old = current(&manager);
    kill(old, libc::SIGKILL);
    manager.wait_for_manager_after(old);
    assert_eq!(manager.snapshot(), before);
    manager.ok(&["shutdown"]);
    wait_until_dead(keeper);
    manager.wait_until_childless();
}

#[test]
fn strays_of_workers_that_have_lost_two_parents_are_found() {
    let manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do daemon { append DIR/stray %p , sleep } , sleep"
        "#,
    );
    manager.wait_for_lines("stray", 1);
    // After the first the manager is their parent still, after the second it is whoever reaps here.
    let mut keeper = manager.pid();
    for _ in 0..2 {
        let old = manager.wait_for_manager_after(0);
        kill(keeper, libc::SIGKILL);
        manager.wait_for_manager_after(old);
        keeper = old;
    }
    let begun = Instant::now();
    manager.ok(&["stop", "web"]);
    // A zombie of somebody else's is not waited for.
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    manager.wait_until_childless();
    manager.ok(&["shutdown"]);
    wait_until_dead(keeper);
}

#[test]
fn what_a_killed_manager_and_keeper_left_is_named_as_a_worker() {
    let manager = Manager::start(
        "[socket.web]\nlisten = 'DIR/web.sock'\n[watcher.web]\ncmd = 'PROBE sleep'\nsockets = ['web']",
    );
    let worker = manager.pids("web")[0];
    // The keeper first: it would start another.
    let both = [manager.pid(), manager.manager_pid()];
    for pid in both {
        kill(pid, libc::SIGKILL);
    }
    wait_until_dead(both[1]);
    let units = manager.path("units.toml").display().to_string();
    let output = manager.cli(&["run", &units]);
    kill(worker, libc::SIGKILL);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let named = format!("(pid {worker}), a worker of watcher `web`");
    assert!(text.contains(&named), "{text}");
    assert!(text.contains(&format!("`kill {worker}`")), "{text}");
}

#[test]
fn a_manager_that_dies_again_and_again_is_not_started_in_a_loop() {
    let mut manager = Manager::start(WEB);
    let before = manager.snapshot();
    let begun = Instant::now();
    let mut dead = std::collections::BTreeSet::new();
    while begun.elapsed() < Duration::from_millis(1500) {
        let pid = manager.manager_pid();
        kill(pid, libc::SIGKILL);
        dead.insert(pid);
    }
    let deaths = dead.len();
    // 0, 20, 40, ... 640 ms: each at once would be hundreds.
    assert!((3..30).contains(&deaths), "{deaths} deaths");
    manager.wait_for_manager_after(0);
    assert_eq!(manager.snapshot(), before);
    assert_eq!(manager.stop().code(), Some(0));
}

#[test]
fn descriptors_do_not_grow_with_crashes() {
    let manager = Manager::start(WEB);
    let settled = |manager: &Manager| {
        manager.status();
        (
            open_descriptors(manager.pid()),
            open_descriptors(manager.manager_pid()),
        )
    };
    manager.crash();
    let before = settled(&manager);
    let is_more = |now: (usize, usize)| now.0 > before.0 || now.1 > before.1;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(110));
        manager.crash();
    }
    // One more may be that of a command that has its answer.
    let no_more = poll(|| (!is_more(settled(&manager))).then_some(()));
    assert!(no_more.is_some(), "{:?}, not {before:?}", settled(&manager));
}

#[test]
fn without_a_keeper_there_is_one_process() {
    let mut manager = Manager::spawn_with(WEB, |command| {
        command.arg("--no-keeper");
    });
    manager.wait_for_notice("READY=1");
    assert_eq!(manager.status()["manager"]["pid"], manager.pid());
    let pids = manager.pids("web");
    assert_eq!(manager.offspring(), pids);
    assert_eq!(manager.stop().code(), Some(0));
    manager.wait_until_childless();
}

#[test]
fn the_exit_code_of_a_critical_watcher_comes_through_the_keeper_after_a_crash_too() {
    let mut manager = Manager::start(
        r#"
        [watcher.web]
        cmd = "PROBE do await DIR/end , exit 42"
        restart = "never"
        critical = true
        "#,
    );
    manager.crash();
    manager.touch("end");
    assert_eq!(manager.wait().code(), Some(42), "{}", manager.log());
}

#[test]
fn units_that_are_broken_meanwhile_do_not_matter() {
    let manager = Manager::start(WEB);
    let before = manager.snapshot();
    manager.write("[watcher.web\ncmd = ");
    manager.crash();
    assert_eq!(manager.snapshot(), before);
    let output = manager.cli(&["apply"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn as_pid_1_of_a_container_it_survives_its_manager() {
    if !(needs_root() && needs_program("unshare")) {
        return;
    }
    let tried = Command::new("unshare")
        .args(["--pid", "--mount", "--fork", "true"])
        .stderr(Stdio::null())
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        support::leave_out("namespaces can't be made here");
        return;
    }
    let mut manager = support::spawn_by_script(
        WEB,
        r#"exec unshare --pid --mount --fork --kill-child=KILL sh -c 'mount -t proc proc /proc; exec "$@"' sh "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let first = manager.status()["manager"]["pid"].clone();
    assert_ne!(first, 1);
    let workers = manager.watcher("web")["workers"].clone();
    let child_of = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        text.split_whitespace().next()?.parse::<i32>().ok()
    };
    let keeper = child_of(manager.pid()).expect("a keeper");
    kill(child_of(keeper).expect("a manager"), libc::SIGKILL);
    let taken_over = poll(|| {
        let output = manager.cli(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["manager"]["pid"] != first).then_some(status)
    });
    let status = taken_over.unwrap_or_else(|| panic!("no new manager\n{}", manager.log()));
    assert_eq!(status["watchers"][0]["workers"], workers);
    ask(&manager.address("web"), "pid");
    kill(keeper, libc::SIGTERM);
    assert_eq!(manager.wait().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
}

/// systemd's part: a store of descriptors, and a service that is started again with what is in it.
mod under_systemd {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;
    use std::process::Child;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// The workers of a manager that died become children of the process that started it, as they would be systemd's, and only
    /// their cgroup tells them from those of another service: here all have the same. So there is one service at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    struct Systemd {
        _alone: MutexGuard<'static, ()>,
        dir: tempfile::TempDir,
        socket: UnixDatagram,
        stored: Vec<(String, OwnedFd)>,
        /// Workers that have become its children.
        workers: std::cell::RefCell<BTreeSet<i32>>,
        ready: bool,
        service: Option<Child>,
    }

    impl Systemd {
        fn start(units: &str) -> Systemd {
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let dir = support::folder();
            support::write_units(dir.path(), units);
            let socket = UnixDatagram::bind(dir.path().join("notify")).expect("bind");
            socket
                .set_read_timeout(Some(Duration::from_millis(20)))
                .expect("set a timeout");
            // Whatever becomes of the manager, its workers stay: as with KillMode=process.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
            let mut systemd = Systemd {
                _alone: alone,
                dir,
                socket,
                stored: Vec::new(),
                workers: std::cell::RefCell::default(),
                ready: false,
                service: None,
            };
            systemd.run();
            systemd
        }

        /// Starts the service with what is stored.
        fn run(&mut self) {
            let mut command = support::command(self.dir.path());
            let log = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.dir.path().join("log"))
                .expect("open the log");
            let names: Vec<&str> = self.stored.iter().map(|(name, _)| name.as_str()).collect();
            // LISTEN_PID must be the pid that the program gets.
            let mut shell = Command::new("/bin/sh");
            shell.args([
                "-c",
                "if [ -n \"$LISTEN_FDS\" ]; then LISTEN_PID=$$; export LISTEN_PID; fi; exec \"$@\"",
                "sh",
            ]);
            shell
                .arg(command.get_program())
                .arg("run")
                .arg(self.dir.path().join("units.toml"));
            shell
                .env("TENTPOLE_CONTROL", self.dir.path().join("control"))
                .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
                .env("FDSTORE", "100")
                .env_remove("LISTEN_FDS")
                .env_remove("LISTEN_FDNAMES");
            if !names.is_empty() {
                shell
                    .env("LISTEN_FDS", names.len().to_string())
                    .env("LISTEN_FDNAMES", names.join(":"));
                let fds: Vec<_> = self.stored.iter().map(|(_, fd)| fd.as_fd()).collect();
                support::pass_fds(&mut shell, &fds);
            }
            shell
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("share the log"))
                .stderr(log);
            command = shell;
            self.ready = false;
            self.service = Some(command.spawn().expect("start the service"));
        }

        fn pid(&self) -> i32 {
            self.service.as_ref().expect("runs").id() as i32
        }

        /// Takes what has been said, until nothing more comes for a moment, and reaps.
        fn listen(&mut self) {
            self.workers.borrow_mut().retain(|pid| {
                let reaped = unsafe { libc::waitpid(*pid, std::ptr::null_mut(), libc::WNOHANG) };
                reaped != *pid
            });
            while let Some((text, fds)) = receive_with_fds(&self.socket) {
                let fields: BTreeMap<&str, &str> = text
                    .lines()
                    .filter_map(|line| line.split_once('='))
                    .collect();
                let name = fields.get("FDNAME").map(|name| (*name).to_owned());
                if fields.contains_key("FDSTOREREMOVE") {
                    self.stored
                        .retain(|(other, _)| Some(other) != name.as_ref());
                }
                if fields.contains_key("FDSTORE") {
                    let name = name.expect("each has a name");
                    self.stored
                        .extend(fds.into_iter().map(|fd| (name.clone(), fd)));
                }
                self.ready |= fields.get("READY") == Some(&"1");
            }
        }

        fn wait_until_ready(&mut self) {
            let ready = poll(|| {
                self.listen();
                self.ready.then_some(())
            });
            assert!(ready.is_some(), "never ready\n{}", self.log());
            self.listen();
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
        }

        fn status(&self) -> serde_json::Value {
            let path = self.dir.path().join("control");
            let mut stream = poll(|| UnixStream::connect(&path).ok()).expect("a control socket");
            stream
                .set_read_timeout(Some(DEADLINE))
                .expect("set a timeout");
            send(
                &mut stream,
                &serde_json::json!({"method": "io.tentpole.Manager.Status", "parameters": {}}),
            );
            let status = receive(&mut BufReader::new(stream));
            let status = status.unwrap_or_else(|| panic!("no answer\n{}", self.log()));
            let status = status["parameters"].clone();
            let pids = workers(&status).into_iter().map(|(_, pid, _)| pid as i32);
            self.workers.borrow_mut().extend(pids);
            status
        }

        fn kill(&mut self) {
            let mut service = self.service.take().expect("runs");
            service.kill().expect("kill");
            service.wait().expect("wait");
            self.listen();
        }

        fn end(&mut self) -> Option<i32> {
            kill(self.pid(), libc::SIGTERM);
            let mut service = self.service.take().expect("runs");
            let status = poll(|| {
                // What it says must be taken, or it waits.
                self.listen();
                service.try_wait().expect("wait")
            });
            let status = status.unwrap_or_else(|| panic!("it does not end\n{}", self.log()));
            self.listen();
            status.code()
        }

        fn processes(&self) -> Vec<i32> {
            support::processes_of(Path::new(self.dir.path()))
        }
    }

    impl Drop for Systemd {
        fn drop(&mut self) {
            if let Some(mut service) = self.service.take() {
                let _ = service.kill();
                let _ = service.wait();
            }
            for pid in self.processes() {
                kill(pid, libc::SIGKILL);
            }
        }
    }

    fn receive_with_fds(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
        use std::os::fd::FromRawFd;
        let mut text = [0u8; 4096];
        let mut control = [0u64; 64];
        let mut data = libc::iovec {
            iov_base: text.as_mut_ptr().cast(),
            iov_len: text.len(),
        };
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &mut data;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            let length = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
            if length < 0 {
                return None;
            }
            let mut fds = Vec::new();
            let mut header = libc::CMSG_FIRSTHDR(&message);
            while !header.is_null() {
                if (*header).cmsg_type == libc::SCM_RIGHTS {
                    let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / 4;
                    let first = libc::CMSG_DATA(header).cast::<i32>();
                    fds.extend(
                        (0..count)
                            .map(|index| OwnedFd::from_raw_fd(first.add(index).read_unaligned())),
                    );
                }
                header = libc::CMSG_NXTHDR(&message, header);
            }
            let text = String::from_utf8_lossy(&text[..length as usize]).into_owned();
            Some((text, fds))
        }
    }

    fn workers(status: &serde_json::Value) -> Vec<(u64, u64, u64)> {
        let workers = status["watchers"][0]["workers"]
            .as_array()
            .expect("workers")
            .iter();
        let number =
            |worker: &serde_json::Value, name: &str| worker[name].as_u64().expect("a number");
        workers
            .map(|worker| {
                (
                    number(worker, "wid"),
                    number(worker, "pid"),
                    number(worker, "generation"),
                )
            })
            .collect()
    }

    #[test]
    fn its_store_is_used_and_what_it_hands_back_is_taken_over() {
        let mut systemd = Systemd::start(WEB);
        systemd.wait_until_ready();
        // One process: there is somebody else to keep things.
        assert_eq!(systemd.status()["manager"]["pid"], systemd.pid());
        let names: Vec<&String> = systemd.stored.iter().map(|(name, _)| name).collect();
        assert!(
            names.iter().all(|name| name.starts_with("tentpole/")),
            "{names:?}"
        );
        let mut once = names.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), names.len(), "{names:?}");

        let before = systemd.status();
        let address = before["sockets"][0]["address"]
            .as_str()
            .expect("an address")
            .to_owned();
        let inodes = support::lives::listeners(&address);
        for _ in 0..3 {
            systemd.kill();
            systemd.run();
            let after = systemd.status();
            assert_eq!(workers(&after), workers(&before), "{}", systemd.log());
            assert_eq!(after["sockets"], before["sockets"]);
            assert_eq!(support::lives::listeners(&address), inodes);
            ask(&address, "pid");
        }
        // A worker that is nobody's child is watched all the same.
        systemd.wait_until_ready();
        let victim = workers(&before)[0].1 as i32;
        kill(victim, libc::SIGKILL);
        let restarted = poll(|| {
            systemd.listen();
            let status = systemd.status();
            (status["watchers"][0]["restarts"] == 1 && status["watchers"][0]["ready"] == 2)
                .then_some(())
        });
        assert!(
            restarted.is_some(),
            "{:#}\n{}",
            systemd.status(),
            systemd.log()
        );
        assert_eq!(systemd.end(), Some(0), "{}", systemd.log());
        // Nothing is left for the next start, which is a new one.
        let left: Vec<&String> = systemd.stored.iter().map(|(name, _)| name).collect();
        assert!(left.is_empty(), "{left:?}");
        let all = poll(|| systemd.processes().is_empty().then_some(()));
        assert!(
            all.is_some(),
            "{:?}\n{}",
            systemd.processes(),
            systemd.log()
        );
    }

    #[test]
    fn an_upgrade_under_systemd_keeps_the_store() {
        let mut systemd = Systemd::start(WEB);
        systemd.wait_until_ready();
        let before = systemd.status();
        let command = |word: &str| {
            let mut command = support::command(systemd.dir.path());
            command.arg(word);
            command
        };
        let output = support::bounded(&mut command("upgrade"));
        assert!(
            output.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            systemd.log()
        );
        systemd.listen();
        assert_eq!(workers(&systemd.status()), workers(&before));
        systemd.kill();
        systemd.run();
        assert_eq!(
            workers(&systemd.status()),
            workers(&before),
            "{}",
            systemd.log()
        );
        assert_eq!(systemd.end(), Some(0), "{}", systemd.log());
    }
}

/// Everything that a manager is told by a path stands in a folder whose name is in Latin-1.
#[test]
fn paths_that_are_no_text_are_the_same_after_a_crash_and_an_upgrade() {
    let units = r#"
        [socket.web]
        listen = "./web.sock"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        working_dir = "."
        "#;
    let manager = Manager::spawn_with(units, |command| {
        let units = PathBuf::from(command.get_args().last().expect("a unit file"));
        let folder = units.with_file_name(OsStr::from_bytes(b"caf\xe9"));
        std::fs::create_dir(&folder).expect("make a folder");
        std::fs::rename(&units, folder.join("web.toml")).expect("move the units");
        std::fs::write(&units, "# none").expect("write the units");
        symlink(folder.join("control"), units.with_file_name("control")).expect("make a link");
        (command.arg("web.toml").arg("--control"))
            .arg(folder.join("control"))
            .env("LATIN", OsStr::from_bytes(b"\xe9"))
            .current_dir(folder);
    });
    manager.wait_for_notice("READY=1");
    let before = manager.snapshot();
    manager.crash();
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    manager.ok(&["upgrade"]);
    assert_eq!(manager.snapshot(), before, "{}", manager.log());
    // The definition is whole: a worker that is made of it stands where the one before did.
    kill(before.pids("web")[0], libc::SIGKILL);
    manager.wait_for("web", "was restarted", |web| {
        web["restarts"] == 1 && web["ready"] == 1
    });
    let folder = std::fs::read_link(format!("/proc/{}/cwd", manager.pids("web")[0]));
    let name = OsStr::from_bytes(b"caf\xe9");
    assert!(folder.expect("a link").ends_with(name));
    let said = manager.ok(&["apply"]);
    assert!(said.contains("nothing"), "{said}");
}
