use std::fmt::Display;
use std::io::{Write, stderr};
use std::process::ExitCode;

use burn_peft::Result;

/// Success, or failure with the error on the terminal.
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to standard error as `eprintln!` does, but for this: that nobody reads it, or that a full disk is under it, is
/// no reason to end.
pub fn complain(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}
