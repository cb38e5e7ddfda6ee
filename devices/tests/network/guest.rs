//! A guest for the networks' tests: smoltcp with an address of its own, at the device's end of a network.

use lguest_devices::network::{LONGEST_FRAME, Network, NetworkConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

/// No test takes as long; one that does hangs.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(crate) const HARDWARE: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

pub(crate) struct Guest {
    pub(crate) wire: Wire,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    began: std::time::Instant,
    next_port: u16,
}

impl Guest {
    /// A guest on that network, with its address and its way out.
    pub(crate) fn on(network: &str) -> Guest {
        let mut guest = Guest::without_address(network);
        guest.set_address(GUEST, 24, GATEWAY);
        guest
    }

    pub(crate) fn without_address(network: &str) -> Guest {
        let network = network.parse::<NetworkConfig>().unwrap().open().unwrap();
        let mut wire = Wire { network, waiting: VecDeque::new(), buffer: vec![0; LONGEST_FRAME] };
        let mut config = Config::new(HARDWARE.into());
        config.random_seed = 0x6775_6573_7400;
        Guest {
            interface: Interface::new(config, &mut wire, Instant::ZERO),
            wire,
            sockets: SocketSet::new(Vec::new()),
            began: std::time::Instant::now(),
            next_port: 40000,
        }
    }

    pub(crate) fn set_address(&mut self, address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, prefix))).unwrap();
        });
        self.interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
    }

    /// Another guest than the first.
    pub(crate) fn set_hardware(&mut self, number: u8) {
        let mut address = HARDWARE;
        address.0[5] = number;
        self.interface.set_hardware_addr(address.into());
    }

    /// Does what there is to do, and waits a little if that's nothing.
    pub(crate) fn poll(&mut self) {
        self.wire.flush();
        let now = Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap());
        if self.interface.poll(now, &mut self.wire, &mut self.sockets)
            == PollResult::SocketStateChanged
        {
            return;
        }
        let longest = Duration::from_millis(5);
        let wait = self.interface.poll_delay(now, &self.sockets).unwrap_or(longest).min(longest);
        let full = !self.wire.waiting.is_empty();
        self.wire.wait(if full { longest } else { wait }, full);
    }

    /// Goes on until `done` gives something.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Guest) -> Option<T>,
    ) -> T {
        let began = std::time::Instant::now();
        loop {
            self.poll();
            if let Some(result) = done(self) {
                return result;
            }
            assert!(began.elapsed() < PATIENCE, "waited too long for {what}");
        }
    }

    /// Goes on for a while, in which nothing may be expected.
    pub(crate) fn for_a_while(&mut self, milliseconds: u64) {
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_millis(milliseconds) {
            self.poll();
        }
    }

    pub(crate) fn socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to call somebody.
    pub(crate) fn call(&mut self, there: SocketAddrV4) -> SocketHandle {
        let handle = self.socket();
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), there, self.next_port).unwrap();
        handle
    }

    /// Calls somebody, who answers.
    pub(crate) fn connect(&mut self, there: SocketAddrV4) -> SocketHandle {
        let handle = self.call(there);
        self.until("an answer", |guest| guest.tcp(handle).may_send().then_some(()));
        handle
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.socket();
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        self.until("room to send", |guest| {
            let sent = guest.tcp(handle).send_slice(bytes).expect("the connection is there");
            bytes = &bytes[sent..];
            bytes.is_empty().then_some(())
        });
    }

    /// Takes what comes until the other side has finished.
    pub(crate) fn receive_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut all = Vec::new();
        self.until("a connection", |guest| guest.tcp(handle).may_recv().then_some(()));
        self.until("the end of a stream", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() {
                all.extend_from_slice(&socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
            }
            (!socket.may_recv()).then_some(())
        });
        all
    }
}

/// The device's end.
pub(crate) struct Wire {
    pub(crate) network: Box<dyn Network>,
    waiting: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Wire {
    fn flush(&mut self) {
        while let Some(frame) = self.waiting.front() {
            if !self.network.send(frame).unwrap() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.waiting.push_back(frame.to_vec());
        self.flush();
    }

    /// The next frame, which comes soon or not at all.
    pub(crate) fn receive(&mut self, milliseconds: u64) -> Option<Vec<u8>> {
        self.wait(Duration::from_millis(milliseconds), false);
        let length = self.network.receive(&mut self.buffer).unwrap()?;
        Some(self.buffer[..length].to_vec())
    }

    fn wait(&self, longest: Duration, to_send: bool) {
        let flags = if to_send { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let descriptor = self.network.descriptor();
        let longest = Timespec {
            tv_sec: i64::try_from(longest.secs()).unwrap(),
            tv_nsec: i64::try_from(longest.micros() * 1000).unwrap(),
        };
        let _ = poll(&mut [PollFd::from_borrowed_fd(descriptor, flags)], Some(&longest));
    }
}

pub(crate) struct Received(Vec<u8>);
pub(crate) struct Sending<'a>(&'a mut Wire);

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let length = self.network.receive(&mut self.buffer).unwrap()?;
        Some((Received(self.buffer[..length].to_vec()), Sending(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.waiting.is_empty().then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        if !self.0.waiting.is_empty() || !self.0.network.send(&frame).unwrap() {
            self.0.waiting.push_back(frame);
        }
        result
    }
}
