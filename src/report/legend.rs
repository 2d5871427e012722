//! What is which in a picture: the kinds of lines, and the runs.

use std::collections::HashSet;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Curves;
use super::chart::{Drawn, Panel, Stroke};

/// Letters of one width, so that it is known without a font how wide a name is.
const FONT: (&str, i32) = ("monospace", 14);
const LETTER: usize = 9;
const ROW: usize = 22;
const GLYPH: usize = 36;
/// Before each name, and between it and the next.
const GAP: usize = 8;
const MARGIN: usize = 16;

/// How long a name may be: the first of these at which no two become one, if there is one.
const NAME_LETTERS: [usize; 5] = [28, 36, 45, 60, 90];

enum Glyph {
    Line(Stroke),
    Dot(RGBColor),
}

/// A legend below charts: rows of as many columns as have room.
pub(super) struct Legend {
    entries: Vec<(Glyph, String)>,
    columns: usize,
    column_width: usize,
}

impl Legend {
    /// That of charts of runs, for a picture of a width.
    pub fn new(panels: &[&Panel], runs: &[Curves], smoothing: f64, width: u32) -> Self {
        let room = width as usize - 2 * MARGIN;
        let entries: Vec<_> = kinds(panels, runs, smoothing)
            .chain(names(runs, (room - GLYPH - 2 * GAP) / LETTER))
            .collect();
        let letters = entries.iter().map(|(_, name)| width_of(name));
        let column_width = GLYPH + 2 * GAP + LETTER * letters.max().unwrap_or(0);
        Self {
            columns: (room / column_width).clamp(1, entries.len().max(1)),
            column_width,
            entries,
        }
    }

    fn rows(&self) -> usize {
        self.entries.len().div_ceil(self.columns)
    }

    /// The pixels that it takes.
    pub fn height(&self) -> u32 {
        match self.rows() {
            0 => 0,
            rows => (rows * ROW + MARGIN) as u32,
        }
    }

    /// Draws it at the top of an area, column by column.
    pub fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        let style = FONT.into_font().color(&BLACK.mix(0.8));
        let style = style.pos(Pos::new(HPos::Left, VPos::Center));
        for (place, (glyph, name)) in self.entries.iter().enumerate() {
            let (column, row) = (place / self.rows(), place % self.rows());
            let x = (MARGIN + column * self.column_width) as i32;
            let y = (row * ROW + ROW / 2) as i32;
            draw_glyph(area, glyph, (x, y))?;
            area.draw_text(name, &style, (x + (GLYPH + GAP) as i32, y))?;
        }
        Ok(())
    }
}

fn draw_glyph<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    glyph: &Glyph,
    (x, y): (i32, i32),
) -> Drawn<DB> {
    match glyph {
        Glyph::Line(stroke) => stroke.draw(area, vec![(x, y), (x + GLYPH as i32, y)]),
        Glyph::Dot(colour) => {
            area.draw(&Circle::new((x + GLYPH as i32 / 2, y), 5, colour.filled()))
        }
    }
}

/// What pale lines, strong ones and dots are. A single run has them in its colour, and needs no other entry.
fn kinds(
    panels: &[&Panel],
    runs: &[Curves],
    smoothing: f64,
) -> impl Iterator<Item = (Glyph, String)> {
    let stroke = match runs.len() {
        1 => Stroke::of_run(0),
        _ => Stroke::plain(RGBColor(110, 110, 110)),
    };
    let is_smoothed = smoothing > 0.0 && panels.iter().any(|panel| panel.is_noisy);
    let has_dots = runs
        .iter()
        .any(|run| panels.iter().any(|panel| panel.dots_of(run).is_some()));
    let lines = [
        (Glyph::Line(stroke.pale()), "each step".to_owned()),
        (Glyph::Line(stroke), format!("moving average, {smoothing}")),
    ];
    let dots = (Glyph::Dot(stroke.colour), "validation".to_owned());
    let lines = lines.into_iter().filter(move |_| is_smoothed);
    lines.chain(has_dots.then_some(dots))
}

fn names(runs: &[Curves], most: usize) -> Vec<(Glyph, String)> {
    if runs.len() < 2 {
        return Vec::new();
    }
    let all = |(most, keeps)| -> Vec<String> {
        let names = runs.iter().map(|run| cut(&run.name, most, keeps));
        names.collect()
    };
    let count = |names: Vec<String>| names.into_iter().collect::<HashSet<_>>().len();
    let apart = count(all((usize::MAX, ENDS)));
    let lengths = NAME_LETTERS.map(|letters| letters.min(most));
    let mut forms = lengths
        .into_iter()
        .flat_map(|letters| [ENDS, BEGINNING, END].map(|keeps| (letters, keeps)));
    let enough = forms.find(|form| count(all(*form)) == apart);
    let names = all(enough.unwrap_or((lengths[0], ENDS)));
    let strokes = (0..).map(|run| Glyph::Line(Stroke::of_run(run)));
    strokes.zip(names).collect()
}

/// How many letters wide a text is at most: those of some scripts take two.
fn letters(text: &[char]) -> usize {
    text.iter()
        .map(|letter| 1 + usize::from(!letter.is_ascii()))
        .sum()
}

fn width_of(text: &str) -> usize {
    letters(&Vec::from_iter(text.chars()))
}

/// A name of at most so many letters, without its middle if it must be; letters that cannot be shown are replaced.
pub(super) fn shortened(name: &str, most: usize) -> String {
    cut(name, most, ENDS)
}

/// What is kept of a name that is too long: so many letters of its beginning and of its end.
type Keeps = fn(usize) -> [usize; 2];
const ENDS: Keeps = |count| [count.div_ceil(2), count / 2];
const BEGINNING: Keeps = |count| [count, 0];
const END: Keeps = |count| [0, count];

fn cut(name: &str, most: usize, keeps: Keeps) -> String {
    const CUT: &str = "...";
    let shown = |letter: char| match letter.is_control() {
        true => '\u{fffd}',
        false => letter,
    };
    let name: Vec<char> = name.chars().map(shown).collect();
    if letters(&name) <= most {
        return String::from_iter(name);
    }
    let room = most.saturating_sub(CUT.len());
    let parts = |count: usize| {
        let [head, tail] = keeps(count);
        [&name[..head], &name[name.len() - tail..]]
    };
    let fits = |count: &usize| parts(*count).into_iter().map(letters).sum::<usize>() <= room;
    let count = (0..name.len()).take_while(fits).last().unwrap_or(0);
    let [head, tail] = parts(count).map(String::from_iter);
    format!("{head}{CUT}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_loses_its_middle() {
        assert_eq!(shortened("rank_8", 6), "rank_8");
        assert_eq!(shortened("rank_8_all", 9), "ran...all");
        assert_eq!(shortened("rank_8_all", 8), "ran...ll");
        assert_eq!(shortened("a\nb", 4), "a\u{fffd}b");
        assert_eq!(shortened("日本語の名前です", 9), "日本...す");
    }

    fn runs(count: usize, name: impl Fn(usize) -> String) -> Vec<Curves> {
        (0..count).map(|run| Curves::new(name(run))).collect()
    }

    #[test]
    fn names_stay_apart() {
        let in_the_middle = |run: usize| format!("{0}seed_{run:02}{0}", "x".repeat(20));
        let far_behind = |run: usize| format!("{0}seed_{run:02}{0}", "x".repeat(50));
        let names = |name: &dyn Fn(usize) -> String| -> Vec<String> {
            let names = names(&runs(12, name), 97).into_iter();
            names.map(|(_, name)| name).collect()
        };
        let [twenty, fifty] = [20, 50].map(|count| "x".repeat(count));
        assert_eq!(names(&in_the_middle)[11], format!("...ed_11{twenty}"));
        assert_eq!(names(&far_behind)[7], format!("{fifty}seed_07..."));
        assert!(
            names(&|_| "z".repeat(300))
                .iter()
                .all(|name| name.len() == 28)
        );
    }

    #[test]
    fn no_entry_leaves_the_picture() {
        let named = |run: usize| format!("{}{run}{}", "W".repeat(run * 10), "w".repeat(run * 10));
        for count in [1, 2, 12, 40] {
            for width in [640, 960, 1920] {
                let legend = Legend::new(
                    &[&super::super::chart::LOSS],
                    &runs(count, named),
                    0.9,
                    width,
                );
                let names = if count == 1 { 0 } else { count };
                assert_eq!(legend.entries.len(), 2 + names);
                assert!(legend.columns * legend.rows() >= legend.entries.len());
                assert!(2 * MARGIN + legend.columns * legend.column_width <= width as usize);
            }
        }
    }
}
