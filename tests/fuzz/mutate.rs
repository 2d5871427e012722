//! Files that are a little wrong.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Numbers at which something overflows, is empty, or means something of its own.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    3,
    9,
    31,
    255,
    1 << 16,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
    u64::MAX - 31,
    u64::MAX,
];

/// What may stand where a text has a word or a number.
const WORDS: [&str; 30] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "64",
    "1000000",
    "4294967296",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "1e400",
    "-0.5",
    "1e-320",
    "NaN",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "\"\"",
    "[[[]]]",
    "\"..\\/..\\/x\"",
    "\"/etc/hostname\"",
    "\"\\u0000\"",
    "{{ 1 }}",
    "*",
    "&a [*a]",
    "\u{1f327}",
];

/// Some changes of one of the files.
pub fn mutate(seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..5) {
        let other = &seeds[rng.random_range(0..seeds.len())];
        change(&mut bytes, other, rng);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        return bytes.extend(WORDS[rng.random_range(0..WORDS.len())].bytes());
    }
    let place = place(bytes.len(), rng);
    let piece = |rng: &mut ChaCha8Rng, len: usize, longest: usize| {
        let start = self::place(len, rng);
        start..(start + rng.random_range(1..longest)).min(len)
    };
    match rng.random_range(0..11) {
        0 => bytes[place] = rng.random(),
        1 => bytes[place] ^= 1 << rng.random_range(0..8),
        2 => {
            let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
            let len = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len() - place);
            bytes[place..place + len].copy_from_slice(&number[..len]);
        }
        // Text has more words than bytes to get wrong.
        3..=5 => replace_word(bytes, place, rng),
        6 => drop(bytes.drain(piece(rng, bytes.len(), 40))),
        7 => {
            let copied = bytes[piece(rng, bytes.len(), 200)].to_vec();
            insert(bytes, place, copied);
        }
        8 if !other.is_empty() => {
            let copied = other[piece(rng, other.len(), 400)].to_vec();
            insert(bytes, place, copied);
        }
        9 => {
            let copied = bytes[piece(rng, bytes.len(), 4)].to_vec();
            insert(bytes, place, copied.repeat(rng.random_range(1..20_000)));
        }
        _ => bytes.truncate(place),
    }
}

fn insert(bytes: &mut Vec<u8>, place: usize, piece: Vec<u8>) {
    bytes.splice(place..place, piece);
}

/// A place, more often at the beginning: what says how a file is to be read stands before what it holds.
fn place(len: usize, rng: &mut ChaCha8Rng) -> usize {
    let within = if rng.random() { 4096 } else { usize::MAX };
    rng.random_range(0..len.min(within))
}

fn replace_word(bytes: &mut Vec<u8>, place: usize, rng: &mut ChaCha8Rng) {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-\"".contains(byte);
    let start = bytes[..place].iter().rposition(|byte| !is_part(byte));
    let end = bytes[place..].iter().position(|byte| !is_part(byte));
    let word = start.map_or(0, |start| start + 1)..end.map_or(bytes.len(), |end| place + end);
    bytes.splice(word, WORDS[rng.random_range(0..WORDS.len())].bytes());
}
