//! Pictures of what runs have told of themselves, and a page about one of them. Feature `plot`; with `png`, pictures may be
//! PNG files too. Text needs no font on the machine: that of SVG is the viewer's.

mod axis;
mod chart;
mod curves;
mod html;
mod legend;
mod picture;
#[cfg(feature = "png")]
mod png;

pub use chart::SMOOTHING;
pub use curves::Curves;
pub use html::{Answer, Report};
pub use picture::{draw_curves, draw_loss};
