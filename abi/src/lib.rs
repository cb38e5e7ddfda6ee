//! The facts that lguest's Guest and Host share.
//!
//! A guest and its Host are built for different processors, by different people perhaps, and meet
//! only in memory and in four registers. Whatever both must agree on to the byte is written down
//! here, once: the numbers of the calls ([`hypercall`]), the page they share ([`lguest_data`]), how
//! buffers are described ([`dma`]), which devices there are ([`device`]), what lies in memory when
//! the guest starts ([`boot`]), and which segments and vectors it may count on ([`segments`],
//! [`traps`], [`paging`]). There is no behaviour in this crate beyond reading and writing those
//! forms, and the compiler checks each layout.
//!
//! Most of it is the first generation's interface, as it stood when the Guest was first documented in July
//! 2007, which the bundled kernel speaks; [`generation`] says what changed until 2017. All integers are little-endian, *physical* means guest-physical, a page is 4096 bytes.
//!
//! The story goes on in the crate `lguest-guest`, which makes the calls, and in `lguest-host`,
//! which answers them.

#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod boot;
pub mod device;
pub mod dma;
pub mod generation;
pub mod hypercall;
pub mod lguest_data;
pub mod paging;
pub mod segments;
pub mod traps;

pub use address::{Phys, Virt};
pub use dma::Dma;
pub use generation::Generation;
pub use hypercall::Hypercall;
pub use lguest_data::LguestData;
