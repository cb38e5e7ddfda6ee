//! The calls a guest makes to its Host.
//!
//! A guest that wants something done puts a number into eax and up to three arguments into edx,
//! ebx and ecx, and says `int $0x1f`. The same words, in the same order, make an entry of the
//! ring in [`LguestData`](crate::LguestData), for calls that can wait. [`Hypercall`] is what the
//! words mean; [`Hypercall::decode`] and [`Hypercall::encode`] go from one to the other.
//!
//! Later generations have a fourth argument, other registers
//! ([`Generation::argument_registers`]), and other calls: a number means what it meant to kernels of the time.
//!
//! Decoding judges nothing but the number: whether an address is good, or there are too many GDT
//! entries, is the Host's to say.

use crate::address::{Phys, Virt};
use crate::generation::{CALL_WORDS, Generation};
use core::fmt;

/// The interrupt vector that makes a hypercall, from privilege level 1.
pub const VECTOR: u8 = 0x1f;

/// The message that turns [`Hypercall::Crash`] into a power-off.
pub const POWER_OFF_MESSAGE: &str = "Power down";

/// How many bytes of a [`Hypercall::Crash`] message the Host reads.
pub const CRASH_MESSAGE_READ: usize = 128;

/// How many bytes of a [`Hypercall::Crash`] message the Host keeps, at most: to the first NUL.
pub const CRASH_MESSAGE_KEPT: usize = 127;

/// The shortest time a guest asks for with [`Hypercall::SetClockevent`], in nanoseconds.
pub const CLOCKEVENT_MIN_NANOSECONDS: u32 = 100;

/// What eax holds for each call.
pub mod number {
    /// [`Hypercall::FlushAsync`](super::Hypercall::FlushAsync)
    pub const FLUSH_ASYNC: u32 = 0;
    /// [`Hypercall::LguestInit`](super::Hypercall::LguestInit)
    pub const LGUEST_INIT: u32 = 1;
    /// [`Hypercall::Crash`](super::Hypercall::Crash)
    pub const CRASH: u32 = 2;
    /// [`Hypercall::LoadGdt`](super::Hypercall::LoadGdt)
    pub const LOAD_GDT: u32 = 3;
    /// [`Hypercall::NewPgtable`](super::Hypercall::NewPgtable)
    pub const NEW_PGTABLE: u32 = 4;
    /// [`Hypercall::FlushTlb`](super::Hypercall::FlushTlb)
    pub const FLUSH_TLB: u32 = 5;
    /// [`Hypercall::LoadIdtEntry`](super::Hypercall::LoadIdtEntry)
    pub const LOAD_IDT_ENTRY: u32 = 6;
    /// [`Hypercall::SetStack`](super::Hypercall::SetStack)
    pub const SET_STACK: u32 = 7;
    /// [`Hypercall::Ts`](super::Hypercall::Ts)
    pub const TS: u32 = 8;
    /// [`Hypercall::SetClockevent`](super::Hypercall::SetClockevent)
    pub const SET_CLOCKEVENT: u32 = 9;
    /// [`Hypercall::Halt`](super::Hypercall::Halt)
    pub const HALT: u32 = 10;
    /// [`Hypercall::GetWallclock`](super::Hypercall::GetWallclock)
    pub const GET_WALLCLOCK: u32 = 11;
    /// [`Hypercall::BindDma`](super::Hypercall::BindDma)
    pub const BIND_DMA: u32 = 12;
    /// [`Hypercall::SendDma`](super::Hypercall::SendDma)
    pub const SEND_DMA: u32 = 13;
    /// [`Hypercall::SetPte`](super::Hypercall::SetPte)
    pub const SET_PTE: u32 = 14;
    /// [`Hypercall::SetPmd`](super::Hypercall::SetPmd)
    pub const SET_PMD: u32 = 15;
    /// [`Hypercall::LoadTls`](super::Hypercall::LoadTls)
    pub const LOAD_TLS: u32 = 16;
    /// [`Hypercall::Shutdown`](super::Hypercall::Shutdown), which took the place of `CRASH`
    pub const SHUTDOWN: u32 = CRASH;
    /// [`Hypercall::SetMiddle`](super::Hypercall::SetMiddle), in the place of `SEND_DMA`
    pub const SET_MIDDLE: u32 = SEND_DMA;
    /// [`Hypercall::Notify`](super::Hypercall::Notify)
    pub const NOTIFY: u32 = 17;
    /// [`Hypercall::LoadGdtEntry`](super::Hypercall::LoadGdtEntry)
    pub const LOAD_GDT_ENTRY: u32 = 18;
    /// [`Hypercall::SendInterrupts`](super::Hypercall::SendInterrupts)
    pub const SEND_INTERRUPTS: u32 = 19;
}

/// How many different calls the first generation has: numbers 0..`COUNT`.
pub const COUNT: u32 = 17;

/// The second argument of [`Hypercall::Shutdown`] that asks for a restart; any other one powers off.
pub const SHUTDOWN_RESTART: u32 = 2;

/// What [`Hypercall::FlushTlb`] forgets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushScope {
    /// The user part of the current page tables.
    User,
    /// Every shadow, the kernel's part too.
    All,
}

// ANCHOR: hypercalls
/// A call, with its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hypercall {
    /// Nothing more: before any call the ring is served, and that is all that was wanted.
    FlushAsync,
    /// The first call, made once.
    LguestInit {
        /// Where [`LguestData`](crate::LguestData) is.
        data: Phys,
    },
    /// Ends the guest.
    Crash {
        /// The reason, a string ending in NUL.
        message: Phys,
    },
    /// Replaces the GDT.
    LoadGdt {
        /// The guest's table, of eight bytes an entry.
        table: Phys,
        /// How many entries it has, at most [`GDT_ENTRIES`](crate::segments::GDT_ENTRIES).
        entries: u32,
    },
    /// Switches to another address space.
    NewPgtable {
        /// Its page directory.
        directory: Phys,
    },
    /// Forgets shadowed mappings.
    FlushTlb {
        /// Which of them.
        scope: FlushScope,
    },
    /// Sets one gate of the IDT.
    LoadIdtEntry {
        /// Which one; 0..=255 make sense.
        vector: u32,
        /// The gate's first four bytes.
        low: u32,
        /// The gate's last four bytes.
        high: u32,
    },
    /// Names the stack for traps from user mode.
    SetStack {
        /// Its segment's selector.
        segment: u32,
        /// Its top.
        esp: Virt,
        /// How many pages of it are kept mapped: 0, 1 or 2.
        pages: u32,
    },
    /// Makes FPU use raise trap 7, or not.
    Ts {
        /// Whether it does.
        set: bool,
    },
    /// Asks for one timer interrupt, irq 0.
    SetClockevent {
        /// How many nanoseconds from now; 0 calls it off.
        nanoseconds: u32,
    },
    /// Sleeps until an interrupt can be delivered.
    Halt,
    /// Asks for the seconds since 1970, answered in eax.
    GetWallclock,
    /// Offers buffers to whoever sends to a key. Answered by 1 or 0 in eax.
    BindDma {
        /// The key, a multiple of 4.
        key: Phys,
        /// An array of [`Dma`](crate::Dma).
        array: Phys,
        /// How many it has: 0..2²⁴, since it shares its register with `irq`.
        count: u32,
        /// The interrupt that says one was filled; 0 withdraws the array.
        irq: u8,
    },
    /// Sends a buffer to a key.
    SendDma {
        /// The key, a multiple of 4.
        key: Phys,
        /// One [`Dma`](crate::Dma).
        dma: Phys,
    },
    /// Tells that one page-table entry changed.
    SetPte {
        /// The page directory it belongs to.
        directory: Phys,
        /// The address it maps.
        address: Virt,
        /// Its new value; its upper half is 0 where entries have 32 bits.
        value: u64,
    },
    /// Tells that one entry of the uppermost table changed. Later kernels call it SET_PGD.
    SetPmd {
        /// The page directory.
        directory: Phys,
        /// Which entry, 0..=1023.
        index: u32,
    },
    /// Loads the three TLS entries of the GDT.
    LoadTls {
        /// Where they are: 24 bytes.
        descriptors: Phys,
        /// The processor they are for; there is only 0.
        cpu: u32,
    },
    /// Ends the guest, or starts it again. Since 2.6.26 or so.
    Shutdown {
        /// Its last words, a string ending in NUL.
        message: Phys,
        /// It wants to be started again.
        restart: bool,
    },
    /// Tells that an entry of a middle table changed, where tables have three levels.
    SetMiddle {
        /// The middle table.
        table: Phys,
        /// Which entry, 0..=511.
        index: u32,
    },
    /// Rings a device's bell, or prints a string early.
    Notify {
        /// The device's ring or descriptor, or the string.
        address: Phys,
    },
    /// Sets one entry of the GDT.
    LoadGdtEntry {
        /// Which one.
        entry: u32,
        /// Its first four bytes.
        low: u32,
        /// Its last four bytes.
        high: u32,
    },
    /// Invites interrupts that waited to be enabled. Like any call it is an occasion to deliver them.
    SendInterrupts,
}
// ANCHOR_END: hypercalls

/// eax held no call's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownHypercall(
    /// What it held.
    pub u32,
);

impl fmt::Display for UnknownHypercall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown hypercall {}", self.0)
    }
}

impl core::error::Error for UnknownHypercall {}

impl Hypercall {
    /// What the words ask for: the number, and the arguments in the order of
    /// [`Generation::argument_registers`]. Arguments that the call doesn't use are not looked at.
    ///
    /// # Errors
    /// When the first word isn't the number of a call in that generation.
    pub const fn decode(
        generation: Generation,
        words: [u32; CALL_WORDS],
    ) -> Result<Self, UnknownHypercall> {
        let signed = generation.is_signed();
        let [call, a, b, c, d] = words;
        Ok(match call {
            number::FLUSH_ASYNC => Self::FlushAsync,
            number::LGUEST_INIT => Self::LguestInit { data: Phys(a) },
            number::CRASH if signed => Self::Crash { message: Phys(a) },
            number::SHUTDOWN => Self::Shutdown { message: Phys(a), restart: b == SHUTDOWN_RESTART },
            number::LOAD_GDT if generation.hands_over_gdt() => {
                Self::LoadGdt { table: Phys(a), entries: b }
            }
            number::NEW_PGTABLE => Self::NewPgtable { directory: Phys(a) },
            number::FLUSH_TLB => {
                let scope = if a == 0 { FlushScope::User } else { FlushScope::All };
                Self::FlushTlb { scope }
            }
            number::LOAD_IDT_ENTRY => Self::LoadIdtEntry { vector: a, low: b, high: c },
            number::SET_STACK => Self::SetStack { segment: a, esp: Virt(b), pages: c },
            number::TS => Self::Ts { set: a != 0 },
            number::SET_CLOCKEVENT => Self::SetClockevent { nanoseconds: a },
            number::HALT => Self::Halt,
            number::GET_WALLCLOCK if generation.asks_for_wallclock() => Self::GetWallclock,
            number::BIND_DMA if signed => {
                Self::BindDma { key: Phys(a), array: Phys(b), count: c >> 8, irq: (c & 0xff) as u8 }
            }
            number::SEND_DMA if signed => Self::SendDma { key: Phys(a), dma: Phys(b) },
            number::SET_MIDDLE if generation.may_have_three_levels() => {
                Self::SetMiddle { table: Phys(a), index: b }
            }
            number::SET_PTE => {
                let high = if generation.may_have_three_levels() { d } else { 0 };
                let value = (high as u64) << 32 | c as u64;
                Self::SetPte { directory: Phys(a), address: Virt(b), value }
            }
            number::SET_PMD => Self::SetPmd { directory: Phys(a), index: b },
            number::LOAD_TLS => Self::LoadTls { descriptors: Phys(a), cpu: b },
            number::NOTIFY if generation.notifies() => Self::Notify { address: Phys(a) },
            number::LOAD_GDT_ENTRY if !signed => Self::LoadGdtEntry { entry: a, low: b, high: c },
            number::SEND_INTERRUPTS if generation.may_have_three_levels() => Self::SendInterrupts,
            _ => return Err(UnknownHypercall(call)),
        })
    }

    /// The words that ask for this: the number, then the arguments; those that the call doesn't
    /// use are 0. Of `BindDma`'s count the low 24 bits are kept.
    #[must_use]
    pub const fn encode(self) -> [u32; CALL_WORDS] {
        let [a, b, c, d] = match self {
            Self::FlushAsync | Self::Halt | Self::GetWallclock | Self::SendInterrupts => {
                [0, 0, 0, 0]
            }
            Self::LguestInit { data } => [data.0, 0, 0, 0],
            Self::Crash { message } => [message.0, 0, 0, 0],
            Self::Shutdown { message, restart } => {
                [message.0, if restart { SHUTDOWN_RESTART } else { 1 }, 0, 0]
            }
            Self::LoadGdt { table, entries } => [table.0, entries, 0, 0],
            Self::NewPgtable { directory } => [directory.0, 0, 0, 0],
            Self::FlushTlb { scope: FlushScope::User } => [0, 0, 0, 0],
            Self::FlushTlb { scope: FlushScope::All } => [1, 0, 0, 0],
            Self::LoadIdtEntry { vector, low, high } => [vector, low, high, 0],
            Self::SetStack { segment, esp, pages } => [segment, esp.0, pages, 0],
            Self::Ts { set } => [set as u32, 0, 0, 0],
            Self::SetClockevent { nanoseconds } => [nanoseconds, 0, 0, 0],
            Self::BindDma { key, array, count, irq } => {
                [key.0, array.0, count << 8 | irq as u32, 0]
            }
            Self::SendDma { key, dma } => [key.0, dma.0, 0, 0],
            Self::SetMiddle { table, index } => [table.0, index, 0, 0],
            Self::SetPte { directory, address, value } => {
                [directory.0, address.0, value as u32, (value >> 32) as u32]
            }
            Self::SetPmd { directory, index } => [directory.0, index, 0, 0],
            Self::LoadTls { descriptors, cpu } => [descriptors.0, cpu, 0, 0],
            Self::Notify { address } => [address.0, 0, 0, 0],
            Self::LoadGdtEntry { entry, low, high } => [entry, low, high, 0],
        };
        [self.number(), a, b, c, d]
    }

    /// The call's number, as in [`number`].
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::FlushAsync => number::FLUSH_ASYNC,
            Self::LguestInit { .. } => number::LGUEST_INIT,
            Self::Crash { .. } => number::CRASH,
            Self::LoadGdt { .. } => number::LOAD_GDT,
            Self::NewPgtable { .. } => number::NEW_PGTABLE,
            Self::FlushTlb { .. } => number::FLUSH_TLB,
            Self::LoadIdtEntry { .. } => number::LOAD_IDT_ENTRY,
            Self::SetStack { .. } => number::SET_STACK,
            Self::Ts { .. } => number::TS,
            Self::SetClockevent { .. } => number::SET_CLOCKEVENT,
            Self::Halt => number::HALT,
            Self::GetWallclock => number::GET_WALLCLOCK,
            Self::BindDma { .. } => number::BIND_DMA,
            Self::SendDma { .. } => number::SEND_DMA,
            Self::SetPte { .. } => number::SET_PTE,
            Self::SetPmd { .. } => number::SET_PMD,
            Self::LoadTls { .. } => number::LOAD_TLS,
            Self::Shutdown { .. } => number::SHUTDOWN,
            Self::SetMiddle { .. } => number::SET_MIDDLE,
            Self::Notify { .. } => number::NOTIFY,
            Self::LoadGdtEntry { .. } => number::LOAD_GDT_ENTRY,
            Self::SendInterrupts => number::SEND_INTERRUPTS,
        }
    }

    /// The call's name, as the interface has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlushAsync => "FLUSH_ASYNC",
            Self::LguestInit { .. } => "LGUEST_INIT",
            Self::Crash { .. } => "CRASH",
            Self::LoadGdt { .. } => "LOAD_GDT",
            Self::NewPgtable { .. } => "NEW_PGTABLE",
            Self::FlushTlb { .. } => "FLUSH_TLB",
            Self::LoadIdtEntry { .. } => "LOAD_IDT_ENTRY",
            Self::SetStack { .. } => "SET_STACK",
            Self::Ts { .. } => "TS",
            Self::SetClockevent { .. } => "SET_CLOCKEVENT",
            Self::Halt => "HALT",
            Self::GetWallclock => "GET_WALLCLOCK",
            Self::BindDma { .. } => "BIND_DMA",
            Self::SendDma { .. } => "SEND_DMA",
            Self::SetPte { .. } => "SET_PTE",
            Self::SetPmd { .. } => "SET_PMD",
            Self::LoadTls { .. } => "LOAD_TLS",
            Self::Shutdown { .. } => "SHUTDOWN",
            Self::SetMiddle { .. } => "SET_PMD (middle)",
            Self::Notify { .. } => "NOTIFY",
            Self::LoadGdtEntry { .. } => "LOAD_GDT_ENTRY",
            Self::SendInterrupts => "SEND_INTERRUPTS",
        }
    }
}

/// As a line of a trace: the name, then each argument with what it is.
impl fmt::Display for Hypercall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match *self {
            Self::FlushAsync | Self::Halt | Self::GetWallclock | Self::SendInterrupts => Ok(()),
            Self::LguestInit { data } => write!(f, " data={data}"),
            Self::Crash { message } => write!(f, " message={message}"),
            Self::LoadGdt { table, entries } => write!(f, " table={table} entries={entries}"),
            Self::NewPgtable { directory } => write!(f, " directory={directory}"),
            Self::FlushTlb { scope: FlushScope::User } => f.write_str(" user"),
            Self::FlushTlb { scope: FlushScope::All } => f.write_str(" all"),
            Self::LoadIdtEntry { vector, low, high } => {
                let handler = Virt(high & 0xffff_0000 | low & 0xffff);
                write!(f, " vector={vector} handler={handler} attributes={:#06x}", high & 0xffff)
            }
            Self::SetStack { segment, esp, pages } => {
                write!(f, " segment={segment:#x} esp={esp} pages={pages}")
            }
            Self::Ts { set } => write!(f, " {}", if set { "set" } else { "clear" }),
            Self::SetClockevent { nanoseconds: 0 } => f.write_str(" off"),
            Self::SetClockevent { nanoseconds } => write!(f, " in={nanoseconds}ns"),
            Self::BindDma { key, array, irq: 0, .. } => {
                write!(f, " key={key} array={array} withdrawn")
            }
            Self::BindDma { key, array, count, irq } => {
                write!(f, " key={key} array={array} count={count} irq={irq}")
            }
            Self::SendDma { key, dma } => write!(f, " key={key} dma={dma}"),
            Self::SetPte { directory, address, value } => {
                write!(f, " directory={directory} address={address} value={value:#010x}")
            }
            Self::SetPmd { directory, index } => write!(f, " directory={directory} index={index}"),
            Self::LoadTls { descriptors, cpu } => write!(f, " descriptors={descriptors} cpu={cpu}"),
            Self::Shutdown { message, restart: false } => write!(f, " message={message}"),
            Self::Shutdown { message, restart: true } => write!(f, " message={message} restart"),
            Self::SetMiddle { table, index } => write!(f, " table={table} index={index}"),
            Self::Notify { address } => write!(f, " address={address}"),
            Self::LoadGdtEntry { entry, low, high } => {
                write!(f, " entry={entry} low={low:#010x} high={high:#010x}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    const FIRST: Generation = Generation::First;

    proptest! {
        /// Whatever words say a call, saying it again says the same, in every generation.
        #[test]
        fn encoding_keeps_the_meaning(
            which in 0..Generation::ALL.len(),
            words in any::<[u32; CALL_WORDS]>(),
            number in 0u32..24,
        ) {
            let generation = Generation::ALL[which];
            let [_, a, b, c, d] = words;
            if let Ok(call) = Hypercall::decode(generation, [number, a, b, c, d]) {
                prop_assert_eq!(call.number(), number);
                prop_assert_eq!(Hypercall::decode(generation, call.encode()), Ok(call));
            }
        }

        /// Each argument comes from the register that the interface names: SET_PTE uses all.
        #[test]
        fn all_registers_arrive(a: u32, b: u32, c: u32, d: u32) {
            let decode = |generation, d| {
                Hypercall::decode(generation, [number::SET_PTE, a, b, c, d]).unwrap().encode()
            };
            prop_assert_eq!(decode(FIRST, d), [number::SET_PTE, a, b, c, 0]);
            prop_assert_eq!(decode(Generation::V4_0, d), [number::SET_PTE, a, b, c, d]);
        }

        #[test]
        fn other_numbers_are_unknown(number in COUNT.., a: u32) {
            let words = [number, a, 0, 0, 0];
            prop_assert_eq!(Hypercall::decode(FIRST, words), Err(UnknownHypercall(number)));
        }
    }

    /// The numbers that each generation has, as the interface's description has them.
    #[test]
    fn each_generation_has_its_own_calls() {
        let numbers = |generation| -> std::vec::Vec<u32> {
            let known = |number: &u32| Hypercall::decode(generation, [*number, 0, 0, 0, 0]).is_ok();
            (0..64).filter(known).collect()
        };
        let all_but = |missing: &[u32], last| -> std::vec::Vec<u32> {
            (0..=last).filter(|number| !missing.contains(number)).collect()
        };
        assert_eq!(numbers(Generation::First), all_but(&[], 16));
        assert_eq!(numbers(Generation::V2_6_23), all_but(&[11], 16));
        assert_eq!(numbers(Generation::V2_6_24), all_but(&[11, 12, 13], 18));
        assert_eq!(numbers(Generation::V2_6_25), all_but(&[11, 12, 13], 18));
        assert_eq!(numbers(Generation::V2_6_30), all_but(&[3, 11, 12], 19));
        assert_eq!(numbers(Generation::V2_6_38), all_but(&[3, 11, 12], 19));
        assert_eq!(numbers(Generation::V4_0), all_but(&[3, 11, 12, 17], 19));
    }

    #[test]
    fn a_trace_reads_well() {
        let line = |[number, a, b, c]: [u32; 4]| {
            Hypercall::decode(FIRST, [number, a, b, c, 0]).unwrap().to_string()
        };
        assert_eq!(line([0, 7, 7, 7]), "FLUSH_ASYNC");
        assert_eq!(line([1, 0x1000, 0, 0]), "LGUEST_INIT data=0x00001000");
        assert_eq!(
            line([6, 14, 0x0061_2345, 0xc010_8e00]),
            "LOAD_IDT_ENTRY vector=14 handler=0xc0102345 attributes=0x8e00"
        );
        assert_eq!(
            line([12, 0, 0x2000, 0x102]),
            "BIND_DMA key=0x00000000 array=0x00002000 count=1 irq=2"
        );
        assert_eq!(line([9, 0, 0, 0]), "SET_CLOCKEVENT off");
        assert_eq!(UnknownHypercall(99).to_string(), "unknown hypercall 99");
    }
}
