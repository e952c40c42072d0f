//! What has an id, by it.

use super::{SocketId, WatcherId};
use std::ops::Index;

/// An id that counts from 0 on.
pub(super) trait Id: Copy + Ord {
    /// Where the thing of this id is as long as none before it was removed.
    fn place(self) -> usize;
}

impl Id for SocketId {
    fn place(self) -> usize {
        self.0 as usize
    }
}

impl Id for WatcherId {
    fn place(self) -> usize {
        self.0 as usize
    }
}

/// Things in the order of their ids. Ids are given one after the other and few are ever taken back, so that looking one up
/// mostly is one look.
#[derive(Debug)]
pub(super) struct Table<I, T> {
    entries: Vec<(I, Box<T>)>,
}

impl<I, T> Default for Table<I, T> {
    fn default() -> Self {
        let entries = Vec::new();
        Table { entries }
    }
}

impl<I: Id, T> Table<I, T> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get(&self, id: I) -> Option<&T> {
        let at = self.position(id).ok()?;
        Some(&*self.entries[at].1)
    }

    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        let at = self.position(id).ok()?;
        Some(&mut *self.entries[at].1)
    }

    pub fn contains(&self, id: I) -> bool {
        self.position(id).is_ok()
    }

    /// Puts a thing in the place of the one that has its id, if there is one.
    pub fn insert(&mut self, id: I, thing: T) {
        let entry = (id, Box::new(thing));
        match self.position(id) {
            Ok(at) => self.entries[at] = entry,
            Err(at) => self.entries.insert(at, entry),
        }
    }

    pub fn remove(&mut self, id: I) -> Option<T> {
        let at = self.position(id).ok()?;
        Some(*self.entries.remove(at).1)
    }

    pub fn ids(&self) -> impl Iterator<Item = I> {
        self.entries.iter().map(|(id, _)| *id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.entries.iter().map(|(id, thing)| (*id, &**thing))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (I, &mut T)> {
        (self.entries.iter_mut()).map(|(id, thing)| (*id, &mut **thing))
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, thing)| &**thing)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, thing)| &mut **thing)
    }

    /// Where it is, or would be.
    fn position(&self, id: I) -> Result<usize, usize> {
        let entries = &self.entries;
        match entries.get(id.place()) {
            Some((found, _)) if *found == id => Ok(id.place()),
            // Ids from here on are greater than those before.
            None if entries.last().is_none_or(|(last, _)| *last < id) => Err(entries.len()),
            _ => entries.binary_search_by_key(&id, |(id, _)| *id),
        }
    }
}

impl<I: Id, T> Index<I> for Table<I, T> {
    type Output = T;

    /// An id that is kept anywhere is that of a thing that there is.
    fn index(&self, id: I) -> &T {
        self.get(id)
            .unwrap_or_else(|| unreachable!("an index names what is forgotten"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_is_a_map_whatever_comes_and_goes() {
        let mut table: Table<SocketId, u32> = Table::default();
        let mut map: BTreeMap<SocketId, u32> = BTreeMap::new();
        let mut random = 0x2545_f491_u32;
        for round in 0..5_000 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let id = SocketId(random % 40);
            match random >> 16 & 3 {
                0 => assert_eq!(table.remove(id), map.remove(&id)),
                1 => assert_eq!(table.get_mut(id), map.get_mut(&id)),
                _ => {
                    table.insert(id, round);
                    map.insert(id, round);
                }
            }
            assert_eq!(table.get(id), map.get(&id));
            assert_eq!(table.contains(id), map.contains_key(&id));
            assert_eq!(table.len(), map.len());
            assert!(table.iter().eq(map.iter().map(|(id, it)| (*id, it))));
        }
    }
}
