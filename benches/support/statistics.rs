//! Numbers that stand for several measurements.

/// The median; between the middle two of an even number.
///
/// # Panics
/// If there are no values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    (values[last / 2] + values[last.div_ceil(2)]) / 2.0
}
