//! What a run tells.

/// Prints a line as `println!` does, but for this: that nobody reads it is no reason to end a training, nor what a pipe or a
/// full disk under standard output says.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}
