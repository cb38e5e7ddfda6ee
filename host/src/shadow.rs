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
use crate::page_tables::{Directory, Levels, Rules, Table};
use lguest_abi::paging::{ACCESSED, DIRTY, PRESENT};
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
    rules: Rules,
    spaces: Vec<Space>,
    /// Index of the current one.
    current: usize,
    switches: u64,
    /// Where the kernel's addresses begin.
    kernel_start: GuestVirt,
}

impl Shadow {
    /// The shadow of the first page directory, in the vCPU's first space.
    pub(crate) fn new(vcpu: &Vcpu, rules: Rules, root: GuestPhys, kernel_start: GuestVirt) -> Self {
        let first = Space { root, id: vcpu.current_space(), used: 0, stale: false };
        Self { rules, spaces: vec![first], current: 0, switches: 0, kernel_start }
    }

    /// How page tables look now.
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// From now on there are page tables that the guest made; what was shown before is forgotten, and with it any spaces
    /// that it made by loading cr3.
    pub(crate) fn begin(&mut self, vcpu: &mut Vcpu, levels: Levels, root: GuestPhys) {
        self.rules.levels = levels;
        let current = self.spaces.swap_remove(self.current);
        for space in self.spaces.drain(..) {
            vcpu.destroy_space(space.id);
        }
        vcpu.unmap_all(View::Kernel);
        vcpu.unmap_all(View::User(current.id));
        self.spaces.push(Space { root, stale: false, ..current });
        self.current = 0;
    }

    fn is_kernel(&self, address: GuestVirt) -> bool {
        self.slot_of(address) >= self.kernel_slot()
    }

    fn slot_of(&self, address: GuestVirt) -> u32 {
        self.rules.levels.slot_of(address)
    }

    /// First slot of the kernel's addresses.
    fn kernel_slot(&self) -> u32 {
        self.slot_of(self.kernel_start)
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
        let id = space.id;
        if std::mem::take(&mut space.stale) {
            self.compare(vcpu, memory, root, View::User(id), 0..self.rules.levels.slots());
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
        let levels = self.rules.levels;
        let per_entry = levels.slots_per_root_entry();
        let first = self.kernel_slot() / per_entry;
        let (mut before, mut after) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        let start = first * levels.entry_bytes();
        let range = start as usize..levels.root_bytes() as usize;
        let (before, after) = (&mut before[range.clone()], &mut after[range]);
        if old == root
            || memory.read(old.wrapping_add(start), before).is_err()
            || memory.read(root.wrapping_add(start), after).is_err()
            || before == after
        {
            return;
        }
        let size = levels.entry_bytes() as usize;
        let ignored = (ACCESSED | DIRTY) as u8;
        let same = |a: &[u8], b: &[u8]| a[0] | ignored == b[0] | ignored && a[1..] == b[1..];
        let pairs = before.chunks_exact(size).zip(after.chunks_exact(size));
        for (entry, _) in (first..).zip(pairs).filter(|(_, (a, b))| !same(a, b)) {
            self.compare_root_entry(vcpu, memory, root, View::Kernel, entry);
            let start = levels.slot_start(entry * per_entry);
            vcpu.unmap(View::AllUsers, start, per_entry * levels.slot_pages());
        }
    }

    /// FLUSH_TLB of the user part, or everything of the current directory that isn't shared.
    pub(crate) fn flush_user(&self, vcpu: &mut Vcpu, memory: &GuestMemory) {
        let space = self.spaces[self.current];
        let all = 0..self.rules.levels.slots();
        self.compare(vcpu, memory, space.root, View::User(space.id), all);
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
        let kernel = self.kernel_slot()..self.rules.levels.slots();
        self.compare(vcpu, memory, root, View::Kernel, kernel);
    }

    /// `invlpg`: one page of the current directory.
    pub(crate) fn flush_page(&self, vcpu: &mut Vcpu, memory: &GuestMemory, address: GuestVirt) {
        let space = self.spaces[self.current];
        let table = Table::read(memory, self.rules, space.root, self.slot_of(address));
        let wanted = table.showable(address);
        for view in [View::Kernel, View::User(space.id)] {
            if vcpu.mapped(view, address.page()).is_some_and(|shown| !holds(&shown, wanted, view)) {
                vcpu.unmap(view, address.page(), 1);
            }
        }
    }

    /// SET_PTE: the entry for `address` below `root` is now `entry`. It is taken at its word:
    /// accessed and dirty in it say what may be shown at once. With `fault`, where the guest's last one was, that is
    /// done for the page there and for one that is shown already. Others are shown when they are touched, several at a time: a
    /// fork tells of hundreds that nobody will.
    pub(crate) fn set_pte(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
        (address, entry): (GuestVirt, u64),
        fault: Option<GuestVirt>,
    ) -> Result<(), Kill> {
        let levels = self.rules.levels;
        if address.0 >= levels.reserved() {
            return Err(Kill::ReservedAddress { what: "SET_PTE", address });
        }
        if levels == Levels::None {
            return Ok(());
        }
        if entry as u32 & PRESENT != 0 {
            self.rules.check_entry(memory, entry, address)?;
        }
        let directory = Directory::read(memory, levels, root, address);
        let wanted = directory.ok().and_then(|above| above.showable(entry, address));
        let asked_for = fault.is_none_or(|fault| fault.page() == address.page());
        if self.is_kernel(address) {
            show(vcpu, View::Kernel, address, wanted, asked_for);
            if self
                .spaces
                .iter()
                .any(|space| vcpu.mapped(View::User(space.id), address.page()).is_some())
            {
                vcpu.unmap(View::AllUsers, address.page(), 1);
            }
        } else if let Some(space) = self.spaces.iter().find(|space| space.root == root) {
            let wanted = wanted.filter(|wanted| wanted.user);
            show(vcpu, View::User(space.id), address, wanted, asked_for);
        }
        Ok(())
    }

    /// SET_PMD: entry `index` of the uppermost table `root` changed.
    pub(crate) fn set_pmd(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
        index: u32,
    ) {
        let levels = self.rules.levels;
        let per_entry = levels.slots_per_root_entry();
        if index.saturating_mul(per_entry) >= levels.slots() - 1 {
            return;
        }
        if (index + 1) * per_entry > self.kernel_slot() {
            // The kernel's window is the current directory's. That may have changed as well, with nobody
            // saying so; then a switch to `root` would find both alike and keep what is shown.
            let current = self.spaces[self.current].root;
            self.compare_root_entry(vcpu, memory, current, View::Kernel, index);
        }
        let Some(space) = self.spaces.iter().find(|space| space.root == root) else { return };
        self.compare_root_entry(vcpu, memory, root, View::User(space.id), index);
    }

    /// SET_PMD where there are three levels: entry `index` of the middle table at `table` changed. Whoever has that table
    /// is looked for: the kernel's are shared by all.
    pub(crate) fn set_middle(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        table: GuestPhys,
        index: u32,
    ) {
        let levels = self.rules.levels;
        if levels != Levels::Three || index >= levels.slots_per_root_entry() {
            return;
        }
        for (number, space) in self.spaces.iter().enumerate() {
            for entry in 0..levels.slots() / levels.slots_per_root_entry() {
                let at = space.root.wrapping_add(entry * levels.entry_bytes());
                if memory.read_u32(at).is_ok_and(|found| GuestPhys(found).page() == table.page()) {
                    let slot = entry * levels.slots_per_root_entry() + index;
                    let slots = slot..slot + 1;
                    let view = View::User(space.id);
                    self.compare(vcpu, memory, space.root, view, slots.clone());
                    if number == self.current {
                        self.compare(vcpu, memory, space.root, View::Kernel, slots);
                    }
                }
            }
        }
    }

    /// Compares what an entry of the uppermost table leads to.
    fn compare_root_entry(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
        view: View,
        entry: u32,
    ) {
        let per_entry = self.rules.levels.slots_per_root_entry();
        self.compare(vcpu, memory, root, view, entry * per_entry..(entry + 1) * per_entry);
    }

    /// Takes from `view` what the tables below `root` don't allow any more, inside the given slots.
    fn compare(
        &self,
        vcpu: &mut Vcpu,
        memory: &GuestMemory,
        root: GuestPhys,
        view: View,
        slots: Range<u32>,
    ) {
        if self.rules.levels == Levels::None {
            return;
        }
        let mut wrong: Vec<(GuestVirt, u32)> = Vec::new();
        let mut table: Option<(u32, Box<Table>)> = None;
        vcpu.for_each_mapped(view, &mut |run| {
            for piece in pieces(run, self.rules.levels) {
                let slot = self.slot_of(piece.virt);
                if !slots.contains(&slot) {
                    continue;
                }
                let table = match &mut table {
                    Some((which, table)) if *which == slot => table,
                    other => {
                        let read = Table::read(memory, self.rules, root, slot);
                        &mut other.insert((slot, Box::new(read))).1
                    }
                };
                note_wrong(&mut wrong, table, piece, view);
            }
        });
        for (start, pages) in wrong {
            vcpu.unmap(view, start, pages);
        }
    }
}

/// A run, cut where one slot ends and the next begins.
fn pieces(run: Mapping, levels: Levels) -> impl Iterator<Item = Mapping> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let virt = run.virt.wrapping_add(done * PAGE_SIZE);
        let phys = run.phys.wrapping_add(done * PAGE_SIZE);
        let room = levels.slot_pages() - virt.page_number() % levels.slot_pages();
        let pages = room.min(run.pages - done);
        done += pages;
        (pages != 0).then_some(Mapping { virt, phys, pages, ..run })
    })
}

/// Adds to `wrong` the pages of a piece inside one slot that its table doesn't allow any more. Nearly always that is
/// none of many, as when all of the linear map is looked at.
fn note_wrong(wrong: &mut Vec<(GuestVirt, u32)>, table: &Table, piece: Mapping, view: View) {
    let plain = if piece.user || matches!(view, View::Kernel) { table.agreeing(&piece) } else { 0 };
    for index in plain..piece.pages {
        let virt = piece.virt.wrapping_add(index * PAGE_SIZE);
        let phys = piece.phys.wrapping_add(index * PAGE_SIZE);
        if holds(&Mapping { virt, phys, pages: 1, ..piece }, table.showable(virt), view) {
            continue;
        }
        match wrong.last_mut() {
            Some((start, pages)) if start.wrapping_add(*pages * PAGE_SIZE) == virt => *pages += 1,
            _ => wrong.push((virt, 1)),
        }
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

/// Makes `view` show `wanted` at `address`, or nothing; where nothing is shown, only if somebody waits for it.
fn show(vcpu: &mut Vcpu, view: View, address: GuestVirt, wanted: Option<Mapping>, asked_for: bool) {
    let shown = vcpu.mapped(view, address.page());
    match wanted {
        Some(wanted) if shown != Some(wanted) && (asked_for || shown.is_some()) => {
            vcpu.map(view, wanted);
        }
        None if shown.is_some() => vcpu.unmap(view, address.page(), 1),
        _ => {}
    }
}
