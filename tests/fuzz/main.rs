//! No file makes this crate panic, hang, or allocate by a number that it has not compared with the file. Each target of
//! `targets.rs` is read some hundred times with bytes changed at random; `BURN_PEFT_FUZZ_MINUTES` makes minutes of it, and
//! `BURN_PEFT_FUZZ_SEED` other files. A finding leaves its bytes where the message says.

mod mutate;
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Debug;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use mutate::mutate;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use targets::{TARGETS, Target};

/// How many files of each target a test reads: always the same.
const COUNT: usize = 200;
/// Many times what a file of these takes.
const LARGEST_ALLOCATION: usize = 256 << 20;
/// Many times what one takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(30);

/// Refuses larger allocations, which end the process.
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: it is the system's, but for null, which says that there is no memory.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST_ALLOCATION {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises; all memory is from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The folder of a target, with the bytes that are read there last.
fn folder(target: &Target) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("fuzz")
        .join(target.name);
    let _ = fs::remove_dir_all(&folder);
    target.prepare(&folder);
    folder
}

/// Reads one file, and names it where that goes wrong.
fn read(target: &Target, folder: &Path, bytes: &[u8]) -> bool {
    let start = Instant::now();
    let read = catch_unwind(AssertUnwindSafe(|| target.read(folder, bytes)));
    let file = target.file(folder);
    let Ok(result) = read else {
        fs::write(&file, bytes).unwrap();
        panic!(
            "{}: a panic; the bytes are in {}",
            target.name,
            file.display()
        );
    };
    assert!(
        start.elapsed() < LONGEST,
        "{}: {:?} for {}",
        target.name,
        start.elapsed(),
        file.display()
    );
    result.is_ok()
}

/// What an environment variable says.
fn setting<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error:?}")),
    )
}

#[test]
fn changed_files_are_read_or_refused() {
    let limit = setting("BURN_PEFT_FUZZ_MINUTES")
        .map(|minutes: f64| Duration::from_secs_f64(60.0 * minutes));
    let seed = setting("BURN_PEFT_FUZZ_SEED").unwrap_or_default();
    let chosen: Option<String> = setting("BURN_PEFT_FUZZ_TARGET");
    let is_chosen = |target: &&Target| chosen.as_ref().is_none_or(|name| name == target.name);
    for target in TARGETS.iter().filter(is_chosen) {
        let folder = folder(target);
        let seeds = (target.seeds)();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (start, mut refused, mut count) = (Instant::now(), 0, 0);
        while limit.map_or(count < COUNT, |limit| start.elapsed() < limit) {
            refused += usize::from(!read(target, &folder, &mutate(&seeds, &mut rng)));
            count += 1;
        }
        println!("{}: {count} files, {refused} of them refused", target.name);
        assert!(refused > 0, "no file of {} was refused", target.name);
    }
}

/// Those that the others are made of; `BURN_PEFT_FUZZ_CORPUS` names a folder in which they are left for `cargo fuzz`.
#[test]
fn files_that_are_right_are_read() {
    let corpus = std::env::var_os("BURN_PEFT_FUZZ_CORPUS").map(PathBuf::from);
    let mut refused = Vec::new();
    for target in TARGETS {
        let dir = tempfile::tempdir().unwrap();
        target.prepare(dir.path());
        for (number, bytes) in (target.seeds)().iter().enumerate() {
            if let Err(error) = target.read(dir.path(), bytes) {
                refused.push(format!("{} {number}: {error}", target.name));
            }
            if let Some(corpus) = &corpus {
                let folder = corpus.join(target.name);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(format!("seed_{number}")), bytes).unwrap();
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// `cargo fuzz` has a program for each target.
#[test]
fn every_target_has_a_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        let program = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs")));
        let program = program.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            program.contains(&format!("targets::fuzz(\"{name}\", bytes)")),
            "{program}"
        );
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "{name} is not in fuzz/Cargo.toml"
        );
    }
}
