//! Reading the units anew while the manager runs, and changing what runs to what they say.

use super::{Manager, System, clock, logger, status};
use crate::control::call::{Failure, Reply};
use crate::plan::{self, Action, Change, Plan, Unit};
use crate::supervise::{Event, RequestId, Supervisor};
use crate::unit::{self, Finding, Severity, Sources};

/// What the units say now, and how that differs from what runs.
struct News {
    plan: Plan,
    changes: Vec<Change>,
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
    pub(super) fn apply_for(
        &mut self,
        connection: u64,
        request: RequestId,
        no_wait: bool,
        progress: bool,
    ) {
        match self.apply(request, no_wait, progress) {
            Ok(()) => {}
            Err(failure) => self.server.answer(&self.epoll, connection, &Err(failure)),
        }
    }

    /// The same because of SIGHUP: what becomes of it is logged.
    pub(super) fn apply_by_signal(&mut self) {
        let request = self.server.new_request();
        self.own_requests.insert(request);
        if let Err(failure) = self.apply(request, false, false) {
            self.own_requests.remove(&request);
            match &failure {
                Failure::InvalidUnits { findings } => {
                    log::error!(target: "manager", "nothing is changed: the unit files have mistakes");
                    for finding in findings {
                        logger::log_lines(log::Level::Error, finding);
                    }
                }
                failure => log::error!(target: "manager", "nothing is changed: {failure}"),
            }
        }
    }

    /// All or nothing: the first thing that is wrong is the answer, and nothing has changed.
    fn apply(&mut self, request: RequestId, no_wait: bool, progress: bool) -> Result<(), Failure> {
        if let Err(refusal) = self.supervisor.refuse_apply() {
            let nearest = |name: &str| status::nearest_watcher(&self.supervisor, name, clock());
            return Err(super::server::failure(refusal, nearest));
        }
        let News { plan, changes } = self.read_anew()?;
        let leaving = self.supervisor.leaving(&changes);
        let unbound = self
            .listeners
            .prepare(&plan, &changes, &leaving)
            .map_err(|errors| Failure::Refused {
                reason: format!("{}; nothing was changed", errors.join("; ")),
            })?;
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

    fn read_anew(&self) -> Result<News, Failure> {
        let examined = plan::examine(unit::load(&self.search), &System::new());
        let (errors, warnings) = rendered(&examined.findings, &examined.sources);
        for warning in warnings {
            logger::log_lines(log::Level::Warn, &warning);
        }
        let plan = examined
            .plan
            .ok_or(Failure::InvalidUnits { findings: errors })?;
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
                        .restrict(manager.control_mode.0, plan.control_gid);
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
