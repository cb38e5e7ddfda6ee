//! The lguest back end: each operation as a question to the Host.
//!
//! The chapters are those of the table. Read [`hypercalls`] first, on how a question is asked.

pub mod dma;
pub mod hypercalls;
pub mod shared_page;

mod interrupts;
mod page_tables;
mod power;
mod processor;
mod segments;
mod time;

use crate::assembly;
use crate::machine::Machine;
use crate::memory::phys_of;
use core::sync::atomic::Ordering;
use lguest_abi::Hypercall;
use shared_page::LGUEST_DATA;

/// A guest of lguest, as a machine.
#[derive(Clone, Copy, Debug)]
pub struct Lguest;

impl Machine for Lguest {
    fn name(&self) -> &'static str {
        "lguest"
    }
}

// ANCHOR: introduce
/// Tells the Host who we are and where we meet. It is the first call, and made once.
pub(crate) fn introduce() {
    let data = &LGUEST_DATA.data;
    let (start, end) = assembly::noirq_range();
    data.noirq_start.store(start, Ordering::Relaxed);
    data.noirq_end.store(end, Ordering::Relaxed);
    hypercalls::hcall(Hypercall::LguestInit { data: phys_of(data) });
    time::choose_clock_source(data.tsc_khz.load(Ordering::Relaxed));
}
// ANCHOR_END: introduce

/// This guest's number, unique on its host.
#[must_use]
pub fn guest_id() -> u16 {
    LGUEST_DATA.data.guestid.load(Ordering::Relaxed)
}

/// How many bytes at the top of virtual addresses the Host said are its own.
pub(crate) fn reserve_top() -> u32 {
    LGUEST_DATA.data.reserve_mem.load(Ordering::Relaxed)
}
