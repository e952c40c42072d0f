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

pub mod lives;
pub mod load;

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

/// Waits on a socket that has a timeout. When the machine or the process stops and goes on, such a wait ends without an
/// answer (signal(7)), and is begun again.
pub fn uninterrupted<T>(mut wait: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match wait() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

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
        // A program that was just written may still be open in the child of another test, until its exec.
        let is_busy =
            |error: &std::io::Error| error.kind() == std::io::ErrorKind::ExecutableFileBusy;
        let child = poll(|| match command.spawn() {
            Err(error) if is_busy(&error) => None,
            result => Some(result),
        });
        let child = child
            .expect("an executable file")
            .expect("start the manager");
        Manager {
            dir,
            child: Some(child),
            parent,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The process that was started: the keeper, unless there is none.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("is running").id() as i32
    }

    /// Waits until the manager tells its parent this line.
    pub fn wait_for_notice(&self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            match uninterrupted(|| self.parent.recv(&mut buffer)) {
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
        // A manager that was only just spawned has none yet.
        let stream = poll(|| match UnixStream::connect(self.path("control")) {
            Err(error)
                if is_alive(self.pid())
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::ECONNREFUSED)
                    ) =>
            {
                None
            }
            other => Some(other),
        });
        let stream = stream
            .expect("a control socket in time")
            .unwrap_or_else(|error| {
                panic!("connect to the control socket: {error}\n{}", self.log())
            });
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
            .inspect(|pid| executed(*pid))
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

/// What workers leave in files, and what is left of them.
impl Manager {
    /// The lines of a file in the folder; none as long as it is not there.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file in the folder has so many lines, and returns them.
    pub fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        let mut last = Vec::new();
        let found = poll(|| {
            last = self.lines(name);
            (last.len() >= count).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("{name} never had {count} lines: {last:#?}\n{}", self.log()))
    }

    /// Makes an empty file in the folder: a worker may wait for it.
    pub fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").expect("make a file");
    }

    /// Waits until the log holds a text.
    pub fn wait_for_log(&self, text: &str) {
        let found = poll(|| self.log().contains(text).then_some(()));
        found.unwrap_or_else(|| panic!("the log never said {text:?}:\n{}", self.log()));
    }

    /// The next message to the manager's parent; None if there is none for so long.
    pub fn next_notice(&self, patience: Duration) -> Option<String> {
        self.parent
            .set_read_timeout(Some(patience))
            .expect("set a timeout");
        let mut buffer = [0; 4096];
        let received = uninterrupted(|| self.parent.recv(&mut buffer));
        self.parent
            .set_read_timeout(Some(DEADLINE))
            .expect("set a timeout");
        received
            .ok()
            .map(|count| String::from_utf8_lossy(&buffer[..count]).into_owned())
    }

    /// Every live process that the manager has started, however far it has run away.
    pub fn offspring(&self) -> Vec<i32> {
        let own = self.child.as_ref().map(|child| child.id() as i32);
        let mut pids = processes_of(self.dir.path());
        // The keeper and the manager have the command line that the test has started.
        let units = self.path("units.toml").display().to_string();
        pids.retain(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            // A process that is about to be a zombie has no memory any more, and so no words.
            Some(*pid) != own
                && !line.is_empty()
                && !(words.contains(&b"run".as_slice()) && words.contains(&units.as_bytes()))
        });
        pids
    }

    /// Waits until nothing that the manager has started lives.
    pub fn wait_until_childless(&self) {
        let mut left = Vec::new();
        let done = poll(|| {
            left = self.offspring();
            left.is_empty().then_some(())
        });
        done.unwrap_or_else(|| panic!("{left:?} are left\n{}", self.log()));
    }
}

/// The live processes that have a folder's control socket in their environment: a manager and its offspring.
pub fn processes_of(dir: &Path) -> Vec<i32> {
    let mark = format!("TENTPOLE_CONTROL={}/control", dir.display()).into_bytes();
    let all = std::fs::read_dir("/proc").expect("list /proc");
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == mark) && is_alive(*pid)
        })
        .collect()
}

/// When a process was started, in hundredths of a second of the kernel's clock.
pub fn start_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("is alive");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let field = rest.split_whitespace().nth(19).expect("a start time");
    field.parse().expect("a number")
}

/// Says that a test is left out, unless it runs as root.
pub fn needs_root() -> bool {
    if !is_root() {
        eprintln!("skipped: needs root");
    }
    is_root()
}

/// Says that a test is left out, unless a program is installed.
pub fn needs_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    if !found {
        eprintln!("skipped: needs {name}");
    }
    found
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
        let _ = child.wait();
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
    finish(begin(address, line))
}

/// How often a thing is done that is done again and again: `TENTPOLE_ROUNDS`, if it is set.
pub fn rounds(otherwise: u64) -> u64 {
    let given = std::env::var("TENTPOLE_ROUNDS").ok();
    given.map_or(otherwise, |text| {
        text.parse().expect("TENTPOLE_ROUNDS is a number")
    })
}

/// Connects and asks, and does not wait for the answer.
pub fn begin(address: &str, line: &str) -> TcpStream {
    let mut stream =
        TcpStream::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("set a timeout");
    writeln!(stream, "{line}").expect("ask");
    stream
}

/// The answer to that.
pub fn finish(mut stream: TcpStream) -> String {
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

/// A manager that is started by a shell script, in which `"$@"` is its command line.
pub fn spawn_by_script(units: &str, script: &str, change: impl FnOnce(&mut Command)) -> Manager {
    Manager::spawn_with(units, |command| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script, "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        let mut log = None;
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
            if name == "NOTIFY_SOCKET" {
                log = value.map(|notify| Path::new(notify).with_file_name("log"));
            }
        }
        let log = std::fs::OpenOptions::new()
            .append(true)
            .open(log.expect("has a NOTIFY_SOCKET"))
            .expect("open the log");
        shell
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        unsafe {
            shell.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        *command = shell;
        change(command);
    })
}

/// Gives descriptors to a command at fd 3, 4, ..., beside whatever it is told of them.
pub fn pass_fds(command: &mut Command, fds: &[std::os::fd::BorrowedFd<'_>]) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // Out of the way of the places where they are going to be.
    let high: Vec<OwnedFd> = fds
        .iter()
        .map(|fd| {
            let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 200) };
            assert!(copy >= 0, "dup: {}", std::io::Error::last_os_error());
            unsafe { OwnedFd::from_raw_fd(copy) }
        })
        .collect();
    unsafe {
        command.pre_exec(move || {
            for (fd, target) in high.iter().zip(3..) {
                if libc::dup2(fd.as_raw_fd(), target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// `tentpole run` on units that it must refuse: what it says. It exits with 1 and leaves nothing in its folder.
pub fn refused(units: &str) -> String {
    let dir = folder();
    write_units(dir.path(), units);
    refused_in(&dir)
}

/// The same with the `units.toml` of a folder, which has nothing else that is new afterwards.
pub fn refused_in(dir: &TempDir) -> String {
    let before = files(dir.path());
    let output = bounded(
        command(dir.path())
            .arg("run")
            .arg(dir.path().join("units.toml")),
    );
    let text = String::from_utf8(output.stderr).expect("is UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(
        files(dir.path()),
        before,
        "a refused start left files behind"
    );
    text
}

/// The names in a folder, in order.
pub fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("list a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_string_lossy().into_owned()
        })
        .collect();
    names.sort_unstable();
    names
}

/// Waits until a worker's exec is through. The kernel lets the parent go on a little earlier: before it closes what is to
/// be closed on exec, and before /proc shows the new program.
fn executed(pid: i32) {
    let done = poll(|| {
        // Some programs write their title over it soon; but it is empty only before.
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        (!environ.is_empty() || !is_alive(pid)).then_some(())
    });
    assert!(done.is_some(), "pid {pid} is not executed");
}

/// The environment that a process was executed with.
pub fn environment(pid: i32) -> std::collections::BTreeMap<String, String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).expect("read environ");
    String::from_utf8_lossy(&text)
        .split_terminator('\0')
        .map(|entry| {
            let (name, value) = entry.split_once('=').expect("is NAME=VALUE");
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

/// The words that a process was executed with.
pub fn words(pid: i32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).expect("read cmdline");
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// A field of /proc/PID/status, such as `Umask`.
pub fn process_status(pid: i32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read status");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}"))
        .trim()
        .to_owned()
}

/// Checks which descriptors a worker has. It waits for that, since a program that has just been started opens its
/// libraries for a moment.
pub fn assert_fds(pid: i32, fds: &[i32]) {
    let mut seen = Vec::new();
    let same = poll(|| {
        seen = files(Path::new(&format!("/proc/{pid}/fd")));
        seen.sort_by_key(|fd| fd.parse().unwrap_or(i32::MAX));
        seen.iter()
            .eq(fds.iter().map(i32::to_string).collect::<Vec<_>>().iter())
            .then_some(())
    });
    assert!(same.is_some(), "pid {pid} has {seen:?}, not {fds:?}");
}

/// What a descriptor of a process is: a path, or `socket:[INODE]`.
pub fn fd_target(pid: i32, fd: i32) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"))
        .unwrap_or_else(|error| panic!("fd {fd} of {pid}: {error}"));
    link.to_string_lossy().into_owned()
}

/// A copy of a descriptor of another process.
pub fn fd_of(pid: i32, fd: i32) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let owned = |number: libc::c_long, what: &str| {
        assert!(number >= 0, "{what}: {}", std::io::Error::last_os_error());
        unsafe { OwnedFd::from_raw_fd(number as i32) }
    };
    let pidfd = owned(
        unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) },
        "pidfd_open",
    );
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    owned(copy, "pidfd_getfd")
}

/// Says that a test is left out, and why.
pub fn leave_out(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("{name} is left out: {why}");
}

/// Stops a process, and waits until it is: a worker that is about to accept may still do it.
pub fn freeze(pid: i32) {
    kill(pid, libc::SIGSTOP);
    let stopped = poll(|| process_status(pid, "State").starts_with('T').then_some(()));
    assert!(stopped.is_some(), "pid {pid} is not stopped");
}
