//! The command line, and the help that teaches it.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use lguest::{DiskConfig, Generation, MemorySize, NetworkConfig};
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
    Inspect(Inspect),
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

    /// A disk: an image or a block device [repeatable]
    ///
    /// FILE[,ro][,snapshot][,format=raw|qcow2][,backing=FILE]...: `ro` refuses writes, `snapshot` forgets them at the end;
    /// a comma in a file's name is written twice. For Linux guests, where the first is /dev/vda.
    #[arg(long, value_name = "FILE[,OPTIONS]")]
    pub(crate) disk: Vec<DiskConfig>,

    /// A network card, and what it is plugged into [repeatable]
    ///
    /// user[,forward=tcp:8080-:80]...: a network of the guest's own, with DHCP, names and a way out; no rights are needed.
    /// tap=NAME: the host's TAP device.
    /// socket=PATH: other guests with the same PATH, or QEMU (-netdev stream).
    /// For Linux guests, where the first is eth0.
    #[arg(long, value_name = "NETWORK", verbatim_doc_comment)]
    pub(crate) net: Vec<NetworkConfig>,

    /// Write each hypercall, interrupt and trap to this file, a line each
    #[arg(short, long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// At the end, say on standard error what the time went into
    #[arg(long)]
    pub(crate) stats: bool,

    /// Take the kernel to speak this generation of lguest's interface, rather than look which
    #[arg(long, value_name = "GENERATION", value_parser = generation(), requires = "kernel")]
    pub(crate) abi: Option<Generation>,

    /// The kernel to boot: a 32-bit ELF file or a bzImage [default: the bundled one]
    pub(crate) kernel: Option<PathBuf>,

    /// Words for the kernel's command line
    #[arg(last = true, value_name = "KERNEL ARGS")]
    pub(crate) arguments: Vec<String>,
}

/// Show what the loader sees in a kernel, without running it
#[derive(Args, Debug)]
#[command(after_help = AFTER_INSPECT)]
pub(crate) struct Inspect {
    /// Take the kernel to speak this generation of lguest's interface, rather than look which
    #[arg(long, value_name = "GENERATION", value_parser = generation())]
    pub(crate) abi: Option<Generation>,

    /// The kernel: a 32-bit ELF file or a bzImage
    pub(crate) kernel: PathBuf,
}

/// Generations by their names; help lists them with their kernels.
fn generation() -> impl TypedValueParser<Value = Generation> {
    let names = Generation::ALL.map(|it| PossibleValue::new(it.name()).help(it.kernels()));
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Generation>())
}

const EXAMPLES: &str = "\
Examples:
  lguest run                                    boot the bundled guest; try `help` there
  lguest run --initrd build/initrd.cpio         the same, with programs to run
  printf 'ps\\npoweroff\\n' | lguest run          a script rather than a keyboard
  lguest run --memory 256M vmlinux -- quiet     a kernel of your own, and a word for it
  lguest run --initrd initrd.cpio.gz --net user bzImage -- console=hvc0
                                                Linux, built with LGUEST_GUEST, on a network
  lguest inspect vmlinux                        why doesn't it boot?";

const AFTER_RUN: &str = "\
Exit status:
  0    the guest powered off
  1    it crashed, or broke the rules; its last words are on standard error
  2    it never started: wrong usage, an unreadable kernel, something missing on this machine
  130  three ^C ended it
  143  SIGTERM ended it (another signal n: 128 + n)";

const AFTER_INSPECT: &str = "\
Lines, as far as the file says something about them, and then its segments:
  banner         what a Linux says first: its version, who built it, and when
  interface      the generation of lguest's interface that it speaks, as for --abi, or why none
  guest support  whether it looks as if it was built to run under lguest
  boot protocol  the version of a bzImage's header
  payload        how its kernel is compressed, where it is, its bytes there and unpacked
  command line   how much of it the kernel keeps
  relocatable    whether it may lie elsewhere than at its load address
  load address   the physical address where it begins
  memory         where it ends, and how far it goes before it looks how much there is
  mapped at      the virtual address at which it expects physical address 0
  entry          where it begins to run";

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
    fn a_generation_is_named_for_a_kernel() {
        let line = ["lguest", "run", "--abi", "2.6.24", "vmlinux"];
        let Action::Run(run) = Arguments::try_parse_from(line).unwrap().action else {
            panic!("not a run");
        };
        assert_eq!(run.abi, Some(Generation::V2_6_24));
        assert!(Arguments::try_parse_from(&line[..4]).is_err(), "the bundled kernel has its own");
        assert!(Arguments::try_parse_from(["lguest", "run", "--abi", "3.0", "vmlinux"]).is_err());
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
