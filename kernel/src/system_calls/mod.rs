//! System calls: what processes ask for.
//!
//! The numbers are Linux's. Tables say who answers each ([`answer`]); the chapters are
//! [`file_calls`], [`memory_calls`], [`process_calls`], [`time_calls`], [`terminal_calls`] and
//! [`private_calls`]. A number that isn't in the table is named on the console, once, and
//! answered ENOSYS.
//!
//! A rule for all of them: what a process points to is copied in before, and out after, the kernel
//! looks at its own data, since copying can fault, and the fault needs that data too.

mod file_calls;
mod memory_calls;
mod private_calls;
mod process_calls;
mod terminal_calls;
mod time_calls;

use crate::console::println;
use crate::interrupt_lock::InterruptLock;
use crate::processes;
use crate::traps::frame::TrapFrame;
use lguest_system_calls::{Errno, number, private};

/// What a call comes to.
type Answer = Result<u32, Errno>;

/// Handles `int $0x80`.
pub(crate) fn handle(frame: &mut TrapFrame) {
    frame.eax = match answer(frame.eax, frame.arguments()) {
        Ok(value) => value,
        Err(error) => error.to_answer(),
    };
}

/// Whom each call goes to: the tables below, in which `a` to `f` are its arguments.
fn answer(call: u32, arguments: [u32; 6]) -> Answer {
    let known = for_files(call, arguments)
        .or_else(|| for_changing_files(call))
        .or_else(|| for_processes(call, arguments))
        .or_else(|| for_memory(call, arguments))
        .or_else(|| for_time(call, arguments))
        .or_else(|| for_shell(call, arguments));
    known.unwrap_or_else(|| {
        name_once(call);
        Err(Errno::ENOSYS)
    })
}

/// Calls on files and the terminal.
fn for_files(call: u32, [a, b, c, d, e, _]: [u32; 6]) -> Option<Answer> {
    Some(match call {
        number::READ => file_calls::read(a, b, c),
        number::WRITE => file_calls::write(a, b, c),
        number::READV => file_calls::readv(a, b, c),
        number::WRITEV => file_calls::writev(a, b, c),
        number::PREAD64 => file_calls::pread(a, b, c, u64::from(d) | u64::from(e) << 32),
        number::OPEN => file_calls::open(a, b),
        number::OPENAT => file_calls::openat(a, b, c),
        number::CLOSE => file_calls::close(a),
        number::LSEEK => file_calls::lseek(a, b, c),
        number::LLSEEK => file_calls::llseek(a, [b, c], d, e),
        number::DUP => file_calls::dup(a),
        number::DUP2 | number::DUP3 => file_calls::dup2(a, b),
        number::FCNTL | number::FCNTL64 => file_calls::fcntl(a, b, c),
        number::STAT64 => file_calls::stat64(a, b, true),
        number::LSTAT64 => file_calls::stat64(a, b, false),
        number::FSTAT64 => file_calls::fstat64(a, b),
        number::FSTATAT64 => file_calls::fstatat64(a, b, c, d),
        number::STATX => file_calls::statx(a, b, c, e),
        number::ACCESS => file_calls::access(a, b),
        number::FACCESSAT | number::FACCESSAT2 => file_calls::access(b, c),
        number::READLINK => file_calls::readlink(a, b, c),
        number::READLINKAT => file_calls::readlink(b, c, d),
        number::GETDENTS64 => file_calls::getdents64(a, b, c),
        number::GETCWD => file_calls::getcwd(a, b),
        number::CHDIR => file_calls::chdir(a),
        number::SYNC | number::FSYNC | number::FDATASYNC => Ok(0),
        // Whoever asks can read and write by himself.
        number::SENDFILE64 => Err(Errno::EINVAL),
        number::FADVISE64 | number::FADVISE64_64 => Ok(0),
        number::IOCTL => terminal_calls::ioctl(a, b, c),
        number::POLL => terminal_calls::poll(a, b, c),
        _ => return None,
    })
}

/// Calls that would change the files, which can only be read. Programs know what to say then.
fn for_changing_files(call: u32) -> Option<Answer> {
    Some(match call {
        number::CREAT | number::MKNOD | number::MKNODAT | number::MKDIR | number::MKDIRAT => {
            Err(Errno::EROFS)
        }
        number::LINK | number::LINKAT | number::SYMLINK | number::SYMLINKAT => Err(Errno::EROFS),
        number::UNLINK | number::UNLINKAT | number::RMDIR => Err(Errno::EROFS),
        number::RENAME | number::RENAMEAT | number::RENAMEAT2 => Err(Errno::EROFS),
        number::CHMOD | number::FCHMOD | number::FCHMODAT => Err(Errno::EROFS),
        number::CHOWN | number::CHOWN32 | number::LCHOWN32 => Err(Errno::EROFS),
        number::FCHOWN | number::FCHOWN32 | number::FCHOWNAT => Err(Errno::EROFS),
        number::TRUNCATE | number::TRUNCATE64 => Err(Errno::EROFS),
        number::FTRUNCATE | number::FTRUNCATE64 | number::FALLOCATE => Err(Errno::EINVAL),
        number::UTIMES | number::UTIMENSAT | number::UTIMENSAT_TIME64 => Err(Errno::EROFS),
        _ => return None,
    })
}

/// Calls on processes.
fn for_processes(call: u32, [a, b, c, d, _, _]: [u32; 6]) -> Option<Answer> {
    Some(match call {
        number::EXIT | number::EXIT_GROUP => process_calls::exit(a),
        number::GETPID | number::GETTID => process_calls::getpid(),
        number::GETPPID => process_calls::getppid(),
        number::GETPGRP => process_calls::getpgrp(),
        number::GETUID | number::GETEUID | number::GETGID | number::GETEGID => Ok(0),
        number::GETUID32 | number::GETEUID32 | number::GETGID32 | number::GETEGID32 => Ok(0),
        number::KILL => process_calls::kill(a, b),
        number::TGKILL => process_calls::kill(b, c),
        number::WAITPID | number::WAIT4 => process_calls::waitpid(a, b, c),
        number::SCHED_YIELD => process_calls::sched_yield(),
        number::SET_THREAD_AREA => process_calls::set_thread_area(a),
        number::GET_THREAD_AREA => process_calls::get_thread_area(a),
        number::SET_TID_ADDRESS => process_calls::getpid(),
        number::SETUID | number::SETUID32 | number::SETGID | number::SETGID32 => Ok(0),
        number::GETRESUID32 | number::GETRESGID32 => process_calls::root_thrice([a, b, c]),
        // Root is in no other groups.
        number::GETGROUPS | number::GETGROUPS32 => Ok(0),
        // There are no signals to handle, and no threads to share a lock with.
        number::RT_SIGACTION => process_calls::rt_sigaction(c),
        number::RT_SIGPROCMASK => process_calls::rt_sigprocmask(c, d),
        number::SIGALTSTACK => Ok(0),
        number::SET_ROBUST_LIST | number::FUTEX => Ok(0),
        number::RSEQ => Err(Errno::ENOSYS),
        number::GETPGID | number::GETSID | number::SETSID => process_calls::getpgrp(),
        number::SETPGID | number::PRCTL => Ok(0),
        // All are equals: the ordinary priority, which is told as twenty less it.
        number::GETPRIORITY => Ok(20),
        number::SETPRIORITY | number::NICE => Ok(0),
        number::SCHED_GETAFFINITY => process_calls::sched_getaffinity(b, c),
        number::GETCPU => process_calls::getcpu([a, b]),
        number::UMASK => Ok(0o022),
        number::UNAME => process_calls::uname(a),
        number::SYSINFO => process_calls::sysinfo(a),
        number::GETRUSAGE => process_calls::getrusage(b),
        number::SETRLIMIT => Ok(0),
        number::UGETRLIMIT => process_calls::getrlimit(a, b),
        number::PRLIMIT64 => process_calls::prlimit64(b, d),
        number::GETRANDOM => process_calls::getrandom(a, b),
        number::REBOOT => process_calls::reboot(a, b, c),
        _ => return None,
    })
}

/// Calls on memory.
fn for_memory(call: u32, [a, b, c, d, e, f]: [u32; 6]) -> Option<Answer> {
    Some(match call {
        number::BRK => memory_calls::brk(a),
        number::MMAP => memory_calls::old_mmap(a),
        number::MMAP2 => memory_calls::mmap2(a, b, c, d, e, f),
        number::MUNMAP => memory_calls::munmap(a, b),
        number::MPROTECT => memory_calls::mprotect(a, b, c),
        number::MREMAP => memory_calls::mremap(a, b, c, d),
        // Nothing is ever written to a file, or moved out of memory.
        number::MADVISE | number::MSYNC => Ok(0),
        number::MLOCK | number::MUNLOCK | number::MLOCKALL | number::MUNLOCKALL => Ok(0),
        _ => return None,
    })
}

/// Calls on time.
fn for_time(call: u32, [a, b, c, _, _, _]: [u32; 6]) -> Option<Answer> {
    Some(match call {
        number::TIME => time_calls::time(a),
        number::TIMES => time_calls::times(a),
        number::GETTIMEOFDAY => time_calls::gettimeofday(a),
        number::CLOCK_GETTIME => time_calls::clock_gettime(a, b),
        number::CLOCK_GETTIME64 => time_calls::clock_gettime64(a, b),
        number::CLOCK_GETRES => time_calls::clock_getres(a, b),
        number::CLOCK_GETRES_TIME64 => time_calls::clock_getres64(a, b),
        number::NANOSLEEP => time_calls::nanosleep(a),
        number::CLOCK_NANOSLEEP => time_calls::clock_nanosleep(a, b, c),
        number::CLOCK_NANOSLEEP_TIME64 => time_calls::clock_nanosleep64(a, b, c),
        _ => return None,
    })
}

/// Calls of our own.
fn for_shell(call: u32, [a, b, c, _, _, _]: [u32; 6]) -> Option<Answer> {
    Some(match call {
        private::SPAWN => private_calls::spawn(a, b, c),
        private::PROCESSES => private_calls::processes(a, b),
        private::MEMORY => private_calls::memory(a),
        private::PANIC => private_calls::panic(a),
        private::MEASURE => private_calls::measure(a, b, c),
        _ => return None,
    })
}

/// Says, the first time, that a call isn't there. Numbers too large for the list share one bit.
fn name_once(call: u32) {
    static NAMED: InterruptLock<[u32; 16]> = InterruptLock::new([0; 16]);
    let bit = call.min(511);
    let is_new = NAMED.with(|named| {
        let word = &mut named[(bit / 32) as usize];
        let mask = 1 << (bit % 32);
        let is_new = *word & mask == 0;
        *word |= mask;
        is_new
    });
    if is_new {
        println!("{}: no system call {call}", processes::current_name());
    }
}
