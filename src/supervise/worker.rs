//! The start of a worker: from due to ready, what it says meanwhile and later, and what is due at a post. The rules stand at
//! the head of [`super`].

use super::end::End;
use super::state::{Complaints, Post, Seat, State, Why, Worker};
use super::stop::kill_time;
use super::timers::Due;
use super::{Effect, Pid, ProcId, Sender, SpawnFailure, Supervisor, Turn, WatcherId, notify};
use crate::unit::{self, LogLevel, WatcherKind};
use std::rc::Rc;
use std::time::Duration;

/// Longest STATUS= text that is kept, in bytes, as in systemd.
const MAX_STATUS: usize = 16 * 1024;

/// How long a replacement that says nothing of itself has to stay alive before who serves is stopped for it.
const PROOF: Duration = Duration::from_millis(100);

impl Supervisor {
    /// Spawns what is due, as fast as `warmup_delay` allows.
    pub(super) fn launch_due(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let warmup = self.watcher(id).unit().warmup_delay;
        let mut wid = 1;
        while self.watcher(id).tally.due > 0 && wid <= self.watcher(id).slots.len() as u32 {
            for post in Post::both(id, wid) {
                if !matches!(self.state(post), State::Due) {
                    continue;
                }
                let next_spawn = self.watcher(id).next_spawn;
                if next_spawn > turn.now {
                    self.timers.set(Due::Watcher(id), Some(next_spawn));
                    return;
                }
                self.launch(turn, post);
                self.watcher_mut(id).next_spawn = turn.now + warmup;
            }
            wid += 1;
        }
        self.timers.set(Due::Watcher(id), None);
    }

    fn launch(&mut self, turn: &mut Turn<'_>, post: Post) {
        let proc = self.new_proc();
        let slot = self.slot_mut(post.watcher, post.wid);
        slot.generation += 1;
        let generation = slot.generation;
        if post.seat == Seat::Main {
            slot.ended_badly = None;
        }
        let edition = self.edition_to_launch(post);
        let sockets = Rc::clone(&self.watcher(post.watcher).edition(edition).sockets);
        self.open_shards(turn, &sockets, post.wid);
        let launching = State::Launching {
            proc,
            edition,
            generation,
            cancelled: false,
        };
        self.set_state(post, launching);
        self.order_spawn(turn, post, proc, edition, generation);
    }

    /// Asks for a process to be made.
    pub(super) fn order_spawn(
        &self,
        turn: &mut Turn<'_>,
        post: Post,
        proc: ProcId,
        edition: u32,
        generation: u64,
    ) {
        let edition = self.watcher(post.watcher).edition(edition);
        turn.effects.push(Effect::Spawn {
            proc,
            watcher: post.watcher,
            wid: post.wid,
            generation,
            spec: Rc::clone(&edition.spec),
            sockets: Rc::clone(&edition.sockets),
        });
    }

    pub(super) fn spawned(&mut self, turn: &mut Turn<'_>, proc: ProcId, pid: Pid) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        let State::Launching {
            cancelled,
            edition,
            generation,
            ..
        } = *self.state(post)
        else {
            return;
        };
        let (id, wid) = (post.watcher, post.wid);
        let unit = &self.watcher(id).edition(edition).spec.unit;
        let worker = Worker {
            proc,
            pid,
            edition,
            generation,
            since: turn.now,
            ready: None,
            expires: None,
            status: None,
            errno: None,
            watchdog: unit.watchdog,
            reloading: false,
            complaints: Complaints::default(),
        };
        let (kind, start_timeout) = (unit.kind, unit.start_timeout);
        self.log(turn, LogLevel::Debug, id, || {
            format!("worker {wid} started with pid {}", pid.0)
        });
        if cancelled {
            let deadline = None;
            self.set_state(post, State::Starting { worker, deadline });
            if self.is_forced() {
                self.kill_post(turn, post);
            } else {
                self.stop_post(turn, post, Why::Asked);
            }
            return;
        }
        if post.seat == Seat::Main && std::mem::take(&mut self.slot_mut(id, wid).bereaved) {
            self.watcher_mut(id).restarts += 1;
        }
        match kind {
            WatcherKind::Exec => self.settle_worker(turn, post, worker),
            WatcherKind::Notify | WatcherKind::Oneshot => {
                let deadline = start_timeout.map(|timeout| turn.now + timeout);
                self.set_state(post, State::Starting { worker, deadline });
            }
        }
    }

    /// What its `type` asks for has come: only `ready_delay`, or the proof of a replacement, is between it and being ready.
    fn settle_worker(&mut self, turn: &mut Turn<'_>, post: Post, worker: Worker) {
        let unit = &self.watcher(post.watcher).edition(worker.edition).spec.unit;
        let is_replacement =
            post.seat == Seat::Beside || self.is_replacement(post.watcher, post.wid, worker.proc);
        let delay = match unit.kind {
            // Of a program that fails at once, neither may one that serves be stopped on the word of its exec, nor a
            // definition be given up that worked.
            WatcherKind::Exec if is_replacement => unit.ready_delay.max(PROOF),
            _ => unit.ready_delay,
        };
        if delay.is_zero() {
            self.make_ready(turn, post, worker);
        } else {
            let until = turn.now + delay;
            self.set_state(post, State::Settling { worker, until });
        }
    }

    fn make_ready(&mut self, turn: &mut Turn<'_>, post: Post, mut worker: Worker) {
        let (id, wid) = (post.watcher, post.wid);
        worker.since = turn.now;
        worker.ready = Some(turn.now);
        worker.expires = self.expiry(id, &worker, turn.now);
        let watchdog = worker.watchdog.map(|interval| turn.now + interval);
        self.watcher_mut(id).failures = 0;
        self.reload_when_ready(turn, id, &worker);
        self.set_state(post, State::Ready { worker, watchdog });
        self.log(turn, LogLevel::Debug, id, || {
            format!("worker {wid} is ready")
        });
        if post.seat == Seat::Beside {
            self.promote(turn, id, wid);
        } else if wid > self.watcher(id).wanted || self.has_left_shard(post) {
            // It was made to serve what waits in a shard, and nothing more.
            self.retire_slot(turn, id, wid);
        }
    }

    pub(super) fn spawn_failed(
        &mut self,
        turn: &mut Turn<'_>,
        proc: ProcId,
        failure: SpawnFailure,
    ) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        let State::Launching { cancelled, .. } = *self.state(post) else {
            return;
        };
        self.take_state(post);
        let text = format!("could not be started: {}", failure.reason);
        match post.seat {
            Seat::Beside if cancelled => {}
            Seat::Beside => self.replacement_failed(turn, post.watcher, post.wid, &text),
            Seat::Main if self.is_needed(post.watcher, post.wid) => {
                let end = End {
                    text,
                    clean: false,
                    succeeded: false,
                    lived: false,
                    is_oneshot: false,
                    ready: None,
                    proc,
                    exit_code: failure.exit_code,
                };
                self.ended(turn, post.watcher, post.wid, end);
            }
            Seat::Main => self.vacate(post),
        }
    }

    pub(super) fn spawn_cancelled(&mut self, proc: ProcId) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        if matches!(self.state(post), State::Launching { .. }) {
            self.take_state(post);
            self.replace_or_vacate(post);
        }
    }

    pub(super) fn notified(
        &mut self,
        turn: &mut Turn<'_>,
        proc: ProcId,
        sender: Sender,
        message: notify::Message,
    ) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        let (id, wid) = (post.watcher, post.wid);
        let Some(edition) = self.state(post).edition() else {
            return;
        };
        let access = self.watcher(id).edition(edition).spec.unit.notify_access;
        let refused = match (access, sender) {
            (unit::NotifyAccess::All, _) | (unit::NotifyAccess::Main, Sender::Main) => None,
            (unit::NotifyAccess::Main, Sender::Other(pid)) => Some(format!(
                "a notification of pid {} is ignored, since it is not the main process (`notify_access` is \"main\")",
                pid.0
            )),
            (unit::NotifyAccess::None, _) => {
                Some("a notification is ignored, since `notify_access` is \"none\"".into())
            }
        };
        if let Some(text) = refused {
            self.complain(turn, proc, || text);
            return;
        }
        if matches!(self.state(post), State::Leaving { .. }) {
            // What is left of a worker can't speak for it, let alone name another main process.
            return;
        }
        let Some(worker) = self.slot_mut(id, wid).worker_mut(post.seat) else {
            return;
        };
        let mut follow = None;
        if let Some(pid) = message.main_pid.filter(|pid| *pid != worker.pid.0) {
            worker.pid = Pid(pid);
            follow = Some(Pid(pid));
        }
        if let Some(status) = message.status {
            worker.status =
                Some(status).filter(|text| !text.is_empty() && text.len() <= MAX_STATUS);
        }
        if message.errno.is_some() {
            worker.errno = message.errno;
        }
        if message.watchdog_interval.is_some() {
            worker.watchdog = message.watchdog_interval;
        }
        let was_reloading = worker.reloading || message.reloading;
        if message.reloading {
            worker.reloading = true;
        }
        if message.ready {
            worker.reloading = false;
        }
        if let Some(pid) = follow {
            turn.effects.push(Effect::Follow { proc, pid });
            self.log(turn, LogLevel::Info, id, || {
                format!("the main process of worker {wid} is now pid {}", pid.0)
            });
        }
        self.touched.insert(id);
        if message.ready && was_reloading {
            self.reloaded_itself(id, proc);
        }
        // What comes of it may move the process to the other seat of its slot.
        self.advance_worker(turn, post, message.ready, message.stopping);
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        if let Some(extension) = message.extend_timeout {
            self.extend_worker(turn, post, extension);
        }
        if message.watchdog.is_some() || message.watchdog_interval.is_some() {
            self.feed_watchdog(turn, post, message.watchdog);
        }
    }

    /// Tells the log of a message that was of no use, unless it was told of others just now.
    pub(super) fn complain(
        &mut self,
        turn: &mut Turn<'_>,
        proc: ProcId,
        text: impl FnOnce() -> String,
    ) {
        let Some(Post { watcher, wid, seat }) = self.procs.get(&proc).copied() else {
            return;
        };
        // Nothing of it is recorded, so the slot has not changed.
        let slots = self.watchers.get_mut(watcher).map(|it| &mut it.slots);
        let slot = slots.and_then(|slots| slots.get_mut(wid as usize - 1));
        let worker = slot.and_then(|slot| slot.worker_mut(seat));
        let left_out = match worker.map(|worker| worker.complaints.next(turn.now)) {
            Some(None) => return,
            Some(Some(left_out)) => left_out,
            None => 0,
        };
        self.log(turn, LogLevel::Warn, watcher, || match left_out {
            0 => format!("worker {wid}: {}", text()),
            _ => format!(
                "worker {wid}: {}; {left_out} more like this were left out",
                text()
            ),
        });
    }

    /// READY=1 and STOPPING=1; the latter wins, as in systemd.
    fn advance_worker(&mut self, turn: &mut Turn<'_>, post: Post, ready: bool, stopping: bool) {
        let (id, wid) = (post.watcher, post.wid);
        let state = self.state(post);
        let Some(edition) = state.edition() else {
            return;
        };
        let unit = &self.watcher(id).edition(edition).spec.unit;
        let (kind, graceful) = (unit.kind, unit.graceful_timeout);
        let alive = matches!(
            state,
            State::Starting { .. } | State::Settling { .. } | State::Ready { .. }
        );
        if stopping && alive {
            let (State::Starting { mut worker, .. }
            | State::Settling { mut worker, .. }
            | State::Ready { mut worker, .. }) = self.take_state(post)
            else {
                return;
            };
            worker.since = turn.now;
            let (proc, was_ready) = (worker.proc, worker.ready.is_some());
            let stopping = State::Stopping {
                worker,
                why: Why::Itself,
                kill_at: Some(kill_time(turn.now, graceful)),
            };
            self.set_state(post, stopping);
            self.log(turn, LogLevel::Info, id, || {
                format!("worker {wid} says that it is stopping")
            });
            // One that was ready may end well: that shows when it has.
            if !was_ready && self.is_replacement(id, wid, proc) {
                self.replacement_failed(turn, id, wid, "says that it is stopping");
            }
        } else if ready
            && kind == WatcherKind::Notify
            && matches!(state, State::Starting { .. })
            && let State::Starting { worker, .. } = self.take_state(post)
        {
            self.settle_worker(turn, post, worker);
        }
    }

    /// Moves the deadline that is running, never to an earlier time.
    fn extend_worker(&mut self, turn: &mut Turn<'_>, post: Post, extension: Duration) {
        let until = turn.now + extension;
        let state = match self.take_state(post) {
            State::Starting { worker, deadline } => State::Starting {
                worker,
                deadline: deadline.map(|deadline| deadline.max(until)),
            },
            State::Stopping {
                worker,
                why,
                kill_at,
            } => State::Stopping {
                worker,
                why,
                kill_at: kill_at.map(|deadline| deadline.max(until)),
            },
            State::Ready { worker, watchdog } => {
                self.extend_reload(post.watcher, worker.proc, until);
                State::Ready {
                    worker,
                    watchdog: watchdog.map(|deadline| deadline.max(until)),
                }
            }
            State::Draining { worker, until: at } => State::Draining {
                worker,
                until: at.map(|deadline| deadline.max(until)),
            },
            other => other,
        };
        self.set_state(post, state);
    }

    fn feed_watchdog(&mut self, turn: &mut Turn<'_>, post: Post, said: Option<notify::Watchdog>) {
        if !matches!(self.state(post), State::Ready { .. }) {
            return;
        }
        if said == Some(notify::Watchdog::Trigger) {
            let text = "asked for its own end by WATCHDOG=trigger".into();
            self.watchdog_ran_out(turn, post, text);
        } else if let State::Ready { worker, .. } = self.take_state(post) {
            let watchdog = worker.watchdog.map(|interval| turn.now + interval);
            self.set_state(post, State::Ready { worker, watchdog });
        }
    }

    fn watchdog_ran_out(&mut self, turn: &mut Turn<'_>, post: Post, text: String) {
        let (id, wid) = (post.watcher, post.wid);
        let signal = self.unit_at(post).watchdog_signal;
        self.log(turn, LogLevel::Warn, id, || format!("worker {wid} {text}"));
        self.fail_replacement_at(turn, post, &text);
        self.stop_post_by(turn, post, Why::Failed(text), signal);
    }

    /// A worker is about to be stopped because it failed: if the reload has brought it, that has failed too.
    fn fail_replacement_at(&mut self, turn: &mut Turn<'_>, post: Post, text: &str) {
        let proc = self.state(post).proc();
        if proc.is_some_and(|proc| self.is_replacement(post.watcher, post.wid, proc)) {
            self.replacement_failed(turn, post.watcher, post.wid, text);
        }
    }

    pub(super) fn post_due(&mut self, turn: &mut Turn<'_>, post: Post) {
        let (id, wid) = (post.watcher, post.wid);
        // What is scaled away takes its deadline along; this guards the index all the same.
        let known = self.watchers.get(id);
        if known.is_none_or(|watcher| watcher.slots.len() < wid as usize) {
            return;
        }
        match self.state(post) {
            State::Vacant | State::Due | State::Launching { .. } => {}
            State::Backoff { .. } => {
                self.set_state(post, State::Due);
            }
            State::Starting { .. } => {
                let timeout = self.unit_at(post).start_timeout.unwrap_or_default();
                let text = format!("was not ready within {timeout:?} (`start_timeout`)");
                self.log(turn, LogLevel::Warn, id, || {
                    format!("worker {wid} {text}; it is stopped")
                });
                self.fail_replacement_at(turn, post, &text);
                self.stop_post(turn, post, Why::Failed(text));
            }
            State::Settling { .. } => {
                if let State::Settling { worker, .. } = self.take_state(post) {
                    self.make_ready(turn, post, worker);
                }
            }
            State::Ready { worker, watchdog } => {
                if watchdog.is_some_and(|at| at <= turn.now) {
                    let interval = worker.watchdog.unwrap_or_default();
                    let text = format!("sent no WATCHDOG=1 for {interval:?}");
                    self.watchdog_ran_out(turn, post, text);
                } else {
                    self.expire_worker(turn, id, wid);
                }
            }
            State::Draining { .. } => self.stop_post(turn, post, Why::Asked),
            State::Stopping { .. } => {
                self.log(turn, LogLevel::Warn, id, || {
                    format!("worker {wid} did not end in `graceful_timeout`; it is killed")
                });
                self.kill_post(turn, post);
            }
            State::Leaving { .. } => {
                self.log(turn, LogLevel::Warn, id, || {
                    format!("processes of worker {wid} did not end in `graceful_timeout`; they are killed")
                });
                self.kill_post(turn, post);
            }
        }
    }
}
