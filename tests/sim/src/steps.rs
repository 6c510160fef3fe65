//! A request as the engine makes it: steps of its write order.

/// Sectors in a block: what the engine writes as one.
pub(crate) const BLOCK_SECTORS: u64 = 8;

/// A run of sectors that the engine makes in one step of its write order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) first: u64,
    pub(crate) sectors: u64,
}

impl Step {
    /// Whether it begins and ends with blocks.
    pub(crate) fn is_aligned(self) -> bool {
        self.first.is_multiple_of(BLOCK_SECTORS) && self.sectors.is_multiple_of(BLOCK_SECTORS)
    }
}

/// The steps of a request of any alignment: part of a block, whole blocks, part of a block.
pub(crate) fn steps(first: u64, sectors: u64) -> Vec<Step> {
    let end = first + sectors;
    let (whole, whole_end) = (first.next_multiple_of(BLOCK_SECTORS), end / BLOCK_SECTORS * BLOCK_SECTORS);
    if whole > whole_end {
        return vec![Step { first, sectors }];
    }
    let parts = [(first, whole), (whole, whole_end), (whole_end, end)];
    let parts = parts.into_iter().filter(|(from, to)| from < to);
    parts.map(|(from, to)| Step { first: from, sectors: to - from }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cut_where_the_engine_cuts_it() {
        let cut = |first, sectors| {
            steps(first, sectors).iter().map(|step| (step.first, step.sectors)).collect::<Vec<_>>()
        };
        assert_eq!(cut(1, 3), [(1, 3)]);
        assert_eq!(cut(8, 16), [(8, 16)]);
        assert_eq!(cut(5, 20), [(5, 3), (8, 16), (24, 1)]);
        assert_eq!(cut(5, 5), [(5, 3), (8, 2)]);
        assert_eq!(cut(0, 3), [(0, 3)]);
    }
}
