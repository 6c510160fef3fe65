//! Positions in the orders that Cairn keeps.

use std::fmt;

macro_rules! sequence {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);

            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after this.
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), ":{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

sequence!(
    /// Position in one volume's order of acknowledged writes. The first write is 1; there are no gaps.
    WriteSeq
);
sequence!(
    /// The lease term of a volume's owner; a higher one fences all lower ones. The first is 1.
    Generation
);
sequence!(
    /// Position of a commit in one lineage's order of committed batches. The first is 1.
    CommitSeq
);
sequence!(
    /// Log sequence number: position of a record in one gateway's write-ahead log, over all its volumes.
    /// The first is 1; consecutive records have consecutive numbers.
    Lsn
);
