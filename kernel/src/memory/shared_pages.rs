//! Pages of programs that are only read: kept, and shown to each process that runs the program.
//!
//! A program that is started a second time is there already. And since its code stays where it is, so does what the Host made of
//! it: a processor (or a translator, more so) doesn't like pages that held code to be written.
//!
//! When memory runs out, what no process uses is given back.

use super::frames::Frame;
use super::page_tables::OutOfMemory;
use crate::interrupt_lock::InterruptLock;
use alloc::sync::Arc;
use alloc::vec::Vec;
use lguest_abi::Phys;
use lguest_kernel_logic::areas::PAGE;
use lguest_kernel_logic::program::Segment;

/// How many segments are kept.
const MAX_KEPT: usize = 32;

/// The pages of one segment.
#[derive(Debug)]
pub(crate) struct SharedPages {
    key: Key,
    frames: Vec<Frame>,
}

/// Tells segments apart: where in the archive their contents are, how many bytes, and how they lie in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    contents: usize,
    bytes: usize,
    offset: u32,
}

static KEPT: InterruptLock<Vec<Arc<SharedPages>>> = InterruptLock::new(Vec::new());

impl SharedPages {
    /// The pages of a segment, with zeros around its contents.
    pub(crate) fn of(segment: &Segment<'static>) -> Result<Arc<Self>, OutOfMemory> {
        let key = Key {
            contents: segment.contents.as_ptr().addr(),
            bytes: segment.contents.len(),
            offset: segment.address % PAGE,
        };
        let find = |kept: &mut Vec<Arc<Self>>| kept.iter().find(|pages| pages.key == key).cloned();
        if let Some(pages) = KEPT.with(find) {
            return Ok(pages);
        }
        let pages = Arc::new(Self { key, frames: copy(segment, key.offset)? });
        KEPT.with(|kept| {
            if kept.len() < MAX_KEPT {
                kept.push(pages.clone());
            }
        });
        Ok(pages)
    }

    /// Where each page is, in order.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Phys> {
        self.frames.iter().map(Frame::phys)
    }
}

/// A segment's contents in new frames.
fn copy(segment: &Segment<'_>, offset: u32) -> Result<Vec<Frame>, OutOfMemory> {
    let mut frames = Vec::new();
    let mut offset = offset as usize;
    let mut rest = segment.contents;
    while !rest.is_empty() {
        let mut frame = Frame::allocate_zeroed().ok_or(OutOfMemory)?;
        let (now, later) = rest.split_at(rest.len().min(PAGE as usize - offset));
        frame.bytes()[offset..][..now.len()].copy_from_slice(now);
        frames.push(frame);
        (offset, rest) = (0, later);
    }
    Ok(frames)
}

/// Gives back what no process uses. False when there was nothing.
pub(crate) fn give_back_unused() -> bool {
    let unused: Vec<_> =
        KEPT.with(|kept| kept.extract_if(.., |pages| Arc::strong_count(pages) == 1).collect());
    !unused.is_empty()
}
