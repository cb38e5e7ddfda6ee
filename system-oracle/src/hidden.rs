//! Unicorn's processor, byte by byte.
//!
//! Its interface shows selectors, but not what the processor remembers of the descriptors behind them, and not the error
//! code of an exception. A saved context has both: a copy of the emulator's own structure. Where things are in it is
//! found out, or checked, with registers that the interface does show, so that another version of unicorn is noticed.

use std::slice;

use unicorn_engine::{
    RegisterX86, Unicorn, uc_context, uc_context_alloc, uc_context_free, uc_context_restore,
    uc_context_save, uc_context_size, uc_engine, uc_error,
};

/// Offsets in the structure, of what stands in its beginning.
pub(crate) mod at {
    pub(crate) const GPR: usize = 0;
    pub(crate) const CR: usize = 424;
    pub(crate) const HIDDEN_FLAGS: usize = 176;
    pub(crate) const SEGMENTS: usize = 184;
    pub(crate) const LDTR: usize = 328;
    pub(crate) const TR: usize = 352;
    pub(crate) const GDTR: usize = 376;
    pub(crate) const IDTR: usize = 400;
    /// Bytes of one segment: selector, padding, base (8 bytes), limit, attributes.
    pub(crate) const SEGMENT: usize = 24;
    /// Bytes before dr0 at which the error code stands.
    pub(super) const ERROR_BEFORE_DR0: usize = 16;
    /// Bytes of the context before the structure.
    pub(super) const START: usize = 40;
}

const SYSENTER_ESP: u32 = 0x175;

/// Sets a register.
pub(crate) fn set<D>(unicorn: &mut Unicorn<'_, D>, register: RegisterX86, value: u64) {
    unicorn.reg_write(register, value).expect("a register");
}

/// Sets a model-specific register, by unicorn's `uc_x86_msr`: the number, padding, and the value.
pub(crate) fn set_msr<D>(unicorn: &mut Unicorn<'_, D>, number: u32, value: u64) {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&value.to_le_bytes());
    unicorn.reg_write_long(RegisterX86::MSR, &bytes).expect("a register");
}

/// A saved context.
pub(crate) struct Image {
    context: *mut uc_context,
    bytes: usize,
    /// Where the error code is.
    error: usize,
    /// Where IA32_SYSENTER_CS is, and behind it the other two.
    sysenter: usize,
}

impl Image {
    /// A copy of `unicorn`'s processor, once it is sure where things are.
    ///
    /// # Panics
    /// If unicorn's structure isn't the one that is known here.
    pub(crate) fn new<D>(unicorn: &mut Unicorn<'_, D>) -> Self {
        let engine = unicorn.get_handle();
        let mut context = std::ptr::null_mut();
        // SAFETY: the engine is alive, and the pointer is written before it is read.
        let bytes = unsafe {
            assert_eq!(uc_context_alloc(engine, &raw mut context), uc_error::OK);
            uc_context_size(engine)
        };
        let mut image = Self { context, bytes, error: 0, sysenter: 0 };
        let register =
            |register| move |unicorn: &mut Unicorn<'_, D>, value| set(unicorn, register, value);
        image.error = image.find(unicorn, register(RegisterX86::DR0)) - at::ERROR_BEFORE_DR0;
        image.sysenter =
            image.find(unicorn, |unicorn, value| set_msr(unicorn, SYSENTER_ESP, value)) - 8;
        assert_eq!(image.find(unicorn, register(RegisterX86::EDI)), at::GPR + 7 * 8);
        assert_eq!(image.find(unicorn, register(RegisterX86::CR2)), at::CR + 2 * 8);
        image.save(engine);
        image
    }

    /// Where a register is, that can be set to anything by `set`. It is 0 afterwards.
    fn find<D>(
        &mut self,
        unicorn: &mut Unicorn<'_, D>,
        set: impl Fn(&mut Unicorn<'_, D>, u64),
    ) -> usize {
        const MARK: u64 = 0x5a17_c0de;
        set(unicorn, MARK);
        self.save(unicorn.get_handle());
        set(unicorn, 0);
        let found = |(at, bytes): (usize, &[u8])| (bytes == MARK.to_le_bytes()).then_some(at);
        let places: Vec<usize> = self.bytes().windows(8).enumerate().filter_map(found).collect();
        assert_eq!(places.len(), 1, "unicorn's structure has changed");
        places[0] - at::START
    }

    /// Copies the processor's registers into it.
    pub(crate) fn save(&mut self, engine: *mut uc_engine) {
        // SAFETY: the context was allocated for such an engine.
        let result = unsafe { uc_context_save(engine, self.context) };
        assert_eq!(result, uc_error::OK);
    }

    /// Copies it into the processor's registers.
    pub(crate) fn restore(&self, engine: *mut uc_engine) {
        // SAFETY: the context was allocated for such an engine, and saved from it.
        let result = unsafe { uc_context_restore(engine, self.context) };
        assert_eq!(result, uc_error::OK);
    }

    /// The whole of the context.
    fn bytes(&self) -> &[u8] {
        // SAFETY: this many bytes were allocated and filled, and nobody else has the pointer.
        unsafe { slice::from_raw_parts(self.context.cast(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: this many bytes were allocated and filled, and nobody else has the pointer.
        unsafe { slice::from_raw_parts_mut(self.context.cast(), self.bytes) }
    }

    /// All of it, to be put back by [`overwrite`](Self::overwrite).
    pub(crate) fn copy(&self) -> Vec<u8> {
        self.bytes()[at::START..].to_vec()
    }

    /// Makes it the copy again.
    pub(crate) fn overwrite(&mut self, copy: &[u8]) {
        self.bytes_mut()[at::START..].copy_from_slice(copy);
    }

    /// Four bytes of the structure.
    pub(crate) fn dword(&self, at: usize) -> u32 {
        let at = at::START + at;
        u32::from_le_bytes(self.bytes()[at..at + 4].try_into().expect("four bytes"))
    }

    /// Sets eight bytes of the structure to a number of 32 bits.
    pub(crate) fn set_qword(&mut self, at: usize, value: u32) {
        let at = at::START + at;
        self.bytes_mut()[at..at + 8].copy_from_slice(&u64::from(value).to_le_bytes());
    }

    /// Sets four bytes of the structure.
    pub(crate) fn set_dword(&mut self, at: usize, value: u32) {
        let at = at::START + at;
        self.bytes_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The error code of the last exception.
    pub(crate) fn error(&self) -> u32 {
        self.dword(self.error)
    }

    /// Whether the last exception was raised by an instruction that is there for it, such as `int`.
    pub(crate) fn is_software(&self) -> bool {
        self.dword(self.error + 4) != 0
    }

    /// IA32_SYSENTER_CS, ESP and EIP.
    pub(crate) fn sysenter(&self) -> [u32; 3] {
        [0, 8, 16].map(|offset| self.dword(self.sysenter + offset))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: it was allocated by unicorn, and is freed once.
        unsafe { uc_context_free(self.context) };
    }
}
