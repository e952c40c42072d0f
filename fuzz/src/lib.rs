//! What the targets share: a machine that is made up, and a runtime without a kernel.

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use tentpole::plan::{Host, Plan, User, examine};
use tentpole::supervise::{
    Amount, Command, Effect, Event, Exit, Key, Pid, ProcId, RequestId, Sender, Settings, SocketId,
    SpawnFailure, Supervisor, Time, notify,
};
use tentpole::unit::{LogLevel, Signal, read_text};

/// A machine with three users.
pub struct Machine;

const USERS: [(&str, u32); 3] = [("root", 0), ("www", 33), ("nobody", 65534)];

impl Host for Machine {
    fn user_by_name(&self, name: &str) -> Option<User> {
        USERS.iter().find(|user| user.0 == name).map(user)
    }

    fn user_by_id(&self, uid: u32) -> Option<User> {
        USERS.iter().find(|user| user.1 == uid).map(user)
    }

    fn group_by_name(&self, name: &str) -> Option<u32> {
        self.user_by_name(name).map(|user| user.gid)
    }

    fn groups_of(&self, _: &str, gid: u32) -> Vec<u32> {
        vec![gid, 1000]
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        [("PATH", "/bin:/usr/bin"), ("HOME", "/root"), ("EMPTY", "")]
            .map(|(name, value)| (name.into(), value.into()))
            .into()
    }

    fn is_root(&self) -> bool {
        true
    }
}

fn user((name, id): &(&str, u32)) -> User {
    User {
        name: (*name).into(),
        uid: *id,
        gid: *id,
        home: format!("/home/{name}"),
        shell: "/bin/sh".into(),
    }
}

thread_local! {
    static PLANS: [Plan; 3] = UNITS.map(plan);
}

/// One of the plans that the supervisor is given.
fn any_plan(any: &mut Unstructured) -> Result<Plan> {
    let index = any.choose_index(UNITS.len())?;
    Ok(PLANS.with(|plans| plans[index].clone()))
}

/// Optional sockets that can't be bound.
fn any_unbound(any: &mut Unstructured, plan: &Plan) -> Result<Vec<(String, String)>> {
    let is_optional = plan.sockets.iter().filter(|socket| socket.unit.optional);
    let all = is_optional.map(|socket| (socket.name().to_owned(), "no".to_owned()));
    Ok(if any.arbitrary()? {
        all.collect()
    } else {
        Vec::new()
    })
}

/// The plan of a text that has no mistakes.
pub fn plan(text: &str) -> Plan {
    let examined = examine(
        read_text(Path::new("/etc/tentpole/fuzz.toml"), text),
        &Machine,
    );
    let plan = examined.plan;
    plan.unwrap_or_else(|| panic!("{:?}", examined.findings))
}

/// What the supervisor is given to run: between them, most of what it decides on.
const UNITS: [&str; 3] = [
    r#"
[manager]
shutdown_timeout = "20s"
[socket.a]
listen = 8001
[socket.b]
listen = "/run/b"
optional = true
trigger_limit = { burst = 2, interval = "1s" }
[watcher.web]
cmd = "web"
sockets = ["a"]
type = "notify"
numprocesses = 2
watchdog = "5s"
notify_access = "all"
graceful_timeout = "3s"
[watcher.lazy]
cmd = "lazy"
sockets = ["b"]
on_demand = true
restart = "never"
[watcher.migrate]
cmd = "migrate"
type = "oneshot"
[watcher.last]
cmd = "last"
requires = ["migrate", "web"]
critical = true
max_retry = 2
start_timeout = "2s"
"#,
    r#"
[manager]
warmup_delay = "1s"
shutdown_timeout = "0"
[socket.a]
listen = 8001
backlog = 5
[socket.c]
listen = 8003
so_reuseport = true
[watcher.web]
cmd = "web --new"
sockets = ["a", "c"]
type = "notify"
numprocesses = 3
reload_surge = 2
ready_delay = "500ms"
[watcher.shards]
cmd = "shards"
sockets = ["c"]
numprocesses = 2
max_age = "10s"
max_age_variance = "1s"
[watcher.one]
cmd = "one"
singleton = true
restart = "on-failure"
warmup_delay = "100ms"
[watcher.migrate]
cmd = "migrate"
after = ["one"]
"#,
    r#"
[socket.b]
listen = "/run/b"
optional = true
[watcher.lazy]
cmd = "lazy"
sockets = ["b"]
on_demand = true
reload = "HUP"
type = "notify"
[watcher.web]
cmd = "web"
type = "exec"
stop_children = true
max_retry = 1
[watcher.last]
cmd = "last"
numprocesses = 0
after = ["web"]
autostart = false
"#,
];

const NAMES: [&str; 7] = ["web", "lazy", "migrate", "last", "shards", "one", "nosuch"];

/// What workers say.
const DATAGRAMS: [&[u8]; 8] = [
    b"READY=1",
    b"RELOADING=1",
    b"STOPPING=1",
    b"STATUS=so and so\nERRNO=2",
    b"WATCHDOG=1",
    b"WATCHDOG=trigger",
    b"EXTEND_TIMEOUT_USEC=5000000\nWATCHDOG_USEC=700000",
    b"MAINPID=77\nREADY=1",
];

const SETTINGS: Settings = Settings {
    log_level: LogLevel::Trace,
    parent: true,
};

/// The records of a supervisor.
pub type Records = Vec<(Key, Vec<u8>)>;

/// A supervisor, and what it waits for.
pub struct Runtime {
    pub supervisor: Supervisor,
    pub now: Time,
    /// Processes that were asked for; that run; that have ended, and of which something may be left.
    asked: Vec<ProcId>,
    running: Vec<ProcId>,
    ended: Vec<ProcId>,
    draining: Vec<ProcId>,
    /// Shards that are to be closed.
    closing: Vec<(SocketId, u32)>,
    binding: Vec<SocketId>,
    requests: u64,
    /// Requests that are not answered.
    pub open: Vec<RequestId>,
    pub is_over: bool,
    /// All that was recorded after each turn.
    kept: BTreeMap<Key, Vec<u8>>,
}

impl Runtime {
    /// A manager that is about to begin.
    pub fn new(any: &mut Unstructured) -> Result<Runtime> {
        let plan = any_plan(any)?;
        let unbound = any_unbound(any, &plan)?;
        Ok(Runtime::of(Supervisor::new(&plan, &unbound, SETTINGS)))
    }

    /// One whose supervisor is there already.
    pub fn of(supervisor: Supervisor) -> Runtime {
        Runtime {
            supervisor,
            now: Time::from_monotonic(Duration::from_secs(1000)),
            asked: Vec::new(),
            running: Vec::new(),
            ended: Vec::new(),
            draining: Vec::new(),
            closing: Vec::new(),
            binding: Vec::new(),
            requests: 0,
            open: Vec::new(),
            is_over: false,
            kept: BTreeMap::new(),
        }
    }

    /// One from records.
    pub fn restored(records: Records) -> std::result::Result<Runtime, String> {
        let supervisor =
            Supervisor::restore(records, SETTINGS).map_err(|error| error.to_string())?;
        Ok(Runtime::of(supervisor))
    }

    /// What was recorded, a change at a time.
    pub fn kept(&self) -> Records {
        let kept = self.kept.iter();
        kept.map(|(key, value)| (*key, value.clone())).collect()
    }

    /// All that is to be recorded.
    pub fn records(&mut self) -> Records {
        let mut records = Records::new();
        let written = self.supervisor.record_all(&mut |key, value| {
            records.push((key, value.expect("all that is recorded is there")));
        });
        written.expect("it can be written");
        records
    }

    /// Goes on from what was restored.
    pub fn resume(&mut self, connected: bool) {
        let mut effects = Vec::new();
        self.supervisor.resume(self.now, connected, &mut effects);
        self.take(effects);
    }

    pub fn handle(&mut self, event: Event) {
        if self.is_over {
            return;
        }
        let mut effects = Vec::new();
        self.supervisor.handle(self.now, event, &mut effects);
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        let written = self.supervisor.record(&mut |key, value| {
            match value {
                Some(value) => self.kept.insert(key, value),
                None => self.kept.remove(&key),
            };
        });
        written.expect("it can be written");
        for effect in effects {
            assert!(!self.is_over, "an effect comes after the end: {effect:?}");
            match effect {
                Effect::Spawn { proc, .. } => self.asked.push(proc),
                Effect::KillLeftovers { proc } | Effect::AwaitLeftovers { proc }
                    if !self.ended.contains(&proc) =>
                {
                    self.ended.push(proc)
                }
                Effect::Drain { proc, .. } => self.draining.push(proc),
                Effect::CloseShard { socket, wid } => self.closing.push((socket, wid)),
                Effect::OpenShard { socket, wid } => {
                    self.closing.retain(|it| *it != (socket, wid));
                }
                Effect::Bind { socket } => self.binding.push(socket),
                Effect::Reply { request, .. } => {
                    let at = self.open.iter().position(|it| *it == request);
                    if let Some(at) = at {
                        self.open.remove(at);
                    }
                }
                Effect::Finish { .. } => self.is_over = true,
                _ => {}
            }
        }
    }

    /// Something that may happen now, by the contract with the runtime.
    pub fn step(&mut self, any: &mut Unstructured) -> Result<()> {
        match any.int_in_range(0..=15)? {
            0 => {
                self.now = self.now + Duration::from_millis(any.arbitrary::<u16>()?.into());
                self.handle(Event::Tick);
            }
            1 => self.wait(),
            2 => {
                let Some(proc) = pick(&mut self.asked, any)? else {
                    return Ok(());
                };
                self.running.push(proc);
                let pid = Pid(any.int_in_range(2..=400)?);
                self.handle(Event::Spawned { proc, pid });
            }
            3 => {
                let Some(proc) = pick(&mut self.asked, any)? else {
                    return Ok(());
                };
                self.handle(match any.arbitrary()? {
                    true => Event::SpawnCancelled { proc },
                    false => Event::SpawnFailed {
                        proc,
                        failure: not_found(),
                    },
                });
            }
            4 | 5 => {
                let Some(proc) = self
                    .running
                    .get(any.choose_index(self.running.len().max(1))?)
                else {
                    return Ok(());
                };
                let message = notify::parse(any.choose(&DATAGRAMS)?).expect("it is one");
                self.notified(*proc, any.ratio(1, 4)?, message);
            }
            6 => {
                let Some(proc) = pick(&mut self.running, any)? else {
                    return Ok(());
                };
                let exit = match any.int_in_range(0..=4)? {
                    0 => Exit::Unknown,
                    1 => Exit::Code(1),
                    2 => Exit::Signal(Signal(9)),
                    _ => Exit::Code(0),
                };
                self.handle(Event::Exited { proc, exit });
            }
            7 => {
                let Some(proc) = pick(&mut self.ended, any)? else {
                    return Ok(());
                };
                self.handle(Event::Gone { proc });
            }
            8 => {
                let Some(proc) = pick(&mut self.draining, any)? else {
                    return Ok(());
                };
                self.handle(Event::Drained { proc });
            }
            9 => {
                let Some(socket) = pick(&mut self.binding, any)? else {
                    return Ok(());
                };
                self.handle(match any.arbitrary()? {
                    true => Event::Bound { socket },
                    false => Event::BindFailed {
                        socket,
                        error: "no".into(),
                    },
                });
            }
            10 => {
                let view = self.supervisor.view(self.now);
                let watched: Vec<_> = view
                    .sockets
                    .iter()
                    .filter(|socket| socket.watched)
                    .map(|socket| socket.id)
                    .collect();
                if !watched.is_empty() {
                    let socket = *any.choose(&watched)?;
                    self.handle(Event::Traffic { socket });
                }
            }
            11 => {
                let command = command(any)?;
                let request = self.request();
                let (no_wait, progress) = (any.arbitrary()?, any.arbitrary()?);
                self.handle(Event::Command {
                    request,
                    command,
                    no_wait,
                    progress,
                });
            }
            12 => {
                let plan = Box::new(any_plan(any)?);
                let changes = self.supervisor.changes_to(&plan);
                let unbound = any_unbound(any, &plan)?;
                let request = self.request();
                let (no_wait, progress) = (any.arbitrary()?, any.arbitrary()?);
                self.handle(Event::Apply {
                    request,
                    plan,
                    changes,
                    unbound,
                    no_wait,
                    progress,
                });
            }
            13 => {
                let Some((socket, wid)) = pick(&mut self.closing, any)? else {
                    return Ok(());
                };
                self.handle(match any.arbitrary()? {
                    true => Event::ShardClosed { socket, wid },
                    false => Event::ShardOwed { socket, wid },
                });
            }
            14 => {
                if !self.running.is_empty() {
                    let proc = *any.choose(&self.running)?;
                    let problem = "said what may not be said".into();
                    self.handle(Event::Misspoke { proc, problem });
                }
            }
            _ => match any.int_in_range(0..=7)? {
                0 => self.handle(Event::Terminate {
                    forwarded: any.arbitrary()?,
                }),
                _ => {
                    if let Some(request) = pick(&mut self.open, any)? {
                        self.handle(Event::Abandoned { request });
                    }
                }
            },
        }
        Ok(())
    }

    /// Something that the contract does not allow: unknown numbers, and answers to what was not asked.
    pub fn misstep(&mut self, any: &mut Unstructured) -> Result<()> {
        let proc = ProcId(any.int_in_range(0..=40)?);
        let socket = SocketId(any.int_in_range(0..=5)?);
        let wid = any.int_in_range(0..=6)?;
        let event = match any.int_in_range(0..=11)? {
            0 => Event::Begin,
            1 => Event::Bound { socket },
            2 => Event::BindFailed {
                socket,
                error: "no".into(),
            },
            3 => Event::Traffic { socket },
            4 => Event::Spawned {
                proc,
                pid: Pid(any.arbitrary()?),
            },
            5 => Event::SpawnFailed {
                proc,
                failure: not_found(),
            },
            6 => Event::SpawnCancelled { proc },
            7 => Event::Exited {
                proc,
                exit: Exit::Code(any.arbitrary()?),
            },
            8 => Event::Gone { proc },
            9 => Event::ShardClosed { socket, wid },
            10 => Event::ShardOwed { socket, wid },
            _ => Event::Drained { proc },
        };
        self.handle(event);
        Ok(())
    }

    /// One of its processes says something.
    pub fn notified(&mut self, proc: ProcId, by_other: bool, message: notify::Message) {
        let sender = match by_other {
            true => Sender::Other(Pid(500)),
            false => Sender::Main,
        };
        self.handle(Event::Notified {
            proc,
            sender,
            message,
        });
    }

    /// Time passes until something is due.
    pub fn wait(&mut self) {
        if let Some(deadline) = self.supervisor.next_deadline() {
            self.now = self.now.max(deadline);
            self.handle(Event::Tick);
        }
    }

    /// All that was asked for is there; the processes that run.
    pub fn spawn_all(&mut self) -> &[ProcId] {
        for proc in std::mem::take(&mut self.asked) {
            self.running.push(proc);
            self.handle(Event::Spawned {
                proc,
                pid: Pid(100),
            });
        }
        &self.running
    }

    /// Ends it by force: whatever has happened, that comes to an end, and everybody is answered.
    pub fn end(mut self) {
        for _ in 0..2 {
            self.handle(Event::Terminate { forwarded: false });
        }
        for _ in 0..100 {
            for proc in std::mem::take(&mut self.asked) {
                self.handle(Event::SpawnFailed {
                    proc,
                    failure: not_found(),
                });
            }
            for proc in std::mem::take(&mut self.running) {
                self.handle(Event::Exited {
                    proc,
                    exit: Exit::Signal(Signal(9)),
                });
            }
            for proc in std::mem::take(&mut self.ended) {
                self.handle(Event::Gone { proc });
            }
            if self.is_over {
                assert_eq!(self.open, [], "requests that nobody answers");
                return;
            }
            self.wait();
        }
        panic!("it does not end");
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        if !self.is_over {
            self.open.push(request);
        }
        request
    }
}

fn pick<T>(from: &mut Vec<T>, any: &mut Unstructured) -> Result<Option<T>> {
    if from.is_empty() {
        return Ok(None);
    }
    Ok(Some(from.remove(any.choose_index(from.len())?)))
}

fn not_found() -> SpawnFailure {
    SpawnFailure {
        reason: "exec: not found".into(),
        exit_code: 127,
    }
}

fn command(any: &mut Unstructured) -> Result<Command> {
    let name = (*any.choose(&NAMES)?).to_owned();
    let names = match any.ratio(1, 4)? {
        true => Vec::new(),
        false => vec![name.clone(), (*any.choose(&NAMES[..2])?).to_owned()],
    };
    Ok(match any.int_in_range(0..=12)? {
        0 | 1 => Command::Start(names),
        2 | 3 => Command::Stop(names),
        4 | 5 => Command::Restart(names),
        6..=8 => Command::Reload(names),
        9 => Command::Scale {
            name,
            to: Amount::To(any.int_in_range(0..=5)?),
        },
        10 => {
            let few = Amount::By(any.int_in_range(-3..=3)?);
            let to = *any.choose(&[
                few,
                few,
                few,
                Amount::By(i32::MIN),
                Amount::By(i32::MAX),
                Amount::To(u32::MAX),
            ])?;
            Command::Scale { name, to }
        }
        11 => Command::Signal {
            name,
            signal: Signal(any.int_in_range(1..=20)?),
            wid: any.arbitrary()?,
            children: any.arbitrary()?,
        },
        _ => match any.ratio(1, 8)? {
            true => Command::Shutdown,
            false => Command::Stop(Vec::new()),
        },
    })
}
