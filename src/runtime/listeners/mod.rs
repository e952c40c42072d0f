//! The sockets: bound here, open for ever.

mod fds;
mod listener;

use self::fds::{Descriptor, Fds, Shard, ShardRecord, UNCLAIMED, name_of};
use self::listener::{Listener, name_to_look_up, written};
use super::{SlotKey, Token, inherited::Inherited, node::Node};
use crate::plan::{self, Action, Change, Plan};
use crate::supervise::{ProcId, SocketId, Supervisor, Time, WatcherId};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::lookup::Found;
use crate::sys::socket::{self, BindError, Cause, FileId, Local, Queue};
use crate::unit;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// While a shard is drained, its queue is looked at this often: the kernel has no event for "empty".
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A shard counts as drained after so many looks at an empty queue: a handshake may still be under way at the first.
const EMPTY_LOOKS: u32 = 3;

/// All sockets, by [`SocketId`].
pub struct Listeners {
    all: BTreeMap<SocketId, Listener>,
    /// Bound for an apply, and not known to the supervisor yet.
    prepared: HashMap<String, Listener>,
    /// The file of the control socket, which is no unit's.
    control: Option<Node>,
    draining: Vec<Draining>,
    next_look: Option<Time>,
    /// Those that are not recorded as they are.
    dirty: BTreeSet<SocketId>,
}

/// What has come of the lookups of host names.
pub type Names = HashMap<String, Found>;

/// Why a socket is not bound.
enum Obstacle {
    Bind(BindError),
    Other(String),
}

impl From<BindError> for Obstacle {
    fn from(error: BindError) -> Self {
        Obstacle::Bind(error)
    }
}

impl From<String> for Obstacle {
    fn from(reason: String) -> Self {
        Obstacle::Other(reason)
    }
}

impl Obstacle {
    /// As a sentence, in which what is in the way of `listener` has its name if it is among `others`, or the control
    /// socket.
    fn explain<'a>(
        self,
        listener: &Listener,
        others: impl IntoIterator<Item = &'a Listener>,
        control: Option<&Node>,
    ) -> String {
        let error = match self {
            Obstacle::Bind(error) => error,
            Obstacle::Other(reason) => return reason,
        };
        let (address, cause) = (&error.address, &error.cause);
        if let (Cause::Own(file), Some(control)) = (cause, control)
            && control.id() == *file
        {
            return format!("{address} is in use by the control socket of this manager");
        }
        let mut others = others.into_iter();
        match others.find(|other| other.is_in_the_way(listener, cause)) {
            Some(other) => format!(
                "{address} is in use by socket `{}` of this manager",
                other.spec.name()
            ),
            None => error.to_string(),
        }
    }
}

/// The name of an optional socket that could not be bound, and why.
pub type Unbound = (String, String);

struct Draining {
    proc: ProcId,
    key: SlotKey,
    empty_looks: u32,
}

/// What the next manager must know of a socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListenerRecord {
    local: Option<Local>,
    node: Option<Node>,
    shards: Option<Vec<ShardRecord>>,
}

impl Listeners {
    /// Binds every socket of the plan, or says of each why not. What is optional may fail: the reasons are in the answer.
    /// `names` has those of [`names_of`].
    pub fn bind_all(
        plan: &Plan,
        names: &Names,
        control: Option<Node>,
        inherited: &mut Inherited,
    ) -> Result<(Listeners, Vec<Unbound>), Vec<String>> {
        let mut all: Vec<(SocketId, Listener)> = Vec::with_capacity(plan.sockets.len());
        let mut own: Vec<FileId> = control.iter().map(Node::id).collect();
        let slots = slots(plan);
        let (mut failed, mut optional) = (Vec::new(), Vec::new());
        for (id, spec) in (0..).map(SocketId).zip(&plan.sockets) {
            let mut listener = Listener::named(spec, names);
            let keys = slots
                .get(spec.name())
                .map_or(&[UNCLAIMED][..], Vec::as_slice);
            if let Err(obstacle) = listener.bind(keys, Some(inherited), &own) {
                let others = all.iter().map(|(_, other)| other);
                let error = obstacle.explain(&listener, others, control.as_ref());
                if spec.unit.optional {
                    optional.push((spec.name().to_owned(), error));
                } else {
                    failed.push(format!("socket `{}`: {error}", spec.name()));
                }
            }
            own.extend(listener.file());
            all.push((id, listener));
        }
        let listeners = Listeners {
            dirty: all.iter().map(|(id, _)| *id).collect(),
            // When all are bound, and in one go: their clients wait, and a map that grows moves what it has.
            all: all.into_iter().collect(),
            prepared: HashMap::new(),
            control,
            draining: Vec::new(),
            next_look: None,
        };
        if failed.is_empty() {
            Ok((listeners, optional))
        } else {
            Err(failed)
        }
    }

    /// The host name that must be looked up before this socket can be bound, if there is one.
    pub fn name_of(&self, id: SocketId) -> Option<&str> {
        name_to_look_up(&self.all.get(&id)?.spec.unit)
    }

    /// Tries again to bind an optional socket, whose name has been looked up, if it has one.
    pub fn bind(&mut self, id: SocketId, found: &Found) -> Result<(), String> {
        let own = self.own_files();
        let Some(listener) = self.all.get_mut(&id) else {
            return Ok(());
        };
        self.dirty.insert(id);
        listener.found = found.clone();
        // Its watchers' shards are bound as their workers are spawned.
        let bound = listener.bind(&[UNCLAIMED], None, &own);
        let listener = &self.all[&id];
        bound.map_err(|it| it.explain(listener, self.all.values(), self.control.as_ref()))
    }

    /// The files of all unix sockets that are bound here.
    fn own_files(&self) -> Vec<FileId> {
        let all = self.all.values().filter_map(Listener::file);
        all.chain(self.control.iter().map(Node::id)).collect()
    }

    /// Binds what an apply adds or binds anew; each is known by its name until [`Listeners::open`]. What listens on the
    /// same address and is among those that `leave` hands its kernel socket on. If one can't be bound, none is: the
    /// reasons are in the answer. What is optional may fail.
    pub fn prepare(
        &mut self,
        plan: &Plan,
        changes: &[Change],
        leaving: &BTreeSet<SocketId>,
        names: &Names,
    ) -> Result<Vec<Unbound>, Vec<String>> {
        let (mut failed, mut optional) = (Vec::new(), Vec::new());
        let leaving = self.those(leaving);
        let mut own = self.own_files();
        let mut prepared: HashMap<String, Listener> = HashMap::new();
        for spec in added(plan, changes) {
            let name = spec.name();
            let mut listener = Listener::named(spec, names);
            let bound = listener.succeed(&leaving, &own).map_err(|it| {
                let others = self.all.values().chain(prepared.values());
                it.explain(&listener, others, self.control.as_ref())
            });
            match bound {
                Ok(()) => {}
                Err(error) if spec.unit.optional => {
                    optional.push((name.to_owned(), error));
                }
                Err(error) => failed.push(format!("socket `{name}`: {error}")),
            }
            own.extend(listener.file());
            prepared.insert(name.to_owned(), listener);
        }
        self.prepared = prepared;
        if failed.is_empty() {
            Ok(optional)
        } else {
            self.forget_prepared();
            Err(failed)
        }
    }

    /// The host names that must be looked up for that.
    pub fn names_to_prepare(
        &self,
        plan: &Plan,
        changes: &[Change],
        leaving: &BTreeSet<SocketId>,
    ) -> BTreeSet<String> {
        let leaving = self.those(leaving);
        let added = added(plan, changes).map(Listener::new);
        // Those that get a kernel socket that is there need none.
        let added = added.filter(|it| !leaving.iter().any(|(_, other)| it.is_same_as(other)));
        added
            .filter_map(|it| name_to_look_up(&it.spec.unit).map(str::to_owned))
            .collect()
    }

    fn those(&self, ids: &BTreeSet<SocketId>) -> Vec<(SocketId, &Listener)> {
        (self.all.iter())
            .filter(|(id, _)| ids.contains(id))
            .map(|(id, listener)| (*id, listener))
            .collect()
    }

    /// Undoes [`Listeners::prepare`].
    pub fn forget_prepared(&mut self) {
        for (_, listener) in self.prepared.drain() {
            listener.remove_node();
        }
    }

    /// Gives a prepared socket its id.
    pub fn open(&mut self, id: SocketId, spec: &Rc<plan::Socket>) {
        let listener = self.prepared.remove(spec.name());
        let mut listener = listener.unwrap_or_else(|| Listener::new(spec));
        let predecessor = listener.heir_of.take();
        if let Some(predecessor) = predecessor.and_then(|id| self.all.get_mut(&id)) {
            listener.node = predecessor.node.take();
            listener.adjust();
        }
        listener.take_its_place();
        self.all.insert(id, listener);
        self.dirty.extend([id].into_iter().chain(predecessor));
    }

    /// Sets what can be set on a socket that is bound.
    pub fn change(&mut self, id: SocketId, spec: &Rc<plan::Socket>) {
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        listener.spec = Rc::clone(spec);
        listener.adjust();
    }

    /// Closes a socket for good.
    pub fn close(&mut self, id: SocketId) {
        if let Some(listener) = self.all.remove(&id) {
            listener.remove_node();
            listener.fds.close();
            self.dirty.insert(id);
        }
    }

    /// Whether there is a socket to be had.
    pub fn is_bound(&self, id: SocketId) -> bool {
        let listener = self.all.get(&id);
        listener.is_some_and(|listener| !matches!(listener.fds, Fds::Unbound))
    }

    /// Makes sure that a slot has its shard of this socket.
    pub fn provide(&mut self, id: SocketId, key: SlotKey) -> Result<(), String> {
        let Some(listener) = self.all.get_mut(&id) else {
            return Ok(());
        };
        if listener.shard(key).is_none() && matches!(listener.fds, Fds::Shards(_)) {
            self.dirty.insert(id);
        }
        let provided = listener.provide(key);
        provided.map_err(|error| format!("socket `{}`: {error}", listener.spec.name()))
    }

    /// The descriptor that a slot gets of this socket.
    pub fn fd(&self, id: SocketId, key: SlotKey) -> Option<BorrowedFd<'_>> {
        match &self.all.get(&id)?.fds {
            Fds::Unbound => None,
            Fds::One(fd) => Some(fd.as_fd()),
            Fds::Shards(shards) => shards
                .iter()
                .find(|shard| shard.key == key)
                .map(|shard| shard.fd.as_fd()),
        }
    }

    /// Reports traffic on a socket from now on.
    pub fn watch(&mut self, epoll: &Epoll, id: SocketId) {
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        listener.watched = true;
        for fd in listener.fds.iter() {
            if let Err(error) =
                epoll.add(fd.as_fd(), Token::Socket(id.0).pack(), Interest::Readable)
            {
                log::error!(target: &format!("socket.{}", listener.spec.name()), "can't be watched: {error}");
            }
        }
    }

    /// Does not any more.
    pub fn unwatch(&mut self, epoll: &Epoll, id: SocketId) {
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        listener.watched = false;
        for fd in listener.fds.iter() {
            // It is not in the set if it could not be added.
            let _ = epoll.remove(fd.as_fd());
        }
    }

    /// Takes a slot's shards out of the kernel's choice and waits until their queues are empty.
    pub fn drain(&mut self, proc: ProcId, watcher: WatcherId, wid: u32, now: Time) {
        let key = (watcher, wid);
        for (id, listener) in &mut self.all {
            if listener.shard(key).is_some() {
                self.dirty.insert(*id);
            }
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
                .values()
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
        for (id, listener) in &mut self.all {
            if listener.shard(key).is_some() {
                self.dirty.insert(*id);
            }
            listener.close(epoll, key);
        }
    }

    /// Those whose record has changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<SocketId> {
        std::mem::take(&mut self.dirty)
    }

    /// All that there are.
    pub fn ids(&self) -> Vec<SocketId> {
        self.all.keys().copied().collect()
    }

    /// What the next manager must know of a socket; `None` if it is no more.
    pub fn record(&self, id: SocketId) -> Option<ListenerRecord> {
        let listener = self.all.get(&id)?;
        Some(ListenerRecord {
            local: listener.local.clone(),
            node: listener.node.clone(),
            shards: match &listener.fds {
                Fds::Unbound | Fds::One(_) => None,
                Fds::Shards(shards) => Some(shards.iter().map(Shard::record).collect()),
            },
        })
    }

    /// A socket's descriptors, each with the name that it is held by.
    pub fn descriptors(&self, id: SocketId) -> Vec<(String, BorrowedFd<'_>)> {
        match self.all.get(&id).map(|listener| &listener.fds) {
            None | Some(Fds::Unbound) => Vec::new(),
            Some(Fds::One(fd)) => vec![(name_of(id, None), fd.as_fd())],
            // One that takes datagrams leaves the kernel's list only with its last descriptor, which must not be another's.
            Some(Fds::Shards(_)) if self.kind(id) == unit::SocketKind::Dgram => Vec::new(),
            Some(Fds::Shards(shards)) => (shards.iter())
                .map(|shard| (name_of(id, Some(shard.number)), shard.fd.as_fd()))
                .collect(),
        }
    }

    /// The sockets of another manager, by what is recorded of them and the descriptors that were held. What was bound and
    /// is not there is bound anew.
    pub fn adopt(
        records: BTreeMap<SocketId, ListenerRecord>,
        held: &mut BTreeMap<String, OwnedFd>,
        supervisor: &Supervisor,
        control: Option<Node>,
    ) -> Listeners {
        let mut listeners = Listeners {
            all: BTreeMap::new(),
            prepared: HashMap::new(),
            control,
            draining: Vec::new(),
            next_look: None,
            dirty: BTreeSet::new(),
        };
        for (id, record) in records {
            let Some(spec) = supervisor.socket(id) else {
                continue;
            };
            let mut listener = Listener::new(spec);
            listener.local = record.local;
            listener.node = record.node;
            match record.shards {
                None => {
                    if let Some(fd) = held.remove(&name_of(id, None)) {
                        listener.fds = Fds::One(Descriptor::new(fd));
                    }
                }
                Some(shards) => {
                    let shards = shards.into_iter().filter_map(|shard| {
                        let fd = held.remove(&name_of(id, Some(shard.number)))?;
                        Some(shard.with(fd))
                    });
                    let shards: Vec<Shard> = shards.collect();
                    if !shards.is_empty() {
                        listener.fds = Fds::Shards(shards);
                    }
                }
            }
            if matches!(listener.fds, Fds::Unbound) && supervisor.is_bound(id) {
                listeners.dirty.insert(id);
                if let Some(Local::Ip(address)) = listener.local {
                    listener.found = Ok(vec![address]);
                }
                let own = listeners.own_files();
                let bound = listener.bind(&[UNCLAIMED], None, &own).map_err(|it| {
                    let others = listeners.all.values();
                    it.explain(&listener, others, listeners.control.as_ref())
                });
                let target = format!("socket.{}", spec.name());
                match bound {
                    Ok(()) => log::info!(target: &target, "was not held, and is bound anew"),
                    Err(error) => {
                        log::error!(target: &target, "was not held, and can't be bound anew: {error}");
                    }
                }
            }
            listeners.all.insert(id, listener);
        }
        listeners.find_shared();
        listeners
    }

    /// Which of those that were held are of one kernel socket, they can't tell by themselves.
    fn find_shared(&mut self) {
        let mut by_place: HashMap<String, Vec<&mut Descriptor>> = HashMap::new();
        for listener in self.all.values_mut() {
            if let Some(local) = &listener.local {
                let place = by_place.entry(local.to_string()).or_default();
                place.extend(listener.fds.iter_mut());
            }
        }
        for mut descriptors in by_place.into_values().filter(|it| it.len() > 1) {
            let mut known: HashMap<u64, Rc<()>> = HashMap::new();
            for descriptor in &mut descriptors {
                if let Ok(inode) = socket::inode(descriptor.as_fd()) {
                    let shared = known.entry(inode).or_insert(Rc::clone(&descriptor.socket));
                    descriptor.socket = Rc::clone(shared);
                }
            }
        }
    }

    /// A socket's address as status shows it.
    pub fn address(&self, id: SocketId) -> String {
        let Some(listener) = self.all.get(&id) else {
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
            .get(&id)
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
            .get(&id)
            .into_iter()
            .flat_map(|listener| listener.fds.iter())
        {
            let known = socket::inode(fd.as_fd())
                .ok()
                .and_then(|inode| unix.get(&inode).copied());
            if let Some(queue) = known.or_else(|| socket::queue(fd.as_fd()).ok()) {
                sum.waiting += queue.waiting;
                sum.limit += queue.limit;
            }
        }
        sum
    }

    /// Whether any socket's queue can only be learned by [`socket::unix_queues`].
    pub fn has_unix_streams(&self) -> bool {
        self.all.values().any(|listener| {
            matches!(
                listener.spec.unit.address.value,
                unit::Address::Path(_) | unit::Address::Abstract(_)
            ) && listener.spec.unit.kind != unit::SocketKind::Dgram
        })
    }
}

/// The host names of a plan that must be looked up: those that it needs, and those of optional sockets.
pub fn names_of(plan: &Plan) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let (mut needed, mut optional) = (BTreeSet::new(), BTreeSet::new());
    for unit in plan.sockets.iter().map(|socket| &socket.unit) {
        let names = match unit.optional {
            false => &mut needed,
            true => &mut optional,
        };
        names.extend(name_to_look_up(unit));
    }
    (needed, optional)
}

/// The sockets that `changes` add or bind anew.
fn added<'a>(plan: &'a Plan, changes: &[Change]) -> impl Iterator<Item = &'a Rc<plan::Socket>> {
    changes.iter().filter_map(|change| {
        let (plan::Unit::Socket(name), Action::Add | Action::Rebind) =
            (&change.unit, change.action)
        else {
            return None;
        };
        plan.sockets.iter().find(|socket| socket.name() == name)
    })
}

/// Closing sockets for good removes their files; an upgrade executes another program and never comes here.
impl Drop for Listeners {
    fn drop(&mut self) {
        for listener in self.all.values().chain(self.prepared.values()) {
            listener.remove_node();
        }
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
