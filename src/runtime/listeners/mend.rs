//! Making good what somebody has done to a socket: workers share it with the manager, and its file stands where others may
//! reach it.
//!
//! A socket is looked at when a worker has ended, since it may be the last for long and clients are to wait all the same,
//! and before the next one gets it.

use super::super::node::Node;
use super::listener::{Listener, address_of, listen};
use super::{Fds, Groups, Listeners, SocketId};
use crate::sys::epoll::Epoll;
use crate::sys::socket::{self, Address, Local};
use crate::unit::SocketKind;
use std::os::fd::AsFd;

/// Why nobody can reach a socket.
enum Harm {
    /// shutdown(2).
    Shut,
    /// Its file is gone.
    NoFile,
    /// Somebody else's file stands in its place.
    OtherFile,
}

/// What was done about it.
enum Mended {
    /// It is the same kernel socket.
    Same(&'static str),
    /// It is another, and so many clients waited in the one that is gone.
    Another(u64),
}

impl Listeners {
    /// Makes good what a worker of this wid, which has ended, may have done to its sockets, or somebody before the next
    /// one of it is made. `is_alone` says whether no other of its watcher runs.
    pub fn mend(&mut self, epoll: &Epoll, id: SocketId, wid: u32, is_alone: &dyn Fn() -> bool) {
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        match listener.harm(wid) {
            Some(harm) => self.mend_harm(epoll, id, wid, &harm, is_alone),
            None => {
                listener.trouble = None;
                listener.set_as_asked(wid, is_alone);
            }
        }
    }

    fn mend_harm(
        &mut self,
        epoll: &Epoll,
        id: SocketId,
        wid: u32,
        harm: &Harm,
        is_alone: &dyn Fn() -> bool,
    ) {
        let watched = self.all.get(&id).and_then(|it| it.watched.clone());
        if watched.is_some() {
            self.unwatch(epoll, id);
        }
        if let Some(listener) = self.all.get_mut(&id) {
            if listener.mend(wid, harm, &mut self.groups) {
                self.dirty.insert(id);
            }
            // With one that is shut down still, listen(2) would take another port.
            if listener.trouble.is_none() {
                listener.set_as_asked(wid, is_alone);
            }
        }
        if let Some(shards) = watched {
            self.watch(epoll, id, shards);
        }
    }

    /// New clients may come to what a worker of this wid is to serve: it may have been about to go.
    pub fn let_in(&self, id: SocketId, wid: u32) {
        if let Some(listener) = self.all.get(&id)
            && listener.is_tcp()
            && let Some(fd) = listener.fd(wid)
        {
            let _ = socket::let_in(fd.as_fd());
        }
    }

    /// Whether the file of a socket is gone.
    pub fn has_lost_its_file(&self, id: SocketId) -> bool {
        let node = self.all.get(&id).and_then(|it| it.node.as_ref());
        node.is_some_and(|node| node.is_there() == Some(false))
    }

    /// Puts back all files that are gone. Without a second name that takes a new kernel socket: of one that somebody
    /// serves, as `is_served` says, it is only told.
    pub fn put_files_back(&mut self, epoll: &Epoll, is_served: &dyn Fn(SocketId) -> bool) {
        let harmed = |(id, it): (&SocketId, &Listener)| {
            let harm = it.harm_to_file()?;
            Some((*id, harm))
        };
        let harmed: Vec<(SocketId, Harm)> = self.all.iter().filter_map(harmed).collect();
        for (id, harm) in harmed {
            let Some(listener) = self.all.get_mut(&id) else {
                continue;
            };
            let can_be_put_back = listener.node.as_ref().is_some_and(Node::has_spare);
            if matches!(harm, Harm::NoFile) && !can_be_put_back && is_served(id) {
                let trouble = format!("{NO_FILE}; the next start of its workers binds it anew");
                if listener.trouble.as_ref() != Some(&trouble) {
                    log::error!(target: &listener.target(), "{trouble}");
                }
                listener.trouble = Some(trouble);
            } else {
                // It has no shards, and so no wid matters.
                self.mend_harm(epoll, id, 1, &harm, &|| false);
            }
        }
    }
}

/// How the loss of a file is told.
const NO_FILE: &str = "had lost its file";

impl Listener {
    fn target(&self) -> String {
        format!("socket.{}", self.spec.name())
    }

    fn harm(&self, wid: u32) -> Option<Harm> {
        let is_shut = self.fd(wid).is_some_and(|fd| socket::is_shut(fd.as_fd()));
        match self.harm_to_file() {
            Some(Harm::OtherFile) => Some(Harm::OtherFile),
            // A new kernel socket has a new file.
            _ if is_shut => Some(Harm::Shut),
            harm => harm,
        }
    }

    fn harm_to_file(&self) -> Option<Harm> {
        match self.node.as_ref()?.is_there() {
            Some(true) => None,
            Some(false) => Some(Harm::NoFile),
            None => Some(Harm::OtherFile),
        }
    }

    /// Sets again what a worker may have set for all who share the socket.
    fn set_as_asked(&self, wid: u32, is_alone: &dyn Fn() -> bool) {
        let Some(fd) = self.fd(wid) else {
            return;
        };
        let unit = &self.spec.unit;
        let _ = match unit.kind {
            // One that was connected (connect(2)) hears its peer alone.
            SocketKind::Dgram => socket::disconnect(fd.as_fd()),
            // The queue is as long as the last listen(2) says.
            SocketKind::Stream | SocketKind::Seqpacket => {
                socket::set_backlog(fd.as_fd(), unit.backlog)
            }
        };
        // Those who share it with another that runs have to agree with that one.
        if socket::is_blocking(fd.as_fd()).is_ok_and(|it| it != unit.blocking)
            && is_alone()
            && socket::set_blocking(fd.as_fd(), unit.blocking).is_ok_and(|it| it)
        {
            log::debug!(target: &self.target(), "O_NONBLOCK is as `blocking` says again");
        }
    }

    /// Says whether the descriptor is another now.
    fn mend(&mut self, wid: u32, harm: &Harm, groups: &mut Groups) -> bool {
        let had_trouble = self.trouble.take().is_some();
        let target = self.target();
        let (what, mended) = match harm {
            Harm::Shut => ("was shut down", self.listen_anew(wid, groups)),
            Harm::NoFile => (NO_FILE, self.put_file_back(wid, groups)),
            Harm::OtherFile => {
                let path = address_of(&self.spec.unit);
                let trouble = format!(
                    "{path} is not its file any more: somebody has put another there, and clients reach that"
                );
                if !had_trouble {
                    log::error!(target: &target, "{trouble}");
                }
                self.trouble = Some(trouble);
                return false;
            }
        };
        match mended {
            // Nobody was lost who had come by it, and some servers do it at each end.
            Ok(Mended::Same(how)) if matches!(harm, Harm::NoFile) => {
                log::info!(target: &target, "{what}, by a worker most likely, and {how}");
                false
            }
            Ok(Mended::Same(how)) => {
                log::warn!(target: &target, "{what}, by a worker most likely, and {how}");
                false
            }
            Ok(Mended::Another(lost)) => {
                log::warn!(target: &target, "{what}, by a worker most likely, and is bound anew");
                if lost > 0 {
                    log::error!(target: &target, "{lost} clients that waited in it are lost");
                }
                true
            }
            Err(error) => {
                let trouble = format!("{what}, and {error}");
                if !had_trouble {
                    log::error!(target: &target, "{trouble}");
                }
                self.trouble = Some(trouble);
                false
            }
        }
    }

    fn put_file_back(&mut self, wid: u32, groups: &mut Groups) -> Result<Mended, String> {
        if self.node.as_ref().is_some_and(|it| it.put_back().is_ok()) {
            return Ok(Mended::Same("has it back"));
        }
        self.bind_anew(wid, groups)
    }

    fn listen_anew(&mut self, wid: u32, groups: &mut Groups) -> Result<Mended, String> {
        let takes_datagrams = self.spec.unit.kind == SocketKind::Dgram;
        match (address_of(&self.spec.unit), &self.local) {
            (Address::Path(_), _) => self.bind_anew(wid, groups),
            (Address::Abstract(_), _) => Err(
                "its name is taken as long as anybody has it: take it out of the units, `tentpole apply`, and put it back"
                    .into(),
            ),
            (_, Some(Local::Ip(_))) if takes_datagrams => self.bind_anew(wid, groups),
            (_, Some(Local::Ip(address))) => {
                let address = *address;
                let Some(fd) = self.fd(wid) else {
                    return Ok(Mended::Same("is there"));
                };
                let wanted = Address::Ip(address);
                let listens = socket::listen_again(fd.as_fd(), &listen(&self.spec, &wanted), address);
                listens.map_err(|error| format!("does not listen again: {error}"))?;
                if let Some(group) = &self.group {
                    // It had left the kernel's list, and is the last on it now.
                    group.leave(fd);
                    group.join(fd);
                    group.choose(fd);
                }
                Ok(Mended::Same("listens again"))
            }
            _ => Err("does not listen again".into()),
        }
    }

    /// A new kernel socket on its address. What waits in the old one can't be reached any more.
    fn bind_anew(&mut self, wid: u32, groups: &mut Groups) -> Result<Mended, String> {
        let old = match std::mem::replace(&mut self.fds, Fds::Unbound) {
            Fds::One(old) => old,
            others => {
                self.fds = others;
                return self.bind_shard_anew(wid);
            }
        };
        if let Some(node) = self.node.take() {
            node.give_up_spare();
            node.remove();
        }
        let bound = match self.local {
            // The keeper has it for a moment more.
            Some(Local::Ip(address)) => {
                let _ = socket::set_shareable(old.as_fd(), true);
                self.bind_beside(&Address::Ip(address), groups)
            }
            _ => self.bind(None, groups, &[]),
        };
        if let Err(obstacle) = bound {
            // It is tried again for the next worker.
            self.fds = Fds::One(old);
            return Err(format!(
                "can't be bound anew: {}",
                obstacle.explain(self, [], None)
            ));
        }
        self.number += 1;
        let lost = socket::queue(old.as_fd()).map_or(0, |queue| queue.waiting);
        if matches!(self.local, Some(Local::Ip(_))) {
            for fd in self.fds.iter().chain([&old]) {
                let _ = socket::set_shareable(fd.as_fd(), false);
            }
        }
        // It is not shut down: others may be serving who came to it before.
        Ok(Mended::Another(lost))
    }

    fn bind_shard_anew(&mut self, wid: u32) -> Result<Mended, String> {
        if self.fd(wid).is_none() {
            return Ok(Mended::Same("is there"));
        }
        let bound = self.bind_shard();
        let (number, fd) = bound.map_err(|error| format!("can't be bound anew: {error}"))?;
        if let Fds::Shards(shards) = &mut self.fds
            && let Some(shard) = shards.iter_mut().find(|shard| shard.wid == Some(wid))
        {
            shard.number = number;
            let old = std::mem::replace(&mut shard.fd, fd);
            if let Some(group) = &self.group {
                group.leave(&old);
                group.choose(&shard.fd);
            }
        }
        Ok(Mended::Another(0))
    }
}
