//! The smallest machine that can run a program: a processor, one mebibyte of memory that repeats
//! through all 4 GiB of addresses, and a descriptor table.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use lguest_switcher::{
    Access, Config, Environment, Exit, Gpr, GuestMemory, GuestPhys, GuestVirt, Mapping, PageFault,
    Segment, SegmentRegister, Vcpu,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes of memory.
const MEMORY: u32 = 1 << 20;
/// Where programs start.
pub(crate) const START: u32 = 0x1_0000;
/// Where stacks start.
pub(crate) const STACK: u32 = 0x8_0000;
/// The interrupt that ends a program.
pub(crate) const END: u8 = 0x30;

/// Flat segments, which every machine's descriptor table has.
pub(crate) const CODE_0: u16 = 0x08;
pub(crate) const DATA_0: u16 = 0x10;
pub(crate) const CODE_3: u16 = 0x18;
pub(crate) const DATA_3: u16 = 0x20;

const FLAT: [u64; 5] =
    [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff];

/// What the processor asks: pages and descriptors.
pub(crate) struct World {
    /// Numbers of the pages that aren't there.
    pub(crate) absent: BTreeSet<u32>,
    /// The descriptor table, from the null descriptor on.
    pub(crate) descriptors: Vec<u64>,
}

impl Environment for World {
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        if self.absent.contains(&address.page_number()) {
            let error = u32::from(access == Access::Write) << 1 | u32::from(user) << 2;
            return Err(PageFault { address, error });
        }
        let virt = address.page();
        let phys = GuestPhys(virt.0 % MEMORY);
        Ok(Mapping { virt, phys, pages: 1, writable: true, user: true })
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault> {
        Ok(self.descriptors.get(usize::from(selector / 8)).copied())
    }
}

pub(crate) struct Machine {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) vcpu: Vcpu,
    pub(crate) world: World,
}

impl Machine {
    /// A machine about to run a program at level 0 or 3 with flat segments.
    pub(crate) fn new(
        level: u16,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let memory = Arc::new(GuestMemory::new(MEMORY).expect("memory"));
        let config = Config { kernel_start: GuestVirt(0), ..Config::default() };
        let vcpu = Vcpu::new(memory.clone(), config).expect("a machine that can run this");
        let world = World { absent: BTreeSet::new(), descriptors: FLAT.to_vec() };
        let mut machine = Self { memory, vcpu, world };
        let mut assembler = CodeAssembler::new(32).expect("32 bits are known");
        program(&mut assembler).expect("valid instructions");
        assembler.int(u32::from(END)).expect("a valid instruction");
        machine.store(START, &assembler.assemble(START.into()).expect("a valid program"));
        let (code, data) = if level == 0 { (CODE_0, DATA_0) } else { (CODE_3 | 3, DATA_3 | 3) };
        let cpu = &mut machine.vcpu.cpu;
        cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(code));
        for register in [SegmentRegister::Ss, SegmentRegister::Ds, SegmentRegister::Es] {
            cpu.set_segment(register, Segment::flat_data(data));
        }
        cpu.set_eip(START);
        cpu.set_gpr(Gpr::Esp, STACK);
        machine
    }

    pub(crate) fn run(&mut self) -> Exit {
        self.vcpu.run(&mut self.world)
    }

    /// Runs the program to its end.
    pub(crate) fn finish(&mut self) {
        let exit = self.run();
        let eip = self.vcpu.cpu.eip();
        assert_eq!(exit, Exit::SoftwareInterrupt { vector: END, length: 2 }, "at {eip:#x}");
    }

    pub(crate) fn gpr(&self, register: Gpr) -> u32 {
        self.vcpu.cpu.gpr(register)
    }

    pub(crate) fn set_gpr(&mut self, register: Gpr, value: u32) {
        self.vcpu.cpu.set_gpr(register, value);
    }

    pub(crate) fn store(&mut self, at: u32, bytes: &[u8]) {
        self.memory.write(GuestPhys(at), bytes).expect("within memory");
    }

    pub(crate) fn dword(&self, at: u32) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(GuestPhys(at), &mut bytes).expect("within memory");
        u32::from_le_bytes(bytes)
    }
}
