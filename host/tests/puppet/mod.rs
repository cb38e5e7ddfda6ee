//! A guest that does what it is told while it runs. Its kernel asks at a port, over and over, what comes next; whoever answers may look
//! at the guest's memory first. It stores words, and then does one thing more; or user code does.

#![allow(unreachable_pub, reason = "as of other modules that test programs share")]

use crate::tiny_guest::*;
use iced_x86::code_asm::*;
use lguest_abi::address::Phys;
use lguest_abi::generation::{ArgumentRegister, CALL_WORDS};
use lguest_abi::hypercall::{Hypercall, VECTOR};
use lguest_abi::lguest_data::offset;
use lguest_abi::segments::{USER_CS, USER_DS};
use lguest_host::{Bus, End, Generation, GuestMemory, GuestPhys};
use std::sync::Arc;

/// What code does with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    Read,
    Write,
    /// Adds to the word there.
    Add,
    /// Goes there. What is there is [`CODE_THERE`].
    Execute,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It is user code that does it. (The kernel doesn't execute anything.)
    pub user: bool,
    pub what: Use,
    pub address: u32,
    /// What is written or added.
    pub value: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    Access(Access),
    Call(Hypercall),
    Invlpg(u32),
    LoadCr3(u32),
    /// Turns these bits of CR0 over.
    FlipCr0(u32),
    PowerOff,
}

/// What the kernel does when it has asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Physical addresses, and words that are stored there first.
    pub stores: Vec<(u32, u32)>,
    pub command: Command,
}

/// What became of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// What was read, or else written or added.
    Done(u32),
    /// A page fault.
    Fault { error: u32, address: u32 },
}

/// Code for [`Use::Execute`]: an instruction of which the last word is what is reported, and the call of the kernel.
pub const CODE_THERE: [&[u8]; 2] = [&[0xb8], &[0xcd, 0x80]];

/// The port where the kernel asks.
const PORT: u16 = 0x300;
/// Where orders and reports are.
const ADDRESS: u32 = SCRATCH;
const VALUE: u32 = SCRATCH + 4;
const USER_EIP: u32 = SCRATCH + 8;
const FAULT: u32 = SCRATCH + 12;
const SEEN: u32 = SCRATCH + 16;
const PIECE: u32 = SCRATCH + 20;
const REGISTERS: [(AsmRegister32, u32); 5] = [
    (eax, SCRATCH + 24),
    (ebx, SCRATCH + 28),
    (ecx, SCRATCH + 32),
    (edx, SCRATCH + 36),
    (esi, SCRATCH + 40),
];
const STORES: u32 = SCRATCH + 48;
/// In [`FAULT`]: there was one.
const FAULTED: u32 = 1 << 31;
/// Where the kernel's pieces of code are, of 128 bytes each.
const PIECES: u32 = CODE + 0x1000;
/// Asks.
const NEXT: u32 = virt(PIECES);
/// Where user code's are.
const USER_PIECES: u32 = USER_CODE;

fn piece(number: u32) -> u32 {
    PIECES + number * 0x80
}

/// Where the code is that does a command.
fn piece_of(command: &Command) -> u32 {
    piece(match command {
        Command::Access(Access { user: true, .. }) => 1,
        Command::Access(Access { what: Use::Read, .. }) => 2,
        Command::Access(Access { what: Use::Write, .. }) => 3,
        Command::Access(Access { .. }) => 4,
        Command::Call(_) | Command::PowerOff => 5,
        Command::Invlpg(_) => 6,
        Command::LoadCr3(_) => 7,
        Command::FlipCr0(_) => 8,
    })
}

/// The instruction that uses the address in ebx, with the value in eax.
fn touch(c: &mut Code, what: Use) -> Assembled {
    match what {
        Use::Read => c.mov(eax, dword_ptr(ebx)),
        Use::Write => c.mov(dword_ptr(ebx), eax),
        Use::Add => c.add(dword_ptr(ebx), eax),
        Use::Execute => c.jmp(ebx),
    }
}

fn user_piece(what: Use) -> u32 {
    USER_PIECES + what as u32 * 0x40
}

/// The end of a piece of the kernel: back to where it asks.
fn report(c: &mut Code) -> Assembled {
    c.mov(dword_ptr(virt(SEEN)), eax)?;
    c.jmp(u64::from(NEXT))
}

/// Asks, stores, and goes to the piece for the command.
fn ask(c: &mut Code) -> Assembled {
    let (mut store, mut stored) = (c.create_label(), c.create_label());
    c.mov(esp, virt(STACK))?;
    c.mov(edx, u32::from(PORT))?;
    c.out(dx, eax)?;
    c.mov(esi, virt(STORES))?;
    c.set_label(&mut store)?;
    c.mov(edi, dword_ptr(esi))?;
    c.test(edi, edi)?;
    c.je(stored)?;
    c.mov(eax, dword_ptr(esi + 4))?;
    c.mov(dword_ptr(edi), eax)?;
    c.add(esi, 8)?;
    c.jmp(store)?;
    c.set_label(&mut stored)?;
    c.mov(ebx, dword_ptr(virt(ADDRESS)))?;
    c.mov(eax, dword_ptr(virt(VALUE)))?;
    c.jmp(dword_ptr(virt(PIECE)))
}

fn go_to_user(c: &mut Code) -> Assembled {
    c.push(u32::from(USER_DS))?;
    c.push(USER_STACK)?;
    c.push(0x202u32)?;
    c.push(u32::from(USER_CS))?;
    c.push(dword_ptr(virt(USER_EIP)))?;
    c.iretd()
}

fn with_pieces(guest: TinyGuest) -> TinyGuest {
    let guest = guest.gate(0x80, 0xf, 3, report).handler(14, |c| {
        c.pop(eax)?;
        c.or(eax, FAULTED)?;
        c.mov(dword_ptr(virt(FAULT)), eax)?;
        c.jmp(u64::from(NEXT))
    });
    let at = |number, write: &dyn Fn(&mut Code) -> Assembled| {
        guest.code(virt(piece(number)), piece(number), write);
    };
    at(0, &ask);
    at(1, &go_to_user);
    for (number, what) in [(2, Use::Read), (3, Use::Write), (4, Use::Add)] {
        at(number, &|c| {
            touch(c, what)?;
            report(c)
        });
    }
    at(5, &|c| {
        for (register, place) in REGISTERS {
            c.mov(register, dword_ptr(virt(place)))?;
        }
        c.int(i32::from(VECTOR))?;
        report(c)
    });
    at(6, &|c| {
        c.invlpg(ptr(ebx))?;
        report(c)
    });
    at(7, &|c| {
        c.mov(cr3, eax)?;
        report(c)
    });
    at(8, &|c| {
        c.mov(ecx, cr0)?;
        c.xor(ecx, eax)?;
        c.mov(cr0, ecx)?;
        report(c)
    });
    for what in [Use::Read, Use::Write, Use::Add, Use::Execute] {
        let at = user_piece(what);
        guest.code(at, USER_FRAMES + at % 0x1000, |c| {
            touch(c, what)?;
            c.int(0x80)
        });
    }
    guest.kernel(|c| {
        c.mov(eax, u32::from(USER_DS))?;
        c.mov(ds, eax)?;
        c.mov(es, eax)?;
        c.jmp(u64::from(NEXT))
    })
}

/// Says what is next. The first time there is no report; that of what isn't an access means nothing.
pub type Director = Box<dyn FnMut(&GuestMemory, Option<Report>) -> Order + Send>;

/// What is behind the port.
struct Strings {
    memory: Arc<GuestMemory>,
    generation: Generation,
    director: Director,
    asked: bool,
}

impl Strings {
    fn word(&self, at: u32) -> u32 {
        self.memory.read_u32(GuestPhys(at)).expect("in memory")
    }

    fn put(&self, at: u32, word: u32) {
        self.memory.write_u32(GuestPhys(at), word).expect("in memory");
    }

    fn report(&self) -> Report {
        match self.word(FAULT) {
            0 => Report::Done(self.word(SEEN)),
            error => {
                let address = self.word(DATA + offset::CR2);
                Report::Fault { error: error & !FAULTED, address }
            }
        }
    }

    fn put_call(&self, words: [u32; CALL_WORDS]) {
        let arguments =
            self.generation.argument_registers().iter().map(|argument| match argument {
                ArgumentRegister::Ebx => 1,
                ArgumentRegister::Ecx => 2,
                ArgumentRegister::Edx => 3,
                ArgumentRegister::Esi => 4,
            });
        for (index, word) in [0].into_iter().chain(arguments).zip(words) {
            self.put(REGISTERS[index].1, word);
        }
    }

    fn put_order(&self, order: &Order) {
        self.put(FAULT, 0);
        self.put(PIECE, virt(piece_of(&order.command)));
        let end = STORES + order.stores.len() as u32 * 8;
        for (place, (at, word)) in (STORES..end).step_by(8).zip(&order.stores) {
            self.put(place, virt(*at));
            self.put(place + 4, *word);
        }
        self.put(end, 0);
        match order.command {
            Command::Access(Access { what, address, value, .. }) => {
                let eip = if what == Use::Execute { address } else { user_piece(what) };
                self.put(USER_EIP, eip);
                self.put(ADDRESS, address);
                self.put(VALUE, value);
            }
            Command::Call(call) => self.put_call(call.encode()),
            Command::PowerOff => {
                self.put_call(Hypercall::Crash { message: Phys(MESSAGE) }.encode());
            }
            Command::Invlpg(address) => self.put(ADDRESS, address),
            Command::LoadCr3(value) | Command::FlipCr0(value) => self.put(VALUE, value),
        }
    }
}

impl Bus for Strings {
    fn port_out(&mut self, _: u16, _: u32, _: u32) {
        let report = std::mem::replace(&mut self.asked, true).then(|| self.report());
        let order = (self.director)(&self.memory, report);
        self.put_order(&order);
    }
}

/// Runs a guest that does what it is told, until it is told to power off. Says how it ended.
pub fn run(guest: TinyGuest, director: Director) -> (End, TinyGuest) {
    let guest = with_pieces(guest);
    let (memory, generation) = (Arc::clone(&guest.memory), guest.generation);
    let end = guest.run_on(Box::new(Strings { memory, generation, director, asked: false }));
    (end, guest)
}
