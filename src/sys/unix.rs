//! Who is at the other end of a unix stream connection.

use super::process::Pid;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// The process at the other end, as it was when it called connect (or listen), unix(7) SO_PEERCRED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; `None` if that is outside of our pid namespace.
    pub pid: Option<Pid>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// The credentials of the other end of a connected unix stream socket.
pub fn peer(fd: impl AsFd) -> io::Result<Peer> {
    let mut who = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `who` has room for the length that is given.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // What is not connected has no peer: the kernel says user -1.
    if who.uid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
    }
    Ok(Peer {
        pid: Pid::new(who.pid),
        uid: who.uid,
        gid: who.gid,
    })
}

/// The supplementary groups of the other end of a connected unix stream socket.
pub fn peer_groups(fd: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 32];
    loop {
        let mut length = size_of_val(&groups[..]) as libc::socklen_t;
        // SAFETY: `groups` has room for the length that is given.
        let result = unsafe {
            libc::getsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel then says how much room it wants.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_connection_knows_both_of_its_ends() {
        let (near, _far) = UnixStream::pair().unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let gid = nix::unistd::getegid().as_raw();
        assert_eq!(
            peer(&near).unwrap(),
            Peer {
                pid: Some(Pid::own()),
                uid,
                gid
            }
        );
        let mut expected: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .into_iter()
            .map(|group| group.as_raw())
            .collect();
        let mut groups = peer_groups(&near).unwrap();
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn what_is_not_connected_has_no_peer() {
        let socket = UnixDatagram::unbound().unwrap();
        assert_eq!(
            peer(&socket).unwrap_err().raw_os_error(),
            Some(libc::ENOTCONN)
        );
        assert_eq!(
            peer(std::io::stdin()).is_err(),
            peer_groups(std::io::stdin()).is_err()
        );
    }
}
