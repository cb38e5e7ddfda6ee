//! Everything that touches the machine: address space, code memory, the way into translated code
//! and out of it, and signals.
//!
//! This is the room where `unsafe` lives. The safe rest of the crate decides; what is here
//! carries out. Each file holds one mechanism and states what its unsafe code rests on:
//!
//! - [`reservation`]: address space, reserved and given back;
//! - [`windows`]: the guest's 4 GiB, as mappings of its memory, and [`mapping_account`]: how many
//!   of those the process can have;
//! - [`indirect_jumps`]: where translated code looks up the targets of indirect branches;
//! - [`code_cache`]: translated code, and [`host_map`]: the way back from it to the guest's;
//! - [`guest_code`]: running it, through [`crossing`], the assembly between Rust and it; [`gates`]: from user code into its
//!   kernel and back, without Rust;
//! - [`gs_base`], [`fpu`]: what a crossing leaves in the processor;
//! - [`signals`], [`signal_stack`]: faults and preemption;
//! - [`kick`], [`alarm`]: how a virtual CPU is called back.

#![allow(unsafe_code)]

pub(crate) mod alarm;
pub(crate) mod code_cache;
pub(crate) mod crossing;
pub(crate) mod fpu;
pub(crate) mod gates;
pub(crate) mod gs_base;
pub(crate) mod guest_code;
pub(crate) mod host_map;
pub(crate) mod indirect_jumps;
pub(crate) mod kick;
pub(crate) mod mapping_account;
pub(crate) mod reservation;
pub(crate) mod signal_stack;
pub(crate) mod signals;
pub(crate) mod windows;

use std::io;

/// What this machine lacks to run a virtual CPU, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The processor is too old.
    #[error(
        "this processor lacks {0}, which translated code needs: use one made after 2013 (or pass the host's CPU model through to the virtual machine)"
    )]
    Processor(&'static str),
    /// Address space can't be reserved.
    #[error(
        "can't reserve {gib} GiB of address space for {purpose} ({source}): raise `ulimit -v`, and set vm.overcommit_memory to 0 or 1"
    )]
    AddressSpace {
        /// What it is for.
        purpose: &'static str,
        /// How much, in 2³⁰ bytes.
        gib: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Memory for translated code can't be had in the way it must be.
    #[error(
        "can't map memory for translated code ({0}): a security policy may forbid executable memory files"
    )]
    CodeCache(io::Error),
    /// The signal handlers or the alternate signal stack can't be installed.
    #[error("can't set up signal handling ({0})")]
    Signals(io::Error),
    /// No timer for the alarm.
    #[error("can't create a timer ({0}): raise `ulimit -i`")]
    Timer(io::Error),
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(&'static str),
}
