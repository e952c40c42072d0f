//! Other units than before.

use super::*;
use tentpole::plan::{Action, Change, Unit};

/// What a process is started from.
#[derive(Debug)]
pub(super) struct Definition {
    pub spec: Rc<plan::Watcher>,
    /// The sockets that it gets.
    pub sockets: Vec<usize>,
}

impl Rules {
    pub(super) fn add_socket(
        &mut self,
        spec: &Rc<plan::Socket>,
        unbound: &[(String, String)],
    ) -> usize {
        let index = self.next_socket;
        self.next_socket += 1;
        let socket = Socket {
            spec: Rc::clone(spec),
            retired: false,
            bound: unbound.iter().all(|(name, _)| name != spec.name()),
            failed_binds: 0,
            bind_at: None,
            window: None,
            activations: 0,
            paused: None,
            watched: None,
            watched_since: Time::ZERO,
            shards: match spec.unit.so_reuseport.value {
                true => BTreeMap::from([(1, Shard::Open)]),
                false => BTreeMap::new(),
            },
            is_left: false,
        };
        self.sockets.insert(index, socket);
        index
    }

    pub(super) fn add_watcher(&mut self, spec: &Rc<plan::Watcher>) -> usize {
        let id = self.next_watcher;
        self.next_watcher += 1;
        let wanted = spec.unit.numprocesses.value;
        let watcher = Watcher {
            own: self.define(spec),
            rank: 0,
            level: 0,
            retired: false,
            needs: BTreeMap::new(),
            goal: DOWN,
            together: None,
            wanted,
            slots: (1..=wanted).map(|wid| (wid, Slot::default())).collect(),
            generations: BTreeMap::new(),
            restarts: 0,
            failed_starts: 0,
            failures: 0,
            last_end: None,
            returns: 0,
            mishap: Mishap::None,
            next_spawn: Time::ZERO,
            reload: None,
            queued: None,
            signalled: None,
            reloads: 0,
            failed_reload: None,
        };
        self.watchers.insert(id, watcher);
        id
    }

    /// A definition, with the sockets that its names stand for now.
    fn define(&self, spec: &Rc<plan::Watcher>) -> Rc<Definition> {
        let named = |name: &String| {
            let is_it = |socket: &Socket| !socket.retired && socket.spec.name() == name;
            let found = self.sockets.iter().find(|(_, socket)| is_it(socket));
            *found.expect("the plan was checked").0
        };
        Rc::new(Definition {
            sockets: spec.listens.iter().map(named).collect(),
            spec: Rc::clone(spec),
        })
    }

    /// Order, levels and dependencies; what the plan leaves out keeps its own.
    pub(super) fn order_as(&mut self, plan: &Plan) {
        let ids: BTreeMap<&str, usize> = (plan.watchers.iter())
            .filter_map(|spec| Some((spec.name(), self.find(spec.name()).ok()?)))
            .collect();
        for (rank, spec) in plan.watchers.iter().enumerate() {
            let mut needs = BTreeMap::new();
            for (names, requires) in [(&spec.unit.after, false), (&spec.unit.requires, true)] {
                needs.extend((names.iter()).map(|name| (ids[name.value.as_str()], requires)));
            }
            let watcher = self.watcher(ids[spec.name()]);
            (watcher.rank, watcher.level, watcher.needs) = (rank, spec.level, needs);
        }
    }

    pub(super) fn begin_apply(
        &mut self,
        plan: &Plan,
        changes: &[Change],
        unbound: &[(String, String)],
    ) -> Result<Option<Vec<(usize, Want)>>, Answer> {
        self.refuse_when_stopping()?;
        if self.pending.values().any(|pending| pending.apply) {
            self.say("second apply refused");
            return Err(Answer::Refused);
        }
        self.say("apply");
        if matches!(self.phase, Phase::Running) {
            self.tell_parent(ParentNotice::Reloading, "the units are applied");
        }
        self.warmup_delay = plan.manager.warmup_delay;
        self.shutdown_timeout = plan.manager.shutdown_timeout;
        for watcher in self.watchers.values() {
            let is_old = |socket: &usize| self.sockets[socket].retired;
            let name = watcher.own.spec.name();
            let has_old = !watcher.retired && watcher.newest().sockets.iter().any(is_old);
            let is_of_it = |change: &Change| {
                change.unit == Unit::Watcher(name.to_owned())
                    && matches!(change.action, Action::Reload | Action::Remove)
            };
            assert!(
                !has_old || changes.iter().any(is_of_it),
                "watcher `{name}` is left with a socket that is in no plan"
            );
        }
        let first_new = self.next_socket;
        for change in changes {
            if let Unit::Socket(name) = &change.unit {
                self.change_socket(plan, name, change.action, unbound);
            }
        }
        self.inherit_shards(first_new);
        self.leave_shards(first_new);
        let spec_of = |name: &str| plan.watchers.iter().find(|spec| spec.name() == name);
        let mut new = Vec::new();
        for change in changes {
            let Unit::Watcher(name) = &change.unit else {
                continue;
            };
            match (change.action, spec_of(name)) {
                (Action::Add, Some(spec)) => new.push(self.add_watcher(spec)),
                (Action::Remove, _) => {
                    let id = self.find(name)?;
                    self.watcher(id).retired = true;
                }
                _ => {}
            }
        }
        self.order_as(plan);
        let mut waits = Vec::new();
        for change in changes {
            let Unit::Watcher(name) = &change.unit else {
                continue;
            };
            let id = self.find(name)?;
            match (change.action, spec_of(name)) {
                (Action::Remove, _) => {
                    self.stop(id);
                    waits.push((id, Want::Stopped));
                }
                (Action::Scale, Some(spec)) => {
                    self.say("rescaled");
                    let definition = Rc::new(Definition {
                        spec: Rc::clone(spec),
                        sockets: self.watchers[&id].own.sockets.clone(),
                    });
                    self.watcher(id).rescaled(definition);
                    self.scale_to(id, spec.unit.numprocesses.value);
                    waits.push((id, Want::Scaled));
                }
                (Action::Reload, Some(spec)) => {
                    let want = self.redefine(id, spec);
                    waits.extend(want.map(|want| (id, want)));
                }
                _ => {}
            }
        }
        for id in new {
            self.say("watcher added");
            if self.unit(id).autostart {
                self.start_by_itself(id);
                waits.push((id, Want::Up));
            }
        }
        Ok(Some(waits))
    }

    fn change_socket(
        &mut self,
        plan: &Plan,
        name: &str,
        action: Action,
        unbound: &[(String, String)],
    ) {
        let spec = plan.sockets.iter().find(|spec| spec.name() == name);
        let known = (self.sockets.iter_mut())
            .find(|(_, socket)| !socket.retired && socket.spec.name() == name);
        match (action, spec, known) {
            (Action::Set, Some(spec), Some((index, socket))) => {
                socket.spec = Rc::clone(spec);
                let key = Key::Socket(*index);
                let reason = "it is another in place";
                self.expect(key, Act::Change(Rc::clone(spec)), reason);
                self.say("socket changed");
            }
            (Action::Add | Action::Rebind, Some(spec), known) => {
                if let Some((_, socket)) = known {
                    socket.retired = true;
                    socket.bind_at = None;
                }
                let index = self.add_socket(spec, unbound);
                let key = Key::Socket(index);
                self.expect(key, Act::Open(Rc::clone(spec)), "it is bound for the apply");
                let now = self.now;
                if let Some(socket) = self.sockets.get_mut(&index).filter(|it| !it.bound) {
                    socket.failed_to_bind(now);
                }
                self.say(match action {
                    Action::Add => "socket added",
                    _ => "socket bound anew",
                });
            }
            (Action::Remove, _, Some((_, socket))) => {
                socket.retired = true;
                socket.bind_at = None;
            }
            _ => panic!("the changes are not those between the plans: {action:?} {name}"),
        }
    }

    /// A watcher that has become another.
    fn redefine(&mut self, id: usize, spec: &Rc<plan::Watcher>) -> Option<Want> {
        let definition = self.define(spec);
        let before = self.watchers[&id].newest().spec.unit.numprocesses.value;
        let wanted = spec.unit.numprocesses.value;
        let is_oneshot = |spec: &plan::Watcher| spec.unit.kind == WatcherKind::Oneshot;
        let was_oneshot = is_oneshot(&self.watchers[&id].own.spec);
        let is_up = matches!(self.watchers[&id].goal, Goal::Up { .. });
        if is_up && !was_oneshot && !is_oneshot(spec) {
            let serial = self.begin_reload(id, Some(definition));
            if before != wanted {
                self.scale_to(id, wanted);
            }
            return Some(Want::Reloaded(serial));
        }
        self.say("redefined at once");
        if is_up {
            self.supersede_reloads(id, "apply");
            self.cancel_reload(id);
        }
        self.watcher(id).queued = None;
        self.watcher(id).own = definition;
        if before != wanted {
            self.scale_to(id, wanted);
        }
        match self.watchers[&id].goal {
            // It is to run once, and what runs would never end.
            Goal::Up { .. } if !was_oneshot => {
                self.restart(id);
                Some(Want::Up)
            }
            Goal::Failed | Goal::Waiting if spec.unit.on_demand.value => {
                let watcher = self.watcher(id);
                (watcher.mishap, watcher.returns) = (Mishap::None, 0);
                self.watcher(id).goal = Goal::Waiting;
                None
            }
            Goal::Failed | Goal::Waiting => {
                self.start(id);
                Some(Want::Up)
            }
            Goal::Queued => Some(Want::Up),
            Goal::Down { again: true, .. } => Some(Want::Up),
            Goal::Up { .. } | Goal::Down { .. } | Goal::Ended => None,
        }
    }

    /// An apply is over.
    pub(super) fn applied(&mut self, told: bool) {
        self.say("applied");
        if told && !self.is_stopping() {
            self.tell_parent(ParentNotice::Ready, "the apply is over");
        }
    }

    /// Nothing of a watcher that is left out is alive any more.
    pub(super) fn forget(&mut self, id: usize) {
        for request in self.pending.keys().copied().collect::<Vec<_>>() {
            let Some(mut pending) = self.pending.remove(&request) else {
                continue;
            };
            if let Some((want, mark)) = pending.open.remove(&id) {
                let is_judged = self.judge(id, want, mark, &mut pending);
                assert!(is_judged, "who waits for what is removed waits no longer");
            }
            self.pending.insert(request, pending);
        }
        self.watchers.remove(&id);
        for watcher in self.watchers.values_mut() {
            watcher.needs.remove(&id);
        }
    }

    /// It is in no plan, and no definition that matters refers to it.
    pub(super) fn is_unused(&self, index: usize) -> bool {
        let is_used = self.watchers.values().any(|it| it.refers_to(index));
        self.sockets[&index].retired && !is_used && !self.keeps_left_shards(index)
    }

    /// The kernel sockets of one that goes may have become those of a new one, and nobody says which.
    fn inherit_shards(&mut self, first_new: usize) {
        let leaving = self.sockets.values().filter(|socket| socket.retired);
        let count = (leaving.flat_map(|socket| socket.shards.keys().copied())).max();
        for socket in (self.sockets.iter_mut())
            .filter(|(index, _)| **index >= first_new)
            .map(|(_, socket)| socket)
            .filter(|socket| socket.spec.unit.so_reuseport.value)
        {
            for wid in 2..=count.unwrap_or_default() {
                let (by, tries) = (None, 0);
                let unknown = Shard::Draining { by, tries };
                socket.shards.insert(wid, unknown);
            }
        }
    }

    /// Whether the supervisor's plan is what it must be.
    pub fn check_plan(&self, plan: &Plan) -> Result<(), String> {
        let mut sockets: Vec<&Socket> = self.sockets.values().filter(|it| !it.retired).collect();
        sockets.sort_by(|a, b| a.spec.name().cmp(b.spec.name()));
        let same_sockets = sockets.len() == plan.sockets.len()
            && (sockets.iter().zip(&plan.sockets))
                .all(|(ours, theirs)| is_same(&ours.spec, theirs));
        let ids = self
            .ids()
            .into_iter()
            .filter(|id| !self.watchers[id].retired);
        let watchers: Vec<_> = ids.map(|id| self.watchers[&id].newest()).collect();
        let same_watchers = watchers.len() == plan.watchers.len()
            && (watchers.iter().zip(&plan.watchers))
                .all(|(ours, theirs)| is_same(&ours.spec, theirs));
        match (same_sockets, same_watchers) {
            (true, true) => Ok(()),
            (false, _) => Err("the sockets of the plan are not those that there are".into()),
            _ => Err("the watchers of the plan are not those that there are".into()),
        }
    }
}

impl Watcher {
    /// One of its definitions that matter has this socket.
    pub(super) fn refers_to(&self, socket: usize) -> bool {
        let mut all = self.definitions().into_iter();
        all.any(|definition| definition.sockets.contains(&socket))
    }
}

/// The same, also after it was read from a record.
pub(super) fn is_same<T: PartialEq>(ours: &Rc<T>, theirs: &Rc<T>) -> bool {
    Rc::ptr_eq(ours, theirs) || ours == theirs
}
