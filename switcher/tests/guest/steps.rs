//! The same program twice: in single steps, where each instruction is translated by itself, and in one go, with stops anywhere.

use super::{Guest, Random};
use lguest_switcher::breakpoints::SINGLE_STEP;
use lguest_switcher::cpu::TF;
use lguest_switcher::{Exit, Gpr, GuestVirt, PAGE_SIZE, SpaceId, View};
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// How the program went.
pub(crate) struct Run {
    pub(crate) exit: Exit,
    /// Times it was stopped.
    pub(crate) kicks: u32,
}

/// All that a stop shows.
type State = (u32, u32, [u32; 8]);

fn state(guest: &Guest) -> State {
    use Gpr::*;
    let cpu = &guest.vcpu.cpu;
    let registers = [Eax, Ecx, Edx, Ebx, Esp, Ebp, Esi, Edi].map(|register| cpu.gpr(register));
    (cpu.eip(), cpu.eflags() & !TF, registers)
}

/// Runs the guest that `start` makes. Wherever it stops, it shows what a step has shown, and in that order; in the end `memory` is the
/// same. Between stops one of `pages` is gone, so that it is run into, in the middle of whatever it may be.
#[track_caller]
pub(crate) fn stops_show_what_steps_show(
    seed: u32,
    start: impl Fn() -> Guest,
    pages: &[u32],
    memory: Range<u32>,
) -> Run {
    let mut steps = start();
    let mut seen = HashMap::new();
    let end = loop {
        seen.insert(state(&steps), seen.len());
        let flags = steps.vcpu.cpu.eflags();
        steps.vcpu.cpu.set_eflags(flags | TF);
        match steps.run() {
            Exit::Debug(SINGLE_STEP) => {}
            exit => break exit,
        }
    };
    let last = state(&steps);

    let mut guest = start();
    let (mut random, mut before, mut kicks) = (Random(seed), 0_usize, 0);
    let exit = loop {
        let page = pages[random.below(pages.len() as u32) as usize] & !(PAGE_SIZE - 1);
        let space: SpaceId = guest.vcpu.current_space();
        guest.vcpu.unmap(View::User(space), GuestVirt(page), 1);
        guest.vcpu.set_alarm(Some(Duration::from_micros(random.below(12).into())));
        let exit = guest.run();
        if exit != Exit::Kicked {
            break exit;
        }
        let now = seen.get(&state(&guest)).copied();
        let now = now.unwrap_or_else(|| panic!("seed {seed}: {:x?}", state(&guest)));
        assert!(now >= before, "seed {seed}: back from {before} to {now}");
        (before, kicks) = (now, kicks + 1);
    };
    assert_eq!((exit, state(&guest)), (end, last), "seed {seed}");
    let words = |guest: &Guest| -> Vec<u32> {
        memory.clone().step_by(4).map(|at| guest.peek(at)).collect()
    };
    assert!(words(&guest) == words(&steps), "seed {seed}: memory");
    Run { exit, kicks }
}
