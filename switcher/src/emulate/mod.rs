//! **The slow path**: instructions that are carried out in Rust, one by one.
//!
//! Translated code runs nearly everything by itself. What is left comes here: instructions that
//! look at segments and privilege (loads of segment registers, far transfers, `iret`), forms that
//! 64-bit mode dropped (`pusha`, `bound`, `aaa` and their kin), and plain ones that met something
//! awkward on the way: a 16-bit stack, a segment limit, the end of the address space. So `push`,
//! `call`, `ret` and the string instructions are here a second time, complete.
//!
//! The rule of this folder: **an instruction that fails has changed nothing.** Everything is read
//! and checked first, writes last; only then do registers change. String instructions keep the
//! rule for each step, so a fault finds them between two steps, as on a processor.
//!
//! Everything follows Intel's manual (SDM volume 2, the "Operation" of each instruction; volume 3,
//! chapters "Protection" and "Interrupt and Exception Handling"). Where it leaves a flag
//! undefined, the file says what we do.
//!
//! Not here: what the embedder decides ([`Outcome::Privileged`]), and tasks and virtual-8086 mode,
//! which raise #GP.

#![forbid(unsafe_code)]

mod addresses;
mod branches;
mod checks;
mod decimal;
mod far_transfers;
mod flags;
mod operands;
mod pieces;
mod registers;
mod returns;
mod segments;
mod stack;
mod strings;
#[cfg(test)]
mod testing;

pub(crate) use addresses::{bit_offset, linear_address};
pub(crate) use pieces::Pieces;
pub(crate) use returns::iret;
pub(crate) use segments::load_segment;

use crate::address::GuestVirt;
use crate::cpu::Cpu;
use crate::exit::Exception;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Memory as the guest's current mode sees it: by linear address, through its page tables, with
/// the rights of its current privilege level. Addresses wrap at 4 GiB.
pub(crate) trait Bus {
    /// Fills `into` from the bytes at `at`.
    ///
    /// # Errors
    /// The page fault of the first byte that can't be read.
    fn read(&mut self, at: GuestVirt, into: &mut [u8]) -> Result<(), Exception>;

    /// Stores `from` at `at`: all of it, or nothing.
    ///
    /// # Errors
    /// The page fault of the first byte that can't be written.
    fn write(&mut self, at: GuestVirt, from: &[u8]) -> Result<(), Exception>;

    /// Asks whether [`Bus::write`] of `len` bytes at `at` would succeed.
    ///
    /// # Errors
    /// The page fault that the write would raise.
    fn check_write(&mut self, at: GuestVirt, len: u32) -> Result<(), Exception>;

    /// How many of `len` bytes at `at`, in one page, may be accessed together: those before the first with a
    /// breakpoint, and none of a device.
    fn together(&mut self, at: GuestVirt, len: u32) -> u32;

    /// Whether a byte with a breakpoint has been touched: the instruction stops behind its current
    /// step.
    fn is_hit(&self) -> bool;

    /// The raw descriptor of a selector that isn't null; `None` beyond its table.
    ///
    /// # Errors
    /// The page fault of reading the table.
    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, Exception>;

    /// Whether the embedder will tell when what the selector names changes.
    fn is_settled(&self, selector: u16) -> bool;

    /// Sets the accessed bit of the descriptor in its table.
    ///
    /// # Errors
    /// The page fault of writing to the table.
    fn mark_accessed(&mut self, selector: u16) -> Result<(), Exception>;
}

/// How [`emulate`] ended when no exception was raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The instruction is complete and eip is at the next one.
    Done,
    /// The embedder's business; nothing has changed.
    Privileged,
    /// `into` with OF set, or `int3`: the embedder looks for this vector's gate. eip is at the next
    /// instruction.
    Interrupt(u8),
    /// Not an instruction this folder knows; nothing has changed.
    Unsupported,
    /// A repeated string instruction made progress and isn't finished. eip is still at it: emulate
    /// it again, after a look at whether somebody wants the processor back.
    Again,
}

/// Carries out `instruction`, which was decoded at the current eip.
///
/// # Errors
/// The exception that the guest gets. A fault has changed nothing (a string instruction stands
/// after its last whole step); for the trap of `int1` eip has moved on.
pub(crate) fn emulate(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<Outcome, Exception> {
    if instruction.is_string_instruction() {
        return strings::emulate(cpu, bus, instruction);
    }
    if is_privileged(instruction.mnemonic()) || moves_control_register(instruction) {
        return Ok(Outcome::Privileged);
    }
    if let Some(vector) = checks::interrupt(cpu, instruction) {
        cpu.set_eip(next_eip(cpu, instruction));
        return Ok(Outcome::Interrupt(vector));
    }
    if transfer(cpu, bus, instruction)? {
        return Ok(Outcome::Done);
    }
    if straight(cpu, bus, instruction)? {
        cpu.set_eip(next_eip(cpu, instruction));
        return Ok(Outcome::Done);
    }
    Ok(Outcome::Unsupported)
}

/// The offset of the instruction behind this one.
fn next_eip(cpu: &Cpu, instruction: &Instruction) -> u32 {
    cpu.eip().wrapping_add(instruction.len() as u32)
}

/// Instructions that set eip by themselves. `Ok(false)` for any other.
fn transfer(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<bool, Exception> {
    if instruction.is_jcc_short_or_near() || instruction.is_loop() || instruction.is_loopcc() {
        return branches::conditional(cpu, instruction).map(|()| true);
    }
    match instruction.mnemonic() {
        Mnemonic::Jcxz | Mnemonic::Jecxz => branches::conditional(cpu, instruction)?,
        Mnemonic::Jmp if far_transfers::is_far(instruction) => {
            far_transfers::jump(cpu, bus, instruction)?;
        }
        Mnemonic::Call if far_transfers::is_far(instruction) => {
            far_transfers::call(cpu, bus, instruction)?;
        }
        Mnemonic::Jmp => branches::jump(cpu, bus, instruction)?,
        Mnemonic::Call => branches::call(cpu, bus, instruction)?,
        Mnemonic::Ret => branches::ret(cpu, bus, instruction)?,
        Mnemonic::Retf => returns::far_return(cpu, bus, instruction)?,
        Mnemonic::Int1 => return checks::trap(cpu, instruction, 1),
        Mnemonic::INVALID | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => {
            return Err(Exception::INVALID_OPCODE);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Instructions after which the next one follows. `Ok(false)` for any other.
fn straight(
    cpu: &mut Cpu,
    bus: &mut dyn Bus,
    instruction: &Instruction,
) -> Result<bool, Exception> {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Mov if segments::names_segment(instruction) => {
            segments::move_segment(cpu, bus, instruction)?;
        }
        M::Push if segments::names_segment(instruction) => {
            segments::push_segment(cpu, bus, instruction)?;
        }
        M::Pop if segments::names_segment(instruction) => {
            segments::pop_segment(cpu, bus, instruction)?;
        }
        M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs => {
            segments::load_far_pointer(cpu, bus, instruction)?;
        }
        M::Push => stack::push(cpu, bus, instruction)?,
        M::Pop => stack::pop(cpu, bus, instruction)?,
        M::Pusha | M::Pushad => stack::push_all(cpu, bus, instruction)?,
        M::Popa | M::Popad => stack::pop_all(cpu, bus, instruction)?,
        M::Enter => stack::enter(cpu, bus, instruction)?,
        M::Leave => stack::leave(cpu, bus, instruction)?,
        // With OF clear.
        M::Into => {}
        M::Bound => checks::bound(cpu, bus, instruction)?,
        M::Arpl => checks::adjust_rpl(cpu, bus, instruction)?,
        M::Lar => checks::load_access_rights(cpu, bus, instruction)?,
        M::Lsl => checks::load_limit(cpu, bus, instruction)?,
        M::Verr => checks::verify(cpu, bus, instruction, false)?,
        M::Verw => checks::verify(cpu, bus, instruction, true)?,
        M::Aaa => decimal::aaa(cpu),
        M::Aas => decimal::aas(cpu),
        M::Aam => decimal::aam(cpu, instruction)?,
        M::Aad => decimal::aad(cpu, instruction),
        M::Daa => decimal::daa(cpu),
        M::Das => decimal::das(cpu),
        M::Salc => decimal::salc(cpu),
        M::Xlatb => operands::translate_byte(cpu, bus, instruction)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// The embedder's instructions: see [`Exit::Privileged`](crate::exit::Exit::Privileged). The
/// string forms of in and out are recognised with the other string instructions.
fn is_privileged(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cli
            | M::Sti
            | M::Clts
            | M::Hlt
            | M::Cpuid
            | M::In
            | M::Out
            | M::Pushf
            | M::Pushfd
            | M::Popf
            | M::Popfd
            | M::Iret
            | M::Iretd
            | M::Lgdt
            | M::Sgdt
            | M::Lidt
            | M::Sidt
            | M::Lldt
            | M::Sldt
            | M::Ltr
            | M::Str
            | M::Lmsw
            | M::Smsw
            | M::Rdmsr
            | M::Wrmsr
            | M::Rdpmc
            | M::Invlpg
            | M::Wbinvd
            | M::Invd
            | M::Sysenter
            | M::Sysexit
    )
}

/// A mov to or from a control, debug or test register.
fn moves_control_register(instruction: &Instruction) -> bool {
    let special = |index| {
        let register = instruction.op_register(index);
        register.is_cr() || register.is_dr() || register.is_tr()
    };
    instruction.mnemonic() == Mnemonic::Mov
        && (0..2).any(|index| instruction.op_kind(index) == OpKind::Register && special(index))
}
