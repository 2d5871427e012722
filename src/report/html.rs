//! A page about a run, in one file that needs no other.

use std::path::{Path, PathBuf};

use super::Curves;
use super::chart::{PANELS, SMOOTHING};
use super::picture::on_page;
use crate::Result;
use crate::data::RecordCounts;
use crate::files::write_text;
use crate::training::recipe::RecipeConfig;
use crate::training::{Bytes, Summary};

/// What a model answered before and after its training.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// What it was asked.
    pub prompt: String,
    /// What the base says.
    pub base: String,
    /// What the finetuned model says.
    pub finetuned: String,
    /// What the record says, where there is one.
    pub expected: Option<String>,
}

/// What a page tells of a run.
#[derive(Debug)]
pub struct Report<'a> {
    /// Its configuration.
    pub config: &'a RecipeConfig,
    /// What it came to.
    pub summary: &'a Summary,
    /// What it told of its steps; runs to compare with may follow.
    pub curves: &'a [Curves],
    /// What became of the records of its files.
    pub records: &'a [(PathBuf, RecordCounts)],
    /// What it told before it began, in words.
    pub notes: &'a [String],
    /// What was asked before and after.
    pub answers: &'a [Answer],
}

impl Report<'_> {
    /// Writes the page.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_text(path.as_ref(), &self.html())
    }

    /// The page: one file without scripts, which asks for nothing from elsewhere.
    pub fn html(&self) -> String {
        let title = self.curves.first().map_or("run", |curves| &curves.name);
        let title = escaped(title);
        let sections = [
            section("Counts", &self.counts()),
            section("Records", &self.records()),
            section("Curves", &self.charts()),
            section("Before and after", &self.samples()),
            section(
                "Configuration",
                &format!("<pre>{}</pre>", escaped(&self.config.to_yaml())),
            ),
        ];
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}\
             </body>\n</html>\n",
            sections.concat()
        )
    }

    fn counts(&self) -> String {
        let summary = self.summary;
        let share = 100.0 * summary.trainable_params as f64 / summary.total_params.max(1) as f64;
        let mut rows = vec![
            ("optimizer steps", summary.steps.to_string()),
            (
                "loss of the last step",
                format!("{:.4}", summary.final_loss),
            ),
            ("parameters", summary.total_params.to_string()),
            (
                "of these trained",
                format!("{}, {share:.2} %", summary.trainable_params),
            ),
            (
                "tokens per second",
                format!("{:.0}", summary.tokens_per_second),
            ),
        ];
        if summary.skipped_steps > 0 {
            rows.push(("steps left out", summary.skipped_steps.to_string()));
        }
        if let Some(loss) = summary.val_loss {
            rows.push(("last validation loss", format!("{loss:.4}")));
        }
        if let Some(best) = summary.best_validation {
            rows.push((
                "best validation loss",
                format!("{:.4} after step {}", best.loss, best.step),
            ));
        }
        if let Some(bytes) = summary.peak_memory_bytes {
            rows.push(("most main memory", Bytes(bytes).to_string()));
        }
        if let Some(exact) = summary.exact_match {
            let (base, tuned) = (exact.exact_match_base, exact.exact_match_finetuned);
            rows.push((
                "answers exactly right",
                format!("{:.0} % before, {:.0} % after", 100.0 * base, 100.0 * tuned),
            ));
        }
        table(
            rows.iter()
                .map(|(what, value)| vec![escaped(what), escaped(value)]),
            &[],
        )
    }

    /// A column for each file, and the notes below.
    fn records(&self) -> String {
        let files = self.records.iter().map(|(path, counts)| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            (escaped(&name.to_string_lossy()), counts.named())
        });
        let files: Vec<_> = files.collect();
        let names = RecordCounts::default().named().map(|(name, _)| name);
        let rows = names.into_iter().enumerate().map(|(row, name)| {
            let counts = files.iter().map(|(_, counts)| counts[row].1.to_string());
            [name.to_owned()].into_iter().chain(counts).collect()
        });
        let header = [""].into_iter();
        let header: Vec<&str> = header
            .chain(files.iter().map(|(name, _)| &name[..]))
            .collect();
        let notes = self.notes.iter();
        let notes = notes.map(|note| format!("<li>{}</li>\n", escaped(note)));
        format!(
            "{}<ul>\n{}</ul>\n",
            table(rows, &header),
            notes.collect::<String>()
        )
    }

    fn charts(&self) -> String {
        let known = PANELS.iter().filter(|panel| panel.is_known(self.curves));
        let figure = known.map(|panel| {
            let picture = on_page(panel, self.curves, SMOOTHING);
            format!(
                "<figure role=\"img\" aria-label=\"{} by step\">{picture}</figure>\n",
                panel.title
            )
        });
        format!(
            "<div class=\"charts\">\n{}</div>\n",
            figure.collect::<String>()
        )
    }

    fn samples(&self) -> String {
        if self.answers.is_empty() {
            return "<p>Nothing was asked.</p>\n".into();
        }
        let rows = self.answers.iter().map(|answer| {
            let expected = answer.expected.as_deref().unwrap_or_default();
            [&answer.prompt, &answer.base, &answer.finetuned, expected]
                .map(text)
                .to_vec()
        });
        table(
            rows,
            &[
                "asked",
                "the base says",
                "the finetuned model says",
                "the record says",
            ],
        )
    }
}

fn section(title: &str, body: &str) -> String {
    format!("<section>\n<h2>{title}</h2>\n{body}\n</section>\n")
}

/// Rows of cells that are HTML already.
fn table(rows: impl Iterator<Item = Vec<String>>, header: &[&str]) -> String {
    let cells = |cells: &[String], tag: &str| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{cell}</{tag}>"));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let mut table = String::from("<div class=\"scroll\"><table>\n");
    if !header.is_empty() {
        let header: Vec<String> = header.iter().map(|name| name.to_string()).collect();
        table += &cells(&header, "th");
    }
    for row in rows {
        table += &cells(&row, "td");
    }
    table + "</table></div>\n"
}

/// A text in which lines and spaces stay.
fn text(text: &str) -> String {
    format!("<span class=\"text\">{}</span>", escaped(text))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // What HTML has no letters for.
            '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.scroll { overflow-x: auto; } .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #ddd; } figure svg { display: block; width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
";
