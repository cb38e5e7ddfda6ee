//! Calls on the terminal: how it treats input, how large it is, whether something was typed.

use super::Answer;
use crate::clock::TICK;
use crate::files::open::Open;
use crate::keyboard;
use crate::memory::user_memory;
use crate::processes::{self, of_current};
use lguest_guest::machine;
use lguest_kernel_logic::line_discipline::Mode;
use lguest_system_calls::Errno;

/// What `ioctl` is asked for.
mod request {
    pub(super) const GET_MODES: u32 = 0x5401;
    pub(super) const SET_MODES: [u32; 3] = [0x5402, 0x5403, 0x5404];
    pub(super) const GET_JOB: u32 = 0x540f;
    pub(super) const SET_JOB: u32 = 0x5410;
    pub(super) const GET_SIZE: u32 = 0x5413;
}

/// Bits of the local modes in `struct termios`.
const SIGNALS: u32 = 0o1;
const LINES: u32 = 0o2;
const ECHO: u32 = 0o10;

/// Where in `struct termios` the local modes are, and how long it is.
const LOCAL_MODES: usize = 12;
const TERMIOS: usize = 36;

/// What is said of the other modes: carriage returns become line feeds, 38400 baud, eight bits, receiver on.
const INPUT_MODES: u32 = 0o400;
const OUTPUT_MODES: u32 = 0;
const CONTROL_MODES: u32 = 0o17 | 0o60 | 0o200;

pub(super) fn ioctl(number: u32, request: u32, argument: u32) -> Answer {
    match of_current(|process| process.files.get(number).copied())? {
        Open::Console => {}
        Open::Null | Open::File { .. } => return Err(Errno::ENOTTY),
    }
    match request {
        request::GET_MODES => user_memory::write(argument, &termios(keyboard::mode())).map(|()| 0),
        request if request::SET_MODES.contains(&request) => set_modes(argument),
        request::GET_JOB => {
            let job = of_current(|process| Ok(process.job.0))?;
            user_memory::write(argument, &job.to_le_bytes()).map(|()| 0)
        }
        request::SET_JOB => Ok(0),
        request::GET_SIZE => {
            // Nobody tells a guest how large its terminal is: as large as terminals are.
            let [rows, columns] = [24_u16, 80].map(u16::to_le_bytes);
            user_memory::write(argument, [rows, columns, [0; 2], [0; 2]].as_flattened()).map(|()| 0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn termios(mode: Mode) -> [u8; TERMIOS] {
    let local = [(mode.signals, SIGNALS), (mode.lines, LINES), (mode.echo, ECHO)];
    let local = local.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
    let mut bytes = [0; TERMIOS];
    let (words, _) = bytes.as_chunks_mut::<4>();
    for (place, word) in words.iter_mut().zip([INPUT_MODES, OUTPUT_MODES, CONTROL_MODES, local]) {
        *place = u32::to_le_bytes(word);
    }
    bytes
}

fn set_modes(argument: u32) -> Answer {
    let mut bytes = [0; TERMIOS];
    user_memory::read(argument, &mut bytes)?;
    let [a, b, c, d] = [0, 1, 2, 3].map(|n| bytes[LOCAL_MODES + n]);
    let local = u32::from_le_bytes([a, b, c, d]);
    keyboard::set_mode(Mode {
        signals: local & SIGNALS != 0,
        lines: local & LINES != 0,
        echo: local & ECHO != 0,
    });
    Ok(0)
}

/// Looks at open files until one has something, or time is up. The keyboard is looked at each tick.
pub(super) fn poll(list: u32, count: u32, milliseconds: u32) -> Answer {
    const MOST: u32 = 64;
    if count > MOST {
        return Err(Errno::EINVAL);
    }
    // A negative number is for ever.
    let limit = match milliseconds as i32 {
        ..0 => u64::MAX,
        length => machine().now().saturating_add(length as u64 * 1_000_000),
    };
    loop {
        let mut ready = 0;
        for at in 0..count {
            ready += u32::from(poll_one(list.wrapping_add(8 * at))?);
        }
        let now = machine().now();
        if ready > 0 || now >= limit {
            return Ok(ready);
        }
        processes::sleep(limit.min(now + u64::from(TICK)))?;
    }
}

/// Fills in one `struct pollfd`: number, what is wanted, what there is.
fn poll_one(at: u32) -> Result<bool, Errno> {
    const IN: u16 = 1;
    const OUT: u16 = 4;
    const INVALID: u16 = 0x20;
    let [number, wanted] = user_memory::read_words(at)?;
    let wanted = wanted as u16;
    let there = match of_current(|process| Ok(process.files.get(number).ok().copied()))? {
        _ if (number as i32) < 0 => 0,
        None => INVALID,
        Some(Open::Console) if keyboard::would_read() => wanted & (IN | OUT),
        Some(Open::Console) => wanted & OUT,
        Some(Open::Null | Open::File { .. }) => wanted & (IN | OUT),
    };
    user_memory::write(at.wrapping_add(6), &there.to_le_bytes())?;
    Ok(there != 0)
}
