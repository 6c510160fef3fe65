//! The text format of Prometheus, version 0.0.4.
//!
//! ```text
//! # HELP cairn_volume_size_bytes Size of the volume.
//! # TYPE cairn_volume_size_bytes gauge
//! cairn_volume_size_bytes{volume="disk0"} 10737418240
//! ```
//!
//! A family's samples follow its TYPE without a gap, and no family comes twice. Names are `cairn_`, what it is, and the unit last;
//! counters end in `_total`.

use std::fmt::{self, Write};

/// What a scraper reads.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

/// A number, written as exactly as it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

/// Yes is 1.
impl From<bool> for Number {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Real(value) if value.is_infinite() => {
                f.write_str(if *value > 0.0 { "+Inf" } else { "-Inf" })
            }
            // `NaN` is written as Prometheus wants it.
            Self::Real(value) => write!(f, "{value}"),
        }
    }
}

/// Names and values.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// The text as it grows.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

impl Exposition {
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Into<Number>) {
        self.head(Kind::Gauge, name, help);
        self.sample(name, &[], value.into());
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Into<Number>) {
        self.head(Kind::Counter, name, help);
        self.sample(name, &[], value.into());
    }

    /// A gauge with a sample for each set of labels.
    pub(super) fn labelled<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, Number)>,
    ) {
        self.head(Kind::Gauge, name, help);
        for (labels, value) in samples {
            self.sample(name, labels, value);
        }
    }

    /// Families with a sample for each of `things`, told apart by `label`.
    pub(super) fn per<'a, T>(
        &'a mut self,
        label: &'static str,
        things: &'a [T],
        name_of: fn(&T) -> &str,
    ) -> Per<'a, T> {
        Per { exposition: self, label, things, name_of }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn head(&mut self, kind: Kind, name: &str, help: &str) {
        debug_assert!(is_name(name), "{name} is no name of a metric");
        debug_assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}: counters end in _total");
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP cairn_{name} {help}\n# TYPE cairn_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: Number) {
        let _ = write!(self.text, "cairn_{name}");
        for (position, (label, text)) in labels.iter().enumerate() {
            let open = if position == 0 { '{' } else { ',' };
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.text, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// See [`Exposition::per`].
pub(super) struct Per<'a, T> {
    exposition: &'a mut Exposition,
    label: &'static str,
    things: &'a [T],
    name_of: fn(&T) -> &str,
}

impl<T> Per<'_, T> {
    pub(super) fn gauge<N: Into<Number>>(&mut self, name: &str, help: &str, value: impl Fn(&T) -> N) {
        self.family(Kind::Gauge, name, help, |thing| Some(value(thing).into()));
    }

    pub(super) fn counter<N: Into<Number>>(&mut self, name: &str, help: &str, value: impl Fn(&T) -> N) {
        self.family(Kind::Counter, name, help, |thing| Some(value(thing).into()));
    }

    /// A gauge of those things that have it.
    pub(super) fn gauge_of_some<N: Into<Number>>(
        &mut self,
        name: &str,
        help: &str,
        value: impl Fn(&T) -> Option<N>,
    ) {
        self.family(Kind::Gauge, name, help, |thing| value(thing).map(Into::into));
    }

    /// A sample of value 1 whose further labels say what the thing is.
    pub(super) fn info(
        &mut self,
        name: &str,
        help: &str,
        labels: impl for<'t> Fn(&'t T) -> Vec<(&'static str, &'t str)>,
    ) {
        self.exposition.head(Kind::Gauge, name, help);
        for thing in self.things {
            let own = [(self.label, (self.name_of)(thing))];
            let all: Vec<_> = own.into_iter().chain(labels(thing)).collect();
            self.exposition.sample(name, &all, Number::Whole(1));
        }
    }

    fn family(&mut self, kind: Kind, name: &str, help: &str, value: impl Fn(&T) -> Option<Number>) {
        self.exposition.head(kind, name, help);
        for thing in self.things {
            if let Some(value) = value(thing) {
                self.exposition.sample(name, &[(self.label, (self.name_of)(thing))], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_label_values_are_escaped() {
        let mut page = Exposition::default();
        page.labelled("odd", "a \\ and a\nnew line", [(&[("what", "\"a\\b\"\nc")][..], Number::Whole(3))]);
        let expected = "# HELP cairn_odd a \\\\ and a\\nnew line\n# TYPE cairn_odd gauge\ncairn_odd{what=\"\\\"a\\\\b\\\"\\nc\"} 3\n";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn numbers_are_written_as_prometheus_reads_them() {
        let written = |number: Number| number.to_string();
        assert_eq!(written(u64::MAX.into()), "18446744073709551615");
        assert_eq!(written(true.into()), "1");
        assert_eq!(written(0.25.into()), "0.25");
        assert_eq!(written(f64::NEG_INFINITY.into()), "-Inf");
        assert_eq!(written(f64::NAN.into()), "NaN");
    }

    #[test]
    fn a_family_has_its_head_once_and_a_sample_for_each_thing() {
        let mut page = Exposition::default();
        let things = [("a", 1_u64), ("b", 2)];
        let mut per = page.per("thing", &things, |thing| thing.0);
        per.counter("seen_total", "Times.", |thing| thing.1);
        per.gauge_of_some("size_bytes", "Of some.", |thing| (thing.1 > 1).then_some(thing.1));
        let expected = "# HELP cairn_seen_total Times.\n# TYPE cairn_seen_total counter\ncairn_seen_total{thing=\"a\"} 1\n\
            cairn_seen_total{thing=\"b\"} 2\n# HELP cairn_size_bytes Of some.\n# TYPE cairn_size_bytes gauge\n\
            cairn_size_bytes{thing=\"b\"} 2\n";
        assert_eq!(page.into_text(), expected);
    }
}
