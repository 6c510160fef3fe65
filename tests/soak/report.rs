//! What the run showed: a page for people, and whether it passed.

use crate::drift::{self, Drift, Verdict};
use crate::metric::{Kind, Metric};
use crate::options::Options;
use crate::plot;
use crate::sample::Sample;
use crate::site::{Failure, Site};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use system_tests::tool::Tool;

/// What the exit status says.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) passed: bool,
    reasons: Vec<String>,
}

/// One line a minute, so that whoever watches knows that it lives.
pub(crate) fn progress(site: &Site, sample: &Sample, options: &Options) {
    let every = (60.0_f64).min(options.duration.as_secs_f64() / 6.0);
    if sample.seconds % every > options.sample_every.as_secs_f64() {
        return;
    }
    let shown = |metric: Metric| format!("{:.0}", sample.value(metric) / metric.scale());
    eprintln!(
        "soak: {:5.0} s: memory {} MiB, threads {}, files {}, log {} MiB, pool {} MiB, failures {}",
        sample.seconds,
        shown(Metric::Anonymous),
        shown(Metric::Threads),
        shown(Metric::Descriptors),
        shown(Metric::Wal),
        shown(Metric::Pool),
        site.failures().len()
    );
}

/// Writes `report.md` and `plot.svg`, prints the first, and judges.
pub(crate) fn write(
    site: &Site,
    samples: &[Sample],
    options: &Options,
    seed: u64,
    interrupted: bool,
) -> Result<Outcome> {
    let drifts: Vec<(Metric, Option<Drift>)> =
        Metric::ALL.iter().map(|metric| (*metric, drift::of(*metric, samples))).collect();
    let failures = site.failures();
    let outcome = judge(&drifts, &failures, interrupted);
    let mut page = heading(samples, options, seed, &outcome)?;
    table(&mut page, &drifts);
    operations(&mut page, &site.counts());
    list_failures(&mut page, &failures);
    std::fs::write(options.out.join("report.md"), &page).context("writing report.md")?;
    std::fs::write(options.out.join("plot.svg"), plot::svg(samples)).context("writing plot.svg")?;
    println!("{page}");
    Ok(outcome)
}

fn judge(drifts: &[(Metric, Option<Drift>)], failures: &[Failure], interrupted: bool) -> Outcome {
    let mut reasons = Vec::new();
    if interrupted {
        reasons.push("it was interrupted".to_owned());
    }
    if !failures.is_empty() {
        reasons.push(format!("{} checks failed", failures.len()));
    }
    for (metric, drift) in drifts {
        match drift.map(|drift| drift.verdict) {
            None => reasons.push(format!("too few samples of {}", metric.column())),
            Some(Verdict::Grows) => reasons.push(format!("{} grows", metric.column())),
            Some(Verdict::Flat | Verdict::Shown | Verdict::NotJudged(_)) => {}
        }
    }
    Outcome { passed: reasons.is_empty(), reasons }
}

fn heading(samples: &[Sample], options: &Options, seed: u64, outcome: &Outcome) -> Result<String> {
    let machine = Tool::new("uname").args(["-srm"]).run()?.stdout;
    let seconds = samples.last().map_or(0.0, |sample| sample.seconds);
    let verdict = if outcome.passed {
        "**Passed**".to_owned()
    } else {
        format!("**Failed**: {}", outcome.reasons.join("; "))
    };
    Ok(format!(
        "# Soak\n\n{verdict}. {:.0} minutes of load, {} samples, seed {seed}; {}{}{}.\n\n\
         The window from a third to a half of the run is compared with its last sixth: of an hour, the minutes 20 to 30 \
         and 50 to 60. The numbers are medians; of threads and open files the lowest values, because a leak raises the \
         floor and the load only the top; of what only grows, the growth in an hour.\n\n",
        seconds / 60.0,
        samples.len(),
        machine.trim(),
        if options.outages { ", with outages of the store" } else { "" },
        if options.restarts { ", with SIGKILL of the gateway" } else { "" },
    ))
}

fn table(page: &mut String, drifts: &[(Metric, Option<Drift>)]) {
    page.push_str("| | middle | end | drift | highest | verdict |\n|---|---|---|---|---|---|\n");
    for (metric, drift) in drifts {
        let Some(drift) = drift else {
            let _ = writeln!(page, "| {} | | | | | too few samples |", metric.title());
            continue;
        };
        let number = |value: f64| format!("{:.1}", value / metric.scale());
        let an_hour = if metric.kind() == Kind::Growing { " an hour" } else { "" };
        let percent = drift.percent().map_or(String::new(), |percent| format!("{percent:+.1} %"));
        let verdict = match drift.verdict {
            Verdict::Flat => "flat".to_owned(),
            Verdict::Grows => "**grows**".to_owned(),
            Verdict::Shown => "not limited".to_owned(),
            Verdict::NotJudged(why) => format!("not judged: {why}"),
        };
        let _ = writeln!(
            page,
            "| {} | {}{an_hour} | {}{an_hour} | {percent} | {} | {verdict} |",
            metric.title(),
            number(drift.middle),
            number(drift.end),
            number(drift.most)
        );
    }
}

fn operations(page: &mut String, counts: &BTreeMap<&'static str, u64>) {
    page.push_str("\n| what was done | times |\n|---|---|\n");
    for (what, number) in counts {
        let _ = writeln!(page, "| {what} | {number} |");
    }
}

fn list_failures(page: &mut String, failures: &[Failure]) {
    if failures.is_empty() {
        page.push_str("\nNo check failed: no mismatch, no refused or lost request.\n");
        return;
    }
    let _ = writeln!(page, "\n## Failed checks\n");
    for failure in failures {
        let what = failure.what.replace('\n', "\n  ");
        let _ = writeln!(page, "- after {:.0} s, {}: {what}", failure.after.as_secs_f64(), failure.who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn flat() -> Vec<(Metric, Option<Drift>)> {
        let drift = Drift { middle: 1.0, end: 1.0, most: 1.0, verdict: Verdict::Flat };
        vec![(Metric::Anonymous, Some(drift))]
    }

    #[test]
    fn a_clean_flat_run_passes() {
        assert!(judge(&flat(), &[], false).passed);
    }

    #[test]
    fn one_failed_check_fails_the_run() {
        let failure =
            Failure { after: Duration::ZERO, who: "fio".to_owned(), what: "verify: bad header".to_owned() };
        assert!(!judge(&flat(), &[failure], false).passed);
    }

    #[test]
    fn growth_too_few_samples_and_an_interruption_fail_the_run() {
        let mut growing = flat();
        growing[0].1.as_mut().expect("a drift").verdict = Verdict::Grows;
        assert!(!judge(&growing, &[], false).passed);
        assert!(!judge(&[(Metric::Anonymous, None)], &[], false).passed);
        assert!(!judge(&flat(), &[], true).passed);
    }
}
