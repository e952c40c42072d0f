//! The child as its parent sees it: where it runs, and how its exec is waited for.

use super::super::process::{self, Pid};
use super::Child;
use super::child::{
    ALL_SIGNALS, Failure, Job, NO_SIGNALS, Stage, Waiting, bear, begin, set_signal_mask,
};
use nix::errno::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::Ordering;

/// A stack for children, one at a time.
#[derive(Debug)]
pub(super) struct Stack {
    base: *mut libc::c_void,
    size: usize,
}

/// Ample, and half of it as well: the child's frames and those of libc's thin wrappers need under 2 KiB.
const STACK_BYTES: usize = 64 << 10;

impl Stack {
    pub(super) fn new() -> io::Result<Stack> {
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

    fn top(&self) -> *mut libc::c_void {
        self.base.wrapping_byte_add(self.size)
    }

    /// The top of its lower half, for a child that runs while the user of the upper one ends.
    fn middle(&self) -> *mut libc::c_void {
        self.base.wrapping_byte_add(self.size - STACK_BYTES / 2)
    }
}

/// A child on its way to its exec, or where it has got to. It has the stack and the job to itself until it has landed.
pub(super) struct Flight<'a> {
    job: &'a Job<'a>,
    _stack: &'a mut Stack,
    /// What clone(2) has made: the child, or its bearer.
    made: Result<Pid, i32>,
    pidfd: Option<OwnedFd>,
    has_landed: bool,
}

impl<'a> Flight<'a> {
    /// Makes the child. With [`Waiting::Vfork`] it has landed when this returns.
    pub(super) fn begin(job: &'a Job<'a>, stack: &'a mut Stack) -> Flight<'a> {
        let (entry, flags): (extern "C" fn(_) -> _, _) = match job.how {
            Waiting::Futex if job.is_borne() => (bear, libc::CLONE_VFORK),
            Waiting::Futex => (begin, libc::CLONE_PIDFD),
            Waiting::Vfork => (begin, libc::CLONE_PIDFD | libc::CLONE_VFORK),
        };
        job.heir_stack.store(stack.middle(), Ordering::Release);
        let flags = libc::CLONE_VM | libc::SIGCHLD | flags;
        let argument = ptr::from_ref(job).cast_mut().cast();
        let mut pidfd: libc::c_int = -1;
        let mut mask = NO_SIGNALS;
        set_signal_mask(&ALL_SIGNALS, &mut mask);
        // SAFETY: the stack is ours, grows down from its top, which is aligned to a page, and is used by one child at a
        // time: it is borrowed until the child is done with our memory, which either CLONE_VFORK or `land` waits for; and
        // so is the job. What the child does there is argued at the head of `super`.
        let result = unsafe { libc::clone(entry, stack.top(), flags, argument, &raw mut pidfd) };
        let made = match result {
            -1 => Err(Errno::last_raw()),
            pid => Pid::new(pid).ok_or(libc::EINVAL),
        };
        set_signal_mask(&mask, ptr::null_mut());
        let has_pidfd = made.is_ok() && !job.is_borne();
        Flight {
            job,
            _stack: stack,
            // SAFETY: the kernel has put it there with the child, and nobody else owns it.
            pidfd: has_pidfd.then(|| unsafe { OwnedFd::from_raw_fd(pidfd) }),
            has_landed: made.is_err() || job.how == Waiting::Vfork,
            made,
        }
    }

    /// Waits until the child has exec'd or ended: it, or the errno of clone; and what it says has failed.
    pub(super) fn finish(mut self) -> (Result<Child, i32>, Option<Failure>) {
        self.land();
        let outcome = self.outcome();
        // SAFETY: the child has let go of the memory.
        let failure = unsafe { self.job.failure.get().read_volatile() };
        (outcome, failure)
    }

    fn outcome(&mut self) -> Result<Child, i32> {
        let pid = self.made?;
        if let Some(pidfd) = self.pidfd.take() {
            return Ok(Child { pid, pidfd });
        }
        end(pid);
        let pid = match self.job.heir.load(Ordering::Acquire) {
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

    fn land(&mut self) {
        if std::mem::replace(&mut self.has_landed, true) {
            return;
        }
        let child = match self.made {
            Ok(_) if self.job.is_borne() => self.job.heir.load(Ordering::Acquire),
            Ok(pid) => pid.as_raw(),
            Err(_) => 0,
        };
        if child > 0 {
            wait_until_alone(self.job, child);
        }
    }
}

impl Drop for Flight<'_> {
    /// Nothing of it may be used again before.
    fn drop(&mut self) {
        self.land();
    }
}

/// How long a child may need for its exec before it is looked after.
static PATIENCE: [i64; 2] = [0, 100_000_000];

/// Waits until the child has exec'd or ended; one that somebody has stopped is killed.
fn wait_until_alone(job: &Job<'_>, pid: i32) {
    let stopped = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    let ended = libc::WEXITED | libc::WNOWAIT;
    while job.is_shared.load(Ordering::Acquire) != 0 {
        // The kernel's own timespec has 64 bits wherever there are raw calls.
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

/// Makes a child of ours end that is of no use. Mostly it has ended or is about to, so the wait is short.
pub(super) fn end(pid: Pid) {
    // It is our own child, so neither can fail.
    let _ = process::kill(pid, libc::SIGKILL);
    let _ = process::wait(libc::P_PID, pid.as_raw(), 0);
}
