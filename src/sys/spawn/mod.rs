//! Starting a program: clone(2), what the child sets for itself, execve(2), and why it failed.
//!
//! The child shares the manager's memory until it execs (CLONE_VM), so starting it costs the same however large the
//! manager is, and the manager waits for that, so that it knows the outcome when it goes on.
//!
//! Sharing memory is sound under these rules, which all of the code in `child.rs` keeps:
//!
//! - Everything the child needs is allocated and looked up before, and left alone until the child has let go of the memory;
//!   the child makes system calls, which do not touch errno, and writes to two places set aside for it alone: its
//!   failure, and its pid in the environment.
//! - Every signal is blocked from before clone until the child has put every handler back to its default, so no
//!   handler ever runs in the child.
//! - It runs on a stack of its own below which lies a page that can't be touched.
//! - It leaves by execve or exit_group and never returns, so nothing is dropped or flushed twice.
//!
//! How the manager waits for one child: by CLONE_VFORK, which the kernel ends when the child execs or ends. Where several are
//! to be started, it makes one after the other without waiting, and then waits for each by a futex, which the kernel wakes
//! at the same two points (set_tid_address(2)): on a busy machine the manager would else lose its processor, and get it back,
//! for each of them. Until all have landed it does nothing but make and await them. So nothing is closed, bound or
//! executed while a child still has copies of the manager's descriptors.
//!
//! A child that is to become another user is waited for by a futex as well: between its change of user and its exec it
//! can be stopped by any process of that user (a hostile worker that sends SIGSTOP to all it may, in a loop, meets it
//! within a hundred starts), and a manager in vfork could not even be killed nicely. One that is found stopped is killed
//! and its start has failed.
//!
//! A score for the OOM killer holds for all processes that share a memory, but for those in vfork (proc(5) does not say so;
//! the kernel's `__set_oom_adj` does), and the futex is woken shortly before the memory is left. So a child that is to
//! get a score and become another user inherits the score: from a bearer, which gives it to itself in vfork,
//! begets the child as its sibling (CLONE_PARENT), and ends.
//!
//! Descriptors are placed first, while the limits are still the manager's: a worker may be given a limit of open
//! descriptors that is lower than the numbers it gets. The folder is changed last, with the rights of the worker's user.

/// A system call of the child: its result, or errno.
///
/// What it changes (descriptors, limits, ids, dispositions, the folder) belongs to the child alone, since neither
/// CLONE_FILES nor CLONE_FS nor CLONE_SIGHAND was asked for.
macro_rules! system_call {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        // SAFETY: every pointer that is given to it in this folder leads to memory of the job, of a constant or of the
        // caller's own frame, which outlives the call and is as long as the call is told.
        unsafe { $crate::sys::raw::system_call($number, [$(($argument) as usize),*]) }
    };
}

mod child;
mod explain;
mod flight;
#[cfg(test)]
pub(crate) mod tests;

use super::placement::place;
use super::process::{self, Pid};
use super::raw;
use super::reason;
use child::{Environment, Job, Rlimit, SIGSET_BYTES, Waiting};
use flight::{Flight, Stack, end};
use std::cell::UnsafeCell;
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32};

/// A program to start, and all that is set for it. The default leaves everything as the manager has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spawn<'a> {
    /// Paths to try in turn, as execvp(3) does; relative ones start at `working_dir`.
    pub candidates: &'a [CString],
    /// Its arguments, the program's own name first.
    pub argv: &'a [CString],
    /// Its environment, as `KEY=VALUE`, without the variables that the next two name.
    pub env: &'a [&'a CStr],
    /// Variables that hold its own pid, such as `LISTEN_PID`.
    pub pid_vars: &'a [&'a str],
    /// The variable that holds the inode of its pidfd; left out where the kernel has no such numbers.
    pub pidfd_id_var: Option<&'a str>,
    /// Descriptors and their numbers in the program, 0 to 2 among them. All others must be CLOEXEC.
    pub fds: &'a [(BorrowedFd<'a>, RawFd)],
    /// Where it starts.
    pub working_dir: Option<&'a CStr>,
    /// Mode bits that are off in the files it makes.
    pub umask: Option<u32>,
    /// -20 to 19; the kernel takes the nearest for others.
    pub nice: Option<i32>,
    /// -1000 to 1000. Needs /proc.
    pub oom_score_adj: Option<i32>,
    /// CPUs that it may run on; numbers that the machine lacks are ignored as long as one is left.
    pub cpu_affinity: Option<&'a [u32]>,
    /// Soft and hard limits; `None` is no limit.
    pub rlimits: &'a [(Resource, Option<u64>, Option<u64>)],
    /// Real, effective and saved user id.
    pub uid: Option<u32>,
    /// Real, effective and saved group id.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub groups: Option<&'a [u32]>,
}

/// A program that was started. Nothing stops or reaps it when this is dropped.
#[derive(Debug)]
pub struct Child {
    /// Its process id; also that of its session and process group.
    pub pid: Pid,
    /// Readable when it has ended; CLOEXEC.
    pub pidfd: OwnedFd,
}

/// A resource of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

impl Resource {
    fn number(self) -> u32 {
        let number = match self {
            Resource::As => libc::RLIMIT_AS,
            Resource::Core => libc::RLIMIT_CORE,
            Resource::Cpu => libc::RLIMIT_CPU,
            Resource::Data => libc::RLIMIT_DATA,
            Resource::Fsize => libc::RLIMIT_FSIZE,
            Resource::Locks => libc::RLIMIT_LOCKS,
            Resource::Memlock => libc::RLIMIT_MEMLOCK,
            Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
            Resource::Nice => libc::RLIMIT_NICE,
            Resource::Nofile => libc::RLIMIT_NOFILE,
            Resource::Nproc => libc::RLIMIT_NPROC,
            Resource::Rss => libc::RLIMIT_RSS,
            Resource::Rtprio => libc::RLIMIT_RTPRIO,
            Resource::Rttime => libc::RLIMIT_RTTIME,
            Resource::Sigpending => libc::RLIMIT_SIGPENDING,
            Resource::Stack => libc::RLIMIT_STACK,
        };
        // An unsigned type with one C library and a signed one with another; all values are below 16.
        #[allow(clippy::unnecessary_cast)]
        let number = number as u32;
        number
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::As => "as",
            Resource::Core => "core",
            Resource::Cpu => "cpu",
            Resource::Data => "data",
            Resource::Fsize => "fsize",
            Resource::Locks => "locks",
            Resource::Memlock => "memlock",
            Resource::Msgqueue => "msgqueue",
            Resource::Nice => "nice",
            Resource::Nofile => "nofile",
            Resource::Nproc => "nproc",
            Resource::Rss => "rss",
            Resource::Rtprio => "rtprio",
            Resource::Rttime => "rttime",
            Resource::Sigpending => "sigpending",
            Resource::Stack => "stack",
        })
    }
}

/// Why a program could not be started: `step: reason`, with what is known beyond the kernel's word for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnError {
    /// What failed.
    pub step: Step,
    /// Why, as errno.
    pub errno: i32,
}

/// A step of starting a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    Clone,
    Setsid,
    /// The number that a descriptor should have had.
    Fd(RawFd),
    OomScoreAdj(i32),
    CpuAffinity,
    Nice(i32),
    Rlimit(Resource),
    Groups,
    Gid(u32),
    Uid(u32),
    Chdir(PathBuf),
    Exec {
        /// The most telling of the candidates; the bare name where none of several exists.
        path: PathBuf,
        /// What was found out about it.
        note: Option<String>,
    },
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Step::Clone => write!(f, "clone")?,
            Step::Setsid => write!(f, "setsid")?,
            Step::Fd(fd) => write!(f, "fd {fd}")?,
            Step::OomScoreAdj(value) => write!(f, "oom_score_adj {value}")?,
            Step::CpuAffinity => write!(f, "cpu_affinity")?,
            Step::Nice(value) => write!(f, "nice {value}")?,
            Step::Rlimit(resource) => write!(f, "rlimit {resource}")?,
            Step::Groups => write!(f, "setgroups")?,
            Step::Gid(gid) => write!(f, "setgid {gid}")?,
            Step::Uid(uid) => write!(f, "setuid {uid}")?,
            Step::Chdir(path) => write!(f, "chdir {}", path.display())?,
            Step::Exec { path, .. } => write!(f, "exec {}", path.display())?,
        }
        write!(f, ": {}", reason(self.errno))?;
        let note = match (&self.step, self.errno) {
            (
                Step::Exec {
                    note: Some(note), ..
                },
                _,
            ) => note,
            (Step::Clone, libc::EAGAIN) => {
                "`rlimits` nproc, the cgroup's pids.max or kernel.pid_max is reached"
            }
            (Step::CpuAffinity, libc::EINVAL) => "this machine has none of these CPUs",
            _ => return Ok(()),
        };
        write!(f, " ({note})")
    }
}

impl std::error::Error for SpawnError {}

/// Starts programs. Holds what is the same for all of them.
#[derive(Debug)]
pub struct Spawner {
    /// One at least.
    stacks: Vec<Stack>,
    parent: Parent,
}

/// What matters to a child of the process that it comes from.
#[derive(Debug)]
struct Parent {
    /// Signals whose disposition is not the default: those that are ignored stay so across execve, and a handler
    /// must not run in the child.
    altered_signals: Vec<i32>,
    has_pidfd_ids: bool,
    /// Whether the manager may be dumped and traced by its own user.
    is_dumpable: bool,
    nofile: Option<(u64, u64)>,
    own_uid: u32,
}

impl Spawner {
    /// Looks at the machine and at this process: no signal's disposition may be changed afterwards but to its default.
    pub fn new() -> io::Result<Spawner> {
        Ok(Spawner {
            stacks: vec![Stack::new()?],
            parent: Parent {
                altered_signals: altered_signals(),
                has_pidfd_ids: has_pidfd_ids(),
                is_dumpable: is_dumpable(),
                nofile: None,
                // SAFETY: takes nothing, can't fail.
                own_uid: unsafe { libc::geteuid() },
            },
        })
    }

    /// Gives every program this limit of open descriptors, unless its `rlimits` name one: what the manager was started
    /// with, where it has raised its own.
    pub fn restore_nofile(&mut self, soft: u64, hard: u64) {
        self.parent.nofile = Some((soft, hard));
    }

    /// Whether [`Spawn::pidfd_id_var`] is set here: the kernel has pidfs (Linux 6.9).
    pub fn has_pidfd_ids(&self) -> bool {
        self.parent.has_pidfd_ids
    }

    /// Starts a program. When this returns, it has been exec'd, or nothing of it is left.
    ///
    /// The one exception: a signal that nobody can block (KILL) may end the child before its exec. It then looks like
    /// a program that was killed at once.
    pub fn spawn(&mut self, spawn: &Spawn<'_>) -> Result<Child, SpawnError> {
        let outcomes = self.spawn_all(std::slice::from_ref(spawn));
        // There is one for each.
        outcomes.into_iter().next().unwrap_or_else(|| {
            let (step, errno) = (Step::Clone, libc::ENOMEM);
            Err(SpawnError { step, errno })
        })
    }

    /// The same for several, in order, up to [`AT_ONCE`] of them at a time: while one execs, the next is made already.
    pub fn spawn_all(&mut self, spawns: &[Spawn<'_>]) -> Vec<Result<Child, SpawnError>> {
        while self.stacks.len() < spawns.len().min(AT_ONCE) {
            // Where there is no memory for more, fewer are on their way at once.
            let Ok(stack) = Stack::new() else { break };
            self.stacks.push(stack);
        }
        let mut outcomes = Vec::with_capacity(spawns.len());
        for spawns in spawns.chunks(self.stacks.len()) {
            let alone = spawns.len() == 1;
            let jobs: Vec<_> = spawns
                .iter()
                .map(|spawn| self.parent.job(spawn, alone))
                .collect();
            let flights: Vec<_> = jobs
                .iter()
                .zip(&mut self.stacks)
                .map(|(job, stack)| match job {
                    Ok(job) => Ok(Flight::begin(job, stack)),
                    Err(error) => Err(error.clone()),
                })
                .collect();
            let landed = flights.into_iter().zip(spawns).map(|(flight, spawn)| {
                let (outcome, failure) = flight?.finish();
                let failure = match (outcome, failure) {
                    (Ok(child), None) => return Ok(child),
                    (Ok(child), Some(failure)) => {
                        end(child.pid);
                        failure
                    }
                    (Err(_), Some(failure)) => failure,
                    (Err(errno), None) => {
                        let step = Step::Clone;
                        return Err(SpawnError { step, errno });
                    }
                };
                Err(failure.explain(spawn, &self.parent.rlimits(spawn)))
            });
            outcomes.extend(landed);
            // The kernel makes a process that changes its user undumpable, by a flag of the memory that the child shared
            // with us until now: without this the manager would lose its own core dumps and /proc/self for good.
            let changes_user = |spawn: &Spawn<'_>| spawn.uid.is_some() || spawn.gid.is_some();
            if self.parent.is_dumpable && spawns.iter().any(changes_user) {
                // SAFETY: takes no pointers.
                unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
            }
        }
        outcomes
    }

    /// Gives back the memory that only many starts at once need.
    pub fn rest(&mut self) {
        self.stacks.truncate(1);
    }
}

impl Parent {
    /// All that the child of `spawn` needs; `alone` if no other is on its way meanwhile.
    fn job<'a>(&'a self, spawn: &'a Spawn<'a>, alone: bool) -> Result<Job<'a>, SpawnError> {
        let pidfd_id_var = spawn.pidfd_id_var.filter(|_| self.has_pidfd_ids);
        let fds: Vec<(RawFd, RawFd)> = spawn
            .fds
            .iter()
            .map(|(fd, target)| (fd.as_raw_fd(), *target))
            .collect();
        if let Some(value) = spawn
            .oom_score_adj
            .filter(|value| !(-1000..=1000).contains(value))
        {
            return Err(SpawnError {
                step: Step::OomScoreAdj(value),
                errno: libc::EINVAL,
            });
        }
        let cpus = spawn.cpu_affinity.map(cpu_mask).transpose();
        // Who may stop the child may stop the manager as well, unless the child becomes another user.
        let becomes_another = spawn.uid.is_some_and(|uid| uid != self.own_uid);
        // Only in vfork it can give itself a score.
        let may_overlap = !alone && spawn.oom_score_adj.is_none();
        Ok(Job {
            placement: place(&fds),
            environment: Environment::new(spawn.env, spawn.pid_vars, pidfd_id_var),
            oom_score_adj: spawn.oom_score_adj.map(|value| value.to_string()),
            cpus: cpus.map_err(|errno| SpawnError {
                step: Step::CpuAffinity,
                errno,
            })?,
            nice: spawn.nice,
            rlimits: self.rlimits(spawn),
            umask: spawn.umask,
            groups: spawn.groups,
            gid: spawn.gid,
            uid: spawn.uid,
            working_dir: spawn.working_dir,
            altered_signals: &self.altered_signals,
            candidates: spawn.candidates.iter().map(|path| path.as_ptr()).collect(),
            argv: spawn
                .argv
                .iter()
                .map(|word| word.as_ptr())
                .chain([ptr::null()])
                .collect(),
            failure: UnsafeCell::new(None),
            how: match raw::LEAVES_ERRNO_ALONE && (becomes_another || may_overlap) {
                true => Waiting::Futex,
                false => Waiting::Vfork,
            },
            is_shared: AtomicU32::new(1),
            heir_stack: AtomicPtr::new(ptr::null_mut()),
            heir: AtomicI32::new(0),
        })
    }

    fn rlimits(&self, spawn: &Spawn<'_>) -> Vec<Rlimit> {
        let infinity = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
        let is_given = |limit: &(Resource, _, _)| limit.0 == Resource::Nofile;
        let own = self.nofile.filter(|_| !spawn.rlimits.iter().any(is_given));
        let own = own.map(|(soft, hard)| Rlimit {
            resource: Resource::Nofile,
            soft,
            hard,
        });
        let given = spawn.rlimits.iter().map(|&(resource, soft, hard)| Rlimit {
            resource,
            soft: infinity(soft),
            hard: infinity(hard),
        });
        own.into_iter().chain(given).collect()
    }
}

/// How many programs [`Spawner::spawn_all`] has on their way at once: each needs a stack.
pub const AT_ONCE: usize = 16;

/// The signals that are ignored or handled in this process.
fn altered_signals() -> Vec<i32> {
    (1..=64)
        .filter(|&signal| {
            // Larger than the kernel's structure, which begins with the handler; the rest is not looked at.
            let mut action = [0usize; 16];
            let (new, old) = (ptr::null::<libc::c_void>(), action.as_mut_ptr());
            let result = system_call!(libc::SYS_rt_sigaction, signal, new, old, SIGSET_BYTES);
            result.is_ok() && action[0] != libc::SIG_DFL
        })
        .collect()
}

/// Whether pidfds have inode numbers of their own, never used twice: those of pidfs do.
fn has_pidfd_ids() -> bool {
    const PIDFS_MAGIC: u64 = 0x5049_4446;
    let Ok(fd) = process::pidfd_open(Pid::own()) else {
        return false;
    };
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `status` has room for the structure.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded and has filled it.
    let magic = unsafe { status.assume_init() }.f_type;
    // A signed, an unsigned, a 32-bit or a 64-bit type, by C library.
    #[allow(clippy::unnecessary_cast)]
    let magic = magic as u64;
    magic == PIDFS_MAGIC
}

fn is_dumpable() -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) == 1 }
}

/// The bit mask of sched_setaffinity(2).
fn cpu_mask(cpus: &[u32]) -> Result<Vec<libc::c_ulong>, i32> {
    /// Far more than any kernel is built for, and still a small mask.
    const MOST_CPUS: u32 = 1 << 16;
    let mut mask = Vec::new();
    for &cpu in cpus {
        if cpu >= MOST_CPUS {
            return Err(libc::EINVAL);
        }
        let (word, bit) = (
            (cpu / libc::c_ulong::BITS) as usize,
            cpu % libc::c_ulong::BITS,
        );
        if mask.len() <= word {
            mask.resize(word + 1, 0);
        }
        mask[word] |= 1 << bit;
    }
    Ok(mask)
}
