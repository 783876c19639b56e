//! A table by descriptor number: what makes a connection's entry one memory access away, and gives its memory back.
//!
//! The kernel hands out the lowest free number, so an array is the natural table. But a program may move a descriptor
//! to any number up to `INT_MAX` (dup2(2)), and after a flood of connections a few are left at high numbers. So the
//! array is in pages of 256 entries (4 KiB), made when the first of them is needed and given back when the last has
//! gone; a leaf has 256 pages, and the root has the leaves, of 65,536 numbers each:
//!
//! ```text
//!   number  |  leaf: 15 bits  |  page: 8 bits  |  entry: 8 bits  |
//!                  ▼                 ▼                 ▼
//!                root     ──────▶   leaf   ──────▶    page
//! ```
//!
//! Dense descriptors cost the 16 bytes of their entries and a sixteenth of a byte for the leaf. One alone at a far
//! number costs a page and a leaf, 8 KiB, and the root up to it: 16 bytes for each 65,536 numbers, so 512 KiB at
//! `INT_MAX`, of which only what is used is touched. The root stays until the table is dropped. Two empty blocks are
//! kept: a page and a leaf that come and go at a border cost no allocation.

#![expect(unsafe_code, reason = "the word that its entries may begin as zeros")]

use core::mem;

use crate::sys::{Heap, HeapList, Zero};

/// How many entries a page has, and pages a leaf: each is 4 KiB.
const PAGE: usize = 256;
const LEAF: usize = 256;

/// An entry's place in its list of connections, and when it was last touched.
///
/// A link is the other's number; [`ABSENT`] is zero, so that a page begins with nobody in it, and numbers are stored
/// one higher.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// ms on the caller's clock.
    pub(crate) time: u64,
    /// The one that was touched before, [`END`] where this is the first.
    pub(crate) older: Link,
    /// The one that was touched after, [`END`] where this is the last.
    pub(crate) newer: Link,
}

// SAFETY: numbers all.
unsafe impl Zero for Entry {}
const _: () = assert!(size_of::<Page>() == 4096 && size_of::<Leaf>() <= 4096);

/// The number of an entry, one higher; [`ABSENT`] or [`END`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link(u32);

/// No entry: what all are in a fresh page.
pub(crate) const ABSENT: Link = Link(0);
/// Nobody before, or behind.
pub(crate) const END: Link = Link(u32::MAX);

impl Link {
    /// `None` for a number that no descriptor has.
    pub(crate) fn of(fd: libc::c_int) -> Option<Self> {
        u32::try_from(fd).ok()?.checked_add(1).map(Self)
    }

    pub(crate) fn fd(self) -> Option<libc::c_int> {
        self.0.checked_sub(1)?.try_into().ok()
    }

    /// Where it is: leaf, page, entry.
    const fn place(self) -> (usize, usize, usize) {
        let number = self.0.wrapping_sub(1) as usize;
        (number / (PAGE * LEAF), number / PAGE % LEAF, number % PAGE)
    }
}

/// A block below, and how much of it is in use.
struct Slot<T> {
    block: Option<Heap<T>>,
    used: u32,
}

// SAFETY: no block, and none in use.
unsafe impl<T> Zero for Slot<T> {}

type Page = [Entry; PAGE];
type Leaf = [Slot<Page>; LEAF];

/// The entries of all descriptors.
pub(crate) struct Table {
    root: HeapList<Slot<Leaf>>,
    /// Empty blocks kept for the next that is needed. Whatever it was, it is all zeros.
    spare_page: Option<Heap<Page>>,
    spare_leaf: Option<Heap<Leaf>>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { root: HeapList::new(), spare_page: None, spare_leaf: None }
    }

    /// The entry of a number, if its page is there; its links may be [`ABSENT`].
    #[inline]
    pub(crate) fn get(&self, link: Link) -> Option<&Entry> {
        let (leaf, page, entry) = link.place();
        self.root.get(leaf)?.block.as_ref()?.get(page)?.block.as_ref()?.get(entry)
    }

    /// The same, to be changed.
    #[inline]
    pub(crate) fn get_mut(&mut self, link: Link) -> Option<&mut Entry> {
        let (leaf, page, entry) = link.place();
        self.root.get_mut(leaf)?.block.as_mut()?.get_mut(page)?.block.as_mut()?.get_mut(entry)
    }

    /// Counts an absent entry in, with its page: it is for the caller to fill it, and to [`remove`](Self::remove) it.
    /// `None` where there is no memory; the table is as it was.
    pub(crate) fn insert(&mut self, link: Link) -> Option<&mut Entry> {
        let (leaf, page, entry) = link.place();
        if self.root.len() <= leaf && !self.root.grow(leaf.checked_add(1)?.next_power_of_two()) {
            return None;
        }
        let leaf_slot = self.root.get_mut(leaf)?;
        if leaf_slot.block.is_none() {
            leaf_slot.block = Some(self.spare_leaf.take().or_else(Heap::zeros)?);
        }
        let page_slot = leaf_slot.block.as_mut()?.get_mut(page)?;
        if page_slot.block.is_none() {
            page_slot.block = self.spare_page.take().or_else(Heap::zeros);
            if page_slot.block.is_some() {
                leaf_slot.used = leaf_slot.used.saturating_add(1);
            } else if leaf_slot.used == 0 {
                self.spare_leaf = leaf_slot.block.take();
                return None;
            }
        }
        let page_slot = leaf_slot.block.as_mut()?.get_mut(page)?;
        let entry = page_slot.block.as_mut()?.get_mut(entry)?;
        page_slot.used = page_slot.used.saturating_add(1);
        Some(entry)
    }

    /// Takes out an entry that was counted in, and gives back what is empty then.
    pub(crate) fn remove(&mut self, link: Link) -> Option<Entry> {
        let (leaf, page, entry) = link.place();
        let leaf_slot = self.root.get_mut(leaf)?;
        let page_slot = leaf_slot.block.as_mut()?.get_mut(page)?;
        let entry = page_slot.block.as_mut()?.get_mut(entry)?;
        let entry = mem::replace(entry, Entry { time: 0, older: ABSENT, newer: ABSENT });
        page_slot.used = page_slot.used.saturating_sub(1);
        if page_slot.used == 0 {
            let empty = page_slot.block.take();
            if self.spare_page.is_none() {
                self.spare_page = empty;
            }
            leaf_slot.used = leaf_slot.used.saturating_sub(1);
            if leaf_slot.used == 0 {
                let empty = leaf_slot.block.take();
                if self.spare_leaf.is_none() {
                    self.spare_leaf = empty;
                }
            }
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::Link;

    /// A leaf is for 65536 numbers, or memory is not what it is said to be.
    #[test]
    fn each_number_has_its_place() {
        for (fd, place) in [
            (0, (0, 0, 0)),
            (255, (0, 0, 255)),
            (256, (0, 1, 0)),
            (65_535, (0, 255, 255)),
            (65_536, (1, 0, 0)),
            (i32::MAX, (32_767, 255, 255)),
        ] {
            assert_eq!(Link::of(fd).map(Link::place), Some(place));
        }
        assert!(Link::of(-1).is_none());
    }
}
