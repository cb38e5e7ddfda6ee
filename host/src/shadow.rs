//! The shadow: which of the guest's mappings the Switcher's windows show.
//!
//! The guest's page tables say what its addresses mean; the windows are what its code really
//! touches. A window fills itself, page by page, as code faults (`page_tables.rs` walks for it).
//! What remains is to take back what no longer holds, when the guest says that it changed
//! something. Dropping everything would be right, and slow: each page dropped is a page to fault
//! in again. So a flush *compares*: it looks up what is shown in the tables as they are now,
//! and drops what differs.
//!
//! There is a window of user addresses for each recent page directory, and one of kernel addresses
//! for all of them, since every process sees the same kernel.

use crate::kill::Kill;
use crate::page_tables::{RESERVED, Table, check_entry, showable, slot_of, slot_start};
use lguest_abi::paging::{ACCESSED, DIRTY, ENTRIES, PRESENT, RESERVED_DIRECTORY_INDEX};
use lguest_switcher::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use lguest_switcher::environment::Mapping;
use lguest_switcher::{GuestMemory, SpaceId, Vcpu, View};
use std::ops::Range;

/// Address spaces that are kept; the one used longest ago makes room.
const SPACES: usize = 32;

/// The user window of one page directory.
#[derive(Clone, Copy, Debug)]
struct Space {
    root: GuestPhys,
    id: SpaceId,
    /// When it was switched to last, in switches.
    used: u64,
    /// A full flush came while it wasn't current: to be compared before it is used.
    stale: bool,
}

/// What all the windows show.
pub(crate) struct Shadow {
    spaces: Vec<Space>,
    /// Index of the current one.
    current: usize,
    switches: u64,
    /// First directory entry of the kernel's addresses.
    kernel_slot: u32,
}

impl Shadow {
    /// The shadow of the first page directory, in the vCPU's first space.
    pub(crate) fn new(vcpu: &Vcpu, root: GuestPhys, kernel_start: GuestVirt) -> Self {
        let first = Space { root, id: vcpu.current_space(), used: 0, stale: false };
        Self { spaces: vec![first], current: 0, switches: 0, kernel_slot: slot_of(kernel_start) }
    }

    fn is_kernel(&self, address: GuestVirt) -> bool {
        slot_of(address) >= self.kernel_slot
    }

    /// NEW_PGTABLE: makes `root` current. Says whether it wasn't known before.
    pub(crate) fn switch(
        &mut self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
    ) -> bool {
        self.switches += 1;
        let old = self.spaces[self.current].root;
        let known = self.spaces.iter().position(|space| space.root == root);
        let index = match known {
            Some(index) => index,
            None => self.make_space(vcpu, root),
        };
        let switches = self.switches;
        let space = &mut self.spaces[index];
        space.used = switches;
        if index != self.current {
            vcpu.switch_space(space.id);
        }
        if std::mem::take(&mut space.stale) {
            compare(vcpu, memory, root, View::User(space.id), 0..ENTRIES);
        }
        self.current = index;
        self.follow_kernel(vcpu, memory, old, root);
        known.is_none()
    }

    /// An empty space for `root`: a new one, or that which wasn't used for longest.
    fn make_space(&mut self, vcpu: &mut Vcpu, root: GuestPhys) -> usize {
        if self.spaces.len() < SPACES
            && let Ok(id) = vcpu.create_space()
        {
            self.spaces.push(Space { root, id, used: 0, stale: false });
            return self.spaces.len() - 1;
        }
        let oldest = self.spaces.iter().enumerate().min_by_key(|(_, space)| space.used);
        let index = oldest.map_or(self.current, |(index, _)| index);
        let space = &mut self.spaces[index];
        vcpu.unmap_all(View::User(space.id));
        (space.root, space.stale) = (root, false);
        index
    }

    /// The kernel's window outlives a switch, but the new directory may name other tables for the
    /// kernel's addresses than the old one did: there, compare.
    fn follow_kernel(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        old: GuestPhys,
        root: GuestPhys,
    ) {
        const BYTES: usize = (ENTRIES * 4) as usize;
        let (mut before, mut after) = ([0; BYTES], [0; BYTES]);
        let start = self.kernel_slot as usize * 4;
        let first = GuestPhys(start as u32);
        let from = |root: GuestPhys| root.wrapping_add(first.0);
        if old == root
            || memory.read(from(old), &mut before[start..]).is_err()
            || memory.read(from(root), &mut after[start..]).is_err()
            || before[start..] == after[start..]
        {
            return;
        }
        let same = |a: u32, b: u32| a & !(ACCESSED | DIRTY) == b & !(ACCESSED | DIRTY);
        let (before, _) = before.as_chunks::<4>();
        let (after, _) = after.as_chunks::<4>();
        let pairs = before.iter().zip(after).zip(0..ENTRIES);
        for ((a, b), slot) in pairs.skip(self.kernel_slot as usize) {
            if !same(u32::from_le_bytes(*a), u32::from_le_bytes(*b)) {
                compare(vcpu, memory, root, View::Kernel, slot..slot + 1);
                vcpu.unmap(View::AllUsers, slot_start(slot), ENTRIES);
            }
        }
    }

    /// FLUSH_TLB of the user part, or everything of the current directory that isn't shared.
    pub(crate) fn flush_user(&self, vcpu: &mut Vcpu, memory: &GuestMemory) {
        let space = self.spaces[self.current];
        compare(vcpu, memory, space.root, View::User(space.id), 0..ENTRIES);
    }

    /// FLUSH_TLB of every shadow.
    pub(crate) fn flush_all(&mut self, vcpu: &mut Vcpu, memory: &GuestMemory) {
        for space in &mut self.spaces {
            space.stale = true;
        }
        let current = &mut self.spaces[self.current];
        current.stale = false;
        let root = current.root;
        self.flush_user(vcpu, memory);
        compare(vcpu, memory, root, View::Kernel, self.kernel_slot..ENTRIES);
    }

    /// `invlpg`: one page of the current directory.
    pub(crate) fn flush_page(&self, vcpu: &mut Vcpu, memory: &GuestMemory, address: GuestVirt) {
        let space = self.spaces[self.current];
        let wanted = Table::read(memory, space.root, slot_of(address)).showable(address);
        for view in [View::Kernel, View::User(space.id)] {
            if vcpu.mapped(view, address.page()).is_some_and(|shown| !holds(&shown, wanted, view)) {
                vcpu.unmap(view, address.page(), 1);
            }
        }
    }

    /// SET_PTE: the entry for `address` below `root` is now `entry`. It is taken at its word:
    /// accessed and dirty in it say what may be shown at once.
    pub(crate) fn set_pte(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
        address: GuestVirt,
        entry: u32,
    ) -> Result<(), Kill> {
        if address.0 >= RESERVED {
            return Err(Kill::ReservedAddress { what: "SET_PTE", address });
        }
        if entry & PRESENT != 0 {
            check_entry(memory, entry, address)?;
        }
        let directory = memory.read_u32(root.wrapping_add(slot_of(address) * 4)).unwrap_or(0);
        let wanted = showable(directory, entry, address);
        if self.is_kernel(address) {
            show(vcpu, View::Kernel, address, wanted);
            if self
                .spaces
                .iter()
                .any(|space| vcpu.mapped(View::User(space.id), address.page()).is_some())
            {
                vcpu.unmap(View::AllUsers, address.page(), 1);
            }
        } else if let Some(space) = self.spaces.iter().find(|space| space.root == root) {
            show(vcpu, View::User(space.id), address, wanted.filter(|wanted| wanted.user));
        }
        Ok(())
    }

    /// SET_PMD: the top-level entry `slot` of `root` changed.
    pub(crate) fn set_pmd(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
        slot: u32,
    ) {
        if slot >= RESERVED_DIRECTORY_INDEX {
            return;
        }
        if slot >= self.kernel_slot {
            // The kernel's window is the current directory's. That may have changed as well, with nobody
            // saying so; then a switch to `root` would find both alike and keep what is shown.
            let current = self.spaces[self.current].root;
            compare(vcpu, memory, current, View::Kernel, slot..slot + 1);
        }
        let Some(space) = self.spaces.iter().find(|space| space.root == root) else { return };
        compare(vcpu, memory, root, View::User(space.id), slot..slot + 1);
    }
}

/// What is shown may stay: the tables still say so.
fn holds(shown: &Mapping, wanted: Option<Mapping>, view: View) -> bool {
    wanted.is_some_and(|wanted| {
        shown.phys == wanted.phys
            && shown.user == wanted.user
            && (wanted.writable || !shown.writable)
            && (wanted.user || matches!(view, View::Kernel))
    })
}

/// Makes `view` show `wanted` at `address`, or nothing.
fn show(vcpu: &mut Vcpu, view: View, address: GuestVirt, wanted: Option<Mapping>) {
    let shown = vcpu.mapped(view, address.page());
    match wanted {
        Some(wanted) if shown != Some(wanted) => vcpu.map(view, wanted),
        None if shown.is_some() => vcpu.unmap(view, address.page(), 1),
        _ => {}
    }
}

/// Takes from `view` what the tables below `root` don't allow any more, inside the given
/// directory entries.
fn compare(vcpu: &mut Vcpu, memory: &GuestMemory, root: GuestPhys, view: View, slots: Range<u32>) {
    let mut wrong: Vec<(GuestVirt, u32)> = Vec::new();
    let mut table: Option<(u32, Box<Table>)> = None;
    vcpu.for_each_mapped(view, &mut |run| {
        for index in 0..run.pages {
            let distance = index * PAGE_SIZE;
            let virt = run.virt.wrapping_add(distance);
            let slot = slot_of(virt);
            if !slots.contains(&slot) {
                continue;
            }
            if table.as_ref().is_none_or(|(which, _)| *which != slot) {
                table = Some((slot, Box::new(Table::read(memory, root, slot))));
            }
            let wanted = table.as_ref().and_then(|(_, table)| table.showable(virt));
            let shown = Mapping { virt, phys: run.phys.wrapping_add(distance), pages: 1, ..run };
            if holds(&shown, wanted, view) {
                continue;
            }
            match wrong.last_mut() {
                Some((start, pages)) if start.wrapping_add(*pages * PAGE_SIZE) == virt => {
                    *pages += 1
                }
                _ => wrong.push((virt, 1)),
            }
        }
    });
    for (start, pages) in wrong {
        vcpu.unmap(view, start, pages);
    }
}
