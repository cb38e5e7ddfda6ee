//! What a processor and its memory are, as far as a kernel can see: what goes into a step and what comes out.

use std::fmt;

/// Bytes of physical memory, from address 0.
pub const MEMORY: usize = 0x3_8000;
/// Bytes in a page.
pub const PAGE: u32 = 0x1000;

/// Numbers of the general registers, as instructions encode them.
pub mod gpr {
    #![allow(missing_docs)]
    pub const EAX: usize = 0;
    pub const ECX: usize = 1;
    pub const EDX: usize = 2;
    pub const EBX: usize = 3;
    pub const ESP: usize = 4;
    pub const EBP: usize = 5;
    pub const ESI: usize = 6;
    pub const EDI: usize = 7;
}

/// Numbers of the segment registers, as instructions encode them.
pub mod sreg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Bits of eflags that aren't arithmetic's.
pub mod flag {
    #![allow(missing_docs)]
    pub const TF: u32 = 1 << 8;
    pub const IF: u32 = 1 << 9;
    pub const IOPL: u32 = 3 << 12;
    pub const NT: u32 = 1 << 14;
    pub const RF: u32 = 1 << 16;
    pub const VM: u32 = 1 << 17;
    pub const AC: u32 = 1 << 18;
    pub const ID: u32 = 1 << 21;
}

/// A segment register, LDTR or TR: the selector, and what the processor remembers of the descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// Linear address of offset 0.
    pub base: u32,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// The descriptor's access byte (bits 0 to 7) and flags (bits 12 to 15); 0 if nothing is loaded.
    pub attributes: u16,
}

impl Segment {
    /// The segment that `descriptor` describes (SDM volume 3, section "Segment Descriptors").
    #[must_use]
    pub const fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let (low, high) = (descriptor as u32, (descriptor >> 32) as u32);
        let raw = (low & 0xffff) | (high & 0x000f_0000);
        let limit = if high & 1 << 23 != 0 { raw << 12 | 0xfff } else { raw };
        let base = low >> 16 | (high & 0xff) << 16 | (high & 0xff00_0000);
        Self { selector, base, limit, attributes: (high >> 8) as u16 & 0xf0ff }
    }

    /// Whether it can be used for anything.
    #[must_use]
    pub const fn is_loaded(&self) -> bool {
        self.attributes & 0x80 != 0
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x} (base {:08x}, limit {:08x}, attributes {:04x})",
            self.selector, self.base, self.limit, self.attributes
        )
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Table {
    /// Linear address.
    pub base: u32,
    /// Offset of its last byte.
    pub limit: u16,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base {:08x}, limit {:04x}", self.base, self.limit)
    }
}

/// Registers and physical memory.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct State {
    pub gpr: [u32; 8],
    pub eip: u32,
    pub eflags: u32,
    /// Numbered as instructions encode them.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u32,
    pub cr2: u32,
    pub cr3: u32,
    pub cr4: u32,
    /// dr0 to dr3, dr6 and dr7.
    pub dr: [u32; 6],
    /// IA32_SYSENTER_CS, ESP and EIP.
    pub sysenter: [u32; 3],
    /// [`MEMORY`] bytes.
    pub memory: Vec<u8>,
}

impl State {
    /// The current privilege level: the level of cs (SDM volume 3, section "Privilege Levels").
    #[must_use]
    pub const fn cpl(&self) -> u8 {
        (self.segments[sreg::CS].selector & 3) as u8
    }

    /// The linear address of the next instruction.
    #[must_use]
    pub const fn linear_eip(&self) -> u32 {
        self.segments[sreg::CS].base.wrapping_add(self.eip)
    }

    /// Reads four bytes of physical memory.
    ///
    /// # Panics
    /// If there aren't four bytes.
    #[must_use]
    pub fn dword(&self, physical: u32) -> u32 {
        let at = physical as usize;
        u32::from_le_bytes(self.memory[at..at + 4].try_into().expect("four bytes"))
    }

    /// Writes to physical memory.
    ///
    /// # Panics
    /// If it isn't all memory.
    pub fn store(&mut self, physical: u32, bytes: &[u8]) {
        let at = physical as usize;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes four bytes to physical memory.
    ///
    /// # Panics
    /// If it isn't all memory.
    pub fn store_dword(&mut self, physical: u32, value: u32) {
        self.store(physical, &value.to_le_bytes());
    }

    /// Writes a descriptor or a gate to physical memory.
    ///
    /// # Panics
    /// If it isn't all memory.
    pub fn store_descriptor(&mut self, physical: u32, descriptor: u64) {
        self.store(physical, &descriptor.to_le_bytes());
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            gpr: [0; 8],
            eip: 0,
            eflags: 2,
            segments: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            sysenter: [0; 3],
            memory: vec![0; MEMORY],
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.named() {
            writeln!(f, "  {name:<13} {value}")?;
        }
        Ok(())
    }
}

impl State {
    /// Every register by name, as text.
    fn named(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut add = |name: &str, value: String| all.push((name.to_owned(), value));
        let word = |value: u32| format!("{value:08x}");
        for (name, value) in
            ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"].iter().zip(self.gpr)
        {
            add(name, word(value));
        }
        add("eip", word(self.eip));
        add("eflags", word(self.eflags));
        for (name, value) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().zip(self.segments) {
            add(name, format!("{value:?}"));
        }
        add("ldtr", format!("{:?}", self.ldtr));
        add("tr", format!("{:?}", self.tr));
        add("gdtr", format!("{:?}", self.gdtr));
        add("idtr", format!("{:?}", self.idtr));
        for (name, value) in
            [("cr0", self.cr0), ("cr2", self.cr2), ("cr3", self.cr3), ("cr4", self.cr4)]
        {
            add(name, word(value));
        }
        for (name, value) in ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"].iter().zip(self.dr) {
            add(name, word(value));
        }
        for (name, value) in
            ["sysenter_cs", "sysenter_esp", "sysenter_eip"].iter().zip(self.sysenter)
        {
            add(name, word(value));
        }
        all
    }

    fn same_registers(&self, other: &Self) -> bool {
        let rest = |state: &Self| {
            (state.eip, state.eflags, state.cr0, state.cr2, state.cr3, state.cr4, state.dr)
        };
        let system = |state: &Self| (state.ldtr, state.tr, state.gdtr, state.idtr, state.sysenter);
        self.gpr == other.gpr
            && self.segments == other.segments
            && rest(self) == rest(other)
            && system(self) == system(other)
    }

    /// What differs between two states, a line each; the first few bytes of memory that do.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        const BYTES: usize = 12;
        let mut lines: Vec<String> = Vec::new();
        if !self.same_registers(other) {
            let registers = self.named().into_iter().zip(other.named());
            let differing = registers.filter(|(ours, theirs)| ours != theirs);
            lines.extend(
                differing.map(|((name, ours), (_, theirs))| format!("{name}: {ours} and {theirs}")),
            );
        }
        if self.memory == other.memory {
            return lines;
        }
        let bytes = self.memory.iter().zip(&other.memory).enumerate();
        let changed = bytes.filter(|(_, (ours, theirs))| ours != theirs).take(BYTES);
        lines.extend(
            changed.map(|(at, (ours, theirs))| {
                format!("memory {at:05x}: {ours:02x} and {theirs:02x}")
            }),
        );
        lines
    }
}
