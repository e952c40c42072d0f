//! The nearest known name to one that is not known.

use crate::unit;
use std::cell::Cell;

/// Finds what a mistyped name may have meant.
///
/// Looking is quadratic (every wrong name against every known one), so the work of one plan is capped: ten thousand
/// watchers that name ten thousand wrong sockets get all their errors, and the first few thousand get a hint.
pub(super) struct Hints {
    budget: Cell<usize>,
}

/// Steps that all look-ups of one plan may take together: some tenths of a second.
const BUDGET: usize = 20_000_000;

impl Hints {
    /// With the whole budget.
    pub(super) fn new() -> Self {
        Hints {
            budget: Cell::new(BUDGET),
        }
    }

    /// `` ; did you mean `x`? `` for the known name that is nearest to `name`, or nothing where none is near.
    pub(super) fn nearest<'a>(
        &self,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> String {
        let affordable = known.into_iter().take_while(|candidate| {
            let left = self
                .budget
                .get()
                .checked_sub(1 + candidate.len() * name.len());
            self.budget.set(left.unwrap_or(0));
            left.is_some()
        });
        unit::nearest(name, affordable)
            .map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_name_and_a_stranger_does_not() {
        let hints = Hints::new();
        let known = ["web", "metrics", "Admin"];
        assert_eq!(hints.nearest("wbe", known), "; did you mean `web`?");
        assert_eq!(hints.nearest("metrcs", known), "; did you mean `metrics`?");
        assert_eq!(hints.nearest("admin", known), "; did you mean `Admin`?");
        assert_eq!(hints.nearest("postgres", known), "");
        assert_eq!(hints.nearest("", known), "");
        assert_eq!(hints.nearest("web", []), "");
    }

    #[test]
    fn looking_for_hints_ends_when_the_budget_is_spent() {
        let hints = Hints {
            budget: Cell::new(5),
        };
        assert_eq!(hints.nearest("wbe", ["web"]), "");
    }
}
