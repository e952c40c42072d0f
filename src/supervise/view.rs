//! What the supervisor knows, for people and tests to look at.

use super::state::{Binding, Goal, Seat, Slot, Socket, State, Watcher, Worker};
use super::{Pid, ProcId, SocketId, Supervisor, Time, WatcherId, order::Phase};
use crate::unit::Arrange;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The state of a watcher, as DESIGN's "Life cycles" names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum WatcherState {
    Stopped,
    Waiting,
    Starting,
    Running,
    Reloading,
    Stopping,
    Backoff,
    Failed,
}

impl fmt::Display for WatcherState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WatcherState::Stopped => "stopped",
            WatcherState::Waiting => "waiting",
            WatcherState::Starting => "starting",
            WatcherState::Running => "running",
            WatcherState::Reloading => "reloading",
            WatcherState::Stopping => "stopping",
            WatcherState::Backoff => "backoff",
            WatcherState::Failed => "failed",
        })
    }
}

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum WorkerState {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

/// The state of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketState {
    /// Its workers accept.
    Listening,
    /// Traffic on it starts a watcher.
    Armed,
    /// Activation pauses.
    Paused,
    /// It could not be bound.
    Failed,
}

/// Everything there is to see.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Whether everything that starts by itself has not started yet.
    pub starting: bool,
    /// Whether the manager is ending.
    pub stopping: bool,
    /// The sockets, in order of name.
    pub sockets: Vec<SocketView<'a>>,
    /// The watchers, in start order.
    pub watchers: Vec<WatcherView<'a>>,
}

/// A socket.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct SocketView<'a> {
    pub id: SocketId,
    pub name: &'a str,
    pub state: SocketState,
    pub error: Option<&'a str>,
    pub watchers: Vec<&'a str>,
    /// Whether the runtime was told to report traffic.
    pub watched: bool,
}

/// A watcher.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct WatcherView<'a> {
    pub id: WatcherId,
    pub name: &'a str,
    pub state: WatcherState,
    pub wanted: u32,
    pub ready: u32,
    pub restarts: u64,
    pub error: Option<String>,
    pub sockets: Vec<&'a str>,
    pub workers: Vec<WorkerView<'a>>,
    /// Names of the watchers that it is `after`, which have to be ready before it starts.
    pub waits_for: Vec<&'a str>,
}

/// A running worker.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct WorkerView<'a> {
    pub wid: u32,
    pub proc: ProcId,
    pub pid: Pid,
    pub state: WorkerState,
    pub since: Time,
    pub status: Option<&'a str>,
    pub generation: u64,
}

impl Supervisor {
    /// All there is to see at the time `now`.
    pub fn view(&self, now: Time) -> View<'_> {
        View {
            starting: matches!(self.phase, Phase::New | Phase::Booting { .. }),
            stopping: self.is_stopping(),
            sockets: self.view_sockets(),
            watchers: (self.order.iter())
                .map(|id| self.view_watcher(*id, now))
                .collect(),
        }
    }

    /// In order of name; what is being replaced by another of its name comes after that.
    fn view_sockets(&self) -> Vec<SocketView<'_>> {
        let mut sockets: Vec<_> = (self.sockets.iter())
            .map(|(id, socket)| (socket.retired, self.view_socket(id, socket)))
            .collect();
        sockets.arrange_by(|(a_retired, a), (b_retired, b)| {
            (a.name, a_retired, a.id).cmp(&(b.name, b_retired, b.id))
        });
        sockets.into_iter().map(|(_, view)| view).collect()
    }

    fn view_socket<'a>(&'a self, id: SocketId, socket: &'a Socket) -> SocketView<'a> {
        let (state, error) = match &socket.binding {
            Binding::Failed { error, .. } | Binding::Trying { error, .. } => {
                (SocketState::Failed, Some(error.as_str()))
            }
            Binding::Bound if socket.trigger.paused.is_some() => (
                SocketState::Paused,
                Some(
                    "activated too often (`trigger_limit`); goes on by itself when the interval is over",
                ),
            ),
            Binding::Bound if socket.watched => (SocketState::Armed, None),
            Binding::Bound => (SocketState::Listening, None),
        };
        let watchers = socket
            .watchers
            .iter()
            .map(|watcher| self.watcher(*watcher).name())
            .collect();
        SocketView {
            id,
            name: socket.spec.name(),
            state,
            error,
            watchers,
            watched: socket.watched,
        }
    }

    fn view_watcher(&self, id: WatcherId, now: Time) -> WatcherView<'_> {
        let watcher = self.watcher(id);
        WatcherView {
            id,
            name: watcher.name(),
            state: watcher.state(),
            wanted: watcher.wanted,
            ready: watcher.tally.ready,
            restarts: watcher.restarts,
            error: match watcher.goal {
                // What runs comes first, then what is to run.
                Goal::Up { .. } => watcher.error(now).or_else(|| self.lacking(id)),
                _ => self.lacking(id).or_else(|| watcher.error(now)),
            },
            sockets: (watcher.edition.spec.listens.iter())
                .map(String::as_str)
                .collect(),
            workers: watcher.workers(),
            waits_for: self.awaited(watcher),
        }
    }

    /// The names of those that keep a watcher from starting until they are ready, in order of name.
    fn awaited<'a>(&'a self, watcher: &'a Watcher) -> Vec<&'a str> {
        let mut names = Vec::new();
        if watcher.goal == Goal::Queued {
            for (other, requires) in &watcher.dependencies {
                let other = self.watcher(*other);
                if other.goal.lets_start(*requires) == Some(false) {
                    names.push(other.name());
                }
            }
            names.arrange();
        }
        names
    }
}

impl Supervisor {
    /// Why a watcher waits for a socket, if it does.
    pub(super) fn lacking(&self, id: WatcherId) -> Option<String> {
        let watcher = self.watcher(id);
        let (lacks, what) = match watcher.goal {
            Goal::Queued => (watcher.lacks?, ""),
            Goal::Up { .. } => (self.queued_lacks(id)?, "; it stays as it was until then"),
            _ => return None,
        };
        let socket = self.sockets.get(lacks)?;
        let (Binding::Failed { error, .. } | Binding::Trying { error, .. }) = &socket.binding
        else {
            return None;
        };
        Some(format!(
            "socket `{}` is not bound: {error}{what}",
            socket.spec.name()
        ))
    }
}

impl State {
    /// What it is in backoff for, and until when.
    fn failure(&self, now: Time) -> Option<String> {
        let State::Backoff { until, after } = self else {
            return None;
        };
        // Tenths are as exact as anybody needs.
        let tenths = until.since(now).as_millis().div_ceil(100);
        let (whole, tenths) = (tenths / 10, tenths % 10);
        Some(match tenths {
            0 => format!("{after}; next try in {whole} s"),
            _ => format!("{after}; next try in {whole}.{tenths} s"),
        })
    }
}

impl Watcher {
    /// Why nothing runs any more; else what a slot is in backoff for, that of the last mishap before others; else the last
    /// mishap, until its slot has proved itself again. A reload that failed is told until one goes well.
    fn error(&self, now: Time) -> Option<String> {
        let end = self.last_end.as_ref().filter(|_| self.goal == Goal::Ended);
        if let Some(end) = end.filter(|end| !end.done) {
            return Some(format!("{}; it is not restarted", end.text));
        }
        let backoff = || self.slots.iter().find_map(|slot| slot.main.failure(now));
        let Some(mishap) = self.mishap.as_ref() else {
            return backoff();
        };
        let text = || Some(mishap.text.clone());
        if mishap.of_reload {
            return text();
        }
        let slot = mishap
            .wid
            .checked_sub(1)
            .and_then(|index| self.slots.get(index as usize));
        match slot.map(|slot| &slot.main) {
            Some(State::Ready { worker, .. }) if self.has_proved_itself(worker, now) => backoff(),
            Some(state) => state.failure(now).or_else(backoff).or_else(text),
            None => backoff().or_else(text),
        }
    }

    fn has_proved_itself(&self, worker: &Worker, now: Time) -> bool {
        let lived = worker.ready.map(|ready| now.since(ready));
        lived.is_some_and(|lived| lived >= self.unit().restart_reset)
    }

    fn workers(&self) -> Vec<WorkerView<'_>> {
        let both = |(wid, slot)| {
            Seat::BOTH
                .into_iter()
                .filter_map(move |seat| worker(wid, slot, seat))
        };
        self.numbered().flat_map(both).collect()
    }
}

fn worker(wid: u32, slot: &Slot, seat: Seat) -> Option<WorkerView<'_>> {
    let state = slot.state(seat);
    let worker = state.worker()?;
    let shown = match state {
        State::Draining { .. } | State::Stopping { .. } | State::Leaving { .. } => {
            WorkerState::Stopping
        }
        State::Ready { .. } if worker.reloading => WorkerState::Reloading,
        State::Ready { .. } => WorkerState::Ready,
        _ => WorkerState::Starting,
    };
    Some(WorkerView {
        wid,
        proc: worker.proc,
        pid: worker.pid,
        state: shown,
        since: worker.since,
        status: worker.status.as_deref(),
        generation: worker.generation,
    })
}
