//! The state machine: what is wanted, what is known, and what is to be done about the difference.
//!
//! [`Supervisor::handle`] takes one event and the time, changes the state, and says what is to be done as a list of
//! [`Effect`]s. It does no I/O and has no clock; what becomes of an effect comes back as an event. Between two events
//! nothing happens but the passing of [`Supervisor::next_deadline`].
//!
//! # The contract with the runtime
//!
//! - Every `Spawn` is answered by exactly one of `Spawned`, `SpawnFailed` or `SpawnCancelled`, at any later time.
//! - After `Spawned`, there is exactly one `Exited` for the process: when its main process has ended. Its pid stays
//!   reserved until the effects of that event are carried out.
//! - `Kill` and `KillLeftovers` reach the process's whole group and every stray of it. After `AwaitLeftovers` or
//!   `KillLeftovers`, `Gone` says once that nothing of the process is left.
//! - `Traffic` comes only for a socket that is watched, and may come again and again while it is.
//! - Every `CloseShard` is answered by one of `ShardClosed` or `ShardOwed`, at any later time, but not after an `OpenShard`.
//! - Every request is answered by exactly one `Reply`, unless it is `Abandoned` before.
//!
//! # The rules of a slot
//!
//! A watcher has slots `1..=wanted`, and each has at most one process, but in a reload. `Vacant` is the rest. A wanted slot is `Due`,
//! which becomes `Launching` as soon as `warmup_delay` allows; a process that runs is `Starting` until its `type` calls
//! it ready, `Settling` for `ready_delay`, then `Ready`.
//!
//! A process that ends by itself is followed by what `restart` says: `Due` at once for the first time, `Backoff` with a
//! doubling delay after that; a process that was ready for `restart_reset` starts over. Ending before it was ready is a
//! failed start; `max_retry` of them in a row, and the watcher is given up.
//!
//! A process that is asked to end is `Stopping` until it has ended or is killed, then `Leaving` until nothing that it
//! left behind is alive; then the slot is what the watcher's goal makes of it. So a stop is over only when all is over.
//!
//! A watcher that is to stop is held as long as something lives that has to end before it: what is `after` it and is
//! being stopped too, and at the manager's end every higher level. Held workers go on, and are not replaced.
//!
//! # The rules of a reload
//!
//! A rolling reload replaces the workers of a set of wids (all, or one that reached `max_age`): beside the process of a
//! slot, which goes on, a replacement becomes `Due` and so on like any other; `reload_surge` slots at a time have one
//! beside. When it is ready it takes the main place, and the one it replaced is stopped; only when that is gone does
//! the slot leave room for the next. One of type `exec`, of which nothing else is known, is `Settling` for 100 ms at least. What has no live process is started from the new definition as it would be
//! anyhow, a backoff ending at once. A `singleton` is stopped first and started then; its replacement has to stay alive as well before the reload is over,
//! and so has one that takes the place of a worker that died meanwhile.
//!
//! A replacement that fails (it can't be made, it ends before it is ready or badly before the reload is over, it is
//! late) ends the reload: other replacements on their way are stopped, and workers that came from a *changed*
//! definition are replaced by ones of the old, in the same way. What fails in going back is logged, and stays. A process
//! of the old definition that dies while its replacement is on its way is followed by that, if `restart` has it followed
//! at all. Until the reload has succeeded the old definition is the watcher's own: it says how its workers are restarted
//! and when it is given up, but each process is started, judged ready, aged and stopped by the one that it came from.
//!
//! A reload during a reload waits for its end, and several that wait are one. A stop or restart of the watcher ends a
//! reload, and so does its failure; the new definition stays. One that waits for a socket goes on waiting for it over a restart. A worker whose reload for its age came to nothing is
//! looked at again after `restart_max_delay`.
//!
//! A reload by signal reaches a worker that is not ready when it is, since before it might end it. It is over when it is sent to all; with `type = "notify"` when each worker has said RELOADING=1 and READY=1
//! or was asked to end, and has failed if one ends instead or `start_timeout` is over. One that is asked for meanwhile
//! is the same.
//!
//! # The rules of an apply
//!
//! The sockets of the new plan are bound already when `Apply` comes. New watchers start if they are to start by
//! themselves; those that are left out are stopped, then forgotten; others are scaled, or reloaded if they are up. One
//! that is down gets its new definition at once (and starts if it had failed). A oneshot that is up too, and its workers
//! are left to end; what becomes one is restarted. A socket that no definition refers to any more is closed when nothing
//! runs that was started with it; the last worker that has it serves first what waits in it, as one that is scaled away does with
//! its shards; what could not be bound yet and is in the plan no more is not tried again. One apply at
//! a time; the parent is told of it unless it waits for the manager's start anyhow.
//!
//! # The rules of a socket
//!
//! A watcher does not start as long as a socket is not bound that it can't do without: that is no failed start. One that
//! can do with its other sockets starts with those, and is reloaded when the rest is bound.
//!
//! It is watched exactly when it is bound, not paused, and some watcher on it is waiting for traffic, or has a slot that is
//! vacant since its worker ended well: that is started by traffic (with shards: in that of its wid) though others run. Everything
//! else is the workers' business: whatever they do, it stays open.
//!
//! # The rules of a shard
//!
//! A socket with `so_reuseport` has a shard for each wid of which a worker was made; watchers that share the socket share its
//! shards. The first stays as long as the socket, another is opened when its worker is made.
//!
//! A shard is wanted where clients that come to it are served: a watcher that is up wants its wid and has a worker there, or one
//! that has failed and comes again (not one that `warmup_delay` lets start later, nor one that has ended for good), or traffic
//! starts one. A shard that nobody wants any more gets no new clients from that moment, and is closed when two things are true: no
//! worker has it, and no client waits in it. The first only gets no new ones, and that as long as others are wanted. Where no watcher of the socket is up, started by traffic or about to start, there is nobody who would
//! serve clients any sooner: then the shards stay as they are as long as the wid is one that some watcher will have.
//!
//! A worker whose shard is not wanted any more (it is scaled away, or its watcher is stopped while another one is up) is
//! `Draining` before it is stopped, up to `graceful_timeout`. Where clients are left nevertheless (nothing was running; it
//! hung, or was killed) the shard is *owed*: as soon as a watcher of the socket is up, that gets a worker of this
//! wid beyond the wanted ones, which drains it as soon as it is ready and is stopped then. If that does not do it either, the
//! next one comes after a delay that doubles, as that of a restart does. No command waits for these. A worker of a wid that is to
//! have one is no such: where that has ended for good, those who wait in its shard wait for the next start.
//!
//! Where an apply ends `so_reuseport` the address goes on with the first shard alone, and the others are *left behind*: as long
//! as a definition that a watcher may go back to has them, they stay as they are, then they are closed as above. What is owed
//! of them is served by a watcher that has the address now: by a worker of a wid beyond all others, which the shard is given to, and
//! which has the former socket in the place of the one that it would have.

#![deny(clippy::disallowed_methods)]

mod apply;
mod end;
mod order;
mod record;
mod reload;
mod request;
mod shard;
mod socket;
mod state;
mod stop;
mod table;
mod time;
mod timers;
mod view;
mod worker;

pub mod notify;

pub use crate::plan::Action;
pub use record::{Key, Unreadable, Unwritable};
pub use request::{Amount, Command, Refusal};
pub use time::Time;
pub use view::{SocketState, SocketView, View, WatcherState, WatcherView, WorkerState, WorkerView};

use crate::plan::{self, Plan};
use crate::unit::{self, LogLevel, Signal};
use order::Phase;
use request::Pending;
use serde::{Deserialize, Serialize};
use state::{Binding, Edition, Goal, Post, Shard, Slot, Socket, State, Trigger, Watcher};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;
use table::Table;
use timers::{Due, Timers};

/// A socket unit of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketId(pub u32);

/// A watcher unit of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WatcherId(pub u32);

/// One process of a worker: never used twice, unlike a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcId(pub u64);

/// A command that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// A process id, for people to read: decisions are made by [`ProcId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pid(pub i32);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By exit(3), with this code.
    Code(i32),
    /// By this signal.
    Signal(Signal),
    /// Nobody knows: it was not our child, and the kernel does not tell.
    Unknown,
}

impl Exit {
    /// Whether a service that ends so has done its job: code 0, or one of the signals that systemd.service(5) calls
    /// clean (HUP, INT, TERM, PIPE).
    pub fn is_clean(self) -> bool {
        match self {
            Exit::Code(code) => code == 0,
            Exit::Signal(Signal(signal)) => [1, 2, 13, 15].contains(&signal),
            // Rather one restart too many than a service that is missing.
            Exit::Unknown => false,
        }
    }

    /// What the manager exits with on behalf of a critical watcher: 128 + N for signal N.
    pub fn as_exit_code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(Signal(signal)) => 128 + signal,
            Exit::Unknown => 1,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => {
                write!(
                    f,
                    "was killed by signal {} ({})",
                    signal.0,
                    crate::unit::signal_name(*signal)
                )
            }
            Exit::Unknown => write!(f, "ended in a way that nobody could tell"),
        }
    }
}

/// Why a process could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnFailure {
    /// The step that failed and why, such as `exec /usr/bin/foo: No such file or directory`.
    pub reason: String,
    /// The exit code a shell would give: 127 not found, 126 not executable, 1 anything else.
    pub exit_code: i32,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The sockets are bound: start what starts by itself.
    Begin,
    /// Time has passed.
    Tick,
    /// A socket that could not be bound at first is bound now.
    Bound {
        /// Which.
        socket: SocketId,
    },
    /// It could not be bound again.
    BindFailed {
        /// Which.
        socket: SocketId,
        /// Why.
        error: String,
    },
    /// There is something to accept or read on a watched socket.
    Traffic {
        /// Which.
        socket: SocketId,
    },
    /// The process exists and its exec has succeeded.
    Spawned {
        /// Which.
        proc: ProcId,
        /// Its pid.
        pid: Pid,
    },
    /// The process could not be made.
    SpawnFailed {
        /// Which.
        proc: ProcId,
        /// Why.
        failure: SpawnFailure,
    },
    /// The process was cancelled before it was made.
    SpawnCancelled {
        /// Which.
        proc: ProcId,
    },
    /// A process of the worker sent a notification.
    Notified {
        /// The worker's process.
        proc: ProcId,
        /// Who of it.
        sender: Sender,
        /// What it said; `main_pid` only if the runtime found it fit to be the main process.
        message: notify::Message,
    },
    /// A process of the worker sent what is of no use, or said what may not be.
    Misspoke {
        /// The worker's process.
        proc: ProcId,
        /// What, in a sentence.
        problem: String,
    },
    /// The main process ended.
    Exited {
        /// Which.
        proc: ProcId,
        /// How.
        exit: Exit,
    },
    /// Nothing of the process is left: no member of its group, no stray.
    Gone {
        /// Which.
        proc: ProcId,
    },
    /// The sockets of a worker that go with it, or its shards of them, have no waiting connection any more.
    Drained {
        /// Which.
        proc: ProcId,
    },
    /// A shard that was to be closed was empty, and is closed.
    ShardClosed {
        /// Of which socket.
        socket: SocketId,
        /// Of which wid.
        wid: u32,
    },
    /// Clients wait in a shard that was to be closed: it is kept.
    ShardOwed {
        /// Of which socket.
        socket: SocketId,
        /// Of which wid.
        wid: u32,
    },
    /// Somebody asks for something.
    Command {
        /// What the answer is for.
        request: RequestId,
        /// What is asked.
        command: Command,
        /// Answer as soon as it has begun, not when it is done.
        no_wait: bool,
        /// Tell how it goes on.
        progress: bool,
    },
    /// The units are others now. The sockets that `changes` adds or binds anew are bound, but for those in `unbound`.
    Apply {
        /// What the answer is for.
        request: RequestId,
        /// Everything that is to run.
        plan: Box<Plan>,
        /// What [`Supervisor::changes_to`] says of it.
        changes: Vec<plan::Change>,
        /// Optional sockets that could not be bound, each with the reason.
        unbound: Vec<(String, String)>,
        /// Answer as soon as it has begun, not when it is done.
        no_wait: bool,
        /// Tell how it goes on.
        progress: bool,
    },
    /// Nobody waits for the answer any more.
    Abandoned {
        /// Which answer.
        request: RequestId,
    },
    /// The manager was told to end by SIGTERM or SIGINT; a second time in the same way forces it.
    Terminate {
        /// By its keeper, which passes on what it was sent itself: who signals both means it once.
        forwarded: bool,
    },
}

/// Who sent a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The main process.
    Main,
    /// Another process of the worker, with this pid.
    Other(Pid),
}

/// Something to be done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Make a process.
    Spawn {
        /// What it is called from now on.
        proc: ProcId,
        /// Of which watcher.
        watcher: WatcherId,
        /// The worker's number.
        wid: u32,
        /// How many processes this worker has had, this one included.
        generation: u64,
        /// Its definition.
        spec: Rc<plan::Watcher>,
        /// The sockets that it listens on, in the order of [`plan::Watcher::listens`].
        sockets: Rc<[SocketId]>,
    },
    /// Do not make it if that has not happened yet.
    CancelSpawn {
        /// Which.
        proc: ProcId,
    },
    /// Send a signal to the main process, or to its whole group.
    Signal {
        /// To which.
        proc: ProcId,
        /// What.
        signal: Signal,
        /// To the group.
        group: bool,
    },
    /// The main process is another one from now on (MAINPID).
    Follow {
        /// Of which.
        proc: ProcId,
        /// The new main process.
        pid: Pid,
    },
    /// SIGKILL to the group and every descendant; the main process is still there.
    Kill {
        /// Which.
        proc: ProcId,
    },
    /// SIGKILL to what an ended process left behind, then `Gone`.
    KillLeftovers {
        /// Which.
        proc: ProcId,
    },
    /// `Gone` when an ended process has left nothing behind any more.
    AwaitLeftovers {
        /// Which.
        proc: ProcId,
    },
    /// No new connection for these sockets, or for the worker's shards of them; `Drained` when those that wait are accepted.
    Drain {
        /// Which.
        proc: ProcId,
        /// Of which sockets.
        sockets: Vec<SocketId>,
    },
    /// No worker has the shard and none is wanted to: no new connection for it, and if none waits, close it.
    CloseShard {
        /// Of which socket.
        socket: SocketId,
        /// Of which wid.
        wid: u32,
    },
    /// No new connection for the shard: those that wait in it are served by whoever has it, or will have.
    ShutShard {
        /// Of which socket.
        socket: SocketId,
        /// Of which wid.
        wid: u32,
    },
    /// The shard is wanted again: new connections may come to it, and it is not closed.
    OpenShard {
        /// Of which socket.
        socket: SocketId,
        /// Of which wid.
        wid: u32,
    },
    /// The shard is another wid's from now on: of a worker that is made to serve what waits in it.
    MoveShard {
        /// Of which socket.
        socket: SocketId,
        /// Of which wid it was.
        from: u32,
        /// Of which it is. There is no shard of that yet.
        to: u32,
    },
    /// The socket of this name, which was bound for an apply, is known by this id from now on.
    Open {
        /// Its id.
        socket: SocketId,
        /// Its definition.
        spec: Rc<plan::Socket>,
    },
    /// It has another definition, of which all that differs can be changed on a socket that is bound.
    Change {
        /// Which.
        socket: SocketId,
        /// Its new definition.
        spec: Rc<plan::Socket>,
    },
    /// Nothing needs the socket any more.
    Close {
        /// Which.
        socket: SocketId,
    },
    /// Report traffic on the socket, in place of what was watched of it before.
    Watch {
        /// Which.
        socket: SocketId,
        /// If it is to be that in some of its shards: of which wids.
        shards: Vec<u32>,
    },
    /// Stop reporting traffic.
    Unwatch {
        /// Which.
        socket: SocketId,
    },
    /// Try to bind it.
    Bind {
        /// Which.
        socket: SocketId,
    },
    /// Answer a request, once.
    Reply {
        /// Which.
        request: RequestId,
        /// Done, with something worth knowing, or why not.
        outcome: Result<Option<String>, Refusal>,
    },
    /// Tell how a request goes on.
    Progress {
        /// Which.
        request: RequestId,
        /// Of which watcher.
        watcher: String,
        /// Its state.
        state: WatcherState,
        /// Workers that are ready, or not yet ended in a stop.
        ready: u32,
        /// Workers that are wanted.
        wanted: u32,
    },
    /// Tell the manager's own parent, by sd_notify.
    Parent(ParentNotice),
    /// Write a log line.
    Log {
        /// How important.
        level: LogLevel,
        /// The unit it is about, such as `watcher.web`.
        unit: String,
        /// A sentence.
        text: String,
    },
    /// Everything has ended: end too. No effect comes after it.
    Finish {
        /// With this code.
        code: i32,
    },
}

/// What the manager's own parent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentNotice {
    /// Everything that starts by itself has started; or an apply is over.
    Ready,
    /// An apply has begun.
    Reloading,
    /// The manager is going to end.
    Stopping,
    /// How it goes, in a line.
    Status(String),
    /// It takes this much longer.
    Extend(Duration),
}

/// How a supervisor is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The least important level that is logged: what is below is not even put into words.
    pub log_level: LogLevel,
    /// Whether a parent listens to [`ParentNotice`]s.
    pub parent: bool,
}

/// The state of everything. See the head of this file.
#[derive(Debug)]
pub struct Supervisor {
    settings: Settings,
    manager: unit::Manager,
    control_gid: Option<u32>,
    sockets: Table<SocketId, Socket>,
    watchers: Table<WatcherId, Watcher>,
    phase: Phase,
    /// With `[manager] warmup_delay`, the earliest time of the next watcher's start.
    next_start: Time,
    next_proc: u64,
    next_watcher: u32,
    next_socket: u32,
    pending: BTreeMap<RequestId, Pending>,

    // From here on: derived from the above.
    warmup_delay: Duration,
    shutdown_timeout: Option<Duration>,
    /// Watchers in the order in which they start.
    order: Vec<WatcherId>,
    /// Queued watchers that wait for nothing but `next_start`, by rank.
    startable: BTreeSet<(u32, WatcherId)>,
    names: HashMap<String, WatcherId>,
    procs: HashMap<ProcId, Post>,
    timers: Timers,
    /// Watchers that are alive and stopped together with others, by the number of the stop and their level in it.
    descents: BTreeSet<(u64, u32, WatcherId)>,
    /// Watchers in each state.
    census: BTreeMap<WatcherState, u32>,
    /// Watchers whose state may have changed in this turn.
    touched: BTreeSet<WatcherId>,
    /// Sockets whose watching may have changed in this turn.
    stirred: BTreeSet<SocketId>,
    /// Sockets that are left behind with some of their shards.
    left_behind: BTreeSet<SocketId>,
    /// What is not recorded yet.
    dirty: Dirty,
    /// Definitions have come or gone since it was last worked out who uses which socket.
    users_stale: bool,
    told_status: String,
}

/// One call of [`Supervisor::handle`]: when it is, and where effects go.
struct Turn<'a> {
    now: Time,
    effects: &'a mut Vec<Effect>,
    /// Everything has ended: the last effect says so, with this code.
    finish: Option<i32>,
}

impl Supervisor {
    /// A supervisor of `plan`, of whose sockets those in `unbound` could not be bound, each with the reason. Nothing
    /// starts before [`Event::Begin`].
    pub fn new(plan: &Plan, unbound: &[(String, String)], settings: Settings) -> Supervisor {
        let mut supervisor = Supervisor {
            settings,
            manager: plan.manager.clone(),
            control_gid: plan.control_gid,
            sockets: Table::default(),
            watchers: Table::default(),
            phase: Phase::New,
            next_start: Time::ZERO,
            next_proc: 1,
            next_watcher: 0,
            next_socket: 0,
            pending: BTreeMap::new(),
            warmup_delay: plan.manager.warmup_delay,
            shutdown_timeout: plan.manager.shutdown_timeout,
            order: Vec::new(),
            startable: BTreeSet::new(),
            names: HashMap::new(),
            procs: HashMap::new(),
            timers: Timers::default(),
            descents: BTreeSet::new(),
            census: BTreeMap::new(),
            touched: BTreeSet::new(),
            stirred: BTreeSet::new(),
            left_behind: BTreeSet::new(),
            dirty: Dirty::default(),
            users_stale: false,
            told_status: String::new(),
        };
        let unbound = unbound.iter().map(|(name, error)| (name.as_str(), error));
        let unbound: HashMap<&str, &String> = unbound.collect();
        for spec in &plan.sockets {
            supervisor.add_socket(spec, unbound.get(spec.name()).copied());
        }
        let sockets = supervisor.sockets_by_name();
        for spec in &plan.watchers {
            supervisor.add_watcher(spec, &sockets);
        }
        supervisor.rebuild_order(plan);
        supervisor.rebuild_users();
        supervisor
    }

    /// Takes one event at the time `now` (which never runs backwards) and appends what is to be done to `effects`, in
    /// the order in which it is to be done.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        let turn = &mut Turn {
            now,
            effects,
            finish: None,
        };
        match event {
            Event::Begin => self.begin(turn),
            Event::Tick => {}
            Event::Bound { socket } => self.bound(turn, socket),
            Event::BindFailed { socket, error } => self.bind_failed(turn, socket, error),
            Event::Traffic { socket } => self.traffic(turn, socket),
            Event::Spawned { proc, pid } => self.spawned(turn, proc, pid),
            Event::SpawnFailed { proc, failure } => self.spawn_failed(turn, proc, failure),
            Event::SpawnCancelled { proc } => self.spawn_cancelled(proc),
            Event::Notified {
                proc,
                sender,
                message,
            } => self.notified(turn, proc, sender, message),
            Event::Misspoke { proc, problem } => self.complain(turn, proc, || problem),
            Event::Exited { proc, exit } => self.exited(turn, proc, exit),
            Event::Gone { proc } => self.gone(turn, proc),
            Event::Drained { proc } => self.drained(turn, proc),
            Event::ShardClosed { socket, wid } => self.shard_closed(socket, wid),
            Event::ShardOwed { socket, wid } => self.shard_owed(socket, wid),
            Event::Command {
                request,
                command,
                no_wait,
                progress,
            } => {
                self.command(turn, request, command, no_wait, progress);
            }
            Event::Apply {
                request,
                plan,
                changes,
                unbound,
                no_wait,
                progress,
            } => {
                let begun = self.apply(turn, &plan, &changes, &unbound);
                match begun {
                    Ok(begun) => self.await_command(turn, request, begun, no_wait, progress),
                    Err(refusal) => turn.effects.push(Effect::Reply {
                        request,
                        outcome: Err(refusal),
                    }),
                }
            }
            Event::Abandoned { request } => self.abandon(request),
            Event::Terminate { forwarded } => self.terminate(turn, forwarded),
        }
        // An event that came in time counts even if its deadline has passed meanwhile: so deadlines come after it.
        self.expire(turn);
        self.settle(turn);
        if let Some(code) = turn.finish {
            turn.effects.push(Effect::Finish { code });
        }
    }

    /// When [`Event::Tick`] is due; `None` if nothing is.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.first()
    }

    /// The definition of a socket.
    pub fn socket(&self, id: SocketId) -> Option<&Rc<plan::Socket>> {
        self.sockets.get(id).map(|socket| &socket.spec)
    }

    /// Whether a process runs that may have a socket.
    pub fn is_served(&self, id: SocketId) -> bool {
        let mut users = self.sockets.get(id).into_iter().flat_map(|it| &it.watchers);
        users.any(|user| self.watcher(*user).tally.live() > 0)
    }

    /// The sockets that a process was started with, as far as they are still to be served: not those in the plan no more.
    pub fn sockets_of(&self, proc: ProcId) -> Vec<SocketId> {
        let Some(post) = self.procs.get(&proc) else {
            return Vec::new();
        };
        let Some(number) = self.state(*post).edition() else {
            return Vec::new();
        };
        let edition = self.watcher(post.watcher).edition(number);
        let is_kept = |id: &SocketId| self.sockets.get(*id).is_some_and(|socket| !socket.retired);
        edition.sockets.iter().copied().filter(is_kept).collect()
    }

    fn expire(&mut self, turn: &mut Turn<'_>) {
        while let Some(due) = self.timers.take(turn.now) {
            match due {
                Due::Shutdown => self.shutdown_due(turn),
                Due::Extension => self.extend_parent(turn),
                // What settling does anyhow.
                Due::Starts => {}
                Due::Socket(socket) => self.socket_due(turn, socket),
                Due::Watcher(watcher) => {
                    self.touched.insert(watcher);
                }
                Due::Signalled(watcher) => self.signalled_due(watcher),
                Due::Post(post) => self.post_due(turn, post),
            }
        }
    }

    /// Draws all consequences of what changed: spawns that are due, dependents, commands that are done, sockets to
    /// watch, what the parent is told. Ends because each consequence moves something forward.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        loop {
            if let Some(id) = self.touched.pop_first() {
                self.settle_watcher(turn, id);
            } else if std::mem::take(&mut self.users_stale) {
                // Before sockets, which else would ask watchers that are forgotten.
                self.rebuild_users();
                self.close_unused(turn);
            } else if let Some(id) = self.stirred.pop_first() {
                self.settle_socket(turn, id);
            } else if !self.start_next(turn) && !self.advance_phase(turn) {
                break;
            }
        }
        self.tell_status(turn);
    }

    /// A watcher that there is: ids come from indexes that forget a watcher when it is forgotten.
    fn watcher(&self, id: WatcherId) -> &Watcher {
        &self.watchers[id]
    }

    fn watcher_mut(&mut self, id: WatcherId) -> &mut Watcher {
        self.dirty.watchers.insert(id);
        let watcher = self.watchers.get_mut(id);
        watcher.unwrap_or_else(|| unreachable!("an index names a watcher that is forgotten"))
    }

    fn watcher_ids(&self) -> Vec<WatcherId> {
        self.watchers.ids().collect()
    }

    fn slot_mut(&mut self, id: WatcherId, wid: u32) -> &mut Slot {
        self.dirty.slots.insert((id, wid));
        &mut self.watcher_mut(id).slots[wid as usize - 1]
    }

    fn socket_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.dirty.sockets.insert(id);
        self.sockets.get_mut(id)
    }

    /// What stands at a post.
    fn state(&self, post: Post) -> &State {
        self.watcher(post.watcher).slots[post.wid as usize - 1].state(post.seat)
    }

    /// The definition of the process at a post, or of the next one there.
    fn unit_at(&self, post: Post) -> &unit::Watcher {
        let watcher = self.watcher(post.watcher);
        let edition = match self.state(post).edition() {
            Some(number) => watcher.edition(number),
            None => watcher.next(),
        };
        &edition.spec.unit
    }

    fn new_proc(&mut self) -> ProcId {
        let proc = ProcId(self.next_proc);
        self.next_proc += 1;
        // What is recorded is a bound that is never reached, so that not every start changes it.
        self.dirty.manager |= self.next_proc.is_multiple_of(record::PROCS_AT_ONCE);
        proc
    }

    /// The one place where what stands at a post changes: keeps all that is derived from it.
    fn set_state(&mut self, post: Post, state: State) -> State {
        let Post {
            watcher: id,
            wid,
            seat,
        } = post;
        self.dirty.slots.insert((id, wid));
        self.timers.set(Due::Post(post), state.deadline());
        let watcher = self.watchers.get_mut(id);
        let Some(watcher) = watcher else { return state };
        let slot = &mut watcher.slots[wid as usize - 1];
        let proc = state.proc();
        let before_proc = slot.state(seat).proc();
        if before_proc != proc {
            if let Some(before) = before_proc {
                self.procs.remove(&before);
            }
            if let Some(proc) = proc {
                self.procs.insert(proc, post);
            }
        }
        if let Some(count) = watcher.tally.of(&state) {
            *count += 1;
            watcher.tally.beside += u32::from(seat == state::Seat::Beside);
        }
        let before = slot.replace(seat, state);
        if let Some(count) = watcher.tally.of(&before) {
            *count -= 1;
            watcher.tally.beside -= u32::from(seat == state::Seat::Beside);
        }
        self.touched.insert(id);
        before
    }

    /// Takes the state out of a post to make the next one of it, which must be set before anything else happens.
    fn take_state(&mut self, post: Post) -> State {
        self.set_state(post, State::Vacant)
    }

    /// The one place where a watcher's goal changes.
    fn set_goal(&mut self, id: WatcherId, goal: Goal) {
        let watcher = self.watcher_mut(id);
        if watcher.goal == goal {
            return;
        }
        let before = std::mem::replace(&mut watcher.goal, goal);
        self.touched.insert(id);
        let watcher = &self.watchers[id];
        self.stirred.extend(&*watcher.edition.sockets);
        let rank = watcher.rank;
        if matches!(before, Goal::Stopped { .. }) {
            // What it is after does not have to wait for its end any more.
            let dependencies = watcher.dependencies.iter().map(|(other, _)| *other);
            self.touched.extend(dependencies);
        }
        if goal != Goal::Queued {
            self.startable.remove(&(rank, id));
        }
        if !matches!(goal, Goal::Stopped { .. }) && !self.is_stopping() {
            self.leave_descent(id);
        }
    }

    fn log(
        &self,
        turn: &mut Turn<'_>,
        level: LogLevel,
        id: WatcherId,
        text: impl FnOnce() -> String,
    ) {
        if level as u8 <= self.settings.log_level as u8 {
            let unit = format!("watcher.{}", self.watcher(id).name());
            turn.effects.push(Effect::Log {
                level,
                unit,
                text: text(),
            });
        }
    }

    fn log_socket(
        &self,
        turn: &mut Turn<'_>,
        level: LogLevel,
        id: SocketId,
        text: impl FnOnce() -> String,
    ) {
        if level as u8 <= self.settings.log_level as u8
            && let Some(socket) = self.sockets.get(id)
        {
            let unit = format!("socket.{}", socket.spec.name());
            turn.effects.push(Effect::Log {
                level,
                unit,
                text: text(),
            });
        }
    }
}

/// What has changed since it was last recorded.
#[derive(Debug, Default)]
struct Dirty {
    manager: bool,
    sockets: BTreeSet<SocketId>,
    watchers: BTreeSet<WatcherId>,
    editions: BTreeSet<(WatcherId, u32)>,
    slots: BTreeSet<(WatcherId, u32)>,
}

fn new_socket(spec: &Rc<plan::Socket>, error: Option<&String>) -> Socket {
    let binding = match error {
        Some(error) => Binding::Failed {
            error: error.clone(),
            attempts: 0,
            retry: Time::ZERO,
        },
        None => Binding::Bound,
    };
    Socket {
        spec: Rc::clone(spec),
        binding,
        watchers: Vec::new(),
        retired: false,
        left_behind: false,
        trigger: Trigger::default(),
        shards: match spec.unit.so_reuseport.value {
            true => vec![Shard::Open],
            false => Vec::new(),
        },
        watched: false,
        watched_shards: Vec::new(),
        watched_since: Time::ZERO,
    }
}

fn new_watcher(spec: &Rc<plan::Watcher>, sockets: Rc<[SocketId]>) -> Watcher {
    Watcher {
        edition: Edition {
            number: 0,
            spec: Rc::clone(spec),
            sockets,
        },
        others: Vec::new(),
        next_edition: 1,
        rank: 0,
        level: spec.level,
        retired: false,
        dependencies: Vec::new(),
        dependents: Vec::new(),
        goal: Goal::STOPPED,
        descent: None,
        booting: false,
        wanted: spec.unit.numprocesses.value,
        slots: Vec::new(),
        past: state::Past::default(),
        restarts: 0,
        failures: 0,
        failures_ever: 0,
        mishap: None,
        last_end: None,
        returns: 0,
        next_spawn: Time::ZERO,
        reload: None,
        queued: None,
        signalled: None,
        reloads: 0,
        failed_reload: None,
        requests: Vec::new(),
        lacks: None,
        tally: state::Tally::default(),
        told: None,
    }
}
