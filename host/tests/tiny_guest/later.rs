//! What guests of other generations do differently: how they are entered, which page tables they have, how they boot.
//!
//! Some start with memory one-to-one. They begin at [`ENTRY`], where they say LGUEST_INIT and NEW_PGTABLE, and go on where
//! the others start. Page tables may have three levels: then they are made beside the launcher's, with the same pages.
//! Their devices are a [`Recorder`].

use super::*;

/// Where a guest without page tables starts, a physical address.
pub const ENTRY: u32 = 0xc000;
/// The tables of three levels: four pointers, two middle tables, and two tables for the same pages as the launcher's.
pub const POINTERS: u32 = 0xf000;
pub const MIDDLE_LOW: u32 = 0xd000;
pub const MIDDLE_HIGH: u32 = 0xe000;
pub const WIDE_LINEAR_TABLE: u32 = MEMORY - 0x3000;
pub const WIDE_USER_TABLE: u32 = MEMORY - 0x4000;
/// Writing to this port raises the interrupts whose bits the word has.
pub const RAISE_PORT: u16 = 0x2f0;
/// What there is to be read at any port.
pub const PORT_VALUE: u32 = 0x8765_4321;
/// Where NOTIFY means something: this address alone.
pub const BELL: u32 = SCRATCH + 0x800;

/// The generations that start with memory one-to-one.
pub const LOW: [Generation; 2] = [Generation::V2_6_38, Generation::V4_0];

/// The generations whose page tables may have three levels.
pub const WIDE: [Generation; 3] = [Generation::V2_6_30, Generation::V2_6_38, Generation::V4_0];

/// The generations whose guests don't have the first devices.
pub const LATER: [Generation; 5] = [
    Generation::V2_6_24,
    Generation::V2_6_25,
    Generation::V2_6_30,
    Generation::V2_6_38,
    Generation::V4_0,
];

/// The words of an entry of the ring, and where each is in LguestData.
pub fn ring_entry(
    layout: &Layout,
    slot: u32,
    words: [u32; CALL_WORDS],
) -> impl Iterator<Item = (u32, u32)> + use<> {
    let count = layout.entry_words;
    let start = layout.hcalls + slot * count * 4;
    let mut words = words;
    if layout.first_argument_last {
        words[1..count as usize].rotate_left(1);
    }
    (0..count).zip(words).map(move |(index, word)| (start + index * 4, word))
}

impl Code {
    /// Raises these interrupts, at once.
    pub fn raise(&mut self, irqs: u32) -> Assembled {
        self.mov(eax, irqs)?;
        self.mov(edx, u32::from(RAISE_PORT))?;
        self.out(dx, eax)
    }

    /// Queues an entry while the guest runs.
    pub fn enqueue(&mut self, layout: &Layout, slot: u32, call: Hypercall) -> Assembled {
        for (at, word) in ring_entry(layout, slot, call.encode()) {
            self.set_field(at, word)?;
        }
        self.mov(byte_ptr(virt(DATA) + layout.hcall_status + slot), 0)
    }
}

impl TinyGuest {
    /// The same, but its LguestData looks so.
    pub fn with_layout(mut self, layout: &'static Layout) -> Self {
        self.put(DATA, &[0; 0x1000]);
        self.layout = layout;
        self.say_what_it_is();
        self
    }

    /// Writes what the guest itself has to say in LguestData.
    pub(super) fn say_what_it_is(&self) {
        self.put(DATA + self.layout.hcall_status, &[0xff; HCALL_RING_SIZE]);
        for (field, value) in
            [(self.layout.kernel_address, PAGE_OFFSET), (self.layout.syscall_vec, 0x80)]
        {
            if let Some(field) = field {
                self.put_word(DATA + field, value);
            }
        }
    }

    /// Changes a field that not every generation has.
    #[track_caller]
    pub fn put_field(&self, field: Option<u32>, value: u32) {
        self.put_word(DATA + field.expect("a field of this generation"), value);
    }

    /// The same, but it starts without page tables, and its own have the first addresses, too.
    pub(super) fn entered_low(mut self) -> Self {
        self.entry = ENTRY;
        self.put_word(DIRECTORY, LINEAR_TABLE | 7);
        self.begin_at_entry();
        self
    }

    fn begin_at_entry(&self) {
        let root = self.root;
        self.low(|c| {
            c.hypercall(Hypercall::LguestInit { data: Phys(DATA) })?;
            c.hypercall(Hypercall::NewPgtable { directory: Phys(root) })?;
            c.mov(eax, virt(CODE))?;
            c.jmp(eax)
        });
    }

    /// Code for the very start of a guest without page tables.
    pub fn low(&self, write: impl FnOnce(&mut Code) -> Assembled) {
        self.code(ENTRY, ENTRY, write);
    }

    /// The same, with page tables of three levels.
    pub fn wide(mut self) -> Self {
        self.put_wide(POINTERS, MIDDLE_LOW | 1);
        self.put_wide(POINTERS + 3 * 8, MIDDLE_HIGH | 1);
        self.put_wide(MIDDLE_LOW, WIDE_LINEAR_TABLE | 7);
        self.put_wide(MIDDLE_HIGH, WIDE_LINEAR_TABLE | 7);
        for page in 0..MEMORY / 0x1000 {
            self.put_wide(WIDE_LINEAR_TABLE + page * 8, (page * 0x1000) | 7);
        }
        self.put_wide(MIDDLE_LOW + (USER_CODE >> 21) * 8, WIDE_USER_TABLE | 7);
        for page in 0..3 {
            self.put_wide(WIDE_USER_TABLE + page * 8, (USER_FRAMES + page * 0x1000) | 7);
        }
        self.root = POINTERS;
        if !self.generation.starts_with_page_tables() {
            self.begin_at_entry();
        }
        self
    }

    /// Puts an entry of 64 bits, the upper ones 0.
    pub fn put_wide(&self, phys: u32, entry: u32) {
        self.put_word(phys, entry);
        self.put_word(phys + 4, 0);
    }

    /// The calls with which a kernel of this generation begins, once it runs where it is linked.
    pub(super) fn beginning(&self) -> Vec<Hypercall> {
        let mut calls = Vec::new();
        if self.generation.starts_with_page_tables() {
            calls.push(Hypercall::LguestInit { data: Phys(DATA) });
            if self.root != DIRECTORY {
                calls.push(Hypercall::NewPgtable { directory: Phys(self.root) });
            }
        }
        if self.generation.hands_over_gdt() {
            calls.push(Hypercall::LoadGdt { table: Phys(GDT), entries: 32 });
        } else {
            let half = |entry, at| self.word(GDT + entry * 8 + at);
            let entries = (0..32).map(|entry| (entry, half(entry, 0), half(entry, 4)));
            calls.extend(
                entries
                    .filter(|(_, low, high)| (*low, *high) != (0, 0))
                    .map(|(entry, low, high)| Hypercall::LoadGdtEntry { entry, low, high }),
            );
        }
        calls
    }
}

/// What a guest did to a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touch {
    /// A port, and how many bytes.
    In(u16, u32),
    /// A port, how many bytes, and which.
    Out(u16, u32, u32),
    /// An address, and how many bytes.
    Read(u32, usize),
    /// An address, and the bytes.
    Write(u32, Vec<u8>),
    Notify(u32),
}

/// Devices that write down what is done to them. Reading address `a` gives the lowest byte of `a`.
#[derive(Clone)]
pub struct Recorder {
    touches: Arc<Mutex<Vec<Touch>>>,
    lines: InterruptLines,
}

impl Recorder {
    pub(super) fn new(lines: InterruptLines) -> Self {
        Self { touches: Arc::default(), lines }
    }

    /// What has been done so far.
    pub fn touches(&self) -> Vec<Touch> {
        self.touches.lock().expect("no test panics in a device").clone()
    }

    fn record(&self, touch: Touch) {
        self.touches.lock().expect("no test panics in a device").push(touch);
    }
}

impl Bus for Recorder {
    fn port_in(&mut self, port: u16, bytes: u32) -> u32 {
        self.record(Touch::In(port, bytes));
        PORT_VALUE
    }

    fn port_out(&mut self, port: u16, bytes: u32, value: u32) {
        self.record(Touch::Out(port, bytes, value));
        if port == RAISE_PORT {
            (0..32).filter(|irq| value & 1 << irq != 0).for_each(|irq| self.lines.raise(irq));
        }
    }

    fn read(&mut self, at: GuestPhys, into: &mut [u8]) {
        self.record(Touch::Read(at.0, into.len()));
        for (distance, byte) in (0..).zip(into) {
            *byte = at.0.wrapping_add(distance) as u8;
        }
    }

    fn write(&mut self, at: GuestPhys, from: &[u8]) {
        self.record(Touch::Write(at.0, from.to_vec()));
    }

    fn notify(&mut self, _: &GuestMemory, address: GuestPhys) -> bool {
        self.record(Touch::Notify(address.0));
        address.0 == BELL
    }
}
