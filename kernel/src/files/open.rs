//! What a process has opened: small numbers for files, directories and the console.

use alloc::vec::Vec;
use lguest_kernel_logic::archive::File;
use lguest_system_calls::Errno;

/// How many files a process can have open.
const MAX_OPEN: usize = 64;

/// What a number stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Open {
    /// The console: the keyboard, and the screen.
    Console,
    /// Where everything vanishes, and nothing comes from.
    Null,
    /// A file, or a directory, and how far it was read.
    File {
        /// Which.
        file: File<'static>,
        /// Bytes of a file, entries of a directory.
        position: u64,
    },
}

/// A process's open files. A number that is copied has a position of its own from then on.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    list: Vec<Option<Open>>,
}

impl OpenFiles {
    /// Standard input, output and errors, all on the console.
    pub(crate) fn on_console() -> Self {
        Self { list: alloc::vec![Some(Open::Console); 3] }
    }

    /// What a number stands for.
    pub(crate) fn get(&mut self, number: u32) -> Result<&mut Open, Errno> {
        self.list.get_mut(number as usize).and_then(Option::as_mut).ok_or(Errno::EBADF)
    }

    /// Gives something the lowest free number that is at least `lowest`.
    pub(crate) fn add(&mut self, open: Open, lowest: u32) -> Result<u32, Errno> {
        let lowest = lowest as usize;
        let free = (lowest..MAX_OPEN).find(|at| !matches!(self.list.get(*at), Some(Some(_))));
        let at = free.ok_or(Errno::EMFILE)?;
        self.put(at, open);
        Ok(at as u32)
    }

    /// Makes a number stand for something, whatever it stood for.
    pub(crate) fn replace(&mut self, number: u32, open: Open) -> Result<u32, Errno> {
        if number as usize >= MAX_OPEN {
            return Err(Errno::EBADF);
        }
        self.put(number as usize, open);
        Ok(number)
    }

    /// Frees a number.
    pub(crate) fn close(&mut self, number: u32) -> Result<(), Errno> {
        let place = self.list.get_mut(number as usize).ok_or(Errno::EBADF)?;
        place.take().map(drop).ok_or(Errno::EBADF)
    }

    fn put(&mut self, at: usize, open: Open) {
        if self.list.len() <= at {
            self.list.resize(at + 1, None);
        }
        self.list[at] = Some(open);
    }
}
