//! A kernel that is named on the command line, and perhaps what to take it for.

use crate::failure::Failure;
use lguest::{Generation, Kernel, ReadKernelError};
use std::path::Path;

/// Reads it.
pub(crate) fn read(path: &Path, abi: Option<Generation>) -> Result<Kernel, Failure> {
    let kernel = Kernel::read(path).map_err(Failure::Kernel)?;
    match abi {
        None => Ok(kernel),
        Some(generation) => kernel.with_generation(generation).map_err(|error| {
            Failure::Kernel(ReadKernelError::NoKernel { path: path.to_owned(), error })
        }),
    }
}
