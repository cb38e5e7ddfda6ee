//! Sleeping: a guest with nothing to do costs nothing.
//!
//! HALT, and the `hlt` instruction, stop the guest until an interrupt can be delivered. Until then the
//! thread sleeps too, and wakes up for the guest's timer, or when somebody kicks it.

use crate::devices::Devices;
use crate::machine::{End, Machine, Sleep};
use crate::trace::Event;

impl Machine {
    /// Sleeps until an interrupt can be delivered. After HALT, interrupts are enabled then.
    pub(crate) fn sleep(&mut self, devices: &mut dyn Devices) -> Result<(), End> {
        self.guest.trace(|| Event::Sleep { awake: false });
        let by_hypercall = self.sleep == Sleep::Hypercall;
        loop {
            self.attend(devices)?;
            if self.deliverable(by_hypercall)?.is_some() {
                break;
            }
            self.vcpu.wait(self.guest.clock.sleep_time());
        }
        self.sleep = Sleep::Awake;
        if by_hypercall {
            self.guest.set_irq_enabled(true);
        }
        self.guest.trace(|| Event::Sleep { awake: true });
        Ok(())
    }
}
