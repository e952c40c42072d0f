//! What starting, serving and keeping cost, each with its goal.

use super::manager::{Control, Manager, PROGRAM, wait_for};
use super::pairs::{Found, Row, alternate, seconds};
use super::process::{Running, kill, now};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What the benchmarks share.
pub struct Bench {
    /// The program of `bare.rs`.
    pub bare: PathBuf,
    /// How often each pair is measured, if not as often as it is worth.
    pub rounds: Option<usize>,
}

/// Noise that a comparison of two long runs may have beyond its goal.
const LINEAR: f64 = 11.0;

/// First of the ports; their addresses are nobody else's (127.83.0.0/16).
const PORT: u16 = 20_000;

impl Bench {
    fn bare(&self, args: &[&str]) -> Result<Running> {
        let mut command = Command::new(&self.bare);
        command.args(args);
        Running::start(&mut command, File::create("/dev/null")?, libc::SIGKILL)
    }

    /// How often to measure what is worth so many rounds.
    pub fn rounds(&self, worth: usize) -> usize {
        self.rounds.unwrap_or(worth)
    }

    /// `count` watchers `wNNNNN` with `workers` each and what else `keys` say.
    fn watchers(&self, count: usize, workers: usize, keys: &str) -> String {
        let mut units = String::new();
        for index in 0..count {
            let _ = writeln!(
                units,
                "[watcher.w{index:05}]\ncmd = \"{} mark\"\nnumprocesses = {workers}\n{keys}",
                self.bare.display()
            );
        }
        units
    }
}

/// `count` sockets `sNNNNN` on ports of one address.
fn sockets(address: Ipv4Addr, count: usize) -> String {
    let mut units = String::new();
    for index in 0..count {
        let _ = writeln!(
            units,
            "[socket.s{index:05}]\nlisten = \"{address}:{}\"",
            usize::from(PORT) + index
        );
    }
    units
}

/// An address of the loopback network that no other round has used, nor another run a minute ago: the kernel remembers
/// a port's last connections for as long.
fn fresh_address() -> Ipv4Addr {
    static USED: AtomicU32 = AtomicU32::new(1);
    let number = (std::process::id() * 256).wrapping_add(USED.fetch_add(1, Ordering::Relaxed));
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 83, high, low)
}

fn row(name: &str, found: Found, goal: f64) -> Row {
    Row {
        name: name.into(),
        found,
        goal,
    }
}

/// 500 workers, until the last one's first instruction: from the exec of the manager, and from the command to start.
pub fn start500(bench: &Bench) -> Result<Vec<Row>> {
    let bare = |from_exec: bool| {
        let mut bare = bench.bare(&["start", "500"])?;
        let marks = bare.marks(501)?;
        let own = marks.iter().map(|mark| mark.at).min().unwrap_or(0);
        let last = marks.iter().map(|mark| mark.at).max().unwrap_or(0);
        Ok(seconds(if from_exec { bare.began } else { own }, last))
    };
    let from_exec = |units: &str| {
        let mut manager = Manager::start(units)?;
        let last = manager.last_mark(500).with_context(|| manager.log())?;
        Ok(seconds(manager.began, last))
    };
    let from_command = |units: &str| {
        let mut manager = Manager::start(units)?;
        let mut control = manager.control()?;
        let count = units.matches("[watcher.").count();
        let names: Vec<String> = (0..count).map(|index| format!("\"w{index:05}\"")).collect();
        let names = format!("{{\"names\":[{}],\"wait\":false}}", names.join(","));
        let began = now();
        control.call("Start", &names)?;
        let last = manager.last_mark(500).with_context(|| manager.log())?;
        Ok(seconds(began, last))
    };
    let rounds = bench.rounds(10);
    let (one, many) = (bench.watchers(1, 500, ""), bench.watchers(500, 1, ""));
    let one_off = bench.watchers(1, 500, "autostart = false");
    let many_off = bench.watchers(500, 1, "autostart = false");
    Ok(vec![
        row(
            "start500",
            alternate(rounds, || bare(true), || from_exec(&one))?,
            1.2,
        ),
        row(
            "start500-watchers",
            alternate(rounds, || bare(true), || from_exec(&many))?,
            1.2,
        ),
        row(
            "start500-command",
            alternate(rounds, || bare(false), || from_command(&one_off))?,
            1.2,
        ),
        row(
            "start500-command-w",
            alternate(rounds, || bare(false), || from_command(&many_off))?,
            1.2,
        ),
    ])
}

/// From kill -9 of a worker to the first instruction of the next: of another watcher each time, so that it is the first
/// restart, which is at once.
pub fn respawn(bench: &Bench) -> Result<Vec<Row>> {
    let rounds = bench.rounds(60);
    let mut bare = bench.bare(&["respawn"])?;
    let mut bare_worker = bare.marks(1)?[0].pid;
    let mut manager = Manager::start(&bench.watchers(rounds + 1, 1, ""))?;
    let workers = manager.marks(rounds + 1).with_context(|| manager.log())?;
    let mut workers = workers.iter().map(|mark| mark.pid);
    settle();
    let found = alternate(
        rounds,
        || {
            settle();
            let killed = now();
            kill(bare_worker, libc::SIGKILL);
            let mark = bare.marks(1)?[0];
            bare_worker = mark.pid;
            Ok(seconds(killed, mark.at))
        },
        || {
            settle();
            let worker = workers.next().context("no worker is left to kill")?;
            let killed = now();
            kill(worker, libc::SIGKILL);
            Ok(seconds(killed, manager.marks(1)?[0].at))
        },
    )?;
    Ok(vec![row("respawn", found, 1.3)])
}

/// From connect to the first byte of a worker that the connection starts: at another socket each time.
pub fn ondemand(bench: &Bench) -> Result<Vec<Row>> {
    let rounds = bench.rounds(60);
    let (ours, theirs) = (fresh_address(), fresh_address());
    let number = u32::from(theirs).to_string();
    let _bare = bench.bare(&["ondemand", &number, &PORT.to_string()])?;
    let mut units = sockets(ours, rounds + 1);
    for index in 0..=rounds {
        let _ = writeln!(
            units,
            "[watcher.w{index:05}]\ncmd = \"{} once\"\nsockets = [\"s{index:05}\"]\non_demand = true",
            bench.bare.display()
        );
    }
    let manager = Manager::start(&units)?;
    let mut control = manager.control()?;
    control.wait_for("\"waiting\"", rounds + 1)?;
    let ask = |address: SocketAddrV4| {
        settle();
        let began = now();
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut byte = [0];
        stream.read_exact(&mut byte).context("no byte came")?;
        Ok(seconds(began, now()))
    };
    ask(SocketAddrV4::new(theirs, PORT))?;
    let mut ports = PORT..;
    let found = alternate(
        rounds,
        || ask(SocketAddrV4::new(theirs, PORT)),
        || ask(SocketAddrV4::new(ours, ports.next().unwrap_or(PORT))),
    )?;
    Ok(vec![row("ondemand", found, 1.3)])
}

/// From the exec of the manager until 1,000 sockets accept.
pub fn boot1000(bench: &Bench) -> Result<Vec<Row>> {
    let until_accepting = |address: Ipv4Addr, count: usize| {
        let port = PORT + count as u16 - 1;
        wait_for("the last socket", || {
            TcpStream::connect(SocketAddrV4::new(address, port)).ok()
        })?;
        let end = now();
        for port in PORT..port {
            if TcpStream::connect(SocketAddrV4::new(address, port)).is_err() {
                bail!("the last socket accepts before port {port} does");
            }
        }
        Ok(end)
    };
    let bare = || {
        let address = fresh_address();
        let (number, port) = (u32::from(address).to_string(), PORT.to_string());
        let bare = bench.bare(&["listen", &number, &port, "1000"])?;
        Ok(seconds(bare.began, until_accepting(address, 1000)?))
    };
    let ours = || {
        let address = fresh_address();
        let user = "[watcher.w]\ncmd = \"true\"\nuse_sockets = true\nautostart = false\n";
        let manager = Manager::start(&(sockets(address, 1000) + user))?;
        let end = until_accepting(address, 1000).with_context(|| manager.log())?;
        Ok(seconds(manager.began, end))
    };
    Ok(vec![row(
        "boot1000",
        alternate(bench.rounds(20), bare, ours)?,
        1.5,
    )])
}

/// From the exec of the manager to the first instruction of its one worker.
pub fn boot1(bench: &Bench) -> Result<Vec<Row>> {
    let bare = || {
        let mut bare = bench.bare(&["start", "1"])?;
        Ok(seconds(bare.began, bare.last_mark(2)?))
    };
    let units = bench.watchers(1, 1, "");
    let ours = || {
        let mut manager = Manager::start(&units)?;
        let last = manager.last_mark(1).with_context(|| manager.log())?;
        Ok(seconds(manager.began, last))
    };
    Ok(vec![row(
        "boot1",
        alternate(bench.rounds(60), bare, ours)?,
        2.5,
    )])
}

/// What 10,000 units cost the manager against 1,000, both with a process each and with a socket each: its share of the
/// processors, since the kernel's cost of 10,000 processes is not ours to keep linear.
pub fn linear(bench: &Bench) -> Result<Vec<Row>> {
    let rounds = bench.rounds(3);
    let names = [
        "start",
        "status",
        "reap",
        "stop",
        "sockets",
        "sockets-status",
    ];
    let mut pairs: Vec<Vec<(f64, f64)>> = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        let measure = |count: usize| -> Result<Vec<f64>> {
            let mut costs = linear_workers(bench, count)?;
            costs.extend(linear_sockets(bench, count)?);
            Ok(costs)
        };
        let (small, large) = (measure(1_000)?, measure(10_000)?);
        for (pairs, pair) in pairs.iter_mut().zip(small.into_iter().zip(large)) {
            pairs.push(pair);
        }
    }
    Ok(names
        .iter()
        .zip(pairs)
        .map(|(name, pairs)| row(&format!("linear-{name}"), Found::Pairs(pairs), LINEAR))
        .collect())
}

/// Start, status, the death of all workers at once, and stop.
fn linear_workers(bench: &Bench, count: usize) -> Result<Vec<f64>> {
    let mut manager = Manager::alone(&bench.watchers(count, 1, ""))?;
    let marks = manager.marks(count).with_context(|| manager.log())?;
    let (start, _) = manager.activity()?;
    let mut control = manager.control()?;
    control.wait_for("\"running\"", count + 1)?;
    let status = status(&manager, &mut control)?;
    let (before, _) = manager.activity()?;
    for mark in &marks {
        kill(mark.pid, libc::SIGKILL);
    }
    manager.marks(count).with_context(|| manager.log())?;
    let (after, _) = manager.activity()?;
    let reap = seconds(before, after);
    control.wait_for("\"running\"", count + 1)?;
    let (before, _) = manager.activity()?;
    let stop = seconds(before, manager.end()?);
    Ok(vec![seconds(0, start), status, reap, stop])
}

/// Start and status of sockets, each with a watcher that waits for traffic on it.
fn linear_sockets(bench: &Bench, count: usize) -> Result<Vec<f64>> {
    let mut units = sockets(fresh_address(), count);
    for index in 0..count {
        let _ = writeln!(
            units,
            "[watcher.w{index:05}]\ncmd = \"{} once\"\nsockets = [\"s{index:05}\"]\non_demand = true",
            bench.bare.display()
        );
    }
    let manager = Manager::alone(&units)?;
    let mut control = manager.control()?;
    // The first answer comes when everything is begun.
    control.call("Status", "{\"names\":[\"w00000\"]}")?;
    let (start, _) = manager.activity()?;
    control.wait_for("\"waiting\"", count)?;
    Ok(vec![seconds(0, start), status(&manager, &mut control)?])
}

/// What a whole status costs: the least of some, since what disturbs it is not ours.
fn status(manager: &Manager, control: &mut Control) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        let (before, _) = manager.activity()?;
        control.call("Status", "{}")?;
        // It may still be putting itself to rest.
        settle();
        let (after, _) = manager.activity()?;
        least = least.min(seconds(before, after));
    }
    Ok(least)
}

/// What an idle manager with 200 sockets and 200 watchers does in 10 seconds, and its keeper: half of them run, half wait for traffic.
pub fn idle(bench: &Bench) -> Result<Vec<Row>> {
    let mut units = sockets(fresh_address(), 200);
    for index in 0..200 {
        let on_demand = index < 100;
        let _ = writeln!(
            units,
            "[watcher.w{index:05}]\ncmd = \"{} mark\"\nsockets = [\"s{index:05}\"]\non_demand = {on_demand}",
            bench.bare.display()
        );
    }
    let mut manager = Manager::start(&units)?;
    manager.marks(100).with_context(|| manager.log())?;
    // It has said what there is to say, and has heard the end of every connection.
    manager.control()?.wait_for("\"waiting\"", 100)?;
    std::thread::sleep(Duration::from_secs(1));
    let (ran, woken) = manager.activity()?;
    std::thread::sleep(Duration::from_secs(10));
    let (ran_after, woken_after) = manager.activity()?;
    Ok(vec![
        row(
            "idle-time",
            Found::Number((ran_after - ran) as f64, "ns"),
            0.0,
        ),
        row(
            "idle-wakeups",
            Found::Number((woken_after - woken) as f64, ""),
            0.0,
        ),
    ])
}

/// The manager's own share of the memory and its keeper's, with a worker each.
pub fn memory(bench: &Bench) -> Result<Vec<Row>> {
    let measure = |count: usize| -> Result<f64> {
        let mut manager = Manager::start(&bench.watchers(count, 1, ""))?;
        manager.marks(count).with_context(|| manager.log())?;
        manager.control()?.wait_for("\"running\"", count + 1)?;
        std::thread::sleep(Duration::from_millis(200));
        let mut sum = 0.0;
        for pid in manager.pids()? {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let number = line.and_then(|line| line.split_whitespace().next());
            sum += number.context("there is no Pss")?.parse::<f64>()?;
        }
        Ok(sum)
    };
    let (one, hundred, more) = (measure(1)?, measure(100)?, measure(1100)?);
    Ok(vec![
        row("memory-1", Found::Number(one, "KB"), 1500.0),
        row("memory-100", Found::Number(hundred, "KB"), 2000.0),
        row(
            "memory-further",
            Found::Number((more - hundred) / 1000.0, "KB"),
            3.0,
        ),
    ])
}

/// The program on disk.
pub fn size(_: &Bench) -> Result<Vec<Row>> {
    let bytes = fs::metadata(PROGRAM)?.len();
    Ok(vec![row(
        "size",
        Found::Number(bytes as f64 / 1000.0, "KB"),
        2000.0,
    )])
}

/// Lets what the last measurement has caused come to its end.
fn settle() {
    std::thread::sleep(Duration::from_millis(3));
}
