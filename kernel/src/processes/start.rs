//! Starting a program: from a file among the guest's to a process in the queue.

use super::kernel_stack::KernelStack;
use super::process::Process;
use super::{Pid, SCHEDULER};
use crate::files;
use crate::memory::address_space::{AddressSpace, STACK_TOP};
use crate::memory::shared_pages::SharedPages;
use crate::random;
use crate::traps::frame::TrapFrame;
use alloc::vec::Vec;
use lguest_guest::machine;
use lguest_kernel_logic::areas::{Access, PAGE};
use lguest_kernel_logic::program::{PROGRAM_HEADER_SIZE, Program};
use lguest_kernel_logic::start_stack::{Start, tell};
use lguest_system_calls::Errno;

/// What each process finds in its environment.
const ENVIRONMENT: [&[u8]; 4] = [b"HOME=/", b"PATH=/", b"TERM=linux", b"USER=root"];

/// What `times` counts in: ticks of a hundredth of a second.
const TICKS_A_SECOND: u32 = 100;

/// Makes a process of the program at a path. `arguments` begin with its name; altogether they must
/// fit a few pages. `own_job`: it is the first of a job.
pub(crate) fn start(
    path: &str,
    arguments: &[Vec<u8>],
    parent: Pid,
    own_job: bool,
) -> Result<Pid, Errno> {
    let file = files::find(path).ok_or(Errno::ENOENT)?;
    if file.is_directory() {
        return Err(Errno::EACCES);
    }
    let program = Program::read(file.contents).map_err(|_| Errno::ENOEXEC)?;
    let mut space = load(&program)?;
    let stack = put_start_stack(&mut space, &program, path, arguments)?;
    let frame = TrapFrame::for_program(program.entry, stack);
    let name = arguments.first().map_or(path.as_bytes(), Vec::as_slice);
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
    let process = Process::new(name, space, KernelStack::entering(&frame));
    SCHEDULER.with(|scheduler| scheduler.add(process, parent, own_job))
}

/// An address space with a program in it.
fn load(program: &Program<'static>) -> Result<AddressSpace, Errno> {
    let mut space = AddressSpace::new()?;
    for segment in program.segments() {
        let access = if segment.writable { Access::Write } else { Access::Read };
        space.add_area(segment.address..segment.end(), access, false)?;
        if program.can_share(segment) {
            space.share(segment.address, SharedPages::of(segment)?)?;
        } else {
            space.place(segment.address, segment.contents, access)?;
        }
    }
    space.set_heap_start(program.end());
    Ok(space)
}

/// Makes the stack with what a program finds there. Answers the stack pointer.
fn put_start_stack(
    space: &mut AddressSpace,
    program: &Program<'_>,
    path: &str,
    arguments: &[Vec<u8>],
) -> Result<u32, Errno> {
    let told = [
        (tell::HEADERS, program.headers),
        (tell::HEADER_SIZE, PROGRAM_HEADER_SIZE),
        (tell::HEADER_COUNT, program.header_count.into()),
        (tell::PAGE_SIZE, PAGE),
        (tell::ENTRY, program.entry),
        (tell::USER, 0),
        (tell::EFFECTIVE_USER, 0),
        (tell::GROUP, 0),
        (tell::EFFECTIVE_GROUP, 0),
        (tell::PROCESSOR, machine().cpuid(1, 0).edx),
        (tell::TICKS, TICKS_A_SECOND),
        (tell::SECURE, 0),
    ];
    let mut random_bytes = [0; 16];
    random::fill(&mut random_bytes);
    let start = Start {
        arguments,
        environment: &ENVIRONMENT,
        path: path.as_bytes(),
        random: random_bytes,
        told: &told,
    };
    let bytes = start.bytes(STACK_TOP);
    let stack = STACK_TOP - bytes.len() as u32;
    space.add_area(stack..STACK_TOP, Access::Write, true)?;
    space.place(stack, &bytes, Access::Write)?;
    Ok(stack)
}
