//! Reading the units anew while the manager runs, and changing what runs to what they say.

use super::listeners::Names;
use super::node::Node;
use super::{Manager, System, clock, logger, server, status};
use crate::control::call::{Failure, Reply};
use crate::plan::{self, Action, Change, Plan, Unit};
use crate::supervise::{Event, Refusal, RequestId, SocketId, Supervisor};
use crate::sys::lookup::Found;
use crate::unit::{self, Finding, Severity, Sources};
use std::collections::BTreeSet;

/// What the units say now, and how that differs from what runs.
struct News {
    plan: Plan,
    changes: Vec<Change>,
}

/// An apply whose units are read, and that waits for host names.
pub(super) struct Applying {
    request: RequestId,
    no_wait: bool,
    progress: bool,
    news: News,
    /// The names that are still being looked up.
    missing: BTreeSet<String>,
    names: Names,
}

impl Manager {
    /// Tells a client what [`Manager::apply`] would change.
    pub(super) fn preview(&mut self, connection: u64) {
        let reply = self.read_anew().map(|news| Reply::Changes {
            message: Supervisor::remark(&news.changes),
            changes: news.changes.into_iter().map(Into::into).collect(),
        });
        self.server.answer(&self.epoll, connection, &reply);
    }

    /// Changes what runs to what the units say, for a client.
    pub(super) fn apply_for(&mut self, request: RequestId, no_wait: bool, progress: bool) {
        if let Err(failure) = self.apply(request, no_wait, progress) {
            self.refuse_change(request, &failure);
        }
    }

    /// The same because of SIGHUP: what becomes of it is logged.
    pub(super) fn apply_by_signal(&mut self) {
        self.restore_control();
        let request = self.server.new_request();
        self.own_requests.insert(request);
        self.apply_for(request, false, false);
    }

    /// Binds the control socket anew where its file is gone or another's: nothing but a signal reaches the manager then.
    fn restore_control(&mut self) {
        let Some((path, node)) = &mut self.home.control else {
            return;
        };
        if (node.as_ref()).is_some_and(|node| node.is_there() == Some(true)) {
            return;
        }
        // Of those that have come before.
        self.server.accept(&self.epoll, clock());
        let mode = self.supervisor.manager().control_mode().0;
        match server::listen(path, mode, self.supervisor.control_gid()) {
            Ok(bound) => {
                log::warn!(target: "manager", "the file of the control socket, {}, was gone or another's, and is bound anew", path.display());
                *node = Node::made_at(path);
                self.listeners.control.clone_from(node);
                self.server.listen_on(&self.epoll, bound.fd, node.clone());
                self.save_home();
            }
            Err(error) => {
                log::error!(target: "manager", "the control socket: {error}; no command reaches this manager");
            }
        }
    }

    fn refuse_change(&mut self, request: RequestId, failure: &Failure) {
        if !self.own_requests.remove(&request) {
            let reply = Err(failure.clone());
            self.server.answer_request(&self.epoll, request, &reply);
            return;
        }
        match failure {
            Failure::InvalidUnits { findings } => {
                log::error!(target: "manager", "nothing is changed: the unit files have mistakes");
                for finding in findings {
                    logger::log_lines(log::Level::Error, finding);
                }
            }
            failure => log::error!(target: "manager", "nothing is changed: {failure}"),
        }
    }

    /// All or nothing: the first thing that is wrong is the answer, and nothing has changed.
    fn apply(&mut self, request: RequestId, no_wait: bool, progress: bool) -> Result<(), Failure> {
        self.check_apply(self.applying.is_some())?;
        self.put_files_back();
        let News { plan, changes } = self.read_anew()?;
        let leaving = self.supervisor.leaving(&changes);
        let mut missing = self.listeners.names_to_prepare(&plan, &changes, &leaving);
        let to_be_bound = self.supervisor.to_be_bound(&plan, &changes).into_iter();
        let names = to_be_bound.filter_map(|(id, _)| self.listeners.name_of(id));
        missing.extend(names.map(str::to_owned));
        for name in &missing {
            self.lookups.ask(&self.epoll, name);
        }
        let applying = Applying {
            request,
            no_wait,
            progress,
            news: News { plan, changes },
            missing,
            names: Names::new(),
        };
        if !applying.missing.is_empty() {
            self.applying = Some(applying);
            return Ok(());
        }
        self.change(applying)
    }

    /// Makes good what has been done to files of sockets.
    pub(super) fn put_files_back(&mut self) {
        let is_served = |id: SocketId| self.supervisor.is_served(id);
        self.listeners.put_files_back(&self.epoll, &is_served);
    }

    /// An error if there can be no apply now.
    fn check_apply(&self, is_applying: bool) -> Result<(), Failure> {
        let refusal = match self.supervisor.refuse_apply() {
            Ok(()) if is_applying => Refusal::another_apply(),
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let nearest = |name: &str| status::nearest_watcher(&self.supervisor, name, clock());
        Err(server::failure(refusal, nearest))
    }

    /// Goes on with an apply that has waited for this name, if it was the last.
    pub(super) fn apply_what_was_found(&mut self, name: &str, found: &Found) {
        let Some(applying) = &mut self.applying else {
            return;
        };
        if applying.missing.remove(name) {
            applying.names.insert(name.to_owned(), found.clone());
        }
        let applying = self.applying.take_if(|it| it.missing.is_empty());
        if let Some(mut applying) = applying {
            let request = applying.request;
            // Other commands may have come since the units were read.
            applying.news.changes = self.supervisor.changes_to(&applying.news.plan);
            if let Err(failure) = self.change(applying) {
                self.refuse_change(request, &failure);
            }
        }
    }

    /// An apply that waits for lookups ends where there can be none any more.
    pub(super) fn give_up_applying(&mut self) {
        if self.applying.is_some()
            && let Err(failure) = self.check_apply(false)
        {
            self.refuse_applying(&failure);
        }
    }

    /// Ends an apply that waits for lookups.
    pub(super) fn refuse_applying(&mut self, failure: &Failure) {
        if let Some(applying) = self.applying.take() {
            self.refuse_change(applying.request, failure);
        }
    }

    fn change(&mut self, applying: Applying) -> Result<(), Failure> {
        let Applying {
            request,
            no_wait,
            progress,
            news: News { plan, changes },
            names,
            missing: _,
        } = applying;
        self.check_apply(false)?;
        for (socket, name) in self.supervisor.to_be_bound(&plan, &changes) {
            self.bind_now(socket, &name, &names)?;
        }
        let leaving = self.supervisor.leaving(&changes);
        let unbound = self
            .listeners
            .prepare(&plan, &changes, &leaving, &names)
            .map_err(|errors| Failure::Refused {
                reason: format!("{}; nothing was changed", errors.join("; ")),
            })?;
        if let Err(errors) = self.listeners.try_changes(&plan, &changes) {
            self.listeners.forget_prepared();
            let reason = format!("{}; nothing was changed", errors.join("; "));
            return Err(Failure::Refused { reason });
        }
        self.set_manager(&plan, &changes);
        if let Some(remark) = Supervisor::remark(&changes) {
            log::warn!(target: "manager", "{remark}");
        }
        let documents = changes.iter().cloned().map(Into::into).collect();
        self.server.keep_changes(request, documents);
        self.dispatch(Event::Apply {
            request,
            plan: Box::new(plan),
            changes,
            unbound,
            no_wait,
            progress,
        });
        // Nothing of it is left but where the supervisor did not ask for it.
        self.listeners.forget_prepared();
        Ok(())
    }

    /// Binds a socket that was optional when it could not be bound, and is so no more.
    fn bind_now(&mut self, socket: SocketId, name: &str, names: &Names) -> Result<(), Failure> {
        let host = self.listeners.name_of(socket);
        let found = host.and_then(|host| names.get(host).cloned());
        match self.bind(socket, &found.unwrap_or_else(|| Ok(Vec::new()))) {
            Event::BindFailed { error, .. } => {
                let reason = format!("socket `{name}`: {error}; nothing was changed");
                Err(Failure::Refused { reason })
            }
            bound => {
                self.dispatch(bound);
                Ok(())
            }
        }
    }

    fn read_anew(&self) -> Result<News, Failure> {
        let examined = plan::examine(unit::load(&self.search), &System::new());
        let (errors, warnings) = rendered(&examined.findings, &examined.sources);
        for warning in warnings {
            logger::log_lines(log::Level::Warn, &warning);
        }
        let plan = examined
            .plan
            .ok_or_else(|| Failure::invalid_units(errors))?;
        let changes = self.supervisor.changes_to(&plan);
        Ok(News { plan, changes })
    }

    /// What of `[manager]` is the runtime's.
    fn set_manager(&mut self, plan: &Plan, changes: &[Change]) {
        let manager = &plan.manager;
        logger::set(manager.log_level, manager.log_format);
        self.keeping.vault.log_as(logger::settings());
        self.processes.set_manager_env(manager.env.clone());
        let changed = changes.iter().find(|change| change.unit == Unit::Manager);
        let keys = changed.filter(|change| change.action == Action::Set);
        for key in keys.iter().flat_map(|change| &change.keys) {
            match key.as_str() {
                "control_mode" | "control_group" => {
                    self.server
                        .restrict(manager.control_mode().0, plan.control_gid);
                }
                _ => {}
            }
        }
    }
}

/// Findings as a user reads them: errors, then warnings.
pub(super) fn rendered(findings: &[Finding], sources: &Sources) -> (Vec<String>, Vec<String>) {
    let (errors, warnings): (Vec<&Finding>, Vec<&Finding>) = findings
        .iter()
        .partition(|finding| finding.severity == Severity::Error);
    let text = |finding: &Finding| sources.render(finding).to_string().trim_end().to_owned();
    (
        errors.into_iter().map(text).collect(),
        warnings.into_iter().map(text).collect(),
    )
}
