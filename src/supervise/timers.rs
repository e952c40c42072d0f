//! What is due when.

use super::state::Post;
use super::time::Time;
use super::{SocketId, WatcherId};
use std::collections::{BTreeSet, HashMap};

/// What a deadline belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Due {
    /// The whole stop is forced.
    Shutdown,
    /// The parent is asked for more time.
    Extension,
    /// The next watcher may start.
    Starts,
    /// A pause ends, or a bind is tried again.
    Socket(SocketId),
    /// The next worker of the watcher may be spawned.
    Watcher(WatcherId),
    /// Workers have not told that they have reloaded.
    Signalled(WatcherId),
    /// The deadline of what stands at a post: backoff, start, settling, watchdog, age, stop.
    Post(Post),
}

/// An index of all deadlines, derived from the states that hold them, so that no turn looks at every unit.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Time, Due)>,
    by_due: HashMap<Due, Time>,
}

impl Timers {
    /// Says when `due` is due now; `None` is never.
    pub fn set(&mut self, due: Due, at: Option<Time>) {
        let before = match at {
            Some(at) => self.by_due.insert(due, at),
            None => self.by_due.remove(&due),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, due));
        }
        if let Some(at) = at {
            self.by_time.insert((at, due));
        }
    }

    /// The next deadline.
    pub fn first(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one thing that is due by `now`.
    pub fn take(&mut self, now: Time) -> Option<Due> {
        let (at, due) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.set(due, None);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_deadline_that_moves_is_due_once() {
        let mut timers = Timers::default();
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        timers.set(Due::Starts, Some(at(1)));
        timers.set(Due::Starts, Some(at(3)));
        timers.set(Due::Shutdown, Some(at(2)));
        assert_eq!(timers.first(), Some(at(2)));
        assert_eq!(timers.take(at(5)), Some(Due::Shutdown));
        assert_eq!(timers.take(at(5)), Some(Due::Starts));
        assert_eq!(timers.take(at(5)), None);
        assert_eq!(timers.first(), None);
    }
}
