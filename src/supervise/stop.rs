//! Stopping a worker: the signal, the wait, and the kill; and what goes with it.

use super::state::{Post, State, Why};
use super::time::Time;
use super::{Effect, ProcId, SocketId, Supervisor, Turn, WatcherId};
use crate::unit::{Arrange, Signal};
use std::time::Duration;

const SIGKILL: Signal = Signal(9);
const SIGCONT: Signal = Signal(18);

impl Supervisor {
    /// Asks what stands at a post to end, by its `stop_signal`. Where nothing runs the post is vacated.
    pub(super) fn stop_post(&mut self, turn: &mut Turn<'_>, post: Post, why: Why) {
        let signal = self.unit_at(post).stop_signal;
        self.stop_post_by(turn, post, why, signal);
    }

    /// Asks everything to end that stands at the posts of a watcher. What goes with it is served first by the last that can.
    pub(super) fn stop_posts(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        for wid in 1..=self.watcher(id).slots.len() as u32 {
            for post in Post::both(id, wid) {
                self.dismiss_post(turn, post);
            }
        }
    }

    pub(super) fn stop_post_by(
        &mut self,
        turn: &mut Turn<'_>,
        post: Post,
        why: Why,
        signal: Signal,
    ) {
        let unit = self.unit_at(post);
        let (graceful, group) = (unit.graceful_timeout, unit.stop_children);
        let state = match self.take_state(post) {
            State::Vacant | State::Due | State::Backoff { .. } => {
                self.vacate(post);
                return;
            }
            launching @ State::Launching { .. } => cancelled(turn, launching),
            State::Starting { mut worker, .. }
            | State::Settling { mut worker, .. }
            | State::Ready { mut worker, .. }
            | State::Draining { mut worker, .. } => {
                let proc = worker.proc;
                turn.effects.push(Effect::Signal {
                    proc,
                    signal,
                    group,
                });
                if signal != SIGKILL {
                    // A stopped process could not act on it.
                    turn.effects.push(Effect::Signal {
                        proc,
                        signal: SIGCONT,
                        group,
                    });
                }
                worker.since = turn.now;
                State::Stopping {
                    worker,
                    why,
                    kill_at: Some(kill_time(turn.now, graceful)),
                }
            }
            State::Stopping {
                worker,
                kill_at,
                why: before,
            } => State::Stopping {
                worker,
                kill_at,
                why: stronger(before, why),
            },
            State::Leaving {
                worker,
                exit,
                kill_at,
                why: before,
            } => State::Leaving {
                worker,
                exit,
                kill_at,
                why: stronger(before, why),
            },
        };
        self.set_state(post, state);
    }

    /// Ends what stands at a post by force.
    pub(super) fn kill_post(&mut self, turn: &mut Turn<'_>, post: Post) {
        let state = match self.take_state(post) {
            State::Vacant | State::Due | State::Backoff { .. } => {
                self.vacate(post);
                return;
            }
            launching @ State::Launching { .. } => cancelled(turn, launching),
            State::Starting { mut worker, .. }
            | State::Settling { mut worker, .. }
            | State::Ready { mut worker, .. }
            | State::Draining { mut worker, .. } => {
                turn.effects.push(Effect::Kill { proc: worker.proc });
                worker.since = turn.now;
                State::Stopping {
                    worker,
                    why: Why::Asked,
                    kill_at: None,
                }
            }
            State::Stopping { worker, why, .. } => {
                turn.effects.push(Effect::Kill { proc: worker.proc });
                State::Stopping {
                    worker,
                    why,
                    kill_at: None,
                }
            }
            State::Leaving {
                worker,
                why,
                exit,
                kill_at,
            } => {
                if kill_at.is_some() {
                    turn.effects
                        .push(Effect::KillLeftovers { proc: worker.proc });
                }
                State::Leaving {
                    worker,
                    why,
                    exit,
                    kill_at: None,
                }
            }
        };
        self.set_state(post, state);
    }

    pub(super) fn drained(&mut self, turn: &mut Turn<'_>, proc: ProcId) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        if matches!(self.state(post), State::Draining { .. }) {
            self.stop_post(turn, post, Why::Asked);
        }
    }

    /// Takes a slot out of use that is not wanted.
    pub(super) fn retire_slot(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32) {
        self.dismiss_post(turn, Post::beside(id, wid));
        self.dismiss_post(turn, Post::main(id, wid));
    }

    /// Stops a worker that is not wanted, or is replaced. What goes with it, and is served by nobody after it, it serves
    /// first.
    pub(super) fn dismiss_post(&mut self, turn: &mut Turn<'_>, post: Post) {
        if self.users_stale {
            // It stays stale: what nobody uses is closed later.
            self.rebuild_users();
        }
        let sockets = match self.state(post) {
            State::Ready { .. } | State::Draining { .. } => self.goes_with(post),
            _ => Vec::new(),
        };
        if sockets.is_empty() {
            self.stop_post(turn, post, Why::Asked);
        } else if matches!(self.state(post), State::Ready { .. }) {
            self.drain_shards(&sockets, post.wid);
            self.drain_post(turn, post, sockets);
        }
    }

    /// What goes with a worker: the shards that nobody wants any more, and the sockets that are in the plan no more. At the
    /// manager's end everything does, and nobody waits for that.
    pub(super) fn goes_with(&self, post: Post) -> Vec<SocketId> {
        if self.is_stopping() {
            return Vec::new();
        }
        let mut sockets = self.leaving_shards(post);
        sockets.extend(self.leaving_sockets(post));
        sockets.arrange();
        sockets
    }

    pub(super) fn drain_post(&mut self, turn: &mut Turn<'_>, post: Post, sockets: Vec<SocketId>) {
        let graceful = self.unit_at(post).graceful_timeout;
        if let State::Ready { worker, .. } = self.take_state(post) {
            let until = graceful.map(|timeout| turn.now + timeout);
            let proc = worker.proc;
            turn.effects.push(Effect::Drain { proc, sockets });
            self.set_state(post, State::Draining { worker, until });
        }
    }

    /// The sockets of a worker that are in the plan no more, and that nobody else serves: of those with shards all, since
    /// the others have their own.
    fn leaving_sockets(&self, post: Post) -> Vec<SocketId> {
        let Some(number) = self.state(post).edition() else {
            return Vec::new();
        };
        let goes = |id: &SocketId| {
            let socket = self.sockets.get(*id).filter(|socket| socket.retired);
            socket.is_some_and(|socket| {
                let mut users = socket.watchers.iter();
                socket.spec.unit.so_reuseport.value
                    || !users.any(|watcher| self.has_server(*watcher, *id, post))
            })
        };
        let edition = self.watcher(post.watcher).edition(number);
        (edition.sockets.iter().copied()).filter(goes).collect()
    }

    /// Whether a watcher has a worker that serves a socket, beside the one at this post. One that is to serve it may be
    /// stopped before it is ready.
    fn has_server(&self, id: WatcherId, socket: SocketId, but: Post) -> bool {
        let watcher = self.watcher(id);
        watcher.numbered().any(|(wid, _)| {
            Post::both(id, wid).into_iter().any(|post| {
                let state = self.state(post);
                let has_it = |number| watcher.edition(number).sockets.contains(&socket);
                let serves = matches!(state, State::Ready { .. });
                post != but && serves && state.edition().is_some_and(has_it)
            })
        })
    }
}

/// When a worker that is asked to end now is killed.
pub(super) fn kill_time(now: Time, graceful_timeout: Option<Duration>) -> Time {
    graceful_timeout.map_or(Time::NEVER, |timeout| now + timeout)
}

/// A stop that somebody asked for outweighs one that came of itself.
fn stronger(before: Why, now: Why) -> Why {
    match now {
        Why::Asked => Why::Asked,
        Why::Failed(_) | Why::Itself => before,
    }
}

/// A process that is being made, and is not wanted any more.
fn cancelled(turn: &mut Turn<'_>, mut launching: State) -> State {
    if let State::Launching {
        proc, cancelled, ..
    } = &mut launching
        && !std::mem::replace(cancelled, true)
    {
        turn.effects.push(Effect::CancelSpawn { proc: *proc });
    }
    launching
}
