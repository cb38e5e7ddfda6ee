//! **Chance**: the guest asks for random bytes and gets the host's (section 5.4, Entropy Device).

use crate::virtio::model::{Kind, Model, Version, Work};
use crate::virtio::queue::{Broken, Rings};
use rustix::io::{Errno, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};

const QUEUES: [u16; 1] = [8];

/// A request gets no more than this: a device may give less than was asked for, and a buffer may be gigabytes.
const MOST: usize = 4096;

/// The device.
#[must_use]
pub fn entropy() -> Model {
    Model {
        kind: Kind::Entropy,
        features: 0,
        queues: &QUEUES,
        config: Vec::new(),
        config_writes: None,
        work: Box::new(EntropyWork),
    }
}

struct EntropyWork;

impl Work for EntropyWork {
    fn begin(&mut self, _version: Version, _features: u64) {}

    fn work(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        while let Some(mut chain) = rings.ring(0).take()? {
            let mut bytes = [0; MOST];
            let room = usize::try_from(chain.writable()).unwrap_or(MOST).min(MOST);
            fill(&mut bytes[..room]).map_err(std::io::Error::from)?;
            chain.write(&bytes[..room]);
            rings.ring(0).give_back(&chain)?;
        }
        Ok(())
    }
}

/// Fills `bytes` with the host's randomness.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        done += retry_on_intr(|| getrandom(&mut bytes[done..], GetRandomFlags::empty()))?;
    }
    Ok(())
}
