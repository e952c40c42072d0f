//! Which sockets can't be bound beside each other.
//!
//! The rules are the kernel's (`inet_csk_bind_conflict` and `unix_bind_*`): two listening sockets of one type and port
//! collide when their addresses overlap, a wildcard overlapping every address of its family, and `[::]` every address
//! of both; different interfaces keep them apart, and so does SO_REUSEPORT if both have it. Each socket is entered under
//! the few keys it occupies and asks for the few keys it would collide with, so the work grows with the sockets and not
//! with their pairs.

use super::Host;
use crate::unit::{
    Address, Arrange, At, Doubts, Family, Finding, Findings, Socket, SocketKind, path::FilePath,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

/// Adds an error for every socket whose address an earlier one takes, or the manager's `control`.
pub(super) fn find_collisions(
    sockets: &[Box<Socket>],
    control: Option<&At<FilePath>>,
    doubts: &Doubts,
    host: &dyn Host,
    findings: &mut Findings,
) {
    let mut folders = Folders::new(host);
    let control = control.map(|control| folders.place_of(&control.value));
    let crowded = crowded_ports(sockets);
    let is_alone = |socket: &Socket| {
        socket
            .address
            .value
            .port()
            .is_some_and(|p| crowded.binary_search(&p).is_err())
    };
    let mut taken: HashMap<Key<'_>, Cell<'_>> = HashMap::new();
    // All that decides about it.
    let keys = ["listen", "type", "family", "interface", "so_reuseport"];
    let is_known = |socket: &Socket| {
        let doubt = doubts.of(socket.name.place);
        doubt.is_none_or(|doubt| !doubt.is_about(&keys))
    };
    let sockets = sockets.iter().map(|socket| &**socket);
    for socket in sockets.filter(|socket| !is_alone(socket) && is_known(socket)) {
        let (occupied, asked) = scopes(socket, &mut folders);
        if let (Some(Key::Path(path)), Some(control)) = (occupied.first(), &control)
            && path == control
        {
            let text = format!(
                "socket `{}` on {} is where the `control` socket of `[manager]` is",
                socket.name.value,
                spell(&socket.address.value)
            );
            findings.push(Finding::error(socket.address.place, text));
        }
        let other = asked
            .iter()
            .find_map(|key| taken.get(key)?.conflict(socket));
        if let Some(other) = other {
            findings.push(Finding::error(
                socket.address.place,
                collision(socket, other),
            ));
        } else if let Some(other) = occupied
            .first()
            .and_then(|key| taken.get(key)?.partner(socket))
        {
            findings.push(Finding::warning(
                socket.address.place,
                format!(
                    "sockets `{}` and `{}` share {} by `so_reuseport`: the kernel spreads its clients over the workers of both",
                    socket.name.value,
                    other.name.value,
                    spell(&socket.address.value)
                ),
            ));
        }
        for key in occupied {
            taken.entry(key).or_default().add(socket);
        }
    }
}

/// The ports that more than one socket has, in order: no others need a closer look.
fn crowded_ports(sockets: &[Box<Socket>]) -> Vec<u16> {
    let mut ports: Vec<u16> = (sockets.iter())
        .filter_map(|socket| socket.address.value.port())
        .collect();
    ports.arrange();
    let mut crowded: Vec<u16> = (ports.windows(2).filter(|pair| pair[0] == pair[1]))
        .map(|pair| pair[0])
        .collect();
    crowded.dedup();
    crowded
}

/// What a listening socket occupies.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key<'a> {
    Inet(Inet, Kind, u16),
    Path(PathBuf),
    Abstract(&'a str, Kind),
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Inet {
    V4(Ipv4Addr),
    /// With the scope id.
    V6(Ipv6Addr, u32),
    Host(String),
    WildV4,
    WildV6,
    /// All addresses of both families.
    WildBoth,
    AnyV4,
    AnyV6,
    AnyHost,
}

/// Of [`SocketKind`], as a part of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Stream,
    Dgram,
    Seqpacket,
}

/// The keys that `socket` occupies, and those that must be free of others.
fn scopes<'a>(socket: &'a Socket, folders: &mut Folders<'_>) -> (Vec<Key<'a>>, Vec<Key<'a>>) {
    use Inet::*;
    let kind = match socket.kind {
        SocketKind::Stream => Kind::Stream,
        SocketKind::Dgram => Kind::Dgram,
        SocketKind::Seqpacket => Kind::Seqpacket,
    };
    let (port, occupied, asked) = match &socket.address.value {
        Address::Path(path) => {
            let key = Key::Path(folders.place_of(path));
            return (vec![key.clone()], vec![key]);
        }
        // The kernel keeps one table of abstract names for each type.
        Address::Abstract(name) => {
            let key = Key::Abstract(name, kind);
            return (vec![key.clone()], vec![key]);
        }
        Address::Port(port) => match socket.family {
            Some(Family::Inet) => (*port, vec![WildV4, AnyV4], vec![AnyV4]),
            Some(Family::Inet6 | Family::Unix) | None => {
                (*port, both(), vec![AnyV4, AnyV6, AnyHost])
            }
        },
        Address::Ip(address) => match address.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => {
                (address.port(), vec![WildV4, AnyV4], vec![AnyV4])
            }
            IpAddr::V4(ip) => (address.port(), vec![V4(ip), AnyV4], vec![V4(ip), WildV4]),
            IpAddr::V6(ip) if ip.is_unspecified() => {
                (address.port(), both(), vec![AnyV4, AnyV6, AnyHost])
            }
            IpAddr::V6(ip) => {
                let scope = match address {
                    std::net::SocketAddr::V6(address) => address.scope_id(),
                    std::net::SocketAddr::V4(_) => 0,
                };
                let own = V6(ip, scope);
                (address.port(), vec![own.clone(), AnyV6], vec![own, WildV6])
            }
        },
        Address::Host(host, port) if host.eq_ignore_ascii_case("localhost") => {
            match socket.family {
                Some(Family::Inet6) => {
                    let own = V6(Ipv6Addr::LOCALHOST, 0);
                    (*port, vec![own.clone(), AnyV6], vec![own, WildV6])
                }
                Some(Family::Inet | Family::Unix) | None => {
                    let own = V4(Ipv4Addr::LOCALHOST);
                    (*port, vec![own.clone(), AnyV4], vec![own, WildV4])
                }
            }
        }
        // What another host name stands for is known when it is bound; all that is sure is that it stands for itself, and
        // that it is one of all addresses.
        Address::Host(host, port) => {
            let own = Host(host.to_ascii_lowercase());
            (*port, vec![own.clone(), AnyHost], vec![own, WildBoth])
        }
    };
    // Every socket on port 0 gets a port of its own.
    if port == 0 {
        return (Vec::new(), Vec::new());
    }
    let keys = |scopes: Vec<Inet>| {
        scopes
            .into_iter()
            .map(|scope| Key::Inet(scope, kind, port))
            .collect()
    };
    (keys(occupied), keys(asked))
}

/// What a dual-stack wildcard occupies.
fn both() -> Vec<Inet> {
    vec![
        Inet::WildV4,
        Inet::WildV6,
        Inet::WildBoth,
        Inet::AnyV4,
        Inet::AnyV6,
    ]
}

/// Where paths lead: one file may have several.
struct Folders<'h> {
    host: &'h dyn Host,
    /// Folders as they were written, and what they are.
    known: HashMap<PathBuf, PathBuf>,
}

impl<'h> Folders<'h> {
    fn new(host: &'h dyn Host) -> Self {
        Folders {
            host,
            known: HashMap::new(),
        }
    }

    /// `path` without links in its folder, without `..`, `.` and doubled slashes.
    fn place_of(&mut self, path: &Path) -> PathBuf {
        let folder = path.parent().unwrap_or(path);
        let host = self.host;
        let real = self.known.entry(folder.to_path_buf());
        let real = real.or_insert_with(|| without_parents(&host.resolve(folder)));
        real.join(path.file_name().unwrap_or_default())
    }
}

/// `path` without `..`: of folders that do not exist yet none is a link.
fn without_parents(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => {
                plain.push(component);
            }
        }
    }
    plain
}

/// `path` without `.` and doubled slashes; links are not followed.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// The sockets under one key, as many as it takes to answer for all of them.
#[derive(Default)]
struct Cell<'a> {
    any: Pick<'a>,
    on_all_interfaces: Pick<'a>,
    by_interface: HashMap<&'a str, Pick<'a>>,
}

/// The first socket of each sort.
#[derive(Default)]
struct Pick<'a> {
    exclusive: Option<&'a Socket>,
    shared: Option<&'a Socket>,
}

impl<'a> Cell<'a> {
    fn add(&mut self, socket: &'a Socket) {
        self.any.add(socket);
        let pick = match interface(socket) {
            None => &mut self.on_all_interfaces,
            Some(interface) => self.by_interface.entry(interface).or_default(),
        };
        pick.add(socket);
    }

    /// A socket here that can't be beside `socket`.
    fn conflict(&self, socket: &Socket) -> Option<&'a Socket> {
        match interface(socket) {
            None => self.any.conflict(socket),
            Some(interface) => {
                let own = self.by_interface.get(interface);
                own.and_then(|pick| pick.conflict(socket))
                    .or_else(|| self.on_all_interfaces.conflict(socket))
            }
        }
    }

    /// A socket here that shares its port with `socket`.
    fn partner(&self, socket: &Socket) -> Option<&'a Socket> {
        let pick = match interface(socket) {
            None => &self.on_all_interfaces,
            Some(interface) => self.by_interface.get(interface)?,
        };
        pick.shared.filter(|_| socket.so_reuseport.value)
    }
}

impl<'a> Pick<'a> {
    fn add(&mut self, socket: &'a Socket) {
        let sort = if socket.so_reuseport.value {
            &mut self.shared
        } else {
            &mut self.exclusive
        };
        sort.get_or_insert(socket);
    }

    fn conflict(&self, socket: &Socket) -> Option<&'a Socket> {
        match socket.so_reuseport.value {
            true => self.exclusive,
            false => self.exclusive.or(self.shared),
        }
    }
}

fn interface(socket: &Socket) -> Option<&str> {
    socket.interface.as_ref().map(|at| at.value.as_str())
}

fn collision(socket: &Socket, other: &Socket) -> String {
    let (ours, theirs) = (spell(&socket.address.value), spell(&other.address.value));
    let (name, other_name) = (&socket.name.value, &other.name.value);
    let is_path = |socket: &Socket| matches!(socket.address.value, Address::Path(_));
    if ours != theirs && is_path(socket) && is_path(other) {
        return format!(
            "socket `{name}` on {ours} can't be bound beside socket `{other_name}` on {theirs}: both paths lead to one file"
        );
    }
    if ours == theirs {
        return format!(
            "sockets `{name}` and `{other_name}` both listen on {ours}; a watcher can use one socket of another \
             watcher, so one of them is enough"
        );
    }
    format!(
        "socket `{name}` on {ours} can't be bound beside socket `{other_name}` on {theirs}: one address covers the other"
    )
}

/// An address as a user writes it.
fn spell(address: &Address) -> String {
    match address {
        Address::Port(port) => format!("port {port} of all addresses"),
        Address::Ip(address) => format!("`{address}`"),
        Address::Host(host, port) => format!("`{host}:{port}`"),
        Address::Path(path) => format!("`{}`", plain(path).display()),
        Address::Abstract(name) => format!("`@{}`", name.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, boxed, socket};
    use super::*;
    use crate::unit::{At, Severity};

    fn ip(name: &str, address: &str) -> Socket {
        let mut made = socket(name);
        made.address = At::nowhere(Address::Ip(address.parse().expect("an address")));
        made
    }

    fn port(name: &str, port: u16, family: Option<Family>) -> Socket {
        let mut made = socket(name);
        made.address = At::nowhere(Address::Port(port));
        made.family = family;
        made
    }

    fn at(name: &str, address: Address) -> Socket {
        let mut made = socket(name);
        made.address = At::nowhere(address);
        made
    }

    fn on(mut socket: Socket, interface: &str) -> Socket {
        socket.interface = Some(At::nowhere(interface.into()));
        socket
    }

    fn shared(mut socket: Socket) -> Socket {
        socket.so_reuseport.value = true;
        socket
    }

    fn dgram(mut socket: Socket) -> Socket {
        socket.kind = SocketKind::Dgram;
        socket
    }

    fn find_all(sockets: impl Into<Vec<Socket>>, findings: &mut Findings) {
        let sockets = boxed(sockets);
        find_collisions(
            &sockets,
            None,
            &Doubts::default(),
            &Machine::new(),
            findings,
        );
    }

    /// Whether the two collide; in both orders, since a collision has no direction.
    fn collide(a: Socket, b: Socket) -> bool {
        let count = |pair: [Socket; 2]| {
            let mut findings = Findings::default();
            find_all(pair, &mut findings);
            findings.retain(|finding| finding.severity == Severity::Error);
            findings.len()
        };
        let forth = count([a.clone(), b.clone()]);
        assert_eq!(forth, count([b, a]), "order must not matter");
        forth == 1
    }

    #[test]
    fn addresses_of_one_port_collide_where_one_covers_the_other() {
        let inet = Some(Family::Inet);
        let inet6 = Some(Family::Inet6);
        let a = |text| ip("a", text);
        let b = |text| ip("b", text);
        for (one, two, wanted) in [
            (a("127.0.0.1:80"), b("127.0.0.1:80"), true),
            (a("127.0.0.1:80"), b("127.0.0.2:80"), false),
            (a("127.0.0.1:80"), b("127.0.0.1:81"), false),
            (a("127.0.0.1:0"), b("127.0.0.1:0"), false),
            (a("0.0.0.0:80"), b("127.0.0.1:80"), true),
            (a("0.0.0.0:80"), b("[::1]:80"), false),
            (a("[::]:80"), b("127.0.0.1:80"), true),
            (a("[::]:80"), b("0.0.0.0:80"), true),
            (a("[::]:80"), b("[::1]:80"), true),
            (a("[::ffff:127.0.0.1]:80"), b("127.0.0.1:80"), true),
            (a("[fe80::1%1]:80"), b("[fe80::1%2]:80"), false),
            (a("[fe80::1%1]:80"), b("[fe80::1%1]:80"), true),
            (port("a", 8000, None), b("127.0.0.1:8000"), true),
            (port("a", 8000, None), b("[::1]:8000"), true),
            (port("a", 8000, inet), b("[::1]:8000"), false),
            (port("a", 8000, inet), b("10.0.0.1:8000"), true),
            (port("a", 8000, inet6), b("0.0.0.0:8000"), true),
            (port("a", 0, None), port("b", 0, None), false),
            (port("a", 80, None), dgram(port("b", 80, None)), false),
            (dgram(a("0.0.0.0:53")), dgram(b("127.0.0.1:53")), true),
        ] {
            let says = format!("{:?} {:?}", one.address.value, two.address.value);
            assert_eq!(collide(one, two), wanted, "{says}");
        }
    }

    #[test]
    fn interfaces_and_a_shared_port_keep_sockets_apart() {
        let a = || ip("a", "0.0.0.0:80");
        let b = || ip("b", "0.0.0.0:80");
        assert!(!collide(on(a(), "eth0"), on(b(), "eth1")));
        assert!(collide(on(a(), "eth0"), on(b(), "eth0")));
        assert!(collide(on(a(), "eth0"), b()));
        assert!(!collide(shared(a()), shared(b())));
        assert!(collide(shared(a()), b()));
    }

    #[test]
    fn two_units_that_share_one_address_are_warned_of() {
        let warned = |pair: [Socket; 2]| {
            let mut findings = Findings::default();
            find_all(pair, &mut findings);
            findings
                .iter()
                .any(|finding| finding.severity == Severity::Warning)
        };
        let a = || shared(ip("a", "0.0.0.0:80"));
        assert!(warned([a(), shared(ip("b", "0.0.0.0:80"))]));
        assert!(!warned([a(), shared(ip("b", "127.0.0.1:80"))]));
        assert!(!warned([
            on(a(), "x"),
            on(shared(ip("b", "0.0.0.0:80")), "y")
        ]));
        assert!(!warned([a(), ip("b", "0.0.0.0:81")]));
    }

    #[test]
    fn host_names_collide_with_themselves_and_with_all_addresses() {
        let host = |name: &str, host: &str| at(name, Address::Host(host.into(), 80));
        assert!(collide(host("a", "localhost"), host("b", "LOCALHOST")));
        assert!(!collide(host("a", "localhost"), host("b", "example.org")));
        assert!(collide(host("a", "localhost"), port("b", 80, None)));
        assert!(collide(host("a", "localhost"), ip("b", "[::]:80")));
        assert!(collide(host("a", "localhost"), ip("b", "0.0.0.0:80")));
        assert!(collide(host("a", "localhost"), ip("b", "127.0.0.1:80")));
        assert!(!collide(host("a", "localhost"), ip("b", "[::1]:80")));
        assert!(!collide(host("a", "example.org"), ip("b", "127.0.0.1:80")));
        let mut six = host("a", "localhost");
        six.family = Some(Family::Inet6);
        assert!(collide(six.clone(), ip("b", "[::1]:80")));
        assert!(!collide(six, ip("b", "127.0.0.1:80")));
    }

    #[test]
    fn unix_paths_are_one_space_and_abstract_names_one_for_each_type() {
        let path = |name: &str, path: &str| at(name, Address::Path(path.into()));
        assert!(collide(path("a", "/run/x"), path("b", "/run//./x")));
        assert!(collide(path("a", "/run/x"), dgram(path("b", "/run/x"))));
        assert!(!collide(path("a", "/run/x"), path("b", "/run/y")));
        assert!(collide(path("a", "/run/x"), path("b", "/run/y/../x")));
        assert!(collide(
            path("a", "/run/x"),
            path("b", "/../run/y/z/../../x")
        ));
        let name = |name: &str, text: &str| at(name, Address::Abstract(text.into()));
        assert!(collide(name("a", "x"), name("b", "x")));
        assert!(!collide(name("a", "x"), dgram(name("b", "x"))));
        assert!(!collide(name("a", "/run/x"), path("b", "/run/x")));
    }

    #[test]
    fn each_socket_is_reported_once_and_names_the_other() {
        let sockets = [
            ip("a", "127.0.0.1:80"),
            ip("b", "127.0.0.1:80"),
            port("c", 80, None),
        ];
        let mut findings = Findings::default();
        find_all(sockets, &mut findings);
        assert_eq!(findings.len(), 2);
        assert!(
            findings[0]
                .message
                .starts_with("sockets `b` and `a` both listen on `127.0.0.1:80`")
        );
        assert!(
            findings[1]
                .message
                .contains("`c` on port 80 of all addresses can't be bound beside socket `a`")
        );
    }
}
