//! Sockets: what is bound, how it reaches the workers, and that it stays.

mod support;

use support::{Manager, ask};

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
