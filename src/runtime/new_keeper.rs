//! A keeper in place of one that was killed.
//!
//! The manager forks, as the first process did ([`keeper::begin`]). What goes on as the manager is the child: it has all that
//! this process had in its memory and its descriptors, so no command and no client notices. This process, which the
//! workers are children of, becomes their keeper. Of a worker that an earlier keeper was the parent of, whoever is so now,
//! nobody tells: it is watched.

use super::keeper::{self, Origin};
use super::parent::Parent;
use super::vault::Vault;
use super::{Manager, Time, Token, clock, logger};
use crate::sys::epoll::Interest;
use crate::sys::process;
use std::io;
use std::time::Duration;

/// Who kills the keeper and then the manager has made up his mind, and shall not find yet another.
const PAUSE: Duration = Duration::from_millis(200);

impl Manager {
    pub(super) fn keeper_is_gone(&self) {
        log::warn!(target: "manager", "the keeper is gone: if the manager dies too before there is another, nothing of it is kept");
    }

    /// When to make another keeper, if there is to be one.
    pub(super) fn new_keeper_due(&self) -> Option<Time> {
        match self.keeping.vault {
            Vault::Lost { since, .. } => Some(since + PAUSE),
            Vault::Nobody | Vault::Keeper(_) | Vault::Systemd(_) => None,
        }
    }

    /// Makes a keeper in place of one that is gone. It is left at that where there can be none.
    pub(super) fn make_keeper(&mut self) {
        let Vault::Lost { keeper, .. } = self.keeping.vault else {
            return;
        };
        let gone = self.processes.watch_strangers(&self.epoll);
        self.have_ended_unseen(gone);
        // Of one that lives, though the link to it has failed, it would not know how to be the child.
        let made = match keeper == process::parent() {
            true => Err(io::Error::other("the link to it has failed")),
            false => keeper::begin(Origin {
                signals: &self.signals,
                program: self.program.clone(),
                nofile: self.home.nofile,
                is_sole: self.home.is_sole,
            }),
        };
        let link = match made {
            Ok(link) => link,
            Err(error) => {
                log::error!(target: "manager", "there is no keeper any more, so nothing outlives this manager: {error}");
                self.keeping.vault = Vault::Nobody;
                return;
            }
        };
        self.keeping.vault = Vault::Keeper(link);
        if let Err(error) = self.move_in() {
            log::error!(target: "manager", "becoming the child of a new keeper: {error}");
        }
        let pid = process::parent().map_or(0, process::Pid::as_raw);
        log::info!(target: "manager", "pid {pid} is the keeper now, and the manager goes on as pid {}", process::Pid::own());
    }

    /// Does in the new process what the old one had done for itself, and hands the keeper what it is to hold.
    fn move_in(&mut self) -> io::Result<()> {
        self.home.is_heir = true;
        let others = self.processes.parents_of_strangers();
        self.home.is_sole &= others.is_empty();
        self.leftovers.move_to(process::parent(), others);
        self.parent = Parent::new(&self.keeping.vault, self.watchdog, clock());
        self.keeping.vault.log_as(logger::settings());
        self.hold_anew();
        process::set_subreaper()?;
        // The set has the descriptor as it tells of the signals of the process that has added it.
        self.epoll.remove(&self.signals)?;
        self.epoll
            .add(&self.signals, Token::Signals.pack(), Interest::Readable)?;
        if let Some(link) = self.keeping.vault.as_link() {
            self.epoll
                .add(link, Token::Vault.pack(), Interest::Readable)?;
        }
        Ok(())
    }
}
