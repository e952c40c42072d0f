//! The sockets: bound here, open for ever.

mod fds;
mod group;
mod listener;

use self::fds::{Descriptor, Fds, Kernel, Shard, ShardRecord, name_of};
use self::group::Groups;
use self::listener::{Listener, written};
use super::{Token, inherited::Inherited, node::Node};
use crate::plan::{self, Action, Change, Plan};
use crate::supervise::{Event, ProcId, SocketId, Supervisor, Time};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::socket::{self, Local, Queue};
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
    groups: Groups,
    draining: Vec<Draining>,
    closing: Vec<Closing>,
    next_look: Option<Time>,
    /// Those that are not recorded as they are.
    dirty: BTreeSet<SocketId>,
}

/// The name of an optional socket that could not be bound, and why.
pub type Unbound = (String, String);

/// A worker that serves what waits in its shards of these sockets.
struct Draining {
    proc: ProcId,
    wid: u32,
    sockets: Vec<SocketId>,
    empty_looks: u32,
}

/// A shard that nobody has.
struct Closing {
    socket: SocketId,
    wid: u32,
    empty_looks: u32,
}

/// What the next manager must know of a socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListenerRecord {
    local: Option<Local>,
    node: Option<Node>,
    shards: Option<Vec<ShardRecord>>,
    /// How often it was bound anew.
    #[serde(default)]
    number: u32,
    /// Where it is in the kernel's list, if it shares its address and has no shards.
    #[serde(default)]
    place: Option<u32>,
}

impl Listeners {
    /// Binds every socket of the plan, or says of each why not. What is optional may fail: the reasons are in the answer.
    pub fn bind_all(
        plan: &Plan,
        inherited: &mut Inherited,
    ) -> Result<(Listeners, Vec<Unbound>), Vec<String>> {
        let mut all = Vec::with_capacity(plan.sockets.len());
        let wanted = wanted_shards(plan);
        let mut groups = Groups::default();
        let (mut failed, mut optional) = (Vec::new(), Vec::new());
        for (id, spec) in (0..).map(SocketId).zip(&plan.sockets) {
            let mut listener = Listener::new(spec);
            let shards = wanted.get(spec.name()).copied().unwrap_or(1);
            if let Err(error) = listener.bind(shards, Some(inherited), &mut groups) {
                if spec.unit.optional {
                    optional.push((spec.name().to_owned(), error));
                } else {
                    failed.push(format!("socket `{}`: {error}", spec.name()));
                }
            }
            all.push((id, listener));
        }
        let listeners = Listeners {
            dirty: all.iter().map(|(id, _)| *id).collect(),
            // When all are bound, and in one go: their clients wait, and a map that grows moves what it has.
            all: all.into_iter().collect(),
            prepared: HashMap::new(),
            groups,
            draining: Vec::new(),
            closing: Vec::new(),
            next_look: None,
        };
        if failed.is_empty() {
            Ok((listeners, optional))
        } else {
            Err(failed)
        }
    }

    /// Tries again to bind an optional socket.
    pub fn bind(&mut self, id: SocketId) -> Result<(), String> {
        let Some(listener) = self.all.get_mut(&id) else {
            return Ok(());
        };
        self.dirty.insert(id);
        // More shards are bound as workers are spawned.
        listener.bind(1, None, &mut self.groups)
    }

    /// Binds what an apply adds or binds anew; each is known by its name until [`Listeners::open`]. What listens on the
    /// same address and is among those that `leave` hands its kernel socket on. If one can't be bound, none is: the
    /// reasons are in the answer. What is optional may fail.
    pub fn prepare(
        &mut self,
        plan: &Plan,
        changes: &[Change],
        leaving: &BTreeSet<SocketId>,
    ) -> Result<Vec<Unbound>, Vec<String>> {
        let (mut failed, mut optional) = (Vec::new(), Vec::new());
        let leaving: Vec<(SocketId, &Listener)> = (self.all.iter())
            .filter(|(id, _)| leaving.contains(id))
            .map(|(id, listener)| (*id, listener))
            .collect();
        for change in changes {
            let (plan::Unit::Socket(name), Action::Add | Action::Rebind) =
                (&change.unit, change.action)
            else {
                continue;
            };
            let spec = plan.sockets.iter().find(|socket| socket.name() == name);
            let Some(spec) = spec else { continue };
            let mut listener = Listener::new(spec);
            match listener.succeed(&leaving, &mut self.groups) {
                Ok(()) => {}
                Err(error) if spec.unit.optional => {
                    optional.push((name.clone(), error));
                }
                Err(error) => failed.push(format!("socket `{name}`: {error}")),
            }
            self.prepared.insert(name.clone(), listener);
        }
        if failed.is_empty() {
            Ok(optional)
        } else {
            self.forget_prepared();
            Err(failed)
        }
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
            predecessor.is_succeeded = true;
            listener.take_over(&mut self.groups);
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
            listener.fds.close(listener.group.as_ref());
            // Others that share the address have all of its clients from now on.
            if let Some(group) = listener.group {
                let mut fds = self.all.values().flat_map(|other| other.fds.iter());
                if let Some(fd) = fds.find(|fd| group.place_of(fd).is_some()) {
                    group.choose(fd);
                }
            }
            self.dirty.insert(id);
        }
    }

    /// Whether there is a socket to be had.
    pub fn is_bound(&self, id: SocketId) -> bool {
        let listener = self.all.get(&id);
        listener.is_some_and(|listener| !matches!(listener.fds, Fds::Unbound))
    }

    /// Makes sure that a wid has its shard of this socket.
    pub fn provide(&mut self, id: SocketId, wid: u32) -> Result<(), String> {
        let Some(listener) = self.all.get_mut(&id) else {
            return Ok(());
        };
        match listener.provide(wid) {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.dirty.insert(id);
                Ok(())
            }
            Err(error) => Err(format!("socket `{}`: {error}", listener.spec.name())),
        }
    }

    /// The descriptor that a worker of this wid gets of this socket.
    pub fn fd(&self, id: SocketId, wid: u32) -> Option<BorrowedFd<'_>> {
        self.all.get(&id)?.fd(wid).map(Descriptor::as_fd)
    }

    /// Makes good what an earlier worker may have done to a socket that the next one of this wid gets: it may have shut it
    /// down, removed its file, or, if it was the only one, set O_NONBLOCK.
    pub fn mend(&mut self, epoll: &Epoll, id: SocketId, wid: u32, is_alone: bool) {
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        let was_watched = listener.watched;
        if was_watched {
            self.unwatch(epoll, id);
        }
        if let Some(listener) = self.all.get_mut(&id)
            && listener.mend(wid, is_alone, &mut self.groups)
        {
            self.dirty.insert(id);
        }
        if was_watched {
            self.watch(epoll, id);
        }
    }

    /// Why nobody can connect to a socket though it is bound.
    pub fn trouble(&self, id: SocketId) -> Option<&str> {
        self.all.get(&id)?.trouble.as_deref()
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

    /// Keeps new clients from these sockets, or from a wid's shards of them, and waits until their queues are empty.
    pub fn drain(&mut self, proc: ProcId, wid: u32, sockets: Vec<SocketId>, now: Time) {
        for id in &sockets {
            if let Some(listener) = self.all.get_mut(id) {
                listener.turn_away(wid);
                self.dirty.insert(*id);
            }
        }
        self.draining.push(Draining {
            proc,
            wid,
            sockets,
            empty_looks: 0,
        });
        self.look_soon(now);
    }

    /// A worker that was to drain its shards has ended.
    pub fn forget_drain(&mut self, proc: ProcId) {
        self.draining.retain(|draining| draining.proc != proc);
    }

    /// Takes a shard that nobody has out of the kernel's choice, and closes it if nobody waits in it. What comes of that is
    /// the answer, or comes later.
    pub fn close_shard(
        &mut self,
        epoll: &Epoll,
        socket: SocketId,
        wid: u32,
        now: Time,
    ) -> Option<Event> {
        let listener = self.all.get_mut(&socket);
        let Some(listener) = listener.filter(|it| it.shard(wid).is_some()) else {
            return Some(Event::ShardClosed { socket, wid });
        };
        let is_drained = listener.shard(wid).is_some_and(|shard| shard.drained);
        self.set_retired(socket, wid, true);
        let empty_looks = if is_drained { EMPTY_LOOKS } else { 0 };
        self.closing.push(Closing {
            socket,
            wid,
            empty_looks,
        });
        let event = self.look_at_closing(epoll, self.closing.len() - 1);
        self.look_soon(now);
        event
    }

    /// The shard is wanted again.
    pub fn open_shard(&mut self, socket: SocketId, wid: u32) {
        self.closing
            .retain(|closing| (closing.socket, closing.wid) != (socket, wid));
        self.set_retired(socket, wid, false);
    }

    fn set_retired(&mut self, id: SocketId, wid: u32, retired: bool) {
        if let Some(listener) = self.all.get_mut(&id) {
            listener.set_retired(wid, retired);
            self.dirty.insert(id);
        }
    }

    fn look_soon(&mut self, now: Time) {
        let is_idle = self.draining.is_empty() && self.closing.is_empty();
        let next = self.next_look.unwrap_or(now + LOOK_EVERY);
        self.next_look = (!is_idle).then_some(next);
    }

    /// When [`Listeners::look`] is due.
    pub fn next_look(&self) -> Option<Time> {
        self.next_look
    }

    /// What has become of queues that are to be empty.
    pub fn look(&mut self, epoll: &Epoll, now: Time) -> Vec<Event> {
        if self.next_look.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut events = Vec::new();
        for draining in &mut self.draining {
            let mut listeners = draining.sockets.iter().filter_map(|id| self.all.get(id));
            let is_empty = listeners.all(|it| it.waiting(draining.wid).is_none_or(|it| it == 0));
            draining.empty_looks = if is_empty {
                draining.empty_looks + 1
            } else {
                0
            };
        }
        let is_done = |draining: &mut Draining| draining.empty_looks >= EMPTY_LOOKS;
        for draining in self.draining.extract_if(.., is_done) {
            for id in &draining.sockets {
                if let Some(listener) = self.all.get_mut(id) {
                    listener.set_drained(draining.wid);
                }
            }
            let proc = draining.proc;
            events.push(Event::Drained { proc });
        }
        for index in (0..self.closing.len()).rev() {
            events.extend(self.look_at_closing(epoll, index));
        }
        self.next_look = None;
        self.look_soon(now);
        events
    }

    /// Closes a shard that has been empty for long enough, or finds that it can't be closed.
    fn look_at_closing(&mut self, epoll: &Epoll, index: usize) -> Option<Event> {
        let closing = &mut self.closing[index];
        let (socket, wid) = (closing.socket, closing.wid);
        let listener = self.all.get_mut(&socket);
        let waiting = listener.as_ref().and_then(|it| it.waiting(wid));
        if waiting.is_some_and(|waiting| waiting > 0) {
            self.closing.swap_remove(index);
            return Some(Event::ShardOwed { socket, wid });
        }
        closing.empty_looks += 1;
        if closing.empty_looks < EMPTY_LOOKS {
            return None;
        }
        self.closing.swap_remove(index);
        if let Some(listener) = listener {
            listener.close(epoll, wid);
            self.dirty.insert(socket);
        }
        Some(Event::ShardClosed { socket, wid })
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
                Fds::Shards(shards) => {
                    let group = listener.group.as_ref();
                    Some(shards.iter().map(|it| it.record(group)).collect())
                }
            },
            number: listener.number,
            place: match (&listener.fds, &listener.group) {
                (Fds::One(fd), Some(group)) => group.place_of(fd),
                _ => None,
            },
        })
    }

    /// A socket's descriptors, each with the name that it is held by.
    pub fn descriptors(&self, id: SocketId) -> Vec<(String, BorrowedFd<'_>)> {
        let Some(listener) = self.all.get(&id) else {
            return Vec::new();
        };
        match &listener.fds {
            Fds::Unbound => Vec::new(),
            Fds::One(fd) => vec![(name_of(id, listener.number_held()), fd.as_fd())],
            Fds::Shards(shards) => (shards.iter())
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
    ) -> Listeners {
        let mut listeners = Listeners {
            all: BTreeMap::new(),
            prepared: HashMap::new(),
            groups: Groups::default(),
            draining: Vec::new(),
            closing: Vec::new(),
            next_look: None,
            dirty: BTreeSet::new(),
        };
        let mut places: Vec<(u32, SocketId, usize)> = Vec::new();
        for (id, record) in records {
            let Some(spec) = supervisor.socket(id) else {
                continue;
            };
            let mut listener = Listener::new(spec);
            listener.local = record.local;
            listener.node = record.node;
            listener.number = record.number;
            match record.shards {
                None => {
                    if let Some(fd) = held.remove(&name_of(id, listener.number_held())) {
                        listener.fds = Fds::One(Descriptor::new(fd));
                        places.extend(record.place.map(|place| (place, id, 0)));
                    }
                }
                Some(records) => {
                    let mut shards: Vec<Shard> = Vec::with_capacity(records.len());
                    for record in records {
                        let held = held.remove(&name_of(id, Some(record.number)));
                        let Some(shard) = held.map(|fd| record.with(fd)) else {
                            continue;
                        };
                        let place = record.place.unwrap_or(shards.len() as u32);
                        places.push((place, id, shards.len()));
                        shards.push(shard);
                    }
                    if !shards.is_empty() {
                        listener.fds = Fds::Shards(shards);
                    }
                }
            }
            if matches!(listener.fds, Fds::Unbound) && supervisor.is_bound(id) {
                listeners.dirty.insert(id);
                let bound = listener.bind(1, None, &mut listeners.groups);
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
        places.sort_unstable();
        for (_, id, index) in places {
            listeners.rejoin(id, index);
        }
        listeners
    }

    /// Puts a descriptor that was held on the list of its group again; the next to come is the next on it.
    fn rejoin(&mut self, id: SocketId, index: usize) {
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        listener.group = listener.find_group(&mut self.groups);
        let fd = listener.fds.iter().nth(index);
        if let (Some(group), Some(fd)) = (&listener.group, fd) {
            group.join(fd);
        }
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
            let mut known: HashMap<u64, Rc<Kernel>> = HashMap::new();
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

/// Closing sockets for good removes their files; an upgrade executes another program and never comes here.
impl Drop for Listeners {
    fn drop(&mut self) {
        for listener in self.all.values().chain(self.prepared.values()) {
            listener.remove_node();
        }
    }
}

/// How many shards each `so_reuseport` socket has from the beginning.
fn wanted_shards(plan: &Plan) -> HashMap<&str, u32> {
    let mut wanted: HashMap<&str, u32> = HashMap::new();
    let sockets = plan.sockets.iter();
    for socket in sockets.filter(|socket| socket.unit.so_reuseport.value) {
        wanted.insert(socket.name(), 1);
    }
    if wanted.is_empty() {
        return wanted;
    }
    for watcher in plan.watchers.iter().filter(|it| it.unit.autostart) {
        for name in &watcher.listens {
            if let Some(count) = wanted.get_mut(name.as_str()) {
                *count = (*count).max(watcher.unit.numprocesses.value);
            }
        }
    }
    wanted
}
