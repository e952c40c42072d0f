//! Going on where another manager has ended: after an upgrade, or after its death.

use super::base::{Base, StartError, failed};
use super::image::UPGRADE;
use super::ledger::{Ledger, State};
use super::leftovers::Leftovers;
use super::listeners::Listeners;
use super::lookups::Lookups;
use super::node::Node;
use super::parent::Parent;
use super::processes::Processes;
use super::record::{CONTROL, Home, Keeping, LEDGER, NOTIFY, Records};
use super::server::{self, Server};
use super::vault::Vault;
use super::{Manager, clock, logger};
use crate::control::call::Reply;
use crate::supervise::{Event, Exit, ProcId, RequestId, Settings, SocketId, Supervisor};
use crate::sys::epoll::Epoll;
use crate::sys::notify::NotifySocket;
use crate::sys::{inherit, process};
use crate::unit::Gather;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;

/// What is left of another manager.
pub struct Estate {
    /// The ledger to go on with, if anybody keeps it.
    pub ledger: Option<Ledger>,
    pub records: Records,
    /// Descriptors by the names that they were held by.
    pub fds: BTreeMap<String, OwnedFd>,
    /// It was executed anew, and is this very process.
    pub is_upgrade: bool,
    /// A signal to stop that it may have had no time to act on.
    pub stop: Option<i32>,
}

impl Estate {
    /// What our former self has handed on, if this is an upgrade.
    pub fn handed() -> Result<Option<Estate>, String> {
        let Some(state) = inherited()? else {
            return Ok(None);
        };
        let records = Records::read(state)?.ok_or("there is no state in what was handed on")?;
        let mut fds = handed(&records);
        let ledger = match fds.remove(LEDGER) {
            None => None,
            Some(fd) => Some(Ledger::open(fd).map_err(|error| error.to_string())?.0),
        };
        Ok(Some(Estate {
            ledger,
            records,
            fds,
            is_upgrade: true,
            stop: None,
        }))
    }

    /// The names of what systemd has stored of it, if it was handed on.
    pub fn stored(&self) -> Vec<String> {
        let handover = self.records.handover.as_ref();
        handover.map_or_else(Vec::new, |handover| handover.stored.clone())
    }

    /// Looks at what was held. `None` if nothing of it is of any use: its manager had not begun.
    pub fn read(
        mut fds: BTreeMap<String, OwnedFd>,
        stop: Option<i32>,
    ) -> Result<Option<Estate>, String> {
        let Some(ledger) = fds.remove(LEDGER) else {
            return Ok(None);
        };
        let (ledger, state) = Ledger::open(ledger).map_err(|error| error.to_string())?;
        let Some(records) = Records::read(state)? else {
            return Ok(None);
        };
        Ok(Some(Estate {
            ledger: Some(ledger),
            records,
            fds,
            is_upgrade: false,
            stop,
        }))
    }
}

/// What a former self of this process has handed on, if it has.
fn inherited() -> Result<Option<State>, String> {
    let Ok(number) = std::env::var(UPGRADE) else {
        return Ok(None);
    };
    let fd = number.parse().ok().and_then(inherit::take);
    let fd = fd.ok_or_else(|| format!("{UPGRADE}={number} is no descriptor"))?;
    Ledger::look(&fd)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// The descriptors that it has handed on, by name.
fn handed(records: &Records) -> BTreeMap<String, OwnedFd> {
    let fds = records.handover.iter().flat_map(|handover| &handover.fds);
    fds.filter_map(|(name, number)| Some((name.clone(), inherit::take(*number)?)))
        .gather()
}

/// The supervisor that `records` are of.
pub fn restore(records: &mut Records, parent: bool) -> Result<Supervisor, String> {
    let settings = Settings {
        log_level: crate::unit::LogLevel::Info,
        parent,
    };
    let records = std::mem::take(&mut records.supervisor);
    Supervisor::restore(records, settings).map_err(|error| error.to_string())
}

/// A manager that goes on with what another has left, and what it has to do first.
pub fn adopt(base: Base, vault: Vault, estate: Estate) -> Result<(Manager, Arrears), StartError> {
    let Estate {
        ledger,
        mut records,
        mut fds,
        is_upgrade,
        stop,
    } = estate;
    let handover = records.handover.take().unwrap_or_default();
    let now = clock();
    let watchdog = match is_upgrade {
        true => handover.watchdog,
        false => base.watchdog,
    };
    let parent = Parent::new(&vault, watchdog, now);
    let supervisor = restore(&mut records, parent.listens()).map_err(StartError::Other)?;
    let settings = supervisor.manager();
    logger::set(settings.log_level, settings.log_format);
    let epoll = Epoll::new().map_err(|error| failed("epoll", &error))?;

    let control = records.home.control.as_ref();
    let control = control.and_then(|(_, node)| node.clone());
    let listeners = Listeners::adopt(records.listeners, &mut fds, &supervisor, control);
    let is_kept_by_keeper = matches!(vault, Vault::Keeper(_));
    let mut spawner = base.spawner;
    let nofile = if is_upgrade {
        records.home.nofile
    } else {
        base.nofile
    };
    if let Some((soft, hard)) = nofile {
        spawner.restore_nofile(soft, hard);
    }
    let mut processes = Processes::new(
        spawner,
        base.environment,
        settings.env.clone(),
        base.program.clone(),
    );
    // Of our own children, and of those that the keeper has, we are told.
    let watch = !is_upgrade && !is_kept_by_keeper;
    let gone = processes.adopt(&epoll, records.processes, watch);
    let is_heir = !is_upgrade || records.home.is_heir;
    let foster = is_heir.then(process::parent).flatten();
    // systemd is the foster of more than our workers.
    let is_sole = records.home.is_sole && (is_kept_by_keeper || !is_heir);
    let mut leftovers = Leftovers::new(is_sole);
    leftovers.adopt(records.leftovers);
    leftovers.move_to(foster, processes.parents_of_strangers());
    if !is_upgrade {
        let plan = supervisor.plan();
        let manners = plan.watchers.iter().map(|watcher| {
            let unit = &watcher.unit;
            let manners = (unit.stop_signal, unit.graceful_timeout);
            (watcher.name().to_owned(), manners)
        });
        leftovers.end_unknown(&processes, manners.collect(), now);
    }

    let notify = match fds.remove(NOTIFY) {
        Some(fd) => NotifySocket::adopt(fd),
        None => NotifySocket::bind_autobind(),
    };
    let notify = notify.map_err(|error| failed("the notify socket", &error))?;
    let gid = supervisor.control_gid();
    let mut home = records.home;
    let control = match (fds.remove(CONTROL), &mut home.control) {
        (Some(fd), Some((_, node))) => Some((fd, node.clone())),
        // Its manager died before it had handed it over.
        (None, Some((path, node))) => match server::listen(path, settings.control_mode().0, gid) {
            Ok(bound) => {
                *node = Node::made_at(path);
                Some((bound.fd, node.clone()))
            }
            Err(error) => {
                log::error!(target: "manager", "the control socket: {error}; no command reaches this manager");
                None
            }
        },
        (_, None) => None,
    };
    let server = Server::adopt(&epoll, control, gid, handover.server, &mut fds);

    let held = listeners.ids().into_iter().map(|id| {
        let names = listeners.descriptors(id).into_iter().map(|(name, _)| name);
        (id, names.collect())
    });
    let held: HashMap<SocketId, Vec<String>> = held.collect();
    let mut vault = vault;
    let unknown: Vec<&str> = fds.keys().map(String::as_str).collect();
    if !unknown.is_empty() && !is_upgrade {
        log::debug!(target: "manager", "{} descriptors that were held are of no use", unknown.len());
        vault.release(&unknown);
    }
    let keeping = Keeping::go_on(vault, ledger, held);
    if keeping.is_on() {
        processes.keep();
    }
    let manager = Manager {
        epoll,
        signals: base.signals,
        notify,
        parent,
        keeping,
        home: Home {
            version: env!("CARGO_PKG_VERSION").into(),
            nofile,
            is_heir,
            ..home
        },
        program: base.program,
        upgrade: None,
        executing: None,
        listeners,
        lookups: Lookups::default(),
        applying: None,
        search: base.search,
        own_requests: handover.own_requests,
        processes,
        leftovers,
        server,
        supervisor,
        watchdog,
        jobs: VecDeque::new(),
        effects: Vec::new(),
        exits_left: true,
        trim: Some(now),
        finished: None,
        is_wary: !is_upgrade,
    };
    let arrears = Arrears {
        gone,
        is_upgrade,
        stop,
        upgrades: handover.upgrades,
    };
    Ok((manager, arrears))
}

/// What a new manager has to do first.
pub struct Arrears {
    /// Processes that have ended without anybody to see it.
    gone: Vec<ProcId>,
    is_upgrade: bool,
    stop: Option<i32>,
    /// Requests that ask for nothing but this.
    upgrades: Vec<RequestId>,
}

impl Manager {
    /// Takes up the work.
    pub(super) fn go_on(&mut self, arrears: Arrears) {
        let what = if arrears.is_upgrade {
            "upgraded"
        } else {
            "taken over from a manager that died"
        };
        log::info!(target: "manager", "{what}: this is version {}, with {} running workers", env!("CARGO_PKG_VERSION"), self.processes.ids().len() - arrears.gone.len());
        let mut effects = Vec::new();
        self.supervisor
            .resume(clock(), arrears.is_upgrade, &mut effects);
        let events: Vec<Event> = effects
            .into_iter()
            .filter_map(|effect| self.carry_out(effect))
            .collect();
        for event in events {
            self.dispatch(event);
        }
        self.have_ended_unseen(arrears.gone);
        self.put_files_back();
        let version = env!("CARGO_PKG_VERSION");
        for request in arrears.upgrades {
            let message = Some(format!("upgraded: the manager is version {version} now"));
            let reply = Ok(Reply::Done { message });
            if !self.own_requests.remove(&request) {
                self.server.answer_request(&self.epoll, request, &reply);
            }
        }
        self.save_home();
        // Asked for twice it would be forced; so it is not counted as forwarded, since that may be yet to come.
        if arrears.stop.is_some() && !self.supervisor.is_stopping() {
            self.dispatch(Event::Terminate { forwarded: false });
        }
    }

    /// Main processes have ended, nobody knows how.
    pub(super) fn have_ended_unseen(&mut self, gone: Vec<ProcId>) {
        for proc in gone {
            if let Some(ended) = self.processes.lost(&self.epoll, proc) {
                self.has_ended(proc, ended, Exit::Unknown);
                self.leftovers.look(proc);
            }
        }
    }
}

/// Whether a state that an older or newer manager has written can be taken over by this one, and if not, why. The answer is
/// how many records there are, which shows that it was read.
pub fn probe(state: State) -> Result<usize, String> {
    let count = state.len();
    let records = Records::read(state)?;
    let mut records = records.ok_or("there is no state in it")?;
    let supervisor = restore(&mut records, false)?;
    let known: BTreeSet<SocketId> = records.listeners.keys().copied().gather();
    match known.iter().find(|id| supervisor.socket(**id).is_none()) {
        Some(id) => Err(format!("its socket {} is of no unit", id.0)),
        None => Ok(count),
    }
}
