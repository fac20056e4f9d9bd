//! Asks before something is replaced, in the original's words (spec/ctl.md B).

use std::io::{BufRead, Write};

use crate::error::{Error, Result};

/// Whether to ask at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    Ask,
    /// `--force`
    Forced,
}

impl Confirm {
    pub fn of(force: bool) -> Confirm {
        if force { Confirm::Forced } else { Confirm::Ask }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

const TRIES: u32 = 3;

/// An empty line, the end of the input and three useless answers mean no.
pub fn confirm(confirm: Confirm, question: &str, answers: &mut dyn BufRead) -> Result<Answer> {
    if confirm == Confirm::Forced {
        return Ok(Answer::Yes);
    }
    let failed = |error: std::io::Error| Error::Io(format!("ask for confirmation: {error}"));
    for _ in 0..TRIES {
        // On stdout, like the original's; nothing else of these commands goes there before the answer.
        let mut out = std::io::stdout().lock();
        write!(out, "{question}").and_then(|()| out.flush()).map_err(failed)?;
        let mut line = String::new();
        answers.read_line(&mut line).map_err(failed)?;
        match line.trim() {
            "y" | "Y" => return Ok(Answer::Yes),
            "n" | "N" | "" => return Ok(Answer::No),
            _ => writeln!(out, "Please press either 'y' or 'n'").map_err(failed)?,
        }
    }
    Ok(Answer::No)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only a clear yes is one.
    #[test]
    fn only_yes_is_yes() {
        let ask = |text: &str| confirm(Confirm::Ask, "?", &mut text.as_bytes()).unwrap();
        assert_eq!([ask("y\n"), ask("Y"), ask("what\ny\n")], [Answer::Yes; 3]);
        assert_eq!([ask("n\n"), ask(""), ask("\ny\n"), ask("a\nb\nc\ny\n")], [Answer::No; 4]);
        assert_eq!(confirm(Confirm::Forced, "?", &mut "n".as_bytes()).unwrap(), Answer::Yes);
    }
}
