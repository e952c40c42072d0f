//! The life of a socket: bound, watched, paused. The rules stand at the head of [`super`].

use super::state::{Binding, Edition, Goal, Mishap, Post, State};
use super::time::backoff;
use super::timers::Due;
use super::{Effect, SocketId, Supervisor, Turn, WatcherId};
use crate::unit::{Gather, LogLevel};
use std::collections::BTreeSet;
use std::time::Duration;

const SHORTEST_BIND_RETRY: Duration = Duration::from_millis(100);
const LONGEST_BIND_RETRY: Duration = Duration::from_secs(30);

/// Traffic that comes within this after its socket is watched was there before.
const AT_ONCE: Duration = Duration::from_millis(50);

impl Supervisor {
    /// Whether traffic on it must wake us: on all of it, or only in the shards of these wids.
    fn to_watch(&self, id: SocketId) -> Option<Vec<u32>> {
        let socket = self.sockets.get(id)?;
        if !matches!(socket.binding, Binding::Bound) || socket.trigger.paused.is_some() {
            return None;
        }
        let mut users = socket.watchers.iter();
        if users.any(|watcher| self.is_started_by(*watcher, id)) {
            return Some(Vec::new());
        }
        let users = socket.watchers.iter();
        let wids: BTreeSet<u32> = (users.flat_map(|it| self.on_call(*it, id))).gather();
        match socket.spec.unit.so_reuseport.value {
            _ if wids.is_empty() => None,
            true => Some(wids.into_iter().collect()),
            false => Some(Vec::new()),
        }
    }

    /// The slots of a watcher that is up in which traffic on the socket starts a worker.
    fn on_call(&self, watcher: WatcherId, id: SocketId) -> Vec<u32> {
        let watcher = self.watcher(watcher);
        let is_up = matches!(watcher.goal, Goal::Up { .. });
        // Most have none, and are asked often.
        let busy = watcher.tally.busy() - watcher.tally.beside;
        let has_vacant = busy < watcher.slots.len() as u32;
        if !is_up || !has_vacant || !watcher.edition.sockets.contains(&id) {
            return Vec::new();
        }
        (watcher.numbered().take(watcher.wanted as usize))
            .filter(|(_, slot)| slot.is_vacant() && watcher.is_on_call(slot))
            .map(|(wid, _)| wid)
            .collect()
    }

    /// Those of a watcher's sockets that may have to be watched, or not any more.
    pub(super) fn stir_watched(&mut self, id: WatcherId) {
        for edition in self.watchers[id].editions() {
            let is_on_demand = edition.spec.unit.on_demand.value;
            let may_change = |id: &&SocketId| {
                let socket = self.sockets.get(**id);
                is_on_demand || socket.is_some_and(|socket| socket.watched)
            };
            self.stirred
                .extend(edition.sockets.iter().filter(may_change));
        }
    }

    /// Whether traffic on the socket starts the watcher.
    fn is_started_by(&self, watcher: WatcherId, id: SocketId) -> bool {
        let watcher = self.watcher(watcher);
        watcher.goal == Goal::Waiting && watcher.edition.sockets.contains(&id)
    }

    pub(super) fn settle_socket(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        self.settle_shards(turn, id);
        let must = self.to_watch(id);
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        let watched = socket.watched.then_some(&socket.watched_shards);
        if watched == must.as_ref() {
            return;
        }
        self.dirty.sockets.insert(id);
        socket.watched = must.is_some();
        socket.watched_shards = must.clone().unwrap_or_default();
        turn.effects.push(match must {
            Some(shards) => {
                socket.watched_since = turn.now;
                Effect::Watch { socket: id, shards }
            }
            None => Effect::Unwatch { socket: id },
        });
    }

    pub(super) fn traffic(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        if self.to_watch(id).is_none() {
            return;
        }
        let Some(socket) = self.socket_mut(id) else {
            return;
        };
        let limit = socket.spec.unit.trigger_limit;
        let trigger = &mut socket.trigger;
        if turn.now.since(trigger.window) >= limit.interval || trigger.count == 0 {
            trigger.window = turn.now;
            trigger.count = 0;
        }
        trigger.count = trigger.count.saturating_add(1);
        if limit.burst > 0 && !limit.interval.is_zero() && trigger.count > limit.burst {
            let until = trigger.window + limit.interval;
            trigger.paused = Some(until);
            self.timers.set(Due::Socket(id), Some(until));
            self.stirred.insert(id);
            self.log_socket(turn, LogLevel::Warn, id, || {
                format!(
                    "activated more than {} times in {:?} (`trigger_limit`); clients wait until the interval is over",
                    limit.burst, limit.interval
                )
            });
            return;
        }
        for watcher in self.users(id) {
            if self.is_started_by(watcher, id) {
                self.note_return(turn, watcher, id);
                self.log(turn, LogLevel::Debug, watcher, || {
                    "started by traffic".into()
                });
                self.start_watcher(turn, watcher);
                continue;
            }
            let wids = self.on_call(watcher, id);
            if !wids.is_empty() {
                self.note_return(turn, watcher, id);
            }
            for wid in wids {
                self.log(turn, LogLevel::Debug, watcher, || {
                    format!("worker {wid} is started by traffic")
                });
                self.set_state(Post::main(watcher, wid), State::Due);
            }
        }
    }

    /// Traffic that is there as soon as the socket is watched again was there before: the last worker has left it. Once may
    /// be chance; several times in a row are told, since nothing else would show it.
    fn note_return(&mut self, turn: &mut Turn<'_>, id: WatcherId, socket: SocketId) {
        let Some(it) = self.sockets.get(socket) else {
            return;
        };
        let end = self.watcher(id).last_end.as_ref().filter(|end| !end.failed);
        let Some(end) = end.filter(|_| turn.now.since(it.watched_since) <= AT_ONCE) else {
            self.watcher_mut(id).returns = 0;
            return;
        };
        let times = self.watcher(id).returns.saturating_add(1);
        let (ended, name) = (&end.text, it.spec.name());
        let text = format!("{ended} while clients wait on socket `{name}`, {times} times in a row");
        let mishap = Mishap {
            text,
            wid: end.wid,
            exit_code: 0,
            of_reload: false,
        };
        let watcher = self.watcher_mut(id);
        let was_told = watcher.returns_often();
        watcher.returns = times;
        if watcher.returns_often() {
            if !was_told {
                let text = format!("{}; `status` tells from now on", mishap.text);
                self.log(turn, LogLevel::Warn, id, || text);
            }
            self.watcher_mut(id).mishap = Some(mishap);
        }
    }

    pub(super) fn socket_due(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        let Some(socket) = self.socket_mut(id) else {
            return;
        };
        if socket.trigger.paused.is_some_and(|until| until <= turn.now) {
            socket.trigger.paused = None;
            self.stirred.insert(id);
            return;
        }
        if let Binding::Failed {
            error, attempts, ..
        } = &mut socket.binding
        {
            let (error, attempts) = (std::mem::take(error), *attempts);
            socket.binding = Binding::Trying { error, attempts };
            turn.effects.push(Effect::Bind { socket: id });
        }
    }

    pub(super) fn bind_failed(&mut self, turn: &mut Turn<'_>, id: SocketId, error: String) {
        let Some(Binding::Trying { attempts, .. }) = self.sockets.get(id).map(|it| &it.binding)
        else {
            return;
        };
        let attempts = *attempts;
        self.retry_bind(turn, id, error, attempts + 1);
    }

    pub(super) fn retry_bind(
        &mut self,
        turn: &mut Turn<'_>,
        id: SocketId,
        error: String,
        attempts: u32,
    ) {
        let delay = backoff(attempts + 1, SHORTEST_BIND_RETRY, LONGEST_BIND_RETRY);
        let retry = turn.now + delay;
        let level = if attempts == 0 {
            LogLevel::Warn
        } else {
            LogLevel::Debug
        };
        self.log_socket(turn, level, id, || {
            format!("is not bound: {error}; next try in {delay:?}")
        });
        let Some(socket) = self.socket_mut(id) else {
            return;
        };
        socket.binding = Binding::Failed {
            error,
            attempts,
            retry,
        };
        let retired = socket.retired;
        if !self.is_stopping() && !retired {
            self.timers.set(Due::Socket(id), Some(retry));
        }
    }

    pub(super) fn bound(&mut self, turn: &mut Turn<'_>, id: SocketId) {
        let Some(socket) = self.socket_mut(id) else {
            return;
        };
        if matches!(socket.binding, Binding::Bound) {
            return;
        }
        socket.binding = Binding::Bound;
        // It may have been bound before its next try was due.
        self.timers.set(Due::Socket(id), None);
        self.log_socket(turn, LogLevel::Info, id, || "is bound now".into());
        self.stirred.insert(id);
        if self.sockets.get(id).is_some_and(|socket| socket.retired) {
            return;
        }
        // Workers that run without it are replaced by some that have it; others may have waited for it.
        for watcher in self.users(id) {
            self.queue_if_startable(turn, watcher);
            if matches!(self.watcher(watcher).goal, Goal::Up { .. })
                && self.refuse_reload(watcher).is_ok()
            {
                let is_used = |edition: &Edition| edition.sockets.contains(&id);
                if self.begin_queued(turn, watcher) {
                    // It brings what has this one too.
                } else if self.watcher(watcher).begun_editions().any(is_used) {
                    self.reload_watcher(turn, watcher, None);
                }
            }
        }
    }

    /// The watchers that listen on it.
    fn users(&self, id: SocketId) -> Vec<WatcherId> {
        let socket = self.sockets.get(id);
        socket
            .map(|socket| socket.watchers.clone())
            .unwrap_or_default()
    }
}
