//! What transformers gives templates: settings, filters, tests, functions and Python's methods.

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::pycompat;

use super::{date, python};

/// How many instructions a rendering may take: a thousand times what long conversations do.
const FUEL: u64 = 50_000_000;

pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(print);
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_function("raise_exception", refuse);
    environment.add_function("strftime_now", |format: &str| date::strftime_now(format));
    environment
}

fn print(out: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    match value.is_undefined() {
        true => Ok(()),
        false => Ok(out.write_str(&python::str(value))?),
    }
}

fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
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
