//! The nearest known name to one that is not known.

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
        let wanted: Vec<char> = name.to_lowercase().chars().collect();
        let far = (wanted.len() / 3).clamp(1, 4);
        let mut best: Option<(usize, &str)> = None;
        for candidate in known {
            let limit = best.map_or(far, |(distance, _)| distance.saturating_sub(1));
            let candidate_len = candidate.chars().count();
            // A name that differs in case alone has the same length but perhaps not in every script: allow for one.
            let cost = if candidate_len.abs_diff(wanted.len()) > limit + 1 {
                1
            } else {
                1 + candidate_len * wanted.len()
            };
            let Some(left) = self.budget.get().checked_sub(cost) else {
                break;
            };
            self.budget.set(left);
            if cost == 1 && !wanted.is_empty() {
                continue;
            }
            let distance = distance(&wanted, candidate);
            if distance <= far && best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, candidate));
            }
            if distance == 0 {
                break;
            }
        }
        best.map_or_else(String::new, |(_, near)| format!("; did you mean `{near}`?"))
    }
}

/// How many letters must be added, dropped, changed or swapped with their neighbour, case aside.
fn distance(wanted: &[char], candidate: &str) -> usize {
    let candidate: Vec<char> = candidate.to_lowercase().chars().collect();
    let width = candidate.len() + 1;
    let mut before_last = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for (i, &a) in wanted.iter().enumerate() {
        let mut row = vec![i + 1; width];
        for (j, &b) in candidate.iter().enumerate() {
            let mut least = (last[j] + usize::from(a != b)).min(last[j + 1] + 1);
            least = least.min(row[j] + 1);
            if i > 0 && j > 0 && a == candidate[j - 1] && b == wanted[i - 1] {
                least = least.min(before_last[j - 1] + 1);
            }
            row[j + 1] = least;
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[width - 1]
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
