//! Reloads: rolling, by age, by signal.

use super::*;
use tentpole::unit::Reload as Way;

/// A rolling reload.
pub(super) struct Reload {
    serial: u64,
    /// What new processes are started from.
    to: Rc<Definition>,
    /// Processes ordered after this many are of the reload.
    after: u64,
    /// Wids that are still to be replaced.
    todo: BTreeSet<u32>,
    /// Of a reload because of age: the wids that it is about.
    aged: Option<BTreeSet<u32>>,
    /// It has failed, and goes back to what the watcher was.
    failed: bool,
}

/// A reload that waits for the end of another.
pub(super) struct Queued {
    serial: u64,
    pub(super) to: Option<Rc<Definition>>,
}

/// A reload by signal whose workers tell when they have done it.
pub(super) struct Signalled {
    serial: u64,
    awaited: BTreeSet<ProcId>,
    /// To be told as soon as they are ready.
    early: BTreeSet<ProcId>,
    has_problem: bool,
    pub(super) by: Option<Time>,
}

impl Rules {
    /// Reloads a watcher in the way that its unit says, and what is to be waited for.
    pub(super) fn reload(&mut self, id: usize) -> Want {
        match (self.watchers[&id].goal, self.unit(id).reload) {
            (Goal::Up { .. }, Way::Rolling) => Want::Reloaded(self.begin_reload(id, None)),
            (Goal::Up { .. }, Way::Signal(signal)) => {
                Want::Reloaded(self.signal_reload(id, signal))
            }
            (Goal::Queued | Goal::Down { again: true, .. }, _) => Want::Up,
            _ => Want::Scaled,
        }
    }

    /// A rolling reload, of a new definition if there is one; during another it waits for the end of that.
    pub(super) fn begin_reload(&mut self, id: usize, to: Option<Rc<Definition>>) -> u64 {
        let lacks = to.as_ref().is_some_and(|it| self.lacks_of(it));
        let watcher = self.watcher(id);
        if watcher.reload.is_none() && !lacks {
            watcher.reloads += 1;
            let serial = watcher.reloads;
            watcher.queued.take_if(|_| to.is_some());
            self.roll(id, serial, to);
            return serial;
        }
        if lacks {
            self.say("reload waits for a socket");
        }
        let watcher = self.watcher(id);
        // Those that wait become one, and a new definition is not forgotten for one without.
        let before = watcher.queued.take();
        let serial = before.as_ref().map_or(watcher.reloads + 1, |it| it.serial);
        watcher.reloads = serial;
        let to = to.or(before.and_then(|it| it.to));
        watcher.queued = Some(Queued { serial, to });
        self.say("reload queued");
        serial
    }

    fn roll(&mut self, id: usize, serial: u64, to: Option<Rc<Definition>>) {
        self.say("reload");
        let after = self.orders;
        let watcher = self.watcher(id);
        let is_in_use =
            |slot: &Slot| slot.main.life != Life::Idle || slot.beside.life != Life::Idle;
        let todo = (watcher.slots.iter())
            .filter(|(_, slot)| is_in_use(slot))
            .map(|(wid, _)| *wid);
        watcher.reload = Some(Reload {
            serial,
            to: to.unwrap_or(Rc::clone(&watcher.own)),
            after,
            todo: todo.collect(),
            aged: None,
            failed: false,
        });
        let is_on_demand = |it: &Definition| it.spec.unit.on_demand.value;
        if is_on_demand(&watcher.own) && !is_on_demand(watcher.next()) {
            self.want_slots(id, 1);
        }
    }

    /// A worker has reached its `max_age`.
    pub(super) fn too_old(&mut self, at: At) {
        let At { id, wid, .. } = at;
        let after = self.orders;
        let is_wanted = self.is_wanted(id, wid);
        let later = self.now + self.age_pause(id);
        let watcher = self.watcher(id);
        match &mut watcher.reload {
            _ if !is_wanted => {
                self.worker_mut(at).expires = Some(later);
                return;
            }
            Some(reload) if !reload.failed && Rc::ptr_eq(&reload.to, &watcher.own) => {
                reload.todo.insert(wid);
                reload.aged.iter_mut().for_each(|aged| {
                    aged.insert(wid);
                });
            }
            Some(_) => {
                self.worker_mut(at).expires = Some(later);
                return;
            }
            none => {
                watcher.reloads += 1;
                *none = Some(Reload {
                    serial: watcher.reloads,
                    to: Rc::clone(&watcher.own),
                    after,
                    todo: BTreeSet::from([wid]),
                    aged: Some(BTreeSet::from([wid])),
                    failed: false,
                });
            }
        }
        self.worker_mut(at).expires = None;
        self.say("too old");
    }

    fn age_pause(&self, id: usize) -> Duration {
        self.unit(id).restart_max_delay.max(Duration::from_secs(1))
    }

    /// Workers that are too old, and whose reload came to nothing, are looked at again after a while.
    fn look_at_ages(&mut self, id: usize) {
        let later = self.now + self.age_pause(id);
        for slot in self.watcher(id).slots.values_mut() {
            let worker = &mut slot.main;
            let ages = worker
                .of
                .as_ref()
                .is_some_and(|it| it.spec.unit.max_age.is_some());
            if worker.life.is_serving() && ages && worker.expires.is_none() {
                worker.expires = Some(later);
            }
        }
    }

    /// Evenly between `max_age` and `max_age_variance` more, by the golden ratio of the process's number.
    pub(super) fn expiry(&self, at: At) -> Option<Time> {
        let definition = self.definition(at);
        let unit = &definition.spec.unit;
        let (least, variance) = (unit.max_age?, unit.max_age_variance);
        let number = self.worker(at).proc?.0 ^ (at.id as u64) << 40;
        let step = 0x9E37_79B9_7F4A_7C15_u64;
        let share = u128::from(number.wrapping_mul(step) >> 40);
        let more = variance.as_nanos() * share / (1 << 24);
        assert!(more <= variance.as_nanos(), "the age is within its bounds");
        Some(self.now + least + Duration::from_nanos(more as u64))
    }

    /// One step of the reload that is under way; false if there is nothing to do.
    pub(super) fn advance_reload(&mut self, id: usize) -> bool {
        let watcher = self.watcher(id);
        let Some(reload) = watcher.reload.as_mut() else {
            return false;
        };
        let unit = &reload.to.spec.unit;
        let mut moved = false;
        let mut stops = Vec::new();
        let is_taken = |slot: &&Slot| slot.beside.life != Life::Idle;
        let mut taken = watcher.slots.values().filter(is_taken).count();
        for wid in reload.todo.clone() {
            let slot = watcher.slots.get_mut(&wid);
            let Some(slot) = slot.filter(|_| wid <= watcher.wanted) else {
                moved |= reload.todo.remove(&wid);
                continue;
            };
            let is_new = slot.main.order > reload.after;
            match slot.main.life {
                Life::Idle => moved |= reload.todo.remove(&wid),
                Life::Resting { .. } => {
                    slot.row = 0;
                    slot.main.life = Life::Due;
                    moved = true;
                }
                Life::Serving { .. } if is_new => moved |= reload.todo.remove(&wid),
                Life::Starting { .. } | Life::Proving { .. } | Life::Serving { .. } if !is_new => {
                    if unit.singleton {
                        stops.push(wid);
                    } else if slot.beside.life == Life::Idle && taken < unit.reload_surge as usize {
                        slot.beside.life = Life::Due;
                        taken += 1;
                        moved = true;
                    }
                }
                _ => {}
            }
        }
        let is_over = reload.todo.is_empty() && taken == 0;
        for wid in stops {
            self.say("singleton reloaded");
            let seat = Seat::Main;
            self.dismiss(At { id, wid, seat });
            moved = true;
        }
        if is_over {
            self.end_reload(id);
            // Of the one that waited for it.
            self.advance_reload(id);
        }
        moved || is_over
    }

    fn end_reload(&mut self, id: usize) {
        let watcher = self.watcher(id);
        let Some(reload) = watcher.reload.take() else {
            return;
        };
        if reload.failed {
            watcher.failed_reload = Some(reload.serial);
            watcher.mishap = Mishap::Reload;
            self.say("reload failed");
        } else {
            let changed = !Rc::ptr_eq(&watcher.own, &reload.to);
            watcher.own = reload.to;
            if watcher.mishap == Mishap::Reload {
                let rests = watcher.count(|life| matches!(life, Life::Resting { .. })) > 0;
                watcher.mishap = if rests { Mishap::Start } else { Mishap::None };
            }
            self.say(if changed { "redefined" } else { "reloaded" });
        }
        self.look_at_ages(id);
        self.roll_queued(id);
    }

    /// The reload that waits for the end of another or for a socket begins, if it can.
    pub(super) fn roll_queued(&mut self, id: usize) -> bool {
        if self.watchers[&id].reload.is_some() || self.queued_lacks(id) {
            return false;
        }
        let queued = self.watcher(id).queued.take();
        let Some(Queued { serial, to }) = queued else {
            return false;
        };
        self.roll(id, serial, to);
        true
    }

    /// What the watcher is to be lacks a socket.
    pub(super) fn queued_lacks(&self, id: usize) -> bool {
        let queued = self.watchers[&id].queued.as_ref();
        let to = queued.and_then(|it| it.to.as_ref());
        to.is_some_and(|it| self.lacks_of(it))
    }

    /// A stop, restart or failure of the watcher ends a reload; the newest definition is what counts.
    pub(super) fn cancel_reload(&mut self, id: usize) {
        self.end_signalled(id);
        let watcher = self.watcher(id);
        let queued = watcher.queued.take().and_then(|it| it.to);
        let had_reload = watcher.reload.is_some();
        if let Some(reload) = watcher.reload.take() {
            if reload.failed {
                watcher.failed_reload = Some(reload.serial);
                watcher.mishap = Mishap::Reload;
            } else {
                watcher.own = reload.to;
            }
        }
        if let Some(definition) = queued {
            watcher.own = definition;
        }
        if had_reload {
            self.look_at_ages(id);
            self.say("reload cancelled");
        }
    }

    /// What waits for a socket goes on waiting over a restart.
    pub(super) fn cancel_reload_to_restart(&mut self, id: usize) {
        let waits = self.queued_lacks(id);
        let queued = self.watcher(id).queued.take_if(|_| waits);
        self.cancel_reload(id);
        if queued.is_some() {
            self.say("restarted as it was");
        }
        self.watcher(id).queued = queued;
    }

    /// Whether the reload under way has brought the process at a place.
    pub(super) fn is_replacement(&self, at: At) -> bool {
        self.was_replacement(at.id, at.wid, self.worker(at).order)
    }

    pub(super) fn was_replacement(&self, id: usize, wid: u32, order: u64) -> bool {
        let reload = self.watchers[&id].reload.as_ref();
        reload.is_some_and(|reload| {
            let is_meant = reload.aged.as_ref().is_none_or(|aged| aged.contains(&wid));
            order > reload.after && is_meant
        })
    }

    /// The replacement is ready and takes the main place; what it replaces is stopped.
    pub(super) fn promote(&mut self, id: usize, wid: u32) {
        let (main, beside) = (Seat::Main, Seat::Beside);
        let slot = self.slot(At {
            id,
            wid,
            seat: main,
        });
        std::mem::swap(&mut slot.main, &mut slot.beside);
        let had_failed = matches!(
            slot.beside.life,
            Life::Ending { why, .. } | Life::Clearing { why, .. } if why != Why::Asked
        );
        let makes_good = std::mem::take(&mut slot.owed) || had_failed;
        slot.row = 0;
        slot.ended_badly = None;
        self.say("promoted");
        let watcher = self.watcher(id);
        watcher.restarts += u64::from(makes_good);
        if let Some(reload) = &mut watcher.reload {
            reload.todo.remove(&wid);
        }
        let seat = beside;
        self.dismiss(At { id, wid, seat });
    }

    /// A process has died: a replacement that is on its way takes its place. Says whether there is one.
    pub(super) fn follow(&mut self, id: usize, wid: u32) -> bool {
        let slot = self.slot(At {
            id,
            wid,
            seat: Seat::Main,
        });
        let is_coming = matches!(
            slot.beside.life,
            Life::Due
                | Life::Ordered { cancelled: false }
                | Life::Starting { .. }
                | Life::Proving { .. }
                | Life::Serving { .. }
        );
        if is_coming {
            slot.main = std::mem::take(&mut slot.beside);
            self.say("followed by its replacement");
        }
        is_coming
    }

    /// A process that the reload has brought came to nothing: all goes back to how it was.
    pub(super) fn replacement_failed(&mut self, at: At) {
        let after = self.orders;
        let watcher = self.watcher(at.id);
        let Some(reload) = &mut watcher.reload else {
            return;
        };
        if reload.failed {
            reload.todo.remove(&at.wid);
            return self.say("could not be put back");
        }
        let failed = std::mem::replace(&mut reload.to, Rc::clone(&watcher.own));
        reload.failed = true;
        reload.after = after;
        let is_of_it = |slot: &Slot| {
            let of = slot.main.of.as_ref();
            slot.main.is_there() && of.is_some_and(|of| Rc::ptr_eq(of, &failed))
        };
        reload.todo.clear();
        if !Rc::ptr_eq(&failed, &watcher.own) {
            let wids = watcher.slots.iter().filter(|(_, slot)| is_of_it(slot));
            reload.todo = wids.map(|(wid, _)| *wid).collect();
        }
        self.say("replacement failed");
        for at in self.places(at.id) {
            let life = &self.worker(at).life;
            // One that was replaced goes on with what waits for it.
            let has_been_replaced = matches!(
                life,
                Life::Draining { .. } | Life::Ending { .. } | Life::Clearing { .. }
            );
            if at.seat == Seat::Beside && !has_been_replaced {
                self.stop_worker(at, Why::Asked, None);
            }
        }
    }

    /// Every worker that can hear is told to reload by itself.
    fn signal_reload(&mut self, id: usize, signal: Signal) -> u64 {
        let unit = self.unit(id);
        let answers = unit.kind == WatcherKind::Notify;
        let timeout = unit.start_timeout;
        let (mut awaited, mut early) = (BTreeSet::new(), BTreeSet::new());
        for at in self
            .places(id)
            .into_iter()
            .filter(|at| at.seat == Seat::Main)
        {
            let worker = self.worker(at);
            match worker.life {
                Life::Starting { .. } | Life::Proving { .. } => early.extend(worker.proc),
                Life::Serving { .. } => {
                    awaited.extend(worker.proc.filter(|_| answers));
                    self.expect_of(at, Act::Signal(signal, false), "it is to reload");
                }
                _ => {}
            }
        }
        let timeout = timeout.filter(|_| !awaited.is_empty());
        let by = timeout.map(|timeout| self.now + timeout);
        self.say("reload by signal");
        let watcher = self.watcher(id);
        let before = watcher.signalled.take();
        let serial = before.as_ref().map_or(watcher.reloads + 1, |it| it.serial);
        watcher.reloads = watcher.reloads.max(serial);
        watcher.signalled = Some(Signalled {
            serial,
            has_problem: before.is_some_and(|it| it.has_problem),
            awaited,
            early,
            by,
        });
        self.end_signalled_if_done(id);
        serial
    }

    /// A worker that was told to reload says that it takes longer.
    pub(super) fn extend_reload(&mut self, id: usize, proc: ProcId, until: Time) {
        if let Some(signalled) = &mut self.watcher(id).signalled
            && signalled.awaited.contains(&proc)
            && let Some(by) = &mut signalled.by
        {
            *by = until.max(*by);
            self.say("reload by signal takes longer");
        }
    }

    /// A worker that was told to reload has done so.
    pub(super) fn reloaded_itself(&mut self, id: usize, proc: ProcId) {
        if let Some(signalled) = &mut self.watcher(id).signalled {
            signalled.awaited.remove(&proc);
            self.end_signalled_if_done(id);
        }
    }

    /// It has ended instead, or before it could be told.
    pub(super) fn reloads_no_more(&mut self, id: usize, proc: ProcId, failed: bool) {
        if let Some(signalled) = &mut self.watcher(id).signalled {
            let was_told = signalled.awaited.remove(&proc);
            let is_concerned = signalled.early.remove(&proc) || was_told;
            signalled.has_problem |= failed && is_concerned;
            self.end_signalled_if_done(id);
        }
    }

    /// It serves now, so it can be told.
    pub(super) fn reload_late(&mut self, at: At) {
        let unit = &self.definition(at).spec.unit;
        let (way, answers) = (unit.reload, unit.kind == WatcherKind::Notify);
        let by = unit.start_timeout.map(|timeout| self.now + timeout);
        let Some(proc) = self.worker(at).proc else {
            return;
        };
        let Some(signalled) = &mut self.watcher(at.id).signalled else {
            return;
        };
        if !signalled.early.remove(&proc) {
            return;
        }
        if let Way::Signal(signal) = way {
            if answers {
                signalled.awaited.insert(proc);
                signalled.by = signalled.by.max(by);
            }
            self.say("told to reload when it was ready");
            self.expect_of(at, Act::Signal(signal, false), "it is to reload, and ready");
        }
        self.end_signalled_if_done(at.id);
    }

    fn end_signalled_if_done(&mut self, id: usize) {
        let signalled = self.watchers[&id].signalled.as_ref();
        if signalled.is_some_and(|it| it.awaited.is_empty() && it.early.is_empty()) {
            self.end_signalled(id);
        }
    }

    pub(super) fn signalled_due(&mut self, id: usize) {
        self.say("did not reload in time");
        if let Some(signalled) = &mut self.watcher(id).signalled {
            signalled.has_problem = true;
            signalled.awaited.clear();
            signalled.by = None;
        }
        self.end_signalled_if_done(id);
    }

    fn end_signalled(&mut self, id: usize) {
        let watcher = self.watcher(id);
        if let Some(signalled) = watcher.signalled.take() {
            if signalled.has_problem {
                watcher.failed_reload = Some(signalled.serial);
                watcher.mishap = Mishap::Reload;
            }
            self.say("reload by signal ended");
        }
    }
}

impl Watcher {
    /// The definition that processes are started from now.
    pub(super) fn next(&self) -> &Rc<Definition> {
        self.reload.as_ref().map_or(&self.own, |reload| &reload.to)
    }

    /// The definition that it has, or will have if all goes well.
    pub(super) fn newest(&self) -> &Rc<Definition> {
        let queued = self.queued.as_ref().and_then(|it| it.to.as_ref());
        queued.unwrap_or(self.next())
    }

    /// All definitions that matter.
    pub(super) fn definitions(&self) -> Vec<Rc<Definition>> {
        let mut all = self.begun_definitions();
        all.push(Rc::clone(self.newest()));
        all
    }

    /// Those but the one that waits for its reload.
    pub(super) fn begun_definitions(&self) -> Vec<Rc<Definition>> {
        let of_processes = self.workers().filter(|it| it.is_there());
        (of_processes.filter_map(|it| it.of.as_ref()))
            .chain([&self.own, self.next()])
            .map(Rc::clone)
            .collect()
    }

    /// In a definition that is scaled in the middle of a reload, what it goes on to and goes back to are one.
    pub(super) fn rescaled(&mut self, to: Rc<Definition>) {
        if let Some(reload) = &mut self.reload
            && Rc::ptr_eq(&reload.to, &self.own)
        {
            reload.to = Rc::clone(&to);
        }
        self.own = to;
    }

    /// Whether the reload of this number is under way, or waits.
    pub(super) fn is_reloading(&self, serial: u64) -> bool {
        let reload = self.reload.as_ref().map(|it| it.serial);
        let queued = (self.queued.as_ref()).filter(|_| self.reload.is_some());
        let queued = queued.map(|it| it.serial);
        let signalled = self.signalled.as_ref().map(|it| it.serial);
        [reload, queued, signalled].contains(&Some(serial))
    }

    /// What is to be reloaded must be up, or on its way there, and not a oneshot.
    pub(super) fn can_reload(&self) -> bool {
        match self.goal {
            Goal::Up { .. } => self.own.spec.unit.kind != WatcherKind::Oneshot,
            Goal::Queued | Goal::Waiting => true,
            Goal::Down { again: true, .. } => true,
            Goal::Down { .. } | Goal::Ended | Goal::Failed => false,
        }
    }
}
