//! **Generations**: how the interface changed in ten years, as data.
//!
//! The interface was never promised to last. It changed with the kernel, guest and Host together: which registers
//! hold a call's arguments, which calls there are, what else the shared structure tells. None of
//! these changed what a guest *is*, so one Host serves them all: it looks here for whatever differs.
//!
//! Source: `docs/mastery.md` tells the story; each fact was read in the kernels of its time.

use crate::lguest_data::Layout;

/// A state of the interface, named for the first kernel that spoke it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Generation {
    /// As it was when it was first written down, in July 2007: before the release of 2.6.23.
    First,
    /// The time of day is told in the structure that guest and Host share.
    V2_6_23,
    /// Devices are virtio's, in tagged fields; the kernel is entered where its ELF file says.
    V2_6_24,
    /// Devices are described by a fixed record.
    V2_6_25,
    /// Arguments in other registers; a note of interrupts that wait.
    V2_6_30,
    /// A fourth argument; memory one-to-one until there are page tables.
    V2_6_38,
    /// Devices are virtio's over PCI.
    V4_0,
}

/// Words of a hypercall at most: the number, and four arguments.
pub const CALL_WORDS: usize = 5;

/// A register that may hold a word of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgumentRegister {
    /// ebx
    Ebx,
    /// ecx
    Ecx,
    /// edx
    Edx,
    /// esi
    Esi,
}

/// How a guest finds its devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceBus {
    /// A page of descriptors; DMA by keys, see [`dma`](crate::dma).
    Dma,
    /// A page of virtio descriptors made of tagged fields.
    TaggedVirtio,
    /// A page of virtio descriptors that begin with a fixed record.
    Virtio,
    /// virtio 1.0 over PCI.
    Pci,
}

impl Generation {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::First,
        Self::V2_6_23,
        Self::V2_6_24,
        Self::V2_6_25,
        Self::V2_6_30,
        Self::V2_6_38,
        Self::V4_0,
    ];

    /// Whether its kernels are entered behind a [`SIGNATURE`](crate::boot::SIGNATURE).
    #[must_use]
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::First | Self::V2_6_23)
    }

    /// Its name: `first`, or the first kernel that spoke it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::V2_6_23 => "2.6.23",
            Self::V2_6_24 => "2.6.24",
            Self::V2_6_25 => "2.6.25",
            Self::V2_6_30 => "2.6.30",
            Self::V2_6_38 => "2.6.38",
            Self::V4_0 => "4.0",
        }
    }

    /// Which kernels speak it.
    #[must_use]
    pub const fn kernels(self) -> &'static str {
        match self {
            Self::First => "the first lguest, of July 2007, and the bundled kernel",
            Self::V2_6_23 => "Linux 2.6.23",
            Self::V2_6_24 => "Linux 2.6.24",
            Self::V2_6_25 => "Linux 2.6.25 to 2.6.29",
            Self::V2_6_30 => "Linux 2.6.30 to 2.6.37",
            Self::V2_6_38 => "Linux 2.6.38 to 3.19",
            Self::V4_0 => "Linux 4.0 to 4.13",
        }
    }

    // ANCHOR: argument_registers
    /// The registers of a call's arguments, first to last. eax has its number, and gets its result.
    #[must_use]
    pub const fn argument_registers(self) -> &'static [ArgumentRegister] {
        use ArgumentRegister::{Ebx, Ecx, Edx, Esi};
        if matches!(self, Self::First | Self::V2_6_23 | Self::V2_6_24 | Self::V2_6_25) {
            &[Edx, Ebx, Ecx]
        } else {
            &[Ebx, Ecx, Edx, Esi]
        }
    }
    // ANCHOR_END: argument_registers

    /// The layouts that the structure which guest and Host share may have. Where there are several, from
    /// kernels that followed each other closely, the guest's own `kernel_address` tells which it is.
    #[must_use]
    pub const fn layouts(self) -> &'static [Layout] {
        match self {
            Self::First => &[Layout::FIRST],
            Self::V2_6_23 => &[Layout::V2_6_23],
            Self::V2_6_24 | Self::V2_6_25 => &[Layout::V2_6_24],
            Self::V2_6_30 => &[Layout::V2_6_31, Layout::V2_6_30, Layout::V2_6_38],
            Self::V2_6_38 => &[Layout::V2_6_38, Layout::V2_6_31],
            Self::V4_0 => &[Layout::V4_0],
        }
    }

    /// How its devices are found.
    #[must_use]
    pub const fn device_bus(self) -> DeviceBus {
        match self {
            Self::First | Self::V2_6_23 => DeviceBus::Dma,
            Self::V2_6_24 => DeviceBus::TaggedVirtio,
            Self::V2_6_25 | Self::V2_6_30 | Self::V2_6_38 => DeviceBus::Virtio,
            Self::V4_0 => DeviceBus::Pci,
        }
    }

    /// Its kernels start with page tables that the launcher made. Later ones find all memory where it is, one-to-one, until
    /// they load tables of their own.
    #[must_use]
    pub const fn starts_with_page_tables(self) -> bool {
        !matches!(self, Self::V2_6_38 | Self::V4_0)
    }

    /// Its Host skipped a `cli` of the kernel's that wasn't made a store to `irq_enabled`.
    #[must_use]
    pub const fn skips_cli(self) -> bool {
        matches!(self, Self::V4_0)
    }

    /// Its kernels may make calls by the instructions that other hypervisors' guests use (`vmcall` or `vmmcall`), too.
    #[must_use]
    pub const fn calls_by_vmcall(self) -> bool {
        matches!(self, Self::V2_6_30)
    }

    /// A guest hands over its whole GDT by LOAD_GDT. Some kernels of the last generation with it set single entries.
    #[must_use]
    pub const fn hands_over_gdt(self) -> bool {
        !matches!(self, Self::V2_6_30 | Self::V2_6_38 | Self::V4_0)
    }

    /// A guest asks for the time of day, since it isn't told.
    #[must_use]
    pub const fn asks_for_wallclock(self) -> bool {
        matches!(self, Self::First)
    }

    /// A guest rings its devices' bells by NOTIFY.
    #[must_use]
    pub const fn notifies(self) -> bool {
        matches!(self.device_bus(), DeviceBus::TaggedVirtio | DeviceBus::Virtio)
    }

    /// Page tables may have three levels, if the kernel was built so (PAE).
    #[must_use]
    pub const fn may_have_three_levels(self) -> bool {
        matches!(self, Self::V2_6_30 | Self::V2_6_38 | Self::V4_0)
    }
}

/// A name that no generation has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownGeneration;

impl core::fmt::Display for UnknownGeneration {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no generation of lguest's interface has that name")
    }
}

impl core::error::Error for UnknownGeneration {}

impl core::str::FromStr for Generation {
    type Err = UnknownGeneration;

    fn from_str(name: &str) -> Result<Self, UnknownGeneration> {
        let found = Self::ALL.into_iter().find(|generation| generation.name() == name);
        found.ok_or(UnknownGeneration)
    }
}

impl core::fmt::Display for Generation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::lguest_data::{HCALL_RING_SIZE, NoIrq};
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn names_can_be_read_back() {
        for generation in Generation::ALL {
            assert_eq!(generation.to_string().parse(), Ok(generation));
        }
        assert!("2.6.37".parse::<Generation>().is_err());
    }

    /// The fields behind `cr2`, in the order in which the kernels' own headers had them.
    #[test]
    fn fields_are_in_the_order_of_their_time() {
        let orders = [
            (Layout::FIRST, "status calls reserve guestid tsc start end"),
            (Layout::V2_6_23, "time status calls reserve guestid tsc start end"),
            (Layout::V2_6_24, "time status calls reserve tsc pgdir start end kernel syscall"),
            (
                Layout::V2_6_30,
                "time pending status calls reserve tsc pgdir start end kernel syscall",
            ),
            (
                Layout::V2_6_31,
                "time pending status calls reserve tsc pgdir start end kernel syscall",
            ),
            (Layout::V2_6_38, "time pending status calls reserve tsc start end kernel syscall"),
            (Layout::V4_0, "time pending status calls reserve tsc iret kernel syscall"),
        ];
        for (layout, order) in orders {
            let mut next = 12;
            for field in order.split(' ') {
                let (at, bytes) = match (field, layout.noirq) {
                    ("time", _) => (layout.time, 8),
                    ("pending", _) => (layout.irq_pending, 4),
                    ("status", _) => (Some(layout.hcall_status), 64),
                    ("calls", _) => (Some(layout.hcalls), 64 * 4 * layout.entry_words),
                    ("reserve", _) => (Some(layout.reserve_mem), 4),
                    ("guestid", _) => (layout.guestid, 4),
                    ("tsc", _) => (Some(layout.tsc_khz), 4),
                    ("pgdir", _) => (layout.pgdir, 4),
                    ("start", NoIrq::Range(at, _)) => (Some(at), 4),
                    ("end", NoIrq::Range(_, at)) => (Some(at), 4),
                    ("iret", NoIrq::At(at)) => (Some(at), 4),
                    ("kernel", _) => (layout.kernel_address, 4),
                    ("syscall", _) => (layout.syscall_vec, 4),
                    _ => panic!("{field} in {layout:?}"),
                };
                assert_eq!(at, Some(next), "{field} in {layout:?}");
                next += bytes;
            }
        }
    }

    /// The fields of each layout follow each other without a gap, from `irq_enabled` to the end.
    #[test]
    fn layouts_have_no_gaps() {
        for layout in Generation::ALL.iter().flat_map(|generation| generation.layouts()) {
            let mut fields: Vec<(u32, u32)> = std::vec![(0, 12)];
            let ring = HCALL_RING_SIZE as u32;
            fields.extend(layout.time.map(|at| (at, 8)));
            fields.push((layout.hcall_status, ring));
            fields.push((layout.hcalls, ring * layout.entry_words * 4));
            fields.extend([layout.reserve_mem, layout.tsc_khz].map(|at| (at, 4)));
            let optional =
                [layout.irq_pending, layout.guestid, layout.pgdir, layout.kernel_address];
            fields.extend(optional.into_iter().flatten().map(|at| (at, 4)));
            fields.extend(layout.syscall_vec.map(|at| (at, 4)));
            match layout.noirq {
                NoIrq::Range(start, end) => fields.extend([(start, 4), (end, 4)]),
                NoIrq::At(at) => fields.push((at, 4)),
            }
            fields.sort_unstable();
            for pair in fields.windows(2) {
                assert_eq!(pair[0].0 + pair[0].1, pair[1].0, "{layout:?}");
            }
            assert_eq!(fields.last().map(|(at, bytes)| at + bytes), Some(layout.size));
        }
    }
}
