//! What ended processes leave behind: members of their group, and strays that have left it.
//!
//! A group is looked at when one of its members is reaped: its members become our children when their parents end, since
//! we are PID 1 or a subreaper. A stray is a child of ours that is no main process. Whose it is shows in three ways:
//!
//! - its environment names the worker, unless it has written over that or was executed with another;
//! - it descended from the worker when that was last sent a signal, by which it was to end, say;
//! - no worker that still runs had started before it did: so it is of one that has ended. This holds where there is
//!   nobody but workers below us. The parent of PID 1's orphans may be who knows (`docker exec`), and a keeper may have
//!   been started with children (`helper & exec tentpole run`).
//!
//! What is told by none of them lives until the last worker that could have made it has ended, or the manager has
//! ([`end_rest`]). Looking for strays means reading /proc, so it is done for many workers at once and not too often.

use super::processes::{Ended, Processes};
use crate::supervise::{ProcId, Time};
use crate::sys::output;
use crate::sys::process::{self, Pid};
use crate::sys::signals::SignalFd;
use crate::unit::Signal;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::time::Duration;

/// Shortest time between two searches for strays, and how much longer it is for each child that there is to look at: so
/// the work grows with the processes that end, and not with all that there are beside each of them.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);
const SWEEP_PAUSE_FOR_EACH: Duration = Duration::from_micros(20);

/// What an earlier manager was making when it died is executed by then, on a machine that is not out of its mind.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// How long the end of what is left at the manager's own end is waited for: the kernel keeps some processes for ever.
const END: Duration = Duration::from_secs(2);

/// What is left of ended processes.
pub struct Leftovers {
    of: HashMap<ProcId, Leftover>,
    /// Groups that have members left, by leader.
    groups: HashMap<Pid, ProcId>,
    /// Strays that were killed and are not reaped.
    strays: HashMap<Pid, ProcId>,
    /// Those whose group is empty and whose strays are to be looked for.
    unswept: Vec<ProcId>,
    /// When they may be looked for again.
    sweep_at: Time,
    /// Whose children orphans become beside ours: they are those of an earlier manager's workers. What becomes of them is
    /// not always told, so it is looked at again and again while there are any.
    fosters: BTreeSet<Pid>,
    /// Whether every process below us is a worker or descends from one.
    is_sole: bool,
    /// Orphans that do not show whose they are, and when to look at them once more: they may be being made, in which case
    /// another one has been made in their place since then.
    suspects: BTreeSet<Pid>,
    second_look: Option<Time>,
    /// How workers of which nothing is known are asked to end, by watcher, since they may have clients.
    manners: HashMap<String, Manners>,
    /// Those that were asked, and when they are killed.
    unwanted: BTreeMap<Pid, Time>,
    /// Those that are not recorded as they are.
    dirty: BTreeSet<ProcId>,
}

/// How a worker is asked to end: by which signal, and how long it is waited for.
pub type Manners = (Signal, Option<Duration>);

/// What the next manager must know of an ended process.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeftoverRecord {
    watcher: String,
    wid: u32,
    generation: u64,
    group: i32,
    /// Members of the group may still be there.
    has_group: bool,
    #[serde(default)]
    since: u64,
}

struct Leftover {
    ended: Ended,
    /// Members of the group may still be there.
    group: bool,
    /// Strays that were killed and are not reaped.
    strays: usize,
}

impl Leftovers {
    /// None yet. With `is_sole` there is nobody below us but workers.
    pub fn new(is_sole: bool) -> Leftovers {
        Leftovers {
            of: HashMap::new(),
            groups: HashMap::new(),
            strays: HashMap::new(),
            unswept: Vec::new(),
            sweep_at: Time::ZERO,
            fosters: BTreeSet::new(),
            is_sole,
            suspects: BTreeSet::new(),
            second_look: None,
            manners: HashMap::new(),
            unwanted: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// A main process has ended. It is still to be reaped.
    pub fn add(&mut self, proc: ProcId, ended: Ended) {
        self.groups.insert(ended.group, proc);
        self.dirty.insert(proc);
        self.of.insert(
            proc,
            Leftover {
                ended,
                group: true,
                strays: 0,
            },
        );
    }

    /// Kills the group; strays follow when they are found.
    pub fn kill(&self, proc: ProcId) {
        if let Some(leftover) = self.of.get(&proc).filter(|leftover| leftover.group) {
            // The leader is not reaped yet, or another member holds the number: it can't be somebody else's.
            let _ = process::kill_group(leftover.ended.group, libc::SIGKILL);
        }
    }

    /// A child was reaped, which was of this group.
    pub fn reaped(&mut self, pid: Pid, group: Option<Pid>) {
        self.unwanted.remove(&pid);
        for leader in [Some(pid), group.filter(|group| *group != pid)]
            .into_iter()
            .flatten()
        {
            if let Some(proc) = self.groups.get(&leader).copied() {
                self.look(proc);
            }
        }
        let Some(proc) = self.strays.remove(&pid) else {
            return;
        };
        let Some(leftover) = self.of.get_mut(&proc) else {
            return;
        };
        leftover.strays -= 1;
        if leftover.strays == 0 {
            // Its own children are ours now.
            self.unswept.push(proc);
        }
    }

    /// Looks whether a group is empty now.
    pub fn look(&mut self, proc: ProcId) {
        let Some(leftover) = self.of.get_mut(&proc).filter(|leftover| leftover.group) else {
            return;
        };
        if !process::group_lives(leftover.ended.group) {
            leftover.group = false;
            self.groups.remove(&leftover.ended.group);
            self.unswept.push(proc);
        }
    }

    /// When [`Leftovers::sweep`] is due.
    pub fn next_sweep(&self) -> Option<Time> {
        let is_watched = !self.fosters.is_empty() && !self.of.is_empty();
        let sweep = (is_watched || !self.unswept.is_empty()).then_some(self.sweep_at);
        let killing = self.unwanted.values().copied();
        let killing = killing.filter(|at| *at != Time::NEVER);
        [sweep, self.second_look]
            .into_iter()
            .flatten()
            .chain(killing)
            .min()
    }

    /// Those whose record has changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ProcId> {
        std::mem::take(&mut self.dirty)
    }

    /// All that there are.
    pub fn ids(&self) -> Vec<ProcId> {
        self.of.keys().copied().collect()
    }

    /// What the next manager must know of an ended process; `None` if nothing of it is left.
    pub fn record(&self, proc: ProcId) -> Option<LeftoverRecord> {
        let leftover = self.of.get(&proc)?;
        Some(LeftoverRecord {
            watcher: leftover.ended.watcher.clone(),
            wid: leftover.ended.wid,
            generation: leftover.ended.generation,
            group: leftover.ended.group.as_raw(),
            has_group: leftover.group,
            since: leftover.ended.since,
        })
    }

    /// What was below another manager is below `foster` now, and what it has killed; or below others.
    pub fn move_to(&mut self, foster: Option<Pid>, others: BTreeSet<Pid>) {
        // Others have more children than what our workers have left.
        self.is_sole &= others.is_empty();
        self.fosters = others;
        self.fosters.extend(foster);
    }

    /// Takes over what another manager was looking after.
    pub fn adopt(&mut self, records: BTreeMap<ProcId, LeftoverRecord>) {
        for (proc, record) in records {
            let Some(group) = Pid::new(record.group) else {
                continue;
            };
            let ended = Ended {
                group,
                watcher: record.watcher,
                wid: record.wid,
                generation: record.generation,
                since: record.since,
                kin: Vec::new(),
            };
            self.add(proc, ended);
            if !record.has_group {
                self.groups.remove(&group);
                if let Some(leftover) = self.of.get_mut(&proc) {
                    leftover.group = false;
                }
                self.unswept.push(proc);
            }
        }
    }

    /// Ends processes of workers that nothing is known of: they were made in the instant before another manager died.
    pub fn end_unknown(
        &mut self,
        processes: &Processes,
        manners: HashMap<String, Manners>,
        now: Time,
    ) {
        self.manners = manners;
        for pid in self.orphans(processes).1 {
            let Some((watcher, wid, generation)) = worker_of(pid) else {
                self.suspects.insert(pid);
                self.second_look = Some(now + SECOND_LOOK);
                continue;
            };
            let is_left = self
                .of
                .values()
                .any(|leftover| leftover.ended.worker() == (watcher.as_str(), wid, generation));
            if !is_left && !processes.has(&watcher, wid, generation) {
                self.dismiss(pid, &watcher, now);
            }
        }
    }

    fn dismiss(&mut self, pid: Pid, watcher: &str, now: Time) {
        let (Signal(signal), patience) =
            (self.manners.get(watcher).copied()).unwrap_or((Signal(libc::SIGKILL), None));
        log::warn!(target: &format!("watcher.{watcher}"), "pid {pid} has to end: it was started in the moment in which the last manager died");
        let _ = process::kill(pid, signal);
        let kill_at = patience.map_or(Time::NEVER, |patience| now + patience);
        self.unwanted.insert(pid, kill_at);
    }

    /// Kills those that were asked to end, and had their time.
    fn kill_unwanted(&mut self, now: Time) {
        let due = self.unwanted.iter().filter(|(_, at)| **at <= now);
        let due: Vec<Pid> = due.map(|(pid, _)| *pid).collect();
        for pid in due {
            self.unwanted.remove(&pid);
            // The number may be another process's by now.
            if worker_of(pid).is_some() {
                let _ = process::kill_group(pid, libc::SIGKILL);
                let _ = process::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Ends those that show now that they are workers.
    fn end_suspects(&mut self, processes: &Processes, now: Time) {
        if self.suspects.is_empty() {
            return;
        }
        for pid in self.orphans(processes).1 {
            if self.suspects.contains(&pid)
                && let Some((watcher, ..)) = worker_of(pid)
            {
                self.suspects.remove(&pid);
                self.dismiss(pid, &watcher, now);
            }
        }
        if self.second_look.take_if(|at| *at <= now).is_some() {
            self.suspects.clear();
        }
    }

    /// Orphans that may have been left behind, and how many children were looked at to find them.
    fn orphans(&self, processes: &Processes) -> (u32, Vec<Pid>) {
        // Without /proc nobody can be found.
        let mut children = process::children().unwrap_or_default();
        let fosters = self.fosters.iter();
        let others = fosters.filter_map(|foster| process::children_of(*foster).ok());
        let mut others: Vec<Pid> = others.flatten().collect();
        let looked_at = u32::try_from(children.len() + others.len()).unwrap_or(u32::MAX);
        for pids in [&mut children, &mut others] {
            pids.retain(|pid| *pid != Pid::own() && !processes.is_known(*pid));
        }
        // systemd is the foster of other managers' workers too, which may be called the same.
        others.retain(|pid| process::shares_cgroups(*pid));
        children.append(&mut others);
        (looked_at, children)
    }

    /// Looks for strays and kills them, if it is time. The answer names the processes of which nothing is left now.
    pub fn sweep(&mut self, now: Time, processes: &Processes) -> Vec<ProcId> {
        if self.next_sweep().is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.end_suspects(processes, now);
        self.kill_unwanted(now);
        if !self.fosters.is_empty() {
            for proc in self.ids() {
                self.look(proc);
                // Its strays may be nobody's whose end we are told of.
                let left = self.of.get_mut(&proc).filter(|left| left.strays > 0);
                if let Some(left) = left {
                    left.strays = 0;
                    self.strays.retain(|_, of| *of != proc);
                    self.unswept.push(proc);
                }
            }
        }
        let unswept = std::mem::take(&mut self.unswept);
        let (looked_at, orphans) = self.orphans(processes);
        self.sweep_at = now + SWEEP_PAUSE + SWEEP_PAUSE_FOR_EACH * looked_at;
        if !orphans.is_empty() {
            self.kill_strays(&unswept, &orphans, processes);
        }
        let mut gone = Vec::new();
        for proc in unswept {
            let Some(leftover) = self.of.get(&proc) else {
                continue;
            };
            if leftover.strays == 0 {
                self.of.remove(&proc);
                self.dirty.insert(proc);
                gone.push(proc);
            }
        }
        gone
    }

    /// Kills what of `orphans` was left behind by one of `unswept`.
    fn kill_strays(&mut self, unswept: &[ProcId], orphans: &[Pid], processes: &Processes) {
        let ended = |proc: &ProcId| Some((*proc, &self.of.get(proc)?.ended));
        let ended: Vec<(ProcId, &Ended)> = unswept.iter().filter_map(ended).collect();
        let by_worker: HashMap<(&str, u32, u64), ProcId> =
            (ended.iter().map(|(proc, ended)| (ended.worker(), *proc))).collect();
        // Those whose group is not gone are not over: some have been asked to end, and have their time.
        let others = self.of.values().filter(|leftover| leftover.group);
        let others = others.map(|leftover| leftover.ended.since).min();
        let oldest = [processes.oldest(), others].into_iter().flatten().min();
        let left_by = |pid: &Pid| {
            if self.unwanted.contains_key(pid) {
                return None;
            }
            if let Some((watcher, wid, generation)) = worker_of(*pid) {
                let proc = by_worker.get(&(watcher.as_str(), wid, generation))?;
                return Some((*pid, *proc));
            }
            let started = process::started_at(*pid).ok()?;
            let is_kin = |ended: &Ended| ended.kin.contains(&(*pid, started));
            let infers = self.is_sole && oldest.is_none_or(|oldest| started < oldest);
            let is_left = |ended: &Ended| infers && ended.since <= started;
            let found = (ended.iter().find(|(_, ended)| is_kin(ended)))
                .or_else(|| ended.iter().find(|(_, ended)| is_left(ended)));
            // What is being made by us does not show whose it is yet.
            let (proc, _) = found.filter(|_| !process::has_own_image(*pid))?;
            Some((*pid, *proc))
        };
        let found: Vec<(Pid, ProcId)> = orphans.iter().filter_map(left_by).collect();
        for (pid, proc) in found {
            let Some(leftover) = self.of.get_mut(&proc) else {
                continue;
            };
            log::info!(
                target: &format!("watcher.{}", leftover.ended.watcher),
                "pid {pid}, left behind by worker {}, is killed", leftover.ended.wid
            );
            let _ = process::kill(pid, libc::SIGKILL);
            leftover.strays += usize::from(self.strays.insert(pid, proc).is_none());
        }
    }
}

/// Whether nobody will be below this process but what it makes and what descends from that: to be asked before it has
/// made anything.
pub fn is_sole() -> bool {
    process::Pid::own().as_raw() != 1 && !process::has_children()
}

/// Kills what is left below this process, which is about to end: nobody will look after it. With `is_sole` all of it is
/// workers'; else what does not show that it is goes on, as at [`Leftovers`]. What ends is read from `signals`.
pub fn end_rest(signals: &SignalFd, is_sole: bool) {
    let until = process::monotonic_now() + END;
    let mut told = BTreeSet::new();
    while process::has_children() {
        while let Ok(Some((pid, _))) = process::peek_exit() {
            let _ = process::reap(pid);
        }
        let mut left = process::descendants(Pid::own()).unwrap_or_default();
        left.retain(|pid| !process::is_zombie(*pid) && (is_sole || worker_of(*pid).is_some()));
        let patience = until.saturating_sub(process::monotonic_now());
        if left.is_empty() || patience.is_zero() {
            return;
        }
        for pid in left {
            if told.insert(pid) {
                let name = process::name_of(pid).unwrap_or_default();
                log::warn!(target: "manager", "{name} (pid {pid}) is left at the end, and is killed");
            }
            let _ = process::kill(pid, libc::SIGKILL);
        }
        // Children of those that end are ours then, and looked at next.
        let _ = output::wait_for(&[(signals.as_fd(), false)], Some(patience));
        while let Ok(Some(_)) = signals.read() {}
    }
}

/// The worker that a process was started for: its watcher, wid and generation.
fn worker_of(pid: Pid) -> Option<(String, u32, u64)> {
    let names = ["TENTPOLE_WATCHER", "TENTPOLE_WID", "TENTPOLE_GENERATION"];
    let [watcher, wid, generation] = process::environ_of(pid, names)?;
    Some((watcher, wid.parse().ok()?, generation.parse().ok()?))
}
