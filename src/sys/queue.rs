//! How much waits in a socket that nobody has taken yet.

use std::collections::HashMap;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What waits in a socket, and how much it holds: connections of a listener, bytes of a datagram socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Not accepted, or not received, yet.
    pub waiting: u64,
    /// When that many wait, the kernel turns away what comes further.
    pub limit: u64,
}

/// What waits in `fd`.
///
/// - a TCP listener: connections that were not accepted (TCP_INFO);
/// - a unix listener: the same, by sock_diag(7); for many at once see [`unix_queues`];
/// - a datagram socket: bytes, with the kernel's overhead (SO_MEMINFO); of a unix one only the size of the first
///   datagram, since those that wait are on their senders' account.
///
/// Fails with EINVAL for a stream socket that does not listen, with EOPNOTSUPP for what else there is.
pub fn queue(fd: BorrowedFd<'_>) -> io::Result<Queue> {
    let (domain, kind): (libc::c_int, libc::c_int) = (
        option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?,
        option(fd, libc::SOL_SOCKET, libc::SO_TYPE)?,
    );
    match (domain, kind) {
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => tcp_queue(fd),
        (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_SEQPACKET) => {
            let inode = inode(fd)?;
            let diagnosis = Diagnosis::open()?;
            diagnosis.ask(u32::try_from(inode).unwrap_or(u32::MAX), false)?;
            diagnosis
                .answers(false)?
                .remove(&inode)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
        }
        (libc::AF_UNIX, libc::SOCK_DGRAM) => {
            let mut bytes: libc::c_int = 0;
            // SAFETY: FIONREAD writes an int.
            if unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } < 0 {
                return Err(io::Error::last_os_error());
            }
            let limit: libc::c_int = option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)?;
            Ok(Queue {
                waiting: u64::try_from(bytes).unwrap_or(0),
                limit: u64::try_from(limit).unwrap_or(0),
            })
        }
        (_, libc::SOCK_DGRAM) => {
            let memory: [u32; 2] = option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
            let [waiting, limit] = memory.map(u64::from);
            Ok(Queue { waiting, limit })
        }
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// In the queue of a listener the kernel counts connections under the names of segments (tcp_get_info).
fn tcp_queue(fd: BorrowedFd<'_>) -> io::Result<Queue> {
    const TCP_LISTEN: u8 = 10;
    // State and options, then u32s of which the fifth and sixth are tcpi_unacked and tcpi_sacked: the beginning of
    // `struct tcp_info`, which never changes.
    let info: [u32; 8] = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let [state, ..] = info[0].to_ne_bytes();
    if state != TCP_LISTEN {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(Queue {
        waiting: info[6].into(),
        limit: info[7].into(),
    })
}

/// The inode of a socket, by which [`unix_queues`] names it.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// The queues of all unix listeners of this network namespace, by inode: one question for all of them.
pub fn unix_queues() -> io::Result<HashMap<u64, Queue>> {
    let diagnosis = Diagnosis::open()?;
    diagnosis.ask(0, true)?;
    diagnosis.answers(true)
}

/// A netlink socket of the sock_diag(7) kind.
struct Diagnosis(OwnedFd);

// <linux/sock_diag.h> and <linux/unix_diag.h>
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_RQLEN: u16 = 4;
const TCP_LISTEN: u8 = 10;
/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
/// `struct unix_diag_msg`: family, type, state, padding, inode, cookie.
const UNIX_BYTES: usize = 16;

impl Diagnosis {
    fn open() -> io::Result<Diagnosis> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(Diagnosis(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks for the listener of this inode, or for all.
    fn ask(&self, inode: u32, all: bool) -> io::Result<()> {
        let mut question = Vec::with_capacity(40);
        let flags = libc::NLM_F_REQUEST | if all { libc::NLM_F_DUMP } else { 0 };
        question.extend(40u32.to_ne_bytes());
        question.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        question.extend((flags as u16).to_ne_bytes());
        question.extend([0; 8]);
        // `struct unix_diag_req`: family, protocol, padding, states, inode, what to show, cookie (any).
        question.extend([libc::AF_UNIX as u8, 0, 0, 0]);
        question.extend((1u32 << TCP_LISTEN).to_ne_bytes());
        question.extend(inode.to_ne_bytes());
        question.extend(UDIAG_SHOW_RQLEN.to_ne_bytes());
        question.extend([0xff; 8]);
        // SAFETY: the buffer is as long as it says.
        let sent = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                question.as_ptr().cast(),
                question.len(),
                0,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The answers to one question. The kernel answers before `send` returns, so this does not block.
    fn answers(&self, all: bool) -> io::Result<HashMap<u64, Queue>> {
        let mut queues = HashMap::new();
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            // SAFETY: the buffer is as long as it says.
            let count = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(count) = usize::try_from(count) else {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                }
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if read_answers(&buffer[..count], &mut queues)? || !all {
                return Ok(queues);
            }
        }
    }
}

/// Takes the queues out of one batch of answers; true when it was the last.
fn read_answers(mut batch: &[u8], queues: &mut HashMap<u64, Queue>) -> io::Result<bool> {
    while let Some(length) = u32_at(batch, 0) {
        let Some(message) = batch
            .get(..length as usize)
            .filter(|message| message.len() >= HEADER_BYTES)
        else {
            break;
        };
        let kind = i32::from(u16_at(message, 4).unwrap_or_default());
        let body = &message[HEADER_BYTES..];
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let errno = u32_at(body, 0).unwrap_or_default() as i32;
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            kind if kind == i32::from(SOCK_DIAG_BY_FAMILY) => {
                let is_listening = body.get(2) == Some(&TCP_LISTEN);
                if let (true, Some(inode), Some(queue)) =
                    (is_listening, u32_at(body, 4), queue_attribute(body))
                {
                    queues.insert(inode.into(), queue);
                }
            }
            _ => {}
        }
        batch = batch
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

/// The attribute that holds the queue: of a listener, the connections that wait and the backlog.
fn queue_attribute(body: &[u8]) -> Option<Queue> {
    let mut attributes = body.get(UNIX_BYTES..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let attribute = attributes
            .get(..length)
            .filter(|attribute| attribute.len() >= 4)?;
        if u16_at(attribute, 2)? == UNIX_DIAG_RQLEN {
            return Some(Queue {
                waiting: u32_at(attribute, 4)?.into(),
                limit: u32_at(attribute, 8)?.into(),
            });
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

/// Values of socket options that may hold any bits.
trait Plain: Copy {}
impl Plain for libc::c_int {}
impl<const N: usize> Plain for [u32; N] {}

/// A socket option, whose kernel value may be longer than what is wanted of it.
fn option<T: Plain>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has room for the length that is given.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < size_of::<T>() {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    // SAFETY: zeroed, then filled; every bit pattern of a `Plain` is valid.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, SockAddr, Socket, Type};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn connections_that_wait_on_a_tcp_listener_are_counted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = Socket::new(
                Domain::for_address(address.parse().unwrap()),
                Type::STREAM,
                None,
            )
            .unwrap();
            let address: std::net::SocketAddr = address.parse().unwrap();
            if let Err(error) = socket.bind(&address.into()) {
                eprintln!("skipped {address}: {error}");
                continue;
            }
            socket.listen(7).unwrap();
            let listener = TcpListener::from(socket);
            assert_eq!(
                queue(listener.as_fd()).unwrap(),
                Queue {
                    waiting: 0,
                    limit: 7
                }
            );
            let address = listener.local_addr().unwrap();
            let _clients: Vec<_> = (0..3)
                .map(|_| TcpStream::connect(address).unwrap())
                .collect();
            assert_eq!(
                queue(listener.as_fd()).unwrap(),
                Queue {
                    waiting: 3,
                    limit: 7
                }
            );
            listener.accept().unwrap();
            assert_eq!(
                queue(listener.as_fd()).unwrap(),
                Queue {
                    waiting: 2,
                    limit: 7
                }
            );
        }
    }

    #[test]
    fn connections_that_wait_on_unix_listeners_are_counted_one_by_one_and_all_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [Type::STREAM, Type::SEQPACKET] {
            let path = SockAddr::unix(folder.path().join(format!("{kind:?}"))).unwrap();
            let listener = Socket::new(Domain::UNIX, kind, None).unwrap();
            listener.bind(&path).unwrap();
            listener.listen(5).unwrap();
            let clients: Vec<Socket> = (0..2)
                .map(|_| Socket::new(Domain::UNIX, kind, None).unwrap())
                .collect();
            for client in &clients {
                client.connect(&path).unwrap();
            }
            let expected = Queue {
                waiting: 2,
                limit: 5,
            };
            assert_eq!(queue(listener.as_fd()).unwrap(), expected);
            let inode = inode(listener.as_fd()).unwrap();
            assert_eq!(unix_queues().unwrap().get(&inode), Some(&expected));
        }
    }

    #[test]
    fn more_unix_listeners_than_fit_one_answer_are_all_found() {
        let listeners: Vec<Socket> = (0..700)
            .map(|index| {
                let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
                let name = format!("\0tentpole-queue-{}-{index}", std::process::id());
                listener.bind(&SockAddr::unix(name).unwrap()).unwrap();
                listener.listen(1).unwrap();
                listener
            })
            .collect();
        let queues = unix_queues().unwrap();
        for listener in &listeners {
            assert!(queues.contains_key(&inode(listener.as_fd()).unwrap()));
        }
    }

    #[test]
    fn datagrams_that_wait_are_seen() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = queue(udp.as_fd()).unwrap();
        assert!(before.waiting == 0 && before.limit > 0);
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(&[1; 100], udp.local_addr().unwrap())
            .unwrap();
        assert!(queue(udp.as_fd()).unwrap().waiting >= 100);

        let (near, far) = UnixDatagram::pair().unwrap();
        assert_eq!(queue(near.as_fd()).unwrap().waiting, 0);
        far.send(&[1; 100]).unwrap();
        assert_eq!(queue(near.as_fd()).unwrap().waiting, 100);
    }

    #[test]
    fn what_has_no_queue_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(
            queue(stream.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(queue(near.as_fd()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            queue(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
    }

    proptest! {
        #[test]
        fn garbage_for_an_answer_is_survived(batch in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_answers(&batch, &mut HashMap::new());
        }

        #[test]
        fn lying_lengths_are_survived(length in any::<u32>(), attribute in any::<u16>(), rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut batch = length.to_ne_bytes().to_vec();
            batch.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            batch.extend([0; 10]);
            batch.extend([1, 1, TCP_LISTEN, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            batch.extend(attribute.to_ne_bytes());
            batch.extend(rest);
            let _ = read_answers(&batch, &mut HashMap::new());
        }
    }
}
