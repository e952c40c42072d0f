//! The process that was started, PID 1 in a container: it holds what must outlive the manager, which is its child.
//!
//! It reaps, forwards signals, starts a new manager when one was ended by a signal, and does nothing else. In particular it
//! knows nothing of units: descriptors are held by names that are the manager's alone, and the manager's own state is one
//! of them, a file in memory.
//!
//! - *The manager ends with an exit code*: that is the end, and the keeper exits with the same.
//! - *The manager is ended by a signal* (SIGKILL, the SIGABRT of a panic, SIGSEGV): a new one is started from the path that
//!   this program was started from, at once, and after further deaths with a growing pause. It says `Hello`, receives
//!   what is held, and says `Adopted` when it has taken over. One that ends before that has failed, by whatever code: the
//!   next is tried from the keeper's own image, which can read what the first manager wrote. If a stop was asked for and
//!   nobody can be started who would do it, the keeper passes SIGTERM to its children and ends.
//! - *Signals* go to the manager by its pid, and it says which it has heard. Those that it has not when it dies, and those
//!   that come while there is none, are for the next one. The last signal to stop that was heard is told to each new
//!   manager, since nobody knows whether the old one had time to act on it.
//! - *Exits*: the workers of a dead manager are the keeper's children from then on, as every orphan is. Each exit is told to
//!   the manager, one after the other, and the zombie keeps its number until the manager has acted on it (`Reap`). So
//!   no exit is lost, not even if the manager dies with the message unread: the next one is told again.
//!
//! Nobody can wait for the other in a circle. The keeper never waits for the manager: it sends only what was asked for (a
//! part of what is held for each `Hello` and `More`) and one exit at a time, and if there should be no room even for that,
//! the zombie stays and waits for room. So what it has to remember for a manager that stands still is nothing. The
//! manager waits for the keeper only between `Hello` and `Adopted`, when there is nothing else for it to do; later, what
//! there is no room for is kept by name, the latest word on each, until there is ([`Link`]). Neither is in the way of
//! the other's signals or exits.

mod link;
pub mod protocol;

pub use link::{Exited, Link, Taken, Teller, Word};

use super::{logger, parent};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::fork::{self, Side};
use crate::sys::process::{self, Exit, Pid};
use crate::sys::signals::{self, SignalFd};
use crate::sys::spawn::{Child, Spawn, Spawner};
use crate::sys::unix::{self, Received};
use crate::unit::{LogFormat, LogLevel, Signal, signal_name};
use protocol::{FromKeeper, LONGEST, MOST_AT_ONCE, ToKeeper};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CString, OsString};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// The variable that tells a manager the number of its end of the link.
pub const VARIABLE: &str = "TENTPOLE_KEEPER";

/// That number.
const LINK_FD: i32 = 3;

/// What the manager takes as signals; others have their default effect on the keeper.
const FORWARDED: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Those of them that ask the manager to end.
const STOP: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// The pause before a new manager: none, then the first of these, doubled each time up to the second, until one has lived
/// as long as the third.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_millis(100);

/// The most descriptors that are held.
const MOST_HELD: usize = 1 << 16;

/// Messages to the manager's parent that may wait for room.
const MOST_TOLD: usize = 32;

/// Messages taken in one turn, so that signals and exits have theirs.
const MESSAGES_PER_TURN: usize = 64;

/// Makes this process a keeper, and a child of it the manager, which goes on from here with the link to it. Whatever this
/// process has open but 0 to 2 is the manager's. [`FORWARDED`] signals must be blocked, so that none is lost.
pub fn begin() -> io::Result<Link> {
    let (ours, theirs) = unix::message_pair()?;
    match fork::fork()? {
        Side::Child => Ok(Link::new(theirs, true)),
        Side::Parent(manager) => fork::leave_for(ours, |link| keep(link, manager)),
    }
}

fn keep(link: OwnedFd, manager: Pid) -> i32 {
    logger::init(LogLevel::Info, LogFormat::Text);
    match Keeper::new(link, manager) {
        Ok(keeper) => keeper.run(),
        Err(error) => {
            log::error!(target: "keeper", "can't look after the manager, so it is told to stop: {error}");
            let _ = process::kill(manager, libc::SIGTERM);
            1
        }
    }
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Token {
    Signals,
    Link,
    Parent,
}

#[derive(Debug)]
enum Manager {
    /// The first one, or one that has taken over.
    Up { pid: Pid, since: Duration },
    /// It was started, and has not taken over.
    Coming { pid: Pid, since: Duration },
    /// There is none until then.
    Due(Duration),
}

struct Keeper {
    epoll: Epoll,
    signals: SignalFd,
    program: Option<PathBuf>,
    /// The limit of open descriptors that a manager is started with.
    nofile: Option<(u64, u64)>,
    manager: Manager,
    link: Option<OwnedFd>,
    held: BTreeMap<String, OwnedFd>,
    /// The last name that a new manager was handed.
    handed: Option<String>,
    /// The exit that the manager was told of and has not acted on.
    told: Option<Pid>,
    /// Whether an exit waits for room on the link.
    is_full: bool,
    /// Signals that no manager was sent yet.
    waiting: BTreeSet<i32>,
    /// Signals that the manager was sent and has not heard.
    sent: BTreeSet<i32>,
    /// The last signal to stop that one has heard.
    stop: Option<i32>,
    pause: Duration,
    /// Managers in a row that have not taken over.
    failures: u32,
    parent: Parent,
}

impl Keeper {
    fn new(link: OwnedFd, manager: Pid) -> io::Result<Keeper> {
        let mut all = FORWARDED.to_vec();
        all.push(libc::SIGCHLD);
        let signals = SignalFd::new(&all)?;
        signals::ignore(libc::SIGXFSZ)?;
        if Pid::own().as_raw() != 1 {
            process::set_subreaper()?;
        }
        let epoll = Epoll::new()?;
        epoll.add(&signals, Token::Signals as u64, Interest::Readable)?;
        epoll.add(&link, Token::Link as u64, Interest::Readable)?;
        Ok(Keeper {
            epoll,
            signals,
            program: fork::program(),
            nofile: process::raise_fd_limit().ok().flatten(),
            manager: Manager::Up {
                pid: manager,
                since: process::monotonic_now(),
            },
            link: Some(link),
            held: BTreeMap::new(),
            handed: None,
            told: None,
            is_full: false,
            waiting: BTreeSet::new(),
            sent: BTreeSet::new(),
            stop: None,
            pause: Duration::ZERO,
            failures: 0,
            parent: Parent::default(),
        })
    }

    fn run(mut self) -> i32 {
        loop {
            let timeout = match self.manager {
                Manager::Due(at) => Some(at.saturating_sub(process::monotonic_now())),
                Manager::Up { .. } | Manager::Coming { .. } => None,
            };
            if let Err(error) = self.epoll.wait(timeout) {
                log::error!(target: "keeper", "waiting failed: {error}");
            }
            if let Some(code) = self.turn() {
                return code;
            }
        }
    }

    /// Looks after everything once; the answer is the exit code if this was all.
    fn turn(&mut self) -> Option<i32> {
        while let Ok(Some(signal)) = self.signals.read() {
            if signal != libc::SIGCHLD {
                self.waiting.insert(signal);
            }
        }
        let now = process::monotonic_now();
        if let Some(code) = self.look_at_manager(now) {
            return Some(code);
        }
        self.take_messages(MESSAGES_PER_TURN);
        self.forward_signals();
        self.tell_exits();
        // There may be room now.
        self.parent.send(&self.epoll);
        match self.manager {
            Manager::Due(at) if at <= now => self.start(now),
            _ => None,
        }
    }

    fn look_at_manager(&mut self, now: Duration) -> Option<i32> {
        let (pid, since, was_up) = match self.manager {
            Manager::Up { pid, since } => (pid, since, true),
            Manager::Coming { pid, since } => (pid, since, false),
            Manager::Due(_) => return None,
        };
        // While it runs this fails.
        let exit = process::reap(pid).ok()?;
        // What it has said before its end counts.
        self.take_messages(usize::MAX);
        self.close_link();
        match exit {
            Exit::Code(code) if was_up || self.held.is_empty() => return Some(code),
            Exit::Code(code) => {
                log::error!(target: "keeper", "the new manager (pid {pid}) did not take over: it exited with {code}");
            }
            Exit::Signal { signal, core } => {
                let name = signal_name(Signal(signal));
                let core = if core { " (core dumped)" } else { "" };
                log::error!(target: "keeper", "the manager (pid {pid}) was ended by signal {name}{core}");
            }
        }
        if was_up {
            self.failures = 0;
            if now.saturating_sub(since) >= STEADY {
                self.pause = Duration::ZERO;
            }
            self.plan_start(now);
            None
        } else {
            self.fail(now)
        }
    }

    fn plan_start(&mut self, now: Duration) {
        let pause = self.pause;
        if !pause.is_zero() {
            log::info!(target: "keeper", "the next manager is started in {pause:?}");
        }
        self.manager = Manager::Due(now + pause);
        self.pause = (pause * 2).clamp(PAUSE, LONGEST_PAUSE);
    }

    /// A new manager has not come up.
    fn fail(&mut self, now: Duration) -> Option<i32> {
        self.failures += 1;
        let stop = self.stop.is_some() || STOP.iter().any(|signal| self.waiting.contains(signal));
        // Both images were tried by then.
        if stop && self.failures >= 2 {
            log::error!(target: "keeper", "a stop was asked for, and no manager can be started to do it: all processes are sent SIGTERM");
            for child in process::children().unwrap_or_default() {
                let _ = process::kill(child, libc::SIGTERM);
            }
            return Some(1);
        }
        self.plan_start(now);
        None
    }

    fn start(&mut self, now: Duration) -> Option<i32> {
        let started = self.spawn().and_then(|(pid, link)| {
            let added = self
                .epoll
                .add(&link, Token::Link as u64, Interest::Readable);
            added.map_err(|error| {
                let _ = process::kill(pid, libc::SIGKILL);
                error.to_string()
            })?;
            Ok((pid, link))
        });
        match started {
            Ok((pid, link)) => {
                log::info!(target: "keeper", "a new manager (pid {pid}) takes over");
                self.manager = Manager::Coming { pid, since: now };
                self.link = Some(link);
                None
            }
            Err(error) => {
                log::error!(target: "keeper", "no new manager could be started: {error}");
                self.fail(now)
            }
        }
    }

    /// Executes the program anew, with the arguments and the environment that it was started with, and a link.
    fn spawn(&self) -> Result<(Pid, OwnedFd), String> {
        let (ours, theirs) = unix::message_pair().map_err(|error| error.to_string())?;
        let mut spawner = Spawner::new().map_err(|error| error.to_string())?;
        if let Some((soft, hard)) = self.nofile {
            spawner.restore_nofile(soft, hard);
        }
        let mut candidates: Vec<CString> = self
            .program
            .iter()
            .filter_map(|path| CString::new(path.clone().into_os_string().into_vec()).ok())
            .collect();
        candidates.push(c"/proc/self/exe".to_owned());
        if self.failures % 2 == 1 {
            candidates.reverse();
        }
        // What execve(2) has given us holds no NUL byte.
        let c_strings = |texts: Vec<OsString>| -> Vec<CString> {
            let texts = texts.into_iter();
            texts
                .filter_map(|text| CString::new(text.into_vec()).ok())
                .collect()
        };
        let Child { pid, .. } = spawner
            .spawn(&Spawn {
                candidates: &candidates,
                argv: &c_strings(std::env::args_os().collect()),
                env: &c_strings(environment(std::env::vars_os(), Pid::own())),
                fds: &[(theirs.as_fd(), LINK_FD)],
                ..Spawn::default()
            })
            .map_err(|error| error.to_string())?;
        Ok((pid, ours))
    }

    fn forward_signals(&mut self) {
        let Manager::Up { pid, .. } = self.manager else {
            return;
        };
        while let Some(signal) = self.waiting.pop_first() {
            if let Err(error) = process::kill(pid, signal) {
                log::error!(target: "keeper", "signal {} could not be sent to the manager: {error}", signal_name(Signal(signal)));
            }
            self.sent.insert(signal);
        }
    }

    /// Tells the manager of one ended child, if it has acted on the last one.
    fn tell_exits(&mut self) {
        let Manager::Up { pid: manager, .. } = self.manager else {
            return;
        };
        if self.told.is_some() {
            return;
        }
        let (pid, exit) = match process::peek_exit() {
            Ok(Some((pid, exit))) if pid != manager => (pid, exit),
            Ok(_) => return,
            Err(error) => {
                log::error!(target: "keeper", "looking for ended children failed: {error}");
                return;
            }
        };
        let group = process::group_of(pid).ok();
        let sent = self.say(&FromKeeper::Exited { pid, group, exit }, &[]);
        // A manager without a link is about to end: its descriptors are closed before it is a zombie.
        let is_broken = matches!(&sent, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        self.told = Some(pid).filter(|_| sent.is_ok());
        self.wait_for_room(sent.is_err() && !is_broken);
    }

    fn wait_for_room(&mut self, is_full: bool) {
        let Some(link) = self.link.as_ref().filter(|_| is_full != self.is_full) else {
            return;
        };
        let interest = if is_full {
            Interest::Both
        } else {
            Interest::Readable
        };
        if self
            .epoll
            .modify(link, Token::Link as u64, interest)
            .is_ok()
        {
            self.is_full = is_full;
        }
    }

    fn say(&self, message: &FromKeeper<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let link = self.link.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        unix::send(link, &message.encode(), fds)
    }

    fn take_messages(&mut self, most: usize) {
        let mut buffer = [0; LONGEST];
        for _ in 0..most {
            let Some(link) = &self.link else {
                return;
            };
            match unix::receive(link, &mut buffer) {
                Ok(Received::Nothing) => return,
                Ok(Received::End) => return self.close_link(),
                Ok(Received::Message {
                    length,
                    fds,
                    truncated,
                }) => {
                    if truncated {
                        log::error!(target: "keeper", "descriptors of the manager can't be held: the limit of open files is reached");
                    } else if let Some(message) = ToKeeper::decode(&buffer[..length]) {
                        self.take(message, fds);
                    }
                }
                Err(error) => {
                    log::error!(target: "keeper", "the link to the manager failed: {error}");
                    return self.close_link();
                }
            }
        }
    }

    fn take(&mut self, message: ToKeeper<'_>, fds: Vec<OwnedFd>) {
        match message {
            ToKeeper::Hello => {
                self.handed = None;
                self.hand_on();
            }
            ToKeeper::More => self.hand_on(),
            ToKeeper::Adopted => {
                if let Manager::Coming { pid, since } = self.manager {
                    self.manager = Manager::Up { pid, since };
                    self.failures = 0;
                }
            }
            ToKeeper::Hold(names) => {
                for (name, fd) in names.into_iter().zip(fds) {
                    if self.held.len() < MOST_HELD || self.held.contains_key(name) {
                        self.held.insert(name.to_owned(), fd);
                    } else {
                        log::error!(target: "keeper", "`{name}` can't be held: there are {MOST_HELD} already");
                    }
                }
            }
            ToKeeper::Release(names) => {
                for name in names {
                    self.held.remove(name);
                }
            }
            ToKeeper::Tell(text) => {
                self.parent.tell(text);
                self.parent.send(&self.epoll);
            }
            // Of what it was not told it knows nothing.
            ToKeeper::Reap(pid) if self.told == Some(pid) => {
                self.told = None;
                if let Err(error) = process::reap(pid) {
                    log::error!(target: "keeper", "pid {pid} could not be reaped: {error}");
                }
            }
            ToKeeper::Reap(_) => {}
            ToKeeper::Heard(signal) => {
                self.sent.remove(&signal);
                if STOP.contains(&signal) {
                    self.stop = Some(signal);
                }
            }
        }
    }

    /// Sends a new manager the next part of what is held.
    fn hand_on(&mut self) {
        let after = self
            .handed
            .as_deref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.held.range::<str, _>((after, Bound::Unbounded));
        let left = rest.clone().count().saturating_sub(MOST_AT_ONCE);
        let (names, fds): (Vec<&str>, Vec<BorrowedFd<'_>>) = rest
            .take(MOST_AT_ONCE)
            .map(|(name, fd)| (name.as_str(), fd.as_fd()))
            .unzip();
        let message = FromKeeper::Held {
            left: u32::try_from(left).unwrap_or(u32::MAX),
            stop: self.stop,
            names: names.clone(),
        };
        // A manager that waits in vain gives up, and another one is started.
        if let Err(error) = self.say(&message, &fds) {
            log::error!(target: "keeper", "what is held could not be handed on: {error}");
            return;
        }
        self.handed = names.last().map(|name| (*name).to_owned());
    }

    fn close_link(&mut self) {
        // Closing it takes it out of the set: nobody else has this end.
        self.link = None;
        self.is_full = false;
        // What was not acted on is for the next manager.
        self.told = None;
        self.waiting.append(&mut self.sent);
    }
}

/// What a new manager finds: what the keeper was started with, less what was meant for the keeper's own pid.
fn environment(own: impl Iterator<Item = (OsString, OsString)>, pid: Pid) -> Vec<OsString> {
    let own: Vec<(OsString, OsString)> = own.collect();
    let pid = OsString::from(pid.to_string());
    // The first manager's keep-alives came by way of us, and so do those of the next.
    let is_watched = own
        .iter()
        .find(|(name, _)| name == "WATCHDOG_PID")
        .is_none_or(|(_, value)| *value == pid);
    let dropped = |name: &OsString| {
        let listen = [
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
            "LISTEN_PIDFDID",
        ];
        listen.iter().any(|other| name == other)
            || name == VARIABLE
            || name == "WATCHDOG_PID"
            || (name == "WATCHDOG_USEC" && !is_watched)
    };
    let kept = own.into_iter().filter(|(name, _)| !dropped(name));
    kept.chain([(VARIABLE.into(), LINK_FD.to_string().into())])
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect()
}

/// The manager's parent, by NOTIFY_SOCKET: what there is no room for waits.
#[derive(Default)]
struct Parent {
    connection: Option<UnixDatagram>,
    is_known: bool,
    told: VecDeque<Vec<u8>>,
    is_full: bool,
}

impl Parent {
    fn tell(&mut self, text: &[u8]) {
        if self.told.len() >= MOST_TOLD {
            // The next of these says as much as the last; else the oldest goes.
            let passing =
                |text: &[u8]| text.starts_with(b"STATUS=") || text.starts_with(b"WATCHDOG=");
            self.told.retain(|text| !passing(text));
            if self.told.len() >= MOST_TOLD {
                self.told.pop_front();
            }
        }
        self.told.push_back(text.to_vec());
    }

    fn send(&mut self, epoll: &Epoll) {
        if !self.told.is_empty() && !self.is_known {
            self.is_known = true;
            self.connection =
                parent::connect().filter(|parent| parent.set_nonblocking(true).is_ok());
        }
        let Some(connection) = &self.connection else {
            self.told.clear();
            return;
        };
        let mut is_full = false;
        while let Some(text) = self.told.front() {
            match connection.send(text) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_full = true;
                    break;
                }
                Err(error) => {
                    log::debug!(target: "keeper", "the parent could not be notified: {error}");
                }
                Ok(_) => {}
            }
            self.told.pop_front();
        }
        if is_full != self.is_full {
            let token = Token::Parent as u64;
            let changed = match is_full {
                true => epoll.add(connection, token, Interest::Writable),
                false => epoll.remove(connection),
            };
            self.is_full = is_full && changed.is_ok();
        }
    }
}
