//! What is shipped beside the program: every unit file is taken without a finding, and the default one serves.

mod support;

use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{DEADLINE, Manager, bounded, command, folder, needs_program};

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The unit files of a folder.
fn unit_files(path: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(source(path))
        .expect("list a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no unit files in {path}");
    files
}

#[test]
fn every_shipped_unit_file_is_taken_without_a_finding() {
    let dir = folder();
    let files = ["units", "units/examples", "packaging/container/units"].map(unit_files);
    for file in files.iter().flatten() {
        for verb in [&["check", "--strict"][..], &["plan"][..]] {
            let file = &beside_its_environment(file, dir.path());
            let output = bounded(command(dir.path()).args(verb).arg(file));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && stderr.is_empty(),
                "{verb:?} {}: {stderr}",
                file.display()
            );
        }
    }
}

#[test]
fn every_unit_in_the_documentation_is_taken_without_a_finding() {
    let dir = folder();
    let pages = [
        "README.md",
        "docs/howto.md",
        "docs/units.md",
        "docs/supervision.md",
    ];
    let mut count = 0;
    for page in pages {
        let text = std::fs::read_to_string(source(page)).expect("read a page");
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let unit = complete(block).replace("/srv/web/venv", "venv");
            let file = dir.path().join("units.toml");
            std::fs::write(&file, &unit).expect("write the units");
            let file = beside_its_environment(&file, dir.path());
            let output = bounded(command(dir.path()).args(["check", "--strict"]).arg(&file));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{page}: {stderr}\nin:\n{unit}");
            count += 1;
        }
    }
    assert!(count > 0, "no units in the documentation");
}

/// A unit file that names a virtual environment is warned of where there is none: so it is looked at in a folder with one.
fn beside_its_environment(file: &Path, dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(file).expect("read the units");
    if !text.contains("virtualenv = \"venv\"") {
        return file.to_owned();
    }
    std::fs::create_dir_all(dir.join("venv")).expect("make a folder");
    let copy = dir.join("with-environment.toml");
    std::fs::write(&copy, text).expect("write the units");
    copy
}

/// A page does not repeat the socket for every watcher, nor the other way about: what a block needs and does not have.
fn complete(block: &str) -> String {
    let mut unit = block.to_owned();
    if !block.contains("[watcher.") {
        unit.push_str("\n[watcher.any]\ncmd = \"any\"\nuse_sockets = true\n");
    }
    for name in ["web", "php"] {
        let refers = [format!("$(circus.socket.{name})"), format!("\"{name}\"")];
        if refers.iter().any(|text| block.contains(text))
            && !block.contains(&format!("[socket.{name}]"))
        {
            unit.push_str(&format!("\n[socket.{name}]\nlisten = \"127.0.0.1:0\"\n"));
        }
    }
    unit
}

#[test]
fn every_key_of_the_unit_reader_is_in_the_reference() {
    let tables = ["manager", "socket", "watcher"].map(|table| {
        let path = format!("src/unit/keys/{table}.rs");
        std::fs::read_to_string(source(&path)).expect("read the source")
    });
    let reader = tables.concat();
    let page = std::fs::read_to_string(source("docs/units.md")).expect("read the page");
    let tables = reader.split("keys! {").skip(1);
    let tables = tables.map(|table| table.split("\n}").next().unwrap_or_default());
    let mut count = 0;
    for table in tables {
        for line in table.lines() {
            // One key and how it is read, or a list of keys that are not built yet.
            let most = if line.contains("=>") { 1 } else { usize::MAX };
            for key in line.split('"').skip(1).step_by(2).take(most) {
                assert!(page.contains(&format!("`{key}`")), "`{key}` is missing");
                count += 1;
            }
        }
    }
    assert!(count > 100, "only {count} keys were found");
}

#[test]
fn the_default_unit_serves_with_nothing_but_tentpole() {
    let unit = std::fs::read_to_string(source("units/hello.toml")).expect("read the unit");
    assert!(unit.contains("127.0.0.1:8000"), "the README says 8000");
    let manager = Manager::start(&unit.replace("127.0.0.1:8000", "127.0.0.1:0"));
    let answer = ask(&manager.socket("hello"));
    assert!(answer.contains("hello from worker "), "{answer}");
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Asks whoever has the socket of this status, over whatever it is.
fn ask(socket: &serde_json::Value) -> String {
    let address = socket["address"].as_str().expect("an address");
    let (domain, to) = if let Some(name) = address.strip_prefix('@') {
        (Domain::UNIX, SockAddr::unix(format!("\0{name}")))
    } else if address.starts_with('/') {
        (Domain::UNIX, SockAddr::unix(address))
    } else {
        let address: std::net::SocketAddr = address.parse().expect("an address");
        (Domain::for_address(address), Ok(address.into()))
    };
    let kind = match socket["type"].as_str() {
        Some("stream") => Type::STREAM,
        Some("seqpacket") => Type::SEQPACKET,
        Some("dgram") => Type::DGRAM,
        other => panic!("a socket of type {other:?}"),
    };
    let mut client = Socket::new(domain, kind, None).expect("make a socket");
    let patience = Some(Duration::from_secs(20));
    client.set_read_timeout(patience).expect("set a timeout");
    if kind == Type::DGRAM && domain == Domain::UNIX {
        // Whoever has no address gets no answer: the kernel finds one.
        let family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("a family");
        let length = libc::socklen_t::try_from(size_of_val(&family)).expect("a length");
        let ((), none) = unsafe {
            SockAddr::try_init(|storage, size| {
                storage.cast::<libc::sa_family_t>().write(family);
                *size = length;
                Ok(())
            })
        }
        .expect("an address");
        client.bind(&none).expect("bind to any name");
    }
    client.connect(&to.expect("an address")).expect("connect");
    client.write_all(REQUEST.as_bytes()).expect("ask");
    let mut answer = Vec::new();
    if kind == Type::STREAM {
        client.read_to_end(&mut answer).expect("an answer");
    } else {
        answer.resize(4096, 0);
        let count = client.read(&mut answer).expect("an answer");
        answer.truncate(count);
    }
    String::from_utf8(answer).expect("is UTF-8")
}

#[test]
fn every_example_that_needs_nothing_but_python_answers() {
    let python = needs_program("python3");
    for (name, needs_python, want) in [
        ("unix-socket", false, "hello from worker 1, pid "),
        ("on-demand", false, "hello from worker 1, pid "),
        ("shards", false, "hello from worker "),
        ("migrate-first", false, "hello from worker "),
        ("container", false, "hello from worker 1, pid "),
        ("inetd", true, "\r\n\r\nhello\n"),
        ("python-fd", true, "hello from pid "),
        ("notify", true, ""),
    ] {
        if needs_python && !python {
            continue;
        }
        let folder = source("units/examples");
        let unit = std::fs::read_to_string(folder.join(format!("{name}.toml"))).expect("read it");
        let own = format!("tentpole-example-{}", std::process::id());
        let unit = unit
            .replace("\"8000\"", "\"127.0.0.1:0\"")
            .replace(":8000\"", ":0\"")
            .replace("\"@tentpole-example", &format!("\"@{own}"))
            .replace("/tmp/tentpole-example", "DIR/example")
            .replace("working_dir = \".\"", &format!("working_dir = {folder:?}"));
        let manager = Manager::start(&unit);
        let status = manager.status();
        let sockets = status["sockets"].as_array().expect("sockets");
        assert_eq!(sockets.is_empty(), name == "notify", "{name}: {status}");
        for socket in sockets {
            // More than once: whoever answers does not end with it.
            for _ in 0..3 {
                let answer = ask(socket);
                assert!(answer.contains(want), "{name}: {answer}\n{}", manager.log());
            }
        }
        for watcher in manager.status()["watchers"].as_array().expect("watchers") {
            assert_eq!(watcher["restarts"], 0, "{name}: {watcher}");
            let state = match watcher["name"].as_str() {
                Some("migrate") => "stopped",
                _ => "running",
            };
            assert_eq!(watcher["state"], state, "{name}: {watcher}");
        }
    }
}

#[test]
fn hello_finishes_the_client_that_it_has_when_it_is_replaced() {
    for blocking in [true, false] {
        let manager = Manager::start(&format!(
            "[socket.web]\nlisten = \"127.0.0.1:0\"\nblocking = {blocking}\n[watcher.web]\n\
             cmd = \"tentpole hello $(circus.socket.web)\"\nexecutable = \"/proc/self/exe\"\n"
        ));
        let socket = manager.socket("web");
        // Clients that come while it is replaced, and one whose request is half sent when it is asked to end.
        let address = manager.address("web");
        for _ in 0..5 {
            let mut stream = TcpStream::connect(&address).expect("connect");
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            stream.write_all(&REQUEST.as_bytes()[..10]).expect("send");
            let reload = std::thread::scope(|scope| {
                let reload = scope.spawn(|| manager.cli(&["reload", "web"]));
                manager.wait_for("web", "is stopping one", |web| {
                    let mut workers = web["workers"].as_array().expect("workers").iter();
                    workers.any(|worker| worker["state"] == "stopping")
                });
                assert!(ask(&socket).contains("hello from worker "));
                stream.write_all(&REQUEST.as_bytes()[10..]).expect("send");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("an answer");
                assert!(answer.contains("hello from worker "), "{answer:?}");
                reload.join().expect("no panic")
            });
            assert!(reload.status.success(), "{reload:?}");
        }
    }
}

#[test]
fn hello_answers_on_every_kind_of_socket() {
    let own = format!("@tentpole-hello-{}", std::process::id());
    let mut unit = String::new();
    for (number, (listen, kind)) in [
        ("127.0.0.1:0", "stream"),
        ("[::1]:0", "stream"),
        ("DIR/stream", "stream"),
        (own.as_str(), "stream"),
        ("DIR/seqpacket", "seqpacket"),
        ("127.0.0.1:0", "dgram"),
        ("DIR/dgram", "dgram"),
    ]
    .into_iter()
    .enumerate()
    {
        // An address can be had once.
        for blocking in [true, false] {
            let listen = match listen.contains(":0") {
                true => listen.to_owned(),
                false => format!("{listen}-{blocking}"),
            };
            unit.push_str(&format!(
                "[socket.s{number}-{blocking}]\nlisten = \"{listen}\"\ntype = \"{kind}\"\nblocking = {blocking}\n\
                 [watcher.s{number}-{blocking}]\ncmd = \"tentpole hello $(circus.socket.s{number}-{blocking})\"\n\
                 executable = \"/proc/self/exe\"\nnumprocesses = 2\n"
            ));
        }
    }
    let manager = Manager::start(&unit);
    let status = manager.status();
    for socket in status["sockets"].as_array().expect("sockets") {
        for _ in 0..3 {
            let answer = ask(socket);
            assert!(
                answer.contains("hello from worker "),
                "{socket}: {answer}\n{}",
                manager.log()
            );
        }
    }
    for watcher in manager.status()["watchers"].as_array().expect("watchers") {
        assert_eq!(watcher["restarts"], 0, "{watcher}\n{}", manager.log());
    }
}
