//! The command `lguest`: what people type to boot a guest.
//!
//! All the work is the library's; here its answers become messages and exit statuses, which
//! [`failure`] lists.

#![forbid(unsafe_code)]

#[path = "command/arguments.rs"]
mod arguments;
#[path = "command/failure.rs"]
mod failure;
#[path = "command/inspect.rs"]
mod inspect;
#[path = "command/kernel_file.rs"]
mod kernel_file;
#[path = "command/run.rs"]
mod run;

use arguments::{Action, Arguments};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Arguments::parse().action {
        Action::Run(arguments) => run::run(arguments),
        Action::Inspect(arguments) => inspect::inspect(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
