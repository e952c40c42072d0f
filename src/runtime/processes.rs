//! The workers' processes: making them, signalling them, knowing whose a pid is.

use super::{SlotKey, Token, io_failure, listeners::Listeners, spawn_failure};
use crate::plan::{Invocation, Moment, Sink, Source, Variable, Watcher};
use crate::supervise::{self, Exit, ProcId, Sender, SocketId, SpawnFailure, WatcherId};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::output;
use crate::sys::process::{self, Identity, Pid};
use crate::sys::spawn::{self, Child, Spawn, SpawnError, Spawner, Step};
use crate::unit::{self, Gather, Signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Longest `env_file` that is read, in bytes.
const LONGEST_ENV_FILE: u64 = 1 << 20;

/// The text of an `env_file`.
pub fn read_env_file(path: &Path) -> io::Result<String> {
    output::read_text(path, LONGEST_ENV_FILE)
}

/// How far up the tree of processes a sender's worker, or an ancestor of ours, is looked for.
const DEEPEST_SENDER: usize = 32;

/// A process that is to be made.
pub struct Job {
    pub proc: ProcId,
    pub watcher: WatcherId,
    pub wid: u32,
    pub generation: u64,
    pub spec: Rc<Watcher>,
    /// The sockets of [`Watcher::listens`].
    pub sockets: Rc<[SocketId]>,
}

impl Job {
    fn socket(&self, name: &str) -> Option<SocketId> {
        let listens = &self.spec.listens;
        let index = listens.iter().position(|listened| listened == name)?;
        self.sockets.get(index).copied()
    }
}

/// The workers' processes.
pub struct Processes {
    spawner: Spawner,
    environment: Vec<Variable>,
    manager_env: Vec<(String, unit::At<String>)>,
    /// fd 0 of most workers.
    empty: Option<OwnedFd>,
    null: Option<OwnedFd>,
    by_proc: HashMap<ProcId, Process>,
    /// Main processes by pid.
    by_pid: HashMap<Pid, ProcId>,
    /// Process groups (and sessions) by the pid of their leader: the first main process.
    by_group: HashMap<Pid, ProcId>,
    /// Whether anything is recorded for another manager.
    keeps: bool,
    /// Those that are not recorded as they are.
    dirty: BTreeSet<ProcId>,
    /// Processes that are no workers.
    programs: BTreeSet<Pid>,
    /// The path that this program was started by.
    own_program: Option<PathBuf>,
}

/// How a unit names the manager's own program, wherever that is.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What the next manager must know of a process.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessRecord {
    watcher: u32,
    wid: u32,
    generation: u64,
    name: String,
    identity: Option<Identity>,
    main: i32,
    group: i32,
    followed: bool,
    #[serde(default)]
    since: u64,
}

struct Process {
    slot: SlotKey,
    generation: u64,
    /// The watcher's name.
    name: String,
    /// What no other process has, whatever its number.
    identity: Option<Identity>,
    main: Pid,
    group: Pid,
    /// The main process is another one than we made (MAINPID), or is no child of who would tell of its end, so its pidfd
    /// is watched. Our own child needs none: its pid is its own until we reap it, and a descriptor for each worker would
    /// be copied and closed at every spawn.
    followed: Option<OwnedFd>,
    /// By [`process::start_clock`], just before it was made: nothing that descends from it has started before.
    since: u64,
    /// What descended from it when it was last sent a signal.
    kin: Vec<Kin>,
}

/// A process, and when it has started.
pub type Kin = (Pid, u64);

/// What an ended process may have left behind.
pub struct Ended {
    pub group: Pid,
    pub watcher: String,
    pub wid: u32,
    pub generation: u64,
    pub since: u64,
    pub kin: Vec<Kin>,
}

impl Ended {
    /// Its watcher, wid and generation.
    pub fn worker(&self) -> (&str, u32, u64) {
        (&self.watcher, self.wid, self.generation)
    }
}

impl Processes {
    pub fn new(
        spawner: Spawner,
        environment: Vec<Variable>,
        manager_env: Vec<(String, unit::At<String>)>,
        own_program: Option<PathBuf>,
    ) -> Processes {
        Processes {
            spawner,
            environment,
            manager_env,
            empty: output::empty().ok(),
            null: None,
            by_proc: HashMap::new(),
            by_pid: HashMap::new(),
            by_group: HashMap::new(),
            keeps: false,
            dirty: BTreeSet::new(),
            programs: BTreeSet::new(),
            own_program,
        }
    }

    /// Says that another manager may take the processes over.
    pub fn keep(&mut self) {
        self.keeps = true;
    }

    /// Those whose record has changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ProcId> {
        std::mem::take(&mut self.dirty)
    }

    /// All that there are.
    pub fn ids(&self) -> Vec<ProcId> {
        self.by_proc.keys().copied().collect()
    }

    /// What the next manager must know of a process; `None` if it has ended.
    pub fn record(&self, proc: ProcId) -> Option<ProcessRecord> {
        let process = self.by_proc.get(&proc)?;
        Some(ProcessRecord {
            watcher: process.slot.0.0,
            wid: process.slot.1,
            generation: process.generation,
            name: process.name.clone(),
            identity: process.identity,
            main: process.main.as_raw(),
            group: process.group.as_raw(),
            followed: process.followed.is_some(),
            since: process.since,
        })
    }

    /// Takes over the processes of another manager. With `watch` nobody else tells of their ends, so their pidfds are
    /// watched. The answer are those that have ended, or whose number another process has by now.
    pub fn adopt(
        &mut self,
        epoll: &Epoll,
        records: BTreeMap<ProcId, ProcessRecord>,
        watch: bool,
    ) -> Vec<ProcId> {
        let mut gone = Vec::new();
        for (proc, record) in records {
            let (Some(main), Some(group)) = (Pid::new(record.main), Pid::new(record.group)) else {
                gone.push(proc);
                continue;
            };
            let pidfd = match Identity::open(main, record.identity) {
                Ok(Some(pidfd)) => Some(pidfd),
                Ok(None) => None,
                Err(error) => {
                    log::error!(target: &format!("watcher.{}", record.name), "pid {main} can't be looked at: {error}");
                    None
                }
            };
            if pidfd.is_none() {
                gone.push(proc);
            }
            let watched = pidfd.filter(|_| watch || record.followed);
            if let Some(pidfd) = &watched {
                watch_main(epoll, proc, &record.name, main, pidfd);
            }
            self.by_pid.insert(main, proc);
            self.by_group.insert(group, proc);
            let process = Process {
                slot: (WatcherId(record.watcher), record.wid),
                generation: record.generation,
                name: record.name,
                identity: record.identity,
                main,
                group,
                followed: watched,
                since: record.since,
                kin: Vec::new(),
            };
            self.by_proc.insert(proc, process);
        }
        gone
    }

    /// Watches the main processes that are not our children, so that it does not matter whose they are. The answer are
    /// those that have ended.
    pub fn watch_strangers(&mut self, epoll: &Epoll) -> Vec<ProcId> {
        let mut gone = Vec::new();
        for (proc, process) in &mut self.by_proc {
            if process.followed.is_some() || process::peek_exit_of(process.main).is_ok() {
                continue;
            }
            match Identity::open(process.main, process.identity) {
                Ok(Some(pidfd)) => {
                    watch_main(epoll, *proc, &process.name, process.main, &pidfd);
                    process.followed = Some(pidfd);
                    self.dirty.insert(*proc);
                }
                Ok(None) => gone.push(*proc),
                Err(error) => {
                    log::error!(target: &format!("watcher.{}", process.name), "pid {} can't be looked at: {error}", process.main);
                }
            }
        }
        gone
    }

    /// The parents of main processes that are watched, since they are not our children: other than we and our parent.
    pub fn parents_of_strangers(&self) -> BTreeSet<Pid> {
        let ours = [Some(Pid::own()), process::parent()];
        let watched = self.by_proc.values().filter(|it| it.followed.is_some());
        let parents = watched.filter_map(|it| process::parent_of(it.main).ok());
        parents
            .filter(|pid| !ours.contains(&Some(*pid)) && !self.by_pid.contains_key(pid))
            .gather()
    }

    /// Forgets a process that is gone, nobody knows how.
    pub fn lost(&mut self, epoll: &Epoll, proc: ProcId) -> Option<Ended> {
        let main = self.by_proc.get(&proc)?.main;
        self.by_pid.remove(&main);
        self.forget(epoll, proc)
    }

    /// Whether there is a process of this worker and generation.
    pub fn has(&self, watcher: &str, wid: u32, generation: u64) -> bool {
        self.by_proc.values().any(|process| {
            process.name == watcher && process.slot.1 == wid && process.generation == generation
        })
    }

    /// Changes `[manager] env` for processes that are made from now on.
    pub fn set_manager_env(&mut self, env: Vec<(String, unit::At<String>)>) {
        self.manager_env = env;
    }

    /// Makes a process that is no worker.
    pub fn spawn_program(&mut self, spawn: &Spawn<'_>) -> Result<Pid, SpawnError> {
        let pid = self.spawner.spawn(spawn)?.pid;
        self.programs.insert(pid);
        Ok(pid)
    }

    /// A process was reaped that may have been no worker.
    pub fn reaped(&mut self, pid: Pid) {
        self.programs.remove(&pid);
    }

    /// Makes the processes of `jobs`, and says of each what came of it.
    pub fn spawn(
        &mut self,
        jobs: &[Job],
        listeners: &mut Listeners,
        epoll: &Epoll,
        notify_socket: &str,
    ) -> Vec<Result<supervise::Pid, SpawnFailure>> {
        let orders: Vec<Result<Order, SpawnFailure>> = jobs
            .iter()
            .map(|job| self.order(job, listeners, epoll, notify_socket))
            .collect();
        let placed: Vec<Result<Placed<'_>, SpawnFailure>> = jobs
            .iter()
            .zip(&orders)
            .map(|(job, order)| {
                let order = order.as_ref().map_err(SpawnFailure::clone)?;
                order.place(job, listeners, &self.empty, &self.null)
            })
            .collect();
        let since = process::start_clock();
        let spawns: Vec<Spawn<'_>> = placed.iter().flatten().map(Placed::spawn).collect();
        let mut children = self.spawner.spawn_all(&spawns).into_iter();
        let outcomes: Vec<Result<Child, SpawnFailure>> = placed
            .iter()
            .map(|placed| {
                placed.as_ref().map_err(SpawnFailure::clone)?;
                let child = children
                    .next()
                    .ok_or_else(|| spawn_failure("clone".into()))?;
                child.map_err(|error| failure(&error))
            })
            .collect();
        jobs.iter()
            .zip(outcomes)
            .map(|(job, outcome)| outcome.map(|child| self.made(job, &child, since)))
            .collect()
    }

    /// Gives back the memory that only many starts at once need.
    pub fn rest(&mut self) {
        self.spawner.rest();
    }

    /// Remembers the process that was made for `job`, not before `since`.
    fn made(&mut self, job: &Job, Child { pid, pidfd }: &Child, since: u64) -> supervise::Pid {
        let process = Process {
            slot: (job.watcher, job.wid),
            generation: job.generation,
            name: job.spec.name().to_owned(),
            identity: self
                .keeps
                .then(|| Identity::of(*pid, pidfd.as_fd(), self.spawner.has_pidfd_ids())),
            main: *pid,
            group: *pid,
            followed: None,
            since,
            kin: Vec::new(),
        };
        self.by_pid.insert(*pid, job.proc);
        self.by_group.insert(*pid, job.proc);
        self.by_proc.insert(job.proc, process);
        self.dirty.insert(job.proc);
        supervise::Pid(pid.as_raw())
    }

    /// Settles all that is needed for a process but for the numbers of its descriptors, and opens its files.
    fn order(
        &mut self,
        job: &Job,
        listeners: &mut Listeners,
        epoll: &Epoll,
        notify_socket: &str,
    ) -> Result<Order, SpawnFailure> {
        let invocation = self.invocation(job, listeners)?;
        let files = Stdio::open(&invocation, &mut self.empty, &mut self.null)?;
        let is_alone = || self.is_idle(job.spec.name());
        let on_stdin = match &invocation.stdin {
            Source::Socket(name) => Some(name),
            Source::Null | Source::File(_) => None,
        };
        for name in invocation.fds.iter().chain(on_stdin) {
            let id = job.socket(name).ok_or_else(|| unbound(name))?;
            listeners
                .provide(epoll, id, job.wid)
                .map_err(spawn_failure)?;
            // Not at a start of many: nobody has had it before.
            if job.generation > 1 || listeners.has_lost_its_file(id) {
                listeners.mend(epoll, id, job.wid, &is_alone);
                listeners.let_in(id, job.wid);
            }
        }
        let Invocation {
            mut candidates,
            argv,
            mut env,
            fds,
            listen_pid,
            notify,
            watchdog_pid,
            stdin,
            stdout,
            stderr,
            working_dir,
        } = invocation;
        if notify {
            env.push(c_string(format!("NOTIFY_SOCKET={notify_socket}").into())?.into());
        }
        // Where /proc is not mounted, a manager in a bare container has its workers all the same.
        if let (Some(own), [named]) = (&self.own_program, &mut *candidates)
            && named == OWN_PROGRAM
            && !Path::new(OWN_PROGRAM).exists()
        {
            *named = own.into();
        }
        let rlimits = job.spec.unit.rlimits.iter();
        Ok(Order {
            candidates: c_strings(candidates)?,
            argv: c_strings(argv)?,
            env,
            listen_pid,
            watchdog_pid,
            working_dir: working_dir
                .map(|path| c_string(path.into_os_string()))
                .transpose()?,
            rlimits: rlimits
                .map(|(resource, limit)| (rlimit(*resource), limit.soft, limit.hard))
                .collect(),
            sockets: fds,
            stdin,
            outputs: [stdout, stderr],
            files,
        })
    }

    fn invocation(&self, job: &Job, listeners: &Listeners) -> Result<Invocation, SpawnFailure> {
        let env_file = match job.spec.env_file(job.wid) {
            None => None,
            Some((path, may_be_missing)) => match read_env_file(&path) {
                Ok(text) => Some(text),
                Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(io_failure(
                        format_args!("env_file {}", path.display()),
                        &error,
                    ));
                }
            },
        };
        let names = job.spec.listens.iter().zip(&*job.sockets);
        let unbound: Vec<String> = names
            .filter(|(_, id)| !listeners.is_bound(**id))
            .map(|(name, _)| name.clone())
            .collect();
        job.spec
            .invocation(&Moment {
                wid: job.wid,
                generation: job.generation,
                environment: &self.environment,
                manager_env: &self.manager_env,
                env_file: env_file.as_deref(),
                unbound: &unbound,
            })
            .map_err(spawn_failure)
    }

    /// The slot of a process.
    pub fn slot(&self, proc: ProcId) -> Option<SlotKey> {
        self.by_proc.get(&proc).map(|process| process.slot)
    }

    /// The unit that a process is of, for the log.
    pub fn name(&self, proc: ProcId) -> String {
        match self.by_proc.get(&proc) {
            Some(process) => format!("watcher.{}", process.name),
            None => "manager".into(),
        }
    }

    /// Whether no process of a watcher runs. It looks at all of them, so it is to be asked seldom.
    pub fn is_idle(&self, watcher: &str) -> bool {
        let mut all = self.by_proc.values();
        all.all(|process| process.name != watcher)
    }

    /// Whether a child of ours is one that we have made: a worker's main process, or a program.
    pub fn is_known(&self, pid: Pid) -> bool {
        self.by_pid.contains_key(&pid) || self.programs.contains(&pid)
    }

    /// When the first of the workers that run was made, by [`process::start_clock`].
    pub fn oldest(&self) -> Option<u64> {
        self.by_proc.values().map(|process| process.since).min()
    }

    /// Sends a signal to the main process, or to its group. What descends from it is remembered: if it ends of the signal,
    /// nothing shows any more whose they were.
    pub fn signal(&mut self, proc: ProcId, signal: Signal, group: bool) {
        if signal.0 != libc::SIGCONT
            && let Some(process) = self.by_proc.get_mut(&proc)
        {
            process.kin = kin_of(process.main);
        }
        self.send(proc, signal, group);
    }

    fn send(&self, proc: ProcId, signal: Signal, group: bool) {
        let Some(process) = self.by_proc.get(&proc) else {
            return;
        };
        let sent = if group {
            process::kill_group(process.group, signal.0)
        } else {
            match &process.followed {
                Some(pidfd) => process::pidfd_send_signal(pidfd, signal.0),
                None => process::kill(process.main, signal.0),
            }
        };
        if let Err(error) = sent
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            let name = unit::signal_name(signal);
            log::warn!(target: &self.name(proc), "signal {name} could not be sent to pid {}: {error}", process.main);
        }
    }

    /// SIGKILL to the main process, its group, and every process that descends from it.
    pub fn kill(&self, proc: ProcId) {
        let Some(process) = self.by_proc.get(&proc) else {
            return;
        };
        // Looked for before their ancestor dies, since then nothing shows whose they were. Without /proc the group and
        // the orphans that are found later have to do.
        let descendants = process::descendants(process.main).unwrap_or_default();
        self.send(proc, Signal(libc::SIGKILL), true);
        self.send(proc, Signal(libc::SIGKILL), false);
        for pid in descendants {
            if self.by_pid.get(&pid).is_none_or(|other| *other == proc) {
                // It may have ended by itself meanwhile.
                let _ = process::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Forgets the process whose main process has this pid; None if it is nobody's.
    pub fn ended(&mut self, epoll: &Epoll, pid: Pid) -> Option<(ProcId, Ended)> {
        let proc = self.by_pid.remove(&pid)?;
        Some((proc, self.forget(epoll, proc)?))
    }

    /// The same for a main process that is not our child, if it has ended.
    pub fn foreign_ended(&mut self, epoll: &Epoll, proc: ProcId) -> Option<(Exit, Ended)> {
        let process = self.by_proc.get(&proc)?;
        let pidfd = process.followed.as_ref()?;
        if !output::readable_now(pidfd) {
            return None;
        }
        let exit = process::exit_of(process.main, pidfd).map_or(Exit::Unknown, exit);
        self.by_pid.remove(&process.main);
        Some((exit, self.forget(epoll, proc)?))
    }

    fn forget(&mut self, epoll: &Epoll, proc: ProcId) -> Option<Ended> {
        let process = self.by_proc.remove(&proc)?;
        self.dirty.insert(proc);
        self.by_group.remove(&process.group);
        if let Some(pidfd) = &process.followed {
            // Closing it would not take it out of the set if a child held a copy.
            let _ = epoll.remove(pidfd);
        }
        Some(Ended {
            group: process.group,
            watcher: process.name,
            wid: process.slot.1,
            generation: process.generation,
            since: process.since,
            kin: process.kin,
        })
    }

    /// Whose process a sender of a notification is.
    pub fn sender(&self, pid: Pid) -> Option<(ProcId, Sender)> {
        if let Some(proc) = self.by_pid.get(&pid) {
            return Some((*proc, Sender::Main));
        }
        let other = Sender::Other(supervise::Pid(pid.as_raw()));
        self.owner(pid).map(|proc| (proc, other))
    }

    /// The worker that a process belongs to: by group, by session, by its ancestors.
    fn owner(&self, pid: Pid) -> Option<ProcId> {
        let leaders = [process::group_of(pid), process::session_of(pid)];
        if let Some(proc) = leaders
            .into_iter()
            .flatten()
            .find_map(|leader| self.by_group.get(&leader))
        {
            return Some(*proc);
        }
        let mut ancestor = pid;
        for _ in 0..DEEPEST_SENDER {
            ancestor = process::parent_of(ancestor).ok()?;
            if let Some(proc) = self.by_pid.get(&ancestor) {
                return Some(*proc);
            }
        }
        None
    }

    /// Whether a process may become the main process of a worker: the rules of systemd. It must live, be neither PID 1
    /// nor the manager or one that the manager descends from, nor another worker's, and belong to the worker, unless
    /// root says so.
    pub fn may_follow(&self, proc: ProcId, pid: i32, root: bool) -> bool {
        Pid::new(pid)
            .filter(|pid| pid.as_raw() != 1 && !is_above(*pid))
            .is_some_and(|pid| {
                let alive = process::kill(pid, 0).is_ok() && !process::is_zombie(pid);
                let others = self.by_pid.get(&pid).is_some_and(|other| *other != proc);
                alive && !others && (root || self.owner(pid) == Some(proc))
            })
    }

    /// Makes another process the main process.
    pub fn follow(&mut self, epoll: &Epoll, proc: ProcId, pid: supervise::Pid) -> io::Result<()> {
        let Some(pid) = Pid::new(pid.0) else {
            return Ok(());
        };
        let Some(process) = self.by_proc.get_mut(&proc) else {
            return Ok(());
        };
        let pidfd = process::pidfd_open(pid)?;
        if let Some(pidfd) = &process.followed {
            let _ = epoll.remove(pidfd);
        }
        epoll.add(&pidfd, Token::Main(proc).pack(), Interest::Readable)?;
        self.by_pid.remove(&process.main);
        process.main = pid;
        if self.keeps {
            let has_ids = self.spawner.has_pidfd_ids();
            process.identity = Some(Identity::of(pid, pidfd.as_fd(), has_ids));
        }
        process.followed = Some(pidfd);
        self.dirty.insert(proc);
        self.by_pid.insert(pid, proc);
        Ok(())
    }
}

/// Has the end of a main process reported, by its pidfd.
fn watch_main(epoll: &Epoll, proc: ProcId, name: &str, main: Pid, pidfd: &OwnedFd) {
    if let Err(error) = epoll.add(pidfd, Token::Main(proc).pack(), Interest::Readable) {
        log::error!(target: &format!("watcher.{name}"), "pid {main} can't be watched: {error}");
    }
}

/// What descends from a process. Without /proc that is not known.
fn kin_of(pid: Pid) -> Vec<Kin> {
    let descendants = process::descendants(pid).unwrap_or_default().into_iter();
    let started = |pid| Some((pid, process::started_at(pid).ok()?));
    descendants.filter_map(started).collect()
}

/// What a process is made of.
struct Order {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<Rc<CStr>>,
    listen_pid: bool,
    watchdog_pid: bool,
    working_dir: Option<CString>,
    rlimits: Vec<(spawn::Resource, Option<u64>, Option<u64>)>,
    /// From fd 3 up.
    sockets: Vec<unit::Name>,
    stdin: Source,
    outputs: [Sink; 2],
    files: Stdio,
}

impl Order {
    /// Finds the descriptors.
    fn place<'a>(
        &'a self,
        job: &'a Job,
        listeners: &'a Listeners,
        empty: &'a Option<OwnedFd>,
        null: &'a Option<OwnedFd>,
    ) -> Result<Placed<'a>, SpawnFailure> {
        let listener = |name: &str| {
            let fd = job.socket(name).and_then(|id| listeners.fd(id, job.wid));
            fd.ok_or_else(|| unbound(name))
        };
        let mut fds: Vec<(BorrowedFd<'_>, RawFd)> = Vec::with_capacity(3 + self.sockets.len());
        match &self.stdin {
            Source::Socket(name) => fds.push((listener(name)?, 0)),
            Source::Null | Source::File(_) => fds.extend(self.files.stdin(empty)),
        }
        for (sink, target) in self.outputs.iter().zip(1..) {
            fds.extend(self.files.output(sink, null, target));
        }
        for (name, target) in self.sockets.iter().zip(3..) {
            fds.push((listener(name)?, target));
        }
        let own_pid = [
            self.listen_pid.then_some("LISTEN_PID"),
            self.watchdog_pid.then_some("WATCHDOG_PID"),
        ];
        Ok(Placed {
            order: self,
            job,
            env: self.env.iter().map(|entry| &**entry).collect(),
            pid_vars: own_pid.into_iter().flatten().collect(),
            fds,
        })
    }
}

/// The same with its descriptors.
struct Placed<'a> {
    order: &'a Order,
    job: &'a Job,
    env: Vec<&'a CStr>,
    pid_vars: Vec<&'static str>,
    fds: Vec<(BorrowedFd<'a>, RawFd)>,
}

impl Placed<'_> {
    fn spawn(&self) -> Spawn<'_> {
        let (order, unit) = (self.order, &self.job.spec.unit);
        let identity = self.job.spec.identity.as_ref();
        Spawn {
            candidates: &order.candidates,
            argv: &order.argv,
            env: &self.env,
            pid_vars: &self.pid_vars,
            pidfd_id_var: order.listen_pid.then_some("LISTEN_PIDFDID"),
            fds: &self.fds,
            working_dir: order.working_dir.as_deref(),
            umask: unit.umask.map(|mode| mode.0),
            nice: unit.nice,
            oom_score_adj: unit.oom_score_adj,
            cpu_affinity: unit.cpu_affinity.as_deref(),
            rlimits: &order.rlimits,
            uid: identity.and_then(|identity| identity.uid),
            gid: identity.and_then(|identity| identity.gid),
            groups: identity.and_then(|identity| identity.groups.as_deref()),
        }
    }
}

/// Files that are opened for one worker.
struct Stdio {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

impl Stdio {
    fn open(
        invocation: &Invocation,
        empty: &mut Option<OwnedFd>,
        null: &mut Option<OwnedFd>,
    ) -> Result<Stdio, SpawnFailure> {
        if invocation.stdin == Source::Null && empty.is_none() {
            *empty = Some(
                output::empty().map_err(|error| io_failure(format_args!("open stdin"), &error))?,
            );
        }
        let needs_null = [&invocation.stdout, &invocation.stderr]
            .into_iter()
            .any(|sink| *sink == Sink::Null);
        if needs_null && null.is_none() {
            *null = Some(
                output::null()
                    .map_err(|error| io_failure(format_args!("open /dev/null"), &error))?,
            );
        }
        let stdin = match &invocation.stdin {
            Source::Null | Source::Socket(_) => None,
            Source::File(path) => Some(output::open_read(path).map_err(|error| {
                io_failure(format_args!("open stdin {}", path.display()), &error)
            })?),
        };
        let append = |name: &str, sink: &Sink| match sink {
            Sink::Inherit | Sink::Null => Ok(None),
            Sink::File(path) => output::open_append(path, 0o640).map(Some).map_err(|error| {
                io_failure(format_args!("open {name} {}", path.display()), &error)
            }),
        };
        let stdout = append("stdout", &invocation.stdout)?;
        let stderr = append("stderr", &invocation.stderr)?;
        Ok(Stdio {
            stdin,
            outputs: [stdout, stderr],
        })
    }

    fn stdin<'a>(&'a self, empty: &'a Option<OwnedFd>) -> Option<(BorrowedFd<'a>, RawFd)> {
        self.stdin
            .as_ref()
            .or(empty.as_ref())
            .map(|fd| (fd.as_fd(), 0))
    }

    fn output<'a>(
        &'a self,
        sink: &Sink,
        null: &'a Option<OwnedFd>,
        target: RawFd,
    ) -> Option<(BorrowedFd<'a>, RawFd)> {
        let fd = match sink {
            // It is there without being placed.
            Sink::Inherit => None,
            Sink::Null => null.as_ref(),
            Sink::File(_) => self.outputs[target as usize - 1].as_ref(),
        };
        fd.map(|fd| (fd.as_fd(), target))
    }
}

fn unbound(name: &str) -> SpawnFailure {
    spawn_failure(format!("socket `{name}` is not bound"))
}

fn c_string(text: OsString) -> Result<CString, SpawnFailure> {
    CString::new(text.into_vec())
        .map_err(|_| spawn_failure("a NUL byte in the command or its environment".into()))
}

fn c_strings(texts: Vec<OsString>) -> Result<Vec<CString>, SpawnFailure> {
    texts.into_iter().map(c_string).collect()
}

/// What a shell would exit with: 127 not found, 126 found and not executable.
fn failure(error: &SpawnError) -> SpawnFailure {
    let exit_code = match (&error.step, error.errno) {
        (Step::Exec { .. }, libc::ENOENT) => 127,
        (Step::Exec { .. }, _) => 126,
        _ => 1,
    };
    SpawnFailure {
        reason: error.to_string(),
        exit_code,
    }
}

/// Whether a process is this one, or the keeper, or another that this one descends from.
fn is_above(pid: Pid) -> bool {
    let own = Some(Pid::own());
    let up = |pid: &Pid| process::parent_of(*pid).ok();
    // Without /proc our parent at least is known.
    let line = std::iter::successors(own, up).take(DEEPEST_SENDER);
    line.chain(process::parent()).any(|above| above == pid)
}

/// How a process ended, in the supervisor's words.
pub fn exit(exit: process::Exit) -> Exit {
    match exit {
        process::Exit::Code(code) => Exit::Code(code),
        process::Exit::Signal { signal, .. } => Exit::Signal(Signal(signal)),
    }
}

fn rlimit(resource: unit::Resource) -> spawn::Resource {
    match resource {
        unit::Resource::As => spawn::Resource::As,
        unit::Resource::Core => spawn::Resource::Core,
        unit::Resource::Cpu => spawn::Resource::Cpu,
        unit::Resource::Data => spawn::Resource::Data,
        unit::Resource::Fsize => spawn::Resource::Fsize,
        unit::Resource::Locks => spawn::Resource::Locks,
        unit::Resource::Memlock => spawn::Resource::Memlock,
        unit::Resource::Msgqueue => spawn::Resource::Msgqueue,
        unit::Resource::Nice => spawn::Resource::Nice,
        unit::Resource::Nofile => spawn::Resource::Nofile,
        unit::Resource::Nproc => spawn::Resource::Nproc,
        unit::Resource::Rss => spawn::Resource::Rss,
        unit::Resource::Rtprio => spawn::Resource::Rtprio,
        unit::Resource::Rttime => spawn::Resource::Rttime,
        unit::Resource::Sigpending => spawn::Resource::Sigpending,
        unit::Resource::Stack => spawn::Resource::Stack,
    }
}
