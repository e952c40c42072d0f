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
//! | `count FD [MILLISECONDS]` | ready after that time, answers the requests of `load.rs` and counts every byte; see [`count_bytes`] |
//! | `flood` | sends all kinds of messages to NOTIFY_SOCKET for ever |
//! | `do STEP , STEP...` | carries out steps, then exits with 0; see [`step`] |

#![allow(clippy::zombie_processes)] // Leaving children behind is what it is for.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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
        Some("count") => count_bytes(fd(&args), count(&args)),
        Some("flood") => flood(),
        Some("do") => run(&args[2..]),
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

/// What a worker has done, in whole requests and in bytes.
#[derive(Default)]
struct Counted {
    connections: AtomicU64,
    requests: AtomicU64,
    taken: AtomicU64,
    given: AtomicU64,
    /// Connections that it accepted and could not answer to the end.
    broken: AtomicU64,
}

/// Answers requests of a line `LENGTH` and so many bytes with a line `LENGTH PID WORD` and the same bytes inverted, as
/// many on one connection as its client likes. At SIGTERM it accepts nothing more; whoever was accepted has one more
/// request answered, with the word `last` instead of `more`. At the end it appends a line to the file COUNTED, if that is
/// set: connections, requests, bytes taken, bytes given, broken connections. The listener must not block.
fn count_bytes(listener: i32, delay: usize) {
    let delay = if delay == usize::MAX { 0 } else { delay };
    let counted = Arc::new(Counted::default());
    let ending = Arc::new(AtomicBool::new(false));
    mask(libc::SIGTERM);
    let signal = unsafe { libc::signalfd(-1, &signals(libc::SIGTERM), libc::SFD_CLOEXEC) };
    assert!(signal >= 0, "{}", std::io::Error::last_os_error());
    let flags = unsafe { libc::fcntl(listener, libc::F_GETFL) };
    assert!(flags & libc::O_NONBLOCK != 0, "the listener would block");
    std::thread::sleep(Duration::from_millis(delay as u64));
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        notify("READY=1");
    }
    let mut threads = Vec::new();
    loop {
        let mut fds = [listener, signal].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if fds[1].revents != 0 {
            break;
        }
        let null = std::ptr::null_mut();
        let accepted = unsafe { libc::accept4(listener, null, null.cast(), libc::SOCK_CLOEXEC) };
        if accepted < 0 {
            // Another worker was faster.
            continue;
        }
        let stream = unsafe { File::from_raw_fd(accepted) };
        let (counted, ending) = (Arc::clone(&counted), Arc::clone(&ending));
        threads.push(std::thread::spawn(move || {
            counted.connections.fetch_add(1, Ordering::Relaxed);
            if answer_requests(&stream, &counted, &ending).is_err() {
                counted.broken.fetch_add(1, Ordering::Relaxed);
            }
        }));
        threads.retain(|thread| !thread.is_finished());
    }
    ending.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("no panic");
    }
    if let Ok(file) = std::env::var("COUNTED") {
        let Counted {
            connections,
            requests,
            taken,
            given,
            broken,
        } = &*counted;
        let numbers = [connections, requests, taken, given, broken];
        let numbers = numbers.map(|number| number.load(Ordering::SeqCst).to_string());
        append(&file, &numbers.join(" "));
    }
}

fn answer_requests(stream: &File, counted: &Counted, ending: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let length = line.trim_end().parse().map_err(std::io::Error::other)?;
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        counted
            .taken
            .fetch_add((line.len() + length) as u64, Ordering::Relaxed);
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        let is_last = ending.load(Ordering::SeqCst);
        let word = if is_last { "last" } else { "more" };
        let mut answer = format!("{length} {} {word}\n", std::process::id()).into_bytes();
        answer.append(&mut bytes);
        writer.write_all(&answer)?;
        counted
            .given
            .fetch_add(answer.len() as u64, Ordering::Relaxed);
        counted.requests.fetch_add(1, Ordering::Relaxed);
        if is_last {
            return Ok(());
        }
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

/// Carries out steps that are separated by `,`, one after the other.
fn run(words: &[String]) {
    let mut depth = 0;
    let mut from = 0;
    for (index, word) in words.iter().enumerate() {
        match word.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                step(&words[from..index]);
                from = index + 1;
            }
            _ => {}
        }
    }
    step(&words[from..]);
}

/// One step. `{ STEP , STEP }` is a list of steps.
///
/// | step | does |
/// | --- | --- |
/// | `append FILE TEXT` | appends a line; in it `%p` is the pid, `%t` the time in milliseconds, `%w` the wid |
/// | `append-env FILE NAME...` | appends `NAME=value` lines; `NAME` alone where it is not set |
/// | `notify TEXT` | tells the manager; `;` is a line break, `%k` the parent of the parent |
/// | `notify-padded SIZE TEXT` | the same, filled up to SIZE bytes |
/// | `notify-bytes TEXT HEX` | the same, followed by bytes |
/// | `notify-fd TEXT FILE` | the same, with the opened FILE |
/// | `repeat MILLISECONDS TEXT` | the same for ever |
/// | `barrier` | waits until the manager has taken everything |
/// | `await FILE` | waits until the file is there |
/// | `delay MILLISECONDS` | waits |
/// | `once FILE { }` | unless the file is there, makes it, and does the steps |
/// | `unless FILE { }` | unless the file is there, does the steps |
/// | `child { }` | does the steps in a child, and goes on |
/// | `daemon { }` | the same in a process of its own session whose parent has ended |
/// | `bare-child { }` `bare-daemon { }` | the same without an environment; a bare child leads a session of its own |
/// | `main-child { }` | the same in a child, which becomes the main process |
/// | `main-awaited { }` | the same, and waits for its end |
/// | `session` | begins a session of its own |
/// | `block SIGNAL` `until SIGNAL` | keeps a signal, and waits for it |
/// | `ignore SIGNAL` `raise SIGNAL` `exit CODE` `sleep` | what they say |
/// | `serve FD` | as the verb |
fn step(words: &[String]) {
    let word = |index: usize| -> &str {
        words
            .get(index)
            .unwrap_or_else(|| panic!("{words:?} is incomplete"))
    };
    let number = |index: usize| -> i32 { word(index).parse().expect("a number") };
    let pause = |index: usize| {
        std::thread::sleep(std::time::Duration::from_millis(
            word(index).parse().expect("a number"),
        ));
    };
    let inner = |index: usize| &words[index + 1..words.len() - 1];
    let is_there = |index: usize| std::path::Path::new(word(index)).exists();
    match word(0) {
        "append" => append(word(1), &words[2..].join(" ")),
        "append-env" => {
            for name in &words[2..] {
                match std::env::var(name) {
                    Ok(value) => append(word(1), &format!("{name}={value}")),
                    Err(_) => append(word(1), name),
                }
            }
        }
        "notify" => {
            let mut text = word(1).replace(';', "\n");
            if text.contains("%k") {
                text = text.replace("%k", &grandparent().to_string());
            }
            notify(&text);
        }
        "notify-padded" => {
            let mut text = format!("{}\nX=", word(2).replace(';', "\n"));
            while text.len() < number(1) as usize {
                text.push('x');
            }
            notify(&text);
        }
        "notify-bytes" => {
            let mut bytes = word(1).replace(';', "\n").into_bytes();
            for pair in word(2).as_bytes().chunks(2) {
                let pair = std::str::from_utf8(pair).expect("is ASCII");
                bytes.push(u8::from_str_radix(pair, 16).expect("is hexadecimal"));
            }
            notify_with(&bytes, None);
        }
        "notify-fd" => {
            let file = std::fs::File::open(word(2)).expect("open");
            notify_with(
                word(1).replace(';', "\n").as_bytes(),
                Some(std::os::fd::AsRawFd::as_raw_fd(&file)),
            );
        }
        "repeat" => loop {
            notify(&word(2).replace(';', "\n"));
            pause(1);
        },
        "barrier" => {
            let (mut read, write) = std::io::pipe().expect("a pipe");
            notify_with(b"BARRIER=1", Some(std::os::fd::AsRawFd::as_raw_fd(&write)));
            drop(write);
            let _ = std::io::Read::read(&mut read, &mut [0]).expect("the end");
        }
        "await" => {
            while !is_there(1) {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        "delay" => pause(1),
        "once" => {
            if std::fs::File::create_new(word(1)).is_ok() {
                run(inner(2));
            }
        }
        "unless" => {
            if !is_there(1) {
                run(inner(2));
            }
        }
        "child" => {
            again(inner(1)).spawn().expect("a child");
        }
        "bare-child" => {
            let mut child = again(inner(1));
            child.env_clear();
            unsafe {
                child.pre_exec(|| {
                    libc::setsid();
                    Ok(())
                });
            }
            child.spawn().expect("a child");
        }
        "daemon" | "bare-daemon" => {
            // The one in the middle ends at once, so that nobody but an init or a subreaper is the parent.
            let mut middle = again(&[]);
            if word(0) == "bare-daemon" {
                middle.env_clear();
            }
            middle.args(["daemon-middle", "{"]).args(inner(1)).arg("}");
            middle.status().expect("a child");
        }
        "daemon-middle" => {
            unsafe { libc::setsid() };
            again(inner(1)).spawn().expect("a child");
        }
        "main-child" | "main-awaited" => {
            let mut child = again(inner(1)).spawn().expect("a child");
            notify(&format!("MAINPID={}\nREADY=1", child.id()));
            if word(0) == "main-awaited" {
                child.wait().expect("its end");
            }
        }
        "session" => {
            unsafe { libc::setsid() };
        }
        "block" => mask(number(1)),
        "until" => {
            let mut got = 0;
            unsafe { libc::sigwait(&signals(number(1)), &mut got) };
        }
        "ignore" => {
            unsafe { libc::signal(number(1), libc::SIG_IGN) };
        }
        "raise" => {
            unsafe { libc::raise(number(1)) };
        }
        "exit" => std::process::exit(number(1)),
        "sleep" => sleep(),
        "serve" => serve(number(1)),
        other => panic!("unknown step {other:?}"),
    }
}

fn grandparent() -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", unsafe { libc::getppid() }));
    let stat = stat.expect("a parent");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let field = rest.split_whitespace().nth(1).expect("its parent");
    field.parse().expect("a number")
}

/// This program with other steps.
fn again(steps: &[String]) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::args_os().next().expect("a name"));
    command.arg("do").args(steps);
    command
}

fn append(file: &str, text: &str) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let line = text
        .replace("%p", &std::process::id().to_string())
        .replace("%w", &std::env::var("TENTPOLE_WID").unwrap_or_default())
        .replace(
            "%t",
            &(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).to_string(),
        );
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .expect("open");
    file.write_all(format!("{line}\n").as_bytes())
        .expect("append");
}

fn signals(signal: i32) -> libc::sigset_t {
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        set
    }
}

fn mask(signal: i32) {
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &signals(signal), std::ptr::null_mut()) };
}

/// Sends any bytes to NOTIFY_SOCKET, with a descriptor.
fn notify_with(bytes: &[u8], fd: Option<i32>) {
    let name = std::env::var("NOTIFY_SOCKET").expect("NOTIFY_SOCKET");
    let socket = UnixDatagram::unbound().expect("a socket");
    match name.strip_prefix('@') {
        Some(name) => socket
            .connect_addr(&SocketAddr::from_abstract_name(name).expect("an address"))
            .expect("connect"),
        None => socket.connect(name).expect("connect"),
    }
    let mut data = libc::iovec {
        iov_base: bytes.as_ptr() as *mut libc::c_void,
        iov_len: bytes.len(),
    };
    let mut control = [0u64; 4];
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut data;
        message.msg_iovlen = 1;
        if let Some(fd) = fd {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        }
        let sent = libc::sendmsg(std::os::fd::AsRawFd::as_raw_fd(&socket), &message, 0);
        assert!(sent >= 0, "{}", std::io::Error::last_os_error());
    }
}
