//! Commands: what somebody asks for, and when it is done.

use super::state::{Goal, Seat, Socket, State, Watcher};
use super::{Effect, RequestId, Supervisor, Turn, WatcherId};
use crate::unit::{Arrange, Gather, LogLevel, Reload, Signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start these watchers now, on-demand ones too; without names all that start by themselves.
    Start(Vec<String>),
    /// Stop these watchers (without names: all); their sockets stay open.
    Stop(Vec<String>),
    /// Stop and start the workers of these watchers (without names: of all that run).
    Restart(Vec<String>),
    /// Replace the workers of these watchers (without names: of all that run) without a gap.
    Reload(Vec<String>),
    /// Keep another number of workers.
    Scale {
        /// Of which watcher.
        name: String,
        /// How many.
        to: Amount,
    },
    /// Send a signal to workers.
    Signal {
        /// Of which watcher.
        name: String,
        /// What.
        signal: Signal,
        /// To this worker alone.
        wid: Option<u32>,
        /// To their whole process groups.
        children: bool,
    },
    /// Stop everything, then the manager.
    Shutdown,
}

/// A number of workers, or a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    To(u32),
    /// So many more, or fewer.
    By(i32),
}

/// Why a command was not carried out, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such watcher; nothing was done.
    NoSuchWatcher {
        /// What was asked for.
        name: String,
    },
    /// It is the name of a socket, and not of a watcher; nothing was done.
    IsSocket {
        /// What was asked for.
        name: String,
        /// Those that it serves.
        watchers: Vec<String>,
    },
    /// It can't be done now; nothing was done.
    Refused(String),
    /// It was begun, and failed.
    Failed(String),
    /// The manager is stopping.
    ShuttingDown,
    /// Another command came in between.
    Superseded {
        /// What was asked for.
        name: String,
        /// What came in between.
        by: &'static str,
    },
}

impl Refusal {
    /// Of an apply while another has not ended.
    pub fn another_apply() -> Refusal {
        Refusal::Refused("another apply is under way; try again when it is done".into())
    }
}

/// Most workers of one watcher.
pub const MOST_WORKERS: u32 = 100_000;

/// A command that is not answered yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    /// It waits for the end of the manager.
    over: bool,
    /// It changes what there is.
    pub apply: bool,
    /// The parent was told of its beginning.
    pub told: bool,
    /// Nobody waits for the answer any more.
    abandoned: bool,
    /// Watchers that it still waits for.
    open: BTreeMap<WatcherId, Awaited>,
    /// What went wrong so far, in words.
    problems: Vec<String>,
    /// Watchers that had failed and were tried again when they were waited for no longer. Of the type of `open`, so that no
    /// more code reads and writes it.
    #[serde(default)]
    trying: BTreeMap<WatcherId, Awaited>,
    superseded: Option<(String, Later)>,
    /// What to say when all is done.
    message: Option<String>,
    progress: bool,
}

/// What a command waits for, of one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Awaited {
    want: Want,
    /// The watcher's failures when the command was given.
    mark: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Want {
    Up,
    Stopped,
    Scaled,
    /// The end of its reload of this number.
    Reloaded(u64),
}

/// What can come in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Later {
    Start,
    Stop,
    Restart,
    Apply,
}

impl Later {
    fn word(self) -> &'static str {
        match self {
            Later::Start => "start",
            Later::Stop => "stop",
            Later::Restart => "restart",
            Later::Apply => "apply",
        }
    }
}

/// A command that was begun.
#[derive(Default)]
pub(super) struct Begun {
    pub over: bool,
    pub apply: bool,
    pub told: bool,
    pub awaited: Vec<(WatcherId, Want)>,
    pub message: Option<String>,
}

impl Begun {
    fn of(ids: Vec<WatcherId>, want: Want) -> Begun {
        Begun {
            awaited: ids.into_iter().map(|id| (id, want)).gather(),
            ..Begun::default()
        }
    }
}

enum Verdict {
    Open,
    Done,
    Failed(String),
    /// It has failed, and the manager goes on trying.
    Trying,
    Superseded(Later),
}

impl Supervisor {
    pub(super) fn command(
        &mut self,
        turn: &mut Turn<'_>,
        request: RequestId,
        command: Command,
        no_wait: bool,
        progress: bool,
    ) {
        match self.begin_command(turn, command) {
            Ok(begun) => self.await_command(turn, request, begun, no_wait, progress),
            Err(refusal) => turn.effects.push(Effect::Reply {
                request,
                outcome: Err(refusal),
            }),
        }
    }

    /// Answers a command that was begun, now or when it is done.
    pub(super) fn await_command(
        &mut self,
        turn: &mut Turn<'_>,
        request: RequestId,
        begun: Begun,
        no_wait: bool,
        progress: bool,
    ) {
        let Begun {
            over,
            apply,
            told,
            awaited,
            message,
        } = begun;
        let is_done = !over && awaited.is_empty();
        if no_wait || is_done {
            let message = message.clone();
            turn.effects.push(Effect::Reply {
                request,
                outcome: Ok(message),
            });
        }
        // Another apply is refused until this one is done, whoever waits for that.
        if is_done || (no_wait && !apply) {
            return;
        }
        let mut open = BTreeMap::new();
        for (id, want) in awaited {
            let mark = self.watcher(id).failures_ever;
            open.insert(id, Awaited { want, mark });
            self.watcher_mut(id).requests.push(request);
            self.touched.insert(id);
        }
        let pending = Pending {
            over,
            apply,
            told,
            abandoned: no_wait,
            open,
            problems: Vec::new(),
            trying: BTreeMap::new(),
            superseded: None,
            message,
            progress,
        };
        self.pending.insert(request, pending);
        self.dirty.manager = true;
    }

    fn begin_command(&mut self, turn: &mut Turn<'_>, command: Command) -> Result<Begun, Refusal> {
        match command {
            Command::Start(names) => {
                let ids = self.select(&names, |supervisor, id| {
                    let watcher = supervisor.watcher(id);
                    watcher.unit().autostart && !watcher.retired
                })?;
                self.refuse_when_stopping()?;
                self.refuse_removed(&ids)?;
                for id in &ids {
                    self.start_watcher(turn, *id);
                }
                Ok(Begun::of(ids, Want::Up))
            }
            Command::Stop(names) => {
                let ids = self.select(&names, |_, _| true)?;
                self.stop_watchers(turn, &ids);
                let message = self.open_sockets(&ids);
                Ok(Begun {
                    message,
                    ..Begun::of(ids, Want::Stopped)
                })
            }
            Command::Restart(names) => {
                let ids =
                    self.select(&names, |supervisor, id| supervisor.watcher(id).goal.is_up())?;
                self.refuse_when_stopping()?;
                self.refuse_removed(&ids)?;
                let in_order = self.depend_on_each_other(&ids);
                for id in &ids {
                    self.supersede_reloads(turn, *id, Later::Restart);
                    if in_order.contains(id) {
                        self.stop_to_start_again(turn, *id);
                    } else {
                        self.restart_watcher(turn, *id);
                    }
                }
                Ok(Begun::of(ids, Want::Up))
            }
            Command::Reload(names) => {
                let ids = self.select(&names, |supervisor, id| {
                    matches!(supervisor.watcher(id).goal, Goal::Up { .. })
                        && supervisor.refuse_reload(id).is_ok()
                })?;
                self.refuse_when_stopping()?;
                for id in &ids {
                    self.refuse_reload(*id).map_err(Refusal::Refused)?;
                }
                let awaited = ids.into_iter();
                let awaited = awaited.map(|id| (id, self.reload(turn, id))).gather();
                Ok(Begun {
                    awaited,
                    ..Begun::default()
                })
            }
            Command::Scale { name, to } => {
                let id = self.find(&name)?;
                self.refuse_when_stopping()?;
                self.refuse_removed(&[id])?;
                self.scale(turn, id, to)?;
                Ok(Begun::of(vec![id], Want::Scaled))
            }
            Command::Signal {
                name,
                signal,
                wid,
                children,
            } => {
                let id = self.find(&name)?;
                let sent = self.signal_workers(turn, id, signal, wid, children)?;
                Ok(Begun {
                    message: Some(format!(
                        "sent to {sent} worker{}",
                        if sent == 1 { "" } else { "s" }
                    )),
                    ..Begun::default()
                })
            }
            Command::Shutdown => {
                if !self.is_stopping() {
                    self.stop_all(turn, 0);
                }
                Ok(Begun {
                    over: true,
                    ..Begun::default()
                })
            }
        }
    }

    fn find(&self, name: &str) -> Result<WatcherId, Refusal> {
        let known = self.names.get(name).copied();
        known.ok_or_else(|| {
            let is_meant = |socket: &&Socket| !socket.retired && socket.spec.name() == name;
            let mut sockets = self.sockets.iter().map(|(_, socket)| socket);
            let name = name.to_owned();
            match sockets.find(is_meant) {
                Some(socket) => {
                    let watchers = socket.watchers.iter();
                    let watchers = watchers.map(|id| self.watcher(*id).name().to_owned());
                    let watchers = watchers.collect();
                    Refusal::IsSocket { name, watchers }
                }
                None => Refusal::NoSuchWatcher { name },
            }
        })
    }

    /// The watchers of these names, each once, in start order; without names those that `all` chooses.
    fn select(
        &self,
        names: &[String],
        all: impl Fn(&Self, WatcherId) -> bool,
    ) -> Result<Vec<WatcherId>, Refusal> {
        if names.is_empty() {
            let ids = self.order.iter().copied();
            return Ok(ids.filter(|id| all(self, *id)).collect());
        }
        let mut ids = names
            .iter()
            .map(|name| self.find(name))
            .collect::<Result<Vec<_>, _>>()?;
        self.sort_by_rank(&mut ids);
        ids.dedup();
        Ok(ids)
    }

    fn refuse_when_stopping(&self) -> Result<(), Refusal> {
        if self.is_stopping() {
            Err(Refusal::ShuttingDown)
        } else {
            Ok(())
        }
    }

    /// What an apply has left out would come up with nobody to know of it.
    fn refuse_removed(&self, ids: &[WatcherId]) -> Result<(), Refusal> {
        let mut watchers = ids.iter().map(|id| self.watcher(*id));
        match watchers.find(|watcher| watcher.retired) {
            Some(watcher) => Err(Refusal::Refused(format!(
                "watcher `{}` is in the units no more, and is being removed",
                watcher.name()
            ))),
            None => Ok(()),
        }
    }

    /// Which sockets of these watchers, that are being stopped, nobody serves any more.
    fn open_sockets(&self, ids: &[WatcherId]) -> Option<String> {
        let serves = |id: &WatcherId| {
            let goal = self.watcher(*id).goal;
            goal.is_up() || goal == Goal::Waiting
        };
        let mut names: Vec<&str> = (ids.iter())
            .flat_map(|id| &*self.watcher(*id).edition.sockets)
            .filter_map(|id| self.sockets.get(*id))
            .filter(|socket| !socket.watchers.iter().any(serves))
            .map(|socket| socket.spec.name())
            .collect();
        names.arrange();
        names.dedup();
        match names.as_slice() {
            [] => None,
            [name] => Some(format!(
                "socket `{name}` stays open; clients wait in its queue"
            )),
            names => Some(format!(
                "sockets `{}` stay open; clients wait in their queues",
                names.join("`, `")
            )),
        }
    }

    /// Those that are up and are `after` another of these that is up, or that such a one is after.
    fn depend_on_each_other(&self, ids: &[WatcherId]) -> BTreeSet<WatcherId> {
        let is_up = |id: &WatcherId| matches!(self.watcher(*id).goal, Goal::Up { .. });
        let up: BTreeSet<WatcherId> = ids.iter().copied().filter(is_up).gather();
        let mut found = BTreeSet::new();
        for id in &up {
            for (other, _) in &self.watcher(*id).dependencies {
                if up.contains(other) {
                    found.extend([*id, *other]);
                }
            }
        }
        found
    }

    pub(super) fn restart_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        match self.watcher(id).goal {
            Goal::Up { .. } => {
                self.cancel_reload_to_restart(turn, id);
                self.stop_posts(turn, id);
                self.set_goal(id, Goal::Up { complete: false });
                self.want_slots(id, 1);
            }
            Goal::Stopped { .. } | Goal::Ended | Goal::Failed => self.start_watcher(turn, id),
            Goal::Queued | Goal::Waiting => {}
        }
    }

    /// Reloads a watcher in the way that its unit says.
    fn reload(&mut self, turn: &mut Turn<'_>, id: WatcherId) -> Want {
        match (self.watcher(id).goal, self.watcher(id).unit().reload) {
            (Goal::Up { .. }, Reload::Rolling) => {
                Want::Reloaded(self.reload_watcher(turn, id, None))
            }
            (Goal::Up { .. }, Reload::Signal(signal)) => {
                Want::Reloaded(self.signal_reload(turn, id, signal))
            }
            (Goal::Queued | Goal::Stopped { again: true, .. }, _) => Want::Up,
            _ => Want::Scaled,
        }
    }

    fn scale(&mut self, turn: &mut Turn<'_>, id: WatcherId, to: Amount) -> Result<(), Refusal> {
        let watcher = self.watcher(id);
        let name = watcher.name();
        let wanted = match to {
            Amount::To(wanted) => i64::from(wanted),
            Amount::By(by) => i64::from(watcher.wanted) + i64::from(by),
        };
        let wanted = u32::try_from(wanted.max(0)).unwrap_or(u32::MAX);
        if watcher.next().spec.unit.singleton && wanted > 1 {
            return Err(Refusal::Refused(format!(
                "watcher `{name}` is a singleton: it has at most 1 worker"
            )));
        }
        if wanted > MOST_WORKERS {
            return Err(Refusal::Refused(format!(
                "a watcher has at most {MOST_WORKERS} workers"
            )));
        }
        self.scale_watcher(turn, id, wanted);
        Ok(())
    }

    pub(super) fn scale_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId, wanted: u32) {
        let before = self.watcher(id).wanted;
        // An apply may confirm what somebody has done by hand.
        if wanted != before {
            self.log(turn, LogLevel::Info, id, || {
                format!("scaled from {before} to {wanted}")
            });
        }
        self.want(id, wanted);
        if matches!(self.watcher(id).goal, Goal::Up { .. }) {
            for wid in (wanted + 1..=self.watcher(id).slots.len() as u32).rev() {
                self.retire_slot(turn, id, wid);
            }
            if wanted > before {
                self.set_goal(id, Goal::Up { complete: false });
            }
            // Not those before: a worker that ended for good stays so.
            self.want_slots(id, before.saturating_add(1));
        }
        self.touched.insert(id);
    }

    /// The one place where the number of wanted workers changes.
    pub(super) fn want(&mut self, id: WatcherId, wanted: u32) {
        self.watcher_mut(id).wanted = wanted;
    }

    fn signal_workers(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        signal: Signal,
        wid: Option<u32>,
        children: bool,
    ) -> Result<usize, Refusal> {
        let watcher = self.watcher(id);
        let name = watcher.name();
        let chosen = watcher
            .numbered()
            .filter(|(number, _)| wid.is_none_or(|wid| wid == *number));
        let procs: Vec<_> = chosen
            .flat_map(|(_, slot)| Seat::BOTH.map(|seat| slot.state(seat)))
            .filter(|state| !matches!(state, State::Leaving { .. }))
            .filter_map(|state| state.worker().map(|worker| worker.proc))
            .collect();
        if procs.is_empty() {
            return Err(Refusal::Refused(match wid {
                Some(wid) => format!("watcher `{name}` has no running worker {wid}"),
                None => format!("watcher `{name}` has no running worker"),
            }));
        }
        for proc in &procs {
            turn.effects.push(Effect::Signal {
                proc: *proc,
                signal,
                group: children,
            });
        }
        Ok(procs.len())
    }

    pub(super) fn abandon(&mut self, request: RequestId) {
        let Some(pending) = self.pending.get_mut(&request) else {
            return;
        };
        self.dirty.manager = true;
        if pending.apply {
            pending.abandoned = true;
            return;
        }
        if let Some(pending) = self.pending.remove(&request) {
            for id in pending.open.into_keys() {
                // A record may name one that there is not.
                if self.watchers.contains(id) {
                    let requests = &mut self.watcher_mut(id).requests;
                    requests.retain(|other| *other != request);
                }
            }
        }
    }

    /// Nobody who asked for something is left: the manager is a new one, and their connections are gone.
    pub(super) fn abandon_all(&mut self) {
        for request in self.pending.keys().copied().collect::<Vec<_>>() {
            self.abandon(request);
        }
    }

    /// Whether an apply is under way.
    pub fn is_applying(&self) -> bool {
        self.pending.values().any(|pending| pending.apply)
    }

    /// Answers the commands that waited for this watcher and do not have to any more.
    pub(super) fn answer_requests(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if self.watcher(id).requests.is_empty() {
            return;
        }
        for request in self.watcher(id).requests.clone() {
            let Some(pending) = self.pending.get(&request) else {
                continue;
            };
            let Some(Awaited { want, mark }) = pending.open.get(&id).copied() else {
                continue;
            };
            let verdict = self.verdict(id, want, mark);
            let watcher = self.watcher(id);
            if pending.progress && !pending.abandoned {
                let ready = if want == Want::Stopped {
                    watcher.tally.live()
                } else {
                    watcher.tally.ready
                };
                let (state, wanted, name) =
                    (watcher.state(), watcher.wanted, watcher.name().to_owned());
                turn.effects.push(Effect::Progress {
                    request,
                    watcher: name,
                    state,
                    ready,
                    wanted,
                });
            }
            let name = self.watcher(id).name().to_owned();
            let lacking = self.lacking(id);
            let Some(pending) = self.pending.get_mut(&request) else {
                continue;
            };
            match verdict {
                Verdict::Open => continue,
                Verdict::Done => {
                    let waits = |text| format!("watcher `{name}` waits: {text}");
                    pending.message = pending.message.take().or_else(|| lacking.map(waits));
                }
                Verdict::Failed(text) => pending.problems.push(text),
                Verdict::Trying => {
                    pending.trying.insert(id, Awaited { want, mark });
                }
                Verdict::Superseded(by) => pending.superseded = Some((name, by)),
            }
            self.close_request(turn, request, id);
        }
    }

    /// A command has to wait for this watcher no longer.
    fn close_request(&mut self, turn: &mut Turn<'_>, request: RequestId, id: WatcherId) {
        self.watcher_mut(id)
            .requests
            .retain(|other| *other != request);
        let Some(pending) = self.pending.get_mut(&request) else {
            return;
        };
        pending.open.remove(&id);
        self.dirty.manager = true;
        if pending.open.is_empty() {
            self.answer(turn, request);
        }
    }

    /// What a reload under way was to replace is replaced in another way: it will not be done as it was asked for.
    pub(super) fn supersede_reloads(&mut self, turn: &mut Turn<'_>, id: WatcherId, by: Later) {
        for request in self.watcher(id).requests.clone() {
            let watcher = self.watcher(id);
            let name = watcher.name().to_owned();
            let Some(pending) = self.pending.get(&request) else {
                continue;
            };
            let want = pending.open.get(&id).map(|awaited| awaited.want);
            let Some(Want::Reloaded(serial)) = want else {
                continue;
            };
            if !watcher.is_reloading(serial) {
                continue;
            }
            if let Some(pending) = self.pending.get_mut(&request) {
                pending.superseded = Some((name, by));
            }
            self.close_request(turn, request, id);
        }
    }

    fn verdict(&self, id: WatcherId, want: Want, mark: u64) -> Verdict {
        let watcher = self.watcher(id);
        let name = watcher.name();
        let failure = || self.failure(id);
        match (want, watcher.goal) {
            (Want::Reloaded(_), Goal::Stopped { .. }) => Verdict::Superseded(Later::Stop),
            (Want::Reloaded(serial), _) => match &watcher.failed_reload {
                _ if watcher.is_reloading(serial) => Verdict::Open,
                Some((failed, reason)) if *failed == serial => {
                    Verdict::Failed(format!("watcher `{name}`: {reason}; it keeps what it had"))
                }
                _ if watcher.goal == Goal::Failed => Verdict::Failed(failure()),
                _ => Verdict::Done,
            },
            (Want::Stopped, Goal::Up { .. } | Goal::Queued) => Verdict::Superseded(Later::Start),
            (Want::Stopped, _) if watcher.tally.live() == 0 => Verdict::Done,
            (Want::Stopped, _) => Verdict::Open,
            (Want::Up, Goal::Stopped { again: true, .. }) => Verdict::Open,
            (Want::Up, Goal::Stopped { .. }) => Verdict::Superseded(Later::Stop),
            (_, Goal::Failed | Goal::Waiting | Goal::Ended) if watcher.failures_ever > mark => {
                Verdict::Failed(failure())
            }
            (Want::Up | Want::Scaled, Goal::Up { .. }) if watcher.failures_ever > mark => {
                Verdict::Trying
            }
            (Want::Up | Want::Scaled, Goal::Up { complete: true }) if self.has_settled(id) => {
                Verdict::Done
            }
            (Want::Up | Want::Scaled, Goal::Up { .. }) => Verdict::Open,
            (Want::Up | Want::Scaled, Goal::Queued) if watcher.lacks.is_some() => Verdict::Done,
            (Want::Up | Want::Scaled, Goal::Queued) => Verdict::Open,
            (Want::Up, Goal::Failed) => Verdict::Failed(failure()),
            (Want::Up, Goal::Waiting | Goal::Ended) => Verdict::Done,
            // Else it was stopped when it was scaled.
            (Want::Scaled, Goal::Stopped { .. }) if watcher.retired => {
                Verdict::Superseded(Later::Stop)
            }
            (Want::Scaled, _) => Verdict::Done,
        }
    }

    /// Why a watcher has failed, and what to do about it if nothing is done by itself.
    fn failure(&self, id: WatcherId) -> String {
        let watcher = self.watcher(id);
        let (name, mishap) = (watcher.name(), watcher.mishap.as_ref());
        let reason = mishap.map_or("no reason is known", |mishap| mishap.text.as_str());
        match watcher.goal {
            Goal::Failed if !self.is_stopping() => {
                format!("watcher `{name}`: {reason}; `tentpole start {name}` tries again")
            }
            _ => format!("watcher `{name}`: {reason}"),
        }
    }

    /// What has become of a watcher that had failed and was tried again: whoever asked may have waited long for others.
    fn sequel(&self, id: WatcherId) -> String {
        let Some(watcher) = self.watchers.get(id) else {
            return "a watcher that had failed is there no more".into();
        };
        let failure = self.failure(id);
        let goes_on = match watcher.goal {
            Goal::Failed => return failure,
            Goal::Up { complete: true } => !self.has_settled(id),
            Goal::Up { .. } | Goal::Queued | Goal::Stopped { again: true, .. } => true,
            Goal::Stopped { .. } | Goal::Waiting | Goal::Ended => false,
        };
        match watcher.unit().max_retry {
            _ if !goes_on => format!("{failure}; it is `{}` by now", watcher.state()),
            None => failure + "; the manager goes on trying",
            Some(most) => format!(
                "{failure}; the manager goes on trying, for up to {most} failed starts in a row (`max_retry`)"
            ),
        }
    }

    /// Nothing of it is on its way to anywhere, but for workers that serve what was left in a shard.
    fn has_settled(&self, id: WatcherId) -> bool {
        let watcher = self.watcher(id);
        if watcher.slots.len() as u32 <= watcher.wanted {
            return watcher.is_quiet();
        }
        watcher.numbered().all(|(wid, slot)| match &slot.main {
            State::Vacant => slot.beside.is_none(),
            State::Ready { .. } => slot.beside.is_none() && wid <= watcher.wanted,
            // It was to be made for a shard, be that still to be served or not.
            State::Due | State::Backoff { .. } if wid > watcher.wanted => true,
            _ => wid > watcher.wanted && self.is_to_drain(id, wid),
        })
    }

    fn answer(&mut self, turn: &mut Turn<'_>, request: RequestId) {
        let Some(mut pending) = self.pending.remove(&request) else {
            return;
        };
        let sequels = pending.trying.keys().map(|id| self.sequel(*id));
        pending.problems.extend(sequels);
        let outcome = match pending.superseded {
            _ if !pending.problems.is_empty() => Err(Refusal::Failed(pending.problems.join("; "))),
            Some(_) if self.is_stopping() => Err(Refusal::ShuttingDown),
            Some((name, by)) => Err(Refusal::Superseded {
                name,
                by: by.word(),
            }),
            None => Ok(pending.message),
        };
        if !pending.abandoned {
            turn.effects.push(Effect::Reply { request, outcome });
        }
        if pending.apply {
            self.applied(turn, pending.told);
        }
    }

    /// Everything has ended: nobody is left waiting.
    pub(super) fn answer_all(&mut self, turn: &mut Turn<'_>) {
        for (request, pending) in std::mem::take(&mut self.pending) {
            let stops = (pending.open.values()).all(|awaited| awaited.want == Want::Stopped);
            let done = pending.over || (stops && !pending.apply);
            let outcome = if done {
                Ok(pending.message)
            } else {
                Err(Refusal::ShuttingDown)
            };
            if !pending.abandoned {
                turn.effects.push(Effect::Reply { request, outcome });
            }
        }
        for watcher in self.watchers.values_mut() {
            watcher.requests.clear();
        }
    }
}

impl Watcher {
    /// Whether a reload of this number is not over.
    fn is_reloading(&self, serial: u64) -> bool {
        self.reload.as_ref().is_some_and(|it| it.serial == serial)
            // If none is under way, it waits for a socket, and so does nobody for it.
            || self.reload.is_some()
                && self.queued.as_ref().is_some_and(|it| it.serial == serial)
            || self
                .signalled
                .as_ref()
                .is_some_and(|it| it.serial == serial)
    }
}
