//! From the command line to a running manager. A start that fails leaves nothing behind.

use super::inherited::Inherited;
use super::leftovers::Leftovers;
use super::listeners::Listeners;
use super::parent::{self, Parent};
use super::processes::Processes;
use super::server::Server;
use super::vault::{Beginning, Vault};
use super::{Manager, System, clock, logger};
use crate::plan::{self, Host, Plan};
use crate::supervise::{Settings, Supervisor};
use crate::sys::epoll::Epoll;
use crate::sys::notify::NotifySocket;
use crate::sys::signals::{self, SignalFd};
use crate::sys::socket::{self, Address, Bound, Cause, Kind, Listen};
use crate::sys::spawn::Spawner;
use crate::sys::{output, process};
use crate::unit::{self, Finding, Search, Severity, Sources};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Signals that the manager takes as events; the ones it has no use for are among them, since their default would kill it.
const SIGNALS: [i32; 7] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// How the manager is to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the unit files are.
    pub search: Search,
    /// The control socket, if the command line or the environment names one: it goes before `[manager] control`.
    pub control: Option<PathBuf>,
    /// The control socket if nothing names one. The manager runs without if it can't be made.
    pub default_control: PathBuf,
    /// Whether the manager's state and sockets are to outlive it in a process of their own, which this one becomes. With
    /// systemd's descriptor store there is none.
    pub keeper: bool,
}

/// Why the manager did not start. As text: everything that is wrong, a line or more each.
#[derive(Debug)]
pub enum StartError {
    /// The unit files are wrong: the findings, as a user reads them.
    Units(Vec<String>),
    /// Sockets can't be bound.
    Sockets(Vec<String>),
    /// Something else, named.
    Other(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (StartError::Units(lines) | StartError::Sockets(lines)) = self else {
            let StartError::Other(text) = self else {
                return Ok(());
            };
            return f.write_str(text);
        };
        for line in lines {
            writeln!(f, "{}", line.trim_end())?;
        }
        let count = lines.len();
        write!(
            f,
            "{count} error{}; nothing was started",
            if count == 1 { "" } else { "s" }
        )
    }
}

impl std::error::Error for StartError {}

/// Runs the manager until it has ended; the answer is its exit code.
pub fn run(options: &Options) -> Result<i32, StartError> {
    // From here on a SIGTERM is not lost, however long the rest takes.
    let signals = SignalFd::new(&SIGNALS).map_err(|error| failed("signals", &error))?;
    let environment_of_manager = plan::inheritable(System::new().environment());
    let mut inherited = Inherited::receive();
    let watchdog = parent::watchdog();
    output::fill_standard().map_err(|error| failed("stdin, stdout, stderr", &error))?;
    // What is made from here on is the manager's alone.
    let mut vault = Vault::open(options.keeper).map_err(|error| failed("the keeper", &error))?;
    process::close_on_exec_from(3).map_err(|error| failed("close-on-exec", &error))?;

    // What is written beyond RLIMIT_FSIZE fails, and is no reason to die. Workers start with the default.
    signals::ignore(libc::SIGXFSZ).map_err(|error| failed("signals", &error))?;

    let plan = read(&options.search)?;
    logger::init(plan.manager.log_level, plan.manager.log_format);
    if plan.watchers.is_empty() && plan.sockets.is_empty() {
        log::warn!(target: "manager", "there are no units: nothing is going to run");
    }

    let mut spawner = Spawner::new().map_err(|error| failed("spawning", &error))?;
    match process::raise_fd_limit() {
        Ok((soft, hard)) => spawner.restore_nofile(soft, hard),
        Err(error) => {
            log::warn!(target: "manager", "the limit of open files could not be raised: {error}")
        }
    }
    match vault.take_over(&mut inherited) {
        Ok(Beginning::Fresh) => {}
        Ok(Beginning::Adopt(_)) => {
            log::warn!(target: "manager", "what an earlier manager has left can't be taken over yet");
        }
        Err(error) => return Err(failed("taking over from an earlier manager", &error)),
    }
    if process::Pid::own().as_raw() != 1 {
        process::set_subreaper().map_err(|error| failed("becoming a subreaper", &error))?;
    }

    let server = Server::new(bind_control(options, &plan)?, plan.control_gid);
    let (listeners, unbound) =
        Listeners::bind_all(&plan, &mut inherited).map_err(StartError::Sockets)?;
    inherited.close_rest();

    let now = clock();
    let parent = Parent::new(&vault, watchdog, now);
    let settings = Settings {
        log_level: plan.manager.log_level,
        parent: parent.listens(),
    };
    let supervisor = Supervisor::new(&plan, &unbound, settings);
    let manager = Manager {
        epoll: Epoll::new().map_err(|error| failed("epoll", &error))?,
        signals,
        notify: NotifySocket::bind_autobind()
            .map_err(|error| failed("the notify socket", &error))?,
        parent,
        vault,
        listeners,
        processes: Processes::new(spawner, environment_of_manager, plan.manager.env.clone()),
        leftovers: Leftovers::default(),
        server,
        supervisor,
        started: std::time::SystemTime::now(),
        jobs: VecDeque::new(),
        effects: Vec::new(),
        exits_left: false,
        trim: Some(now),
        finished: None,
    };
    manager
        .run(plan)
        .map_err(|error| failed("the event loop", &error))
}

/// Unit files to a plan. Warnings go to stderr at once, since there is no log yet.
fn read(search: &Search) -> Result<Plan, StartError> {
    let examined = plan::examine(unit::load(search), &System::new());
    let errors = report(&examined.findings, &examined.sources);
    examined.plan.ok_or(StartError::Units(errors))
}

fn report(findings: &[Finding], sources: &Sources) -> Vec<String> {
    let (errors, warnings): (Vec<&Finding>, Vec<&Finding>) = findings
        .iter()
        .partition(|finding| finding.severity == Severity::Error);
    for finding in warnings {
        eprintln!("{}", sources.render(finding).to_string().trim_end());
    }
    errors
        .into_iter()
        .map(|finding| sources.render(finding).to_string())
        .collect()
}

/// The control socket. Without a writable place for it the manager runs without, unless one was asked for.
fn bind_control(options: &Options, plan: &Plan) -> Result<Option<(Bound, PathBuf)>, StartError> {
    let asked = options
        .control
        .clone()
        .or_else(|| plan.manager.control.as_ref().map(|path| path.value.clone()));
    let required = asked.is_some();
    let path = asked.unwrap_or_else(|| options.default_control.clone());
    let bound = socket::listen(&Listen {
        address: &Address::Path(path.clone()),
        kind: Kind::Stream,
        backlog: 128,
        interface: None,
        reuseport: false,
        blocking: false,
        umask: None,
        mode: Some(plan.manager.control_mode.0),
        uid: None,
        gid: plan.control_gid,
        directory_mode: 0o755,
        replace: true,
    });
    match bound {
        Ok(bound) => Ok(Some((bound, path))),
        Err(error) if required || matches!(error.cause, Cause::InUse(_)) => Err(StartError::Other(
            format!("the control socket: {error}; another manager needs another `--control PATH`"),
        )),
        Err(error) => {
            log::warn!(target: "manager", "there is no control socket: {error}");
            Ok(None)
        }
    }
}

fn failed(what: &str, error: &io::Error) -> StartError {
    StartError::Other(format!("{what}: {error}"))
}
