//! How fast the pool dies: a pass begins early enough, and moves enough, that no more is dead at its end than may be, though batches go on meanwhile.
//!
//! All of it is an estimate, which decides when and how much is moved and never what is dead.

use super::victims::{Limits, Space};

/// What dies while a pass is under way, in thousandths of what lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Dying(u16);

impl Dying {
    #[cfg(test)]
    pub(super) const fn per_mille(per_mille: u16) -> Self {
        Self(per_mille)
    }

    pub(super) const fn bytes(self, live_bytes: u64) -> u64 {
        live_bytes / 1000 * self.0 as u64
    }

    /// Whether it is more than an eighth of what may be dead: then there is no time for pauses.
    pub(super) const fn is_fast(self, limits: Limits) -> bool {
        self.0 * 8 > limits.most
    }
}

/// What the last passes saw of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pace {
    /// When the last pass began so much was stored, and it left so much dead.
    last: Option<(u64, u64)>,
    /// Of what batches stored, so many thousandths made as much die. New data does not, overwrites do.
    deadly_per_mille: u64,
    /// What is stored during a pass makes so much die, in thousandths of what lives.
    dying_per_mille: u64,
}

impl Default for Pace {
    /// Until it is known better, all that is stored is taken for overwrites.
    fn default() -> Self {
        Self { last: None, deadly_per_mille: 1000, dying_per_mille: 0 }
    }
}

impl Pace {
    /// A pass that began when `began` was stored, and ends now that `stored` is, found the pool so and leaves it so. The last batch stored `batch`.
    pub(super) fn look(&mut self, began: u64, stored: u64, batch: u64, found: Space, left: Space) {
        // What a batch overwrites dies at once: one more may come in a pass, if they come at all.
        let is_busy = stored > self.last.map_or(began, |(stored_then, _)| stored_then);
        let meanwhile = stored - began + if is_busy { batch } else { 0 };
        if let Some((stored_then, dead_then)) = self.last
            && began > stored_then
        {
            let died = found.dead_bytes().saturating_sub(dead_then);
            let deadly = (died.saturating_mul(1000) / (began - stored_then)).min(1000);
            // To be late costs space, to be early some writes: up at once, down slowly.
            self.deadly_per_mille = deadly.max(self.deadly_per_mille.midpoint(deadly));
        }
        self.last = Some((began, left.dead_bytes()));
        self.dying_per_mille = meanwhile.saturating_mul(self.deadly_per_mille) / left.live_bytes.max(1);
    }

    /// At most a quarter of what may be dead: what is moved makes passes longer, and longer passes must not make ever more be moved.
    pub(super) fn dying(&self, limits: Limits) -> Dying {
        let most = limits.most / 4;
        Dying(u16::try_from(self.dying_per_mille).map_or(most, |dying| dying.min(most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(object_bytes: u64, live_bytes: u64) -> Space {
        Space { object_bytes, live_bytes }
    }

    /// What is expected to die after 20 passes between which so much is stored and dies; a quarter of it during a pass, and in one batch.
    fn after(stored_between: u64, died_between: u64) -> u16 {
        let mut pace = Pace::default();
        for pass in 0..20 {
            let found = space(100_000 + died_between, 100_000);
            let (began, quarter) = (pass * stored_between, stored_between / 4);
            pace.look(began, began + quarter, quarter, found, space(100_000, 100_000));
        }
        pace.dying(Limits::of(20)).0
    }

    #[test]
    fn overwrites_let_as_much_die_as_they_store_and_new_data_nothing() {
        assert_eq!(after(6000, 6000), 30);
        assert_eq!(after(6000, 2000), 9);
        assert_eq!(after(6000, 0), 0);
        assert_eq!(after(6000, 600_000), 30, "what snapshots let go of is not what batches did");
    }

    #[test]
    fn what_is_expected_to_die_is_bounded() {
        assert_eq!(Pace::default().dying(Limits::of(20)), Dying(0));
        assert_eq!(after(60_000, 60_000), 50);
        assert_eq!(after(u64::MAX / 40, u64::MAX / 40), 50);
        assert_eq!(Dying(100).bytes(5000), 500);
        assert!(Dying(26).is_fast(Limits::of(20)) && !Dying(25).is_fast(Limits::of(20)));
    }

    #[test]
    fn more_is_believed_at_once_and_less_slowly() {
        let mut pace = Pace::default();
        let mut look = |began: u64, died: u64| {
            pace.look(began, began, 3000, space(100_000 + died, 100_000), space(100_000, 100_000));
            pace.dying(Limits::of(20)).0
        };
        assert_eq!([look(0, 0), look(6000, 0), look(12_000, 0)], [0, 15, 7]);
        assert_eq!([look(18_000, 6000), look(24_000, 0)], [30, 15]);
        assert_eq!(look(24_000, 50_000), 0, "nothing was stored since the last time");
        assert_eq!(look(30_000, 6000), 30);
    }
}
