//! What the command says when something went wrong, and its exit status.

use lguest::{BuildError, Ending, ReadKernelError, RunError, StopReason};
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// The guest ended badly.
const CRASHED: u8 = 1;
/// The guest never started. It is also what clap exits with on wrong usage.
const NOT_STARTED: u8 = 2;
/// A shell's way to say that a signal ended a program: this and the signal's number.
const BY_SIGNAL: i32 = 128;

/// Why the command doesn't end with status 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A file named on the command line can't be used.
    File {
        /// What for, as a noun.
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// The kernel isn't one.
    Kernel(ReadKernelError),
    /// The machine can't be made.
    Build(BuildError),
    /// Something that the command needs of the system.
    System(&'static str, io::Error),
    /// The host can't go on.
    Run(RunError),
    /// The guest gave up, or was ended, for this reason.
    Guest(String),
    /// This signal was sent to us, or, as three ^C, to the guest.
    Signal(i32),
}

impl Failure {
    /// Says it on standard error, and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.is_silent() {
            // With standard error closed there is nobody left to tell.
            let _ = writeln!(io::stderr(), "lguest: {self}");
        }
        ExitCode::from(self.status())
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::File { .. } | Self::Kernel(_) | Self::Build(_) | Self::System(..) => NOT_STARTED,
            Self::Run(RunError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                signal_status(signal_hook::consts::SIGPIPE)
            }
            Self::Run(RunError::Output(_)) | Self::Guest(_) => CRASHED,
            Self::Run(_) => NOT_STARTED,
            Self::Signal(signal) => signal_status(*signal),
        }
    }

    /// Whoever sent a signal, or closed the pipe it read from, knows already.
    fn is_silent(&self) -> bool {
        match self {
            Self::Signal(_) => true,
            Self::Run(RunError::Output(error)) => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

/// What a guest's ending means for the command. `signal` is the last one that asked for the end.
pub(crate) fn of_ending(ending: Ending, signal: Option<i32>) -> Result<(), Failure> {
    match ending {
        Ending::PowerOff => Ok(()),
        Ending::Crashed(message) => {
            Err(Failure::Guest(format!("the guest crashed: {}", message.trim_end())))
        }
        Ending::Killed(kill) => Err(Failure::Guest(format!("the guest was ended: {kill}"))),
        Ending::Stopped(StopReason::Interrupted) => {
            Err(Failure::Signal(signal_hook::consts::SIGINT))
        }
        Ending::Stopped(StopReason::Requested) => {
            Err(Failure::Signal(signal.unwrap_or(signal_hook::consts::SIGTERM)))
        }
    }
}

fn signal_status(signal: i32) -> u8 {
    u8::try_from(BY_SIGNAL + signal).unwrap_or(CRASHED)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { what, path, error } => {
                write!(f, "the {what} {} can't be opened: {error}", path.display())
            }
            Self::Kernel(error) => error.fmt(f),
            Self::Build(error) => error.fmt(f),
            Self::System(what, error) => write!(f, "{what}: {error}"),
            Self::Run(error) => error.fmt(f),
            Self::Guest(message) => f.write_str(message),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some kernels end it with a newline, some don't.
    #[test]
    fn a_guests_last_words_are_one_line() {
        for message in ["no init", "no init\n"] {
            let failure = of_ending(Ending::Crashed(message.into()), None).unwrap_err();
            assert_eq!(failure.to_string(), "the guest crashed: no init");
        }
    }

    #[test]
    fn every_ending_has_its_status() {
        let status = |ending, signal| of_ending(ending, signal).map_err(|failure| failure.status());
        assert_eq!(status(Ending::PowerOff, None), Ok(()));
        assert_eq!(status(Ending::Crashed("no init".into()), None), Err(1));
        assert_eq!(status(Ending::Stopped(StopReason::Interrupted), None), Err(130));
        assert_eq!(status(Ending::Stopped(StopReason::Requested), Some(15)), Err(143));
        assert_eq!(status(Ending::Stopped(StopReason::Requested), Some(1)), Err(129));
        let pipe = Failure::Run(RunError::Output(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(pipe.status(), 141);
        assert!(pipe.is_silent());
    }
}
