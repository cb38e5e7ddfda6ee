//! What the processor is, and its control registers.

/// What `cpuid` answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpuid {
    /// eax
    pub eax: u32,
    /// ebx
    pub ebx: u32,
    /// ecx
    pub ecx: u32,
    /// edx
    pub edx: u32,
}

/// cr0's bit that makes FPU use raise trap 7.
pub const CR0_TS: u32 = 1 << 3;

/// The operations on the processor itself.
pub trait Processor {
    /// What the processor offers that this machine lets a kernel use.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid;

    /// cr0, as last written.
    fn read_cr0(&self) -> u32;

    /// Writes cr0. Of a guest's, only [`CR0_TS`] has an effect. Can wait in a lazy mode.
    fn write_cr0(&self, value: u32);

    /// Clears [`CR0_TS`]. Can wait in a lazy mode: flush it before using the FPU.
    fn clts(&self);

    /// The address of the last page fault.
    fn read_cr2(&self) -> u32;

    /// cr4. A guest has no use for it: it is 0.
    fn read_cr4(&self) -> u32;

    /// Writes cr4, which a guest can't.
    fn write_cr4(&self, value: u32);

    /// Debug register `index`, 0..=7. A guest's are 0.
    fn read_debug(&self, index: u8) -> u32;

    /// Writes debug register `index`, which a guest can't.
    fn write_debug(&self, index: u8, value: u32);

    /// Writes back and empties the caches, which is the Host's business and not a guest's.
    fn wbinvd(&self);
}
