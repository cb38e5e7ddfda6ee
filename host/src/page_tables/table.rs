//! Many pages of a table at once: whether they are still what is shown.

use super::{Directory, Levels, Rules, entry_in, showable};
use lguest_abi::paging::{ACCESSED, DIRTY, FRAME_MASK, PRESENT, USER, WRITE};
use lguest_switcher::GuestMemory;
use lguest_switcher::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use lguest_switcher::environment::Mapping;

/// A page table read as a whole, to judge many of its pages at once.
pub(crate) struct Table {
    rules: Rules,
    directory: u32,
    entries: [u8; PAGE_SIZE as usize],
}

impl Table {
    /// Reads the table of a slot; one without present pages if there is none, or none that is allowed.
    pub(crate) fn read(memory: &GuestMemory, rules: Rules, root: GuestPhys, slot: u32) -> Self {
        let levels = rules.levels;
        let mut table = Self { rules, directory: 0, entries: [0; PAGE_SIZE as usize] };
        if levels != Levels::None
            && let Ok(directory) = Directory::read(memory, levels, root, levels.slot_start(slot))
            && directory.is_present()
            && levels.slot_start(slot).0 < levels.reserved()
            && memory.read(directory.table(), &mut table.entries).is_ok()
        {
            table.directory = directory.flags;
        }
        table
    }

    /// What may be shown at `address`, which lies in this table's slot, without asking again.
    pub(crate) fn showable(&self, address: GuestVirt) -> Option<Mapping> {
        let levels = self.rules.levels;
        let entry = entry_in(&self.entries, levels, address.page_number() % levels.entries());
        if entry as u32 & self.rules.forbidden != 0 {
            return None;
        }
        showable(self.directory, entry, address)
    }

    /// How many pages at the start of `shown`, which lies in this table's slot, are plainly as the entries say. There
    /// may be more: it looks at whole blocks of entries.
    pub(crate) fn agreeing(&self, shown: &Mapping) -> u32 {
        let granted = |flag, wanted: bool| self.directory & flag != 0 || !wanted;
        if !granted(USER, shown.user) || !granted(WRITE, shown.writable) {
            return 0;
        }
        let always = PRESENT | ACCESSED;
        let writable = if shown.writable { WRITE | DIRTY } else { 0 };
        let user = if shown.user { USER } else { 0 };
        let mask = FRAME_MASK | self.rules.forbidden | always | writable | self.directory & USER;
        let first = shown.phys.0 | always | writable | user;
        let levels = self.rules.levels;
        let start = (shown.virt.page_number() % levels.entries() * levels.entry_bytes()) as usize;
        let bytes = &self.entries[start..start + (shown.pages * levels.entry_bytes()) as usize];
        match levels {
            Levels::None | Levels::Two => agreeing_entries::<4>(bytes, mask, first),
            Levels::Three => agreeing_entries::<8>(bytes, mask, first),
        }
    }
}

/// How many entries of `BYTES` bytes name one frame after another: with `first` under `mask`, and nothing in the
/// upper half. Block by block, without a branch for each entry, so that the compiler can take several at once.
fn agreeing_entries<const BYTES: usize>(bytes: &[u8], mask: u32, first: u32) -> u32 {
    const BLOCK: u32 = 32;
    let mask = u64::from(mask) | u64::from(u32::MAX) << 32;
    let mut agreeing = 0;
    for block in bytes.chunks_exact(BLOCK as usize * BYTES) {
        let mut differences = 0;
        for (bytes, index) in block.chunks_exact(BYTES).zip(agreeing..) {
            let mut entry = [0; 8];
            entry[..BYTES].copy_from_slice(bytes);
            let expected = first.wrapping_add(index * PAGE_SIZE);
            differences |= u64::from_le_bytes(entry) & mask ^ u64::from(expected);
        }
        if differences != 0 {
            break;
        }
        agreeing += BLOCK;
    }
    agreeing
}

#[cfg(test)]
mod tests {
    use super::*;
    use lguest_abi::Generation;
    use lguest_abi::paging::{DIRECTORY_FLAGS, PSE};

    /// A table of 1024 pages from frame 0x100 on, all of them with `flags`.
    fn table(levels: Levels, flags: u32) -> Table {
        let rules = Rules { levels, ..Rules::new(Generation::V2_6_38) };
        let mut table =
            Table { rules, directory: DIRECTORY_FLAGS, entries: [0; PAGE_SIZE as usize] };
        for index in 0..levels.entries() {
            set(&mut table, index, plain(index, flags));
        }
        table
    }

    fn plain(index: u32, flags: u32) -> u64 {
        u64::from(((0x100 + index) * PAGE_SIZE) | flags)
    }

    fn set(table: &mut Table, index: u32, entry: u64) {
        let size = table.rules.levels.entry_bytes() as usize;
        let start = index as usize * size;
        table.entries[start..start + size].copy_from_slice(&entry.to_le_bytes()[..size]);
    }

    fn shown(levels: Levels, writable: bool, user: bool) -> Mapping {
        let (virt, phys) = (GuestVirt(0x0800_0000), GuestPhys(0x10_0000));
        Mapping { virt, phys, pages: levels.entries(), writable, user }
    }

    #[test]
    fn entries_agree_up_to_the_block_of_the_first_that_says_something_else() {
        const AT: u32 = 77;
        let flags = PRESENT | ACCESSED | WRITE | DIRTY | USER;
        for levels in [Levels::Two, Levels::Three] {
            let all = shown(levels, true, true);
            assert_eq!(table(levels, flags).agreeing(&all), all.pages);
            let matters = FRAME_MASK | flags | PSE;
            for bit in (0..levels.entry_bytes() * 8).filter(|&b| b >= 32 || matters >> b & 1 != 0) {
                let mut table = table(levels, flags);
                set(&mut table, AT, plain(AT, flags) ^ 1 << bit);
                assert_eq!(table.agreeing(&all), AT / 32 * 32, "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_shown_with_fewer_rights_agrees_but_for_whose_page_it_is() {
        let flags = PRESENT | ACCESSED | WRITE | DIRTY;
        let levels = Levels::Two;
        assert_eq!(table(levels, flags).agreeing(&shown(levels, false, false)), 1024);
        assert_eq!(table(levels, flags).agreeing(&shown(levels, false, true)), 0);
        assert_eq!(table(levels, flags | USER).agreeing(&shown(levels, false, false)), 0);
    }

    #[test]
    fn what_the_directory_doesnt_grant_no_entry_does() {
        let flags = PRESENT | ACCESSED | WRITE | DIRTY | USER;
        let levels = Levels::Two;
        let under = |directory| Table { directory, ..table(levels, flags) };
        assert_eq!(under(PRESENT | WRITE).agreeing(&shown(levels, true, true)), 0);
        assert_eq!(under(PRESENT | WRITE).agreeing(&shown(levels, true, false)), 1024);
        assert_eq!(under(PRESENT | USER).agreeing(&shown(levels, true, true)), 0);
        assert_eq!(under(PRESENT | USER).agreeing(&shown(levels, false, true)), 1024);
    }
}
