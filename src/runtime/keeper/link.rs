//! The manager's end of the link to its keeper.

use super::super::image::KEEPER;
use super::protocol::{FromKeeper, LONGEST, LONGEST_TEXT, MOST_AT_ONCE, ToKeeper, is_name};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::inherit;
use crate::sys::process::{self, Exit, Pid};
use crate::sys::unix::{self, Received};
use crate::unit::{LogFormat, LogLevel};
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
    /// Its other end: our parent, as long as it lives.
    keeper: Option<Pid>,
    /// There is no earlier manager whose place this one takes.
    is_first: bool,
    /// To be held, or to be released.
    unsent: BTreeMap<String, Option<OwnedFd>>,
    /// To be reaped. The keeper tells of one exit at a time.
    reap: Option<Pid>,
    /// Heard, and not said to be.
    heard: BTreeSet<i32>,
    /// How the keeper is to log, and was not told to.
    log: Option<(LogLevel, LogFormat)>,
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
            keeper: process::parent(),
            is_first,
            unsent: BTreeMap::new(),
            reap: None,
            heard: BTreeSet::new(),
            log: None,
        }
    }

    /// The link to the keeper that has started this process to take over from another manager, if one has.
    pub fn inherited() -> Option<Link> {
        inherit::message_socket(KEEPER).map(|socket| Link::new(socket, false))
    }

    /// The link of the program that has executed this one in its place: there is nothing to take over by it.
    pub fn handed_on() -> Option<Link> {
        inherit::message_socket(KEEPER).map(|socket| Link::new(socket, true))
    }

    /// The keeper's process.
    pub fn keeper(&self) -> Option<Pid> {
        self.keeper
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
        let (fit, unfit): (Vec<_>, Vec<_>) = fds.iter().partition(|(name, _)| is_name(name));
        for (name, _) in unfit {
            log::error!(target: "manager", "`{name}` is not held by the keeper: the name is empty or too long");
        }
        for part in fit.chunks(MOST_AT_ONCE) {
            if self.unsent.is_empty() && self.send_held(part).is_ok() {
                continue;
            }
            for (name, fd) in part {
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

    /// Has the keeper log as the manager does.
    pub fn log_as(&mut self, settings: (LogLevel, LogFormat)) {
        self.log = Some(settings);
        self.flush();
    }

    /// Whether something waits for room: then the link is to be waited for as writable, and flushed.
    pub fn is_full(&self) -> bool {
        self.reap.is_some()
            || !self.heard.is_empty()
            || self.log.is_some()
            || !self.unsent.is_empty()
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) {
        if self.is_full() {
            // No room is no error, and a keeper that is no more shows in `receive`.
            let _ = self.send_unsent();
        }
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
        if let Some((level, format)) = self.log {
            unix::send(&self.socket, &ToKeeper::Log(level, format).encode(), &[])?;
            self.log = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory;
    use proptest::prelude::*;

    /// What a keeper does with holds and releases.
    fn obey(socket: &OwnedFd, held: &mut BTreeMap<String, OwnedFd>, most: usize) -> usize {
        let mut buffer = [0; LONGEST];
        for count in 0..most {
            let (length, fds) = match unix::receive(socket, &mut buffer).unwrap() {
                Received::Message {
                    length,
                    fds,
                    truncated,
                } => {
                    assert!(!truncated);
                    (length, fds)
                }
                _ => return count,
            };
            match ToKeeper::decode(&buffer[..length]).unwrap() {
                ToKeeper::Hold(names) => {
                    assert_eq!(names.len(), fds.len());
                    held.extend(names.into_iter().map(str::to_owned).zip(fds));
                }
                ToKeeper::Release(names) => held.retain(|name, _| !names.contains(&name.as_str())),
                other => panic!("{other:?}"),
            }
        }
        most
    }

    fn link() -> (Link, OwnedFd) {
        let (near, far) = unix::message_pair().unwrap();
        (Link::new(near, true), far)
    }

    #[test]
    fn many_are_held_by_few_messages() {
        let (mut link, keeper) = link();
        let file = memory::file(c"tentpole-test").unwrap();
        let names: Vec<String> = (0..1000).map(|number| format!("s{number}")).collect();
        let fds: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), file.as_fd()))
            .collect();
        link.hold(&fds);
        let mut held = BTreeMap::new();
        let messages = obey(&keeper, &mut held, usize::MAX);
        assert_eq!(messages, 1000usize.div_ceil(MOST_AT_ONCE));
        assert!(!link.is_full());
        assert_eq!(held.len(), 1000);
    }

    #[test]
    fn a_name_that_nobody_could_keep_does_no_harm_to_others() {
        let (mut link, keeper) = link();
        let file = memory::file(c"tentpole-test").unwrap();
        let long = "x".repeat(101);
        link.hold(&[
            ("a", file.as_fd()),
            (&long, file.as_fd()),
            ("", file.as_fd()),
        ]);
        link.release(&[&long, ""]);
        let mut held = BTreeMap::new();
        obey(&keeper, &mut held, usize::MAX);
        assert_eq!(held.into_keys().collect::<Vec<_>>(), ["a"]);
        assert!(!link.is_full());
    }

    #[test]
    fn what_stands_between_is_no_reason_to_wait() {
        let (mut link, keeper) = link();
        let file = memory::file(c"tentpole-test").unwrap();
        // Nobody reads; there are never more to wait than there are names.
        for _ in 0..2000 {
            link.hold(&[("a", file.as_fd()), ("b", file.as_fd())]);
            link.release(&["a"]);
        }
        assert!(link.is_full());
        assert_eq!(link.unsent.len(), 2);
        link.reap(Pid::own());
        link.heard(15);
        let mut held = BTreeMap::new();
        let mut buffer = [0; LONGEST];
        // As many as make room.
        obey(&keeper, &mut held, 100);
        link.flush();
        assert!(!link.is_full());
        let mut last = Vec::new();
        while let Received::Message { length, .. } = unix::receive(&keeper, &mut buffer).unwrap() {
            last.push(buffer[..length].to_vec());
        }
        let own = [
            ToKeeper::Reap(Pid::own()).encode(),
            ToKeeper::Heard(15).encode(),
            ToKeeper::Release(vec!["a"]).encode(),
            ToKeeper::Hold(vec!["b"]).encode(),
        ];
        assert_eq!(last[last.len() - 4..], own);
    }

    #[test]
    fn the_end_of_the_keeper_is_told_and_harms_nobody() {
        let (mut link, keeper) = link();
        let told = FromKeeper::Exited {
            pid: Pid::own(),
            group: None,
            exit: Exit::Code(3),
        };
        unix::send(&keeper, &[9, 99, 1, 2], &[]).unwrap();
        unix::send(&keeper, &told.encode(), &[]).unwrap();
        drop(keeper);
        let exited = Exited {
            pid: Pid::own(),
            group: None,
            exit: Exit::Code(3),
        };
        assert_eq!(link.receive(), Some(Word::Exited(exited)));
        assert_eq!(link.receive(), Some(Word::Gone));
        link.release(&["a"]);
        let error = link.teller().unwrap().send(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    proptest! {
        #[test]
        fn the_keeper_holds_what_the_last_word_says(
            steps in proptest::collection::vec((any::<bool>(), 0u8..20, 0usize..4), 0..400),
        ) {
            let (mut link, keeper) = link();
            let file = memory::file(c"tentpole-test").unwrap();
            let (mut held, mut model) = (BTreeMap::new(), BTreeSet::new());
            for (hold, name, read) in steps {
                let name = format!("{name:0>90}");
                if hold {
                    link.hold(&[(&name, file.as_fd())]);
                    model.insert(name);
                } else {
                    link.release(&[&name]);
                    model.remove(&name);
                }
                obey(&keeper, &mut held, read);
            }
            while link.is_full() || obey(&keeper, &mut held, usize::MAX) > 0 {
                link.flush();
            }
            prop_assert_eq!(held.into_keys().collect::<BTreeSet<_>>(), model);
        }
    }
}
