//! Memory of the later generations: one-to-one at first, then what their page tables may have; and devices behind its end.
//! Page tables of three levels are in `three_levels.rs`.

mod tiny_guest;

use iced_x86::code_asm::*;
use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall};
use lguest_abi::lguest_data::offset;
use lguest_host::{
    End, Generation, GuestMemory, GuestPhys, Kill, Machine, MachineConfig, NoDevices,
};
use lguest_switcher::GuestVirt;
use std::sync::Arc;
use tiny_guest::*;

/// Frames with something in them.
const FRAME: u32 = FREE + 0x2000;
const FRAME_2: u32 = FREE + 0x3000;
/// Another page directory, and its table.
const OTHER: u32 = FREE + 0x4000;
const OTHER_TABLE: u32 = FREE + 0x6000;

const FLUSH_USER: Hypercall = Hypercall::FlushTlb { scope: FlushScope::User };

/// A page of user addresses.
const fn page(index: u32) -> u32 {
    USER_CODE + index * 0x1000
}

fn new_pgtable(directory: u32) -> Hypercall {
    Hypercall::NewPgtable { directory: Phys(directory) }
}

// Memory one-to-one.

#[test]
fn memory_is_one_to_one_at_first() {
    for generation in LOW {
        let guest = TinyGuest::of(generation).with_word(MEMORY + 0xffc, 0x77);
        guest.low(|c| {
            // Code, stack and data where they are, before any call and after the first.
            c.mov(esp, STACK)?;
            c.call(u64::from(FREE))?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.call(u64::from(FREE))?;
            // To the last word of all.
            c.mov(eax, dword_ptr(MEMORY + 0xffc))?;
            c.mov(dword_ptr(RESULTS + 4), eax)?;
            c.mov(dword_ptr(MEMORY + 0xffc), 0x88)?;
            c.power_off()
        });
        guest.code(FREE, FREE, |c| {
            c.inc(dword_ptr(RESULTS))?;
            c.ret()
        });
        let outcome = guest.run().powered_off();
        assert_eq!(results(&outcome), [2, 0x77], "{generation}");
        assert_eq!(outcome.guest.word(MEMORY + 0xffc), 0x88, "{generation}");
    }
}

#[test]
fn beyond_memory_there_is_nothing_to_see_one_to_one() {
    for generation in LOW {
        for address in [MEMORY + 0x1000, PAGE_OFFSET, virt(RESULTS), 0xffc0_0000, 0xffff_fffc] {
            let guest = TinyGuest::of(generation);
            guest.low(|c| c.mov(eax, dword_ptr(address)));
            let (eip, address) = (ENTRY, GuestVirt(address));
            guest.run().killed(Kill::NoHandler { vector: 14, error: 0, address, eip });
        }
    }
}

/// Runs a guest of 4.0 that begins at [`ENTRY`], with other memory and another kernel address than tiny ones have.
fn run_with(
    memory: u32,
    page_offset: u32,
    write: impl FnOnce(&mut Code) -> Assembled,
) -> (End, TinyGuest) {
    let mut guest = TinyGuest::of(Generation::V4_0);
    guest.memory = Arc::new(GuestMemory::new(memory).expect("memory of any size"));
    guest.put(MESSAGE, b"Power down");
    guest.put(DATA + guest.layout.hcall_status, &[0xff; 64]);
    guest.put_field(guest.layout.kernel_address, page_offset);
    guest.put_field(guest.layout.syscall_vec, 0x80);
    guest.low(write);
    let mut machine = Machine::new(MachineConfig {
        memory: Arc::clone(&guest.memory),
        generation: guest.generation,
        page_offset,
        entry: ENTRY,
        page_directory: GuestPhys(0),
        guest_id: GUEST_ID,
        lines: guest.lines.clone(),
        bus: Box::new(guest.bus.clone()),
    })
    .expect("a machine that can run guests");
    (machine.run(&mut NoDevices), guest)
}

#[test]
fn one_to_one_goes_on_across_the_first_of_the_kernels_addresses() {
    const BORDER: u32 = 0x100_0000;
    let words = [BORDER - 4, BORDER - 2, BORDER, BORDER + 0x7f_fffc];
    let (end, guest) = run_with(BORDER + 0x80_0000, BORDER, |c| {
        c.mov(esp, STACK)?;
        c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
        for (value, at) in (0x0101_0101..).zip(words) {
            c.mov(dword_ptr(at), value)?;
        }
        // Code on both sides, and a stack right at the border.
        c.mov(byte_ptr(BORDER + 0x1000), 0xc3)?;
        c.mov(esp, BORDER + 4)?;
        c.call(u64::from(BORDER + 0x1000))?;
        c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })?;
        c.mov(eax, dword_ptr(BORDER - 2))?;
        c.mov(dword_ptr(RESULTS), eax)?;
        c.power_off()
    });
    assert_eq!(end, End::PowerOff);
    assert_eq!(guest.word(BORDER + 0x7f_fffc), 0x0101_0104);
    // The call's return address is above the border; the last store that straddles it is half there still.
    assert_eq!(guest.word(RESULTS) & 0xffff, 0x0102);
}

#[test]
fn memory_nearly_as_large_as_the_address_space() {
    const LAST: u32 = 0xffff_f000 - 4;
    for (address, faults) in
        [(LAST, false), (LAST + 1, true), (0xffff_f000, true), (u32::MAX - 3, true)]
    {
        let (end, guest) = run_with(0xffff_f000, PAGE_OFFSET, |c| {
            c.mov(dword_ptr(address), 0x1234_5678)?;
            c.mov(dword_ptr(PAGE_OFFSET - 2), 0x4321)?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.power_off()
        });
        if faults {
            let fault = GuestVirt(address.max(0xffff_f000));
            let kill = Kill::NoHandler { vector: 14, error: 2, address: fault, eip: ENTRY };
            assert_eq!(end, End::Killed(kill));
        } else {
            assert_eq!((end, guest.word(LAST)), (End::PowerOff, 0x1234_5678));
            assert_eq!(guest.word(PAGE_OFFSET - 2), 0x4321);
        }
    }
}

#[test]
fn a_page_fault_before_the_first_tables_can_be_handled() {
    for generation in LOW {
        let guest = TinyGuest::of(generation);
        guest.low(|c| {
            c.mov(esp, STACK)?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.hypercall(load_gate(14, FREE, 0xf, 0))?;
            c.mov(dword_ptr(MEMORY + 0x1000), 1)
        });
        guest.code(FREE, FREE, |c| {
            c.pop(eax)?;
            c.mov(dword_ptr(RESULTS), eax)?;
            c.mov(eax, dword_ptr(DATA + offset::CR2))?;
            c.mov(dword_ptr(RESULTS + 4), eax)?;
            c.power_off()
        });
        let outcome = guest.run().powered_off();
        assert_eq!(results(&outcome), [2, MEMORY + 0x1000], "{generation}");
    }
}

#[test]
fn the_first_new_pgtable_ends_it() {
    for generation in LOW {
        let guest = TinyGuest::of(generation);
        // What was seen at the low address of the results before isn't there now: user page 0 isn't mapped by these tables.
        guest.put_word(OTHER + (PAGE_OFFSET >> 22) * 4, LINEAR_TABLE | FLAGS);
        guest.put_word(OTHER, OTHER_TABLE | FLAGS);
        guest.put_word(OTHER_TABLE + (ENTRY >> 12) * 4, ENTRY | FLAGS);
        guest.low(|c| {
            c.mov(eax, dword_ptr(RESULTS))?;
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.hypercall(new_pgtable(OTHER))?;
            c.mov(eax, virt(CODE))?;
            c.jmp(eax)
        });
        let outcome = guest.reporting(14, 1).kernel(|c| c.mov(eax, dword_ptr(RESULTS)));
        let outcome = outcome.run().powered_off();
        assert_eq!(outcome.field(offset::CR2), RESULTS, "{generation}");
    }
}

#[test]
fn what_the_launchers_tables_showed_is_forgotten_with_them() {
    let guest = TinyGuest::of(Generation::V2_6_30).with_word(FRAME, 1).with_word(FRAME_2, 2);
    for page in 0..MEMORY / 0x1000 {
        guest.put_word(OTHER_TABLE + page * 4, (page * 0x1000) | 7);
    }
    guest.put_word(OTHER_TABLE + FRAME / 0x1000 * 4, FRAME_2 | 7);
    guest.put_word(OTHER + (PAGE_OFFSET >> 22) * 4, OTHER_TABLE | 7);
    let outcome = guest.kernel(|c| {
        look(c, 0, virt(FRAME))?;
        c.hypercall(new_pgtable(OTHER))?;
        look(c, 1, virt(FRAME))
    });
    assert_eq!(results(&outcome.run().powered_off()), [1, 2]);
}

#[test]
fn without_tables_there_is_nothing_to_change() {
    for generation in LOW {
        let guest = TinyGuest::of(generation);
        guest.low(|c| {
            let directory = Phys(FREE);
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            let (address, value) = (Virt(RESULTS), u64::from(FRAME | USED));
            c.hypercall(Hypercall::SetPte { directory, address, value })?;
            c.hypercall(Hypercall::SetPmd { directory, index: 0 })?;
            c.hypercall(Hypercall::SetMiddle { table: directory, index: 0 })?;
            c.hypercall(Hypercall::FlushTlb { scope: FlushScope::All })?;
            c.hypercall(FLUSH_USER)?;
            c.invlpg(ptr(RESULTS))?;
            c.mov(dword_ptr(RESULTS), 5)?;
            c.power_off()
        });
        assert_eq!(guest.run().powered_off().result(0), 5, "{generation}");
    }
}

#[test]
fn what_cr3_was_before_the_first_tables_is_forgotten() {
    // Address spaces without tables, made by `mov cr3`; then the first tables are those that one of them had.
    for generation in LOW {
        for order in [[DIRECTORY, FREE], [FREE, DIRECTORY]] {
            let guest = TinyGuest::of(generation);
            guest.put_word(USER_TABLE + 4 * 4, FRAME | USED);
            guest.put_word(FRAME, 0x1111);
            guest.put_word(FRAME_2, 0x2222);
            guest.low(|c| {
                c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
                for root in order {
                    c.mov(eax, root)?;
                    c.mov(cr3, eax)?;
                }
                c.hypercall(new_pgtable(DIRECTORY))?;
                c.mov(eax, virt(CODE))?;
                c.jmp(eax)
            });
            // User code looks twice, and in between its kernel changes what there is to see.
            let guest = guest.gate(0x80, 0xf, 3, |c| {
                let mut again = c.create_label();
                c.cmp(dword_ptr(virt(RESULTS)), 0)?;
                c.jne(again)?;
                c.note(0, ebp)?;
                c.mov(dword_ptr(virt(USER_TABLE) + 4 * 4), FRAME_2 | USED)?;
                let (directory, address) = (Phys(DIRECTORY), Virt(page(4)));
                let value = (FRAME_2 | USED).into();
                c.hypercall(Hypercall::SetPte { directory, address, value })?;
                c.iretd()?;
                c.set_label(&mut again)?;
                c.note(1, ebp)?;
                c.power_off()
            });
            let guest = guest.user(|c| {
                for _ in 0..2 {
                    c.mov(ebp, dword_ptr(page(4)))?;
                    c.int(0x80)?;
                }
                Ok(())
            });
            let outcome = guest.kernel(|c| c.enter_user()).run().powered_off();
            assert_eq!(results(&outcome), [0x1111, 0x2222], "{generation}, {order:x?}");
        }
    }
}

#[test]
fn the_first_tables_must_be_memory() {
    for generation in WIDE {
        for directory in [MEMORY + 0x1000, 0x8000_0000, 0xffff_ffe0, u32::MAX] {
            let guest = TinyGuest::of(generation);
            let first = |c: &mut Code| {
                c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
                c.hypercall(new_pgtable(directory))
            };
            guest.low(first);
            let (what, start) = ("page directory", GuestPhys(directory));
            guest.bare(first).run().killed(Kill::BadAddress { what, start, bytes: 4096 });
        }
    }
}

#[test]
fn the_trap_stack_must_be_in_the_first_tables() {
    for generation in WIDE {
        // Tables that have the kernel's code, and not its stack.
        let guest = TinyGuest::of(generation);
        guest.put_word(OTHER + (PAGE_OFFSET >> 22) * 4, OTHER_TABLE | FLAGS);
        guest.put_word(OTHER_TABLE + (CODE >> 12) * 4, CODE | FLAGS);
        let stack = if guest.generation.starts_with_page_tables() { virt(STACK) } else { STACK };
        let address = GuestVirt(stack);
        let first = |c: &mut Code| {
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            let segment = 0x69;
            c.hypercall(Hypercall::SetStack { segment, esp: Virt(stack), pages: 1 })?;
            c.hypercall(new_pgtable(OTHER))
        };
        guest.low(first);
        guest.bare(first).run().killed(Kill::BadStackPage { address });
    }
}

// Flags, and what lies behind memory.

#[test]
fn write_through_is_allowed_since_2_6_25_and_large_pages_never() {
    for (generation, flags, good) in [
        (Generation::V2_6_23, 0xf, false),
        (Generation::V2_6_24, 0xf, false),
        (Generation::V2_6_25, 0xf, true),
        (Generation::V2_6_30, 0xf, true),
        (Generation::V2_6_38, 0x1f, true),
        (Generation::V4_0, 0x1f, true),
        (Generation::V2_6_24, 0x87, false),
        (Generation::V2_6_25, 0x87, false),
        (Generation::V2_6_30, 0x87, false),
        (Generation::V2_6_38, 0x87, false),
        (Generation::V4_0, 0x87, false),
    ] {
        let set = |c: &mut Code| {
            let (directory, address) = (Phys(DIRECTORY), Virt(page(4)));
            let value = (FRAME | flags).into();
            c.hypercall(Hypercall::SetPte { directory, address, value })
        };
        // By an access, and by SET_PTE.
        for by_access in [true, false] {
            let guest = TinyGuest::of(generation).with_word(USER_TABLE + 4 * 4, FRAME | flags);
            guest.put_word(FRAME, 0x1111);
            let outcome =
                guest.kernel(|c| if by_access { look(c, 0, page(4)) } else { set(c) }).run();
            if good {
                let seen = outcome.powered_off().result(0);
                assert_eq!(seen, if by_access { 0x1111 } else { 0 }, "{generation}, {flags:#x}");
            } else {
                let (entry, address) = (u64::from(FRAME | flags), GuestVirt(page(4)));
                outcome.killed(Kill::BadPageTableEntry { entry, address });
            }
        }
    }
}

#[test]
fn an_access_to_the_topmost_addresses_ends_the_first_guests_and_is_a_fault_to_later_ones() {
    const TOP: u32 = 0xffc0_0000;
    for generation in Generation::ALL {
        let outcome = TinyGuest::of(generation)
            .with_word(DIRECTORY + (TOP >> 22) * 4, OTHER_TABLE | 7)
            .with_word(OTHER_TABLE, FRAME | USED)
            .reporting(14, 1)
            .user(|c| c.mov(eax, dword_ptr(TOP)))
            .kernel(|c| c.enter_user())
            .run();
        if generation == Generation::First {
            outcome.killed(Kill::ReservedAddress { what: "an access", address: GuestVirt(TOP) });
        } else {
            assert_eq!(outcome.powered_off().result(0), 4, "{generation}");
        }
    }
}

#[test]
fn a_frame_behind_memory_is_a_device_in_4_0_and_an_end_before() {
    for generation in LATER {
        for frame in [MEMORY + 0x1000, 0x8000_0000, 0xffff_f000] {
            let guest = TinyGuest::of(generation).with_word(USER_TABLE + 4 * 4, frame | FLAGS);
            let bus = guest.bus.clone();
            let outcome = guest.kernel(|c| look(c, 0, page(4) + 0x10)).run();
            if generation == Generation::V4_0 {
                assert_eq!(outcome.powered_off().result(0), 0x1312_1110, "{frame:#x}");
                assert_eq!(bus.touches(), [Touch::Read(frame + 0x10, 4)], "{frame:#x}");
            } else {
                let (entry, address) = (u64::from(frame | FLAGS), GuestVirt(page(4) + 0x10));
                outcome.killed(Kill::BadPageTableEntry { entry, address });
                assert_eq!(bus.touches(), []);
            }
        }
    }
}

#[test]
fn devices_are_accessed_once_and_as_wide_as_the_instruction_says() {
    const DEVICE: u32 = 0x9000_0000;
    let levels = [
        TinyGuest::of(Generation::V4_0).with_word(USER_TABLE + 4 * 4, DEVICE | USED),
        TinyGuest::of(Generation::V4_0).wide().with_word(WIDE_USER_TABLE + 4 * 8, DEVICE | USED),
    ];
    for guest in levels {
        let (bus, directory, at) = (guest.bus.clone(), Phys(guest.root), page(4));
        let outcome = guest.kernel(|c| {
            // Shown ahead of need, it is still a device.
            let value = u64::from(DEVICE | USED);
            c.hypercall(Hypercall::SetPte { directory, address: Virt(at), value })?;
            c.movzx(eax, byte_ptr(at + 1))?;
            c.note(0, eax)?;
            c.movzx(eax, word_ptr(at + 2))?;
            c.note(1, eax)?;
            c.mov(eax, dword_ptr(at + 4))?;
            c.note(2, eax)?;
            c.mov(byte_ptr(at + 9), 0x11)?;
            c.mov(word_ptr(at + 10), 0x2222)?;
            c.mov(dword_ptr(at + 12), 0x3333_3333)
        });
        assert_eq!(results(&outcome.run().powered_off()), [1, 0x302, 0x0706_0504]);
        let touches = [
            Touch::Read(DEVICE + 1, 1),
            Touch::Read(DEVICE + 2, 2),
            Touch::Read(DEVICE + 4, 4),
            Touch::Write(DEVICE + 9, vec![0x11]),
            Touch::Write(DEVICE + 10, vec![0x22; 2]),
            Touch::Write(DEVICE + 12, vec![0x33; 4]),
        ];
        assert_eq!(bus.touches(), touches);
    }
}

// Instructions that have a meaning of their own for these kernels.

#[test]
fn ports_reach_the_devices() {
    for generation in LATER {
        let guest = TinyGuest::of(generation);
        let bus = guest.bus.clone();
        let outcome = guest.kernel(|c| {
            c.xor(eax, eax)?;
            c.mov(edx, 0xcf8)?;
            c.in_(eax, dx)?;
            c.note(0, eax)?;
            c.xor(eax, eax)?;
            c.in_(ax, dx)?;
            c.note(1, eax)?;
            c.xor(eax, eax)?;
            c.in_(al, 0x64)?;
            c.note(2, eax)?;
            c.mov(eax, 0x1122_3344)?;
            c.out(dx, eax)?;
            c.out(dx, ax)?;
            c.out(0x80, al)
        });
        let outcome = outcome.run().powered_off();
        assert_eq!(results(&outcome), [PORT_VALUE, PORT_VALUE & 0xffff, PORT_VALUE & 0xff]);
        let touches = [
            Touch::In(0xcf8, 4),
            Touch::In(0xcf8, 2),
            Touch::In(0x64, 1),
            Touch::Out(0xcf8, 4, 0x1122_3344),
            Touch::Out(0xcf8, 2, 0x3344),
            Touch::Out(0x80, 1, 0x44),
        ];
        assert_eq!(bus.touches(), touches, "{generation}");
    }
}

#[test]
fn user_code_reaches_no_port() {
    for generation in LATER {
        let guest = TinyGuest::of(generation).reporting(13, 2);
        let bus = guest.bus.clone();
        let outcome = guest.user(|c| c.out(0x80, al)).kernel(|c| c.enter_user());
        assert_eq!(results(&outcome.run().powered_off()), [0, USER_CODE], "{generation}");
        assert_eq!(bus.touches(), [], "{generation}");
    }
}

#[test]
fn a_step_over_a_skipped_cli_is_one() {
    let outcome = TinyGuest::of(Generation::V4_0)
        .handler(1, |c| {
            c.note(0, ebx)?;
            c.power_off()
        })
        .kernel(|c| {
            c.mov(ebx, 5)?;
            c.pushfd()?;
            c.or(dword_ptr(esp), 0x100)?;
            c.popfd()?;
            c.cli()?;
            c.inc(ebx)
        });
    assert_eq!(outcome.run().powered_off().result(0), 5);
}

#[test]
fn cli_is_skipped_in_4_0_alone() {
    for generation in LATER {
        let outcome = TinyGuest::of(generation).kernel(|c| {
            c.enable_interrupts()?;
            c.cli()?;
            note_field(c, 0, offset::IRQ_ENABLED)
        });
        let enabled = if generation == Generation::V4_0 { 512 } else { 0 };
        assert_eq!(outcome.run().powered_off().result(0), enabled, "{generation}");
    }
    // User code may not even say it.
    let guest = TinyGuest::of(Generation::V4_0).reporting(13, 2).user(|c| c.cli());
    let outcome = guest.kernel(|c| c.enter_user()).run().powered_off();
    assert_eq!(results(&outcome), [0, USER_CODE]);
}
