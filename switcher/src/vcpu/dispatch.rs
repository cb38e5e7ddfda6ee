//! From an eip to host code: looked up, or translated now.

use super::Vcpu;
use super::code_store::PageKey;
use super::decoded::Found;
use super::fetches::CodeId;
use crate::address::{GuestPhys, GuestVirt, PAGE_SIZE};
use crate::cpu::SegmentRegister;
use crate::environment::{Access, Environment, PageFault};
use crate::execute::code_cache::CacheFull;
use crate::execute::windows::Slot;
use crate::exit::{Exception, Exit};
use crate::translate::{NeedsMore, Request, decoder, translate};
use iced_x86::{DecoderError, Instruction};
use std::time::Instant;

/// The longest instruction (SDM volume 2, section "Instruction Format").
const LONGEST: usize = 15;

/// Instructions in a unit at most.
const LONGEST_UNIT: usize = 256;
/// The same where the code is written to all the time: most of it would be translated for nothing.
const BRIEF_UNIT: usize = 16;

/// Where the code at an eip is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Cache offset.
    pub(super) at: u32,
    /// Who may go there by itself from now on.
    pub(super) links: Links,
}

/// Which code of a world may know a piece of code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Links {
    /// None.
    Nobody,
    /// Whoever looks it up in the jump table.
    Table,
    /// Branches within its page as well, which live and die with it.
    Anyone,
}

impl Vcpu {
    /// The host code for the current eip.
    pub(super) fn dispatch(&mut self, env: &mut dyn Environment) -> Result<Target, Exit> {
        let (linear, assumptions) = (self.linear_eip(), self.assumptions);
        let keeper = self.spaces.keeper(assumptions.user, linear);
        if let Some(at) = keeper.and_then(|slot| self.find(slot, linear)) {
            return Ok(Target { at, links: Links::Anyone });
        }
        self.translate_here(env, keeper)
    }

    /// The linear address of the instruction at eip.
    pub(super) fn linear_eip(&self) -> u32 {
        self.cpu.eip().wrapping_add(self.segment.base)
    }

    /// Looks the code at `linear` up.
    fn find(&self, slot: Slot, linear: u32) -> Option<u32> {
        let assumptions = self.assumptions;
        let id = self.spaces.world(slot)?.fetches.code(linear / PAGE_SIZE, assumptions)?;
        if !assumptions.flat && !self.code.is_for(id, self.segment) {
            return None;
        }
        self.code.at(id, linear)
    }

    #[cold]
    fn translate_here(
        &mut self,
        env: &mut dyn Environment,
        keeper: Option<Slot>,
    ) -> Result<Target, Exit> {
        let linear = self.linear_eip();
        let breakpoints = self.spaces.breakpoints.before(linear);
        if breakpoints != 0 && !self.looked_at {
            return Err(Exit::Debug(breakpoints));
        }
        if !self.assumptions.flat {
            self.check_code_segment(env)?;
        }
        let (page, assumptions, segment) = (linear / PAGE_SIZE, self.assumptions, self.segment);
        let frame = self.fetch(env, linear)?;
        let key = PageKey { page, frame, assumptions, segment };
        let near_end = (PAGE_SIZE - linear % PAGE_SIZE) as usize <= LONGEST;
        let kept = |links| if keeper.is_some() { links } else { Links::Nobody };
        if near_end && let Some(at) = self.known_straddler(env, key)? {
            return Ok(Target { at, links: kept(Links::Table) });
        }
        loop {
            let id = self.code.page(key);
            if let Some(world) = keeper.and_then(|slot| self.spaces.world_mut(slot)) {
                world.fetches.set_code(page, assumptions, id);
            }
            if let Some(at) = self.code.at(id, linear) {
                return Ok(Target { at, links: kept(Links::Anyone) });
            }
            match self.translate_unit(id, key) {
                Ok(Ok(())) => {}
                Ok(Err(CacheFull)) => self.empty_cache(),
                Err(NeedsMore) => {
                    let at = self.translate_straddler(env, key)?;
                    return Ok(Target { at, links: kept(Links::Table) });
                }
            }
        }
    }

    /// Translates the unit at eip, as part of page `id`.
    fn translate_unit(
        &mut self,
        id: CodeId,
        key: PageKey,
    ) -> Result<Result<(), CacheFull>, NeedsMore> {
        let (eip, linear) = (self.cpu.eip(), self.linear_eip());
        let at = GuestPhys(key.frame * PAGE_SIZE + linear % PAGE_SIZE);
        self.watch_frame(key.frame);
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize((PAGE_SIZE - at.offset()) as usize, 0);
        let _ = self.memory.read(at, &mut bytes);
        let linear_breakpoints = self.spaces.breakpoints.instructions();
        let breakpoints: Vec<u32> =
            linear_breakpoints.map(|linear| linear.wrapping_sub(key.segment.base)).collect();
        let (hot, cold) = self.code.cache.cursors();
        let brief = self.routes.is_written_often(key.frame, Instant::now());
        let longest = if brief { BRIEF_UNIT } else { LONGEST_UNIT };
        let unit = translate(&Request {
            eip,
            bytes: self.within_code_limit(&bytes),
            straddles: false,
            longest,
            assumptions: key.assumptions,
            hot,
            cold,
            known: &|eip| self.code.at(id, eip.wrapping_add(key.segment.base)),
            nearby: &|eip, bytes| {
                let offset = eip.wrapping_add(key.segment.base) % PAGE_SIZE;
                let length = bytes.len().min((PAGE_SIZE - offset) as usize);
                let at = GuestPhys(key.frame * PAGE_SIZE + offset);
                self.memory.read(at, &mut bytes[..length]).map_or(0, |()| length)
            },
            learned: &self.routes.of_frame(key.frame),
            breakpoints: &breakpoints,
            watch: self.watch,
        });
        self.bytes = bytes;
        let unit = unit?;
        if self.code.place(id, &unit).is_err() {
            return Ok(Err(CacheFull));
        }
        self.memory.mark_code(at, unit.guest_len);
        for &(eip, len) in &unit.elsewhere {
            let offset = eip.wrapping_add(key.segment.base) % PAGE_SIZE;
            self.memory.mark_code(GuestPhys(key.frame * PAGE_SIZE + offset), len.into());
        }
        self.statistics.units += 1;
        self.statistics.instructions +=
            unit.points.iter().filter(|point| point.len > 0).count() as u64;
        Ok(Ok(()))
    }

    /// The straddler at eip, if it is translated and both frames are what they were.
    fn known_straddler(
        &mut self,
        env: &mut dyn Environment,
        key: PageKey,
    ) -> Result<Option<u32>, Exit> {
        let eip = self.cpu.eip();
        if !self.code.has_straddler(eip, key) {
            return Ok(None);
        }
        let last_frame = self.fetch_next_page(env)?;
        Ok(self.code.straddler(eip, key, last_frame))
    }

    /// Translates the instruction at eip, which runs over the end of its page.
    fn translate_straddler(
        &mut self,
        env: &mut dyn Environment,
        key: PageKey,
    ) -> Result<u32, Exit> {
        let (eip, linear) = (self.cpu.eip(), self.linear_eip());
        let last_frame = self.fetch_next_page(env)?;
        loop {
            self.watch_frame(key.frame);
            self.watch_frame(last_frame);
            let (bytes, first) = self.straddling_bytes(key.frame, last_frame);
            let (hot, cold) = self.code.cache.cursors();
            let unit = translate(&Request {
                eip,
                bytes: self.within_code_limit(&bytes),
                straddles: true,
                longest: 1,
                assumptions: key.assumptions,
                hot,
                cold,
                known: &|_| None,
                nearby: &|_, _| 0,
                learned: &self.routes.of_frame(key.frame),
                breakpoints: &[],
                watch: self.watch,
            });
            // Fifteen bytes are enough for any instruction; only a code segment's limit can cut it.
            let unit = unit.map_err(|NeedsMore| Exit::Exception(Exception::protection(0)))?;
            if let Ok(at) = self.code.place_straddler(eip, key, last_frame, &unit) {
                let rest = unit.guest_len.saturating_sub(first);
                self.memory.mark_code(GuestPhys(key.frame * PAGE_SIZE + linear % PAGE_SIZE), first);
                self.memory.mark_code(GuestPhys(last_frame * PAGE_SIZE), rest);
                self.statistics.units += 1;
                self.statistics.instructions += 1;
                return Ok(at);
            }
            self.empty_cache();
        }
    }

    /// The bytes at eip from two frames, and how many of them lie in the first.
    fn straddling_bytes(&self, first: u32, last: u32) -> ([u8; LONGEST], u32) {
        let offset = self.linear_eip() % PAGE_SIZE;
        let mut bytes = [0; LONGEST];
        let split = ((PAGE_SIZE - offset) as usize).min(LONGEST);
        let (head, tail) = bytes.split_at_mut(split);
        let _ = self.memory.read(GuestPhys(first * PAGE_SIZE + offset), head);
        let _ = self.memory.read(GuestPhys(last * PAGE_SIZE), tail);
        (bytes, split as u32)
    }

    /// The instruction at eip, for Rust to look at. What can't be decoded is as
    /// [`Instruction::is_invalid`] says.
    pub(super) fn instruction(&mut self, env: &mut dyn Environment) -> Result<Instruction, Exit> {
        let (eip, linear) = (self.cpu.eip(), self.linear_eip());
        let frame = self.fetch(env, linear)?;
        let room = ((PAGE_SIZE - linear % PAGE_SIZE) as usize).min(LONGEST);
        let mut bytes = [0; LONGEST];
        let at = GuestPhys(frame * PAGE_SIZE + linear % PAGE_SIZE);
        let _ = self.memory.read(at, &mut bytes[..room]);
        let mut decoder_here = decoder(&bytes[..room], eip);
        let instruction = decoder_here.decode();
        if decoder_here.last_error() != DecoderError::NoMoreBytes || room == LONGEST {
            return Ok(instruction);
        }
        let last_frame = self.fetch_next_page(env)?;
        let (bytes, _) = self.straddling_bytes(frame, last_frame);
        Ok(decoder(&bytes, eip).decode())
    }

    /// The instruction at eip, which translated code has just left for.
    pub(super) fn translated_instruction(
        &mut self,
        env: &mut dyn Environment,
    ) -> Result<Instruction, Exit> {
        let (eip, linear) = (self.cpu.eip(), self.linear_eip());
        let place =
            Found { eip, linear, frame: self.fetch(env, linear)?, drops: self.code.drops() };
        if let Some(instruction) = self.decoded.get(place) {
            return Ok(instruction);
        }
        let instruction = self.instruction(env)?;
        if linear % PAGE_SIZE + instruction.len() as u32 <= PAGE_SIZE {
            self.decoded.put(place, instruction);
        }
        Ok(instruction)
    }

    /// The frame that code at `linear` is fetched from.
    pub(super) fn fetch(&mut self, env: &mut dyn Environment, linear: u32) -> Result<u32, Exit> {
        let (user, page) = (self.assumptions.user, linear / PAGE_SIZE);
        let keeper = self.spaces.keeper(user, linear);
        if let Some(slot) = keeper {
            let known = self.spaces.world(slot).and_then(|world| world.fetches.frame(page));
            if let Some(frame) = known {
                return Ok(frame);
            }
        }
        let record = keeper.map(|slot| self.spaces.windows.get(slot, page));
        let frame = match record.filter(|record| record.is_known()) {
            Some(record) => record.frame(),
            None => {
                let at = GuestVirt(linear);
                let mapping = env.translate(at, Access::Fetch, user).map_err(page_fault)?;
                let frame = mapping.phys.page_number() + (page - mapping.virt.page_number());
                if !self.memory.contains(GuestPhys(frame.wrapping_mul(PAGE_SIZE)), PAGE_SIZE) {
                    return Err(page_fault(PageFault { address: at, error: u32::from(user) << 2 }));
                }
                if let Some(slot) = keeper {
                    self.spaces.windows.record(slot, page, &mapping);
                }
                frame
            }
        };
        if let Some(world) = keeper.and_then(|slot| self.spaces.world_mut(slot)) {
            world.fetches.insert(page, frame);
        }
        Ok(frame)
    }

    /// The frame that the rest of the instruction at eip is fetched from. Offset 4 GiB is beyond any
    /// code segment's limit.
    fn fetch_next_page(&mut self, env: &mut dyn Environment) -> Result<u32, Exit> {
        let linear = self.linear_eip();
        let room = PAGE_SIZE - linear % PAGE_SIZE;
        if self.cpu.eip().checked_add(room).is_none() {
            return Err(Exit::Exception(Exception::protection(0)));
        }
        self.fetch(env, linear.wrapping_add(room))
    }

    /// Sees to it that stores into `frame` are noticed, before code in it is read.
    fn watch_frame(&mut self, frame: u32) {
        if !self.spaces.windows.is_code(frame) {
            self.keep_gates_out_of(frame);
            self.spaces.windows.protect_frame(frame);
            self.code.set_version(frame, self.memory.code_version(frame));
        }
    }

    /// 16-bit code is left to the embedder; a limit raises #GP.
    fn check_code_segment(&mut self, env: &mut dyn Environment) -> Result<(), Exit> {
        if self.cpu.eip() > self.segment.limit {
            return Err(Exit::Exception(Exception::protection(0)));
        }
        if self.cpu.segment(SegmentRegister::Cs).is_32bit() {
            return Ok(());
        }
        Err(Exit::Unsupported(self.instruction(env)?))
    }

    /// As much of the code at eip as the code segment reaches.
    fn within_code_limit<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        let room = u64::from(self.segment.limit.wrapping_sub(self.cpu.eip())) + 1;
        &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))]
    }
}

fn page_fault(fault: PageFault) -> Exit {
    Exit::Exception(fault.into())
}
