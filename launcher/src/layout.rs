//! Where everything lies in a guest's memory before its first instruction.
//!
//! The guest wakes up with paging on, so somebody must have written page tables (later kernels see memory one-to-one until
//! they have written theirs); it is told by
//! nobody how much memory it has, so a page of facts must lie where it looks for them. From the
//! bottom: the boot parameters ([`boot_parameters`]), the command line,
//! the kernel's own segments, a great deal of nothing; and from the top down (or from [`REACHED`], if that is
//! lower): the initrd, one page directory, the [linear page tables](crate::linear_page_tables). Above all that, beyond what
//! the guest is told is memory, lies the page that lists its devices.
//!
//! This is a contract with every kernel that was ever built for this interface: the order is not
//! ours to choose.

use crate::linear_page_tables::LinearPageTables;
use crate::loader::{Kernel, Segment};
use crate::memory_size::MemorySize;
use crate::{boot_parameters, boot_parameters::BootParameters};
use lguest_abi::Generation;
use lguest_switcher::{GuestMemory, GuestPhys, OutsideMemory, PAGE_SIZE};

// ANCHOR: memory_layout
/// The places of everything in one guest's memory, found to fit.
#[derive(Clone, Debug)]
pub struct Layout {
    memory: MemorySize,
    command_line: Vec<u8>,
    initrd: Option<Initrd>,
    /// For a kernel that doesn't make its first ones itself.
    page_tables: Option<LinearPageTables>,
    generation: Generation,
}

/// The initrd's place, at the very top of memory, as far as kernels reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Initrd {
    /// Its first byte, at a page's start.
    pub start: GuestPhys,
    /// Its bytes, rounded up to pages.
    pub size: u32,
}
// ANCHOR_END: memory_layout

/// So much of memory every kernel keeps mapped and takes its initrd from. The usual 896 MiB are a limit that the boot protocol
/// has too (`initrd_addr_max`), but guests give some of their addresses to the Host, and more at the user's request (`vmalloc=`).
const REACHED: u32 = 768 << 20;

/// Why a guest can't be laid out as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A segment of the kernel lies beyond its memory.
    #[error(
        "the kernel needs memory up to {end:#x}, and {memory} end at {limit:#x}",
        limit = memory.bytes()
    )]
    KernelOutsideMemory {
        /// The first byte behind the kernel.
        end: u64,
        /// The memory asked for.
        memory: MemorySize,
    },
    /// The kernel lies where the boot parameters go.
    #[error("the kernel begins at {0}, where the launcher puts its boot parameters")]
    KernelTooLow(GuestPhys),
    /// The command line runs into the kernel.
    #[error(
        "the kernel's arguments take {length} bytes, and there is room for {room} before the kernel"
    )]
    ArgumentsTooLong {
        /// The bytes they take, spaces and end included.
        length: usize,
        /// The bytes there are.
        room: u32,
    },
    /// The kernel would drop the end of its command line.
    #[error(
        "the kernel's arguments take {length} bytes, and this kernel keeps {limit} bytes of its command line"
    )]
    CommandLineTooLong {
        /// The bytes they take, spaces included.
        length: usize,
        /// The bytes that it says it keeps.
        limit: u32,
    },
    /// An argument that the guest would read as several, or as the end.
    #[error("the kernel's argument {0:?} has a zero byte in it")]
    BadArgument(String),
    /// The initrd and the page tables run into the kernel from above.
    #[error(
        "{memory} of memory is too little: the kernel, {initrd} bytes of initrd and its page tables need {needed} bytes"
    )]
    TooLittleMemory {
        /// The memory asked for.
        memory: MemorySize,
        /// The initrd's bytes.
        initrd: u64,
        /// What would do, in bytes.
        needed: u64,
    },
    /// There may be memory enough, but not where the kernel could use it for this.
    #[error(
        "the kernel, {initrd} bytes of initrd and its page tables need {needed} bytes, and kernels reach {REACHED} when they start"
    )]
    OutOfReach {
        /// The initrd's bytes.
        initrd: u64,
        /// What they need.
        needed: u64,
    },
}

impl Layout {
    /// Finds places for a kernel, the words of its command line and `initrd` bytes of initrd
    /// (0 for none).
    ///
    /// # Errors
    /// What doesn't fit.
    pub fn plan(
        memory: MemorySize,
        kernel: &Kernel,
        generation: Generation,
        arguments: &[String],
        initrd: u64,
    ) -> Result<Self, LayoutError> {
        let command_line = command_line(arguments, kernel)?;
        if kernel.end() > u64::from(memory.bytes()) {
            return Err(LayoutError::KernelOutsideMemory { end: kernel.end(), memory });
        }
        let mapped = LinearPageTables::reach(memory, kernel.page_offset());
        let initrd_size = initrd.next_multiple_of(u64::from(PAGE_SIZE));
        let with_tables = generation.starts_with_page_tables();
        let tables_size = if with_tables { LinearPageTables::size(mapped) } else { 0 };
        let needed = kernel.end() + initrd_size + u64::from(tables_size);
        if needed > u64::from(memory.bytes()) {
            return Err(LayoutError::TooLittleMemory { memory, initrd, needed });
        }
        // Everything is at most `needed` from the top, so that nothing below can wrap.
        let top = memory.bytes().min(REACHED);
        let (true, Ok(initrd_size)) = (needed <= u64::from(top), u32::try_from(initrd_size)) else {
            return Err(LayoutError::OutOfReach { initrd, needed });
        };
        let below_initrd = GuestPhys(top - initrd_size);
        let one_to_one = !generation.is_signed();
        let page_offset = kernel.page_offset();
        let tables = || LinearPageTables::below(below_initrd, mapped, page_offset, one_to_one);
        Ok(Self {
            memory,
            command_line,
            initrd: (initrd > 0).then_some(Initrd { start: below_initrd, size: initrd_size }),
            page_tables: with_tables.then(tables),
            generation,
        })
    }

    /// Writes everything to where it belongs, and nothing else: the memory must be fresh, all
    /// zero. `kernel` and `initrd` are those the layout was planned for.
    ///
    /// # Errors
    /// The memory is smaller than planned.
    pub fn fill(
        &self,
        memory: &GuestMemory,
        kernel: &Kernel,
        initrd: &[u8],
    ) -> Result<(), OutsideMemory> {
        let (initrd_place, generation) = (self.initrd, self.generation);
        let parameters = BootParameters { memory: self.memory, initrd: initrd_place, generation };
        memory.write(boot_parameters::ADDRESS, &parameters.to_page())?;
        memory.write(boot_parameters::COMMAND_LINE, &self.command_line)?;
        for segment in kernel.segments() {
            memory.write(segment.phys(), segment.bytes())?;
        }
        if let Some(place) = self.initrd {
            memory.write(place.start, initrd)?;
        }
        for (at, table) in self.page_tables.iter().flat_map(LinearPageTables::pages) {
            memory.write(at, &table)?;
        }
        Ok(())
    }

    /// The page directory to start with; 0 if there is none.
    #[must_use]
    pub fn page_directory(&self) -> GuestPhys {
        self.page_tables.map_or(GuestPhys(0), |tables| tables.directory())
    }

    /// Where the initrd goes, if there is one.
    #[must_use]
    pub fn initrd(&self) -> Option<Initrd> {
        self.initrd
    }

    /// The page that lists the guest's devices: the first one beyond its memory.
    #[must_use]
    pub fn devices(&self) -> GuestPhys {
        GuestPhys(self.memory.bytes())
    }
}

/// Each word followed by a space, and a zero byte at the end: checked to fit below the kernel, and into what the
/// kernel keeps of it.
fn command_line(arguments: &[String], kernel: &Kernel) -> Result<Vec<u8>, LayoutError> {
    let mut line = Vec::new();
    for argument in arguments {
        if argument.contains('\0') {
            return Err(LayoutError::BadArgument(argument.clone()));
        }
        line.extend_from_slice(argument.as_bytes());
        line.push(b' ');
    }
    if let Some(limit) = kernel.command_line_limit()
        && line.len() as u64 > u64::from(limit)
    {
        return Err(LayoutError::CommandLineTooLong { length: line.len(), limit });
    }
    line.push(0);
    let start = kernel.segments().first().map_or(GuestPhys(u32::MAX), Segment::phys);
    match start.0.checked_sub(boot_parameters::COMMAND_LINE.0) {
        None | Some(0) => Err(LayoutError::KernelTooLow(start)),
        Some(room) if line.len() as u64 > u64::from(room) => {
            Err(LayoutError::ArgumentsTooLong { length: line.len(), room })
        }
        Some(_) => Ok(line),
    }
}
