//! Sockets: what is bound, how it reaches the workers, and that it stays.

mod support;

use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::lives::listeners;
use support::{
    DEADLINE, Manager, ask, assert_fds, begin, bounded, environment, fd_of, fd_target, files,
    finish, folder, freeze, is_root, kill, leave_out, pass_fds, poll, process_status, refused,
    refused_in, spawn_by_script, wait_until_dead, write_units,
};

/// A watcher `web` with such lines, whose workers serve a shard of the socket `web` each.
fn sharded(lines: &str) -> Manager {
    Manager::start(&format!(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        so_reuseport = true
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        {lines}
        "#
    ))
}

#[test]
fn a_worker_gets_its_socket_at_fd_3_and_answers_on_it() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        "#,
    );
    let address = manager.address("web");
    assert_eq!(ask(&address, "fds"), "0 1 2 3");
    assert_eq!(ask(&address, "env LISTEN_FDNAMES"), "web");
    assert_eq!(ask(&address, "env LISTEN_PID"), ask(&address, "pid"));
}

#[test]
fn stream_sockets_answer_on_each_family_and_a_bare_port_on_both() {
    let manager = Manager::start(
        r#"
        [socket.v4]
        listen = "127.0.0.1:0"
        [socket.v6]
        listen = "[::1]:0"
        [socket.both]
        listen = "0"
        [socket.only-v4]
        listen = "0"
        family = "inet"
        [socket.name]
        host = "localhost"
        port = 0
        [socket.name-v6]
        listen = "localhost:0"
        family = "AF_INET6"
        type = "SOCK_STREAM"
        [watcher.v4]
        cmd = "PROBE serve $(circus.socket.v4)"
        [watcher.v6]
        cmd = "PROBE serve $(circus.socket.v6)"
        [watcher.both]
        cmd = "PROBE serve $(circus.socket.both)"
        [watcher.only-v4]
        cmd = "PROBE serve $(circus.socket.only-v4)"
        [watcher.name]
        cmd = "PROBE serve $(circus.socket.name)"
        [watcher.name-v6]
        cmd = "PROBE serve $(circus.socket.name-v6)"
        "#,
    );
    let answers = |socket: &str, host: &str| {
        let port = port(&manager.address(socket));
        let pid = manager.pids(socket)[0].to_string();
        assert_eq!(
            ask(&format!("{host}:{port}"), "pid"),
            pid,
            "{socket} on {host}"
        );
    };
    answers("v4", "127.0.0.1");
    answers("v6", "[::1]");
    answers("both", "127.0.0.1");
    answers("both", "[::1]");
    answers("only-v4", "127.0.0.1");
    answers("name", "127.0.0.1");
    answers("name-v6", "[::1]");
    let closed = format!("[::1]:{}", port(&manager.address("only-v4")));
    assert!(TcpStream::connect(closed).is_err());
    assert!(manager.address("v4").starts_with("127.0.0.1:"));
    assert!(manager.address("v6").starts_with("[::1]:"));
    assert!(manager.address("both").starts_with("[::]:"));
    assert_ne!(port(&manager.address("both")), 0);
}

#[test]
fn every_type_of_socket_answers_on_paths_abstract_names_and_ports() {
    let manager = Manager::start(
        r#"
        [socket.stream]
        listen = "DIR/stream"
        [socket.seqpacket]
        path = "DIR/seqpacket"
        type = "seqpacket"
        [socket.dgram]
        listen = "DIR/dgram"
        type = "dgram"
        [socket.abstract]
        listen = "@DIR/stream"
        [socket.abstract-dgram]
        listen = "@DIR/dgram"
        type = "dgram"
        [socket.udp]
        listen = "127.0.0.1:0"
        type = "dgram"
        [socket.udp-both]
        listen = "0"
        type = "SOCK_DGRAM"
        [watcher.stream]
        cmd = "PROBE answer $(circus.socket.stream)"
        [watcher.seqpacket]
        cmd = "PROBE answer $(circus.socket.seqpacket)"
        [watcher.dgram]
        cmd = "PROBE echo $(circus.socket.dgram)"
        [watcher.abstract]
        cmd = "PROBE answer $(circus.socket.abstract)"
        [watcher.abstract-dgram]
        cmd = "PROBE echo $(circus.socket.abstract-dgram)"
        [watcher.udp]
        cmd = "PROBE echo $(circus.socket.udp)"
        [watcher.udp-both]
        cmd = "PROBE echo $(circus.socket.udp-both)"
        "#,
    );
    let dir = manager
        .path("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned();
    let path = |name: &str| SockAddr::unix(manager.path(name)).unwrap();
    let hidden = |name: &str| SockAddr::unix(format!("\0{dir}/{name}")).unwrap();
    for (name, kind, address) in [
        ("stream", Type::STREAM, path("stream")),
        ("seqpacket", Type::SEQPACKET, path("seqpacket")),
        ("abstract", Type::STREAM, hidden("stream")),
    ] {
        let client = Socket::new(Domain::UNIX, kind, None).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.connect(&address).unwrap();
        assert_eq!(
            received(&client),
            manager.pids(name)[0].to_string(),
            "{name}"
        );
        assert_eq!(
            manager.socket(name)["type"],
            if name == "seqpacket" { name } else { "stream" }
        );
    }
    for (name, address) in [
        ("dgram", path("dgram")),
        ("abstract-dgram", hidden("dgram")),
    ] {
        let client = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.bind(&path(&format!("client-{name}"))).unwrap();
        client.send_to(b"hello", &address).unwrap();
        assert_eq!(
            received(&client),
            format!("{} hello", manager.pids(name)[0])
        );
        assert_eq!(manager.socket(name)["type"], "dgram");
    }
    for (name, host) in [
        ("udp", "127.0.0.1"),
        ("udp-both", "127.0.0.1"),
        ("udp-both", "[::1]"),
    ] {
        let client = UdpSocket::bind(format!("{host}:0")).unwrap();
        let to = format!("{host}:{}", port(&manager.address(name)));
        assert_eq!(
            ask_udp(&client, &to, "hello"),
            format!("{} hello", manager.pids(name)[0])
        );
    }
    assert_eq!(manager.address("stream"), format!("{dir}/stream"));
    assert_eq!(manager.address("abstract"), format!("@{dir}/stream"));
}

#[test]
fn a_unix_socket_has_the_mode_that_was_asked_for_whatever_the_umask() {
    let manager = spawn_by_script(
        r#"
        [socket.a-default]
        listen = "DIR/default"
        [socket.b-mode]
        listen = "DIR/mode"
        mode = "0640"
        [socket.c-umask]
        listen = "DIR/umask"
        umask = "0117"
        [socket.d-both]
        listen = "DIR/both"
        umask = "0777"
        mode = 0o602
        [socket.e-deep]
        listen = "DIR/made/deep/socket"
        directory_mode = "0751"
        [socket.f-dgram]
        listen = "DIR/dgram"
        type = "dgram"
        mode = "0600"
        [watcher.all]
        cmd = "PROBE sleep"
        use_sockets = true
        "#,
        r#"umask 027; exec "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let mode = |name: &str| mode_of(&manager.path(name));
    assert_eq!(mode("default"), 0o666);
    assert_eq!(mode("mode"), 0o640);
    assert_eq!(mode("umask"), 0o660);
    assert_eq!(mode("both"), 0o602);
    assert_eq!(mode("made"), 0o751);
    assert_eq!(mode("made/deep"), 0o751);
    assert_eq!(mode("made/deep/socket"), 0o666);
    assert_eq!(mode("dgram"), 0o600);
    assert_eq!(mode("control"), 0o600);
}

#[test]
fn a_unix_socket_has_the_owner_that_was_asked_for() {
    if !is_root() {
        return leave_out("only root gives files away");
    }
    let manager = Manager::start(
        r#"
        [socket.user]
        listen = "DIR/user"
        user = "nobody"
        [socket.group]
        listen = "DIR/group"
        group = "daemon"
        mode = "0660"
        [socket.both]
        listen = "DIR/both"
        user = 12345
        group = 54321
        [watcher.all]
        cmd = "PROBE sleep"
        use_sockets = true
        "#,
    );
    let owner = |name: &str| {
        let metadata = std::fs::metadata(manager.path(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    let id = |flag: &str, name: &str| -> u32 {
        let output = bounded(Command::new("id").args([flag, name]));
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    assert_eq!(owner("user").0, id("-u", "nobody"));
    assert_eq!(owner("group"), (0, id("-g", "daemon")));
    assert_eq!(owner("both"), (12345, 54321));
}

#[test]
fn names_backlog_interface_and_blocking_are_as_asked() {
    let manager = Manager::start(
        r#"
        [socket.a]
        listen = "127.0.0.1:0"
        backlog = 7
        fd_name = "first"
        [socket.b]
        listen = "DIR/b"
        backlog = 5
        blocking = false
        [socket.c]
        listen = "127.0.0.1:0"
        interface = "lo"
        fd_name = "first"
        [socket.d]
        listen = "127.0.0.1:0"
        type = "dgram"
        blocking = false
        [watcher.all]
        cmd = "PROBE sleep"
        sockets = ["a", "b", "c", "d"]
        "#,
    );
    assert_eq!(manager.socket("a")["queue_limit"], 7);
    assert_eq!(manager.socket("b")["queue_limit"], 5);
    assert_eq!(manager.socket("c")["queue_limit"], somaxconn().min(4096));
    let pid = manager.pids("all")[0];
    assert_eq!(environment(pid)["LISTEN_FDNAMES"], "first:b:first:d");
    let nonblocking: Vec<bool> = (3..7).map(|fd| is_nonblocking(pid, fd)).collect();
    assert_eq!(nonblocking, [false, true, false, true]);
    let device = |fd| Socket::from(fd_of(pid, fd)).device().unwrap();
    assert_eq!(device(3), None);
    assert_eq!(device(5), Some(b"lo".to_vec()));
}

#[test]
fn a_stale_socket_file_is_replaced_and_nothing_else_is() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    drop(UnixListener::bind(path("stale")).unwrap());
    let live = UnixListener::bind(path("live")).unwrap();
    live.set_nonblocking(true).unwrap();
    let live_dgram = UnixDatagram::bind(path("live-dgram")).unwrap();
    std::fs::write(path("file"), "precious").unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
    let sockets = |names: &[&str]| -> String {
        names
            .iter()
            .map(|name| format!("[socket.{name}]\nlisten = \"DIR/{name}\"\n"))
            .collect()
    };
    let all = ["stale", "live", "file", "folder", "link"];
    write_units(
        dir.path(),
        &format!(
            "{}type = \"dgram\"\n[socket.live-dgram]\nlisten = \"DIR/live-dgram\"\ntype = \"dgram\"",
            sockets(&all)
        ),
    );
    let text = refused_in_with_stale_replaced(&dir);
    let me = std::process::id();
    for (name, why) in [
        ("live", "in use by".to_owned()),
        ("live", format!("(pid {me})")),
        ("live-dgram", format!("(pid {me})")),
        ("file", "a file".to_owned()),
        ("folder", "a directory".to_owned()),
        ("link", "a symbolic link".to_owned()),
    ] {
        let line = line_of(&text, &format!("socket `{name}`:"));
        assert!(line.contains(&why), "{line}");
    }
    assert!(!text.contains("socket `stale`:"), "{text}");
    assert_eq!(std::fs::read_to_string(path("file")).unwrap(), "precious");
    assert!(path("link").is_symlink());
    drop(live_dgram);
    // Nobody has taken the live one: a client still gets to it.
    let _client = UnixStream::connect(path("live")).unwrap();
    assert!(poll(|| live.accept().ok()).is_some());

    drop(UnixListener::bind(path("again")).unwrap());
    write_units(
        dir.path(),
        &format!("{}replace = false", sockets(&["again"])),
    );
    let text = refused_in(&dir);
    assert!(text.contains("nobody listens on any more"), "{text}");
    assert!(text.contains("replace = true"), "{text}");
}

/// [`refused_in`], but for the stale socket: it may go.
fn refused_in_with_stale_replaced(dir: &tempfile::TempDir) -> String {
    let before = files(dir.path());
    let output = bounded(
        support::command(dir.path())
            .arg("run")
            .arg(dir.path().join("units.toml")),
    );
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let mut after = files(dir.path());
    if !after.iter().any(|name| name == "stale") {
        after.push("stale".to_owned());
        after.sort_unstable();
    }
    assert_eq!(after, before);
    text
}

#[test]
fn a_manager_takes_a_stale_socket_over_and_removes_what_it_is_told_to() {
    let dir = folder();
    let stale = dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let mut manager = Manager::start(&format!(
        r#"
        [socket.stale]
        listen = "{}"
        [socket.kept]
        listen = "DIR/kept"
        remove_on_stop = false
        [socket.dgram]
        listen = "DIR/dgram"
        type = "dgram"
        [watcher.stale]
        cmd = "PROBE answer $(circus.socket.stale)"
        "#,
        stale.display()
    ));
    let mut client = UnixStream::connect(&stale).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, manager.pids("stale")[0].to_string());
    assert!(manager.path("dgram").exists());
    assert_eq!(manager.stop().code(), Some(0));
    assert!(!stale.exists());
    assert!(!manager.path("dgram").exists());
    assert!(!manager.path("control").exists());
    let kept = std::fs::symlink_metadata(manager.path("kept")).unwrap();
    assert!(kept.file_type().is_socket());
}

#[test]
fn an_address_in_use_is_refused_with_its_owner_and_nothing_is_bound() {
    let dir = folder();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp6 = TcpListener::bind("[::1]:0").unwrap();
    let (tcp, udp) = (tcp.local_addr().unwrap(), (udp.local_addr().unwrap(), udp));
    write_units(
        dir.path(),
        &format!(
            "[socket.a]\nlisten = \"DIR/a\"\n[socket.tcp]\nlisten = \"{tcp}\"\n[socket.udp]\nlisten = \"{}\"\ntype = \"dgram\"\n[socket.tcp6]\nlisten = \"{}\"\n",
            udp.0,
            tcp6.local_addr().unwrap(),
        ),
    );
    let text = refused_in(&dir);
    for name in ["tcp", "udp", "tcp6"] {
        let line = line_of(&text, &format!("socket `{name}`:"));
        assert!(
            line.contains(&format!("(pid {})", std::process::id())),
            "{line}"
        );
    }
    assert!(!text.contains("socket `a`:"), "{text}");
    assert!(
        text.ends_with("\ntentpole: 3 errors; nothing was started\n"),
        "{text}"
    );
}

#[test]
fn an_optional_socket_is_bound_when_its_address_appears() {
    if !is_root() {
        return leave_out("only root makes network namespaces");
    }
    let manager = spawn_by_script(
        r#"
        [socket.always]
        listen = "127.0.0.1:0"
        [socket.later]
        listen = "10.99.0.1:8099"
        optional = true
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.always)"
        sockets = ["later", "always"]
        "#,
        r#"exec unshare -n sh -c 'ip link set lo up && exec "$@"' sh "$@""#,
        |_| {},
    );
    manager.wait_for_notice("READY=1");
    let later = manager.socket("later");
    assert_eq!(later["state"], "failed");
    assert!(
        later["queue"].is_null() && later["queue_limit"].is_null(),
        "{later}"
    );
    let error = later["error"].as_str().unwrap();
    assert!(error.contains("no interface has this address"), "{error}");
    let pid = manager.pids("web")[0];
    let variables = environment(pid);
    assert_eq!(variables["LISTEN_FDS"], "1");
    assert_eq!(variables["LISTEN_FDNAMES"], "always");
    assert_fds(pid, &[0, 1, 2, 3]);
    assert!(manager.log().contains("socket.later"), "{}", manager.log());

    let added = bounded(Command::new("nsenter").args([
        &format!("--net=/proc/{}/ns/net", manager.pid()),
        "ip",
        "addr",
        "add",
        "10.99.0.1/32",
        "dev",
        "lo",
    ]));
    assert!(added.status.success(), "{added:?}");
    let later = manager.wait_for_socket("later", "listening");
    assert!(later["error"].is_null(), "{later}");
    manager.wait_for("web", "got the new socket", |web| {
        web["state"] == "running" && web["workers"][0]["pid"] != pid
    });
    let variables = environment(manager.pids("web")[0]);
    assert_eq!(variables["LISTEN_FDNAMES"], "later:always");
}

#[test]
fn sockets_of_the_managers_own_parent_are_taken_by_name_and_by_address() {
    let by_name = TcpListener::bind("127.0.0.1:0").unwrap();
    let by_address = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unwanted = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [
        by_name.local_addr().unwrap(),
        by_address.local_addr().unwrap(),
        udp.local_addr().unwrap(),
    ];
    let inodes = [&by_name.as_fd(), &by_address.as_fd(), &udp.as_fd()].map(inode);
    let manager = spawn_by_script(
        &format!(
            r#"
            [socket.one]
            listen = "{}"
            fd_name = "given"
            inherit = "require"
            [socket.two]
            listen = "{}"
            [socket.three]
            listen = "{}"
            type = "dgram"
            blocking = false
            [socket.own]
            listen = "127.0.0.1:0"
            inherit = "never"
            [watcher.all]
            cmd = "PROBE sleep"
            sockets = ["one", "two", "three", "own"]
            "#,
            addresses[0], addresses[1], addresses[2]
        ),
        r#"LISTEN_PID=$$ LISTEN_FDS=4 LISTEN_FDNAMES=given::three:left exec "$@""#,
        |command| {
            let fds = [
                by_name.as_fd(),
                by_address.as_fd(),
                udp.as_fd(),
                unwanted.as_fd(),
            ];
            pass_fds(command, &fds);
        },
    );
    manager.wait_for_notice("READY=1");
    let pid = manager.pids("all")[0];
    assert_eq!([3, 4, 5].map(|fd| fd_target(pid, fd)), inodes);
    assert_fds(pid, &[0, 1, 2, 3, 4, 5, 6]);
    assert!(is_nonblocking(pid, 5));
    let variables = environment(pid);
    assert_eq!(variables["LISTEN_FDNAMES"], "given:two:three:own");
    assert_eq!(variables["LISTEN_PID"], pid.to_string());
    assert!(manager.log().contains("`left`"), "{}", manager.log());
}

#[test]
fn an_inherited_socket_is_taken_by_its_name_unless_several_have_it() {
    let one = TcpListener::bind("127.0.0.1:0").unwrap();
    let two = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = two.local_addr().unwrap();
    let start = |names: &str| {
        let manager = spawn_by_script(
            &format!(
                r#"
                [socket.two]
                listen = "{second}"
                inherit = "require"
                [socket.web]
                listen = "127.0.0.1:0"
                [socket.datagrams]
                listen = "127.0.0.1:0"
                type = "dgram"
                "#
            ),
            &format!(r#"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES={names} exec "$@""#),
            |command| pass_fds(command, &[one.as_fd(), two.as_fd()]),
        );
        manager.wait_for_notice("READY=1");
        let found = ["web", "two", "datagrams"].map(|name| manager.address(name));
        (found, manager.log())
    };
    let [one, two] = [&one, &two].map(|socket| socket.local_addr().unwrap().to_string());
    let (found, _) = start("web:two");
    assert_eq!(found[..2], [one.clone(), two.clone()]);
    // One of another type is not meant.
    let (found, log) = start("datagrams:other");
    assert!(!found.contains(&one), "{found:?}");
    assert!(log.contains("`datagrams` is closed"), "{log}");
    let (found, log) = start("web:web");
    assert_ne!(found[0], one);
    assert_eq!(found[1], two);
    assert!(log.contains("`web` is closed"), "{log}");
}

#[test]
fn an_inherited_socket_may_be_the_first_of_several_shards() {
    let given = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = given.local_addr().unwrap().to_string();
    let manager = spawn_by_script(
        &format!(
            r#"
            [socket.web]
            listen = "{address}"
            so_reuseport = true
            [watcher.web]
            cmd = "PROBE serve $(circus.socket.web)"
            numprocesses = 2
            "#
        ),
        r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@""#,
        |command| pass_fds(command, &[given.as_fd()]),
    );
    manager.wait_for_notice("READY=1");
    assert_eq!(listeners(&address).len(), 2);
    let mut left: Vec<&str> = vec!["1", "2"];
    let both = poll(|| {
        let wid = ask(&address, "env TENTPOLE_WID");
        left.retain(|other| *other != wid);
        left.is_empty().then_some(())
    });
    assert!(both.is_some(), "{left:?} are never chosen");
    manager.wait_for_state("web", "running");
}

#[test]
fn sockets_that_were_meant_for_another_process_are_not_taken() {
    let given = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = given.local_addr().unwrap();
    let units = format!(
        r#"
        [socket.web]
        listen = "{address}"
        optional = true
        INHERIT
        [socket.other]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE sleep"
        sockets = ["web", "other"]
        "#
    );
    let run = |inherit: &str, pid: &str| {
        let script = format!(r#"LISTEN_PID={pid} LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@""#);
        let manager = spawn_by_script(&units.replace("INHERIT", inherit), &script, |command| {
            pass_fds(command, &[given.as_fd()]);
        });
        manager.wait_for_notice("READY=1");
        let worker = manager.pids("web")[0];
        assert_fds(
            worker,
            if inherit.contains("auto") {
                &[0, 1, 2, 3, 4]
            } else {
                &[0, 1, 2, 3]
            },
        );
        (manager.socket("web"), environment(worker))
    };
    for (inherit, pid) in [("", "1"), (r#"inherit = "never""#, "$$")] {
        let (socket, variables) = run(inherit, pid);
        assert_eq!(socket["state"], "failed", "{inherit} {pid}: {socket}");
        assert_eq!(variables["LISTEN_FDNAMES"], "other");
    }
    let (socket, _) = run(r#"inherit = "auto""#, "$$");
    assert_eq!(socket["state"], "listening");
    let text = refused("[socket.web]\nlisten = \"127.0.0.1:0\"\ninherit = \"require\"");
    assert!(
        text.contains("socket `web`: `inherit` is \"require\""),
        "{text}"
    );
}

#[test]
fn a_listener_is_the_same_through_stop_start_and_restart_and_clients_wait() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [socket.file]
        listen = "DIR/file"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        sockets = ["web", "file"]
        "#,
    );
    let address = manager.address("web");
    let listeners = || {
        let pid = manager.pids("web")[0];
        [fd_target(pid, 3), fd_target(pid, 4)]
    };
    let before = listeners();
    let first = manager.pids("web")[0];
    manager.ok(&["stop", "web"]);
    assert!(!support::is_alive(first));
    let mut waiting: Vec<TcpStream> = (0..5).map(|_| question(&address, "pid")).collect();
    let _unix: Vec<UnixStream> = (0..3)
        .map(|_| UnixStream::connect(manager.path("file")).unwrap())
        .collect();
    wait_for_queue(&manager, "web", 5);
    wait_for_queue(&manager, "file", 3);
    assert_eq!(manager.socket("web")["state"], "listening");
    manager.ok(&["start", "web"]);
    let second = manager.pids("web")[0];
    for stream in &mut waiting {
        assert_eq!(answer(stream), second.to_string());
    }
    wait_for_queue(&manager, "web", 0);
    assert_eq!(manager.socket("file")["queue"], 3);
    assert_eq!(listeners(), before);
    manager.ok(&["restart", "web"]);
    assert_ne!(manager.pids("web")[0], second);
    assert_eq!(listeners(), before);
    let third = manager.pids("web")[0];
    kill(third, libc::SIGKILL);
    wait_until_dead(third);
    let mut stream = question(&address, "pid");
    let fourth: i32 = answer(&mut stream).parse().expect("a pid");
    manager.wait_for("web", "came back", |web| web["workers"][0]["pid"] == fourth);
    assert_eq!(listeners(), before);
}

#[test]
fn two_watchers_share_a_socket() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.one]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.two]
        cmd = "PROBE serve $(circus.socket.web)"
        "#,
    );
    let (one, two) = (manager.pids("one")[0], manager.pids("two")[0]);
    assert_eq!(fd_target(one, 3), fd_target(two, 3));
    assert_eq!(
        manager.socket("web")["watchers"],
        serde_json::json!(["one", "two"])
    );
    let address = manager.address("web");
    manager.ok(&["stop", "one"]);
    assert_eq!(ask(&address, "pid"), two.to_string());
    manager.ok(&["start", "one"]);
    manager.ok(&["stop", "two"]);
    assert_eq!(ask(&address, "pid"), manager.pids("one")[0].to_string());
}

#[test]
fn each_worker_has_a_queue_of_its_own_that_outlives_it() {
    let manager = sharded("numprocesses = 3");
    let shards = || -> Vec<String> {
        manager
            .pids("web")
            .iter()
            .map(|pid| fd_target(*pid, 3))
            .collect()
    };
    let before = shards();
    let mut distinct = before.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 3, "{before:?}");
    let pids = manager.pids("web");
    pids.iter().for_each(|pid| freeze(*pid));
    let address = manager.address("web");
    let mut waiting: Vec<TcpStream> = (0..60)
        .map(|_| question(&address, "env TENTPOLE_WID"))
        .collect();
    wait_for_queue(&manager, "web", 60);
    for pid in &pids {
        kill(*pid, libc::SIGKILL);
    }
    let mut wids: Vec<String> = waiting.iter_mut().map(answer).collect();
    wids.sort();
    wids.dedup();
    assert_eq!(
        wids,
        ["1", "2", "3"],
        "each shard had some of the connections"
    );
    manager.wait_for("web", "has all workers again", |web| {
        web["ready"] == 3 && web["state"] == "running"
    });
    assert_eq!(shards(), before);
    manager.ok(&["restart", "web"]);
    assert_eq!(shards(), before);

    manager.ok(&["scale", "web", "5"]);
    let more = shards();
    assert_eq!(more[..3], before);
    let mut distinct = more.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 5, "{more:?}");
    let answered = poll(|| (ask(&address, "env TENTPOLE_WID") == "5").then_some(()));
    assert!(answered.is_some(), "the new worker gets connections");
}

#[test]
fn scaling_shards_down_and_up_under_load_loses_no_connection() {
    let manager = sharded("numprocesses = 4");
    let address = manager.address("web");
    let done = AtomicBool::new(false);
    let (asked, errors) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut asked, mut errors) = (0, Vec::new());
                    while !done.load(Ordering::Relaxed) {
                        asked += 1;
                        if let Err(error) = try_ask(&address, "pid") {
                            errors.push(error.to_string());
                        }
                    }
                    (asked, errors)
                })
            })
            .collect();
        for count in ["1", "4", "2", "3", "1"] {
            manager.ok(&["scale", "web", count]);
            assert_eq!(manager.pids("web").len().to_string(), count);
        }
        done.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .fold((0, Vec::new()), |(sum, mut all), client| {
                let (asked, errors) = client.join().unwrap();
                all.extend(errors);
                (sum + asked, all)
            })
    });
    assert!(asked > 20, "only {asked} requests");
    assert_eq!(errors, Vec::<String>::new(), "of {asked} requests");
    assert_eq!(ask(&address, "env TENTPOLE_WID"), "1");
}

#[test]
fn connections_in_the_queue_of_a_worker_that_is_scaled_away_are_answered_by_it() {
    let manager = sharded("numprocesses = 2");
    let pids = manager.pids("web");
    pids.iter().for_each(|pid| freeze(*pid));
    let address = manager.address("web");
    let mut waiting: Vec<TcpStream> = (0..40)
        .map(|_| question(&address, "env TENTPOLE_WID"))
        .collect();
    wait_for_queue(&manager, "web", 40);
    manager.ok(&["scale", "web", "1", "--no-wait"]);
    // From now on the second shard gets nothing new.
    let mut late: Vec<TcpStream> = (0..20)
        .map(|_| question(&address, "env TENTPOLE_WID"))
        .collect();
    pids.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    let wids: Vec<String> = waiting.iter_mut().map(answer).collect();
    assert!(wids.iter().any(|wid| wid == "2"), "{wids:?}");
    for stream in &mut late {
        assert_eq!(answer(stream), "1");
    }
    manager.wait_for("web", "has one worker", |web| {
        web["workers"]
            .as_array()
            .is_some_and(|workers| workers.len() == 1)
    });
    wait_until_dead(pids[1]);
}

#[test]
fn connections_in_queues_that_nobody_serves_are_answered_when_fewer_workers_start() {
    let manager = sharded("numprocesses = 4");
    let address = manager.address("web");
    manager.ok(&["stop", "web"]);
    let mut waiting: Vec<TcpStream> = (0..40)
        .map(|_| question(&address, "env TENTPOLE_WID"))
        .collect();
    wait_for_queue(&manager, "web", 40);
    manager.ok(&["scale", "web", "1"]);
    // Those that come from now on wait where they are served first.
    let mut late: Vec<TcpStream> = (0..20)
        .map(|_| question(&address, "env TENTPOLE_WID"))
        .collect();
    manager.ok(&["start", "web"]);
    let mut wids: Vec<String> = waiting.iter_mut().map(answer).collect();
    wids.sort();
    wids.dedup();
    assert_eq!(wids, ["1", "2", "3", "4"]);
    for stream in &mut late {
        assert_eq!(answer(stream), "1");
    }
    let one = poll(|| (listeners(&address).len() == 1).then_some(()));
    assert!(one.is_some(), "{:?}", listeners(&address));
    manager.wait_for("web", "has one worker", |web| {
        web["state"] == "running" && web["workers"].as_array().is_some_and(|it| it.len() == 1)
    });
}

#[test]
fn connections_that_a_hung_worker_leaves_are_answered_by_the_next() {
    let manager = sharded("numprocesses = 2\ngraceful_timeout = 0.1");
    let pids = manager.pids("web");
    pids.iter().for_each(|pid| freeze(*pid));
    let address = manager.address("web");
    let mut waiting: Vec<TcpStream> = (0..30).map(|_| question(&address, "pid")).collect();
    wait_for_queue(&manager, "web", 30);
    kill(pids[0], libc::SIGCONT);
    // The second stands still until it is told to end, which it does at once.
    manager.ok(&["scale", "web", "1"]);
    let mut by: Vec<String> = waiting.iter_mut().map(answer).collect();
    by.sort();
    by.dedup();
    assert_eq!(by.len(), 2, "{by:?}");
    let one = poll(|| (listeners(&address).len() == 1).then_some(()));
    assert!(one.is_some(), "{:?}", listeners(&address));
}

#[test]
fn a_watcher_that_is_stopped_leaves_its_clients_to_the_one_that_shares_its_socket() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        so_reuseport = true
        [watcher.green]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.blue]
        cmd = "PROBE serve $(circus.socket.web)"
        numprocesses = 3
        "#,
    );
    let address = manager.address("web");
    assert_eq!(listeners(&address).len(), 3);
    let blue = manager.pids("blue");
    blue.iter().for_each(|pid| freeze(*pid));
    let waiting: Vec<TcpStream> = (0..30).map(|_| begin(&address, "pid")).collect();
    manager.ok(&["stop", "blue", "--no-wait"]);
    // Who comes from now on goes where it is served.
    for _ in 0..30 {
        assert_eq!(ask(&address, "env TENTPOLE_WATCHER"), "green");
    }
    blue.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
    for stream in waiting {
        finish(stream);
    }
    let one = poll(|| (listeners(&address).len() == 1).then_some(()));
    assert!(one.is_some(), "{:?}", listeners(&address));
}

#[test]
fn clients_of_a_worker_that_ends_well_are_served_though_others_go_on() {
    // The other worker hangs.
    for sharding in ["", "so_reuseport = true"] {
        let manager = Manager::start(&format!(
            r#"
            [socket.web]
            listen = "127.0.0.1:0"
            {sharding}
            [watcher.web]
            cmd = "PROBE serve $(circus.socket.web)"
            on_demand = true
            numprocesses = 2
            "#
        ));
        let address = manager.address("web");
        ask(&address, "pid");
        manager.wait_for("web", "has both", |web| web["ready"] == 2);
        let pids = manager.pids("web");
        freeze(pids[1]);
        kill(pids[0], libc::SIGTERM);
        manager.wait_for("web", "has lost one", |web| web["ready"] == 1);
        let ask_all = || (0..20).map(|_| begin(&address, "env TENTPOLE_WID"));
        let waiting: Vec<TcpStream> = ask_all().collect();
        manager.wait_for("web", "has both again", |web| {
            web["workers"][0]["wid"] == 1 && web["workers"][0]["generation"] == 2
        });
        let is_taken = || manager.socket("web")["queue"].as_u64() < Some(20);
        assert!(poll(|| is_taken().then_some(())).is_some());
        kill(pids[1], libc::SIGCONT);
        let wids: Vec<String> = waiting.into_iter().map(finish).collect();
        assert!(wids.iter().any(|wid| wid == "1"), "{wids:?}");
    }
}

#[test]
fn clients_go_to_the_workers_that_are_left_when_one_has_ended_for_good() {
    let manager = sharded("restart = \"never\"\nnumprocesses = 3");
    let address = manager.address("web");
    for left in [2, 1] {
        drop(begin(&address, "exit 0"));
        manager.wait_for("web", "has lost one", |web| web["ready"] == left);
        for _ in 0..30 {
            assert_ne!(ask(&address, "pid"), "");
        }
    }
}

#[test]
fn a_first_queue_that_was_left_out_takes_clients_again_when_it_is_the_last() {
    let manager = sharded("restart = \"never\"\nnumprocesses = 2");
    let address = manager.address("web");
    let pids = manager.pids("web");
    kill(pids[0], libc::SIGTERM);
    manager.wait_for("web", "has lost one", |web| web["ready"] == 1);
    for _ in 0..20 {
        assert_eq!(ask(&address, "env TENTPOLE_WID"), "2");
    }
    manager.ok(&["scale", "web", "1"]);
    wait_until_dead(pids[1]);
    let place = address.parse().expect("an address");
    let patience = Duration::from_millis(500);
    let heard = || TcpStream::connect_timeout(&place, patience);
    let waiting: Vec<TcpStream> = (0..5).map(|_| heard().expect("it listens")).collect();
    manager.ok(&["start", "web"]);
    for mut stream in waiting {
        writeln!(stream, "env TENTPOLE_WID").expect("ask");
        assert_eq!(finish(stream), "1");
    }
}

#[test]
fn clients_do_not_wait_for_workers_that_start_much_later() {
    let manager = Manager::spawn(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        so_reuseport = true
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        numprocesses = 3
        warmup_delay = 600
        "#,
    );
    manager.wait_for("web", "has its first", |web| web["ready"] == 1);
    let address = manager.address("web");
    for _ in 0..30 {
        assert_eq!(ask(&address, "env TENTPOLE_WID"), "1");
    }
}

/// What a worker can do to the socket that it shares, done in its name.
fn as_worker(manager: &Manager, watcher: &str, deed: impl Fn(&Socket)) {
    for pid in manager.pids(watcher) {
        deed(&Socket::from(fd_of(pid, 3)));
        kill(pid, libc::SIGKILL);
        wait_until_dead(pid);
    }
}

#[test]
fn a_listener_that_a_worker_shuts_down_listens_again_for_the_next() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [socket.shards]
        listen = "127.0.0.1:0"
        so_reuseport = true
        [socket.file]
        listen = "DIR/file"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        [watcher.shards]
        cmd = "PROBE serve $(circus.socket.shards)"
        numprocesses = 3
        [watcher.file]
        cmd = "PROBE answer $(circus.socket.file)"
        "#,
    );
    let addresses = ["web", "shards"].map(|name| manager.address(name));
    for watcher in ["web", "shards", "file"] {
        as_worker(&manager, watcher, |socket| {
            socket.shutdown(std::net::Shutdown::Both).unwrap();
        });
        manager.wait_for("web", "has a worker again", |web| web["ready"] == 1);
        manager.wait_for("shards", "has all workers again", |it| it["ready"] == 3);
        manager.wait_for("file", "has a worker again", |it| it["ready"] == 1);
    }
    assert_eq!(
        ["web", "shards"].map(|name| manager.address(name)),
        addresses
    );
    assert_ne!(ask(&addresses[0], "pid"), "");
    for _ in 0..30 {
        assert_ne!(ask(&addresses[1], "pid"), "");
    }
    assert_eq!(listeners(&addresses[1]).len(), 3);
    // A scale-down names the right ones.
    manager.ok(&["scale", "shards", "1"]);
    for _ in 0..10 {
        assert_eq!(ask(&addresses[1], "env TENTPOLE_WID"), "1");
    }
    let answered = || {
        let mut answer = String::new();
        let mut stream = UnixStream::connect(manager.path("file")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert_ne!(answer, "");
    };
    answered();
    // The new kernel socket is held as the old one was.
    manager.crash();
    answered();
    assert!(manager.log().contains("was shut down"), "{}", manager.log());
}

#[test]
fn a_socket_file_that_a_worker_removes_is_there_again_for_the_next() {
    let manager = Manager::start(
        r#"
        [socket.file]
        listen = "DIR/file"
        mode = "0640"
        [watcher.file]
        cmd = "PROBE answer $(circus.socket.file)"
        "#,
    );
    let file = manager.path("file");
    let answered = || {
        let mut answer = String::new();
        let mut stream = UnixStream::connect(&file).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert_ne!(answer, "");
    };
    std::fs::remove_file(&file).unwrap();
    manager.ok(&["restart", "file"]);
    answered();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
    manager.crash();
    answered();
    std::fs::remove_file(&file).unwrap();
    manager.ok(&["reload", "file"]);
    answered();

    // What somebody else has put there is told, and left alone.
    std::fs::remove_file(&file).unwrap();
    let other = UnixListener::bind(&file).unwrap();
    manager.ok(&["restart", "file"]);
    let error = manager.socket("file")["error"].clone();
    let error = error.as_str().expect("an error");
    assert!(error.contains("is not its file any more"), "{error}");
    UnixStream::connect(&file).unwrap();
    other.accept().unwrap();
    std::fs::remove_file(&file).unwrap();
    manager.ok(&["restart", "file"]);
    answered();
    assert!(manager.socket("file")["error"].is_null());
}

/// A worker that ends by itself as soon as it has answered, having done something to its socket.
const SPOILERS: &str = r#"
    [socket.tcp]
    listen = "127.0.0.1:0"
    [socket.file]
    listen = "DIR/file"
    [socket.udp]
    listen = "127.0.0.1:0"
    type = "dgram"
    [socket.deaf]
    listen = "127.0.0.1:0"
    type = "dgram"
    [socket.shards]
    listen = "127.0.0.1:0"
    type = "dgram"
    so_reuseport = true
    [watcher.all]
    cmd = "PROBE sleep"
    sockets = ["tcp", "file", "udp", "deaf", "shards"]
    restart = "never"
    "#;

#[test]
fn clients_wait_though_the_last_worker_has_spoiled_its_sockets() {
    let manager = Manager::start(SPOILERS);
    let names = ["tcp", "udp", "deaf", "shards"];
    let addresses = names.map(|name| manager.address(name));
    let [pid] = manager.pids("all")[..] else {
        panic!("one worker");
    };
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = |fd| Socket::from(fd_of(pid, fd));
    socket(3).listen(1).unwrap();
    socket(3).shutdown(std::net::Shutdown::Both).unwrap();
    std::fs::remove_file(manager.path("file")).unwrap();
    socket(4).listen(1).unwrap();
    // It says that it is not connected, and is shut down all the same.
    for fd in [5, 7] {
        let _ = socket(fd).shutdown(std::net::Shutdown::Both);
    }
    socket(6)
        .connect(&peer.local_addr().unwrap().into())
        .unwrap();
    kill(pid, libc::SIGKILL);
    manager.wait_for_state("all", "failed");

    assert_eq!(names.map(|name| manager.address(name)), addresses);
    let streams: Vec<_> = (0..8)
        .map(|_| {
            (
                TcpStream::connect(&addresses[0]).expect("the queue is long"),
                UnixStream::connect(manager.path("file")).expect("the queue is long"),
            )
        })
        .collect();
    for address in &addresses[1..] {
        peer.send_to(b"x", address).expect("somebody listens");
    }
    for (name, waiting) in [("tcp", 8), ("file", 8)] {
        let socket = manager.socket(name);
        assert_eq!(socket["queue"], waiting, "{socket}");
        assert_ne!(socket["queue_limit"], 1, "{socket}");
        assert!(socket["error"].is_null(), "{socket}");
    }
    manager.ok(&["start", "all"]);
    let pid = manager.pids("all")[0];
    for fd in [5, 6, 7] {
        let socket = UdpSocket::from(fd_of(pid, fd));
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(socket.recv(&mut buffer).expect("it waits"), 1, "fd {fd}");
    }
    drop(streams);
}

#[test]
fn a_service_on_demand_that_removes_its_socket_file_at_its_end_is_started_again() {
    let manager = Manager::start(
        r#"
        [socket.file]
        listen = "DIR/file"
        [watcher.file]
        cmd = "PROBE answer 3 1; rm DIR/file"
        shell = true
        sockets = ["file"]
        on_demand = true
        "#,
    );
    for _ in 0..3 {
        manager.wait_for_state("file", "waiting");
        manager.wait_for_socket("file", "armed");
        let mut answer = String::new();
        let mut stream = UnixStream::connect(manager.path("file")).expect("the file is there");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert_ne!(answer, "");
    }
    assert!(manager.log().contains("has it back"), "{}", manager.log());
}

#[test]
fn a_socket_file_that_the_old_worker_removes_in_a_reload_leads_to_the_new_one() {
    let mut manager = Manager::start(
        r#"
        [socket.file]
        listen = "DIR/file"
        [watcher.file]
        cmd = "PROBE answer $(circus.socket.file)"
        stop_signal = "URG"
        graceful_timeout = 2
        "#,
    );
    let before = manager.snapshot();
    let old = manager.pids("file")[0];
    let reload = std::thread::scope(|scope| {
        let reload = scope.spawn(|| manager.cli(&["reload", "file"]));
        manager.wait_for("file", "waits for the old worker", |file| {
            let mut workers = file["workers"].as_array().expect("workers").iter();
            workers.any(|worker| worker["pid"] == old && worker["state"] == "stopping")
        });
        std::fs::remove_file(manager.path("file")).unwrap();
        kill(old, libc::SIGKILL);
        reload.join().expect("no panic")
    });
    assert!(reload.status.success(), "{reload:?}");
    let new = manager.pids("file")[0];
    assert_ne!(new, old);
    let mut answer = String::new();
    let mut stream = UnixStream::connect(manager.path("file")).expect("the file is there");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(
        answer.trim(),
        new.to_string(),
        "who serves it has the same socket"
    );
    assert_eq!(manager.snapshot().listeners, before.listeners);

    // A command to change nothing puts it back as well.
    std::fs::remove_file(manager.path("file")).unwrap();
    manager.ok(&["apply"]);
    UnixStream::connect(manager.path("file")).expect("the file is there");
    // The second name goes with the first, and is nobody else's.
    let spares = manager.path("control.spare");
    assert_eq!(spares.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(std::fs::read_dir(&spares).unwrap().count(), 1);
    // Without it a file that is gone is told of, and bound anew with the next worker.
    std::fs::remove_dir_all(&spares).unwrap();
    std::fs::remove_file(manager.path("file")).unwrap();
    manager.ok(&["apply"]);
    let error = manager.socket("file")["error"].clone();
    assert!(
        error.as_str().is_some_and(|it| it.contains("its file")),
        "{error}"
    );
    manager.ok(&["restart", "file"]);
    UnixStream::connect(manager.path("file")).expect("the file is there");
    assert!(manager.socket("file")["error"].is_null());
    assert!(manager.stop().success());
    assert!(!spares.exists() && !manager.path("file").exists());
}

#[test]
fn a_folder_of_second_names_that_is_somebody_elses_is_left_alone() {
    let units = "[socket.file]\nlisten = 'DIR/file'\n[watcher.file]\ncmd = 'PROBE sleep'\nsockets = ['file']";
    let manager = Manager::spawn_with(units, |command| {
        // The unit file is the last argument.
        let units = Path::new(command.get_args().last().expect("an argument"));
        let dir = units.parent().expect("a folder");
        std::fs::create_dir(dir.join("other")).unwrap();
        std::fs::write(dir.join("other/7"), "precious").unwrap();
        std::os::unix::fs::symlink("other", dir.join("control.spare")).unwrap();
    });
    manager.wait_for_state("file", "running");
    assert_eq!(files(&manager.path("other")), ["7"]);
    // Without a second name it is bound anew.
    std::fs::remove_file(manager.path("file")).unwrap();
    manager.ok(&["restart", "file"]);
    UnixStream::connect(manager.path("file")).expect("the file is there");
    manager.ok(&["shutdown"]);
    assert_eq!(files(&manager.path("other")), ["7"]);
}

#[test]
fn a_worker_has_blocking_as_it_is_written_whatever_the_one_before_has_set() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        "#,
    );
    as_worker(&manager, "web", |socket| {
        socket.set_nonblocking(true).unwrap();
    });
    manager.wait_for("web", "has a worker again", |web| web["ready"] == 1);
    let socket = Socket::from(fd_of(manager.pids("web")[0], 3));
    assert!(!socket.nonblocking().unwrap());
}

#[test]
fn the_first_connection_starts_a_sleeping_service_and_its_end_arms_it_again() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [socket.file]
        listen = "DIR/file"
        [socket.udp]
        listen = "127.0.0.1:0"
        type = "dgram"
        [watcher.web]
        cmd = "PROBE answer $(circus.socket.web) 1"
        on_demand = true
        [watcher.file]
        cmd = "PROBE answer $(circus.socket.file) 1"
        on_demand = true
        [watcher.udp]
        cmd = "PROBE echo $(circus.socket.udp) 1"
        on_demand = true
        "#,
    );
    for name in ["web", "file", "udp"] {
        assert_eq!(manager.watcher(name)["state"], "waiting");
        assert_eq!(manager.socket(name)["state"], "armed");
        assert_eq!(manager.watcher(name)["workers"], serde_json::json!([]));
    }
    for _ in 0..3 {
        let mut answer = String::new();
        let mut stream = TcpStream::connect(manager.address("web")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        let mut file = UnixStream::connect(manager.path("file")).unwrap();
        file.set_read_timeout(Some(DEADLINE)).unwrap();
        file.read_to_string(&mut answer).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(ask_udp(&client, &manager.address("udp"), "hello").ends_with(" hello"));
        for name in ["web", "file", "udp"] {
            manager.wait_for_state(name, "waiting");
            manager.wait_for_socket(name, "armed");
        }
    }
    assert_eq!(manager.watcher("web")["restarts"], 0);
    assert!(manager.watcher("web")["error"].is_null());
}

#[test]
fn a_sleeping_service_that_crashes_is_restarted_with_backoff_and_keeps_its_port() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = ["sh", "-c", "test -e DIR/repaired && exec PROBE serve 3; exit 3"]
        sockets = ["web"]
        on_demand = true
        restart_delay = "50ms"
        restart_max_delay = "100ms"
        "#,
    );
    let address = manager.address("web");
    let mut first = question(&address, "pid");
    let status = manager.wait_for("web", "backed off", |web| {
        web["state"] == "backoff" && web["restarts"].as_u64() > Some(1)
    });
    assert!(
        status["error"]
            .as_str()
            .unwrap()
            .contains("exited with code 3"),
        "{status}"
    );
    let mut second = question(&address, "pid");
    std::fs::write(manager.path("repaired"), "").unwrap();
    let pid = answer(&mut first);
    assert_eq!(answer(&mut second), pid);
    assert_eq!(
        manager.wait_for_state("web", "running")["workers"][0]["pid"].to_string(),
        pid
    );
}

#[test]
fn a_service_that_never_accepts_is_paused_by_its_trigger_limit_and_recovers_by_itself() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        trigger_limit = { burst = 5, interval = "400ms" }
        [watcher.web]
        cmd = ["sh", "-c", "echo x >> DIR/spawns; test -e DIR/repaired && exec PROBE serve 3; exit 0"]
        sockets = ["web"]
        on_demand = true
        [watcher.other]
        cmd = "PROBE sleep"
        "#,
    );
    let spawns = || {
        std::fs::read_to_string(manager.path("spawns"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    let other = manager.pids("other");
    let address = manager.address("web");
    let began = Instant::now();
    let mut waiting = question(&address, "pid");
    let paused = manager.wait_for_socket("web", "paused");
    assert!(
        paused["error"].as_str().unwrap().contains("trigger_limit"),
        "{paused}"
    );
    assert_eq!(paused["queue"], 1);
    assert!(
        poll(|| (spawns() >= 12).then_some(())).is_some(),
        "goes on by itself"
    );
    // A window that had just begun may add its burst.
    let windows = began.elapsed().as_millis() / 400 + 1;
    assert!(
        spawns() as u128 <= windows * 5,
        "{} spawns in {windows} windows",
        spawns()
    );
    assert!(manager.log().contains("trigger_limit"), "{}", manager.log());
    std::fs::write(manager.path("repaired"), "").unwrap();
    assert_eq!(
        answer(&mut waiting),
        manager.wait_for_state("web", "running")["workers"][0]["pid"].to_string()
    );
    assert_eq!(manager.socket("web")["state"], "listening");
    assert_eq!(manager.pids("other"), other);
}

#[test]
fn an_idle_manager_does_nothing() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        [socket.sleepy]
        listen = "127.0.0.1:0"
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        numprocesses = 3
        [watcher.sleepy]
        cmd = "PROBE serve $(circus.socket.sleepy)"
        on_demand = true
        [watcher.ended]
        cmd = "PROBE exit 0"
        restart = "never"
        [watcher.stubborn]
        cmd = "PROBE exit 1"
        max_retry = 1
        restart = "never"
        "#,
    );
    manager.wait_for("ended", "ended", |ended| {
        ended["workers"] == serde_json::json!([])
    });
    manager.wait_for("stubborn", "ended", |ended| {
        ended["workers"] == serde_json::json!([])
    });
    let address = manager.address("web");
    let waits = || {
        ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
            .map(|field| process_status(manager.pid(), field))
    };
    // It has settled when it has slept once; after that only a look over some time can show that nothing happens.
    let pause = || std::thread::sleep(Duration::from_millis(500));
    let settled = poll(|| {
        let before = waits();
        pause();
        (waits() == before).then_some(before)
    });
    let before = settled.expect("it comes to rest");
    pause();
    assert_eq!(waits(), before);
    ask(&address, "pid");
    pause();
    assert_eq!(waits(), before, "traffic is none of its business");
}

#[test]
fn the_queue_counts_the_connections_that_nobody_has_accepted() {
    let manager = Manager::start(
        r#"
        [socket.tcp]
        listen = "127.0.0.1:0"
        [socket.file]
        listen = "DIR/file"
        [socket.hidden]
        listen = "@DIR/hidden"
        [socket.seqpacket]
        listen = "DIR/seqpacket"
        type = "seqpacket"
        [socket.udp]
        listen = "127.0.0.1:0"
        type = "dgram"
        "#,
    );
    for name in ["tcp", "file", "hidden", "seqpacket"] {
        assert_eq!(manager.socket(name)["queue"], 0, "{name}");
    }
    let _tcp = [(); 4].map(|()| TcpStream::connect(manager.address("tcp")).unwrap());
    let _file = [(); 3].map(|()| UnixStream::connect(manager.path("file")).unwrap());
    let name = format!("\0{}", manager.path("hidden").display());
    let _others: Vec<Socket> = [
        (Type::STREAM, SockAddr::unix(name).unwrap()),
        (
            Type::SEQPACKET,
            SockAddr::unix(manager.path("seqpacket")).unwrap(),
        ),
    ]
    .into_iter()
    .map(|(kind, address)| {
        let client = Socket::new(Domain::UNIX, kind, None).unwrap();
        client.connect(&address).unwrap();
        client
    })
    .collect();
    for (name, count) in [("tcp", 4), ("file", 3), ("hidden", 1), ("seqpacket", 1)] {
        wait_for_queue(&manager, name, count);
    }
    assert!(
        manager.socket("udp")["queue"].is_null(),
        "{}",
        manager.socket("udp")
    );
    let text = manager.ok(&["status"]);
    let line = text.lines().find(|line| line.contains("file")).unwrap();
    assert!(line.contains("3/4096"), "{text}");
}

/// Connects and asks, but does not wait for the answer.
fn question(address: &str, line: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    writeln!(stream, "{line}").unwrap();
    stream
}

fn answer(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.trim_end().to_owned()
}

fn try_ask(address: &str, line: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer)? {
        0 => Err(std::io::Error::other("no answer")),
        _ => Ok(()),
    }
}

fn ask_udp(client: &UdpSocket, to: &str, text: &str) -> String {
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(text.as_bytes(), to).unwrap();
    let mut buffer = [0; 4096];
    let count = support::uninterrupted(|| client.recv(&mut buffer)).expect("an answer");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

fn received(mut client: &Socket) -> String {
    let mut buffer = [0; 4096];
    let count = support::uninterrupted(|| client.read(&mut buffer)).expect("an answer");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

fn wait_for_queue(manager: &Manager, socket: &str, count: u64) {
    let reached = poll(|| (manager.socket(socket)["queue"] == count).then_some(()));
    assert!(
        reached.is_some(),
        "{} never has {count} waiting",
        manager.socket(socket)
    );
}

fn port(address: &str) -> u16 {
    address
        .rsplit_once(':')
        .expect("has a port")
        .1
        .parse()
        .expect("a port")
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path)
        .expect("is there")
        .permissions()
        .mode()
        & 0o7777
}

fn inode(fd: &std::os::fd::BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    fd_target(std::process::id() as i32, fd.as_raw_fd())
}

fn is_nonblocking(pid: i32, fd: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).expect("fdinfo");
    let flags = line_of(&text, "flags:");
    let flags = i32::from_str_radix(flags.trim_start_matches("flags:").trim(), 8).unwrap();
    flags & libc::O_NONBLOCK != 0
}

fn somaxconn() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    text.trim().parse().unwrap()
}

fn line_of<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines()
        .find(|line| line.contains(start))
        .unwrap_or_else(|| panic!("no line with {start} in:\n{text}"))
}

#[test]
fn one_address_in_two_spellings_is_a_mistake() {
    let dir = folder();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
    let path = write_units(
        dir.path(),
        "[manager]\ncontrol = \"./real/c\"\n\
         [socket.a1]\nlisten = \"localhost:9001\"\n[socket.a2]\nlisten = \"127.0.0.1:9001\"\n\
         [socket.b1]\nlisten = \"./b\"\n[socket.b2]\nlisten = \"./real/../b\"\n[socket.b3]\nlisten = \"./none/../b\"\n\
         [socket.c]\nlisten = \"./link/c\"\n\
         [socket.d1]\nlisten = \"./real/d\"\n[socket.d2]\nlisten = \"./link/d\"\n[socket.d3]\nlisten = \"./link/new/d\"\n\
         [watcher.w]\ncmd = \"PROBE sleep\"\nuse_sockets = true\n",
    );
    let output = bounded(support::command(dir.path()).arg("check").arg(path));
    let text = String::from_utf8(output.stderr).unwrap();
    let found: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("units.toml:"))
        .collect();
    for (line, name, other) in [
        (6, "a2", "`a1`"),
        (10, "b2", "`b1`"),
        (12, "b3", "`b1`"),
        (14, "c", "`control`"),
        (18, "d2", "`d1`"),
    ] {
        let wanted = format!("units.toml:{line}:10: socket `{name}` on");
        let is_told = |found: &&str| found.contains(&wanted) && found.contains(other);
        assert!(found.iter().any(is_told), "{wanted} {other}: {text}");
    }
    assert_eq!(found.len(), 5, "{text}");
}

#[test]
fn a_socket_of_the_manager_s_own_is_not_connected_to_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let units = format!(
        "[socket.control]\nlisten = \"DIR/control\"\noptional = true\n\
         [socket.first]\nlisten = \"DIR/first\"\n\
         [socket.second]\nlisten = \"DIR/second\"\noptional = true\n\
         [socket.third]\nlisten = \"127.0.0.1:{port}\"\noptional = true\n\
         [watcher.w]\ncmd = \"PROBE sleep\"\nsockets = [\"first\"]\non_demand = true\n\
         [watcher.x]\ncmd = \"PROBE sleep\"\nsockets = [\"second\", \"third\", \"control\"]\n"
    );
    let manager = Manager::spawn_with(&units, |command| {
        let mut variables = command.get_envs();
        let control =
            variables.find_map(|(name, value)| value.filter(|_| name == "TENTPOLE_CONTROL"));
        let second = Path::new(control.unwrap()).with_file_name("second");
        std::fs::write(second, "no socket").unwrap();
    });
    manager.wait_for_notice("READY=1");
    // Another path of the same file, which no plan could know of.
    std::fs::remove_file(manager.path("second")).unwrap();
    std::fs::hard_link(manager.path("first"), manager.path("second")).unwrap();
    drop(taken);
    manager.wait_for_socket("third", "listening");
    let error = |name: &str| manager.socket(name)["error"].to_string();
    assert!(
        error("control").contains("control socket of this manager"),
        "{}",
        error("control")
    );
    support::poll(|| {
        error("second")
            .contains("socket `first` of this manager")
            .then_some(())
    })
    .unwrap_or_else(|| panic!("{}", error("second")));
    assert_eq!(manager.watcher("w")["state"], "waiting");
    assert_eq!(manager.socket("first")["queue"], 0);
}
