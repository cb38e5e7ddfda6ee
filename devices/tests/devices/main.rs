//! The devices, driven as a guest's drivers do: by accesses to their bus and by rings in memory.

mod console;
mod driver;
mod hostile;
mod pci;
mod rings;
