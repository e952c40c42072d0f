//! One socket: how it is bound, beside others or in their place.

use super::super::{SlotKey, inherited::Inherited, node, node::Node};
use super::fds::{Descriptor, Fds, Shard, UNCLAIMED, choose};
use super::{Found, Names, Obstacle};
use crate::plan;
use crate::supervise::SocketId;
use crate::sys::epoll::Epoll;
use crate::sys::socket::{self, Address, BindError, Cause, FileId, IpFamily, Kind, Listen, Local};
use crate::unit;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;

pub(super) struct Listener {
    pub(super) spec: Rc<plan::Socket>,
    pub(super) fds: Fds,
    /// What the host name that it listens on stands for, or why that is not known.
    pub(super) found: Found,
    /// Where it is bound, with the real port.
    pub(super) local: Option<Local>,
    pub(super) watched: bool,
    /// The file of a unix socket that was bound here (and not inherited).
    pub(super) node: Option<Node>,
    /// Where that file is, and the path that it is meant for, on which another still is.
    pub(super) beside: Option<(PathBuf, PathBuf)>,
    /// The one of an apply that it has its kernel socket from.
    pub(super) heir_of: Option<SocketId>,
}

impl Listener {
    pub(super) fn new(spec: &Rc<plan::Socket>) -> Listener {
        Listener {
            spec: Rc::clone(spec),
            fds: Fds::Unbound,
            found: Ok(Vec::new()),
            local: None,
            watched: false,
            node: None,
            beside: None,
            heir_of: None,
        }
    }

    /// The same, with what has come of the lookup of its name.
    pub(super) fn named(spec: &Rc<plan::Socket>, names: &Names) -> Listener {
        let mut listener = Listener::new(spec);
        if let Some(found) = name_to_look_up(&spec.unit).and_then(|name| names.get(name)) {
            listener.found = found.clone();
        }
        listener
    }

    /// Removes its file, if it has made one that is to go with it.
    pub(super) fn remove_node(&self) {
        if self.spec.unit.remove_on_stop
            && let Some(node) = &self.node
        {
            node.remove();
        }
    }

    /// Binds while others that are to go are still there: takes the kernel socket of the one that has its address, or
    /// binds beside those that have an address with it in common.
    pub(super) fn succeed(
        &mut self,
        leaving: &[(SocketId, &Listener)],
        own: &[FileId],
    ) -> Result<(), Obstacle> {
        if let Some((id, predecessor)) = leaving.iter().find(|(_, it)| self.is_same_as(it)) {
            self.fds = predecessor.fds.again().map_err(|error| error.to_string())?;
            self.local = predecessor.local.clone();
            self.heir_of = Some(*id);
            return Ok(());
        }
        let address = address_of(&self.spec.unit);
        if let Address::Path(path) = &address {
            let is_there = |(_, other): &(SocketId, &Listener)| {
                let is_same = address_of(&other.spec.unit) == address;
                let is_alias = || other.node.as_ref().is_some_and(|node| node.is_at(path));
                !matches!(other.fds, Fds::Unbound) && (is_same || is_alias())
            };
            if !leaving.iter().any(is_there) {
                return self.bind(&[UNCLAIMED], None, own);
            }
            // Beside it until it is needed, then in its place by one rename.
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".new");
            let beside = path.with_file_name(name);
            self.bind_at(
                &Address::Path(beside.clone()),
                &[UNCLAIMED],
                None,
                false,
                own,
            )?;
            self.local = Some(Local::Path(path.clone()));
            self.beside = Some((beside, path.clone()));
            return Ok(());
        }
        let neighbours: Vec<&Listener> = (leaving.iter())
            .map(|(_, other)| *other)
            .filter(|other| self.is_neighbour_of(other))
            .collect();
        // The kernel lets two have an address only if both say that they share it.
        let share = |listener: &Listener, shareable| {
            for fd in listener.fds.iter() {
                // If it can't be set, binding says why.
                let _ = socket::set_shareable(fd.as_fd(), shareable);
            }
        };
        for other in &neighbours {
            share(other, true);
        }
        let bound = self.bind_at(&address, &[UNCLAIMED], None, !neighbours.is_empty(), own);
        let all = neighbours.into_iter().chain([&*self]);
        for listener in all.filter(|it| !it.spec.unit.so_reuseport.value) {
            share(listener, false);
        }
        bound
    }

    /// Whether a socket that is bound is, for the kernel, what this one would be: all else can be set on it.
    pub(super) fn is_same_as(&self, bound: &Listener) -> bool {
        let (ours, theirs) = (&self.spec.unit, &bound.spec.unit);
        let is_chosen_by_kernel = ours.address.value.port() == Some(0);
        !matches!(bound.fds, Fds::Unbound)
            && !is_chosen_by_kernel
            && address_of(ours) == address_of(theirs)
            && ours.kind == theirs.kind
            && ours.so_reuseport.value == theirs.so_reuseport.value
    }

    /// Whether both may have an internet address in common.
    pub(super) fn is_neighbour_of(&self, bound: &Listener) -> bool {
        let Some(Local::Ip(theirs)) = &bound.local else {
            return false;
        };
        self.spec.unit.address.value.port() == Some(theirs.port())
    }

    /// The file that it is bound to, whoever has made it.
    pub(super) fn file(&self) -> Option<FileId> {
        match (&self.node, &self.local) {
            (Some(node), _) => Some(node.id()),
            (None, Some(Local::Path(path))) => node::file_at(path),
            (None, _) => None,
        }
    }

    /// Whether it is this one that keeps another from being bound.
    pub(super) fn is_in_the_way(&self, other: &Listener, cause: &Cause) -> bool {
        match (cause, &self.local) {
            (Cause::Own(file), _) => self.file() == Some(*file),
            (Cause::InUse(_), Some(Local::Ip(local))) => {
                let address = address_of(&other.spec.unit);
                let mut listen = listen(&other.spec, &address);
                listen.found = other.found.as_deref().unwrap_or_default();
                self.spec.unit.kind == other.spec.unit.kind
                    && !matches!(self.fds, Fds::Unbound)
                    && socket::is_in_the_way(*local, &listen)
            }
            _ => false,
        }
    }

    pub(super) fn adjust(&self) {
        let address = address_of(&self.spec.unit);
        for fd in self.fds.iter() {
            if let Err(error) = socket::adjust(fd.as_fd(), &listen(&self.spec, &address)) {
                log::warn!(target: &format!("socket.{}", self.spec.name()), "could not be changed: {error}");
            }
        }
    }

    /// It is known from now on; the one of its name that it replaces is not reached any more if they have a path in common.
    pub(super) fn take_its_place(&mut self) {
        let Some((beside, path)) = self.beside.take() else {
            return;
        };
        match std::fs::rename(&beside, &path) {
            Ok(()) => self.node = Node::made_at(&path),
            Err(error) => {
                log::error!(target: &format!("socket.{}", self.spec.name()), "{} could not take its place: {error}", beside.display());
            }
        }
    }

    pub(super) fn bind(
        &mut self,
        keys: &[SlotKey],
        inherited: Option<&mut Inherited>,
        own: &[FileId],
    ) -> Result<(), Obstacle> {
        self.bind_at(&address_of(&self.spec.unit), keys, inherited, false, own)
    }

    pub(super) fn bind_at(
        &mut self,
        address: &Address,
        keys: &[SlotKey],
        inherited: Option<&mut Inherited>,
        shares: bool,
        own: &[FileId],
    ) -> Result<(), Obstacle> {
        let mut listen = listen(&self.spec, address);
        listen.own = own;
        listen.reuseport |= shares;
        listen.found = self.found.as_deref().unwrap_or_default();
        let taken = match inherited {
            Some(inherited) => inherited.take(&self.spec, &listen)?,
            None => None,
        };
        let first = match taken {
            Some(bound) => bound,
            None => {
                if let Err(reason) = &self.found {
                    let cause = Cause::Lookup(reason.clone());
                    let address = address.to_string();
                    return Err(BindError { address, cause }.into());
                }
                let bound = socket::listen(&listen)?;
                if let Address::Path(path) = address {
                    self.node = Node::made_at(path);
                }
                bound
            }
        };
        self.local = Some(first.local);
        if !self.spec.unit.so_reuseport.value {
            self.fds = Fds::One(Descriptor::new(first.fd));
            return Ok(());
        }
        let (first_key, rest) = keys.split_first().unwrap_or((&UNCLAIMED, &[]));
        self.fds = Fds::Shards(vec![Shard {
            number: 0,
            key: *first_key,
            fd: Descriptor::new(first.fd),
            retired: false,
        }]);
        for key in rest {
            self.provide(*key)?;
        }
        Ok(())
    }

    /// One more shard on the address that is bound already (port 0 has become a real one).
    pub(super) fn provide(&mut self, key: SlotKey) -> Result<(), String> {
        let Fds::Shards(shards) = &mut self.fds else {
            return Ok(());
        };
        if shards.iter().any(|shard| shard.key == key) {
            return Ok(());
        }
        if let Some(shard) = shards.iter_mut().find(|shard| shard.key == UNCLAIMED) {
            shard.key = key;
            return Ok(());
        }
        let first = shards
            .first()
            .and_then(|shard| socket::describe(shard.fd.as_fd()).ok());
        let address = match first.map(|first| first.local) {
            Some(Local::Ip(address)) => Address::Ip(address),
            _ => address_of(&self.spec.unit),
        };
        let bound =
            socket::listen(&listen(&self.spec, &address)).map_err(|error| error.to_string())?;
        let number = shards.iter().map(|shard| shard.number).max();
        shards.push(Shard {
            number: number.map_or(0, |number| number + 1),
            key,
            fd: Descriptor::new(bound.fd),
            retired: false,
        });
        choose(shards);
        Ok(())
    }

    pub(super) fn shard(&self, key: SlotKey) -> Option<&Shard> {
        match &self.fds {
            Fds::Unbound | Fds::One(_) => None,
            Fds::Shards(shards) => shards.iter().find(|shard| shard.key == key),
        }
    }

    pub(super) fn retire(&mut self, key: SlotKey) {
        let Fds::Shards(shards) = &mut self.fds else {
            return;
        };
        if let Some(shard) = shards.iter_mut().find(|shard| shard.key == key) {
            shard.retired = true;
            choose(shards);
        }
    }

    pub(super) fn close(&mut self, epoll: &Epoll, key: SlotKey) {
        let Fds::Shards(shards) = &mut self.fds else {
            return;
        };
        let Some(index) = shards.iter().position(|shard| shard.key == key) else {
            return;
        };
        if shards.len() == 1 {
            // The last one stays, so that the port does.
            shards[0].key = UNCLAIMED;
            shards[0].retired = false;
            choose(shards);
            return;
        }
        if self.watched {
            let _ = epoll.remove(shards[index].fd.as_fd());
        }
        // As the kernel does with its list: the last one takes the place of the one that goes.
        shards.swap_remove(index).fd.close();
        choose(shards);
    }
}

pub(super) fn listen<'a>(spec: &'a plan::Socket, address: &'a Address) -> Listen<'a> {
    let unit = &spec.unit;
    Listen {
        address,
        kind: match unit.kind {
            unit::SocketKind::Stream => Kind::Stream,
            unit::SocketKind::Dgram => Kind::Dgram,
            unit::SocketKind::Seqpacket => Kind::Seqpacket,
        },
        backlog: unit.backlog,
        interface: unit
            .interface
            .as_ref()
            .map(|interface| interface.value.as_str()),
        reuseport: unit.so_reuseport.value,
        blocking: unit.blocking,
        umask: unit.umask.map(|mode| mode.0),
        mode: unit.mode.map(|mode| mode.0),
        uid: spec.uid,
        gid: spec.gid,
        directory_mode: unit.directory_mode.0,
        replace: unit.replace,
        own: &[],
        found: &[],
    }
}

/// The host name that must be looked up before the socket can be bound, if there is one.
pub(super) fn name_to_look_up(unit: &unit::Socket) -> Option<&str> {
    let unit::Address::Host(name, _) = &unit.address.value else {
        return None;
    };
    socket::without_lookup(name, None).is_none().then_some(name)
}

pub(super) fn address_of(unit: &unit::Socket) -> Address {
    let family = match unit.family {
        Some(unit::Family::Inet) => Some(IpFamily::V4),
        Some(unit::Family::Inet6) => Some(IpFamily::V6),
        Some(unit::Family::Unix) | None => None,
    };
    match &unit.address.value {
        unit::Address::Port(port) => Address::Any {
            port: *port,
            family,
        },
        unit::Address::Ip(ip) => Address::Ip(*ip),
        unit::Address::Host(host, port) => Address::Host(host.clone(), *port, family),
        unit::Address::Path(path) => Address::Path(path.clone()),
        unit::Address::Abstract(name) => Address::Abstract(name.clone().into_bytes()),
    }
}

pub(super) fn written(unit: &unit::Socket) -> String {
    match &unit.address.value {
        unit::Address::Port(port) => format!("[::]:{port}"),
        unit::Address::Ip(ip) => ip.to_string(),
        unit::Address::Host(host, port) => format!("{host}:{port}"),
        unit::Address::Path(path) => path.display().to_string(),
        unit::Address::Abstract(name) => format!("@{name}"),
    }
}
