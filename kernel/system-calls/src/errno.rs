//! Why a call failed.

use core::fmt;

/// An error number, 1..=4095. A call answers it negated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(u16);

/// The numbers, as Linux's `asm-generic/errno.h` gives them, with what they mean.
macro_rules! errors {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self($number);)*

            /// What it means, in words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    _ => "unknown error",
                }
            }
        }
    };
}

errors! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or directory";
    ESRCH = 3, "no such process";
    EINTR = 4, "interrupted";
    EIO = 5, "input/output error";
    E2BIG = 7, "argument list too long";
    ENOEXEC = 8, "not a program this kernel can run";
    EBADF = 9, "bad file descriptor";
    ECHILD = 10, "no child processes";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EEXIST = 17, "file exists";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    EMFILE = 24, "too many open files";
    ENOTTY = 25, "not a terminal";
    ESPIPE = 29, "illegal seek";
    EROFS = 30, "read-only file system";
    ERANGE = 34, "result out of range";
    ENAMETOOLONG = 36, "file name too long";
    ENOSYS = 38, "no such system call";
    ELOOP = 40, "too many symbolic links";
    EOVERFLOW = 75, "value too large";
}

impl Errno {
    /// The largest there can be.
    const MAX: u32 = 4095;

    /// How the call's answer says it.
    #[must_use]
    pub const fn to_answer(self) -> u32 {
        (self.0 as u32).wrapping_neg()
    }

    /// What an answer says: a value, or an error.
    ///
    /// # Errors
    /// The error, if it says one.
    pub const fn check(answer: u32) -> Result<u32, Self> {
        match answer.wrapping_neg() {
            number @ 1..=Self::MAX => Err(Self(number as u16)),
            _ => Ok(answer),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_value_or_an_error() {
        assert_eq!(Errno::ENOENT.to_answer(), -2_i32 as u32);
        assert_eq!(Errno::check(-2_i32 as u32), Err(Errno::ENOENT));
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(0xbfff_0000), Ok(0xbfff_0000));
        assert_eq!(Errno::check(-4096_i32 as u32), Ok(-4096_i32 as u32));
    }
}
