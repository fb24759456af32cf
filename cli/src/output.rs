//! What goes to stdout: a command's answer, as text or as one JSON document, from the same value.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;

/// Prints `answer` as `output` asks.
pub fn show<T: Serialize + Display>(answer: &T, output: OutputArgs) -> Result<(), Failure> {
    match output.json {
        true => print(&json(answer)?),
        false => print(&answer.to_string()),
    }
}

/// Returns `answer` as a JSON document on lines of its own.
pub fn json<T: Serialize>(answer: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(answer).context("write JSON")?)
}

/// Prints `text` with one line break at its end. A reader that has gone (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text)?;
    Ok(())
}

/// Whether somebody still reads stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    There,
    Gone,
}

/// Does what `print` does, for those who would go on printing.
pub fn write(text: &str) -> anyhow::Result<Reader> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(e) => Err(e).context("write to stdout"),
    }
}
