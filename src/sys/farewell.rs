//! Ending between two clients: a worker that serves one after the other is asked to end, and finishes the one it has.

use super::{check, output};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// What clients come by, and what takes its place.
static SOURCE: AtomicI32 = AtomicI32::new(-1);
static NOTHING: AtomicI32 = AtomicI32::new(-1);
static WAS_ASKED: AtomicBool = AtomicBool::new(false);

/// From now on SIGTERM and SIGINT end nothing in the middle. The descriptor `source` becomes one of an empty file instead, so
/// accept(2) and recv(2) on it fail at once, whether the signal comes before or while they wait; then
/// [`was_asked_to_end`] says why. For a process of one such descriptor.
pub fn end_between_clients(source: BorrowedFd<'_>) -> io::Result<()> {
    NOTHING.store(output::empty()?.into_raw_fd(), Ordering::SeqCst);
    SOURCE.store(source.as_raw_fd(), Ordering::SeqCst);
    // SAFETY: all-zero is a valid value of this structure: no flags (so that calls are interrupted), an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = asked as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler makes one system call that is safe in it (signal-safety(7)), and leaves errno as it was.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// Whether one of the signals has come.
pub fn was_asked_to_end() -> bool {
    WAS_ASKED.load(Ordering::SeqCst)
}

extern "C" fn asked(_signal: libc::c_int) {
    // SAFETY: it leads to the thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: takes no pointers; both descriptors stay open for as long as the process lives.
    unsafe {
        libc::dup2(
            NOTHING.load(Ordering::SeqCst),
            SOURCE.load(Ordering::SeqCst),
        )
    };
    WAS_ASKED.store(true, Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { *errno = before };
}
