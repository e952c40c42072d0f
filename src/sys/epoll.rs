//! Waiting for many descriptors at once: one level-triggered epoll(7) set.

use super::check;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How many descriptors one wait reports; the rest come with the next.
const BATCH: usize = 256;

/// What to wait for on a descriptor. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Interest {
    Readable,
    Writable,
    Both,
    /// Only what is always reported.
    Hangup,
}

impl Interest {
    fn mask(self) -> u32 {
        let mask = match self {
            Interest::Readable => libc::EPOLLIN,
            Interest::Writable => libc::EPOLLOUT,
            Interest::Both => libc::EPOLLIN | libc::EPOLLOUT,
            Interest::Hangup => 0,
        };
        mask as u32
    }
}

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// A read would not block.
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
    /// The other end is gone, or the descriptor has an error pending.
    pub hangup: bool,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    ready: Vec<Ready>,
    /// Cleared at the first wait that finds a kernel older than 5.11, or a filter, without epoll_pwait2(2).
    has_pwait2: bool,
}

impl Epoll {
    /// An empty set.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll {
            fd,
            ready: Vec::with_capacity(BATCH),
            has_pwait2: true,
        })
    }

    /// Waits for `fd` too. The kernel forgets a descriptor when its last copy in any process is closed, so one that
    /// others hold as well must be [removed](Epoll::remove) before it is closed. Regular files are refused with EPERM.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest.mask())
    }

    /// Changes what is waited for on `fd`.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest.mask())
    }

    /// Waits for `fd` no longer.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: i32, fd: impl AsFd, token: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives until the call returns; the kernel copies it.
        check(unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                operation,
                fd.as_fd().as_raw_fd(),
                &mut event,
            )
        })?;
        Ok(())
    }

    /// Waits until something is ready or `timeout` has passed; `None` waits for ever. A signal ends the wait with
    /// nothing ready. The wait is never shorter than `timeout`, so that a loop does not spin before a deadline.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[Ready]> {
        self.ready.clear();
        let mut events = [MaybeUninit::<libc::epoll_event>::uninit(); BATCH];
        let count = match self.fill(&mut events, timeout) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in events.iter().take(count) {
            // SAFETY: the kernel has written the first `count` events.
            let event = unsafe { event.assume_init() };
            let mask = event.events as i32;
            self.ready.push(Ready {
                token: event.u64,
                readable: mask & (libc::EPOLLIN | libc::EPOLLPRI) != 0,
                writable: mask & libc::EPOLLOUT != 0,
                hangup: mask & (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) != 0,
            });
        }
        Ok(&self.ready)
    }

    fn fill(
        &mut self,
        events: &mut [MaybeUninit<libc::epoll_event>; BATCH],
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        let (fd, buffer) = (
            self.fd.as_raw_fd(),
            events.as_mut_ptr().cast::<libc::epoll_event>(),
        );
        // Whole milliseconds (and for ever) are what the older call can say as well.
        let exact = timeout.is_none_or(|time| time.subsec_nanos() % 1_000_000 == 0);
        if self.has_pwait2 && !exact {
            let time = timeout.unwrap_or_default();
            // The kernel's own timespec, 64 bits wide on every architecture.
            let time = [
                i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                i64::from(time.subsec_nanos()),
            ];
            // SAFETY: `buffer` has room for BATCH events, `time` is a __kernel_timespec that outlives the call, and no
            // signal mask is given.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    fd,
                    buffer,
                    BATCH as i32,
                    &raw const time,
                    std::ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            match check_long(count) {
                // A system call filter answers what it does not know with either.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.has_pwait2 = false;
                }
                result => return result,
            }
        }
        // SAFETY: `buffer` has room for BATCH events.
        let count = unsafe { libc::epoll_wait(fd, buffer, BATCH as i32, milliseconds(timeout)) };
        check_long(i64::from(count) as libc::c_long)
    }
}

/// `timeout` in whole milliseconds, rounded up; -1 is for ever.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    let Some(time) = timeout else { return -1 };
    i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

fn check_long(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn an_empty_set_waits_for_the_whole_timeout() {
        let mut epoll = Epoll::new().unwrap();
        for time in [
            Duration::from_micros(300),
            Duration::from_millis(2),
            Duration::from_micros(3_100),
        ] {
            for has_pwait2 in [true, false] {
                epoll.has_pwait2 = has_pwait2;
                let start = Instant::now();
                assert_eq!(epoll.wait(Some(time)).unwrap(), []);
                assert!(start.elapsed() >= time, "{:?} < {time:?}", start.elapsed());
            }
        }
    }

    #[test]
    fn milliseconds_are_rounded_up_and_never_overflow() {
        assert_eq!(milliseconds(None), -1);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_micros(1_001))), 2);
        assert_eq!(milliseconds(Some(Duration::MAX)), i32::MAX);
    }

    #[test]
    fn readiness_is_reported_until_it_is_taken() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&near, 7, Interest::Readable).unwrap();
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap(), []);
        far.write_all(b"x").unwrap();
        let ready = Ready {
            token: 7,
            readable: true,
            writable: false,
            hangup: false,
        };
        assert_eq!(epoll.wait(None).unwrap(), [ready]);
        assert_eq!(epoll.wait(None).unwrap(), [ready]);
        near.read_exact(&mut [0]).unwrap();
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap(), []);
    }

    #[test]
    fn interest_can_be_changed_and_ended() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&near, 1, Interest::Readable).unwrap();
        epoll.modify(&near, 2, Interest::Both).unwrap();
        assert_eq!(
            epoll.wait(None).unwrap(),
            [Ready {
                token: 2,
                readable: false,
                writable: true,
                hangup: false
            }]
        );
        epoll.remove(&near).unwrap();
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap(), []);
        assert_eq!(
            epoll.remove(&near).unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
    }

    #[test]
    fn a_closed_other_end_is_a_hangup() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&near, 1, Interest::Readable).unwrap();
        drop(far);
        let ready = epoll.wait(None).unwrap();
        assert!(ready[0].hangup && ready[0].readable, "{ready:?}");
    }

    #[test]
    fn a_huge_timeout_is_no_error() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&near, 1, Interest::Readable).unwrap();
        drop(far);
        assert_eq!(epoll.wait(Some(Duration::MAX)).unwrap().len(), 1);
        epoll.has_pwait2 = false;
        assert_eq!(epoll.wait(Some(Duration::MAX)).unwrap().len(), 1);
    }

    #[test]
    fn more_than_a_batch_comes_in_several_waits() {
        let pairs: Vec<_> = (0..BATCH + 10)
            .map(|_| UnixStream::pair().unwrap())
            .collect();
        let mut epoll = Epoll::new().unwrap();
        for (token, (near, _)) in pairs.iter().enumerate() {
            epoll.add(near, token as u64, Interest::Writable).unwrap();
        }
        let mut seen = std::collections::BTreeSet::new();
        assert_eq!(epoll.wait(None).unwrap().len(), BATCH);
        for _ in 0..3 {
            seen.extend(epoll.wait(None).unwrap().iter().map(|ready| ready.token));
        }
        assert_eq!(seen.len(), pairs.len());
    }
}
