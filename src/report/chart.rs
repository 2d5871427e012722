//! Charts of metrics over steps, on whatever they are drawn.

use std::collections::BTreeMap;
use std::ops::Range;

use plotters::coord::types::RangedCoordusize;
use plotters::coord::{CoordTranslate, Shift};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::Curves;
use super::axis::ValueAxis;

/// How much of the running average each step keeps, unless told otherwise.
pub const SMOOTHING: f64 = 0.9;

/// Apart for colour-blind eyes too (the palette of Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
/// Pixels of a line, and between it and the next, for those after the runs that have a colour of their own.
const DASHES: [Option<(i32, i32)>; 6] = [
    None,
    Some((12, 6)),
    Some((4, 4)),
    Some((24, 6)),
    Some((8, 14)),
    Some((3, 10)),
];

/// How a run's line is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stroke {
    pub colour: RGBColor,
    alpha: f64,
    width: u32,
    dash: Option<(i32, i32)>,
}

impl Stroke {
    /// One for each of 42 runs.
    pub fn of_run(run: usize) -> Self {
        let dash = DASHES[run / COLOURS.len() % DASHES.len()];
        Self {
            dash,
            ..Self::plain(COLOURS[run % COLOURS.len()])
        }
    }

    pub fn plain(colour: RGBColor) -> Self {
        Self {
            colour,
            alpha: 1.0,
            width: 3,
            dash: None,
        }
    }

    /// That of single steps.
    pub fn pale(self) -> Self {
        Self {
            alpha: 0.35,
            width: 1,
            dash: None,
            ..self
        }
    }

    fn style(self) -> ShapeStyle {
        self.colour.mix(self.alpha).stroke_width(self.width)
    }

    /// Draws a line through points; a single one is a dot.
    pub fn draw<DB: DrawingBackend, Coord: CoordTranslate>(
        self,
        area: &DrawingArea<DB, Coord>,
        points: Vec<Coord::From>,
    ) -> Drawn<DB>
    where
        Coord::From: Clone,
    {
        let style = self.style();
        match (points.as_slice(), self.dash) {
            ([], _) => Ok(()),
            ([point], _) => area.draw(&Circle::new(point.clone(), self.width, style.filled())),
            (_, None) => area.draw(&PathElement::new(points, style)),
            (_, Some((dash, gap))) => area.draw(&DashedPathElement::new(points, dash, gap, style)),
        }
    }
}

/// What a chart shows.
pub(super) struct Panel {
    /// The axis.
    pub title: &'static str,
    /// The first of these that a run has.
    metrics: &'static [&'static str],
    /// A metric of some steps only, in dots.
    dots: Option<&'static str>,
    /// Whether values go up and down from step to step, so that they are pale under their running average, and may span so much
    /// that their axis is logarithmic.
    pub is_noisy: bool,
    /// What values are divided by.
    unit: f64,
}

const fn panel(title: &'static str, metrics: &'static [&'static str]) -> Panel {
    Panel {
        title,
        metrics,
        dots: None,
        is_noisy: true,
        unit: 1.0,
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
        is_noisy: false,
        ..panel("learning rate", &["lr"])
    },
    panel("gradient norm", &["grad_norm"]),
    Panel {
        is_noisy: false,
        unit: 1e9,
        ..panel("memory, GB", &["device_memory_bytes", "peak_memory_bytes"])
    },
    panel("tokens per second", &["tokens_per_second"]),
];

impl Panel {
    fn of<'a>(&self, run: &'a Curves) -> Option<&'a BTreeMap<usize, f64>> {
        self.metrics.iter().find_map(|metric| run.of(metric))
    }

    pub fn dots_of<'a>(&self, run: &'a Curves) -> Option<&'a BTreeMap<usize, f64>> {
        run.of(self.dots?)
    }

    /// Whether any run has something to show.
    pub fn is_known(&self, runs: &[Curves]) -> bool {
        runs.iter().any(|run| self.of(run).is_some())
    }

    fn points<'a>(
        &'a self,
        curve: Option<&'a BTreeMap<usize, f64>>,
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        let points = curve.into_iter().flatten();
        points.map(|(step, value)| (*step, value / self.unit))
    }
}

/// The axes span all that runs have told.
fn axes(panel: &Panel, runs: &[Curves]) -> (Range<usize>, ValueAxis) {
    let curves = runs
        .iter()
        .flat_map(|run| [panel.of(run), panel.dots_of(run)]);
    let points: Vec<_> = curves.flat_map(|curve| panel.points(curve)).collect();
    let steps = || points.iter().map(|(step, _)| *step);
    let values = || points.iter().map(|(_, value)| *value);
    let (first, last) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0));
    let low = values().reduce(f64::min).unwrap_or(0.0);
    let high = values().reduce(f64::max).unwrap_or(0.0);
    let values = match panel.is_noisy {
        true => ValueAxis::spanning(low, high),
        false => ValueAxis::linear(low, high),
    };
    (span_of_steps(first, last), values)
}

/// A single step lies in the middle.
fn span_of_steps(first: usize, last: usize) -> Range<usize> {
    match first == last {
        true => first.saturating_sub(1)..last + 1,
        false => first..last,
    }
}

pub(super) type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;
type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordusize, ValueAxis>>;

/// Draws a panel: the values pale, and over them their average, of which each step keeps the part `smoothing` (0 is no
/// smoothing); validations are dots.
pub(super) fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
    runs: &[Curves],
    smoothing: f64,
) -> Drawn<DB> {
    let chart = draw_axes(area, panel, runs)?;
    let area = chart.plotting_area();
    let strokes = || runs.iter().zip((0..).map(Stroke::of_run));
    let smoothing = if panel.is_noisy { smoothing } else { 0.0 };
    let columns = area.dim_in_pixel().0 as usize;
    // All pale lines lie under all strong ones.
    for (run, stroke) in strokes().filter(|_| smoothing > 0.0) {
        let points = panel.points(panel.of(run));
        stroke
            .pale()
            .draw(area, visible(points.collect(), columns))?;
    }
    for (run, stroke) in strokes() {
        let points = smooth(panel.points(panel.of(run)), smoothing);
        stroke.draw(area, visible(points.collect(), columns))?;
    }
    for (run, stroke) in strokes() {
        for point in panel.points(panel.dots_of(run)) {
            area.draw(&Circle::new(point, 7, WHITE.filled()))?;
            area.draw(&Circle::new(point, 5, stroke.colour.filled()))?;
        }
    }
    Ok(())
}

fn draw_axes<'a, DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
    runs: &[Curves],
) -> Result<Chart<'a, DB>, DrawingAreaErrorKind<DB::ErrorType>> {
    /// Pixels from the name of one step to that of the next.
    const STEPS_APART: u32 = 100;
    let (steps, values) = axes(panel, runs);
    let title = match values.is_logarithmic() {
        true => format!("{}, logarithmic", panel.title),
        false => panel.title.to_owned(),
    };
    let text = ("sans-serif", 15).into_font().color(&BLACK.mix(0.8));
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(96)
        .build_cartesian_2d(steps, values)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .x_labels((area.dim_in_pixel().0 / STEPS_APART) as usize)
        .y_desc(title)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .axis_style(BLACK.mix(0.4))
        .label_style(text.clone())
        .axis_desc_style(text)
        .draw()?;
    Ok(chart)
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

/// What is seen of a line that is so many pixels wide: of the steps of each column the first, the lowest, the highest and
/// the last. So a picture of a million steps is as large as one of some thousand.
fn visible(points: Vec<(usize, f64)>, columns: usize) -> Vec<(usize, f64)> {
    let ([(first, _), .., (last, _)], true) = (points.as_slice(), points.len() > 4 * columns)
    else {
        return points;
    };
    let span = (last - first) as u128 + 1;
    let column = |(step, _): &(usize, f64)| (step - first) as u128 * columns as u128 / span;
    let by_value = |a: &&(usize, f64), b: &&(usize, f64)| a.1.total_cmp(&b.1);
    let seen = points
        .chunk_by(|a, b| column(a) == column(b))
        .flat_map(|points| {
            let (lowest, highest) = (
                points.iter().min_by(by_value),
                points.iter().max_by(by_value),
            );
            let mut seen: Vec<_> = [points.first(), lowest, highest, points.last()]
                .into_iter()
                .flatten()
                .copied()
                .collect();
            seen.sort_unstable_by_key(|(step, _)| *step);
            seen.dedup();
            seen
        });
    seen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_drawn_by_what_is_seen_of_it() {
        let value = |step: usize| ((step * 7919) % 1000) as f64;
        let line =
            |steps: usize| -> Vec<_> { (5..5 + steps).map(|step| (step, value(step))).collect() };
        assert_eq!(visible(line(400), 100), line(400));
        assert_eq!(visible(Vec::new(), 0), []);
        let (all, seen) = (line(100_000), visible(line(100_000), 100));
        assert!(seen.len() <= 400, "{} points", seen.len());
        assert!(seen.is_sorted_by(|a, b| a.0 < b.0));
        for (column, points) in all.chunks(1000).enumerate() {
            let inside = seen.iter().filter(|point| points.contains(point));
            let inside: Vec<_> = inside.collect();
            assert_eq!(
                (inside[0], inside[inside.len() - 1]),
                (&points[0], &points[999]),
                "{column}"
            );
            let extremes = |values: Vec<f64>| {
                [
                    values.iter().copied().fold(f64::MAX, f64::min),
                    values.iter().copied().fold(0.0, f64::max),
                ]
            };
            let of_seen = inside.iter().map(|point| point.1).collect();
            assert_eq!(
                extremes(of_seen),
                extremes(points.iter().map(|point| point.1).collect()),
                "{column}"
            );
        }
    }

    #[test]
    fn runs_look_apart() {
        let strokes = (0..42).map(|run| {
            let stroke = Stroke::of_run(run);
            (
                stroke.colour.0,
                stroke.colour.1,
                stroke.colour.2,
                stroke.dash,
            )
        });
        let apart: std::collections::HashSet<_> = strokes.collect();
        assert_eq!(apart.len(), 42);
    }

    #[test]
    fn an_average_begins_where_the_values_do() {
        let smoothed = |values: &[f64], keep| -> Vec<f64> {
            let points = values.iter().copied().enumerate();
            smooth(points, keep).map(|(_, value)| value).collect()
        };
        assert_eq!(smoothed(&[5.0, 5.0, 5.0], 0.9), [5.0; 3]);
        // Two values count as 0.5 and 1, three as 0.25, 0.5 and 1.
        let expected = [
            8.0,
            (0.5 * 8.0 + 2.0) / 1.5,
            (0.25 * 8.0 + 0.5 * 2.0 + 5.0) / 1.75,
        ];
        for (found, expected) in smoothed(&[8.0, 2.0, 5.0], 0.5).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(smoothed(&[8.0, 2.0], 0.0), [8.0, 2.0]);
    }
}
