//! Bad input: files, programs, messages and limits. Each gets a clear answer, and what runs goes on undisturbed.

mod support;

use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use support::{
    DEADLINE, Manager, ask, bounded, command, environment, files, folder, is_root, leave_out, poll,
    receive, refused, send, spawn_by_script, write_units,
};

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("is UTF-8")
}

/// The line of a text that has a word.
fn line<'a>(text: &'a str, word: &str) -> &'a str {
    text.lines()
        .find(|line| line.contains(word))
        .unwrap_or_else(|| panic!("no {word} in:\n{text}"))
}

/// Runs a command on a folder of unit files, with its control socket elsewhere.
fn on_folder(verb: &str, dir: &Path) -> (Output, Vec<String>) {
    let control = folder();
    let output = bounded(command(control.path()).arg(verb).arg(dir));
    (output, files(control.path()))
}

#[test]
fn files_that_are_no_unit_files_are_refused_each_with_its_reason() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let good = "[watcher.good]\ncmd = \"sleep 1000\"\n";
    std::fs::write(path("good.toml"), good).unwrap();
    std::fs::write(path("empty.toml"), "").unwrap();
    std::fs::write(path("latin.toml"), b"# caf\xe9\n").unwrap();
    std::fs::write(path("half.toml"), "[watcher.half]\ncmd = \"sleep 10").unwrap();
    std::fs::write(path("nul.toml"), b"[watcher.nul]\ncmd = \"a\0b\"\n").unwrap();
    let huge = std::fs::File::create(path("huge.toml")).unwrap();
    huge.set_len(1 << 40).unwrap();
    std::fs::create_dir(path("folder.toml")).unwrap();
    let fifo = bounded(Command::new("mkfifo").arg(path("fifo.toml")));
    assert!(fifo.status.success());
    symlink("nowhere", path("dangling.toml")).unwrap();
    symlink("loop.toml", path("loop.toml")).unwrap();
    symlink("/dev/zero", path("device.toml")).unwrap();
    symlink("/dev/null", path("masked.toml")).unwrap();
    std::fs::write(path("writable.toml"), good.replace("good", "evil")).unwrap();
    std::fs::set_permissions(path("writable.toml"), PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::write(path("secret.toml"), good.replace("good", "secret")).unwrap();
    std::fs::set_permissions(path("secret.toml"), PermissionsExt::from_mode(0o000)).unwrap();

    for verb in ["check", "plan", "run"] {
        let (output, left) = on_folder(verb, dir.path());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{verb}: {text}");
        for (name, why) in [
            ("empty.toml", "empty"),
            ("latin.toml:1:6", "UTF-8"),
            ("half.toml:2:", "string"),
            ("nul.toml:2:", ""),
            ("huge.toml", "larger than"),
            ("folder.toml", "a folder"),
            ("fifo.toml", "a FIFO"),
            ("dangling.toml", "does not exist"),
            ("loop.toml", ""),
            ("device.toml", "device"),
        ] {
            assert!(
                line(&text, name).contains(why),
                "{verb}: {}",
                line(&text, name)
            );
        }
        if is_root() {
            assert!(
                line(&text, "writable.toml").contains("everybody may write it"),
                "{text}"
            );
        } else {
            assert!(
                line(&text, "secret.toml").contains("Permission denied"),
                "{text}"
            );
        }
        for name in ["good.toml", "masked.toml"] {
            assert!(!text.contains(name), "{verb}: {text}");
        }
        assert_eq!(left, Vec::<String>::new(), "{verb}");
    }
}

#[test]
fn a_folder_that_others_may_write_is_refused_by_root() {
    if !is_root() {
        return leave_out("it is root's files that are refused");
    }
    let dir = folder();
    write_units(dir.path(), "[watcher.a]\ncmd = \"sleep 1000\"\n");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let (output, _) = on_folder("run", dir.path());
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("may write") && text.contains("chmod"),
        "{text}"
    );
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once_with_their_place() {
    let units = r#"
[manager]
log_level = "loud"
[socket.web]
listen = "127.0.0.1:99999"
backlag = 5
[socket.old]
listen = "DIR/old"
mode = 644
[socket.later]
listen = "127.0.0.1:0"
no_delay = true
[watcher.web]
cmd = "PROBE serve 'open"
stop_signal = "SIGFOO"
numprocesses = -1
graceful_timeout = "soon"
[watcher.other]
cmd = "PROBE sleep"
socket = ["web"]
autoscale = { max = 3 }
[wacher.third]
cmd = "PROBE sleep"
"#;
    let text = refused(units);
    for (place, words) in [
        ("units.toml:3:", "`\"debug\"`"),
        ("units.toml:5:", "99999"),
        ("units.toml:6:", "did you mean `backlog`?"),
        ("units.toml:9:", "\"0644\""),
        ("units.toml:12:", "`no_delay` is not built yet"),
        ("units.toml:14:", "quote"),
        ("units.toml:15:", "is not a signal"),
        ("units.toml:16:", "numprocesses"),
        ("units.toml:17:", "is not a duration"),
        ("units.toml:20:", "did you mean `sockets`?"),
        ("units.toml:21:", "`autoscale` is not built yet"),
        ("units.toml:22:", "did you mean `[watcher.NAME]`?"),
    ] {
        assert!(
            line(&text, place).contains(words),
            "{words}: {}\n{text}",
            line(&text, place)
        );
    }
    assert!(text.ends_with("12 errors; nothing was started\n"), "{text}");
    assert!(text.contains("\n6 | backlag = 5\n  | ^^^^^^^"), "{text}");
}

#[test]
fn units_that_do_not_fit_together_are_refused_and_nothing_is_bound() {
    let text = refused(
        r#"
[socket.a]
listen = "127.0.0.1:8123"
[socket.b]
listen = "127.0.0.1:8123"
[socket.file]
listen = "DIR/file"
user = "no-such-user"
[socket.file2]
listen = "DIR/file"
[watcher.one]
cmd = "PROBE serve $(circus.socket.aa)"
after = ["two"]
user = "nobdy"
[watcher.two]
cmd = "PROBE serve $(circus.sokcet.a)"
after = ["three"]
sockets = ["nothing"]
[watcher.three]
cmd = "PROBE sleep"
requires = ["one"]
group = "no-such-group"
[watcher.four]
cmd = "PROBE sleep"
after = ["fore"]
"#,
    );
    for words in [
        "127.0.0.1:8123",
        "`no-such-user`",
        "`no-such-group`",
        "nobdy",
        "circus.socket.aa",
        "sokcet",
        "`nothing`",
        "unknown watcher `fore`",
    ] {
        assert!(text.contains(words), "no {words} in:\n{text}");
    }
    let cycle = text
        .lines()
        .find(|line| line.contains("one") && line.contains("two") && line.contains("three"));
    assert!(cycle.is_some(), "no cycle in:\n{text}");
}

#[test]
fn a_name_that_two_files_define_is_refused_with_both_places() {
    let dir = folder();
    std::fs::write(
        dir.path().join("a.toml"),
        "[watcher.web]\ncmd = \"sleep 1\"\n",
    )
    .unwrap();
    std::fs::write(
        dir.path().join("b.toml"),
        "\n[watcher.WEB]\ncmd = \"sleep 2\"\n",
    )
    .unwrap();
    let (output, left) = on_folder("run", dir.path());
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("b.toml:2:") && text.contains("a.toml"),
        "{text}"
    );
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn check_and_plan_say_what_is_wrong_and_exit_with_it() {
    let dir = folder();
    let run = |args: &[&str], units: &str| -> (Option<i32>, String, String) {
        let path = write_units(dir.path(), units);
        let output = bounded(command(dir.path()).args(args).arg(path));
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        (output.status.code(), stdout, stderr(&output))
    };
    let good = "[socket.a]\nlisten = \"127.0.0.1:0\"\n[watcher.a]\ncmd = \"PROBE serve $(circus.socket.a)\"\n";
    let unused = "[socket.a]\nlisten = \"127.0.0.1:0\"\n";
    let bad = "[watcher.a]\ncmnd = \"x\"\n";
    assert_eq!(run(&["check"], good).0, Some(0));
    assert_eq!(run(&["check", "--strict"], good).0, Some(0));
    let (code, _, text) = run(&["check"], unused);
    assert_eq!(code, Some(0));
    assert!(text.contains("units.toml:1:1: warning: "), "{text}");
    assert_eq!(run(&["check", "--strict"], unused).0, Some(1));
    let (code, _, text) = run(&["check"], bad);
    assert_eq!(code, Some(1));
    assert!(text.contains("did you mean `cmd`?"), "{text}");
    let (code, out, text) = run(&["check", "--json"], bad);
    assert_eq!(code, Some(1), "{text}");
    let findings: Value = serde_json::from_str(&out).expect("is JSON");
    assert!(findings.to_string().contains("cmnd"), "{findings}");

    let (code, out, _) = run(&["plan"], good);
    assert_eq!(code, Some(0));
    assert!(out.contains("serve 3"), "{out}");
    let (code, out, _) = run(&["plan", "--json"], good);
    assert_eq!(code, Some(0));
    let plan: Value = serde_json::from_str(&out).expect("is JSON");
    assert!(plan.to_string().contains("\"serve\",\"3\""), "{plan}");
    let (code, out, text) = run(&["plan"], bad);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(text.contains("did you mean `cmd`?"), "{text}");
    assert_eq!(files(dir.path()), ["units.toml"]);
}

#[test]
fn a_second_manager_on_the_same_control_socket_is_refused() {
    let manager = Manager::start("[watcher.a]\ncmd = \"PROBE sleep\"\n");
    let workers = manager.pids("a");
    let dir = folder();
    let path = write_units(
        dir.path(),
        "[socket.b]\nlisten = \"DIR/b\"\n[watcher.b]\ncmd = \"PROBE sleep\"\n",
    );
    let output = bounded(command(manager.dir.path()).arg("run").arg(path));
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&format!("(pid {})", manager.manager_pid())),
        "{text}"
    );
    assert!(text.contains("--control"), "{text}");
    assert_eq!(files(dir.path()), ["units.toml"]);
    assert_eq!(manager.pids("a"), workers);
}

#[test]
fn a_command_that_can_not_be_executed_leaves_its_reason_and_disturbs_nobody() {
    let manager = spawn_by_script(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.missing]
        cmd = "DIR/missing"
        [watcher.unknown]
        cmd = "no-such-program-anywhere"
        [watcher.plain]
        cmd = "DIR/plain"
        [watcher.folder]
        cmd = "DIR"
        [watcher.script]
        cmd = "DIR/script"
        [watcher.interpreter]
        cmd = "DIR/interpreter"
        [watcher.empty]
        cmd = "DIR/empty"
        [watcher.place]
        cmd = "PROBE sleep"
        working_dir = "DIR/missing"
        [watcher.input]
        cmd = "PROBE sleep"
        stdin = "DIR/missing"
        [watcher.output]
        cmd = "PROBE sleep"
        stdout = { file = "DIR/missing/log" }
        [watcher.given-up]
        cmd = "DIR/missing"
        max_retry = 3
        restart_delay = "10ms"
        [watcher.crashes]
        cmd = "PROBE exit 7"
        type = "notify"
        max_retry = 2
        restart_delay = "10ms"
        "#,
        r#"dir=$(dirname "$NOTIFY_SOCKET"); cd "$dir"
           echo 'exit 0' > script; chmod 755 script
           printf '#!/no/such/shell\nexit 0\n' > interpreter; chmod 755 interpreter
           : > empty; chmod 755 empty
           echo plain > plain; chmod 644 plain
           exec "$@""#,
        |_| {},
    );
    let address = poll(|| {
        let stream = UnixStream::connect(manager.path("control")).ok()?;
        drop(stream);
        manager.socket("web")["address"].as_str().map(str::to_owned)
    });
    let address = address.expect("a control socket");
    let web = ask(&address, "pid");
    for (name, reason) in [
        ("missing", "No such file or directory"),
        ("unknown", "no-such-program-anywhere"),
        ("plain", "Permission denied"),
        ("folder", ""),
        ("script", "Exec format error"),
        ("interpreter", "/no/such/shell"),
        ("empty", "Exec format error"),
        ("place", "chdir"),
        ("input", "stdin"),
        ("output", "stdout"),
    ] {
        let status = manager.wait_for_state(name, "backoff");
        let error = status["error"].as_str().expect("a reason");
        assert!(error.contains(reason), "{name}: {error}");
        assert!(error.contains("could not be started"), "{name}: {error}");
        assert_eq!(status["workers"], json!([]), "{name}");
    }
    for (name, reason) in [
        ("given-up", "No such file"),
        ("crashes", "exited with code 7"),
    ] {
        let status = manager.wait_for_state(name, "failed");
        assert!(
            status["error"].as_str().unwrap().contains(reason),
            "{status}"
        );
    }
    let output = manager.cli(&["start", "missing"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("`missing`") && text.contains("No such file or directory"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    let output = manager.cli(&["start", "given-up"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let output = manager.cli(&["start", "nobody"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));

    // Nine programs that can't run: the manager tries at most so often as their delays allow, and answers meanwhile.
    let busy = cpu_ticks(manager.pid());
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        assert_eq!(ask(&address, "pid"), web);
    }
    assert!(cpu_ticks(manager.pid()) - busy < 20, "it spins");

    std::fs::write(manager.path("missing"), "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(manager.path("missing"), PermissionsExt::from_mode(0o755)).unwrap();
    manager.ok(&["start", "given-up"]);
    manager.wait_for_state("missing", "running");
    assert_eq!(ask(&address, "pid"), web);
}

/// The processor time that a process has used, in ticks of 10 ms.
fn cpu_ticks(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

const ONE: &str = "[watcher.a]\ncmd = \"PROBE sleep\"\n";

#[test]
fn garbage_on_the_control_socket_is_answered_with_an_error_or_cut_off() {
    let manager = Manager::start(ONE);
    let workers = manager.pids("a");
    let noise: Vec<u8> = (0u32..5000)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let long = vec![b'x'; 1 << 20];
    let deep = [vec![b'['; 30_000], vec![0]].concat();
    let messages: [&[u8]; 14] = [
        b"\0",
        b"{}\0",
        b"null\0",
        b"[]\0",
        b"\"io.tentpole.Manager.Status\"\0",
        b"{\"method\":7}\0",
        b"{\"method\":\"io.tentpole.Manager.Sttus\"}\0",
        b"{\"method\":\"\"}\0",
        b"{\"method\":\"io.tentpole.Manager.Stop\",\"parameters\":{\"names\":7}}\0",
        b"{\"method\":\"io.tentpole.Manager.Scale\",\"parameters\":{\"name\":\"a\",\"numprocesses\":-99999999999999999999}}\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\0",
        &noise,
        &long,
        &deep,
    ];
    for message in messages {
        let mut stream = manager.connect();
        // It may be cut off in the middle.
        let _ = stream.write_all(message);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        let shown = String::from_utf8_lossy(&message[..message.len().min(100)]).into_owned();
        if end.is_ok() && message.ends_with(b"\0") {
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.contains("\"error\""), "{shown}: {text}");
        }
        assert_eq!(manager.watcher("a")["state"], "running", "after {shown}");
    }
    assert_eq!(manager.pids("a"), workers);
}

#[test]
fn a_message_may_come_byte_by_byte_and_several_at_once() {
    let manager = Manager::start(ONE);
    let mut slow = manager.connect();
    let message = b"{\"method\":\"io.tentpole.Manager.Status\"}\0";
    for byte in message {
        slow.write_all(&[*byte]).unwrap();
    }
    slow.write_all(&message.repeat(3)).unwrap();
    let mut reader = BufReader::new(slow);
    for _ in 0..4 {
        let reply = receive(&mut reader).expect("a reply");
        assert_eq!(reply["parameters"]["watchers"][0]["name"], "a");
    }
}

#[test]
fn many_idle_half_and_slow_clients_do_not_lock_others_out() {
    let manager = Manager::start(ONE);
    let mut clients = Vec::new();
    for number in 0..300 {
        let mut client = manager.connect();
        match number % 3 {
            0 => {}
            1 => client.write_all(b"{\"method\":\"io.tent").unwrap(),
            // Asks again and again, and never reads.
            _ => {
                client
                    .set_write_timeout(Some(Duration::from_millis(20)))
                    .unwrap();
                let message = b"{\"method\":\"io.tentpole.Manager.Status\"}\0".repeat(200);
                let _ = client.write_all(&message);
            }
        }
        clients.push(client);
    }
    let text = manager.ok(&["status"]);
    assert!(text.contains("running"), "{text}");
    manager.ok(&["restart", "a"]);
    drop(clients);
    let gone = poll(|| {
        (files(Path::new(&format!("/proc/{}/fd", manager.pid()))).len() < 30).then_some(())
    });
    assert!(gone.is_some(), "connections are left open");
    manager.ok(&["status"]);
}

#[test]
fn a_client_that_dies_in_a_long_command_leaves_it_running() {
    let manager = Manager::start(
        r#"
        [watcher.slow]
        cmd = ["sh", "-c", "while ! test -e DIR/go; do sleep 0.01; done; exec PROBE notify READY=1"]
        type = "notify"
        notify_access = "all"
        autostart = false
        [watcher.other]
        cmd = "PROBE sleep"
        "#,
    );
    let mut doomed = manager.connect();
    let call = json!({"method": "io.tentpole.Manager.Start", "parameters": {"names": ["slow"]}, "more": true});
    send(&mut doomed, &call);
    manager.wait_for_state("slow", "starting");
    let mut patient = manager.connect();
    send(&mut patient, &call);
    drop(doomed);
    // A slow command holds up nobody.
    manager.ok(&["restart", "other"]);
    assert_eq!(manager.watcher("slow")["state"], "starting");
    std::fs::write(manager.path("go"), "").unwrap();
    let mut reader = BufReader::new(patient);
    let last = std::iter::from_fn(|| receive(&mut reader)).find(|reply| reply["continues"] != true);
    let last = last.expect("an answer");
    assert!(last["error"].is_null(), "{last}");
    assert_eq!(manager.watcher("slow")["state"], "running");
}

#[test]
fn floods_on_the_notify_socket_neither_stop_nor_change_anything() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.flood]
        cmd = "PROBE flood"
        type = "exec"
        watchdog = "1h"
        numprocesses = 2
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.notify]
        cmd = "PROBE notify READY=1;STATUS=fine"
        type = "notify"
        "#,
    );
    let (flood, notify) = (manager.pids("flood"), manager.pids("notify"));
    let web = manager.pids("web");
    // A stranger's messages are nobody's, whatever they say.
    let name = environment(notify[0])["NOTIFY_SOCKET"].clone();
    let address =
        SocketAddr::from_abstract_name(name.strip_prefix('@').expect("is abstract")).unwrap();
    let stranger = UnixDatagram::unbound().unwrap();
    stranger.set_write_timeout(Some(DEADLINE)).unwrap();
    for _ in 0..200 {
        for text in [
            "STATUS=stolen",
            "STOPPING=1",
            "MAINPID=1\nREADY=1",
            "WATCHDOG=trigger",
            "",
        ] {
            stranger.send_to_addr(text.as_bytes(), &address).unwrap();
        }
    }
    if is_root() {
        let mut other = Command::new(support::probe());
        // The test program stands where another user may not look: it is this one that sends, as nobody.
        let target = address.clone();
        let sender = UnixDatagram::unbound().unwrap();
        unsafe {
            other.uid(65534).gid(65534).pre_exec(move || {
                for _ in 0..100 {
                    let _ = sender.send_to_addr(b"STOPPING=1\nSTATUS=stolen", &target);
                }
                Ok(())
            });
        }
        let _ = other.args(["exit", "0"]).status();
    }
    // Two workers, and the first of each in ten seconds.
    let told = manager
        .log()
        .lines()
        .filter(|line| line.contains("watcher.flood: worker"))
        .count();
    assert!(told < 40, "{told} lines of log");
    for _ in 0..10 {
        let began = Instant::now();
        let status = manager.status();
        assert!(began.elapsed() < DEADLINE / 4, "{:?}", began.elapsed());
        assert!(!status.to_string().contains("stolen"), "{status:#}");
    }
    manager.wait_for("notify", "said so", |status| {
        status["workers"][0]["status"] == "fine"
    });
    assert_eq!(ask(&manager.address("web"), "pid"), web[0].to_string());
    assert_eq!(manager.pids("flood"), flood);
    assert_eq!(manager.pids("notify"), notify);
    manager.ok(&["stop", "flood"]);
    manager.ok(&["restart", "notify"]);
}

#[test]
fn without_descriptors_a_start_fails_clearly_and_recovers() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.many]
        cmd = "sleep 1000"
        numprocesses = 0
        restart_delay = "20ms"
        restart_max_delay = "200ms"
        "#,
    );
    let web = manager.pids("web");
    let address = manager.address("web");
    // From here on the manager gets no further descriptor but for those that it keeps back for clients.
    let pid = manager.manager_pid();
    let all = limit_descriptors(pid, None);
    let free = (0..).find(|fd| !Path::new(&format!("/proc/{pid}/fd/{fd}")).exists());
    limit_descriptors(pid, free);
    let output = manager.cli(&["scale", "many", "40"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("`many`") && text.contains("Too many open files"),
        "{text}"
    );
    let status = manager.watcher("many");
    assert!(
        status["error"]
            .as_str()
            .is_some_and(|error| error.contains("Too many open files")),
        "{status}"
    );
    assert!(line(&manager.log(), "Too many open files").contains("watcher.many"));
    let busy = cpu_ticks(manager.pid());
    let began = Instant::now();
    let mut asked = 0;
    while began.elapsed() < Duration::from_millis(500) {
        assert_eq!(ask(&address, "pid"), web[0].to_string());
        manager.status();
        asked += 1;
    }
    assert!(cpu_ticks(manager.pid()) - busy < 40, "it spins");
    assert!(asked > 3);
    limit_descriptors(pid, Some(all));
    manager.wait_for("many", "came up", |status| status["ready"] == 40);
    assert_eq!(manager.pids("web"), web);
}

/// Sets the soft limit of open files of a process, if there is one to be set; the answer is what it was.
fn limit_descriptors(pid: i32, limit: Option<u64>) -> u64 {
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let got = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut before) };
    assert_eq!(got, 0, "prlimit");
    if let Some(limit) = limit {
        let after = libc::rlimit {
            rlim_cur: limit,
            ..before
        };
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &after, std::ptr::null_mut()) };
        assert_eq!(set, 0, "prlimit");
    }
    before.rlim_cur
}

#[test]
fn without_processes_a_start_fails_clearly_and_recovers() {
    if !is_root() {
        return leave_out("only root becomes a user without other processes");
    }
    // A user id of its own, since the kernel counts the processes of a user everywhere.
    let uid = 4_000_000 + std::process::id();
    let manager = Manager::start(&format!(
        r#"
        [watcher.many]
        cmd = "sleep 1000"
        user = {uid}
        group = 65534
        numprocesses = 5
        rlimits = {{ nproc = 3 }}
        restart_delay = "20ms"
        restart_max_delay = "200ms"
        autostart = false
        [watcher.other]
        cmd = "PROBE sleep"
        "#
    ));
    let other = manager.pids("other");
    let output = manager.cli(&["start", "many"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("`many`") && text.contains("Resource temporarily unavailable"),
        "{text}"
    );
    let status = manager.wait_for_state("many", "backoff");
    // The kernel lets the last one through when it looks before it counts.
    assert!(
        [3, 4].contains(&status["ready"].as_u64().unwrap()),
        "{status}"
    );
    manager.ok(&["scale", "many", "3"]);
    manager.wait_for_state("many", "running");
    assert_eq!(manager.pids("other"), other);
}

#[test]
fn a_manager_that_may_not_fork_says_so_and_goes_on() {
    if !is_root() {
        return leave_out("only root becomes a user without other processes");
    }
    let uid = 5_000_000 + std::process::id();
    let manager = Manager::spawn_with(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "sleep 1000"
        sockets = ["web"]
        numprocesses = 4
        restart_delay = "20ms"
        restart_max_delay = "100ms"
        "#,
        |command| {
            let notify = command
                .get_envs()
                .find(|(name, _)| *name == "NOTIFY_SOCKET");
            let notify = notify
                .and_then(|(_, path)| path)
                .expect("a path")
                .to_owned();
            let dir = Path::new(&notify).parent().expect("a folder").to_owned();
            for path in [dir.clone(), dir.join("units.toml"), dir.join("notify")] {
                std::os::unix::fs::chown(&path, Some(uid), Some(65534)).expect("chown");
            }
            unsafe {
                command.uid(uid).gid(65534).pre_exec(|| {
                    let limit = libc::rlimit {
                        rlim_cur: 4,
                        rlim_max: 4,
                    };
                    if libc::setrlimit(libc::RLIMIT_NPROC, &limit) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    Ok(())
                });
            }
        },
    );
    let answers = poll(|| UnixStream::connect(manager.path("control")).ok());
    assert!(answers.is_some(), "{}", manager.log());
    let status = manager.wait_for("web", "may not fork", |web| {
        web["state"] == "backoff" && web["ready"] == 2
    });
    let error = status["error"].as_str().unwrap();
    assert!(
        error.contains("Resource temporarily unavailable"),
        "{error}"
    );
    manager.ok(&["scale", "web", "1"]);
    manager.wait_for_state("web", "running");
    manager.wait_for_notice("READY=1");
}

#[test]
fn a_manager_whose_port_is_taken_starts_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = refused(&format!(
        "[socket.a]\nlisten = \"DIR/a\"\n[socket.b]\nlisten = \"{}\"\n[watcher.w]\ncmd = \"touch DIR/started\"\nsockets = [\"a\", \"b\"]\n",
        taken.local_addr().unwrap()
    ));
    assert!(
        text.contains(&format!("(pid {})", std::process::id())),
        "{text}"
    );
    assert!(text.contains("socket `b`"), "{text}");
}

#[test]
fn a_unit_with_a_mistake_hides_none_of_another_s() {
    let dir = support::folder();
    let path = support::write_units(
        dir.path(),
        r#"
        [socket.web]
        listen = "127.0.0.1:99999"
        [watcher.a]
        cmd = "x $(circus.socket.web)"
        sockets = ["web", "nope"]
        after = ["b"]
        [watcher.b]
        cmd = "x"
        numproceses = 3
        "#,
    );
    let output = support::bounded(support::command(dir.path()).arg("check").arg(&path));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for mistake in ["99999", "`numproceses`", "unknown socket `nope`"] {
        assert!(text.contains(mistake), "{mistake} is not in:\n{text}");
    }
    // What refers to a unit that is there, if with mistakes, is none.
    for innocent in ["unknown socket `web`", "unknown watcher `b`"] {
        assert!(!text.contains(innocent), "{innocent} is in:\n{text}");
    }
}

/// What `check` says of these files, without the lines of the files themselves.
fn checked(files: &[(&str, &str)]) -> Vec<String> {
    let dir = folder();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let (output, _) = on_folder("check", dir.path());
    let prefix = format!("{}/", dir.path().display());
    let text = stderr(&output);
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_mistake_hides_no_other_of_its_unit() {
    let found = checked(&[(
        "a.toml",
        "[socket.web]\nlisten = \"127.0.0.1:8000\"\nbacklag = 5\n\
         [socket.twin]\nlisten = \"127.0.0.1:8000\"\n[watcher.web]\n\
         cmd = \"x $(circus.bogus) $(circus.socket.wbe)\"\nnumproceses = 2\nuser = \"no-such-user\"\nafter = [\"db\"]\n",
    )]);
    let wanted = [
        "a.toml:2:10: sockets `web` and `twin` both listen on `127.0.0.1:8000`",
        "a.toml:3:1: unknown key `backlag` in `[socket]`; did you mean `backlog`?",
        "a.toml:7:10: watcher `web`: unknown substitution `$(circus.bogus)`",
        "a.toml:7:26: watcher `web`: unknown socket `wbe` in `$(circus.socket.wbe)`; did you mean `web`?",
        "a.toml:8:1: unknown key `numproceses` in `[watcher]`; did you mean `numprocesses`?",
        "a.toml:9:8: watcher `web`: unknown user `no-such-user`",
        "a.toml:10:10: unknown watcher `db` in `after` of watcher `web`",
    ];
    for wanted in wanted {
        let is_told = found.iter().any(|line| line.starts_with(wanted));
        assert!(is_told, "{wanted} is not in {found:#?}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

#[test]
fn what_may_only_follow_from_a_mistake_is_not_reported() {
    for (text, wanted) in [
        ("[watcher.a]\ncommand = \"x\"\n", "unknown key `command`"),
        (
            "[socket.s]\nlisen = 80\n[watcher.a]\ncmd = \"x $(circus.socket.s)\"\n",
            "unknown key `lisen`",
        ),
        (
            "[socket.s]\nhost = \"::1\"\nprt = 80\n[watcher.a]\ncmd = \"x $(circus.socket.s)\"\n",
            "unknown key `prt`",
        ),
        (
            "[watcher.a]\ncmd = \"x $(circus.nice)\"\nnice = \"much\"\n",
            "`nice` of",
        ),
        (
            "[watcher.a]\ncmd = \"x $(circus.env.X_Y)\"\nenv = { X_Y = [] }\n",
            "`env.X_Y` of",
        ),
        (
            "[watcher.a]\ncmd = \"x $(circus.env.X_Y)\"\nenv_fil = \"e\"\n",
            "unknown key `env_fil`",
        ),
        (
            "[manager]\nenv = { X_Y = [] }\n[watcher.a]\ncmd = \"x $(circus.env.X_Y)\"\n",
            "`env.X_Y` of",
        ),
        (
            "[watcher.a]\ncmd = \"x\"\non_demand = true\nsockets = 5\n",
            "`sockets` of",
        ),
        (
            "[watcher.a]\ncmd = \"x\"\non_demand = true\nsockets = [\"s\"]\n",
            "unknown socket `s`",
        ),
        (
            "[watcher.a]\ncmd = \"cat <<E\\n don't\\nE\"\nshell = \"yes\"\n",
            "`shell` of",
        ),
        ("[watcher.a]\ncmd = \"\"\nnice = 0\n", "`cmd` of"),
        (
            "[watcher.a]\ncmd = \"x\"\nuser = 54321\ngrup = 5\n",
            "unknown key `grup`",
        ),
        (
            "[socket.a]\nlisten = 80\ninterfac = \"x\"\n[socket.b]\nlisten = 80\n[watcher.w]\ncmd = \"x\"\nuse_sockets = true\n",
            "unknown key `interfac`",
        ),
        (
            "[watcher.w]\ncmd = \"x\"\nuse_sockets = true\nsockets = []\nsingleton = true\n",
            "`use_sockets`",
        ),
        (
            "[socket.\"a:b\"]\nlisten = 80\n[watcher.w]\ncmd = \"x\"\nuse_sockets = true\n",
            "`:` in its name",
        ),
        (
            "[watchr.c]\ncmd = \"x\"\n[watcher.w]\ncmd = \"x\"\nafter = [\"c\"]\n",
            "unknown table `[watchr]`",
        ),
        (
            "[socket]\nc = 5\n[watcher.w]\ncmd = \"x $(circus.socket.c)\"\n",
            "needs a name",
        ),
        (
            "[socket.c\n[watcher.w]\ncmd = \"x $(circus.socket.c)\"\n",
            "unclosed table",
        ),
    ] {
        let found = checked(&[("a.toml", text)]);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].contains(wanted), "{text}: {found:#?}");
    }
}

#[test]
fn a_file_that_is_half_written_hides_no_sure_mistake_of_another() {
    let b = "[watcher.b]\ncmd = \"x $(circus.bogus) $(circus.socket.c)\"\nuser = \"no-such-user\"\nafter = [\"c\"]\n";
    let sure = [
        "b.toml:2:10: watcher `b`: unknown substitution",
        "b.toml:3:8: watcher `b`: unknown user",
    ];
    for (name, text, own) in [
        ("a.toml", "[watcher.c", "a.toml:1:11: unclosed table"),
        (
            "a.toml",
            "[watcher.c]\ncmd = \"x $(circus.nonsense)\"\nnice = x\n",
            "a.toml:2:10: watcher `c`: unknown substitution",
        ),
        ("a.toml", "", "a.toml: an empty file"),
        (
            "b.toml.d/x.toml",
            "[watcher.c",
            "b.toml.d/x.toml:1:11: unclosed table",
        ),
    ] {
        let found = checked(&[(name, text), ("b.toml", b)]);
        for wanted in sure.iter().chain([&own]) {
            let is_told = found.iter().any(|line| line.starts_with(wanted));
            assert!(is_told, "{wanted} is not in {found:#?}");
        }
        let is_unsure =
            |line: &String| line.contains("unknown socket") || line.contains("unknown watcher");
        assert!(!found.iter().any(is_unsure), "{found:#?}");
    }
    // A warning hides nothing at all.
    let found = checked(&[
        ("zz.toml.d/x.toml", "[watcher.c]\ncmd = \"x\"\n"),
        ("a.toml", "[watcher.a]\ncmd = \"x\"\nbogus = 1\n"),
        ("b.toml", b),
    ]);
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn a_file_of_nothing_but_mistakes_is_told_of_in_short() {
    const KEYS: usize = 100_000;
    let manager = Manager::start("[watcher.w]\ncmd = \"PROBE sleep\"\n");
    let mut units = "[watcher.w]\ncmd = \"PROBE sleep\"\n".to_owned();
    units.extend((0..KEYS).map(|number| format!("k{number} = 1\n")));
    write_units(&manager.path(""), &units);
    let path = manager.path("units.toml");
    for args in [&["apply"][..], &["check", path.to_str().unwrap()]] {
        let output = manager.cli(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let of_keys = text.matches("unknown key `k").count();
        assert_eq!(of_keys, 100, "{args:?}");
        let rest = format!("and {} more errors of this file", KEYS - 100);
        assert!(text.contains(&rest), "{args:?}: {text}");
    }
    assert_eq!(manager.watcher("w")["state"], "running");
}

#[test]
fn of_very_many_mistakes_the_first_of_the_file_are_shown_and_all_are_counted() {
    let dir = folder();
    // Those of the first pass, and those of the second, which takes units in order of name too.
    for (line, mistake) in [
        ("foo = 1", "unknown key `foo`"),
        ("after = [\"foo\"]", "unknown watcher `foo`"),
    ] {
        let unit = |n| format!("[watcher.w{n}]\ncmd = \"x\"\n{line}\n");
        write_units(dir.path(), &(1..=300).map(unit).collect::<String>());
        let (output, _) = on_folder("check", dir.path());
        let text = stderr(&output);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(mistake)).collect();
        assert_eq!(lines.len(), 100, "{text}");
        for (n, told) in lines.iter().enumerate() {
            let place = format!("units.toml:{}:", 3 * n + 3);
            assert!(told.contains(&place), "{told}: {place}");
        }
        assert!(text.contains("and 200 more errors of this file"), "{text}");
        let summary = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(summary.contains(", 300 errors"), "{summary}");
    }
}

#[test]
fn an_env_file_that_is_no_file_is_refused() {
    let dir = folder();
    let fifo = bounded(Command::new("mkfifo").arg(dir.path().join("fifo")));
    assert!(fifo.status.success());
    for (env_file, why) in [
        ("./fifo", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (".", "directory"),
    ] {
        let units = format!("[watcher.w]\ncmd = \"sleep 1000\"\nenv_file = \"{env_file}\"\n");
        write_units(dir.path(), &units);
        let (output, _) = on_folder("plan", dir.path());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{env_file}: {text}");
        assert!(text.contains("env_file"), "{env_file}: {text}");
        assert!(text.contains(why) || env_file == ".", "{env_file}: {text}");
    }
}
