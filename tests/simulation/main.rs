//! The real state machine against a simulated kernel, under virtual time.
//!
//! A seed determines a unit file, what every program does, who asks for what and when, which other units are applied, and
//! after which events the manager executes itself or is killed and a new one goes on. After every event the effects are
//! held against [`rules::Rules`], which tells independently what must happen, and against what the [`kernel`]
//! knows to be true. `TENTPOLE_SEED=N cargo test --test simulation one_seed` replays a seed, with the whole trace if
//! `TENTPOLE_TRACE=1`; `TENTPOLE_SEEDS=N` says how many are run.

mod kernel;
mod random;
mod rules;
mod scenario;
mod tables;
mod units;

use kernel::{Arrival, Kernel};
use random::Random;
use rules::{Rules, brief};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tentpole::plan::{Action, Change, Plan, Unit};
use tentpole::supervise::notify::Watchdog;
use tentpole::supervise::{
    Amount, Command, Effect, Event, Key, ParentNotice, ProcId, Refusal, RequestId, Settings,
    Supervisor, Time, View, WatcherId, WatcherState, WorkerState,
};
use tentpole::unit::{LogLevel, Reload, Signal};
use units::Units;

/// How many seeds are run where `TENTPOLE_SEEDS` does not say it.
const SEEDS: u64 = 4_000;

/// Every seed in a test run is one of these, so that the default run is the same everywhere.
#[test]
fn no_schedule_breaks_a_rule() {
    let count = number_of("TENTPOLE_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, |it| it.get() as u64);
    let share = |first: u64| {
        let mut said = BTreeMap::new();
        for seed in (first..count).step_by(threads as usize) {
            match run_guarded(seed, Trace::Off) {
                Ok(counts) => add(&mut said, counts),
                Err(_) => return Err(seed),
            }
        }
        Ok(said)
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || share(first)))
            .collect();
        (started.into_iter())
            .map(|thread| thread.join().expect("what panics is caught"))
            .collect()
    });
    if let Some(seed) = outcomes.iter().filter_map(|it| it.as_ref().err()).min() {
        panic!("{}", report(*seed, 60));
    }
    let mut said = BTreeMap::new();
    for counts in outcomes.into_iter().flatten() {
        add(&mut said, counts);
    }
    if std::env::var("TENTPOLE_TRACE").is_ok() {
        println!("{said:#?}");
    }
    if count >= SEEDS {
        for rule in RULES {
            let times = said.get(rule).copied().unwrap_or_default();
            assert!(
                times > 3,
                "the rule `{rule}` came up {times} times only: {said:#?}"
            );
        }
    }
}

/// What the schedules must reach for a run to mean anything.
const RULES: &[&str] = &[
    "answered: done",
    "answered: failed",
    "answered: shutting down",
    "answered: superseded",
    "applied",
    "apply",
    "bound late",
    "could not be put back",
    "crash",
    "a shard is given to another wid",
    "a worker for a shard",
    "a worker for a shard that was left",
    "critical",
    "deaf to a notification",
    "did not reload in time",
    "done",
    "drained",
    "drained a socket that goes",
    "ended",
    "ended without what can't be killed",
    "failed with what it requires",
    "filled up",
    "first restart",
    "followed by its replacement",
    "forced shutdown",
    "given up",
    "killed",
    "leftovers killed",
    "leftovers may stop by themselves",
    "made to drain a shard",
    "not restarted",
    "one more started by traffic",
    "one signal in both ways",
    "parent asked for time",
    "promoted",
    "redefined",
    "redefined at once",
    "reload",
    "reload by signal",
    "reload by signal ended",
    "reload by signal takes longer",
    "reload cancelled",
    "reload failed",
    "reload queued",
    "reload refused",
    "reload waits for a socket",
    "reloaded",
    "replaced",
    "replacement failed",
    "rescaled",
    "restart with a delay",
    "restart with a long delay",
    "restarted in order",
    "second apply refused",
    "shard closed",
    "shard owed",
    "shard shut",
    "shards left behind",
    "shutdown",
    "singleton reloaded",
    "socket added",
    "socket bound anew",
    "socket changed",
    "socket closed",
    "spawned though cancelled",
    "start timeout",
    "started by traffic",
    "stopped by level",
    "stopping by itself",
    "told to reload when it was ready",
    "too old",
    "trigger limit",
    "upgrade",
    "waiting again",
    "warmup of the manager",
    "watchdog",
    "watcher added",
    "watcher removed",
];

/// Whether it was said of a watcher that what it is to be waits for a socket: what becomes of that is not awaited.
fn tells_that_it_waits(said: Option<&str>, unit: &Unit) -> bool {
    let Unit::Watcher(name) = unit else {
        return false;
    };
    said.is_some_and(|said| said.contains(&format!("watcher `{name}` waits: ")))
}

#[test]
fn one_seed() {
    let Some(seed) = number_of("TENTPOLE_SEED") else {
        return;
    };
    let whole = std::env::var("TENTPOLE_TRACE").is_ok_and(|value| value == "1");
    let lines = if whole { usize::MAX } else { 60 };
    let text = report(seed, lines);
    println!("{text}");
    assert!(run_guarded(seed, Trace::Off).is_ok(), "{text}");
}

#[test]
fn a_seed_determines_everything() {
    for seed in [1, 7, 42] {
        assert_eq!(report(seed, usize::MAX), report(seed, usize::MAX));
    }
}

fn number_of(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some((value.parse()).unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}

fn add(to: &mut BTreeMap<&'static str, u64>, counts: BTreeMap<&'static str, u64>) {
    for (rule, count) in counts {
        *to.entry(rule).or_default() += count;
    }
}

/// Runs a seed once more and tells all about it.
fn report(seed: u64, lines: usize) -> String {
    let mut trace = VecDeque::new();
    let outcome = run_guarded(seed, Trace::On(&mut trace, lines));
    let outcome = match outcome {
        Ok(_) => "no rule is broken".to_owned(),
        Err(sentence) => format!("BROKEN: {sentence}"),
    };
    let text = random_text(seed);
    let trace = Vec::from(trace).join("\n");
    format!(
        "seed {seed}\n\n{text}\n{trace}\n\n{outcome}\n\
         replay it with TENTPOLE_SEED={seed} cargo test --test simulation one_seed"
    )
}

fn random_text(seed: u64) -> String {
    Units::random(&mut Random::new(seed).fork()).text()
}

/// Where lines of the trace go; putting them into words costs more than all the rest.
enum Trace<'a> {
    Off,
    On(&'a mut VecDeque<String>, usize),
}

impl Trace<'_> {
    fn line(&mut self, text: impl FnOnce() -> String) {
        if let Trace::On(lines, most) = self {
            if lines.len() >= *most {
                lines.pop_front();
            }
            lines.push_back(text());
        }
    }
}

/// A panic of the supervisor breaks a rule too.
fn run_guarded(seed: u64, trace: Trace<'_>) -> Result<BTreeMap<&'static str, u64>, String> {
    catch_unwind(AssertUnwindSafe(|| Run::new(seed, trace).run())).unwrap_or_else(|panic| {
        let text = (panic.downcast_ref::<String>().map(String::as_str))
            .or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("without a word")))
    })
}

/// One seed.
struct Run<'a> {
    random: Random,
    supervisor: Supervisor,
    kernel: Kernel,
    rules: Rules,
    /// The units as somebody has written them, applied or not.
    units: Units,
    settings: Settings,
    /// The plan of the last apply that was not refused.
    plan: Plan,
    /// The start level of each watcher.
    levels: BTreeMap<WatcherId, u32>,
    /// How many of a thousand events are followed by the end of the manager, and a new one.
    restarts: u64,
    /// What would be left of the manager, were it killed now.
    records: BTreeMap<Key, Vec<u8>>,
    /// Records are looked at after every event.
    is_audited: bool,
    /// Ready workers that were shown after the last turn: by watcher and wid.
    serving: BTreeMap<(WatcherId, u32), ProcId>,
    /// How many of a watcher may ever have had one beside them: definitions of which nothing runs any more count too, since
    /// a stop may have left some of theirs.
    surge: BTreeMap<WatcherId, u32>,
    /// The watchers that a reload was under way of, and all that were up.
    reloading: BTreeSet<WatcherId>,
    up: BTreeSet<WatcherId>,
    may_tell_ready: bool,
    trace: Trace<'a>,
    now: Time,
    parent: bool,
    /// Requests that wait for an answer.
    open: BTreeMap<RequestId, Asked>,
    next_request: u64,
    has_begun: bool,
    is_stopping: bool,
    is_over: bool,
    told: BTreeSet<&'static str>,
    status: String,
    /// What was shown of each watcher after the last turn.
    shown: BTreeMap<String, (WatcherState, u32)>,
    /// The latest spawns of each slot.
    spawns: BTreeMap<(u32, u32), VecDeque<Time>>,
    /// Turns in a row at one time that only a deadline called for.
    ticks_at_once: u32,
    effects: Vec<Effect>,
}

#[derive(Debug)]
struct Asked {
    what: What,
    no_wait: bool,
    progress: bool,
    /// The workers that there were.
    procs: BTreeSet<ProcId>,
    /// Watchers that were scaled by hand since.
    scaled: BTreeSet<String>,
}

impl Asked {
    fn was_scaled(&self, change: &Change) -> bool {
        let mut scaled = self.scaled.iter().map(|name| Unit::Watcher(name.clone()));
        change.action == Action::Scale && scaled.any(|unit| unit == change.unit)
    }
}

#[derive(Debug)]
enum What {
    Command(Command),
    Apply(Box<Plan>),
}

impl<'a> Run<'a> {
    fn new(seed: u64, trace: Trace<'a>) -> Run<'a> {
        let mut random = Random::new(seed);
        let units = Units::random(&mut random.fork());
        let plan = units::plan_of(&units.text());
        let unbound: Vec<(String, String)> = (plan.sockets.iter())
            .filter(|socket| socket.unit.optional && random.chance(60))
            .map(|socket| (socket.name().to_owned(), "bind: no such address".to_owned()))
            .collect();
        let parent = random.chance(50);
        // To put log lines into words costs more than all the rest.
        let log_level = match (&trace, seed % 8) {
            (Trace::Off, 1..) => LogLevel::Error,
            _ => LogLevel::Trace,
        };
        let settings = Settings { log_level, parent };
        let restarts = random.pick(&[0, 0, 0, 3, 20, 80]);
        let mut run = Run {
            supervisor: Supervisor::new(&plan, &unbound, settings.clone()),
            kernel: Kernel::new(&plan, &unbound, random.fork()),
            rules: Rules::new(&plan, &unbound, parent),
            units,
            settings,
            plan: plan.clone(),
            levels: BTreeMap::new(),
            restarts,
            records: BTreeMap::new(),
            is_audited: seed.is_multiple_of(50),
            serving: BTreeMap::new(),
            surge: BTreeMap::new(),
            reloading: BTreeSet::new(),
            up: BTreeSet::new(),
            may_tell_ready: true,
            random,
            trace,
            now: Time::ZERO + Duration::from_secs(1000),
            parent,
            open: BTreeMap::new(),
            next_request: 1,
            has_begun: false,
            is_stopping: false,
            is_over: false,
            told: BTreeSet::new(),
            status: String::new(),
            shown: BTreeMap::new(),
            spawns: BTreeMap::new(),
            ticks_at_once: 0,
            effects: Vec::new(),
        };
        run.plan_events(&plan);
        run
    }

    fn run(mut self) -> Result<BTreeMap<&'static str, u64>, String> {
        let begin = self.now;
        let faults_end = begin + Duration::from_millis(self.random.below(60_000));
        if self.random.chance(97) {
            self.turn(Event::Begin)?;
        }
        self.run_until(faults_end)?;
        if !self.is_over {
            self.trace
                .line(|| "*** nothing goes wrong from here on".into());
            self.kernel.calm_down(self.now);
            self.run_until(self.now + Duration::from_secs(50))?;
            if !self.is_over && !self.is_stopping {
                self.kernel.fall_quiet();
                self.run_until(self.now + Duration::from_secs(50))?;
                self.rules.check_calm()?;
            }
        }
        if !self.is_over {
            self.turn(Event::Terminate { forwarded: false })?;
            self.run_until(self.now + Duration::from_secs(120))?;
        }
        if !self.is_over {
            self.turn(Event::Terminate { forwarded: false })?;
            self.run_until(self.now + Duration::from_secs(11))?;
        }
        if !self.is_over {
            return Err("the manager has not ended long after it was forced to".into());
        }
        Ok(self.rules.said)
    }

    fn plan_events(&mut self, plan: &Plan) {
        let commands = match self.random.below(4) {
            0 => 0,
            1 | 2 => self.random.below(8),
            _ => self.random.below(30),
        };
        let spread = self.random.pick(&[300, 5000, 60_000]);
        let mut at = self.now;
        for _ in 0..commands {
            if self.random.chance(18) {
                self.kernel.plan_apply(at);
                // All that runs is on its way down or up then, or soon.
                if self.random.chance(40) {
                    let request = RequestId(self.next_request);
                    self.next_request += 1;
                    let names = plan.watchers.iter().map(|it| it.name().to_owned());
                    let event = Event::Command {
                        request,
                        command: Command::Restart(names.collect()),
                        no_wait: false,
                        progress: false,
                    };
                    let pause = self.random.pick(&[0, 300, 4000]);
                    let restart = match self.random.chance(50) {
                        true => at + self.random.millis(pause + 1),
                        false => at,
                    };
                    self.kernel.plan_event(restart, event);
                    if self.random.chance(50) {
                        self.kernel
                            .plan_apply(restart + self.random.millis(pause + 1));
                    }
                }
            }
            // A quarter come at the same time as the one before.
            if self.random.chance(75) {
                at = self.now + self.random.millis(spread);
            }
            let request = RequestId(self.next_request);
            self.next_request += 1;
            let event = Event::Command {
                request,
                command: self.random_command(plan),
                no_wait: self.random.chance(15),
                progress: self.random.chance(40),
            };
            self.kernel.plan_event(at, event);
            if self.random.chance(15) {
                let at = at + self.random.millis(4000);
                self.kernel.plan_event(at, Event::Abandoned { request });
            }
        }
        if self.random.chance(25) {
            let mut at = self.now + self.random.millis(spread);
            for _ in 0..=self.random.below(3) {
                let forwarded = self.random.chance(50);
                self.kernel.plan_event(at, Event::Terminate { forwarded });
                at = at + self.random.millis(3000);
            }
        }
    }

    fn random_command(&mut self, plan: &Plan) -> Command {
        let random = &mut self.random;
        let one = |random: &mut Random| match random.chance(3) {
            true => "nobody".to_owned(),
            false => {
                let index = random.below(plan.watchers.len() as u64);
                plan.watchers[index as usize].name().to_owned()
            }
        };
        let several = |random: &mut Random| -> Vec<String> {
            let count = random.pick(&[0, 1, 1, 1, 2, 3]);
            (0..count).map(|_| one(random)).collect()
        };
        match random.below(18) {
            12.. => Command::Reload(several(random)),
            0..3 => Command::Start(several(random)),
            3..6 => Command::Stop(several(random)),
            6..8 => Command::Restart(several(random)),
            8..10 => Command::Scale {
                name: one(random),
                to: match random.chance(50) {
                    true => Amount::To(random.pick(&[0, 1, 2, 3, 5, 200_000])),
                    false => Amount::By(random.pick(&[-2, -1, 1, 1, 2, i32::MIN, i32::MAX])),
                },
            },
            10 => Command::Signal {
                name: one(random),
                signal: Signal(random.pick(&[1, 10, 15, 9, 18, 28])),
                wid: random.chance(40).then(|| random.below(4) as u32),
                children: random.chance(30),
            },
            _ => match random.chance(15) {
                true => Command::Shutdown,
                false => Command::Start(several(random)),
            },
        }
    }

    /// Lets things happen until `end`, or until the manager has ended.
    fn run_until(&mut self, end: Time) -> Result<(), String> {
        while !self.is_over {
            let happening = self.kernel.next();
            let deadline = self.supervisor.next_deadline();
            let ticks = match (deadline, happening) {
                (Some(deadline), Some(happening)) if deadline == happening => {
                    self.random.chance(50)
                }
                (Some(deadline), Some(happening)) => deadline < happening,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let next = if ticks { deadline } else { happening };
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.pass(next);
            if ticks {
                self.turn(Event::Tick)?;
            } else {
                match self.kernel.step(self.now) {
                    Some(Arrival::Event(event)) => self.turn(event)?,
                    Some(Arrival::Apply) => self.apply()?,
                    None => {}
                }
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Time goes on to `next`, and sometimes further: the machine was busy, or asleep.
    fn pass(&mut self, next: Time) {
        if next <= self.now {
            return;
        }
        self.now = next;
        if self.random.chance(6) && !self.kernel.calm {
            let late = match self.random.below(40) {
                0 => Duration::from_secs(self.random.below(200)),
                _ => self.random.millis(3),
            };
            self.now = self.now + late;
        }
    }

    /// Somebody has written other units, and applies them.
    fn apply(&mut self) -> Result<(), String> {
        self.units = self.units.changed(&mut self.random);
        let plan = units::plan_of(&self.units.text());
        let changes = self.supervisor.changes_to(&plan);
        let random = &mut self.random;
        let unbound: Vec<(String, String)> = (plan.sockets.iter())
            .filter(|socket| socket.unit.optional && random.chance(40))
            .map(|socket| (socket.name().to_owned(), "bind: no such address".to_owned()))
            .collect();
        self.trace.line(|| {
            let lines = changes.iter().map(|change| {
                format!(
                    "            {} {} {:?}",
                    change.unit, change.action, change.keys
                )
            });
            let lines: Vec<String> = lines.collect();
            format!("*** other units are applied\n{}", lines.join("\n"))
        });
        self.kernel.begin_apply(&unbound);
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let event = Event::Apply {
            request,
            plan: Box::new(plan),
            changes,
            unbound,
            no_wait: self.random.chance(15),
            progress: self.random.chance(40),
        };
        self.turn(event)
    }

    /// The manager ends at once, and a new one goes on from what it has recorded: of itself for an upgrade, or while it
    /// ran for the case that it is killed.
    fn restart(&mut self) -> Result<(), String> {
        // When nothing goes wrong any more, nothing is missed either.
        let crash = !self.kernel.calm && self.random.chance(50);
        let pause = match crash {
            true => self.random.pick(&[0, 1, 5, 40, 300]),
            // Nor is anything late.
            false if self.kernel.calm => 0,
            false => self.random.pick(&[0, 0, 1, 40]),
        };
        let until = self.now + self.random.millis(pause + 1);
        self.trace.line(|| {
            let how = if crash {
                "is killed"
            } else {
                "executes itself"
            };
            format!("*** the manager {how}")
        });
        let before = format!("{:?}", self.supervisor.view(self.now));
        match crash {
            true => self.record()?,
            false => self.records = all_records(&mut self.supervisor),
        }
        let records = self.records.clone();
        let settings = self.settings.clone();
        let restored = Supervisor::restore(records, settings);
        self.supervisor = restored.map_err(|error| format!("not restored: {error}"))?;
        let after = format!("{:?}", self.supervisor.view(self.now));
        if before != after {
            return Err(format!("before {before}\nafter {after}"));
        }
        self.kernel.restart(until, crash);
        self.now = until;
        self.told.clear();
        self.status.clear();
        self.may_tell_ready = true;
        if crash {
            self.open.clear();
        }
        let mut effects = Vec::new();
        self.supervisor.resume(self.now, !crash, &mut effects);
        for effect in &effects {
            self.trace.line(|| format!("            {}", brief(effect)));
        }
        self.rules.resume(self.now, !crash, &effects)?;
        self.finish_turn(effects, false)
    }

    /// Brings what would be left of the manager up to date. To write records costs more than all the rest: so it is done
    /// only where somebody looks.
    fn record(&mut self) -> Result<(), String> {
        let records = &mut self.records;
        let written = self.supervisor.record(&mut |key, content| {
            match content {
                Some(content) => records.insert(key, content),
                None => records.remove(&key),
            };
        });
        written.map_err(|error| error.to_string())?;
        if !self.is_audited {
            return Ok(());
        }
        let mut all = all_records(&mut self.supervisor);
        // A slot that was never used has none.
        all.retain(|key, content| {
            let unused = matches!(key, Key::Slot(..)) && content.starts_with(b"{\"generation\":0,");
            !unused || self.records.contains_key(key)
        });
        if let Some(key) = all.keys().find(|key| self.records.get(key) != all.get(key)) {
            let text = |content: Option<&Vec<u8>>| {
                content.map(|content| String::from_utf8_lossy(content).into_owned())
            };
            let (is, must) = (text(self.records.get(key)), text(all.get(key)));
            return Err(format!("record `{key}` is {is:?} and must be {must:?}"));
        }
        match self.records.keys().find(|key| !all.contains_key(key)) {
            Some(key) => Err(format!("record `{key}` is of nothing")),
            None => Ok(()),
        }
    }

    /// One event.
    fn turn(&mut self, event: Event) -> Result<(), String> {
        let now = self.now;
        let seconds = (now - (Time::ZERO + Duration::from_secs(1000))).as_secs_f64();
        self.trace
            .line(|| format!("{seconds:>9.4} {}", brief_event(&event)));
        let is_tick = matches!(event, Event::Tick);
        let was_due = self.supervisor.next_deadline().is_some_and(|at| at <= now);
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        self.supervisor.handle(now, event.clone(), &mut effects);
        for effect in &effects {
            self.trace.line(|| format!("            {}", brief(effect)));
        }
        if effects.len() > 400 {
            return Err(format!("one event has {} effects", effects.len()));
        }
        if is_tick && !was_due {
            return Err("the simulator ticks for nothing".into());
        }

        self.note_request(&event);
        if let Event::Apply { request, plan, .. } = &event {
            let refuses = |effect: &Effect| matches!(effect, Effect::Reply { request: of, outcome: Err(Refusal::Refused(_) | Refusal::ShuttingDown) } if of == request);
            if !effects.iter().any(refuses) {
                self.plan = *plan.clone();
                self.may_tell_ready = true;
            }
        }
        self.rules.turn(now, &event, &effects)?;
        if !was_due {
            self.check_levels(&event, &effects)?;
        }
        self.check_gaps(&event, &effects)?;
        self.finish_turn(effects, is_tick)?;
        self.has_begun |= matches!(event, Event::Begin);
        if self.random.chance(3) {
            // For an upgrade that comes to nothing.
            all_records(&mut self.supervisor);
        }
        if !self.is_over && self.has_begun && self.random.below(1000) < self.restarts {
            self.restart()?;
        }
        Ok(())
    }

    /// What holds after every event, and after a restart of the manager.
    fn finish_turn(&mut self, effects: Vec<Effect>, is_tick: bool) -> Result<(), String> {
        let now = self.now;
        self.check_truth(&effects)?;
        self.rules.check_plan(&self.supervisor.plan())?;
        let view = self.supervisor.view(now);
        self.rules.check_view(&view)?;
        check_progress(&view, &effects, &self.open, &mut self.shown)?;
        for effect in &effects {
            if let Effect::Reply { request, outcome } = effect {
                let Some(asked) = self.open.remove(request) else {
                    return Err(format!("nobody waits for the answer to {request:?}"));
                };
                if !self.rules.is_beyond_force() {
                    check_answer(outcome, &asked, &view, &self.kernel)?;
                    if let (Ok(said), What::Apply(plan), false) =
                        (outcome, &asked.what, asked.no_wait)
                        && let Some(change) = (self.supervisor.changes_to(plan).into_iter())
                            .filter(|change| !tells_that_it_waits(said.as_deref(), &change.unit))
                            .find(|change| !asked.was_scaled(change))
                    {
                        return Err(format!("an apply is said to be done, and not: {change:?}"));
                    }
                }
            }
        }
        if !self.is_over {
            check_status(&view, &effects, self.parent, &mut self.status)?;
        }
        self.serving = (view.watchers.iter())
            .flat_map(|watcher| {
                watcher
                    .workers
                    .iter()
                    .map(move |worker| (watcher.id, worker))
            })
            .filter(|(_, worker)| {
                matches!(worker.state, WorkerState::Ready | WorkerState::Reloading)
            })
            .map(|(id, worker)| ((id, worker.wid), worker.proc))
            .collect();
        let in_state = |states: &[WatcherState]| {
            let watchers = view.watchers.iter().filter(|it| states.contains(&it.state));
            watchers.map(|watcher| watcher.id).collect()
        };
        self.reloading = in_state(&[WatcherState::Reloading]);
        self.up = in_state(&[WatcherState::Running, WatcherState::Reloading]);
        for watcher in &view.watchers {
            let spec = self
                .plan
                .watchers
                .iter()
                .find(|spec| spec.name() == watcher.name);
            self.levels
                .extend(spec.map(|spec| (watcher.id, spec.level)));
        }
        check_seats(&view)?;
        drop(view);
        for effect in &effects {
            self.kernel.execute(now, effect)?;
        }
        for spec in self.kernel.reset.drain(..) {
            if !self.rules.may_lose_clients(&spec) {
                return Err(format!("clients of socket `{}` are reset", spec.name()));
            }
        }
        if self.is_over && !self.open.is_empty() {
            return Err(format!(
                "the manager ends without an answer to {:?}",
                self.open
            ));
        }
        self.effects = effects;
        self.check_slots()?;
        if self.is_audited {
            self.record()?;
        }
        self.check_deadlines(is_tick)
    }

    fn note_request(&mut self, event: &Event) {
        match event {
            Event::Command {
                request,
                command,
                no_wait,
                progress,
            } => {
                let asked = Asked {
                    what: What::Command(command.clone()),
                    no_wait: *no_wait,
                    progress: *progress,
                    procs: self.replaceable(),
                    scaled: BTreeSet::new(),
                };
                if let Command::Scale { name, .. } = command {
                    for earlier in self.open.values_mut() {
                        earlier.scaled.insert(name.clone());
                    }
                }
                self.open.insert(*request, asked);
            }
            Event::Apply {
                request,
                plan,
                no_wait,
                progress,
                ..
            } => {
                let asked = Asked {
                    what: What::Apply(plan.clone()),
                    no_wait: *no_wait,
                    progress: *progress,
                    procs: BTreeSet::new(),
                    scaled: BTreeSet::new(),
                };
                self.open.insert(*request, asked);
            }
            Event::Abandoned { request } => {
                self.open.remove(request);
            }
            _ => {}
        }
    }

    /// Workers of watchers that are up, which a reload replaces.
    fn replaceable(&self) -> BTreeSet<ProcId> {
        let is_up = |id: WatcherId| self.up.contains(&id);
        let serving = self.serving.iter().filter(|((id, _), _)| is_up(*id));
        serving.map(|(_, proc)| *proc).collect()
    }

    /// What holds whatever the rules say.
    fn check_truth(&mut self, effects: &[Effect]) -> Result<(), String> {
        for effect in effects {
            match effect {
                Effect::Spawn {
                    watcher, wid, spec, ..
                } => {
                    let surge = self.surge.entry(*watcher).or_default();
                    *surge = (*surge).max(spec.unit.reload_surge);
                    if self.is_stopping {
                        return Err("a worker is spawned though the manager ends".into());
                    }
                    self.check_rate(watcher.0, *wid)?;
                }
                Effect::Parent(ParentNotice::Stopping) => {
                    self.is_stopping = true;
                    self.tell("STOPPING=1")?;
                }
                Effect::Parent(ParentNotice::Ready) => {
                    if self.is_stopping {
                        return Err("the parent hears READY=1 after STOPPING=1".into());
                    }
                    if !std::mem::take(&mut self.may_tell_ready) {
                        return Err("the parent hears READY=1 once too often".into());
                    }
                }
                Effect::Parent(ParentNotice::Reloading) => self.may_tell_ready = true,
                Effect::Finish { .. } => {
                    self.is_over = true;
                    if !self.rules.is_beyond_force() && self.kernel.busy().next().is_some() {
                        return Err("the manager ends while something of it is alive".into());
                    }
                }
                _ => {}
            }
        }
        if self.parent {
            return Ok(());
        }
        let tells = |effect: &Effect| {
            matches!(
                effect,
                Effect::Parent(ParentNotice::Status(_) | ParentNotice::Extend(_))
            )
        };
        match effects.iter().any(tells) {
            true => Err("a parent is spoken to that does not listen".into()),
            false => Ok(()),
        }
    }

    /// At the manager's end no level is asked to end while something of a higher one is alive.
    fn check_levels(&self, event: &Event, effects: &[Effect]) -> Result<(), String> {
        let is_stop = matches!(
            event,
            Event::Terminate { .. }
                | Event::Exited { .. }
                | Event::Gone { .. }
                | Event::SpawnFailed { .. }
                | Event::SpawnCancelled { .. }
        );
        let from = effects
            .iter()
            .position(|effect| matches!(effect, Effect::Parent(ParentNotice::Stopping)));
        let from = from.or(self.is_stopping.then_some(0));
        let (true, Some(from)) = (is_stop, from) else {
            return Ok(());
        };
        let level = |watcher: WatcherId| self.levels.get(&watcher).copied();
        let highest = self
            .kernel
            .busy()
            .filter_map(|process| level(process.watcher))
            .max()
            .map(Some)
            .unwrap_or_default();
        for effect in &effects[from..] {
            let Effect::Signal { proc, .. } = effect else {
                continue;
            };
            let process = self.kernel.procs.get(proc);
            // What was on its way out, and a replacement, are none of those that others depend on.
            if process.is_some_and(|process| process.is_drained) {
                continue;
            }
            let slot = |process: &kernel::Process| (process.watcher, process.wid);
            let of_slot = |other: &&kernel::Process| Some(slot(other)) == process.map(slot);
            if self.kernel.busy().filter(of_slot).count() > 1 {
                continue;
            }
            if process.is_some_and(|process| level(process.watcher) < highest) {
                return Err(format!("{proc:?} is asked to end before its turn"));
            }
        }
        Ok(())
    }

    fn tell(&mut self, what: &'static str) -> Result<(), String> {
        match self.told.insert(what) {
            true => Ok(()),
            false => Err(format!("the parent hears {what} twice")),
        }
    }

    /// No slot spins, whatever its program does: the shortest backoff is 10 ms.
    fn check_rate(&mut self, watcher: u32, wid: u32) -> Result<(), String> {
        let latest = self.spawns.entry((watcher, wid)).or_default();
        latest.push_back(self.now);
        if latest.len() <= 160 {
            return Ok(());
        }
        let first = latest.pop_front().unwrap_or(self.now);
        match self.now.since(first) < Duration::from_secs(1) {
            true => Err("a slot has more than 160 spawns in a second".into()),
            false => Ok(()),
        }
    }

    /// A slot has two processes at most, and no more slots of a watcher have two than it may ever have had beside others.
    fn check_slots(&self) -> Result<(), String> {
        let mut seen: BTreeMap<(WatcherId, u32), u32> = BTreeMap::new();
        for process in self.kernel.busy() {
            let slot = (process.watcher, process.wid);
            let count = seen.entry(slot).or_default();
            *count += 1;
            if *count > 2 {
                return Err(format!("{slot:?} has {count} processes"));
            }
        }
        for (watcher, surge) in &self.surge {
            let doubles = (seen.iter()).filter(|((of, _), count)| of == watcher && **count > 1);
            let doubles = doubles.count();
            if doubles > *surge as usize {
                return Err(format!("{doubles} slots of {watcher:?} have two processes"));
            }
        }
        Ok(())
    }

    /// In a rolling reload a worker that serves is only asked to end when another of its wid serves.
    fn check_gaps(&self, event: &Event, effects: &[Effect]) -> Result<(), String> {
        // What somebody asks for may well make a gap.
        if matches!(
            event,
            Event::Command { .. }
                | Event::Apply { .. }
                | Event::Terminate { .. }
                | Event::Bound { .. }
        ) {
            return Ok(());
        }
        let view = self.supervisor.view(self.now);
        for ((id, wid), proc) in &self.serving {
            let Some(watcher) = view.watchers.iter().find(|watcher| watcher.id == *id) else {
                continue;
            };
            let is_reloading =
                watcher.state == WatcherState::Reloading || self.reloading.contains(id);
            let stays = matches!(
                watcher.state,
                WatcherState::Reloading | WatcherState::Running
            );
            let Some(process) = self.kernel.procs.get(proc) else {
                continue;
            };
            let unit = &process.spec.unit;
            // The watchdog asks nobody.
            let ends = |effect: &Effect| match effect {
                Effect::Signal {
                    proc: of, signal, ..
                } => of == proc && signal.0 != 18 && *signal != unit.watchdog_signal,
                _ => false,
            };
            let by_itself = matches!(event, Event::Notified { proc: of, message, .. }
                if message.watchdog == Some(Watchdog::Trigger) || of == proc && message.stopping);
            let another = (watcher.workers.iter()).any(|worker| {
                let serves = matches!(worker.state, WorkerState::Ready | WorkerState::Reloading);
                worker.wid == *wid && worker.proc != *proc && serves
            });
            if is_reloading
                && stays
                && *wid <= watcher.wanted
                && effects.iter().any(ends)
                && !another
                && !unit.singleton
                && !by_itself
                && !self.is_single(watcher.name)
            {
                return Err(format!(
                    "worker {wid} of watcher `{}` is asked to end in a reload, and no other serves",
                    watcher.name
                ));
            }
        }
        Ok(())
    }

    fn is_single(&self, name: &str) -> bool {
        let plan = self.supervisor.plan();
        let spec = plan.watchers.iter().find(|spec| spec.name() == name);
        spec.is_none_or(|spec| spec.unit.singleton)
    }

    fn check_deadlines(&mut self, is_tick: bool) -> Result<(), String> {
        if self.is_over {
            return Ok(());
        }
        let (real, must) = (self.supervisor.next_deadline(), self.rules.next_deadline());
        if real != must {
            return Err(format!(
                "the next deadline is {real:?} and must be {must:?}"
            ));
        }
        self.ticks_at_once = match is_tick && real.is_some_and(|at| at <= self.now) {
            true => self.ticks_at_once + 1,
            false => 0,
        };
        match self.ticks_at_once > 20 {
            true => Err("deadlines go round in a circle at one time".into()),
            false => Ok(()),
        }
    }
}

fn all_records(supervisor: &mut Supervisor) -> BTreeMap<Key, Vec<u8>> {
    let mut all = BTreeMap::new();
    let written = supervisor.record_all(&mut |key, content| {
        all.extend(content.map(|content| (key, content)));
    });
    written.expect("it can be written");
    all
}

/// Of one wid no two serve; and outside a reload no two are there, but for those that end.
fn check_seats(view: &View<'_>) -> Result<(), String> {
    for watcher in &view.watchers {
        for worker in &watcher.workers {
            let is_other = |other: &&tentpole::supervise::WorkerView<'_>| {
                other.wid == worker.wid
                    && other.proc != worker.proc
                    && other.state != WorkerState::Stopping
            };
            let others: Vec<_> = watcher.workers.iter().filter(is_other).collect();
            let serves = |state| matches!(state, WorkerState::Ready | WorkerState::Reloading);
            let both_serve = serves(worker.state) && others.iter().any(|it| serves(it.state));
            let both_stay = worker.state != WorkerState::Stopping
                && !others.is_empty()
                && watcher.state != WatcherState::Reloading;
            if both_serve || both_stay {
                let (wid, name) = (worker.wid, watcher.name);
                return Err(format!("worker {wid} of watcher `{name}` is there twice"));
            }
        }
    }
    Ok(())
}

/// An event without what a notification does not say.
fn brief_event(event: &Event) -> String {
    if let Event::Apply { changes, .. } = event {
        return format!("Apply: {} changes", changes.len());
    }
    let Event::Notified {
        proc,
        sender,
        message,
    } = event
    else {
        return format!("{event:?}");
    };
    let said = format!("{message:?}");
    let said: Vec<&str> = (said.trim_start_matches("Message { ").trim_end_matches(" }"))
        .split(", ")
        .filter(|field| !field.ends_with(": false") && !field.ends_with(": None"))
        .collect();
    format!("Notified {proc:?} by {sender:?}: {}", said.join(", "))
}

/// What an answer says must be so at that very time.
fn check_answer(
    outcome: &Result<Option<String>, Refusal>,
    asked: &Asked,
    view: &View<'_>,
    kernel: &Kernel,
) -> Result<(), String> {
    let What::Command(command) = &asked.what else {
        return Ok(());
    };
    let names = match command {
        Command::Start(names)
        | Command::Stop(names)
        | Command::Restart(names)
        | Command::Reload(names) => names.as_slice(),
        Command::Scale { name, .. } | Command::Signal { name, .. } => std::slice::from_ref(name),
        Command::Shutdown => &[],
    };
    if let Err(Refusal::NoSuchWatcher { name } | Refusal::IsSocket { name, .. }) = outcome {
        let is_known = view.watchers.iter().any(|watcher| watcher.name == name);
        return match is_known || !names.contains(name) {
            true => Err(format!("`{name}` is said not to exist")),
            false => Ok(()),
        };
    }
    if outcome.is_err() || asked.no_wait {
        return Ok(());
    }
    // Of several, the first may have moved on since it was done.
    let [name] = names else {
        return Ok(());
    };
    for watcher in (view.watchers.iter()).filter(|watcher| watcher.name == name) {
        let lives = kernel.busy().any(|process| process.watcher == watcher.id);
        let is_so = match command {
            Command::Start(_) | Command::Restart(_) => match watcher.state {
                WatcherState::Running | WatcherState::Reloading => {
                    watcher.ready > 0 || watcher.wanted == 0
                }
                WatcherState::Waiting | WatcherState::Stopped => true,
                // It had failed, waits for traffic since an apply, and what is left of it is still ending.
                WatcherState::Stopping => (view.sockets.iter())
                    .any(|socket| socket.watched && socket.watchers.contains(&watcher.name)),
                _ => false,
            },
            Command::Stop(_) => !lives,
            // Whoever was there has been replaced, or told.
            Command::Reload(_) if watcher.state == WatcherState::Running => {
                let stays = |worker: &tentpole::supervise::WorkerView<'_>| {
                    let process = kernel.procs.get(&worker.proc);
                    asked.procs.contains(&worker.proc)
                        && worker.state == WorkerState::Ready
                        && process.is_some_and(|it| it.spec.unit.reload == Reload::Rolling)
                };
                !watcher.workers.iter().any(stays)
            }
            _ => true,
        };
        if !is_so {
            let (name, state) = (watcher.name, watcher.state);
            return Err(format!(
                "a command is said to be done, and watcher `{name}` is {state}"
            ));
        }
    }
    Ok(())
}

/// Who asked for progress hears of every change of the watcher that they wait for, and nobody else hears anything.
fn check_progress(
    view: &View<'_>,
    effects: &[Effect],
    open: &BTreeMap<RequestId, Asked>,
    shown: &mut BTreeMap<String, (WatcherState, u32)>,
) -> Result<(), String> {
    let mut told: BTreeMap<(RequestId, &str), WatcherState> = BTreeMap::new();
    let mut answered = BTreeSet::new();
    for effect in effects {
        match effect {
            Effect::Progress {
                request,
                watcher,
                state,
                ..
            } => {
                if !open.get(request).is_some_and(|asked| asked.progress) {
                    return Err(format!("nobody asked for the progress of {request:?}"));
                }
                told.insert((*request, watcher), *state);
            }
            Effect::Reply { request, .. } => {
                answered.insert(request);
            }
            _ => {}
        }
    }
    for watcher in &view.watchers {
        let now = (watcher.state, watcher.ready);
        if shown.insert(watcher.name.to_owned(), now) == Some(now) {
            continue;
        }
        for (request, asked) in open.iter().filter(|(_, asked)| asked.progress) {
            let is_meant = matches!(
                &asked.what,
                What::Command(Command::Start(names) | Command::Stop(names) | Command::Restart(names))
                    if names.len() == 1 && names[0] == watcher.name
            );
            let heard = told.get(&(*request, watcher.name));
            if is_meant && !answered.contains(request) && heard != Some(&watcher.state) {
                let (name, state) = (watcher.name, watcher.state);
                return Err(format!(
                    "watcher `{name}` is {state} now, and {request:?} heard {heard:?}"
                ));
            }
        }
    }
    Ok(())
}

/// STATUS= says what status says, and only where it changed.
fn check_status(
    view: &View<'_>,
    effects: &[Effect],
    parent: bool,
    told: &mut String,
) -> Result<(), String> {
    for effect in effects {
        if let Effect::Parent(ParentNotice::Status(text)) = effect {
            if text == told {
                return Err("the parent hears the same STATUS= again".into());
            }
            told.clone_from(text);
        }
    }
    // Nothing is said before the first event.
    if !parent || told.is_empty() {
        return Ok(());
    }
    let count = |state| {
        let is = |watcher: &&tentpole::supervise::WatcherView<'_>| watcher.state == state;
        view.watchers.iter().filter(is).count()
    };
    let running = count(WatcherState::Running);
    let mut must = format!("{running} of {} watchers running", view.watchers.len());
    for state in [
        WatcherState::Waiting,
        WatcherState::Starting,
        WatcherState::Reloading,
        WatcherState::Stopping,
        WatcherState::Backoff,
        WatcherState::Failed,
    ] {
        match count(state) {
            0 => {}
            some => must.push_str(&format!(", {some} {state}")),
        }
    }
    match *told == must {
        true => Ok(()),
        false => Err(format!("the parent was told `{told}`, and it is `{must}`")),
    }
}
