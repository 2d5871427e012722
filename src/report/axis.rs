//! Where numbers lie along an axis, and which of them it names.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// How many numbers an axis names at most.
const MOST_TICKS: usize = 9;
/// What values span at least where their axis is logarithmic.
const LOG_SPAN: f64 = 100.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
}

impl Scale {
    /// Where a value lies.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.log10(),
        }
    }
}

/// The axis of values.
#[derive(Clone)]
pub(super) struct ValueAxis {
    scale: Scale,
    /// All values, and a little more of them.
    places: Range<f64>,
    /// Values and their names.
    ticks: Vec<(f64, String)>,
}

impl ValueAxis {
    pub fn linear(low: f64, high: f64) -> Self {
        let places = with_margin(low, high);
        Self {
            scale: Scale::Linear,
            ticks: linear_ticks(&places),
            places,
        }
    }

    /// Logarithmic where a linear axis would show the large values alone, and every value has a logarithm.
    pub fn spanning(low: f64, high: f64) -> Self {
        if low <= 0.0 || high / low < LOG_SPAN {
            return Self::linear(low, high);
        }
        let places = with_margin(low.log10(), high.log10());
        Self {
            scale: Scale::Log,
            ticks: log_ticks(&places),
            places,
        }
    }

    pub fn is_logarithmic(&self) -> bool {
        self.scale == Scale::Log
    }
}

fn with_margin(low: f64, high: f64) -> Range<f64> {
    // Also a single value needs an axis of some length.
    let size = low.abs().max(high.abs());
    let is_zero = size < f64::from(f32::MIN_POSITIVE);
    let smallest = if is_zero { 0.1 } else { 0.1 * size };
    let margin = 0.04 * (high - low).max(smallest);
    low - margin..high + margin
}

impl Ranged for ValueAxis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let length = self.places.end - self.places.start;
        let part = (self.scale.place(*value) - self.places.start) / length;
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        let value = |place: f64| match self.scale {
            Scale::Linear => place,
            Scale::Log => 10f64.powf(place),
        };
        value(self.places.start)..value(self.places.end)
    }
}

impl ValueFormatter<f64> for ValueAxis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick == value);
        tick.map_or_else(String::new, |(_, name)| name.clone())
    }
}

fn linear_ticks(places: &Range<f64>) -> Vec<(f64, String)> {
    let step = round_step((places.end - places.start) / MOST_TICKS as f64);
    let first = (places.start / step).ceil();
    let count = ((places.end / step).floor() - first) as usize + 1;
    let values = (0..count).map(|tick| (first + tick as f64) * step);
    let values: Vec<f64> = values.collect();
    let largest = values
        .iter()
        .fold(step, |most, value| most.max(value.abs()));
    let label = |value: f64| number(value, largest, step);
    values
        .into_iter()
        .map(|value| (value, label(value)))
        .collect()
}

/// The smallest of 1, 2, 5, 10, 20 ... that is not below a number.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    steps
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// 1, 2, 5, 10, 20 ... if there is room for so many, else powers of ten, or some of these.
fn log_ticks(places: &Range<f64>) -> Vec<(f64, String)> {
    let exponents = places.start.floor() as i32..=places.end.ceil() as i32;
    let every = |powers: i32, digits: &[u32]| -> Vec<(f64, String)> {
        let powers = exponents.clone().filter(|exponent| exponent % powers == 0);
        let names =
            powers.flat_map(|power| digits.iter().map(move |digit| one_digit(*digit, power)));
        let ticks = names.map(|name| (name.parse().expect("it is a number"), name));
        ticks
            .filter(|(value, _)| places.contains(&f64::log10(*value)))
            .collect()
    };
    let choices = [
        every(1, &[1, 2, 5]),
        every(1, &[1]),
        every(2, &[1]),
        every(5, &[1]),
    ];
    let fits = choices.into_iter().find(|ticks| ticks.len() <= MOST_TICKS);
    fits.unwrap_or_else(|| every(10, &[1]))
}

/// A digit by a power of ten.
fn one_digit(digit: u32, power: i32) -> String {
    match power {
        0..=4 => format!("{digit}{}", "0".repeat(power as usize)),
        -4..0 => format!("0.{}{digit}", "0".repeat((-1 - power) as usize)),
        _ => format!("{digit}e{power}"),
    }
}

/// A value with as many decimals as a step of the axis has, by a power of ten where it would be long.
fn number(value: f64, largest: f64, step: f64) -> String {
    const MOST_DIGITS: i32 = 6;
    const MOST_DECIMALS: i32 = 4;
    // Steps are products of a power of ten: a little more, so that none falls below its own.
    let exponent = |number: f64| (number * (1.0 + 1e-9)).log10().floor() as i32;
    let decimals = (-exponent(step)).max(0);
    let digits = exponent(largest).max(0) + 1 + decimals;
    if digits <= MOST_DIGITS && decimals <= MOST_DECIMALS {
        return format!("{value:.decimals$}", decimals = decimals as usize);
    }
    if value == 0.0 {
        return "0".into();
    }
    let decimals = exponent(value.abs()) - exponent(step);
    format!("{value:.decimals$e}", decimals = decimals.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ticks: Vec<(f64, String)>) -> Vec<String> {
        ticks.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn a_linear_axis_names_round_numbers() {
        let names = |low, high| names(linear_ticks(&(low..high)));
        assert_eq!(
            names(0.93, 2.07),
            ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0"]
        );
        assert_eq!(
            names(-0.4, 3.1),
            ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]
        );
        assert_eq!(
            names(0.0, 2.1e-4),
            ["0", "5e-5", "1.0e-4", "1.5e-4", "2.0e-4"]
        );
        assert_eq!(names(2.99e38, 3.4e38)[0], "3.00e38");
    }

    #[test]
    fn a_logarithmic_axis_names_powers_of_ten() {
        let names = |low: f64, high: f64| names(log_ticks(&(low.log10()..high.log10())));
        assert_eq!(
            names(0.015, 3.0),
            ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]
        );
        assert_eq!(
            names(0.5, 2e6),
            ["1", "10", "100", "1000", "10000", "1e5", "1e6"]
        );
        assert_eq!(
            names(1e-31, 3e38),
            ["1e-30", "1e-20", "1e-10", "1", "1e10", "1e20", "1e30"]
        );
    }

    #[test]
    fn where_the_axis_is_logarithmic() {
        assert!(ValueAxis::spanning(0.01, 1.0).is_logarithmic());
        for (low, high) in [(0.011, 1.0), (0.0, 1e9), (-1.0, 1e9)] {
            assert!(!ValueAxis::spanning(low, high).is_logarithmic());
        }
        let axis = ValueAxis::spanning(1e-2, 1e2);
        let heights = [1e-2, 1.0, 1e2].map(|value| axis.map(&value, (0, 1080)));
        assert_eq!(heights, [40, 540, 1040]);
    }

    /// The axis of constant values, too, has an end.
    #[test]
    fn names_are_few_and_apart() {
        let constants = [
            0.0,
            1.0,
            1240.0,
            99999.6,
            -2e-7,
            f64::from(f32::MAX),
            1e-30,
            1e-320,
        ];
        let spans = [(-3.4e38, 3.4e38), (0.0, 1e-6), (1e-30, 1.1e-30)];
        for (low, high) in constants
            .map(|value| (value, value))
            .into_iter()
            .chain(spans)
        {
            let names = names(ValueAxis::spanning(low, high).ticks);
            assert!((3..=MOST_TICKS + 1).contains(&names.len()), "{names:?}");
            let mut apart = names.clone();
            apart.dedup();
            assert_eq!(apart, names);
            assert!(names.iter().all(|name| name.len() <= 9), "{names:?}");
        }
    }
}
