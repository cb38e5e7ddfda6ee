//! Segments and gates of a guest: the Host has the real tables, and is told what to put there.

use super::Lguest;
use super::hypercalls::{hcall, lazy_hcall};
use crate::assembly;
use crate::memory::phys_of;
use crate::segments::{Descriptor, Gate, NoLdt, Segments};
use core::sync::atomic::{AtomicU32, Ordering};
use lguest_abi::segments::{GDT_ENTRIES, KERNEL_DS, TLS_ENTRIES};
use lguest_abi::{Hypercall, Virt};

/// Two words for each thread-local storage entry.
const TLS_WORDS: usize = 2 * TLS_ENTRIES as usize;

/// What `LOAD_TLS` points to. When several wait, the last one is what all of them load, and what
/// counts.
static TLS: [AtomicU32; TLS_WORDS] = [const { AtomicU32::new(0) }; TLS_WORDS];

impl Segments for Lguest {
    unsafe fn write_idt_entry(&self, table: &mut [Gate], vector: u8, gate: Gate) {
        table[usize::from(vector)] = gate;
        tell_gate(u32::from(vector), gate);
    }

    unsafe fn load_idt(&self, table: &'static [Gate]) {
        for (vector, gate) in (0..).zip(table) {
            tell_gate(vector, *gate);
        }
    }

    unsafe fn load_gdt(&self, table: &'static [Descriptor]) {
        tell_gdt(table);
    }

    unsafe fn write_gdt_entry(&self, table: &mut [Descriptor], index: usize, entry: Descriptor) {
        table[index] = entry;
        tell_gdt(table);
    }

    fn load_tls(&self, entries: &[Descriptor; TLS_ENTRIES as usize]) {
        let words = entries.iter().flat_map(|entry| [entry.0 as u32, (entry.0 >> 32) as u32]);
        for (place, word) in TLS.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        assembly::clear_fs_and_gs();
        lazy_hcall(Hypercall::LoadTls { descriptors: phys_of(&TLS), cpu: 0 });
    }

    unsafe fn set_ldt(&self, table: &'static [Descriptor]) -> Result<(), NoLdt> {
        // The interface has no call for it.
        if table.is_empty() { Ok(()) } else { Err(NoLdt) }
    }

    fn load_tr(&self) {}

    unsafe fn load_esp0(&self, esp0: Virt, pages: u32) {
        assert!(pages <= 2, "{pages} pages of stack");
        lazy_hcall(Hypercall::SetStack { segment: u32::from(KERNEL_DS), esp: esp0, pages });
    }
}

fn tell_gate(vector: u32, gate: Gate) {
    hcall(Hypercall::LoadIdtEntry { vector, low: gate.low, high: gate.high });
}

fn tell_gdt(table: &[Descriptor]) {
    let entries = table.len() as u32;
    assert!(entries <= GDT_ENTRIES, "{entries} entries in the GDT");
    hcall(Hypercall::LoadGdt { table: phys_of(table), entries });
}
