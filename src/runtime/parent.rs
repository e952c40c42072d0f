//! The manager towards its own parent, by sd-notify. Without NOTIFY_SOCKET all of it does nothing.

use super::keeper::Teller;
use super::{notify_socket, vault::Vault};
use crate::supervise::{ParentNotice, Time};
use crate::sys::output;
use sd_notify::NotifyState;
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// How long to wait for a parent whose queue is full.
const RETRY: Duration = Duration::from_millis(100);

/// Whoever started the manager and wants to know how it is.
#[derive(Debug)]
pub struct Parent {
    route: Option<Route>,
    /// What there was no room for, and when to try again.
    backlog: VecDeque<ParentNotice>,
    retry: Option<Time>,
    /// WATCHDOG=1 is wanted this often, and next then.
    watchdog: Option<(Duration, Time)>,
}

/// The way to the parent. Whether there is room is looked at before each message: a send to a full queue would block, and
/// a manager must not stand still because its parent does.
#[derive(Debug)]
enum Route {
    Direct(UnixDatagram),
    /// The parent listens to the process that it has started.
    Keeper(Teller),
}

impl Route {
    fn has_room(&self) -> bool {
        match self {
            Route::Direct(connection) => output::writable_now(connection),
            Route::Keeper(teller) => output::writable_now(teller),
        }
    }

    fn send(&self, text: &str) -> io::Result<()> {
        match self {
            Route::Direct(connection) => connection.send(text.as_bytes()).map(drop),
            Route::Keeper(teller) => teller.send(text.as_bytes()),
        }
    }
}

/// How often the parent wants to hear WATCHDOG=1, if it does. To be asked by the process that it has started.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

impl Parent {
    /// By this process's environment, and through the keeper if there is one.
    pub fn new(vault: &Vault, watchdog: Option<Duration>, now: Time) -> Parent {
        let route = match vault.teller() {
            Ok(None) => notify_socket::connect().map(Route::Direct),
            Ok(Some(teller)) => notify_socket::name().map(|_| Route::Keeper(teller)),
            Err(error) => {
                log::warn!(target: "manager", "the parent can't be notified: {error}");
                None
            }
        };
        // Half of what is asked for, as sd_watchdog_enabled(3) advises.
        let interval = watchdog
            .map(|interval| interval / 2)
            .filter(|_| route.is_some());
        let watchdog = interval.map(|interval| (interval.max(Duration::from_millis(1)), now));
        Parent {
            route,
            backlog: VecDeque::new(),
            retry: None,
            watchdog,
        }
    }

    /// Whether there is any.
    pub fn listens(&self) -> bool {
        self.route.is_some()
    }

    /// Says one thing.
    pub fn tell(&mut self, notice: ParentNotice, now: Time) {
        if !self.listens() {
            return;
        }
        if matches!(notice, ParentNotice::Status(_)) {
            self.backlog
                .retain(|waiting| !matches!(waiting, ParentNotice::Status(_)));
        }
        self.backlog.push_back(notice);
        self.send_backlog(now);
    }

    /// Does what is due: WATCHDOG=1, and what there was no room for.
    pub fn tick(&mut self, now: Time) {
        if self.retry.is_some_and(|at| at <= now) {
            self.send_backlog(now);
        }
        if let Some((interval, next)) = self.watchdog.filter(|(_, next)| *next <= now) {
            if self.has_room() {
                self.send(&[NotifyState::Watchdog]);
            }
            self.watchdog = Some((interval, next.max(now) + interval));
        }
    }

    /// When [`Parent::tick`] is due.
    pub fn next_tick(&self) -> Option<Time> {
        [self.retry, self.watchdog.map(|(_, next)| next)]
            .into_iter()
            .flatten()
            .min()
    }

    fn has_room(&self) -> bool {
        self.route.as_ref().is_some_and(Route::has_room)
    }

    fn send_backlog(&mut self, now: Time) {
        while !self.backlog.is_empty() {
            if !self.has_room() {
                self.retry = Some(now + RETRY);
                return;
            }
            match self.backlog.pop_front() {
                Some(ParentNotice::Ready) => self.send(&[NotifyState::Ready]),
                Some(ParentNotice::Reloading) => {
                    // Without the time systemd would not believe it (sd_notify(3)).
                    if let Ok(now) = NotifyState::monotonic_usec_now() {
                        self.send(&[NotifyState::Reloading, now]);
                    }
                }
                Some(ParentNotice::Stopping) => self.send(&[NotifyState::Stopping]),
                Some(ParentNotice::Status(text)) => self.send(&[NotifyState::Status(&text)]),
                Some(ParentNotice::Extend(duration)) => {
                    let microseconds = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
                    self.send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
                }
                None => {}
            }
        }
        self.retry = None;
    }

    /// By our own connection: `sd_notify::notify` of 0.5 knows paths only, and systemd's own NOTIFY_SOCKET may be an
    /// abstract name.
    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(route) = &self.route else {
            return;
        };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = route.send(&text) {
            log::debug!(target: "manager", "the parent could not be notified: {error}");
        }
    }
}
