//! The GS base: where translated code finds its window.
//!
//! Nothing else in a 64-bit Linux process uses GS (thread-local storage is FS), so its base stays
//! what it was set to. Setting it costs something, so the thread remembers what is there: several
//! virtual CPUs on one thread each find out in a nanosecond whether they must set it.

use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    /// The GS base of this thread; 0 before it was first set.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Bit of AT_HWCAP2 that allows `wrgsbase` outside the kernel (Linux, `asm/hwcap2.h`).
const HWCAP2_FSGSBASE: u64 = 1 << 1;
/// `arch_prctl` code for setting the GS base (Linux, `asm/prctl.h`).
const ARCH_SET_GS: libc::c_int = 0x1001;

/// Makes `base` the GS base of this thread.
#[inline]
pub(crate) fn set(base: u64) {
    if CURRENT.get() != base {
        write(base);
    }
}

/// Translated code has left another GS base than was set: `base`.
#[inline]
pub(crate) fn was_changed(base: u64) {
    CURRENT.set(base);
}

/// Whether the kernel allows `wrgsbase`: since Linux 5.9.
pub(crate) fn has_instruction() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    // SAFETY: getauxval has no preconditions.
    let allowed = || unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
    *ALLOWED.get_or_init(allowed)
}

#[cold]
fn write(base: u64) {
    if has_instruction() {
        // SAFETY: the kernel has enabled the instruction, and nothing but translated code uses GS.
        unsafe {
            std::arch::asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags))
        };
    } else {
        // SAFETY: as above. It can only fail for an address outside user space.
        let done = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
        assert_eq!(done, 0, "arch_prctl refuses a window's address");
    }
    CURRENT.set(base);
}
