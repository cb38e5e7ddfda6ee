//! What each world of the guest sees: its window, its code, its jump table.
//!
//! There is one world for the kernel and one for each user address space. The kernel's shows
//! addresses from `kernel_start` up, the same whatever address space is current; a user's shows what
//! user code may touch, and has nothing of the kernel in it, so user code can't reach that.

use super::code_store::Dropped;
use super::fetches::Fetches;
use super::{SpaceId, View};
use crate::address::GuestVirt;
use crate::breakpoints::Breakpoints;
use crate::environment::Mapping;
use crate::execute::SetupError;
use crate::execute::indirect_jumps::JumpTable;
use crate::execute::windows::{NoMapping, Slot, Windows};
use crate::frame::WorldSlot;

/// One world, beside its window.
pub(super) struct World {
    pub(super) jumps: JumpTable,
    pub(super) fetches: Fetches,
}

impl World {
    /// Page `page` may show other code than it did: branches look for it anew.
    pub(super) fn forget_jumps(&mut self, page: u32) {
        self.jumps.clear_page(page);
        // An instruction may have run over the end of the page before.
        if let Some(before) = page.checked_sub(1) {
            self.jumps.clear_end(before);
        }
    }

    /// The frame from which code of `page` was read isn't that any more, or not known to be.
    pub(super) fn forget_fetch(&mut self, page: u32) {
        self.fetches.remove(page);
        self.forget_jumps(page);
    }
}

/// All worlds.
pub(super) struct Spaces {
    pub(super) windows: Windows,
    /// The same in all worlds.
    pub(super) breakpoints: Breakpoints,
    /// By the number of their window.
    worlds: Vec<Option<World>>,
    kernel: Slot,
    current: Slot,
    kernel_start: u32,
    /// For worlds with odd segments.
    barren: JumpTable,
}

impl Spaces {
    /// The kernel's world and one user's, both empty.
    pub(super) fn new(windows: Windows, kernel_start: GuestVirt) -> Result<Self, SetupError> {
        let mut spaces = Self {
            windows,
            breakpoints: Breakpoints::default(),
            worlds: Vec::new(),
            kernel: Slot(0),
            current: Slot(0),
            kernel_start: kernel_start.0,
            barren: JumpTable::barren()?,
        };
        spaces.kernel = spaces.create()?;
        spaces.current = spaces.create()?;
        Ok(spaces)
    }

    /// Another world, empty.
    pub(super) fn create(&mut self) -> Result<Slot, SetupError> {
        let world = World { jumps: JumpTable::new()?, fetches: Fetches::new() };
        let slot = self.windows.create()?;
        let position = slot.0 as usize;
        if position >= self.worlds.len() {
            self.worlds.resize_with(position + 1, || None);
        }
        self.worlds[position] = Some(world);
        Ok(slot)
    }

    /// Gives a user's world back.
    pub(super) fn destroy(&mut self, slot: Slot) {
        assert!(slot != self.current, "the current address space can't be destroyed");
        if slot != self.kernel {
            self.windows.destroy(slot);
            self.worlds[slot.0 as usize] = None;
        }
    }

    /// The kernel's world.
    pub(super) fn kernel(&self) -> Slot {
        self.kernel
    }

    /// The current user's world.
    pub(super) fn current(&self) -> Slot {
        self.current
    }

    /// Makes a user's world the current one.
    pub(super) fn switch(&mut self, slot: Slot) {
        if slot != self.kernel && self.world(slot).is_some() {
            self.current = slot;
        }
    }

    pub(super) fn world(&self, slot: Slot) -> Option<&World> {
        self.worlds.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn world_mut(&mut self, slot: Slot) -> Option<&mut World> {
        self.worlds.get_mut(slot.0 as usize)?.as_mut()
    }

    /// First address of the kernel's part.
    pub(super) fn kernel_start(&self) -> u32 {
        self.kernel_start
    }

    /// The world whose window code at the given level runs in.
    pub(super) fn running(&self, user: bool) -> Slot {
        if user { self.current } else { self.kernel }
    }

    /// The world that keeps the code at `eip`. Kernel code below the kernel's part has none: what
    /// it shows changes with the address space, so it is looked up each time.
    pub(super) fn keeper(&self, user: bool, eip: u32) -> Option<Slot> {
        if user { Some(self.current) } else { (eip >= self.kernel_start).then_some(self.kernel) }
    }

    /// The world whose window shows `address` to code at the given level.
    pub(super) fn shower(&self, user: bool, address: u32) -> Slot {
        if !user && address >= self.kernel_start { self.kernel } else { self.current }
    }

    /// Address of the jump table of a world; of one that stays empty when its code can't rely on
    /// the address alone.
    pub(super) fn jumps(&self, slot: Slot, by_address_alone: bool) -> u64 {
        let own = self.world(slot).filter(|_| by_address_alone);
        own.map_or(self.barren.base(), |world| world.jumps.base())
    }

    /// Where the kernel's world and the current user's are, for code that relies on addresses alone.
    pub(super) fn ends(&self) -> [WorldSlot; 2] {
        [self.kernel, self.current].map(|slot| WorldSlot {
            window: self.windows.base(slot),
            table: self.jumps(slot, true),
        })
    }

    /// The worlds that a view means.
    pub(super) fn slots(&self, view: View) -> Vec<Slot> {
        let users = || (0..self.worlds.len() as u16).map(Slot).filter(|&slot| slot != self.kernel);
        match view {
            View::Kernel => vec![self.kernel],
            View::User(SpaceId(space)) => vec![Slot(space)],
            View::AllUsers => users().filter(|&slot| self.world(slot).is_some()).collect(),
        }
    }

    /// Shows a run of pages in one window. When the process has too many mappings, whole windows
    /// are emptied first: those of other address spaces, then all.
    pub(super) fn map(&mut self, slot: Slot, mapping: &Mapping, dropped: &mut u64) -> bool {
        let Err(NoMapping) = self.windows.map(slot, mapping) else { return true };
        let others: Vec<Slot> = self
            .slots(View::AllUsers)
            .into_iter()
            .filter(|&other| other != slot && other != self.current)
            .collect();
        for victims in [others, self.slots(View::AllUsers), vec![self.kernel]] {
            for victim in victims {
                if self.windows.mapped_pages(victim) > 0 {
                    self.windows.drop_mappings(victim);
                    *dropped += 1;
                }
            }
            if self.windows.map(slot, mapping).is_ok() {
                return true;
            }
        }
        false
    }

    /// Forgets what a run of pages shows.
    pub(super) fn forget(&mut self, slot: Slot, page: u32, pages: u32) {
        self.windows.forget(slot, page, pages);
        if let Some(world) = self.world_mut(slot) {
            for page in world.fetches.known_among(page, pages) {
                world.forget_fetch(page);
            }
        }
    }

    /// Forgets everything that a world shows.
    pub(super) fn forget_all(&mut self, slot: Slot) {
        self.windows.forget_all(slot);
        if let Some(world) = self.world_mut(slot) {
            for page in world.fetches.known_among(0, u32::MAX) {
                world.forget_fetch(page);
            }
        }
    }

    /// Forgets pieces of code that are gone.
    pub(super) fn forget_code(&mut self, dropped: &Dropped) {
        for world in self.worlds.iter_mut().flatten() {
            for &(id, page) in &dropped.pages {
                if world.fetches.drop_code(page, id) {
                    world.jumps.clear_page(page);
                }
            }
            for &page in &dropped.straddlers {
                world.jumps.clear_end(page);
            }
        }
    }

    /// Forgets all code.
    pub(super) fn forget_all_code(&mut self) {
        for world in self.worlds.iter_mut().flatten() {
            world.fetches.drop_all_code();
            world.jumps.clear();
        }
    }
}
