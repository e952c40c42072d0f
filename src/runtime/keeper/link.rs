//! The manager's end of the link to its keeper.

use super::VARIABLE;
use super::protocol::{FromKeeper, LONGEST, LONGEST_TEXT, MOST_AT_ONCE, ToKeeper, is_name};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::inherit;
use crate::sys::process::{Exit, Pid};
use crate::sys::unix::{self, Received};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a new manager waits for what is held.
const PATIENCE: Duration = Duration::from_secs(10);

/// The link. What there is no room for waits in it, the latest word on each name, so it never holds more than there are
/// names.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// There is no earlier manager whose place this one takes.
    is_first: bool,
    /// To be held, or to be released.
    unsent: BTreeMap<String, Option<OwnedFd>>,
    /// To be reaped. The keeper tells of one exit at a time.
    reap: Option<Pid>,
    /// Heard, and not said to be.
    heard: BTreeSet<i32>,
}

/// What a new manager finds.
#[derive(Debug, Default)]
pub struct Taken {
    /// Descriptors by their names.
    pub held: BTreeMap<String, OwnedFd>,
    /// The last signal to stop that an earlier manager has heard, and may have had no time to act on.
    pub stop: Option<i32>,
}

/// What the keeper says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A child of the keeper has ended. [`Link::reap`] must follow.
    Exited(Exited),
    /// The keeper is no more. Nothing else comes.
    Gone,
}

/// A child of the keeper has ended: a worker of an earlier manager, or an orphan. It is a zombie, so its number, and that of
/// its group, are still its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Its number.
    pub pid: Pid,
    /// Its process group, if that could be told.
    pub group: Option<Pid>,
    /// How.
    pub exit: Exit,
}

impl Link {
    pub(super) fn new(socket: OwnedFd, is_first: bool) -> Link {
        Link {
            socket,
            is_first,
            unsent: BTreeMap::new(),
            reap: None,
            heard: BTreeSet::new(),
        }
    }

    /// The link to the keeper that has started this process to take over from another manager, if one has.
    pub fn inherited() -> Option<Link> {
        inherit::message_socket(VARIABLE).map(|socket| Link::new(socket, false))
    }

    /// The link of the program that has executed this one in its place: there is nothing to take over by it.
    pub fn handed_on() -> Option<Link> {
        inherit::message_socket(VARIABLE).map(|socket| Link::new(socket, true))
    }

    /// Its descriptor's number, which survives an exec if that is asked for.
    pub fn number(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Receives all that is held: nothing for the first manager. Nothing else may be asked of the keeper before. The limit of
    /// open descriptors must be as high as it will be.
    pub fn take_over(&mut self) -> io::Result<Taken> {
        if self.is_first {
            return Ok(Taken::default());
        }
        let mut epoll = Epoll::new()?;
        epoll.add(&self.socket, 0, Interest::Readable)?;
        let mut buffer = [0; LONGEST];
        let mut taken = Taken::default();
        unix::send(&self.socket, &ToKeeper::Hello.encode(), &[])?;
        loop {
            if epoll.wait(Some(PATIENCE))?.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (length, fds) = match unix::receive(&self.socket, &mut buffer)? {
                Received::Message {
                    truncated: true, ..
                } => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
                Received::Message { length, fds, .. } => (length, fds),
                Received::Nothing => continue,
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            // A later keeper may say more than this manager knows of.
            let Some(FromKeeper::Held { left, stop, names }) =
                FromKeeper::decode(&buffer[..length])
            else {
                continue;
            };
            taken
                .held
                .extend(names.into_iter().map(str::to_owned).zip(fds));
            taken.stop = stop;
            if left == 0 {
                return Ok(taken);
            }
            unix::send(&self.socket, &ToKeeper::More.encode(), &[])?;
        }
    }

    /// Says that this manager has taken over.
    pub fn adopted(&mut self) -> io::Result<()> {
        if self.is_first {
            return Ok(());
        }
        unix::send(&self.socket, &ToKeeper::Adopted.encode(), &[])
    }

    /// Has descriptors held by these names, in place of what was held by them before.
    pub fn hold(&mut self, fds: &[(&str, BorrowedFd<'_>)]) {
        for part in fds.chunks(MOST_AT_ONCE) {
            if self.unsent.is_empty() && self.send_held(part).is_ok() {
                continue;
            }
            for (name, fd) in part.iter().filter(|(name, _)| is_name(name)) {
                match fd.try_clone_to_owned() {
                    Ok(fd) => drop(self.unsent.insert((*name).to_owned(), Some(fd))),
                    Err(error) => {
                        log::warn!(target: "manager", "`{name}` is not held by the keeper: {error}");
                    }
                }
            }
        }
        self.flush();
    }

    /// Has the keeper close what it holds by these names.
    pub fn release(&mut self, names: &[&str]) {
        let names = names.iter().filter(|name| is_name(name));
        self.unsent
            .extend(names.map(|name| ((*name).to_owned(), None)));
        self.flush();
    }

    /// What was told of this process was acted on.
    pub fn reap(&mut self, pid: Pid) {
        self.reap = Some(pid);
        self.flush();
    }

    /// A signal was read, and is about to be acted on: if the manager dies before this, the next one gets it.
    pub fn heard(&mut self, signal: i32) {
        self.heard.insert(signal);
        self.flush();
    }

    /// Whether something waits for room: then the link is to be waited for as writable, and flushed.
    pub fn is_full(&self) -> bool {
        self.reap.is_some() || !self.heard.is_empty() || !self.unsent.is_empty()
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) {
        if !self.is_full() || self.send_unsent().is_ok() {
            return;
        }
        // A keeper that is no more shows in `receive`.
    }

    fn send_unsent(&mut self) -> io::Result<()> {
        if let Some(pid) = self.reap {
            unix::send(&self.socket, &ToKeeper::Reap(pid).encode(), &[])?;
            self.reap = None;
        }
        while let Some(signal) = self.heard.first().copied() {
            unix::send(&self.socket, &ToKeeper::Heard(signal).encode(), &[])?;
            self.heard.remove(&signal);
        }
        while !self.unsent.is_empty() {
            let gone = self.unsent.iter().filter(|(_, fd)| fd.is_none());
            let gone: Vec<&str> = gone
                .map(|(name, _)| name.as_str())
                .take(MOST_AT_ONCE)
                .collect();
            let sent: Vec<String> = if gone.is_empty() {
                let held = self.unsent.iter();
                let held =
                    held.filter_map(|(name, fd)| Some((name.as_str(), fd.as_ref()?.as_fd())));
                let held: Vec<(&str, BorrowedFd<'_>)> = held.take(MOST_AT_ONCE).collect();
                self.send_held(&held)?;
                held.iter().map(|(name, _)| (*name).to_owned()).collect()
            } else {
                unix::send(&self.socket, &ToKeeper::Release(gone.clone()).encode(), &[])?;
                gone.into_iter().map(str::to_owned).collect()
            };
            for name in sent {
                self.unsent.remove(&name);
            }
        }
        Ok(())
    }

    fn send_held(&self, fds: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
        if let Some((name, _)) = fds.iter().find(|(name, _)| !is_name(name)) {
            log::error!(target: "manager", "`{name}` can't be held: the name is empty or too long");
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (names, fds): (Vec<&str>, Vec<BorrowedFd<'_>>) = fds.iter().copied().unzip();
        unix::send(&self.socket, &ToKeeper::Hold(names).encode(), &fds)
    }

    /// What the keeper has said; None if nothing. After [`Word::Gone`] the link is of no use.
    pub fn receive(&mut self) -> Option<Word> {
        let mut buffer = [0; 256];
        loop {
            match unix::receive(&self.socket, &mut buffer) {
                Ok(Received::Nothing) => return None,
                Ok(Received::Message { length, .. }) => {
                    if let Some(FromKeeper::Exited { pid, group, exit }) =
                        FromKeeper::decode(&buffer[..length])
                    {
                        return Some(Word::Exited(Exited { pid, group, exit }));
                    }
                }
                Ok(Received::End) => return Some(Word::Gone),
                Err(error) => {
                    log::error!(target: "manager", "the link to the keeper failed: {error}");
                    return Some(Word::Gone);
                }
            }
        }
    }

    /// For words to the manager's parent.
    pub fn teller(&self) -> io::Result<Teller> {
        self.socket.try_clone().map(Teller)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Speaks to the manager's parent by way of the keeper.
#[derive(Debug)]
pub struct Teller(OwnedFd);

impl Teller {
    /// Says one thing, at most 4096 bytes. WouldBlock if there is no room.
    pub fn send(&self, text: &[u8]) -> io::Result<()> {
        if text.len() > LONGEST_TEXT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        unix::send(&self.0, &ToKeeper::Tell(text).encode(), &[])
    }
}

impl AsFd for Teller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
