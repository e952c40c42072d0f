//! Which variables a substitution can name.

use super::super::environment;
use super::Compiler;

/// Which variables `$(circus.env.NAME)` can name.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Sees {
    /// The manager's and `[manager] env`: they are known already, and filled in.
    Manager,
    /// Those too, `env_file`, and this many of the unit's own.
    Own(usize),
    /// All that the worker gets.
    All,
}

/// The keys that give a worker variables.
pub(super) const VARIABLE_KEYS: [&str; 9] = [
    "copy_env",
    "env",
    "env_file",
    "listen_fds",
    "sockets",
    "use_sockets",
    "user",
    "virtualenv",
    "watchdog",
];

impl<'a> Compiler<'a, '_> {
    /// Whether a worker has this variable, in any case.
    pub(super) fn has_variable(&self, name: &str, sees: Sees) -> bool {
        (self.unit.copy_env && self.world.has_own_variable(name))
            || self
                .set_variables(sees)
                .any(|known| known.eq_ignore_ascii_case(name))
    }

    /// The variable of this name, in any case, that the unit itself sets after the one that is being filled in.
    pub(super) fn later_variable(&self, name: &str, sees: Sees) -> Option<&'a str> {
        let Sees::Own(count) = sees else {
            return None;
        };
        let later = self.unit.env.iter().skip(count + 1);
        let mut names = later.map(|(name, _)| name.as_str());
        names.find(|later| later.eq_ignore_ascii_case(name))
    }

    /// The variables that are set for the worker, besides the manager's own.
    fn set_variables(&self, sees: Sees) -> impl Iterator<Item = &str> {
        let unit = self.unit;
        let passes = unit.listen_fds && !self.passed.is_empty();
        let has_user = self
            .identity
            .and_then(Option::as_ref)
            .is_some_and(|identity| identity.user.is_some());
        let all = sees == Sees::All;
        let own = match sees {
            Sees::Manager => 0,
            Sees::Own(count) => count,
            Sees::All => unit.env.len(),
        };
        let conditional: [(bool, &[&str]); 6] = [
            (
                !unit.copy_env || (all && unit.virtualenv.is_some()),
                &["PATH"],
            ),
            (has_user, &["USER", "LOGNAME", "HOME", "SHELL"]),
            (all && unit.virtualenv.is_some(), &["VIRTUAL_ENV"]),
            (all, &environment::TENTPOLE),
            (all && passes, &["LISTEN_FDS", "LISTEN_FDNAMES"]),
            (all && unit.watchdog.is_some(), &["WATCHDOG_USEC"]),
        ];
        conditional
            .into_iter()
            .filter(|(there, _)| *there)
            .flat_map(|(_, names)| names.iter().copied())
            .chain(self.world.manager_env.iter().map(|(name, _)| name.as_str()))
            .chain(unit.env[..own].iter().map(|(name, _)| name.as_str()))
    }

    pub(super) fn variable_hint(&self, name: &str, sees: Sees) -> String {
        let own = self.world.own.iter().filter(|_| self.unit.copy_env);
        let known = own
            .filter_map(|own| own.name().to_str())
            .chain(self.set_variables(sees));
        self.world.hints.nearest(name, known)
    }
}
