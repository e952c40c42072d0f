//! What comes after the end of a worker: another, at once or later, or none.

use super::state::{Goal, LastEnd, Mishap, Post, Seat, State, Why, Worker};
use super::time::{Time, backoff};
use super::{Effect, Exit, ProcId, Supervisor, Turn, WatcherId};
use crate::unit::{LogLevel, Restart, WatcherKind};
use std::rc::Rc;

/// How a process ended, as far as what comes next depends on it.
pub(super) struct End {
    /// Without the worker's name: `exited with code 3`.
    pub text: String,
    /// It did its job.
    pub clean: bool,
    /// It exited with code 0.
    pub succeeded: bool,
    /// It is a death that another process makes good: there was a process at all, and the reload has not brought it in vain.
    pub lived: bool,
    /// It was one that is to end.
    pub is_oneshot: bool,
    /// When it became ready.
    pub ready: Option<Time>,
    pub proc: ProcId,
    pub exit_code: i32,
}

impl End {
    pub(super) fn of(exit: Exit, worker: &Worker, is_oneshot: bool) -> End {
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

    pub(super) fn is_wanted(&self, id: WatcherId, wid: u32) -> bool {
        matches!(self.watcher(id).goal, Goal::Up { .. }) && wid <= self.watcher(id).wanted
    }

    /// Whether a worker that ends by itself is missed: one that is wanted, or one that was to serve what waits in a shard.
    pub(super) fn is_needed(&self, id: WatcherId, wid: u32) -> bool {
        let is_up = matches!(self.watcher(id).goal, Goal::Up { .. });
        self.is_wanted(id, wid) || is_up && self.is_to_drain(id, wid)
    }

    /// After a stop that was asked for: the slot starts afresh if it is still wanted (a restart).
    pub(super) fn replace_or_vacate(&mut self, post: Post) {
        self.vacate(post);
        if post.seat == Seat::Main
            && self.is_wanted(post.watcher, post.wid)
            && !self.take_replacement(post.watcher, post.wid)
        {
            self.set_state(post, State::Due);
        }
    }

    pub(super) fn vacate(&mut self, post: Post) {
        if post.seat == Seat::Main {
            let slot = self.slot_mut(post.watcher, post.wid);
            slot.attempt = 0;
            slot.bereaved = false;
        }
        self.set_state(post, State::Vacant);
    }

    /// If a replacement is on its way already, it takes the main place that has become free. Says whether one is.
    pub(super) fn take_replacement(&mut self, id: WatcherId, wid: u32) -> bool {
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

    pub(super) fn end_of(&self, id: WatcherId, exit: Exit, worker: &Worker) -> End {
        let unit = &self.watcher(id).edition(worker.edition).spec.unit;
        End::of(exit, worker, unit.kind == WatcherKind::Oneshot)
    }

    /// A process ended that nobody asked to. Its post has been taken.
    pub(super) fn ended(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32, mut end: End) {
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

    pub(super) fn restart_slot(&mut self, turn: &mut Turn<'_>, id: WatcherId, wid: u32, end: &End) {
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
