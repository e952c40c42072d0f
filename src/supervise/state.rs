//! What is known of each socket, watcher and worker. Plain data: a state holds what exists in it and nothing else.

use super::time::Time;
use super::{Exit, Pid, ProcId, RequestId, SocketId, WatcherId};
use crate::plan;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::time::Duration;

/// A socket unit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Socket {
    pub spec: Rc<plan::Socket>,
    pub binding: Binding,
    /// Watchers that listen on it.
    pub watchers: Vec<WatcherId>,
    pub trigger: Trigger,
    /// What the runtime was last told; whether it *should* be watched is computed.
    pub watched: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Binding {
    Bound,
    /// It is optional and could not be bound yet.
    Failed {
        error: String,
        attempts: u32,
        retry: Time,
    },
    /// A bind was asked for and has not been answered.
    Trying {
        error: String,
        attempts: u32,
    },
}

/// Counts activations in fixed windows, over all re-armings.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Trigger {
    pub window: Time,
    pub count: u32,
    /// Activation pauses until then.
    pub paused: Option<Time>,
}

/// A watcher unit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Watcher {
    pub spec: Rc<plan::Watcher>,
    pub sockets: Vec<SocketId>,
    /// What it is `after`, and whether it also `requires` it.
    pub dependencies: Vec<(WatcherId, bool)>,
    /// The other direction of `dependencies`.
    pub dependents: Vec<(WatcherId, bool)>,
    pub goal: Goal,
    /// Workers to keep, as last scaled.
    pub wanted: u32,
    /// Slot `i` is wid `i + 1`.
    pub slots: Vec<Slot>,
    /// Deaths that were made good.
    pub restarts: u64,
    /// Failed starts in a row.
    pub failures: u32,
    /// All failures ever: tells a command whether one happened since it was given.
    pub failures_ever: u64,
    /// The last thing that went wrong.
    pub mishap: Option<Mishap>,
    /// The last worker that ended and is not restarted.
    pub last_end: Option<LastEnd>,
    /// With `warmup_delay`, the earliest time of the next spawn.
    pub next_spawn: Time,
    /// Commands that wait for it.
    pub requests: Vec<RequestId>,
    #[serde(skip)]
    pub tally: Tally,
    /// The state as it was last counted and told.
    #[serde(skip)]
    pub told: Option<super::WatcherState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Mishap {
    pub text: String,
    /// The slot it happened to, by wid; 0 is the watcher as a whole.
    pub wid: u32,
    /// How a critical watcher makes the manager end.
    pub exit_code: i32,
}

/// How a worker ended that is not restarted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LastEnd {
    pub wid: u32,
    pub failed: bool,
    /// How a critical watcher makes the manager end.
    pub exit_code: i32,
}

/// What a watcher is meant to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Goal {
    /// Nothing is wanted; `held` workers wait with their stop until those that depend on them have ended.
    Stopped { held: bool },
    /// It waits for its turn to start.
    Queued,
    /// Traffic starts it.
    Waiting,
    /// `wanted` workers are kept; `complete` once all of them have been ready.
    Up { complete: bool },
    /// Its workers ended and are not wanted again (`oneshot`, `restart = "never"`).
    Ended,
    /// It was given up.
    Failed,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Workers this slot has had.
    pub generation: u64,
    /// Restarts in a row, which the backoff grows with.
    pub attempt: u32,
    /// A worker died here and no other has taken its place yet.
    pub bereaved: bool,
    /// Its last process failed with this exit code and is not restarted.
    pub ended_badly: Option<i32>,
    pub state: State,
}

/// The life of a slot. See the rules at the head of [`super`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) enum State {
    /// Nothing runs, nothing is going to until somebody asks.
    #[default]
    Vacant,
    /// To be spawned as soon as `warmup_delay` allows.
    Due,
    /// To be spawned later, since this happened.
    Backoff { until: Time, after: String },
    /// The runtime was asked to spawn and has not answered; `cancelled` if it is not wanted any more.
    Launching {
        proc: ProcId,
        since: Time,
        cancelled: bool,
    },
    /// It runs and is not ready.
    Starting {
        worker: Worker,
        deadline: Option<Time>,
    },
    /// It is ready but for `ready_delay`.
    Settling { worker: Worker, until: Time },
    /// It serves.
    Ready {
        worker: Worker,
        watchdog: Option<Time>,
    },
    /// Its queue of connections is emptied before it is stopped, since its shard goes for good.
    Draining { worker: Worker, until: Option<Time> },
    /// It was asked to end (or said that it does); at `kill_at` it is killed. `None`: it was killed already.
    Stopping {
        worker: Worker,
        why: Why,
        kill_at: Option<Time>,
    },
    /// Its main process has ended, and what it left behind is being ended too.
    Leaving {
        worker: Worker,
        why: Why,
        exit: Exit,
        kill_at: Option<Time>,
    },
}

/// Why a worker is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    /// Somebody asked: a command, a scaling, the manager's end.
    Asked,
    /// It failed in this way.
    Failed(String),
    /// It said STOPPING=1 by itself.
    Itself,
}

/// A running process of a slot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Worker {
    pub proc: ProcId,
    pub pid: Pid,
    /// When its present state began.
    pub since: Time,
    /// When it became ready.
    pub ready: Option<Time>,
    pub status: Option<String>,
    pub errno: Option<i32>,
    /// WATCHDOG=1 must come this often.
    pub watchdog: Option<Duration>,
    /// It said RELOADING=1.
    pub reloading: bool,
}

impl State {
    pub fn worker(&self) -> Option<&Worker> {
        match self {
            State::Vacant | State::Due | State::Backoff { .. } | State::Launching { .. } => None,
            State::Starting { worker, .. }
            | State::Settling { worker, .. }
            | State::Ready { worker, .. }
            | State::Draining { worker, .. }
            | State::Stopping { worker, .. }
            | State::Leaving { worker, .. } => Some(worker),
        }
    }

    pub fn worker_mut(&mut self) -> Option<&mut Worker> {
        match self {
            State::Vacant | State::Due | State::Backoff { .. } | State::Launching { .. } => None,
            State::Starting { worker, .. }
            | State::Settling { worker, .. }
            | State::Ready { worker, .. }
            | State::Draining { worker, .. }
            | State::Stopping { worker, .. }
            | State::Leaving { worker, .. } => Some(worker),
        }
    }

    /// The process it has or is about to have.
    pub fn proc(&self) -> Option<ProcId> {
        match self {
            State::Launching { proc, .. } => Some(*proc),
            _ => self.worker().map(|worker| worker.proc),
        }
    }

    /// When it must be looked at again.
    pub fn deadline(&self) -> Option<Time> {
        match self {
            State::Vacant | State::Due | State::Launching { .. } => None,
            State::Backoff { until, .. } | State::Settling { until, .. } => Some(*until),
            State::Starting { deadline, .. } => *deadline,
            State::Ready { watchdog, .. } => *watchdog,
            State::Draining { until, .. } => *until,
            State::Stopping { kill_at, .. } | State::Leaving { kill_at, .. } => {
                kill_at.filter(|at| *at != Time::NEVER)
            }
        }
    }
}

/// How many slots are in which state: derived, so that no question looks at every slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub due: u32,
    pub backoff: u32,
    pub starting: u32,
    pub ready: u32,
    pub stopping: u32,
}

impl Tally {
    /// The count that `state` belongs to.
    pub fn of(&mut self, state: &State) -> Option<&mut u32> {
        match state {
            State::Vacant => None,
            State::Due => Some(&mut self.due),
            State::Backoff { .. } => Some(&mut self.backoff),
            State::Launching { .. } | State::Starting { .. } | State::Settling { .. } => {
                Some(&mut self.starting)
            }
            State::Ready { .. } => Some(&mut self.ready),
            State::Draining { .. } | State::Stopping { .. } | State::Leaving { .. } => {
                Some(&mut self.stopping)
            }
        }
    }

    /// Slots with a process, or about to have one.
    pub fn live(&self) -> u32 {
        self.starting + self.ready + self.stopping
    }

    /// Slots that are not vacant.
    pub fn busy(&self) -> u32 {
        self.live() + self.due + self.backoff
    }
}
