//! Breakpoints that the processor itself keeps: what DR0 to DR3 and DR7 ask for, and what DR6 says of
//! a hit (SDM volume 3, section "Debug Registers").
//!
//! The registers are the embedder's; it tells the Switcher what they mean, by
//! [`Vcpu::set_breakpoints`](crate::Vcpu::set_breakpoints), and hears of hits by
//! [`Exit::Debug`](crate::Exit::Debug). Addresses are linear ones: the same memory at another address
//! has no breakpoint.

use crate::address::GuestVirt;

/// Breakpoints that a processor has.
const SLOTS: usize = 4;

/// Bit BS of DR6: the instruction was a single step, because TF is set. Bits 0 to 3 say which
/// breakpoints were hit.
pub const SINGLE_STEP: u32 = 1 << 14;

/// What hits a breakpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Execute,
    Write,
    ReadWrite,
}

/// One breakpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Breakpoint {
    kind: Kind,
    start: u32,
    len: u32,
}

impl Breakpoint {
    /// Before the instruction whose first byte is at `address`.
    #[must_use]
    pub const fn execute(address: GuestVirt) -> Self {
        Self { kind: Kind::Execute, start: address.0, len: 1 }
    }

    /// Behind an instruction that writes any of the `len` bytes (1, 2, 4 or 8) at `address`, which is cut to a
    /// multiple of that.
    ///
    /// # Panics
    /// When `len` is another number.
    #[must_use]
    pub const fn write(address: GuestVirt, len: u32) -> Self {
        Self::data(Kind::Write, address, len)
    }

    /// The same, behind one that reads or writes.
    ///
    /// # Panics
    /// When `len` is another number.
    #[must_use]
    pub const fn read_write(address: GuestVirt, len: u32) -> Self {
        Self::data(Kind::ReadWrite, address, len)
    }

    const fn data(kind: Kind, address: GuestVirt, len: u32) -> Self {
        assert!(matches!(len, 1 | 2 | 4 | 8), "1, 2, 4 or 8 bytes have a breakpoint");
        Self { kind, start: address.0 & !(len - 1), len }
    }

    /// The breakpoints that DR0 to DR3 and DR7 describe: those that L or G enables, but for the ones on
    /// ports.
    #[must_use]
    pub fn from_registers(addresses: [u32; SLOTS], dr7: u32) -> [Option<Self>; SLOTS] {
        const LENGTHS: [u32; 4] = [1, 2, 8, 4];
        let mut slot = 0;
        addresses.map(|address| {
            let (enabled, condition) = (dr7 >> (2 * slot) & 3, dr7 >> (16 + 4 * slot) & 15);
            slot += 1;
            let (at, len) = (GuestVirt(address), LENGTHS[condition as usize >> 2]);
            match condition & 3 {
                _ if enabled == 0 => None,
                0 => Some(Self::execute(at)),
                1 => Some(Self::write(at, len)),
                2 => None,
                _ => Some(Self::read_write(at, len)),
            }
        })
    }

    fn is_data(&self) -> bool {
        self.kind != Kind::Execute
    }

    /// Whether it concerns any of `len` bytes at `at`. Addresses wrap.
    fn overlaps(&self, at: u32, len: u32) -> bool {
        at.wrapping_sub(self.start) < self.len || self.start.wrapping_sub(at) < len
    }
}

/// All breakpoints of a processor.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Breakpoints([Option<Breakpoint>; SLOTS]);

/// A page that has bytes with data breakpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WatchedPage {
    /// Its number.
    pub(crate) page: u32,
    /// Only writes are of interest.
    pub(crate) readable: bool,
}

impl Breakpoints {
    pub(crate) fn new(slots: [Option<Breakpoint>; SLOTS]) -> Self {
        Self(slots)
    }

    /// The bits of DR6 for those that `hit` picks.
    fn bits(&self, hit: impl Fn(&Breakpoint) -> bool) -> u32 {
        let slots = self.0.iter().enumerate();
        slots.filter(|(_, slot)| slot.as_ref().is_some_and(&hit)).map(|(i, _)| 1 << i).sum()
    }

    /// What an instruction at `linear` hits before it begins.
    pub(crate) fn before(&self, linear: u32) -> u32 {
        self.bits(|slot| !slot.is_data() && slot.start == linear)
    }

    /// What an access to `len` bytes at `at` hits.
    pub(crate) fn touched(&self, at: GuestVirt, len: u32, write: bool) -> u32 {
        let concerns = |slot: &Breakpoint| slot.kind == Kind::ReadWrite || write;
        self.bits(|slot| slot.is_data() && concerns(slot) && slot.overlaps(at.0, len))
    }

    /// How many of `len` bytes at `at` come before the first with a data breakpoint.
    pub(crate) fn untouched(&self, at: GuestVirt, len: u32) -> u32 {
        let data = self.0.iter().flatten().filter(|slot| slot.is_data());
        let before =
            data.map(|slot| if slot.overlaps(at.0, 1) { 0 } else { slot.start.wrapping_sub(at.0) });
        before.fold(len, u32::min)
    }

    /// Whether accesses to a page are of interest.
    pub(crate) fn watches(&self, page: u32, write: bool) -> bool {
        self.watched_pages().any(|watched| watched.page == page && (write || !watched.readable))
    }

    /// The pages of the data breakpoints; perhaps one of them twice.
    pub(crate) fn watched_pages(&self) -> impl Iterator<Item = WatchedPage> {
        self.0.iter().flatten().filter(|slot| slot.is_data()).map(|slot| WatchedPage {
            page: GuestVirt(slot.start).page_number(),
            readable: slot.kind == Kind::Write,
        })
    }

    /// The addresses of instructions with a breakpoint.
    pub(crate) fn instructions(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flatten().filter(|slot| !slot.is_data()).map(|slot| slot.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(breakpoint: Breakpoint) -> Breakpoints {
        Breakpoints::new([None, Some(breakpoint), None, None])
    }

    #[test]
    fn registers_are_read_as_the_manual_has_it() {
        // L0, execute; G1, write, 2 bytes; L2, a port; DR3 disabled.
        let dr7 = 1 | 1 << 3 | 1 << 4 | 0b0101 << 20 | 0b1110 << 24 | 0b1111 << 28;
        let at = GuestVirt(0x1003);
        let read = Breakpoint::from_registers([0x1003; 4], dr7);
        let two = Breakpoint { kind: Kind::Write, start: 0x1002, len: 2 };
        assert_eq!(read, [Some(Breakpoint::execute(at)), Some(two), None, None]);
        // G3, read or write, 4 and 8 bytes.
        for (condition, len, start) in [(0b1111, 4, 0x1000), (0b1011, 8, 0x1000)] {
            let read = Breakpoint::from_registers([0x1003; 4], 1 << 7 | condition << 28);
            assert_eq!(read[3], Some(Breakpoint { kind: Kind::ReadWrite, start, len }));
        }
    }

    #[test]
    fn any_byte_counts_and_addresses_wrap() {
        let breakpoints = one(Breakpoint::write(GuestVirt(0x1004), 4));
        for (at, len, hit) in [
            (0x1000, 4, false),
            (0x1000, 5, true),
            (0x1007, 1, true),
            (0x1008, 4, false),
            (0x0ff0, 0x100, true),
        ] {
            let touched = breakpoints.touched(GuestVirt(at), len, true);
            assert_eq!(touched, u32::from(hit) << 1, "{at:#x}, {len}");
            assert_eq!(breakpoints.touched(GuestVirt(at), len, false), 0);
        }
        let top = one(Breakpoint::read_write(GuestVirt(0xffff_fffc), 4));
        assert_eq!(top.touched(GuestVirt(0xffff_fff0), 16, false), 2);
        assert_eq!(top.touched(GuestVirt(0), 4, true), 0);
        let bottom = one(Breakpoint::read_write(GuestVirt(0), 1));
        assert_eq!(bottom.touched(GuestVirt(0xffff_fffe), 3, false), 2);
        assert_eq!(bottom.touched(GuestVirt(0xffff_fffe), 2, false), 0);
    }

    #[test]
    fn runs_end_before_what_is_watched() {
        let breakpoints = Breakpoints::new([
            Some(Breakpoint::write(GuestVirt(0x1004), 4)),
            Some(Breakpoint::execute(GuestVirt(0x1001))),
            Some(Breakpoint::read_write(GuestVirt(0x1020), 2)),
            None,
        ]);
        for (at, len, untouched) in
            [(0x1000, 64, 4), (0x1006, 64, 0), (0x1008, 64, 0x18), (0x1008, 8, 8), (0x1022, 64, 64)]
        {
            assert_eq!(breakpoints.untouched(GuestVirt(at), len), untouched, "{at:#x}");
        }
    }

    #[test]
    fn kinds_are_kept_apart() {
        let both = Breakpoints::new([
            Some(Breakpoint::execute(GuestVirt(0x1000))),
            Some(Breakpoint::read_write(GuestVirt(0x1000), 1)),
            Some(Breakpoint::execute(GuestVirt(0x1000))),
            None,
        ]);
        assert_eq!((both.before(0x1000), both.before(0x1001)), (0b101, 0));
        assert_eq!(both.touched(GuestVirt(0x1000), 1, false), 0b10);
        assert!(both.watches(1, false) && both.watches(1, true) && !both.watches(2, true));
        let written = one(Breakpoint::write(GuestVirt(0x1fff), 1));
        assert!(!written.watches(1, false) && written.watches(1, true));
    }
}
