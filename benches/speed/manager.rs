//! A manager under measurement: on units of its own, in a folder of its own.

use super::process::{DEADLINE, Running, activity};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The program itself.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tentpole");

/// Descriptors for 10,000 sockets and as many workers.
const MANY_FDS: libc::rlim_t = 65_536;

/// A running manager, and its keeper. Dropping it ends it with all its workers.
pub struct Manager {
    // Before the folder, so that it ends before that is removed.
    running: Running,
    dir: TempDir,
    has_keeper: bool,
}

impl Manager {
    /// Starts a manager on a unit file, as it is started by default.
    pub fn start(units: &str) -> Result<Manager> {
        Manager::start_with(units, &[])
    }

    /// Starts a manager without a keeper: what it does is the doing of one process.
    pub fn alone(units: &str) -> Result<Manager> {
        Manager::start_with(units, &["--no-keeper"])
    }

    fn start_with(units: &str, options: &[&str]) -> Result<Manager> {
        let dir = tempfile::Builder::new()
            .prefix("tentpole-bench-")
            .tempdir()?;
        let file = dir.path().join("units.toml");
        std::fs::write(&file, units)?;
        let mut command = Command::new(PROGRAM);
        command
            .arg("--control")
            .arg(dir.path().join("control"))
            .arg("run")
            .args(options)
            .arg(file)
            .env_remove("NOTIFY_SOCKET");
        // SAFETY: the closure makes one system call.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: MANY_FDS,
                    rlim_max: MANY_FDS,
                };
                // Who may not raise it needs no more for most benchmarks.
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                Ok(())
            });
        }
        let log = File::create(dir.path().join("log"))?;
        let running = Running::start(&mut command, log, libc::SIGTERM)?;
        Ok(Manager {
            running,
            dir,
            has_keeper: options.is_empty(),
        })
    }

    /// What it has said, for a failure.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Connects to the control socket as soon as it is there.
    pub fn control(&self) -> Result<Control> {
        Control::at(&self.dir.path().join("control"))
    }

    /// Its processes: the one that was started, and the manager where that is its child. To be asked once it has begun.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = vec![self.pid()];
        if self.has_keeper {
            let path = format!("/proc/{0}/task/{0}/children", self.pid());
            let children = std::fs::read_to_string(path)?;
            let manager = children.split_whitespace().next();
            pids.push(manager.context("the keeper has no manager")?.parse()?);
        }
        Ok(pids)
    }

    /// Nanoseconds that its processes have had of the processors, and how often they were put on one.
    pub fn activity(&self) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for pid in self.pids()? {
            let (ran, times) = activity(pid)?;
            sum = (sum.0 + ran, sum.1 + times);
        }
        Ok(sum)
    }
}

impl Deref for Manager {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl DerefMut for Manager {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

/// A connection to the control socket.
pub struct Control {
    stream: BufReader<UnixStream>,
    reply: Vec<u8>,
}

impl Control {
    /// Connects to a control socket as soon as it is there.
    pub fn at(path: &Path) -> Result<Control> {
        let stream = wait_for("the control socket", || UnixStream::connect(path).ok())?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Control {
            stream: BufReader::new(stream),
            reply: Vec::new(),
        })
    }

    pub fn send(&mut self, method: &str, parameters: &str) -> Result<()> {
        let message = format!(
            "{{\"method\":\"io.tentpole.Manager.{method}\",\"parameters\":{parameters}}}\0"
        );
        self.stream.get_mut().write_all(message.as_bytes())?;
        Ok(())
    }

    /// The next reply, as it came.
    pub fn receive(&mut self) -> Result<&str> {
        self.reply.clear();
        self.stream
            .read_until(0, &mut self.reply)
            .context("no answer")?;
        let text = std::str::from_utf8(&self.reply)?;
        if text.is_empty() || text.starts_with("{\"error\"") {
            bail!("the manager answers {text:?}");
        }
        Ok(text)
    }

    pub fn call(&mut self, method: &str, parameters: &str) -> Result<&str> {
        self.send(method, parameters)?;
        self.receive()
    }

    /// Waits until this text is so many times in the status.
    pub fn wait_for(&mut self, text: &str, times: usize) -> Result<()> {
        let mut seen = 0;
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            seen = self.call("Status", "{}")?.matches(text).count();
            if seen == times {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{text} is {seen} times in the status instead of {times}")
    }
}

/// Asks until there is an answer, which must come in time.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    bail!("{what} does not come")
}
