//! Regular expressions of Python's `re`, as PEFT's configurations have them, for the `fancy-regex` crate.
//!
//! Most of what both have they write alike, but not all: to Rust's crates `[0-9&&1]` is an intersection, `[[]` an
//! open class, `\<` the start of a word, and `\1` is refused beside a named group. So a pattern is read by
//! Python's grammar (<https://docs.python.org/3/library/re.html>) and written anew.

use fancy_regex::Regex;

use super::config::invalid;
use crate::Result;

/// Compiles what Python's `re.fullmatch` takes.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) of this name if it is no regular expression.
pub(super) fn full_match(pattern: &str, name: &'static str) -> Result<Regex> {
    compile(pattern, name, |translated| format!(r"\A(?:{translated})\z"))
}

/// Compiles what Python's `re.match` takes: the expression matches from the start, not up to the end.
///
/// # Errors
/// As [`full_match`].
pub(super) fn match_start(pattern: &str, name: &'static str) -> Result<Regex> {
    compile(pattern, name, |translated| format!(r"\A(?:{translated})"))
}

fn compile(pattern: &str, name: &'static str, anchor: impl Fn(String) -> String) -> Result<Regex> {
    let refused = |error: String| {
        let message = format!(
            "`{pattern}` is no regular expression of Python's `re`, or none that is read here: {error}"
        );
        invalid(name, message)
    };
    let translated = translate(pattern).map_err(refused)?;
    Regex::new(&anchor(translated)).map_err(|error| refused(error.to_string()))
}

/// The pattern in the syntax of `fancy-regex`: literals as codes, groups by their numbers.
fn translate(pattern: &str) -> Result<String, String> {
    let mut parser = Parser {
        rest: pattern,
        groups: Vec::new(),
        is_verbose: false,
    };
    let flags = parser.global_flags()?;
    let alternatives = parser.alternatives()?;
    match parser.rest.is_empty() {
        true => Ok(flags + &alternatives),
        false => Err("unbalanced parenthesis".into()),
    }
}

struct Parser<'a> {
    rest: &'a str,
    groups: Vec<Group>,
    /// Whether whitespace and comments are left out.
    is_verbose: bool,
}

struct Group {
    name: Option<String>,
    is_open: bool,
}

/// What a quantifier may stand behind, or not.
enum Item {
    Repeatable(String),
    Place(String),
}

/// A character or a kind of characters in a class.
enum Member {
    One(char),
    Kind(String),
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let first = self.peek()?;
        self.rest = &self.rest[first.len_utf8()..];
        Some(first)
    }

    fn take(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take_while(&mut self, max: usize, is_in: impl Fn(char) -> bool) -> &'a str {
        let taken = self.rest.chars().take(max).take_while(|c| is_in(*c));
        let (taken, rest) = self.rest.split_at(taken.map(char::len_utf8).sum());
        self.rest = rest;
        taken
    }

    fn up_to(&mut self, end: char) -> Result<&'a str, String> {
        let missing = || format!("missing {end}");
        let (taken, rest) = self.rest.split_once(end).ok_or_else(missing)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Comments, and whitespace where it is left out.
    fn skip(&mut self) -> Result<(), String> {
        loop {
            if self.take("(?#") {
                self.up_to(')')?;
            } else if self.is_verbose && self.peek().is_some_and(char::is_whitespace) {
                self.next();
            } else if self.is_verbose && self.peek() == Some('#') {
                self.take_while(usize::MAX, |c| c != '\n');
            } else {
                return Ok(());
            }
        }
    }

    fn alternatives(&mut self) -> Result<String, String> {
        let mut out = self.sequence()?;
        while self.take("|") {
            out = out + "|" + &self.sequence()?;
        }
        Ok(out)
    }

    fn sequence(&mut self) -> Result<String, String> {
        let mut out = String::new();
        loop {
            self.skip()?;
            if matches!(self.peek(), None | Some('|' | ')')) {
                return Ok(out);
            }
            let item = self.item()?;
            self.skip()?;
            out += &self.repeated(item)?;
        }
    }

    fn repeated(&mut self, item: Item) -> Result<String, String> {
        let (item, can_repeat) = match item {
            Item::Repeatable(item) => (item, true),
            Item::Place(item) => (item, false),
        };
        let Some(quantifier) = self.quantifier()? else {
            return Ok(item);
        };
        let out = match () {
            () if !can_repeat => return Err("nothing to repeat".into()),
            () if self.take("?") => format!("{item}{quantifier}?"),
            () if self.take("+") => format!("(?>{item}{quantifier})"),
            () => format!("{item}{quantifier}"),
        };
        self.skip()?;
        match self.quantifier()? {
            None => Ok(out),
            Some(_) => Err("multiple repeat".into()),
        }
    }

    /// `{` is a literal where no bounds follow.
    fn quantifier(&mut self) -> Result<Option<String>, String> {
        for simple in ["*", "+", "?"] {
            if self.take(simple) {
                return Ok(Some(simple.into()));
            }
        }
        let before = self.rest;
        let Some((min, max)) = self.bounds() else {
            self.rest = before;
            return Ok(None);
        };
        let min = if min.is_empty() { "0" } else { min };
        match max {
            Some(max) if !max.is_empty() => Ok(Some(format!("{{{min},{max}}}"))),
            Some(_) => Ok(Some(format!("{{{min},}}"))),
            None => Ok(Some(format!("{{{min}}}"))),
        }
    }

    fn bounds(&mut self) -> Option<(&'a str, Option<&'a str>)> {
        if !self.take("{") || self.peek() == Some('}') {
            return None;
        }
        let number = |parser: &mut Self| parser.take_while(usize::MAX, |c| c.is_ascii_digit());
        let min = number(self);
        let max = self.take(",").then(|| number(self));
        let is_number = !min.is_empty() || max.is_some();
        (is_number && self.take("}")).then_some((min, max))
    }

    fn item(&mut self) -> Result<Item, String> {
        if self.quantifier()?.is_some() {
            return Err("nothing to repeat".into());
        }
        match self.next() {
            Some('(') => self.group(),
            Some('[') => self.class().map(Item::Repeatable),
            Some('\\') => self.escape(),
            Some('.') => Ok(Item::Repeatable(".".into())),
            Some(place @ ('^' | '$')) => Ok(Item::Place(place.into())),
            Some(other) => Ok(Item::Repeatable(literal(other))),
            None => Err("it ends early".into()),
        }
    }

    fn group(&mut self) -> Result<Item, String> {
        if !self.take("?") {
            return self.capture(None);
        }
        if self.take("P<") {
            let name = self.up_to('>')?;
            return self.capture(Some(name));
        }
        if self.take("P=") {
            let name = self.up_to(')')?;
            return self.reference(name).map(Item::Repeatable);
        }
        if self.take("(") {
            return self.conditional();
        }
        for start in [":", ">", "=", "!", "<=", "<!"] {
            if self.take(start) {
                return self.inner(&format!("(?{start}")).map(Item::Repeatable);
            }
        }
        let before = self.is_verbose;
        let flags = self.flags()?;
        if !self.take(":") {
            return Err("global flags not at the start, or an unknown extension".into());
        }
        let out = self.inner(&format!("(?{flags}:"));
        self.is_verbose = before;
        out.map(Item::Repeatable)
    }

    fn inner(&mut self, start: &str) -> Result<String, String> {
        let alternatives = self.alternatives()?;
        match self.take(")") {
            true => Ok(format!("{start}{alternatives})")),
            false => Err("missing )".into()),
        }
    }

    fn capture(&mut self, name: Option<&str>) -> Result<Item, String> {
        if name.is_some_and(|name| self.number_of(name).is_ok()) {
            return Err("two groups of one name".into());
        }
        let index = self.groups.len();
        self.groups.push(Group {
            name: name.map(str::to_owned),
            is_open: true,
        });
        let inner = self.inner("(")?;
        self.groups[index].is_open = false;
        Ok(Item::Repeatable(inner))
    }

    fn conditional(&mut self) -> Result<Item, String> {
        let name = self.up_to(')')?;
        let number = self.closed(name)?;
        let inner = self.inner(&format!("(?({number})"))?;
        Ok(Item::Repeatable(inner))
    }

    /// The number of a group, by its name or that number.
    fn number_of(&self, name: &str) -> Result<usize, String> {
        let mut groups = self.groups.iter();
        let by_name = groups.position(|group| group.name.as_deref() == Some(name));
        let by_number = name
            .parse()
            .ok()
            .filter(|n| (1..=self.groups.len()).contains(n));
        let number = by_name.map(|index| index + 1).or(by_number);
        number.ok_or_else(|| format!("there is no group {name}"))
    }

    /// The same of a group that ends before.
    fn closed(&self, name: &str) -> Result<usize, String> {
        let number = self.number_of(name)?;
        match self.groups[number - 1].is_open {
            true => Err(format!("group {name} is referred to in itself")),
            false => Ok(number),
        }
    }

    fn reference(&self, name: &str) -> Result<String, String> {
        let number = self.closed(name)?;
        Ok(format!(r"(?:\{number})"))
    }

    /// `(?i)` and the like, which stand at the start alone.
    fn global_flags(&mut self) -> Result<String, String> {
        let mut out = String::new();
        loop {
            let before = (self.rest, self.is_verbose);
            let found = self.take("(?").then(|| self.flags());
            match found {
                Some(Ok(flags)) if !flags.contains('-') && self.take(")") => {
                    if !flags.is_empty() {
                        out += &format!("(?{flags})");
                    }
                }
                _ => {
                    (self.rest, self.is_verbose) = before;
                    return Ok(out);
                }
            }
        }
    }

    /// Flags that both have, `-` and those that are taken back. Names of modules are ASCII, so `a` and `u` say nothing.
    fn flags(&mut self) -> Result<String, String> {
        let mut out = String::new();
        let mut is_set = true;
        while let Some(flag) = self.peek().filter(|c| c.is_ascii_alphabetic() || *c == '-') {
            self.next();
            match flag {
                'i' | 'm' | 's' => out.push(flag),
                'x' => self.is_verbose = is_set,
                'a' | 'u' if is_set => {}
                '-' if is_set => {
                    is_set = false;
                    out.push('-');
                }
                other => return Err(format!("unknown flag {other}")),
            }
        }
        Ok(out.trim_end_matches('-').to_owned())
    }

    fn escape(&mut self) -> Result<Item, String> {
        let escaped = self.peek().ok_or("it ends with a backslash")?;
        let place = |text: &str| Ok(Item::Place(text.into()));
        match escaped {
            'A' | 'b' | 'B' | 'Z' => {
                self.next();
                match escaped {
                    'Z' => place(r"\z"),
                    other => place(&format!(r"\{other}")),
                }
            }
            '1'..='9' if self.octal(3).is_none() => {
                let number = self.take_while(2, |c| c.is_ascii_digit());
                self.reference(number).map(Item::Repeatable)
            }
            _ => Ok(Item::Repeatable(match self.escaped_member(3)? {
                Member::One(one) => literal(one),
                Member::Kind(kind) => kind,
            })),
        }
    }

    /// A character by up to three octal digits, which are not taken; outside of a class not by fewer than `min` unless
    /// the first is 0.
    fn octal(&self, min: usize) -> Option<(char, usize)> {
        let digits = self.rest.chars().take(3);
        let digits: String = digits.take_while(|c| c.is_digit(8)).collect();
        let is_octal = digits.len() >= min || digits.starts_with('0');
        let code = u32::from_str_radix(&digits, 8).ok().filter(|_| is_octal)?;
        Some((char::from_u32(code).filter(|_| code < 256)?, digits.len()))
    }

    fn escaped_member(&mut self, min_octal: usize) -> Result<Member, String> {
        if let Some((one, len)) = self.octal(min_octal) {
            self.take_while(len, |_| true);
            return Ok(Member::One(one));
        }
        let escaped = self.next().ok_or("it ends with a backslash")?;
        let one = match escaped {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => return Ok(Member::Kind(format!(r"\{escaped}"))),
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            other if other.is_ascii_alphanumeric() => return Err(format!(r"bad escape \{other}")),
            other => other,
        };
        Ok(Member::One(one))
    }

    fn code(&mut self, len: usize) -> Result<char, String> {
        let digits = self.take_while(len, |c| c.is_ascii_hexdigit());
        let code = u32::from_str_radix(digits, 16).ok();
        let code = code.filter(|_| digits.len() == len);
        code.and_then(char::from_u32)
            .ok_or_else(|| "incomplete escape".into())
    }

    fn class(&mut self) -> Result<String, String> {
        let mut out = String::from(if self.take("^") { "[^" } else { "[" });
        let mut is_first = true;
        while is_first || !self.take("]") {
            is_first = false;
            let low = self.member()?;
            let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            let high = match is_range && self.take("-") {
                true => Some(self.member()?),
                false => None,
            };
            out += &match (low, high) {
                (Member::Kind(kind), None) => kind,
                (Member::One(one), None) => code_of(one),
                (Member::One(low), Some(Member::One(high))) if low <= high => {
                    format!("{}-{}", code_of(low), code_of(high))
                }
                _ => return Err("bad character range".into()),
            };
        }
        Ok(out + "]")
    }

    fn member(&mut self) -> Result<Member, String> {
        match self.next() {
            None => Err("missing ]".into()),
            Some('\\') if self.take("b") => Ok(Member::One('\x08')),
            Some('\\') => self.escaped_member(1),
            Some(one) => Ok(Member::One(one)),
        }
    }
}

fn literal(one: char) -> String {
    match one.is_ascii_alphanumeric() || one == '_' {
        true => one.into(),
        false => code_of(one),
    }
}

fn code_of(one: char) -> String {
    format!(r"\x{{{:X}}}", u32::from(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let regex = full_match(pattern, "targets").unwrap();
        regex.is_match(text).unwrap()
    }

    /// What `re.fullmatch` of Python 3.11 says.
    #[test]
    fn patterns_mean_what_they_mean_in_python() {
        for (pattern, text, expected) in [
            (r"[0-9&&1]", "5", true),
            (r"[0-9&&1]", "&", true),
            (r"[a-z--k]", "-", true),
            (r"[a~~b]", "~", true),
            (r"[[]?q", "q", true),
            (r"[[a]", "[", true),
            (r"[]a]", "]", true),
            (r"[^]a]", "]", false),
            (r"[[:alpha:]]", ":]", true),
            (r"[[:alpha:]]", "b", false),
            (r"[\b]", "\u{8}", true),
            (r"[\101]", "A", true),
            (r"\<q\>", "<q>", true),
            (r"q\Z", "q", true),
            (r"a{,2}", "aa", true),
            (r"a{,}", "aaa", true),
            (r"a{}", "a{}", true),
            (r"a{ 1}", "a{ 1}", true),
            (r"a{x", "a{x", true),
            (r"a++a", "aa", false),
            (r"a{1,2}+a", "aa", false),
            (r"(?>a|ab)c", "abc", false),
            (r"(?P<x>a|b)(?P=x)", "bb", true),
            (r"(?P<x>a|b)(c)\2", "acc", true),
            (r"(a)(?(1)b|c)", "ab", true),
            (r"(?P<x>a)?(?(x)b|c)", "c", true),
            (r"(?i)Q|V", "v", true),
            (r"(?x) q # the query", "q", true),
            (r"(?x:q [ ] v)w", "q vw", true),
            (r"(?x: a ) b", "a b", true),
            (r"(?i-s:Q)_", "q_", true),
            (r"a(?#comment)*", "aaa", true),
            (r"\x71\u0071\160", "qqp", true),
            (r"(?<!k)_p|q", "q", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_python_refuses_is_an_error() {
        for pattern in [
            r"(",
            r"a)",
            r"[a",
            r"*a",
            r"a**",
            r"a{2}{3}",
            r"^*",
            r"\z",
            r"\p{L}",
            r"\h",
            r"(?<x>a)",
            r"a(?i)b",
            r"(?L)a",
            r"[b-a]",
            r"[\d-z]",
            r"\1",
            r"(a\1)",
            r"(?P=x)",
            r"(?P<x>a)(?P<x>b)",
            r"\x7",
            r"\N{DIGIT ONE}",
            r"a\",
            r"(?(1)a)",
        ] {
            let error = full_match(pattern, "rank_pattern").unwrap_err().to_string();
            assert!(error.contains("rank_pattern"), "{error}");
            assert!(error.contains("regular expression"), "{error}");
        }
    }
}
