//! A tiny guest to run engine tests on: some memory, page tables that the test writes itself, and a program.
//!
//! Kernel addresses start at [`KERNEL`], as a kernel at the usual place would have it. What a page table
//! would say is a map from page numbers, one for each address space.

#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod breakpoints;
pub(crate) mod steps;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use lguest_switcher::{
    Access, Config, Environment, Exception, Exit, Gpr, GuestMemory, GuestPhys, GuestVirt, Kicker,
    Mapping, PAGE_SIZE, PageFault, Segment, SegmentRegister, Vcpu,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the kernel's addresses start, and kernel programs.
pub(crate) const KERNEL: u32 = 0xc000_0000;
/// Where user programs start.
pub(crate) const USER: u32 = 0x0040_0000;
/// Where both find memory for their data: a page of their own, then more.
pub(crate) const DATA: u32 = 0x0050_0000;
/// The same for kernel programs.
pub(crate) const KERNEL_DATA: u32 = 0xc050_0000;
/// Just behind the user's stack, one page.
pub(crate) const STACK: u32 = 0x0060_0000;
/// Just behind the kernel's stack, one page.
pub(crate) const KERNEL_STACK: u32 = 0xc060_0000;
/// The interrupt that ends a program.
pub(crate) const END: u8 = 0x30;
/// Bytes of memory.
pub(crate) const MEMORY: u32 = 16 << 20;

/// One page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    pub(crate) frame: u32,
    pub(crate) writable: bool,
    pub(crate) user: bool,
}

/// Page tables and descriptors.
#[derive(Default)]
pub(crate) struct Tables {
    /// Entries by page number.
    pub(crate) pages: BTreeMap<u32, Page>,
    /// Descriptors by index.
    pub(crate) descriptors: Vec<u64>,
    /// They don't change without notice.
    pub(crate) settled: bool,
    /// Times the engine has asked for a descriptor.
    pub(crate) look_ups: u32,
    /// Times the engine has asked for a translation.
    pub(crate) walks: u32,
    /// The longest run to answer with.
    pub(crate) run: u32,
    /// There is a device wherever there is no memory.
    pub(crate) has_device: bool,
    /// What was done there.
    pub(crate) device_accesses: Vec<DeviceAccess>,
    /// Called back from each read there.
    pub(crate) kicker: Option<Kicker>,
    /// What happens meanwhile, when the engine asks for a translation.
    pub(crate) meanwhile: Option<Box<dyn FnMut(GuestVirt) + Send>>,
}

/// An access where there is no memory. What a device gives is the low byte of each address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DeviceAccess {
    Read(u32, usize),
    Write(u32, Vec<u8>),
}

impl Environment for Tables {
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        self.walks += 1;
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile(address);
        }
        let (number, write) = (address.page_number(), access == Access::Write);
        let page = self.pages.get(&number).copied();
        let allowed = |page: &Page| (page.writable || !write) && (page.user || !user);
        let error = u32::from(page.is_some()) | u32::from(write) << 1 | u32::from(user) << 2;
        let page = page.filter(allowed).ok_or(PageFault { address, error })?;
        let follows = |i: &u32| {
            let expected = Page { frame: page.frame + i, ..page };
            self.pages.get(&(number + i)) == Some(&expected)
        };
        let pages = (0..self.run.max(1)).take_while(follows).count() as u32;
        let (virt, phys) = (address.page(), GuestPhys(page.frame * PAGE_SIZE));
        Ok(Mapping { virt, phys, pages, writable: page.writable, user: page.user })
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault> {
        self.look_ups += 1;
        Ok(self.descriptors.get(usize::from(selector / 8)).copied())
    }

    fn is_settled(&self, _: u16) -> bool {
        self.settled
    }

    fn read_device(&mut self, at: GuestPhys, into: &mut [u8]) {
        self.device_accesses.push(DeviceAccess::Read(at.0, into.len()));
        if let Some(kicker) = &self.kicker {
            kicker.kick();
        }
        for (byte, at) in into.iter_mut().zip(at.0..) {
            *byte = if self.has_device { at as u8 } else { 0xff };
        }
    }

    fn write_device(&mut self, at: GuestPhys, from: &[u8]) {
        self.device_accesses.push(DeviceAccess::Write(at.0, from.to_vec()));
    }
}

pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) vcpu: Vcpu,
    pub(crate) tables: Tables,
    next_frame: u32,
}

impl Guest {
    /// Memory and a processor at level 0, with nothing mapped.
    pub(crate) fn bare() -> Self {
        Self::with_config(Config::default())
    }

    pub(crate) fn with_config(config: Config) -> Self {
        let memory = Arc::new(GuestMemory::new(MEMORY).expect("memory"));
        let vcpu = Vcpu::new(memory.clone(), config).expect("a machine that can run this");
        let flat = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        let user = [0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff];
        let descriptors = [&flat[..], &user[..]].concat();
        let tables = Tables { descriptors, ..Tables::default() };
        Self { memory, vcpu, tables, next_frame: 16 }
    }

    /// A user program at [`USER`], at level 3, with memory at [`DATA`] (four pages) and a stack. It ends with [`END`].
    pub(crate) fn user(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut guest = Self::bare();
        guest.provide(USER, 4, true);
        guest.provide(DATA, 4, true);
        guest.provide(STACK - PAGE_SIZE, 1, true);
        guest.assemble(USER, program);
        guest.start_user(USER);
        guest
    }

    /// A kernel program at [`KERNEL`], at level 0, with memory at [`KERNEL_DATA`] (four pages), the user's
    /// memory at [`DATA`], and a stack.
    pub(crate) fn kernel(
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let mut guest = Self::bare();
        guest.provide(KERNEL, 4, false);
        guest.provide(KERNEL_DATA, 4, false);
        guest.provide(KERNEL_STACK - PAGE_SIZE, 1, false);
        guest.provide(DATA, 4, true);
        guest.assemble(KERNEL, program);
        guest.start_kernel(KERNEL);
        guest
    }

    /// Level 3 at `eip`, with flat segments and the user's stack.
    pub(crate) fn start_user(&mut self, eip: u32) {
        self.start(eip, 0x1b, 0x23, STACK);
    }

    /// Level 0 at `eip`, with flat segments and the kernel's stack.
    pub(crate) fn start_kernel(&mut self, eip: u32) {
        self.start(eip, 0x08, 0x10, KERNEL_STACK);
    }

    fn start(&mut self, eip: u32, code: u16, data: u16, esp: u32) {
        let cpu = &mut self.vcpu.cpu;
        cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(code));
        for register in [SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
            cpu.set_segment(register, Segment::flat_data(data));
        }
        cpu.set_eip(eip);
        cpu.set_gpr(Gpr::Esp, esp);
    }

    /// Backs `pages` pages from `virt` on with frames of their own, in sequence.
    pub(crate) fn provide(&mut self, virt: u32, pages: u32, user: bool) {
        for i in 0..pages {
            let page = Page { frame: self.next_frame, writable: true, user };
            self.tables.pages.insert(virt / PAGE_SIZE + i, page);
            self.next_frame += 1;
        }
    }

    /// Puts a program at `virt`, which is mapped, with the end behind it.
    pub(crate) fn assemble(
        &mut self,
        virt: u32,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) {
        let mut assembler = CodeAssembler::new(32).expect("32 bits are known");
        program(&mut assembler).expect("valid instructions");
        assembler.int(u32::from(END)).expect("a valid instruction");
        let code = assembler.assemble(virt.into()).expect("a valid program");
        self.poke(virt, &code);
    }

    /// Where `virt` lies in physical memory.
    pub(crate) fn phys(&self, virt: u32) -> GuestPhys {
        let page = self.tables.pages.get(&(virt / PAGE_SIZE)).expect("a mapped page");
        GuestPhys(page.frame * PAGE_SIZE + virt % PAGE_SIZE)
    }

    /// Writes memory as a device would.
    pub(crate) fn poke(&mut self, virt: u32, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = self.phys(virt.wrapping_add(i as u32));
            self.memory.write_u8(at, byte).expect("within memory");
        }
    }

    /// Reads memory as a device would.
    pub(crate) fn peek(&self, virt: u32) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.peek_byte(virt.wrapping_add(i))))
    }

    /// Reads a byte as a device would.
    pub(crate) fn peek_byte(&self, virt: u32) -> u8 {
        self.memory.read_u8(self.phys(virt)).expect("within memory")
    }

    pub(crate) fn run(&mut self) -> Exit {
        self.vcpu.run(&mut self.tables)
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        let exit = self.run();
        let eip = self.vcpu.cpu.eip();
        assert_eq!(exit, Exit::SoftwareInterrupt { vector: END, length: 2 }, "at {eip:#x}");
    }

    /// Runs the program up to an exception.
    #[track_caller]
    pub(crate) fn exception(&mut self) -> Exception {
        match self.run() {
            Exit::Exception(exception) => exception,
            other => panic!("{other:?} at {:#x}", self.vcpu.cpu.eip()),
        }
    }

    pub(crate) fn gpr(&self, register: Gpr) -> u32 {
        self.vcpu.cpu.gpr(register)
    }

    pub(crate) fn set_gpr(&mut self, register: Gpr, value: u32) {
        self.vcpu.cpu.set_gpr(register, value);
    }
}

/// A page fault with that error code.
pub(crate) fn page_fault(address: u32, error: u32) -> Exception {
    Exception { vector: 14, error: Some(error), address: GuestVirt(address) }
}

/// Numbers that look random, the same each time.
pub(crate) struct Random(pub(crate) u32);

impl Random {
    /// One below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(self.0) * u64::from(end)) >> 32) as u32
    }
}
