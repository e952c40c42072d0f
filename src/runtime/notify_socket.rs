//! The way to whoever started this process and wants to know how it is: NOTIFY_SOCKET, sd_notify(3).

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A connection to whoever NOTIFY_SOCKET names, if anybody.
pub fn connect() -> Option<UnixDatagram> {
    let name = name()?;
    let connection = UnixDatagram::unbound().ok()?;
    let connected = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)
            .and_then(|address| connection.connect_addr(&address)),
        None => connection.connect(&name),
    };
    match connected {
        Ok(()) => Some(connection),
        Err(error) => {
            log::warn!(target: "manager", "NOTIFY_SOCKET={} can't be reached: {error}", name.display());
            None
        }
    }
}

/// The path or abstract name (`@...`), if there is one.
pub fn name() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}
