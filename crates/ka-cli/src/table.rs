//! Tables for people. Each column is as wide as its longest cell. On a terminal, the table has colours, and is
//! shortened to the terminal's width.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal as _, Write};

use ka_reach::escape::visible;

/// The meaning of a cell's colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paint {
    /// No colour.
    #[default]
    Plain,
    /// Green.
    Good,
    /// Yellow.
    Warning,
    /// Red.
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
pub struct Cell {
    /// The text, which has no control characters.
    pub text: Cow<'static, str>,
    /// The colour.
    pub paint: Paint,
}

impl Cell {
    /// Returns a cell in a colour.
    pub fn painted(text: impl Into<Cow<'static, str>>, paint: Paint) -> Self {
        Self { text: text.into(), paint }
    }
}

impl<T: Into<Cow<'static, str>>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(text, Paint::Plain)
    }
}

/// A column: its heading, its alignment, and how it shrinks if the terminal is too narrow.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The heading.
    pub head: &'static str,
    /// True if the cells are aligned to the right.
    pub right: bool,
    /// The smallest width while droppable columns are left. `None` if the column is never shortened.
    pub least: Option<usize>,
    /// The smallest width after all droppable columns have been left out.
    floor: usize,
    /// If a cell is shortened, the text from the last occurrence of this letter on is kept.
    pub anchor: Option<char>,
    /// The column with the highest rank is left out first. A column of rank 0 always stays.
    rank: u8,
}

impl Column {
    /// Returns a column that is aligned to the left.
    pub const fn left(head: &'static str) -> Self {
        Self { head, right: false, least: None, floor: 0, anchor: None, rank: 0 }
    }

    /// Returns a column that is aligned to the right.
    pub const fn right(head: &'static str) -> Self {
        Self { right: true, ..Self::left(head) }
    }

    /// Returns a column that may be shortened to this many letters.
    pub const fn elastic(head: &'static str, least: usize) -> Self {
        Self::left(head).at_least(least)
    }

    /// Allows the column to be shortened to this many letters.
    pub const fn at_least(self, least: usize) -> Self {
        Self { least: Some(least), floor: least, ..self }
    }

    /// Keeps the text from the last `anchor` on, such as the colon of a port.
    pub const fn keeping(self, anchor: char) -> Self {
        Self { anchor: Some(anchor), ..self }
    }

    /// Allows fewer letters after all droppable columns have been left out.
    pub const fn down_to(self, floor: usize) -> Self {
        Self { floor, ..self }
    }

    /// Allows the column to be left out. The column with the highest rank is left out first.
    pub const fn droppable(self, rank: u8) -> Self {
        Self { rank, ..self }
    }
}

/// Returns whether the terminal only shows lines of text.
pub(crate) fn is_dumb() -> bool {
    env::var_os("TERM").is_none_or(|term| term == "dumb")
}

/// The width of the output, and whether it has colours.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The maximum width of a line. `None` if there is none.
    pub width: Option<usize>,
    /// True if the output has colours.
    pub colour: bool,
}

impl Layout {
    /// Describes standard output. It has colours if it is a terminal with colours and NO_COLOR is empty or not set
    /// (no-color.org).
    pub fn standard() -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = io::stdout().is_terminal();
        let size = rustix::termios::tcgetwinsize(io::stdout());
        let width = size.ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        Self { width: width.filter(|_| terminal), colour: terminal && !is_dumb() && !is_set("NO_COLOR") }
    }

    /// Appends a text in its colour to a line.
    fn push(self, line: &mut String, text: &str, paint: Paint) {
        let code = if self.colour && !text.is_empty() { paint.code() } else { "" };
        line.push_str(code);
        line.push_str(text);
        line.push_str(if code.is_empty() { "" } else { "\x1b[0m" });
    }
}

/// Writes a table. If it is too wide, this function leaves out columns without content, then droppable columns, and
/// shortens elastic columns.
pub fn write(out: &mut impl Write, output: Layout, columns: &[Column], rows: &[Vec<Cell>]) -> io::Result<()> {
    let mut extents: Vec<_> = columns.iter().map(Extent::of_head).collect();
    for row in rows {
        extents.iter_mut().zip(row).for_each(|(extent, cell)| extent.add(cell));
    }
    let (widths, gap) = fit(output.width, columns, &extents);
    let heads: Vec<_> = columns.iter().map(|column| Cell::from(column.head)).collect();
    let mut line = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        line.clear();
        for ((cell, column), width) in row.iter().zip(columns).zip(&widths) {
            let Some(width) = width else { continue };
            let text = cut(&cell.text, *width, column.anchor);
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

/// Formats a process that has a socket, and the number of other processes that have it: `nginx/812+3`.
pub(crate) fn holder(comm: Option<&[u8]>, pid: i32, others: usize) -> String {
    let more = if others == 0 { String::new() } else { format!("+{others}") };
    format!("{}/{pid}{more}", visible(comm.unwrap_or(b"?")))
}

/// Returns the number of letters in a text.
fn letters(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// The content of a column.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The number of letters in the longest cell, or in the heading.
    letters: usize,
    /// True if a cell has a value.
    has_value: bool,
}

impl Extent {
    /// Returns the extent of a column without rows.
    pub const fn of_head(column: &Column) -> Self {
        Self { letters: column.head.len(), has_value: false }
    }

    /// Extends the column by a cell.
    pub fn add(&mut self, cell: &Cell) {
        self.letters = self.letters.max(letters(&cell.text));
        self.has_value |= !matches!(&*cell.text, "" | "-");
    }

    /// Makes the column at least this wide.
    pub fn widen(&mut self, letters: usize) {
        self.letters = self.letters.max(letters);
    }
}

/// Fits columns into this many letters. Returns the width of each column, and the text between columns. A column that
/// is left out has the width `None`.
pub fn fit(
    room: Option<usize>,
    columns: &[Column],
    extents: &[Extent],
) -> (Vec<Option<usize>>, &'static str) {
    let mut widths: Vec<_> = extents.iter().map(|extent| Some(extent.letters)).collect();
    let Some(room) = room else { return (widths, "  ") };
    let total = |widths: &[Option<usize>], gap: &str| {
        let shown = widths.iter().flatten();
        shown.clone().sum::<usize>() + gap.len() * shown.count().saturating_sub(1)
    };
    if total(&widths, "  ") > room {
        for (width, _) in widths.iter_mut().zip(extents).filter(|(_, extent)| !extent.has_value) {
            *width = None;
        }
    }
    let least = |widths: &[Option<usize>]| {
        let least = |(width, column): (&Option<usize>, &Column)| {
            width.map(|width| column.least.map_or(width, |least| least.min(width)))
        };
        widths.iter().zip(columns).map(least).collect::<Vec<_>>()
    };
    while total(&least(&widths), " ") > room {
        let droppable =
            widths.iter_mut().zip(columns).filter(|(width, column)| width.is_some() && column.rank > 0);
        match droppable.max_by_key(|(_, column)| column.rank) {
            Some((width, _)) => *width = None,
            None => break,
        }
    }
    let gap = if total(&least(&widths), "  ") > room { " " } else { "  " };
    while total(&widths, gap) > room {
        // Shorten the widest column first.
        let elastic = widths.iter_mut().zip(columns).filter_map(|(width, column)| {
            let (width, least) = (width.as_mut()?, column.least?);
            (*width > least).then_some(width)
        });
        match elastic.max_by_key(|width| **width) {
            Some(width) => *width -= 1,
            None => break,
        }
    }
    while total(&widths, gap) > room {
        // The first columns identify the row, so shorten the last column first.
        let elastic = widths.iter_mut().zip(columns).rev().find_map(|(width, column)| {
            let width = width.as_mut()?;
            (column.least.is_some() && *width > column.floor).then_some(width)
        });
        match elastic {
            Some(width) => *width -= 1,
            None => break,
        }
    }
    (widths, gap)
}

/// Shortens a text to this many letters. Without an anchor, keeps the end of the text. With an anchor, keeps the text
/// from the last anchor on, and leaves out the middle of the text before it.
pub fn cut(text: &str, width: usize, anchor: Option<char>) -> Cow<'_, str> {
    let length = letters(text);
    if length <= width {
        return text.into();
    }
    let kept = width.max(1) - 1;
    let anchored = anchor.and_then(|anchor| text.get(text.rfind(anchor)?..)).map(letters);
    let tail = anchored.map_or(kept, |anchored| anchored.min(kept).midpoint(kept));
    let head = text.chars().take(kept - tail);
    head.chain(['…']).chain(text.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Cell, Column, Layout, Paint, cut, letters, write};

    fn table(width: Option<usize>, colour: bool) -> String {
        let rows = [vec!["nginx/1".into(), "192.0.2.1:443".into(), Cell::painted("off", Paint::Bad)]];
        let columns = [Column::left("PROCESS"), Column::elastic("LOCAL", 5), Column::right("STATE")];
        let mut out = Vec::new();
        write(&mut out, Layout { width, colour }, &columns, &rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn elastic_columns_are_shortened_to_the_width() {
        assert_eq!(table(None, false), "PROCESS  LOCAL          STATE\nnginx/1  192.0.2.1:443    off\n");
        assert_eq!(table(Some(25), false), "PROCESS  LOCAL      STATE\nnginx/1  ….2.1:443    off\n");
        // The table is not shortened further than its columns allow.
        assert_eq!(table(Some(10), false), "PROCESS LOCAL STATE\nnginx/1 …:443   off\n");
        assert!(table(None, true).ends_with("  \x1b[31moff\x1b[0m\n"));
    }

    #[test]
    fn text_after_the_anchor_is_kept() {
        let address = "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:65535";
        for width in 7..44 {
            let short = cut(address, width, Some(':'));
            assert_eq!(short.chars().count(), width);
            assert!(short.ends_with(":65535") && short.contains('…'), "{short}");
        }
        assert_eq!(cut(address, 21, Some(':')), "[2001:d…0:7348]:65535");
        assert_eq!(cut("kube-controller/1234567", 18, Some('/')), "kube-…ller/1234567");
        assert_eq!(cut("no anchor", 4, Some('/')), "…hor");
        assert_eq!(cut(address, 1, Some(':')), "…");
    }

    #[test]
    fn columns_are_left_out_by_rank() {
        let columns = [
            Column::left("A").droppable(1),
            Column::elastic("ADDRESS", 9).keeping(':').down_to(6),
            Column::right("B").droppable(2),
        ];
        let rows = [vec!["one".into(), "192.0.2.1:4".into(), "two".into()]];
        let fitted = |width| {
            let mut out = Vec::new();
            write(&mut out, Layout { width: Some(width), colour: false }, &columns, &rows).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(fitted(21), "A    ADDRESS        B\none  192.0.2.1:4  two\n");
        assert_eq!(fitted(17), "A   ADDRESS     B\none 192…2.1:4 two\n");
        assert_eq!(fitted(16), "A    ADDRESS\none  192.0.2.1:4\n");
        assert_eq!(fitted(12), "ADDRESS\n192.0.2.1:4\n");
        assert_eq!(fitted(6), "…DRESS\n19…1:4\n");
    }

    fn any_column() -> impl Strategy<Value = Column> {
        let anchor = prop_oneof![Just(None), Just(Some(':')), Just(Some('/'))];
        (proptest::option::of((1_usize..9, 1_usize..9)), anchor, 0_u8..4, any::<bool>()).prop_map(
            |(elastic, anchor, rank, right)| {
                let column = match elastic {
                    Some((least, floor)) => Column::elastic("ADDRESS", least).down_to(floor.min(least)),
                    None => Column::left("STATE"),
                };
                Column { right, anchor, ..column.droppable(rank) }
            },
        )
    }

    fn any_row() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("-|[a-zé:/.]{0,24}", 5)
    }

    /// Returns the smallest width of a table with only the columns that are never left out.
    fn least_width(columns: &[Column], rows: &[Vec<String>]) -> usize {
        let stays = |(_, column): &(usize, &Column)| column.rank == 0;
        let widths = columns.iter().enumerate().filter(stays).map(|(at, column)| {
            let longest =
                rows.iter().filter_map(|row| row.get(at)).map(|cell| letters(cell)).max().unwrap_or(0);
            let natural = longest.max(column.head.len());
            column.least.map_or(natural, |_| column.floor.min(natural))
        });
        widths.clone().sum::<usize>() + widths.count().saturating_sub(1)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lines_are_no_wider_than_the_terminal(
            columns in proptest::collection::vec(any_column(), 1..=5),
            texts in proptest::collection::vec(any_row(), 0..4),
            width in proptest::option::of(1_usize..80),
        ) {
            let painted = |text: &String| Cell::painted(text.clone(), Paint::Bad);
            let rows: Vec<Vec<Cell>> = texts.iter().map(|row| row.iter().map(painted).collect()).collect();
            let text = |colour| {
                let mut out = Vec::new();
                write(&mut out, Layout { width, colour }, &columns, &rows).unwrap();
                String::from_utf8(out).unwrap()
            };
            let plain = text(false);
            prop_assert_eq!(plain.lines().count(), texts.len() + 1);
            for (row, line) in texts.iter().zip(plain.lines().skip(1)) {
                match width {
                    Some(width) => {
                        prop_assert!(letters(line) <= width.max(least_width(&columns, &texts)), "{plain}");
                    }
                    None => prop_assert!(row.iter().take(columns.len()).all(|cell| line.contains(cell)), "{plain}"),
                }
            }
            // Colours change nothing else, except that a coloured line may end with blanks.
            let coloured = text(true).replace("\x1b[31m", "").replace("\x1b[0m", "");
            let ends: Vec<_> = coloured.lines().map(str::trim_end).collect();
            prop_assert_eq!(plain.lines().collect::<Vec<_>>(), ends);
        }
    }
}
