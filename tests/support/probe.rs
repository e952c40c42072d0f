//! The program that black-box tests run as a worker: `tentpole-probe VERB ARG...`.
//!
//! | verb | does |
//! | --- | --- |
//! | `serve FD` | accepts on FD; answers each line-request: `pid`, `env NAME`, `argv`, `fds`, `exit N`, `hold` ... |
//! | `exit CODE` | exits |
//! | `sleep` | does nothing until it is ended |
//! | `ignore-term` | the same, and ignores SIGTERM |
//! | `notify TEXT...` | sends each TEXT to NOTIFY_SOCKET (`\n` between tags is `;`), then sleeps |
//! | `answer FD [COUNT]` | answers each connection of any stream or seqpacket socket with its pid; exits after COUNT |
//! | `echo FD [COUNT]` | answers each datagram with its pid and the text; exits after COUNT |
//! | `flood` | sends all kinds of messages to NOTIFY_SOCKET for ever |

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
        Some("answer") => answer(fd(&args), count(&args)),
        Some("echo") => echo(fd(&args), count(&args)),
        Some("flood") => flood(),
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

fn fd(args: &[String]) -> i32 {
    args[2].parse().expect("a descriptor")
}

fn count(args: &[String]) -> usize {
    args.get(3)
        .map_or(usize::MAX, |count| count.parse().expect("a count"))
}

fn answer(listener: i32, count: usize) {
    for _ in 0..count {
        let null = std::ptr::null_mut();
        let accepted = unsafe { libc::accept4(listener, null, null.cast(), libc::SOCK_CLOEXEC) };
        assert!(accepted >= 0, "accept: {}", std::io::Error::last_os_error());
        let mut connection = unsafe { std::fs::File::from_raw_fd(accepted) };
        let _ = write!(connection, "{}", std::process::id());
    }
}

fn echo(socket: i32, count: usize) {
    let mut buffer = [0u8; 4096];
    for _ in 0..count {
        let mut from: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&from) as libc::socklen_t;
        let from = (&raw mut from).cast();
        let size = buffer.len();
        let into = buffer.as_mut_ptr().cast();
        let received = unsafe { libc::recvfrom(socket, into, size, 0, from, &mut length) };
        let text = String::from_utf8_lossy(&buffer[..received.max(0) as usize]);
        let answer = format!("{} {text}", std::process::id());
        let bytes = answer.as_bytes();
        unsafe { libc::sendto(socket, bytes.as_ptr().cast(), bytes.len(), 0, from, length) };
    }
}

/// Everything that a program may send by mistake, one after the other.
fn flood() {
    let long = format!("STATUS={}", "x".repeat(60_000));
    for number in 0u64.. {
        match number % 8 {
            0 => notify("READY=maybe;WATCHDOG=;=;=;;;"),
            1 => notify(&long),
            2 => notify("MAINPID=1"),
            3 => notify("MAINPID=-5\nERRNO=many\nEXTEND_TIMEOUT_USEC=99999999999999999999999"),
            4 => notify("\0\0\0STATUS=\0"),
            5 => notify("FDSTORE=1\nFDNAME=x"),
            6 => notify(&format!("STATUS=line {number}")),
            _ => notify("\u{fffd}\u{202e}"),
        }
    }
}
