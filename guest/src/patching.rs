//! Patching: call sites are replaced by the code they call.
//!
//! Whether it is on a bare PC or a guest, a kernel learns only when it runs. Compiled in, each
//! operation on the interrupt flag is therefore a call through a pointer. But once it runs the
//! answer never changes, and the code behind those calls is shorter than the calls themselves. So
//! at boot the kernel goes through the list of its call sites and copies the code over each, where
//! it fits.
//!
//! This is a room where unsafe code lives: it writes code.

use crate::assembly;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

/// What a call site does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Operation {
    /// [`save_flags`](crate::interrupts::save_flags)
    SaveFlags = 0,
    /// [`restore_flags`](crate::interrupts::restore_flags)
    RestoreFlags = 1,
    /// [`disable`](crate::interrupts::disable)
    Disable = 2,
    /// [`enable`](crate::interrupts::enable)
    Enable = 3,
}

/// A note in the section `lguest_sites`.
#[repr(C)]
#[derive(Debug)]
pub struct Site {
    address: u32,
    operation: u8,
    length: u8,
    padding: [u8; 2],
}

unsafe extern "C" {
    // The linker makes these two for a section whose name could be one in C.
    static __start_lguest_sites: Site;
    static __stop_lguest_sites: Site;
}

/// The one-byte nop, to fill what is left of a call site.
const NOP: u8 = 0x90;

static SITES: AtomicU32 = AtomicU32::new(0);
static PATCHED: AtomicU32 = AtomicU32::new(0);

/// What patching came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patched {
    /// Call sites that are now the code itself.
    pub patched: u32,
    /// Call sites there are.
    pub sites: u32,
}

/// What patching came to, for a line at boot.
#[must_use]
pub fn patched() -> Patched {
    Patched { patched: PATCHED.load(Ordering::Relaxed), sites: SITES.load(Ordering::Relaxed) }
}

// ANCHOR: patch_call_sites
/// Replaces each call site by its operation's code, where that fits. Interrupts are still off, and
/// the code is still writable.
pub(crate) fn patch_call_sites() {
    for site in sites() {
        SITES.fetch_add(1, Ordering::Relaxed);
        let code = match site.operation {
            op if op == Operation::SaveFlags as u8 => assembly::save_flags_template(),
            op if op == Operation::RestoreFlags as u8 => assembly::restore_flags_template(),
            op if op == Operation::Disable as u8 => assembly::irq_disable_template(),
            op if op == Operation::Enable as u8 => assembly::irq_enable_template(),
            _ => continue,
        };
        if code.len() <= usize::from(site.length) {
            replace(site, code);
            PATCHED.fetch_add(1, Ordering::Relaxed);
        }
    }
}
// ANCHOR_END: patch_call_sites

/// All call sites.
fn sites() -> &'static [Site] {
    let start = &raw const __start_lguest_sites;
    let bytes = (&raw const __stop_lguest_sites).addr() - start.addr();
    // SAFETY: between the two symbols is the section, which consists of whole notes (the macro
    // `call_site` writes them), is never written, and is in the image for good.
    unsafe { core::slice::from_raw_parts(start, bytes / size_of::<Site>()) }
}

/// Writes `code`, and nops behind it, over a call site. `code` is no longer than the site.
fn replace(site: &Site, code: &[u8]) {
    let start = ptr::with_exposed_provenance_mut::<u8>(site.address as usize);
    // SAFETY: the site is `length` bytes of code that do what `code` does: whoever comes by
    // executes all of one or all of the other, because nothing interrupts and there is one
    // processor. This function itself calls none.
    unsafe {
        start.copy_from_nonoverlapping(code.as_ptr(), code.len());
        start.add(code.len()).write_bytes(NOP, usize::from(site.length) - code.len());
    }
}

const _: () = assert!(size_of::<Site>() == 8);
