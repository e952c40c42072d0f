//! The language of socket addresses.

use super::Address;
use super::value::clipped;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::Path;

/// The longest path or abstract name of a unix socket: `sun_path` of unix(7) less a NUL byte.
const LONGEST_UNIX: usize = 107;

/// Reads an address: `127.0.0.1:8000`, `[::1]:80`, `localhost:80`, `8000` (all addresses), `/run/x.sock`, `@abstract`.
/// A path that begins with `./` or `../` starts at `folder`.
///
/// The error is a sentence without its subject: "has no port; ...".
pub fn parse_address(text: &str, folder: &Path) -> Result<Address, String> {
    if text.is_empty() {
        return Err(
            "is empty; write an address such as `\"127.0.0.1:8000\"` or `\"/run/x.sock\"`"
                .to_string(),
        );
    }
    // What most sockets have needs no look at what else it could be.
    if let Ok(address) = text.parse() {
        return Ok(Address::Ip(SocketAddr::V4(address)));
    }
    if has_substitution(text) {
        return Err(
            "has a substitution; a socket is bound before there is a worker to substitute for"
                .to_string(),
        );
    }
    if let Some(name) = text.strip_prefix('@') {
        return abstract_name(name);
    }
    if text.starts_with('/') || text.starts_with("./") || text.starts_with("../") {
        return unix_path(text, folder);
    }
    if text.contains(char::is_control) || text != text.trim() {
        return Err("has blanks or control characters around or in it".to_string());
    }
    if text.starts_with("vsock:") {
        return Err("is a vsock address, which is not built yet".to_string());
    }
    if is_netlink(text) {
        return Err("is a netlink address, which is not built yet".to_string());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(scheme_hint(scheme, rest, folder));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return Err(scheme_hint("unix", path, folder));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_port(text).map(Address::Port);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return bracketed(rest);
    }
    match text.split_once(':') {
        None if text.contains('/') => {
            unix_path(text, folder)?;
            Err(format!(
                "is a relative path; write `\"./{0}\"` (it starts at the unit file's folder) or `\"/run/{0}\"`",
                clipped(text)
            ))
        }
        None => {
            with_host(text, 0)?;
            Err(format!("has no port; write `\"{}:8000\"`", clipped(text)))
        }
        Some((_, rest)) if rest.contains(':') => Err(unbracketed_hint(text)),
        Some(("", port)) => Err(format!(
            "has no host; write `\"{0}\"` for all addresses, or `\"127.0.0.1:{0}\"`",
            parse_port(port)?
        )),
        Some(("*", port)) => Err(format!(
            "has `*` for a host; write `\"{}\"` for all addresses",
            parse_port(port)?
        )),
        Some((host, port)) => with_host(host, parse_port(port)?),
    }
}

/// The address of a host and a port that were written apart, as Circus has it.
pub(super) fn with_host(host: &str, port: u16) -> Result<Address, String> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if bare.contains(':') {
        return ipv6(bare, port);
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Address::Ip(SocketAddr::V4(SocketAddrV4::new(ip, port))));
    }
    if host
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(format!(
            "has `{}`, which is not an IPv4 address",
            clipped(host)
        ));
    }
    if !is_host_name(host) {
        return Err(format!("has `{}`, which is not a host name", clipped(host)));
    }
    Ok(Address::Host(host.to_string(), port))
}

/// A unix socket's path, made absolute.
pub(super) fn unix_path(text: &str, folder: &Path) -> Result<Address, String> {
    if text.is_empty() {
        return Err("is empty; write a path such as `\"/run/x.sock\"`".to_string());
    }
    if has_substitution(text) {
        return Err(
            "has a substitution; a socket is bound before there is a worker to substitute for"
                .to_string(),
        );
    }
    if text.contains('\0') {
        return Err("has a NUL byte in it".to_string());
    }
    if text.ends_with('/')
        || text.ends_with("/.")
        || text.ends_with("/..")
        || matches!(text, "." | "..")
    {
        return Err("names a folder, not a socket file".to_string());
    }
    // Components leave out each `.`; `..` stays, since the folder before it may be a symlink.
    let path: std::path::PathBuf = folder.join(text).components().collect();
    match path.as_os_str().len() {
        length if length > LONGEST_UNIX => Err(format!(
            "is a path of {length} bytes; a unix socket's has at most {LONGEST_UNIX}"
        )),
        _ => Ok(Address::Path(path)),
    }
}

fn abstract_name(name: &str) -> Result<Address, String> {
    if name.is_empty() {
        return Err("has no name after `@`".to_string());
    }
    if name.contains('\0') {
        return Err("has a NUL byte in it".to_string());
    }
    if name.len() > LONGEST_UNIX {
        return Err(format!(
            "is a name of {} bytes; an abstract socket's has at most {LONGEST_UNIX}",
            name.len()
        ));
    }
    Ok(Address::Abstract(name.to_string()))
}

/// What follows `[`: an IPv6 address, `]:`, a port.
fn bracketed(rest: &str) -> Result<Address, String> {
    let Some((ip, port)) = rest.split_once(']') else {
        return Err("has no `]`; write it such as `\"[::1]:80\"`".to_string());
    };
    let Some(port) = port.strip_prefix(':') else {
        return Err(match port {
            "" => {
                ipv6(ip, 80)?;
                format!("has no port; write `\"[{ip}]:80\"`")
            }
            _ => "has something else than `:PORT` after `]`".to_string(),
        });
    };
    ipv6(ip, parse_port(port)?)
}

fn ipv6(text: &str, port: u16) -> Result<Address, String> {
    let (ip, scope) = match text.split_once('%') {
        Some((ip, scope)) => (ip, Some(scope)),
        None => (text, None),
    };
    let Ok(ip) = ip.parse::<Ipv6Addr>() else {
        return Err(match ip.parse::<Ipv4Addr>() {
            Ok(ip) => format!("has brackets around an IPv4 address; write `\"{ip}:{port}\"`"),
            Err(_) => format!("has `{}`, which is not an IPv6 address", clipped(ip)),
        });
    };
    let scope = match scope {
        None => 0,
        Some(scope) if !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_digit()) => {
            scope
                .parse()
                .map_err(|_| format!("has the scope `{}`, which is too large", clipped(scope)))?
        }
        Some("") => return Err("has no scope after `%`".to_string()),
        Some(scope) => {
            return Err(format!(
                "has the scope `%{0}`; write the interface's number there, or `interface = \"{0}\"`",
                clipped(scope)
            ));
        }
    };
    Ok(Address::Ip(SocketAddr::V6(SocketAddrV6::new(
        ip, port, 0, scope,
    ))))
}

fn parse_port(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Err("has no port after `:`".to_string());
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "has `{}` for a port; a port is a number",
            clipped(text)
        ));
    }
    text.parse()
        .map_err(|_| format!("has the port {}; ports go from 0 to 65535", clipped(text)))
}

/// Letters, digits, `-` and `_` in labels of 1 to 63 bytes (RFC 1123, and the underscore that people use).
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

/// A family and a group number, as in systemd's `ListenNetlink=`.
fn is_netlink(text: &str) -> bool {
    text.split_once(' ').is_some_and(|(family, group)| {
        family
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit())
            && family.starts_with(|c: char| c.is_ascii_lowercase())
            && !group.is_empty()
            && group.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn scheme_hint(scheme: &str, rest: &str, folder: &Path) -> String {
    // Of an URL what stands before its path.
    let mut alone = [rest, rest.split('/').next().unwrap_or("")].into_iter();
    let alone = alone.find(|alone| parse_address(alone, folder).is_ok());
    format!(
        "has `{}:` in front; write the address alone, such as `\"{}\"`",
        clipped(scheme),
        clipped(alone.unwrap_or("127.0.0.1:8000"))
    )
}

fn unbracketed_hint(text: &str) -> String {
    // Where both can be meant, `::1:80` has a port: who writes an address alone knows that it has none.
    match text.rsplit_once(':') {
        Some((ip, port)) if ip.parse::<Ipv6Addr>().is_ok() && parse_port(port).is_ok() => {
            format!("has no brackets; write `\"[{ip}]:{}\"`", clipped(port))
        }
        _ if text.parse::<Ipv6Addr>().is_ok() => {
            format!("has no port, or no brackets; write `\"[{text}]:80\"`")
        }
        _ => {
            "is not an address; write it such as `\"127.0.0.1:8000\"` or `\"[::1]:80\"`".to_string()
        }
    }
}

/// Whether `text` asks for a substitution of Circus, in either spelling.
fn has_substitution(text: &str) -> bool {
    ["$(circus.", "((circus."].iter().any(|open| {
        text.as_bytes()
            .windows(open.len())
            .any(|at| at.eq_ignore_ascii_case(open.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn parse(text: &str) -> Result<Address, String> {
        parse_address(text, Path::new("/etc/units"))
    }

    #[test]
    fn addresses_are_read_in_every_spelling_of_the_design() {
        let ip = |text: &str| Address::Ip(text.parse().expect("the test's own address"));
        let path = |text: &str| Address::Path(PathBuf::from(text));
        for (text, wanted) in [
            ("127.0.0.1:8000", ip("127.0.0.1:8000")),
            ("0.0.0.0:0", ip("0.0.0.0:0")),
            ("[::1]:80", ip("[::1]:80")),
            ("[::]:65535", ip("[::]:65535")),
            ("[fe80::1%3]:80", ip("[fe80::1%3]:80")),
            ("[::ffff:1.2.3.4]:1", ip("[::ffff:1.2.3.4]:1")),
            ("localhost:80", Address::Host("localhost".into(), 80)),
            (
                "my_host.example.com.:80",
                Address::Host("my_host.example.com.".into(), 80),
            ),
            ("8000", Address::Port(8000)),
            ("0", Address::Port(0)),
            ("/run/x.sock", path("/run/x.sock")),
            ("/run/./x.sock", path("/run/x.sock")),
            ("./x.sock", path("/etc/units/x.sock")),
            ("../x.sock", path("/etc/units/../x.sock")),
            ("@abstract", Address::Abstract("abstract".into())),
            ("@a b/\u{e4}", Address::Abstract("a b/\u{e4}".into())),
        ] {
            assert_eq!(parse(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_what_is_missing() {
        let long = format!("/{}", "x".repeat(107));
        let long_name = format!("@{}", "x".repeat(108));
        for (text, wanted) in [
            ("", "is empty"),
            (
                ":80",
                "has no host; write `\"80\"` for all addresses, or `\"127.0.0.1:80\"`",
            ),
            ("*:80", "write `\"80\"` for all addresses"),
            ("localhost", "has no port; write `\"localhost:8000\"`"),
            ("localhost:", "has no port after `:`"),
            ("localhost:http", "has `http` for a port"),
            ("localhost:+80", "has `+80` for a port"),
            (
                "localhost:65536",
                "has the port 65536; ports go from 0 to 65535",
            ),
            ("65536", "has the port 65536"),
            ("99999999999999999999999", "ports go from 0 to 65535"),
            ("::1", "has no port, or no brackets; write `\"[::1]:80\"`"),
            (
                "2001:db8::1:80",
                "has no brackets; write `\"[2001:db8::1]:80\"`",
            ),
            ("::1:80", "has no brackets; write `\"[::1]:80\"`"),
            (":::80", "has no brackets; write `\"[::]:80\"`"),
            (
                "2001:db8::a:b",
                "has no port, or no brackets; write `\"[2001:db8::a:b]:80\"`",
            ),
            ("a:b:c", "is not an address"),
            ("[::1]", "has no port; write `\"[::1]:80\"`"),
            ("[::1", "has no `]`"),
            ("[::1]80", "something else than `:PORT`"),
            ("[::g]:80", "has `::g`, which is not an IPv6 address"),
            ("[127.0.0.1]:80", "write `\"127.0.0.1:80\"`"),
            ("[127.0.0.1]", "write `\"127.0.0.1:80\"`"),
            ("[::g]", "has `::g`, which is not an IPv6 address"),
            ("[fe80::1%eth0]:80", "`interface = \"eth0\"`"),
            ("[fe80::1%]:80", "has no scope after `%`"),
            ("[fe80::1%99999999999]:80", "too large"),
            (
                "256.1.1.1:80",
                "has `256.1.1.1`, which is not an IPv4 address",
            ),
            ("127.0.1:80", "not an IPv4 address"),
            ("b\u{fc}cher.de:80", "not a host name"),
            ("a b:80", "not a host name"),
            ("-a:80", "not a host name"),
            ("a..b:80", "not a host name"),
            ("run/x.sock", "is a relative path; write `\"./run/x.sock\"`"),
            ("/run/", "names a folder"),
            ("./", "names a folder"),
            ("..", "not an IPv4 address"),
            ("+80", "has `+80`, which is not a host name"),
            (":+80", "has `+80` for a port"),
            ("*:", "has no port after `:`"),
            ("run/", "names a folder"),
            ("/run/..", "names a folder"),
            ("/a\0b", "NUL"),
            ("@a\0b", "NUL"),
            ("@", "has no name after `@`"),
            (
                &long,
                "is a path of 108 bytes; a unix socket's has at most 107",
            ),
            (&long_name, "is a name of 108 bytes"),
            ("vsock:2:1234", "is a vsock address, which is not built yet"),
            ("route 1361", "is a netlink address, which is not built yet"),
            (
                "unix:/run/x.sock",
                "write the address alone, such as `\"/run/x.sock\"`",
            ),
            (
                "tcp://127.0.0.1:80",
                "write the address alone, such as `\"127.0.0.1:80\"`",
            ),
            ("http://x:80/", "such as `\"x:80\"`"),
            ("http://x/y", "such as `\"127.0.0.1:8000\"`"),
            (" 127.0.0.1:80", "blanks"),
            ("/run/$(circus.wid).sock", "has a substitution"),
            ("@((Circus.wid))", "has a substitution"),
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }

    #[test]
    fn a_path_of_exactly_107_bytes_is_taken() {
        let text = format!("/{}", "x".repeat(106));
        assert_eq!(parse(&text), Ok(Address::Path(PathBuf::from(&text))));
        let relative = format!("./{}", "x".repeat(107 - "/etc/units/".len()));
        assert!(parse(&relative).is_ok());
        assert!(parse(&format!("{relative}x")).is_err());
    }
}
