//! A descriptor of a socket, and the kernel socket that it may share with others.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// A descriptor of a kernel socket that two listeners may have, while one takes the other's place.
pub(super) struct Descriptor {
    pub(super) fd: OwnedFd,
    /// All descriptors of the same socket share it.
    pub(super) socket: Rc<Kernel>,
}

/// A kernel socket.
#[derive(Default)]
pub(super) struct Kernel {
    /// Out of the kernel's choice.
    pub(super) retired: Cell<bool>,
}

impl Descriptor {
    pub(super) fn new(fd: OwnedFd) -> Descriptor {
        let socket = Rc::default();
        Descriptor { fd, socket }
    }

    pub(super) fn again(&self) -> io::Result<Descriptor> {
        let socket = Rc::clone(&self.socket);
        let fd = self.fd.try_clone()?;
        Ok(Descriptor { fd, socket })
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
