use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Curves;
use super::chart::{self, Drawn, LOSS, PANELS, Panel};
use crate::files::write_atomic;
use crate::{Error, Result};

/// The size of a chart: alone, and on a page, where it is shown smaller but its letters should not be.
const SIZE: (u32, u32) = (960, 560);
const SIZE_ON_PAGE: (u32, u32) = (640, 400);

/// Draws the losses of runs over each other into a file: SVG, or PNG if its name says so. Values are pale under their
/// average, of which each step keeps the part `smoothing` (0 is no smoothing); validations are dots.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::InvalidArgument`] for another kind of picture.
pub fn draw_loss(runs: &[Curves], smoothing: f64, out: impl AsRef<Path>) -> Result<()> {
    draw(&[&LOSS], runs, smoothing, out.as_ref())
}

/// Draws all that runs have told, a chart a metric: loss, learning rate, gradient norm, memory, tokens per second.
///
/// # Errors
/// Those of [`draw_loss`].
pub fn draw_curves(runs: &[Curves], smoothing: f64, out: impl AsRef<Path>) -> Result<()> {
    let panels = PANELS.iter().filter(|panel| panel.is_known(runs));
    draw(&panels.collect::<Vec<_>>(), runs, smoothing, out.as_ref())
}

/// A chart for a page.
pub(super) fn on_page(panel: &Panel, runs: &[Curves], smoothing: f64) -> String {
    svg(&[panel], runs, smoothing, SIZE_ON_PAGE)
}

fn svg(panels: &[&Panel], runs: &[Curves], smoothing: f64, size: (u32, u32)) -> String {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = paint(&area, panels, runs, smoothing);
    // Text goes to memory.
    drawn.expect("a string can be written");
    drop(area);
    svg
}

fn draw(panels: &[&Panel], runs: &[Curves], smoothing: f64, out: &Path) -> Result<()> {
    let extension = out.extension().unwrap_or_default();
    let bytes = match extension.to_string_lossy().to_lowercase().as_str() {
        "svg" => svg(panels, runs, smoothing, size_of(panels)).into_bytes(),
        "png" => png(panels, runs, smoothing)?,
        other => {
            return Err(Error::InvalidArgument {
                name: "picture",
                message: format!(
                    "`{other}` is no kind of picture that is drawn; call it .svg or .png"
                ),
            });
        }
    };
    write_atomic(out, |temporary| {
        std::fs::write(temporary, bytes).map_err(Error::io(out))
    })
}

#[cfg(feature = "png")]
fn png(panels: &[&Panel], runs: &[Curves], smoothing: f64) -> Result<Vec<u8>> {
    use super::png::{Canvas, encode};

    let size = size_of(panels);
    let mut pixels = Canvas::pixels(size);
    let area = Canvas::new(&mut pixels, size).into_drawing_area();
    paint(&area, panels, runs, smoothing).expect("pixels in memory can be set");
    drop(area);
    Ok(encode(&pixels, size).expect("bytes in memory can be written"))
}

#[cfg(not(feature = "png"))]
fn png(_: &[&Panel], _: &[Curves], _: f64) -> Result<Vec<u8>> {
    Err(Error::InvalidArgument {
        name: "picture",
        message: "PNG needs the feature `png` of burn-peft; SVG does not".into(),
    })
}

/// One chart, or two beside each other.
fn columns(panels: &[&Panel]) -> usize {
    panels.len().min(2)
}

fn size_of(panels: &[&Panel]) -> (u32, u32) {
    let columns = columns(panels).max(1);
    let rows = panels.len().div_ceil(columns).max(1);
    (SIZE.0 * columns as u32, SIZE.1 * rows as u32)
}

fn paint<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    panels: &[&Panel],
    runs: &[Curves],
    smoothing: f64,
) -> Drawn<DB> {
    area.fill(&WHITE)?;
    let columns = columns(panels).max(1);
    let parts = area.split_evenly((panels.len().div_ceil(columns).max(1), columns));
    for (part, panel) in parts.iter().zip(panels) {
        chart::draw(part, panel, runs, smoothing)?;
    }
    area.present()
}
