//! The keyboard's side of the console: a thread that waits for input, and the queue it fills.
//!
//! Reading can take forever, and the vCPU's thread has better things to do. So a thread of its own
//! reads, queues what came, and kicks the vCPU, which hands it to the guest between two
//! instructions ([`console`](crate::console)). That is all this thread may do: guest memory and
//! devices belong to the vCPU's thread alone, which is why they need no locks.
//!
//! On a terminal it also watches for the way out: three ^C, each alone in its read, within a second.

use crate::control::{Control, StopReason};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::isatty;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a read asks for at most, and a guest's input buffer holds.
const CHUNK: usize = 256;

/// So much input waits at most. More stays in its pipe or file; from a keyboard it is dropped, as a PC's
/// controller does, because ^C must still be seen.
const QUEUE_LIMIT: usize = 1 << 16;

/// What the way out is made of.
const CONTROL_C: u8 = 3;
const INTERRUPTS: usize = 3;
const INTERRUPT_WINDOW: Duration = Duration::from_secs(1);

/// Input on its way from the thread that reads it to the vCPU's thread.
#[derive(Debug, Default)]
pub(crate) struct InputQueue {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    ended: bool,
}

/// What the guest's side finds in the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    /// Nothing, for now.
    Nothing,
    /// The next bytes, at least one. They stay until they are taken.
    Bytes(Vec<u8>),
    /// There won't be any more.
    End,
}

impl InputQueue {
    /// What waits, at most a chunk of it.
    pub(crate) fn waiting(&self) -> Waiting {
        let state = self.lock();
        if !state.bytes.is_empty() {
            Waiting::Bytes(state.bytes.iter().copied().take(CHUNK).collect())
        } else if state.ended {
            Waiting::End
        } else {
            Waiting::Nothing
        }
    }

    /// Removes the first bytes: the guest has them.
    pub(crate) fn take(&self, count: usize) {
        let mut state = self.lock();
        let count = count.min(state.bytes.len());
        state.bytes.drain(..count);
    }

    /// Appends what fits.
    fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let room = QUEUE_LIMIT.saturating_sub(state.bytes.len());
        state.bytes.extend(bytes.iter().take(room));
    }

    fn has_room(&self) -> bool {
        self.lock().bytes.len() + CHUNK <= QUEUE_LIMIT
    }

    fn end(&self) {
        self.lock().ended = true;
    }

    /// A queue is right between any two operations, so a thread that panicked leaves no harm.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that reads. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct InputThread {
    thread: Option<JoinHandle<()>>,
    /// Written to, to end the thread.
    quit: Arc<OwnedFd>,
}

impl InputThread {
    /// Begins to read `input` into `queue`.
    ///
    /// # Errors
    /// The system won't give another thread or descriptor.
    pub(crate) fn spawn(
        input: OwnedFd,
        queue: Arc<InputQueue>,
        control: Arc<Control>,
    ) -> io::Result<Self> {
        Self::reading(input, Sink::Queue(queue), control)
    }

    /// What `input` gives, at the other end of a pipe: for a device with a thread of its own.
    ///
    /// # Errors
    /// The system won't give another thread or descriptor.
    pub(crate) fn into_pipe(input: OwnedFd, control: Arc<Control>) -> io::Result<(OwnedFd, Self)> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok((from, Self::reading(input, Sink::Pipe(into), control)?))
    }

    fn reading(input: OwnedFd, sink: Sink, control: Arc<Control>) -> io::Result<Self> {
        let quit = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let reader = Reader {
            keyboard: isatty(&input),
            input,
            sink,
            control,
            quit: Arc::clone(&quit),
            interrupts: InterruptKeys::default(),
        };
        let thread =
            thread::Builder::new().name("console input".into()).spawn(move || reader.run())?;
        Ok(Self { thread: Some(thread), quit })
    }
}

impl Drop for InputThread {
    fn drop(&mut self) {
        // The counter can't overflow by one increment, and a thread that has ended is as good.
        let _ = write(&*self.quit, &1u64.to_ne_bytes());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What the thread owns.
struct Reader {
    input: OwnedFd,
    keyboard: bool,
    sink: Sink,
    control: Arc<Control>,
    quit: Arc<OwnedFd>,
    interrupts: InterruptKeys,
}

/// Where input goes.
enum Sink {
    /// To the vCPU's thread, which is kicked.
    Queue(Arc<InputQueue>),
    /// To another thread, which waits for it. The pipe's end is the input's.
    Pipe(OwnedFd),
}

impl Sink {
    fn has_room(&self) -> bool {
        match self {
            Self::Queue(queue) => queue.has_room(),
            Self::Pipe(pipe) => {
                let now = Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 });
                poll(&mut [PollFd::new(pipe, PollFlags::OUT)], now).is_ok_and(|ready| ready > 0)
            }
        }
    }

    fn push(&self, bytes: &[u8]) {
        match self {
            Self::Queue(queue) => queue.push(bytes),
            // A pipe that has room has room for a chunk. What a keyboard says into a full one is lost, as above.
            Self::Pipe(pipe) => {
                let _ = write(pipe, bytes);
            }
        }
    }

    fn end(&self) {
        if let Self::Queue(queue) = self {
            queue.end();
        }
    }
}

impl Reader {
    fn run(mut self) {
        while let Next::Bytes(bytes) = self.next() {
            if self.keyboard && self.interrupts.pressed(&bytes, Instant::now()) {
                self.control.stop(StopReason::Interrupted);
                return;
            }
            self.sink.push(&bytes);
            self.control.kick();
        }
        self.sink.end();
        self.control.kick();
    }

    /// Waits for the next bytes, their end, or ours.
    fn next(&self) -> Next {
        loop {
            match self.wait() {
                Ok(Ready::Quit) => return Next::End,
                Ok(Ready::Later) | Err(Errno::INTR) => continue,
                Ok(Ready::Input) => {}
                Err(_) => return Next::End,
            }
            let mut bytes = Vec::with_capacity(CHUNK);
            match read(&self.input, spare_capacity(&mut bytes)) {
                Ok(0) => return Next::End,
                Ok(_) => return Next::Bytes(bytes),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // A terminal that was hung up, say: there is no more input, however it is called.
                Err(_) => return Next::End,
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<Ready, Errno> {
        let quit = PollFd::new(&*self.quit, PollFlags::IN);
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        if !self.keyboard && !self.sink.has_room() {
            let a_moment = rustix::time::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            let mut fds = [quit];
            poll(&mut fds, Some(&a_moment))?;
            return Ok(if ready(&fds[0]) { Ready::Quit } else { Ready::Later });
        }
        let mut fds = [quit, PollFd::new(&self.input, PollFlags::IN)];
        poll(&mut fds, None)?;
        Ok(if ready(&fds[0]) { Ready::Quit } else { Ready::Input })
    }
}

enum Next {
    Bytes(Vec<u8>),
    End,
}

enum Ready {
    Quit,
    Input,
    Later,
}

/// Counts ^C, each alone in its read: typed by a person, not part of something pasted.
#[derive(Debug, Default)]
struct InterruptKeys {
    pressed: VecDeque<Instant>,
}

impl InterruptKeys {
    /// Takes note of one read, and says whether it completes the way out.
    fn pressed(&mut self, read: &[u8], now: Instant) -> bool {
        if read != [CONTROL_C] {
            self.pressed.clear();
            return false;
        }
        self.pressed.push_back(now);
        if self.pressed.len() > INTERRUPTS {
            self.pressed.pop_front();
        }
        self.pressed.len() == INTERRUPTS
            && self.pressed.front().is_some_and(|&first| now - first <= INTERRUPT_WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presses(reads: &[(u64, &[u8])]) -> bool {
        let start = Instant::now();
        let mut keys = InterruptKeys::default();
        reads.iter().fold(false, |ended, (at, read)| {
            keys.pressed(read, start + Duration::from_millis(*at)) || ended
        })
    }

    #[test]
    fn three_in_a_second_are_the_way_out() {
        assert!(presses(&[(0, b"\x03"), (400, b"\x03"), (1000, b"\x03")]));
        assert!(presses(&[(0, b"\x03"), (2000, b"\x03"), (2100, b"\x03"), (2200, b"\x03")]));
    }

    #[test]
    fn anything_else_is_the_guests() {
        assert!(!presses(&[(0, b"\x03"), (1, b"\x03")]), "two");
        assert!(!presses(&[(0, b"\x03\x03\x03")]), "three in one read were pasted");
        assert!(!presses(&[(0, b"\x03"), (600, b"\x03"), (1200, b"\x03")]), "too slow");
        assert!(!presses(&[(0, b"\x03"), (1, b"\x03"), (2, b"x"), (3, b"\x03")]), "interrupted");
    }

    #[test]
    fn the_queue_keeps_order_and_ends() {
        let queue = InputQueue::default();
        assert_eq!(queue.waiting(), Waiting::Nothing);
        queue.push(b"hello");
        queue.end();
        queue.take(2);
        assert_eq!(queue.waiting(), Waiting::Bytes(b"llo".to_vec()));
        queue.take(100);
        assert_eq!(queue.waiting(), Waiting::End);
    }

    #[test]
    fn a_full_queue_drops_and_stays_bounded() {
        let queue = InputQueue::default();
        queue.push(&vec![0; QUEUE_LIMIT + 5]);
        assert!(!queue.has_room());
        assert_eq!(queue.lock().bytes.len(), QUEUE_LIMIT);
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let (from, into) = io::pipe().unwrap();
        let queue = Arc::new(InputQueue::default());
        let control = Arc::new(Control::new().unwrap());
        let thread = InputThread::spawn(from.into(), Arc::clone(&queue), control).unwrap();
        io::Write::write_all(&mut { into }, b"to its end").unwrap();
        while queue.waiting() == Waiting::Nothing {
            thread::yield_now();
        }
        queue.take(10);
        while queue.waiting() == Waiting::Nothing {
            thread::yield_now();
        }
        assert_eq!(queue.waiting(), Waiting::End);
        drop(thread);
    }

    #[test]
    fn dropping_the_thread_ends_it_while_it_waits() {
        let (from, _into) = io::pipe().unwrap();
        let control = Arc::new(Control::new().unwrap());
        let thread = InputThread::spawn(from.into(), Arc::default(), control).unwrap();
        drop(thread);
    }
}
