//! Whether a metric drifts: a window in the middle of the run against one at its end, by their medians, or by their lowest
//! values. Of an hour these are the minutes 20 to 30 and 50 to 60.

use crate::metric::{Kind, Metric};
use crate::sample::Sample;

/// What became of one metric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drift {
    /// The median or the lowest value in the window, or the growth in an hour.
    pub(crate) middle: f64,
    pub(crate) end: f64,
    pub(crate) most: f64,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Flat,
    Grows,
    /// It may do what it did.
    Shown,
    /// It must be flat, but this run cannot tell.
    NotJudged(&'static str),
}

impl Drift {
    /// The difference of the end from the middle, in percent.
    pub(crate) fn percent(&self) -> Option<f64> {
        (self.middle != 0.0).then(|| (self.end - self.middle) / self.middle * 100.0)
    }
}

/// Judges a metric over a run; `None` when there are too few samples to say anything.
pub(crate) fn of(metric: Metric, samples: &[Sample]) -> Option<Drift> {
    let last = samples.last()?.seconds;
    let window = |from: f64, to: f64| -> Vec<&Sample> {
        samples.iter().filter(|sample| sample.seconds >= last * from && sample.seconds <= last * to).collect()
    };
    let (middle, end) = (window(1.0 / 3.0, 0.5), window(5.0 / 6.0, 1.0));
    let most = samples.iter().map(|sample| sample.value(metric)).fold(0.0, f64::max);
    let restarted = samples.iter().any(|sample| sample.kills != samples[0].kills);
    let limited = |middle: f64, end: f64, growth_max: f64| {
        if restarted {
            Verdict::NotJudged("the process was restarted")
        } else if last < metric.judged_from_seconds() * 0.99 {
            Verdict::NotJudged("the run is too short")
        } else if end - middle > growth_max {
            Verdict::Grows
        } else {
            Verdict::Flat
        }
    };
    let (middle, end, verdict) = match metric.kind() {
        Kind::Growing => (speed(metric, &middle)?, speed(metric, &end)?, Verdict::Shown),
        Kind::Level => (median(metric, &middle)?, median(metric, &end)?, Verdict::Shown),
        Kind::Flat { percent } => {
            let (middle, end) = (median(metric, &middle)?, median(metric, &end)?);
            (middle, end, limited(middle, end, middle * percent / 100.0))
        }
        Kind::Floor { slack } => {
            let (middle, end) = (lowest(metric, &middle)?, lowest(metric, &end)?);
            (middle, end, limited(middle, end, slack))
        }
    };
    Some(Drift { middle, end, most, verdict })
}

fn median(metric: Metric, window: &[&Sample]) -> Option<f64> {
    let mut values: Vec<f64> = window.iter().map(|sample| sample.value(metric)).collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[values.len() / 2 - 1], upper) })
}

fn lowest(metric: Metric, window: &[&Sample]) -> Option<f64> {
    window.iter().map(|sample| sample.value(metric)).min_by(f64::total_cmp)
}

/// Growth in an hour.
fn speed(metric: Metric, window: &[&Sample]) -> Option<f64> {
    let (first, last) = (window.first()?, window.last()?);
    let hours = (last.seconds - first.seconds) / 3600.0;
    (hours > 0.0).then(|| (last.value(metric) - first.value(metric)) / hours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use system_tests::random::Random;

    const LEVEL: f64 = 400e6;

    /// An hour of samples whose memory is what `shape` says of the minute.
    fn hour(shape: impl Fn(f64) -> f64) -> Vec<Sample> {
        (0..=360_u32)
            .map(|number| {
                let seconds = f64::from(number) * 10.0;
                Sample::new(seconds, 0, |_| shape(seconds / 60.0))
            })
            .collect()
    }

    fn verdict(metric: Metric, samples: &[Sample]) -> Verdict {
        of(metric, samples).expect("enough samples").verdict
    }

    #[test]
    fn a_level_series_is_flat() {
        assert_eq!(verdict(Metric::Anonymous, &hour(|_| LEVEL)), Verdict::Flat);
    }

    #[test]
    fn a_leak_of_a_third_of_a_percent_a_minute_is_found() {
        let leaking = hour(|minute| LEVEL * (1.0 + minute / 300.0));
        assert_eq!(verdict(Metric::Anonymous, &leaking), Verdict::Grows);
        let percent = of(Metric::Anonymous, &leaking).and_then(|drift| drift.percent()).expect("a level");
        assert!((9.0..10.0).contains(&percent), "{percent}");
    }

    #[test]
    fn a_leak_is_found_under_the_noise_of_the_load() {
        let mut noise = Random::seeded(1);
        let noise: Vec<f64> =
            (0..=360).map(|_| f64::from(u32::try_from(noise.below(100)).expect("small"))).collect();
        let at = |minute: f64| {
            let index = (0_u32..=360).find(|index| f64::from(*index) >= minute * 6.0 - 0.5).expect("an hour");
            noise[index as usize] * 1e6
        };
        assert_eq!(verdict(Metric::Anonymous, &hour(|minute| LEVEL + at(minute))), Verdict::Flat);
        let leaking = hour(|minute| LEVEL + at(minute) + minute * 2e6);
        assert_eq!(verdict(Metric::Anonymous, &leaking), Verdict::Grows);
    }

    #[test]
    fn caches_that_fill_in_the_first_minutes_are_no_leak() {
        assert_eq!(
            verdict(Metric::Anonymous, &hour(|minute| LEVEL * (minute / 15.0).min(1.0))),
            Verdict::Flat
        );
    }

    #[test]
    fn a_step_in_the_second_half_is_found() {
        let step = hour(|minute| if minute < 45.0 { LEVEL } else { LEVEL * 1.06 });
        assert_eq!(verdict(Metric::Anonymous, &step), Verdict::Grows);
    }

    #[test]
    fn memory_that_is_given_back_is_no_leak() {
        assert_eq!(verdict(Metric::Anonymous, &hour(|minute| LEVEL * (2.0 - minute / 60.0))), Verdict::Flat);
    }

    #[test]
    fn a_file_descriptor_lost_every_five_minutes_is_found() {
        let leaking = hour(|minute| 40.0 + (minute / 5.0).floor());
        assert_eq!(verdict(Metric::Descriptors, &leaking), Verdict::Grows);
        assert_eq!(verdict(Metric::Threads, &leaking), Verdict::Grows);
        assert_eq!(verdict(Metric::Descriptors, &hour(|_| 40.0)), Verdict::Flat);
    }

    #[test]
    fn file_descriptors_that_come_and_go_are_no_leak_but_hide_none() {
        let load = |minute: f64| (minute * 7.3).sin().abs() * 60.0;
        assert_eq!(verdict(Metric::Descriptors, &hour(|minute| 40.0 + load(minute))), Verdict::Flat);
        let leaking = hour(|minute| 40.0 + load(minute) + minute / 2.0);
        assert_eq!(verdict(Metric::Descriptors, &leaking), Verdict::Grows);
    }

    #[test]
    fn what_may_grow_is_shown_with_its_speed() {
        let drift = of(Metric::Pool, &hour(|minute| minute * 1e6)).expect("enough samples");
        assert_eq!(drift.verdict, Verdict::Shown);
        assert!((drift.end - 60e6).abs() < 1.0, "{drift:?}");
    }

    #[test]
    fn a_run_that_is_too_short_or_restarted_says_so_instead_of_judging() {
        let short: Vec<Sample> = hour(|minute| LEVEL * (1.0 + minute)).into_iter().take(60).collect();
        assert!(matches!(verdict(Metric::Anonymous, &short), Verdict::NotJudged(_)));
        assert_eq!(verdict(Metric::Descriptors, &short), Verdict::Grows);
        let restarted: Vec<Sample> = (0..=360_u32)
            .map(|number| Sample::new(f64::from(number) * 10.0, u64::from(number / 100), |_| LEVEL))
            .collect();
        assert!(matches!(verdict(Metric::Anonymous, &restarted), Verdict::NotJudged(_)));
        assert!(of(Metric::Anonymous, &short[..1]).is_none() || of(Metric::Anonymous, &[]).is_none());
    }
}
