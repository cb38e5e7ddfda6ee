//! Hypercalls: what the guest asks of the Host.
//!
//! A guest calls by `int $0x1f`, with a number in eax and a few arguments. Calls that can
//! wait it puts into a ring in `LguestData` instead; the ring is served, in order, whenever the guest leaves to the
//! Host for whatever reason, so always before a direct call. Each call is one line in
//! [`Machine::carry_out`]; the longer ones have a function here, or live with the thing that they're about.

use crate::clock::{tsc_khz, wallclock};
use crate::devices::{DeviceIo, Devices};
use crate::dma::{Sections, check_key, set_used_len};
use crate::kill::Kill;
use crate::machine::{End, Machine, Sleep};
use crate::shared_data::{Facts, INTERRUPT_BYTES, SharedData};
use crate::trace::Event;
use lguest_abi::generation::{ArgumentRegister, CALL_WORDS};
use lguest_abi::hypercall::{
    CRASH_MESSAGE_KEPT, CRASH_MESSAGE_READ, FlushScope, Hypercall, POWER_OFF_MESSAGE, VECTOR,
    number,
};
use lguest_abi::lguest_data::HCALL_RING_SIZE;
use lguest_abi::segments::{GDT_ENTRIES, KERNEL_LEVEL, TLS_ENTRIES, TLS_FIRST};
use lguest_abi::traps::is_for_system_calls;
use lguest_processor::TableRegister;
use lguest_switcher::{Access, Environment, Gpr, GuestPhys, GuestVirt, SegmentRegister};
use std::sync::Arc;

/// Pages of stack that can be pinned.
const MOST_STACK_PAGES: u32 = 2;

impl Machine {
    /// The guest executed `int $0x1f`.
    pub(crate) fn direct_hypercall(&mut self, devices: &mut dyn Devices) -> Result<(), End> {
        let cpu = &self.vcpu.cpu;
        let mut words = [cpu.gpr(Gpr::Eax), 0, 0, 0, 0];
        for (word, register) in
            words[1..].iter_mut().zip(self.guest.generation.argument_registers())
        {
            *word = cpu.gpr(match register {
                ArgumentRegister::Ebx => Gpr::Ebx,
                ArgumentRegister::Ecx => Gpr::Ecx,
                ArgumentRegister::Edx => Gpr::Edx,
                ArgumentRegister::Esi => Gpr::Esi,
            });
        }
        let result = self.hypercall(words, false, devices)?;
        if let Some(result) = result {
            self.vcpu.cpu.set_gpr(Gpr::Eax, result);
        }
        Ok(())
    }

    /// Serves what is pending in the ring: from where it stopped last, to the first entry that isn't
    /// pending, each at most once.
    pub(crate) fn serve_ring(&mut self, devices: &mut dyn Devices) -> Result<(), End> {
        for _ in 0..HCALL_RING_SIZE {
            let memory = &self.guest.memory;
            let Some(words) =
                self.guest.shared.as_ref().and_then(|shared| shared.next_queued(memory))
            else {
                break;
            };
            self.hypercall(words, true, devices)?;
            if let Some(shared) = &mut self.guest.shared {
                shared.finish_queued(&self.guest.memory);
            }
        }
        Ok(())
    }

    /// Carries out one call. Gives what eax becomes, if anything.
    fn hypercall(
        &mut self,
        words: [u32; CALL_WORDS],
        queued: bool,
        devices: &mut dyn Devices,
    ) -> Result<Option<u32>, End> {
        let number = words[0];
        if self.guest.shared.is_none() && number != number::LGUEST_INIT {
            return Err(Kill::NotInitialized { number }.into());
        }
        let call = Hypercall::decode(self.guest.generation, words)
            .map_err(|_| Kill::UnknownHypercall { number })?;
        let eip = self.vcpu.cpu.eip();
        self.guest.trace(|| Event::Hypercall { call, queued, eip });
        self.carry_out(call, devices)
    }

    fn carry_out(
        &mut self,
        call: Hypercall,
        devices: &mut dyn Devices,
    ) -> Result<Option<u32>, End> {
        match call {
            Hypercall::FlushAsync => {}
            Hypercall::LguestInit { data } => self.initialize(GuestPhys(data.0))?,
            Hypercall::Crash { message } => return Err(self.crash(GuestPhys(message.0))?),
            Hypercall::LoadGdt { table, entries } => self.load_gdt(GuestPhys(table.0), entries)?,
            Hypercall::NewPgtable { directory } => {
                self.guest.switch_root(&mut self.vcpu, GuestPhys(directory.0))?;
            }
            Hypercall::FlushTlb { scope: FlushScope::User } => {
                self.guest.shadow.flush_user(&mut self.vcpu, &self.guest.memory);
            }
            Hypercall::FlushTlb { scope: FlushScope::All } => {
                self.guest.flush_all(&mut self.vcpu)?
            }
            Hypercall::LoadIdtEntry { vector, low, high } => {
                self.guest.gates.load(vector, low, high)?
            }
            Hypercall::SetStack { segment, esp, pages } => self.set_stack(segment, esp.0, pages)?,
            Hypercall::Ts { set } => self.set_task_switched(set),
            Hypercall::SetClockevent { nanoseconds } => self.guest.clock.set_event(nanoseconds),
            Hypercall::Halt => self.sleep = Sleep::Hypercall,
            Hypercall::GetWallclock => return Ok(Some(wallclock())),
            Hypercall::BindDma { key, array, count, irq } => {
                let (key, array) = (GuestPhys(key.0), GuestPhys(array.0));
                let bound = self.guest.dma.bind(&self.guest.memory, key, array, count, irq)?;
                return Ok(Some(bound));
            }
            Hypercall::SendDma { key, dma } => {
                self.send_dma(GuestPhys(key.0), GuestPhys(dma.0), devices)?
            }
            Hypercall::SetPte { directory, address, value } => {
                let root = self.guest.page_directory(GuestPhys(directory.0))?;
                let address = GuestVirt(address.0);
                let value = self.guest.shadow.rules().levels.entry(value);
                // The first generation's guests may count on it that all is shown at once.
                let lazily = !self.guest.generation.is_signed();
                let fault = lazily.then_some(GuestVirt(self.guest.registers.cr2));
                let change = (address, value);
                self.guest.shadow.set_pte(
                    &mut self.vcpu,
                    &self.guest.memory,
                    root,
                    change,
                    fault,
                )?;
            }
            Hypercall::SetPmd { directory, index } => {
                let root = self.guest.page_directory(GuestPhys(directory.0))?;
                self.guest.shadow.set_pmd(&mut self.vcpu, &self.guest.memory, root, index);
            }
            Hypercall::SetMiddle { table, index } => {
                let table = GuestPhys(table.0);
                self.guest.shadow.set_middle(&mut self.vcpu, &self.guest.memory, table, index);
            }
            Hypercall::LoadTls { descriptors, .. } => self.load_tls(GuestPhys(descriptors.0))?,
            Hypercall::LoadGdtEntry { entry, low, high } => {
                if !self.guest.segments.load_entry(entry, u64::from(high) << 32 | u64::from(low)) {
                    return Err(Kill::GdtTooLarge { entries: entry.saturating_add(1) }.into());
                }
                self.vcpu.descriptors_changed(entry as u16..entry as u16 + 1);
            }
            Hypercall::Shutdown { restart: true, .. } => return Err(End::Restart),
            Hypercall::Shutdown { message, restart: false } => {
                return Err(self.crash(GuestPhys(message.0))?);
            }
            Hypercall::Notify { address } => self.notify(GuestPhys(address.0))?,
            Hypercall::SendInterrupts => {}
        }
        Ok(None)
    }

    /// LGUEST_INIT: the guest says where `LguestData` is.
    fn initialize(&mut self, data: GuestPhys) -> Result<(), Kill> {
        if self.guest.shared.is_some() {
            return Err(Kill::InitializedTwice { data });
        }
        let facts = Facts {
            guest_id: self.guest.id,
            tsc_khz: tsc_khz(),
            page_directory: self.guest.root(),
            reserve_mem: self.guest.shadow.rules().levels.slot_bytes(),
        };
        let (generation, kernel) = (self.guest.generation, self.guest.page_offset);
        let shared = SharedData::start(&self.guest.memory, data, generation, kernel, facts)?;
        if let Some(vector) = shared.system_call_vector(&self.guest.memory) {
            let vector = u8::try_from(vector).ok().filter(|&vector| is_for_system_calls(vector));
            let vector = vector.ok_or(Kill::BadSystemCallVector)?;
            self.guest.gates.set_system_call_vector(vector);
        }
        let watched = GuestVirt(shared.interrupt_words().0.wrapping_add(self.guest.page_offset));
        self.vcpu.set_watch(Some((watched, INTERRUPT_BYTES)));
        self.guest.shared = Some(shared);
        self.guest.flush_all(&mut self.vcpu)
    }

    /// NOTIFY: rings a device's bell.
    fn notify(&mut self, address: GuestPhys) -> Result<(), Kill> {
        let memory = Arc::clone(&self.guest.memory);
        if self.guest.bus.notify(&memory, address) {
            return Ok(());
        }
        Err(Kill::BadAddress { what: "what NOTIFY names", start: address, bytes: 1 })
    }

    /// Kernels of some generations make calls by the instruction that other hypervisors' guests use, which doesn't exist
    /// here; the Host of the time put `int $0x1f` in its place. Says whether eip is at one, which was replaced.
    pub(crate) fn patch_vmcall(&mut self) -> bool {
        const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
        const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
        /// `int $0x1f`, and `nop`.
        const INT_1F: [u8; 3] = [0xcd, VECTOR, 0x90];
        if !self.guest.generation.calls_by_vmcall() || !self.in_kernel() {
            return false;
        }
        let cpu = &self.vcpu.cpu;
        let at = GuestVirt(cpu.segment(SegmentRegister::Cs).base.wrapping_add(cpu.eip()));
        let mut bytes = [0; 3];
        self.vcpu.read_virt(&mut self.guest, at, &mut bytes, false).is_ok()
            && (bytes == VMCALL || bytes == VMMCALL)
            && self.write_code(at, &INT_1F)
    }

    /// Writes to the guest's code, whether or not the guest itself could.
    fn write_code(&mut self, at: GuestVirt, bytes: &[u8]) -> bool {
        (0..).zip(bytes).all(|(index, byte)| {
            let at = at.wrapping_add(index);
            let found = self.guest.translate(at, Access::Read, false);
            found.is_ok_and(|page| {
                let phys = page.phys.wrapping_add(at.0.wrapping_sub(page.virt.0));
                self.guest.memory.write_u8(phys, *byte).is_ok()
            })
        })
    }

    /// CRASH: how the guest ends, in its own words.
    fn crash(&self, message: GuestPhys) -> Result<End, Kill> {
        let mut bytes = [0; CRASH_MESSAGE_READ];
        self.guest.read("crash message", message, &mut bytes)?;
        let kept = &bytes[..CRASH_MESSAGE_KEPT];
        let text = kept.split(|&byte| byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        Ok(if text == POWER_OFF_MESSAGE { End::PowerOff } else { End::Crashed(text.into_owned()) })
    }

    /// LOAD_GDT: copies the table.
    fn load_gdt(&mut self, table: GuestPhys, entries: u32) -> Result<(), Kill> {
        if entries > GDT_ENTRIES {
            return Err(Kill::GdtTooLarge { entries });
        }
        let mut copy = [0; GDT_ENTRIES as usize];
        let copy = &mut copy[..entries as usize];
        self.read_descriptors("GDT", table, copy)?;
        let base = GuestVirt(table.0.wrapping_add(self.guest.page_offset));
        self.guest.segments.load_gdt(copy);
        self.vcpu.descriptors_changed(0..u16::MAX);
        let limit = (entries * 8).saturating_sub(1);
        self.guest.registers.gdt = TableRegister { base, limit };
        Ok(())
    }

    /// LOAD_TLS: GDT entries 6 to 8.
    fn load_tls(&mut self, descriptors: GuestPhys) -> Result<(), Kill> {
        let mut copy = [0; TLS_ENTRIES as usize];
        self.read_descriptors("TLS descriptors", descriptors, &mut copy)?;
        self.guest.segments.load_tls(&copy);
        self.vcpu.descriptors_changed(TLS_FIRST as u16..(TLS_FIRST + TLS_ENTRIES) as u16);
        Ok(())
    }

    fn read_descriptors(
        &self,
        what: &'static str,
        at: GuestPhys,
        into: &mut [u64],
    ) -> Result<(), Kill> {
        self.guest.check_range(what, at, into.len() as u32 * 8)?;
        for (index, descriptor) in (0..).zip(into) {
            let mut bytes = [0; 8];
            self.guest.read(what, at.wrapping_add(index * 8), &mut bytes)?;
            *descriptor = u64::from_le_bytes(bytes);
        }
        Ok(())
    }

    /// SET_STACK: the stack for traps from user mode.
    fn set_stack(&mut self, segment: u32, esp: u32, pages: u32) -> Result<(), Kill> {
        if segment & 3 != u32::from(KERNEL_LEVEL) {
            return Err(Kill::BadStackSegment { selector: segment });
        }
        if pages > MOST_STACK_PAGES {
            return Err(Kill::TooManyStackPages { pages });
        }
        let stack = &mut self.guest.stack;
        (stack.segment, stack.esp, stack.pages) = (segment as u16, esp, pages);
        self.guest.pin_stack(&mut self.vcpu)
    }

    /// SEND_DMA: to the launcher, since every key is private memory so far.
    fn send_dma(
        &mut self,
        key: GuestPhys,
        dma: GuestPhys,
        devices: &mut dyn Devices,
    ) -> Result<(), Kill> {
        check_key(&self.guest.memory, key)?;
        let sections = Sections::read(&self.guest.memory, dma)?;
        let taken = devices.send(key, &sections, &mut DeviceIo::new(&mut self.guest));
        self.guest.verdict()?;
        let offered = sections.bytes();
        self.guest.trace(|| Event::Sent { key, offered, taken });
        match taken {
            Some(taken) => set_used_len(&self.guest.memory, dma, taken),
            None => Ok(()),
        }
    }
}
