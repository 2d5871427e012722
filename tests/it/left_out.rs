//! A test that cannot run is never counted as one that passed.

use std::fs;
use std::path::Path;

use crate::at_hand::names;

#[test]
fn what_is_at_hand_is_a_list_of_words() {
    assert!(names("memory, shared", "shared") && names("gpu", "gpu"));
    assert!(!names("", "shared") && !names("memory,shared", "share"));
}

/// A line of a passing test's output is seen by nobody; `left_out` writes it down.
#[test]
fn tests_that_are_left_out_say_it_in_one_way() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut folders = vec![tests];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs")
                && !path.ends_with("support/at_hand.rs")
            {
                files += 1;
                let text = fs::read_to_string(&path).unwrap();
                let printed = concat!("println!(\"", "skipped");
                assert!(!text.contains(printed), "{}", path.display());
            }
        }
    }
    assert!(files > 30, "{files}");
}
