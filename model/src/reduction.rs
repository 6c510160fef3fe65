//! What became of the bytes that guests wrote.

use std::ops::AddAssign;

/// Sums over packed data, in bytes. `written = zero + shared + unique`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Reduction {
    /// Plaintext given to packing: what guests wrote, after coalescing.
    pub written_bytes: u64,
    /// Blocks of zeros: stored as holes.
    pub zero_bytes: u64,
    /// Blocks that were stored already.
    pub shared_bytes: u64,
    /// Blocks that were stored for this.
    pub unique_bytes: u64,
    /// What the unique blocks take, compressed and sealed.
    pub stored_bytes: u64,
}

impl AddAssign for Reduction {
    fn add_assign(&mut self, other: Self) {
        self.written_bytes += other.written_bytes;
        self.zero_bytes += other.zero_bytes;
        self.shared_bytes += other.shared_bytes;
        self.unique_bytes += other.unique_bytes;
        self.stored_bytes += other.stored_bytes;
    }
}
