//! What ended processes leave behind: members of their group, and strays that have left it.
//!
//! A group is looked at when one of its members is reaped: its members become our children when their parents end, since
//! we are PID 1 or a subreaper. A stray is a child of ours that is no main process and whose environment names the
//! worker. Looking for strays means reading /proc, so it is done for many workers at once and not too often.

use super::processes::{Ended, Processes};
use crate::supervise::{ProcId, Time};
use crate::sys::process::{self, Pid};
use std::collections::HashMap;
use std::time::Duration;

/// Shortest time between two searches for strays.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// What is left of ended processes.
#[derive(Default)]
pub struct Leftovers {
    of: HashMap<ProcId, Leftover>,
    /// Groups that have members left, by leader.
    groups: HashMap<Pid, ProcId>,
    /// Strays that were killed and are not reaped.
    strays: HashMap<Pid, ProcId>,
    /// Those whose group is empty and whose strays are to be looked for.
    unswept: Vec<ProcId>,
    last_sweep: Time,
}

struct Leftover {
    ended: Ended,
    /// Members of the group may still be there.
    group: bool,
    /// Strays that were killed and are not reaped.
    strays: usize,
}

impl Leftovers {
    /// A main process has ended. It is still to be reaped.
    pub fn add(&mut self, proc: ProcId, ended: Ended) {
        self.groups.insert(ended.group, proc);
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
        if !process::group_exists(leftover.ended.group) {
            leftover.group = false;
            self.groups.remove(&leftover.ended.group);
            self.unswept.push(proc);
        }
    }

    /// When [`Leftovers::sweep`] is due.
    pub fn next_sweep(&self) -> Option<Time> {
        (!self.unswept.is_empty()).then(|| self.last_sweep + SWEEP_PAUSE)
    }

    /// Looks for strays and kills them, if it is time. The answer names the processes of which nothing is left now.
    pub fn sweep(&mut self, now: Time, processes: &Processes) -> Vec<ProcId> {
        if self.next_sweep().is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.last_sweep = now;
        let unswept = std::mem::take(&mut self.unswept);
        // Without /proc nobody can be found.
        let children = process::children().unwrap_or_default();
        let unknown: Vec<Pid> = children
            .into_iter()
            .filter(|pid| !processes.is_main(*pid))
            .collect();
        let mut gone = Vec::new();
        for proc in unswept {
            let Some(leftover) = self.of.get_mut(&proc) else {
                continue;
            };
            for pid in &unknown {
                if leftover.has_stray(*pid) {
                    log::info!(
                        target: &format!("watcher.{}", leftover.ended.watcher),
                        "pid {pid}, left behind by worker {}, is killed", leftover.ended.wid
                    );
                    let _ = process::kill(*pid, libc::SIGKILL);
                    leftover.strays += usize::from(self.strays.insert(*pid, proc).is_none());
                }
            }
            if leftover.strays == 0 {
                self.of.remove(&proc);
                gone.push(proc);
            }
        }
        gone
    }
}

impl Leftover {
    fn has_stray(&self, pid: Pid) -> bool {
        let (wid, generation) = (
            self.ended.wid.to_string(),
            self.ended.generation.to_string(),
        );
        process::environ_has(
            pid,
            &[
                ("TENTPOLE_WATCHER", &self.ended.watcher),
                ("TENTPOLE_WID", &wid),
                ("TENTPOLE_GENERATION", &generation),
            ],
        )
    }
}
