//! What user code sees against what it may: it uses pages at random, in several address spaces, and so does its kernel; in between page
//! tables change, and calls tell of that, or don't.
//!
//! `paging_model` has the rules, `puppet` the guest that does it. Here is what is done. A seed does the same each time; where something is
//! wrong, all that was done until then is printed.

mod paging_model;
mod puppet;
mod random;
mod tiny_guest;

use lguest_abi::address::{Phys, Virt};
use lguest_abi::hypercall::{FlushScope, Hypercall};
use lguest_host::{End, Generation, GuestMemory};
use paging_model::*;
use puppet::*;
use random::Random;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tiny_guest::*;

/// Address spaces; and a crowd of them, more than the Host keeps.
const SPACES: usize = 3;
const CROWD: usize = 36;
/// Each is visited at first, for a switch and some accesses.
const STAY: usize = 4;
const STEPS: usize = 350;
const SEEDS: u64 = 40;
/// What page table entries have for flags; bits 9 and 11 mean nothing.
const ENTRY_FLAGS: [u32; 20] = [
    0x67, 0x67, 0x67, 0x67, 0x27, 0x27, 0x07, 0x07, 0x47, 0x65, 0x25, 0x05, 0x63, 0x23, 0x03, 0x21,
    0x61, 0x267, 0x827, 0x66,
];
/// And those above.
const TABLE_FLAGS: [u32; 12] =
    [0x67, 0x67, 0x67, 0x27, 0x27, 0x07, 0x07, 0x47, 0x65, 0x25, 0x63, 0x66];
/// What is taken from an entry that stays otherwise: dirty, accessed, both; the right to write, users' right; that it is there.
const TAKEN: [u32; 6] = [0x40, 0x20, 0x60, 2, 4, 1];

/// One guest's run.
struct Play {
    model: Model,
    random: Random,
    /// The space and the page that most of it is about for a while.
    focus: (usize, usize),
    /// What is left of a tour through all spaces.
    tour: Range<usize>,
    last: Option<Command>,
    values: u32,
    history: Vec<String>,
    failure: Option<String>,
}

impl Play {
    /// Judges what came of the last order, and gives the next.
    fn next(&mut self, memory: &GuestMemory, report: Option<Report>) -> Order {
        if let Some(report) = report {
            self.judge(memory, report);
        }
        let order = if self.failure.is_some() || self.history.len() >= STEPS {
            Order { stores: Vec::new(), command: Command::PowerOff }
        } else if let Some(stop) = self.tour.next() {
            let first = stop.is_multiple_of(STAY);
            let command = if first { self.switch(stop / STAY) } else { self.access() };
            Order { stores: Vec::new(), command }
        } else {
            self.choose()
        };
        self.history.push(format!("{order:x?}"));
        self.follow(&order);
        self.last = Some(order.command);
        order
    }

    fn judge(&mut self, memory: &GuestMemory, report: Report) {
        let changed = self.model.changed(memory);
        let right = match self.last {
            Some(Command::Access(access)) => {
                if let Some(history) = self.history.last_mut() {
                    history.push_str(&format!(" -> {report:x?}, {changed:x?}"));
                }
                let allowed = self.model.may_come_to(&access);
                let right = allowed.contains(&(report, changed.clone()));
                if right { Ok(()) } else { Err(format!("allowed: {allowed:x?}")) }
            }
            _ if changed.is_empty() => Ok(()),
            _ => Err(format!("changed: {changed:x?}")),
        };
        self.failure = right.err();
        self.model.follow(changed);
    }

    /// The model does what the guest is about to do, accesses excepted.
    fn follow(&mut self, order: &Order) {
        let model = &mut self.model;
        model.store(&order.stores);
        match order.command {
            Command::Access(_) | Command::PowerOff => {}
            Command::FlipCr0(_) => model.write_protect ^= true,
            Command::LoadCr3(root) => {
                model.current = space_of(model, root);
                everything(model);
            }
            Command::Invlpg(address) => model.forget(model.current, page_of(model, address)),
            Command::Call(call) => follow_call(model, call),
        }
        model.remember();
    }

    fn choose(&mut self) -> Order {
        if self.random.once_in(12) {
            let (space, page) =
                (self.random.below(self.model.spaces as u32), self.random.below(PAGES as u32));
            self.focus = (space as usize, page as usize);
        }
        let stores = match self.random.below(10) {
            0..6 => Vec::new(),
            6..9 => vec![self.change()],
            _ => vec![self.change(), self.change()],
        };
        let tell = if stores.is_empty() { self.random.once_in(4) } else { !self.random.once_in(5) };
        let command = if tell { self.tell(&stores) } else { self.access() };
        Order { stores, command }
    }

    fn space(&mut self) -> usize {
        if self.random.once_in(2) {
            self.focus.0
        } else {
            self.random.below(self.model.spaces as u32) as usize
        }
    }

    fn page(&mut self) -> usize {
        if self.random.once_in(2) { self.focus.1 } else { self.random.below(PAGES as u32) as usize }
    }

    fn access(&mut self) -> Command {
        let page = self.page();
        let user = !self.random.once_in(5);
        let what = self.random.of(&[Use::Read, Use::Write, Use::Add, Use::Execute]);
        let what = if user || what != Use::Execute { what } else { Use::Read };
        let place = if what == Use::Execute { CODE_WORD - 1 } else { self.random.of(&PLACES) };
        self.values += 1;
        let address = self.model.address(page) + place;
        Command::Access(Access { user, what, address, value: self.values })
    }

    /// A word to store, and where.
    fn change(&mut self) -> (u32, u32) {
        let (space, page) = (self.space(), self.page());
        let slot = page as u32 / 3 % 2;
        let choice = self.random.below(CHOICES);
        match self.random.below(12) {
            0 if self.model.wide => {
                let entry = self.model.middle(choice) | u32::from(!self.random.once_in(6));
                (self.model.pointer(space).0, entry)
            }
            0..3 => match self.model.above(space, slot) {
                Some(at) if self.random.once_in(3) => (at, self.less(at)),
                Some(at) => (at, self.model.table(slot, choice) | self.random.of(&TABLE_FLAGS)),
                None => (self.model.pointer(space).0, self.model.middle(choice) | 1),
            },
            _ => {
                let at = match self.model.entries(space, page) {
                    Some([_, (at, _)]) => at,
                    None => self.model.entry(self.model.table(slot, choice), page),
                };
                let value = if self.random.once_in(3) { self.less(at) } else { self.value(page) };
                (at, value)
            }
        }
    }

    /// What is there, without something.
    fn less(&mut self, at: u32) -> u32 {
        self.model.word(at) & !self.random.of(&TAKEN)
    }

    /// An entry for a page. Often neighbours are in frames that are neighbours.
    fn value(&mut self, page: usize) -> u32 {
        let number =
            if self.random.once_in(2) { page as u32 } else { self.random.below(FRAME_COUNT) };
        frame(number) | self.random.of(&ENTRY_FLAGS)
    }

    /// Tells of changes, or of something else.
    fn tell(&mut self, stores: &[(u32, u32)]) -> Command {
        let touched = self.touched(stores);
        if !touched.is_empty() && self.random.once_in(2) {
            let (space, page, above) = self.random.of(&touched);
            return match above {
                true => self.set_pmd(space, page as u32 / 3),
                false if self.random.once_in(5) => Command::Invlpg(self.model.address(page)),
                false => self.set_pte(space, page, stores),
            };
        }
        let (space, page) = (self.space(), self.page());
        match self.random.below(12) {
            0 => self.set_pte(space, page, stores),
            1 => self.set_pmd(space, page as u32 / 3 % 2),
            2..4 => Command::Call(FLUSH_USER),
            4 => Command::Call(FLUSH_ALL),
            5 => Command::Invlpg(self.model.address(page)),
            6 => Command::LoadCr3(self.model.root(space)),
            7 => Command::FlipCr0(WP),
            _ => self.switch(space),
        }
    }

    /// Pages of which an entry is stored, and whether it is that above.
    fn touched(&self, stores: &[(u32, u32)]) -> Vec<(usize, usize, bool)> {
        let pages =
            (0..self.model.spaces).flat_map(|space| (0..PAGES).map(move |page| (space, page)));
        let entries = pages.filter_map(|(space, page)| {
            self.model.entries(space, page).map(|entries| (space, page, entries))
        });
        let levels = entries.flat_map(|(space, page, entries)| {
            [true, false]
                .into_iter()
                .zip(entries)
                .map(move |(above, (at, _))| (space, page, above, at))
        });
        let stored = levels.filter(|(.., at)| stores.iter().any(|(there, _)| there == at));
        stored.map(|(space, page, above, _)| (space, page, above)).collect()
    }

    fn switch(&self, space: usize) -> Command {
        let directory = Phys(self.model.root(space));
        Command::Call(Hypercall::NewPgtable { directory })
    }

    /// Nearly always what is in the table, or will be.
    fn set_pte(&mut self, space: usize, page: usize, stores: &[(u32, u32)]) -> Command {
        let there = self.model.entries(space, page).map(|[_, there]| there);
        let value = match there {
            Some((at, value)) if !self.random.once_in(12) => {
                stores.iter().rfind(|(there, _)| *there == at).map_or(value, |&(_, value)| value)
            }
            _ => self.value(page),
        };
        let (directory, address) = (Phys(self.model.root(space)), Virt(self.model.address(page)));
        Command::Call(Hypercall::SetPte { directory, address, value: value.into() })
    }

    fn set_pmd(&mut self, space: usize, slot: u32) -> Command {
        let directory = Phys(self.model.root(space));
        let index = self.model.slot_index(slot);
        Command::Call(match self.model.above(space, slot) {
            Some(at) if self.model.wide && !self.random.once_in(4) => {
                Hypercall::SetMiddle { table: Phys(at & !0xfff), index }
            }
            _ if self.model.wide => {
                Hypercall::SetPmd { directory, index: self.model.pointer(space).1 }
            }
            _ => Hypercall::SetPmd { directory, index },
        })
    }
}

const FLUSH_USER: Hypercall = Hypercall::FlushTlb { scope: FlushScope::User };
const FLUSH_ALL: Hypercall = Hypercall::FlushTlb { scope: FlushScope::All };

fn space_of(model: &Model, root: u32) -> usize {
    (0..model.spaces).find(|&space| model.root(space) == root).expect("one of our spaces")
}

fn page_of(model: &Model, address: u32) -> usize {
    (0..PAGES).find(|&page| model.address(page) == address).expect("one of our pages")
}

fn everything(model: &mut Model) {
    (0..model.spaces).for_each(|space| (0..PAGES).for_each(|page| model.forget(space, page)));
}

/// Which pages a call covers.
fn follow_call(model: &mut Model, call: Hypercall) {
    match call {
        Hypercall::NewPgtable { directory } => model.current = space_of(model, directory.0),
        Hypercall::FlushTlb { scope: FlushScope::User } => {
            (0..USER_PAGES).for_each(|page| model.forget(model.current, page));
        }
        Hypercall::FlushTlb { scope: FlushScope::All } => everything(model),
        Hypercall::SetPte { directory, address, value } => {
            let (space, page) = (space_of(model, directory.0), page_of(model, address.0));
            model.take(space, page, value as u32);
        }
        Hypercall::SetPmd { directory, index } => {
            let space = space_of(model, directory.0);
            for page in 0..USER_PAGES {
                if model.wide || model.slot_index(page as u32 / 3) == index {
                    model.forget(space, page);
                }
            }
        }
        Hypercall::SetMiddle { table, index } => {
            for (space, page) in
                (0..model.spaces).flat_map(|space| (0..USER_PAGES).map(move |page| (space, page)))
            {
                let slot = page as u32 / 3;
                let above = model.above(space, slot).map(|at| at & !0xfff);
                if above == Some(table.0) && model.slot_index(slot) == index {
                    model.forget(space, page);
                }
            }
        }
        _ => unreachable!("no other calls are made: {call:?}"),
    }
}

fn play(generation: Generation, wide: bool, crowd: bool, seed: u64) {
    let spaces = if crowd { CROWD } else { SPACES };
    let number = (seed + 1) << 32 | (generation as u64) << 8 | u64::from(wide);
    let guest = TinyGuest::of(generation);
    let guest = if wide { guest.wide() } else { guest };
    let mut model = Model::new(wide, spaces);
    model.lay_out(&guest);
    let play = Arc::new(Mutex::new(Play {
        model,
        random: Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        focus: (0, 0),
        tour: 0..spaces * STAY,
        last: None,
        values: 0x7700_0000,
        history: Vec::new(),
        failure: None,
    }));
    let director = Arc::clone(&play);
    let (end, guest) = puppet::run(
        guest,
        Box::new(move |memory, report| director.lock().expect("no panic").next(memory, report)),
    );
    let play = play.lock().expect("no panic");
    let spoilt = play.model.spoilt(&guest.memory);
    if play.failure.is_some() || end != End::PowerOff || spoilt.is_some() {
        panic!(
            "{generation}, wide {wide}, crowd {crowd}, seed {seed}: ended by {end:?}, spoilt {spoilt:x?}, {}\nafter {:#?}",
            play.failure.as_deref().unwrap_or("nothing else"),
            play.history
        );
    }
}

#[test]
fn the_first_generations_users_see_what_they_may() {
    (0..SEEDS).for_each(|seed| play(Generation::First, false, false, seed));
}

#[test]
fn users_of_two_levels_see_what_they_may() {
    for generation in [Generation::V2_6_24, Generation::V2_6_30, Generation::V4_0] {
        (0..SEEDS).for_each(|seed| play(generation, false, false, seed));
    }
}

#[test]
fn users_of_three_levels_see_what_they_may() {
    for generation in [Generation::V2_6_30, Generation::V4_0] {
        (0..SEEDS).for_each(|seed| play(generation, true, false, seed));
    }
}

#[test]
fn users_in_more_spaces_than_are_kept_see_what_they_may() {
    for wide in [false, true] {
        (0..SEEDS / 4).for_each(|seed| play(Generation::V2_6_30, wide, true, seed));
    }
}
