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
//! - Every request is answered by exactly one `Reply`, unless it is `Abandoned` before.
//!
//! # The rules of a slot
//!
//! A watcher has slots `1..=wanted`, and each has at most one process. `Vacant` is the rest. A wanted slot is `Due`,
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
//! # The rules of a socket
//!
//! It is watched exactly when it is bound, not paused, and some watcher on it is waiting for traffic. Everything else is
//! the workers' business: whatever they do, it stays open.

#![deny(clippy::disallowed_methods)]

mod order;
mod request;
mod socket;
mod state;
mod time;
mod view;
mod worker;

pub mod notify;

pub use request::{Amount, Command, Refusal};
pub use time::Time;
pub use view::{SocketState, SocketView, View, WatcherState, WatcherView, WorkerState, WorkerView};

use crate::plan::{self, Plan};
use crate::unit::{LogLevel, Signal};
use order::Phase;
use request::Pending;
use serde::{Deserialize, Serialize};
use state::{Binding, Goal, Socket, State, Trigger, Watcher};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;
use time::{Due, Timers};

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
    /// The shards of a worker that is to go have no waiting connection any more.
    Drained {
        /// Which.
        proc: ProcId,
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
    /// Nobody waits for the answer any more.
    Abandoned {
        /// Which answer.
        request: RequestId,
    },
    /// The manager was told to end by SIGTERM or SIGINT; a second time forces it.
    Terminate,
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
        /// Its definition.
        spec: Rc<plan::Watcher>,
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
    /// No new connection for the worker's shards; `Drained` when those that wait are accepted.
    Drain {
        /// Which.
        proc: ProcId,
    },
    /// The wid is gone for good: close its shards.
    CloseShards {
        /// Of which watcher.
        watcher: WatcherId,
        /// The worker's number.
        wid: u32,
    },
    /// Report traffic on the socket.
    Watch {
        /// Which.
        socket: SocketId,
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
    /// Everything that starts by itself has started.
    Ready,
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
    warmup_delay: Duration,
    shutdown_timeout: Option<Duration>,
    sockets: Vec<Socket>,
    /// In the order in which they start.
    watchers: Vec<Watcher>,
    phase: Phase,
    /// With `[manager] warmup_delay`, the earliest time of the next watcher's start.
    next_start: Time,
    /// Queued watchers that wait for nothing but `next_start`.
    startable: BTreeSet<WatcherId>,
    next_proc: u64,
    pending: BTreeMap<RequestId, Pending>,

    // From here on: derived from the above.
    names: HashMap<String, WatcherId>,
    procs: HashMap<ProcId, (WatcherId, u32)>,
    timers: Timers,
    /// Watchers in each state.
    census: BTreeMap<WatcherState, u32>,
    /// Watchers whose state may have changed in this turn.
    touched: BTreeSet<WatcherId>,
    /// Sockets whose watching may have changed in this turn.
    stirred: BTreeSet<SocketId>,
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
        let socket_ids: HashMap<&str, SocketId> = plan
            .sockets
            .iter()
            .enumerate()
            .map(|(i, socket)| (socket.name(), SocketId(i as u32)))
            .collect();
        let names: HashMap<String, WatcherId> = (plan.watchers.iter().enumerate())
            .map(|(i, watcher)| (watcher.name().to_owned(), WatcherId(i as u32)))
            .collect();
        let mut sockets: Vec<Socket> = plan
            .sockets
            .iter()
            .map(|spec| new_socket(spec, unbound))
            .collect();
        let mut watchers: Vec<Watcher> = plan.watchers.iter().map(new_watcher).collect();
        for index in 0..watchers.len() {
            let id = WatcherId(index as u32);
            let spec = Rc::clone(&watchers[index].spec);
            for name in &spec.listens {
                if let Some(socket) = socket_ids.get(name.as_str()) {
                    watchers[index].sockets.push(*socket);
                    sockets[socket.0 as usize].watchers.push(id);
                }
            }
            let required = spec.unit.requires.iter().map(|name| (name, true));
            let after = spec.unit.after.iter().map(|name| (name, false));
            for (name, requires) in required.chain(after) {
                let Some(other) = names.get(&name.value).copied() else {
                    continue;
                };
                if other != id
                    && watchers[index]
                        .dependencies
                        .iter()
                        .all(|(known, _)| *known != other)
                {
                    watchers[index].dependencies.push((other, requires));
                    watchers[other.0 as usize].dependents.push((id, requires));
                }
            }
        }
        let mut census = BTreeMap::new();
        for watcher in &mut watchers {
            watcher.told = Some(WatcherState::Stopped);
            *census.entry(WatcherState::Stopped).or_default() += 1;
        }
        Supervisor {
            settings,
            warmup_delay: plan.manager.warmup_delay,
            shutdown_timeout: plan.manager.shutdown_timeout,
            sockets,
            watchers,
            phase: Phase::New,
            next_start: Time::ZERO,
            startable: BTreeSet::new(),
            next_proc: 1,
            pending: BTreeMap::new(),
            names,
            procs: HashMap::new(),
            timers: Timers::default(),
            census,
            touched: BTreeSet::new(),
            stirred: BTreeSet::new(),
            told_status: String::new(),
        }
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
            Event::SpawnCancelled { proc } => self.spawn_cancelled(turn, proc),
            Event::Notified {
                proc,
                sender,
                message,
            } => self.notified(turn, proc, sender, message),
            Event::Exited { proc, exit } => self.exited(turn, proc, exit),
            Event::Gone { proc } => self.gone(turn, proc),
            Event::Drained { proc } => self.drained(turn, proc),
            Event::Command {
                request,
                command,
                no_wait,
                progress,
            } => {
                self.command(turn, request, command, no_wait, progress);
            }
            Event::Abandoned { request } => self.abandon(request),
            Event::Terminate => self.terminate(turn),
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
        self.sockets.get(id.0 as usize).map(|socket| &socket.spec)
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
                Due::Slot(watcher, wid) => self.slot_due(turn, watcher, wid),
            }
        }
    }

    /// Draws all consequences of what changed: spawns that are due, dependents, commands that are done, sockets to
    /// watch, what the parent is told. Ends because each consequence moves something forward.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        loop {
            if let Some(id) = self.touched.pop_first() {
                self.settle_watcher(turn, id);
            } else if let Some(id) = self.stirred.pop_first() {
                self.settle_socket(turn, id);
            } else if !self.start_next(turn) && !self.advance_phase(turn) {
                break;
            }
        }
        self.tell_status(turn);
    }

    fn watcher(&self, id: WatcherId) -> &Watcher {
        &self.watchers[id.0 as usize]
    }

    fn watcher_mut(&mut self, id: WatcherId) -> &mut Watcher {
        &mut self.watchers[id.0 as usize]
    }

    fn watcher_ids(&self) -> impl DoubleEndedIterator<Item = WatcherId> + use<> {
        (0..self.watchers.len() as u32).map(WatcherId)
    }

    /// The one place where a slot changes its state: keeps all that is derived from it.
    fn set_slot(&mut self, id: WatcherId, wid: u32, state: State) -> State {
        let watcher = &mut self.watchers[id.0 as usize];
        let slot = &mut watcher.slots[wid as usize - 1];
        self.timers.set(Due::Slot(id, wid), state.deadline());
        if slot.state.proc() != state.proc() {
            if let Some(proc) = slot.state.proc() {
                self.procs.remove(&proc);
            }
            if let Some(proc) = state.proc() {
                self.procs.insert(proc, (id, wid));
            }
        }
        let before = std::mem::replace(&mut slot.state, state);
        if let Some(count) = watcher.tally.of(&before) {
            *count -= 1;
        }
        if let Some(count) = watcher.tally.of(&slot.state) {
            *count += 1;
        }
        self.touched.insert(id);
        before
    }

    /// Takes the state out of a slot to make the next one of it, which must be set before anything else happens.
    fn take_slot(&mut self, id: WatcherId, wid: u32) -> State {
        self.set_slot(id, wid, State::Vacant)
    }

    /// The one place where a watcher's goal changes.
    fn set_goal(&mut self, id: WatcherId, goal: Goal) {
        let watcher = self.watcher_mut(id);
        if watcher.goal == goal {
            return;
        }
        let before = std::mem::replace(&mut watcher.goal, goal);
        self.touched.insert(id);
        let watcher = &self.watchers[id.0 as usize];
        self.stirred.extend(&watcher.sockets);
        if matches!(before, Goal::Stopped { .. }) {
            // What it is after does not have to wait for its end any more.
            let dependencies = watcher.dependencies.iter().map(|(other, _)| *other);
            self.touched.extend(dependencies);
        }
        if goal != Goal::Queued {
            self.startable.remove(&id);
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
            let unit = format!("watcher.{}", self.watcher(id).spec.name());
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
        if level as u8 <= self.settings.log_level as u8 {
            let unit = format!("socket.{}", self.sockets[id.0 as usize].spec.name());
            turn.effects.push(Effect::Log {
                level,
                unit,
                text: text(),
            });
        }
    }
}

fn new_socket(spec: &Rc<plan::Socket>, unbound: &[(String, String)]) -> Socket {
    let binding = match unbound.iter().find(|(name, _)| name == spec.name()) {
        Some((_, error)) => Binding::Failed {
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
        trigger: Trigger::default(),
        watched: false,
    }
}

fn new_watcher(spec: &Rc<plan::Watcher>) -> Watcher {
    Watcher {
        spec: Rc::clone(spec),
        sockets: Vec::new(),
        dependencies: Vec::new(),
        dependents: Vec::new(),
        goal: Goal::Stopped { held: false },
        wanted: spec.unit.numprocesses.value,
        slots: Vec::new(),
        restarts: 0,
        failures: 0,
        failures_ever: 0,
        mishap: None,
        last_end: None,
        next_spawn: Time::ZERO,
        requests: Vec::new(),
        tally: state::Tally::default(),
        told: None,
    }
}
