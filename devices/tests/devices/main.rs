//! The devices, driven as a guest's drivers do: by accesses to their bus and by rings in memory.

mod block;
mod code;
mod console;
mod driver;
mod entropy;
mod hostile;
mod lguest_bus;
mod network;
mod pci;
mod rings;
mod work;
