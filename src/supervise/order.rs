//! Starting and stopping watchers in order, and the manager's own beginning and end.

use super::state::{Binding, Goal, Mishap, Post, Seat, Slot, State, Watcher, Why};
use super::time::{Due, Time};
use super::{Effect, ParentNotice, SocketId, Supervisor, Turn, WatcherId, WatcherState};
use crate::unit::{LogLevel, WatcherKind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// All watchers are stopped, a level at a time from the highest; those that are still alive are in here by level.
    Stopping {
        #[serde(skip)]
        remaining: BTreeMap<u32, BTreeSet<WatcherId>>,
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
            Goal::Queued => {}
            Goal::Stopped { .. } | Goal::Waiting | Goal::Ended | Goal::Failed => {
                self.set_goal(id, Goal::Queued);
                for (required, requires) in self.watcher(id).dependencies.clone() {
                    let goal = self.watcher(required).goal;
                    let fulfilled = matches!(
                        goal,
                        Goal::Up { .. } | Goal::Queued | Goal::Waiting | Goal::Ended
                    );
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
        let lacks = self.lacks(id);
        if let Some(watcher) = self.watchers.get_mut(id)
            && std::mem::replace(&mut watcher.lacks, lacks) != lacks
        {
            self.touched.insert(id);
        }
        let mut waits = lacks.is_some();
        for (other, requires) in self.watcher(id).dependencies.clone() {
            let name = self.watcher(other).name();
            match self.watcher(other).goal {
                // Another may still be a reason to give up.
                Goal::Queued | Goal::Up { complete: false } => waits = true,
                Goal::Up { complete: true } | Goal::Ended => {}
                // Traffic starts it when somebody needs it.
                Goal::Waiting => {}
                Goal::Stopped { .. } | Goal::Failed if !requires => {}
                Goal::Stopped { .. } => {
                    let text = format!("it requires `{name}`, which is stopped");
                    return self.give_up(
                        turn,
                        id,
                        Mishap {
                            text,
                            wid: 0,
                            exit_code: 1,
                            of_reload: false,
                        },
                    );
                }
                Goal::Failed => {
                    let text = format!("it requires `{name}`, which failed");
                    return self.give_up(
                        turn,
                        id,
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
        let place = (self.watcher(id).rank, id);
        if waits {
            self.startable.remove(&place);
        } else {
            self.startable.insert(place);
        }
    }

    /// The socket that keeps a watcher from starting, since it is not bound.
    pub(super) fn lacks(&self, id: WatcherId) -> Option<SocketId> {
        let edition = &self.watcher(id).edition;
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
        let watcher = self.watcher_mut(id);
        // Most watchers have one, and would get room for four.
        let missing = (wanted as usize).saturating_sub(watcher.slots.len());
        watcher.slots.reserve_exact(missing);
        while (watcher.slots.len() as u32) < wanted {
            watcher.slots.push(Slot::default());
        }
        for wid in from..=wanted {
            let main = Post::main(id, wid);
            if matches!(self.state(main), State::Vacant) {
                self.set_state(main, State::Due);
            }
        }
        self.touched.insert(id);
    }

    /// Wants a watcher down, and first what requires it. Its workers keep their stop until those of the watchers that
    /// are `after` it, and are being stopped too, have ended.
    pub(super) fn stop_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if matches!(self.watcher(id).goal, Goal::Stopped { .. }) {
            return;
        }
        self.set_goal(id, Goal::Stopped { held: true });
        self.watcher_mut(id).returns = 0;
        self.cancel_reload(turn, id);
        for (dependent, requires) in self.watcher(id).dependents.clone() {
            let goal = self.watcher(dependent).goal;
            if requires && matches!(goal, Goal::Up { .. } | Goal::Queued) {
                self.stop_watcher(turn, dependent);
            }
        }
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
        if self.watcher(id).goal == (Goal::Stopped { held: true }) && !self.is_held(id) {
            self.set_goal(id, Goal::Stopped { held: false });
            self.stop_posts(turn, id);
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
        self.tell_state(turn, id);
        self.answer_requests(turn, id);
        if self.watcher(id).retired && self.watcher(id).tally.busy() == 0 {
            self.forget_watcher(id);
        }
    }

    /// Whether something is alive that must have ended before its workers are asked to.
    fn is_held(&self, id: WatcherId) -> bool {
        if let Phase::Stopping { remaining, .. } = &self.phase {
            let level = self.watcher(id).level;
            return remaining
                .last_key_value()
                .is_some_and(|(top, _)| *top > level);
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
            watcher.slots.pop();
            self.dirty.slots.insert((id, wid));
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
                if self.watcher(dependency).goal == (Goal::Stopped { held: true }) {
                    self.touched.insert(dependency);
                }
            }
        }
        let idle = self.watcher(id).tally.live() == 0;
        let level = self.watcher(id).level;
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
        match &mut self.phase {
            Phase::Stopping { remaining, .. } => {
                if let Some(watchers) = remaining.get_mut(&level).filter(|_| idle) {
                    watchers.remove(&id);
                    if watchers.is_empty() {
                        remaining.remove(&level);
                        // It is the turn of the next level.
                        let next = remaining.last_key_value();
                        self.touched
                            .extend(next.iter().flat_map(|(_, watchers)| watchers.iter()));
                    }
                }
            }
            Phase::New | Phase::Booting { .. } | Phase::Running | Phase::Over => {}
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
            Phase::Stopping {
                remaining, code, ..
            } if remaining.is_empty() => {
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
        let mut remaining: BTreeMap<u32, BTreeSet<WatcherId>> = BTreeMap::new();
        for id in self.watcher_ids() {
            // Nothing is started or restarted from here on; each level keeps its stop until those above have ended.
            if matches!(
                self.watcher(id).goal,
                Goal::Up { .. } | Goal::Queued | Goal::Waiting
            ) {
                self.set_goal(id, Goal::Stopped { held: true });
                self.cancel_reload(turn, id);
                self.stop_what_does_not_run(turn, id);
            }
            if self.watcher(id).tally.live() > 0 {
                let level = self.watcher(id).level;
                remaining.entry(level).or_default().insert(id);
            }
        }
        self.set_phase(Phase::Stopping {
            remaining,
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
            self.set_goal(id, Goal::Stopped { held: false });
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
