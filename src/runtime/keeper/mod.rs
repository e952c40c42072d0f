//! The process that was started, PID 1 in a container: it holds what must outlive the manager, which is its child.
//!
//! It reaps, forwards signals, starts a new manager when one was ended by a signal, and does nothing else. In particular it
//! knows nothing of units: descriptors are held by names that are the manager's alone, and the manager's own state is one
//! of them, a file in memory.
//!
//! - *The manager ends with an exit code*: that is the end. What is left of its workers is killed, and the keeper exits
//!   with the same code.
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
//! - *The keeper itself is killed*: the manager makes another, by forking as the first one did (`new_keeper.rs`).
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

use super::leftovers::end_rest;
use super::{TRIM_AFTER, image, logger, notify_socket};
use crate::sys::fork::{self, Side};
use crate::sys::output;
use crate::sys::process::{self, Exit, Pid};
use crate::sys::signals::SignalFd;
use crate::sys::spawn::{Spawn, Spawner};
use crate::sys::unix::{self, Received};
use crate::unit::{Signal, signal_name};
use protocol::{FromKeeper, LONGEST, MOST_AT_ONCE, ToKeeper};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CString;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// The number of a new manager's end of the link.
const LINK_FD: i32 = 3;

/// Signals that a manager takes as events; the ones it has no use for are among them, since their default would kill it.
/// The keeper takes them as well, and forwards all but SIGCHLD; others are blocked in both.
pub const SIGNALS: [i32; 7] = [
    libc::SIGCHLD,
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

/// What this process has done for the manager, and a keeper needs as well.
#[derive(Debug)]
pub struct Origin<'a> {
    /// Where [`SIGNALS`] are read: each process reads its own there.
    pub signals: &'a SignalFd,
    /// The path of this program, for the next manager.
    pub program: Option<PathBuf>,
    /// The limit of open descriptors before it was raised, which the next manager is started with.
    pub nofile: Option<(u64, u64)>,
    /// Whether all that is below this process are managers and what they have made, and ever will be.
    pub is_sole: bool,
}

/// Makes this process a keeper, and a child of it the manager, which goes on from here with the link to it. Whatever this
/// process has open but 0 to 2 is the manager's.
pub fn begin(origin: Origin<'_>) -> io::Result<Link> {
    let (ours, theirs) = unix::message_pair()?;
    // Before there are two of them: what the keeper does later, the manager may have to wait for.
    let keeper = Keeper::new(ours, origin)?;
    match fork::fork()? {
        Side::Child => Ok(Link::new(theirs, true)),
        Side::Parent(manager) => {
            let kept: Vec<RawFd> = keeper.fds().map(|fd| fd.as_raw_fd()).collect();
            fork::leave_for(&kept, || keeper.look_after(manager))
        }
    }
}

#[derive(Clone, Copy)]
struct Manager {
    pid: Pid,
    since: Duration,
    /// It is the first one, or has taken over.
    is_up: bool,
}

struct Keeper {
    signals: SignalFd,
    program: Option<PathBuf>,
    /// The limit of open descriptors that a manager is started with.
    nofile: Option<(u64, u64)>,
    manager: Option<Manager>,
    /// When to start the next one, while there is none.
    due: Duration,
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
    /// Whether all that will ever be below it are managers and what they have made.
    is_sole: bool,
}

impl Keeper {
    /// One that has no manager yet.
    fn new(link: OwnedFd, origin: Origin<'_>) -> io::Result<Keeper> {
        if Pid::own().as_raw() != 1 {
            process::set_subreaper()?;
        }
        Ok(Keeper {
            signals: origin.signals.try_clone()?,
            program: origin.program,
            nofile: origin.nofile,
            manager: None,
            due: Duration::ZERO,
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
            parent: Parent::connect(),
            is_sole: origin.is_sole,
        })
    }

    /// All that it has open.
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let parent = self.parent.connection.iter().map(AsFd::as_fd);
        let link = self.link.iter().map(AsFd::as_fd);
        [self.signals.as_fd()].into_iter().chain(link).chain(parent)
    }

    /// Looks after the first manager and all that follow.
    fn look_after(mut self, first: Pid) -> i32 {
        self.manager = Some(Manager {
            pid: first,
            since: process::monotonic_now(),
            is_up: true,
        });
        self.run()
    }

    fn run(mut self) -> i32 {
        let mut release = Some(process::monotonic_now() + TRIM_AFTER);
        loop {
            let now = process::monotonic_now();
            let releases = release.take_if(|at| *at <= now).is_some();
            let due = self.manager.is_none().then_some(self.due);
            let next = [due, release].into_iter().flatten().min();
            let timeout = next.map(|at| at.saturating_sub(now));
            let mut fds = vec![(self.signals.as_fd(), false)];
            fds.extend(self.link.iter().map(|link| (link.as_fd(), self.is_full)));
            fds.extend(self.parent.full().map(|parent| (parent, true)));
            if releases {
                // As the last thing before the wait: what runs after it is mapped again.
                process::trim_heap();
                process::release_code();
            }
            if let Err(error) = output::wait_for(&fds, timeout) {
                log::error!(target: "keeper", "waiting failed: {error}");
            }
            release.get_or_insert(process::monotonic_now() + TRIM_AFTER);
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
        self.parent.send();
        if self.manager.is_none() && self.due <= now {
            return self.start(now);
        }
        None
    }

    fn look_at_manager(&mut self, now: Duration) -> Option<i32> {
        let Manager { pid, since, is_up } = self.manager?;
        // While it runs this fails.
        let exit = process::reap(pid).ok()?;
        // What it has said before its end counts.
        self.take_messages(usize::MAX);
        self.close_link();
        self.manager = None;
        match exit {
            Exit::Code(code) if is_up || self.held.is_empty() => {
                end_rest(&self.signals, self.is_sole);
                return Some(code);
            }
            Exit::Code(code) => {
                log::error!(target: "keeper", "the new manager (pid {pid}) did not take over: it exited with {code}");
            }
            Exit::Signal { signal, .. } => {
                let name = signal_name(Signal(signal));
                log::error!(target: "keeper", "the manager (pid {pid}) was ended by signal {name}");
            }
        }
        if !is_up {
            return self.fail(now);
        }
        if now.saturating_sub(since) >= STEADY {
            self.pause = Duration::ZERO;
        }
        self.plan_start(now);
        None
    }

    fn plan_start(&mut self, now: Duration) {
        let pause = self.pause;
        if !pause.is_zero() {
            log::info!(target: "keeper", "the next manager is started in {pause:?}");
        }
        self.due = now + pause;
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
        match self.spawn() {
            Ok((pid, link)) => {
                log::info!(target: "keeper", "a new manager (pid {pid}) takes over");
                let (since, is_up) = (now, false);
                self.manager = Some(Manager { pid, since, is_up });
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
    fn spawn(&self) -> io::Result<(Pid, OwnedFd)> {
        let (ours, theirs) = unix::message_pair()?;
        let mut spawner = Spawner::new()?;
        if let Some((soft, hard)) = self.nofile {
            spawner.restore_nofile(soft, hard);
        }
        let program = self.program.iter().map(|path| path.clone().into());
        let mut candidates: Vec<CString> = program.map(image::c_string).collect();
        candidates.push(c"/proc/self/exe".into());
        if self.failures % 2 == 1 {
            candidates.reverse();
        }
        let variables = [(image::KEEPER, LINK_FD.to_string())];
        let env = image::environment(&variables, image::stale_watchdog());
        let child = spawner.spawn(&Spawn {
            candidates: &candidates,
            argv: &image::arguments(),
            env: &env.iter().map(|entry| &**entry).collect::<Vec<_>>(),
            fds: &[(theirs.as_fd(), LINK_FD)],
            ..Spawn::default()
        });
        Ok((child.map_err(io::Error::other)?.pid, ours))
    }

    /// The manager that takes signals and wants to know of exits.
    fn up(&self) -> Option<Pid> {
        let up = self.manager.filter(|manager| manager.is_up);
        up.map(|manager| manager.pid)
    }

    fn forward_signals(&mut self) {
        let Some(pid) = self.up() else {
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
        self.is_full = false;
        let Some(manager) = self.up().filter(|_| self.told.is_none()) else {
            return;
        };
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
        self.is_full = sent.is_err() && !is_broken;
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
                self.failures = 0;
                if let Some(manager) = &mut self.manager {
                    manager.is_up = true;
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
                self.parent.send();
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
            ToKeeper::Log(level, format) => logger::set(level, format),
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
        self.link = None;
        self.is_full = false;
        // What was not acted on is for the next manager.
        self.told = None;
        self.waiting.append(&mut self.sent);
    }
}

/// The manager's parent, by NOTIFY_SOCKET: what there is no room for waits.
#[derive(Default)]
struct Parent {
    connection: Option<UnixDatagram>,
    told: VecDeque<Vec<u8>>,
}

impl Parent {
    fn connect() -> Parent {
        let connection = notify_socket::connect();
        Parent {
            connection: connection.filter(|parent| parent.set_nonblocking(true).is_ok()),
            told: VecDeque::new(),
        }
    }

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

    fn send(&mut self) {
        while let (Some(connection), Some(text)) = (&self.connection, self.told.front()) {
            match connection.send(text) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::debug!(target: "keeper", "the parent could not be notified: {error}");
                }
                Ok(_) => {}
            }
            self.told.pop_front();
        }
    }

    /// To be waited for, if it has no room.
    fn full(&self) -> Option<BorrowedFd<'_>> {
        let connection = self.connection.as_ref().filter(|_| !self.told.is_empty());
        connection.map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parent_has_no_room_for_is_bounded_and_keeps_what_counts() {
        let mut parent = Parent::default();
        parent.tell(b"READY=1");
        for _ in 0..10 * MOST_TOLD {
            parent.tell(b"STATUS=x");
            parent.tell(b"WATCHDOG=1");
        }
        parent.tell(b"STOPPING=1");
        assert!(parent.told.len() <= MOST_TOLD);
        assert_eq!(parent.told[0], b"READY=1");
        assert_eq!(parent.told.back().unwrap(), b"STOPPING=1");
        for _ in 0..2 * MOST_TOLD {
            parent.tell(b"RELOADING=1");
        }
        assert_eq!(parent.told.len(), MOST_TOLD);
    }
}
