//! The allocator of the programs: blocks keep their numbers, zeros are zeros, and the process never holds more than at its
//! largest moment, whatever the sizes of the moments before were, nor more mappings than a system allows. A process of its
//! own, whose allocator it is.

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "support/at_hand.rs"]
mod at_hand;

use at_hand::left_out;
use burn_peft::training::peak_memory_bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MIB: usize = 1 << 20;
/// What the program and its small blocks take.
const ALLOWED: u64 = 24 << 20;

/// Sizes around the border between small and large blocks, and far above it.
fn size(rng: &mut ChaCha8Rng) -> usize {
    match rng.random_range(0..3) {
        0 => rng.random_range(1..4096),
        1 => rng.random_range(MIB - 4096..MIB + 4096),
        _ => rng.random_range(MIB..6 * MIB),
    }
}

fn holds(block: &[u8], value: u8) -> bool {
    block.iter().all(|&number| number == value)
}

/// Allocates, grows, shrinks and frees at random.
fn exercise(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut blocks: Vec<(u8, Vec<u8>)> = Vec::new();
    for step in 0..300 {
        let (value, size) = (step as u8, size(&mut rng));
        match rng.random_range(0..4) {
            0 => {
                assert!(holds(&vec![0; size], 0), "zeros");
                blocks.push((value, vec![value; size]));
            }
            1 => blocks.push((value, vec![value; size])),
            2 if !blocks.is_empty() => {
                let index = rng.random_range(0..blocks.len());
                let (value, block) = &mut blocks[index];
                block.resize(size, *value);
                block.shrink_to_fit();
            }
            _ if !blocks.is_empty() => {
                let (value, block) = blocks.swap_remove(rng.random_range(0..blocks.len()));
                assert!(holds(&block, value), "a block of {} bytes", block.len());
            }
            _ => {}
        }
        if blocks.len() > 8 {
            blocks.remove(0);
        }
    }
    for (value, block) in blocks {
        assert!(holds(&block, value), "a block of {} bytes", block.len());
    }
}

/// Each moment holds 256 MiB, in blocks of another size.
fn freed_blocks_become_those_of_the_next_moment() {
    let Some(before) = peak_memory_bytes() else {
        return left_out(
            "memory",
            "this system does not tell a process's peak memory",
        );
    };
    for blocks in [32, 11, 27, 5, 64] {
        let size = 256 * MIB / blocks;
        let held: Vec<Vec<u8>> = (0..blocks).map(|index| vec![index as u8; size]).collect();
        assert!((0..blocks).all(|index| holds(&held[index], index as u8)));
    }
    let grown = peak_memory_bytes().expect("told before") - before;
    let is_kept = cfg!(target_os = "linux");
    assert!(
        !is_kept || grown < (256 << 20) + ALLOWED,
        "{grown} bytes over {before}, where no moment holds more than 256 MiB"
    );
}

/// Each moment's blocks are a page larger than the last one's, so each is made of several of those and leaves another rest.
/// That is so behind [`exercise`], whose pieces lie scattered.
fn a_process_has_few_mappings() {
    let blocks = |size| (0..256 * MIB / size).map(|_| vec![1; size]).collect();
    for pages in 0..96 {
        let _held: Vec<Vec<u8>> = blocks(2 * MIB + pages * 4096);
    }
    let Ok(mappings) = std::fs::read_to_string("/proc/self/maps") else {
        return left_out("memory", "this system does not tell a process's mappings");
    };
    let count = mappings.lines().count();
    assert!(count < 4096, "{count} mappings");
}

/// One after the other: the peak is the process's.
#[test]
fn large_blocks_are_used_again() {
    allocator::keep_freed_memory();
    freed_blocks_become_those_of_the_next_moment();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || exercise(seed));
        }
    });
    a_process_has_few_mappings();
    allocator::keep_freed_memory();
}
