//! Tables of what is under way, looked up by position: on the way of each I/O nothing is searched.

use std::collections::VecDeque;

/// Entries under keys that are never used twice.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    /// Counts the entries that were here; the upper half of their keys.
    generation: u32,
    entry: Option<T>,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts an entry somewhere; returns its key.
    #[inline]
    pub(super) fn insert(&mut self, entry: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                entry: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.entry = Some(entry);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn slot(&self, key: u64) -> Option<&Slot<T>> {
        let slot = self.slots.get(key as u32 as usize)?;
        (slot.generation == (key >> 32) as u32).then_some(slot)
    }

    pub(super) fn get(&self, key: u64) -> Option<&T> {
        self.slot(key)?.entry.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.slot_mut(key)?.entry.as_mut()
    }

    fn slot_mut(&mut self, key: u64) -> Option<&mut Slot<T>> {
        let slot = self.slots.get_mut(key as u32 as usize)?;
        (slot.generation == (key >> 32) as u32).then_some(slot)
    }

    pub(super) fn contains(&self, key: u64) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<T> {
        let entry = self.slot_mut(key)?.entry.take()?;
        self.free(key);
        Some(entry)
    }

    /// Drops an entry where it is; whether it was there.
    pub(super) fn drop(&mut self, key: u64) -> bool {
        let Some(slot) = self.slot_mut(key) else {
            return false;
        };
        let was_there = slot.entry.is_some();
        slot.entry = None;
        if was_there {
            self.free(key);
        }
        was_there
    }

    fn free(&mut self, key: u64) {
        let slot = &mut self.slots[key as u32 as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key as u32);
    }

    /// The keys of the entries that `wanted` likes.
    pub(super) fn keys_of(&self, wanted: impl Fn(&T) -> bool) -> Vec<u64> {
        let slots = (0_u64..).zip(&self.slots);
        slots
            .filter(|(_, slot)| slot.entry.as_ref().is_some_and(&wanted))
            .map(|(index, slot)| u64::from(slot.generation) << 32 | index)
            .collect()
    }
}

/// Entries under numbers that are given out one after the other and come back about in that order.
#[derive(Debug)]
pub(super) struct Window<T> {
    /// The number of the first slot.
    base: u64,
    slots: VecDeque<Option<T>>,
}

impl<T> Window<T> {
    pub(super) const fn new() -> Self {
        Self {
            base: 0,
            slots: VecDeque::new(),
        }
    }

    /// Puts an entry under a number above all that are here.
    pub(super) fn push(&mut self, number: u64, entry: T) {
        if self.slots.is_empty() {
            self.base = number;
        }
        let index = number.saturating_sub(self.base) as usize;
        debug_assert!(number >= self.base && index >= self.slots.len());
        while self.slots.len() < index {
            self.slots.push_back(None);
        }
        self.slots.push_back(Some(entry));
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        let entry = self.slots.get_mut(index)?.take()?;
        while self.slots.front().is_some_and(Option::is_none) {
            self.slots.pop_front();
            self.base += 1;
        }
        Some(entry)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> + '_ {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_agree_with_maps(steps in proptest::collection::vec((any::<bool>(), 0_usize..16), 0..200)) {
            let mut slots = Slots::new();
            let mut window = Window::new();
            let (mut in_slots, mut in_window) = (BTreeMap::new(), BTreeMap::new());
            let mut number = 5_u64;
            for (adds, which) in steps {
                if adds {
                    number += 1 + which as u64 / 8;
                    let key = slots.insert(number);
                    prop_assert!(in_slots.insert(key, number).is_none(), "a key came twice");
                    window.push(number, number);
                    in_window.insert(number, number);
                } else {
                    if let Some(key) = in_slots.keys().nth(which).copied() {
                        let value = in_slots.remove(&key);
                        if which % 2 == 0 {
                            prop_assert_eq!(slots.remove(key), value);
                        } else {
                            prop_assert!(value.is_some() && slots.drop(key));
                        }
                        prop_assert_eq!(slots.remove(key), None);
                        prop_assert!(!slots.drop(key));
                        prop_assert!(!slots.contains(key) && slots.get_mut(key).is_none());
                    }
                    if let Some(key) = in_window.keys().nth(which).copied() {
                        prop_assert_eq!(window.remove(key), in_window.remove(&key));
                        prop_assert_eq!(window.remove(key), None);
                    }
                }
                prop_assert_eq!(slots.len(), in_slots.len());
                let all: Vec<u64> = window.values().copied().collect();
                prop_assert_eq!(&all, &in_window.keys().copied().collect::<Vec<_>>());
                let mut keys = slots.keys_of(|_| true);
                keys.sort_unstable();
                prop_assert_eq!(keys, in_slots.keys().copied().collect::<Vec<_>>());
                for (key, value) in &in_slots {
                    prop_assert_eq!(slots.get(*key), Some(value));
                }
            }
        }
    }
}
