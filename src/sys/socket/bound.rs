//! A socket that is bound: what it is, whether it is what a unit wants, and making it so.

use super::super::owner;
use super::node::adjust_node;
use super::{Address, FileId, Kind, Listen, addresses_of, capped};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use socket2::{SockRef, Socket, Type};
use std::fmt;
use std::io;
use std::mem::size_of_val;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// What a socket is, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its type; `None` for one that we do not know.
    pub kind: Option<Kind>,
    /// Whether it accepts connections.
    pub listening: bool,
    /// Its address.
    pub local: Local,
}

/// The address that a socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Local {
    Ip(SocketAddr),
    Path(PathBuf),
    Abstract(Vec<u8>),
    /// A unix socket without an address.
    Unnamed,
    /// Of a family that we do not know: its number.
    Other(i32),
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Local::Ip(address) => address.fmt(f),
            Local::Path(path) => path.display().fmt(f),
            Local::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
            Local::Unnamed => f.write_str("unnamed"),
            Local::Other(family) => write!(f, "family {family}"),
        }
    }
}

/// What `fd` is. Fails with ENOTSOCK if it is no socket, with EBADF if it is nothing.
pub fn describe(fd: BorrowedFd<'_>) -> io::Result<Description> {
    let socket = SockRef::from(&fd);
    let local = local_of(&socket)?;
    let kind = match socket.r#type()? {
        Type::STREAM => Some(Kind::Stream),
        Type::DGRAM => Some(Kind::Dgram),
        Type::SEQPACKET => Some(Kind::Seqpacket),
        _ => None,
    };
    Ok(Description {
        kind,
        listening: socket.is_listener()?,
        local,
    })
}

pub(super) fn local_of(socket: &Socket) -> io::Result<Local> {
    let local = socket.local_addr()?;
    Ok(match local.as_socket() {
        Some(address) => Local::Ip(address),
        None if !local.is_unix() => Local::Other(local.family().into()),
        None => match (local.as_pathname(), local.as_abstract_namespace()) {
            (Some(path), _) => Local::Path(path.into()),
            (None, Some(name)) => Local::Abstract(name.into()),
            (None, None) => Local::Unnamed,
        },
    })
}

/// Whether `fd` is a socket of this type and family, on whatever address.
pub fn is_alike(fd: BorrowedFd<'_>, listen: &Listen<'_>) -> bool {
    let is_family = |local: &Local| match listen.address {
        Address::Ip(_) | Address::Any { .. } | Address::Host(..) => matches!(local, Local::Ip(_)),
        Address::Path(_) | Address::Abstract(_) => {
            matches!(local, Local::Path(_) | Local::Abstract(_))
        }
    };
    describe(fd).is_ok_and(|found| found.kind == Some(listen.kind) && is_family(&found.local))
}

/// Whether `fd` is a socket of this type on this address: one that was inherited and may be taken instead of binding.
pub fn matches(fd: BorrowedFd<'_>, listen: &Listen<'_>) -> bool {
    let Ok(description) = describe(fd) else {
        return false;
    };
    if description.kind != Some(listen.kind) {
        return false;
    }
    if let Some(interface) = listen.interface
        && !SockRef::from(&fd)
            .device()
            .is_ok_and(|device| device.as_deref() == Some(interface.as_bytes()))
    {
        return false;
    }
    match (listen.address, &description.local) {
        (Address::Ip(wanted), Local::Ip(local)) => wanted == local,
        (Address::Any { port, family }, Local::Ip(local)) => {
            let fits = family.is_none_or(|family| family.has(*local));
            fits && local.ip().is_unspecified() && local.port() == *port
        }
        (Address::Host(name, port, family), Local::Ip(local)) => {
            *port == local.port() && addresses_of(listen, name, *port, *family).contains(local)
        }
        (Address::Path(wanted), Local::Path(local)) => wanted == local,
        (Address::Abstract(wanted), Local::Abstract(local)) => wanted == local,
        _ => false,
    }
}

/// Whether a socket on `local` keeps `listen` from its address, both being of one type.
pub fn is_in_the_way(local: SocketAddr, listen: &Listen<'_>) -> bool {
    let wanted = match listen.address {
        Address::Ip(address) => vec![*address],
        Address::Any { port, family } => {
            let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let all = all.map(|ip| SocketAddr::new(ip, *port)).into_iter();
            all.filter(|address| family.is_none_or(|family| family.has(*address)))
                .collect()
        }
        Address::Host(name, port, family) => addresses_of(listen, name, *port, *family),
        Address::Path(_) | Address::Abstract(_) => Vec::new(),
    };
    let mut wanted = wanted.into_iter();
    wanted.any(|wanted| owner::conflict(wanted, local).is_some())
}

/// Makes an inherited socket as [`listen`](super::listen) would have made it, as far as that can be changed: CLOEXEC, O_NONBLOCK (which
/// all who share the socket see), SO_REUSEPORT where others are to be bound beside it, and listening.
pub fn adopt(fd: BorrowedFd<'_>, listen: &Listen<'_>) -> io::Result<()> {
    let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD)?);
    fcntl(fd, FcntlArg::F_SETFD(flags | FdFlag::FD_CLOEXEC))?;
    let socket = SockRef::from(&fd);
    socket.set_nonblocking(!listen.blocking)?;
    if listen.reuseport {
        set_shareable(fd, true)?;
    }
    if listen.kind.has_connections() && !socket.is_listener()? {
        socket.listen(capped(listen.backlog))?;
    }
    Ok(())
}

/// Sets on a socket that is bound whatever can be set there: backlog, O_NONBLOCK, interface, owner and mode of its file,
/// which is `file` if we have made it. Whatever else stands at its path is left alone, and is an error.
pub fn adjust(fd: BorrowedFd<'_>, listen: &Listen<'_>, file: Option<FileId>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_nonblocking(!listen.blocking)?;
    let interface = listen.interface.map(str::as_bytes);
    // Needs a capability, which must not be asked for where there is nothing to change.
    if matches!(
        listen.address,
        Address::Ip(_) | Address::Any { .. } | Address::Host(..)
    ) && socket.device()?.as_deref() != interface
    {
        socket.bind_device(interface)?;
    }
    if listen.kind.has_connections() {
        socket.listen(capped(listen.backlog))?;
    }
    match listen.address {
        Address::Path(path) => adjust_node(path, listen, file),
        _ => Ok(()),
    }
}

/// Ends a listener at once, whoever else has a descriptor of it: what waits is reset, and nothing new comes. A datagram
/// socket has no such end but the close of its last descriptor.
pub fn stop_listening(fd: BorrowedFd<'_>) {
    // It fails for what does not listen, which is as well.
    let _ = SockRef::from(&fd).shutdown(std::net::Shutdown::Both);
}

/// Whether another socket may be bound beside this one on an address that they have in common: SO_REUSEPORT, which the
/// kernel looks at when the other is bound.
pub fn set_shareable(fd: BorrowedFd<'_>, shareable: bool) -> io::Result<()> {
    SockRef::from(&fd).set_reuse_port(shareable)
}

/// Whether somebody who shares a socket has shut it down, so that nobody can connect to it or send to it. A unix
/// socket still says of itself that it listens (SO_ACCEPTCONN), but hangs up.
pub fn is_shut(fd: BorrowedFd<'_>) -> bool {
    // One direction alone is told by POLLRDHUP, and is enough to refuse whoever connects.
    let mut polled = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one structure is given, and its number is 1.
    let found = unsafe { libc::poll(&raw mut polled, 1, 0) };
    found > 0 && polled.revents & (libc::POLLHUP | libc::POLLRDHUP) != 0
}

/// Listens again with an internet socket that was shut down. One whose port the kernel had chosen has lost it, and gets it
/// back if it is free. A unix socket can't: it stays shut.
pub fn listen_again(
    fd: BorrowedFd<'_>,
    listen: &Listen<'_>,
    address: SocketAddr,
) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    match socket.bind(&address.into()) {
        // It is bound still.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        result => result?,
    }
    socket.listen(capped(listen.backlog))
}

/// Sets how many clients may wait in the queue of a listener, whoever has set it before: at most the kernel's somaxconn.
pub fn set_backlog(fd: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    SockRef::from(&fd).listen(capped(backlog))
}

/// Lets everybody send to a datagram socket that somebody who shares it has connected to one peer: connect(2) to AF_UNSPEC.
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    if socket.peer_addr().is_err() {
        return Ok(());
    }
    let local = socket.local_addr()?;
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the address is of the length that is given.
    if unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // A port that the kernel had chosen is given up by that.
    match socket.local_addr()?.as_socket() == local.as_socket() {
        true => Ok(()),
        false => socket.bind(&local),
    }
}

/// Whether O_NONBLOCK is not set.
pub fn is_blocking(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(!flags.contains(OFlag::O_NONBLOCK))
}

/// Sets or clears O_NONBLOCK, which all who share the socket see. Says whether it was otherwise.
pub fn set_blocking(fd: BorrowedFd<'_>, blocking: bool) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let mut wanted = flags;
    wanted.set(OFlag::O_NONBLOCK, !blocking);
    if wanted != flags {
        fcntl(fd, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(wanted != flags)
}
