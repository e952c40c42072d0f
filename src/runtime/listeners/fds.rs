//! The descriptors of a socket: one, or a shard for each wid.

use super::descriptor::Descriptor;
use super::group::{self, Group};
use crate::supervise::SocketId;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;

pub(super) enum Fds {
    Unbound,
    One(Descriptor),
    /// One kernel queue for each wid.
    Shards(Vec<Shard>),
}

pub(super) struct Shard {
    /// Which of the listener's shards: what it is held by.
    pub(super) number: u32,
    /// Whose it is; nobody's if it has been kept for the next.
    pub(super) wid: Option<u32>,
    pub(super) fd: Descriptor,
    /// It was found empty after the kernel had been told not to choose it.
    pub(super) drained: bool,
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

    pub(super) fn close(self, group: Option<&Group>) {
        match self {
            Fds::Unbound => {}
            Fds::One(fd) => group::close(fd, group),
            Fds::Shards(shards) => shards.into_iter().for_each(|it| group::close(it.fd, group)),
        }
    }
}

impl Shard {
    /// That of a wid, with a descriptor that is the listener's `number`th.
    pub(super) fn new(number: u32, wid: u32, fd: Descriptor) -> Shard {
        Shard {
            number,
            wid: Some(wid),
            fd,
            drained: false,
        }
    }

    pub(super) fn record(&self, group: Option<&Group>) -> ShardRecord {
        ShardRecord {
            number: self.number,
            wid: self.wid,
            retired: self.fd.socket.retired.get(),
            place: group.and_then(|group| group.place_of(&self.fd)),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    pub(super) number: u32,
    wid: Option<u32>,
    retired: bool,
    /// Where it is in the kernel's list of its group.
    #[serde(default)]
    pub(super) place: Option<u32>,
}

impl ShardRecord {
    pub(super) fn with(&self, fd: OwnedFd) -> Shard {
        let fd = Descriptor::new(fd);
        fd.socket.retired.set(self.retired);
        Shard {
            number: self.number,
            wid: self.wid,
            fd,
            drained: false,
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
