//! Listening sockets: binding them, taking inherited ones over, and why an address can't be had.
//!
//! A socket either comes back complete or leaves nothing behind: what was made on the way (a node in the file system,
//! its folders) is removed again when a later step fails. A unix socket's node is born with its final mode and gets its
//! owner before listen(2), so nobody gets in early.

use super::owner::{self, Owner};
use super::reason;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

mod bound;
mod node;
#[cfg(test)]
mod tests;

pub use bound::{
    Description, Local, adjust, adopt, describe, disconnect, is_alike, is_blocking, is_in_the_way,
    is_shut, listen_again, matches, set_backlog, set_blocking, set_shareable, stop_listening,
};
pub use node::set_access;

pub use super::filter::{let_in, turn_away};
pub use super::queue::{Queue, inode, queue, unix_queues};
pub use super::reuseport::{choose_all, choose_among};
use bound::local_of;
use node::bind_path;

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A numeric address. `[::]` takes IPv4 as well.
    Ip(SocketAddr),
    /// All addresses: of both families by one socket, of IPv4 alone where the kernel has no IPv6.
    Any {
        /// 0 asks for a free one.
        port: u16,
        /// Only this family; IPv6 takes IPv4 as well, as `[::]` does.
        family: Option<IpFamily>,
    },
    /// A name and port, looked up [beforehand](Listen::found); the first usable address is taken.
    Host(String, u16, Option<IpFamily>),
    /// A path of at most 107 bytes.
    Path(PathBuf),
    /// An abstract unix name of at most 107 bytes, without the leading `@`.
    Abstract(Vec<u8>),
}

/// A family of internet addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    fn has(self, address: SocketAddr) -> bool {
        match self {
            IpFamily::V4 => address.is_ipv4(),
            IpFamily::V6 => address.is_ipv6(),
        }
    }
}

/// Type of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Stream,
    Dgram,
    Seqpacket,
}

impl Kind {
    fn as_type(self) -> Type {
        match self {
            Kind::Stream => Type::STREAM,
            Kind::Dgram => Type::DGRAM,
            Kind::Seqpacket => Type::SEQPACKET,
        }
    }

    /// Whether connections come to it, to be accepted.
    fn has_connections(self) -> bool {
        match self {
            Kind::Stream | Kind::Seqpacket => true,
            Kind::Dgram => false,
        }
    }
}

/// A socket to bind.
#[derive(Clone, Copy, Debug)]
pub struct Listen<'a> {
    /// Where.
    pub address: &'a Address,
    /// Of which type.
    pub kind: Kind,
    /// Longest queue of connections that nobody has accepted; the kernel caps it at net.core.somaxconn.
    pub backlog: u32,
    /// SO_BINDTODEVICE; not for unix sockets.
    pub interface: Option<&'a str>,
    /// SO_REUSEPORT; not for unix sockets.
    pub reuseport: bool,
    /// False sets O_NONBLOCK.
    pub blocking: bool,
    /// What a unix socket's mode lacks of 0666 where `mode` is not given.
    pub umask: Option<u32>,
    /// Mode of a unix socket's node, whatever the umask.
    pub mode: Option<u32>,
    /// Owner of a unix socket's node.
    pub uid: Option<u32>,
    /// Group of a unix socket's node.
    pub gid: Option<u32>,
    /// Mode of the folders that are made above a unix socket, whatever the umask.
    pub directory_mode: u32,
    /// Replace a unix socket's node that nobody listens on any more.
    pub replace: bool,
    /// The files of sockets that are this program's own: those are not asked who has them.
    pub own: &'a [FileId],
    /// The addresses of an [`Address::Host`], unless [`without_lookup`] knows them; their ports do not count.
    pub found: &'a [SocketAddr],
}

impl<'a> Listen<'a> {
    /// A socket with a unit's defaults.
    pub fn new(address: &'a Address, kind: Kind) -> Self {
        Listen {
            address,
            kind,
            backlog: 4096,
            interface: None,
            reuseport: false,
            blocking: true,
            umask: None,
            mode: None,
            uid: None,
            gid: None,
            directory_mode: 0o755,
            replace: true,
            own: &[],
            found: &[],
        }
    }
}

/// A file, whatever its path: device and inode.
pub type FileId = (u64, u64);

/// A bound socket; it listens, if it is of a type that does.
#[derive(Debug)]
pub struct Bound {
    /// The socket, CLOEXEC.
    pub fd: OwnedFd,
    /// Its address, with the real port. As text: `127.0.0.1:8000`, `[::]:80`, `/run/x.sock`, `@name`.
    pub local: Local,
}

/// Why an address can't be had, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindError {
    /// The address that was asked for.
    pub address: String,
    /// What is in the way.
    pub cause: Cause,
}

/// What is in the way of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Another socket; its owner, where that could be seen.
    InUse(Option<Owner>),
    /// One of [`Listen::own`].
    Own(FileId),
    /// A unix socket's node that nobody listens on, and `replace` is off.
    Stale,
    /// Something in the file system that is no socket: what it is.
    Occupied(&'static str),
    /// The port is root's.
    Privileged,
    /// No interface has this address, now.
    NoSuchAddress,
    /// No interface has this name, now.
    NoSuchInterface(String),
    /// The kernel has no such family.
    NoSuchFamily,
    /// A name has no address, and what the resolver said.
    Lookup(String),
    /// A unix address is longer than the kernel allows; its length in bytes.
    TooLong(usize),
    /// A step failed for another reason: which, and errno.
    Step(&'static str, i32),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = &self.address;
        match &self.cause {
            Cause::InUse(Some(owner)) => write!(f, "{address} is in use by {owner}"),
            Cause::InUse(None) => {
                write!(
                    f,
                    "{address} is in use by a process that can't be seen from here"
                )
            }
            Cause::Own(_) => write!(f, "{address} is in use by this process itself"),
            Cause::Stale => write!(
                f,
                "{address} is a socket that nobody listens on any more; remove it, or set `replace = true`"
            ),
            Cause::Occupied(what) => {
                write!(f, "{address} is {what}, not a socket; it is left alone")
            }
            Cause::Privileged => write!(
                f,
                "{address} is refused: low ports are root's; run as root, give the program CAP_NET_BIND_SERVICE, or \
                 lower net.ipv4.ip_unprivileged_port_start"
            ),
            Cause::NoSuchAddress => write!(
                f,
                "{address} can't be bound: no interface has this address (yet); with `optional = true` it is tried again"
            ),
            Cause::NoSuchInterface(interface) => write!(
                f,
                "{address} can't be bound: there is no interface `{interface}` (yet); with `optional = true` it is \
                 tried again"
            ),
            Cause::NoSuchFamily => {
                write!(
                    f,
                    "{address} can't be bound: the kernel has no such address family or socket type"
                )
            }
            Cause::Lookup(reason) => write!(f, "{address} can't be looked up: {reason}"),
            Cause::TooLong(length) => write!(
                f,
                "{address} is {length} bytes long; a unix socket's address has 1 to {LONGEST_UNIX}"
            ),
            Cause::Step(step, errno) => {
                write!(f, "{address} can't be bound: {step}: {}", reason(*errno))
            }
        }
    }
}

impl std::error::Error for BindError {}

/// `sun_path` has 108 bytes; one is the NUL at its end, or at the start of an abstract name.
const LONGEST_UNIX: usize = 107;

/// Binds a socket and listens on it.
pub fn listen(listen: &Listen<'_>) -> Result<Bound, BindError> {
    let bound = match listen.address {
        Address::Ip(address) => bind_ip(listen, *address),
        Address::Any { port, family } => bind_any(listen, *port, *family),
        Address::Host(name, port, family) => bind_host(listen, name, *port, *family),
        Address::Path(path) => bind_path(listen, path),
        Address::Abstract(name) => bind_abstract(listen, name),
    };
    let bound = bound.and_then(|socket| {
        let local = match listen.address {
            // Nothing to ask the kernel for: a start with a thousand sockets notices.
            Address::Ip(address) if address.port() != 0 => Local::Ip(*address),
            Address::Path(path) => Local::Path(path.clone()),
            Address::Abstract(name) => Local::Abstract(name.clone()),
            Address::Ip(_) | Address::Any { .. } | Address::Host(..) => {
                local_of(&socket).map_err(step("getsockname"))?
            }
        };
        let fd = socket.into();
        Ok(Bound { fd, local })
    });
    bound.map_err(|cause| BindError {
        address: listen.address.to_string(),
        cause,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Any { port, family: None } => write!(f, "*:{port}"),
            Address::Any {
                port,
                family: Some(IpFamily::V4),
            } => write!(f, "0.0.0.0:{port}"),
            Address::Any {
                port,
                family: Some(IpFamily::V6),
            } => write!(f, "[::]:{port}"),
            Address::Host(name, port, _) => write!(f, "{name}:{port}"),
            Address::Path(path) => path.display().fmt(f),
            Address::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

/// A failed step as its cause.
fn step(step: &'static str) -> impl Fn(io::Error) -> Cause {
    move |error| Cause::Step(step, error.raw_os_error().unwrap_or(libc::EINVAL))
}

fn open_socket(domain: Domain, listen: &Listen<'_>) -> Result<Socket, Cause> {
    let kind = listen.kind.as_type().cloexec();
    let kind = if listen.blocking {
        kind
    } else {
        kind.nonblocking()
    };
    Socket::new_raw(domain, kind, None).map_err(|error| match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::ESOCKTNOSUPPORT | libc::EPROTONOSUPPORT) => {
            Cause::NoSuchFamily
        }
        _ => step("socket")(error),
    })
}

/// A backlog as the kernel takes it, which caps it anyway.
fn capped(backlog: u32) -> i32 {
    i32::try_from(backlog).unwrap_or(i32::MAX)
}

fn bind_any(listen: &Listen<'_>, port: u16, family: Option<IpFamily>) -> Result<Socket, Cause> {
    let all_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match family {
        Some(IpFamily::V4) => bind_ip(listen, all_v4),
        Some(IpFamily::V6) => bind_ip(listen, all),
        None => match bind_ip(listen, all) {
            // No IPv6 in the kernel; or it is switched off (ipv6.disable_ipv6).
            Err(Cause::NoSuchFamily | Cause::NoSuchAddress) => bind_ip(listen, all_v4),
            result => result,
        },
    }
}

fn bind_host(
    listen: &Listen<'_>,
    name: &str,
    port: u16,
    family: Option<IpFamily>,
) -> Result<Socket, Cause> {
    let mut first = None;
    for address in addresses_of(listen, name, port, family) {
        match bind_ip(listen, address) {
            Ok(socket) => return Ok(socket),
            Err(cause) => first = first.or(Some(cause)),
        }
    }
    Err(first.unwrap_or_else(|| Cause::Lookup("it has no address of the family asked for".into())))
}

/// The addresses of a name, in the order in which they are to be tried.
fn addresses_of(
    listen: &Listen<'_>,
    name: &str,
    port: u16,
    family: Option<IpFamily>,
) -> Vec<SocketAddr> {
    let known = without_lookup(name, family);
    let found = known.as_deref().unwrap_or(listen.found).iter().copied();
    let mut found: Vec<SocketAddr> = found
        .filter(|address| family.is_none_or(|family| family.has(*address)))
        .collect();
    for address in &mut found {
        address.set_port(port);
    }
    found
}

/// The addresses of a name that need not be asked for.
pub fn without_lookup(name: &str, family: Option<IpFamily>) -> Option<Vec<SocketAddr>> {
    // RFC 6761, 6.3: always the loopback address; a chroot or container may lack /etc/hosts.
    let ip = if name.eq_ignore_ascii_case("localhost") {
        match family {
            None | Some(IpFamily::V4) => Ipv4Addr::LOCALHOST.into(),
            Some(IpFamily::V6) => Ipv6Addr::LOCALHOST.into(),
        }
    } else {
        name.parse::<IpAddr>().ok()?
    };
    Some(vec![SocketAddr::new(ip, 0)])
}

fn bind_ip(listen: &Listen<'_>, address: SocketAddr) -> Result<Socket, Cause> {
    let socket = open_socket(Domain::for_address(address), listen)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Explicit, since net.ipv6.bindv6only may be set.
        socket.set_only_v6(false).map_err(step("IPV6_V6ONLY"))?;
    }
    if listen.kind.has_connections() {
        // Or the connections of a former run would keep the port for minutes. Among datagram sockets it would let two
        // programs bind one port.
        socket
            .set_reuse_address(true)
            .map_err(step("SO_REUSEADDR"))?;
    }
    if listen.reuseport {
        socket.set_reuse_port(true).map_err(step("SO_REUSEPORT"))?;
    }
    if let Some(interface) = listen.interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|error| match error.raw_os_error() {
                // A name of 16 bytes and more is invalid.
                Some(libc::ENODEV | libc::EINVAL) => Cause::NoSuchInterface(interface.into()),
                _ => step("SO_BINDTODEVICE")(error),
            })?;
    }
    let explain = |name| {
        move |error: io::Error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                Cause::InUse(owner::of_port(address, listen.kind.has_connections()))
            }
            Some(libc::EADDRNOTAVAIL) => Cause::NoSuchAddress,
            Some(libc::EACCES) if address.port() < first_free_port() => Cause::Privileged,
            _ => step(name)(error),
        }
    };
    socket.bind(&address.into()).map_err(explain("bind"))?;
    if listen.kind.has_connections() {
        // With SO_REUSEADDR a second listener is noticed only here.
        socket
            .listen(capped(listen.backlog))
            .map_err(explain("listen"))?;
    }
    Ok(socket)
}

/// The lowest port that needs no privilege.
fn first_free_port() -> u16 {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    setting
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

fn bind_abstract(listen: &Listen<'_>, name: &[u8]) -> Result<Socket, Cause> {
    if name.is_empty() || name.len() > LONGEST_UNIX {
        return Err(Cause::TooLong(name.len()));
    }
    let with_nul = [b"\0", name].concat();
    let address =
        SockAddr::unix(std::ffi::OsStr::from_bytes(&with_nul)).map_err(step("address"))?;
    let socket = open_socket(Domain::UNIX, listen)?;
    socket
        .bind(&address)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => Cause::InUse(owner::of_unix(&[b"@", name].concat())),
            _ => step("bind")(error),
        })?;
    if listen.kind.has_connections() {
        socket
            .listen(capped(listen.backlog))
            .map_err(step("listen"))?;
    }
    Ok(socket)
}
