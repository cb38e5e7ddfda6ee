//! What happens between guest and Host, a line for each event.
//!
//! Nothing is formatted, or even put together, unless a tracer is set: then the Host calls it for every
//! event, and [`Display`](fmt::Display) turns one into a line that reads well in a log.

use lguest_abi::hypercall::Hypercall;
use lguest_switcher::address::{GuestPhys, GuestVirt};
use std::fmt;

/// Something that happened between guest and Host.
#[derive(Clone, Debug)]
pub enum Event {
    /// A hypercall, about to be carried out.
    Hypercall {
        /// What is asked.
        call: Hypercall,
        /// It came through the ring.
        queued: bool,
        /// Where the guest is; for a queued one that says little.
        eip: u32,
    },
    /// A trap or a software interrupt, about to be delivered to the guest.
    Trap {
        /// Its vector.
        vector: u8,
        /// The error code pushed.
        error: Option<u32>,
        /// For a page fault, the address.
        address: Option<GuestVirt>,
        /// Where it happened.
        eip: u32,
        /// It happened in user mode.
        user: bool,
    },
    /// A device interrupt, about to be delivered.
    Interrupt {
        /// Which of the 32.
        irq: u8,
        /// Where the guest was interrupted.
        eip: u32,
        /// It was in user mode.
        user: bool,
    },
    /// A privileged instruction that the Host carried out.
    Emulated {
        /// Its mnemonic.
        name: String,
        /// Where it is.
        eip: u32,
    },
    /// The guest sleeps, or has woken up.
    Sleep {
        /// It has woken up.
        awake: bool,
    },
    /// A SEND_DMA was served, or nobody has that key.
    Sent {
        /// The key.
        key: GuestPhys,
        /// Bytes in the guest's sections.
        offered: u32,
        /// Bytes taken; `None` when no device has the key.
        taken: Option<u32>,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = |user: &bool| if *user { "user" } else { "kernel" };
        match self {
            Self::Hypercall { call, queued: false, eip } => {
                write!(f, "hypercall  {call}  (eip {eip:#010x})")
            }
            Self::Hypercall { call, queued: true, .. } => write!(f, "hypercall  {call}  (queued)"),
            Self::Trap { vector, error, address, eip, user } => {
                write!(f, "trap       {vector}")?;
                if let Some(error) = error {
                    write!(f, ", error code {error:#x}")?;
                }
                if let Some(address) = address {
                    write!(f, ", address {address}")?;
                }
                write!(f, "  ({} eip {eip:#010x})", mode(user))
            }
            Self::Interrupt { irq, eip, user } => {
                write!(f, "interrupt  {irq}  ({} eip {eip:#010x})", mode(user))
            }
            Self::Emulated { name, eip } => write!(f, "emulated   {name}  (eip {eip:#010x})"),
            Self::Sleep { awake: false } => write!(f, "sleep"),
            Self::Sleep { awake: true } => write!(f, "wake"),
            Self::Sent { key, offered, taken: Some(taken) } => {
                write!(f, "dma        {taken} of {offered} bytes sent to {key}")
            }
            Self::Sent { key, offered, taken: None } => {
                write!(f, "dma        {offered} bytes for {key}, which no device has")
            }
        }
    }
}

/// Who wants to see the events. `Send`, so that a machine can move to another thread with it.
pub type Tracer = Box<dyn FnMut(&Event) + Send>;
