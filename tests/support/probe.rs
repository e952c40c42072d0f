//! The program that black-box tests run as a worker: `tentpole-probe VERB ARG...`.
//!
//! | verb | does |
//! | --- | --- |
//! | `serve FD` | accepts on FD; answers each line-request: `pid`, `env NAME`, `argv`, `fds`, `exit N`, `hold` ... |
//! | `exit CODE` | exits |
//! | `sleep` | does nothing until it is ended |
//! | `ignore-term` | the same, and ignores SIGTERM |
//! | `notify TEXT...` | sends each TEXT to NOTIFY_SOCKET (`\n` between tags is `;`), then sleeps |

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => serve(args[2].parse().expect("a descriptor")),
        Some("exit") => std::process::exit(args[2].parse().expect("a code")),
        Some("sleep") => sleep(),
        Some("ignore-term") => {
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            sleep();
        }
        Some("notify") => {
            for text in &args[2..] {
                notify(&text.replace(';', "\n"));
            }
            sleep();
        }
        other => panic!("unknown verb {other:?}"),
    }
}

fn sleep() -> ! {
    loop {
        std::thread::park();
    }
}

/// Sends one message to NOTIFY_SOCKET.
fn notify(text: &str) {
    let name = std::env::var("NOTIFY_SOCKET").expect("NOTIFY_SOCKET");
    let socket = UnixDatagram::unbound().expect("a socket");
    match name.strip_prefix('@') {
        Some(name) => {
            let address = SocketAddr::from_abstract_name(name).expect("an address");
            socket
                .send_to_addr(text.as_bytes(), &address)
                .expect("notify");
        }
        None => {
            socket.send_to(text.as_bytes(), name).expect("notify");
        }
    }
}

fn serve(fd: i32) {
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    loop {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("clone"))
            .read_line(&mut line)
            .expect("read");
        let mut words = line.split_whitespace();
        let answer = match (words.next(), words.next()) {
            (Some("pid"), _) => std::process::id().to_string(),
            (Some("env"), Some(name)) => std::env::var(name).unwrap_or_else(|_| "-".into()),
            (Some("argv"), _) => std::env::args().collect::<Vec<_>>().join(" "),
            (Some("fds"), _) => fds(),
            (Some("exit"), Some(code)) => std::process::exit(code.parse().expect("a code")),
            other => format!("unknown request {other:?}"),
        };
        let _ = writeln!(stream, "{answer}");
    }
}

/// The open descriptors, without the one that lists them and those of the request.
fn fds() -> String {
    let mut fds: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .expect("a list")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } & libc::FD_CLOEXEC == 0)
        .collect();
    fds.sort_unstable();
    fds.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}
