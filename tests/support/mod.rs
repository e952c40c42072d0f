//! A manager in a folder of its own, for black-box tests: started, asked, waited for, and ended with all it has made.
//!
//! ```ignore
//! let manager = Manager::start(r#"
//!     [socket.web]
//!     listen = "127.0.0.1:0"
//!     [watcher.web]
//!     cmd = "PROBE serve $(circus.socket.web)"
//! "#);
//! let address = manager.address("web");
//! ```
//!
//! In unit texts `PROBE` is the test program of `probe.rs` and `DIR` the folder.

#![allow(dead_code)] // Each test file uses a part of it.

use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Whatever a test waits for comes within this, or never.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A running manager. Dropping it ends it and everything that it has started.
pub struct Manager {
    pub dir: TempDir,
    child: Option<Child>,
    parent: UnixDatagram,
}

impl Manager {
    /// Starts a manager on one unit file and waits for its READY=1.
    pub fn start(units: &str) -> Manager {
        let manager = Manager::spawn(units);
        manager.wait_for_notice("READY=1");
        manager
    }

    /// The same without waiting.
    pub fn spawn(units: &str) -> Manager {
        Manager::spawn_with(units, |_| {})
    }

    /// The same with changes to the command that starts it.
    pub fn spawn_with(units: &str, change: impl FnOnce(&mut Command)) -> Manager {
        let dir = folder();
        write_units(dir.path(), units);
        let parent = UnixDatagram::bind(dir.path().join("notify")).expect("bind the notify socket");
        parent
            .set_read_timeout(Some(DEADLINE))
            .expect("set a timeout");
        let mut command = command(dir.path());
        command
            .arg("run")
            .arg(dir.path().join("units.toml"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"));
        let log = std::fs::File::create(dir.path().join("log")).expect("create the log");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        // Whatever becomes of the test, its manager ends.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        change(&mut command);
        let child = command.spawn().expect("start the manager");
        Manager {
            dir,
            child: Some(child),
            parent,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("is running").id() as i32
    }

    /// Waits until the manager tells its parent this line.
    pub fn wait_for_notice(&self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            match self.parent.recv(&mut buffer) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    if text.lines().any(|other| other == line) {
                        return;
                    }
                    seen.push(text);
                }
                Err(error) => panic!("no {line}: {error}; seen {seen:?}\n{}", self.log()),
            }
        }
        panic!("no {line}; seen {seen:?}\n{}", self.log());
    }

    /// Everything that the manager (and workers that inherit its output) has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs a command of the CLI against this manager.
    pub fn cli<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        bounded(command(self.dir.path()).args(args))
    }

    /// The same, which must succeed; the answer is what it prints.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let output = self.cli(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{:?}: {stderr}\n{}",
            output.status,
            self.log()
        );
        String::from_utf8(output.stdout).expect("is UTF-8")
    }

    /// Calls a method of `io.tentpole.Manager` and returns the last reply.
    pub fn call(&self, method: &str, parameters: Value) -> Value {
        let mut stream = self.connect();
        send(
            &mut stream,
            &json!({"method": format!("io.tentpole.Manager.{method}"), "parameters": parameters}),
        );
        receive(&mut BufReader::new(stream)).expect("an answer")
    }

    /// A connection to the control socket, with a read timeout.
    pub fn connect(&self) -> UnixStream {
        let stream =
            UnixStream::connect(self.path("control")).expect("connect to the control socket");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("set a timeout");
        stream
    }

    pub fn status(&self) -> Value {
        self.call("Status", json!({}))["parameters"].clone()
    }

    pub fn watcher(&self, name: &str) -> Value {
        find(&self.status()["watchers"], name)
    }

    pub fn socket(&self, name: &str) -> Value {
        find(&self.status()["sockets"], name)
    }

    /// The address of a socket, such as `127.0.0.1:43210`.
    pub fn address(&self, socket: &str) -> String {
        self.socket(socket)["address"]
            .as_str()
            .expect("an address")
            .to_owned()
    }

    /// The pids of a watcher's workers, by wid.
    pub fn pids(&self, watcher: &str) -> Vec<i32> {
        let watcher = self.watcher(watcher);
        let workers = watcher["workers"].as_array().expect("workers");
        workers
            .iter()
            .map(|worker| worker["pid"].as_i64().expect("a pid") as i32)
            .collect()
    }

    /// Waits until the watcher's status fulfils a condition, and returns it.
    pub fn wait_for(&self, watcher: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll(|| {
            last = self.watcher(watcher);
            condition(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("watcher {watcher} never {what}: {last:#}\n{}", self.log()))
    }

    pub fn wait_for_state(&self, watcher: &str, state: &str) -> Value {
        self.wait_for(watcher, &format!("became {state}"), |status| {
            status["state"] == state
        })
    }

    /// Waits for a socket's state.
    pub fn wait_for_socket(&self, socket: &str, state: &str) -> Value {
        let found = poll(|| Some(self.socket(socket)).filter(|status| status["state"] == state));
        found.unwrap_or_else(|| panic!("socket {socket} never became {state}\n{}", self.log()))
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    /// Waits until the manager has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("is running");
        let status = poll(|| child.try_wait().expect("wait for the manager"));
        let status = status.unwrap_or_else(|| panic!("the manager does not end\n{}", self.log()));
        self.child = None;
        status
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        kill(child.id() as i32, libc::SIGTERM);
        if poll_for(Duration::from_secs(3), || child.try_wait().ok().flatten()).is_none() {
            // The second one forces the stop.
            kill(child.id() as i32, libc::SIGTERM);
            if poll(|| child.try_wait().ok().flatten()).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// A folder that only its owner may write: unit files of root must stand in one.
pub fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("tentpole-")
        .tempdir()
        .expect("make a folder")
}

/// Writes `units.toml` into a folder.
pub fn write_units(dir: &Path, units: &str) -> PathBuf {
    let path = dir.join("units.toml");
    let text = units
        .replace("PROBE", probe())
        .replace("DIR", dir.to_str().expect("is UTF-8"));
    std::fs::write(&path, text).expect("write the units");
    path
}

/// The test program.
pub fn probe() -> &'static str {
    env!("CARGO_BIN_EXE_tentpole-probe")
}

/// tentpole, with its control socket in `dir`, and without what the test's own parent wants of it.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tentpole"));
    command.env("TENTPOLE_CONTROL", dir.join("control"));
    for name in [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs a program to its end, which must come in time.
pub fn bounded(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdout = child.stdout.take().expect("is piped");
    let mut stderr = child.stderr.take().expect("is piped");
    let out = std::thread::spawn(move || read_all(&mut stdout));
    let err = std::thread::spawn(move || read_all(&mut stderr));
    let Some(status) = poll(|| child.try_wait().expect("wait")) else {
        let _ = child.kill();
        panic!("{command:?} does not end");
    };
    Output {
        status,
        stdout: out.join().expect("read stdout"),
        stderr: err.join().expect("read stderr"),
    }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    bytes
}

/// Asks until there is an answer, until the deadline. The one place where tests wait for what has no event.
pub fn poll<T>(ask: impl FnMut() -> Option<T>) -> Option<T> {
    poll_for(DEADLINE, ask)
}

pub fn poll_for<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

pub fn kill(pid: i32, signal: i32) {
    unsafe { libc::kill(pid, signal) };
}

pub fn is_alive(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state
        .rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

/// Waits until a process is gone.
pub fn wait_until_dead(pid: i32) {
    poll(|| (!is_alive(pid)).then_some(())).unwrap_or_else(|| panic!("pid {pid} is still alive"));
}

/// Sends one line to a `PROBE serve` and returns its answer.
pub fn ask(address: &str, line: &str) -> String {
    let mut stream =
        TcpStream::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("set a timeout");
    writeln!(stream, "{line}").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.trim_end().to_owned()
}

/// Sends one Varlink message.
pub fn send(stream: &mut UnixStream, message: &Value) {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(0);
    stream.write_all(&bytes).expect("send");
}

/// Receives one Varlink message; None at the end.
pub fn receive(reader: &mut impl BufRead) -> Option<Value> {
    let mut bytes = Vec::new();
    reader.read_until(0, &mut bytes).expect("receive");
    bytes.pop()?;
    Some(serde_json::from_slice(&bytes).expect("is JSON"))
}

pub fn find(units: &Value, name: &str) -> Value {
    let found = units
        .as_array()
        .expect("a list")
        .iter()
        .find(|unit| unit["name"] == name);
    found
        .unwrap_or_else(|| panic!("no unit {name} in {units:#}"))
        .clone()
}

/// Whether the tests run as root; some need it, and say that they are left out.
pub fn is_root() -> bool {
    unsafe { libc::geteuid() == 0 }
}
