//! What the child does between clone and exec.

use super::super::placement;
use super::Resource;
use libc::{c_char, c_int};
use nix::errno::Errno;
use std::cell::UnsafeCell;
use std::convert::Infallible;
use std::ffi::CStr;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

/// What the child reads. The parent has made all of it, and leaves it alone until the child has let go of the memory.
pub(super) struct Job<'a> {
    pub(super) placement: Vec<placement::Step>,
    pub(super) environment: Environment,
    pub(super) oom_score_adj: Option<String>,
    pub(super) cpus: Option<Vec<libc::c_ulong>>,
    pub(super) nice: Option<i32>,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) umask: Option<u32>,
    pub(super) groups: Option<&'a [u32]>,
    pub(super) gid: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) working_dir: Option<&'a CStr>,
    pub(super) altered_signals: &'a [i32],
    pub(super) candidates: Vec<*const c_char>,
    /// Ended by a null pointer.
    pub(super) argv: Vec<*const c_char>,
    /// Where the child says what failed.
    pub(super) failure: UnsafeCell<Option<Failure>>,
    pub(super) how: Waiting,
    /// Not 0 until the kernel lets go of this memory for the child.
    pub(super) is_shared: AtomicU32,
    /// The top of the stack for the child of a bearer, once it runs.
    pub(super) heir_stack: AtomicPtr<libc::c_void>,
    /// The child of the bearer once there is one, or the errno of its clone, negative.
    pub(super) heir: AtomicI32,
}

impl Job<'_> {
    /// Whether a bearer is needed: see the head of [`super`].
    pub(super) fn is_borne(&self) -> bool {
        self.how == Waiting::Futex && self.oom_score_adj.is_some()
    }
}

/// The child's environment. Some of its values are known to the child alone, which writes them in place.
pub(super) struct Environment {
    /// As execve(2) takes it.
    entries: UnsafeCell<Vec<*const c_char>>,
    /// The entries that the child completes: `NAME=`, room for a number, and so on.
    own: UnsafeCell<Vec<u8>>,
    /// Where in `own` the pid is written.
    pids: Vec<usize>,
    /// Where in `own` the inode of the pidfd is written. It is the last of the entries, so that it can be cut off.
    pidfd_id: Option<usize>,
}

/// Room for a number of up to 20 digits and the NUL behind it.
const SLOT: usize = 21;

impl Environment {
    /// `given`, which must outlive it, then the variables for the pid, then the one for the pidfd's inode.
    pub(super) fn new(
        given: &[&CStr],
        pid_vars: &[&str],
        pidfd_id_var: Option<&str>,
    ) -> Environment {
        let (mut own, mut starts, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for name in pid_vars.iter().copied().chain(pidfd_id_var) {
            starts.push(own.len());
            own.extend_from_slice(name.as_bytes());
            own.push(b'=');
            values.push(own.len());
            own.resize(own.len() + SLOT, 0);
        }
        let mut entries = Vec::with_capacity(given.len() + starts.len() + 1);
        entries.extend(given.iter().map(|entry| entry.as_ptr()));
        entries.extend(starts.iter().map(|&start| own[start..].as_ptr().cast()));
        entries.push(ptr::null());
        let pidfd_id = pidfd_id_var.and_then(|_| values.pop());
        Environment {
            entries: UnsafeCell::new(entries),
            own: UnsafeCell::new(own),
            pids: values,
            pidfd_id,
        }
    }

    /// Writes the values that only the child knows.
    ///
    /// # Safety
    ///
    /// The child alone may call it, once, and nobody else may look at the environment meanwhile.
    unsafe fn complete(&self, pid: usize) {
        // SAFETY: the caller's promise. Neither grows, so the entries stay where they are.
        let (own, entries) = unsafe { (&mut *self.own.get(), &mut *self.entries.get()) };
        for &at in &self.pids {
            write_decimal(pid as u64, own, at);
        }
        let Some(at) = self.pidfd_id else { return };
        match pidfd_inode(pid) {
            Some(inode) => write_decimal(inode, own, at),
            None => {
                // The last one but the null pointer.
                if let Some(entry) = entries.iter_mut().rev().nth(1) {
                    *entry = ptr::null();
                }
            }
        }
    }

    fn as_ptr(&self) -> *const *const c_char {
        // SAFETY: nobody writes to it now: the child has, or will.
        unsafe { (*self.entries.get()).as_ptr() }
    }
}

/// How the parent waits until the child shares its memory no longer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The kernel does not let it go on before.
    Vfork,
    /// The kernel wakes it, and it looks after the child meanwhile.
    Futex,
}

pub(super) struct Rlimit {
    pub(super) resource: Resource,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

/// What failed in the child: plain numbers, since it can't allocate.
#[derive(Clone, Copy)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) errno: i32,
}

#[derive(Clone, Copy)]
pub(super) enum Stage {
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

/// The child's whole life before its exec.
pub(super) extern "C" fn begin(job: *mut libc::c_void) -> c_int {
    // SAFETY: `Flight::begin` gives a pointer to a `Job` that outlives the child's use of it; it is only read, but for the
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
pub(super) extern "C" fn bear(job: *mut libc::c_void) -> c_int {
    let argument = job;
    // SAFETY: as in `begin`.
    let job = unsafe { &*job.cast::<Job<'_>>().cast_const() };
    let score = job.oom_score_adj.as_deref();
    if let Some(Err(errno)) = score.map(write_oom_score_adj) {
        let stage = Stage::OomScoreAdj;
        return give_up(job, Failure { stage, errno });
    }
    // The kernel writes the number before either goes on: whoever kills the bearer now, the manager knows its child.
    let flags = libc::CLONE_VM | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
    let stack = job.heir_stack.load(Ordering::Acquire);
    // SAFETY: the other half of the stack that the job has; the manager waits for this process, and then until the child
    // has let go of the memory.
    let result = unsafe { libc::clone(begin, stack, flags, argument, job.heir.as_ptr()) };
    if result == -1 {
        job.heir.store(-Errno::last_raw(), Ordering::Release);
    }
    leave()
}

/// Says what failed, and ends this process.
fn give_up(job: &Job<'_>, failure: Failure) -> c_int {
    // SAFETY: the parent waits, and reads the cell only after this process has let go of the memory.
    unsafe { job.failure.get().write_volatile(Some(failure)) };
    leave()
}

/// Ends this process alone (it is no thread of the parent), without anything that atexit(3) would do.
fn leave() -> c_int {
    let _ = system_call!(libc::SYS_exit_group, 127);
    127
}

fn become_program(job: &Job<'_>) -> Result<Infallible, Failure> {
    let at = |stage: Stage| move |errno: i32| Failure { stage, errno };

    system_call!(libc::SYS_setsid).map_err(at(Stage::Setsid))?;

    let mut saved = 0;
    for &step in &job.placement {
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
    // SAFETY: this is the child, here once, and the parent leaves the job alone.
    unsafe { job.environment.complete(pid) };

    if let Some(value) = &job.oom_score_adj
        && !job.is_borne()
    {
        write_oom_score_adj(value).map_err(at(Stage::OomScoreAdj))?;
    }
    if let Some(cpus) = job.cpus.as_deref() {
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
        let Err(errno) = system_call!(
            libc::SYS_execve,
            path,
            job.argv.as_ptr(),
            job.environment.as_ptr()
        ) else {
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

/// Writes `number` in decimal into a slot, which begins at `at` and is all zeroes.
pub(super) fn write_decimal(number: u64, bytes: &mut [u8], at: usize) {
    let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    let mut rest = number;
    for byte in bytes.iter_mut().skip(at).take(digits).rev() {
        *byte = b'0' + (rest % 10) as u8;
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
fn write_oom_score_adj(value: &str) -> Result<(), i32> {
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
pub(super) type KernelSet = u64;
pub(super) const SIGSET_BYTES: usize = size_of::<KernelSet>();
pub(super) const NO_SIGNALS: KernelSet = 0;
pub(super) const ALL_SIGNALS: KernelSet = KernelSet::MAX;

pub(super) fn set_signal_mask(new: &KernelSet, old: *mut KernelSet) {
    // It can't fail with sets of this size.
    let _ = system_call!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        ptr::from_ref(new),
        old,
        SIGSET_BYTES
    );
}
