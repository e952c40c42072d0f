//! Workers: what a program gets when it is started, seen in /proc.

mod support;

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;
use support::{
    Manager, assert_fds, bounded, environment, fd_target, is_root, kill, leave_out, poll, probe,
    process_status, spawn_by_script, words,
};

/// The pid of a watcher's first worker.
fn pid(manager: &Manager, watcher: &str) -> i32 {
    manager.pids(watcher)[0]
}

/// Waits until a file has this text.
fn wait_for_text(manager: &Manager, file: &str, text: &str) {
    let mut last = String::new();
    let same = poll(|| {
        last = std::fs::read_to_string(manager.path(file)).unwrap_or_default();
        (last == text).then_some(())
    });
    assert!(same.is_some(), "{file} has {last:?}, not {text:?}");
}

/// A field of /proc/PID/stat by its number in proc_pid_stat(5).
fn stat(pid: i32, field: usize) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = text.rsplit_once(") ").expect("has a name");
    let value = rest.split_whitespace().nth(field - 3).expect("a field");
    value.parse().expect("a number")
}

#[test]
fn a_worker_has_the_descriptors_that_it_is_given_and_nothing_else() {
    let manager = spawn_by_script(
        r#"
        [socket.one]
        listen = "127.0.0.1:0"
        [socket.two]
        listen = "DIR/two"
        [watcher.none]
        cmd = "PROBE sleep"
        [watcher.both]
        cmd = "PROBE sleep"
        sockets = ["two", "one"]
        [watcher.inetd]
        cmd = "PROBE sleep"
        stdin_socket = "one"
        [watcher.inetd-more]
        cmd = "PROBE sleep"
        stdin_socket = "one"
        sockets = ["two"]
        [watcher.file]
        cmd = "PROBE sleep"
        stdin = "./units.toml"
        [watcher.quiet]
        cmd = "PROBE sleep"
        stdout = "null"
        stderr = "null"
        "#,
        // What the manager's parent left open is not for the workers.
        r#"exec 3</dev/null 4</etc/passwd 7>&1 9</dev/null; exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let log = manager.path("log").display().to_string();

    let none = pid(&manager, "none");
    assert_fds(none, &[0, 1, 2]);
    assert_eq!(
        [0, 1, 2].map(|fd| fd_target(none, fd)),
        ["/dev/null", &log, &log]
    );
    let both = pid(&manager, "both");
    assert_fds(both, &[0, 1, 2, 3, 4]);
    let (two, one) = (fd_target(both, 3), fd_target(both, 4));
    assert_eq!(environment(both)["LISTEN_FDNAMES"], "two:one");

    let inetd = pid(&manager, "inetd");
    assert_fds(inetd, &[0, 1, 2]);
    assert_eq!(fd_target(inetd, 0), one);
    assert!(!environment(inetd).contains_key("LISTEN_FDS"));
    let more = pid(&manager, "inetd-more");
    assert_fds(more, &[0, 1, 2, 3]);
    assert_eq!([fd_target(more, 0), fd_target(more, 3)], [one, two]);
    assert_eq!(environment(more)["LISTEN_FDNAMES"], "two");

    let file = pid(&manager, "file");
    assert_fds(file, &[0, 1, 2]);
    assert_eq!(
        fd_target(file, 0),
        manager.path("units.toml").display().to_string()
    );
    let quiet = pid(&manager, "quiet");
    assert_eq!([0, 1, 2].map(|fd| fd_target(quiet, fd)), ["/dev/null"; 3]);
}

#[test]
fn output_goes_to_files_that_are_appended_to_or_to_the_managers_own() {
    let manager = Manager::spawn_with(
        r#"
        [watcher.file]
        cmd = ["sh", "-c", "echo out; echo err >&2; exec PROBE sleep"]
        stdout = { file = "DIR/out.$(circus.wid)" }
        stderr = { file = "err" }
        [watcher.same]
        cmd = ["sh", "-c", "echo a; echo b >&2; echo c; exec PROBE sleep"]
        stdout = { file = "same" }
        stderr = { file = "same" }
        [watcher.own]
        cmd = ["sh", "-c", "echo on stdout; echo on stderr >&2; exec PROBE sleep"]
        "#,
        |command| {
            let notify = command
                .get_envs()
                .find(|(name, _)| *name == "NOTIFY_SOCKET");
            let dir = notify.and_then(|(_, path)| path).expect("a path");
            let dir = std::path::Path::new(dir).parent().expect("a folder");
            std::fs::write(dir.join("out.1"), "before\n").expect("write");
        },
    );
    manager.wait_for_notice("READY=1");
    wait_for_text(&manager, "out.1", "before\nout\n");
    wait_for_text(&manager, "err", "err\n");
    wait_for_text(&manager, "same", "a\nb\nc\n");
    let both = poll(|| {
        let log = manager.log();
        (log.contains("on stdout\n") && log.contains("on stderr\n")).then_some(())
    });
    assert!(both.is_some(), "{}", manager.log());
    let mode = std::fs::metadata(manager.path("err"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o007, 0, "a log is not for everybody: {mode:o}");

    kill(pid(&manager, "file"), libc::SIGKILL);
    wait_for_text(&manager, "out.1", "before\nout\nout\n");
}

#[test]
fn the_protocol_variables_are_the_workers_own_and_never_the_managers() {
    let manager = spawn_by_script(
        r#"
        [socket.one]
        listen = "127.0.0.1:0"
        [socket.two]
        listen = "127.0.0.1:0"
        fd_name = "second"
        [watcher.plain]
        cmd = "PROBE sleep"
        [watcher.sockets]
        cmd = "PROBE sleep"
        sockets = ["one", "two"]
        numprocesses = 2
        [watcher.untold]
        cmd = "PROBE sleep $(circus.socket.one)"
        listen_fds = false
        [watcher.notify]
        cmd = "PROBE notify READY=1"
        type = "notify"
        [watcher.watchdog]
        cmd = "PROBE notify WATCHDOG=1"
        watchdog = "1m30s"
        "#,
        r#"export LISTEN_PID=1 LISTEN_FDS=2 LISTEN_FDNAMES=a:b LISTEN_PIDFDID=77
           export WATCHDOG_USEC=600000000 WATCHDOG_PID=$$ KEPT=yes INVOCATION_ID=1f
           export SYSTEMD_EXEC_PID=$$ MAINPID=$$ MANAGERPID=$PPID
           exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let of = |watcher: &str, wid: usize| environment(manager.pids(watcher)[wid - 1]);
    let protocol = |watcher: &str, wid: usize| -> Vec<(String, String)> {
        let known = ["LISTEN_", "NOTIFY_", "WATCHDOG_", "TENTPOLE_W"];
        let mut variables = of(watcher, wid);
        variables.retain(|name, _| known.iter().any(|start| name.starts_with(start)));
        variables.into_iter().collect()
    };
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let own = |watcher| owned(&[("TENTPOLE_WATCHER", watcher), ("TENTPOLE_WID", "1")]);
    assert_eq!(protocol("plain", 1), own("plain"));
    assert_eq!(protocol("untold", 1), own("untold"));
    assert_fds(pid(&manager, "untold"), &[0, 1, 2, 3]);
    let plain = of("plain", 1);
    assert_eq!((&*plain["KEPT"], &*plain["INVOCATION_ID"]), ("yes", "1f"));
    for name in ["SYSTEMD_EXEC_PID", "MAINPID", "MANAGERPID"] {
        assert!(!plain.contains_key(name), "{name}");
    }

    for wid in [1, 2] {
        let pid = manager.pids("sockets")[wid - 1];
        let mut wanted = owned(&[
            ("LISTEN_FDNAMES", "one:second"),
            ("LISTEN_FDS", "2"),
            ("LISTEN_PID", &pid.to_string()),
            ("TENTPOLE_WATCHER", "sockets"),
            ("TENTPOLE_WID", &wid.to_string()),
        ]);
        if let Some(inode) = pidfd_inode(pid) {
            wanted.insert(3, ("LISTEN_PIDFDID".to_owned(), inode.to_string()));
        }
        assert_eq!(protocol("sockets", wid), wanted);
    }

    let notify = of("notify", 1);
    let socket = &notify["NOTIFY_SOCKET"];
    assert!(
        !socket.starts_with(manager.path("").to_str().unwrap()),
        "{socket} is the manager's own"
    );
    assert!(!notify.contains_key("WATCHDOG_USEC"));
    let watchdog = of("watchdog", 1);
    assert_eq!(watchdog["WATCHDOG_USEC"], "90000000");
    assert_eq!(
        watchdog["WATCHDOG_PID"],
        pid(&manager, "watchdog").to_string()
    );
    assert_eq!(&watchdog["NOTIFY_SOCKET"], socket);
}

/// The inode of a process's pidfd, where the kernel gives every process one of its own.
fn pidfd_inode(pid: i32) -> Option<u64> {
    use std::os::fd::{FromRawFd, OwnedFd};
    const PID_FS_MAGIC: i64 = 0x5049_4446;
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(
        number >= 0,
        "pidfd_open: {}",
        std::io::Error::last_os_error()
    );
    let pidfd = unsafe { OwnedFd::from_raw_fd(number as i32) };
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    assert_eq!(unsafe { libc::fstatfs(pidfd.as_raw_fd(), &mut about) }, 0);
    let inode = std::fs::File::from(pidfd).metadata().expect("stat").ino();
    (about.f_type as i64 == PID_FS_MAGIC).then_some(inode)
}

#[test]
fn a_worker_leads_its_own_session_with_default_signals() {
    let manager = Manager::spawn_with(
        r#"
        [watcher.plain]
        cmd = "sleep 1000"
        numprocesses = 2
        "#,
        |command| {
            // As nohup(1) and careless parents leave them.
            unsafe {
                command.pre_exec(|| {
                    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGUSR1] {
                        libc::signal(signal, libc::SIG_IGN);
                    }
                    let mut set: libc::sigset_t = std::mem::zeroed();
                    libc::sigemptyset(&mut set);
                    libc::sigaddset(&mut set, libc::SIGUSR2);
                    libc::sigaddset(&mut set, libc::SIGALRM);
                    libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                    Ok(())
                });
            }
        },
    );
    manager.wait_for_notice("READY=1");
    for pid in manager.pids("plain") {
        for field in ["SigIgn", "SigBlk", "SigCgt"] {
            assert_eq!(process_status(pid, field), "0000000000000000", "{field}");
        }
        let (parent, group, session, terminal) =
            (stat(pid, 4), stat(pid, 5), stat(pid, 6), stat(pid, 7));
        assert_eq!(
            (parent, group, session),
            (manager.manager_pid().into(), pid.into(), pid.into())
        );
        assert_eq!(terminal, 0);
    }
}

#[test]
fn a_worker_runs_as_the_user_and_groups_that_were_asked_for() {
    if !is_root() {
        return leave_out("only root becomes somebody else");
    }
    let manager = Manager::start(
        r#"
        [watcher.user]
        cmd = "sleep 1000"
        user = "daemon"
        [watcher.group]
        cmd = "sleep 1000"
        group = "daemon"
        [watcher.both]
        cmd = "sleep 1000"
        user = "nobody"
        group = "daemon"
        supplementary_groups = ["mail", 4242]
        [watcher.numbers]
        cmd = "sleep 1000"
        uid = 12345
        gid = 54321
        [watcher.alone]
        cmd = "sleep 1000"
        user = "daemon"
        supplementary_groups = []
        [watcher.root]
        cmd = "sleep 1000"
        "#,
    );
    let id = |args: &[&str]| {
        let output = bounded(Command::new("id").args(args));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let ids = |watcher: &str| {
        let pid = pid(&manager, watcher);
        ["Uid", "Gid", "Groups"].map(|field| {
            let mut ids: Vec<String> = process_status(pid, field)
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            if field != "Groups" {
                assert!(
                    ids.iter().all(|id| *id == ids[0]),
                    "real, effective and saved: {ids:?}"
                );
                ids.truncate(1);
            }
            ids.join(" ")
        })
    };
    let (user, group) = (id(&["-u", "daemon"]), id(&["-g", "daemon"]));
    let mut groups: Vec<String> = id(&["-G", "daemon"])
        .split(' ')
        .map(str::to_owned)
        .collect();
    groups.sort_by_key(|group| group.parse::<u32>().unwrap());
    assert_eq!(ids("user"), [user.clone(), group.clone(), groups.join(" ")]);
    assert_eq!(ids("group")[..2], ["0".to_owned(), group.clone()]);
    let both = ids("both");
    assert_eq!(both[..2], [id(&["-u", "nobody"]), group]);
    let mail = bounded(Command::new("getent").args(["group", "mail"])).stdout;
    let mail = String::from_utf8(mail)
        .unwrap()
        .split(':')
        .nth(2)
        .unwrap()
        .to_owned();
    let extra: Vec<&str> = both[2].split(' ').collect();
    assert!(
        extra.contains(&mail.as_str()) && extra.contains(&"4242"),
        "{extra:?}"
    );
    assert_eq!(ids("numbers")[..2], ["12345", "54321"]);
    assert!(
        !ids("numbers")[2].split(' ').any(|group| group == "0"),
        "{:?}",
        ids("numbers")
    );
    assert_eq!(ids("alone")[0], user);
    assert!(
        !ids("alone")[2].split(' ').any(|group| group == "0"),
        "{:?}",
        ids("alone")
    );
    assert_eq!(ids("root")[..2], ["0", "0"]);

    let variables = environment(pid(&manager, "both"));
    assert_eq!(variables["USER"], "nobody");
    assert_eq!(variables["LOGNAME"], "nobody");
    assert_eq!(variables["HOME"], home_of("nobody"));
}

#[test]
fn limits_priorities_and_places_are_as_asked() {
    let manager = spawn_by_script(
        r#"
        [watcher.set]
        cmd = "sleep 1000"
        umask = "0137"
        working_dir = "/etc"
        nice = 7
        oom_score_adj = 321
        cpu_affinity = [0]
        rlimits = { nofile = 64, core = 0, nproc = { soft = 50, hard = 60 } }
        [watcher.plain]
        cmd = "sleep 1000"
        "#,
        r#"ulimit -S -n 200; ulimit -H -n 300; umask 026; cd /usr; exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let limit = |pid: i32, name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect()
    };
    let place = |pid: i32| std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    let oom = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();

    let set = pid(&manager, "set");
    assert_eq!(process_status(set, "Umask"), "0137");
    assert_eq!(place(set).to_str(), Some("/etc"));
    assert_eq!(stat(set, 19), 7);
    assert_eq!(oom(set).trim(), "321");
    assert_eq!(process_status(set, "Cpus_allowed_list"), "0");
    assert_eq!(limit(set, "Max open files"), ["64", "64"]);
    assert_eq!(limit(set, "Max core file size"), ["0", "0"]);
    assert_eq!(limit(set, "Max processes"), ["50", "60"]);

    let plain = pid(&manager, "plain");
    let own = manager.pid();
    assert_eq!(process_status(plain, "Umask"), "0026");
    assert_eq!(place(plain).to_str(), Some("/usr"));
    assert_eq!(stat(plain, 19), stat(own, 19));
    assert_eq!(oom(plain), oom(own));
    assert_eq!(
        process_status(plain, "Cpus_allowed_list"),
        process_status(own, "Cpus_allowed_list")
    );
    assert_eq!(
        limit(own, "Max open files"),
        ["300", "300"],
        "the manager takes all it may have"
    );
    assert_eq!(
        limit(plain, "Max open files"),
        ["200", "300"],
        "its workers have what they had"
    );
}

#[test]
fn what_root_alone_may_give_is_given() {
    if !is_root() {
        return leave_out("only root raises priorities");
    }
    let manager = Manager::start(
        r#"
        [watcher.high]
        cmd = "sleep 1000"
        user = "nobody"
        nice = -5
        "#,
    );
    assert_eq!(stat(pid(&manager, "high"), 19), -5);

    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let own = process_status(std::process::id() as i32, "CapEff");
    if u64::from_str_radix(&own, 16).unwrap() & CAP_SYS_RESOURCE == 0 {
        return leave_out("the rest of it needs CAP_SYS_RESOURCE, which this root has not");
    }
    let manager = spawn_by_script(
        r#"
        [watcher.high]
        cmd = "sleep 1000"
        user = "nobody"
        oom_score_adj = -500
        rlimits = { nofile = 1000 }
        "#,
        r#"ulimit -S -n 100; ulimit -H -n 300; exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let high = pid(&manager, "high");
    let oom = std::fs::read_to_string(format!("/proc/{high}/oom_score_adj")).unwrap();
    assert_eq!(oom.trim(), "-500");
    let limits = std::fs::read_to_string(format!("/proc/{high}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    assert!(line.is_some_and(|line| line.contains(" 1000 ")), "{line:?}");
}

#[test]
fn the_later_place_of_the_environment_wins() {
    let manager = spawn_by_script(
        r#"
        [manager]
        env = { B = "manager", C = "manager", D = "manager" }
        [watcher.all]
        cmd = "PROBE sleep"
        env_file = "variables"
        [watcher.all.env]
        C = "unit"
        D = "unit"
        BOTH = "$(circus.env.A)+$(circus.env.D)"
        [watcher.bare]
        cmd = "PROBE sleep"
        copy_env = false
        env_file = "-missing"
        env = { X = "x" }
        [watcher.venv]
        cmd = "PROBE sleep"
        virtualenv = "DIR/venv"
        [watcher.venv-relative]
        cmd = "PROBE sleep"
        virtualenv = "venv"
        env = { PATH = "/one:/two" }
        "#,
        r#"dir=$(dirname "$NOTIFY_SOCKET"); mkdir -p "$dir/venv/bin"
           printf '# comment\nexport D="from file"\nE=a\\ b\n' > "$dir/variables"
           export A=own B=own C=own D=own PYTHONHOME=/nowhere
           exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let all = environment(pid(&manager, "all"));
    let seen = ["A", "B", "C", "D", "E", "BOTH"].map(|name| all[name].as_str());
    assert_eq!(
        seen,
        [
            "own",
            "manager",
            "unit",
            "from file",
            "a b",
            "own+from file"
        ]
    );

    let bare = environment(pid(&manager, "bare"));
    let names: Vec<&str> = bare.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "B",
            "C",
            "D",
            "PATH",
            "TENTPOLE_GENERATION",
            "TENTPOLE_WATCHER",
            "TENTPOLE_WID",
            "X"
        ]
    );

    let venv = environment(pid(&manager, "venv"));
    let folder = manager.path("venv").display().to_string();
    assert_eq!(venv["VIRTUAL_ENV"], folder);
    assert_eq!(
        venv["PATH"],
        format!("{folder}/bin:{}", std::env::var("PATH").unwrap())
    );
    assert!(!venv.contains_key("PYTHONHOME"));
    let relative = environment(pid(&manager, "venv-relative"));
    assert_eq!(relative["VIRTUAL_ENV"], folder);
    assert_eq!(relative["PATH"], format!("{folder}/bin:/one:/two"));
}

#[test]
fn an_env_file_is_read_anew_for_each_worker() {
    let manager = spawn_by_script(
        r#"
        [watcher.web]
        cmd = "PROBE sleep"
        env_file = "variables"
        restart_delay = "20ms"
        restart_max_delay = "50ms"
        "#,
        r#"echo V=1 > "$(dirname "$NOTIFY_SOCKET")/variables"; exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let first = pid(&manager, "web");
    assert_eq!(environment(first)["V"], "1");
    std::fs::write(manager.path("variables"), "V=2\n").unwrap();
    assert_eq!(environment(first)["V"], "1");
    kill(first, libc::SIGKILL);
    let next = |before: i32| {
        manager.wait_for("web", "has a new worker", |web| {
            web["state"] == "running" && web["workers"][0]["pid"] != before
        });
        pid(&manager, "web")
    };
    let second = next(first);
    assert_eq!(environment(second)["V"], "2");

    std::fs::write(manager.path("variables"), "\nV=3\nnonsense\n").unwrap();
    kill(second, libc::SIGKILL);
    manager.wait_for("web", "names the bad line", |web| {
        let error = web["error"].as_str().unwrap_or_default();
        web["state"] == "backoff" && error.contains("line 3: `nonsense` is not KEY=VALUE")
    });
    std::fs::remove_file(manager.path("variables")).unwrap();
    manager.wait_for("web", "misses its file", |web| {
        web["error"]
            .as_str()
            .is_some_and(|error| error.contains("No such file"))
    });
    std::fs::write(manager.path("variables"), "V=4\n").unwrap();
    assert_eq!(environment(next(second))["V"], "4");
}

#[test]
fn a_file_that_can_not_be_opened_is_named_as_it_is_and_with_words_alone() {
    let keys = [
        ("env_file", "env_file = \"./missing\""),
        ("open stdin", "stdin = \"./missing\""),
        ("open stdout", "stdout.file = \"./no/missing\""),
        ("open stderr", "stderr.file = \"./no/missing\""),
    ];
    let units = keys.iter().enumerate().map(|(n, (_, key))| {
        format!("[watcher.w{n}]\ncmd = \"true\"\nmax_retry = 1\nrestart_delay = 0.01\n{key}\n")
    });
    let manager = Manager::spawn(&units.collect::<String>());
    for (n, (step, _)) in keys.iter().enumerate() {
        let watcher = manager.wait_for_state(&format!("w{n}"), "failed");
        let error = watcher["error"].as_str().unwrap_or_default();
        let folder = manager.path("");
        let start = format!("{step} {}", folder.display());
        assert!(error.contains(start.trim_end_matches('/')), "{error}");
        assert!(
            error.contains("missing: No such file or directory"),
            "{error}"
        );
        assert!(
            !error.contains("/./") && !error.contains("os error"),
            "{error}"
        );
    }
}

#[test]
fn substitutions_reach_the_words_and_the_environment() {
    let manager = spawn_by_script(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [socket.Other]
        listen = "127.0.0.1:0"
        [watcher.Web]
        cmd = "PROBE sleep $(circus.wid) ((circus.name)) $(CIRCUS.Sockets.WEB) $(circus.env.blanks) 'two words'$(circus.env.BLANKS) $(circus.numprocesses) $(circus.stop_signal)"
        args = "a 'b c' ((circus.socket.other))"
        sockets = ["Other", "web"]
        numprocesses = 2
        [watcher.Web.env]
        NGINX = "$(circus.socket.web);"
        FPM_SOCKETS = "/run/x.sock=$(circus.sockets.other)"
        SLOT = "<((circus.name)):$(circus.wid)>"
        [watcher.list]
        cmd = ["PROBE", "sleep", "a b", "", "$(circus.wid)x$(circus.wid)", "$HOME", "*"]
        args = ["c  d", "$(circus.env.BLANKS)"]
        "#,
        r#"export BLANKS="in the  middle"; exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    for (pid, wid) in manager.pids("Web").into_iter().zip(["1", "2"]) {
        let wanted = [
            probe(),
            "sleep",
            wid,
            "Web",
            "4",
            "in the  middle",
            "two wordsin the  middle",
            "2",
            "TERM",
            "a",
            "b c",
            "3",
        ];
        assert_eq!(words(pid), wanted);
        let variables = environment(pid);
        assert_eq!(variables["NGINX"], "4;");
        assert_eq!(variables["FPM_SOCKETS"], "/run/x.sock=3");
        assert_eq!(variables["SLOT"], format!("<Web:{wid}>"));
    }
    let wanted = [
        probe(),
        "sleep",
        "a b",
        "",
        "1x1",
        "$HOME",
        "*",
        "c  d",
        "in the  middle",
    ];
    assert_eq!(words(pid(&manager, "list")), wanted);
}

#[test]
fn sockets_stand_in_the_order_of_the_list_of_their_names_or_of_their_mention() {
    let manager = Manager::start(
        r#"
        [socket.a]
        listen = "127.0.0.1:0"
        [socket.b]
        listen = "127.0.0.1:0"
        [socket.c]
        listen = "127.0.0.1:0"
        [watcher.list]
        cmd = "PROBE sleep $(circus.socket.a)"
        sockets = ["c", "a", "b"]
        [watcher.all]
        cmd = "PROBE sleep $(circus.socket.b)"
        use_sockets = true
        [watcher.mentioned]
        cmd = "PROBE sleep $(circus.socket.c)"
        args = ["$(circus.socket.a)", "$(circus.socket.c)"]
        env = { B = "$(circus.socket.b)" }
        [watcher.none]
        cmd = "PROBE sleep"
        sockets = []
        "#,
    );
    let names = |watcher| {
        environment(pid(&manager, watcher))
            .get("LISTEN_FDNAMES")
            .cloned()
    };
    let last = |watcher| words(pid(&manager, watcher)).split_off(2);
    assert_eq!(names("list").as_deref(), Some("c:a:b"));
    assert_eq!(last("list"), ["4"]);
    assert_eq!(names("all").as_deref(), Some("a:b:c"));
    assert_eq!(last("all"), ["4"]);
    assert_eq!(names("mentioned").as_deref(), Some("c:a:b"));
    assert_eq!(last("mentioned"), ["3", "4", "3"]);
    assert_eq!(names("none"), None);
    assert_eq!(
        manager.watcher("list")["sockets"],
        serde_json::json!(["c", "a", "b"])
    );
    // The same queue, whatever its number.
    let (list, all) = (pid(&manager, "list"), pid(&manager, "all"));
    assert_eq!(fd_target(list, 3), fd_target(all, 5));
    assert_eq!(fd_target(list, 4), fd_target(all, 3));
}

#[test]
fn a_program_is_found_by_path_folder_name_and_through_a_shell() {
    let manager = Manager::spawn_with(
        r#"
        [watcher.bare]
        cmd = "mine sleep"
        env = { PATH = "/nonexistent:DIR/bin:/usr/bin:/bin" }
        [watcher.relative]
        cmd = "./mine sleep"
        working_dir = "bin"
        [watcher.deeper]
        cmd = "bin/mine sleep"
        working_dir = "DIR"
        [watcher.renamed]
        cmd = "'another name' sleep"
        executable = "PROBE"
        [watcher.shell]
        cmd = "X=$(echo 1 2); test \"$1\" = 'an argument' && exec PROBE sleep \"$X\" $TENTPOLE_WID $(circus.wid) \"$0\""
        shell = true
        shell_args = "zero 'an argument'"
        "#,
        |command| {
            let notify = command
                .get_envs()
                .find(|(name, _)| *name == "NOTIFY_SOCKET");
            let dir = notify.and_then(|(_, path)| path).expect("a path");
            let bin = std::path::Path::new(dir).with_file_name("bin");
            std::fs::create_dir(&bin).expect("make a folder");
            symlink(probe(), bin.join("mine")).expect("link");
        },
    );
    manager.wait_for_notice("READY=1");
    let place =
        |watcher| std::fs::read_link(format!("/proc/{}/cwd", pid(&manager, watcher))).unwrap();
    for (watcher, wanted) in [
        ("bare", ["mine", "sleep"]),
        ("relative", ["./mine", "sleep"]),
        ("deeper", ["bin/mine", "sleep"]),
        ("renamed", ["another name", "sleep"]),
    ] {
        assert_eq!(words(pid(&manager, watcher)), wanted);
        let program = std::fs::read_link(format!("/proc/{}/exe", pid(&manager, watcher))).unwrap();
        assert_eq!(program.to_str(), Some(probe()));
    }
    assert_eq!(place("relative"), manager.path("bin"));
    assert_eq!(place("bare"), std::env::current_dir().unwrap());
    let wanted = [probe(), "sleep", "1 2", "1", "1", "zero"];
    let executed = poll(|| (words(pid(&manager, "shell")) == wanted).then_some(()));
    assert!(executed.is_some(), "{:?}", words(pid(&manager, "shell")));
}

fn home_of(user: &str) -> String {
    let entry = bounded(Command::new("getent").args(["passwd", user])).stdout;
    let entry = String::from_utf8(entry).expect("is UTF-8");
    entry.split(':').nth(5).expect("a folder").to_owned()
}
