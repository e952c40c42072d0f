//! The sockets: bound here, open for ever.

mod descriptor;
mod fds;
mod group;
mod listener;
mod mend;

use self::descriptor::{Descriptor, Kernel};
use self::fds::{Fds, Shard, ShardRecord, name_of};
use self::group::Groups;
use self::listener::{Listener, name_to_look_up, why, written};
use super::{Token, inherited::Inherited, node::Node};
use crate::plan::{self, Action, Change, Plan};
use crate::supervise::{Event, ProcId, SocketId, Supervisor, Time};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::lookup::Found;
use crate::sys::socket::{self, BindError, Cause, FileId, Local, Queue};
use crate::unit::{self, Arrange, Gather};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// While a shard is drained, its queue is looked at this often at first: the kernel has no event for "empty".
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// And this often at least, where no worker takes what is in it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A shard counts as drained after so many looks at an empty queue: a handshake may still be under way at the first.
const EMPTY_LOOKS: u32 = 3;

/// All sockets, by [`SocketId`].
pub struct Listeners {
    all: BTreeMap<SocketId, Listener>,
    /// Bound for an apply, and not known to the supervisor yet.
    prepared: HashMap<String, Listener>,
    /// The file of the control socket, which is no unit's.
    pub(super) control: Option<Node>,
    groups: Groups,
    draining: Vec<Draining>,
    closing: Vec<Closing>,
    next_look: Option<Time>,
    /// Between two looks. Grows for as long as no queue is found empty.
    pause: Duration,
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
            None => why(&error),
        }
    }
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
    local: Option<LocalRecord>,
    node: Option<Node>,
    shards: Option<Vec<ShardRecord>>,
    /// How often it was bound anew.
    #[serde(default)]
    number: u32,
    /// Where it is in the kernel's list, if it shares its address and has no shards.
    #[serde(default)]
    place: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LocalRecord(#[serde(with = "Remote")] Local);

/// [`Local`] as it is recorded: that it can be is no matter of [`crate::sys`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Local")]
enum Remote {
    Ip(SocketAddr),
    Path(#[serde(with = "crate::unit::path")] PathBuf),
    Abstract(Vec<u8>),
    Unnamed,
    Other(i32),
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
        control.iter().for_each(Node::empty_spares);
        let mut own: Vec<FileId> = control.iter().map(Node::id).collect();
        let mut groups = Groups::default();
        let (mut failed, mut optional) = (Vec::new(), Vec::new());
        for (id, spec) in (0..).map(SocketId).zip(&plan.sockets) {
            let mut listener = Listener::named(spec, names);
            if let Err(obstacle) = listener.bind(Some(inherited), &mut groups, &own) {
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
            dirty: all.iter().map(|(id, _)| *id).gather(),
            // When all are bound, and in one go: their clients wait, and a map that grows moves what it has.
            all: all.into_iter().gather(),
            prepared: HashMap::new(),
            control,
            groups,
            draining: Vec::new(),
            closing: Vec::new(),
            next_look: None,
            pause: FIRST_PAUSE,
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
        let bound = listener.bind(None, &mut self.groups, &own);
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
        let mut own = self.own_files();
        let leaving: Vec<(SocketId, &Listener)> = those(&self.all, leaving);
        let mut prepared: HashMap<String, Listener> = HashMap::new();
        for spec in added(plan, changes) {
            let name = spec.name();
            let mut listener = Listener::named(spec, names);
            let bound = listener.succeed(&leaving, &mut self.groups, &own);
            let bound = bound.map_err(|it| {
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
        let leaving = those(&self.all, leaving);
        let added = added(plan, changes).map(Listener::new);
        // Those that get a kernel socket that is there need none.
        let added = added.filter(|it| !leaving.iter().any(|(_, other)| it.is_same_as(other)));
        added
            .filter_map(|it| name_to_look_up(&it.spec.unit).map(str::to_owned))
            .gather()
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

    /// Sets on sockets that are bound what these changes bring, and on those that [`Listeners::prepare`] hands on, while nothing
    /// else has changed yet. If one does not take it, all are as they were, and the reasons are the answer. One that is
    /// `optional` may fail later, and so may one that has lost its file: it is bound anew before it is passed on.
    pub fn try_changes(&self, plan: &Plan, changes: &[Change]) -> Result<(), Vec<String>> {
        let mut failed = Vec::new();
        let mut tried = Vec::new();
        for change in changes {
            let plan::Unit::Socket(name) = &change.unit else {
                continue;
            };
            let is_its = |it: &&Listener| it.spec.name() == name && !it.is_succeeded;
            let listener = match change.action {
                // The last of its name: others are only kept until nothing has them any more.
                Action::Set => self.all.values().rev().find(is_its),
                Action::Add | Action::Rebind => {
                    let heir = self.prepared.get(name);
                    let predecessor = heir.and_then(|heir| heir.heir_of);
                    predecessor.and_then(|id| self.all.get(&id))
                }
                Action::Remove | Action::Reload | Action::Scale => None,
            };
            let spec = plan.sockets.iter().find(|spec| spec.name() == name);
            let (Some(listener), Some(spec)) = (listener, spec) else {
                continue;
            };
            if spec.unit.optional || !listener.has_its_file() {
                continue;
            }
            tried.push(listener);
            match listener.adjust_to(spec) {
                Ok(()) => {}
                // The file of one that was inherited.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let remedy = match error.kind() {
                        ErrorKind::PermissionDenied => {
                            "run the manager as root, or take that out of the unit"
                        }
                        _ => "take that out of the unit, or find what refuses it",
                    };
                    let reason = unit::reason(&error);
                    failed.push(format!(
                        "socket `{name}` can't be what its unit says: {reason}; {remedy}"
                    ));
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        for listener in tried {
            // Where that does not go either, it is what it was before: nothing of it could be set.
            let _ = listener.adjust_to(&listener.spec);
        }
        Err(failed)
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
    pub fn provide(&mut self, epoll: &Epoll, id: SocketId, wid: u32) -> Result<(), String> {
        let Some(listener) = self.all.get_mut(&id) else {
            return Ok(());
        };
        match listener.provide(wid) {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.dirty.insert(id);
                if let Some(shards) = listener.watched.clone() {
                    self.watch(epoll, id, shards);
                }
                Ok(())
            }
            Err(error) => Err(format!("socket `{}`: {error}", listener.spec.name())),
        }
    }

    /// The descriptor that a worker of this wid gets of this socket.
    pub fn fd(&self, id: SocketId, wid: u32) -> Option<BorrowedFd<'_>> {
        self.all.get(&id)?.fd(wid).map(Descriptor::as_fd)
    }

    /// Why nobody can connect to a socket though it is bound.
    pub fn trouble(&self, id: SocketId) -> Option<&str> {
        self.all.get(&id)?.trouble.as_deref()
    }

    /// Reports traffic on a socket from now on, or only that in the shards of some wids.
    pub fn watch(&mut self, epoll: &Epoll, id: SocketId, shards: Vec<u32>) {
        self.unwatch(epoll, id);
        let Some(listener) = self.all.get_mut(&id) else {
            return;
        };
        listener.watched = Some(shards);
        for fd in listener.fds_watched() {
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
        for fd in listener.fds_watched() {
            // It is not in the set if it could not be added.
            let _ = epoll.remove(fd.as_fd());
        }
        listener.watched = None;
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
        self.pause = FIRST_PAUSE;
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
        self.pause = FIRST_PAUSE;
        self.look_soon(now);
        event
    }

    /// Takes a shard that somebody has, or is going to, out of the kernel's choice.
    pub fn shut_shard(&mut self, epoll: &Epoll, socket: SocketId, wid: u32) {
        if let Err(error) = self.provide(epoll, socket, wid) {
            // Its worker, which is not made yet, fails with the same.
            log::debug!(target: "manager", "no shard can be had: {error}");
        }
        self.set_retired(socket, wid, true);
    }

    /// The shard is wanted again.
    pub fn open_shard(&mut self, socket: SocketId, wid: u32) {
        self.closing
            .retain(|closing| (closing.socket, closing.wid) != (socket, wid));
        self.set_retired(socket, wid, false);
        if let Some(listener) = self.all.get(&socket) {
            listener.let_in();
        }
    }

    /// A shard is another wid's from now on.
    pub fn move_shard(&mut self, socket: SocketId, from: u32, to: u32) {
        if let Some(listener) = self.all.get_mut(&socket) {
            listener.move_shard(from, to);
            self.dirty.insert(socket);
        }
    }

    fn set_retired(&mut self, id: SocketId, wid: u32, retired: bool) {
        if let Some(listener) = self.all.get_mut(&id) {
            listener.set_retired(wid, retired);
            self.dirty.insert(id);
        }
    }

    fn look_soon(&mut self, now: Time) {
        let is_idle = self.draining.is_empty() && self.closing.is_empty();
        let soon = now + self.pause;
        let next = self.next_look.map_or(soon, |next| next.min(soon));
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
        let all_full = (self.draining.iter()).all(|draining| draining.empty_looks == 0);
        self.pause = if all_full && self.closing.is_empty() {
            LONGEST_PAUSE.min(self.pause + self.pause / 4)
        } else {
            FIRST_PAUSE
        };
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

    /// Gives the files that are new a second name, which is to be in their record.
    pub fn keep_spares(&mut self) {
        let Some(control) = &self.control else {
            return;
        };
        for id in &self.dirty {
            if let Some(node) = self.all.get_mut(id).and_then(|it| it.node.as_mut()) {
                node.keep_spare(control);
            }
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
            local: listener.local.clone().map(LocalRecord),
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
        control: Option<Node>,
    ) -> Listeners {
        let mut listeners = Listeners {
            all: BTreeMap::new(),
            prepared: HashMap::new(),
            control,
            groups: Groups::default(),
            draining: Vec::new(),
            closing: Vec::new(),
            next_look: None,
            pause: FIRST_PAUSE,
            dirty: BTreeSet::new(),
        };
        let mut places: Vec<(u32, SocketId, usize)> = Vec::new();
        for (id, record) in records {
            let Some(spec) = supervisor.socket(id) else {
                continue;
            };
            let mut listener = Listener::new(spec);
            listener.local = record.local.map(|it| it.0);
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
                if let Some(Local::Ip(address)) = listener.local {
                    listener.found = Ok(vec![address]);
                }
                let own = listeners.own_files();
                let bound = listener.bind(None, &mut listeners.groups, &own);
                let bound = bound.map_err(|it| {
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
        listeners.find_successors();
        places.arrange();
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

    /// Of those that have a kernel socket in common, the last that was opened takes the place of the others.
    fn find_successors(&mut self) {
        let mut seen: BTreeSet<*const Kernel> = BTreeSet::new();
        for listener in self.all.values_mut().rev() {
            let kernels = listener.fds.iter().map(|fd| Rc::as_ptr(&fd.socket));
            let kernels: Vec<_> = kernels.collect();
            listener.is_succeeded = kernels.iter().any(|kernel| seen.contains(kernel));
            seen.extend(kernels);
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

/// Those of `all` that have these ids.
fn those<'a>(
    all: &'a BTreeMap<SocketId, Listener>,
    ids: &BTreeSet<SocketId>,
) -> Vec<(SocketId, &'a Listener)> {
    (all.iter())
        .filter(|(id, _)| ids.contains(id))
        .map(|(id, listener)| (*id, listener))
        .gather()
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
        if let Some(control) = &self.control {
            control.remove_spares();
        }
    }
}
