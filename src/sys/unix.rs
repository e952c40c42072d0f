//! Unix sockets: who is at the other end, and messages that carry descriptors.

use super::process::Pid;
use super::receive;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The process at the other end, as it was when it called connect (or listen), unix(7) SO_PEERCRED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; `None` if that is outside of our pid namespace.
    pub pid: Option<Pid>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// The credentials of the other end of a connected unix stream socket.
pub fn peer(fd: impl AsFd) -> io::Result<Peer> {
    let mut who = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `who` has room for the length that is given.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // What is not connected has no peer: the kernel says user -1.
    if who.uid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
    }
    Ok(Peer {
        pid: Pid::new(who.pid),
        uid: who.uid,
        gid: who.gid,
    })
}

/// The supplementary groups of the other end of a connected unix stream socket.
pub fn peer_groups(fd: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 32];
    loop {
        let mut length = size_of_val(&groups[..]) as libc::socklen_t;
        // SAFETY: `groups` has room for the length that is given.
        let result = unsafe {
            libc::getsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel then says how much room it wants.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Two connected sockets on which messages stay whole and in order (SOCK_SEQPACKET); CLOEXEC.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two numbers.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us these descriptors; nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
}

/// Whether a descriptor is a socket on which messages stay whole.
pub fn is_message_socket(fd: impl AsFd) -> bool {
    let kind = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType);
    kind == Ok(nix::sys::socket::SockType::SeqPacket)
}

/// Sends one message, with copies of at most 253 descriptors (SCM_MAX_FD). It never waits: WouldBlock where there is no
/// room. BrokenPipe, and no signal, if nobody can receive it any more.
pub fn send(socket: impl AsFd, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if fds.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let socket = socket.as_fd().as_raw_fd();
    loop {
        match sendmsg::<()>(socket, &[IoSlice::new(text)], control, flags, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What came on a socket.
#[derive(Debug)]
pub enum Received {
    /// Nothing yet.
    Nothing,
    /// Nobody can send any more, and everything that was sent was received; or an empty message.
    End,
    /// A message.
    Message {
        /// How many bytes of the buffer it takes; never 0.
        length: usize,
        /// The descriptors that came along, CLOEXEC.
        fds: Vec<OwnedFd>,
        /// It was longer, or not every descriptor could be taken (EMFILE).
        truncated: bool,
    },
}

/// Receives one message. It never waits.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let message = loop {
        match receive::receive(socket.as_fd(), buffer, libc::MSG_DONTWAIT) {
            Ok(message) => break message,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                // The other end was closed before it had received everything. It is said once, and what it has sent comes after.
                io::ErrorKind::ConnectionReset => {}
                _ => return Err(error),
            },
        }
    };
    if message.length == 0 {
        return Ok(Received::End);
    }
    Ok(Received::Message {
        length: message.length,
        fds: message.fds,
        truncated: message.truncated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_connection_knows_both_of_its_ends() {
        let (near, _far) = UnixStream::pair().unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let gid = nix::unistd::getegid().as_raw();
        assert_eq!(
            peer(&near).unwrap(),
            Peer {
                pid: Some(Pid::own()),
                uid,
                gid
            }
        );
        let mut expected: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .into_iter()
            .map(|group| group.as_raw())
            .collect();
        let mut groups = peer_groups(&near).unwrap();
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn what_is_not_connected_has_no_peer() {
        let socket = UnixDatagram::unbound().unwrap();
        assert_eq!(
            peer(&socket).unwrap_err().raw_os_error(),
            Some(libc::ENOTCONN)
        );
        assert_eq!(
            peer(std::io::stdin()).is_err(),
            peer_groups(std::io::stdin()).is_err()
        );
    }

    fn received(socket: &OwnedFd) -> (Vec<u8>, Vec<OwnedFd>, bool) {
        let mut buffer = [0; 64];
        match receive(socket, &mut buffer).unwrap() {
            Received::Message {
                length,
                fds,
                truncated,
            } => (buffer[..length].to_vec(), fds, truncated),
            other => panic!("expected a message, not {other:?}"),
        }
    }

    #[test]
    fn messages_stay_whole_and_carry_descriptors() {
        let (near, far) = message_pair().unwrap();
        assert!(is_message_socket(&near) && !is_message_socket(UnixStream::pair().unwrap().0));
        assert!(matches!(receive(&far, &mut [0; 8]), Ok(Received::Nothing)));
        let (reader, mut writer) = io::pipe().unwrap();
        send(&near, b"one", &[reader.as_fd(), reader.as_fd()]).unwrap();
        send(&near, b"another", &[]).unwrap();
        drop(reader);
        let (text, mut fds, truncated) = received(&far);
        assert_eq!((&text[..], fds.len(), truncated), (&b"one"[..], 2, false));
        writer.write_all(b"x").unwrap();
        let mut text = [0];
        File::from(fds.remove(1)).read_exact(&mut text).unwrap();
        assert_eq!(text, *b"x");
        assert_eq!(received(&far).0, b"another");
        // SAFETY: F_GETFD takes no pointers.
        let flags = unsafe { libc::fcntl(fds[0].as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }

    #[test]
    fn what_was_sent_before_the_end_is_received() {
        let (near, far) = message_pair().unwrap();
        send(&near, b"never received", &[]).unwrap();
        send(&far, b"last words", &[]).unwrap();
        drop(far);
        assert_eq!(received(&near).0, b"last words");
        assert!(matches!(receive(&near, &mut [0; 8]), Ok(Received::End)));
        let error = send(&near, b"x", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_socket_is_no_reason_to_wait() {
        let (near, far) = message_pair().unwrap();
        let error = (0..100_000).find_map(|_| send(&near, &[7; 1000], &[]).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::WouldBlock);
        assert!(received(&far).2, "the buffer is smaller than the message");
    }
}
