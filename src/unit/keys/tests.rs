//! Every key, with values that are right and values that are not.

use super::super::{Limit, Mode, Resource, read_text};
use super::*;
use crate::unit::{
    Address, Family, Inherit, LogFormat, LogLevel, NotifyAccess, Output, Principal, Reload,
    Restart, Signal, Socket, SocketKind, Stdin, TriggerLimit, Watcher, WatcherKind, Words,
};
use std::time::Duration;

/// All findings of `text`, as `LINE:COLUMN: message`, with what stands before and after the keys left to the test.
fn findings(text: &str) -> Vec<String> {
    let loaded = read_text(Path::new("/u/t"), text);
    loaded
        .findings
        .iter()
        .map(|finding| {
            let rendered = loaded.sources.render(finding).to_string();
            let line = rendered.lines().next().unwrap_or_default();
            line.strip_prefix("/u/t:").unwrap_or(line).to_string()
        })
        .collect()
}

fn good(text: &str) -> super::super::Units {
    let loaded = read_text(Path::new("/u/t"), text);
    assert_eq!(findings(text), Vec::<String>::new(), "{text}");
    loaded.units
}

fn good_socket(keys: &str) -> Socket {
    let mut units = good(&format!("[socket.s]\n{keys}"));
    *units.sockets.remove(0)
}

fn good_watcher(keys: &str) -> Watcher {
    let mut units = good(&format!("[watcher.w]\ncmd = \"x\"\n{keys}"));
    *units.watchers.remove(0)
}

/// Each line of keys has exactly this finding, on the second line of the file.
fn assert_refused(header: &str, further: &str, cases: &[(&str, &str)]) {
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (keys, wanted) in cases {
        let findings = findings(&format!("{header}\n{keys}\n{further}"));
        found.push(format!("{keys}: {}", findings.join("\n")));
        expected.push(format!("{keys}: 2:{wanted}"));
    }
    let wrong: Vec<_> = found
        .iter()
        .zip(&expected)
        .filter(|(a, b)| a != b)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_socket_has_the_defaults_of_the_design() {
    let socket = good_socket("listen = \"127.0.0.1:8000\"");
    let name = At::nowhere("s".to_string());
    let address = At::nowhere(Address::Ip(([127, 0, 0, 1], 8000).into()));
    assert_eq!(socket, Socket::new(name, address));
    assert_eq!(socket.backlog, 4096);
    assert_eq!(socket.trigger_limit.burst, 20);
}

#[test]
fn a_watcher_has_the_defaults_of_the_design() {
    let watcher = good_watcher("");
    let name = At::nowhere("w".to_string());
    let cmd = At::nowhere(Words::Text("x".to_string()));
    assert_eq!(watcher, Watcher::new(name, "/u".into(), cmd));
    assert_eq!(watcher.restart, Restart::Always);
    assert_eq!(watcher.graceful_timeout, Some(Duration::from_secs(30)));
}

#[test]
fn every_key_of_a_socket_gets_to_its_place() {
    let socket = good_socket(
        "path = \"x.sock\"\ntype = \"SOCK_SEQPACKET\"\nfamily = \"af_unix\"\nbacklog = 7\nblocking = false\n\
         umask = \"077\"\nuser = \"www\"\ngroup = 33\nmode = 0o660\ndirectory_mode = \"0700\"\nreplace = false\n\
         optional = true\nremove_on_stop = false\nfd_name = \"web fd\"\ninherit = \"require\"\n\
         trigger_limit = { burst = 3, interval = \"5s\" }",
    );
    assert_eq!(socket.address.value, Address::Path("/u/x.sock".into()));
    assert_eq!(socket.kind, SocketKind::Seqpacket);
    assert_eq!(socket.family, Some(Family::Unix));
    assert_eq!(socket.backlog, 7);
    assert!(!socket.blocking && !socket.replace && socket.optional && !socket.remove_on_stop);
    assert_eq!(socket.umask, Some(Mode(0o77)));
    assert_eq!(
        socket.user,
        Some(At::nowhere(Principal::Name("www".to_string())))
    );
    assert_eq!(socket.group, Some(At::nowhere(Principal::Id(33))));
    assert_eq!(socket.mode, Some(Mode(0o660)));
    assert_eq!(socket.directory_mode, Mode(0o700));
    assert_eq!(socket.fd_name.as_deref(), Some("web fd"));
    assert_eq!(socket.inherit, Inherit::Require);
    let interval = Duration::from_secs(5);
    assert_eq!(socket.trigger_limit, TriggerLimit { burst: 3, interval });

    let socket =
        good_socket("port = 80\nhost = \"::1\"\ninterface = \"eth0\"\nso_reuseport = true");
    assert_eq!(
        socket.address.value,
        Address::Ip("[::1]:80".parse().expect("the test's own address"))
    );
    assert_eq!(socket.interface, Some(At::nowhere("eth0".to_string())));
    assert!(socket.so_reuseport.value);
    let socket = good_socket("port = 80");
    assert_eq!(
        socket.address.value,
        Address::Host("localhost".to_string(), 80)
    );
    assert_eq!(
        good_socket("listen = 8000").address.value,
        Address::Port(8000)
    );
    let limit = good_socket("listen = 1\ntrigger_limit = {}").trigger_limit;
    assert_eq!(limit, TriggerLimit::default());
}

#[test]
fn every_key_of_a_watcher_gets_to_its_place() {
    let w = good_watcher(
        "args = [\"a\", \"\"]\nexecutable = \"/bin/x\"\nshell = true\nshell_args = \"b c\"\nsockets = [\"s\", \"t\"]\n\
         listen_fds = false\nstdin = \"in.txt\"\nnumprocesses = 1\nsingleton = true\ntype = \"notify\"\n\
         warmup_delay = 0.5\nready_delay = \"1s\"\nstart_timeout = 0\nwatchdog = \"2s\"\nwatchdog_signal = 6\n\
         notify_access = \"all\"\nautostart = false\non_demand = true\nrestart = \"on-failure\"\nrestart_delay = 60\n\
         restart_reset = 20\nmax_retry = 0\nstop_signal = \"sigint\"\ngraceful_timeout = 0\nstop_children = true\n\
         reload = \"sighup\"\nreload_surge = 3\nmax_age = \"1d\"\nmax_age_variance = 0\n\
         critical = true\npriority = -3\nafter = [\"a\"]\nrequires = [\"b\"]\nuid = 0\ngid = \"g\"\n\
         supplementary_groups = [1, \"adm\"]\numask = 0o022\nworking_dir = \"d\"\nnice = -20\noom_score_adj = 1000\n\
         cpu_affinity = [3, 0, 3]\nrlimits = { nofile = 4096, core = \"0:infinity\", cpu = { soft = 1, hard = \"1K\" } }\n\
         env = { B = \"b\", A = 1, C = 1.50, D = true }\nenv_file = \"-e\"\ncopy_env = false\nvirtualenv = \"v\"\n\
         stdout = \"null\"\nstderr = { file = \"err.log\" }",
    );
    assert_eq!(
        w.args.as_deref(),
        Some(At::nowhere(Words::List(
            ["a", ""].map(|word| At::nowhere(word.into())).into()
        )))
        .as_ref()
    );
    assert_eq!(
        w.executable.as_deref(),
        Some(At::nowhere("/bin/x".to_string())).as_ref()
    );
    assert_eq!(
        w.shell_args.as_deref(),
        Some(At::nowhere(Words::Text("b c".to_string()))).as_ref()
    );
    let names = |names: &[&str]| -> Vec<At<String>> {
        names
            .iter()
            .map(|name| At::nowhere(name.to_string()))
            .collect()
    };
    assert_eq!(w.sockets, Some(names(&["s", "t"])));
    assert!(w.shell && !w.listen_fds && w.singleton && !w.autostart && w.on_demand.value);
    assert_eq!(w.stdin, Stdin::File(At::nowhere("in.txt".to_string())));
    assert_eq!(w.kind, WatcherKind::Notify);
    assert_eq!(w.warmup_delay, Duration::from_millis(500));
    assert_eq!(w.ready_delay, Duration::from_secs(1));
    assert_eq!(w.start_timeout, None);
    assert_eq!(w.watchdog, Some(Duration::from_secs(2)));
    assert_eq!(w.watchdog_signal, Signal(6));
    assert_eq!(w.notify_access, NotifyAccess::All);
    assert_eq!(w.restart, Restart::OnFailure);
    assert_eq!(w.restart_delay, Duration::from_secs(60));
    assert_eq!(w.restart_max_delay, Duration::from_secs(60));
    assert_eq!(w.restart_reset, Duration::from_secs(20));
    assert_eq!(w.max_retry, Some(0));
    assert_eq!(w.stop_signal, Signal(2));
    assert_eq!(w.graceful_timeout, Some(Duration::ZERO));
    assert!(w.stop_children && w.critical && !w.copy_env);
    assert_eq!(w.reload, Reload::Signal(Signal(1)));
    assert_eq!(w.reload_surge, 3);
    assert_eq!(w.max_age, Some(Duration::from_secs(86_400)));
    assert_eq!(w.max_age_variance, Duration::ZERO);
    assert_eq!(w.priority, -3);
    assert_eq!((w.after, w.requires), (names(&["a"]), names(&["b"])));
    assert_eq!(
        w.user.as_deref(),
        Some(At::nowhere(Principal::Id(0))).as_ref()
    );
    assert_eq!(
        w.group.as_deref(),
        Some(At::nowhere(Principal::Name("g".to_string()))).as_ref()
    );
    assert_eq!(
        w.supplementary_groups,
        Some(vec![
            At::nowhere(Principal::Id(1)),
            At::nowhere(Principal::Name("adm".to_string()))
        ])
    );
    assert_eq!(w.umask, Some(Mode(0o22)));
    assert_eq!(
        w.working_dir.as_deref(),
        Some(At::nowhere("d".to_string())).as_ref()
    );
    assert_eq!((w.nice, w.oom_score_adj), (Some(-20), Some(1000)));
    assert_eq!(w.cpu_affinity, Some(vec![0, 3]));
    let limit = |soft, hard| Limit { soft, hard };
    assert_eq!(
        w.rlimits,
        [
            (Resource::Core, limit(Some(0), None)),
            (Resource::Cpu, limit(Some(1), Some(1024))),
            (Resource::Nofile, limit(Some(4096), Some(4096))),
        ]
    );
    let env: Vec<(&str, &str)> = w
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.value.as_str()))
        .collect();
    assert_eq!(env, [("A", "1"), ("B", "b"), ("C", "1.50"), ("D", "true")]);
    assert_eq!(
        w.env_file.as_deref(),
        Some(At::nowhere("-e".to_string())).as_ref()
    );
    assert_eq!(
        w.virtualenv.as_deref(),
        Some(At::nowhere("v".to_string())).as_ref()
    );
    assert_eq!(w.stdout, Output::Null);
    assert_eq!(w.stderr, Output::File(At::nowhere("err.log".to_string())));

    let w = good_watcher(
        "use_sockets = true\nstdin_socket = \"s\"\nstart_timeout = \"infinity\"\ngraceful_timeout = \"infinity\"\n\
         watchdog = 0\nmax_age = 0\nsend_hup = true\nmax_retry = -1\nrespawn = false\nuser = \"u\"\ngroup = \"7\"",
    );
    assert!(w.use_sockets);
    assert_eq!(
        w.stdin_socket.as_deref(),
        Some(At::nowhere("s".to_string())).as_ref()
    );
    assert_eq!(
        (w.start_timeout, w.graceful_timeout, w.watchdog, w.max_age),
        (None, None, None, None)
    );
    assert_eq!(w.reload, Reload::Signal(Signal(1)));
    assert_eq!(good_watcher("send_hup = false").reload, Reload::Rolling);
    assert_eq!(good_watcher("reload = \"rolling\"").reload, Reload::Rolling);
    let usr1 = good_watcher(&format!("reload = {}", libc::SIGUSR1)).reload;
    assert_eq!(usr1, Reload::Signal(Signal(libc::SIGUSR1)));
    assert_eq!(w.max_retry, None);
    assert_eq!(w.restart, Restart::Never);
    assert_eq!(
        w.group.as_deref(),
        Some(At::nowhere(Principal::Id(7))).as_ref()
    );
    let oneshot = good_watcher("type = \"oneshot\"\nnumprocesses = 3");
    assert_eq!(oneshot.restart, Restart::OnFailure);
}

#[test]
fn every_key_of_the_manager_gets_to_its_place() {
    let manager = good(
        "[manager]\ncontrol = \"c.sock\"\ncontrol_group = \"adm\"\ncontrol_mode = \"0660\"\nwarmup_delay = 1\n\
         shutdown_timeout = \"infinity\"\nlog_level = \"warning\"\nlog_format = \"json\"\nenv = { A = \"b\" }",
    )
    .manager;
    assert_eq!(manager.control, Some(At::nowhere("/u/c.sock".into())));
    assert_eq!(
        manager.control_group,
        Some(At::nowhere(Principal::Name("adm".to_string())))
    );
    assert_eq!(manager.control_mode, Some(Mode(0o660)));
    for (keys, mode) in [
        ("", 0o600),
        ("control_group = \"adm\"", 0o660),
        ("control_group = \"adm\"\ncontrol_mode = \"0600\"", 0o600),
    ] {
        let manager = good(&format!("[manager]\n{keys}")).manager;
        assert_eq!(manager.control_mode(), Mode(mode), "{keys}");
    }
    assert_eq!(manager.warmup_delay, Duration::from_secs(1));
    assert_eq!(manager.shutdown_timeout, None);
    assert_eq!(manager.log_level, LogLevel::Warn);
    assert_eq!(manager.log_format, LogFormat::Json);
    assert_eq!(
        manager.env,
        [("A".to_string(), At::nowhere("b".to_string()))]
    );
}

#[test]
fn what_a_socket_may_not_say_is_refused_with_what_would_be_right() {
    assert_refused(
        "[socket.s]",
        "listen = 1",
        &[
            (
                "backlag = 5",
                "1: unknown key `backlag` in `[socket]`; did you mean `backlog`?",
            ),
            (
                "numprocesses = 5",
                "1: unknown key `numprocesses` in `[socket]`; it belongs in `[watcher.NAME]`",
            ),
            (
                "ListenStream = 5",
                "1: unknown key `ListenStream` in `[socket]`; did you mean `listen`?",
            ),
            (
                "env = {}",
                "1: unknown key `env` in `[socket]`; it belongs in `[manager]` or `[watcher.NAME]`",
            ),
            (
                "uid = 5",
                "1: unknown key `uid` in `[socket]`; did you mean `user`?",
            ),
            (
                "qwertyuiop = 5",
                "1: unknown key `qwertyuiop` in `[socket]`",
            ),
            ("free_bind = true", "1: key `free_bind` is not built yet"),
            ("proto = \"mptcp\"", "1: key `proto` is not built yet"),
            ("type = \"fifo\"", "8: `type = \"fifo\"` is not built yet"),
            (
                "family = \"AF_VSOCK\"",
                "10: `family = \"vsock\"` is not built yet",
            ),
            (
                "type = \"strem\"",
                "8: `type` of `socket.s` must be one of `\"stream\"`, `\"dgram\"`, `\"seqpacket\"`; \
                 found the text `\"strem\"`; did you mean `\"stream\"`?",
            ),
            (
                "backlog = -1",
                "11: `backlog` of `socket.s` must be an integer from 0 to 2147483647; found `-1`",
            ),
            (
                "backlog = \"5\"",
                "11: `backlog` of `socket.s` must be an integer from 0 to 2147483647, without quotes; found the text `\"5\"`",
            ),
            (
                "backlog = 99999999999999999999",
                "11: `backlog` of `socket.s` must be an integer from 0 to 2147483647; found `99999999999999999999`",
            ),
            (
                "blocking = \"yes\"",
                "12: `blocking` of `socket.s` must be `true` or `false`, here `true` without quotes; found the text `\"yes\"`",
            ),
            (
                "blocking = 2020-01-01",
                "12: `blocking` of `socket.s` must be `true` or `false`; found a date or time",
            ),
            (
                "inherit = []",
                "11: `inherit` of `socket.s` must be one of `\"auto\"`, `\"require\"`, `\"never\"`; found a list",
            ),
            (
                "family = \"unix\"",
                "1: `family = \"unix\"` of `socket.s` contradicts its address; remove `family`, which follows from it",
            ),
            (
                "type = \"seqpacket\"",
                "1: `type = \"seqpacket\"` of `socket.s` needs a unix socket; it listens on a network socket",
            ),
            (
                "mode = \"0660\"",
                "1: `mode` of `socket.s` needs a unix socket's path; it listens on a network socket, which has no file",
            ),
            (
                "interface = \"a/b\"",
                "13: `interface` of `socket.s` is no interface's name: at most 15 bytes without blanks, `/` and `:`",
            ),
            (
                "fd_name = \"a:b\"",
                "11: `fd_name` of `socket.s` may have printable ASCII characters only, and no `:`",
            ),
            (
                "fd_name = \"\"",
                "11: `fd_name` of `socket.s` must have 1 to 255 bytes",
            ),
            (
                "fd_name = \"a\\u0000\"",
                "11: `fd_name` of `socket.s` has a NUL byte in it",
            ),
            (
                "trigger_limit = { brust = 1 }",
                "19: unknown key `brust` in `trigger_limit`; did you mean `burst`?",
            ),
            (
                "trigger_limit = 5",
                "17: `trigger_limit` of `socket.s` must be a table such as `{ burst = 20, interval = \"2s\" }`; found `5`",
            ),
            (
                "trigger_limit.burst = -1",
                "23: `trigger_limit.burst` of `socket.s` must be an integer from 0 to 4294967295; found `-1`",
            ),
            (
                "host = \"x\"",
                "1: `socket.s` has both `listen` and `host`; keep one way to write the address",
            ),
        ],
    );
    assert_refused(
        "[socket.s]",
        "listen = \"/run/x\"",
        &[
            (
                "mode = 660",
                "8: `mode` of `socket.s` is not octal; write `\"0660\"` or `0o660`",
            ),
            (
                "mode = 438",
                "8: `mode` of `socket.s` is not octal; write `\"0666\"` or `0o666`",
            ),
            (
                "mode = 0x1b0",
                "8: `mode` of `socket.s` is not octal; write `\"0660\"` or `0o660`",
            ),
            (
                "mode = 99999",
                "8: `mode` of `socket.s` is not octal; write it such as `\"0660\"` or `0o660`",
            ),
            (
                "mode = \"rw\"",
                "8: `mode` of `socket.s` is not octal; write it such as `\"0660\"`",
            ),
            (
                "mode = 0o17777",
                "8: `mode` of `socket.s` is too large; the most is `\"7777\"`",
            ),
            (
                "umask = \"1000\"",
                "9: `umask` of `socket.s` is too large; the most is `\"0777\"`",
            ),
            (
                "mode = true",
                "8: `mode` of `socket.s` must be an octal mode such as `\"0660\"` or `0o660`; found `true`",
            ),
            (
                "mode = 0660",
                "8: a number with a leading zero; write a mode as `\"0660\"`",
            ),
            (
                "user = \"\"",
                "8: `user` of `socket.s` is empty; write a name or a number",
            ),
            (
                "user = -1",
                "8: `user` of `socket.s` is not an id; ids go from 0 to 4294967294",
            ),
            (
                "so_reuseport = true",
                "1: `so_reuseport` of `socket.s` needs a network socket; it listens on a unix socket",
            ),
            (
                "interface = \"lo\"",
                "1: `interface` of `socket.s` needs a network socket; it listens on a unix socket",
            ),
            (
                "family = \"inet\"",
                "1: `family = \"inet\"` of `socket.s` contradicts its address; remove `family`, which follows from it",
            ),
        ],
    );
    assert_refused(
        "[socket.s]",
        "",
        &[
            (
                "listen = \"localhost\"",
                "10: `listen` of `socket.s` has no port; write `\"localhost:8000\"`",
            ),
            (
                "listen = 65536",
                "10: `listen` of `socket.s` must be an integer from 0 to 65535; found `65536`",
            ),
            (
                "listen = [\"1\", \"2\"]",
                "10: `listen` of `socket.s` must be one address; write a `[socket.NAME]` for each, so that each has its own name",
            ),
            (
                "listen = \"vsock:1:2\"",
                "10: `listen` of `socket.s` is a vsock address, which is not built yet",
            ),
            (
                "listen = 127.0.0.1:80",
                "10: text must stand in quotes: write `\"127.0.0.1:80\"`",
            ),
            ("listen =", "9: missing value"),
            (
                "host = \"x\"",
                "8: `socket.s` has a `host` and no `port`; write `port = 8000`",
            ),
            (
                "port = 65536",
                "8: `port` of `socket.s` must be an integer from 0 to 65535; found `65536`",
            ),
            (
                "path = \"@x\"",
                "8: `path` of `socket.s` begins with `@`; write `listen = \"@x\"` for an abstract socket, or `\"./@x\"` for a file",
            ),
            (
                "path = \"\"",
                "8: `path` of `socket.s` is empty; write a path such as `\"/run/x.sock\"`",
            ),
        ],
    );
    assert_eq!(
        findings("[socket.s]\nbacklog = 1"),
        ["1:1: `socket.s` has no address; write `listen = \"127.0.0.1:8000\"`"]
    );
    assert_eq!(
        findings("[socket.s]\nhost = \"1.2.3\"\nport = 1"),
        ["2:8: `host` of `socket.s` has `1.2.3`, which is not an IPv4 address"]
    );
    assert_eq!(
        findings("[socket.s]\nhost = \"a\"\nport = 1\npath = \"/x\""),
        ["4:1: `socket.s` has both `host` and `path`; keep one way to write the address"]
    );
    assert_eq!(
        findings("[socket.s]\nlisten = 1\ntype = \"dgram\"\nbacklog = 1\nreplace = true"),
        [
            "4:1: warning: `backlog` of `socket.s` has no effect: a datagram socket has no queue of connections",
            "5:1: warning: `replace` of `socket.s` has no effect on a network socket, which has no file",
        ]
    );
    assert_eq!(
        findings("[socket.\"a:b\"]\nlisten = 1"),
        [
            "1:1: `socket.a:b` has a `:` in its name, which parts the names in LISTEN_FDNAMES; give it an `fd_name`"
        ]
    );
    good("[socket.\"a:b\"]\nlisten = 1\nfd_name = \"ab\"");
}

#[test]
fn what_a_watcher_may_not_say_is_refused_with_what_would_be_right() {
    assert_refused(
        "[watcher.w]",
        "cmd = \"x\"",
        &[
            (
                "listen = 1",
                "1: unknown key `listen` in `[watcher]`; it belongs in `[socket.NAME]`",
            ),
            (
                "log_level = 1",
                "1: unknown key `log_level` in `[watcher]`; it belongs in `[manager]`",
            ),
            (
                "workers = 1",
                "1: unknown key `workers` in `[watcher]`; did you mean `numprocesses`?",
            ),
            (
                "rlimit_nofile = 1",
                "1: unknown key `rlimit_nofile` in `[watcher]`; write `rlimits = { nofile = ... }`",
            ),
            (
                "example.x = 1",
                "1: unknown key `example` in `[watcher]`; a name with a dot needs quotes: `[watcher.\"w.example\"]`",
            ),
            ("accept = true", "1: key `accept` is not built yet"),
            (
                "stdin = \"socket\"",
                "9: `stdin = \"socket\"` is not built yet",
            ),
            (
                "stdout = \"journal\"",
                "10: `stdout = \"journal\"` is not built yet",
            ),
            (
                "stderr = \"prefix\"",
                "10: `stderr = \"prefix\"` is not built yet",
            ),
            (
                "stdout = { file = \"x\", max_bytes = 1 }",
                "24: key `max_bytes` of `stdout` is not built yet",
            ),
            (
                "stdout = { path = \"x\" , file = \"x\"}",
                "12: unknown key `path` in `stdout`; write `{ file = \"/var/log/web.log\" }`",
            ),
            (
                "stdout = {}",
                "10: `stdout` of `watcher.w` has no `file`; write `{ file = \"/var/log/web.log\" }`",
            ),
            (
                "stdout = \"/x/y\"",
                "10: `stdout` of `watcher.w` is a path; write `{ file = \"/x/y\" }`",
            ),
            (
                "stdout = \"nul\"",
                "10: `stdout` of `watcher.w` must be one of `\"inherit\"`, `\"null\"`; found the text `\"nul\"`; did you mean `\"null\"`?",
            ),
            (
                "stdin = \"nul\"",
                "9: `stdin` of `watcher.w` must be `\"null\"` or a file; write `\"./nul\"` for a file in the unit file's folder",
            ),
            (
                "numprocesses = -1",
                "16: `numprocesses` of `watcher.w` must be an integer from 0 to 100000; found `-1`",
            ),
            (
                "numprocesses = 1.5",
                "16: `numprocesses` of `watcher.w` must be an integer from 0 to 100000; found `1.5`",
            ),
            (
                "max_retry = -2",
                "13: `max_retry` of `watcher.w` must be an integer from -1 to 2147483647; found `-2`",
            ),
            (
                "nice = 20",
                "8: `nice` of `watcher.w` must be an integer from -20 to 19; found `20`",
            ),
            (
                "oom_score_adj = -1001",
                "17: `oom_score_adj` of `watcher.w` must be an integer from -1000 to 1000; found `-1001`",
            ),
            (
                "cpu_affinity = []",
                "16: `cpu_affinity` of `watcher.w` is empty; write the CPUs to run on, such as `[0, 2]`",
            ),
            (
                "cpu_affinity = [1024]",
                "17: `cpu_affinity[0]` of `watcher.w` must be an integer from 0 to 1023; found `1024`",
            ),
            (
                "cpu_affinity = 1",
                "16: `cpu_affinity` of `watcher.w` must be a list of CPU numbers, such as `[0, 2]`; found `1`",
            ),
            (
                "sockets = \"web\"",
                "11: `sockets` of `watcher.w` must be a list, such as `[\"web\"]`; found the text `\"web\"`",
            ),
            (
                "sockets = [\"a\", \"a\"]",
                "17: `sockets` of `watcher.w` has `a` twice",
            ),
            (
                "sockets = [\"\"]",
                "12: `sockets[0]` of `watcher.w` is empty",
            ),
            (
                "args = \"it's\"",
                "8: `args` of `watcher.w` cannot be split into words: missing closing quote",
            ),
            (
                "args = [1]",
                "9: `args[0]` of `watcher.w` must be text in quotes; found `1`",
            ),
            (
                "args = 5",
                "8: `args` of `watcher.w` must be text or a list, such as `\"prog --flag\"` or `[\"prog\", \"--flag\"]`; found `5`",
            ),
            (
                "executable = \"a\\u0000b\"",
                "14: `executable` of `watcher.w` has a NUL byte in it",
            ),
            (
                "executable = \" \"",
                "14: `executable` of `watcher.w` is empty",
            ),
            (
                "start_timeout = nan",
                "17: `start_timeout` of `watcher.w` is not a duration; `nan` is no number of seconds",
            ),
            (
                "start_timeout = inf",
                "17: `start_timeout` of `watcher.w` is longer than 100 years",
            ),
            (
                "start_timeout = -1",
                "17: `start_timeout` of `watcher.w` is negative; a duration is 0 or more",
            ),
            (
                "start_timeout = \"inf\"",
                "17: `start_timeout` of `watcher.w` is not a duration; write `\"infinity\"` for no limit",
            ),
            (
                "start_timeout = true",
                "17: `start_timeout` of `watcher.w` must be a duration such as `5` or `\"1m30s\"`, or `\"infinity\"`; found `true`",
            ),
            (
                "start_timeout = \"5 parsecs\"",
                "17: `start_timeout` of `watcher.w` has the unknown unit `parsecs`; known are `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w`",
            ),
            (
                "ready_delay = \"infinity\"",
                "15: `ready_delay` of `watcher.w` must come to an end; write a duration such as `\"1h\"`",
            ),
            (
                "ready_delay = 9999999999999999999",
                "15: `ready_delay` of `watcher.w` is longer than 100 years",
            ),
            (
                "reload = \"Roling\"",
                "10: `reload` of `watcher.w` must be `\"rolling\"` or a signal such as `\"HUP\"`; found the text `\"Roling\"`; did you mean `\"rolling\"`?",
            ),
            (
                "reload = true",
                "10: `reload` of `watcher.w` must be `\"rolling\"` or a signal such as `\"HUP\"`; found `true`",
            ),
            (
                "reload = \"HPU\"",
                "10: `reload` of `watcher.w` is not a signal; did you mean `HUP`?",
            ),
            (
                "reload = 0",
                "10: `reload` of `watcher.w` is not a signal; numbers go from 1 to 64",
            ),
            (
                "reload = 9",
                "10: `reload` of `watcher.w` can't be `KILL`, which no program can catch; write `\"rolling\"`, or the signal on which it reloads",
            ),
            (
                "send_hup = 1",
                "12: `send_hup` of `watcher.w` must be `true` or `false`, here `true` without quotes; found `1`",
            ),
            (
                "reload_surge = 0",
                "16: `reload_surge` of `watcher.w` must be an integer from 1 to 100000; found `0`",
            ),
            (
                "max_age = \"1us\"",
                "11: `max_age` of `watcher.w` is too short; the least is `\"1ms\"`",
            ),
            (
                "max_age = -1",
                "11: `max_age` of `watcher.w` is negative; a duration is 0 or more",
            ),
            (
                "max_age_variance = 5",
                "1: warning: `max_age_variance` of `watcher.w` has no effect without `max_age`",
            ),
            (
                "watchdog = \"1us\"",
                "12: `watchdog` of `watcher.w` is too short; the least is `\"1ms\"`",
            ),
            (
                "restart_max_delay = 0.01",
                "21: `restart_max_delay` of `watcher.w` is shorter than its `restart_delay`",
            ),
            (
                "stop_signal = 0",
                "15: `stop_signal` of `watcher.w` is not a signal; numbers go from 1 to 64",
            ),
            (
                "stop_signal = \"TREM\"",
                "15: `stop_signal` of `watcher.w` is not a signal; did you mean `TERM`?",
            ),
            (
                "stop_signal = []",
                "15: `stop_signal` of `watcher.w` must be a signal such as `\"TERM\"` or `15`; found a list",
            ),
            (
                "env = { \"A=B\" = 1 }",
                "9: `env` of `watcher.w` has `A=B`, and a variable's name has no `=` and no NUL byte",
            ),
            (
                "env = { \"\" = 1 }",
                "9: `env` of `watcher.w` has a variable without a name",
            ),
            (
                "env = { LISTEN_FDS = 1 }",
                "9: `env` of `watcher.w` may not set `LISTEN_FDS`: tentpole sets it for each worker",
            ),
            (
                "env = { TENTPOLE_X = 1 }",
                "9: `env` of `watcher.w` may not set `TENTPOLE_X`: tentpole sets it for each worker",
            ),
            (
                "env = { A = [] }",
                "13: `env.A` of `watcher.w` must be text in quotes, a number or a boolean; found a list",
            ),
            (
                "env = { A = 1979-05-27 }",
                "13: `env.A` of `watcher.w` must be text in quotes, a number or a boolean; found a date or time",
            ),
            (
                "env = { A = \"a\\u0000\" }",
                "13: `env.A` of `watcher.w` has a NUL byte in it",
            ),
            (
                "env = [\"A=1\"]",
                "7: `env` of `watcher.w` must be a table such as `{ NAME = \"value\" }`; found a list",
            ),
            (
                "env_file = \"-\"",
                "12: `env_file` of `watcher.w` has no path after `-`",
            ),
            (
                "rlimits = { nofiles = 1 }",
                "13: unknown resource `nofiles` in `rlimits`; did you mean `nofile`?",
            ),
            (
                "rlimits = { RLIMIT_NOFILE = 1 }",
                "13: unknown resource `RLIMIT_NOFILE` in `rlimits`; did you mean `nofile`?",
            ),
            (
                "rlimits = { nofile = -1 }",
                "22: `rlimits.nofile` of `watcher.w` must be from 0 to 9223372036854775807, or `\"infinity\"`; found `-1`",
            ),
            (
                "rlimits = { nofile = { soft = 1 } }",
                "22: `rlimits.nofile` of `watcher.w` has no `hard`; write `{ soft = 1024, hard = \"infinity\" }`",
            ),
            (
                "rlimits = { nofile = { soft = 2, hard = 1 } }",
                "22: `rlimits.nofile` of `watcher.w` has a soft limit above its hard limit",
            ),
            (
                "rlimits = { nofile = { soft = true, hard = 1 } }",
                "31: `rlimits.nofile.soft` of `watcher.w` must be a limit such as `4096`, `\"64M\"`, `\"1024:4096\"` or `\"infinity\"`; found `true`",
            ),
            (
                "rlimits = 5",
                "11: `rlimits` of `watcher.w` must be a table such as `{ nofile = 4096 }`; found `5`",
            ),
            (
                "restart = \"alwais\"",
                "11: `restart` of `watcher.w` must be one of `\"always\"`, `\"on-failure\"`, `\"never\"`; found the text `\"alwais\"`; did you mean `\"always\"`?",
            ),
            (
                "shell_args = \"x\"",
                "1: warning: `shell_args` of `watcher.w` has no effect without `shell = true`",
            ),
            (
                "cpu_affinity = \"0,2-3\"",
                "16: `cpu_affinity` of `watcher.w` must be a list of CPU numbers, here `[0, 2, 3]`; found the text `\"0,2-3\"`",
            ),
            (
                "cpu_affinity = \"all\"",
                "16: `cpu_affinity` of `watcher.w` must be a list of CPU numbers, such as `[0, 2]`; found the text `\"all\"`",
            ),
            (
                "supplementary_groups = [1.5]",
                "25: `supplementary_groups[0]` of `watcher.w` must be a name or a number, such as `\"www-data\"` or `33`; found `1.5`",
            ),
            ("autostart = yes", "13: not a TOML value; write `true`"),
        ],
    );
    assert_refused(
        "[watcher.w]",
        "",
        &[
            (
                "cmd = \"\"",
                "7: `cmd` of `watcher.w` is empty; write a program and its arguments",
            ),
            (
                "cmd = \" # x\"",
                "7: `cmd` of `watcher.w` is empty; write a program and its arguments",
            ),
            (
                "cmd = []",
                "7: `cmd` of `watcher.w` is empty; write a program and its arguments",
            ),
            (
                "cmd = \"'' x\"",
                "7: `cmd` of `watcher.w` has an empty first word; write a program there",
            ),
            (
                "cmd = [\"\"]",
                "7: `cmd` of `watcher.w` has an empty first word; write a program there",
            ),
            (
                "cmd = \"a 'b\"",
                "7: `cmd` of `watcher.w` cannot be split into words: missing closing quote",
            ),
            (
                "cmd = 5",
                "7: `cmd` of `watcher.w` must be text or a list, such as `\"prog --flag\"` or `[\"prog\", \"--flag\"]`; found `5`",
            ),
        ],
    );
    assert_eq!(
        findings("[watcher.w]\n"),
        ["1:1: `watcher.w` has no command; write `cmd = \"...\"`"]
    );
    good("[watcher.w]\ncmd = \"echo it's\"\nshell = true");
    assert_eq!(
        findings("[watcher.w]\ncmd = \" \"\nshell = true"),
        ["2:7: `cmd` of `watcher.w` is empty"]
    );
}

#[test]
fn keys_that_were_shortened_are_recognized() {
    for (header, key, meant) in [
        ("watcher.w", "numproc", "numprocesses"),
        ("watcher.w", "sock", "sockets"),
        ("watcher.w", "stop_sig", "stop_signal"),
        ("watcher.w", "graceful", "graceful_timeout"),
        ("watcher.w", "proc", "numprocesses"),
        ("socket.s", "sock_type", "type"),
        ("socket.s", "reuse", "so_reuseport"),
    ] {
        let wanted = format!("; did you mean `{meant}`?");
        let found = findings(&format!("[{header}]\n{key} = 1\n"));
        assert!(found.iter().any(|it| it.ends_with(&wanted)), "{found:?}");
    }
}

#[test]
fn a_key_that_is_not_built_is_no_suggestion() {
    for (header, key, hint) in [
        ("watcher.w", "acept", "; `accept` is not built yet"),
        (
            "socket.s",
            "timestmping",
            "; `timestamping` is not built yet",
        ),
        ("manager", "metrcs", "; `metrics` is not built yet"),
        ("watcher.w", "max_agee", "; did you mean `max_age`?"),
    ] {
        let found = findings(&format!("[{header}]\n{key} = 1\n"));
        assert!(found.iter().any(|it| it.ends_with(hint)), "{found:?}");
    }
    let foreign = FOREIGN.iter().map(|(_, ours)| *ours);
    for ours in foreign {
        let is_built = Kind::ALL.into_iter().any(|kind| kind.is_built(ours));
        assert!(is_built, "{ours}");
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (keys, wanted) in [
        (
            "uid = 1\nuser = \"a\"",
            "3:1: `watcher.w` has both `user` and `uid`, which are the same; keep one",
        ),
        (
            "gid = 1\ngroup = \"a\"",
            "3:1: `watcher.w` has both `group` and `gid`, which are the same; keep one",
        ),
        (
            "singleton = true\nnumprocesses = 2",
            "4:16: `numprocesses` of `watcher.w` is 2, and `singleton` forbids more than 1",
        ),
        (
            "respawn = false\nrestart = \"always\"",
            "3:11: `respawn = false` of `watcher.w` contradicts its `restart`; remove `respawn`",
        ),
        (
            "respawn = true\nrestart = \"never\"",
            "3:11: `respawn = true` of `watcher.w` contradicts its `restart`; remove `respawn`",
        ),
        (
            "type = \"oneshot\"\nrestart = \"always\"",
            "4:11: `restart = \"always\"` of `watcher.w` would run a `oneshot` for ever; write `restart = \"on-failure\"` or `\"never\"`",
        ),
        (
            "type = \"oneshot\"\nrespawn = true",
            "4:11: `respawn = true` of `watcher.w` would run a `oneshot` for ever; write `restart = \"on-failure\"` or `\"never\"`",
        ),
        (
            "use_sockets = true\nsockets = []",
            "4:1: `watcher.w` has `sockets`, and `use_sockets`, which passes every socket; keep one",
        ),
        (
            "stdin = \"null\"\nstdin_socket = \"x\"",
            "3:1: `watcher.w` has both `stdin` and `stdin_socket`; keep one",
        ),
        (
            "type = \"notify\"\nnotify_access = \"none\"",
            "4:17: `notify_access = \"none\"` of `watcher.w` shuts out what its `type = \"notify\"` waits for",
        ),
        (
            "send_hup = true\nreload = \"rolling\"",
            "3:12: `send_hup = true` of `watcher.w` contradicts its `reload`; remove `send_hup`",
        ),
        (
            "reload = 1\nsend_hup = false",
            "4:12: `send_hup = false` of `watcher.w` contradicts its `reload`; remove `send_hup`",
        ),
        (
            "watchdog = 1\nnotify_access = \"none\"",
            "4:17: `notify_access = \"none\"` of `watcher.w` shuts out what its `watchdog` waits for",
        ),
    ] {
        assert_eq!(
            findings(&format!("[watcher.w]\ncmd = \"x\"\n{keys}")),
            [wanted],
            "{keys}"
        );
    }
    good_watcher("respawn = false\nrestart = \"never\"");
    good_watcher("send_hup = true\nreload = \"HUP\"");
    good_watcher("send_hup = false\nreload = \"rolling\"");
    good_watcher("restart_delay = 5\nrestart_max_delay = 5");
    // Who writes the one alone wants it, though it is longer than the default of the other.
    let constant = good_watcher("restart_delay = \"1m\"");
    assert_eq!(constant.restart_max_delay, Duration::from_secs(60));
}

#[test]
fn what_the_manager_may_not_say_is_refused_with_what_would_be_right() {
    assert_refused(
        "[manager]",
        "",
        &[
            (
                "contrl = \"x\"",
                "1: unknown key `contrl` in `[manager]`; did you mean `control`?",
            ),
            (
                "endpoint = \"tcp://127.0.0.1:5555\"",
                "1: key `endpoint` is not built yet",
            ),
            (
                "metrics = \"127.0.0.1:9090\"",
                "1: key `metrics` is not built yet",
            ),
            (
                "control = \"@x\"",
                "11: `control` of `manager` must be a path: an abstract socket has no file whose mode could keep others out",
            ),
            (
                "control = \"/run/\"",
                "11: `control` of `manager` names a folder, not a socket file",
            ),
            (
                "log_level = \"verbose\"",
                "13: `log_level` of `manager` must be one of `\"error\"`, `\"warn\"`, `\"warning\"`, `\"info\"`, `\"debug\"`, `\"trace\"`; found the text `\"verbose\"`",
            ),
            (
                "check_delay = 5",
                "15: warning: `check_delay` of `manager` is needless: nothing is polled",
            ),
            (
                "check_delay = -1",
                "15: warning: `check_delay` of `manager` is needless: nothing is polled",
            ),
            (
                "check_delay = []",
                "15: `check_delay` of `manager` must be a duration such as `5` or `\"1m30s\"`; found a list",
            ),
            (
                "env = { NOTIFY_SOCKET = \"x\" }",
                "9: `env` of `manager` may not set `NOTIFY_SOCKET`: tentpole sets it for each worker",
            ),
        ],
    );
}

/// What a message offers instead: what stands in backticks behind "such as", "write" or "here".
fn offers(message: &str) -> Vec<String> {
    let message = message.split("; found ").next().unwrap_or_default();
    let start = ["such as ", "; write ", ", here "]
        .iter()
        .filter_map(|word| message.find(word))
        .min();
    let spans = message[start.unwrap_or(message.len())..].split('`');
    let spans = spans.skip(1).step_by(2).map(str::to_string);
    spans
        .filter(|span| !span.contains("...") && !span.contains("NAME]"))
        .collect()
}

#[test]
fn what_a_message_offers_is_taken() {
    const VALUES: &[&str] = &[
        "true",
        "-1",
        "0",
        "1",
        "80",
        "644",
        "9999",
        "99999999",
        "1.5",
        "nan",
        "[]",
        "[0]",
        "[true]",
        "[[]]",
        "{}",
        "{ x = 1 }",
        "1979-05-27",
        "\"\"",
        "\" \"",
        "\"x\"",
        "\"0-1\"",
        "\"0,3-5 7\"",
        "\"0-9999\"",
        "\"9-1\"",
        "\"+80\"",
        "\":+80\"",
        "\":80\"",
        "\"*:80\"",
        "\"*:\"",
        "\"x\\\"y\"",
        "\"http://x:80/\"",
        "\"http://x/\"",
        "\"tcp:///\"",
        "\"unix:run\"",
        "\"unix:///run/x\"",
        "\"a/\"",
        "\"a/b\"",
        "\"[::1\"",
        "\"[::1]\"",
        "\"[1.2.3.4]\"",
        "\"[x]\"",
        "\"::1\"",
        "\"::1:80\"",
        "\"[fe80::1%]:80\"",
        "\"@\"",
        "\"@x\"",
        "\"no\"",
        "\"inf\"",
        "\"never\"",
        "\"1m30\"",
        "\"1 2\"",
        "\"5 parsecs\"",
        "\"0999\"",
        "\"rw\"",
        "\"rollin\"",
        "\"TREM\"",
        "\"64Q\"",
        "\"/var/log/x\"",
        "\"a.log\"",
        "\"a\\\".log\"",
        "\"a\\\".log\"",
        "\"socket\"",
        "\"'\"",
        "\"journall\"",
        "\"sock_steam\"",
        "\"oneshoot\"",
        "{ burst = \"x\" }",
        "{ file = 1 }",
        "{ fil = 1 }",
        "{ nofile = \"x\" }",
        "{ nofil = 1 }",
        "\"a b\"",
    ];
    let (mut offered, mut refused) = (0, Vec::new());
    for kind in Kind::ALL {
        let (header, further) = match kind {
            Kind::Manager => ("[manager]", ""),
            Kind::Socket => ("[socket.s]", "listen = \"/run/x\"\n"),
            Kind::Watcher => ("[watcher.w]", "cmd = \"x\"\n"),
        };
        for key in kind.keys() {
            let further = match key {
                "listen" | "path" | "cmd" => "",
                "host" => "port = 1\n",
                "port" => "host = \"::1\"\n",
                _ => further,
            };
            // Errors alone: of an offer nothing is said but what comes of the rest of this unit.
            let errors = |line: &str| -> Vec<String> {
                let text = format!("{header}\n{line}\n{further}");
                let loaded = read_text(Path::new("/u/t"), &text);
                let errors = loaded.findings.iter().filter(|finding| {
                    finding.severity == super::super::Severity::Error
                        && !finding.message.contains("needs a unix socket's path")
                        && !finding.message.contains("needs a network socket")
                        && !finding
                            .message
                            .contains("is shorter than its `restart_delay`")
                });
                errors.map(|finding| finding.message.clone()).collect()
            };
            for value in VALUES {
                let messages = errors(&format!("{key} = {value}"));
                let whole = format!("`{key}` of ");
                for message in messages.iter().filter(|it| it.starts_with(&whole)) {
                    for offer in offers(message) {
                        let lines = match offer.contains(" = ") && !offer.starts_with('{') {
                            true => vec![offer.clone()],
                            // A message that the command line shares has no quotes.
                            false => {
                                vec![format!("{key} = {offer}"), format!("{key} = \"{offer}\"")]
                            }
                        };
                        if !lines.iter().any(|line| errors(line).is_empty()) {
                            refused.push(format!("{key} = {value}: {message}"));
                        }
                        offered += 1;
                    }
                }
            }
        }
    }
    assert_eq!(refused, [""; 0]);
    assert!(offered > 1000, "{offered}");
}

#[test]
fn a_unit_with_a_mistake_is_left_out_and_all_its_mistakes_are_told() {
    let text = "[socket.a]\nlisten = 1\n[socket.b]\nlisten = true\nbacklog = -1\nmodee = 1\n";
    let loaded = read_text(Path::new("/u/t"), text);
    assert_eq!(loaded.findings.len(), 3);
    assert_eq!(loaded.units.sockets.len(), 1);
    assert_eq!(loaded.units.sockets[0].name.value, "a");
}

#[test]
fn every_key_is_listed_once() {
    for kind in Kind::ALL {
        let mut keys: Vec<&str> = kind.keys().collect();
        let listed = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), listed, "{kind:?}");
        for key in keys.iter() {
            for other in kind.replaced_by(key) {
                assert!(kind.replaced_by(other).contains(key), "{key} {other}");
            }
        }
    }
}
