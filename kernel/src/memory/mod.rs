//! Memory: frames, the kernel's own map and heap, and processes' address spaces.
//!
//! [`frames`] gives out physical memory a page at a time. [`kernel_map`] replaces the launcher's
//! page tables by the kernel's. [`page_tables`] are a process's; [`address_space`] adds what they
//! are meant to hold ([`shared_pages`] are for programs), and [`page_faults`] brings the two together. [`user_memory`] is how the
//! kernel touches what belongs to a process.

pub(crate) mod address_space;
pub(crate) mod frames;
pub(crate) mod heap;
pub(crate) mod kernel_map;
pub(crate) mod layout;
pub(crate) mod page_faults;
pub(crate) mod page_tables;
pub(crate) mod shared_pages;
pub(crate) mod user_memory;
