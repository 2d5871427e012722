//! What transformers gives templates: settings, filters, tests, functions and Python's methods.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, filters};
use minijinja_contrib::pycompat;

use super::{date, python};

/// How many instructions a rendering may take: a thousand times what long conversations do.
const FUEL: u64 = 50_000_000;
/// The longest list that a filter goes through, and the most that one makes by a number: what happens within a filter takes no
/// fuel.
const LONGEST: usize = 1 << 20;

pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(print);
    environment.set_unknown_method_callback(method);
    environment.add_filter(
        "tojson",
        |value: &Value, args: Rest<Value>, named: Kwargs| {
            require_all_short(value)?;
            python::tojson(value, args, named)
        },
    );
    environment.add_filter("string", |value: &Value| {
        require_all_short(value)?;
        Ok::<_, Error>(python::str(value))
    });
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    for (name, filter) in unbounded_filters() {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            args.iter().try_for_each(require_bounded)?;
            filter.call(state, &args)
        });
    }
    environment.add_filter("format", |state: &State, args: Rest<Value>| {
        args.first().map_or(Ok(()), require_narrow)?;
        Value::from_function(filters::format).call(state, &args)
    });
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_function("raise_exception", refuse);
    environment.add_function("strftime_now", |format: &str| date::strftime_now(format));
    environment
}

/// Filters that go through all of a list, or make as much as a number says.
fn unbounded_filters() -> [(&'static str, Value); 18] {
    [
        ("batch", Value::from_function(filters::batch)),
        ("chain", Value::from_function(filters::chain)),
        ("groupby", Value::from_function(filters::groupby)),
        ("indent", Value::from_function(filters::indent)),
        ("join", Value::from_function(filters::join)),
        ("last", Value::from_function(filters::last)),
        ("list", Value::from_function(filters::list)),
        ("map", Value::from_function(filters::map)),
        ("max", Value::from_function(filters::max)),
        ("min", Value::from_function(filters::min)),
        ("reject", Value::from_function(filters::reject)),
        ("reverse", Value::from_function(filters::reverse)),
        ("select", Value::from_function(filters::select)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("sum", Value::from_function(filters::sum)),
        ("unique", Value::from_function(filters::unique)),
        ("zip", Value::from_function(filters::zip)),
    ]
}

fn require_bounded(value: &Value) -> Result<(), Error> {
    if value.is_kwargs() {
        let named = Kwargs::try_from(value.clone())?;
        let mut names = named.args();
        return names.try_for_each(|name| require_bounded(&named.peek(name)?));
    }
    let is_large = |number: usize| number > LONGEST;
    match value.is_integer() && usize::try_from(value.clone()).is_ok_and(is_large) {
        true => Err(python::invalid(format!(
            "{value} is more than the {LONGEST} that a template may ask for"
        ))),
        false => require_short(value),
    }
}

/// A list times a number does not exist until somebody goes through it.
fn require_short(list: &Value) -> Result<(), Error> {
    let is_long = match list.kind() {
        ValueKind::Iterable => list.try_iter()?.nth(LONGEST).is_some(),
        ValueKind::Seq => list.len().is_some_and(|len| len > LONGEST),
        _ => false,
    };
    match is_long {
        true => Err(python::invalid(format!(
            "a list has more than {LONGEST} items"
        ))),
        false => Ok(()),
    }
}

/// [`require_short`] of what is written with all that is in it.
fn require_all_short(value: &Value) -> Result<(), Error> {
    require_short(value)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .try_for_each(|item| require_all_short(&item)),
        ValueKind::Map => value
            .try_iter()?
            .try_for_each(|key| require_all_short(&value.get_item(&key)?)),
        _ => Ok(()),
    }
}

/// Refuses a text for `format` with a width or precision of many digits, or with one that stands elsewhere (`%*d`).
fn require_narrow(format: &Value) -> Result<(), Error> {
    const DIGITS: usize = 5;
    let is_wide = |spec: &str| {
        let mut numbers = spec.split(|c: char| !c.is_ascii_digit());
        numbers.any(|number| number.len() > DIGITS)
    };
    let text = format.as_str().unwrap_or_default();
    let until = |rest: &'_ str, end: fn(char) -> bool| {
        rest.split(end).next().unwrap_or_default().to_owned()
    };
    let mut percents = text
        .split('%')
        .skip(1)
        .map(|rest| until(rest, |c| c.is_ascii_alphabetic()));
    let mut braces = text
        .split('{')
        .skip(1)
        .map(|rest| until(rest, |c| c == '}'));
    match percents.any(|spec| spec.contains('*') || is_wide(&spec))
        || braces.any(|spec| is_wide(&spec))
    {
        true => Err(python::invalid(format!(
            "format takes widths of at most {DIGITS} digits, not `{text}`"
        ))),
        false => Ok(()),
    }
}

fn print(out: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    require_all_short(value)?;
    match value.is_undefined() {
        true => Ok(()),
        false => Ok(out.write_str(&python::str(value))?),
    }
}

fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "format" {
        require_narrow(value)?;
    }
    match python::method(value, name, args) {
        Err(error) if error.kind() == ErrorKind::UnknownMethod => {
            pycompat::unknown_method_callback(state, value, name, args)
        }
        result => result,
    }
}

/// Of what is not defined, too.
fn length(value: &Value) -> Result<usize, Error> {
    match value.is_undefined() {
        true => Ok(0),
        false => minijinja::filters::length(value),
    }
}

/// A text and an object, too.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String};
    matches!(value.kind(), String | Seq | Map)
}

fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

fn refuse(message: &Value) -> Result<Value, Error> {
    Err(python::invalid(format!(
        "the template refuses it: {message}"
    )))
}
