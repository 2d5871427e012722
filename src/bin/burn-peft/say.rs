//! What a run tells.

/// Prints a line as `println!` does, but for this: that nobody reads it is no reason to end a training, nor what a pipe or a
/// full disk under standard output says.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

/// Prints a text as `say!` does; on a terminal no line breaks within a word that has room in one.
pub fn tell(text: &str) {
    let terminal = console::Term::stdout();
    match terminal
        .is_term()
        .then(|| terminal.size_checked())
        .flatten()
    {
        Some((_, columns)) => say!("{}", wrapped(text, columns.into())),
        None => say!("{text}"),
    }
}

fn wrapped(text: &str, columns: usize) -> String {
    let lines = text.split('\n').map(|line| wrapped_line(line, columns));
    lines.collect::<Vec<_>>().join("\n")
}

fn wrapped_line(line: &str, columns: usize) -> String {
    let (mut wrapped, mut used) = (String::new(), 0);
    for word in line.split_inclusive(' ') {
        let width = word.trim_end().chars().count();
        if used > 0 && used + width > columns {
            wrapped.truncate(wrapped.trim_end().len());
            wrapped.push('\n');
            used = 0;
        }
        wrapped.push_str(word);
        used += word.chars().count();
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(
            wrapped("a model is finetuned\n\non  records", 12),
            "a model is\nfinetuned\n\non  records"
        );
        assert_eq!(
            wrapped("of examples/assets/tiny.json\n", 12),
            "of\nexamples/assets/tiny.json\n"
        );
        assert_eq!(wrapped("twelve words", 12), "twelve words");
        assert_eq!(wrapped("", 12), "");
    }
}
