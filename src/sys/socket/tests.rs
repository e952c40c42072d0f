//! Sockets of all kinds, bound, taken over and refused.

use super::super::process::Pid;
use super::super::spawn::tests::eventually;
use super::node::chown_node;
use super::*;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::Mode;
use socket2::SockRef;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

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
    let socket = Socket::new_raw(Domain::IPV4, Type::STREAM.cloexec().nonblocking(), None).unwrap();
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
    assert!(flags(&fd).1.contains(OFlag::O_NONBLOCK) && flags(&fd).0.contains(FdFlag::FD_CLOEXEC));
}
