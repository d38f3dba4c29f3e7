//! Small SVG pictures: bars with intervals, curves.

use std::fmt::Write as _;

const INK: &str = "#24292f";
const GRID: &str = "#d0d7de";
const OURS: &str = "#0969da";
const OTHERS: &str = "#8c959f";
const SERIES: [&str; 6] = ["#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#57606a"];

/// One bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Drawn in the colour of what is measured.
    pub(crate) ours: bool,
}

/// One curve; x are positions of the given labels.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) label: String,
    pub(crate) values: Vec<f64>,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn open(width: f64, height: f64, title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
    )
}

/// Horizontal bars, in the order given.
pub(crate) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let (left, right, row) = (250.0, 660.0, 26.0);
    let height = 60.0 + row * bars.len() as f64;
    let mut svg = open(760.0, height, &format!("{title} ({unit})"));
    let most = bars.iter().map(|b| b.high.max(b.value)).fold(1e-9, f64::max);
    let x = |value: f64| left + (right - left) * (value / most).clamp(0.0, 1.0);
    for (number, bar) in bars.iter().enumerate() {
        let y = 40.0 + row * number as f64;
        let colour = if bar.ours { OURS } else { OTHERS };
        let middle = y + 9.0;
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{left:.0}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>\n\
             <path d=\"M{:.1} {middle:.0}H{:.1}\" stroke=\"{INK}\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{:.0}\">{}</text>\n",
            left - 8.0,
            y + 13.0,
            escape(&bar.label),
            x(bar.value) - left,
            x(bar.low),
            x(bar.high),
            x(bar.value.max(bar.high)) + 6.0,
            y + 13.0,
            figure(bar.value)
        );
    }
    svg + "</svg>\n"
}

/// Curves over labelled positions, from zero.
pub(crate) fn curves(title: &str, unit: &str, x_title: &str, labels: &[String], curves: &[Curve]) -> String {
    let (left, top, right, bottom) = (70.0, 40.0, 480.0, 300.0);
    let mut svg = open(760.0, 350.0, &format!("{title} ({unit})"));
    let most = curves.iter().flat_map(|c| &c.values).copied().filter(|v| v.is_finite()).fold(1e-9, f64::max);
    let steps = (labels.len().max(2) - 1) as f64;
    let x = |at: usize| left + (right - left) * at as f64 / steps;
    let y = |value: f64| bottom - (bottom - top) * (value / most).clamp(0.0, 1.0);
    for quarter in 0..=4 {
        let value = most * f64::from(quarter) / 4.0;
        let _ = write!(
            svg,
            "<path d=\"M{left} {0:.1}H{right}\" stroke=\"{GRID}\"/>\n\
             <text x=\"{1:.0}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>\n",
            y(value),
            left - 8.0,
            y(value) + 4.0,
            figure(value)
        );
    }
    for (at, label) in labels.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            x(at),
            bottom + 18.0,
            escape(label)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(left, right),
        bottom + 38.0,
        escape(x_title)
    );
    for (number, curve) in curves.iter().enumerate() {
        let colour = SERIES[number % SERIES.len()];
        let points: Vec<String> = curve
            .values
            .iter()
            .enumerate()
            .filter(|(_, v)| v.is_finite())
            .map(|(at, v)| format!("{:.1},{:.1}", x(at), y(*v)))
            .collect();
        let row = top + 12.0 + 20.0 * number as f64;
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <path d=\"M{:.0} {row:.0}h18\" stroke=\"{colour}\" stroke-width=\"3\"/>\n\
             <text x=\"{:.0}\" y=\"{:.0}\">{}</text>\n",
            points.join(" "),
            right + 16.0,
            right + 40.0,
            row + 4.0,
            escape(&curve.label)
        );
        for point in points {
            let (cx, cy) = point.split_once(',').unwrap_or(("0", "0"));
            let _ = writeln!(svg, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\" fill=\"{colour}\"/>");
        }
    }
    svg + "</svg>\n"
}

fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}
