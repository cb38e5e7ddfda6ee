//! The command line, and the help that teaches it.

use clap::{Args, Parser, Subcommand};
use lguest::MemorySize;
use std::path::PathBuf;

/// Boots 32-bit lguest kernels in an ordinary process.
///
/// No kernel module, no hardware virtualization, no root: the guest's instructions are
/// translated and run right here, at close to native speed.
#[derive(Parser, Debug)]
#[command(name = "lguest", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) action: Action,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    Run(Run),
    /// Show what the loader sees in a kernel, without running it
    Inspect {
        /// The kernel: a 32-bit ELF file or a bzImage
        kernel: PathBuf,
    },
}

/// Boot a guest, and be its console until it ends
///
/// Standard input is the guest's keyboard and standard output its screen. On a terminal, every key goes to
/// the guest, ^C too; three ^C typed within a second end it. A pipe or a file works as well.
#[derive(Args, Debug)]
#[command(after_help = AFTER_RUN)]
pub(crate) struct Run {
    /// The guest's memory: a number and K, M or G
    #[arg(short, long, value_name = "SIZE", default_value_t = MemorySize::DEFAULT)]
    pub(crate) memory: MemorySize,

    /// The guest's first files: usually a cpio archive
    #[arg(short, long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Write each hypercall, interrupt and trap to this file, a line each
    #[arg(short, long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// The kernel to boot: a 32-bit ELF file or a bzImage [default: the bundled one]
    pub(crate) kernel: Option<PathBuf>,

    /// Words for the kernel's command line
    #[arg(last = true, value_name = "KERNEL ARGS")]
    pub(crate) arguments: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  lguest run                                    boot the bundled guest; try `help` there
  lguest run --initrd build/initrd.cpio         the same, with programs to run
  printf 'ps\\npoweroff\\n' | lguest run          a script rather than a keyboard
  lguest run --memory 256M vmlinux -- quiet     a kernel of your own, and a word for it
  lguest inspect vmlinux                        why doesn't it boot?";

const AFTER_RUN: &str = "\
Exit status:
  0    the guest powered off
  1    it crashed, or broke the rules; its last words are on standard error
  2    it never started: wrong usage, an unreadable kernel, something missing on this machine
  130  three ^C ended it
  143  SIGTERM ended it (another signal n: 128 + n)";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn words_behind_two_dashes_are_the_kernels() {
        let line = ["lguest", "run", "-m", "1G", "vmlinux", "--", "--memory", "quiet"];
        let Action::Run(run) = Arguments::try_parse_from(line).unwrap().action else {
            panic!("not a run");
        };
        assert_eq!(run.memory, "1G".parse().unwrap());
        assert_eq!(run.kernel, Some("vmlinux".into()));
        assert_eq!(run.arguments, ["--memory", "quiet"]);
    }

    #[test]
    fn without_a_kernel_there_may_still_be_words_for_it() {
        let line = ["lguest", "run", "--", "quiet"];
        let Action::Run(run) = Arguments::try_parse_from(line).unwrap().action else {
            panic!("not a run");
        };
        assert_eq!(run.kernel, None);
        assert_eq!(run.arguments, ["quiet"]);
    }
}
