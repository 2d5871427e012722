//! Pictures of metrics, and the page about a run.

use std::fs;
use std::io::Read;
use std::path::Path;

use burn_peft::report::{Answer, Curves, Report, SMOOTHING, draw_curves, draw_loss};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{ExactMatch, Summary, Validation};
use flate2::read::ZlibDecoder;
use tempfile::TempDir;

fn run_with(metrics: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    folder
}

fn complaint(metrics: &str) -> String {
    let folder = run_with(metrics);
    Curves::read(folder.path()).unwrap_err().to_string()
}

fn points(curves: &Curves, metric: &str) -> Vec<(usize, f64)> {
    let curve = curves.of(metric).unwrap().iter();
    curve.map(|(step, value)| (*step, *value)).collect()
}

#[test]
fn metrics_are_read_by_step_and_the_later_line_counts() {
    let metrics = concat!(
        "{\"step\": 1, \"loss\": 2.5, \"lr\": 1e-4}\n",
        "{\"step\": 2, \"loss\": 9.0}\n",
        "{\"step\": 2, \"val_loss\": 2.25}\n",
        "{\"step\": 2, \"loss\": 2.0}\n",
        "{\"step\": 3, \"loss\": null}\n",
        "{\"step\": 4, \"lo",
    );
    let folder = run_with(metrics);
    let curves = Curves::read(folder.path()).unwrap();
    assert_eq!(points(&curves, "loss"), [(1, 2.5), (2, 2.0)]);
    assert_eq!(points(&curves, "val_loss"), [(2, 2.25)]);
    assert_eq!(points(&curves, "lr"), [(1, 1e-4)]);
    assert_eq!(curves.of("grad_norm"), None);
    let name = folder.path().file_name().unwrap().to_str();
    assert_eq!(Some(curves.name.as_ref()), name);
}

/// The axis of such numbers has no end.
#[test]
fn a_number_that_no_run_computes_is_a_gap() {
    let metrics = "{\"step\": 1, \"loss\": 2}\n{\"step\": 2, \"loss\": 1e308}\n{\"step\": 3, \"loss\": -1e308}\n";
    let folder = run_with(metrics);
    let curves = Curves::read(folder.path()).unwrap();
    assert_eq!(points(&curves, "loss"), [(1, 2.0)]);
    draw_loss(&[curves], SMOOTHING, folder.path().join("loss.svg")).unwrap();
}

#[test]
fn bad_metrics_name_file_and_line() {
    let error = complaint("{\"step\": 1, \"loss\": 2}\n{\"loss\": 1}\n");
    assert!(
        error.contains("metrics.jsonl: line 2: missing field `step`"),
        "{error}"
    );
    assert!(complaint("not json\n").contains("metrics.jsonl: line 1: "));
    assert!(complaint("").ends_with("metrics.jsonl: holds no losses"));
    assert!(complaint("{\"step\": 1, \"lr\": 1}\n").ends_with("holds no losses"));
    let missing = Curves::read("no/such/run").unwrap_err().to_string();
    assert!(
        missing.starts_with("no/such/run/metrics.jsonl: "),
        "{missing}"
    );
}

/// A run of 40 steps whose loss goes up and down.
fn zigzag(name: &str) -> Curves {
    let mut curves = Curves::new(name);
    for step in 1..=40 {
        curves.add("loss", step, 1.0 + (step % 2) as f64);
        curves.add("lr", step, 1e-4 * step as f64);
        curves.add("grad_norm", step, 0.5);
        curves.add("peak_memory_bytes", step, 3e9);
        curves.add("tokens_per_second", step, 1234.0);
    }
    curves
}

/// The y coordinates of the first line that is drawn in this style.
fn heights(svg: &str, style: &str) -> Vec<f64> {
    let mut lines = svg.lines();
    let line = lines.find(|l| l.starts_with("<polyline") && l.contains(style));
    let points = line.unwrap().split("points=\"").nth(1).unwrap();
    let pairs = points.split('"').next().unwrap().split_whitespace();
    pairs
        .map(|pair| pair.split_once(',').unwrap().1.parse().unwrap())
        .collect()
}

fn has_text(svg: &str, text: &str) -> bool {
    svg.lines().any(|line| line.trim() == text)
}

#[test]
fn the_picture_holds_each_run_raw_and_smoothed() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = [zigzag("first"), zigzag("second")];
    runs[1].add("val_loss", 40, 1.5);
    let out = folder.path().join("loss.svg");
    draw_loss(&runs, SMOOTHING, &out).unwrap();
    let svg = fs::read_to_string(&out).unwrap();
    for text in ["step", "loss", "first", "second", "second, validation"] {
        assert!(has_text(&svg, text), "no text `{text}`");
    }
    // Smoothing must keep the start and calm what follows.
    let (raw, smoothed) = (
        heights(&svg, "opacity=\"0.25\""),
        heights(&svg, "stroke-width=\"3\""),
    );
    assert_eq!((raw.len(), smoothed.len()), (40, 40));
    assert_eq!(raw[0], smoothed[0]);
    let middle = (raw[0] + raw[1]) / 2.0;
    let swing = (raw[0] - raw[1]).abs();
    assert!((smoothed[39] - middle).abs() < 0.1 * swing);
}

#[test]
fn all_that_runs_have_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("curves.svg");
    draw_curves(&[zigzag("first"), zigzag("second")], SMOOTHING, &out).unwrap();
    let svg = fs::read_to_string(&out).unwrap();
    for title in [
        "loss",
        "learning rate",
        "gradient norm",
        "memory, GB",
        "tokens per second",
    ] {
        assert!(has_text(&svg, title), "no chart of `{title}`");
    }
    // A chart of what nobody has told would be empty.
    let mut loss = Curves::new("loss");
    loss.add("loss", 1, 2.0);
    draw_curves(&[loss], SMOOTHING, &out).unwrap();
    assert!(!has_text(
        &fs::read_to_string(&out).unwrap(),
        "learning rate"
    ));
}

#[test]
fn a_picture_of_another_kind() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [zigzag("first")];
    let out = folder.path().join("loss.pdf");
    let error = draw_loss(&runs, 0.0, out).unwrap_err().to_string();
    assert!(error.contains("`pdf` is no kind of picture"), "{error}");
    let error = draw_loss(&runs, 0.0, Path::new("no/such/folder/loss.svg"));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("no/such/folder/loss.svg: ")
    );
}

/// The width of a PNG picture and the colours of its pixels, row by row.
fn pixels(path: &Path) -> (usize, Vec<[u8; 3]>) {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (width, length) = (number(16), number(33));
    assert_eq!(&bytes[37..41], b"IDAT");
    let mut lines = Vec::new();
    let mut decoder = ZlibDecoder::new(&bytes[41..41 + length]);
    decoder.read_to_end(&mut lines).unwrap();
    let lines = lines.chunks(1 + 3 * width);
    let colours = lines.flat_map(|line| line[1..].as_chunks::<3>().0.to_vec());
    (width, colours.collect())
}

#[test]
fn a_png_picture_shows_lines_and_letters() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("loss.png");
    draw_loss(&[zigzag("first"), zigzag("second")], SMOOTHING, &out).unwrap();
    let (width, colours) = pixels(&out);
    assert_eq!(colours.len(), 960 * 560);
    let count = |colour: [u8; 3]| colours.iter().filter(|other| **other == colour).count();
    // The strong line of a run that lies above another's.
    assert!(count([213, 94, 0]) > 100, "{}", count([213, 94, 0]));
    assert!(count([255; 3]) > colours.len() / 2);
    // The name of the axis stands upright at the left edge.
    let is_dark = |colour: &[u8; 3]| colour.iter().all(|part| *part < 120);
    let left = colours.chunks(width).flat_map(|row| &row[..40]);
    assert!(left.filter(|colour| is_dark(colour)).count() > 30);
}

fn summary() -> Summary {
    Summary {
        steps: 40,
        skipped_steps: 1,
        final_loss: 1.25,
        total_params: 1000,
        trainable_params: 10,
        tokens_per_second: 1234.0,
        peak_memory_bytes: Some(3_000_000_000),
        val_loss: Some(2.0),
        best_validation: Some(Validation {
            step: 20,
            loss: 1.5,
        }),
        exact_match: Some(ExactMatch {
            exact_match_base: 0.0,
            exact_match_finetuned: 0.5,
        }),
    }
}

#[test]
fn the_page_of_a_run_has_everything_in_it() {
    let answer = Answer {
        prompt: "Is 1 < 2 & 2 > 1?\n\"Yes\" or no".into(),
        base: "<script>alert(1)</script>".into(),
        finetuned: "\u{1}yes".into(),
        expected: None,
    };
    let (config, summary) = (RecipeConfig::default(), summary());
    let html = Report {
        config: &config,
        summary: &summary,
        curves: &[zigzag("a <run>")],
        answers: &[answer],
    }
    .html();
    for text in [
        "<title>a &lt;run&gt;</title>",
        "lora_rank: 8",
        "<td>10, 1.00 %</td>",
        "1.5000 after step 20",
        "0 % before, 50 % after",
        "Is 1 &lt; 2 &amp; 2 &gt; 1?\n&quot;Yes&quot; or no",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "\u{fffd}yes",
    ] {
        assert!(html.contains(text), "`{text}` is not in the page");
    }
    assert_eq!(html.matches("<svg").count(), 5);
    // It asks for nothing: no script, no link, no picture from elsewhere.
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    for word in [
        "<script", "<link", "<img", "@import", "url(", "http:", "https:", "src=",
    ] {
        assert!(!outside.contains(word), "`{word}` is in the page");
    }
}
