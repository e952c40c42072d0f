//! A schedule that is written down event by event, for rules that read best as a sentence.
//!
//! Effects come back as words: `spawn a/1` is worker 1 of watcher `a`. Log lines, STATUS= and progress are left out.

use crate::rules::Rules;
use crate::units::plan_of;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tentpole::supervise::notify::Message;
use tentpole::supervise::{
    Command, Effect, Event, Exit, Key, ParentNotice, Pid, ProcId, Refusal, RequestId, Sender,
    Settings, SocketId, SpawnFailure, Supervisor, Time, View, WatcherId, WatcherView,
};
use tentpole::unit::{LogLevel, signal_name};

const SETTINGS: Settings = Settings {
    log_level: LogLevel::Trace,
    parent: false,
};

pub struct Scenario {
    pub supervisor: Supervisor,
    rules: Rules,
    pub now: Time,
    watchers: HashMap<WatcherId, String>,
    sockets: BTreeMap<SocketId, String>,
    /// What each process is called, and the latest that is called so.
    slots: HashMap<ProcId, String>,
    procs: HashMap<String, ProcId>,
    records: BTreeMap<Key, Vec<u8>>,
    /// Names of processes that have not ended.
    alive: BTreeSet<String>,
    next_pid: i32,
    next_request: u64,
    /// Log lines so far.
    pub log: Vec<String>,
    /// Progress that was told so far.
    pub progress: Vec<String>,
}

impl Scenario {
    pub fn of(text: &str) -> Scenario {
        Scenario::with_unbound(text, &[])
    }

    /// As [`Scenario::of`], where these sockets could not be bound.
    pub fn with_unbound(text: &str, unbound: &[&str]) -> Scenario {
        let plan = plan_of(text);
        let unbound: Vec<(String, String)> = (unbound.iter())
            .map(|name| (name.to_string(), "bind: no such address".to_owned()))
            .collect();
        Scenario {
            supervisor: Supervisor::new(&plan, &unbound, SETTINGS),
            rules: Rules::new(&plan, &unbound, false),
            now: Time::ZERO + Duration::from_secs(1000),
            watchers: HashMap::new(),
            sockets: (0..)
                .zip(&plan.sockets)
                .map(|(id, spec)| (SocketId(id), spec.name().to_owned()))
                .collect(),
            slots: HashMap::new(),
            procs: HashMap::new(),
            records: BTreeMap::new(),
            alive: BTreeSet::new(),
            next_pid: 100,
            next_request: 1,
            log: Vec::new(),
            progress: Vec::new(),
        }
    }

    /// One event, now.
    pub fn event(&mut self, event: Event) -> Vec<String> {
        let mut effects = Vec::new();
        if let Event::Exited { proc, .. }
        | Event::SpawnFailed { proc, .. }
        | Event::SpawnCancelled { proc } = &event
        {
            self.alive.remove(&self.slots[proc]);
        }
        self.supervisor
            .handle(self.now, event.clone(), &mut effects);
        self.record();
        let words = self.all_words(&effects);
        let judged = (self.rules.turn(self.now, &event, &effects))
            .and_then(|()| self.rules.check_view(&self.supervisor.view(self.now)));
        if let Err(sentence) = judged {
            panic!("{event:?}: {sentence}; there is {words:?}");
        }
        words
    }

    fn record(&mut self) {
        let written = self.supervisor.record(&mut |key, content| {
            match content {
                Some(content) => self.records.insert(key, content),
                None => self.records.remove(&key),
            };
        });
        written.expect("it can be written");
    }

    fn all_words(&mut self, effects: &[Effect]) -> Vec<String> {
        for watcher in &self.supervisor.view(self.now).watchers {
            self.watchers.insert(watcher.id, watcher.name.to_owned());
        }
        effects.iter().filter_map(|it| self.words(it)).collect()
    }

    /// Other units are applied, of whose sockets these can't be bound.
    pub fn apply_with_unbound(&mut self, text: &str, unbound: &[&str]) -> Vec<String> {
        let plan = Box::new(plan_of(text));
        let unbound: Vec<(String, String)> = (unbound.iter())
            .map(|name| (name.to_string(), "bind: no such address".to_owned()))
            .collect();
        let changes = self.supervisor.changes_to(&plan);
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.event(Event::Apply {
            request,
            plan,
            changes,
            unbound,
            no_wait: false,
            progress: true,
        })
    }

    pub fn apply(&mut self, text: &str) -> Vec<String> {
        self.apply_with_unbound(text, &[])
    }

    /// Whether an apply of these units would change nothing.
    pub fn is_as(&self, text: &str) -> bool {
        self.supervisor.changes_to(&plan_of(text)).is_empty()
    }

    /// A new manager goes on from the records of this one; those who wait for answers are there still, or not.
    pub fn succeeded(&mut self, connected: bool) -> Vec<String> {
        // Who is killed leaves what was written while it ran.
        if connected || self.records.is_empty() {
            self.records.clear();
            let written = self.supervisor.record_all(&mut |key, content| {
                self.records.extend(content.map(|content| (key, content)));
            });
            written.expect("it can be written");
        }
        let restored = Supervisor::restore(self.records.clone(), SETTINGS);
        self.supervisor = restored.expect("it was recorded");
        let mut effects = Vec::new();
        self.supervisor.resume(self.now, connected, &mut effects);
        self.record();
        let words = self.all_words(&effects);
        let judged = (self.rules.resume(self.now, connected, &effects))
            .and_then(|()| self.rules.check_view(&self.supervisor.view(self.now)));
        if let Err(sentence) = judged {
            panic!("{sentence}; there is {words:?}");
        }
        words
    }

    /// So much time passes, and nothing but time.
    pub fn after(&mut self, seconds: f64) -> Vec<String> {
        let end = self.now + Duration::from_secs_f64(seconds);
        let mut words = Vec::new();
        while let Some(at) = self.supervisor.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            words.extend(self.event(Event::Tick));
        }
        self.now = end;
        words
    }

    pub fn begin(&mut self) -> Vec<String> {
        self.event(Event::Begin)
    }

    pub fn spawned(&mut self, slot: &str) -> Vec<String> {
        self.next_pid += 1;
        let (proc, pid) = (self.procs[slot], Pid(self.next_pid));
        self.event(Event::Spawned { proc, pid })
    }

    /// All of these, one after the other.
    pub fn all_spawned(&mut self, slots: &[&str]) -> Vec<String> {
        slots.iter().flat_map(|slot| self.spawned(slot)).collect()
    }

    /// The replacement is there, and has stayed for as long as one of type `exec` has to.
    pub fn proved(&mut self, slot: &str) -> Vec<String> {
        self.all_proved(&[slot])
    }

    pub fn all_proved(&mut self, slots: &[&str]) -> Vec<String> {
        let mut words = self.all_spawned(slots);
        words.extend(self.after(0.1));
        words
    }

    pub fn spawn_failed(&mut self, slot: &str) -> Vec<String> {
        let failure = SpawnFailure {
            reason: "exec /usr/bin/program: No such file or directory".into(),
            exit_code: 127,
        };
        let proc = self.procs[slot];
        self.event(Event::SpawnFailed { proc, failure })
    }

    pub fn spawn_cancelled(&mut self, slot: &str) -> Vec<String> {
        let proc = self.procs[slot];
        self.event(Event::SpawnCancelled { proc })
    }

    pub fn exits(&mut self, slot: &str, exit: Exit) -> Vec<String> {
        let proc = self.procs[slot];
        self.event(Event::Exited { proc, exit })
    }

    pub fn gone(&mut self, slot: &str) -> Vec<String> {
        let proc = self.procs[slot];
        self.event(Event::Gone { proc })
    }

    pub fn drained(&mut self, slot: &str) -> Vec<String> {
        let proc = self.procs[slot];
        self.event(Event::Drained { proc })
    }

    /// Nobody waits in it.
    pub fn shard_closed(&mut self, socket: &str, wid: u32) -> Vec<String> {
        let socket = self.socket(socket);
        self.event(Event::ShardClosed { socket, wid })
    }

    /// Clients wait in it.
    pub fn shard_owed(&mut self, socket: &str, wid: u32) -> Vec<String> {
        let socket = self.socket(socket);
        self.event(Event::ShardOwed { socket, wid })
    }

    /// It exits with code 0, and nothing is left of it.
    pub fn ends(&mut self, slot: &str) -> Vec<String> {
        let mut words = self.exits(slot, Exit::Code(0));
        words.extend(self.gone(slot));
        words
    }

    pub fn says(&mut self, slot: &str, message: Message) -> Vec<String> {
        self.notifies(slot, Sender::Main, message)
    }

    pub fn notifies(&mut self, slot: &str, sender: Sender, message: Message) -> Vec<String> {
        let proc = self.procs[slot];
        self.event(Event::Notified {
            proc,
            sender,
            message,
        })
    }

    /// A message that is of no use.
    pub fn misspeaks(&mut self, slot: &str) -> Vec<String> {
        let (proc, problem) = (self.procs[slot], "is not understood".to_owned());
        self.event(Event::Misspoke { proc, problem })
    }

    pub fn says_ready(&mut self, slot: &str) -> Vec<String> {
        self.says(
            slot,
            Message {
                ready: true,
                ..Message::default()
            },
        )
    }

    pub fn traffic(&mut self, socket: &str) -> Vec<String> {
        let socket = self.socket(socket);
        self.event(Event::Traffic { socket })
    }

    pub fn socket(&self, name: &str) -> SocketId {
        let mut newest = self.sockets.iter().rev();
        let found = newest.find(|(_, known)| *known == name);
        *found.expect("the socket is in the unit file").0
    }

    /// Requests are numbered from 1.
    pub fn command(&mut self, command: Command) -> Vec<String> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.event(Event::Command {
            request,
            command,
            no_wait: false,
            progress: true,
        })
    }

    pub fn start(&mut self, names: &[&str]) -> Vec<String> {
        self.command(Command::Start(owned(names)))
    }

    pub fn stop(&mut self, names: &[&str]) -> Vec<String> {
        self.command(Command::Stop(owned(names)))
    }

    pub fn restart(&mut self, names: &[&str]) -> Vec<String> {
        self.command(Command::Restart(owned(names)))
    }

    pub fn reload(&mut self, names: &[&str]) -> Vec<String> {
        self.command(Command::Reload(owned(names)))
    }

    pub fn terminate(&mut self) -> Vec<String> {
        self.event(Event::Terminate { forwarded: false })
    }

    /// By way of the keeper.
    pub fn terminate_forwarded(&mut self) -> Vec<String> {
        self.event(Event::Terminate { forwarded: true })
    }

    pub fn view(&self) -> View<'_> {
        self.supervisor.view(self.now)
    }

    pub fn watcher(&self, name: &str) -> WatcherView<'_> {
        let found = (self.view().watchers.into_iter()).find(|watcher| watcher.name == name);
        found.expect("the watcher is in the unit file")
    }

    /// Its state, as status shows it.
    pub fn state(&self, name: &str) -> String {
        self.watcher(name).state.to_string()
    }

    fn words(&mut self, effect: &Effect) -> Option<String> {
        let of = |proc: &ProcId| self.slots[proc].clone();
        Some(match effect {
            Effect::Open { socket, spec } => {
                self.sockets.insert(*socket, spec.name().to_owned());
                format!("open {}", spec.name())
            }
            Effect::Change { socket, .. } => format!("change {}", self.sockets[socket]),
            Effect::Close { socket } => format!("close {}", self.sockets[socket]),
            Effect::Spawn {
                proc, watcher, wid, ..
            } => {
                if let Some(slot) = self.slots.get(proc) {
                    return Some(format!("spawn {slot} again"));
                }
                // Beside another it is called a/1'.
                let mut slot = format!("{}/{wid}", self.watchers[watcher]);
                while self.alive.contains(&slot) {
                    slot.push('\'');
                }
                self.alive.insert(slot.clone());
                self.slots.insert(*proc, slot.clone());
                self.procs.insert(slot.clone(), *proc);
                format!("spawn {slot}")
            }
            Effect::CancelSpawn { proc } => format!("cancel {}", of(proc)),
            Effect::Signal {
                proc,
                signal,
                group,
            } => {
                let to = if *group { "group of " } else { "" };
                format!("{} to {to}{}", signal_name(*signal), of(proc))
            }
            Effect::Follow { proc, pid } => format!("follow {} to {}", of(proc), pid.0),
            Effect::Kill { proc } => format!("kill {}", of(proc)),
            Effect::KillLeftovers { proc } => format!("kill leftovers of {}", of(proc)),
            Effect::AwaitLeftovers { proc } => format!("await leftovers of {}", of(proc)),
            Effect::Drain { proc, .. } => format!("drain {}", of(proc)),
            Effect::CloseShard { socket, wid } => {
                format!("close shard {}/{wid}", self.sockets[socket])
            }
            Effect::MoveShard { socket, from, to } => {
                format!("move shard {}/{from} to {to}", self.sockets[socket])
            }
            Effect::ShutShard { socket, wid } => {
                format!("shut shard {}/{wid}", self.sockets[socket])
            }
            Effect::OpenShard { socket, wid } => {
                format!("open shard {}/{wid}", self.sockets[socket])
            }
            Effect::Watch { socket, shards } => {
                let name = &self.sockets[socket];
                let shards: Vec<String> =
                    shards.iter().map(|wid| format!("{name}/{wid}")).collect();
                match shards.is_empty() {
                    true => format!("watch {name}"),
                    false => format!("watch {}", shards.join(" ")),
                }
            }
            Effect::Unwatch { socket } => format!("unwatch {}", self.sockets[socket]),
            Effect::Bind { socket } => format!("bind {}", self.sockets[socket]),
            Effect::Reply { request, outcome } => {
                let outcome = match outcome {
                    Ok(None) => "done".to_owned(),
                    Ok(Some(text)) => format!("done: {text}"),
                    Err(Refusal::NoSuchWatcher { name }) => format!("no watcher {name}"),
                    Err(Refusal::IsSocket { name, watchers }) => {
                        format!("{name} is the socket of {}", watchers.join(" "))
                    }
                    Err(Refusal::Refused(text)) => format!("refused: {text}"),
                    Err(Refusal::Failed(text)) => format!("failed: {text}"),
                    Err(Refusal::ShuttingDown) => "shutting down".to_owned(),
                    Err(Refusal::Superseded { name, by }) => format!("{name} superseded by {by}"),
                };
                format!("answer {}: {outcome}", request.0)
            }
            Effect::Parent(ParentNotice::Ready) => "tell the parent: ready".to_owned(),
            Effect::Parent(ParentNotice::Reloading) => "tell the parent: reloading".to_owned(),
            Effect::Parent(ParentNotice::Stopping) => "tell the parent: stopping".to_owned(),
            Effect::Parent(_) => return None,
            Effect::Progress {
                request,
                watcher,
                state,
                ready,
                wanted,
            } => {
                let text = format!("{}: {watcher} {state} {ready}/{wanted}", request.0);
                self.progress.push(text);
                return None;
            }
            Effect::Log { unit, text, .. } => {
                self.log.push(format!("{unit}: {text}"));
                return None;
            }
            Effect::Finish { code } => format!("finish {code}"),
        })
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
