//! Calls of our own, far from Linux's numbers: what the shell needs and Linux has no simple word for.

/// Runs a program as a process of its own, a child of the caller.
///
/// ebx: its path, a string. ecx: its arguments, an array of strings that ends in a null pointer.
/// edx: bits of [`spawn`]. Answers the process's number.
pub const SPAWN: u32 = 0x1000;
/// Lists the processes. ebx: where to, an array of [`ProcessRecord`]s; ecx: how many fit. Answers how many there are.
pub const PROCESSES: u32 = 0x1001;
/// Tells about memory. ebx: where to, a [`MemoryRecord`].
pub const MEMORY: u32 = 0x1002;
/// Makes the kernel panic. ebx: why, a string.
pub const PANIC: u32 = 0x1003;
/// Repeats something in the kernel and takes the time. ebx: what, one of [`measure`]; ecx: how often;
/// edx: where to, the nanoseconds it took as a u64.
pub const MEASURE: u32 = 0x1004;

/// Bits for [`SPAWN`].
pub mod spawn {
    /// It doesn't get the keyboard, and ^C doesn't end it.
    pub const BACKGROUND: u32 = 1;
    /// It begins a job: what ^C ends as a whole. Otherwise it belongs to its parent's.
    pub const NEW_JOB: u32 = 2;
}

/// What [`MEASURE`] can repeat.
pub mod measure {
    /// A hypercall that does nothing.
    pub const HYPERCALL: u32 = 0;
    /// A hypercall that does nothing, left in the ring and carried out with others.
    pub const ASYNC_HYPERCALL: u32 = 1;
}

/// Linux's words for [`REBOOT`](crate::number::REBOOT).
pub mod reboot {
    /// ebx
    pub const MAGIC1: u32 = 0xfee1_dead;
    /// ecx
    pub const MAGIC2: u32 = 672_274_793;
    /// edx: power off
    pub const POWER_OFF: u32 = 0x4321_fedc;
}

/// What a process is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It runs, or would if it were its turn.
    Running,
    /// It waits for something.
    Waiting,
    /// It has ended, and its parent hasn't asked how.
    Ended,
}

/// Bytes kept of a process's name.
pub const NAME_BYTES: usize = 16;

/// A process, for `ps`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessRecord {
    /// Its number.
    pub pid: u32,
    /// The process that started it.
    pub parent: u32,
    /// What it's doing.
    pub state: State,
    /// Milliseconds of processor time it has had.
    pub cpu_ms: u32,
    /// Pages of memory it has.
    pub pages: u32,
    /// Its name, with zeros behind.
    pub name: [u8; NAME_BYTES],
}

impl ProcessRecord {
    /// Bytes in memory.
    pub const SIZE: usize = 20 + NAME_BYTES;

    /// How it lies in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.pid, self.parent, self.state as u32, self.cpu_ms, self.pages];
        put_words(&mut bytes, &words);
        bytes[20..].copy_from_slice(&self.name);
        bytes
    }

    /// What these bytes say.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let [pid, parent, state, cpu_ms, pages] = get_words(bytes);
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&bytes[20..]);
        let state = match state {
            0 => State::Running,
            1 => State::Waiting,
            _ => State::Ended,
        };
        Self { pid, parent, state, cpu_ms, pages, name }
    }
}

/// The guest's memory, for `mem`. All in KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRecord {
    /// What the kernel gives out in pages.
    pub total: u32,
    /// What of that is free.
    pub free: u32,
    /// The kernel's heap.
    pub heap: u32,
    /// What of that is in use.
    pub heap_used: u32,
}

impl MemoryRecord {
    /// Bytes in memory.
    pub const SIZE: usize = 16;

    /// How it lies in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_words(&mut bytes, &[self.total, self.free, self.heap, self.heap_used]);
        bytes
    }

    /// What these bytes say.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let [total, free, heap, heap_used] = get_words(bytes);
        Self { total, free, heap, heap_used }
    }
}

fn put_words(bytes: &mut [u8], words: &[u32]) {
    let (places, _) = bytes.as_chunks_mut::<4>();
    for (place, word) in places.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
}

fn get_words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (places, _) = bytes.as_chunks::<4>();
    core::array::from_fn(|at| places.get(at).map_or(0, |place| u32::from_le_bytes(*place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_memory() {
        let name = *b"spin\0\0\0\0\0\0\0\0\0\0\0\0";
        let process =
            ProcessRecord { pid: 7, parent: 1, state: State::Waiting, cpu_ms: 12, pages: 3, name };
        assert_eq!(ProcessRecord::from_bytes(&process.to_bytes()), process);
        let memory = MemoryRecord { total: 65536, free: 60000, heap: 4096, heap_used: 17 };
        assert_eq!(MemoryRecord::from_bytes(&memory.to_bytes()), memory);
    }
}
