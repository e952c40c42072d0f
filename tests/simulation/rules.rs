//! What must happen, told independently of how the supervisor does it.
//!
//! [`Rules::turn`] is given each event and what the supervisor made of it. It works out from the unit file and the
//! history alone which effects the event calls for, each with its reason, and compares. It is slow and plain where the
//! supervisor is fast: it looks at everything on every turn and keeps no index and no timer.

mod apply;
mod compare;
mod record;
mod reload;
mod shard;

pub use compare::brief;

use apply::Definition;
use reload::{Queued, Reload, Signalled};
use shard::Shard;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tentpole::plan::{self, Plan};
use tentpole::supervise::notify::{Message, Watchdog};
use tentpole::supervise::{
    Amount, Command, Effect, Event, Exit, ParentNotice, ProcId, RequestId, Sender, Time,
    WatcherState,
};
use tentpole::unit::{self, NotifyAccess, Restart, Signal, WatcherKind};

pub struct Rules {
    parent: bool,
    warmup_delay: Duration,
    shutdown_timeout: Option<Duration>,
    /// By their ids.
    watchers: BTreeMap<usize, Watcher>,
    sockets: BTreeMap<usize, Socket>,
    next_watcher: usize,
    next_socket: usize,
    phase: Phase,
    next_start: Time,
    pending: BTreeMap<RequestId, Pending>,
    /// The slot and the generation of every process that ever was.
    procs: HashMap<ProcId, (usize, u32, u64)>,
    /// Processes that were ordered so far.
    orders: u64,
    /// Stops of several levels that were begun so far.
    stops: u64,
    now: Time,
    expected: Vec<Expected>,
    /// How often each rule had its say, so that a test can tell that all of them had.
    pub said: BTreeMap<&'static str, u64>,
}

struct Watcher {
    /// What it is; in a reload, what it goes back to.
    own: Rc<Definition>,
    /// Its place in the start order, and its level.
    rank: usize,
    level: u32,
    /// It is in no plan any more.
    retired: bool,
    /// Those it is after; true where it requires them.
    needs: BTreeMap<usize, bool>,
    goal: Goal,
    /// It is being stopped together with others: which stop that is.
    together: Option<u64>,
    wanted: u32,
    slots: BTreeMap<u32, Slot>,
    /// How many processes each wid has ever had.
    generations: BTreeMap<u32, u64>,
    restarts: u64,
    failed_starts: u32,
    failures: u64,
    /// The last worker that ended for good.
    last_end: Option<LastEnd>,
    /// How often in a row it left waiting what it was started for.
    returns: u32,
    mishap: Mishap,
    next_spawn: Time,
    reload: Option<Reload>,
    queued: Option<Queued>,
    signalled: Option<Signalled>,
    /// Reloads so far, and the last that failed.
    reloads: u64,
    failed_reload: Option<u64>,
}

/// How a worker ended that is not restarted.
#[derive(Clone, Copy, Debug)]
struct LastEnd {
    failed: bool,
    code: i32,
    /// It was a job, and is done.
    done: bool,
}

/// What went wrong last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    None,
    Start,
    Reload,
    /// Its workers end and clients wait.
    Return,
}

const DOWN: Goal = Goal::Down {
    held: false,
    again: false,
};

const DOWN_IN_TURN: Goal = Goal::Down {
    held: true,
    again: false,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// With `again` it is a restart.
    Down {
        held: bool,
        again: bool,
    },
    Queued,
    Waiting,
    Up {
        complete: bool,
    },
    Ended,
    Failed,
}

/// How an answer says that a watcher has failed, and that it is not the end.
const GOES_ON: &str = "the manager goes on trying";

impl Goal {
    /// What is after it waits.
    fn is_on_its_way(self) -> bool {
        matches!(
            self,
            Goal::Queued | Goal::Up { complete: false } | Goal::Down { again: true, .. }
        )
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Restarts in a row.
    row: u32,
    /// A worker died, and no other has taken its place.
    owed: bool,
    ended_badly: Option<i32>,
    main: Worker,
    beside: Worker,
}

/// A process, or where one is missing.
#[derive(Debug, Default)]
struct Worker {
    life: Life,
    proc: Option<ProcId>,
    generation: u64,
    /// Which of all processes that were ever ordered it is.
    order: u64,
    of: Option<Rc<Definition>>,
    pid: i32,
    since: Time,
    ready: Option<Time>,
    /// When it is too old.
    expires: Option<Time>,
    interval: Option<Duration>,
    status: Option<String>,
    reloading: bool,
}

/// A place for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    id: usize,
    wid: u32,
    seat: Seat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seat {
    Main,
    /// Of a replacement until it is ready; then of what it has replaced.
    Beside,
}

const SEATS: [Seat; 2] = [Seat::Main, Seat::Beside];
#[derive(Clone, Debug, Default, PartialEq)]
enum Life {
    #[default]
    Idle,
    Due,
    Resting {
        until: Time,
    },
    Ordered {
        cancelled: bool,
    },
    Starting {
        by: Option<Time>,
    },
    Proving {
        until: Time,
    },
    Serving {
        feed_by: Option<Time>,
    },
    Draining {
        until: Option<Time>,
    },
    Ending {
        why: Why,
        kill: Kill,
    },
    Clearing {
        why: Why,
        exit: Exit,
        kill: Kill,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Why {
    Asked,
    Failed,
    Itself,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kill {
    At(Time),
    Never,
    Done,
}

struct Socket {
    spec: Rc<plan::Socket>,
    /// It is in no plan any more.
    retired: bool,
    bound: bool,
    /// Failed binds, and when the next is due; `None` while one is under way.
    failed_binds: u32,
    bind_at: Option<Time>,
    window: Option<Time>,
    activations: u32,
    paused: Option<Time>,
    /// All of it, or the shards of these wids.
    watched: Option<Vec<u32>>,
    watched_since: Time,
    /// By wid.
    shards: BTreeMap<u32, Shard>,
    /// Its address went to another without shards.
    is_left: bool,
}

#[derive(Debug)]
enum Phase {
    New,
    Booting {
        unsettled: BTreeSet<usize>,
        extend_at: Option<Time>,
    },
    Running,
    Stopping {
        code: i32,
        forced: bool,
        force_at: Option<Time>,
        /// Signals to end that came directly.
        direct: u32,
        forwarded: u32,
    },
    Over,
}

struct Pending {
    /// It waits for the end of the manager.
    over: bool,
    apply: bool,
    /// The parent was told of its beginning.
    told: bool,
    /// Nobody waits for the answer, and yet it is not done.
    abandoned: bool,
    open: BTreeMap<usize, (Want, u64)>,
    problems: Vec<Vec<String>>,
    /// Names of watchers that had failed and were tried again when they were waited for no longer.
    trying: Vec<(usize, String)>,
    superseded: Vec<(String, &'static str)>,
}

/// What a request waits for, of one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Up,
    Stopped,
    Scaled,
    /// The end of the reload of this number.
    Reloaded(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// The number is the generation of the worker.
    Worker(usize, u32, u64),
    Shard(usize, u32),
    Socket(usize),
    Request(RequestId),
    Manager,
}

struct Expected {
    key: Key,
    act: Act,
    reason: &'static str,
}

/// An effect that is called for.
#[derive(Clone, Debug)]
enum Act {
    Spawn(Rc<Definition>),
    Cancel,
    Signal(Signal, bool),
    Follow(i32),
    Kill,
    KillLeftovers,
    AwaitLeftovers,
    Drain(Vec<usize>),
    CloseShard,
    /// To this wid.
    MoveShard(u32),
    ShutShard,
    OpenShard,
    Open(Rc<plan::Socket>),
    Change(Rc<plan::Socket>),
    Close,
    Watch(Vec<u32>),
    Unwatch,
    Bind,
    Reply(Answer),
    Parent(ParentNotice),
    Finish(i32),
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Done,
    NoSuchWatcher(String),
    IsSocket(String),
    Refused,
    /// With these words in it.
    Failed(Vec<String>),
    ShuttingDown,
    /// What was asked of one of these.
    Superseded(Vec<(String, &'static str)>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Force,
    Extension,
    Socket(usize),
    Signalled(usize),
    Slot(At),
}

/// How a process ended.
struct End {
    clean: bool,
    succeeded: bool,
    lived: bool,
    ready: Option<Time>,
    exit_code: i32,
    of: Option<Rc<Definition>>,
    order: u64,
}

const KILL: Signal = Signal(9);
const CONT: Signal = Signal(18);

impl Rules {
    pub fn new(plan: &Plan, unbound: &[(String, String)], parent: bool) -> Rules {
        let mut rules = Rules {
            parent,
            warmup_delay: plan.manager.warmup_delay,
            shutdown_timeout: plan.manager.shutdown_timeout,
            watchers: BTreeMap::new(),
            sockets: BTreeMap::new(),
            next_watcher: 0,
            next_socket: 0,
            phase: Phase::New,
            next_start: Time::ZERO,
            pending: BTreeMap::new(),
            procs: HashMap::new(),
            orders: 0,
            stops: 0,
            now: Time::ZERO,
            expected: Vec::new(),
            said: BTreeMap::new(),
        };
        for spec in &plan.sockets {
            rules.add_socket(spec, unbound);
        }
        for spec in &plan.watchers {
            rules.add_watcher(spec);
        }
        rules.order_as(plan);
        rules
    }

    /// Holds the effects of an event against those it calls for.
    pub fn turn(&mut self, now: Time, event: &Event, effects: &[Effect]) -> Result<(), String> {
        self.now = now;
        self.expected.clear();
        self.take(event);
        self.expire();
        self.settle();
        self.compare(effects)
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Begin => self.begin(),
            Event::Tick => {}
            Event::Bound { socket } => self.bound(socket.0 as usize),
            Event::BindFailed { socket, .. } => {
                let now = self.now;
                if let Some(socket) = self.sockets.get_mut(&(socket.0 as usize)) {
                    socket.failed_to_bind(now);
                }
            }
            Event::Traffic { socket } => self.traffic(socket.0 as usize),
            Event::Spawned { proc, pid } => self.spawned(*proc, pid.0),
            Event::SpawnFailed { proc, failure } => self.spawn_failed(*proc, failure.exit_code),
            Event::SpawnCancelled { proc } => {
                if let Some(at) = self.current(*proc) {
                    self.replace(at);
                }
            }
            Event::Notified {
                proc,
                sender,
                message,
            } => self.notified(*proc, *sender, message),
            // It is for the log alone.
            Event::Misspoke { .. } => {}
            Event::Exited { proc, exit } => self.exited(*proc, *exit),
            Event::Gone { proc } => self.gone(*proc),
            Event::Drained { proc } => {
                if let Some(at) = self.current(*proc)
                    && matches!(self.worker(at).life, Life::Draining { .. })
                {
                    self.stop_worker(at, Why::Asked, None);
                }
            }
            Event::ShardClosed { socket, wid } => self.shard_closed(socket.0 as usize, *wid),
            Event::ShardOwed { socket, wid } => self.shard_owed(socket.0 as usize, *wid),
            Event::Command {
                request,
                command,
                no_wait,
                ..
            } => self.command(*request, command, *no_wait),
            Event::Apply {
                request,
                plan,
                changes,
                unbound,
                no_wait,
                ..
            } => {
                let begun = self.begin_apply(plan, changes, unbound);
                self.wait_for(*request, begun, *no_wait, true);
            }
            Event::Abandoned { request } => self.abandon(*request),
            Event::Terminate { forwarded } => self.terminate(*forwarded),
        }
    }

    // The manager.

    fn begin(&mut self) {
        for socket in self.sockets.values_mut().filter(|socket| !socket.bound) {
            socket.failed_to_bind(self.now);
        }
        let ids: Vec<usize> = (self.ids().into_iter())
            .filter(|id| self.unit(*id).autostart)
            .collect();
        let mut extend_at = None;
        if self.parent && !ids.is_empty() {
            self.extend_parent(Duration::from_secs(30), "it is starting");
            extend_at = Some(self.now + Duration::from_secs(10));
        }
        self.phase = Phase::Booting {
            unsettled: ids.iter().copied().collect(),
            extend_at,
        };
        for id in ids {
            self.start_by_itself(id);
        }
    }

    /// As it does with the manager, or when it is new.
    fn start_by_itself(&mut self, id: usize) {
        if self.unit(id).on_demand.value {
            self.watcher(id).goal = Goal::Waiting;
        } else {
            self.start(id);
        }
    }

    fn extend_parent(&mut self, by: Duration, reason: &'static str) {
        self.tell_parent(ParentNotice::Extend(by), reason);
    }

    fn tell_parent(&mut self, notice: ParentNotice, reason: &'static str) {
        self.expect(Key::Manager, Act::Parent(notice), reason);
    }

    fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. } | Phase::Over)
    }

    /// Two signals of one kind force the stop, whatever began it: one of each may be a single one that both processes got.
    fn terminate(&mut self, is_forwarded: bool) {
        if !self.is_stopping() {
            self.stop_all(0);
        }
        if let Phase::Stopping {
            direct, forwarded, ..
        } = &mut self.phase
        {
            *direct += u32::from(!is_forwarded);
            *forwarded += u32::from(is_forwarded);
            let (direct, forwarded) = (*direct, *forwarded);
            match direct.max(forwarded) {
                1 if direct + forwarded == 2 => self.say("one signal in both ways"),
                1 => {}
                _ => self.force(),
            }
        }
    }

    fn stop_all(&mut self, code: i32) {
        self.say("shutdown");
        self.tell_parent(ParentNotice::Stopping, "the manager ends");
        if let (Some(timeout), true) = (self.shutdown_timeout, self.parent) {
            self.extend_parent(timeout + Duration::from_secs(20), "the stop may take long");
        }
        self.phase = Phase::Stopping {
            code,
            forced: false,
            force_at: self.shutdown_timeout.map(|timeout| self.now + timeout),
            direct: 0,
            forwarded: 0,
        };
        for id in self.ids() {
            let watcher = &self.watchers[&id];
            let drains = watcher.count(|life| matches!(life, Life::Draining { .. })) > 0;
            let is_on = matches!(watcher.goal, Goal::Up { .. } | Goal::Queued | Goal::Waiting);
            if is_on || drains {
                self.watcher(id).goal = DOWN_IN_TURN;
                self.cancel_reload(id);
                self.stop_what_does_not_run(id);
            }
            if let Goal::Down { again, .. } = &mut self.watcher(id).goal {
                *again = false;
            }
        }
    }

    fn force(&mut self) {
        let now = self.now;
        let Phase::Stopping {
            forced, force_at, ..
        } = &mut self.phase
        else {
            return;
        };
        if std::mem::replace(forced, true) {
            return;
        }
        *force_at = Some(now + Duration::from_secs(10));
        self.say("forced shutdown");
        for id in self.ids() {
            self.watcher(id).goal = DOWN;
            for at in self.places(id) {
                self.kill_worker(at);
            }
        }
    }

    fn finish(&mut self, code: i32) {
        self.phase = Phase::Over;
        self.expect(Key::Manager, Act::Finish(code), "everything has ended");
    }

    /// Ends the manager on behalf of a critical watcher.
    fn end_with(&mut self, code: i32) {
        if !self.is_stopping() {
            self.say("critical");
            self.stop_all(code);
        }
    }

    // Watchers.

    fn start(&mut self, id: usize) {
        if self.is_stopping() {
            return;
        }
        match self.watchers[&id].goal {
            Goal::Up { .. } => {
                for slot in self.watcher(id).slots.values_mut() {
                    if let Life::Resting { .. } = slot.main.life {
                        (slot.main.life, slot.row) = (Life::Due, 0);
                    }
                }
                let watcher = &self.watchers[&id];
                let lacks = |wid: u32| {
                    let slot = watcher.slots.get(&wid);
                    slot.is_none_or(|slot| slot.main.life == Life::Idle)
                };
                let is_oneshot = self.unit(id).kind == WatcherKind::Oneshot;
                if !is_oneshot && (1..=watcher.wanted).any(lacks) {
                    self.say("filled up");
                    self.watcher(id).goal = Goal::Up { complete: false };
                    self.want_slots(id, 1);
                }
            }
            Goal::Queued | Goal::Down { again: true, .. } => {}
            _ => {
                self.watcher(id).goal = Goal::Queued;
                for (other, requires) in self.watchers[&id].needs.clone() {
                    let goal = self.watchers[&other].goal;
                    if requires && matches!(goal, Goal::Down { .. } | Goal::Failed) {
                        self.start(other);
                    }
                }
            }
        }
    }

    fn stop(&mut self, id: usize) {
        let held = match self.watchers[&id].goal {
            Goal::Down { again: false, .. } => return,
            Goal::Down { held, .. } => held,
            _ => true,
        };
        self.watcher(id).goal = Goal::Down { held, again: false };
        self.watcher(id).returns = 0;
        self.cancel_reload(id);
        for other in self.requirers(id) {
            self.stop(other);
        }
        self.stop_what_does_not_run(id);
    }

    /// Even if it is held: what others may depend on is a process in its place.
    fn stop_what_does_not_run(&mut self, id: usize) {
        for at in self.places(id) {
            if at.seat == Seat::Beside || !self.worker(at).life.runs() {
                self.stop_worker(at, Why::Asked, None);
            }
        }
    }

    /// Watchers that are up, or about to be, and require this one.
    fn requirers(&self, id: usize) -> Vec<usize> {
        (self.ids().into_iter())
            .filter(|other| self.watchers[other].needs.get(&id) == Some(&true))
            .filter(|other| {
                let goal = self.watchers[other].goal;
                let is_restarted = matches!(goal, Goal::Down { again: true, .. });
                is_restarted || matches!(goal, Goal::Up { .. } | Goal::Queued)
            })
            .collect()
    }

    /// A stop goes in reverse order: whether something that is being stopped, and started after this, is alive.
    fn is_held(&self, id: usize) -> bool {
        let own = self.watchers[&id].together;
        self.watchers.values().any(|watcher| {
            let is_together = watcher.together.is_some() && watcher.together == own;
            let is_above = watcher.level > self.watchers[&id].level;
            let is_before = match self.phase {
                Phase::Stopping { .. } => is_above,
                _ => is_together && is_above || watcher.needs.contains_key(&id),
            };
            let is_asked = matches!(self.phase, Phase::Stopping { .. })
                || matches!(watcher.goal, Goal::Down { .. });
            is_before && is_asked && watcher.lives()
        })
    }

    fn give_up(&mut self, id: usize, exit_code: i32) {
        self.say("given up");
        self.cancel_reload(id);
        let watcher = self.watcher(id);
        watcher.failures += 1;
        watcher.mishap = Mishap::Start;
        watcher.goal = Goal::Failed;
        self.dismiss_all(id);
        if self.unit(id).critical {
            self.end_with(exit_code);
        }
        // One by one: the first may end the manager.
        while let Some(other) = self.requirers(id).first() {
            self.say("failed with what it requires");
            self.give_up(*other, 1);
        }
    }

    /// All that it is after is as it must be; `None` if something that it requires can't be.
    fn may_start(&self, id: usize) -> Option<bool> {
        let mut may = !self.lacks(id);
        for (other, requires) in &self.watchers[&id].needs {
            match self.watchers[other].goal {
                goal if goal.is_on_its_way() => may = false,
                Goal::Queued | Goal::Up { .. } | Goal::Ended | Goal::Waiting => {}
                Goal::Down { .. } | Goal::Failed if *requires => return None,
                Goal::Down { .. } | Goal::Failed => {}
            }
        }
        Some(may)
    }

    /// There is a socket that it can do nothing without, and that is not bound: it has no other, or its command says so.
    fn lacks(&self, id: usize) -> bool {
        self.lacks_of(&self.watchers[&id].own)
    }

    fn lacks_of(&self, own: &Definition) -> bool {
        let unbound = |socket: &usize| !self.sockets[socket].bound;
        let text = format!("{:?} {:?}", own.spec.unit.cmd, own.spec.unit.env);
        let is_told = |socket: &usize| {
            let name = self.sockets[socket].spec.name();
            text.contains(&format!("circus.socket.{name})"))
        };
        let mut told = own.sockets.iter().filter(|socket| is_told(socket));
        let has_none = !own.sockets.is_empty() && own.sockets.iter().all(unbound);
        has_none || told.any(unbound)
    }

    fn state_of(&self, id: usize) -> WatcherState {
        let watcher = &self.watchers[&id];
        match watcher.goal {
            Goal::Queued if self.lacks(id) => WatcherState::Waiting,
            _ => watcher.state(),
        }
    }

    /// The workers of a watcher have all ended for good.
    fn ran_out(&mut self, id: usize) {
        self.cancel_reload(id);
        let unit = self.unit(id);
        let once = unit.kind == WatcherKind::Oneshot || unit.restart == Restart::Never;
        let critical = unit.critical;
        if unit.on_demand.value && !(critical && once) {
            self.say("waiting again");
            self.watcher(id).goal = Goal::Waiting;
            return;
        }
        let last = self.watchers[&id].last_end;
        let (failed, code) = last.map_or((false, 0), |end| (end.failed, end.code));
        let worst = (self.watchers[&id].slots.values()).find_map(|slot| slot.ended_badly);
        if failed {
            self.give_up(id, code);
        } else if let Some(code) = worst {
            self.give_up(id, code);
        } else {
            self.say("ended");
            self.watcher(id).goal = Goal::Ended;
            if critical {
                self.end_with(code);
            }
        }
    }

    // Workers.

    fn spawned(&mut self, proc: ProcId, pid: i32) {
        let Some(at) = self.current(proc) else {
            return;
        };
        let now = self.now;
        let Life::Ordered { cancelled } = self.worker(at).life else {
            return;
        };
        let unit = &self.definition(at).spec.unit;
        let (kind, timeout, interval) = (unit.kind, unit.start_timeout, unit.watchdog);
        let worker = self.worker_mut(at);
        worker.pid = pid;
        worker.since = now;
        worker.interval = interval;
        worker.life = Life::Starting { by: None };
        if cancelled {
            self.say("spawned though cancelled");
            return match self.phase {
                Phase::Stopping { forced: true, .. } => self.kill_worker(at),
                _ => self.stop_worker(at, Why::Asked, None),
            };
        }
        if at.seat == Seat::Main && std::mem::take(&mut self.slot(at).owed) {
            self.watcher(at.id).restarts += 1;
        }
        match kind {
            WatcherKind::Exec => self.prove(at),
            WatcherKind::Notify | WatcherKind::Oneshot => {
                let by = timeout.map(|timeout| now + timeout);
                self.worker_mut(at).life = Life::Starting { by };
            }
        }
    }

    fn spawn_failed(&mut self, proc: ProcId, exit_code: i32) {
        let Some(at) = self.current(proc) else {
            return;
        };
        let worker = std::mem::take(self.worker_mut(at));
        let end = End {
            clean: false,
            succeeded: false,
            lived: false,
            ready: None,
            exit_code,
            of: worker.of,
            order: worker.order,
        };
        match (at.seat, worker.life) {
            (Seat::Main, _) => self.ended(at, end),
            (Seat::Beside, Life::Ordered { cancelled: true }) => {}
            (Seat::Beside, _) => self.replacement_failed(at),
        }
    }

    fn prove(&mut self, at: At) {
        let unit = &self.definition(at).spec.unit;
        let mut delay = unit.ready_delay;
        let replaces = at.seat == Seat::Beside || self.is_replacement(at);
        if replaces && unit.kind == WatcherKind::Exec {
            delay = delay.max(Duration::from_millis(100));
        }
        let until = self.now + delay;
        if delay.is_zero() {
            self.serve(at);
        } else {
            self.worker_mut(at).life = Life::Proving { until };
        }
    }

    fn serve(&mut self, at: At) {
        let now = self.now;
        self.watcher(at.id).failed_starts = 0;
        let expires = self.expiry(at);
        let worker = self.worker_mut(at);
        worker.since = now;
        worker.ready = Some(now);
        worker.expires = expires;
        worker.feed(now);
        self.reload_late(at);
        if at.seat == Seat::Beside {
            self.promote(at.id, at.wid);
        } else if at.wid > self.watchers[&at.id].wanted || self.has_left_shard(at) {
            self.say("made to drain a shard");
            self.dismiss(at);
        }
    }

    fn notified(&mut self, proc: ProcId, sender: Sender, message: &Message) {
        let Some(at) = self.current(proc) else {
            return;
        };
        let heard = match self.definition(at).spec.unit.notify_access {
            NotifyAccess::All => true,
            NotifyAccess::Main => sender == Sender::Main,
            NotifyAccess::None => false,
        };
        let now = self.now;
        let worker = self.worker_mut(at);
        let ended = matches!(worker.life, Life::Clearing { .. });
        if !worker.life.runs() || ended || !heard {
            return self.say("deaf to a notification");
        }
        if let Some(status) = &message.status {
            worker.status = Some(status.clone()).filter(|status| !status.is_empty());
        }
        worker.interval = message.watchdog_interval.or(worker.interval);
        let was_reloading = worker.reloading || message.reloading;
        worker.reloading = was_reloading && !message.ready;
        if let Some(pid) = message.main_pid.filter(|pid| *pid != worker.pid) {
            worker.pid = pid;
            self.expect_of(at, Act::Follow(pid), "MAINPID came from whom it may");
        }
        if was_reloading && message.ready {
            self.reloaded_itself(at.id, proc);
        }
        self.advance(at, message);
        // A replacement that has become ready has moved.
        let Some(at) = self.current(proc) else {
            return;
        };
        let worker = self.worker_mut(at);
        if let Some(extension) = message.extend_timeout {
            worker.life.extend(now + extension);
            self.extend_reload(at.id, proc, now + extension);
        }
        let worker = self.worker_mut(at);
        if matches!(worker.life, Life::Serving { .. }) {
            match message.watchdog {
                Some(Watchdog::Trigger) => self.bite(at),
                Some(Watchdog::Alive) => worker.feed(now),
                None if message.watchdog_interval.is_some() => worker.feed(now),
                None => {}
            }
        }
    }

    /// READY=1, unless STOPPING=1 is in the same breath.
    fn advance(&mut self, at: At, message: &Message) {
        let now = self.now;
        let unit = &self.definition(at).spec.unit;
        let (kind, graceful) = (unit.kind, unit.graceful_timeout);
        let worker = self.worker_mut(at);
        match worker.life {
            Life::Starting { .. } | Life::Proving { .. } | Life::Serving { .. }
                if message.stopping =>
            {
                worker.since = now;
                worker.life = Life::Ending {
                    why: Why::Itself,
                    kill: Kill::after(now, graceful),
                };
                self.say("stopping by itself");
                // One that was ready may well end cleanly.
                if self.worker(at).ready.is_none() && self.is_replacement(at) {
                    self.replacement_failed(at);
                }
            }
            Life::Starting { .. } if message.ready && kind == WatcherKind::Notify => {
                self.prove(at);
            }
            _ => {}
        }
    }

    /// The watchdog.
    fn bite(&mut self, at: At) {
        self.say("watchdog");
        let signal = self.definition(at).spec.unit.watchdog_signal;
        if self.is_replacement(at) {
            self.replacement_failed(at);
        }
        self.stop_worker(at, Why::Failed, Some(signal));
    }

    fn exited(&mut self, proc: ProcId, exit: Exit) {
        let Some(at) = self.current(proc) else {
            return;
        };
        let now = self.now;
        let stop_children = self.definition(at).spec.unit.stop_children;
        let wanted = self.is_needed(at.id, at.wid);
        let worker = self.worker_mut(at);
        let asked = matches!(
            worker.life,
            Life::Draining { .. }
                | Life::Ending {
                    why: Why::Asked,
                    ..
                }
        );
        self.reloads_no_more(at.id, proc, !asked);
        let worker = self.worker_mut(at);
        let (why, kill) = match worker.life {
            Life::Starting { .. } | Life::Proving { .. } if at.seat == Seat::Beside => {
                worker.life = Life::Clearing {
                    why: Why::Asked,
                    exit,
                    kill: Kill::Done,
                };
                let reason = "nothing that a replacement leaves behind lives on";
                self.expect_of(at, Act::KillLeftovers, reason);
                return self.replacement_failed(at);
            }
            Life::Starting { .. } | Life::Proving { .. } | Life::Serving { .. } if wanted => {
                let reason = "nothing that an ended worker leaves behind lives on";
                self.expect_of(at, Act::KillLeftovers, reason);
                let end = End::of(exit, std::mem::take(self.worker_mut(at)));
                return self.ended(at, end);
            }
            Life::Ending {
                why,
                kill: Kill::At(at),
            } if stop_children && at > now => (why, Kill::At(at)),
            Life::Ending {
                why,
                kill: Kill::Never,
            } if stop_children => (why, Kill::Never),
            Life::Ending { why, .. } => (why, Kill::Done),
            _ => (Why::Asked, Kill::Done),
        };
        worker.life = Life::Clearing { why, exit, kill };
        if kill == Kill::Done {
            let reason = "what a stopped worker leaves behind is killed";
            self.expect_of(at, Act::KillLeftovers, reason);
        } else {
            self.say("leftovers may stop by themselves");
            let reason = "with `stop_children` the others have had the signal too";
            self.expect_of(at, Act::AwaitLeftovers, reason);
        }
    }

    fn gone(&mut self, proc: ProcId) {
        let Some(at) = self.current(proc) else {
            return;
        };
        let Life::Clearing { why, exit, .. } = self.worker(at).life else {
            return;
        };
        let end = End::of(exit, std::mem::take(self.worker_mut(at)));
        match why {
            _ if at.seat == Seat::Beside => {}
            Why::Asked => self.replace(at),
            Why::Itself => self.ended(at, end),
            Why::Failed => {
                let end = End {
                    clean: false,
                    succeeded: false,
                    ..end
                };
                self.ended(at, end);
            }
        }
    }

    /// A worker has ended that nobody asked to. Its place is free.
    fn ended(&mut self, at: At, end: End) {
        let At { id, wid, .. } = at;
        if !self.is_needed(id, wid) {
            return self.vacate(at);
        }
        let now = self.now;
        let own = Rc::clone(&self.watchers[&id].own);
        let unit = &own.spec.unit;
        let is_oneshot = |it: &Rc<Definition>| it.spec.unit.kind == WatcherKind::Oneshot;
        let done = end.of.as_ref().is_some_and(is_oneshot) && end.succeeded;
        let never_ready = end.ready.is_none() && !done;
        let failed = never_ready || !end.clean;
        // The table of `restart`, with what `oneshot` and `on_demand` make of it.
        let again = match (unit.restart, failed) {
            // It was a oneshot and is none any more: what it has become is yet to start.
            _ if done && !is_oneshot(&own) => true,
            (Restart::Never, _) | (Restart::OnFailure, false) => false,
            (Restart::Always | Restart::OnFailure, true) => true,
            (Restart::Always, false) => !done && !unit.on_demand.value,
        };
        let mut is_made_good = end.lived;
        if failed && self.was_replacement(id, wid, end.order) {
            self.replacement_failed(at);
            // It never served: that another takes its place is the reload's doing.
            is_made_good &= end.ready.is_some();
        }
        let (most, shortest, longest) =
            (unit.max_retry, unit.restart_delay, unit.restart_max_delay);
        let reset = unit.restart_reset;

        let watcher = self.watcher(id);
        if end.ready.is_some_and(|ready| now.since(ready) >= reset) {
            watcher.returns = 0;
        }
        if failed || again {
            watcher.mishap = Mishap::Start;
        }
        watcher.failures += u64::from(failed);
        watcher.failed_starts += u32::from(never_ready);
        if done {
            watcher.failed_starts = 0;
        }
        let failed_starts = watcher.failed_starts;
        if !again {
            self.vacate(at);
            let beside = Seat::Beside;
            self.stop_worker(At { seat: beside, ..at }, Why::Asked, None);
            self.say(if failed { "not restarted" } else { "done" });
            self.slot(at).ended_badly = failed.then_some(end.exit_code);
            self.watcher(id).last_end = Some(LastEnd {
                failed,
                code: end.exit_code,
                done,
            });
            if failed && self.unit(id).critical {
                self.say("critical worker failed");
                self.give_up(id, end.exit_code);
            }
            return;
        }
        if is_made_good && self.follow(id, wid) {
            // The replacement that was on its way makes it good.
            return match self.worker(at).life.runs() {
                true => self.watcher(id).restarts += 1,
                false => self.slot(at).owed = true,
            };
        }
        if never_ready && most.is_some_and(|most| failed_starts >= most.max(1)) {
            self.vacate(at);
            return self.give_up(id, end.exit_code);
        }
        let slot = self.slot(at);
        if end.ready.is_some_and(|ready| now.since(ready) >= reset) {
            slot.row = 0;
        }
        slot.row += 1;
        slot.owed |= is_made_good;
        let row = slot.row;
        let delay = delay_before(row, shortest, longest);
        slot.main.life = match delay.is_zero() {
            true => Life::Due,
            false => Life::Resting { until: now + delay },
        };
        self.say(match row {
            1 => "first restart",
            2..=4 => "restart with a delay",
            _ => "restart with a long delay",
        });
    }

    /// A worker was asked to end and has: its slot gets another one if it is still wanted.
    fn replace(&mut self, at: At) {
        self.vacate(at);
        if at.seat == Seat::Main && self.is_wanted(at.id, at.wid) {
            self.say("replaced");
            if !self.follow(at.id, at.wid) {
                self.worker_mut(at).life = Life::Due;
            }
        }
    }

    fn vacate(&mut self, at: At) {
        *self.worker_mut(at) = Worker::default();
        if at.seat == Seat::Main {
            let slot = self.slot(at);
            slot.row = 0;
            slot.owed = false;
        }
    }

    /// Asks a worker to end; by `stop_signal` if no other is given.
    fn stop_worker(&mut self, at: At, why: Why, signal: Option<Signal>) {
        let now = self.now;
        match self.worker(at).life {
            Life::Idle | Life::Due | Life::Resting { .. } => self.vacate(at),
            Life::Ordered { cancelled } => {
                self.worker_mut(at).life = Life::Ordered { cancelled: true };
                if !cancelled {
                    self.expect_of(at, Act::Cancel, "it is not wanted any more");
                }
            }
            Life::Starting { .. }
            | Life::Proving { .. }
            | Life::Serving { .. }
            | Life::Draining { .. } => {
                let unit = &self.definition(at).spec.unit;
                let signal = signal.unwrap_or(unit.stop_signal);
                let (group, graceful) = (unit.stop_children, unit.graceful_timeout);
                let worker = self.worker_mut(at);
                worker.since = now;
                worker.life = Life::Ending {
                    why,
                    kill: Kill::after(now, graceful),
                };
                self.expect_of(at, Act::Signal(signal, group), "it is to end");
                if signal != KILL {
                    let reason = "a stopped process can't act on a signal";
                    self.expect_of(at, Act::Signal(CONT, group), reason);
                }
            }
            Life::Ending { .. } | Life::Clearing { .. } => {
                if let Life::Ending { why: before, .. } | Life::Clearing { why: before, .. } =
                    &mut self.worker_mut(at).life
                    && why == Why::Asked
                {
                    *before = Why::Asked;
                }
            }
        }
    }

    fn kill_worker(&mut self, at: At) {
        let now = self.now;
        let worker = self.worker_mut(at);
        match &mut worker.life {
            Life::Idle | Life::Due | Life::Resting { .. } | Life::Ordered { .. } => {
                self.stop_worker(at, Why::Asked, None);
            }
            Life::Starting { .. }
            | Life::Proving { .. }
            | Life::Serving { .. }
            | Life::Draining { .. } => {
                worker.since = now;
                let (why, kill) = (Why::Asked, Kill::Done);
                worker.life = Life::Ending { why, kill };
                self.expect_of(at, Act::Kill, "the stop is forced");
            }
            Life::Ending { kill, .. } => {
                *kill = Kill::Done;
                self.say("killed");
                self.expect_of(at, Act::Kill, "its time to end is over");
            }
            Life::Clearing { kill, .. } => {
                if std::mem::replace(kill, Kill::Done) != Kill::Done {
                    self.say("leftovers killed");
                    let reason = "the time of its leftovers is over";
                    self.expect_of(at, Act::KillLeftovers, reason);
                }
            }
        }
    }

    fn is_wanted(&self, id: usize, wid: u32) -> bool {
        let watcher = &self.watchers[&id];
        matches!(watcher.goal, Goal::Up { .. }) && wid <= watcher.wanted
    }

    // Sockets.

    fn traffic(&mut self, socket: usize) {
        let now = self.now;
        let Some(it) = self.sockets.get_mut(&socket) else {
            return;
        };
        let limit = it.spec.unit.trigger_limit;
        let over = |window: Time| now.since(window) >= limit.interval;
        if it.window.is_none_or(over) {
            it.window = Some(now);
            it.activations = 0;
        }
        it.activations += 1;
        let is_limited = limit.burst > 0 && !limit.interval.is_zero();
        if let Some(window) = it.window
            && is_limited
            && it.activations > limit.burst
        {
            it.paused = Some(window + limit.interval);
            return self.say("trigger limit");
        }
        let was_there = now.since(it.watched_since) <= Duration::from_millis(50);
        for id in self.ids() {
            let is_asleep = self.watchers[&id].waits_on(socket);
            let on_call = self.watchers[&id].on_call(socket);
            if is_asleep || !on_call.is_empty() {
                self.say("started by traffic");
                let watcher = self.watcher(id);
                let is_left = was_there && watcher.last_end.is_some_and(|end| !end.failed);
                watcher.returns = if is_left { watcher.returns + 1 } else { 0 };
                if watcher.returns >= 3 {
                    watcher.mishap = Mishap::Return;
                    self.say("clients are left waiting");
                }
                for wid in on_call {
                    self.say("one more started by traffic");
                    let slot = self.watcher(id).slots.entry(wid).or_default();
                    slot.main.life = Life::Due;
                }
                if is_asleep {
                    self.start(id);
                }
            }
        }
    }

    /// Workers that had to do without it are replaced, without a gap.
    fn bound(&mut self, socket: usize) {
        let Some(it) = self.sockets.get_mut(&socket) else {
            return;
        };
        it.bound = true;
        if it.retired {
            return;
        }
        self.say("bound late");
        for id in self.ids() {
            let uses = |it: &Rc<Definition>| it.sockets.contains(&socket);
            let is_up = matches!(self.watchers[&id].goal, Goal::Up { .. });
            let is_used = self.watchers[&id].definitions().iter().any(uses);
            if is_up && is_used && self.unit(id).kind != WatcherKind::Oneshot {
                let is_begun = self.roll_queued(id);
                if !is_begun && self.watchers[&id].begun_definitions().iter().any(uses) {
                    self.begin_reload(id, None);
                }
            }
        }
    }

    /// Whether traffic is of interest, and if only in some shards, in which.
    fn to_watch(&self, socket: usize) -> Option<Vec<u32>> {
        let it = &self.sockets[&socket];
        if !it.bound || it.paused.is_some() || self.is_stopping() {
            return None;
        }
        let mut watchers = self.watchers.values();
        if watchers.any(|watcher| watcher.waits_on(socket)) {
            return Some(Vec::new());
        }
        let on_call = self.watchers.values().flat_map(|it| it.on_call(socket));
        let wids: BTreeSet<u32> = on_call.collect();
        match it.spec.unit.so_reuseport.value {
            _ if wids.is_empty() => None,
            true => Some(wids.into_iter().collect()),
            false => Some(Vec::new()),
        }
    }

    // Commands.

    fn command(&mut self, request: RequestId, command: &Command, no_wait: bool) {
        let begun = self.begin_command(command);
        self.wait_for(request, begun, no_wait, false);
        if matches!(command, Command::Shutdown) && !no_wait {
            let pending = Pending {
                over: true,
                apply: false,
                told: false,
                abandoned: false,
                open: BTreeMap::new(),
                problems: Vec::new(),
                trying: Vec::new(),
                superseded: Vec::new(),
            };
            self.pending.insert(request, pending);
        }
    }

    /// Answers now what needs no waiting, and remembers the rest.
    fn wait_for(
        &mut self,
        request: RequestId,
        begun: Result<Option<Vec<(usize, Want)>>, Answer>,
        no_wait: bool,
        apply: bool,
    ) {
        let waits = match begun {
            Err(answer) => return self.reply(request, answer, "it can't be done"),
            Ok(waits) => waits,
        };
        let is_done = waits.as_ref().is_some_and(Vec::is_empty);
        if no_wait || is_done {
            self.reply(request, Answer::Done, "nobody waits for more");
        }
        let told = apply && matches!(self.phase, Phase::Running);
        if is_done && apply {
            self.applied(told);
        }
        let Some(waits) = waits.filter(|_| !is_done && (apply || !no_wait)) else {
            return;
        };
        let open = (waits.into_iter())
            .map(|(id, want)| (id, (want, self.watchers[&id].failures)))
            .collect();
        let pending = Pending {
            over: false,
            apply,
            told,
            abandoned: no_wait,
            open,
            problems: Vec::new(),
            trying: Vec::new(),
            superseded: Vec::new(),
        };
        self.pending.insert(request, pending);
    }

    fn abandon(&mut self, request: RequestId) {
        match self.pending.get_mut(&request) {
            // It is still under way, and keeps others out.
            Some(pending) if pending.apply => pending.abandoned = true,
            _ => {
                self.pending.remove(&request);
            }
        }
    }

    /// What a command has to wait for; `None` for the manager's end.
    fn begin_command(&mut self, command: &Command) -> Result<Option<Vec<(usize, Want)>>, Answer> {
        let all = |want: Want| move |id: usize| (id, want);
        match command {
            Command::Start(names) => {
                let ids = self.select(names, |watcher| {
                    watcher.own.spec.unit.autostart && !watcher.retired
                })?;
                self.refuse_when_stopping()?;
                self.refuse_removed(&ids)?;
                for id in &ids {
                    self.start(*id);
                }
                Ok(Some(ids.into_iter().map(all(Want::Up)).collect()))
            }
            Command::Stop(names) => {
                let ids = self.select(names, |_| true)?;
                let is_up = |id: &&usize| !matches!(self.watchers[id].goal, Goal::Down { .. });
                let stopped: Vec<usize> = ids.iter().filter(is_up).copied().collect();
                for id in &ids {
                    self.stop(*id);
                }
                let levels: BTreeSet<u32> =
                    (stopped.iter()).map(|id| self.watchers[id].level).collect();
                if levels.len() > 1 {
                    self.say("stopped by level");
                    self.stops += 1;
                    for id in stopped {
                        self.watcher(id).together = Some(self.stops);
                    }
                }
                Ok(Some(ids.into_iter().map(all(Want::Stopped)).collect()))
            }
            Command::Restart(names) => {
                let ids = self.select(names, |watcher| {
                    let is_restarted = matches!(watcher.goal, Goal::Down { again: true, .. });
                    is_restarted || matches!(watcher.goal, Goal::Up { .. } | Goal::Queued)
                })?;
                self.refuse_when_stopping()?;
                self.refuse_removed(&ids)?;
                let is_up = |id: &usize| matches!(self.watchers[id].goal, Goal::Up { .. });
                let up: Vec<usize> = ids.iter().copied().filter(is_up).collect();
                let needs = |id: &usize, other: &usize| self.watchers[id].needs.contains_key(other);
                let is_tied =
                    |id: &&usize| (up.iter()).any(|other| needs(id, other) || needs(other, id));
                let tied: Vec<usize> = up.iter().filter(is_tied).copied().collect();
                for id in &ids {
                    self.supersede_reloads(*id, "restart");
                    if tied.contains(id) {
                        self.say("restarted in order");
                        let (held, again) = (true, true);
                        self.watcher(*id).goal = Goal::Down { held, again };
                        self.cancel_reload_to_restart(*id);
                        self.stop_what_does_not_run(*id);
                    } else {
                        self.restart(*id);
                    }
                }
                Ok(Some(ids.into_iter().map(all(Want::Up)).collect()))
            }
            Command::Reload(names) => {
                let ids = self.select(names, |watcher| {
                    matches!(watcher.goal, Goal::Up { .. }) && watcher.can_reload()
                })?;
                self.refuse_when_stopping()?;
                if !ids.iter().all(|id| self.watchers[id].can_reload()) {
                    self.say("reload refused");
                    return Err(Answer::Refused);
                }
                let waits = ids.into_iter().map(|id| (id, self.reload(id)));
                Ok(Some(waits.collect()))
            }
            Command::Scale { name, to } => {
                let id = self.find(name)?;
                self.refuse_when_stopping()?;
                self.refuse_removed(&[id])?;
                self.scale(id, *to)?;
                Ok(Some(vec![(id, Want::Scaled)]))
            }
            Command::Signal {
                name,
                signal,
                wid,
                children,
            } => {
                let id = self.find(name)?;
                let mut sent = false;
                for at in self.places(id) {
                    let life = &self.worker(at).life;
                    let hears = life.runs() && !matches!(life, Life::Clearing { .. });
                    if hears && wid.is_none_or(|wid| wid == at.wid) {
                        sent = true;
                        let act = Act::Signal(*signal, *children);
                        self.expect_of(at, act, "somebody sends a signal");
                    }
                }
                match sent {
                    true => Ok(Some(Vec::new())),
                    false => Err(Answer::Refused),
                }
            }
            Command::Shutdown => {
                if !self.is_stopping() {
                    self.stop_all(0);
                }
                Ok(None)
            }
        }
    }

    fn find(&self, name: &str) -> Result<usize, Answer> {
        (self.watchers.iter())
            .find(|(_, watcher)| watcher.own.spec.name() == name)
            .map(|(id, _)| *id)
            .ok_or_else(|| {
                let names = |socket: &Socket| !socket.retired && socket.spec.name() == name;
                match self.sockets.values().any(names) {
                    true => Answer::IsSocket(name.to_owned()),
                    false => Answer::NoSuchWatcher(name.to_owned()),
                }
            })
    }

    /// The watchers of these names, or without names those that `all` chooses, in start order.
    fn select(
        &self,
        names: &[String],
        all: impl Fn(&Watcher) -> bool,
    ) -> Result<Vec<usize>, Answer> {
        let found: Result<BTreeSet<usize>, Answer> =
            names.iter().map(|name| self.find(name)).collect();
        let found = found?;
        let ids = self.ids().into_iter();
        Ok(match names.is_empty() {
            true => ids.filter(|id| all(&self.watchers[id])).collect(),
            false => ids.filter(|id| found.contains(id)).collect(),
        })
    }

    fn refuse_when_stopping(&self) -> Result<(), Answer> {
        match self.is_stopping() {
            true => Err(Answer::ShuttingDown),
            false => Ok(()),
        }
    }

    fn refuse_removed(&self, ids: &[usize]) -> Result<(), Answer> {
        match ids.iter().any(|id| self.watchers[id].retired) {
            true => Err(Answer::Refused),
            false => Ok(()),
        }
    }

    /// Who waits for the end of a reload of this watcher hears that it comes to none.
    fn supersede_reloads(&mut self, id: usize, by: &'static str) {
        let watcher = &self.watchers[&id];
        let name = watcher.own.spec.name();
        for pending in self.pending.values_mut() {
            let want = pending.open.get(&id).map(|(want, _)| *want);
            if let Some(Want::Reloaded(serial)) = want
                && watcher.is_reloading(serial)
            {
                pending.superseded.push((name.to_owned(), by));
                pending.open.remove(&id);
            }
        }
    }

    fn restart(&mut self, id: usize) {
        match self.watchers[&id].goal {
            Goal::Up { .. } => {
                self.cancel_reload_to_restart(id);
                self.dismiss_all(id);
                // It is not running again before all of its workers are.
                self.watcher(id).goal = Goal::Up { complete: false };
                self.want_slots(id, 1);
            }
            Goal::Down { .. } | Goal::Ended | Goal::Failed => self.start(id),
            Goal::Queued | Goal::Waiting => {}
        }
    }

    fn want_slots(&mut self, id: usize, from: u32) {
        for wid in from..=self.watchers[&id].wanted {
            let slot = self.watcher(id).slots.entry(wid).or_default();
            if slot.main.life == Life::Idle {
                slot.main.life = Life::Due;
            }
        }
    }

    fn scale(&mut self, id: usize, to: Amount) -> Result<(), Answer> {
        let before = self.watchers[&id].wanted;
        let wanted = match to {
            Amount::To(wanted) => i64::from(wanted),
            Amount::By(by) => (i64::from(before) + i64::from(by)).max(0),
        };
        let is_single = self.watchers[&id].next().spec.unit.singleton;
        if is_single && wanted > 1 || wanted > 100_000 {
            return Err(Answer::Refused);
        }
        self.scale_to(id, wanted as u32);
        Ok(())
    }

    fn scale_to(&mut self, id: usize, wanted: u32) {
        let before = std::mem::replace(&mut self.watcher(id).wanted, wanted);
        for wid in before + 1..=wanted {
            self.watcher(id).slots.entry(wid).or_default();
        }
        if matches!(self.watchers[&id].goal, Goal::Up { .. }) {
            for at in self.places(id).into_iter().rev() {
                if at.wid > wanted {
                    self.dismiss(at);
                }
            }
            if wanted > before {
                // Nor is one that was to grow.
                self.watcher(id).goal = Goal::Up { complete: false };
            }
            self.want_slots(id, before.saturating_add(1));
        }
    }

    /// A worker that is not wanted, or is replaced, serves first what waits where nobody comes after it.
    fn dismiss(&mut self, at: At) {
        let leaving = self.leaving(at);
        match self.worker(at).life {
            Life::Draining { .. } if !leaving.is_empty() => return,
            Life::Serving { .. } if !leaving.is_empty() => {}
            _ => return self.stop_worker(at, Why::Asked, None),
        }
        for index in &leaving {
            self.say(match self.sockets[index].retired {
                true => "drained a socket that goes",
                false => "drained",
            });
        }
        self.drain_shards(&leaving, at.wid);
        let until = self.definition(at).spec.unit.graceful_timeout;
        let until = until.map(|timeout| self.now + timeout);
        self.worker_mut(at).life = Life::Draining { until };
        let reason = "what waits where nobody comes after it is served";
        self.expect_of(at, Act::Drain(leaving), reason);
    }

    fn dismiss_all(&mut self, id: usize) {
        for at in self.places(id) {
            self.dismiss(at);
        }
    }

    /// What goes with a worker, in order.
    fn leaving(&self, at: At) -> Vec<usize> {
        if self.is_stopping() {
            return Vec::new();
        }
        let shards = self.leaving_shards(at).into_iter();
        let all: BTreeSet<usize> = shards.chain(self.leaving_sockets(at)).collect();
        all.into_iter().collect()
    }

    /// The sockets in no plan that only this worker serves.
    fn leaving_sockets(&self, at: At) -> Vec<usize> {
        let Some(own) = &self.worker(at).of else {
            return Vec::new();
        };
        let is_served_by_others = |index: usize| {
            (self.watchers.keys().flat_map(|id| self.places(*id))).any(|other| {
                let worker = self.worker(other);
                let has_it = |it: &Rc<Definition>| it.sockets.contains(&index);
                let serves = matches!(worker.life, Life::Serving { .. });
                other != at && serves && worker.of.as_ref().is_some_and(has_it)
            })
        };
        let goes = |index: &usize| {
            let socket = &self.sockets[index];
            let is_sharded = socket.spec.unit.so_reuseport.value;
            socket.retired && (is_sharded || !is_served_by_others(*index))
        };
        own.sockets.iter().copied().filter(goes).collect()
    }

    fn answer_all(&mut self) {
        for request in self.pending.keys().copied().collect::<Vec<_>>() {
            let Some(mut pending) = self.pending.remove(&request) else {
                continue;
            };
            for (id, (want, mark)) in pending.open.clone() {
                if self.judge(id, want, mark, &mut pending) {
                    pending.open.remove(&id);
                }
            }
            let is_over = matches!(self.phase, Phase::Over);
            let waits = pending.over || !pending.open.is_empty();
            let answer = if waits && !is_over {
                self.pending.insert(request, pending);
                continue;
            } else if waits {
                let stops = pending
                    .open
                    .values()
                    .all(|(want, _)| *want == Want::Stopped);
                match pending.over || stops && !pending.apply {
                    true => Answer::Done,
                    false => Answer::ShuttingDown,
                }
            } else if !pending.problems.is_empty() || !pending.trying.is_empty() {
                let sequels = pending.trying.iter();
                let sequels = sequels.flat_map(|(id, name)| self.sequel(*id, name));
                Answer::Failed(
                    pending
                        .problems
                        .concat()
                        .into_iter()
                        .chain(sequels)
                        .collect(),
                )
            } else if !pending.superseded.is_empty() {
                match self.is_stopping() {
                    true => Answer::ShuttingDown,
                    false => Answer::Superseded(pending.superseded),
                }
            } else {
                Answer::Done
            };
            self.say(match &answer {
                Answer::Done => "answered: done",
                Answer::Failed(_) => "answered: failed",
                Answer::Superseded(..) => "answered: superseded",
                _ => "answered: shutting down",
            });
            if !pending.abandoned {
                self.reply(request, answer, "it is decided");
            }
            if pending.apply {
                self.applied(pending.told);
            }
        }
    }

    /// Whether a request has to wait for this watcher no longer.
    fn judge(&self, id: usize, want: Want, mark: u64, pending: &mut Pending) -> bool {
        let Some(watcher) = self.watchers.get(&id) else {
            // It was to be removed, and is.
            return true;
        };
        let name = watcher.own.spec.name().to_owned();
        let failed = watcher.failures > mark;
        let mut problem = |more: Option<String>| {
            let words = [format!("watcher `{name}`: ")].into_iter().chain(more);
            pending.problems.push(words.collect());
            true
        };
        match (want, watcher.goal) {
            (Want::Reloaded(_), Goal::Down { .. }) => {
                pending.superseded.push((name, "stop"));
                true
            }
            (Want::Reloaded(serial), _) if watcher.is_reloading(serial) => false,
            (Want::Reloaded(serial), _) if watcher.failed_reload == Some(serial) => {
                problem(Some("keeps what it had".into()))
            }
            (Want::Reloaded(_), Goal::Failed) => problem(None),
            (Want::Reloaded(_), _) => true,
            (Want::Stopped, Goal::Up { .. } | Goal::Queued) => {
                pending.superseded.push((name, "start"));
                true
            }
            (Want::Stopped, _) => !watcher.lives(),
            (Want::Up, Goal::Down { again: true, .. }) => false,
            (Want::Up, Goal::Down { .. }) => {
                pending.superseded.push((name, "stop"));
                true
            }
            (Want::Up, Goal::Failed) => problem(None),
            (_, Goal::Up { .. }) if failed => {
                pending.trying.push((id, name));
                true
            }
            (_, Goal::Failed | Goal::Waiting | Goal::Ended) if failed => problem(None),
            (_, Goal::Up { complete }) => {
                complete
                    && watcher
                        .slots
                        .iter()
                        .all(|(wid, slot)| self.is_still(id, *wid, slot))
            }
            (Want::Up | Want::Scaled, Goal::Queued) => self.lacks(id),
            (Want::Up, Goal::Waiting | Goal::Ended) => true,
            // What is removed can't be scaled: it was there when that was asked for.
            (Want::Scaled, Goal::Down { .. }) if watcher.retired => {
                pending.superseded.push((name, "stop"));
                true
            }
            (Want::Scaled, _) => true,
        }
    }

    /// What an answer says of a watcher that had failed, by now: words that are all in it, of `a|b` one.
    fn sequel(&self, id: usize, name: &str) -> Vec<String> {
        let Some(watcher) = self.watchers.get(&id) else {
            return vec!["there no more".into()];
        };
        let mut words = vec![format!("watcher `{name}`: ")];
        let mut slots = watcher.slots.iter();
        let is_settled = slots.all(|(wid, slot)| self.is_still(id, *wid, slot));
        words.push(match watcher.goal {
            Goal::Failed if self.is_stopping() => return words,
            Goal::Failed => format!("`tentpole start {name}` tries again"),
            Goal::Up { complete: true } if is_settled => "by now".into(),
            Goal::Up { complete: true } => GOES_ON.into(),
            // Or it was told before the command of this turn has begun it anew.
            Goal::Up { .. } | Goal::Queued | Goal::Down { again: true, .. } => {
                format!("{GOES_ON}|by now")
            }
            Goal::Down { .. } | Goal::Waiting | Goal::Ended => "by now".into(),
        });
        words
    }

    fn reply(&mut self, request: RequestId, answer: Answer, reason: &'static str) {
        self.expect(Key::Request(request), Act::Reply(answer), reason);
    }

    // Time.

    fn expire(&mut self) {
        while let Some((at, due)) = self.first_due().filter(|(at, _)| *at <= self.now) {
            match due {
                Due::Force => match self.phase {
                    Phase::Stopping {
                        forced: true, code, ..
                    } => {
                        self.say("ended without what can't be killed");
                        self.finish(code);
                    }
                    _ => self.force(),
                },
                Due::Extension => {
                    self.say("parent asked for time");
                    self.extend_parent(Duration::from_secs(30), "it is still starting");
                    let now = self.now;
                    if let Phase::Booting { extend_at, .. } = &mut self.phase {
                        *extend_at = Some(now + Duration::from_secs(10));
                    }
                }
                Due::Socket(index) => {
                    let Some(socket) = self.sockets.get_mut(&index) else {
                        continue;
                    };
                    if socket.paused == Some(at) {
                        socket.paused = None;
                    } else {
                        socket.bind_at = None;
                        self.expect(Key::Socket(index), Act::Bind, "it is time to try again");
                    }
                }
                Due::Signalled(id) => self.signalled_due(id),
                Due::Slot(at) => self.place_due(at),
            }
        }
    }

    fn place_due(&mut self, at: At) {
        let now = self.now;
        let worker = self.worker_mut(at);
        match worker.life {
            Life::Idle | Life::Due | Life::Ordered { .. } => {}
            Life::Resting { .. } => worker.life = Life::Due,
            Life::Starting { .. } => {
                self.say("start timeout");
                if self.is_replacement(at) {
                    self.replacement_failed(at);
                }
                self.stop_worker(at, Why::Failed, None);
            }
            Life::Proving { .. } => self.serve(at),
            Life::Serving { feed_by } if feed_by.is_some_and(|by| by <= now) => self.bite(at),
            Life::Serving { .. } => self.too_old(at),
            Life::Draining { .. } => self.stop_worker(at, Why::Asked, None),
            Life::Ending { .. } | Life::Clearing { .. } => self.kill_worker(at),
        }
    }

    /// The first deadline that changes something by itself.
    fn first_due(&self) -> Option<(Time, Due)> {
        let mut all: Vec<(Time, Due)> = Vec::new();
        let mut add = |at: Option<Time>, due: Due| all.extend(at.map(|at| (at, due)));
        match &self.phase {
            Phase::Booting {
                extend_at,
                unsettled,
            } if !unsettled.is_empty() => add(*extend_at, Due::Extension),
            Phase::Stopping { force_at, .. } => add(*force_at, Due::Force),
            _ => {}
        }
        for (index, socket) in &self.sockets {
            if !self.is_stopping() {
                add(socket.paused, Due::Socket(*index));
                add(socket.bind_at, Due::Socket(*index));
            }
        }
        for (id, watcher) in &self.watchers {
            let signalled = watcher.signalled.as_ref().and_then(|it| it.by);
            add(signalled, Due::Signalled(*id));
            for at in self.places(*id) {
                add(self.worker(at).deadline(), Due::Slot(at));
            }
        }
        all.into_iter().min()
    }

    /// When the supervisor must be called again at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let mut first = self.first_due().map(|(at, _)| at);
        let mut add = |at: Time| first = Some(first.map_or(at, |first| first.min(at)));
        for (id, watcher) in &self.watchers {
            if watcher.goal == Goal::Queued && self.may_start(*id) == Some(true) {
                add(self.next_start);
            }
            if watcher.count(|life| *life == Life::Due) > 0 {
                add(watcher.next_spawn);
            }
        }
        first
    }

    // Consequences.

    fn settle(&mut self) {
        // Each turn of the loop moves something forward; a thousand would be a circle.
        for _ in 0..1000 {
            let mut moved = false;
            for id in self.watchers.keys().copied().collect::<Vec<_>>() {
                moved |= self.settle_watcher(id);
            }
            if !moved && !self.settle_shards() && !self.start_next() && !self.advance_phase() {
                break;
            }
        }
        for index in self.sockets.keys().copied().collect::<Vec<_>>() {
            self.settle_socket(index);
        }
        self.answer_all();
    }

    fn settle_socket(&mut self, index: usize) {
        let is_closed = self.is_unused(index);
        let must = self.to_watch(index).filter(|_| !is_closed);
        let Some(socket) = self.sockets.get_mut(&index) else {
            return;
        };
        if socket.watched != must {
            socket.watched = must.clone();
            let act = match must {
                Some(wids) => {
                    socket.watched_since = self.now;
                    Act::Watch(wids)
                }
                None => Act::Unwatch,
            };
            let reason = "somebody waits for traffic, or not";
            self.expect(Key::Socket(index), act, reason);
        }
        if is_closed {
            self.say("socket closed");
            self.sockets.remove(&index);
            let reason = "no definition refers to it, and nothing runs that has it";
            self.expect(Key::Socket(index), Act::Close, reason);
        }
    }

    fn settle_watcher(&mut self, id: usize) -> bool {
        let mut moved = false;
        if let Goal::Down { held: true, again } = self.watchers[&id].goal
            && !self.is_held(id)
        {
            let held = false;
            self.watcher(id).goal = Goal::Down { held, again };
            self.dismiss_all(id);
            moved = true;
        }
        if !self.watchers[&id].lives() {
            self.watcher(id).together = None;
            if let Goal::Down { again: true, .. } = self.watchers[&id].goal {
                self.watcher(id).goal = Goal::Queued;
                moved = true;
            }
        }
        if !matches!(self.watchers[&id].goal, Goal::Down { .. }) {
            self.watcher(id).together = None;
        }
        if self.watchers[&id].goal == Goal::Queued && self.may_start(id).is_none() {
            self.say("failed with what it requires");
            self.give_up(id, 1);
            moved = true;
        }
        if matches!(self.watchers[&id].goal, Goal::Up { .. }) {
            let watcher = self.watcher(id);
            let serves = |slot: &Slot| slot.main.life == Life::Idle || slot.main.life.is_serving();
            let idle = watcher.count(|life| *life != Life::Idle) == 0;
            let wanted = 1..=watcher.wanted;
            if watcher.goal == (Goal::Up { complete: false })
                && (watcher.slots.iter()).all(|(wid, slot)| !wanted.contains(wid) || serves(slot))
                && (!idle || watcher.wanted == 0)
            {
                watcher.goal = Goal::Up { complete: true };
                moved = true;
            }
            moved |= self.advance_reload(id);
            moved |= self.launch(id);
            let watcher = self.watcher(id);
            let idle = watcher.count(|life| *life != Life::Idle) == 0;
            if idle && watcher.wanted > 0 {
                self.ran_out(id);
                moved = true;
            }
        }
        while let Some((wid, slot)) = self.watchers[&id].slots.last_key_value() {
            let is_idle = slot.main.life == Life::Idle && slot.beside.life == Life::Idle;
            let is_removed = self.watchers[&id].retired && !self.watchers[&id].lives();
            if (*wid <= self.watchers[&id].wanted && !is_removed) || !is_idle {
                break;
            }
            self.watcher(id).slots.pop_last();
            moved = true;
        }
        let state = self.state_of(id);
        let complete = self.watchers[&id].goal == (Goal::Up { complete: true });
        if let Phase::Booting { unsettled, .. } = &mut self.phase {
            let is_settled = match state {
                WatcherState::Starting | WatcherState::Backoff | WatcherState::Stopping => false,
                WatcherState::Reloading => complete,
                _ => true,
            };
            if is_settled {
                moved |= unsettled.remove(&id);
            }
        }
        if self.watchers[&id].retired && self.watchers[&id].slots.is_empty() {
            self.say("watcher removed");
            self.forget(id);
            moved = true;
        }
        moved
    }

    fn launch(&mut self, id: usize) -> bool {
        let now = self.now;
        let warmup = self.unit(id).warmup_delay;
        let mut moved = false;
        for at in self.places(id) {
            let next = self.watchers[&id].next_spawn;
            if self.worker(at).life != Life::Due || next > now {
                continue;
            }
            self.orders += 1;
            let order = self.orders;
            let definition = self.definition_to_launch(at);
            self.open_shards(&definition.sockets, at.wid);
            if at.seat == Seat::Main {
                self.slot(at).ended_badly = None;
            }
            let generation = self.watcher(id).generations.entry(at.wid).or_default();
            *generation += 1;
            let generation = *generation;
            *self.worker_mut(at) = Worker {
                life: Life::Ordered { cancelled: false },
                generation,
                order,
                of: Some(Rc::clone(&definition)),
                ..Worker::default()
            };
            self.watcher(id).next_spawn = now + warmup;
            self.expect_of(at, Act::Spawn(definition), "it is wanted and due");
            moved = true;
        }
        moved
    }

    fn start_next(&mut self) -> bool {
        let is_next = |id: &usize| {
            self.watchers[id].goal == Goal::Queued && self.may_start(*id) == Some(true)
        };
        let Some(id) = self.ids().into_iter().find(is_next) else {
            return false;
        };
        if self.next_start > self.now {
            self.say("warmup of the manager");
            return false;
        }
        self.next_start = self.now + self.warmup_delay;
        if self.watchers[&id].queued.is_some() && !self.queued_lacks(id) {
            self.say("bound while restarted in order");
            self.cancel_reload(id);
        }
        let watcher = self.watcher(id);
        watcher.goal = Goal::Up { complete: false };
        watcher.failed_starts = 0;
        if watcher.returns < 3 {
            watcher.mishap = Mishap::None;
        }
        self.want_slots(id, 1);
        true
    }

    fn advance_phase(&mut self) -> bool {
        match &self.phase {
            Phase::Booting { unsettled, .. } if unsettled.is_empty() => {
                self.phase = Phase::Running;
                let reason = "all that starts by itself has started";
                self.tell_parent(ParentNotice::Ready, reason);
                true
            }
            Phase::Stopping { code, .. } if !self.watchers.values().any(Watcher::lives) => {
                let code = *code;
                self.finish(code);
                true
            }
            _ => false,
        }
    }

    // Looking things up.

    fn expect(&mut self, key: Key, act: Act, reason: &'static str) {
        self.expected.push(Expected { key, act, reason });
    }

    fn expect_of(&mut self, at: At, act: Act, reason: &'static str) {
        let key = Key::Worker(at.id, at.wid, self.worker(at).generation);
        self.expect(key, act, reason);
    }

    /// Where a process is, if it is known and has not ended.
    fn current(&self, proc: ProcId) -> Option<At> {
        let (id, wid, _) = *self.procs.get(&proc)?;
        let places = SEATS.map(|seat| At { id, wid, seat });
        self.watchers.get(&id)?.slots.get(&wid)?;
        places.into_iter().find(|at| {
            let worker = self.worker(*at);
            worker.proc == Some(proc) && worker.is_there()
        })
    }

    /// Watchers in the order in which they start.
    fn ids(&self) -> Vec<usize> {
        let mut ids: Vec<usize> = self.watchers.keys().copied().collect();
        ids.sort_by_key(|id| (self.watchers[id].rank, *id));
        ids
    }

    /// All places of a watcher, empty ones too.
    fn places(&self, id: usize) -> Vec<At> {
        (self.watchers[&id].slots.keys())
            .flat_map(|wid| {
                SEATS.map(|seat| At {
                    id,
                    wid: *wid,
                    seat,
                })
            })
            .collect()
    }

    fn watcher(&mut self, id: usize) -> &mut Watcher {
        self.watchers
            .get_mut(&id)
            .expect("ids are of watchers that are known")
    }

    fn slot(&mut self, at: At) -> &mut Slot {
        self.watcher(at.id).slots.entry(at.wid).or_default()
    }

    fn worker(&self, at: At) -> &Worker {
        let slot = &self.watchers[&at.id].slots[&at.wid];
        match at.seat {
            Seat::Main => &slot.main,
            Seat::Beside => &slot.beside,
        }
    }

    fn worker_mut(&mut self, at: At) -> &mut Worker {
        let slot = self.slot(at);
        match at.seat {
            Seat::Main => &mut slot.main,
            Seat::Beside => &mut slot.beside,
        }
    }

    /// What the process at a place was started from.
    fn definition(&self, at: At) -> Rc<Definition> {
        let of = self.worker(at).of.as_ref();
        Rc::clone(of.unwrap_or(self.watchers[&at.id].next()))
    }

    /// What a watcher is, as it was written.
    fn unit(&self, id: usize) -> &unit::Watcher {
        &self.watchers[&id].own.spec.unit
    }

    fn say(&mut self, rule: &'static str) {
        *self.said.entry(rule).or_default() += 1;
    }
}

impl Watcher {
    fn workers(&self) -> impl Iterator<Item = &Worker> {
        (self.slots.values()).flat_map(|slot| [&slot.main, &slot.beside])
    }

    fn count(&self, which: impl Fn(&Life) -> bool) -> u32 {
        self.workers().filter(|it| which(&it.life)).count() as u32
    }

    /// It has a process, or is about to.
    fn lives(&self) -> bool {
        self.workers().any(Worker::is_there)
    }

    /// Everything is where it is to stay.
    fn is_quiet(&self) -> bool {
        self.count(|life| *life != Life::Idle && !life.is_serving()) == 0
    }

    /// Traffic on this socket starts it.
    fn waits_on(&self, socket: usize) -> bool {
        self.goal == Goal::Waiting && self.own.sockets.contains(&socket)
    }

    /// The wids of workers that ended well by themselves while others go on, and come with the next traffic on this socket.
    fn on_call(&self, socket: usize) -> Vec<u32> {
        let is_up = matches!(self.goal, Goal::Up { .. });
        if !is_up || !self.own.sockets.contains(&socket) {
            return Vec::new();
        }
        let is_meant = |(wid, slot): &(&u32, &Slot)| {
            let is_idle = slot.main.life == Life::Idle && slot.beside.life == Life::Idle;
            **wid <= self.wanted && is_idle && self.comes_with_traffic(slot)
        };
        let meant = self.slots.iter().filter(is_meant);
        meant.map(|(wid, _)| *wid).collect()
    }

    /// Of a slot in which nothing runs.
    fn comes_with_traffic(&self, slot: &Slot) -> bool {
        let unit = &self.own.spec.unit;
        let once = unit.kind == WatcherKind::Oneshot || unit.restart == Restart::Never;
        let ends_all = unit.critical && once;
        unit.on_demand.value && !ends_all && slot.ended_badly.is_none()
    }

    fn state(&self) -> WatcherState {
        let serving = self.count(Life::is_serving);
        let resting = self.count(|life| matches!(life, Life::Resting { .. }));
        let on_the_way = self.count(|life| {
            let starts = matches!(life, Life::Ordered { .. } | Life::Starting { .. });
            starts || matches!(life, Life::Due | Life::Proving { .. })
        });
        match self.goal {
            Goal::Up { .. } if self.reload.is_some() || self.signalled.is_some() => {
                WatcherState::Reloading
            }
            Goal::Up { complete: true } if serving > 0 || self.wanted == 0 => WatcherState::Running,
            Goal::Up { .. } if resting > 0 && on_the_way == 0 => WatcherState::Backoff,
            Goal::Up { .. } | Goal::Queued => WatcherState::Starting,
            _ if self.lives() => WatcherState::Stopping,
            Goal::Down { .. } | Goal::Ended => WatcherState::Stopped,
            Goal::Waiting => WatcherState::Waiting,
            Goal::Failed => WatcherState::Failed,
        }
    }
}

impl Socket {
    fn failed_to_bind(&mut self, now: Time) {
        self.failed_binds += 1;
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(30));
        let delay = delay_before(self.failed_binds + 1, shortest, longest);
        // Nobody needs one any more that is in no plan.
        self.bind_at = (!self.retired).then_some(now + delay);
    }
}

impl Worker {
    /// There is a process, or one was asked for.
    fn is_there(&self) -> bool {
        self.life.runs() || matches!(self.life, Life::Ordered { .. })
    }

    fn feed(&mut self, now: Time) {
        let feed_by = self.interval.map(|interval| now + interval);
        self.life = Life::Serving { feed_by };
    }

    fn deadline(&self) -> Option<Time> {
        match self.life {
            Life::Serving { feed_by } => feed_by.into_iter().chain(self.expires).min(),
            ref life => life.deadline(),
        }
    }
}

impl Life {
    /// There is a process, or its end is waited for.
    fn runs(&self) -> bool {
        match self {
            Life::Idle | Life::Due | Life::Resting { .. } | Life::Ordered { .. } => false,
            Life::Starting { .. }
            | Life::Proving { .. }
            | Life::Serving { .. }
            | Life::Draining { .. }
            | Life::Ending { .. }
            | Life::Clearing { .. } => true,
        }
    }

    fn is_serving(&self) -> bool {
        matches!(self, Life::Serving { .. })
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Life::Idle | Life::Due | Life::Ordered { .. } => None,
            Life::Resting { until } | Life::Proving { until } => Some(*until),
            Life::Starting { by } => *by,
            Life::Serving { feed_by } => *feed_by,
            Life::Draining { until } => *until,
            Life::Ending { kill, .. } | Life::Clearing { kill, .. } => match kill {
                Kill::At(at) => Some(*at),
                Kill::Never | Kill::Done => None,
            },
        }
    }

    /// EXTEND_TIMEOUT_USEC: the deadline that is running does not come before `until`.
    fn extend(&mut self, until: Time) {
        match self {
            Life::Starting { by: Some(at) }
            | Life::Serving { feed_by: Some(at) }
            | Life::Draining { until: Some(at) }
            | Life::Ending {
                kill: Kill::At(at), ..
            } => *at = until.max(*at),
            _ => {}
        }
    }
}

impl Kill {
    fn after(now: Time, graceful: Option<Duration>) -> Kill {
        graceful.map_or(Kill::Never, |timeout| Kill::At(now + timeout))
    }
}
impl End {
    fn of(exit: Exit, worker: Worker) -> End {
        let (clean, exit_code) = match exit {
            Exit::Code(code) => (code == 0, code),
            Exit::Signal(Signal(number)) => (matches!(number, 1 | 2 | 13 | 15), 128 + number),
            Exit::Unknown => (false, 1),
        };
        End {
            clean,
            succeeded: exit == Exit::Code(0),
            lived: true,
            ready: worker.ready,
            exit_code,
            of: worker.of,
            order: worker.order,
        }
    }
}

/// The delay before the `row`th restart in a row: none before the first, `shortest` before the second, then doubling.
fn delay_before(row: u32, shortest: Duration, longest: Duration) -> Duration {
    if row < 2 {
        return Duration::ZERO;
    }
    let shortest = shortest.max(Duration::from_millis(10));
    let mut delay = shortest;
    for _ in 2..row {
        delay *= 2;
        if delay >= longest {
            break;
        }
    }
    delay.min(longest.max(shortest))
}
