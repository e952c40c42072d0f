//! What is known of each socket, watcher and worker. Plain data: a state holds what exists in it and nothing else.

use super::time::Time;
use super::{Exit, Pid, ProcId, RequestId, SocketId, WatcherId};
use crate::plan;
use crate::unit;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Whether a record does without a value, since it is what a reader takes for one that is not there.
fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A socket unit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Socket {
    pub spec: Rc<plan::Socket>,
    pub binding: Binding,
    /// Watchers that listen on it, or will when their reload is over.
    #[serde(skip)]
    pub watchers: Vec<WatcherId>,
    /// It is in the plan no more, and is closed as soon as nothing that runs was started with it.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub retired: bool,
    /// What has its address now has the first of its shards alone: it stays until the others are empty.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub left_behind: bool,
    #[serde(default, skip_serializing_if = "is_usual")]
    pub trigger: Trigger,
    /// With `so_reuseport`, what becomes of the shard of each wid, from 1 on; past the end there is none.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub shards: Vec<Shard>,
    /// What the runtime was last told; whether it *should* be watched is computed.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub watched: bool,
    /// If not all of its shards are: those of these wids.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub watched_shards: Vec<u32>,
    /// Since when, or since when last.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub watched_since: Time,
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
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Trigger {
    #[serde(default, skip_serializing_if = "is_usual")]
    pub window: Time,
    #[serde(default, skip_serializing_if = "is_usual")]
    pub count: u32,
    /// Activation pauses until then.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub paused: Option<Time>,
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Shard {
    /// New clients may come to it.
    Open,
    /// No new ones come, as long as a worker of its wid serves those that wait, or is to. If it is one that was made for
    /// that: of which watcher.
    Draining { by: Option<WatcherId>, tries: u32 },
    /// It is closed if nobody waits in it: the runtime has not answered yet.
    Closing { tries: u32 },
    /// Clients wait in it, and so many workers have not served them all.
    Owed { tries: u32 },
    /// There is none.
    Closed,
}

/// A definition of a watcher, and the sockets that its processes get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Edition {
    pub number: u32,
    #[serde(
        serialize_with = "super::record::leave_out",
        deserialize_with = "super::record::stand_in"
    )]
    pub spec: Rc<plan::Watcher>,
    /// In the order of [`plan::Watcher::listens`].
    pub sockets: Rc<[SocketId]>,
}

/// A watcher unit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Watcher {
    /// What it is. During a reload to another definition: what it goes back to should that fail.
    pub edition: Edition,
    /// Other definitions that its processes were started from, or are going to be.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub others: Vec<Edition>,
    pub next_edition: u32,
    /// Its place in the start order.
    pub rank: u32,
    /// Its start level.
    pub level: u32,
    /// It is in the plan no more, and forgotten as soon as nothing of it is alive.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub retired: bool,
    /// What it is `after`, and whether it also `requires` it.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub dependencies: Vec<(WatcherId, bool)>,
    /// The other direction of `dependencies`.
    #[serde(skip)]
    pub dependents: Vec<(WatcherId, bool)>,
    pub goal: Goal,
    /// It is alive, and stopped together with others, those of the highest level first: the number of the stop.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub descent: Option<u64>,
    /// It starts with the manager, and has neither come up nor failed since.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub booting: bool,
    /// Workers to keep, as last scaled.
    pub wanted: u32,
    /// Slot `i` is wid `i + 1`.
    #[serde(skip)]
    pub slots: Vec<Slot>,
    /// How many processes the slots past the end have had.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub past: Past,
    /// Deaths that were made good.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub restarts: u64,
    /// Failed starts in a row.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub failures: u32,
    /// All failures ever: tells a command whether one happened since it was given.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub failures_ever: u64,
    /// The last thing that went wrong.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub mishap: Option<Mishap>,
    /// The last worker that ended and is not restarted.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub last_end: Option<LastEnd>,
    /// How often in a row the traffic that it waits for was there already when its last worker had ended well.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub returns: u32,
    /// With `warmup_delay`, the earliest time of the next spawn.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub next_spawn: Time,
    /// The reload that is under way.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub reload: Option<Box<Reload>>,
    /// The one after it.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub queued: Option<Box<Queued>>,
    /// A reload by signal whose workers have not answered.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub signalled: Option<Box<Signalled>>,
    /// Reloads so far.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub reloads: u64,
    /// The last one that failed, and why.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub failed_reload: Option<(u64, String)>,
    /// Commands that wait for it.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub requests: Vec<RequestId>,
    /// The socket that it waits for while it is queued.
    #[serde(skip)]
    pub lacks: Option<SocketId>,
    #[serde(skip)]
    pub tally: Tally,
    /// The state as it was last counted and told.
    #[serde(skip)]
    pub told: Option<super::WatcherState>,
}

/// A rolling reload.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Reload {
    /// Which of the watcher's reloads.
    pub serial: u64,
    /// The edition that processes are started from.
    pub to: u32,
    /// Processes from this one on are replacements.
    pub since: ProcId,
    /// Wids that are still to be replaced.
    pub todo: BTreeSet<u32>,
    /// Of a reload because of age: all wids that it is about. What starts in others meanwhile is none of its replacements.
    pub aged: Option<BTreeSet<u32>>,
    /// Why it has failed: then `to` is what it goes back to.
    pub failure: Option<String>,
}

/// A reload that waits for another to end, or for a socket to be bound.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Queued {
    pub serial: u64,
    /// The new definition; without one it stays as it is.
    pub edition: Option<Edition>,
}

/// A reload by signal, of workers that tell when they have done it, or are not ready to be told.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Signalled {
    pub serial: u64,
    /// They have had the signal, and say when they have done it.
    pub awaited: BTreeSet<ProcId>,
    /// They get it when they are ready: before, it might end them.
    #[serde(default)]
    pub unready: BTreeSet<ProcId>,
    pub problems: Vec<String>,
    pub until: Option<Time>,
}

impl Watcher {
    pub fn name(&self) -> &str {
        self.edition.spec.name()
    }

    /// What it is, as it was written.
    pub fn unit(&self) -> &unit::Watcher {
        &self.edition.spec.unit
    }

    /// A definition that a process of it was started from.
    pub fn edition(&self, number: u32) -> &Edition {
        (self.others.iter())
            .find(|edition| edition.number == number)
            .unwrap_or(&self.edition)
    }

    /// The definition that processes are started from now.
    pub fn next(&self) -> &Edition {
        match &self.reload {
            Some(reload) => self.edition(reload.to),
            None => &self.edition,
        }
    }

    /// All definitions that matter.
    pub fn editions(&self) -> impl Iterator<Item = &Edition> {
        let queued = self.queued.as_ref().and_then(|it| it.edition.as_ref());
        self.begun_editions().chain(queued)
    }

    /// Those but the one that waits for its reload.
    pub fn begun_editions(&self) -> impl Iterator<Item = &Edition> {
        std::iter::once(&self.edition).chain(&self.others)
    }

    /// Whether traffic starts its workers again when they have ended. The end of a critical one that runs once is that of the
    /// manager.
    pub fn is_armed_again(&self) -> bool {
        let unit = self.unit();
        unit.on_demand.value && !(unit.critical && unit.runs_once())
    }

    /// Whether traffic starts a worker in the place of one that has ended well, be it while others go on: a slot that is
    /// vacant.
    pub fn is_on_call(&self, slot: &Slot) -> bool {
        self.is_armed_again() && slot.ended_badly.is_none()
    }

    /// Whether its workers end and leave what they were started for, again and again.
    pub fn returns_often(&self) -> bool {
        self.returns >= 3
    }

    /// Its slots, with their wids.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Slot)> {
        (1..).zip(&self.slots)
    }
}

/// A place for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Post {
    pub watcher: WatcherId,
    pub wid: u32,
    pub seat: Seat,
}

/// Which of the two places of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Seat {
    /// Of the process that serves, or is to.
    Main,
    /// In a reload: of its replacement until that is ready, then of the one that was replaced until it has ended.
    Beside,
}

impl Seat {
    /// Both, in the order in which they are looked at.
    pub const BOTH: [Seat; 2] = [Seat::Main, Seat::Beside];
}

impl Post {
    /// Those of a slot.
    pub fn both(watcher: WatcherId, wid: u32) -> [Post; 2] {
        Seat::BOTH.map(|seat| Post { watcher, wid, seat })
    }

    pub fn main(watcher: WatcherId, wid: u32) -> Post {
        let seat = Seat::Main;
        Post { watcher, wid, seat }
    }

    pub fn beside(watcher: WatcherId, wid: u32) -> Post {
        let seat = Seat::Beside;
        Post { watcher, wid, seat }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Mishap {
    pub text: String,
    /// The slot it happened to, by wid; 0 is the watcher as a whole.
    pub wid: u32,
    /// How a critical watcher makes the manager end.
    pub exit_code: i32,
    /// It was a reload that went wrong: the next that goes well makes up for it.
    pub of_reload: bool,
}

/// How a worker ended that is not restarted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LastEnd {
    pub wid: u32,
    pub failed: bool,
    /// How a critical watcher makes the manager end.
    pub exit_code: i32,
    /// It was a job, and is done.
    #[serde(default)]
    pub done: bool,
    /// How it ended: `worker 1 exited with code 0`.
    #[serde(default)]
    pub text: String,
}

/// What a watcher is meant to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Goal {
    /// Nothing is wanted; `held` workers wait with their stop until those that go before them have ended. With `again` it
    /// is a restart: when all have ended, it is started.
    Stopped {
        held: bool,
        #[serde(default)]
        again: bool,
    },
    /// It waits for its turn to start.
    Queued,
    /// Traffic starts it.
    Waiting,
    /// `wanted` workers are kept; `complete` once all of them have been ready since the last start, restart or scale up.
    /// A death alone does not take that back: the others serve.
    Up { complete: bool },
    /// Its workers ended and are not wanted again (`oneshot`, `restart = "never"`).
    Ended,
    /// It was given up.
    Failed,
}

impl Goal {
    /// For good, and now.
    pub const STOPPED: Goal = Goal::Stopped {
        held: false,
        again: false,
    };

    /// For good, and in its turn.
    pub const HELD: Goal = Goal::Stopped {
        held: true,
        again: false,
    };

    /// Whether a watcher that is after this one, or even `requires` it, may start. `None` if that is not going to change by
    /// itself.
    pub fn lets_start(self, requires: bool) -> Option<bool> {
        match self {
            Goal::Queued | Goal::Up { complete: false } | Goal::Stopped { again: true, .. } => {
                Some(false)
            }
            // Where it is waiting, traffic starts it when somebody needs it.
            Goal::Up { complete: true } | Goal::Ended | Goal::Waiting => Some(true),
            Goal::Stopped { .. } | Goal::Failed => (!requires).then_some(true),
        }
    }

    /// Its workers are wanted, now or as soon as what it is `after` allows it.
    pub fn is_up(self) -> bool {
        matches!(
            self,
            Goal::Up { .. } | Goal::Queued | Goal::Stopped { again: true, .. }
        )
    }
}

/// What is remembered of slots that were trimmed, so that no worker has the wid and the generation of another that was
/// before it. The last trimmed is the first to come back, and neighbours mostly have had as many processes: each entry is a
/// number of processes, and of how many slots in a row it is.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Past(Vec<(u64, u32)>);

impl Past {
    /// The most entries. Past that, slots that are far out are taken to have had as many processes as the busiest of them.
    const MOST: usize = 64;

    /// The last slot goes, which has had so many processes.
    pub fn push(&mut self, generation: u64) {
        match self.0.last_mut() {
            Some((known, count)) if *known == generation => *count += 1,
            // What never was need not be remembered.
            None if generation == 0 => {}
            _ => self.0.push((generation, 1)),
        }
        if self.0.len() > Past::MOST {
            let (farthest, count) = self.0.remove(0);
            let (next, its_count) = &mut self.0[0];
            *next = farthest.max(*next);
            *its_count += count;
        }
    }

    /// The slot after the last comes back: how many processes it has had.
    pub fn pop(&mut self) -> u64 {
        let Some((generation, count)) = self.0.last_mut() else {
            return 0;
        };
        let generation = *generation;
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.0.pop();
        }
        generation
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Processes this slot has had.
    pub generation: u64,
    /// Restarts in a row, which the backoff grows with.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub attempt: u32,
    /// A worker died here and no other has taken its place yet.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub bereaved: bool,
    /// Its last process failed with this exit code and is not restarted.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub ended_badly: Option<i32>,
    pub main: State,
    /// Rarely there.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub beside: Option<Box<State>>,
}

impl Slot {
    pub fn state(&self, seat: Seat) -> &State {
        match seat {
            Seat::Main => &self.main,
            Seat::Beside => self.beside.as_deref().unwrap_or(&State::Vacant),
        }
    }

    pub fn replace(&mut self, seat: Seat, state: State) -> State {
        match (seat, state) {
            (Seat::Main, state) => std::mem::replace(&mut self.main, state),
            (Seat::Beside, State::Vacant) => self.beside.take().map(|it| *it).unwrap_or_default(),
            (Seat::Beside, state) => {
                let before = self.beside.replace(Box::new(state));
                before.map(|it| *it).unwrap_or_default()
            }
        }
    }

    pub fn worker_mut(&mut self, seat: Seat) -> Option<&mut Worker> {
        match seat {
            Seat::Main => self.main.worker_mut(),
            Seat::Beside => self.beside.as_mut()?.worker_mut(),
        }
    }

    pub fn is_vacant(&self) -> bool {
        matches!(self.main, State::Vacant) && self.beside.is_none()
    }
}

/// The life of a slot. See the rules at the head of [`super`].
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
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
        edition: u32,
        generation: u64,
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
    /// What waits in its shards is served before it is stopped, since they go for good.
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
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Worker {
    pub proc: ProcId,
    pub pid: Pid,
    /// The definition that it was started from.
    pub edition: u32,
    /// Which process of its slot it is.
    pub generation: u64,
    /// When its present state began.
    pub since: Time,
    /// When it became ready.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub ready: Option<Time>,
    /// When it is to be replaced because of its age.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub expires: Option<Time>,
    #[serde(default, skip_serializing_if = "is_usual")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "is_usual")]
    pub errno: Option<i32>,
    /// WATCHDOG=1 must come this often.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub watchdog: Option<Duration>,
    /// It said RELOADING=1.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub reloading: bool,
    /// What the log was told of its messages. Of no use to another manager.
    #[serde(skip)]
    pub complaints: Complaints,
}

/// How long the log is told nothing more of a worker's messages after it was.
const SILENCE: Duration = Duration::from_secs(10);

/// Keeps a worker from filling the log by what it says: it could do that faster than any disk is emptied.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Complaints {
    silent_until: Time,
    left_out: u64,
}

impl Complaints {
    /// Whether the log is to be told of one, and of how many it was not since the last.
    pub fn next(&mut self, now: Time) -> Option<u64> {
        if now < self.silent_until {
            self.left_out += 1;
            return None;
        }
        self.silent_until = now + SILENCE;
        Some(std::mem::take(&mut self.left_out))
    }
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

    /// The definition of the process it has or is about to have.
    pub fn edition(&self) -> Option<u32> {
        match self {
            State::Launching { edition, .. } => Some(*edition),
            _ => self.worker().map(|worker| worker.edition),
        }
    }

    /// Whether it may still become ready, or is.
    pub fn is_coming(&self) -> bool {
        matches!(
            self,
            State::Due
                | State::Launching { .. }
                | State::Starting { .. }
                | State::Settling { .. }
                | State::Ready { .. }
        )
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
            State::Ready { worker, watchdog } => {
                [*watchdog, worker.expires].into_iter().flatten().min()
            }
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
    /// Of all of these, those that stand beside another.
    pub beside: u32,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_with_what_they_have_had() {
        let mut past = Past::default();
        let all = [0, 0, 5, 5, 0, 2];
        all.iter().for_each(|generation| past.push(*generation));
        assert_eq!(past.0, [(5, 2), (0, 1), (2, 1)]);
        let back: Vec<u64> = all.iter().map(|_| past.pop()).collect();
        assert_eq!(back, [2, 0, 5, 5, 0, 0]);
        assert_eq!(past, Past::default());
    }

    #[test]
    fn what_is_remembered_of_slots_has_an_end_and_repeats_nothing() {
        let mut past = Past::default();
        let all: Vec<u64> = (0..1000).map(|wid| wid * 7 % 1000).collect();
        all.iter().for_each(|generation| past.push(*generation));
        assert_eq!(past.0.len(), Past::MOST);
        for generation in all.iter().rev() {
            assert!(past.pop() >= *generation);
        }
    }
}
