//! Starting and stopping watchers in order, and the manager's own beginning and end.

use super::state::{Binding, Edition, Goal, Mishap, Post, Seat, Slot, State, Watcher, Why};
use super::time::Time;
use super::timers::Due;
use super::{Effect, ParentNotice, SocketId, Supervisor, Turn, WatcherId, WatcherState};
use crate::unit::{LogLevel, WatcherKind};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long killed processes may take to vanish before the manager ends without them: the kernel keeps some (in disk
/// sleep) for ever.
const AFTER_FORCE: Duration = Duration::from_secs(10);

/// While workers are slow to start, the parent is asked for this much more time ...
const EXTENSION: Duration = Duration::from_secs(30);
/// ... this often.
const EXTENSION_EVERY: Duration = Duration::from_secs(10);

/// The life of the manager.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Before [`super::Event::Begin`].
    New,
    /// So many watchers start by themselves and are neither running nor waiting yet.
    Booting {
        #[serde(skip)]
        unsettled: u32,
    },
    /// Everything has started.
    Running,
    /// All watchers are stopped, a level at a time from the highest.
    Stopping {
        /// When it is forced; and when it was, given up.
        until: Option<Time>,
        forced: bool,
        /// A signal that came directly has asked for it.
        #[serde(default)]
        direct: bool,
        /// And one that was forwarded.
        #[serde(default)]
        forwarded: bool,
        code: i32,
    },
    /// Everything has ended.
    Over,
}

impl Supervisor {
    pub(super) fn begin(&mut self, turn: &mut Turn<'_>) {
        if !matches!(self.phase, Phase::New) {
            // It was told to end before it began.
            return;
        }
        let failed: Vec<(SocketId, String)> = (self.sockets.iter())
            .filter_map(|(id, socket)| match &socket.binding {
                Binding::Failed { error, .. } => Some((id, error.clone())),
                _ => None,
            })
            .collect();
        for (id, error) in failed {
            self.retry_bind(turn, id, error, 0);
        }
        let starting: Vec<WatcherId> = (self.order.iter().copied())
            .filter(|id| self.watcher(*id).unit().autostart)
            .collect();
        self.set_phase(Phase::Booting {
            unsettled: starting.len() as u32,
        });
        for id in &starting {
            self.watcher_mut(*id).booting = true;
        }
        for id in starting {
            self.start_by_itself(turn, id);
        }
        if self.settings.parent && !self.is_settled() {
            self.extend_parent(turn);
        }
    }

    fn is_settled(&self) -> bool {
        !matches!(self.phase, Phase::Booting { unsettled } if unsettled > 0)
    }

    pub(super) fn extend_parent(&mut self, turn: &mut Turn<'_>) {
        if !self.is_settled() {
            turn.effects
                .push(Effect::Parent(ParentNotice::Extend(EXTENSION)));
            self.timers
                .set(Due::Extension, Some(turn.now + EXTENSION_EVERY));
        }
    }

    /// Whether everything is being stopped, or has been.
    pub fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. } | Phase::Over)
    }

    /// Whether the stop of everything is one by force.
    pub(super) fn is_forced(&self) -> bool {
        matches!(self.phase, Phase::Stopping { forced: true, .. })
    }

    /// Starts a watcher that starts by itself: with the manager, or when it is new.
    pub(super) fn start_by_itself(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if self.watcher(id).unit().on_demand.value {
            self.set_goal(id, Goal::Waiting);
        } else {
            self.start_watcher(turn, id);
        }
    }

    /// Wants a watcher up, and what it requires.
    pub(super) fn start_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if self.is_stopping() {
            return;
        }
        match self.watcher(id).goal {
            Goal::Up { .. } => {
                // Whoever asks does not want to wait for the backoff.
                for wid in 1..=self.watcher(id).slots.len() as u32 {
                    let main = Post::main(id, wid);
                    if let State::Backoff { .. } = self.state(main) {
                        self.slot_mut(id, wid).attempt = 0;
                        self.set_state(main, State::Due);
                    }
                }
                // Of those that have ended and are not restarted; a job that is done is not missed.
                let watcher = self.watcher(id);
                let wanted = watcher.wanted as usize;
                let mut slots = watcher.slots.iter().take(wanted);
                if watcher.unit().kind != WatcherKind::Oneshot
                    && slots.any(|slot| matches!(slot.main, State::Vacant))
                {
                    self.set_goal(id, Goal::Up { complete: false });
                    self.want_slots(id, 1);
                }
            }
            Goal::Queued | Goal::Stopped { again: true, .. } => {}
            Goal::Stopped { .. } | Goal::Waiting | Goal::Ended | Goal::Failed => {
                self.set_goal(id, Goal::Queued);
                for (required, requires) in self.watcher(id).dependencies.clone() {
                    let goal = self.watcher(required).goal;
                    let fulfilled = goal.is_up() || matches!(goal, Goal::Waiting | Goal::Ended);
                    if requires && !fulfilled {
                        self.start_watcher(turn, required);
                    }
                }
                self.queue_if_startable(turn, id);
            }
        }
    }

    /// Lets a queued watcher start if what it is `after` allows it, and no longer if it does not any more.
    pub(super) fn queue_if_startable(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if self.watcher(id).goal != Goal::Queued {
            return;
        }
        // Whether it is about to start is what others' shards depend on.
        self.stir_shards(id);
        let lacks = self.lacks(id);
        if let Some(watcher) = self.watchers.get_mut(id)
            && std::mem::replace(&mut watcher.lacks, lacks) != lacks
        {
            self.touched.insert(id);
        }
        let mut waits = lacks.is_some();
        for (other, requires) in self.watcher(id).dependencies.clone() {
            let other = self.watcher(other);
            match other.goal.lets_start(requires) {
                // Another may still be a reason to give up.
                Some(lets_start) => waits |= !lets_start,
                None => {
                    let how = match other.goal {
                        Goal::Failed => "failed",
                        _ => "is stopped",
                    };
                    let mishap = Mishap {
                        text: format!("it requires `{}`, which {how}", other.name()),
                        wid: 0,
                        exit_code: 1,
                        of_reload: false,
                    };
                    return self.give_up(turn, id, mishap);
                }
            }
        }
        let place = (self.watcher(id).rank, id);
        if waits {
            self.startable.remove(&place);
        } else {
            self.startable.insert(place);
        }
    }

    /// Whether a queued watcher waits for nothing but its turn.
    pub(super) fn may_start(&self, id: WatcherId) -> bool {
        let watcher = self.watcher(id);
        let allows = |(other, requires): &(WatcherId, bool)| {
            self.watcher(*other).goal.lets_start(*requires) == Some(true)
        };
        watcher.goal == Goal::Queued
            && self.lacks(id).is_none()
            && watcher.dependencies.iter().all(allows)
    }

    /// The socket that keeps a watcher from starting, since it is not bound.
    pub(super) fn lacks(&self, id: WatcherId) -> Option<SocketId> {
        self.lacks_of(&self.watcher(id).edition)
    }

    /// The socket without which nothing can be started from an edition, and which is not bound.
    pub(super) fn lacks_of(&self, edition: &Edition) -> Option<SocketId> {
        let is_bound = |id: SocketId| {
            let socket = self.sockets.get(id);
            socket.is_some_and(|socket| matches!(socket.binding, Binding::Bound))
        };
        // Nearly always.
        if edition.sockets.iter().all(|socket| is_bound(*socket)) {
            return None;
        }
        let by_name = |name: &str| {
            let mut named = edition.spec.listens.iter().zip(&*edition.sockets);
            named
                .find(|(known, _)| ***known == *name)
                .map(|(_, id)| *id)
        };
        let lacking = (edition.spec).lacks(|name| by_name(name).is_some_and(is_bound));
        lacking.and_then(by_name)
    }

    /// Starts the next watcher whose turn it is; false if there is none, or not yet.
    pub(super) fn start_next(&mut self, turn: &mut Turn<'_>) -> bool {
        let Some((rank, id)) = self.startable.first().copied() else {
            self.timers.set(Due::Starts, None);
            return false;
        };
        if self.next_start > turn.now {
            self.timers.set(Due::Starts, Some(self.next_start));
            return false;
        }
        self.startable.remove(&(rank, id));
        self.next_start = turn.now + self.warmup_delay;
        self.dirty.manager = true;
        if self.watcher(id).queued.is_some() && self.queued_lacks(id).is_none() {
            // What it could not be when it was restarted, it can be by now.
            self.cancel_reload(turn, id);
        }
        self.bring_up(id);
        true
    }

    fn bring_up(&mut self, id: WatcherId) {
        self.set_goal(id, Goal::Up { complete: false });
        let watcher = self.watcher_mut(id);
        watcher.failures = 0;
        if !watcher.returns_often() {
            watcher.mishap = None;
        }
        self.want_slots(id, 1);
    }

    /// Makes every wanted slot that is vacant due, from this wid on.
    pub(super) fn want_slots(&mut self, id: WatcherId, from: u32) {
        let wanted = self.watcher(id).wanted;
        self.add_slots(id, wanted);
        for wid in from..=wanted {
            let main = Post::main(id, wid);
            if matches!(self.state(main), State::Vacant) {
                self.set_state(main, State::Due);
            }
        }
        self.touched.insert(id);
    }

    /// Sees to it that there are so many slots.
    pub(super) fn add_slots(&mut self, id: WatcherId, count: u32) {
        let watcher = self.watcher_mut(id);
        // Most watchers have one, and would get room for four.
        let missing = (count as usize).saturating_sub(watcher.slots.len());
        watcher.slots.reserve_exact(missing);
        let mut returned = Vec::new();
        while (watcher.slots.len() as u32) < count {
            let generation = watcher.past.pop();
            let slot = Slot {
                generation,
                ..Slot::default()
            };
            watcher.slots.push(slot);
            if generation > 0 {
                returned.push((id, watcher.slots.len() as u32));
            }
        }
        self.dirty.slots.extend(returned);
    }

    /// Wants a watcher down, and first what requires it. Its workers keep their stop until those of the watchers that
    /// are `after` it, and are being stopped too, have ended.
    pub(super) fn stop_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let held = match self.watcher(id).goal {
            Goal::Stopped { again: false, .. } => return,
            Goal::Stopped { held, .. } => held,
            _ => true,
        };
        self.set_goal(id, Goal::Stopped { held, again: false });
        self.watcher_mut(id).returns = 0;
        self.cancel_reload(turn, id);
        for (dependent, requires) in self.watcher(id).dependents.clone() {
            if requires && self.watcher(dependent).goal.is_up() {
                self.stop_watcher(turn, dependent);
            }
        }
        self.stop_what_does_not_run(turn, id);
    }

    /// Stops watchers that are named together, the last that started first: the workers of one level keep their stop until
    /// those of the levels above have ended.
    pub(super) fn stop_watchers(&mut self, turn: &mut Turn<'_>, ids: &[WatcherId]) {
        let is_free = |id: &WatcherId| !matches!(self.watcher(*id).goal, Goal::Stopped { .. });
        let free: Vec<WatcherId> = ids.iter().copied().filter(is_free).collect();
        for id in ids {
            self.stop_watcher(turn, *id);
        }
        let mut levels = free.iter().map(|id| self.watcher(*id).level);
        let first = levels.next();
        // At the manager's end all are on their way together.
        if levels.any(|level| Some(level) != first) && !self.is_stopping() {
            self.begin_descent(&free);
        }
    }

    /// Those of these that are alive are stopped a level at a time from here on, apart from what else is being stopped.
    fn begin_descent(&mut self, ids: &[WatcherId]) {
        let number = self.descents.last().map_or(0, |(last, ..)| last + 1);
        for id in ids {
            self.leave_descent(*id);
            let watcher = self.watcher_mut(*id);
            if watcher.tally.live() > 0 {
                let level = watcher.level;
                watcher.descent = Some(number);
                self.descents.insert((number, level, *id));
                // It may be held no longer.
                self.touched.insert(*id);
            }
        }
    }

    /// A watcher that was stopped together with others has ended, or is not stopped any more.
    pub(super) fn leave_descent(&mut self, id: WatcherId) {
        let watcher = self.watcher(id);
        let (descent, level) = (watcher.descent, watcher.level);
        if let Some(number) = descent {
            self.watcher_mut(id).descent = None;
            self.descend(number, level, id);
        }
    }

    /// Lets the next level of a stop have its turn, if this watcher was the last of the one above.
    pub(super) fn descend(&mut self, number: u64, level: u32, id: WatcherId) {
        self.descents.remove(&(number, level, id));
        if let Some(next) = self.level_of_turn(number).filter(|next| *next < level) {
            let all = (number, next, WatcherId(0))..=(number, next, WatcherId(u32::MAX));
            let its_turn = self.descents.range(all).map(|(.., id)| *id);
            self.touched.extend(its_turn);
        }
    }

    /// The level of a stop whose turn it is.
    fn level_of_turn(&self, number: u64) -> Option<u32> {
        let all = (number, 0, WatcherId(0))..=(number, u32::MAX, WatcherId(u32::MAX));
        self.descents
            .range(all)
            .next_back()
            .map(|(_, level, _)| *level)
    }

    /// Stops a watcher that is up, in its turn, to start it when it and all that it is `after` allow it.
    pub(super) fn stop_to_start_again(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let (held, again) = (true, true);
        self.set_goal(id, Goal::Stopped { held, again });
        self.cancel_reload_to_restart(turn, id);
        self.stop_what_does_not_run(turn, id);
    }

    /// Of a watcher that is held: what has no process yet need not be waited for.
    fn stop_what_does_not_run(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        for wid in 1..=self.watcher(id).slots.len() as u32 {
            for post in Post::both(id, wid) {
                // A replacement that is not needed any more is none of those that others depend on.
                if post.seat == Seat::Beside || self.state(post).worker().is_none() {
                    self.stop_post(turn, post, Why::Asked);
                }
            }
        }
    }

    pub(super) fn settle_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if !self.watchers.contains(id) {
            return;
        }
        if let Goal::Stopped { held: true, again } = self.watcher(id).goal
            && !self.is_held(id)
        {
            let held = false;
            self.set_goal(id, Goal::Stopped { held, again });
            self.stop_posts(turn, id);
        }
        if self.watcher(id).tally.live() == 0 {
            self.leave_descent(id);
            if matches!(self.watcher(id).goal, Goal::Stopped { again: true, .. }) {
                self.set_goal(id, Goal::Queued);
                self.queue_if_startable(turn, id);
            }
        }
        if matches!(self.watcher(id).goal, Goal::Up { .. }) {
            let watcher = self.watcher(id);
            if watcher.goal == (Goal::Up { complete: false }) && watcher.has_all() {
                self.set_goal(id, Goal::Up { complete: true });
            }
            self.advance_reload(turn, id);
            self.launch_due(turn, id);
            let watcher = self.watcher(id);
            if watcher.tally.busy() == 0 && watcher.wanted > 0 {
                self.ran_out(turn, id);
            }
        } else {
            self.timers.set(Due::Watcher(id), None);
        }
        self.forget_editions(id);
        self.trim_slots(id);
        self.stir_shards(id);
        self.stir_watched(id);
        self.tell_state(turn, id);
        self.answer_requests(turn, id);
        if self.watcher(id).retired && self.watcher(id).tally.busy() == 0 {
            self.forget_watcher(id);
        }
    }

    /// Whether something is alive that must have ended before its workers are asked to.
    fn is_held(&self, id: WatcherId) -> bool {
        let watcher = self.watcher(id);
        let turn = watcher
            .descent
            .and_then(|number| self.level_of_turn(number));
        if turn.is_some_and(|turn| turn > watcher.level) {
            return true;
        }
        // Whose turn it is has been decided then.
        if self.is_stopping() {
            return false;
        }
        self.watcher(id).dependents.iter().any(|(dependent, _)| {
            let watcher = self.watcher(*dependent);
            matches!(watcher.goal, Goal::Stopped { .. }) && watcher.tally.live() > 0
        })
    }

    /// Drops vacant slots past the wanted ones, from the end.
    pub(super) fn trim_slots(&mut self, id: WatcherId) {
        let watcher = self.watcher(id);
        if watcher.slots.len() as u32 <= watcher.wanted {
            return;
        }
        let Some(watcher) = self.watchers.get_mut(id) else {
            return;
        };
        while watcher.slots.len() as u32 > watcher.wanted
            && watcher
                .slots
                .last()
                .is_some_and(super::state::Slot::is_vacant)
        {
            let wid = watcher.slots.len() as u32;
            let trimmed = watcher.slots.pop();
            watcher.past.push(trimmed.map_or(0, |slot| slot.generation));
            self.dirty.slots.insert((id, wid));
            self.dirty.watchers.insert(id);
        }
    }

    /// Makes a change of state known to everything that depends on it.
    fn tell_state(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        let state = self.watcher(id).state();
        let before = (self.watchers.get_mut(id)).and_then(|watcher| watcher.told.replace(state));
        if before != Some(state) {
            if let Some(count) = before.and_then(|before| self.census.get_mut(&before)) {
                *count -= 1;
            }
            *self.census.entry(state).or_default() += 1;
            self.log(turn, self.usual_level(id), id, || state.to_string());
        }
        for (dependent, _) in self.watcher(id).dependents.clone() {
            self.queue_if_startable(turn, dependent);
        }
        if self.watcher(id).tally.live() == 0 {
            for (dependency, _) in self.watcher(id).dependencies.clone() {
                if matches!(
                    self.watcher(dependency).goal,
                    Goal::Stopped { held: true, .. }
                ) {
                    self.touched.insert(dependency);
                }
            }
        }
        let is_settled = match state {
            WatcherState::Starting | WatcherState::Backoff | WatcherState::Stopping => false,
            // It may be one of workers that have never been ready.
            WatcherState::Reloading => self.watcher(id).goal == (Goal::Up { complete: true }),
            WatcherState::Stopped
            | WatcherState::Waiting
            | WatcherState::Running
            | WatcherState::Failed => true,
        };
        if is_settled && self.watcher(id).booting {
            self.watcher_mut(id).booting = false;
            if let Phase::Booting { unsettled } = &mut self.phase {
                *unsettled -= 1;
            }
        }
    }

    /// How important is what happens to a watcher as a rule: not much where it goes on and on.
    pub(super) fn usual_level(&self, id: WatcherId) -> LogLevel {
        match self.watcher(id).returns_often() {
            true => LogLevel::Debug,
            false => LogLevel::Info,
        }
    }

    /// The one place where the manager's own life changes.
    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.dirty.manager = true;
    }

    /// Moves the manager's own life on; false if there is nothing to move.
    pub(super) fn advance_phase(&mut self, turn: &mut Turn<'_>) -> bool {
        match &self.phase {
            Phase::Booting { unsettled: 0 } => {
                self.set_phase(Phase::Running);
                self.timers.set(Due::Extension, None);
                turn.effects.push(Effect::Parent(ParentNotice::Ready));
                true
            }
            Phase::Stopping { code, .. } if self.descents.is_empty() => {
                let code = *code;
                self.finish(turn, code);
                true
            }
            Phase::Stopping { .. } => false,
            Phase::New | Phase::Booting { .. } | Phase::Running | Phase::Over => false,
        }
    }

    pub(super) fn terminate(&mut self, turn: &mut Turn<'_>, is_forwarded: bool) {
        if !self.is_stopping() {
            self.stop_all(turn, 0);
        }
        let Phase::Stopping {
            direct, forwarded, ..
        } = &mut self.phase
        else {
            return;
        };
        // The first is none too many where it was a command or a critical watcher that began the stop.
        let has_come = if is_forwarded { forwarded } else { direct };
        if std::mem::replace(has_come, true) {
            self.force(turn);
        }
        self.dirty.manager = true;
    }

    /// Ends the manager on behalf of a critical watcher.
    pub(super) fn end_with(&mut self, turn: &mut Turn<'_>, code: i32, reason: String) {
        if !self.is_stopping() {
            let text = format!("{reason}; the manager stops with exit code {code}");
            turn.effects.push(Effect::Log {
                level: LogLevel::Error,
                unit: "manager".into(),
                text,
            });
            self.stop_all(turn, code);
        }
    }

    pub(super) fn stop_all(&mut self, turn: &mut Turn<'_>, code: i32) {
        turn.effects.push(Effect::Parent(ParentNotice::Stopping));
        let until = self.shutdown_timeout.map(|timeout| turn.now + timeout);
        if let Some(timeout) = self.shutdown_timeout
            && self.settings.parent
        {
            let longest = timeout + 2 * AFTER_FORCE;
            turn.effects
                .push(Effect::Parent(ParentNotice::Extend(longest)));
        }
        self.timers.set(Due::Shutdown, until);
        self.timers.set(Due::Extension, None);
        for id in self.watcher_ids() {
            // Nothing is started or restarted from here on; each level keeps its stop until those above have ended.
            let watcher = self.watcher(id);
            let is_to_stop = match watcher.goal {
                Goal::Up { .. } | Goal::Queued | Goal::Waiting => true,
                // Those that serve what goes with them have not been asked to end yet.
                Goal::Stopped { .. } | Goal::Ended | Goal::Failed => watcher.is_draining(),
            };
            if is_to_stop {
                self.set_goal(id, Goal::HELD);
                self.cancel_reload(turn, id);
                self.stop_what_does_not_run(turn, id);
            } else if let Goal::Stopped { held, again: true } = self.watcher(id).goal {
                self.set_goal(id, Goal::Stopped { held, again: false });
            }
        }
        self.begin_descent(&self.watcher_ids());
        self.set_phase(Phase::Stopping {
            until,
            forced: false,
            direct: false,
            forwarded: false,
            code,
        });
        self.startable.clear();
        // Nothing is started by traffic any more, and nothing is bound.
        for id in self.sockets.ids() {
            self.stirred.insert(id);
            self.timers.set(Due::Socket(id), None);
        }
    }

    /// `shutdown_timeout` is over; and if it was before, force was not enough.
    pub(super) fn shutdown_due(&mut self, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Stopping {
                forced: true, code, ..
            } => {
                let text =
                    "some processes could not be killed; the manager ends without them".into();
                turn.effects.push(Effect::Log {
                    level: LogLevel::Error,
                    unit: "manager".into(),
                    text,
                });
                self.finish(turn, code);
            }
            _ => self.force(turn),
        }
    }

    /// Ends everything by force.
    fn force(&mut self, turn: &mut Turn<'_>) {
        let Phase::Stopping { forced, until, .. } = &mut self.phase else {
            return;
        };
        if *forced {
            return;
        }
        *forced = true;
        *until = Some(turn.now + AFTER_FORCE);
        self.dirty.manager = true;
        turn.effects.push(Effect::Log {
            level: LogLevel::Warn,
            unit: "manager".into(),
            text: "the stop is forced: everything that still runs is killed".into(),
        });
        self.timers.set(Due::Shutdown, Some(turn.now + AFTER_FORCE));
        for id in self.watcher_ids() {
            self.set_goal(id, Goal::STOPPED);
            for wid in 1..=self.watcher(id).slots.len() as u32 {
                for post in Post::both(id, wid) {
                    self.kill_post(turn, post);
                }
            }
        }
    }

    fn finish(&mut self, turn: &mut Turn<'_>, code: i32) {
        self.set_phase(Phase::Over);
        self.timers.set(Due::Shutdown, None);
        self.answer_all(turn);
        turn.finish = Some(code);
    }

    /// Keeps the parent's STATUS= up to date.
    pub(super) fn tell_status(&mut self, turn: &mut Turn<'_>) {
        if !self.settings.parent || matches!(self.phase, Phase::Over) {
            return;
        }
        let count = |state| self.census.get(&state).copied().unwrap_or(0);
        let mut text = format!(
            "{} of {} watchers running",
            count(WatcherState::Running),
            self.watchers.len()
        );
        for state in [
            WatcherState::Waiting,
            WatcherState::Starting,
            WatcherState::Reloading,
            WatcherState::Stopping,
            WatcherState::Backoff,
            WatcherState::Failed,
        ] {
            if count(state) > 0 {
                text.push_str(&format!(", {} {state}", count(state)));
            }
        }
        if text != self.told_status {
            self.told_status.clone_from(&text);
            turn.effects
                .push(Effect::Parent(ParentNotice::Status(text)));
        }
    }
}

impl Watcher {
    /// All workers that are to serve do, whatever goes on beside them.
    pub fn has_all(&self) -> bool {
        if self.tally.busy() == 0 {
            return self.wanted == 0;
        }
        let wanted = self.wanted as usize;
        if self.tally.beside == 0 && self.slots.len() <= wanted {
            return self.is_quiet();
        }
        (self.slots.iter().take(wanted))
            .all(|slot| matches!(slot.main, State::Vacant | State::Ready { .. }))
    }

    /// Some of its workers serve what goes with them, and are stopped then.
    fn is_draining(&self) -> bool {
        let mut posts = (self.slots.iter()).flat_map(|it| Seat::BOTH.map(|seat| it.state(seat)));
        self.tally.stopping > 0 && posts.any(|state| matches!(state, State::Draining { .. }))
    }

    /// Nothing is on its way to anywhere.
    pub fn is_quiet(&self) -> bool {
        let tally = self.tally;
        tally.due == 0 && tally.backoff == 0 && tally.starting == 0 && tally.stopping == 0
    }

    /// Its state, as status shows it.
    pub fn state(&self) -> WatcherState {
        match self.goal {
            Goal::Stopped { .. } | Goal::Failed | Goal::Ended | Goal::Waiting
                if self.tally.live() > 0 =>
            {
                WatcherState::Stopping
            }
            Goal::Stopped { .. } | Goal::Ended => WatcherState::Stopped,
            Goal::Failed => WatcherState::Failed,
            Goal::Waiting => WatcherState::Waiting,
            Goal::Queued if self.lacks.is_some() => WatcherState::Waiting,
            Goal::Queued => WatcherState::Starting,
            Goal::Up { .. } if self.reload.is_some() || self.signalled.is_some() => {
                WatcherState::Reloading
            }
            Goal::Up { complete: true } if self.tally.ready > 0 || self.wanted == 0 => {
                WatcherState::Running
            }
            Goal::Up { .. }
                if self.tally.backoff > 0 && self.tally.starting + self.tally.due == 0 =>
            {
                WatcherState::Backoff
            }
            Goal::Up { .. } => WatcherState::Starting,
        }
    }
}
