//! Pixels to draw on, with letters of their own.

use std::convert::Infallible;
use std::io::{self, Write};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters::prelude::DrawingBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingErrorKind};

const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;
/// A letter that the font has in the place of one that it has not.
const UNKNOWN: char = '?';

type Result<T, E = DrawingErrorKind<Infallible>> = std::result::Result<T, E>;

/// Red, green and blue, row by row.
pub(super) struct Canvas<'a> {
    pixels: &'a mut [u8],
    size: (u32, u32),
}

impl<'a> Canvas<'a> {
    /// Those of a picture.
    pub fn pixels((width, height): (u32, u32)) -> Vec<u8> {
        vec![0; 3 * width as usize * height as usize]
    }

    pub fn new(pixels: &'a mut [u8], size: (u32, u32)) -> Self {
        Self { pixels, size }
    }
}

/// How wide a text is, and how high.
fn extent(text: &str) -> (i32, i32) {
    let letters = text.chars().count();
    (
        (letters * get_raster_width(WEIGHT, HEIGHT)) as i32,
        HEIGHT.val() as i32,
    )
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Result<()> {
        Ok(())
    }

    fn present(&mut self) -> Result<()> {
        Ok(())
    }

    /// Lays a colour over what is there.
    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Result<()> {
        let (width, height) = (self.size.0 as i32, self.size.1 as i32);
        if (0..width).contains(&x) && (0..height).contains(&y) {
            let start = 3 * (y as usize * width as usize + x as usize);
            let (red, green, blue) = color.rgb;
            for (below, above) in self.pixels[start..start + 3]
                .iter_mut()
                .zip([red, green, blue])
            {
                let mixed =
                    f64::from(*below) * (1.0 - color.alpha) + f64::from(above) * color.alpha;
                *below = mixed.round() as u8;
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> Result<()> {
        let (width, height) = extent(text);
        let left = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        let top = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let (color, transform) = (style.color(), style.transform());
        for (place, letter) in text.chars().enumerate() {
            let raster = get_raster(letter, WEIGHT, HEIGHT);
            let raster = raster.or_else(|| get_raster(UNKNOWN, WEIGHT, HEIGHT));
            let raster = raster.expect("the font has ASCII");
            for (row, shades) in raster.rows().enumerate() {
                for (column, shade) in shades.iter().enumerate() {
                    let column = place * raster.width() + column;
                    let (dx, dy) = transform.transform(left + column as i32, top + row as i32);
                    let alpha = color.alpha * f64::from(*shade) / 255.0;
                    self.draw_pixel((x + dx, y + dy), BackendColor { alpha, ..color })?;
                }
            }
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, _: &S) -> Result<(u32, u32)> {
        let (width, height) = extent(text);
        Ok((width as u32, height as u32))
    }
}

/// The bytes of a file: a PNG picture of 8 bits a colour, whose lines are compressed as they are.
/// <https://www.w3.org/TR/png-3/>
pub(super) fn encode(pixels: &[u8], (width, height): (u32, u32)) -> io::Result<Vec<u8>> {
    const EIGHT_BITS_OF_RGB: [u8; 5] = [8, 2, 0, 0, 0];
    const AS_IT_IS: u8 = 0;
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &EIGHT_BITS_OF_RGB,
    ]
    .concat();
    let mut lines = ZlibEncoder::new(Vec::new(), Compression::default());
    for line in pixels.chunks(3 * width as usize) {
        lines.write_all(&[AS_IT_IS])?;
        lines.write_all(line)?;
    }
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    push_chunk(b"IHDR", &header, &mut file);
    push_chunk(b"IDAT", &lines.finish()?, &mut file);
    push_chunk(b"IEND", &[], &mut file);
    Ok(file)
}

/// A length, a name, data, and the checksum of the last two.
fn push_chunk(name: &[u8; 4], data: &[u8], file: &mut Vec<u8>) {
    let mut checksum = Crc::new();
    checksum.update(name);
    checksum.update(data);
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(name);
    file.extend(data);
    file.extend(checksum.sum().to_be_bytes());
}
