use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Curves;
use super::chart::{self, Drawn, LOSS, PANELS, Panel};
use super::legend::{Legend, shortened};
use crate::files::write_atomic;
use crate::{Error, Result};

/// The size of a chart: alone, and on a page, where it is shown smaller but its letters should not be.
const SIZE: (u32, u32) = (960, 520);
const SIZE_ON_PAGE: (u32, u32) = (640, 360);

/// Draws the losses of runs over each other into a file: SVG, or PNG if its name says so. Values are pale under their
/// average, of which each step keeps the part `smoothing` (0 is no smoothing); validations are dots. Where the values span two
/// decades and more, their axis is logarithmic. The legend stands below, and a picture of many runs is higher for it.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::InvalidArgument`] for another kind of picture.
pub fn draw_loss(runs: &[Curves], smoothing: f64, out: impl AsRef<Path>) -> Result<()> {
    let title = format!("Loss of {}", name_of(runs));
    Picture::new(title, vec![&LOSS], runs, smoothing, SIZE).draw(out.as_ref())
}

/// Draws all that runs have told, a chart a metric: loss, learning rate, gradient norm, memory, tokens per second.
///
/// # Errors
/// Those of [`draw_loss`].
pub fn draw_curves(runs: &[Curves], smoothing: f64, out: impl AsRef<Path>) -> Result<()> {
    let panels = PANELS.iter().filter(|panel| panel.is_known(runs)).collect();
    let title = format!("Metrics of {}", name_of(runs));
    Picture::new(title, panels, runs, smoothing, SIZE).draw(out.as_ref())
}

/// A chart for a page, which names the run.
pub(super) fn on_page(panel: &Panel, runs: &[Curves], smoothing: f64) -> String {
    let (first, rest) = panel.title.split_at(1);
    let title = first.to_uppercase() + rest;
    Picture::new(title, vec![panel], runs, smoothing, SIZE_ON_PAGE).svg()
}

fn name_of(runs: &[Curves]) -> String {
    match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    }
}

/// A title, charts, one alone or two beside each other, and the legend of all of them.
struct Picture<'a> {
    title: String,
    panels: Vec<&'a Panel>,
    runs: &'a [Curves],
    smoothing: f64,
    chart_size: (u32, u32),
    legend: Legend,
}

impl<'a> Picture<'a> {
    const TITLE_HEIGHT: u32 = 40;

    fn new(
        title: String,
        panels: Vec<&'a Panel>,
        runs: &'a [Curves],
        smoothing: f64,
        chart_size: (u32, u32),
    ) -> Self {
        let width = chart_size.0 * columns(&panels);
        Self {
            legend: Legend::new(&panels, runs, smoothing, width),
            title,
            panels,
            runs,
            smoothing,
            chart_size,
        }
    }

    fn rows(&self) -> u32 {
        (self.panels.len() as u32).div_ceil(columns(&self.panels))
    }

    fn size(&self) -> (u32, u32) {
        let (width, height) = self.chart_size;
        let charts = height * self.rows();
        let height = Self::TITLE_HEIGHT + charts + self.legend.height();
        (width * columns(&self.panels), height)
    }

    fn draw(&self, out: &Path) -> Result<()> {
        let extension = out.extension().unwrap_or_default();
        let bytes = match extension.to_string_lossy().to_lowercase().as_str() {
            "svg" => self.svg().into_bytes(),
            "png" => self.png()?,
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

    fn svg(&self) -> String {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, self.size()).into_drawing_area();
        // Text goes to memory.
        self.paint(&area).expect("a string can be written");
        drop(area);
        svg
    }

    #[cfg(feature = "png")]
    fn png(&self) -> Result<Vec<u8>> {
        use super::png::{Canvas, encode};

        let size = self.size();
        let mut pixels = Canvas::pixels(size);
        let area = Canvas::new(&mut pixels, size).into_drawing_area();
        self.paint(&area).expect("pixels in memory can be set");
        drop(area);
        Ok(encode(&pixels, size).expect("bytes in memory can be written"))
    }

    #[cfg(not(feature = "png"))]
    fn png(&self) -> Result<Vec<u8>> {
        Err(Error::InvalidArgument {
            name: "picture",
            message: "PNG needs the feature `png` of burn-peft; SVG does not".into(),
        })
    }

    fn paint<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        area.fill(&WHITE)?;
        let (title, below) = area.split_vertically(Self::TITLE_HEIGHT);
        self.paint_title(&title)?;
        let (charts, legend) = below.split_vertically(self.chart_size.1 * self.rows());
        let columns = columns(&self.panels) as usize;
        let parts = charts.split_evenly((self.rows().max(1) as usize, columns));
        for (part, panel) in parts.iter().zip(&self.panels) {
            chart::draw(part, panel, self.runs, self.smoothing)?;
        }
        self.legend.draw(&legend)?;
        area.present()
    }

    fn paint_title<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        const FONT: i32 = 20;
        let (width, height) = area.dim_in_pixel();
        // The widest letters are about as wide as they are high.
        let title = shortened(&self.title, width as usize / FONT as usize);
        let style = ("sans-serif", FONT).into_font().color(&BLACK.mix(0.9));
        let style = style.pos(Pos::new(HPos::Center, VPos::Center));
        let middle = (width as i32 / 2, height as i32 / 2 + 4);
        area.draw_text(&title, &style, middle)
    }
}

fn columns(panels: &[&Panel]) -> u32 {
    panels.len().clamp(1, 2) as u32
}
