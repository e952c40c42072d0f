//! What the supervisor did and shows, against what must be.

use super::apply::is_same;
use super::*;
use std::fmt::Debug;
use tentpole::supervise::{Refusal, SocketState, View, WorkerState};

impl Rules {
    pub(super) fn compare(&mut self, effects: &[Effect]) -> Result<(), String> {
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
            if let (Key::Worker(id, wid, generation), Effect::Spawn { proc, .. }) = (key, effect) {
                let known = self.procs.insert(*proc, (id, wid, generation));
                if known.is_some_and(|known| known != (id, wid, generation)) {
                    return Err(format!("{proc:?} is not a new name"));
                }
                let slot = self
                    .watchers
                    .get_mut(&id)
                    .and_then(|it| it.slots.get_mut(&wid));
                for worker in slot
                    .into_iter()
                    .flat_map(|it| [&mut it.main, &mut it.beside])
                {
                    if worker.generation == generation {
                        worker.proc = Some(*proc);
                    }
                }
                spawns.push((id, wid, generation));
            }
        }
        if let Some(it) = queues.into_values().flatten().last() {
            let name = self.name_of(it.key);
            return Err(format!(
                "{name}: {:?} is missing, since {}",
                it.act, it.reason
            ));
        }
        let first_starts = |all: &[(usize, u32, u64)]| -> Vec<(usize, u32, u64)> {
            let is_first = |(_, _, generation): &&(usize, u32, u64)| *generation == 1;
            all.iter().filter(is_first).copied().collect()
        };
        let in_order: Vec<(usize, u32, u64)> = (expected.iter())
            .filter_map(|it| match (it.key, &it.act) {
                (Key::Worker(id, wid, generation), Act::Spawn(_)) => Some((id, wid, generation)),
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
            Effect::Spawn {
                watcher,
                wid,
                generation,
                ..
            } => Key::Worker(watcher.0 as usize, *wid, *generation),
            Effect::MoveShard { socket, from, .. } => Key::Shard(socket.0 as usize, *from),
            Effect::CloseShard { socket, wid }
            | Effect::ShutShard { socket, wid }
            | Effect::OpenShard { socket, wid } => Key::Shard(socket.0 as usize, *wid),
            Effect::CancelSpawn { proc }
            | Effect::Signal { proc, .. }
            | Effect::Follow { proc, .. }
            | Effect::Kill { proc }
            | Effect::KillLeftovers { proc }
            | Effect::AwaitLeftovers { proc }
            | Effect::Drain { proc, .. } => match self.procs.get(proc) {
                Some((id, wid, generation)) => Key::Worker(*id, *wid, *generation),
                None => return Err(format!("{proc:?} is none that was spawned before")),
            },
            Effect::Open { socket, .. }
            | Effect::Change { socket, .. }
            | Effect::Close { socket }
            | Effect::Watch { socket, .. }
            | Effect::Unwatch { socket }
            | Effect::Bind { socket } => Key::Socket(socket.0 as usize),
            Effect::Reply { request, .. } => Key::Request(*request),
            Effect::Parent(ParentNotice::Status(_))
            | Effect::Progress { .. }
            | Effect::Log { .. } => return Ok(None),
            Effect::Parent(_) | Effect::Finish { .. } => Key::Manager,
        }))
    }

    fn fits(&self, act: &Act, effect: &Effect) -> bool {
        match (act, effect) {
            (Act::Spawn(of), Effect::Spawn { spec, sockets, .. }) => {
                let ids: Vec<usize> = sockets.iter().map(|socket| socket.0 as usize).collect();
                is_same(&of.spec, spec) && of.sockets == ids
            }
            (
                Act::Signal(signal, group),
                Effect::Signal {
                    signal: sent,
                    group: to_group,
                    ..
                },
            ) => (signal, group) == (sent, to_group),
            (Act::Follow(pid), Effect::Follow { pid: to, .. }) => *pid == to.0,
            (Act::Open(spec), Effect::Open { spec: with, .. })
            | (Act::Change(spec), Effect::Change { spec: with, .. }) => is_same(spec, with),
            (Act::Cancel, Effect::CancelSpawn { .. })
            | (Act::Kill, Effect::Kill { .. })
            | (Act::KillLeftovers, Effect::KillLeftovers { .. })
            | (Act::AwaitLeftovers, Effect::AwaitLeftovers { .. })
            | (Act::CloseShard, Effect::CloseShard { .. })
            | (Act::ShutShard, Effect::ShutShard { .. })
            | (Act::OpenShard, Effect::OpenShard { .. })
            | (Act::Close, Effect::Close { .. })
            | (Act::Unwatch, Effect::Unwatch { .. })
            | (Act::Bind, Effect::Bind { .. }) => true,
            (Act::MoveShard(wid), Effect::MoveShard { to, .. }) => wid == to,
            (Act::Watch(wids), Effect::Watch { shards, .. }) => wids == shards,
            (Act::Drain(shards), Effect::Drain { sockets, .. }) => {
                let ids: Vec<usize> = sockets.iter().map(|socket| socket.0 as usize).collect();
                *shards == ids
            }
            (Act::Parent(notice), Effect::Parent(told)) => notice == told,
            (Act::Finish(code), Effect::Finish { code: with }) => code == with,
            (Act::Reply(answer), Effect::Reply { outcome, .. }) => match (answer, outcome) {
                (Answer::Done, Ok(_))
                | (Answer::Refused, Err(Refusal::Refused(_)))
                | (Answer::ShuttingDown, Err(Refusal::ShuttingDown)) => true,
                (Answer::NoSuchWatcher(name), Err(Refusal::NoSuchWatcher { name: said })) => {
                    name == said
                }
                (Answer::IsSocket(name), Err(Refusal::IsSocket { name: said, .. })) => name == said,
                (Answer::Failed(words), Err(Refusal::Failed(text))) => {
                    let is_said = |word: &String| word.split('|').any(|word| text.contains(word));
                    let goes_on = |word: &String| word.contains(super::GOES_ON);
                    words.iter().all(is_said)
                        && (!text.contains(super::GOES_ON) || words.iter().any(goes_on))
                }
                (Answer::Superseded(all), Err(Refusal::Superseded { name, by })) => {
                    all.contains(&(name.clone(), *by))
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn name_of(&self, key: Key) -> String {
        let name = |id: usize| (self.watchers.get(&id)).map_or("(gone)", |it| it.own.spec.name());
        match key {
            Key::Worker(id, wid, generation) => {
                format!(
                    "watcher `{}` worker {wid} generation {generation}",
                    name(id)
                )
            }
            Key::Shard(index, wid) => format!("shard {wid} of socket {index}"),
            Key::Socket(index) => format!("socket {index}"),
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
        same(
            || "the number of sockets".into(),
            view.sockets.len(),
            self.sockets.len(),
        )?;
        for shown in &view.sockets {
            let Some(socket) = self.sockets.get(&(shown.id.0 as usize)) else {
                return Err(format!(
                    "socket `{}` is shown and there is none",
                    shown.name
                ));
            };
            same(|| "a socket's name".into(), shown.name, socket.spec.name())?;
            let state = if !socket.bound {
                SocketState::Failed
            } else if socket.paused.is_some() {
                SocketState::Paused
            } else if socket.watched.is_some() {
                SocketState::Armed
            } else {
                SocketState::Listening
            };
            let of = |what: &str| format!("{what} of socket `{}`", shown.name);
            same(|| of("the state"), shown.state, state)?;
            same(
                || of("the watching"),
                shown.watched,
                socket.watched.is_some(),
            )?;
            let index = shown.id.0 as usize;
            let users = self.ids().into_iter().map(|id| &self.watchers[&id]);
            let users: Vec<&str> = (users.filter(|watcher| watcher.refers_to(index)))
                .map(|watcher| watcher.own.spec.name())
                .collect();
            same(|| of("the users"), &shown.watchers, &users)?;
            let wrong = matches!(state, SocketState::Failed | SocketState::Paused);
            same(
                || of("whether an error is shown"),
                shown.error.is_some(),
                wrong,
            )?;
        }
        let shown: Vec<usize> = view.watchers.iter().map(|it| it.id.0 as usize).collect();
        same(|| "the order of watchers".into(), shown, self.ids())?;
        for (id, shown) in self.ids().into_iter().zip(&view.watchers) {
            let watcher = &self.watchers[&id];
            let of = |what: &str| format!("{what} of watcher `{}`", shown.name);
            let state = self.state_of(id);
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
            let error = shown.error.as_deref().unwrap_or_default();
            let end = watcher.last_end.filter(|_| watcher.goal == Goal::Ended);
            let tells_end = end.is_some_and(|end| !end.done);
            if tells_end && !error.ends_with("it is not restarted") {
                return Err(of("how the last worker ended is not shown"));
            }
            let rests = watcher.count(|life| matches!(life, Life::Resting { .. })) > 0;
            if rests && watcher.mishap == Mishap::Start && !error.contains("next try in") {
                return Err(of("a worker waits for its restart, and that is not shown"));
            }
            let waits = watcher.goal == Goal::Waiting && !watcher.lives();
            if waits && watcher.mishap == Mishap::Return && !error.ends_with("times in a row") {
                return Err(of("that its workers leave clients waiting is not shown"));
            }
            let shows_lack = error.contains(" is not bound: ");
            let is_right = match watcher.goal {
                Goal::Queued => shows_lack == self.lacks(id),
                Goal::Up { .. } if self.queued_lacks(id) => !error.is_empty(),
                _ => !shows_lack,
            };
            if !is_right {
                return Err(of("whether it waits for a socket is not what is shown"));
            }
            let needs = watcher.needs.keys().map(|other| &self.watchers[other]);
            let mut awaited: Vec<&str> = (needs)
                .filter(|other| watcher.goal == Goal::Queued && other.goal.is_on_its_way())
                .map(|other| other.own.spec.name())
                .collect();
            awaited.sort();
            same(|| of("whom it waits for"), &shown.waits_for, &awaited)?;
            let tells_end = tells_end || shows_lack;
            // It tells too why it has a worker that is not wanted.
            let rests = |(wid, slot): (&u32, &Slot)| {
                *wid > watcher.wanted && matches!(slot.main.life, Life::Resting { .. })
            };
            let is_draining = watcher.slots.iter().any(rests);
            let is_unexplained = watcher.mishap == Mishap::None && !tells_end && !is_draining;
            if is_unexplained && shown.error.is_some() {
                return Err(of(
                    "an error is shown, and nothing went wrong since the start",
                ));
            }
            let tells = |error: &String| error.starts_with("reload: ");
            let tells = tells_end || shown.error.as_ref().is_some_and(tells);
            if watcher.mishap == Mishap::Reload && !tells {
                return Err(of("the failed reload is not shown"));
            }
            let mut workers = shown.workers.iter();
            let seats = (watcher.slots.iter())
                .flat_map(|(wid, slot)| [(wid, &slot.main), (wid, &slot.beside)])
                .filter(|(_, worker)| worker.life.runs());
            for (wid, ours) in seats {
                let Some(worker) = workers.next() else {
                    return Err(of("a worker is missing in the list"));
                };
                let state = match ours.life {
                    Life::Draining { .. } | Life::Ending { .. } | Life::Clearing { .. } => {
                        WorkerState::Stopping
                    }
                    Life::Serving { .. } if ours.reloading => WorkerState::Reloading,
                    Life::Serving { .. } => WorkerState::Ready,
                    _ => WorkerState::Starting,
                };
                same(
                    || of("a worker"),
                    (worker.wid, Some(worker.proc), worker.pid.0, worker.state),
                    (*wid, ours.proc, ours.pid, state),
                )?;
                same(
                    || of("generation, status and age of a worker"),
                    (worker.generation, worker.status, worker.since),
                    (ours.generation, ours.status.as_deref(), ours.since),
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
        for (id, watcher) in &self.watchers {
            let is_settled = match watcher.goal {
                // There always may be one that has just become too old, even before the last has come.
                Goal::Up { .. } if watcher.own.spec.unit.max_age.is_some() => true,
                Goal::Up { complete } => {
                    let is_over = watcher.reload.is_none() && watcher.signalled.is_none();
                    complete && watcher.is_quiet() && is_over
                }
                Goal::Queued => self.is_kept_waiting(*id),
                Goal::Down { held: true, .. } => false,
                Goal::Down { held: false, .. } | Goal::Waiting | Goal::Ended | Goal::Failed => {
                    !watcher.lives()
                }
            };
            if !is_settled {
                return Err(format!(
                    "watcher `{}` is {:?} long after the last fault: {:?}",
                    watcher.own.spec.name(),
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

    /// It waits for a socket, which may take longer than any calm, or for another that does.
    fn is_kept_waiting(&self, id: usize) -> bool {
        let queued = |other: &&usize| self.watchers[*other].goal == Goal::Queued;
        let mut needs = self.watchers[&id].needs.keys().filter(queued);
        self.lacks(id) || needs.any(|other| self.is_kept_waiting(*other))
    }

    /// Whether the time of a forced stop is over too, so that the manager ends without what it could not kill.
    pub fn is_beyond_force(&self) -> bool {
        self.said.contains_key("ended without what can't be killed")
    }
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
