//! The sockets: bound here, open for ever.

use super::{SlotKey, Token, inherited::Inherited, node::Node};
use crate::plan::{self, Plan};
use crate::supervise::{ProcId, SocketId, Time, WatcherId};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::socket::{self, Address, IpFamily, Kind, Listen, Local, Queue};
use crate::unit;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// While a shard is drained, its queue is looked at this often: the kernel has no event for "empty".
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A shard counts as drained after so many looks at an empty queue: a handshake may still be under way at the first.
const EMPTY_LOOKS: u32 = 3;

/// The key of the one shard of a `so_reuseport` socket that no watcher has claimed.
const UNCLAIMED: SlotKey = (WatcherId(u32::MAX), 0);

/// All sockets, by [`SocketId`], which is their order of name.
pub struct Listeners {
    all: Vec<Listener>,
    unbound: Vec<String>,
    draining: Vec<Draining>,
    next_look: Option<Time>,
}

/// The name of an optional socket that could not be bound, and why.
pub type Unbound = (String, String);

struct Listener {
    spec: Rc<plan::Socket>,
    fds: Fds,
    /// Where it is bound, with the real port.
    local: Option<Local>,
    watched: bool,
    /// The file of a unix socket that was bound here (and not inherited).
    node: Option<Node>,
}

enum Fds {
    Unbound,
    One(OwnedFd),
    /// One kernel queue for each wid, in the order of the kernel's own list of the group.
    Shards(Vec<Shard>),
}

struct Shard {
    key: SlotKey,
    fd: OwnedFd,
    /// Out of the kernel's choice.
    retired: bool,
}

struct Draining {
    proc: ProcId,
    key: SlotKey,
    empty_looks: u32,
}

impl Listeners {
    /// Binds every socket of the plan, or says of each why not. What is optional may fail: the reasons are in the answer.
    pub fn bind_all(
        plan: &Plan,
        inherited: &mut Inherited,
    ) -> Result<(Listeners, Vec<Unbound>), Vec<String>> {
        let mut listeners = Listeners {
            all: Vec::with_capacity(plan.sockets.len()),
            unbound: Vec::new(),
            draining: Vec::new(),
            next_look: None,
        };
        let slots = slots(plan);
        let (mut failed, mut optional) = (Vec::new(), Vec::new());
        for spec in &plan.sockets {
            let mut listener = Listener::new(spec);
            let keys = slots
                .get(spec.name())
                .map_or(&[UNCLAIMED][..], Vec::as_slice);
            if let Err(error) = listener.bind(keys, Some(inherited)) {
                if spec.unit.optional {
                    listeners.unbound.push(spec.name().to_owned());
                    optional.push((spec.name().to_owned(), error));
                } else {
                    failed.push(format!("socket `{}`: {error}", spec.name()));
                }
            }
            listeners.all.push(listener);
        }
        if failed.is_empty() {
            Ok((listeners, optional))
        } else {
            Err(failed)
        }
    }

    /// Tries again to bind an optional socket.
    pub fn bind(&mut self, id: SocketId) -> Result<(), String> {
        let Some(listener) = self.all.get_mut(id.0 as usize) else {
            return Ok(());
        };
        // Its watchers' shards are bound as their workers are spawned.
        listener.bind(&[UNCLAIMED], None)?;
        let name = listener.spec.name();
        self.unbound.retain(|unbound| unbound != name);
        Ok(())
    }

    /// The optional sockets that could not be bound.
    pub fn unbound(&self) -> &[String] {
        &self.unbound
    }

    /// Makes sure that a slot has its shard of this socket.
    pub fn provide(&mut self, name: &str, key: SlotKey) -> Result<(), String> {
        let Some(index) = self.index(name) else {
            return Ok(());
        };
        self.all[index]
            .provide(key)
            .map_err(|error| format!("socket `{name}`: {error}"))
    }

    /// The descriptor that a slot gets of this socket.
    pub fn fd(&self, name: &str, key: SlotKey) -> Option<BorrowedFd<'_>> {
        match &self.all[self.index(name)?].fds {
            Fds::Unbound => None,
            Fds::One(fd) => Some(fd.as_fd()),
            Fds::Shards(shards) => shards
                .iter()
                .find(|shard| shard.key == key)
                .map(|shard| shard.fd.as_fd()),
        }
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.all
            .binary_search_by(|listener| listener.spec.name().cmp(name))
            .ok()
    }

    /// Reports traffic on a socket from now on.
    pub fn watch(&mut self, epoll: &Epoll, id: SocketId) {
        let Some(listener) = self.all.get_mut(id.0 as usize) else {
            return;
        };
        listener.watched = true;
        for fd in listener.fds.iter() {
            if let Err(error) = epoll.add(fd, Token::Socket(id.0).pack(), Interest::Readable) {
                log::error!(target: &format!("socket.{}", listener.spec.name()), "can't be watched: {error}");
            }
        }
    }

    /// Does not any more.
    pub fn unwatch(&mut self, epoll: &Epoll, id: SocketId) {
        let Some(listener) = self.all.get_mut(id.0 as usize) else {
            return;
        };
        listener.watched = false;
        for fd in listener.fds.iter() {
            // It is not in the set if it could not be added.
            let _ = epoll.remove(fd);
        }
    }

    /// Takes a slot's shards out of the kernel's choice and waits until their queues are empty.
    pub fn drain(&mut self, proc: ProcId, watcher: WatcherId, wid: u32, now: Time) {
        let key = (watcher, wid);
        for listener in &mut self.all {
            listener.retire(key);
        }
        self.draining.push(Draining {
            proc,
            key,
            empty_looks: 0,
        });
        self.next_look = Some(now + LOOK_EVERY);
    }

    /// When [`Listeners::drained`] is due.
    pub fn next_look(&self) -> Option<Time> {
        self.next_look
    }

    /// The workers whose shards have no waiting connection any more.
    pub fn drained(&mut self, now: Time) -> Vec<ProcId> {
        if self.next_look.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut done = Vec::new();
        for draining in &mut self.draining {
            let waiting = self
                .all
                .iter()
                .flat_map(|listener| listener.shard(draining.key));
            let empty = waiting
                .into_iter()
                .all(|shard| socket::queue(shard.fd.as_fd()).is_ok_and(|queue| queue.waiting == 0));
            draining.empty_looks = if empty { draining.empty_looks + 1 } else { 0 };
            if draining.empty_looks >= EMPTY_LOOKS {
                done.push(draining.proc);
            }
        }
        self.draining
            .retain(|draining| !done.contains(&draining.proc));
        self.next_look = (!self.draining.is_empty()).then(|| now + LOOK_EVERY);
        done
    }

    /// Closes the shards of a wid that is gone for good.
    pub fn close_shards(&mut self, epoll: &Epoll, watcher: WatcherId, wid: u32) {
        let key = (watcher, wid);
        self.draining.retain(|draining| draining.key != key);
        for listener in &mut self.all {
            listener.close(epoll, key);
        }
    }

    /// A socket's address as status shows it.
    pub fn address(&self, id: SocketId) -> String {
        let Some(listener) = self.all.get(id.0 as usize) else {
            return String::new();
        };
        match &listener.local {
            Some(local) => local.to_string(),
            None => written(&listener.spec.unit),
        }
    }

    /// A socket's type.
    pub fn kind(&self, id: SocketId) -> unit::SocketKind {
        self.all
            .get(id.0 as usize)
            .map_or(unit::SocketKind::Stream, |listener| listener.spec.unit.kind)
    }

    /// What waits in a socket's kernel queues, and how much they hold. `unix` has what the kernel says of unix sockets.
    pub fn queue(&self, id: SocketId, unix: &HashMap<u64, Queue>) -> Queue {
        let mut sum = Queue {
            waiting: 0,
            limit: 0,
        };
        for fd in self
            .all
            .get(id.0 as usize)
            .into_iter()
            .flat_map(|listener| listener.fds.iter())
        {
            let known = socket::inode(fd)
                .ok()
                .and_then(|inode| unix.get(&inode).copied());
            if let Some(queue) = known.or_else(|| socket::queue(fd).ok()) {
                sum.waiting += queue.waiting;
                sum.limit += queue.limit;
            }
        }
        sum
    }

    /// Whether any socket's queue can only be learned by [`socket::unix_queues`].
    pub fn has_unix_streams(&self) -> bool {
        self.all.iter().any(|listener| {
            matches!(
                listener.spec.unit.address.value,
                unit::Address::Path(_) | unit::Address::Abstract(_)
            ) && listener.spec.unit.kind != unit::SocketKind::Dgram
        })
    }
}

/// Closing sockets for good removes their files; an upgrade executes another program and never comes here.
impl Drop for Listeners {
    fn drop(&mut self) {
        for listener in &self.all {
            if listener.spec.unit.remove_on_stop
                && let Some(node) = &listener.node
            {
                node.remove();
            }
        }
    }
}

impl Fds {
    fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (one, shards) = match self {
            Fds::Unbound => (None, &[][..]),
            Fds::One(fd) => (Some(fd), &[][..]),
            Fds::Shards(shards) => (None, shards.as_slice()),
        };
        one.into_iter()
            .map(AsFd::as_fd)
            .chain(shards.iter().map(|shard| shard.fd.as_fd()))
    }
}

impl Listener {
    fn new(spec: &Rc<plan::Socket>) -> Listener {
        Listener {
            spec: Rc::clone(spec),
            fds: Fds::Unbound,
            local: None,
            watched: false,
            node: None,
        }
    }

    fn bind(&mut self, keys: &[SlotKey], inherited: Option<&mut Inherited>) -> Result<(), String> {
        let address = address_of(&self.spec.unit);
        let listen = listen(&self.spec, &address);
        let taken = match inherited {
            Some(inherited) => inherited.take(&self.spec, &listen)?,
            None => None,
        };
        let first = match taken {
            Some(bound) => bound,
            None => {
                let bound = socket::listen(&listen).map_err(|error| error.to_string())?;
                if let Address::Path(path) = &address {
                    self.node = Node::made_at(path);
                }
                bound
            }
        };
        self.local = Some(first.local);
        if !self.spec.unit.so_reuseport.value {
            self.fds = Fds::One(first.fd);
            return Ok(());
        }
        let (first_key, rest) = keys.split_first().unwrap_or((&UNCLAIMED, &[]));
        self.fds = Fds::Shards(vec![Shard {
            key: *first_key,
            fd: first.fd,
            retired: false,
        }]);
        for key in rest {
            self.provide(*key)?;
        }
        Ok(())
    }

    /// One more shard on the address that is bound already (port 0 has become a real one).
    fn provide(&mut self, key: SlotKey) -> Result<(), String> {
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
        shards.push(Shard {
            key,
            fd: bound.fd,
            retired: false,
        });
        choose(shards);
        Ok(())
    }

    fn shard(&self, key: SlotKey) -> Option<&Shard> {
        match &self.fds {
            Fds::Unbound | Fds::One(_) => None,
            Fds::Shards(shards) => shards.iter().find(|shard| shard.key == key),
        }
    }

    fn retire(&mut self, key: SlotKey) {
        let Fds::Shards(shards) = &mut self.fds else {
            return;
        };
        if let Some(shard) = shards.iter_mut().find(|shard| shard.key == key) {
            shard.retired = true;
            choose(shards);
        }
    }

    fn close(&mut self, epoll: &Epoll, key: SlotKey) {
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
        drop(shards.swap_remove(index));
        choose(shards);
    }
}

/// Tells the kernel which of the shards new connections may go to.
fn choose(shards: &[Shard]) {
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

/// The slots that have a shard of each `so_reuseport` socket from the beginning.
fn slots(plan: &Plan) -> HashMap<&str, Vec<SlotKey>> {
    let mut slots: HashMap<&str, Vec<SlotKey>> = HashMap::new();
    let reuseport: std::collections::HashSet<&str> = plan
        .sockets
        .iter()
        .filter(|socket| socket.unit.so_reuseport.value)
        .map(|socket| socket.name())
        .collect();
    if reuseport.is_empty() {
        return slots;
    }
    for (index, watcher) in (0u32..).zip(&plan.watchers) {
        if !watcher.unit.autostart {
            continue;
        }
        for name in watcher
            .listens
            .iter()
            .filter(|name| reuseport.contains(name.as_str()))
        {
            let keys = (1..=watcher.unit.numprocesses.value).map(|wid| (WatcherId(index), wid));
            slots.entry(name).or_default().extend(keys);
        }
    }
    slots.retain(|_, keys| !keys.is_empty());
    slots
}

fn listen<'a>(spec: &'a plan::Socket, address: &'a Address) -> Listen<'a> {
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
    }
}

fn address_of(unit: &unit::Socket) -> Address {
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

fn written(unit: &unit::Socket) -> String {
    match &unit.address.value {
        unit::Address::Port(port) => format!("[::]:{port}"),
        unit::Address::Ip(ip) => ip.to_string(),
        unit::Address::Host(host, port) => format!("{host}:{port}"),
        unit::Address::Path(path) => path.display().to_string(),
        unit::Address::Abstract(name) => format!("@{name}"),
    }
}
