//! Pages come and go: mapped on demand, taken back, shown to the kernel and to several address
//! spaces, and scarce.

mod guest;

use guest::*;
use iced_x86::code_asm::*;
use lguest_switcher::{Exception, Gpr, GuestPhys, GuestVirt, Mapping, PAGE_SIZE, View};

#[test]
fn a_page_is_asked_for_once_and_again_when_taken_back() {
    let mut guest = Guest::user(|a| {
        a.mov(eax, dword_ptr(DATA))?;
        a.add(eax, dword_ptr(DATA + 8))
    });
    guest.finish();
    let walks = guest.tables.walks;
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.tables.walks, walks);
    // Another frame behind the same page shows as soon as the old one is taken back.
    guest.provide(DATA, 1, true);
    guest.poke(DATA, &5u32.to_le_bytes());
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 0);
    guest.vcpu.unmap(View::AllUsers, GuestVirt(DATA), 1);
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 5);
}

#[test]
fn a_page_of_code_can_be_exchanged_too() {
    let mut guest = Guest::user(|a| {
        a.mov(edx, USER + 0x1000)?;
        a.call(edx)
    });
    let body = |value: u32| {
        move |a: &mut CodeAssembler| {
            a.mov(eax, value)?;
            a.ret()
        }
    };
    guest.assemble(USER + 0x1000, body(1));
    guest.finish();
    assert!(
        guest
            .vcpu
            .mapped(View::User(guest.vcpu.current_space()), GuestVirt(USER + 0x1000))
            .is_some()
    );
    guest.provide(USER + 0x1000, 1, true);
    guest.assemble(USER + 0x1000, body(2));
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 1, "as a processor's TLB would");
    guest.vcpu.unmap(View::AllUsers, GuestVirt(USER + 0x1000), 1);
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 2);
}

#[test]
fn read_only_pages_fault_on_writes_only() {
    let mut guest = Guest::user(|a| {
        a.mov(eax, dword_ptr(DATA))?;
        a.inc(dword_ptr(DATA))
    });
    let page = DATA / PAGE_SIZE;
    guest.tables.pages.get_mut(&page).unwrap().writable = false;
    assert_eq!(guest.exception(), page_fault(DATA, 7));
    assert_eq!(guest.vcpu.cpu.eip(), USER + 5);
    guest.tables.pages.get_mut(&page).unwrap().writable = true;
    guest.finish();
    assert_eq!(guest.peek(DATA), 1);
}

#[test]
fn what_is_mapped_ahead_does_not_fault() {
    let mut guest = Guest::kernel(|a| {
        a.mov(dword_ptr(KERNEL_DATA), 1)?;
        a.mov(dword_ptr(KERNEL_DATA + 0x3000), 2)
    });
    let mapping = Mapping {
        virt: GuestVirt(KERNEL_DATA),
        phys: guest.phys(KERNEL_DATA),
        pages: 4,
        writable: true,
        user: false,
    };
    guest.vcpu.map(View::Kernel, mapping);
    guest.finish();
    assert_eq!(guest.vcpu.statistics().faults, 0);
    assert_eq!((guest.peek(KERNEL_DATA), guest.peek(KERNEL_DATA + 0x3000)), (1, 2));
    let mut shown = Vec::new();
    guest.vcpu.for_each_mapped(View::Kernel, &mut |run| shown.push(run));
    assert!(shown.contains(&mapping), "{shown:?}");
    // A user's view never shows what isn't the user's.
    guest.vcpu.map(View::AllUsers, mapping);
    let space = guest.vcpu.current_space();
    assert_eq!(guest.vcpu.mapped(View::User(space), GuestVirt(KERNEL_DATA)), None);
}

#[test]
fn each_address_space_shows_its_own_pages() {
    let mut guest = Guest::user(|a| a.mov(eax, dword_ptr(DATA)));
    let first = guest.vcpu.current_space();
    guest.poke(DATA, &[1]);
    guest.finish();
    let second = guest.vcpu.create_space().unwrap();
    guest.vcpu.switch_space(second);
    guest.provide(DATA, 1, true);
    guest.poke(DATA, &[2]);
    for (space, expected) in [(second, 2), (first, 1), (second, 2)] {
        guest.vcpu.switch_space(space);
        guest.start_user(USER);
        guest.finish();
        assert_eq!(guest.gpr(Gpr::Eax), expected);
    }
    guest.vcpu.switch_space(first);
    guest.vcpu.destroy_space(second);
    let third = guest.vcpu.create_space().unwrap();
    guest.vcpu.switch_space(third);
    guest.start_user(USER);
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 2, "nothing of the old space is left in a new one");
}

#[test]
fn the_kernel_reaches_the_users_memory_in_every_way() {
    let mut guest = Guest::kernel(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 50)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(DATA))?; // one operand
        a.push(dword_ptr(DATA))?; // with the stack beside it
        a.pop(dword_ptr(DATA + 4))?;
        a.mov(ebx, dword_ptr(KERNEL_DATA))?;
        a.mov(ebx, dword_ptr(DATA + ecx * 4 + 16))?;
        a.bts(dword_ptr(DATA + 8), ecx)?;
        a.movd(xmm0, dword_ptr(DATA))?;
        a.push(ecx)?;
        a.push(edi)?;
        a.mov(esi, KERNEL_DATA)?;
        a.mov(edi, DATA + 0xff0)?; // a copy across two of the user's pages
        a.mov(ecx, 8)?;
        a.rep().movsd()?;
        a.pop(edi)?;
        a.pop(ecx)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    guest.poke(KERNEL_DATA, &[7; 32]);
    guest.finish();
    assert_eq!((guest.peek(DATA), guest.peek(DATA + 4)), (50, 50));
    assert_eq!((guest.peek(DATA + 0xff0), guest.peek(DATA + 0x100c)), (0x0707_0707, 0x0707_0707));
    assert_eq!(guest.peek(DATA + 8), 0xffff_fffe);
    let faults = guest.vcpu.statistics().faults;
    guest.start_kernel(KERNEL);
    guest.finish();
    assert_eq!(guest.vcpu.statistics().faults, faults, "learned, and mapped");
    // The same code in another address space uses that one's memory.
    let other = guest.vcpu.create_space().unwrap();
    guest.vcpu.switch_space(other);
    guest.provide(DATA, 4, true);
    guest.start_kernel(KERNEL);
    guest.finish();
    assert_eq!(guest.peek(DATA), 50);
}

#[test]
fn the_kernels_faults_in_user_memory_are_the_kernels() {
    let mut guest = Guest::kernel(|a| a.mov(dword_ptr(DATA), eax));
    let page = DATA / PAGE_SIZE;
    let whole = guest.tables.pages.remove(&page).unwrap();
    for _ in 0..3 {
        assert_eq!(guest.exception(), page_fault(DATA, 2));
        assert_eq!(guest.vcpu.cpu.eip(), KERNEL);
    }
    // A page below the kernel's part that users may not touch.
    guest.tables.pages.insert(page, Page { user: false, ..whole });
    guest.set_gpr(Gpr::Eax, 9);
    guest.finish();
    assert_eq!(guest.peek(DATA), 9);
    guest.provide(USER, 1, true);
    guest.provide(STACK - PAGE_SIZE, 1, true);
    guest.assemble(USER, |a| a.mov(eax, dword_ptr(DATA)));
    guest.start_user(USER);
    assert_eq!(guest.exception(), page_fault(DATA, 5), "and still may not");
}

#[test]
fn the_kernels_stack_may_be_in_user_memory_with_its_operand() {
    let mut guest = Guest::kernel(|a| {
        a.push(dword_ptr(DATA))?;
        a.pop(dword_ptr(DATA + 4))?;
        a.call(dword_ptr(DATA + 8))
    });
    guest.assemble(KERNEL + 0x1000, |a| a.nop());
    guest.poke(DATA, &7u32.to_le_bytes());
    guest.poke(DATA + 8, &(KERNEL + 0x1000).to_le_bytes());
    guest.set_gpr(Gpr::Esp, DATA + 0x1800);
    guest.finish();
    assert_eq!((guest.peek(DATA + 4), guest.gpr(Gpr::Esp)), (7, DATA + 0x17fc));
}

#[test]
fn physical_addresses_without_memory_read_as_ones() {
    let mut guest = Guest::user(|a| {
        a.mov(dword_ptr(DATA), eax)?;
        a.mov(eax, dword_ptr(DATA))?;
        a.add(eax, 2)
    });
    guest.tables.pages.get_mut(&(DATA / PAGE_SIZE)).unwrap().frame = 0xf_0000;
    guest.finish();
    assert_eq!(guest.gpr(Gpr::Eax), 1);
}

#[test]
fn rust_reads_and_writes_what_the_guest_would() {
    let mut guest = Guest::user(|a| a.nop());
    let bytes: Vec<u8> = (0..=255).cycle().take(6000).collect();
    let (vcpu, tables) = (&mut guest.vcpu, &mut guest.tables);
    vcpu.write_virt(tables, GuestVirt(DATA + 100), &bytes, true).unwrap();
    let mut back = vec![0; 6000];
    vcpu.read_virt(tables, GuestVirt(DATA + 100), &mut back, true).unwrap();
    assert!(back == bytes);
    let end = DATA + 4 * PAGE_SIZE;
    let fault = vcpu.write_virt(tables, GuestVirt(end - 2), &[1, 2, 3], true).unwrap_err();
    assert_eq!((fault.address, fault.error), (GuestVirt(end), 6));
    vcpu.read_virt(tables, GuestVirt(end - 2), &mut back[..2], true).unwrap();
    assert_eq!(back[..2], [0, 0], "all or nothing");
}

#[test]
fn a_process_short_of_mappings_goes_on() {
    // Forty thousand scattered pages need more mappings than a process has.
    const PAGES: u32 = 40_000;
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, PAGES)?;
        a.mov(edi, 0x1000_0000)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, 2 * PAGE_SIZE)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    for i in 0..PAGES {
        let page = Page { frame: 100 + i % 1000, writable: true, user: true };
        guest.tables.pages.insert(0x1_0000 + 2 * i, page);
    }
    guest.finish();
    assert!(guest.vcpu.statistics().windows_dropped > 0);
    let sum: u32 =
        (0..1000).map(|i| guest.memory.read_u32(GuestPhys((100 + i) * PAGE_SIZE)).unwrap()).sum();
    assert_eq!(sum, PAGES);
}

#[test]
fn code_may_be_anywhere() {
    // Jumps all over the address space, through tables that have nothing there yet.
    let mut guest = Guest::user(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(edx, 0x1000_0000)?;
        a.set_label(&mut again)?;
        a.call(edx)?;
        a.add(edx, 0x0080_3001)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    for i in 0..300u32 {
        let at = 0x1000_0000 + i * 0x0080_3001;
        let page = Page { frame: 100, writable: true, user: true };
        guest.tables.pages.insert(at / PAGE_SIZE, page);
        guest.poke(at, &[0x40, 0xc3]); // inc eax; ret
    }
    guest.finish();
    // They share one frame, so each program overwrites the end of the one before.
    assert_eq!(guest.gpr(Gpr::Eax), (1..=300).sum::<u32>());
}

#[test]
fn the_end_of_the_address_space_is_judged_before_the_page_there() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [(Program, Exception); 6] = [
        (|a| a.mov(dword_ptr(0xffff_ffffu32), eax), Exception::protection(0)),
        (|a| a.mov(ax, word_ptr(edi)), Exception::protection(0)),
        (|a| a.stosd(), Exception::protection(0)),
        (|a| a.push(eax), Exception::stack(0)),
        (|a| a.mov(byte_ptr(edi), al), page_fault(u32::MAX, 6)),
        (|a| a.mov(eax, dword_ptr(edi - 3)), page_fault(u32::MAX - 3, 4)),
    ];
    for (index, (program, expected)) in cases.into_iter().enumerate() {
        let mut guest = Guest::user(program);
        guest.set_gpr(Gpr::Edi, u32::MAX);
        guest.set_gpr(Gpr::Esp, 2);
        for _ in 0..2 {
            assert_eq!(guest.exception(), expected, "case {index}");
            assert_eq!(guest.vcpu.cpu.eip(), USER);
        }
    }
}
