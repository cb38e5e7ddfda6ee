//! Pages and descriptors, and which frames may change at all.

use super::case::{Case, Disturbance};
use lguest_switcher::{
    Access, Environment, GuestMemory, GuestPhys, GuestVirt, Kicker, Mapping, PAGE_SIZE, PageFault,
    Segment,
};

/// Numbers of the pages that there may be: around 0, 64 KiB, the kernel's first address and 4 GiB, and some to be
/// used. At first each has the frame of its place here, may be written, and is the user's if it is below the
/// kernel.
pub(super) const PAGES: [u32; 16] = [
    0x400, 0x401, 0x402, 0x403, 0, 1, 0xf, 0x10, 0xb_ffff, 0xc_0000, 0xc_0001, 0xc_0002, 0x500,
    0x501, 0xf_fffe, 0xf_ffff,
];
/// Frames of memory: more than there are pages at first.
pub(super) const FRAMES: u32 = 20;
/// Bytes of memory.
pub(super) const MEMORY: u32 = FRAMES * PAGE_SIZE;

/// Flat code and data, for the levels 0, 1 and 3.
const FLAT: [u64; 7] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_bb00_0000_ffff,
    0x00cf_b300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
];

/// The selector of flat code; that of flat data is 8 more.
pub(super) fn flat_code(level: u16) -> u16 {
    level + 8 * [1, 3, 3, 5][usize::from(level & 3)]
}

/// A page table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    pub(super) present: bool,
    pub(super) writable: bool,
    pub(super) user: bool,
    /// May be written, but the first write is to be told.
    pub(super) clean: bool,
    /// It may lie behind the end of memory.
    pub(super) frame: u32,
}

/// What the Switcher asks.
pub(super) struct World {
    pages: [Page; PAGES.len()],
    descriptors: Vec<u64>,
    kicker: Kicker,
    questions: u32,
    /// How many of them there are from kick to kick.
    kick: u32,
    /// No kicks for now: one for each question would let the guest never get on.
    pub(super) quiet: bool,
    ahead: bool,
    /// Faults answered since the guest was entered.
    pub(super) refused: Vec<PageFault>,
    /// Frames that somebody has had the right to write.
    touched: [bool; FRAMES as usize],
}

impl Environment for World {
    fn translate(
        &mut self,
        address: GuestVirt,
        access: Access,
        user: bool,
    ) -> Result<Mapping, PageFault> {
        self.questions += 1;
        if !self.quiet && self.kick != 0 && self.questions.is_multiple_of(self.kick) {
            self.kicker.kick();
        }
        let write = access == Access::Write;
        let index = PAGES.iter().position(|&page| page == address.page_number());
        let page = index.map(|index| (index, self.pages[index])).filter(|(_, page)| page.present);
        let error = u32::from(page.is_some()) | u32::from(write) << 1 | u32::from(user) << 2;
        let allowed = |page: &Page| (page.writable || !write) && (page.user || !user);
        let Some((index, _)) = page.filter(|(_, page)| allowed(page)) else {
            let fault = PageFault { address, error };
            self.refused.push(fault);
            return Err(fault);
        };
        if write {
            self.pages[index].clean = false;
        }
        Ok(self.mapping(index))
    }

    fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, PageFault> {
        Ok(self.descriptors.get(usize::from(selector / 8)).copied())
    }
}

impl World {
    pub(super) fn new(case: &Case, kicker: Kicker, disturbance: Option<&Disturbance>) -> Self {
        let plain = |index| Page {
            present: true,
            writable: true,
            user: PAGES[index] < 0xc_0000,
            clean: false,
            frame: index as u32,
        };
        let mut pages = std::array::from_fn(plain);
        for &(index, page) in &case.pages {
            pages[index] = page;
        }
        Self {
            pages,
            descriptors: [&FLAT[..], &case.descriptors].concat(),
            kicker,
            questions: 0,
            kick: disturbance.map_or(0, |disturbance| disturbance.kick),
            quiet: false,
            ahead: disturbance.is_some_and(|disturbance| disturbance.ahead),
            refused: Vec::new(),
            touched: [false; FRAMES as usize],
        }
    }

    /// What may be mapped of a page that is present; with its neighbours, if that is asked for.
    pub(super) fn mapping(&self, index: usize) -> Mapping {
        let page = self.pages[index];
        let follows = |&next: &usize| {
            let distance = (next - index) as u32;
            let expected = Page { frame: page.frame + distance, ..page };
            self.pages.get(next) == Some(&expected) && PAGES[next] == PAGES[index] + distance
        };
        let more = (index + 1..).take_while(follows).count() as u32;
        Mapping {
            virt: GuestVirt(PAGES[index] * PAGE_SIZE),
            phys: GuestPhys(page.frame * PAGE_SIZE),
            pages: if self.ahead { 1 + more } else { 1 },
            writable: page.writable && !page.clean,
            user: page.user,
        }
    }

    /// A page that lies behind the end of memory.
    pub(super) fn shows_nothing(&self, at: GuestVirt) -> bool {
        let index = PAGES.iter().position(|&page| page == at.page_number());
        index.is_some_and(|index| self.pages[index].frame >= FRAMES)
    }

    pub(super) fn page(&self, index: usize) -> Page {
        self.pages[index]
    }

    pub(super) fn set_page(&mut self, index: usize, page: Page) {
        self.pages[index] = page;
    }

    /// A descriptor as a code segment of `level`, if it is one.
    pub(super) fn code_segment(&self, selector: u16, level: u16) -> Option<Segment> {
        let descriptor = self.descriptors.get(usize::from(selector / 8))?;
        let segment = Segment::from_descriptor(selector & !7 | level, *descriptor);
        let conforming = segment.attributes & 4 != 0;
        let fits =
            if conforming { segment.dpl() <= level as u8 } else { segment.dpl() == level as u8 };
        (segment.is_usable() && segment.is_code() && fits).then_some(segment)
    }

    /// Notes which frames may be written from now on, at this level.
    pub(super) fn note_rights(&mut self, user: bool) {
        for page in self.pages {
            if page.present && page.writable && (page.user || !user) {
                self.touch(page.frame);
            }
        }
    }

    fn touch(&mut self, frame: u32) {
        if let Some(touched) = self.touched.get_mut(frame as usize) {
            *touched = true;
        }
    }

    /// Writes memory by virtual address, as a device would that knows where it lies. What isn't there is left out.
    pub(super) fn store(&mut self, memory: &GuestMemory, at: u32, bytes: &[u8]) {
        for (at, &byte) in (0..).map(|i| at.wrapping_add(i)).zip(bytes) {
            if let Some(index) = PAGES.iter().position(|&page| page == at / PAGE_SIZE) {
                let frame = self.pages[index].frame;
                let _ = memory.write_u8(GuestPhys(frame * PAGE_SIZE + at % PAGE_SIZE), byte);
                self.touch(frame);
            }
        }
    }

    /// Checks that no frame has changed which nobody had the right to write.
    pub(super) fn check_untouched(&self, before: &[u8], after: &[u8]) {
        let frames = before.chunks(PAGE_SIZE as usize).zip(after.chunks(PAGE_SIZE as usize));
        for (frame, (before, after)) in frames.enumerate() {
            assert!(self.touched[frame] || before == after, "frame {frame} was written to");
        }
    }
}
