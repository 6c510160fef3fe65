//! The plot: one small panel per metric, all over the same time.

use crate::metric::Metric;
use crate::sample::Sample;
use std::fmt::Write;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 110.0;
const LEFT: f64 = 20.0;
const TOP: f64 = 30.0;
const GAP: f64 = 50.0;
const COLUMNS: usize = 2;

pub(crate) fn svg(samples: &[Sample]) -> String {
    let rows = Metric::ALL.len().div_ceil(COLUMNS);
    let (width, height) = (LEFT + at(COLUMNS, WIDTH), TOP + at(rows, HEIGHT));
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (index, metric) in Metric::ALL.into_iter().enumerate() {
        let (x, y) = (LEFT + at(index % COLUMNS, WIDTH), TOP + at(index / COLUMNS, HEIGHT));
        panel(&mut picture, metric, samples, x, y);
    }
    picture.push_str("</svg>\n");
    picture
}

fn at(place: usize, size: f64) -> f64 {
    f64::from(u32::try_from(place).expect("a handful of panels")) * (size + GAP)
}

fn panel(picture: &mut String, metric: Metric, samples: &[Sample], x: f64, y: f64) {
    let seconds = samples.last().map_or(1.0, |sample| sample.seconds).max(1.0);
    let most = samples.iter().map(|sample| sample.value(metric)).fold(0.0, f64::max);
    let top = if most > 0.0 { most * 1.1 } else { 1.0 };
    let bottom = y + HEIGHT;
    let mut points = String::new();
    for sample in samples {
        let (right, up) = (sample.seconds / seconds * WIDTH, sample.value(metric) / top * HEIGHT);
        let _ = write!(points, "{:.1},{:.1} ", x + right, bottom - up);
    }
    let _ = writeln!(
        picture,
        "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"#212529\">{} (highest {:.1}, {:.0} minutes)</text>\n\
         <path d=\"M{x:.1} {y:.1}V{bottom:.1}H{:.1}\" fill=\"none\" stroke=\"#adb5bd\"/>\n\
         <polyline points=\"{points}\" fill=\"none\" stroke=\"#d9480f\" stroke-width=\"1.5\"/>",
        y - 6.0,
        metric.title(),
        most / metric.scale(),
        seconds / 60.0,
        x + WIDTH
    );
}
