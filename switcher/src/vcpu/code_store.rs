//! What has been translated, and from where.
//!
//! Translated code is kept by page: one [`CodePage`] for a virtual page, the frame it was read
//! from, and what the translation assumed, since all of these went into the code. A page of code
//! lives and dies whole: when its frame is written to, when one of its instructions is to be
//! reached another way, or when the cache is full.
//!
//! An instruction that runs over the end of its page is a *straddler*: it depends on two frames, so it
//! belongs to no page. Other code finds it in the jump table alone, which forgets it when either page may be another.

use super::fetches::CodeId;
use crate::execute::SetupError;
use crate::execute::code_cache::{CacheFull, CodeCache};
use crate::execute::host_map::HostMap;
use crate::translate::{Assumptions, Unit, runtime};
use std::collections::HashMap;

/// Instruction starts in a page.
const OFFSETS: usize = 4096;

/// The owner of straddlers in the host map.
const NO_PAGE: u32 = u32::MAX;

/// What a page of code was translated from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct PageKey {
    /// Number of the virtual page.
    pub(super) page: u32,
    /// Number of the frame.
    pub(super) frame: u32,
    pub(super) assumptions: Assumptions,
    pub(super) segment: CodeSegment,
}

/// What of the code segment goes into the code: eip counts from its base, up to its limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct CodeSegment {
    pub(super) base: u32,
    pub(super) limit: u32,
}

impl CodeSegment {
    /// All 4 GiB.
    pub(super) const FLAT: Self = Self { base: 0, limit: u32::MAX };
}

/// The translated code of one page.
struct CodePage {
    key: PageKey,
    /// For each byte of the page the cache offset of the instruction that starts there, or 0.
    at: Box<[u32; OFFSETS]>,
}

/// A translated straddler.
struct Straddler {
    /// The frame that holds its last bytes.
    last_frame: u32,
    at: u32,
}

/// What is known of a frame that translated code was read from.
#[derive(Default)]
struct CodeFrame {
    /// The frame's version in [`GuestMemory`](crate::GuestMemory) when it was read.
    version: u32,
    pages: Vec<CodeId>,
}

/// All translated code.
pub(super) struct CodeStore {
    pub(super) cache: CodeCache,
    pub(super) map: HostMap,
    pages: Vec<Option<CodePage>>,
    free: Vec<CodeId>,
    by_key: HashMap<PageKey, CodeId>,
    straddlers: HashMap<(u32, PageKey), Straddler>,
    frames: HashMap<u32, CodeFrame>,
    drops: u64,
}

/// Code that is gone: who still knows of it must forget it.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Pages of code, and the virtual page of each.
    pub(super) pages: Vec<(CodeId, u32)>,
    /// The virtual pages in which straddlers began.
    pub(super) straddlers: Vec<u32>,
}

impl CodeStore {
    pub(super) fn new(bytes: u32) -> Result<Self, SetupError> {
        Ok(Self {
            cache: CodeCache::new(bytes, &runtime())?,
            map: HostMap::default(),
            pages: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            straddlers: HashMap::new(),
            frames: HashMap::new(),
            drops: 0,
        })
    }

    /// Cache offset of the instruction at linear address `linear`, if it has been translated in
    /// page `id`.
    pub(super) fn at(&self, id: CodeId, linear: u32) -> Option<u32> {
        let page = self.pages.get(id.0 as usize)?.as_ref()?;
        Some(page.at[linear as usize % OFFSETS]).filter(|&at| at != 0)
    }

    /// Whether page `id` was translated for `segment`.
    pub(super) fn is_for(&self, id: CodeId, segment: CodeSegment) -> bool {
        let page = self.pages.get(id.0 as usize).and_then(Option::as_ref);
        page.is_some_and(|page| page.key.segment == segment)
    }

    /// The page of code for `key`, new if need be.
    pub(super) fn page(&mut self, key: PageKey) -> CodeId {
        if let Some(&id) = self.by_key.get(&key) {
            return id;
        }
        let page = Some(CodePage { key, at: Box::new([0; OFFSETS]) });
        let id = match self.free.pop() {
            Some(id) => {
                self.pages[id.0 as usize] = page;
                id
            }
            None => {
                self.pages.push(page);
                CodeId(self.pages.len() as u32 - 1)
            }
        };
        self.by_key.insert(key, id);
        self.frames.entry(key.frame).or_default().pages.push(id);
        id
    }

    /// Puts a unit into the cache, as part of page `id`.
    pub(super) fn place(&mut self, id: CodeId, unit: &Unit) -> Result<(), CacheFull> {
        self.cache.place(&unit.hot, &unit.cold)?;
        self.map.append(&unit.points, id.0);
        if let Some(page) = self.pages.get_mut(id.0 as usize).and_then(Option::as_mut) {
            for point in unit.points.iter().filter(|point| point.entry) {
                let linear = point.eip.wrapping_add(page.key.segment.base);
                page.at[linear as usize % OFFSETS] = point.host;
            }
        }
        Ok(())
    }

    /// Puts a straddler into the cache; `key` is that of its first page. Its cache offset comes back.
    pub(super) fn place_straddler(
        &mut self,
        eip: u32,
        key: PageKey,
        last_frame: u32,
        unit: &Unit,
    ) -> Result<u32, CacheFull> {
        let at = unit.points.first().map_or(self.cache.cursors().0, |point| point.host);
        self.cache.place(&unit.hot, &unit.cold)?;
        self.map.append(&unit.points, NO_PAGE);
        self.straddlers.insert((eip, key), Straddler { last_frame, at });
        for frame in [key.frame, last_frame] {
            self.frames.entry(frame).or_default();
        }
        Ok(at)
    }

    /// Whether there is a translated straddler at `eip`.
    pub(super) fn has_straddler(&self, eip: u32, key: PageKey) -> bool {
        self.straddlers.contains_key(&(eip, key))
    }

    /// Cache offset of the straddler at `eip`, if its last bytes were read from `last_frame`.
    pub(super) fn straddler(&self, eip: u32, key: PageKey, last_frame: u32) -> Option<u32> {
        let straddler = self.straddlers.get(&(eip, key))?;
        (straddler.last_frame == last_frame).then_some(straddler.at)
    }

    /// Notes the version that a frame had when it was read.
    pub(super) fn set_version(&mut self, frame: u32, version: u32) {
        self.frames.entry(frame).or_default().version = version;
    }

    /// The frames whose version isn't what it was when they were read; it's known if only one can be.
    pub(super) fn stale_frames(&self, only: Option<u32>, version: impl Fn(u32) -> u32) -> Vec<u32> {
        let stale = |frame: u32, known: &CodeFrame| known.version != version(frame);
        if let Some(frame) = only {
            let known = self.frames.get(&frame);
            return known.filter(|known| stale(frame, known)).map(|_| frame).into_iter().collect();
        }
        let all = self.frames.iter().filter(|&(&frame, known)| stale(frame, known));
        all.map(|(&frame, _)| frame).collect()
    }

    /// Drops all code of the virtual page `page` that was read from `frame`, and the straddlers
    /// that begin there.
    pub(super) fn drop_page(&mut self, page: u32, frame: u32) -> Dropped {
        let known = self.frames.get(&frame);
        let ids = known.map_or_else(Vec::new, |known| known.pages.clone());
        let of_page = |id: &CodeId| {
            let there = self.pages.get(id.0 as usize).and_then(Option::as_ref);
            there.is_some_and(|there| there.key.page == page)
        };
        let ids = ids.into_iter().filter(of_page).collect();
        self.drop_these(ids, |key, _| (key.page, key.frame) == (page, frame))
    }

    /// The frames that code of the virtual page `page` was read from.
    pub(super) fn frames_of(&self, page: u32) -> Vec<u32> {
        let keys = self.by_key.keys().filter(|key| key.page == page);
        let mut frames: Vec<u32> = keys.map(|key| key.frame).collect();
        frames.sort_unstable();
        frames.dedup();
        frames
    }

    /// Drops all code that was read from `frame`.
    pub(super) fn drop_frame(&mut self, frame: u32) -> Dropped {
        let ids = self.frames.remove(&frame).unwrap_or_default().pages;
        self.drop_these(ids, |key, last_frame| key.frame == frame || last_frame == frame)
    }

    /// Drops pages of code, and the straddlers that `goes` says it of, by their first page and their last frame.
    fn drop_these(&mut self, ids: Vec<CodeId>, goes: impl Fn(&PageKey, u32) -> bool) -> Dropped {
        self.drops += 1;
        let straddlers = self
            .straddlers
            .extract_if(|(_, key), straddler| goes(key, straddler.last_frame))
            .map(|((_, key), _)| key.page)
            .collect();
        Dropped { pages: ids.into_iter().filter_map(|id| self.drop_id(id)).collect(), straddlers }
    }

    fn drop_id(&mut self, id: CodeId) -> Option<(CodeId, u32)> {
        let page = self.pages.get_mut(id.0 as usize)?.take()?;
        self.by_key.remove(&page.key);
        self.free.push(id);
        if let Some(frame) = self.frames.get_mut(&page.key.frame) {
            frame.pages.retain(|&there| there != id);
        }
        Some((id, page.key.page))
    }

    /// Drops everything, and returns the frames it was read from.
    pub(super) fn drop_all(&mut self) -> Vec<u32> {
        self.drops += 1;
        self.cache.reset(&runtime());
        self.map.clear();
        self.pages.clear();
        self.free.clear();
        self.by_key.clear();
        self.straddlers.clear();
        self.frames.drain().map(|(frame, _)| frame).collect()
    }

    /// Changes whenever code is dropped: while it stays, cache offsets stay what they were.
    pub(super) fn drops(&self) -> u64 {
        self.drops
    }
}
