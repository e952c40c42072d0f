//! Shards, which are closed when nobody waits in them.

use super::*;

/// The kernel queue of one wid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shard {
    /// Clients come to it.
    Open,
    /// No new ones come; whose worker beyond the wanted ones was made to serve what waits in it, and the how manieth.
    Draining {
        by: Option<usize>,
        tries: u32,
    },
    Closing {
        tries: u32,
    },
    /// Clients wait for somebody to serve them.
    Owed {
        tries: u32,
    },
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Open,
    /// As it is.
    Same,
    Shut,
}

impl Rules {
    /// A worker of this wid is going to have them.
    pub(super) fn open_shards(&mut self, sockets: &[usize], wid: u32) {
        for index in sockets {
            let socket = self.sockets.get_mut(index);
            if let Some(socket) = socket.filter(|it| it.spec.unit.so_reuseport.value) {
                let shard = socket.shards.entry(wid).or_insert(Shard::Open);
                if let Shard::Closing { .. } = shard {
                    *shard = Shard::Open;
                    let reason = "a worker gets it after all";
                    self.expect(Key::Shard(*index, wid), Act::OpenShard, reason);
                }
            }
        }
    }

    /// The sockets whose shard of this wid nobody wants any more.
    pub(super) fn leaving_shards(&self, at: At) -> Vec<usize> {
        let sockets = self.definition(at).sockets.clone();
        let is_leaving = |index: &usize| {
            let is_sharded = self.sockets[index].spec.unit.so_reuseport.value;
            is_sharded && !self.sockets[index].retired && self.wish(*index, at.wid) == Wish::Shut
        };
        sockets.into_iter().filter(is_leaving).collect()
    }

    pub(super) fn drain_shards(&mut self, sockets: &[usize], wid: u32) {
        for index in sockets {
            let socket = self.sockets.get_mut(index).filter(|it| !it.retired);
            let Some(socket) = socket else { continue };
            if !matches!(socket.shards.get(&wid), Some(Shard::Draining { .. })) {
                let (by, tries) = (None, 0);
                socket.shards.insert(wid, Shard::Draining { by, tries });
            }
        }
    }

    /// Where new clients of a shard would wait. The first is the socket's own, and is there for all where no other is.
    fn wish(&self, index: usize, wid: u32) -> Wish {
        if wid > 1 {
            return self.wish_of_wid(index, wid);
        }
        let is_open = |(wid, shard): (&u32, &Shard)| {
            let is_served = || self.wish_of_wid(index, *wid) == Wish::Open;
            *wid > 1 && *shard == Shard::Open && is_served()
        };
        match self.wish_of_wid(index, 1) {
            Wish::Shut if self.sockets[&index].shards.iter().any(is_open) => Wish::Shut,
            _ => Wish::Open,
        }
    }

    fn wish_of_wid(&self, index: usize, wid: u32) -> Wish {
        let users: Vec<usize> = (self.watchers.iter())
            .filter(|(_, it)| !it.retired && it.will_have(index))
            .map(|(id, _)| *id)
            .collect();
        let wants = |id: &usize| self.watchers[id].wanted >= wid;
        let is_on = |id: &usize| match self.watchers[id].goal {
            Goal::Up { .. } | Goal::Waiting => true,
            Goal::Queued => self.may_start(*id) == Some(true),
            Goal::Down { .. } | Goal::Ended | Goal::Failed => false,
        };
        let is_served = |id: &usize| match self.watchers[id].goal {
            Goal::Waiting => true,
            Goal::Up { .. } => {
                let watcher = &self.watchers[id];
                watcher
                    .slots
                    .get(&wid)
                    .is_some_and(|slot| match slot.main.life {
                        // It has to wait for `warmup_delay`.
                        Life::Due => slot.beside.life != Life::Idle,
                        Life::Idle => watcher.comes_with_traffic(slot),
                        _ => true,
                    })
            }
            _ => false,
        };
        let is_waited_for = |id: &usize| self.watchers[id].goal == Goal::Queued;
        let on: Vec<usize> = users.iter().copied().filter(is_on).collect();
        let mut wanting = on.iter().filter(|id| wants(id));
        match on.is_empty() {
            true if users.iter().any(wants) => Wish::Same,
            true => Wish::Shut,
            false if wanting.clone().any(is_served) => Wish::Open,
            false if wanting.any(is_waited_for) => Wish::Same,
            false => Wish::Shut,
        }
    }

    /// A worker that is missed if it ends by itself.
    pub(super) fn is_needed(&self, id: usize, wid: u32) -> bool {
        let is_up = matches!(self.watchers[&id].goal, Goal::Up { .. });
        self.is_wanted(id, wid) || is_up && self.was_made_to_drain(id, wid)
    }

    fn was_made_to_drain(&self, id: usize, wid: u32) -> bool {
        self.sockets.iter().any(|(index, socket)| {
            let shard = socket.shards.get(&wid);
            let is_its = matches!(shard, Some(Shard::Draining { by, .. }) if *by == Some(id));
            is_its && (socket.is_left || self.watchers[&id].refers_to(*index))
        })
    }

    /// Whether nobody who scales a watcher has to wait for this slot.
    pub(super) fn is_still(&self, id: usize, wid: u32, slot: &Slot) -> bool {
        let (main, beside) = (&slot.main.life, &slot.beside.life);
        match wid <= self.watchers[&id].wanted {
            true => (*main == Life::Idle || main.is_serving()) && *beside == Life::Idle,
            false => {
                let is_idle = *main == Life::Idle && *beside == Life::Idle;
                // It was to be made for a shard that others may have served since.
                let is_not_made = matches!(main, Life::Due | Life::Resting { .. });
                is_idle || is_not_made || self.was_made_to_drain(id, wid)
            }
        }
    }

    pub(super) fn shard_closed(&mut self, index: usize, wid: u32) {
        self.say("shard closed");
        if let Some(socket) = self.sockets.get_mut(&index) {
            socket.shards.remove(&wid);
        }
    }

    pub(super) fn shard_owed(&mut self, index: usize, wid: u32) {
        self.say("shard owed");
        let socket = self.sockets.get_mut(&index);
        let shard = socket.and_then(|socket| socket.shards.get_mut(&wid));
        if let Some(shard) = shard
            && let Shard::Closing { tries } = *shard
        {
            *shard = Shard::Owed { tries };
        }
    }

    /// Moves the shards of one socket on; false if there is nothing to move.
    pub(super) fn settle_shards(&mut self) -> bool {
        if self.is_stopping() {
            return false;
        }
        let mut indexes = self.sockets.keys().copied().collect::<Vec<_>>().into_iter();
        indexes.any(|index| self.settle_shards_of(index))
    }

    fn settle_shards_of(&mut self, index: usize) -> bool {
        let users: Vec<usize> = (self.ids().into_iter())
            .filter(|id| self.watchers[id].refers_to(index))
            .collect();
        if self.sockets[&index].retired {
            return self.settle_left_shards(index);
        }
        if users.is_empty() {
            return false;
        }
        let mut moved = false;
        let mut shards: Vec<(u32, Shard)> =
            self.sockets[&index].shards.clone().into_iter().collect();
        // What becomes of the first depends on the others.
        shards.sort_by_key(|(wid, _)| (*wid == 1, *wid));
        for (wid, shard) in shards {
            let wish = self.wish(index, wid);
            let is_in_use = wid == 1
                || users.iter().any(|id| {
                    let slot = self.watchers[id].slots.get(&wid);
                    slot.is_some_and(|it| {
                        it.main.life != Life::Idle || it.beside.life != Life::Idle
                    })
                });
            let next = match shard {
                _ if wish == Wish::Same => continue,
                Shard::Open if wish == Wish::Open => continue,
                _ if wish == Wish::Open => {
                    let reason = "its clients are served again";
                    self.expect(Key::Shard(index, wid), Act::OpenShard, reason);
                    Shard::Open
                }
                Shard::Open if is_in_use => {
                    self.say("shard shut");
                    let reason = "others serve its clients sooner";
                    self.expect(Key::Shard(index, wid), Act::ShutShard, reason);
                    let (by, tries) = (None, 0);
                    Shard::Draining { by, tries }
                }
                Shard::Draining { .. } | Shard::Owed { .. } if is_in_use => continue,
                Shard::Closing { .. } => continue,
                Shard::Open | Shard::Draining { .. } => {
                    let reason = "nobody has it, and nobody wants it";
                    self.expect(Key::Shard(index, wid), Act::CloseShard, reason);
                    let tries = match shard {
                        Shard::Draining { tries, .. } => tries,
                        _ => 0,
                    };
                    Shard::Closing { tries }
                }
                Shard::Owed { tries } => {
                    let Some(id) = users
                        .iter()
                        .copied()
                        .find(|id| self.can_drain(*id, index, wid))
                    else {
                        continue;
                    };
                    self.make_drainer(id, wid, tries);
                    let (by, tries) = (Some(id), tries + 1);
                    Shard::Draining { by, tries }
                }
            };
            moved = true;
            if let Some(socket) = self.sockets.get_mut(&index) {
                socket.shards.insert(wid, next);
            }
        }
        moved
    }

    // Of sockets whose address goes on without shards.

    /// These have them no more, but for the first.
    pub(super) fn leave_shards(&mut self, first_new: usize) {
        for index in self.sockets.keys().copied().collect::<Vec<_>>() {
            let socket = &self.sockets[&index];
            let is_going = socket.retired && socket.spec.unit.so_reuseport.value;
            let to = self.has_address_now(index).filter(|to| *to >= first_new);
            let is_left = to.is_some_and(|to| !self.sockets[&to].spec.unit.so_reuseport.value);
            if is_going && is_left {
                self.say("shards left behind");
                self.sockets.entry(index).and_modify(|it| it.is_left = true);
            }
        }
    }

    fn has_address_now(&self, index: usize) -> Option<usize> {
        let address = |index: &usize| &self.sockets[index].spec.unit.address.value;
        let mut others = self.sockets.keys().copied();
        others.find(|other| !self.sockets[other].retired && address(other) == address(&index))
    }

    pub(super) fn keeps_left_shards(&self, index: usize) -> bool {
        let socket = &self.sockets[&index];
        socket.is_left
            && socket.shards.keys().any(|wid| *wid > 1)
            && self.has_address_now(index).is_some()
    }

    /// Whether clients that wait in shards of a socket beyond the first may be reset when it is closed: nobody has its
    /// address, or who has it has its shards too.
    pub fn may_lose_clients(&self, spec: &plan::Socket) -> bool {
        let now = self.sockets.values().find(|socket| {
            !socket.retired && socket.spec.unit.address.value == spec.unit.address.value
        });
        self.is_stopping() || now.is_none_or(|it| it.spec.unit.so_reuseport.value)
    }

    fn is_made_for_left_shard(&self, index: usize, id: usize, wid: u32) -> bool {
        let socket = &self.sockets[&index];
        let shard = socket.shards.get(&wid);
        socket.is_left && matches!(shard, Some(Shard::Draining { by, .. }) if *by == Some(id))
    }

    /// What runs here has one, and was made for that.
    pub(super) fn has_left_shard(&self, at: At) -> bool {
        let definition = self.definition(at);
        let mut sockets = definition.sockets.iter();
        sockets.any(|index| self.is_made_for_left_shard(*index, at.id, at.wid))
    }

    /// What a process is started from. One that is made for a shard has the socket that it is of.
    pub(super) fn definition_to_launch(&self, at: At) -> Rc<Definition> {
        let next = self.watchers[&at.id].next();
        if at.wid <= self.watchers[&at.id].wanted {
            return Rc::clone(next);
        }
        let mut sockets = next.sockets.clone();
        for index in self.sockets.keys() {
            if self.is_made_for_left_shard(*index, at.id, at.wid) {
                let now = self.has_address_now(*index);
                let has_it = |it: &&mut usize| Some(**it) == now;
                sockets
                    .iter_mut()
                    .filter(has_it)
                    .for_each(|it| *it = *index);
            }
        }
        match sockets == next.sockets {
            true => Rc::clone(next),
            false => Rc::new(Definition {
                spec: Rc::clone(&next.spec),
                sockets,
            }),
        }
    }

    fn settle_left_shards(&mut self, index: usize) -> bool {
        let Some(now) = self.has_address_now(index) else {
            return false;
        };
        // It may be gone back to.
        let has_it = |it: &Rc<Definition>| it.sockets.contains(&index);
        let mut watchers = self.watchers.values();
        if !self.sockets[&index].is_left
            || watchers.any(|it| has_it(&it.own) || has_it(it.next()) || has_it(it.newest()))
        {
            return false;
        }
        let mut moved = false;
        for (wid, shard) in self.sockets[&index].shards.clone() {
            let is_had = self.watchers.keys().any(|id| {
                let places = SEATS.map(|seat| At { id: *id, wid, seat });
                let has_slot = self.watchers[id].slots.contains_key(&wid);
                let mut places = places.into_iter().filter(|_| has_slot);
                places.any(|at| {
                    let worker = self.worker(at);
                    worker.is_there() && worker.of.as_ref().is_some_and(has_it)
                })
            });
            let is_next = |id: usize| {
                let watcher = self.watchers.get(&id).filter(|it| it.wanted < wid);
                let slot = watcher.and_then(|watcher| watcher.slots.get(&wid));
                slot.is_some_and(|it| matches!(it.main.life, Life::Due | Life::Resting { .. }))
            };
            let tries = match shard {
                _ if wid == 1 || is_had => continue,
                Shard::Closing { .. } => continue,
                Shard::Draining { by: Some(id), .. } if is_next(id) => continue,
                Shard::Open => 0,
                Shard::Draining { tries, .. } => tries,
                Shard::Owed { tries } => {
                    let mut ids = self.ids().into_iter();
                    let Some(id) = ids.find(|id| self.can_have_one_more(*id, now)) else {
                        continue;
                    };
                    let watcher = &self.watchers[&id];
                    let slot = watcher.slots.get(&wid);
                    let is_idle =
                        |it: &Slot| it.main.life == Life::Idle && it.beside.life == Life::Idle;
                    let is_free = wid > watcher.wanted && slot.is_none_or(is_idle);
                    let last_slot = watcher.slots.keys().last().copied();
                    let last_shard = self.sockets[&index].shards.keys().last().copied();
                    let to = match is_free {
                        true => wid,
                        false => 1 + last_slot.max(last_shard).max(Some(watcher.wanted)).unwrap(),
                    };
                    if to != wid {
                        self.say("a shard is given to another wid");
                        let reason = "there is a worker of this wid that does not have it";
                        self.expect(Key::Shard(index, wid), Act::MoveShard(to), reason);
                    }
                    self.say("a worker for a shard that was left");
                    self.make_drainer(id, to, tries);
                    let (by, tries) = (Some(id), tries + 1);
                    let served = Shard::Draining { by, tries };
                    let shards = &mut self.sockets.get_mut(&index).unwrap().shards;
                    shards.remove(&wid);
                    shards.insert(to, served);
                    moved = true;
                    continue;
                }
            };
            let reason = "it was left, and nobody has it";
            self.expect(Key::Shard(index, wid), Act::CloseShard, reason);
            let shards = &mut self.sockets.get_mut(&index).unwrap().shards;
            shards.insert(wid, Shard::Closing { tries });
            moved = true;
        }
        moved
    }

    /// Whether a watcher may have one more worker for a while, which has this socket.
    fn can_drain(&self, id: usize, index: usize, wid: u32) -> bool {
        wid > self.watchers[&id].wanted && self.can_have_one_more(id, index)
    }

    fn can_have_one_more(&self, id: usize, index: usize) -> bool {
        let watcher = &self.watchers[&id];
        let unit = &watcher.next().spec.unit;
        let once = unit.kind == WatcherKind::Oneshot || unit.restart == Restart::Never;
        let has_it = watcher.next().sockets.contains(&index);
        matches!(watcher.goal, Goal::Up { .. }) && !watcher.retired && has_it && !once
    }

    fn make_drainer(&mut self, id: usize, wid: u32, tries: u32) {
        self.say("a worker for a shard");
        let unit = self.unit(id);
        let delay = delay_before(tries + 1, unit.restart_delay, unit.restart_max_delay);
        let until = self.now + delay;
        let slot = self.watcher(id).slots.entry(wid).or_default();
        slot.main.life = match delay.is_zero() {
            true => Life::Due,
            false => Life::Resting { until },
        };
    }
}

impl Watcher {
    /// Whether the processes that it starts from now on have a socket, or those after the reload.
    fn will_have(&self, index: usize) -> bool {
        let queued = self.queued.as_ref().and_then(|it| it.to.as_ref());
        let mut all = [self.next()].into_iter().chain(queued);
        all.any(|definition| definition.sockets.contains(&index))
    }
}
