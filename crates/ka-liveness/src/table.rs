//! A table of entries, indexed by descriptor, that returns unused memory.
//!
//! The kernel assigns the lowest free descriptor, so an array would be the natural table. But a program may move a
//! descriptor to any number up to `INT_MAX` (dup2(2)), and a flood of connections may leave a few at high numbers. So
//! the array is divided into pages of 256 entries (4 KiB). A page is allocated with its first entry and freed with
//! its last. A leaf has 256 pages, which is 65,536 descriptors, and the root has the leaves:
//!
//! ```text
//!   number  |  leaf: 15 bits  |  page: 8 bits  |  entry: 8 bits  |
//!                  ▼                 ▼                 ▼
//!                root     ──────▶   leaf   ──────▶    page
//! ```
//!
//! A dense descriptor costs the 16 bytes of its entry, and 1/16 byte of the leaf. A single descriptor far from the
//! others costs a page and a leaf (8 KiB), and the root up to it: 16 bytes for each 65,536 descriptors, which is 512
//! KiB at `INT_MAX`. Only the used parts of the root are touched, and the root is kept until the table is dropped.
//! The table also keeps one empty page and one empty leaf. So a connection that comes and goes at the border of a
//! page needs no allocation each time.

#![expect(unsafe_code, reason = "the promise that zeroed memory is a valid entry")]

use core::mem;

use crate::sys::{Heap, HeapList, Zero};

/// The number of entries in a page, and of pages in a leaf. Each is at most 4 KiB.
const PAGE: usize = 256;
const LEAF: usize = 256;

/// The entry of a connection: its neighbours in the list, and the time of its last touch.
///
/// A link is the descriptor of the neighbour plus one. [`ABSENT`] is 0, so that all entries of a zeroed page are
/// absent.
#[derive(Clone, Copy)]
pub(crate) struct TableEntry {
    /// The time of the last touch, in milliseconds on the caller's clock.
    pub(crate) time: u64,
    /// The connection that was touched before this one. [`END`] if this is the first of the list.
    pub(crate) older: ListLink,
    /// The connection that was touched after this one. [`END`] if this is the last of the list.
    pub(crate) newer: ListLink,
}

// SAFETY: all fields are integers, for which zero is a valid value.
unsafe impl Zero for TableEntry {}
const _: () = assert!(size_of::<Page>() == 4096 && size_of::<Leaf>() <= 4096);

/// The descriptor of an entry plus one, or [`ABSENT`] or [`END`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListLink(u32);

/// The link of an entry that is not in the list, as in a new page.
pub(crate) const ABSENT: ListLink = ListLink(0);
/// The link beyond the first or the last entry of the list.
pub(crate) const END: ListLink = ListLink(u32::MAX);

impl ListLink {
    /// Returns the link of a descriptor, or `None` if the descriptor is negative.
    pub(crate) fn of(fd: libc::c_int) -> Option<Self> {
        u32::try_from(fd).ok()?.checked_add(1).map(Self)
    }

    pub(crate) fn fd(self) -> Option<libc::c_int> {
        self.0.checked_sub(1)?.try_into().ok()
    }

    /// Returns the indices of the leaf, the page and the entry.
    const fn place(self) -> (usize, usize, usize) {
        let number = self.0.wrapping_sub(1) as usize;
        (number / (PAGE * LEAF), number / PAGE % LEAF, number % PAGE)
    }
}

/// A block of the level below, and the number of its items that are in use.
struct TableSlot<T> {
    block: Option<Heap<T>>,
    used: u32,
}

// SAFETY: zeros mean `None` for the block, and 0 items in use.
unsafe impl<T> Zero for TableSlot<T> {}

type Page = [TableEntry; PAGE];
type Leaf = [TableSlot<Page>; LEAF];

/// The entries of all descriptors.
pub(crate) struct Table {
    root: HeapList<TableSlot<Leaf>>,
    /// Empty blocks, kept for the next allocation. They contain only zeros.
    spare_page: Option<Heap<Page>>,
    spare_leaf: Option<Heap<Leaf>>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { root: HeapList::new(), spare_page: None, spare_leaf: None }
    }

    /// Returns the entry of a descriptor, if its page exists. The links of the entry may be [`ABSENT`].
    #[inline]
    pub(crate) fn get(&self, link: ListLink) -> Option<&TableEntry> {
        let (leaf, page, entry) = link.place();
        self.root.get(leaf)?.block.as_ref()?.get(page)?.block.as_ref()?.get(entry)
    }

    /// Returns the entry of a descriptor like [`get`](Self::get), but mutable.
    #[inline]
    pub(crate) fn get_mut(&mut self, link: ListLink) -> Option<&mut TableEntry> {
        let (leaf, page, entry) = link.place();
        self.root.get_mut(leaf)?.block.as_mut()?.get_mut(page)?.block.as_mut()?.get_mut(entry)
    }

    /// Adds an absent entry, and its page if needed. The caller must fill the entry, and [`remove`](Self::remove) it
    /// later. Returns `None` if there is no memory. The table is unchanged then.
    pub(crate) fn insert(&mut self, link: ListLink) -> Option<&mut TableEntry> {
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

    /// Removes an entry that was added, and frees the blocks that become empty.
    pub(crate) fn remove(&mut self, link: ListLink) -> Option<TableEntry> {
        let (leaf, page, entry) = link.place();
        let leaf_slot = self.root.get_mut(leaf)?;
        let page_slot = leaf_slot.block.as_mut()?.get_mut(page)?;
        let entry = page_slot.block.as_mut()?.get_mut(entry)?;
        let entry = mem::replace(entry, TableEntry { time: 0, older: ABSENT, newer: ABSENT });
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
    use super::ListLink;

    /// The documented use of memory depends on 65536 descriptors per leaf.
    #[test]
    fn descriptors_map_to_their_leaf_page_and_entry() {
        for (fd, place) in [
            (0, (0, 0, 0)),
            (255, (0, 0, 255)),
            (256, (0, 1, 0)),
            (65_535, (0, 255, 255)),
            (65_536, (1, 0, 0)),
            (i32::MAX, (32_767, 255, 255)),
        ] {
            assert_eq!(ListLink::of(fd).map(ListLink::place), Some(place));
        }
        assert!(ListLink::of(-1).is_none());
    }
}
