//! Starting a program: clone(2), what the child sets for itself, execve(2), and why it failed.
//!
//! The child shares the manager's memory until it execs (CLONE_VM), so starting it costs the same however large the
//! manager is, and the manager waits for that, so that it knows the outcome when it goes on.
//!
//! Sharing memory is sound under these rules, which all of the code below `begin` keeps:
//!
//! - Everything the child needs is allocated and looked up before; the child makes system calls and writes to two
//!   places set aside for it: its failure, and its pid in the environment.
//! - Every signal is blocked from before clone until the child has put every handler back to its default, so no
//!   handler ever runs in the child.
//! - It runs on a stack of its own below which lies a page that can't be touched.
//! - It leaves by execve or exit_group and never returns, so nothing is dropped or flushed twice.
//!
//! How the manager waits: by CLONE_VFORK, which the kernel ends when the child execs or ends. But between its change of
//! user and its exec, the child can be stopped by any process of that user (a hostile worker that sends SIGSTOP to
//! all it may, in a loop, meets it within a hundred starts), and a manager in vfork could not even be killed nicely. So a
//! child that is to become another user is waited for by a futex, which the kernel wakes at the same two points
//! (set_tid_address(2)), and one that is found stopped is killed and its start has failed. The manager then does nothing but
//! wait, without touching errno, so the rules above hold there as well.
//!
//! A score for the OOM killer holds for all processes that share a memory, but for those in vfork (proc(5) does not say so;
//! the kernel's `__set_oom_adj` does), and the futex is woken shortly before the memory is left. So a child that is to
//! get a score and become another user inherits the score: from a bearer, which gives it to itself in vfork,
//! begets the child as its sibling (CLONE_PARENT), and ends.
//!
//! Descriptors are placed first, while the limits are still the manager's: a worker may be given a limit of open
//! descriptors that is lower than the numbers it gets. The folder is changed last, with the rights of the worker's user.

use super::placement::{self, place};
use super::process::{self, Pid};
use super::raw::{self, system_call};
use super::reason;
use nix::errno::Errno;
use std::cell::UnsafeCell;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

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
    stack: Stack,
    /// Signals whose disposition is not the default: those that are ignored stay so across execve, and a handler
    /// must not run in the child.
    altered_signals: Vec<i32>,
    has_pidfd_ids: bool,
    /// Whether the manager may be dumped and traced by its own user.
    is_dumpable: bool,
    nofile: Option<(u64, u64)>,
}

impl Spawner {
    /// Looks at the machine and at this process: no signal's disposition may be changed afterwards but to its default.
    pub fn new() -> io::Result<Spawner> {
        Ok(Spawner {
            stack: Stack::new()?,
            altered_signals: altered_signals(),
            has_pidfd_ids: has_pidfd_ids(),
            is_dumpable: is_dumpable(),
            nofile: None,
        })
    }

    /// Gives every program this limit of open descriptors, unless its `rlimits` name one: what the manager was started
    /// with, where it has raised its own.
    pub fn restore_nofile(&mut self, soft: u64, hard: u64) {
        self.nofile = Some((soft, hard));
    }

    /// Whether [`Spawn::pidfd_id_var`] is set here: the kernel has pidfs (Linux 6.9).
    pub fn has_pidfd_ids(&self) -> bool {
        self.has_pidfd_ids
    }

    /// Starts a program. When this returns, it has been exec'd, or nothing of it is left.
    ///
    /// The one exception: a signal that nobody can block (KILL) may end the child before its exec. It then looks like
    /// a program that was killed at once.
    pub fn spawn(&mut self, spawn: &Spawn<'_>) -> Result<Child, SpawnError> {
        let (mut slots, mut slot_ends) = (Vec::new(), Vec::new());
        let pidfd_id_var = spawn.pidfd_id_var.filter(|_| self.has_pidfd_ids);
        for name in spawn.pid_vars.iter().copied().chain(pidfd_id_var) {
            slots.extend_from_slice(name.as_bytes());
            slots.push(b'=');
            slot_ends.push(slots.len());
            slots.resize(slots.len() + SLOT, 0);
        }
        let slots = slots.as_mut_ptr();
        // SAFETY: every offset is within the buffer, with SLOT bytes behind it.
        let mut values: Vec<*mut u8> = slot_ends
            .iter()
            .map(|&end| unsafe { slots.add(end) })
            .collect();

        let mut envp = Vec::with_capacity(spawn.env.len() + slot_ends.len() + 1);
        envp.extend(spawn.env.iter().map(|entry| entry.as_ptr()));
        let mut start = 0;
        for &end in &slot_ends {
            // SAFETY: as above.
            envp.push(unsafe { slots.add(start) }.cast_const().cast());
            start = end + SLOT;
        }
        let pidfd_id = pidfd_id_var
            .and_then(|_| values.pop())
            .map(|value| PidfdId {
                value,
                entry: envp.len() - 1,
            });
        envp.push(ptr::null());
        let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
            texts
                .iter()
                .map(|text| text.as_ptr())
                .chain([ptr::null()])
                .collect()
        };
        let (argv, candidates) = (pointers(spawn.argv), pointers(spawn.candidates));

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
        let oom_score_adj = spawn.oom_score_adj.map(|value| value.to_string());
        let cpus = match spawn.cpu_affinity.map(cpu_mask).transpose() {
            Ok(cpus) => cpus,
            Err(errno) => {
                return Err(SpawnError {
                    step: Step::CpuAffinity,
                    errno,
                });
            }
        };
        let infinity = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
        let mut rlimits: Vec<Rlimit> = Vec::with_capacity(spawn.rlimits.len() + 1);
        if let Some((soft, hard)) = self.nofile
            && !spawn
                .rlimits
                .iter()
                .any(|limit| limit.0 == Resource::Nofile)
        {
            rlimits.push(Rlimit {
                resource: Resource::Nofile,
                soft,
                hard,
            });
        }
        rlimits.extend(spawn.rlimits.iter().map(|&(resource, soft, hard)| Rlimit {
            resource,
            soft: infinity(soft),
            hard: infinity(hard),
        }));

        // Who may stop the child may stop the manager as well, unless the child becomes another user.
        // SAFETY: takes nothing, can't fail.
        let own_uid = unsafe { libc::geteuid() };
        let how = match spawn.uid {
            Some(uid) if uid != own_uid && raw::LEAVES_ERRNO_ALONE => Waiting::Futex,
            _ => Waiting::Vfork,
        };
        let job = Job {
            placement: &place(&fds),
            values: &values,
            pidfd_id,
            oom_score_adj: oom_score_adj.as_deref().map(str::as_bytes),
            cpus: cpus.as_deref(),
            nice: spawn.nice,
            rlimits: &rlimits,
            umask: spawn.umask,
            groups: spawn.groups,
            gid: spawn.gid,
            uid: spawn.uid,
            working_dir: spawn.working_dir,
            altered_signals: &self.altered_signals,
            candidates: &candidates[..spawn.candidates.len()],
            argv: argv.as_ptr(),
            envp: envp.as_mut_ptr(),
            failure: UnsafeCell::new(None),
            how,
            is_shared: AtomicU32::new(1),
            heir_stack: self.stack.middle(),
            heir: AtomicI32::new(0),
        };
        let outcome = self.stack.run(&job);
        // The kernel makes a process that changes its user undumpable, by a flag of the memory that the child shared
        // with us until now: without this the manager would lose its own core dumps and /proc/self for good.
        if self.is_dumpable && (spawn.uid.is_some() || spawn.gid.is_some()) {
            // SAFETY: takes no pointers.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
        }
        let failure = match (outcome, job.failure.into_inner()) {
            (Ok(child), None) => return Ok(child),
            (Ok(child), Some(failure)) => {
                end(child.pid);
                failure
            }
            (Err(_), Some(failure)) => failure,
            (Err(errno), None) => {
                return Err(SpawnError {
                    step: Step::Clone,
                    errno,
                });
            }
        };
        Err(failure.explain(spawn, &rlimits))
    }
}

/// Makes a child of ours end that is of no use. Mostly it has ended or is about to, so the wait is short.
fn end(pid: Pid) {
    // It is our own child, so neither can fail.
    let _ = process::kill(pid, libc::SIGKILL);
    let _ = process::wait(libc::P_PID, pid.as_raw(), 0);
}

/// Room for a number of up to 20 digits and the NUL behind it.
const SLOT: usize = 21;

/// What the child reads. All of it was allocated by the parent, which stands still meanwhile.
struct Job<'a> {
    placement: &'a [placement::Step],
    /// Where the pid is written.
    values: &'a [*mut u8],
    pidfd_id: Option<PidfdId>,
    oom_score_adj: Option<&'a [u8]>,
    cpus: Option<&'a [libc::c_ulong]>,
    nice: Option<i32>,
    rlimits: &'a [Rlimit],
    umask: Option<u32>,
    groups: Option<&'a [u32]>,
    gid: Option<u32>,
    uid: Option<u32>,
    working_dir: Option<&'a CStr>,
    altered_signals: &'a [i32],
    candidates: &'a [*const libc::c_char],
    argv: *const *const libc::c_char,
    envp: *mut *const libc::c_char,
    /// Where the child says what failed.
    failure: UnsafeCell<Option<Failure>>,
    how: Waiting,
    /// Not 0 until the kernel lets go of this memory for the child.
    is_shared: AtomicU32,
    /// The top of the stack for the child of a bearer.
    heir_stack: *mut libc::c_void,
    /// The child of the bearer once there is one, or the errno of its clone, negative.
    heir: AtomicI32,
}

impl Job<'_> {
    /// Whether a bearer is needed: see the head of this file.
    fn is_borne(&self) -> bool {
        self.how == Waiting::Futex && self.oom_score_adj.is_some()
    }
}

/// The variable that holds the pidfd's inode: the last entry of the environment, so that it can be cut off.
struct PidfdId {
    value: *mut u8,
    entry: usize,
}

/// How the parent waits until the child shares its memory no longer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The kernel does not let it go on before.
    Vfork,
    /// The kernel wakes it, and it looks after the child meanwhile.
    Futex,
}

struct Rlimit {
    resource: Resource,
    soft: u64,
    hard: u64,
}

/// What failed in the child: plain numbers, since it can't allocate.
#[derive(Clone, Copy)]
struct Failure {
    stage: Stage,
    errno: i32,
}

#[derive(Clone, Copy)]
enum Stage {
    Setsid,
    Fd(RawFd),
    OomScoreAdj,
    CpuAffinity,
    Nice,
    /// Index into the limits.
    Rlimit(usize),
    Groups,
    Gid,
    Uid,
    Chdir,
    /// Index into the candidates.
    Exec(usize),
}

/// A system call of the child: its result, or errno.
///
/// What it changes (descriptors, limits, ids, dispositions, the folder) belongs to the child alone, since neither
/// CLONE_FILES nor CLONE_FS nor CLONE_SIGHAND was asked for.
macro_rules! system_call {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        // SAFETY: every pointer that is given to it in this file leads to memory of the job, of a constant or of the
        // caller's own frame, which outlives the call and is as long as the call is told.
        unsafe { system_call($number, [$(($argument) as usize),*]) }
    };
}

/// The child's whole life before its exec.
extern "C" fn begin(job: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `Stack::run` gives a pointer to a `Job` that outlives the child's use of it; it is only read, but for the
    // places behind raw pointers and the cell.
    let job = unsafe { &*job.cast::<Job<'_>>().cast_const() };
    if job.how == Waiting::Futex {
        // It can't fail. From here on, exec and exit clear the word and wake who waits for it.
        let _ = system_call!(libc::SYS_set_tid_address, job.is_shared.as_ptr());
    }
    let Err(failure) = become_program(job);
    give_up(job, failure)
}

/// The bearer's whole life.
extern "C" fn bear(job: *mut libc::c_void) -> libc::c_int {
    let argument = job;
    // SAFETY: as in `begin`.
    let job = unsafe { &*job.cast::<Job<'_>>().cast_const() };
    if let Some(Err(errno)) = job.oom_score_adj.map(write_oom_score_adj) {
        let stage = Stage::OomScoreAdj;
        return give_up(job, Failure { stage, errno });
    }
    // The kernel writes the number before either goes on: whoever kills the bearer now, the manager knows its child.
    let flags = libc::CLONE_VM | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
    // SAFETY: the other half of the stack that `Stack::run` gave to the job; the manager waits for this process, and
    // then until the child has let go of the memory.
    let result = unsafe { libc::clone(begin, job.heir_stack, flags, argument, job.heir.as_ptr()) };
    if result == -1 {
        job.heir.store(-Errno::last_raw(), Ordering::Release);
    }
    leave()
}

/// Says what failed, and ends this process.
fn give_up(job: &Job<'_>, failure: Failure) -> libc::c_int {
    // SAFETY: the parent waits, and reads the cell only after this process has let go of the memory.
    unsafe { job.failure.get().write_volatile(Some(failure)) };
    leave()
}

/// Ends this process alone (it is no thread of the parent), without anything that atexit(3) would do.
fn leave() -> libc::c_int {
    let _ = system_call!(libc::SYS_exit_group, 127);
    127
}

fn become_program(job: &Job<'_>) -> Result<Infallible, Failure> {
    let at = |stage: Stage| move |errno: i32| Failure { stage, errno };

    system_call!(libc::SYS_setsid).map_err(at(Stage::Setsid))?;

    let mut saved = 0;
    for &step in job.placement {
        let result = match step {
            placement::Step::Keep(fd) => system_call!(SYS_FCNTL, fd, libc::F_SETFD, 0),
            placement::Step::Dup { from, to } => system_call!(libc::SYS_dup3, from, to, 0),
            placement::Step::Save { from, above } => {
                system_call!(SYS_FCNTL, from, libc::F_DUPFD_CLOEXEC, above)
            }
            placement::Step::Restore { to } => system_call!(libc::SYS_dup3, saved, to, 0),
        };
        let number = result.map_err(at(Stage::Fd(step.subject())))?;
        if let placement::Step::Save { .. } = step {
            saved = number;
        }
    }

    // It can't fail.
    let pid = system_call!(libc::SYS_getpid).unwrap_or_default();
    for &value in job.values {
        // SAFETY: each has SLOT bytes, and nothing else refers to them while the parent stands still.
        unsafe { write_decimal(pid as u64, value) };
    }
    if let Some(id) = &job.pidfd_id {
        match pidfd_inode(pid) {
            // SAFETY: as above.
            Some(inode) => unsafe { write_decimal(inode, id.value) },
            // SAFETY: `entry` is an index of the array, which the child alone uses now.
            None => unsafe { *job.envp.add(id.entry) = ptr::null() },
        }
    }

    if let Some(value) = job.oom_score_adj
        && !job.is_borne()
    {
        write_oom_score_adj(value).map_err(at(Stage::OomScoreAdj))?;
    }
    if let Some(cpus) = job.cpus {
        system_call!(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(cpus),
            cpus.as_ptr()
        )
        .map_err(at(Stage::CpuAffinity))?;
    }
    if let Some(nice) = job.nice {
        system_call!(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice)
            .map_err(at(Stage::Nice))?;
    }
    for (index, limit) in job.rlimits.iter().enumerate() {
        let value = libc::rlimit64 {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        let old = ptr::null_mut::<libc::rlimit64>();
        system_call!(
            libc::SYS_prlimit64,
            0,
            limit.resource.number(),
            &raw const value,
            old
        )
        .map_err(at(Stage::Rlimit(index)))?;
    }

    if let Some(umask) = job.umask {
        // It can't fail.
        let _ = system_call!(libc::SYS_umask, umask);
    }
    for &signal in job.altered_signals {
        // A kernel sigaction of all zeroes is SIG_DFL without flags, on every architecture. It fails for no signal that
        // could be altered.
        let default = [0u64; 8];
        let (new, old) = (&raw const default, ptr::null_mut::<libc::c_void>());
        let _ = system_call!(libc::SYS_rt_sigaction, signal, new, old, SIGSET_BYTES);
    }

    // The ids come as late as they can: from here on, processes of the worker's user may signal this one.
    if let Some(groups) = job.groups {
        system_call!(SYS_SETGROUPS, groups.len(), groups.as_ptr()).map_err(at(Stage::Groups))?;
    }
    if let Some(gid) = job.gid {
        system_call!(SYS_SETRESGID, gid, gid, gid).map_err(at(Stage::Gid))?;
    }
    if let Some(uid) = job.uid {
        system_call!(SYS_SETRESUID, uid, uid, uid).map_err(at(Stage::Uid))?;
    }
    if let Some(path) = job.working_dir {
        system_call!(libc::SYS_chdir, path.as_ptr()).map_err(at(Stage::Chdir))?;
    }

    set_signal_mask(&NO_SIGNALS, ptr::null_mut());
    Err(exec(job))
}

/// Tries the candidates; returns only when none could be executed.
fn exec(job: &Job<'_>) -> Failure {
    let mut denied = None;
    let mut missing = None;
    for (index, &path) in job.candidates.iter().enumerate() {
        let Err(errno) = system_call!(libc::SYS_execve, path, job.argv, job.envp.cast_const())
        else {
            break;
        };
        let failure = Failure {
            stage: Stage::Exec(index),
            errno,
        };
        match errno {
            libc::EACCES => denied = denied.or(Some(failure)),
            // What execvp(3) takes for "not here".
            libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {
                missing = missing.or(Some(failure));
            }
            _ => return failure,
        }
    }
    denied.or(missing).unwrap_or(Failure {
        stage: Stage::Exec(0),
        errno: libc::ENOENT,
    })
}

/// Writes `number` in decimal at `at`.
///
/// # Safety
///
/// `at` must have SLOT bytes, all of them zero.
unsafe fn write_decimal(number: u64, at: *mut u8) {
    let mut digits = 1;
    let mut rest = number / 10;
    while rest > 0 {
        digits += 1;
        rest /= 10;
    }
    rest = number;
    while digits > 0 {
        digits -= 1;
        // SAFETY: a u64 has at most 20 digits, and the caller gives room for 21 bytes.
        unsafe { at.add(digits).write_volatile(b'0' + (rest % 10) as u8) };
        rest /= 10;
    }
}

/// The inode of a pidfd of the process; `None` where it can't be had (no free descriptor, a system call filter).
fn pidfd_inode(pid: usize) -> Option<u64> {
    let fd = system_call!(libc::SYS_pidfd_open, pid, 0).ok()?;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    let result = system_call!(
        libc::SYS_statx,
        fd,
        path,
        flags,
        libc::STATX_INO,
        status.as_mut_ptr()
    );
    let _ = system_call!(libc::SYS_close, fd);
    // SAFETY: zeroed, which is a valid value, and then filled.
    result.ok().map(|_| unsafe { status.assume_init() }.stx_ino)
}

/// Of this process alone: for a child of vfork the kernel leaves those that share its memory out.
fn write_oom_score_adj(value: &[u8]) -> Result<(), i32> {
    let (path, flags) = (
        c"/proc/self/oom_score_adj".as_ptr(),
        libc::O_WRONLY | libc::O_CLOEXEC,
    );
    let fd = system_call!(libc::SYS_openat, libc::AT_FDCWD, path, flags, 0)?;
    let result = system_call!(libc::SYS_write, fd, value.as_ptr(), value.len());
    let _ = system_call!(libc::SYS_close, fd);
    result.map(drop)
}

// On these two the plain calls have 16-bit ids, or 32-bit offsets.
#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
use libc::{
    SYS_fcntl as SYS_FCNTL, SYS_setgroups as SYS_SETGROUPS, SYS_setresgid as SYS_SETRESGID,
    SYS_setresuid as SYS_SETRESUID,
};
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
use libc::{
    SYS_fcntl64 as SYS_FCNTL, SYS_setgroups32 as SYS_SETGROUPS, SYS_setresgid32 as SYS_SETRESGID,
    SYS_setresuid32 as SYS_SETRESUID,
};

/// The kernel's own signal set, which unlike the C library's holds the two or three signals that libraries keep to
/// themselves.
type KernelSet = u64;
const SIGSET_BYTES: usize = size_of::<KernelSet>();
const NO_SIGNALS: KernelSet = 0;
const ALL_SIGNALS: KernelSet = KernelSet::MAX;

fn set_signal_mask(new: &KernelSet, old: *mut KernelSet) {
    // It can't fail with sets of this size.
    let _ = system_call!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        ptr::from_ref(new),
        old,
        SIGSET_BYTES
    );
}

/// A stack for children, one at a time.
#[derive(Debug)]
struct Stack {
    base: *mut libc::c_void,
    size: usize,
}

/// Ample, and half of it as well: the child's frames and those of libc's thin wrappers need under 2 KiB.
const STACK_BYTES: usize = 64 << 10;

impl Stack {
    fn new() -> io::Result<Stack> {
        // SAFETY: takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let size = STACK_BYTES.next_multiple_of(page) + page;
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                protection,
                flags | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Stack { base, size };
        // SAFETY: the first page of our own mapping, which nobody uses.
        if unsafe { libc::mprotect(base, page, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// Runs `job` in a child, until it has exec'd or ended; the errno of clone otherwise.
    fn run(&mut self, job: &Job<'_>) -> Result<Child, i32> {
        let (entry, flags): (extern "C" fn(_) -> _, _) = match job.how {
            Waiting::Futex if job.is_borne() => (bear, libc::CLONE_VFORK),
            Waiting::Futex => (begin, libc::CLONE_PIDFD),
            Waiting::Vfork => (begin, libc::CLONE_PIDFD | libc::CLONE_VFORK),
        };
        let flags = libc::CLONE_VM | libc::SIGCHLD | flags;
        let argument = ptr::from_ref(job).cast_mut().cast();
        let mut pidfd: libc::c_int = -1;
        let mut mask = NO_SIGNALS;
        set_signal_mask(&ALL_SIGNALS, &mut mask);
        // SAFETY: the stack is ours, grows down from its top, which is aligned to a page, and is used by one child at a
        // time: `&mut self` is held until the child is done with our memory, which either CLONE_VFORK or
        // `wait_until_alone` waits for. What the child does there is argued at the head of this file.
        let result = unsafe {
            let top = self.base.byte_add(self.size);
            libc::clone(entry, top, flags, argument, &raw mut pidfd)
        };
        let result = match result {
            -1 => Err(Errno::last_raw()),
            pid => Ok(pid),
        };
        let child = match result {
            Ok(_) if job.is_borne() => job.heir.load(Ordering::Acquire),
            Ok(pid) => pid,
            Err(_) => 0,
        };
        if child > 0 && job.how == Waiting::Futex {
            wait_until_alone(job, child);
        }
        set_signal_mask(&mask, ptr::null_mut());
        let pid = Pid::new(result?).ok_or(libc::EINVAL)?;
        if !job.is_borne() {
            // SAFETY: the kernel has put it there with the child, and nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            return Ok(Child { pid, pidfd });
        }
        end(pid);
        let pid = match child {
            // The bearer was killed.
            0 => return Err(libc::EINTR),
            errno @ ..0 => return Err(-errno),
            pid => Pid::new(pid).ok_or(libc::EINVAL)?,
        };
        // Nobody else waits for it, so the number is still its own.
        match process::pidfd_open(pid) {
            Ok(pidfd) => Ok(Child { pid, pidfd }),
            Err(error) => {
                end(pid);
                Err(error.raw_os_error().unwrap_or(libc::EMFILE))
            }
        }
    }

    /// The top of its lower half, for a child that runs while the user of the upper one ends.
    fn middle(&self) -> *mut libc::c_void {
        self.base.wrapping_byte_add(self.size - STACK_BYTES / 2)
    }
}

/// How long a child may need for its exec before it is looked after.
static PATIENCE: [i64; 2] = [0, 100_000_000];

/// Waits until the child has exec'd or ended; one that somebody has stopped is killed. Leaves errno alone.
fn wait_until_alone(job: &Job<'_>, pid: i32) {
    let stopped = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    let ended = libc::WEXITED | libc::WNOWAIT;
    while job.is_shared.load(Ordering::Acquire) != 0 {
        // The kernel's own timespec has 64 bits wherever there are raw calls. A signal can't interrupt it: all are blocked.
        let patience = &raw const PATIENCE;
        let word = job.is_shared.as_ptr();
        if system_call!(libc::SYS_futex, word, libc::FUTEX_WAIT, 1, patience, 0, 0)
            != Err(libc::ETIMEDOUT)
        {
            continue;
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let _ = system_call!(
            libc::SYS_waitid,
            libc::P_PID,
            pid,
            info.as_mut_ptr(),
            stopped,
            0
        );
        // SAFETY: zeroed, which is a valid value, and possibly filled.
        match unsafe { info.assume_init() }.si_code {
            // Slow, that is all.
            0 => {}
            libc::CLD_STOPPED => {
                let _ = system_call!(libc::SYS_kill, pid, libc::SIGKILL);
                let _ = system_call!(libc::SYS_waitid, libc::P_PID, pid, 0, ended, 0);
                let failure = Failure {
                    stage: Stage::Exec(0),
                    errno: libc::EINTR,
                };
                // SAFETY: the child has ended.
                unsafe { job.failure.get().write_volatile(Some(failure)) };
                return;
            }
            // Killed, perhaps before it could say that it wants the word to be cleared.
            _ => return,
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, in which no child runs any more.
        unsafe { libc::munmap(self.base, self.size) };
    }
}

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

impl Failure {
    fn explain(self, spawn: &Spawn<'_>, rlimits: &[Rlimit]) -> SpawnError {
        let step = match self.stage {
            Stage::Setsid => Step::Setsid,
            Stage::Fd(fd) => Step::Fd(fd),
            Stage::OomScoreAdj => Step::OomScoreAdj(spawn.oom_score_adj.unwrap_or_default()),
            Stage::CpuAffinity => Step::CpuAffinity,
            Stage::Nice => Step::Nice(spawn.nice.unwrap_or_default()),
            Stage::Rlimit(index) => Step::Rlimit(
                rlimits
                    .get(index)
                    .map_or(Resource::Nofile, |limit| limit.resource),
            ),
            Stage::Groups => Step::Groups,
            Stage::Gid => Step::Gid(spawn.gid.unwrap_or_default()),
            Stage::Uid => Step::Uid(spawn.uid.unwrap_or_default()),
            Stage::Chdir => Step::Chdir(
                spawn
                    .working_dir
                    .map_or_else(PathBuf::new, |path| path_of(path).into()),
            ),
            Stage::Exec(index) => {
                let (path, note) = explain_exec(spawn, index, self.errno);
                Step::Exec { path, note }
            }
        };
        SpawnError {
            step,
            errno: self.errno,
        }
    }
}

fn path_of(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

/// Which candidate to name, and what can be said of it. The kernel has one errno for very different mistakes.
fn explain_exec(spawn: &Spawn<'_>, index: usize, errno: i32) -> (PathBuf, Option<String>) {
    let in_folder = |path: &Path| match spawn.working_dir {
        Some(folder) => path_of(folder).join(path),
        None => path.to_path_buf(),
    };
    let Some(candidate) = spawn.candidates.get(index).map(|path| path_of(path)) else {
        let name = spawn
            .argv
            .first()
            .map_or_else(PathBuf::new, |name| path_of(name).into());
        return (name, Some("not found in PATH".into()));
    };
    if errno == libc::EINTR {
        let note = "a process of the same user stopped it before its exec, so it was killed";
        return (candidate.into(), Some(note.into()));
    }
    if errno != libc::ENOENT {
        return (
            candidate.into(),
            explain_existing(&in_folder(candidate), errno),
        );
    }
    // "No such file", though there is one: then it is what the file needs that is missing.
    let mut paths = spawn.candidates.iter().map(|path| path_of(path));
    if let Some(path) = paths.find(|path| in_folder(path).is_file()) {
        return (
            path.into(),
            Some(explain_missing_interpreter(&in_folder(path))),
        );
    }
    if spawn.candidates.len() > 1 {
        let name = candidate.file_name().map_or(candidate, Path::new);
        return (name.into(), Some("not found in PATH".into()));
    }
    let note = match fs::symlink_metadata(in_folder(candidate)) {
        Ok(_) => Some("a symbolic link to nothing".into()),
        Err(_) if candidate.is_relative() => spawn
            .working_dir
            .map(|folder| format!("in `{}`", path_of(folder).display())),
        Err(_) => None,
    };
    (candidate.into(), note)
}

fn explain_existing(path: &Path, errno: i32) -> Option<String> {
    let note = match errno {
        libc::EACCES => {
            let metadata = fs::metadata(path).ok()?;
            if metadata.is_dir() {
                "it is a directory".into()
            } else if !metadata.is_file() {
                "it is no regular file".into()
            } else if metadata.permissions().mode() & 0o111 == 0 {
                format!(
                    "the file is not executable; `chmod +x {}` makes it so",
                    path.display()
                )
            } else if is_mounted_noexec(path) {
                "its file system is mounted `noexec`".into()
            } else {
                let interpreter = interpreter_of(path)?;
                let mode = fs::metadata(&interpreter).ok()?.mode();
                if mode & 0o111 != 0 {
                    return None;
                }
                format!(
                    "its interpreter `{}` is not executable",
                    interpreter.display()
                )
            }
        }
        libc::ENOEXEC => match head_of(path).as_deref() {
            Some([]) => "the file is empty".into(),
            Some([0x7f, b'E', b'L', b'F', ..]) => {
                "a program for another kind of machine, or a damaged one".into()
            }
            _ => "a script needs a first line such as `#!/bin/sh`".into(),
        },
        libc::ETXTBSY => "the file is open for writing".into(),
        libc::EAGAIN => "the user's process limit is reached: `rlimits` nproc".into(),
        libc::E2BIG => "its arguments and environment together are too long".into(),
        libc::ELOOP => "a circle of symbolic links, or interpreters that need interpreters".into(),
        _ => return None,
    };
    Some(note)
}

fn explain_missing_interpreter(path: &Path) -> String {
    match interpreter_of(path) {
        Some(interpreter) if interpreter.as_os_str().as_bytes().ends_with(b"\r") => {
            "its first line ends in a carriage return: save the script with Unix line ends".into()
        }
        Some(interpreter) => format!(
            "the file exists, but its interpreter `{}` does not",
            interpreter.display()
        ),
        None => "the file exists, but the dynamic loader that it asks for does not".into(),
    }
}

/// The path in a script's first line.
fn interpreter_of(path: &Path) -> Option<PathBuf> {
    let head = head_of(path)?;
    let line = head
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let start = line.iter().position(|byte| !b" \t".contains(byte))?;
    let word = line
        .get(start..)?
        .split(|byte| b" \t".contains(byte))
        .next()?;
    Some(Path::new(OsStr::from_bytes(word)).into())
}

/// The first 256 bytes, which is what the kernel looks at. Opens regular files only: a FIFO would block.
fn head_of(path: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(256)
        .read_to_end(&mut head)
        .ok()?;
    Some(head)
}

fn is_mounted_noexec(path: &Path) -> bool {
    nix::sys::statvfs::statvfs(path)
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::collections::BTreeMap;
    use std::io::{PipeWriter, Write};
    use std::ops::Deref;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    /// Held by tests that look at, or make, descriptors without CLOEXEC: they are the whole process's.
    pub(crate) static INHERITABLE: Mutex<()> = Mutex::new(());

    /// Held by tests that start programs as another user: whether it may be dumped is the whole process's.
    static CHANGING_USER: Mutex<()> = Mutex::new(());

    /// A program of a test; its fds 0 to 2 are /dev/null unless said otherwise.
    pub(crate) struct Program {
        candidates: Vec<CString>,
        argv: Vec<CString>,
        env: Vec<&'static CStr>,
    }

    /// A program that reads its end of input when this is dropped.
    pub(crate) struct Held {
        child: Child,
        _input: PipeWriter,
    }

    impl Deref for Held {
        type Target = Child;
        fn deref(&self) -> &Child {
            &self.child
        }
    }

    fn text(text: impl Into<Vec<u8>>) -> CString {
        CString::new(text).unwrap()
    }

    impl Program {
        pub(crate) fn shell(script: &str) -> Program {
            Program {
                candidates: vec![text("/bin/sh")],
                argv: ["sh", "-c", script].map(text).into(),
                env: vec![c"PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
            }
        }

        fn at(path: impl AsRef<Path>) -> Program {
            let path = text(path.as_ref().as_os_str().as_bytes());
            Program {
                candidates: vec![path.clone()],
                argv: vec![path],
                env: Vec::new(),
            }
        }

        pub(crate) fn env(mut self, entry: &str) -> Program {
            self.env.push(Box::leak(text(entry).into_boxed_c_str()));
            self
        }

        fn spec(&self) -> Spawn<'_> {
            Spawn {
                candidates: &self.candidates,
                argv: &self.argv,
                env: &self.env,
                ..Spawn::default()
            }
        }

        pub(crate) fn spawn(&self) -> Child {
            let null = null();
            let fds = [0, 1, 2].map(|fd| (null.as_fd(), fd));
            Spawner::new()
                .unwrap()
                .spawn(&Spawn {
                    fds: &fds,
                    ..self.spec()
                })
                .unwrap()
        }

        pub(crate) fn spawn_held(&self) -> Held {
            let (reader, input) = io::pipe().unwrap();
            let null = null();
            let fds = [(reader.as_fd(), 0), (null.as_fd(), 1), (null.as_fd(), 2)];
            let child = Spawner::new()
                .unwrap()
                .spawn(&Spawn {
                    fds: &fds,
                    ..self.spec()
                })
                .unwrap();
            Held {
                child,
                _input: input,
            }
        }

        pub(crate) fn spawn_with_output(&self) -> (Child, OwnedFd) {
            let (reader, writer) = io::pipe().unwrap();
            let null = null();
            let fds = [(null.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
            let child = Spawner::new()
                .unwrap()
                .spawn(&Spawn {
                    fds: &fds,
                    ..self.spec()
                })
                .unwrap();
            (child, reader.into())
        }

        /// What it prints, with what `change` adds to its description.
        fn output<'a>(&'a self, change: impl FnOnce(Spawn<'a>) -> Spawn<'a>) -> String {
            self.output_by(&mut Spawner::new().unwrap(), change)
        }

        fn output_by<'a>(
            &'a self,
            spawner: &mut Spawner,
            change: impl FnOnce(Spawn<'a>) -> Spawn<'a>,
        ) -> String {
            let (mut reader, writer) = io::pipe().unwrap();
            let null = null();
            let mut fds = vec![(null.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
            let spec = change(Spawn {
                fds: &[],
                ..self.spec()
            });
            fds.extend(spec.fds);
            let child = spawner.spawn(&Spawn { fds: &fds, ..spec }).unwrap();
            drop(writer);
            let mut output = String::new();
            reader.read_to_string(&mut output).unwrap();
            wait_for_end(&child);
            process::reap(child.pid).unwrap();
            output
        }

        fn error<'a>(&'a self, change: impl FnOnce(Spawn<'a>) -> Spawn<'a>) -> String {
            let spec = change(self.spec());
            eventually(|| {
                let error = Spawner::new()
                    .unwrap()
                    .spawn(&spec)
                    .expect_err("must not start");
                // A file that was just written may still be open in another test's child.
                (error.errno != libc::ETXTBSY).then(|| error.to_string())
            })
        }
    }

    fn null() -> OwnedFd {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap()
            .into()
    }

    /// Until `attempt` gives something. The children of other tests hold copies of our descriptors for a moment, until
    /// their exec has closed them, so what a test has closed may live on that long.
    pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
        let start = std::time::Instant::now();
        loop {
            if let Some(result) = attempt() {
                return result;
            }
            assert!(start.elapsed().as_secs() < 20, "it must come about");
            std::thread::yield_now();
        }
    }

    /// Until the child is a zombie.
    pub(crate) fn wait_for_end(child: &Child) {
        let mut fds = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(20_000).unwrap()).unwrap();
        assert_eq!(ready, 1, "the child must end");
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    fn environment(output: &str) -> BTreeMap<&str, &str> {
        output
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect()
    }

    #[test]
    fn a_program_gets_its_own_session_and_group() {
        let output = Program::shell("cat /proc/$$/stat; echo $$").output(|spec| spec);
        let (stat, pid) = output.trim().split_once('\n').unwrap();
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        assert_eq!(
            (fields[2], fields[3]),
            (pid, pid),
            "group and session of {stat}"
        );
    }

    #[test]
    fn its_environment_is_what_was_given_and_its_own_pid() {
        let program = Program::shell("echo me=$$; env").env("A=b c").env("EMPTY=");
        let output = program.output(|spec| Spawn {
            pid_vars: &["LISTEN_PID", "WATCHDOG_PID"],
            ..spec
        });
        let env = environment(&output);
        assert_eq!(env["LISTEN_PID"], env["me"], "{output}");
        assert_eq!(env["WATCHDOG_PID"], env["me"], "{output}");
        assert_eq!((env["A"], env["EMPTY"]), ("b c", ""));
        assert!(
            !env.contains_key("LISTEN_PIDFDID") && !env.contains_key("USER"),
            "{output}"
        );
    }

    #[test]
    fn its_pidfd_id_is_the_inode_of_its_pidfd() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (input, hold) = io::pipe().unwrap();
        let program = Program::shell("env; echo; read line");
        let mut spawner = Spawner::new().unwrap();
        let fds = [(input.as_fd(), 0), (writer.as_fd(), 1), (writer.as_fd(), 2)];
        let spec = Spawn {
            pid_vars: &["LISTEN_PID"],
            pidfd_id_var: Some("LISTEN_PIDFDID"),
            fds: &fds,
            ..program.spec()
        };
        let child = spawner.spawn(&spec).unwrap();
        drop(writer);
        drop(hold);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        let env = environment(&output);
        assert_eq!(env["LISTEN_PID"], child.pid.to_string());
        if spawner.has_pidfd_ids() {
            let inode = nix::sys::stat::fstat(&child.pidfd).unwrap().st_ino;
            assert_eq!(env["LISTEN_PIDFDID"], inode.to_string());
        } else {
            assert!(!env.contains_key("LISTEN_PIDFDID"), "{output}");
        }
        wait_for_end(&child);
        process::reap(child.pid).unwrap();
    }

    #[test]
    fn without_pidfs_there_is_no_pidfd_id() {
        let mut spawner = Spawner::new().unwrap();
        spawner.has_pidfd_ids = false;
        let output = Program::shell("env").output_by(&mut spawner, |spec| Spawn {
            pid_vars: &["LISTEN_PID"],
            pidfd_id_var: Some("LISTEN_PIDFDID"),
            ..spec
        });
        assert!(
            output.contains("LISTEN_PID=") && !output.contains("LISTEN_PIDFDID"),
            "{output}"
        );
    }

    #[test]
    fn ignored_signals_are_reset_and_the_mask_is_empty() {
        // SAFETY: SIGWINCH's default is to do nothing, as ignoring it does.
        unsafe { libc::signal(libc::SIGWINCH, libc::SIG_IGN) };
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(nix::sys::signal::Signal::SIGUSR1);
        set.thread_block().unwrap();
        let output = Program::shell("exec cat /proc/self/status").output(|spec| spec);
        assert!(set.thread_unblock().is_ok());
        for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd"] {
            let expected = format!("{field}:\t0000000000000000\n");
            assert!(output.contains(&expected), "{field} in {output}");
        }
    }

    #[test]
    fn the_manager_keeps_its_own_mask() {
        let mask = || nix::sys::signal::SigSet::thread_get_mask().unwrap();
        let before = mask();
        Program::shell(":").output(|spec| spec);
        assert_eq!(mask(), before);
        Program::at("/nonexistent").error(|spec| spec);
        assert_eq!(mask(), before);
    }

    #[test]
    fn nothing_leaks_but_what_was_placed() {
        let _alone = INHERITABLE
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        process::close_on_exec_from(3).unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let fds = [(socket.as_fd(), 3), (socket.as_fd(), 4)];
        let output =
            Program::shell("exec ls -l /proc/self/fd").output(|spec| Spawn { fds: &fds, ..spec });
        let open: Vec<&str> = output
            .lines()
            .filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next())
            .collect();
        // The last one is ls's own, open on the folder.
        assert_eq!(open, ["0", "1", "2", "3", "4", "5"], "{output}");
        assert_eq!(output.matches("socket:").count(), 2, "{output}");
    }

    #[test]
    fn descriptors_may_change_places_with_stdio() {
        let (reader, mut input) = io::pipe().unwrap();
        let (mut output, writer) = io::pipe().unwrap();
        let program = Program::shell("cat <&7 >&5");
        // Where they stand now is a target of the other, whatever their numbers are.
        let fds = [
            (reader.as_fd(), writer.as_raw_fd()),
            (writer.as_fd(), reader.as_raw_fd()),
            (reader.as_fd(), 7),
            (writer.as_fd(), 5),
        ];
        let child = Spawner::new()
            .unwrap()
            .spawn(&Spawn {
                fds: &fds,
                ..program.spec()
            })
            .unwrap();
        drop((reader, writer));
        input.write_all(b"through").unwrap();
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        wait_for_end(&child);
        process::reap(child.pid).unwrap();
    }

    #[test]
    fn everything_that_root_may_set_is_set() {
        let _alone = CHANGING_USER
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if !is_root() {
            return;
        }
        let own_oom_score = || fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let before = (own_oom_score(), is_dumpable());
        let script = "id -u; id -g; id -G; umask; pwd; nice; cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn; \
                      ulimit -Sc; ulimit -Hc; grep Cpus_allowed_list /proc/self/status";
        let output = Program::shell(script).output(|spec| Spawn {
            working_dir: Some(c"/usr"),
            umask: Some(0o27),
            nice: Some(3),
            oom_score_adj: Some(123),
            cpu_affinity: Some(&[0, 4000]),
            rlimits: &[
                (Resource::Nofile, Some(40), Some(50)),
                (Resource::Core, Some(0), None),
            ],
            uid: Some(65_534),
            gid: Some(65_533),
            groups: Some(&[12, 65_533]),
            ..spec
        });
        let lines: Vec<&str> = output.lines().collect();
        let expected = [
            "65534",
            "65533",
            "65533 12",
            "0027",
            "/usr",
            "3",
            "123",
            "40",
            "50",
            "0",
            "unlimited",
        ];
        assert_eq!(lines[..11], expected, "{output}");
        assert_eq!(lines[11], "Cpus_allowed_list:\t0");
        assert_eq!(
            (own_oom_score(), is_dumpable()),
            before,
            "the manager itself is as it was"
        );
    }

    #[test]
    fn a_hostile_user_can_not_stop_the_manager() {
        let _alone = CHANGING_USER
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if !is_root() || !raw::LEAVES_ERRNO_ALONE {
            return;
        }
        // A user of our own: it signals all that it may.
        let uid = Some(3_000_000_000 + std::process::id());
        let null = null();
        let fds = [0, 1, 2].map(|fd| (null.as_fd(), fd));
        let hostile = Program::shell("while :; do kill -s STOP -- -1; done");
        let spec = Spawn {
            uid,
            fds: &fds,
            ..hostile.spec()
        };
        let mut spawner = Spawner::new().unwrap();
        let hostile = spawner.spawn(&spec).unwrap();
        let victim = Program::at("/bin/true");
        let start = std::time::Instant::now();
        let error = loop {
            match spawner.spawn(&Spawn {
                uid,
                ..victim.spec()
            }) {
                Ok(child) => {
                    // Stopped after its exec, perhaps.
                    process::kill(child.pid, libc::SIGKILL).unwrap();
                    wait_for_end(&child);
                    process::reap(child.pid).unwrap();
                }
                Err(error) => break Some(error.to_string()),
            }
            if start.elapsed().as_secs() > 10 {
                break None;
            }
        };
        process::kill(hostile.pid, libc::SIGKILL).unwrap();
        wait_for_end(&hostile);
        process::reap(hostile.pid).unwrap();
        match error {
            Some(error) => assert_eq!(
                error,
                "exec /bin/true: Interrupted system call (a process of the same user stopped it before its exec, so it \
                 was killed)"
            ),
            None => eprintln!("skipped: no start was met in time"),
        }
    }

    #[test]
    fn a_start_as_another_user_tells_its_failure_too() {
        let _alone = CHANGING_USER
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if !is_root() {
            return;
        }
        let uid = Some(65_534);
        assert_eq!(
            Program::at("/nonexistent/foo").error(|spec| Spawn { uid, ..spec }),
            "exec /nonexistent/foo: No such file or directory"
        );
        assert_eq!(
            Program::shell(":").error(|spec| Spawn {
                uid,
                oom_score_adj: Some(5000),
                ..spec
            }),
            "oom_score_adj 5000: Invalid argument"
        );
    }

    #[test]
    fn the_oom_score_is_set_for_the_same_user_and_for_another() {
        let own = || fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let before = own();
        let _alone = CHANGING_USER
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let program = Program {
            argv: ["cat", "/proc/self/oom_score_adj"].map(text).into(),
            ..Program::at("/bin/cat")
        };
        let uids: &[_] = if is_root() {
            &[None, Some(65_534)]
        } else {
            &[None]
        };
        // Often, since it was once a matter of the moment whether the manager got it as well.
        for &uid in uids.iter().cycle().take(100) {
            assert_eq!(
                program.output(|spec| Spawn {
                    oom_score_adj: Some(321),
                    uid,
                    ..spec
                }),
                "321\n"
            );
            assert_eq!(own(), before, "the manager's own is as it was");
        }
    }

    #[test]
    fn a_raised_descriptor_limit_is_not_handed_on() {
        let mut spawner = Spawner::new().unwrap();
        spawner.restore_nofile(100, 200);
        let program = Program::shell("ulimit -Sn; ulimit -Hn");
        assert_eq!(program.output_by(&mut spawner, |spec| spec), "100\n200\n");
        let own = program.output_by(&mut spawner, |spec| Spawn {
            rlimits: &[(Resource::Nofile, Some(50), Some(60))],
            ..spec
        });
        assert_eq!(own, "50\n60\n");
    }

    #[test]
    fn a_limit_below_the_descriptor_numbers_is_no_obstacle() {
        let (reader, writer) = io::pipe().unwrap();
        let program = Program::shell("echo through >&30");
        let limits = [(Resource::Nofile, Some(8), Some(8))];
        let spec = Spawn {
            fds: &[(writer.as_fd(), 30)],
            rlimits: &limits,
            ..program.spec()
        };
        let child = Spawner::new().unwrap().spawn(&spec).unwrap();
        drop(writer);
        wait_for_end(&child);
        process::reap(child.pid).unwrap();
        // Shells differ in whether they can write to 30 then; that it was started is what counts.
        drop(reader);
    }

    #[test]
    fn the_candidates_are_tried_in_turn() {
        let mut program = Program::shell("echo found");
        program.candidates = [
            "/nonexistent/sh",
            "/etc/passwd/sh",
            "/etc",
            "/bin/sh",
            "/bin/false",
        ]
        .map(text)
        .into();
        assert_eq!(program.output(|spec| spec), "found\n");
    }

    #[test]
    fn a_missing_program_is_named() {
        assert_eq!(
            Program::at("/nonexistent/foo").error(|spec| spec),
            "exec /nonexistent/foo: No such file or directory"
        );
        assert_eq!(
            Program::at("bin/foo").error(|spec| Spawn {
                working_dir: Some(c"/usr"),
                ..spec
            }),
            "exec bin/foo: No such file or directory (in `/usr`)"
        );
    }

    #[test]
    fn a_name_that_is_nowhere_in_path_is_said_to_be_so() {
        let mut program = Program::at("foo");
        program.candidates = ["/usr/bin/no-such-foo", "/bin/no-such-foo"]
            .map(text)
            .into();
        assert_eq!(
            program.error(|spec| spec),
            "exec no-such-foo: No such file or directory (not found in PATH)"
        );
        program.candidates.clear();
        assert_eq!(
            program.error(|spec| spec),
            "exec foo: No such file or directory (not found in PATH)"
        );
    }

    fn file(folder: &tempfile::TempDir, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn every_mistake_with_a_file_has_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nothing", &link).unwrap();
        let plain = file(&folder, "plain", "echo hello\n", 0o755);
        let cases = [
            (
                plain,
                "Exec format error (a script needs a first line such as `#!/bin/sh`)",
            ),
            (
                file(&folder, "empty", "", 0o755),
                "Exec format error (the file is empty)",
            ),
            (
                file(&folder, "elf", "\x7fELF\0\0\0\0", 0o755),
                "Exec format error (a program for another kind of machine, or a damaged one)",
            ),
            (
                file(&folder, "lost", "#! /no/such/python -u\n", 0o755),
                "No such file or directory (the file exists, but its interpreter `/no/such/python` does not)",
            ),
            (
                file(&folder, "dos", "#!/bin/sh\r\necho\r\n", 0o755),
                "No such file or directory (its first line ends in a carriage return: save the script with Unix line ends)",
            ),
            (
                folder.path().into(),
                "Permission denied (it is a directory)",
            ),
            (
                link,
                "No such file or directory (a symbolic link to nothing)",
            ),
        ];
        for (path, reason) in cases {
            assert_eq!(
                Program::at(&path).error(|spec| spec),
                format!("exec {}: {reason}", path.display())
            );
        }
        let closed = file(&folder, "closed", "#!/bin/sh\n", 0o644);
        let reason = format!(
            "the file is not executable; `chmod +x {0}` makes it so",
            closed.display()
        );
        assert_eq!(
            Program::at(&closed).error(|spec| spec),
            format!("exec {}: Permission denied ({reason})", closed.display())
        );
        let inner = file(
            &folder,
            "inner",
            &format!("#!{}\n", closed.display()),
            0o755,
        );
        assert_eq!(
            Program::at(&inner).error(|spec| spec),
            format!(
                "exec {}: Permission denied (its interpreter `{}` is not executable)",
                inner.display(),
                closed.display()
            )
        );
    }

    #[test]
    fn a_fifo_in_place_of_a_program_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o777)).unwrap();
        assert_eq!(
            Program::at(&path).error(|spec| spec),
            format!(
                "exec {}: Permission denied (it is no regular file)",
                path.display()
            )
        );
    }

    #[test]
    fn a_candidate_that_is_denied_is_reported_before_one_that_is_missing() {
        let mut program = Program::at("foo");
        program.candidates = ["/nonexistent/foo", "/etc/passwd", "/other/foo"]
            .map(text)
            .into();
        let error = program.error(|spec| spec);
        assert!(
            error.starts_with("exec /etc/passwd: Permission denied (the file is not executable"),
            "{error}"
        );
    }

    #[test]
    fn a_script_without_its_interpreter_is_not_said_to_be_missing_from_path() {
        let folder = tempfile::tempdir().unwrap();
        let script = file(&folder, "foo", "#!/no/such/thing\n", 0o755);
        let mut program = Program::at("foo");
        program.candidates = vec![
            text("/usr/bin/no-such-foo"),
            text(script.as_os_str().as_bytes()),
        ];
        let error = program.error(|spec| spec);
        assert!(
            error.starts_with(&format!("exec {}: ", script.display())),
            "{error}"
        );
        assert!(
            error.ends_with("its interpreter `/no/such/thing` does not)"),
            "{error}"
        );
    }

    #[test]
    fn each_step_that_fails_is_named() {
        let _alone = CHANGING_USER
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let program = Program::shell(":");
        assert_eq!(
            program.error(|spec| Spawn {
                working_dir: Some(c"/nonexistent"),
                ..spec
            }),
            "chdir /nonexistent: No such file or directory"
        );
        assert_eq!(
            program.error(|spec| Spawn {
                cpu_affinity: Some(&[4000]),
                ..spec
            }),
            "cpu_affinity: Invalid argument (this machine has none of these CPUs)"
        );
        assert_eq!(
            program.error(|spec| Spawn {
                cpu_affinity: Some(&[u32::MAX]),
                ..spec
            }),
            "cpu_affinity: Invalid argument (this machine has none of these CPUs)"
        );
        assert_eq!(
            program.error(|spec| Spawn {
                oom_score_adj: Some(5000),
                ..spec
            }),
            "oom_score_adj 5000: Invalid argument"
        );
        assert_eq!(
            program.error(|spec| Spawn {
                rlimits: &[(Resource::Core, Some(2), Some(1))],
                ..spec
            }),
            "rlimit core: Invalid argument"
        );
        let null = null();
        let spec = Spawn {
            fds: &[(null.as_fd(), -1)],
            ..program.spec()
        };
        assert_eq!(
            Spawner::new()
                .unwrap()
                .spawn(&spec)
                .unwrap_err()
                .to_string(),
            "fd -1: Bad file descriptor"
        );
        if is_root() {
            let uid = Some(u32::MAX - 1);
            let limits = [(Resource::Nofile, None, None)];
            assert_eq!(
                program.error(|spec| Spawn {
                    uid,
                    working_dir: Some(c"/root"),
                    ..spec
                }),
                "chdir /root: Permission denied",
                "the folder is entered with the rights of the user"
            );
            assert_eq!(
                program.error(|spec| Spawn {
                    rlimits: &limits,
                    ..spec
                }),
                "rlimit nofile: Operation not permitted"
            );
        }
    }

    #[test]
    fn a_failed_start_leaves_no_zombie_and_no_descriptor() {
        let mut spawner = Spawner::new().unwrap();
        let program = Program::at("/nonexistent/foo");
        let failures = 50;
        for _ in 0..failures {
            spawner.spawn(&program.spec()).unwrap_err();
        }
        // Others' children come and go meanwhile, but none of them is a zombie named like this thread for long.
        let name = fs::read("/proc/thread-self/comm").unwrap();
        let zombies = process::children().unwrap().into_iter().filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
                status.contains("State:\tZ")
                    && status
                        .as_bytes()
                        .starts_with(&[b"Name:\t", &name[..]].concat())
            })
        });
        assert_eq!(zombies.count(), 0);
        let pidfds = process::open_fds().unwrap().into_iter().filter(|fd| {
            fs::read_link(format!("/proc/self/fd/{fd}"))
                .is_ok_and(|target| target.as_os_str() == "anon_inode:[pidfd]")
        });
        assert!(pidfds.count() < failures);
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 99, 100, 4_194_304, u64::from(u32::MAX), u64::MAX] {
            let mut slot = [0; SLOT];
            // SAFETY: a slot of the size that it asks for.
            unsafe { write_decimal(number, slot.as_mut_ptr()) };
            let text = CStr::from_bytes_until_nul(&slot).unwrap();
            assert_eq!(text.to_str().unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_spawner_starts_many_one_after_the_other() {
        let mut spawner = Spawner::new().unwrap();
        let program = Program::at("/bin/true");
        for _ in 0..100 {
            let child = spawner.spawn(&program.spec()).unwrap();
            wait_for_end(&child);
            assert_eq!(process::reap(child.pid).unwrap(), process::Exit::Code(0));
        }
    }
}
