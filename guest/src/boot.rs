//! The boot parameters: how much memory there is, the command line, the initrd.

use core::ops::Range;
use lguest_abi::Phys;
use lguest_abi::boot::E820Entry;

/// The launcher's boot parameters, copied out of the page where it left them.
pub struct BootParams {
    page: [u8; 4096],
    command_line: [u8; 2048],
}

impl BootParams {
    /// The memory map.
    pub fn memory_map(&self) -> impl Iterator<Item = E820Entry> + '_ ;
    /// Where usable memory ends: the device descriptor page is right there.
    pub fn memory_end(&self) -> Phys;
    /// The command line, without the space behind the last word. Bytes that aren't UTF-8 end it.
    pub fn command_line(&self) -> &str;
    /// Where the initrd is, if there is one. Its end is rounded up to a page.
    pub fn initrd(&self) -> Option<Range<Phys>>;
    /// The page tables the launcher made: in use until the first [`write_cr3`](crate::page_tables::PageTables::write_cr3), then free.
    pub fn launcher_page_tables(&self) -> Range<Phys>;
}
