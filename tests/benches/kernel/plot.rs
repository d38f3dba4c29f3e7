//! Small SVG pictures. They follow the reader's light or dark theme, and bring their own background for
//! readers that know neither.

use std::fmt::Write as _;

const STYLE: &str = "svg{font:12px system-ui,'DejaVu Sans',sans-serif}.paper{fill:#fff;stroke:#d0d7de}text{fill:#24292f}\
.quiet{fill:#57606a}.title{font-size:14px;font-weight:bold}.grid{stroke:#d0d7de}.axis,.whisker{stroke:#24292f;fill:none}\
.ours{fill:#0969da}.other{fill:#8c959f}.target{stroke:#cf222e;stroke-width:2}\
.s0{stroke:#0969da;fill:#0969da}.s1{stroke:#1a7f37;fill:#1a7f37}.s2{stroke:#cf222e;fill:#cf222e}\
.s3{stroke:#9a6700;fill:#9a6700}.s4{stroke:#8250df;fill:#8250df}.s5{stroke:#57606a;fill:#57606a}\
.s6{stroke:#bf3989;fill:#bf3989}.s7{stroke:#1b7c83;fill:#1b7c83}polyline{fill:none!important;stroke-width:2}\
@media(prefers-color-scheme:dark){.paper{fill:#0d1117;stroke:#30363d}text{fill:#e6edf3}.quiet{fill:#8b949e}\
.grid{stroke:#30363d}.axis,.whisker{stroke:#e6edf3}.ours{fill:#58a6ff}.other{fill:#6e7681}.target{stroke:#ff7b72}\
.s0{stroke:#58a6ff;fill:#58a6ff}.s1{stroke:#3fb950;fill:#3fb950}.s2{stroke:#ff7b72;fill:#ff7b72}\
.s3{stroke:#d29922;fill:#d29922}.s4{stroke:#bc8cff;fill:#bc8cff}.s5{stroke:#8b949e;fill:#8b949e}\
.s6{stroke:#f778ba;fill:#f778ba}.s7{stroke:#56d4dd;fill:#56d4dd}}";

const WIDTH: f64 = 900.0;
const RIGHT: f64 = 820.0;
const ROW: f64 = 26.0;
/// Colours of curves.
const SERIES: usize = 8;

/// A figure with its interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// One bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) mark: Mark,
    /// Drawn in the colour of what is measured.
    pub(crate) ours: bool,
    /// Where this bar has to end, by a target.
    pub(crate) target: Option<f64>,
}

/// One curve over labelled positions.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) label: String,
    pub(crate) marks: Vec<Option<Mark>>,
}

/// One curve of points (x, y), both above 0.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A sheet with its title. `note` is a line of explanation below it.
fn open(height: f64, title: &str, note: &str) -> String {
    let (title, note) = (escape(title), escape(note));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"16\" y=\"25\">{title}</text>\n<text class=\"quiet\" x=\"16\" y=\"43\">{note}</text>\n",
        WIDTH - 1.0,
        height - 1.0
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(words));
}

/// Room for labels, by their longest, and labels that fit into it: a character is about 6.8 wide.
fn margin(labels: &mut [String]) -> f64 {
    const MOST: usize = 66;
    for label in labels.iter_mut().filter(|l| l.chars().count() > MOST) {
        *label = label.chars().take(MOST - 1).chain(['…']).collect();
    }
    let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    (6.8 * longest as f64 + 24.0).max(160.0)
}

/// A step between ticks so that at most six fit below `most`.
fn step(most: f64) -> f64 {
    let rough = most / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.999).unwrap_or(rough)
}

fn figure(value: f64) -> String {
    super::report::number(value)
}

fn tick(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A line from low to high with ends; lengths in the picture.
fn whisker(svg: &mut String, low: f64, high: f64, y: f64) {
    let _ = writeln!(
        svg,
        "<path class=\"whisker\" d=\"M{low:.1} {y:.1}H{high:.1}M{low:.1} {0:.1}v8M{high:.1} {0:.1}v8\"/>",
        y - 4.0
    );
}

/// Horizontal bars, in the order given, from zero.
pub(crate) fn bars(title: &str, axis: &str, bars: &[Bar]) -> String {
    let (top, targets) = (60.0, bars.iter().any(|b| b.target.is_some()));
    let bottom = top + ROW * bars.len() as f64;
    let note = if targets {
        "lines: 95 % interval of the median; red: where the target is"
    } else {
        "lines: 95 % interval of the median"
    };
    let mut svg = open(bottom + 56.0, title, note);
    let mut labels: Vec<String> = bars.iter().map(|b| b.label.clone()).collect();
    let left = margin(&mut labels);
    let ends = bars.iter().flat_map(|b| [b.mark.value, b.mark.high, b.target.unwrap_or(0.0)]);
    let most = ends.filter(|v| v.is_finite()).fold(1e-9, f64::max);
    let x = |value: f64| left + (RIGHT - left) * (value / most).clamp(0.0, 1.0);
    let step = step(most);
    let mut at = 0.0;
    while at <= most * 1.0001 {
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{:.1} {top}V{bottom}\"/>", x(at));
        text(&mut svg, x(at), bottom + 18.0, "middle", &tick(at));
        at += step;
    }
    for (number, bar) in bars.iter().enumerate() {
        let y = top + 4.0 + ROW * number as f64;
        text(&mut svg, left - 8.0, y + 13.0, "end", &labels[number]);
        let class = if bar.ours { "ours" } else { "other" };
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{left}\" y=\"{y}\" width=\"{:.1}\" height=\"18\"/>",
            x(bar.mark.value) - left
        );
        whisker(&mut svg, x(bar.mark.low), x(bar.mark.high), y + 9.0);
        let mut end = x(bar.mark.value.max(bar.mark.high));
        if let Some(target) = bar.target.filter(|t| t.is_finite()) {
            let _ = writeln!(svg, "<path class=\"target\" d=\"M{:.1} {:.1}v24\"/>", x(target), y - 3.0);
            if (x(target) - end).abs() < 60.0 {
                end = end.max(x(target));
            }
        }
        text(&mut svg, end + 6.0, y + 13.0, "start", &figure(bar.mark.value));
    }
    text(&mut svg, f64::midpoint(left, RIGHT), bottom + 40.0, "middle", axis);
    svg + "</svg>\n"
}

/// The frame of a picture with curves: left, top, right, bottom.
const FRAME: (f64, f64, f64, f64) = (80.0, 60.0, 560.0, 330.0);

fn legend(svg: &mut String, number: usize, label: &str) {
    let (_, top, right, _) = FRAME;
    let y = top + 10.0 + 20.0 * number as f64;
    let _ = writeln!(
        svg,
        "<path class=\"s{}\" stroke-width=\"3\" d=\"M{:.0} {y:.0}h18\"/>",
        number % SERIES,
        right + 16.0
    );
    // Long names would leave the sheet: 250 px are some 40 characters.
    text(svg, right + 40.0, y + 4.0, "start", label);
}

/// Curves over labelled positions, from zero.
pub(crate) fn curves(title: &str, axis: &str, x_axis: &str, labels: &[String], curves: &[Curve]) -> String {
    let (left, top, right, bottom) = FRAME;
    let mut svg = open(400.0, title, "lines: 95 % interval of the median");
    let marks = curves.iter().flat_map(|c| c.marks.iter().flatten());
    let most = marks.map(|m| m.high.max(m.value)).filter(|v| v.is_finite()).fold(1e-9, f64::max);
    let steps = (labels.len().max(2) - 1) as f64;
    let x = |at: usize| left + 12.0 + (right - left - 24.0) * at as f64 / steps;
    let y = |value: f64| bottom - (bottom - top) * (value / most).clamp(0.0, 1.0);
    let step = step(most);
    let mut at = 0.0;
    while at <= most * 1.0001 {
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{left} {:.1}H{right}\"/>", y(at));
        text(&mut svg, left - 8.0, y(at) + 4.0, "end", &tick(at));
        at += step;
    }
    for (at, label) in labels.iter().enumerate() {
        text(&mut svg, x(at), bottom + 18.0, "middle", label);
    }
    axes(&mut svg, axis, x_axis);
    for (number, curve) in curves.iter().enumerate() {
        let class = number % SERIES;
        let points: Vec<(f64, Mark)> =
            curve.marks.iter().enumerate().filter_map(|(at, m)| Some((x(at), (*m)?))).collect();
        let path: Vec<String> = points.iter().map(|(x, m)| format!("{x:.1},{:.1}", y(m.value))).collect();
        let _ = writeln!(svg, "<polyline class=\"s{class}\" points=\"{}\"/>", path.join(" "));
        for (x, mark) in &points {
            let _ = writeln!(
                svg,
                "<path class=\"s{class}\" d=\"M{x:.1} {:.1}V{:.1}\"/><circle class=\"s{class}\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                y(mark.low),
                y(mark.high),
                y(mark.value)
            );
        }
        legend(&mut svg, number, &curve.label);
    }
    svg + "</svg>\n"
}

fn axes(svg: &mut String, y_axis: &str, x_axis: &str) {
    let (left, top, right, bottom) = FRAME;
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>");
    text(svg, f64::midpoint(left, right), bottom + 44.0, "middle", x_axis);
    let middle = f64::midpoint(top, bottom);
    let _ = writeln!(
        svg,
        "<text transform=\"translate(24 {middle:.0}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        escape(y_axis)
    );
}

/// Lines with both axes logarithmic, ticks at powers of ten.
pub(crate) fn logarithmic(title: &str, note: &str, axis: &str, x_axis: &str, lines: &[Line]) -> String {
    let (left, top, right, bottom) = FRAME;
    let mut svg = open(400.0, title, note);
    let all = || lines.iter().flat_map(|l| &l.points);
    let decades = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(l, h), v| (l.min(v), h.max(v)));
        let low = low.log10().floor();
        (low, high.log10().ceil().max(low + 1.0))
    };
    let (x_low, x_high) = decades(&mut all().map(|p| p.0));
    let (y_low, y_high) = decades(&mut all().map(|p| p.1));
    let x = |v: f64| left + (right - left) * (v.log10() - x_low) / (x_high - x_low);
    let y = |v: f64| bottom - (bottom - top) * (v.log10() - y_low) / (y_high - y_low);
    for power in x_low as i32..=x_high as i32 {
        let value = 10_f64.powi(power);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{:.1} {top}V{bottom}\"/>", x(value));
        text(&mut svg, x(value), bottom + 18.0, "middle", &tick(value));
    }
    for power in y_low as i32..=y_high as i32 {
        let value = 10_f64.powi(power);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{left} {:.1}H{right}\"/>", y(value));
        text(&mut svg, left - 8.0, y(value) + 4.0, "end", &format!("{value}"));
    }
    axes(&mut svg, axis, x_axis);
    for (number, line) in lines.iter().enumerate() {
        let path: Vec<String> = line.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(svg, "<polyline class=\"s{}\" points=\"{}\"/>", number % SERIES, path.join(" "));
        legend(&mut svg, number, &line.label);
    }
    svg + "</svg>\n"
}

/// How many times better than its target each row is, on a logarithmic axis; right of 1 a target is met.
pub(crate) fn margins(title: &str, rows: &[(String, Mark)]) -> String {
    let top = 60.0;
    let mut labels: Vec<String> = rows.iter().map(|r| r.0.clone()).collect();
    let left = margin(&mut labels);
    let bottom = top + ROW * rows.len() as f64;
    let note = "found ÷ target (of limits: target ÷ found); right of the red line it is met; green: with the whole interval";
    let mut svg = open(bottom + 40.0, title, note);
    let reach = rows.iter().flat_map(|(_, m)| [m.low, m.high]).filter(|v| v.is_finite() && *v > 0.0);
    let reach = reach.fold(1.0_f64, |most, v| most.max(v).max(1.0 / v)).clamp(2.0, 16.0) * 1.1;
    let x = |v: f64| left + (RIGHT + 40.0 - left) * (0.5 + 0.5 * (v.ln() / reach.ln()).clamp(-1.0, 1.0));
    for power in -4..=4 {
        let value = 2_f64.powi(power);
        if value <= reach && 1.0 / value <= reach {
            let class = if power == 0 { "target" } else { "grid" };
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{:.1} {top}V{bottom}\"/>", x(value));
            let words = if power < 0 { format!("1/{}", 1 << -power) } else { format!("{}", 1 << power) };
            text(&mut svg, x(value), bottom + 18.0, "middle", &words);
        }
    }
    for (number, (_, mark)) in rows.iter().enumerate() {
        let y = top + ROW * (number as f64 + 0.5);
        text(&mut svg, left - 8.0, y + 4.0, "end", &labels[number]);
        whisker(&mut svg, x(mark.low), x(mark.high), y);
        let class = if mark.low >= 1.0 { "s1" } else { "s2" };
        let _ =
            writeln!(svg, "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\"/>", x(mark.value));
    }
    svg + "</svg>\n"
}
