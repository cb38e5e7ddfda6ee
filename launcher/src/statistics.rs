//! **Statistics**: what a guest's run was made of, counted.
//!
//! They are kept while the guest runs and printed when it has ended: how long it took and how much of it the guest slept, what it
//! asked the Host for and how often, what the Switcher did for it. Counting costs a few nanoseconds for each event; a run without
//! it pays nothing.

use lguest_host::{Event, Tracer};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Statistics of one guest. Clones count the same.
#[derive(Clone, Debug)]
pub struct Statistics {
    tally: Arc<Mutex<Tally>>,
}

#[derive(Debug)]
struct Tally {
    start: Instant,
    end: Option<Instant>,
    /// Processor time of the vCPU's thread.
    cpu: Duration,
    sleeping_since: Option<Instant>,
    slept: Duration,
    sleeps: u64,
    hypercalls: BTreeMap<&'static str, u64>,
    queued: u64,
    traps: BTreeMap<u8, u64>,
    interrupts: BTreeMap<u8, u64>,
    emulated: BTreeMap<String, u64>,
    processor: lguest_switcher::Statistics,
}

impl Default for Statistics {
    fn default() -> Self {
        let tally = Tally {
            start: Instant::now(),
            end: None,
            cpu: Duration::ZERO,
            sleeping_since: None,
            slept: Duration::ZERO,
            sleeps: 0,
            hypercalls: BTreeMap::new(),
            queued: 0,
            traps: BTreeMap::new(),
            interrupts: BTreeMap::new(),
            emulated: BTreeMap::new(),
            processor: lguest_switcher::Statistics::default(),
        };
        Self { tally: Arc::new(Mutex::new(tally)) }
    }
}

impl Statistics {
    /// What the Host calls with each event: counts it, and hands it on to `next`, if there is somebody.
    #[must_use]
    pub fn tracer(&self, mut next: Option<Tracer>) -> Tracer {
        let statistics = self.clone();
        Box::new(move |event| {
            statistics.tally().note(event);
            if let Some(next) = &mut next {
                next(event);
            }
        })
    }

    /// The guest has ended, with these figures of its processor. To be called on the vCPU's thread.
    pub(crate) fn finish(&self, processor: lguest_switcher::Statistics) {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let mut tally = self.tally();
        tally.end = Some(Instant::now());
        tally.cpu = Duration::try_from(used).unwrap_or_default();
        tally.processor = processor;
    }

    /// Counters are right between any two events.
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Hypercall { call, queued, .. } => {
                *self.hypercalls.entry(call.name()).or_default() += 1;
                self.queued += u64::from(*queued);
            }
            Event::Trap { vector, .. } => *self.traps.entry(*vector).or_default() += 1,
            Event::Interrupt { irq, .. } => *self.interrupts.entry(*irq).or_default() += 1,
            Event::Emulated { name, .. } => {
                let mnemonic = name.split(' ').next().unwrap_or_default();
                match self.emulated.get_mut(mnemonic) {
                    Some(count) => *count += 1,
                    None => _ = self.emulated.insert(mnemonic.to_owned(), 1),
                }
            }
            Event::Sleep { awake: false } => {
                self.sleeping_since = Some(Instant::now());
                self.sleeps += 1;
            }
            Event::Sleep { awake: true } => {
                let since = self.sleeping_since.take();
                self.slept += since.map_or(Duration::ZERO, |since| since.elapsed());
            }
            // Counted as the hypercall that it was.
            Event::Sent { .. } => {}
        }
    }
}

/// A table that fits a terminal. The most frequent come first.
impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.tally();
        let total = tally.end.unwrap_or_else(Instant::now) - tally.start;
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        writeln!(f, "time           {} in all, {} asleep", ms(total), ms(tally.slept))?;
        writeln!(f, "processor      {} of the vCPU's thread", ms(tally.cpu))?;
        let calls = tally.hypercalls.iter().map(|(name, count)| ((*name).to_owned(), *count));
        list(f, "hypercalls", calls)?;
        writeln!(f, "               {} of them through the ring", tally.queued)?;
        list(f, "traps", tally.traps.iter().map(|(vector, count)| (vector.to_string(), *count)))?;
        let interrupts = tally.interrupts.iter().map(|(irq, count)| (irq.to_string(), *count));
        list(f, "interrupts", interrupts)?;
        let emulated = tally.emulated.iter().map(|(name, count)| (name.clone(), *count));
        list(f, "instructions", emulated)?;
        writeln!(f, "sleeps         {}", tally.sleeps)?;
        let processor = &tally.processor;
        writeln!(
            f,
            "translated     {} instructions in {} units; the cache was emptied {} times",
            processor.instructions, processor.units, processor.cache_flushes
        )?;
        writeln!(
            f,
            "memory         {} host faults, {} mappings; {} windows dropped",
            processor.faults, processor.mappings, processor.windows_dropped
        )?;
        writeln!(
            f,
            "by hand        {} instructions interpreted, {} through a buffer; code was written to {} times",
            processor.emulated, processor.bounced, processor.code_writes
        )
    }
}

/// One line: how many, and of what.
fn list(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    counts: impl Iterator<Item = (String, u64)>,
) -> fmt::Result {
    const SHOWN: usize = 8;
    let mut counts: Vec<_> = counts.collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    write!(f, "{title:<15}{total}")?;
    for (index, (name, count)) in counts.iter().take(SHOWN).enumerate() {
        write!(f, "{} {name} {count}", if index == 0 { ":" } else { "," })?;
    }
    writeln!(f, "{}", if counts.len() > SHOWN { ", …" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lguest_abi::hypercall::Hypercall;

    #[test]
    fn what_happened_is_counted_and_shown_by_how_often() {
        let statistics = Statistics::default();
        let mut seen = 0;
        let mut tracer = statistics.tracer(None);
        let halt = Event::Hypercall { call: Hypercall::Halt, queued: false, eip: 0 };
        let flush = Event::Hypercall { call: Hypercall::FlushAsync, queued: true, eip: 0 };
        let trap = Event::Trap { vector: 14, error: None, address: None, eip: 0, user: true };
        let out = |name: &str| Event::Emulated { name: name.to_owned(), eip: 0 };
        for event in [&halt, &flush, &halt, &trap, &out("out dx,al"), &out("out 21h,al")] {
            tracer(event);
            seen += 1;
        }
        assert_eq!(seen, 6);
        statistics.finish(lguest_switcher::Statistics { units: 7, ..Default::default() });
        let shown = statistics.to_string();
        for line in [
            "hypercalls     3: HALT 2, FLUSH_ASYNC 1\n",
            "               1 of them through the ring\n",
            "traps          1: 14 1\n",
            "interrupts     0\n",
            "instructions   2: out 2\n",
            "in 7 units",
        ] {
            assert!(shown.contains(line), "{line:?} in\n{shown}");
        }
    }
}
