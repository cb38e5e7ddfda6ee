//! Which page directory counts, and what happens when another one does.

use crate::guest::Guest;
use crate::kill::Kill;
use crate::page_tables::RESERVED;
use lguest_switcher::{Access, GuestPhys, GuestVirt, PAGE_SIZE, Vcpu, View};

impl Guest {
    /// The current page directory.
    pub(crate) fn root(&self) -> GuestPhys {
        GuestPhys(self.registers.cr3).page()
    }

    /// A page directory that the guest named: the page, found to be memory.
    pub(crate) fn page_directory(&self, named: GuestPhys) -> Result<GuestPhys, Kill> {
        let root = named.page();
        self.check_range("page directory", root, PAGE_SIZE)?;
        Ok(root)
    }

    /// NEW_PGTABLE: switches to another page directory.
    pub(crate) fn switch_root(&mut self, vcpu: &mut Vcpu, named: GuestPhys) -> Result<(), Kill> {
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
            if address.0 >= RESERVED {
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
