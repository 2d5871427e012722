//! Loss curves as an SVG picture. The text is left to the viewer's fonts, so that drawing needs
//! none on the machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use burn_peft::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

/// How much of the running average each step keeps, unless told otherwise.
pub const SMOOTHING: f64 = 0.9;

const SIZE: (u32, u32) = (960, 560);

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

/// The losses of a run, by optimizer step.
pub struct Run {
    /// What the legend calls it.
    pub name: String,
    /// The training loss.
    pub loss: BTreeMap<u64, f64>,
    /// The validation loss, where the run has one.
    pub validation: BTreeMap<u64, f64>,
}

impl Run {
    /// Reads `metrics.jsonl` in a run's folder. Of a step that a resumed run did again, the later
    /// line counts.
    ///
    /// # Errors
    /// If the file cannot be read, or a line is not an object with `step` and `loss` or `val_loss`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let text = fs::read_to_string(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        let mut run = Self {
            name: name_of(folder),
            loss: BTreeMap::new(),
            validation: BTreeMap::new(),
        };
        for (number, line) in (1..).zip(finished(&text).lines()) {
            run.add(line).map_err(|message| Error::Format {
                path: path.clone(),
                message: format!("line {number}: {message}"),
            })?;
        }
        if run.loss.is_empty() {
            return Err(Error::Format {
                path,
                message: "holds no losses".into(),
            });
        }
        Ok(run)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let record: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let step = record["step"].as_u64().ok_or("expected a number `step`")?;
        let mut found = false;
        for (key, series) in [("loss", &mut self.loss), ("val_loss", &mut self.validation)] {
            let Some(value) = record.get(key) else {
                continue;
            };
            found = true;
            // A loss that is not finite is null in JSON and a gap in the picture.
            if let Some(loss) = value.as_f64() {
                series.insert(step, loss);
            }
        }
        if found {
            Ok(())
        } else {
            Err("expected `loss` or `val_loss`".into())
        }
    }
}

/// The text up to its last line end: what follows, a run in progress is still writing.
fn finished(text: &str) -> &str {
    text.rfind('\n').map_or("", |end| &text[..end])
}

/// The folder's own name, also where the path (`.`, say) does not show it.
fn name_of(folder: &Path) -> String {
    let full = folder
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from(folder));
    let name = full.file_name().unwrap_or(full.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Draws the losses of all runs into one SVG file: the values pale, and over them their average,
/// of which each step keeps the part `smoothing` (0 is no smoothing). Validation losses are dots.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If no run has a loss.
pub fn loss_curve(runs: &[Run], smoothing: f64, out: &Path) -> Result<()> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(runs, smoothing, &area).map_err(|error| Error::Io {
            path: out.to_owned(),
            source: io::Error::other(error.to_string()),
        })?;
    }
    fs::write(out, svg).map_err(|source| Error::Io {
        path: out.to_owned(),
        source,
    })
}

type DrawResult<'a> =
    Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;
type Chart<'a, 'b> = ChartContext<
    'b,
    SVGBackend<'a>,
    Cartesian2d<plotters::coord::types::RangedCoordu64, plotters::coord::types::RangedCoordf64>,
>;

fn draw<'a>(
    runs: &[Run],
    smoothing: f64,
    area: &DrawingArea<SVGBackend<'a>, Shift>,
) -> DrawResult<'a> {
    area.fill(&WHITE)?;
    let (steps, losses) = ranges(runs);
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(steps, losses)?;
    let text = ("sans-serif", 15).into_font().color(&BLACK.mix(0.8));
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss")
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .axis_style(BLACK.mix(0.4))
        .label_style(text.clone())
        .axis_desc_style(text.clone())
        .draw()?;
    let coloured = || runs.iter().zip(COLOURS.into_iter().cycle());
    // All pale lines lie under all strong ones.
    for (run, colour) in coloured() {
        let raw = run.loss.iter().map(|(step, loss)| (*step, *loss));
        chart.draw_series(LineSeries::new(raw, colour.mix(0.25)))?;
    }
    for (run, colour) in coloured() {
        draw_smoothed(&mut chart, run, colour, smoothing)?;
        draw_validation(&mut chart, run, colour)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(12)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(text)
        .draw()?;
    area.present()
}

fn draw_smoothed<'a>(
    chart: &mut Chart<'a, '_>,
    run: &Run,
    colour: RGBColor,
    smoothing: f64,
) -> DrawResult<'a> {
    let style = colour.filled().stroke_width(3);
    // A line through a single point would not be seen.
    let dot = if run.loss.len() == 1 { 3 } else { 0 };
    chart
        .draw_series(LineSeries::new(smooth(&run.loss, smoothing), style).point_size(dot))?
        .label(&run.name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    Ok(())
}

fn draw_validation<'a>(chart: &mut Chart<'a, '_>, run: &Run, colour: RGBColor) -> DrawResult<'a> {
    if run.validation.is_empty() {
        return Ok(());
    }
    let at = || run.validation.iter().map(|(step, loss)| (*step, *loss));
    chart.draw_series(at().map(|point| Circle::new(point, 7, WHITE.filled())))?;
    chart
        .draw_series(at().map(|point| Circle::new(point, 5, colour.filled())))?
        .label(format!("{}, validation", run.name))
        .legend(move |(x, y)| Circle::new((x + 9, y), 5, colour.filled()));
    Ok(())
}

/// The exponential moving average, divided by the weight it has gathered so far, so that it starts
/// at the first value and not at 0 (<https://arxiv.org/abs/1412.6980>, section 3).
fn smooth(losses: &BTreeMap<u64, f64>, keep: f64) -> impl Iterator<Item = (u64, f64)> {
    let (mut average, mut weight) = (0.0, 0.0);
    losses.iter().map(move |(step, loss)| {
        average = keep * average + (1.0 - keep) * loss;
        weight = keep * weight + (1.0 - keep);
        (*step, average / weight)
    })
}

/// What the axes span: all values, and a little more of the losses.
fn ranges(runs: &[Run]) -> (std::ops::Range<u64>, std::ops::Range<f64>) {
    let points = || {
        runs.iter()
            .flat_map(|run| run.loss.iter().chain(&run.validation))
    };
    let first = points().map(|(step, _)| *step).min();
    let last = points().map(|(step, _)| *step).max();
    let (first, last) = first.zip(last).expect("a run with a loss");
    let low = points()
        .map(|(_, loss)| *loss)
        .fold(f64::INFINITY, f64::min);
    let high = points()
        .map(|(_, loss)| *loss)
        .fold(f64::NEG_INFINITY, f64::max);
    // Also a single value needs an axis of some length.
    let margin = 0.04 * (high - low).max(0.1);
    (first..last.max(first + 1), low - margin..high + margin)
}
