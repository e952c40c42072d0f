//! A program with a keeper, for the tests of the keeper alone: `tentpole-kept VERB ARG...`.
//!
//! | verb | does |
//! | --- | --- |
//! | `run UNITS` | the real manager, with a keeper |
//! | `obey SOCKET` | as a manager that does what it is told through a unix socket, line by line; see [`obey`] |

#![allow(clippy::zombie_processes)] // The keeper reaps what is left behind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use tentpole::runtime::inherited::Inherited;
use tentpole::runtime::keeper::{self, Origin, Word};
use tentpole::runtime::logger;
use tentpole::runtime::vault::Vault;
use tentpole::runtime::{self, Options};
use tentpole::sys::epoll::{Epoll, Interest};
use tentpole::sys::fork;
use tentpole::sys::memory;
use tentpole::sys::process::{self, Exit, Pid};
use tentpole::sys::signals::SignalFd;
use tentpole::unit::{LogFormat, LogLevel, Search};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("run") => run(&args[2..]),
        Some("obey") => obey(&args[2]),
        other => panic!("unknown verb {other:?}"),
    }
}

fn run(paths: &[String]) {
    let options = Options {
        search: Search {
            paths: paths.iter().map(Into::into).collect(),
            ..Search::default()
        },
        control: std::env::var_os("TENTPOLE_CONTROL").map(Into::into),
        keeper: true,
        ..Options::default()
    };
    match runtime::run(&options) {
        Ok(code) => exit(code),
        Err(error) => {
            eprintln!("{error}");
            exit(1);
        }
    }
}

/// Says `began PID PARENT STOP NAME=TEXT...` of itself and what it was handed, and does what each line says:
///
/// | line | does |
/// | --- | --- |
/// | `adopt` | says that it has taken over |
/// | `hold NAME TEXT` | has a file with this text held |
/// | `release NAME` | has it released |
/// | `tell TEXT` | tells it to the parent |
/// | `spawn SCRIPT` | starts a shell and says `spawned PID` |
/// | `reap PID` | says that an exit was acted on |
/// | `echo TEXT` | says it |
/// | `exit CODE`, `kill SIGNAL` | ends itself |
///
/// It says `signal N` of each that it gets, `exited PID GROUP CODE` or `exited PID GROUP -SIGNAL` of what the keeper tells, and `gone`.
fn obey(path: &str) {
    logger::init(LogLevel::Info, LogFormat::Text);
    let signals = SignalFd::new(&keeper::SIGNALS).expect("block signals");
    let (soft, _) = process::fd_limit().expect("the limit");
    let origin = Origin {
        signals: &signals,
        program: fork::program(),
        nofile: process::raise_fd_limit().expect("raise the limit"),
        is_sole: false,
    };
    let mut vault = Vault::open(soft, Some(origin)).expect("open the vault");
    let beginning = vault
        .take_over(&mut Inherited::default())
        .expect("take over");
    let (stop, held) = match beginning {
        None => (0, BTreeMap::new()),
        Some(taken) => (taken.stop.unwrap_or(0), taken.held),
    };
    let mut stream = UnixStream::connect(path).expect("connect to the test");
    let mut line = format!(
        "began {} {} {stop}",
        std::process::id(),
        std::os::unix::process::parent_id()
    );
    for (name, fd) in held {
        let mut text = [0; 64];
        let length = File::from(fd)
            .read_at(&mut text, 0)
            .expect("read what is held");
        line += &format!(" {name}={}", String::from_utf8_lossy(&text[..length]));
    }
    writeln!(stream, "{line}").expect("speak");

    let mut epoll = Epoll::new().expect("an epoll set");
    epoll.add(&stream, 0, Interest::Readable).expect("watch");
    epoll.add(&signals, 1, Interest::Readable).expect("watch");
    let link = vault.as_link().expect("a link");
    epoll.add(link, 2, Interest::Readable).expect("watch");
    let mut lines = BufReader::new(stream.try_clone().expect("clone"));
    loop {
        let ready: Vec<u64> = epoll
            .wait(None)
            .expect("wait")
            .iter()
            .map(|ready| ready.token)
            .collect();
        for token in ready {
            match token {
                0 => {
                    let mut line = String::new();
                    loop {
                        line.clear();
                        if lines.read_line(&mut line).expect("listen") == 0 {
                            exit(0);
                        }
                        act(line.trim_end(), &mut vault, &mut stream);
                        if lines.buffer().is_empty() {
                            break;
                        }
                    }
                }
                1 => {
                    while let Some(signal) = signals.read().expect("read a signal") {
                        if signal != libc::SIGCHLD {
                            vault.heard(signal);
                            writeln!(stream, "signal {signal}").expect("speak");
                        }
                    }
                }
                _ => {
                    while let Some(word) = vault.receive(&epoll) {
                        let Word::Exited(exited) = word else {
                            writeln!(stream, "gone").expect("speak");
                            break;
                        };
                        let code = match exited.exit {
                            Exit::Code(code) => code,
                            Exit::Signal { signal, .. } => -signal,
                        };
                        let group = exited.group.map_or(0, Pid::as_raw);
                        writeln!(stream, "exited {} {group} {code}", exited.pid).expect("speak");
                    }
                }
            }
        }
    }
}

fn act(line: &str, vault: &mut Vault, stream: &mut UnixStream) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "adopt" => vault.adopted().expect("say adopted"),
        "hold" => {
            let (name, text) = rest.split_once(' ').expect("a name and a text");
            let file = memory::file(c"kept").expect("a file");
            file.write_all_at(text.as_bytes(), 0).expect("write");
            vault.hold(&[(name, file.as_fd())]);
        }
        "release" => vault.release(&[rest]),
        "tell" => {
            let teller = vault.teller().expect("a teller").expect("a keeper");
            teller.send(rest.as_bytes()).expect("tell");
        }
        "spawn" => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", rest]);
            // It would inherit the mask.
            unsafe {
                command.pre_exec(|| {
                    let mut none = std::mem::zeroed();
                    libc::sigemptyset(&mut none);
                    libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
                    Ok(())
                });
            }
            let child = command.spawn().expect("spawn");
            writeln!(stream, "spawned {}", child.id()).expect("speak");
        }
        "reap" => vault.reap(Pid::new(rest.parse().expect("a pid")).expect("a pid")),
        "echo" => writeln!(stream, "{rest}").expect("speak"),
        "exit" => exit(rest.parse().expect("a code")),
        "kill" => {
            process::kill(Pid::own(), rest.parse().expect("a signal")).expect("kill");
            // Until it takes effect.
            loop {
                std::thread::park();
            }
        }
        other => panic!("unknown order {other:?}"),
    }
}
