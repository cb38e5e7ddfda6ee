//! The two kinds of guest address, kept apart by their types.
//!
//! A guest program forms *virtual* addresses; its page tables, which the embedder walks, turn
//! them into *physical* ones. Both are 32 bits, both wrap, and confusing them is the classic bug
//! of every hypervisor: so here it doesn't compile.

use std::fmt;

/// Bytes in a page, the unit of all mapping (SDM volume 3, section 5.1).
pub const PAGE_SIZE: u32 = 4096;

/// Bytes at the end of a page in which an instruction can begin and not end: the longest has 15 (SDM volume 2, section "Instruction
/// Format").
pub(crate) const OVERHANG: u32 = 14;

/// A linear address as guest code forms it, after segmentation and before paging.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestVirt(pub u32);

/// An address in the guest's physical memory, after paging.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestPhys(pub u32);

macro_rules! address {
    ($name:ident) => {
        impl $name {
            /// The first byte of the page this address lies in.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Distance from the start of the page, 0..4096.
            #[must_use]
            pub const fn offset(self) -> u32 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// The page's number, 0..2²⁰.
            #[must_use]
            pub const fn page_number(self) -> u32 {
                self.0 / PAGE_SIZE
            }

            /// This address and `bytes` more, wrapping at 4 GiB as the processor does.
            #[must_use]
            pub const fn wrapping_add(self, bytes: u32) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#010x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#010x})"), self.0)
            }
        }
    };
}

address!(GuestVirt);
address!(GuestPhys);
