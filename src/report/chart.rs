//! Charts of metrics over steps, on whatever they are drawn.

use std::collections::BTreeMap;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::{RangedCoordf64, RangedCoordusize};
use plotters::prelude::*;

use super::Curves;

/// How much of the running average each step keeps, unless told otherwise.
pub const SMOOTHING: f64 = 0.9;

/// One colour a run, apart for colour-blind eyes too (the palette of Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// What a chart shows.
pub(super) struct Panel {
    /// The axis.
    pub title: &'static str,
    /// The first of these that a run has.
    metrics: &'static [&'static str],
    /// A metric of some steps only, in dots.
    dots: Option<&'static str>,
    /// Whether the values are pale under their running average.
    is_smoothed: bool,
    /// What values are divided by.
    unit: f64,
    label: fn(&f64) -> String,
    /// Where no line is to be expected.
    legend: SeriesLabelPosition,
}

const fn panel(title: &'static str, metrics: &'static [&'static str]) -> Panel {
    Panel {
        title,
        metrics,
        dots: None,
        is_smoothed: true,
        unit: 1.0,
        label: plain,
        legend: SeriesLabelPosition::UpperRight,
    }
}

pub(super) const LOSS: Panel = Panel {
    dots: Some("val_loss"),
    ..panel("loss", &["loss"])
};

/// The charts of a run.
pub(super) const PANELS: [Panel; 5] = [
    LOSS,
    Panel {
        is_smoothed: false,
        label: scientific,
        ..panel("learning rate", &["lr"])
    },
    panel("gradient norm", &["grad_norm"]),
    Panel {
        is_smoothed: false,
        unit: 1e9,
        legend: SeriesLabelPosition::LowerRight,
        ..panel("memory, GB", &["device_memory_bytes", "peak_memory_bytes"])
    },
    panel("tokens per second", &["tokens_per_second"]),
];

fn plain(value: &f64) -> String {
    // Without the noise of the last digits.
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" {
        "0".into()
    } else {
        text.into()
    }
}

fn scientific(value: &f64) -> String {
    if *value == 0.0 {
        "0".into()
    } else {
        format!("{value:.1e}")
    }
}

impl Panel {
    fn of<'a>(&self, run: &'a Curves) -> Option<&'a BTreeMap<usize, f64>> {
        self.metrics.iter().find_map(|metric| run.of(metric))
    }

    fn dots_of<'a>(&self, run: &'a Curves) -> Option<&'a BTreeMap<usize, f64>> {
        run.of(self.dots?)
    }

    /// Whether any run has something to show.
    pub fn is_known(&self, runs: &[Curves]) -> bool {
        runs.iter().any(|run| self.of(run).is_some())
    }

    fn points<'a>(
        &'a self,
        curve: &'a BTreeMap<usize, f64>,
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        curve.iter().map(|(step, value)| (*step, value / self.unit))
    }

    /// What the axes span: all values, and a little more of them.
    fn ranges(&self, runs: &[Curves]) -> (Range<usize>, Range<f64>) {
        let curves = runs
            .iter()
            .flat_map(|run| [self.of(run), self.dots_of(run)]);
        let points: Vec<_> = curves
            .flatten()
            .flat_map(|curve| self.points(curve))
            .collect();
        let steps = || points.iter().map(|(step, _)| *step);
        let values = || points.iter().map(|(_, value)| *value);
        let (first, last) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0));
        let low = values().reduce(f64::min).unwrap_or(0.0);
        let high = values().reduce(f64::max).unwrap_or(0.0);
        // Also a single value needs an axis of some length.
        let smallest = if high == 0.0 { 0.1 } else { 0.1 * high.abs() };
        let margin = 0.04 * (high - low).max(smallest);
        (first..last.max(first + 1), low - margin..high + margin)
    }
}

pub(super) type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;
type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordusize, RangedCoordf64>>;

/// Draws a panel: the values pale, and over them their average, of which each step keeps the part `smoothing` (0 is no
/// smoothing); validations are dots.
pub(super) fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
    runs: &[Curves],
    smoothing: f64,
) -> Drawn<DB> {
    let (steps, values) = panel.ranges(runs);
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(76)
        .build_cartesian_2d(steps, values)?;
    let text = ("sans-serif", 15).into_font().color(&BLACK.mix(0.8));
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(panel.title)
        .y_label_formatter(&panel.label)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .axis_style(BLACK.mix(0.4))
        .label_style(text.clone())
        .axis_desc_style(text.clone())
        .draw()?;
    let coloured = || runs.iter().zip(COLOURS.into_iter().cycle());
    // All pale lines lie under all strong ones.
    for (run, colour) in coloured().filter(|_| panel.is_smoothed) {
        let curve = panel.of(run).into_iter();
        let points = curve.flat_map(|curve| panel.points(curve));
        chart.draw_series(LineSeries::new(points, colour.mix(0.25)))?;
    }
    let smoothing = if panel.is_smoothed { smoothing } else { 0.0 };
    for (run, colour) in coloured() {
        draw_line(&mut chart, panel, run, colour, smoothing)?;
        draw_dots(&mut chart, panel, run, colour)?;
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
        .margin(12)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(text)
        .draw()
}

fn draw_line<'a, DB: DrawingBackend + 'a>(
    chart: &mut Chart<'a, DB>,
    panel: &Panel,
    run: &Curves,
    colour: RGBColor,
    smoothing: f64,
) -> Drawn<DB> {
    let Some(curve) = panel.of(run) else {
        return Ok(());
    };
    let style = colour.filled().stroke_width(3);
    // A line through a single point would not be seen.
    let dot = if curve.len() == 1 { 3 } else { 0 };
    let points = smooth(panel.points(curve), smoothing);
    chart
        .draw_series(LineSeries::new(points, style).point_size(dot))?
        .label(&run.name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    Ok(())
}

fn draw_dots<'a, DB: DrawingBackend + 'a>(
    chart: &mut Chart<'a, DB>,
    panel: &Panel,
    run: &Curves,
    colour: RGBColor,
) -> Drawn<DB> {
    let Some(dots) = panel.dots_of(run) else {
        return Ok(());
    };
    let at = || panel.points(dots);
    chart.draw_series(at().map(|point| Circle::new(point, 7, WHITE.filled())))?;
    chart
        .draw_series(at().map(|point| Circle::new(point, 5, colour.filled())))?
        .label(format!("{}, validation", run.name))
        .legend(move |(x, y)| Circle::new((x + 9, y), 5, colour.filled()));
    Ok(())
}

/// The exponential moving average, divided by the weight it has gathered so far, so that it starts
/// at the first value and not at 0 (<https://arxiv.org/abs/1412.6980>, section 3).
fn smooth(
    points: impl Iterator<Item = (usize, f64)>,
    keep: f64,
) -> impl Iterator<Item = (usize, f64)> {
    let (mut average, mut weight) = (0.0, 0.0);
    points.map(move |(step, value)| {
        average = keep * average + (1.0 - keep) * value;
        weight = keep * weight + (1.0 - keep);
        (step, average / weight)
    })
}
