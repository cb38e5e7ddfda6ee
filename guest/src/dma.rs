//! DMA: sending bytes out of the guest, and offering memory for bytes that come in.
//!
//! See [`lguest_abi::dma`] for how buffers are described. A *key* names who is meant: a device's
//! driver knows its device's.

pub use crate::lguest::dma::{bind_dma, send_dma, unbind_dma};
