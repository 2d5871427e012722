//! Files of records in Parquet.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use crate::{Error, Result};

/// Gives the rows of a file on, each with its number from 0 and as an object, as long as they are wanted. No more is in
/// memory than a page of each column.
pub(super) fn read(
    path: &Path,
    each: &mut dyn FnMut(usize, Value) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let broken = |error| Error::format(path, format!("malformed Parquet: {error}"));
    let file = File::open(path).map_err(Error::io(path))?;
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let rows = reader.get_row_iter(None).map_err(broken)?;
    for (index, row) in rows.enumerate() {
        if each(index, row.map_err(broken)?.to_json_value())?.is_break() {
            break;
        }
    }
    Ok(())
}
