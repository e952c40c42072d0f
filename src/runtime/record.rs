//! What the next manager needs to know of this one, beside what [`crate::supervise`] records of itself.
//!
//! At the end of each turn that has changed anything, all of it is committed to the [`Ledger`] at once. Descriptors are
//! handed to the [`Vault`] after that: a socket that is recorded and not held is bound anew, while one that is held and
//! not recorded would keep its address from everybody.

use super::ledger::Ledger;
use super::leftovers::{LeftoverRecord, Leftovers};
use super::listeners::{ListenerRecord, Listeners};
use super::node::Node;
use super::processes::{ProcessRecord, Processes};
use super::server::ServerRecord;
use super::vault::Vault;
use super::{Manager, ledger};
use crate::supervise::{Key, ProcId, RequestId, SocketId};
use crate::unit::Gather;
use crate::unit::path::FilePath;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

/// Names of descriptors in the vault that belong to no socket unit.
pub const LEDGER: &str = "ledger";
pub const NOTIFY: &str = "notify";
pub const CONTROL: &str = "control";

/// Where records of one kind begin.
const PROCESS: &str = "process.";
const LISTENER: &str = "listener.";
const LEFTOVER: &str = "leftover.";

/// Names of records of which there is one.
const HOME: &str = "home";
const HANDOVER: &str = "handover";

/// What does not change as long as the manager runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Home {
    /// Its version.
    pub version: String,
    pub started: SystemTime,
    /// The limit of open descriptors that workers get, soft and hard.
    pub nofile: Option<(u64, u64)>,
    /// The control socket's path and file.
    pub control: Option<(FilePath, Option<Node>)>,
    /// It has taken over from one that died: children of that one's may be its parent's now.
    #[serde(default)]
    pub is_heir: bool,
    /// Every process below it, and below its keeper, is a worker or descends from one.
    #[serde(default)]
    pub is_sole: bool,
}

/// What an upgrade hands on that a crash loses.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Handover {
    /// Descriptors: the name of each, and its number.
    pub fds: Vec<(String, i32)>,
    /// The names of those that systemd has stored.
    #[serde(default)]
    pub stored: Vec<String>,
    pub server: ServerRecord,
    pub own_requests: BTreeSet<RequestId>,
    /// The interval of the parent's watchdog.
    pub watchdog: Option<Duration>,
    /// Requests to upgrade, which are answered by the next manager.
    pub upgrades: Vec<RequestId>,
}

/// Everything that is recorded, taken apart.
#[derive(Debug)]
pub struct Records {
    pub home: Home,
    pub supervisor: Vec<(Key, Vec<u8>)>,
    pub listeners: BTreeMap<SocketId, ListenerRecord>,
    pub processes: BTreeMap<ProcId, ProcessRecord>,
    pub leftovers: BTreeMap<ProcId, LeftoverRecord>,
    pub handover: Option<Handover>,
}

impl Records {
    /// Takes a ledger's state apart. `None` if its manager died before it had recorded anything.
    pub fn read(state: ledger::State) -> Result<Option<Records>, String> {
        let Some(home) = state.get(HOME) else {
            return Ok(None);
        };
        let mut records = Records {
            home: read(HOME, home)?,
            supervisor: Vec::new(),
            listeners: BTreeMap::new(),
            processes: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            handover: None,
        };
        for (name, bytes) in state {
            let id = |text: &str| {
                let number = text.parse::<u64>();
                number.map_err(|_| format!("the name of the record `{name}` makes no sense"))
            };
            if let Ok(key) = name.parse::<Key>() {
                records.supervisor.push((key, bytes));
            } else if let Some(number) = name.strip_prefix(LISTENER) {
                let number = u32::try_from(id(number)?).map_err(|error| error.to_string())?;
                let listener = read(&name, &bytes)?;
                records.listeners.insert(SocketId(number), listener);
            } else if let Some(number) = name.strip_prefix(PROCESS) {
                let process = read(&name, &bytes)?;
                records.processes.insert(ProcId(id(number)?), process);
            } else if let Some(number) = name.strip_prefix(LEFTOVER) {
                let leftover = read(&name, &bytes)?;
                records.leftovers.insert(ProcId(id(number)?), leftover);
            } else if name == HANDOVER {
                records.handover = Some(read(&name, &bytes)?);
            } else if name != HOME {
                return Err(format!(
                    "there is a record `{name}`, which this version does not know"
                ));
            }
        }
        Ok(Some(records))
    }
}

/// The ledger, and who keeps it and the descriptors.
pub struct Keeping {
    pub vault: Vault,
    ledger: Option<Ledger>,
    /// What the vault holds of each socket.
    held: HashMap<SocketId, Vec<String>>,
}

impl Keeping {
    /// Begins to record, if there is somebody to keep it. Without, the manager's end is the end of it all.
    pub fn begin(vault: Vault) -> io::Result<Keeping> {
        let mut keeping = Keeping {
            vault,
            ledger: None,
            held: HashMap::new(),
        };
        if !matches!(keeping.vault, Vault::Nobody) {
            keeping.ledger = Some(Ledger::create()?);
        }
        Ok(keeping)
    }

    /// Goes on with the ledger of another manager.
    pub fn go_on(
        vault: Vault,
        ledger: Option<Ledger>,
        held: HashMap<SocketId, Vec<String>>,
    ) -> Keeping {
        Keeping {
            vault,
            ledger,
            held,
        }
    }

    /// The ledger, to be handed on.
    pub fn ledger_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ledger.as_ref().map(Ledger::fd)
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.ledger.is_some()
    }
}

impl Manager {
    /// Records what has changed since the last time.
    pub(super) fn save(&mut self) {
        self.listeners.keep_spares();
        if matches!(self.keeping.vault, Vault::Nobody) {
            self.keeping.ledger = None;
        }
        let Some(ledger) = &mut self.keeping.ledger else {
            self.supervisor.forget_changes();
            self.listeners.take_dirty();
            self.processes.take_dirty();
            self.leftovers.take_dirty();
            return;
        };
        let dirty = Dirty {
            listeners: self.listeners.take_dirty(),
            processes: self.processes.take_dirty(),
            leftovers: self.leftovers.take_dirty(),
        };
        let written = self.supervisor.record(&mut |key, value| match value {
            Some(value) => ledger.put(&key.to_string(), value),
            None => ledger.delete(&key.to_string()),
        });
        let parts = (&self.listeners, &self.processes, &self.leftovers);
        let put = dirty.put(ledger, parts);
        let committed = ledger.commit();
        if let Err(error) = written.map_err(io::Error::other).and(put).and(committed) {
            log::error!(target: "manager", "the state can't be recorded: {error}; if the manager dies now, the next one goes on from an older one");
        }
        self.hold(&dirty.listeners);
        if self.keeping.vault.is_full() {
            self.keeping.vault.flush();
        }
    }

    /// Hands over what is held once, and records what is recorded once, with everything else.
    pub(super) fn save_home(&mut self) {
        let Some(ledger) = &mut self.keeping.ledger else {
            return;
        };
        match content(HOME, &self.home) {
            Ok(home) => ledger.put(HOME, home),
            Err(error) => {
                log::error!(target: "manager", "the state can't be recorded: {error}");
            }
        }
        let mut fds = vec![(LEDGER, ledger.fd()), (NOTIFY, self.notify.as_fd())];
        fds.extend(self.server.listener().map(|fd| (CONTROL, fd)));
        self.keeping.vault.hold(&fds);
        self.save();
    }

    /// Hands the vault what is new of these sockets, and has it let go of what is no more.
    fn hold(&mut self, changed: &BTreeSet<SocketId>) {
        let mut new: Vec<(String, BorrowedFd<'_>)> = Vec::new();
        let mut gone: Vec<String> = Vec::new();
        for id in changed {
            let fds = self.listeners.descriptors(*id);
            let before = self.keeping.held.remove(id).unwrap_or_default();
            let now: Vec<String> = fds.iter().map(|(name, _)| name.clone()).collect();
            gone.extend(before.iter().filter(|name| !now.contains(name)).cloned());
            new.extend(fds.into_iter().filter(|(name, _)| !before.contains(name)));
            if !now.is_empty() {
                self.keeping.held.insert(*id, now);
            }
        }
        if !new.is_empty() {
            let new: Vec<_> = new.iter().map(|(name, fd)| (name.as_str(), *fd)).collect();
            self.keeping.vault.hold(&new);
        }
        if !gone.is_empty() {
            let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
            self.keeping.vault.release(&gone);
        }
    }

    /// Hands a new keeper all that is to be held.
    pub(super) fn hold_anew(&mut self) {
        self.keeping.held.clear();
        let all = self.listeners.ids().into_iter().gather();
        self.save_home();
        self.hold(&all);
    }

    /// All of it in a ledger of its own, with what only an upgrade hands on; and how many records that is.
    pub(super) fn save_all(&mut self, handover: &Handover) -> io::Result<(Ledger, usize)> {
        let mut ledger = Ledger::create()?;
        let all = Dirty {
            listeners: self.listeners.ids().into_iter().gather(),
            processes: self.processes.ids().into_iter().gather(),
            leftovers: self.leftovers.ids().into_iter().gather(),
        };
        let written = self.supervisor.record_all(&mut |key, value| {
            if let Some(value) = value {
                ledger.put(&key.to_string(), value);
            }
        });
        written.map_err(io::Error::other)?;
        let parts = (&self.listeners, &self.processes, &self.leftovers);
        all.put(&mut ledger, parts)?;
        ledger.put(HOME, content(HOME, &self.home)?);
        ledger.put(HANDOVER, content(HANDOVER, handover)?);
        let records = ledger.buffered();
        ledger.commit()?;
        Ok((ledger, records))
    }
}

/// What is to be recorded of the runtime's own.
struct Dirty {
    listeners: BTreeSet<SocketId>,
    processes: BTreeSet<ProcId>,
    leftovers: BTreeSet<ProcId>,
}

impl Dirty {
    fn put(
        &self,
        ledger: &mut Ledger,
        (listeners, processes, leftovers): (&Listeners, &Processes, &Leftovers),
    ) -> io::Result<()> {
        let mut put_all = Ok(());
        for id in &self.listeners {
            let put = put(ledger, LISTENER, u64::from(id.0), listeners.record(*id));
            put_all = put_all.and(put);
        }
        for proc in &self.processes {
            put_all = put_all.and(put(ledger, PROCESS, proc.0, processes.record(*proc)));
        }
        for proc in &self.leftovers {
            put_all = put_all.and(put(ledger, LEFTOVER, proc.0, leftovers.record(*proc)));
        }
        put_all
    }
}

/// Puts a record, or deletes that of what is no more. One that can't be written stays as it was.
fn put<T: Serialize>(
    ledger: &mut Ledger,
    kind: &str,
    number: u64,
    record: Option<T>,
) -> io::Result<()> {
    let name = format!("{kind}{number}");
    match record {
        Some(record) => ledger.put(&name, content(&name, &record)?),
        None => ledger.delete(&name),
    }
    Ok(())
}

fn content<T: Serialize>(name: &str, value: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| unwritable(name, &error))
}

fn unwritable(name: &str, error: &serde_json::Error) -> io::Error {
    io::Error::other(format!("record `{name}` can't be written: {error}"))
}

fn read<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("record `{name}` can't be read: {error}"))
}
