//! Sockets that share an address by SO_REUSEPORT, and which of them the kernel chooses for new clients.
//!
//! The kernel has a list of them. A program that chooses names places in it, so the order must be known: who joins
//! comes last, and when one leaves, the last takes its place.

use super::descriptor::{Descriptor, Kernel};
use crate::sys::socket;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::{Rc, Weak};

/// What all sockets of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Common {
    pub(super) takes_datagrams: bool,
    pub(super) address: SocketAddr,
    pub(super) interface: Option<String>,
}

/// All groups that there are.
#[derive(Default)]
pub(super) struct Groups(HashMap<Common, Group>);

/// The kernel's list of one group.
#[derive(Clone, Default)]
pub(super) struct Group {
    members: Rc<RefCell<Vec<Weak<Kernel>>>>,
    takes_datagrams: bool,
}

impl Groups {
    /// The group of sockets that have this in common.
    pub(super) fn of(&mut self, common: Common) -> Group {
        self.0
            .retain(|_, group| Rc::strong_count(&group.members) > 1);
        let takes_datagrams = common.takes_datagrams;
        let group = self.0.entry(common).or_insert_with(|| Group {
            members: Rc::default(),
            takes_datagrams,
        });
        group.clone()
    }
}

impl Group {
    /// It is on the list from now on, as the last, if it is not already.
    pub(super) fn join(&self, fd: &Descriptor) {
        if self.place_of(fd).is_none() {
            self.members.borrow_mut().push(Rc::downgrade(&fd.socket));
        }
    }

    /// It is not any more.
    pub(super) fn leave(&self, fd: &Descriptor) {
        if let Some(place) = self.place_of(fd) {
            self.members.borrow_mut().swap_remove(place as usize);
        }
    }

    pub(super) fn place_of(&self, fd: &Descriptor) -> Option<u32> {
        let ours = Rc::as_ptr(&fd.socket);
        let members = self.members.borrow();
        let mut places = (0u32..).zip(members.iter());
        places
            .find(|(_, member)| member.as_ptr() == ours)
            .map(|(place, _)| place)
    }

    /// Tells the kernel, by way of one of them, which of them new clients may go to: none that is retired.
    pub(super) fn choose(&self, fd: &Descriptor) {
        let members = self.members.borrow();
        let live: Vec<u32> = (0u32..)
            .zip(members.iter())
            .filter(|(_, member)| member.upgrade().is_some_and(|it| !it.retired.get()))
            .map(|(place, _)| place)
            .collect();
        // One that takes datagrams is in the kernel's list for a moment after we have closed it: until the keeper has.
        let is_all = live.len() == members.len() && !self.takes_datagrams;
        let chosen = if is_all || live.is_empty() {
            socket::choose_all(fd.as_fd())
        } else {
            socket::choose_among(fd.as_fd(), &live)
        };
        if let Err(error) = chosen {
            log::warn!(target: "manager", "the kernel's choice of a shard could not be changed: {error}");
        }
    }
}

/// Closes a descriptor, and with the last one the kernel socket: its address must be free when an apply is said to be
/// done, though the keeper may have it for a moment more.
pub(super) fn close(fd: Descriptor, group: Option<&Group>) {
    if Rc::strong_count(&fd.socket) == 1 {
        socket::stop_listening(fd.as_fd());
        if let Some(group) = group {
            group.leave(&fd);
        }
    }
}
