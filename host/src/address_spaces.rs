//! Which page directory counts, and what happens when another one does.

use crate::guest::Guest;
use crate::kill::Kill;
use crate::page_tables::Levels;
use lguest_abi::paging::PRESENT;
use lguest_switcher::{Access, GuestPhys, GuestVirt, PAGE_SIZE, Vcpu, View};

impl Guest {
    /// The current page directory.
    pub(crate) fn root(&self) -> GuestPhys {
        self.shadow.rules().levels.root(self.registers.cr3)
    }

    /// A page directory that the guest named: found to be memory.
    pub(crate) fn page_directory(&self, named: GuestPhys) -> Result<GuestPhys, Kill> {
        let levels = self.shadow.rules().levels;
        let root = levels.root(named.0);
        self.check_range("page directory", root, levels.root_bytes())?;
        Ok(root)
    }

    /// The first NEW_PGTABLE of a guest that saw memory one-to-one, or whose tables may have another number of levels than
    /// the launcher's.
    fn begin_paging(&mut self, vcpu: &mut Vcpu, named: GuestPhys) -> Result<(), Kill> {
        let levels = self.levels_of(named)?;
        let root = levels.root(named.0);
        self.check_range("page directory", root, levels.root_bytes())?;
        self.registers.cr3 = root.0;
        self.shadow.begin(vcpu, levels, root);
        if let Some(shared) = &self.shared {
            shared.set_reserve_mem(&self.memory, levels.slot_bytes());
        }
        self.pin_stack(vcpu)
    }

    // ANCHOR: levels_of
    /// How many levels the tables at `named` have, which nobody says. The kernel's own addresses must be mapped: with two
    /// levels by an entry of 32 bits, which is at a place that is empty in the four entries of three levels.
    fn levels_of(&self, named: GuestPhys) -> Result<Levels, Kill> {
        let two = Levels::Two;
        let entry = two.slot_of(GuestVirt(self.page_offset)) * two.entry_bytes();
        let at = two.root(named.0).wrapping_add(entry);
        let found = self.memory.read_u32(at).map_err(|_| Kill::BadAddress {
            what: "page directory",
            start: named,
            bytes: u64::from(PAGE_SIZE),
        })?;
        let maps_kernel = found & PRESENT != 0;
        let three = self.generation.may_have_three_levels() && !maps_kernel;
        Ok(if three { Levels::Three } else { two })
    }
    // ANCHOR_END: levels_of

    /// NEW_PGTABLE: switches to another page directory.
    pub(crate) fn switch_root(&mut self, vcpu: &mut Vcpu, named: GuestPhys) -> Result<(), Kill> {
        if !self.has_own_tables && self.generation.may_have_three_levels() {
            self.has_own_tables = true;
            return self.begin_paging(vcpu, named);
        }
        let root = self.page_directory(named)?;
        self.registers.cr3 = root.0;
        if self.shadow.switch(vcpu, &self.memory, root) {
            self.pin_stack(vcpu)?;
        }
        Ok(())
    }

    /// A `mov` to cr3: the same, and a flush.
    pub(crate) fn load_root(&mut self, vcpu: &mut Vcpu, named: GuestPhys) -> Result<(), Kill> {
        let root = self.page_directory(named)?;
        self.shadow.switch(vcpu, &self.memory, root);
        self.flush_all(vcpu)
    }

    /// FLUSH_TLB of everything.
    pub(crate) fn flush_all(&mut self, vcpu: &mut Vcpu) -> Result<(), Kill> {
        self.shadow.flush_all(vcpu, &self.memory);
        self.pin_stack(vcpu)
    }

    /// Makes the pages of the trap stack present and writable: the one that holds esp, and the one below.
    pub(crate) fn pin_stack(&mut self, vcpu: &mut Vcpu) -> Result<(), Kill> {
        let stack = self.stack;
        for page in 0..stack.pages {
            let address = GuestVirt(stack.esp.wrapping_sub(page * PAGE_SIZE));
            if address.0 >= self.shadow.rules().levels.reserved() {
                return Err(Kill::ReservedAddress { what: "the trap stack", address });
            }
            let mapping = self.walk().access(address, Access::Write, false);
            let mapping =
                mapping.map_err(|refused| refused.kill_or(Kill::BadStackPage { address }))?;
            let kernel = address.0 >= self.page_offset;
            let shown = vcpu.mapped(View::Kernel, address.page());
            if kernel && shown.is_none_or(|shown| !shown.writable) {
                vcpu.map(View::Kernel, mapping);
            }
        }
        Ok(())
    }
}
