//! The keeper: what outlives the manager, and how a new one comes to it. Most of it with a manager that obeys the test.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use support::{
    DEADLINE, Manager, folder, is_alive, kill, needs_program, needs_root, poll, process_status,
    spawn_by_script, uninterrupted, wait_until_dead,
};
use tempfile::TempDir;

const KEPT: &str = env!("CARGO_BIN_EXE_tentpole-kept");

/// A keeper whose managers obey.
struct Keeper {
    dir: TempDir,
    child: Option<Child>,
    listener: UnixListener,
}

/// A manager that obeys.
struct Obedient {
    pid: i32,
    parent: i32,
    /// The signal to stop that it was told of; 0 is none.
    stop: i32,
    /// What it was handed, as NAME=TEXT.
    held: Vec<String>,
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Keeper {
    fn start() -> (Keeper, Obedient) {
        Keeper::start_with(Path::new(KEPT), |_| {})
    }

    fn start_with(program: &Path, change: impl FnOnce(&mut Command)) -> (Keeper, Obedient) {
        let dir = folder();
        let path = dir.path().join("test");
        let listener = UnixListener::bind(&path).expect("bind");
        let log = std::fs::File::create(dir.path().join("log")).expect("create the log");
        let mut command = Command::new(program);
        command
            .arg("obey")
            .arg(&path)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .process_group(0);
        change(&mut command);
        // A copy that was just written may still be open in the child of another test.
        let spawned = poll(|| match command.spawn() {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => None,
            other => Some(other),
        });
        let child = Some(spawned.expect("in time").expect("start the keeper"));
        let keeper = Keeper {
            dir,
            child,
            listener,
        };
        let manager = keeper.next();
        (keeper, manager)
    }

    fn pid(&self) -> i32 {
        self.child.as_ref().expect("is running").id() as i32
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The manager that comes next.
    fn next(&self) -> Obedient {
        self.listener.set_nonblocking(true).expect("set the mode");
        let accepted = poll(|| self.listener.accept().ok());
        let (stream, _) = accepted.unwrap_or_else(|| panic!("no manager comes\n{}", self.log()));
        stream.set_nonblocking(false).expect("set the mode");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("set a timeout");
        let lines = BufReader::new(stream.try_clone().expect("clone"));
        let mut manager = Obedient {
            pid: 0,
            parent: 0,
            stop: 0,
            held: Vec::new(),
            stream,
            lines,
        };
        let line = manager.hear();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse().expect("a number");
        assert_eq!(words[0], "began");
        (manager.pid, manager.parent) = (number(words[1]), number(words[2]));
        manager.stop = number(words[3]);
        manager.held = words[4..].iter().map(|word| (*word).to_owned()).collect();
        manager
    }

    /// Kills the manager; the next one takes over.
    fn replace(&self, manager: Obedient, signal: i32) -> Obedient {
        kill(manager.pid, signal);
        let mut next = self.next();
        next.order("adopt");
        next
    }

    fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("is running");
        let status = poll(|| child.try_wait().expect("wait for the keeper"));
        let status = status.unwrap_or_else(|| panic!("the keeper does not end\n{}", self.log()));
        self.child = None;
        status
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            for pid in children(child.id() as i32) {
                kill(pid, libc::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Obedient {
    fn order(&mut self, line: &str) {
        writeln!(self.stream, "{line}").expect("order");
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line in time");
        line.trim_end().to_owned()
    }

    /// What it has said so far, but for the answer to this.
    fn heard(&mut self) -> Vec<String> {
        self.order("echo so far");
        let mut heard = Vec::new();
        loop {
            let line = self.hear();
            if line == "so far" {
                return heard;
            }
            assert!(!line.is_empty(), "it has ended: {heard:?}");
            heard.push(line);
        }
    }

    fn spawn(&mut self, script: &str) -> i32 {
        self.order(&format!("spawn {script}"));
        let line = self.hear();
        let pid = line.strip_prefix("spawned ").expect("a pid");
        pid.parse().expect("a number")
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

fn is_zombie(pid: i32) -> bool {
    process_status(pid, "State").starts_with('Z')
}

#[test]
fn the_exit_code_of_the_manager_is_that_of_the_keeper() {
    let (mut keeper, mut manager) = Keeper::start();
    assert_eq!(manager.parent, keeper.pid());
    manager.order("exit 7");
    assert_eq!(keeper.wait().code(), Some(7), "{}", keeper.log());
}

#[test]
fn a_new_manager_gets_what_is_held() {
    let (keeper, mut manager) = Keeper::start();
    assert_eq!(manager.held, [""; 0]);
    for order in [
        "hold ledger one",
        "hold s1 two",
        "hold s2 three",
        "hold ledger four",
        "release s2",
    ] {
        manager.order(order);
    }
    manager.heard();
    let first = manager.pid;
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    assert_ne!(manager.pid, first);
    assert_eq!(manager.parent, keeper.pid());
    assert_eq!(manager.stop, 0);
    assert_eq!(manager.held, ["ledger=four", "s1=two"]);
    // It is itself kept, and what it had not touched still is.
    manager.order("hold s3 five");
    manager.order("release s1");
    manager.heard();
    let manager = keeper.replace(manager, libc::SIGABRT);
    assert_eq!(manager.held, ["ledger=four", "s3=five"]);
    let log = keeper.log();
    assert!(
        log.contains("was ended by signal KILL") && log.contains("was ended by signal ABRT"),
        "{log}"
    );
}

#[test]
fn what_was_said_just_before_the_end_counts() {
    let (keeper, mut manager) = Keeper::start();
    for number in 0..150 {
        manager.order(&format!("hold s{number} x"));
    }
    manager.order("release s7");
    manager.order("kill 9");
    let manager = keeper.next();
    assert_eq!(manager.held.len(), 149);
    assert!(!manager.held.contains(&"s7=x".to_owned()));
}

#[test]
fn signals_go_to_the_manager_once() {
    let (keeper, mut manager) = Keeper::start();
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGQUIT] {
        kill(keeper.pid(), signal);
        assert_eq!(manager.hear(), format!("signal {signal}"));
    }
    // As a terminal does at Ctrl-C: to the whole group.
    kill(-keeper.pid(), libc::SIGINT);
    assert_eq!(manager.hear(), "signal 2");
    kill(keeper.pid(), libc::SIGTERM);
    assert_eq!(manager.hear(), "signal 15");
    assert_eq!(manager.heard(), [""; 0]);
}

#[test]
fn a_signal_waits_for_the_next_manager() {
    let (keeper, mut manager) = Keeper::start();
    manager.order("hold ledger x");
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    manager.heard();
    kill(manager.pid, libc::SIGKILL);
    assert_eq!(manager.hear(), "");
    kill(keeper.pid(), libc::SIGHUP);
    let mut manager = keeper.next();
    assert_eq!(manager.heard(), [""; 0], "it has not taken over");
    manager.order("adopt");
    assert_eq!(manager.hear(), "signal 1");
}

#[test]
fn a_stop_that_was_asked_for_is_never_forgotten() {
    let (keeper, mut manager) = Keeper::start();
    kill(keeper.pid(), libc::SIGTERM);
    assert_eq!(manager.hear(), "signal 15");
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    assert_eq!(manager.stop, 15);
    assert_eq!(manager.heard(), [""; 0], "a second one would force it");
}

#[test]
fn an_exit_is_told_until_it_was_acted_on() {
    let (keeper, mut manager) = Keeper::start();
    let workers: Vec<i32> = (0..3).map(|_| manager.spawn("exec sleep 1000")).collect();
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    kill(workers[1], libc::SIGKILL);
    let told = manager.hear();
    assert!(
        told.starts_with(&format!("exited {} ", workers[1])) && told.ends_with(" -9"),
        "{told}"
    );
    assert!(is_zombie(workers[1]));
    // One at a time; and the next manager is told again of what this one has not acted on.
    kill(workers[0], libc::SIGTERM);
    poll(|| is_zombie(workers[0]).then_some(())).expect("it ends");
    assert_eq!(manager.heard(), [""; 0]);
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    let mut told = Vec::new();
    for _ in 0..2 {
        let line = manager.hear();
        let words: Vec<&str> = line.split(' ').collect();
        told.push((words[1].parse::<i32>().expect("a pid"), words[3].to_owned()));
        manager.order(&format!("reap {}", words[1]));
    }
    told.sort_unstable();
    let mut expected = [
        (workers[0], "-15".to_owned()),
        (workers[1], "-9".to_owned()),
    ];
    expected.sort_unstable();
    assert_eq!(told, expected);
    for pid in &workers[..2] {
        let gone = poll(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
        gone.expect("it is reaped");
    }
    assert_eq!(manager.heard(), [""; 0]);
    // One that ends while there is no manager.
    kill(manager.pid, libc::SIGKILL);
    kill(workers[2], libc::SIGUSR1);
    let mut manager = keeper.next();
    assert_eq!(manager.heard(), [""; 0], "it has not taken over");
    manager.order("adopt");
    assert!(
        manager
            .hear()
            .starts_with(&format!("exited {} ", workers[2]))
    );
}

#[test]
fn a_reap_of_what_was_not_told_is_ignored() {
    let (keeper, mut manager) = Keeper::start();
    let worker = manager.spawn("exec sleep 1000");
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    manager.order(&format!("reap {worker}"));
    manager.order(&format!("reap {}", manager.pid));
    manager.heard();
    kill(worker, libc::SIGKILL);
    assert!(manager.hear().starts_with(&format!("exited {worker} ")));
    assert!(is_zombie(worker));
}

#[test]
fn a_manager_that_does_not_take_over_is_followed_by_another() {
    let (keeper, mut manager) = Keeper::start();
    manager.order("hold ledger x");
    manager.order("kill 6");
    let mut manager = keeper.next();
    manager.order("exit 1");
    let manager = keeper.next();
    assert_eq!(manager.held, ["ledger=x"]);
    assert!(
        keeper.log().contains("did not take over: it exited with 1"),
        "{}",
        keeper.log()
    );
}

#[test]
fn one_that_has_nothing_to_lose_may_fail_to_start() {
    let (mut keeper, mut manager) = Keeper::start();
    manager.order("kill 9");
    keeper.next().order("exit 3");
    assert_eq!(keeper.wait().code(), Some(3));
}

#[test]
fn a_stop_that_nobody_can_do_is_done_roughly() {
    let (mut keeper, mut manager) = Keeper::start();
    manager.order("hold ledger x");
    let worker = manager.spawn("exec sleep 1000");
    kill(manager.pid, libc::SIGKILL);
    let mut manager = keeper.next();
    kill(keeper.pid(), libc::SIGTERM);
    manager.order("exit 1");
    keeper.next().order("exit 1");
    assert_eq!(keeper.wait().code(), Some(1), "{}", keeper.log());
    wait_until_dead(worker);
}

#[test]
fn the_parent_hears_the_keeper() {
    let dir = folder();
    let path = dir.path().join("notify");
    let parent = UnixDatagram::bind(&path).expect("bind");
    parent
        .set_read_timeout(Some(DEADLINE))
        .expect("set a timeout");
    let (mut keeper, mut manager) = Keeper::start_with(Path::new(KEPT), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    manager.order("tell READY=1");
    let mut buffer = [0; 100];
    let length = uninterrupted(|| parent.recv(&mut buffer)).expect("a message");
    assert_eq!(&buffer[..length], b"READY=1");
    let mut manager = keeper.replace(manager, libc::SIGKILL);
    // More than its queue holds, and it reads only later. The last words come through before the end.
    for number in 0..100 {
        manager.order(&format!("tell STATUS={number}"));
    }
    manager.heard();
    let length = uninterrupted(|| parent.recv(&mut buffer)).expect("a message");
    assert_eq!(&buffer[..length], b"STATUS=0");
    let last = poll(|| {
        uninterrupted(|| parent.recv(&mut buffer))
            .ok()
            .filter(|length| &buffer[..*length] == b"STATUS=99")
    });
    assert!(last.is_some());
    manager.order("tell STOPPING=1");
    manager.order("exit 0");
    let length = uninterrupted(|| parent.recv(&mut buffer)).expect("a message");
    assert_eq!(&buffer[..length], b"STOPPING=1");
    assert_eq!(keeper.wait().code(), Some(0));
}

#[test]
fn a_manager_goes_on_without_its_keeper() {
    let (mut keeper, mut manager) = Keeper::start();
    kill(keeper.pid(), libc::SIGKILL);
    assert_eq!(keeper.wait().signal(), Some(libc::SIGKILL));
    assert_eq!(manager.hear(), "gone");
    manager.order("hold s1 x");
    manager.order("release s1");
    assert_eq!(manager.heard(), [""; 0]);
    manager.order("exit 0");
    wait_until_dead(manager.pid);
}

/// A copy of the program, which may be changed while it runs.
fn copy(dir: &Path) -> PathBuf {
    let path = dir.join("program");
    std::fs::copy(KEPT, &path).expect("copy the program");
    path
}

#[test]
fn the_program_at_the_path_is_the_next_manager() {
    let dir = folder();
    // A link, as a package with several versions has it.
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    for folder in [&one, &other] {
        std::fs::create_dir(folder).expect("make a folder");
        copy(folder);
    }
    let path = dir.path().join("current");
    std::os::unix::fs::symlink(one.join("program"), &path).expect("link");
    let (keeper, manager) = Keeper::start_with(&path, |_| {});
    std::fs::remove_file(&path).expect("unlink");
    std::os::unix::fs::symlink(other.join("program"), &path).expect("link");
    let manager = keeper.replace(manager, libc::SIGKILL);
    let image = std::fs::read_link(format!("/proc/{}/exe", manager.pid)).expect("an image");
    assert_eq!(image, other.join("program"));
}

#[test]
fn a_program_that_is_gone_or_broken_is_no_obstacle() {
    type Break = fn(&Path);
    let ways: [Break; 2] = [
        |path| std::fs::remove_file(path).expect("remove the program"),
        |path| {
            std::fs::remove_file(path).expect("remove the program");
            std::fs::write(path, "half of a program").expect("write a file");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, mode).expect("change its mode");
        },
    ];
    for way in ways {
        let dir = folder();
        let path = copy(dir.path());
        let (keeper, mut manager) = Keeper::start_with(&path, |_| {});
        manager.order("hold ledger x");
        manager.heard();
        way(&path);
        let manager = keeper.replace(manager, libc::SIGKILL);
        assert_eq!(manager.held, ["ledger=x"], "{}", keeper.log());
    }
}

#[test]
fn the_keeper_has_nothing_open_but_what_it_needs() {
    let dir = folder();
    let file = std::fs::File::create(dir.path().join("file")).expect("a file");
    let (keeper, mut manager) = Keeper::start_with(Path::new(KEPT), |command| {
        use std::os::fd::AsFd;
        support::pass_fds(command, &[file.as_fd(), file.as_fd()]);
    });
    manager.heard();
    let open = |pid: i32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a list");
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        targets
            .filter(|target| *target == dir.path().join("file"))
            .count()
    };
    assert_eq!(open(keeper.pid()), 0);
    assert_eq!(open(manager.pid), 2, "they are the manager's");
}

fn kept(units: &str) -> Manager {
    spawn_by_script(units, &format!("exec {KEPT} run \"$3\""), |_| {})
}

#[test]
fn the_real_manager_runs_with_a_keeper() {
    let mut manager = kept(
        "[socket.web]\nlisten = '127.0.0.1:0'\n[watcher.web]\ncmd = 'PROBE serve $(circus.socket.web)'",
    );
    manager.wait_for_notice("READY=1");
    let pid = manager.status()["manager"]["pid"].as_i64().expect("a pid") as i32;
    assert_eq!(children(manager.pid()), [pid]);
    assert_eq!(children(pid), manager.pids("web"));
    assert_eq!(manager.stop().code(), Some(0), "{}", manager.log());
    manager.wait_until_childless();
    let text = manager.log();
    assert_eq!(text.matches("got signal").count(), 1, "{text}");
}

#[test]
fn signals_that_mean_nothing_here_end_neither_of_the_two() {
    let manager = kept(
        "[watcher.web]\ncmd = 'sleep 1000'\n[watcher.later]\ncmd = 'sleep 1000'\nautostart = false",
    );
    manager.wait_for_notice("READY=1");
    let both = [manager.pid(), manager.manager_pid()];
    let own = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO];
    let more = [libc::SIGPWR, libc::SIGSTKFLT, libc::SIGXCPU, libc::SIGXFSZ];
    for signal in own.into_iter().chain(more).chain(32..=64) {
        // One at a time: what ends the keeper ends the other too.
        for pid in both {
            kill(pid, signal);
            assert!(is_alive(pid), "signal {signal}");
        }
    }
    manager.ok(&["start", "later"]);
    assert_eq!([manager.pid(), manager.manager_pid()], both);
    for pid in [manager.pids("web"), manager.pids("later")].concat() {
        for field in ["SigIgn", "SigBlk", "SigCgt", "SigPnd", "ShdPnd"] {
            assert_eq!(process_status(pid, field), "0000000000000000", "{field}");
        }
    }
}

#[test]
fn the_real_manager_passes_its_exit_code_on() {
    let mut manager =
        kept("[watcher.web]\ncmd = 'PROBE exit 7'\nrestart = 'never'\ncritical = true");
    assert_eq!(manager.wait().code(), Some(7), "{}", manager.log());
    let mut manager = kept("[watcher.web]\ncmd = 5");
    assert_eq!(manager.wait().code(), Some(1));
    assert!(
        manager.log().contains("1 error; nothing was started"),
        "{}",
        manager.log()
    );
}

#[test]
fn as_pid_1_it_reaps_every_orphan() {
    if !needs_root() || !needs_program("unshare") {
        return;
    }
    let mut manager = spawn_by_script(
        "[watcher.web]\ncmd = 'PROBE sleep'",
        &format!("exec unshare --pid --fork --mount-proc --kill-child=KILL {KEPT} run \"$3\""),
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let keeper = *children(manager.pid())
        .first()
        .expect("unshare has a child");
    // As `docker exec` does: into the namespace, not below the manager.
    let script = "for i in 1 2 3 4 5; do (sh -c 'exit 3' & exec sh -c 'exit 4') & done; wait";
    let status = Command::new("nsenter")
        .args([
            "--target",
            &keeper.to_string(),
            "--pid",
            "--mount",
            "sh",
            "-c",
            script,
        ])
        .status();
    assert!(status.expect("run nsenter").success());
    poll(|| (children(keeper).len() == 1).then_some(()))
        .unwrap_or_else(|| panic!("{:?} are left", children(keeper)));
    kill(keeper, libc::SIGTERM);
    assert_eq!(manager.wait().code(), Some(0), "{}", manager.log());
}
