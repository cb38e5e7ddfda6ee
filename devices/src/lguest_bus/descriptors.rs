//! How the list of devices looks, in its two formats.
//!
//! In both it is a run of bytes without any alignment, ends with a type of 0, and has a place in each descriptor where the driver writes
//! its status. The [first](Format::Fields) has a series of tagged fields for everything else; the [later](Format::Records) one
//! has queues, features of both sides and configuration in this order, with how many of each at the front.

use crate::virtio::{Device, Kind, Version};
use lguest_switcher::{GuestMemory, GuestPhys};

/// How a guest wants the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Tagged fields: Linux 2.6.24.
    Fields,
    /// Records: Linux 2.6.25 to 3.19.
    Records,
}

/// Tags of fields.
const QUEUE: u8 = 2;
const BLOCK_CAPACITY: u8 = 0x41;
const BLOCK_SEGMENTS: u8 = 0x43;
const NETWORK_ADDRESS: u8 = 0x41;

/// What the list says of a queue.
pub(super) struct QueueRecord {
    pub(super) size: u16,
    pub(super) irq: u16,
    pub(super) page: u32,
}

impl QueueRecord {
    fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.size.to_le_bytes();
        let [c, d] = self.irq.to_le_bytes();
        let [e, f, g, h] = self.page.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

/// A device's descriptor in memory: where it is, and where in it the driver writes.
pub(super) struct Descriptor {
    pub(super) at: GuestPhys,
    status: GuestPhys,
    /// Four bytes, if there are any.
    driver_features: Option<GuestPhys>,
}

impl Format {
    /// Which virtio the guests speak that want this format.
    pub(super) fn version(self) -> Version {
        match self {
            Self::Fields => Version::First,
            Self::Records => Version::Legacy,
        }
    }

    /// A device's descriptor, to be written at `at`.
    pub(super) fn describe(
        self,
        at: GuestPhys,
        device: &Device,
        features: u32,
        queues: &[QueueRecord],
    ) -> (Descriptor, Vec<u8>) {
        match self {
            Self::Fields => fields(at, device, queues),
            Self::Records => records(at, device, features, queues),
        }
    }
}

fn fields(at: GuestPhys, device: &Device, queues: &[QueueRecord]) -> (Descriptor, Vec<u8>) {
    let mut fields = Vec::new();
    let mut field = |tag: u8, bytes: &[u8]| {
        fields.extend([tag, bytes.len() as u8]);
        fields.extend(bytes);
    };
    queues.iter().for_each(|queue| field(QUEUE, &queue.bytes()));
    match device.kind {
        Kind::Block => {
            field(BLOCK_CAPACITY, &device.config[..8]);
            field(BLOCK_SEGMENTS, &device.config[12..16]);
        }
        Kind::Network => field(NETWORK_ADDRESS, &device.config[..6]),
        Kind::Console | Kind::Entropy => {}
    }
    let head = [device.kind as u8, fields.len() as u8, 0];
    let descriptor = Descriptor { at, status: at.wrapping_add(2), driver_features: None };
    (descriptor, [&head[..], &fields].concat())
}

fn records(
    at: GuestPhys,
    device: &Device,
    features: u32,
    queues: &[QueueRecord],
) -> (Descriptor, Vec<u8>) {
    let host = features.to_le_bytes();
    let counts = [queues.len() as u8, host.len() as u8, device.config.len() as u8];
    let mut bytes = vec![device.kind as u8];
    bytes.extend(counts);
    bytes.push(0);
    bytes.extend(queues.iter().flat_map(QueueRecord::bytes));
    bytes.extend(host);
    let driver_features = at.wrapping_add(bytes.len() as u32);
    bytes.extend([0; 4]);
    bytes.extend(&device.config);
    let status = at.wrapping_add(4);
    (Descriptor { at, status, driver_features: Some(driver_features) }, bytes)
}

// What was written there can be read, so where these say "unless there is no memory" there always is.
impl Descriptor {
    /// How far the driver says that it has come.
    pub(super) fn status(&self, memory: &GuestMemory) -> u8 {
        memory.read_u8(self.status).unwrap_or(0)
    }

    /// The features the driver wants to use.
    pub(super) fn driver_features(&self, memory: &GuestMemory) -> u32 {
        let at = self.driver_features;
        at.and_then(|at| memory.read_u32(at).ok()).unwrap_or(0)
    }

    pub(super) fn clear_driver_features(&self, memory: &GuestMemory) {
        if let Some(at) = self.driver_features {
            let _ = memory.write_u32(at, 0);
        }
    }
}
