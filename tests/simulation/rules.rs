//! What must happen, told independently of how the supervisor does it.
//!
//! [`Rules::turn`] is given each event and what the supervisor made of it. It works out from the unit file and the
//! history alone which effects the event calls for, each with its reason, and compares. It is slow and plain where the
//! supervisor is fast: it looks at everything on every turn and keeps no index and no timer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::rc::Rc;
use std::time::Duration;
use tentpole::plan::{self, Plan};
use tentpole::supervise::notify::{Message, Watchdog};
use tentpole::supervise::{
    Amount, Command, Effect, Event, Exit, ParentNotice, ProcId, Refusal, RequestId, Sender,
    SocketState, Time, View, WatcherState, WorkerState,
};
use tentpole::unit::{NotifyAccess, Restart, Signal, WatcherKind};

pub struct Rules {
    parent: bool,
    warmup_delay: Duration,
    shutdown_timeout: Option<Duration>,
    watchers: Vec<Watcher>,
    sockets: Vec<Socket>,
    phase: Phase,
    next_start: Time,
    pending: BTreeMap<RequestId, Pending>,
    procs: HashMap<ProcId, (usize, u32, u64)>,
    now: Time,
    expected: Vec<Expected>,
    /// How often each rule had its say, so that a test can tell that all of them had.
    pub said: BTreeMap<&'static str, u64>,
}

struct Watcher {
    spec: Rc<plan::Watcher>,
    sockets: Vec<usize>,
    /// Those it is after; true where it requires them.
    needs: BTreeMap<usize, bool>,
    goal: Goal,
    wanted: u32,
    slots: BTreeMap<u32, Slot>,
    restarts: u64,
    failed_starts: u32,
    failures: u64,
    /// The last worker that ended for good: whether it failed, and its exit code.
    last_end: Option<(bool, i32)>,
    has_mishap: bool,
    next_spawn: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Down { held: bool },
    Queued,
    Waiting,
    Up { complete: bool },
    Ended,
    Failed,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u64,
    life: Life,
    /// Restarts in a row.
    row: u32,
    /// A worker died, and no other has taken its place.
    owed: bool,
    ended_badly: Option<i32>,
    // Of the process that it has.
    proc: Option<ProcId>,
    pid: i32,
    since: Time,
    ready: Option<Time>,
    interval: Option<Duration>,
    status: Option<String>,
    reloading: bool,
}

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
    watchers: Vec<usize>,
    bound: bool,
    /// Failed binds, and when the next is due; `None` while one is under way.
    failed_binds: u32,
    bind_at: Option<Time>,
    window: Option<Time>,
    activations: u32,
    paused: Option<Time>,
    watched: bool,
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
    },
    Over,
}

struct Pending {
    want: Want,
    open: BTreeMap<usize, u64>,
    problems: Vec<Vec<String>>,
    superseded: Option<(String, &'static str)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Want {
    Up,
    Stopped,
    Scaled,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Slot(usize, u32),
    Socket(usize),
    Request(RequestId),
    Manager,
}

struct Expected {
    key: Key,
    act: Act,
    reason: &'static str,
}

/// An effect that is called for. The number of a slot's acts is the generation of the worker.
#[derive(Clone, Debug, PartialEq)]
enum Act {
    Spawn(u64),
    Cancel(u64),
    Signal(u64, Signal, bool),
    Follow(u64, i32),
    Kill(u64),
    KillLeftovers(u64),
    AwaitLeftovers(u64),
    Drain(u64),
    CloseShards,
    Watch,
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
    Refused,
    /// With these words in it.
    Failed(Vec<String>),
    ShuttingDown,
    Superseded(String, &'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Force,
    Extension,
    Socket(usize),
    Slot(usize, u32),
}

/// How a process ended.
struct End {
    clean: bool,
    succeeded: bool,
    lived: bool,
    ready: Option<Time>,
    exit_code: i32,
}

const KILL: Signal = Signal(9);
const CONT: Signal = Signal(18);

impl Rules {
    pub fn new(plan: &Plan, unbound: &[(String, String)], parent: bool) -> Rules {
        let place_of = |name: &str| plan.watchers.iter().position(|w| w.name() == name);
        let mut watchers: Vec<Watcher> = Vec::new();
        for spec in &plan.watchers {
            let mut needs = BTreeMap::new();
            for (names, requires) in [(&spec.unit.after, false), (&spec.unit.requires, true)] {
                needs.extend((names.iter()).map(|name| {
                    let place = place_of(&name.value).expect("the plan was checked");
                    (place, requires)
                }));
            }
            let is_own = |socket: &&usize| {
                let name = plan.sockets[**socket].name();
                spec.listens.iter().any(|listened| listened == name)
            };
            let own: Vec<usize> = (0..plan.sockets.len()).collect();
            let wanted = spec.unit.numprocesses.value;
            watchers.push(Watcher {
                spec: Rc::clone(spec),
                sockets: own.iter().filter(is_own).copied().collect(),
                needs,
                goal: Goal::Down { held: false },
                wanted,
                slots: (1..=wanted).map(|wid| (wid, Slot::default())).collect(),
                restarts: 0,
                failed_starts: 0,
                failures: 0,
                last_end: None,
                has_mishap: false,
                next_spawn: Time::ZERO,
            });
        }
        let mut sockets: Vec<Socket> = Vec::new();
        for (index, spec) in plan.sockets.iter().enumerate() {
            let listens = |watcher: &usize| watchers[*watcher].sockets.contains(&index);
            sockets.push(Socket {
                spec: Rc::clone(spec),
                watchers: (0..watchers.len()).filter(listens).collect(),
                bound: unbound.iter().all(|(name, _)| name != spec.name()),
                failed_binds: 0,
                bind_at: None,
                window: None,
                activations: 0,
                paused: None,
                watched: false,
            });
        }
        Rules {
            parent,
            warmup_delay: plan.manager.warmup_delay,
            shutdown_timeout: plan.manager.shutdown_timeout,
            watchers,
            sockets,
            phase: Phase::New,
            next_start: Time::ZERO,
            pending: BTreeMap::new(),
            procs: HashMap::new(),
            now: Time::ZERO,
            expected: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    /// Holds the effects of an event against those it calls for.
    pub fn turn(&mut self, now: Time, event: &Event, effects: &[Effect]) -> Result<(), String> {
        self.now = now;
        self.expected.clear();
        self.apply(event);
        self.expire();
        self.settle();
        self.compare(effects)
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Apply { .. } => unreachable!(),
            Event::Begin => self.begin(),
            Event::Tick => {}
            Event::Bound { socket } => self.bound(socket.0 as usize),
            Event::BindFailed { socket, .. } => {
                self.sockets[socket.0 as usize].failed_to_bind(self.now);
            }
            Event::Traffic { socket } => self.traffic(socket.0 as usize),
            Event::Spawned { proc, pid } => self.spawned(*proc, pid.0),
            Event::SpawnFailed { proc, failure } => {
                let Some((id, wid)) = self.current(*proc) else {
                    return;
                };
                self.slot(id, wid).proc = None;
                let end = End {
                    clean: false,
                    succeeded: false,
                    lived: false,
                    ready: None,
                    exit_code: failure.exit_code,
                };
                self.ended(id, wid, end);
            }
            Event::SpawnCancelled { proc } => {
                if let Some((id, wid)) = self.current(*proc) {
                    self.replace(id, wid);
                }
            }
            Event::Notified {
                proc,
                sender,
                message,
            } => self.notified(*proc, *sender, message),
            Event::Exited { proc, exit } => self.exited(*proc, *exit),
            Event::Gone { proc } => self.gone(*proc),
            Event::Drained { proc } => {
                if let Some((id, wid)) = self.current(*proc)
                    && matches!(self.slot(id, wid).life, Life::Draining { .. })
                {
                    self.stop_slot(id, wid, Why::Asked, None);
                }
            }
            Event::Command {
                request,
                command,
                no_wait,
                ..
            } => self.command(*request, command, *no_wait),
            Event::Abandoned { request } => {
                self.pending.remove(request);
            }
            Event::Terminate => match self.phase {
                Phase::Stopping { .. } => self.force(),
                Phase::Over => {}
                _ => self.stop_all(0),
            },
        }
    }

    // The manager.

    fn begin(&mut self) {
        for socket in self.sockets.iter_mut().filter(|socket| !socket.bound) {
            socket.failed_to_bind(self.now);
        }
        let ids: Vec<usize> = (0..self.watchers.len())
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
            if self.unit(id).on_demand.value {
                self.watchers[id].goal = Goal::Waiting;
            } else {
                self.start(id);
            }
        }
    }

    fn extend_parent(&mut self, by: Duration, reason: &'static str) {
        self.expect(Key::Manager, Act::Parent(ParentNotice::Extend(by)), reason);
    }

    fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. } | Phase::Over)
    }

    fn stop_all(&mut self, code: i32) {
        self.say("shutdown");
        self.expect(
            Key::Manager,
            Act::Parent(ParentNotice::Stopping),
            "the manager ends",
        );
        if let (Some(timeout), true) = (self.shutdown_timeout, self.parent) {
            self.extend_parent(timeout + Duration::from_secs(20), "the stop may take long");
        }
        self.phase = Phase::Stopping {
            code,
            forced: false,
            force_at: self.shutdown_timeout.map(|timeout| self.now + timeout),
        };
        for id in 0..self.watchers.len() {
            if let Goal::Up { .. } | Goal::Queued | Goal::Waiting = self.watchers[id].goal {
                self.watchers[id].goal = Goal::Down { held: true };
                self.stop_what_does_not_run(id);
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
        for id in 0..self.watchers.len() {
            self.watchers[id].goal = Goal::Down { held: false };
            for wid in self.wids(id) {
                self.kill_slot(id, wid);
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
        match self.watchers[id].goal {
            Goal::Up { .. } => {
                for wid in self.wids(id) {
                    let slot = self.slot(id, wid);
                    if let Life::Resting { .. } = slot.life {
                        (slot.life, slot.row) = (Life::Due, 0);
                    }
                }
            }
            Goal::Queued => {}
            _ => {
                self.watchers[id].goal = Goal::Queued;
                for (other, requires) in self.watchers[id].needs.clone() {
                    let goal = self.watchers[other].goal;
                    if requires && matches!(goal, Goal::Down { .. } | Goal::Failed) {
                        self.start(other);
                    }
                }
            }
        }
    }

    fn stop(&mut self, id: usize) {
        if matches!(self.watchers[id].goal, Goal::Down { .. }) {
            return;
        }
        self.watchers[id].goal = Goal::Down { held: true };
        for other in self.requirers(id) {
            self.stop(other);
        }
        self.stop_what_does_not_run(id);
    }

    fn stop_what_does_not_run(&mut self, id: usize) {
        for wid in self.wids(id) {
            if !self.slot(id, wid).life.runs() {
                self.stop_slot(id, wid, Why::Asked, None);
            }
        }
    }

    /// Watchers that are up, or about to be, and require this one.
    fn requirers(&self, id: usize) -> Vec<usize> {
        (0..self.watchers.len())
            .filter(|other| self.watchers[*other].needs.get(&id) == Some(&true))
            .filter(|other| matches!(self.watchers[*other].goal, Goal::Up { .. } | Goal::Queued))
            .collect()
    }

    /// A stop goes in reverse order: whether something that is being stopped, and started after this, is alive.
    fn is_held(&self, id: usize) -> bool {
        let level = |id: usize| self.watchers[id].spec.level;
        (0..self.watchers.len()).any(|other| {
            let watcher = &self.watchers[other];
            let is_before = match self.phase {
                Phase::Stopping { .. } => level(other) > level(id),
                _ => watcher.needs.contains_key(&id) && matches!(watcher.goal, Goal::Down { .. }),
            };
            is_before && watcher.lives()
        })
    }

    fn give_up(&mut self, id: usize, exit_code: i32) {
        self.say("given up");
        let watcher = &mut self.watchers[id];
        watcher.failures += 1;
        watcher.has_mishap = true;
        watcher.goal = Goal::Failed;
        for wid in self.wids(id) {
            self.stop_slot(id, wid, Why::Asked, None);
        }
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
        let mut may = true;
        for (other, requires) in &self.watchers[id].needs {
            match self.watchers[*other].goal {
                Goal::Queued | Goal::Up { complete: false } => may = false,
                Goal::Up { complete: true } | Goal::Ended | Goal::Waiting => {}
                Goal::Down { .. } | Goal::Failed if *requires => return None,
                Goal::Down { .. } | Goal::Failed => {}
            }
        }
        Some(may)
    }

    /// The workers of a watcher have all ended for good.
    fn ran_out(&mut self, id: usize) {
        let unit = &self.watchers[id].spec.unit;
        let once = unit.kind == WatcherKind::Oneshot || unit.restart == Restart::Never;
        let critical = unit.critical;
        if unit.on_demand.value && !(critical && once) {
            self.say("waiting again");
            self.watchers[id].goal = Goal::Waiting;
            return;
        }
        let (failed, code) = self.watchers[id].last_end.unwrap_or((false, 0));
        let worst = (self.watchers[id].slots.values()).find_map(|slot| slot.ended_badly);
        if failed {
            self.give_up(id, code);
        } else if let Some(code) = worst {
            self.give_up(id, code);
        } else {
            self.say("ended");
            self.watchers[id].goal = Goal::Ended;
            if critical {
                self.end_with(code);
            }
        }
    }

    // Slots.

    fn spawned(&mut self, proc: ProcId, pid: i32) {
        let Some((id, wid)) = self.current(proc) else {
            return;
        };
        let now = self.now;
        let unit = &self.watchers[id].spec.unit;
        let (kind, timeout, interval) = (unit.kind, unit.start_timeout, unit.watchdog);
        let slot = self.slot(id, wid);
        slot.pid = pid;
        slot.since = now;
        slot.interval = interval;
        let Life::Ordered { cancelled } = slot.life else {
            return;
        };
        slot.life = Life::Starting { by: None };
        if cancelled {
            self.say("spawned though cancelled");
            return match self.phase {
                Phase::Stopping { forced: true, .. } => self.kill_slot(id, wid),
                _ => self.stop_slot(id, wid, Why::Asked, None),
            };
        }
        if std::mem::take(&mut slot.owed) {
            self.watchers[id].restarts += 1;
        }
        match kind {
            WatcherKind::Exec => self.prove(id, wid),
            WatcherKind::Notify | WatcherKind::Oneshot => {
                let by = timeout.map(|timeout| now + timeout);
                self.slot(id, wid).life = Life::Starting { by };
            }
        }
    }

    fn prove(&mut self, id: usize, wid: u32) {
        let delay = self.unit(id).ready_delay;
        let until = self.now + delay;
        if delay.is_zero() {
            self.serve(id, wid);
        } else {
            self.slot(id, wid).life = Life::Proving { until };
        }
    }

    fn serve(&mut self, id: usize, wid: u32) {
        let now = self.now;
        self.watchers[id].failed_starts = 0;
        let slot = self.slot(id, wid);
        slot.since = now;
        slot.ready = Some(now);
        let feed_by = slot.interval.map(|interval| now + interval);
        slot.life = Life::Serving { feed_by };
    }

    fn notified(&mut self, proc: ProcId, sender: Sender, message: &Message) {
        let Some((id, wid)) = self.current(proc) else {
            return;
        };
        let heard = match self.unit(id).notify_access {
            NotifyAccess::All => true,
            NotifyAccess::Main => sender == Sender::Main,
            NotifyAccess::None => false,
        };
        let now = self.now;
        let slot = self.slot(id, wid);
        let generation = slot.generation;
        let ended = matches!(slot.life, Life::Clearing { .. });
        if !slot.life.runs() || ended || !heard {
            return self.say("deaf to a notification");
        }
        if let Some(status) = &message.status {
            slot.status = Some(status.clone()).filter(|status| !status.is_empty());
        }
        slot.interval = message.watchdog_interval.or(slot.interval);
        slot.reloading = (slot.reloading || message.reloading) && !message.ready;
        if let Some(pid) = message.main_pid.filter(|pid| *pid != slot.pid) {
            slot.pid = pid;
            let act = Act::Follow(generation, pid);
            self.expect(Key::Slot(id, wid), act, "MAINPID came from whom it may");
        }
        self.advance(id, wid, message);
        let slot = self.slot(id, wid);
        if let Some(extension) = message.extend_timeout {
            slot.life.extend(now + extension);
        }
        if matches!(slot.life, Life::Serving { .. }) {
            match message.watchdog {
                Some(Watchdog::Trigger) => self.bite(id, wid),
                Some(Watchdog::Alive) => slot.feed(now),
                None if message.watchdog_interval.is_some() => slot.feed(now),
                None => {}
            }
        }
    }

    /// READY=1, unless STOPPING=1 is in the same breath.
    fn advance(&mut self, id: usize, wid: u32, message: &Message) {
        let now = self.now;
        let unit = &self.watchers[id].spec.unit;
        let (kind, graceful) = (unit.kind, unit.graceful_timeout);
        let slot = self.slot(id, wid);
        match slot.life {
            Life::Starting { .. } | Life::Proving { .. } | Life::Serving { .. }
                if message.stopping =>
            {
                slot.since = now;
                slot.life = Life::Ending {
                    why: Why::Itself,
                    kill: Kill::after(now, graceful),
                };
                self.say("stopping by itself");
            }
            Life::Starting { .. } if message.ready && kind == WatcherKind::Notify => {
                self.prove(id, wid);
            }
            _ => {}
        }
    }

    /// The watchdog.
    fn bite(&mut self, id: usize, wid: u32) {
        self.say("watchdog");
        let signal = self.unit(id).watchdog_signal;
        self.stop_slot(id, wid, Why::Failed, Some(signal));
    }

    fn exited(&mut self, proc: ProcId, exit: Exit) {
        let Some((id, wid)) = self.current(proc) else {
            return;
        };
        let (now, key) = (self.now, Key::Slot(id, wid));
        let stop_children = self.unit(id).stop_children;
        let wanted = self.is_wanted(id, wid);
        let slot = self.slot(id, wid);
        let generation = slot.generation;
        let (why, kill) = match slot.life {
            Life::Starting { .. } | Life::Proving { .. } | Life::Serving { .. } if wanted => {
                let end = End::of(exit, slot.ready);
                let reason = "nothing that an ended worker leaves behind lives on";
                self.expect(key, Act::KillLeftovers(generation), reason);
                return self.ended(id, wid, end);
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
        slot.life = Life::Clearing { why, exit, kill };
        if kill == Kill::Done {
            let reason = "what a stopped worker leaves behind is killed";
            self.expect(key, Act::KillLeftovers(generation), reason);
        } else {
            self.say("leftovers may stop by themselves");
            let reason = "with `stop_children` the others have had the signal too";
            self.expect(key, Act::AwaitLeftovers(generation), reason);
        }
    }

    fn gone(&mut self, proc: ProcId) {
        let Some((id, wid)) = self.current(proc) else {
            return;
        };
        let slot = self.slot(id, wid);
        let Life::Clearing { why, exit, .. } = slot.life else {
            return;
        };
        let end = End::of(exit, slot.ready);
        match why {
            Why::Asked => self.replace(id, wid),
            Why::Itself => self.ended(id, wid, end),
            Why::Failed => {
                let end = End {
                    clean: false,
                    succeeded: false,
                    ..end
                };
                self.ended(id, wid, end);
            }
        }
    }

    /// A worker has ended that nobody asked to.
    fn ended(&mut self, id: usize, wid: u32, end: End) {
        if !self.is_wanted(id, wid) {
            return self.vacate(id, wid);
        }
        let now = self.now;
        let unit = &self.watchers[id].spec.unit;
        let done = unit.kind == WatcherKind::Oneshot && end.succeeded;
        let never_ready = end.ready.is_none() && !done;
        let failed = never_ready || !end.clean;
        // The table of `restart`, with what `oneshot` and `on_demand` make of it.
        let again = match (unit.restart, failed) {
            (Restart::Never, _) | (Restart::OnFailure, false) => false,
            (Restart::Always | Restart::OnFailure, true) => true,
            (Restart::Always, false) => !done && !unit.on_demand.value,
        };
        let (most, shortest, longest) =
            (unit.max_retry, unit.restart_delay, unit.restart_max_delay);
        let reset = unit.restart_reset;

        let watcher = &mut self.watchers[id];
        watcher.has_mishap |= failed || again;
        watcher.failures += u64::from(failed);
        watcher.failed_starts += u32::from(never_ready);
        if done {
            watcher.failed_starts = 0;
        }
        let failed_starts = watcher.failed_starts;
        if !again {
            self.vacate(id, wid);
            self.say(if failed { "not restarted" } else { "done" });
            self.slot(id, wid).ended_badly = failed.then_some(end.exit_code);
            self.watchers[id].last_end = Some((failed, end.exit_code));
            return;
        }
        if never_ready && most.is_some_and(|most| failed_starts >= most.max(1)) {
            self.vacate(id, wid);
            return self.give_up(id, end.exit_code);
        }
        let slot = self.slot(id, wid);
        if end.ready.is_some_and(|ready| now.since(ready) >= reset) {
            slot.row = 0;
        }
        slot.row += 1;
        slot.owed |= end.lived;
        let row = slot.row;
        let delay = delay_before(row, shortest, longest);
        slot.life = match delay.is_zero() {
            true => Life::Due,
            false => Life::Resting { until: now + delay },
        };
        self.say(match row {
            1 => "first restart",
            2..=4 => "restart with a delay",
            _ => "restart with a long delay",
        });
    }

    /// A slot whose worker was asked to end: it gets another one if it is still wanted.
    fn replace(&mut self, id: usize, wid: u32) {
        self.vacate(id, wid);
        if self.is_wanted(id, wid) {
            self.say("replaced");
            self.slot(id, wid).life = Life::Due;
        }
    }

    fn vacate(&mut self, id: usize, wid: u32) {
        let slot = self.slot(id, wid);
        slot.life = Life::Idle;
        slot.row = 0;
        slot.owed = false;
    }

    /// Asks a worker to end; by `stop_signal` if no other is given.
    fn stop_slot(&mut self, id: usize, wid: u32, why: Why, signal: Option<Signal>) {
        let (now, key) = (self.now, Key::Slot(id, wid));
        let unit = &self.watchers[id].spec.unit;
        let signal = signal.unwrap_or(unit.stop_signal);
        let (group, graceful) = (unit.stop_children, unit.graceful_timeout);
        let slot = self.slot(id, wid);
        let generation = slot.generation;
        match &mut slot.life {
            Life::Idle | Life::Due | Life::Resting { .. } => self.vacate(id, wid),
            Life::Ordered { cancelled } => {
                if !std::mem::replace(cancelled, true) {
                    self.expect(key, Act::Cancel(generation), "it is not wanted any more");
                }
            }
            Life::Starting { .. }
            | Life::Proving { .. }
            | Life::Serving { .. }
            | Life::Draining { .. } => {
                slot.since = now;
                slot.life = Life::Ending {
                    why,
                    kill: Kill::after(now, graceful),
                };
                let act = Act::Signal(generation, signal, group);
                self.expect(key, act, "it is to end");
                if signal != KILL {
                    let act = Act::Signal(generation, CONT, group);
                    self.expect(key, act, "a stopped process can't act on a signal");
                }
            }
            Life::Ending { why: before, .. } | Life::Clearing { why: before, .. } => {
                if why == Why::Asked {
                    *before = Why::Asked;
                }
            }
        }
    }

    fn kill_slot(&mut self, id: usize, wid: u32) {
        let (now, key) = (self.now, Key::Slot(id, wid));
        let slot = self.slot(id, wid);
        let generation = slot.generation;
        match &mut slot.life {
            Life::Idle | Life::Due | Life::Resting { .. } | Life::Ordered { .. } => {
                self.stop_slot(id, wid, Why::Asked, None);
            }
            Life::Starting { .. }
            | Life::Proving { .. }
            | Life::Serving { .. }
            | Life::Draining { .. } => {
                slot.since = now;
                let (why, kill) = (Why::Asked, Kill::Done);
                slot.life = Life::Ending { why, kill };
                self.expect(key, Act::Kill(generation), "the stop is forced");
            }
            Life::Ending { kill, .. } => {
                *kill = Kill::Done;
                self.say("killed");
                self.expect(key, Act::Kill(generation), "its time to end is over");
            }
            Life::Clearing { kill, .. } => {
                if std::mem::replace(kill, Kill::Done) != Kill::Done {
                    self.say("leftovers killed");
                    let reason = "the time of its leftovers is over";
                    self.expect(key, Act::KillLeftovers(generation), reason);
                }
            }
        }
    }

    fn is_wanted(&self, id: usize, wid: u32) -> bool {
        matches!(self.watchers[id].goal, Goal::Up { .. }) && wid <= self.watchers[id].wanted
    }

    fn has_shards(&self, id: usize) -> bool {
        (self.watchers[id].sockets.iter())
            .any(|socket| self.sockets[*socket].spec.unit.so_reuseport.value)
    }

    // Sockets.

    fn traffic(&mut self, socket: usize) {
        let now = self.now;
        let it = &mut self.sockets[socket];
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
        for id in self.sockets[socket].watchers.clone() {
            if self.watchers[id].goal == Goal::Waiting {
                self.say("started by traffic");
                self.start(id);
            }
        }
    }

    /// Workers that had to do without it are replaced.
    fn bound(&mut self, socket: usize) {
        self.sockets[socket].bound = true;
        self.say("bound late");
        for id in self.sockets[socket].watchers.clone() {
            if !matches!(self.watchers[id].goal, Goal::Up { .. }) {
                continue;
            }
            for wid in self.wids(id) {
                match self.slot(id, wid).life {
                    Life::Idle | Life::Due => {}
                    Life::Resting { .. } => self.slot(id, wid).life = Life::Due,
                    _ => self.stop_slot(id, wid, Why::Asked, None),
                }
            }
        }
    }

    fn must_watch(&self, socket: usize) -> bool {
        let socket = &self.sockets[socket];
        let waits = |id: &usize| self.watchers[*id].goal == Goal::Waiting;
        socket.bound
            && socket.paused.is_none()
            && !self.is_stopping()
            && socket.watchers.iter().any(waits)
    }

    // Commands.

    fn command(&mut self, request: RequestId, command: &Command, no_wait: bool) {
        match self.begin_command(command) {
            Err(answer) => self.reply(request, answer, "it can't be done"),
            Ok((want, ids)) if no_wait || want != Want::Over && ids.is_empty() => {
                let _ = ids;
                self.reply(request, Answer::Done, "nobody waits for more");
            }
            Ok((want, ids)) => {
                let open = (ids.into_iter())
                    .map(|id| (id, self.watchers[id].failures))
                    .collect();
                let pending = Pending {
                    want,
                    open,
                    problems: Vec::new(),
                    superseded: None,
                };
                self.pending.insert(request, pending);
            }
        }
    }

    fn begin_command(&mut self, command: &Command) -> Result<(Want, Vec<usize>), Answer> {
        let all: Vec<usize> = (0..self.watchers.len()).collect();
        match command {
            Command::Reload(_) => unreachable!(),
            Command::Start(names) => {
                let mut ids = self.find_all(names)?;
                if names.is_empty() {
                    ids = all
                        .into_iter()
                        .filter(|id| self.unit(*id).autostart)
                        .collect();
                }
                self.refuse_when_stopping()?;
                for id in &ids {
                    self.start(*id);
                }
                Ok((Want::Up, ids))
            }
            Command::Stop(names) => {
                let mut ids = self.find_all(names)?;
                if names.is_empty() {
                    ids = all;
                }
                for id in &ids {
                    self.stop(*id);
                }
                Ok((Want::Stopped, ids))
            }
            Command::Restart(names) => {
                let mut ids = self.find_all(names)?;
                if names.is_empty() {
                    let runs = |id: &usize| {
                        matches!(self.watchers[*id].goal, Goal::Up { .. } | Goal::Queued)
                    };
                    ids = all.into_iter().filter(runs).collect();
                }
                self.refuse_when_stopping()?;
                for id in &ids {
                    self.restart(*id);
                }
                Ok((Want::Up, ids))
            }
            Command::Scale { name, to } => {
                let id = self.find(name)?;
                self.refuse_when_stopping()?;
                self.scale(id, *to)?;
                Ok((Want::Scaled, vec![id]))
            }
            Command::Signal {
                name,
                signal,
                wid,
                children,
            } => {
                let id = self.find(name)?;
                let mut sent = false;
                for number in self.wids(id) {
                    let slot = self.slot(id, number);
                    let generation = slot.generation;
                    let hears = slot.life.runs() && !matches!(slot.life, Life::Clearing { .. });
                    if hears && wid.is_none_or(|wid| wid == number) {
                        sent = true;
                        let act = Act::Signal(generation, *signal, *children);
                        self.expect(Key::Slot(id, number), act, "somebody sends a signal");
                    }
                }
                match sent {
                    true => Ok((Want::Scaled, Vec::new())),
                    false => Err(Answer::Refused),
                }
            }
            Command::Shutdown => {
                if !self.is_stopping() {
                    self.stop_all(0);
                }
                Ok((Want::Over, Vec::new()))
            }
        }
    }

    fn find(&self, name: &str) -> Result<usize, Answer> {
        (self.watchers.iter())
            .position(|watcher| watcher.spec.name() == name)
            .ok_or_else(|| Answer::NoSuchWatcher(name.to_owned()))
    }

    fn find_all(&self, names: &[String]) -> Result<Vec<usize>, Answer> {
        let ids: Result<BTreeSet<usize>, Answer> =
            names.iter().map(|name| self.find(name)).collect();
        Ok(ids?.into_iter().collect())
    }

    fn refuse_when_stopping(&self) -> Result<(), Answer> {
        match self.is_stopping() {
            true => Err(Answer::ShuttingDown),
            false => Ok(()),
        }
    }

    fn restart(&mut self, id: usize) {
        match self.watchers[id].goal {
            Goal::Up { .. } => {
                for wid in self.wids(id) {
                    self.stop_slot(id, wid, Why::Asked, None);
                }
                self.want_slots(id, 1);
            }
            Goal::Down { .. } | Goal::Ended | Goal::Failed => self.start(id),
            Goal::Queued | Goal::Waiting => {}
        }
    }

    fn want_slots(&mut self, id: usize, from: u32) {
        for wid in from..=self.watchers[id].wanted {
            let slot = self.watchers[id].slots.entry(wid).or_default();
            if slot.life == Life::Idle {
                slot.life = Life::Due;
            }
        }
    }

    fn scale(&mut self, id: usize, to: Amount) -> Result<(), Answer> {
        let before = self.watchers[id].wanted;
        let wanted = match to {
            Amount::To(wanted) => i64::from(wanted),
            Amount::By(by) => (i64::from(before) + i64::from(by)).max(0),
        };
        if self.unit(id).singleton && wanted > 1 || wanted > 100_000 {
            return Err(Answer::Refused);
        }
        self.watchers[id].wanted = wanted as u32;
        for wid in before + 1..=wanted as u32 {
            self.slot(id, wid);
        }
        let is_up = matches!(self.watchers[id].goal, Goal::Up { .. });
        if is_up {
            let shards = self.has_shards(id);
            for wid in self.wids(id) {
                if wid > wanted as u32 {
                    self.retire(id, wid, shards);
                }
            }
            self.want_slots(id, before + 1);
        }
        Ok(())
    }

    /// A worker whose kernel queue goes with it serves first what waits in it.
    fn retire(&mut self, id: usize, wid: u32, shards: bool) {
        let until = self.unit(id).graceful_timeout;
        let until = until.map(|timeout| self.now + timeout);
        let slot = self.slot(id, wid);
        let generation = slot.generation;
        if shards && matches!(slot.life, Life::Serving { .. }) {
            slot.life = Life::Draining { until };
            self.say("drained");
            let reason = "its shard is emptied before it goes";
            self.expect(Key::Slot(id, wid), Act::Drain(generation), reason);
        } else {
            self.stop_slot(id, wid, Why::Asked, None);
        }
    }

    fn answer_all(&mut self) {
        for request in self.pending.keys().copied().collect::<Vec<_>>() {
            let Some(mut pending) = self.pending.remove(&request) else {
                continue;
            };
            for (id, mark) in pending.open.clone() {
                if self.judge(id, mark, &mut pending) {
                    pending.open.remove(&id);
                }
            }
            let is_over = matches!(self.phase, Phase::Over);
            let waits = pending.want == Want::Over || !pending.open.is_empty();
            let answer = if waits && !is_over {
                self.pending.insert(request, pending);
                continue;
            } else if waits {
                match pending.want {
                    Want::Over | Want::Stopped => Answer::Done,
                    Want::Up | Want::Scaled => Answer::ShuttingDown,
                }
            } else if !pending.problems.is_empty() {
                Answer::Failed(pending.problems.concat())
            } else if let Some((name, by)) = pending.superseded {
                match self.is_stopping() {
                    true => Answer::ShuttingDown,
                    false => Answer::Superseded(name, by),
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
            self.reply(request, answer, "it is decided");
        }
    }

    /// Whether a request has to wait for this watcher no longer.
    fn judge(&self, id: usize, mark: u64, pending: &mut Pending) -> bool {
        let watcher = &self.watchers[id];
        let name = watcher.spec.name().to_owned();
        let failed = watcher.failures > mark;
        let goes_on = "the manager goes on trying".to_owned();
        match (pending.want, watcher.goal) {
            (Want::Over, _) => false,
            (Want::Stopped, Goal::Up { .. } | Goal::Queued) => {
                pending.superseded = Some((name, "start"));
                true
            }
            (Want::Stopped, _) => !watcher.lives(),
            (Want::Up, Goal::Down { .. }) => {
                pending.superseded = Some((name, "stop"));
                true
            }
            (Want::Up, Goal::Failed) => {
                pending.problems.push(vec![format!("watcher `{name}`: ")]);
                true
            }
            (_, Goal::Up { .. }) if failed => {
                pending
                    .problems
                    .push(vec![format!("watcher `{name}`: "), goes_on]);
                true
            }
            (_, Goal::Failed | Goal::Waiting | Goal::Ended) if failed => {
                pending.problems.push(vec![format!("watcher `{name}`: ")]);
                true
            }
            (_, Goal::Up { complete }) => {
                complete && watcher.is_quiet() && watcher.slots.len() as u32 <= watcher.wanted
            }
            (Want::Up | Want::Scaled, Goal::Queued) => false,
            (Want::Up, Goal::Waiting | Goal::Ended) => true,
            (Want::Scaled, _) => true,
        }
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
                    let socket = &mut self.sockets[index];
                    if socket.paused == Some(at) {
                        socket.paused = None;
                    } else {
                        socket.bind_at = None;
                        self.expect(Key::Socket(index), Act::Bind, "it is time to try again");
                    }
                }
                Due::Slot(id, wid) => self.slot_due(id, wid),
            }
        }
    }

    fn slot_due(&mut self, id: usize, wid: u32) {
        let slot = self.slot(id, wid);
        match slot.life {
            Life::Idle | Life::Due | Life::Ordered { .. } => {}
            Life::Resting { .. } => slot.life = Life::Due,
            Life::Starting { .. } => {
                self.say("start timeout");
                self.stop_slot(id, wid, Why::Failed, None);
            }
            Life::Proving { .. } => self.serve(id, wid),
            Life::Serving { .. } => self.bite(id, wid),
            Life::Draining { .. } => self.stop_slot(id, wid, Why::Asked, None),
            Life::Ending { .. } | Life::Clearing { .. } => self.kill_slot(id, wid),
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
        for (index, socket) in self.sockets.iter().enumerate() {
            if !self.is_stopping() {
                add(socket.paused, Due::Socket(index));
                add(socket.bind_at, Due::Socket(index));
            }
        }
        for (id, watcher) in self.watchers.iter().enumerate() {
            for (wid, slot) in &watcher.slots {
                add(slot.life.deadline(), Due::Slot(id, *wid));
            }
        }
        all.into_iter().min()
    }

    /// When the supervisor must be called again at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let mut first = self.first_due().map(|(at, _)| at);
        let mut add = |at: Time| first = Some(first.map_or(at, |first| first.min(at)));
        for (id, watcher) in self.watchers.iter().enumerate() {
            if watcher.goal == Goal::Queued && self.may_start(id) == Some(true) {
                add(self.next_start);
            }
            if watcher.slots.values().any(|slot| slot.life == Life::Due) {
                add(watcher.next_spawn);
            }
        }
        first
    }

    // Consequences.

    fn settle(&mut self) {
        // Each turn of the loop moves something forward; a hundred would be a circle.
        for _ in 0..100 {
            let mut moved = false;
            for id in 0..self.watchers.len() {
                moved |= self.settle_watcher(id);
            }
            if !moved && !self.start_next() && !self.advance_phase() {
                break;
            }
        }
        for index in 0..self.sockets.len() {
            let must = self.must_watch(index);
            if std::mem::replace(&mut self.sockets[index].watched, must) != must {
                let act = if must { Act::Watch } else { Act::Unwatch };
                self.expect(
                    Key::Socket(index),
                    act,
                    "somebody waits for traffic, or not",
                );
            }
        }
        self.answer_all();
    }

    fn settle_watcher(&mut self, id: usize) -> bool {
        let mut moved = false;
        if self.watchers[id].goal == (Goal::Down { held: true }) && !self.is_held(id) {
            self.watchers[id].goal = Goal::Down { held: false };
            for wid in self.wids(id) {
                self.stop_slot(id, wid, Why::Asked, None);
            }
            moved = true;
        }
        if self.watchers[id].goal == Goal::Queued && self.may_start(id).is_none() {
            self.say("failed with what it requires");
            self.give_up(id, 1);
            moved = true;
        }
        if matches!(self.watchers[id].goal, Goal::Up { .. }) {
            moved |= self.launch(id);
            let watcher = &mut self.watchers[id];
            let idle = watcher.slots.values().all(|slot| slot.life == Life::Idle);
            if idle && watcher.wanted > 0 {
                self.ran_out(id);
                moved = true;
            } else if watcher.goal == (Goal::Up { complete: false }) && watcher.is_quiet() {
                watcher.goal = Goal::Up { complete: true };
                moved = true;
            }
        }
        let shards = self.has_shards(id);
        while let Some((wid, slot)) = self.watchers[id].slots.last_key_value() {
            if *wid <= self.watchers[id].wanted || slot.life != Life::Idle {
                break;
            }
            let wid = *wid;
            self.watchers[id].slots.pop_last();
            if shards {
                self.expect(
                    Key::Slot(id, wid),
                    Act::CloseShards,
                    "its wid goes for good",
                );
            }
            moved = true;
        }
        let state = self.watchers[id].state();
        if let Phase::Booting { unsettled, .. } = &mut self.phase {
            use WatcherState::{Backoff, Starting, Stopping};
            if !matches!(state, Starting | Backoff | Stopping) {
                moved |= unsettled.remove(&id);
            }
        }
        moved
    }

    fn launch(&mut self, id: usize) -> bool {
        let now = self.now;
        let warmup = self.unit(id).warmup_delay;
        let mut moved = false;
        for wid in self.wids(id) {
            let next = self.watchers[id].next_spawn;
            let slot = self.slot(id, wid);
            if slot.life != Life::Due || next > now {
                continue;
            }
            *slot = Slot {
                generation: slot.generation + 1,
                life: Life::Ordered { cancelled: false },
                row: slot.row,
                owed: slot.owed,
                ..Slot::default()
            };
            let generation = slot.generation;
            self.watchers[id].next_spawn = now + warmup;
            let act = Act::Spawn(generation);
            self.expect(Key::Slot(id, wid), act, "it is wanted and due");
            moved = true;
        }
        moved
    }

    fn start_next(&mut self) -> bool {
        let is_next = |id: &usize| {
            self.watchers[*id].goal == Goal::Queued && self.may_start(*id) == Some(true)
        };
        let Some(id) = (0..self.watchers.len()).find(is_next) else {
            return false;
        };
        if self.next_start > self.now {
            self.say("warmup of the manager");
            return false;
        }
        self.next_start = self.now + self.warmup_delay;
        let watcher = &mut self.watchers[id];
        watcher.goal = Goal::Up { complete: false };
        watcher.failed_starts = 0;
        watcher.has_mishap = false;
        self.want_slots(id, 1);
        true
    }

    fn advance_phase(&mut self) -> bool {
        match &self.phase {
            Phase::Booting { unsettled, .. } if unsettled.is_empty() => {
                self.phase = Phase::Running;
                let act = Act::Parent(ParentNotice::Ready);
                self.expect(Key::Manager, act, "all that starts by itself has started");
                true
            }
            Phase::Stopping { code, .. } if !self.watchers.iter().any(Watcher::lives) => {
                let code = *code;
                self.finish(code);
                true
            }
            _ => false,
        }
    }

    // Comparing.

    fn expect(&mut self, key: Key, act: Act, reason: &'static str) {
        self.expected.push(Expected { key, act, reason });
    }

    fn compare(&mut self, effects: &[Effect]) -> Result<(), String> {
        let expected = std::mem::take(&mut self.expected);
        let mut queues: BTreeMap<Key, Vec<&Expected>> = BTreeMap::new();
        for it in expected.iter().rev() {
            queues.entry(it.key).or_default().push(it);
        }
        let mut spawns = Vec::new();
        for effect in effects {
            let Some(key) = self.key_of(effect)? else {
                continue;
            };
            let name = || self.name_of(key);
            let Some(it) = queues.get_mut(&key).and_then(Vec::pop) else {
                return Err(format!("{}: nothing calls for {}", name(), brief(effect)));
            };
            if !self.fits(&it.act, effect) {
                return Err(format!(
                    "{}: {:?} must come first, since {}; there is {}",
                    name(),
                    it.act,
                    it.reason,
                    brief(effect)
                ));
            }
            if let (Key::Slot(id, wid), Effect::Spawn { proc, .. }) = (key, effect) {
                let Act::Spawn(generation) = it.act else {
                    continue;
                };
                if self.procs.insert(*proc, (id, wid, generation)).is_some() {
                    return Err(format!("{proc:?} is not a new name"));
                }
                if let Some(slot) = self.watchers[id].slots.get_mut(&wid) {
                    slot.proc = Some(*proc);
                }
                spawns.push((id, wid));
            }
        }
        if let Some(it) = queues.into_values().flatten().last() {
            let name = self.name_of(it.key);
            return Err(format!(
                "{name}: {:?} is missing, since {}",
                it.act, it.reason
            ));
        }
        let first_starts = |all: &[(usize, u32)]| -> Vec<(usize, u32)> {
            let is_first = |(id, wid): &&(usize, u32)| {
                (self.watchers[*id].slots.get(wid)).is_some_and(|slot| slot.generation == 1)
            };
            all.iter().filter(is_first).copied().collect()
        };
        let in_order: Vec<(usize, u32)> = (expected.iter())
            .filter_map(|it| match (it.key, &it.act) {
                (Key::Slot(id, wid), Act::Spawn(_)) => Some((id, wid)),
                _ => None,
            })
            .collect();
        if first_starts(&spawns) != first_starts(&in_order) {
            return Err(format!(
                "the order of start is {spawns:?} and must be {in_order:?}"
            ));
        }
        Ok(())
    }

    /// What an effect is about; `None` where that is checked elsewhere.
    fn key_of(&self, effect: &Effect) -> Result<Option<Key>, String> {
        Ok(Some(match effect {
            Effect::Open { .. } | Effect::Change { .. } | Effect::Close { .. } => return Ok(None),
            Effect::Spawn { watcher, wid, .. } | Effect::CloseShards { watcher, wid } => {
                Key::Slot(watcher.0 as usize, *wid)
            }
            Effect::CancelSpawn { proc }
            | Effect::Signal { proc, .. }
            | Effect::Follow { proc, .. }
            | Effect::Kill { proc }
            | Effect::KillLeftovers { proc }
            | Effect::AwaitLeftovers { proc }
            | Effect::Drain { proc } => match self.procs.get(proc) {
                Some((id, wid, _)) => Key::Slot(*id, *wid),
                None => return Err(format!("{proc:?} is none that was spawned before")),
            },
            Effect::Watch { socket } | Effect::Unwatch { socket } | Effect::Bind { socket } => {
                Key::Socket(socket.0 as usize)
            }
            Effect::Reply { request, .. } => Key::Request(*request),
            Effect::Parent(ParentNotice::Status(_))
            | Effect::Progress { .. }
            | Effect::Log { .. } => return Ok(None),
            Effect::Parent(_) | Effect::Finish { .. } => Key::Manager,
        }))
    }

    fn fits(&self, act: &Act, effect: &Effect) -> bool {
        let is = |proc: &ProcId, generation: &u64| {
            (self.procs.get(proc)).is_some_and(|(_, _, known)| known == generation)
        };
        match (act, effect) {
            (Act::Spawn(_), Effect::Spawn { watcher, spec, .. }) => {
                Rc::ptr_eq(spec, &self.watchers[watcher.0 as usize].spec)
            }
            (Act::Cancel(of), Effect::CancelSpawn { proc }) => is(proc, of),
            (
                Act::Signal(of, signal, group),
                Effect::Signal {
                    proc,
                    signal: sent,
                    group: to_group,
                },
            ) => is(proc, of) && (signal, group) == (sent, to_group),
            (Act::Follow(of, pid), Effect::Follow { proc, pid: to }) => {
                is(proc, of) && *pid == to.0
            }
            (Act::Kill(of), Effect::Kill { proc })
            | (Act::KillLeftovers(of), Effect::KillLeftovers { proc })
            | (Act::AwaitLeftovers(of), Effect::AwaitLeftovers { proc })
            | (Act::Drain(of), Effect::Drain { proc }) => is(proc, of),
            (Act::CloseShards, Effect::CloseShards { .. })
            | (Act::Watch, Effect::Watch { .. })
            | (Act::Unwatch, Effect::Unwatch { .. })
            | (Act::Bind, Effect::Bind { .. }) => true,
            (Act::Parent(notice), Effect::Parent(told)) => notice == told,
            (Act::Finish(code), Effect::Finish { code: with }) => code == with,
            (Act::Reply(answer), Effect::Reply { outcome, .. }) => match (answer, outcome) {
                (Answer::Done, Ok(_))
                | (Answer::Refused, Err(Refusal::Refused(_)))
                | (Answer::ShuttingDown, Err(Refusal::ShuttingDown)) => true,
                (Answer::NoSuchWatcher(name), Err(Refusal::NoSuchWatcher { name: said })) => {
                    name == said
                }
                (Answer::Failed(words), Err(Refusal::Failed(text))) => {
                    words.iter().all(|word| text.contains(word.as_str()))
                        && text.contains("goes on") == words.iter().any(|w| w.contains("goes on"))
                }
                (
                    Answer::Superseded(name, by),
                    Err(Refusal::Superseded {
                        name: said,
                        by: said_by,
                    }),
                ) => name == said && by == said_by,
                _ => false,
            },
            _ => false,
        }
    }

    fn name_of(&self, key: Key) -> String {
        match key {
            Key::Slot(id, wid) => {
                format!("watcher `{}` worker {wid}", self.watchers[id].spec.name())
            }
            Key::Socket(index) => format!("socket `{}`", self.sockets[index].spec.name()),
            Key::Request(request) => format!("request {}", request.0),
            Key::Manager => "the manager".into(),
        }
    }

    /// Holds what the supervisor shows against what is.
    pub fn check_view(&self, view: &View<'_>) -> Result<(), String> {
        let starting = matches!(self.phase, Phase::New | Phase::Booting { .. });
        same(|| "the manager's starting".into(), view.starting, starting)?;
        same(
            || "the manager's stopping".into(),
            view.stopping,
            self.is_stopping(),
        )?;
        for (index, shown) in view.sockets.iter().enumerate() {
            let socket = &self.sockets[index];
            let state = if !socket.bound {
                SocketState::Failed
            } else if socket.paused.is_some() {
                SocketState::Paused
            } else if socket.watched {
                SocketState::Armed
            } else {
                SocketState::Listening
            };
            let of = |what: &str| format!("{what} of socket `{}`", shown.name);
            same(|| of("the state"), shown.state, state)?;
            same(|| of("the watching"), shown.watched, socket.watched)?;
            let wrong = matches!(state, SocketState::Failed | SocketState::Paused);
            same(
                || of("whether an error is shown"),
                shown.error.is_some(),
                wrong,
            )?;
        }
        for (watcher, shown) in self.watchers.iter().zip(&view.watchers) {
            let of = |what: &str| format!("{what} of watcher `{}`", shown.name);
            let state = watcher.state();
            same(|| of("the state"), shown.state, state)?;
            same(|| of("`wanted`"), shown.wanted, watcher.wanted)?;
            same(
                || of("`ready`"),
                shown.ready,
                watcher.count(Life::is_serving),
            )?;
            same(|| of("`restarts`"), shown.restarts, watcher.restarts)?;
            if matches!(state, WatcherState::Failed | WatcherState::Backoff)
                && shown.error.is_none()
            {
                return Err(of("no error is shown"));
            }
            if !watcher.has_mishap && shown.error.is_some() {
                return Err(of(
                    "an error is shown, and nothing went wrong since the start",
                ));
            }
            let mut workers = shown.workers.iter();
            for (wid, slot) in watcher.slots.iter().filter(|(_, slot)| slot.life.runs()) {
                let Some(worker) = workers.next() else {
                    return Err(of("a worker is missing in the list"));
                };
                let state = match slot.life {
                    Life::Draining { .. } | Life::Ending { .. } | Life::Clearing { .. } => {
                        WorkerState::Stopping
                    }
                    Life::Serving { .. } if slot.reloading => WorkerState::Reloading,
                    Life::Serving { .. } => WorkerState::Ready,
                    _ => WorkerState::Starting,
                };
                same(
                    || of("a worker"),
                    (worker.wid, Some(worker.proc), worker.pid.0, worker.state),
                    (*wid, slot.proc, slot.pid, state),
                )?;
                same(
                    || of("generation, status and age of a worker"),
                    (worker.generation, worker.status, worker.since),
                    (slot.generation, slot.status.as_deref(), slot.since),
                )?;
            }
            if workers.next().is_some() {
                return Err(of("there is a worker too many in the list"));
            }
        }
        Ok(())
    }

    /// After a time without faults: whether all that is wanted is up.
    pub fn check_calm(&self) -> Result<(), String> {
        for watcher in &self.watchers {
            let is_settled = match watcher.goal {
                Goal::Up { complete } => complete && watcher.is_quiet(),
                Goal::Queued | Goal::Down { held: true } => false,
                Goal::Down { held: false } | Goal::Waiting | Goal::Ended | Goal::Failed => {
                    !watcher.lives()
                }
            };
            if !is_settled {
                return Err(format!(
                    "watcher `{}` is {:?} long after the last fault: {:?}",
                    watcher.spec.name(),
                    watcher.goal,
                    watcher.slots
                ));
            }
        }
        match self.phase {
            Phase::Booting { .. } => Err("the manager is still starting".into()),
            _ => Ok(()),
        }
    }

    /// Whether the time of a forced stop is over too, so that the manager ends without what it could not kill.
    pub fn is_beyond_force(&self) -> bool {
        self.said.contains_key("ended without what can't be killed")
    }

    fn current(&self, proc: ProcId) -> Option<(usize, u32)> {
        let (id, wid, _) = *self.procs.get(&proc)?;
        let slot = self.watchers[id].slots.get(&wid)?;
        let has_process = slot.life.runs() || matches!(slot.life, Life::Ordered { .. });
        (slot.proc == Some(proc) && has_process).then_some((id, wid))
    }

    fn slot(&mut self, id: usize, wid: u32) -> &mut Slot {
        self.watchers[id].slots.entry(wid).or_default()
    }

    fn wids(&self, id: usize) -> Vec<u32> {
        self.watchers[id].slots.keys().copied().collect()
    }

    fn unit(&self, id: usize) -> &tentpole::unit::Watcher {
        &self.watchers[id].spec.unit
    }

    fn say(&mut self, rule: &'static str) {
        *self.said.entry(rule).or_default() += 1;
    }
}

impl Watcher {
    fn count(&self, which: impl Fn(&Life) -> bool) -> u32 {
        (self.slots.values())
            .filter(|slot| which(&slot.life))
            .count() as u32
    }

    /// It has a process, or is about to.
    fn lives(&self) -> bool {
        self.count(|life| life.runs() || matches!(life, Life::Ordered { .. })) > 0
    }

    /// Everything is where it is to stay.
    fn is_quiet(&self) -> bool {
        self.count(|life| *life != Life::Idle && !life.is_serving()) == 0
    }

    fn state(&self) -> WatcherState {
        let serving = self.count(Life::is_serving);
        let resting = self.count(|life| matches!(life, Life::Resting { .. }));
        let on_the_way = self.count(|life| {
            let starts = matches!(life, Life::Ordered { .. } | Life::Starting { .. });
            starts || matches!(life, Life::Due | Life::Proving { .. })
        });
        match self.goal {
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
        self.bind_at = Some(now + delay);
    }
}

impl Slot {
    fn feed(&mut self, now: Time) {
        let feed_by = self.interval.map(|interval| now + interval);
        self.life = Life::Serving { feed_by };
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
    fn of(exit: Exit, ready: Option<Time>) -> End {
        let (clean, exit_code) = match exit {
            Exit::Code(code) => (code == 0, code),
            Exit::Signal(Signal(number)) => (matches!(number, 1 | 2 | 13 | 15), 128 + number),
            Exit::Unknown => (false, 1),
        };
        End {
            clean,
            succeeded: exit == Exit::Code(0),
            lived: true,
            ready,
            exit_code,
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

fn same<T: PartialEq + Debug>(
    what: impl FnOnce() -> String,
    shown: T,
    is: T,
) -> Result<(), String> {
    match shown == is {
        true => Ok(()),
        false => Err(format!("{} is {is:?}, and {shown:?} is shown", what())),
    }
}

/// An effect without the definition of a watcher.
pub fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Spawn {
            proc, watcher, wid, ..
        } => format!("Spawn {{ proc: {proc:?}, watcher: {watcher:?}, wid: {wid} }}"),
        Effect::Log { level, unit, text } => format!("log {level:?} {unit}: {text}"),
        other => format!("{other:?}"),
    }
}
