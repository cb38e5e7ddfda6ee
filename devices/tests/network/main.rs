//! The networks, from the device's end: a guest's stack on one side and this process's sockets on the other.

mod addresses;
mod command_line;
mod datagrams;
mod forwards;
mod guest;
mod hostile;
mod silence;
mod socket;
mod streams;
mod tap;
