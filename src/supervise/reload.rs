//! Replacing workers while they serve. The rules stand at the head of [`super`].

use super::state::{Edition, Goal, Mishap, Post, Queued, Reload, Signalled, State, Why, Worker};
use super::timers::Due;
use super::{Effect, ProcId, SocketId, Supervisor, Time, Turn, WatcherId};
use crate::unit::{self, Gather, LogLevel, Signal, WatcherKind};
use std::collections::BTreeSet;
use std::time::Duration;

/// After a replacement for age has failed, the next try comes no sooner.
const SHORTEST_AGE_RETRY: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Begins to replace every worker of a watcher that is up, by ones of a new edition if there is one; or will when the
    /// reload that is under way is over, and the new ones have the sockets that they can't do without. The answer is the
    /// reload's serial number.
    pub(super) fn reload_watcher(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        edition: Option<Edition>,
    ) -> u64 {
        let lacks = edition.as_ref().and_then(|it| self.lacks_of(it));
        let watcher = self.watcher_mut(id);
        if watcher.reload.is_some() || lacks.is_some() {
            let (serial, before) = match watcher.queued.take() {
                Some(queued) => (queued.serial, queued.edition),
                None => {
                    watcher.reloads += 1;
                    (watcher.reloads, None)
                }
            };
            // One without a new definition must not make that of another forgotten.
            let edition = edition.or(before);
            watcher.queued = Some(Box::new(Queued { serial, edition }));
            self.users_stale = true;
            return serial;
        }
        watcher.reloads += 1;
        let serial = watcher.reloads;
        if edition.is_some() {
            // It waited for a socket, and there is a newer one now.
            watcher.queued = None;
        }
        self.begin_reload(turn, id, serial, edition);
        serial
    }

    /// Begins the reload that waits, unless it has to go on waiting; whether there was one.
    pub(super) fn begin_queued(&mut self, turn: &mut Turn<'_>, id: WatcherId) -> bool {
        if self.watcher(id).reload.is_some() || self.queued_lacks(id).is_some() {
            return false;
        }
        let Some(queued) = self.watcher_mut(id).queued.take() else {
            return false;
        };
        let Queued { serial, edition } = *queued;
        self.begin_reload(turn, id, serial, edition);
        true
    }

    /// The socket that a reload waits for, if there is one.
    pub(super) fn queued_lacks(&self, id: WatcherId) -> Option<SocketId> {
        let queued = self.watcher(id).queued.as_ref()?;
        self.lacks_of(queued.edition.as_ref()?)
    }

    fn begin_reload(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        serial: u64,
        edition: Option<Edition>,
    ) {
        let since = ProcId(self.next_proc);
        let has_edition = edition.is_some();
        let watcher = self.watcher_mut(id);
        let to = match edition {
            Some(edition) => {
                let number = edition.number;
                watcher.others.push(edition);
                number
            }
            None => watcher.edition.number,
        };
        let todo = (watcher.numbered())
            .filter(|(_, slot)| !slot.is_vacant())
            .map(|(wid, _)| wid)
            .gather();
        watcher.reload = Some(Box::new(Reload {
            serial,
            to,
            since,
            todo,
            aged: None,
            failure: None,
        }));
        self.users_stale |= has_edition;
        self.touched.insert(id);
        let watcher = self.watcher(id);
        if watcher.unit().on_demand.value && !watcher.next().spec.unit.on_demand.value {
            // Nobody is going to start those that ended well.
            self.want_slots(id, 1);
        }
        self.log(turn, LogLevel::Info, id, || "is reloaded".into());
    }

    /// A worker has reached its `max_age`.
    pub(super) fn expire_worker(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32) {
        let since = ProcId(self.next_proc);
        let is_wanted = self.is_wanted(id, wid);
        let later = turn.now + self.age_pause(id);
        let watcher = self.watcher_mut(id);
        match &mut watcher.reload {
            Some(reload)
                if is_wanted && reload.to == watcher.edition.number && reload.failure.is_none() =>
            {
                reload.todo.insert(wid);
                if let Some(aged) = &mut reload.aged {
                    aged.insert(wid);
                }
            }
            None if is_wanted => {
                watcher.reloads += 1;
                watcher.reload = Some(Box::new(Reload {
                    serial: watcher.reloads,
                    to: watcher.edition.number,
                    since,
                    todo: BTreeSet::from([wid]),
                    aged: Some(BTreeSet::from([wid])),
                    failure: None,
                }));
            }
            // The reload replaces this one too, or goes back; or the worker is to end anyhow, or kept for others.
            Some(_) | None => {
                self.set_expiry(id, wid, Some(later));
                return;
            }
        }
        // It is going to be replaced; if that comes to nothing, `look_at_ages` sees that no age is set.
        self.set_expiry(id, wid, None);
        self.touched.insert(id);
        self.log(turn, LogLevel::Info, id, || {
            format!("worker {wid} is replaced: it has reached its `max_age`")
        });
    }

    fn set_expiry(&mut self, id: WatcherId, wid: u32, expires: Option<Time>) {
        let main = Post::main(id, wid);
        let mut state = self.take_state(main);
        if let Some(worker) = state.worker_mut() {
            worker.expires = expires;
        }
        self.set_state(main, state);
    }

    /// How long it takes until a worker that is too old is looked at again.
    fn age_pause(&self, id: WatcherId) -> Duration {
        let pause = self.watcher(id).unit().restart_max_delay;
        pause.max(SHORTEST_AGE_RETRY)
    }

    /// Whether a process of this wid is one that the reload under way has brought.
    pub(super) fn is_replacement(&self, id: WatcherId, wid: u32, proc: ProcId) -> bool {
        let reload = &self.watcher(id).reload;
        reload.as_ref().is_some_and(|reload| {
            let is_meant = reload.aged.as_ref().is_none_or(|aged| aged.contains(&wid));
            proc >= reload.since && is_meant
        })
    }

    /// Takes the next steps of the reload that is under way.
    pub(super) fn advance_reload(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let Some(reload) = &self.watcher(id).reload else {
            return;
        };
        let since = reload.since;
        let unit = &self.watcher(id).next().spec.unit;
        let (surge, singleton) = (unit.reload_surge.max(1), unit.singleton);
        for wid in reload.todo.clone() {
            let watcher = self.watcher(id);
            let has_room = watcher.tally.beside < surge;
            let slot = watcher.slots.get(wid as usize - 1);
            let Some(slot) = slot.filter(|_| wid <= watcher.wanted) else {
                self.replaced(id, wid);
                continue;
            };
            match &slot.main {
                State::Vacant => self.replaced(id, wid),
                // The new definition may be what cures it.
                State::Backoff { .. } => {
                    self.slot_mut(id, wid).attempt = 0;
                    self.set_state(Post::main(id, wid), State::Due);
                }
                State::Ready { worker, .. } if worker.proc >= since => self.replaced(id, wid),
                State::Starting { worker, .. }
                | State::Settling { worker, .. }
                | State::Ready { worker, .. }
                    if worker.proc < since =>
                {
                    if singleton {
                        self.dismiss_post(turn, Post::main(id, wid));
                    } else if slot.beside.is_none() && has_room {
                        self.set_state(Post::beside(id, wid), State::Due);
                    }
                }
                // It becomes what is wanted, or comes to an end, by itself.
                _ => {}
            }
        }
        let watcher = self.watcher(id);
        let is_over = (watcher.reload.as_ref()).is_some_and(|reload| reload.todo.is_empty());
        if is_over && watcher.tally.beside == 0 {
            self.finish_reload(turn, id);
            // Of the one that waited for it.
            self.advance_reload(turn, id);
        }
    }

    /// A wid needs nothing more from the reload.
    pub(super) fn replaced(&mut self, id: WatcherId, wid: u32) {
        if let Some(reload) = &mut self.watcher_mut(id).reload {
            reload.todo.remove(&wid);
        }
        self.touched.insert(id);
    }

    /// The replacement is ready: it takes the main place, and who had that is stopped.
    pub(super) fn promote(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32) {
        let (main, beside) = (Post::main(id, wid), Post::beside(id, wid));
        let replacement = self.take_state(beside);
        let replaced = self.take_state(main);
        // It was on its way out by its own doing, and this is what makes it good.
        let was_failing = matches!(
            &replaced,
            State::Stopping { why, .. } | State::Leaving { why, .. } if *why != Why::Asked
        );
        self.set_state(main, replacement);
        self.set_state(beside, replaced);
        self.slot_mut(id, wid).attempt = 0;
        self.watcher_mut(id).restarts += u64::from(was_failing);
        self.dismiss_post(turn, beside);
    }

    /// A process that the reload has brought came to nothing: all goes back to how it was.
    pub(super) fn replacement_failed(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        wid: u32,
        text: &str,
    ) {
        let since = ProcId(self.next_proc);
        let watcher = self.watcher_mut(id);
        let old = watcher.edition.number;
        let alive: Vec<(u32, Option<u32>)> = (watcher.numbered())
            .map(|(wid, slot)| (wid, slot.main.edition()))
            .collect();
        let Some(reload) = &mut watcher.reload else {
            return;
        };
        if reload.failure.is_some() {
            reload.todo.remove(&wid);
            self.log(turn, LogLevel::Error, id, || {
                format!("worker {wid} could not be put back: its replacement {text}")
            });
            return;
        }
        let failed = std::mem::replace(&mut reload.to, old);
        reload.failure = Some(format!("the replacement of worker {wid} {text}"));
        reload.since = since;
        // What was replaced goes back if it is not the same anyhow.
        reload.todo = (alive.into_iter())
            .filter(|(_, edition)| failed != old && *edition == Some(failed))
            .map(|(wid, _)| wid)
            .gather();
        self.touched.insert(id);
        self.log(turn, LogLevel::Error, id, || {
            format!("the reload has failed and goes back: the replacement of worker {wid} {text}")
        });
        for wid in 1..=self.watcher(id).slots.len() as u32 {
            let beside = Post::beside(id, wid);
            if self.state(beside).is_coming() {
                self.stop_post(turn, beside, Why::Asked);
            }
        }
    }

    fn finish_reload(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let Some(reload) = self.watcher_mut(id).reload.take() else {
            return;
        };
        self.touched.insert(id);
        match reload.failure {
            None => {
                self.adopt_edition(id, reload.to);
                let watcher = self.watcher_mut(id);
                if watcher.mishap.as_ref().is_some_and(|it| it.of_reload) {
                    watcher.mishap = None;
                }
                self.log(turn, LogLevel::Debug, id, || "the reload is done".into());
            }
            Some(failure) => self.note_failed_reload(id, reload.serial, failure),
        }
        self.forget_editions(id);
        self.look_at_ages(turn, id);
        self.begin_queued(turn, id);
    }

    fn note_failed_reload(&mut self, id: WatcherId, serial: u64, failure: String) {
        let watcher = self.watcher_mut(id);
        watcher.mishap = Some(Mishap {
            text: format!("reload: {failure}"),
            wid: 0,
            exit_code: 1,
            of_reload: true,
        });
        watcher.failed_reload = Some((serial, failure));
    }

    /// Workers that became too old, and whose replacement came to nothing, are looked at again after a while.
    fn look_at_ages(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let later = turn.now + self.age_pause(id);
        for wid in 1..=self.watcher(id).slots.len() as u32 {
            let main = Post::main(id, wid);
            if let State::Ready { worker, .. } = self.state(main)
                && worker.expires.is_none()
                && self.unit_at(main).max_age.is_some()
            {
                self.set_expiry(id, wid, Some(later));
            }
        }
    }

    /// The watcher is stopped or started as a whole, which leaves nothing to replace; its newest definition is what counts.
    pub(super) fn cancel_reload(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        self.end_signalled(id);
        let watcher = self.watcher_mut(id);
        let was_reloading = watcher.reload.is_some();
        let queued = watcher.queued.take().and_then(|queued| queued.edition);
        if let Some(reload) = watcher.reload.take() {
            match reload.failure {
                None => self.adopt_edition(id, reload.to),
                Some(failure) => self.note_failed_reload(id, reload.serial, failure),
            }
        }
        if let Some(edition) = queued {
            self.take_edition(id, edition);
        }
        if was_reloading {
            self.look_at_ages(turn, id);
        }
        self.forget_editions(id);
        self.touched.insert(id);
    }

    /// The same for a restart. What the watcher can't be yet, since it lacks a socket, it is not by that either: the definition
    /// that can run does, and the other goes on waiting.
    pub(super) fn cancel_reload_to_restart(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let waits = self.queued_lacks(id).is_some();
        let queued = self.watcher_mut(id).queued.take_if(|_| waits);
        self.cancel_reload(turn, id);
        self.watcher_mut(id).queued = queued;
    }

    /// Makes a new definition the watcher's own at once.
    pub(super) fn take_edition(&mut self, id: WatcherId, edition: Edition) {
        let number = edition.number;
        self.watcher_mut(id).others.push(edition);
        self.adopt_edition(id, number);
    }

    /// Makes another definition the watcher's own.
    pub(super) fn adopt_edition(&mut self, id: WatcherId, number: u32) {
        let watcher = self.watcher_mut(id);
        if watcher.edition.number == number {
            return;
        }
        let others = &mut watcher.others;
        if let Some(index) = others.iter().position(|it| it.number == number) {
            let edition = others.swap_remove(index);
            let before = std::mem::replace(&mut watcher.edition, edition);
            watcher.others.push(before);
        }
        self.users_stale = true;
    }

    /// Drops definitions that no process was started from.
    pub(super) fn forget_editions(&mut self, id: WatcherId) {
        let watcher = self.watcher(id);
        if watcher.others.is_empty() {
            return;
        }
        let mut used: BTreeSet<u32> = BTreeSet::new();
        for slot in &watcher.slots {
            used.extend(slot.main.edition());
            used.extend(slot.beside.as_ref().and_then(|state| state.edition()));
        }
        used.extend(watcher.reload.as_ref().map(|reload| reload.to));
        let watcher = self.watcher_mut(id);
        let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut watcher.others)
            .into_iter()
            .partition(|edition| used.contains(&edition.number));
        watcher.others = kept;
        self.users_stale |= !dropped.is_empty();
        let dropped = dropped.iter().map(|edition| (id, edition.number));
        self.dirty.editions.extend(dropped);
    }

    /// Makes a definition a new edition of a watcher, which nothing is started from yet.
    pub(super) fn new_edition(
        &mut self,
        id: WatcherId,
        spec: std::rc::Rc<crate::plan::Watcher>,
        sockets: std::rc::Rc<[SocketId]>,
    ) -> Edition {
        let watcher = self.watcher_mut(id);
        let number = watcher.next_edition;
        watcher.next_edition += 1;
        self.dirty.editions.insert((id, number));
        Edition {
            number,
            spec,
            sockets,
        }
    }

    /// Has the workers reload by themselves. The answer is the reload's serial number.
    pub(super) fn signal_reload(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        signal: Signal,
    ) -> u64 {
        let watcher = self.watcher(id);
        let answers = watcher.unit().kind == WatcherKind::Notify;
        let (mut procs, mut unready) = (BTreeSet::new(), BTreeSet::new());
        for slot in &watcher.slots {
            let (set, worker) = match &slot.main {
                State::Starting { worker, .. } | State::Settling { worker, .. } => {
                    (&mut unready, worker)
                }
                State::Ready { worker, .. } => (&mut procs, worker),
                _ => continue,
            };
            set.insert(worker.proc);
        }
        let until = (watcher.unit().start_timeout)
            .filter(|_| answers && !procs.is_empty())
            .map(|timeout| turn.now + timeout);
        for proc in &procs {
            turn.effects.push(Effect::Signal {
                proc: *proc,
                signal,
                group: false,
            });
        }
        let name = unit::signal_name(signal);
        self.log(turn, LogLevel::Info, id, || {
            let count = procs.len() + unready.len();
            format!("is reloaded by {name} to {count} workers")
        });
        let watcher = self.watcher_mut(id);
        // Who waits for one that is under way waits for this one too.
        let (serial, problems) = match watcher.signalled.take() {
            Some(before) => (before.serial, before.problems),
            None => {
                watcher.reloads += 1;
                (watcher.reloads, Vec::new())
            }
        };
        watcher.signalled = Some(Box::new(Signalled {
            serial,
            awaited: if answers { procs } else { BTreeSet::new() },
            unready,
            problems,
            until,
        }));
        self.timers.set(Due::Signalled(id), until);
        self.end_signalled_if_done(id);
        serial
    }

    /// A worker has become ready: a reload by signal that has waited for that reaches it now.
    pub(super) fn reload_when_ready(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        worker: &Worker,
    ) {
        let unit = &self.watcher(id).edition(worker.edition).spec.unit;
        let (reload, kind, timeout) = (unit.reload, unit.kind, unit.start_timeout);
        let proc = worker.proc;
        let Some(signalled) = &mut self.watcher_mut(id).signalled else {
            return;
        };
        if !signalled.unready.remove(&proc) {
            return;
        }
        if let unit::Reload::Signal(signal) = reload {
            let group = false;
            turn.effects.push(Effect::Signal {
                proc,
                signal,
                group,
            });
            if kind == WatcherKind::Notify {
                signalled.awaited.insert(proc);
                let until = timeout.map(|timeout| turn.now + timeout);
                let until = signalled.until.max(until);
                signalled.until = until;
                self.timers.set(Due::Signalled(id), until);
            }
        }
        self.end_signalled_if_done(id);
    }

    /// A worker asks for more time: if it was asked to reload by a signal, it has it for that.
    pub(super) fn extend_reload(&mut self, id: WatcherId, proc: ProcId, until: Time) {
        if let Some(signalled) = &mut self.watcher_mut(id).signalled
            && signalled.awaited.contains(&proc)
        {
            let until = signalled.until.map(|deadline| deadline.max(until));
            signalled.until = until;
            self.timers.set(Due::Signalled(id), until);
        }
    }

    /// A worker that was asked to reload by a signal has done so.
    pub(super) fn reloaded_itself(&mut self, id: WatcherId, proc: ProcId) {
        if let Some(signalled) = &mut self.watcher_mut(id).signalled
            && signalled.awaited.remove(&proc)
        {
            self.end_signalled_if_done(id);
        }
    }

    /// One that was asked to, or was to be, has ended, which may be why the reload fails.
    pub(super) fn reloads_no_more(&mut self, id: WatcherId, proc: ProcId, problem: Option<String>) {
        if let Some(signalled) = &mut self.watcher_mut(id).signalled
            && (signalled.awaited.remove(&proc) || signalled.unready.remove(&proc))
        {
            signalled.problems.extend(problem);
            self.end_signalled_if_done(id);
        }
    }

    fn end_signalled_if_done(&mut self, id: WatcherId) {
        let signalled = &self.watcher(id).signalled;
        if (signalled.as_ref()).is_some_and(|it| it.awaited.is_empty() && it.unready.is_empty()) {
            self.end_signalled(id);
        }
        self.touched.insert(id);
    }

    pub(super) fn signalled_due(&mut self, id: WatcherId) {
        if !self.watchers.contains(id) {
            return;
        }
        let watcher = self.watcher_mut(id);
        let timeout = watcher.unit().start_timeout.unwrap_or_default();
        if let Some(signalled) = &mut watcher.signalled {
            let count = std::mem::take(&mut signalled.awaited).len();
            signalled.until = None;
            let who = match count {
                1 => "1 worker has".into(),
                _ => format!("{count} workers have"),
            };
            signalled.problems.push(format!(
                "{who} not said RELOADING=1 and then READY=1 within {timeout:?} (`start_timeout`), which ends a reload by signal with `type = \"notify\"`"
            ));
        }
        self.end_signalled_if_done(id);
    }

    fn end_signalled(&mut self, id: WatcherId) {
        let Some(signalled) = self.watcher_mut(id).signalled.take() else {
            return;
        };
        self.timers.set(Due::Signalled(id), None);
        self.touched.insert(id);
        if !signalled.problems.is_empty() {
            self.note_failed_reload(id, signalled.serial, signalled.problems.join("; "));
        }
    }

    /// When a worker that is ready now is too old: `max_age` and up to `max_age_variance` more, so that workers that were
    /// started together do not end together.
    pub(super) fn expiry(&self, id: WatcherId, worker: &Worker, now: Time) -> Option<Time> {
        // Of the definition that the worker has, which in a reload may be either.
        let unit = &self.watcher(id).edition(worker.edition).spec.unit;
        let max_age = unit.max_age?;
        // The core has no randomness of its own; spread evenly is what counts (the step is 2^64 over the golden ratio).
        let mixed = (worker.proc.0 ^ u64::from(id.0) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let share = (mixed >> 40) as u32;
        let variance = unit.max_age_variance.as_nanos() * u128::from(share) / (1 << 24);
        let variance = Duration::from_nanos(u64::try_from(variance).unwrap_or(u64::MAX));
        Some(now + max_age + variance)
    }

    /// Whether a watcher can be reloaded, and if not, why.
    pub(super) fn refuse_reload(&self, id: WatcherId) -> Result<(), String> {
        let watcher = self.watcher(id);
        let name = watcher.name();
        match watcher.goal {
            Goal::Up { .. } if watcher.unit().kind == WatcherKind::Oneshot => Err(format!(
                "watcher `{name}` is a oneshot, whose workers are not replaced; `tentpole restart {name}` runs it again"
            )),
            Goal::Up { .. } | Goal::Queued | Goal::Waiting | Goal::Stopped { again: true, .. } => {
                Ok(())
            }
            Goal::Stopped { .. } | Goal::Ended | Goal::Failed => Err(format!(
                "watcher `{name}` is {}, so there is nothing to reload; `tentpole start {name}` starts it",
                watcher.state()
            )),
        }
    }
}
