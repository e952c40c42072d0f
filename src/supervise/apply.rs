//! Other units than before: what becomes of each. The rules stand at the head of [`super`].

use super::order::Phase;
use super::request::{Begun, Later, Want};
use super::state::{Binding, Edition, Goal, Socket, Watcher};
use super::timers::Due;
use super::{
    Effect, ParentNotice, Refusal, SocketId, Supervisor, Turn, WatcherId, WatcherState, new_socket,
    new_watcher,
};
use crate::plan::{self, Action, Change, Plan, Unit};
use crate::unit::{self, Arrange, Gather, LogLevel, NameMap, WatcherKind};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

impl Supervisor {
    /// The units as they are now: what an apply is compared with. A watcher whose reload has failed is what it was.
    pub fn plan(&self) -> Plan {
        let mut sockets: Vec<_> = (self.sockets.values())
            .filter(|socket| !socket.retired)
            .map(|socket| Rc::clone(&socket.spec))
            .collect();
        sockets.arrange_by(|a, b| a.name().cmp(b.name()));
        let watchers = (self.order.iter())
            .map(|id| self.watcher(*id))
            .filter(|watcher| !watcher.retired)
            .map(|watcher| Rc::clone(&watcher.newest().spec))
            .collect();
        Plan {
            manager: self.manager.clone(),
            control_gid: self.control_gid,
            sockets,
            watchers,
        }
    }

    /// Whether a socket is bound, as far as is known.
    pub fn is_bound(&self, id: SocketId) -> bool {
        let socket = self.sockets.get(id);
        socket.is_some_and(|socket| matches!(socket.binding, Binding::Bound))
    }

    /// What has to be done so that everything is as `plan` has it. More than differs between the plans: a watcher that
    /// has kept its old definition, since its reload failed, may have kept a socket with it that is in the plan no more.
    pub fn changes_to(&self, plan: &Plan) -> Vec<Change> {
        let mut changes = plan::diff(&self.plan(), plan);
        let has_old_socket = |name: &str| {
            let sockets = |id: WatcherId| &*self.watcher(id).newest().sockets;
            let mut ids = self.names.get(name).into_iter().flat_map(|id| sockets(*id));
            ids.any(|id| self.sockets.get(*id).is_some_and(|socket| socket.retired))
        };
        for spec in plan.watchers.iter().filter(|it| has_old_socket(it.name())) {
            let unit = Unit::Watcher(spec.name().to_owned());
            let action = Action::Reload;
            match changes.iter_mut().find(|change| change.unit == unit) {
                Some(change) if change.action == Action::Scale => {
                    change.action = action;
                    change.keys.push("sockets".into());
                }
                Some(_) => {}
                None => {
                    let keys = vec!["sockets".into()];
                    let last = changes.iter().rposition(|it| it.action != Action::Remove);
                    let place = last.map_or(0, |last| last + 1);
                    changes.insert(place, Change { unit, action, keys });
                }
            }
        }
        changes
    }

    /// The sockets that nothing new is started with once these changes are made, and those that it is so of already.
    pub fn leaving(&self, changes: &[Change]) -> BTreeSet<SocketId> {
        let gone: HashSet<&str> = (changes.iter())
            .filter(|change| matches!(change.action, Action::Remove | Action::Rebind))
            .filter_map(|change| match &change.unit {
                Unit::Socket(name) => Some(name.as_str()),
                Unit::Manager | Unit::Watcher(_) => None,
            })
            .collect();
        (self.sockets.iter())
            .filter(|(_, socket)| socket.retired || gone.contains(socket.spec.name()))
            .map(|(id, _)| id)
            .gather()
    }

    /// Sockets that are not bound, and have to be before these changes are made: they are optional no more.
    pub fn to_be_bound(&self, plan: &Plan, changes: &[Change]) -> Vec<(SocketId, String)> {
        let is_set = |socket: &Socket| {
            let unit = Unit::Socket(socket.spec.name().to_owned());
            (changes.iter()).any(|change| change.action == Action::Set && change.unit == unit)
        };
        let is_needed = |socket: &Socket| {
            let mut specs = plan.sockets.iter();
            let spec = specs.find(|spec| spec.name() == socket.spec.name());
            spec.is_some_and(|spec| !spec.unit.optional)
        };
        (self.sockets.iter())
            .filter(|(_, socket)| !matches!(socket.binding, Binding::Bound) && !socket.retired)
            .filter(|(_, socket)| is_set(socket) && is_needed(socket))
            .map(|(id, socket)| (id, socket.spec.name().to_owned()))
            .collect()
    }

    /// Why there can't be an apply now, if so.
    pub fn refuse_apply(&self) -> Result<(), Refusal> {
        if self.is_stopping() {
            return Err(Refusal::ShuttingDown);
        }
        if self.is_applying() {
            return Err(Refusal::another_apply());
        }
        Ok(())
    }

    /// What an apply of these changes does not do, which who asks for it should know.
    pub fn remark(changes: &[Change]) -> Option<String> {
        let mut of_manager = changes.iter().filter(|it| it.unit == Unit::Manager);
        let moves = of_manager.any(|change| change.keys.iter().any(|key| key == "control"));
        moves.then(|| {
            "the control socket stays where it is until the manager is started anew: `[manager] control` is only read then"
                .into()
        })
    }

    pub(super) fn apply(
        &mut self,
        turn: &mut Turn<'_>,
        plan: &Plan,
        changes: &[Change],
        unbound: &[(String, String)],
    ) -> Result<Begun, Refusal> {
        self.refuse_apply()?;
        // As long as it starts, the parent waits for the end of that and for nothing else.
        let told = matches!(self.phase, Phase::Running);
        if told {
            turn.effects.push(Effect::Parent(ParentNotice::Reloading));
        }
        turn.effects.push(Effect::Log {
            level: LogLevel::Info,
            unit: "manager".into(),
            text: match changes.len() {
                0 => "the units are applied: nothing has changed".into(),
                1 => format!("the units are applied: {} changes", changes[0].unit),
                count => format!("the units are applied: {count} of them change"),
            },
        });
        self.change_manager(plan);
        self.change_sockets(turn, plan, changes, unbound);
        let sockets = self.sockets_by_name();
        let specs: HashMap<&str, &Rc<plan::Watcher>> =
            (plan.watchers.iter()).map(|it| (it.name(), it)).collect();

        // What there is must be known before anything starts or stops, since the order of that depends on it.
        let mut new = Vec::new();
        for change in changes {
            let Unit::Watcher(name) = &change.unit else {
                continue;
            };
            match (change.action, specs.get(name.as_str())) {
                (Action::Add, Some(spec)) => new.push(self.add_watcher(spec, &sockets)),
                (Action::Remove, _) => {
                    if let Some(id) = self.names.get(name) {
                        let id = *id;
                        self.watcher_mut(id).retired = true;
                    }
                }
                _ => {}
            }
        }
        self.rebuild_order(plan);
        let mut awaited: Vec<(WatcherId, Want)> = Vec::new();
        for change in changes {
            let Unit::Watcher(name) = &change.unit else {
                continue;
            };
            let Some(id) = self.names.get(name).copied() else {
                continue;
            };
            match (change.action, specs.get(name.as_str())) {
                (Action::Remove, _) => {
                    self.stop_watcher(turn, id);
                    self.touched.insert(id);
                    awaited.push((id, Want::Stopped));
                }
                (Action::Scale, Some(spec)) => {
                    self.rescale(turn, id, spec);
                    awaited.push((id, Want::Scaled));
                }
                (Action::Reload, Some(spec)) => {
                    let want = self.redefine(turn, id, spec, &sockets);
                    awaited.extend(want.map(|want| (id, want)));
                }
                _ => {}
            }
        }
        for id in new {
            if self.watcher(id).unit().autostart {
                self.start_by_itself(turn, id);
                awaited.push((id, Want::Up));
            }
            self.touched.insert(id);
        }
        // What waits for its turn to start or to stop may wait for others than before.
        for id in self.watcher_ids() {
            self.queue_if_startable(turn, id);
            self.touched.insert(id);
        }
        self.users_stale = true;
        let message = match changes.len() {
            0 => Some("nothing has changed".into()),
            _ => Supervisor::remark(changes),
        };
        let begun = Begun {
            apply: true,
            told,
            awaited,
            message,
            ..Begun::default()
        };
        if begun.awaited.is_empty() {
            self.applied(turn, told);
        }
        Ok(begun)
    }

    /// An apply is over, whose beginning the parent was told, or not.
    pub(super) fn applied(&mut self, turn: &mut Turn<'_>, told: bool) {
        if told && !self.is_stopping() {
            turn.effects.push(Effect::Parent(ParentNotice::Ready));
        }
    }

    fn change_manager(&mut self, plan: &Plan) {
        self.manager = plan.manager.clone();
        self.control_gid = plan.control_gid;
        self.warmup_delay = plan.manager.warmup_delay;
        self.shutdown_timeout = plan.manager.shutdown_timeout;
        self.settings.log_level = plan.manager.log_level;
        self.dirty.manager = true;
    }

    fn change_sockets(
        &mut self,
        turn: &mut Turn<'_>,
        plan: &Plan,
        changes: &[Change],
        unbound: &[(String, String)],
    ) {
        let specs: HashMap<&str, &Rc<plan::Socket>> =
            (plan.sockets.iter()).map(|it| (it.name(), it)).collect();
        let before = self.sockets_by_name();
        let first = SocketId(self.next_socket);
        for change in changes {
            let Unit::Socket(name) = &change.unit else {
                continue;
            };
            let spec = specs.get(name.as_str()).copied();
            let known = before.get(name.as_str()).copied();
            match (change.action, spec) {
                (Action::Add | Action::Rebind, Some(spec)) => {
                    self.retire_socket(known);
                    let error = unbound.iter().find(|(unbound, _)| unbound == name);
                    let error = error.map(|(_, error)| error.clone());
                    let id = self.add_socket(spec, error.as_ref());
                    turn.effects.push(Effect::Open {
                        socket: id,
                        spec: Rc::clone(spec),
                    });
                    if let Some(error) = error {
                        self.retry_bind(turn, id, error, 0);
                    }
                }
                (Action::Remove, _) => self.retire_socket(known),
                (_, Some(spec)) => {
                    if let Some(id) = known
                        && let Some(socket) = self.socket_mut(id)
                    {
                        socket.spec = Rc::clone(spec);
                        turn.effects.push(Effect::Change {
                            socket: id,
                            spec: Rc::clone(spec),
                        });
                    }
                }
                (_, None) => {}
            }
        }
        self.inherit_shards(first);
        self.leave_shards_behind(first);
    }

    /// It is in the plan no more: what has it keeps it, but it is not bound any more if it is not yet.
    fn retire_socket(&mut self, known: Option<SocketId>) {
        let Some((id, socket)) = known.and_then(|id| Some((id, self.socket_mut(id)?))) else {
            return;
        };
        socket.retired = true;
        if let Binding::Failed { .. } = socket.binding {
            self.timers.set(Due::Socket(id), None);
        }
    }

    /// A watcher of which nothing but the number of workers is another.
    fn rescale(&mut self, turn: &mut Turn<'_>, id: WatcherId, spec: &Rc<plan::Watcher>) {
        let sockets = Rc::clone(&self.watcher(id).edition.sockets);
        let edition = self.new_edition(id, Rc::clone(spec), sockets);
        let watcher = self.watcher_mut(id);
        // A reload that brings no other definition goes on with this one, or it would bring the former back.
        if let Some(reload) = &mut watcher.reload
            && reload.to == watcher.edition.number
        {
            reload.to = edition.number;
        }
        self.take_edition(id, edition);
        self.scale_watcher(turn, id, spec.unit.numprocesses.value);
    }

    /// A watcher that has become another.
    fn redefine(
        &mut self,
        turn: &mut Turn<'_>,
        id: WatcherId,
        spec: &Rc<plan::Watcher>,
        sockets: &NameMap<String, SocketId>,
    ) -> Option<Want> {
        let passed = passed(spec, sockets);
        let numprocesses = spec.unit.numprocesses.value;
        let before = self.watcher(id).newest().spec.unit.numprocesses.value;
        let edition = self.new_edition(id, Rc::clone(spec), passed);
        let rescaled = (before != numprocesses).then_some(numprocesses);
        let goal = self.watcher(id).goal;
        let is_up = matches!(goal, Goal::Up { .. });
        let is_oneshot = |unit: &unit::Watcher| unit.kind == WatcherKind::Oneshot;
        let was_oneshot = is_oneshot(self.watcher(id).unit());
        if is_up && !was_oneshot && !is_oneshot(&spec.unit) {
            let serial = self.reload_watcher(turn, id, Some(edition));
            if let Some(wanted) = rescaled {
                self.scale_watcher(turn, id, wanted);
            }
            return Some(Want::Reloaded(serial));
        }
        // Nothing runs that would have to be replaced; or it is a oneshot, whose workers are left to end, or becomes one.
        if is_up {
            self.supersede_reloads(turn, id, Later::Apply);
            self.cancel_reload(turn, id);
        }
        // One that is restarted may have another that waits for its socket.
        self.watcher_mut(id).queued = None;
        self.take_edition(id, edition);
        if let Some(wanted) = rescaled {
            self.scale_watcher(turn, id, wanted);
        }
        self.touched.insert(id);
        let on_demand = spec.unit.on_demand.value;
        match goal {
            Goal::Failed | Goal::Waiting if on_demand => {
                let watcher = self.watcher_mut(id);
                watcher.mishap = None;
                watcher.returns = 0;
                self.set_goal(id, Goal::Waiting);
                None
            }
            // It was given up for what it was.
            Goal::Failed | Goal::Waiting => {
                self.start_watcher(turn, id);
                Some(Want::Up)
            }
            Goal::Queued | Goal::Stopped { again: true, .. } => Some(Want::Up),
            // None of its workers would ever end, and a replacement that ends is none.
            Goal::Up { .. } if !was_oneshot => {
                self.restart_watcher(turn, id);
                Some(Want::Up)
            }
            Goal::Up { .. } | Goal::Stopped { .. } | Goal::Ended => None,
        }
    }

    pub(super) fn add_socket(
        &mut self,
        spec: &Rc<plan::Socket>,
        error: Option<&String>,
    ) -> SocketId {
        let id = SocketId(self.next_socket);
        self.next_socket += 1;
        self.sockets.insert(id, new_socket(spec, error));
        self.dirty.sockets.insert(id);
        self.dirty.manager = true;
        id
    }

    pub(super) fn add_watcher(
        &mut self,
        spec: &Rc<plan::Watcher>,
        sockets: &NameMap<String, SocketId>,
    ) -> WatcherId {
        let id = WatcherId(self.next_watcher);
        self.next_watcher += 1;
        let mut watcher = new_watcher(spec, passed(spec, sockets));
        watcher.told = Some(WatcherState::Stopped);
        *self.census.entry(WatcherState::Stopped).or_default() += 1;
        self.watchers.insert(id, watcher);
        self.names.insert(spec.name().to_owned(), id);
        self.dirty.watchers.insert(id);
        self.dirty.editions.insert((id, 0));
        self.dirty.manager = true;
        id
    }

    /// Nothing of a watcher that is left out is alive any more.
    pub(super) fn forget_watcher(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.remove(id) else {
            return;
        };
        self.dirty.watchers.insert(id);
        let editions = watcher.editions().map(|edition| (id, edition.number));
        self.dirty.editions.extend(editions);
        let slots = (1..=watcher.slots.len() as u32).map(|wid| (id, wid));
        self.dirty.slots.extend(slots);
        if let Some(count) = (watcher.told).and_then(|told| self.census.get_mut(&told)) {
            *count -= 1;
        }
        self.timers.set(Due::Watcher(id), None);
        self.timers.set(Due::Signalled(id), None);
        self.startable.remove(&(watcher.rank, id));
        self.names.retain(|_, other| *other != id);
        self.order.retain(|other| *other != id);
        self.touched.remove(&id);
        if let Some(number) = watcher.descent {
            self.descend(number, watcher.level, id);
        }
        for (other, _) in &watcher.dependencies {
            if let Some(other) = self.watchers.get_mut(*other) {
                other.dependents.retain(|(dependent, _)| *dependent != id);
            }
        }
        for (dependent, _) in &watcher.dependents {
            if let Some(other) = self.watchers.get_mut(*dependent) {
                other
                    .dependencies
                    .retain(|(dependency, _)| *dependency != id);
                self.dirty.watchers.insert(*dependent);
            }
        }
        self.users_stale = true;
    }

    /// Closes sockets that are in the plan no more and that nothing can have any more.
    pub(super) fn close_unused(&mut self, turn: &mut Turn<'_>) {
        let unused: Vec<SocketId> = (self.sockets.iter())
            .filter(|(_, socket)| socket.retired && socket.watchers.is_empty())
            .map(|(id, _)| id)
            .filter(|id| !self.has_left_shards(*id))
            .collect();
        for id in unused {
            let socket = self.sockets.remove(id);
            self.left_behind.remove(&id);
            self.dirty.sockets.insert(id);
            self.stirred.remove(&id);
            self.timers.set(Due::Socket(id), None);
            if socket.is_some_and(|socket| socket.watched) {
                turn.effects.push(Effect::Unwatch { socket: id });
            }
            turn.effects.push(Effect::Close { socket: id });
        }
    }

    /// The sockets of the plan by name.
    pub(super) fn sockets_by_name(&self) -> NameMap<String, SocketId> {
        (self.sockets.iter())
            .filter(|(_, socket)| !socket.retired)
            .map(|(id, socket)| (socket.spec.name().to_owned(), id))
            .collect()
    }

    /// The start order, levels and dependencies as `plan` has them; what is left out keeps its own.
    pub(super) fn rebuild_order(&mut self, plan: &Plan) {
        for (rank, spec) in (0u32..).zip(&plan.watchers) {
            let Some(id) = self.names.get(spec.name()).copied() else {
                continue;
            };
            let required = spec.unit.requires.iter().map(|name| (name, true));
            let after = spec.unit.after.iter().map(|name| (name, false));
            let mut dependencies: Vec<(WatcherId, bool)> = Vec::new();
            for (name, requires) in required.chain(after) {
                if let Some(other) = self.names.get(&name.value).copied()
                    && other != id
                    && dependencies.iter().all(|(known, _)| *known != other)
                {
                    dependencies.push((other, requires));
                }
            }
            // Who waits for its turn is queued anew, by the rank that it has then.
            self.startable.remove(&(self.watcher(id).rank, id));
            let watcher = self.watcher_mut(id);
            watcher.rank = rank;
            watcher.level = spec.level;
            watcher.dependencies = dependencies;
        }
        self.rebuild_dependents();
        // Those that are stopped together are at other levels now.
        self.descents = (self.watchers.iter())
            .filter_map(|(id, watcher)| Some((watcher.descent?, watcher.level, id)))
            .gather();
        self.touched
            .extend(self.descents.iter().map(|(.., id)| *id));
    }

    /// Puts watchers in start order.
    pub(super) fn sort_by_rank(&self, ids: &mut [WatcherId]) {
        ids.arrange_by_key(|id| (self.watcher(*id).rank, *id));
    }

    /// What follows from ranks and dependencies.
    pub(super) fn rebuild_dependents(&mut self) {
        let mut order = self.watcher_ids();
        self.sort_by_rank(&mut order);
        for watcher in self.watchers.values_mut() {
            watcher.dependents.clear();
        }
        for id in &order {
            for (other, requires) in self.watchers[*id].dependencies.clone() {
                if let Some(other) = self.watchers.get_mut(other) {
                    other.dependents.push((*id, requires));
                }
            }
        }
        self.order = order;
    }

    /// Which watchers each socket has: those with any definition that refers to it.
    pub(super) fn rebuild_users(&mut self) {
        let mut users: Vec<(SocketId, u32, WatcherId)> = Vec::new();
        for (id, watcher) in self.watchers.iter() {
            let sockets = watcher.editions().flat_map(|edition| &*edition.sockets);
            users.extend(sockets.map(|socket| (*socket, watcher.rank, id)));
        }
        users.arrange();
        users.dedup();
        // As the sockets are, in order of id.
        let mut users = users.into_iter().peekable();
        for (id, socket) in self.sockets.iter_mut() {
            while users.next_if(|(socket, ..)| *socket < id).is_some() {}
            let own = std::iter::from_fn(|| users.next_if(|(socket, ..)| *socket == id));
            let watchers: Vec<_> = own.map(|(_, _, watcher)| watcher).collect();
            if socket.watchers != watchers {
                socket.watchers = watchers;
                self.stirred.insert(id);
            }
        }
    }
}

impl Watcher {
    /// The definition that it has, or will have if all goes well.
    fn newest(&self) -> &Edition {
        let queued = self.queued.as_ref().and_then(|it| it.edition.as_ref());
        queued.unwrap_or(self.next())
    }
}

/// The sockets of a definition, by id.
fn passed(spec: &plan::Watcher, sockets: &NameMap<String, SocketId>) -> Rc<[SocketId]> {
    let ids = spec.listens.iter().filter_map(|name| sockets.get(name));
    ids.copied().collect()
}
