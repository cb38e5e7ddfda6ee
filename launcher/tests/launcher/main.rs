//! The launcher as its users see it: the library's public face, and the real command.

mod book;
mod bundled_guest;
mod bzimage;
mod command;
mod console;
mod dma_and_memory;
mod elf_file;
mod endings;
mod layout;
mod loader;
mod programs;
mod terminal;
mod tiny_guest;
