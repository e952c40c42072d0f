//! The keys of `[socket.NAME]`, and what does not go together in it.

use super::super::address::{unix_path, with_host};
use super::super::doubt::Doubt;
use super::super::field::{Field, Vocabulary};
use super::super::value::clipped;
use super::super::{
    Address, At, Family, Finding, Findings, Inherit, Socket, SocketKind, TriggerLimit,
};
use super::{Key, Reading, Slot, Table};

keys! {
    SOCKET: SocketDraft = |d, f| {
        "listen" instead of ["host", "port", "path"] => f.address() => d.listen;
        "host" instead of ["listen", "path"] => f.filled_text() => d.host;
        "port" instead of ["listen", "path"] => f.integer(0..=u16::MAX) => d.port;
        "path" instead of ["listen", "host", "port"] => circus_path(f) => d.path;
        "type" => f.prefixed_word("SOCK_", SOCKET_KINDS) => d.socket.kind;
        "family" => f.prefixed_word("AF_", FAMILIES) => d.socket.family;
        "backlog" => f.integer(0..=i32::MAX as u32) => d.socket.backlog;
        "interface" => interface(f) => d.socket.interface;
        "so_reuseport" => f.boolean() => d.socket.so_reuseport;
        "blocking" => f.boolean() => d.socket.blocking;
        "umask" => f.mode(0o777) => d.socket.umask;
        "user" => f.principal() => d.socket.user;
        "group" => f.principal() => d.socket.group;
        "mode" => f.mode(0o7777) => d.socket.mode;
        "directory_mode" => f.mode(0o7777) => d.socket.directory_mode;
        "replace" => f.boolean() => d.socket.replace;
        "optional" => f.boolean() => d.socket.optional;
        "remove_on_stop" => f.boolean() => d.socket.remove_on_stop;
        "fd_name" => fd_name(f) => d.socket.fd_name;
        "inherit" => f.word(INHERITS) => d.socket.inherit;
        "trigger_limit" => trigger_limit(f) => d.socket.trigger_limit;
    }
    unbuilt:
        "proto", "symlinks", "bind_ipv6_only", "free_bind",
        "transparent", "broadcast", "mark", "priority",
        "ip_tos", "ip_ttl", "receive_buffer", "send_buffer",
        "keep_alive", "keep_alive_time", "keep_alive_interval", "keep_alive_probes",
        "no_delay", "defer_accept", "fast_open", "congestion",
        "pass_credentials", "pass_pidfd", "pass_security", "pass_packet_info",
        "timestamping", "pipe_size", "message_queue_max_messages", "message_queue_message_size",
        "writable", "flush_pending";
}

const SOCKET_KINDS: Vocabulary<SocketKind> = &[
    ("stream", Some(SocketKind::Stream)),
    ("dgram", Some(SocketKind::Dgram)),
    ("seqpacket", Some(SocketKind::Seqpacket)),
    ("fifo", None),
    ("special", None),
    ("netlink", None),
    ("mqueue", None),
];

const FAMILIES: Vocabulary<Family> = &[
    ("inet", Some(Family::Inet)),
    ("inet6", Some(Family::Inet6)),
    ("unix", Some(Family::Unix)),
    ("vsock", None),
];

const INHERITS: Vocabulary<Inherit> = &[
    ("auto", Some(Inherit::Auto)),
    ("require", Some(Inherit::Require)),
    ("never", Some(Inherit::Never)),
];

/// A socket before its keys are held against each other.
pub(super) struct SocketDraft {
    socket: Socket,
    listen: Option<At<Address>>,
    host: Option<At<String>>,
    port: Option<u16>,
    path: Option<At<Address>>,
}

/// The `[socket.NAME]` table. Where its address is not known, it gets one that is nobody else's.
pub fn socket(table: &Table<'_>, findings: &mut Findings) -> Reading<Socket> {
    let before = findings.errors();
    let name = At {
        value: table.name.to_string(),
        place: table.header,
    };
    let mut draft = SocketDraft {
        // Replaced by what `socket_address` finds.
        socket: Socket::new(name, At::nowhere(Address::Port(0))),
        listen: None,
        host: None,
        port: None,
        path: None,
    };
    let mut doubt = table.read(SOCKET, &mut draft, findings);
    let mut address = None;
    if !table.is_partial {
        check_fd_name(table, &doubt, findings);
        address = socket_address(table, &mut draft, &doubt, findings);
    }
    let mut socket = draft.socket;
    if let Some(address) = address {
        socket.address = address;
        check_socket(table, &socket, findings);
    } else {
        // No unit's name holds a slash.
        socket.address = At::nowhere(Address::Abstract(format!("/{}", table.name)));
        doubt.add(["listen"]);
    }
    Reading::new(socket, doubt, table, findings.errors() > before)
}

fn check_fd_name(table: &Table<'_>, doubt: &Doubt, findings: &mut Findings) {
    if table.name.contains(':') && table.place("fd_name").is_none() && !doubt.is_about(&["fd_name"])
    {
        findings.push(Finding::error(
            table.header,
            format!(
                "{} has a `:` in its name, which parts the names in LISTEN_FDNAMES; give it an `fd_name`",
                table.label()
            ),
        ));
    }
}

/// The address, in the one way in which it was written.
fn socket_address(
    table: &Table<'_>,
    draft: &mut SocketDraft,
    doubt: &Doubt,
    findings: &mut Findings,
) -> Option<At<Address>> {
    let label = table.label();
    let ways = ["listen", "host", "port", "path"];
    let written: Vec<&str> = ways
        .into_iter()
        .filter(|way| table.place(way).is_some())
        .collect();
    match written[..] {
        // The missing part may be what has a mistake.
        [] if doubt.is_about(&ways) => None,
        ["host"] if doubt.is_about(&["port"]) => None,
        ["port"] if doubt.is_about(&["host"]) => None,
        [] => {
            let message = format!("{label} has no address; write `listen = \"127.0.0.1:8000\"`");
            findings.push(Finding::error(table.header, message));
            None
        }
        ["listen"] => draft.listen.take(),
        ["path"] => draft.path.take(),
        ["host"] => {
            let message = format!("{label} has a `host` and no `port`; write `port = 8000`");
            findings.push(Finding::error(table.place("host")?, message));
            None
        }
        // Circus's default host; the other choice would open the port to the world.
        ["port"] => Some(At {
            value: Address::Host("localhost".to_string(), draft.port?),
            place: table.place("port")?,
        }),
        ["host", "port"] => {
            let host = draft.host.take()?;
            match with_host(&host.value, draft.port?) {
                Ok(value) => Some(At {
                    value,
                    place: host.place,
                }),
                Err(why) => {
                    let message = format!("`host` of {label} {why}");
                    findings.push(Finding::error(host.place, message));
                    None
                }
            }
        }
        [first, .., last] => {
            let message = format!(
                "{label} has both `{first}` and `{last}`; keep one way to write the address"
            );
            findings.push(Finding::error(table.key_place(last)?, message));
            None
        }
        // All four ways are above.
        [_] => None,
    }
}

/// What does not go together in a socket.
fn check_socket(table: &Table<'_>, socket: &Socket, findings: &mut Findings) {
    let label = table.label();
    let (is_file, is_unix) = match &socket.address.value {
        Address::Path(_) => (true, true),
        Address::Abstract(_) => (false, true),
        Address::Port(_) | Address::Ip(_) | Address::Host(..) => (false, false),
    };
    let what = match (is_file, is_unix) {
        (true, _) => "a unix socket",
        (false, true) => "an abstract socket",
        (false, false) => "a network socket",
    };
    let mut report = |key: &str, message: String| {
        if let Some(place) = table.key_place(key) {
            findings.push(Finding::error(place, message));
        }
    };
    if let Some(family) = socket.family
        && !fits(family, &socket.address.value)
    {
        let family = match family {
            Family::Inet => "inet",
            Family::Inet6 => "inet6",
            Family::Unix => "unix",
        };
        report(
            "family",
            format!(
                "`family = \"{family}\"` of {label} contradicts its address; remove `family`, which follows from it"
            ),
        );
    }
    if socket.kind == SocketKind::Seqpacket && !is_unix {
        report(
            "type",
            format!("`type = \"seqpacket\"` of {label} needs a unix socket; it listens on {what}"),
        );
    }
    if is_unix && socket.so_reuseport.value {
        report(
            "so_reuseport",
            format!("`so_reuseport` of {label} needs a network socket; it listens on {what}"),
        );
    }
    if is_unix && socket.interface.is_some() {
        report(
            "interface",
            format!("`interface` of {label} needs a network socket; it listens on {what}"),
        );
    }
    if !is_file {
        for entry in &table.entries {
            let key = entry.key;
            let finding = match key {
                "mode" | "user" | "group" | "umask" | "directory_mode" => Finding::error(
                    entry.key_place,
                    format!(
                        "`{key}` of {label} needs a unix socket's path; it listens on {what}, which has no file"
                    ),
                ),
                "replace" | "remove_on_stop" => Finding::warning(
                    entry.key_place,
                    format!("`{key}` of {label} has no effect on {what}, which has no file"),
                ),
                _ => continue,
            };
            findings.push(finding);
        }
    }
    if socket.kind == SocketKind::Dgram
        && let Some(place) = table.key_place("backlog")
    {
        let message = format!(
            "`backlog` of {label} has no effect: a datagram socket has no queue of connections"
        );
        findings.push(Finding::warning(place, message));
    }
}

fn fits(family: Family, address: &Address) -> bool {
    match address {
        Address::Ip(ip) if ip.is_ipv4() => family == Family::Inet,
        Address::Ip(_) => family == Family::Inet6,
        Address::Port(_) | Address::Host(..) => family != Family::Unix,
        Address::Path(_) | Address::Abstract(_) => family == Family::Unix,
    }
}

fn circus_path(field: &mut Field<'_, '_>) -> Option<Address> {
    let text = field.text()?;
    if let Some(name) = text.strip_prefix('@').filter(|name| !name.is_empty()) {
        field.refuse(format_args!(
            "begins with `@`; write `listen = \"@{0}\"` for an abstract socket, or `\"./@{0}\"` for a file",
            clipped(name)
        ));
        return None;
    }
    match unix_path(text, field.folder) {
        Ok(address) => Some(address),
        Err(why) => {
            field.refuse(why);
            None
        }
    }
}

/// At most 15 bytes (IFNAMSIZ less a NUL byte), without blanks and `/`; see netdevice(7).
fn interface(field: &mut Field<'_, '_>) -> Option<String> {
    let name = field.filled_text()?;
    let is_name = name.len() <= 15
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if !is_name {
        field.refuse("is no interface's name: at most 15 bytes without blanks, `/` and `:`");
        return None;
    }
    Some(name)
}

/// As sd_listen_fds_with_names(3) can give it back.
fn fd_name(field: &mut Field<'_, '_>) -> Option<String> {
    let name = field.text()?;
    if name.is_empty() || name.len() > 255 {
        field.refuse("must have 1 to 255 bytes");
        return None;
    }
    if !name
        .bytes()
        .all(|byte| (32..127).contains(&byte) && byte != b':')
    {
        field.refuse("may have printable ASCII characters only, and no `:`");
        return None;
    }
    Some(name.to_string())
}

fn trigger_limit(field: &mut Field<'_, '_>) -> Option<TriggerLimit> {
    let table = field.table(
        "{ burst = 20, interval = \"2s\" }",
        &["burst", "interval"],
        &[],
    )?;
    let mut limit = TriggerLimit::default();
    if let Some(mut burst) = field.part(table, "burst") {
        limit.burst = burst.integer(0..=u32::MAX)?;
    }
    if let Some(mut interval) = field.part(table, "interval") {
        limit.interval = interval.duration()?;
    }
    Some(limit)
}
