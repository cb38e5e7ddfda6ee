//! **Frames in a stream**: each is preceded by its length, in four bytes, the highest first. So QEMU's `-netdev stream` writes
//! them, and passt (passt(1), "The --socket option").

use super::super::LONGEST_FRAME;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// Bytes of a length.
const LENGTH: usize = 4;
/// Room for what is read at once: the longest frame, and many of the usual ones.
const READ: usize = 128 << 10;
/// When so many bytes are to be written, no more are taken.
const WRITE: usize = 64 << 10;

/// A length that no frame has. There is no finding the next frame after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other end says that a frame has {0} bytes, and they have 1 to {LONGEST_FRAME}")]
pub(super) struct BadLength(u32);

/// What has been read.
pub(super) struct Incoming {
    bytes: Vec<u8>,
    /// Where the first frame's length starts,
    start: usize,
    /// and where what was read ends.
    end: usize,
}

impl Default for Incoming {
    fn default() -> Incoming {
        Incoming { bytes: vec![0; READ], start: 0, end: 0 }
    }
}

impl Incoming {
    /// Reads more. Only when there is no whole frame: so there's room.
    pub(super) fn read(&mut self, mut from: &UnixStream) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = from.read(&mut self.bytes[self.end..])?;
        self.end += read;
        Ok(read)
    }

    fn length(&self) -> Result<Option<usize>, BadLength> {
        let Some(length) = self.bytes[self.start..self.end].first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(usable) if (1..=LONGEST_FRAME).contains(&usable) => Ok(Some(usable)),
            _ => Err(BadLength(length)),
        }
    }

    /// The first frame, if it is whole.
    pub(super) fn frame(&self) -> Result<Option<&[u8]>, BadLength> {
        let Some(length) = self.length()? else { return Ok(None) };
        Ok(self.bytes[self.start + LENGTH..self.end].get(..length))
    }

    /// Goes on to the frame after the first.
    pub(super) fn take_frame(&mut self) {
        if let Ok(Some(frame)) = self.frame() {
            self.start += LENGTH + frame.len();
        }
    }
}

/// What is to be written.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < WRITE
    }

    pub(super) fn push(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).expect("a frame is shorter than 64 KiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(frame);
    }

    /// Writes what the other takes now.
    pub(super) fn write(&mut self, mut to: &UnixStream) -> io::Result<()> {
        while self.written < self.bytes.len() {
            match to.write(&self.bytes[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.written = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (one, other)
    }

    proptest! {
        #[test]
        fn frames_survive_being_cut_anywhere(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 1..20),
            cut in 1usize..5000,
        ) {
            let (one, other) = pair();
            let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
            frames.iter().for_each(|frame| outgoing.push(frame));
            let mut heard = Vec::new();
            for piece in outgoing.bytes.chunks(cut) {
                (&one).write_all(piece).unwrap();
                while incoming.read(&other).is_ok() {
                    while let Some(frame) = incoming.frame().unwrap() {
                        heard.push(frame.to_vec());
                        incoming.take_frame();
                    }
                }
            }
            prop_assert_eq!(heard, frames);
        }
    }

    #[test]
    fn a_full_stream_is_gone_on_with() {
        let (one, other) = pair();
        let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
        let (mut pushed, mut heard) = (0u32, 0u32);
        while heard < 1000 {
            while pushed < 1000 && outgoing.has_room() {
                outgoing.push(&[&pushed.to_be_bytes()[..], &[0; 1500]].concat());
                pushed += 1;
            }
            outgoing.write(&one).unwrap();
            if incoming.frame().unwrap().is_none() {
                incoming.read(&other).unwrap();
            }
            if let Some(frame) = incoming.frame().unwrap() {
                assert_eq!(frame[..4], heard.to_be_bytes());
                incoming.take_frame();
                heard += 1;
            }
        }
    }

    #[test]
    fn lengths_are_judged() {
        let table = [(0, false), (1, true), (65550, true), (65551, false), (u32::MAX, false)];
        for (length, good) in table {
            let (one, other) = pair();
            let mut incoming = Incoming::default();
            (&one).write_all(&length.to_be_bytes()).unwrap();
            incoming.read(&other).unwrap();
            assert_eq!(incoming.frame(), if good { Ok(None) } else { Err(BadLength(length)) });
        }
    }
}
