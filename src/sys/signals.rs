//! Signals as something to read: signalfd(2).

use super::check;
use super::process::Pid;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor from which blocked signals are read.
///
/// Signals of one number that come before the first of them is read are one: a SIGCHLD says that *some* children ended.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` in the calling thread (and in threads that it starts later) and makes a descriptor for them.
    ///
    /// One that the manager's parent had set to be ignored is set back to its default: with SIGCHLD ignored the kernel
    /// reaps children by itself and their exit is lost (wait(2), NOTES). Fails with EINVAL for what is no signal.
    pub fn new(signals: &[i32]) -> io::Result<SignalFd> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for &signal in signals {
            // SAFETY: `set` is an initialised set; a bad number is refused.
            check(unsafe { libc::sigaddset(&mut set, signal) })?;
        }
        // SAFETY: `set` is an initialised set, and the old one is not asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        for &signal in signals {
            stop_ignoring(signal)?;
        }
        // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
        let fd =
            check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Another descriptor for the same signals. In a child of this process it gives the child's own, signalfd(2).
    pub fn try_clone(&self) -> io::Result<SignalFd> {
        self.0.try_clone().map(SignalFd)
    }

    /// The next signal's number; `None` when there is none.
    pub fn read(&self) -> io::Result<Option<i32>> {
        Ok(self.read_from()?.map(|(signal, _)| signal))
    }

    /// The same, and who has sent it: `None` if that is no process of our pid namespace, as with the kernel.
    pub fn read_from(&self) -> io::Result<Option<(i32, Option<Pid>)>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        loop {
            // SAFETY: `info` has room for `size` bytes.
            let count = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if usize::try_from(count) == Ok(size) {
                // SAFETY: the kernel has written the whole structure, in which every bit pattern is valid.
                let info = unsafe { info.assume_init() };
                return Ok(Some((info.ssi_signo as i32, Pid::new(info.ssi_pid as i32))));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a fault of the process itself raises, and what stops and continues it.
const UNTOUCHED: [i32; 11] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
];

/// Blocks every signal but those of a fault and those that stop a process, the real-time ones and the C library's own
/// among them: most end a process by their default, and nobody who sends SIGALRM by mistake is to end a manager.
/// SIGXFSZ is among them too: a write beyond RLIMIT_FSIZE fails and no more.
///
/// Blocked and not ignored: a program that is started needs one call to have them all back, and not one for each.
pub fn block_all() {
    // The kernel's own set; the C library keeps some signals to itself.
    let set = (UNTOUCHED.iter()).fold(u64::MAX, |set, signal| set & !(1 << (signal - 1)));
    // SAFETY: `set` has the size that is said, and outlives the call, which can't fail with it.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const set,
            std::ptr::null_mut::<u64>(),
            size_of_val(&set),
        )
    };
}

/// [`block_all`] for the first process of a container, as the first thing it does: the kernel drops what is sent to it
/// and neither handled nor blocked.
pub fn block_all_as_init() {
    if super::process::Pid::own().as_raw() == 1 {
        block_all();
    }
}

/// Has the kernel drop a signal from now on, for instance SIGXFSZ, so that a write beyond RLIMIT_FSIZE fails and no more.
pub fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: all-zero is a valid value, and ignoring runs no code of ours.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = libc::SIG_IGN;
        check(libc::sigaction(signal, &action, std::ptr::null_mut())).map(drop)
    }
}

/// A write that nobody reads is an error from now on, and no SIGPIPE. Programs that are started get its default back.
pub fn ignore_broken_pipes() {
    // It fails for signals only that there are not.
    let _ = ignore(libc::SIGPIPE);
}

fn stop_ignoring(signal: i32) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the current action is written to `action`, of which all-zero is a valid value too.
    let mut action = unsafe {
        check(libc::sigaction(
            signal,
            std::ptr::null(),
            action.as_mut_ptr(),
        ))?;
        action.assume_init()
    };
    if action.sa_sigaction == libc::SIG_IGN {
        action.sa_sigaction = libc::SIG_DFL;
        // SAFETY: the default action runs no code of ours.
        check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To this thread alone: the other tests' threads do not block it.
    fn raise(signal: i32) {
        // SAFETY: `raise` takes no pointers, and the signal is blocked in this thread.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn a_blocked_signal_is_read_once_however_often_it_came() {
        let signals = SignalFd::new(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        assert_eq!(signals.read().unwrap(), None);
        raise(libc::SIGUSR2);
        raise(libc::SIGUSR2);
        let own = Some(Pid::own());
        assert_eq!(signals.read_from().unwrap(), Some((libc::SIGUSR2, own)));
        assert_eq!(signals.read().unwrap(), None);
    }

    #[test]
    fn an_ignored_signal_is_set_to_its_default() {
        // SAFETY: SIGURG's default is to do nothing, as ignoring it does.
        unsafe { libc::signal(libc::SIGURG, libc::SIG_IGN) };
        let signals = SignalFd::new(&[libc::SIGURG]).unwrap();
        // SAFETY: as above; the call tells what was set before.
        assert_eq!(
            unsafe { libc::signal(libc::SIGURG, libc::SIG_DFL) },
            libc::SIG_DFL
        );
        raise(libc::SIGURG);
        assert_eq!(signals.read().unwrap(), Some(libc::SIGURG));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        assert_eq!(
            SignalFd::new(&[4242]).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
        assert_eq!(
            SignalFd::new(&[-1]).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn what_is_blocked_ends_nobody() {
        std::thread::spawn(|| {
            block_all();
            for signal in [libc::SIGALRM, libc::SIGPROF, libc::SIGXFSZ, 33, 64] {
                // SAFETY: takes no pointers, and the signal is blocked in this thread.
                let result = unsafe {
                    let (pid, thread) = (libc::getpid(), libc::gettid());
                    libc::syscall(libc::SYS_tgkill, pid, thread, signal)
                };
                assert_eq!(result, 0);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_descriptor_is_not_inherited() {
        let signals = SignalFd::new(&[libc::SIGWINCH]).unwrap();
        // SAFETY: F_GETFD takes no pointers.
        let flags = unsafe { libc::fcntl(signals.as_fd().as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}
