//! Commands: what somebody asks for, and when it is done.

use super::state::{Goal, Slot, State, Why};
use super::{Effect, RequestId, Supervisor, Turn, WatcherId};
use crate::unit::{LogLevel, Signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start these watchers now, on-demand ones too; without names all that start by themselves.
    Start(Vec<String>),
    /// Stop these watchers (without names: all); their sockets stay open.
    Stop(Vec<String>),
    /// Stop and start the workers of these watchers (without names: of all that run).
    Restart(Vec<String>),
    /// Keep another number of workers.
    Scale {
        /// Of which watcher.
        name: String,
        /// How many.
        to: Amount,
    },
    /// Send a signal to workers.
    Signal {
        /// Of which watcher.
        name: String,
        /// What.
        signal: Signal,
        /// To this worker alone.
        wid: Option<u32>,
        /// To their whole process groups.
        children: bool,
    },
    /// Stop everything, then the manager.
    Shutdown,
}

/// A number of workers, or a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    To(u32),
    /// So many more, or fewer.
    By(i32),
}

/// Why a command was not carried out, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such watcher; nothing was done.
    NoSuchWatcher {
        /// What was asked for.
        name: String,
    },
    /// It can't be done now; nothing was done.
    Refused(String),
    /// It was begun, and failed.
    Failed(String),
    /// The manager is stopping.
    ShuttingDown,
    /// Another command came in between.
    Superseded {
        /// What was asked for.
        name: String,
        /// What came in between.
        by: &'static str,
    },
}

/// Most workers of one watcher.
pub const MOST_WORKERS: u32 = 100_000;

/// A command that is not answered yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    want: Want,
    /// Watchers that it still waits for, each with its failures at the time of the command.
    open: BTreeMap<WatcherId, u64>,
    /// What went wrong so far, in words.
    problems: Vec<String>,
    superseded: Option<(String, bool)>,
    /// What to say when all is done.
    message: Option<String>,
    progress: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Want {
    Up,
    Stopped,
    Scaled,
    /// The end of the manager.
    Over,
}

enum Verdict {
    Open,
    Done,
    Failed(String),
    /// By a stop (true) or a start (false).
    Superseded(bool),
}

impl Supervisor {
    pub(super) fn command(
        &mut self,
        turn: &mut Turn<'_>,
        request: RequestId,
        command: Command,
        no_wait: bool,
        progress: bool,
    ) {
        let begun = self.begin_command(turn, command);
        let (want, ids, message) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                turn.effects.push(Effect::Reply {
                    request,
                    outcome: Err(refusal),
                });
                return;
            }
        };
        if no_wait || (want != Want::Over && ids.is_empty()) {
            turn.effects.push(Effect::Reply {
                request,
                outcome: Ok(message),
            });
            return;
        }
        let open = ids
            .iter()
            .map(|id| (*id, self.watcher(*id).failures_ever))
            .collect();
        for id in ids {
            self.watcher_mut(id).requests.push(request);
            self.touched.insert(id);
        }
        let pending = Pending {
            want,
            open,
            problems: Vec::new(),
            superseded: None,
            message,
            progress,
        };
        self.pending.insert(request, pending);
    }

    fn begin_command(
        &mut self,
        turn: &mut Turn<'_>,
        command: Command,
    ) -> Result<(Want, Vec<WatcherId>, Option<String>), Refusal> {
        match command {
            Command::Start(names) => {
                let ids = self.select(&names, |supervisor, id| {
                    supervisor.watcher(id).spec.unit.autostart
                })?;
                self.refuse_when_stopping()?;
                for id in &ids {
                    self.start_watcher(turn, *id);
                }
                Ok((Want::Up, ids, None))
            }
            Command::Stop(names) => {
                let ids = self.select(&names, |_, _| true)?;
                for id in &ids {
                    self.stop_watcher(turn, *id);
                }
                let message = self.open_sockets(&ids);
                Ok((Want::Stopped, ids, message))
            }
            Command::Restart(names) => {
                let ids = self.select(&names, |supervisor, id| {
                    matches!(supervisor.watcher(id).goal, Goal::Up { .. } | Goal::Queued)
                })?;
                self.refuse_when_stopping()?;
                for id in &ids {
                    self.restart_watcher(turn, *id);
                }
                Ok((Want::Up, ids, None))
            }
            Command::Scale { name, to } => {
                let id = self.find(&name)?;
                self.refuse_when_stopping()?;
                self.scale(turn, id, to)?;
                Ok((Want::Scaled, vec![id], None))
            }
            Command::Signal {
                name,
                signal,
                wid,
                children,
            } => {
                let id = self.find(&name)?;
                let sent = self.signal_workers(turn, id, signal, wid, children)?;
                Ok((
                    Want::Scaled,
                    Vec::new(),
                    Some(format!(
                        "sent to {sent} worker{}",
                        if sent == 1 { "" } else { "s" }
                    )),
                ))
            }
            Command::Shutdown => {
                if !self.is_stopping() {
                    self.stop_all(turn, 0);
                }
                Ok((Want::Over, Vec::new(), None))
            }
        }
    }

    fn find(&self, name: &str) -> Result<WatcherId, Refusal> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| Refusal::NoSuchWatcher {
                name: name.to_owned(),
            })
    }

    /// The watchers of these names, each once, in start order; without names those that `all` chooses.
    fn select(
        &self,
        names: &[String],
        all: impl Fn(&Self, WatcherId) -> bool,
    ) -> Result<Vec<WatcherId>, Refusal> {
        if names.is_empty() {
            return Ok(self.watcher_ids().filter(|id| all(self, *id)).collect());
        }
        let mut ids = names
            .iter()
            .map(|name| self.find(name))
            .collect::<Result<Vec<_>, _>>()?;
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn refuse_when_stopping(&self) -> Result<(), Refusal> {
        if self.is_stopping() {
            Err(Refusal::ShuttingDown)
        } else {
            Ok(())
        }
    }

    fn open_sockets(&self, ids: &[WatcherId]) -> Option<String> {
        let mut names: Vec<&str> = (ids.iter())
            .flat_map(|id| &self.watcher(*id).sockets)
            .map(|socket| self.sockets[socket.0 as usize].spec.name())
            .collect();
        names.sort_unstable();
        names.dedup();
        match names.as_slice() {
            [] => None,
            [name] => Some(format!(
                "socket `{name}` stays open; clients wait in its queue"
            )),
            names => Some(format!(
                "sockets `{}` stay open; clients wait in their queues",
                names.join("`, `")
            )),
        }
    }

    fn restart_watcher(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        match self.watcher(id).goal {
            Goal::Up { .. } => {
                for wid in 1..=self.watcher(id).slots.len() as u32 {
                    self.stop_slot(turn, id, wid, Why::Asked);
                }
                self.want_slots(id, 1);
            }
            Goal::Stopped { .. } | Goal::Ended | Goal::Failed => self.start_watcher(turn, id),
            Goal::Queued | Goal::Waiting => {}
        }
    }

    fn scale(&mut self, turn: &mut Turn<'_>, id: WatcherId, to: Amount) -> Result<(), Refusal> {
        let watcher = self.watcher(id);
        let name = watcher.spec.name();
        let wanted = match to {
            Amount::To(wanted) => i64::from(wanted),
            Amount::By(by) => i64::from(watcher.wanted) + i64::from(by),
        };
        let wanted = u32::try_from(wanted.max(0)).unwrap_or(u32::MAX);
        if watcher.spec.unit.singleton && wanted > 1 {
            return Err(Refusal::Refused(format!(
                "watcher `{name}` is a singleton: it has at most 1 worker"
            )));
        }
        if wanted > MOST_WORKERS {
            return Err(Refusal::Refused(format!(
                "a watcher has at most {MOST_WORKERS} workers"
            )));
        }
        let before = watcher.wanted;
        self.log(turn, LogLevel::Info, id, || {
            format!("scaled from {before} to {wanted}")
        });
        if self.has_shards(id) {
            // Those of workers that never ran are closed too.
            let slots = &mut self.watcher_mut(id).slots;
            slots.resize_with(slots.len().max(before as usize), Slot::default);
        }
        self.watcher_mut(id).wanted = wanted;
        if matches!(self.watcher(id).goal, Goal::Up { .. }) {
            for wid in (wanted + 1..=self.watcher(id).slots.len() as u32).rev() {
                self.retire_slot(turn, id, wid);
            }
            // Not those before: a worker that ended for good stays so.
            self.want_slots(id, before.saturating_add(1));
        }
        self.touched.insert(id);
        Ok(())
    }

    fn signal_workers(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        signal: Signal,
        wid: Option<u32>,
        children: bool,
    ) -> Result<usize, Refusal> {
        let watcher = self.watcher(id);
        let name = watcher.spec.name();
        let chosen = (1u32..)
            .zip(&watcher.slots)
            .filter(|(number, _)| wid.is_none_or(|wid| wid == *number));
        let procs: Vec<_> = chosen
            .filter(|(_, slot)| !matches!(slot.state, State::Leaving { .. }))
            .filter_map(|(_, slot)| slot.state.worker().map(|worker| worker.proc))
            .collect();
        if procs.is_empty() {
            return Err(Refusal::Refused(match wid {
                Some(wid) => format!("watcher `{name}` has no running worker {wid}"),
                None => format!("watcher `{name}` has no running worker"),
            }));
        }
        for proc in &procs {
            turn.effects.push(Effect::Signal {
                proc: *proc,
                signal,
                group: children,
            });
        }
        Ok(procs.len())
    }

    pub(super) fn abandon(&mut self, request: RequestId) {
        if let Some(pending) = self.pending.remove(&request) {
            for id in pending.open.into_keys() {
                self.watcher_mut(id)
                    .requests
                    .retain(|other| *other != request);
            }
        }
    }

    /// Answers the commands that waited for this watcher and do not have to any more.
    pub(super) fn answer_requests(&mut self, turn: &mut Turn<'_>, id: WatcherId) {
        if self.watcher(id).requests.is_empty() {
            return;
        }
        for request in self.watcher(id).requests.clone() {
            let Some(pending) = self.pending.get(&request) else {
                continue;
            };
            let mark = pending.open.get(&id).copied().unwrap_or(0);
            let verdict = self.verdict(id, pending.want, mark);
            let watcher = self.watcher(id);
            if pending.progress {
                let ready = if pending.want == Want::Stopped {
                    watcher.tally.live()
                } else {
                    watcher.tally.ready
                };
                let (state, wanted, name) = (
                    watcher.state(),
                    watcher.wanted,
                    watcher.spec.name().to_owned(),
                );
                turn.effects.push(Effect::Progress {
                    request,
                    watcher: name,
                    state,
                    ready,
                    wanted,
                });
            }
            let name = self.watcher(id).spec.name().to_owned();
            let Some(pending) = self.pending.get_mut(&request) else {
                continue;
            };
            match verdict {
                Verdict::Open => continue,
                Verdict::Done => {}
                Verdict::Failed(text) => pending.problems.push(text),
                Verdict::Superseded(by_stop) => pending.superseded = Some((name, by_stop)),
            }
            pending.open.remove(&id);
            let all_done = pending.open.is_empty();
            self.watcher_mut(id)
                .requests
                .retain(|other| *other != request);
            if all_done {
                self.answer(turn, request);
            }
        }
    }

    fn verdict(&self, id: WatcherId, want: Want, mark: u64) -> Verdict {
        let watcher = self.watcher(id);
        let name = watcher.spec.name();
        let failure = || {
            let reason = watcher
                .mishap
                .as_ref()
                .map_or("no reason is known", |mishap| mishap.text.as_str());
            format!("watcher `{name}`: {reason}")
        };
        match (want, watcher.goal) {
            (Want::Over, _) => Verdict::Open,
            (Want::Stopped, Goal::Up { .. } | Goal::Queued) => Verdict::Superseded(false),
            (Want::Stopped, _) if watcher.tally.live() == 0 => Verdict::Done,
            (Want::Stopped, _) => Verdict::Open,
            (Want::Up, Goal::Stopped { .. }) => Verdict::Superseded(true),
            (_, Goal::Failed | Goal::Waiting | Goal::Ended) if watcher.failures_ever > mark => {
                Verdict::Failed(failure())
            }
            (Want::Up | Want::Scaled, Goal::Up { .. }) if watcher.failures_ever > mark => {
                Verdict::Failed(format!("{}; the manager goes on trying", failure()))
            }
            (Want::Up | Want::Scaled, Goal::Up { complete: true })
                if watcher.is_quiet() && watcher.slots.len() as u32 <= watcher.wanted =>
            {
                Verdict::Done
            }
            (Want::Up | Want::Scaled, Goal::Up { .. }) => Verdict::Open,
            (Want::Up | Want::Scaled, Goal::Queued) => Verdict::Open,
            (Want::Up, Goal::Failed) => Verdict::Failed(failure()),
            (Want::Up, Goal::Waiting | Goal::Ended) => Verdict::Done,
            (Want::Scaled, _) => Verdict::Done,
        }
    }

    fn answer(&mut self, turn: &mut Turn<'_>, request: RequestId) {
        let Some(pending) = self.pending.remove(&request) else {
            return;
        };
        let outcome = match pending.superseded {
            _ if !pending.problems.is_empty() => Err(Refusal::Failed(pending.problems.join("; "))),
            Some(_) if self.is_stopping() => Err(Refusal::ShuttingDown),
            Some((name, by_stop)) => Err(Refusal::Superseded {
                name,
                by: if by_stop { "stop" } else { "start" },
            }),
            None => Ok(pending.message),
        };
        turn.effects.push(Effect::Reply { request, outcome });
    }

    /// Everything has ended: nobody is left waiting.
    pub(super) fn answer_all(&mut self, turn: &mut Turn<'_>) {
        for (request, pending) in std::mem::take(&mut self.pending) {
            let done = matches!(pending.want, Want::Over | Want::Stopped);
            let outcome = if done {
                Ok(pending.message)
            } else {
                Err(Refusal::ShuttingDown)
            };
            turn.effects.push(Effect::Reply { request, outcome });
        }
        for watcher in &mut self.watchers {
            watcher.requests.clear();
        }
    }
}
