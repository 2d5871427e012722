//! Measurements beside the straight line that fits them, as tables and as an SVG picture. The text
//! of the picture is left to the viewer's fonts.

use std::error::Error;
use std::fmt;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

/// Measurements of one quantity against another.
pub struct Series {
    /// What is measured.
    pub title: &'static str,
    /// What varies.
    pub x_name: &'static str,
    /// The unit of the measurements.
    pub y_name: &'static str,
    /// The measurements, in ascending order of what varies.
    pub points: Vec<(f64, f64)>,
}

/// `slope · x + intercept`.
pub struct Line {
    pub slope: f64,
    pub intercept: f64,
}

impl Line {
    /// The line of least squares.
    pub fn fit(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        let x_mean = points.iter().map(|(x, _)| x).sum::<f64>() / count;
        let y_mean = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        let centred = points.iter().map(|(x, y)| (x - x_mean, y - y_mean));
        let covariance: f64 = centred.clone().map(|(x, y)| x * y).sum();
        let variance: f64 = centred.map(|(x, _)| x * x).sum();
        let slope = covariance / variance;
        Self {
            slope,
            intercept: y_mean - slope * x_mean,
        }
    }

    /// The line's value.
    pub fn at(&self, x: f64) -> f64 {
        self.slope * x + self.intercept
    }
}

impl Series {
    /// The line that fits the measurements.
    pub fn line(&self) -> Line {
        Line::fit(&self.points)
    }

    /// How far each measurement is above the line, in percent of the line.
    fn differences(&self) -> impl Iterator<Item = f64> {
        let line = self.line();
        let points = self.points.iter();
        points.map(move |(x, y)| 100.0 * (y / line.at(*x) - 1.0))
    }
}

/// A table of all points, with the largest difference from the line below.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, unit) = (self.line(), self.y_name);
        writeln!(f, "{} against {}", self.title, self.x_name)?;
        writeln!(
            f,
            "{:>8} {:>12} {:>12} {:>11}",
            self.x_name, "measured", "line", "difference"
        )?;
        for ((x, y), difference) in self.points.iter().zip(self.differences()) {
            let expected = line.at(*x);
            writeln!(
                f,
                "{x:>8} {y:>9.1} {unit:2} {expected:>9.1} {unit:2} {difference:>+9.2} %"
            )?;
        }
        let largest = self.differences().map(f64::abs).fold(0.0, f64::max);
        let (slope, intercept) = (line.slope, line.intercept);
        writeln!(
            f,
            "line: {slope:.4} {unit} · {} {intercept:+.1} {unit}",
            self.x_name
        )?;
        writeln!(f, "largest difference: {largest:.2} %")
    }
}

const SIZE: (u32, u32) = (960, 720);
const COLOUR: RGBColor = RGBColor(0, 114, 178);

/// Draws four series into an SVG file: the measurements as dots, the lines through them.
///
/// # Errors
/// If the file cannot be written.
pub fn plot(series: &[Series; 4], out: &Path) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(out, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    for (series, panel) in series.iter().zip(area.split_evenly((2, 2))) {
        draw(series, &panel)?;
    }
    area.present()?;
    Ok(())
}

fn draw(series: &Series, panel: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn Error>> {
    let points = || series.points.iter().copied();
    let end = |values: &mut dyn Iterator<Item = f64>| 1.1 * values.fold(0.0, f64::max);
    let (x_end, y_end) = (
        end(&mut points().map(|(x, _)| x)),
        end(&mut points().map(|(_, y)| y)),
    );
    let text = |size| ("sans-serif", size).into_font().color(&BLACK.mix(0.8));
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{}, {}", series.title, series.y_name), text(17))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..x_end, 0.0..y_end)?;
    chart
        .configure_mesh()
        .x_desc(series.x_name)
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .axis_style(BLACK.mix(0.4))
        .label_style(text(14))
        .axis_desc_style(text(14))
        .draw()?;
    let line = series.line();
    let fitted = points().map(|(x, _)| (x, line.at(x)));
    chart.draw_series(LineSeries::new(fitted, COLOUR.stroke_width(2)))?;
    chart.draw_series(points().map(|point| Circle::new(point, 5, COLOUR.filled())))?;
    Ok(())
}
