//! **Interrupts**: how a device, on whatever thread, gets the guest's attention.

/// The interrupt lines of a guest.
pub trait Interrupts: Send + Sync {
    /// Raises a line once. The guest sees it as soon as it lets interrupts of that line in; how often it was raised until then,
    /// it doesn't see.
    fn raise(&self, irq: u8);
}
