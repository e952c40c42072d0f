//! Files as a worker's stdin, stdout and stderr, and whether a write would block.

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

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

fn open_blocking(path: &Path, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let fd = open(path, flags, Mode::from_bits_truncate(mode))?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// Whether a write of up to 4096 bytes (PIPE_BUF) would return at once: with success, or with an error because nobody
/// reads any more.
pub fn writable_now(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    // A regular file is always ready. An interrupted poll says nothing; the caller then asks again next time.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::spawn::tests::eventually;
    use std::fs::{self, File};
    use std::io::{Read, Write};
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
            assert!(is_blocking(&fd) && writable_now(&fd));
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
    fn a_full_pipe_is_not_writable_and_one_without_a_reader_is() {
        let (reader, writer) = io::pipe().unwrap();
        assert!(writable_now(&writer));
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        while (&writer).write(&[0; 4096]).is_ok() {}
        assert!(!writable_now(&writer));
        drop(reader);
        // The write then fails at once.
        eventually(|| writable_now(&writer).then_some(()));
        assert!(writable_now(null().unwrap()));
    }
}
