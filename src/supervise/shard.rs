//! The life of a shard: the kernel queue of one wid. The rules stand at the head of [`super`].

use super::state::{Goal, Post, Slot, State};
use super::worker::backoff;
use super::{Effect, SocketId, Supervisor, Turn, WatcherId};
use crate::unit::{LogLevel, Restart, WatcherKind};
use serde::{Deserialize, Serialize};

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Shard {
    /// New clients may come to it.
    Open,
    /// No new ones come, and a worker of its wid serves those that wait, or is to. If it is one that was made for that:
    /// of which watcher.
    Draining { by: Option<WatcherId>, tries: u32 },
    /// It is closed if nobody waits in it: the runtime has not answered yet.
    Closing { tries: u32 },
    /// Clients wait in it, and so many workers have not served them all.
    Owed { tries: u32 },
    /// There is none.
    Closed,
}

impl Supervisor {
    /// Says that this wid is going to have its shards.
    pub(super) fn open_shards(&mut self, sockets: &[SocketId], wid: u32) {
        for id in sockets {
            let Some(socket) = self.sockets.get(*id) else {
                continue;
            };
            let is_there = !matches!(socket.shard(wid), Shard::Closed);
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

    /// The sockets in the plan whose shard of this worker's goes with it, since no watcher wants the wid any more.
    pub(super) fn leaving_shards(&self, post: Post) -> Vec<SocketId> {
        let watcher = self.watcher(post.watcher);
        let edition = self.state(post).edition();
        let edition = edition.map_or(watcher.next(), |number| watcher.edition(number));
        let goes = |id: &SocketId| {
            let socket = self.sockets.get(*id).filter(|socket| !socket.retired);
            socket.is_some_and(|socket| socket.spec.unit.so_reuseport.value)
                && post.wid > self.wanted_shards(*id)
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
        })
    }

    /// So many shards are wanted. The first stays as long as the socket does, so that its port does.
    fn wanted_shards(&self, id: SocketId) -> u32 {
        let users = self.sockets[id].watchers.iter();
        let users = users.map(|watcher| self.watcher(*watcher));
        let wanted = users.filter(|it| !it.retired).map(|it| it.wanted);
        wanted.max().unwrap_or_default().max(1)
    }

    /// Whether some watcher has a worker of this wid that may have the shard.
    fn is_shard_in_use(&self, id: SocketId, wid: u32) -> bool {
        let mut users = self.sockets[id].watchers.iter();
        users.any(|watcher| {
            let slot = self.watcher(*watcher).slots.get(wid as usize - 1);
            slot.is_some_and(|slot| !slot.is_vacant())
        })
    }

    /// The watcher that can have a worker serve what others have left.
    fn heir_of_shards(&self, id: SocketId) -> Option<WatcherId> {
        let is_fit = |watcher: &WatcherId| {
            let watcher = self.watcher(*watcher);
            let unit = &watcher.next().spec.unit;
            // What is to run once does not run again for this.
            let once = unit.kind == WatcherKind::Oneshot || unit.restart == Restart::Never;
            matches!(watcher.goal, Goal::Up { .. })
                && !watcher.retired
                && !once
                && watcher.next().sockets.contains(&id)
        };
        self.sockets[id].watchers.iter().copied().find(is_fit)
    }

    /// The sockets of a watcher of which some shards may have to go, or to stay.
    pub(super) fn stir_shards(&mut self, id: WatcherId) {
        let sockets = self.watchers[id].editions().flat_map(|it| &*it.sockets);
        let has_shards = |id: &&SocketId| {
            let socket = self.sockets.get(**id);
            socket.is_some_and(|socket| socket.shards.len() > 1)
        };
        self.stirred.extend(sockets.filter(has_shards));
    }

    /// Sees to it that no shard is closed with clients in it, and none that nobody wants is kept for longer.
    pub(super) fn settle_shards(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else {
            return;
        };
        // A socket that goes takes its shards along, and one that nobody has may get another watcher.
        if socket.retired || socket.watchers.is_empty() || self.is_stopping() {
            return;
        }
        let wanted = self.wanted_shards(id);
        for wid in 2..=socket.shards.len() as u32 {
            let shard = self.sockets[id].shard(wid);
            let is_wanted = wid <= wanted;
            let close = |tries| {
                (
                    Effect::CloseShard { socket: id, wid },
                    Shard::Closing { tries },
                )
            };
            let (effect, next) = match shard {
                Shard::Closed => continue,
                Shard::Open if is_wanted => continue,
                Shard::Draining { .. } | Shard::Closing { .. } | Shard::Owed { .. }
                    if is_wanted =>
                {
                    (Effect::OpenShard { socket: id, wid }, Shard::Open)
                }
                Shard::Closing { .. } => continue,
                _ if self.is_shard_in_use(id, wid) => continue,
                Shard::Open => close(0),
                Shard::Draining { tries, .. } => close(tries),
                Shard::Owed { tries } => {
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
        let Some(heir) = self.heir_of_shards(id) else {
            return;
        };
        let slots = &mut self.watcher_mut(heir).slots;
        if slots.len() < wid as usize {
            slots.resize_with(wid as usize, Slot::default);
        }
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

impl super::state::Socket {
    fn shard(&self, wid: u32) -> Shard {
        let shard = self.shards.get(wid as usize - 1);
        shard.copied().unwrap_or(Shard::Closed)
    }
}
