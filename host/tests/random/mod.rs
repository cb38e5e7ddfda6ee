//! Numbers that look random, and are the same each time.

#![allow(unreachable_pub, reason = "shared by several test programs")]
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

/// Xorshift, from a seed that isn't 0.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32 % limit
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u32) as usize]
    }

    /// True once in so often.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }
}
