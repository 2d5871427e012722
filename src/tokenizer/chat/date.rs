//! Today's date, for templates that tell it to the model.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From the day that 1970 began with.
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Python's `datetime.now().strftime(format)` in the time of Greenwich; directives that are not known stay as
/// they are.
pub(super) fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.unwrap_or_default().as_secs())
}

/// `seconds` are counted from 1970.
fn strftime(format: &str, seconds: u64) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, (c == '%').then(|| chars.next()).flatten()) {
            // Without the zero in front, as the C libraries of Linux and macOS have it.
            ('%', Some('-')) => {
                let value = chars.next().map(|directive| written(directive, seconds));
                out.push_str(value.unwrap_or_default().trim_start_matches(['0', ' ']));
            }
            ('%', Some(directive)) => out.push_str(&written(directive, seconds)),
            (c, _) => out.push(c),
        }
    }
    out
}

fn written(directive: char, seconds: u64) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    match directive {
        'Y' => format!("{year}"),
        'y' => format!("{:02}", year % 100),
        'm' => format!("{month:02}"),
        'd' => format!("{day:02}"),
        'e' => format!("{day:2}"),
        'j' => format!("{:03}", days - days_before(year, 1, 1) + 1),
        'B' => month_name.into(),
        'b' | 'h' => month_name[..3].into(),
        'A' => day_name.into(),
        'a' => day_name[..3].into(),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'p' => if hour < 12 { "AM" } else { "PM" }.into(),
        'M' => format!("{minute:02}"),
        'S' => format!("{second:02}"),
        'F' => format!("{year}-{month:02}-{day:02}"),
        'T' => format!("{hour:02}:{minute:02}:{second:02}"),
        'n' => "\n".into(),
        't' => "\t".into(),
        '%' => "%".into(),
        other => format!("%{other}"),
    }
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u64, usize, u64) {
    let year = (1970..)
        .take_while(|year| days_before(*year, 1, 1) <= days)
        .last();
    let year = year.unwrap_or(1970);
    let month = (1..=12)
        .take_while(|month| days_before(year, *month, 1) <= days)
        .last();
    let month = month.unwrap_or(1);
    (year, month, days - days_before(year, month, 1) + 1)
}

/// The days from 1970 to a date.
fn days_before(year: u64, month: usize, day: u64) -> u64 {
    const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let is_leap = leaps(year) > leaps(year - 1);
    let before: u64 = LENGTHS[..month - 1].iter().sum();
    let leap_day = u64::from(is_leap && month > 2);
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969) + before + leap_day + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_python_writes_them() {
        // `datetime.fromtimestamp(n, timezone.utc).strftime(...)`.
        let cases = [
            (0, "Thu Thursday 01 Jan 1970 00:00:00"),
            (951_782_399, "Mon Monday 28 Feb 2000 23:59:59"),
            (951_868_800, "Wed Wednesday 01 Mar 2000 00:00:00"),
            (1_721_995_200, "Fri Friday 26 Jul 2024 12:00:00"),
            (4_107_542_400, "Mon Monday 01 Mar 2100 00:00:00"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime("%a %A %d %b %Y %H:%M:%S", seconds), expected);
        }
        let rest = "%B %y %j %I %p %-d %e %F|%T %% %Q %";
        assert_eq!(
            strftime(rest, 1_720_000_000),
            "July 24 185 09 AM 3  3 2024-07-03|09:46:40 % %Q %"
        );
    }
}
