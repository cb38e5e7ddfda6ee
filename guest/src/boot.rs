//! The boot parameters: how much memory there is, the command line, the initrd.
//!
//! The launcher leaves them in physical pages 0 and 1, memory that the kernel will want for
//! other things. So they are copied first of all.
//!
//! This is a room where unsafe code lives: the copying.

use crate::memory;
use core::cell::UnsafeCell;
use core::ops::Range;
use lguest_abi::Phys;
use lguest_abi::boot::{BOOT_PARAMS_BYTES, E820_MAX, E820_RAM, E820Entry, offset};
use lguest_abi::paging::{DIRECTORY_ENTRY_BYTES, PAGE_SIZE};

/// The longest command line that is kept, in bytes.
pub const COMMAND_LINE_MAX: usize = 2048;

/// The launcher's boot parameters, copied out of the page where it left them.
#[repr(C)]
pub struct BootParams {
    page: [u8; BOOT_PARAMS_BYTES],
    command_line: [u8; COMMAND_LINE_MAX],
    command_line_length: usize,
}

/// The copy's place, written once.
struct Place(UnsafeCell<BootParams>);

// SAFETY: it is written by `copy`, before anybody can have a reference to it, and never again.
unsafe impl Sync for Place {}

static COPY: Place = Place(UnsafeCell::new(BootParams {
    page: [0; BOOT_PARAMS_BYTES],
    command_line: [0; COMMAND_LINE_MAX],
    command_line_length: 0,
}));

/// Copies the boot parameters, and the command line they point to.
///
/// # Safety
/// `params` must be the launcher's boot parameters, where the linear map shows them. To be called
/// once.
pub(crate) unsafe fn copy(params: *const u8) -> &'static BootParams {
    // SAFETY: this is the only call, and only it makes references to the copy.
    let copy = unsafe { &mut *COPY.0.get() };
    // SAFETY: there is a whole page of parameters, and the copy isn't in it.
    unsafe { params.copy_to_nonoverlapping(copy.page.as_mut_ptr(), BOOT_PARAMS_BYTES) };

    let command_line = memory::virt(Phys(copy.u32_at(offset::COMMAND_LINE_POINTER))).0;
    let command_line = core::ptr::with_exposed_provenance::<u8>(command_line as usize);
    for (at, byte) in copy.command_line.iter_mut().enumerate() {
        // SAFETY: the launcher ended the command line with a NUL, and this doesn't go beyond it.
        *byte = unsafe { command_line.add(at).read() };
        if *byte == 0 {
            break;
        }
        copy.command_line_length = at + 1;
    }
    copy
}

impl BootParams {
    /// The memory map.
    pub fn memory_map(&self) -> impl Iterator<Item = E820Entry> + '_ {
        let count = usize::from(self.page[offset::E820_COUNT as usize]).min(E820_MAX);
        let (entries, _) =
            self.page[offset::E820_MAP as usize..].as_chunks::<{ E820Entry::SIZE }>();
        entries.iter().take(count).map(E820Entry::from_bytes)
    }

    /// Usable memory, as far as 32 bits reach: from, and up to where. For memory set-up.
    pub fn usable_memory(&self) -> impl Iterator<Item = Range<Phys>> + '_ {
        let clamp =
            |address: u64| Phys(u32::try_from(address).unwrap_or(0u32.wrapping_sub(PAGE_SIZE)));
        self.memory_map()
            .filter(|entry| entry.kind == E820_RAM)
            .map(move |entry| clamp(entry.addr)..clamp(entry.addr.saturating_add(entry.size)))
    }

    /// Where usable memory ends. A guest's device descriptors are right there.
    #[must_use]
    pub fn memory_end(&self) -> Phys {
        self.usable_memory().map(|range| range.end).max().unwrap_or_default()
    }

    /// The command line: words with a space between. If it isn't UTF-8 throughout, the part that
    /// is.
    #[must_use]
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_length];
        let text = match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        text.trim_end()
    }

    /// Where the initrd is, if there is one. Its end is rounded up to a page.
    #[must_use]
    pub fn initrd(&self) -> Option<Range<Phys>> {
        let start = self.u32_at(offset::INITRD_START);
        let size = self.u32_at(offset::INITRD_SIZE);
        let loaded = self.page[offset::LOADER_TYPE as usize] != 0;
        (loaded && size != 0).then(|| Phys(start)..Phys(start.saturating_add(size)))
    }

    /// The page tables the launcher made: the directory last, and before it the tables that make
    /// the linear map.
    ///
    /// They are in use until the first [`write_cr3`](crate::page_tables::PageTables::write_cr3);
    /// then the memory is free.
    #[must_use]
    pub fn launcher_page_tables(&self) -> Range<Phys> {
        let memory_end = self.memory_end();
        let above = self.initrd().map_or(memory_end, |initrd| initrd.start).0 & !(PAGE_SIZE - 1);
        let mapped = memory_end.0.min(0u32.wrapping_sub(memory::page_offset().0));
        let pages = 1 + mapped.div_ceil(DIRECTORY_ENTRY_BYTES);
        Phys(above.saturating_sub(pages * PAGE_SIZE))..Phys(above)
    }

    /// The u32 at an offset of the page, one of [`offset`].
    fn u32_at(&self, at: u32) -> u32 {
        let at = at as usize;
        let [a, b, c, d] = [0, 1, 2, 3].map(|n| self.page[at + n]);
        u32::from_le_bytes([a, b, c, d])
    }
}
