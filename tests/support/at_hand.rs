//! Tests that need what is not everywhere.

use std::fs::OpenOptions;
use std::io::Write;

/// What must be there, in words with commas between them: a test that is left out for want of one of these fails.
const AT_HAND: &str = "BURN_PEFT_AT_HAND";
/// The file in which every test that is left out writes a line.
const LEFT_OUT: &str = "BURN_PEFT_LEFT_OUT";

/// Says that this test is left out for want of something: the `shared` folder of reference runs, a system that tells its
/// `memory`, a device that computes in `bf16`, a `gpu`.
#[track_caller]
pub fn left_out(want: &str, why: &str) {
    println!("skipped: {why}");
    let test = std::thread::current();
    let line = format!("{}: no {want}: {why}\n", test.name().unwrap_or("main"));
    if let Some(path) = std::env::var_os(LEFT_OUT) {
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
    let at_hand = std::env::var(AT_HAND).unwrap_or_default();
    assert!(
        !names(&at_hand, want),
        "{AT_HAND} says that there is {want}: {why}"
    );
}

/// Whether a list of words has this one.
pub fn names(at_hand: &str, want: &str) -> bool {
    at_hand.split(',').any(|word| word.trim() == want)
}
