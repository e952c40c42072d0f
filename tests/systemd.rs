//! The shipped `tentpole.service` under a real systemd, which is PID 1 of namespaces of its own: its unit folder, its /run
//! and its cgroups are the test's, its root file system is read-only, and all of it ends with the test.
//!
//! Each test runs with the systemd of this machine, and with the one of the root file system in `target/real-systemd`,
//! where `.ci/run` installs a newer one. What can't be had is left out with a line on stderr, or fails its test with
//! TENTPOLE_REQUIRE_REAL=1.

mod support;

use serde_json::Value;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use support::lives::listeners;
use support::load::Load;
use support::{
    ask, bounded, command, environment, find, folder, freeze, is_root, kill, poll, poll_for, probe,
    process_status, start_time, wait_until_dead,
};
use tempfile::TempDir;

const SERVICE: &str = include_str!("../packaging/systemd/tentpole.service");
const TMPFILES: &str = include_str!("../packaging/systemd/tentpole.tmpfiles");

/// From a namespace's first process to systemd.
const BOOT: &str = r#"
    set -eu
    root=$1 folder=$2 inside=$3 tentpole=$4 probe=$5
    mount --make-rprivate /
    if [ "$root" != / ]; then
        mount --bind "$root" "$root"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
    fi
    cd "$root"
    for units in etc/tentpole usr/lib/tentpole; do
        [ ! -d $units ] || mount -t tmpfs none $units
    done
    mount -t cgroup2 none sys/fs/cgroup
    mount -t tmpfs -o mode=755 none run
    mkdir ".$inside"
    mount --bind "$folder" ".$inside"
    mount --bind "$tentpole" ".$inside/tentpole"
    mount --bind "$probe" ".$inside/probe"
    # Nothing of this machine is changed by whatever systemd likes to set up.
    mount -o remount,bind,ro .
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    systemd=/usr/lib/systemd/systemd
    [ -e ".$systemd" ] || systemd=/lib/systemd/systemd
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH="$inside/systemd" \
        chroot . $systemd --system --unit=test.target --show-status=no --log-target=console
    "#;

const WEB: &str = r#"
    [socket.web]
    listen = "127.0.0.1:0"
    blocking = false
    [watcher.web]
    cmd = "PROBE count $(circus.socket.web)"
    type = "notify"
    numprocesses = 2
    "#;

#[test]
fn it_is_active_when_every_watcher_is_running() {
    each(|install| {
        // The manager asks for more than this.
        let system = System::boot(install, "[Service]\nTimeoutStartSec=2\n");
        system.write_units(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            [watcher.web]
            cmd = "PROBE do append DIR/begun %p , await DIR/go , notify READY=1 , serve $(circus.socket.web)"
            type = "notify"
            "#,
        );
        system.ok(&["start", "--no-block", "tentpole"]);
        system.wait_until("the worker has begun", || system.path("begun").exists());
        system.wait_for_property("StatusText", "0 of 1 watchers running, 1 starting");
        let changed = poll_for(Duration::from_millis(2300), || {
            (system.property("ActiveState") != "activating").then_some(())
        });
        assert!(changed.is_none(), "{}", system.log());
        fs::write(system.path("go"), "").expect("write a file");
        system.wait_for_property("ActiveState", "active");
        system.wait_for_property("StatusText", "1 of 1 watchers running");
        let status = system.ok(&["status", "--no-pager", "tentpole"]);
        assert!(status.contains("1 of 1 watchers running"), "{status}");
        let worker = system.pids()[0];
        assert_eq!(ask(&system.address(), "pid"), worker.to_string());
        // What systemd tells the manager is not for the worker.
        let variables = environment(system.outside(worker));
        assert!(!variables.contains_key("FDSTORE"), "{variables:?}");
        assert_eq!(variables["LISTEN_PID"], worker.to_string());
        assert_ne!(variables["NOTIFY_SOCKET"], "/run/systemd/notify");
    });
}

#[test]
fn units_with_a_mistake_fail_the_start_once_and_for_all() {
    each(|install| {
        let system = System::boot(install, "");
        system.write_units("[socket.web]\nlistne = 1\n");
        let output = system.systemctl(&["start", "tentpole"]);
        assert!(!output.status.success());
        assert_eq!(system.property("ActiveState"), "failed");
        assert_eq!(system.property("ExecMainStatus"), "1");
        assert_eq!(system.property("NRestarts"), "0");
        system.wait_until_empty();
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        assert_eq!(system.pids().len(), 2);
    });
}

#[test]
fn reload_takes_up_changed_units_and_refuses_mistakes() {
    each(|install| {
        let system = System::boot(install, "");
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        let before = system.snapshot();
        let load = Load::start(&[&system.address()], 2);
        load.now("reload");
        system.write_units(&WEB.replace("notify\"", "notify\"\nenv = { MARK = \"new\" }"));
        system.ok(&["reload", "tentpole"]);
        let after = system.snapshot();
        assert_eq!(after.listeners, before.listeners);
        assert!(
            after
                .workers
                .iter()
                .all(|new| !before.workers.contains(new)),
            "{before:?} {after:?}"
        );
        // It is over in the eyes of both.
        assert_eq!(system.property("ActiveState"), "active");
        assert_eq!(system.property("SubState"), "running");

        load.now("a reload with a mistake");
        system.write_units("[socket.web]\nlistne = 1\n");
        let output = system.systemctl(&["reload", "tentpole"]);
        assert!(!output.status.success());
        assert!(system.log().contains("units.toml:2:1"), "{}", system.log());
        assert_eq!(system.property("ActiveState"), "active");
        assert_eq!(system.property("SubState"), "running");
        assert_eq!(system.snapshot(), after);
        load.finish();
    });
}

#[test]
fn a_killed_manager_is_followed_by_one_that_has_its_sockets_and_workers() {
    each(|install| {
        let system = System::boot(install, "");
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        // The ledger, the notify socket, the control socket, and the one of `web`.
        system.wait_for_property("NFileDescriptorStore", "4");
        let before = system.snapshot();
        let load = Load::start(&[&system.address()], 2);
        // More than systemd would stand by itself.
        for round in 1..=8 {
            load.now(format!("kill {round}"));
            system.crash(round);
            assert_eq!(system.snapshot(), before, "{}", system.log());
            system.wait_for_property("NFileDescriptorStore", "4");
        }
        // What systemd has stored it hands on to its next self, and the manager still reaches that.
        load.now("daemon-reexec");
        system.ok(&["daemon-reexec"]);
        system.wait_for_property("NFileDescriptorStore", "4");
        system.crash(9);
        assert_eq!(system.snapshot(), before, "{}", system.log());

        load.now("a new socket and one less");
        let more = WEB
            .replace("web]", "more]")
            .replace("socket.web)", "socket.more)");
        system.write_units(&format!("{WEB}{more}"));
        system.ok(&["reload", "tentpole"]);
        system.wait_for_property("NFileDescriptorStore", "5");
        let both = system.snapshot();
        system.crash(10);
        assert_eq!(system.snapshot(), both, "{}", system.log());
        system.write_units(WEB);
        system.ok(&["reload", "tentpole"]);
        system.wait_for_property("NFileDescriptorStore", "4");
        system.crash(11);
        assert_eq!(system.snapshot(), before, "{}", system.log());
        load.finish();
        system.ok(&["stop", "tentpole"]);
        system.wait_until_empty();
    });
}

#[test]
fn an_upgrade_keeps_the_main_process_and_what_systemd_stores() {
    each(|install| {
        let system = System::boot(install, "");
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        let before = system.snapshot();
        let main = system.property("MainPID");
        let load = Load::start(&[&system.address()], 2);
        for round in 0..3 {
            load.now(format!("upgrade {round}"));
            system.tentpole(&["upgrade"]);
            assert_eq!(system.property("MainPID"), main);
            assert_eq!(system.snapshot(), before, "{}", system.log());
            assert_eq!(system.property("NFileDescriptorStore"), "4");
        }
        assert_eq!(system.property("NRestarts"), "0");
        load.now("kill after the upgrades");
        system.crash(1);
        assert_eq!(system.snapshot(), before, "{}", system.log());
        load.finish();
    });
}

#[test]
fn stop_ends_every_worker_and_restart_begins_anew() {
    each(|install| {
        let system = System::boot(install, "");
        let counting = WEB.replace("notify\"", "notify\"\nenv = { COUNTED = \"DIR/counted\" }");
        system.write_units(&counting);
        system.ok(&["start", "tentpole"]);
        // Also of what another manager has left it leaves nothing.
        system.crash(1);
        let before = system.snapshot();
        system.ok(&["restart", "tentpole"]);
        let after = system.snapshot();
        assert!(
            after
                .workers
                .iter()
                .all(|new| !before.workers.contains(new)),
            "{before:?} {after:?}"
        );
        assert_ne!(after.listeners, before.listeners);
        assert!(!system.log().contains("of no use"), "{}", system.log());
        // They write it when they end by themselves.
        assert_eq!(system.lines("counted"), 2);
        system.wait_for_property("NFileDescriptorStore", "4");

        system.ok(&["stop", "tentpole"]);
        assert_eq!(system.property("ActiveState"), "inactive");
        assert_eq!(system.property("Result"), "success");
        assert_eq!(system.property("NFileDescriptorStore"), "0");
        assert_eq!(system.lines("counted"), 4);
        system.wait_until_empty();
        assert_eq!(
            system.log().matches("taken over").count(),
            1,
            "{}",
            system.log()
        );
        system.ok(&["start", "tentpole"]);
        assert_eq!(
            system.log().matches("taken over").count(),
            1,
            "{}",
            system.log()
        );
    });
}

#[test]
fn what_systemd_listens_on_is_taken_by_name_and_by_address() {
    each(|install| {
        let system = System::boot(install, "");
        // Without `FileDescriptorName=` its name is that of the unit.
        system.write_unit(
            "tentpole.socket",
            "[Socket]\nListenStream=DIR/path\nListenDatagram=DIR/path.dgram\n",
        );
        system.write_unit(
            "named.socket",
            "[Socket]\nListenStream=DIR/named\nFileDescriptorName=web\nService=tentpole.service\n",
        );
        system.ok(&["daemon-reload"]);
        system.ok(&["start", "tentpole.socket", "named.socket"]);
        let inodes = ["path", "named"].map(|name| listeners(&format!("{}/{name}", system.inside)));
        let units = r#"
            [socket.web]
            listen = "DIR/elsewhere"
            inherit = "require"
            blocking = false
            [socket.path]
            listen = "DIR/path"
            inherit = "require"
            blocking = false
            [socket.own]
            listen = "DIR/own"
            blocking = false
            [watcher.web]
            cmd = "PROBE count $(circus.socket.web)"
            [watcher.path]
            cmd = "PROBE count $(circus.socket.path)"
            [watcher.own]
            cmd = "PROBE count $(circus.socket.own)"
            "#;
        system.write_units(units);
        // The first client starts the service.
        let paths = ["named", "path"].map(|name| system.path(name).display().to_string());
        let load = Load::start(&[&paths[0], &paths[1]], 2);
        load.now("start");
        system.wait_for_property("ActiveState", "active");
        let before = system.snapshot();
        for inode in inodes.iter().flatten() {
            assert!(before.listeners.contains(inode), "{inodes:?} {before:?}");
        }
        assert!(
            system.log().contains("`tentpole.socket` is closed"),
            "{}",
            system.log()
        );
        system.wait_for_property("NFileDescriptorStore", "6");
        load.now("a crash");
        system.crash(1);
        assert_eq!(system.snapshot(), before, "{}", system.log());
        assert_eq!(system.address(), format!("{}/named", system.inside));
        load.now("an upgrade");
        system.tentpole(&["upgrade"]);
        assert_eq!(system.snapshot(), before, "{}", system.log());
        load.now("a restart");
        // The port is systemd's, and waits.
        system.ok(&["restart", "tentpole"]);
        let after = system.snapshot();
        assert!(
            inodes
                .iter()
                .flatten()
                .all(|inode| after.listeners.contains(inode))
        );
        load.finish();
        system.ok(&["stop", "tentpole.socket", "named.socket", "tentpole"]);
        system.wait_until_empty();
        assert!(!system.path("own").exists());
    });
}

#[test]
fn more_sockets_than_a_program_may_open_by_default_come_back() {
    each(|install| {
        let system = System::boot(install, "");
        let count = 1100;
        let units: String = (0..count)
            .map(|number| format!("[socket.s{number}]\nlisten = \"DIR/s{number}\"\n"))
            .collect();
        let first = r#"
            [watcher.first]
            cmd = "PROBE serve $(circus.socket.s0)"
            "#;
        system.write_units(&format!("{units}{first}"));
        system.ok(&["start", "tentpole"]);
        system.wait_for_property("NFileDescriptorStore", &(count + 3).to_string());
        let before = system.snapshot();
        assert_eq!(before.listeners.len(), count);
        system.crash(1);
        assert_eq!(system.snapshot(), before, "{}", system.log());
        // That the manager may open more is not for a worker, neither of the first nor of the second.
        let new = format!("{units}{first}numprocesses = 2");
        system.write_units(&new);
        system.ok(&["reload", "tentpole"]);
        for worker in system.pids() {
            let limits = fs::read_to_string(format!("/proc/{}/limits", system.outside(worker)));
            let limits = limits.expect("read the limits");
            let line = limits
                .lines()
                .find(|line| line.starts_with("Max open files"));
            let words: Vec<&str> = line.expect("a limit").split_whitespace().collect();
            assert_eq!(words[3], "1024");
        }
        system.ok(&["stop", "tentpole"]);
        system.wait_for_property("NFileDescriptorStore", "0");
        system.wait_until_empty();
    });
}

#[test]
fn no_more_is_stored_than_a_new_manager_can_be_given() {
    each(|install| {
        let system = System::boot(install, "[Service]\nLimitNOFILE=200:4096\n");
        let units: String = (0..250)
            .map(|number| format!("[socket.s{number}]\nlisten = \"DIR/s{number}\"\n"))
            .collect();
        let first = r#"
            [watcher.first]
            cmd = "PROBE serve $(circus.socket.s0)"
            "#;
        system.write_units(&format!("{units}{first}"));
        system.ok(&["start", "tentpole"]);
        system.wait_for_property("NFileDescriptorStore", "72");
        assert!(
            system
                .log()
                .contains("raise `FileDescriptorStoreMax=` and `LimitNOFILE=`")
        );
        let before = system.snapshot();
        system.tentpole(&["upgrade"]);
        system.write_units(&format!(
            "{units}[socket.last]\nlisten = \"DIR/last\"\n{first}"
        ));
        system.ok(&["reload", "tentpole"]);
        assert_eq!(system.property("NFileDescriptorStore"), "72");
        system.crash(1);
        let after = system.snapshot();
        assert_eq!(after.workers, before.workers);
        // What was not stored is bound anew.
        assert_eq!(after.listeners.len(), 251, "{}", system.log());
    });
}

#[test]
fn a_state_that_nobody_can_read_is_tried_again_until_somebody_can() {
    each(|install| {
        let system = System::boot(install, "");
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        let before = system.snapshot();
        let load = Load::start(&[&system.address()], 2);
        let main = system.main();
        let state = state_of(main);
        // As if a newer one had written it.
        state
            .write_all_at(b"newstate", 0)
            .expect("write to the state");
        load.now("nobody takes over");
        kill(main, libc::SIGKILL);
        system.wait_until("another one has failed", || {
            system.log().matches("can't be read").count() == 2
        });
        assert_eq!(system.property("ExecMainStatus"), "75");
        assert_eq!(system.property("NFileDescriptorStore"), "4");
        load.now("somebody takes over");
        state
            .write_all_at(b"tentpole", 0)
            .expect("write to the state");
        system.wait_for_property("ActiveState", "active");
        assert_eq!(system.snapshot(), before, "{}", system.log());
        load.finish();
    });
}

#[test]
fn a_new_manager_leaves_the_workers_of_another_service_alone() {
    each(|install| {
        let system = System::boot(install, "");
        let other = SERVICE.replace(
            "/usr/bin/tentpole run",
            "DIR/tentpole run --control DIR/other.sock DIR/other.toml",
        );
        system.write_unit("other.service", &other);
        system.ok(&["daemon-reload"]);
        // By the same names, and in the same place: both are children of systemd once their manager is dead.
        system.write_units(WEB);
        let units = WEB.replace("PROBE", &format!("{}/probe", system.inside));
        fs::write(system.path("other.toml"), units).expect("write the units");
        system.ok(&["start", "tentpole", "other"]);
        // What we know nothing of would have to end.
        let control = system.path("other.sock").display().to_string();
        system.tentpole(&["--control", &control, "reload", "web"]);
        let ours = system.snapshot();
        let theirs = system.status_of("other.sock");
        let show = |name: &str| system.ok(&["show", "--property", name, "--value", "other"]);
        let main = system.outside_of(
            "other.service",
            show("MainPID").trim().parse().expect("a pid"),
        );
        freeze(main);
        kill(main, libc::SIGKILL);
        wait_until_dead(main);
        system.crash(1);
        system.wait_until("the other one is replaced", || {
            show("NRestarts").trim() == "1"
        });
        system.wait_until("the other one is active", || {
            show("ActiveState").trim() == "active"
        });
        assert_eq!(system.snapshot(), ours, "{}", system.log());
        assert_eq!(workers(&system.status_of("other.sock")), workers(&theirs));
    });
}

#[test]
fn without_a_store_a_keeper_is_the_main_process() {
    each(|install| {
        let system = System::boot(
            install,
            "[Service]\nFileDescriptorStoreMax=0\nUnsetEnvironment=FDSTORE\n",
        );
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        let before = system.snapshot();
        let main = system.property("MainPID");
        let load = Load::start(&[&system.address()], 2);
        for round in 0..3 {
            load.now(format!("kill {round}"));
            let old = system.status()["manager"]["pid"].as_i64().expect("a pid");
            assert_ne!(old.to_string(), main);
            kill(system.outside(old), libc::SIGKILL);
            system.wait_until("another manager answers", || {
                let output = system.try_tentpole(&["status", "--json"]);
                let status: Result<Value, _> = serde_json::from_slice(&output.stdout);
                status.is_ok_and(|status| status["manager"]["pid"] != old)
            });
            assert_eq!(system.snapshot(), before, "{}", system.log());
        }
        load.now("reload");
        system.ok(&["reload", "tentpole"]);
        load.now("upgrade");
        system.tentpole(&["upgrade"]);
        assert_eq!(system.snapshot(), before, "{}", system.log());
        load.finish();
        assert_eq!(system.property("MainPID"), main);
        assert_eq!(system.property("StatusText"), "1 of 1 watchers running");
        assert_eq!(system.property("NRestarts"), "0");
        system.ok(&["stop", "tentpole"]);
        assert_eq!(system.property("Result"), "success");
        system.wait_until_empty();
    });
}

#[test]
fn a_manager_that_stands_still_is_replaced_by_the_watchdog() {
    each(|install| {
        let system = System::boot(install, "[Service]\nWatchdogSec=1\nTimeoutAbortSec=200ms\n");
        system.write_units(WEB);
        system.ok(&["start", "tentpole"]);
        let before = system.snapshot();
        // An idle one is well; for longer than it may be silent.
        assert!(
            poll_for(Duration::from_millis(1500), || {
                (system.property("NRestarts") != "0").then_some(())
            })
            .is_none(),
            "{}",
            system.log()
        );
        let main = system.main();
        freeze(main);
        wait_until_dead(main);
        system.wait_for_property("NRestarts", "1");
        system.wait_for_property("ActiveState", "active");
        assert_eq!(system.snapshot(), before, "{}", system.log());
    });
}

/// A systemd that can be run.
struct Install {
    root: PathBuf,
}

/// Runs a test with each.
fn each(test: impl Fn(&Install)) {
    for install in installs() {
        test(&install);
    }
}

fn installs() -> Vec<Install> {
    static SAID: AtomicBool = AtomicBool::new(false);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = [PathBuf::from("/"), here.join("target/real-systemd")];
    let found = roots.into_iter().filter(|root| {
        let paths = ["usr/lib/systemd/systemd", "lib/systemd/systemd"];
        paths.iter().any(|path| root.join(path).is_file())
    });
    let found: Vec<Install> = found.map(|root| Install { root }).collect();
    let reason = if !is_root() {
        Some("it needs root".to_owned())
    } else if found.is_empty() {
        Some("it is not installed".to_owned())
    } else {
        obstacle()
    };
    let Some(reason) = reason else {
        return found;
    };
    let what = format!("the service under a real systemd: {reason}");
    assert!(
        std::env::var_os("TENTPOLE_REQUIRE_REAL").is_none_or(|value| value != "1"),
        "{what}, and TENTPOLE_REQUIRE_REAL=1"
    );
    if !SAID.swap(true, Ordering::Relaxed) {
        // Past the test harness, which would keep what a passing test prints to itself.
        let line = format!("left out: {what}\n");
        io::stderr().write_all(line.as_bytes()).expect("say so");
    }
    Vec::new()
}

/// Why no systemd can be run here, if so.
fn obstacle() -> Option<String> {
    let mut unshare = Command::new("unshare");
    unshare.args(NAMESPACES).args(["--fork", "true"]);
    match unshare.stderr(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        _ => return Some("no namespaces can be made here".into()),
    }
    match make_cgroup() {
        Ok(cgroup) => {
            remove_cgroup(&cgroup);
            None
        }
        Err(error) => Some(format!("no cgroup can be made here: {error}")),
    }
}

const NAMESPACES: [&str; 6] = [
    "--pid",
    "--mount",
    "--uts",
    "--ipc",
    "--cgroup",
    "--mount-proc",
];

/// A cgroup below this process's own, in version 2 of the hierarchy.
fn make_cgroup() -> io::Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let mount = mounts.find_map(|mut words| {
        let path = words.nth(1)?;
        (words.next() == Some("cgroup2")).then_some(path)
    });
    let mount = mount.ok_or_else(|| io::Error::other("version 2 is not mounted"))?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("tentpole-test-{}-{number}", std::process::id());
    let path = Path::new(mount).join(own.unwrap_or_default()).join(name);
    fs::create_dir(&path)?;
    Ok(path)
}

/// Removes a cgroup whose processes have ended, or are about to.
fn remove_cgroup(path: &Path) {
    fn remove(path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove(&entry.path())?;
            }
        }
        fs::remove_dir(path)
    }
    if poll(|| remove(path).ok()).is_none() {
        eprintln!("{} is left", path.display());
    }
}

/// A running systemd. Dropping it ends it and everything that it has started.
struct System {
    dir: TempDir,
    /// The same as everything in the namespaces sees it.
    inside: String,
    cgroup: PathBuf,
    unshare: Option<Child>,
    /// As this process sees it.
    pid: i32,
}

/// Everything whose identity counts; pids are those of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot {
    workers: Vec<(i64, u64)>,
    listeners: Vec<u64>,
}

impl System {
    /// Starts systemd with the shipped service, over which `changes` are laid.
    fn boot(install: &Install, changes: &str) -> System {
        let dir = folder();
        for name in ["tentpole", "probe", "manager.log"] {
            fs::write(dir.path().join(name), "").expect("write a file");
        }
        // Of its own for each: the names of unix sockets are not part of the namespaces.
        let name = dir.path().file_name().expect("a name");
        let inside = format!("/run/{}", name.display());
        let cgroup = make_cgroup().expect("make a cgroup");
        let log = fs::File::create(dir.path().join("systemd.log")).expect("create a log");
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
            .arg(&cgroup)
            .arg("unshare")
            .args(NAMESPACES)
            .args(["--fork", "--kill-child", "sh", "-c", BOOT, "sh"])
            .arg(&install.root)
            .arg(dir.path())
            .arg(&inside)
            .args([env!("CARGO_BIN_EXE_tentpole"), probe()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        // Whatever becomes of the test, its systemd ends.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let unshare = command.spawn().expect("start unshare");
        let mut system = System {
            dir,
            inside,
            cgroup,
            unshare: Some(unshare),
            pid: 0,
        };
        system.write_shipped(changes);
        system.wait_for_boot();
        let tmpfiles = format!("{}/tmpfiles.conf", system.inside);
        system.run(&["systemd-tmpfiles", "--create", &tmpfiles]);
        system
    }

    fn write_shipped(&self, changes: &str) {
        let service = SERVICE.replace("/usr/bin/tentpole", "DIR/tentpole");
        assert_ne!(service, SERVICE);
        fs::write(self.path("tmpfiles.conf"), TMPFILES).expect("write a file");
        self.write_unit("tentpole.service", &service);
        // There is no journal.
        self.write_unit(
            "tentpole.service.d/log.conf",
            "[Service]\nStandardOutput=append:DIR/manager.log\nStandardError=inherit\n",
        );
        self.write_unit("tentpole.service.d/test.conf", changes);
        for target in ["test", "sysinit", "basic", "network", "sockets", "shutdown"] {
            self.write_unit(
                &format!("{target}.target"),
                "[Unit]\nDefaultDependencies=no\n",
            );
        }
    }

    fn wait_for_boot(&mut self) {
        let unshare = self.unshare.as_ref().expect("is running").id();
        let pid = poll(|| {
            let path = format!("/proc/{unshare}/task/{unshare}/children");
            let pid = fs::read_to_string(path).ok()?.trim().parse().ok()?;
            Path::new(&format!("/proc/{pid}/root/run/systemd/private"))
                .exists()
                .then_some(pid)
        });
        let log = fs::read_to_string(self.path("systemd.log"));
        self.pid = pid.unwrap_or_else(|| panic!("systemd does not come up: {log:?}"));
    }

    /// A file of the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the manager and systemd have said.
    fn log(&self) -> String {
        ["manager.log", "systemd.log"]
            .map(|name| fs::read_to_string(self.path(name)).unwrap_or_default())
            .concat()
    }

    /// How many lines a file of the folder has.
    fn lines(&self, name: &str) -> usize {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().count()
    }

    /// Writes a unit of systemd's.
    fn write_unit(&self, name: &str, text: &str) {
        let path = self.path("systemd").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text.replace("DIR", &self.inside)).expect("write a unit");
    }

    /// Writes tentpole's units, into a folder of its search path.
    fn write_units(&self, text: &str) {
        let text = text
            .replace("PROBE", "DIR/probe")
            .replace("DIR", &self.inside);
        let path = self.root().join("run/tentpole/units/units.toml");
        fs::write(&path, text).expect("write the units");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set a mode");
    }

    /// The namespace's root, as this process sees it.
    fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.pid).into()
    }

    /// Runs a program in the namespaces.
    fn run(&self, words: &[&str]) -> Output {
        let pid = self.pid.to_string();
        let mut command = Command::new("nsenter");
        command.args([
            "--target", &pid, "--pid", "--mount", "--uts", "--ipc", "--cgroup",
        ]);
        bounded(command.args(["--root", "--wd"]).args(words))
    }

    fn systemctl(&self, words: &[&str]) -> Output {
        self.run(&[&["systemctl"], words].concat())
    }

    /// The same, which must succeed.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.systemctl(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {stderr}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).expect("is UTF-8")
    }

    /// A property of the service.
    fn property(&self, name: &str) -> String {
        let text = self.ok(&["show", "--property", name, "--value", "tentpole"]);
        text.trim_end().to_owned()
    }

    fn wait_for_property(&self, name: &str, value: &str) {
        let mut last = String::new();
        let same = poll(|| {
            last = self.property(name);
            (last == value).then_some(())
        });
        assert!(
            same.is_some(),
            "{name} is {last}, and not {value}\n{}",
            self.log()
        );
    }

    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let done = poll(|| condition().then_some(()));
        assert!(
            done.is_some(),
            "not within the time: {what}\n{}",
            self.log()
        );
    }

    /// Runs a command of tentpole's, which must succeed.
    fn tentpole(&self, words: &[&str]) -> String {
        let output = self.try_tentpole(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {stderr}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).expect("is UTF-8")
    }

    fn try_tentpole(&self, words: &[&str]) -> Output {
        let control = self.root().join("run/tentpole/control.sock");
        bounded(
            command(self.dir.path())
                .env("TENTPOLE_CONTROL", control)
                .args(words),
        )
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.tentpole(&["status", "--json"])).expect("is JSON")
    }

    /// The status of a manager whose control socket is in the folder.
    fn status_of(&self, control: &str) -> Value {
        let control = self.path(control).display().to_string();
        let text = self.tentpole(&["--control", &control, "status", "--json"]);
        serde_json::from_str(&text).expect("is JSON")
    }

    /// The address of the socket `web`.
    fn address(&self) -> String {
        let web = find(&self.status()["sockets"], "web");
        web["address"].as_str().expect("an address").to_owned()
    }

    /// The pids of all workers, as the manager sees them.
    fn pids(&self) -> Vec<i64> {
        workers(&self.status())
    }

    fn snapshot(&self) -> Snapshot {
        let status = self.status();
        let addresses = status["sockets"].as_array().expect("sockets").iter();
        let addresses = addresses.map(|socket| socket["address"].as_str().expect("an address"));
        let workers = workers(&status).into_iter();
        Snapshot {
            workers: workers
                .map(|pid| (pid, start_time(self.outside(pid))))
                .collect(),
            listeners: addresses.flat_map(listeners).collect(),
        }
    }

    /// The processes of the service, as this process sees them.
    fn processes(&self) -> Vec<i32> {
        self.processes_of("tentpole.service")
    }

    fn processes_of(&self, service: &str) -> Vec<i32> {
        let path = self
            .cgroup
            .join("system.slice")
            .join(service)
            .join("cgroup.procs");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// A process of the service as this process sees it.
    fn outside(&self, pid: i64) -> i32 {
        self.outside_of("tentpole.service", pid)
    }

    fn outside_of(&self, service: &str, pid: i64) -> i32 {
        let found = self.processes_of(service).into_iter().find(|outside| {
            let all = process_status(*outside, "NSpid");
            all.split_whitespace().last() == Some(&pid.to_string())
        });
        found.unwrap_or_else(|| panic!("pid {pid} is not of {service}\n{}", self.log()))
    }

    /// The service's main process, as this process sees it.
    fn main(&self) -> i32 {
        self.outside(self.property("MainPID").parse().expect("a pid"))
    }

    /// Kills the main process, and waits until systemd has replaced it for the so-manieth time.
    fn crash(&self, times: u32) {
        let main = self.main();
        kill(main, libc::SIGKILL);
        wait_until_dead(main);
        self.wait_for_property("NRestarts", &times.to_string());
        self.wait_for_property("ActiveState", "active");
    }

    fn wait_until_empty(&self) {
        self.wait_until("the service's cgroup is empty", || {
            self.processes().is_empty()
        });
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(mut unshare) = self.unshare.take() {
            // The rest of the namespace ends with its first process, and its mounts with it.
            if self.pid != 0 {
                kill(self.pid, libc::SIGKILL);
            } else {
                let _ = unshare.kill();
            }
            let _ = unshare.wait();
        }
        remove_cgroup(&self.cgroup);
    }
}

/// The file in which a manager records its state.
fn state_of(manager: i32) -> fs::File {
    let fds = fs::read_dir(format!("/proc/{manager}/fd")).expect("a list of descriptors");
    let mut fds = fds.map(|entry| entry.expect("an entry").path());
    let state = fds.find(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("tentpole-state"))
    });
    let path = state.expect("a state");
    fs::File::options()
        .write(true)
        .open(path)
        .expect("open the state")
}

fn workers(status: &Value) -> Vec<i64> {
    let watchers = status["watchers"].as_array().expect("watchers").iter();
    let workers = watchers.flat_map(|watcher| watcher["workers"].as_array().expect("workers"));
    workers
        .map(|worker| worker["pid"].as_i64().expect("a pid"))
        .collect()
}
