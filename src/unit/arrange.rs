//! Order, by one copy of the code for all types.
//!
//! The sort of the standard library is compiled anew for each type and comparison, some five kilobytes each time, and so is
//! the one with which a `BTreeMap` is collected. There are dozens of either here and none is in a hurry, so that all of
//! them would be a twentieth of the program.

use std::cmp::Ordering;

/// Puts a slice in order, stably.
pub trait Arrange<T> {
    /// Orders by a comparison.
    fn arrange_by(&mut self, compare: impl FnMut(&T, &T) -> Ordering);

    /// Orders by what `key` makes of each.
    fn arrange_by_key<K: Ord>(&mut self, mut key: impl FnMut(&T) -> K) {
        self.arrange_by(|a, b| key(a).cmp(&key(b)));
    }

    /// Orders from the least to the greatest.
    fn arrange(&mut self)
    where
        T: Ord,
    {
        self.arrange_by(T::cmp);
    }
}

impl<T> Arrange<T> for [T] {
    fn arrange_by(&mut self, mut compare: impl FnMut(&T, &T) -> Ordering) {
        let Some(mut order) = order(self.len(), &mut |a, b| compare(&self[a], &self[b])) else {
            return;
        };
        // Each cycle of the permutation by itself. What is in place is marked by its own index.
        for start in 0..order.len() {
            let mut at = start;
            loop {
                let from = std::mem::replace(&mut order[at], at);
                if from == start {
                    break;
                }
                self.swap(at, from);
                at = from;
            }
        }
    }
}

/// Of the indexes below `len`, which comes first, second, and so on; `None` where they do as they are.
fn order(len: usize, compare: &mut dyn FnMut(usize, usize) -> Ordering) -> Option<Vec<usize>> {
    if (1..len).all(|at| compare(at - 1, at) != Ordering::Greater) {
        return None;
    }
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|a, b| compare(*a, *b));
    Some(order)
}

/// Collects into what grows one by one.
pub trait Gather: Iterator + Sized {
    /// Puts each item into a new collection: what `collect` does, but that it sorts what goes into a map first.
    fn gather<C: Default + Extend<Self::Item>>(self) -> C {
        let mut all = C::default();
        all.extend(self);
        all
    }
}

impl<I: Iterator> Gather for I {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_the_stable_order_of_the_standard_library(items: Vec<(u8, u32)>) {
            let (mut ours, mut theirs) = (items.clone(), items);
            ours.arrange_by_key(|(key, _)| *key);
            theirs.arrange_by_key(|(key, _)| *key);
            prop_assert_eq!(&ours, &theirs);
            ours.arrange();
            theirs.arrange();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn a_map_that_is_gathered_is_the_one_that_is_collected(items: Vec<(u8, u32)>) {
            let gathered: BTreeMap<u8, u32> = items.iter().copied().gather();
            prop_assert_eq!(gathered, items.into_iter().collect::<BTreeMap<_, _>>());
        }
    }
}
