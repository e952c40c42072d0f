//! The state as records that outlive the manager: for an upgrade, and for its death.
//!
//! A record holds one thing, so that a change costs what it changes: the manager, a socket, a watcher, one of its
//! definitions, a slot. What can be derived from the others is in none, and is derived anew by
//! [`Supervisor::restore`]. Then [`Supervisor::resume`] asks again for everything that was asked for and not answered.

use super::order::Phase;
use super::request::{MOST_WORKERS, Pending};
use super::state::{Binding, Edition, Goal, Post, Seat, Shard, Slot, Socket, State, Watcher};
use super::table::Table;
use super::timers::{Due, Timers};
use super::{
    Dirty, Effect, ParentNotice, ProcId, RequestId, Settings, SocketId, Supervisor, Time, Turn,
    WatcherId,
};
use crate::plan;
use crate::unit::{self, Gather};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

/// The bound of process numbers that is recorded is this far ahead.
pub(super) const PROCS_AT_ONCE: u64 = 1024;

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The manager: there is always one.
    Manager,
    /// A socket.
    Socket(SocketId),
    /// A watcher, without its slots.
    Watcher(WatcherId),
    /// A definition of a watcher, by its number.
    Edition(WatcherId, u32),
    /// A slot of a watcher, by its wid.
    Slot(WatcherId, u32),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Manager => f.write_str("manager"),
            Key::Socket(SocketId(id)) => write!(f, "socket.{id}"),
            Key::Watcher(WatcherId(id)) => write!(f, "watcher.{id}"),
            Key::Edition(WatcherId(id), number) => write!(f, "edition.{id}.{number}"),
            Key::Slot(WatcherId(id), wid) => write!(f, "slot.{id}.{wid}"),
        }
    }
}

impl FromStr for Key {
    type Err = ();

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Key, ()> {
        let mut parts = text.split('.');
        let kind = parts.next().ok_or(())?;
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or(());
        let key = match kind {
            "manager" => Key::Manager,
            "socket" => Key::Socket(SocketId(number()?)),
            "watcher" => Key::Watcher(WatcherId(number()?)),
            "edition" => Key::Edition(WatcherId(number()?), number()?),
            "slot" => Key::Slot(WatcherId(number()?), number()?),
            _ => return Err(()),
        };
        parts.next().map_or(Ok(key), |_| Err(()))
    }
}

/// Why records can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Which record can't be written, and why.
#[derive(Debug)]
pub struct Unwritable(Key, serde_json::Error);

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record `{}` can't be written: {}", self.0, self.1)
    }
}

impl std::error::Error for Unwritable {}

/// What belongs to no unit.
#[derive(Serialize, Deserialize)]
struct ManagerRecord {
    manager: unit::Manager,
    control_gid: Option<u32>,
    phase: Phase,
    next_start: Time,
    /// No process has had this number or a greater one.
    next_proc: u64,
    next_watcher: u32,
    next_socket: u32,
    /// As pairs, since JSON has no keys that are numbers.
    pending: Vec<(RequestId, Pending)>,
}

impl Supervisor {
    /// Hands every record that has changed since the last call to `sink`: what it is of, and its content, or `None` where
    /// there is none any more. One that can't be written stays as it was when it was recorded last, which is an error once
    /// all others are.
    pub fn record(&mut self, sink: &mut dyn FnMut(Key, Option<Vec<u8>>)) -> Result<(), Unwritable> {
        let mut written = Ok(());
        let mut sink = |key, value: Option<Content>| match value.transpose() {
            Ok(value) => sink(key, value),
            Err(error) => written = Err(Unwritable(key, error)),
        };
        let Dirty {
            manager,
            sockets,
            watchers,
            editions,
            slots,
        } = std::mem::take(&mut self.dirty);
        for id in sockets {
            sink(Key::Socket(id), self.sockets.get(id).map(content));
        }
        for (id, number) in editions {
            let edition = self.watchers.get(id).and_then(|watcher| {
                watcher
                    .editions()
                    .find(|edition| edition.number == number)
                    .map(|edition| content(&edition.spec))
            });
            sink(Key::Edition(id, number), edition);
        }
        for id in watchers {
            sink(Key::Watcher(id), self.watchers.get(id).map(content));
        }
        for (id, wid) in slots {
            let watcher = self.watchers.get(id);
            let slot = watcher.and_then(|watcher| watcher.slots.get(wid as usize - 1));
            sink(Key::Slot(id, wid), slot.map(content));
        }
        if manager {
            sink(Key::Manager, Some(self.manager_record()));
        }
        written
    }

    /// The same for every record that there is.
    pub fn record_all(
        &mut self,
        sink: &mut dyn FnMut(Key, Option<Vec<u8>>),
    ) -> Result<(), Unwritable> {
        let all = Dirty {
            manager: true,
            sockets: self.sockets.ids().gather(),
            watchers: self.watchers.ids().gather(),
            editions: BTreeSet::new(),
            slots: BTreeSet::new(),
        };
        let changed = std::mem::replace(&mut self.dirty, all);
        for (id, watcher) in self.watchers.iter() {
            let editions = watcher.editions().map(|edition| (id, edition.number));
            self.dirty.editions.extend(editions);
            let slots = watcher.numbered().map(|(wid, _)| (id, wid));
            self.dirty.slots.extend(slots);
        }
        let written = self.record(sink);
        // They are for somebody else: where changes are recorded, these are still to come.
        self.dirty = changed;
        written
    }

    /// Takes everything for recorded: nobody is going to ask.
    pub fn forget_changes(&mut self) {
        self.dirty = Dirty::default();
    }

    /// The group that may use the control socket.
    pub fn control_gid(&self) -> Option<u32> {
        self.control_gid
    }

    /// The `[manager]` table.
    pub fn manager(&self) -> &unit::Manager {
        &self.manager
    }

    fn manager_record(&mut self) -> Content {
        let record = ManagerRecord {
            manager: self.manager.clone(),
            control_gid: self.control_gid,
            phase: std::mem::replace(&mut self.phase, Phase::New),
            next_start: self.next_start,
            next_proc: (self.next_proc / PROCS_AT_ONCE + 1) * PROCS_AT_ONCE,
            next_watcher: self.next_watcher,
            next_socket: self.next_socket,
            pending: std::mem::take(&mut self.pending).into_iter().collect(),
        };
        let content = content(&record);
        self.phase = record.phase;
        self.pending = record.pending.into_iter().gather();
        content
    }

    /// The supervisor that `records` are of. It does nothing before [`Supervisor::resume`]; what is newer than this
    /// version of it can't be read.
    pub fn restore(
        records: impl IntoIterator<Item = (Key, Vec<u8>)>,
        settings: Settings,
    ) -> Result<Supervisor, Unreadable> {
        let mut manager: Option<ManagerRecord> = None;
        let mut sockets: Table<SocketId, Socket> = Table::default();
        let mut watchers: Table<WatcherId, Watcher> = Table::default();
        let mut specs: HashMap<(WatcherId, u32), Rc<plan::Watcher>> = HashMap::new();
        let mut slots: BTreeMap<(WatcherId, u32), Slot> = BTreeMap::new();
        for (key, bytes) in records {
            match key {
                Key::Manager => manager = Some(read(key, &bytes)?),
                Key::Socket(id) => {
                    sockets.insert(id, read(key, &bytes)?);
                }
                Key::Watcher(id) => {
                    watchers.insert(id, read(key, &bytes)?);
                }
                Key::Edition(id, number) => {
                    specs.insert((id, number), read(key, &bytes)?);
                }
                Key::Slot(id, wid) => {
                    slots.insert((id, wid), read(key, &bytes)?);
                }
            }
        }
        let Some(manager) = manager else {
            return Err(Unreadable("there is no record of the manager".into()));
        };
        let known: BTreeSet<WatcherId> = watchers.ids().gather();
        for (id, watcher) in watchers.iter_mut() {
            let mut dependencies = watcher.dependencies.iter();
            if let Some((other, _)) = dependencies.find(|(other, _)| !known.contains(other)) {
                let key = Key::Watcher(*other);
                return Err(Unreadable(format!("there is no record `{key}`")));
            }
            for edition in watcher.editions_mut() {
                let spec = specs.get(&(id, edition.number)).map(Rc::clone);
                edition.spec = spec.ok_or_else(|| {
                    let key = Key::Edition(id, edition.number);
                    Unreadable(format!("there is no record `{key}`"))
                })?;
                if let Some(id) = edition.sockets.iter().find(|id| !sockets.contains(**id)) {
                    let key = Key::Socket(*id);
                    return Err(Unreadable(format!("there is no record `{key}`")));
                }
            }
        }
        for ((id, wid), slot) in slots {
            let Some(watcher) = watchers.get_mut(id).filter(|_| wid > 0) else {
                let key = Key::Slot(id, wid);
                return Err(Unreadable(format!("record `{key}` is of no watcher")));
            };
            if wid > MOST_WORKERS {
                let key = Key::Slot(id, wid);
                return Err(Unreadable(format!(
                    "record `{key}` is of a worker beyond the {MOST_WORKERS} that there can be"
                )));
            }
            // Slots that never changed have no record.
            watcher.slots.resize_with(wid as usize - 1, Slot::default);
            watcher.slots.push(slot);
        }
        let names = (watchers.iter()).map(|(id, watcher)| (watcher.name().to_owned(), id));
        let mut supervisor = Supervisor {
            names: names.collect(),
            settings,
            warmup_delay: manager.manager.warmup_delay,
            shutdown_timeout: manager.manager.shutdown_timeout,
            manager: manager.manager,
            control_gid: manager.control_gid,
            sockets,
            watchers,
            phase: manager.phase,
            next_start: manager.next_start,
            next_proc: manager.next_proc,
            next_watcher: manager.next_watcher,
            next_socket: manager.next_socket,
            pending: manager.pending.into_iter().gather(),
            order: Vec::new(),
            startable: BTreeSet::new(),
            procs: HashMap::new(),
            timers: Timers::default(),
            descents: BTreeSet::new(),
            census: BTreeMap::new(),
            touched: BTreeSet::new(),
            stirred: BTreeSet::new(),
            left_behind: BTreeSet::new(),
            // The bound of process numbers that was recorded has been reached: the next must be, before any is used.
            dirty: Dirty {
                manager: true,
                ..Dirty::default()
            },
            users_stale: false,
            told_status: String::new(),
        };
        supervisor.check_numbers()?;
        supervisor.derive()?;
        Ok(supervisor)
    }

    /// No number that is still to be given may have been given already, and none may make the manager grow without bounds.
    fn check_numbers(&self) -> Result<(), Unreadable> {
        let sockets = self.sockets.ids().filter(|id| id.0 >= self.next_socket);
        let watchers = self.watchers.ids().filter(|id| id.0 >= self.next_watcher);
        let mut early = sockets.map(Key::Socket).chain(watchers.map(Key::Watcher));
        if let Some(key) = early.next() {
            return Err(not_given(key));
        }
        for (id, watcher) in self.watchers.iter() {
            if watcher.wanted > MOST_WORKERS {
                let (key, wanted) = (Key::Watcher(id), watcher.wanted);
                return Err(Unreadable(format!(
                    "record `{key}` wants {wanted} workers; there can be {MOST_WORKERS}"
                )));
            }
            for (wid, slot) in watcher.numbered() {
                let procs = Seat::BOTH.map(|seat| slot.state(seat).proc());
                let is_early = |proc: &ProcId| proc.0 >= self.next_proc;
                if procs.iter().flatten().any(is_early) {
                    return Err(not_given(Key::Slot(id, wid)));
                }
            }
        }
        Ok(())
    }

    /// Everything that is in no record.
    fn derive(&mut self) -> Result<(), Unreadable> {
        self.settings.log_level = self.manager.log_level;
        // From here on numbers are given up to a new bound; with the old one the next manager would give them again.
        self.dirty.manager = true;
        self.rebuild_dependents();
        self.rebuild_users();
        self.touched = self.watchers.ids().gather();
        let is_stopping = self.is_stopping();
        let is_new = matches!(self.phase, Phase::New);
        for (id, socket) in self.sockets.iter() {
            let due = match socket.binding {
                // It is not tried yet, or not any more.
                _ if is_stopping || is_new => None,
                Binding::Failed { .. } if socket.retired => None,
                Binding::Failed { retry, .. } => Some(retry),
                _ => socket.trigger.paused,
            };
            self.timers.set(Due::Socket(id), due);
        }
        let sockets = self.sockets.iter();
        let left = sockets.filter(|(_, socket)| socket.left_behind);
        self.left_behind = left.map(|(id, _)| id).gather();
        for (_, socket) in self.sockets.iter_mut() {
            // Of a version that did not record them.
            if socket.spec.unit.so_reuseport.value && socket.shards.is_empty() {
                let users = socket.watchers.iter().map(|id| &self.watchers[*id]);
                let counts = users.map(|watcher| watcher.slots.len().max(watcher.wanted as usize));
                let count = counts.max().unwrap_or_default();
                socket.shards.resize(count.max(1), Shard::Open);
            }
        }
        let queued = self.watchers.iter();
        let queued = queued.filter(|(_, watcher)| watcher.goal == Goal::Queued);
        let lacking: HashMap<WatcherId, SocketId> = (queued.map(|(id, _)| id))
            .filter_map(|id| Some((id, self.lacks(id)?)))
            .collect();
        let mut unsettled = 0;
        for (id, watcher) in self.watchers.iter_mut() {
            watcher.lacks = lacking.get(&id).copied();
            unsettled += u32::from(watcher.booting);
            let signalled = watcher.signalled.as_ref().and_then(|it| it.until);
            self.timers.set(Due::Signalled(id), signalled);
            for (wid, slot) in (1..).zip(&watcher.slots) {
                for post in Post::both(id, wid) {
                    let state = slot.state(post.seat);
                    self.timers.set(Due::Post(post), state.deadline());
                    if let Some(proc) = state.proc()
                        && self.procs.insert(proc, post).is_some()
                    {
                        let key = Key::Slot(id, wid);
                        let proc = proc.0;
                        return Err(Unreadable(format!(
                            "record `{key}` has process {proc}, and so has another"
                        )));
                    }
                    if let Some(count) = watcher.tally.of(state) {
                        *count += 1;
                        watcher.tally.beside += u32::from(post.seat == Seat::Beside);
                    }
                }
            }
            if let Some(number) = watcher.descent {
                self.descents.insert((number, watcher.level, id));
            }
            let state = watcher.state();
            watcher.told = Some(state);
            *self.census.entry(state).or_default() += 1;
        }
        match &mut self.phase {
            Phase::Booting { unsettled: count } => *count = unsettled,
            Phase::Stopping { until, .. } => {
                self.timers.set(Due::Shutdown, *until);
            }
            Phase::New | Phase::Running | Phase::Over => {}
        }
        Ok(())
    }

    /// Goes on where the records end: begins if that had not happened, and asks again for what was asked for and had not been answered. `connected` says
    /// whether those who gave commands are still there to be answered.
    pub fn resume(&mut self, now: Time, connected: bool, effects: &mut Vec<Effect>) {
        let turn = &mut Turn {
            now,
            effects,
            finish: None,
        };
        if !connected {
            self.abandon_all();
        }
        if self.settings.parent {
            match self.phase {
                // It still waits for the end of that.
                Phase::Running if self.pending.values().any(|it| it.told) => {}
                Phase::Running => turn.effects.push(Effect::Parent(ParentNotice::Ready)),
                Phase::Stopping { .. } => {
                    turn.effects.push(Effect::Parent(ParentNotice::Stopping));
                }
                Phase::New | Phase::Booting { .. } | Phase::Over => {}
            }
            self.extend_parent(turn);
        }
        for (id, socket) in self.sockets.iter() {
            let is_needed = !socket.retired && !self.is_stopping();
            if is_needed && matches!(socket.binding, Binding::Trying { .. }) {
                turn.effects.push(Effect::Bind { socket: id });
            }
            if socket.watched {
                let shards = socket.watched_shards.clone();
                turn.effects.push(Effect::Watch { socket: id, shards });
            }
            for (wid, shard) in (1..).zip(&socket.shards) {
                if let Shard::Closing { .. } = shard {
                    turn.effects.push(Effect::CloseShard { socket: id, wid });
                }
            }
        }
        // Whoever was to say so is gone.
        self.begin(turn);
        for id in self.order.clone() {
            for wid in 1..=self.watcher(id).slots.len() as u32 {
                for post in Post::both(id, wid) {
                    self.resume_post(turn, post);
                }
            }
            if self.watcher(id).goal == Goal::Queued {
                self.queue_if_startable(turn, id);
            }
        }
        self.expire(turn);
        self.settle(turn);
        if let Some(code) = turn.finish {
            turn.effects.push(Effect::Finish { code });
        }
    }

    fn resume_post(&mut self, turn: &mut Turn<'_>, post: Post) {
        match *self.state(post) {
            State::Launching {
                proc,
                cancelled: true,
                ..
            } => self.spawn_cancelled(proc),
            State::Launching {
                proc,
                edition,
                generation,
                ..
            } => self.order_spawn(turn, post, proc, edition, generation),
            State::Draining { ref worker, .. } => {
                let (proc, sockets) = (worker.proc, self.goes_with(post));
                turn.effects.push(Effect::Drain { proc, sockets });
            }
            State::Stopping {
                ref worker,
                kill_at: None,
                ..
            } => turn.effects.push(Effect::Kill { proc: worker.proc }),
            State::Leaving {
                ref worker,
                kill_at,
                ..
            } => turn.effects.push(match kill_at {
                Some(_) => Effect::AwaitLeftovers { proc: worker.proc },
                None => Effect::KillLeftovers { proc: worker.proc },
            }),
            State::Vacant
            | State::Due
            | State::Backoff { .. }
            | State::Starting { .. }
            | State::Settling { .. }
            | State::Ready { .. }
            | State::Stopping { .. } => {}
        }
    }
}

impl Watcher {
    fn editions_mut(&mut self) -> impl Iterator<Item = &mut Edition> {
        let queued = self.queued.as_mut().and_then(|it| it.edition.as_mut());
        std::iter::once(&mut self.edition)
            .chain(&mut self.others)
            .chain(queued)
    }
}

/// The spec of an edition has a record of its own, so that a change of the watcher does not write it again.
pub(super) fn leave_out<S: Serializer>(
    _spec: &Rc<plan::Watcher>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_unit()
}

/// Stands in for the spec until it is read from its own record.
pub(super) fn stand_in<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Rc<plan::Watcher>, D::Error> {
    <()>::deserialize(deserializer)?;
    Ok(Rc::new(plan::Watcher::nothing()))
}

fn not_given(key: Key) -> Unreadable {
    Unreadable(format!(
        "record `{key}` has a number that the record `manager` has not given yet"
    ))
}

type Content = serde_json::Result<Vec<u8>>;

fn content<T: Serialize>(value: &T) -> Content {
    serde_json::to_vec(value)
}

fn read<T: DeserializeOwned>(key: Key, bytes: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(bytes)
        .map_err(|error| Unreadable(format!("record `{key}` can't be read: {error}")))
}
