//! What is on the kernel's stack after a trap: all that goes back into registers.

use lguest_abi::segments::{INITIAL_EFLAGS, KERNEL_LEVEL, USER_CS, USER_DS, USER_LEVEL};

/// The registers of whoever was interrupted. [`entry`](super::entry) pushes them; the upper part is pushed by the processor.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub(crate) struct TrapFrame {
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
    pub(crate) esi: u32,
    pub(crate) edi: u32,
    pub(crate) ebp: u32,
    pub(crate) eax: u32,
    pub(crate) ds: u32,
    pub(crate) es: u32,
    /// What happened.
    pub(crate) vector: u32,
    /// More about it, for some traps; 0 for others.
    pub(crate) error: u32,
    pub(crate) eip: u32,
    pub(crate) cs: u32,
    pub(crate) eflags: u32,
    /// From user mode only, as is ss.
    pub(crate) esp: u32,
    pub(crate) ss: u32,
}

/// eflags' IF.
const INTERRUPTS: u32 = 1 << 9;

impl TrapFrame {
    /// A process's first registers.
    pub(crate) fn for_program(entry: u32, stack: u32) -> Self {
        Self {
            ds: USER_DS.into(),
            es: USER_DS.into(),
            eip: entry,
            cs: USER_CS.into(),
            eflags: INITIAL_EFLAGS,
            esp: stack,
            ss: USER_DS.into(),
            ..Self::default()
        }
    }

    /// Whether it was a process, and not the kernel.
    pub(crate) fn is_from_user(&self) -> bool {
        const { assert!(KERNEL_LEVEL != USER_LEVEL) };
        self.cs & 3 == u32::from(USER_LEVEL)
    }

    /// Whether interrupts were enabled.
    pub(crate) fn had_interrupts(&self) -> bool {
        self.eflags & INTERRUPTS != 0
    }

    /// A system call's arguments.
    pub(crate) fn arguments(&self) -> [u32; 6] {
        [self.ebx, self.ecx, self.edx, self.esi, self.edi, self.ebp]
    }
}
