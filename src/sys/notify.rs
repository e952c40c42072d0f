//! The receiving end of sd_notify(3): datagrams with the credentials of their sender.

use super::check;
use super::process::Pid;
use super::receive;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest text of a message, as with systemd: a longer one is refused whole.
pub const LONGEST_TEXT: usize = 4096;

/// Asked of the kernel for the receive buffer, so that a burst of messages does not block their senders.
const BUFFER_BYTES: libc::c_int = 8 << 20;

/// A datagram socket with an abstract name that the kernel chose; its senders' credentials come with each message.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    name: String,
    text: Box<[u8; LONGEST_TEXT]>,
}

/// A message whose sender is known.
#[derive(Debug)]
pub struct Received {
    /// The process that sent it, or that it claims to be with CAP_SYS_ADMIN.
    pub sender: Pid,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What it said, at most [`LONGEST_TEXT`] bytes.
    pub text: Vec<u8>,
    /// The descriptors that came along, CLOEXEC.
    pub fds: Vec<OwnedFd>,
    /// The text was longer, or not every descriptor could be taken (EMFILE).
    pub truncated: bool,
}

/// What came in. Descriptors of a message that is dropped are closed.
#[derive(Debug)]
pub enum Message {
    /// A message whose sender is known.
    Received(Received),
    /// One without a sender that could be told: from outside of our pid namespace.
    Anonymous,
}

impl NotifySocket {
    /// Binds a socket to a free abstract name (unix(7), "Autobind").
    pub fn bind_autobind() -> io::Result<NotifySocket> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set_option(&fd, libc::SO_PASSCRED, 1)?;
        // Root may go beyond net.core.rmem_max; for others less has to do.
        if set_option(&fd, libc::SO_RCVBUFFORCE, BUFFER_BYTES).is_err() {
            let _ = set_option(&fd, libc::SO_RCVBUF, BUFFER_BYTES);
        }
        let family = libc::AF_UNIX as libc::sa_family_t;
        // SAFETY: an address of the family alone, as long as it says, asks for a name of the kernel's choice.
        check(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const family).cast(),
                size_of::<libc::sa_family_t>() as libc::socklen_t,
            )
        })?;
        NotifySocket::adopt(fd)
    }

    /// Goes on with a socket that another manager has bound in this way.
    pub fn adopt(fd: OwnedFd) -> io::Result<NotifySocket> {
        let address = nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(fd.as_raw_fd())?;
        let name = address
            .as_abstract()
            .and_then(|name| std::str::from_utf8(name).ok());
        // The kernel's names are five hexadecimal digits.
        let name = format!("@{}", name.ok_or(io::ErrorKind::InvalidData)?);
        Ok(NotifySocket {
            fd,
            name,
            text: Box::new([0; LONGEST_TEXT]),
        })
    }

    /// The value of NOTIFY_SOCKET.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next message; `None` when there is none. It stays the next one until [`NotifySocket::taken`], so that who dies
    /// over it leaves it to whoever holds the socket then. Its descriptors are copies.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        let flags = libc::MSG_TRUNC | libc::MSG_PEEK;
        let message = match receive::receive(self.fd.as_fd(), &mut *self.text, flags) {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((credentials, sender)) =
            (message.credentials).and_then(|who| Some((who, Pid::new(who.pid)?)))
        else {
            return Ok(Some(Message::Anonymous));
        };
        Ok(Some(Message::Received(Received {
            sender,
            uid: credentials.uid,
            gid: credentials.gid,
            text: self.text[..message.length.min(LONGEST_TEXT)].to_vec(),
            fds: message.fds,
            truncated: message.truncated,
        })))
    }
}

impl NotifySocket {
    /// Takes the next message off the queue, and closes the descriptors that came with it.
    pub fn taken(&mut self) -> io::Result<()> {
        loop {
            // SAFETY: nothing is written to the buffer, which has no length. Descriptors that nobody asks for are closed.
            let length =
                unsafe { libc::recv(self.fd.as_raw_fd(), self.text.as_mut_ptr().cast(), 0, 0) };
            if length >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(()),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_option(fd: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value outlives the call and is as long as it says.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::receive::MOST_FDS;
    use super::*;
    use crate::sys::process;
    use crate::sys::spawn::tests::{Program, eventually, wait_for_end};
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
    use std::fs::File;
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixDatagram;

    fn send(socket: &NotifySocket, text: &[u8], fds: &[RawFd]) {
        let address = UnixAddr::new_abstract(&socket.name().as_bytes()[1..]).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        sendmsg(
            sender.as_raw_fd(),
            &[IoSlice::new(text)],
            control,
            MsgFlags::empty(),
            Some(&address),
        )
        .unwrap();
    }

    fn receive(socket: &mut NotifySocket) -> Received {
        match socket.receive().unwrap() {
            Some(Message::Received(received)) => {
                socket.taken().unwrap();
                received
            }
            other => panic!("expected a message, not {other:?}"),
        }
    }

    #[test]
    fn a_message_is_there_until_it_is_taken() {
        let mut socket = NotifySocket::bind_autobind().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&socket, b"one", &[writer.as_raw_fd()]);
        send(&socket, b"two", &[]);
        drop(writer);
        for _ in 0..2 {
            match socket.receive().unwrap() {
                Some(Message::Received(received)) => {
                    assert_eq!((&received.text[..], received.fds.len()), (&b"one"[..], 1));
                }
                other => panic!("expected a message, not {other:?}"),
            }
        }
        socket.taken().unwrap();
        // Whoever waits for the descriptor to be closed does not wait any longer.
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
        assert_eq!(receive(&mut socket).text, b"two");
        socket.taken().unwrap();
    }

    #[test]
    fn a_message_comes_with_its_sender() {
        let mut socket = NotifySocket::bind_autobind().unwrap();
        assert!(socket.receive().unwrap().is_none());
        send(&socket, b"READY=1\n", &[]);
        send(&socket, b"", &[]);
        let received = receive(&mut socket);
        assert_eq!(received.text, b"READY=1\n");
        assert_eq!(received.sender, Pid::own());
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        assert_eq!((received.uid, received.gid), (uid.as_raw(), gid.as_raw()));
        assert!(!received.truncated && received.fds.is_empty());
        assert_eq!(receive(&mut socket).text, b"");
        assert!(socket.receive().unwrap().is_none());
    }

    #[test]
    fn the_sender_is_known_after_it_ended() {
        if !std::path::Path::new("/usr/bin/python3").exists() {
            eprintln!("skipped: needs /usr/bin/python3 to send a datagram");
            return;
        }
        let mut socket = NotifySocket::bind_autobind().unwrap();
        let script = "exec /usr/bin/python3 -c 'import os,socket; socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\
                      .sendto(b\"READY=1\",\"\\0\"+os.environ[\"NOTIFY_SOCKET\"][1:])'";
        let child = Program::shell(script)
            .env(&format!("NOTIFY_SOCKET={}", socket.name()))
            .spawn();
        wait_for_end(&child);
        process::reap(child.pid).unwrap();
        let received = receive(&mut socket);
        assert_eq!(
            (received.sender, &received.text[..]),
            (child.pid, &b"READY=1"[..])
        );
    }

    #[test]
    fn descriptors_come_along_and_are_not_inherited() {
        let mut socket = NotifySocket::bind_autobind().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        send(
            &socket,
            b"FDSTORE=1",
            &[reader.as_raw_fd(), reader.as_raw_fd()],
        );
        drop(reader);
        let mut received = receive(&mut socket);
        assert_eq!(received.fds.len(), 2);
        for fd in &received.fds {
            // SAFETY: F_GETFD takes no pointers.
            assert_eq!(
                unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) },
                libc::FD_CLOEXEC
            );
        }
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        File::from(received.fds.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_sends_are_taken() {
        let mut socket = NotifySocket::bind_autobind().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        send(&socket, b"FDSTORE=1", &vec![reader.as_raw_fd(); MOST_FDS]);
        drop(reader);
        let received = receive(&mut socket);
        assert_eq!(received.fds.len(), MOST_FDS);
        assert!(!received.truncated);
        drop(received);
        // Nobody reads any more: every copy was closed.
        let error = eventually(|| writer.write_all(b"x").err());
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_text_that_is_too_long_is_said_to_be() {
        let mut socket = NotifySocket::bind_autobind().unwrap();
        send(&socket, &[b'x'; LONGEST_TEXT], &[]);
        assert!(!receive(&mut socket).truncated);
        send(&socket, &[b'x'; LONGEST_TEXT + 1], &[]);
        let received = receive(&mut socket);
        assert!(received.truncated);
        assert_eq!(received.text.len(), LONGEST_TEXT);
    }

    #[test]
    fn every_socket_has_a_name_of_its_own() {
        let (one, other) = (
            NotifySocket::bind_autobind().unwrap(),
            NotifySocket::bind_autobind().unwrap(),
        );
        assert_ne!(one.name(), other.name());
        assert_eq!(one.name().len(), 6, "{}", one.name());
    }
}
