//! Prints how much memory some trainings would take, as a table in Markdown. Nothing is allocated.
//!
//! ```text
//! cargo run --release --example memory_table
//! ```

#[path = "support/memory_table.rs"]
mod memory_table;

fn main() {
    println!("{}", memory_table::markdown());
}
