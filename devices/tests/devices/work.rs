//! What a bus promises to a model's work.

use crate::driver::Guest;
use lguest_devices::virtio::entropy::entropy;
use lguest_devices::virtio::{Broken, Model, Rings, Version, Work};
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::mpsc::{Receiver, Sender, channel};

/// What happened to the work.
#[derive(PartialEq, Debug)]
pub(crate) enum Event {
    Began(Version, u64),
    Taken,
    /// Whether there was another chain after the order to stop.
    Stopped(bool),
}

/// Takes one chain, waits for the order to stop, and looks for another.
struct Patient(Sender<Event>);

impl Work for Patient {
    fn begin(&mut self, version: Version, features: u64) {
        self.0.send(Event::Began(version, features)).unwrap();
    }

    fn work(&mut self, rings: &mut Rings) -> Result<(), Broken> {
        if rings.ring(0).take()?.is_some() {
            assert!(!rings.stopping());
            self.0.send(Event::Taken).unwrap();
            poll(&mut [PollFd::new(&rings.stop_signal(), PollFlags::IN)], None).unwrap();
            assert!(rings.stopping());
            let another = rings.ring(0).take()?.is_some();
            self.0.send(Event::Stopped(another)).unwrap();
        }
        Ok(())
    }
}

/// A model with features 1 and 2, whose work tells of itself.
pub(crate) fn patient() -> (Model, Receiver<Event>) {
    let (events, told) = channel();
    (Model { features: 3, work: Box::new(Patient(events)), ..entropy() }, told)
}

#[test]
fn after_the_order_to_stop_there_are_no_chains() {
    let (model, told) = patient();
    let mut guest = Guest::new(vec![model]);
    for features in [0, 1, 3] {
        let queue = &mut guest.start(1, features)[0];
        assert_eq!(told.recv(), Ok(Event::Began(Version::One, 1 << 32 | features)));
        queue.add(&[(0x4_0000, 8, true)]);
        queue.add(&[(0x4_0000, 8, true)]);
        guest.ring(1, queue);
        assert_eq!(told.recv(), Ok(Event::Taken));
        guest.set_status(1, 0);
        // The reset has waited for it.
        assert_eq!(told.try_recv(), Ok(Event::Stopped(false)));
    }
    drop(guest);
    assert!(told.recv().is_err(), "and in the end it is gone");
}
