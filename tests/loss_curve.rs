//! The pictures of the examples: reading metrics, drawing SVG.

#[path = "../examples/support/plot.rs"]
mod plot;

use std::fs;
use std::path::Path;

use plot::{Run, SMOOTHING, loss_curve};
use tempfile::TempDir;

fn run_with(metrics: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    folder
}

fn complaint(metrics: &str) -> String {
    let folder = run_with(metrics);
    let error = Run::read(folder.path()).err().expect("an error");
    error.to_string()
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
    let run = Run::read(folder.path()).unwrap();
    assert_eq!(
        run.loss.into_iter().collect::<Vec<_>>(),
        [(1, 2.5), (2, 2.0)]
    );
    assert_eq!(run.validation.into_iter().collect::<Vec<_>>(), [(2, 2.25)]);
    assert_eq!(
        Some(run.name.as_ref()),
        folder.path().file_name().unwrap().to_str()
    );
}

#[test]
fn bad_metrics_name_file_and_line() {
    assert!(
        complaint("{\"step\": 1, \"loss\": 2}\n{\"loss\": 1}\n")
            .ends_with("metrics.jsonl: line 2: expected a number `step`")
    );
    assert!(complaint("{\"step\": 1}\n").ends_with("line 1: expected `loss` or `val_loss`"));
    assert!(complaint("not json\n").contains("metrics.jsonl: line 1: "));
    assert!(complaint("").ends_with("metrics.jsonl: holds no losses"));
    let missing = Run::read(Path::new("no/such/run")).err().expect("an error");
    assert!(
        missing
            .to_string()
            .starts_with("no/such/run/metrics.jsonl: ")
    );
}

/// The y coordinates of the first line that is drawn in this style.
fn heights(svg: &str, style: &str) -> Vec<f64> {
    let line = svg
        .lines()
        .find(|l| l.starts_with("<polyline") && l.contains(style))
        .unwrap();
    let points = line
        .split("points=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let pairs = points.split_whitespace();
    pairs
        .map(|pair| pair.split_once(',').unwrap().1.parse().unwrap())
        .collect()
}

#[test]
fn the_picture_holds_each_run_raw_and_smoothed() {
    // A zigzag: smoothing must keep its start and calm what follows.
    let metrics: String = (1..=40)
        .map(|step| format!("{{\"step\": {step}, \"loss\": {}}}\n", 1 + step % 2))
        .collect();
    let folder = run_with(&metrics);
    let mut runs = vec![
        Run::read(folder.path()).unwrap(),
        Run::read(folder.path()).unwrap(),
    ];
    runs[0].name = "first".into();
    runs[1].name = "second".into();
    runs[1].validation.insert(40, 1.5);
    let out = folder.path().join("loss.svg");
    loss_curve(&runs, SMOOTHING, &out).unwrap();

    let svg = fs::read_to_string(&out).unwrap();
    for text in ["step", "loss", "first", "second", "second, validation"] {
        assert!(
            svg.lines().any(|line| line.trim() == text),
            "no text `{text}`"
        );
    }
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
fn a_picture_that_cannot_be_written_is_named() {
    let folder = run_with("{\"step\": 1, \"loss\": 2.0}\n");
    let run = Run::read(folder.path()).unwrap();
    let error = loss_curve(&[run], 0.0, Path::new("no/such/folder/loss.svg")).unwrap_err();
    assert!(error.to_string().starts_with("no/such/folder/loss.svg: "));
}
