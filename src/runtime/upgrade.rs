//! Executing another version of the program in place, with everything that this one has.
//!
//! The new program is asked first whether it can read the state: it is run beside this one, with a copy of it
//! (`tentpole probe-state 3`). Only if it says so, this process executes it. Until the exec itself nothing has changed, and
//! if that fails too, this manager goes on.

use super::adopt;
use super::image::{self, UPGRADE};
use super::ledger::Ledger;
use super::record::{CONTROL, Handover, LEDGER, NOTIFY};
use super::{Manager, Time, clock};
use crate::control::call::{Failure, Reply};
use crate::supervise::RequestId;
use crate::sys::process::{self, Exit, Pid};
use crate::sys::spawn::Spawn;
use crate::sys::{fork, inherit, memory, output};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

/// What the probe is called on the command line.
pub const PROBE: &str = "probe-state";

/// The probe's descriptor of the ledger.
const PROBE_FD: i32 = 3;

/// How long the probe may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most of what a probe says that is read, in bytes, and passed on, in characters.
const LONGEST_ANSWER: u64 = 4096;
const MOST_TOLD: usize = 400;

/// An upgrade that has begun.
pub struct Upgrade {
    /// Who asked.
    request: RequestId,
    program: PathBuf,
    probe: Pid,
    /// What the probe says.
    answer: File,
    /// What it says if it can go on.
    expected: String,
    until: Time,
}

impl Manager {
    /// Upgrades for a client, who is answered by this program if it comes to nothing, else by the next.
    pub(super) fn upgrade_for(&mut self, connection: u64, request: RequestId, no_wait: bool) {
        match self.begin_upgrade(request) {
            Ok(()) if no_wait => {
                let reply = Ok(Reply::Done { message: None });
                self.server.answer(&self.epoll, connection, &reply);
                self.own_requests.insert(request);
            }
            Ok(()) => {}
            Err(reason) => {
                let reply = Err(Failure::Refused { reason });
                self.server.answer(&self.epoll, connection, &reply);
            }
        }
    }

    /// The same because of SIGUSR2: what becomes of it is logged.
    pub(super) fn upgrade_by_signal(&mut self) {
        let request = self.server.new_request();
        self.own_requests.insert(request);
        if let Err(reason) = self.begin_upgrade(request) {
            self.own_requests.remove(&request);
            log::error!(target: "manager", "no upgrade: {reason}");
        }
    }

    fn begin_upgrade(&mut self, request: RequestId) -> Result<(), String> {
        if self.upgrade.is_some() {
            return Err("another upgrade is under way".into());
        }
        let Some(program) = self.program.clone() else {
            return Err("it is not known from where this program was started".into());
        };
        let handover = self.handover(&[]);
        let (state, records) = self
            .save_all(&handover)
            .map_err(|error| format!("the state can't be written: {error}"))?;
        let answer = memory::file(c"tentpole-answer")
            .map_err(|error| format!("the new program can't be asked: {error}"))?;
        let path = image::c_string(program.clone().into_os_string());
        let null = output::empty().map_err(|error| format!("/dev/null: {error}"))?;
        let mut argv = vec![
            path.clone(),
            image::c_string(PROBE.into()),
            image::c_string(PROBE_FD.to_string().into()),
        ];
        // It will be executed with these, so it must know them too.
        argv.extend(image::arguments().into_iter().skip(1));
        let env = image::environment(&[], &[]);
        let fds = [
            (null.as_fd(), 0),
            (answer.as_fd(), 1),
            (answer.as_fd(), 2),
            (state.fd(), PROBE_FD),
        ];
        let probe = self
            .processes
            .spawn_program(&Spawn {
                candidates: &[path],
                argv: &argv,
                env: &env.iter().map(|entry| &**entry).collect::<Vec<_>>(),
                fds: &fds,
                ..Spawn::default()
            })
            .map_err(|error| format!("{}: {error}; nothing has changed", program.display()))?;
        log::info!(target: "manager", "{} is asked whether it can go on from here", program.display());
        self.upgrade = Some(Upgrade {
            request,
            program,
            probe,
            answer,
            expected: has_read(records),
            until: clock() + PATIENCE,
        });
        Ok(())
    }

    /// When [`Manager::look_at_upgrade`] is due.
    pub(super) fn upgrade_deadline(&self) -> Option<Time> {
        self.upgrade.as_ref().map(|upgrade| upgrade.until)
    }

    /// A probe that takes too long is none.
    pub(super) fn look_at_upgrade(&mut self, now: Time) {
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.until <= now) {
            upgrade.until = Time::NEVER;
            // Its end is taken as its answer.
            let _ = process::kill(upgrade.probe, libc::SIGKILL);
        }
    }

    /// A child has ended. Says whether it was the probe.
    pub(super) fn take_probe_exit(&mut self, pid: Pid, exit: Exit) -> bool {
        let Some(upgrade) = self.upgrade.take_if(|upgrade| upgrade.probe == pid) else {
            return false;
        };
        match exit {
            Exit::Code(0) if upgrade.answer().trim() == upgrade.expected => {
                self.executing = Some(upgrade);
            }
            exit => {
                let reason = upgrade.why_not(exit);
                self.refuse_upgrade(upgrade.request, reason);
            }
        }
        true
    }

    fn refuse_upgrade(&mut self, request: RequestId, reason: String) {
        log::error!(target: "manager", "no upgrade: {reason}");
        if !self.own_requests.remove(&request) {
            let reply = Err(Failure::Failed { reason });
            self.server.answer_request(&self.epoll, request, &reply);
        }
    }

    /// Becomes the new program, if one has said that it can go on from here. Returns only if nothing comes of it.
    pub(super) fn execute(&mut self) {
        let Some(upgrade) = self.executing.take() else {
            return;
        };
        // Where there is to be another keeper: the next program has no way to know that there was one.
        self.make_keeper();
        // The lookups that it waits for end with this program.
        self.refuse_applying(&Failure::Superseded {
            by: "upgrade".into(),
        });
        let Err(error) = self.try_execute(&upgrade) else {
            return;
        };
        let reason = format!(
            "{} could not be executed: {error}; nothing has changed",
            upgrade.program.display()
        );
        self.refuse_upgrade(upgrade.request, reason);
    }

    fn try_execute(&mut self, upgrade: &Upgrade) -> io::Result<()> {
        self.save();
        if self.keeping.vault.is_full() {
            return Err(io::Error::other("the keeper is busy; try again"));
        }
        // What has ended is still there for the new program to see, and so is what has been said.
        let handover = self.handover(&[upgrade.request]);
        let (ledger, _) = self.save_all(&handover)?;
        let path = image::c_string(upgrade.program.clone().into_os_string());
        let argv = image::arguments();
        let number = ledger.fd().as_raw_fd();
        let mut variables = vec![(UPGRADE, number.to_string())];
        variables.extend(self.keeping.vault.variable());
        let env = image::environment(&variables, &[]);
        let error = match self.set_inheritable(ledger.fd(), true) {
            Ok(()) => fork::execute(&path, &argv, &env),
            Err(error) => error,
        };
        self.set_inheritable(ledger.fd(), false)?;
        Err(error)
    }

    /// Everything that is handed on as a descriptor.
    fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut fds = vec![(NOTIFY.to_owned(), self.notify.as_fd())];
        fds.extend(self.server.listener().map(|fd| (CONTROL.to_owned(), fd)));
        fds.extend(self.server.descriptors());
        for id in self.listeners.ids() {
            fds.extend(self.listeners.descriptors(id));
        }
        fds.extend(self.keeping.ledger_fd().map(|fd| (LEDGER.to_owned(), fd)));
        fds
    }

    fn set_inheritable(&self, ledger: BorrowedFd<'_>, inheritable: bool) -> io::Result<()> {
        inherit::set_inheritable(ledger, inheritable)?;
        if let Some(link) = self.keeping.vault.as_link() {
            inherit::set_inheritable(link, inheritable)?;
        }
        for (_, fd) in self.descriptors() {
            inherit::set_inheritable(fd, inheritable)?;
        }
        Ok(())
    }

    fn handover(&self, answered: &[RequestId]) -> Handover {
        let fds = self.descriptors().into_iter();
        Handover {
            fds: fds.map(|(name, fd)| (name, fd.as_raw_fd())).collect(),
            stored: self.keeping.vault.stored(),
            server: self.server.record(),
            own_requests: self.own_requests.clone(),
            watchdog: self.watchdog,
            upgrades: answered.to_vec(),
        }
    }
}

impl Upgrade {
    /// What the probe has said.
    fn answer(&self) -> String {
        let mut bytes = Vec::new();
        let mut answer = &self.answer;
        let read = answer
            .rewind()
            .and_then(|()| answer.take(LONGEST_ANSWER).read_to_end(&mut bytes));
        // What it has said so far, if there is no more to be had.
        read.map_or_else(
            |_| String::new(),
            |_| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Why the probe has not said yes.
    fn why_not(&self, exit: Exit) -> String {
        let text = self.answer();
        let words: Vec<&str> = text.split_whitespace().collect();
        let said: String = words.join(" ").chars().take(MOST_TOLD).collect();
        let end = match exit {
            _ if self.until == Time::NEVER => {
                format!("was killed, since it took more than {PATIENCE:?}")
            }
            Exit::Code(0) => "is another program, which exited without an answer".into(),
            Exit::Code(code) => format!("exited with code {code}"),
            Exit::Signal { signal, .. } => format!("was ended by signal {signal}"),
        };
        let colon = if said.is_empty() { "" } else { ": " };
        format!(
            "{} can't go on from this manager's state: it {end}{colon}{said}; nothing has changed",
            self.program.display()
        )
    }
}

/// Whether this program can go on from the state in descriptor `fd`; if not, the reason. The answer is to be said on
/// stdout: another program may exit with 0 as well.
pub fn probe(fd: i32) -> Result<String, String> {
    let fd = inherit::take(fd).ok_or("there is no such descriptor")?;
    let state = Ledger::look(&fd).map_err(|error| error.to_string())?;
    adopt::probe(state).map(has_read)
}

/// What a probe says that has read so many records.
fn has_read(records: usize) -> String {
    format!("{records} records are read")
}
