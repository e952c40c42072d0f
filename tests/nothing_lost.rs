//! What a client notices of a reload, a restart, an apply, an upgrade, and a manager that is killed: nothing.
//!
//! Clients ask without a pause while all of that happens. A connection that is refused or reset, an answer that is short or
//! wrong, a listener that is another one, a worker that changes without a reason: each is a failure. In the end the
//! clients' books and those of the workers must agree to the byte.
//!
//! `TENTPOLE_ROUNDS=100 cargo test --test nothing_lost` is the long run.

mod support;

use std::time::{Duration, Instant};
use support::lives::Snapshot;
use support::load::{Load, Random, Tally};
use support::{Manager, bounded, command, kill, poll};

/// How often each thing is done.
fn rounds() -> u64 {
    support::rounds(20)
}

/// Two pools behind sockets of two kinds, and one that nothing is ever done to.
fn units(mark: &str, numprocesses: u64) -> String {
    format!(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        blocking = false
        [socket.local]
        listen = "DIR/local.sock"
        blocking = false
        [socket.other]
        listen = "127.0.0.1:0"
        blocking = false

        [watcher.web]
        cmd = "PROBE count $(circus.socket.web)"
        type = "notify"
        numprocesses = {numprocesses}
        env = {{ COUNTED = "DIR/counted", MARK = "{mark}" }}
        [watcher.local]
        cmd = "PROBE count $(circus.socket.local) 5"
        type = "notify"
        numprocesses = 2
        env = {{ COUNTED = "DIR/counted" }}
        [watcher.other]
        cmd = "PROBE count $(circus.socket.other)"
        env = {{ COUNTED = "DIR/counted" }}
        "#
    )
}

/// A manager under load.
struct Scene {
    manager: Manager,
    load: Option<Load>,
    before: Snapshot,
    begun: Instant,
}

impl Scene {
    fn start() -> Scene {
        Scene::with(&units("0", 3))
    }

    fn with(units: &str) -> Scene {
        let manager = Manager::start(units);
        let before = manager.snapshot();
        let sockets: Vec<&String> = before.listeners.keys().collect();
        let addresses: Vec<String> = sockets.iter().map(|name| manager.address(name)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        Scene {
            load: Some(Load::start(&addresses, 2)),
            manager,
            before,
            begun: Instant::now(),
        }
    }

    fn now(&self, what: impl Into<String>) {
        self.load.as_ref().expect("is under load").now(what);
    }

    fn run(&self, round: u64, args: &[&str]) {
        self.now(format!("{} {round}", args.join(" ")));
        self.manager.ok(args);
        self.now(format!("after {} {round}", args.join(" ")));
    }

    /// The same listeners as before; and no worker has had to be made good, but for as many as are forgiven.
    fn assert_nothing_lost_but(&self, forgiven: u64) -> Snapshot {
        let after = self.manager.snapshot();
        let log = self.manager.log();
        assert_eq!(after.listeners, self.before.listeners, "{log}");
        let restarts: u64 = after.restarts.values().sum();
        assert!(restarts <= forgiven, "{restarts} restarts\n{log}");
        assert_eq!(
            after.workers["other"], self.before.workers["other"],
            "{log}"
        );
        after
    }

    fn assert_nothing_lost(&self) -> Snapshot {
        self.assert_nothing_lost_but(0)
    }

    /// Nothing but the manager has changed.
    fn assert_same(&self) {
        assert_eq!(
            self.manager.snapshot(),
            self.before,
            "{}",
            self.manager.log()
        );
    }

    /// Ends the load, then the manager; the books of both sides must agree.
    fn end(mut self) {
        self.now("the end");
        let report = self.load.take().expect("is under load").finish();
        let code = self.manager.stop();
        assert_eq!(code.code(), Some(0), "{}", self.manager.log());
        let mut workers = Tally::default();
        let mut broken = 0;
        for line in self.manager.lines("counted") {
            let numbers: Vec<u64> = line
                .split(' ')
                .map(|word| word.parse().expect("a number"))
                .collect();
            workers.connections += numbers[0];
            workers.requests += numbers[1];
            workers.sent += numbers[2];
            workers.received += numbers[3];
            broken += numbers[4];
        }
        assert_eq!((workers, broken), (report.tally, 0));
        assert!(report.tally.requests > 100, "{report:?}");
        self.manager.wait_until_childless();
        eprintln!(
            "{}: {:.1?}, {:?}; longest {:.1?} in {}",
            std::thread::current().name().unwrap_or("main"),
            self.begun.elapsed(),
            report.tally,
            report.longest.0,
            report.longest.1
        );
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = bounded(command(self.manager.dir.path()).args(["status", "--json"]));
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            eprintln!("{}\n{status}", self.manager.log());
        }
    }
}

#[test]
fn rolling_reloads_lose_nothing() {
    let scene = Scene::start();
    for round in 0..rounds() {
        scene.run(round, &["reload", "web", "local"]);
    }
    let after = scene.assert_nothing_lost();
    for worker in [&after.workers["web"], &after.workers["local"]]
        .into_iter()
        .flatten()
    {
        assert_eq!(worker.generation, rounds() + 1, "{}", scene.manager.log());
    }
    scene.end();
}

#[test]
fn rolling_reloads_of_a_shared_port_lose_nothing() {
    let scene = Scene::with(
        &units("0", 3).replace("[socket.local]", "so_reuseport = true\n[socket.local]"),
    );
    assert_eq!(scene.before.listeners["web"].len(), 3);
    for round in 0..rounds() {
        scene.run(round, &["reload", "web"]);
    }
    let after = scene.assert_nothing_lost();
    for worker in &after.workers["web"] {
        assert_eq!(worker.generation, rounds() + 1, "{}", scene.manager.log());
    }
    assert_eq!(after.workers["local"], scene.before.workers["local"]);
    scene.end();
}

#[test]
fn restarts_make_clients_wait_and_lose_nothing() {
    let scene = Scene::start();
    for round in 0..rounds() {
        scene.run(round, &["restart", "web", "local"]);
        if round % 4 == 0 {
            scene.run(round, &["stop", "web"]);
            scene.run(round, &["start", "web"]);
        }
    }
    scene.assert_nothing_lost();
    scene.end();
}

#[test]
fn applies_lose_nothing() {
    let scene = Scene::start();
    for round in 0..rounds() {
        let (mark, count) = [("0", 3), ("1", 3), ("1", 5), ("0", 2)][(round % 4) as usize];
        let count = if round + 1 == rounds() { 4 } else { count };
        scene.manager.write(&units(mark, count));
        scene.run(round, &["apply"]);
        assert_eq!(scene.manager.watcher("web")["ready"], count);
    }
    let after = scene.assert_nothing_lost();
    assert_eq!(after.workers["local"], scene.before.workers["local"]);
    scene.end();
}

#[test]
fn upgrades_lose_nothing_and_leave_every_worker_as_it_is() {
    let scene = Scene::start();
    let manager = scene.manager.manager_pid();
    for round in 0..rounds() {
        scene.run(round, &["upgrade"]);
        scene.assert_same();
    }
    assert_eq!(scene.manager.manager_pid(), manager);
    scene.end();
}

#[test]
fn a_manager_that_is_killed_costs_nothing_and_leaves_every_worker_as_it_is() {
    let scene = Scene::start();
    let mut random = Random::new("kill -9 of the manager");
    for round in 0..rounds() {
        let pause = random.micros(60_000);
        scene.now(format!("kill -9 {round} after {pause:?}"));
        std::thread::sleep(pause);
        let old = scene.manager.manager_pid();
        kill(old, libc::SIGKILL);
        if random.below(3) == 0 {
            // Some die before they have taken over.
            let next = poll(|| Some(scene.manager.manager_pid()).filter(|pid| *pid != old));
            let next = next.expect("the next manager");
            std::thread::sleep(random.micros(5_000));
            kill(next, libc::SIGKILL);
        }
        scene.manager.wait_for_manager_after(old);
        if round % 5 == 0 {
            scene.assert_same();
        }
    }
    let longest = Duration::from_secs(10);
    support::poll_for(longest, || {
        (scene.manager.snapshot() == scene.before).then_some(())
    });
    scene.assert_same();
    scene.end();
}

#[test]
fn everything_at_random_loses_nothing() {
    let scene = Scene::start();
    let mut random = Random::new("everything at random");
    let mut mark = 0;
    let mut kills = 0;
    for round in 0..2 * rounds() {
        // The manager may die at any moment of any command, which then has no answer.
        let victim =
            (random.below(3) == 0).then(|| (scene.manager.manager_pid(), random.micros(40_000)));
        let killer = victim.map(|(pid, pause)| {
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                kill(pid, libc::SIGKILL);
            })
        });
        let what: Vec<&str> = match random.below(7) {
            0 => vec!["reload", "web"],
            1 => vec!["reload", "web", "local"],
            2 => vec!["restart", "local"],
            3 => {
                mark += 1;
                scene
                    .manager
                    .write(&units(&mark.to_string(), 2 + random.below(4)));
                vec!["apply"]
            }
            4 => vec!["upgrade"],
            5 => vec!["scale", "web", ["1", "2", "5"][random.below(3) as usize]],
            _ => vec!["status"],
        };
        let text = format!(
            "{} {round}{}",
            what.join(" "),
            match victim {
                Some((pid, pause)) => format!(" with kill -9 {pid} after {pause:?}"),
                None => String::new(),
            }
        );
        eprintln!("{text}");
        scene.now(&text);
        let output = scene.manager.cli(&what);
        if let (Some((pid, _)), Some(killer)) = (victim, killer) {
            killer.join().expect("no panic");
            kills += 1;
            scene.manager.wait_for_manager_after(pid);
        } else {
            // What the last manager was at may still be under way.
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() || output.status.code() == Some(1),
                "{text}: {stderr}"
            );
        }
        scene.now(format!("after {text}"));
    }
    for watcher in ["web", "local", "other"] {
        scene.manager.ok(&["start", watcher]);
        scene.manager.wait_for_state(watcher, "running");
    }
    // One that died after it had told workers to end, and before that was recorded, leaves deaths to the next.
    scene.assert_nothing_lost_but(5 * kills);
    scene.end();
}
