//! A guest with two page directories, and words for changing what they say.

#![allow(unreachable_pub, reason = "shared by several test programs")]
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

use crate::tiny_guest::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall};

/// A second page directory, with its own table for user addresses.
pub const OTHER: u32 = FREE;
pub const OTHER_TABLE: u32 = FREE + 0x1000;
/// A frame with something in it.
pub const FRAME: u32 = FREE + 0x2000;
pub const FRAME_2: u32 = FREE + 0x3000;

/// Where the entry for a user page is, as the kernel sees it.
pub fn entry(page: u32) -> u32 {
    virt(USER_TABLE + page * 4)
}

pub fn page(index: u32) -> u32 {
    USER_CODE + index * 0x1000
}

pub fn set_pte(address: u32, value: u32) -> Hypercall {
    Hypercall::SetPte { directory: Phys(DIRECTORY), address: Virt(address), value: value.into() }
}

pub const FLUSH_USER: Hypercall = Hypercall::FlushTlb { scope: FlushScope::User };
pub const FLUSH_ALL: Hypercall = Hypercall::FlushTlb { scope: FlushScope::All };

/// A guest with two frames to tell apart, and the other directory prepared: the same kernel, other user pages.
pub fn guest() -> TinyGuest {
    let guest = TinyGuest::new();
    guest.put_word(FRAME, 0x1111);
    guest.put_word(FRAME_2, 0x2222);
    guest.put_word(OTHER + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | 7);
    guest.put_word(OTHER + (USER_CODE >> 22) * 4, OTHER_TABLE | 7);
    guest.put_word(USER_TABLE + 4 * 4, FRAME | 7);
    guest.put_word(OTHER_TABLE + 4 * 4, FRAME_2 | 7);
    guest
}
