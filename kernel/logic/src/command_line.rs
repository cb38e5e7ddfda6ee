//! What was typed at the prompt, as words.
//!
//! Words are separated by spaces. Between '…' everything stands for itself; between "…" too, but
//! `\"` and `\\` stand for one character; outside, a backslash makes the next character an ordinary
//! one. A `#` at a word's start begins a comment. A `&` at the end sends the command to the background.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A command.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Command {
    /// Its name and its arguments. Empty when nothing was typed.
    pub words: Vec<String>,
    /// Whether the prompt comes back before it has ended.
    pub background: bool,
}

/// A line that isn't a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A quote wasn't closed.
    OpenQuote(char),
    /// A `&` stands before the end, or alone.
    StrayAmpersand,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenQuote(quote) => write!(f, "a {quote} isn't closed"),
            Self::StrayAmpersand => f.write_str("& only makes sense behind a command"),
        }
    }
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &str) -> Result<Command, Mistake> {
    let mut command = Command::default();
    let mut rest = line.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        match rest.peek() {
            None | Some('#') => return Ok(command),
            Some(_) if command.background => return Err(Mistake::StrayAmpersand),
            Some('&') if command.words.is_empty() => return Err(Mistake::StrayAmpersand),
            Some('&') => {
                rest.next();
                command.background = true;
            }
            Some(_) => command.words.push(word(&mut rest)?),
        }
    }
}

/// The word that starts here.
fn word(rest: &mut core::iter::Peekable<core::str::Chars<'_>>) -> Result<String, Mistake> {
    let mut word = String::new();
    while let Some(c) = rest.next_if(|c| !c.is_whitespace() && *c != '&') {
        match c {
            '\'' | '"' => quoted(rest, c, &mut word)?,
            '\\' => word.extend(rest.next()),
            c => word.push(c),
        }
    }
    Ok(word)
}

/// What stands up to the closing quote.
fn quoted(
    rest: &mut impl Iterator<Item = char>,
    quote: char,
    word: &mut String,
) -> Result<(), Mistake> {
    let mut escaped = false;
    for c in rest {
        match c {
            _ if escaped => {
                if !matches!(c, '"' | '\\') {
                    word.push('\\');
                }
                word.push(c);
                escaped = false;
            }
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => escaped = true,
            c => word.push(c),
        }
    }
    Err(Mistake::OpenQuote(quote))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        parse(line).unwrap().words
    }

    #[test]
    fn words_and_quotes() {
        assert_eq!(words("  echo  a b "), ["echo", "a", "b"]);
        assert_eq!(words("awk 'BEGIN { print \"x\" }'"), ["awk", "BEGIN { print \"x\" }"]);
        assert_eq!(words(r#"echo "a \"b\" \n" c\ d"#), ["echo", r#"a "b" \n"#, "c d"]);
        assert_eq!(words("echo a'b c'd \"\""), ["echo", "ab cd", ""]);
        assert_eq!(words("ps # all of them"), ["ps"]);
        assert!(words("").is_empty());
    }

    #[test]
    fn the_background() {
        let command = parse("spin &").unwrap();
        assert_eq!((command.words.len(), command.background), (1, true));
        assert!(parse("spin&").unwrap().background);
        assert!(!parse("echo '&'").unwrap().background);
        assert_eq!(parse("&"), Err(Mistake::StrayAmpersand));
        assert_eq!(parse("a & b"), Err(Mistake::StrayAmpersand));
    }

    #[test]
    fn open_quotes() {
        assert_eq!(parse("echo 'a"), Err(Mistake::OpenQuote('\'')));
        assert_eq!(parse("echo \"a\\"), Err(Mistake::OpenQuote('"')));
    }
}
