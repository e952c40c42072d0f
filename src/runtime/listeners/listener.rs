//! One socket: how it is bound, beside others or in their place.

use super::super::{inherited::Inherited, node, node::Node};
use super::descriptor::Descriptor;
use super::fds::{Fds, Shard};
use super::group::{self, Common, Group, Groups};
use super::{Found, Names, Obstacle};
use crate::plan;
use crate::supervise::SocketId;
use crate::sys::epoll::Epoll;
use crate::sys::process;
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
    /// Whether traffic on it is reported, and if only that of some wids' shards, of which.
    pub(super) watched: Option<Vec<u32>>,
    /// With whom it shares its address.
    pub(super) group: Option<Group>,
    /// How often it was bound anew: a descriptor that is another is held by another name.
    pub(super) number: u32,
    /// Another has its kernel sockets, or some of them, and takes its place.
    pub(super) is_succeeded: bool,
    /// Why nobody can connect to it, though it is bound.
    pub(super) trouble: Option<String>,
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
            watched: None,
            group: None,
            number: 0,
            is_succeeded: false,
            trouble: None,
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
        let Some(node) = &self.node else {
            return;
        };
        node.give_up_spare();
        if self.spec.unit.remove_on_stop {
            node.remove();
        }
    }

    /// Binds while others that are to go are still there: takes the kernel sockets of the one that has its address, or
    /// binds beside those that have an address with it in common.
    pub(super) fn succeed(
        &mut self,
        leaving: &[(SocketId, &Listener)],
        groups: &mut Groups,
        own: &[FileId],
    ) -> Result<(), Obstacle> {
        // The last, where one of a former apply is still there.
        let mut leaving_last = leaving.iter().rev();
        if let Some((id, predecessor)) = leaving_last.find(|(_, it)| self.is_same_as(it)) {
            self.fds = self
                .fds_of(predecessor)
                .map_err(|error| error.to_string())?;
            self.local = predecessor.local.clone();
            self.group = predecessor.group.clone();
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
                return self.bind(None, groups, own);
            }
            // Beside it until it is needed, then in its place by one rename.
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".new");
            let beside = path.with_file_name(name);
            self.bind_at(&Address::Path(beside.clone()), None, groups, own)?;
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
            // If it is the very same address, they are a group.
            let group = other.find_group(groups);
            for fd in other.fds.iter() {
                group.iter().for_each(|group| group.join(fd));
            }
        }
        let bound = match neighbours.is_empty() {
            true => self.bind_at(&address, None, groups, own),
            false => self.bind_beside(&address, groups),
        };
        let all = neighbours.into_iter().chain([&*self]);
        for listener in all.filter(|it| !it.spec.unit.so_reuseport.value) {
            share(listener, false);
        }
        bound
    }

    /// What it takes over of a socket on its address: all shards where both have some; else one is as good as the other.
    fn fds_of(&self, predecessor: &Listener) -> std::io::Result<Fds> {
        match (&predecessor.fds, self.spec.unit.so_reuseport.value) {
            (Fds::One(fd), true) => Ok(Fds::Shards(vec![Shard::new(0, 1, fd.again()?)])),
            (Fds::Shards(shards), false) => {
                let first = shards
                    .iter()
                    .min_by_key(|shard| shard.wid.unwrap_or(u32::MAX));
                first.map_or(Ok(Fds::Unbound), |shard| Ok(Fds::One(shard.fd.again()?)))
            }
            (fds, _) => fds.again(),
        }
    }

    /// What it has was another's: sets what is its own.
    pub(super) fn take_over(&mut self, groups: &mut Groups) {
        self.adjust();
        for fd in self.fds.iter() {
            if let Err(error) = socket::set_shareable(fd.as_fd(), self.spec.unit.so_reuseport.value)
                && matches!(self.local, Some(Local::Ip(_)))
            {
                log::warn!(target: &format!("socket.{}", self.spec.name()), "SO_REUSEPORT could not be changed: {error}");
            }
        }
        if self.spec.unit.so_reuseport.value && self.group.is_none() {
            self.join_group(groups);
        }
        // What was a shard that new clients were kept from is all that there is.
        if let (Fds::One(fd), Some(group)) = (&self.fds, &self.group)
            && fd.socket.retired.replace(false)
        {
            group.choose(fd);
        }
    }

    /// Whether a socket that is bound is, for the kernel, what this one would be: all else can be set on it.
    pub(super) fn is_same_as(&self, bound: &Listener) -> bool {
        let (ours, theirs) = (&self.spec.unit, &bound.spec.unit);
        // With a port that the kernel chooses, each unit has one of its own.
        let is_chosen_by_kernel = ours.address.value.port() == Some(0);
        !matches!(bound.fds, Fds::Unbound)
            && (!is_chosen_by_kernel || self.spec.name() == bound.spec.name())
            && address_of(ours) == address_of(theirs)
            && ours.kind == theirs.kind
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

    pub(super) fn adjust(&mut self) {
        self.trouble = None;
        if let Err(error) = self.adjust_to(&self.spec) {
            let reason = unit::reason(&error);
            let trouble = format!("could not be changed to what its unit says: {reason}");
            log::warn!(target: &format!("socket.{}", self.spec.name()), "{trouble}");
            self.trouble = Some(trouble);
        }
    }

    /// Sets what a definition says, which need not be its own. The error is the last of those that there were.
    pub(super) fn adjust_to(&self, spec: &plan::Socket) -> std::io::Result<()> {
        let address = address_of(&spec.unit);
        let file = self.node.as_ref().map(Node::id);
        let mut result = Ok(());
        for fd in self.fds.iter() {
            let adjusted = socket::adjust(fd.as_fd(), &listen(spec, &address), file);
            result = adjusted.and(result);
        }
        result
    }

    /// Whether its file, if it has one, is the one that it has made.
    pub(super) fn has_its_file(&self) -> bool {
        self.node
            .as_ref()
            .is_none_or(|node| node.is_there() == Some(true))
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

    /// Binds it; if it has shards, the first of them. The others are bound as workers are made.
    pub(super) fn bind(
        &mut self,
        inherited: Option<&mut Inherited>,
        groups: &mut Groups,
        own: &[FileId],
    ) -> Result<(), Obstacle> {
        let address = address_of(&self.spec.unit);
        self.bind_at(&address, inherited, groups, own)
    }

    fn bind_at(
        &mut self,
        address: &Address,
        inherited: Option<&mut Inherited>,
        groups: &mut Groups,
        own: &[FileId],
    ) -> Result<(), Obstacle> {
        let mut listen = listen(&self.spec, address);
        listen.own = own;
        listen.found = self.found.as_deref().unwrap_or_default();
        let taken = match inherited {
            Some(inherited) => inherited.take(&self.spec, &listen)?,
            None => None,
        };
        let first = match taken {
            Some(bound) => bound,
            None => {
                self.is_found(address)?;
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
        let first = Shard::new(0, 1, Descriptor::new(first.fd));
        self.fds = Fds::Shards(vec![first]);
        self.join_group(groups);
        Ok(())
    }

    /// Binds it where others that are to go have the address too, and may be on the same list of the kernel's.
    pub(super) fn bind_beside(
        &mut self,
        address: &Address,
        groups: &mut Groups,
    ) -> Result<(), Obstacle> {
        self.is_found(address)?;
        let mut listen = listen(&self.spec, address);
        listen.reuseport = true;
        listen.found = self.found.as_deref().unwrap_or_default();
        let bound = socket::listen(&listen)?;
        self.local = Some(bound.local);
        let fd = Descriptor::new(bound.fd);
        self.fds = match self.spec.unit.so_reuseport.value {
            true => Fds::Shards(vec![Shard::new(0, 1, fd)]),
            false => Fds::One(fd),
        };
        self.join_group(groups);
        Ok(())
    }

    /// An error if its name could not be looked up.
    fn is_found(&self, address: &Address) -> Result<(), BindError> {
        let Err(reason) = &self.found else {
            return Ok(());
        };
        Err(BindError {
            address: address.to_string(),
            cause: Cause::Lookup(reason.clone()),
        })
    }

    /// The group that it is in, or would be.
    pub(super) fn find_group(&self, groups: &mut Groups) -> Option<Group> {
        let Some(Local::Ip(address)) = &self.local else {
            return None;
        };
        let unit = &self.spec.unit;
        let interface = unit.interface.as_ref();
        Some(groups.of(Common {
            takes_datagrams: unit.kind == unit::SocketKind::Dgram,
            address: *address,
            interface: interface.map(|interface| interface.value.clone()),
        }))
    }

    fn join_group(&mut self, groups: &mut Groups) {
        self.group = self.find_group(groups);
        if let Some(group) = &self.group {
            self.fds.iter().for_each(|fd| group.join(fd));
        }
    }

    /// One more shard on the address that is bound already (port 0 has become a real one). Says whether there was none.
    pub(super) fn provide(&mut self, wid: u32) -> Result<bool, String> {
        let Fds::Shards(shards) = &mut self.fds else {
            return Ok(false);
        };
        if shards.iter().any(|shard| shard.wid == Some(wid)) {
            return Ok(false);
        }
        if let Some(shard) = shards.iter_mut().find(|shard| shard.wid.is_none()) {
            shard.wid = Some(wid);
            self.set_retired(wid, false);
            return Ok(true);
        }
        let (number, fd) = self.bind_shard()?;
        if let Fds::Shards(shards) = &mut self.fds {
            shards.push(Shard::new(number, wid, fd));
        }
        Ok(true)
    }

    /// A kernel socket for one more shard, to which new clients may come at once, and the shard's number.
    pub(super) fn bind_shard(&self) -> Result<(u32, Descriptor), String> {
        let address = match &self.local {
            Some(Local::Ip(address)) => Address::Ip(*address),
            _ => address_of(&self.spec.unit),
        };
        let bound = socket::listen(&listen(&self.spec, &address)).map_err(|error| why(&error))?;
        let fd = Descriptor::new(bound.fd);
        if let Some(group) = &self.group {
            group.join(&fd);
            group.choose(&fd);
        }
        let last = match &self.fds {
            Fds::Shards(shards) => shards.iter().map(|shard| shard.number).max(),
            Fds::Unbound | Fds::One(_) => None,
        };
        Ok((last.map_or(0, |number| number + 1), fd))
    }

    /// Those that are watched.
    pub(super) fn fds_watched(&self) -> impl Iterator<Item = &Descriptor> {
        let is_meant = |wid: Option<u32>| match &self.watched {
            None => false,
            Some(wids) => wids.is_empty() || wid.is_some_and(|wid| wids.contains(&wid)),
        };
        let (one, shards) = match &self.fds {
            Fds::Unbound => (None, &[][..]),
            Fds::One(fd) => (self.watched.is_some().then_some(fd), &[][..]),
            Fds::Shards(shards) => (None, shards.as_slice()),
        };
        let shards = shards.iter().filter(move |shard| is_meant(shard.wid));
        one.into_iter().chain(shards.map(|shard| &shard.fd))
    }

    /// What its descriptor is held by, if it has no shards: a number once it is another than at first.
    pub(super) fn number_held(&self) -> Option<u32> {
        (self.number > 0).then_some(self.number)
    }

    /// The descriptor that a worker of this wid gets.
    pub(super) fn fd(&self, wid: u32) -> Option<&Descriptor> {
        match &self.fds {
            Fds::Unbound => None,
            Fds::One(fd) => Some(fd),
            Fds::Shards(_) => self.shard(wid).map(|shard| &shard.fd),
        }
    }

    pub(super) fn shard(&self, wid: u32) -> Option<&Shard> {
        match &self.fds {
            Fds::Unbound | Fds::One(_) => None,
            Fds::Shards(shards) => shards.iter().find(|shard| shard.wid == Some(wid)),
        }
    }

    /// What waits for a worker of this wid and is lost with the listener; `None` if it has nothing.
    pub(super) fn waiting(&self, wid: u32) -> Option<u64> {
        let fd = self.fd(wid)?;
        if self.is_handed_on(fd) {
            return Some(0);
        }
        socket::queue(fd.as_fd()).ok().map(|it| it.waiting)
    }

    /// Whether who has taken its place has this kernel socket too, with its clients.
    fn is_handed_on(&self, fd: &Descriptor) -> bool {
        self.is_succeeded && Rc::strong_count(&fd.socket) > 1
    }

    /// Sees to it that a worker of this wid has nobody new to serve.
    pub(super) fn turn_away(&mut self, wid: u32) {
        if self.fd(wid).is_none_or(|fd| self.is_handed_on(fd)) {
            return;
        }
        self.set_retired(wid, true);
        let mut fds = self.fds.iter();
        if let Fds::Shards(_) = self.fds
            && fds.any(|fd| !fd.socket.retired.get())
        {
            return;
        }
        for fd in self.fds.iter() {
            if self.is_tcp() {
                let _ = socket::turn_away(fd.as_fd());
            }
        }
        // Whoever has taken its place at the path has the node.
        if !self.is_succeeded {
            self.remove_node();
        }
    }

    /// It is one to come to again, after all of its shards were not.
    pub(super) fn let_in(&self) {
        if self.is_tcp() {
            for fd in self.fds.iter() {
                let _ = socket::let_in(fd.as_fd());
            }
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.local, Some(Local::Ip(_))) && self.spec.unit.kind == unit::SocketKind::Stream
    }

    /// Takes a shard out of the kernel's choice, or puts it back.
    pub(super) fn set_retired(&mut self, wid: u32, retired: bool) {
        let Fds::Shards(shards) = &mut self.fds else {
            return;
        };
        let Some(shard) = shards.iter_mut().find(|shard| shard.wid == Some(wid)) else {
            return;
        };
        shard.drained &= retired;
        if shard.fd.socket.retired.replace(retired) != retired
            && let Some(group) = &self.group
        {
            group.choose(&shard.fd);
        }
    }

    /// A shard is another wid's from now on.
    pub(super) fn move_shard(&mut self, from: u32, to: u32) {
        if let Fds::Shards(shards) = &mut self.fds
            && let Some(shard) = shards.iter_mut().find(|shard| shard.wid == Some(from))
        {
            shard.wid = Some(to);
        }
    }

    /// It was found empty.
    pub(super) fn set_drained(&mut self, wid: u32) {
        if let Fds::Shards(shards) = &mut self.fds
            && let Some(shard) = shards.iter_mut().find(|shard| shard.wid == Some(wid))
        {
            shard.drained = shard.fd.socket.retired.get();
        }
    }

    /// Closes a shard that is out of the kernel's choice. One that takes datagrams is kept for the next wid: it would leave
    /// the kernel's list only with its last descriptor, and nobody could tell when that is.
    pub(super) fn close(&mut self, epoll: &Epoll, wid: u32) {
        let takes_datagrams = self.spec.unit.kind == unit::SocketKind::Dgram;
        let Fds::Shards(shards) = &mut self.fds else {
            return;
        };
        let Some(index) = shards.iter().position(|shard| shard.wid == Some(wid)) else {
            return;
        };
        if takes_datagrams {
            shards[index].wid = None;
            return;
        }
        if self.watched.is_some() {
            // It is not in the set if it is none of those that are watched.
            let _ = epoll.remove(shards[index].fd.as_fd());
        }
        let shard = shards.swap_remove(index);
        group::close(shard.fd, self.group.as_ref());
        if let (Some(group), Some(other)) = (&self.group, shards.first()) {
            group.choose(&other.fd);
        }
    }
}

/// Why a socket can't be bound. Workers whose manager and keeper were killed still have their sockets.
pub(super) fn why(error: &BindError) -> String {
    let Cause::InUse(Some(owner)) = &error.cause else {
        return error.to_string();
    };
    match process::environ_of(owner.pid, ["TENTPOLE_WATCHER"]) {
        Some([watcher]) => format!(
            "{error}, a worker of watcher `{watcher}` that another manager runs, or has left behind when it was killed: then \
             end it (`kill {}`) and start again",
            owner.pid
        ),
        None => error.to_string(),
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
