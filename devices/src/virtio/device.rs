//! A device on a bus: at rest, or at work.

use crate::virtio::memory::DeviceMemory;
use crate::virtio::model::{ConfigWrites, Kind, Model, Version, Work};
use crate::virtio::queue::{Broken, Calls, Driver, RingSetup, Rings};
use crate::virtio::worker::Worker;
use std::io;
use std::sync::Arc;

/// A device, as its bus holds it, on the thread of the virtual CPU.
pub(crate) struct Device {
    pub(crate) kind: Kind,
    pub(crate) features: u64,
    /// The greatest lengths of its queues.
    pub(crate) queues: &'static [u16],
    pub(crate) config: Vec<u8>,
    config_writes: Option<Box<dyn ConfigWrites>>,
    memory: DeviceMemory,
    /// Here while the device rests, with its worker while it works.
    work: Option<Box<dyn Work>>,
    worker: Option<Worker>,
}

impl Device {
    pub(crate) fn new(model: Model, memory: DeviceMemory) -> Self {
        Self {
            kind: model.kind,
            features: model.features,
            queues: model.queues,
            config: model.config,
            config_writes: model.config_writes,
            memory,
            work: Some(model.work),
            worker: None,
        }
    }

    /// Fills `into` from the configuration; past its end there is nothing but zeros.
    pub(crate) fn read_config(&self, offset: usize, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }

    pub(crate) fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(writes) = &mut self.config_writes {
            writes.written(offset, bytes);
        }
    }

    /// The driver is ready: from here on its rings are served, on another thread.
    pub(crate) fn start(
        &mut self,
        version: Version,
        features: u64,
        setups: &[Option<RingSetup>],
        driver: Arc<dyn Driver>,
    ) -> Result<(), Broken> {
        let calls = Arc::new(Calls::new()?);
        let rings = Rings::new(&self.memory, setups, features, &driver, &calls)?;
        let mut work = self.work.take().ok_or_else(|| io::Error::other("its thread is lost"))?;
        work.begin(version, features);
        self.worker = Some(Worker::start(self.kind, work, rings, driver, calls)?);
        Ok(())
    }

    pub(crate) fn works(&self) -> bool {
        self.worker.is_some()
    }

    /// The driver has rung. Before it is ready, that means nothing.
    pub(crate) fn ring(&self) {
        if let Some(worker) = &self.worker {
            worker.ring();
        }
    }

    /// The device as it was before it was put on a bus. `None` when its thread died with its work.
    pub(crate) fn into_model(mut self) -> Option<Model> {
        self.reset();
        Some(Model {
            kind: self.kind,
            features: self.features,
            queues: self.queues,
            config: std::mem::take(&mut self.config),
            config_writes: self.config_writes.take(),
            work: self.work.take()?,
        })
    }

    /// Ends all work: when this returns, the device touches no memory any more.
    pub(crate) fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.work = Some(worker.stop());
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.reset();
    }
}
