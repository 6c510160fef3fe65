//! The plot: ratios to `qemu-nbd` on a logarithmic axis, one group of bars per workload.

use crate::Options;
use crate::contender::Contender;
use crate::report::{Results, Row};
use std::fmt::Write;

const LEFT: f64 = 300.0;
const WIDTH: f64 = 620.0;
const BAR: f64 = 9.0;
const GAP: f64 = 9.0;
const TOP: f64 = 60.0;
/// The axis runs from 1/16 to 16 times `qemu-nbd`.
const OCTAVES: f64 = 4.0;

fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Cairn => "#d9480f",
        Contender::QemuNbd => "#868e96",
        Contender::NbdkitFile => "#1971c2",
        Contender::NbdkitMemory => "#74c0fc",
        Contender::Disk => "#2f9e44",
    }
}

fn x_of(ratio: f64) -> f64 {
    LEFT + WIDTH * (ratio.log2().clamp(-OCTAVES, OCTAVES) + OCTAVES) / (2.0 * OCTAVES)
}

pub(crate) fn svg(results: &Results, options: &Options) -> String {
    let contenders: Vec<Contender> =
        options.contenders.iter().copied().filter(|contender| *contender != Contender::QemuNbd).collect();
    let mut body = String::new();
    let mut y = TOP;
    for row in Row::ALL {
        let bars: Vec<(Contender, f64)> = contenders
            .iter()
            .filter_map(|contender| Some((*contender, results.ratio(*contender, row)?)))
            .collect();
        if bars.is_empty() {
            continue;
        }
        let top = y;
        for (contender, ratio) in bars {
            bar(&mut body, y, contender, ratio);
            y += BAR;
        }
        text(&mut body, LEFT - 10.0, f64::midpoint(top, y) + 4.0, "end", row.name());
        y += GAP;
    }
    let height = y + 10.0;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        LEFT + WIDTH + 60.0
    );
    axis(&mut picture, y);
    legend(&mut picture, &contenders);
    picture.push_str(&body);
    picture.push_str("</svg>\n");
    picture
}

fn bar(body: &mut String, y: f64, contender: Contender, ratio: f64) {
    let (one, end) = (x_of(1.0), x_of(ratio));
    let (start, width) = (one.min(end), (one - end).abs().max(1.0));
    let _ = writeln!(
        body,
        "<rect x=\"{start:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}: {ratio:.2}</title></rect>",
        BAR - 1.0,
        colour(contender),
        contender.name()
    );
    if contender == Contender::Cairn {
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" fill=\"#212529\">{ratio:.2}</text>",
            one.max(end) + 4.0,
            y + BAR - 1.0
        );
    }
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#212529\">{words}</text>"
    );
}

fn axis(picture: &mut String, bottom: f64) {
    for (ratio, label) in [
        (0.0625, "1/16"),
        (0.25, "1/4"),
        (0.5, "1/2"),
        (1.0, "qemu-nbd"),
        (2.0, "2×"),
        (4.0, "4×"),
        (16.0, "16×"),
    ] {
        let x = x_of(ratio);
        let stroke = if label == "qemu-nbd" { "#212529" } else { "#ced4da" };
        let _ = writeln!(
            picture,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{stroke}\"/>",
            TOP - 8.0
        );
        text(picture, x, TOP - 14.0, "middle", label);
    }
}

fn legend(picture: &mut String, contenders: &[Contender]) {
    let mut x = LEFT;
    for contender in contenders {
        let _ = writeln!(
            picture,
            "<rect x=\"{x:.1}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            colour(*contender)
        );
        text(picture, x + 17.0, 20.0, "start", contender.name());
        x += 120.0;
    }
}
