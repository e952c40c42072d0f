//! What clients and the manager lose of their time in a reload, an upgrade and a crash.

use super::goals::Bench;
use super::manager::{Control, Manager, PROGRAM, wait_for};
use super::pairs::{Found, Row};
use super::process::{kill, now};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The tests' worker, which ends as it should: it finishes what it has accepted.
const WORKER: &str = env!("CARGO_BIN_EXE_tentpole-probe");

/// How much longer than with no change at all a client may wait, in milliseconds.
const STALL: f64 = 20.0;

/// A client that asks again and again over new connections, and the longest that it has had to wait.
struct Client {
    longest: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Client {
    fn start(address: SocketAddr) -> Client {
        let (longest, ending) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (ours, end) = (Arc::clone(&longest), Arc::clone(&ending));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                let began = now();
                let mut stream = TcpStream::connect(address).context("connecting")?;
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                stream.write_all(b"5\nhello").context("asking")?;
                stream.shutdown(std::net::Shutdown::Write)?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).context("reading")?;
                anyhow::ensure!(answer.ends_with(b"\n\x97\x9a\x93\x93\x90"), "{answer:?}");
                ours.fetch_max(now() - began, Ordering::SeqCst);
            }
            Ok(())
        });
        Client {
            longest,
            ending,
            thread,
        }
    }

    /// The longest wait during something, in seconds.
    fn during(&self, something: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.longest.store(0, Ordering::SeqCst);
        something()?;
        // A wait that has begun by now is one of it.
        std::thread::sleep(Duration::from_millis(100));
        Ok(self.longest.load(Ordering::SeqCst) as f64 / 1e9)
    }

    fn finish(self) -> Result<()> {
        self.ending.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|_| Ok(()))
    }
}

/// The manager's own pid: the started process may be its keeper.
fn manager_pid(control: &mut Control) -> Result<i32> {
    let status = control.call("Status", "{\"names\":[\"web\"]}")?;
    pid_in(status).context("no pid in the status")
}

fn pid_in(status: &str) -> Option<i32> {
    let (_, rest) = status.split_once("\"pid\":")?;
    rest.split(|byte: char| !byte.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The longest stall of a client in a change, beyond that of the same client with no change, in milliseconds: the median
/// of some rounds, each of which is as long without a change as with one.
pub fn stall(bench: &Bench) -> Result<Vec<Row>> {
    let rounds = bench.rounds(15);
    let units = format!(
        "[socket.web]\nlisten = \"127.0.0.1:0\"\nblocking = false\n[watcher.web]\n\
         cmd = \"{WORKER} count $(circus.socket.web)\"\ntype = \"notify\"\nnumprocesses = 2\n"
    );
    let mut rows = Vec::new();
    for name in ["reload", "upgrade", "crash"] {
        let manager = Manager::start(&units)?;
        let mut control = manager.control()?;
        control.wait_for("\"ready\":2", 1)?;
        let status = control.call("Status", "{\"names\":[\"web\"]}")?.to_owned();
        let address = status
            .split('"')
            .find(|word| word.starts_with("127.0.0.1:"));
        let client = Client::start(address.context("no address")?.parse()?);
        let change = || -> Result<()> {
            match name {
                "reload" => drop(control_of(&manager)?.call("Reload", "{\"names\":[\"web\"]}")?),
                "upgrade" => drop(control_of(&manager)?.call("Upgrade", "{}")?),
                _ => {
                    let old = manager_pid(&mut control_of(&manager)?)?;
                    kill(old, libc::SIGKILL);
                    wait_for("the next manager", || {
                        let new = manager_pid(&mut control_of(&manager).ok()?).ok()?;
                        (new != old).then_some(())
                    })?;
                }
            }
            Ok(())
        };
        let mut differences = Vec::new();
        let mut pairs = Vec::new();
        for _ in 0..rounds {
            let began = now();
            let with = client.during(change)?;
            let took = Duration::from_nanos(now() - began);
            let without = client.during(|| {
                std::thread::sleep(took.saturating_sub(Duration::from_millis(100)));
                Ok(())
            })?;
            differences.push((with - without) * 1e3);
            pairs.push((without * 1e3, with * 1e3));
        }
        client.finish().with_context(|| manager.log())?;
        let worst = pairs.iter().map(|pair| pair.1).fold(0.0, f64::max);
        let quiet = pairs.iter().map(|pair| pair.0).fold(0.0, f64::max);
        eprintln!("{name}: longest stall of all {worst:.1} ms, with no change {quiet:.1} ms");
        rows.push(row(
            &format!("stall-{name}"),
            middle(differences),
            "ms",
            STALL,
        ));
    }
    Ok(rows)
}

fn control_of(manager: &Manager) -> Result<Control> {
    manager.control()
}

/// With 1,000 workers and 1,000 sockets: the longest that a client of the control socket waits for a small answer while
/// the manager becomes another program, in milliseconds.
pub fn upgrade1000(bench: &Bench) -> Result<Vec<Row>> {
    let mut units = String::new();
    for index in 0..1000 {
        let _ = writeln!(
            units,
            "[socket.s{index:05}]\nlisten = \"@tentpole-bench-{}-{index}\"\n[watcher.w{index:05}]\n\
             cmd = \"{WORKER} sleep\"\nsockets = [\"s{index:05}\"]",
            std::process::id()
        );
    }
    let manager = Manager::start(&units)?;
    let mut control = manager.control()?;
    control.wait_for("\"running\"", 1001)?;
    let longest = Arc::new(AtomicU64::new(0));
    let ending = Arc::new(AtomicBool::new(false));
    let mut asking = manager.control()?;
    let (ours, end) = (Arc::clone(&longest), Arc::clone(&ending));
    let thread = std::thread::spawn(move || -> Result<()> {
        while !end.load(Ordering::SeqCst) {
            let began = now();
            asking.call("Status", "{\"names\":[\"w00000\"]}")?;
            ours.fetch_max(now() - began, Ordering::SeqCst);
        }
        Ok(())
    });
    let mut times = Vec::new();
    for _ in 0..bench.rounds(9) {
        longest.store(0, Ordering::SeqCst);
        control
            .call("Upgrade", "{}")
            .map(drop)
            .with_context(|| manager.log())?;
        std::thread::sleep(Duration::from_millis(150));
        times.push(longest.load(Ordering::SeqCst) as f64 / 1e6);
    }
    ending.store(true, Ordering::SeqCst);
    thread.join().unwrap_or_else(|_| Ok(()))?;
    Ok(vec![row("upgrade1000", middle(times), "ms", 100.0)])
}

/// What it costs to keep the state outside: the manager's time for a worker that ends and is replaced, with a keeper and
/// without, in milliseconds for each.
pub fn state(bench: &Bench) -> Result<Vec<Row>> {
    const WORKERS: usize = 300;
    let measure = |keeper: bool| -> Result<f64> {
        let dir = tempfile::Builder::new()
            .prefix("tentpole-bench-")
            .tempdir()?;
        let units = dir.path().join("units.toml");
        let mut text = String::new();
        for index in 0..WORKERS {
            let _ = writeln!(text, "[watcher.w{index:05}]\ncmd = \"{WORKER} sleep\"");
        }
        std::fs::write(&units, text)?;
        let control = dir.path().join("control");
        let mut command = Command::new(PROGRAM);
        command
            .arg("--control")
            .arg(&control)
            .arg("run")
            .arg(&units);
        command.env_remove("NOTIFY_SOCKET").stderr(Stdio::null());
        if !keeper {
            command.arg("--no-keeper");
        }
        let mut child = command.spawn()?;
        let result = (|| {
            let mut control = Control::at(&control)?;
            control.wait_for("\"running\"", WORKERS + 1)?;
            let status = control.call("Status", "{}")?.to_owned();
            let manager = pid_in(&status).context("no pid")?;
            let workers: Vec<i32> = status
                .split("\"workers\":")
                .skip(1)
                .filter_map(pid_in)
                .collect();
            let before = busy(manager)?;
            for pid in &workers {
                kill(*pid, libc::SIGKILL);
            }
            control.wait_for("\"restarts\":1", WORKERS)?;
            control.wait_for("\"running\"", WORKERS + 1)?;
            Ok((busy(manager)? - before) as f64 / 1e6 / WORKERS as f64)
        })();
        kill(child.id() as i32, libc::SIGTERM);
        child.wait()?;
        result
    };
    let mut costs = Vec::new();
    for _ in 0..bench.rounds(5) {
        let (without, with) = (measure(false)?, measure(true)?);
        costs.push(with - without);
    }
    Ok(vec![row("state-change", middle(costs), "ms", 1.0)])
}

/// The time that a process has had of the processors, in nanoseconds.
fn busy(pid: i32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let word = text.split_whitespace().next().context("no time")?;
    Ok(word.parse()?)
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn row(name: &str, number: f64, unit: &'static str, goal: f64) -> Row {
    Row {
        name: name.into(),
        found: Found::Number(number, unit),
        goal,
    }
}
