//! The thread that does a device's work.
//!
//! It sleeps until the driver rings, the host has something for the device, or it is to stop. Whoever stops it waits for its end:
//! after a reset, a device must not touch the guest's memory any more.

use crate::virtio::model::{Kind, Work};
use crate::virtio::queue::{Broken, Calls, Driver, Rings};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// A device at work.
pub(crate) struct Worker {
    calls: Arc<Calls>,
    thread: JoinHandle<Box<dyn Work>>,
}

impl Worker {
    pub(crate) fn start(
        kind: Kind,
        mut work: Box<dyn Work>,
        mut rings: Rings,
        driver: Arc<dyn Driver>,
        calls: Arc<Calls>,
    ) -> io::Result<Self> {
        let called = Arc::clone(&calls);
        let thread = Builder::new().name(format!("virtio {kind}")).spawn(move || {
            if let Err(broken) = serve(&mut *work, &mut rings, &called) {
                driver.broken(&broken);
            }
            work
        })?;
        Ok(Self { calls, thread })
    }

    /// The driver has rung.
    pub(crate) fn ring(&self) {
        self.calls.ring();
    }

    /// Ends it, and gives back what it worked with.
    pub(crate) fn stop(self) -> Box<dyn Work> {
        self.calls.stop();
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Works until it is to stop.
fn serve(work: &mut dyn Work, rings: &mut Rings, calls: &Calls) -> Result<(), Broken> {
    while !calls.stopping() {
        // The bell is silenced before the rings are looked at: what comes later rings again.
        let _ = read(calls.bell(), &mut [0u8; 8]);
        work.work(rings)?;
        sleep(work, calls)?;
    }
    Ok(())
}

fn sleep(work: &dyn Work, calls: &Calls) -> io::Result<()> {
    let (bell, stop) = (calls.bell(), calls.stop_signal());
    let (bell, stop) = (PollFd::new(&bell, PollFlags::IN), PollFd::new(&stop, PollFlags::IN));
    let slept = match work.waits_for() {
        Some((fd, flags)) => poll(&mut [bell, stop, PollFd::new(&fd, flags)], None),
        None => poll(&mut [bell, stop], None),
    };
    match slept {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
