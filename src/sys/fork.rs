//! Making two processes of this one: fork(2).

use super::process::{self, Pid};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Which of the two processes goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was there before, with its new child.
    Parent(Pid),
    /// The new one: in a session and process group of its own, without a terminal.
    Child,
}

/// Makes a child that goes on here as well. Refused with EINVAL while this process has a second thread, whose locks the
/// child would never see released.
pub fn fork() -> io::Result<Side> {
    // Nothing is unshared by this: the kernel's answer is EINVAL if there is anything to unshare. Where a system call
    // filter forbids to ask, nobody knows better than the caller.
    // SAFETY: takes no pointers.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EINVAL) {
            return Err(error);
        }
    }
    // SAFETY: there is one thread, so the child has all of what the program is.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // It can't fail: a new process leads no group.
            let _ = nix::unistd::setsid();
            Ok(Side::Child)
        }
        pid => Ok(Side::Parent(
            Pid::new(pid).ok_or(io::ErrorKind::InvalidData)?,
        )),
    }
}

/// Leaves everything behind for another life, whose answer is the exit code: every descriptor but 0 to 2 and those of
/// `kept` is closed, whoever owned it. Nobody misses them, since none of the callers goes on.
pub fn leave_for(kept: &[RawFd], life: impl FnOnce() -> i32) -> ! {
    let mut next = 3;
    let mut closed = Ok(());
    while let Some(fd) = kept.iter().copied().filter(|fd| *fd >= next).min() {
        closed = closed.and_then(|()| close_range(next, fd - 1));
        next = fd + 1;
    }
    if closed.and_then(|()| close_range(next, RawFd::MAX)).is_err() {
        // A kernel before 5.9, or a system call filter.
        for fd in process::open_fds().unwrap_or_default() {
            if fd > 2 && !kept.contains(&fd) {
                // SAFETY: takes no pointers; its owner is never asked again, as said above.
                unsafe { libc::close(fd) };
            }
        }
    }
    std::process::exit(life())
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: takes no pointers; for the owners see `leave_for`.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes another program; returns only if that fails, and why.
pub fn execute(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(path, argv, env) {
        Err(errno) => errno.into(),
        Ok(never) => match never {},
    }
}

/// The absolute path that this program was started by: a link stays a link, so that what it leads to later is found there.
/// Without /proc it is what the kernel was told at the start.
pub fn program() -> Option<PathBuf> {
    let told = told_path();
    let Ok(own) = std::fs::metadata("/proc/self/exe") else {
        return told;
    };
    let is_own = |path: &PathBuf| {
        let transient = ["/proc", "/dev"]
            .iter()
            .any(|place| path.starts_with(place));
        let found = std::fs::metadata(path);
        !transient && found.is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()))
    };
    // What the kernel was told may be a script's interpreter, the dynamic linker or a descriptor.
    told.filter(is_own).or_else(|| {
        let path = std::fs::read_link("/proc/self/exe").ok()?;
        let bytes = path.as_os_str().as_bytes();
        let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        Some(PathBuf::from(OsStr::from_bytes(bytes)))
    })
}

/// The path that was given to execve(2), made absolute.
fn told_path() -> Option<PathBuf> {
    /// Of linux/auxvec.h.
    const AT_EXECFN: libc::c_ulong = 31;
    // SAFETY: takes no pointers.
    let name = unsafe { libc::getauxval(AT_EXECFN) } as *const libc::c_char;
    if name.is_null() {
        return None;
    }
    // SAFETY: the kernel has put a C string there, above the stack, which stays as long as the process does.
    let name = unsafe { CStr::from_ptr(name) };
    std::path::absolute(Path::new(OsStr::from_bytes(name.to_bytes()))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_does_not_fork() {
        // The test's own thread is a second one.
        let error = fork().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn the_program_is_known_by_its_path() {
        let path = program().unwrap();
        assert!(path.is_absolute());
        let same = std::fs::canonicalize(&path).unwrap();
        assert_eq!(same, std::fs::read_link("/proc/self/exe").unwrap());
    }
}
