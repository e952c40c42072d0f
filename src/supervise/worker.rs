//! The life of one worker: from due to gone. The rules stand at the head of [`super`].

use super::state::{Complaints, Goal, LastEnd, Mishap, Post, Seat, State, Why, Worker};
use super::time::{Time, backoff};
use super::timers::Due;
use super::{
    Effect, Exit, Pid, ProcId, Sender, SocketId, SpawnFailure, Supervisor, Turn, WatcherId, notify,
};
use crate::unit::{self, Arrange, LogLevel, Restart, Signal, WatcherKind};
use std::rc::Rc;
use std::time::Duration;

const SIGKILL: Signal = Signal(9);
const SIGCONT: Signal = Signal(18);

/// Longest STATUS= text that is kept, in bytes, as in systemd.
const MAX_STATUS: usize = 16 * 1024;

/// How long a replacement that says nothing of itself has to stay alive before who serves is stopped for it.
const PROOF: Duration = Duration::from_millis(100);

/// How a process ended, as far as what comes next depends on it.
struct End {
    /// Without the worker's name: `exited with code 3`.
    text: String,
    /// It did its job.
    clean: bool,
    /// It exited with code 0.
    succeeded: bool,
    /// It is a death that another process makes good: there was a process at all, and the reload has not brought it in vain.
    lived: bool,
    /// It was one that is to end.
    is_oneshot: bool,
    /// When it became ready.
    ready: Option<Time>,
    proc: ProcId,
    exit_code: i32,
}

impl End {
    fn of(exit: Exit, worker: &Worker, is_oneshot: bool) -> End {
        let errno = worker
            .errno
            .map(|errno| format!(", ERRNO={errno}"))
            .unwrap_or_default();
        let early = if worker.ready.is_none() && !exit.is_clean() {
            " before it was ready"
        } else {
            ""
        };
        End {
            text: format!("{exit}{early}{errno}"),
            clean: exit.is_clean(),
            succeeded: exit == Exit::Code(0),
            lived: true,
            is_oneshot,
            ready: worker.ready,
            proc: worker.proc,
            exit_code: exit.as_exit_code(),
        }
    }
}

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

    fn stop_post_by(&mut self, turn: &mut Turn<'_>, post: Post, why: Why, signal: Signal) {
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

    pub(super) fn exited(&mut self, turn: &mut Turn<'_>, proc: ProcId, exit: Exit) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        let (id, wid) = (post.watcher, post.wid);
        self.log(turn, LogLevel::Debug, id, || format!("worker {wid} {exit}"));
        let was_asked = matches!(
            self.state(post),
            State::Draining { .. }
                | State::Stopping {
                    why: Why::Asked,
                    ..
                }
        );
        let problem = (!was_asked).then(|| format!("worker {wid} {exit}"));
        self.reloads_no_more(id, proc, problem);
        match self.take_state(post) {
            State::Starting { worker, .. } | State::Settling { worker, .. }
                if post.seat == Seat::Beside =>
            {
                turn.effects.push(Effect::KillLeftovers { proc });
                let end = self.end_of(id, exit, &worker);
                // What it left behind must be gone before the next process has its place.
                let leaving = State::Leaving {
                    worker,
                    why: Why::Asked,
                    exit,
                    kill_at: None,
                };
                self.set_state(post, leaving);
                self.replacement_failed(turn, id, wid, &end.text);
            }
            State::Starting { worker, .. }
            | State::Settling { worker, .. }
            | State::Ready { worker, .. }
                if self.is_needed(id, wid) =>
            {
                // Nobody waits for these leftovers: they are killed and the slot goes on.
                turn.effects.push(Effect::KillLeftovers { proc });
                let end = self.end_of(id, exit, &worker);
                self.ended(turn, id, wid, end);
            }
            State::Starting { worker, .. }
            | State::Settling { worker, .. }
            | State::Ready { worker, .. }
            | State::Draining { worker, .. } => {
                turn.effects.push(Effect::KillLeftovers { proc });
                let leaving = State::Leaving {
                    worker,
                    why: Why::Asked,
                    exit,
                    kill_at: None,
                };
                self.set_state(post, leaving);
            }
            State::Stopping {
                worker,
                why,
                kill_at,
            } => {
                // With `stop_children` the others have had the signal too, and have as long to heed it.
                let stop_children = {
                    let edition = self.watcher(id).edition(worker.edition);
                    edition.spec.unit.stop_children
                };
                let kill_at = kill_at.filter(|at| stop_children && *at > turn.now);
                turn.effects.push(match kill_at {
                    Some(_) => Effect::AwaitLeftovers { proc },
                    None => Effect::KillLeftovers { proc },
                });
                let leaving = State::Leaving {
                    worker,
                    why,
                    exit,
                    kill_at,
                };
                self.set_state(post, leaving);
            }
            other => {
                self.set_state(post, other);
            }
        }
    }

    pub(super) fn gone(&mut self, turn: &mut Turn<'_>, proc: ProcId) {
        let Some(post) = self.procs.get(&proc).copied() else {
            return;
        };
        if !matches!(self.state(post), State::Leaving { .. }) {
            return;
        }
        let State::Leaving {
            worker, why, exit, ..
        } = self.take_state(post)
        else {
            return;
        };
        let (id, wid) = (post.watcher, post.wid);
        match why {
            Why::Asked => self.replace_or_vacate(post),
            _ if post.seat == Seat::Beside => self.vacate(post),
            Why::Itself if self.is_needed(id, wid) => {
                let end = self.end_of(id, exit, &worker);
                self.ended(turn, id, wid, end);
            }
            Why::Failed(text) if self.is_needed(id, wid) => {
                let end = End {
                    text,
                    clean: false,
                    succeeded: false,
                    ..self.end_of(id, exit, &worker)
                };
                self.ended(turn, id, wid, end);
            }
            Why::Itself | Why::Failed(_) => self.vacate(post),
        }
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

    fn drain_post(&mut self, turn: &mut Turn<'_>, post: Post, sockets: Vec<SocketId>) {
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

    pub(super) fn is_wanted(&self, id: WatcherId, wid: u32) -> bool {
        matches!(self.watcher(id).goal, Goal::Up { .. }) && wid <= self.watcher(id).wanted
    }

    /// Whether a worker that ends by itself is missed: one that is wanted, or one that was to serve what waits in a shard.
    fn is_needed(&self, id: WatcherId, wid: u32) -> bool {
        let is_up = matches!(self.watcher(id).goal, Goal::Up { .. });
        self.is_wanted(id, wid) || is_up && self.is_to_drain(id, wid)
    }

    /// After a stop that was asked for: the slot starts afresh if it is still wanted (a restart).
    fn replace_or_vacate(&mut self, post: Post) {
        self.vacate(post);
        if post.seat == Seat::Main
            && self.is_wanted(post.watcher, post.wid)
            && !self.take_replacement(post.watcher, post.wid)
        {
            self.set_state(post, State::Due);
        }
    }

    fn vacate(&mut self, post: Post) {
        if post.seat == Seat::Main {
            let slot = self.slot_mut(post.watcher, post.wid);
            slot.attempt = 0;
            slot.bereaved = false;
        }
        self.set_state(post, State::Vacant);
    }

    /// If a replacement is on its way already, it takes the main place that has become free. Says whether one is.
    fn take_replacement(&mut self, id: WatcherId, wid: u32) -> bool {
        let (main, beside) = (Post::main(id, wid), Post::beside(id, wid));
        let is_coming = match self.state(beside) {
            State::Launching { cancelled, .. } => !cancelled,
            state => state.is_coming(),
        };
        if is_coming {
            let replacement = self.take_state(beside);
            self.set_state(main, replacement);
        }
        is_coming
    }

    fn end_of(&self, id: WatcherId, exit: Exit, worker: &Worker) -> End {
        let unit = &self.watcher(id).edition(worker.edition).spec.unit;
        End::of(exit, worker, unit.kind == WatcherKind::Oneshot)
    }

    /// A process ended that nobody asked to. Its post has been taken.
    fn ended(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32, mut end: End) {
        let main = Post::main(id, wid);
        let spec = Rc::clone(&self.watcher(id).edition.spec);
        let unit = &spec.unit;
        if !self.is_needed(id, wid) {
            self.vacate(main);
            return;
        }
        let done = end.is_oneshot && end.succeeded;
        let failed_start = end.ready.is_none() && !done;
        let failed = failed_start || !end.clean;
        let again = match unit.restart {
            // What was a oneshot and is none any more is yet to start.
            _ if done => unit.kind != WatcherKind::Oneshot,
            // The traffic decides when it runs again.
            _ if unit.on_demand.value && !failed => false,
            Restart::Always => true,
            Restart::OnFailure => failed,
            Restart::Never => false,
        };
        if failed && self.is_replacement(id, wid, end.proc) {
            self.replacement_failed(turn, id, wid, &end.text);
            end.lived &= end.ready.is_some();
        }

        let watcher = self.watcher_mut(id);
        let lived = end.ready.map(|ready| turn.now.since(ready));
        if lived.is_some_and(|lived| lived >= unit.restart_reset) {
            watcher.returns = 0;
        }
        if failed || again {
            let text = format!("worker {wid} {}", end.text);
            watcher.mishap = Some(Mishap {
                text,
                wid,
                exit_code: end.exit_code,
                of_reload: false,
            });
        }
        if failed {
            watcher.failures_ever += 1;
        }
        if failed_start {
            watcher.failures = watcher.failures.saturating_add(1);
        } else if done {
            watcher.failures = 0;
        }
        let given_up = failed_start
            && unit
                .max_retry
                .is_some_and(|most| watcher.failures >= most.max(1));
        if again && end.lived && watcher.slots[wid as usize - 1].beside.is_some() {
            let slot = self.slot_mut(id, wid);
            let was_bereaved = std::mem::replace(&mut slot.bereaved, true);
            if self.take_replacement(id, wid) {
                // It is there sooner than any restart would be.
                if !matches!(self.state(main), State::Due | State::Launching { .. }) {
                    self.slot_mut(id, wid).bereaved = false;
                    self.watcher_mut(id).restarts += 1;
                }
                self.log(turn, LogLevel::Warn, id, || {
                    format!("worker {wid} {}; its replacement is on its way", end.text)
                });
                return;
            }
            self.slot_mut(id, wid).bereaved = was_bereaved;
        }
        if again && given_up {
            let text = format!(
                "worker {wid} {}; given up after {} failed starts (`max_retry`)",
                end.text,
                self.watcher(id).failures
            );
            self.vacate(main);
            self.give_up(
                turn,
                id,
                Mishap {
                    text,
                    wid,
                    exit_code: end.exit_code,
                    of_reload: false,
                },
            );
        } else if again {
            self.restart_slot(turn, id, wid, &end);
        } else {
            self.log(
                turn,
                match failed {
                    true => LogLevel::Warn,
                    false => self.usual_level(id),
                },
                id,
                || format!("worker {wid} {}; it is not restarted", end.text),
            );
            self.vacate(main);
            // A replacement would be a restart too.
            self.stop_post(turn, Post::beside(id, wid), Why::Asked);
            self.slot_mut(id, wid).ended_badly = failed.then_some(end.exit_code);
            self.watcher_mut(id).last_end = Some(LastEnd {
                wid,
                failed,
                exit_code: end.exit_code,
                done,
                text: format!("worker {wid} {}", end.text),
            });
            if failed && unit.critical {
                // The others may go on for ever, and somebody waits for this exit code.
                let mishap = Mishap {
                    text: format!("worker {wid} {}", end.text),
                    wid,
                    exit_code: end.exit_code,
                    of_reload: false,
                };
                self.give_up(turn, id, mishap);
            }
        }
    }

    fn restart_slot(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32, end: &End) {
        let spec = Rc::clone(&self.watcher(id).edition.spec);
        let unit = &spec.unit;
        let slot = self.slot_mut(id, wid);
        if end
            .ready
            .is_some_and(|ready| turn.now.since(ready) >= unit.restart_reset)
        {
            slot.attempt = 0;
        }
        let delay = backoff(slot.attempt, unit.restart_delay, unit.restart_max_delay);
        slot.attempt = slot.attempt.saturating_add(1);
        slot.bereaved |= end.lived;
        let level = LogLevel::Warn;
        if delay.is_zero() {
            self.set_state(Post::main(id, wid), State::Due);
            self.log(turn, level, id, || {
                format!("worker {wid} {}; it is restarted", end.text)
            });
        } else {
            let backoff = State::Backoff {
                until: turn.now + delay,
                after: format!("worker {wid} {}", end.text),
            };
            self.set_state(Post::main(id, wid), backoff);
            self.log(turn, level, id, || {
                format!("worker {wid} {}; next try in {delay:?}", end.text)
            });
        }
    }

    /// All workers of a watcher have ended and none is to follow.
    pub(super) fn ran_out(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        self.cancel_reload(turn, id);
        let watcher = self.watcher(id);
        let critical = watcher.unit().critical;
        if watcher.is_armed_again() {
            self.set_goal(id, Goal::Waiting);
            return;
        }
        // The last that ended; or else another that ended badly before it.
        let bad = (watcher.last_end.iter())
            .filter(|end| end.failed)
            .map(|end| (end.wid, end.exit_code))
            .chain((1..).zip(&watcher.slots).filter_map(|(wid, slot)| {
                let exit_code = slot.ended_badly?;
                Some((wid, exit_code))
            }))
            .next();
        if let Some((wid, exit_code)) = bad {
            let text = (watcher.mishap.as_ref())
                .filter(|mishap| mishap.wid == wid)
                .map_or_else(|| format!("worker {wid} ended badly"), |it| it.text.clone());
            self.give_up(
                turn,
                id,
                Mishap {
                    text,
                    wid,
                    exit_code,
                    of_reload: false,
                },
            );
            return;
        }
        let code = watcher.last_end.as_ref().map_or(0, |end| end.exit_code);
        self.set_goal(id, Goal::Ended);
        if critical {
            let reason = format!(
                "the critical watcher `{}` has ended",
                self.watcher(id).name()
            );
            self.end_with(turn, code, reason);
        }
    }

    /// The watcher has failed for good: what is left of it is stopped, and so is what requires it.
    pub(super) fn give_up(&mut self, turn: &mut Turn<'_>, id: WatcherId, mishap: Mishap) {
        let code = mishap.exit_code;
        self.log(turn, LogLevel::Error, id, || {
            format!("failed: {}", mishap.text)
        });
        self.cancel_reload(turn, id);
        let watcher = self.watcher_mut(id);
        // Even if a reload has failed too: this is why nothing runs.
        watcher.mishap = Some(mishap);
        watcher.failures_ever += 1;
        self.set_goal(id, Goal::Failed);
        self.stop_posts(turn, id);
        let name = self.watcher(id).name().to_owned();
        if self.watcher(id).unit().critical {
            // Before what requires it fails too: the code is that of the cause.
            let reason = format!("the critical watcher `{name}` has failed");
            self.end_with(turn, code, reason);
        }
        for (dependent, requires) in self.watcher(id).dependents.clone() {
            if requires && self.watcher(dependent).goal.is_up() {
                let text = format!("it requires `{name}`, which failed");
                self.give_up(
                    turn,
                    dependent,
                    Mishap {
                        text,
                        wid: 0,
                        exit_code: 1,
                        of_reload: false,
                    },
                );
            }
        }
    }
}

/// When a worker that is asked to end now is killed.
fn kill_time(now: Time, graceful_timeout: Option<Duration>) -> Time {
    graceful_timeout.map_or(Time::NEVER, |timeout| now + timeout)
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

/// A stop that somebody asked for outweighs one that came of itself.
fn stronger(before: Why, now: Why) -> Why {
    match now {
        Why::Asked => Why::Asked,
        Why::Failed(_) | Why::Itself => before,
    }
}
