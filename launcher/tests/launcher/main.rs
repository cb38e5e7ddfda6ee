//! The launcher as its users see it: the library's public face, and the real command.

mod book;
mod command;
mod layout;
mod loader;
mod tiny_guest;
