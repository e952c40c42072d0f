//! The life of a shard: the kernel queue of one wid. The rules stand at the head of [`super`].

use super::state::{Goal, Post, Seat, Shard, Slot, Socket, State, Watcher};
use super::time::backoff;
use super::{Effect, SocketId, Supervisor, Turn, WatcherId};
use crate::unit::LogLevel;
use std::rc::Rc;

/// What becomes of the clients that a shard would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// They had better go to others: who wants it does not run while another watcher does, or starts a worker for it later.
    None,
    /// They wait for a start, or go to others if they did so before.
    Kept,
    /// A worker serves them, or they start one.
    Served,
}

/// A watcher that has a socket.
struct Claim<'a> {
    watcher: &'a Watcher,
    /// It is up, started by traffic or about to start.
    is_on: bool,
}

impl Claim<'_> {
    fn wants(&self, wid: u32) -> bool {
        wid <= self.watcher.wanted
    }

    /// What it needs a shard for, if it is on.
    fn need(&self, wid: u32) -> Need {
        match self.watcher.goal {
            _ if !self.is_on || !self.wants(wid) => Need::None,
            Goal::Waiting => Need::Served,
            Goal::Up { .. } => {
                let slot = self.watcher.slots.get(wid as usize - 1);
                let is_served = slot.is_some_and(|slot| match slot.main {
                    // It has to wait for `warmup_delay`.
                    State::Due => slot.beside.is_some(),
                    State::Vacant => self.watcher.is_on_call(slot),
                    _ => true,
                });
                match is_served {
                    true => Need::Served,
                    false => Need::None,
                }
            }
            // It is opened when the worker is made.
            Goal::Queued | Goal::Stopped { .. } | Goal::Ended | Goal::Failed => Need::Kept,
        }
    }
}

/// Where a watcher of the socket is on, those that are on decide; else all that will start again.
fn need_of_wid(claims: &[Claim<'_>], wid: u32) -> Need {
    if claims.iter().any(|claim| claim.is_on) {
        let needs = claims.iter().map(|claim| claim.need(wid));
        return needs.max().unwrap_or(Need::None);
    }
    match claims.iter().any(|claim| claim.wants(wid)) {
        true => Need::Kept,
        false => Need::None,
    }
}

impl Supervisor {
    /// Says that this wid is going to have its shards.
    pub(super) fn open_shards(&mut self, turn: &mut Turn<'_>, sockets: &[SocketId], wid: u32) {
        for id in sockets {
            let Some(socket) = self.sockets.get(*id) else {
                continue;
            };
            let shard = socket.shard(wid);
            if let Shard::Closing { .. } = shard {
                // Not under a worker that is made for what waits in another of its shards.
                let socket = *id;
                turn.effects.push(Effect::OpenShard { socket, wid });
            }
            let is_there = !matches!(shard, Shard::Closed | Shard::Closing { .. });
            if socket.spec.unit.so_reuseport.value && !is_there {
                self.set_shard(*id, wid, Shard::Open);
            }
        }
    }

    /// What an apply has opened, from `first` on, may have the shards of a socket that goes. Which, only the runtime knows:
    /// to close one that there is not costs nothing.
    pub(super) fn inherit_shards(&mut self, first: SocketId) {
        let leaving = self.sockets.values().filter(|socket| socket.retired);
        let count = leaving.map(|socket| socket.shards.len()).max();
        let count = count.unwrap_or_default();
        let new = (self.sockets.iter_mut())
            .filter(|(id, socket)| *id >= first && socket.spec.unit.so_reuseport.value);
        for (_, socket) in new {
            let (by, tries) = (None, 0);
            let count = count.max(socket.shards.len());
            socket.shards.resize(count, Shard::Draining { by, tries });
        }
    }

    /// Of the sockets that go, those whose address one without shards has now: it has the first of theirs.
    pub(super) fn leave_shards_behind(&mut self, first: SocketId) {
        let all: Vec<SocketId> = self.sockets.ids().collect();
        for id in all {
            // Also one of which there is but the first by now: a watcher that keeps its old definition may open others.
            let socket = &self.sockets[id];
            let is_going = socket.retired && socket.spec.unit.so_reuseport.value;
            let successor = if is_going { self.successor(id) } else { None };
            if let Some(successor) = successor.filter(|it| *it >= first)
                && !self.sockets[successor].spec.unit.so_reuseport.value
                && let Some(socket) = self.socket_mut(id)
            {
                socket.left_behind = true;
                self.left_behind.insert(id);
            }
        }
    }

    /// The socket in the plan that has the address of one which is there no more.
    fn successor(&self, id: SocketId) -> Option<SocketId> {
        let socket = &self.sockets.get(id)?.spec;
        let (name, unit) = (socket.name(), &socket.unit);
        let has_address = |other: &Socket| {
            let address = &other.spec.unit.address.value;
            // With a port that the kernel chooses, each unit has one of its own.
            let is_its = address.port() != Some(0) || other.spec.name() == name;
            is_its && *address == unit.address.value && other.spec.unit.kind == unit.kind
        };
        let mut others = self.sockets.iter();
        let successor = others.find(|(_, other)| !other.retired && has_address(other));
        successor.map(|(id, _)| id)
    }

    /// Whether a socket that is in the plan no more has to stay for what may wait in shards that were left behind.
    pub(super) fn has_left_shards(&self, id: SocketId) -> bool {
        let socket = self.sockets.get(id);
        socket.is_some_and(|socket| socket.left_behind && socket.shards.len() > 1)
            && self.successor(id).is_some()
    }

    /// Whether the shard of this wid was left behind, and a worker of this watcher is to serve it.
    fn is_left_to(&self, socket: SocketId, id: WatcherId, wid: u32) -> bool {
        let shard = self.sockets.get(socket).map(|it| it.shard(wid));
        self.left_behind.contains(&socket)
            && matches!(shard, Some(Shard::Draining { by, .. }) if by == Some(id))
    }

    /// Whether what runs at a post was made to serve what waits in a shard that was left behind.
    pub(super) fn has_left_shard(&self, post: Post) -> bool {
        let (id, wid) = (post.watcher, post.wid);
        let Some(number) = self.state(post).edition() else {
            return false;
        };
        let mut sockets = self.watcher(id).edition(number).sockets.iter();
        !self.left_behind.is_empty() && sockets.any(|socket| self.is_left_to(*socket, id, wid))
    }

    /// What the next process at a post is started from, by number. One that is made to serve what waits in shards which were left
    /// behind has those sockets in the place of the ones that have their addresses now.
    pub(super) fn edition_to_launch(&mut self, post: Post) -> u32 {
        let (id, wid) = (post.watcher, post.wid);
        let watcher = self.watcher(id);
        let next = watcher.next();
        let number = next.number;
        if self.left_behind.is_empty() || wid <= watcher.wanted {
            return number;
        }
        let left_at = |socket: &SocketId| {
            let mut left = self.left_behind.iter();
            let left = left
                .find(|it| self.is_left_to(**it, id, wid) && self.successor(**it) == Some(*socket));
            *left.unwrap_or(socket)
        };
        let sockets: Rc<[SocketId]> = next.sockets.iter().map(left_at).collect();
        if sockets == next.sockets {
            return number;
        }
        let spec = Rc::clone(&next.spec);
        let edition = self.new_edition(id, spec, sockets);
        let number = edition.number;
        self.watcher_mut(id).others.push(edition);
        self.users_stale = true;
        number
    }

    /// The sockets in the plan whose shard of this worker's goes with it, since no watcher wants the wid any more.
    pub(super) fn leaving_shards(&self, post: Post) -> Vec<SocketId> {
        let watcher = self.watcher(post.watcher);
        let edition = self.state(post).edition();
        let edition = edition.map_or(watcher.next(), |number| watcher.edition(number));
        let goes = |id: &SocketId| {
            let socket = self.sockets.get(*id).filter(|socket| !socket.retired);
            socket.is_some_and(|socket| socket.spec.unit.so_reuseport.value)
                && self.need_of_shard(*id, post.wid) == Need::None
        };
        (edition.sockets.iter().copied()).filter(goes).collect()
    }

    /// They get no new clients from now on; the worker of this wid serves those that wait.
    pub(super) fn drain_shards(&mut self, sockets: &[SocketId], wid: u32) {
        for id in sockets {
            // One that goes as a whole takes its shards along.
            let socket = self.sockets.get(*id).filter(|socket| !socket.retired);
            let Some(socket) = socket else { continue };
            let (by, tries) = match socket.shard(wid) {
                Shard::Draining { by, tries } => (by, tries),
                _ => (None, 0),
            };
            self.set_shard(*id, wid, Shard::Draining { by, tries });
        }
    }

    /// Whether a worker of this wid, which is beyond those that are wanted, is to serve what waits in a shard.
    pub(super) fn is_to_drain(&self, id: WatcherId, wid: u32) -> bool {
        let mut sockets = self.watcher(id).editions().flat_map(|it| &*it.sockets);
        sockets.any(|socket| {
            let shard = self.sockets.get(*socket).map(|it| it.shard(wid));
            matches!(shard, Some(Shard::Draining { by, .. }) if by == Some(id))
        }) || self
            .left_behind
            .iter()
            .any(|it| self.is_left_to(*it, id, wid))
    }

    /// The first stays as long as the socket does, so that its port does. It gets no clients only where others do.
    fn need_of_shard(&self, id: SocketId, wid: u32) -> Need {
        let claims = self.claims(id);
        match wid {
            1 => self.need_of_first(id, |wid| need_of_wid(&claims, wid)),
            _ => need_of_wid(&claims, wid),
        }
    }

    fn need_of_first(&self, id: SocketId, need_of_wid: impl Fn(u32) -> Need) -> Need {
        if need_of_wid(1) != Need::None {
            return Need::Served;
        }
        let mut others = (2..).zip(self.sockets[id].shards.iter().skip(1));
        match others.any(|(wid, it)| *it == Shard::Open && need_of_wid(wid) == Need::Served) {
            true => Need::None,
            false => Need::Served,
        }
    }

    /// What the watchers of a socket have to do with its shards.
    fn claims(&self, id: SocketId) -> Vec<Claim<'_>> {
        let users = (self.sockets[id].watchers.iter()).map(|user| (*user, self.watcher(*user)));
        let users = users.filter(|(_, watcher)| !watcher.retired && watcher.is_to_have(id));
        users
            .map(|(user, watcher)| Claim {
                watcher,
                is_on: match watcher.goal {
                    Goal::Up { .. } | Goal::Waiting => true,
                    Goal::Queued => self.may_start(user),
                    Goal::Stopped { .. } | Goal::Ended | Goal::Failed => false,
                },
            })
            .collect()
    }

    /// Whether some watcher has a worker of this wid that may have the shard.
    fn is_shard_in_use(&self, id: SocketId, wid: u32) -> bool {
        let mut users = self.sockets[id].watchers.iter();
        users.any(|watcher| {
            let slot = self.watcher(*watcher).slots.get(wid as usize - 1);
            slot.is_some_and(|slot| !slot.is_vacant())
        })
    }

    /// The watcher that can have a worker of this wid serve what others have left.
    fn heir_of_shard(&self, id: SocketId, wid: u32) -> Option<WatcherId> {
        let mut heirs = self.possible_heirs(id);
        heirs.find(|watcher| wid > self.watcher(*watcher).wanted)
    }

    /// The watchers that can have one more worker, which has this socket.
    fn possible_heirs(&self, id: SocketId) -> impl Iterator<Item = WatcherId> {
        let is_fit = move |watcher: &WatcherId| {
            let watcher = self.watcher(*watcher);
            // What is to run once does not run again for this.
            matches!(watcher.goal, Goal::Up { .. })
                && !watcher.retired
                && !watcher.next().spec.unit.runs_once()
                && watcher.next().sockets.contains(&id)
        };
        self.sockets[id].watchers.iter().copied().filter(is_fit)
    }

    /// The sockets of a watcher of which some shards may have to go, or to stay.
    pub(super) fn stir_shards(&mut self, id: WatcherId) {
        let sockets = self.watchers[id].editions().flat_map(|it| &*it.sockets);
        let has_shards = |id: &&SocketId| {
            let socket = self.sockets.get(**id);
            socket.is_some_and(|socket| socket.shards.len() > 1)
        };
        self.stirred.extend(sockets.filter(has_shards));
        self.stirred.extend(&self.left_behind);
    }

    /// Sees to it that no shard is closed with clients in it, and none that nobody wants is kept for longer.
    pub(super) fn settle_shards(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else {
            return;
        };
        if socket.retired {
            return self.settle_left_shards(turn, id);
        }
        // One that nobody has may get another watcher.
        if socket.shards.is_empty() || socket.watchers.is_empty() || self.is_stopping() {
            return;
        }
        let claims = self.claims(id);
        let wids = 1..=socket.shards.len() as u32;
        let needs: Vec<Need> = wids.map(|wid| need_of_wid(&claims, wid)).collect();
        let need_of_wid = |wid: u32| needs[wid as usize - 1];
        // The first when it is known what becomes of the others.
        for wid in (2..=socket.shards.len() as u32).chain([1]) {
            let need = match wid {
                1 => self.need_of_first(id, need_of_wid),
                _ => need_of_wid(wid),
            };
            let is_kept = need == Need::None && (wid == 1 || self.is_shard_in_use(id, wid));
            let shard = self.sockets[id].shard(wid);
            let close = |tries| {
                let effect = Effect::CloseShard { socket: id, wid };
                (effect, Shard::Closing { tries })
            };
            let (effect, next) = match (shard, need) {
                (Shard::Closed, _)
                | (Shard::Open, Need::Served)
                | (_, Need::Kept)
                | (Shard::Closing { .. }, Need::None) => continue,
                (
                    Shard::Draining { .. } | Shard::Closing { .. } | Shard::Owed { .. },
                    Need::Served,
                ) => (Effect::OpenShard { socket: id, wid }, Shard::Open),
                (Shard::Open, Need::None) if is_kept => {
                    let (by, tries) = (None, 0);
                    let effect = Effect::ShutShard { socket: id, wid };
                    (effect, Shard::Draining { by, tries })
                }
                (Shard::Draining { .. } | Shard::Owed { .. }, Need::None) if is_kept => continue,
                (Shard::Open, Need::None) => close(0),
                (Shard::Draining { tries, .. }, Need::None) => close(tries),
                (Shard::Owed { tries }, Need::None) => {
                    self.serve_shard(turn, id, wid, tries);
                    continue;
                }
            };
            turn.effects.push(effect);
            self.set_shard(id, wid, next);
        }
    }

    /// Has a worker made that serves what waits in a shard of a wid that is not wanted, if there is a watcher that can.
    fn serve_shard(&mut self, turn: &mut Turn<'_>, id: SocketId, wid: u32, tries: u32) {
        if let Some(heir) = self.heir_of_shard(id, wid) {
            self.serve_shard_by(turn, heir, id, wid, tries);
        }
    }

    fn serve_shard_by(
        &mut self,
        turn: &mut Turn<'_>,
        heir: WatcherId,
        id: SocketId,
        wid: u32,
        tries: u32,
    ) {
        self.add_slots(heir, wid);
        let by = Some(heir);
        let tries = tries.saturating_add(1);
        self.set_shard(id, wid, Shard::Draining { by, tries });
        let unit = self.watcher(heir).unit();
        let delay = backoff(tries - 1, unit.restart_delay, unit.restart_max_delay);
        let next = match delay.is_zero() {
            true => State::Due,
            false => State::Backoff {
                until: turn.now + delay,
                after: format!(
                    "clients wait in the queue of worker {wid}, which is not wanted any more"
                ),
            },
        };
        self.set_state(Post::main(heir, wid), next);
        self.log(turn, LogLevel::Info, heir, || {
            format!("clients wait in the queue of worker {wid}, which is not wanted any more: it runs until they are served")
        });
    }

    /// The same for the shards of a socket that goes, which others take along but where what has its address has the first of
    /// them alone.
    fn settle_left_shards(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        if !self.sockets[id].left_behind {
            return;
        }
        // If there is none any more, nothing may need the socket.
        self.users_stale |= self.sockets[id].shards.len() <= 1;
        if self.is_stopping() {
            return;
        }
        let Some(successor) = self.successor(id) else {
            return;
        };
        let may_go_back = |user: &WatcherId| {
            let watcher = self.watcher(*user);
            watcher.edition.sockets.contains(&id) || watcher.is_to_have(id)
        };
        if self.sockets[id].watchers.iter().any(may_go_back) {
            return;
        }
        for wid in 2..=self.sockets[id].shards.len() as u32 {
            let tries = match self.sockets[id].shard(wid) {
                Shard::Closed | Shard::Closing { .. } => continue,
                _ if self.is_left_shard_in_use(id, wid) => continue,
                Shard::Open => 0,
                Shard::Draining { tries, .. } => tries,
                Shard::Owed { tries } => {
                    let heir = self.possible_heirs(successor).next();
                    if let Some(heir) = heir {
                        let to = self.wid_for_left_shard(turn, heir, id, wid);
                        self.serve_shard_by(turn, heir, id, to, tries);
                    }
                    continue;
                }
            };
            let socket = id;
            turn.effects.push(Effect::CloseShard { socket, wid });
            self.set_shard(id, wid, Shard::Closing { tries });
        }
    }

    /// Whether a process has a shard that was left behind, or is about to be made for it.
    fn is_left_shard_in_use(&self, id: SocketId, wid: u32) -> bool {
        let has_it = |user: &WatcherId| {
            let watcher = self.watcher(*user);
            let slot = watcher.slots.get(wid as usize - 1);
            let mut states = slot
                .into_iter()
                .flat_map(|slot| Seat::BOTH.map(|it| slot.state(it)));
            states.any(|state| {
                let number = state.edition();
                number.is_some_and(|it| watcher.edition(it).sockets.contains(&id))
            })
        };
        let is_awaited = match self.sockets[id].shard(wid) {
            Shard::Draining { by, .. } => {
                by.and_then(|by| self.watchers.get(by)).is_some_and(|by| {
                    let slot = by.slots.get(wid as usize - 1);
                    let is_next = |slot: &Slot| !slot.is_vacant() && slot.main.edition().is_none();
                    // Once it is wanted for itself, its worker is one like others.
                    wid > by.wanted && slot.is_some_and(is_next)
                })
            }
            Shard::Open | Shard::Closing { .. } | Shard::Owed { .. } | Shard::Closed => false,
        };
        is_awaited || self.sockets[id].watchers.iter().any(has_it)
    }

    /// The wid of a worker that is made for a shard which was left behind: its own, or if there is a worker of that, one beyond
    /// all others, which the shard is given to.
    fn wid_for_left_shard(
        &mut self,
        turn: &mut Turn<'_>,
        heir: WatcherId,
        id: SocketId,
        wid: u32,
    ) -> u32 {
        let watcher = self.watcher(heir);
        let slot = watcher.slots.get(wid as usize - 1);
        if wid > watcher.wanted && slot.is_none_or(Slot::is_vacant) {
            return wid;
        }
        let shards = self.sockets[id].shards.len();
        let last = watcher.slots.len().max(shards) as u32;
        let to = last.max(watcher.wanted).saturating_add(1);
        let (socket, from) = (id, wid);
        turn.effects.push(Effect::MoveShard { socket, from, to });
        self.set_shard(id, wid, Shard::Closed);
        to
    }

    pub(super) fn shard_closed(&mut self, id: SocketId, wid: u32) {
        let shard = self.sockets.get(id).map(|socket| socket.shard(wid));
        if let Some(Shard::Closing { .. }) = shard {
            self.set_shard(id, wid, Shard::Closed);
        }
    }

    pub(super) fn shard_owed(&mut self, id: SocketId, wid: u32) {
        let shard = self.sockets.get(id).map(|socket| socket.shard(wid));
        if let Some(Shard::Closing { tries }) = shard {
            self.set_shard(id, wid, Shard::Owed { tries });
        }
    }

    /// The one place where what is known of a shard changes.
    fn set_shard(&mut self, id: SocketId, wid: u32, shard: Shard) {
        self.stirred.insert(id);
        let Some(socket) = self.socket_mut(id) else {
            return;
        };
        let shards = &mut socket.shards;
        if shards.len() < wid as usize {
            shards.resize(wid as usize, Shard::Closed);
        }
        shards[wid as usize - 1] = shard;
        while shards.last() == Some(&Shard::Closed) {
            shards.pop();
        }
    }
}

impl Watcher {
    /// Whether what is started next has this socket, or what is started after the reload that is under way.
    fn is_to_have(&self, id: SocketId) -> bool {
        let queued = self.queued.as_ref().and_then(|it| it.edition.as_ref());
        let mut editions = [self.next()].into_iter().chain(queued);
        editions.any(|edition| edition.sockets.contains(&id))
    }
}

impl Socket {
    fn shard(&self, wid: u32) -> Shard {
        let place = wid.checked_sub(1);
        let shard = place.and_then(|place| self.shards.get(place as usize));
        shard.copied().unwrap_or(Shard::Closed)
    }
}
