//! What a device writes may be code that has run before.

use crate::driver::{Guest, MEMORY};
use lguest_devices::virtio::console::Console;
use lguest_switcher::{
    Access, Config, Environment, Exit, Gpr, GuestMemory, GuestPhys, GuestVirt, Mapping, PageFault,
    Segment, SegmentRegister, Vcpu,
};
use std::io::{Write, pipe};
use std::sync::Arc;

const CODE: u32 = 0x7_0000;
/// Where more memory is, in a file of its own.
const MORE_MEMORY: u32 = 0x18_0000;
const END: u8 = 0x30;

/// All addresses are what they are, and there are no descriptors to load.
struct Flat;

impl Environment for Flat {
    fn translate(
        &mut self,
        address: GuestVirt,
        _access: Access,
        _user: bool,
    ) -> Result<Mapping, PageFault> {
        let virt = address.page();
        Ok(Mapping { virt, phys: GuestPhys(virt.0), pages: 1, writable: true, user: true })
    }

    fn descriptor(&mut self, _selector: u16) -> Result<Option<u64>, PageFault> {
        Ok(None)
    }
}

#[test]
fn code_from_a_device_is_the_code_that_runs() {
    code_is_what_runs_at(CODE);
}

#[test]
fn so_it_is_in_memory_from_the_middle_of_a_file() {
    code_is_what_runs_at(MORE_MEMORY + 0x8000);
}

fn code_is_what_runs_at(code: u32) {
    let (input, mut keyboard) = pipe().unwrap();
    let console = Console { input: Some(input.into()), ..Console::default() };
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1_2000).unwrap();
    let memory = GuestMemory::new(MEMORY).unwrap();
    let memory = memory.with_file(GuestPhys(MORE_MEMORY), file.into(), 0x2000, 0x1_0000).unwrap();
    let mut guest = Guest::with_memory(memory, vec![console.into_model()]);
    // mov eax, 1; int END
    guest.put(code, &[0xb8, 1, 0, 0, 0, 0xcd, END]);
    let config = Config { kernel_start: GuestVirt(0), ..Config::default() };
    let mut vcpu = Vcpu::new(Arc::clone(&guest.memory), config).unwrap();
    vcpu.cpu.set_segment(SegmentRegister::Cs, Segment::flat_code(8));
    vcpu.cpu.set_segment(SegmentRegister::Ss, Segment::flat_data(16));
    let mut run = || {
        vcpu.cpu.set_eip(code);
        assert_eq!(vcpu.run(&mut Flat), Exit::SoftwareInterrupt { vector: END, length: 2 });
        vcpu.cpu.gpr(Gpr::Eax)
    };
    assert_eq!(run(), 1);
    let mut queues = guest.start(1, 0);
    for value in 2..10u32 {
        // From the code on, or from far in the page before it.
        let before = value % 2 * 3000;
        let bytes = [&vec![0; before as usize][..], &[0xb8], &value.to_le_bytes()].concat();
        keyboard.write_all(&bytes).unwrap();
        queues[0].add(&[(code - before, before + 5, true)]);
        guest.ring_if_wanted(1, &mut queues[0]);
        assert_eq!(guest.wait(1, &mut queues[0]).1, before + 5);
        assert_eq!(run(), value);
    }
}
