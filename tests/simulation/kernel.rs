//! A kernel and its programs, simulated: carries out effects as the contract at the head of `supervise` says, and
//! makes events of what its programs do. Knows what is true, and says so when an effect could not be carried out.

use crate::random::Random;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tentpole::plan::{self, Plan};
use tentpole::supervise::notify::{Message, Watchdog};
use tentpole::supervise::{
    Effect, Event, Exit, Pid, ProcId, Sender, SocketId, SpawnFailure, Time, WatcherId,
};
use tentpole::unit::{Reload, Signal, WatcherKind};

pub struct Kernel {
    random: Random,
    /// What is going to happen, by time; at one time in random order.
    queue: BTreeMap<(Time, u64), Happening>,
    order: u64,
    pub procs: BTreeMap<ProcId, Process>,
    ports: BTreeMap<u32, Port>,
    /// What programs are like, by watcher and command.
    temper: HashMap<(WatcherId, String), Temper>,
    /// Names of sockets that could not be bound for the latest apply.
    unbound: Vec<String>,
    /// Nothing goes wrong any more.
    pub calm: bool,
    /// Clients have stopped coming.
    is_quiet: bool,
    next_pid: i32,
    is_over: bool,
    /// Sockets that were closed with clients in shards beyond the first.
    pub reset: Vec<Rc<plan::Socket>>,
}

/// What is going to happen. Much of it is void by then, since its process has ended.
#[derive(Clone, Debug)]
enum Happening {
    Made(ProcId),
    NotMade(ProcId, SpawnFailure),
    /// By itself.
    Crash(ProcId, Exit),
    /// Since it was told to, or killed.
    Exit(ProcId, Exit),
    LeftoversEnd(ProcId),
    Notify(ProcId, Sender, Message),
    Feed(ProcId),
    Drained(ProcId, Vec<SocketId>),
    /// It is time to tell what is in a shard.
    Shard(u32, u32),
    /// It ended while there was no manager, and the new one finds that out.
    Found(ProcId, Exit),
    Connect(u32),
    Traffic(u32),
    Accept(u32),
    Bind(u32),
    /// An event that nothing here depends on, such as a command.
    Event(Event),
    Apply,
}

/// What the manager hears of.
pub enum Arrival {
    Event(Event),
    /// Somebody has changed the units, and wants them applied.
    Apply,
}

/// What a process is, whatever the supervisor believes.
#[derive(Debug)]
pub struct Process {
    pub watcher: WatcherId,
    pub wid: u32,
    /// What it was started from, and with.
    pub spec: Rc<plan::Watcher>,
    pub sockets: Rc<[SocketId]>,
    temper: Temper,
    pub stage: Stage,
    /// Something of it is alive beside its main process.
    pub leftovers: bool,
    /// It is in the kernel's hands for a long time even when it is killed.
    pub stuck: bool,
    deaf: bool,
    feeds: bool,
    /// It was told to end, or said that it does.
    is_ending: bool,
    /// It was to drain its shards, and to end then.
    pub is_drained: bool,
    /// The supervisor wants to hear when nothing is left.
    is_awaited: bool,
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Ordered and not made yet.
    Ordered,
    /// As above, but a cancellation has reached it in time.
    Cancelled,
    Alive,
    /// It has exited and nobody knows yet.
    Zombie,
    /// It has exited and that was reported.
    Dead,
    /// It was never made.
    Never,
}

#[derive(Default)]
struct Port {
    pending: u32,
    /// All of it, or the shards of some wids.
    watched: Option<Vec<u32>>,
    is_bound: bool,
    traffic_queued: bool,
    /// With `so_reuseport`, by wid.
    shards: Option<BTreeMap<u32, Shard>>,
    spec: Option<Rc<plan::Socket>>,
}

#[derive(Default)]
struct Shard {
    /// Clients wait in it.
    waits: bool,
    is_retired: bool,
    is_closing: bool,
}

/// What the programs of a watcher are inclined to do, in percent.
#[derive(Clone, Copy, Debug)]
struct Temper {
    unspawnable: u64,
    early_exit: u64,
    late_exit: u64,
    clean: u64,
    never_ready: u64,
    deaf: u64,
    leaves: u64,
    starves: u64,
    talks: u64,
    accepts: bool,
}

impl Temper {
    fn random(random: &mut Random) -> Temper {
        let healthy = Temper {
            unspawnable: 0,
            early_exit: 1,
            late_exit: 10,
            clean: 50,
            never_ready: 0,
            deaf: 3,
            leaves: 10,
            starves: 2,
            talks: 10,
            accepts: true,
        };
        match random.below(7) {
            0 | 1 => healthy,
            2 => Temper {
                late_exit: 80,
                clean: random.pick(&[0, 40, 100]),
                ..healthy
            },
            3 => Temper {
                unspawnable: random.pick(&[30, 100]),
                ..healthy
            },
            4 => Temper {
                early_exit: 90,
                clean: random.pick(&[0, 50, 100]),
                accepts: false,
                ..healthy
            },
            5 => Temper {
                never_ready: 70,
                deaf: 70,
                starves: 60,
                ..healthy
            },
            _ => Temper {
                unspawnable: 10,
                early_exit: 20,
                late_exit: 40,
                clean: 40,
                never_ready: 20,
                deaf: 30,
                leaves: 60,
                starves: 30,
                talks: 70,
                accepts: random.chance(70),
            },
        }
    }
}

impl Kernel {
    pub fn new(plan: &Plan, unbound: &[(String, String)], random: Random) -> Kernel {
        let mut kernel = Kernel {
            random,
            queue: BTreeMap::new(),
            order: 0,
            procs: BTreeMap::new(),
            ports: BTreeMap::new(),
            temper: HashMap::new(),
            unbound: unbound.iter().map(|(name, _)| name.clone()).collect(),
            calm: false,
            is_quiet: false,
            next_pid: 100,
            is_over: false,
            reset: Vec::new(),
        };
        for (port, socket) in (0..).zip(&plan.sockets) {
            kernel.open(Time::ZERO, port, socket);
        }
        kernel
    }

    /// These sockets can't be bound for the apply that comes now.
    pub fn begin_apply(&mut self, unbound: &[(String, String)]) {
        self.unbound = unbound.iter().map(|(name, _)| name.clone()).collect();
    }

    fn open(&mut self, now: Time, port: u32, spec: &Rc<plan::Socket>) {
        let is_bound = self.unbound.iter().all(|unbound| unbound != spec.name());
        let new = Port {
            is_bound,
            shards: spec.unit.so_reuseport.value.then(BTreeMap::new),
            spec: Some(Rc::clone(spec)),
            ..Port::default()
        };
        self.ports.insert(port, new);
        let at = now + self.random.millis(8000);
        self.add(at, Happening::Connect(port));
        self.add(at, Happening::Accept(port));
    }

    /// Lets somebody apply other units at `at`.
    pub fn plan_apply(&mut self, at: Time) {
        self.add(at, Happening::Apply);
    }

    /// Lets `event` happen at `at`.
    pub fn plan_event(&mut self, at: Time, event: Event) {
        self.add(at, Happening::Event(event));
    }

    fn add(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        let among_those_of_one_time = self.random.below(4) << 60;
        self.queue
            .insert((at, among_those_of_one_time | self.order), happening);
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Time> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the next thing happen; it is an event if the supervisor hears of it.
    pub fn step(&mut self, now: Time) -> Option<Arrival> {
        let (_, happening) = self.queue.pop_first()?;
        match happening {
            Happening::Apply => Some(Arrival::Apply),
            other => self.happen(now, other).map(Arrival::Event),
        }
    }

    fn happen(&mut self, now: Time, happening: Happening) -> Option<Event> {
        match happening {
            Happening::Apply => None,
            Happening::Found(proc, exit) => {
                let process = self.procs.get_mut(&proc)?;
                process.stage = Stage::Dead;
                Some(Event::Exited { proc, exit })
            }
            Happening::Event(event) => Some(event),
            Happening::Made(proc) => {
                let process = self.procs.get_mut(&proc)?;
                if process.stage == Stage::Cancelled {
                    process.stage = Stage::Never;
                    return Some(Event::SpawnCancelled { proc });
                }
                process.stage = Stage::Alive;
                self.animate(now, proc);
                self.next_pid += 1;
                let pid = Pid(self.next_pid);
                Some(Event::Spawned { proc, pid })
            }
            Happening::NotMade(proc, failure) => {
                let process = self.procs.get_mut(&proc)?;
                let cancelled = process.stage == Stage::Cancelled;
                process.stage = Stage::Never;
                Some(match cancelled {
                    true => Event::SpawnCancelled { proc },
                    false => Event::SpawnFailed { proc, failure },
                })
            }
            Happening::Crash(proc, exit) | Happening::Exit(proc, exit) => {
                let process = self.procs.get_mut(&proc)?;
                if process.stage != Stage::Alive {
                    return None;
                }
                process.stage = Stage::Dead;
                self.leave_behind(now, proc);
                Some(Event::Exited { proc, exit })
            }
            Happening::LeftoversEnd(proc) => {
                let process = self.procs.get_mut(&proc)?;
                process.leftovers = false;
                self.report_gone(proc)
            }
            Happening::Notify(proc, sender, message) => {
                let process = self.procs.get(&proc)?;
                let leftover = process.leftovers && matches!(sender, Sender::Other(_));
                if process.stage != Stage::Alive && !leftover {
                    return None;
                }
                if message.stopping {
                    self.procs.get_mut(&proc)?.is_ending = true;
                    if self.random.chance(70) {
                        let at = now + self.random.millis(2000);
                        let exit = self.random.pick(&[0, 0, 1]);
                        self.add(at, Happening::Crash(proc, Exit::Code(exit)));
                    }
                }
                Some(Event::Notified {
                    proc,
                    sender,
                    message,
                })
            }
            Happening::Feed(proc) => self.feed(now, proc),
            Happening::Drained(proc, sockets) => {
                let process = self.procs.get(&proc)?;
                if process.stage != Stage::Alive {
                    return None;
                }
                for SocketId(port) in sockets {
                    let shards = self.ports.get_mut(&port).map(|it| &mut it.shards);
                    if let Some(Some(shards)) = shards {
                        shards.entry(process.wid).or_default().waits = false;
                    }
                }
                Some(Event::Drained { proc })
            }
            Happening::Shard(port, wid) => {
                let shards = self.ports.get_mut(&port)?.shards.as_mut()?;
                let shard = shards.get_mut(&wid).filter(|shard| shard.is_closing)?;
                shard.is_closing = false;
                let socket = SocketId(port);
                if shard.waits {
                    return Some(Event::ShardOwed { socket, wid });
                }
                shards.remove(&wid);
                Some(Event::ShardClosed { socket, wid })
            }
            Happening::Connect(port) => {
                if !self.is_quiet {
                    let it = self.ports.get_mut(&port)?;
                    it.pending += 1;
                    let mut chosen = (it.shards.iter_mut().flatten())
                        .filter(|(_, shard)| !shard.is_retired)
                        .map(|(_, shard)| shard)
                        .collect::<Vec<_>>();
                    if !chosen.is_empty() {
                        let index = self.random.below(chosen.len() as u64);
                        chosen[index as usize].waits = true;
                    }
                    let pause = Duration::from_millis(self.random.pick(&[1, 30, 700, 9000]));
                    self.add(now + pause, Happening::Connect(port));
                    self.look_at(now, port);
                }
                None
            }
            Happening::Traffic(port) => {
                self.ports.get_mut(&port)?.traffic_queued = false;
                self.look_at(now, port);
                let it = &self.ports[&port];
                it.has_traffic().then_some(Event::Traffic {
                    socket: SocketId(port),
                })
            }
            Happening::Accept(port) => {
                let accepts = |process: &Process| {
                    process.stage == Stage::Alive
                        && process.sockets.contains(&SocketId(port))
                        && (self.calm || process.temper.accepts)
                };
                let is_accepted = self.procs.values().any(accepts);
                let wids: Vec<u32> = (self.procs.values())
                    .filter(|it| accepts(it))
                    .map(|process| process.wid)
                    .collect();
                let it = self.ports.get_mut(&port)?;
                if is_accepted {
                    it.pending = 0;
                }
                for (wid, shard) in it.shards.iter_mut().flatten() {
                    shard.waits &= !wids.contains(wid);
                }
                let pause = 1 + self.random.below(500);
                self.add(now + Duration::from_millis(pause), Happening::Accept(port));
                None
            }
            Happening::Bind(port) => {
                let socket = SocketId(port);
                if self.calm || self.random.chance(40) {
                    // It may have been closed meanwhile.
                    if let Some(it) = self.ports.get_mut(&port) {
                        it.is_bound = true;
                    }
                    self.look_at(now, port);
                    return Some(Event::Bound { socket });
                }
                let error = "bind: Cannot assign requested address".into();
                Some(Event::BindFailed { socket, error })
            }
        }
    }

    /// Carries out an effect, or says why no kernel could.
    pub fn execute(&mut self, now: Time, effect: &Effect) -> Result<(), String> {
        if self.is_over {
            return Err("there is an effect after `Finish`".into());
        }
        match effect {
            Effect::Spawn {
                proc,
                watcher,
                wid,
                spec,
                sockets,
                ..
            } => self.spawn(now, *proc, (*watcher, *wid), spec, sockets)?,
            Effect::Open { socket, spec } => {
                if self.ports.contains_key(&socket.0) {
                    return Err("a socket is opened twice".into());
                }
                self.open(now, socket.0, spec);
            }
            Effect::Change { socket, .. } => {
                self.port(*socket, "changed")?;
            }
            Effect::Close { socket } => {
                let has_it =
                    |process: &&Process| process.is_busy() && process.sockets.contains(socket);
                if let Some(process) = self.procs.values().find(has_it) {
                    return Err(format!("a socket is closed while {process:?} has it"));
                }
                if self.port(*socket, "closed")?.watched.is_some() {
                    return Err("a socket is closed while it is watched".into());
                }
                // The first goes on as what has its address.
                if let Some(port) = self.ports.remove(&socket.0)
                    && let Some(shards) = port.shards
                    && shards.iter().any(|(wid, shard)| *wid > 1 && shard.waits)
                {
                    self.reset.extend(port.spec);
                }
            }
            Effect::CancelSpawn { proc } => {
                let process = self.known(*proc)?;
                if process.stage == Stage::Ordered && self.random.chance(60) {
                    self.known(*proc)?.stage = Stage::Cancelled;
                }
            }
            Effect::Signal {
                proc,
                signal,
                group,
            } => self.signal(now, *proc, *signal, *group)?,
            Effect::Follow { proc, .. } => {
                self.alive(*proc, "is followed to another main process")?;
            }
            Effect::Kill { proc } => {
                let stuck = self.alive(*proc, "is killed")?.stuck;
                let delay = self.dying_takes(stuck);
                self.add(now + delay, Happening::Exit(*proc, Exit::Signal(Signal(9))));
                let delay = delay + self.dying_takes(false);
                self.add(now + delay, Happening::LeftoversEnd(*proc));
            }
            Effect::KillLeftovers { proc } => {
                let stuck = self.dead(*proc, "has its leftovers killed")?.stuck;
                self.known(*proc)?.is_awaited = true;
                let delay = match self.known(*proc)?.leftovers {
                    true => self.dying_takes(stuck),
                    false => self.random.millis(2),
                };
                self.add(now + delay, Happening::LeftoversEnd(*proc));
            }
            Effect::AwaitLeftovers { proc } => {
                let process = self.dead(*proc, "has its leftovers awaited")?;
                process.is_awaited = true;
                if !process.leftovers {
                    self.add(now, Happening::LeftoversEnd(*proc));
                }
            }
            Effect::Drain { proc, sockets } => {
                let process = self.alive(*proc, "is drained")?;
                process.is_drained = true;
                let wid = process.wid;
                for socket in sockets {
                    if self.port(*socket, "drained")?.shards.is_some() {
                        self.shard(*socket, wid)?.is_retired = true;
                    }
                }
                let delay = self.random.pick(&[0, 20, 1000, 10_000]);
                let delay = Duration::from_millis(delay);
                self.add(now + delay, Happening::Drained(*proc, sockets.clone()));
            }
            Effect::CloseShard { socket, wid } => {
                let has_it = |process: &&Process| {
                    process.is_busy() && process.sockets.contains(socket) && process.wid == *wid
                };
                if self.procs.values().find(has_it).is_some() {
                    return Err("a shard is closed while its worker is alive".into());
                }
                let shard = self.shard(*socket, *wid)?;
                if shard.is_closing {
                    return Err("a shard is closed twice".into());
                }
                (shard.is_closing, shard.is_retired) = (true, true);
                let delay = Duration::from_millis(self.random.pick(&[0, 60]));
                self.add(now + delay, Happening::Shard(socket.0, *wid));
            }
            Effect::MoveShard { socket, from, to } => {
                let has_it = |process: &&Process| {
                    process.is_busy() && process.sockets.contains(socket) && process.wid == *from
                };
                if self.procs.values().find(has_it).is_some() {
                    return Err("a shard is moved while its worker is alive".into());
                }
                let shards = &mut self.port(*socket, "asked to move a shard")?.shards;
                let shards = shards.as_mut();
                let shards = shards.ok_or("a socket without shards is asked to move one")?;
                let shard = shards
                    .remove(from)
                    .ok_or("a shard is moved that is not there")?;
                if shard.is_closing || shards.insert(*to, shard).is_some() {
                    return Err("a shard is moved that closes, or to where one is".into());
                }
            }
            Effect::ShutShard { socket, wid } => {
                let shard = self.shard(*socket, *wid)?;
                if shard.is_closing || shard.is_retired {
                    return Err("a shard is shut that was not open".into());
                }
                shard.is_retired = true;
            }
            Effect::OpenShard { socket, wid } => {
                let shard = self.shard(*socket, *wid)?;
                (shard.is_closing, shard.is_retired) = (false, false);
            }
            Effect::Watch { socket, shards } => {
                let port = self.port(*socket, "watched")?;
                if port.watched.as_ref() == Some(shards) {
                    return Err("a socket is watched twice".into());
                }
                if !port.is_bound {
                    return Err("a socket is watched that is not bound".into());
                }
                if !shards.is_empty() && port.shards.is_none() {
                    return Err("shards are watched of a socket that has none".into());
                }
                port.watched = Some(shards.clone());
                self.look_at(now, socket.0);
            }
            Effect::Unwatch { socket } => {
                let port = self.port(*socket, "unwatched")?;
                if port.watched.take().is_none() {
                    return Err("a socket is unwatched that is not watched".into());
                }
            }
            Effect::Bind { socket } => {
                if self.port(*socket, "bound")?.is_bound {
                    return Err("a socket is bound twice".into());
                }
                let delay = self.random.millis(50);
                self.add(now + delay, Happening::Bind(socket.0));
            }
            Effect::Finish { .. } => self.is_over = true,
            Effect::Reply { .. }
            | Effect::Progress { .. }
            | Effect::Parent(_)
            | Effect::Log { .. } => {}
        }
        Ok(())
    }

    /// From now on nothing goes wrong by itself, and what would never have been ready is soon.
    pub fn calm_down(&mut self, now: Time) {
        self.calm = true;
        let alive: Vec<ProcId> = (self.procs.iter())
            .filter(|(_, process)| process.stage == Stage::Alive)
            .map(|(proc, _)| *proc)
            .collect();
        self.queue.retain(|_, happening| {
            !matches!(
                happening,
                Happening::Crash(..) | Happening::Notify(..) | Happening::Feed(_)
            )
        });
        let left: Vec<ProcId> = (self.procs.iter())
            .filter(|(_, process)| process.stage == Stage::Dead && process.leftovers)
            .map(|(proc, _)| *proc)
            .collect();
        for proc in left {
            self.add(now, Happening::LeftoversEnd(proc));
        }
        for proc in alive {
            let process = self.procs.get_mut(&proc);
            let Some(process) = process else { continue };
            process.feeds = true;
            process.deaf = false;
            process.stuck = false;
            if process.is_ending {
                self.add(now, Happening::Exit(proc, Exit::Code(0)));
            }
            self.behave(now, proc);
        }
    }

    /// From now on no client comes, and those that wait have gone.
    pub fn fall_quiet(&mut self) {
        self.is_quiet = true;
        for port in self.ports.values_mut() {
            port.pending = 0;
        }
    }

    /// Something that was ordered and has not come to its end.
    pub fn busy(&self) -> impl Iterator<Item = &Process> {
        self.procs.values().filter(|process| process.is_busy())
    }

    fn port(&mut self, socket: SocketId, what: &str) -> Result<&mut Port, String> {
        self.ports
            .get_mut(&socket.0)
            .ok_or_else(|| format!("{socket:?} is {what}, and it is not open"))
    }

    fn shard(&mut self, socket: SocketId, wid: u32) -> Result<&mut Shard, String> {
        let shards = &mut self.port(socket, "asked for a shard")?.shards;
        let shards = shards.as_mut();
        let shards = shards.ok_or("a socket without shards is asked for one")?;
        Ok(shards.entry(wid).or_default())
    }

    fn known(&mut self, proc: ProcId) -> Result<&mut Process, String> {
        self.procs
            .get_mut(&proc)
            .ok_or_else(|| format!("{proc:?} was never spawned"))
    }

    fn alive(&mut self, proc: ProcId, what: &str) -> Result<&mut Process, String> {
        let process = self.known(proc)?;
        match process.stage {
            Stage::Alive | Stage::Zombie => Ok(process),
            stage => Err(format!("{proc:?} {what}, and it is {stage:?}")),
        }
    }

    fn dead(&mut self, proc: ProcId, what: &str) -> Result<&mut Process, String> {
        let process = self.known(proc)?;
        match process.stage {
            Stage::Dead => Ok(process),
            stage => Err(format!("{proc:?} {what}, and it is {stage:?}")),
        }
    }

    fn spawn(
        &mut self,
        now: Time,
        proc: ProcId,
        (watcher, wid): (WatcherId, u32),
        spec: &Rc<plan::Watcher>,
        sockets: &Rc<[SocketId]>,
    ) -> Result<(), String> {
        for socket in sockets.iter() {
            let shards = &mut self.port(*socket, "passed on")?.shards;
            shards.iter_mut().for_each(|shards| {
                shards.entry(wid).or_default();
            });
        }
        // Another command is another program.
        let program = (watcher, format!("{:?}", spec.unit.cmd.value));
        let random = &mut self.random;
        let temper = self.temper.entry(program);
        let temper = *temper.or_insert_with(|| Temper::random(random));
        let process = Process {
            watcher,
            wid,
            spec: Rc::clone(spec),
            sockets: Rc::clone(sockets),
            temper,
            stage: Stage::Ordered,
            leftovers: false,
            stuck: !self.calm && self.random.chance(3),
            deaf: !self.calm && self.random.chance(temper.deaf),
            feeds: true,
            is_ending: false,
            is_drained: false,
            is_awaited: false,
            gone: false,
        };
        if self.procs.insert(proc, process).is_some() {
            return Err(format!("{proc:?} is spawned twice"));
        }
        let delay = match self.random.below(10) {
            0..7 => Duration::ZERO,
            7..9 => self.random.millis(30),
            _ => self.random.millis(3000),
        };
        let happening = if !self.calm && self.random.chance(temper.unspawnable) {
            let exit_code = self.random.pick(&[127, 126, 1]);
            let reason = "exec /usr/bin/program: No such file or directory".into();
            Happening::NotMade(proc, SpawnFailure { reason, exit_code })
        } else {
            Happening::Made(proc)
        };
        self.add(now + delay, happening);
        Ok(())
    }

    /// Decides on the life of a new process.
    fn animate(&mut self, now: Time, proc: ProcId) {
        let Some(process) = self.procs.get_mut(&proc) else {
            return;
        };
        let temper = process.temper;
        if self.calm {
            // It may have been ordered before.
            (process.deaf, process.stuck) = (false, false);
            return self.behave(now, proc);
        }
        process.leftovers = self.random.chance(temper.leaves);
        let unit = &process.spec.unit;
        let (kind, limit) = (unit.kind, unit.start_timeout);
        let limit = limit.unwrap_or(Duration::from_secs(2)).as_millis() as u64;
        if self.random.chance(temper.early_exit) {
            let at = now + self.random.millis(40);
            let exit = self.random_exit(temper);
            self.add(at, Happening::Crash(proc, exit));
        }
        if self.random.chance(temper.late_exit) {
            let longest = self.random.pick(&[300, 2500, 20_000]);
            let at = now + self.random.millis(longest);
            let exit = self.random_exit(temper);
            self.add(at, Happening::Crash(proc, exit));
        }
        if !self.random.chance(temper.never_ready) {
            let near = self.random.chance(10);
            let at = match near {
                // At the deadline itself.
                true => now + Duration::from_millis(limit),
                false => now + self.random.millis(limit.min(3000) * 11 / 10),
            };
            let ready = match kind {
                WatcherKind::Oneshot => Happening::Crash(proc, Exit::Code(0)),
                WatcherKind::Notify | WatcherKind::Exec => {
                    let ready = Message {
                        ready: true,
                        ..Message::default()
                    };
                    let sender = if self.random.chance(12) {
                        Sender::Other(Pid(9000))
                    } else {
                        Sender::Main
                    };
                    Happening::Notify(proc, sender, ready)
                }
            };
            self.add(at, ready);
        }
        if self.random.chance(temper.starves)
            && let Some(process) = self.procs.get_mut(&proc)
        {
            process.feeds = false;
        }
        self.add(now, Happening::Feed(proc));
        let count = if self.random.chance(temper.talks) {
            1 + self.random.below(5)
        } else {
            0
        };
        for _ in 0..count {
            let at = now + self.random.millis(4000);
            let sender = match self.random.below(3) {
                0 => Sender::Other(Pid(9001)),
                _ => Sender::Main,
            };
            let message = self.random_message();
            self.add(at, Happening::Notify(proc, sender, message));
        }
    }

    /// The life of a process when nothing goes wrong.
    fn behave(&mut self, now: Time, proc: ProcId) {
        let unit = &self.procs[&proc].spec.unit;
        let limit = unit.start_timeout.unwrap_or(Duration::from_secs(1));
        let at = now + (limit / 3).min(Duration::from_millis(500));
        match unit.kind {
            WatcherKind::Oneshot => self.add(at, Happening::Crash(proc, Exit::Code(0))),
            WatcherKind::Notify | WatcherKind::Exec => {
                let ready = Message {
                    ready: true,
                    // Somebody may wait for it.
                    reloading: matches!(unit.reload, Reload::Signal(_)),
                    ..Message::default()
                };
                self.add(at, Happening::Notify(proc, Sender::Main, ready));
            }
        }
        self.add(now, Happening::Feed(proc));
    }

    fn random_exit(&mut self, temper: Temper) -> Exit {
        if self.random.chance(temper.clean) {
            let signal = Signal(self.random.pick(&[1, 2, 13, 15]));
            self.random.pick(&[
                Exit::Code(0),
                Exit::Code(0),
                Exit::Code(0),
                Exit::Signal(signal),
                Exit::Signal(signal),
            ])
        } else {
            self.random.pick(&[
                Exit::Code(1),
                Exit::Code(77),
                Exit::Signal(Signal(11)),
                Exit::Signal(Signal(9)),
                Exit::Unknown,
            ])
        }
    }

    fn random_message(&mut self) -> Message {
        let mut message = Message::default();
        match self.random.below(11) {
            0 => message.status = Some("at work".into()),
            1 => message.status = Some(String::new()),
            2 | 3 => message.extend_timeout = Some(self.random.millis(5000)),
            4 => message.stopping = true,
            5 => message.main_pid = Some(5000 + self.random.below(3) as i32),
            6 => message.watchdog = Some(Watchdog::Trigger),
            7 => message.watchdog_interval = Some(Duration::from_millis(700)),
            8 => message.errno = Some(2),
            9 => message.reloading = true,
            _ => message.ready = true,
        }
        if self.random.chance(15) {
            message.ready = true;
        }
        if self.random.chance(10) {
            message.extend_timeout = Some(Duration::from_millis(1500));
        }
        if self.random.chance(10) {
            message.stopping = true;
        }
        message
    }

    fn feed(&mut self, now: Time, proc: ProcId) -> Option<Event> {
        let process = self.procs.get(&proc)?;
        let interval = process.spec.unit.watchdog?;
        if process.stage != Stage::Alive || !process.feeds {
            return None;
        }
        // Sometimes at the very last moment.
        let pause = match self.random.below(8) {
            0 if !self.calm => interval,
            _ if self.calm => interval * 9 / 10,
            _ => interval / 2,
        };
        self.add(now + pause, Happening::Feed(proc));
        if !self.calm && self.random.chance(4) {
            self.procs.get_mut(&proc)?.feeds = false;
        }
        let message = Message {
            watchdog: Some(Watchdog::Alive),
            ..Message::default()
        };
        Some(Event::Notified {
            proc,
            sender: Sender::Main,
            message,
        })
    }

    fn signal(
        &mut self,
        now: Time,
        proc: ProcId,
        signal: Signal,
        group: bool,
    ) -> Result<(), String> {
        let process = self.alive(proc, "gets a signal")?;
        if process.stage == Stage::Zombie {
            return Ok(());
        }
        if process.spec.unit.reload == Reload::Signal(signal)
            && (self.calm || self.random.chance(80))
        {
            self.reload(now, proc);
            return Ok(());
        }
        let process = self.alive(proc, "gets a signal")?;
        let (deaf, stuck, leftovers) = (process.deaf, process.stuck, process.leftovers);
        process.is_ending |= !matches!(signal.0, 18 | 28);
        match signal.0 {
            // CONT and WINCH end nobody.
            18 | 28 => return Ok(()),
            9 => {
                let delay = self.dying_takes(stuck);
                self.add(now + delay, Happening::Exit(proc, Exit::Signal(signal)));
            }
            _ if deaf => {}
            number => {
                let delay = match self.random.below(4) {
                    0 => Duration::ZERO,
                    1 | 2 => self.random.millis(100),
                    _ => self.random.millis(3000),
                };
                let exit = match self.random.below(6) {
                    0..3 => Exit::Code(0),
                    3..5 => Exit::Signal(Signal(number)),
                    _ => Exit::Code(3),
                };
                self.add(now + delay, Happening::Exit(proc, exit));
            }
        }
        if group && leftovers && self.random.chance(60) {
            let delay = self.random.millis(3000);
            self.add(now + delay, Happening::LeftoversEnd(proc));
        }
        Ok(())
    }

    /// It reloads by itself, and mostly says so.
    fn reload(&mut self, now: Time, proc: ProcId) {
        let says = |reloading, ready| Message {
            reloading,
            ready,
            ..Message::default()
        };
        let mut at = now + self.random.millis(300);
        let parts: &[Message] = match self.random.below(9) {
            _ if self.calm => &[says(true, false), says(false, true)],
            0 | 1 => &[],
            2 | 3 => &[says(true, false)],
            4 => &[says(false, true)],
            5 => &[says(true, true)],
            _ => &[says(true, false), says(false, true)],
        };
        for part in parts {
            let mut part = part.clone();
            if part.reloading && self.random.chance(30) {
                part.extend_timeout = Some(self.random.millis(5000));
            }
            self.add(at, Happening::Notify(proc, Sender::Main, part));
            // In calm it is in time whatever the limit is.
            let longest = if self.calm { 2 } else { 1200 };
            at = at + Duration::from_millis(1) + self.random.millis(longest);
        }
    }

    /// What a process that has exited leaves behind may end by itself.
    fn leave_behind(&mut self, now: Time, proc: ProcId) {
        let leaves = self
            .procs
            .get(&proc)
            .is_some_and(|process| process.leftovers);
        if leaves && (self.calm || self.random.chance(50)) {
            let delay = self.random.millis(5000);
            self.add(now + delay, Happening::LeftoversEnd(proc));
        }
    }

    /// There is no manager until `until`; then there is a new one, which has to ask again for everything. What
    /// happens meanwhile is only heard of as far as it can be found out afterwards.
    pub fn restart(&mut self, until: Time, crash: bool) {
        if crash {
            for (at, happening) in self.take_until(until) {
                self.miss(at, until, happening);
            }
        }
        // Nobody is left who was about to do these.
        self.queue.retain(|_, happening| {
            use Happening::{Bind, Drained, Made, NotMade, Shard, Traffic};
            let is_lost = matches!(
                happening,
                Made(_) | NotMade(..) | Drained(..) | Shard(..) | Bind(_) | Traffic(_)
            );
            !is_lost
        });
        self.procs
            .retain(|_, process| !matches!(process.stage, Stage::Ordered | Stage::Cancelled));
        for process in self.procs.values_mut() {
            process.is_awaited = false;
        }
        for port in self.ports.values_mut() {
            (port.watched, port.traffic_queued) = (None, false);
            let shards = port.shards.iter_mut().flatten();
            shards.for_each(|(_, shard)| shard.is_closing = false);
        }
    }

    fn take_until(&mut self, until: Time) -> Vec<(Time, Happening)> {
        let later = self.queue.split_off(&(until, u64::MAX));
        let sooner = std::mem::replace(&mut self.queue, later);
        (sooner.into_iter())
            .map(|((at, _), happening)| (at, happening))
            .collect()
    }

    /// Something happens that no manager hears of.
    fn miss(&mut self, at: Time, until: Time, happening: Happening) {
        match happening {
            Happening::Crash(proc, exit) | Happening::Exit(proc, exit) => {
                let process = self.procs.get_mut(&proc);
                let Some(process) = process.filter(|it| it.stage == Stage::Alive) else {
                    return;
                };
                process.stage = Stage::Zombie;
                self.leave_behind(at, proc);
                let exit = if self.random.chance(20) {
                    Exit::Unknown
                } else {
                    exit
                };
                let found = until + self.random.millis(20);
                self.add(found, Happening::Found(proc, exit));
            }
            Happening::Notify(..) if self.random.chance(50) => {}
            Happening::LeftoversEnd(proc) => {
                if let Some(process) = self.procs.get_mut(&proc) {
                    process.leftovers = false;
                }
            }
            Happening::Event(Event::Terminate { .. })
            | Happening::Notify(..)
            | Happening::Feed(_)
            | Happening::Found(..)
            | Happening::Connect(_)
            | Happening::Accept(_) => self.add(until, happening),
            Happening::Made(_)
            | Happening::NotMade(..)
            | Happening::Drained(..)
            | Happening::Shard(..)
            | Happening::Traffic(_)
            | Happening::Bind(_) => {}
            // Who asks finds nobody.
            Happening::Event(_) | Happening::Apply => {}
        }
    }

    fn dying_takes(&mut self, stuck: bool) -> Duration {
        match stuck {
            true => Duration::from_secs(5 + self.random.below(60)),
            false => self.random.millis(20),
        }
    }

    fn report_gone(&mut self, proc: ProcId) -> Option<Event> {
        let process = self.procs.get_mut(&proc)?;
        if process.stage != Stage::Dead || !process.is_awaited {
            return None;
        }
        (!std::mem::replace(&mut process.gone, true)).then_some(Event::Gone { proc })
    }

    /// Level triggered: as long as somebody waits on a watched socket, there is traffic again and again.
    fn look_at(&mut self, now: Time, port: u32) {
        let Some(it) = self.ports.get_mut(&port) else {
            return;
        };
        if it.has_traffic() && !it.traffic_queued {
            it.traffic_queued = true;
            let delay = self.random.millis(5);
            self.add(now + delay, Happening::Traffic(port));
        }
    }
}

impl Port {
    /// Somebody waits where it is watched.
    fn has_traffic(&self) -> bool {
        let waits = |wid: &u32| {
            let shard = self.shards.as_ref().and_then(|shards| shards.get(wid));
            shard.is_some_and(|shard| shard.waits)
        };
        match &self.watched {
            None => false,
            Some(wids) if wids.is_empty() => self.pending > 0,
            Some(wids) => wids.iter().any(waits),
        }
    }
}

impl Process {
    /// Ordered, alive, or its end is waited for.
    fn is_busy(&self) -> bool {
        match self.stage {
            Stage::Ordered | Stage::Cancelled | Stage::Alive | Stage::Zombie => true,
            Stage::Dead | Stage::Never => false,
        }
    }
}
