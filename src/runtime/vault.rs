//! Where the manager's descriptors and state are kept for the next manager: with the keeper, with systemd, or nowhere.

use super::inherited::Inherited;
use super::keeper::{self, Link, Origin, Taken, Teller, Word};
use super::{clock, image, notify_socket};
use crate::supervise::Time;
use crate::sys::epoll::Epoll;
use crate::sys::process::Pid;
use crate::sys::unix;
use crate::unit::{Gather, LogFormat, LogLevel};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

/// Marks what is ours among the descriptors that systemd hands a service: the others come from its socket units, and are
/// called like those (`tentpole.socket`) where they have no other name. The name of a unit has no slash.
const MARK: &str = "tentpole/";

/// The variable by which systemd offers to keep descriptors, and how many.
const OFFER: &str = "FDSTORE";

/// Of the descriptors that a manager may be started with, so many may be others than those that are kept: of socket units, and
/// systemd's own while it starts a process.
const OTHERS: u64 = 128;

/// Who keeps them.
#[derive(Debug)]
pub enum Vault {
    /// Nobody: they end with the manager.
    Nobody,
    /// The process that started the manager.
    Keeper(Link),
    /// systemd, which starts a new manager by `Restart=`.
    Systemd(Store),
    /// A keeper that is gone: another is to take its place.
    Lost {
        /// Its process.
        keeper: Option<Pid>,
        /// Since when.
        since: Time,
    },
}

impl Vault {
    /// Finds out who keeps what. With `keeper`, and where nobody else would do it, this process becomes a keeper, and what
    /// returns is its child: nothing may have been made that the two must not share. `soft` is the limit of open descriptors
    /// that this process was started with.
    pub fn open(soft: u64, keeper: Option<Origin<'_>>) -> io::Result<Vault> {
        if let Some(link) = Link::inherited() {
            return Ok(Vault::Keeper(link));
        }
        if let Some(mut store) = Store::offered() {
            store.fit(soft);
            return Ok(Vault::Systemd(store));
        }
        match keeper {
            Some(origin) => keeper::begin(origin).map(Vault::Keeper),
            None => Ok(Vault::Nobody),
        }
    }

    /// The one that our former self had, whose place we take by an upgrade: all that it held is held already, in systemd's store
    /// by these names.
    pub fn handed_on(stored: Vec<String>) -> Vault {
        if let Some(link) = Link::handed_on() {
            return Vault::Keeper(link);
        }
        match Store::offered() {
            Some(mut store) => {
                store.held = stored.into_iter().gather();
                Vault::Systemd(store)
            }
            None => Vault::Nobody,
        }
    }

    /// The names of what systemd has stored.
    pub fn stored(&self) -> Vec<String> {
        match self {
            Vault::Nobody | Vault::Keeper(_) | Vault::Lost { .. } => Vec::new(),
            Vault::Systemd(store) => store.held.iter().cloned().collect(),
        }
    }

    /// What tells our next self of it, as a variable.
    pub fn variable(&self) -> Option<(&'static str, String)> {
        match self {
            Vault::Nobody | Vault::Lost { .. } => None,
            Vault::Keeper(link) => Some((image::KEEPER, link.number().to_string())),
            // It can't find out any more with which limit of open descriptors we were started.
            Vault::Systemd(store) => Some((OFFER, store.most.to_string())),
        }
    }

    /// Receives what an earlier manager has left.
    pub fn take_over(&mut self, inherited: &mut Inherited) -> io::Result<Option<Taken>> {
        let taken = match self {
            Vault::Nobody | Vault::Lost { .. } => Taken::default(),
            Vault::Keeper(link) => link.take_over()?,
            Vault::Systemd(store) => {
                let held = inherited.take_marked(MARK);
                store.held = held.keys().cloned().gather();
                Taken { held, stop: None }
            }
        };
        if taken.held.is_empty() && taken.stop.is_none() {
            return Ok(None);
        }
        Ok(Some(taken))
    }

    /// Says that the manager ends for good, and that nothing is to be taken over.
    pub fn end(&mut self) {
        match self {
            // The keeper ends with it.
            Vault::Nobody | Vault::Keeper(_) | Vault::Lost { .. } => {}
            Vault::Systemd(store) => store.release_all(),
        }
    }

    /// Has descriptors kept by these names, in place of what was kept by them before.
    pub fn hold(&mut self, fds: &[(&str, BorrowedFd<'_>)]) {
        match self {
            Vault::Nobody | Vault::Lost { .. } => {}
            Vault::Keeper(link) => link.hold(fds),
            Vault::Systemd(store) => store.hold(fds),
        }
    }

    /// Has what is kept by these names closed.
    pub fn release(&mut self, names: &[&str]) {
        match self {
            Vault::Nobody | Vault::Lost { .. } => {}
            Vault::Keeper(link) => link.release(names),
            Vault::Systemd(store) => store.release(names),
        }
    }

    /// Says that what was kept has been taken over.
    pub fn adopted(&mut self) -> io::Result<()> {
        match self {
            Vault::Nobody | Vault::Systemd(_) | Vault::Lost { .. } => Ok(()),
            Vault::Keeper(link) => link.adopted(),
        }
    }

    /// Has the keeper log as the manager does.
    pub fn log_as(&mut self, settings: (LogLevel, LogFormat)) {
        match self {
            Vault::Nobody | Vault::Systemd(_) | Vault::Lost { .. } => {}
            Vault::Keeper(link) => link.log_as(settings),
        }
    }

    /// An exit that was told of was acted on.
    pub fn reap(&mut self, pid: Pid) {
        match self {
            Vault::Nobody | Vault::Systemd(_) | Vault::Lost { .. } => {}
            Vault::Keeper(link) => link.reap(pid),
        }
    }

    /// A signal was read, and is about to be acted on: if the manager dies before this, the next one gets it.
    pub fn heard(&mut self, signal: i32) {
        match self {
            Vault::Nobody | Vault::Systemd(_) | Vault::Lost { .. } => {}
            Vault::Keeper(link) => link.heard(signal),
        }
    }

    /// Whether something waits for room: then [`Vault::as_link`] is to be waited for as writable, and flushed.
    pub fn is_full(&self) -> bool {
        match self {
            Vault::Nobody | Vault::Lost { .. } => false,
            Vault::Keeper(link) => link.is_full(),
            Vault::Systemd(store) => store.is_full(),
        }
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) {
        match self {
            Vault::Nobody | Vault::Lost { .. } => {}
            Vault::Keeper(link) => link.flush(),
            Vault::Systemd(store) => store.flush(),
        }
    }

    /// What has been said to the manager; None if nothing.
    pub fn receive(&mut self, epoll: &Epoll) -> Option<Word> {
        let Vault::Keeper(link) = self else {
            return None;
        };
        let word = link.receive()?;
        if word == Word::Gone {
            // Another descriptor of it may be open, by which it would be reported for ever.
            let _ = epoll.remove(link.as_fd());
            *self = Vault::Lost {
                keeper: link.keeper(),
                since: clock(),
            };
        }
        Some(word)
    }

    /// To wait for, if there is anything to wait for.
    pub fn as_link(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Vault::Nobody | Vault::Lost { .. } => None,
            Vault::Keeper(link) => Some(link.as_fd()),
            Vault::Systemd(store) => Some(store.connection.as_fd()),
        }
    }

    /// The way to the manager's parent, if it leads through the keeper.
    pub fn teller(&self) -> io::Result<Option<Teller>> {
        match self {
            Vault::Keeper(link) => link.teller().map(Some),
            Vault::Nobody | Vault::Systemd(_) | Vault::Lost { .. } => Ok(None),
        }
    }
}

/// systemd's store of descriptors, by sd_notify(3): it offers one by FDSTORE (systemd 254) in the environment, for which the
/// unit needs `FileDescriptorStoreMax=`. What it holds comes back through LISTEN_FDS.
#[derive(Debug)]
pub struct Store {
    connection: UnixDatagram,
    /// How many it takes.
    most: usize,
    /// The names of what it holds, or is going to.
    held: BTreeSet<String>,
    /// What there was no room for: to be held, or to be released. The latest word on each name.
    unsent: BTreeMap<String, Option<OwnedFd>>,
    /// Whether it was said that there are more than it takes.
    is_over: bool,
}

impl Store {
    fn offered() -> Option<Store> {
        let most = std::env::var(OFFER).ok()?.parse().ok();
        let most = most.filter(|most| *most > 0)?;
        Some(Store::new(notify_socket::connect()?, most))
    }

    fn new(connection: UnixDatagram, most: usize) -> Store {
        Store {
            connection,
            most,
            held: BTreeSet::new(),
            unsent: BTreeMap::new(),
            is_over: false,
        }
    }

    /// Takes no more than systemd could hand to a manager that is started with this limit of open descriptors: if there are more,
    /// it can't start one at all.
    fn fit(&mut self, limit: u64) {
        let room = usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
        self.most = self.most.min(room);
    }

    fn hold(&mut self, fds: &[(&str, BorrowedFd<'_>)]) {
        for (name, fd) in fds {
            let is_new = !self.held.contains(*name);
            if is_new && self.held.len() >= self.most {
                if !std::mem::replace(&mut self.is_over, true) {
                    log::warn!(
                        target: "manager",
                        "systemd can keep {} descriptors for the next manager, and there are more: raise `FileDescriptorStoreMax=` and `LimitNOFILE=`", self.most
                    );
                }
                continue;
            }
            self.held.insert((*name).to_owned());
            // The fewest have one before them, and nearly always there is room.
            if is_new && self.unsent.is_empty() && self.send_held(name, *fd).is_ok() {
                continue;
            }
            match fd.try_clone_to_owned() {
                Ok(fd) => drop(self.unsent.insert((*name).to_owned(), Some(fd))),
                Err(error) => {
                    log::warn!(target: "manager", "`{name}` is not kept by systemd: {error}");
                }
            }
        }
        self.flush();
    }

    fn release(&mut self, names: &[&str]) {
        for name in names {
            if self.held.remove(*name) {
                self.unsent.insert((*name).to_owned(), None);
            }
        }
        self.flush();
    }

    fn release_all(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.unsent = held.into_iter().map(|name| (name, None)).gather();
        self.flush();
    }

    fn is_full(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn flush(&mut self) {
        while let Some((name, fd)) = self.unsent.pop_first() {
            // systemd would keep both of two by one name.
            let mut sent = self.send_released(&name);
            if let (Ok(()), Some(fd)) = (&sent, &fd) {
                sent = self.send_held(&name, fd.as_fd());
            }
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent.insert(name, fd);
                    return;
                }
                Err(error) => {
                    log::warn!(target: "manager", "`{name}` is not kept by systemd: {error}");
                }
                Ok(()) => {}
            }
        }
    }

    fn send_held(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // systemd drops what it finds to be hung up or in error, which a UDP socket can be at any time.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={MARK}{name}\n");
        unix::send(&self.connection, text.as_bytes(), &[fd])
    }

    fn send_released(&self, name: &str) -> io::Result<()> {
        let text = format!("FDSTOREREMOVE=1\nFDNAME={MARK}{name}\n");
        unix::send(&self.connection, text.as_bytes(), &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::unix::Received;
    use std::fs::File;
    use std::io::{Read, Write};

    /// A store, and systemd's end of it.
    fn store(most: usize) -> (Vault, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        (Vault::Systemd(Store::new(near, most)), far)
    }

    /// The next message to systemd; None if there is none.
    fn heard(systemd: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
        let mut buffer = [0; 256];
        match unix::receive(systemd, &mut buffer).unwrap() {
            Received::Message { length, fds, .. } => {
                Some((String::from_utf8_lossy(&buffer[..length]).into_owned(), fds))
            }
            _ => None,
        }
    }

    fn texts(systemd: &UnixDatagram) -> Vec<String> {
        std::iter::from_fn(|| heard(systemd))
            .map(|(text, _)| text)
            .collect()
    }

    #[test]
    fn systemd_is_given_a_descriptor_by_its_name() {
        let (mut vault, systemd) = store(10);
        let (reader, mut writer) = io::pipe().unwrap();
        vault.hold(&[("s1", reader.as_fd())]);
        let (text, mut fds) = heard(&systemd).unwrap();
        assert_eq!(text, "FDSTORE=1\nFDPOLL=0\nFDNAME=tentpole/s1\n");
        writer.write_all(b"x").unwrap();
        let mut read = [0];
        File::from(fds.pop().unwrap())
            .read_exact(&mut read)
            .unwrap();
        assert_eq!((read, fds.len()), (*b"x", 0));
        vault.release(&["s1", "never held"]);
        assert_eq!(texts(&systemd), ["FDSTOREREMOVE=1\nFDNAME=tentpole/s1\n"]);
        vault.release(&["s1"]);
        assert_eq!(texts(&systemd), [""; 0]);
    }

    #[test]
    fn systemd_keeps_one_of_each_name() {
        let (mut vault, systemd) = store(1);
        let (reader, _writer) = io::pipe().unwrap();
        for _ in 0..2 {
            vault.hold(&[("ledger", reader.as_fd())]);
        }
        assert_eq!(
            texts(&systemd),
            [
                "FDSTORE=1\nFDPOLL=0\nFDNAME=tentpole/ledger\n",
                "FDSTOREREMOVE=1\nFDNAME=tentpole/ledger\n",
                "FDSTORE=1\nFDPOLL=0\nFDNAME=tentpole/ledger\n",
            ]
        );
        // There is no place for more.
        vault.hold(&[("s1", reader.as_fd())]);
        assert_eq!(texts(&systemd), [""; 0]);
        vault.end();
        assert_eq!(
            texts(&systemd),
            ["FDSTOREREMOVE=1\nFDNAME=tentpole/ledger\n"]
        );
    }

    #[test]
    fn no_more_is_stored_than_a_manager_can_be_started_with() {
        let (near, systemd) = UnixDatagram::pair().unwrap();
        let mut store = Store::new(near, 1000);
        store.fit(OTHERS + 2);
        assert_eq!(store.most, 2);
        store.fit(5000);
        assert_eq!(store.most, 2);
        let mut vault = Vault::Systemd(store);
        let (reader, _writer) = io::pipe().unwrap();
        for name in ["a", "b", "c"] {
            vault.hold(&[(name, reader.as_fd())]);
        }
        assert_eq!(texts(&systemd).len(), 2);
        assert_eq!(vault.stored(), ["a", "b"]);
        assert_eq!(vault.variable(), Some(("FDSTORE", "2".into())));
    }

    #[test]
    fn what_systemd_has_no_room_for_is_sent_later() {
        let (mut vault, systemd) = store(1000);
        let (reader, _writer) = io::pipe().unwrap();
        let names: Vec<String> = (0..500).map(|number| format!("s{number}")).collect();
        for name in &names {
            vault.hold(&[(name, reader.as_fd())]);
        }
        assert!(vault.is_full());
        // Of the last ones the latest word counts.
        vault.release(&["s499"]);
        let mut heard = Vec::new();
        while vault.is_full() {
            heard.extend(texts(&systemd));
            vault.flush();
        }
        heard.extend(texts(&systemd));
        let held = |name: &String| format!("FDSTORE=1\nFDPOLL=0\nFDNAME=tentpole/{name}\n");
        for name in &names[..499] {
            assert_eq!(
                heard.iter().filter(|text| **text == held(name)).count(),
                1,
                "{name}"
            );
        }
        assert!(!heard.contains(&held(&names[499])));
    }
}
