//! Pictures of metrics, and the page about a run.

use std::fs;
use std::io::Read;
use std::path::Path;

use burn_peft::data::RecordCounts;
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

/// The picture of the losses of runs, as text.
fn loss_svg(runs: &[Curves], smoothing: f64) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("loss.svg");
    draw_loss(runs, smoothing, &out).unwrap();
    fs::read_to_string(&out).unwrap()
}

#[test]
fn the_picture_holds_each_run_raw_and_smoothed() {
    let mut runs = [zigzag("first"), zigzag("second")];
    runs[1].add("val_loss", 40, 1.5);
    let svg = loss_svg(&runs, SMOOTHING);
    for text in ["step", "loss", "first", "second", "validation"] {
        assert!(has_text(&svg, text), "no text `{text}`");
    }
    // Smoothing must keep the start and calm what follows.
    let (raw, smoothed) = (
        heights(&svg, "opacity=\"0.35\""),
        heights(&svg, "stroke-width=\"3\""),
    );
    assert_eq!((raw.len(), smoothed.len()), (40, 40));
    assert_eq!(raw[0], smoothed[0]);
    let middle = (raw[0] + raw[1]) / 2.0;
    let swing = (raw[0] - raw[1]).abs();
    assert!((smoothed[39] - middle).abs() < 0.1 * swing);
}

#[test]
fn the_picture_says_what_it_shows() {
    let svg = loss_svg(&[zigzag("rank_8")], SMOOTHING);
    for text in ["Loss of rank_8", "each step", "moving average, 0.9"] {
        assert!(has_text(&svg, text), "no text `{text}`");
    }
    assert!(!has_text(&svg, "validation"), "there is none");
    let svg = loss_svg(&[zigzag("first"), zigzag("second")], 0.0);
    assert!(has_text(&svg, "Loss of 2 runs"));
    // Without an average each step is a strong line.
    assert!(!has_text(&svg, "each step") && !svg.contains("opacity=\"0.35\""));
}

/// The places where texts begin, and the height of the picture.
fn texts(svg: &str) -> (Vec<(i32, i32, String)>, i32) {
    let attribute = |line: &str, name: &str| -> Option<i32> {
        let value = line.split(&format!(" {name}=\"")).nth(1)?;
        value.split('"').next()?.parse().ok()
    };
    let height = svg
        .lines()
        .find_map(|line| attribute(line, "height"))
        .unwrap();
    let pairs = svg.lines().zip(svg.lines().skip(1));
    let pairs = pairs.filter(|(line, _)| line.starts_with("<text"));
    let texts = pairs.map(|(line, text)| {
        let place = |name| attribute(line, name).unwrap();
        (place("x"), place("y"), text.trim().to_owned())
    });
    (texts.collect(), height)
}

#[test]
fn a_legend_has_room_for_forty_runs() {
    let name = |run: usize| format!("sweep_of_{}/rank_8/seed_{run:02}", "x".repeat(60));
    let runs: Vec<Curves> = (0..40).map(|run| zigzag(&name(run))).collect();
    let svg = loss_svg(&runs, SMOOTHING);
    let (texts, height) = texts(&svg);
    let (_, axis, _) = texts.iter().find(|(.., text)| text == "step").unwrap();
    let names = texts.iter().filter(|(.., text)| text.starts_with("sweep"));
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 40);
    for (run, (x, y, text)) in names.into_iter().enumerate() {
        // Below the charts, and within the picture: a letter is at most 9 pixels wide.
        assert!(y > axis && *y < height - 8, "{text} at {y}");
        assert!(x + 9 * (text.len() as i32) < 960, "{text} at {x}");
        assert!(
            text.contains("...") && text.ends_with(&format!("/seed_{run:02}")),
            "{text}"
        );
    }
}

/// A run whose loss is a number in each of its steps.
fn constant(name: &str, steps: usize, loss: f64) -> Curves {
    let mut curves = Curves::new(name);
    for step in 1..=steps {
        curves.add("loss", step, loss);
    }
    curves
}

#[test]
fn values_that_span_much_have_a_logarithmic_axis() {
    let mut run = zigzag("first");
    assert!(has_text(&loss_svg(&[run.clone()], SMOOTHING), "loss"));
    run.add("loss", 41, 1e6);
    let svg = loss_svg(&[run], SMOOTHING);
    for text in ["loss, logarithmic", "1", "1000", "1e6"] {
        assert!(has_text(&svg, text), "no text `{text}`");
    }
}

#[test]
fn values_of_any_size_have_an_axis() {
    let largest = f64::from(f32::MAX);
    for (steps, loss) in [
        (1, 2.5),
        (1, 0.0),
        (40, 2.5),
        (40, 0.0),
        (2, largest),
        (2, -largest),
        (3, 1e-320),
    ] {
        let svg = loss_svg(&[constant("run", steps, loss)], SMOOTHING);
        let (texts, height) = texts(&svg);
        assert!(texts.len() > 8, "{steps} times {loss}");
        assert!(
            texts
                .iter()
                .all(|(x, y, _)| (0..960).contains(x) && (0..height).contains(y))
        );
    }
    let svg = loss_svg(
        &[constant("one", 40, 1.0), constant("two", 1, 1e30)],
        SMOOTHING,
    );
    assert!(has_text(&svg, "loss, logarithmic"));
}

/// A picture that no reader of XML takes would be none.
#[test]
fn a_name_of_any_letters() {
    let svg = loss_svg(&[zigzag("a\u{1}<b>\n&"), zigzag("\u{0}")], SMOOTHING);
    assert!(!svg.contains('\u{1}') && !svg.contains('\u{0}'));
    assert!(has_text(&svg, "a\u{fffd}&lt;b&gt;\u{fffd}&amp;"));
}

#[test]
fn all_that_runs_have_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("curves.svg");
    draw_curves(&[zigzag("first"), zigzag("second")], SMOOTHING, &out).unwrap();
    let svg = fs::read_to_string(&out).unwrap();
    for text in [
        "Metrics of 2 runs",
        "loss",
        "learning rate",
        "gradient norm",
        "memory, GB",
        "tokens per second",
    ] {
        assert!(has_text(&svg, text), "no text `{text}`");
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
    assert_eq!(width, 960);
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
    let mut counts = RecordCounts::default();
    counts.empty_answers = 77;
    let html = Report {
        config: &config,
        summary: &summary,
        curves: &[zigzag("a <run>")],
        records: &[("data/<a>.jsonl".into(), counts)],
        notes: &["77 of 99 records say <nothing>".into()],
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
        "<th>&lt;a&gt;.jsonl</th>",
        "<td>empty answer</td><td>77</td>",
        "<li>77 of 99 records say &lt;nothing&gt;</li>",
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
