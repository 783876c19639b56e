//! Tables for people: columns as wide as what is in them, fitted to a terminal, with colour only there.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;

use crate::sys;

/// What a cell says by its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Paint {
    #[default]
    Plain,
    Good,
    Warning,
    Bad,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: Cow<'static, str>,
    paint: Paint,
}

impl Cell {
    pub(crate) fn painted(text: impl Into<Cow<'static, str>>, paint: Paint) -> Self {
        Self { text: text.into(), paint }
    }
}

impl<T: Into<Cow<'static, str>>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(text, Paint::Plain)
    }
}

/// A column: its head, whether its cells stand to the right, and how narrow it may become where room is short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) head: &'static str,
    pub(crate) right: bool,
    pub(crate) least: Option<usize>,
}

impl Column {
    pub(crate) const fn left(head: &'static str) -> Self {
        Self { head, right: false, least: None }
    }

    pub(crate) const fn right(head: &'static str) -> Self {
        Self { head, right: true, least: None }
    }

    /// May be cut to so many letters.
    pub(crate) const fn elastic(head: &'static str, least: usize) -> Self {
        Self { head, right: false, least: Some(least) }
    }
}

/// Where output goes: how wide that is, and whether it takes colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// `None`: as wide as need be.
    pub(crate) width: Option<usize>,
    pub(crate) colour: bool,
}

impl Output {
    /// Standard output. Colour where it is a terminal that has it and NO_COLOR is not there (no-color.org).
    pub(crate) fn standard() -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = io::stdout().is_terminal();
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let width = sys::terminal_width(io::stdout().as_fd()).filter(|width| *width > 0);
        Self { width: width.filter(|_| terminal), colour: terminal && !dumb && !is_set("NO_COLOR") }
    }

    /// Adds a text in its colour.
    fn push(self, line: &mut String, text: &str, paint: Paint) {
        let code = if self.colour && !text.is_empty() { paint.code() } else { "" };
        line.push_str(code);
        line.push_str(text);
        line.push_str(if code.is_empty() { "" } else { "\x1b[0m" });
    }
}

/// Writes a table. Where it is too wide for a terminal, what says nothing is left out, and then what is elastic is cut.
pub(crate) fn write(
    out: &mut impl Write,
    output: Output,
    columns: &[Column],
    rows: &[Vec<Cell>],
) -> io::Result<()> {
    let (widths, gap) = layout(output, columns, rows);
    let heads: Vec<_> = columns.iter().map(|column| Cell::from(column.head)).collect();
    let mut line = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        line.clear();
        for ((cell, column), width) in row.iter().zip(columns).zip(&widths) {
            let Some(width) = width else { continue };
            let text = cut(&cell.text, *width);
            let blanks = std::iter::repeat_n(' ', width.saturating_sub(letters(&text)));
            if !line.is_empty() {
                line.push_str(gap);
            }
            if column.right {
                line.extend(blanks);
                output.push(&mut line, &text, cell.paint);
            } else {
                output.push(&mut line, &text, cell.paint);
                line.extend(blanks);
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// How many letters a text has.
fn letters(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// How wide each column is, `None` where it is left out, and what is between them.
fn layout(output: Output, columns: &[Column], rows: &[Vec<Cell>]) -> (Vec<Option<usize>>, &'static str) {
    let mut widths: Vec<_> = columns.iter().map(|column| Some(column.head.len())).collect();
    let mut says_something = vec![false; columns.len()];
    for row in rows {
        for ((width, says), cell) in widths.iter_mut().zip(&mut says_something).zip(row) {
            *width = (*width).max(Some(letters(&cell.text)));
            *says |= !matches!(&*cell.text, "" | "-");
        }
    }
    let Some(room) = output.width else { return (widths, "  ") };
    let total = |widths: &[Option<usize>], gap: &str| {
        let there = widths.iter().flatten();
        there.clone().sum::<usize>() + gap.len() * there.count().saturating_sub(1)
    };
    if total(&widths, "  ") > room {
        for (width, _) in widths.iter_mut().zip(says_something).filter(|(_, says)| !says) {
            *width = None;
        }
    }
    let least = |widths: &[Option<usize>]| {
        let least = |(width, column): (&Option<usize>, &Column)| {
            width.map(|width| column.least.map_or(width, |least| least.min(width)))
        };
        widths.iter().zip(columns).map(least).collect::<Vec<_>>()
    };
    let gap = if total(&least(&widths), "  ") > room { " " } else { "  " };
    while total(&widths, gap) > room {
        // The widest gives way first.
        let elastic = widths.iter_mut().zip(columns).filter_map(|(width, column)| {
            let (width, least) = (width.as_mut()?, column.least?);
            (*width > least).then_some(width)
        });
        match elastic.max_by_key(|width| **width) {
            Some(width) => *width -= 1,
            None => break,
        }
    }
    (widths, gap)
}

/// A text in so many letters: the end of it counts most, as that of an address, which has the port.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    let length = letters(text);
    if length <= width {
        return text.into();
    }
    std::iter::once('…').chain(text.chars().skip(length + 1 - width.max(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::{Cell, Column, Output, Paint, write};

    fn table(width: Option<usize>, colour: bool) -> String {
        let rows = [vec!["nginx/1".into(), "192.0.2.1:443".into(), Cell::painted("off", Paint::Bad)]];
        let columns = [Column::left("PROCESS"), Column::elastic("LOCAL", 5), Column::right("STATE")];
        let mut out = Vec::new();
        write(&mut out, Output { width, colour }, &columns, &rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_fits() {
        assert_eq!(table(None, false), "PROCESS  LOCAL          STATE\nnginx/1  192.0.2.1:443    off\n");
        assert_eq!(table(Some(25), false), "PROCESS  LOCAL      STATE\nnginx/1  ….2.1:443    off\n");
        // No narrower than it may become.
        assert_eq!(table(Some(10), false), "PROCESS LOCAL STATE\nnginx/1 …:443   off\n");
        assert!(table(None, true).ends_with("  \x1b[31moff\x1b[0m\n"));
    }
}
