//! The loop: kernel readiness to events, effects to system calls. Owns every descriptor, decides nothing.
//!
//! A turn waits, reads the clock, and takes what is ready in a fixed order: notifications, ended children, signals,
//! control, listeners. So a last READY=1 counts before its sender is reaped, and a death before a command that asks about
//! it. Each fact goes to [`crate::supervise`] as an event; what it wants done is done at once, but for spawns, which are
//! done a few at a time so that a big start does not make the manager deaf.

mod adopt;
mod base;
mod host;
mod image;
pub mod inherited;
pub mod keeper;
pub mod ledger;
mod leftovers;
mod listeners;
pub mod logger;
mod lookups;
mod new_keeper;
mod node;
mod notify_socket;
mod parent;
mod processes;
mod record;
mod server;
mod start;
mod status;
mod units;
mod upgrade;
pub mod vault;

pub use base::StartError;
pub use host::System;
pub use processes::read_env_file;
pub use start::{Options, run};

use crate::supervise::{
    Effect, Event, Exit, ProcId, RequestId, SpawnFailure, Supervisor, Time, WatcherId, notify,
};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::notify::{Message, NotifySocket};
use crate::sys::process::{self, Pid};
use crate::sys::signals::SignalFd;
use crate::sys::spawn;
use crate::unit::{self, Arrange, Search};
use keeper::Word;
use leftovers::Leftovers;
use listeners::Listeners;
use lookups::Lookups;
use parent::Parent;
use processes::{Ended, Job, Processes};
use record::{Home, Keeping};
use server::Server;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use units::Applying;
use upgrade::Upgrade;
use vault::Vault;

/// Ended children and notifications taken in one turn.
const FACTS_PER_TURN: usize = 256;

/// Where the keeper has no room, it is asked again after this long.
const VAULT_PAUSE: Duration = Duration::from_millis(10);

/// Memory is given back after this much time without a command: soon, and not between two of a client that polls.
const TRIM_AFTER: Duration = Duration::from_millis(100);

/// What a descriptor in the epoll set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Token {
    // In the order in which a turn takes them.
    Notify,
    Signals,
    /// A main process that is not our child ended.
    Main(ProcId),
    /// A child of the keeper ended.
    Vault,
    Control,
    Connection(u64),
    Socket(u32),
    /// A name has been looked up.
    Lookup(u64),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, value) = match self {
            Token::Notify => (0, 0),
            Token::Signals => (1, 0),
            Token::Main(ProcId(proc)) => (2, proc),
            Token::Control => (3, 0),
            Token::Connection(number) => (4, number),
            Token::Socket(id) => (5, u64::from(id)),
            Token::Vault => (6, 0),
            Token::Lookup(number) => (7, number),
        };
        kind << 56 | (value & ((1 << 56) - 1))
    }

    fn unpack(token: u64) -> Option<Token> {
        let value = token & ((1 << 56) - 1);
        Some(match token >> 56 {
            0 => Token::Notify,
            1 => Token::Signals,
            2 => Token::Main(ProcId(value)),
            3 => Token::Control,
            4 => Token::Connection(value),
            5 => Token::Socket(u32::try_from(value).ok()?),
            6 => Token::Vault,
            7 => Token::Lookup(value),
            _ => return None,
        })
    }
}

/// How a manager begins.
enum Beginning {
    /// With nothing.
    Fresh,
    /// Where another has ended.
    Again(adopt::Arrears),
}

/// The manager while it runs.
struct Manager {
    epoll: Epoll,
    signals: SignalFd,
    notify: NotifySocket,
    parent: Parent,
    keeping: Keeping,
    home: Home,
    /// The path of this program, where an upgrade finds the next.
    program: Option<PathBuf>,
    upgrade: Option<Upgrade>,
    /// It is executed at the end of this turn.
    executing: Option<Upgrade>,
    /// How often the parent wants to hear of us.
    watchdog: Option<Duration>,
    listeners: Listeners,
    lookups: Lookups,
    /// An apply that waits for lookups.
    applying: Option<Applying>,
    processes: Processes,
    leftovers: Leftovers,
    server: Server,
    supervisor: Supervisor,
    /// Where the unit files are.
    search: Search,
    /// Requests that no client waits for.
    own_requests: BTreeSet<RequestId>,
    /// Processes that are to be made, in order.
    jobs: VecDeque<Job>,
    effects: Vec<Effect>,
    /// More children may have ended than the last turn took.
    exits_left: bool,
    /// When to give back the memory that only starting, or answering a command, needs.
    trim: Option<Time>,
    finished: Option<i32>,
    /// An earlier manager may have died of the next notification.
    is_wary: bool,
}

fn clock() -> Time {
    Time::from_monotonic(process::monotonic_now())
}

impl Manager {
    /// Runs until everything has ended; the answer is the exit code.
    fn run(mut self, beginning: Beginning) -> io::Result<i32> {
        self.epoll
            .add(&self.notify, Token::Notify.pack(), Interest::Readable)?;
        self.epoll
            .add(&self.signals, Token::Signals.pack(), Interest::Readable)?;
        self.server.watch(&self.epoll)?;
        if let Some(link) = self.keeping.vault.as_link() {
            self.epoll
                .add(link, Token::Vault.pack(), Interest::Readable)?;
        }
        self.keeping.vault.adopted()?;
        self.keeping.vault.log_as(logger::settings());
        match beginning {
            Beginning::Fresh => {
                self.dispatch(Event::Begin);
                // Before anything is made: of a worker that is in no record nobody knows.
                self.save_home();
            }
            Beginning::Again(arrears) => self.go_on(arrears),
        }
        while self.finished.is_none() {
            self.turn()?;
        }
        self.server.finish();
        self.keeping.vault.end();
        self.leftovers.sweep(Time::NEVER, &self.processes);
        if !matches!(self.keeping.vault, vault::Vault::Keeper(_)) {
            // Else what is left comes to the keeper, which does the same.
            leftovers::end_rest(&self.signals, self.home.is_sole);
        }
        Ok(self.finished.unwrap_or(0))
    }

    fn turn(&mut self) -> io::Result<()> {
        // What is to be started next needs the same code and memory again.
        let trims = self.jobs.is_empty() && self.trim.take_if(|at| *at <= clock()).is_some();
        let timeout = self.timeout();
        if trims {
            // As the last thing before the wait: what runs after it is mapped again.
            self.processes.rest();
            process::trim_heap();
            process::release_code();
        }
        let mut ready: Vec<(Token, crate::sys::epoll::Ready)> = self
            .epoll
            .wait(timeout)?
            .iter()
            .filter_map(|ready| Some((Token::unpack(ready.token)?, *ready)))
            .collect();
        ready.arrange_by_key(|(token, _)| *token);
        if std::mem::take(&mut self.exits_left) {
            self.take_exits();
        }
        for (token, ready) in ready {
            match token {
                Token::Notify => self.take_notifications(),
                Token::Signals => self.take_signals(),
                Token::Main(proc) => self.take_foreign_exit(proc),
                Token::Vault => self.take_told_exits(),
                Token::Control => self.server.accept(&self.epoll, clock()),
                Token::Connection(number) => self.take_connection(number, ready),
                Token::Socket(id) => self.dispatch(Event::Traffic {
                    socket: crate::supervise::SocketId(id),
                }),
                Token::Lookup(number) => self.take_lookup(number),
            }
        }
        self.take_failed_lookups();
        self.give_up_applying();
        self.server.resume(&self.epoll, clock());
        for number in self.server.take_answered() {
            let asked = self.server.go_on(&self.epoll, number);
            self.take_asked(number, asked);
        }
        self.parent.tick(clock());
        if self
            .supervisor
            .next_deadline()
            .is_some_and(|at| at <= clock())
        {
            self.dispatch(Event::Tick);
        }
        // Spawning takes its time, and what has been done so far can't be done again.
        self.save();
        self.spawn_some();
        // Reading /proc for what the dead have left behind can wait until their successors run.
        self.sweep_leftovers();
        self.take_drained();
        self.look_at_upgrade(clock());
        self.save();
        if self.new_keeper_due().is_some_and(|at| at <= clock()) {
            self.make_keeper();
        }
        self.execute();
        Ok(())
    }

    /// How long the next wait may take; `None` is for ever.
    fn timeout(&self) -> Option<Duration> {
        if !self.jobs.is_empty()
            || self.exits_left
            || self.server.has_answered()
            || self.lookups.has_failed()
        {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.supervisor.next_deadline(),
            self.leftovers.next_sweep(),
            self.listeners.next_look(),
            self.server.next_retry(),
            self.parent.next_tick(),
            self.upgrade_deadline(),
            self.new_keeper_due(),
            self.keeping.vault.is_full().then(|| clock() + VAULT_PAUSE),
            self.trim,
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.since(clock()))
    }

    /// Tells the supervisor a fact and does what it wants done, and so on for the facts that come of it.
    fn dispatch(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut effects = std::mem::take(&mut self.effects);
            self.supervisor.handle(clock(), event, &mut effects);
            // Who is told that something is done must find it done: a file that is gone, for one.
            let mut replies = Vec::new();
            for effect in effects.drain(..) {
                match effect {
                    Effect::Reply { .. } => replies.push(effect),
                    effect => events.extend(self.carry_out(effect)),
                }
            }
            for reply in replies {
                events.extend(self.carry_out(reply));
            }
            self.effects = effects;
        }
    }

    /// Does one thing. What becomes of it at once is the answer; what becomes of it later comes as an event then.
    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Spawn {
                proc,
                watcher,
                wid,
                generation,
                spec,
                sockets,
            } => {
                self.jobs.push_back(Job {
                    proc,
                    watcher,
                    wid,
                    generation,
                    spec,
                    sockets,
                });
                None
            }
            Effect::CancelSpawn { proc } => {
                let index = self.jobs.iter().position(|job| job.proc == proc)?;
                self.jobs.remove(index);
                Some(Event::SpawnCancelled { proc })
            }
            Effect::Signal {
                proc,
                signal,
                group,
            } => {
                self.processes.signal(proc, signal, group);
                None
            }
            Effect::Follow { proc, pid } => {
                self.follow(proc, pid);
                None
            }
            Effect::Kill { proc } => {
                self.processes.kill(proc);
                None
            }
            Effect::KillLeftovers { proc } => {
                self.leftovers.kill(proc);
                None
            }
            // They are watched from the moment the main process has ended.
            Effect::AwaitLeftovers { .. } => None,
            Effect::Drain { proc, sockets } => {
                let (_, wid) = self.processes.slot(proc)?;
                self.listeners.drain(proc, wid, sockets, clock());
                None
            }
            Effect::CloseShard { socket, wid } => {
                self.listeners
                    .close_shard(&self.epoll, socket, wid, clock())
            }
            Effect::ShutShard { socket, wid } => {
                self.listeners.shut_shard(&self.epoll, socket, wid);
                None
            }
            Effect::OpenShard { socket, wid } => {
                self.listeners.open_shard(socket, wid);
                None
            }
            Effect::MoveShard { socket, from, to } => {
                self.listeners.move_shard(socket, from, to);
                None
            }
            Effect::Open { socket, spec } => {
                self.listeners.open(socket, &spec);
                None
            }
            Effect::Change { socket, spec } => {
                self.listeners.change(socket, &spec);
                None
            }
            Effect::Close { socket } => {
                self.listeners.close(socket);
                None
            }
            Effect::Watch { socket, shards } => {
                self.listeners.watch(&self.epoll, socket, shards);
                None
            }
            Effect::Unwatch { socket } => {
                self.listeners.unwatch(&self.epoll, socket);
                None
            }
            Effect::Bind { socket } => match self.listeners.name_of(socket).map(str::to_owned) {
                Some(name) => {
                    self.bind_when_found(&name, socket);
                    None
                }
                None => Some(self.bind(socket, &Ok(Vec::new()))),
            },
            Effect::Reply { request, outcome } if self.own_requests.remove(&request) => {
                match outcome {
                    Ok(message) => {
                        let text = message.unwrap_or_else(|| "all of it is done".into());
                        log::info!(target: "manager", "{text}");
                    }
                    Err(refusal) => {
                        let failure = server::failure(refusal, |_: &str| None);
                        log::error!(target: "manager", "{failure}");
                    }
                }
                None
            }
            Effect::Reply { request, outcome } => {
                let nearest = |name: &str| status::nearest_watcher(&self.supervisor, name, clock());
                self.server.reply(&self.epoll, request, outcome, nearest);
                None
            }
            Effect::Progress {
                request,
                watcher,
                state,
                ready,
                wanted,
            } => {
                self.server
                    .progress(&self.epoll, request, watcher, state, ready, wanted);
                None
            }
            Effect::Parent(notice) => {
                self.parent.tell(notice, clock());
                None
            }
            Effect::Log { level, unit, text } => {
                log::log!(target: &unit, logger::level(level), "{text}");
                None
            }
            Effect::Finish { code } => {
                self.finished = Some(code);
                None
            }
        }
    }

    fn spawn_some(&mut self) {
        let count = self.jobs.len().min(spawn::AT_ONCE);
        if count == 0 {
            return;
        }
        if count > 1 {
            self.trim = Some(clock() + TRIM_AFTER);
        }
        let jobs: Vec<Job> = self.jobs.drain(..count).collect();
        let (listeners, name) = (&mut self.listeners, self.notify.name());
        let outcomes = self.processes.spawn(&jobs, listeners, &self.epoll, name);
        for (Job { proc, .. }, outcome) in jobs.into_iter().zip(outcomes) {
            self.dispatch(match outcome {
                Ok(pid) => Event::Spawned { proc, pid },
                Err(failure) => Event::SpawnFailed { proc, failure },
            });
        }
    }

    fn take_signals(&mut self) {
        while let Some((signal, sender)) = survive("reading a signal", self.signals.read_from()) {
            if signal != libc::SIGCHLD {
                self.keeping.vault.heard(signal);
            }
            match signal {
                libc::SIGCHLD => self.take_exits(),
                libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => {
                    log::info!(target: "manager", "got signal {}", crate::unit::signal_name(crate::unit::Signal(signal)));
                    let by_parent = sender.is_some() && sender == process::parent();
                    let forwarded = by_parent && matches!(self.keeping.vault, Vault::Keeper(_));
                    self.dispatch(Event::Terminate { forwarded });
                }
                libc::SIGUSR2 => {
                    log::info!(target: "manager", "got signal USR2: the program is executed anew");
                    self.upgrade_by_signal();
                }
                libc::SIGHUP => {
                    log::info!(target: "manager", "got signal HUP: the units are read anew");
                    self.apply_by_signal();
                }
                // What tentpole has no use for yet must not kill it.
                signal => {
                    let name = crate::unit::signal_name(crate::unit::Signal(signal));
                    log::warn!(target: "manager", "signal {name} is ignored");
                }
            }
        }
    }

    /// Peeks at ended children, acts on each while its pid is still reserved, then reaps it.
    fn take_exits(&mut self) {
        for _ in 0..FACTS_PER_TURN {
            let Some((pid, exit)) = survive("looking for ended children", process::peek_exit())
            else {
                return;
            };
            // A message that it sent before its end must count, and can't be attributed once it is reaped.
            self.take_notifications();
            let group = process::group_of(pid).ok();
            let proc = self.child_has_ended(pid, exit);
            // Nobody else could tell how it ended.
            self.save();
            if let Err(error) = process::reap(pid) {
                log::error!(target: "manager", "pid {pid} could not be reaped: {error}");
                return;
            }
            self.has_been_reaped(pid, group, proc);
        }
        self.exits_left = true;
    }

    /// A child of ours or the keeper's has ended; which process it was, if it was one.
    fn child_has_ended(&mut self, pid: Pid, exit: process::Exit) -> Option<ProcId> {
        if self.take_probe_exit(pid, exit) {
            return None;
        }
        let (proc, ended) = self.processes.ended(&self.epoll, pid)?;
        self.has_ended(proc, ended, processes::exit(exit));
        Some(proc)
    }

    fn has_been_reaped(&mut self, pid: Pid, group: Option<Pid>, proc: Option<ProcId>) {
        self.processes.reaped(pid);
        self.leftovers.reaped(pid, group);
        if let Some(proc) = proc {
            // A main process by MAINPID may have been of another group than the worker's.
            self.leftovers.look(proc);
        }
    }

    /// A worker's main process has ended; what it has left behind is looked after from now on.
    fn has_ended(&mut self, proc: ProcId, ended: Ended, exit: Exit) {
        // It may be long before another gets them, and clients are to wait meanwhile.
        let is_alone = || self.processes.is_idle(&ended.watcher);
        for socket in self.supervisor.sockets_of(proc) {
            self.listeners
                .mend(&self.epoll, socket, ended.wid, &is_alone);
        }
        self.leftovers.add(proc, ended);
        self.listeners.forget_drain(proc);
        self.dispatch(Event::Exited { proc, exit });
    }

    /// A main process that somebody else is the parent of has ended.
    fn take_foreign_exit(&mut self, proc: ProcId) {
        // If it has become our child meanwhile, or the keeper's, it is taken as such, with its exit code.
        self.take_exits();
        self.take_told_exits();
        let Some((exit, ended)) = self.processes.foreign_ended(&self.epoll, proc) else {
            return;
        };
        self.has_ended(proc, ended, exit);
        self.leftovers.look(proc);
    }

    /// Orphans that the keeper is the parent of.
    fn take_told_exits(&mut self) {
        while let Some(word) = self.keeping.vault.receive(&self.epoll) {
            let told = match word {
                Word::Exited(told) => told,
                Word::Gone => return self.keeper_is_gone(),
            };
            // A message that it sent before its end must count.
            self.take_notifications();
            let proc = self.child_has_ended(told.pid, told.exit);
            self.save();
            self.keeping.vault.reap(told.pid);
            self.has_been_reaped(told.pid, told.group, proc);
        }
    }

    fn sweep_leftovers(&mut self) {
        for proc in self.leftovers.sweep(clock(), &self.processes) {
            self.dispatch(Event::Gone { proc });
        }
    }

    fn take_drained(&mut self) {
        for event in self.listeners.look(&self.epoll, clock()) {
            self.dispatch(event);
        }
    }

    fn take_notifications(&mut self) {
        for _ in 0..FACTS_PER_TURN {
            let Some(message) = survive("receiving a notification", self.notify.receive()) else {
                return;
            };
            // It is recorded before it is gone, so that the next manager sees it if this one dies. But what an earlier one
            // may have died of is not looked at twice.
            if std::mem::take(&mut self.is_wary) {
                self.notification_taken();
                self.take_notification(message);
            } else {
                self.take_notification(message);
                self.save();
                self.notification_taken();
            }
        }
    }

    fn notification_taken(&mut self) {
        survive("receiving a notification", self.notify.taken().map(Some));
    }

    fn take_notification(&mut self, message: Message) {
        let received = match message {
            Message::Received(received) => received,
            Message::Anonymous => {
                log::debug!(target: "manager", "a notification without a sender is ignored");
                return;
            }
        };
        // Descriptors that came along are closed when it is taken: which is what a barrier waits for.
        let Some((proc, sender)) = self.processes.sender(received.sender) else {
            log::debug!(target: "manager", "a notification of pid {} is ignored: it is of no worker", received.sender);
            return;
        };
        let parsed = if received.truncated {
            Err(notify::Reject::TooLong)
        } else {
            notify::parse(&received.text)
        };
        match parsed {
            Ok(message) if message.barrier => {}
            Ok(mut message) => {
                if let Some(pid) = message.main_pid
                    && !self.processes.may_follow(proc, pid, received.uid == 0)
                {
                    message.main_pid = None;
                    let problem = format!(
                        "MAINPID={pid} is refused: it is not a live process of this worker"
                    );
                    self.dispatch(Event::Misspoke { proc, problem });
                }
                self.dispatch(Event::Notified {
                    proc,
                    sender,
                    message,
                });
            }
            Err(reject) => {
                let why = match reject {
                    notify::Reject::TooLong => "is longer than 4096 bytes",
                    notify::Reject::EmbeddedNul => "holds a NUL byte",
                };
                let sender = received.sender;
                let problem = format!("a notification of pid {sender} is dropped: it {why}");
                self.dispatch(Event::Misspoke { proc, problem });
            }
        }
    }

    fn follow(&mut self, proc: ProcId, pid: crate::supervise::Pid) {
        if let Err(error) = self.processes.follow(&self.epoll, proc, pid) {
            log::warn!(target: "manager", "pid {} can't be followed: {error}", pid.0);
        }
    }

    fn take_connection(&mut self, number: u64, ready: crate::sys::epoll::Ready) {
        self.trim = Some(clock() + TRIM_AFTER);
        let asked = self.server.serve(&self.epoll, number, ready);
        self.take_asked(number, asked);
    }

    fn take_asked(&mut self, number: u64, asked: Vec<server::Asked>) {
        for asked in asked {
            match asked {
                server::Asked::Event(event) => self.dispatch(event),
                server::Asked::Upgrade { request, no_wait } => {
                    self.upgrade_for(number, request, no_wait);
                }
                server::Asked::Plan => self.preview(number),
                server::Asked::Apply {
                    request,
                    no_wait,
                    progress,
                } => self.apply_for(request, no_wait, progress),
                server::Asked::Status { names } => {
                    let reply = status::document(
                        &self.supervisor,
                        &self.listeners,
                        self.home.started,
                        &names,
                        clock(),
                    );
                    self.server.answer(&self.epoll, number, &reply);
                }
            }
        }
    }
}

/// A system call that fails is no reason for the manager to end: it is told, and tried again in a later turn.
fn survive<T>(what: &str, result: io::Result<Option<T>>) -> Option<T> {
    result.unwrap_or_else(|error| {
        log::error!(target: "manager", "{what} failed: {error}");
        None
    })
}

/// Why a process could not be made, before anything was tried.
fn spawn_failure(reason: String) -> SpawnFailure {
    SpawnFailure {
        reason,
        exit_code: 1,
    }
}

/// The same where something was tried: what it was, and why it failed.
fn io_failure(what: fmt::Arguments<'_>, error: &io::Error) -> SpawnFailure {
    spawn_failure(format!("{what}: {}", unit::reason(error)))
}

/// Which slot a process belongs to.
type SlotKey = (WatcherId, u32);

pub use crate::sys::farewell::{end_between_clients, was_asked_to_end};
pub use upgrade::{PROBE, probe};

/// The descriptor `fd`, if this process was given it through LISTEN_FDS; for a worker that is tentpole itself.
pub fn given_socket(fd: i32) -> Option<OwnedFd> {
    let given = crate::sys::inherit::listen_fds();
    given
        .into_iter()
        .map(|(given, _)| given)
        .find(|given| given.as_raw_fd() == fd)
}

/// Waits until there is something to read or to accept, or a signal comes; for such a worker.
pub fn wait_until_readable(fd: impl AsFd) -> io::Result<()> {
    crate::sys::output::wait_for(&[(fd.as_fd(), false)], None)
}
