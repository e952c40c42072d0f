//! Which descriptor goes where in a child: from the wanted placements to the steps that make them.
//!
//! Placing descriptors is a parallel assignment: `3 -> 4` and `4 -> 3` at once. A step that overwrites a number destroys
//! what was there, so a number that is still wanted elsewhere must be read first. Each target has one source, so the
//! wishes form trees hanging off cycles: the trees are emptied from their leaves inwards, and what is left is pure
//! cycles, each of which is opened by saving one descriptor out of the way.
//!
//! The steps are computed before the child exists, since the child may not allocate.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;

/// One step of a placement, to be carried out in order in a descriptor table of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The descriptor is already at its number: clear its CLOEXEC.
    Keep(RawFd),
    /// dup3(2) without O_CLOEXEC; whatever was at `to` is closed.
    Dup {
        /// What is copied.
        from: RawFd,
        /// Where the copy goes.
        to: RawFd,
    },
    /// F_DUPFD_CLOEXEC: copy `from` to a free number that is at least `above`, and remember that number.
    Save {
        /// What is copied.
        from: RawFd,
        /// Larger than every target, so that no later step hits the copy.
        above: RawFd,
    },
    /// dup3(2) of the remembered number without O_CLOEXEC. Each save is restored before the next one.
    Restore {
        /// Where the copy goes.
        to: RawFd,
    },
}

impl Step {
    /// The number that the step is about, for an error message.
    pub fn subject(self) -> RawFd {
        match self {
            Step::Keep(fd) => fd,
            Step::Dup { to, .. } | Step::Restore { to } => to,
            Step::Save { from, .. } => from,
        }
    }
}

/// The steps after which every `(source, target)` of `wanted` has the source's file open at the target, without CLOEXEC.
///
/// A source may have several targets and may itself be a target. Where a target is named twice, the last one counts.
/// Descriptors that are no target are left alone, for CLOEXEC to close them.
pub fn place(wanted: &[(RawFd, RawFd)]) -> Vec<Step> {
    let mut steps = Vec::with_capacity(wanted.len());
    let mut pending: BTreeMap<RawFd, RawFd> = BTreeMap::new();
    for &(source, target) in wanted {
        pending.insert(target, source);
    }
    let above = pending
        .keys()
        .next_back()
        .map_or(0, |highest| highest.saturating_add(1));

    pending.retain(|&target, &mut source| {
        if source == target {
            steps.push(Step::Keep(target));
        }
        source != target
    });

    // How many pending wishes still read each number.
    let mut readers: BTreeMap<RawFd, usize> = BTreeMap::new();
    for &source in pending.values() {
        *readers.entry(source).or_default() += 1;
    }

    let mut free = BTreeSet::new();
    free.extend((pending.keys().copied()).filter(|target| !readers.contains_key(target)));
    while let Some(to) = free.pop_first() {
        let Some(from) = pending.remove(&to) else {
            continue;
        };
        steps.push(Step::Dup { from, to });
        if let Some(count) = readers.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&from);
                if pending.contains_key(&from) {
                    free.insert(from);
                }
            }
        }
    }

    // Every target left is the source of exactly one other: cycles.
    while let Some((&start, &first_source)) = pending.first_key_value() {
        steps.push(Step::Save { from: start, above });
        pending.remove(&start);
        let (mut to, mut from) = (start, first_source);
        while from != start {
            steps.push(Step::Dup { from, to });
            let Some(next) = pending.remove(&from) else {
                break;
            };
            (to, from) = (from, next);
        }
        steps.push(Step::Restore { to });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A descriptor table: number to (file, CLOEXEC).
    type Table = BTreeMap<RawFd, (RawFd, bool)>;

    /// Where file N stands at number N, CLOEXEC, as in the manager.
    fn table_of(numbers: impl IntoIterator<Item = RawFd>) -> Table {
        numbers.into_iter().map(|fd| (fd, (fd, true))).collect()
    }

    fn carry_out(table: &mut Table, steps: &[Step]) {
        let mut saved = None;
        for step in steps {
            match *step {
                Step::Keep(fd) => table.get_mut(&fd).expect("kept descriptors are open").1 = false,
                Step::Dup { from, to } => {
                    assert_ne!(from, to, "dup3 refuses equal numbers");
                    let file = table.get(&from).expect("sources are open").0;
                    table.insert(to, (file, false));
                }
                Step::Save { from, above } => {
                    assert_eq!(saved, None, "one save at a time");
                    let file = table.get(&from).expect("sources are open").0;
                    let slot = (above..)
                        .find(|fd| !table.contains_key(fd))
                        .expect("numbers are plenty");
                    table.insert(slot, (file, true));
                    saved = Some(slot);
                }
                Step::Restore { to } => {
                    let slot = saved.take().expect("a restore follows a save");
                    let file = table[&slot].0;
                    table.insert(to, (file, false));
                }
            }
        }
        assert_eq!(saved, None, "a save is always restored");
    }

    fn check(wanted: &[(RawFd, RawFd)]) {
        let mut table = table_of(0..20);
        carry_out(&mut table, &place(wanted));
        let expected: BTreeMap<RawFd, RawFd> = wanted
            .iter()
            .map(|&(source, target)| (target, source))
            .collect();
        let open: BTreeMap<RawFd, RawFd> = table
            .iter()
            .filter(|(_, (_, cloexec))| !cloexec)
            .map(|(&fd, &(file, _))| (fd, file))
            .collect();
        assert_eq!(
            open,
            expected,
            "wanted {wanted:?}, steps {:?}",
            place(wanted)
        );
    }

    #[test]
    fn nothing_wanted_is_nothing_done() {
        assert_eq!(place(&[]), []);
    }

    #[test]
    fn a_descriptor_at_its_place_is_only_kept() {
        assert_eq!(place(&[(5, 5)]), [Step::Keep(5)]);
        check(&[(0, 0), (1, 1), (2, 2), (3, 3)]);
    }

    #[test]
    fn a_chain_needs_no_save() {
        let steps = place(&[(3, 4), (4, 5), (5, 6)]);
        assert!(
            steps.iter().all(|step| matches!(step, Step::Dup { .. })),
            "{steps:?}"
        );
        check(&[(3, 4), (4, 5), (5, 6)]);
    }

    #[test]
    fn two_that_change_places_go_over_a_third_number_above_all_targets() {
        assert_eq!(
            place(&[(3, 4), (4, 3)]),
            [
                Step::Save { from: 3, above: 5 },
                Step::Dup { from: 4, to: 3 },
                Step::Restore { to: 4 }
            ]
        );
    }

    #[test]
    fn every_permutation_of_five_is_placed() {
        let mut order = [0, 1, 2, 3, 4];
        permute(&mut order, 5);

        fn permute(order: &mut [RawFd; 5], k: usize) {
            if k == 1 {
                let wanted: Vec<_> = order.iter().copied().zip(0..).collect();
                return check(&wanted);
            }
            for i in 0..k {
                permute(order, k - 1);
                order.swap(if k.is_multiple_of(2) { i } else { 0 }, k - 1);
            }
        }
    }

    #[test]
    fn a_source_in_a_cycle_may_have_targets_outside_of_it() {
        check(&[(3, 4), (4, 3), (3, 7), (4, 8), (3, 0)]);
    }

    #[test]
    fn the_last_of_two_wishes_for_a_number_counts() {
        check(&[(3, 0), (4, 0)]);
        check(&[(0, 0), (4, 0)]);
    }

    #[test]
    fn a_target_at_the_end_of_the_number_range_does_not_overflow() {
        assert_eq!(
            place(&[(3, RawFd::MAX)]),
            [Step::Dup {
                from: 3,
                to: RawFd::MAX
            }]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_wish_is_met_and_nothing_else_stays_open(wanted in proptest::collection::vec((0..12i32, 0..12i32), 0..14)) {
            check(&wanted);
        }

        #[test]
        fn saves_are_as_many_as_cycles(sources in Just((0..9).collect::<Vec<RawFd>>()).prop_shuffle()) {
            let wanted: Vec<(RawFd, RawFd)> = sources.iter().copied().zip(0..).collect();
            let mut cycles = 0;
            let mut seen = BTreeSet::new();
            for start in 0..9 {
                let (mut fd, mut length) = (start, 0);
                while seen.insert(fd) {
                    fd = sources[fd as usize];
                    length += 1;
                }
                cycles += usize::from(length > 1);
            }
            let saves = place(&wanted).iter().filter(|step| matches!(step, Step::Save { .. })).count();
            prop_assert_eq!(saves, cycles);
        }
    }
}
