//! The memory that guest and Host share: one structure of 1120 bytes.
//!
//! The guest owns it and tells the Host where it is by `LGUEST_INIT`. Through it pass the things
//! that are too frequent for a call: whether interrupts are enabled is a word here, so that
//! enabling them is one store, and calls that can wait are written into a ring here.
//!
//! Every field is an atomic, because somebody else may write it at any time. A guest makes one
//! static of [`LguestData::new`]; the Host reads and writes the guest's memory at [`offset`].

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};

/// How many calls fit in the ring.
pub const HCALL_RING_SIZE: usize = 64;

/// A ring entry's status once the Host has carried it out (and before it is first used).
pub const HCALL_DONE: u8 = 0xff;

/// The status the guest writes when an entry waits for the Host. Anything but [`HCALL_DONE`]
/// counts.
pub const HCALL_PENDING: u8 = 0;

/// The bit of `irq_enabled` that counts: where eflags has IF. The guest may store a whole eflags
/// word there.
pub const IRQ_ENABLED: u32 = 1 << 9;

/// What the Host writes to `reserve_mem`: the top 4 MiB of virtual addresses are its own.
pub const RESERVE_MEM: u32 = 4 << 20;

/// One entry of the ring: the registers that a direct call would have, in the order of
/// [`Hypercall::encode`](crate::Hypercall::encode).
#[repr(C)]
#[derive(Debug, Default)]
pub struct RingEntry {
    /// The call's number.
    pub eax: AtomicU32,
    /// First argument.
    pub edx: AtomicU32,
    /// Second argument.
    pub ebx: AtomicU32,
    /// Third argument.
    pub ecx: AtomicU32,
}

impl RingEntry {
    /// An entry of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            eax: AtomicU32::new(0),
            edx: AtomicU32::new(0),
            ebx: AtomicU32::new(0),
            ecx: AtomicU32::new(0),
        }
    }
}

// ANCHOR: lguest_data
/// What guest and Host share.
#[repr(C)]
#[derive(Debug)]
pub struct LguestData {
    /// Bit 9 set: interrupts may be delivered. Only that bit counts. Written by the guest, and by
    /// the Host on delivery.
    pub irq_enabled: AtomicU32,
    /// Bit n set: interrupt n is masked. Written by the guest.
    pub blocked_interrupts: AtomicU32,
    /// The address of the last page fault. Written by the Host.
    pub cr2: AtomicU32,
    /// For each ring entry, [`HCALL_DONE`] or something else. Written by both.
    pub hcall_status: [AtomicU8; HCALL_RING_SIZE],
    /// The ring of calls that wait. Written by the guest.
    pub hcalls: [RingEntry; HCALL_RING_SIZE],
    /// Bytes at the top of virtual addresses that are the Host's. Written by the Host at init.
    pub reserve_mem: AtomicU32,
    /// The guest's number, unique on its host. Written by the Host at init.
    pub guestid: AtomicU16,
    padding: AtomicU16,
    /// Speed of the time stamp counter in kHz; 0 if it isn't constant. Written by the Host at init.
    pub tsc_khz: AtomicU32,
    /// No interrupt is delivered while eip is in `noirq_start..noirq_end`. Written by the guest
    /// before init.
    pub noirq_start: AtomicU32,
    /// See [`noirq_start`](Self::noirq_start).
    pub noirq_end: AtomicU32,
}
// ANCHOR_END: lguest_data

impl LguestData {
    /// Bytes in the structure.
    pub const SIZE: usize = 1120;

    /// How it looks before init: interrupts off, every ring entry done, the rest 0.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            irq_enabled: AtomicU32::new(0),
            blocked_interrupts: AtomicU32::new(0),
            cr2: AtomicU32::new(0),
            hcall_status: [const { AtomicU8::new(HCALL_DONE) }; HCALL_RING_SIZE],
            hcalls: [const { RingEntry::new() }; HCALL_RING_SIZE],
            reserve_mem: AtomicU32::new(0),
            guestid: AtomicU16::new(0),
            padding: AtomicU16::new(0),
            tsc_khz: AtomicU32::new(0),
            noirq_start: AtomicU32::new(0),
            noirq_end: AtomicU32::new(0),
        }
    }
}

impl Default for LguestData {
    fn default() -> Self {
        Self::new()
    }
}

/// Where each field is, in bytes from the start of [`LguestData`].
pub mod offset {
    /// u32
    pub const IRQ_ENABLED: u32 = 0;
    /// u32
    pub const BLOCKED_INTERRUPTS: u32 = 4;
    /// u32
    pub const CR2: u32 = 8;
    /// 64 × u8
    pub const HCALL_STATUS: u32 = 12;
    /// 64 × four u32
    pub const HCALLS: u32 = 76;
    /// u32
    pub const RESERVE_MEM: u32 = 1100;
    /// u16
    pub const GUESTID: u32 = 1104;
    /// u32
    pub const TSC_KHZ: u32 = 1108;
    /// u32
    pub const NOIRQ_START: u32 = 1112;
    /// u32
    pub const NOIRQ_END: u32 = 1116;
}

/// Where a guest says that it must not be interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoIrq {
    /// Two fields hold the first address of a range, and the first one behind it.
    Range(u32, u32),
    /// A field holds the address of one instruction: an `iret`.
    At(u32),
}

/// How the structure looks in a generation of the interface: offsets in bytes from its start. Fields are u32, but for the
/// status bytes, the ring, and `guestid`, which is a u16. `irq_enabled`, `blocked_interrupts` and `cr2` are always first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes in all.
    pub size: u32,
    /// Seconds since 1970, and behind them nanoseconds. Written by the Host at init and with each interrupt.
    pub time: Option<u32>,
    /// Bit 9 set: an interrupt waits for nothing but to be enabled. Written by the Host.
    pub irq_pending: Option<u32>,
    /// The status bytes of the ring.
    pub hcall_status: u32,
    /// The ring.
    pub hcalls: u32,
    /// Words of an entry of the ring.
    pub entry_words: u32,
    /// Such an entry has its first argument last: registers in the order in which a Host saved them.
    pub first_argument_last: bool,
    /// As [`LguestData::reserve_mem`].
    pub reserve_mem: u32,
    /// As [`LguestData::guestid`].
    pub guestid: Option<u32>,
    /// As [`LguestData::tsc_khz`].
    pub tsc_khz: u32,
    /// Where the launcher's page directory is. Written by the Host at init.
    pub pgdir: Option<u32>,
    /// Where the guest isn't interrupted. Written by the guest.
    pub noirq: NoIrq,
    /// Where virtual addresses begin that are the same in all address spaces. Written by the guest.
    pub kernel_address: Option<u32>,
    /// The vector of system calls. Written by the guest.
    pub syscall_vec: Option<u32>,
}

impl Layout {
    /// That of [`LguestData`].
    pub const FIRST: Self = Self {
        size: LguestData::SIZE as u32,
        time: None,
        irq_pending: None,
        hcall_status: offset::HCALL_STATUS,
        hcalls: offset::HCALLS,
        entry_words: 4,
        first_argument_last: false,
        reserve_mem: offset::RESERVE_MEM,
        guestid: Some(offset::GUESTID),
        tsc_khz: offset::TSC_KHZ,
        pgdir: None,
        noirq: NoIrq::Range(offset::NOIRQ_START, offset::NOIRQ_END),
        kernel_address: None,
        syscall_vec: None,
    };

    /// The same, moved down by the time.
    pub const V2_6_23: Self = Self {
        size: 1128,
        time: Some(12),
        hcall_status: 20,
        hcalls: 84,
        reserve_mem: 1108,
        guestid: Some(1112),
        tsc_khz: 1116,
        noirq: NoIrq::Range(1120, 1124),
        ..Self::FIRST
    };

    /// No `guestid`, since devices have addresses of their own; and three things that the Host knew from elsewhere before.
    pub const V2_6_24: Self = Self {
        size: 1136,
        first_argument_last: true,
        guestid: None,
        tsc_khz: 1112,
        pgdir: Some(1116),
        noirq: NoIrq::Range(1120, 1124),
        kernel_address: Some(1128),
        syscall_vec: Some(1132),
        ..Self::V2_6_23
    };

    /// With `irq_pending`.
    pub const V2_6_30: Self = Self {
        size: 1140,
        first_argument_last: false,
        irq_pending: Some(20),
        hcall_status: 24,
        hcalls: 88,
        reserve_mem: 1112,
        tsc_khz: 1116,
        pgdir: Some(1120),
        noirq: NoIrq::Range(1124, 1128),
        kernel_address: Some(1132),
        syscall_vec: Some(1136),
        ..Self::V2_6_24
    };

    // ANCHOR: layouts_since_2_6_31
    /// With a fourth argument in each entry of the ring.
    pub const V2_6_31: Self = Self {
        size: 1396,
        entry_words: 5,
        reserve_mem: 1368,
        tsc_khz: 1372,
        pgdir: Some(1376),
        noirq: NoIrq::Range(1380, 1384),
        kernel_address: Some(1388),
        syscall_vec: Some(1392),
        ..Self::V2_6_30
    };

    /// No page directory any more.
    pub const V2_6_38: Self = Self {
        size: 1392,
        pgdir: None,
        noirq: NoIrq::Range(1376, 1380),
        kernel_address: Some(1384),
        syscall_vec: Some(1388),
        ..Self::V2_6_31
    };
    // ANCHOR_END: layouts_since_2_6_31

    /// One instruction is protected, since the other isn't in the way any more.
    pub const V4_0: Self = Self {
        size: 1388,
        noirq: NoIrq::At(1376),
        kernel_address: Some(1380),
        syscall_vec: Some(1384),
        ..Self::V2_6_38
    };
}

const _: () = {
    assert!(size_of::<LguestData>() == LguestData::SIZE);
    assert!(size_of::<RingEntry>() == 16);
    assert!(offset_of!(RingEntry, eax) == 0);
    assert!(offset_of!(RingEntry, edx) == 4);
    assert!(offset_of!(RingEntry, ebx) == 8);
    assert!(offset_of!(RingEntry, ecx) == 12);
    assert!(offset_of!(LguestData, irq_enabled) == offset::IRQ_ENABLED as usize);
    assert!(offset_of!(LguestData, blocked_interrupts) == offset::BLOCKED_INTERRUPTS as usize);
    assert!(offset_of!(LguestData, cr2) == offset::CR2 as usize);
    assert!(offset_of!(LguestData, hcall_status) == offset::HCALL_STATUS as usize);
    assert!(offset_of!(LguestData, hcalls) == offset::HCALLS as usize);
    assert!(offset_of!(LguestData, reserve_mem) == offset::RESERVE_MEM as usize);
    assert!(offset_of!(LguestData, guestid) == offset::GUESTID as usize);
    assert!(offset_of!(LguestData, tsc_khz) == offset::TSC_KHZ as usize);
    assert!(offset_of!(LguestData, noirq_start) == offset::NOIRQ_START as usize);
    assert!(offset_of!(LguestData, noirq_end) == offset::NOIRQ_END as usize);
};
