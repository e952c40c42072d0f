//! From the command line to a running manager. A start that fails leaves nothing behind.

use super::adopt::{Estate, adopt};
use super::base::{Base, StartError, failed};
use super::inherited::Inherited;
use super::keeper::{self, Origin, Taken};
use super::leftovers::{Leftovers, is_sole};
use super::listeners::{self, Listeners, Names};
use super::lookups::{Lookups, look_up_all};
use super::parent::{self, Parent};
use super::processes::Processes;
use super::record::{CONTROL, Home, Keeping};
use super::server::{self, Server};
use super::units::rendered;
use super::vault::Vault;
use super::{Beginning, Manager, System, TRIM_AFTER, clock, logger};
use crate::plan::{self, Host, Plan};
use crate::supervise::{Settings, Supervisor};
use crate::sys::epoll::Epoll;
use crate::sys::notify::NotifySocket;
use crate::sys::signals::{self, SignalFd};
use crate::sys::socket::{self, Bound, Cause, Local};
use crate::sys::spawn::Spawner;
use crate::sys::{fork, output, process};
use crate::unit::{self, LogFormat, LogLevel, Search};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

/// The variable by which a service tells how many files its workers may open (the soft limit), where the manager itself was
/// started with another limit: systemd hands what it has stored to the next manager only within that.
const NOFILE: &str = "TENTPOLE_NOFILE";

/// How long a manager that can't take over waits before it gives up its place to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// How the manager is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the unit files are.
    pub search: Search,
    /// The control socket, if the command line or the environment names one: it goes before `[manager] control`.
    pub control: Option<PathBuf>,
    /// The control socket if nothing names one. The manager runs without if it can't be made.
    pub default_control: PathBuf,
    /// Keep state and sockets in a small process outside of the manager, which starts it again if it is killed; false is
    /// one process.
    pub keeper: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            search: Search::default(),
            control: None,
            default_control: PathBuf::new(),
            keeper: true,
        }
    }
}

/// Runs the manager until it has ended; the answer is its exit code.
pub fn run(options: &Options) -> Result<i32, StartError> {
    // The manager trims it whenever it is idle.
    process::keep_heap();
    // From here on a SIGTERM is not lost, however long the rest takes.
    let signals = SignalFd::new(&keeper::SIGNALS).map_err(|error| failed("signals", &error))?;
    // No other is a reason to die. Workers start with none blocked.
    signals::block_all();
    logger::init(LogLevel::Info, LogFormat::Text);
    let handed = Estate::handed().map_err(StartError::Again)?;
    let inherited = Inherited::receive();
    let watchdog = parent::watchdog();
    let program = fork::program();
    let is_sole = is_sole();
    let limit = process::fd_limit().map_err(|error| failed("the limit of open files", &error))?;
    let raised = raise_fd_limit();
    // What is made from here on is the manager's alone.
    let vault = match &handed {
        Some(estate) => Ok(Vault::handed_on(estate.stored())),
        None => {
            let origin = Origin {
                signals: &signals,
                program: program.clone(),
                nofile: raised,
                is_sole,
            };
            Vault::open(limit.0, options.keeper.then_some(origin))
        }
    };
    let vault = vault.map_err(|error| failed("the keeper", &error))?;
    process::close_on_exec_from(3).map_err(|error| failed("close-on-exec", &error))?;

    let mut spawner = Spawner::new().map_err(|error| failed("spawning", &error))?;
    let nofile = workers_limit(limit, raised);
    if let Some((soft, hard)) = nofile {
        spawner.restore_nofile(soft, hard);
    }
    if process::Pid::own().as_raw() != 1 {
        process::set_subreaper().map_err(|error| failed("becoming a subreaper", &error))?;
    }
    let base = Base {
        signals,
        environment: plan::inheritable(&System::new().environment()),
        spawner,
        nofile,
        search: options.search.clone(),
        program,
        watchdog,
        is_sole,
    };
    let is_stored = matches!(vault, Vault::Systemd(_));
    let ended = match begin(options, base, vault, handed, inherited) {
        Ok((manager, beginning)) => manager
            .run(beginning)
            .map_err(|error| failed("the event loop", &error).again()),
        Err(StartError::Stopped) => {
            log::info!(target: "manager", "{}", StartError::Stopped);
            Ok(0)
        }
        Err(error) => Err(error),
    };
    if is_stored && matches!(ended, Err(StartError::Again(_))) {
        // systemd has one pause for all cases, and a short one.
        let _ = output::wait_for(&[], Some(PAUSE));
    }
    ended
}

/// Raises the limit of open descriptors. The answer is what it was, soft and hard, if it is another now.
fn raise_fd_limit() -> Option<(u64, u64)> {
    process::raise_fd_limit().unwrap_or_else(|error| {
        log::warn!(target: "manager", "the limit of open files could not be raised: {error}");
        None
    })
}

/// The limit of open descriptors that workers get, if it is not the manager's own, which had `limit` at first, and what is
/// in `raised` if that was raised.
fn workers_limit((_, hard): (u64, u64), raised: Option<(u64, u64)>) -> Option<(u64, u64)> {
    let Ok(wanted) = std::env::var(NOFILE) else {
        return raised;
    };
    match wanted.parse::<u64>() {
        Ok(soft) if soft <= hard => Some((soft, hard)),
        _ => {
            log::warn!(target: "manager", "{NOFILE}={wanted} is no number up to {hard}, the limit of open files");
            raised
        }
    }
}

/// Makes a manager: one that goes on where another has ended, if there was one.
fn begin(
    options: &Options,
    base: Base,
    mut vault: Vault,
    handed: Option<Estate>,
    mut inherited: Inherited,
) -> Result<(Manager, Beginning), StartError> {
    let estate = match handed {
        Some(estate) => Some(estate),
        None => vault
            .take_over(&mut inherited)
            .map_err(|error| failed("taking over from an earlier manager", &error))
            .and_then(|taken| left(&mut vault, taken))
            .map_err(StartError::again)?,
    };
    match estate {
        Some(estate) => adopt(base, vault, estate)
            .map(|(manager, arrears)| (manager, Beginning::Again(arrears)))
            .map_err(StartError::again),
        None => start(options, base, vault, inherited).map(|manager| (manager, Beginning::Fresh)),
    }
}

/// What an earlier manager has left, if it is of any use.
fn left(vault: &mut Vault, taken: Option<Taken>) -> Result<Option<Estate>, StartError> {
    let Some(Taken { held, stop }) = taken else {
        return Ok(None);
    };
    let names: Vec<String> = held.keys().cloned().collect();
    let control = held
        .get(CONTROL)
        .and_then(|fd| socket::describe(fd.as_fd()).ok());
    let estate = Estate::read(held, stop).map_err(|reason| {
        StartError::Other(format!(
            "what an earlier manager has left can't be read: {reason}"
        ))
    })?;
    if estate.is_none() {
        log::warn!(target: "manager", "an earlier manager died before it had begun; this one begins anew");
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        vault.release(&names);
        // The keeper may still have it when the control socket is bound anew, and then it would be in use.
        if let Some(Local::Path(path)) = control.map(|bound| bound.local) {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(estate)
}

/// A manager that begins with nothing but the unit files.
fn start(
    options: &Options,
    base: Base,
    vault: Vault,
    mut inherited: Inherited,
) -> Result<Manager, StartError> {
    let plan = read(&options.search)?;
    if plan.watchers.is_empty() && plan.sockets.is_empty() {
        log::warn!(target: "manager", "there are no units: nothing is going to run");
    }

    let names = look_up_names(&plan)?;
    let control = bind_control(options, &plan)?;
    let control_path = control.as_ref().map(|(_, path)| path.clone());
    let server = Server::new(control, plan.control_gid);
    let control_node = server.node().cloned();
    let (listeners, unbound) = Listeners::bind_all(&plan, &names, control_node, &mut inherited)
        .map_err(StartError::Sockets)?;
    inherited.close_rest();

    let now = clock();
    let parent = Parent::new(&vault, base.watchdog, now);
    let settings = Settings {
        log_level: plan.manager.log_level,
        parent: parent.listens(),
    };
    let supervisor = Supervisor::new(&plan, &unbound, settings);
    let mut processes = Processes::new(
        base.spawner,
        base.environment,
        plan.manager.env.clone(),
        base.program.clone(),
    );
    let keeping = Keeping::begin(vault).map_err(|error| failed("the ledger", &error))?;
    if keeping.is_on() {
        processes.keep();
    }
    let home = Home {
        version: env!("CARGO_PKG_VERSION").into(),
        started: std::time::SystemTime::now(),
        nofile: base.nofile,
        control: control_path.map(|path| (path.into(), server.node().cloned())),
        is_heir: false,
        is_sole: base.is_sole,
    };
    Ok(Manager {
        epoll: Epoll::new().map_err(|error| failed("epoll", &error))?,
        signals: base.signals,
        notify: NotifySocket::bind_autobind()
            .map_err(|error| failed("the notify socket", &error))?,
        parent,
        keeping,
        home,
        program: base.program,
        upgrade: None,
        executing: None,
        listeners,
        lookups: Lookups::default(),
        applying: None,
        search: base.search,
        own_requests: BTreeSet::new(),
        processes,
        leftovers: Leftovers::new(base.is_sole),
        server,
        supervisor,
        watchdog: base.watchdog,
        jobs: VecDeque::new(),
        effects: Vec::new(),
        // Those that have looked names up.
        exits_left: !names.is_empty(),
        trim: Some(now + TRIM_AFTER),
        finished: None,
        is_wary: false,
    })
}

/// Unit files to a plan, and from here on the log is as they say.
fn read(search: &Search) -> Result<Plan, StartError> {
    let examined = plan::examine(unit::load(search), &System::new());
    let (errors, warnings) = rendered(&examined.findings, &examined.sources);
    let Some(plan) = examined.plan else {
        for warning in warnings {
            eprintln!("{warning}");
        }
        return Err(StartError::Units(errors));
    };
    logger::set(plan.manager.log_level, plan.manager.log_format);
    for warning in warnings {
        logger::log_lines(log::Level::Warn, &warning);
    }
    Ok(plan)
}

/// What the host names that the plan's sockets listen on stand for.
fn look_up_names(plan: &Plan) -> Result<Names, StartError> {
    let (needed, optional) = listeners::names_of(plan);
    if needed.is_empty() && optional.is_empty() {
        return Ok(Names::new());
    }
    // Of its own, and never read: what comes stays for the loop.
    let stop = SignalFd::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGQUIT]);
    let names = stop.and_then(|stop| look_up_all(&needed, &optional, &stop));
    let names = names.map_err(|error| failed("looking names up", &error))?;
    names.ok_or(StartError::Stopped)
}

/// The control socket. Without a writable place for it the manager runs without, unless one was asked for.
fn bind_control(options: &Options, plan: &Plan) -> Result<Option<(Bound, PathBuf)>, StartError> {
    let asked = options.control.clone().or_else(|| {
        plan.manager
            .control
            .as_ref()
            .map(|path| path.value.to_path_buf())
    });
    let required = asked.is_some();
    let path = asked.unwrap_or_else(|| options.default_control.clone());
    match server::listen(&path, plan.manager.control_mode().0, plan.control_gid) {
        Ok(bound) => Ok(Some((bound, path))),
        Err(error) if matches!(error.cause, Cause::InUse(_)) => Err(StartError::Other(format!(
            "the control socket: {error}; another manager needs another `--control PATH`"
        ))),
        Err(error) if required => Err(StartError::Other(format!("the control socket: {error}"))),
        Err(error) => {
            log::warn!(
                target: "manager",
                "there is no control socket, so no command reaches this manager: {error}; say with `--control PATH` or \
                 TENTPOLE_CONTROL where it can be"
            );
            Ok(None)
        }
    }
}
