//! The guest's memory, as the crates that know virtio's rings want to see it.
//!
//! They bring their own way to map and access memory, which is as careful as ours. So the files behind the guest's memory are
//! mapped once more, for all its devices together. One thing they can't know: a write may hit code that was translated. But they
//! keep accounts of what was written, for those who move guests between machines, and our account book passes each
//! entry on at once.

use lguest_switcher::{GuestMemory, GuestPhys};
use rustix::mm::{MapFlags, ProtFlags};
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The guest's memory, mapped once more.
pub(crate) type MappedMemory = GuestMemoryMmap<Writes>;

/// A guest's memory for its devices. Clones share it.
#[derive(Clone, Debug)]
pub struct DeviceMemory(Arc<MappedMemory>);

impl DeviceMemory {
    /// Maps a guest's memory for its devices. Addresses stay what they are.
    ///
    /// # Errors
    /// What the system says when it has no descriptors or address space to give.
    pub fn new(memory: &Arc<GuestMemory>) -> io::Result<Self> {
        let mut regions = Vec::new();
        for range in memory.ranges() {
            let file = File::from(range.file.try_clone_to_owned()?);
            let writes = Writes { memory: Arc::clone(memory), start: range.start };
            let mapping = MmapRegionBuilder::new_with_bitmap(range.bytes as usize, writes)
                .with_file_offset(FileOffset::new(file, range.offset))
                .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits() as i32)
                .with_mmap_flags(MapFlags::SHARED.bits() as i32)
                .build()
                .map_err(io::Error::other)?;
            let start = GuestAddress(range.start.0.into());
            regions.extend(GuestRegionMmap::new(mapping, start));
        }
        let regions = MappedMemory::from_regions(regions).map_err(io::Error::other)?;
        Ok(Self(Arc::new(regions)))
    }

    pub(crate) fn mapped(&self) -> &MappedMemory {
        &self.0
    }
}

/// The account book of a region of memory: it keeps nothing, but tells the guest's memory of each write.
pub(crate) struct Writes {
    memory: Arc<GuestMemory>,
    start: GuestPhys,
}

/// A page of the account book: that of a part of the region.
#[derive(Clone, Copy)]
pub(crate) struct WritesFrom<'a> {
    memory: &'a GuestMemory,
    start: GuestPhys,
}

impl<'a> WithBitmapSlice<'a> for Writes {
    type S = WritesFrom<'a>;
}

impl Bitmap for Writes {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> WritesFrom<'_> {
        WritesFrom { memory: &self.memory, start: self.start }.slice_at(offset)
    }
}

impl WithBitmapSlice<'_> for WritesFrom<'_> {
    type S = Self;
}

impl BitmapSlice for WritesFrom<'_> {}

impl Bitmap for WritesFrom<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.memory.note_write(self.slice_at(offset).start, len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        // Offsets are inside a region, and regions inside the 32-bit space.
        Self { start: self.start.wrapping_add(offset as u32), ..*self }
    }
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writes({})", self.start)
    }
}

impl fmt::Debug for WritesFrom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WritesFrom({})", self.start)
    }
}
