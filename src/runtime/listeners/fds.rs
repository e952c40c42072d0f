//! The descriptors of a socket: one, or a shard for each wid.

use super::super::SlotKey;
use crate::supervise::{SocketId, WatcherId};
use crate::sys::socket;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// The key of the one shard of a `so_reuseport` socket that no watcher has claimed.
pub(super) const UNCLAIMED: SlotKey = (WatcherId(u32::MAX), 0);

pub(super) enum Fds {
    Unbound,
    One(Descriptor),
    /// One kernel queue for each wid, in the order of the kernel's own list of the group.
    Shards(Vec<Shard>),
}

pub(super) struct Shard {
    /// Which of the listener's shards: what it is held by.
    pub(super) number: u32,
    pub(super) key: SlotKey,
    pub(super) fd: Descriptor,
    /// Out of the kernel's choice.
    pub(super) retired: bool,
}

/// A descriptor of a kernel socket that two listeners may have, while one takes the other's place.
pub(super) struct Descriptor {
    pub(super) fd: OwnedFd,
    /// All descriptors of the same socket share it.
    pub(super) socket: Rc<()>,
}

impl Fds {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Descriptor> {
        let (one, shards) = match self {
            Fds::Unbound => (None, &[][..]),
            Fds::One(fd) => (Some(fd), &[][..]),
            Fds::Shards(shards) => (None, shards.as_slice()),
        };
        one.into_iter().chain(shards.iter().map(|shard| &shard.fd))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Descriptor> {
        let (one, shards) = match self {
            Fds::Unbound => (None, &mut [][..]),
            Fds::One(fd) => (Some(fd), &mut [][..]),
            Fds::Shards(shards) => (None, shards.as_mut_slice()),
        };
        one.into_iter()
            .chain(shards.iter_mut().map(|shard| &mut shard.fd))
    }

    /// The same kernel sockets once more.
    pub(super) fn again(&self) -> io::Result<Fds> {
        Ok(match self {
            Fds::Unbound => Fds::Unbound,
            Fds::One(fd) => Fds::One(fd.again()?),
            Fds::Shards(shards) => {
                let shards = shards.iter().map(|shard| {
                    let fd = shard.fd.again()?;
                    Ok(Shard { fd, ..*shard })
                });
                Fds::Shards(shards.collect::<io::Result<_>>()?)
            }
        })
    }

    pub(super) fn close(self) {
        match self {
            Fds::Unbound => {}
            Fds::One(fd) => fd.close(),
            Fds::Shards(shards) => shards.into_iter().for_each(|shard| shard.fd.close()),
        }
    }
}

impl Descriptor {
    pub(super) fn new(fd: OwnedFd) -> Descriptor {
        let socket = Rc::new(());
        Descriptor { fd, socket }
    }

    pub(super) fn again(&self) -> io::Result<Descriptor> {
        let socket = Rc::clone(&self.socket);
        let fd = self.fd.try_clone()?;
        Ok(Descriptor { fd, socket })
    }

    /// Closes it, and with the last one the kernel socket: its address must be free when an apply is said to be done,
    /// though the keeper may have it for a moment more.
    pub(super) fn close(self) {
        if Rc::strong_count(&self.socket) == 1 {
            socket::stop_listening(self.fd.as_fd());
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Shard {
    pub(super) fn record(&self) -> ShardRecord {
        let (WatcherId(watcher), wid) = self.key;
        ShardRecord {
            number: self.number,
            watcher,
            wid,
            retired: self.retired,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    pub(super) number: u32,
    pub(super) watcher: u32,
    pub(super) wid: u32,
    pub(super) retired: bool,
}

impl ShardRecord {
    pub(super) fn with(self, fd: OwnedFd) -> Shard {
        Shard {
            number: self.number,
            key: (WatcherId(self.watcher), self.wid),
            fd: Descriptor::new(fd),
            retired: self.retired,
        }
    }
}

/// What a socket's descriptor, or that of one of its shards, is held by.
pub(super) fn name_of(id: SocketId, shard: Option<u32>) -> String {
    match shard {
        None => format!("s{}", id.0),
        Some(number) => format!("s{}.{number}", id.0),
    }
}

/// Tells the kernel which of the shards new connections may go to.
pub(super) fn choose(shards: &[Shard]) {
    let Some(first) = shards.first() else { return };
    let live: Vec<u32> = (0u32..)
        .zip(shards)
        .filter(|(_, shard)| !shard.retired)
        .map(|(index, _)| index)
        .collect();
    let chosen = if live.len() == shards.len() || live.is_empty() {
        socket::choose_all(first.fd.as_fd())
    } else {
        socket::choose_among(first.fd.as_fd(), &live)
    };
    if let Err(error) = chosen {
        log::warn!(target: "manager", "the kernel's choice of a shard could not be changed: {error}");
    }
}
