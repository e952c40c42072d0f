//! In which order watchers start.

use super::nearest::Hints;
use crate::unit::{Arrange, At, Doubts, Finding, Findings, Name, Watcher};
use std::cmp::Reverse;

/// The start level of each of `watchers`, or `None` where `after` and `requires` allow no order; what is wrong with
/// them is added to `findings`. They are in order of name.
///
/// A watcher is above everything it is `after`, and above all watchers of a higher priority; what a watcher waits for
/// that has a lower priority makes it later than its own, and holds up no others of that.
pub(super) fn start_levels(
    watchers: &[Box<Watcher>],
    doubts: &Doubts,
    hints: &Hints,
    findings: &mut Findings,
) -> Option<Vec<u32>> {
    let errors = findings.errors();
    let waits = dependencies(watchers, doubts, hints, findings);
    let mut deepest_first = Vec::with_capacity(watchers.len());

    // A walk to the depth of each chain, on a stack of our own: a chain may be as long as there are watchers.
    let mut seen = vec![Seen::No; watchers.len()];
    let mut in_cycle = vec![false; watchers.len()];
    let mut path: Vec<(usize, usize)> = Vec::new();
    for start in 0..watchers.len() {
        if seen[start] != Seen::No {
            continue;
        }
        seen[start] = Seen::OnPath;
        path.push((start, 0));
        while let Some((at, next)) = path.last_mut() {
            let at = *at;
            let Some(&(target, _)) = waits[at].get(*next) else {
                seen[at] = Seen::Done;
                deepest_first.push(at);
                path.pop();
                continue;
            };
            *next += 1;
            match seen[target] {
                Seen::No => {
                    seen[target] = Seen::OnPath;
                    path.push((target, 0));
                }
                // Cycles that share a watcher are one tangle: its first cycle is named, and the next run names what is left.
                Seen::OnPath if !in_cycle[at] && !in_cycle[target] => {
                    findings.push(cycle(watchers, &waits, &path, target, &mut in_cycle));
                }
                Seen::OnPath | Seen::Done => {}
            }
        }
    }
    (findings.errors() == errors).then(|| levels(watchers, &waits, deepest_first))
}

/// The levels of watchers that wait for each other in no circle; in `deepest_first`, what a watcher waits for stands before it.
fn levels(watchers: &[Box<Watcher>], waits: &[Waits<'_>], deepest_first: Vec<usize>) -> Vec<u32> {
    let priority = |at: usize| watchers[at].priority;
    let mut by_priority = deepest_first.clone();
    by_priority.arrange_by_key(|at| Reverse(priority(*at)));
    let mut levels = vec![0; watchers.len()];
    // First as if nobody waited for a lower priority.
    let mut free = 0;
    for class in by_priority.chunk_by(|a, b| priority(*a) == priority(*b)) {
        let base = free;
        for &at in class {
            let waits = waits[at].iter().map(|(target, _)| *target);
            let below = waits.filter(|target| priority(*target) >= priority(at));
            let level = below.map(|target| levels[target] + 1).max();
            levels[at] = level.unwrap_or(0).max(base);
            free = free.max(levels[at] + 1);
        }
    }
    for at in deepest_first {
        let waits = waits[at].iter().map(|(target, _)| levels[*target] + 1);
        levels[at] = waits.max().unwrap_or(0).max(levels[at]);
    }
    levels
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    No,
    OnPath,
    Done,
}

/// What a watcher waits for, and where that was written.
type Waits<'a> = Vec<(usize, &'a At<Name>)>;

/// The watchers that each of `watchers` is after.
fn dependencies<'a>(
    watchers: &'a [Box<Watcher>],
    doubts: &Doubts,
    hints: &Hints,
    findings: &mut Findings,
) -> Vec<Waits<'a>> {
    let mut all = Vec::with_capacity(watchers.len());
    for (index, watcher) in watchers.iter().enumerate() {
        let own = &watcher.name.value;
        let mut waits = Vec::new();
        let keys = [("after", &watcher.after), ("requires", &watcher.requires)];
        for (key, name) in keys
            .iter()
            .flat_map(|(key, names)| names.iter().map(move |name| (key, name)))
        {
            let found = watchers.binary_search_by(|watcher| watcher.name.value.cmp(&name.value));
            match found.ok() {
                Some(target) if target == index => findings.push(Finding::error(
                    name.place,
                    format!("watcher `{own}` names itself in `{key}`"),
                )),
                Some(target) => waits.push((target, name)),
                None if doubts.may_be_named(&name.value) => {}
                None => {
                    let others = watchers
                        .iter()
                        .map(|watcher| watcher.name.value.as_str())
                        .filter(|other| other != own);
                    let hint = hints.nearest(&name.value, others);
                    findings.push(Finding::error(
                        name.place,
                        format!(
                            "unknown watcher `{}` in `{key}` of watcher `{own}`{hint}",
                            name.value
                        ),
                    ));
                }
            }
        }
        all.push(waits);
    }
    all
}

/// The error for the cycle that closes at `target`, which is on `path`.
fn cycle(
    watchers: &[Box<Watcher>],
    waits: &[Waits<'_>],
    path: &[(usize, usize)],
    target: usize,
    in_cycle: &mut [bool],
) -> Finding {
    let from = path
        .iter()
        .rposition(|&(at, _)| at == target)
        .unwrap_or_default();
    let members = &path[from..];
    for &(at, _) in members {
        in_cycle[at] = true;
    }
    // A cycle of thousands is told by its ends.
    const SHOWN: usize = 12;
    let name = |&(at, _): &(usize, usize)| format!("`{}`", watchers[at].name.value);
    let mut names: Vec<String> = members.iter().take(SHOWN).map(name).collect();
    if members.len() > SHOWN {
        names.push(format!("({} more)", members.len() - SHOWN));
    }
    names.push(name(&(target, 0)));
    // `next` has already moved past the edge that leads on.
    let place = members
        .first()
        .and_then(|&(at, next)| waits[at].get(next.checked_sub(1)?))
        .map(|(_, name)| name.place)
        .unwrap_or_default();
    Finding::error(
        place,
        format!(
            "watchers wait for each other in a circle: {}; none of them could start",
            names.join(" -> ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, boxed, watcher};
    use super::*;
    use proptest::prelude::*;

    fn waiting(name: &str, after: &[&str], requires: &[&str]) -> Watcher {
        let mut made = watcher(name, "true");
        made.after = after.iter().map(|name| at(name)).collect();
        made.requires = requires.iter().map(|name| at(name)).collect();
        made
    }

    fn levels(watchers: &[Watcher]) -> Result<Vec<u32>, Vec<String>> {
        let mut findings = Findings::default();
        start_levels(
            &boxed(watchers),
            &Doubts::default(),
            &Hints::new(),
            &mut findings,
        )
        .ok_or_else(|| findings.iter().map(|f| f.message.clone()).collect())
    }

    #[test]
    fn requires_counts_as_after_and_priority_puts_classes_apart() {
        let mut early = waiting("d", &[], &[]);
        early.priority = 10;
        let mut late = waiting("e", &["d"], &[]);
        late.priority = -3;
        let mut eager = waiting("f", &["e"], &[]);
        eager.priority = 10;
        let watchers = [
            waiting("a", &["b"], &[]),
            waiting("b", &[], &["c"]),
            waiting("c", &[], &[]),
            early,
            late,
            eager,
        ];
        assert_eq!(levels(&watchers), Ok(vec![3, 2, 1, 0, 4, 5]));
    }

    #[test]
    fn a_cycle_is_named_once_and_in_full() {
        let watchers = [
            waiting("a", &["b"], &[]),
            waiting("b", &[], &["c"]),
            waiting("c", &["a", "b"], &[]),
            waiting("x", &["y"], &[]),
            waiting("y", &["x"], &[]),
            waiting("z", &["a"], &[]),
        ];
        let found = levels(&watchers).expect_err("there are cycles");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`a` -> `b` -> `c` -> `a`"));
        assert!(found[1].contains("`x` -> `y` -> `x`"));
    }

    #[test]
    fn unknown_watchers_and_oneself_are_refused_together() {
        let watchers = [
            waiting("api", &["api", "databse"], &["nothing-like-it"]),
            waiting("database", &[], &[]),
        ];
        let found = levels(&watchers).expect_err("three mistakes");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], "watcher `api` names itself in `after`");
        assert_eq!(
            found[1],
            "unknown watcher `databse` in `after` of watcher `api`; did you mean `database`?"
        );
        assert_eq!(
            found[2],
            "unknown watcher `nothing-like-it` in `requires` of watcher `api`"
        );
    }

    #[test]
    fn a_chain_of_twenty_thousand_neither_overflows_the_stack_nor_takes_long() {
        let watchers: Vec<Watcher> = (0..20_000)
            .map(|n| {
                waiting(
                    &format!("w{n:05}"),
                    &[format!("w{:05}", n + 1).as_str()][..],
                    &[],
                )
            })
            .chain([waiting("w20000", &[], &[])])
            .collect();
        assert_eq!(levels(&watchers).expect("no cycle")[0], 20_000);
    }

    proptest! {
        #[test]
        fn levels_respect_every_dependency(
            edges in prop::collection::vec((0usize..30, 0usize..30), 0..120),
            priorities in prop::collection::vec(-2i32..3, 30),
        ) {
            let mut watchers: Vec<Watcher> = (0..30).map(|n| waiting(&format!("w{n:05}"), &[], &[])).collect();
            for (n, priority) in priorities.iter().enumerate() {
                watchers[n].priority = *priority;
            }
            let mut kept = Vec::new();
            for (n, &(a, b)) in edges.iter().enumerate() {
                // Downhill edges alone can't make a cycle.
                if a > b {
                    let list = if n % 2 == 0 { &mut watchers[a].after } else { &mut watchers[a].requires };
                    list.push(at(&format!("w{b:05}")));
                    kept.push((a, b));
                }
            }
            let levels = levels(&watchers).expect("no cycle");
            for (a, b) in kept {
                prop_assert!(levels[a] > levels[b]);
            }
            let free = |n: usize| watchers[n].after.is_empty() && watchers[n].requires.is_empty();
            for a in 0..30 {
                for b in 0..30 {
                    if free(b) && watchers[a].priority < watchers[b].priority {
                        prop_assert!(levels[a] > levels[b]);
                    }
                }
            }
        }

        #[test]
        fn any_graph_gets_levels_or_a_reason(edges in prop::collection::vec((0usize..8, 0usize..8), 0..30)) {
            let mut watchers: Vec<Watcher> = (0..8).map(|n| waiting(&format!("w{n}"), &[], &[])).collect();
            for &(a, b) in &edges {
                watchers[a].after.push(at(&format!("w{b}")));
            }
            match levels(&watchers) {
                Ok(levels) => for (a, b) in edges {
                    prop_assert!(levels[a] > levels[b]);
                },
                Err(found) => prop_assert!(!found.is_empty()),
            }
        }
    }
}
