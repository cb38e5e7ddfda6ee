//! Every way in which the Host ends a guest, and that the message names the reason and the value.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall};
use lguest_host::{End, GuestPhys, Kill};
use lguest_switcher::GuestVirt;
use tiny_guest::*;

/// Everything there is: memory and the device page.
const END: u32 = MEMORY + 0x1000;

/// What a guest that makes one call, once it has booted, ends with.
fn end_of(call: Hypercall) -> End {
    TinyGuest::new().kernel(|c| c.hypercall(call)).run().end
}

#[track_caller]
fn kills(call: Hypercall, kill: Kill) {
    assert_eq!(end_of(call), End::Killed(kill));
}

/// The same, for one that starts with something in memory.
#[track_caller]
fn kills_with(guest: TinyGuest, call: Hypercall, kill: Kill) {
    guest.kernel(|c| c.hypercall(call)).run().killed(kill);
}

fn bad_address(what: &'static str, start: u32, bytes: u64) -> Kill {
    Kill::BadAddress { what, start: GuestPhys(start), bytes }
}

#[test]
fn an_unknown_number() {
    for number in [17, 18, 255, u32::MAX] {
        let outcome = TinyGuest::new().kernel(|c| c.raw_hypercall([number, 0, 0, 0])).run();
        outcome.killed(Kill::UnknownHypercall { number });
    }
}

#[test]
fn any_call_before_lguest_init() {
    for number in (0..18).filter(|number| *number != 1) {
        let outcome = TinyGuest::new().bare(|c| c.raw_hypercall([number, 0, 0, 0])).run();
        outcome.killed(Kill::NotInitialized { number });
    }
}

#[test]
fn lguest_init_twice() {
    kills(
        Hypercall::LguestInit { data: Phys(DATA) },
        Kill::InitializedTwice { data: GuestPhys(DATA) },
    );
}

#[test]
fn lguest_data_outside_memory() {
    for data in [END - 1119, END, u32::MAX - 100] {
        let call = Hypercall::LguestInit { data: Phys(data) };
        let outcome = TinyGuest::new().bare(|c| c.hypercall(call)).run();
        outcome.killed(bad_address("LguestData", data, 1120));
    }
}

#[test]
fn a_range_that_ends_exactly_at_the_top_is_good() {
    let guest = TinyGuest::new();
    guest.put(END - 128, b"top\0");
    let call = Hypercall::Crash { message: Phys(END - 128) };
    assert_eq!(guest.kernel(|c| c.hypercall(call)).run().end, End::Crashed("top".to_owned()));
}

#[test]
fn a_crash_message_outside_memory() {
    let message = END - 127;
    kills(Hypercall::Crash { message: Phys(message) }, bad_address("crash message", message, 128));
}

#[test]
fn a_gdt_outside_memory() {
    let table = END - 8;
    kills(Hypercall::LoadGdt { table: Phys(table), entries: 2 }, bad_address("GDT", table, 16));
}

#[test]
fn a_gdt_that_is_too_large() {
    for entries in [33, u32::MAX] {
        kills(Hypercall::LoadGdt { table: Phys(GDT), entries }, Kill::GdtTooLarge { entries });
    }
}

#[test]
fn tls_descriptors_outside_memory() {
    let at = END - 16;
    let call = Hypercall::LoadTls { descriptors: Phys(at), cpu: 0 };
    kills(call, bad_address("TLS descriptors", at, 24));
}

#[test]
fn a_page_directory_outside_memory() {
    let directory = END;
    let call = Hypercall::NewPgtable { directory: Phys(directory) };
    kills(call, bad_address("page directory", directory, 4096));
}

#[test]
fn a_stack_segment_that_is_not_of_level_1() {
    for segment in [0x68, 0x6a, 0x7b, 0] {
        let call = Hypercall::SetStack { segment, esp: Virt(virt(TRAP_STACK)), pages: 1 };
        kills(call, Kill::BadStackSegment { selector: segment });
    }
}

#[test]
fn more_than_two_stack_pages() {
    for pages in [3, u32::MAX] {
        let call = Hypercall::SetStack { segment: 0x69, esp: Virt(virt(TRAP_STACK)), pages };
        kills(call, Kill::TooManyStackPages { pages });
    }
}

#[test]
fn a_stack_page_that_is_not_mapped() {
    let address = GuestVirt(0xd000_0ff0);
    let call = Hypercall::SetStack { segment: 0x69, esp: Virt(address.0), pages: 1 };
    kills(call, Kill::BadStackPage { address });
}

#[test]
fn a_stack_page_that_is_read_only() {
    let guest = TinyGuest::new();
    guest.put_word(LINEAR_TABLE + (SCRATCH >> 12) * 4, SCRATCH | 5);
    let top = virt(SCRATCH + 0x1000);
    // The page that holds esp is good, the one below isn't.
    let call = Hypercall::SetStack { segment: 0x69, esp: Virt(top), pages: 2 };
    kills_with(guest, call, Kill::BadStackPage { address: GuestVirt(top - 0x1000) });
}

#[test]
fn a_stack_page_that_is_lost_is_noticed_at_a_full_flush() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.mov(dword_ptr(virt(LINEAR_TABLE + (TRAP_STACK >> 12) * 4)), 0)?;
            c.hypercall(Hypercall::FlushTlb { scope: FlushScope::User })?;
            c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })
        })
        .run();
    outcome.killed(Kill::BadStackPage { address: GuestVirt(virt(TRAP_STACK)) });
}

#[test]
fn a_stack_page_that_a_new_address_space_lacks() {
    let call = Hypercall::NewPgtable { directory: Phys(FREE) };
    kills(call, Kill::BadStackPage { address: GuestVirt(virt(TRAP_STACK)) });
}

#[test]
fn a_stack_in_the_top_4_mib() {
    let address = GuestVirt(0xffc0_0ff0);
    let call = Hypercall::SetStack { segment: 0x69, esp: Virt(address.0), pages: 1 };
    kills(call, Kill::ReservedAddress { what: "the trap stack", address });
}

#[test]
fn a_present_idt_entry_of_another_kind() {
    for kind in 0..14 {
        let (low, high) = gate_words(virt(HANDLERS), kind, 0);
        let vector = 14;
        kills(Hypercall::LoadIdtEntry { vector, low, high }, Kill::BadGate { vector, low, high });
    }
}

#[test]
fn set_pte_in_the_top_4_mib() {
    let address = GuestVirt(0xffff_f000);
    let call = Hypercall::SetPte { directory: Phys(DIRECTORY), address: Virt(address.0), value: 0 };
    kills(call, Kill::ReservedAddress { what: "SET_PTE", address });
}

#[test]
fn a_page_table_entry_with_pwt_or_pse_or_a_frame_beyond_memory() {
    let address = GuestVirt(USER_DATA);
    for value in [FREE | 0x6f, FREE | 0xe7, END | 0x67, 0xffff_f067] {
        let kill = Kill::BadPageTableEntry { entry: value.into(), address };
        let directory = Phys(DIRECTORY);
        let call = Hypercall::SetPte { directory, address: Virt(address.0), value: value.into() };
        kills(call, kill.clone());
        // And found by walking, on the first access.
        let guest = TinyGuest::new();
        guest.put_word(USER_TABLE + 4, value);
        guest.kernel(|c| c.mov(eax, dword_ptr(USER_DATA))).run().killed(kill);
    }
}

#[test]
fn a_top_level_entry_with_other_bits_or_a_frame_beyond_memory() {
    for entry in
        [USER_TABLE | 0x87, USER_TABLE | 0xf, USER_TABLE | 0x17, USER_TABLE | 0x107, END | 7]
    {
        let guest = TinyGuest::new();
        guest.put_word(DIRECTORY + (USER_DATA >> 22) * 4, entry);
        let outcome = guest.kernel(|c| c.mov(eax, dword_ptr(USER_DATA))).run();
        outcome.killed(Kill::BadPageDirectoryEntry {
            entry: entry.into(),
            address: GuestVirt(USER_DATA),
        });
    }
}

#[test]
fn a_mapped_access_in_the_top_4_mib() {
    let guest = TinyGuest::new();
    guest.put_word(DIRECTORY + 1023 * 4, USER_TABLE | 7);
    let address = GuestVirt(0xffc0_0010);
    let outcome = guest.kernel(|c| c.mov(eax, dword_ptr(address.0))).run();
    outcome.killed(Kill::ReservedAddress { what: "an access", address });
}

#[test]
fn an_access_there_is_a_page_fault_for_later_guests_whatever_their_tables_say() {
    for generation in LATER {
        let guest = TinyGuest::of(generation).reporting(14, 1);
        guest.put_word(DIRECTORY + 1023 * 4, USER_TABLE | 7);
        let outcome = guest
            .user(|c| c.mov(eax, dword_ptr(0xffc0_0010u32)))
            .kernel(|c| c.enter_user())
            .run()
            .powered_off();
        assert_eq!(outcome.result(0), 4, "{generation}");
    }
}

#[test]
fn an_access_there_that_is_not_mapped_is_a_page_fault() {
    let outcome =
        TinyGuest::new().reporting(14, 1).kernel(|c| c.mov(eax, dword_ptr(0xffc0_0010u32))).run();
    assert_eq!(outcome.powered_off().result(0), 0);
}

#[test]
fn a_trap_with_no_handler() {
    let outcome = TinyGuest::new().bare(|c| c.ud2()).run();
    let (vector, error, address, eip) = (6, 0, GuestVirt(0), virt(CODE));
    outcome.killed(Kill::NoHandler { vector, error, address, eip });
}

#[test]
fn a_dma_key_that_is_unaligned_or_no_memory() {
    for key in [1, 2, DATA + 3, END, u32::MAX - 3] {
        let kill = Kill::BadDmaKey { key: GuestPhys(key) };
        let bind = Hypercall::BindDma { key: Phys(key), array: Phys(SCRATCH), count: 1, irq: 1 };
        kills(bind, kill.clone());
        kills(Hypercall::SendDma { key: Phys(key), dma: Phys(SCRATCH) }, kill);
    }
}

#[test]
fn an_array_of_dma_outside_memory() {
    for (array, count) in [(END - 99, 1), (END - 199, 2), (SCRATCH, 0x00ff_ffff)] {
        let call = Hypercall::BindDma { key: Phys(4), array: Phys(array), count, irq: 1 };
        kills(call, bad_address("array of Dma", array, u64::from(count) * 100));
    }
}

#[test]
fn a_dma_outside_memory() {
    let dma = END - 99;
    kills(Hypercall::SendDma { key: Phys(4), dma: Phys(dma) }, bad_address("Dma", dma, 100));
}

#[test]
fn a_bad_section_of_a_dma() {
    for (start, bytes) in [(END, 1), (END - 1, 2), (u32::MAX, 1), (u32::MAX - 1, 0xffff)] {
        let guest = TinyGuest::new();
        guest.put_dma(SCRATCH, 0, &[(FREE, 8), (start, bytes)]);
        let call = Hypercall::SendDma { key: Phys(4), dma: Phys(SCRATCH) };
        let (dma, start) = (GuestPhys(SCRATCH), GuestPhys(start));
        kills_with(guest, call, Kill::BadDmaSection { dma, start, bytes });
    }
}

#[test]
fn a_page_directory_that_set_pte_or_set_pmd_names_outside_memory() {
    for directory in [END, u32::MAX] {
        let kill = bad_address("page directory", directory & !0xfff, 4096);
        let directory = Phys(directory);
        for address in [USER_DATA, virt(FREE)] {
            let address = Virt(address);
            kills(Hypercall::SetPte { directory, address, value: 0 }, kill.clone());
        }
        for index in [USER_DATA >> 22, PAGE_OFFSET >> 22] {
            kills(Hypercall::SetPmd { directory, index }, kill.clone());
        }
    }
}

#[test]
fn a_descriptor_table_behind_a_bad_page_table_entry() {
    // What ends the guest is the entry, not the segment that couldn't be read because of it.
    let guest = TinyGuest::new();
    let (entry, table) = (FREE | 0xf, 0x0840_0000);
    guest.put_word(DIRECTORY + (table >> 22) * 4, FREE | 7);
    guest.put_word(FREE, entry);
    guest.put(SCRATCH, &[255, 0]);
    guest.put_word(SCRATCH + 2, table);
    let outcome = guest
        .handler(6, |c| c.power_off())
        .kernel(|c| {
            c.lgdt(dword_ptr(virt(SCRATCH)))?;
            c.ud2()
        })
        .run();
    outcome.killed(Kill::BadPageTableEntry {
        entry: entry.into(),
        address: GuestVirt(table + 12 * 8),
    });
}

#[test]
fn turning_paging_off() {
    let outcome = TinyGuest::new()
        .kernel(|c| {
            c.mov(eax, 0x11)?;
            c.mov(cr0, eax)
        })
        .run();
    assert!(matches!(outcome.end, End::Killed(Kill::ModeChange { value: 0x11, .. })));
}

#[test]
fn messages_name_the_reason_and_the_value() {
    let (start, at) = (GuestPhys(0x20_1000), GuestVirt(0x1000));
    let (eip, address) = (0xc001_0000, at);
    let trap = |vector, error| Kill::NoHandler { vector, error, address, eip };
    let messages = [
        (Kill::UnknownHypercall { number: 99 }, "unknown hypercall 99"),
        (Kill::NotInitialized { number: 3 }, "hypercall 3 before LGUEST_INIT"),
        (
            Kill::InitializedTwice { data: start },
            "LGUEST_INIT a second time, with LguestData at 0x00201000",
        ),
        (
            Kill::BadAddress { what: "GDT", start, bytes: 256 },
            "bad address range: GDT at 0x00201000, 256 bytes",
        ),
        (Kill::BadStackSegment { selector: 0x68 }, "stack segment 0x68 isn't of level 1"),
        (Kill::TooManyStackPages { pages: 3 }, "3 stack pages, when at most 2 can be pinned"),
        (Kill::BadStackPage { address: at }, "bad stack page 0x00001000: not mapped writable"),
        (Kill::GdtTooLarge { entries: 40 }, "40 GDT entries, when there is room for 32"),
        (
            Kill::BadGate { vector: 3, low: 1, high: 0x8500 },
            "IDT entry 3 is neither an interrupt nor a trap gate: 0x00000001 0x00008500",
        ),
        (
            Kill::BadPageTableEntry { entry: 0x87, address },
            "bad page table entry 0x00000087 for 0x00001000",
        ),
        (
            Kill::BadPageDirectoryEntry { entry: 0x87, address },
            "bad page directory entry 0x00000087 for 0x00001000",
        ),
        (
            Kill::ReservedAddress { what: "SET_PTE", address: GuestVirt(0xffc0_0000) },
            "SET_PTE at 0xffc00000, among the topmost addresses, which the Host reserves",
        ),
        (trap(6, 0), "no handler for trap 6 at eip 0xc0010000"),
        (trap(13, 0xfa), "no handler for trap 13 (error code 0xfa) at eip 0xc0010000"),
        (
            trap(14, 2),
            "no handler for trap 14 (a page fault at 0x00001000, error code 0x2) at eip 0xc0010000",
        ),
        (
            Kill::DoubleFault { vector: 6, eip, what: "its stack can't be written", value: 0xffc },
            "double fault: vector 6 at eip 0xc0010000 can't be delivered, its stack can't be written (0x00000ffc)",
        ),
        (Kill::BadDmaKey { key: GuestPhys(3) }, "bad DMA key 0x00000003: unaligned, or no memory"),
        (
            Kill::BadDmaSection { dma: GuestPhys(0x1000), start, bytes: 1 },
            "bad DMA section at 0x00201000, length 1, of the Dma at 0x00001000",
        ),
        (
            Kill::ModeChange { register: "cr0", value: 0x11, eip },
            "cr0 = 0x00000011 at eip 0xc0010000: the guest may not leave 32-bit protected mode with paging",
        ),
    ];
    for (kill, message) in messages {
        assert_eq!(kill.to_string(), message);
    }
}
