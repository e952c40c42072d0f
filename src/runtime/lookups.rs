//! Host names that sockets are to be bound to: looked up beside the loop, which never waits for a name server.

use super::listeners::Names;
use super::{Manager, Token};
use crate::supervise::{Event, SocketId};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::lookup::{Found, Lookup};
use crate::sys::signals::SignalFd;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

/// So many names are looked up at a time.
const MOST_AT_ONCE: usize = 64;

/// A start waits so long for names of optional sockets, so that they are there from the beginning where all is well.
const GRACE: Duration = Duration::from_millis(250);

/// The lookups that are under way.
#[derive(Default)]
pub struct Lookups {
    /// By the number in their token.
    running: BTreeMap<u64, (String, Lookup)>,
    waiting: VecDeque<String>,
    /// Those that could not be begun.
    failed: Vec<(String, Found)>,
    next: u64,
    /// The sockets that are bound when their name is found.
    seekers: BTreeMap<String, BTreeSet<SocketId>>,
}

impl Lookups {
    /// Looks `name` up, unless that is under way.
    pub fn ask(&mut self, epoll: &Epoll, name: &str) {
        let is_running = self.running.values().any(|(running, _)| running == name);
        if !is_running && !self.waiting.iter().any(|waiting| waiting == name) {
            self.waiting.push_back(name.to_owned());
            self.begin_some(epoll);
        }
    }

    fn begin_some(&mut self, epoll: &Epoll) {
        while self.running.len() < MOST_AT_ONCE
            && let Some(name) = self.waiting.pop_front()
        {
            let begun = Lookup::begin(&name).and_then(|lookup| {
                let token = Token::Lookup(self.next).pack();
                epoll.add(&lookup, token, Interest::Readable)?;
                Ok(lookup)
            });
            match begun {
                Ok(lookup) => {
                    self.running.insert(self.next, (name, lookup));
                    self.next += 1;
                }
                Err(error) => self.failed.push((name, Err(error.to_string()))),
            }
        }
    }

    /// What has come of the lookup of this number, if it is over.
    fn take(&mut self, epoll: &Epoll, number: u64) -> Option<(String, Found)> {
        let (_, lookup) = self.running.get_mut(&number)?;
        let found = lookup.outcome()?;
        let (name, lookup) = self.running.remove(&number)?;
        // Closing it would do as well.
        let _ = epoll.remove(&lookup);
        self.begin_some(epoll);
        Some((name, found))
    }

    /// Whether there is something to be taken without waiting.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }
}

impl Manager {
    /// Binds a socket when the name that it listens on is found.
    pub(super) fn bind_when_found(&mut self, name: &str, socket: SocketId) {
        let seekers = self.lookups.seekers.entry(name.to_owned()).or_default();
        seekers.insert(socket);
        self.lookups.ask(&self.epoll, name);
    }

    pub(super) fn take_lookup(&mut self, number: u64) {
        if let Some((name, found)) = self.lookups.take(&self.epoll, number) {
            self.looked_up(&name, &found);
        }
    }

    /// Those that could not even be begun.
    pub(super) fn take_failed_lookups(&mut self) {
        for (name, found) in std::mem::take(&mut self.lookups.failed) {
            self.looked_up(&name, &found);
        }
    }

    fn looked_up(&mut self, name: &str, found: &Found) {
        for socket in self.lookups.seekers.remove(name).unwrap_or_default() {
            let event = self.bind(socket, found);
            self.dispatch(event);
        }
        self.apply_what_was_found(name, found);
    }

    /// Binds a socket, whose name was looked up, if it has one.
    pub(super) fn bind(&mut self, socket: SocketId, found: &Found) -> Event {
        match self.listeners.bind(socket, found) {
            Ok(()) => Event::Bound { socket },
            Err(error) => Event::BindFailed { socket, error },
        }
    }
}

/// Looks names up before there is a loop. `None` if a signal of `stop` came before the `needed` ones were there; those of
/// `optional` are not waited for long.
pub fn look_up_all(
    needed: &BTreeSet<&str>,
    optional: &BTreeSet<&str>,
    stop: &SignalFd,
) -> io::Result<Option<Names>> {
    let mut names = Names::new();
    let mut epoll = Epoll::new()?;
    epoll.add(stop, Token::Signals.pack(), Interest::Readable)?;
    let mut lookups = Lookups::default();
    for name in needed.union(optional) {
        lookups.ask(&epoll, name);
    }
    let until = Instant::now() + GRACE;
    loop {
        names.extend(std::mem::take(&mut lookups.failed));
        let is_missing = |name: &&str| !names.contains_key(*name);
        let timeout = if needed.iter().any(&is_missing) {
            None
        } else {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !optional.iter().any(is_missing) {
                break;
            }
            Some(left)
        };
        let ready = epoll.wait(timeout)?;
        let tokens: Vec<Token> = (ready.iter())
            .filter_map(|ready| Token::unpack(ready.token))
            .collect();
        for token in tokens {
            match token {
                Token::Lookup(number) => names.extend(lookups.take(&epoll, number)),
                _ => return Ok(None),
            }
        }
    }
    for name in optional {
        let unknown = || Err("there is no answer yet".to_owned());
        names.entry((*name).to_owned()).or_insert_with(unknown);
    }
    Ok(Some(names))
}
