//! The numbers of the calls: Linux's on i386 (its `syscall_32.tbl`), those that this kernel knows.

/// A number a line.
macro_rules! numbers {
    ($($name:ident = $number:literal;)*) => {
        $(#[doc = concat!("System call ", $number, ".")] pub const $name: u32 = $number;)*
    };
}

numbers! {
    EXIT = 1;
    READ = 3;
    WRITE = 4;
    OPEN = 5;
    CLOSE = 6;
    WAITPID = 7;
    UNLINK = 10;
    CHDIR = 12;
    TIME = 13;
    LSEEK = 19;
    GETPID = 20;
    GETUID = 24;
    ACCESS = 33;
    KILL = 37;
    DUP = 41;
    TIMES = 43;
    BRK = 45;
    GETGID = 47;
    GETEUID = 49;
    GETEGID = 50;
    IOCTL = 54;
    SETPGID = 57;
    UMASK = 60;
    DUP2 = 63;
    GETPPID = 64;
    GETPGRP = 65;
    GETTIMEOFDAY = 78;
    READLINK = 85;
    REBOOT = 88;
    MMAP = 90;
    MUNMAP = 91;
    WAIT4 = 114;
    SYSINFO = 116;
    UNAME = 122;
    MPROTECT = 125;
    LLSEEK = 140;
    READV = 145;
    WRITEV = 146;
    SCHED_YIELD = 158;
    NANOSLEEP = 162;
    MREMAP = 163;
    POLL = 168;
    PRCTL = 172;
    RT_SIGACTION = 174;
    RT_SIGPROCMASK = 175;
    PREAD64 = 180;
    GETCWD = 183;
    SIGALTSTACK = 186;
    UGETRLIMIT = 191;
    MMAP2 = 192;
    STAT64 = 195;
    LSTAT64 = 196;
    FSTAT64 = 197;
    GETUID32 = 199;
    GETGID32 = 200;
    GETEUID32 = 201;
    GETEGID32 = 202;
    MADVISE = 219;
    GETDENTS64 = 220;
    FCNTL64 = 221;
    GETTID = 224;
    SENDFILE64 = 239;
    FUTEX = 240;
    SET_THREAD_AREA = 243;
    GET_THREAD_AREA = 244;
    FADVISE64 = 250;
    EXIT_GROUP = 252;
    SET_TID_ADDRESS = 258;
    CLOCK_GETTIME = 265;
    CLOCK_GETRES = 266;
    CLOCK_NANOSLEEP = 267;
    TGKILL = 270;
    FADVISE64_64 = 272;
    OPENAT = 295;
    FSTATAT64 = 300;
    READLINKAT = 305;
    FACCESSAT = 307;
    SET_ROBUST_LIST = 311;
    DUP3 = 330;
    PRLIMIT64 = 340;
    GETRANDOM = 355;
    STATX = 383;
    RSEQ = 386;
    CLOCK_GETTIME64 = 403;
    CLOCK_GETRES_TIME64 = 406;
    CLOCK_NANOSLEEP_TIME64 = 407;
    FACCESSAT2 = 439;
}
