//! Files as a worker's stdin, stdout and stderr, and whether a write would block.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::time::TimeSpec;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Opens `path` for appending, and makes it with `mode` (less the umask) if it does not exist.
///
/// Never blocks: a FIFO that nobody reads is refused with ENXIO. The descriptor itself is a blocking one.
pub fn open_append(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    open_blocking(
        path,
        OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT,
        mode,
    )
}

/// Opens `path` for reading. Never blocks; the descriptor itself is a blocking one.
pub fn open_read(path: &Path) -> io::Result<OwnedFd> {
    open_blocking(path, OFlag::O_RDONLY, 0)
}

/// /dev/null, for reading and writing.
pub fn null() -> io::Result<OwnedFd> {
    Ok(open(
        "/dev/null",
        OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOCTTY,
        Mode::empty(),
    )?)
}

/// A descriptor from which there is nothing to read: /dev/null, or where there is none (a container made from scratch) a
/// pipe that nobody writes to.
pub fn empty() -> io::Result<OwnedFd> {
    match null() {
        Ok(null) => Ok(null),
        Err(_) => Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?.0),
    }
}

fn open_blocking(path: &Path, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let fd = open(path, flags, Mode::from_bits_truncate(mode))?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// Whether a write may have to wait for a reader: it never has in a regular file.
pub fn has_reader(fd: impl AsFd) -> bool {
    let is_file = |stat: FileStat| stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    !fstat(fd).is_ok_and(is_file)
}

/// Whether a write of up to 4096 bytes (PIPE_BUF) would return at once: with success, or with an error because nobody
/// reads any more.
pub fn writable_now(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    // A regular file is always ready. An interrupted poll says nothing; the caller then asks again next time.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Whether a read would return at once; of a pidfd: whether its process has ended.
pub fn readable_now(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits until one of the descriptors is readable, or writable where that is said too, or has failed; `None` waits for ever.
/// A signal ends the wait as well. For few descriptors; many are for [`super::epoll`].
pub fn wait_for(fds: &[(BorrowedFd<'_>, bool)], timeout: Option<Duration>) -> io::Result<()> {
    let flags = |writable| match writable {
        true => PollFlags::POLLIN | PollFlags::POLLOUT,
        false => PollFlags::POLLIN,
    };
    let fds = fds.iter();
    let mut fds: Vec<PollFd<'_>> = fds
        .map(|(fd, writable)| PollFd::new(*fd, flags(*writable)))
        .collect();
    // The kernel refuses more seconds than it can count.
    let timeout = timeout.map(|timeout| timeout.min(Duration::from_secs(i32::MAX as u64)));
    match ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One of our own standard descriptors, 0 to 2; `None` if it is closed.
pub fn inherited(number: RawFd) -> Option<BorrowedFd<'static>> {
    if !(0..=2).contains(&number) {
        return None;
    }
    // SAFETY: F_GETFD takes no pointers and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and nothing in this program closes the standard descriptors.
    Some(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Makes sure that the standard descriptors are open, with [`empty`] where they are not, so that none of ours gets
/// their numbers. They stay open in the programs that are started, as those do that we were given.
pub fn fill_standard() -> io::Result<()> {
    while let Some(number) = (0..=2).find(|number| inherited(*number).is_none()) {
        let empty = empty()?;
        if empty.as_raw_fd() == number {
            fcntl(&empty, FcntlArg::F_SETFD(FdFlag::empty()))?;
            // It stays open for good, under the lowest free number, which this is.
            std::mem::forget(empty);
        } else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
    }
    Ok(())
}

/// A whole text file of at most `limit` bytes. What is no file has no end, or none that is known: it is refused.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let file = File::from(open_read(path)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// Whether stderr is journald's stream, as systemd.exec(5) says of JOURNAL_STREAM.
pub fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let stat = fstat(io::stderr());
    stat.is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::spawn::tests::eventually;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn is_blocking(fd: &OwnedFd) -> bool {
        !OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
    }

    #[test]
    fn a_log_is_made_closed_to_others_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for line in ["one\n", "two\n"] {
            let fd = open_append(&path, 0o640).unwrap();
            assert!(is_blocking(&fd) && writable_now(&fd) && !has_reader(&fd));
            File::from(fd).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7137,
            0o000
        );
        let mut text = String::new();
        File::from(open_read(&path).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text.len(), 8);
    }

    #[test]
    fn a_fifo_never_hangs_the_manager() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert_eq!(
            open_append(&path, 0o640).unwrap_err().raw_os_error(),
            Some(libc::ENXIO)
        );
        let reader = open_read(&path).unwrap();
        assert!(is_blocking(&reader));
        assert!(is_blocking(&open_append(&path, 0o640).unwrap()));
    }

    #[test]
    fn what_can_not_be_opened_is_an_error() {
        assert_eq!(
            open_append(Path::new("/"), 0o640)
                .unwrap_err()
                .raw_os_error(),
            Some(libc::EISDIR)
        );
        assert_eq!(
            open_read(Path::new("/nonexistent")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_wait_ends_with_what_is_waited_for() {
        use std::os::unix::net::UnixStream;
        let (near, mut far) = UnixStream::pair().unwrap();
        let start = std::time::Instant::now();
        let short = Duration::from_micros(2500);
        wait_for(&[(near.as_fd(), false)], Some(short)).unwrap();
        assert!(start.elapsed() >= short);
        wait_for(&[(near.as_fd(), true)], None).unwrap();
        far.write_all(b"x").unwrap();
        wait_for(&[(near.as_fd(), false)], None).unwrap();
        wait_for(&[(near.as_fd(), false)], Some(Duration::MAX)).unwrap();
    }

    #[test]
    fn a_full_pipe_is_not_writable_and_one_without_a_reader_is() {
        let (reader, writer) = io::pipe().unwrap();
        assert!(writable_now(&writer) && has_reader(&writer));
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        while (&writer).write(&[0; 4096]).is_ok() {}
        assert!(!writable_now(&writer));
        drop(reader);
        // The write then fails at once.
        eventually(|| writable_now(&writer).then_some(()));
        assert!(writable_now(null().unwrap()));
    }
}
