//! What `status` answers: the supervisor's view, and what the kernel says of the sockets.

use super::listeners::Listeners;
use crate::control::call::{Failure, Reply};
use crate::control::document::{
    ManagerState, ManagerStatus, SocketStatus, Status, Timestamp, WatcherStatus, WorkerStatus,
};
use crate::supervise::{self, SocketView, Supervisor, Time, View, WatcherView};
use crate::sys::process::Pid;
use crate::sys::socket::{self, Queue};
use crate::unit::{self, Arrange, SocketKind};
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

/// The status of everything, or of the units of these names (a name may be a socket's and a watcher's).
pub fn document(
    supervisor: &Supervisor,
    listeners: &Listeners,
    started: SystemTime,
    names: &[String],
    now: Time,
) -> Result<Reply, Failure> {
    let view = supervisor.view(now);
    let known: HashSet<&str> = unit_names(&view).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name.as_str())) {
        return Err(Failure::NoSuchUnit {
            nearest: nearest(supervisor, name, now),
            name: name.clone(),
        });
    }
    let chosen: HashSet<&str> = names.iter().map(String::as_str).collect();
    let shown = |name: &str| chosen.is_empty() || chosen.contains(name);

    // One question to the kernel for all unix sockets, and none where there are none.
    let unix = if listeners.has_unix_streams() {
        socket::unix_queues().unwrap_or_default()
    } else {
        HashMap::new()
    };
    let clock = Clock {
        now,
        wall: SystemTime::now(),
    };
    let state = match (view.stopping, view.starting) {
        (true, _) => ManagerState::Stopping,
        (false, true) => ManagerState::Starting,
        (false, false) => ManagerState::Running,
    };
    let mut watchers: Vec<WatcherStatus> = view
        .watchers
        .iter()
        .filter(|watcher| shown(watcher.name))
        .map(|watcher| clock.watcher(watcher))
        .collect();
    watchers.arrange_by(|a, b| a.name.cmp(&b.name));
    Ok(Reply::Status(Box::new(Status {
        manager: ManagerStatus {
            pid: Pid::own().as_raw().unsigned_abs(),
            version: env!("CARGO_PKG_VERSION").into(),
            state,
            since: started.into(),
        },
        sockets: (view.sockets.iter())
            .filter(|socket| shown(socket.name))
            .map(|socket| socket_status(socket, listeners, &unix))
            .collect(),
        watchers,
    })))
}

/// The watcher whose name is nearest to one that there is not.
pub fn nearest_watcher(supervisor: &Supervisor, name: &str, now: Time) -> Option<String> {
    let view = supervisor.view(now);
    let names = view.watchers.iter().map(|watcher| watcher.name);
    unit::nearest(name, names).map(str::to_owned)
}

/// The unit whose name is nearest to one that there is not.
fn nearest(supervisor: &Supervisor, name: &str, now: Time) -> Option<String> {
    let view = supervisor.view(now);
    unit::nearest(name, unit_names(&view)).map(str::to_owned)
}

fn unit_names<'a>(view: &'a View<'a>) -> impl Iterator<Item = &'a str> {
    view.watchers
        .iter()
        .map(|watcher| watcher.name)
        .chain(view.sockets.iter().map(|socket| socket.name))
}

fn socket_status(
    view: &SocketView<'_>,
    listeners: &Listeners,
    unix: &HashMap<u64, Queue>,
) -> SocketStatus {
    // Of datagrams the kernel counts bytes, which are no connections.
    let counts = listeners.kind(view.id) != SocketKind::Dgram
        && view.state != supervise::SocketState::Failed;
    let queue = counts.then(|| listeners.queue(view.id, unix));
    let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    SocketStatus {
        name: view.name.to_owned(),
        address: listeners.address(view.id),
        kind: match listeners.kind(view.id) {
            SocketKind::Stream => "stream",
            SocketKind::Dgram => "dgram",
            SocketKind::Seqpacket => "seqpacket",
        }
        .to_owned(),
        state: view.state,
        queue: queue.map(|queue| number(queue.waiting)),
        queue_limit: queue.map(|queue| number(queue.limit)),
        watchers: owned(&view.watchers),
        error: view.error.or(listeners.trouble(view.id)).map(str::to_owned),
    }
}

/// The two clocks at one moment: states are timed by the one, people read the other.
struct Clock {
    now: Time,
    wall: SystemTime,
}

impl Clock {
    fn wall(&self, at: Time) -> Timestamp {
        self.wall
            .checked_sub(self.now.since(at))
            .unwrap_or(SystemTime::UNIX_EPOCH)
            .into()
    }

    fn watcher(&self, view: &WatcherView<'_>) -> WatcherStatus {
        WatcherStatus {
            name: view.name.to_owned(),
            state: view.state,
            wanted: view.wanted,
            ready: view.ready,
            restarts: view.restarts,
            error: view.error.clone(),
            sockets: owned(&view.sockets),
            workers: (view.workers.iter())
                .map(|worker| WorkerStatus {
                    wid: worker.wid,
                    pid: Some(worker.pid.0.unsigned_abs()),
                    state: worker.state,
                    since: self.wall(worker.since),
                    status: worker.status.map(str::to_owned),
                    generation: worker.generation,
                })
                .collect(),
            waits_for: owned(&view.waits_for),
        }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
