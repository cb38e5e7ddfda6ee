//! The trace file: what guest and Host say to each other, a line for each event.
//!
//! A line is a time and an event: microseconds since the trace began, then what happened, in the words of
//! [`lguest_host::Event`]. It is for people with `grep` and `less`: columns line up, and a field never moves.

use lguest_host::{Event, Tracer};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A trace being written. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct Trace {
    sink: Arc<Mutex<Sink>>,
}

impl Trace {
    /// Begins a trace in a new file at `path`, or in place of the one that is there.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::new(File::create(path)?))
    }

    /// Begins a trace that goes to `out`.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        let out: Box<dyn Write + Send> = Box::new(out);
        let sink = Sink { out: BufWriter::new(out), start: Instant::now(), failed: None };
        Self { sink: Arc::new(Mutex::new(sink)) }
    }

    /// What the Host calls with each event.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        let trace = self.clone();
        Box::new(move |event| trace.sink().note(event))
    }

    /// Sees to it that everything so far is in the file.
    ///
    /// # Errors
    /// The first thing that went wrong with writing it; the trace ends there.
    pub fn finish(&self) -> io::Result<()> {
        let mut sink = self.sink();
        match sink.failed.take() {
            Some(error) => Err(error),
            None => sink.out.flush(),
        }
    }

    /// Lines are written whole, so a thread that panicked leaves at worst a short one.
    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Sink {
    out: BufWriter<Box<dyn Write + Send>>,
    start: Instant,
    failed: Option<io::Error>,
}

impl Sink {
    /// Writes one line, and hands all of them over when the guest rests: so that whoever watches the file
    /// grow sees everything up to now.
    fn note(&mut self, event: &Event) {
        if self.failed.is_some() {
            return;
        }
        let at = self.start.elapsed().as_micros();
        let mut written = writeln!(self.out, "{at:>10} {event}");
        if matches!(event, Event::Sleep { .. }) {
            written = written.and_then(|()| self.out.flush());
        }
        self.failed = written.err();
    }
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("failed", &self.failed).finish_non_exhaustive()
    }
}
