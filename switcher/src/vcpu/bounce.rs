//! Instructions whose memory operand goes through a buffer.
//!
//! Some instructions can't touch guest memory directly: their segment has a limit, their operand
//! runs over the end of the address space, they store into code, or they show too much of the host
//! (`fxsave` and its kin). Their translation leaves twice: once so that Rust copies the operand
//! into [`Frame::bounce`](crate::frame::Frame::bounce), and, when the instruction has worked on that, once so that Rust copies it
//! back. All rights are checked on the way in, so the second half can't fail.

use super::Vcpu;
use super::guest_bus::GuestBus;
use super::run::Resume;
use crate::address::{GuestVirt, PAGE_SIZE};
use crate::emulate::{Bus, Pieces, bit_offset};
use crate::environment::Environment;
use crate::exit::{Exception, Exit};
use crate::frame::BOUNCE_BYTES;
use iced_x86::{Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess};

/// Bytes of an `fxsave` area that belong to 32-bit code: the rest would show xmm8 to xmm15 (SDM
/// volume 1, section "FXSAVE Area").
const FXSAVE_BYTES: usize = 288;
/// Where an `fxsave` area tells the address of the last x87 instruction and of its operand.
const FXSAVE_POINTERS: std::ops::Range<usize> = 8..24;
/// The same in the environment that `fnstenv` and `fnsave` store, in its 32-bit and 16-bit forms.
const ENVIRONMENT_POINTERS: std::ops::Range<usize> = 12..26;
const SHORT_ENVIRONMENT_POINTERS: std::ops::Range<usize> = 6..14;
/// Bytes of the 16-bit forms of environment and state.
const SHORT_ENVIRONMENTS: [usize; 2] = [14, 94];

/// An operand in the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounce {
    instruction: Instruction,
    operand: Pieces,
    /// Bytes to be copied back.
    store: usize,
    /// Data breakpoints that were hit by reading it.
    hits: u32,
}

impl Vcpu {
    /// Copies the operand of the instruction at eip into the buffer.
    pub(super) fn bounce_in(&mut self, env: &mut dyn Environment) -> Result<Resume, Exit> {
        let body = self.cpu.frame.detail;
        let instruction = self.translated_instruction(env)?;
        self.prepare_bounce(env, &instruction).map_err(Exit::Exception)?;
        Ok(Resume::Halfway(body))
    }

    fn prepare_bounce(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<(), Exception> {
        let size = instruction.memory_size().size().min(BOUNCE_BYTES);
        let Accesses { reads, writes } = Accesses::of(instruction);
        let operand = Pieces::of(&self.cpu, instruction);
        let aligned = operand.start().0.is_multiple_of(16) || !must_be_aligned(instruction, size);
        let user = self.assumptions.user;
        let mut bus = GuestBus::new(env, &self.spaces, &self.memory, user);
        for range in operand.ranges(size) {
            let (at, len) = (range.start as u32, range.len() as u32);
            let address = operand.judge(&self.cpu, at, len, writes)?;
            if !aligned {
                return Err(Exception::protection(0));
            }
            let buffer = &mut self.cpu.frame.bounce[range];
            if writes {
                bus.check_write(address, len)?;
                // What is only written is read too: a part of it may stay as it was.
                if reads {
                    bus.copy_out(address, buffer)?;
                } else {
                    bus.copy_out_memory(address, buffer)?;
                }
            } else {
                bus.read(address, buffer)?;
            }
        }
        let hits = bus.hits;
        if is_bit_string(instruction.mnemonic()) {
            self.cpu.frame.bounce_bit = bit_offset(&self.cpu, instruction);
        }
        let whole = if instruction.mnemonic() == Mnemonic::Fxsave { FXSAVE_BYTES } else { size };
        let store = if writes { whole } else { 0 };
        self.bounce = Some(Bounce { instruction: *instruction, operand, store, hits });
        Ok(())
    }

    /// Copies the operand back: the instruction is complete.
    pub(super) fn bounce_out(&mut self, env: &mut dyn Environment) -> Result<Resume, Exit> {
        let Some(bounce) = self.bounce.take() else { return Ok(Resume::Eip) };
        self.statistics.bounced += 1;
        let (eip, mut hits) = (self.cpu.eip(), bounce.hits);
        if bounce.store > 0 {
            let bytes = &mut self.cpu.frame.bounce[..bounce.store];
            hide_the_host(&bounce.instruction, bytes);
            let user = self.assumptions.user;
            let mut bus = GuestBus::new(env, &self.spaces, &self.memory, user);
            for range in bounce.operand.ranges(bytes.len()) {
                let address = bounce.operand.at(range.start as u32);
                bus.write(address, &bytes[range]).map_err(Exit::Exception)?;
            }
            hits |= bus.hits;
            self.reconsider(env, bounce.operand.start())?;
        }
        self.cpu.set_eip(eip.wrapping_add(bounce.instruction.len() as u32));
        self.after_instruction(hits)
    }

    /// A store by the instruction at eip has gone through the buffer: perhaps for no reason any
    /// more.
    fn reconsider(&mut self, env: &mut dyn Environment, address: GuestVirt) -> Result<(), Exit> {
        let slot = self.spaces.shower(self.assumptions.user, address.0);
        let record = self.spaces.windows.get(slot, address.page_number());
        let into_code = record.is_known() && self.spaces.windows.is_code(record.frame());
        let linear = self.linear_eip();
        let frame = self.fetch(env, linear)?;
        if self.routes.stored(frame, self.cpu.eip(), into_code) {
            self.drop_page(linear / PAGE_SIZE, frame);
        }
        Ok(())
    }
}

/// `bt` and its kin, whose bit may lie outside the operand.
fn is_bit_string(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
}

/// What an instruction may do with its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Accesses {
    reads: bool,
    writes: bool,
}

impl Accesses {
    fn of(instruction: &Instruction) -> Self {
        use OpAccess as A;
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
        let any = |kinds: &[A]| info.used_memory().iter().any(|m| kinds.contains(&m.access()));
        Self {
            reads: any(&[A::Read, A::CondRead, A::ReadWrite, A::ReadCondWrite]),
            writes: any(&[A::Write, A::CondWrite, A::ReadWrite, A::ReadCondWrite]),
        }
    }
}

/// Whether an operand that isn't aligned raises #GP: those of `fxsave` and `fxrstor`, and the 16-byte ones of
/// SSE instructions, but for those that are made for it (SDM volume 1, section "Memory
/// Alignment Requirements").
fn must_be_aligned(instruction: &Instruction, size: usize) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Fxsave | M::Fxrstor => true,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Maskmovdqu => false,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm => false,
        _ => size == 16,
    }
}

/// Takes out of a stored operand what the host's own registers and addresses have left in it.
fn hide_the_host(instruction: &Instruction, operand: &mut [u8]) {
    let pointers = match instruction.mnemonic() {
        Mnemonic::Fxsave => FXSAVE_POINTERS,
        Mnemonic::Fnstenv | Mnemonic::Fnsave if SHORT_ENVIRONMENTS.contains(&operand.len()) => {
            SHORT_ENVIRONMENT_POINTERS
        }
        Mnemonic::Fnstenv | Mnemonic::Fnsave => ENVIRONMENT_POINTERS,
        _ => return,
    };
    if let Some(pointers) = operand.get_mut(pointers) {
        pointers.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::decoder;

    fn decode(bytes: &[u8]) -> Instruction {
        decoder(bytes, 0).decode()
    }

    #[test]
    fn stores_are_told_from_loads() {
        let mov_store = decode(&[0x89, 0x03]);
        let mov_load = decode(&[0x8b, 0x03]);
        let add_store = decode(&[0x01, 0x03]);
        let compare = decode(&[0x39, 0x03]);
        assert_eq!(
            [mov_store, mov_load, add_store, compare].map(|i| Accesses::of(&i)),
            [(false, true), (true, false), (true, true), (true, false)]
                .map(|(reads, writes)| Accesses { reads, writes })
        );
    }

    #[test]
    fn what_sse_wants_aligned_must_be() {
        let aligned = |bytes: &[u8]| {
            let instruction = decode(bytes);
            must_be_aligned(&instruction, instruction.memory_size().size())
        };
        assert!(aligned(&[0x0f, 0x28, 0x03])); // movaps
        assert!(aligned(&[0x66, 0x0f, 0xfe, 0x03])); // paddd xmm
        assert!(aligned(&[0x0f, 0xae, 0x03])); // fxsave
        assert!(!aligned(&[0x0f, 0x10, 0x03])); // movups
        assert!(!aligned(&[0x0f, 0xfe, 0x03])); // paddd mm
        assert!(!aligned(&[0xf3, 0x0f, 0x58, 0x03])); // addss
        assert!(!aligned(&[0xdd, 0x03])); // fld qword
    }

    #[test]
    fn no_host_address_is_stored() {
        let mut area = [0xee; FXSAVE_BYTES];
        hide_the_host(&decode(&[0x0f, 0xae, 0x03]), &mut area);
        assert!(area[8..24].iter().all(|&byte| byte == 0));
        assert_eq!((area[7], area[24]), (0xee, 0xee));
        let mut environment = [0xee; 28];
        hide_the_host(&decode(&[0xd9, 0x33]), &mut environment);
        assert!(environment[12..26].iter().all(|&byte| byte == 0) && environment[11] == 0xee);
        let mut short = [0xee; 14];
        hide_the_host(&decode(&[0x66, 0xd9, 0x33]), &mut short);
        assert!(short[6..14].iter().all(|&byte| byte == 0) && short[5] == 0xee);
    }
}
