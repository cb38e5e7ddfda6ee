//! Runs that end by themselves, on a stable compiler: random strings of bytes for a while, and the
//! findings of earlier days.
//!
//! - `LGUEST_FUZZ_SECONDS` says how long a run takes: one second, if nothing is said.
//! - `LGUEST_FUZZ_SEED` says where random strings start.
//! - `LGUEST_FUZZ_FILE` names a file whose bytes are run, and shown, instead of random ones.
//!
//! What ran last is kept in a file, for the day when the whole process dies.

use arbitrary::{Arbitrary, Unstructured};
use lguest_oracle::random::Random;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, thread};

/// The variable that names a file to run.
pub const FILE: &str = "LGUEST_FUZZ_FILE";
/// Longest time that a case may take, on a machine that has much else to do. No case means to take more
/// than some milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest random string.
const LONGEST: u32 = 900;

/// The case that a string of bytes stands for: there is always one.
#[must_use]
pub fn decode<C: for<'a> Arbitrary<'a>>(bytes: &[u8]) -> C {
    C::arbitrary(&mut Unstructured::new(bytes)).expect("where bytes end, zeros go on")
}

/// Runs the cases of random strings until the time is over, or that of one file, and says how many there were.
///
/// # Panics
/// Where `run` does, and when the file can't be read.
pub fn for_a_while<C: for<'a> Arbitrary<'a> + Debug>(name: &str, mut run: impl FnMut(C)) -> u64 {
    if let Some(file) = env::var_os(FILE) {
        let case: C = decode(&fs::read(&file).expect("a file to read"));
        println!("{case:#x?}");
        let watch = Watch::new(Path::new(&file));
        watch.over(|| run(case));
        return 1;
    }
    let number = |name| env::var(name).ok()?.parse().ok();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = number("LGUEST_FUZZ_SEED").unwrap_or(now.map_or(0, |now| now.as_micros() as u64));
    let until = Instant::now() + Duration::from_secs(number("LGUEST_FUZZ_SECONDS").unwrap_or(1));
    let last = env::temp_dir().join(format!("lguest-fuzz-{name}-{}", std::process::id()));
    println!("{name}: seed {seed}");
    let watch = Watch::new(&last);
    let mut cases = 0;
    while cases == 0 || Instant::now() < until {
        let bytes = random_bytes(&mut Random::new(seed ^ cases << 32));
        fs::write(&last, &bytes).expect("a place for what ran last");
        watch.over(|| run(decode(&bytes)));
        cases += 1;
    }
    println!("{name}: {cases} cases");
    let _ = fs::remove_file(last);
    cases
}

fn random_bytes(random: &mut Random) -> Vec<u8> {
    let length = random.below(LONGEST);
    (0..length).map(|_| random.byte()).collect()
}

/// The findings in `corpus/`*name*, in the order of their names.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn findings(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).expect("a folder of findings");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "nothing in {}", folder.display());
    files
}

/// Runs each finding again, and checks that the bytes still stand for the case that was found:
/// `corpus/`*name*`.txt` shows them all, and is written anew when `BLESS` is set.
///
/// # Panics
/// Where `run` does, and when a case isn't what it was.
pub fn replay<C: for<'a> Arbitrary<'a> + Debug>(name: &str, mut run: impl FnMut(C)) {
    let mut shown = String::new();
    for file in findings(name) {
        let case: C = decode(&fs::read(&file).expect("a finding"));
        let title = file.file_name().unwrap_or_default().to_string_lossy();
        shown += &format!("== {title}\n{case:#x?}\n\n");
        Watch::new(&file).over(|| run(case));
    }
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{name}.txt"));
    if env::var_os("BLESS").is_some() {
        fs::write(&text, &shown).expect("a place for the text");
    }
    let known = fs::read_to_string(&text).unwrap_or_default();
    assert!(shown == known, "the bytes stand for other cases than {} shows", text.display());
}

/// Somebody who ends the process when a case doesn't end.
struct Watch<'a> {
    file: &'a Path,
    since: Arc<Mutex<Option<Instant>>>,
}

impl<'a> Watch<'a> {
    /// The cases are those that `file` holds.
    fn new(file: &'a Path) -> Self {
        let since = Arc::new(Mutex::new(None::<Instant>));
        let (watched, name) = (Arc::downgrade(&since), file.to_owned());
        thread::spawn(move || {
            while let Some(since) = watched.upgrade() {
                let late = since.lock().expect("an instant").map(|since| since.elapsed());
                if late.is_some_and(|late| late > PATIENCE) {
                    eprintln!("it doesn't end: {}", name.display());
                    std::process::abort();
                }
                drop(since);
                thread::sleep(PATIENCE / 100);
            }
        });
        Self { file, since }
    }

    fn over(&self, run: impl FnOnce()) {
        *self.since.lock().expect("an instant") = Some(Instant::now());
        let told = Told(self.file);
        run();
        std::mem::forget(told);
        *self.since.lock().expect("an instant") = None;
    }
}

/// Says which file to run again, when it is dropped by a panic.
struct Told<'a>(&'a Path);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!("to repeat it: {FILE}={}", self.0.display());
    }
}
