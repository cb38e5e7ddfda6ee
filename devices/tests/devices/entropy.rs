//! Randomness, as much as fits.

use crate::driver::Guest;
use lguest_devices::virtio::entropy::entropy;

#[test]
fn buffers_are_filled() {
    let mut guest = Guest::new(vec![entropy()]);
    assert_eq!(guest.config_read(1, 0, 4), 0x1044_1af4);
    let queue = &mut guest.start(1, 0)[0];
    let head = queue.add(&[(0x4_0000, 40, true), (0x4_1000, 24, true)]);
    guest.ring_if_wanted(1, queue);
    assert_eq!(guest.wait(1, queue), (head, 64));
    let bytes = [guest.bytes(0x4_0000, 40), guest.bytes(0x4_1000, 24)].concat();
    assert!(bytes.chunks(8).all(|eight| eight != [0; 8]));
    assert_eq!(guest.bytes(0x4_0028, 8), [0; 8]);
}

#[test]
fn whoever_asks_for_too_much_gets_less() {
    let mut guest = Guest::new(vec![entropy()]);
    let queue = &mut guest.start(1, 0)[0];
    let head = queue.add(&[(0, 0x1_0000, true); 8]);
    guest.ring_if_wanted(1, queue);
    assert_eq!(guest.wait(1, queue), (head, 4096));
    let nothing = queue.add(&[(0, 8, false)]);
    guest.ring_if_wanted(1, queue);
    assert_eq!(guest.wait(1, queue), (nothing, 0));
}
