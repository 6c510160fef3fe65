//! What the writers remember: every request, when it was sent and when it was answered.

use super::stamp::Seen;

/// A moment of the journal's own clock, which only counts.
pub type Moment = u64;

/// What a write left in its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Stamps,
    Zeroes,
}

/// One write or zeroing.
#[derive(Clone, Debug)]
pub struct Write {
    pub number: u64,
    pub connection: usize,
    pub first_block: u64,
    pub blocks: u64,
    pub effect: Effect,
    pub fua: bool,
    pub sent: Moment,
    pub answered: Option<Moment>,
}

impl Write {
    /// Whether this write was over before `other` began.
    pub fn is_before(&self, other: &Write) -> bool {
        self.answered.is_some_and(|answered| answered < other.sent)
    }
}

/// One flush that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    pub connection: usize,
    pub sent: Moment,
}

/// One read that was answered, and what it saw.
#[derive(Clone, Debug)]
pub struct Read {
    pub first_block: u64,
    pub sent: Moment,
    pub answered: Moment,
    pub seen: Vec<Seen>,
}

/// Everything that happened between two starts of the server.
#[derive(Clone, Debug)]
pub struct Journal {
    /// What each block held when the round began.
    pub base: Vec<Seen>,
    pub writes: Vec<Write>,
    pub flushes: Vec<Flush>,
    /// When each destage that was answered was asked for: it covers everything that was answered before.
    pub destages: Vec<Moment>,
    pub reads: Vec<Read>,
    /// Whether a flush covers what was answered on other connections (`NBD_FLAG_CAN_MULTI_CONN`).
    pub flush_covers_all: bool,
}

impl Journal {
    pub fn new(base: Vec<Seen>, flush_covers_all: bool) -> Self {
        Self {
            base,
            writes: Vec::new(),
            flushes: Vec::new(),
            destages: Vec::new(),
            reads: Vec::new(),
            flush_covers_all,
        }
    }

    /// The moment before which an answered write of this connection is covered by a finished flush.
    pub fn flushed_before(&self, connection: usize) -> Moment {
        let covering =
            self.flushes.iter().filter(|flush| self.flush_covers_all || flush.connection == connection);
        covering.map(|flush| flush.sent).max().unwrap_or(0)
    }

    /// The moment before which an answered write is in the pool and in the catalog.
    pub fn destaged_before(&self) -> Moment {
        self.destages.iter().copied().max().unwrap_or(0)
    }

    /// For each block, the indexes of the writes that touch it.
    pub fn writes_by_block(&self) -> Vec<Vec<usize>> {
        let mut touching = vec![Vec::new(); self.base.len()];
        for (index, write) in self.writes.iter().enumerate() {
            let first = usize::try_from(write.first_block).expect("a block of the volume");
            let blocks = usize::try_from(write.blocks).expect("a length within the volume");
            for touched in &mut touching[first..first + blocks] {
                touched.push(index);
            }
        }
        touching
    }
}
