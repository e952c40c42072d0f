//! Real programs, started.

use super::child::write_decimal;
use super::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::io::{PipeWriter, Write};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

/// Held by tests that look at, or make, descriptors without CLOEXEC: they are the whole process's.
pub(crate) static INHERITABLE: Mutex<()> = Mutex::new(());

/// Held by tests that start programs as another user: whether it may be dumped is the whole process's.
static CHANGING_USER: Mutex<()> = Mutex::new(());

/// A program of a test; its fds 0 to 2 are /dev/null unless said otherwise.
pub(crate) struct Program {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<&'static CStr>,
}

/// A program that reads its end of input when this is dropped.
pub(crate) struct Held {
    child: Child,
    _input: PipeWriter,
}

impl Deref for Held {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.child
    }
}

fn text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap()
}

impl Program {
    pub(crate) fn shell(script: &str) -> Program {
        Program {
            candidates: vec![text("/bin/sh")],
            argv: ["sh", "-c", script].map(text).into(),
            env: vec![c"PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
        }
    }

    fn at(path: impl AsRef<Path>) -> Program {
        let path = text(path.as_ref().as_os_str().as_bytes());
        Program {
            candidates: vec![path.clone()],
            argv: vec![path],
            env: Vec::new(),
        }
    }

    pub(crate) fn env(mut self, entry: &str) -> Program {
        self.env.push(Box::leak(text(entry).into_boxed_c_str()));
        self
    }

    fn spec(&self) -> Spawn<'_> {
        Spawn {
            candidates: &self.candidates,
            argv: &self.argv,
            env: &self.env,
            ..Spawn::default()
        }
    }

    pub(crate) fn spawn(&self) -> Child {
        let null = null();
        let fds = [0, 1, 2].map(|fd| (null.as_fd(), fd));
        Spawner::new()
            .unwrap()
            .spawn(&Spawn {
                fds: &fds,
                ..self.spec()
            })
            .unwrap()
    }

    pub(crate) fn spawn_held(&self) -> Held {
        let (reader, input) = io::pipe().unwrap();
        let null = null();
        let fds = [(reader.as_fd(), 0), (null.as_fd(), 1), (null.as_fd(), 2)];
        let child = Spawner::new()
            .unwrap()
            .spawn(&Spawn {
                fds: &fds,
                ..self.spec()
            })
            .unwrap();
        Held {
            child,
            _input: input,
        }
    }

    pub(crate) fn spawn_with_output(&self) -> (Child, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        let null = null();
        let fds = [(null.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
        let child = Spawner::new()
            .unwrap()
            .spawn(&Spawn {
                fds: &fds,
                ..self.spec()
            })
            .unwrap();
        (child, reader.into())
    }

    /// What it prints, with what `change` adds to its description.
    fn output<'a>(&'a self, change: impl FnOnce(Spawn<'a>) -> Spawn<'a>) -> String {
        self.output_by(&mut Spawner::new().unwrap(), change)
    }

    fn output_by<'a>(
        &'a self,
        spawner: &mut Spawner,
        change: impl FnOnce(Spawn<'a>) -> Spawn<'a>,
    ) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let null = null();
        let mut fds = vec![(null.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
        let spec = change(Spawn {
            fds: &[],
            ..self.spec()
        });
        fds.extend(spec.fds);
        let child = spawner.spawn(&Spawn { fds: &fds, ..spec }).unwrap();
        drop(writer);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        wait_for_end(&child);
        process::reap(child.pid).unwrap();
        output
    }

    fn error<'a>(&'a self, change: impl FnOnce(Spawn<'a>) -> Spawn<'a>) -> String {
        let spec = change(self.spec());
        eventually(|| {
            let error = Spawner::new()
                .unwrap()
                .spawn(&spec)
                .expect_err("must not start");
            // A file that was just written may still be open in another test's child.
            (error.errno != libc::ETXTBSY).then(|| error.to_string())
        })
    }
}

fn null() -> OwnedFd {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

/// Until `attempt` gives something. The children of other tests hold copies of our descriptors for a moment, until
/// their exec has closed them, so what a test has closed may live on that long.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(start.elapsed().as_secs() < 20, "it must come about");
        std::thread::yield_now();
    }
}

/// Until the child is a zombie.
pub(crate) fn wait_for_end(child: &Child) {
    let mut fds = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::try_from(20_000).unwrap()).unwrap();
    assert_eq!(ready, 1, "the child must end");
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn environment(output: &str) -> BTreeMap<&str, &str> {
    output
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

#[test]
fn a_program_gets_its_own_session_and_group() {
    let output = Program::shell("cat /proc/$$/stat; echo $$").output(|spec| spec);
    let (stat, pid) = output.trim().split_once('\n').unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_eq!(
        (fields[2], fields[3]),
        (pid, pid),
        "group and session of {stat}"
    );
}

#[test]
fn its_environment_is_what_was_given_and_its_own_pid() {
    let program = Program::shell("echo me=$$; env").env("A=b c").env("EMPTY=");
    let output = program.output(|spec| Spawn {
        pid_vars: &["LISTEN_PID", "WATCHDOG_PID"],
        ..spec
    });
    let env = environment(&output);
    assert_eq!(env["LISTEN_PID"], env["me"], "{output}");
    assert_eq!(env["WATCHDOG_PID"], env["me"], "{output}");
    assert_eq!((env["A"], env["EMPTY"]), ("b c", ""));
    assert!(
        !env.contains_key("LISTEN_PIDFDID") && !env.contains_key("USER"),
        "{output}"
    );
}

#[test]
fn its_pidfd_id_is_the_inode_of_its_pidfd() {
    let (mut reader, writer) = io::pipe().unwrap();
    let (input, hold) = io::pipe().unwrap();
    let program = Program::shell("env; echo; read line");
    let mut spawner = Spawner::new().unwrap();
    let fds = [(input.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
    let spec = Spawn {
        pid_vars: &["LISTEN_PID"],
        pidfd_id_var: Some("LISTEN_PIDFDID"),
        fds: &fds,
        ..program.spec()
    };
    let child = spawner.spawn(&spec).unwrap();
    drop(writer);
    drop(hold);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    let env = environment(&output);
    assert_eq!(env["LISTEN_PID"], child.pid.to_string());
    if spawner.has_pidfd_ids() {
        let inode = nix::sys::stat::fstat(&child.pidfd).unwrap().st_ino;
        assert_eq!(env["LISTEN_PIDFDID"], inode.to_string());
    } else {
        assert!(!env.contains_key("LISTEN_PIDFDID"), "{output}");
    }
    wait_for_end(&child);
    process::reap(child.pid).unwrap();
}

#[test]
fn without_pidfs_there_is_no_pidfd_id() {
    let mut spawner = Spawner::new().unwrap();
    spawner.parent.has_pidfd_ids = false;
    let output = Program::shell("env").output_by(&mut spawner, |spec| Spawn {
        pid_vars: &["LISTEN_PID"],
        pidfd_id_var: Some("LISTEN_PIDFDID"),
        ..spec
    });
    assert!(
        output.contains("LISTEN_PID=") && !output.contains("LISTEN_PIDFDID"),
        "{output}"
    );
}

#[test]
fn ignored_signals_are_reset_and_the_mask_is_empty() {
    // SAFETY: SIGWINCH's default is to do nothing, as ignoring it does.
    unsafe { libc::signal(libc::SIGWINCH, libc::SIG_IGN) };
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGUSR1);
    set.thread_block().unwrap();
    let output = Program::shell("exec cat /proc/self/status").output(|spec| spec);
    assert!(set.thread_unblock().is_ok());
    for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd"] {
        let expected = format!("{field}:\t0000000000000000\n");
        assert!(output.contains(&expected), "{field} in {output}");
    }
}

#[test]
fn the_manager_keeps_its_own_mask() {
    let mask = || nix::sys::signal::SigSet::thread_get_mask().unwrap();
    let before = mask();
    Program::shell(":").output(|spec| spec);
    assert_eq!(mask(), before);
    Program::at("/nonexistent").error(|spec| spec);
    assert_eq!(mask(), before);
}

#[test]
fn nothing_leaks_but_what_was_placed() {
    let _alone = INHERITABLE
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    process::close_on_exec_from(3).unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let fds = [(socket.as_fd(), 3), (socket.as_fd(), 4)];
    let output =
        Program::shell("exec ls -l /proc/self/fd").output(|spec| Spawn { fds: &fds, ..spec });
    let open: Vec<&str> = output
        .lines()
        .filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next())
        .collect();
    // The last one is ls's own, open on the folder.
    assert_eq!(open, ["0", "1", "2", "3", "4", "5"], "{output}");
    assert_eq!(output.matches("socket:").count(), 2, "{output}");
}

#[test]
fn descriptors_may_change_places_with_stdio() {
    let (reader, mut input) = io::pipe().unwrap();
    let (mut output, writer) = io::pipe().unwrap();
    let program = Program::shell("cat <&7 >&5");
    // Where they stand now is a target of the other, whatever their numbers are.
    let fds = [
        (reader.as_fd(), writer.as_raw_fd()),
        (writer.as_fd(), reader.as_raw_fd()),
        (reader.as_fd(), 7),
        (writer.as_fd(), 5),
    ];
    let child = Spawner::new()
        .unwrap()
        .spawn(&Spawn {
            fds: &fds,
            ..program.spec()
        })
        .unwrap();
    drop((reader, writer));
    input.write_all(b"through").unwrap();
    drop(input);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    wait_for_end(&child);
    process::reap(child.pid).unwrap();
}

#[test]
fn everything_that_root_may_set_is_set() {
    let _alone = CHANGING_USER
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    if !is_root() {
        return;
    }
    let own_oom_score = || fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let before = (own_oom_score(), is_dumpable());
    let script = "id -u; id -g; id -G; umask; pwd; nice; cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn; \
                  ulimit -Sc; ulimit -Hc; grep Cpus_allowed_list /proc/self/status";
    let output = Program::shell(script).output(|spec| Spawn {
        working_dir: Some(c"/usr"),
        umask: Some(0o27),
        nice: Some(3),
        oom_score_adj: Some(123),
        cpu_affinity: Some(&[0, 4000]),
        rlimits: &[
            (Resource::Nofile, Some(40), Some(50)),
            (Resource::Core, Some(0), None),
        ],
        uid: Some(65_534),
        gid: Some(65_533),
        groups: Some(&[12, 65_533]),
        ..spec
    });
    let lines: Vec<&str> = output.lines().collect();
    let expected = [
        "65534",
        "65533",
        "65533 12",
        "0027",
        "/usr",
        "3",
        "123",
        "40",
        "50",
        "0",
        "unlimited",
    ];
    assert_eq!(lines[..11], expected, "{output}");
    assert_eq!(lines[11], "Cpus_allowed_list:\t0");
    assert_eq!(
        (own_oom_score(), is_dumpable()),
        before,
        "the manager itself is as it was"
    );
}

#[test]
fn a_hostile_user_can_not_stop_the_manager() {
    let _alone = CHANGING_USER
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    if !is_root() || !raw::LEAVES_ERRNO_ALONE {
        return;
    }
    // A user of our own: it signals all that it may.
    let uid = Some(3_000_000_000 + std::process::id());
    let null = null();
    let fds = [0, 1, 2].map(|fd| (null.as_fd(), fd));
    let hostile = Program::shell("while :; do kill -s STOP -- -1; done");
    let spec = Spawn {
        uid,
        fds: &fds,
        ..hostile.spec()
    };
    let mut spawner = Spawner::new().unwrap();
    let hostile = spawner.spawn(&spec).unwrap();
    let victim = Program::at("/bin/true");
    let start = std::time::Instant::now();
    let error = loop {
        match spawner.spawn(&Spawn {
            uid,
            ..victim.spec()
        }) {
            Ok(child) => {
                // Stopped after its exec, perhaps.
                process::kill(child.pid, libc::SIGKILL).unwrap();
                wait_for_end(&child);
                process::reap(child.pid).unwrap();
            }
            Err(error) => break Some(error.to_string()),
        }
        if start.elapsed().as_secs() > 10 {
            break None;
        }
    };
    process::kill(hostile.pid, libc::SIGKILL).unwrap();
    wait_for_end(&hostile);
    process::reap(hostile.pid).unwrap();
    match error {
        Some(error) => assert_eq!(
            error,
            "exec /bin/true: Interrupted system call (a process of the same user stopped it before its exec, so it \
             was killed)"
        ),
        None => eprintln!("skipped: no start was met in time"),
    }
}

#[test]
fn a_start_as_another_user_tells_its_failure_too() {
    let _alone = CHANGING_USER
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    if !is_root() {
        return;
    }
    let uid = Some(65_534);
    assert_eq!(
        Program::at("/nonexistent/foo").error(|spec| Spawn { uid, ..spec }),
        "exec /nonexistent/foo: No such file or directory"
    );
    assert_eq!(
        Program::shell(":").error(|spec| Spawn {
            uid,
            oom_score_adj: Some(5000),
            ..spec
        }),
        "oom_score_adj 5000: Invalid argument"
    );
}

#[test]
fn the_oom_score_is_set_for_the_same_user_and_for_another() {
    let own = || fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let before = own();
    let _alone = CHANGING_USER
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    let program = Program {
        argv: ["cat", "/proc/self/oom_score_adj"].map(text).into(),
        ..Program::at("/bin/cat")
    };
    let uids: &[_] = if is_root() {
        &[None, Some(65_534)]
    } else {
        &[None]
    };
    // Often, since it was once a matter of the moment whether the manager got it as well.
    for &uid in uids.iter().cycle().take(100) {
        assert_eq!(
            program.output(|spec| Spawn {
                oom_score_adj: Some(321),
                uid,
                ..spec
            }),
            "321\n"
        );
        assert_eq!(own(), before, "the manager's own is as it was");
    }
}

#[test]
fn a_raised_descriptor_limit_is_not_handed_on() {
    let mut spawner = Spawner::new().unwrap();
    spawner.restore_nofile(100, 200);
    let program = Program::shell("ulimit -Sn; ulimit -Hn");
    assert_eq!(program.output_by(&mut spawner, |spec| spec), "100\n200\n");
    let own = program.output_by(&mut spawner, |spec| Spawn {
        rlimits: &[(Resource::Nofile, Some(50), Some(60))],
        ..spec
    });
    assert_eq!(own, "50\n60\n");
}

#[test]
fn a_limit_below_the_descriptor_numbers_is_no_obstacle() {
    let (reader, writer) = io::pipe().unwrap();
    let program = Program::shell("echo through >&30");
    let limits = [(Resource::Nofile, Some(8), Some(8))];
    let spec = Spawn {
        fds: &[(writer.as_fd(), 30)],
        rlimits: &limits,
        ..program.spec()
    };
    let child = Spawner::new().unwrap().spawn(&spec).unwrap();
    drop(writer);
    wait_for_end(&child);
    process::reap(child.pid).unwrap();
    // Shells differ in whether they can write to 30 then; that it was started is what counts.
    drop(reader);
}

#[test]
fn the_candidates_are_tried_in_turn() {
    let mut program = Program::shell("echo found");
    program.candidates = [
        "/nonexistent/sh",
        "/etc/passwd/sh",
        "/etc",
        "/bin/sh",
        "/bin/false",
    ]
    .map(text)
    .into();
    assert_eq!(program.output(|spec| spec), "found\n");
}

#[test]
fn a_missing_program_is_named() {
    assert_eq!(
        Program::at("/nonexistent/foo").error(|spec| spec),
        "exec /nonexistent/foo: No such file or directory"
    );
    assert_eq!(
        Program::at("bin/foo").error(|spec| Spawn {
            working_dir: Some(c"/usr"),
            ..spec
        }),
        "exec bin/foo: No such file or directory (in `/usr`)"
    );
}

#[test]
fn a_name_that_is_nowhere_in_path_is_said_to_be_so() {
    let mut program = Program::at("foo");
    program.candidates = ["/usr/bin/no-such-foo", "/bin/no-such-foo"]
        .map(text)
        .into();
    assert_eq!(
        program.error(|spec| spec),
        "exec no-such-foo: No such file or directory (not found in PATH)"
    );
    program.candidates.clear();
    assert_eq!(
        program.error(|spec| spec),
        "exec foo: No such file or directory (not found in PATH)"
    );
}

fn file(folder: &tempfile::TempDir, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn every_mistake_with_a_file_has_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("nothing", &link).unwrap();
    let plain = file(&folder, "plain", "echo hello\n", 0o755);
    let cases = [
        (
            plain,
            "Exec format error (a script needs a first line such as `#!/bin/sh`)",
        ),
        (
            file(&folder, "empty", "", 0o755),
            "Exec format error (the file is empty)",
        ),
        (
            file(&folder, "elf", "\x7fELF\0\0\0\0", 0o755),
            "Exec format error (a program for another kind of machine, or a damaged one)",
        ),
        (
            file(&folder, "lost", "#! /no/such/python -u\n", 0o755),
            "No such file or directory (the file exists, but its interpreter `/no/such/python` does not)",
        ),
        (
            file(&folder, "dos", "#!/bin/sh\r\necho\r\n", 0o755),
            "No such file or directory (its first line ends in a carriage return: save the script with Unix line ends)",
        ),
        (
            folder.path().into(),
            "Permission denied (it is a directory)",
        ),
        (
            link,
            "No such file or directory (a symbolic link to nothing)",
        ),
    ];
    for (path, reason) in cases {
        assert_eq!(
            Program::at(&path).error(|spec| spec),
            format!("exec {}: {reason}", path.display())
        );
    }
    let closed = file(&folder, "closed", "#!/bin/sh\n", 0o644);
    let reason = format!(
        "the file is not executable; `chmod +x {0}` makes it so",
        closed.display()
    );
    assert_eq!(
        Program::at(&closed).error(|spec| spec),
        format!("exec {}: Permission denied ({reason})", closed.display())
    );
    let inner = file(
        &folder,
        "inner",
        &format!("#!{}\n", closed.display()),
        0o755,
    );
    assert_eq!(
        Program::at(&inner).error(|spec| spec),
        format!(
            "exec {}: Permission denied (its interpreter `{}` is not executable)",
            inner.display(),
            closed.display()
        )
    );
}

#[test]
fn a_fifo_in_place_of_a_program_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o777)).unwrap();
    assert_eq!(
        Program::at(&path).error(|spec| spec),
        format!(
            "exec {}: Permission denied (it is no regular file)",
            path.display()
        )
    );
}

#[test]
fn a_candidate_that_is_denied_is_reported_before_one_that_is_missing() {
    let mut program = Program::at("foo");
    program.candidates = ["/nonexistent/foo", "/etc/passwd", "/other/foo"]
        .map(text)
        .into();
    let error = program.error(|spec| spec);
    assert!(
        error.starts_with("exec /etc/passwd: Permission denied (the file is not executable"),
        "{error}"
    );
}

#[test]
fn a_script_without_its_interpreter_is_not_said_to_be_missing_from_path() {
    let folder = tempfile::tempdir().unwrap();
    let script = file(&folder, "foo", "#!/no/such/thing\n", 0o755);
    let mut program = Program::at("foo");
    program.candidates = vec![
        text("/usr/bin/no-such-foo"),
        text(script.as_os_str().as_bytes()),
    ];
    let error = program.error(|spec| spec);
    assert!(
        error.starts_with(&format!("exec {}: ", script.display())),
        "{error}"
    );
    assert!(
        error.ends_with("its interpreter `/no/such/thing` does not)"),
        "{error}"
    );
}

#[test]
fn each_step_that_fails_is_named() {
    let _alone = CHANGING_USER
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    let program = Program::shell(":");
    assert_eq!(
        program.error(|spec| Spawn {
            working_dir: Some(c"/nonexistent"),
            ..spec
        }),
        "chdir /nonexistent: No such file or directory"
    );
    assert_eq!(
        program.error(|spec| Spawn {
            cpu_affinity: Some(&[4000]),
            ..spec
        }),
        "cpu_affinity: Invalid argument (this machine has none of these CPUs)"
    );
    assert_eq!(
        program.error(|spec| Spawn {
            cpu_affinity: Some(&[u32::MAX]),
            ..spec
        }),
        "cpu_affinity: Invalid argument (this machine has none of these CPUs)"
    );
    assert_eq!(
        program.error(|spec| Spawn {
            oom_score_adj: Some(5000),
            ..spec
        }),
        "oom_score_adj 5000: Invalid argument"
    );
    assert_eq!(
        program.error(|spec| Spawn {
            rlimits: &[(Resource::Core, Some(2), Some(1))],
            ..spec
        }),
        "rlimit core: Invalid argument"
    );
    let null = null();
    let spec = Spawn {
        fds: &[(null.as_fd(), -1)],
        ..program.spec()
    };
    assert_eq!(
        Spawner::new()
            .unwrap()
            .spawn(&spec)
            .unwrap_err()
            .to_string(),
        "fd -1: Bad file descriptor"
    );
    if is_root() {
        let uid = Some(u32::MAX - 1);
        let limits = [(Resource::Nofile, None, None)];
        assert_eq!(
            program.error(|spec| Spawn {
                uid,
                working_dir: Some(c"/root"),
                ..spec
            }),
            "chdir /root: Permission denied",
            "the folder is entered with the rights of the user"
        );
        assert_eq!(
            program.error(|spec| Spawn {
                rlimits: &limits,
                ..spec
            }),
            "rlimit nofile: Operation not permitted"
        );
    }
}

#[test]
fn a_failed_start_leaves_no_zombie_and_no_descriptor() {
    let mut spawner = Spawner::new().unwrap();
    let program = Program::at("/nonexistent/foo");
    let failures = 50;
    for _ in 0..failures {
        spawner.spawn(&program.spec()).unwrap_err();
    }
    // Others' children come and go meanwhile, but none of them is a zombie named like this thread for long.
    let name = fs::read("/proc/thread-self/comm").unwrap();
    let zombies = process::children().unwrap().into_iter().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
            status.contains("State:\tZ")
                && status
                    .as_bytes()
                    .starts_with(&[b"Name:\t", &name[..]].concat())
        })
    });
    assert_eq!(zombies.count(), 0);
    let pidfds = process::open_fds().unwrap().into_iter().filter(|fd| {
        fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[pidfd]")
    });
    assert!(pidfds.count() < failures);
}

#[test]
fn numbers_are_written_in_decimal() {
    for number in [0, 7, 10, 99, 100, 4_194_304, u64::from(u32::MAX), u64::MAX] {
        let mut bytes = [0; 30];
        write_decimal(number, &mut bytes, 3);
        let text = CStr::from_bytes_until_nul(&bytes[3..]).unwrap();
        assert_eq!(text.to_str().unwrap(), number.to_string());
    }
}

#[test]
fn a_spawner_starts_many_one_after_the_other() {
    let mut spawner = Spawner::new().unwrap();
    let program = Program::at("/bin/true");
    for _ in 0..100 {
        let child = spawner.spawn(&program.spec()).unwrap();
        wait_for_end(&child);
        assert_eq!(process::reap(child.pid).unwrap(), process::Exit::Code(0));
    }
}

#[test]
fn many_are_started_at_once_and_each_is_what_was_asked_for() {
    let mut spawner = Spawner::new().unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let null = null();
    let fds = [(null.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
    let programs: Vec<Program> = (0..3 * AT_ONCE + 1)
        .map(|number| match number % 3 {
            0 => Program::shell("echo \"$NUMBER $LISTEN_PID $$\"").env(&format!("NUMBER={number}")),
            1 => Program::at(format!("/nonexistent/{number}")),
            _ => Program::shell("exit 3"),
        })
        .collect();
    let specs: Vec<Spawn<'_>> = programs
        .iter()
        .zip(0..)
        .map(|(program, number)| Spawn {
            fds: &fds,
            pid_vars: &["LISTEN_PID"],
            // Some of them can't be on their way beside others.
            oom_score_adj: (number % 5 == 0).then_some(100),
            ..program.spec()
        })
        .collect();
    let outcomes = spawner.spawn_all(&specs);
    assert_eq!(outcomes.len(), specs.len());
    drop(writer);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    for (number, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(child) => {
                wait_for_end(&child);
                let exit = process::reap(child.pid).unwrap();
                if number % 3 == 0 {
                    let line = format!("{number} {0} {0}", child.pid);
                    assert!(
                        output.lines().any(|other| other == line),
                        "{line}: {output}"
                    );
                    assert_eq!(exit, process::Exit::Code(0));
                } else {
                    assert_eq!((number % 3, exit), (2, process::Exit::Code(3)));
                }
            }
            Err(error) => assert_eq!(
                error.to_string(),
                format!("exec /nonexistent/{number}: No such file or directory")
            ),
        }
    }
    spawner.rest();
    assert_eq!(spawner.stacks.len(), 1);
    spawner.spawn_all(&[]);
}

#[test]
fn another_users_programs_are_started_at_once_too() {
    let _alone = CHANGING_USER
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    if !is_root() {
        return;
    }
    let mut spawner = Spawner::new().unwrap();
    let program = Program::shell("exit $(id -u)");
    let lost = Program::at("/nonexistent/foo");
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let specs: Vec<Spawn<'_>> = (0..AT_ONCE as u32)
        .map(|number| Spawn {
            uid: Some(number % 4),
            oom_score_adj: (number % 3 == 0).then_some(200),
            ..if number == 7 {
                lost.spec()
            } else {
                program.spec()
            }
        })
        .collect();
    let before = is_dumpable();
    for (outcome, spec) in spawner.spawn_all(&specs).into_iter().zip(&specs) {
        let Ok(child) = outcome else {
            assert_eq!(spec.candidates, lost.candidates);
            continue;
        };
        wait_for_end(&child);
        let code = spec.uid.unwrap() as i32;
        assert_eq!(process::reap(child.pid).unwrap(), process::Exit::Code(code));
    }
    assert_eq!(is_dumpable(), before);
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap(), own);
}
