//! Listening sockets: binding them, taking inherited ones over, and why an address can't be had.
//!
//! A socket either comes back complete or leaves nothing behind: what was made on the way (a node in the file system,
//! its folders) is removed again when a later step fails. A unix socket's node is born with its final mode and gets its
//! owner before listen(2), so nobody gets in early.

use super::owner::{self, Owner};
use super::process::{is_zombie, name_of};
use super::{reason, unix};
use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, umask};
use nix::unistd::{fchownat, getegid, geteuid};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use super::filter::{let_in, turn_away};
pub use super::queue::{Queue, inode, queue, unix_queues};
pub use super::reuseport::{choose_all, choose_among};

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

/// The backlog as the kernel takes it, which caps it anyway.
fn backlog(listen: &Listen<'_>) -> i32 {
    i32::try_from(listen.backlog).unwrap_or(i32::MAX)
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
        socket.listen(backlog(listen)).map_err(explain("listen"))?;
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
        socket.listen(backlog(listen)).map_err(step("listen"))?;
    }
    Ok(socket)
}

fn bind_path(listen: &Listen<'_>, path: &Path) -> Result<Socket, Cause> {
    let length = path.as_os_str().len();
    if length == 0 || length > LONGEST_UNIX {
        return Err(Cause::TooLong(length));
    }
    let address = SockAddr::unix(path).map_err(step("address"))?;
    let socket = open_socket(Domain::UNIX, listen)?;
    let folders = make_folders(path, listen.directory_mode)?;
    let result = bind_node(listen, &socket, &address, path).and_then(|()| {
        let result = finish_node(listen, &socket, path);
        if result.is_err() {
            // Ours since the bind; without it the address would look like a stale one.
            let _ = fs::remove_file(path);
        }
        result
    });
    if result.is_err() {
        for folder in folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
    result.map(|()| socket)
}

/// Makes the folders above `path` that are missing; returns those that it made, outermost first.
fn make_folders(path: &Path, mode: u32) -> Result<Vec<PathBuf>, Cause> {
    let mut missing = Vec::new();
    for folder in path.ancestors().skip(1) {
        if folder.as_os_str().is_empty() || folder.exists() {
            break;
        }
        missing.push(folder.to_path_buf());
    }
    let mut made = Vec::new();
    for folder in missing.into_iter().rev() {
        // Never wider than asked, and then exactly as asked, whatever the umask.
        let result = DirBuilder::new()
            .mode(mode & 0o7777)
            .create(&folder)
            .and_then(|()| {
                made.push(folder.clone());
                fs::set_permissions(&folder, Permissions::from_mode(mode & 0o7777))
            });
        match result {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                for folder in made.iter().rev() {
                    let _ = fs::remove_dir(folder);
                }
                return Err(step("mkdir")(error));
            }
            _ => {}
        }
    }
    Ok(made)
}

/// Binds, and clears a stale node out of the way.
fn bind_node(
    listen: &Listen<'_>,
    socket: &Socket,
    address: &SockAddr,
    path: &Path,
) -> Result<(), Cause> {
    let mode = listen.mode.unwrap_or(0o666 & !listen.umask.unwrap_or(0)) & 0o777;
    // The node takes the mode of the socket's own inode, less the umask.
    let has_mode = fchmod(socket, Mode::from_bits_truncate(mode)).is_ok();
    // Somebody may put another node there between our removal and our bind, but not for ever.
    for _ in 0..3 {
        let own = umask(Mode::from_bits_truncate(if has_mode {
            0
        } else {
            !mode & 0o777
        }));
        let result = socket.bind(address);
        umask(own);
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                make_room(listen, address, path)?;
            }
            Err(error) => return Err(step("bind")(error)),
        }
    }
    Err(Cause::InUse(owner::of_unix(path.as_os_str().as_bytes())))
}

/// Removes the node at `path` if it is a socket that nobody listens on and that may be replaced.
fn make_room(listen: &Listen<'_>, address: &SockAddr, path: &Path) -> Result<(), Cause> {
    let look = || fs::symlink_metadata(path);
    let found = match look() {
        Ok(found) => found,
        // It has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(step("stat")(error)),
    };
    let kind = found.file_type();
    if !kind.is_socket() {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_symlink() => "a symbolic link",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_char_device() || kind.is_block_device() => "a device",
            () => "a file",
        };
        return Err(Cause::Occupied(what));
    }
    let id = (found.dev(), found.ino());
    if listen.own.contains(&id) {
        return Err(Cause::Own(id));
    }
    match probe(listen, address, path)? {
        Probe::Live(owner) => Err(Cause::InUse(owner)),
        Probe::Gone => Ok(()),
        Probe::Stale if !listen.replace => Err(Cause::Stale),
        Probe::Stale => {
            let still = look().is_ok_and(|now| (now.dev(), now.ino()) == id);
            if still {
                fs::remove_file(path).map_err(step("unlink"))
            } else {
                Ok(())
            }
        }
    }
}

enum Probe {
    Live(Option<Owner>),
    Stale,
    Gone,
}

/// Connects to a unix socket to learn whether somebody has it. Never blocks; the connection is closed at once.
fn probe(listen: &Listen<'_>, address: &SockAddr, path: &Path) -> Result<Probe, Cause> {
    let socket = open_socket(
        Domain::UNIX,
        &Listen {
            blocking: false,
            ..*listen
        },
    )?;
    let peer = match socket.connect(address) {
        // The credentials are those of the process that called listen(2), which may have handed the socket on and ended.
        Ok(()) => unix::peer(&socket)
            .ok()
            .and_then(|peer| peer.pid)
            .filter(|pid| name_of(*pid).is_some() && !is_zombie(*pid)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => return Ok(Probe::Stale),
            Some(libc::ENOENT) => return Ok(Probe::Gone),
            // Its queue is full; it is of another type; it is a datagram socket that speaks with one other alone.
            Some(libc::EAGAIN | libc::EPROTOTYPE | libc::EPERM) => None,
            _ => return Err(step("connect, to see whether it is in use")(error)),
        },
    };
    let owner = peer
        .filter(|_| listen.kind.has_connections())
        .map(Owner::of);
    Ok(Probe::Live(
        owner.or_else(|| owner::of_unix(path.as_os_str().as_bytes())),
    ))
}

/// Gives the node its owner, then lets connections in.
fn finish_node(listen: &Listen<'_>, socket: &Socket, path: &Path) -> Result<(), Cause> {
    if listen.uid.is_some() || listen.gid.is_some() {
        chown_node(path, listen.uid, listen.gid).map_err(step("chown"))?;
    }
    if listen.kind.has_connections() {
        socket.listen(backlog(listen)).map_err(step("listen"))?;
    }
    Ok(())
}

/// Changes the owner of a socket's node, and of nothing that somebody may have put in its place.
fn chown_node(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (node, found) = open_node(path)?;
    check_is_socket(&found)?;
    chown_opened(&node, uid, gid)
}

/// What stands at a path, to be changed and not to be used.
fn open_node(path: &Path) -> io::Result<(OwnedFd, FileStat)> {
    let node = open(
        path,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let found = fstat(&node)?;
    Ok((node, found))
}

fn check_is_socket(found: &FileStat) -> io::Result<()> {
    match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOTSOCK)),
    }
}

fn chown_opened(node: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    Ok(fchownat(
        node,
        "",
        uid.map(Into::into),
        gid.map(Into::into),
        AtFlags::AT_EMPTY_PATH,
    )?)
}

/// Sets the mode of a socket's node, and its owner and group where they are given. If it is known which `file` it is, nothing
/// else is changed that somebody may have put in its place: then the answer is false.
pub fn set_access(
    path: &Path,
    file: Option<FileId>,
    (uid, gid): (Option<u32>, Option<u32>),
    mode: u32,
) -> io::Result<bool> {
    let (node, found) = open_node(path)?;
    if file.is_some_and(|file| file != (found.st_dev, found.st_ino)) {
        return Ok(false);
    }
    check_is_socket(&found)?;
    let is = |wanted: Option<u32>, found: u32| wanted.is_none_or(|wanted| wanted == found);
    if !is(uid, found.st_uid) || !is(gid, found.st_gid) {
        let result = chown_opened(&node, uid, gid);
        result.map_err(|error| told(path, "be given its owner", &error))?;
    }
    let mode = Permissions::from_mode(mode);
    // chmod(2) takes no such descriptor, and the path may lead to another file by now.
    match fs::set_permissions(format!("/proc/self/fd/{}", node.as_raw_fd()), mode.clone()) {
        // There is no /proc.
        Err(error) if error.kind() == ErrorKind::NotFound => fs::set_permissions(path, mode),
        result => result,
    }
    .map_err(|error| told(path, "be given its mode", &error))?;
    Ok(true)
}

/// The same error, which says what of a file could not be done.
fn told(path: &Path, what: &str, error: &io::Error) -> io::Error {
    let number = error.raw_os_error().unwrap_or(libc::EINVAL);
    let reason = nix::errno::Errno::from_raw(number).desc();
    let text = format!("{} can't {what}: {reason}", path.display());
    io::Error::new(error.kind(), text)
}

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

fn local_of(socket: &Socket) -> io::Result<Local> {
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

/// Makes an inherited socket as [`listen`] would have made it, as far as that can be changed: CLOEXEC, O_NONBLOCK (which
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
        socket.listen(backlog(listen))?;
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
        socket.listen(backlog(listen))?;
    }
    match listen.address {
        Address::Path(path) => adjust_node(path, listen, file),
        _ => Ok(()),
    }
}

/// Gives the file of a unix socket the owner and the mode that a new one would have; one that we have not made keeps its
/// owner where none is asked for.
fn adjust_node(path: &Path, listen: &Listen<'_>, file: Option<FileId>) -> io::Result<()> {
    let (mut uid, mut gid) = (listen.uid, listen.gid);
    if file.is_some() {
        uid = uid.or_else(|| Some(geteuid().as_raw()));
        gid = gid.or_else(|| group_of_new_files(path));
    }
    let mode = listen.mode.unwrap_or(0o666 & !listen.umask.unwrap_or(0)) & 0o777;
    match set_access(path, file, (uid, gid), mode)? {
        true => Ok(()),
        false => Err(io::Error::other(
            "somebody has put another file in its place",
        )),
    }
}

/// The group of what this process makes in the folder of `path`.
fn group_of_new_files(path: &Path) -> Option<u32> {
    let folder = path.parent()?.metadata().ok()?;
    let is_inherited = folder.mode() & libc::S_ISGID != 0;
    Some(if is_inherited {
        folder.gid()
    } else {
        getegid().as_raw()
    })
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

/// Whether somebody who shares a listener has shut it down, in both directions, so that nobody can connect to it. A unix
/// socket still says of itself that it listens (SO_ACCEPTCONN), but hangs up.
pub fn is_shut(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && (fds[0].revents()).is_some_and(|found| found.contains(PollFlags::POLLHUP))
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
    socket.listen(backlog(listen))
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

#[cfg(test)]
mod tests {
    use super::super::process::Pid;
    use super::super::spawn::tests::eventually;
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    fn stream(address: &Address) -> Listen<'_> {
        Listen::new(address, Kind::Stream)
    }

    fn dgram(address: &Address) -> Listen<'_> {
        Listen::new(address, Kind::Dgram)
    }

    fn error(spec: Listen<'_>) -> String {
        listen(&spec).expect_err("must not be bound").to_string()
    }

    fn port(bound: &Bound) -> u16 {
        bound
            .local
            .to_string()
            .rsplit_once(':')
            .unwrap()
            .1
            .parse()
            .unwrap()
    }

    /// `by NAME (pid N)`, of this process.
    fn by_us() -> String {
        format!("by {}", Owner::of(Pid::own()))
    }

    fn flags(fd: &OwnedFd) -> (FdFlag, OFlag) {
        let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
        (
            flags,
            OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()),
        )
    }

    fn has_ipv6() -> bool {
        let has = UdpSocket::bind("[::1]:0").is_ok();
        if !has {
            eprintln!("skipped: no IPv6 here");
        }
        has
    }

    #[test]
    fn a_port_is_bound_shown_and_served() {
        let address = ip("127.0.0.1:0");
        let bound = listen(&stream(&address)).unwrap();
        assert!(
            bound.local.to_string().starts_with("127.0.0.1:") && port(&bound) > 0,
            "{}",
            bound.local.to_string()
        );
        TcpStream::connect(bound.local.to_string()).unwrap();
        assert_eq!(queue(bound.fd.as_fd()).unwrap().waiting, 1);
        let (fd_flags, file_flags) = flags(&bound.fd);
        assert!(fd_flags.contains(FdFlag::FD_CLOEXEC) && !file_flags.contains(OFlag::O_NONBLOCK));
        let bound = listen(&Listen {
            blocking: false,
            ..stream(&address)
        })
        .unwrap();
        let (fd_flags, file_flags) = flags(&bound.fd);
        assert!(fd_flags.contains(FdFlag::FD_CLOEXEC) && file_flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_listener_that_was_shut_down_listens_again_on_its_port() {
        let chosen = listen(&stream(&ip("127.0.0.1:0"))).unwrap();
        let Local::Ip(address) = chosen.local else {
            panic!("{:?}", chosen.local)
        };
        let again = |fd: &OwnedFd| {
            assert!(!is_shut(fd.as_fd()));
            stop_listening(fd.as_fd());
            assert!(is_shut(fd.as_fd()));
            assert!(TcpStream::connect(address).is_err());
            let wanted = Address::Ip(address);
            listen_again(fd.as_fd(), &stream(&wanted), address).unwrap();
            assert!(!is_shut(fd.as_fd()));
            TcpStream::connect(address).unwrap();
        };
        again(&chosen.fd);
        drop(chosen);
        let given = listen(&stream(&Address::Ip(address))).unwrap();
        again(&given.fd);
    }

    #[test]
    fn a_unix_socket_that_was_shut_down_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Path(dir.path().join("x"));
        for kind in [Kind::Stream, Kind::Seqpacket] {
            let bound = listen(&Listen::new(&address, kind)).unwrap();
            assert!(!is_shut(bound.fd.as_fd()));
            stop_listening(bound.fd.as_fd());
            assert!(is_shut(bound.fd.as_fd()));
        }
    }

    #[test]
    fn blocking_is_set_where_it_differs() {
        let bound = listen(&stream(&ip("127.0.0.1:0"))).unwrap();
        assert!(is_blocking(bound.fd.as_fd()).unwrap());
        assert!(!set_blocking(bound.fd.as_fd(), true).unwrap());
        assert!(set_blocking(bound.fd.as_fd(), false).unwrap());
        assert!(!is_blocking(bound.fd.as_fd()).unwrap());
        assert!(flags(&bound.fd).1.contains(OFlag::O_NONBLOCK));
        assert!(set_blocking(bound.fd.as_fd(), true).unwrap());
    }

    #[test]
    fn the_backlog_is_what_was_asked_for_and_never_overflows() {
        let address = ip("127.0.0.1:0");
        let limit = |backlog| {
            let bound = listen(&Listen {
                backlog,
                ..stream(&address)
            })
            .unwrap();
            queue(bound.fd.as_fd()).unwrap().limit
        };
        assert_eq!(limit(17), 17);
        assert!(limit(u32::MAX) >= 128, "the kernel's cap");
    }

    #[test]
    fn a_bare_port_takes_both_families() {
        let address = Address::Any {
            port: 0,
            family: None,
        };
        let bound = listen(&stream(&address)).unwrap();
        TcpStream::connect(("127.0.0.1", port(&bound))).unwrap();
        if has_ipv6() {
            assert!(
                bound.local.to_string().starts_with("[::]:"),
                "{}",
                bound.local.to_string()
            );
            TcpStream::connect(("::1", port(&bound))).unwrap();
            let bound = listen(&stream(&ip("[::]:0"))).unwrap();
            TcpStream::connect(("127.0.0.1", port(&bound))).unwrap();
        }
        let v4 = listen(&stream(&Address::Any {
            port: 0,
            family: Some(IpFamily::V4),
        }))
        .unwrap();
        assert!(
            v4.local.to_string().starts_with("0.0.0.0:"),
            "{}",
            v4.local.to_string()
        );
    }

    #[test]
    fn localhost_is_the_loopback_address_without_a_lookup() {
        let bound = listen(&stream(&Address::Host("LocalHost".into(), 0, None))).unwrap();
        assert!(bound.local.to_string().starts_with("127.0.0.1:"));
        if has_ipv6() {
            let bound = listen(&stream(&Address::Host(
                "localhost".into(),
                0,
                Some(IpFamily::V6),
            )))
            .unwrap();
            assert!(bound.local.to_string().starts_with("[::1]:"));
        }
        // A numeric "name" is looked up without asking anybody.
        let bound = listen(&stream(&Address::Host("127.0.0.2".into(), 0, None))).unwrap();
        assert!(bound.local.to_string().starts_with("127.0.0.2:"));
        assert_eq!(
            error(stream(&Address::Host(
                "127.0.0.1".into(),
                80,
                Some(IpFamily::V6)
            ))),
            "127.0.0.1:80 can't be looked up: it has no address of the family asked for"
        );
    }

    #[test]
    fn the_first_usable_address_of_a_name_is_taken() {
        let address = Address::Host("some.name".into(), 0, None);
        let found: Vec<SocketAddr> = ["192.0.2.1:7", "127.0.0.2:7"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let bound = listen(&Listen {
            found: &found,
            ..stream(&address)
        })
        .unwrap();
        let local = bound.local.to_string();
        assert!(local.starts_with("127.0.0.2:"), "{local}");
        assert_ne!(port(&bound), 7);
        let text = error(stream(&address));
        assert!(
            text.starts_with("some.name:0 can't be looked up: "),
            "{text}"
        );
    }

    #[test]
    fn a_port_in_use_is_said_to_be_and_by_whom() {
        let holder = listen(&stream(&ip("127.0.0.1:0"))).unwrap();
        let taken = ip(&holder.local.to_string());
        assert_eq!(
            error(stream(&taken)),
            format!("{} is in use {}", holder.local, by_us())
        );
        let any = Address::Any {
            port: port(&holder),
            family: None,
        };
        assert_eq!(
            error(stream(&any)),
            format!("*:{} is in use {}", port(&holder), by_us())
        );
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        assert_eq!(
            error(dgram(&Address::Ip(address))),
            format!("{address} is in use {}", by_us())
        );
    }

    #[test]
    fn a_port_is_taken_again_at_once_though_connections_linger() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        // Closed first on this side: TIME-WAIT stays here.
        let client_port = client.local_addr().unwrap().port();
        drop(listener.accept().unwrap());
        eventually(|| {
            io::Read::read(&mut &client, &mut [0])
                .ok()
                .filter(|&count| count == 0)
        });
        drop(client);
        drop(listener);
        let time_wait = format!(
            "0100007F:{:04X} 0100007F:{:04X} 06",
            address.port(),
            client_port
        );
        eventually(|| listen(&stream(&Address::Ip(address))).ok());
        assert_eq!(
            fs::read_to_string("/proc/self/net/tcp")
                .map(|table| table.contains(&time_wait))
                .ok(),
            Some(true)
        );
    }

    #[test]
    fn two_shards_share_a_port_only_with_reuseport() {
        for kind in [Kind::Stream, Kind::Dgram] {
            let address = ip("127.0.0.1:0");
            let first = listen(&Listen {
                reuseport: true,
                ..Listen::new(&address, kind)
            })
            .unwrap();
            let same = ip(&first.local.to_string());
            listen(&Listen {
                reuseport: true,
                ..Listen::new(&same, kind)
            })
            .unwrap();
            assert!(error(Listen::new(&same, kind)).contains("is in use by"));
        }
    }

    #[test]
    fn an_address_that_no_interface_has_is_said_to_be_missing() {
        // RFC 5737: for documentation only.
        assert_eq!(
            error(stream(&ip("192.0.2.1:80"))),
            "192.0.2.1:80 can't be bound: no interface has this address (yet); with `optional = true` it is tried again"
        );
        let text = error(Listen {
            interface: Some("no-such-if"),
            ..stream(&ip("127.0.0.1:0"))
        });
        assert!(
            text.contains("there is no interface `no-such-if` (yet)"),
            "{text}"
        );
        let text = error(Listen {
            interface: Some("a-name-of-many-bytes"),
            ..stream(&ip("127.0.0.1:0"))
        });
        assert!(text.contains("there is no interface"), "{text}");
    }

    #[test]
    fn a_socket_is_bound_to_its_interface() {
        let address = ip("127.0.0.1:0");
        let spec = Listen {
            interface: Some("lo"),
            ..stream(&address)
        };
        let bound = listen(&spec).unwrap();
        assert_eq!(
            SockRef::from(&bound.fd).device().unwrap().as_deref(),
            Some(&b"lo"[..])
        );
        let same = ip(&bound.local.to_string());
        assert!(matches(
            bound.fd.as_fd(),
            &Listen {
                interface: Some("lo"),
                ..stream(&same)
            }
        ));
        assert!(!matches(
            bound.fd.as_fd(),
            &Listen {
                interface: Some("eth7"),
                ..stream(&same)
            }
        ));
    }

    #[test]
    fn a_type_that_the_internet_lacks_is_refused() {
        // Unless the kernel has SCTP.
        if let Err(error) = listen(&Listen::new(&ip("127.0.0.1:0"), Kind::Seqpacket)) {
            assert_eq!(error.cause, Cause::NoSuchFamily, "{error}");
        }
    }

    #[test]
    fn low_ports_are_said_to_be_roots() {
        let error = BindError {
            address: "0.0.0.0:80".into(),
            cause: Cause::Privileged,
        };
        assert!(
            error
                .to_string()
                .starts_with("0.0.0.0:80 is refused: low ports are root's; run as root, ")
        );
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn address(&self, name: &str) -> Address {
            Address::Path(self.path(name))
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_unix_socket_gets_its_mode_whatever_the_umask() {
        let folder = Folder::new();
        for (index, (mask, mode, expected)) in [
            (None, None, 0o666),
            (Some(0o077), None, 0o600),
            (Some(0o077), Some(0o660), 0o660),
            (None, Some(0o777), 0o777),
            (None, Some(0), 0),
        ]
        .into_iter()
        .enumerate()
        {
            let path = folder.path(&index.to_string());
            let address = Address::Path(path.clone());
            let bound = listen(&Listen {
                umask: mask,
                mode,
                ..stream(&address)
            })
            .unwrap();
            assert_eq!(self::mode(&path), expected);
            assert_eq!(bound.local.to_string(), path.display().to_string());
        }
    }

    #[test]
    fn folders_above_a_unix_socket_are_made_with_their_mode() {
        let folder = Folder::new();
        let address = folder.address("a/b/x.sock");
        let bound = listen(&Listen {
            directory_mode: 0o2771,
            ..stream(&address)
        })
        .unwrap();
        assert_eq!(
            (mode(&folder.path("a")), mode(&folder.path("a/b"))),
            (0o2771, 0o2771)
        );
        UnixStream::connect(bound.local.to_string()).unwrap();
    }

    #[test]
    fn a_unix_socket_gets_its_owner() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let folder = Folder::new();
        let address = folder.address("x.sock");
        let _bound = listen(&Listen {
            uid: Some(12),
            gid: Some(34),
            mode: Some(0o660),
            ..stream(&address)
        })
        .unwrap();
        let found = fs::symlink_metadata(folder.path("x.sock")).unwrap();
        assert_eq!(
            (found.uid(), found.gid(), found.mode() & 0o7777),
            (12, 34, 0o660)
        );
    }

    #[test]
    fn only_a_sockets_node_gets_an_owner() {
        let folder = Folder::new();
        fs::write(folder.path("file"), "").unwrap();
        symlink("file", folder.path("link")).unwrap();
        for name in ["file", "link"] {
            let error = chown_node(&folder.path(name), Some(0), None).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        }
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = Folder::new();
        fs::write(folder.path("file"), "precious").unwrap();
        fs::create_dir(folder.path("folder")).unwrap();
        symlink("nowhere", folder.path("link")).unwrap();
        nix::unistd::mkfifo(&folder.path("fifo"), Mode::S_IRWXU).unwrap();
        for (name, what) in [
            ("file", "a file"),
            ("folder", "a directory"),
            ("link", "a symbolic link"),
            ("fifo", "a FIFO"),
        ] {
            let path = folder.path(name);
            assert_eq!(
                error(stream(&folder.address(name))),
                format!(
                    "{} is {what}, not a socket; it is left alone",
                    path.display()
                )
            );
        }
        assert_eq!(fs::read_to_string(folder.path("file")).unwrap(), "precious");
    }

    #[test]
    fn a_stale_socket_is_replaced_only_if_that_is_allowed() {
        let folder = Folder::new();
        for kind in [Kind::Stream, Kind::Dgram, Kind::Seqpacket] {
            let address = folder.address("x.sock");
            let spec = Listen::new(&address, kind);
            drop(eventually(|| listen(&spec).ok()));
            let refuse = || {
                Some(error(Listen {
                    replace: false,
                    ..spec
                }))
            };
            let text = eventually(|| refuse().filter(|text| !text.contains(" in use ")));
            assert!(
                text.ends_with("nobody listens on any more; remove it, or set `replace = true`"),
                "{text}"
            );
            listen(&spec).unwrap();
        }
    }

    #[test]
    fn a_live_socket_is_never_replaced_and_its_owner_is_named() {
        let folder = Folder::new();
        let path = folder.path("stream");
        let in_use = |path: &Path| format!("{} is in use {}", path.display(), by_us());
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(error(stream(&folder.address("stream"))), in_use(&path));
        assert_eq!(
            error(dgram(&folder.address("stream"))),
            in_use(&path),
            "of another type"
        );
        // The probe's connection has been closed.
        let (mut probe, _) = listener.accept().unwrap();
        assert_eq!(io::Read::read(&mut probe, &mut [0]).unwrap(), 0);

        let path = folder.path("dgram");
        let _socket = UnixDatagram::bind(&path).unwrap();
        assert_eq!(error(dgram(&folder.address("dgram"))), in_use(&path));
        assert_eq!(
            error(stream(&folder.address("dgram"))),
            in_use(&path),
            "of another type"
        );
    }

    #[test]
    fn a_live_socket_with_a_full_queue_is_not_waited_for() {
        let folder = Folder::new();
        let address = folder.address("full");
        let holder = listen(&Listen {
            backlog: 0,
            ..stream(&address)
        })
        .unwrap();
        let _client = UnixStream::connect(holder.local.to_string()).unwrap();
        assert_eq!(
            error(stream(&address)),
            format!("{} is in use {}", holder.local, by_us())
        );
    }

    #[test]
    fn a_failed_step_leaves_nothing_behind() {
        let folder = Folder::new();
        let path = folder.path("a/b/x.sock");
        let address = Address::Path(path.clone());
        // Group -1 means "leave it", so the last id before it is used; only root may give a node away.
        if nix::unistd::geteuid().is_root() {
            assert!(
                listen(&Listen {
                    uid: Some(1),
                    ..stream(&address)
                })
                .is_ok()
            );
            fs::remove_dir_all(folder.path("a")).unwrap();
        } else {
            let text = error(Listen {
                uid: Some(0),
                ..stream(&address)
            });
            assert!(
                text.ends_with("can't be bound: chown: Operation not permitted"),
                "{text}"
            );
            assert!(!folder.path("a").exists());
        }
        // A folder that can't be made: its parent is a file.
        fs::write(folder.path("file"), "").unwrap();
        let text = error(stream(&folder.address("file/b/x.sock")));
        assert!(
            text.ends_with("can't be bound: mkdir: Not a directory"),
            "{text}"
        );
        // A bind that fails after folders were made.
        let text = error(stream(&Address::Path(folder.path("new/folder/."))));
        assert!(text.contains("can't be bound: "), "{text}");
        assert!(!folder.path("new").exists(), "{text}");
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_with_its_length() {
        let folder = Folder::new();
        let text = error(stream(&folder.address(&"x".repeat(120))));
        assert!(
            text.ends_with("bytes long; a unix socket's address has 1 to 107"),
            "{text}"
        );
        assert!(matches!(
            listen(&stream(&Address::Path("".into())))
                .unwrap_err()
                .cause,
            Cause::TooLong(0)
        ));
        assert!(matches!(
            listen(&stream(&Address::Abstract(vec![b'x'; 108])))
                .unwrap_err()
                .cause,
            Cause::TooLong(108)
        ));
        let longest = folder.path("").as_os_str().len();
        let fits = folder.address(&"x".repeat(107 - longest));
        listen(&stream(&fits)).unwrap();
    }

    #[test]
    fn an_abstract_name_is_bound_shown_and_guarded() {
        let name = format!("tentpole-test-{}", Pid::own());
        let address = Address::Abstract(name.clone().into());
        let bound = listen(&stream(&address)).unwrap();
        assert_eq!(bound.local.to_string(), format!("@{name}"));
        assert_eq!(
            error(stream(&address)),
            format!("@{name} is in use {}", by_us())
        );
        drop(bound);
        eventually(|| listen(&dgram(&address)).ok());
    }

    #[test]
    fn an_inherited_socket_is_known_by_type_and_address() {
        let v4 = listen(&stream(&ip("127.0.0.1:0"))).unwrap();
        let fd = v4.fd.as_fd();
        assert!(matches(fd, &stream(&ip(&v4.local.to_string()))));
        assert!(!matches(fd, &dgram(&ip(&v4.local.to_string()))));
        assert!(!matches(fd, &stream(&ip("127.0.0.1:1"))));
        assert!(!matches(
            fd,
            &stream(&Address::Any {
                port: port(&v4),
                family: None
            })
        ));
        assert!(matches(
            fd,
            &stream(&Address::Host("localhost".into(), port(&v4), None))
        ));
        assert!(!matches(
            fd,
            &stream(&Address::Host(
                "localhost".into(),
                port(&v4),
                Some(IpFamily::V6)
            ))
        ));

        let all = listen(&stream(&Address::Any {
            port: 0,
            family: Some(IpFamily::V4),
        }))
        .unwrap();
        let any = |family| Address::Any {
            port: port(&all),
            family,
        };
        assert!(matches(all.fd.as_fd(), &stream(&any(None))));
        assert!(matches(all.fd.as_fd(), &stream(&any(Some(IpFamily::V4)))));
        assert!(!matches(all.fd.as_fd(), &stream(&any(Some(IpFamily::V6)))));

        let folder = Folder::new();
        let address = folder.address("x");
        let unix = listen(&Listen::new(&address, Kind::Seqpacket)).unwrap();
        assert!(matches(
            unix.fd.as_fd(),
            &Listen::new(&address, Kind::Seqpacket)
        ));
        assert!(!matches(
            unix.fd.as_fd(),
            &Listen::new(&folder.address("y"), Kind::Seqpacket)
        ));
        let file = fs::File::open("/dev/null").unwrap();
        assert!(!matches(file.as_fd(), &stream(&address)));
        assert_eq!(
            describe(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
    }

    #[test]
    fn a_socket_is_described() {
        let address = ip("127.0.0.1:0");
        let bound = listen(&stream(&address)).unwrap();
        let found = describe(bound.fd.as_fd()).unwrap();
        let local = Local::Ip(bound.local.to_string().parse().unwrap());
        assert_eq!(
            found,
            Description {
                kind: Some(Kind::Stream),
                listening: true,
                local
            }
        );
        let (near, _far) = UnixStream::pair().unwrap();
        let found = describe(near.as_fd()).unwrap();
        assert_eq!((found.local, found.listening), (Local::Unnamed, false));
        let netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, None).unwrap();
        let found = describe(netlink.as_fd()).unwrap();
        assert_eq!(
            (found.local, found.kind),
            (Local::Other(libc::AF_NETLINK), None)
        );
    }

    #[test]
    fn an_inherited_socket_is_made_as_its_unit_wants_it() {
        let socket =
            Socket::new_raw(Domain::IPV4, Type::STREAM.cloexec().nonblocking(), None).unwrap();
        socket
            .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
            .unwrap();
        let fd = OwnedFd::from(socket);
        let address = ip(&describe(fd.as_fd()).unwrap().local.to_string());
        adopt(
            fd.as_fd(),
            &Listen {
                backlog: 9,
                ..stream(&address)
            },
        )
        .unwrap();
        assert_eq!(queue(fd.as_fd()).unwrap().limit, 9);
        assert!(!flags(&fd).1.contains(OFlag::O_NONBLOCK));
        adopt(
            fd.as_fd(),
            &Listen {
                backlog: 5,
                blocking: false,
                ..stream(&address)
            },
        )
        .unwrap();
        assert_eq!(
            queue(fd.as_fd()).unwrap().limit,
            9,
            "one that listens already is left so"
        );
        assert!(
            flags(&fd).1.contains(OFlag::O_NONBLOCK) && flags(&fd).0.contains(FdFlag::FD_CLOEXEC)
        );
    }
}
