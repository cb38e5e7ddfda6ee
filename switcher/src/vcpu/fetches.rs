//! From virtual pages to translated code, for one world.
//!
//! The hardware has an instruction TLB; this is ours. It remembers which frame a page of code was
//! last fetched from, and where translated code for it is kept, so that finding the code at an eip
//! takes three loads. A page is forgotten when the embedder takes its mapping back.

use crate::translate::Assumptions;

/// Pages in 4 GiB.
const PAGES: usize = 1 << 20;

/// The number of a page of translated code: see [`super::code_store`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CodeId(pub(super) u32);

/// One page that code was fetched from.
#[derive(Clone, Copy)]
struct Fetch {
    page: u32,
    frame: u32,
    /// Its translated code, for each combination of `flat` and `pace`: one more than the
    /// [`CodeId`], 0 for none.
    code: [u32; 6],
}

/// All pages that code was fetched from.
pub(super) struct Fetches {
    /// For each page its position in `list` plus 1, or 0. Untouched parts cost no memory.
    index: Vec<u32>,
    list: Vec<Fetch>,
}

fn combination(assumptions: Assumptions) -> usize {
    usize::from(assumptions.flat) + 2 * assumptions.pace as usize
}

impl Fetches {
    pub(super) fn new() -> Self {
        Self { index: vec![0; PAGES], list: Vec::new() }
    }

    fn get(&self, page: u32) -> Option<&Fetch> {
        let position = self.index.get(page as usize)?.checked_sub(1)?;
        self.list.get(position as usize)
    }

    fn get_mut(&mut self, page: u32) -> Option<&mut Fetch> {
        let position = self.index.get(page as usize)?.checked_sub(1)?;
        self.list.get_mut(position as usize)
    }

    /// The frame that code at `page` is fetched from.
    pub(super) fn frame(&self, page: u32) -> Option<u32> {
        self.get(page).map(|fetch| fetch.frame)
    }

    /// The translated code of `page`.
    pub(super) fn code(&self, page: u32, assumptions: Assumptions) -> Option<CodeId> {
        let code = self.get(page)?.code[combination(assumptions)];
        code.checked_sub(1).map(CodeId)
    }

    /// Remembers that `page` shows `frame`.
    pub(super) fn insert(&mut self, page: u32, frame: u32) {
        self.remove(page);
        self.list.push(Fetch { page, frame, code: [0; 6] });
        self.index[page as usize] = self.list.len() as u32;
    }

    /// Remembers where the translated code of `page` is.
    pub(super) fn set_code(&mut self, page: u32, assumptions: Assumptions, code: CodeId) {
        if let Some(fetch) = self.get_mut(page) {
            fetch.code[combination(assumptions)] = code.0 + 1;
        }
    }

    /// The translated code `code` of `page` is gone. Says whether it was here.
    pub(super) fn drop_code(&mut self, page: u32, code: CodeId) -> bool {
        let Some(fetch) = self.get_mut(page) else { return false };
        let mut mine = fetch.code.iter_mut().filter(|there| **there == code.0 + 1);
        mine.next().is_some_and(|there| {
            *there = 0;
            true
        })
    }

    /// All translated code is gone.
    pub(super) fn drop_all_code(&mut self) {
        self.list.iter_mut().for_each(|fetch| fetch.code = [0; 6]);
    }

    /// Forgets a page. Says whether it was known.
    pub(super) fn remove(&mut self, page: u32) -> bool {
        let Some(position) = self.index[page as usize].checked_sub(1) else { return false };
        self.index[page as usize] = 0;
        self.list.swap_remove(position as usize);
        if let Some(moved) = self.list.get(position as usize) {
            self.index[moved.page as usize] = position + 1;
        }
        true
    }

    /// The known pages among `pages` pages from `page` on.
    pub(super) fn known_among(&self, page: u32, pages: u32) -> Vec<u32> {
        let inside = |candidate: &u32| candidate.wrapping_sub(page) < pages;
        if (pages as usize) < self.list.len() {
            (page..page.saturating_add(pages)).filter(|&page| self.get(page).is_some()).collect()
        } else {
            self.list.iter().map(|fetch| fetch.page).filter(inside).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::Pace;

    const FLAT: Assumptions = Assumptions { user: false, flat: true, pace: Pace::Free };
    const STEP: Assumptions = Assumptions { user: false, flat: true, pace: Pace::Step };

    #[test]
    fn each_page_keeps_its_frame_and_its_code() {
        let mut fetches = Fetches::new();
        fetches.insert(0, 7);
        fetches.insert(0xf_ffff, 8);
        fetches.insert(5, 9);
        fetches.set_code(5, FLAT, CodeId(0));
        fetches.set_code(0, STEP, CodeId(1));
        assert_eq!((fetches.frame(0xf_ffff), fetches.frame(1)), (Some(8), None));
        assert_eq!((fetches.code(5, FLAT), fetches.code(5, STEP)), (Some(CodeId(0)), None));
        assert!(fetches.remove(0) && !fetches.remove(0));
        assert_eq!((fetches.frame(5), fetches.frame(0xf_ffff)), (Some(9), Some(8)));
        assert!(!fetches.drop_code(5, CodeId(1)) && fetches.drop_code(5, CodeId(0)));
        assert_eq!(fetches.code(5, FLAT), None);
    }

    #[test]
    fn a_range_is_searched_from_either_side() {
        let mut fetches = Fetches::new();
        for page in [3, 8, 9, 100] {
            fetches.insert(page, page);
        }
        assert_eq!(fetches.known_among(8, 2), [8, 9]);
        let mut all = fetches.known_among(4, 1 << 20);
        all.sort_unstable();
        assert_eq!(all, [8, 9, 100]);
    }
}
