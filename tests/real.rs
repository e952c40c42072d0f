//! Real software, unchanged: started by the manager from the units in `units/examples`, and asked over its socket.
//!
//! A program that is not installed is left out with a line on stderr, or fails its test with TENTPOLE_REQUIRE_REAL=1.
//! `.ci/run` installs what it can; Python programs come from `target/real-venv-*`.

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use support::lives::listeners;
use support::{DEADLINE, Manager, folder, is_root, kill, poll};
use tempfile::TempDir;

#[test]
fn the_script_of_circus_s_documentation_serves_with_five_workers() {
    let Some(python) = program("python3") else {
        return;
    };
    let example = Example::new("python-fd");
    let cluster = example.run(&[("python3 ", &in_front(&python))]);
    // The first that is up may answer a whole load before the others are.
    let shared = poll(|| Some(load(&cluster)).filter(|pids| pids.len() > 1));
    assert!(shared.is_some(), "one worker has answered everything");
    outlives_everything(&cluster);
}

#[test]
fn chaussette_with_meinheld_serves_under_load_with_five_workers() {
    let venv = source("target/real-venv-circus");
    if !venv.join("bin/chaussette").exists() {
        return leave_out(
            "chaussette with meinheld is not installed, or the Python 3.8 that it needs",
        );
    }
    let example = Example::new("chaussette");
    let quoted = format!("virtualenv = {:?}", venv.to_str().expect("is UTF-8"));
    let cluster = example.run(&[("virtualenv = \"venv\"", &quoted)]);
    // The first that is up may answer a whole load before the others are.
    let shared = poll(|| Some(load(&cluster)).filter(|pids| pids.len() > 1));
    assert!(shared.is_some(), "one worker has answered everything");
    outlives_everything(&cluster);
}

#[test]
fn gunicorn_finds_its_socket_by_listen_fds() {
    let Some(gunicorn) = program("gunicorn") else {
        return;
    };
    let example = Example::new("gunicorn");
    let cluster = example.run(&[("gunicorn --workers", &format!("{gunicorn} --workers"))]);
    load(&cluster);
    outlives_everything(&cluster);
}

#[test]
fn gunicorn_takes_a_descriptor_by_its_number() {
    let Some(gunicorn) = program("gunicorn") else {
        return;
    };
    // The example has it as comments.
    let example = Example::new("gunicorn");
    let cluster = example.run(&[
        (
            "cmd = \"gunicorn --workers",
            &format!(
                "listen_fds = false\ncmd = \"{gunicorn} --bind fd://$(circus.socket.web) --workers"
            ),
        ),
        ("sockets = [\"web\"]", ""),
    ]);
    load(&cluster);
    outlives_everything(&cluster);
}

#[test]
fn clients_of_gunicorn_notice_nothing_of_what_is_done_to_it_or_to_the_manager() {
    let Some(gunicorn) = program("gunicorn") else {
        return;
    };
    let example = Example::new("gunicorn");
    let home = example.home.path().join("gunicorn.toml");
    let cmd = format!("numprocesses = 2\nready_delay = \"500ms\"\ncmd = \"{gunicorn} --workers");
    let cluster = example.run(&[("cmd = \"gunicorn --workers", &cmd)]);
    let manager = &cluster.manager;
    let before = listeners(&cluster.address);
    let is_over = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    let client = || {
        while !is_over.load(Ordering::Relaxed) {
            cluster.ask().answer(&cluster);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        // However this ends, so do they.
        let _end = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for _ in 0..4 {
            scope.spawn(client);
        }
        // `TENTPOLE_ROUNDS=100` is the long run.
        for round in 0..support::rounds(2) {
            manager.ok(&["reload", "web"]);
            let workers = manager.pids("web");
            manager.ok(&["upgrade"]);
            manager.crash();
            assert_eq!(manager.pids("web"), workers, "{}", manager.log());
            manager.ok(&["restart", "web"]);
            let units = fs::read_to_string(&home).expect("read the units");
            let mark = format!("numprocesses = 2\nenv = {{ MARK = \"{round}\" }}");
            manager.write(&units.replace("numprocesses = 2", &mark));
            manager.ok(&["apply"]);
        }
    });
    assert_eq!(listeners(&cluster.address), before);
    assert_eq!(manager.watcher("web")["restarts"], 0, "{}", manager.log());
    assert!(answered.load(Ordering::Relaxed) > 100);
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

#[test]
fn uvicorn_takes_a_descriptor_by_its_number() {
    let Some(uvicorn) = program("uvicorn") else {
        return;
    };
    let example = Example::new("uvicorn");
    let cluster = example.run(&[("uvicorn --fd", &format!("{uvicorn} --fd"))]);
    load(&cluster);
    outlives_everything(&cluster);
}

#[test]
fn node_listens_on_a_descriptor() {
    let Some(node) = program("node") else {
        return;
    };
    let example = Example::new("node");
    let cluster = example.run(&[("node server.js", &format!("{node} server.js"))]);
    load(&cluster);
    outlives_everything(&cluster);
}

#[test]
fn nginx_takes_over_the_sockets_that_it_finds_in_nginx() {
    let Some(nginx) = program("nginx") else {
        return;
    };
    // Its configuration must have the address, so that can't be port 0: a loopback address of this process's own.
    let pid = std::process::id();
    let address = format!(
        "127.{}.{}.{}:8000",
        100 + (pid >> 16 & 63),
        pid >> 8 & 255,
        pid & 255
    );
    let example = Example::new("nginx");
    let home = example.home.path().display();
    let mut temporary = String::from("access_log off;\n");
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        temporary.push_str(&format!("{kind}_temp_path {home}/{kind};\n"));
    }
    example.change(
        "nginx.conf",
        &[
            ("/run/tentpole-nginx.pid", &format!("{home}/pid")),
            ("access_log off;", &temporary),
            ("127.0.0.1:8000", &address),
        ],
    );
    let cluster = example.run(&[
        ("nginx -p", &format!("{nginx} -p")),
        ("127.0.0.1:0", &address),
    ]);
    load(&cluster);
    outlives_everything(&cluster);
}

#[test]
fn php_fpm_takes_over_the_sockets_that_it_finds_in_fpm_sockets() {
    let names = [
        "php-fpm",
        "php-fpm8.4",
        "php-fpm8.3",
        "php-fpm8.2",
        "php-fpm8.1",
        "php-fpm7.4",
    ];
    let Some(php) = names.iter().find_map(|name| find(name)) else {
        return leave_out("php-fpm is not installed");
    };
    if !is_root() {
        // The example says why.
        return leave_out("php-fpm runs as a user of its own, which needs root");
    }
    let example = Example::new("php-fpm");
    let readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(example.home.path(), readable).expect("let www-data in");
    let path = example.home.path().join("php.sock");
    let path = path.to_str().expect("is UTF-8");
    example.change("php-fpm.conf", &[("/run/tentpole-php.sock", path)]);
    let cluster = example.run(&[
        ("php-fpm --nodaemonize", &format!("{php} --nodaemonize")),
        ("/run/tentpole-php.sock", path),
    ]);
    load(&cluster);
    outlives_everything(&cluster);
}

/// An example's files in a folder of their own, to be changed for a test.
struct Example {
    name: String,
    home: TempDir,
}

impl Example {
    fn new(name: &str) -> Example {
        let home = folder();
        for entry in fs::read_dir(source("units/examples")).expect("list the examples") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let copy = home.path().join(path.file_name().expect("has a name"));
                fs::copy(&path, copy).expect("copy an example's file");
            }
        }
        Example {
            name: name.into(),
            home,
        }
    }

    /// Replaces texts in a file, all of which it must have.
    fn change(&self, file: &str, changes: &[(&str, &str)]) -> String {
        let path = self.home.path().join(file);
        let mut text = fs::read_to_string(&path).expect("read an example's file");
        for (old, new) in changes {
            assert!(text.contains(old), "{file} has no {old:?}");
            text = text.replace(old, new);
        }
        fs::write(&path, &text).expect("write an example's file");
        text
    }

    /// Runs the example's units, on a port of their own, with changes.
    fn run(self, changes: &[(&str, &str)]) -> Cluster {
        let file = format!("{}.toml", self.name);
        let home = format!(
            "working_dir = {:?}",
            self.home.path().to_str().expect("is UTF-8")
        );
        self.change(&file, &[("working_dir = \".\"", &home)]);
        let has_port = fs::read_to_string(self.home.path().join(&file))
            .is_ok_and(|text| text.contains("127.0.0.1:8000"));
        if has_port {
            self.change(&file, &[("127.0.0.1:8000", "127.0.0.1:0")]);
        }
        let units = self.change(&file, changes);
        let manager = Manager::spawn_with(&units, |command| {
            command.env("PYTHONDONTWRITEBYTECODE", "1");
        });
        manager.wait_for_notice("READY=1");
        let name = if self.name == "php-fpm" { "php" } else { "web" };
        Cluster {
            address: manager.address(name),
            name,
            manager,
            _example: self,
        }
    }
}

/// A running example.
struct Cluster {
    manager: Manager,
    /// Of its socket and of its watcher.
    name: &'static str,
    address: String,
    _example: Example,
}

impl Cluster {
    /// Connects and asks; the answer is read later.
    fn ask(&self) -> Conversation {
        if self.name == "php" {
            let stream = UnixStream::connect(&self.address).expect("connect");
            stream
                .set_read_timeout(Some(DEADLINE))
                .expect("set a timeout");
            (&stream).write_all(&fast_cgi_ping()).expect("ask");
            Conversation(Box::new(stream))
        } else {
            let stream = TcpStream::connect(&self.address).expect("connect");
            stream
                .set_read_timeout(Some(DEADLINE))
                .expect("set a timeout");
            (&stream)
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .expect("ask");
            Conversation(Box::new(stream))
        }
    }
}

/// A request that waits for its answer.
struct Conversation(Box<dyn Read>);

impl Conversation {
    /// The answer, which must come in time and be right.
    fn answer(mut self, cluster: &Cluster) -> String {
        let mut bytes = Vec::new();
        let read: io::Result<usize> = self.0.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let is_right =
            text.contains(" 200 OK") && text.contains("hello from pid ") || text.contains("pong");
        assert!(is_right, "{read:?} {text:?}\n{}", cluster.manager.log());
        text
    }
}

/// Several hundred requests of clients that run at the same time, each of which must be answered. The pids that have answered.
fn load(cluster: &Cluster) -> BTreeSet<String> {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 50;
    let client = || -> BTreeSet<String> {
        (0..REQUESTS)
            .map(|_| {
                let answer = cluster.ask().answer(cluster);
                let pid = answer.split("hello from pid ").nth(1);
                pid.unwrap_or_default().trim().to_owned()
            })
            .collect()
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client"))
            .collect()
    })
}

/// A worker is killed and replaced; a client that came while the watcher was stopped is answered once it is started.
fn outlives_everything(cluster: &Cluster) {
    let manager = &cluster.manager;
    let victim = manager.pids(cluster.name)[0];
    kill(victim, libc::SIGKILL);
    manager.wait_for(cluster.name, "replaced a killed worker", |watcher| {
        let workers = watcher["workers"].as_array().expect("workers");
        watcher["ready"] == watcher["wanted"]
            && workers.iter().all(|worker| worker["pid"] != victim)
    });
    // A server's own children are killed with it. Until the kernel has got to that, one of them may still take a connection
    // off the queue, which is lost then.
    poll(|| (!group_exists(victim)).then_some(())).expect("its children are killed");
    cluster.ask().answer(cluster);

    manager.ok(&["stop", cluster.name]);
    assert_eq!(manager.pids(cluster.name), [] as [i32; 0]);
    let waiting = cluster.ask();
    assert_eq!(
        manager.socket(cluster.name)["queue"],
        1,
        "{}",
        manager.log()
    );
    manager.ok(&["start", cluster.name]);
    waiting.answer(cluster);
    assert_eq!(
        manager.watcher(cluster.name)["restarts"],
        1,
        "{}",
        manager.log()
    );
}

fn group_exists(leader: i32) -> bool {
    // SAFETY: signal 0 is sent to nobody.
    unsafe { libc::kill(-leader, 0) == 0 }
}

/// A FastCGI request for /ping, as a responder of id 1, without a body.
fn fast_cgi_ping() -> Vec<u8> {
    const BEGIN: u8 = 1;
    const PARAMS: u8 = 4;
    const STDIN: u8 = 5;
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len())
            .expect("is short")
            .to_be_bytes();
        let mut record = vec![1, kind, 0, 1, length[0], length[1], 0, 0];
        record.extend_from_slice(content);
        record
    };
    let mut params = Vec::new();
    for (name, value) in [
        ("SCRIPT_NAME", "/ping"),
        ("SCRIPT_FILENAME", "/ping"),
        ("REQUEST_METHOD", "GET"),
    ] {
        params.push(u8::try_from(name.len()).expect("is short"));
        params.push(u8::try_from(value.len()).expect("is short"));
        params.extend_from_slice(name.as_bytes());
        params.extend_from_slice(value.as_bytes());
    }
    [
        // Role 1 is the responder; flags 0 close the connection after the answer.
        record(BEGIN, &[0, 1, 0, 0, 0, 0, 0, 0]),
        record(PARAMS, &params),
        record(PARAMS, &[]),
        record(STDIN, &[]),
    ]
    .concat()
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program's path, for a unit. `None` is said on stderr.
fn program(name: &str) -> Option<String> {
    let found = find(name);
    if found.is_none() {
        leave_out(&format!("{name} is not installed"));
    }
    found
}

fn find(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [
        source("target/real-venv-web/bin"),
        "/usr/sbin".into(),
        "/usr/local/sbin".into(),
    ];
    let found = std::env::split_paths::<OsString>(&path)
        .chain(folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())?;
    Some(found.to_str()?.to_owned())
}

fn in_front(program: &str) -> String {
    format!("{program} ")
}

/// Past the test harness, which would keep what a passing test prints to itself.
fn leave_out(what: &str) {
    assert!(
        std::env::var_os("TENTPOLE_REQUIRE_REAL").is_none_or(|value| value != "1"),
        "{what}, and TENTPOLE_REQUIRE_REAL=1"
    );
    let line = format!("left out: {what}\n");
    io::stderr().write_all(line.as_bytes()).expect("say so");
}
