//! Who has an address: for the message of a bind that failed. Best effort, by /proc.

use super::process::{Pid, name_of};
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

/// A process that has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub pid: Pid,
    /// Its name, where it could be read.
    pub name: Option<String>,
}

impl Owner {
    /// The process `pid`, with its name.
    pub fn of(pid: Pid) -> Owner {
        Owner {
            pid,
            name: name_of(pid),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (pid {})", self.pid),
            None => write!(f, "pid {}", self.pid),
        }
    }
}

/// The most descriptors that are looked at before the search is given up.
const MOST_LINKS: usize = 1 << 18;

/// A process that has a TCP listener, or a UDP socket, in the way of one on `wanted`.
pub fn of_port(wanted: SocketAddr, stream: bool) -> Option<Owner> {
    let tables = if stream {
        ["tcp", "tcp6"]
    } else {
        ["udp", "udp6"]
    };
    let mut inodes: Vec<(u8, u64)> = Vec::new();
    for table in tables {
        let Ok(text) = fs::read_to_string(format!("/proc/self/net/{table}")) else {
            continue;
        };
        let rows = text.lines().skip(1).filter_map(parse_row);
        inodes.extend(
            rows.filter(|row| !stream || row.is_listening)
                .filter_map(|row| {
                    let distance = conflict(wanted, row.local)?;
                    Some((distance, row.inode))
                }),
        );
    }
    let nearest = inodes.iter().map(|(distance, _)| *distance).min()?;
    let inodes: Vec<u64> = inodes
        .into_iter()
        .filter(|(distance, _)| *distance == nearest)
        .map(|(_, inode)| inode)
        .collect();
    holder(&inodes)
}

/// A process that has a unix socket bound to `name`: a path, or an abstract name with a leading `@`.
pub fn of_unix(name: &[u8]) -> Option<Owner> {
    let table = fs::read("/proc/self/net/unix").ok()?;
    let inodes: Vec<u64> = table
        .split(|&byte| byte == b'\n')
        .skip(1)
        .filter_map(|row| {
            // Num RefCount Protocol Flags Type St Inode Path; the path may hold blanks.
            let mut fields = row
                .splitn(8, |&byte| byte == b' ')
                .filter(|field| !field.is_empty());
            let inode = fields.nth(6)?;
            (row.strip_suffix(name)?.strip_suffix(b" ")?.ends_with(inode))
                .then(|| std::str::from_utf8(inode).ok()?.parse().ok())
                .flatten()
        })
        .collect();
    holder(&inodes)
}

/// The oldest process (by number) that has one of these sockets open: with forked workers, most likely their master.
fn holder(inodes: &[u64]) -> Option<Owner> {
    if inodes.is_empty() {
        return None;
    }
    let names: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let mut pids: Vec<Pid> = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .and_then(Pid::new)
        })
        .collect();
    pids.sort_unstable();
    let mut links = 0;
    for pid in pids {
        // Others' descriptors are closed to those who are not root.
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            if names
                .iter()
                .any(|name| target.as_os_str().as_bytes() == name.as_bytes())
            {
                return Some(Owner::of(pid));
            }
        }
    }
    None
}

/// A row of /proc/net/tcp and its like.
#[derive(Debug, PartialEq)]
struct Row {
    local: SocketAddr,
    is_listening: bool,
    inode: u64,
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...`, in hexadecimal (proc_net(5)).
fn parse_row(row: &str) -> Option<Row> {
    const TCP_LISTEN: u8 = 10;
    let mut fields = row.split_ascii_whitespace();
    let local = parse_address(fields.nth(1)?)?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Row {
        local,
        is_listening: state == TCP_LISTEN,
        inode,
    })
}

/// The address is written as 32-bit words in the machine's byte order, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| -> Option<[u8; 4]> {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let mut octets = [0; 16];
            for (octets, word) in octets.chunks_exact_mut(4).zip(words) {
                octets.copy_from_slice(&word);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether a socket on `taken` keeps another from `wanted`; the smaller, the more it looks like the one.
pub fn conflict(wanted: SocketAddr, taken: SocketAddr) -> Option<u8> {
    let (wanted_ip, taken_ip) = (wanted.ip().to_canonical(), taken.ip().to_canonical());
    if wanted.port() != taken.port() {
        None
    } else if wanted_ip == taken_ip {
        Some(0)
    } else if wanted_ip.is_unspecified() || taken_ip.is_unspecified() {
        Some(if wanted_ip.is_ipv4() == taken_ip.is_ipv4() {
            1
        } else {
            2
        })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    #[test]
    fn rows_of_the_kernels_tables_are_read() {
        if cfg!(target_endian = "big") {
            return;
        }
        let row = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100";
        let local = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(
            parse_row(row),
            Some(Row {
                local,
                is_listening: true,
                inode: 12345
            })
        );
        let row = "  1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 7 2 0 0";
        let local = "[::1]:80".parse().unwrap();
        assert_eq!(
            parse_row(row),
            Some(Row {
                local,
                is_listening: false,
                inode: 7
            })
        );
        for broken in [
            "",
            "0: 0100007F:1F90",
            "0: xyz:1 0:0 0A 0 0 0 0 0 1",
            "0: 01é0007:1F90 0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(parse_row(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_nearest_address_is_blamed() {
        let conflict = |wanted: &str, taken: &str| {
            super::conflict(wanted.parse().unwrap(), taken.parse().unwrap())
        };
        assert_eq!(conflict("127.0.0.1:80", "127.0.0.1:80"), Some(0));
        assert_eq!(conflict("127.0.0.1:80", "[::ffff:127.0.0.1]:80"), Some(0));
        assert_eq!(conflict("127.0.0.1:80", "0.0.0.0:80"), Some(1));
        assert_eq!(conflict("127.0.0.1:80", "[::]:80"), Some(2));
        assert_eq!(conflict("127.0.0.1:80", "127.0.0.2:80"), None);
        assert_eq!(conflict("127.0.0.1:80", "127.0.0.1:81"), None);
    }

    #[test]
    fn this_process_is_found_by_what_it_listens_on() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            of_port(tcp.local_addr().unwrap(), true),
            Some(Owner::of(Pid::own()))
        );
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            of_port(udp.local_addr().unwrap(), false),
            Some(Owner::of(Pid::own()))
        );
        let folder = tempfile::tempdir().unwrap();
        for name in ["x.sock", "with a blank  .sock", " 12345"] {
            let path = folder.path().join(name);
            let _unix = UnixListener::bind(&path).unwrap();
            assert_eq!(
                of_unix(path.as_os_str().as_bytes()),
                Some(Owner::of(Pid::own())),
                "{path:?}"
            );
        }
        assert_eq!(of_unix(b"/nonexistent"), None);
        assert_eq!(of_unix(b""), None);
    }
}
