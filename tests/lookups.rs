//! Host names: they are looked up beside everything else, and a name server that does not answer holds nothing up.

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::{Manager, kill, leave_out, needs_program, needs_root, poll, spawn_by_script};

/// What takes longer has waited for the name server.
const SOON: Duration = Duration::from_secs(4);

/// A name server that takes questions, and answers each with 127.0.0.1 once it is told to.
struct NameServer {
    address: String,
    answers: Arc<AtomicBool>,
    questions: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// At an address that only one test has; `None` where the tests may not have one.
    fn start(address: &str) -> Option<NameServer> {
        if !needs_root() || !needs_program("unshare") {
            return None;
        }
        let socket = match UdpSocket::bind((address, 53)) {
            Ok(socket) => socket,
            Err(error) => {
                leave_out(&format!("there is no name server to be had: {error}"));
                return None;
            }
        };
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let answers = Arc::new(AtomicBool::new(false));
        let questions = Arc::new(AtomicUsize::new(0));
        let ends = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (answers, ends) = (Arc::clone(&answers), Arc::clone(&ends));
            let questions = Arc::clone(&questions);
            move || serve(&socket, &answers, &questions, &ends)
        });
        Some(NameServer {
            address: address.to_owned(),
            answers,
            questions,
            ends,
            thread: Some(thread),
        })
    }

    /// Waits until somebody has asked it anew.
    fn wait_for_a_question(&self) {
        let asked = self.questions.load(Ordering::SeqCst);
        let is_asked = || self.questions.load(Ordering::SeqCst) > asked;
        poll(|| is_asked().then_some(())).expect("no question");
    }

    fn answer(&self) {
        self.answers.store(true, Ordering::SeqCst);
    }

    /// A manager that asks this name server and no other.
    fn manager(&self, units: &str) -> Manager {
        self.manager_that_asks_anew_after(1, units)
    }

    fn manager_that_asks_anew_after(&self, seconds: u32, units: &str) -> Manager {
        let script = format!(
            "printf 'nameserver {}\\noptions timeout:{seconds} attempts:5\\n' > \"$TENTPOLE_CONTROL.resolv\"; \
             exec unshare -m sh -c 'mount --bind \"$TENTPOLE_CONTROL.resolv\" /etc/resolv.conf && exec \"$@\"' sh \"$@\"",
            self.address
        );
        spawn_by_script(units, &script, |_| {})
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(socket: &UdpSocket, answers: &AtomicBool, questions: &AtomicUsize, ends: &AtomicBool) {
    let mut buffer = [0; 512];
    while !ends.load(Ordering::SeqCst) {
        let Ok((count, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        questions.fetch_add(1, Ordering::SeqCst);
        if !answers.load(Ordering::SeqCst) {
            continue;
        }
        // The header has 12 bytes; the question is a name, which ends with a zero, then type and class.
        let name = buffer[12..count].iter().position(|byte| *byte == 0);
        let end = 12 + name.expect("a name") + 5;
        let is_v4 = buffer[end - 4..end - 2] == [0, 1];
        let mut answer = buffer[..end].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
        if is_v4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
        }
        let _ = socket.send_to(&answer, client);
    }
}

const OPTIONAL: &str = "[socket.far]\nlisten = \"far.tentpole.example:0\"\noptional = true\n[watcher.w]\n\
                        cmd = \"PROBE sleep\"\nuse_sockets = true\n";

const PLAIN: &str = "[watcher.w]\ncmd = \"PROBE sleep\"\n";

#[test]
fn an_optional_socket_whose_name_is_not_found_holds_nothing_up() {
    let Some(server) = NameServer::start("127.83.0.1") else {
        return;
    };
    let begun = Instant::now();
    // One that has the socket would wait for it.
    let mut manager = server.manager(&OPTIONAL.replace("use_sockets = true\n", ""));
    manager.wait_for_notice("READY=1");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    // By now it is looked up again.
    server.wait_for_a_question();

    let begun = Instant::now();
    assert_eq!(manager.socket("far")["state"], "failed");
    let first = manager.pids("w")[0];
    kill(first, libc::SIGKILL);
    poll(|| {
        manager
            .pids("w")
            .first()
            .filter(|pid| **pid != first)
            .copied()
    })
    .expect("no successor");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());

    let begun = Instant::now();
    assert!(manager.stop().success());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn an_optional_socket_is_bound_when_its_name_is_found() {
    let Some(server) = NameServer::start("127.83.0.2") else {
        return;
    };
    let manager = server.manager(OPTIONAL);
    manager.wait_for_notice("READY=1");
    server.answer();
    manager.wait_for_socket("far", "listening");
    let address = manager.address("far");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
}

#[test]
fn a_name_that_is_found_at_the_start_is_there_from_the_beginning() {
    let Some(server) = NameServer::start("127.83.0.3") else {
        return;
    };
    server.answer();
    let manager = server.manager(&OPTIONAL.replace("optional = true\n", ""));
    manager.wait_for_notice("READY=1");
    assert_eq!(manager.socket("far")["state"], "listening");
    assert_eq!(manager.watcher("w")["workers"][0]["generation"], 1);
}

#[test]
fn a_start_that_waits_for_a_name_ends_at_once_at_a_signal_and_else_in_time() {
    let Some(server) = NameServer::start("127.83.0.4") else {
        return;
    };
    let units = OPTIONAL.replace("optional = true\n", "");
    let mut manager = server.manager(&units);
    server.wait_for_a_question();
    let begun = Instant::now();
    assert!(manager.stop().success(), "{}", manager.log());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());

    let mut manager = server.manager_that_asks_anew_after(30, &units);
    assert_eq!(manager.wait().code(), Some(1));
    let log = manager.log();
    assert!(
        log.contains("socket `far`: far.tentpole.example:0 can't be looked up: there was no answer within 10s"),
        "{log}"
    );
}

#[test]
fn an_apply_waits_for_its_names_and_nothing_else_does() {
    let Some(server) = NameServer::start("127.83.0.5") else {
        return;
    };
    let manager = server.manager(PLAIN);
    manager.wait_for_notice("READY=1");
    let units = OPTIONAL.replace("optional = true\n", "");
    support::write_units(manager.path("").as_path(), &units);
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| manager.cli(&["apply"]));
        server.wait_for_a_question();
        let refused = poll(|| {
            let begun = Instant::now();
            let output = manager.cli(&["apply"]);
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            text.contains("another apply is under way").then_some(text)
        });
        refused.expect("a second apply goes on");
        let begun = Instant::now();
        manager.ok(&["scale", "w", "2"]);
        assert_eq!(manager.pids("w").len(), 2);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        server.answer();
        let output = apply.join().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
    assert_eq!(manager.socket("far")["state"], "listening");
}

#[test]
fn an_apply_that_waits_for_a_name_ends_with_the_manager() {
    let Some(server) = NameServer::start("127.83.0.6") else {
        return;
    };
    let mut manager = server.manager(PLAIN);
    manager.wait_for_notice("READY=1");
    let units = OPTIONAL.replace("optional = true\n", "");
    support::write_units(manager.path("").as_path(), &units);
    let begun = Instant::now();
    let apply = support::command(manager.path("").as_path())
        .arg("apply")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    server.wait_for_a_question();
    assert!(manager.stop().success());
    let output = apply.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("shutting down"), "{text}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn a_name_that_leads_to_another_socket_of_the_manager_is_refused_with_its_name() {
    let Some(server) = NameServer::start("127.83.0.7") else {
        return;
    };
    server.answer();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let manager = server.manager(&format!(
        "[socket.near]\nlisten = \"0.0.0.0:{port}\"\n[socket.z]\nlisten = \"far.tentpole.example:{port}\"\noptional = true\n"
    ));
    manager.wait_for_notice("READY=1");
    let error = manager.socket("z")["error"].to_string();
    assert!(
        error.contains(&format!(
            ":{port} is in use by socket `near` of this manager"
        )),
        "{error}"
    );
}
